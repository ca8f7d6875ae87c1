"""What a domain's kernel has told Xen of itself besides its page tables: descriptor tables, handlers, stack, debug registers."""
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from spec.abi import Xen2003


class Handler(NamedTuple):
    """Where the kernel wants to be entered; `flags` are the DPL of INT n and EVENTS_MASKED."""
    cs: int = Xen2003.RING1_CS
    ip: int = 0
    flags: int = 0


NO_HANDLER: Final = Handler()
NO_CALLBACK: Final = Handler(cs=0)


@dataclass(slots=True)
class Kernel:
    """All of it, as it is before the kernel has said anything (W-32, W-34, W-40, W-50)."""
    domid: int
    gdt: tuple[int, ...] = ()               # its frames; none: Xen's default table
    gdt_entries: int = Xen2003.RESERVED_END
    ldt_base: int = 0
    ldt_entries: int = 0
    ldt: dict[int, int] = field(default_factory=dict)       # page of the LDT -> frame, where one is mapped
    stack: tuple[int, int] = (Xen2003.RING1_DS, 0)          # SS and ESP on entry from ring 3
    handlers: dict[int, Handler] = field(default_factory=dict)      # by vector
    event: Handler = NO_CALLBACK
    failsafe: Handler = NO_CALLBACK
    fast_trap: int = 0                      # the vector that needs no help of Xen's; 0: none
    debug: dict[int, int] = field(default_factory=dict)     # debug registers that were set
    wants_fpu_trap: bool = False
