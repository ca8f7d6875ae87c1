"""Programs that once showed a difference between the model and the real Xen: both sides agree on each of them for good.

Those whose names begin with a declared difference's show what 4.17 itself loses: they differ, and are left out of programs.
"""
from pathlib import Path

import pytest

from oracle.ground import DECLARED, Ground
from oracle.live import LeftOut, play
from oracle.program import load
from spec.abi import DOMID_SELF, Xen417
from spec.vocabulary import Hypercall, Outcome

CORPUS = sorted((Path(__file__).parent / "corpus").glob("*.jsonl"))
LOST = [path for path in CORPUS if path.stem.startswith("lost-")]
REFERENCES = [path for path in LOST if not path.stem.startswith("lost-flush")]
AGREED = [path for path in CORPUS if path not in LOST]


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


@pytest.mark.parametrize("path", REFERENCES, ids=lambda path: path.stem)
def test_what_xen_loses_is_lost(path, target, setup, machine):
    verdict = play(machine, target, setup, actions := loaded(path, setup))
    assert verdict.at == len(actions)           # the outcomes are as the model has them; the references are not
    assert {d.rule for d in verdict.differences} <= {"TYPE-1", "POOL-3", "COUNT-1", "COUNT-2", "M2P-1"}


def test_a_flush_that_xen_loses_leaves_a_stale_translation(target, setup, machine):
    (path,) = [path for path in LOST if path.stem.startswith("lost-flush")]
    verdict = play(machine, target, setup, actions := loaded(path, setup))
    assert verdict.at == len(actions) - 1
    assert (verdict.model, verdict.target) == (Outcome(0), Outcome(actions[2].value))   # new memory, and what was there before


def test_a_lost_continuation_is_made_good_by_the_next_call(target, setup, machine):
    (path,) = [path for path in LOST if path.stem.startswith("lost-continuation")]
    nothing = Hypercall(0, Xen417.MMU_UPDATE, (0, 0, 0, DOMID_SELF))
    assert play(machine, target, setup, [*loaded(path, setup), nothing]).agrees


def test_a_lost_teardown_is_not(target, setup, machine):
    (path,) = [path for path in LOST if path.stem.startswith("lost-teardown")]
    nothing = Hypercall(0, Xen417.MMU_UPDATE, (0, 0, 0, DOMID_SELF))
    assert not play(machine, target, setup, [*loaded(path, setup), nothing]).agrees
