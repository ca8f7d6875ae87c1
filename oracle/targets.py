"""What can be held against the model: our emulator, the model itself, and any command that speaks JSON lines."""
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Final, Protocol, TypeVar, runtime_checkable

from oracle.encoding import check_setup
from oracle.files import Buffer
from oracle.schema import ProgramError, short
from refmodel import Machine, ModelError, boot, imported_machine
from spec.profile import PROFILES
from spec.vocabulary import Action, DomainSetup, Finish, Image, LongFinish, LongTrial, Observation, Outcome, Setup, Trial

REAL_TARGET: Final = "xen"                  # the one that is a real machine
T = TypeVar("T")
Tried = TypeVar("Tried", contravariant=True)
Finished = TypeVar("Finished", covariant=True)
PATIENCE: Final = 20.0                      # seconds to wait for an answer
MODEL_XEN_FRAMES: Final = 16                # the model as a target needs none of them, but Xen always has some


class HarnessError(Exception):
    """The target failed as a machine: it does not start, died, hung, or does not make sense.  One line."""


def harness_error(target: str, e: Exception) -> HarnessError:
    """What a target raised, as a failure of the harness.  The emulator has an exception of that name of its own."""
    if isinstance(e, HarnessError):
        return e
    kind = "" if type(e).__name__ == HarnessError.__name__ else f"{type(e).__name__}: "
    return HarnessError(f"target {target}: {kind}{e}")


class Target(Protocol):
    """A machine on which programs run.  Every method may raise HarnessError."""

    @property
    def name(self) -> str:
        """What a user calls it."""

    @property
    def profiles(self) -> tuple[str, ...]:
        """The profiles that it runs."""

    def needs(self, frames: int) -> tuple[int, tuple[int, ...]]:
        """How many frames Xen itself takes of a machine of `frames`, and the words in its slots of every root table."""

    def reset(self, setup: Setup) -> None:
        """The machine as it is at boot."""

    def run(self, actions: Sequence[Action]) -> list[Outcome]:
        """Perform the actions in order; one outcome each."""

    def observe(self) -> Observation:
        """The visible state; its buffers live until the next reset or run."""

    def close(self) -> None:
        """Give back what the target holds; it is not used again."""


@runtime_checkable
class RealTarget(Target, Protocol):
    """A target that is not built to a setup, but is what it is: the model starts from what is found in its memory."""

    def setup(self, pages: int, domains: int = 1) -> Setup:
        """The machine with so many domains, each with `pages` pages for programs."""

    def image(self, setup: Setup) -> Image | None:
        """Its whole state as a reset leaves it; None from a stand-in for a target that has none."""

    def ground(self) -> tuple[int, int]:
        """The addresses [start, end) in every domain of the code that drives it."""

    def code(self, action: Action) -> bytes:
        """An action as the machine takes it in a burst."""

    def answer(self, action: Action, outcome: Outcome) -> bytes:
        """An outcome as the machine answers it: all answers are of one length."""

    def told(self, actions: Sequence[Action], answers: bytes) -> list[Outcome]:
        """The outcomes in answers."""

    def send(self, codes: Sequence[bytes]) -> None:
        """Start some actions that hand nothing out; `receive` comes next."""

    def receive(self) -> bytes:
        """What the machine answers to all that was sent."""

    def kill(self) -> None:
        """End its process, as a crash would; the next reset brings it back."""

    def memory(self) -> Buffer | None:
        """All its memory from address 0 on as it is now, even if the machine is dead; None from a stand-in that has none."""


class BareProcessor(Protocol[Tried, Finished]):
    """A processor without a hypervisor, for single instructions."""

    @property
    def not_tried(self) -> Mapping[str, str]:
        """What it is not asked to do, and why."""

    def perform(self, trial: Tried) -> Finished:
        """Let it execute one instruction.  It may raise HarnessError."""


@contextmanager
def importing(what: str = "the emulator can't run") -> Iterator[None]:
    """Around imports of the emulator, which need not be installed: HarnessError says what can't be done here."""
    try:
        yield
    except ImportError as e:
        raise HarnessError(f"{what} here: {e}") from e


def open_long_processor() -> BareProcessor[LongTrial, LongFinish]:
    """The emulator's processor in long mode; see open_processor."""
    with importing():
        from emulator.long_cells import LongCells
    return LongCells()


def open_processor() -> BareProcessor[Trial, Finish]:
    """The emulator's processor; it takes it away from the emulator as a target."""
    with importing():
        from emulator.cells import Cells
    return Cells()


class EntryCost(Protocol):
    """What it costs to enter a kernel once: instructions of the guest and of Xen's stubs, and seconds."""

    @property
    def instructions(self) -> float:
        """Of the guest's, without one that faults."""

    @property
    def xens(self) -> float:
        """Of Xen's stubs."""

    @property
    def seconds(self) -> float:
        """In all."""


def entry_costs() -> Mapping[str, EntryCost]:
    """Each way into a kernel on the emulator, the fastest first; it takes the processor away from the emulator as a target."""
    with importing():
        from emulator.entries import entry_costs as measured
    return measured()


def model_of(target: Target, setup: Setup) -> Machine:
    """The model's machine for a target: booted to the setup or, of a real machine, imported.

    HarnessError if the setup is another machine's.
    """
    if setup.profile not in target.profiles:
        raise HarnessError(f"target {target.name} does not run {setup.profile}")
    if setup.machine and not isinstance(target, RealTarget):
        raise HarnessError(f"the program was made on {setup.machine}, which target {target.name} is not: "
                           f"use --target {REAL_TARGET}")
    image = told_by(target, lambda: target.image(setup)) if isinstance(target, RealTarget) else None
    return boot(setup) if image is None else imported_machine(setup, image)


def told_by(target: Target, ask: Callable[[], T]) -> T:
    """What a target answers; whatever it raises is a HarnessError."""
    try:
        return ask()
    except Exception as e:
        raise harness_error(target.name, e) from e


def open_target(name: str) -> Target:
    """The target that a user calls `name`: "emulator" or "xen" (one a process), "model", or "cmd:COMMAND"."""
    try:
        return opened(name)
    except Exception as e:
        raise harness_error(name, e) from e


def opened(name: str) -> Target:
    """The same, with whatever a target raises that cannot start."""
    if name == "model":
        return ModelTarget()
    if name == "emulator":
        with importing():
            from emulator.target import EmulatorTarget
        return EmulatorTarget()
    if name == REAL_TARGET:
        with importing("the real Xen can't be driven"):
            from emulator.xen.target import XenTarget
        return XenTarget()
    if name.startswith("cmd:"):
        from oracle.command import CommandTarget
        return CommandTarget(name.removeprefix("cmd:"))
    raise HarnessError(f"unknown target {short(name)} (known: emulator, xen, model, cmd:COMMAND)")


def read_image(ram: Buffer) -> Image:
    """The machine that has this memory.  HarnessError if it is not a Xen's that we can read."""
    with importing("images of the real Xen can't be read"):
        from emulator.xen.frames import ImageError, image
        from emulator.xen.version import check_memory
    try:
        check_memory(ram)
        return image(ram)
    except ImageError as e:
        raise HarnessError(str(e)) from e


def default_setup(profile: str, target: Target, domains: int = 2, pages: int = 64, frames: int = 2048) -> Setup:
    """Domains 0, 1, … one after the other behind Xen's own frames.  ProgramError if they do not fit."""
    if profile not in PROFILES:
        raise ProgramError("profile", f"unknown profile {short(profile)} (known: {', '.join(PROFILES)})")
    if profile not in target.profiles:
        raise HarnessError(f"target {target.name} does not run {profile} (it runs {', '.join(target.profiles)})")
    if domains > frames:
        raise ProgramError("domains", f"{domains} do not fit in {frames} frames")
    if isinstance(target, RealTarget):
        return told_by(target, lambda: target.setup(pages, domains))
    xen_frames, slots = target.needs(frames)
    layout = tuple(DomainSetup(d, xen_frames + d * (pages + 1), pages) for d in range(domains))
    setup = Setup(profile, frames, xen_frames, layout, slots)
    check_setup(setup)
    return setup


# --- planted bugs ------------------------------------------------------------------------------------------------------------

class Plant(Protocol):
    """A bug that can be planted in a target."""
    @property
    def name(self) -> str:
        """By which it is asked for."""

    @property
    def summary(self) -> str:
        """What goes wrong, in one line."""

    @property
    def historic(self) -> str:
        """The bug of the real Xen that it is like, if there is one."""


def planted_bugs(target: str) -> list[Plant]:
    """The bugs that can be planted in the target of this name."""
    if target != "emulator":
        return []
    with importing():
        from emulator.planted import PLANTS
    return list(PLANTS.values())


def planted(target: Target, name: str) -> AbstractContextManager[object]:
    """In this context the target has the bug, from its next reset on.  HarnessError if it knows no such bug."""
    if name in {plant.name for plant in planted_bugs(target.name)}:
        from emulator.planted import planted as plant
        from emulator.target import EmulatorTarget
        if isinstance(target, EmulatorTarget):
            return plant(target, name)
    raise HarnessError(f"target {target.name} knows no planted bug {short(name)}")


# --- the model as a target ---------------------------------------------------------------------------------------------------

class ModelTarget:
    """The reference model itself: for tests, traces to start from, and as a measure of speed."""
    name = "model"
    profiles = tuple(PROFILES)

    def __init__(self) -> None:
        self.machine: Machine | None = None

    def needs(self, frames: int) -> tuple[int, tuple[int, ...]]:
        """A few frames, so that there are some that no guest may touch; the model's own slots."""
        return MODEL_XEN_FRAMES, ()

    def reset(self, setup: Setup) -> None:
        """Boot, or go back to boot."""
        if self.machine is None or self.machine.setup != setup:
            self.machine = boot(setup)
        else:
            self.machine.reset()
        self.machine.choices.begin()

    def run(self, actions: Sequence[Action]) -> list[Outcome]:
        """Step by step."""
        machine = self._machine()
        try:
            return [machine.step(action) for action in actions]
        except ModelError as e:
            raise HarnessError(f"the program is outside the vocabulary: {e}") from e

    def observe(self) -> Observation:
        """The model's state."""
        return self._machine().observe()

    def _machine(self) -> Machine:
        if self.machine is None:
            raise HarnessError("run or observe before the first reset")
        return self.machine

    def close(self) -> None:
        """Nothing is held."""
        self.machine = None
