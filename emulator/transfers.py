"""Lets a guest execute one instruction as itself, with its own selectors, tables and gates, and tells where it goes on.

The loop stores the instruction, then rings.  The processor is put in front of Xen's way out (`emulator.ways`) with the guest's
registers saved there, and runs until the guest's next instruction would be fetched; then it is put back into the loop.
"""
from typing import Any, Final

from emulator.guests import TURNED, GuestRun
from spec.vocabulary import KILLED, Interrupt, Outcome, Transfer

_TF: Final = 1 << 8


class Transfers(GuestRun):
    """One instruction of a guest."""
    stepping = False                    # the guest is at its instruction,
    leaving = False                     # or all but: Xen's IRET is not quite done
    trap_due = False                    # a single-step trap follows the instruction

    def locate(self, cs: int, eip: int) -> int:
        """Where the instruction at CS:EIP lies (W-43)."""
        q = self.hypervisor.descriptors.look_up(cs)
        return (q >> 16 & 0xFFFFFF | q >> 56 << 24) + eip & 0xFFFFFFFF

    def perform(self, action: Transfer) -> Outcome:
        """Let the guest execute the instruction that the loop has stored."""
        loop = self.suspend_loop()
        self.save(action.at)
        self.show()
        self.killed = self.stepping = self.leaving = False
        self.trap_due = bool(action.at.eflags & _TF) and not isinstance(action, Interrupt)
        self.begin()
        self.engine.on_steps(self.left, self.executed, self.accessed)
        self.engine.run(watched=True)
        outcome = Outcome(KILLED) if self.killed else Outcome(landing=self.landing())
        self.resume_loop(*loop)
        return outcome

    def landing(self) -> tuple[int, ...]:
        """The registers, in the order of `Context`."""
        state = self.engine.look()
        return (state.cs.selector, state.rip, state.rflags, state.rsp, state.ss.selector,
                state.ds.selector, state.es.selector, state.fs.selector, state.gs.selector)

    # --- what the processor tells while it runs ---

    def left(self, _session: Any, _cpu: int, _what: int, _cs: int, _eip: int, cs: int, _to: int) -> None:
        """A far branch is being made: to Xen, to the guest's instruction, or to where that or Xen leads."""
        if not cs & 3:
            return
        if self.ram[TURNED] or (self.stepping and not self.trap_due):
            self.engine.stop()
        elif not self.stepping:
            self.stepping = self.leaving = True

    def executed(self, *_: Any) -> None:
        """An instruction is done, without a fault."""
        if not self.stepping:
            return
        if self.leaving:                # it was Xen's IRET
            self.leaving = False
        elif self.engine.cpu.cs.selector & 3 == 0:
            self.stepping = False       # the guest has trapped
        elif not self.trap_due:
            self.engine.stop()
