"""The stack in a transfer of control: its room, what is pushed, and which one a ring has (Intel SDM vol. 3A §5.8.5, §6.12).

Nothing here touches memory: a transfer says which words are to be stored, and at which offsets of its new stack.  Each word is
checked by itself, since the pointer of a 16-bit stack wraps around in the middle of a frame.
"""
from typing import NamedTuple

from spec.abi import GP, SS, TS
from spec.kernel import predicate
from spec.x86.descriptors import BIG, error_code, highest, is_null, lowest, widest
from spec.x86.paging import Fault
from spec.x86.segments import Registers, Segment, Table, checked_stack

Words = tuple[tuple[int, int], ...]         # offset in the stack segment, word: in the order in which they are pushed


class Tss(NamedTuple):
    """A 32-bit task state segment, as far as transfers read it."""
    selector: int
    limit: int
    ss0: int
    esp0: int
    ss1: int
    esp1: int
    ss2: int
    esp2: int
    link: int = 0                           # the task to return to


class Transfer(NamedTuple):
    """What a transfer leaves: registers, and words on the new stack.

    Through a call gate also parameters: `copied` words from offset `source` of the old stack to `target` of the new one.
    """
    registers: Registers
    pushed: Words
    size: int                               # bytes of a word
    copied: int = 0
    source: int = 0
    target: int = 0


# --- the stack pointer -------------------------------------------------------------------------------------------------------

@predicate
def place(q: int, esp: int, by: int) -> int:
    """The offset some bytes above the stack's top, or below it."""
    return (esp + by) & widest(q)


@predicate
def moved(q: int, esp: int, by: int) -> int:
    """ESP some bytes higher or lower; with a 16-bit stack its upper half stays."""
    return place(q, esp, by) if q & BIG != 0 else (esp & 0xFFFF0000) | place(q, esp, by)


@predicate
def loaded(q: int, esp: int, value: int) -> int:
    """ESP after a switch to the stack of an outer ring; if that is a 16-bit one, its upper half stays."""
    return value if q & BIG != 0 else (esp & 0xFFFF0000) | (value & 0xFFFF)


@predicate
def truncated(word: int, wide: bool) -> int:
    """A word as it fits on the stack."""
    return word if wide else word & 0xFFFF


@predicate
def holds(q: int, start: int, words: int, size: int) -> bool:
    """Some words from an offset upwards each lie within the stack segment; there are few of them, of 2 or 4 bytes."""
    low, high, mask = lowest(q), highest(q), widest(q)
    first = start & mask
    last, odd = first + words * size - 1, first & (size - 1)
    if words == 0:
        return True
    if last <= mask:
        return low <= first and last <= high
    # the last word before the wrap-around ends at mask + odd; there may be others after it, from `odd` upwards
    return low <= first and mask + odd <= high and (last <= mask + odd or low <= odd)


# --- pushing and popping -----------------------------------------------------------------------------------------------------

def check_top(r: Registers, above: int, words: int, size: int) -> None:
    """Some words can be popped, from `above` the stack's top upwards."""
    if not holds(r.ss.q, r.esp + above, words, size):
        raise Fault(SS, 0)


def check_room(segment: Segment, esp: int, words: int, size: int, error: int) -> None:
    """Some words can be pushed; the error names a new stack."""
    if not holds(segment.q, esp - words * size, words, size):
        raise Fault(SS, error)


def push(r: Registers, words: tuple[int, ...], size: int) -> Transfer:
    """Push words, the first one first."""
    q, wide = r.ss.q, size == 4
    pushed = tuple((place(q, r.esp, -(n + 1) * size), truncated(word, wide)) for n, word in enumerate(words))
    return Transfer(r._replace(esp=moved(q, r.esp, -len(words) * size)), pushed, size)


# --- another ring's stack ----------------------------------------------------------------------------------------------------

@predicate
def selector_in(tss: Tss, ring: int) -> int:
    """SS of an inner ring."""
    if ring == 0:
        return tss.ss0
    return tss.ss1 if ring == 1 else tss.ss2


@predicate
def pointer_in(tss: Tss, ring: int) -> int:
    """ESP of an inner ring."""
    if ring == 0:
        return tss.esp0
    return tss.esp1 if ring == 1 else tss.esp2


def inner_stack(table: Table, tss: Tss, ring: int, ext: int) -> tuple[Segment, int]:
    """SS and ESP of an inner ring; `ext` marks the errors of an interrupt or exception."""
    # step 1: the TSS is large enough
    if ring * 8 + 9 > tss.limit:
        raise Fault(TS, error_code(tss.selector) | ext)
    selector = selector_in(tss, ring)
    # step 2: no null selector
    if is_null(selector):
        raise Fault(TS, ext)
    # step 3: a stack of exactly that ring, and present
    return checked_stack(table(selector), selector, ring, TS, ext), pointer_in(tss, ring)


def outer_stack(table: Table, selector: int, ring: int) -> Segment:
    """SS that a return to an outer ring found on the stack."""
    # step 1: no null selector
    if is_null(selector):
        raise Fault(GP, 0)
    # step 2: a stack of exactly that ring, and present
    return checked_stack(table(selector), selector, ring, GP, 0)
