"""What the bare processors of 32 bits and of long mode do alike: they lay a trial's tables, run, and hear how it ended."""
import struct
from abc import ABC, abstractmethod
from typing import Any, Final, Generic, TypeVar

from emulator.engine import Segment, engine
from emulator.errors import HarnessError
from spec.abi import PAGE_SIZE
from spec.vocabulary import Bare, Finish, LongBare, LongFinish, LongTrial, Trial

IDT, STUBS = 0x2000, 0x6000
INTERRUPT_GATE: Final = 0xE
_DATA_SEGMENTS: Final = ("ds", "es", "fs", "gs")
TF: Final = 1 << 8

T = TypeVar("T", bound=Trial | LongTrial)
F = TypeVar("F", bound=Finish | LongFinish)


class BareMachine(ABC, Generic[T, F]):
    """A processor and its RAM, which is INT3 wherever nothing else is put."""

    def __init__(self, at: type[Bare] | type[LongBare], gdt: dict[int, int], gdt_base: int, frames: int, step: T) -> None:
        """`step`: a trial for the engine to deliver a single-step trap in that another one has left."""
        self._at, self._gdt_base, self._step = at, gdt_base, step
        self._own = {selector | rpl: Segment(selector | rpl, word) for selector, word in gdt.items() for rpl in range(4)}
        self._gdt = struct.pack("<128Q", *(gdt.get(selector, 0) for selector in range(0, at.GDT_LIMIT, 8)))
        # Rings from code of 16, 32 and 64 bits alike: `clflush cs:[START]`, `clflush cs:[esi]`, `clflush [rsi]`.
        self._ring = bytes.fromhex("2e0fae3e") + struct.pack("<H", at.START)
        self._engine = engine()
        self._ram = self._engine.attach(self, frames)
        self._ram[:] = b"\xcc" * len(self._ram)
        self._put(at.LANDING, self._ring)
        self._trial = step
        self._finish: F | None = None
        self._engine.on_doorbell(self._rung)

    def perform(self, trial: T) -> F:
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
        if finish.vector < 0 and trial is not self._step and self._leaves_trap(trial, finish):
            self.perform(self._step)        # the engine still has a single-step trap to deliver: not to the next trial
        return finish

    # --- what differs ---

    @abstractmethod
    def _lay(self, trial: T) -> None:
        """Tables, memory and code of a trial."""

    @abstractmethod
    def _start(self, trial: T) -> None:
        """Put the processor in front of the instruction."""

    @abstractmethod
    def _leaves_trap(self, trial: T, finish: F) -> bool:
        """A single-step trap follows the trial, which came to no fault."""

    @abstractmethod
    def _of_success(self, state: Any) -> F:
        """The end of a trial without a fault."""

    @abstractmethod
    def _of_fault(self, state: Any, vector: int) -> F:
        """The end of a trial in the handler of a fault."""

    # --- before ---

    def _segments(self, trial: T, cs: int) -> dict[str, Segment]:
        """The segment registers before the instruction."""
        own, at = self._own, self._at
        task = Segment(at.TSS, own[at.TSS].descriptor & ~0xFFFF | trial.task_limit)
        segments = {"cs": own[cs], "ss": own[at.DATA[trial.cpl]], "ldtr": own[at.LDT], "tr": task,
                    **dict.fromkeys(_DATA_SEGMENTS, own[at.DATA[3]])}
        for name, (selector, word) in trial.segments.items():
            segments[name] = Segment(selector, word)
        return segments

    def _put(self, address: int, data: bytes) -> None:
        self._ram[address:address + len(data)] = data

    def _lay_tables(self, trial: T, idt: bytes, tss: bytes) -> None:
        """The machine's own tables with the trial's descriptors, and memory that is empty again."""
        put, at = self._put, self._at
        put(self._gdt_base, self._gdt)
        put(at.LDT_BASE, bytes(at.LDT_LIMIT + 1))
        put(IDT, idt)
        put(at.TSS_BASE, tss)
        put(at.MEMORY, bytes(at.MEMORY_END - at.MEMORY))
        for selector, word in trial.descriptors.items():
            struct.pack_into("<Q", self._ram, self._entry(selector), word)

    def _lay_code(self, address: int, code: bytes) -> None:
        """The trial's code, and the doorbell behind it."""
        self._put(address, code + self._ring)
        # Code that was decoded within one limit would be executed within a smaller one.
        self._engine.forget_code(self._at.START // PAGE_SIZE)
        self._engine.forget_code(self._at.LANDING // PAGE_SIZE)

    # --- after ---

    def _rung(self, _session: Any, _cpu: int, _linear: int, physical: int) -> None:
        """A stub rang (where it lies says for which exception), or the instruction is done."""
        try:
            state = self._engine.look()
            vector = physical - STUBS >> 3 if STUBS <= physical < STUBS + 0x800 else -1
            self._finish = self._of_fault(state, vector) if vector >= 0 else self._of_success(state)
            self._engine.stop()
        except BaseException as failure:
            self._engine.fail(failure)

    def _descriptors(self) -> dict[int, int]:
        """The trial's descriptors as they are now."""
        return {s: struct.unpack_from("<Q", self._ram, self._entry(s))[0] for s in self._trial.descriptors}

    def _entry(self, selector: int) -> int:
        """Where a descriptor lies."""
        return (self._at.LDT_BASE if selector & 4 else self._gdt_base) + (selector & 0xFFF8)
