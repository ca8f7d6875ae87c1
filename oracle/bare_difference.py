"""Holds the end of one trial on the processor against the specification, and knows the differences that are explained."""
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Final, NamedTuple, Protocol

from spec.abi import AC, BP, BR, DB, DE, DF, GP, NP, PF, SS, TS, UD
from spec.vocabulary import Bare, Finish, Trial
from spec.x86.descriptors import BIG, gate_parameters, in_limit, is_any_call_gate, is_null
from spec.x86.flags import RF, VM
from spec.x86.stacks import place
from spec.x86.transfers import TASK_SWITCH, VIRTUAL_MODE

VECTORS: Final = {DE: "#DE", DB: "#DB", BP: "#BP", BR: "#BR", UD: "#UD", DF: "#DF", TS: "#TS", NP: "#NP", SS: "#SS", GP: "#GP",
                  PF: "#PF", AC: "#AC"}

Expected = Callable[[Trial], Finish | str]


class AnyDifference(Protocol):
    """A trial on either processor that ends otherwise than the specification says."""

    @property
    def place(self) -> str:
        """Where in the table, or in which family."""

    @property
    def trial(self) -> Any:
        """The trial."""

    @property
    def says(self) -> Any:
        """The end that the specification gives, or the reason why it gives none."""

    @property
    def does(self) -> Any:
        """The end on the processor."""

    @property
    def fields(self) -> tuple[str, ...]:
        """Where they differ."""

    @property
    def declared(self) -> str:
        """The known difference that it is, or nothing."""

    @property
    def what(self) -> str:
        """What is known of it."""


@dataclass(frozen=True, slots=True)
class Difference:
    """A trial that ends otherwise than the specification says; `fields` are where."""
    place: str
    trial: Trial
    says: Finish | str
    does: Finish
    fields: tuple[str, ...]

    @property
    def declared(self) -> str:
        """The known difference that it is, or nothing."""
        return next((name for name, known in DECLARED.items() if isinstance(self.says, Finish)
                     and known.applies(self, self.says, self.does)), "")

    @property
    def what(self) -> str:
        """What is known of it."""
        return DECLARED[self.declared].what


def difference(place: str, trial: Trial, says: Finish | str, does: Finish) -> list[Difference]:
    """The difference between what is said and what is done, if there is one."""
    differing = unequal(says, does)
    return [Difference(place, trial, says, does, differing)] if differing else []


def unequal(says: Finish | str, does: Finish) -> tuple[str, ...]:
    """The fields in which two ends of a trial differ."""
    if isinstance(says, str):
        return () if says == left_for(does) else ("end",)
    if says == does:
        return ()
    return tuple(f.name for f in fields(Finish) if getattr(says, f.name) != getattr(does, f.name))


def left_for(does: Finish) -> str:
    """Where the specification does not follow the processor."""
    if does.vector < 0 and does.task != Bare.TSS:
        return TASK_SWITCH
    return VIRTUAL_MODE if does.eflags & VM else ""


def end_of(does: Finish, cpl: int) -> str:
    """How a trial ended, in a word: a fault, `ok`, a task switch, or the ring that it led to."""
    if left_for(does):
        return "task" if does.task != Bare.TSS else "8086"
    if does.vector >= 0:
        return VECTORS.get(does.vector, f"#{does.vector}")
    ring = does.cs[0] & 3
    return "ok" if ring == cpl else f"→{ring}"


# --- known differences -------------------------------------------------------------------------------------------------------

def _absent_stack(d: Difference, says: Finish, does: Finish) -> bool:
    return d.trial.code[-1] == 0xCF and d.fields == ("vector",) and (says.vector, does.vector) == (SS, NP)


def _half_of_ss(d: Difference, says: Finish, does: Finish) -> bool:
    code = d.trial.code
    if code[0] not in (0xCA, 0xCB, 0xCF) or (says.vector, says.error) != (SS, 0) or "ss" not in d.trial.segments:
        return False
    q = d.trial.segments["ss"][1]
    slot = place(q, d.trial.registers["esp"], 16 if code[0] == 0xCF else 12 + int.from_bytes(code[1:], "little"))
    return does.vector < 0 and does.cs[0] & 3 > d.trial.cpl and in_limit(q, slot, 2) and not in_limit(q, slot, 4)


def _room_or_target(d: Difference, says: Finish, does: Finish) -> bool:
    return (set(d.fields) <= {"vector", "error"} and d.trial.gates != {} and says.vector == SS
            and (does.vector, does.error & ~1) == (GP, 0))


def _flags_of_double_fault(d: Difference, says: Finish, does: Finish) -> bool:
    return says.vector == DF and d.fields == ("eflags",) and says.eflags ^ does.eflags == RF


def _end_of_tss(d: Difference, says: Finish, does: Finish) -> bool:
    ends = {8 * ring + last for ring in d.trial.stacks for last in (9, 10)}
    return (does.vector, does.error & ~1) == (TS, Bare.TSS) and d.trial.task_limit in ends


def _half_of_esp(d: Difference, says: Finish, does: Finish) -> bool:
    if d.fields != ("stack",) or d.trial.code[-2:] != b"\xff\x1b" or d.trial.segments.get("ss", (0, BIG))[1] & BIG:
        return False
    differing = [(said, done) for said, done in zip(says.stack, does.stack, strict=True) if said != done]
    return differing == [(d.trial.registers["esp"], d.trial.registers["esp"] & 0xFFFF)]


def _null_task(d: Difference, says: Finish, does: Finish) -> bool:
    refused = says.vector in (TS, GP) and is_null(says.error)
    return refused and (is_null(does.task) or (does.vector == NP and is_null(does.error)))


def _parameters_first(d: Difference, says: Finish, does: Finish) -> bool:
    gate = any(gate_parameters(q) for q in d.trial.descriptors.values() if is_any_call_gate(q))
    return (d.fields == ("vector",) and d.trial.code[-2:] == b"\xff\x1b" and gate and "ss" in d.trial.segments
            and (says.vector, does.vector, does.error) == (GP, SS, 0))


class Declared(NamedTuple):
    """A known difference."""
    what: str
    applies: Callable[[Difference, Finish, Finish], bool]


DECLARED: Final = {
    "SS of IRET not present": Declared(
        "IRET to an outer ring whose SS is not present: #SS(selector) by the manual's operation section and the specification, "
        "#NP(selector) by the manual's list of exceptions and Bochs", _absent_stack),
    "SS of a return cut off": Declared(
        "far RET or IRET to an outer ring: by the manual all bytes of the frame lie within the stack's limit; Bochs reads two of "
        "the four bytes that hold SS, and does not see that the limit cuts off the rest", _half_of_ss),
    "room before target": Declared(
        "interrupt or exception whose stack has no room, to a handler beyond its segment: the manual checks the room first "
        "(#SS), Bochs the handler (#GP)", _room_or_target),
    "SS at the end of the TSS": Declared(
        "change of ring with a TSS that ends behind the two bytes of the new SS: enough by the manual, but Bochs wants the two "
        "unused bytes above them, too, as older manuals do (#TS)", _end_of_tss),
    "ESP of a 16-bit stack": Declared(
        "call gate from a 16-bit stack to an inner ring: by the manual ESP is pushed as it is, Bochs clears its upper half",
        _half_of_esp),
    "the null task": Declared(
        "task gate to a null selector, or IRET with NT set to a null link: the manual does not say that it is refused even if a "
        "TSS lies in the first entry of the table; Bochs goes there.  No table that Xen accepts holds a TSS", _null_task),
    "parameters before target": Declared(
        "call gate to an inner ring, to a place beyond its segment, with parameters beyond the old stack's limit: the manual "
        "checks the place first (#GP), Bochs reads the parameters first (#SS)", _parameters_first),
    "RF of a double fault": Declared(
        "RF in the flags that a double fault pushes: by the manual, which only speaks of faults, as it was; in Bochs 1, from the "
        "fault before", _flags_of_double_fault),
}
"""The differences that are known, with what is right."""
