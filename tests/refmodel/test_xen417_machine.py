"""The machine of xen-4.17: its start, numbers of hypercalls, multicall, pointers (xen-4.17.md §1, §2, §11; RULINGS-4.17.md)."""
from dataclasses import replace

import pytest

from refmodel import ModelError
from spec.abi import DOMID_SELF, EFAULT, EINVAL, ENOSYS, GUEST_KERNEL, PAGE_SIZE, RW, US, WRITABLE, A, D, P, Xen417

X = Xen417
KERNEL = P | US | A | D | GUEST_KERNEL


# --- the start ---------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("dom", [0, 1, 2])
def test_boot_layout(xen, dom):
    l1, l2, l3, l4 = (xen.frame(dom, k) for k in (-4, -3, -2, -1))
    assert xen.m.base_of(dom) == l4
    assert xen.m.s.pinned[l4]
    assert xen.word(l4, 511) == l3 << 12 | 0x67
    assert xen.word(l3, 510) == l2 << 12 | 0x67
    assert xen.word(l2, 0) == l1 << 12 | 0x67
    for page in range(xen.pages + 1):
        rw = 0 if xen.pages - 4 <= page < xen.pages else RW
        assert xen.word(l1, page) == xen.frame(dom, 0) + page << 12 | KERNEL | rw
    assert [xen.count(f) for f in (l1, l2, l3, l4)] == [(1, 1, 2), (2, 1, 2), (3, 1, 2), (4, 2, 3)]
    assert xen.count(xen.frame(dom, 5)) == (WRITABLE, 1, 1)
    assert xen.count(xen.shared(dom)) == (WRITABLE, 2, 2)
    assert xen.m.s.pages[dom] == xen.m.s.limit[dom] == xen.pages + 1


def test_boot_contents(xen):
    assert xen.execute(1, xen.va(1, 77)).vector < 0
    assert xen.load(1, xen.va(0)).value == 0
    assert xen.store(1, xen.va(xen.pages), 1).vector < 0            # shared_info
    assert xen.store(1, xen.va(xen.pages - 1), 1).error == 7        # the root table is read-only


def test_machine_to_physical_words(make_417):
    xen = make_417(domains=1, frames=600_000)                       # more than one table of the window
    assert xen.load(0, X.WINDOW + 8 * xen.frame(0, 7)).value == 7
    assert xen.load(0, X.WINDOW + 8 * xen.shared(0)).value == xen.pages
    assert xen.load(0, X.WINDOW + 8 * 599_999).value == (1 << 64) - 1
    assert xen.load(0, X.WINDOW + 8 * 600_576).vector == 14         # beyond its last page
    assert xen.load(0, X.WINDOW + (1 << 39)).vector == 14           # Xen's other slots


def test_domain_of_many_tables(make_417):
    xen = make_417(domains=1, pages=1500, frames=4096)
    assert xen.store(0, xen.va(1400), 7).vector < 0
    assert xen.store(0, xen.va(1495), 7).error == 7                 # the second of three L1 tables
    assert xen.uvm(0, xen.va(1400), 0) == 0


def test_domain_of_the_largest_size_that_one_l2_maps(make_417):
    with pytest.raises(ValueError, match="too many"):
        make_417(domains=1, pages=512 * 512, frames=1 << 20)


def test_published_tables_are_in_xens_frames(make_417):
    with pytest.raises(ValueError, match="xen_frames"):
        make_417(domains=1, frames=1 << 22)


def test_reset(xen):
    before = xen.trace()
    xen.user_root(1, (5, 6, 7, 8), {0: xen.frame(1, 9) << 12 | P | RW | US})
    xen.store(1, 0, 1, user=True)
    xen.m.reset()
    assert xen.trace() == before
    assert xen.load(1, xen.va(9)).value == 0


# --- accesses ----------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("va", [1 << 47, (1 << 47) - 7, 0x8000_0000_0000_0000, 0xFFFF_7FFF_FFFF_FFFF])
def test_addresses_are_canonical(xen, va):
    for out in (xen.load(1, va), xen.store(1, va, 0)):
        assert (out.vector, out.error) == (13, 0)


def test_page_faults(xen):
    faults = [xen.load(1, 0x1000), xen.store(1, 0x1000, 0), xen.execute(1, 0x1000), xen.store(1, xen.va(-1 + xen.pages), 0)]
    assert [(out.vector, out.error) for out in faults] == [(14, 4), (14, 6), (14, 20), (14, 7)]
    assert faults[0].address == 0x1000


def test_no_execute(xen):
    assert xen.uvm(1, xen.va(1), 1 << 63 | xen.frame(1, 1) << 12 | KERNEL) == 0
    assert (xen.execute(1, xen.va(1)).vector, xen.execute(1, xen.va(1)).error) == (14, 21)


def test_user_mode_needs_a_root(xen):
    with pytest.raises(ModelError):
        xen.load(1, xen.va(5), user=True)


# --- numbers -----------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("nr", [11, 38, 43, 47, 56, 63, 64, 0x101, 1 << 32 | 1, (1 << 64) - 1])
def test_unassigned_numbers(xen, nr):
    assert xen.call(1, nr) == -ENOSYS
    assert xen.refused == ["CALL-2.1"]


@pytest.mark.parametrize("nr", [6, 23, 29, 32, 36, 48, 55])
def test_numbers_of_other_wings(xen, nr):
    with pytest.raises(ModelError):
        xen.call(1, nr)


def test_count_with_xens_own_mark(xen):
    for nr in (X.MMU_UPDATE, X.MMUEXT_OP):
        with pytest.raises(ModelError):
            xen.call(1, nr, xen.va(2), 1 << 31 | 1, 0, DOMID_SELF)


def test_counts_are_32_bits_wide(xen):
    for nr in (X.MMU_UPDATE, X.MMUEXT_OP):
        assert xen.call(1, nr, xen.va(2), 1 << 32, 0, 5 << 32 | DOMID_SELF) == 0


# --- multicall ---------------------------------------------------------------------------------------------------------------

def test_multicall_writes_every_result_and_goes_on(xen):
    uvm = X.UPDATE_VA_MAPPING
    calls = (uvm, xen.va(5), 0, 0), (uvm, 0, 0, 0), (63,), (X.MULTICALL, xen.va(3), 1), (uvm, xen.va(6), 0, 0)
    assert xen.multicall(1, *calls) == 0
    assert xen.refused == ["UVM-11.1", "CALL-2.1", "MULTI-2.1"]
    assert [xen.result(1, n) for n in range(5)] == [0, -EINVAL, -ENOSYS, -EINVAL, 0]
    assert xen.word(xen.frame(1, -4), 6) == 0


def test_multicall_list(xen):
    assert xen.multicall(1) == 0
    assert xen.call(1, X.MULTICALL, X.WINDOW, 0) == -EFAULT
    assert xen.refused == ["MULTI-2.2"]
    assert xen.call(1, X.MULTICALL, 0x1000, 1) == -EFAULT
    assert xen.refused == ["COPY-11.2"]
    assert xen.call(1, X.MULTICALL, 0x1000, 1 << 32) == 0


def test_multicall_stops_where_a_result_cannot_be_written(xen):
    """The first call makes the list read-only; its result cannot be written, and the second is not made."""
    uvm = X.UPDATE_VA_MAPPING
    assert xen.multicall(1, (uvm, xen.va(3), xen.frame(1, 3) << 12 | KERNEL, 2), (uvm, xen.va(6), 0, 0)) == -EFAULT
    assert xen.refused == ["COPY-12.2"]
    assert xen.word(xen.frame(1, -4), 3) & RW == 0
    assert xen.word(xen.frame(1, -4), 6) != 0


def test_multicall_list_may_change_as_it_runs(xen):
    """The first call writes the third word of the second."""
    f = xen.frame(1, 3)
    requests = ((f << 12 | 64 + 16, xen.va(7)),)
    xen.fill(1, 4, {0: requests[0][0], 1: requests[0][1]})
    xen.multicall(1, (X.MMU_UPDATE, xen.va(4), 1, 0, DOMID_SELF), (X.UPDATE_VA_MAPPING, xen.va(6), 0, 0))
    assert xen.word(xen.frame(1, -4), 7) == 0
    assert xen.word(xen.frame(1, -4), 6) != 0


# --- pointers ----------------------------------------------------------------------------------------------------------------

def test_xen_marks_the_pages_that_it_uses(xen):
    l1 = xen.frame(1, -4)
    assert xen.uvm(1, xen.va(5), xen.frame(1, 5) << 12 | P | RW) == 0
    assert xen.mmu(1, count=0, pdone=xen.va(5)) == 0
    assert xen.word(l1, 5) & (A | D) == A | D


def test_result_that_spans_two_pages_is_written_whole_or_not(xen):
    at = xen.va(7) - 2
    assert xen.mmu(1, count=0, pdone=at) == 0
    xen.store(1, xen.va(6, 4088), (1 << 64) - 1)
    xen.store(1, xen.va(7), (1 << 64) - 1)
    assert xen.mmu(1, count=0, pdone=at) == 0
    assert xen.load(1, xen.va(6, 4088)).value == (1 << 48) - 1
    assert xen.load(1, xen.va(7)).value == (1 << 64) - 0x10000
    xen.store(1, xen.va(6, 4088), (1 << 64) - 1)
    assert xen.uvm(1, xen.va(7), 0, 2) == 0
    assert xen.mmu(1, count=0, pdone=at) == 0
    assert xen.load(1, xen.va(6, 4088)).value == (1 << 64) - 1


def test_stale_translation_may_serve_xen_too(xen):
    l1 = xen.frame(1, -4)
    xen.fill(1, 5, {0: l1 << 12 | 8 * 9, 1: 0})
    assert xen.uvm(1, xen.va(5), 0) == 0
    results = set()
    for option in (0, 1):
        xen.m.choices.begin((option,))
        results.add(xen.call(1, X.MMU_UPDATE, xen.va(5), 1, 0, DOMID_SELF))
    assert results == {0, -EFAULT}


def test_what_a_free_frame_holds_is_compared_where_it_is_shown_and_stays(xen):
    f = xen.frame(1, 6)
    assert xen.store(1, xen.va(6), 7).vector < 0
    assert xen.uvm(1, xen.va(6), 0, X.UVMF_INVLPG) == 0
    xen.fill(1, 5, {0: xen.va(5) + 64, 1: 1, 2: 0, 3: DOMID_SELF, 8: f})
    assert xen.call(1, X.MEMORY_OP, X.DECREASE, xen.va(5)) == 1
    seen = xen.m.observe()
    assert not xen.m.concrete.maps["ref_count"][f]
    at = (f - xen.m.setup.xen_frames) * PAGE_SIZE
    memory = bytearray(seen.memory)
    memory[at:at + 8] = bytes(8)
    other = replace(seen, memory=bytes(memory))
    assert xen.m.compare(other) == []
    shown = replace(other, rows=tuple(range(xen.m.setup.xen_frames, seen.extent)))
    assert [(d.where, d.model, d.target) for d in xen.m.compare(shown)] == [(f"frame {f} word 0", 7, 0)]
    xen.m.concrete.given[f] = 0                 # had it been given in an exchange, it might be erased at any time
    assert xen.m.compare(shown) == []


def test_a_change_in_a_frame_that_is_not_shown_is_forgiven_and_counted(xen):
    assert xen.store(1, xen.va(6), 7).vector < 0
    seen, low, f = xen.m.observe(), xen.m.setup.xen_frames, xen.frame(1, 6)
    rows = tuple(g for g in range(low, seen.extent) if g != f)
    pages = [bytes(seen.memory)[PAGE_SIZE * (g - low):PAGE_SIZE * (g - low + 1)] for g in rows]
    before = xen.m.choices.forgiven["not-shown"]
    assert xen.m.compare(replace(seen, memory=b"".join(pages), rows=rows)) == []
    assert xen.m.choices.forgiven["not-shown"] == before + 1
