"""update_va_mapping and update_va_mapping_otherdomain of xen-4.17 (xen-4.17.md §5.1)."""
import pytest

from spec.abi import EBUSY, EFAULT, EINVAL, EPERM, ESRCH, GUEST_KERNEL, PCD, RW, US, A, D, P, Xen417

X = Xen417
KERNEL = P | US | A | D | GUEST_KERNEL


def clock(xen):
    return xen.m.s.clock[0]


# --- the order of checks -----------------------------------------------------------------------------------------------------

def test_owner_is_another_existing_domain_or_self(xen):
    assert xen.uvm_other(1, X.WINDOW, 0, 1) == -ESRCH
    assert xen.refused == ["WHO-1.1"]
    assert xen.uvm_other(1, X.WINDOW, 0, 77) == -ESRCH
    assert xen.refused == ["WHO-1.2"]
    assert xen.uvm_other(1, xen.va(5), 0, 0x7FF0) == 0


def test_permission_comes_before_the_address(xen):
    assert xen.uvm_other(1, X.WINDOW, 0, 2) == -EPERM
    assert xen.refused == ["WHO-2.1"]


@pytest.mark.parametrize("va", [X.WINDOW, 0xFFFF87FFFFFFF000, 1 << 47, 0x5000, 0xFFFF880000000000, 0xFFFFFFFFC0000000])
def test_a_table_maps_the_address(xen, va):
    """Xen's slots, no canonical address, and addresses with no entry at the fourth, third and second level."""
    assert xen.uvm(1, va, P | PCD) == -EINVAL
    assert xen.refused == ["UVM-11.1"]


def test_what_maps_the_address_is_an_l1_table(xen):
    l2 = xen.frame(1, -3)
    assert xen.set(1, l2, 9, l2 << 12 | P) == 0                     # through the self-map the L2 stands for an L1
    assert xen.uvm(1, xen.base + (9 << 21), 0) == -EINVAL
    assert xen.refused == ["UVM-11.3"]


def test_what_maps_the_address_is_the_callers(xen):
    """Through a linear L4 slot, Xen's own slot is an entry of level 3, 2 or 1."""
    l4 = xen.frame(1, -1)
    assert xen.set(1, l4, 9, l4 << 12 | P) == 0
    assert xen.uvm(1, 9 << 39 | 9 << 30 | 256 << 21, 0) == -EINVAL
    assert xen.refused == ["UVM-11.2"]


@pytest.mark.parametrize(("entry", "errno"), [
    (lambda xen: xen.frame(1, 6) << 12 | P | PCD, EINVAL),
    (lambda xen: xen.frame(2, 6) << 12 | P, EBUSY),
    (lambda xen: xen.frame(1, -1) << 12 | P | RW, EBUSY),
    (lambda xen: xen.free << 12 | P, EBUSY),
    (lambda xen: 4096 << 12 | P, EPERM),
])
def test_refused_entry_flushes_nothing(xen, entry, errno):
    xen.load(1, 0)
    before = clock(xen)
    assert xen.uvm(1, xen.va(5), entry(xen), X.UVMF_TLB_FLUSH) == -errno
    assert clock(xen) == before
    assert xen.load(1, xen.va(5)).vector < 0


# --- what is dropped ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("flags", "whole", "page"), [
    (0, False, False), (1, True, True), (2, False, True), (3, False, False), (4, False, False), (5, True, True), (6, False, True),
])
def test_flags(xen, flags, whole, page):
    xen.load(1, xen.va(5))
    before = clock(xen)
    assert xen.uvm(1, xen.va(5), 0, flags) == 0
    assert (clock(xen) > before) == whole
    assert (xen.load(1, xen.va(5)).vector == 14) == page


@pytest.mark.parametrize(("mask", "dropped"), [(1, True), (0, False), (6, False), (7, True)])
@pytest.mark.parametrize("kind", [1, 2])
def test_bitmap_of_vcpus(xen, mask, dropped, kind):
    xen.store(1, xen.va(6), mask)
    xen.load(1, xen.va(5))
    assert xen.uvm(1, xen.va(5), 0, xen.va(6) | kind) == 0
    assert (xen.load(1, xen.va(5)).vector == 14) == dropped


def test_entry_stays_although_the_bitmap_cannot_be_read(xen):
    assert xen.uvm(1, xen.va(5), 0, 0x1000 | 1) == -EFAULT
    assert xen.refused == ["COPY-11.2"]
    assert xen.word(xen.frame(1, -4), 5) == 0
    assert xen.uvm(1, xen.va(6), 0, X.WINDOW | 2) == -EFAULT
    assert xen.refused == ["COPY-11.1"]
    assert xen.word(xen.frame(1, -4), 6) == 0
    assert xen.uvm(1, xen.va(7), 0, X.WINDOW | 3) == 0              # not looked at


# --- other domains -----------------------------------------------------------------------------------------------------------

def test_privileged_domain_maps_anothers_frame(xen):
    f = xen.frame(2, 5)
    assert xen.uvm(0, xen.va(5), f << 12 | KERNEL | RW) == -EBUSY
    assert xen.uvm_other(0, xen.va(5), f << 12 | KERNEL | RW, 2) == 0
    assert xen.count(f)[1:] == (2, 2)
    assert xen.uvm_other(0, xen.va(6), xen.frame(1, 5) << 12 | KERNEL, 2) == -EBUSY
