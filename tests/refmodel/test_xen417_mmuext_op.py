"""mmuext_op of xen-4.17: one test a row of the table (xen-4.17.md §5)."""
import pytest

from spec.abi import (
    DOMID_IO,
    DOMID_SELF,
    DOMID_XEN,
    EACCES,
    EBUSY,
    EFAULT,
    EINVAL,
    ENOSYS,
    EOPNOTSUPP,
    EPERM,
    ESRCH,
    NOBODY,
    PCD,
    PSE,
    RW,
    US,
    WRITABLE,
    G,
    P,
    Xen417,
)

X = Xen417


def clock(xen):
    return xen.m.s.clock[0], xen.m.s.cr3_clock[0]


# --- before the first operation ----------------------------------------------------------------------------------------------

def test_order_of_checks(xen):
    assert xen.call(1, X.MMUEXT_OP, X.WINDOW, 1, 0, 77) == -EFAULT
    assert xen.refused == ["EXT-1.1"]
    assert xen.ext(1, X.TLB_FLUSH_LOCAL, foreign=1) == -ESRCH
    assert xen.ext(1, X.TLB_FLUSH_LOCAL, foreign=77) == -ESRCH
    for special in (DOMID_IO, DOMID_XEN):
        assert xen.ext(1, X.TLB_FLUSH_LOCAL, foreign=special) == -EPERM
        assert xen.refused == ["WHO-2.1"]
        assert xen.ext(0, X.PIN_L1, 3, foreign=special) == -EINVAL     # domain 0 may act for them, but finds no frame of theirs
        assert xen.refused == ["EXT-4.1"]
        assert xen.ext(0, X.MARK_SUPER, foreign=special) == -EOPNOTSUPP
    assert xen.ext(1, X.TLB_FLUSH_LOCAL, foreign=2) == -EPERM
    assert xen.refused == ["WHO-2.1"]
    assert xen.call(1, X.MMUEXT_OP, 0x1000, 1, 0, DOMID_SELF) == -EFAULT
    assert xen.refused == ["COPY-11.2"]


def test_operations_commit_one_by_one(xen):
    l1 = xen.frame(1, -4)
    assert xen.exts(1, (X.PIN_L1, l1, 0), (X.UNPIN, xen.frame(1, 5), 0), (X.UNPIN, l1, 0), pdone=xen.va(5)) == -EINVAL
    assert xen.load(1, xen.va(5)).value & 0xFFFFFFFF == 1
    assert xen.m.s.pinned[l1]


@pytest.mark.parametrize("command", [14, 21, 99, 0xFFFFFFFF])
def test_unknown_operations(xen, command):
    assert xen.ext(1, command) == -ENOSYS


@pytest.mark.parametrize("command", [X.MARK_SUPER, X.UNMARK_SUPER])
def test_superpages(xen, command):
    assert xen.ext(1, command) == -EOPNOTSUPP


@pytest.mark.parametrize("command", [5, 6, 7, 8, 9, 10, 11, 12, 13, 15, 18])
def test_operations_on_oneself_name_nobody_else(xen, command):
    assert xen.ext(0, command, foreign=2) == -EPERM
    assert xen.refused == ["EXT-2.3"]


# --- pins --------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("level", [1, 2, 3, 4])
def test_pin_and_unpin(xen, level):
    f = xen.new_tables(1, 5, level, {})
    assert xen.count(f) == (level, 1, 1)
    assert xen.m.s.pinned[f]
    assert xen.ext(1, level - 1, f) == -EINVAL
    assert xen.refused == ["EXT-3.1"]
    assert xen.count(f) == (level, 1, 1)
    assert xen.ext(1, level % 4, f) == -EINVAL
    assert xen.refused == ["PTE-1.1"]
    assert xen.ext(1, X.UNPIN, f) == 0
    assert xen.count(f)[1:] == (0, 0)
    assert not xen.m.s.pinned[f]
    assert xen.ext(1, X.UNPIN, f) == -EINVAL
    assert xen.refused == ["EXT-5.2"]


def test_a_table_whose_own_leaf_keeps_it(xen):
    """The last reference to a table that was given up goes while it is drained: it is free when that is done, once."""
    table, leaf = xen.frame(1, 20), xen.frame(1, 21)
    xen.fill(1, 21, {0: table << 12 | 0x65})
    xen.fill(1, 20, {0: leaf << 12 | 0x67})
    for page in (20, 21):
        assert xen.uvm(1, xen.va(page), 0, X.UVMF_INVLPG) == 0
    assert xen.ext(1, X.PIN_L1 + 1, table) == 0
    at = xen.va(2)
    assert xen.call(1, X.MEMORY_OP, X.DECREASE, at, data=((at, (at + 32, 1, 0, DOMID_SELF, table)),)) == 1
    pages = xen.m.s.pages[1]
    assert xen.ext(1, X.UNPIN, table) == 0
    assert (xen.m.s.owner[table], xen.m.s.pages[1]) == (NOBODY, pages - 1)


@pytest.mark.parametrize("command", [X.PIN_L1, X.PIN_L4, X.UNPIN])
def test_only_ones_own_frames_are_pinned(xen, command):
    for f in (xen.frame(2, -1), 3, xen.free, 1 << 40):
        assert xen.ext(1, command, f) == -EINVAL
        assert xen.refused == ["EXT-5.1" if command == X.UNPIN else "EXT-4.1"]


def test_frame_in_use_as_data_is_not_pinned(xen):
    assert xen.ext(1, X.PIN_L1, xen.frame(1, 5)) == -EINVAL


@pytest.mark.parametrize(("entry", "errno"), [
    (lambda xen: xen.frame(2, 5) << 12 | P, EBUSY), (lambda xen: 4096 << 12 | P, EPERM),
    (lambda xen: (1 << 52) - 1 ^ 0x1FE, EINVAL),
    (lambda xen: xen.frame(1, 7) << 12 | P | PCD, EINVAL), (lambda xen: xen.frame(1, 5) << 12 | P | RW, EBUSY),
])
def test_what_is_wrong_with_a_table_is_told(xen, entry, errno):
    xen.fill(1, 5, {0: xen.frame(1, 6) << 12 | P | RW, 511: entry(xen)})
    assert xen.uvm(1, xen.va(5), 0) == 0
    assert xen.ext(1, X.PIN_L1, xen.frame(1, 5)) == -errno
    assert xen.count(xen.frame(1, 5))[1:] == (0, 0)
    assert xen.count(xen.frame(1, 6)) == (WRITABLE, 1, 1)


@pytest.mark.parametrize("level", [2, 3, 4])
def test_large_pages_do_not_exist(xen, level):
    xen.fill(1, 5, {0: xen.frame(1, level - 6) << 12 | P | PSE})
    assert xen.uvm(1, xen.va(5), 0) == 0
    assert xen.ext(1, level - 1, xen.frame(1, 5)) == -EINVAL
    assert xen.refused == ["PTE-4.1"]


def test_pin_of_a_whole_tree(xen):
    full, pages = P | RW | US, {level: xen.frame(1, 4 + level) for level in range(1, 5)}
    for level in range(1, 5):
        xen.fill(1, 4 + level, {0: (pages[level - 1] if level > 1 else xen.frame(1, 10)) << 12 | full})
    for level in range(1, 5):
        assert xen.uvm(1, xen.va(4 + level), 0) == 0
    assert xen.ext(1, X.PIN_L4, pages[4]) == 0
    assert [xen.count(pages[level]) for level in range(1, 5)] == [(level, 1, 1) for level in range(1, 5)]
    assert xen.word(pages[4], 258) == pages[4] << 12 | xen.word(xen.frame(1, -1), 258) & 0xFFF      # Xen fills its slots,
    assert xen.word(pages[4], 256) == 0 != xen.word(xen.frame(1, -1), 256)          # the window's when the table is a base
    assert xen.ext(1, X.UNPIN, pages[4]) == 0
    assert [xen.count(pages[level])[1:] for level in range(1, 5)] == [(0, 0)] * 4


def test_privileged_domain_pins_for_another(xen):
    f = xen.new_tables(2, 5, 1, {})
    assert xen.ext(0, X.UNPIN, f) == -EINVAL                        # not its own
    assert xen.ext(0, X.UNPIN, f, foreign=2) == 0
    assert xen.ext(0, X.PIN_L1, f, foreign=2) == 0
    assert xen.m.s.pinned[f]


# --- base tables -------------------------------------------------------------------------------------------------------------

def copy_of_root(xen, page):
    """Another root with the same guest slots."""
    return xen.new_tables(1, page, 4, {511: xen.word(xen.frame(1, -1), 511)})


def test_new_base(xen):
    root, old = copy_of_root(xen, 5), xen.frame(1, -1)
    xen.load(1, xen.va(6))
    before = clock(xen)
    assert xen.ext(1, X.NEW_BASEPTR, root) == 0
    assert clock(xen) == (before[0] + 1, before[1] + 1)             # CR3 is loaded, and no translation survives
    assert xen.m.base_of(1) == root
    assert xen.count(root) == (4, 2, 2)
    assert xen.count(old) == (4, 1, 2)
    assert xen.load(1, xen.va(6)).vector < 0


def test_new_base_is_the_present_one(xen):
    before, root = clock(xen), xen.frame(1, -1)
    assert xen.ext(1, X.NEW_BASEPTR, root) == 0
    assert clock(xen) == (before[0] + 2, before[1] + 2)             # the switch to domain 1, and CR3
    assert xen.count(root) == (4, 2, 3)


def test_old_base_is_emptied_with_its_last_reference(xen):
    root = copy_of_root(xen, 5)
    assert xen.ext(1, X.UNPIN, xen.frame(1, -1)) == 0
    assert xen.ext(1, X.NEW_BASEPTR, root) == 0
    assert xen.count(xen.frame(1, -1)) == (4, 0, 1)
    assert xen.count(xen.frame(1, -2)) == (3, 1, 2)                 # held by the new root


@pytest.mark.parametrize("command", [X.NEW_BASEPTR, X.NEW_USER_BASEPTR])
def test_base_is_an_own_root_table(xen, command):
    for f in (xen.frame(2, -1), 3, xen.free, 1 << 40):
        assert xen.ext(1, command, f) == -EINVAL
        assert xen.refused == ["EXT-4.1"]
    for f in (xen.frame(1, -2), xen.frame(1, 5)):
        assert xen.ext(1, command, f) == -EINVAL
        assert xen.refused == ["PTE-1.1"]


def test_base_zero_is_no_table(xen):
    assert xen.ext(1, X.NEW_BASEPTR, 0) == -EINVAL


def test_new_user_base(xen):
    before = clock(xen)
    assert xen.ext(1, X.NEW_USER_BASEPTR, 0) == 0                   # none, as before
    root = xen.user_root(1, (5, 6, 7, 8), {0: xen.frame(1, 9) << 12 | P | RW | US})
    assert xen.count(root) == (4, 1, 1)
    assert clock(xen)[1] - before[1] == clock(xen)[0] - before[0]   # CR3 is not loaded
    assert xen.ext(1, X.NEW_USER_BASEPTR, root) == 0                # the same again
    assert xen.count(root) == (4, 1, 1)
    other = copy_of_root(xen, 10)
    assert xen.ext(1, X.NEW_USER_BASEPTR, other) == 0
    assert xen.count(root)[1:] == (0, 0)
    assert xen.count(other) == (4, 2, 2)
    assert xen.ext(1, X.NEW_USER_BASEPTR, 0) == 0
    assert xen.count(other) == (4, 1, 1)


# --- translations ------------------------------------------------------------------------------------------------------------

def stale(xen):
    """Page 5 is unmapped, and its translation is cached still."""
    xen.load(1, xen.va(5))
    assert xen.uvm(1, xen.va(5), 0) == 0


@pytest.mark.parametrize(("command", "first", "dropped"), [
    (X.TLB_FLUSH_LOCAL, 0, True), (X.TLB_FLUSH_ALL, 0, True),
    (X.INVLPG_LOCAL, "page", True), (X.INVLPG_ALL, "page", True),
    (X.INVLPG_LOCAL, "other", False), (X.INVLPG_ALL, "other", False),
    (X.INVLPG_LOCAL, X.WINDOW, False), (X.INVLPG_ALL, 1 << 47, False),
])
def test_flushes(xen, command, first, dropped):
    stale(xen)
    va = {"page": xen.va(5, 8), "other": xen.va(6)}.get(first, first)
    assert xen.ext(1, command, va) == 0
    assert (xen.load(1, xen.va(5)).vector == 14) == dropped


@pytest.mark.parametrize("command", [X.TLB_FLUSH_MULTI, X.INVLPG_MULTI])
@pytest.mark.parametrize(("mask", "dropped"), [(0, False), (1, True), (2, False)])
def test_flushes_on_some_vcpus(xen, command, mask, dropped):
    xen.store(1, xen.va(6), mask)
    stale(xen)
    assert xen.ext(1, command, xen.va(5), xen.va(6)) == 0
    assert (xen.load(1, xen.va(5)).vector == 14) == dropped


@pytest.mark.parametrize("command", [X.TLB_FLUSH_MULTI, X.INVLPG_MULTI])
def test_unreadable_bitmap(xen, command):
    for at in (0, X.WINDOW):
        assert xen.ext(1, command, xen.va(5), at) == -EINVAL
        assert xen.refused == ["EXT-6.1"]


def test_caches_are_for_owners_of_devices(xen):
    for dom in (0, 1):
        assert xen.ext(dom, X.FLUSH_CACHE) == -EACCES
        assert xen.ext(dom, X.FLUSH_CACHE_GLOBAL) == -EINVAL


# --- the LDT -----------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("base", "entries", "rule"), [
    (0x1000, 8193, "EXT-7.1"), (0x1001, 0xFFFFFFFF, "EXT-7.1"), (0x1008, 1, "EXT-7.2"),
    (X.WINDOW, 1, "EXT-7.3"), (1 << 47, 1, "EXT-7.3"),
])
def test_bad_ldt(xen, base, entries, rule):
    assert xen.ext(1, X.SET_LDT, base, entries) == -EINVAL
    assert xen.refused == [rule]


@pytest.mark.parametrize(("base", "entries"), [(0x1000, 8192), (0xFFFF880000000000, 1), (0x1001, 0), (X.WINDOW, 0), (0, 1 << 32)])
def test_good_ldt(xen, base, entries):
    assert xen.ext(1, X.SET_LDT, base, entries) == 0
    count = entries & 0xFFFFFFFF
    assert (xen.m.s.ldt_base[1], xen.m.s.ldt_entries[1]) == (base if count else 0, count)


# --- pages -------------------------------------------------------------------------------------------------------------------

def test_clear_page(xen):
    xen.fill(1, 5, {0: 1, 511: 2})
    assert xen.ext(1, X.CLEAR_PAGE, xen.frame(1, 5)) == 0
    assert xen.load(1, xen.va(5)).value == xen.load(1, xen.va(5, 4088)).value == 0
    assert xen.count(xen.frame(1, 5)) == (WRITABLE, 1, 1)


def test_copy_page(xen):
    xen.fill(1, 5, {0: 1, 511: 2})
    xen.fill(1, 6, {0: 7, 5: 8})
    assert xen.ext(1, X.COPY_PAGE, xen.frame(1, 6), xen.frame(1, 5)) == 0
    assert [xen.load(1, xen.va(6, 8 * i)).value for i in (0, 5, 511)] == [1, 0, 2]
    assert xen.ext(1, X.COPY_PAGE, xen.frame(1, 6), xen.frame(1, -1)) == 0          # a table may be read
    assert xen.load(1, xen.va(6, 8 * 511)).value == xen.word(xen.frame(1, -1), 511)


def test_pages_that_xen_writes_are_own_and_writable(xen):
    good = xen.frame(1, 5)
    for f in (xen.frame(2, 5), 3, xen.free, 1 << 40):
        assert xen.ext(1, X.CLEAR_PAGE, f) == -EINVAL
        assert xen.refused == ["EXT-8.1"]
        assert xen.ext(1, X.COPY_PAGE, f, good) == -EINVAL
        assert xen.refused == ["EXT-8.1"]
        assert xen.ext(1, X.COPY_PAGE, xen.frame(1, -1), f) == -EINVAL
        assert xen.refused == ["EXT-9.1"]
    assert xen.ext(1, X.CLEAR_PAGE, xen.frame(1, -1)) == -EINVAL
    assert xen.refused == ["EXT-8.2"]
    assert xen.ext(1, X.COPY_PAGE, xen.frame(1, -4), good) == -EINVAL
    assert xen.refused == ["EXT-8.2"]


def test_privileged_domain_clears_anothers_page(xen):
    xen.fill(2, 5, {0: 1})
    assert xen.ext(0, X.CLEAR_PAGE, xen.frame(2, 5), foreign=2) == 0
    assert xen.load(2, xen.va(5)).value == 0


# --- user mode ---------------------------------------------------------------------------------------------------------------

def test_user_mode_walks_its_own_root(xen):
    page = xen.frame(1, 9)
    xen.user_root(1, (5, 6, 7, 8), {0: page << 12 | P | RW | US, 1: xen.frame(1, 1) << 12 | P | US})
    assert xen.store(1, 0, 4711, user=True).vector < 0
    assert xen.load(1, xen.va(9)).value == 4711
    assert xen.load(1, xen.va(9), user=True).error == 4             # the kernel's tables are not the user's
    assert xen.ext(1, X.TLB_FLUSH_LOCAL) == 0                       # a page of an application is global
    assert xen.load(1, 0).vector == 14
    assert xen.execute(1, 4096, user=True).vector < 0
    assert xen.load(1, X.WINDOW + 8 * page, user=True).error == 4   # the root never was the kernel's
    assert xen.ext(1, X.NEW_USER_BASEPTR, xen.frame(1, -1)) == 0
    assert xen.load(1, X.WINDOW + 8 * page, user=True).value == 9   # and this one is


def test_change_of_mode_drops_all_but_global_translations(xen):
    """Only pages of applications are global, so a kernel's stale translation ends with its mode."""
    xen.user_root(1, (5, 6, 7, 8), {0: xen.frame(1, 9) << 12 | P | RW | US})
    kernel_only, shared = xen.va(10), xen.va(11)
    assert xen.uvm(1, shared, xen.frame(1, 11) << 12 | P | US) == 0
    assert xen.word(xen.frame(1, -4), 11) & G
    xen.load(1, kernel_only)
    xen.load(1, shared)
    assert xen.uvm(1, kernel_only, 0) == 0
    assert xen.uvm(1, shared, 0) == 0
    xen.load(1, 0, user=True)
    assert xen.load(1, kernel_only).vector == 14
    xen.load(1, shared)
    assert xen.m.choices.taken[-1][0] == "stale-translation"
