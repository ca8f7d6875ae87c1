"""Bursts on a real machine: what they foresee is what the model does step by step, and a machine that does otherwise is found."""
import random
from dataclasses import replace

import pytest

from oracle.burst import BARRED, UNKNOWN, Burst, flush_all, play_burst, templates
from oracle.campaign import CampaignResult, run_campaign
from oracle.generate import Generator
from oracle.ground import Ground
from oracle.judge import Direction
from oracle.live import Player, play, play_generated
from oracle.runner import CampaignSpec
from oracle.targets import model_of
from refmodel import boot
from refmodel.moments import go_to, is_flushed, moment
from tests.oracle.live_fakes import Corrupts, LiveModel, opener

SMALL = CampaignSpec(profile="xen-4.17", target="LiveModel", seed=3, actions=1200, length=600, domains=1, raw=1500,
                     hang_seconds=60.0)


def run(spec: CampaignSpec) -> CampaignResult:
    return run_campaign(spec, opener=opener)


@pytest.fixture(scope="module")
def clean() -> CampaignResult:
    return run(SMALL)


def comparable(r: CampaignResult) -> CampaignResult:
    return replace(r, seconds=0.0, spec=replace(r.spec, workers=1), coverage=dict(sorted(r.coverage.items())))


@pytest.fixture
def generator() -> Generator:
    target = LiveModel()
    machine = model_of(target, target.setup(64))
    return Generator(machine, Ground(machine, 0, 0))


def begun(generator: Generator, seed: int) -> Burst:
    """A burst behind a piece of a program."""
    generator.begin(random.Random(f"burst/{seed}"))
    generator.more(100)
    stores, actions = templates(generator)
    generator.given([*stores, flush_all(generator)])
    assert is_flushed(generator.machine)
    return Burst(generator, LiveModel(), actions)


@pytest.mark.parametrize("seed", range(4))
def test_what_is_foreseen_is_what_a_run_of_the_model_gives(generator: Generator, seed: int) -> None:
    burst, machine = begun(generator, seed), generator.machine
    burst.walk(random.Random(seed).choices(range(len(burst.actions)), k=2500))
    burst.arrive()
    there, kinds = machine.observe(), {type(a) for a in burst.done()}
    machine.rewind(burst.start.mark)
    outcomes = [machine.step(action) for action in burst.done()]
    assert outcomes == burst.followed(len(burst.steps))[1]
    assert machine.compare(there) == []
    assert len(burst.moments) > 4
    assert len(kinds) > 1
    assert {o.value < 0 for o in outcomes} == {True, False}


def test_moments_are_gone_back_to_exactly(generator: Generator) -> None:
    burst, machine = begun(generator, 1), generator.machine
    burst.walk(random.Random(1).choices(range(len(burst.actions)), k=500))
    for known, n in burst.known.items():
        go_to(machine, burst.start.mark, burst.moments[n])
        assert moment(machine, burst.start.mark)[0] == known


def test_a_step_with_more_than_one_outcome_is_barred(generator: Generator) -> None:
    burst = begun(generator, 2)
    before = len(generator.machine.choices.taken)
    counts = +generator.machine.choices.counts
    burst.walk(random.Random(2).choices(range(len(burst.actions)), k=2000))
    assert len(generator.machine.choices.taken) == before
    assert +generator.machine.choices.counts == counts
    assert any(BARRED in row for row in burst.next)
    assert any(UNKNOWN in row for row in burst.next)


def test_a_shortest_way_leads_to_the_same_moment(generator: Generator) -> None:
    burst, machine = begun(generator, 3), generator.machine
    burst.walk(random.Random(3).choices(range(len(burst.actions)), k=800))
    way = burst.way(burst.at)
    assert len(way) < len(burst.steps)
    machine.rewind(burst.start.mark)
    for action in way:
        machine.step(action)
    assert burst.known[moment(machine, burst.start.mark)[0]] == burst.at


# --- in campaigns ------------------------------------------------------------------------------------------------------------

def test_a_clean_campaign_counts_them_apart(clean: CampaignResult) -> None:
    assert clean.clean, (clean.divergences, clean.model_findings, clean.harness_failures)
    assert clean.actions >= 1200
    assert clean.raw > 5000


def test_one_result_whatever_the_workers(clean: CampaignResult) -> None:
    spec = replace(SMALL, actions=34 * 20, length=20, raw=100)
    assert comparable(run(spec)) == comparable(run(replace(spec, workers=2)))


def test_a_wrong_outcome_within_a_burst_is_found() -> None:
    found = run(replace(SMALL, target="WrongOnce", distinct=1))
    (divergence,) = found.divergences
    assert divergence.verdict.direction is Direction.TOO_PERMISSIVE
    assert divergence.verdict.action == "hypercall 14"
    assert divergence.actions[-1].nr == 14      # type: ignore[union-attr]


def test_a_short_program_shows_what_is_wrong_everywhere() -> None:
    found = run(replace(SMALL, target="AlwaysWrong", distinct=1))
    (divergence,) = found.divergences
    assert len(divergence.actions) < 6
    target = opener("AlwaysWrong")
    assert isinstance(target, LiveModel)
    assert play(boot(divergence.setup), target, divergence.setup, divergence.actions).key == divergence.verdict.key


def test_a_state_that_differs_after_a_burst_is_found() -> None:
    target = Corrupts()
    generator = Generator(model_of(target, target.setup(64)))
    generator.begin(random.Random("burst/corrupts"))
    player = Player(generator.machine, target, generator.setup)
    play_generated(generator, player, 100, lambda: None, lambda: play_burst(player, generator, target, 1000))
    assert player.verdict is not None
    assert player.verdict.action == "state: word"
    assert player.verdict.at == len(player.actions)
    assert player.raw > 200


def test_a_machine_that_dies_in_a_burst_is_a_harness_failure_with_what_was_sent() -> None:
    found = run(replace(SMALL, target="DiesInABurst", actions=600))
    (failure,) = found.harness_failures
    assert "died" in failure.what
    assert len(failure.actions) > 1500
    assert found.raw > 1500
