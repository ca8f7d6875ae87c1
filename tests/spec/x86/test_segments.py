"""Descriptors, loads of segment registers and accesses through them, against the manual (Intel SDM vol. 3A ch. 3 and 5)."""
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spec.abi import AC, GP, NP, SS
from spec.x86.descriptors import (
    ACCESSED,
    BIG,
    CALL_GATE,
    CALL_GATE_16,
    GRANULAR,
    PRESENT,
    base_of,
    dpl_of,
    gate_offset,
    gate_parameters,
    gate_selector,
    in_limit,
    limit_of,
    type_of,
)
from spec.x86.flags import AC as ALIGNMENT_CHECK
from spec.x86.segments import Segment, check_access, check_alignment, check_fetch, keep, load_data, load_stack
from tests.spec.x86.processor import (
    CODE,
    CODE_X,
    CONFORMING,
    CONFORMING_X,
    DATA,
    DATA_DOWN,
    DATA_RO,
    EVERY_TYPE,
    FLAT,
    NEW,
    faults,
    gate,
    of_type,
    segment,
)

RINGS = range(4)
READABLE = {kind for kind in EVERY_TYPE if kind & 0x10 and (not kind & 8 or kind & 2)}
CONFORMS = {kind for kind in EVERY_TYPE if kind & 0x1C == 0x1C}


# --- formats -----------------------------------------------------------------------------------------------------------------

def test_the_fields_of_a_segment():
    q = segment(CODE, 2, 0x12345, 0xABCDEF01, PRESENT)
    assert (base_of(q), limit_of(q), dpl_of(q), type_of(q)) == (0xABCDEF01, 0x12345, 2, 0xA)
    assert limit_of(q | GRANULAR) == 0x12345FFF


def test_the_fields_of_a_gate():
    q = gate(CALL_GATE, 0x1234, 0x89ABCDEF, 1, 31)
    assert (gate_selector(q), gate_offset(q), gate_parameters(q), dpl_of(q)) == (0x1234, 0x89ABCDEF, 31, 1)
    assert gate_offset(gate(CALL_GATE_16, 0x1234, 0x89ABCDEF)) == 0xCDEF


# --- loading -----------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("selector", range(4))
def test_data_registers_take_null_selectors_and_keep_their_rpl(selector):
    assert load_data(segment(DATA, 3), selector, 3) == Segment(selector, 0)


@pytest.mark.parametrize("selector", range(4))
def test_the_stack_takes_no_null_selector(selector):
    with faults(GP, 0):
        load_stack(segment(DATA, 3), selector, 3)


def test_a_load_marks_the_descriptor_as_accessed():
    assert load_data(segment(DATA, 3), NEW | 3, 3) == Segment(NEW | 3, segment(DATA, 3) | ACCESSED)
    assert load_stack(segment(DATA, 3), NEW | 3, 3) == Segment(NEW | 3, segment(DATA, 3) | ACCESSED)


def test_beyond_the_table():
    with faults(GP, NEW):
        load_data(0, NEW | 3, 3)
    with faults(GP, NEW):
        load_stack(0, NEW | 3, 3)


@pytest.mark.parametrize("kind", EVERY_TYPE)
def test_which_types_can_be_loaded(kind):
    if kind in READABLE:
        load_data(of_type(kind), NEW | 3, 3)
    else:
        with faults(GP, NEW):
            load_data(of_type(kind), NEW | 3, 3)
    if kind & 0x1A == 0x12:
        load_stack(of_type(kind), NEW | 3, 3)
    else:
        with faults(GP, NEW):
            load_stack(of_type(kind), NEW | 3, 3)


@pytest.mark.parametrize("cpl", RINGS)
@pytest.mark.parametrize("rpl", RINGS)
@pytest.mark.parametrize("dpl", RINGS)
def test_who_can_load_what(cpl, rpl, dpl):
    for kind, allowed in ((DATA, max(cpl, rpl) <= dpl), (DATA_RO, max(cpl, rpl) <= dpl), (CODE, max(cpl, rpl) <= dpl),
                          (CONFORMING, True)):
        if allowed:
            load_data(segment(kind, dpl), NEW | rpl, cpl)
        else:
            with faults(GP, NEW):
                load_data(segment(kind, dpl), NEW | rpl, cpl)
    if cpl == rpl == dpl:
        load_stack(segment(DATA, dpl), NEW | rpl, cpl)
    else:
        with faults(GP, NEW):
            load_stack(segment(DATA, dpl), NEW | rpl, cpl)


def test_presence_is_looked_at_last():
    absent = segment(DATA, 3) & ~PRESENT
    with faults(NP, NEW):
        load_data(absent, NEW | 3, 3)
    with faults(SS, NEW):
        load_stack(absent, NEW | 3, 3)
    with faults(GP, NEW):
        load_data(segment(DATA, 2) & ~PRESENT, NEW, 3)
    with faults(GP, NEW):
        load_stack(segment(DATA, 2) & ~PRESENT, NEW | 3, 3)


@pytest.mark.parametrize("kind", sorted(READABLE))
@pytest.mark.parametrize("dpl", RINGS)
@pytest.mark.parametrize("ring", range(1, 4))
def test_a_return_outwards_keeps_what_the_ring_could_have_loaded(kind, dpl, ring):
    before = Segment(NEW, segment(kind, dpl))
    assert keep(before, ring) == (before if kind in CONFORMS or dpl >= ring else Segment(0, 0))


def test_a_return_outwards_forgets_the_rpl_of_null_selectors():
    assert keep(Segment(3, 0), 3) == Segment(0, 0)


# --- accesses ----------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("kind", "write", "allowed"), [
    (DATA, False, True), (DATA, True, True), (DATA_RO, False, True), (DATA_RO, True, False),
    (CODE, False, True), (CODE, True, False), (CODE_X, False, False), (CODE_X, True, False),
    (CONFORMING, False, True), (CONFORMING_X, False, False)])
def test_reads_and_writes_by_type(kind, write, allowed):
    if allowed:
        check_access(segment(kind, 3), 0, 4, write)
    else:
        with faults(GP, 0):
            check_access(segment(kind, 3), 0, 4, write)


def test_nothing_is_reached_through_a_null_selector():
    for write in (False, True):
        with faults(GP, 0):
            check_access(0, 0, 1, write)


def test_the_stack_has_a_fault_of_its_own():
    with faults(SS, 0):
        check_access(segment(DATA, 3, 0xFFF, marks=PRESENT), 0xFFD, 4, True, stack=True)


SHORT, WIDE = PRESENT, PRESENT | BIG
@pytest.mark.parametrize(("q", "offset", "size", "inside"), [
    (segment(DATA, 3, 0xFFF, marks=WIDE), 0xFFF, 1, True),                  # the limit is the last byte
    (segment(DATA, 3, 0xFFF, marks=WIDE), 0x1000, 1, False),
    (segment(DATA, 3, 0xFFF, marks=WIDE), 0xFFD, 4, False),                 # straddling it
    (segment(DATA, 3, 0xFFF, marks=WIDE), 0xFFC, 4, True),
    (segment(DATA, 3, 0, marks=WIDE), 0, 1, True),                          # limit 0 is one byte
    (segment(DATA, 3, 0, marks=WIDE | GRANULAR), 0xFFF, 1, True),           # or one page
    (segment(DATA, 3, 0, marks=WIDE | GRANULAR), 0x1000, 1, False),
    (segment(DATA, 3), 0xFFFFFFFC, 4, True),                                # 4 GB
    (segment(DATA, 3), 0xFFFFFFFD, 4, False),                               # wrapping around
    (segment(DATA_DOWN, 3, 0xFFF, marks=WIDE), 0xFFF, 1, False),            # expanding down: only what lies above
    (segment(DATA_DOWN, 3, 0xFFF, marks=WIDE), 0xFFE, 4, False),
    (segment(DATA_DOWN, 3, 0xFFF, marks=WIDE), 0x1000, 4, True),
    (segment(DATA_DOWN, 3, 0xFFF, marks=WIDE), 0xFFFFFFFC, 4, True),
    (segment(DATA_DOWN, 3, 0xFFF, marks=WIDE), 0xFFFFFFFE, 4, False),
    (segment(DATA_DOWN, 3, 0xFFF, marks=SHORT), 0xFFFF, 1, True),           # up to 64 KB if it is not big
    (segment(DATA_DOWN, 3, 0xFFF, marks=SHORT), 0xFFFF, 2, False),
    (segment(DATA_DOWN, 3, 0xFFF, marks=SHORT), 0x10000, 1, False),
    (segment(DATA_DOWN, 3), 0, 1, False),                                   # and nothing if the limit is 4 GB
    (segment(DATA_DOWN, 3), 0xFFFFFFFF, 1, False),
])
def test_limits(q, offset, size, inside):
    assert in_limit(q, offset, size) == inside


def test_the_big_bit_does_not_limit_what_expands_up():
    check_access(segment(DATA, 3, marks=PRESENT | GRANULAR), 0x20000, 4, True)


@given(st.booleans(), st.booleans(), st.one_of(st.integers(0, 0xFFFF), st.integers(0xFFF0, 0xFFFF), st.integers(0, 9)),
       st.sampled_from((1, 2, 4, 8)), st.data())
def test_an_access_is_allowed_exactly_if_each_of_its_bytes_is_valid(down, big, limit, size, more):
    """By the definition of §5.3: every byte, one at a time."""
    near = st.integers(max(limit - 9, 0), limit + 9)
    offset = more.draw(st.one_of(near, st.integers(0xFFF0, 0x1000F), st.integers(0, 0x1FFFF)))
    q = segment(DATA_DOWN if down else DATA, 3, limit, marks=PRESENT | (BIG if big else 0))

    def valid(byte: int) -> bool:
        return limit < byte < (1 << 32 if big else 1 << 16) if down else byte <= limit
    if all(valid(offset + n) for n in range(size)):
        check_access(q, offset, size, True)
    else:
        with faults(GP, 0):
            check_access(q, offset, size, True)


def test_fetches_come_from_code_within_its_limit():
    check_fetch(segment(CODE_X, 3, 0xFFF, marks=PRESENT), 0xFFF)
    short = segment(CODE, 3, 0xFFF, marks=PRESENT)
    for q, offset, size in ((short, 0x1000, 1), (short, 0xFFC, 5), (segment(DATA, 3, FLAT), 0, 1), (0, 0, 1)):
        with faults(GP, 0):
            check_fetch(q, offset, size)


@pytest.mark.parametrize("cpl", RINGS)
@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_only_applications_that_asked_for_it_have_their_accesses_aligned(cpl, size):
    for flags in (0, ALIGNMENT_CHECK):
        for address in range(0x1000, 0x1008):
            if cpl == 3 and flags and address % size:
                with faults(AC, 0):
                    check_alignment(cpl, flags, address, size)
            else:
                check_alignment(cpl, flags, address, size)
