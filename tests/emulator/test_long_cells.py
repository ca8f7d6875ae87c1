"""The bare processor in long mode: what it reports of single instructions, by hand-made trials whose ends are known."""
import time

import pytest

from emulator.long_cells import LongCells
from spec.vocabulary import LongBare, LongTrial, bare_gate, bare_segment

OWN = LongBare.FREE
LONG, BIG = 1 << 53, 1 << 54
PRESENT = 1 << 47
HIGH, HOLE = 0xFFFF8000_00000000, 1 << 47
FLAT = bare_segment(0x13, 3)
BASE = 0xFF0000FFFFFF0000


def code(text):
    return bytes.fromhex(text)


@pytest.fixture
def cells():
    """A machine of its own for each test: those of other tests take the processor away."""
    return LongCells()


def frame(ring, *words):
    return {LongBare.STACK[ring] + 8 * n: word for n, word in enumerate(words)}


@pytest.mark.parametrize("compatible", [False, True])
@pytest.mark.parametrize("cpl", range(4))
def test_nothing_happens(cells, cpl, compatible):
    end = cells.perform(LongTrial(b"\x90", cpl, compatible))
    cs = (LongBare.COMPATIBLE if compatible else LongBare.CODE)[cpl]
    assert (end.vector, end.rip, end.rsp, end.rflags) == (-1, LongBare.START + 1, LongBare.STACK[cpl], 2)
    assert (end.cs, end.ss) == ((cs, bare_segment(0x1B, cpl) ^ (0 if compatible else LONG | BIG)),
                                (LongBare.DATA[cpl], bare_segment(0x13, cpl)))
    assert end.fs == (LongBare.DATA[3], FLAT & ~BASE)


@pytest.mark.parametrize("limit", [LongBare.TSS_LIMIT, 0x30])
@pytest.mark.parametrize("compatible", [False, True])
@pytest.mark.parametrize("cpl", range(4))
def test_a_fault_shows_what_its_handler_would_return_to(cells, cpl, compatible, limit):
    word = FLAT & ~PRESENT
    end = cells.perform(LongTrial(code("8ed8"), cpl, compatible, 0x202, {"rax": OWN | 3, "rcx": 5}, descriptors={OWN: word},
                                  task_limit=limit))
    assert (end.vector, end.error, end.rip, end.rsp, end.rflags) == (11, OWN, LongBare.START, LongBare.STACK[cpl], 0x10202)
    assert (end.cs[1], end.ss, end.rcx, end.descriptors) == (0, (LongBare.DATA[cpl], 0), 5, {OWN: word})


def test_the_stack_of_a_fault_does_not_matter(cells):
    for rsp in (HOLE, 0, 3, HIGH + 8, (1 << 64) - 1):
        end = cells.perform(LongTrial(code("0f0b"), 0, registers={"rsp": rsp}))
        assert (end.vector, end.rsp) == (6, rsp)


def test_a_system_call(cells):
    msrs = {"star": 0x1B_0088 << 32, "lstar": HIGH + LongBare.LANDING, "cstar": 0, "sfmask": 0x200}
    end = cells.perform(LongTrial(code("0f05"), 3, rflags=0x246, msrs=msrs))
    assert (end.rip, end.rflags, end.rcx, end.r11) == (HIGH + LongBare.LANDING, 0x46, LongBare.START + 2, 0x246)
    assert (end.cs[0], end.ss[0], end.rsp, end.msrs) == (0x88, 0x90, LongBare.STACK[3], tuple(msrs.values()))


def test_bases(cells):
    end = cells.perform(LongTrial(code("0f01f8"), 0, bases={"fs": HIGH, "gs": 0x1234}, msrs={"kernel_gs_base": 0x5678}))
    assert end.bases == (HIGH, 0x5678, 0x1234)
    end = cells.perform(LongTrial(code("8ee8"), 0, registers={"rax": OWN}, bases={"fs": HIGH, "gs": HIGH},
                                  descriptors={OWN: FLAT | 0x123456 << 16 | 0x78 << 56}))
    assert end.bases == (HIGH, 0x78123456, 0)


def test_a_handler_on_a_stack_of_the_gate(cells):
    gate = bare_gate(0xE, LongBare.CODE[1], LongBare.LANDING) | 3 << 32, 0x7FFF
    end = cells.perform(LongTrial(code("cd80"), 3, rflags=0x202, gates={0x80: gate}, ist={3: HIGH + 0xC00F}))
    assert (end.vector, end.rip, end.cs[0], end.ss) == (-1, 0x7FFF_0000_5000, LongBare.CODE[1], (1, 0))
    assert (end.rsp, end.rflags) == (HIGH + 0xC000 - 40, 2)
    assert end.stack == (LongBare.START + 2, LongBare.CODE[3], 0x202, LongBare.STACK[3], LongBare.DATA[3], 0, 0)


def test_a_return_to_code_of_16_bits(cells):
    word = bare_segment(0x1B, 3) & ~BIG
    end = cells.perform(LongTrial(code("48cf"), 0, descriptors={OWN: word}, memory=frame(
        0, LongBare.LANDING, OWN | 3, 0x202, 0x9000, LongBare.DATA[3])))
    assert (end.vector, end.rip, end.cs, end.rsp) == (-1, LongBare.LANDING, (OWN | 3, word | 1 << 40), 0x9000)


def test_no_trap_is_left_to_the_next_trial(cells):
    single = LongTrial(code("48cf"), 3, memory=frame(3, LongBare.LANDING, LongBare.CODE[3], 0x102, 0x9000, LongBare.DATA[3]))
    assert [cells.perform(single).rflags for _ in range(5)] == [0x102] * 5


def test_a_double_fault(cells):
    end = cells.perform(LongTrial(code("8ed8"), 2, registers={"rax": 0xFFF8}, gates={13: (0, 0)}))
    assert (end.vector, end.error, end.rip) == (8, 0, LongBare.START)


def test_stores_at_the_ends_of_the_address_space_leave_the_machine_alone(cells):
    for rsp in (0, 8, 48, HOLE, HOLE - 8, HIGH + 8):
        cells.perform(LongTrial(b"\x50", 0, registers={"rsp": rsp, "rax": (1 << 64) - 1}))
        end = cells.perform(LongTrial(b"\x58", 0, registers={"rsp": rsp - 8 & (1 << 64) - 1}))
        assert end.rax == 0, "the next trial finds zeros"
        assert cells.perform(LongTrial(b"\x90", 3)).vector == -1


def test_speed(cells):
    """The table has 200,000 trials: 12,000 a second, in processor time; on an idle machine three times that."""
    trial = LongTrial(b"\x90", 3)
    best = min(seconds_of(cells, trial) for _ in range(5))
    assert 2000 / best > 12_000


def seconds_of(cells, trial):
    start = time.process_time()
    for _ in range(2000):
        cells.perform(trial)
    return time.process_time() - start
