"""Transfers of control on terms: every function of spec.x86 can be followed, and the solver shows what holds of each way."""
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import z3

from proofs.symbolic.paths import Path, explore
from proofs.symbolic.sorts import Sorts
from proofs.symbolic.terms import IntTerm, bool_value, node
from spec.profile import XEN_4_17, XEN_2003
from spec.x86.descriptors import PRESENT, RPL, dpl_of
from spec.x86.interrupts import exception, interrupt_return, software_interrupt
from spec.x86.long_interrupts import Tss64, interrupt_64, interrupt_return_64
from spec.x86.long_mode import far_call_64, far_jump_64, far_return_64
from spec.x86.segments import Registers, Segment, check_access, load_data, load_stack
from spec.x86.stacks import Transfer, Tss
from spec.x86.system_calls import Msrs, system_call, system_return
from spec.x86.transfers import far_call, far_jump, far_return


class Unknown:
    """Unknown words and descriptors, each new; a table gives one at each look-up, which is more than a table can do."""

    def __init__(self) -> None:
        self.serial = 0
        self.looked_up: list[Any] = []

    def word(self) -> Any:
        """A word of the profile's width."""
        self.serial += 1
        return IntTerm(node(f"word{1000 + self.serial}"))

    def selector(self) -> Any:
        """A selector."""
        return self.word() & 0xFFFF

    def descriptor(self, _selector: Any = None) -> Any:
        """A descriptor."""
        self.serial += 1
        q = IntTerm(node(f"desc{1000 + self.serial}"))
        self.looked_up.append(q)
        return q

    def read(self, _offset: Any) -> Any:
        """A word of the stack."""
        return self.word()

    def registers(self) -> Registers:
        """All registers."""
        segments = [Segment(self.selector(), self.descriptor()) for _ in range(6)]
        self.looked_up.clear()
        return Registers(*segments, self.word(), self.word(), self.word())

    def tss(self) -> Tss:
        """A task state segment."""
        return Tss(0x48, 0x67, *(self.word() & m for m in (0xFFFF, 0xFFFFFFFF) * 3), 0)

    def tss_64(self) -> Tss64:
        """The same in long mode."""
        return Tss64(0x48, 0x67, (self.word(), self.word(), self.word()), (*(self.word() for _ in range(7)),))


Way = Callable[[Unknown, Registers], Any]
WAYS: dict[str, Way] = {
    "jump": lambda u, r: far_jump(r, u.descriptor, u.selector(), u.word()),
    "call": lambda u, r: far_call(r, u.descriptor, u.tss(), u.selector(), u.word()).registers,
    "return": lambda u, r: far_return(r, u.descriptor, u.read),
    "short return": lambda u, r: far_return(r, u.descriptor, lambda offset: u.read(offset) & 0xFFFF, 2, 6),
    "INT n": lambda u, r: software_interrupt(r, u.descriptor, u.tss(), u.descriptor(), 0x80).registers,
    "exception": lambda u, r: exception(r, u.descriptor, u.tss(), u.descriptor(), 13, (0,)).registers,
    "IRET": lambda u, r: interrupt_return(r, u.descriptor, u.tss(), u.read),
}
LONG: dict[str, Way] = {
    "jump": lambda u, r: far_jump_64(r, u.descriptor, u.selector(), u.word(), 8),
    "call": lambda u, r: far_call_64(r, u.descriptor, u.selector(), u.word(), 8).registers,
    "return": lambda u, r: far_return_64(r, u.descriptor, u.read, 8),
    "INT n": lambda u, r: interrupt_64(r, u.descriptor, u.tss_64(), u.descriptor(), u.word(), 0x80, True).registers,
    "IRET": lambda u, r: interrupt_return_64(r, u.descriptor, u.read, 8),
    "SYSRET": lambda u, r: system_return(r, Msrs(u.word(), 0, 0, 0x700, True, False), u.word(), u.word(), True),
}


def ways_of(way: Way, long: bool = False) -> Iterator[tuple[Path, Registers, list[Any]]]:
    """Each path through a transfer that is not refused, the registers before it, and the descriptors that it looked up."""
    def run(_state: Any) -> Any:
        u = Unknown()
        before = u.registers()
        return before, way(u, before), u.looked_up
    for path in explore(run, (), XEN_4_17 if long else XEN_2003, pure=False):
        if path.outcome == "ok":
            before, after, looked_up = path.value
            yield path, (before, after), looked_up


def holds(path: Path, premises: list[Any], goal: Any, long: bool = False) -> bool:
    """The goal follows from what the path decided and the premises."""
    sorts, solver = Sorts(XEN_4_17 if long else XEN_2003), z3.Solver()
    for condition, way in path.conditions:
        solver.add(sorts.boolean(condition) if way else z3.Not(sorts.boolean(condition)))
    for premise in premises:
        solver.add(sorts.boolean(bool_value(premise)))
    solver.add(z3.Not(sorts.boolean(bool_value(goal))))
    return solver.check() == z3.unsat


def outside_ring_0(q: Any) -> Any:
    """Not present, or of another privilege than 0: what Xen lets a guest have."""
    return (q & PRESENT == 0) | (q >> 45 & 3 != 0)


@pytest.mark.parametrize("name", WAYS)
def test_who_is_not_in_ring_0_gets_there_only_by_descriptors_of_ring_0(name):
    """The heart of ring privilege, for all contents of all tables at once."""
    found = 0
    for path, (before, after), looked_up in ways_of(WAYS[name]):
        premises = [before.cs.selector & RPL != 0, *map(outside_ring_0, looked_up)]
        assert holds(path, premises, after.cs.selector & RPL != 0)
        found += 1
    assert found


@pytest.mark.parametrize("name", LONG)
def test_the_same_in_long_mode(name):
    found = 0
    for path, (before, after), looked_up in ways_of(LONG[name], long=True):
        premises = [before.cs.selector & RPL != 0, *map(outside_ring_0, looked_up)]
        assert holds(path, premises, after.cs.selector & RPL != 0, long=True)
        found += 1
    assert found


@pytest.mark.parametrize("name", WAYS)
def test_the_stack_is_always_of_the_ring_that_runs(name):
    for path, (before, after), _ in ways_of(WAYS[name]):
        premise = dpl_of(before.ss.q) == before.cs.selector & RPL
        assert holds(path, [premise], dpl_of(after.ss.q) == after.cs.selector & RPL)


def test_a_transfer_that_may_lead_inwards_does():
    """The premise counts: without it ring 0 can be reached."""
    for name in ("call", "INT n", "exception"):
        assert not all(holds(path, [before.cs.selector & RPL != 0], after.cs.selector & RPL != 0)
                       for path, (before, after), _ in ways_of(WAYS[name]))


def test_loads_accesses_and_system_calls_can_be_followed():
    for kinds, function in (
            (("desc", "word", "word"), lambda _s, q, selector, cpl: load_data(q, selector, cpl)),
            (("desc", "word", "word"), lambda _s, q, selector, cpl: load_stack(q, selector, cpl)),
            (("desc", "word", "bool"), lambda _s, q, offset, write: check_access(q, offset, 4, write))):
        assert {path.outcome for path in explore(function, kinds, XEN_2003, pure=False)} == {"ok", "fault"}
    msrs = Msrs(0xE023_E00B << 32, 0, 0, 0x700, True, True)
    assert len(list(ways_of(lambda _, r: system_call(r, msrs).registers, long=True))) == 2


def test_what_is_pushed_is_known_term_by_term():
    """A frame has a fixed number of words on each path; only the parameters of a call gate are a number that nobody knows."""
    for _path, (_, after), _ in ways_of(lambda u, r: far_call(r, u.descriptor, u.tss(), u.selector(), u.word())):
        assert isinstance(after, Transfer)
        assert len(after.pushed) in (2, 4)
        assert (type(after.copied) is IntTerm) == (len(after.pushed) == 4)
