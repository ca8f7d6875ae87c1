"""The bare processor: what it reports of single instructions, by hand-made trials whose ends are known."""
import time

import pytest

from emulator.cells import Cells
from emulator.errors import HarnessError
from spec.vocabulary import Bare, Trial, bare_gate, bare_segment, bare_system

OWN = Bare.FREE
PRESENT = 1 << 47
MOV_DS, FAR_JUMP, FAR_CALL, FAR_RETURN, IRET, INT = b"\x8e\xd8", b"\xff\x2b", b"\xff\x1b", b"\xcb", b"\xcf", b"\xcd\x80"


@pytest.fixture
def cells():
    """A machine of its own for each test: those of other tests take the processor away."""
    return Cells()


def frame(ring, *words):
    return {Bare.STACK[ring] + 4 * n: word for n, word in enumerate(words)}


def test_a_load_shows_the_hidden_part(cells):
    word = bare_segment(0x12, 3) & ~0xFFFF | 0x1234_0000
    end = cells.perform(Trial(MOV_DS, 3, registers={"eax": OWN | 3}, descriptors={OWN: word}))
    assert end.vector == -1
    assert end.ds == (OWN | 3, word | 1 << 40)
    assert end.descriptors == {OWN: word | 1 << 40}, "the processor sets the accessed bit in the table"
    assert (end.eip, end.esp, end.cs[0]) == (Bare.START + 2, Bare.STACK[3], Bare.CODE[3])


@pytest.mark.parametrize("cpl", range(4))
def test_a_fault_shows_what_its_handler_would_return_to(cells, cpl):
    word = bare_segment(0x13, 3) & ~PRESENT
    end = cells.perform(Trial(MOV_DS, cpl, 0x202, registers={"eax": OWN | 3}, descriptors={OWN: word}))
    assert (end.vector, end.error) == (11, OWN)
    assert (end.eip, end.esp, end.eflags) == (Bare.START, Bare.STACK[cpl], 0x10202)
    assert (end.cs, end.ss, end.ds) == ((Bare.CODE[cpl], 0), (Bare.DATA[cpl], 0), (Bare.DATA[3], bare_segment(0x13, 3)))
    assert end.descriptors == {OWN: word}


def test_an_ldt_has_entries_of_its_own(cells):
    local = 0x14
    end = cells.perform(Trial(MOV_DS, 3, registers={"eax": local | 3}, descriptors={local: bare_segment(0x13, 3)}))
    assert end.ds[0] == local | 3
    end = cells.perform(Trial(MOV_DS, 3, registers={"eax": local | 3}))
    assert (end.vector, end.error) == (13, local), "and the next trial finds it empty"


def test_a_call_gate_switches_stacks_and_copies(cells):
    gate = bare_gate(0xC, Bare.CODE[1], Bare.LANDING) | 2 << 32
    end = cells.perform(Trial(FAR_CALL, 3, registers={"ebx": Bare.POINTER}, descriptors={OWN: gate},
                              memory={Bare.POINTER: 0, Bare.POINTER + 4: OWN | 3, **frame(3, 0x111, 0x222)}))
    assert (end.vector, end.eip, end.cs[0], end.ss[0]) == (-1, Bare.LANDING, Bare.CODE[1], Bare.DATA[1])
    assert end.esp == Bare.TSS_STACK[1] - 24
    assert end.stack[:6] == (Bare.START + 2, Bare.CODE[3], 0x111, 0x222, Bare.STACK[3], Bare.DATA[3])


def test_landing_in_code_of_16_bits(cells):
    word = bare_segment(0x1B, 3) & ~(1 << 54)
    end = cells.perform(Trial(FAR_JUMP, 3, registers={"ebx": Bare.POINTER}, descriptors={OWN: word},
                              memory={Bare.POINTER: Bare.LANDING, Bare.POINTER + 4: OWN | 3}))
    assert (end.vector, end.eip, end.cs) == (-1, Bare.LANDING, (OWN | 3, word))


def test_a_return_outwards_clears_what_the_ring_may_not_have(cells):
    own = (Bare.DATA[0], bare_segment(0x13, 0))
    end = cells.perform(Trial(IRET, 0, segments={"fs": own}, memory=frame(
        0, Bare.LANDING, Bare.CODE[2], 0x3202, Bare.TSS_STACK[2], Bare.DATA[2])))
    assert (end.vector, end.cs[0], end.esp, end.eflags) == (-1, Bare.CODE[2], Bare.TSS_STACK[2], 0x3202)
    assert (end.fs, end.gs[0]) == ((0, 0), Bare.DATA[3])


@pytest.mark.parametrize("cpl", [1, 2, 3])
def test_the_stack_of_ring_0_can_be_on_trial(cells, cpl):
    trial = Trial(INT, cpl, gates={0x80: bare_gate(0xE, Bare.CODE[0], Bare.LANDING)}, stacks={0: (Bare.DATA[3], 0)})
    end = cells.perform(trial)
    assert (end.vector, end.error, end.esp, end.ss[0]) == (10, Bare.DATA[3] & ~3, Bare.STACK[cpl], Bare.DATA[cpl])


def test_a_task_switch_shows_in_the_task_register(cells):
    trial = Trial(FAR_JUMP, 0, registers={"ebx": Bare.POINTER}, descriptors={OWN: bare_system(9, Bare.TASK_BASE, 0x67)},
                  memory={Bare.POINTER: 0, Bare.POINTER + 4: OWN})
    assert cells.perform(trial).task == OWN
    assert cells.perform(Trial(b"\x90", 0)).task == Bare.TSS


def test_a_single_step(cells):
    end = cells.perform(Trial(b"\x90", 3, 0x102))
    assert (end.vector, end.eip, end.esp, end.eflags) == (1, Bare.START + 1, Bare.STACK[3], 0x102)


def test_no_trap_is_left_to_the_next_trial(cells):
    """MOV SS puts the trap off, past the end of the trial."""
    load = Trial(b"\x8e\xd0", 2, 0x102, registers={"eax": Bare.DATA[2]})
    assert [cells.perform(load).vector for _ in range(5)] == [-1] * 5
    set_by_iret = Trial(IRET, 3, memory=frame(3, Bare.LANDING, Bare.CODE[3], 0x102))
    assert [cells.perform(set_by_iret).eflags for _ in range(5)] == [0x102] * 5


def test_a_double_fault(cells):
    end = cells.perform(Trial(MOV_DS, 2, registers={"eax": 0xFFF8}, gates={13: 0}))
    assert (end.vector, end.error, end.eip) == (8, 0, Bare.START)


@pytest.mark.parametrize(("last", "vector"), [(Bare.START + 4, 13), (Bare.START + 5, 13), (Bare.START + 8, -1)])
def test_code_decoded_within_one_limit_is_not_run_within_another(cells, last, vector):
    """The engine keeps decoded code, and does not look at the limit again (see Cells._lay)."""
    code = bytes.fromhex("b844332211")      # mov eax, 0x11223344; then 4 bytes that ring
    cells.perform(Trial(code, 3))
    word = bare_segment(0x1B, 3) & ~(1 << 55 | 0xF << 48 | 0xFFFF) | last
    end = cells.perform(Trial(code, 3, segments={"cs": (OWN | 3, word)}))
    assert end.vector == vector


def test_another_machine_takes_the_processor(cells):
    Cells()
    with pytest.raises(HarnessError, match="another machine"):
        cells.perform(Trial(b"\x90", 0))


def test_speed(cells):
    """The descriptor table has 72,000 trials: 20,000 a second, in processor time, on an idle machine twice that."""
    trial = Trial(MOV_DS, 3, registers={"eax": OWN | 3}, descriptors={OWN: bare_segment(0x13, 3)})
    best = min(seconds_of(cells, trial) for _ in range(5))
    assert 2000 / best > 20_000


def seconds_of(cells, trial):
    start = time.process_time()
    for _ in range(2000):
        cells.perform(trial)
    return time.process_time() - start
