"""The generator: its programs are in the vocabulary, succeed often enough, reach what they aim at, and keep the model sound."""
import random
from collections import Counter
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oracle import coverage
from oracle.generate import MOVES, Generator
from oracle.program import Program, dumps, loads
from oracle.targets import ModelTarget, default_setup
from refmodel import audit, boot
from spec.vocabulary import Action, Hypercall, Outcome, Setup

SHAPES = [(2, 64, 2048), (3, 16, 2048), (1, 1100, 4096)]
PROFILES = ["xen-2003", "xen-4.17"]
HYPERCALLS = {"xen-2003": {1, 16, 17, 19}, "xen-4.17": {1, 12, 13, 14, 22, 26}}


def setup_of(profile: str, domains: int = 2, pages: int = 64, frames: int = 2048) -> Setup:
    return default_setup(profile, ModelTarget(), domains, pages, frames)


def programs(setup: Setup, n: int, length: int = 150) -> Iterator[tuple[Generator, list[Action], list[Outcome]]]:
    generator = Generator(boot(setup))
    for i in range(n):
        yield generator, *generator.program(random.Random(f"test/{i}"), length)


def assert_sound(generator: Generator) -> None:
    """Every invariant holds, and no reference is in flight."""
    assert audit(generator.machine.concrete) == []
    s = generator.machine.s
    assert not any(s.held.values())
    assert not any(s.held_type.values())


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("shape", SHAPES)
def test_programs_keep_the_model_sound(profile: str, shape: tuple[int, int, int]) -> None:
    for n, (generator, actions, outcomes) in enumerate(programs(setup_of(profile, *shape), 40)):
        assert len(actions) == len(outcomes) == 150
        if n % 10 == 0:
            assert_sound(generator)


@pytest.mark.parametrize("profile", PROFILES)
@given(rng=st.randoms(use_true_random=False))
@settings(max_examples=25)
def test_under_hypothesis(profile: str, rng: random.Random) -> None:
    generator = Generator(boot(setup_of(profile)))
    actions, _ = generator.program(rng, 12)
    assert len(actions) == 12
    assert_sound(generator)


@pytest.mark.parametrize("profile", PROFILES)
def test_a_program_depends_on_its_random_numbers_alone(profile: str) -> None:
    one, two = Generator(boot(setup_of(profile))), Generator(boot(setup_of(profile)))
    first = one.program(random.Random(7), 100)
    one.program(random.Random(8), 100)
    assert one.program(random.Random(7), 100) == first == two.program(random.Random(7), 100)


@pytest.mark.parametrize("profile", PROFILES)
def test_programs_can_be_written_and_read(profile: str) -> None:
    setup = setup_of(profile)
    for _, actions, _ in programs(setup, 20):
        assert loads(dumps(Program(setup, actions))).actions == actions


@pytest.mark.parametrize("profile", PROFILES)
def test_hypercalls_of_every_kind_mostly_succeed(profile: str) -> None:
    made, done = Counter[int](), Counter[int]()
    known = HYPERCALLS[profile]
    for _, actions, outcomes in programs(setup_of(profile), 150):
        for action, outcome in zip(actions, outcomes, strict=True):
            if isinstance(action, Hypercall) and action.nr in known:
                made[action.nr] += 1
                done[action.nr] += outcome.vector < 0 <= outcome.value
    assert set(made) == known
    for nr, n in made.items():
        assert n > 100
        assert 0.6 <= done[nr] / n <= 0.95, nr


@pytest.mark.parametrize("profile", PROFILES)
def test_every_move_makes_actions(profile: str) -> None:
    generator = Generator(boot(setup_of(profile)))
    generator.program(random.Random(1), 60)
    for _, fn in MOVES[profile]:
        assert fn.__doc__, fn.__name__
        for seed in range(20):
            rng = random.Random(seed)
            generator.random, generator.bits = rng.random, rng.getrandbits
            assert len(fn(generator)) > 0, fn.__name__


@pytest.mark.parametrize("profile", PROFILES)
def test_faults_and_choices_are_met(profile: str) -> None:
    faults, names = Counter[tuple[int, int]](), Counter[str]()
    for generator, _, outcomes in programs(setup_of(profile), 100):
        faults.update((o.vector, o.error) for o in outcomes if o.vector >= 0)
        names.update(name for name, _, _ in generator.machine.choices.taken)
    as_kernel = {(14, 0), (14, 2), (14, 3)} if profile == "xen-2003" else {(14, 20), (14, 21)}
    assert as_kernel | {(14, 4), (14, 6), (14, 7), (13, 0)} <= set(faults)
    assert names["stale-translation"] > 20


SHARES = {"xen-2003": (((2, 64, 2048), 1000), ((3, 16, 2048), 100), ((2, 64, 16 + 2 * 65 + 511), 200)),
          "xen-4.17": (((2, 64, 2048), 700), ((3, 16, 2048), 100), ((2, 64, 16 + 2 * 65 + 1), 100))}


@pytest.mark.parametrize("profile", PROFILES)
def test_what_programs_do_not_decide_is_excused(profile: str) -> None:
    """Every conjunct is decided both ways, or is in `unreached.json` with the reason; and all that it says is so."""
    start = coverage.tallies()
    for shape, n in SHARES[profile]:
        for _ in programs(setup_of(profile, *shape), n):
            pass
    reached = coverage.since(start)
    assert coverage.holes(reached, profile) == []
    assert coverage.stale_excuses(reached, profile) == []


def test_excuses_have_reasons() -> None:
    for excuse in coverage.unreached_list():
        assert excuse.way in (coverage.TRUE, coverage.FALSE)
        assert len(excuse.reason) > 10


@pytest.mark.parametrize(("profile", "pages"), [("xen-2003", 6), ("xen-4.17", 8)])
def test_the_smallest_domain_has_programs_too(profile: str, pages: int) -> None:
    for _, actions, outcomes in programs(setup_of(profile, 1, pages, 256), 150):
        assert len(actions) == len(outcomes) > 0
