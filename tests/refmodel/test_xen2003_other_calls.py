"""update_va_mapping, dom_mem_op, multicall and the rest of xen-2003 (xen-2003.md §2, §4.5, §11; RULINGS.md)."""
import pytest

from refmodel import ModelError
from spec.abi import EFAULT, EINVAL, ENOMEM, ENOSYS, L1, L2, NOBODY, PSE, RW, US, WRITABLE, A, D, P, Xen2003
from spec.vocabulary import Hypercall, Outcome

X = Xen2003
MASK = 0xFFFFFFFF


def l1(xen, dom=1):
    return xen.frame(dom, -2)


# --- the start ---------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("dom", [0, 1, 2])
def test_boot_layout(xen2, dom):
    leaf, root = xen2.frame(dom, -2), xen2.frame(dom, -1)
    assert xen2.m.base_of(dom) == root
    assert xen2.word(root, 768) == leaf << 12 | 0x67
    for page in range(xen2.pages + 1):
        assert xen2.word(leaf, page) == xen2.frame(dom, 0) + page << 12 | (0x61 if page in (30, 31) else 0x63)
        assert xen2.m.s.m2p[xen2.frame(dom, 0) + page] == page
    assert [xen2.count(f) for f in (leaf, root)] == [(L1, 1, 2), (L2, 2, 3)]
    assert xen2.count(xen2.frame(dom, 5)) == (WRITABLE, 1, 1)
    assert xen2.count(xen2.shared(dom)) == (WRITABLE, 2, 2)


def test_two_tables_for_many_pages(make_2003):
    xen2 = make_2003(domains=1, pages=1500, frames=4096)
    assert xen2.store(0, xen2.va(1400), 7).vector < 0
    assert xen2.store(0, xen2.va(1498), 7).error == 3


# --- accesses ----------------------------------------------------------------------------------------------------------------

def test_segments_end_above_the_window(xen2):
    assert xen2.load(1, X.HOLE).vector < 0
    assert (xen2.load(1, X.GUEST_END - 3).vector, xen2.load(1, X.GUEST_END - 3).error) == (13, 0)
    assert xen2.execute(1, X.GUEST_END).vector == 13


def test_window_is_the_kernels_to_read(xen2):
    assert xen2.load(1, X.HOLE + 4 * xen2.frame(2, 7)).value == 7
    assert xen2.load(1, X.HOLE + 4 * xen2.free).value == MASK
    assert xen2.load(1, X.HOLE + 4 * 2048).error == 0               # beyond its last page
    assert xen2.load(1, X.HOLE, user=True).error == 5
    assert xen2.store(1, X.HOLE, 0).error == 3


def test_page_faults(xen2):
    faults = [xen2.load(1, 0x1000), xen2.store(1, 0x1000, 0, user=True), xen2.store(1, xen2.va(31), 0),
              xen2.load(1, xen2.va(5), user=True)]
    assert [(out.vector, out.error, out.address) for out in faults] == [
        (14, 0, 0x1000), (14, 6, 0x1000), (14, 3, xen2.va(31)), (14, 5, xen2.va(5))]


def test_users_need_their_bit_in_both_tables(xen2):
    assert xen2.uvm(1, xen2.va(5), xen2.frame(1, 5) << 12 | P | RW | US) == 0
    assert xen2.store(1, xen2.va(5), 1, user=True).vector < 0
    assert xen2.word(l1(xen2), 5) & (A | D) == A | D


def test_store_over_two_pages_is_whole_or_nothing(xen2):
    assert xen2.store(1, xen2.va(6) - 2, 0x11223344).vector < 0
    assert xen2.load(1, xen2.va(6) - 2).value == 0x11223344
    assert xen2.uvm(1, xen2.va(6), 0, X.UVMF_INVLPG) == 0
    out = xen2.store(1, xen2.va(6) - 2, MASK)
    assert (out.error, out.address) == (2, xen2.va(6))
    assert xen2.load(1, xen2.va(6) - 4).value == 0x33440000


def test_execute_is_of_a_far_return(xen2):
    assert xen2.execute(1, xen2.va(1, 99)).vector < 0
    assert not xen2.m.legal_execute(1, xen2.va(5))
    with pytest.raises(ModelError):
        xen2.execute(1, xen2.va(5))


# --- numbers -----------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("nr", [21, 130, 255, 0x100 + 200])
def test_unassigned_numbers(xen2, nr):
    assert xen2.call(1, nr) == -ENOSYS
    assert xen2.refused == ["CALL-1.1"]


@pytest.mark.parametrize("nr", [2, 6, 8, 9, 10, 11, 18, 20, 0x102])
def test_numbers_of_other_wings(xen2, nr):
    with pytest.raises(ModelError):
        xen2.call(1, nr)


def test_only_eight_bits_of_a_number_count(xen2):
    assert xen2.call(1, 0xABC00 | X.UPDATE_VA_MAPPING, xen2.va(5) >> 12, 0, 0) == 0


# --- update_va_mapping -------------------------------------------------------------------------------------------------------

def test_uvm_checks_in_order(xen2):
    assert xen2.call(1, X.UPDATE_VA_MAPPING, X.HOLE >> 12, P | PSE, 0) == -EINVAL
    assert xen2.refused == ["UVM-1.1"]
    assert xen2.uvm(1, 0x1000, P | PSE) == -EFAULT
    assert xen2.refused == ["UVM-1.2"]
    assert xen2.uvm(1, xen2.va(5), P | PSE) == -EINVAL
    assert xen2.refused == ["ENTRY-1.1"]


def test_refused_uvm_flushes_nothing(xen2):
    xen2.load(1, xen2.va(5))
    before = xen2.m.s.clock[0]
    assert xen2.uvm(1, xen2.va(5), 3 << 12 | P, X.UVMF_FLUSH | X.UVMF_INVLPG) == -EINVAL
    assert xen2.m.s.clock[0] == before


@pytest.mark.parametrize(("flags", "whole", "page"), [(0, 0, False), (1, 1, True), (2, 0, True), (3, 1, True), (4, 0, False)])
def test_uvm_flags(xen2, flags, whole, page):
    xen2.load(1, xen2.va(5))
    before = xen2.m.s.clock[0]
    assert xen2.uvm(1, xen2.va(5), 0, flags) == 0
    assert xen2.m.s.clock[0] == before + whole
    xen2.load(1, xen2.va(5))
    assert (xen2.m.choices.taken == []) == page


def test_uvm_through_a_self_map_is_judged_by_the_table(xen2):
    """W-4: the entry that maps the address is an L2 entry."""
    root = xen2.frame(1, -1)
    assert xen2.mmu(1, (xen2.va(31, 4 * 9), root << 12 | P)) == 0
    va = 9 << 22 | 10 << 12
    assert xen2.uvm(1, va, xen2.frame(1, 5) << 12 | P) == -EINVAL   # no L1 table
    assert xen2.refused == ["TYPE-1.6"]
    assert xen2.uvm(1, va, l1(xen2) << 12 | P | RW) == 0
    assert xen2.word(root, 10) == l1(xen2) << 12 | P | RW
    assert xen2.count(l1(xen2)) == (L1, 2, 3)
    assert xen2.uvm(1, 9 << 22 | 1008 << 12, 0) == -EINVAL
    assert xen2.refused == ["WRITE-1.5"]


def test_change_of_type_by_uvm_flushes_before_the_guest_runs(xen2):
    """W-8, W-9: a frame that was a table becomes writable."""
    assert xen2.uvm(1, xen2.va(5), 0) == 0
    assert xen2.extended(1, X.PIN_L1, xen2.frame(1, 5)) == 0
    assert xen2.extended(1, X.UNPIN, xen2.frame(1, 5)) == 0
    before = xen2.m.s.clock[0]
    assert xen2.uvm(1, xen2.va(5), xen2.frame(1, 5) << 12 | P | RW) == 0
    assert xen2.m.s.clock[0] > before


# --- dom_mem_op --------------------------------------------------------------------------------------------------------------

def give(xen, dom, *pages):
    """Unmap pages and release their frames."""
    for page in pages:
        assert xen.uvm(dom, xen.va(page), 0) == 0
    assert xen.resize(dom, X.DECREASE, *(xen.frame(dom, page) for page in pages)) == len(pages)


def test_dom_mem_op_arguments(xen2):
    assert xen2.call(1, X.DOM_MEM_OP, 0x1000) == -EFAULT
    assert xen2.resize(1, 2, 0) == -ENOSYS
    assert xen2.refused == ["MEM-1.1"]


def test_decrease(xen2):
    give(xen2, 1, 5, 6)
    assert xen2.m.s.owner[xen2.frame(1, 5)] == NOBODY
    assert xen2.m.s.pages[1] == xen2.pages - 1
    assert xen2.m.s.m2p[xen2.frame(1, 5)] == 5                      # the word is left alone


@pytest.mark.parametrize(("bad", "rule"), [
    (lambda xen: 2048, "MEM-3.1"), (lambda xen: xen.frame(2, 5), "MEM-3.2"), (lambda xen: 3, "MEM-3.2"),
    (lambda xen: xen.free, "MEM-3.2"), (lambda xen: xen.frame(1, 6), "MEM-3.3"), (lambda xen: l1(xen), "MEM-3.3"),
    (lambda xen: xen.shared(1), "MEM-3.3"), (lambda xen: xen.frame(1, 7), "MEM-3.4"), (lambda xen: xen.frame(1, 5), "MEM-3.2"),
])
def test_decrease_stops_at_what_cannot_be_released(xen2, bad, rule):
    assert xen2.uvm(1, xen2.va(5), 0) == 0
    assert xen2.uvm(1, xen2.va(7), xen2.frame(1, 7) << 12 | P) == 0         # mapped read-only
    assert xen2.uvm(1, xen2.va(8), 0) == 0
    assert xen2.resize(1, X.DECREASE, xen2.frame(1, 5), bad(xen2), xen2.frame(1, 8)) == -EINVAL
    assert xen2.refused == [rule]
    assert xen2.m.s.owner[xen2.frame(1, 5)] == NOBODY
    assert xen2.m.s.owner[xen2.frame(1, 8)] == 1


def test_decrease_is_of_ones_own_also_for_the_privileged(xen2):
    assert xen2.uvm(1, xen2.va(5), 0) == 0
    assert xen2.resize(0, X.DECREASE, xen2.frame(1, 5)) == -EINVAL


def test_decrease_of_an_unreadable_list(xen2):
    """W-12: frames released before stay released."""
    assert xen2.uvm(1, xen2.va(5), 0) == 0
    last = xen2.va(xen2.pages + 1) - 4
    xen2.store(1, last, xen2.frame(1, 5))
    assert xen2.resize(1, X.DECREASE, size=2, pages=last) == -EFAULT
    assert xen2.m.s.owner[xen2.frame(1, 5)] == NOBODY


def test_increase_within_the_limit(xen2):
    assert xen2.resize(1, X.INCREASE, 0) == -ENOMEM
    assert xen2.refused == ["MEM-2.1"]
    assert xen2.resize(1, X.INCREASE, size=MASK) == -ENOMEM


def test_increase_leaves_a_slack(make_2003):
    for spare, result in ((511, -ENOMEM), (512, 1)):
        xen2 = make_2003(domains=2, frames=16 + 2 * 33 + spare)
        give(xen2, 1, 5)
        assert xen2.resize(1, X.INCREASE, 0) == result
        assert xen2.refused == (["MEM-2.2"] if result < 0 else [])


def test_increase_hands_out_zeroed_frames_after_a_flush(xen2):
    xen2.store(1, xen2.va(5), 4711)
    give(xen2, 1, 5)
    before = xen2.m.s.clock[0]
    assert xen2.resize(1, X.INCREASE, 0) == 1
    f = xen2.load(1, xen2.va(2, 64)).value
    assert f == xen2.frame(1, 5)
    assert xen2.m.s.clock[0] > before
    assert xen2.word(f, 0) == 0
    assert xen2.count(f) == (0, 0, 0)


def test_increase_passes_over_places_that_cannot_be_written(xen2):
    give(xen2, 1, 5, 6)
    assert xen2.resize(1, X.INCREASE, size=2, pages=xen2.va(31)) == 2       # read-only
    assert xen2.refused == []
    assert xen2.m.s.pages[1] == xen2.pages + 1
    give(xen2, 1, 7)
    assert xen2.resize(1, X.INCREASE, size=1, pages=X.GUEST_END - 2) == 1


def test_increase_takes_the_other_machines_choice(xen2):
    give(xen2, 1, 5)
    action = Hypercall(1, X.DOM_MEM_OP, (xen2.va(2),), ((xen2.va(2), (X.INCREASE, 1, xen2.va(3))),))
    assert xen2.m.step(action, Outcome(1, chose=(1999,))) == Outcome(1, chose=(1999,))
    assert xen2.load(1, xen2.va(3)).value == 1999


def test_increase_refuses_a_choice_that_is_not_free(xen2):
    give(xen2, 1, 5)
    action = Hypercall(1, X.DOM_MEM_OP, (xen2.va(2),), ((xen2.va(2), (X.INCREASE, 1, xen2.va(3))),))
    assert xen2.m.step(action, Outcome(1, chose=(xen2.frame(2, 5),))).value == -EINVAL


def test_empty_requests(xen2):
    assert xen2.resize(1, X.INCREASE, size=0) == 0
    assert xen2.resize(1, X.DECREASE, size=0) == 0


# --- multicall ---------------------------------------------------------------------------------------------------------------

def test_multicall_goes_on_and_drops_results(xen2):
    uvm = X.UPDATE_VA_MAPPING
    calls = (uvm, xen2.va(5) >> 12, 0, 0), (uvm, 0, 0, 0), (X.MULTICALL, xen2.va(2), 1), (200,), (uvm, xen2.va(6) >> 12, 0, 0)
    assert xen2.multicall(1, *calls) == 0
    assert xen2.refused == ["UVM-1.2", "CALL-1.1"]
    assert [xen2.word(l1(xen2), page) for page in (5, 6)] == [0, 0]


def test_multicall_of_nothing(xen2):
    assert xen2.multicall(1) == 0


def test_multicall_list_that_cannot_be_read(xen2):
    last = xen2.va(xen2.pages + 1) - 32
    words = (X.UPDATE_VA_MAPPING, xen2.va(5) >> 12, 0, 0, 0, 0, 0, 0)
    assert xen2.call(1, X.MULTICALL, last, 2, data=((last, words),)) == -EFAULT
    assert xen2.word(l1(xen2), 5) == 0                              # the first call was made
    assert xen2.call(1, X.MULTICALL, X.GUEST_END - 8, 1) == -EFAULT


# --- hypercalls and their arguments ------------------------------------------------------------------------------------------

def test_argument_that_cannot_be_stored_is_the_outcome(xen2):
    out = xen2.m.step(Hypercall(1, X.MMU_UPDATE, (xen2.va(31), 1), ((xen2.va(31), (0, 0)),)))
    assert (out.vector, out.error, out.address) == (14, 3, xen2.va(31))


def test_unknown_domain(xen2):
    with pytest.raises(ModelError):
        xen2.load(77, 0)


def test_reset(xen2):
    before = xen2.trace()
    give(xen2, 1, 5, 6)
    xen2.mmu(1, (X.EXTENDED, X.TLB_FLUSH))
    xen2.m.reset()
    assert xen2.trace() == before


def test_reset_forgets_a_flush_that_a_broken_off_hypercall_asked_for(xen2):
    """A program that leaves the vocabulary in the middle of a multicall takes nothing along to the next program."""
    m, at = xen2.m, X.BASE + 2 * 4096
    words = [X.MMU_UPDATE, at + 256, 1, 0, 0, 0, 0, 0, 2]           # TLB_FLUSH; then a call of another wing
    requests = ((at, tuple(words)), (at + 256, (X.EXTENDED, X.TLB_FLUSH)))
    with pytest.raises(ModelError):
        m.step(Hypercall(1, X.MULTICALL, (at, 2), requests))
    m.reset()
    m.step(Hypercall(1, 99, ()))
    before = m.s.clock[0]
    m.step(Hypercall(1, 99, ()))
    assert m.flush_due is False
    assert m.s.clock[0] == before == 2                              # the switch to domain 1, and nothing else
