"""Every rule of the specification, entered in the registry by importing this module."""
from types import ModuleType
from typing import Final

from spec import channels, frames, invariants, registers, reservation, tables, theorems
from spec.kernel import RULES
from spec.x86 import paging, tlb

__all__ = ["MODULES", "RULES"]

MODULES: Final[tuple[ModuleType, ...]] = (frames, tables, registers, reservation, paging, tlb, invariants, theorems, channels)
