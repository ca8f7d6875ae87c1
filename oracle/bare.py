"""What the specification expects of one instruction on the bare machine: reads its code and asks the pure functions of spec.x86.

`expected` gives the `Finish` of a trial, or the reason why the specification follows the processor no further (a task switch,
virtual-8086 mode).
"""
import struct
from collections.abc import Callable
from typing import Any, Final

from oracle.bare_step import INSTRUCTIONS, OPERAND_SIZE, SREGS, TWO_BYTES, AnyStep, interrupted, nothing, ring_0
from spec.abi import BP, DB, DF
from spec.vocabulary import BARE_GDT, Bare, Finish, Trial
from spec.x86 import exceptions, flags, interrupts, segments, stacks, transfers
from spec.x86.descriptors import BIG, base_of
from spec.x86.flags import RF, TF
from spec.x86.paging import Fault
from spec.x86.segments import Registers, Segment
from spec.x86.stacks import Transfer, Tss
from spec.x86.transfers import Unmodelled

_PREFIXES: Final = {OPERAND_SIZE: "", 0x67: "", 0x26: "es", 0x2E: "cs", 0x36: "ss", 0x64: "fs", 0x65: "gs"}
_RING: Final = {True: 4, False: 6}              # bytes of the instruction that rings where a transfer lands, by the D bit


class Memory:
    """Operands and stacks of the bare machine."""

    def __init__(self, words: dict[int, int]) -> None:
        self._bytes = bytearray(Bare.MEMORY_END - Bare.MEMORY)
        for address, word in words.items():
            if Bare.MEMORY <= address < Bare.MEMORY_END:
                struct.pack_into("<I", self._bytes, address - Bare.MEMORY, word)

    def read(self, address: int, size: int) -> int:
        """A number of `size` bytes."""
        start = address - Bare.MEMORY
        return int.from_bytes(self._bytes[start:start + size], "little")

    def write(self, address: int, size: int, value: int) -> None:
        """Store a number; what does not fit is lost."""
        start = address - Bare.MEMORY
        self._bytes[start:start + size] = (value & (1 << 8 * size) - 1).to_bytes(size, "little")

    def stack(self, ss: Segment, esp: int) -> tuple[int, ...]:
        """The words at the top of a stack, as `Finish` has them."""
        start = stack_address(ss, esp)
        if not Bare.MEMORY <= start <= Bare.MEMORY_END - 4 * Bare.STACK_WORDS:
            return ()
        return struct.unpack_from(f"<{Bare.STACK_WORDS}I", self._bytes, start - Bare.MEMORY)


def stack_address(ss: Segment, esp: int) -> int:
    """Where a stack's top lies in memory; RAM repeats every 4 MB."""
    return base_of(ss.q) + (esp if ss.q & BIG else esp & 0xFFFF) & 0x3FFFFF


class Step(AnyStep):
    """A trial as the specification's functions want it."""
    at, gdt = Bare, BARE_GDT
    trial: Trial

    def __init__(self, trial: Trial) -> None:
        self.trial = trial
        self.memory = Memory(trial.memory)
        self.registers = registers_of(trial)
        self.after = self.registers._replace(eip=Bare.START + len(trial.code))
        self.tss = tss_of(trial)
        self.segment, self.code = "ds", trial.code
        wide = self.registers.cs.q & BIG != 0
        while self.code[0] in _PREFIXES:
            if self.code[0] == OPERAND_SIZE:
                wide = not wide
            self.segment = _PREFIXES[self.code[0]] or self.segment
            self.code = self.code[1:]
        self.size = 4 if wide else 2

    def read(self, offset: int) -> int:
        """An operand on the stack."""
        return self.memory.read(stack_address(self.registers.ss, offset), self.size)

    def pointer(self) -> tuple[int, int]:
        """Selector and offset of a far pointer."""
        address = self.trial.registers["ebx"]
        return self.memory.read(address + self.size, 2), self.memory.read(address, self.size)

    def push(self, word: int) -> Registers:
        """Push one operand."""
        r = self.registers
        stacks.check_room(r.ss, r.esp, 1, self.size, 0)
        self.check_alignment(r.ss.q, stacks.place(r.ss.q, r.esp, -self.size), self.size)
        return self.pushed(stacks.push(self.after, (word,), self.size))

    def check_alignment(self, q: int, offset: int, size: int) -> None:
        """An operand's own address, if the machine is to look at it."""
        if self.trial.alignment:
            address = base_of(q) + offset & 0xFFFFFFFF
            segments.check_alignment(self.trial.cpl, self.registers.eflags, address, size)

    def pushed(self, t: Transfer) -> Registers:
        """Store what a transfer pushes and copies."""
        ss, memory = t.registers.ss, self.memory
        for n in range(t.copied):
            source = stack_address(self.registers.ss, t.source + n * t.size)
            memory.write(stack_address(ss, t.target + n * t.size), t.size, memory.read(source, t.size))
        for offset, word in t.pushed:
            memory.write(stack_address(ss, offset), t.size, word)
        return t.registers


def registers_of(trial: Trial) -> Registers:
    """The registers at the start of a trial."""
    def flat(name: str, selector: int) -> Segment:
        return Segment(*trial.segments.get(name, (selector, BARE_GDT[selector & ~3])))
    data = Bare.DATA[3]
    return Registers(flat("cs", Bare.CODE[trial.cpl]), flat("ss", Bare.DATA[trial.cpl]),
                     flat("ds", data), flat("es", data), flat("fs", data), flat("gs", data),
                     Bare.START, trial.registers.get("esp", Bare.STACK[trial.cpl]), trial.eflags)


def tss_of(trial: Trial) -> Tss:
    """The machine's task, with the trial's stacks."""
    stacks = [trial.stacks.get(ring, (Bare.DATA[ring], Bare.TSS_STACK[ring])) for ring in range(3)]
    (ss0, esp0), (ss1, esp1), (ss2, esp2) = stacks
    return Tss(Bare.TSS, trial.task_limit, ss0, esp0, ss1, esp1, ss2, esp2, trial.link)


# --- instructions ------------------------------------------------------------------------------------------------------------

def _load(s: Step) -> Registers:
    """MOV Sreg, AX."""
    name = SREGS[s.code[1] >> 3 & 7]
    selector = s.trial.registers["eax"] & 0xFFFF
    load = segments.load_stack if name == "ss" else segments.load_data
    changed: dict[str, Any] = {name: load(s.table(selector), selector, s.trial.cpl)}
    return s.after._replace(**changed)


def _far(s: Step) -> Registers:
    """JMP and CALL through a far pointer in memory."""
    selector, offset = s.pointer()
    if s.code[1] == 0x2B:
        return transfers.far_jump(s.after, s.table, selector, offset, s.size)
    return s.pushed(transfers.far_call(s.after, s.table, s.tss, selector, offset, s.size))


def _far_return(s: Step) -> Registers:
    """RETF, RETF n."""
    release = int.from_bytes(s.code[1:3], "little")
    return transfers.far_return(s.registers, s.table, s.read, s.size, release)


def _interrupt_return(s: Step) -> Registers:
    """IRET."""
    return interrupts.interrupt_return(s.registers, s.table, s.tss, s.read, s.size)


def _interrupt(s: Step) -> Registers:
    """INT n, INT3."""
    vector = BP if s.code[0] == 0xCC else s.code[1]
    return s.pushed(interrupts.software_interrupt(s.after, s.table, s.tss, s.trial.gates[vector], vector))


def _access(s: Step) -> Registers:
    """MOV between a register and memory."""
    size = s.size if s.code[0] & 1 else 1
    segment: Segment = getattr(s.registers, s.segment)
    offset = s.trial.registers["ebx"]
    segments.check_access(segment.q, offset, size, not s.code[0] & 2, s.segment == "ss")
    s.check_alignment(segment.q, offset, size)
    return s.after


def _push(s: Step) -> Registers:
    """PUSH EAX, which is 0."""
    return s.push(0)


def _pop(s: Step) -> Registers:
    """POP EAX."""
    stacks.check_top(s.registers, 0, 1, s.size)
    s.check_alignment(s.registers.ss.q, s.registers.esp, s.size)
    return s.after._replace(esp=stacks.moved(s.registers.ss.q, s.registers.esp, s.size))


def _pop_flags(s: Step) -> Registers:
    """POPF."""
    popped = _pop(s)
    return popped._replace(eflags=flags.popped(popped.eflags, s.read(s.registers.esp), s.trial.cpl, s.size == 4))


_INSTRUCTIONS: Final[dict[int, Callable[[Step], Registers]]] = {
    0x8E: _load, 0xFF: _far, 0xCA: _far_return, 0xCB: _far_return, 0xCF: _interrupt_return, 0xCC: _interrupt, 0xCD: _interrupt,
    **dict.fromkeys((0x88, 0x89, 0x8A, 0x8B), _access), 0x50: _push, 0x58: _pop, 0x9D: _pop_flags, 0xB8: nothing, **INSTRUCTIONS,
}
_TWO_BYTES: Final[dict[int, Callable[[Step], Registers]]] = {
    0x1F: nothing, 0x30: ring_0, 0x32: ring_0, **TWO_BYTES,
}


# --- the end -----------------------------------------------------------------------------------------------------------------

def expected(trial: Trial) -> Finish | str:
    """How a trial ends, or why that is not said."""
    step = Step(trial)
    try:
        segments.check_fetch(step.registers.cs.q, Bare.START, len(trial.code))
        perform = _TWO_BYTES[step.code[1]] if step.code[0] == 0x0F else _INSTRUCTIONS[step.code[0]]
        after = perform(step)
    except Unmodelled as e:
        return e.reason
    except Fault as e:
        return delivered(step, e.vector, e.error)
    return rung(step, after, traps(step))


def traps(step: Step) -> bool:
    """The instruction ends in a single-step trap; but that of a handler's first one is put off, and so is that after MOV SS."""
    return step.registers.eflags & TF != 0 and step.code[0] not in (0xCC, 0xCD) and step.code[:2] != b"\x8e\xd0"


def rung(step: Step, after: Registers, trap: bool = False) -> Finish:
    """The instruction is done, and so is the one that rings, unless it can't be fetched."""
    if trap:
        return fault(step, after, DB, 0)
    try:
        segments.check_fetch(after.cs.q, after.eip, _RING[after.cs.q & BIG != 0])
    except Fault as e:
        return fault(step, after, e.vector, e.error)
    return finish(step, after, after._replace(eflags=after.eflags & ~RF), -1, 0)    # RF lasts for one instruction


def delivered(step: Step, vector: int, error: int) -> Finish | str:
    """An exception finds its handler; or its gate is on trial too."""
    gate = step.trial.gates.get(vector)
    if gate is None:
        return fault(step, step.registers, vector, error)
    code = (error,) if exceptions.has_error_code(vector) else ()
    try:
        return rung(step, step.pushed(interrupts.exception(step.registers, step.table, step.tss, gate, vector, code)))
    except Unmodelled as e:
        return e.reason
    except Fault as e:
        then = exceptions.delivered(vector, e.vector)
        return delivered(step, then, 0 if then == DF else e.error)


def fault(step: Step, r: Registers, vector: int, error: int) -> Finish:
    """The handler of an exception would return to `r`."""
    return finish(step, r, interrupted(r, vector), vector, error)


def finish(step: Step, r: Registers, shown: Registers, vector: int, error: int) -> Finish:
    """The end of a trial with the registers `r`, of which some may not be shown."""
    return Finish(vector, error, r.eip, r.esp, shown.eflags, *shown[:6], Bare.TSS, step.memory.stack(r.ss, r.esp),
                  step.descriptors(r))
