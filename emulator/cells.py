"""Performs one instruction of a bare processor with a descriptor under test, and reports what the processor did.

The machine is one page directory that maps every linear address onto the same 4 MB (so no access ever faults for paging), the
tables of `spec.vocabulary.Bare`, and one stub for each exception.  Every stub, the place after the instruction and the place
where a transfer lands ring the doorbell; whatever else is executed is INT3.
"""
import struct
from typing import Any, Final

from emulator.engine import Segment, engine, loaded
from emulator.errors import HarnessError
from spec.abi import PAGE_SIZE, PSE, RW, US, A, D, P
from spec.vocabulary import BARE_GDT, Bare, Finish, Trial, bare_gate

WINDOW: Final = 1 << 22                     # bytes of RAM; the linear space repeats them
NOT_TRIED: Final = {
    "triple faults": "the engine aborts the process",
    "IN and OUT that are permitted": "the engine aborts the process",
    "HLT in ring 0": "the engine does not come back from it",
    "external interrupts": "there is no interrupt controller: IF is seen in EFLAGS only",
    "RF": "it is clear again when the processor is looked at: it is seen in pushed flags only",
    "a stack of ring 0 that has no room for the frame of a fault": "it would end in a triple fault",
    "#AC in transfers": "misaligned words are read, written, pushed and popped only",
    "page faults on the way": "every address is mapped",
}
"""What this processor is not asked, and why."""

_GDT, _IDT, _STUBS, _DIRECTORY = 0, 0x2000, 0x6000, 0xC000
_FRAMES: Final = WINDOW // PAGE_SIZE
_WITH_ERROR_CODE: Final = frozenset({8, 10, 11, 12, 13, 14, 17})
_INTERRUPT_GATE: Final = 0xE
_DATA_SEGMENTS: Final = ("ds", "es", "fs", "gs")
_CS = tuple(Segment(selector, BARE_GDT[selector & ~3]) for selector in Bare.CODE)
_SS = tuple(Segment(selector, BARE_GDT[selector & ~3]) for selector in Bare.DATA)
_TASK, _LOCAL = (Segment(selector, BARE_GDT[selector]) for selector in (Bare.TSS, Bare.LDT))
# Rings from segments of 16 and of 32 bits alike: to 32 bits it is `clflush cs:[esi]`, to 16 `clflush cs:[START]`.
_RING: Final = bytes.fromhex("2e0fae3e") + struct.pack("<H", Bare.START)
# The engine heeds TF only if an instruction has set it: push flags; popfd.
_SET_FLAGS: Final = bytes.fromhex("68000000009d")
_TF: Final = 1 << 8
_AM: Final = 1 << 18                        # of CR0
_STEP: Final = Trial(b"\x90", 3, _TF | 2)
_CODE_FRAMES: Final = (Bare.START // PAGE_SIZE, Bare.LANDING // PAGE_SIZE)


class Cells:
    """The bare machine."""
    not_tried = NOT_TRIED

    def __init__(self) -> None:
        self._engine = engine()
        self._ram = self._engine.attach(self, _FRAMES)
        self._finish: Finish | None = None
        self._trial = Trial(b"", 0)
        self._stack = Segment(0, 0)             # SS before the instruction
        self._install()
        self._engine.on_doorbell(self._rung)

    def perform(self, trial: Trial) -> Finish:
        """Let the processor execute the instruction.  HarnessError if it does not come to one of the places that ring."""
        if self._engine.user is not self:
            raise HarnessError("another machine has the processor")
        self._lay(trial)
        self._trial, self._finish = trial, None
        self._start(trial)
        self._engine.run()
        finish = self._finish
        if finish is None:
            raise HarnessError("the processor stopped without a doorbell")
        if finish.vector < 0 and (trial.eflags | finish.eflags) & _TF:
            self.perform(_STEP)             # the engine still has a single-step trap to deliver: not to the next trial
        return finish

    # --- before ---

    def _start(self, trial: Trial) -> None:
        """Put the processor in front of the instruction."""
        ring = trial.cpl
        task = Segment(Bare.TSS, _TASK.descriptor & ~0xFFFF | trial.task_limit)
        segments = {"cs": _CS[ring], "ss": _SS[ring], "ldtr": _LOCAL, "tr": task, **dict.fromkeys(_DATA_SEGMENTS, _SS[3])}
        for name, (selector, word) in trial.segments.items():
            segments[name] = Segment(selector, word)
        registers = {"rsi": Bare.START, **{"r" + name[1:]: value for name, value in trial.registers.items()}}
        self._stack = segments["ss"]
        start = Bare.START - len(_SET_FLAGS) if trial.eflags & _TF else Bare.START
        self._engine.start(_DIRECTORY, start, registers.pop("rsp", Bare.STACK[ring]), (_GDT, Bare.GDT_LIMIT), (_IDT, 0x7FF),
                           segments, trial.eflags & ~_TF, registers, _AM if trial.alignment else 0)

    def _install(self) -> None:
        """What no trial changes: page directory and code."""
        put = self._put
        self._ram[:] = b"\xcc" * len(self._ram)
        put(_DIRECTORY, struct.pack("<1024I", *[P | RW | US | A | D | PSE] * 1024))
        for vector in range(256):
            put(_STUBS + 8 * vector, bytes.fromhex("2e0fae3d") + struct.pack("<I", _STUBS + 8 * vector))
        put(Bare.LANDING, _RING)
        data = Bare.DATA[0]
        registers = (Bare.LANDING, 2, *[0] * 4, Bare.STACK[0], 0, Bare.START, 0, data, Bare.CODE[0], data, data)
        put(Bare.TASK_BASE, struct.pack("<26I", *[0] * 7, _DIRECTORY, *registers, data, data, Bare.LDT, 0x68 << 16))
        put(Bare.TASK16_BASE, struct.pack("<22H", *[0] * 7, *registers, Bare.LDT))
        self._make_tables()

    def _make_tables(self) -> None:
        """The tables as every trial begins with them."""
        self._gdt = struct.pack("<128Q", *(BARE_GDT.get(selector, 0) for selector in range(0, Bare.GDT_LIMIT, 8)))
        self._ldt = bytes(Bare.LDT_LIMIT + 1)
        self._idts = [struct.pack("<256Q", *(bare_gate(_INTERRUPT_GATE, selector, _STUBS + 8 * vector) for vector in range(256)))
                      for selector in (Bare.CODE[0], Bare.CONFORMING)]
        stacks = (word for ring in range(3) for word in (Bare.TSS_STACK[ring], Bare.DATA[ring]))
        self._tss = struct.pack("<26I", 0, *stacks, *[0] * 18, 0x68 << 16)

    def _put(self, address: int, data: bytes) -> None:
        self._ram[address:address + len(data)] = data

    def _lay(self, trial: Trial) -> None:
        """Tables, memory and code of a trial."""
        put, ram = self._put, self._ram
        put(_GDT, self._gdt)
        put(Bare.LDT_BASE, self._ldt)
        put(_IDT, self._idts[0 in trial.stacks])
        put(Bare.TSS_BASE, self._tss)
        struct.pack_into("<I", ram, Bare.TSS_BASE, trial.link)
        put(Bare.MEMORY, bytes(Bare.MEMORY_END - Bare.MEMORY))
        for selector, word in trial.descriptors.items():
            struct.pack_into("<Q", ram, _entry(selector), word)
        for vector, word in trial.gates.items():
            struct.pack_into("<Q", ram, _IDT + 8 * vector, word)
        for ring, (ss, esp) in trial.stacks.items():
            struct.pack_into("<II", ram, Bare.TSS_BASE + 4 + 8 * ring, esp, ss)
        for address, word in trial.memory.items():
            struct.pack_into("<I", ram, address, word)
        put(Bare.START - len(_SET_FLAGS), _SET_FLAGS[:1] + struct.pack("<I", trial.eflags) + _SET_FLAGS[5:] + trial.code + _RING)
        for frame in _CODE_FRAMES:          # code that was decoded within one limit would be executed within a smaller one
            self._engine.forget_code(frame)

    # --- after ---

    def _rung(self, _session: Any, _cpu: int, _linear: int, physical: int) -> None:
        """A stub rang (where it lies says for which exception), or the instruction is done."""
        try:
            state = self._engine.look()
            vector = physical - _STUBS >> 3 if _STUBS <= physical < _STUBS + 0x800 else -1
            self._finish = self._of_fault(state, vector) if vector >= 0 else self._of_success(state)
            self._engine.stop()
        except BaseException as failure:
            self._engine.fail(failure)

    def _of_success(self, state: Any) -> Finish:
        """The registers as they are; the doorbell itself has moved EIP."""
        cs, ss = loaded(state.cs), loaded(state.ss)
        length = 4 if cs.descriptor >> 54 & 1 else 6
        return self._report(state, -1, 0, state.rip - length, state.rsp, state.rflags, cs, ss, self._words(ss, state.rsp))

    def _of_fault(self, state: Any, vector: int) -> Finish:
        """The handler's stack says where it came from; the hidden parts of CS and SS are not on it."""
        ss, esp, error = loaded(state.ss), state.rsp, 0
        if vector in _WITH_ERROR_CODE:
            error = self._words(ss, esp)[0]
            esp += 4
        eip, cs, eflags, old_esp, old_ss = self._words(ss, esp)[:5]
        if cs & 3 == state.cs.selector & 3:     # the handler runs on the same stack
            old_esp, old_ss = esp + 12, ss.selector
        else:
            ss = self._stack
        return self._report(state, vector, error, eip, old_esp, eflags, Segment(cs, 0), Segment(old_ss, 0),
                            self._words(ss, old_esp))

    def _report(self, state: Any, vector: int, error: int, eip: int, esp: int, eflags: int, cs: Segment, ss: Segment,
                stack: tuple[int, ...]) -> Finish:
        return Finish(vector, error, eip, esp, eflags, cs, ss, loaded(state.ds), loaded(state.es), loaded(state.fs),
                      loaded(state.gs), state.tr.selector, stack,
                      {s: struct.unpack_from("<Q", self._ram, _entry(s))[0] for s in self._trial.descriptors})

    def _words(self, ss: Segment, esp: int) -> tuple[int, ...]:
        """The words at the top of a stack, if it is one of the machine's."""
        if ss.descriptor and not ss.descriptor >> 54 & 1:
            esp &= 0xFFFF
        start = (ss.descriptor >> 16 & 0xFFFFFF | ss.descriptor >> 56 << 24) + esp & WINDOW - 1
        if not Bare.MEMORY <= start <= Bare.MEMORY_END - 4 * Bare.STACK_WORDS:
            return ()
        return struct.unpack_from(f"<{Bare.STACK_WORDS}I", self._ram, start)


def _entry(selector: int) -> int:
    """Where a descriptor lies."""
    return (Bare.LDT_BASE if selector & 4 else _GDT) + (selector & 0xFFF8)
