"""Exceptions: which push an error code, and what becomes of a second one (Intel SDM vol. 3A §6.13, §6.15)."""
from typing import Final

from spec.abi import AC, BP, DB, DE, DF, GP, MC, NMI, OF, PF, TS
from spec.kernel import predicate
from spec.x86.flags import RF

BENIGN: Final = 0
CONTRIBUTORY: Final = 1
PAGE_FAULT: Final = 2
DOUBLE_FAULT: Final = 3
SHUTDOWN: Final = 256                       # a triple fault: no vector, the processor stops


@predicate
def has_error_code(vector: int) -> bool:
    """The processor pushes an error code (INT n never does)."""
    return vector == DF or (vector >= TS and vector <= PF) or vector == AC


@predicate
def is_fault(vector: int) -> bool:
    """The instruction is executed again after the handler: RF is set in the flags that are pushed.

    #DB is a fault only for instruction breakpoints, which leave RF as it is.
    """
    return not (vector == DB or vector == NMI or vector == BP or vector == OF or vector == DF or vector == MC)


@predicate
def interrupted_flags(vector: int, eflags: int) -> int:
    """EFLAGS in the handler's frame: RF is set for faults, so that a breakpoint does not strike twice."""
    return eflags | RF if is_fault(vector) else eflags


@predicate
def class_of(vector: int) -> int:
    """The class of an exception (table 6-4)."""
    if vector == DE or (vector >= TS and vector <= GP):
        return CONTRIBUTORY
    if vector == PF:
        return PAGE_FAULT
    return DOUBLE_FAULT if vector == DF else BENIGN


@predicate
def delivered(first: int, second: int) -> int:
    """What is delivered when a second exception strikes on the way to the handler of a first (table 6-5).

    External interrupts and INT n are benign, whatever their vector: name them by a benign one.
    """
    was, now = class_of(first), class_of(second)
    if now == BENIGN or was == BENIGN:
        return second
    if was == DOUBLE_FAULT:
        return SHUTDOWN
    if was == CONTRIBUTORY and now == PAGE_FAULT:
        return second
    return DF
