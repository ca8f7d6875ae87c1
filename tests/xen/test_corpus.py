"""Programs that once showed a difference between the model and the real Xen: both sides agree on each of them for good.

Those whose names begin with a declared difference's show what 4.17 itself loses: they differ, and are left out of programs.
"""
from pathlib import Path

import pytest

from oracle.ground import DECLARED, Ground
from oracle.live import LeftOut, play
from oracle.program import load
from oracle.targets import default_setup, model_of
from spec.abi import DOMID_SELF, Xen417
from spec.vocabulary import Hypercall

CORPUS = sorted((Path(__file__).parent / "corpus").glob("*.jsonl"))
LOST = [path for path in CORPUS if path.stem.startswith("lost-")]
AGREED = [path for path in CORPUS if path not in LOST]


@pytest.fixture(scope="module")
def target(tools):
    from emulator.xen.target import XenTarget
    held = XenTarget()
    yield held
    held.close()


@pytest.fixture(scope="module")
def setup(target):
    return default_setup("xen-4.17", target, domains=1)


@pytest.fixture(scope="module")
def machine(target, setup):
    return model_of(target, setup)


def loaded(path, setup):
    """The actions of a program, which must be for the machine that is here."""
    program = load(path)
    assert program.setup.domains == setup.domains
    return program.actions


@pytest.mark.parametrize("path", AGREED, ids=lambda path: path.stem)
def test_both_sides_agree_on(path, target, setup, machine):
    verdict = play(machine, target, setup, loaded(path, setup))
    assert verdict.agrees, verdict.summary


@pytest.mark.parametrize("path", LOST, ids=lambda path: path.stem)
def test_what_xen_loses_is_left_out(path, target, setup, machine):
    (name,) = [name for name in DECLARED if path.stem.startswith(name)]
    machine.reset()
    with pytest.raises(LeftOut, match=name):
        play(machine, target, setup, loaded(path, setup), Ground(machine, *target.ground()))


@pytest.mark.parametrize("path", LOST, ids=lambda path: path.stem)
def test_what_xen_loses_is_lost(path, target, setup, machine):
    verdict = play(machine, target, setup, actions := loaded(path, setup))
    assert verdict.at == len(actions)           # the outcomes are as the model has them; the references are not
    assert {d.rule for d in verdict.differences} <= {"TYPE-1", "POOL-3", "COUNT-1", "COUNT-2", "M2P-1"}


def test_a_lost_continuation_is_made_good_by_the_next_call(target, setup, machine):
    (path,) = [path for path in LOST if path.stem.startswith("lost-continuation")]
    nothing = Hypercall(0, Xen417.MMU_UPDATE, (0, 0, 0, DOMID_SELF))
    assert play(machine, target, setup, [*loaded(path, setup), nothing]).agrees


def test_a_lost_teardown_is_not(target, setup, machine):
    (path,) = [path for path in LOST if path.stem.startswith("lost-teardown")]
    nothing = Hypercall(0, Xen417.MMU_UPDATE, (0, 0, 0, DOMID_SELF))
    assert not play(machine, target, setup, [*loaded(path, setup), nothing]).agrees
