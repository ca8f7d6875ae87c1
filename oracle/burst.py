"""Bursts: thousands of actions on a real machine between two comparisons of everything, each outcome compared all the same.

The model makes a step in 60 µs or more, the machine in a few.  But some actions, done again and again in any order, lead the
model to few moments, and at one of them an action always has the same outcome and leads to the same next one.  So the model makes
each step once; a burst is a long random walk over what it found, all outcomes on the way known beforehand, as bytes in the
machine's form.

The actions are drawn from the moves of ordinary programs at the moment where the burst begins.  Left out is, at each moment, what
the ground forbids, what has more than one outcome, and what leads to a moment more than a burst has room for.
"""
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from oracle.generate import Generator, Move
from oracle.ground import OUTSIDE
from oracle.judge import Start, Verdict, judge
from oracle.live import Player
from oracle.targets import HarnessError, RealTarget
from refmodel import ModelError
from refmodel.moments import Moment, go_to, is_flushed, moment
from spec.abi import Xen417
from spec.vocabulary import KILLED, Action, Execute, Hypercall, Load, LoadSegment, Observation, Outcome, Store, Transfer

TEMPLATES: Final = 24                           # actions that a burst is made of
DRAWS: Final = 80                               # moves that are looked at for them
ROUNDS: Final = 3                               # walks of a burst
ABOUT: Final = ("memory",) * 5 + ("descriptors",) * 2 + ("transfers",) * 3    # what bursts are about, if programs are about all
MOMENTS: Final = 40                             # of a burst: a step that leads to one more is not made
CHUNK: Final = 2048                             # actions that the machine does while the next ones are chosen
UNKNOWN: Final = -1
BARRED: Final = -2


@dataclass(frozen=True, slots=True)
class Kind:
    """What the actions of a burst are taken from."""
    needs: Sequence[Move]                       # are made first: without what they do there would be little to try
    first: Sequence[Move]                       # give its first actions
    more: Sequence[Move]                        # give the others, as it comes

    def moves(self, g: Generator) -> Iterator[Move]:
        """Those that its actions are taken from."""
        yield from self.first
        for _ in range(DRAWS):
            yield g.pick(self.more)


def kind(about: str) -> Kind:
    """The moves of a burst about one of FOCUSES."""
    from oracle import moves_417 as m
    from oracle import moves_417_descriptors as d
    from oracle import moves_417_transfers as t
    if about == "descriptors":
        return Kind((d.build_gdt, d.build_ldt), (m.touch, m.change_an_entry), (
            *(d.load_known_segment, d.load_segment, d.update_descriptor) * 3, d.touch_ldt, d.change_gdt, d.odd_gdt, d.odd_ldt,
            d.write_table_in_force, d.segment_bases, d.set_trap_table, d.set_entries, d.debug_registers))
    if about == "transfers":
        return Kind((t.user_root,), (m.touch, t.cut_stack), (
            *(t.interrupt, t.access, t.privileged, t.system_call, t.far_transfer, t.iret) * 3,
            t.switch_stack, t.task_switch, t.handlers, m.touch))
    return Kind((), (m.touch, m.touch), (
        *(m.map_something, m.change_an_entry, m.batch_good) * 2, m.map_odd, m.restore_home, m.batch_one_bad, m.touch,
        m.touch_edges, m.flush, m.multicall, m.extended_odd, m.pin_and_load, m.unknown_hypercall, m.update_odd_address))


def templates(g: Generator, moves: Iterable[Move]) -> tuple[list[Action], list[Action]]:
    """What to do first, and then the actions of a burst: calls only point to what was stored, and transfers have been made once,
    so that they find their code and their frames where they will put them again."""
    first, chosen, taken = list[Action](), list[Action](), set[int]()
    for move in moves:
        for action in move(g):
            if isinstance(action, Hypercall):
                words = {va + 8 * i: word for va, words in action.data for i, word in enumerate(words)}
                if action.nr == Xen417.MEMORY_OP or not taken.isdisjoint(words):
                    continue
                taken.update(words)
                first += [Store(g.d.dom, va, word) for va, word in words.items()]
                chosen += with_inverse(g, replace(action, data=()))
            elif isinstance(action, Transfer):
                first.append(action)
                chosen.append(action)
            elif isinstance(action, Load | Store | Execute | LoadSegment) and not action.user:
                chosen.append(action)
        if len(chosen) >= TEMPLATES:
            break
    return first, chosen


def with_inverse(g: Generator, call: Hypercall) -> Iterator[Hypercall]:
    """A call and, if it changes a mapping or a descriptor, the one that restores what is there now: or a walk would only lead
    away."""
    from oracle.moves_417 import entry_of
    yield call
    if call.nr == Xen417.UPDATE_DESCRIPTOR:
        there = g.word.get((call.args[0] >> 12, call.args[0] >> 3 & 511), 0)
        yield Hypercall(call.dom, call.nr, (call.args[0], there))
    if call.nr == Xen417.UPDATE_VA_MAPPING and len(call.args) > 1:
        yield Hypercall(call.dom, call.nr, (call.args[0], entry_of(g, call.args[0]), Xen417.UVMF_INVLPG))


def flush_all(g: Generator) -> Action:
    """The flush with which a base begins."""
    from oracle.moves_417 import extended
    return extended(g, Xen417.TLB_FLUSH_LOCAL)


class Burst:
    """The moments near the present one, as far as walks have found them; the present one comes right after a whole flush."""

    def __init__(self, generator: Generator, target: RealTarget, actions: Sequence[Action]) -> None:
        self.machine, self.ground, self.target, self.actions = generator.machine, generator.ground, target, list(actions)
        self.declared = generator.declared
        self.codes = [target.code(action) for action in actions]
        self.start = Start.here(self.machine)
        self.moments: list[Moment] = []
        self.known: dict[object, int] = {}
        self.next: list[list[int]] = []         # by moment and template: the next moment
        self.outcomes: list[list[Outcome]] = []
        self.answers: list[list[bytes]] = []    # the outcomes as the machine should answer them
        self.at = self.number(*moment(self.machine, self.start.mark))
        self.steps: list[int] = []              # of all walks so far, the templates taken
        self.foreseen: list[bytes] = []         # and the answers to them
        self.round = 0                          # the first one of the last round

    # --- the moments

    def number(self, known: object, found: Moment) -> int:
        """The number of a moment; BARRED if there are too many already."""
        n = self.known.get(known)
        if n is not None:
            return n
        if len(self.moments) == MOMENTS:
            return BARRED
        self.known[known] = n = len(self.moments)
        self.moments.append(found)
        self.next.append([UNKNOWN] * len(self.actions))
        self.outcomes.append([Outcome()] * len(self.actions))
        self.answers.append([b""] * len(self.actions))
        return n

    def explore(self, n: int, t: int) -> int:
        """Make a step of the model for the first time: the moment that it leads to, or BARRED."""
        go_to(self.machine, self.start.mark, self.moments[n])
        choices, action, to = self.machine.choices, self.actions[t], BARRED
        met = len(choices.taken)
        outcome = self.tried(action)
        if outcome is not None and not outcome.chose and outcome.value != KILLED and len(choices.taken) == met:
            to = self.number(*moment(self.machine, self.start.mark))
            self.outcomes[n][t], self.answers[n][t] = outcome, self.target.answer(action, outcome)
        choices.counts.subtract(name for name, _, _ in choices.taken[met:])
        del choices.taken[met:]
        self.next[n][t] = to
        return to

    def tried(self, action: Action) -> Outcome | None:
        """What the model makes of an action; None: it is not to be done here."""
        try:
            reason, outcome = ("", self.machine.step(action)) if self.ground is None else self.ground.tried(action)
        except ModelError:
            reason, outcome = OUTSIDE, None
        if reason:
            self.declared[reason] += 1
        return None if reason else outcome

    def arrive(self) -> None:
        """The model where the last walk ended."""
        go_to(self.machine, self.start.mark, self.moments[self.at])

    def way(self, to: int) -> tuple[list[Action], list[Outcome]]:
        """A shortest way from the base to a moment, and the model's outcomes on it."""
        before, waiting = {0: (0, 0)}, deque([0])
        while to not in before:
            n = waiting.popleft()
            for t, following in enumerate(self.next[n]):
                if following >= 0 and following not in before:
                    before[following] = n, t
                    waiting.append(following)
        way, outcomes = list[Action](), list[Outcome]()
        while to:
            to, t = before[to]
            way.append(self.actions[t])
            outcomes.append(self.outcomes[to][t])
        return way[::-1], outcomes[::-1]

    # --- walks

    def walk(self, choices: Iterable[int]) -> list[bytes]:
        """Steps from where the last walk ended, less those that are barred: their codes."""
        at, first, following, answers = self.at, len(self.steps), self.next, self.answers
        for t in choices:
            to = following[at][t]
            if to < 0 and (to == BARRED or self.explore(at, t) == BARRED):
                continue
            self.steps.append(t)
            self.foreseen.append(answers[at][t])
            at = following[at][t]
        self.at = at
        return [self.codes[t] for t in self.steps[first:]]

    def run(self, tries: int, randbytes: Callable[[int], bytes]) -> bytes:
        """A walk of so many tries, in chunks: the machine works on one while the next is made.  All that it answered."""
        self.round = len(self.steps)
        scale, answers, sent = bytes(n * len(self.actions) >> 8 for n in range(256)), list[bytes](), False
        for left in range(tries, 0, -CHUNK):
            codes = self.walk(randbytes(min(CHUNK, left)).translate(scale))
            if sent:
                answers.append(self.target.receive())
            self.target.send(codes)
            sent = True
        return b"".join([*answers, self.target.receive()])

    def done(self) -> list[Action]:
        """All steps so far, as actions."""
        return [self.actions[t] for t in self.steps]

    def followed(self, count: int) -> tuple[int, list[Outcome]]:
        """Where the first steps lead, and the model's outcomes on the way."""
        at, outcomes = 0, list[Outcome]()
        for t in self.steps[:count]:
            outcomes.append(self.outcomes[at][t])
            at = self.next[at][t]
        return at, outcomes


# --- on a player's machine ---------------------------------------------------------------------------------------------------

@dataclass(frozen=True, slots=True)
class Deviation:
    """What a burst found: the verdict on its first `steps` steps, and a shorter way to the same place."""
    verdict: Verdict
    steps: list[Action]
    way: list[Action]


def prepare(player: Player, generator: Generator, about: str) -> list[Action]:
    """Do what a burst needs first; the actions that it is made of."""
    its = kind(about)
    for move in its.needs:
        player.finish(*generator.given(move(generator)))
    first, actions = templates(generator, its.moves(generator))
    player.finish(*generator.given([*first, flush_all(generator)]))
    return actions


def play_burst(player: Player, generator: Generator, target: RealTarget, tries: int) -> None:
    """A burst from where the player stands: rounds of `tries` tries, after each of which everything is compared."""
    actions = prepare(player, generator, generator.focus or generator.pick(ABOUT))
    if player.verdict is not None or not actions or not is_flushed(player.machine):
        return                                  # no base to start from: the list of the flush could not be read
    burst = Burst(generator, target, actions)
    try:
        for _ in range(ROUNDS):
            player.judging()
            answers = player.on_target(lambda: burst.run(tries, generator.randbytes))
            found = check_answers(player, burst, answers) or check_state(player, burst)
            if found is not None:
                beyond = found.verdict.at - len(found.steps)
                player.note(found.way, found.steps)
                player.verdict = replace(found.verdict, at=len(player.actions) + beyond)
                return
    except HarnessError:
        player.note(burst.done(), burst.done())
        raise
    player.jump(*burst.way(burst.at), burst.done())


def check_answers(player: Player, burst: Burst, answers: bytes) -> Deviation | None:
    """Hold what the machine answered in the last round against what was foreseen: the first step that differs."""
    foreseen = burst.foreseen[burst.round:]
    if b"".join(foreseen) == answers:
        return None
    size = len(foreseen[0])
    n = next(n for n, each in enumerate(foreseen) if answers[n * size:(n + 1) * size] != each)
    steps = burst.done()[:burst.round + n + 1]
    (outcome,) = burst.target.told(steps[-1:], answers[n * size:(n + 1) * size])
    before, outcomes = burst.followed(len(steps) - 1)
    return Deviation(judged(player, burst, steps, [*outcomes, outcome], None), steps, [*burst.way(before)[0], steps[-1]])


def check_state(player: Player, burst: Burst) -> Deviation | None:
    """The same for all that can be seen after the round."""
    burst.arrive()
    player.seen = seen = player.on_target(burst.target.observe)
    if not player.machine.compare(seen):
        return None
    steps = burst.done()
    end, outcomes = burst.followed(len(steps))
    return Deviation(judged(player, burst, steps, outcomes, seen), steps, burst.way(end)[0])


def judged(player: Player, burst: Burst, steps: Sequence[Action], outcomes: Sequence[Outcome],
           seen: Observation | None) -> Verdict:
    """The verdict on steps from the base on.  That the model, step by step, does as the machine does, and not as was foreseen,
    would be a mistake of the burst's."""
    player.judging()
    verdict = judge(player.machine, steps, outcomes, seen, start=burst.start)
    if verdict.agrees:
        raise AssertionError(f"a burst foresaw something else than a run of the model gives, in its first {len(steps)} steps")
    return verdict
