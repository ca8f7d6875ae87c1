"""What guests of Xen 4.17 have of the harness: landing pads for all that Xen calls them for, and a stack (X-40)."""
from spec.abi import Xen417
from spec.callbacks import set_callback, set_debug_64, set_handler, switch_kernel_stack
from spec.kernel import DomId, Index, State

X = Xen417
PADS = {X.EVENT: X.EVENT_PAD, X.FAILSAFE: X.FAILSAFE_PAD, X.SYSCALL: X.SYSCALL_PAD}


def start(s: State, d: DomId) -> None:
    """A domain at its start; its debug registers are at rest (X-34)."""
    for v in range(X.VECTORS):
        set_handler(s, d, Index(v), X.KERNEL_CS, pad(v), flags_of(v))
    put_callbacks_back(s, d)
    switch_kernel_stack(s, d, X.USER_SS, X.PROGRAM_STACK)
    for r in (6, 7):
        set_debug_64(s, d, Index(r), 0)


def pad(n: int) -> int:
    """The address of a landing pad."""
    return X.PADS + X.PAD * n


def flags_of(v: int) -> int:
    """A handler's privilege, and whether it masks events: of all kinds there are some."""
    return v >> 3 | (0 if v & 1 else X.EVENTS_MASKED) if v < X.OWN_VECTORS else v & 7


def put_handlers_back(s: State, d: DomId) -> None:
    """After a set_trap_table the harness has its own handlers set again."""
    for v in range(X.OWN_VECTORS):
        set_handler(s, d, Index(v), X.KERNEL_CS, pad(v), flags_of(v))


def put_callbacks_back(s: State, d: DomId) -> None:
    """After a call that may have changed them, its three callbacks."""
    for kind, n in PADS.items():
        set_callback(s, d, kind, pad(n), 0)
