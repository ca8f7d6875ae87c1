"""Descriptor tables: which descriptors a guest may have, and the GDT and LDT of each domain (xen-2003.md §5, §6; W-24 to W-37).

A descriptor is two words.  Its present bit, DPL and type are in the second one.
"""
from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from emulator import layout
from emulator.kernel import Kernel
from emulator.present import Present
from emulator.words import BOTH, GDT, LDT, OWNER, TYPE, TYPED, WRITABLE
from spec.abi import EFAULT, EINVAL, PAGE_SIZE, Xen2003

if TYPE_CHECKING:
    from emulator.hypervisor import Hypervisor

IN_A_PAGE: Final = PAGE_SIZE // 8
RESERVED: Final = range(Xen2003.RESERVED, Xen2003.RESERVED_END)

# --- the second word of a descriptor
PRESENT: Final = 1 << 15
DPL: Final = 3 << 13
SEGMENT: Final = 1 << 12
KIND: Final = 0xF00
CALL_GATE: Final = 0xC00                # of 32 bits
NO_PARAMETERS: Final = 0xE0             # bits of a gate that must be 0
DATA_DIRECTION: Final = 0xC00           # code or data; data that expand down
EXPANDS_DOWN: Final = 0x400
PAGES: Final = 1 << 23                  # the limit counts pages

FEW: Final = 6                          # descriptors up to which a plain loop is faster than numpy


def is_guest_code(selector: int) -> bool:
    """A selector under which a guest's kernel may be entered: Xen's flat segment for it, or one of its own with RPL 1."""
    return selector == Xen2003.RING1_CS or (selector & 3 == 1 and (selector & 4 != 0 or selector >> 3 not in RESERVED))


class Descriptors:
    """The descriptor tables of all domains of one machine."""

    def __init__(self, hypervisor: Hypervisor, xens: tuple[int, ...]) -> None:
        self.hypervisor = hypervisor
        self.xens: NDArray[np.uint32] = np.array(xens, np.uint32)       # the words of Xen's own descriptors
        self.kernels: dict[int, Kernel] = {}    # of the domains that have said anything
        self.ldt_pages = 0                      # mapped pages of LDTs, of all domains
        self.ldt_due = False                    # page 0 of the current domain's LDT is to be mapped before it runs again
        self.present = Present(hypervisor.ram)
        self._shown: Kernel | None = None       # who was last shown to the processor, if that was no fresh kernel

    def reset(self) -> None:
        """No kernel has said anything."""
        self.ldt_pages = 0
        self.ldt_due = False
        if self.kernels:
            self.kernels.clear()
            self._shown = None
            self.present.show(Kernel(0))

    def kernel(self) -> Kernel:
        """The current domain's, to be changed."""
        domid = self.hypervisor.current
        kernel = self.kernels.get(domid)
        if kernel is None:
            kernel = self.kernels[domid] = self._shown = Kernel(domid)
        return kernel

    def switched(self) -> None:
        """Another domain is the current one: the processor sees its tables, stack and gate."""
        self.ldt_due = False
        kernel = self.kernels.get(self.hypervisor.current)
        if kernel is not self._shown:
            self._shown = kernel
            self.present.show(kernel or Kernel(self.hypervisor.current))

    # --- legal descriptors (xen-2003.md §5, W-24) ----------------------------------------------------------------------------

    def legal(self, low: int, high: int) -> bool:
        """A guest may have this descriptor: it is absent, or a segment below Xen outside ring 0, or a gate to its own kernel."""
        if not high & PRESENT:
            return True
        if not high & DPL:
            return False
        if not high & SEGMENT:
            return high & KIND == CALL_GATE and not high & NO_PARAMETERS and is_guest_code(low >> 16)
        if high & DATA_DIRECTION == EXPANDS_DOWN:
            return False
        limit = high & 0xF0000 | low & 0xFFFF
        if high & PAGES:
            limit = limit << 12 | 0xFFF
        return (high & 0xFF000000 | (high & 0xFF) << 16 | low >> 16) + limit < Xen2003.GUEST_END

    def all_legal(self, f: int) -> bool:
        """A guest may have all descriptors in a frame."""
        words = self.hypervisor.nram[f << 10:(f + 1) << 10]
        present = np.flatnonzero(words[1::2] & PRESENT)
        low, high = words[0::2][present], words[1::2][present]
        if len(present) <= FEW:
            return all(map(self.legal, low.tolist(), high.tolist()))
        if not (high & DPL).all():
            return False
        segments = (high & SEGMENT) != 0
        return bool(np.where(segments, self.segments_legal(low, high), self.gates_legal(low, high)).all())

    def segments_legal(self, low: NDArray[np.uint32], high: NDArray[np.uint32]) -> NDArray[np.bool_]:
        """Which of these, all present and outside ring 0, are legal if they are segments."""
        limit = (high & 0xF0000 | low & 0xFFFF).astype(np.uint64)
        limit = np.where(high & PAGES, limit << np.uint64(12) | np.uint64(0xFFF), limit)
        base = (high & 0xFF000000 | (high & 0xFF) << np.uint32(16) | low >> np.uint32(16)).astype(np.uint64)
        legal: NDArray[np.bool_] = (base + limit < Xen2003.GUEST_END) & (high & DATA_DIRECTION != EXPANDS_DOWN)
        return legal

    def gates_legal(self, low: NDArray[np.uint32], high: NDArray[np.uint32]) -> NDArray[np.bool_]:
        """Which of these are legal if they are system descriptors."""
        selector = low >> np.uint32(16)
        place = selector >> np.uint32(3)
        own = (selector & 3 == 1) & ((selector & 4 != 0) | (place < RESERVED.start) | (place >= RESERVED.stop))
        legal: NDArray[np.bool_] = (high & (KIND | NO_PARAMETERS) == CALL_GATE) & (own | (selector == Xen2003.RING1_CS))
        return legal

    # --- references ----------------------------------------------------------------------------------------------------------

    def can_be(self, f: int, kind: int) -> bool:
        """A frame is in use as a table of that kind, or idle and full of legal descriptors (W-25, W-37)."""
        word: int = self.hypervisor.pg[f]
        if word & TYPED:
            return word & TYPE == kind
        return self.all_legal(f)

    def take(self, f: int, kind: int) -> None:
        """Take a reference on a frame that can be a table of that kind."""
        hypervisor = self.hypervisor
        word: int = hypervisor.pg[f]
        hypervisor.pg[f] = (word if word & TYPE == kind else hypervisor.retyped(f, word, kind)) + BOTH
        hypervisor.written.add(f)               # from now on the processor sets bits in it

    def put(self, f: int) -> None:
        """Give back a reference on a table."""
        hypervisor = self.hypervisor
        word: int = hypervisor.pg[f] - BOTH
        hypervisor.pg[f] = word
        if not word & TYPED:
            hypervisor.idle_since[f] = hypervisor.clock

    # --- the GDT (xen-2003.md §5.1, W-25 to W-29) ----------------------------------------------------------------------------

    def set_gdt(self, pointer: int, entries: int, _: int = 0) -> int:
        """Install another GDT; on failure the old one stays."""
        if entries < Xen2003.RESERVED_END or entries > Xen2003.MAX_GDT:
            return -EINVAL
        read = self.hypervisor.read(pointer, (entries + IN_A_PAGE - 1) // IN_A_PAGE)
        if read is None:
            return -EFAULT
        frames = tuple(read)
        kernel = self.kernel()
        if not all(map(self.can_be_gdt, frames)) or not self.keeps_xens_apart(frames, kernel.gdt):
            return -EINVAL
        for f in frames:
            self.take(f, GDT)
        for f in kernel.gdt:
            self.put(f)
        kernel.gdt, kernel.gdt_entries = frames, entries
        self.fill(frames[0])
        self.present.gdt(frames)
        self.hypervisor.flush_due = True
        return 0

    def can_be_gdt(self, f: int) -> bool:
        """A frame of the caller's own, even if that is domain 0, that can be a page of a GDT."""
        hypervisor = self.hypervisor
        return f < hypervisor.frames and hypervisor.pg[f] & OWNER == hypervisor.caller and self.can_be(f, GDT)

    def keeps_xens_apart(self, frames: tuple[int, ...], old: tuple[int, ...]) -> bool:
        """The frame with Xen's own descriptors is a first page and nothing else (W-27)."""
        return frames[0] not in frames[1:] and frames[0] not in old[1:] and not (old and old[0] in frames[1:])

    def fill(self, f: int) -> None:
        """Put Xen's own descriptors into a GDT's first page (W-26)."""
        start = (f << 10) + 2 * RESERVED.start
        self.hypervisor.nram[start:start + len(self.xens)] = self.xens

    # --- one descriptor (xen-2003.md §5.2, W-30) -----------------------------------------------------------------------------

    def update_descriptor(self, address: int, low: int, high: int) -> int:
        """Replace one descriptor, wherever a guest may have one."""
        hypervisor = self.hypervisor
        f = address >> 12
        if address & 7 or f >= hypervisor.frames or not self.legal(low, high):
            return -EINVAL
        word: int = hypervisor.pg[f]
        if word & OWNER != hypervisor.caller:
            return -EINVAL
        i = address >> 2
        if not word & TYPED:
            hypervisor.plain_store(i, low)
            hypervisor.plain_store(i + 1, high)
            return 0
        kind = word & TYPE
        if kind != LDT and kind != WRITABLE and not (kind == GDT and not self.is_xens(f, i >> 1 & IN_A_PAGE - 1)):
            return -EINVAL
        hypervisor.ram[i] = low
        hypervisor.ram[i + 1] = high
        hypervisor.written.add(f)
        return 0

    def is_xens(self, f: int, n: int) -> bool:
        """The n-th descriptor of a frame is one of Xen's own in the current GDT."""
        return n in RESERVED and self.kernel().gdt[:1] == (f,)

    # --- the LDT (xen-2003.md §6, W-19, W-35 to W-37) ------------------------------------------------------------------------

    def set_ldt(self, base: int, entries: int) -> bool:
        """Let the current domain have its LDT elsewhere."""
        if base & (PAGE_SIZE - 1) or entries > Xen2003.MAX_LDT or base + 8 * entries > Xen2003.GUEST_END:
            return False
        kernel = self.kernel()
        if (base, entries) != (kernel.ldt_base, kernel.ldt_entries):
            self.drop_ldt(kernel.domid)
            kernel.ldt_base, kernel.ldt_entries = base, entries
            self.ldt_due = entries != 0
        return True

    def drop_ldt(self, domid: int) -> None:
        """Unmap all pages of a domain's LDT; they are mapped again as they are needed, the first at once (W-35)."""
        kernel = self.kernels.get(domid)
        if kernel is None or not kernel.ldt:
            return
        for f in kernel.ldt.values():
            self.put(f)
        self.ldt_pages -= len(kernel.ldt)
        kernel.ldt.clear()
        self.hypervisor.flush_due = True
        if domid == self.hypervisor.current:
            self.present.ldt(kernel.ldt)
            self.ldt_due = True

    def unmapped(self, frames: NDArray[np.uint32]) -> None:
        """Read-only mappings of these frames were given back: an LDT that they are pages of is dropped."""
        words = self.hypervisor.npg[frames]
        of_ldts: Any = words[((words & TYPE) == LDT) & ((words & TYPED) != 0)] >> np.uint64(48)
        for domid in set(of_ldts.tolist()):
            self.drop_ldt(domid)

    def in_force(self) -> tuple[tuple[int, int], int]:
        """What the processor has while the current domain runs: base and limit of the GDT, entries of the LDT."""
        kernel = self.kernels.get(self.hypervisor.current) or Kernel(self.hypervisor.current)
        base = layout.GDT_WINDOW if kernel.gdt else layout.GDT_BASE
        return (base, 8 * kernel.gdt_entries - 1), kernel.ldt_entries

    def look_up(self, selector: int) -> int:
        """The descriptor that a selector names in the current domain's tables; 0 if they do not hold it."""
        kernel = self.kernels.get(self.hypervisor.current) or Kernel(self.hypervisor.current)
        n, ram = selector >> 3, self.hypervisor.ram
        page, k = divmod(n, IN_A_PAGE)
        if selector & 4:
            f = kernel.ldt.get(page) if n < kernel.ldt_entries else None
        elif kernel.gdt:
            f = kernel.gdt[page] if n < kernel.gdt_entries else None
        else:
            f = layout.GDT_FRAME if n < kernel.gdt_entries else None
        if f is None or selector < 4:
            return 0
        i = (f << 10) + 2 * k
        low, high = ram[i:i + 2]
        return int(low | high << 32)

    def map_due(self) -> None:
        """Map the first page of the current domain's LDT if that can be done (W-36)."""
        self.ldt_due = False
        self.map_ldt(0)

    def map_ldt(self, n: int) -> bool:
        """Map page `n` of the current domain's LDT (W-37)."""
        hypervisor, kernel = self.hypervisor, self.kernel()
        if PAGE_SIZE * n >= 8 * kernel.ldt_entries or n in kernel.ldt:
            return False
        i = hypervisor.walk(kernel.ldt_base + PAGE_SIZE * n)
        if i < 0 or hypervisor.pg[i >> 10] & OWNER != hypervisor.caller or not self.can_be(i >> 10, LDT):
            return False
        self.take(i >> 10, LDT)
        kernel.ldt[n] = i >> 10
        self.ldt_pages += 1
        self.present.ldt(kernel.ldt)
        return True
