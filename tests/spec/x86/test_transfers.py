"""Far jumps, calls and returns, step by step and error by error (Intel SDM vol. 2 JMP, CALL, RET)."""
import pytest

from spec.abi import GP, NP, SS, TS
from spec.x86.descriptors import ACCESSED, BIG, BUSY_TSS, CALL_GATE, CALL_GATE_16, LDT, PRESENT, TASK_GATE, TSS, TSS_16
from spec.x86.segments import Segment, cpl_of
from spec.x86.stacks import Transfer
from spec.x86.transfers import TASK_SWITCH, Unmodelled, far_call, far_jump, far_return
from tests.spec.x86.processor import (
    CODE,
    CODE_X,
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
    both,
    code,
    data,
    faults,
    gate,
    of_type,
    put,
    segment,
)

TARGET = 0x5678
RINGS = range(4)


def jump(p: Processor, selector: int = NEW, offset: int = TARGET, size: int = 4):
    """JMP; the registers after it."""
    return far_jump(p.registers, p.table, selector, offset, size)


def call(p: Processor, selector: int = NEW, offset: int = TARGET, size: int = 4) -> Transfer:
    """CALL; what it leaves."""
    return far_call(p.registers, p.table, p.tss, selector, offset, size)


def ret(p: Processor, size: int = 4, release: int = 0):
    """RET; the registers after it."""
    return far_return(p.registers, p.table, p.read, size, release)


def ready(cpl: int = 3, *spoils) -> Processor:
    """A processor with some changes."""
    p = Processor(cpl)
    for spoil in spoils:
        spoil(p)
    return p


# --- straight to code --------------------------------------------------------------------------------------------------------

def test_a_jump_loads_cs_with_the_current_privilege_as_rpl():
    p = ready(3, put(NEW, segment(CODE, 3)))
    after = jump(p, NEW | 1)
    assert after == p.registers._replace(cs=Segment(NEW | 3, segment(CODE, 3) | ACCESSED), eip=TARGET)


def test_a_call_also_pushes_the_return_address():
    p = ready(3, put(NEW, segment(CODE, 3)))
    after = call(p, NEW | 3)
    assert after.registers == jump(p, NEW | 3)._replace(esp=TOP - 8)
    assert after.pushed == ((TOP - 4, code(3)), (TOP - 8, NEXT))


def test_a_long_operand_is_32_bits():
    p = ready(3, put(NEW, segment(CODE, 3)))
    assert jump(p, NEW | 3, 0x89ABCDEF).eip == call(p, NEW | 3, 0x89ABCDEF).registers.eip == 0x89ABCDEF


def test_a_short_operand_is_16_bits_of_address_and_pushes_short_words():
    p = ready(3, put(NEW, segment(CODE, 3)))
    p.set(eip=0x12345)
    after = call(p, NEW | 3, 0xABCD5678, 2)
    assert after.registers.eip == jump(p, NEW | 3, 0xABCD5678, 2).eip == TARGET
    assert after.pushed == ((TOP - 2, code(3)), (TOP - 4, 0x2345))


@pytest.mark.parametrize("go", [jump, call])
@pytest.mark.parametrize("cpl", RINGS)
@pytest.mark.parametrize("rpl", RINGS)
@pytest.mark.parametrize("dpl", RINGS)
def test_code_is_entered_directly_in_the_same_ring_or_if_it_conforms(go, cpl, rpl, dpl):
    for kind, allowed in ((CODE, dpl == cpl and rpl <= cpl), (CODE_X, dpl == cpl and rpl <= cpl), (CONFORMING, dpl <= cpl)):
        p = ready(cpl, put(NEW, segment(kind, dpl)))
        if allowed:
            after = go(p, NEW | rpl)
            assert cpl_of(after.registers if go is call else after) == cpl
        else:
            with faults(GP, NEW):
                go(p, NEW | rpl)


@pytest.mark.parametrize("go", [jump, call])
@pytest.mark.parametrize(("selector", "spoil", "vector", "error"), [
    (0, put(NEW, 0), GP, 0),                                                        # null
    (3, put(NEW, 0), GP, 0),
    (NEW | 3, put(NEW, 0), GP, NEW),                                                # beyond the table
    (LOCAL | 3, put(NEW, 0), GP, LOCAL),
    (NEW | 3, put(NEW, segment(DATA, 3)), GP, NEW),                                 # data
    (NEW | 3, put(NEW, segment(CODE, 3) & ~PRESENT), NP, NEW),                      # not present
    (NEW | 3, put(NEW, segment(CODE, 2) & ~PRESENT), GP, NEW),                      # privilege comes before presence
    (NEW | 3, put(NEW, segment(CODE, 3, TARGET - 1, marks=PRESENT)), GP, 0),        # beyond the limit of the segment
    (NEW | 3, put(NEW, segment(CODE, 3, 0, marks=0)), NP, NEW),                     # presence comes before the limit
])
def test_refusals_of_direct_transfers(go, selector, spoil, vector, error):
    with faults(vector, error):
        go(ready(3, spoil), selector)


def test_a_call_needs_room_for_the_return_address_before_the_limit_counts():
    p = ready(3, put(NEW, segment(CODE, 3, 0, marks=PRESENT)))
    p.set(ss=Segment(data(3), segment(DATA, 3, TOP - 5, marks=PRESENT | BIG)))
    with faults(SS, 0):
        call(p)
    p.set(ss=Segment(data(3), segment(DATA_DOWN, 3, TOP - 8, marks=PRESENT | BIG)))
    with faults(SS, 0):
        call(p)
    p.set(ss=Segment(data(3), segment(DATA_DOWN, 3, TOP - 9, marks=PRESENT | BIG)))
    with faults(GP, 0):
        call(p)


def test_a_short_stack_pointer_wraps_around_and_keeps_its_upper_half():
    p = ready(3, put(NEW, segment(CODE, 3)))
    p.set(ss=Segment(data(3), segment(DATA, 3, 0xFFFF, marks=PRESENT)), esp=0x70004)
    after = call(p, NEW | 3)
    assert [offset for offset, _ in after.pushed] == [0, 0xFFFC]
    assert after.registers.esp == 0x7FFFC
    p.set(esp=0x70009)
    assert call(p, NEW | 3).registers.esp == 0x70001
    p.set(esp=0x70003)                          # a word that straddles the end of the 64 KB
    with faults(SS, 0):
        call(p, NEW | 3)


# --- types -------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("go", [jump, call])
@pytest.mark.parametrize("kind", EVERY_TYPE)
def test_what_a_far_pointer_can_name(go, kind):
    """Code, call gates, and tasks, which are out of the specification's reach."""
    p = ready(0, put(NEW, of_type(kind)), put(OTHER, gate(TSS, 0, 0)))
    if kind in (CODE, CODE | 1, CODE_X, CODE_X | 1):            # of another ring
        p.entries[NEW] = of_type(kind, 0)
    if kind == TASK_GATE:
        p.entries[NEW] = gate(TASK_GATE, OTHER, 0)
    if kind & 0x1C == 0x1C:
        p.entries[NEW] = of_type(kind, 0)
    if kind in (TASK_GATE, TSS, TSS_16):
        with pytest.raises(Unmodelled, check=lambda e: e.reason == TASK_SWITCH):
            go(p)
    elif kind & 0x18 == 0x18 or kind in (CALL_GATE, CALL_GATE_16):
        go(p)
    else:
        with faults(GP, NEW):
            go(p)


@pytest.mark.parametrize("go", [jump, call])
@pytest.mark.parametrize(("selector", "spoil", "vector", "error"), [
    # a TSS
    (NEW, put(NEW, gate(BUSY_TSS, 0, 0)), GP, NEW),                                 # of a task that runs
    (NEW, put(NEW, gate(TSS, 0, 0, 2)), GP, NEW),                                   # not for this ring
    (NEW | 3, put(NEW, gate(TSS, 0, 0, 2)), GP, NEW),
    (LOCAL, put(LOCAL, gate(TSS, 0, 0)), GP, LOCAL),                                # in the LDT
    (NEW, put(NEW, gate(TSS, 0, 0, marks=0)), NP, NEW),
    (NEW, put(NEW, gate(LDT, 0, 0)), GP, NEW),
    # a task gate
    (NEW, put(NEW, gate(TASK_GATE, OTHER, 0, 2)), GP, NEW),
    (NEW, put(NEW, gate(TASK_GATE, OTHER, 0, marks=0)), NP, NEW),
    (NEW, put(NEW, gate(TASK_GATE, 0, 0)), GP, 0),
    (NEW, put(NEW, gate(TASK_GATE, OTHER, 0)), GP, OTHER),                          # to nothing
    (NEW, both(put(NEW, gate(TASK_GATE, LOCAL, 0)), put(LOCAL, gate(TSS, 0, 0))), GP, LOCAL),
    (NEW, both(put(NEW, gate(TASK_GATE, OTHER, 0)), put(OTHER, gate(BUSY_TSS, 0, 0))), GP, OTHER),
    (NEW, both(put(NEW, gate(TASK_GATE, OTHER | 3, 0)), put(OTHER, gate(TSS, 0, 0, marks=0))), NP, OTHER),
])
def test_tasks_after_all_the_checks_that_come_before(go, selector, spoil, vector, error):
    with faults(vector, error):
        go(ready(3, spoil), selector)


@pytest.mark.parametrize("go", [jump, call])
def test_a_task_gate_may_lie_in_the_ldt(go):
    p = ready(3, put(LOCAL, gate(TASK_GATE, OTHER, 0)), put(OTHER, gate(TSS, 0, 0, 0)))
    with pytest.raises(Unmodelled) as caught:
        go(p, LOCAL | 3)
    assert (caught.value.reason, caught.value.vector in range(256)) == (TASK_SWITCH, False)


# --- call gates --------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("go", [jump, call])
@pytest.mark.parametrize("cpl", RINGS)
@pytest.mark.parametrize("rpl", RINGS)
@pytest.mark.parametrize("dpl", RINGS)
def test_a_gate_is_open_to_rings_within_its_privilege(go, cpl, rpl, dpl):
    p = ready(cpl, put(NEW, gate(CALL_GATE, code(cpl), TARGET, dpl)))
    if max(cpl, rpl) <= dpl:
        go(p, NEW | rpl)
    else:
        with faults(GP, NEW):
            go(p, NEW | rpl)


@pytest.mark.parametrize("cpl", RINGS)
@pytest.mark.parametrize("dpl", RINGS)
@pytest.mark.parametrize("rpl", RINGS)
def test_a_gate_leads_a_jump_to_the_same_ring_and_a_call_inwards(cpl, dpl, rpl):
    """The RPL of the selector in a gate does not count."""
    for kind in (CODE, CONFORMING):
        p = ready(cpl, put(NEW, gate(CALL_GATE, OTHER | rpl, TARGET)), put(OTHER, segment(kind, dpl)))
        if dpl > cpl:
            with faults(GP, OTHER):
                jump(p)
            with faults(GP, OTHER):
                call(p)
            continue
        ring = cpl if kind == CONFORMING else dpl
        after = call(p).registers
        assert (after.cs, after.eip) == (Segment(OTHER | ring, segment(kind, dpl) | ACCESSED), TARGET)
        assert after.ss.selector == data(ring)
        if ring == cpl:
            assert jump(p) == p.registers._replace(cs=after.cs, eip=TARGET)
        else:
            with faults(GP, OTHER):
                jump(p)


@pytest.mark.parametrize("go", [jump, call])
@pytest.mark.parametrize(("spoil", "vector", "error"), [
    (put(NEW, gate(CALL_GATE, code(3), TARGET, marks=0)), NP, NEW),                 # the gate is not present
    (put(NEW, gate(CALL_GATE, 3, TARGET)), GP, 0),                                  # null in the gate
    (put(NEW, gate(CALL_GATE, OTHER | 3, TARGET)), GP, OTHER),                      # beyond the table
    (put(NEW, gate(CALL_GATE, data(3), TARGET)), GP, data(3) & ~3),                 # no code
    (put(NEW, gate(CALL_GATE, NEW, TARGET)), GP, NEW),                              # a gate again
    (both(put(NEW, gate(CALL_GATE, code(3), TARGET)), absent(code(3))), NP, code(3) & ~3),
    (both(put(NEW, gate(CALL_GATE, OTHER, TARGET)), put(OTHER, segment(CODE, 3, TARGET - 1, marks=PRESENT))), GP, 0),
    (both(put(NEW, gate(CALL_GATE_16, OTHER, TARGET | 0x10000)), put(OTHER, segment(CODE, 3, TARGET - 1, marks=PRESENT))), GP, 0),
])
def test_refusals_of_gates(go, spoil, vector, error):
    with faults(vector, error):
        go(ready(3, spoil))


@pytest.mark.parametrize(("kind", "size"), [(CALL_GATE, 4), (CALL_GATE_16, 2)])
@pytest.mark.parametrize("ring", range(3))
def test_a_call_inwards_takes_the_stack_of_the_tss_and_pushes_the_old_one(kind, size, ring):
    p = ready(3, put(NEW, gate(kind, code(ring), TARGET, parameters=3)))
    p.set(eip=0x12345678, esp=0x23456789)
    after, top = call(p), TOP + 0x1000 * ring
    words = (data(3), 0x23456789, code(3), 0x12345678)
    places = [top - size, top - 2 * size, top - 6 * size, top - 7 * size]           # in the middle, the parameters
    assert dict(after.pushed) == {at: word & (1 << 8 * size) - 1 for at, word in zip(places, words, strict=True)}
    assert (after.size, after.copied, after.source, after.target) == (size, 3, 0x23456789, top - 5 * size)
    assert (after.registers.ss.selector, after.registers.esp) == (data(ring), top - 7 * size)
    assert (cpl_of(after.registers), after.registers.ds, after.registers.eflags) == (ring, p.registers.ds, p.registers.eflags)


def test_a_gate_in_the_same_ring_pushes_no_stack_and_copies_nothing():
    p = ready(3, put(NEW, gate(CALL_GATE_16, code(3), TARGET, parameters=3)))
    after = call(p)
    assert (after.pushed, after.copied) == (((TOP - 2, code(3)), (TOP - 4, NEXT)), 0)
    assert after.registers.esp == TOP - 4


GATE = put(NEW, gate(CALL_GATE, code(1), TARGET, parameters=2))         # to ring 1: pushes six words


def stack_of_ring_1(selector: int, q: int):
    """Another stack for ring 1."""
    return both(put(selector, q), lambda p: setattr(p, "tss", p.tss._replace(ss1=selector)))


def size_of_tss(limit: int):
    """Another limit of the TSS."""
    return lambda p: setattr(p, "tss", p.tss._replace(limit=limit))


@pytest.mark.parametrize(("spoil", "vector", "error"), [
    (size_of_tss(16), TS, TSS_SELECTOR),                                            # SS1 lies at 16 and 17
    (lambda p: setattr(p, "tss", p.tss._replace(ss1=1)), TS, 0),                    # null
    (stack_of_ring_1(OTHER | 1, 0), TS, OTHER),                                     # beyond the table
    (stack_of_ring_1(OTHER | 0, segment(DATA, 1)), TS, OTHER),                      # RPL
    (stack_of_ring_1(OTHER | 1, segment(DATA, 0)), TS, OTHER),                      # DPL
    (stack_of_ring_1(OTHER | 1, segment(DATA_RO, 1)), TS, OTHER),                   # not writable
    (stack_of_ring_1(OTHER | 1, segment(CODE, 1)), TS, OTHER),                      # no data
    (stack_of_ring_1(OTHER | 1, segment(DATA, 1) & ~PRESENT), SS, OTHER),           # not present
    (stack_of_ring_1(OTHER | 1, segment(DATA, 1, TOP + 0x1000 - 5, marks=PRESENT | BIG)), SS, OTHER),       # no room at the top
    (stack_of_ring_1(OTHER | 1, segment(DATA_DOWN, 1, TOP + 0x1000 - 8, marks=PRESENT | BIG)), SS, OTHER),  # for the old pointer
    (stack_of_ring_1(OTHER | 1, segment(DATA_DOWN, 1, TOP + 0x1000 - 16, marks=PRESENT | BIG)), SS, OTHER),     # the parameters
    (stack_of_ring_1(OTHER | 1, segment(DATA_DOWN, 1, TOP + 0x1000 - 24, marks=PRESENT | BIG)), SS, OTHER),     # the address
    (put(code(1), segment(CODE, 1, TARGET - 1, marks=PRESENT)), GP, 0),             # beyond the limit of the code
    (lambda p: p.set(ss=Segment(data(3), segment(DATA, 3, TOP + 6, marks=PRESENT | BIG))), SS, 0),  # the parameters aren't there
])
def test_refusals_of_a_call_inwards(spoil, vector, error):
    with faults(vector, error):
        call(ready(3, GATE, spoil))


def test_parameters_that_wrap_around_need_room_of_their_own():
    """The frame of six words lies at 8, 4, 0, FFFC, FFF8, FFF4: the second parameter is the one beyond the limit."""
    p = ready(3, GATE, lambda p: setattr(p, "tss", p.tss._replace(esp1=12)))
    stack_of_ring_1(OTHER | 1, segment(DATA, 1, 0xFFFF, marks=PRESENT))(p)
    assert [at for at, _ in call(p).pushed] == [8, 4, 0xFFF8, 0xFFF4]
    stack_of_ring_1(OTHER | 1, segment(DATA, 1, 0xFFFB, marks=PRESENT))(p)
    with faults(SS, OTHER):
        call(p)


def test_the_last_room_is_enough():
    call(ready(3, GATE, size_of_tss(17),
               stack_of_ring_1(OTHER | 1, segment(DATA_DOWN, 1, TOP + 0x1000 - 25, marks=PRESENT | BIG)),
               lambda p: p.set(ss=Segment(data(3), segment(DATA, 3, TOP + 7, marks=PRESENT | BIG)))))


# --- returns -----------------------------------------------------------------------------------------------------------------

def test_a_return_in_the_same_ring_pops_the_address_and_drops_the_parameters():
    p = ready(3)
    p.frame(TARGET, 0xABCD0000 | code(3))
    assert ret(p, release=6) == p.registers._replace(eip=TARGET, esp=TOP + 14)


def test_a_short_return():
    p = ready(3)
    p.frame(TARGET, code(3), size=2)
    assert ret(p, 2) == p.registers._replace(eip=TARGET, esp=TOP + 4)


@pytest.mark.parametrize("cpl", RINGS)
@pytest.mark.parametrize("rpl", RINGS)
@pytest.mark.parametrize("dpl", RINGS)
def test_a_return_leads_to_the_ring_of_its_rpl_and_never_inwards(cpl, rpl, dpl):
    for kind, fits in ((CODE, dpl == rpl), (CONFORMING, dpl <= rpl)):
        p = ready(cpl, put(NEW, segment(kind, dpl)))
        p.frame(TARGET, NEW | rpl, 0x9000, data(rpl))
        if rpl >= cpl and fits:
            after = ret(p)
            assert (cpl_of(after), after.cs.selector, after.eip) == (rpl, NEW | rpl, TARGET)
            assert (after.ss.selector, after.esp) == ((data(cpl), TOP + 8) if rpl == cpl else (data(rpl), 0x9000))
        else:
            with faults(GP, NEW):
                ret(p)


def test_a_return_outwards_drops_the_parameters_of_both_stacks():
    p = ready(1)
    p.frame(TARGET, code(3))
    p.frame(0x9000, data(3), at=8 + 12)
    assert ret(p, release=12).esp == 0x9000 + 12


def test_a_return_outwards_nulls_the_data_segments_of_inner_rings():
    p = ready(1, put(NEW, segment(CONFORMING, 0)))
    inner, outer, conforming = (Segment(s, p.loaded(s)) for s in (data(1), data(3), NEW))
    p.set(ds=inner, es=outer, fs=conforming, gs=Segment(2, 0))
    p.frame(TARGET, code(3), 0x9000, data(3))
    after = ret(p)
    assert (after.ds, after.es, after.fs, after.gs) == (Segment(0, 0), outer, conforming, Segment(0, 0))
    p.frame(TARGET, code(1))
    assert ret(p).ds == inner


def test_a_return_to_a_short_stack_keeps_the_upper_half_of_esp():
    p = ready(1, put(NEW, segment(DATA, 3, marks=PRESENT)))
    p.stack = {0x48001: TARGET, 0x48005: code(3), 0x48009: 0x12349000, 0x4800D: NEW | 3}
    p.set(esp=0x48001)
    assert ret(p).esp == 0x49000


@pytest.mark.parametrize(("words", "spoil", "vector", "error"), [
    ((TARGET, 1), put(NEW, 0), GP, 0),                                              # null
    ((TARGET, NEW | 1), put(NEW, 0), GP, NEW),                                      # beyond the table
    ((TARGET, NEW | 1), put(NEW, segment(DATA, 1)), GP, NEW),                       # no code
    ((TARGET, NEW | 1), put(NEW, gate(CALL_GATE, code(1), TARGET, 1)), GP, NEW),    # a gate
    ((TARGET, NEW | 1), put(NEW, segment(CODE, 1) & ~PRESENT), NP, NEW),            # not present
    ((TARGET, NEW | 0), put(NEW, segment(CODE, 0) & ~PRESENT), GP, NEW),            # privilege comes before presence
    ((TARGET, NEW | 1), put(NEW, segment(CODE, 1, TARGET - 1, marks=PRESENT)), GP, 0),      # beyond the limit of the segment
    # outwards
    ((TARGET, code(3), 0, 3), put(NEW, 0), GP, 0),                                  # no stack
    ((TARGET, code(3), 0, NEW | 3), put(NEW, 0), GP, NEW),                          # beyond the table
    ((TARGET, code(3), 0, NEW | 2), put(NEW, segment(DATA, 3)), GP, NEW),           # RPL
    ((TARGET, code(3), 0, NEW | 3), put(NEW, segment(DATA, 2)), GP, NEW),           # DPL
    ((TARGET, code(3), 0, NEW | 3), put(NEW, segment(DATA_RO, 3)), GP, NEW),        # not writable
    ((TARGET, code(3), 0, NEW | 3), put(NEW, segment(DATA, 3) & ~PRESENT), SS, NEW),        # not present
    ((TARGET, code(3), 0, data(3)), put(code(3), segment(CODE, 3, TARGET - 1, marks=PRESENT)), GP, 0),
    ((TARGET, code(3), 0, 3), put(code(3), segment(CODE, 3, TARGET - 1, marks=PRESENT)), GP, 0),    # the stack comes first
])
def test_refusals_of_returns(words, spoil, vector, error):
    p = ready(1, spoil)
    p.frame(*words)
    with faults(vector, error):
        ret(p)


@pytest.mark.parametrize(("limit", "vector"), [(TOP + 6, SS), (TOP + 7, GP), (TOP + 14, SS), (TOP + 15, None)])
def test_a_return_reads_only_within_the_stack(limit, vector):
    """First the address (here a null selector, if it is all that is there), then what an outer ring needs."""
    p = ready(1)
    p.set(ss=Segment(data(1), segment(DATA, 1, limit, marks=PRESENT | BIG)))
    p.frame(TARGET, code(3) if limit > TOP + 8 else 0, 0x9000, data(3))
    if vector is None:
        ret(p)
    else:
        with faults(vector, 0):
            ret(p)
