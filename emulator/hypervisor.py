"""The hypervisor: pages, page tables and hypercalls over flat arrays; it knows nothing of the engine.

RAM is one array of words that guests and hypervisor share.  A frame is one word of 64 bits in the layout of
`spec.vocabulary.pack_frame`; scalars go through memoryviews, whole tables through numpy.  A frame without typed references
keeps the type it last had, for the flush rule W-9.  What a reset must undo is noted where it happens.
"""
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from emulator.boot import Boot
from emulator.descriptors import Descriptors
from emulator.errors import HarnessError
from emulator.pool import Pool
from emulator.traps import Traps
from emulator.words import (
    BOTH,
    FRAME,
    GENERAL_REF,
    L1,
    L1_ILLEGAL,
    L2,
    L2_ILLEGAL,
    LDT,
    NO_DOMAIN,
    OWNER,
    PINNED,
    REFS,
    TYPE,
    TYPED,
    WRITABLE,
    XEN_SLOT,
)
from spec.abi import EFAULT, EINVAL, ENOMEM, ENOSYS, PAGE_SIZE, RW, P, Xen2003
from spec.vocabulary import FREE_FRAME

# --- names of the interface that the hot paths use
HOLE: Final = Xen2003.HOLE
GUEST_END: Final = Xen2003.GUEST_END
NORMAL: Final = Xen2003.NORMAL
MACHPHYS: Final = Xen2003.MACHPHYS
EXTENDED: Final = Xen2003.EXTENDED

FEW: Final = 12                         # entries up to which a plain loop is faster than numpy

_ZERO_PAGE: Final = bytes(PAGE_SIZE)


class Hypervisor:
    """The memory interface of Xen 1.2 as RULINGS.md holds it, for all domains of one machine.

    `invlpg` drops a translation; `fourth` reads a hypercall's fourth argument, which only one of them has.
    """

    def __init__(self, ram: memoryview, boot: Boot, invlpg: Callable[[int], None], fourth: Callable[[], int]) -> None:
        self.boot = boot
        self.frames = boot.setup.frames
        self.bytes = ram
        self.ram: Any = ram.cast("B").cast("I")
        self.nram: NDArray[np.uint32] = np.frombuffer(ram, np.uint32)
        self.npg: NDArray[np.uint64] = boot.words.copy()
        self.pg: Any = self.npg.data                        # the same words: scalar access is much faster than numpy's
        self.m2p: Any = self.ram[boot.m2p_word:boot.m2p_word + self.frames]
        self.nidle_since: NDArray[np.int64] = np.full(self.frames, -1, np.int64)
        self.idle_since: Any = self.nidle_since.data        # TLB clock when the typed references last fell to 0
        self.invlpg = invlpg
        self.fourth = fourth
        self.clock = 0                                      # TLB flushes so far
        self.flush_due = False                              # flush the TLB before the guest runs again
        self.journal: list[tuple[Any, Any]] | None = None   # words of frames before a validation that may yet fail
        self.chosen: list[int] = []                         # frames that the present hypercall handed out
        self.written: set[int] = set()                      # frames whose contents may differ from boot
        self.m2p_before: dict[int, int] = {}
        self.pool = Pool(boot.free_ranges)
        self.base: dict[int, int] = {}
        self.pages: dict[int, int] = {}
        self.descriptors = Descriptors(self, boot.xen_descriptors)
        self.traps = Traps(self, self.descriptors)
        self.calls: list[Callable[[int, int, int], int]] = [self.other_wing] * (Xen2003.LAST_HYPERCALL + 1)
        self.calls += [self.not_assigned] * (256 - len(self.calls))
        self.bind_calls()
        for page, contents in boot.pages.items():
            self.bytes[page * PAGE_SIZE:(page + 1) * PAGE_SIZE] = contents
        self.nram[boot.m2p_word:boot.m2p_word + self.frames] = boot.m2p
        self._start()

    def bind_calls(self) -> None:
        """Fill in the hypercall table, which the low 8 bits of EAX index (W-21)."""
        self.calls[Xen2003.MMU_UPDATE] = self.mmu_update
        self.calls[Xen2003.DOM_MEM_OP] = self.dom_mem_op
        self.calls[Xen2003.MULTICALL] = self.multicall
        self.calls[Xen2003.UPDATE_VA_MAPPING] = self.update_va_mapping
        self.calls[Xen2003.SET_GDT] = self.descriptors.set_gdt
        self.calls[Xen2003.UPDATE_DESCRIPTOR] = self.descriptors.update_descriptor
        self.calls[Xen2003.SET_TRAP_TABLE] = self.traps.set_trap_table
        self.calls[Xen2003.SET_FAST_TRAP] = self.traps.set_fast_trap
        self.calls[Xen2003.SET_CALLBACKS] = self.traps.set_callbacks
        self.calls[Xen2003.STACK_SWITCH] = self.traps.stack_switch
        self.calls[Xen2003.FPU_TASKSWITCH] = self.traps.fpu_taskswitch
        self.calls[Xen2003.SET_DEBUGREG] = self.traps.set_debugreg
        self.calls[Xen2003.GET_DEBUGREG] = self.traps.get_debugreg

    def _start(self) -> None:
        """The domains as they are at boot; no translation is cached."""
        self.base.update(self.boot.base)
        self.pages.update(self.boot.limit)
        self.descriptors.reset()
        self.written.clear()
        self.m2p_before.clear()
        self.pool.reset()
        self.extent = self.boot.extent
        self.flush_due = False
        self.journal = None
        self.tlb_flushed()
        self.switch_to(self.boot.setup.domains[0].domid)

    def reset(self) -> None:
        """Back to the boot state, at the cost of what has changed since."""
        pages = self.boot.pages
        for f in self.written:
            self.bytes[f * PAGE_SIZE:(f + 1) * PAGE_SIZE] = pages.get(f, _ZERO_PAGE)
        for f, word in self.m2p_before.items():
            self.m2p[f] = word
        self.npg[:self.extent] = self.boot.words[:self.extent]
        self._start()

    def suspect_all(self) -> None:
        """Take every frame for changed: a planted bug may have changed it unseen."""
        self.written.update(range(self.boot.setup.xen_frames, self.extent))
        self.extent = self.frames

    def switch_to(self, domid: int) -> None:
        """Make a domain the current one (W-18: the machine then loads CR3)."""
        if domid not in self.base:
            raise HarnessError(f"there is no domain {domid}")
        self.current = domid
        self.caller = domid << 48
        self.root = self.base[domid] << 10                  # the first word of the current root table
        self.descriptors.switched()

    def tlb_flushed(self) -> None:
        """Note that no translation is cached any more."""
        self.clock += 1
        self.flush_due = False

    # --- references (xen-2003.md §3.2) ---------------------------------------------------------------------------------------

    def usable(self, owner: int, word: int) -> bool:
        """A domain may use its own frames, domain 0 those of every domain (W-1)."""
        return word & OWNER == owner or (owner == 0 and word < NO_DOMAIN)

    def retyped(self, f: int, word: int, wanted: int) -> int:
        """The word of an idle frame with another type; flushes if its old use may still be cached (W-9)."""
        if self.idle_since[f] == self.clock:
            self.flush_due = True
        return word & ~TYPE | wanted

    def get_page(self, f: int, rw: int, owner: int) -> bool:
        """Take the references of one L1 entry in a table of `owner`: a writable one makes the frame writable."""
        if f >= self.frames:
            return False
        word: int = self.pg[f]
        if word & OWNER != owner and not self.usable(owner, word):
            return False
        if not rw:
            self.pg[f] = word + GENERAL_REF
            return True
        if word & TYPE != WRITABLE:
            if word & TYPED:
                return False
            word = self.retyped(f, word, WRITABLE)
        self.pg[f] = word + BOTH
        return True

    def put_page(self, f: int, rw: int) -> None:
        """Give back the references of one L1 entry."""
        if not rw:
            self.pg[f] -= GENERAL_REF
            if self.descriptors.ldt_pages and self.pg[f] & TYPED and self.pg[f] & TYPE == LDT:
                self.descriptors.drop_ldt(self.pg[f] >> 48)
            return
        word: int = self.pg[f] - BOTH
        self.pg[f] = word
        if not word & TYPED:
            self.idle_since[f] = self.clock

    def get_table(self, f: int, wanted: int, owner: int) -> bool:
        """Take a typed reference on a page table; the first one validates it, and a refusal leaves no trace (W-14)."""
        if f >= self.frames:
            return False
        word: int = self.pg[f]
        if not self.usable(owner, word):
            return False
        if word & TYPED:
            if word & TYPE != wanted:
                return False
            self.note(f, word)
            self.pg[f] = word + BOTH
            return True
        self.note(f, word)
        self.pg[f] = (word if word & TYPE == wanted else self.retyped(f, word, wanted)) + BOTH
        if not (self.validate_l1(f) if wanted == L1 else self.validate_l2(f)):
            self.pg[f] = word
            return False
        self.written.add(f)                                 # from now on the processor sets bits in it
        return True

    def put_table(self, f: int, kind: int) -> None:
        """Give back a typed reference on a page table; the last one gives back what its entries hold."""
        word: int = self.pg[f] - BOTH
        self.pg[f] = word
        if word & TYPED:
            return
        self.idle_since[f] = self.clock
        if kind == L1:
            self.devalidate_l1(f)
        else:
            self.devalidate_l2(f)

    def note(self, frames: Any, words: Any) -> None:
        """Keep what a failing validation must restore."""
        if self.journal is not None:
            self.journal.append((frames, words))

    # --- whole tables (xen-2003.md §3.3) -------------------------------------------------------------------------------------

    def present_entries(self, f: int, slots: int) -> NDArray[np.uint32]:
        """The present entries of a table's first slots."""
        entries = self.nram[f << 10:(f << 10) + slots]
        present: NDArray[np.uint32] = entries[(entries & P) != 0]
        return present

    def validate_l1(self, f: int) -> bool:
        """Check every entry, then take the references of all: taking one never makes another legal or illegal."""
        owner: int = self.pg[f] & OWNER
        entries = self.present_entries(f, 1024)
        if len(entries) <= FEW:
            few: list[int] = entries.tolist()
            return self.validate_few(few, owner)
        frames = entries >> np.uint32(12)
        words = self.npg.take(frames, mode="clip")
        writable = (entries & RW) != 0
        retype = writable & ((words & TYPE) != WRITABLE)
        foreign = words >= NO_DOMAIN if owner == 0 else (words & OWNER) != owner
        if ((frames >= self.frames) | ((entries & L1_ILLEGAL) != 0) | foreign | (retype & ((words & TYPED) != 0))).any():
            return False
        self.note(frames, words)
        if retype.any():
            changing = frames[retype]
            if (self.nidle_since[changing] == self.clock).any():
                self.flush_due = True
            self.npg[changing] = words[retype] & ~np.uint64(TYPE) | np.uint64(WRITABLE)
        np.add.at(self.npg, frames, np.where(writable, np.uint64(BOTH), np.uint64(GENERAL_REF)))
        return True

    def validate_few(self, entries: list[int], owner: int) -> bool:
        """The same entry by entry."""
        for entry in entries:
            if entry & L1_ILLEGAL or not self.mappable(entry >> 12, entry & RW, owner):
                return False
        for entry in entries:
            self.note(entry >> 12, self.pg[entry >> 12])
            self.get_page(entry >> 12, entry & RW, owner)
        return True

    def mappable(self, f: int, rw: int, owner: int) -> bool:
        """`get_page` would succeed."""
        if f >= self.frames:
            return False
        word: int = self.pg[f]
        return self.usable(owner, word) and not (rw and word & TYPED and word & TYPE != WRITABLE)

    def devalidate_l1(self, f: int) -> None:
        """Give back the references of every entry."""
        entries = self.present_entries(f, 1024)
        if len(entries) <= FEW:
            for entry in entries.tolist():
                self.put_page(entry >> 12, entry & RW)
            return
        frames = entries >> np.uint32(12)
        writable = (entries & RW) != 0
        np.subtract.at(self.npg, frames, np.where(writable, np.uint64(BOTH), np.uint64(GENERAL_REF)))
        released = frames[writable]
        self.nidle_since[released[(self.npg[released] & TYPED) == 0]] = self.clock
        if self.descriptors.ldt_pages:
            self.descriptors.unmapped(frames[~writable])

    def validate_l2(self, f: int) -> bool:
        """Take every L1 table from slot 0 upwards, and undo all on the first bad entry (W-22); then put Xen's slots in place."""
        owner: int = self.pg[f] & OWNER
        journal: list[tuple[Any, Any]] = []
        self.journal = journal
        for entry in self.present_entries(f, XEN_SLOT).tolist():
            if not self.take_l2e(f, entry, owner):
                for frames, words in reversed(journal):
                    self.npg[frames] = words
                self.journal = None
                return False
        self.journal = None
        self.write_xen_slots(f)
        return True

    def take_l2e(self, f: int, entry: int, owner: int) -> bool:
        """Take what one present entry of L2 table `f` holds: an L1 table, or nothing if it is a self-map, read-only (W-3)."""
        if entry & L2_ILLEGAL:
            return False
        if entry >> 12 == f:
            return not entry & RW
        return self.get_table(entry >> 12, L1, owner)

    def write_xen_slots(self, f: int) -> None:
        """Put Xen's entries in slots 1008..1023; the self-map is the table's own."""
        first = (f << 10) + XEN_SLOT
        for k, entry in enumerate(self.boot.setup.xen_slots):
            self.ram[first + k] = entry
        self.ram[(f << 10) + Xen2003.LINEAR_SLOT] |= f << 12

    def devalidate_l2(self, f: int) -> None:
        """Give back every L1 table; a self-map holds nothing."""
        for entry in self.present_entries(f, XEN_SLOT).tolist():
            if entry >> 12 != f:
                self.put_table(entry >> 12, L1)

    # --- one entry (xen-2003.md §4.2) ----------------------------------------------------------------------------------------

    def mod_l1_entry(self, i: int, new: int) -> bool:
        """Change the L1 entry at word `i`: take what the new entry needs, then give back what the old one held (W-2)."""
        ram = self.ram
        old: int = ram[i]
        if new & P:
            if new & L1_ILLEGAL:
                return False
            if (old ^ new) & (FRAME | RW | P):
                if not self.get_page(new >> 12, new & RW, self.pg[i >> 10] & OWNER):
                    return False
                if old & P:
                    self.put_page(old >> 12, old & RW)
        elif old & P:
            self.put_page(old >> 12, old & RW)
        ram[i] = new
        self.written.add(i >> 10)
        return True

    def mod_l2_entry(self, i: int, new: int) -> bool:
        """Change the L2 entry at word `i`, likewise; a self-map is never writable (W-3)."""
        f = i >> 10
        old: int = self.ram[i]
        if i & 1023 >= XEN_SLOT:
            return False
        if not new & P:
            if old & P:
                self.put_l2e(f, old)
        elif (old ^ new) & (FRAME | P):
            if not self.take_l2e(f, new, self.pg[f] & OWNER):
                return False
            if old & P:
                self.put_l2e(f, old)
        elif new & L2_ILLEGAL or (new & RW and new >> 12 == f):
            return False
        self.ram[i] = new
        self.written.add(f)
        return True

    def put_l2e(self, f: int, entry: int) -> None:
        """Give back what one present entry of L2 table `f` holds."""
        if entry >> 12 != f:
            self.put_table(entry >> 12, L1)

    # --- guest memory (W-15) -------------------------------------------------------------------------------------------------

    def walk(self, va: int) -> int:
        """The word of RAM that a linear address names in the current tables, or -1."""
        ram = self.ram
        pde: int = ram[self.root + (va >> 22)]
        if pde & P:
            pte: int = ram[(pde >> 12 << 10) + (va >> 12 & 1023)]
            if pte & P:
                return (pte >> 12 << 10) + (va >> 2 & 1023)
        return -1

    def read(self, va: int, words: int) -> Sequence[int] | None:
        """Some words of guest memory, or None if they cannot be read."""
        if va + 4 * words > GUEST_END:
            return None
        if va & 3 == 0 and (va & 4095) + 4 * words <= PAGE_SIZE:
            i = self.walk(va)
            return None if i < 0 else self.ram[i:i + words]
        data = bytearray()
        for address in range(va, va + 4 * words):
            i = self.walk(address)
            if i < 0:
                return None
            data.append(self.bytes[4 * i + (address & 3)])
        return memoryview(data).cast("I")

    def write(self, va: int, word: int) -> bool:
        """Write one word of guest memory; if either page it lies in cannot be written, nothing is stored."""
        if va + 4 > GUEST_END or not self.writable(va) or not self.writable(va + 3):
            return False
        for address, byte in enumerate(word.to_bytes(4, "little"), va):
            i = self.walk(address)
            self.bytes[4 * i + (address & 3)] = byte
            self.written.add(i >> 10)
        return True

    def writable(self, va: int) -> bool:
        """A linear address is mapped, with RW at both levels."""
        if self.walk(va) < 0:
            return False
        pde: int = self.ram[self.root + (va >> 22)]
        pte: int = self.ram[(pde >> 12 << 10) + (va >> 12 & 1023)]
        return bool(pde & pte & RW)

    # --- hypercalls ----------------------------------------------------------------------------------------------------------

    def not_assigned(self, _: int, __: int, ___: int) -> int:
        """There is no such hypercall."""
        return -ENOSYS

    def other_wing(self, _: int, __: int, ___: int) -> int:
        """A hypercall that programs of this wing do not make; a list that went wrong may name one (W-21)."""
        return -ENOSYS

    def update_va_mapping(self, page: int, value: int, flags: int) -> int:
        """Change the entry that maps a page of the current address space (xen-2003.md §4.5, W-4)."""
        if page >= HOLE >> 12:
            return -EINVAL
        pde: int = self.ram[self.root + (page >> 10)]
        if not pde & P:
            return -EFAULT
        i = (pde >> 12 << 10) + (page & 1023)
        if not (self.mod_l2_entry(i, value) if self.pg[pde >> 12] & TYPE == L2 else self.mod_l1_entry(i, value)):
            return -EINVAL
        if flags:
            self.flush_mapping(page, flags)
        return 0

    def flush_mapping(self, page: int, flags: int) -> None:
        """Flush what the caller of update_va_mapping wants flushed (W-17)."""
        if flags & Xen2003.UVMF_INVLPG:
            self.invlpg(page << 12)
        if flags & Xen2003.UVMF_FLUSH:
            self.flush_due = True

    def mmu_update(self, ptr: int, count: int, _: int = 0) -> int:
        """Carry out requests in order until one cannot be read or is refused; those before it stay (xen-2003.md §4.1, W-20)."""
        if count >> 31:
            return 0
        for at in range(ptr, ptr + 8 * count, 8):
            if at & 7 or at >= GUEST_END:                   # it may cross a page or the end
                request = self.read(at, 2)
                if request is None:
                    return -EFAULT
                done = self.update(request[0], request[1])
            else:
                i = self.walk(at)
                if i < 0:
                    return -EFAULT
                done = self.update(self.ram[i], self.ram[i + 1])
            if not done:
                return -EINVAL
        return 0

    def update(self, ptr: int, value: int) -> bool:
        """Carry out one request; the low two bits of `ptr` say which kind it is."""
        kind = ptr & 3
        if kind == NORMAL:
            i = self.target(ptr)
            return i >= 0 and self.normal_update(i, value)
        if kind == EXTENDED:
            return self.extended(ptr & ~3, value)
        if kind == MACHPHYS:
            return self.machphys_update(ptr >> 12, value)
        i = self.target(ptr)
        return i >= 0 and self.unchecked_update(i, value)

    def target(self, ptr: int) -> int:
        """The word that a request names by its linear address, if the caller may use that frame (W-1, W-7), or -1."""
        if ptr >= HOLE:
            return -1
        i = self.walk(ptr)
        if i < 0:
            return -1
        word: int = self.pg[i >> 10]
        return i if word & OWNER == self.caller or self.usable(self.caller, word) else -1

    def normal_update(self, i: int, value: int) -> bool:
        """Write a word of a table in use, which is then judged, or of a frame without typed references (W-5)."""
        word: int = self.pg[i >> 10]
        if not word & TYPED:
            return self.plain_store(i, value)
        if word & TYPE == L1:
            return self.mod_l1_entry(i, value)
        return word & TYPE == L2 and self.mod_l2_entry(i, value)

    def unchecked_update(self, i: int, value: int) -> bool:
        """Write a word of a frame without typed references; domain 0 only (W-6)."""
        return self.caller == 0 and not self.pg[i >> 10] & TYPED and self.plain_store(i, value)

    def plain_store(self, i: int, value: int) -> bool:
        """Write a word of an idle frame, which thereby turns writable for the flush rule (W-5)."""
        f = i >> 10
        word: int = self.pg[f]
        if word & TYPE != WRITABLE:
            self.pg[f] = self.retyped(f, word, WRITABLE)
        self.ram[i] = value
        self.written.add(f)
        return True

    def machphys_update(self, f: int, value: int) -> bool:
        """Set the machine-to-physical word of a frame (xen-2003.md §4.3)."""
        if f >= self.frames or not self.usable(self.caller, self.pg[f]):
            return False
        self.m2p_before.setdefault(f, self.m2p[f])
        self.m2p[f] = value
        return True

    def extended(self, ptr: int, value: int) -> bool:
        """Carry out an extended command (xen-2003.md §4.4, W-17)."""
        command = value & 0xFF
        f = ptr >> 12
        if command == Xen2003.SET_LDT:
            return self.descriptors.set_ldt(ptr, value >> 8)
        if f >= self.frames:
            return False
        if command == Xen2003.PIN_L1 or command == Xen2003.PIN_L2:
            return self.pin(f, L1 if command == Xen2003.PIN_L1 else L2)
        if command == Xen2003.UNPIN:
            return self.unpin(f)
        if command == Xen2003.NEW_BASEPTR:
            return self.new_baseptr(f)
        if command == Xen2003.TLB_FLUSH:
            self.flush_due = True
            return True
        if command == Xen2003.INVLPG:
            self.invlpg(value & ~0xFF)
            return True
        return False

    def pin(self, f: int, kind: int) -> bool:
        """Keep a frame a validated table until it is unpinned."""
        if self.pg[f] & PINNED or not self.get_table(f, kind, self.caller):
            return False
        self.pg[f] |= PINNED
        return True

    def unpin(self, f: int) -> bool:
        """Give back the reference of the pin."""
        word: int = self.pg[f]
        if not self.usable(self.caller, word) or not word & PINNED:
            return False
        self.pg[f] = word & ~PINNED
        self.put_table(f, word & TYPE)
        return True

    def new_baseptr(self, f: int) -> bool:
        """Switch to another root table."""
        if not self.get_table(f, L2, self.caller):
            return False
        self.put_table(self.base[self.current], L2)
        self.base[self.current] = f
        self.root = f << 10
        self.flush_due = True
        self.descriptors.drop_ldt(self.current)
        return True

    def dom_mem_op(self, ptr: int, _: int = 0, __: int = 0) -> int:
        """Change the domain's reservation (xen-2003.md §11)."""
        operation = self.read(ptr, 3)
        if operation is None:
            return -EFAULT
        op, size, pages = operation
        if op == Xen2003.INCREASE:
            return self.increase(size, pages)
        if op == Xen2003.DECREASE:
            return self.decrease(size, pages)
        return -ENOSYS

    def increase(self, size: int, pages: int) -> int:
        """Hand out free frames, zeroed, and write their numbers to the list; stores that fault are skipped (W-13)."""
        if self.pages[self.current] + size > self.boot.limit[self.current]:
            return -ENOMEM
        if self.pool.free < size + Xen2003.SLACK:
            return -ENOMEM
        given = [self.pool.take() for _ in range(size)]
        for f in given:
            self.hand_out(f)
        self.pages[self.current] += size
        self.chosen += given
        for k, f in enumerate(given):
            self.write(pages + 4 * k, f)
        return size

    def hand_out(self, f: int) -> None:
        """Give a free frame to the current domain; nothing of it may still be cached (W-10)."""
        if self.idle_since[f] == self.clock:
            self.flush_due = True
        self.bytes[f * PAGE_SIZE:(f + 1) * PAGE_SIZE] = _ZERO_PAGE
        self.written.add(f)
        self.pg[f] = self.caller
        self.extent = max(self.extent, f + 1)

    def decrease(self, size: int, pages: int) -> int:
        """Take frames of the list back until one cannot be read or released; those before it stay released (W-12)."""
        for at in range(pages, pages + 4 * size, 4):
            entry = self.read(at, 1)
            if entry is None:
                return -EFAULT
            f = entry[0]
            if f >= self.frames or self.pg[f] & (OWNER | REFS | TYPED) != self.caller:
                return -EINVAL
            self.release(f)
        return size

    def release(self, f: int) -> None:
        """Take back a frame that nothing refers to."""
        self.pg[f] = FREE_FRAME
        self.idle_since[f] = self.clock
        self.pages[self.current] -= 1
        self.pool.give(f)

    def multicall(self, ptr: int, count: int, _: int = 0) -> int:
        """Make the hypercalls of a list, whatever each returns; a nested multicall does nothing (xen-2003.md §2.1, W-11)."""
        for at in range(ptr, ptr + 32 * count, 32):
            entry = self.read(at, 6)                        # the last two words are not used, and not read
            if entry is None:
                return -EFAULT
            nr = entry[0] & 0xFF
            if nr == Xen2003.SET_CALLBACKS:
                self.traps.set_both(entry[1], entry[2], entry[3], entry[4])
            elif nr != Xen2003.MULTICALL:
                self.calls[nr](entry[1], entry[2], entry[3])
        return 0
