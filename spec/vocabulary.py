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


Action = Hypercall | Load | Store | Execute
RETF: Final = 0xCB


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
    frame number is the table's own).  `machine` names a real machine, on which the setup was found: the model then starts from
    its memory.  No name: any machine that boots to this.
    """
    profile: str
    frames: int
    xen_frames: int
    domains: tuple[DomainSetup, ...]
    xen_slots: tuple[int, ...] = ()
    machine: str = ""


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
