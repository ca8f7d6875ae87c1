"""Runs many generated programs on the model and a target: worker processes, their deaths and hangs, and one merged result.

Program i of a campaign depends on (seed, i) alone.  The parent hands out stretches of indices and merges what comes back in the
order of the indices, so a campaign of a given number of actions has one result, however many workers there are.  A worker that
dies or hangs is a harness failure of the program it was at, which is generated again from its index; a new worker goes on.
"""
import gc
import multiprocessing as mp
import os
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any, Final

from oracle import coverage
from oracle.coverage import Coverage
from oracle.generate import Generator
from oracle.live_runner import runner_for
from oracle.runner import (
    GENERATING,
    SHRINKING,
    STRETCH,
    CampaignSpec,
    Divergence,
    HarnessFailure,
    ModelFinding,
    Report,
    length_of,
    machine_of,
    program_random,
)
from oracle.schema import ProgramError
from oracle.targets import REAL_TARGET, HarnessError, Target, harness_error, open_target, planted
from oracle.worker import uninterrupted
from refmodel import boot
from spec.vocabulary import Action, Setup

AHEAD: Final = 2                                # stretches that a worker has in hand, so that it never waits
MOST_DIVERGENT: Final = 100                     # divergent programs, of whatever kinds, that end a campaign
MOST_FAILURES: Final = 20                       # harness failures, or findings against the model, that end a campaign
MOST_BARREN: Final = 3                          # workers in a row that die without having run a program


class CampaignError(Exception):
    """The campaign cannot run: its target does not start."""


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
    commands: Counter[tuple[str, str]] = field(default_factory=Counter)     # given, by name and by what came of them
    coverage: Coverage = field(default_factory=dict)
    seconds: float = 0.0
    found_after: int = 0                        # actions up to and including the first divergent program
    raw: int = 0                                # steps of bursts, besides the actions
    kinds: Counter[type[Action]] = field(default_factory=Counter)   # the actions and the steps, by what they do

    @property
    def seed(self) -> int:
        """The seed that repeats it."""
        return self.spec.seed

    @property
    def clean(self) -> bool:
        """Nothing was found."""
        return not (self.divergences or self.harness_failures or self.model_findings)


# --- the worker --------------------------------------------------------------------------------------------------------------

@dataclass(frozen=True, slots=True)
class _Stretch:
    """Programs [start, stop) to run."""
    start: int
    stop: int
    shrink: bool = True


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
            runner = runner_for(spec, target, tell)
            if spec.plant:
                stack.enter_context(planted(target, spec.plant))
        except (HarnessError, ProgramError) as e:
            pipe.send(str(e))
            return
        except Exception as e:
            pipe.send(str(harness_error(spec.target, e)))
            return
        pipe.send(runner.setups)
        gc.freeze()                             # what is here now stays: the collector need not look at it again
        gc.set_threshold(100_000, 20, 20)
        while (stretch := pipe.recv()) is not None:
            report = Report(stretch.start, stretch.stop)
            for index in range(stretch.start, stretch.stop):
                if runner.late():
                    report.skipped = stretch.stop - index
                    break
                runner.run(index, report, stretch.shrink)
                if report.divergences or report.failures or report.findings:
                    report.stop = index + 1     # what was found goes out at once, and the result may be cut here
                    pipe.send(report)
                    report = Report(index + 1, stretch.stop)
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

    def done(self, report: Report) -> None:
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
        self.stretch = 1 if spec.target == REAL_TARGET else STRETCH     # a program of a real machine takes seconds
        self.setups: tuple[Setup, ...] = ()     # as the first worker that was ready says
        self.workers: list[_Worker] = []
        self.again: deque[_Stretch] = deque()   # stretches of workers that died
        self.handed_out = 0                     # indices below this were handed out
        self.merged = 0                         # indices below this are in the result
        self.reports: dict[int, Report] = {}   # those that came before their turn, by start
        self.barren = 0
        self.begun = time.monotonic()

    def run(self) -> CampaignResult:
        """Run it to its end."""
        try:
            useful = self.spec.workers if self.programs is None else min(self.spec.workers, -(-self.programs // self.stretch))
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
        """No more work is handed out.  There is time until a worker is ready: that it never is must be seen."""
        return self.spec.seconds is not None and bool(self.setups) and time.monotonic() - self.begun >= self.spec.seconds

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
        self.handed_out = start + self.stretch if self.programs is None else min(start + self.stretch, self.programs)
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
                self.reports[index] = Report(index, index + 1, actions=len(failure.actions), failures=[failure])
            if index + 1 < s.stop:
                self.again.append(_Stretch(index + 1, s.stop, s.shrink))
        self.merge()

    def merge(self) -> None:
        """Enter the reports whose turn it is into the result."""
        r = self.result
        while not self.enough() and (report := self.reports.pop(self.merged, None)) is not None:
            self.merged = report.stop
            r.programs += report.stop - report.start - report.skipped
            r.actions += report.actions
            r.raw += report.raw
            r.kinds += report.kinds
            r.looseness += report.looseness
            r.declared += report.declared
            r.commands += report.commands
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
    if spec.target == REAL_TARGET:                    # it takes the machine to make its programs
        return ()
    generator = Generator(boot(machine_of(setups, index)), focus=spec.focus)
    return tuple(generator.program(program_random(spec.seed, index), length_of(spec, index))[0])


def run_campaign(spec: CampaignSpec, on_progress: Callable[[CampaignResult], None] | None = None,
                 opener: Opener = open_target) -> CampaignResult:
    """Run a campaign; `on_progress` is called several times a second with the result so far.

    `opener` opens the target in each worker process; it must be a function that the workers can import.
    """
    return Campaign(spec, on_progress, opener).run()
