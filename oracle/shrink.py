"""Makes a program that shows a divergence as short and as plain as it gets, keeping the kind of the divergence.

First actions are dropped, large blocks before single ones; then what is left is simplified: fewer words of data, shorter batches,
a multicall of one call made directly, plainer numbers.  Deterministic, and bounded by a number of runs.
"""
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from oracle.judge import Verdict
from spec.abi import RW, P, Xen417, Xen2003
from spec.vocabulary import (
    Access,
    Action,
    Execute,
    FarTransfer,
    Hypercall,
    Interrupt,
    Load,
    LoadSegment,
    Privileged,
    Return,
    Store,
    SystemCall,
    Transfer,
)

PLAIN_FLAGS: Final = 0x202                      # of a context
BUDGET: Final = 800                             # runs of model and target
Run = Callable[[Sequence[Action]], Verdict | None]      # None: not a program (the model refuses to run it)

# Hypercalls whose argument 0 is the address of a list and argument 1 its length: words of an entry.
ENTRY_WORDS: Final = {Xen2003.MMU_UPDATE: 2, Xen2003.MULTICALL: 8, Xen417.MULTICALL: 8, Xen417.MMUEXT_OP: 3}
ENTRY_ARGS: Final = {Xen2003.MULTICALL: slice(1, 6), Xen417.MULTICALL: slice(2, 8)}     # of a multicall's entry


@dataclass(frozen=True, slots=True)
class Shrunk:
    """The smallest program found, its verdict, and how many runs it took."""
    actions: tuple[Action, ...]
    verdict: Verdict
    runs: int


class _OutOfBudget(Exception):
    """No runs are left, or no time."""


class _Search:
    """The best program so far, and the test that every candidate must pass."""

    def __init__(self, actions: Sequence[Action], verdict: Verdict, run: Run, budget: int, late: Callable[[], bool]) -> None:
        self.best = list(actions)
        self.verdict = verdict
        self.kind = (verdict.direction, verdict.rule)
        self.run = run
        self.budget, self.late = budget, late
        self.runs = 0

    def accept(self, candidate: list[Action]) -> bool:
        """Run a candidate; it becomes the best if it still shows this kind of divergence."""
        if self.runs == self.budget or self.late():
            raise _OutOfBudget
        self.runs += 1
        verdict = self.run(candidate)
        if verdict is None or (verdict.direction, verdict.rule) != self.kind:
            return False
        self.best = candidate[:verdict.at + 1]  # what follows the deviating action is of no use
        self.verdict = verdict
        return True

    def drop_blocks(self) -> bool:
        """Drop blocks of actions, from the end of the program to its beginning; sizes from half of it down to one."""
        dropped = False
        size = max(1, len(self.best) // 2)
        while size:
            end = len(self.best)
            while end > 0:
                start = max(0, end - size)
                if len(self.best) > end - start and self.accept(self.best[:start] + self.best[end:]):
                    dropped = True
                end = min(start, len(self.best))
            size //= 2
        return dropped

    def simplify(self) -> bool:
        """Replace actions by simpler ones, each until nothing simpler does."""
        changed = False
        place = len(self.best) - 1
        while place >= 0:
            if place < len(self.best) and self.simplify_at(place):
                changed = True
            else:
                place -= 1
        return changed

    def simplify_at(self, place: int) -> bool:
        """The first simpler form of one action that will do."""
        before, after = self.best[:place], self.best[place + 1:]
        return any(self.accept([*before, simpler, *after]) for simpler in simpler_forms(self.best[place]))


def shrink(actions: Sequence[Action], verdict: Verdict, run: Run, budget: int = BUDGET,
           late: Callable[[], bool] = lambda: False) -> Shrunk:
    """The smallest program with a divergence of the same direction and rule; `run` executes and judges a candidate.

    It ends early when it is `late`.
    """
    search = _Search(actions[:verdict.at + 1], verdict, run, budget, late)
    try:
        while True:
            dropped = search.drop_blocks()
            if not search.simplify() and not dropped:
                break
    except _OutOfBudget:
        pass
    return Shrunk(tuple(search.best), search.verdict, search.runs)


# --- simpler actions ---------------------------------------------------------------------------------------------------------

def simpler_forms(action: Action) -> Iterator[Action]:
    """Forms of an action that are simpler, the boldest first; applying them again and again ends."""
    match action:
        case Hypercall():
            yield from simpler_calls(action)
        case Store(value=value):
            yield from (replace(action, value=v) for v in simpler_numbers(value))
        case FarTransfer() | Interrupt() | Return() | Access() | Privileged() | SystemCall():
            yield from simpler_transfers(action)
    if isinstance(action, Load | Store | Execute | LoadSegment):
        if action.user:
            yield replace(action, user=False)
        if isinstance(action, Load | Store) and action.va & 0xFFC:
            yield replace(action, va=action.va & ~0xFFC)


def simpler_transfers(action: Transfer) -> Iterator[Action]:
    """A control transfer with less data, or with flat data segments, or none."""
    for i in range(len(action.data)):
        yield replace(action, data=action.data[:i] + action.data[i + 1:])
    for register in ("ds", "es", "fs", "gs"):
        if getattr(action.at, register):
            yield replace(action, at=replace(action.at, **{register: 0}))
    if action.at.eflags & ~PLAIN_FLAGS:
        yield replace(action, at=replace(action.at, eflags=PLAIN_FLAGS))


def simpler_calls(call: Hypercall) -> Iterator[Hypercall]:
    """A hypercall with less data, a shorter list, or plainer arguments."""
    for i in range(len(call.data)):
        yield replace(call, data=call.data[:i] + call.data[i + 1:])
    yield from shorter_lists(call)
    yield from unwrapped(call)
    for i, (va, words) in enumerate(call.data):
        for shorter in (words[:len(words) // 2], words[:-1]):
            if shorter:
                yield replace(call, data=(*call.data[:i], (va, shorter), *call.data[i + 1:]))
    for i, value in enumerate(call.args):
        yield from (replace(call, args=(*call.args[:i], v, *call.args[i + 1:])) for v in simpler_numbers(value))
    for i, (va, words) in enumerate(call.data):
        for k, value in enumerate(words):
            for v in simpler_numbers(value):
                yield replace(call, data=(*call.data[:i], (va, (*words[:k], v, *words[k + 1:])), *call.data[i + 1:]))


def shorter_lists(call: Hypercall) -> Iterator[Hypercall]:
    """The same call without one entry of its list."""
    size = ENTRY_WORDS.get(call.nr, 0)
    if not size or len(call.args) < 2:
        return
    for i, (va, words) in enumerate(call.data):
        if va != call.args[0] or len(words) <= size:
            continue
        for start in range(0, len(words), size):
            fewer = (va, words[:start] + words[start + size:])
            args = (va, max(0, call.args[1] - 1), *call.args[2:])
            yield replace(call, args=args, data=(*call.data[:i], fewer, *call.data[i + 1:]))


def unwrapped(call: Hypercall) -> Iterator[Hypercall]:
    """A multicall's calls, made directly."""
    where = ENTRY_ARGS.get(call.nr)
    if where is None or not call.args:
        return
    for i, (va, words) in enumerate(call.data):
        if va == call.args[0]:
            rest = call.data[:i] + call.data[i + 1:]
            for start in range(0, len(words) - where.stop + 1, 8):
                yield Hypercall(call.dom, words[start], words[start:start + 8][where], rest)


def simpler_numbers(value: int) -> Iterator[int]:
    """Plainer numbers: none, one, an entry with no bits but P and RW, an address of a page."""
    for plain in (0, 1, value & ~0xFFF | value & (P | RW), value & ~0xFFF):
        if plain < value:
            yield plain
