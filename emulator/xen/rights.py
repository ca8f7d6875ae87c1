"""Takes from domain 0 what no domain of the specification has, rights to devices; and lets it have a few frames more.

With such rights domain 0 could map what is no memory, and choose how memory is cached (spec/RULINGS-4.17.md, X-4).
"""
from collections.abc import Callable, Sequence
from typing import Final

from emulator.errors import HarnessError
from emulator.xen.batch import Batch
from emulator.xen.domu import DOMCTL, DOMCTL_VERSION, MAX_MEM
from emulator.xen.machine import RealXen
from spec.abi import DOMID_SELF, EACCES, PAGE_SIZE, Xen417

HEADROOM: Final = 24                        # frames that domain 0 may have beyond what it has
IOMEM_PERMISSION, IOPORT_PERMISSION = 20, 21
PORTS: Final = 1 << 16
# Where Xen lets domain 0 have devices' memory, in frames: below 4 GB with holes of some pages, above it with one hole that AMD
# reserves below 1 TB.
IOMEM: Final = ((0, 1 << 20), (1 << 20, 0xFD00000), (1 << 28, 1 << 40))
MOST_MISSED: Final = 1024                   # single frames without rights in a row: there is nothing more
Deny = Callable[[int, int], bool]


def restrict(machine: RealXen) -> None:
    """Take the rights away, and set the limit."""
    for start, end in IOMEM:
        take(lambda first, count: not domctl(machine, IOMEM_PERMISSION, first, count, 0), start, end)
    take(lambda first, count: not domctl(machine, IOPORT_PERMISSION, first | count << 32, 0), 0, PORTS)
    if (value := domctl(machine, MAX_MEM, (machine.pages + HEADROOM) * PAGE_SIZE // 1024)) != 0:
        raise HarnessError(f"Xen refuses the limit of domain 0's memory: {value}")
    verify(machine)


def verify(machine: RealXen) -> None:
    """Whoever has any right to a device may flush caches: domain 0 no longer may."""
    value = call(machine, Xen417.MMUEXT_OP, (machine.scratch, 1, 0, DOMID_SELF), (Xen417.FLUSH_CACHE, 0, 0))
    if value != -EACCES:
        raise HarnessError(f"domain 0 still has rights to devices: flushing caches gives {value}")


def domctl(machine: RealXen, command: int, *words: int) -> int:
    """A control operation on domain 0 itself."""
    return call(machine, DOMCTL, (machine.scratch,), (command | DOMCTL_VERSION << 32, 0, *words))


def call(machine: RealXen, nr: int, args: Sequence[int], words: Sequence[int]) -> int:
    """One hypercall on words in the executor's scratch memory."""
    batch = Batch()
    batch.hypercall(nr, args, [(machine.scratch, words)])
    (found,) = machine.do(batch)
    if found.vector >= 0:
        raise HarnessError(f"hypercall {nr} faults: vector {found.vector} at {found.address:#x}")
    return found.value - (found.value >> 63 << 64)


def take(denied: Deny, start: int, end: int) -> None:
    """Deny [start, end) piece by piece: Xen denies only what is permitted, so pieces shrink to the edges of the holes."""
    at, size, missed = start, 1 << (end - start).bit_length(), 0
    while at < end and missed < MOST_MISSED:
        size = min(size, 1 << (end - at).bit_length() - 1)
        if denied(at, size):
            at, size, missed = at + size, size * 2, 0
        elif size > 1:
            size //= 2
        else:
            at, missed = at + 1, missed + 1
