"""Bursts on a real machine: what they foresee is what the model does step by step, and a machine that does otherwise is found."""
import random
from dataclasses import replace

import pytest

from oracle.burst import BARRED, UNKNOWN, Burst, play_burst, prepare
from oracle.campaign import CampaignResult, run_campaign
from oracle.generate import FOCUSES, Generator
from oracle.ground import Ground
from oracle.judge import Direction
from oracle.live import Player, play, play_generated
from oracle.report import divergence_text
from oracle.runner import CampaignSpec
from oracle.targets import model_of
from refmodel import boot
from refmodel.moments import go_to, is_flushed, moment
from spec.abi import Xen417
from spec.vocabulary import Action, Hypercall, Load, Observation, Outcome, Setup, Store, SystemCall
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


def begun(generator: Generator, seed: int, about: str = "memory") -> Burst:
    """A burst behind a piece of a program."""
    target = LiveModel()
    generator.begin(random.Random(f"burst/{seed}"))
    player = Player(generator.machine, target, target.setup(64))
    player.finish(*generator.more(100))
    actions = prepare(player, generator, about)
    assert player.verdict is None
    assert is_flushed(generator.machine)
    return Burst(generator, target, actions)


@pytest.mark.parametrize("about", FOCUSES)
@pytest.mark.parametrize("seed", range(4))
def test_what_is_foreseen_is_what_a_run_of_the_model_gives(generator: Generator, seed: int, about: str) -> None:
    burst, machine = begun(generator, seed, about), generator.machine
    burst.walk(random.Random(seed).choices(range(len(burst.actions)), k=2500))
    burst.arrive()
    there, kinds = machine.observe(), {type(a) for a in burst.done()}
    machine.rewind(burst.start.mark)
    outcomes = [machine.step(action) for action in burst.done()]
    assert outcomes == burst.followed(len(burst.steps))[1]
    assert machine.compare(there) == []
    assert len(burst.moments) > 4
    assert len(kinds) > 1
    if about == "memory":
        assert {o.value < 0 for o in outcomes} == {True, False}
    if about == "transfers":
        assert len({o.landing for o in outcomes}) > 10
        assert {o.landing[0] & 3 for o in outcomes if o.landing} == {3}


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
    way, outcomes = burst.way(burst.at)
    assert len(way) < len(burst.steps)
    machine.rewind(burst.start.mark)
    assert [machine.step(action) for action in way] == outcomes
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
    assert not divergence.repeats               # a replay has no bursts, and this machine is right outside of them
    assert "run again, it showed nothing" in divergence_text(divergence, []).plain


def test_a_wrong_landing_within_a_burst_is_found() -> None:
    found = run(replace(SMALL, target="LandsElsewhere", focus="transfers", distinct=1))
    (divergence,) = found.divergences
    assert divergence.verdict.action == "system call"
    assert isinstance(divergence.actions[-1], SystemCall)
    assert found.kinds[SystemCall] > 0


def test_a_short_program_shows_what_is_wrong_everywhere() -> None:
    found = run(replace(SMALL, target="AlwaysWrong", distinct=1))
    (divergence,) = found.divergences
    assert len(divergence.actions) < 6
    assert divergence.repeats
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


class Shy(LiveModel):
    """It stores where its model would not have, and does not show the frames concerned."""
    shown: tuple[int, ...] = ()

    def reset(self, setup: Setup) -> None:
        """The first choice of this run is the unlikely one."""
        super().reset(setup)
        self._machine().choices.begin((1,))

    def observe(self) -> Observation:
        """Only some frames."""
        seen = super().observe()
        pages = bytes(seen.memory)
        return replace(seen, rows=self.shown, memory=b"".join(pages[4096 * (f - 16):4096 * (f - 15)] for f in self.shown))


@pytest.mark.parametrize("again", [True, False])
def test_what_was_not_shown_before_a_burst_is_explained_after_it(again: bool) -> None:
    target, here = Shy(), [Xen417.BASE + 4096 * page for page in range(64)]
    machine = model_of(target, setup := target.setup(64))
    first = setup.domains[0].first
    target.shown = tuple(f for f in range(first, first + 65) if f not in (first + 30, first + 31))
    player = Player(machine, target, setup)

    def remap(page: int, flags: int) -> Action:
        return Hypercall(0, Xen417.UPDATE_VA_MAPPING, (here[40], (first + page) << 12 | 0x67, flags))

    def finish(*actions: Action) -> None:
        player.finish(actions, [machine.step(a) for a in actions])

    flush = Xen417.UVMF_INVLPG
    finish(remap(30, flush), Store(0, here[40], 1), remap(31, 0), Store(0, here[40], 7), remap(30, flush))
    assert player.verdict is None
    player.jump([way := Load(0, here[3])], [machine.step(way)], [])
    if not again:
        player.earlier[1] = Outcome(5)      # if the machine did what no choice explains, nor does it explain this
    finish(Load(0, here[30]))
    assert (player.verdict is None) == again
