"""One running Xen: QEMU with Xen and the executor as domain 0, its memory mapped, batches through the mailbox, snapshots by QMP.

A machine that dies (domain 0 or Xen crashed, nothing moves any more, QEMU is gone) says so by `Crashed`; `restore` brings it
back to a snapshot in any case.
"""
import asyncio
import contextlib
import mmap
import os
import re
import shutil
import socket
import struct
import subprocess
import time
import weakref
from abc import ABC, abstractmethod
from typing import Final

from qemu.qmp import QMPClient, QMPError

from emulator.errors import HarnessError
from emulator.xen.batch import RESULT_SIZE, Batch, Result, result
from emulator.xen.fetch import Tools
from spec.abi import PAGE_SIZE

LARGE_PAGE: Final = 2 << 20
BOOT_SECONDS: Final = 60.0
COMMAND_LINE: Final = "console=com1 com1=115200,8n1 dom0_mem={dom0}M,max:{dom0}M"
# QEMU reads the stack of a far return as the hypervisor would, which SMAP forbids: a fault that no processor has.
CPU: Final = "max,smap=off"
_MAGIC: Final = int.from_bytes(b"executor", "little")
_READY: Final = re.compile(rb"xenspec executor: mailbox ([0-9a-f]{16})")
_DEATHS: Final = {                      # the first that is found is the reason
    b"xenspec executor: lost": "the executor was lost",
    b"Hardware Dom0 crashed": "domain 0 crashed",
    b"Hardware Dom0 shutdown": "domain 0 shut down",
    b"Hardware Dom0 halted": "domain 0 halted",
    b"Xen BUG": "Xen hit a BUG",
    b"Assertion '": "an assertion of Xen failed",
    b"Domain 0 (vcpu#0) crashed": "domain 0 crashed",
    b"(vcpu#0) crashed": "a domU crashed",
    b"Panic on CPU": "Xen panicked",
    b"FATAL TRAP": "Xen took a fatal trap",
}
_SEQUENCE, _OPERATIONS, _DONE, _PROGRESS = (8 * n for n in range(16, 20))
_WORD: Final = struct.Struct("<Q")
_SPINS: Final = 400                     # looks at the mailbox before the first nap
_NAP: Final = 50e-6


class Crashed(Exception):
    """The machine is dead until it is restored: why, what was complete of the batch, and the last lines of the console."""

    def __init__(self, reason: str, done: int, lines: list[str]) -> None:
        super().__init__(reason + "".join(f"\n    {line}" for line in lines[-3:]))
        self.reason = reason
        self.done = done
        self.lines = lines


class Monitor:
    """QEMU's monitor, one command at a time."""

    def __init__(self, connection: socket.socket) -> None:
        self._loop = asyncio.new_event_loop()
        self._client = QMPClient("xenspec")
        self._loop.run_until_complete(self._client.connect(connection))

    def execute(self, command: str, **arguments: object) -> object:
        """A command of QMP.  Raises `QMPError`."""
        return self._loop.run_until_complete(self._client.execute(command, arguments))

    def line(self, line: str) -> None:
        """A command of the human monitor that answers nothing if it succeeds."""
        answer = self.execute("human-monitor-command", **{"command-line": line})
        if answer:
            raise HarnessError(f"QEMU's monitor on {line!r}: {str(answer).strip()}")

    def close(self) -> None:
        """Let go of it."""
        with contextlib.suppress(QMPError, EOFError, OSError):
            self._loop.run_until_complete(self._client.disconnect())
        self._loop.close()


class Guest(ABC):
    """The executor of one domain, seen through the machine's memory `ram`: what it says of itself, and its batches."""
    image = 0x100000                    # where the executor's image begins, as link.lds says; it ends at `image_end`
    domid = 0
    pages: int                          # of the domain
    p2m: tuple[int, ...]                # their frames
    root: int                           # the boot tables' root
    tables: tuple[int, ...]             # the boot tables, the root first
    image_end: int
    mapped_end: int                     # of what the boot tables map, from address 0 on
    shared_info: int                    # its frame
    scratch: int                        # memory for the harness's own arguments, always mapped here,
    scratch_at: int                     # and at this machine address
    scratch_bytes: int
    mailbox: int                        # its machine address

    def __init__(self, ram: mmap.mmap) -> None:
        self.ram = ram
        self._words = memoryview(ram).cast("Q")
        self.mailbox = self._sequence = self._count = 0

    def find(self, mailbox: int) -> None:
        """Read what the executor says of itself."""
        self.mailbox = mailbox
        (magic, own, batch, self._batch_bytes, results, results_bytes, self.scratch, self.scratch_bytes, p2m, p2m_at, self.pages,
         table_base, table_frames, self.image_end, _, shared_info) = struct.unpack_from("<16Q", self.ram, mailbox)
        if magic != _MAGIC or own != mailbox:
            raise HarnessError("the executor's mailbox is not where it says")
        self.p2m = struct.unpack_from(f"<{self.pages}Q", self.ram, p2m_at)
        if self._contiguous(p2m, 8 * self.pages) != p2m_at:
            raise HarnessError("the list of the domain's frames is not where the executor says")
        self.shared_info = shared_info // PAGE_SIZE
        self.root = self.p2m[table_base // PAGE_SIZE]
        self.tables = self.p2m[table_base // PAGE_SIZE:table_base // PAGE_SIZE + table_frames]
        self.mapped_end = (table_frames - 3) * LARGE_PAGE       # below the L4, L3 and L2 table: L1 tables from address 0 on
        self._batch_at = self._contiguous(batch, self._batch_bytes)
        self._results_at = self._contiguous(results, results_bytes)
        self._most = results_bytes // RESULT_SIZE
        self.scratch_at = self._contiguous(self.scratch, self.scratch_bytes)

    def _contiguous(self, va: int, size: int) -> int:
        """The machine address of a stretch of the executor's image."""
        first, last = va // PAGE_SIZE, (va + size - 1) // PAGE_SIZE
        if any(self.p2m[i] != self.p2m[first] + i - first for i in range(first, last + 1)):
            raise HarnessError("the executor's image does not lie in one stretch of machine memory")
        return self.p2m[first] * PAGE_SIZE + va % PAGE_SIZE

    # --- memory -------------------------------------------------------------------------------------------------------------

    def word(self, address: int) -> int:
        """The word at a machine address."""
        found: int = _WORD.unpack_from(self.ram, address)[0]
        return found

    def set_word(self, address: int, word: int) -> None:
        """Write a word at a machine address."""
        _WORD.pack_into(self.ram, address, word)

    def frame(self, mfn: int) -> bytes:
        """The contents of a frame."""
        return self.ram[mfn * PAGE_SIZE:(mfn + 1) * PAGE_SIZE]

    def set_frame(self, mfn: int, contents: bytes) -> None:
        """Write a whole frame, behind everybody's back: for frames that nothing maps or caches."""
        self.ram[mfn * PAGE_SIZE:(mfn + 1) * PAGE_SIZE] = contents

    # --- batches ------------------------------------------------------------------------------------------------------------

    @property
    def most(self) -> tuple[int, int]:
        """The most bytes and the most operations of a batch."""
        return self._batch_bytes, self._most

    def post(self, batch: bytes | memoryview, operations: int) -> None:
        """Put a batch where the executor finds it when it looks next."""
        if len(batch) > self._batch_bytes or operations > self._most:
            raise HarnessError(f"a batch of {len(batch)} bytes and {operations} operations: at most {self.most} go in")
        self.ram[self._batch_at:self._batch_at + len(batch)] = batch
        self.set_word(self.mailbox + _OPERATIONS, operations)
        self.set_word(self.mailbox + _PROGRESS, 0)
        self._count = operations
        self._sequence += 1
        # one access: pack_into clears first, and the executor, which looks all the time, would take the 0 for a batch
        self._words[self.mailbox + _SEQUENCE >> 3] = self._sequence

    @property
    def is_done(self) -> bool:
        """The batch that was posted is complete."""
        found: bool = self._words[self.mailbox + _DONE >> 3] == self._sequence
        return found

    @property
    def progress(self) -> int:
        """How many operations of the last batch are complete."""
        return self.word(self.mailbox + _PROGRESS) if self._count else 0

    def results(self) -> memoryview:
        """The results of the last batch, `RESULT_SIZE` bytes each, until the next is posted."""
        return memoryview(self.ram)[self._results_at:self._results_at + self._count * RESULT_SIZE]

    def resume(self) -> None:
        """Take up the mailbox as it is, after a restore."""
        self._sequence, self._count = self.word(self.mailbox + _SEQUENCE), 0

    @abstractmethod
    def run(self, batch: bytes | memoryview, operations: int, timeout: float | None = None) -> memoryview:
        """Run a batch; its results, as by `results`.  Raises `Crashed`."""

    def do(self, batch: Batch) -> list[Result]:
        """Run a batch and read its results; for set-up and tests."""
        found = bytes(self.run(batch.words, len(batch)))
        return [result(found, n) for n in range(len(batch))]


class RealXen(Guest):
    """Xen with our guest as domain 0.  `ram` is its memory, from machine address 0 on."""

    def __init__(self, tools: Tools, memory: int = 128, dom0: int = 32, options: str = "", timeout: float = 5.0) -> None:
        self.tools, self.memory, self.timeout = tools, memory, timeout
        self._options = f"{COMMAND_LINE.format(dom0=dom0)} {options}".strip()
        self._process: subprocess.Popen[bytes] | None = None
        self._monitor: Monitor | None = None
        self._log_read = self._since = 0        # of the console: what was looked at; what was there at the last restore
        self._tail = b""
        self._died = False
        self._kill: weakref.finalize[..., RealXen] | None = None
        self._hang_up: weakref.finalize[..., RealXen] | None = None
        # In no file system: none has to be large enough, and nothing is left behind, however we end.
        self._files = {name: os.memfd_create(name) for name in ("ram", "snapshots", "console", "complaints")}
        os.truncate(self._files["ram"], memory << 20)
        os.write(self._files["snapshots"], empty_qcow2())
        super().__init__(mmap.mmap(self._files["ram"], memory << 20))
        self.others: list[Guest] = []           # domUs, which restores concern too
        try:
            self._launch()
            self.find(self._await_boot())
        except BaseException:
            self.close()
            raise

    # --- QEMU ---------------------------------------------------------------------------------------------------------------

    def _command(self, qmp: int) -> list[str]:
        death = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []
        ram, snapshots, console = (f"/dev/fd/{self._files[name]}" for name in ("ram", "snapshots", "console"))
        return [*death, *self.tools.qemu, "-nodefaults", "-accel", "tcg", "-cpu", CPU, "-smp", "1", "-m", str(self.memory),
                "-display", "none", "-no-reboot", "-no-shutdown", "-serial", f"file:{console}",
                "-chardev", f"socket,id=qmp,fd={qmp}", "-mon", "chardev=qmp,mode=control",
                "-object", f"memory-backend-file,id=ram,size={self.memory}M,mem-path={ram},share=on",
                "-machine", "pc,memory-backend=ram", "-drive", f"if=none,id=snapshots,file={snapshots},format=qcow2",
                "-kernel", str(self.tools.xen), "-append", self._options, "-initrd", str(self.tools.executor)]

    def _launch(self, *more: str) -> None:
        ours, theirs = socket.socketpair()
        environment = {**os.environ, **self.tools.environment}
        complaints = self._files["complaints"]
        os.truncate(complaints, os.lseek(complaints, 0, os.SEEK_SET))
        with theirs:
            self._process = subprocess.Popen([*self._command(theirs.fileno()), *more], stdin=subprocess.DEVNULL,
                                             stdout=complaints, stderr=complaints, env=environment,
                                             pass_fds=[theirs.fileno(), *self._files.values()])
        self._kill = weakref.finalize(self, end_process, self._process)
        self._log_read, self._since, self._tail, self._died = 0, 0, b"", False
        try:
            self._monitor = Monitor(ours)
            self._hang_up = weakref.finalize(self, self._monitor.close)     # at exit at the latest, and before QEMU is killed
        except (QMPError, OSError) as error:
            raise HarnessError(f"QEMU does not start: {self._complaint() or error}") from error

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """QEMU."""
        if self._process is None:
            raise HarnessError("the machine was never started")
        return self._process

    def _complaint(self) -> str:
        return self._written("complaints").decode(errors="replace").strip()

    def _written(self, name: str, since: int = 0) -> bytes:
        """What is in one of the files, from a place on."""
        file = self._files[name]
        return os.pread(file, max(0, os.fstat(file).st_size - since), since)

    def _stop(self) -> None:
        for end in (self._hang_up, self._kill):
            if end is not None:
                end()                           # once: a second call does nothing
        self._monitor = None

    def close(self) -> None:
        """End it, and let go of its files."""
        self._stop()
        while self._files:
            os.close(self._files.popitem()[1])

    def __enter__(self) -> "RealXen":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- the console --------------------------------------------------------------------------------------------------------

    def log_tail(self, n: int = 20, since: int = 0) -> list[str]:
        """The last lines of Xen's console, of those from a place in the file on."""
        return self._written("console", since).decode(errors="replace").splitlines()[-n:]

    def _new_output(self) -> bytes:
        """What was written since the last look, with the line before it."""
        new = self._written("console", self._log_read)
        if not new:
            return b""
        self._log_read += len(new)
        self._tail = (self._tail + new)[-4096 - len(new):]
        return self._tail

    def _crash(self, reason: str) -> Crashed:
        self._died = True
        return Crashed(reason, self.progress, self.log_tail(since=self._since))

    def _look(self) -> None:
        """Raise `Crashed` if the console or the process says so."""
        if self.process.poll() is not None:
            raise self._crash(f"QEMU ended with {self.process.returncode} {self._complaint()}".strip())
        output = self._new_output()
        for sign, reason in _DEATHS.items():
            if sign in output:
                time.sleep(0.05)                # let it finish its lines
                raise self._crash(reason)

    # --- boot ---------------------------------------------------------------------------------------------------------------

    def _await_boot(self) -> int:
        """The machine address of the mailbox."""
        end = time.monotonic() + BOOT_SECONDS
        while time.monotonic() < end:
            self._look()
            if ready := _READY.search(self._tail):
                return int(ready[1], 16)
            time.sleep(0.01)
        raise self._crash(f"the executor did not start within {BOOT_SECONDS:.0f} s")

    # --- batches ------------------------------------------------------------------------------------------------------------

    def send(self, batch: bytes | memoryview, operations: int) -> None:
        """Start a batch; nothing else may be sent before `receive`."""
        if self._died:
            raise HarnessError("the machine is dead: restore it first")
        self.post(batch, operations)

    def receive(self, timeout: float | None = None) -> memoryview:
        """The results of the batch that was sent.  Raises `Crashed`."""
        looks, end = 0, 0.0
        while not self.is_done:
            looks += 1
            if looks < _SPINS:
                continue
            end = end or time.monotonic() + (timeout or self.timeout)
            time.sleep(_NAP)
            if looks % 20 == 0:
                self._look()
                if time.monotonic() > end:
                    raise self._crash(f"nothing moved for {timeout or self.timeout:g} s")
        return self.results()

    def run(self, batch: bytes | memoryview, operations: int, timeout: float | None = None) -> memoryview:
        """`send` and `receive`."""
        self.send(batch, operations)
        return self.receive(timeout)

    # --- snapshots ----------------------------------------------------------------------------------------------------------

    @property
    def monitor(self) -> Monitor:
        """QEMU's monitor."""
        if self._monitor is None:
            raise HarnessError("the machine was closed")
        return self._monitor

    def snapshot(self, name: str) -> None:
        """Keep the whole state of the machine under a name; of the same name, the newer stays."""
        if self._died:
            raise HarnessError("the machine is dead: restore it first")
        self.monitor.line(f"savevm {name}")

    def restore(self, name: str) -> None:
        """Go back to a snapshot, dead or alive."""
        if not (self._revive(name) if self._died else self._rewind(name)):
            self._stop()
            self._launch("-loadvm", name)
        self._new_output()
        self._tail, self._died, self._since = b"", False, self._log_read
        for guest in (self, *self.others):
            guest.resume()

    def _rewind(self, name: str) -> bool:
        """Go back to a snapshot if QEMU lives."""
        monitor = self.monitor
        with contextlib.suppress(QMPError, EOFError, OSError):
            monitor.line(f"loadvm {name}")
            return True
        return False

    def _revive(self, name: str) -> bool:
        """Go back to a snapshot if QEMU lives and did not see the machine switched off: then it starts no more."""
        with contextlib.suppress(QMPError, EOFError, OSError):
            monitor = self.monitor
            monitor.execute("stop")
            state = monitor.execute("query-status")
            if isinstance(state, dict) and state["status"] == "paused":
                monitor.line(f"loadvm {name}")
                monitor.execute("cont")
                return True
        return False


def end_process(process: subprocess.Popen[bytes]) -> None:
    """End a process that we started."""
    process.kill()
    process.wait()


def empty_qcow2() -> bytes:
    """A qcow2 image, version 2, of one empty cluster: a disk with nothing but room for snapshots."""
    cluster = 1 << 16
    header = struct.pack(">4sIQIIQIIQQIIQ", b"QFI\xfb", 2, 0, 0, 16, cluster, 0, 1, 3 * cluster, cluster, 1, 0, 0)
    used = struct.pack(">4H", 1, 1, 1, 1)           # this cluster, the table of counts, the counts, the L1 table
    table = struct.pack(">Q", 2 * cluster)
    return b"".join(part.ljust(cluster, b"\0") for part in (header, table, used, b""))
