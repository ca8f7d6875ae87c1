"""Targets: the model as one, external commands and all the ways in which they fail, and targets in a process of their own."""
import os
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from oracle.command import CommandTarget
from oracle.schema import ProgramError
from oracle.targets import HarnessError, ModelTarget, Target, default_setup, open_target, planted, planted_bugs
from oracle.worker import WorkerTarget
from spec.vocabulary import Action, Hypercall, Load, Setup, Store

HERE = Path(__file__).parent
PROGRAM: list[Action] = [Load(0, 0xC0001000), Store(1, 0xC0000000, 5), Load(1, 0xC0000000), Load(1, 0), Hypercall(1, 99, ())]


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The example finds the packages, installed or not."""
    monkeypatch.setenv("PYTHONPATH", str(HERE.parent.parent))


def example(how: str = "", patience: float = 20.0) -> CommandTarget:
    """The example target, sound or broken."""
    return CommandTarget(shlex.join([sys.executable, str(HERE / "example_target.py"), *([how] if how else [])]), patience)


@pytest.fixture
def command() -> Iterator[CommandTarget]:
    """The sound one."""
    target = example()
    yield target
    target.close()


def setup_of(target: Target) -> Setup:
    """A small machine."""
    return default_setup("xen-2003", target, pages=16, frames=256)


# --- the model ---------------------------------------------------------------------------------------------------------------

def test_the_model_runs_programs() -> None:
    target = open_target("model")
    target.reset(setup_of(target))
    found = target.run(PROGRAM)
    assert [o.value for o in found] == [0xCBCBCBCB, 0, 5, 0, -38]
    assert found[3].vector == 14
    target.reset(setup_of(target))
    assert target.run([Load(1, 0xC0000000)])[0].value == 0
    assert set(target.observe().base) == {0, 1}
    target.close()


def test_the_model_says_what_it_can_not_do() -> None:
    target = ModelTarget()
    with pytest.raises(HarnessError, match="before the first reset"):
        target.run(PROGRAM)
    target.reset(setup_of(target))
    with pytest.raises(HarnessError, match="outside the vocabulary"):
        target.run([Load(7, 0)])


def test_unknown_names() -> None:
    with pytest.raises(HarnessError, match=r'unknown target "bochs" \(known: emulator, xen, model, cmd:COMMAND\)'):
        open_target("bochs")
    with pytest.raises(ProgramError, match="unknown profile"):
        default_setup("xen-9", ModelTarget())
    with pytest.raises(HarnessError, match="knows no planted bug"):
        planted(ModelTarget(), "none")
    assert planted_bugs("model") == []


def test_a_machine_too_small_for_its_domains() -> None:
    with pytest.raises(ProgramError, match="frames"):
        default_setup("xen-2003", ModelTarget(), domains=9, pages=64, frames=100)


# --- commands ----------------------------------------------------------------------------------------------------------------

def test_a_command_does_what_the_model_does(command: CommandTarget) -> None:
    model = ModelTarget()
    setup = setup_of(command)
    for target in (model, command):
        target.reset(setup)
    assert command.name == "example"
    assert command.run(PROGRAM) == model.run(PROGRAM)
    assert model.machine is not None
    assert model.machine.compare(command.observe()) == []


def test_a_long_program_does_not_block_the_pipes(command: CommandTarget) -> None:
    command.reset(setup_of(command))
    found = command.run([Store(1, 0xC0000000 + 4 * (n % 1024), n) for n in range(20_000)])
    assert len(found) == 20_000


@pytest.mark.parametrize(("how", "said"), [
    ("dies", r"died of SIGABRT; its last words: Oops: triple fault \| registers lost"),
    ("exits", "ended with status 3"),
    ("garbage", r"answered 'run' with nonsense: not JSON.*Welcome to MyHypervisor"),
    ("forgets", r"outcomes: wanted an array of 5"),
    ("nonsense", r"outcomes\[0\]\.value: .*not a number"),
    ("refuses", "can't run: out of memory"),
])
def test_a_broken_command_is_a_harness_failure(how: str, said: str) -> None:
    target = example(how)
    target.reset(setup_of(target))
    with pytest.raises(HarnessError, match=said) as caught:
        target.run(PROGRAM)
    assert "\n" not in str(caught.value)
    target.reset(setup_of(target))          # it is started anew
    target.close()


def test_a_command_that_says_too_much() -> None:
    target = example("chatters")
    target.reset(setup_of(target))
    target.run(PROGRAM)
    with pytest.raises(HarnessError, match="said more than it was asked"):
        target.observe()
    target.close()


def test_a_command_that_hangs_is_killed() -> None:
    target = example("hangs", patience=2.0)
    target.reset(setup_of(target))
    assert target.child is not None
    pid, start = target.child.process.pid, time.monotonic()
    with pytest.raises(HarnessError, match="hung: no answer in 2 s"):
        target.run(PROGRAM)
    assert time.monotonic() - start < 10
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    target.close()


@pytest.mark.parametrize(("command", "said"), [
    ("cmd:", "names no command"),
    ("cmd:'", "No closing quotation"),
    ("cmd:/no/such/hypervisor", "does not start: No such file"),
    (f"cmd:{sys.executable} -c pass", "ended with status 0"),
    (f"cmd:{sys.executable} -c 'print(17)'", "answered 'hello' with nonsense: 17 is not an object"),
    (f"""cmd:{sys.executable} -c 'print("{{}}")'""", "answered 'hello' with nonsense: name: missing"),
])
def test_a_command_that_does_not_start(command: str, said: str) -> None:
    with pytest.raises(HarnessError, match=said):
        open_target(command)


# --- in a process of its own -------------------------------------------------------------------------------------------------

def test_a_worker_does_what_its_target_does() -> None:
    model, worker = ModelTarget(), WorkerTarget("model")
    setup = setup_of(worker)
    for target in (model, worker):
        target.reset(setup)
    assert worker.run(PROGRAM) == model.run(PROGRAM)
    assert model.machine is not None
    assert model.machine.compare(worker.observe()) == []
    with pytest.raises(HarnessError, match="outside the vocabulary"):
        worker.run([Load(7, 0)])
    assert worker.run([Load(1, 0xC0000000)])[0].value == 5      # it lives on
    worker.close()
    assert not worker.log.exists()


def test_the_emulator_does_what_the_model_does() -> None:
    worker, model = WorkerTarget("emulator"), ModelTarget()
    setup = setup_of(worker)
    for target in (worker, model):
        target.reset(setup)
    assert worker.run(PROGRAM) == model.run(PROGRAM)
    assert model.machine is not None
    assert model.machine.compare(worker.observe()) == []
    worker.close()


@pytest.mark.parametrize("inner", ["model", "emulator"])
def test_a_worker_that_dies_is_replaced(inner: str) -> None:
    worker = WorkerTarget(inner)
    setup = setup_of(worker)
    worker.process.kill()
    with pytest.raises(HarnessError, match=f"target {inner} died of SIGKILL"):
        worker.reset(setup)
    worker.reset(setup)
    assert worker.run([Load(1, 0xC0000000)])[0].value == 0
    worker.close()


def test_a_worker_whose_target_does_not_start() -> None:
    with pytest.raises(HarnessError, match="unknown target"):
        WorkerTarget("bochs")
    with pytest.raises(HarnessError, match="knows no planted bug"):
        WorkerTarget("model", plant="none")
