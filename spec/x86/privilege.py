"""Privileged instructions: which ring may execute what (Intel SDM vol. 3A §5.9; vol. 1 §19.5; vol. 2 CLI, STI, POPF, IN, OUT)."""
from typing import Final

from spec.abi import GP
from spec.kernel import predicate
from spec.x86.flags import ALL, IF, iopl_of
from spec.x86.paging import Fault

RING_0: Final = ("clts", "hlt", "invd", "invlpg", "lgdt", "lidt", "lldt", "lmsw",
                 "ltr", "mov cr", "mov dr", "rdmsr", "wbinvd", "wrmsr")
WITHIN_IOPL: Final = ("cli", "sti")
PORTS: Final = ("in", "ins", "out", "outs")


@predicate
def within_iopl(cpl: int, eflags: int) -> bool:
    """The ring may change IF and use all ports."""
    return cpl <= iopl_of(eflags)


def check_ring_0(cpl: int) -> None:
    """An instruction of RING_0, before anything of it happens."""
    if cpl != 0:
        raise Fault(GP, 0)


def check_port(cpl: int, eflags: int, mapped: bool) -> None:
    """IN, OUT and the like; `mapped`: the TSS's bitmap has a 0 for each port, and ends above them."""
    if not (within_iopl(cpl, eflags) or mapped):
        raise Fault(GP, 0)


def change_if(cpl: int, eflags: int, on: bool) -> int:
    """EFLAGS after STI or CLI (without CR4.PVI, which Xen does not set)."""
    if not within_iopl(cpl, eflags):
        raise Fault(GP, 0)
    return eflags | IF if on else eflags & (ALL ^ IF)
