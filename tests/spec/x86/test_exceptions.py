"""Error codes and classes of exceptions, and pairs of them (Intel SDM vol. 3A §6.13, tables 6-1, 6-4, 6-5)."""
import pytest

from spec.abi import AC, BP, BR, DB, DE, DF, GP, MC, MF, NM, NMI, NP, OF, PF, SS, TS, UD, XM
from spec.x86.exceptions import SHUTDOWN, delivered, has_error_code, is_fault

BENIGN = (DB, NMI, BP, OF, BR, UD, NM, MF, AC, MC, XM, 0x80)
CONTRIBUTORY = (DE, TS, NP, SS, GP)


def test_which_push_an_error_code():
    assert {v for v in range(256) if has_error_code(v)} == {DF, TS, NP, SS, GP, PF, AC}


def test_which_are_faults():
    assert {v for v in range(20) if v not in (9, 15) and is_fault(v)} == {DE, BR, UD, NM, TS, NP, SS, GP, PF, MF, AC, XM}


@pytest.mark.parametrize(("first", "second", "becomes"), [
    *((a, b, b) for a in BENIGN for b in (*BENIGN, *CONTRIBUTORY, PF)),
    *((a, b, b) for a in (*CONTRIBUTORY, PF, DF) for b in BENIGN),
    *((a, b, DF) for a in CONTRIBUTORY for b in CONTRIBUTORY),
    *((a, PF, PF) for a in CONTRIBUTORY),
    *((PF, b, DF) for b in (*CONTRIBUTORY, PF)),
    *((DF, b, SHUTDOWN) for b in (*CONTRIBUTORY, PF)),
])
def test_pairs(first, second, becomes):
    assert delivered(first, second) == becomes
