"""The shrinker: small, of the same kind, deterministic, bounded."""
import random
from collections.abc import Sequence

import pytest

from oracle.generate import Generator
from oracle.judge import Direction, Verdict, judge
from oracle.shrink import Run, shrink, simpler_forms
from oracle.targets import ModelTarget, default_setup
from refmodel import boot
from spec.vocabulary import Action, Execute, Hypercall, Load, Store
from tests.oracle.fakes import Permissive, Strict


def bug(at: int, rule: str = "X-1.1") -> Verdict:
    return Verdict(Direction.TOO_PERMISSIVE, at, rule)


def padding(n: int) -> list[Action]:
    return [Load(1, 0xC0000000 + 4 * i) for i in range(n)]


def needs(*wanted: Action) -> Run:
    """A bug that shows at the last of these actions when all are there, in order."""
    def run(actions: Sequence[Action]) -> Verdict | None:
        rest = iter(enumerate(actions))
        at = -1
        for action in wanted:
            at = next((i for i, a in rest if a == action), -1)
            if at < 0:
                return Verdict(Direction.AGREES, len(actions))
        return bug(at)
    return run


def test_only_what_is_needed_is_left() -> None:
    a, b, c = Store(1, 0, 0), Hypercall(1, 19, (0, 0, 0)), Load(0, 0)
    program = [*padding(40), a, *padding(30), b, *padding(20), c, *padding(9)]
    found = shrink(program, bug(len(program)), needs(a, b, c))
    assert found.actions == (a, b, c)
    assert found.verdict.at == 2
    assert found.runs < 120


def test_values_are_simplified() -> None:
    def run(actions: Sequence[Action]) -> Verdict | None:
        for i, a in enumerate(actions):
            if isinstance(a, Hypercall) and len(a.args) > 1 and a.args[1] >> 12 == 0xABC and a.data:
                return bug(i)
        return Verdict(Direction.AGREES, 0)
    call = Hypercall(1, 19, (0xC0041, 0xABCE67, 3), ((0xC0002000, (1, 2, 3, 4)), (0xC0003000, (5,))))
    found = shrink([*padding(5), call], bug(5), run)
    assert found.actions == (Hypercall(1, 19, (0, 0xABC000, 0), ((0xC0003000, (0,)),)),)


def test_batches_lose_entries_together_with_their_count() -> None:
    def run(actions: Sequence[Action]) -> Verdict | None:
        for i, a in enumerate(actions):
            if not isinstance(a, Hypercall) or not a.data:
                continue
            va, words = a.data[0]
            if a.args == (va, len(words) // 2) and 0x77 in words[1::2]:
                return bug(i)
        return Verdict(Direction.AGREES, 0)
    call = Hypercall(1, 1, (0xC0002000, 3), ((0xC0002000, (4, 5, 6, 0x77, 8, 9)),))
    found = shrink([call], bug(0), run)
    assert found.actions == (Hypercall(1, 1, (0xC0002000, 1), ((0xC0002000, (0, 0x77)),)),)


@pytest.mark.parametrize(("nr", "inner", "direct"), [
    (17, (19, 0xC0041, 0x55063, 0, 0, 0, 0, 0), Hypercall(1, 19, (0, 0x55063, 0, 0, 0))),
    (13, (14, 0, 0xC0041000, 0x55063, 2, 0, 0, 0), Hypercall(1, 14, (0, 0x55063, 0, 0, 0, 0)))])
def test_a_multicall_of_one_becomes_the_call(nr: int, inner: tuple[int, ...], direct: Hypercall) -> None:
    def run(actions: Sequence[Action]) -> Verdict | None:
        for i, a in enumerate(actions):
            if isinstance(a, Hypercall) and (0x55063 in a.args or any(0x55063 in words for _, words in a.data)):
                return bug(i)
        return Verdict(Direction.AGREES, 0)
    call = Hypercall(1, nr, (0xC0002000, 2), ((0xC0002000, (1, 2, 3, 0, 0, 0, 0, 0, *inner)),))
    assert shrink([call], bug(0), run).actions == (direct,)


def test_the_kind_of_the_divergence_is_kept() -> None:
    def run(actions: Sequence[Action]) -> Verdict | None:
        if any(a == Store(1, 0, 1) for a in actions):
            return bug(len(actions) - 1)
        return bug(len(actions) - 1, "Y-1.1")
    program = [*padding(8), Store(1, 0, 1), *padding(8)]
    assert shrink(program, bug(16), run).actions == (Store(1, 0, 1),)


def test_programs_outside_the_vocabulary_are_passed_over() -> None:
    def run(actions: Sequence[Action]) -> Verdict | None:
        return bug(len(actions) - 1) if Execute(1, 0) in actions and len(actions) >= 3 else None
    assert len(shrink([*padding(8), Execute(1, 0), *padding(8)], bug(16), run).actions) == 3


def test_the_budget_is_kept() -> None:
    calls = 0

    def run(actions: Sequence[Action]) -> Verdict | None:
        nonlocal calls
        calls += 1
        return bug(len(actions) - 1) if len(actions) > 20 else Verdict(Direction.AGREES, len(actions))
    found = shrink(padding(100), bug(99), run, budget=5)
    assert calls == found.runs == 5
    assert 20 < len(found.actions) < 100


def test_simpler_forms_end() -> None:
    rng = random.Random(1)
    action: Action = Hypercall(1, 17, (0xC0002000, 2), ((0xC0002000, tuple(rng.getrandbits(32) for _ in range(16))),))
    for _ in range(1000):
        forms = list(simpler_forms(action))
        if not forms:
            break
        action = rng.choice(forms)
    assert not list(simpler_forms(action))


@pytest.mark.parametrize("kind", [Permissive, Strict])
def test_generated_programs_shrink_to_a_few_actions(kind: type[ModelTarget]) -> None:
    target = kind()
    setup = default_setup("xen-2003", target)
    machine = boot(setup)

    def run(actions: Sequence[Action]) -> Verdict | None:
        target.reset(setup)
        return judge(machine, actions, target.run(actions), target.observe())
    for seed in range(20):                      # a program that meets the bug
        program, _ = Generator(machine).program(random.Random(seed), 150)
        verdict = run(program)
        if verdict is not None and not verdict.agrees:
            break
    assert verdict is not None
    assert not verdict.agrees
    found = shrink(program, verdict, run)
    assert 1 <= len(found.actions) <= 3
    assert (found.verdict.direction, found.verdict.rule) == (verdict.direction, verdict.rule)
    assert shrink(program, verdict, run) == found, "deterministic"
