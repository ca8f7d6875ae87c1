"""What the processor sees of the current domain's kernel, in Xen's frames: GDT, LDT, TSS, and the fast trap's gate."""
from collections.abc import Mapping
from typing import Any, Final

from emulator import layout as at
from emulator.kernel import NO_HANDLER, Handler, Kernel
from spec.abi import PAGE_SIZE, RW, A, D, P

_ENTRY: Final = P | RW | A | D
_WINDOW: Final = (at.HARNESS_L1_FRAME * PAGE_SIZE >> 2) + at.WINDOW_ENTRY    # the word of RAM that maps the GDT's first page
_PAGES: Final = at.WINDOW_PAGES
_IDT: Final = at.IDT_FRAME * PAGE_SIZE + at.GUEST_IDT_OFFSET >> 2
_STACK: Final = (at.IDT_FRAME * PAGE_SIZE + at.TSS_OFFSET >> 2) + 3     # ESP of ring 1, and then its SS
_NOTHING: Final = (_IDT + 2 * 0x80, 0, 0)
_TRAP_GATE: Final = 0x8F00


class Present:
    """One kernel at a time."""

    def __init__(self, ram: Any) -> None:
        self._ram = ram                         # words
        self._before = _NOTHING                 # where a fast trap's gate is in the IDT, and what was there before

    def show(self, kernel: Kernel) -> None:
        """Let the processor see another kernel; whoever calls this flushes the TLB."""
        self.gdt(kernel.gdt)
        self.ldt(kernel.ldt)
        self.stack(*kernel.stack)
        self.fast_trap(kernel)

    def gdt(self, frames: tuple[int, ...]) -> None:
        """Map the pages of the GDT."""
        for n in range(_PAGES):
            self._ram[_WINDOW + n] = frames[n] << 12 | _ENTRY if n < len(frames) else 0

    def ldt(self, pages: Mapping[int, int]) -> None:
        """Map the pages of the LDT."""
        for n in range(_PAGES):
            self._ram[_WINDOW + _PAGES + n] = pages[n] << 12 | _ENTRY if n in pages else 0

    def stack(self, ss: int, esp: int) -> None:
        """Set the stack on which the kernel is entered."""
        self._ram[_STACK] = esp
        self._ram[_STACK + 1] = ss

    def fast_trap(self, kernel: Kernel) -> None:
        """Put the gate of the kernel's fast trap in the IDT, in place of the one that was there."""
        self._put_gate(*self._before)
        if kernel.fast_trap:
            at_vector = _IDT + 2 * kernel.fast_trap
            self._before = at_vector, self._ram[at_vector], self._ram[at_vector + 1]
            self._put_gate(at_vector, *self.gate(kernel.handlers.get(kernel.fast_trap, NO_HANDLER)))

    def gate(self, handler: Handler) -> tuple[int, int]:
        """The two words of a 32-bit trap gate."""
        return handler.ip & 0xFFFF | handler.cs << 16, handler.ip & 0xFFFF0000 | _TRAP_GATE | (handler.flags & 3) << 13

    def _put_gate(self, i: int, low: int, high: int) -> None:
        self._ram[i] = low
        self._ram[i + 1] = high
