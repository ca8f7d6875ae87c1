"""Descriptor tables of Xen 1.2 on the model: set_gdt, update_descriptor, SET_LDT (xen-2003.md §5, §6; W-24 to W-37)."""
from refmodel.guest import demand
from refmodel.machine import Mark
from refmodel.references import Error, drop_ldt, get_type, has_ldt, put_type
from refmodel.xen2003_pointers import Pointers
from spec.abi import EINVAL, LDT_DESC, SEG_DESC, WRITABLE, Xen2003
from spec.descriptors import fill_reserved, install_gdt, legal_descriptor, map_ldt, remove_gdt, set_gdt_entries, write_descriptor
from spec.frames import is_descriptors
from spec.kernel import DomId, FrameType, Index, Mfn, Refused, check
from spec.registers import set_ldt
from spec.tables import write_data
from spec.vocabulary import Hypercall

X = Xen2003
PER_PAGE = 512                              # descriptors
TGdt, TLdt = FrameType(SEG_DESC), FrameType(LDT_DESC)


class DescriptorCalls(Pointers):
    """A machine with descriptor tables.  `ldt_due`: the caller's LDT is another one, and its first page may be mapped (W-36)."""
    ldt_due: bool = False

    def reset(self) -> None:
        """Nothing is due at the start."""
        super().reset()
        self.ldt_due = False

    def rewind(self, mark: Mark) -> None:
        """Nor between two actions."""
        super().rewind(mark)
        self.ldt_due = False

    def call(self, d: DomId, action: Hypercall) -> int:
        """At the end of a hypercall that changed the caller's LDT, or dropped its pages, the first one is mapped again."""
        had = has_ldt(self.s, d)
        value = super().call(d, action)
        if self.ldt_due or (had and not has_ldt(self.s, d)):
            self.ldt_due = False
            if self.s.ldt_entries[d]:
                self.map_ldt_page(d, Index(0))
        return value

    # --- the GDT ---

    @check("DESC-20", source="xen-2003.md §5.1 (W-28)")
    def set_gdt(self, d: DomId, at: int, entries: int) -> int:
        """A GDT has room for Xen's own descriptors; its pages come as a list of frames, and all of them replace the old ones."""
        demand(entries >= X.RESERVED_END, "DESC-20.1", EINVAL)      # Xen's own descriptors are in it
        demand(entries <= X.MAX_GDT, "DESC-20.2", EINVAL)           # not too long
        frames = self.copy_in(d, at, -(-entries // PER_PAGE))
        try:
            self.attempt(self.replace_gdt, d, frames)
        except Refused:
            return -EINVAL
        set_gdt_entries(self.s, d, Index(entries))
        self.flush_due = True
        return 0

    def replace_gdt(self, d: DomId, frames: list[int]) -> None:
        """The new pages are taken, each for every place that it has, before the old ones are dropped."""
        s = self.s
        for n, f in enumerate(frames):
            self.take_gdt_page(d, n, f)
        old = [Mfn(s.gdt[d, Index(n)]) for n in range(s.profile.gdt_pages) if s.has_gdt[d, Index(n)]]
        for n in range(len(old)):
            remove_gdt(s, d, Index(n))
        for n, f in enumerate(frames):
            install_gdt(s, d, Index(n), Mfn(f))
        for f in old:
            put_type(s, f)

    @check("DESC-21", source="xen-2003.md §5.1 (W-25, W-26, W-27)")
    def take_gdt_page(self, d: DomId, n: int, f: int) -> None:
        """A page of a GDT is the caller's own, whoever the caller is, and checked; the first one gets Xen's own descriptors."""
        s, mfn = self.s, Mfn(f)
        demand(f < self.setup.frames, "DESC-21.1", EINVAL)          # the frame exists
        demand(s.owner[mfn] == d, "DESC-21.2", EINVAL)              # it is the caller's own
        get_type(s, d, mfn, TGdt)
        while n == 0 and s.filled[mfn] < s.profile.reserved_words:
            fill_reserved(s, d, mfn)

    @check("DESC-22", source="xen-2003.md §5.2 (W-30)")
    def update_descriptor(self, d: DomId, address: int, low: int, high: int) -> int:
        """A legal descriptor may be put into the caller's own frame, if that is no page table in use, nor the place Xen's."""
        s, f, q = self.s, Mfn(address >> 12), low | high << 32
        demand(address & 7 == 0, "DESC-22.1", EINVAL)               # aligned
        demand(f < self.setup.frames, "DESC-22.2", EINVAL)          # the frame exists
        demand(legal_descriptor(s, q), "DESC-22.3", EINVAL)         # the descriptor is legal
        demand(s.owner[f] == d, "DESC-22.4", EINVAL)                # the frame is the caller's own
        i = Index((address & 0xFFF) >> 2)
        if s.type_count[f] == 0:
            self.store_idle(f, i, low)
            self.store_idle(f, Index(i + 1), high)
        elif is_descriptors(s, s.type[f]):
            self.granted(EINVAL, write_descriptor, s, d, f, i, q)
        else:
            demand(s.type[f] == WRITABLE, "DESC-22.5", EINVAL)      # it is no page table in use
            write_data(s, d, f, i, low)
            write_data(s, d, f, Index(i + 1), high)
        return 0

    # --- the LDT ---

    @check("MMU-9", source="xen-2003.md §4.4 SET_LDT (W-19)")
    def set_ldt(self, d: DomId, base: int, entries: int) -> None:
        """A local descriptor table is page-aligned, of at most 8192 entries, and ends where the guest's segments end."""
        s = self.s
        demand(base & 0xFFF == 0, "MMU-9.1", EINVAL)                # page-aligned
        demand(entries <= X.MAX_LDT, "MMU-9.2", EINVAL)             # not too long
        demand(base + 8 * entries <= X.GUEST_END, "MMU-9.3", EINVAL)    # ends below Xen
        if (base, entries) != (s.ldt_base[d], s.ldt_entries[d]):
            drop_ldt(s, d)
            set_ldt(s, d, base, Index(entries))
            self.ldt_due = True

    def map_ldt_page(self, d: DomId, n: Index) -> bool:
        """Map a page that the LDT has for the processor, if it can be; its failure is nobody's error."""
        refused = len(self.refusals)
        try:
            self.attempt(self.take_ldt_page, d, n)
        except (Error, Refused):
            del self.refusals[refused:]
            return False
        return True

    @check("DESC-23", source="xen-2003.md §6.2 (W-37)")
    def take_ldt_page(self, d: DomId, n: Index) -> None:
        """A page of the LDT is what the present tables say, a checked frame of the domain's own."""
        s = self.s
        f = self.linear(d, s.ldt_base[d] + (n << 12))
        demand(f is not None, "DESC-23.1", EINVAL)                  # it is mapped
        get_type(s, d, Mfn(f or 0), TLdt)
        map_ldt(s, d, n, Mfn(f or 0))
