"""Programs of a real machine, on stand-ins for one: shrunk without taking its ground, replayed, traced, audited after death."""
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from oracle.autopsy import autopsy
from oracle.campaign import run_campaign
from oracle.encoding import Reader, observation_to_json
from oracle.ground import EXECUTOR_WINDOW, SHARED_INFO, Ground
from oracle.judge import Direction, Verdict
from oracle.live import LeftOut, play
from oracle.live_runner import LiveRunner
from oracle.program import Program, dumps, loads
from oracle.replay import replay, replay_on
from oracle.runner import CampaignSpec
from oracle.schema import ProgramError
from oracle.targets import HarnessError, ModelTarget, model_of
from spec.abi import DOMID_SELF, EINVAL, Xen417
from spec.vocabulary import Action, Hypercall, Load, Observation, Outcome, Setup, Store
from tests.oracle.fakes import opener as fakes
from tests.oracle.live_fakes import LiveModel

HOME = Xen417.BASE
NAME = "Stand-in 4.17.0"


def va(page: int) -> int:
    return HOME + 4096 * page


def unmap(page: int) -> Hypercall:
    return Hypercall(0, Xen417.UPDATE_VA_MAPPING, (va(page), 0, Xen417.UVMF_INVLPG))


REFUSED = Hypercall(0, Xen417.UPDATE_VA_MAPPING, (va(20), 0x11, 0))


class Grounded(LiveModel):
    """The code that drives it is in page 20, which has to stay mapped; a refused update_va_mapping is reported as done."""

    def __init__(self) -> None:
        super().__init__()
        self.programs: list[list[Action]] = []      # as they were sent, but for what hands frames out

    def setup(self, pages: int, domains: int = 1) -> Setup:
        """It has a name."""
        return replace(super().setup(pages, domains), machine=NAME)

    def ground(self) -> tuple[int, int]:
        """One page."""
        return va(20), va(21)

    def reset(self, setup: Setup) -> None:
        """And begin a program."""
        super().reset(replace(setup, machine=""))
        self.programs.append([])

    def run(self, actions: Sequence[Action]) -> list[Outcome]:
        """Dead without its code."""
        self.programs[-1] += actions
        if unmap(20) in actions:
            raise HarnessError("the executor is gone")
        return [replace(o, value=0) if a == REFUSED and o.value == -EINVAL else o for a, o in zip(actions, super().run(actions),
                                                                                              strict=True)]

    def observe(self) -> Observation:
        """With the frames that it shows."""
        seen = super().observe()
        return replace(seen, frames=bytes(seen.frames), memory=bytes(seen.memory), m2p=bytes(seen.m2p),
                       rows=tuple(range(16, seen.extent)))


def runner(target: Grounded, seconds: float | None = None) -> LiveRunner:
    actions = None if seconds else 100
    spec = CampaignSpec(profile="xen-4.17", target="stand-in", domains=1, actions=actions, seconds=seconds, length=50)
    return LiveRunner(spec, target, lambda _index, _phase: None)


# --- shrinking ---------------------------------------------------------------------------------------------------------------

def test_a_candidate_that_takes_the_ground_is_not_sent() -> None:
    target = Grounded()
    held = runner(target)
    with pytest.raises(LeftOut, match=EXECUTOR_WINDOW):
        play(held.machine, target, held.setup, [Load(0, va(4)), unmap(20)], held.generator.ground)
    assert target.programs == [[]]
    assert play(held.machine, target, held.setup, [Load(0, va(4)), unmap(21)], held.generator.ground).agrees


@pytest.mark.parametrize("command", [(Xen417.COPY_PAGE, 40, 41), (Xen417.CLEAR_PAGE, 40, 0)])
def test_a_page_that_others_write_is_not_overwritten_even_with_what_the_model_has_there(command: tuple[int, int, int]) -> None:
    held = runner(Grounded())
    first, buffer = held.setup.domains[0].first, va(2)
    op, to, source = command
    held.machine.concrete.opaque = frozenset({first + 40})
    ground = Ground(held.machine, 0, 0)
    call = Hypercall(0, Xen417.MMUEXT_OP, (buffer, 1, 0, DOMID_SELF), ((buffer, (op, first + to, first + source)),))
    assert ground.tried(call)[0] == SHARED_INFO


@pytest.mark.parametrize("command", [(Xen417.COPY_PAGE, 20, 41), (Xen417.COPY_PAGE, 41, 20), (Xen417.CLEAR_PAGE, 20, 0)])
def test_the_code_is_neither_copied_nor_overwritten_though_the_model_holds_it_for_empty(command: tuple[int, int, int]) -> None:
    held = runner(Grounded())
    first, buffer, ground = held.setup.domains[0].first, va(2), held.generator.ground
    assert ground is not None
    op, to, source = command
    call = Hypercall(0, Xen417.MMUEXT_OP, (buffer, 1, 0, DOMID_SELF), ((buffer, (op, first + to, first + source)),))
    assert ground.tried(call)[0] == SHARED_INFO
    assert ground.tried(Load(0, va(20) + 8))[0] == SHARED_INFO
    assert ground.tried(Store(0, va(20) + 8, 0))[0] == EXECUTOR_WINDOW
    assert ground.tried(Load(0, va(21)))[0] == ""


def test_a_divergence_is_shrunk_and_its_ground_respected() -> None:
    """A plainer number than the one that is refused would unmap the code."""
    target = Grounded()
    held = runner(target)
    program: list[Action] = [Load(0, va(4)), *[Store(0, va(5), n) for n in range(40)], unmap(22), REFUSED]
    verdict = play(held.machine, target, held.setup, program, held.generator.ground)
    assert (verdict.direction, verdict.at) == (Direction.TOO_PERMISSIVE, len(program) - 1)
    found = held.divergence(0, program, verdict, shrinking=True)
    assert found.actions == (REFUSED,)
    assert 0 < found.runs <= LiveRunner.budget
    assert found.setup.machine == NAME
    assert not any(isinstance(a, Hypercall) and a.args[:2] == (va(20), 0) for sent in target.programs for a in sent)


class Forgetful(LiveModel):
    """A store of 13 is lost, which only the state shows."""

    def run(self, actions: Sequence[Action]) -> list[Outcome]:
        lost = [replace(a, value=0) if isinstance(a, Store) and a.value == 13 else a for a in actions]
        return super().run(lost)


def test_a_difference_of_state_is_put_down_to_the_action_that_makes_it() -> None:
    target = Forgetful()
    held = runner(target)
    assert isinstance(held, LiveRunner)
    program: list[Action] = [Store(0, va(4) + 8 * n, 13 if n == 333 else n + 100) for n in range(480)]
    verdict = play(held.machine, target, held.setup, program)
    assert (verdict.at, len(verdict.differences)) == (480, 1)   # seen at the end of its piece
    actions, verdict = held.located(program, verdict)
    assert list(actions) == program[:334]
    assert (verdict.at, verdict.differences[0].where) == (334, f"frame {held.setup.domains[0].first + 4} word 333")


def test_nothing_is_shrunk_when_the_time_of_grace_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    target = Grounded()
    held = runner(target, seconds=60.0)
    program = [Load(0, va(4)), REFUSED]
    verdict = play(held.machine, target, held.setup, program)
    held.begun = time.monotonic() - 62
    assert len(held.divergence(0, program, verdict, shrinking=True).actions) == 1
    held.begun, held.shrunk = time.monotonic() - 66, set()
    late = held.divergence(0, program, verdict, shrinking=True)
    assert (len(late.actions), late.runs) == (2, 0)


def test_a_target_that_never_starts_is_an_error_however_short_the_time() -> None:
    from oracle.campaign import CampaignError
    with pytest.raises(CampaignError, match="no processor"):
        run_campaign(CampaignSpec(target="Stillborn", seconds=0.1), opener=fakes)


# --- replay ------------------------------------------------------------------------------------------------------------------

def played(actions: list[Action]) -> tuple[Grounded, Program, Direction, int]:
    target = Grounded()
    program = Program(target.setup(64), actions)
    found = replay_on(model_of(target, program.setup), target, program)
    assert [step.action for step in found.steps] == actions[:len(found.steps)]
    return target, program, found.verdict.direction, found.verdict.at


def test_a_replay_goes_through_every_step_of_every_piece() -> None:
    actions = [Store(0, va(4), n) for n in range(600)]
    target, program, direction, at = played(actions)
    assert (direction, at) == (Direction.AGREES, 600)
    assert target.programs == [actions]
    assert program.outcomes == [Outcome()] * 600


def test_a_replay_ends_with_the_step_that_deviates_and_is_a_trace_up_to_there() -> None:
    actions: list[Action] = [*[Store(0, va(4), n) for n in range(300)], REFUSED, *[Load(0, va(4))] * 300]
    _, program, direction, at = played(actions)
    assert (direction, at) == (Direction.TOO_PERMISSIVE, 300)
    assert program.outcomes is not None
    assert len(program.outcomes) == 500


def test_a_trace_is_judged_like_the_run_that_it_is_of() -> None:
    target, program, _, _ = played([Store(0, va(4), 7), Load(0, va(4))])
    read = loads(dumps(program))
    assert (read.setup, read.outcomes) == (program.setup, program.outcomes)
    assert read.observation is not None
    assert program.observation is not None
    assert read.observation.rows == program.observation.rows
    assert read.observation.memory == program.observation.memory
    assert replay(model_of(target, read.setup), read.actions, read.outcomes or [], read.observation).verdict.agrees
    assert read.outcomes is not None
    read.outcomes[1] = Outcome(8)
    assert replay(model_of(target, read.setup), read.actions, read.outcomes, read.observation).verdict.at == 1


def test_a_replay_takes_what_would_kill_the_machine_and_says_so() -> None:
    _, _, direction, at = played([Load(0, va(4)), unmap(20)])
    assert (direction, at) == (Direction.HARNESS, 0)


def test_a_program_of_a_real_machine_is_for_no_other() -> None:
    setup = Grounded().setup(64)
    with pytest.raises(HarnessError, match=f"the program was made on {NAME}, which target model is not: use --target xen"):
        model_of(ModelTarget(), setup)
    with pytest.raises(HarnessError, match="does not run xen-2003"):
        model_of(Grounded(), replace(setup, profile="xen-2003"))


# --- what is said of it ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("rows", "memory", "said"), [
    ([17, 17], [], "rows: must be ascending"), ([17], [[18, 0, [1]]], r"memory\[0\]\[0\]: frame 18 is not among the rows"),
    ([99999], [], r"rows\[0\]: 0x1869f is out of range")])
def test_rows_that_cannot_be_are_refused(rows: list[int], memory: list[object], said: str) -> None:
    target = Grounded()
    setup = target.setup(64)
    target.reset(setup)
    document = observation_to_json(target.observe(), setup) | {"rows": rows, "memory": memory}
    with pytest.raises(ProgramError, match=said):
        Reader(setup).observation(document)


def test_the_name_of_a_machine_is_a_string() -> None:
    text = dumps(Program(Grounded().setup(64), [])).replace(f'"{NAME}"', "7")
    with pytest.raises(ProgramError, match=r"setup\.machine: 7 is not of type string"):
        loads(text)


# --- death -------------------------------------------------------------------------------------------------------------------

class Remembering(LiveModel):
    """Has a memory, which is no Xen's."""

    def memory(self) -> bytes:          # type: ignore[override]
        """Two empty pages."""
        return bytes(8192)


def test_a_memory_that_cannot_be_read_says_so_and_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "kept" / "memory"
    said = autopsy(Remembering(), path)
    assert "audit of its memory: not possible: no root tables of Xen's own" in said
    assert f"xenspec audit --xen-image {path}" in said
    assert path.read_bytes() == bytes(8192)
    assert autopsy(LiveModel()) == autopsy(ModelTarget()) == ""


def test_a_memory_that_cannot_be_kept_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "its memory could not be kept" in autopsy(Remembering(), tmp_path / "file" / "memory")


def test_verdicts_of_nothing() -> None:
    target = Grounded()
    held = runner(target)
    assert play(held.machine, target, held.setup, []) == Verdict(Direction.AGREES, 0)
