"""mmu_update of xen-4.17: owners, commands, what each kind of frame takes (xen-4.17.md §3.3-3.5, §4)."""
import pytest

from spec.abi import (
    DOMID_IO,
    DOMID_SELF,
    DOMID_XEN,
    EBUSY,
    EFAULT,
    EINVAL,
    ENOSYS,
    EPERM,
    ESRCH,
    GUEST_KERNEL,
    NX,
    PCD,
    PSE,
    PWT,
    RW,
    US,
    WRITABLE,
    A,
    D,
    G,
    P,
    Xen417,
)

X = Xen417
KERNEL = P | US | A | D | GUEST_KERNEL
ONES = (1 << 40) - 1


def holder(dom):
    """The high half of foreigndom: whose page tables."""
    return (dom + 1) << 16


# --- before the first request, in this order ---------------------------------------------------------------------------------

def test_list_must_start_outside_xens_slots(xen):
    bad = 77 << 16 | 1                      # every later check would fail, too
    assert xen.call(1, X.MMU_UPDATE, X.WINDOW, 1, 0, bad) == -EFAULT
    assert xen.call(1, X.MMU_UPDATE, 1 << 47, 1, 0, bad) == -EFAULT
    assert xen.refused == ["MMU-11.1"]


def test_holder_of_the_tables_must_exist(xen):
    assert xen.mmu(1, (0, 0), foreign=holder(77) | 1) == -ESRCH
    assert xen.refused == ["MMU-11.2"]


@pytest.mark.parametrize("domid", [1, 77, 0x7FF3, 0x7FF4, 0x7FFF])
def test_owner_is_named_by_self_or_by_another_existing_number(xen, domid):
    assert xen.mmu(1, (0, 0), foreign=domid) == -ESRCH
    assert xen.refused == [("WHO-1.1" if domid == 1 else "WHO-1.2")]


def test_own_number_names_the_holder(xen):
    l1 = xen.frame(1, -4)
    assert xen.set(1, l1, 5, 0, foreign=holder(1) | DOMID_SELF) == 0


def test_nothing_is_told_of_a_call_that_fails_before_its_first_request(xen):
    xen.store(1, xen.va(5), 99)
    assert xen.mmu(1, (0, 0), foreign=1, pdone=xen.va(5)) == -ESRCH
    assert xen.load(1, xen.va(5)).value == 99


# --- the batch ---------------------------------------------------------------------------------------------------------------

def test_entries_commit_one_by_one_and_the_number_done_is_told(xen):
    l1, f = xen.frame(1, -4), xen.frame(1, 5)
    xen.store(1, xen.va(6), (1 << 64) - 1)
    good, bad = (l1 << 12 | 8 * 5, 0), (l1 << 12 | 8 * 6, xen.frame(2, 0) << 12 | KERNEL)
    assert xen.mmu(1, good, bad, (l1 << 12 | 8 * 7, 0), pdone=xen.va(6)) == -EBUSY
    assert xen.word(l1, 5) == 0
    assert xen.word(l1, 7) != 0
    assert xen.load(1, xen.va(6)).value == 0xFFFFFFFF00000001       # 32 bits
    assert xen.count(f) == (WRITABLE, 0, 0)


def test_unreadable_request_stops_the_batch(xen):
    l1, at = xen.frame(1, -4), xen.va(xen.pages + 1) - 16           # shared_info is the last page
    data = ((at, (l1 << 12 | 8 * 5, 0)),)
    assert xen.call(1, X.MMU_UPDATE, at, 2, 0, DOMID_SELF, data=data) == -EFAULT
    assert xen.refused == ["COPY-11.2"]
    assert xen.word(l1, 5) == 0


def test_request_may_span_two_pages(xen):
    l1, at = xen.frame(1, -4), xen.va(4) - 8
    data = ((at, (l1 << 12 | 8 * 5,)), (at + 8, (0,)))
    assert xen.call(1, X.MMU_UPDATE, at, 1, 0, DOMID_SELF, data=data) == 0
    assert xen.word(l1, 5) == 0


def test_unwritable_place_for_the_number_done_is_passed_over(xen):
    assert xen.mmu(1, (xen.frame(1, -4) << 12 | 8 * 5, 0), pdone=0x1000) == 0
    assert xen.mmu(1, (xen.frame(1, -4) << 12 | 8 * 6, 0), pdone=X.WINDOW) == 0


def test_empty_batch(xen):
    xen.store(1, xen.va(5), 99)
    assert xen.mmu(1, count=0, pdone=xen.va(5)) == 0
    assert xen.load(1, xen.va(5)).value == 0


@pytest.mark.parametrize("command", [4, 5, 6, 7])
def test_unknown_commands(xen, command):
    assert xen.set(1, xen.frame(1, -4), 5, 0, command) == -ENOSYS
    assert xen.refused == ["MMU-12.1"]


def test_three_is_the_same_as_zero(xen):
    assert xen.set(1, xen.frame(1, -4), 5, 0, X.NO_TRANSLATE) == 0
    assert xen.word(xen.frame(1, -4), 5) == 0


# --- permission, then the frame ----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("foreign", [2, 0, DOMID_XEN, holder(2) | DOMID_SELF, holder(0) | DOMID_SELF, holder(2) | 2])
def test_unprivileged_domain_acts_for_itself_only(xen, foreign):
    assert xen.mmu(1, (xen.frame(1, -4) << 12, 0), foreign=foreign) == -EPERM
    assert xen.refused == ["WHO-2.1"]


def test_device_owner_is_not_asked_about_but_owns_nothing(xen):
    l1 = xen.frame(1, -4)
    assert xen.set(1, l1, 5, 0, foreign=DOMID_IO) == 0
    assert xen.set(1, l1, 5, xen.frame(1, 5) << 12 | KERNEL, foreign=DOMID_IO) == -EBUSY
    assert xen.refused == ["PTE-2.6"]
    assert xen.set(1, l1, 5, 1 << 39 | KERNEL, foreign=DOMID_IO) == -EPERM


@pytest.mark.parametrize("where", ["another's", "Xen's", "free", "no memory"])
def test_frame_that_holds_the_entry_is_the_holders(xen, where):
    f = {"another's": xen.frame(2, -4), "Xen's": 3, "free": xen.free, "no memory": 1 << 30}[where]
    assert xen.set(1, f, 0, 0) == -EINVAL
    assert xen.refused == ["MMU-12.2"]


# --- frames that are no tables -----------------------------------------------------------------------------------------------

def test_writable_frame_takes_any_word(xen):
    f = xen.frame(1, 5)
    assert xen.set(1, f, 7, 0xABCD, X.PRESERVE_AD) == 0             # raw: no bit is kept
    assert xen.load(1, xen.va(5, 56)).value == 0xABCD
    assert xen.count(f) == (WRITABLE, 1, 1)


def test_idle_frame_takes_any_word_and_is_writable_for_that_moment(xen):
    f = xen.new_tables(1, 5, 1, {0: xen.frame(1, 6) << 12 | KERNEL})
    assert xen.ext(1, X.UNPIN, f) == 0
    assert xen.set(1, f, 0, 0xABCD | P | PSE) == 0
    assert xen.count(f) == (WRITABLE, 0, 0)


# --- L1 entries: get_page_from_l1e -------------------------------------------------------------------------------------------

def test_harmless_bits_change_without_a_look_at_the_frame(xen):
    l1 = xen.frame(1, -4)
    for bits in (NX, 1 << 60, 0xE00, G, D, A, US):
        before = xen.count(xen.frame(1, 5))
        assert xen.set(1, l1, 5, (xen.word(l1, 5) & ~US) ^ bits) == 0
        assert xen.count(xen.frame(1, 5)) == before


@pytest.mark.parametrize("bit", [PWT, PCD, PSE])
@pytest.mark.parametrize("dom", [0, 1])
def test_forbidden_bits_in_an_l1_entry_come_first(xen, bit, dom):
    l1 = xen.frame(dom, -4)
    assert xen.set(dom, l1, 5, ONES << 12 | P | bit) == -EINVAL
    assert xen.set(dom, l1, 5, xen.word(l1, 5) | bit) == -EINVAL    # also on the fast path
    assert xen.refused == ["PTE-3.1"]


@pytest.mark.parametrize("dom", [0, 1])
def test_no_memory(xen, dom):
    l1 = xen.frame(dom, -4)
    assert xen.set(dom, l1, 5, ONES << 12 | KERNEL) == -EINVAL
    assert xen.refused == ["PTE-2.2"]
    assert xen.set(dom, l1, 5, 2048 << 12 | KERNEL) == -EPERM
    assert xen.refused == ["PTE-2.3"]


@pytest.mark.parametrize("dom", [0, 1])
@pytest.mark.parametrize("rw", [0, RW])
def test_others_frames_are_busy(xen, dom, rw):
    l1 = xen.frame(dom, -4)
    for f, rule in ((3, "PTE-2.4"), (xen.free, "PTE-2.4"), (xen.frame(2, 5), "PTE-2.5")):
        assert xen.set(dom, l1, 5, f << 12 | KERNEL | rw) == -EBUSY
        assert xen.refused == [rule]


def test_table_can_be_mapped_but_not_written(xen):
    l1 = xen.frame(1, -4)
    for level in range(1, 5):
        f = xen.frame(1, level - 5)
        assert xen.set(1, l1, 5, f << 12 | KERNEL | RW) == -EBUSY
        assert xen.refused == ["PTE-2.7"]
        assert xen.set(1, l1, 5, f << 12 | KERNEL) == 0


def test_new_reference_is_taken_before_the_old_is_dropped(xen):
    l1, f = xen.frame(1, -4), xen.frame(1, 5)
    assert xen.set(1, l1, 5, f << 12 | KERNEL) == 0                 # the same frame, no longer writable
    assert xen.count(f) == (WRITABLE, 0, 1)
    assert xen.set(1, l1, 5, f << 12 | KERNEL | RW) == 0
    assert xen.count(f) == (WRITABLE, 1, 1)
    assert xen.set(1, l1, 5, 0xFFFF_0000) == 0                      # an entry that is not present may hold anything
    assert xen.word(l1, 5) == 0xFFFF_0000
    assert xen.count(f) == (WRITABLE, 0, 0)


def test_refused_entry_leaves_no_trace(xen):
    l1 = xen.frame(1, -4)
    xen.load(1, xen.va(2))
    assert xen.mmu(1, (l1 << 12 | 8 * 5, 2048 << 12 | P)) == -EPERM
    before = xen.trace()
    assert xen.mmu(1, (l1 << 12 | 8 * 5, 2048 << 12 | P)) == -EPERM
    assert xen.trace() == before


def test_shared_info_can_be_mapped_and_never_retyped(xen):
    l1, f = xen.frame(1, -4), xen.shared(1)
    assert xen.set(1, l1, 5, f << 12 | KERNEL | RW) == 0
    for slot in (5, xen.pages):
        assert xen.set(1, l1, slot, 0) == 0
    assert xen.ext(1, X.PIN_L1, f) == -EINVAL


# --- adjustment --------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("written", "read"), [
    (P | RW, P | RW | US | GUEST_KERNEL),                           # a page of the kernel
    (P | RW | G, P | RW | G | US | GUEST_KERNEL),
    (P | RW | US, P | RW | US | G),                                 # a page of an application is global
    (P | RW | US | GUEST_KERNEL, P | RW | US | GUEST_KERNEL),
    (P | NX | 0xE00, P | NX | 0xE00 | US | GUEST_KERNEL),
])
def test_l1_entries_are_adjusted(xen, written, read):
    l1, f = xen.frame(1, -4), xen.frame(1, 5) << 12
    assert xen.set(1, l1, 5, 0) == 0
    for _way in ("slow", "fast"):
        assert xen.set(1, l1, 5, f | written) == 0
        assert xen.word(l1, 5) == f | read


def test_upper_entries_are_adjusted(xen):
    l1, l2, l3, l4 = (xen.frame(1, k) for k in (-4, -3, -2, -1))
    assert xen.set(1, l2, 9, l1 << 12 | P) == 0
    assert xen.word(l2, 9) == l1 << 12 | P | US
    assert xen.set(1, l3, 9, l2 << 12 | P) == 0
    assert xen.word(l3, 9) == l2 << 12 | P | US
    assert xen.set(1, l4, 9, l3 << 12 | P) == 0
    assert xen.word(l4, 9) == l3 << 12 | P | US | A


def test_entries_that_are_not_present_are_not_adjusted(xen):
    l1, l2 = xen.frame(1, -4), xen.frame(1, -3)
    for f in (l1, l2):
        assert xen.set(1, f, 9, RW | PSE) == 0
        assert xen.word(f, 9) == RW | PSE


def test_validation_adjusts_what_it_finds(xen):
    l1 = xen.new_tables(1, 5, 1, {0: xen.frame(1, 6) << 12 | P, 1: xen.frame(1, 7) << 12 | P | US, 2: RW})
    assert xen.word(l1, 0) & 0xFFF == P | US
    assert xen.word(l1, 0) & GUEST_KERNEL
    assert xen.word(l1, 1) & 0xFFF == P | US | G
    assert xen.word(l1, 2) == RW
    l2 = xen.new_tables(1, 8, 2, {3: l1 << 12 | P})
    assert xen.word(l2, 3) == l1 << 12 | P | US


def test_preserve_ad_keeps_accessed_and_dirty(xen):
    l1, f = xen.frame(1, -4), xen.frame(1, 5) << 12
    assert xen.set(1, l1, 5, f | P | RW, X.PRESERVE_AD) == 0
    assert xen.word(l1, 5) == f | P | RW | US | A | D | GUEST_KERNEL
    assert xen.set(1, l1, 5, 0, X.PRESERVE_AD) == 0
    assert xen.word(l1, 5) == A | D
    assert xen.set(1, l1, 5, f | P | RW) == 0
    assert xen.word(l1, 5) & (A | D) == 0


# --- upper entries -----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("slot", [256, 258, 271])
@pytest.mark.parametrize("val", [0, PSE | P])
def test_xens_slots_are_closed(xen, slot, val):
    assert xen.set(1, xen.frame(1, -1), slot, val) == -EINVAL
    assert xen.refused == ["PTE-6.1"]


@pytest.mark.parametrize("slot", [0, 255, 272, 511])
def test_slots_beside_xens_are_the_guests(xen, slot):
    assert xen.set(1, xen.frame(1, -1), slot, xen.frame(1, -2) << 12 | P) == 0


@pytest.mark.parametrize("level", [2, 3, 4])
@pytest.mark.parametrize("bit", [PSE, G, PWT, PCD])
def test_forbidden_bits_in_an_upper_entry(xen, level, bit):
    f, below = xen.frame(1, level - 5), xen.frame(1, level - 6)
    assert xen.set(1, f, 9, below << 12 | P | bit) == -EINVAL
    assert xen.refused == ["PTE-6.2"]


@pytest.mark.parametrize("level", [2, 3, 4])
def test_upper_entries_name_tables_of_the_next_level(xen, level):
    f = xen.frame(1, level - 5)
    for other in range(1, 5):
        expected = 0 if other == level - 1 or other == level else -EINVAL       # its own level: the linear rule
        assert xen.set(1, f, 9, xen.frame(1, other - 5) << 12 | P) == expected
        assert xen.set(1, f, 9, 0) == 0


@pytest.mark.parametrize("level", [2, 3, 4])
@pytest.mark.parametrize(("whose", "rule"), [
    ("data", "PTE-1.1"), ("another's", "PTE-4.3"), ("Xen's", "PTE-4.3"), ("none", "PTE-4.3")])
def test_upper_entries_name_own_frames_that_can_be_tables(xen, level, whose, rule):
    f = {"data": xen.frame(1, 5), "another's": xen.frame(2, level - 6), "Xen's": 3, "none": ONES}[whose]
    assert xen.set(1, xen.frame(1, level - 5), 9, f << 12 | P) == -EINVAL
    assert xen.refused == [rule]


@pytest.mark.parametrize("level", [2, 3, 4])
def test_rights_of_an_upper_entry_are_not_on_the_fast_path(xen, level):
    f, below = xen.frame(1, level - 5), xen.frame(1, level - 6)
    assert xen.set(1, f, 9, below << 12 | P | RW) == 0
    assert xen.set(1, f, 9, below << 12 | P) == 0
    assert xen.set(1, f, 9, below << 12 | P | NX | A) == 0          # and these are
    assert xen.count(below)[1] == 2


@pytest.mark.parametrize(("entry", "errno", "rule"), [
    (lambda xen: xen.frame(2, 5) << 12 | P, EBUSY, "PTE-2.5"),
    (lambda xen: 2048 << 12 | P, EPERM, "PTE-2.3"),
    (lambda xen: xen.frame(1, 6) << 12 | P | PCD, EINVAL, "PTE-2.1"),
    (lambda xen: xen.frame(1, -1) << 12 | P | RW, EBUSY, "PTE-2.7"),
])
def test_why_a_lower_table_is_bad_is_told_unchanged(xen, entry, errno, rule):
    xen.fill(1, 5, {0: xen.frame(1, 6) << 12 | P | RW, 300: entry(xen)})
    assert xen.uvm(1, xen.va(5), 0) == 0
    before = xen.count(xen.frame(1, 6))
    assert xen.set(1, xen.frame(1, -3), 9, xen.frame(1, 5) << 12 | P) == -errno
    assert xen.refused == [rule]
    assert xen.count(xen.frame(1, 6)) == before
    assert xen.count(xen.frame(1, 5))[1:] == (0, 0)


def test_upper_entry_that_goes_empties_the_tables_below(xen):
    data = xen.frame(1, 6)
    xen.fill(1, 5, {0: data << 12 | P | RW})
    assert xen.uvm(1, xen.va(5), 0) == 0
    l1, l2 = xen.frame(1, 5), xen.frame(1, -3)
    assert xen.set(1, l2, 9, l1 << 12 | P) == 0
    assert xen.count(l1) == (1, 1, 1)
    assert xen.count(data) == (WRITABLE, 2, 2)
    assert xen.set(1, l2, 9, 0) == 0
    assert xen.count(l1)[1:] == (0, 0)
    assert xen.count(data) == (WRITABLE, 1, 1)


# --- linear page tables ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("level", [2, 3, 4])
def test_self_map_is_read_only_and_not_counted(xen, level):
    f = xen.frame(1, level - 5)
    before = xen.count(f)
    assert xen.set(1, f, 9, f << 12 | P | RW) == -EINVAL
    assert xen.refused == ["PTE-4.2"]
    assert xen.set(1, f, 9, f << 12 | P) == 0
    assert xen.count(f) == before
    assert xen.set(1, f, 9, f << 12 | P | RW) == -EINVAL            # nor does it become writable later
    assert xen.set(1, f, 9, 0) == 0


def empty(xen, page, level):
    """A pinned table without entries."""
    return xen.new_tables(1, page, level, {})


@pytest.mark.parametrize("level", [2, 3, 4])
def test_linear_entry_uses_another_table_of_its_level(xen, level):
    a, b = empty(xen, 5, level), empty(xen, 6, level)
    assert xen.set(1, a, 9, b << 12 | P | RW) == -EINVAL
    assert xen.refused == ["PTE-1.1"]               # the first reason is told
    assert xen.set(1, a, 9, b << 12 | P) == 0
    assert xen.count(b) == (level, 2, 2)
    assert xen.m.s.linear[a] == 1
    assert xen.m.s.linear[b] == -1


@pytest.mark.parametrize("level", [2, 3, 4])
def test_linear_uses_exclude_each_other(xen, level):
    a, b, c = (empty(xen, page, level) for page in (5, 6, 7))
    assert xen.set(1, a, 9, b << 12 | P) == 0
    assert xen.set(1, b, 9, c << 12 | P) == -EINVAL                 # b is used so itself
    assert xen.set(1, b, 9, a << 12 | P) == -EINVAL
    assert xen.set(1, c, 9, a << 12 | P) == -EINVAL                 # a uses others so
    assert xen.set(1, c, 9, b << 12 | P) == 0                       # b may be used twice
    assert xen.set(1, a, 9, 0) == 0
    assert xen.set(1, b, 9, a << 12 | P) == -EINVAL                 # by c still
    assert xen.set(1, c, 9, 0) == 0
    assert xen.set(1, b, 9, a << 12 | P) == 0


def test_linear_use_of_a_table_that_is_not_in_use(xen):
    a, b = empty(xen, 5, 3), empty(xen, 6, 3)
    assert xen.ext(1, X.UNPIN, b) == 0
    assert xen.set(1, a, 9, b << 12 | P) == 0                       # it is idle, so it becomes an L2
    assert xen.count(b)[0] == 2


def test_validation_follows_the_linear_rule(xen):
    b = empty(xen, 6, 4)
    a = xen.new_tables(1, 5, 4, {9: b << 12 | P, 10: xen.frame(1, 5) << 12 | P})
    assert xen.m.s.linear[a] == 1
    assert xen.m.s.linear[b] == -1
    xen.fill(1, 7, {0: a << 12 | P})
    assert xen.uvm(1, xen.va(7), 0) == 0
    assert xen.ext(1, X.PIN_L4, xen.frame(1, 7)) == -EINVAL         # a uses others so
    assert xen.ext(1, X.UNPIN, a) == 0
    assert xen.m.s.linear[b] == 0


def test_linear_table_shows_tables_and_nothing_can_write_them(xen):
    l4 = xen.frame(1, -1)
    assert xen.set(1, l4, 9, l4 << 12 | P) == 0
    va = 9 << 39 | 9 << 30 | 9 << 21 | 9 << 12 | 8 * 9
    assert xen.load(1, va).value & ~(A | D) == l4 << 12 | P | US
    assert (xen.store(1, va, 0).vector, xen.store(1, va, 0).error) == (14, 7)


# --- for other domains -------------------------------------------------------------------------------------------------------

def test_privileged_domain_maps_anothers_frame_by_naming_its_owner(xen):
    l1, f = xen.frame(0, -4), xen.frame(2, 5)
    assert xen.set(0, l1, 5, f << 12 | KERNEL | RW, foreign=2) == 0
    assert xen.count(f) == (WRITABLE, 2, 2)
    xen.store(0, xen.va(5), 77)
    assert xen.load(2, xen.va(5)).value == 77
    assert xen.set(0, l1, 6, f << 12 | KERNEL | RW) == -EBUSY       # as its own: not
    assert xen.set(0, l1, 6, xen.frame(0, 7) << 12 | KERNEL, foreign=2) == -EBUSY       # 2 may not act on 0
    assert xen.refused == ["PTE-2.6"]


def test_privileged_domain_edits_anothers_tables(xen):
    l1, f = xen.frame(2, -4), xen.frame(2, 7)
    assert xen.set(0, l1, 5, f << 12 | KERNEL, foreign=holder(2) | 2) == 0
    assert xen.load(2, xen.va(5)).vector < 0
    assert xen.set(0, l1, 5, xen.frame(1, 7) << 12 | KERNEL, foreign=holder(2) | 2) == -EBUSY
    assert xen.refused == ["PTE-2.5"]


@pytest.mark.parametrize("level", [2, 3, 4])
def test_upper_entries_have_one_owner(xen, level):
    f, below = xen.frame(2, level - 5), xen.frame(2, level - 6)
    assert xen.set(0, f, 9, below << 12 | P, foreign=holder(2) | 2) == 0
    for foreign in (holder(2) | DOMID_SELF, holder(2) | 1):
        assert xen.set(0, f, 9, 0, foreign=foreign) == -EINVAL
        assert xen.refused == ["MMU-13.1"]


@pytest.mark.parametrize(("owner", "foreign"), [(0, DOMID_SELF), (1, 1), (1, DOMID_SELF)])
def test_privileged_domain_lends_a_frame(xen, owner, foreign):
    """Into another's table, a frame of its own, of a third, or of a third by the right that it has over it."""
    l1, f = xen.frame(2, -4), xen.frame(owner, 5)
    assert xen.set(0, l1, 6, f << 12 | KERNEL | RW, foreign=holder(2) | foreign) == 0
    assert xen.store(2, xen.va(6), 4711).vector < 0
    assert xen.load(owner, xen.va(5)).value == 4711
    assert xen.set(2, l1, 6, f << 12 | KERNEL | RW | NX) == 0       # harmless bits are the borrower's
    assert xen.set(2, l1, 6, f << 12 | KERNEL) == -EBUSY            # the frame is not
    assert xen.set(2, l1, 7, f << 12 | KERNEL) == -EBUSY
    assert xen.set(2, l1, 6, 0) == 0
    assert xen.count(f) == (WRITABLE, 1, 1)


def test_lent_frame_outlives_the_owners_reference(xen):
    l1, f = xen.frame(2, -4), xen.frame(1, 5)
    assert xen.set(0, l1, 6, f << 12 | KERNEL | RW, foreign=holder(2) | 1) == 0
    assert xen.uvm(1, xen.va(5), 0) == 0
    assert xen.reserve(1, X.DECREASE, f) == 1
    assert xen.store(2, xen.va(6), 1).vector < 0
    assert xen.m.s.owner[f] == 1
    assert xen.set(2, l1, 6, 0) == 0
    assert xen.m.s.owner[f] != 1


def test_table_with_a_lent_frame_cannot_be_validated_anew(xen):
    l1, f = empty(xen, 5, 1), xen.frame(0, 5)
    assert xen.set(0, l1, 0, f << 12 | KERNEL, foreign=holder(1) | DOMID_SELF) == 0
    assert xen.ext(1, X.UNPIN, l1) == 0
    assert xen.ext(1, X.PIN_L1, l1) == -EBUSY


# --- machine-to-physical -----------------------------------------------------------------------------------------------------

def test_machphys_names_a_frame(xen):
    f = xen.frame(1, 5)
    assert xen.mmu(1, (f << 12 | X.MACHPHYS, 0xABCDEF)) == 0
    assert xen.load(1, X.WINDOW + 8 * f).value == 0xABCDEF
    assert xen.store(1, X.WINDOW + 8 * f, 0).error == 7


def test_machphys_checks_in_order(xen):
    f = xen.frame(2, 5)
    assert xen.mmu(1, (f << 12 | 1, 0), foreign=holder(2) | 2) == -EPERM
    assert xen.refused == ["MMU-14.1"]
    assert xen.mmu(0, (f << 12 | 1, 0), foreign=holder(2) | 2) == -EPERM        # also for the privileged
    assert xen.mmu(1, (f << 12 | 1, 0), foreign=2) == -EPERM
    assert xen.refused == ["WHO-2.1"]
    assert xen.mmu(1, (f << 12 | 1, 0)) == -EINVAL
    assert xen.refused == ["MMU-14.2"]
    assert xen.mmu(1, (f << 12 | 1, 0), foreign=DOMID_IO) == -EINVAL
    assert xen.mmu(0, (f << 12 | 1, 7), foreign=2) == 0
    assert xen.m.s.m2p[f] == 7


# --- the TLB -----------------------------------------------------------------------------------------------------------------

def clock(xen):
    return xen.m.s.clock[0]


def test_l1_updates_never_flush(xen):
    xen.load(1, xen.va(5))
    before = clock(xen)
    assert xen.set(1, xen.frame(1, -4), 5, 0) == 0
    assert clock(xen) == before
    assert xen.load(1, xen.va(5)).vector < 0                        # a stale translation may serve
    assert xen.m.choices.taken[-1][0] == "stale-translation"


def test_upper_updates_flush_at_the_end_also_after_an_error(xen):
    l2 = xen.frame(1, -3)
    xen.load(1, xen.va(5))
    before = clock(xen)
    assert xen.mmu(1, (l2 << 12 | 72, 0), (l2 << 12 | 72, P | PSE)) == -EINVAL
    assert clock(xen) == before + 1
    assert xen.mmu(1, (l2 << 12 | 72, P | PSE)) == -EINVAL          # nothing was done, nothing is flushed
    assert clock(xen) == before + 1


def test_upper_updates_of_anothers_tables_flush_nothing_here(xen):
    xen.load(0, xen.va(5))
    before = clock(xen)
    assert xen.set(0, xen.frame(2, -3), 9, 0, foreign=holder(2) | 2) == 0
    assert clock(xen) == before


def test_change_of_type_flushes(xen):
    f = xen.frame(1, 5)
    xen.store(1, xen.va(5), 0)
    before = clock(xen)
    assert xen.uvm(1, xen.va(5), 0) == 0
    assert xen.ext(1, X.PIN_L1, f) == 0
    assert clock(xen) > before
    assert xen.store(1, xen.va(5), P).vector == 14
