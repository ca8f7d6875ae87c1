"""What each ring may execute, and what it can change of EFLAGS (Intel SDM vol. 3A §5.9; vol. 2 POPF, CLI, STI)."""
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spec.abi import GP
from spec.x86.flags import ALL, IF, IOPL, NT, RF, VIF, VIP, VM, handled, iopl_of, popped, returned
from spec.x86.privilege import change_if, check_port, check_ring_0
from tests.spec.x86.processor import faults

RINGS = range(4)
FLAGS = st.integers(0, ALL)


def test_ring_0():
    check_ring_0(0)
    for cpl in (1, 2, 3):
        with faults(GP, 0):
            check_ring_0(cpl)


@pytest.mark.parametrize("cpl", RINGS)
@pytest.mark.parametrize("iopl", RINGS)
def test_iopl(cpl, iopl):
    """CLI, STI and ports fault beyond it (but for ports that the TSS maps); POPF ignores IF in silence."""
    flags = iopl << 12 | 2
    check_port(cpl, flags, True)
    if cpl <= iopl:
        check_port(cpl, flags, False)
        assert change_if(cpl, flags, True) == flags | IF
        assert change_if(cpl, flags | IF, False) == flags
    else:
        for attempt in (lambda: check_port(cpl, flags, False), lambda: change_if(cpl, flags, True),
                        lambda: change_if(cpl, flags, False)):
            with faults(GP, 0):
                attempt()
    assert popped(flags, IF, cpl, True) & IF == (IF if cpl <= iopl else 0)
    assert iopl_of(popped(flags, IOPL, cpl, True)) == (3 if cpl == 0 else iopl)


@given(FLAGS, FLAGS, st.integers(1, 3), st.booleans())
def test_no_outer_ring_gets_more_rights_over_interrupts_and_ports(eflags, value, cpl, wide):
    for after in (popped(eflags, value, cpl, wide), returned(eflags, value, cpl, wide)):
        assert iopl_of(after) == iopl_of(eflags)
        assert after & (VM | VIF | VIP) == eflags & (VM | VIF | VIP)
        if cpl > iopl_of(eflags):
            assert after & IF == eflags & IF


@given(FLAGS, FLAGS, st.integers(0, 3))
def test_short_flags_leave_the_upper_half_but_for_rf(eflags, value, cpl):
    assert popped(eflags, value, cpl, False) >> 16 == (eflags & ~RF) >> 16
    assert returned(eflags, value, cpl, False) >> 16 == eflags >> 16


@given(FLAGS, st.booleans())
def test_a_handler_starts_without_traces_of_what_it_interrupted(eflags, masks):
    after = handled(eflags, masks)
    assert after & (1 << 8 | NT | RF | VM) == 0
    assert after & IF == (0 if masks else eflags & IF)
    assert iopl_of(after) == iopl_of(eflags)
