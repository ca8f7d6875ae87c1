"""Every descriptor in every use: what the processor does with it at each privilege, held against the specification.

A row is a descriptor (S and type, present or not, DPL), a column a use; a cell has one trial for each CPL and RPL, or for each
pair of rings and RPL where a transfer leads to another ring.
"""
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Final, Generic, NamedTuple, Protocol, TypeVar

from oracle.bare import expected
from oracle.bare_difference import AnyDifference, Expected, difference, end_of
from spec.vocabulary import Bare, Finish, Trial, bare_gate, bare_segment, bare_system

_PRESENT: Final = 1 << 47
_CALL_GATE, _INTERRUPT_GATE, _TRAP_GATE, _TASK_GATE = 0xC, 0xE, 0xF, 5
_TSS16, _TSS32 = (1, 3), (9, 0xB)
_LDT_TYPE: Final = 2
_GATE: Final = Bare.FREE + 8                # where a call gate to the descriptor lies
_RINGS: Final = range(4)


class AnyTrial(Protocol):
    """A trial on either processor."""
    code: bytes
    cpl: int


T = TypeVar("T", bound=AnyTrial)

KINDS: Final = (
    "reserved 0", "16-bit TSS", "LDT", "16-bit busy TSS", "16-bit call gate", "task gate", "16-bit interrupt gate",
    "16-bit trap gate", "reserved 8", "TSS", "reserved 10", "busy TSS", "call gate", "reserved 13", "interrupt gate", "trap gate",
    "data", "data, accessed", "writable data", "writable data, accessed", "expand-down", "expand-down, accessed",
    "writable expand-down", "writable expand-down, accessed", "code", "code, accessed",
    "readable code", "readable code, accessed",
    "conforming", "conforming, accessed", "readable conforming", "readable conforming, accessed",
)
"""S and type -> what the manual calls it."""


def word_of(kind: int, present: bool, dpl: int) -> int:
    """A descriptor of a kind.  Segments are flat, gates lead to ring 0, tasks are ready to run."""
    if kind >= 16:
        word = bare_segment(kind, dpl)
        if kind & 0b11100 == 0b10100:       # nothing is below the limit of an expand-down segment
            word &= ~0xF00000000FFFF
    elif kind in _TSS16:
        word = bare_system(kind, Bare.TASK16_BASE, 0x2B, dpl)
    elif kind in _TSS32:
        word = bare_system(kind, Bare.TASK_BASE, 0x67, dpl)
    elif kind == _LDT_TYPE:
        word = bare_system(kind, Bare.LDT_BASE, Bare.LDT_LIMIT, dpl)
    elif kind == _TASK_GATE:
        word = bare_gate(kind, Bare.TASK, 0, dpl)
    else:
        word = bare_gate(kind, Bare.CODE[0], Bare.LANDING, dpl)
    return word if present else word & ~_PRESENT


# --- the uses ----------------------------------------------------------------------------------------------------------------
# Each makes a trial of: the descriptor, RPL of the selector that names it, CPL, and the ring that a transfer leads to.

Use = Callable[[int, int, int, int], Trial]


def _loaded(code: str) -> Use:
    def trial(word: int, rpl: int, cpl: int, to: int) -> Trial:
        return Trial(bytes.fromhex(code), cpl, registers={"eax": Bare.FREE | rpl}, descriptors={Bare.FREE: word})
    return trial


def _direct(code: str) -> Use:
    def trial(word: int, rpl: int, cpl: int, to: int) -> Trial:
        return _far(code, cpl, Bare.FREE | rpl, {Bare.FREE: word})
    return trial


def _gated(code: str) -> Use:
    def trial(word: int, rpl: int, cpl: int, to: int) -> Trial:
        gate = bare_gate(_CALL_GATE, Bare.FREE | rpl, Bare.LANDING)
        return _far(code, cpl, _GATE, {Bare.FREE: word, _GATE: gate})
    return trial


def _far(code: str, cpl: int, selector: int, descriptors: dict[int, int]) -> Trial:
    return Trial(bytes.fromhex(code), cpl, registers={"ebx": Bare.POINTER}, descriptors=descriptors,
                 memory={Bare.POINTER: Bare.LANDING, Bare.POINTER + 4: selector})


def _handler(code: str, vector: int, kind: int) -> Use:
    def trial(word: int, rpl: int, cpl: int, to: int) -> Trial:
        return Trial(bytes.fromhex(code), cpl, descriptors={Bare.FREE: word},
                     gates={vector: bare_gate(kind, Bare.FREE | rpl, Bare.LANDING)})
    return trial


def _entry(code: str, vector: int) -> Use:
    def trial(word: int, rpl: int, cpl: int, to: int) -> Trial:
        return Trial(bytes.fromhex(code), cpl, gates={vector: word})
    return trial


def _returned(code: str, flags: tuple[int, ...]) -> Use:
    def trial(word: int, rpl: int, cpl: int, to: int) -> Trial:
        frame = (Bare.LANDING, Bare.FREE | rpl, *flags, Bare.TSS_STACK[rpl], Bare.DATA[rpl])
        return Trial(bytes.fromhex(code), cpl, descriptors={Bare.FREE: word}, memory=on_stack(cpl, frame))
    return trial


def _returned_stack(code: str, flags: tuple[int, ...]) -> Use:
    def trial(word: int, rpl: int, cpl: int, to: int) -> Trial:
        frame = (Bare.LANDING, Bare.CODE[to], *flags, Bare.TSS_STACK[to], Bare.FREE | rpl)
        return Trial(bytes.fromhex(code), cpl, descriptors={Bare.FREE: word}, memory=on_stack(cpl, frame))
    return trial


def _switched_call(word: int, rpl: int, cpl: int, to: int) -> Trial:
    trial = _far("ff1b", cpl, _GATE, {Bare.FREE: word, _GATE: bare_gate(_CALL_GATE, Bare.CODE[to], Bare.LANDING)})
    trial.stacks[to] = (Bare.FREE | rpl, Bare.TSS_STACK[to])
    return trial


def _switched_interrupt(word: int, rpl: int, cpl: int, to: int) -> Trial:
    return Trial(b"\xcd\x80", cpl, descriptors={Bare.FREE: word}, stacks={to: (Bare.FREE | rpl, Bare.TSS_STACK[to])},
                 gates={0x80: bare_gate(_INTERRUPT_GATE, Bare.CODE[to], Bare.LANDING)})


def on_stack(cpl: int, frame: Iterable[int]) -> dict[int, int]:
    """Words at the top of a ring's stack, as a trial's memory."""
    return {Bare.STACK[cpl] + 4 * n: word for n, word in enumerate(frame)}


# --- the columns -------------------------------------------------------------------------------------------------------------

class Column(NamedTuple, Generic[T]):
    """A use of a descriptor: `rings` are the pairs of CPL and the ring that it leads to (or CPL again), `rpls` the RPLs tried."""
    name: str
    what: str
    group: str
    use: Callable[[int, int, int, int], T]
    rings: tuple[tuple[int, int], ...]
    rpls: tuple[int, ...] = (0, 1, 2, 3)


SAME: Final = tuple((cpl, cpl) for cpl in _RINGS)
OUTER: Final = tuple((cpl, to) for cpl in _RINGS for to in range(cpl + 1, 4))
_INNER: Final = tuple((cpl, to) for cpl in _RINGS for to in range(cpl))

COLUMNS: Final = (
    Column("DS", "MOV DS, selector", "segment registers", _loaded("8ed8"), SAME),
    Column("SS", "MOV SS, selector", "segment registers", _loaded("8ed0"), SAME),
    Column("JMP", "far JMP to it", "jumps and calls", _direct("ff2b"), SAME),
    Column("CALL", "far CALL to it", "jumps and calls", _direct("ff1b"), SAME),
    Column("JMP gate", "far JMP through a call gate of DPL 3 to it", "jumps and calls", _gated("ff2b"), SAME),
    Column("CALL gate", "far CALL through a call gate of DPL 3 to it", "jumps and calls", _gated("ff1b"), SAME),
    Column("INT", "INT n through an interrupt gate of DPL 3 to it", "handlers", _handler("cd80", 0x80, _INTERRUPT_GATE), SAME),
    Column("INT trap", "INT n through a trap gate of DPL 3 to it", "handlers", _handler("cd80", 0x80, _TRAP_GATE), SAME),
    Column("#UD", "exception through an interrupt gate to it", "handlers", _handler("0f0b", 6, _INTERRUPT_GATE), SAME),
    Column("RETF", "far RET to it", "returns", _returned("cb", ()), SAME),
    Column("IRET", "IRET to it", "returns", _returned("cf", (2,)), SAME),
    Column("IDT, INT", "INT n through it as a gate", "entries of the IDT", _entry("cd80", 0x80), SAME, (0,)),
    Column("IDT, #UD", "exception through it as a gate", "entries of the IDT", _entry("0f0b", 6), SAME, (0,)),
    Column("RETF, SS", "SS that far RET finds for an outer ring", "stacks of other rings", _returned_stack("cb", ()), OUTER),
    Column("IRET, SS", "SS that IRET finds for an outer ring", "stacks of other rings", _returned_stack("cf", (2,)), OUTER),
    Column("CALL, SS", "SS in the TSS for a call gate to an inner ring", "stacks of other rings", _switched_call, _INNER),
    Column("INT, SS", "SS in the TSS for an interrupt to an inner ring", "stacks of other rings", _switched_interrupt, _INNER),
)


# --- comparing ---------------------------------------------------------------------------------------------------------------

class Place(NamedTuple):
    """One trial of the table."""
    kind: int
    present: bool
    dpl: int
    column: Column[Any]
    cpl: int
    to: int
    rpl: int


@dataclass(frozen=True, slots=True)
class Sheet(Generic[T]):
    """What a table is about: the kinds of descriptors and their uses, and how a trial is judged."""
    kinds: tuple[str, ...]
    columns: tuple[Column[T], ...]
    word: Callable[[int, bool, int], int]           # kind, present, DPL -> the descriptor
    expect: Callable[[T], Any]
    end: Callable[[Any, int], str]
    difference: Callable[[str, T, Any, Any], Sequence[AnyDifference]]

    def trial(self, place: Place) -> T:
        """The trial of a place."""
        trial: T = place.column.use(self.word(place.kind, place.present, place.dpl), place.rpl, place.cpl, place.to)
        return trial

    def name(self, place: Place) -> str:
        """A place in words."""
        absent = "" if place.present else "not present, "
        ring = f" to ring {place.to}" if place.to != place.cpl else ""
        return (f"{self.kinds[place.kind]}, {absent}DPL {place.dpl}: {place.column.what}, CPL {place.cpl}{ring}, "
                f"RPL {place.rpl}")


SHEET: Final = Sheet(KINDS, COLUMNS, word_of, expected, end_of, difference)


@dataclass(frozen=True, slots=True)
class Table:
    """The whole table: how each trial ended on the processor, and where the specification differs."""
    sheet: Sheet[Any]
    ends: dict[Place, str]
    differences: list[AnyDifference]
    seconds: float


def places(columns: Iterable[Column[Any]] = COLUMNS, kinds: int = len(KINDS)) -> Iterator[Place]:
    """Every trial of the table, those of one instruction together."""
    for column in columns:
        for kind, present, dpl, (cpl, to), rpl in product(range(kinds), (True, False), _RINGS, column.rings, column.rpls):
            yield Place(kind, present, dpl, column, cpl, to, rpl)


def compare(perform: Callable[[Trial], Finish], expect: Expected = expected, columns: Iterable[Column[Trial]] = COLUMNS) -> Table:
    """Perform every trial and hold it against the specification."""
    return compared(SHEET, perform, places(columns), expect)


def compared(sheet: Sheet[T], perform: Callable[[T], Any], chosen: Iterable[Place], expect: Callable[[T], Any]) -> Table:
    """Perform the trials of some places of a sheet."""
    start = time.perf_counter()
    ends: dict[Place, str] = {}
    differences: list[AnyDifference] = []
    for place in chosen:
        trial = sheet.trial(place)
        does = perform(trial)
        ends[place] = sheet.end(does, place.cpl)
        differences += sheet.difference(sheet.name(place), trial, expect(trial), does)
    return Table(sheet, ends, differences, time.perf_counter() - start)
