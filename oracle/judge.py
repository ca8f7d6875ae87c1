"""Holds what a target did against what the model allows, and says who deviates, how, and from which rule.

Where the architecture leaves a choice, the model takes one option at a time.  So before a difference is a divergence, the judge
looks for options that explain what the target did: best explanation first, a bounded number of times.
"""
import heapq
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from oracle import coverage
from refmodel import Difference, Machine, Mark, ModelError
from refmodel.choices import Cached
from spec.kernel import CONJUNCT_RULE, RULES
from spec.vocabulary import (
    KILLED,
    Access,
    Action,
    Execute,
    FarTransfer,
    Hypercall,
    Interrupt,
    Load,
    LoadSegment,
    Observation,
    Outcome,
    Privileged,
    Return,
    Store,
    SystemCall,
    Transfer,
)

ATTEMPTS: Final = 256                           # runs of the model in search of an explanation
NO_OUTCOME: Final = Outcome(vector=255)         # that of no machine
LEFT: Final = "left-the-vocabulary"             # a looseness: by an allowed choice it may have gone where no model follows


class Direction(StrEnum):
    """How a target deviates."""
    AGREES = "agrees"
    TOO_PERMISSIVE = "too permissive"           # it did what the model refuses: a security matter
    TOO_STRICT = "too strict"                   # it refused what the model does
    DIFFERENT = "different"                     # both did it, or both refused, but not alike
    HARNESS = "harness"                         # it died, hung, or could not do it


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of one program on one target."""
    direction: Direction
    at: int                                     # actions explained; the next one deviates (all: only the state differs)
    rule: str = ""                              # the conjunct or rule that decided, as best known
    action: str = ""                            # what kind of action deviates ("state": none of them)
    summary: str = ""                           # one line
    model: Outcome | None = None
    target: Outcome | None = None
    differences: tuple[Difference, ...] = ()
    looseness: Counter[str] = field(default_factory=Counter)    # choices met on the best explanation, by name
    attempts: int = 1

    @property
    def left(self) -> bool:
        """It allows all up to an action that may have led out of the vocabulary; what comes after it cannot be judged."""
        return self.agrees and LEFT in self.looseness

    @property
    def agrees(self) -> bool:
        """The model allows everything that was seen."""
        return self.direction is Direction.AGREES

    @property
    def key(self) -> tuple[str, str, str]:
        """Divergences with equal keys count as the same one."""
        return self.rule, self.direction, self.action


# --- one run of the model ----------------------------------------------------------------------------------------------------

@dataclass(slots=True)
class Attempt:
    """One run of the model under forced choices, up to the first outcome that differs from the target's."""
    explained: int
    mine: Outcome | None
    refusals: tuple[str, ...]
    taken: list[tuple[str, int, int]]
    differences: list[Difference]
    looseness: Counter[str]

    @property
    def left(self) -> bool:
        """The next action leads out of the vocabulary."""
        return self.mine is NO_OUTCOME

    @property
    def score(self) -> tuple[bool, int, int]:
        """Smaller is better: all explained, or a way out of the vocabulary; more outcomes explained; fewer differences."""
        return not (self.complete or self.left), -self.explained, len(self.differences)

    @property
    def complete(self) -> bool:
        """Every outcome and the state are explained."""
        return self.mine is None and not self.differences


@dataclass(frozen=True, slots=True)
class Start:
    """A moment of the model's run from which actions are judged; what the processor had likely cached then."""
    mark: Mark
    filled: Mapping[tuple[int, int], Cached]

    @staticmethod
    def here(machine: Machine) -> "Start":
        """The present moment."""
        return Start(machine.mark(), dict(machine.choices.filled))


def start_over(machine: Machine, start: Start | None, forced: Sequence[int] = ()) -> None:
    """The machine as at boot or at a moment of its run, with the first choices from then on given."""
    if start is None:
        machine.reset()
        machine.choices.begin(forced)
    else:
        machine.rewind(start.mark)
        machine.choices.begin(forced, start.filled)


def attempt(machine: Machine, actions: Sequence[Action], outcomes: Sequence[Outcome], observation: Observation | None = None,
            full: bool = True, forced: Sequence[int] = (), start: Start | None = None) -> Attempt:
    """Run the model along the target's outcomes, from boot or from a moment of its run."""
    start_over(machine, start, forced)
    choices = machine.choices
    met, forgiven = choices.counts.copy(), choices.forgiven.copy()
    mine, explained, differences = None, 0, []
    for action, seen in zip(actions, outcomes, strict=False):
        mine = stepped(machine, action, seen, whole=start is None and not forced)
        if mine != seen:
            break
        explained += 1
        mine = None
    if mine is None and observation is not None:
        differences = machine.compare(observation, full)
    return Attempt(explained, mine, tuple(machine.refusals), list(choices.taken), differences,
                   choices.counts - met + (choices.forgiven - forgiven))


def stepped(machine: Machine, action: Action, seen: Outcome, whole: bool) -> Outcome:
    """One step.  A whole program may be outside the vocabulary; an option of it that leads out explains nothing."""
    try:
        return machine.step(action, seen)
    except ModelError:
        if whole:
            raise
        return NO_OUTCOME


class Waiting:
    """Choices that are still to be tried: turn about those whose origin explained most, and those that turn the fewest.

    Each order alone gets lost: in the variations of a lucky first step, or in those of no step at all.
    """

    def __init__(self) -> None:
        self.by_merit: list[tuple[int, int, int, tuple[int, ...]]] = []
        self.by_turns: list[tuple[int, int, int, tuple[int, ...]]] = []
        self.taken: set[tuple[int, ...]] = set()

    def add(self, forced: tuple[int, ...], explained: int) -> None:
        """The last choice is the one that was turned; of those alike the latest in the program comes first."""
        turned = sum(option != 0 for option in forced)
        heapq.heappush(self.by_merit, (-explained, turned, -len(forced), forced))
        heapq.heappush(self.by_turns, (turned, -explained, -len(forced), forced))

    def take(self, merit: bool) -> tuple[int, ...] | None:
        """The next one by either order; None if all were tried."""
        heap = self.by_merit if merit else self.by_turns
        while heap:
            forced = heapq.heappop(heap)[-1]
            if forced not in self.taken:
                self.taken.add(forced)
                return forced
        return None


def explain(machine: Machine, actions: Sequence[Action], outcomes: Sequence[Outcome], observation: Observation | None = None,
            full: bool = True, limit: int = ATTEMPTS, start: Start | None = None,
            moved: Callable[[], None] = lambda: None) -> tuple[Attempt, int]:
    """The best attempt over the choice points, and how many attempts it took; `moved` is called before each but the first.

    Every path is visited at most once: the children of an attempt turn choice points that its own forced prefix did not settle.
    """
    best, runs, waiting = attempt(machine, actions, outcomes, observation, full, (), start), 1, Waiting()
    found, forced = best, tuple[int, ...]()
    while not found.complete and runs < limit:
        options = [option for _, _, option in found.taken]
        for place in range(len(forced), len(found.taken)):
            for option in range(found.taken[place][1]):
                if option != options[place]:
                    waiting.add((*options[:place], option), found.explained)
        following = waiting.take(merit=runs % 2 == 1)
        if following is None:
            break
        forced, runs = following, runs + 1
        moved()
        found = attempt(machine, actions, outcomes, observation, full, forced, start)
        if found.score < best.score:
            best = found
    return best, runs


# --- the verdict -------------------------------------------------------------------------------------------------------------

def judge(machine: Machine, actions: Sequence[Action], outcomes: Sequence[Outcome], observation: Observation | None = None, *,
          full: bool = True, limit: int = ATTEMPTS, start: Start | None = None,
          moved: Callable[[], None] = lambda: None) -> Verdict:
    """Is this what a machine may do?  Outcomes may stop early (a trace cut short); without an observation they are all.

    If it is, the machine is left as after the run that explains it.
    """
    with coverage.uncounted():
        best, runs = explain(machine, actions, outcomes, observation, full, limit, start, moved)
        if best.left:
            return Verdict(Direction.AGREES, best.explained, looseness=best.looseness + Counter({LEFT: 1}), attempts=runs)
        if best.mine is not None:
            return outcome_verdict(machine, actions, outcomes, best, runs, start)
    if best.differences:
        return state_verdict(best, runs)
    return Verdict(Direction.AGREES, best.explained, looseness=best.looseness, attempts=runs)


def succeeded(action: Action, outcome: Outcome) -> bool:
    """The action took effect: no fault, no error from a hypercall, and a guest that was let run goes on."""
    if outcome.value == KILLED:
        return False
    return outcome.vector < 0 and (outcome.value >= 0 or not isinstance(action, Hypercall))


def ring_of(outcome: Outcome) -> int:
    """Where a control transfer ends: the ring; 3 for all that does not show it."""
    return outcome.landing[0] & 3 if outcome.landing else 3


def outcome_verdict(machine: Machine, actions: Sequence[Action], outcomes: Sequence[Outcome], best: Attempt,
                    runs: int, start: Start | None = None) -> Verdict:
    """The first outcome that nothing explains."""
    at, mine = best.explained, best.mine
    assert mine is not None
    action, seen = actions[at], outcomes[at]
    model_did, target_did = succeeded(action, mine), succeeded(action, seen)
    if (target_did and not model_did) or ring_of(seen) < ring_of(mine):
        direction = Direction.TOO_PERMISSIVE
    elif model_did and not target_did:
        direction = Direction.TOO_STRICT
    else:
        direction = Direction.DIFFERENT
    refused = best.refusals and direction is not Direction.TOO_STRICT   # a multicall may refuse and succeed
    rule = best.refusals[-1] if refused else deciding_rule(machine, actions, outcomes, best, start)
    summary = f"{describe(action)}: the model gives {show(action, mine)}, the target {show(action, seen)}"
    return Verdict(direction, at, rule, action_kind(action), summary, mine, seen, looseness=best.looseness, attempts=runs)


def deciding_rule(machine: Machine, actions: Sequence[Action], outcomes: Sequence[Outcome], best: Attempt,
                  start: Start | None = None) -> str:
    """The last transition, in the order of the rules, that the model performed in the deviating action; else its last check."""
    start_over(machine, start, [option for _, _, option in best.taken])
    for action, seen in zip(actions[:best.explained], outcomes, strict=False):
        machine.step(action, seen)
    before = coverage.tallies()
    machine.step(actions[best.explained], outcomes[best.explained])
    decided = {CONJUNCT_RULE[c] for c, (true, _) in coverage.since(before).items() if true}
    last = ""
    for kind in ("check", "transition"):
        for rule in RULES.values():
            if rule.id in decided and rule.kind == kind:
                last = rule.id
    return last


def state_verdict(best: Attempt, runs: int) -> Verdict:
    """Every outcome is explained, the state is not."""
    first = best.differences[0]
    more = f" (and {len(best.differences) - 1} more)" if len(best.differences) > 1 else ""
    summary = f"{first.what} of {first.where}: the model has {first.model:#x}, the target {first.target:#x}{more}"
    return Verdict(Direction.DIFFERENT, best.explained, first.rule, f"state: {first.what}", summary,
                   differences=tuple(best.differences), looseness=best.looseness, attempts=runs)


def harness_verdict(at: int, what: str) -> Verdict:
    """The target failed as a machine, not as a hypervisor."""
    return Verdict(Direction.HARNESS, at, summary=what)


# --- words -------------------------------------------------------------------------------------------------------------------

def action_kind(action: Action) -> str:
    """The kind of an action, a hypercall with its number."""
    match action:
        case Hypercall(nr=nr):
            return f"hypercall {nr & 0xFF}"
        case Load():
            return "load"
        case Store():
            return "store"
        case Execute():
            return "execute"
        case LoadSegment(register=register):
            return f"load of {register}"
        case FarTransfer(kind=kind):
            return f"far {kind}"
        case Interrupt():
            return "interrupt"
        case Return():
            return "return"
        case Access(write=write):
            return "write" if write else "read"
        case Privileged(instruction=instruction):
            return instruction
        case SystemCall():
            return "system call"


def describe(action: Action) -> str:
    """An action in a few words."""
    match action:
        case Hypercall(dom=dom, args=args):
            return f"dom {dom} {action_kind(action)}({', '.join(f'{a:#x}' for a in args)})"
        case Load(dom=dom, va=va, user=user) | Store(dom=dom, va=va, user=user) | Execute(dom=dom, va=va, user=user):
            return f"dom {dom} {'user ' * user}{action_kind(action)} at {va:#x}"
        case LoadSegment(dom=dom, selector=selector, user=user):
            return f"dom {dom} {'user ' * user}{action_kind(action)} with {selector:#x}"
        case _:
            return f"dom {action.dom} in ring {action.at.cs & 3}: {action_kind(action)}{operand(action)}"


def operand(action: Transfer) -> str:
    """What a control transfer is about."""
    match action:
        case FarTransfer(kind="jmp" | "call", selector=selector, offset=offset):
            return f" {selector:#x}:{offset:#x}"
        case Interrupt(vector=vector):
            return f" {vector:#x}"
        case Access(va=va):
            return f" at {va:#x}"
    return ""


def show(action: Action, outcome: Outcome) -> str:
    """An outcome in a few words."""
    if outcome.vector >= 0:
        return f"fault {outcome.vector} (error {outcome.error:#x}, address {outcome.address:#x})"
    if outcome.value == KILLED:
        return "the end of the domain"
    if outcome.landing:
        names = ("cs", "eip", "eflags", "esp", "ss", "ds", "es", "fs", "gs")
        return " ".join(f"{name} {n:#x}" for name, n in zip(names, outcome.landing, strict=True))
    value = f"{outcome.value}" if isinstance(action, Hypercall) else f"{outcome.value:#x}"
    return value + (f" with frames {', '.join(map(str, outcome.chose))}" if outcome.chose else "")
