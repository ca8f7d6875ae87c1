"""What the specification expects of one instruction on the bare machine in long mode: asks the pure functions of spec.x86.

`expected` gives the `LongFinish` of a trial.
"""
import struct
from collections.abc import Callable
from typing import Any, Final

from oracle.bare_step import INSTRUCTIONS, OPERAND_SIZE, SREGS, TWO_BYTES, AnyStep, interrupted
from spec.abi import BP, DF
from spec.vocabulary import LONG_GDT, LongBare, LongFinish, LongTrial
from spec.x86 import exceptions, flags, long_interrupts, long_mode, segments, system_calls
from spec.x86.descriptors import BIG
from spec.x86.flags import RF
from spec.x86.long_mode import MASK, Tss64, is_64
from spec.x86.paging import Fault
from spec.x86.segments import Registers, Segment
from spec.x86.stacks import Transfer
from spec.x86.system_calls import Msrs

_REPEAT: Final = 0xF3
_PREFIXES: Final = {OPERAND_SIZE: "", _REPEAT: "", 0x26: "es", 0x2E: "cs", 0x36: "ss", 0x3E: "ds", 0x64: "fs", 0x65: "gs"}
_WIDE: Final = 8                            # of a REX prefix
_SHOWN: Final = MASK ^ 0xFF0000FFFFFF0000   # of FS and GS: all but the base
_ONES: Final = MASK
_BASES: Final = ("fs", "gs", "kernel_gs_base")
_MSRS: Final = ("star", "lstar", "cstar", "sfmask")
_NUMBERS: Final = {system_calls.STAR: "star", system_calls.LSTAR: "lstar", system_calls.CSTAR: "cstar",
                   system_calls.SFMASK: "sfmask", system_calls.FS_BASE: "fs", system_calls.GS_BASE: "gs",
                   system_calls.KERNEL_GS_BASE: "kernel_gs_base"}


class Memory:
    """Operands and stacks of the bare machine, in which every address is one of 64 KB."""

    def __init__(self, words: dict[int, int]) -> None:
        self._bytes = bytearray(LongBare.SIZE)
        for address, word in words.items():
            struct.pack_into("<Q", self._bytes, address, word)

    def read(self, address: int, size: int) -> int:
        """A number of `size` bytes."""
        return int.from_bytes((self._bytes[(address + n) % LongBare.SIZE] for n in range(size)), "little")

    def write(self, address: int, size: int, value: int) -> None:
        """Store a number; what does not fit is lost."""
        for n in range(size):
            self._bytes[(address + n) % LongBare.SIZE] = value >> 8 * n & 0xFF

    def stack(self, rsp: int) -> tuple[int, ...]:
        """The words at the top of a stack, as `LongFinish` has them."""
        start = rsp % LongBare.SIZE
        if not LongBare.MEMORY <= start <= LongBare.MEMORY_END - 8 * LongBare.STACK_WORDS:
            return ()
        return struct.unpack_from(f"<{LongBare.STACK_WORDS}Q", self._bytes, start)


class Step(AnyStep):
    """A trial as the specification's functions want it."""
    at, gdt = LongBare, LONG_GDT
    trial: LongTrial

    def __init__(self, trial: LongTrial) -> None:
        self.trial = trial
        self.memory = Memory(trial.memory)
        self.registers = registers_of(trial)
        self.after = self.registers._replace(eip=LongBare.START + len(trial.code))
        self.tss = tss_of(trial)
        self.rax, self.rcx, self.r11 = (trial.registers.get(name, 0) for name in ("rax", "rcx", "r11"))
        self.hidden = {name: trial.msrs.get(name, 0) for name in ("kernel_gs_base", *_MSRS)}
        self.hidden.update({name: trial.bases.get(name, long_mode.loaded_base(getattr(self.registers, name).q))
                            for name in ("fs", "gs")})
        self.in_64, self.segment, self.code, small = is_64(self.registers.cs.q), "ds", trial.code, False
        while self.code[0] in _PREFIXES:
            small = small or self.code[0] == OPERAND_SIZE
            self.segment = _PREFIXES[self.code[0]] or self.segment
            self.code = self.code[1:]
        rex = self.code[0] if self.in_64 and self.code[0] & 0xF0 == 0x40 else 0
        self.code = self.code[rex != 0:]
        self.wide = rex & _WIDE != 0
        self.in_tables = True               # segments are loaded from descriptors
        default = 4 if self.in_64 or self.registers.cs.q & BIG else 2
        self.size = 8 if self.wide else 6 - default if small else default

    @property
    def stack_size(self) -> int:
        """The bytes of what PUSH and POP move."""
        return 8 if self.in_64 and self.size == 4 else self.size

    def upper(self, selector: int) -> int:
        """The second half of a descriptor; ones beyond the table."""
        if (selector & 0xFFF8) + 15 > (LongBare.LDT_LIMIT if selector & 4 else LongBare.GDT_LIMIT):
            return _ONES
        return self.table((selector & 0xFFFC) + 8)

    def read(self, offset: int) -> int:
        """An operand on the stack."""
        return self.memory.read(offset, self.size)

    def store(self, t: Transfer) -> Registers:
        """Store what a transfer pushes."""
        for offset, word in t.pushed:
            self.memory.write(offset, t.size, word)
        return t.registers

    def push(self, word: int) -> Registers:
        """Push one operand."""
        size = self.stack_size
        long_mode.check_pushed(self.registers, 1, size)
        self.memory.write(long_mode.top(self.registers, -size), size, word)
        return self.after._replace(esp=long_mode.raised(self.registers, -size))

    def pop(self) -> tuple[int, Registers]:
        """Pop one operand."""
        size = self.stack_size
        long_mode.check_popped(self.registers, 0, 1, size)
        word = self.memory.read(long_mode.top(self.registers, 0), size)
        return word, self.after._replace(esp=long_mode.raised(self.registers, size))

    def load(self, name: str, selector: int, after: Registers) -> Registers:
        """Load a segment register."""
        q = self.table(selector)
        if name == "ss":
            return after._replace(ss=long_mode.load_stack_64(q, selector, self.trial.cpl, self.in_64))
        loaded = segments.load_data(q, selector, self.trial.cpl)
        if name in self.hidden:
            self.hidden[name] = long_mode.loaded_base(loaded.q)
        changed: dict[str, Any] = {name: loaded}
        return after._replace(**changed)


def registers_of(trial: LongTrial) -> Registers:
    """The registers at the start of a trial."""
    def flat(name: str, selector: int) -> Segment:
        return Segment(*trial.segments.get(name, (selector, LONG_GDT[selector & ~3])))
    data = LongBare.DATA[3]
    return Registers(flat("cs", (LongBare.COMPATIBLE if trial.compatible else LongBare.CODE)[trial.cpl]),
                     flat("ss", LongBare.DATA[trial.cpl]),
                     flat("ds", data), flat("es", data), flat("fs", data), flat("gs", data),
                     LongBare.START, trial.registers.get("rsp", LongBare.STACK[trial.cpl]), trial.rflags)


def tss_of(trial: LongTrial) -> Tss64:
    """The machine's task, with the trial's stacks."""
    rsp0, rsp1, rsp2 = (trial.stacks.get(ring, LongBare.TSS_STACK[ring]) for ring in range(3))
    one, two, three, four, five, six, seven = (trial.ist.get(n, rsp) for n, rsp in enumerate(LongBare.IST, 1))
    return Tss64(LongBare.TSS, trial.task_limit, (rsp0, rsp1, rsp2), (one, two, three, four, five, six, seven))


# --- instructions ------------------------------------------------------------------------------------------------------------

def _load(s: Step) -> Registers:
    """MOV Sreg, AX."""
    return s.load(SREGS[s.code[1] >> 3 & 7], s.rax & 0xFFFF, s.after)


def _pop_segment(s: Step) -> Registers:
    """POP FS, POP GS."""
    word, after = s.pop()
    return s.load("fs" if s.code[1] == 0xA1 else "gs", word & 0xFFFF, after)


def _far(s: Step) -> Registers:
    """JMP and CALL through a far pointer in memory."""
    address = s.trial.registers["rbx"]
    selector, offset = s.memory.read(address + s.size, 2), s.memory.read(address, s.size)
    if s.code[1] == 0x2B:
        return long_mode.far_jump_64(s.after, s.table, selector, offset, s.size, s.upper)
    return s.store(long_mode.far_call_64(s.after, s.table, selector, offset, s.size, s.upper, s.tss))


def _far_return(s: Step) -> Registers:
    """RETF, RETF n."""
    return long_mode.far_return_64(s.registers, s.table, s.read, s.size, int.from_bytes(s.code[1:3], "little"))


def _interrupt_return(s: Step) -> Registers:
    """IRET."""
    return long_interrupts.interrupt_return_64(s.registers, s.table, s.read, s.size)


def _interrupt(s: Step) -> Registers:
    """INT n, INT3."""
    vector = BP if s.code[0] == 0xCC else s.code[1]
    return s.store(long_interrupts.software_interrupt_64(s.after, s.table, s.tss, *s.trial.gates[vector], vector))


def _access(s: Step) -> Registers:
    """MOV between AL, AX, EAX or RAX, which is 0, and memory: [RBX], [RBP] or [RSP], FS and GS with their bases."""
    size = s.size if s.code[0] & 1 else 1
    base = {3: "rbx", 4: "rsp", 5: "rbp"}[s.code[1] & 7]
    offset = s.trial.registers[base]
    on_stack = base != "rbx" and s.segment == "ds"
    if s.in_64:
        long_mode.check_address((offset + s.hidden.get(s.segment, 0)) & MASK, size, base != "rbx" and s.segment not in s.hidden)
    else:
        name = "ss" if on_stack else s.segment
        segment: Segment = getattr(s.registers, name)
        segments.check_access(segment.q, offset & 0xFFFFFFFF, size, not s.code[0] & 2, name == "ss")
    return s.after


def _push(s: Step) -> Registers:
    """PUSH RAX."""
    return s.push(s.rax)


def _pop(s: Step) -> Registers:
    """POP RAX, which was 0 and is."""
    return s.pop()[1]


def _pop_flags(s: Step) -> Registers:
    """POPF."""
    word, after = s.pop()
    return after._replace(eflags=flags.popped(after.eflags, word & flags.ALL, s.trial.cpl, s.size != 2))


def _swap_gs(s: Step) -> Registers:
    """SWAPGS."""
    s.hidden["gs"], s.hidden["kernel_gs_base"] = long_mode.swap_gs(s.registers, s.hidden["gs"], s.hidden["kernel_gs_base"])
    return s.after


def _write_msr(s: Step) -> Registers:
    """WRMSR."""
    value = (s.trial.registers.get("rdx", 0) & 0xFFFFFFFF) << 32 | s.rax & 0xFFFFFFFF
    s.hidden[_NUMBERS[s.rcx]] = system_calls.write_msr(s.trial.cpl, s.rcx, value)
    return s.after


def _base(s: Step) -> Registers:
    """RDFSBASE, RDGSBASE, WRFSBASE, WRGSBASE of RAX."""
    name, reads = ("gs" if s.code[2] & 8 else "fs"), not s.code[2] & 0x10
    mask = MASK if s.wide else 0xFFFFFFFF
    if reads:
        s.rax = long_mode.read_base(s.registers, s.hidden[name]) & mask
    else:
        s.hidden[name] = long_mode.write_base(s.registers, s.rax & mask)
    return s.after


def _system_call(s: Step) -> Registers:
    """SYSCALL."""
    s.in_tables = False
    call = system_calls.system_call(s.after, msrs_of(s.trial))
    s.rcx, s.r11 = call.rcx, call.r11
    return call.registers


def _system_return(s: Step) -> Registers:
    """SYSRET."""
    s.in_tables = False
    return system_calls.system_return(s.registers, msrs_of(s.trial), s.rcx, s.r11, s.wide)


def msrs_of(trial: LongTrial) -> Msrs:
    """The registers of system calls."""
    star, lstar, cstar, mask = (trial.msrs.get(name, 0) for name in _MSRS)
    return Msrs(star, lstar, cstar, mask, trial.calls, False)


_INSTRUCTIONS: Final[dict[int, Callable[[Step], Registers]]] = {
    0x8E: _load, 0xFF: _far, 0xCA: _far_return, 0xCB: _far_return, 0xCF: _interrupt_return, 0xCC: _interrupt, 0xCD: _interrupt,
    **dict.fromkeys((0x88, 0x89, 0x8A, 0x8B), _access), 0x50: _push, 0x58: _pop, 0x9D: _pop_flags, **INSTRUCTIONS,
}
_TWO_BYTES: Final[dict[int, Callable[[Step], Registers]]] = {
    0x05: _system_call, 0x07: _system_return, 0x30: _write_msr, 0xA1: _pop_segment, 0xA9: _pop_segment, 0xAE: _base, **TWO_BYTES,
}


def instruction(s: Step) -> Callable[[Step], Registers]:
    """What the code says."""
    if s.code[0] != 0x0F:
        return _INSTRUCTIONS[s.code[0]]
    return _swap_gs if s.code[1:3] == b"\x01\xf8" else _TWO_BYTES[s.code[1]]


# --- the end -----------------------------------------------------------------------------------------------------------------

def expected(trial: LongTrial) -> LongFinish:
    """How a trial ends."""
    step = Step(trial)
    try:
        after = instruction(step)(step)
    except Fault as e:
        return delivered(step, e.vector, e.error)
    return rung(step, after)


def rung(step: Step, after: Registers) -> LongFinish:
    """The instruction is done, and so is the one that rings, unless it can't be fetched."""
    try:
        if not is_64(after.cs.q):
            segments.check_fetch(after.cs.q, after.eip, 4 if after.cs.q & BIG else 6)
    except Fault as e:
        return fault(step, after, e.vector, e.error)
    return finish(step, after, after._replace(eflags=after.eflags & ~RF), -1, 0)    # RF lasts for one instruction


def delivered(step: Step, vector: int, error: int) -> LongFinish:
    """An exception finds its handler; or its gate is on trial too."""
    gate = step.trial.gates.get(vector)
    if gate is None:
        return fault(step, step.registers, vector, error)
    code = (error,) if exceptions.has_error_code(vector) else ()
    try:
        return rung(step, step.store(long_interrupts.exception_64(step.registers, step.table, step.tss, *gate, vector, code)))
    except Fault as e:
        then = exceptions.delivered(vector, e.vector)
        return delivered(step, then, 0 if then == DF else e.error)


def fault(step: Step, r: Registers, vector: int, error: int) -> LongFinish:
    """The handler of an exception would return to `r`."""
    return finish(step, r, interrupted(r, vector), vector, error)


def finish(step: Step, r: Registers, shown: Registers, vector: int, error: int) -> LongFinish:
    """The end of a trial with the registers `r`, of which some may not be shown."""
    fs, gs, kernel = (step.hidden[name] for name in _BASES)
    star, lstar, cstar, mask = (step.hidden[name] for name in _MSRS)
    return LongFinish(vector, error, r.eip, r.esp, shown.eflags, step.rax, step.rcx, step.r11,
                      shown.cs, shown.ss, shown.ds, shown.es, Segment(shown.fs.selector, shown.fs.q & _SHOWN),
                      Segment(shown.gs.selector, shown.gs.q & _SHOWN), (fs, gs, kernel), (star, lstar, cstar, mask),
                      step.memory.stack(r.esp), step.descriptors(r) if step.in_tables else dict(step.trial.descriptors))
