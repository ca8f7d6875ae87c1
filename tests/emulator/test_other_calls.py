"""update_va_mapping, dom_mem_op, multicall, and numbers that are not assigned."""
import pytest

from emulator.audit import recount
from spec.abi import EFAULT, EINVAL, ENOMEM, ENOSYS, L2, NOBODY, NONE, PF, PF_PROT, PF_WRITE, WRITABLE, Xen2003
from spec.vocabulary import FREE_FRAME, Outcome
from tests.emulator.guest import LIST, PTE, Guest, fault, frame_of, frame_words, request, setup_of, value, word_of

BAD, UNREADABLE, NO_MEMORY = value(-EINVAL), value(-EFAULT), value(-ENOMEM)
UPDATE, MAP, MEMORY, MULTI = Xen2003.MMU_UPDATE, Xen2003.UPDATE_VA_MAPPING, Xen2003.DOM_MEM_OP, Xen2003.MULTICALL


@pytest.fixture(autouse=True)
def counts_add_up(target):
    yield
    assert recount(target.hypervisor) == []


# --- update_va_mapping ---

def test_update_va_mapping(target, guest):
    f = guest.frame(30)
    assert target.run([guest.map(100, f << 12 | PTE), guest.store(guest.va(100), 5), guest.load(guest.va(30))]) == [
        value(0), value(0), value(5)]
    assert frame_of(target, f) == (1, WRITABLE, 2, 2, False)


def test_the_order_of_its_checks(target, guest):
    """Xen's hole, then a missing table, then the entry."""
    calls = ((0xFC000, 0), (0xFFFFFFFF, 0), (0xFBFFF, 0xFFFFFFFF), (0, 0), (0xC0064, 0x3003), (0xC0064, 0x3002))
    assert target.run([guest.call(MAP, page, entry, 0) for page, entry in calls]) == [
        BAD, BAD, UNREADABLE, UNREADABLE, BAD, value(0)]


def test_update_va_mapping_through_a_self_map(target, guest):
    """The entry is judged as what it is: one of the L2 table (W-4)."""
    slot = 100
    assert target.run([guest.update((guest.l2e(slot), guest.l2 << 12 | 1))]) == [value(0)]

    def through(entry_slot, entry):
        return guest.call(MAP, slot << 10 | entry_slot, entry, 0)
    assert target.run([through(5, guest.frame(30) << 12 | 1), through(5, guest.l1 << 12 | 3), through(1008, 0),
                       through(slot, guest.l2 << 12 | 3), through(slot, 0)]) == [BAD, value(0), BAD, BAD, value(0)]
    assert frame_of(target, guest.l2) == (1, L2, 2, 3, True)


# --- dom_mem_op ---

def test_decrease_then_increase(target, guest):
    """What a domain gives back it may have again: zeroed, the lowest frame first, its number written to the list (W-13)."""
    f, g = guest.frame(30), guest.frame(20)
    assert target.run([
        guest.store(guest.va(20), 99), guest.update((guest.l1e(20), 0), (guest.l1e(30), 0)), guest.decrease(f, g),
        guest.increase(1), guest.load(guest.va(LIST)), guest.increase(1)]) == [
        value(0), value(0), value(2), Outcome(1, chose=(g,)), value(g), Outcome(1, chose=(f,))]
    assert frame_of(target, g) == (1, NONE, 0, 0, False)
    assert word_of(target, g, 0) == 0


def test_a_released_frame_is_nobodys(target, guest):
    f = guest.frame(30)
    assert target.run([guest.unmap(30), guest.decrease(f), guest.map(30, f << 12 | 1), guest.decrease(f)]) == [
        value(0), value(1), BAD, BAD]
    assert frame_words(target.observe())[f] == FREE_FRAME
    assert frame_of(target, f)[0] == NOBODY


def test_decrease_stops_at_the_first_bad_frame(target, dom0, guest, other):
    """Mapped (writable or not), a table, shared_info, another's (for domain 0 too), Xen's, free, beyond the end (W-12)."""
    good = guest.frame(30)
    for bad in (guest.frame(31), guest.l1, guest.l2, guest.shared_info, other.frame(5), 3, 1199, 1200, 0xFFFFFFFF):
        assert target.run([guest.unmap(30), guest.decrease(good, bad), guest.increase(1), guest.map(30, good << 12 | PTE)]) == [
            value(0), BAD, Outcome(1, chose=(good,)), value(0)]
    assert target.run([guest.map(31, guest.frame(31) << 12 | 1), guest.decrease(guest.frame(31))]) == [value(0), BAD]
    assert target.run([guest.unmap(30), dom0.decrease(good)]) == [value(0), BAD]


def test_a_list_that_ends_early(target, guest):
    """Frames before the unreadable word stay released."""
    f, last = guest.frame(30), guest.va(65) - 4
    argument = (guest.va(2), (Xen2003.DECREASE, 2, last))
    assert target.run([guest.unmap(30), guest.call(MEMORY, guest.va(2), data=((last, (f,)), argument)), guest.increase(1)]) == [
        value(0), UNREADABLE, Outcome(1, chose=(f,))]


def test_increase_checks_the_limit_then_the_pool(target, guest):
    assert target.run([guest.increase(1), guest.increase(0xFFFFFFFF), guest.increase(0)]) == [NO_MEMORY, NO_MEMORY, value(0)]


def test_increase_leaves_slack_in_the_pool(only_target):
    """size + 512 frames must be free, even for size 0."""
    setup = setup_of(1, 64, setup_of(1, 64, 700).xen_frames + 65 + 511)
    guest = Guest(setup, 0)
    only_target.reset(setup)
    assert only_target.run([guest.increase(0), guest.unmap(30), guest.decrease(guest.frame(30)), guest.increase(1),
                            guest.increase(0), guest.unmap(31), guest.decrease(guest.frame(31)), guest.increase(1)]) == [
        NO_MEMORY, value(0), value(1), NO_MEMORY, value(0), value(0), value(1), Outcome(1, chose=(guest.frame(30),))]


def test_stores_to_the_list_that_fault_are_skipped(target, guest):
    """Read-only pages are not written, though Xen could; nor is the part of a word that could be (W-15)."""
    f = guest.frame(30)
    for pages in (guest.l1e(0), 0x1000, 0xFC3FFFFD, Xen2003.HOLE, 0xFFFFFFFF):
        argument = (guest.va(2), (Xen2003.INCREASE, 1, pages))
        assert target.run([guest.unmap(30), guest.decrease(f), guest.call(MEMORY, guest.va(2), data=(argument,)),
                           guest.map(30, f << 12 | PTE)]) == [value(0), value(1), Outcome(1, chose=(f,)), value(0)]
    assert word_of(target, guest.l1, 0) == guest.frame(0) << 12 | PTE
    argument = (guest.va(2), (Xen2003.INCREASE, 1, guest.va(65) - 2))
    assert target.run([guest.unmap(30), guest.decrease(f), guest.call(MEMORY, guest.va(2), data=(argument,)),
                       guest.load(guest.va(65) - 4)]) == [value(0), value(1), Outcome(1, chose=(f,)), value(0)]


def test_a_list_word_across_two_pages_is_stored(target, guest):
    """Byte by byte, in frames that are no neighbours."""
    f, va = guest.frame(30), guest.va(11) - 2
    argument = (guest.va(2), (Xen2003.INCREASE, 1, va))
    assert target.run([guest.map(11, guest.frame(40) << 12 | PTE, 2), guest.unmap(30), guest.decrease(f),
                       guest.call(MEMORY, guest.va(2), data=(argument,)), guest.load(va)]) == [
        value(0), value(0), value(1), Outcome(1, chose=(f,)), value(f)]
    assert word_of(target, guest.frame(10), 1023) == (f & 0xFFFF) << 16


def test_rw_of_the_l2_entry_counts_for_xens_stores(target, guest):
    """The same L1 table hangs below slot 100 read-only: the list is not written through it."""
    f, window = guest.frame(30), 100 << 22
    argument = (guest.va(2), (Xen2003.INCREASE, 1, window + (LIST << 12)))
    assert target.run([guest.update((guest.l2e(100), guest.l1 << 12 | 1)), guest.unmap(30), guest.decrease(f),
                       guest.store(guest.va(LIST), 0), guest.call(MEMORY, guest.va(2), data=(argument,)),
                       guest.load(guest.va(LIST))]) == [value(0), value(0), value(1), value(0), Outcome(1, chose=(f,)), value(0)]


def test_other_operations_and_unreadable_arguments(target, guest):
    assert target.run([guest.memory_op(2, size=0), guest.memory_op(0xFFFFFFFF, size=0), guest.call(MEMORY, 0x1000),
                       guest.call(MEMORY, 0xFC3FFFF8), guest.call(MEMORY, guest.va(65) - 8)]) == [
        value(-ENOSYS), value(-ENOSYS), UNREADABLE, UNREADABLE, UNREADABLE]


def test_the_extent_grows_with_what_is_handed_out(only_target):
    """A domain that gave frames back may get one that nobody ever had, if others took the lower ones first."""
    setup = setup_of(2, 64)
    zero, one = Guest(setup, 0), Guest(setup, 1)
    only_target.reset(setup)
    extent = only_target.observe().extent
    assert extent == setup.domains[1].first + 65
    assert only_target.run([zero.unmap(30), zero.decrease(zero.frame(30)), one.unmap(30), one.decrease(one.frame(30)),
                            one.increase(1), zero.increase(1)])[4:] == [
        Outcome(1, chose=(zero.frame(30),)), Outcome(1, chose=(one.frame(30),))]
    assert only_target.observe().extent == extent


# --- multicall ---

def test_multicall(target, guest):
    """Its calls are made in order, whatever each returns (W-11); the frames they hand out are told."""
    f = guest.frame(30)
    page = (Xen2003.BASE >> 12) + 30
    data = (guest.va(2), (Xen2003.DECREASE, 1, guest.va(2) + 12, f, Xen2003.INCREASE, 1, 0))
    calls = guest.multicall((MAP, page, 0, 1), (99,), (MEMORY, guest.va(2)), (MAP, 0xFFFFF, 0, 0), (MEMORY, guest.va(2) + 16),
                            (0x100 + MAP, page, f << 12 | 1, 0))
    assert target.run([guest.call(99, data=(data,)), calls]) == [value(-ENOSYS), Outcome(0, chose=(f,))]
    assert frame_of(target, f) == (1, NONE, 0, 1, False)


def test_multicall_of_nothing(target, guest):
    assert target.run([guest.call(MULTI, 0x1000, 0), guest.call(MULTI, 0xFFFFFFFF, 0)]) == [value(0), value(0)]


def test_a_nested_multicall_does_nothing(target, guest):
    inner = (MULTI, guest.va(LIST), 1)
    assert target.run([guest.multicall(inner), guest.multicall(inner, (MAP, 0xC001E, 0, 0))]) == [value(0), value(0)]
    assert word_of(target, guest.l1, 30) == 0


def test_a_list_that_cannot_be_read(target, guest):
    """Calls before the unreadable entry stay made; of an entry, the last two words are not read."""
    last = guest.va(65) - 32
    assert target.run([guest.call(MULTI, last + 8, 1, data=((last + 8, (99,)),)), guest.call(MULTI, last + 12, 1)]) == [
        value(0), UNREADABLE]
    assert target.run([guest.call(MULTI, 0x1000, 1), guest.call(MULTI, 0xFC3FFFE9, 1),
                       guest.call(MULTI, last, 2, data=((last, (MAP, 0xC001E, 0, 0)),)), guest.load(guest.l1e(30))]) == [
        UNREADABLE, UNREADABLE, UNREADABLE, value(0)]


def test_a_call_of_another_wing_within_a_multicall(target, guest):
    """Programs do not make it; in a list that went wrong it is skipped like any call that fails."""
    assert target.run([guest.multicall((0,), (MAP, 0xC001E, 0, 0)), guest.load(guest.va(1))]) == [value(0), value(0xCBCBCBCB)]


# --- numbers ---

@pytest.mark.parametrize("nr", [21, 99, 255, 0xFFFFFFFF])
def test_numbers_that_are_not_assigned(target, guest, nr):
    assert target.run([guest.call(nr, 1, 2, 3, 4, 5)]) == [value(-ENOSYS)]


def test_only_the_low_byte_counts(target, guest):
    assert target.run([guest.call(0x12345600 + MAP, 0xFC000, 0, 0), guest.call(0x100 + UPDATE, 0, 0)]) == [BAD, value(0)]


def test_read_only_list_page(target, guest):
    """A request page mapped read-only can be read by Xen, and not be written by the guest."""
    requests = guest.update(request(Xen2003.TLB_FLUSH))
    assert target.run([requests, guest.map(2, guest.frame(2) << 12 | 1, 1), guest.call(UPDATE, guest.va(2), 1), requests]) == [
        value(0), value(0), value(0), fault(PF, PF_PROT | PF_WRITE, guest.va(2))]
