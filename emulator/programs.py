"""Lets whole guests run: real code of a kernel in ring 1 and of its applications in ring 3, until one makes a certain hypercall.

Xen's stubs and doorbell do all that is asked of Xen; there is no harness between.  The hypercall sched_op, and the end of a time
slice, go to the next of the domains that run; their registers are kept meanwhile as Xen keeps them.
"""
import time
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from emulator.errors import HarnessError
from emulator.guests import FRAME, GENERAL, PUSHED, SAVED, GuestRun
from spec.abi import ENOSYS, Xen2003
from spec.vocabulary import Context

SCHED_OP: Final = 8
YIELD: Final = 0
DONE: Final = 255                       # no hypercall has this number: with it a guest says that it is done
_EAX, _EBX = SAVED + 6, SAVED


class Registers(NamedTuple):
    """All registers of a guest: EBX ECX EDX ESI EDI EBP EAX, and the others."""
    general: tuple[int, ...]
    context: Context


class Ran(NamedTuple):
    """What came of a run: instructions by guests and by Xen's stubs (0 if nobody counted), hypercalls and traps into Xen.

    `seconds` of wall time; `last` made the last hypercall; the registers of all; `killed`: Xen gave the last one up; `limited`:
    it was stopped.
    """
    instructions: int
    xens: int
    calls: int
    traps: int
    seconds: float
    last: int
    registers: dict[int, Registers]
    killed: bool = False
    limited: bool = False


class Programs(GuestRun):
    """Some guests in turn."""
    until = DONE
    limit = quantum = instructions = xens = calls = traps = left = 0
    limited = sliced = crosses = False
    seconds = 0.0

    def run(self, contexts: Mapping[int, Context | Registers], until: int = DONE, limit: int = 0, quantum: int = 0) -> Ran:
        """Let these domains run, the first first, until one makes the hypercall `until`.

        With a `limit` of instructions of guests each one is counted, which takes its time; then a domain that has executed
        `quantum` of them must wait for the others.  Without, nothing stops guests that go on for ever.
        """
        if not contexts or (quantum and not limit):
            raise HarnessError("nobody is to run, or slices are to be measured without counting")
        hypervisor, before = self.hypervisor, self.hypervisor.current
        self.until, self.limit, self.quantum = until, limit, quantum
        self.instructions = self.xens = self.calls = self.traps = self.left = 0
        self.killed = self.limited = self.crosses = False
        hypervisor.written.update(range(hypervisor.boot.setup.xen_frames, hypervisor.extent))   # nobody looks where guests write
        for f in hypervisor.written:
            self.engine.forget_code(f)
        loop = self.suspend_loop()
        self.waiting = {domid: self.frame_of(registers) for domid, registers in contexts.items()}
        self.machine.inside = self
        try:
            self.go()
            last = hypervisor.current
            self.waiting[last] = bytes(hypervisor.bytes[FRAME])
            self.resume_loop(*loop)
        finally:
            self.machine.inside = self.machine.transfers
        registers = {domid: self.registers(frame) for domid, frame in self.waiting.items()}
        hypervisor.switch_to(before)
        self.machine.flush()
        return Ran(self.instructions, self.xens, self.calls, self.traps, self.seconds, last, registers, self.killed, self.limited)

    def go(self) -> None:
        """Run until somebody stops the processor for good."""
        counted = self.limit > 0
        if counted:
            self.engine.on_steps(self.crossing, self.executed, _nothing)
        start = time.perf_counter()
        self.enter(next(iter(self.waiting)))
        while True:
            self.sliced = False
            self.begin()
            self.engine.run(watched=counted)
            if not self.sliced:
                break
            self.keep_registers()
            self.enter(self.next())
        self.seconds = time.perf_counter() - start
        if self.limited:
            self.keep_registers()

    # --- whose turn it is ---

    def enter(self, domid: int) -> None:
        """Make a domain the current one, with its registers as Xen kept them."""
        self.hypervisor.bytes[FRAME] = self.waiting.pop(domid)
        self.hypervisor.switch_to(domid)
        self.machine.flush()
        self.show()
        self.left = self.quantum

    def next(self) -> int:
        """Put the current domain behind the others; the first of them is next."""
        self.waiting[self.hypervisor.current] = bytes(self.hypervisor.bytes[FRAME])
        return next(iter(self.waiting))

    # --- what the stubs ask ---

    def call(self) -> None:
        """A hypercall of the current domain."""
        self.calls += 1
        cpu = self.engine.cpu
        nr = cpu.rax & 0xFF
        if nr == self.until:
            self.engine.stop()
        elif nr == SCHED_OP:
            self.ram[_EAX] = 0 if self.ram[_EBX] == YIELD else -ENOSYS & 0xFFFFFFFF
            if self.ram[_EBX] == YIELD:
                self.enter(self.next())
            cpu.rax = self.ram[_EAX]
            self.engine.load_tables(*self.machine.guest_tables())
        else:
            super().call()

    def trap(self) -> None:
        """A fault of the current domain, or an INT n."""
        self.traps += 1
        super().trap()

    def crossing(self, _session: Any, _cpu: int, _what: int, cs: int, _eip: int, to: int, _to: int) -> None:
        """A far branch is being made: perhaps between Xen and a guest."""
        self.crosses = (cs & 3 == 0) is not (to & 3 == 0)

    def executed(self, *_: Any) -> None:
        """An instruction is done, without a fault: count it, and stop a guest at the limit or the end of a slice."""
        in_xen = self.engine.cpu.rip >= Xen2003.GUEST_END
        if in_xen is self.crosses:
            self.instructions += 1
            self.left -= 1
        else:
            self.xens += 1
        self.crosses = False
        if in_xen:
            return
        if self.instructions >= self.limit:
            self.limited = True
            self.engine.stop()
        elif self.quantum and self.left <= 0 and self.waiting:
            self.sliced = True
            self.engine.stop()

    # --- registers ---

    def frame_of(self, registers: Context | Registers) -> bytes:
        """Registers as Xen keeps them."""
        self.save(registers if isinstance(registers, Context) else registers.context)
        if isinstance(registers, Registers):
            for n, value in enumerate(registers.general):
                self.ram[SAVED + n] = value
        return bytes(self.hypervisor.bytes[FRAME])

    def registers(self, frame: bytes) -> Registers:
        """The same the other way round."""
        words = memoryview(frame).cast("I").tolist()
        ds, es, fs, gs = words[len(GENERAL):len(GENERAL) + 4]
        eip, cs, eflags, esp, ss = words[PUSHED + 2 - SAVED:]
        return Registers(tuple(words[:len(GENERAL)]), Context(cs, eip, eflags, esp, ss, ds, es, fs, gs))

    def keep_registers(self) -> None:
        """Keep the registers of a guest that was stopped between two of its instructions."""
        state = self.engine.look()
        context = Context(state.cs.selector, state.rip, state.rflags, state.rsp, state.ss.selector,
                          state.ds.selector, state.es.selector, state.fs.selector, state.gs.selector)
        self.frame_of(Registers(tuple(getattr(state, "r" + name[1:]) for name in GENERAL), context))


def _nothing(*_: Any) -> None:
    """Nobody asks."""
