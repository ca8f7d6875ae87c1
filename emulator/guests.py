"""A guest that runs as itself: its registers where Xen keeps them, what Xen's stubs see of its domain, and what they ask."""
from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from emulator import layout as at
from emulator.delivery import Delivery, place
from emulator.engine import Segment, segment_register, table
from emulator.traps import DR6_FIXED
from spec.abi import RW, A, D, P, Xen2003
from spec.vocabulary import Context

if TYPE_CHECKING:
    from emulator.machine import Machine

SAVED, PUSHED, TURNED, CALLBACKS, CONTROL = map(place, (at.SAVED, at.PUSHED, at.TURNED, at.EVENT_CALLBACK, at.CONTROL))
FRAME: Final = slice(4 * SAVED, 4 * (PUSHED + 7))           # bytes of RAM: all registers of the guest
GENERAL: Final = ("ebx", "ecx", "edx", "esi", "edi", "ebp", "eax")
_SHARED_INFO: Final = (at.HARNESS_L1_FRAME << 10) + at.SHARED_INFO_ENTRY
_ENTRY: Final = P | RW | A | D
_TS: Final = 1 << 3                     # of CR0
_EFLAGS: Final = 2
_XEN_CS, _XEN_DS = (segment_register(Segment(s, Xen2003.DESCRIPTORS[s >> 3])) for s in (at.XEN_CS, at.XEN_DS))
_NULL: Final = segment_register(Segment(0, 0))
_GATES: Final = table(at.GUEST_IDT, 8 * at.GUEST_IDT_ENTRIES - 1)


class GuestRun:
    """One guest at a time; the loop is put back when it is done."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.hypervisor = machine.hypervisor
        self.engine = machine.engine
        self.ram: Any = machine.hypervisor.ram
        self.delivery = Delivery(machine.hypervisor)
        self.killed = False
        self.returning = False          # the trap is the harness' own way back into the loop

    # --- before and after ---

    def suspend_loop(self) -> tuple[Any, bytes]:
        """Where the loop is, and its way back, which lies where the guest's registers will."""
        return self.engine.look(), bytes(self.hypervisor.bytes[FRAME])

    def resume_loop(self, state: Any, frame: bytes) -> None:
        """Put the processor back into the loop, through a fault: all that is cached stays so."""
        if self.engine.cpu.cs.selector & 3:
            self.returning = True
            self.engine.lose_its_way()
            self.engine.run()
            self.returning = False
        state.cr3 = self.hypervisor.root << 2
        self.engine.put_back(state)
        self.hypervisor.bytes[FRAME] = frame

    def save(self, context: Context) -> None:
        """Put a context where Xen keeps the registers of a guest."""
        ram, c = self.ram, context
        for n in range(len(GENERAL)):
            ram[SAVED + n] = 0
        ram[SAVED + 7], ram[SAVED + 8], ram[SAVED + 9], ram[SAVED + 10] = c.ds, c.es, c.fs, c.gs
        ram[PUSHED + 2], ram[PUSHED + 3], ram[PUSHED + 4], ram[PUSHED + 5], ram[PUSHED + 6] = c.eip, c.cs, c.eflags, c.esp, c.ss
        ram[TURNED] = 0

    def show(self) -> None:
        """Let Xen's stubs see the current domain's callbacks and shared_info, and what CR0 is to be."""
        ram, kernel = self.ram, self.delivery.kernel()
        ram[CALLBACKS], ram[CALLBACKS + 1] = kernel.event.cs, kernel.event.ip
        ram[CALLBACKS + 2], ram[CALLBACKS + 3] = kernel.failsafe.cs, kernel.failsafe.ip
        ram[CONTROL] = at.CR0 | (_TS if kernel.wants_fpu_trap else 0)
        frame = self.delivery.shared_info[self.hypervisor.current]
        ram[_SHARED_INFO] = frame << 12 | _ENTRY
        self.hypervisor.written.add(frame)

    def begin(self) -> None:
        """Put the processor at the head of Xen's way out."""
        state = self.engine.look()
        gdt, ldt = self.machine.guest_tables()
        state.gdtr, state.ldtr, state.idtr, state.cr3 = table(*gdt), segment_register(ldt), _GATES, self.hypervisor.root << 2
        if state.cs.selector != at.XEN_CS:      # before the first run only: a CS that is put back as it was keeps what is cached
            state.cs = _XEN_CS
        state.ss, state.ds, state.es, state.fs, state.gs = _XEN_DS, _XEN_DS, _XEN_DS, _NULL, _NULL
        state.rip, state.rsp, state.rflags, state.dr6 = self.machine.ways["enter"], at.SAVED, _EFLAGS, DR6_FIXED
        self.engine.put_back(state)

    # --- what the stubs ask ---

    def trap(self) -> None:
        """The guest has trapped into Xen."""
        if self.returning:
            self.engine.stop()
            return
        self.delivery.trap()
        if self.hypervisor.flush_due:
            self.machine.flush()

    def call(self) -> None:
        """The guest makes a hypercall; it may change what the processor and the stubs go by."""
        self.machine.hypercall()
        self.engine.load_tables(*self.machine.guest_tables())
        self.show()

    def kill(self) -> None:
        """There is no stack for a frame (W-49)."""
        self.killed = True
        self.engine.stop()

    def accessed(self, _session: Any, _cpu: int, linear: int, physical: int, size: int, _: int, kind: int) -> None:
        """Memory was read or written: what is the guest's may differ from boot."""
        if kind and linear < Xen2003.GUEST_END:         # 0: it was read
            self.hypervisor.written.add(physical >> 12)
