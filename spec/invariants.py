"""What is true of every state, at every key: the invariants that each transition keeps, and the exact counts."""
from collections.abc import Callable
from typing import Final

from spec.abi import DOMID_XEN, L1, LDT_PAGES, NOBODY, RW, SEG_DESC, US, WRITABLE, P, Xen2003
from spec.callbacks import is_canonical_64, is_guest_debug_64
from spec.descriptors import (
    descriptor_at,
    first_word,
    is_closed,
    is_filled_for,
    is_given,
    is_guest_code_selector,
    is_safe,
    is_xens_place,
    is_xens_word,
    legal_descriptor,
)
from spec.frames import LINEAR, PLAIN, TYPED, is_checked, is_descriptors, is_table, may_name, may_use, may_walk, mfn_of, refers_by
from spec.kernel import CPU, DomId, Index, Mfn, State, Tag, counting, invariant, predicate
from spec.rings import is_fast, is_guest_debug
from spec.tables import is_writable_self_map, is_xen_slot, is_xens, legal_bits, whose
from spec.x86.descriptors import ACCESSED, PRESENT, RPL, SEGMENT, dpl_of, is_code, is_conforming, is_writable
from spec.x86.paging import THROUGH_XEN
from spec.x86.tlb import is_live, is_walking

# --- vocabulary --------------------------------------------------------------------------------------------------------------

@predicate
def waits(s: State, f: Mfn) -> bool:
    """The frame can change neither type nor owner before the next flush."""
    return s.stamp[f] == s.clock[CPU]


@predicate
def within(s: State, d: DomId, f: Mfn) -> bool:
    """The domain may use the frame, or might until it was freed, and it waits in the pool for a flush."""
    if may_use(s, d, f):
        return True
    return (s.owner[f] == NOBODY and waits(s, f)
            and (s.last_owner[f] == d or s.privileged[d] or s.lent[d, f] == s.term[f]))


@predicate
def within_walk(s: State, d: DomId, f: Mfn) -> bool:
    """The same for tables: a walk may be in it, or might be until it was freed."""
    return may_walk(s, d, f) or (s.owner[f] == NOBODY and waits(s, f) and (s.last_owner[f] == d or s.privileged[d]))


@predicate
def walkable(s: State, f: Mfn) -> bool:
    """The table is validated, or was since the last flush: a walk may still be in it."""
    return is_table(s, s.type[f]) and (s.validated[f] or s.gone[f] == s.clock[CPU] + 1)


@predicate
def lower_type(s: State, g: Mfn, e: int) -> bool:
    """The frame named by entry e of upper table g is of the next lower level, or of g's own and named read-only."""
    t, u = s.type[g], s.type[mfn_of(s, e)]
    return u == t - 1 or (s.profile.linear_tables and u == t and e & RW == 0)


# --- pointwise ---------------------------------------------------------------------------------------------------------------

@invariant("FRAME-1", keys=("frame",), source="xen-2003.md §3.1, §3.4; xen-4.17.md §3.2")
def frame_is_consistent(s: State, f: Mfn) -> bool:
    """A frame's type, counts and marks agree: only a fully checked table is validated, only a validated page table is pinned, and
    an unvalidated one is in its validation or draining."""
    t = s.type[f]
    if s.profile.root < t < SEG_DESC or t > WRITABLE:
        return False
    if s.type_count[f] < 0 or s.held[f] < 0 or s.held_type[f] < 0 or s.xen_held[f] < 0:
        return False
    if not is_checked(s, t):
        return s.upto[f] == 0 and not s.validated[f] and not s.pinned[f] and (t >= SEG_DESC or s.type_count[f] == 0)
    if s.pinned[f] and not (s.validated[f] and is_table(s, t)):
        return False
    if is_descriptors(s, t) and first_word(s, s.upto[f]) != s.upto[f]:
        return False
    if s.validated[f]:
        return s.upto[f] == s.profile.entries and s.type_count[f] > 0
    if s.upto[f] > s.profile.entries:
        return False
    # in validation, by its only reference, in flight; or draining
    return s.type_count[f] == 0 or (s.type_count[f] == 1 and s.held_type[f] == 1)


@invariant("FRAME-2", keys=("frame",), source="xen-2003.md §3.1; xen-4.17.md §3")
def free_frame_is_unused(s: State, f: Mfn) -> bool:
    """A frame of no domain has no reference, and refers to nothing."""
    if s.owner[f] == NOBODY or s.owner[f] == DOMID_XEN:
        return s.ref_count[f] == 0 and s.upto[f] == 0 and not s.alloc[f] and s.term[f] >= 0
    return s.term[f] > 0


@invariant("SLOT-1", keys=("frame", "index"), source="SOSP'03 §3.3.3; xen-2003.md §3.3; xen-4.17.md §3.3-3.5")
def checked_entry_is_legal(s: State, g: Mfn, i: Index) -> bool:
    """A checked entry has no forbidden bit and refers to a frame that the table's owner may use: a writable one if the entry is a
    writable mapping, a validated table of the next level, or of one's own domain and level, if it is an upper entry."""
    t = s.type[g]
    if i >= s.upto[g] or not is_table(s, t):
        return True
    e = s.word[g, i]
    if is_xen_slot(s, t, i):
        return is_xens(s, g, i)
    if e & P == 0:
        return True
    if not legal_bits(s, t, e) or is_writable_self_map(s, g, t, e):
        return False
    f = mfn_of(s, e)
    if t != L1 and f == g:
        return True
    if not may_name(s, s.owner[g], t, f):
        return False
    if t == L1:
        return e & RW == 0 or (s.type[f] == WRITABLE and s.type_count[f] > 0)
    return s.validated[f] and lower_type(s, g, e) and (s.type[f] != t or s.owner[f] == s.owner[g])


@invariant("SLOT-2", keys=("frame", "index"), source="SDM 3A §4.10.4")
def left_entry_is_harmless(s: State, g: Mfn, i: Index) -> bool:
    """Until the flush, the entries of a table that a walk may still be in name frames that the table's owner could use."""
    d = whose(s, g)
    if not walkable(s, g) or i >= s.profile.entries:
        return True
    t, e = s.type[g], s.word[g, i]
    if is_xen_slot(s, t, i):
        return is_xens(s, g, i)
    if e & P == 0:
        return True
    if not legal_bits(s, t, e) or is_writable_self_map(s, g, t, e):
        return False
    f = mfn_of(s, e)
    if t != L1 and f == g:
        return True
    if not within(s, d, f):
        return False
    if t == L1:
        return e & RW == 0 or (s.type[f] == WRITABLE and (s.type_count[f] > 0 or waits(s, f)))
    return within_walk(s, d, f) and walkable(s, f) and lower_type(s, g, e)


@invariant("XEN-1", keys=("dom", "index"), source="xen-2003.md §1; xen-4.17.md §2")
def xen_slot_is_closed(s: State, d: DomId, i: Index) -> bool:
    """What Xen keeps in its slots gives a guest no writable way in: segment limits keep it out, or the entry's own bits do."""
    e = s.xen_word[d, i]
    if i < s.profile.xen_first or i > s.profile.xen_last or e & P == 0:
        return True
    if s.profile.guest_end != 0 and (i << 22) >= s.profile.guest_end:
        return True
    return e & RW == 0 or (s.profile.guest_end == 0 and e & US == 0)


@invariant("XEN-2", keys=("dom", "index"), source="xen-2003.md §1")
def xen_slot_leads_to_xen(s: State, d: DomId, i: Index) -> bool:
    """What Xen keeps in its slots are tables of its own, or the table itself, where the processor may mark entries as used."""
    e = s.xen_word[d, i]
    if i < s.profile.xen_first or i > s.profile.xen_last or e & P == 0 or i == s.profile.self_slot:
        return True
    return s.profile.guest_end == 0 or s.owner[mfn_of(s, e)] == DOMID_XEN


@invariant("DESC-10", keys=("frame", "index"), source="SOSP'03 §3.1; xen-2003.md §5; xen-4.17.md §6.1")
def checked_descriptor_is_safe(s: State, g: Mfn, i: Index) -> bool:
    """A checked descriptor gives no privilege and no reach, but for those that Xen filled in."""
    if i >= s.upto[g] or not is_descriptors(s, s.type[g]) or is_xens_place(s, g, i):
        return True
    return is_safe(s, descriptor_at(s, g, i))


@invariant("DESC-11", keys=("frame", "index"), source="xen-2003.md §1, §5.1 (W-26)")
def filled_descriptor_is_xens(s: State, g: Mfn, i: Index) -> bool:
    """Where Xen filled in its own descriptors, they stay."""
    if s.type_count[g] == 0 or not is_descriptors(s, s.type[g]) or not is_xens_place(s, g, i):
        return True
    return is_xens_word(s, i, s.word[g, i])


@invariant("DESC-12", keys=("frame",), source="xen-2003.md §5.1 (W-26)")
def xens_place_is_whole(s: State, f: Mfn) -> bool:
    """Xen fills in whole descriptors, and only in a table that is for a GDT."""
    if s.type_count[f] == 0 or not is_descriptors(s, s.type[f]):
        return True
    n = s.filled[f]
    return n == 0 or (s.type[f] == SEG_DESC and s.validated[f] and first_word(s, n) == n and n <= s.profile.reserved_words)


@invariant("GDT-10", keys=("dom", "page"), source="SOSP'03 §3.1; xen-2003.md §5.1; xen-4.17.md §6.2")
def gdt_is_checked(s: State, d: DomId, n: Index) -> bool:
    """Every page of a GDT is a checked table of the domain's own, and Xen's own descriptors are in the first one."""
    if not s.has_gdt[d, n]:
        return True
    f = s.gdt[d, n]
    return n < s.profile.gdt_pages and s.owner[f] == d and s.type[f] == SEG_DESC and s.validated[f] and is_filled_for(s, n, f)


@invariant("GDT-11", keys=("dom",), source="xen-2003.md §1, §5.1")
def gdt_holds_xens(s: State, d: DomId) -> bool:
    """While a guest runs, its GDT reaches beyond Xen's own descriptors."""
    return s.profile.guest_end == 0 or s.segment[d, Index(1)] == 0 or s.gdt_entries[d] >= Xen2003.RESERVED_END


@invariant("LDT-10", keys=("dom", "page"), source="SOSP'03 §3.1; xen-2003.md §6.2; xen-4.17.md §6.4")
def ldt_is_checked(s: State, d: DomId, n: Index) -> bool:
    """Every mapped page of an LDT is a checked table of the domain's own."""
    if not s.has_ldt[d, n]:
        return True
    f = s.ldt[d, n]
    return n < LDT_PAGES and s.owner[f] == d and s.type[f] == s.profile.last_descriptors and s.validated[f]


@invariant("XEN-3", keys=("index",), source="xen-2003.md §1")
def xens_descriptor_is_closed(s: State, i: Index) -> bool:
    """Xen's own descriptors are of ring 0 and do not conform, but for the flat segments that it gives to guests; its code and
    its data are there, and are all of memory."""
    w = first_word(s, i)
    q = s.xen_descriptor[w] | s.xen_descriptor[Index(i | 1)] << 32
    n = i >> 1
    if s.profile.guest_end == 0 or n < Xen2003.RESERVED or n >= Xen2003.RESERVED_END:
        return True
    if is_given(n):
        return q & SEGMENT != 0 and q & PRESENT != 0 and legal_descriptor(s, q)
    if n == Xen2003.XEN_CS >> 3 or n == Xen2003.XEN_DS >> 3:
        return q | ACCESSED == Xen2003.DESCRIPTORS[257 if n == Xen2003.XEN_CS >> 3 else 258] | ACCESSED
    return q & PRESENT == 0 or (dpl_of(q) == 0 and not is_conforming(q))


@predicate
def is_guest_segment(s: State, q: int) -> bool:
    """A segment, present, and one that a guest may have."""
    return q & PRESENT != 0 and q & SEGMENT != 0 and legal_descriptor(s, q)


@invariant("SEG-12", keys=("dom", "selector"), source="SOSP'03 §3.1; xen-2003.md §5")
def fetched_descriptor_is_the_guests_or_xens(s: State, d: DomId, sel: int) -> bool:
    """Whatever the processor read in a guest's tables is legal, or one of Xen's own of ring 0, by a selector of Xen's."""
    return s.profile.guest_end == 0 or legal_descriptor(s, s.fetched[d, Index(sel)]) or is_closed(sel, s.fetched[d, Index(sel)])


@invariant("SEG-10", keys=("dom", "reg"), source="SOSP'03 §3.1")
def loaded_segment_is_the_guests(s: State, d: DomId, r: Index) -> bool:
    """Whatever is in a segment register of a guest is outside ring 0 and ends below Xen, or is unusable."""
    q = s.segment[d, r]
    return q == 0 or s.profile.guest_end == 0 or is_guest_segment(s, q)


@invariant("SEG-11", keys=("dom",), source="SOSP'03 §3.1")
def guest_runs_in_its_ring(s: State, d: DomId) -> bool:
    """A guest that runs has code in CS, at a ring that this code allows, and its stack is of that ring; it is never ring 0."""
    code, stack, ring = s.segment[d, Index(1)], s.segment[d, Index(2)], s.selector[d, Index(1)] & RPL
    if code == 0 or s.profile.guest_end == 0:
        return True
    if ring == 0 or not is_code(code) or not is_writable(stack) or dpl_of(stack) != ring:
        return False
    return dpl_of(code) <= ring if is_conforming(code) else dpl_of(code) == ring


@invariant("TRAP-10", keys=("dom", "vector"), source="xen-2003.md §7.1")
def handlers_are_the_guests(s: State, d: DomId, v: Index) -> bool:
    """A handler's selector is one for ring 1, and none of Xen's own; or there is none yet."""
    return s.profile.guest_end == 0 or s.trap_cs[d, v] == 0 or is_guest_code_selector(s, s.trap_cs[d, v])


@invariant("CALL-20", keys=("dom", "vector"), source="xen-4.17.md §7.1, §7.5")
def handlers_are_of_ring_3(s: State, d: DomId, v: Index) -> bool:
    """A handler of a 64-bit guest's is called in ring 3, and control can go where it is; or there is none yet."""
    return s.profile.guest_end != 0 or s.trap_cs[d, v] == 0 or (s.trap_cs[d, v] & RPL == RPL and is_canonical_64(s.trap_ip[d, v]))


@invariant("CALL-21", keys=("dom",), source="xen-4.17.md §7.5")
def kernel_stack_is_of_ring_3(s: State, d: DomId) -> bool:
    """The stack segment for entering a 64-bit guest's kernel is of ring 3; or there is none yet."""
    return s.profile.guest_end != 0 or s.kernel_ss[d] == 0 or s.kernel_ss[d] & RPL == RPL


@invariant("TRAP-11", keys=("dom",), source="xen-2003.md §7.4")
def fast_trap_is_nobodys_else(s: State, d: DomId) -> bool:
    """The vector of a fast trap is neither the processor's nor Xen's."""
    return s.fast_trap[d] == 0 or is_fast(s.fast_trap[d])


@invariant("DEBUG-10", keys=("dom", "reg"), source="xen-2003.md §7.8")
def breakpoints_are_the_guests(s: State, d: DomId, r: Index) -> bool:
    """Breakpoints lie below Xen, and are none of input and output or of the debug registers themselves."""
    return s.profile.guest_end == 0 or is_guest_debug(r, s.debug[d, r])


@invariant("DEBUG-11", keys=("dom", "reg"), source="xen-4.17.md §11 set_debugreg")
def breakpoints_are_64_bit_guests(s: State, d: DomId, r: Index) -> bool:
    """Breakpoints of 64-bit guests lie outside Xen's slots, and none that is on is of input and output."""
    return s.profile.guest_end != 0 or is_guest_debug_64(r, s.debug[d, r])


@invariant("BASE-10", keys=("dom",), source="SOSP'03 §3.3.3; xen-2003.md §4.4")
def base_is_a_checked_root(s: State, d: DomId) -> bool:
    """A base register holds a validated root table that the domain may use, and that has all of Xen's slots."""
    if s.has_base[d]:
        f = s.base[d]
        if not (may_walk(s, d, f) and s.type[f] == s.profile.root and s.validated[f]):
            return False
        if s.profile.late_slot >= 0 and not s.opened[f]:
            return False
    if s.has_user[d]:
        f = s.user_base[d]
        if not (s.profile.user_root and may_walk(s, d, f) and s.type[f] == s.profile.root and s.validated[f]):
            return False
    return not (d == NOBODY or d == DOMID_XEN) or not (s.has_base[d] or s.has_user[d])


@invariant("POOL-10", keys=("dom",), source="xen-2003.md §11")
def reservation_is_within_its_limit(s: State, d: DomId) -> bool:
    """A domain never has more frames than its limit."""
    return 0 <= s.pages[d] <= s.limit[d]


@invariant("LEND-10", keys=("dom", "frame"), source="xen-4.17.md §3.4")
def loan_is_of_its_term(s: State, d: DomId, f: Mfn) -> bool:
    """A loan is of the frame's present term or of one that is over: handing the frame out revives none."""
    return s.lent[d, f] <= s.term[f]


@invariant("CLOCK-1", keys=("cpu",), source="SDM 3A §4.10.4.1")
def clock_runs_forward(s: State, c: int) -> bool:
    """A whole flush is also one that spares global entries."""
    return 0 <= s.clock[c] <= s.cr3_clock[c]


@invariant("GONE-1", keys=("frame",), source="SDM 3A §4.10.4")
def mark_is_lost_with_the_references(s: State, f: Mfn) -> bool:
    """A table that was validated since the last flush has lost its references since then, too."""
    if s.gone[f] > s.clock[CPU] + 1 or s.stamp[f] > s.clock[CPU]:
        return False
    return s.gone[f] != s.clock[CPU] + 1 or s.validated[f] or s.stamp[f] == s.clock[CPU]


@invariant("TLB-10", keys=("dom", "tag"), source="SOSP'03 §3.3.3; xen-4.17.md §3.2")
def translation_is_harmless(s: State, d: DomId, tag: Tag) -> bool:
    """A cached translation, stale or not, is to a frame that the domain may use or that waits for a flush; a writable one to a
    frame that is writable, or waits for a flush before it becomes anything else; through Xen's slots none is writable."""
    if s.tlb_clock[d, tag] > s.clock[CPU] or s.tlb_cr3[d, tag] > s.cr3_clock[CPU]:
        return False
    if not is_live(s, d, tag):
        return True
    e = s.tlb[d, tag]
    f = mfn_of(s, e)
    if e & THROUGH_XEN != 0:
        return e & RW == 0
    if not within(s, d, f):
        return False
    return e & RW == 0 or (s.type[f] == WRITABLE and (s.type_count[f] > 0 or waits(s, f)))


@invariant("TLB-11", keys=("dom", "tag"), source="SDM 3A §4.10.3")
def walk_is_in_a_checked_table(s: State, d: DomId, tag: Tag) -> bool:
    """A walk on its way is in a table that is validated or was since the last flush, at its level or, read-only, a lower one."""
    if s.walk_clock[d, tag] > s.clock[CPU]:
        return False
    if not is_walking(s, d, tag):
        return True
    way, number = s.walk[d, tag], s.walk_level[d, tag]
    if not 1 <= number <= s.profile.root:
        return False
    f = mfn_of(s, way)
    if way & THROUGH_XEN != 0:
        if s.profile.guest_end == 0:
            return way & RW == 0            # Xen's own tables go on to the last level
        return way & RW == 0 and number == 1 and (s.owner[f] == DOMID_XEN or walkable(s, f))
    return within_walk(s, d, f) and walkable(s, f) and number <= s.type[f] and (number == s.type[f] or way & RW == 0)


# --- exact counting ----------------------------------------------------------------------------------------------------------
# Ghost sums over all keys of a yes-or-no contribution to frame f (or domain d).

@predicate
def is_counted(s: State, g: Mfn, i: Index) -> bool:
    """The entry of a page table was checked and is not Xen's: it holds what it refers by."""
    return i < s.upto[g] and is_table(s, s.type[g]) and not is_xen_slot(s, s.type[g], i)


def typed_slot(s: State, f: Mfn, g: Mfn, i: Index) -> bool:
    """Entry i of g holds a typed reference to f."""
    e = s.word[g, i]
    return mfn_of(s, e) == f and is_counted(s, g, i) and refers_by(s, g, s.type[g], e) in (TYPED, LINEAR)


def plain_slot(s: State, f: Mfn, g: Mfn, i: Index) -> bool:
    """Entry i of g holds a plain reference to f."""
    e = s.word[g, i]
    return mfn_of(s, e) == f and is_counted(s, g, i) and refers_by(s, g, s.type[g], e) == PLAIN


def linear_from(s: State, f: Mfn, g: Mfn, i: Index) -> bool:
    """Entry i of f itself uses another table of its level."""
    return f == g and is_counted(s, g, i) and refers_by(s, g, s.type[g], s.word[g, i]) == LINEAR


def linear_to(s: State, f: Mfn, g: Mfn, i: Index) -> bool:
    """Entry i of g uses f, a table of its own level."""
    e = s.word[g, i]
    return mfn_of(s, e) == f and is_counted(s, g, i) and refers_by(s, g, s.type[g], e) == LINEAR


def base_of(s: State, f: Mfn, d: DomId) -> bool:
    """f is the base of d."""
    return s.has_base[d] and s.base[d] == f


def user_base_of(s: State, f: Mfn, d: DomId) -> bool:
    """f is the user base of d."""
    return s.has_user[d] and s.user_base[d] == f


def gdt_of(s: State, f: Mfn, d: DomId, n: Index) -> bool:
    """f is page n of d's GDT."""
    return s.has_gdt[d, n] and s.gdt[d, n] == f


def ldt_of(s: State, f: Mfn, d: DomId, n: Index) -> bool:
    """f is page n of d's LDT."""
    return s.has_ldt[d, n] and s.ldt[d, n] == f


def page_of(s: State, d: DomId, f: Mfn) -> bool:
    """f is d's."""
    return s.owner[f] == d


@counting("COUNT-1", keys=("frame",), source="xen-2003.md §3.1; xen-4.17.md §3.2")
def typed_references_are_counted(s: State, f: Mfn, n: dict[str, int]) -> bool:
    """The type count is exactly the typed references: of checked entries, bases, descriptor tables, the pin, Xen's own, and those
    in flight."""
    return s.type_count[f] == (n["typed_slot"] + n["base_of"] + n["user_base_of"] + n["gdt_of"] + n["ldt_of"]
                               + (1 if s.pinned[f] else 0) + s.xen_held[f] + s.held_type[f])


@counting("COUNT-2", keys=("frame",), source="xen-2003.md §3.1; xen-4.17.md §3.1")
def references_are_counted(s: State, f: Mfn, n: dict[str, int]) -> bool:
    """The reference count is exactly the typed references, the read-only mappings, those in flight, and the owner's own."""
    return s.ref_count[f] == s.type_count[f] + n["plain_slot"] + s.held[f] + (1 if s.alloc[f] else 0)


@counting("COUNT-3", keys=("frame",), source="xen-4.17.md §3, §3.5 linear rule")
def linear_uses_exclude_each_other(s: State, f: Mfn, n: dict[str, int]) -> bool:
    """A table that uses others of its level is not used so itself: chains of linear tables do not exist."""
    return (s.linear[f] == n["linear_from"] - n["linear_to"]
            and (n["linear_from"] == 0 or n["linear_to"] == 0))


@counting("COUNT-4", keys=("dom",), source="xen-2003.md §11; xen-4.17.md §10")
def frames_are_counted(s: State, d: DomId, n: dict[str, int]) -> bool:
    """The pages of a domain are the frames that it owns."""
    return s.pages[d] == n["page_of"] or d == NOBODY or d == DOMID_XEN


@invariant("TOKEN-1", keys=("frame",), source="proofs.md: tokens")
def nothing_is_in_flight(s: State, f: Mfn) -> bool:
    """At rest, between two hypercall entries, no reference is in flight."""
    return s.held[f] == 0 and s.held_type[f] == 0


# contribution -> (kind of what it counts for, kinds of the keys it is summed over)
SUMS: Final[dict[Callable[..., bool], tuple[str, tuple[str, ...]]]] = {
        typed_slot: ("frame", ("frame", "index")), plain_slot: ("frame", ("frame", "index")),
        linear_from: ("frame", ("frame", "index")), linear_to: ("frame", ("frame", "index")),
        base_of: ("frame", ("dom",)), user_base_of: ("frame", ("dom",)),
        gdt_of: ("frame", ("dom", "page")), ldt_of: ("frame", ("dom", "page")), page_of: ("dom", ("frame",))}
AT_REST = ("TOKEN-1",)                      # true between entries, not after every transition
