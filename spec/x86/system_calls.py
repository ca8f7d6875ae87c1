"""SYSCALL and SYSRET (Intel SDM vol. 2 SYSCALL, SYSRET; AMD APM vol. 3, where they differ).

Neither looks at a descriptor: both load flat segments, whatever the tables hold.
"""
from typing import Final, NamedTuple

from spec.abi import GP, UD
from spec.profile import X86_64
from spec.x86.descriptors import ACCESSED, BIG, DPL_SHIFT, GRANULAR, LONG, PRESENT, SEGMENT, TYPE_SHIFT, with_rpl
from spec.x86.flags import ALL, RF
from spec.x86.long_mode import check_base, is_64
from spec.x86.paging import Fault, is_canonical
from spec.x86.privilege import check_ring_0
from spec.x86.segments import Registers, Segment, cpl_of

FLAT: Final = 0xF00000000FFFF | SEGMENT | PRESENT | GRANULAR | ACCESSED
CODE_64: Final = FLAT | 0xA << TYPE_SHIFT | LONG
CODE_32: Final = FLAT | 0xA << TYPE_SHIFT | BIG
STACK: Final = FLAT | 0x2 << TYPE_SHIFT | BIG
RETURNED: Final = 0x3C7FD7                  # the flags that SYSRET restores


class Msrs(NamedTuple):
    """The registers that only ring 0 can set."""
    star: int                               # selectors: bits 32-47 for SYSCALL, 48-63 for SYSRET
    lstar: int
    cstar: int                              # where SYSCALL leads from compatibility mode, on AMD's processors
    mask: int                               # flags that SYSCALL clears
    enabled: bool
    from_32: bool                           # AMD: SYSCALL also works in compatibility mode


STAR, LSTAR, CSTAR, SFMASK, FS_BASE, GS_BASE, KERNEL_GS_BASE = 0xC0000081, 0xC0000082, 0xC0000083, 0xC0000084, \
    0xC0000100, 0xC0000101, 0xC0000102
ADDRESSES: Final = (LSTAR, CSTAR, FS_BASE, GS_BASE, KERNEL_GS_BASE)


class SystemCall(NamedTuple):
    """What SYSCALL leaves: registers, and in RCX and R11 the way back; it touches no memory, and not RSP."""
    registers: Registers
    rcx: int
    r11: int


def flat(selector: int, q: int, ring: int) -> Segment:
    """A fixed segment of a ring."""
    return Segment(with_rpl(selector & 0xFFFF, ring), q | ring << DPL_SHIFT)


def system_call(r: Registers, msrs: Msrs) -> SystemCall:
    """SYSCALL: to ring 0, at the address that it set, on the stack that was."""
    # step 1: switched on, and in a mode that has it
    if not msrs.enabled or not (is_64(r.cs.q) or msrs.from_32):
        raise Fault(UD, 0)
    eflags = r.eflags & (ALL ^ RF)
    selector = msrs.star >> 32 & 0xFFFC
    entry = msrs.lstar if is_64(r.cs.q) else msrs.cstar
    inside = r._replace(cs=flat(selector, CODE_64, 0), ss=Segment((selector + 8) & 0xFFFF, STACK), eip=entry,
                        eflags=eflags & (ALL ^ (msrs.mask & ALL)) | 2)
    return SystemCall(inside, r.eip, eflags)


def system_return(r: Registers, msrs: Msrs, rcx: int, r11: int, wide: bool) -> Registers:
    """SYSRET: to ring 3, from ring 0 only; `wide`: to 64-bit mode.  Data segments stay as they are."""
    # step 1: switched on, and in 64-bit mode
    if not msrs.enabled or not is_64(r.cs.q):
        raise Fault(UD, 0)
    # step 2: by ring 0, to a canonical address (else the fault is ring 0's own, on whatever stack it has by then)
    if cpl_of(r) != 0 or (wide and not is_canonical(X86_64, rcx)):
        raise Fault(GP, 0)
    base = msrs.star >> 48 & 0xFFFF
    return r._replace(cs=flat(base + 16 if wide else base, CODE_64 if wide else CODE_32, 3), ss=flat(base + 8, STACK, 3),
                      eip=rcx if wide else rcx & 0xFFFFFFFF, eflags=(r11 & RETURNED) | 2)


def write_msr(cpl: int, register: int, value: int) -> int:
    """WRMSR to one of the registers above: what it stores."""
    # step 1: by ring 0
    check_ring_0(cpl)
    # step 2: addresses are canonical (on AMD's processors CSTAR, too); the mask has 32 bits
    if register in ADDRESSES:
        return check_base(value)
    if register == SFMASK and value >> 32 != 0:
        raise Fault(GP, 0)
    return value
