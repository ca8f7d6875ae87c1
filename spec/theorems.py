"""What follows from the invariants: memory isolation, page-table validation, and rings."""
from typing import Final

from spec.abi import DF, NOBODY, RW, WRITABLE, A, Xen417, Xen2003
from spec.descriptors import descriptor_at, is_closed, is_safe, is_xens_place
from spec.frames import is_checked, is_descriptors, may_use, mfn_of
from spec.kernel import DomId, Index, Mfn, State, Tag, predicate, theorem
from spec.rings import CS, SS, found, gate_of, has_page, registers, ring_of, tss_of, xens_descriptor
from spec.tables import is_xen_slot, legal_bits, xen_entry
from spec.x86 import transfers
from spec.x86.descriptors import (
    ACCESSED,
    PRESENT,
    RPL,
    SEGMENT,
    TI,
    base_of,
    dpl_of,
    gate_selector,
    highest,
    is_call_gate,
    is_code,
    is_conforming,
    is_readable,
    type_of,
)
from spec.x86.interrupts import interrupt
from spec.x86.paging import THROUGH_XEN, Fault, root_of, walk
from spec.x86.segments import may_access, may_fetch
from spec.x86.tlb import has_root, in_segment, is_live

# `d` is an unprivileged domain, `va` any address that it can form.


@theorem("ISO-1", keys=("dom", "vaddr", "bool", "bool"), source="SOSP'03 §3.3.3")
def every_walk_ends_in_a_fault_or_an_own_frame(s: State, d: DomId, va: int, user: bool, fetch: bool) -> bool:
    """Whatever its tables say, an unprivileged domain reads and executes only frames that it owns or was lent, or what lies
    behind Xen's slots (W-23)."""
    if s.privileged[d] or not has_root(s, d, user) or not in_segment(s, va):
        return True
    try:
        found, _ = walk(s, root_of(s, d, user), va, user or not s.profile.ring1_kernel, False, fetch)
    except Fault:
        return True
    return found & THROUGH_XEN != 0 or may_use(s, d, mfn_of(s, found))


@theorem("ISO-2", keys=("dom", "vaddr", "bool"), source="SOSP'03 §3.3.3")
def every_writable_walk_ends_in_a_writable_own_frame(s: State, d: DomId, va: int, user: bool) -> bool:
    """Every page that the processor lets an unprivileged domain write is a frame that it may use and that serves as nothing but
    writable memory: never a page table, nor Xen's."""
    if s.privileged[d] or not has_root(s, d, user) or not in_segment(s, va):
        return True
    try:
        found, _ = walk(s, root_of(s, d, user), va, user or not s.profile.ring1_kernel, True, False)
    except Fault:
        return True
    f = mfn_of(s, found)
    return found & THROUGH_XEN == 0 and may_use(s, d, f) and s.type[f] == WRITABLE and s.type_count[f] > 0


@theorem("ISO-3", keys=("dom", "tag"), source="SOSP'03 §3.3.3; xen-4.17.md §3.2")
def no_stale_translation_writes_a_table(s: State, d: DomId, tag: Tag) -> bool:
    """No cached translation, however stale, lets an unprivileged domain write a page table, a table of descriptors, or a frame of
    another domain."""
    if s.privileged[d] or not is_live(s, d, tag) or s.tlb[d, tag] & RW == 0:
        return True
    f = mfn_of(s, s.tlb[d, tag])
    return (may_use(s, d, f) or s.owner[f] == NOBODY) and not is_checked(s, s.type[f])


@theorem("PTV-1", keys=("dom", "vaddr", "bool"), source="SOSP'03 §3.3.3")
def every_entry_walked_was_checked(s: State, d: DomId, va: int, user: bool) -> bool:
    """Every entry that the processor uses lies in a validated table, is within what was checked, and is legal or Xen's own."""
    if s.privileged[d] or not has_root(s, d, user) or not in_segment(s, va):
        return True
    try:
        found, used = walk(s, root_of(s, d, user), va, user or not s.profile.ring1_kernel, False, False)
    except Fault:
        return True
    if found & THROUGH_XEN != 0:
        return True
    for table, i in used:
        t = s.type[table]
        if not (s.validated[table] and i < s.upto[table]):
            return False
        if not (is_xen_slot(s, t, i) or legal_bits(s, t, s.word[table, i])):
            return False
    return True


@theorem("PTV-2", keys=("dom", "bool", "index"), source="xen-2003.md §1; xen-4.17.md §2")
def every_root_has_xens_slots(s: State, d: DomId, user: bool, i: Index) -> bool:
    """Every table that CR3 can hold has all of Xen's slots as Xen made them, but for the accessed bit: Xen is always there.

    Only the window onto the machine-to-physical words may be missing from a root of user mode (X-20).
    """
    if not has_root(s, d, user) or i < s.profile.xen_first or i > s.profile.xen_last:
        return True
    root = root_of(s, d, user)
    if i == s.profile.late_slot and user and not s.opened[root]:
        return True
    return s.word[root, i] | A == xen_entry(s, root, i) | A


# --- rings -------------------------------------------------------------------------------------------------------------------
# `ring` is one of a guest's, `sel` any selector that it can make.

@predicate
def is_guest_ring(ring: int) -> bool:
    """Xen runs in ring 0 alone."""
    return ring >= 1 and ring <= 3


@predicate
def is_below_xen(s: State, q: int) -> bool:
    """A segment outside ring 0, all of which lies below Xen; said without a word of what Xen checks."""
    return q & SEGMENT != 0 and dpl_of(q) != 0 and base_of(q) + highest(q) < s.profile.guest_end


@predicate
def is_ring_of(s: State, ring: int) -> bool:
    """A ring in which guests run."""
    return is_guest_ring(ring) if s.profile.guest_end != 0 else ring == 3


@predicate
def is_guests(s: State, q: int) -> bool:
    """A segment that a guest may have: below Xen; on x86-64, where bases and limits mean nothing, of ring 3."""
    return is_below_xen(s, q) if s.profile.guest_end != 0 else q & SEGMENT != 0 and dpl_of(q) == 3


@theorem("RING-10", keys=("dom",), source="SOSP'03 §3.1")
def no_guest_runs_in_ring_0(s: State, d: DomId) -> bool:
    """A guest that runs has Xen's descriptors within its GDT's limit, is outside ring 0, on a stack of its ring, and its code and
    stack end below Xen."""
    code, stack = s.segment[d, Index(CS)], s.segment[d, Index(SS)]
    if s.profile.guest_end == 0 or code == 0:
        return True
    return (s.gdt_entries[d] >= Xen2003.RESERVED_END and is_guest_ring(ring_of(s, d)) and dpl_of(stack) == ring_of(s, d)
            and is_below_xen(s, code) and is_below_xen(s, stack))


@theorem("RING-11", keys=("dom", "reg", "word", "index", "bool", "bool"), source="SOSP'03 §3.1; xen-2003.md §1")
def every_access_through_a_segment_ends_below_xen(s: State, d: DomId, r: Index, offset: int, size: int, write: bool,
                                                  fetch: bool) -> bool:
    """Every access that the processor allows through a segment register of a guest ends below Xen, and does not wrap around."""
    q = s.segment[d, r]
    allowed = may_fetch(q, offset, size) if fetch else may_access(q, offset, size, write)
    return s.profile.guest_end == 0 or not allowed or base_of(q) + offset + size <= s.profile.guest_end


@theorem("RING-12", keys=("dom", "selector"), source="SOSP'03 §3.1; xen-2003.md §5")
def every_descriptor_in_force_is_legal_or_xens(s: State, d: DomId, sel: int) -> bool:
    """Whatever a selector of a guest finds in its GDT and its LDT is legal, or one of Xen's own of ring 0, where Xen has them; on
    x86-64 Xen has pages of its own, of which a guest has none."""
    q = found(s, d, sel)
    if s.profile.guest_end == 0:
        return is_safe(s, q) and (sel & TI != 0 or sel >> 3 < Xen417.RESERVED or not has_page(s, d, sel))
    return is_safe(s, q) or is_closed(sel, q)


@predicate
def can_load(q: int, sel: int, ring: int) -> bool:
    """The processor would load the segment, jump to it, or return to it, for a program in a ring."""
    if q & PRESENT == 0:
        return False
    if is_code(q) and (transfers.may_enter(q, sel, ring) or transfers.may_return(q, sel, ring)):
        return True
    return is_readable(q) and (is_conforming(q) or (sel & RPL <= dpl_of(q) and ring <= dpl_of(q)))


@theorem("RING-13", keys=("dom", "selector", "index"), source="SOSP'03 §3.1; SDM 3A §5.5-5.8")
def every_segment_that_a_guest_can_load_is_its_own(s: State, d: DomId, sel: int, ring: int) -> bool:
    """Every segment that a guest can load, jump to, call or return to, in any ring, is outside ring 0 and ends below Xen; on
    x86-64 it is of ring 3, as is the guest."""
    if not is_ring_of(s, ring):
        return True
    q = found(s, d, sel)
    return not can_load(q, sel, ring) or is_guests(s, q)


@predicate
def is_entered(q: int, ring: int) -> bool:
    """The processor goes on in this segment, when a gate that a program in a ring uses names it."""
    return is_code(q) and q & PRESENT != 0 and dpl_of(q) <= ring


@theorem("RING-14", keys=("dom", "selector", "index"), source="SOSP'03 §3.1; SDM 3A §5.8.3")
def every_gate_that_a_guest_can_use_leads_to_a_guest(s: State, d: DomId, sel: int, ring: int) -> bool:
    """Whatever else than a segment a guest can use in its tables is a call gate, never a task, and leads to code of a guest's; on
    x86-64 it can use nothing."""
    q = found(s, d, sel)
    if not is_ring_of(s, ring) or q & SEGMENT != 0 or q & PRESENT == 0 or not transfers.may_use(q, sel, ring):
        return True
    if s.profile.guest_end == 0:
        return type_of(q) == 0
    to = found(s, d, gate_selector(q))
    return is_call_gate(q) and (not is_entered(to, ring) or is_below_xen(s, to))


@theorem("RING-15", keys=("dom", "vector", "index"), source="SOSP'03 §3.2.2; xen-2003.md §7")
def every_handler_is_a_guests(s: State, d: DomId, v: Index, ring: int) -> bool:
    """Whatever a handler's selector finds when it is entered from a guest's ring, through Xen or past it, is a guest's code; on
    x86-64 the selector is one of ring 3."""
    if s.profile.guest_end == 0:
        return s.trap_cs[d, v] == 0 or s.trap_cs[d, v] & RPL == 3
    if not is_guest_ring(ring):
        return True
    q = found(s, d, s.trap_cs[d, v])
    return s.trap_cs[d, v] == 0 or not is_entered(q, ring) or is_below_xen(s, q)


@theorem("RING-16", keys=("dom", "index"), source="xen-2003.md §1, §5.1 (W-26)")
def xens_descriptors_are_always_in_force(s: State, d: DomId, i: Index) -> bool:
    """While a guest runs, Xen's own descriptors are in the GDT, where the gates of the IDT look for them; on x86-64 their pages
    are never a guest's."""
    if s.profile.guest_end == 0:
        return i < Xen417.RESERVED or i >= Xen2003.MAX_GDT or not has_page(s, d, i << 3)
    if s.segment[d, Index(CS)] == 0 or i < Xen2003.RESERVED or i >= Xen2003.RESERVED_END:
        return True
    return found(s, d, i << 3) | ACCESSED == xens_descriptor(s, i) | ACCESSED


@theorem("RING-17", keys=("dom", "tag", "dom", "page"), source="SOSP'03 §3.1, §3.3.3")
def no_translation_writes_a_descriptor(s: State, d: DomId, tag: Tag, e: DomId, n: Index) -> bool:
    """No cached translation, however stale, of any domain writes a page of a GDT or an LDT that is in force, of any domain."""
    if not is_live(s, d, tag) or s.tlb[d, tag] & RW == 0:
        return True
    f = mfn_of(s, s.tlb[d, tag])
    return not ((s.has_gdt[e, n] and s.gdt[e, n] == f) or (s.has_ldt[e, n] and s.ldt[e, n] == f))


@theorem("RING-18", keys=("frame", "index", "index"), source="xen-2003.md §5; xen-4.17.md §6.1")
def what_a_checked_table_offers_is_a_guests(s: State, g: Mfn, i: Index, ring: int) -> bool:
    """Of what is present in a checked table, outside Xen's own place, a guest can use segments outside ring 0, on x86-64 those of
    ring 3 alone, and call gates, on x86-64 none."""
    if i >= s.upto[g] or not is_descriptors(s, s.type[g]) or is_xens_place(s, g, i) or not is_guest_ring(ring):
        return True
    q = descriptor_at(s, g, i)
    if q & PRESENT == 0:
        return True
    if q & SEGMENT != 0:
        return dpl_of(q) == 3 if s.profile.guest_end == 0 else dpl_of(q) != 0
    if s.profile.guest_end == 0:
        return type_of(q) == 0 or dpl_of(q) < ring
    return is_call_gate(q)


EXCEPTIONS: Final = 32                      # the processor's vectors are below
FLAT_CODE: Final = Xen2003.DESCRIPTORS[Xen2003.XEN_CS >> 3] | ACCESSED
FLAT_STACK: Final = Xen2003.DESCRIPTORS[Xen2003.XEN_DS >> 3] | ACCESSED


@theorem("RING-19", keys=("dom", "vector", "word", "bool"), source="SOSP'03 §3.2.2; xen-2003.md §7.2, §7.4")
def every_trap_gets_to_xen(s: State, d: DomId, v: Index, esp: int, code: bool) -> bool:
    """Whatever interrupts a guest that runs gets to Xen's code on Xen's stack (at `esp`), with an error code or without; but for
    the fast trap, of a vector that is neither the processor's nor Xen's, which gets to code of a guest's, if anywhere."""
    if s.profile.guest_end == 0 or s.segment[d, Index(CS)] == 0 or v == DF or esp & 3 != 0:
        return True
    ring, gate = ring_of(s, d), gate_of(s, d, v)
    if v != 0 and v == s.fast_trap[d]:
        q = found(s, d, gate_selector(gate))
        return v >= EXCEPTIONS and v != Xen2003.HYPERCALL_VECTOR and (not is_entered(q, ring) or is_below_xen(s, q))
    cs, ss = found(s, d, Xen2003.XEN_CS), found(s, d, Xen2003.XEN_DS)
    if cs | ACCESSED != FLAT_CODE or ss | ACCESSED != FLAT_STACK:
        return False
    tss = tss_of(s, d, 0)._replace(esp0=esp)
    try:
        new = interrupt(registers(s, d, 0, 0, 0), lambda sel: FLAT_CODE if sel == Xen2003.XEN_CS else FLAT_STACK, tss, gate, v,
                        False, (0,) if code else ()).registers
    except Fault:
        return False
    return new.cs == (Xen2003.XEN_CS, FLAT_CODE) and new.ss == (Xen2003.XEN_DS, FLAT_STACK)
