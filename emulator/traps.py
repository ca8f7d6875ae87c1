"""Where the processor enters a kernel, and its debug registers (xen-2003.md §7.1, §7.4, §7.7, §7.8; W-31 to W-34, W-38, W-39)."""
from __future__ import annotations

from typing import TYPE_CHECKING, Final

from emulator.descriptors import Descriptors, is_guest_code
from emulator.kernel import NO_HANDLER, Handler
from spec.abi import EFAULT, EINVAL, EPERM, Xen2003

if TYPE_CHECKING:
    from emulator.hypervisor import Hypervisor

FAST: Final = frozenset({*range(0x20, 0x30), 0x80})         # vectors that may have a gate of their own

# --- debug registers
DR6_FIXED, DR6_KEPT = 0xFFFF0FF0, 0xFFFFEFFF
DR7_FIXED, DR7_KEPT = 0x400, 0xFFFF27FF
DR7_GUARD: Final = 1 << 13
IO_BREAKPOINT: Final = 2                # as R/W; as LEN it is not assigned


class Traps:
    """The hypercalls about them; what they set is kept in the domain's `Kernel`."""

    def __init__(self, hypervisor: Hypervisor, descriptors: Descriptors) -> None:
        self.hypervisor = hypervisor
        self.descriptors = descriptors

    def set_trap_table(self, pointer: int, _: int = 0, __: int = 0) -> int:
        """Set handlers one after the other until the entry without an address, or one that is bad (W-32)."""
        for at in range(pointer, Xen2003.GUEST_END, 8):
            entry = self.hypervisor.read(at, 2)
            if entry is None:
                break
            first, address = entry
            if address == 0:
                return 0
            if not is_guest_code(first >> 16):
                return -EPERM
            self.set_handler(first & 0xFF, Handler(first >> 16, address, first >> 8 & 0xFF))
        return -EFAULT

    def set_handler(self, vector: int, handler: Handler) -> None:
        """Set the handler of a vector; a fast trap follows it, or ends (W-33)."""
        kernel = self.descriptors.kernel()
        kernel.handlers[vector] = handler
        if kernel.fast_trap == vector:
            if handler.flags & Xen2003.EVENTS_MASKED:
                kernel.fast_trap = 0
            self.descriptors.present.fast_trap(kernel)

    def set_fast_trap(self, vector: int, _: int = 0, __: int = 0) -> int:
        """Let one vector enter its handler without Xen; 0: none does (W-33)."""
        kernel = self.descriptors.kernel()
        if vector and (vector not in FAST or kernel.handlers.get(vector, NO_HANDLER).flags & Xen2003.EVENTS_MASKED):
            return -EPERM
        kernel.fast_trap = vector
        self.descriptors.present.fast_trap(kernel)
        return 0

    def set_callbacks(self, cs: int, ip: int, failsafe_cs: int) -> int:
        """Set where the kernel hears of events, and of segments that Xen could not restore; the last argument is in ESI."""
        return self.set_both(cs, ip, failsafe_cs, self.hypervisor.fourth())

    def set_both(self, cs: int, ip: int, failsafe_cs: int, failsafe_ip: int) -> int:
        """The same, with the last argument at hand."""
        if not is_guest_code(cs & 0xFFFF) or not is_guest_code(failsafe_cs & 0xFFFF):
            return -EPERM
        kernel = self.descriptors.kernel()
        kernel.event = Handler(cs & 0xFFFF, ip)
        kernel.failsafe = Handler(failsafe_cs & 0xFFFF, failsafe_ip)
        return 0

    def stack_switch(self, ss: int, esp: int, _: int = 0) -> int:
        """Set the stack on which the kernel is entered from ring 3 (W-38)."""
        if ss & 3 == 0:
            return -EPERM
        kernel = self.descriptors.kernel()
        kernel.stack = ss & 0xFFFF, esp
        self.descriptors.present.stack(*kernel.stack)
        return 0

    def fpu_taskswitch(self, _: int = 0, __: int = 0, ___: int = 0) -> int:
        """Ask for a trap when floating point is next used (W-39)."""
        self.descriptors.kernel().wants_fpu_trap = True
        return 0

    # --- debug registers (W-34) ----------------------------------------------------------------------------------------------

    def set_debugreg(self, register: int, value: int, _: int = 0) -> int:
        """Set a debug register, unless it would watch Xen or the registers themselves."""
        if register <= 3:
            if value > Xen2003.BREAKPOINT_END:
                return -EPERM
        elif register == 6:
            value = value & DR6_KEPT | DR6_FIXED
        elif register == 7:
            if value:
                value = value & DR7_KEPT | DR7_FIXED
                if value & DR7_GUARD or any(value >> shift & 3 == IO_BREAKPOINT for shift in range(16, 32, 2)):
                    return -EPERM
        else:
            return -EINVAL
        self.descriptors.kernel().debug[register] = value
        return 0

    def get_debugreg(self, register: int, _: int = 0, __: int = 0) -> int:
        """What a debug register was set to."""
        return self.descriptors.kernel().debug.get(register, 0) if register <= 7 else -EINVAL
