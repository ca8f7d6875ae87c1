"""Planted specifications are refuted by the obligation that the bug breaks; a conjunct that no obligation needs is idle."""
import pytest

from proofs.mutants import IDLE, REFUTED, run, try_plant
from proofs.planted import all_plants

PLANTS = {plant.name: plant for plant in all_plants()}


@pytest.mark.parametrize(("name", "obligation"), [
    ("pin-keeps-the-token", "set_pinned keeps typed_references_are_counted (COUNT-1)"),
    ("effect-before-a-guard", "set_pinned leaves no trace when it is refused"),
    ("no-stamp-when-freed", "free_frame keeps"),
    ("drop-PIN-1.4", "set_pinned keeps"),
    ("drop-POOL-3.4", "assign keeps"),
])
def test_a_planted_bug_is_refuted(name, obligation):
    row = try_plant(PLANTS[name])
    assert row.verdict == REFUTED
    assert row.obligation.startswith(obligation)


def test_a_bug_of_one_profile_is_refuted_in_that_profile():
    assert try_plant(PLANTS["old-user-base-forgotten"]).profile == "xen-4.17"


def test_what_no_obligation_needs_is_idle():
    """Whose frame it is matters to what other domains see; no obligation says so yet."""
    assert try_plant(PLANTS["drop-REF-1.1"]).verdict == IDLE


@pytest.mark.long
def test_all_planted_bugs():
    """At least 40 are refuted, and none is left undecided."""
    rows = run(PLANTS.values(), 2, lambda row: None)
    verdicts = [row.verdict for row in rows]
    assert verdicts.count(REFUTED) >= 100
    assert set(verdicts) == {REFUTED, IDLE}
