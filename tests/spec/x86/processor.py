"""A processor at rest, for the tests of segments and transfers: flat segments of each ring, and whatever a test adds."""
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from spec.x86.descriptors import (
    ACCESSED,
    BIG,
    DPL_SHIFT,
    GRANULAR,
    PRESENT,
    SEGMENT,
    TYPE_SHIFT,
)
from spec.x86.paging import Fault
from spec.x86.segments import Registers, Segment
from spec.x86.stacks import Tss

# kinds of segments: S and the type
DATA, DATA_RO, DATA_DOWN = 0x12, 0x10, 0x16
CODE, CODE_X, CONFORMING, CONFORMING_X = 0x1A, 0x18, 0x1E, 0x1C
FLAT = 0xFFFFF
EVERY_TYPE = range(32)                      # S and the type
TOP = 0x8000                                # ESP of the running program, and of every inner stack plus its ring * 0x1000
NEXT = 0x1234                               # EIP


def segment(kind: int, dpl: int, limit: int = FLAT, base: int = 0, marks: int = PRESENT | BIG | GRANULAR) -> int:
    """A descriptor of code or data."""
    return ((limit & 0xFFFF) | (limit & 0xF0000) << 32 | (base & 0xFFFFFF) << 16 | (base & 0xFF000000) << 32
            | kind << TYPE_SHIFT | dpl << DPL_SHIFT | marks)


def gate(kind: int, selector: int, offset: int, dpl: int = 3, parameters: int = 0, marks: int = PRESENT) -> int:
    """A call, interrupt, trap or task gate."""
    return ((offset & 0xFFFF) | (offset & 0xFFFF0000) << 32 | selector << 16 | parameters << 32 | kind << TYPE_SHIFT
            | dpl << DPL_SHIFT | marks)


def of_type(kind: int, dpl: int = 3) -> int:
    """A present descriptor of any type: as a segment flat, as a gate to flat code of ring 0."""
    return segment(kind, dpl) if kind << TYPE_SHIFT & SEGMENT else gate(kind, code(0), NEXT, dpl)


def code(ring: int) -> int:
    """The selector of flat code of a ring."""
    return 0x08 + 8 * ring | ring


def data(ring: int) -> int:
    """The selector of flat data of a ring."""
    return 0x28 + 8 * ring | ring


NEW = 0x80                                  # the entry that a test adds, with RPL 0
OTHER = 0x88                                # and another one
LOCAL = 0x0C                                # an entry of the LDT
TSS_SELECTOR = 0x48
FLAT_TABLE = {code(n) & ~3: segment(CODE, n) for n in range(4)} | {data(n) & ~3: segment(DATA, n) for n in range(4)}


class Processor:
    """Registers, tables and a stack; a test spoils one of them."""

    def __init__(self, cpl: int = 3) -> None:
        self.cpl = cpl
        self.entries = dict(FLAT_TABLE)
        self.stack: dict[int, int] = {}
        self.tss = Tss(TSS_SELECTOR, 0x67, data(0), TOP, data(1), TOP + 0x1000, data(2), TOP + 0x2000)
        flat = Segment(data(3), self.loaded(data(3)))
        self.registers = Registers(Segment(code(cpl), self.loaded(code(cpl))), Segment(data(cpl), self.loaded(data(cpl))),
                                   flat, flat, flat, flat, NEXT, TOP, 0x202)

    def loaded(self, selector: int) -> int:
        """The descriptor as a segment register caches it."""
        return self.entries[selector & ~3] | ACCESSED

    def table(self, selector: int) -> int:
        """The look-up: 0 beyond the limit."""
        assert selector & 0xFFFC, "a null selector is looked up"
        return self.entries.get(selector & 0xFFFC, 0)

    def read(self, offset: int) -> int:
        """A word of the stack."""
        return self.stack[offset]

    def set(self, **changes: Any) -> None:
        """Change some registers."""
        self.registers = self.registers._replace(**changes)

    def frame(self, *words: int, size: int = 4, at: int = 0) -> None:
        """Words on the stack, the top one first."""
        for n, word in enumerate(words):
            self.stack[TOP + at + n * size] = word


@contextmanager
def faults(vector: int, error: int) -> Iterator[None]:
    """What is done in it ends in this fault."""
    with pytest.raises(Fault) as caught:
        yield
    assert (caught.value.vector, caught.value.error) == (vector, error)


Spoil = Callable[[Processor], object]


def put(selector: int, q: int) -> Spoil:
    """Another descriptor in the table."""
    return lambda p: p.entries.__setitem__(selector & 0xFFFC, q)


def absent(selector: int) -> Spoil:
    """The descriptor that is there, not present."""
    return lambda p: p.entries.__setitem__(selector & 0xFFFC, p.entries[selector & 0xFFFC] & ~PRESENT)


def both(*spoils: Spoil) -> Spoil:
    """Several changes."""
    return lambda p: [spoil(p) for spoil in spoils]
