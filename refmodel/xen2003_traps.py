"""What a guest of Xen 1.2 says of its handlers, its stack and its breakpoints, on the model (xen-2003.md §7; W-31 to W-39)."""
from refmodel.guest import demand
from refmodel.xen2003_descriptors import DescriptorCalls
from spec.abi import EINVAL, EPERM, Xen2003
from spec.kernel import DomId, Index, check
from spec.rings import mark_fpu, set_debug, set_fast_trap, set_trap, switch_stack

X = Xen2003
SELECTOR = 0xFFFF


class TrapCalls(DescriptorCalls):
    """A machine whose guests have handlers."""

    def set_trap_table(self, d: DomId, at: int) -> int:
        """Handlers are stored one by one, up to one without an address; those before one that is refused stay."""
        while True:
            first, address = self.copy_in(d, at, 2)
            if address == 0:
                return 0
            v, flags = Index(first & 0xFF), first >> 8 & 0xFF
            self.granted(EPERM, set_trap, self.s, d, v, first >> 16, address, flags)
            if flags & X.EVENTS_MASKED and v == self.s.fast_trap[d]:
                set_fast_trap(self.s, d, Index(0))
            at += 8

    def set_fast_trap(self, d: DomId, v: int) -> int:
        """One vector may have a gate of its own, or none."""
        self.granted(EPERM, set_fast_trap, self.s, d, Index(v))
        return 0

    def set_callbacks(self, d: DomId, event_cs: int, event_ip: int, failsafe_cs: int, failsafe_ip: int) -> int:
        """Both callbacks are stored, or neither; they are kept like handlers of vectors that no processor has."""
        self.granted(EPERM, self.store_callbacks, d, event_cs & SELECTOR, event_ip, failsafe_cs & SELECTOR, failsafe_ip)
        return 0

    def store_callbacks(self, d: DomId, event_cs: int, event_ip: int, failsafe_cs: int, failsafe_ip: int) -> None:
        """The one for events, and the one for when a guest's own registers cannot be restored."""
        set_trap(self.s, d, Index(X.EVENT_CALLBACK), event_cs, event_ip, 0)
        set_trap(self.s, d, Index(X.FAILSAFE_CALLBACK), failsafe_cs, failsafe_ip, 0)

    def stack_switch(self, d: DomId, ss: int, esp: int) -> int:
        """The stack for entering the kernel; its pointer is a number that nobody checks."""
        self.granted(EPERM, switch_stack, self.s, d, ss & SELECTOR, esp)
        return 0

    def fpu_taskswitch(self, d: DomId) -> int:
        """The next use of the FPU is to be told (W-58)."""
        mark_fpu(self.s, d, 1)
        return 0

    @check("TRAP-20", source="xen-2003.md §7.8 (W-34)")
    def set_debugreg(self, d: DomId, r: int, value: int) -> int:
        """Four breakpoints, a status and a control register."""
        demand(r <= 3 or r in (6, 7), "TRAP-20.1", EINVAL)          # a register that can be set
        self.granted(EPERM, set_debug, self.s, d, Index(r), value)
        return 0

    @check("TRAP-21", source="xen-2003.md §7.8 (W-34)")
    def get_debugreg(self, d: DomId, r: int) -> int:
        """What was stored, as signed as every result."""
        demand(r <= 7, "TRAP-21.1", EINVAL)                         # there is such a register
        value = self.s.debug[d, Index(r)]
        return value - (value >> 31 << 32)
