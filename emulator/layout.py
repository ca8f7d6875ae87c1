"""Where everything of the machine lies: Xen's frames, Xen's part of the address space, segment selectors.

    frame 0        GDT                      0xFC000000  slot 1008: machine-to-physical window, supervisor, read-only
          1        IDT, TSS                 0xFC400000  slot 1009: frames 0.. in order, out of every guest segment's reach
          2        ring-0 code              0xFC600000             the current domain's GDT and LDT
          3        ring-0 stack             0xFF000000  slot 1020: the root table itself (Xen's linear page table)
          4        the loop that acts out the records, at ring 1 and at ring 3
          5, 6     L1 tables of slots 1009 and 1008
          7        scratch words and stack of the loop
          8..135   records of actions, with their outcomes
          136..    machine-to-physical array
"""
from typing import Final

from spec.abi import PAGE_SIZE, RW, US, A, D, P, Xen2003

GDT_FRAME: Final = 0
IDT_FRAME: Final = 1
RING0_FRAME: Final = 2
STACK_FRAME: Final = 3
LOOP_FRAME: Final = 4
HARNESS_L1_FRAME: Final = 5
M2P_L1_FRAME: Final = 6
SCRATCH_FRAME: Final = 7
RECORD_FRAME: Final = 8
RECORD_FRAMES: Final = 128
M2P_FRAME: Final = RECORD_FRAME + RECORD_FRAMES

HARNESS: Final = Xen2003.GUEST_END              # linear address of frame 0
GDT_BASE: Final = HARNESS + GDT_FRAME * PAGE_SIZE
CR0: Final = 0x80050031                         # PG, AM, WP, NE, ET, PE
IDT_BASE: Final = HARNESS + IDT_FRAME * PAGE_SIZE
TSS_OFFSET: Final = 0x900
TSS_BASE: Final = IDT_BASE + TSS_OFFSET
GDT_POINTER_OFFSET: Final = 0xA00               # operand of LGDT for the loop's GDT, in frame 1 too
GDT_POINTER: Final = IDT_BASE + GDT_POINTER_OFFSET
LDT_MAPPED_OFFSET: Final = 0xA08                # the answer to BELL_LDT
LDT_MAPPED: Final = IDT_BASE + LDT_MAPPED_OFFSET
GUEST_IDT_OFFSET: Final = 0xB00                 # in frame 1 too: the gates while a guest runs as itself
GUEST_IDT: Final = IDT_BASE + GUEST_IDT_OFFSET
GUEST_IDT_ENTRIES: Final = 0x83                 # beyond the last one INT n ends as at an empty gate
RING0_BASE: Final = HARNESS + RING0_FRAME * PAGE_SIZE
WAYS_OFFSET: Final = 0x400                      # in frame 2, behind the stubs: the code of emulator.ways
WAYS_BASE: Final = RING0_BASE + WAYS_OFFSET
RING0_STACK: Final = HARNESS + (STACK_FRAME + 1) * PAGE_SIZE
LOOP_BASE: Final = HARNESS + LOOP_FRAME * PAGE_SIZE
SCRATCH_BASE: Final = HARNESS + SCRATCH_FRAME * PAGE_SIZE

# --- a guest that runs as itself: what Xen keeps of it, at the bottom and at the top of the page of the ring-0 stack
HANDLER: Final = HARNESS + STACK_FRAME * PAGE_SIZE      # CS and EIP of the handler of the present trap,
HANDLER_WORDS: Final = HANDLER + 8              # and what its frame has besides: 1 error code, 2 CR2, too; < 0: no frame
TURNED: Final = HANDLER + 12                    # 1: the guest is not let go on where it was
EVENT_CALLBACK: Final = HANDLER + 16            # CS and EIP
FAILSAFE_CALLBACK: Final = HANDLER + 24
FAULT_ADDRESS: Final = HANDLER + 32             # CR2
DEBUG_STATUS: Final = HANDLER + 36              # DR6
CONTROL: Final = HANDLER + 40                   # what CR0 is while the guest runs
PUSHED: Final = RING0_STACK - 28                # vector, error code, and what the processor pushes: EIP, CS, EFLAGS, ESP, SS
SAVED: Final = PUSHED - 64 - 44                 # EBX ECX EDX ESI EDI EBP EAX DS ES FS GS, below the room for a fault in ring 0

# --- segments: Xen's own selectors, and private ones for the loop
XEN_CS: Final = 0x0808
XEN_DS: Final = 0x0810
KERNEL_CS: Final = 0x0819
KERNEL_DS: Final = 0x0821
USER_CS: Final = 0x082B
USER_DS: Final = 0x0833
TSS_SELECTOR: Final = 0x0840
LDT_SELECTOR: Final = 0x0848
LOOP_KERNEL_CS: Final = 0x0941                  # the loop at ring 1: from here on beyond the limit of a guest's default GDT
LOOP_USER_CS: Final = 0x094B                    # the loop at ring 3
LOOP_KERNEL_SS: Final = 0x0951
LOOP_USER_SS: Final = 0x095B
LOOP_FS: Final = 0x0963                         # scratch page and records, for both rings
GDT_ENTRIES: Final = 301                        # while the loop runs

# --- in the segment FS
SAVED_EBP: Final = 0x00                         # the record pointer while the guest's own code runs
FAR_POINTER: Final = 0x08                       # where Execute calls
STEPS: Final = 0x10                             # instructions begun at the place that Execute called
LOOP_STACK: Final = PAGE_SIZE                   # ESP of the loop
RECORDS: Final = PAGE_SIZE                      # offset of the first record
RECORDS_END: Final = RECORDS + RECORD_FRAMES * PAGE_SIZE

# --- gates and doorbells
HYPERCALL_VECTOR: Final = 0x82
SERVICE_VECTOR: Final = 0x83                    # the loop asks the harness for something (EAX: a domain, or one of these)
RING_VECTOR: Final = 0x84                       # the loop changes its ring
END: Final = 0xFFFFFFFF
FORGET_CODE: Final = 0xFFFFFFFE
PREPARE: Final = 0xFFFFFFFD                     # find out where CS:EIP of a transfer lies
TRANSFER: Final = 0xFFFFFFFC                    # let the guest execute the instruction
FAULT_MARK: Final = 0x100                       # set in the vector of a record whose action faulted
BELL_HYPERCALL: Final = HARNESS                 # addresses that a stub touches with CLFLUSH, which calls Python
BELL_SERVICE: Final = HARNESS + 1
BELL_PANIC: Final = HARNESS + 2
BELL_LDT: Final = HARNESS + 3                   # a page of the LDT is missing
BELL_TRAP: Final = HARNESS + 4                  # a guest that runs as itself: a fault of its, or an INT n
BELL_CALL: Final = HARNESS + 5                  # its hypercall
BELL_KILLED: Final = HARNESS + 6                # there is no stack to put a frame on
GUEST_TABLES: Final = 0xFF8                     # offsets in the loop's page, for CLFLUSH at any ring: the domain's GDT and LDT
LOOP_TABLES: Final = 0xFF9                      # in force, and again the loop's
BELL_GUEST_TABLES: Final = LOOP_BASE + GUEST_TABLES
BELL_LOOP_TABLES: Final = LOOP_BASE + LOOP_TABLES

# --- the slots of Xen in a root table
_SUPERVISOR: Final = P | RW | A | D             # A and D are set from the start: the processor never changes these words
_SHARED: Final = _SUPERVISOR | US
HARNESS_SLOT: Final = Xen2003.XEN_SLOT + 1
MAX_FRAMES: Final = (Xen2003.GUEST_END - Xen2003.HOLE) // 4


# --- the window on the current domain's descriptor tables, behind Xen's frames
WINDOW_ENTRY: Final = 512                       # of the harness' L1 table
WINDOW_PAGES: Final = 16                        # of the GDT, and then as many of the LDT
GDT_WINDOW: Final = HARNESS + WINDOW_ENTRY * PAGE_SIZE
LDT_WINDOW: Final = GDT_WINDOW + WINDOW_PAGES * PAGE_SIZE
SHARED_INFO_ENTRY: Final = WINDOW_ENTRY + 2 * WINDOW_PAGES      # its shared_info
SHARED_INFO: Final = LDT_WINDOW + WINDOW_PAGES * PAGE_SIZE


def m2p_pages(frames: int) -> int:
    """Pages of the machine-to-physical array."""
    return (4 * frames + PAGE_SIZE - 1) // PAGE_SIZE


def xen_frames(frames: int) -> int:
    """Frames that Xen needs for itself in a machine of that size."""
    return M2P_FRAME + m2p_pages(frames)


def xen_slots() -> tuple[int, ...]:
    """The words of slots 1008..1023; the frame of the self-map is the table's own and is filled in for each table."""
    slots = [0] * (1024 - Xen2003.XEN_SLOT)
    slots[0] = M2P_L1_FRAME << 12 | _SUPERVISOR & ~RW       # the window lies within the guest's segments
    slots[HARNESS_SLOT - Xen2003.XEN_SLOT] = HARNESS_L1_FRAME << 12 | _SHARED
    slots[Xen2003.LINEAR_SLOT - Xen2003.XEN_SLOT] = _SUPERVISOR
    return tuple(slots)


def harness_l1() -> list[int]:
    """L1 entries of slot 1009: Xen's frames in order, those of the loop open to ring 3."""
    def flags(frame: int) -> int:
        return _SHARED if frame == LOOP_FRAME or frame >= SCRATCH_FRAME else _SUPERVISOR
    return [frame << 12 | flags(frame) for frame in range(M2P_FRAME)]


def m2p_l1(frames: int) -> list[int]:
    """L1 entries of slot 1008: the machine-to-physical array, read-only and for the kernel only (W-16)."""
    return [M2P_FRAME + page << 12 | P | A | D for page in range(m2p_pages(frames))]


def xen_descriptors() -> tuple[int, ...]:
    """The words of Xen's own descriptors, as they are in every GDT."""
    places = range(Xen2003.RESERVED, Xen2003.RESERVED_END)
    return tuple(word for n in places for q in (Xen2003.DESCRIPTORS.get(n, 0),) for word in (q & 0xFFFFFFFF, q >> 32))
