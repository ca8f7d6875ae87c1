"""Campaigns: one result whatever the workers, and workers that die, hang, raise, or never start."""
from dataclasses import replace

import pytest

from oracle.campaign import CampaignError, CampaignResult, regenerate, run_campaign
from oracle.judge import Direction, judge
from oracle.runner import CampaignSpec, length_of, machine_of, machines
from oracle.targets import ModelTarget
from refmodel import boot
from spec.vocabulary import Transfer
from tests.oracle.fakes import is_fatal, opener

SMALL = CampaignSpec(target="ModelTarget", seed=5, actions=3210, length=40, hang_seconds=20.0)


def comparable(r: CampaignResult) -> CampaignResult:
    """The result without what the clock and the number of workers say."""
    return replace(r, seconds=0.0, spec=replace(r.spec, workers=1), coverage=dict(sorted(r.coverage.items())))


def run(spec: CampaignSpec) -> CampaignResult:
    return run_campaign(spec, opener=opener)


@pytest.fixture(scope="module")
def clean() -> CampaignResult:
    return run(SMALL)


def test_a_clean_campaign(clean: CampaignResult) -> None:
    assert clean.clean
    assert (clean.programs, clean.actions, clean.seed) == (81, 3210, 5)
    assert clean.coverage
    assert clean.looseness
    assert clean.setup is not None


def test_actions_are_counted_by_kind_and_a_focus_shifts_them(clean: CampaignResult) -> None:
    assert sum(clean.kinds.values()) == clean.actions
    focused = run(replace(SMALL, focus="transfers"))
    assert focused.clean
    assert transfers(focused) > 2 * transfers(clean) > 0


def transfers(r: CampaignResult) -> int:
    return sum(n for kind, n in r.kinds.items() if issubclass(kind, Transfer))


def test_the_last_program_is_cut_to_the_number_of_actions() -> None:
    assert [length_of(SMALL, i) for i in (0, 79, 80)] == [40, 40, 10]


@pytest.mark.parametrize("workers", [2, 3])
def test_one_result_whatever_the_workers(clean: CampaignResult, workers: int) -> None:
    assert comparable(run(replace(SMALL, workers=workers))) == comparable(clean)


def test_divergences_are_the_same_whatever_the_workers_and_can_be_repeated() -> None:
    spec = replace(SMALL, target="Permissive", actions=12000)
    one, two = run(spec), run(replace(spec, workers=2))
    assert comparable(one) == comparable(two)
    assert one.divergences
    keys = [d.verdict.key for d in one.divergences]
    assert len(set(keys)) == len(keys)
    for d in one.divergences:
        assert d.verdict.direction is Direction.TOO_PERMISSIVE
        assert len(d.actions) <= 6
        target = opener("Permissive")
        target.reset(d.setup)
        assert judge(boot(d.setup), d.actions, target.run(d.actions), target.observe()).key == d.verdict.key


def test_a_campaign_stops_when_enough_is_found() -> None:
    spec = replace(SMALL, target="Permissive", actions=200_000, distinct=1)
    found = run(spec)
    assert len(found.divergences) == 1
    assert found.actions < 200_000
    assert comparable(run(replace(spec, workers=2))) == comparable(found)


def test_by_the_clock() -> None:
    found = run(replace(SMALL, actions=None, seconds=1.0))
    assert found.clean
    assert found.actions == found.programs * 40 > 0
    assert found.seconds < 30


def test_a_campaign_needs_an_end() -> None:
    with pytest.raises(ValueError, match="number of actions or of seconds"):
        run_campaign(replace(SMALL, actions=None))


def test_progress_is_told() -> None:
    told = list[int]()
    run_campaign(SMALL, lambda r: told.append(r.actions), opener=opener)
    assert told == sorted(told)
    assert told[-1] == SMALL.actions


# --- failures ----------------------------------------------------------------------------------------------------------------

def fatal_programs(spec: CampaignSpec) -> list[int]:
    setups = machines(spec, ModelTarget())
    return [i for i in range(-(-(spec.actions or 0) // spec.length)) if is_fatal(regenerate(spec, setups, i))]


@pytest.mark.parametrize(("target", "what"), [("Dying", "died of signal 6"), ("Raising", "RuntimeError: the engine gave up")])
def test_a_worker_that_fails_is_a_harness_failure_of_its_program(target: str, what: str) -> None:
    spec = replace(SMALL, target=target, workers=2, seed=1, actions=640, length=20)
    expected = fatal_programs(spec)
    assert 2 <= len(expected) < 32
    found = run(spec)
    assert [f.index for f in found.harness_failures] == expected
    assert all(what in f.what and is_fatal(f.actions) for f in found.harness_failures)
    assert found.programs == 32, "the campaign went on"
    assert not found.divergences
    assert not found.clean


def test_a_worker_that_hangs_is_a_harness_failure_of_its_program() -> None:
    spec = replace(SMALL, target="Hanging", actions=200, length=20, hang_seconds=1.5)
    expected = fatal_programs(spec)
    assert 1 <= len(expected) <= 4, "else the test takes long: choose another seed"
    found = run(spec)
    assert [f.index for f in found.harness_failures] == expected
    assert all("hung" in f.what and is_fatal(f.actions) for f in found.harness_failures)
    assert found.programs == 10


def test_a_target_that_cannot_start_is_an_error() -> None:
    with pytest.raises(CampaignError, match="no processor"):
        run(replace(SMALL, target="Stillborn"))


def test_a_target_that_dies_as_it_starts_is_an_error() -> None:
    with pytest.raises(CampaignError, match="signal 6 before it ran a program"):
        run(replace(SMALL, target="DeadAtStart"))


# --- machines ----------------------------------------------------------------------------------------------------------------

def test_some_programs_run_on_other_machines() -> None:
    setups = machines(SMALL, ModelTarget())
    used = {machine_of(setups, i) for i in range(200)}
    assert used == set(setups)
    assert sum(machine_of(setups, i) == setups[0] for i in range(1280)) == 800
    plain = machines(replace(SMALL, varied=False), ModelTarget())
    assert plain == setups[:1]


def test_one_of_them_has_a_pool_that_is_one_frame_short() -> None:
    tight = machines(SMALL, ModelTarget())[1]
    free = tight.frames - tight.xen_frames - sum(d.pages + 1 for d in tight.domains)
    assert free == 511
