"""Runs many generated programs on the model and a target: worker processes, their deaths and hangs, and one merged result.

Program i of a campaign depends on (seed, i) alone.  The parent hands out stretches of indices and merges what comes back in the
order of the indices, so a campaign of a given number of actions has one result, however many workers there are.  A worker that
dies or hangs is a harness failure of the program it was at, which is generated again from its index; a new worker goes on.
"""
import gc
import multiprocessing as mp
import os
import random
import sys
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any, Final

from oracle import coverage
from oracle.coverage import Coverage
from oracle.generate import Generator
from oracle.ground import Ground
from oracle.judge import Verdict, judge
from oracle.live import Player, play, play_generated
from oracle.schema import ProgramError
from oracle.shrink import BUDGET, shrink
from oracle.targets import HarnessError, RealTarget, Target, default_setup, model_of, open_target, planted
from oracle.worker import uninterrupted
from refmodel import ModelError, audit, boot
from spec.abi import Xen2003
from spec.profile import PROFILES
from spec.vocabulary import Action, Observation, Outcome, Setup

STRETCH: Final = 16                             # programs that a worker is given at a time
AHEAD: Final = 2                                # stretches that a worker has in hand, so that it never waits
SMALL_MEMORY: Final = 4 << 20                   # up to this much guest memory is compared whole after every program,
WHOLE_EVERY: Final = 64                         # more than that only this often
AUDIT_EVERY: Final = 500                        # programs
LIVE_AUDIT_EVERY: Final = 20                    # the longer programs of a real machine
LIVE_LENGTH: Final = 2000                       # their actions
LIVE_BUDGET: Final = 60                         # runs to shrink one
MOST_DIVERGENT: Final = 100                     # divergent programs, of whatever kinds, that end a campaign
MOST_FAILURES: Final = 20                       # harness failures, or findings against the model, that end a campaign
MOST_BARREN: Final = 3                          # workers in a row that die without having run a program
GENERATING, RUNNING, JUDGING, SHRINKING = range(4)
# Which machine the stretches of a campaign run on, in turn: 0 is the one that was asked for, the others are variations of it.
TURNS: Final = (0, 1, 0, 2, 0, 0, 3, 0)


class CampaignError(Exception):
    """The campaign cannot run: its target does not start."""


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


@dataclass(frozen=True, slots=True)
class Divergence:
    """A program on which target and model do not agree, shrunk."""
    setup: Setup
    index: int
    original: int                               # actions before shrinking
    actions: tuple[Action, ...]
    verdict: Verdict
    runs: int                                   # that shrinking took; 0: as generated


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


@dataclass(slots=True)
class CampaignResult:
    """What came of a campaign; while it runs, what has come so far."""
    spec: CampaignSpec
    setup: Setup | None = None                  # the machine that was asked for
    programs: int = 0
    actions: int = 0
    divergences: list[Divergence] = field(default_factory=list)     # one of each kind
    divergent_programs: int = 0
    harness_failures: list[HarnessFailure] = field(default_factory=list)
    model_findings: list[ModelFinding] = field(default_factory=list)
    looseness: Counter[str] = field(default_factory=Counter)
    declared: Counter[str] = field(default_factory=Counter)     # actions left out, by the declared difference
    coverage: Coverage = field(default_factory=dict)
    seconds: float = 0.0
    found_after: int = 0                        # actions up to and including the first divergent program

    @property
    def seed(self) -> int:
        """The seed that repeats it."""
        return self.spec.seed

    @property
    def clean(self) -> bool:
        """Nothing was found."""
        return not (self.divergences or self.harness_failures or self.model_findings)


def program_random(seed: int, index: int) -> random.Random:
    """The random numbers of one program."""
    return random.Random(f"{seed}/{index}")


def machines(spec: CampaignSpec, target: Target) -> tuple[Setup, ...]:
    """The machine that was asked for and, if it may vary, others: a pool at its limit, more domains, two L1 tables."""
    asked = default_setup(spec.profile, target, domains=spec.domains, pages=spec.pages, frames=spec.frames)
    if not spec.varied or isinstance(target, RealTarget):
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


def length_for(target: str) -> int:
    """How long programs usually are: where a reset costs much, longer."""
    return LIVE_LENGTH if target == "xen" else CampaignSpec().length


def length_of(spec: CampaignSpec, index: int) -> int:
    """How many actions program `index` has: the last one of a campaign may be shorter."""
    return spec.length if spec.actions is None else min(spec.length, spec.actions - index * spec.length)


# --- the worker --------------------------------------------------------------------------------------------------------------

@dataclass(slots=True)
class _Report:
    """What a worker says of programs [start, stop)."""
    start: int
    stop: int
    actions: int = 0
    looseness: Counter[str] = field(default_factory=Counter)
    declared: Counter[str] = field(default_factory=Counter)     # actions left out, by the declared difference
    coverage: Coverage = field(default_factory=dict)
    divergences: list[Divergence] = field(default_factory=list)
    failures: list[HarnessFailure] = field(default_factory=list)
    findings: list[ModelFinding] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Stretch:
    """Programs [start, stop) to run."""
    start: int
    stop: int
    shrink: bool = True


class Runner:
    """Runs programs of a campaign in this process."""

    def __init__(self, spec: CampaignSpec, target: Target, setup: Setup, tell: Callable[[int, int], None],
                 others: Sequence[Setup] = ()) -> None:
        self.spec = spec
        self.target = target
        self.setups = (setup, *others)
        self.tell = tell                        # called with the program and the phase whenever something moves
        self.generators: dict[Setup, Generator] = {}
        self.use(setup)
        self.shrunk: set[tuple[str, str, str]] = set()

    def use(self, setup: Setup) -> None:
        """Run the next program on this machine."""
        self.setup = setup
        if setup not in self.generators:
            machine = model_of(self.target, setup)
            ground = Ground(machine, *self.target.ground()) if isinstance(self.target, RealTarget) else None
            self.generators[setup] = Generator(machine, ground)
        self.generator = self.generators[setup]
        self.machine = self.generator.machine

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
        except HarnessError:
            raise
        except Exception as e:
            raise HarnessError(f"target {self.target.name}: {type(e).__name__}: {e}") from e

    def run(self, index: int, report: _Report, shrinking: bool = True) -> None:
        """Run program `index` and enter in the report what came of it."""
        setup = machine_of(self.setups, index)
        if setup is not self.setup:
            self.use(setup)
        if isinstance(self.target, RealTarget):
            self.run_live(index, report, shrinking)
            return
        choices, start = self.machine.choices, coverage.tallies()
        met, forgiven = choices.counts.copy(), choices.forgiven.copy()
        try:
            actions, expected = self.generate(index)
            coverage.merge(report.coverage, coverage.since(start))
            if index % AUDIT_EVERY == 0:
                self.audit(index, report)
            self.tell(index, RUNNING)
            outcomes, observation = self.execute(actions)
            memory = (observation.extent - self.setup.xen_frames) * 4096
            full = memory <= SMALL_MEMORY or index % WHOLE_EVERY == 0
            report.actions += len(actions)
            if outcomes != expected or self.machine.compare(observation, full):
                self.tell(index, JUDGING)
                verdict = judge(self.machine, actions, outcomes, observation, full=full)
                report.looseness += verdict.looseness
                if not verdict.agrees:
                    report.divergences.append(self.divergence(index, actions, verdict, shrinking))
            else:
                report.looseness += choices.counts - met + (choices.forgiven - forgiven)
        except HarnessError as e:
            report.failures.append(HarnessFailure(setup, index, str(e), tuple(actions)))
        except ModelError as e:
            report.findings.append(ModelFinding(index, "", f"the program left the vocabulary: {e}"))
        except Exception:                       # a mistake of the model or the generator: as much a finding as a broken invariant
            report.findings.append(ModelFinding(index, "", traceback.format_exc(limit=-6)))

    def run_live(self, index: int, report: _Report, shrinking: bool) -> None:
        """The same for a real machine: made and compared piece by piece."""
        start, generator = coverage.tallies(), self.generator
        player = None
        try:
            self.tell(index, RUNNING)
            generator.begin(program_random(self.spec.seed, index))
            player = Player(self.machine, self.target, self.setup, lambda: self.tell(index, JUDGING))
            play_generated(generator, player, length_of(self.spec, index), lambda: self.tell(index, RUNNING))
            coverage.merge(report.coverage, coverage.since(start))
            if index % LIVE_AUDIT_EVERY == 0 and player.verdict is None:
                self.audit(index, report)
            if player.verdict is not None:
                report.divergences.append(self.divergence(index, player.actions, player.verdict, shrinking))
        except HarnessError as e:
            report.failures.append(HarnessFailure(self.setup, index, str(e), tuple(player.actions) if player else ()))
        except ModelError as e:
            report.findings.append(ModelFinding(index, "", f"the program left the vocabulary: {e}"))
        except Exception:
            report.findings.append(ModelFinding(index, "", traceback.format_exc(limit=-6)))
        if player is not None:
            report.actions += len(player.actions)
            report.looseness += player.looseness
        report.declared += generator.declared

    def audit(self, index: int, report: _Report) -> None:
        """Every invariant must hold of the model's state, and no token may be left."""
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

        def again(candidate: Sequence[Action]) -> Verdict | None:
            self.tell(index, SHRINKING)
            try:
                if isinstance(self.target, RealTarget):
                    return play(self.machine, self.target, self.setup, candidate)
                return judge(self.machine, candidate, *self.execute(candidate))
            except (ModelError, HarnessError):
                return None
        with coverage.uncounted():
            found = shrink(actions, verdict, again, LIVE_BUDGET if isinstance(self.target, RealTarget) else BUDGET)
        return Divergence(self.setup, index, len(actions), found.actions, found.verdict, found.runs)


Opener = Callable[[str], Target]


def _worker(spec: CampaignSpec, opener: Opener, pipe: Connection, progress: Any) -> None:
    """The main program of a worker process."""
    with suppress(EOFError, ConnectionError):   # the parent is gone
        _work(spec, opener, pipe, progress)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)                                 # an engine's own teardown may not be clean


def _work(spec: CampaignSpec, opener: Opener, pipe: Connection, progress: Any) -> None:
    """Stretches in, reports out, until the parent has no more."""
    def tell(index: int, phase: int) -> None:
        progress[0], progress[1] = index, phase
        progress[2] += 1
    with ExitStack() as stack:
        try:
            target = opener(spec.target)
            stack.callback(target.close)
            setups = machines(spec, target)
            if spec.plant:
                stack.enter_context(planted(target, spec.plant))
            runner = Runner(spec, target, setups[0], tell, setups[1:])
        except (HarnessError, ProgramError) as e:
            pipe.send(str(e))
            return
        except Exception as e:
            pipe.send(f"{type(e).__name__}: {e}")
            return
        pipe.send(setups)
        gc.freeze()                             # what is here now stays: the collector need not look at it again
        gc.set_threshold(100_000, 20, 20)
        while (stretch := pipe.recv()) is not None:
            report = _Report(stretch.start, stretch.stop)
            for index in range(stretch.start, stretch.stop):
                runner.run(index, report, stretch.shrink)
                if report.divergences or report.failures or report.findings:
                    report.stop = index + 1     # what was found goes out at once, and the result may be cut here
                    pipe.send(report)
                    report = _Report(index + 1, stretch.stop)
            if report.start < report.stop:
                pipe.send(report)


# --- the parent --------------------------------------------------------------------------------------------------------------

class _Worker:
    """A worker process as the parent sees it."""

    def __init__(self, spec: CampaignSpec, opener: Opener) -> None:
        context = mp.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.progress = context.RawArray("q", [-1, GENERATING, 0])
        self.process = context.Process(target=_worker, args=(spec, opener, theirs, self.progress), daemon=True)
        with uninterrupted():
            self.process.start()
        theirs.close()
        self.ready = False
        self.stretches: deque[_Stretch] = deque()
        self.moved = 0
        self.since = time.monotonic()

    def give(self, stretch: _Stretch) -> None:
        """Hand out a stretch."""
        self.stretches.append(stretch)
        with suppress(OSError):                 # it is dead, which its end of the pipe will tell
            self.pipe.send(stretch)

    def done(self, report: _Report) -> None:
        """Part of the first stretch in hand has been reported."""
        first = self.stretches.popleft()
        if report.stop < first.stop:
            self.stretches.appendleft(_Stretch(report.stop, first.stop, first.shrink))

    def stuck(self, now: float, limit: float) -> bool:
        """Nothing has moved for too long although there is work."""
        if self.progress[2] != self.moved or not (self.stretches or not self.ready):
            self.moved, self.since = self.progress[2], now
        return now - self.since > limit

    def stop(self) -> None:
        """End the process."""
        if self.process.is_alive():
            self.process.kill()
        self.process.join()
        self.pipe.close()


class Campaign:
    """The parent of a campaign's workers."""

    def __init__(self, spec: CampaignSpec, on_progress: Callable[[CampaignResult], None] | None = None,
                 opener: Opener = open_target) -> None:
        if spec.actions is None and spec.seconds is None:
            raise ValueError("a campaign needs a number of actions or of seconds")
        self.spec = spec
        self.on_progress = on_progress
        self.opener = opener
        self.result = CampaignResult(spec)
        self.programs = None if spec.actions is None else -(-spec.actions // spec.length)
        self.setups: tuple[Setup, ...] = ()     # as the first worker that was ready says
        self.workers: list[_Worker] = []
        self.again: deque[_Stretch] = deque()   # stretches of workers that died
        self.handed_out = 0                     # indices below this were handed out
        self.merged = 0                         # indices below this are in the result
        self.reports: dict[int, _Report] = {}   # those that came before their turn, by start
        self.barren = 0
        self.begun = time.monotonic()

    def run(self) -> CampaignResult:
        """Run it to its end."""
        try:
            useful = self.spec.workers if self.programs is None else min(self.spec.workers, -(-self.programs // STRETCH))
            self.workers = [_Worker(self.spec, self.opener) for _ in range(useful)]
            while not self.over():
                self.turn()
        finally:
            for worker in self.workers:
                worker.stop()
        self.result.seconds = time.monotonic() - self.begun
        return self.result

    # --- when it ends

    def out_of_time(self) -> bool:
        """No more work is handed out."""
        return self.spec.seconds is not None and time.monotonic() - self.begun >= self.spec.seconds

    def enough(self) -> bool:
        """So much is found that going on makes no sense."""
        r = self.result
        return len(r.divergences) >= self.spec.distinct or r.divergent_programs >= MOST_DIVERGENT or \
            len(r.harness_failures) + len(r.model_findings) >= MOST_FAILURES

    def over(self) -> bool:
        """All is done, or enough is found."""
        if self.enough():
            return True
        if self.programs is not None and self.merged >= self.programs:
            return True
        return self.out_of_time() and not self.again and not any(w.stretches for w in self.workers)

    # --- one turn

    def turn(self) -> None:
        """Hand out work, wait a little, take what has come, look after the workers."""
        for worker in self.workers:
            while worker.ready and len(worker.stretches) < AHEAD and (stretch := self.next_stretch()) is not None:
                worker.give(stretch)
        ready = wait([w.pipe for w in self.workers], timeout=0.1)
        now = time.monotonic()
        for worker in list(self.workers):
            if worker.pipe in ready:
                self.take(worker)
            elif worker.stuck(now, patience := self.spec.hang_seconds + (not worker.ready) * len(self.workers)):
                worker.process.kill()       # those that start together start slowly
                self.lost(worker, f"hung: no progress for {patience:g} s")
        self.result.seconds = now - self.begun
        if self.on_progress is not None:
            self.on_progress(self.result)

    def next_stretch(self) -> _Stretch | None:
        """The next programs to run, or None."""
        if self.again:
            return self.again.popleft()
        if self.out_of_time() or (self.programs is not None and self.handed_out >= self.programs):
            return None
        start = self.handed_out
        self.handed_out = start + STRETCH if self.programs is None else min(start + STRETCH, self.programs)
        return _Stretch(start, self.handed_out)

    def take(self, worker: _Worker) -> None:
        """Take one message from a worker, or notice its death."""
        try:
            message = worker.pipe.recv()
        except (EOFError, OSError):
            worker.process.join()
            code = worker.process.exitcode or 0
            self.lost(worker, f"died of signal {-code}" if code < 0 else f"ended with status {code}")
            return
        if isinstance(message, str):
            raise CampaignError(message if message.startswith("target ") else f"target {self.spec.target}: {message}")
        if isinstance(message, tuple):
            worker.ready = True
            if not self.setups:
                self.begun = time.monotonic()   # a machine that is slow to start has its time none the less
            self.setups, self.result.setup = message, message[0]
            return
        self.barren = 0
        worker.done(message)
        self.reports[message.start] = message
        self.merge()

    def lost(self, worker: _Worker, how: str) -> None:
        """A worker is gone: its program is a harness failure, the rest of its work is done again by another."""
        worker.stop()
        self.workers[self.workers.index(worker)] = _Worker(self.spec, self.opener)
        self.barren += 1
        index, phase = worker.progress[0], worker.progress[1]
        blamed = any(s.start <= index < s.stop for s in worker.stretches)
        if self.barren >= MOST_BARREN and not blamed:
            raise CampaignError(f"target {self.spec.target}: its worker {how} before it ran a program")
        for s in worker.stretches:
            if not s.start <= index < s.stop:
                self.again.append(s)
                continue
            if s.start < index:
                self.again.append(_Stretch(s.start, index, s.shrink))
            if phase == SHRINKING and s.shrink:     # the divergence counts, as it is
                self.again.append(_Stretch(index, index + 1, shrink=False))
            else:
                actions = regenerate(self.spec, self.setups, index) if phase != GENERATING else ()
                failure = HarnessFailure(machine_of(self.setups, index), index, how, actions)
                self.reports[index] = _Report(index, index + 1, actions=len(failure.actions), failures=[failure])
            if index + 1 < s.stop:
                self.again.append(_Stretch(index + 1, s.stop, s.shrink))
        self.merge()

    def merge(self) -> None:
        """Enter the reports whose turn it is into the result."""
        r = self.result
        while not self.enough() and (report := self.reports.pop(self.merged, None)) is not None:
            self.merged = report.stop
            r.programs += report.stop - report.start
            r.actions += report.actions
            r.looseness += report.looseness
            r.declared += report.declared
            coverage.merge(r.coverage, report.coverage)
            r.harness_failures += report.failures
            r.model_findings += report.findings
            for divergence in report.divergences:
                r.divergent_programs += 1
                if r.divergent_programs == 1:
                    r.found_after = r.actions
                if all(divergence.verdict.key != known.verdict.key for known in r.divergences):
                    r.divergences.append(divergence)


def regenerate(spec: CampaignSpec, setups: Sequence[Setup], index: int) -> tuple[Action, ...]:
    """Program `index` of a campaign, generated again."""
    if spec.target == "xen":                    # it takes the machine to make its programs
        return ()
    generator = Generator(boot(machine_of(setups, index)))
    return tuple(generator.program(program_random(spec.seed, index), length_of(spec, index))[0])


def run_campaign(spec: CampaignSpec, on_progress: Callable[[CampaignResult], None] | None = None,
                 opener: Opener = open_target) -> CampaignResult:
    """Run a campaign; `on_progress` is called several times a second with the result so far.

    `opener` opens the target in each worker process; it must be a function that the workers can import.
    """
    return Campaign(spec, on_progress, opener).run()
