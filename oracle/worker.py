"""A target in a process of its own: if that dies or hangs, it is a HarnessError here, and a new one takes its place."""
import contextlib
import multiprocessing as mp
import os
import signal
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from oracle.command import ending, quoted
from oracle.targets import PATIENCE, REAL_TARGET, HarnessError, Target, harness_error, open_target, planted
from spec.vocabulary import Action, Observation, Outcome, Setup


@dataclass(frozen=True, slots=True)
class _Failed:
    """What a worker answers instead of a result."""
    what: str


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Processes started in this context never see Ctrl-C, from their first instruction on: the parent decides when they end."""
    resource_tracker.ensure_running()       # its start would unblock the signal
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def held_target(name: str, plant: str = "") -> Target:
    """The target of this name, in a process of its own; a real machine is one anyway."""
    if name != REAL_TARGET:
        return WorkerTarget(name, plant=plant)
    target = open_target(name)
    if plant:
        planted(target, plant)                  # which it refuses
    return target


class WorkerTarget:
    """Any target, behind a pipe."""

    def __init__(self, inner: str, patience: float = PATIENCE + 10, plant: str = "") -> None:
        self.inner, self.plant, self.patience = inner, plant, patience
        self.process: Any = None
        self._start()

    def needs(self, frames: int) -> tuple[int, tuple[int, ...]]:
        """As the inner target says."""
        found: tuple[int, tuple[int, ...]] = self._ask("needs", frames)
        return found

    def reset(self, setup: Setup) -> None:
        """Boot the inner target."""
        self._ask("reset", setup)

    def run(self, actions: Sequence[Action]) -> list[Outcome]:
        """Run the program there."""
        outcomes: list[Outcome] = self._ask("run", list(actions))
        return outcomes

    def observe(self) -> Observation:
        """A copy of what the inner target shows."""
        seen: Observation = self._ask("observe")
        return seen

    def close(self) -> None:
        """End the process."""
        if self.process is not None:
            with contextlib.suppress(OSError):
                self.pipe.send(None)
            self.process.join(2.0)
            self._drop()

    def _start(self) -> None:
        context = mp.get_context("spawn")
        handle, log = tempfile.mkstemp(prefix="xenspec-", suffix=".log")
        os.close(handle)
        self.log = Path(log)
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(self.inner, self.plant, theirs, log), daemon=True)
        with uninterrupted():
            self.process.start()
        theirs.close()
        self.name, self.profiles = self._answer("start")

    def _ask(self, method: str, *args: Any) -> Any:
        if self.process is None:
            self._start()
        try:
            self.pipe.send((method, args))
        except OSError:
            raise self._lost(ending(self._exit_code())) from None
        return self._answer(method)

    def _answer(self, method: str) -> Any:
        try:
            if not self.pipe.poll(self.patience):
                raise self._lost(f"hung: no answer to '{method}' in {self.patience:g} s")
            reply = self.pipe.recv()
        except (EOFError, ConnectionError):
            raise self._lost(ending(self._exit_code())) from None
        if isinstance(reply, _Failed):
            if method == "start":
                self._drop()
            raise HarnessError(reply.what)
        return reply

    def _exit_code(self) -> int | None:
        self.process.join(2.0)
        code: int | None = self.process.exitcode
        return code

    def _lost(self, how: str) -> HarnessError:
        """The process is gone, or as good as gone."""
        error = HarnessError(f"target {self.inner} {how}{quoted(self.log.read_text(errors='replace')[-4096:])}")
        self._drop()
        return error

    def _drop(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()
        self.log.unlink(missing_ok=True)
        self.process = None


def _serve(inner: str, plant: str, pipe: Connection, log: str) -> None:
    """The main program of a WorkerTarget's process; what the engine prints goes to the log."""
    with open(log, "wb", buffering=0) as f:
        os.dup2(f.fileno(), 1)
        os.dup2(f.fileno(), 2)
    try:
        target = open_target(inner)
        planting: AbstractContextManager[object] = planted(target, plant) if plant else nullcontext()
        with planting:
            pipe.send((target.name, target.profiles))
            for reply in _replies(target, pipe):
                pipe.send(reply)
        target.close()
    except Exception as e:
        pipe.send(_Failed(str(harness_error(inner, e))))
    os._exit(0)                             # an engine's own teardown may not be clean


def _replies(target: Target, pipe: Connection) -> Iterator[Any]:
    """The answer to each request that comes, until the parent has no more."""
    while (request := _receive(pipe)) is not None:
        method, args = request
        try:
            reply = getattr(target, method)(*args)
            yield copied(reply) if isinstance(reply, Observation) else reply
        except Exception as e:
            yield _Failed(str(harness_error(target.name, e)))


def _receive(pipe: Connection) -> Any:
    """The next request; None if the parent is gone."""
    try:
        return pipe.recv()
    except EOFError:
        return None


def copied(seen: Observation) -> Observation:
    """An observation that outlives the next run."""
    return Observation(seen.extent, bytes(seen.frames), bytes(seen.memory), bytes(seen.m2p), dict(seen.base), seen.rows)
