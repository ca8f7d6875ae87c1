"""What follows from the invariants: memory isolation and page-table validation."""
from spec.abi import NOBODY, RW, WRITABLE, A
from spec.frames import is_checked, may_use, mfn_of
from spec.kernel import DomId, Index, State, Tag, theorem
from spec.tables import is_xen_slot, legal_bits, xen_entry
from spec.x86.paging import THROUGH_XEN, Fault, root_of, walk
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
