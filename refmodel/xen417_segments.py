"""Segment registers of guests of Xen 4.17 on the model: what the processor does, and Xen when a page of the LDT is missing."""
from refmodel.xen417_traps import TrapCalls
from spec.abi import GP, PF, PF_USER, Xen417
from spec.callbacks import is_canonical_64
from spec.descriptors import mark_accessed
from spec.kernel import DomId, Index, Mfn
from spec.vocabulary import LoadSegment, Outcome
from spec.x86.descriptors import ACCESSED, RPL, SEGMENT, TI, error_code, is_null
from spec.x86.paging import Fault
from spec.x86.segments import load_data, load_stack

X = Xen417
ADDRESSES = 1 << 64
RING = 3                                    # of guests, kernel and applications alike


class SegmentLoads(TrapCalls):
    """A machine whose guests load segment registers."""

    def load_segment(self, action: LoadSegment) -> Outcome:
        """One load, from the tables in force; then the register is as it was."""
        d, selector = DomId(action.dom), action.selector
        if not self.has_page(d, selector):
            self.require_page(d, selector, PF_USER if action.user else 0)
        load = load_stack if action.register == "ss" else load_data
        load(self.found(d, selector), selector, RING)
        self.mark_loaded(d, selector)
        return Outcome()

    def load_quietly(self, d: DomId, selector: int) -> None:
        """Xen loads GS in ring 0, by the selector with RPL 3; if it cannot be loaded, the null selector stands in (X-33)."""
        selector |= 0 if is_null(selector) else RPL
        try:
            if not self.has_page(d, selector):
                self.require_page(d, selector, 0)
            load_data(self.found(d, selector), selector, 0)
        except Fault:
            return
        self.mark_loaded(d, selector)

    # --- the tables in force ---

    def has_page(self, d: DomId, selector: int) -> bool:
        """The look-up meets no page of an LDT that Xen has not mapped yet."""
        if selector & TI == 0 or selector >> 3 >= self.s.ldt_entries[d]:
            return True
        return self.s.has_ldt[d, Index(selector >> 12)]

    def require_page(self, d: DomId, selector: int, user: int) -> None:
        """A page of the LDT that is not mapped faults into Xen, which maps it, or lets the guest have the fault (X-32)."""
        if self.map_ldt_page(d, Index(selector >> 12)):
            return
        address = (self.s.ldt_base[d] + (selector & 0xFFF8)) % ADDRESSES
        if is_canonical_64(address):
            raise Fault(PF, user, address)
        raise Fault(GP, error_code(selector))

    def page_of(self, d: DomId, selector: int) -> Mfn | None:
        """The guest's page with the descriptor, if there is one."""
        s, n = self.s, Index(selector >> 12)
        if selector & TI != 0:
            return s.ldt[d, n] if selector >> 3 < s.ldt_entries[d] and s.has_ldt[d, n] else None
        return s.gdt[d, n] if n < s.profile.gdt_pages and s.has_gdt[d, n] else None

    def found(self, d: DomId, selector: int) -> int:
        """The descriptor that a selector names; 0 where there is none.  Of a GDT whole pages count, whatever its size (X-29)."""
        f = self.page_of(d, selector)
        if f is not None:
            return self.s.word[f, Index(selector >> 3 & 511)]
        return X.DESCRIPTORS.get(selector & ~RPL, 0)

    def mark_loaded(self, d: DomId, selector: int) -> None:
        """The processor marks a segment that it loads, if it is not marked yet."""
        f = None if is_null(selector) else self.page_of(d, selector)
        if f is not None and self.found(d, selector) & (ACCESSED | SEGMENT) == SEGMENT:
            mark_accessed(self.s, d, f, Index(selector >> 3 & 511))
