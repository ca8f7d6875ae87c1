"""Which handler of a kernel takes a trap, and what goes with it on the stack (xen-2003.md §7.2, §7.3; W-41, W-52 to W-58)."""
from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from emulator import layout as at
from emulator.kernel import NO_HANDLER, Handler, Kernel
from emulator.stubs import WITH_ERROR_CODE
from spec.abi import DB, GP, NM, PAGE_SIZE, PF, Xen2003

if TYPE_CHECKING:
    from emulator.hypervisor import Hypervisor


def place(address: int) -> int:
    """The word of RAM at an address in Xen's frames."""
    return address - at.HARNESS >> 2


VECTOR, ERROR, EIP, CS, EFLAGS = (place(at.PUSHED) + n for n in range(5))
ADDRESS, DEBUG, HANDLER, WORDS = map(place, (at.FAULT_ADDRESS, at.DEBUG_STATUS, at.HANDLER, at.HANDLER_WORDS))
NO_FRAME: Final = 0xFFFFFFFF            # as WORDS: the guest goes on where it was
FROM_INT: Final = 2                     # bits 0 and 1 of an error code: an entry of the IDT, and the program named it
INT_SIZE: Final = 2                     # of INT n
EVENTS_MASTER: Final = 1 << 31          # of events_mask


class Delivery:
    """What Xen decides when a guest that runs as itself has trapped; the stubs then do it."""

    def __init__(self, hypervisor: Hypervisor) -> None:
        self.hypervisor = hypervisor
        self.ram: Any = hypervisor.ram
        self.shared_info = {d.domid: d.first + d.pages for d in hypervisor.boot.setup.domains}     # frames

    def kernel(self) -> Kernel:
        """The current domain's."""
        return self.hypervisor.descriptors.kernel()

    def trap(self) -> None:
        """Decide what comes of the trap that has been saved."""
        ram = self.ram
        vector, error = ram[VECTOR], ram[ERROR]
        if vector == GP and error & 3 == FROM_INT:
            self.software(error >> 3)
        elif vector == PF:
            self.page_fault(ram[ADDRESS])
        elif vector == DB:
            self.single_step()
        elif vector == NM:
            self.fpu()
        else:
            self.exception(vector)

    def software(self, vector: int) -> None:
        """INT n: the kernel's handler says from which ring on it may be called; else it is a protection fault (W-55)."""
        handler = self.handler(vector)
        if handler.flags & 3 < self.ram[CS] & 3:
            self.exception(GP)
            return
        self.ram[EIP] = self.ram[EIP] + INT_SIZE & 0xFFFFFFFF
        self.enter(handler, 0)

    def page_fault(self, address: int) -> None:
        """The processor may have looked for a descriptor in a page of the LDT that can be mapped (W-52)."""
        offset = address - at.LDT_WINDOW
        if 0 <= offset < at.WINDOW_PAGES * PAGE_SIZE and self.hypervisor.descriptors.map_ldt(offset // PAGE_SIZE):
            self.ram[WORDS] = NO_FRAME
        else:
            self.exception(PF)

    def single_step(self) -> None:
        """The guest's debug register 6 is the processor's; the handler does not mask events (W-57)."""
        self.kernel().debug[6] = self.ram[DEBUG]
        self.enter(self.handler(DB)._replace(flags=0), 0)

    def fpu(self) -> None:
        """The kernel hears of it once, if it has asked (W-58)."""
        kernel = self.kernel()
        if kernel.wants_fpu_trap:
            kernel.wants_fpu_trap = False
            self.exception(NM)
        else:
            self.ram[WORDS] = NO_FRAME

    def exception(self, vector: int) -> None:
        """Enter the handler of an exception, with its error code and, for a page fault, the address (W-56)."""
        self.enter(self.handler(vector), 2 if vector == PF else 1 if vector in WITH_ERROR_CODE else 0)

    def handler(self, vector: int) -> Handler:
        """What the kernel has set for a vector."""
        return self.kernel().handlers.get(vector, NO_HANDLER)

    def enter(self, handler: Handler, words: int) -> None:
        """Have the handler entered, with so many words besides those of every frame."""
        ram = self.ram
        ram[HANDLER] = handler.cs
        ram[HANDLER + 1] = handler.ip
        ram[WORDS] = words
        if handler.flags & Xen2003.EVENTS_MASKED:
            ram[self.events_mask()] &= ~EVENTS_MASTER & 0xFFFFFFFF

    def events_mask(self) -> int:
        """The word of RAM with the current domain's mask."""
        return (self.shared_info[self.hypervisor.current] << 10) + 1
