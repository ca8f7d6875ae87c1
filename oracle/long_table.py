"""Every descriptor in every use in long mode, from 64-bit code and from code of compatibility mode.

See oracle.descriptor_table, whose table this one is like; code segments are there three times: L and D decide on the mode.
"""
from collections.abc import Callable, Iterable
from typing import Any, Final

from oracle.bare64 import expected
from oracle.descriptor_table import KINDS, OUTER, SAME, Column, Place, Sheet, Table, compared, places
from oracle.long_difference import long_difference, long_end
from spec.vocabulary import LongBare, LongFinish, LongTrial, bare_gate, bare_segment, bare_system

_PRESENT: Final = 1 << 47
_LONG, _BIG = 1 << 53, 1 << 54
_CALL_GATE, _INTERRUPT_GATE, _TRAP_GATE = 0xC, 0xE, 0xF
_TSS: Final = (1, 3, 9, 0xB)
_LDT_TYPE: Final = 2
_GATE: Final = LongBare.FREE + 0x10         # where a call gate to the descriptor lies
_NO_MORE: Final = (1, 3, 4, 5, 6, 7)         # system types of 16 bits, and task gates
_CODES: Final = KINDS[24:]

LONG_KINDS: Final = (*(f"reserved {kind}" if kind in _NO_MORE else name for kind, name in enumerate(KINDS[:16])), *KINDS[16:24],
                     *(f"32-bit {name}" for name in _CODES), *(f"64-bit {name}" for name in _CODES),
                     *(f"64- and 32-bit {name}" for name in _CODES))
"""S and type, then code with L, then with L and D -> what the manual calls it."""


def long_word(kind: int, present: bool, dpl: int) -> int:
    """A descriptor of a kind.  Segments are flat, gates lead to ring 0."""
    if kind >= 32:
        word = bare_segment(kind & 7 | 0x18, dpl) | _LONG
        if kind < 40:
            word &= ~_BIG
    elif kind >= 16:
        word = bare_segment(kind, dpl)
    elif kind in _TSS:
        word = bare_system(kind, LongBare.TSS_BASE, LongBare.TSS_LIMIT, dpl)
    elif kind == _LDT_TYPE:
        word = bare_system(kind, LongBare.LDT_BASE, LongBare.LDT_LIMIT, dpl)
    else:
        word = bare_gate(kind, LongBare.CODE[0], LongBare.LANDING, dpl)
    return word if present else word & ~_PRESENT


# --- the uses ----------------------------------------------------------------------------------------------------------------
# Each is made for an instruction, of 64-bit code or not; see oracle.descriptor_table.

class Use:
    """An instruction, with what its trials have in common."""

    def __init__(self, code: str, compatible: bool = False) -> None:
        self.code, self.compatible = bytes.fromhex(code), compatible
        self.size = 8 if code.startswith("48") else 4

    def words(self, address: int, words: Iterable[int]) -> dict[int, int]:
        """Words as wide as the instruction's operands, as a trial's memory."""
        data = b"".join(word.to_bytes(self.size, "little") for word in words)
        data += bytes(-len(data) % 8)
        return {address + n: int.from_bytes(data[n:n + 8], "little") for n in range(0, len(data), 8)}


class Loaded(Use):
    """It is loaded into a segment register."""

    def __call__(self, word: int, rpl: int, cpl: int, to: int) -> LongTrial:
        return LongTrial(self.code, cpl, self.compatible, registers={"rax": LongBare.FREE | rpl},
                         descriptors={LongBare.FREE: word})


class Direct(Use):
    """A far pointer names it."""

    def __call__(self, word: int, rpl: int, cpl: int, to: int) -> LongTrial:
        return self.far(cpl, LongBare.FREE | rpl, {LongBare.FREE: word})

    def far(self, cpl: int, selector: int, descriptors: dict[int, int]) -> LongTrial:
        """A jump or call to a selector."""
        return LongTrial(self.code, cpl, self.compatible, registers={"rbx": LongBare.POINTER}, descriptors=descriptors,
                         memory=self.words(LongBare.POINTER, (LongBare.LANDING, selector)))


class Gated(Direct):
    """A far pointer names a call gate to it."""

    def __call__(self, word: int, rpl: int, cpl: int, to: int) -> LongTrial:
        gate = bare_gate(_CALL_GATE, LongBare.FREE | rpl, LongBare.LANDING)
        return self.far(cpl, _GATE, {LongBare.FREE: word, _GATE: gate, _GATE + 8: 0})


class Handler(Use):
    """A gate of the IDT leads to it."""

    def __init__(self, code: str, vector: int, kind: int, compatible: bool = False, ist: int = 0) -> None:
        super().__init__(code, compatible)
        self.vector, self.kind, self.ist = vector, kind, ist

    def __call__(self, word: int, rpl: int, cpl: int, to: int) -> LongTrial:
        gate = bare_gate(self.kind, LongBare.FREE | rpl, LongBare.LANDING) | self.ist << 32
        return LongTrial(self.code, cpl, self.compatible, descriptors={LongBare.FREE: word}, gates={self.vector: (gate, 0)})


class Entry(Use):
    """It is a gate of the IDT."""

    def __init__(self, code: str, vector: int) -> None:
        super().__init__(code)
        self.vector = vector

    def __call__(self, word: int, rpl: int, cpl: int, to: int) -> LongTrial:
        return LongTrial(self.code, cpl, gates={self.vector: (word, 0)})


class Returned(Use):
    """A return finds it as CS."""
    flags: tuple[int, ...] = ()

    def __call__(self, word: int, rpl: int, cpl: int, to: int) -> LongTrial:
        return self.trial(word, cpl, LongBare.FREE | rpl, LongBare.STACK[rpl] + 0x200, LongBare.DATA[rpl])

    def trial(self, word: int, cpl: int, cs: int, rsp: int, ss: int) -> LongTrial:
        """A return to a frame."""
        frame = (LongBare.LANDING, cs, *self.flags, rsp, ss)
        return LongTrial(self.code, cpl, self.compatible, descriptors={LongBare.FREE: word},
                         memory=self.words(LongBare.STACK[cpl], frame))


class Interrupted(Returned):
    """IRET finds it as CS."""
    flags = (2,)


class ReturnedStack(Returned):
    """A return finds it as SS, and code of a mode as CS."""

    def __init__(self, code: str, target: tuple[int, ...], compatible: bool = False) -> None:
        super().__init__(code, compatible)
        self.target = target

    def __call__(self, word: int, rpl: int, cpl: int, to: int) -> LongTrial:
        return self.trial(word, cpl, self.target[to], LongBare.STACK[to] + 0x200, LongBare.FREE | rpl)


class InterruptedStack(ReturnedStack):
    """IRET finds it as SS."""
    flags = (2,)


# --- the columns -------------------------------------------------------------------------------------------------------------

_REGISTERS, _TRANSFERS, _HANDLERS, _RETURNS = "segment registers", "jumps and calls", "handlers", "returns"
_ENTRIES, _STACKS = "entries of the IDT", "stacks of returns"
_COMPATIBLE, _COMPATIBLE_RETURNS = "32-bit code: loads, jumps and calls", "32-bit code: handlers and returns"
_ALL: Final = SAME + OUTER

LONG_COLUMNS: Final[tuple[Column[LongTrial], ...]] = (
    Column("DS", "MOV DS, selector", _REGISTERS, Loaded("8ed8"), SAME),
    Column("FS", "MOV FS, selector", _REGISTERS, Loaded("8ee0"), SAME),
    Column("SS", "MOV SS, selector", _REGISTERS, Loaded("8ed0"), SAME),
    Column("JMP", "far JMP to it", _TRANSFERS, Direct("ff2b"), SAME),
    Column("JMP 64", "far JMP m16:64 to it", _TRANSFERS, Direct("48ff2b"), SAME),
    Column("CALL", "far CALL to it", _TRANSFERS, Direct("ff1b"), SAME),
    Column("CALL 64", "far CALL m16:64 to it", _TRANSFERS, Direct("48ff1b"), SAME),
    Column("JMP gate", "far JMP through a call gate of DPL 3 to it", _TRANSFERS, Gated("ff2b"), SAME),
    Column("CALL gate", "far CALL through a call gate of DPL 3 to it", _TRANSFERS, Gated("48ff1b"), SAME),
    Column("INT", "INT n through an interrupt gate of DPL 3 to it", _HANDLERS, Handler("cd80", 0x80, _INTERRUPT_GATE), SAME),
    Column("INT trap", "INT n through a trap gate of DPL 3 to it", _HANDLERS, Handler("cd80", 0x80, _TRAP_GATE), SAME),
    Column("INT IST", "INT n through an interrupt gate with a stack to it", _HANDLERS,
           Handler("cd80", 0x80, _INTERRUPT_GATE, ist=2), SAME),
    Column("#UD", "exception through an interrupt gate to it", _HANDLERS, Handler("0f0b", 6, _INTERRUPT_GATE), SAME),
    Column("RETF", "far RET to it", _RETURNS, Returned("cb"), SAME),
    Column("RETFQ", "far RET with words of 64 bits to it", _RETURNS, Returned("48cb"), SAME),
    Column("IRETD", "IRET with words of 32 bits to it", _RETURNS, Interrupted("cf"), SAME),
    Column("IRETQ", "IRET with words of 64 bits to it", _RETURNS, Interrupted("48cf"), SAME),
    Column("IDT, INT", "INT n through it as a gate", _ENTRIES, Entry("cd80", 0x80), SAME, (0,)),
    Column("IDT, #UD", "exception through it as a gate", _ENTRIES, Entry("0f0b", 6), SAME, (0,)),
    Column("RETFQ, SS", "SS that far RET finds for 64-bit code of an outer ring", _STACKS,
           ReturnedStack("48cb", LongBare.CODE), OUTER),
    Column("IRETQ, SS", "SS that IRET finds for 64-bit code", _STACKS, InterruptedStack("48cf", LongBare.CODE), _ALL),
    Column("IRETQ to 32, SS", "SS that IRET finds for 32-bit code", _STACKS, InterruptedStack("48cf", LongBare.COMPATIBLE), _ALL),
    Column("32: SS", "MOV SS, selector in 32-bit code", _COMPATIBLE, Loaded("8ed0", True), SAME),
    Column("32: JMP", "far JMP of 32-bit code to it", _COMPATIBLE, Direct("ff2b", True), SAME),
    Column("32: CALL", "far CALL of 32-bit code to it", _COMPATIBLE, Direct("ff1b", True), SAME),
    Column("32: CALL gate", "far CALL of 32-bit code through a call gate of DPL 3 to it", _COMPATIBLE, Gated("ff1b", True), SAME),
    Column("32: INT", "INT n of 32-bit code through an interrupt gate of DPL 3 to it", _COMPATIBLE_RETURNS,
           Handler("cd80", 0x80, _INTERRUPT_GATE, True), SAME),
    Column("32: RETF", "far RET of 32-bit code to it", _COMPATIBLE_RETURNS, Returned("cb", True), SAME),
    Column("32: IRET", "IRET of 32-bit code to it", _COMPATIBLE_RETURNS, Interrupted("cf", True), SAME),
    Column("32: IRET, SS", "SS that IRET of 32-bit code finds for 64-bit code of an outer ring", _COMPATIBLE_RETURNS,
           InterruptedStack("cf", LongBare.CODE, True), OUTER),
)

LONG_SHEET: Final = Sheet(LONG_KINDS, LONG_COLUMNS, long_word, expected, long_end, long_difference)


def long_places(columns: Iterable[Column[Any]] = LONG_COLUMNS) -> Iterable[Place]:
    """Every trial of the table, those of one instruction together."""
    return places(columns, len(LONG_KINDS))


def long_compare(perform: Callable[[LongTrial], LongFinish], expect: Callable[[LongTrial], Any] = expected,
                 chosen: Iterable[Place] | None = None) -> Table:
    """Perform every trial, or those of some places, and hold it against the specification."""
    return compared(LONG_SHEET, perform, long_places() if chosen is None else chosen, expect)
