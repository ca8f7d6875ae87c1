"""Performs one instruction of a bare processor in long mode, and reports what the processor did.

The machine is one root table of 4 levels that maps every canonical address onto the same 64 KB (so no access ever faults for
paging), the tables of `spec.vocabulary.LongBare`, and one stub for each exception.  Every stub, the place after the instruction
and the place where a transfer lands ring the doorbell; whatever else is executed is INT3.
"""
import struct
from typing import Any, Final

from emulator.bare import IDT, INTERRUPT_GATE, STUBS, TF, BareMachine
from emulator.engine import Segment, loaded
from emulator.stubs import WITH_ERROR_CODE
from spec.abi import PAGE_SIZE, RW, US, A, D, P
from spec.vocabulary import LONG_GDT, LongBare, LongFinish, LongTrial, bare_gate

NOT_TRIED: Final = {
    "triple faults": "the engine aborts the process",
    "HLT in ring 0, IN and OUT that are permitted": "the engine does not come back from them",
    "external interrupts": "there is no interrupt controller: IF is seen in RFLAGS only",
    "RF": "it is clear again when the processor is looked at: it is seen in pushed flags only",
    "SYSCALL in compatibility mode": "it is #UD, as on Intel's processors; AMD's have it",
    "single steps": "they are tried on the 32-bit processor",
    "page faults on the way, descriptor tables at addresses that are not canonical": "every address is mapped, tables lie low",
    "an end of the TSS before a stack that faults need, with a stack that is no good": "it would end in a triple fault",
}
"""What this processor is not asked, and why."""

_GDT: Final = 0x3400                        # nothing lies in the first 4 KB, nor in the last: stacks may reach there
_FRAMES: Final = LongBare.SIZE // PAGE_SIZE
_ROOT: Final = LongBare.SIZE                # behind it the tables of the three other levels, seen by no linear address
_LAST_TABLE: Final = _ROOT + 3 * PAGE_SIZE
_OWN_STACK: Final = len(LongBare.IST)
_CR4: Final = 0x10020                       # FSGSBASE, PAE
_EFER: Final = 0xD00                        # NXE, LMA, LME
_SCE: Final = 1                             # of EFER: SYSCALL is switched on
_STEP: Final = LongTrial(bytes.fromhex("68020100009d"), 3)     # push 0x102; popf
_BASE: Final = 0xFF0000FFFFFF0000


class LongCells(BareMachine[LongTrial, LongFinish]):
    """The bare machine in long mode."""
    not_tried = NOT_TRIED

    def __init__(self) -> None:
        super().__init__(LongBare, LONG_GDT, _GDT, _FRAMES + 4, _STEP)
        put = self._put
        for table in range(_ROOT, _LAST_TABLE, PAGE_SIZE):
            put(table, struct.pack("<512Q", *[table + PAGE_SIZE | P | RW | US | A] * 512))
        put(_LAST_TABLE, struct.pack("<512Q", *(n % _FRAMES * PAGE_SIZE | P | RW | US | A | D for n in range(512))))
        for vector in range(256):           # clflush [rip - 7], itself
            put(STUBS + 8 * vector, bytes.fromhex("0fae3df9ffffff"))
        self._idts = {on_own: b"".join(struct.pack("<QQ", _stub(vector, on_own), 0) for vector in range(256))
                      for on_own in (True, False)}
        self._tss = struct.pack("<IQQQQ7QQHH", 0, *LongBare.TSS_STACK, 0, *LongBare.IST, 0, 0, 0x68)

    # --- before ---

    def _start(self, trial: LongTrial) -> None:
        ring = trial.cpl
        segments = self._segments(trial, (LongBare.COMPATIBLE if trial.compatible else LongBare.CODE)[ring])
        registers = {"rsi": LongBare.START, "cr4": _CR4, "efer": _EFER | trial.calls * _SCE, **trial.msrs, **trial.registers}
        self._engine.start(_ROOT, LongBare.START, registers.pop("rsp", LongBare.STACK[ring]), (_GDT, LongBare.GDT_LIMIT),
                           (IDT, 0xFFF), segments, trial.rflags, registers, bases=trial.bases)

    def _lay(self, trial: LongTrial) -> None:
        ram = self._ram
        self._put(0, bytes(PAGE_SIZE))
        self._lay_tables(trial, self._idts[trial.task_limit >= LongBare.TSS_LIMIT], self._tss)
        for vector, halves in trial.gates.items():
            struct.pack_into("<QQ", ram, IDT + 16 * vector, *halves)
        for ring, rsp in trial.stacks.items():
            struct.pack_into("<Q", ram, LongBare.TSS_BASE + 4 + 8 * ring, rsp)
        for number, rsp in trial.ist.items():
            struct.pack_into("<Q", ram, LongBare.TSS_BASE + 28 + 8 * number, rsp)
        for address, word in trial.memory.items():
            struct.pack_into("<Q", ram, address, word)
        self._lay_code(LongBare.START, trial.code)

    # --- after ---

    def _leaves_trap(self, trial: LongTrial, finish: LongFinish) -> bool:
        return finish.rflags & TF != 0

    def _of_success(self, state: Any) -> LongFinish:
        """The registers as they are; the doorbell itself has moved RIP."""
        cs = loaded(state.cs)
        length = 4 if cs.descriptor >> 53 & 3 else 6
        return self._report(state, -1, 0, state.rip - length, state.rsp, state.rflags, cs, loaded(state.ss))

    def _of_fault(self, state: Any, vector: int) -> LongFinish:
        """The handler's stack says where it came from; the hidden parts of CS and SS are not on it."""
        at = state.rsp % LongBare.SIZE
        error = 0
        if vector in WITH_ERROR_CODE:
            error = struct.unpack_from("<Q", self._ram, at)[0]
            at += 8
        rip, cs, rflags, rsp, ss = struct.unpack_from("<5Q", self._ram, at)
        return self._report(state, vector, error, rip, rsp, rflags, Segment(cs, 0), Segment(ss, 0))

    def _report(self, state: Any, vector: int, error: int, rip: int, rsp: int, rflags: int, cs: Segment,
                ss: Segment) -> LongFinish:
        return LongFinish(vector, error, rip, rsp, rflags, state.rax, state.rcx, state.r11, cs, ss,
                          loaded(state.ds), loaded(state.es), _without_base(loaded(state.fs)), _without_base(loaded(state.gs)),
                          (state.fs.base, state.gs.base, state.kernel_gs_base),
                          (state.star, state.lstar, state.cstar, state.sfmask), self._words(rsp), self._descriptors())

    def _words(self, rsp: int) -> tuple[int, ...]:
        """The words at the top of a stack, if it is one of the machine's."""
        start = rsp % LongBare.SIZE
        if not LongBare.MEMORY <= start <= LongBare.MEMORY_END - 8 * LongBare.STACK_WORDS:
            return ()
        return struct.unpack_from(f"<{LongBare.STACK_WORDS}Q", self._ram, start)


def _stub(vector: int, on_own: bool) -> int:
    """The gate to a stub: on the machine's own stack, or on the one that there is."""
    selector = LongBare.CODE[0] if on_own else LongBare.CONFORMING
    return bare_gate(INTERRUPT_GATE, selector, STUBS + 8 * vector) | on_own * _OWN_STACK << 32


def _without_base(segment: Segment) -> Segment:
    """A segment register whose base is reported by itself."""
    return Segment(segment.selector, segment.descriptor & ~_BASE)
