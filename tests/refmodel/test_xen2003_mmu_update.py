"""mmu_update of xen-2003: the batch, each command, what each kind of frame takes (xen-2003.md §4; RULINGS.md)."""
import pytest

from spec.abi import EFAULT, EINVAL, L1, L2, PSE, RW, US, WRITABLE, A, D, G, P, Xen2003
from spec.x86.tlb import tag_of

X = Xen2003
DATA = P | RW | A | D                       # an L1 entry as at boot
MASK = 0xFFFFFFFF


def l1(xen, dom=1):
    return xen.frame(dom, -2)


def l2(xen, dom=1):
    return xen.frame(dom, -1)


def at(xen, page, slot):
    """The linear address of a word of a page, as NORMAL and UNCHECKED name it."""
    return xen.va(page, 4 * slot)


def leaf(xen, slot):
    """The address of an entry of the boot L1 table."""
    return at(xen, xen.pages - 2, slot)


def root(xen, slot):
    """The address of an entry of the boot L2 table."""
    return at(xen, xen.pages - 1, slot)


def refused(xen, *requests, rule, dom=1):
    """A batch is refused with -EINVAL by this rule."""
    assert xen.mmu(dom, *requests) == -EINVAL
    assert xen.refused == [rule]


# --- the batch ---------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("count", [0, 1 << 31, MASK])
def test_count_that_is_not_positive_does_nothing(xen2, count):
    assert xen2.mmu(1, (leaf(xen2, 5), 0), count=count) == 0
    assert xen2.word(l1(xen2), 5) != 0


def test_entries_commit_one_by_one(xen2):
    bad = xen2.frame(2, 0) << 12 | P
    refused(xen2, (leaf(xen2, 5), 0), (leaf(xen2, 6), bad), (leaf(xen2, 7), 0), rule="REF-1.1")
    assert xen2.word(l1(xen2), 5) == 0
    assert xen2.word(l1(xen2), 6) != bad
    assert xen2.word(l1(xen2), 7) != 0


def test_unreadable_request(xen2):
    last = xen2.va(xen2.pages + 1) - 8
    assert xen2.call(1, X.MMU_UPDATE, last, 2, data=((last, (leaf(xen2, 5), 0)),)) == -EFAULT
    assert xen2.refused == ["COPY-1.2"]
    assert xen2.word(l1(xen2), 5) == 0


@pytest.mark.parametrize("ptr", [X.GUEST_END - 4, X.GUEST_END, MASK - 7])
def test_requests_end_where_guest_segments_end(xen2, ptr):
    assert xen2.call(1, X.MMU_UPDATE, ptr, 1) == -EFAULT
    assert xen2.refused == ["COPY-1.1"]


def test_requests_may_lie_in_xens_published_words(xen2):
    """The window is readable (W-15): its words name frame 0's successors, which are no commands that succeed."""
    assert xen2.call(1, X.MMU_UPDATE, X.HOLE, 1) == -EINVAL


def test_request_that_spans_pages(xen2):
    ptr = xen2.va(4) - 4
    assert xen2.call(1, X.MMU_UPDATE, ptr, 1, data=((ptr, (leaf(xen2, 5),)), (ptr + 4, (0,)))) == 0
    assert xen2.word(l1(xen2), 5) == 0


def test_request_at_an_odd_address(xen2):
    ptr, words = xen2.va(2, 1), (leaf(xen2, 5) | 0) << 8
    assert xen2.call(1, X.MMU_UPDATE, ptr, 1, data=((xen2.va(2), (words & MASK, words >> 32, 0)),)) == 0
    assert xen2.word(l1(xen2), 5) == 0


def test_request_in_a_page_that_is_half_mapped(xen2):
    assert xen2.uvm(1, xen2.va(4), 0, X.UVMF_INVLPG) == 0
    ptr = xen2.va(4) - 4
    assert xen2.call(1, X.MMU_UPDATE, ptr, 1, data=((ptr, (leaf(xen2, 5),)),)) == -EFAULT


# --- where NORMAL finds its entry (W-7) --------------------------------------------------------------------------------------

@pytest.mark.parametrize("command", [X.NORMAL, X.UNCHECKED])
def test_address_of_an_entry(xen2, command):
    dom = 0                                 # for whom both commands exist
    for va, rule in ((X.HOLE, "MMU-2.1"), (MASK & ~3, "MMU-2.1"), (0x1000, "MMU-2.2"), (xen2.base + (1 << 20), "MMU-2.2")):
        refused(xen2, (va | command, 0), rule=rule, dom=dom)


def test_entry_is_in_a_frame_that_the_caller_may_use(xen2):
    """Another's frame is mapped by domain 0 only; a table that domain 0 lent cannot be reached otherwise."""
    f = xen2.frame(1, 5)
    assert xen2.uvm(0, xen2.va(5), f << 12 | DATA) == 0
    assert xen2.uvm(0, xen2.va(5), f << 12 | P) == 0
    assert xen2.uvm(1, xen2.va(5), 0) == 0
    assert xen2.mmu(0, (at(xen2, 5, 3), 77)) == 0
    assert xen2.word(f, 3) == 77


# --- frames that are no tables (W-5, W-6) ------------------------------------------------------------------------------------

def read_only(xen, page, dom=1):
    """The page can no longer be written, so its frame is idle."""
    assert xen.uvm(dom, xen.va(page), xen.frame(dom, page) << 12 | P, X.UVMF_INVLPG) == 0
    return xen.frame(dom, page)


def test_idle_frame_takes_any_word(xen2):
    f = read_only(xen2, 5)
    assert xen2.mmu(1, (at(xen2, 5, 3), 0xFFFFFFF3)) == 0
    assert xen2.load(1, xen2.va(5, 12)).value == 0xFFFFFFF3
    assert xen2.count(f) == (WRITABLE, 0, 1)


def test_idle_frame_is_stored_to_whatever_it_last_was(xen2):
    f = read_only(xen2, 5)
    assert xen2.extended(1, X.PIN_L1, f) == 0
    assert xen2.extended(1, X.UNPIN, f) == 0
    assert xen2.mmu(1, (at(xen2, 5, 3), P | PSE)) == 0


def test_writable_frame_in_use_is_not_stored_to(xen2):
    refused(xen2, (at(xen2, 5, 3), 0), rule="MMU-3.1")


def test_unchecked_is_for_the_privileged_and_idle_frames(xen2):
    for dom in (0, 1):
        read_only(xen2, 5, dom)
    refused(xen2, (at(xen2, 5, 3) | X.UNCHECKED, 7), rule="MMU-4.1")
    refused(xen2, (at(xen2, 6, 3) | X.UNCHECKED, 7), rule="MMU-4.2", dom=0)
    refused(xen2, (leaf(xen2, 3) | X.UNCHECKED, 0), rule="MMU-4.2", dom=0)
    assert xen2.mmu(0, (at(xen2, 5, 3) | X.UNCHECKED, 7)) == 0
    assert xen2.load(0, xen2.va(5, 12)).value == 7


# --- L1 entries --------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("bit", [PSE, G])
def test_forbidden_bits(xen2, bit):
    f = xen2.frame(1, 5) << 12
    refused(xen2, (leaf(xen2, 5), f | DATA | bit), rule="WRITE-1.6")       # on the fast path
    refused(xen2, (leaf(xen2, 5), xen2.frame(1, 6) << 12 | DATA | bit), rule="ENTRY-1.1")
    assert xen2.mmu(1, (leaf(xen2, 5), f | RW | bit)) == 0          # not present: anything


@pytest.mark.parametrize("bits", [US, 0x8, 0x10, A, D, 0xE00])
def test_harmless_bits_move_no_reference(xen2, bits):
    f = xen2.frame(1, 5)
    assert xen2.mmu(1, (leaf(xen2, 5), (f << 12 | P | RW) ^ bits)) == 0
    assert xen2.word(l1(xen2), 5) == f << 12 | P | RW | bits
    assert xen2.count(f) == (WRITABLE, 1, 1)


@pytest.mark.parametrize("rw", [0, RW])
def test_frames_that_the_tables_owner_may_not_use(xen2, rw):
    rules = ("TYPE-1.1",) if rw else ("REF-1.1",)
    for f in (xen2.frame(2, 5), xen2.frame(0, 5), 3, xen2.free, 0xFFFFF):
        refused(xen2, (leaf(xen2, 5), f << 12 | P | rw), rule=rules[0])
    assert xen2.count(xen2.frame(1, 5)) == (WRITABLE, 1, 1)


def test_tables_are_mapped_read_only(xen2):
    for f in (l1(xen2), l2(xen2)):
        refused(xen2, (leaf(xen2, 5), f << 12 | P | RW), rule="TYPE-1.6")
        assert xen2.mmu(1, (leaf(xen2, 5), f << 12 | P)) == 0


def test_new_reference_is_taken_before_the_old_is_dropped(xen2):
    f = xen2.frame(1, 5)
    assert xen2.mmu(1, (leaf(xen2, 5), f << 12 | P)) == 0
    assert xen2.count(f) == (WRITABLE, 0, 1)
    assert xen2.mmu(1, (leaf(xen2, 5), f << 12 | P | RW)) == 0
    assert xen2.count(f) == (WRITABLE, 1, 1)
    assert xen2.mmu(1, (leaf(xen2, 5), 0)) == 0
    assert xen2.count(f) == (WRITABLE, 0, 0)


def test_privileged_domain_maps_whom_it_likes(xen2):
    f = xen2.frame(2, 5)
    assert xen2.mmu(0, (leaf(xen2, 5), f << 12 | P | RW)) == 0
    assert xen2.count(f) == (WRITABLE, 2, 2)
    for bad in (3, xen2.free):              # but not Xen's frames, nor free ones (W-1)
        refused(xen2, (leaf(xen2, 5), bad << 12 | P | RW), rule="TYPE-1.1", dom=0)


def test_entries_are_judged_by_what_the_tables_owner_may_use(xen2):
    """Domain 0 edits domain 1's table (W-2)."""
    table = at(xen2, 5, 9)
    assert xen2.uvm(0, xen2.va(5), l1(xen2) << 12 | P) == 0
    refused(xen2, (table, xen2.frame(0, 6) << 12 | P), rule="REF-1.1", dom=0)
    refused(xen2, (table, xen2.frame(2, 6) << 12 | P | RW), rule="TYPE-1.1", dom=0)
    assert xen2.mmu(0, (table, xen2.frame(1, 6) << 12 | P | RW)) == 0
    assert xen2.word(l1(xen2), 9) == xen2.frame(1, 6) << 12 | P | RW


# --- L2 entries --------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("slot", [1008, 1020, 1023])
@pytest.mark.parametrize("val", [0, P | PSE])
def test_xens_slots_are_closed(xen2, slot, val):
    refused(xen2, (root(xen2, slot), val), rule="WRITE-1.5")


@pytest.mark.parametrize("slot", [0, 1007])
def test_slots_below_xens_are_the_guests(xen2, slot):
    assert xen2.mmu(1, (root(xen2, slot), l1(xen2) << 12 | P)) == 0
    assert xen2.count(l1(xen2)) == (L1, 2, 3)


@pytest.mark.parametrize("bit", [PSE, G])
def test_forbidden_bits_of_an_l2_entry(xen2, bit):
    refused(xen2, (root(xen2, 9), l1(xen2) << 12 | P | bit), rule="ENTRY-1.1")
    refused(xen2, (root(xen2, 768), xen2.word(l2(xen2), 768) | bit), rule="WRITE-1.6")


def test_rights_of_an_l2_entry_are_free(xen2):
    before = xen2.count(l1(xen2))
    assert xen2.mmu(1, (root(xen2, 768), l1(xen2) << 12 | P)) == 0
    assert xen2.count(l1(xen2)) == before
    assert xen2.extended(1, X.TLB_FLUSH) == 0
    assert xen2.store(1, xen2.va(5), 0).error == 3


def test_idle_frame_becomes_an_l1_table(xen2):
    data, f = xen2.frame(1, 6), xen2.frame(1, 5)
    xen2.fill(1, 5, {0: data << 12 | P | RW, 9: data << 12 | P, 1023: 0xFFFF_0000})
    read_only(xen2, 5)
    assert xen2.mmu(1, (root(xen2, 9), f << 12 | P | RW)) == 0
    assert xen2.count(f) == (L1, 1, 2)
    assert xen2.count(data) == (WRITABLE, 2, 3)
    assert xen2.load(1, 9 << 22).vector < 0
    assert xen2.mmu(1, (root(xen2, 9), 0)) == 0
    assert xen2.count(f)[1:] == (0, 1)
    assert xen2.count(data) == (WRITABLE, 1, 1)


@pytest.mark.parametrize(("entry", "rule"), [
    (lambda xen: xen.frame(2, 6) << 12 | P, "REF-1.1"),
    (lambda xen: xen.frame(1, 6) << 12 | P | PSE, "ENTRY-1.1"),
    (lambda xen: l1(xen) << 12 | P | RW, "TYPE-1.6"),
    (lambda xen: xen.frame(1, 5) << 12 | P | RW, "TYPE-1.6"),       # itself, writable
])
def test_bad_l1_table_leaves_no_trace(xen2, entry, rule):
    xen2.fill(1, 5, {0: xen2.frame(1, 6) << 12 | P | RW, 1000: entry(xen2)})
    read_only(xen2, 5)
    request = (root(xen2, 9), xen2.frame(1, 5) << 12 | P)
    refused(xen2, request, rule=rule)
    before = xen2.trace()
    refused(xen2, request, rule=rule)
    assert xen2.trace() == before
    assert xen2.count(xen2.frame(1, 5)) == (WRITABLE, 0, 1)


@pytest.mark.parametrize("f", ["data", "another's", "Xen's", "none", "an L2"])
def test_l2_entries_name_l1_tables(xen2, f):
    spare = read_only(xen2, 5)
    assert xen2.extended(1, X.PIN_L2, spare) == 0
    frame = {"data": xen2.frame(1, 6), "another's": l1(xen2, 2), "Xen's": 3, "none": 0xFFFFF, "an L2": spare}[f]
    rule = "TYPE-1.6" if f in ("data", "an L2") else "TYPE-1.1"
    refused(xen2, (root(xen2, 9), frame << 12 | P), rule=rule)


def test_self_map_is_read_only_and_not_counted(xen2):
    """W-3: also when its rights change."""
    me, before = l2(xen2) << 12, xen2.count(l2(xen2))
    refused(xen2, (root(xen2, 9), me | P | RW), rule="ENTRY-1.2")
    assert xen2.mmu(1, (root(xen2, 9), me | P)) == 0
    refused(xen2, (root(xen2, 9), me | P | RW), rule="WRITE-1.7")
    assert xen2.count(l2(xen2)) == before
    assert xen2.load(1, 9 << 22 | 9 << 12 | 9 * 4).value & ~A == me | P
    assert xen2.store(1, 9 << 22 | 9 << 12, 0).error == 3


# --- machine-to-physical -----------------------------------------------------------------------------------------------------

def test_machphys(xen2):
    f = xen2.frame(1, 5)
    assert xen2.mmu(1, (f << 12 | X.MACHPHYS, 0xABC)) == 0
    assert xen2.load(1, X.HOLE + 4 * f).value == 0xABC
    assert xen2.mmu(0, (f << 12 | X.MACHPHYS, 0xDEF)) == 0
    refused(xen2, (2048 << 12 | X.MACHPHYS, 0), rule="MMU-5.1")
    for other in (xen2.frame(2, 5), 3, xen2.free):
        refused(xen2, (other << 12 | X.MACHPHYS, 0), rule="MMU-5.2")


# --- extended commands -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("command", [X.PIN_L3, X.PIN_L4, 9, 0xFF])
def test_unknown_extended_commands(xen2, command):
    refused(xen2, (X.EXTENDED, command), rule="MMU-6.2")


@pytest.mark.parametrize("command", [X.PIN_L1, X.UNPIN, X.NEW_BASEPTR, X.TLB_FLUSH, X.INVLPG, 99])
def test_extended_commands_name_a_frame_that_exists(xen2, command):
    refused(xen2, (2048 << 12 | X.EXTENDED, command), rule="MMU-6.1")


@pytest.mark.parametrize(("command", "kind"), [(X.PIN_L1, L1), (X.PIN_L2, L2)])
def test_pin_and_unpin(xen2, command, kind):
    f = read_only(xen2, 5)
    assert xen2.extended(1, command, f) == 0
    assert xen2.count(f) == (kind, 1, 2)
    assert xen2.m.s.pinned[f]
    assert xen2.extended(1, command, f) == -EINVAL
    assert xen2.refused == ["MMU-7.1"]
    assert xen2.extended(1, X.UNPIN, f) == 0
    assert xen2.count(f)[1:] == (0, 1)
    assert xen2.extended(1, X.UNPIN, f) == -EINVAL
    assert xen2.refused == ["PIN-2.2"]


def test_pin_of_a_table_in_use(xen2):
    assert xen2.extended(1, X.PIN_L1, l1(xen2)) == 0
    assert xen2.count(l1(xen2)) == (L1, 2, 3)
    assert xen2.extended(1, X.UNPIN, l1(xen2)) == 0
    assert xen2.extended(1, X.PIN_L2, l1(xen2)) == -EINVAL
    assert xen2.refused == ["TYPE-1.6"]


@pytest.mark.parametrize("command", [X.PIN_L1, X.UNPIN, X.NEW_BASEPTR])
def test_frames_of_others(xen2, command):
    for f in (l2(xen2, 2), 3, xen2.free):
        assert xen2.extended(1, command, f) == -EINVAL
        expected = {X.PIN_L1: "MMU-7.1" if f == l2(xen2, 2) else "TYPE-1.1", X.UNPIN: "MMU-8.1", X.NEW_BASEPTR: "TYPE-1.1"}
        assert xen2.refused == [expected[command]]


def test_privileged_domain_pins_for_another(xen2):
    f = read_only(xen2, 5)
    assert xen2.extended(0, X.PIN_L1, f) == 0
    assert xen2.m.s.pinned[f]
    assert xen2.extended(0, X.UNPIN, f) == 0


def test_new_base(xen2):
    xen2.fill(1, 5, {768: xen2.word(l2(xen2), 768)})
    f, old = read_only(xen2, 5), l2(xen2)
    before = xen2.m.s.clock[0]
    assert xen2.extended(1, X.NEW_BASEPTR, f) == 0
    assert xen2.m.base_of(1) == f
    assert xen2.count(f) == (L2, 1, 2)
    assert xen2.count(old) == (L2, 1, 2)                            # its pin
    assert xen2.m.s.clock[0] > before
    assert xen2.word(f, 1008) == xen2.word(old, 1008)               # Xen's slots are filled
    assert xen2.extended(1, X.NEW_BASEPTR, f) == 0                  # the present one again
    assert xen2.count(f) == (L2, 1, 2)
    assert xen2.extended(1, X.NEW_BASEPTR, l1(xen2)) == -EINVAL


@pytest.mark.parametrize(("base", "entries", "rule"), [
    (0x1004, 1, "MMU-9.1"), (0x1000, 8193, "MMU-9.2"), (X.GUEST_END - 4096, 513, "MMU-9.3"), (0xFFFFF000, 0, "MMU-9.3"),
])
def test_bad_ldt(xen2, base, entries, rule):
    refused(xen2, (base | X.EXTENDED, X.SET_LDT | entries << 8), rule=rule)


@pytest.mark.parametrize(("base", "entries"), [(0, 0), (0x1000, 8192), (X.GUEST_END - 4096, 512), (0x90000000, 1)])
def test_good_ldt(xen2, base, entries):
    """Its address names no frame, so it may be beyond the last one."""
    assert xen2.mmu(1, (base | X.EXTENDED, X.SET_LDT | entries << 8)) == 0
    assert (xen2.m.s.ldt_base[1], xen2.m.s.ldt_entries[1]) == (base, entries)


# --- the TLB (W-8, W-9, W-17) ------------------------------------------------------------------------------------------------

def stale(xen, page=5):
    """The page is unmapped, and its translation cached still."""
    xen.load(1, xen.va(page))
    assert xen.uvm(1, xen.va(page), 0) == 0


def test_stale_translation_is_a_choice(xen2):
    outcomes = set()
    for option in (0, 1):
        xen2.m.reset()
        xen2.m.choices.begin((option,))
        stale(xen2)
        outcomes.add(xen2.load(1, xen2.va(5)).vector)
        assert xen2.m.choices.taken == [("stale-translation", 2, option)]
    assert outcomes == {-1, 14}


def test_a_fetch_keeps_what_it_found_when_a_load_finds_another(xen2):
    """They may have TLBs of their own."""
    code, old, new = xen2.va(1), xen2.frame(1, 1), xen2.frame(1, 5)
    assert xen2.load(1, code).vector < 0
    assert xen2.execute(1, code).vector < 0
    assert xen2.uvm(1, code, new << 12 | P | RW) == 0
    xen2.m.choices.begin()                      # forget what is likely: the load walks
    assert xen2.load(1, code).value == 0
    cached = [xen2.m.s.tlb[1, tag_of(code >> 12, fetch)] >> 12 for fetch in (False, True)]
    assert cached == [new, old]


@pytest.mark.parametrize(("value", "dropped"), [(X.INVLPG, True), (X.TLB_FLUSH, True)])
def test_flushes(xen2, value, dropped):
    stale(xen2)
    va = xen2.va(5) if value == X.INVLPG else 0
    assert xen2.mmu(1, (X.EXTENDED, value | va)) == 0
    assert (xen2.load(1, xen2.va(5)).vector == 14) == dropped
    assert xen2.m.choices.taken == []


def test_flush_of_another_page_drops_nothing(xen2):
    stale(xen2)
    assert xen2.mmu(1, (X.EXTENDED, X.INVLPG | xen2.va(6))) == 0
    xen2.load(1, xen2.va(5))
    assert xen2.m.choices.taken != []


def test_flush_that_was_asked_for_happens_also_after_an_error(xen2):
    stale(xen2)
    assert xen2.mmu(1, (X.EXTENDED, X.TLB_FLUSH), (X.EXTENDED, 99)) == -EINVAL
    assert xen2.load(1, xen2.va(5)).vector == 14
    assert xen2.m.choices.taken == []


def test_change_of_type_flushes(xen2):
    """No stale translation can write the new table."""
    xen2.store(1, xen2.va(5), 0)
    f = xen2.frame(1, 5)
    assert xen2.uvm(1, xen2.va(5), f << 12 | P) == 0
    assert xen2.extended(1, X.PIN_L1, f) == 0
    assert xen2.store(1, xen2.va(5), P).error == 3
    assert xen2.m.choices.taken == []


def test_switch_of_domains_flushes(xen2):
    stale(xen2)
    xen2.load(2, xen2.va(5))
    assert xen2.load(1, xen2.va(5)).vector == 14
