"""What the instructions of the bare machine have alike in 32-bit code and in long mode, for oracle.bare and oracle.bare64."""
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Final

from spec.abi import BR, DE, UD
from spec.vocabulary import Bare, LongBare, LongTrial, Trial
from spec.x86 import exceptions, privilege
from spec.x86.descriptors import ACCESSED
from spec.x86.flags import RF, VM
from spec.x86.paging import Fault
from spec.x86.segments import Registers, Segment

SREGS: Final = ("es", "cs", "ss", "ds", "fs", "gs")
OPERAND_SIZE: Final = 0x66                  # a prefix


class AnyStep(ABC):
    """A trial of either mode as the specification's functions want it."""
    at: type[Bare] | type[LongBare]
    gdt: dict[int, int]
    trial: Trial | LongTrial
    code: bytes                             # without prefixes
    registers: Registers
    after: Registers                        # where the next instruction begins

    def table(self, selector: int) -> int:
        """The descriptor that a selector names; 0 beyond the table."""
        if selector & 0xFFFC | 7 > (self.at.LDT_LIMIT if selector & 4 else self.at.GDT_LIMIT):
            return 0
        return self.trial.descriptors.get(selector & 0xFFFC, 0 if selector & 4 else self.gdt.get(selector & 0xFFF8, 0))

    @abstractmethod
    def push(self, word: int) -> Registers:
        """Push one operand."""

    def descriptors(self, r: Registers) -> dict[int, int]:
        """The trial's descriptors, those accessed that segment registers have been loaded from."""
        before = {segment.selector & ~3 for segment in self.registers[:6]}
        loaded = {segment.selector & ~3 for segment in r[:6] if segment.q} - before
        return {s: q | ACCESSED if s & ~3 in loaded else q for s, q in self.trial.descriptors.items()}


def interrupted(r: Registers, vector: int) -> Registers:
    """What the handler of an exception would return to: its stack has the selectors of CS and SS, not their hidden parts."""
    eflags = exceptions.interrupted_flags(vector, r.eflags)
    return r._replace(eflags=eflags, cs=Segment(r.cs.selector, 0), ss=Segment(r.ss.selector, 0))


# --- instructions ------------------------------------------------------------------------------------------------------------

def _push_flags(s: AnyStep) -> Registers:
    """PUSHF, which shows neither VM nor RF."""
    return s.push(s.registers.eflags & ~(VM | RF))


def _change_if(s: AnyStep) -> Registers:
    """CLI, STI."""
    return s.after._replace(eflags=privilege.change_if(s.trial.cpl, s.registers.eflags, s.code[0] == 0xFB))


def _port(s: AnyStep) -> Registers:
    """IN, OUT and the like; the bitmap permits nothing."""
    privilege.check_port(s.trial.cpl, s.registers.eflags, False)
    return s.after


def ring_0(s: AnyStep) -> Registers:
    """Instructions of ring 0 alone."""
    privilege.check_ring_0(s.trial.cpl)
    return s.after


def nothing(s: AnyStep) -> Registers:
    """Instructions that protection has nothing to do with."""
    return s.after


def _raises(vector: int) -> Callable[[AnyStep], Registers]:
    """An instruction that does nothing but raise an exception."""
    def raise_it(s: AnyStep) -> Registers:
        raise Fault(vector, 0)
    return raise_it


INSTRUCTIONS: Final[dict[int, Callable[[AnyStep], Registers]]] = {
    0x62: _raises(BR), 0x90: nothing, 0x9C: _push_flags, 0xF4: ring_0, 0xF7: _raises(DE), 0xFA: _change_if, 0xFB: _change_if,
    **dict.fromkeys((0x6C, 0x6E, 0xE4, 0xE6, 0xEC, 0xED, 0xEE, 0xEF), _port),
}
TWO_BYTES: Final[dict[int, Callable[[AnyStep], Registers]]] = {
    **dict.fromkeys((0x00, 0x01, 0x06, 0x08, 0x09, 0x20, 0x21, 0x22, 0x23), ring_0), 0x0B: _raises(UD),
}
