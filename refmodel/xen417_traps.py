"""What a guest of Xen 4.17 says of its handlers, callbacks, stacks and breakpoints, on the model (xen-4.17.md §6.5, §7, §11).

A guest whose code is ours has some handlers of ours, which it gets back after each call that changes them (X-40).
"""
from struct import unpack

from refmodel.guest import ModelError, demand
from refmodel.xen417_descriptors import DescriptorCalls
from refmodel.xen417_environment import put_callbacks_back, put_handlers_back
from refmodel.xen417_mmu import WORD
from spec.abi import EINVAL, ENODEV, ENOSYS, EPERM, NMI, Xen417
from spec.callbacks import (
    clear_handler,
    debug_bits_64,
    is_canonical_64,
    is_guest_debug_64,
    set_callback,
    set_debug_64,
    set_handler,
    switch_kernel_stack,
    switch_task,
)
from spec.kernel import DomId, Index, check

X = Xen417
ADDRESSES = 1 << 64
SELECTOR = 0xFFFF
OTHER_NAMES = {4: 6, 5: 7}                  # of debug registers
CALLBACKS = (X.EVENT, X.FAILSAFE, X.SYSCALL, X.CALLBACK_NMI, X.SYSENTER, X.SYSCALL32)
MASK_EVENTS = 1                             # flag of callback_op


class TrapCalls(DescriptorCalls):
    """A machine whose guests have handlers."""

    # --- handlers ---

    def set_trap_table(self, d: DomId, at: int) -> int:
        """A list of handlers; then the harness has its own again."""
        self.require_alone()
        try:
            return self.store_handlers(d, at)
        finally:
            put_handlers_back(self.s, d)

    @check("TRAP-30", source="xen-4.17.md §7.1 do_set_trap_table")
    def store_handlers(self, d: DomId, at: int) -> int:
        """Handlers are stored one by one, up to one without an address; those before a bad one stay; no list: all go."""
        if at == 0:
            for v in range(X.VECTORS):
                clear_handler(self.s, d, Index(v))
            return 0
        while True:
            v, flags, cs, ip = unpack("<BBH4xQ", self.read(d, at, 16))
            if ip == 0:
                return 0
            demand(is_canonical_64(ip), "TRAP-30.1", EINVAL)        # control can go there
            set_handler(self.s, d, Index(v), cs, ip, flags)
            at = (at + 16) % ADDRESSES

    def require_alone(self) -> None:
        """Programs make the calls after which handlers are put back by themselves."""
        if self.listed is not None:
            raise ModelError("a call that changes handlers is none for lists of calls (X-40)")

    def set_callbacks(self, d: DomId, event: int, failsafe: int, syscall: int) -> int:
        """Three callbacks at once; an address that is not canonical is passed over."""
        self.require_alone()
        for kind, ip in ((X.EVENT, event), (X.FAILSAFE, failsafe), (X.SYSCALL, syscall)):
            if is_canonical_64(ip):
                set_callback(self.s, d, kind, ip, 0)
        put_callbacks_back(self.s, d)
        return 0

    def callback_op(self, d: DomId, command: int, at: int) -> int:
        """A callback is registered, or taken back; then the harness has its own again."""
        self.require_alone()
        try:
            return self.change_callback(d, command, at)
        finally:
            put_callbacks_back(self.s, d)

    @check("TRAP-31", source="xen-4.17.md §7.5 do_callback_op")
    def change_callback(self, d: DomId, command: int, at: int) -> int:
        """A callback is registered by its type; only that for NMIs can be taken back."""
        demand(command in (X.REGISTER, X.UNREGISTER), "TRAP-31.1", ENOSYS)  # the command exists
        if command == X.UNREGISTER:
            return self.unregister(d, int.from_bytes(self.read(d, at, 4)[:2], "little"))
        kind, flags, ip = unpack("<HH4xQ", self.read(d, at, 16))
        demand(is_canonical_64(ip), "TRAP-31.2", EINVAL)            # control can go there
        demand(kind in CALLBACKS, "TRAP-31.3", ENOSYS)              # the type exists
        if kind == X.CALLBACK_NMI:
            set_handler(self.s, d, Index(NMI), X.KERNEL_CS, ip, X.EVENTS_MASKED)
        else:
            set_callback(self.s, d, kind, ip, X.EVENTS_MASKED if flags & MASK_EVENTS else 0)
        return 0

    @check("TRAP-32", source="xen-4.17.md §7.5 unregister_guest_callback")
    def unregister(self, d: DomId, kind: int) -> int:
        """The callback for NMIs is taken back."""
        demand(kind in CALLBACKS, "TRAP-32.1", ENOSYS)              # the type exists
        demand(kind == X.CALLBACK_NMI, "TRAP-32.2", EINVAL)         # it is that for NMIs
        clear_handler(self.s, d, Index(NMI))
        return 0

    # --- the stack, the FPU, segment bases ---

    def stack_switch(self, d: DomId, ss: int, sp: int) -> int:
        """The stack for entering the kernel."""
        self.require_alone()
        switch_kernel_stack(self.s, d, ss & SELECTOR, sp)
        return 0

    def fpu_taskswitch(self, d: DomId, on: int) -> int:
        """The next use of the FPU is told, or not."""
        switch_task(self.s, d, int(on & WORD != 0))
        return 0

    @check("TRAP-33", source="xen-4.17.md §6.5 do_set_segment_base")
    def set_segment_base(self, d: DomId, which: int, base: int) -> int:
        """Three bases are canonical; a selector for the applications' GS is loaded, or the null one if it cannot be (X-33)."""
        demand(which <= X.GS_USER_SELECTOR, "TRAP-33.1", EINVAL)    # there is such a base
        if which == X.GS_USER_SELECTOR:
            self.load_quietly(d, base & SELECTOR)
        else:
            demand(is_canonical_64(base), "TRAP-33.2", EINVAL)      # canonical
        return 0

    def load_quietly(self, d: DomId, selector: int) -> None:
        """Xen loads a selector of the guest's for it."""
        raise NotImplementedError

    # --- breakpoints ---

    @check("TRAP-34", source="xen-4.17.md §11 set_debugreg")
    def set_debugreg(self, d: DomId, r: int, value: int) -> int:
        """Four breakpoints, a status and a control register; the latter two have 32 bits, and two names each (X-34)."""
        r = OTHER_NAMES.get(r, r)
        demand(r <= 7, "TRAP-34.1", ENODEV)                         # there is such a register
        demand(r <= 3 or value <= WORD, "TRAP-34.2", EINVAL)        # the value fits
        demand(is_guest_debug_64(r, debug_bits_64(r, value)), "TRAP-34.3", EPERM)   # it is the guest's business
        set_debug_64(self.s, d, Index(r), value)
        return 0

    @check("TRAP-35", source="xen-4.17.md §11 get_debugreg")
    def get_debugreg(self, d: DomId, r: int) -> int:
        """What was stored, as signed as every result."""
        demand(r <= 7, "TRAP-35.1", ENODEV)                         # there is such a register
        value = self.s.debug[d, Index(OTHER_NAMES.get(r, r))]
        return value - (value >> 63 << 64)
