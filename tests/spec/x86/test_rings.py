"""What holds of every transfer, whatever the tables hold: nobody's ring changes but by the ways that the manual has for it."""
from collections.abc import Callable
from random import Random
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spec.x86.descriptors import PRESENT, dpl_of, gate_selector, is_code, is_conforming, is_readable, is_writable
from spec.x86.flags import NT
from spec.x86.interrupts import interrupt, interrupt_return, software_interrupt
from spec.x86.paging import Fault
from spec.x86.segments import Registers, Segment, cpl_of, load_data, load_stack, may_fetch
from spec.x86.stacks import Tss
from spec.x86.transfers import far_call, far_jump, far_return
from tests.spec.x86.processor import CODE, CONFORMING, DATA, FLAT, TOP, Processor, code, data, gate, segment

TRANSFERS: Final = ("jump", "call", "return", "soft", "hard", "iret")
ENTRIES: Final = 16                         # of the table; entry 0 is never read
INWARDS: Final = ("call", "soft", "hard")   # through gates


class Chance:
    """Things at random: often such as work, so that many transfers come about (drawing them one by one is far too slow)."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.one_of, self.below = self.random.choice, self.random.randrange

    def selector(self) -> int:
        """Any selector of the table and a bit beyond it, often a sound one."""
        ring = self.below(4)
        return self.one_of((code(ring), code(ring), data(ring), 8 * self.below(ENTRIES) | ring, self.below(8 * ENTRIES + 16)))

    def descriptor(self, kinds: tuple[int, ...]) -> int:
        """Any descriptor, often one of these kinds."""
        kind, dpl = self.one_of((*kinds, self.below(32))), self.below(4)
        marks = self.one_of((PRESENT, PRESENT, PRESENT, 0))
        if kind & 0x10:
            return segment(kind, dpl, self.one_of((FLAT, FLAT, 0x7FFF, 0)), marks=marks | self.below(16) << 52)
        return gate(kind, self.selector(), self.below(0x9000), self.one_of((dpl, 3)), self.below(4), marks)

    def machine(self) -> tuple[Processor, dict[int, int]]:
        """A program of any ring that runs soundly, in a table of anything; data segments are what it could load; and an IDT."""
        p = Processor(self.below(4))
        for entry in range(8, 8 * ENTRIES, 8):
            if entry not in p.entries or self.below(8) == 0:
                p.entries[entry] = self.descriptor((CODE, CONFORMING, DATA, 0xC, 0xC, 0xC, 4))
        stacks = [self.one_of((data(ring), data(ring), self.selector())) for ring in range(3)]
        p.tss = Tss(0x48, self.one_of((0x67, 0x67, 0x67, 0x10)), stacks[0], TOP, stacks[1], TOP, stacks[2], TOP)
        p.set(ds=self.loaded(p), es=self.loaded(p), fs=self.loaded(p), gs=self.loaded(p), eflags=self.below(0x10000) & ~NT)
        cs = self.selector()
        ss = self.one_of((data(cs & 3), data(cs & 3), self.selector()))
        p.frame(self.below(0x9000), cs, self.below(0x10000), ss, ss)
        return p, {vector: self.descriptor((0xE, 0xF, 0xE, 0xF, 6, 7)) for vector in range(4)}

    def loaded(self, p: Processor) -> Segment:
        """A data segment that the program could load."""
        selector = self.selector()
        try:
            return load_data(p.table(selector) if selector & ~3 else 0, selector, p.cpl)
        except Fault:
            return Segment(0, 0)


machines = st.integers(0, 1 << 32).map(Chance)


def attempt(p: Processor, idt: dict[int, int], way: str, selector: int, size: int) -> Registers | None:
    """The registers after a transfer; nothing if it faults."""
    r, vector = p.registers, selector % 4

    def read(offset: int) -> int:
        return p.stack[TOP + (offset - TOP) // size * 4] & (1 << 8 * size) - 1
    ways: dict[str, Callable[[], Any]] = {
        "jump": lambda: far_jump(r, p.table, selector, 0x100, size),
        "call": lambda: far_call(r, p.table, p.tss, selector, 0x100, size).registers,
        "return": lambda: far_return(r, p.table, read, size),
        "soft": lambda: software_interrupt(r, p.table, p.tss, idt[vector], vector).registers,
        "hard": lambda: interrupt(r, p.table, p.tss, idt[vector], vector, False).registers,
        "iret": lambda: interrupt_return(r, p.table, p.tss, read, size)}
    try:
        after: Registers = ways[way]()
    except Fault:
        return None
    return after


@pytest.mark.parametrize("way", TRANSFERS)
@given(machines)
@settings(max_examples=1000)
def test_every_transfer(way, chance):
    p, idt = chance.machine()
    after = attempt(p, idt, way, chance.selector(), chance.one_of((2, 4)))
    if after is None:
        return
    cpl, ring = p.cpl, cpl_of(after)
    # direction: jumps stay, gates lead inwards, returns outwards
    assert ring == cpl or (ring < cpl if way in INWARDS else ring > cpl and way != "jump")
    # what runs is code, present, that may be fetched where it runs, and of its own ring unless it conforms
    assert is_code(after.cs.q)
    assert after.cs.q & PRESENT
    assert may_fetch(after.cs.q, after.eip, 1)
    assert dpl_of(after.cs.q) <= ring if is_conforming(after.cs.q) else dpl_of(after.cs.q) == ring
    # its stack is writable data of exactly its ring
    assert is_writable(after.ss.q)
    assert after.ss.q & PRESENT
    assert dpl_of(after.ss.q) == after.ss.selector & 3 == ring
    # and no data segment is more privileged than it
    for held in (after.ds, after.es, after.fs, after.gs):
        assert held.q == 0 or (is_readable(held.q) and (dpl_of(held.q) >= ring or is_conforming(held.q)))
    # what is not the transfer's business stays
    if ring <= cpl:
        assert (after.ds, after.es, after.fs, after.gs) == (p.registers.ds, p.registers.es, p.registers.fs, p.registers.gs)


@given(machines)
@settings(max_examples=2000)
def test_a_ring_changes_inwards_only_to_the_privilege_of_a_gates_target(chance):
    p, idt = chance.machine()
    selector = chance.selector()
    for way in INWARDS:
        after = attempt(p, idt, way, selector, 4)
        if after is not None and cpl_of(after) < p.cpl:
            through = p.table(selector) if way == "call" else idt[selector % 4]
            assert cpl_of(after) == dpl_of(p.table(gate_selector(through)))
            assert way == "hard" or dpl_of(through) >= p.cpl


@pytest.mark.parametrize("way", TRANSFERS)
@given(machines)
@settings(max_examples=300)
def test_without_a_descriptor_of_ring_0_nobody_gets_there(way, chance):
    """What Xen relies on: present descriptors of privilege 0 are its own alone."""
    p, idt = chance.machine()
    p.entries = {s: q for s, q in p.entries.items() if dpl_of(q) > 0 or not q & PRESENT}
    after = attempt(p, idt, way, chance.selector(), 4)
    assert p.cpl == 0 or after is None or cpl_of(after) > 0


def test_these_machines_do_all_that_is_to_be_seen():
    """Each way is gone within its ring and, where it can be, to another one; and refused."""
    seen = set()
    for seed in range(2000):
        chance = Chance(seed)
        p, idt = chance.machine()
        selector = chance.selector()
        for way in TRANSFERS:
            after = attempt(p, idt, way, selector, 4)
            seen.add((way, "refused" if after is None else "same ring" if cpl_of(after) == p.cpl else "another"))
    assert seen == {(way, what) for way in TRANSFERS for what in ("refused", "same ring", "another")} - {("jump", "another")}


@given(machines, st.integers(0, 3))
@settings(max_examples=1000)
def test_what_can_be_a_stack_can_be_data(chance, cpl):
    selector, q = chance.selector(), chance.descriptor((DATA,))
    try:
        load_stack(q, selector, cpl)
    except Fault:
        return
    assert dpl_of(load_data(q, selector, cpl).q) == cpl
