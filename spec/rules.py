"""Every rule of the specification, entered in the registry by importing this module."""
from types import ModuleType
from typing import Final

from spec import callbacks, channels, descriptors, frames, invariants, registers, reservation, rings, tables, theorems
from spec.kernel import RULES
from spec.x86 import descriptors as formats
from spec.x86 import (
    exceptions,
    flags,
    interrupts,
    long_interrupts,
    long_mode,
    paging,
    privilege,
    segments,
    stacks,
    system_calls,
    tlb,
    transfers,
)

__all__ = ["MODULES", "RULES"]

MODULES: Final[tuple[ModuleType, ...]] = (
    frames, tables, descriptors, rings, callbacks, registers, reservation, paging, tlb, formats, flags, segments, stacks,
    transfers, interrupts, exceptions, privilege, long_mode, long_interrupts, system_calls, invariants, theorems, channels)
