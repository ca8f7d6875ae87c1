"""Planted specifications are refuted by the obligation that the bug breaks; a conjunct that no obligation needs is idle."""
import pytest

from proofs.idle import EXPLAINED
from proofs.ledger import REFUTED
from proofs.mutants import IDLE, run, try_plant
from proofs.planted import all_plants

PLANTS = {plant.name: plant for plant in all_plants()}


class Recorder:
    """Remembers what it is told."""

    def __init__(self):
        self.told = []

    def begun(self, plant):
        self.told.append(("begun", plant.name))

    def done(self, row):
        self.told.append(("done", row.name))


@pytest.mark.parametrize(("name", "obligation"), [
    ("drop-REF-1.1", "take_ref satisfies step_is_unnoticed (FLOW-1)"),
    ("drop-PIN-1.4", "set_pinned keeps"),
    ("drop-POOL-3.4", "assign keeps"),
])
def test_a_planted_bug_is_refuted_and_its_counterexample_is_confirmed(name, obligation):
    row = try_plant(PLANTS[name])
    assert row.verdict == REFUTED
    assert row.obligation.startswith(obligation)
    assert row.confirmed
    assert row.counterexample["profile"] == row.profile


def test_a_bug_of_one_profile_is_refuted_in_that_profile():
    assert try_plant(PLANTS["old-user-base-forgotten"]).profile == "xen-4.17"


def test_what_no_obligation_needs_is_idle():
    assert try_plant(PLANTS["drop-TLB-2.2"]).verdict == IDLE


def test_rows_come_in_the_order_of_the_plants_and_each_is_told_of_twice():
    watcher = Recorder()
    names = ["drop-TLB-2.2", "drop-LDT-1.1"]
    assert [row.name for row in run([PLANTS[name] for name in names], 2, watcher)] == names
    assert sorted(watcher.told) == sorted((what, name) for name in names for what in ("begun", "done"))


@pytest.mark.long
def test_every_planted_bug_is_refuted_and_confirmed_or_explained():
    rows = run(PLANTS.values(), 2, Recorder())
    assert [row.name for row in rows if row.verdict == REFUTED and not row.confirmed] == []
    assert {row.name for row in rows if row.verdict == IDLE} == set(EXPLAINED)
    assert {row.verdict for row in rows} == {REFUTED, IDLE}
