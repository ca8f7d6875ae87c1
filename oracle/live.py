"""Runs a program piece by piece on a machine whose choices the rest of the program depends on, and compares after each piece.

The model cannot know which frames a real machine will hand out.  So a program for one is not made in one go: after each piece the
model takes up what the machine chose, everything that can be seen is compared, and the next piece goes on from there.
"""
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Final, TypeVar

from oracle.generate import Generator
from oracle.judge import Start, Verdict, judge
from oracle.targets import Target, harness_error
from refmodel import Machine
from spec.vocabulary import Action, Observation, Outcome, Setup

T = TypeVar("T")
LIMIT: Final = 48                               # runs of the model over a whole program in search of an explanation
PIECE: Final = 250                              # actions between two comparisons of everything


class Player:
    """Runs pieces on the target and judges them from where the model stands."""

    def __init__(self, machine: Machine, target: Target, setup: Setup, judging: Callable[[], None] = lambda: None) -> None:
        self.machine, self.target, self.judging = machine, target, judging
        self.actions: list[Action] = []             # so far
        self.verdict: Verdict | None = None         # of the piece that deviates; None: all agrees
        self.looseness: Counter[str] = Counter()
        self.outcomes: list[Outcome] = []           # of this piece, as far as it was sent
        self.earlier: list[Outcome] = []            # of the pieces before
        self.boot = self.start = Start.here(machine)
        self.before = met(machine)
        self.on_target(lambda: target.reset(setup))

    def explained_by_all(self, actions: Sequence[Action], seen: Observation) -> bool:
        """A choice of an earlier piece, of which nothing could be seen then, explains this one."""
        if not self.actions:
            return False
        self.judging()
        whole, outcomes = [*self.actions, *actions], [*self.earlier, *self.outcomes]
        return judge(self.machine, whole, outcomes, seen, start=self.boot, limit=LIMIT).agrees

    def on_target(self, work: Callable[[], T]) -> T:
        """Have the target do something; whatever it raises is a HarnessError."""
        try:
            return work()
        except Exception as e:
            raise harness_error(self.target.name, e) from e

    def run(self, actions: Sequence[Action]) -> None:
        """Run actions of this piece on the target."""
        self.outcomes += self.on_target(lambda: self.target.run(actions))

    def ask(self, actions: Sequence[Action], action: Action) -> Outcome:
        """What the target makes of an action, after those of this piece that come before it."""
        self.run([*actions[len(self.outcomes):], action])
        return self.outcomes[-1]

    def finish(self, actions: Sequence[Action], expected: Sequence[Outcome]) -> None:
        """Run the rest of a piece that the model has run, and compare: if it is not allowed, there is a verdict."""
        machine = self.machine
        self.run(actions[len(self.outcomes):])
        seen = self.on_target(self.target.observe)
        if self.outcomes == expected and not machine.compare(seen):
            self.looseness += met(machine) - self.before
        else:
            self.judging()
            verdict = judge(machine, actions, self.outcomes, seen, start=self.start)
            self.looseness += verdict.looseness
            if not verdict.agrees and not self.explained_by_all(actions, seen):
                self.verdict = replace(verdict, at=len(self.actions) + verdict.at)
        self.actions += actions
        self.earlier += self.outcomes
        machine.adopt_marks(seen)
        self.outcomes = []
        self.start, self.before = Start.here(machine), met(machine)


def met(machine: Machine) -> Counter[str]:
    """The looseness that a machine has met and forgiven so far."""
    return machine.choices.counts + machine.choices.forgiven


def play_generated(generator: Generator, player: Player, length: int, moved: Callable[[], None]) -> None:
    """A program of `length` actions that the generator, which has begun it, goes on to make; up to the first divergence."""
    while player.verdict is None and (rest := length - len(player.actions)) > 0:
        moved()
        player.finish(*generator.more(min(PIECE, rest), player.ask))


def play(machine: Machine, target: Target, setup: Setup, actions: Sequence[Action]) -> Verdict:
    """The verdict on a given program, judged piece by piece."""
    machine.reset()
    machine.choices.begin()
    player = Player(machine, target, setup)
    for piece in pieces(actions):
        player.run(piece)
        player.finish(piece, [machine.step(*each) for each in zip(piece, player.outcomes, strict=True)])
        if player.verdict is not None:
            return player.verdict
    return judge(machine, (), (), start=player.start)


def pieces(actions: Sequence[Action]) -> Iterator[Sequence[Action]]:
    """The pieces of a program, in order."""
    for start in range(0, len(actions), PIECE):
        yield actions[start:start + PIECE]
