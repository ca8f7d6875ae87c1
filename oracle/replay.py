"""One program, step by step: what the model did and which rules decided, what the target did, and what changed."""
from collections.abc import Sequence
from dataclasses import dataclass

from oracle import coverage
from oracle.coverage import Coverage
from oracle.judge import Verdict, describe, explain, harness_verdict, judge, show
from oracle.targets import HarnessError
from oracle.worker import WorkerTarget
from refmodel import Machine, boot
from refmodel.state import Change
from spec.vocabulary import Action, Observation, Outcome, Setup

# Maps that only say when something happened, or serve the proofs: of no use to who reads what a step changed.
CLOCKS = frozenset({"stamp", "gone", "clock", "cr3_clock", "tlb_clock", "tlb_cr3", "walk_clock", "held", "held_type"})


@dataclass(frozen=True, slots=True)
class Step:
    """An action as model and target performed it."""
    action: Action
    model: Outcome
    target: Outcome | None                  # None: it is not known
    refused: tuple[str, ...]                # conjuncts that refused, in order
    decided: Coverage                       # all that were decided
    changes: tuple[Change, ...]             # of the model's state


@dataclass(frozen=True, slots=True)
class Replay:
    """A judged program; its steps end with the one that deviates."""
    verdict: Verdict
    steps: tuple[Step, ...]


def replay(machine: Machine, actions: Sequence[Action], outcomes: Sequence[Outcome], seen: Observation | None = None) -> Replay:
    """Judge a program and go through it, with the model taking the options that explain the target best.

    `outcomes` are the target's, `seen` is what it showed at the end.  ModelError if the program is outside the vocabulary.
    """
    verdict = judge(machine, actions, outcomes, seen)
    best, _ = explain(machine, actions, outcomes, seen)
    machine.reset()
    machine.choices.begin([option for _, _, option in best.taken])
    known = [*outcomes, *[None] * (len(actions) - len(outcomes))]
    steps = [step(machine, action, outcome) for action, outcome in zip(actions[:verdict.at + 1], known, strict=False)]
    return Replay(verdict, tuple(steps))


def step(machine: Machine, action: Action, target: Outcome | None) -> Step:
    """Perform one action on the model and see what it did."""
    start, mark = coverage.tallies(), machine.concrete.mark()
    mine = machine.step(action, target)
    return Step(action, mine, target, tuple(machine.refusals), coverage.since(start), changes_since(machine, mark))


def changes_since(machine: Machine, mark: int) -> tuple[Change, ...]:
    """What the state's maps hold otherwise than at the mark."""
    before: dict[tuple[str, tuple[int, ...]], int] = {}
    for entries, key, old in machine.concrete.log[mark:]:
        before.setdefault((entries.name, key if isinstance(key, tuple) else (key,)), int(old))
    found = []
    for (name, key), old in before.items():
        new = int(machine.concrete.maps[name][key if len(key) > 1 else key[0]])
        if new != old and name not in CLOCKS:
            found.append(Change(name, key, old, new))
    return tuple(found)


def reproduce(setup: Setup, actions: Sequence[Action], target: str = "emulator", plant: str = "") -> int:
    """Run a program on the model and a target and print both sides; 0 if they agree, 1 if not.  For reproducers."""
    held = WorkerTarget(target, plant=plant)
    try:
        held.reset(setup)
        found = replay(boot(setup), actions, held.run(actions), held.observe())
    except HarnessError as e:
        found = Replay(harness_verdict(0, str(e)), ())
    finally:
        held.close()
    for n, done in enumerate(found.steps):
        seen = show(done.action, done.target) if done.target is not None else "?"
        print(f"{n}: {describe(done.action)}\n   model: {show(done.action, done.model)}   target: {seen}")
    print(f"{found.verdict.direction}: {found.verdict.summary or 'every outcome and the state'} {found.verdict.rule}".rstrip())
    return 0 if found.verdict.agrees else 1
