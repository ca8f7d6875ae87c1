"""The machine: batches and their results, faults, user mode, the subject, snapshots, and every way to die and come back."""
import os
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from emulator.errors import HarnessError
from emulator.xen import fetch
from emulator.xen.batch import NO_EXECUTOR, NO_FAULT, NO_OPERATION, Batch, Result, outcomes, result
from emulator.xen.machine import Crashed, RealXen, empty_qcow2
from emulator.xen.subject import Layout, tables
from refmodel.boot import boot
from spec.abi import DOMID_SELF, EINVAL, GP, PAGE_SIZE, PF, PF_FETCH, PF_PROT, PF_USER, PF_WRITE, Xen417
from spec.vocabulary import DomainSetup, Execute, Hypercall, Load, Outcome, Setup, Store
from tests.xen.conftest import START

NOWHERE = 0x100_0000_0000                       # mapped by nobody
CROOKED = 1 << 60                               # not canonical
XEN_VERSION, SCHED_OP = 17, 29
SHUTDOWN, POWEROFF, REBOOT, CRASH = 2, 0, 1, 3
OK = Result(0, 0, NO_FAULT, 0)


def fault(vector: int, error: int = 0, address: int = 0) -> Result:
    return Result(0, address, vector, error)


def extended(batch: Batch, where: int, command: int, arg: int = 0) -> None:
    """One mmuext_op, its request stored at `where`."""
    batch.hypercall(Xen417.MMUEXT_OP, (where, 1, 0, DOMID_SELF), ((where, (command, arg, 0)),))


def alive(xen: RealXen) -> bool:
    batch = Batch()
    batch.hypercall(XEN_VERSION, (0,))
    return xen.do(batch)[0].value >> 16 == 4


# --- batches and results -----------------------------------------------------------------------------------------------------

def test_a_batch_of_every_operation(xen: RealXen, layout: Layout) -> None:
    data, code = layout.va(5), layout.va(1)
    b = Batch()
    b.store(data, 7)
    b.load(data)
    b.execute(code + 9)
    b.hypercall(Xen417.UPDATE_VA_MAPPING, (NOWHERE, 0, 0))
    b.hypercall(Xen417.MMUEXT_OP, (data, 1, 0, DOMID_SELF), ((data, (Xen417.TLB_FLUSH_LOCAL, 1)), (data + 16, (2,))))
    b.fill(xen.scratch, 4, 100, 2)
    b.copy(xen.scratch + 64, xen.scratch, 4)
    b.load(xen.scratch + 64 + 24)
    assert len(b) == 8
    assert xen.do(b) == [OK, OK._replace(value=7), OK, OK._replace(value=2**64 - EINVAL), OK, OK, OK,
                         OK._replace(value=106)]
    assert struct.unpack_from("<3Q", xen.frame(layout.first + 5)) == (Xen417.TLB_FLUSH_LOCAL, 1, 2)


def test_faults_are_results(xen: RealXen, layout: Layout) -> None:
    table = layout.va(layout.pages - 1)
    b = Batch()
    b.load(NOWHERE)
    b.store(NOWHERE + 8, 1)
    b.execute(NOWHERE)
    b.store(table, 1)
    b.load(CROOKED)
    b.store(CROOKED, 1)
    b.execute(CROOKED)
    assert xen.do(b) == [fault(PF, PF_USER, NOWHERE), fault(PF, PF_USER | PF_WRITE, NOWHERE + 8),
                         fault(PF, PF_USER | PF_FETCH, NOWHERE), fault(PF, PF_USER | PF_WRITE | PF_PROT, table),
                         fault(GP), fault(GP), fault(GP)]


def test_a_store_that_faults_ends_a_hypercall_before_it_is_made(xen: RealXen, layout: Layout) -> None:
    end, entry = layout.va(5) + PAGE_SIZE - 8, layout.root * PAGE_SIZE
    b = Batch()
    b.hypercall(Xen417.MMUEXT_OP, (end, 1, 0, DOMID_SELF), ((end, (Xen417.UNPIN,)), (NOWHERE, (layout.root, 0))))
    assert xen.do(b) == [fault(PF, PF_USER | PF_WRITE, NOWHERE)]
    assert xen.word((layout.first + 6) * PAGE_SIZE - 8) == Xen417.UNPIN
    assert xen.word(entry) == layout.executor
    assert alive(xen)


def test_an_unknown_operation_and_batches_that_are_too_long(xen: RealXen) -> None:
    assert result(xen.run(struct.pack("<Q", 99), 1), 0).vector == NO_OPERATION
    size, operations = xen.most
    with pytest.raises(HarnessError, match="at most"):
        xen.send(bytes(size + 1), 1)
    with pytest.raises(HarnessError, match="at most"):
        xen.send(b"", operations + 1)
    assert alive(xen)


def test_repeats_and_a_full_batch(xen: RealXen, layout: Layout) -> None:
    b = Batch()
    b.repeat(1000, 2)
    b.store(layout.va(5), 3)
    b.load(layout.va(5))
    assert [each.value for each in xen.do(b)] == [1000, 0, 3]
    _size, operations = xen.most
    full = Batch()
    for n in range(operations):
        full.store(layout.va(5) + 8 * (n % 512), n)
    assert set(xen.do(full)) == {OK}


def test_actions_become_outcomes(xen: RealXen, layout: Layout) -> None:
    actions = [Store(0, layout.va(5), 1 << 63), Load(0, layout.va(5)), Execute(0, layout.va(1)), Load(0, NOWHERE),
               Hypercall(0, Xen417.UPDATE_VA_MAPPING, (NOWHERE, 0, 0))]
    b = Batch()
    b.actions(actions)
    assert outcomes(actions, xen.run(b.words, len(b))) == [
        Outcome(), Outcome(1 << 63), Outcome(), Outcome(0, PF, PF_USER, NOWHERE), Outcome(-EINVAL)]


def test_applications(xen: RealXen, layout: Layout) -> None:
    b = Batch()
    extended(b, xen.scratch, Xen417.NEW_USER_BASEPTR, layout.root)
    b.store(layout.va(5), 7, user=True)
    b.load(layout.va(5), user=True)
    b.load(layout.va(5))
    b.execute(layout.va(1), user=True)
    b.load(NOWHERE, user=True)
    b.store(layout.va(layout.pages - 1), 1, user=True)
    b.execute(NOWHERE, user=True)
    b.load(CROOKED, user=True)
    found = xen.do(b)[1:]
    assert found == [OK, OK._replace(value=7), OK._replace(value=7), OK, fault(PF, PF_USER, NOWHERE),
                     fault(PF, PF_USER | PF_WRITE | PF_PROT, layout.va(layout.pages - 1)),
                     fault(PF, PF_USER | PF_FETCH, NOWHERE), fault(GP)]


def test_a_user_root_without_the_executor(xen: RealXen, layout: Layout) -> None:
    spare = layout.first + 5
    b = Batch()
    b.hypercall(Xen417.UPDATE_VA_MAPPING, (layout.va(5), 0, Xen417.UVMF_INVLPG))    # no longer writable, so it can be a root
    extended(b, xen.scratch, Xen417.NEW_USER_BASEPTR, spare)
    b.load(layout.va(6), user=True)
    b.load(layout.va(6))
    found = xen.do(b)
    assert found[:2] == [OK, OK]
    assert (found[2].vector, found[3]) == (NO_EXECUTOR, OK)


# --- the subject -------------------------------------------------------------------------------------------------------------

def test_the_subject_is_laid_out_like_the_model(xen: RealXen, layout: Layout) -> None:
    """Word for word, but for the three things that its docstring and the rulings name."""
    machine = boot(Setup("xen-4.17", 1 << 15, 256, (DomainSetup(0, layout.first, layout.pages),)))
    observed = machine.observe()
    memory = memoryview(observed.memory)

    def modelled(mfn: int) -> list[int]:
        at = (mfn - 256) * PAGE_SIZE
        return list(memory[at:at + PAGE_SIZE].cast("B").cast("Q"))

    assert set(tables(layout)) == set(layout.tables)
    for mfn in layout.frames:
        real, model = list(struct.unpack("<512Q", xen.frame(mfn))), modelled(mfn)
        if mfn == layout.root:
            real[Xen417.XEN_FIRST:Xen417.XEN_LAST + 1] = model[Xen417.XEN_FIRST:Xen417.XEN_LAST + 1]
            assert real[0] == layout.executor
            real[0] = 0
        if mfn == layout.leaves[-1]:
            last = layout.pages % 512
            assert real[last] ^ model[last] == (layout.shared_info ^ layout.first + layout.pages) << 12
            real[last] = model[last]
        assert real == model, f"frame {mfn - layout.first} of the subject"


def test_the_subject_is_named_and_mapped(xen: RealXen, layout: Layout) -> None:
    b = Batch()
    for page in (0, 1, 77, layout.pages - 1):
        b.load(Xen417.WINDOW + 8 * (layout.first + page))
    b.load(layout.va(1))
    b.load(layout.va(layout.pages - 1) + 8 * 511)
    b.load(layout.va(layout.pages) + 8)
    assert [each.value for each in xen.do(b)] == [0, 1, 77, layout.pages - 1, int.from_bytes(b"\xcb" * 8),
                                                  layout.root - 1 << 12 | 0x67, xen.word(layout.shared_info * PAGE_SIZE + 8)]


# --- snapshots ---------------------------------------------------------------------------------------------------------------

def test_a_snapshot_brings_back_memory_and_xen(xen: RealXen, layout: Layout) -> None:
    """What the guest wrote, and what Xen knows: the table that was unpinned and used otherwise can be unpinned again."""
    before = bytes(xen.frame(layout.first + 5)), xen.frame(layout.leaves[0])
    b = Batch()
    b.store(layout.va(5), 99)
    b.hypercall(Xen417.UPDATE_VA_MAPPING, (layout.va(7), 0, Xen417.UVMF_INVLPG))
    extended(b, xen.scratch, Xen417.UNPIN, layout.root)
    first = xen.do(b)
    assert before != (bytes(xen.frame(layout.first + 5)), xen.frame(layout.leaves[0]))
    for _ in range(3):
        xen.restore(START)
        assert before == (bytes(xen.frame(layout.first + 5)), xen.frame(layout.leaves[0]))
        assert xen.do(b) == first == [OK, OK, OK]
    assert xen.do(b)[2].value == 2**64 - EINVAL          # without a restore it is unpinned already


def test_a_later_snapshot_of_a_name_replaces_the_earlier(xen: RealXen, layout: Layout) -> None:
    for word in (1, 2):
        xen.set_word((layout.first + 5) * PAGE_SIZE, word)
        xen.snapshot("twice")
    xen.set_word((layout.first + 5) * PAGE_SIZE, 3)
    xen.restore("twice")
    assert xen.word((layout.first + 5) * PAGE_SIZE) == 2
    with pytest.raises(HarnessError, match="never taken"):
        xen.restore("never taken")


def test_the_disk_for_snapshots_is_an_empty_qcow2() -> None:
    assert empty_qcow2()[:8] == b"QFI\xfb\0\0\0\2"
    assert len(empty_qcow2()) == 4 << 16


# --- death and resurrection --------------------------------------------------------------------------------------------------

def dies(xen: RealXen, batch: Batch, reason: str, done: int) -> Crashed:
    """The batch kills the machine, which says why and how far it came, and a restore brings it back."""
    with pytest.raises(Crashed, match=reason) as caught:
        xen.run(batch.words, len(batch), timeout=2)
    assert caught.value.done == done
    with pytest.raises(HarnessError, match="dead"):
        xen.run(batch.words, len(batch))
    with pytest.raises(HarnessError, match="dead"):
        xen.snapshot("dead")
    started = time.monotonic()
    xen.restore(START)
    assert time.monotonic() - started < 2
    assert alive(xen)
    return caught.value


@pytest.mark.parametrize(("why", "reason"), [(CRASH, "crashed"), (POWEROFF, "halted"), (REBOOT, "shut down")])
def test_domain_0_ends(xen: RealXen, why: int, reason: str) -> None:
    b = Batch()
    b.load(xen.scratch)
    b.hypercall(SCHED_OP, (SHUTDOWN, xen.scratch), ((xen.scratch, (why,)),))
    assert "Hardware Dom0" in dies(xen, b, f"domain 0 {reason}", done=1).lines[-1]


def test_a_base_without_the_executor(xen: RealXen, layout: Layout) -> None:
    b = Batch()
    b.hypercall(Xen417.UPDATE_VA_MAPPING, (layout.va(5), 0, Xen417.UVMF_INVLPG))
    extended(b, xen.scratch, Xen417.NEW_BASEPTR, layout.first + 5)
    dies(xen, b, "domain 0 crashed", done=1)


def test_an_application_without_a_root(xen: RealXen, layout: Layout) -> None:
    b = Batch()
    b.load(layout.va(5), user=True)
    dies(xen, b, "domain 0 crashed", done=0)


def test_a_guest_that_never_comes_back(xen: RealXen, layout: Layout) -> None:
    b = Batch()
    b.store(layout.va(5), 0xFEEB)                        # jmp .
    b.execute(layout.va(5))
    dies(xen, b, "nothing moved for 2 s", done=1)


def test_a_processor_that_gives_up(xen: RealXen) -> None:
    """Xen's own slots of the loaded root are lost, so nothing can even be told: a triple fault."""
    xen.ram[xen.root * PAGE_SIZE + 8 * Xen417.XEN_FIRST:xen.root * PAGE_SIZE + 8 * Xen417.XEN_LAST] = bytes(8 * 15)
    b = Batch()
    extended(b, xen.scratch, Xen417.NEW_BASEPTR, xen.root)
    dies(xen, b, "nothing moved for 2 s", done=0)


def test_xen_panics(tools: fetch.Tools) -> None:
    with RealXen(tools, options="nmi=fatal", timeout=2) as xen:
        xen.snapshot(START)
        xen.monitor.execute("inject-nmi")
        b = Batch()
        b.repeat(1 << 30, 1)
        b.load(xen.scratch)
        dies(xen, b, "Xen panicked|Xen took a fatal trap", done=0)


def test_qemu_ends_with_us(tools: fetch.Tools, tmp_path: Path) -> None:
    """However we end; and no file is left behind."""
    program = ("from emulator.xen.fetch import found; from emulator.xen.machine import RealXen\n"
               "xen = RealXen(found()); print(xen.process.pid, flush=True); input()")
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                          env={**os.environ, "TMPDIR": str(tmp_path)}) as ran:
        assert ran.stdout is not None
        process = Path("/proc") / ran.stdout.readline().strip() / "cmdline"
        assert b"qemu" in process.read_bytes()
        ran.kill()
    end = time.monotonic() + 10
    while process.exists() and process.read_bytes():     # empty: it ended, and only waits to be collected
        assert time.monotonic() < end
        time.sleep(0.02)
    assert list(tmp_path.iterdir()) == []


def test_a_machine_that_nobody_closes_ends_in_silence(tools: fetch.Tools) -> None:
    program = ("from emulator.xen.fetch import found; from emulator.xen.machine import RealXen\n"
               "xen = RealXen(found()); xen.snapshot('s'); xen.restore('s')")
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert (ran.stdout, ran.stderr) == ("", "")


def test_qemu_is_gone(xen: RealXen) -> None:
    xen.process.kill()
    xen.process.wait()
    b = Batch()
    b.load(xen.scratch)
    dies(xen, b, "QEMU ended with -9", done=0)


def test_an_end_while_nothing_ran(tools: fetch.Tools) -> None:
    with RealXen(tools) as xen:
        process = xen.process
        assert alive(xen)
        assert process.poll() is None
    assert process.poll() is not None
    with pytest.raises(HarnessError, match="closed"):
        xen.snapshot("late")


# --- what is there, and what is missing --------------------------------------------------------------------------------------

def test_what_is_missing_is_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "CACHE", tmp_path)
    monkeypatch.delenv("XENSPEC_XEN", raising=False)
    monkeypatch.setattr(fetch, "QEMU", "qemu-system-none")
    assert str(fetch.found()) == "the real Xen cannot run: there is no qemu-system-none: run `make real-xen`"
    monkeypatch.undo()
    monkeypatch.setattr(fetch, "qemu", lambda: (("qemu",), {}, "1"))
    monkeypatch.setattr(fetch, "CACHE", tmp_path)
    monkeypatch.delenv("XENSPEC_XEN", raising=False)
    assert "there is no Xen: run `make real-xen`" in str(fetch.found())
    text = tmp_path / "xen"
    text.write_bytes(b"\x1f\x8bzip")
    monkeypatch.setenv("XENSPEC_XEN", str(text))
    assert str(fetch.found()) == f"the real Xen cannot run: {text} is compressed: gunzip it first"
    assert "no multiboot ELF" in str(fetch.found(Path(sys.executable)))


def test_fetching_what_is_there_says_what_it_is(tools: fetch.Tools) -> None:
    ran = subprocess.run([sys.executable, "-m", "emulator.xen.fetch", "--check", "--xen", str(tools.xen)], capture_output=True,
                         text=True, check=True)
    assert ran.stdout == f"{tools}\n"
    assert [line.split(":")[0] for line in ran.stdout.splitlines()] == ["QEMU", "Xen", "executor"]
