"""What a guest can do, what can come of it, and what can be seen of a machine: the words that model and targets share.

Plain data, no logic beyond packing.  Addresses and values are unsigned; a hypercall's result is signed (negative: -errno).
Instances are values: nobody changes one after it was made (they are not frozen because a campaign makes 30,000 a second).
"""
from dataclasses import dataclass, field
from typing import Final

from spec.abi import NOBODY, NONE

# --- actions -----------------------------------------------------------------------------------------------------------------

@dataclass(slots=True)
class Hypercall:
    """The kernel of domain `dom` makes hypercall `nr`.

    `data` are the words that the kernel first writes, by ordinary stores through its own tables, in order: (address, words)
    pairs, word-aligned, none crossing a page.  If one of those stores faults, that fault is the outcome and no call is made;
    the words stored before it stay stored.
    """
    dom: int
    nr: int
    args: tuple[int, ...]
    data: tuple[tuple[int, tuple[int, ...]], ...] = ()


@dataclass(slots=True)
class Load:
    """Read one word (4 bytes on x86-32, 8 on x86-64) at `va`, as the kernel or as an application (`user`)."""
    dom: int
    va: int
    user: bool = False


@dataclass(slots=True)
class Store:
    """Write one word at `va`."""
    dom: int
    va: int
    value: int
    user: bool = False


@dataclass(slots=True)
class Execute:
    """Call the code at `va` through the guest's flat code segment; it must be a far return, one byte `RETF`."""
    dom: int
    va: int
    user: bool = False


@dataclass(slots=True)
class LoadSegment:
    """MOV of a selector into a segment register ("ds", "es", "fs", "gs" or "ss"), at ring 1 or, as an application, at ring 3.

    The domain's GDT and LDT are in force; afterwards the register is as before.  The value is 0 (xen-2003).
    """
    dom: int
    register: str
    selector: int
    user: bool = False


# --- control transfers -------------------------------------------------------------------------------------------------------
# Xen lets a guest run with some registers, the guest executes one instruction, and what comes of it is seen where the guest's
# next instruction would be: right behind, where the transfer leads, or in a handler of its kernel, with the frame that the
# processor or Xen has put on a stack.  If Xen already lets it run elsewhere (in the failsafe or the event callback), that is
# the end of the action.  Before all that the kernel stores `data`, as for a hypercall, and then the instruction at CS:EIP.

@dataclass(slots=True)
class Context:
    """The registers with which Xen lets a guest run; all others are 0.  On x86-64 `eflags` is RFLAGS, and so on."""
    cs: int
    eip: int
    eflags: int
    esp: int
    ss: int
    ds: int = 0
    es: int = 0
    fs: int = 0
    gs: int = 0


Data = tuple[tuple[int, tuple[int, ...]], ...]


@dataclass(slots=True)
class FarTransfer:
    """A far `kind` "jmp" or "call" to selector:offset, or "ret" to what is on the stack (both numbers are 0 then)."""
    dom: int
    at: Context
    kind: str
    selector: int = 0
    offset: int = 0
    data: Data = ()


@dataclass(slots=True)
class Interrupt:
    """INT of a vector."""
    dom: int
    at: Context
    vector: int
    data: Data = ()


@dataclass(slots=True)
class Return:
    """IRET."""
    dom: int
    at: Context
    data: Data = ()


@dataclass(slots=True)
class Access:
    """MOV of a word through DS, from memory or to it: what faults comes to the guest's kernel."""
    dom: int
    at: Context
    va: int
    write: bool = False
    data: Data = ()


@dataclass(slots=True)
class Privileged:
    """An instruction that the processor keeps for inner rings, or that traps; `instruction` is one of PRIVILEGED's."""
    dom: int
    at: Context
    instruction: str
    data: Data = ()


@dataclass(slots=True)
class SystemCall:
    """SYSCALL, in kernel or in user mode (xen-4.17)."""
    dom: int
    at: Context
    data: Data = ()


Transfer = FarTransfer | Interrupt | Return | Access | Privileged | SystemCall
Action = Hypercall | Load | Store | Execute | LoadSegment | Transfer
RETF: Final = 0xCB
SEGMENT_REGISTERS: Final = {"es": 0, "ss": 2, "ds": 3, "fs": 4, "gs": 5}    # by the manual's numbers


PRIVILEGED: Final[dict[str, bytes]] = {         # x86-32; where one has an operand in memory, it is at SS:ESP
    "hlt": b"\xF4", "cli": b"\xFA", "sti": b"\xFB", "in_al": b"\xEC", "out_al": b"\xEE", "clts": b"\x0F\x06",
    "lgdt": b"\x0F\x01\x14\x24", "lidt": b"\x0F\x01\x1C\x24", "lldt": b"\x0F\x00\xD0", "ltr": b"\x0F\x00\xD8",
    "lmsw": b"\x0F\x01\xF0", "mov_from_cr0": b"\x0F\x20\xC0", "mov_to_cr0": b"\x0F\x22\xC0", "mov_to_cr3": b"\x0F\x22\xD8",
    "mov_to_cr4": b"\x0F\x22\xE0", "mov_from_dr7": b"\x0F\x21\xF8", "mov_to_dr7": b"\x0F\x23\xF8",
    "invlpg": b"\x0F\x01\x3C\x24", "wbinvd": b"\x0F\x09", "rdmsr": b"\x0F\x32", "wrmsr": b"\x0F\x30", "rdtsc": b"\x0F\x31",
    "pushf": b"\x9C", "popf": b"\x9D", "ud2": b"\x0F\x0B", "int3": b"\xCC", "into": b"\xCE", "divide": b"\xF7\xF0",
    "bound": b"\x62\x04\x24", "nop": b"\x90", "fpu": b"\xD9\xD0"}
NOP: Final = 0x90                               # fills the last word of an instruction


def code_of(action: Transfer) -> bytes:
    """The one instruction of a control transfer in 32-bit code.

    >>> code_of(FarTransfer(0, Context(0x819, 0, 2, 0, 0x821), "jmp", 0x1B, 0x12345678)).hex()
    'ea785634121b00'
    """
    match action:
        case FarTransfer(kind="ret"):
            return b"\xCB"
        case FarTransfer(kind=kind, selector=selector, offset=offset):
            return (b"\xEA" if kind == "jmp" else b"\x9A") + offset.to_bytes(4, "little") + selector.to_bytes(2, "little")
        case Interrupt(vector=vector):
            return bytes((0xCD, vector))
        case Return():
            return b"\xCF"
        case Access(va=va, write=write):
            return (b"\xA3" if write else b"\xA1") + va.to_bytes(4, "little")
        case Privileged(instruction=name):
            return PRIVILEGED[name]
        case SystemCall():
            return b"\x0F\x05"


def code_of_64(action: Transfer) -> bytes:
    """The same in 64-bit code; `Return` is a hypercall there.  A far pointer lies behind the jump that `code_words_64` adds."""
    match action:
        case FarTransfer(kind="ret"):
            return b"\x48\xCB"
        case FarTransfer(kind=kind):
            return b"\x48\xFF" + (b"\x2D" if kind == "jmp" else b"\x1D") + (17).to_bytes(4, "little")
        case Access(va=va, write=write):
            return (b"\x48\xA3" if write else b"\x48\xA1") + va.to_bytes(8, "little")
        case Return():
            return b"\x0F\x05"
    return code_of(action)


def code_words_64(action: Transfer, behind: int) -> tuple[int, ...]:
    """The words that are stored for an instruction of 64-bit code: behind it a jump to the address `behind`."""
    code = code_of_64(action)
    code += bytes([NOP]) * (-len(code) % 8) + b"\xFF\x25\x02\0\0\0" + bytes([NOP, NOP]) + behind.to_bytes(8, "little")
    if isinstance(action, FarTransfer) and action.kind != "ret":
        code += action.offset.to_bytes(8, "little") + action.selector.to_bytes(8, "little")
    return tuple(int.from_bytes(code[n:n + 8], "little") for n in range(0, len(code), 8))


def code_words(code: bytes) -> tuple[int, ...]:
    """Code as the words that are stored for it."""
    padded = code + bytes([NOP]) * (-len(code) % 4)
    return tuple(int.from_bytes(padded[n:n + 4], "little") for n in range(0, len(padded), 4))


# --- outcomes ----------------------------------------------------------------------------------------------------------------

@dataclass(slots=True)
class Outcome:
    """The end of one action: a value (hypercall result, word read, 0 for a store or a call) or a fault.

    A fault has `vector` >= 0 with `error` code and, for a page fault, the `address` that the processor reports (CR2).
    `chose` are the frames that the machine handed out, in order: an allocation's outcome is the machine's choice.
    Of a control transfer `landing` are the registers at the guest's next instruction, in the order of `Context`; none, with the
    value KILLED, if Xen could not put a frame on a stack of the guest's.
    """
    value: int = 0
    vector: int = -1
    error: int = 0
    address: int = 0
    chose: tuple[int, ...] = ()
    landing: tuple[int, ...] = ()


KILLED: Final = -(1 << 31)                      # as a value: Xen gives the domain up; for the program it goes on as it was


# --- the start of a machine --------------------------------------------------------------------------------------------------

@dataclass(frozen=True, slots=True)
class DomainSetup:
    """A domain and its initial memory: frames [first, first + pages), then one frame of shared_info."""
    domid: int
    first: int
    pages: int


@dataclass(frozen=True, slots=True)
class Setup:
    """A machine before the first action.  Domain 0 is privileged.

    `frames` is the number of machine frames (max_page); frames below `xen_frames` are Xen's; those of no domain are free.
    `xen_slots` are the words that Xen keeps in its slots of every root table (one word a slot; in the slot of a self-map the
    frame number is the table's own).  `xen_descriptors` are the words that Xen keeps at its own entries of every GDT (xen-2003;
    none: those of `spec.abi`).  `machine` names a real machine, on which the setup was found: the model then starts from
    its memory.  No name: any machine that boots to this.
    """
    profile: str
    frames: int
    xen_frames: int
    domains: tuple[DomainSetup, ...]
    xen_slots: tuple[int, ...] = ()
    machine: str = ""
    xen_descriptors: tuple[int, ...] = ()


# --- what can be seen --------------------------------------------------------------------------------------------------------
# One word of 64 bits a frame.  Only what the interface promises is in it: the type of a frame without typed references reads
# as 0 (the tag of an idle frame is the machine's own business); the references of a free frame read as 0.
#   0..21 typed references | 22..43 references | 44..46 type | 47 pinned | 48..63 owner

def pack_frame(owner: int, kind: int, type_count: int, refs: int, pinned: bool) -> int:
    """The word of one frame.

    >>> hex(pack_frame(owner=1, kind=7, type_count=2, refs=3, pinned=False))
    '0x1700000c00002'
    """
    return type_count | refs << 22 | (kind if type_count else NONE) << 44 | pinned << 47 | owner << 48


def unpack_frame(word: int) -> tuple[int, int, int, int, bool]:
    """(owner, type, typed references, references, pinned)."""
    return word >> 48, word >> 44 & 7, word & 0x3FFFFF, word >> 22 & 0x3FFFFF, bool(word >> 47 & 1)


FREE_FRAME: Final = pack_frame(NOBODY, NONE, 0, 0, False)


@dataclass(slots=True)
class Observation:
    """The whole visible state of a machine, frames [0, extent); every frame from `extent` on is free and was never touched.

    `frames`: 8 bytes a frame (`pack_frame`), little-endian.  `memory`: the contents of frames [xen_frames, extent), 4096 bytes
    each (the contents of a free frame mean nothing), or of the frames that `rows` names only, in that order (those of a free
    frame are what its next owner gets).  `m2p`: 4 (x86-32) or 8 (x86-64) bytes a frame.  `base[d]`: frame of domain d's root.
    All buffers support the buffer protocol and live until the next reset or run.
    """
    extent: int
    frames: bytes | memoryview
    memory: bytes | memoryview
    m2p: bytes | memoryview
    base: dict[int, int] = field(default_factory=dict)
    rows: tuple[int, ...] | None = None


# --- a real machine, read from its memory ------------------------------------------------------------------------------------

@dataclass(slots=True)
class FrameView:
    """What Xen's frame table says of one frame in use.

    `owner` is a domain, DOMID_XEN for Xen's own, DOMID_IO for a device's; `type` one of `spec.abi.TYPE_NAMES`; `count` are all
    references, with the owner's own if `allocated`.  `xen_heap`: Xen's own memory, which it may share with the owner.
    `linear`: > 0 entries of this table to others of its level, < 0 entries of others to it.  `upto`: of a `partial` table the
    entries below this one are checked.
    """
    mfn: int
    owner: int
    type: int
    type_count: int
    count: int
    allocated: bool
    xen_heap: bool
    validated: bool
    pinned: bool
    partial: bool
    linear: int
    upto: int = 0


@dataclass(slots=True)
class Image:
    """A real machine at rest, as far as memory management is concerned.

    `table`: the frames in use, ascending; all others below `frames` are free.  `words`: 512 words of each page table, and of
    other frames that were asked for.  `m2p`: the words that are not all ones.  `base`, `user_base`: domain -> frame of vCPU 0's
    root table (a domain without one is absent); `other_roots`: those of further vCPUs.  `xen_slots`: what Xen keeps in its slots
    of domain 0's root tables, as `Setup` has it; `domain_slot`: domain -> the word of the one slot that is each domain's own.
    `descriptors`: frame of a guest's descriptor table -> how often Xen has it mapped for a vCPU; `gdt` are those that make up the
    GDT of vCPU 0: (domain, page) -> frame.  `pages`, `xen_pages`,
    `max_pages`: what Xen's records of a domain say: frames of its memory, of Xen's that it shares, and the limit of the former.
    `shared_info`: domain -> the frame of that name.  `registered`: frame of a guest's that it has registered for Xen to write to
    -> how often.  `left`: tables of which a vCPU has yet to give up a reference, in a later hypercall.
    """
    profile: str
    frames: int
    table: tuple[FrameView, ...]
    words: dict[int, tuple[int, ...]]
    m2p: dict[int, int]
    base: dict[int, int] = field(default_factory=dict)
    user_base: dict[int, int] = field(default_factory=dict)
    other_roots: tuple[int, ...] = ()
    xen_slots: tuple[int, ...] = ()
    domain_slot: dict[int, int] = field(default_factory=dict)
    descriptors: dict[int, int] = field(default_factory=dict)
    gdt: dict[tuple[int, int], int] = field(default_factory=dict)
    pages: dict[int, int] = field(default_factory=dict)
    xen_pages: dict[int, int] = field(default_factory=dict)
    max_pages: dict[int, int] = field(default_factory=dict)
    shared_info: dict[int, int] = field(default_factory=dict)
    registered: dict[int, int] = field(default_factory=dict)
    left: list[int] = field(default_factory=list)


# --- one instruction of a bare processor --------------------------------------------------------------------------------------
# A 32-bit processor with flat paging and nobody's kernel: what it does with descriptors is held against `spec.x86` alone.

class Bare:
    """Where things lie on the bare machine; selectors have the RPL of their ring."""
    CODE: Final = (0x08, 0x11, 0x1A, 0x23)      # flat 32-bit code, data of each ring
    DATA: Final = (0x28, 0x31, 0x3A, 0x43)
    TSS: Final = 0x48
    LDT: Final = 0x50
    CONFORMING: Final = 0x58                    # flat conforming code: where faults go if the stack of ring 0 is on trial
    TASK: Final = 0x60                          # a task that nobody runs, for task gates
    FREE: Final = 0x68                          # first entry for a trial's own descriptors
    GDT_LIMIT: Final = 0x3FF
    LDT_LIMIT: Final = 0xFF
    TSS_BASE: Final = 0x3000
    TASK_BASE: Final = 0x3400                   # a TSS of 32 bits, and one of 16, for a trial's own tasks
    TASK16_BASE: Final = 0x3500
    LDT_BASE: Final = 0x1000
    START: Final = 0x4010                       # the instruction
    LANDING: Final = 0x5000                     # where it may go
    STACK: Final = (0x8400, 0x9400, 0xA400, 0xB400)     # ESP of each ring before the instruction, and in the TSS
    TSS_STACK: Final = (0x8C00, 0x9C00, 0xAC00, 0xBC00)
    MEMORY: Final = 0x7000                      # operands and stacks: zero before a trial, but for what it puts there
    MEMORY_END: Final = 0xC000
    POINTER: Final = 0x7000                     # the operand of far transfers
    STACK_WORDS: Final = 12                     # that `Finish` shows


def bare_segment(kind: int, dpl: int) -> int:
    """A present 32-bit segment of 4 GB; `kind` is S and the type."""
    return 0xCF00000000FFFF | kind << 40 | dpl << 45 | 1 << 47


def bare_system(kind: int, base: int, limit: int, dpl: int = 0) -> int:
    """A present TSS or LDT below 16 MB."""
    return limit | base << 16 | kind << 40 | dpl << 45 | 1 << 47


def bare_gate(kind: int, selector: int, offset: int, dpl: int = 3) -> int:
    """A present gate."""
    return offset & 0xFFFF | selector << 16 | kind << 40 | dpl << 45 | 1 << 47 | offset >> 16 << 48


BARE_GDT: Final[dict[int, int]] = {         # the machine's own descriptors, all accessed; by selector without RPL
    **{Bare.CODE[ring] & ~3: bare_segment(0x1B, ring) for ring in range(4)},
    **{Bare.DATA[ring] & ~3: bare_segment(0x13, ring) for ring in range(4)},
    Bare.TSS: bare_system(0xB, Bare.TSS_BASE, 0x67),
    Bare.LDT: bare_system(2, Bare.LDT_BASE, Bare.LDT_LIMIT),
    Bare.CONFORMING: bare_segment(0x1F, 0),
    Bare.TASK: bare_system(9, Bare.TASK_BASE, 0x67),
}

Loaded = tuple[int, int]
"""A segment register: its selector, and the descriptor that it was loaded from (0: it is unusable)."""


@dataclass(slots=True)
class Trial:
    """One instruction of the bare processor, and all that differs from the machine's own tables.

    `descriptors` go by selector, `gates` by vector; `stacks`: ring -> (SS, ESP) in the TSS; `memory`: address of a word -> word;
    `segments`: what is loaded at the start where it is not the flat segment of the ring (data segments: of ring 3);
    `task_limit` and `link` are the limit of the TSS and the task that it names; `alignment`: CR0.AM is set.  With TF set in
    `eflags`, POPF has just set it: RF must be clear, and the word below the stack's top is lost.
    """
    code: bytes
    cpl: int
    eflags: int = 2
    registers: dict[str, int] = field(default_factory=dict)
    segments: dict[str, Loaded] = field(default_factory=dict)
    descriptors: dict[int, int] = field(default_factory=dict)
    gates: dict[int, int] = field(default_factory=dict)
    stacks: dict[int, tuple[int, int]] = field(default_factory=dict)
    memory: dict[int, int] = field(default_factory=dict)
    task_limit: int = 0x67
    link: int = 0
    alignment: bool = False


@dataclass(slots=True)
class Finish:
    """The registers after one instruction; after a fault (`vector` >= 0) those that its handler would return to.

    `stack`: the words at the top of the stack, none if they lie elsewhere than in MEMORY; `descriptors`: those of the trial, as
    they are now.
    """
    vector: int
    error: int
    eip: int
    esp: int
    eflags: int
    cs: Loaded
    ss: Loaded
    ds: Loaded
    es: Loaded
    fs: Loaded
    gs: Loaded
    task: int
    stack: tuple[int, ...]
    descriptors: dict[int, int]


# --- one instruction of a bare processor in long mode --------------------------------------------------------------------------

class LongBare:
    """Where things lie on the bare machine of 64 bits, whose every linear address leads to the same 64 KB."""
    CODE: Final = (0x08, 0x11, 0x1A, 0x23)      # 64-bit code of each ring, data, code of compatibility mode
    DATA: Final = (0x28, 0x31, 0x3A, 0x43)
    COMPATIBLE: Final = (0x48, 0x51, 0x5A, 0x63)
    TSS: Final = 0x68                           # of 16 bytes, as the next
    LDT: Final = 0x78
    CONFORMING: Final = 0x88                    # 64-bit code: where faults go if the end of the TSS is on trial
    FREE: Final = 0x90                          # first entry for a trial's own descriptors
    GDT_LIMIT: Final = 0x3FF
    LDT_LIMIT: Final = 0xFF
    TSS_LIMIT: Final = 0x67
    TSS_BASE: Final = 0x3000
    LDT_BASE: Final = 0x1000
    START: Final = 0x4010                       # the instruction
    LANDING: Final = 0x5000                     # where it may go
    STACK: Final = (0x8400, 0x9400, 0xA400, 0xB400)     # RSP of each ring before the instruction
    TSS_STACK: Final = (0x8C00, 0x9C00, 0xAC00)         # RSP0 to RSP2 in the TSS
    IST: Final = (0x7400, 0x7800, 0x7C00, 0xC400, 0xC800, 0xCC00, 0x3C00)   # the last one is the machine's own: for faults
    MEMORY: Final = 0x7000                      # operands and stacks: zero before a trial, but for what it puts there
    MEMORY_END: Final = 0x10000
    POINTER: Final = 0x7000                     # the operand of far transfers
    SIZE: Final = 0x10000
    STACK_WORDS: Final = 7                      # that `LongFinish` shows


LONG_GDT: Final[dict[int, int]] = {         # the machine's own descriptors, all accessed; by selector without RPL
    **{LongBare.CODE[ring] & ~3: bare_segment(0x1B, ring) ^ 3 << 53 for ring in range(4)},
    **{LongBare.DATA[ring] & ~3: bare_segment(0x13, ring) for ring in range(4)},
    **{LongBare.COMPATIBLE[ring] & ~3: bare_segment(0x1B, ring) for ring in range(4)},
    LongBare.TSS: bare_system(0xB, LongBare.TSS_BASE, LongBare.TSS_LIMIT),
    LongBare.LDT: bare_system(2, LongBare.LDT_BASE, LongBare.LDT_LIMIT),
    LongBare.CONFORMING: bare_segment(0x1F, 0) ^ 3 << 53,
}


@dataclass(slots=True)
class LongTrial:
    """One instruction of the bare processor in long mode, and all that differs from the machine's own tables.

    `compatible`: of 32-bit code; else of 64-bit code.  `descriptors` go by selector (the second half of one of 16 bytes by the
    next), `gates` by vector, both halves; `stacks`: RSP of a ring in the TSS; `ist`: RSP of a stack that gates name, from 1;
    `memory`: address of a word of 64 bits -> word; `segments`: what is loaded at the start where it is not the flat segment of
    the ring (data segments: of ring 3); `msrs`: star, lstar, cstar, sfmask, kernel_gs_base; `bases`: of fs and gs; `calls`:
    SYSCALL is switched on.  With a limit of the TSS other than the usual one faults are handled on the stack that there is.
    """
    code: bytes
    cpl: int
    compatible: bool = False
    rflags: int = 2
    registers: dict[str, int] = field(default_factory=dict)
    segments: dict[str, Loaded] = field(default_factory=dict)
    descriptors: dict[int, int] = field(default_factory=dict)
    gates: dict[int, tuple[int, int]] = field(default_factory=dict)
    stacks: dict[int, int] = field(default_factory=dict)
    ist: dict[int, int] = field(default_factory=dict)
    memory: dict[int, int] = field(default_factory=dict)
    task_limit: int = LongBare.TSS_LIMIT
    msrs: dict[str, int] = field(default_factory=dict)
    bases: dict[str, int] = field(default_factory=dict)
    calls: bool = True


@dataclass(slots=True)
class LongFinish:
    """The registers after one instruction; after a fault (`vector` >= 0) those that its handler would return to.

    FS and GS are shown without their bases, which are in `bases` with the one that SWAPGS would give; `msrs`: star, lstar, cstar
    and sfmask; `stack`: the words of 64 bits at the top of the stack, none if they lie elsewhere than in MEMORY; `descriptors`:
    those of the trial, as they are now.
    """
    vector: int
    error: int
    rip: int
    rsp: int
    rflags: int
    rax: int
    rcx: int
    r11: int
    cs: Loaded
    ss: Loaded
    ds: Loaded
    es: Loaded
    fs: Loaded
    gs: Loaded
    bases: tuple[int, int, int]
    msrs: tuple[int, int, int, int]
    stack: tuple[int, ...]
    descriptors: dict[int, int]
