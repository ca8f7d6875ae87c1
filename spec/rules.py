"""Every rule of the specification, entered in the registry by importing this module."""
from types import ModuleType
from typing import Final

from spec import frames, invariants, registers, reservation, tables, theorems
from spec.x86 import paging, tlb

MODULES: Final[tuple[ModuleType, ...]] = (frames, tables, registers, reservation, paging, tlb, invariants, theorems)
