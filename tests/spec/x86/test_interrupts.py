"""Ways through the IDT and back, step by step and error by error (Intel SDM vol. 2 INT n, IRET; vol. 3A ch. 6)."""
import pytest

from spec.abi import BP, GP, NP, PF, SS, TS
from spec.x86.descriptors import (
    ACCESSED,
    BIG,
    BUSY_TSS,
    INTERRUPT_GATE,
    INTERRUPT_GATE_16,
    PRESENT,
    TASK_GATE,
    TRAP_GATE,
    TRAP_GATE_16,
    TSS,
)
from spec.x86.flags import AC, ID, IF, IOPL, NT, RF, TF, VIF, VIP, VM
from spec.x86.interrupts import exception, interrupt, interrupt_return, software_interrupt
from spec.x86.segments import Segment, cpl_of
from spec.x86.transfers import TASK_SWITCH, VIRTUAL_MODE, Unmodelled
from tests.spec.x86.processor import (
    CODE,
    CONFORMING,
    DATA,
    DATA_DOWN,
    DATA_RO,
    EVERY_TYPE,
    LOCAL,
    NEW,
    NEXT,
    OTHER,
    TOP,
    TSS_SELECTOR,
    Processor,
    absent,
    code,
    data,
    faults,
    gate,
    of_type,
    put,
    segment,
)

HANDLER = 0x5678
VECTOR = 0x21
RINGS = range(4)
GATES = {INTERRUPT_GATE: 4, TRAP_GATE: 4, INTERRUPT_GATE_16: 2, TRAP_GATE_16: 2}
EVERY_FLAG = 0xDD5 | TF | IF | IOPL | NT | RF | AC | ID | VIF | VIP


def ready(cpl: int = 3, *spoils) -> Processor:
    """A processor with some changes."""
    p = Processor(cpl)
    for spoil in spoils:
        spoil(p)
    return p


def soft(p: Processor, q: int):
    """INT n."""
    return software_interrupt(p.registers, p.table, p.tss, q, VECTOR)


def hard(p: Processor, q: int):
    """An external interrupt."""
    return interrupt(p.registers, p.table, p.tss, q, VECTOR, False)


def fault(p: Processor, q: int, vector: int = PF, code: tuple[int, ...] = (7,)):
    """An exception."""
    return exception(p.registers, p.table, p.tss, q, vector, code)


def iret(p: Processor, size: int = 4):
    """IRET; the registers after it."""
    return interrupt_return(p.registers, p.table, p.tss, p.read, size)


# --- in ----------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("kind", "size"), GATES.items())
@pytest.mark.parametrize("ring", RINGS)
@pytest.mark.parametrize("codes", [(), (7,)])
def test_the_frame_of_a_handler(kind, size, ring, codes):
    """EFLAGS, CS, EIP and the error code; and above them SS and ESP, if it has a stack of its own."""
    p = ready(3)
    p.set(eip=0x12345678, eflags=0x10246, esp=0x2468ACE0)
    after = fault(p, gate(kind, code(ring), HANDLER), PF, codes)
    top = TOP + 0x1000 * ring if ring < 3 else 0x2468ACE0
    words = [*([data(3), 0x2468ACE0] if ring < 3 else []), 0x10246, code(3), 0x12345678, *codes]
    assert after.pushed == tuple((top - size * n, word & (1 << 8 * size) - 1) for n, word in enumerate(words, 1))
    assert (after.size, after.copied) == (size, 0)
    assert after.registers == p.registers._replace(
        cs=Segment(code(ring), p.loaded(code(ring))), eip=HANDLER, ss=Segment(data(ring), p.loaded(data(ring))),
        esp=top - size * len(words), eflags=after.registers.eflags)


@pytest.mark.parametrize("enter", [soft, hard, fault])
@pytest.mark.parametrize(("kind", "masks"), [
    (INTERRUPT_GATE, True), (INTERRUPT_GATE_16, True), (TRAP_GATE, False), (TRAP_GATE_16, False)])
def test_the_flags_of_a_handler(enter, kind, masks):
    """No TF, NT, RF; IF is clear behind an interrupt gate only; IOPL, AC and the others stay."""
    p = ready(3)
    p.set(eflags=EVERY_FLAG)
    assert enter(p, gate(kind, code(1), HANDLER)).registers.eflags == EVERY_FLAG & ~(TF | NT | RF | (IF if masks else 0))


def test_the_flags_that_a_handler_finds_on_its_stack():
    """RF is set by faults, which come again, and clear in programs that ask for an interrupt."""
    p = ready(3)

    def pushed(transfer):
        return transfer.pushed[0][1]
    to = gate(INTERRUPT_GATE, code(3), HANDLER)
    for eflags in (0x202, 0x202 | RF):
        p.set(eflags=eflags)
        assert pushed(fault(p, to)) == 0x202 | RF
        assert pushed(fault(p, to, BP, ())) == eflags
        assert pushed(hard(p, to)) == eflags
        assert pushed(soft(p, to)) == 0x202


@pytest.mark.parametrize("cpl", RINGS)
@pytest.mark.parametrize("dpl", RINGS)
def test_only_programs_are_asked_for_the_privilege_of_a_gate(cpl, dpl):
    p, q = ready(cpl), gate(INTERRUPT_GATE, code(0), HANDLER, dpl)
    if cpl <= dpl:
        soft(p, q)
    else:
        with faults(GP, VECTOR * 8 + 2):
            soft(p, q)
    hard(p, q)
    fault(p, q)


@pytest.mark.parametrize("cpl", RINGS)
@pytest.mark.parametrize("dpl", RINGS)
@pytest.mark.parametrize("rpl", RINGS)
def test_a_handler_is_not_less_privileged_than_what_it_interrupts(cpl, dpl, rpl):
    for kind in (CODE, CONFORMING):
        p, q = ready(cpl, put(NEW, segment(kind, dpl))), gate(TRAP_GATE, NEW | rpl, HANDLER)
        if dpl > cpl:
            with faults(GP, NEW):
                soft(p, q)
            with faults(GP, NEW | 1):
                hard(p, q)
        else:
            ring = cpl if kind == CONFORMING else dpl
            for after in (soft(p, q).registers, hard(p, q).registers):
                assert after.cs == Segment(NEW | ring, segment(kind, dpl) | ACCESSED)
                assert after.ss.selector == data(ring)


@pytest.mark.parametrize("kind", EVERY_TYPE)
def test_which_descriptors_an_idt_can_hold(kind):
    p = ready(0, put(OTHER, gate(TSS, 0, 0)))
    if kind in GATES:
        soft(p, of_type(kind))
    elif kind == TASK_GATE:
        for enter in (soft, hard):
            with pytest.raises(Unmodelled, check=lambda e: e.reason == TASK_SWITCH):
                enter(p, gate(TASK_GATE, OTHER, 0))
    else:
        with faults(GP, VECTOR * 8 + 2):
            soft(p, of_type(kind))
        with faults(GP, VECTOR * 8 + 3):
            hard(p, of_type(kind))


def stack_of_ring_1(selector: int, q: int):
    """Another stack for ring 1."""
    def spoil(p: Processor) -> None:
        p.entries[selector & ~3] = q
        p.tss = p.tss._replace(ss1=selector)
    return spoil


def smaller_tss(p: Processor) -> None:
    """SS1 lies at 16 and 17."""
    p.tss = p.tss._replace(limit=16)


TO_1 = gate(TRAP_GATE, code(1), HANDLER)
TO_3 = gate(TRAP_GATE, code(3), HANDLER)
@pytest.mark.parametrize("enter", [soft, hard])
@pytest.mark.parametrize(("q", "spoil", "vector", "error"), [
    (0, None, GP, VECTOR * 8 + 2),                                                  # beyond the IDT
    (TO_1 & ~PRESENT, None, NP, VECTOR * 8 + 2),
    (gate(TRAP_GATE, 3, HANDLER), None, GP, 0),                                     # null in the gate
    (gate(TRAP_GATE, NEW, HANDLER), None, GP, NEW),                                 # beyond the table
    (gate(TRAP_GATE, data(1), HANDLER), None, GP, data(1) & ~3),                    # no code
    (TO_1, absent(code(1)), NP, code(1) & ~3),
    # a task gate
    (gate(TASK_GATE, OTHER, 0, marks=0), None, NP, VECTOR * 8 + 2),
    (gate(TASK_GATE, OTHER, 0), None, GP, OTHER),
    (gate(TASK_GATE, 0, 0), None, GP, 0),
    (gate(TASK_GATE, LOCAL, 0), put(LOCAL, gate(TSS, 0, 0)), GP, LOCAL),
    (gate(TASK_GATE, OTHER, 0), put(OTHER, gate(BUSY_TSS, 0, 0)), GP, OTHER),
    (gate(TASK_GATE, OTHER, 0), put(OTHER, gate(TSS, 0, 0, marks=0)), NP, OTHER),
    # the stack of an inner ring
    (TO_1, smaller_tss, TS, TSS_SELECTOR),
    (TO_1, stack_of_ring_1(1, 0), TS, 0),
    (TO_1, stack_of_ring_1(OTHER | 1, 0), TS, OTHER),
    (TO_1, stack_of_ring_1(OTHER, segment(DATA, 1)), TS, OTHER),
    (TO_1, stack_of_ring_1(OTHER | 1, segment(DATA, 0)), TS, OTHER),
    (TO_1, stack_of_ring_1(OTHER | 1, segment(DATA_RO, 1)), TS, OTHER),
    (TO_1, stack_of_ring_1(OTHER | 1, segment(DATA, 1) & ~PRESENT), SS, OTHER),
    (TO_1, stack_of_ring_1(OTHER | 1, segment(DATA_DOWN, 1, TOP + 0x1000 - 20, marks=PRESENT | BIG)), SS, OTHER),
    (TO_1, put(code(1), segment(CODE, 1, HANDLER - 1, marks=PRESENT)), GP, 0),
    # the same stack
    (TO_3, lambda p: p.set(ss=Segment(data(3), segment(DATA_DOWN, 3, TOP - 12, marks=PRESENT | BIG))), SS, 0),
    (TO_3, put(code(3), segment(CODE, 3, HANDLER - 1, marks=PRESENT)), GP, 0),
])
def test_refusals(enter, q, spoil, vector, error):
    """Unless a program asked for the interrupt, the error code says that it is about an event from outside."""
    with faults(vector, error | (0 if enter is soft else 1)):
        enter(ready(3, *([spoil] if spoil else [])), q)


def test_an_error_code_needs_room_as_well():
    p = ready(3)
    p.set(ss=Segment(data(3), segment(DATA_DOWN, 3, TOP - 13, marks=PRESENT | BIG)))
    hard(p, TO_3)
    with faults(SS, 1):
        fault(p, TO_3)
    p = ready(3, stack_of_ring_1(OTHER | 1, segment(DATA_DOWN, 1, TOP + 0x1000 - 21, marks=PRESENT | BIG)))
    hard(p, TO_1)
    with faults(SS, OTHER | 1):
        fault(p, TO_1)


def test_nothing_is_said_of_interrupts_in_virtual_8086_mode():
    p = ready(3)
    p.set(eflags=VM)
    with pytest.raises(Unmodelled, check=lambda e: e.reason == VIRTUAL_MODE):
        hard(p, TO_1)


# --- IRET --------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("size", [2, 4])
def test_a_return_in_the_same_ring(size):
    p = ready(3)
    p.frame(HANDLER, code(3), 0xDD7, size=size)
    assert iret(p, size) == p.registers._replace(eip=HANDLER, esp=TOP + 3 * size, eflags=0xFD7)     # IF stays


@pytest.mark.parametrize("size", [2, 4])
def test_a_return_outwards_pops_the_stack_too_and_nulls_inner_segments(size):
    p = ready(1)
    inner = Segment(data(1), p.loaded(data(1)))
    p.set(gs=inner)
    p.frame(HANDLER, code(3), 0x202, 0x9000, data(3), size=size)
    after = iret(p, size)
    assert after == p.registers._replace(cs=Segment(code(3), p.loaded(code(3))), ss=Segment(data(3), p.loaded(data(3))),
                                         eip=HANDLER, esp=0x9000, gs=Segment(0, 0))


@pytest.mark.parametrize("cpl", RINGS)
@pytest.mark.parametrize("rpl", RINGS)
@pytest.mark.parametrize("dpl", RINGS)
def test_an_interrupt_return_leads_where_a_far_return_would(cpl, rpl, dpl):
    for kind, fits in ((CODE, dpl == rpl), (CONFORMING, dpl <= rpl)):
        p = ready(cpl, put(NEW, segment(kind, dpl)))
        p.frame(HANDLER, NEW | rpl, 0x202, 0x9000, data(rpl))
        if rpl >= cpl and fits:
            assert cpl_of(iret(p)) == rpl
        else:
            with faults(GP, NEW):
                iret(p)


@pytest.mark.parametrize("out", [False, True])
@pytest.mark.parametrize(("cpl", "iopl", "more"), [
    (0, 0, IF | IOPL | VIF | VIP), (0, 3, IF | IOPL | VIF | VIP), (1, 0, 0), (1, 1, IF), (2, 1, 0), (2, 3, IF)])
def test_which_flags_an_interrupt_return_changes(out, cpl, iopl, more):
    """By the ring that it leaves: IF within IOPL, IOPL only in ring 0, VM never."""
    p = ready(cpl)
    ring = 3 if out else cpl
    changes = 0xDD5 | NT | RF | AC | ID | more
    for eflags, image in ((iopl << 12, EVERY_FLAG), (EVERY_FLAG & ~(IOPL | NT) | iopl << 12, 0)):
        p.set(eflags=eflags)
        p.frame(HANDLER, code(ring), image, 0x9000, data(ring))
        assert iret(p).eflags == eflags & ~changes | image & changes
        p.frame(HANDLER, code(ring), image & 0xFFFF, 0x9000, data(ring), size=2)
        short = changes & 0xFFFF
        assert iret(p, 2).eflags == eflags & ~short | image & short


def test_vm_in_the_image_counts_only_in_ring_0():
    for cpl in (1, 2, 3):
        p = ready(cpl)
        p.frame(HANDLER, code(cpl), 0x202 | VM)
        assert iret(p).eflags == 0x202
    p = ready(0)
    p.frame(HANDLER, code(0), 0x202 | VM)
    with pytest.raises(Unmodelled, check=lambda e: e.reason == VIRTUAL_MODE):
        iret(p)


@pytest.mark.parametrize(("words", "spoil", "vector", "error"), [
    ((HANDLER, 1, 2), put(NEW, 0), GP, 0),
    ((HANDLER, NEW | 1, 2), put(NEW, 0), GP, NEW),
    ((HANDLER, NEW | 1, 2), put(NEW, segment(DATA, 1)), GP, NEW),
    ((HANDLER, NEW | 1, 2), put(NEW, segment(CODE, 1) & ~PRESENT), NP, NEW),
    ((HANDLER, NEW | 1, 2), put(NEW, segment(CODE, 1, HANDLER - 1, marks=PRESENT)), GP, 0),
    ((HANDLER, code(3), 2, 0, 3), put(NEW, 0), GP, 0),
    ((HANDLER, code(3), 2, 0, NEW | 3), put(NEW, 0), GP, NEW),
    ((HANDLER, code(3), 2, 0, NEW | 1), put(NEW, segment(DATA, 3)), GP, NEW),
    ((HANDLER, code(3), 2, 0, NEW | 3), put(NEW, segment(DATA, 1)), GP, NEW),
    ((HANDLER, code(3), 2, 0, NEW | 3), put(NEW, segment(CODE, 3)), GP, NEW),
    ((HANDLER, code(3), 2, 0, NEW | 3), put(NEW, segment(DATA, 3) & ~PRESENT), SS, NEW),
    ((HANDLER, code(3), 2, 0, data(3)), put(code(3), segment(CODE, 3, HANDLER - 1, marks=PRESENT)), GP, 0),
])
def test_refusals_of_interrupt_returns(words, spoil, vector, error):
    p = ready(1, spoil)
    p.frame(*words)
    with faults(vector, error):
        iret(p)


@pytest.mark.parametrize(("limit", "vector"), [(TOP + 10, SS), (TOP + 11, GP), (TOP + 18, SS), (TOP + 19, None)])
def test_an_interrupt_return_reads_only_within_the_stack(limit, vector):
    """First three words (here with a null selector, if they are all that is there), then what an outer ring needs."""
    p = ready(1)
    p.set(ss=Segment(data(1), segment(DATA, 1, limit, marks=PRESENT | BIG)))
    p.frame(HANDLER, code(3) if limit > TOP + 12 else 0, 2, 0x9000, data(3))
    if vector is None:
        iret(p)
    else:
        with faults(vector, 0):
            iret(p)


@pytest.mark.parametrize(("link", "q", "vector"), [
    (0, 0, TS), (NEW, 0, TS), (LOCAL, gate(BUSY_TSS, 0, 0), TS), (NEW, gate(TSS, 0, 0), TS),
    (NEW, gate(BUSY_TSS, 0, 0, marks=0), NP)])
def test_a_nested_task_returns_to_the_one_that_the_tss_names(link, q, vector):
    """Any program can set NT; Xen's TSS names no other, so IRET ends in #TS(0)."""
    p = ready(3, put(link, q))
    p.tss = p.tss._replace(link=link)
    p.set(eflags=0x202 | NT)
    with faults(vector, link):
        iret(p)


def test_a_return_to_a_task_is_not_specified():
    p = ready(3, put(NEW, gate(BUSY_TSS, 0, 0)))
    p.tss = p.tss._replace(link=NEW)
    p.set(eflags=0x202 | NT)
    with pytest.raises(Unmodelled, check=lambda e: e.reason == TASK_SWITCH):
        iret(p)


def test_a_handler_returns_to_what_it_interrupted():
    """The frame is what IRET pops, but for the error code, in all rings and sizes."""
    for kind, size in GATES.items():
        for cpl in RINGS:
            for ring in range(cpl + 1):
                p = ready(cpl)
                p.set(eip=NEXT, eflags=0xDD7)
                after = hard(p, gate(kind, code(ring), HANDLER))
                p.registers, p.stack = after.registers, dict(after.pushed)
                back = iret(p, size)
                assert (back.cs.selector, back.ss.selector, back.eip, back.esp, back.eflags & ~IF) \
                    == (code(cpl), data(cpl), NEXT, TOP, 0xDD7 & ~IF)
