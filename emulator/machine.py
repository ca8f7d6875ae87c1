"""The machine: descriptor tables, stubs and records in Xen's frames, and the doorbell from the processor to the hypervisor."""
import struct
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from emulator import layout as at
from emulator import stubs
from emulator.boot import Boot
from emulator.engine import Doorbell, Segment, engine
from emulator.errors import HarnessError
from emulator.guests import GuestRun
from emulator.hypervisor import Hypervisor
from emulator.kernel import Kernel
from emulator.records import RECORD_WORDS, Program
from emulator.transfers import Transfers
from emulator.ways import VECTORS, Ways, assembled
from spec.abi import PAGE_SIZE, Xen2003
from spec.vocabulary import Outcome

CAPACITY: Final = (at.RECORDS_END - at.RECORDS) // 4            # words for records and their data
_FIRST_RECORD: Final = (at.SCRATCH_FRAME * PAGE_SIZE + at.RECORDS) // 4
_LOOP_PAGES: Final = (at.RECORDS_END >> 12) - 1
_CODE, _DATA = 0xB, 3                                           # descriptor types, the accessed bit set


def descriptor(base: int, pages: int, kind: int, dpl: int) -> int:
    """A present 32-bit segment of `pages` + 1 pages."""
    return (pages & 0xFFFF | (base & 0xFFFFFF) << 16 | kind << 40 | 1 << 44 | dpl << 45 | 1 << 47 | (pages >> 16) << 48
            | 0b11 << 54 | (base >> 24) << 56)


def interrupt_gate(offset: int, dpl: int) -> int:
    """A 32-bit interrupt gate to a stub of Xen's."""
    return offset & 0xFFFF | at.XEN_CS << 16 | 0xE << 40 | dpl << 45 | 1 << 47 | (offset >> 16) << 48


# Xen's own, and behind them the loop's: out of reach where a guest's GDT ends or is another.  By selector without RPL.
DESCRIPTORS: Final = {
    **{8 * n: word for n, word in Xen2003.DESCRIPTORS.items()},
    at.LOOP_KERNEL_CS & ~7: descriptor(at.LOOP_BASE, 0, _CODE, 1), at.LOOP_USER_CS & ~7: descriptor(at.LOOP_BASE, 0, _CODE, 3),
    at.LOOP_KERNEL_SS & ~7: descriptor(at.SCRATCH_BASE, 0, _DATA, 1),
    at.LOOP_USER_SS & ~7: descriptor(at.SCRATCH_BASE, 0, _DATA, 3),
    at.LOOP_FS & ~7: descriptor(at.SCRATCH_BASE, _LOOP_PAGES, _DATA, 3),
}

_NO_LDT: Final = Segment(0, 0)
_LOOP_TABLES: Final = (at.GDT_BASE, at.GDT_ENTRIES * 8 - 1), _NO_LDT
_LDT_MAPPED: Final = (at.IDT_FRAME * PAGE_SIZE + at.LDT_MAPPED_OFFSET) // 4


class Machine:
    """One processor with its RAM, and the hypervisor that rules it."""

    def __init__(self, boot: Boot) -> None:
        self.engine = engine()
        self.ram = self.engine.attach(self, boot.setup.frames)
        self.hypervisor = Hypervisor(self.ram, boot, self.engine.invlpg, fourth=lambda: int(self.engine.cpu.rsi))
        self.user = False                       # the loop is in ring 3
        self.chose: dict[int, tuple[int, ...]] = {}     # row of a record -> frames that its hypercall handed out
        self.ended: dict[int, Outcome] = {}     # row of a record -> outcome of its control transfer
        self.transfer_due = False               # the loop waits for one
        self.transfers = Transfers(self)
        self.inside: GuestRun = self.transfers  # what the stubs ask when a guest runs as itself
        self._install()
        self._start_processor()
        self.engine.on_doorbell(self._make_doorbell())

    @property
    def attached(self) -> bool:
        """The processor is still this machine's."""
        return self.engine.user is self

    @property
    def sound(self) -> bool:
        """It can be reset: the loop is where it was, and only frames that guests may have were written."""
        hypervisor = self.hypervisor
        written, first = hypervisor.written, hypervisor.boot.setup.xen_frames
        return (self.attached and not self.engine.broken
                and min(written, default=first) >= first and max(written, default=first) < hypervisor.frames)

    def reset(self, whole: bool = False) -> None:
        """Back to the boot state; `whole` takes nothing for unchanged."""
        hypervisor, engine = self.hypervisor, self.engine
        if whole:
            hypervisor.suspect_all()
        for f in hypervisor.written:
            engine.forget_code(f)
        engine.forget_absent()
        hypervisor.reset()
        engine.load_cr3(hypervisor.root << 2)

    def load(self, program: Program) -> None:
        """Put the records of a program in their place."""
        struct.pack_into(f"<{len(program.words)}I", self.ram, _FIRST_RECORD * 4, *program.words)

    def run(self, program: Program) -> NDArray[np.uint32]:
        """Let the guest act out the records of the loaded program; they come back with their outcomes, one a row."""
        self.chose.clear()
        self.ended.clear()
        self.engine.cpu.rbp = at.RECORDS - 4 * RECORD_WORDS
        self.engine.run()
        while self.transfer_due:
            self.transfer_due = False
            row = self.row()
            self.ended[row] = self.transfers.perform(program.transfers[row])
            self.engine.run()
        self.user = program.user
        rows = len(program.words) // RECORD_WORDS
        return self.hypervisor.nram[_FIRST_RECORD:_FIRST_RECORD + rows * RECORD_WORDS].reshape(rows, RECORD_WORDS)

    # --- Xen's frames ---

    def _install(self) -> None:
        """Write everything that the processor finds in Xen's frames."""
        frames = self.hypervisor.boot.setup.frames

        def put(frame: int, offset: int, data: bytes) -> None:
            start = frame * PAGE_SIZE + offset
            self.ram[start:start + len(data)] = data
        for frame in range(at.RECORD_FRAME):
            put(frame, 0, bytes(PAGE_SIZE))
            self.engine.forget_code(frame)
        for selector, segment in DESCRIPTORS.items():
            put(at.GDT_FRAME, selector, struct.pack("<Q", segment))
        for vector, (offset, dpl) in stubs.GATES.items():
            put(at.IDT_FRAME, 8 * vector, struct.pack("<Q", interrupt_gate(at.RING0_BASE + offset, dpl)))
        put(at.IDT_FRAME, at.TSS_OFFSET + 4, struct.pack("<II", at.RING0_STACK, at.XEN_DS))
        put(at.IDT_FRAME, at.TSS_OFFSET + 0x64, struct.pack("<I", 0x68 << 16))          # no I/O bitmap
        put(at.IDT_FRAME, at.GDT_POINTER_OFFSET, struct.pack("<HI", _LOOP_TABLES[0][1], at.GDT_BASE))
        put(at.RING0_FRAME, 0, stubs.RING0)
        ways = Ways()
        code, self.ways = assembled(ways.listing())
        put(at.RING0_FRAME, at.WAYS_OFFSET, code)
        for vector in VECTORS:
            gate = interrupt_gate(self.ways[f"entry_{vector}"], ways.dpl(vector))
            put(at.IDT_FRAME, at.GUEST_IDT_OFFSET + 8 * vector, struct.pack("<Q", gate))
        put(at.LOOP_FRAME, 0, stubs.LOOP)
        put(at.HARNESS_L1_FRAME, 0, np.array(at.harness_l1(), np.uint32).tobytes())
        put(at.M2P_L1_FRAME, 0, np.array(at.m2p_l1(frames), np.uint32).tobytes())
        self.hypervisor.descriptors.present.show(Kernel(0))

    def _start_processor(self) -> None:
        """Put the processor at the head of the loop, in ring 1."""
        def segment(selector: int) -> Segment:
            return Segment(selector, DESCRIPTORS[selector & ~7])
        self.user = False
        self.engine.start(
            cr3=self.hypervisor.root << 2, eip=stubs.HANDLERS["next"], esp=at.LOOP_STACK,
            gdt=_LOOP_TABLES[0], idt=(at.IDT_BASE, 256 * 8 - 1),
            segments={"cs": segment(at.LOOP_KERNEL_CS), "ss": segment(at.LOOP_KERNEL_SS), "fs": segment(at.LOOP_FS),
                      "tr": segment(at.TSS_SELECTOR),
                      **{name: segment(at.KERNEL_DS) for name in ("ds", "es", "gs")}}, cr0=at.CR0)

    # --- from the processor into Python ---

    def _make_doorbell(self) -> Doorbell:
        """What happens when a stub rings, or when the loop says where it has stored."""
        hypervisor, cpu = self.hypervisor, self.engine.cpu
        calls, written, descriptors = hypervisor.calls, hypervisor.written, hypervisor.descriptors

        def doorbell(_session: Any, _cpu: int, linear: int, physical: int) -> None:
            try:
                if linear == at.BELL_HYPERCALL:
                    cpu.rax = calls[cpu.rax & 0xFF](cpu.rbx, cpu.rcx, cpu.rdx) & 0xFFFFFFFF
                    if hypervisor.chosen:
                        self.keep_choice()
                    if descriptors.ldt_due:
                        descriptors.map_due()
                    if hypervisor.flush_due:
                        self.flush()
                elif linear < Xen2003.GUEST_END:
                    written.add(physical >> 12)
                elif linear == at.BELL_SERVICE:
                    self.serve(cpu.rax)
                elif linear == at.BELL_GUEST_TABLES:
                    self.engine.load_tables(*self.guest_tables())
                elif linear == at.BELL_LOOP_TABLES:
                    self.engine.load_tables(*_LOOP_TABLES)
                elif linear == at.BELL_LDT:
                    self.map_ldt(cpu.cr2 - at.LDT_WINDOW)
                elif linear == at.BELL_TRAP:
                    self.inside.trap()
                elif linear == at.BELL_CALL:
                    self.inside.call()
                elif linear == at.BELL_KILLED:
                    self.inside.kill()
                else:
                    raise HarnessError(f"a fault in ring 0, with the record at {cpu.rbp:#x}")
            except BaseException as failure:
                self.engine.fail(failure)
        return doorbell

    def row(self) -> int:
        """The number of the record that the loop is at."""
        row: int = (self.engine.cpu.rbp - at.RECORDS) // (4 * RECORD_WORDS)
        return row

    def hypercall(self) -> None:
        """Make the hypercall of a guest that runs as itself: registers in, EAX out."""
        hypervisor, cpu = self.hypervisor, self.engine.cpu
        cpu.rax = hypervisor.calls[cpu.rax & 0xFF](cpu.rbx, cpu.rcx, cpu.rdx) & 0xFFFFFFFF
        hypervisor.chosen.clear()
        if hypervisor.descriptors.ldt_due:
            hypervisor.descriptors.map_due()
        if hypervisor.flush_due:
            self.flush()

    def keep_choice(self) -> None:
        """Keep the frames that a hypercall handed out, for its outcome."""
        self.chose[self.row()] = tuple(self.hypervisor.chosen)
        self.hypervisor.chosen.clear()

    def guest_tables(self) -> tuple[tuple[int, int], Segment]:
        """GDTR and LDTR of the current domain."""
        gdt, entries = self.hypervisor.descriptors.in_force()
        if not entries:
            return gdt, _NO_LDT
        return gdt, Segment(at.LDT_SELECTOR, DESCRIPTORS[at.LDT_SELECTOR] & ~0xFFFF | 8 * entries - 1)

    def map_ldt(self, offset: int) -> None:
        """The processor looked for a descriptor in a page of the LDT that is not mapped: map it, if that can be done (W-37)."""
        self.hypervisor.ram[_LDT_MAPPED] = self.hypervisor.descriptors.map_ldt(offset // PAGE_SIZE)
        if self.hypervisor.flush_due:
            self.flush()

    def prepare(self) -> None:
        """Tell the next record, which stores an instruction, where CS:EIP lies."""
        at_record = _FIRST_RECORD + RECORD_WORDS * self.row()
        ram = self.hypervisor.ram
        ram[at_record + RECORD_WORDS + 1] = self.transfers.locate(ram[at_record + 2], ram[at_record + 3])

    def flush(self) -> None:
        """Load CR3 of the current domain, which flushes the TLB."""
        self.engine.load_cr3(self.hypervisor.root << 2)
        self.hypervisor.tlb_flushed()

    def serve(self, request: int) -> None:
        """Do what the loop asks of the harness: end the run, forget decoded code, or switch to a domain (W-18)."""
        if request == at.END:
            self.engine.stop()
        elif request == at.FORGET_CODE:
            for f in self.hypervisor.written:
                self.engine.forget_code(f)
        elif request == at.PREPARE:
            self.prepare()
        elif request == at.TRANSFER:
            self.transfer_due = True
            self.engine.stop()
        else:
            self.hypervisor.switch_to(request)
            self.flush()
