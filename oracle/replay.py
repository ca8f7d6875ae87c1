"""One program, step by step: what the model did and which rules decided, what the target did, and what changed."""
from collections.abc import Sequence
from dataclasses import dataclass

from oracle import coverage
from oracle.autopsy import autopsy
from oracle.coverage import Coverage
from oracle.judge import Direction, Start, Verdict, describe, explain, harness_verdict, judge, show, start_over
from oracle.live import Player, foreseen, pieces
from oracle.program import Program
from oracle.targets import HarnessError, RealTarget, Target, model_of
from oracle.worker import held_target
from refmodel import Machine
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
    steps, _ = told(machine, actions, outcomes, seen)
    return Replay(verdict, tuple(steps[:verdict.at + 1]))


def told(machine: Machine, actions: Sequence[Action], outcomes: Sequence[Outcome], seen: Observation | None = None,
         start: Start | None = None) -> tuple[list[Step], bool]:
    """Each step from boot, or from a moment of the run, up to the first that nothing explains; all is explained."""
    with coverage.uncounted():
        best, _ = explain(machine, actions, outcomes, seen, start=start)
    start_over(machine, start, [option for _, _, option in best.taken])
    known = [*outcomes, *[None] * (len(actions) - len(outcomes))]
    return [step(machine, *each) for each in zip(actions[:best.explained + 1], known, strict=False)], best.complete


def replay_on(machine: Machine, target: Target, program: Program) -> Replay:
    """Run a program on a target and judge it by the target's model; what the target did is entered in the program.

    If the target fails in the middle, that is the verdict, unless the program is outside the vocabulary: then ModelError.
    """
    program.outcomes = program.observation = None
    if isinstance(target, RealTarget):
        return replay_live(machine, target, program)
    target.reset(program.setup)
    try:
        program.outcomes, program.observation = target.run(program.actions), target.observe()
    except HarnessError as e:
        for action in program.actions:
            machine.step(action, Outcome())
        return Replay(harness_verdict(0, str(e)), ())
    return replay(machine, program.actions, program.outcomes, program.observation)


def replay_live(machine: Machine, target: RealTarget, program: Program) -> Replay:
    """The same on a real machine: piece by piece, since what follows depends on what it chooses."""
    domains = program.setup.domains
    program.setup = target.setup(domains[0].pages, len(domains))        # which it may not have had the name of
    machine.reset()
    machine.choices.begin()
    player, steps = Player(machine, target, program.setup), list[Step]()
    try:
        for piece in pieces(program.actions):
            start = player.start
            player.finish(piece, [foreseen(player, piece, n) for n in range(len(piece))])
            done, explained = told(machine, piece, player.earlier[-len(piece):], player.seen, start)
            steps += done
            if player.verdict is not None:
                break
            if not explained:               # but by a choice of an earlier piece
                steps, _ = told(machine, player.actions, player.earlier, player.seen, player.boot)
            player.stand()
    except HarnessError as e:
        return Replay(harness_verdict(len(player.actions), str(e) + autopsy(target)), tuple(steps))
    program.outcomes, program.observation = player.earlier, player.seen
    verdict = player.verdict or Verdict(Direction.AGREES, len(player.actions), looseness=player.looseness)
    return Replay(verdict, tuple(steps[:verdict.at + 1]))


def step(machine: Machine, action: Action, target: Outcome | None) -> Step:
    """Perform one action on the model and see what it did."""
    start, mark = coverage.tallies(), machine.concrete.mark()
    mine = machine.step(action, target)
    return Step(action, mine, target, tuple(machine.refusals), coverage.since(start), changes_since(machine, mark))


def changes_since(machine: Machine, mark: int) -> tuple[Change, ...]:
    """What the state's maps hold otherwise than at the mark."""
    found = []
    for (name, key), old in machine.concrete.before(mark).items():
        new = machine.concrete.maps[name][key]
        if new != old and name not in CLOCKS:
            found.append(Change(name, key if isinstance(key, tuple) else (key,), int(old), int(new)))
    return tuple(found)


def reproduce(setup: Setup, actions: Sequence[Action], target: str = "emulator", plant: str = "") -> int:
    """Run a program on the model and a target and print both sides; 0 if they agree, 1 if not.  For reproducers."""
    held = held_target(target, plant)
    try:
        found = replay_on(model_of(held, setup), held, Program(setup, list(actions)))
    except HarnessError as e:
        found = Replay(harness_verdict(0, str(e)), ())
    finally:
        held.close()
    for n, done in enumerate(found.steps):
        seen = show(done.action, done.target) if done.target is not None else "?"
        print(f"{n}: {describe(done.action)}\n   model: {show(done.action, done.model)}   target: {seen}")
    print(f"{found.verdict.direction}: {found.verdict.summary or 'every outcome and the state'} {found.verdict.rule}".rstrip())
    return 0 if found.verdict.agrees else 1
