"""What a 64-bit guest of Xen 4.17 says of its handlers, callbacks, kernel stack and breakpoints.

On x86-64 segments protect nothing.  What is left to see to is that a handler runs in ring 3, at an address at which control can
go on, and that breakpoints lie at a guest's own addresses.
"""
from typing import Final

from spec.abi import Xen417
from spec.kernel import DomId, Index, State, guard, predicate, require, transition
from spec.profile import X86_64
from spec.x86.descriptors import RPL
from spec.x86.paging import is_canonical

NARROW: Final = 0xFFFFFFFF                  # all of a 32-bit number
GUARDED: Final = 0x2000                     # of DR7: general detect
ENABLED: Final = 0xFF                       # of DR7: the breakpoints that are on


@guard("FLAT-1", source="xen-4.17.md §6.1")
def require_flat(s: State) -> None:
    """The calls of 64-bit guests exist where segments protect nothing."""
    require(s.profile.guest_end == 0, "FLAT-1.1")   # the profile has 64-bit guests


@predicate
def is_canonical_64(address: int) -> bool:
    """Control can go on there."""
    return is_canonical(X86_64, address)


@predicate
def is_callback(kind: int) -> bool:
    """What Xen calls a guest for that is no vector: events, a failed return, system calls of three kinds."""
    return (kind <= Xen417.SYSCALL) | (kind == Xen417.SYSENTER) | (kind == Xen417.SYSCALL32)


@transition("CALL-10", source="xen-4.17.md §7.1", keys=("dom", "vector", "selector", "word", "index"))
def set_handler(s: State, d: DomId, v: Index, cs: int, ip: int, flags: int) -> None:
    """A handler of a vector runs in ring 3, whatever privilege the guest asks for."""
    require_flat(s)
    require(v < Xen417.VECTORS, "CALL-10.1")        # there is such a vector
    require(is_canonical_64(ip), "CALL-10.2")       # control can go there
    s.trap_cs[d, v] = Index(cs | RPL)
    s.trap_ip[d, v] = ip
    s.trap_flags[d, v] = Index(flags)


@transition("CALL-11", source="xen-4.17.md §7.1", keys=("dom", "vector"))
def clear_handler(s: State, d: DomId, v: Index) -> None:
    """A vector has no handler."""
    require_flat(s)
    require(v < Xen417.VECTORS, "CALL-11.1")        # there is such a vector
    s.trap_cs[d, v] = Index(0)
    s.trap_ip[d, v] = 0
    s.trap_flags[d, v] = Index(0)


@transition("CALL-12", source="xen-4.17.md §7.5", keys=("dom", "vector", "word", "index"))
def set_callback(s: State, d: DomId, kind: int, ip: int, flags: int) -> None:
    """A callback is kept as a handler in the flat code segment, behind those of the vectors."""
    require_flat(s)
    require(is_callback(kind), "CALL-12.1")         # it is one that is called
    require(is_canonical_64(ip), "CALL-12.2")       # control can go there
    v = Index(kind | Xen417.VECTORS)
    s.trap_cs[d, v] = Index(Xen417.KERNEL_CS)
    s.trap_ip[d, v] = ip
    s.trap_flags[d, v] = Index(flags)


@transition("STACK-2", source="xen-4.17.md §7.5", keys=("dom", "selector", "word"))
def switch_kernel_stack(s: State, d: DomId, ss: int, sp: int) -> None:
    """The guest kernel says which stack it is to be entered on; the segment is one of ring 3."""
    require_flat(s)
    s.kernel_ss[d] = Index(ss | RPL)
    s.kernel_sp[d] = sp


@transition("FPU-1", source="xen-4.17.md §7.3", keys=("dom", "index"))
def switch_task(s: State, d: DomId, on: int) -> None:
    """The guest's own CR0.TS: its next use of the FPU is told to its kernel."""
    require_flat(s)
    s.task_switched[d] = on != 0


# --- breakpoints -------------------------------------------------------------------------------------------------------------

@predicate
def debug_bits_64(r: int, value: int) -> int:
    """What Xen stores: the reserved bits of the status and control registers as the processor wants them."""
    if r == 6:
        return (value & 0xFFFFEFFF) | 0xFFFF0FF0
    if r == 7:
        return (value & 0xFFFF27FF) | 0x400
    return value


@predicate
def is_guest_debug_64(r: int, value: int) -> bool:
    """Breakpoints outside Xen's slots; no guard on the debug registers; with a breakpoint on, none of input and output."""
    if r <= 3:
        return value < Xen417.GUEST_LOW_END or value >= Xen417.GUEST_HIGH_START
    if r == 7 and value & ENABLED != 0:
        # the kind of each is two bits of four, and 10 where the upper one is set and the lower one is not
        return value & GUARDED == 0 and value & 0x22220000 & (value << 1 ^ 0x22220000) == 0
    return value & GUARDED == 0 or r == 6


@transition("DEBUG-2", source="xen-4.17.md §11 set_debugreg", keys=("dom", "reg", "word"))
def set_debug_64(s: State, d: DomId, r: Index, value: int) -> None:
    """A guest's breakpoints are at its own addresses."""
    require_flat(s)
    require((r <= 3) | (r == 6) | (r == 7), "DEBUG-2.1")    # a register that can be set
    require((r <= 3) | (value <= NARROW), "DEBUG-2.2")      # the status and control registers have 32 bits
    require(is_guest_debug_64(r, debug_bits_64(r, value)), "DEBUG-2.3")     # to what is the guest's business
    s.debug[d, r] = debug_bits_64(r, value)
