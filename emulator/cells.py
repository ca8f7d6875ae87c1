"""Performs one instruction of a bare processor with a descriptor under test, and reports what the processor did.

The machine is one page directory that maps every linear address onto the same 4 MB (so no access ever faults for paging), the
tables of `spec.vocabulary.Bare`, and one stub for each exception.  Every stub, the place after the instruction and the place
where a transfer lands ring the doorbell; whatever else is executed is INT3.
"""
import struct
from typing import Any, Final

from emulator.bare import IDT, INTERRUPT_GATE, STUBS, TF, BareMachine
from emulator.engine import Segment, loaded
from emulator.stubs import WITH_ERROR_CODE
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

_GDT, _DIRECTORY = 0, 0xC000
# The engine heeds TF only if an instruction has set it: push flags; popfd.
_SET_FLAGS: Final = bytes.fromhex("68000000009d")
_AM: Final = 1 << 18                        # of CR0
_STEP: Final = Trial(b"\x90", 3, TF | 2)


class Cells(BareMachine[Trial, Finish]):
    """The bare machine."""
    not_tried = NOT_TRIED

    def __init__(self) -> None:
        super().__init__(Bare, BARE_GDT, _GDT, WINDOW // PAGE_SIZE, _STEP)
        self._stack = Segment(0, 0)             # SS before the instruction
        put = self._put
        put(_DIRECTORY, struct.pack("<1024I", *[P | RW | US | A | D | PSE] * 1024))
        for vector in range(256):
            put(STUBS + 8 * vector, bytes.fromhex("2e0fae3d") + struct.pack("<I", STUBS + 8 * vector))
        data = Bare.DATA[0]
        registers = (Bare.LANDING, 2, *[0] * 4, Bare.STACK[0], 0, Bare.START, 0, data, Bare.CODE[0], data, data)
        put(Bare.TASK_BASE, struct.pack("<26I", *[0] * 7, _DIRECTORY, *registers, data, data, Bare.LDT, 0x68 << 16))
        put(Bare.TASK16_BASE, struct.pack("<22H", *[0] * 7, *registers, Bare.LDT))
        self._make_tables()

    # --- before ---

    def _start(self, trial: Trial) -> None:
        ring = trial.cpl
        segments = self._segments(trial, Bare.CODE[ring])
        registers = {"rsi": Bare.START, **{"r" + name[1:]: value for name, value in trial.registers.items()}}
        self._stack = segments["ss"]
        start = Bare.START - len(_SET_FLAGS) if trial.eflags & TF else Bare.START
        self._engine.start(_DIRECTORY, start, registers.pop("rsp", Bare.STACK[ring]), (_GDT, Bare.GDT_LIMIT), (IDT, 0x7FF),
                           segments, trial.eflags & ~TF, registers, _AM if trial.alignment else 0)

    def _make_tables(self) -> None:
        """The tables as every trial begins with them."""
        self._idts = [struct.pack("<256Q", *(bare_gate(INTERRUPT_GATE, selector, STUBS + 8 * vector) for vector in range(256)))
                      for selector in (Bare.CODE[0], Bare.CONFORMING)]
        stacks = (word for ring in range(3) for word in (Bare.TSS_STACK[ring], Bare.DATA[ring]))
        self._tss = struct.pack("<26I", 0, *stacks, *[0] * 18, 0x68 << 16)

    def _lay(self, trial: Trial) -> None:
        ram = self._ram
        self._lay_tables(trial, self._idts[0 in trial.stacks], self._tss)
        struct.pack_into("<I", ram, Bare.TSS_BASE, trial.link)
        for vector, word in trial.gates.items():
            struct.pack_into("<Q", ram, IDT + 8 * vector, word)
        for ring, (ss, esp) in trial.stacks.items():
            struct.pack_into("<II", ram, Bare.TSS_BASE + 4 + 8 * ring, esp, ss)
        for address, word in trial.memory.items():
            struct.pack_into("<I", ram, address, word)
        set_flags = _SET_FLAGS[:1] + struct.pack("<I", trial.eflags) + _SET_FLAGS[5:]
        self._lay_code(Bare.START - len(set_flags), set_flags + trial.code)

    # --- after ---

    def _leaves_trap(self, trial: Trial, finish: Finish) -> bool:
        return (trial.eflags | finish.eflags) & TF != 0

    def _of_success(self, state: Any) -> Finish:
        """The registers as they are; the doorbell itself has moved EIP."""
        cs, ss = loaded(state.cs), loaded(state.ss)
        length = 4 if cs.descriptor >> 54 & 1 else 6
        return self._report(state, -1, 0, state.rip - length, state.rsp, state.rflags, cs, ss, self._words(ss, state.rsp))

    def _of_fault(self, state: Any, vector: int) -> Finish:
        """The handler's stack says where it came from; the hidden parts of CS and SS are not on it."""
        ss, esp, error = loaded(state.ss), state.rsp, 0
        if vector in WITH_ERROR_CODE:
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
                      loaded(state.gs), state.tr.selector, stack, self._descriptors())

    def _words(self, ss: Segment, esp: int) -> tuple[int, ...]:
        """The words at the top of a stack, if it is one of the machine's."""
        if ss.descriptor and not ss.descriptor >> 54 & 1:
            esp &= 0xFFFF
        start = (ss.descriptor >> 16 & 0xFFFFFF | ss.descriptor >> 56 << 24) + esp & WINDOW - 1
        if not Bare.MEMORY <= start <= Bare.MEMORY_END - 4 * Bare.STACK_WORDS:
            return ()
        return struct.unpack_from(f"<{Bare.STACK_WORDS}I", self._ram, start)
