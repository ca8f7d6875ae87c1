"""The parts below the machine: whole-table validation, the pool of free frames, the assembler, the layout."""
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emulator import hypervisor as hv
from emulator import layout, stubs
from emulator.assembler import assemble
from emulator.boot import boot
from emulator.errors import HarnessError
from emulator.pool import Pool
from emulator.ways import Ways, assembled
from tests.emulator.guest import setup_of


def bare_hypervisor():
    """A hypervisor over plain memory, without a processor."""
    setup = setup_of(3)
    return hv.Hypervisor(memoryview(bytearray(setup.frames * 4096)), boot(setup), invlpg=lambda va: None, fourth=lambda: 0)


@given(st.integers(0, 1 << 32), st.integers(0, 2), st.sampled_from([0, 3, 20, 1024]), st.booleans())
def test_bulk_validation_does_what_the_plain_loop_does(seed, domid, size, spoiled):
    """To counts, types, time stamps and the pending flush; for legal and illegal tables, duplicates included."""
    def build():
        r = random.Random(seed)
        hypervisor = bare_hypervisor()
        domain = hypervisor.boot.setup.domains[domid]
        frames = range(domain.first, domain.first + 50)
        for f in frames:
            kind = r.choice((hv.WRITABLE, hv.WRITABLE, hv.L1, 0))
            uses = r.randrange(3) * hv.BOTH
            hypervisor.pg[f] = domid << 48 | kind | (uses if kind == hv.WRITABLE else 0)
            hypervisor.idle_since[f] = r.randrange(3) - 1
        table = domain.first + 55
        hypervisor.pg[table] = domid << 48
        for slot in r.sample(range(1024), size):
            hypervisor.ram[(table << 10) + slot] = r.choice(frames) << 12 | r.choice((0, 1, 1, 3, 3, 0x67))
        if spoiled:
            own = frames[0] << 12
            bad = r.choice((3 << 12 | 1, 1199 << 12 | 1, 0xFFFFF003, own | 0x101, own | 0x83, table << 12 | 3))
            hypervisor.ram[(table << 10) + r.randrange(1024)] = bad
        return hypervisor, table
    seen = []
    for few in (0, 1024):
        hypervisor, table = build()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(hv, "FEW", few)
            valid = hypervisor.get_table(table, hv.L1, domid << 48)
            states = [(valid, hypervisor.npg.tolist(), hypervisor.nidle_since.tolist(), hypervisor.flush_due)]
            if valid:
                hypervisor.put_table(table, hv.L1)
                states.append((valid, hypervisor.npg.tolist(), hypervisor.nidle_since.tolist(), hypervisor.flush_due))
        seen.append(states)
    assert seen[0] == seen[1]
    assert seen[0][0][0] is not spoiled


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 6)), max_size=5), st.lists(st.integers(-1, 60), max_size=60))
def test_the_pool_hands_out_the_lowest_frame(gaps, steps):
    """Against a plain set."""
    ranges, end = [], 0
    for gap, size in gaps:
        ranges.append((end + gap, end + gap + size))
        end += gap + size + 1
    pool = Pool(tuple(ranges))
    free = {f for start, stop in ranges for f in range(start, stop)}
    taken = set()
    for step in steps:
        if step < 0 and free:
            f = pool.take()
            assert f == min(free)
            free.remove(f)
            taken.add(f)
        elif taken:
            f = sorted(taken)[step % len(taken)]
            pool.give(f)
            taken.remove(f)
            free.add(f)
        assert pool.free == len(free)


def test_the_assembler():
    code, labels = assemble("""
start:
    90          | nop
    74 >start   | je start
    e9 >>end    | jmp end
    a1 =WORD    | mov eax, [WORD]
end:
""", {"WORD": 0x1234})
    assert code.hex(" ") == "90 74 fd e9 05 00 00 00 a1 34 12 00 00"
    assert labels == {"start": 0, "end": 13}
    code, labels = assemble("start:\n 90 | nop\nend:\n 68 =@end | push end\n eb >start | jmp start", base=0x1000)
    assert code.hex(" ") == "90 68 01 10 00 00 eb f8"
    assert labels == {"start": 0x1000, "end": 0x1001}
    with pytest.raises(HarnessError, match="not a line"):
        assemble("mov eax, ebx")


@pytest.mark.skipif(not shutil.which("objdump"), reason="needs objdump")
@pytest.mark.parametrize("code", [stubs.LOOP, stubs.RING0, assembled(Ways().listing())[0]])
def test_the_listings_are_machine_code(tmp_path, code):
    """Each instruction ends where its line ends: the disassembly covers the code and holds nothing unknown."""
    binary = tmp_path / "code"
    binary.write_bytes(code)
    command = ["objdump", "-D", "-b", "binary", "-m", "i386", str(binary)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "(bad)" not in text
    assert "clflush" in text


def test_the_layout_holds_together():
    assert layout.xen_frames(1200) == layout.M2P_FRAME + 2
    assert layout.xen_frames(layout.MAX_FRAMES) == layout.M2P_FRAME + 1024
    assert len(stubs.LOOP) <= 4096
    assert len(stubs.RING0) <= layout.WAYS_OFFSET
    assert layout.WAYS_OFFSET + len(assembled(Ways().listing())[0]) <= 4096
    assert layout.GUEST_IDT_OFFSET + 8 * layout.GUEST_IDT_ENTRIES <= 4096
    assert len(layout.xen_slots()) == 16
    assert layout.xen_slots()[12] == 0x63
    assert not any(entry & 4 for entry in layout.m2p_l1(1200))


def test_the_process_ends_cleanly():
    """The engine crashes at exit if Python is not let go of first."""
    code = """
from emulator.target import EmulatorTarget
from tests.emulator.guest import setup_of
target = EmulatorTarget()
target.reset(setup_of(2))
print(target.run([]))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False,
                         cwd=Path(__file__).parents[2])
    assert (run.returncode, run.stdout, run.stderr) == (0, "[]\n", "")
