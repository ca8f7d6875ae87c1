"""Segment registers: loading one, and accesses through it (Intel SDM vol. 2 MOV; vol. 3A §5.3-5.8).

A register holds a selector and the descriptor that was loaded with it; whatever happens to the table later, the processor goes
by that copy.  Descriptors come from a `Table`: a function from selectors.  Beyond a table's limit it gives 0, which is refused
wherever a descriptor is looked at, with the very error that the manual asks for.
"""
from collections.abc import Callable
from typing import NamedTuple

from spec.abi import AC, GP, NP, SS
from spec.kernel import predicate
from spec.x86.descriptors import (
    ACCESSED,
    PRESENT,
    RPL,
    dpl_of,
    error_code,
    in_limit,
    is_code,
    is_conforming,
    is_null,
    is_readable,
    is_writable,
)
from spec.x86.flags import AC as ALIGNMENT_CHECK
from spec.x86.paging import Fault

Table = Callable[[int], int]


class Segment(NamedTuple):
    """A segment register; q is 0 if nothing can be reached through it."""
    selector: int
    q: int


class Registers(NamedTuple):
    """The registers that protection is about."""
    cs: Segment
    ss: Segment
    ds: Segment
    es: Segment
    fs: Segment
    gs: Segment
    eip: int
    esp: int
    eflags: int


def cpl_of(r: Registers) -> int:
    """The current privilege level."""
    return r.cs.selector & RPL


# --- loading -----------------------------------------------------------------------------------------------------------------

def load_data(q: int, selector: int, cpl: int) -> Segment:
    """DS, ES, FS and GS take a null selector, or a segment that may be read and is of no higher privilege (§5.6)."""
    # step 1: a null selector can be loaded, but not used
    if is_null(selector):
        return Segment(selector, 0)
    # step 2: the descriptor lies within its table, and is of data or readable code
    if not is_readable(q):
        raise Fault(GP, error_code(selector))
    # step 3: neither who loads it nor who asked for it is less privileged; conforming code is open to all
    if not is_conforming(q) and (selector & RPL > dpl_of(q) or cpl > dpl_of(q)):
        raise Fault(GP, error_code(selector))
    # step 4: it is present
    if q & PRESENT == 0:
        raise Fault(NP, error_code(selector))
    return Segment(selector, q | ACCESSED)


def load_stack(q: int, selector: int, cpl: int) -> Segment:
    """SS takes writable data of exactly the current privilege (§5.7)."""
    # step 1: no null selector
    if is_null(selector):
        raise Fault(GP, 0)
    return checked_stack(q, selector, cpl, GP, 0)


def checked_stack(q: int, selector: int, ring: int, vector: int, ext: int) -> Segment:
    """A segment that can be the stack of a ring; the checks of MOV to SS, of outer returns, and (with #TS) of inner stacks."""
    # step 1: within its table; RPL, DPL and the ring are the same; writable data
    if selector & RPL != ring or not is_writable(q) or dpl_of(q) != ring:
        raise Fault(vector, error_code(selector) | ext)
    # step 2: it is present
    if q & PRESENT == 0:
        raise Fault(SS, error_code(selector) | ext)
    return Segment(selector, q | ACCESSED)


@predicate
def kept(value: int, q: int, cpl: int) -> int:
    """What stays of a data segment register after a return outwards: nothing, if the ring could not have loaded it."""
    return 0 if dpl_of(q) < cpl and not is_conforming(q) else value


def keep(segment: Segment, cpl: int) -> Segment:
    """A data segment register after a return to an outer ring."""
    return Segment(kept(segment.selector, segment.q, cpl), kept(segment.q, segment.q, cpl))


# --- accesses ----------------------------------------------------------------------------------------------------------------

@predicate
def may_access(q: int, offset: int, size: int, write: bool) -> bool:
    """The segment is loaded, of a type for the access, and holds all its bytes."""
    return (is_writable(q) if write else is_readable(q)) and in_limit(q, offset, size)


@predicate
def may_fetch(q: int, offset: int, size: int) -> bool:
    """All bytes of an instruction lie within the code segment."""
    return is_code(q) and in_limit(q, offset, size)


def check_access(q: int, offset: int, size: int, write: bool, stack: bool = False) -> None:
    """A load or store through a segment register; `stack`: through SS."""
    if not may_access(q, offset, size, write):
        raise Fault(SS if stack else GP, 0)


def check_fetch(q: int, offset: int, size: int = 1) -> None:
    """A fetch through CS; also the first byte after a transfer."""
    if not may_fetch(q, offset, size):
        raise Fault(GP, 0)


@predicate
def is_misaligned(cpl: int, eflags: int, address: int, size: int) -> bool:
    """Ring 3 asked for faults on misaligned accesses (CR0.AM is set under Xen), and this is one; `size` is a power of two."""
    return cpl == 3 and eflags & ALIGNMENT_CHECK != 0 and address & (size - 1) != 0


def check_alignment(cpl: int, eflags: int, address: int, size: int) -> None:
    """A load or store of a program, at a linear address; the processor's own accesses to tables are not checked."""
    if is_misaligned(cpl, eflags, address, size):
        raise Fault(AC, 0)
