"""Runs a program piece by piece on a machine whose choices the rest of the program depends on, and compares after each piece.

The model cannot know which frames a real machine will hand out.  So a program for one is not made in one go: after each piece the
model takes up what the machine chose, everything that can be seen is compared, and the next piece goes on from there.
"""
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Final, TypeVar

from oracle.generate import Generator, hands_out
from oracle.ground import Ground
from oracle.judge import Direction, Start, Verdict, judge
from oracle.targets import Target, told_by
from refmodel import Machine
from spec.vocabulary import KILLED, Action, Observation, Outcome, Setup

T = TypeVar("T")
LIMIT: Final = 96                               # runs of the model over a whole program in search of an explanation
LETHAL: Final = 0.1                             # how often a program may end with the death of its domain
PIECE: Final = 250                              # actions between two comparisons of everything


class Player:
    """Runs pieces on the target and judges them from where the model stands."""

    def __init__(self, machine: Machine, target: Target, setup: Setup, judging: Callable[[], None] = lambda: None) -> None:
        self.machine, self.target, self.judging = machine, target, judging
        self.actions: list[Action] = []             # so far; of a burst, the shortest way to where it ended
        self.full: list[Action] = []                # the same, with every step of the bursts
        self.raw = 0                                # how many of these are steps of bursts
        self.burst = slice(0, 0), list[Action]()    # the last burst: where its way is in the actions, and its steps
        self.verdict: Verdict | None = None         # of the piece that deviates; None: all agrees
        self.looseness: Counter[str] = Counter()
        self.outcomes: list[Outcome] = []           # of this piece, as far as it was sent
        self.earlier: list[Outcome] = []            # of the pieces before
        self.sent: list[Action] = []                # of this piece: what the target may have died of
        self.seen: Observation | None = None        # after the last piece
        self.boot = self.start = Start.here(machine)
        self.before = met(machine)
        self.left = False                       # the target may have gone where the model does not follow
        self.on_target(lambda: target.reset(setup))

    def explained_by_all(self, actions: Sequence[Action], seen: Observation) -> bool:
        """A choice of an earlier piece, of which nothing could be seen then, explains this one."""
        if not self.earlier:
            return False
        self.judging()
        whole, outcomes = [*self.actions, *actions], [*self.earlier, *self.outcomes]
        verdict = judge(self.machine, whole, outcomes, seen, start=self.boot, limit=LIMIT, moved=self.judging)
        self.left = self.left or verdict.left
        return verdict.agrees

    def on_target(self, work: Callable[[], T]) -> T:
        """Have the target do something; whatever it raises is a HarnessError."""
        return told_by(self.target, work)

    @property
    def over(self) -> bool:
        """The target has killed a domain, or may have left the vocabulary: nothing more can be run."""
        last = (self.outcomes or self.earlier)[-1:]
        return self.left or (bool(last) and last[0].value == KILLED)

    def run(self, actions: Sequence[Action]) -> None:
        """Run actions of this piece on the target."""
        if self.over:
            return
        self.sent += actions
        self.outcomes += self.on_target(lambda: self.target.run(actions))

    def ask(self, actions: Sequence[Action], action: Action) -> Outcome:
        """What the target makes of an action, after those of this piece that come before it."""
        self.run([*actions[len(self.outcomes):], action])
        return self.outcomes[-1]

    def finish(self, actions: Sequence[Action], expected: Sequence[Outcome]) -> None:
        """Run the rest of a piece that the model has run, and compare: if it is not allowed, there is a verdict."""
        machine = self.machine
        self.run(actions[len(self.outcomes):])
        if self.over:
            actions, expected = actions[:len(self.outcomes)], expected[:len(self.outcomes)]
        self.seen = seen = self.on_target(self.target.observe)
        if self.outcomes == expected and not machine.compare(seen):
            self.looseness += met(machine) - self.before
        else:
            self.judging()
            verdict = judge(machine, actions, self.outcomes, seen, start=self.start, moved=self.judging)
            self.looseness += verdict.looseness
            self.left = verdict.left
            if not verdict.agrees and not self.explained_by_all(actions, seen):
                self.verdict = replace(verdict, at=len(self.actions) + verdict.at)
        self.actions += actions
        self.full += actions
        self.earlier += self.outcomes
        self.outcomes, self.sent = [], []
        self.stand()

    def stand(self) -> None:
        """What comes next is judged from where the machine is now; it takes over what it may have of what was seen."""
        if self.seen is not None:
            self.machine.adopt_marks(self.seen)
        self.start, self.before = Start.here(self.machine), met(self.machine)

    def note(self, way: Sequence[Action], steps: Sequence[Action]) -> None:
        """A burst was made; `way` leads where its steps led."""
        self.burst = slice(len(self.actions), len(self.actions) + len(way)), list(steps)
        self.actions += way
        self.full += steps
        self.raw += len(steps)

    @property
    def with_last_burst(self) -> list[Action]:
        """The actions, but the last burst with all its steps."""
        actions, (way, steps) = list(self.actions), self.burst
        actions[way] = steps
        return actions

    def jump(self, way: Sequence[Action], outcomes: Sequence[Outcome], steps: Sequence[Action]) -> None:
        """One in which all agreed.  The machine had no choice in it, but one of before it may not have shown yet."""
        self.note(way, steps)
        self.earlier += outcomes
        self.looseness += met(self.machine) - self.before
        self.stand()


def met(machine: Machine) -> Counter[str]:
    """The looseness that a machine has met and forgiven so far."""
    return machine.choices.counts + machine.choices.forgiven


def play_generated(generator: Generator, player: Player, length: int, moved: Callable[[], None],
                   after: Callable[[], None] = lambda: None) -> None:
    """A program of `length` actions that the generator, which has begun it, goes on to make; up to the first divergence.

    `after` is done after each piece that agrees.
    """
    done = 0
    while player.verdict is None and done < length and not player.over:
        moved()
        if generator.ground is not None:        # a program may end with a death
            generator.ground.deaths = length - done <= PIECE and generator.random() < LETHAL
        piece, expected = generator.more(min(PIECE, length - done), player.ask)
        player.finish(piece, expected)
        done += len(piece)
        if player.verdict is None and not player.over:
            after()


class LeftOut(Exception):
    """An action that is left out of programs for this target: by which declared difference."""


def play(machine: Machine, target: Target, setup: Setup, actions: Sequence[Action], ground: Ground | None = None) -> Verdict:
    """The verdict on a given program, judged piece by piece.

    With a ground, an action that would take it away is not sent, and `LeftOut` raised.
    """
    machine.reset()
    machine.choices.begin()
    player = Player(machine, target, setup)
    for piece in pieces(actions):
        expected = list[Outcome]()
        while len(expected) < len(piece) and not (expected and expected[-1].value == KILLED):
            expected.append(foreseen(player, piece, len(expected), ground))
        player.finish(piece[:len(expected)], expected)
        if player.verdict is not None:
            return player.verdict
        if player.over:
            break
    return Verdict(Direction.AGREES, len(player.actions), looseness=player.looseness)


def foreseen(player: Player, piece: Sequence[Action], n: int, ground: Ground | None = None) -> Outcome:
    """What the model makes of action n of a piece; the target is only asked what that hands out."""
    machine, action = player.machine, piece[n]
    if ground is not None:
        mark = machine.mark()
        reason, outcome = ground.tried(action)
        if outcome is None or reason:
            raise LeftOut(reason)
        if not hands_out(action):
            return outcome
        machine.rewind(mark)
    return machine.step(action, player.ask(piece[:n], action)) if hands_out(action) else machine.step(action)


def pieces(actions: Sequence[Action]) -> Iterator[Sequence[Action]]:
    """The pieces of a program, in order."""
    for start in range(0, len(actions), PIECE):
        yield actions[start:start + PIECE]
