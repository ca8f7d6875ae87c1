"""Holds the end of one trial in long mode against the specification, and knows the differences that are explained."""
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Final, NamedTuple

from oracle.bare64 import Memory
from oracle.bare_difference import VECTORS
from spec.abi import DF, GP, NP, SS
from spec.vocabulary import LONG_GDT, LongBare, LongFinish, LongTrial
from spec.x86.descriptors import LONG, SEGMENT, in_limit, widest
from spec.x86.flags import RF


@dataclass(frozen=True, slots=True)
class LongDifference:
    """A trial that ends otherwise than the specification says; `fields` are where."""
    place: str
    trial: LongTrial
    says: LongFinish
    does: LongFinish
    fields: tuple[str, ...]

    @property
    def declared(self) -> str:
        """The known difference that it is, or nothing."""
        return next((name for name, known in LONG_DECLARED.items() if known.applies(self, self.says, self.does)), "")

    @property
    def what(self) -> str:
        """What is known of it."""
        return LONG_DECLARED[self.declared].what


def long_difference(place: str, trial: LongTrial, says: LongFinish, does: LongFinish) -> list[LongDifference]:
    """The difference between what is said and what is done, if there is one."""
    if says == does:
        return []
    differing = tuple(f.name for f in fields(LongFinish) if getattr(says, f.name) != getattr(does, f.name))
    return [LongDifference(place, trial, says, does, differing)]


def long_end(does: LongFinish, cpl: int) -> str:
    """How a trial ended, in a word: a fault, `ok`, or the ring that it led to."""
    if does.vector >= 0:
        return VECTORS.get(does.vector, f"#{does.vector}")
    ring = does.cs[0] & 3
    return "ok" if ring == cpl else f"→{ring}"


# --- known differences -------------------------------------------------------------------------------------------------------

_IRET, _RETURNS, _CALL, _WRMSR = 0xCF, (0xCA, 0xCB, 0xCF), b"\xff\x1b", b"\x0f\x30"
_MOVES: Final = (0x88, 0x89, 0x8A, 0x8B)
_SFMASK: Final = 0xC0000084
_SIZES: Final = {0x48: 8, 0x66: 2}          # REX.W and the prefix of the operand size
_LOW: Final = 0xFFFFFFFF
_HOLE, _END = 1 << 47, 0x1FFFF << 47        # the addresses from one to the other are not canonical


def _bare(trial: LongTrial) -> bytes:
    """An instruction without what makes its operands wider or narrower."""
    return trial.code[trial.code[0] in _SIZES:]


def _is_return(trial: LongTrial) -> bool:
    return _bare(trial)[0] in _RETURNS


def _size(trial: LongTrial) -> int:
    return _SIZES.get(trial.code[0], 4)


def _slot(trial: LongTrial, number: int) -> int:
    """Where a word of a return's frame lies; -1, -2: SS and RSP."""
    if number < 0:
        code = _bare(trial)
        number += 5 if code[0] == _IRET else 4
        number += int.from_bytes(code[1:], "little") // _size(trial)
    return trial.registers.get("rsp", LongBare.STACK[trial.cpl]) + number * _size(trial) & (1 << 64) - 1


def _popped(trial: LongTrial, number: int) -> int:
    """A word of a return's frame."""
    return Memory(trial.memory).read(_slot(trial, number), _size(trial))


def _absent_stack(d: LongDifference, says: LongFinish, does: LongFinish) -> bool:
    return _bare(d.trial)[0] == _IRET and d.fields == ("vector",) and (says.vector, does.vector) == (SS, NP)


def _flags_of_double_fault(d: LongDifference, says: LongFinish, does: LongFinish) -> bool:
    return says.vector == DF and d.fields == ("rflags",) and says.rflags ^ does.rflags == RF


def _narrow_iret(d: LongDifference, says: LongFinish, does: LongFinish) -> bool:
    trial = d.trial
    if trial.compatible or _bare(trial)[0] != _IRET or _size(trial) == 8 or _popped(trial, 1) & 3 != trial.cpl:
        return False
    elsewhere = {"vector", "error", "rip"} & {*d.fields}
    if not elsewhere and not set(d.fields) <= {"ss", "rsp", "stack", "descriptors"}:
        return False
    return does.vector >= 0 or does.rsp & _LOW == _slot(trial, 3) & _LOW


def _null_stack(d: LongDifference, says: LongFinish, does: LongFinish) -> bool:
    accepts = _is_return(d.trial) and (says.vector, says.error) == (GP, 0) and does.vector < 0 and does.ss[1] == 0
    return accepts and does.cs[0] & 3 != 3 and _popped(d.trial, -1) & 0xFFFF in {0, 1, 2, 3} - {does.cs[0] & 3}


def _truncated(d: LongDifference, says: LongFinish, does: LongFinish) -> bool:
    if not _is_return(d.trial) or (says.vector, says.error) != (GP, 0) or does.cs[1] & LONG:
        return False
    arrives = does.cs[0] & ~3 == _popped(d.trial, 1) & 0xFFFC
    return arrives and does.rip != _popped(d.trial, 0) and does.rip == _popped(d.trial, 0) & _LOW


def _half_of_ss(d: LongDifference, says: LongFinish, does: LongFinish) -> bool:
    if not _is_return(d.trial) or (says.vector, says.error) != (SS, 0):
        return False
    slot = _slot(d.trial, -1)
    if d.trial.compatible:
        q = d.trial.segments.get("ss", (0, 0))[1]
        return in_limit(q, slot & widest(q), 2) and not in_limit(q, slot & widest(q), _size(d.trial))
    return slot < _HOLE - 1 and slot + _size(d.trial) > _HOLE


def _pointer_in_tss(d: LongDifference, says: LongFinish, does: LongFinish) -> bool:
    trial = d.trial
    bad = any(_HOLE <= rsp < _END for rsp in (*trial.stacks.values(), *trial.ist.values()))
    ss = trial.segments.get("ss", (LongBare.DATA[trial.cpl], 0))[0]
    refused = does.vector == SS and does.error & ~1 == ss & ~3 and says.vector in {-1, SS, GP}
    return bad and {"vector", "error"} & {*d.fields} != set() and (refused or (says.vector, does.vector) == (-1, DF))


def _mask(d: LongDifference, says: LongFinish, does: LongFinish) -> bool:
    r = d.trial.registers
    writes = d.trial.code == _WRMSR and r["rcx"] == _SFMASK and r["rdx"] != 0
    return writes and (says.vector, says.error) == (GP, 0) and does.vector < 0


def _upper_half(d: LongDifference, says: LongFinish, does: LongFinish) -> bool:
    leaves = not d.trial.compatible and _bare(d.trial)[0] in (*_RETURNS, _CALL[0])
    return leaves and d.fields == ("rsp",) and does.rsp == says.rsp & _LOW


def _stack_of_call(d: LongDifference, says: LongFinish, does: LongFinish) -> bool:
    trial = d.trial
    if _bare(trial) != _CALL:
        return False
    selector = Memory(trial.memory).read(LongBare.POINTER + _size(trial), 2) & ~3
    q = trial.descriptors.get(selector, LONG_GDT.get(selector, 0))
    about_stack = SS in (says.vector, does.vector) or set(d.fields) <= {"rsp", "stack"}
    return about_stack and q & SEGMENT != 0 and (q & LONG != 0) == trial.compatible


def _wrapped(d: LongDifference, says: LongFinish, does: LongFinish) -> bool:
    trial = d.trial
    offset = max(trial.registers.get(name, 0) for name in ("rbx", "rbp", "rsp"))
    return trial.compatible and trial.code[0] in _MOVES and offset & _LOW > _LOW - 3 and says.vector in {GP, SS}


class Declared(NamedTuple):
    """A known difference."""
    what: str
    applies: Callable[[LongDifference, LongFinish, LongFinish], bool]


LONG_DECLARED: Final[dict[str, Declared]] = {
    "SS of IRET not present": Declared(
        "IRET whose SS is not present: #SS(selector) by the manual's operation section (vol. 2 IRET) and the specification, "
        "#NP(selector) in Bochs", _absent_stack),
    "RF of a double fault": Declared(
        "RF in the flags that a double fault pushes: by the manual, which only speaks of faults, as it was; in Bochs 1, from the "
        "fault before", _flags_of_double_fault),
    "narrow IRET in 64-bit mode": Declared(
        "IRET with words of 16 or 32 bits in 64-bit mode to the same ring: by the manual (vol. 3A §6.14.3) SS and RSP are "
        "popped, since it is 64-bit mode; Bochs goes by the operand size and leaves them where they are", _narrow_iret),
    "RPL of a null SS": Declared(
        "far RET or IRET to 64-bit code of ring 0, 1 or 2 with a null SS: by the manual (vol. 2 IRET, RET: exceptions in 64-bit "
        "mode) its RPL must be that ring (#GP(0)); Bochs takes any", _null_stack),
    "RIP beyond compatibility mode": Declared(
        "far RET or IRET with words of 64 bits to compatibility mode, above 4 GB: by the manual (vol. 2 RET) it is not within "
        "the segment's limit (#GP(0)); Bochs drops the upper half, as the manual has it for JMP and CALL only", _truncated),
    "SS of a return cut off": Declared(
        "far RET or IRET: by the manual all bytes of the frame are at canonical addresses, or within the stack's limit; Bochs "
        "reads two of the bytes that hold SS, and does not see that the others are not", _half_of_ss),
    "pointer of a stack in the TSS": Declared(
        "RSP in the TSS that is not canonical: by the manual the words that are pushed count (vol. 2 CALL, INT n: #SS(EXT)), and "
        "are checked like any push; Bochs checks the pointer itself, first, and puts the old SS in the error code",
        _pointer_in_tss),
    "upper half of SFMASK": Declared(
        "WRMSR to IA32_FMASK with bits above 31: they are reserved (vol. 4; vol. 2 WRMSR: #GP(0)); Bochs drops them", _mask),
    "upper half of RSP": Declared(
        "JMP, CALL or RET from 64-bit to compatibility mode: the upper half of RSP is undefined then (vol. 1 §3.4.1.1); it stays "
        "in the specification, Bochs clears it", _upper_half),
    "stack of a call that changes the mode": Declared(
        "far CALL between 64-bit and compatibility mode: by the manual the return address is pushed before CS is loaded (vol. 2 "
        "CALL), so as the old mode has it; Bochs checks and pushes as the new one has it", _stack_of_call),
    "word across 4 GB": Declared(
        "access of compatibility mode through a segment of 4 GB to a word that begins below its end: it may or may not fault, "
        "says the manual (vol. 3A §5.3); it does in the specification, not in Bochs", _wrapped),
}
"""The differences that are known, with what is right."""
