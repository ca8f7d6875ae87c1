"""The judge: every direction of a deviation, the rule it names, and the search for an explanation."""
from dataclasses import replace
from pathlib import Path

import pytest

from oracle.judge import Direction, attempt, explain, judge
from oracle.program import load
from oracle.targets import ModelTarget, default_setup, open_target
from refmodel import Machine, boot
from spec.abi import EINVAL
from spec.vocabulary import Action, Execute, Hypercall, Load, Observation, Outcome, Store

CORPUS = Path(__file__).parent.parent / "corpus"
HOME, WINDOW = 0xC0000000, 0xC0041000
UVM, MMU_UPDATE, MEM_OP = 19, 1, 16


@pytest.fixture
def machine() -> Machine:
    return boot(default_setup("xen-2003", ModelTarget()))


def frame(machine: Machine, dom: int, page: int) -> int:
    return machine.setup.domains[dom].first + page


def play(machine: Machine, actions: list[Action], forced: tuple[int, ...] = ()) -> list[Outcome]:
    machine.reset()
    machine.choices.begin(forced)
    return [machine.step(a) for a in actions]


def map_page(machine: Machine, page: int = 5, bits: int = 0x63, flags: int = 0, va: int = WINDOW) -> Hypercall:
    return Hypercall(1, UVM, (va >> 12, frame(machine, 1, page) << 12 | bits, flags))


def test_agreement(machine: Machine) -> None:
    actions: list[Action] = [map_page(machine), Store(1, WINDOW, 7), Load(1, WINDOW)]
    outcomes = play(machine, actions)
    verdict = judge(machine, actions, outcomes, machine.observe())
    assert verdict.agrees
    assert (verdict.at, verdict.attempts, verdict.rule) == (3, 1, "")


def test_too_permissive_names_the_conjunct_that_refused(machine: Machine) -> None:
    actions: list[Action] = [Load(1, HOME), map_page(machine, page=62)]     # an L1 table, writable
    outcomes = play(machine, actions)
    refused = machine.refusals[-1]
    assert outcomes[1].value == -EINVAL
    verdict = judge(machine, actions, [outcomes[0], Outcome(0)])
    assert (verdict.direction, verdict.at, verdict.rule) == (Direction.TOO_PERMISSIVE, 1, refused)
    assert verdict.action == "hypercall 19"
    assert "the model gives -22, the target 0" in verdict.summary


def test_a_load_that_should_fault_is_too_permissive(machine: Machine) -> None:
    actions: list[Action] = [Load(1, WINDOW)]
    verdict = judge(machine, actions, [Outcome(0x1234)])
    assert verdict.direction is Direction.TOO_PERMISSIVE
    assert verdict.model == Outcome(0, 14, 0, WINDOW)


def test_too_strict_names_what_the_model_did(machine: Machine) -> None:
    actions: list[Action] = [map_page(machine)]
    verdict = judge(machine, actions, [Outcome(-EINVAL)])
    assert (verdict.direction, verdict.rule) == (Direction.TOO_STRICT, "WRITE-1")


def test_another_error_number_is_different(machine: Machine) -> None:
    actions: list[Action] = [map_page(machine, page=62)]
    verdict = judge(machine, actions, [Outcome(-1)])
    assert verdict.direction is Direction.DIFFERENT
    assert verdict.rule


def test_another_value_is_different(machine: Machine) -> None:
    actions: list[Action] = [Store(1, HOME, 7), Load(1, HOME)]
    outcomes = play(machine, actions)
    verdict = judge(machine, actions, [outcomes[0], Outcome(8)])
    assert (verdict.direction, verdict.at, verdict.action) == (Direction.DIFFERENT, 1, "load")


def test_another_fault_address_is_different(machine: Machine) -> None:
    actions: list[Action] = [Execute(1, WINDOW)]
    seen = replace(play(machine, actions)[0], address=0)
    assert judge(machine, actions, [seen]).direction is Direction.DIFFERENT


def with_frame(seen: Observation, f: int, change: int) -> Observation:
    """The observation with one frame's word changed."""
    words = bytearray(seen.frames)
    word = int.from_bytes(words[8 * f:8 * f + 8], "little") + change
    words[8 * f:8 * f + 8] = word.to_bytes(8, "little")
    return replace(seen, frames=bytes(words))


def test_a_state_that_differs(machine: Machine) -> None:
    actions: list[Action] = [map_page(machine)]
    outcomes = play(machine, actions)
    f = frame(machine, 1, 5)
    seen = with_frame(machine.observe(), f, 1)
    verdict = judge(machine, actions, outcomes, seen)
    assert (verdict.direction, verdict.at) == (Direction.DIFFERENT, 1)
    assert verdict.action.startswith("state")
    assert verdict.rule
    assert verdict.differences


def test_a_trace_without_observation_is_judged_by_outcomes_alone(machine: Machine) -> None:
    actions: list[Action] = [map_page(machine), Load(1, WINDOW), Load(1, WINDOW)]
    outcomes = play(machine, actions)
    assert judge(machine, actions, outcomes[:2]).at == 2
    assert judge(machine, actions, outcomes).agrees


# --- choices -----------------------------------------------------------------------------------------------------------------

def stale(machine: Machine) -> list[Action]:
    """A mapping used for a store, taken away without a flush, and used again."""
    unmap = Hypercall(1, UVM, (WINDOW >> 12, 0, 0))
    return [map_page(machine), Store(1, WINDOW, 1), unmap, Store(1, WINDOW, 2), Load(1, HOME + 0x5000)]


@pytest.mark.parametrize("option", [0, 1])
def test_either_side_of_a_choice_is_explained(machine: Machine, option: int) -> None:
    actions = stale(machine)
    outcomes = play(machine, actions, (option,))
    assert machine.choices.taken[0][:2] == ("stale-translation", 2)
    verdict = judge(machine, actions, outcomes, machine.observe())
    assert verdict.agrees
    assert verdict.looseness["stale-translation"] >= 1
    best, runs = explain(machine, actions, outcomes)
    assert best.taken[0][2] == option
    assert runs == option + 1


def test_what_no_option_explains_is_a_divergence_at_the_longest_prefix(machine: Machine) -> None:
    actions = stale(machine)
    outcomes = play(machine, actions, (1,))
    assert outcomes[3].vector == 14
    assert outcomes[4].value == 1
    verdict = judge(machine, actions, [*outcomes[:4], Outcome(3)])
    assert (verdict.direction, verdict.at) == (Direction.DIFFERENT, 4)
    assert verdict.model == Outcome(1), "explained as far as possible: the stale store did not happen"
    assert verdict.attempts > 1


def test_the_search_is_bounded(machine: Machine) -> None:
    actions = [*stale(machine), *stale(machine), *stale(machine), Load(1, HOME)]
    outcomes = play(machine, actions)
    verdict = judge(machine, actions, [*outcomes[:-1], Outcome(99)], limit=3)
    assert (verdict.attempts, verdict.agrees) == (3, False)


def test_another_frame_may_be_handed_out(machine: Machine) -> None:
    f, free = frame(machine, 1, 5), max(d.first + d.pages for d in machine.setup.domains) + 40
    buffer = HOME + 0x2000
    actions: list[Action] = [
        Hypercall(1, UVM, (HOME + 0x5000 >> 12, 0, 1)),
        Hypercall(1, MEM_OP, (buffer,), ((buffer, (1, 1, buffer + 12, f)),)),
        Hypercall(1, MEM_OP, (buffer,), ((buffer, (0, 1, buffer + 12)),)),
        Load(1, buffer + 12)]
    outcomes = play(machine, actions)
    assert outcomes[2].chose == (f,)
    other = [*outcomes[:2], Outcome(1, chose=(free,)), Outcome(free)]
    assert judge(machine, actions, other).agrees
    taken = [*outcomes[:2], Outcome(1, chose=(frame(machine, 0, 5),)), Outcome(frame(machine, 0, 5))]
    verdict = judge(machine, actions, taken)
    assert (verdict.direction, verdict.at, verdict.rule) == (Direction.TOO_PERMISSIVE, 2, "POOL-3.1")


def test_judging_leaves_no_trace_in_the_coverage(machine: Machine) -> None:
    from oracle import coverage
    actions = stale(machine)
    outcomes = play(machine, actions, (1,))
    start = coverage.tallies()
    judge(machine, actions, outcomes)
    judge(machine, actions, [*outcomes[:3], Outcome(9), Outcome(0)])
    assert coverage.since(start) == {}


def test_an_attempt_stops_at_the_first_difference(machine: Machine) -> None:
    actions = stale(machine)
    outcomes = play(machine, actions)
    found = attempt(machine, actions, [outcomes[0], Outcome(0, 14, 2, WINDOW), *outcomes[2:]])
    assert (found.explained, found.complete) == (1, False)
    assert found.mine == outcomes[1]


def test_what_may_lead_out_of_the_vocabulary_is_judged_up_to_there() -> None:
    """By a stale translation the processor may have fetched something else than the instruction: that is no divergence."""
    program = load(CORPUS / "a-stale-fetch-may-lead-out-of-the-vocabulary.jsonl")
    target = open_target("emulator")
    target.reset(program.setup)
    outcomes = target.run(program.actions)
    verdict = judge(boot(program.setup), program.actions, outcomes, target.observe())
    assert (verdict.agrees, verdict.left, verdict.at) == (True, True, 143)
    wrong = [*outcomes[:100], Outcome(value=4711), *outcomes[101:]]
    assert not judge(boot(program.setup), program.actions, wrong).agrees
