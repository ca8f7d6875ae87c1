"""Descriptor tables of Xen 4.17 on the model: set_gdt, update_descriptor, the pages of the LDT (xen-4.17.md §6; X-29 to X-36)."""
from struct import unpack

from refmodel.guest import demand, mark_way
from refmodel.references import Error, put_type
from refmodel.xen417_commands import DONE, LDT_PAGE
from refmodel.xen417_entries import TSegments, TWritable, get_type, is_owned
from refmodel.xen417_memory import MemoryCalls
from refmodel.xen417_pointers import addr_ok
from spec.abi import EINVAL, P, Xen417
from spec.descriptors import (
    adjusted_descriptor,
    install_gdt,
    legal_descriptor,
    map_ldt,
    remove_gdt,
    set_gdt_entries,
    write_descriptor,
)
from spec.frames import mfn_of
from spec.kernel import DomId, Index, Mfn, Refused, check
from spec.tables import write_data
from spec.x86.tlb import flush

X = Xen417
PER_PAGE = 512                              # descriptors
ADDRESSES = 1 << 64


class DescriptorCalls(MemoryCalls):
    """A machine with descriptor tables."""

    @check("DESC-30", source="xen-4.17.md §6.2 do_set_gdt")
    def set_gdt(self, d: DomId, at: int, entries: int) -> int:
        """A GDT ends before Xen's own pages; its pages come as a list of frames, and all of them replace the old ones."""
        demand(entries <= X.RESERVED, "DESC-30.1", EINVAL)          # not into Xen's own pages
        count = -(-entries // PER_PAGE)
        frames = unpack(f"<{count}Q", self.read(d, at, 8 * count)) if count else ()
        self.attempt(self.replace_gdt, d, frames)
        set_gdt_entries(self.s, d, Index(entries))
        flush(self.s, d)
        return 0

    def replace_gdt(self, d: DomId, frames: tuple[int, ...]) -> None:
        """The new pages are taken, each for every place that it has, before the old ones are dropped."""
        s = self.s
        for f in frames:
            self.take_segments(d, Mfn(f))
        old = [Mfn(s.gdt[d, n]) for n in map(Index, range(s.profile.gdt_pages)) if s.has_gdt[d, n]]
        for n in range(len(old)):
            remove_gdt(s, d, Index(n))
        for n, f in enumerate(frames):
            install_gdt(s, d, Index(n), Mfn(f))
        for f in old:
            put_type(s, Mfn(f))

    @check("DESC-31", source="xen-4.17.md §6.2, §6.4")
    def take_segments(self, d: DomId, f: Mfn) -> None:
        """A page of descriptors is the domain's own, and checked."""
        demand(is_owned(self.s, d, f), "DESC-31.1", EINVAL)         # the frame is the domain's own
        get_type(self.s, d, f, TSegments)

    @check("DESC-32", source="xen-4.17.md §6.3 do_update_descriptor")
    def update_descriptor(self, d: DomId, address: int, q: int) -> int:
        """A legal descriptor, adjusted, may be put into the caller's own frame, if that is no page table in use."""
        s, f, i = self.s, Mfn(address >> 12), Index((address & 0xFFF) >> 3)
        demand(address & 7 == 0, "DESC-32.1", EINVAL)               # aligned
        demand(legal_descriptor(s, q), "DESC-32.2", EINVAL)         # the descriptor is legal
        demand(is_owned(s, d, f), "DESC-32.3", EINVAL)              # the frame is the caller's own
        t = TSegments if s.type[f] == TSegments else TWritable      # also of an idle frame, which keeps its type
        self.attempt(get_type, s, d, f, t)
        if t == TSegments:
            write_descriptor(s, d, f, i, q)
        else:
            write_data(s, d, f, i, adjusted_descriptor(s, q))
        put_type(s, f)
        return 0

    # --- the LDT ---

    def map_ldt_page(self, d: DomId, n: Index) -> bool:
        """Map a page that the LDT has for the processor, if it can be; its failure is nobody's error.

        Xen reads the entry through its linear page table, so the processor marks the way to it (X-31).
        """
        va = (self.s.ldt_base[d] + (n << 12)) % ADDRESSES
        refused = len(self.refusals)
        if addr_ok(va):
            mark_way(self.s, d, va, False)
        try:
            self.attempt(self.take_ldt_page, d, n, va)
        except (Error, Refused):
            del self.refusals[refused:]
            self.did.append((LDT_PAGE, "EINVAL"))
            return False
        self.did.append((LDT_PAGE, DONE))
        return True

    @check("DESC-33", source="xen-4.17.md §6.4 pv_map_ldt_shadow_page")
    def take_ldt_page(self, d: DomId, n: Index, va: int) -> None:
        """A page of the LDT is what the kernel's tables say, a checked frame of the domain's own."""
        demand(addr_ok(va), "DESC-33.1", EINVAL)                    # it lies outside Xen's slots
        e = self.leaf_of(d, va)
        demand(e & P != 0, "DESC-33.2", EINVAL)                     # it is mapped
        f = mfn_of(self.s, e)
        self.take_segments(d, f)
        map_ldt(self.s, d, n, f)
