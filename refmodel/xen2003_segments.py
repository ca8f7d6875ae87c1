"""Segment registers of guests of Xen 1.2 on the model: what the processor does, and Xen when a page of the LDT is missing."""
from refmodel.xen2003_traps import TrapCalls
from spec.abi import PF, Xen2003
from spec.descriptors import mark_accessed
from spec.kernel import DomId, Index
from spec.rings import SS, enter, fetch, found, has_page, is_unmapped, load_data_segment, load_stack_segment, page_with, reload
from spec.vocabulary import SEGMENT_REGISTERS, LoadSegment, Outcome
from spec.x86.descriptors import ACCESSED, base_of, is_null
from spec.x86.paging import Fault

X = Xen2003
LDT_ENTRY = 265                             # Xen's descriptor of the LDT, from which the window has its address


class SegmentLoads(TrapCalls):
    """A machine whose guests load segment registers."""

    def load_segment(self, action: LoadSegment) -> Outcome:
        """One load in the ring that it is asked for, from the tables in force; then the register is flat again."""
        s, d, r = self.s, DomId(action.dom), Index(SEGMENT_REGISTERS[action.register])
        if action.user:
            self.enter(d, X.RING3_CS, X.RING3_DS)
        try:
            self.find_page(d, action.selector)
            fetch(s, d, action.selector)
            if r == SS:
                load_stack_segment(s, d, action.selector)
            else:
                load_data_segment(s, d, r, action.selector)
            self.mark_loaded(d, action.selector)
        finally:
            if action.user or r == SS:
                self.enter(d, X.RING1_CS, X.RING1_DS)
            if r != SS:
                fetch(s, d, X.RING1_DS)
                reload(s, d, r, X.RING1_DS)
        return Outcome()

    def enter(self, d: DomId, cs: int, ss: int) -> None:
        """Xen lets the guest run with this code and stack."""
        for selector in (cs, ss):
            fetch(self.s, d, selector)
        enter(self.s, d, cs, ss)

    def find_page(self, d: DomId, selector: int) -> None:
        """A page of the LDT that is not mapped faults into Xen, which maps it, or lets the guest have the fault (W-41)."""
        if is_unmapped(self.s, d, selector) and not self.map_ldt_page(d, Index(selector >> 12)):
            low, high = (self.s.xen_descriptor[Index(2 * LDT_ENTRY + n)] for n in (0, 1))
            raise Fault(PF, 0, base_of(low | high << 32) + (selector & 0xFFF8))

    def mark_loaded(self, d: DomId, selector: int) -> None:
        """The processor marks a segment that it loads, if it is not marked yet (W-42)."""
        if not is_null(selector) and has_page(self.s, d, selector) and not found(self.s, d, selector) & ACCESSED:
            mark_accessed(self.s, d, page_with(self.s, d, selector), Index(selector >> 2 & 0x3FE))
