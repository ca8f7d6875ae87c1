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


Action = Hypercall | Load | Store | Execute | LoadSegment
RETF: Final = 0xCB
SEGMENT_REGISTERS: Final = {"es": 0, "ss": 2, "ds": 3, "fs": 4, "gs": 5}    # by the manual's numbers


# --- outcomes ----------------------------------------------------------------------------------------------------------------

@dataclass(slots=True)
class Outcome:
    """The end of one action: a value (hypercall result, word read, 0 for a store or a call) or a fault.

    A fault has `vector` >= 0 with `error` code and, for a page fault, the `address` that the processor reports (CR2).
    `chose` are the frames that the machine handed out, in order: an allocation's outcome is the machine's choice.
    """
    value: int = 0
    vector: int = -1
    error: int = 0
    address: int = 0
    chose: tuple[int, ...] = ()


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
    each (the contents of a free frame mean nothing), or of the frames that `rows` names only, in that order.  `m2p`: 4 (x86-32)
    or 8 (x86-64) bytes a frame.  `base[d]`: frame of domain d's root table.  All buffers support the buffer protocol and live
    until the next reset or run.
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
    `descriptors`: frame of a guest's descriptor table -> how often Xen has it mapped for a vCPU.  `pages`, `xen_pages`,
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
