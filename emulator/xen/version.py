"""Which Xen it is: asked of one that runs, and read in the memory of one that ran.

Everything here about Xen's own records is of 4.17 only, so another Xen is refused, not misread.
"""
import re
from typing import Any, Final

from emulator.errors import HarnessError
from emulator.xen.batch import Batch
from emulator.xen.fetch import KNOWN
from emulator.xen.frames import ImageError
from emulator.xen.machine import Guest

XEN_VERSION: Final = 17                     # the hypercall, and its commands
VERSION, EXTRA_VERSION, LONGEST = 0, 1, 16
# What Xen prints first, and keeps: "Xen version 4.17.7 (Debian …"
BANNER: Final = re.compile(rb"Xen version (\d+\.\d+)\S* \(")


def running(xen: Guest) -> str:
    """The version that a running Xen says it is.  HarnessError unless it is one that we know."""
    batch = Batch()
    batch.hypercall(XEN_VERSION, (VERSION, 0))
    batch.hypercall(XEN_VERSION, (EXTRA_VERSION, xen.scratch), ((xen.scratch, (0,) * (LONGEST // 8)),))
    number = xen.do(batch)[0].value
    extra = bytes(xen.ram[xen.scratch_at:xen.scratch_at + LONGEST]).split(b"\0")[0].decode(errors="replace")
    said = f"{number >> 16}.{number & 0xFFFF}"
    if said != KNOWN:
        raise HarnessError(f"this is Xen {said}{extra}: the model and the places of Xen's own records are those of {KNOWN}")
    return said + extra


def check_memory(ram: Any) -> None:
    """`ImageError` if Xen's banner is still in this memory, and is one of another Xen: guests can only add their own."""
    said = {found[1].decode() for found in BANNER.finditer(ram)}
    if said and KNOWN not in said:
        raise ImageError(f"this is the memory of Xen {', '.join(sorted(said))}: only that of {KNOWN} can be read")
