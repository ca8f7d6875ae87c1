"""EFLAGS: what each transfer, POPF and IRET change of it, by whom (Intel SDM vol. 1 §3.4.3; vol. 2 POPF, IRET, INT n)."""
from typing import Final

from spec.kernel import predicate

TF: Final = 1 << 8                          # a trap after each instruction
IF: Final = 1 << 9                          # external interrupts are taken
IOPL_SHIFT: Final = 12
IOPL: Final = 3 << IOPL_SHIFT               # the least privileged ring that may use I/O, CLI and STI
NT: Final = 1 << 14                         # IRET returns to another task
RF: Final = 1 << 16                         # no breakpoint at the next instruction
VM: Final = 1 << 17                         # virtual-8086 mode
AC: Final = 1 << 18                         # misaligned accesses of ring 3 fault
VIF: Final = 1 << 19
VIP: Final = 1 << 20
ID: Final = 1 << 21
STATUS: Final = 0xDD5                       # CF PF AF ZF SF TF DF OF: anybody's
ALL: Final = 0xFFFFFFFF


@predicate
def iopl_of(eflags: int) -> int:
    """The least privileged ring that may use I/O, CLI and STI."""
    return eflags >> IOPL_SHIFT & 3


@predicate
def replaced(eflags: int, value: int, mask: int) -> int:
    """The flags of a mask come from a value; the mask may be an expression."""
    return (eflags & (ALL ^ mask)) | (value & mask)


@predicate
def guarded(eflags: int, cpl: int) -> int:
    """The flags that only some may change: IF within IOPL, IOPL in ring 0."""
    mask = IF if cpl <= iopl_of(eflags) else 0
    return mask | IOPL if cpl == 0 else mask


@predicate
def popped(eflags: int, value: int, cpl: int, wide: bool) -> int:
    """After POPF: what may not be changed is ignored in silence; VM, VIF and VIP stay, RF is clear."""
    mask = STATUS | NT | guarded(eflags, cpl)
    if wide:
        mask = mask | AC | ID
    return replaced(eflags, value, mask | RF) & (ALL ^ RF)


@predicate
def returned(eflags: int, value: int, cpl: int, wide: bool) -> int:
    """After IRET from ring `cpl`: VM stays as it is (but see the return to virtual-8086 mode), VIF and VIP are ring 0's."""
    mask = STATUS | NT | guarded(eflags, cpl)
    if wide:
        mask = mask | RF | AC | ID
        if cpl == 0:
            mask = mask | VIF | VIP
    return replaced(eflags, value, mask)


@predicate
def handled(eflags: int, masks: bool) -> int:
    """In a handler: no single step, no nested task, no RF; `masks`: through an interrupt gate, so no interrupts either."""
    kept = eflags & (ALL ^ (TF | NT | RF | VM))
    return kept & (ALL ^ IF) if masks else kept
