"""What a campaign runs, and how one process runs programs on machines that are booted to a setup.

A real machine is another matter: oracle.live_runner.
"""
import random
import time
import traceback
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Final

from oracle import coverage
from oracle.coverage import Coverage
from oracle.generate import Generator
from oracle.judge import Verdict, judge
from oracle.schema import ProgramError
from oracle.shrink import BUDGET, shrink
from oracle.targets import HarnessError, Target, default_setup, harness_error, model_of
from refmodel import ModelError, audit
from spec.abi import Xen2003
from spec.profile import PROFILES
from spec.vocabulary import Action, Observation, Outcome, Setup

STRETCH: Final = 16                             # programs that a worker is given at a time
SMALL_MEMORY: Final = 4 << 20                   # up to this much guest memory is compared whole after every program,
WHOLE_EVERY: Final = 64                         # more than that only this often
GRACE: Final = 5.0                              # seconds after a campaign's end for which what was found is still shrunk
GENERATING, RUNNING, JUDGING, SHRINKING = range(4)
# Which machine the stretches of a campaign run on, in turn: 0 is the one that was asked for, the others are variations of it.
TURNS: Final = (0, 1, 0, 2, 0, 0, 3, 0)


@dataclass(frozen=True, slots=True)
class CampaignSpec:
    """What a campaign runs.  With `actions` it is reproducible; with `seconds` it ends by the clock."""
    profile: str = "xen-2003"
    target: str = "emulator"
    seed: int = 0
    seconds: float | None = None
    actions: int | None = None
    workers: int = 1
    length: int = 150                           # actions of a program
    domains: int = 2
    pages: int = 64
    frames: int = 2048
    plant: str = ""                             # a bug to plant in the target
    distinct: int = 10                          # divergences that end the campaign
    hang_seconds: float = 30.0                  # without progress: the worker hangs
    varied: bool = True                         # some programs run on machines of other shapes
    raw: int = 0                                # tries of a burst after each piece of a program, on a real machine
    focus: str = ""                             # what most moves are about, if not all alike
    keep: str = ""                              # where the memory of a machine that died is kept, if anywhere


@dataclass(frozen=True, slots=True)
class Divergence:
    """A program on which target and model do not agree, shrunk."""
    setup: Setup
    index: int
    original: int                               # actions before shrinking
    actions: tuple[Action, ...]
    verdict: Verdict
    runs: int                                   # that shrinking took; 0: as generated
    repeats: bool = True                        # False: run again, the program showed nothing


@dataclass(frozen=True, slots=True)
class HarnessFailure:
    """A program that the target did not survive, or did not end."""
    setup: Setup
    index: int
    what: str
    actions: tuple[Action, ...]                 # empty if generating it again is not safe


@dataclass(frozen=True, slots=True)
class ModelFinding:
    """A program after which the model itself is in doubt: an invariant broken, a token left, an exception."""
    index: int
    rule: str
    what: str


def program_random(seed: int, index: int) -> random.Random:
    """The random numbers of one program."""
    return random.Random(f"{seed}/{index}")


def machines(spec: CampaignSpec, target: Target) -> tuple[Setup, ...]:
    """The machine that was asked for and, if it may vary, others: a pool at its limit, more domains, two L1 tables."""
    asked = default_setup(spec.profile, target, domains=spec.domains, pages=spec.pages, frames=spec.frames)
    if not spec.varied:
        return (asked,)
    profile = PROFILES[spec.profile]
    free = Xen2003.SLACK - 1 if profile.guest_end else 1        # an increase by one frame fails, or only just not
    least = spec.domains * (spec.pages + 1) + free
    wanted = ((spec.domains, spec.pages, least + target.needs(least + asked.xen_frames)[0]),
              (3, 16, spec.frames),
              (1, profile.entries + 76, spec.frames + 2 * profile.entries))
    others = []
    for domains, pages, frames in wanted:
        try:
            others.append(default_setup(spec.profile, target, domains=domains, pages=pages, frames=frames))
        except ProgramError:                    # it does not fit: this target's Xen is too big
            others.append(asked)
    return (asked, *others)


def machine_of(setups: Sequence[Setup], index: int) -> Setup:
    """The machine that program `index` runs on."""
    return setups[TURNS[index // STRETCH % len(TURNS)] if len(setups) > 1 else 0]


def length_of(spec: CampaignSpec, index: int) -> int:
    """How many actions program `index` has: the last one of a campaign may be shorter."""
    return spec.length if spec.actions is None else min(spec.length, spec.actions - index * spec.length)


@dataclass(slots=True)
class Report:
    """What a worker says of programs [start, stop)."""
    start: int
    stop: int
    actions: int = 0
    raw: int = 0                                # steps of bursts, besides the actions
    kinds: Counter[type[Action]] = field(default_factory=Counter)   # the actions and the steps, by what they do
    looseness: Counter[str] = field(default_factory=Counter)
    declared: Counter[str] = field(default_factory=Counter)     # actions left out, by the declared difference
    commands: Counter[tuple[str, str]] = field(default_factory=Counter)     # given, by name and by what came of them
    coverage: Coverage = field(default_factory=dict)
    divergences: list[Divergence] = field(default_factory=list)
    failures: list[HarnessFailure] = field(default_factory=list)
    findings: list[ModelFinding] = field(default_factory=list)
    skipped: int = 0                            # programs at its end for which there was no time


# --- running -----------------------------------------------------------------------------------------------------------------

class Runner(ABC):
    """Runs programs of a campaign in this process; how, says the kind of machine."""
    audit_every: ClassVar[int]                  # programs
    budget: ClassVar[int]                       # runs to shrink one

    def __init__(self, spec: CampaignSpec, target: Target, tell: Callable[[int, int], None]) -> None:
        self.spec = spec
        self.target = target
        self.setups = self.machines()
        self.tell = tell                        # called with the program and the phase whenever something moves
        self.generators: dict[Setup, Generator] = {}
        self.use(self.setups[0])
        self.shrunk: set[tuple[str, str, str]] = set()
        self.begun = time.monotonic()
        self.index = 0                          # of the program that is being played

    # --- what kinds of machines have each in their way

    @abstractmethod
    def machines(self) -> tuple[Setup, ...]:
        """The machine that was asked for, and variations of it."""

    @abstractmethod
    def make_generator(self, setup: Setup) -> Generator:
        """What makes programs for a machine."""

    @abstractmethod
    def play(self, index: int, report: Report, shrinking: bool) -> None:
        """Run program `index` and enter in the report what came of it; raise if the harness or the model failed."""

    @abstractmethod
    def verdict_on(self, actions: Sequence[Action]) -> Verdict:
        """What comes of a given program."""

    @abstractmethod
    def failure(self, index: int, what: HarnessError) -> HarnessFailure:
        """The target failed in the program that is being played."""

    # --- what they have in common

    def late(self, grace: float = 0.0) -> bool:
        """The campaign's time is over, and a time of grace with it."""
        return self.spec.seconds is not None and time.monotonic() - self.begun >= self.spec.seconds + grace

    def use(self, setup: Setup) -> None:
        """Run the next program on this machine."""
        self.setup = setup
        if setup not in self.generators:
            self.generators[setup] = self.make_generator(setup)
        self.generator = self.generators[setup]
        self.machine = self.generator.machine

    def run(self, index: int, report: Report, shrinking: bool = True) -> None:
        """Run program `index` and enter in the report what came of it, whatever that is."""
        self.index = index
        setup = machine_of(self.setups, index)
        if setup is not self.setup:
            self.use(setup)
        try:
            self.play(index, report, shrinking)
        except HarnessError as e:
            report.failures.append(self.failure(index, e))
        except ModelError as e:
            report.findings.append(ModelFinding(index, "", f"the program left the vocabulary: {e}"))
        except Exception:                       # a mistake of the model or the generator: as much a finding as a broken invariant
            report.findings.append(ModelFinding(index, "", traceback.format_exc(limit=-6)))

    def audit(self, index: int, report: Report) -> None:
        """Every so often: every invariant must hold of the model's state, and no token may be left."""
        if index % self.audit_every:
            return
        with coverage.uncounted():
            violations = audit(self.machine.concrete)
        report.findings.extend(ModelFinding(index, v.rule, f"{v.key}: {v.text}") for v in violations[:3])
        report.findings.extend(ModelFinding(index, "", f"{name} tokens are left: {dict(left)}")
                               for name, left in (("held", self.machine.s.held), ("held_type", self.machine.s.held_type))
                               if any(left.values()))

    def divergence(self, index: int, actions: Sequence[Action], verdict: Verdict, shrinking: bool) -> Divergence:
        """A divergence, shrunk if it is the first of its kind here."""
        if not shrinking or verdict.key in self.shrunk:
            return Divergence(self.setup, index, len(actions), tuple(actions[:verdict.at + 1]), verdict, 0)
        self.shrunk.add(verdict.key)
        with coverage.uncounted():
            found = shrink(actions, verdict, self.again, self.budget, lambda: self.late(GRACE))
        return Divergence(self.setup, index, len(actions), found.actions, found.verdict, found.runs)

    def again(self, candidate: Sequence[Action]) -> Verdict | None:
        """What comes of a simpler program, if it is one."""
        self.tell(self.index, SHRINKING)
        try:
            return self.verdict_on(candidate)
        except (ModelError, HarnessError):
            return None


class BootedRunner(Runner):
    """On machines that are built to a setup: a program is made in one go, run, and compared."""
    audit_every = 500
    budget = BUDGET
    actions: Sequence[Action] = ()              # of the program that is being played

    def machines(self) -> tuple[Setup, ...]:
        """As the campaign varies them."""
        return machines(self.spec, self.target)

    def make_generator(self, setup: Setup) -> Generator:
        """For a model that is booted, too."""
        return Generator(model_of(self.target, setup), focus=self.spec.focus)

    def generate(self, index: int) -> tuple[list[Action], list[Outcome]]:
        """Program `index` and the model's outcomes; the machine is left as after its last action."""
        self.tell(index, GENERATING)
        return self.generator.program(program_random(self.spec.seed, index), length_of(self.spec, index))

    def execute(self, actions: Sequence[Action]) -> tuple[list[Outcome], Observation]:
        """Run a program on the target, from its boot, and look at it."""
        try:
            self.target.reset(self.setup)
            outcomes = self.target.run(actions)
            return outcomes, self.target.observe()
        except Exception as e:
            raise harness_error(self.target.name, e) from e

    def play(self, index: int, report: Report, shrinking: bool) -> None:
        """Run program `index`."""
        choices, start = self.machine.choices, coverage.tallies()
        met, forgiven = choices.counts.copy(), choices.forgiven.copy()
        self.actions, expected = self.generate(index)
        coverage.merge(report.coverage, coverage.since(start))
        report.commands += self.generator.commands
        self.audit(index, report)
        self.tell(index, RUNNING)
        outcomes, observation = self.execute(self.actions)
        memory = (observation.extent - self.setup.xen_frames) * 4096
        full = memory <= SMALL_MEMORY or index % WHOLE_EVERY == 0
        report.actions += len(self.actions)
        report.kinds.update(map(type, self.actions))
        if outcomes == expected and not self.machine.compare(observation, full):
            report.looseness += choices.counts - met + (choices.forgiven - forgiven)
            return
        self.tell(index, JUDGING)
        verdict = judge(self.machine, self.actions, outcomes, observation, full=full)
        report.looseness += verdict.looseness
        if not verdict.agrees:
            report.divergences.append(self.divergence(index, self.actions, verdict, shrinking))

    def verdict_on(self, actions: Sequence[Action]) -> Verdict:
        """Run from boot, and judged; what generated programs leave out is no program."""
        if not self.generator.keeps(actions):
            raise HarnessError("left out: what the engine does otherwise, or what leads out of the vocabulary")
        return judge(self.machine, actions, *self.execute(actions))

    def failure(self, index: int, what: HarnessError) -> HarnessFailure:
        """With the whole program."""
        return HarnessFailure(self.setup, index, str(what), tuple(self.actions))
