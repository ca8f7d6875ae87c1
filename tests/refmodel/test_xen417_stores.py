"""Stores of the kernel to L1 tables that it maps read-only: Xen performs them, checked (xen-4.17.md §5.2)."""
import pytest

from spec.abi import GUEST_KERNEL, PCD, RW, US, A, D, P, Xen417

FULL = P | RW | US | A | D | GUEST_KERNEL
PAGE = 5                                    # of data


@pytest.fixture
def table(xen):
    """Domain 1's L1 table, which is mapped read-only from the start."""
    return xen.frame(1, -4)


@pytest.fixture
def at(xen, table):
    """The address of an entry of it."""
    home = xen.va(table - xen.frame(1, 0))
    return lambda i: home + 8 * i


def faulted(outcome) -> bool:
    """A store that was not performed."""
    return (outcome.vector, outcome.error) == (14, 7)


def test_a_store_to_a_table_in_use_is_an_update(xen, table, at):
    f, before = xen.frame(1, PAGE), xen.count(xen.frame(1, PAGE))
    assert xen.store(1, at(100), f << 12 | FULL).vector < 0
    assert xen.word(table, 100) == f << 12 | FULL
    assert xen.count(f) != before
    assert xen.store(1, at(100), 0x1234560).vector < 0
    assert xen.word(table, 100) == 0x1234560
    assert xen.count(f) == before


def test_the_data_of_a_hypercall_too(xen, table, at):
    f = xen.frame(1, PAGE)
    assert xen.call(1, Xen417.MMU_UPDATE, xen.va(2), 0, 0, 0x7FF0, data=((at(100), (f << 12 | FULL, f << 12 | FULL)),)) == 0
    assert [xen.word(table, i) for i in (100, 101)] == [f << 12 | FULL] * 2


def test_a_change_of_harmless_bits_moves_no_reference(xen, table, at):
    before, entry = xen.count(xen.frame(1, PAGE)), xen.word(table, PAGE)
    assert xen.store(1, at(PAGE), entry ^ D).vector < 0
    assert xen.word(table, PAGE) == entry ^ D
    assert xen.count(xen.frame(1, PAGE)) == before


def test_what_is_no_aligned_entry(xen, at):
    assert faulted(xen.store(1, at(100) + 4, 0))
    assert xen.refused == ["PTWR-1.1"]


def test_a_mapping_that_is_not_itself_read_only(xen, table, at):
    assert xen.set(1, xen.frame(1, -3), 0, table << 12 | P | US | A) == 0       # the L2 entry above it is
    assert faulted(xen.store(1, xen.va(PAGE), 0))
    assert xen.refused == ["PTWR-1.2"]


def test_a_frame_of_another_domain(xen):
    assert xen.uvm_other(0, xen.va(100), xen.frame(1, -4) << 12 | P | US, 1) == 0
    assert faulted(xen.store(0, xen.va(100), 0))
    assert xen.refused == ["PTWR-1.3"]


def test_upper_tables_and_data(xen, table):
    assert faulted(xen.store(1, xen.va(table + 1 - xen.frame(1, 0)), 0))
    assert xen.refused == ["PTWR-1.4"]
    assert xen.uvm(1, xen.va(PAGE), xen.frame(1, PAGE) << 12 | P | US) == 0
    assert faulted(xen.store(1, xen.va(PAGE), 0))
    assert xen.refused == ["PTWR-1.4"]


def test_an_entry_that_is_not_allowed(xen, at):
    assert faulted(xen.store(1, at(100), FULL | PCD))
    assert xen.refused == ["PTE-2.1"]


def test_applications_are_not_helped(xen, at):
    assert xen.ext(1, Xen417.NEW_USER_BASEPTR, xen.frame(1, -1)) == 0
    assert faulted(xen.store(1, at(100), 0, True))
