"""What Xen puts on a guest's stack when it enters the guest's kernel, and with which registers: words only, no memory.

A frame is a row of words in the order in which they are pushed, so the last one is the lowest.
"""
from typing import Final, NamedTuple

from spec.abi import AC, NP, PF, SS, TS, Xen2003
from spec.abi import GP as GENERAL
from spec.kernel import predicate
from spec.x86.descriptors import RPL
from spec.x86.flags import ALL, NT, RF, TF, VM

# --- 2003, x86-32 ------------------------------------------------------------------------------------------------------------

SOFTWARE: Final = 2                         # of an error code, with EXT clear: a gate of the IDT refused INT n
INT_BYTES: Final = 2                        # INT n is two bytes long
MASTER: Final = 1 << 31                     # of the mask of events: they may be delivered at all
SINGLE_STEP: Final = 0xFFFF4FF0             # debug register 6, as the processor tells a single step


class Saved(NamedTuple):
    """A guest's registers as Xen has them on its stack, in the order of `spec.vocabulary.Context`."""
    cs: int
    eip: int
    eflags: int
    esp: int
    ss: int
    ds: int
    es: int
    fs: int
    gs: int


@predicate
def comes_from_outside(cs: int) -> bool:
    """The interrupted code is of ring 2 or 3: the kernel's own stack is to be taken, and the old one is put on it."""
    return cs & 2 != 0


def frame_words(saved: Saved) -> tuple[int, ...]:
    """[SS, ESP,] EFLAGS, CS, EIP: what IRET of the kernel returns to."""
    back = saved.eflags, saved.cs, saved.eip
    return (saved.ss, saved.esp, *back) if comes_from_outside(saved.cs) else back


def failsafe_words(saved: Saved) -> tuple[int, ...]:
    """The same, and the selectors that could not be loaded, DS lowest."""
    return *frame_words(saved), saved.gs, saved.fs, saved.es, saved.ds


@predicate
def handler_flags(eflags: int) -> int:
    """EFLAGS in the kernel's handler: as the processor has it, but that interrupts stay as they are."""
    return eflags & (ALL ^ (TF | NT | RF | VM))


@predicate
def tells_code(vector: int) -> bool:
    """The frame has the processor's error code."""
    return vector in (TS, NP, SS, GENERAL, PF, AC)


@predicate
def is_refused_int(vector: int, error: int) -> bool:
    """The fault is that of an INT n whose gate is not open to the guest: Xen performs it."""
    return vector == GENERAL and error & RPL == SOFTWARE


@predicate
def may_int(flags: int, ring: int) -> bool:
    """The handler is open to INT n of this ring."""
    return flags & 3 >= ring


@predicate
def masks_events(flags: int) -> bool:
    """Entering the handler masks events."""
    return flags & Xen2003.EVENTS_MASKED != 0


@predicate
def is_event_due(events: int, mask: int) -> bool:
    """Events may be delivered, and one that is not masked is pending."""
    return mask & MASTER != 0 and events & mask != 0


@predicate
def mask_after(events: int, mask: int) -> int:
    """The mask of events after they were delivered: these, and all of them until the guest says otherwise."""
    return mask & (ALL ^ (events & mask)) & (ALL ^ MASTER)
