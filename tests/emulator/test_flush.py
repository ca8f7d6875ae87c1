"""The TLB is real: a translation lives until it is flushed, and is flushed when it is due (RULINGS.md W-8..W-10, W-17, W-18)."""
import pytest

from spec.abi import PF, PF_PROT, PF_WRITE, Xen2003
from spec.vocabulary import Outcome
from tests.emulator.guest import PTE, fault, request, value

FLUSH, INVLPG = Xen2003.UVMF_FLUSH, Xen2003.UVMF_INVLPG
PIN_L1, UNPIN, TLB_FLUSH = Xen2003.PIN_L1, Xen2003.UNPIN, Xen2003.TLB_FLUSH


def stale(guest, page=30):
    """Use a page, then unmap it without a flush: its translation is still cached."""
    return [guest.store(guest.va(page), 7), guest.unmap(page, 0)]


def gone(guest, page=30):
    return fault(PF, 0, guest.va(page))


def test_a_translation_outlives_its_entry(target, guest):
    """For loads and stores, within one run and across runs."""
    va = guest.va(30)
    assert target.run([*stale(guest), guest.load(va)])[2] == value(7)
    assert target.run([guest.store(va, 8), guest.load(va)]) == [value(0), value(8)]
    assert target.run([guest.extended(TLB_FLUSH), guest.load(va), guest.store(va, 9)])[1:] == [
        gone(guest), fault(PF, PF_WRITE, va)]


@pytest.mark.parametrize("how", ["flag", "command", "new_baseptr", "switch"])
def test_what_flushes_everything(target, guest, other, how):
    flush = {"flag": guest.map(100, 0, FLUSH), "command": guest.extended(TLB_FLUSH), "switch": other.load(0),
             "new_baseptr": guest.extended(Xen2003.NEW_BASEPTR, guest.l2)}[how]
    assert target.run([*stale(guest), *stale(guest, 31), flush, guest.load(guest.va(30)), guest.load(guest.va(31))])[-2:] == [
        gone(guest), gone(guest, 31)]


@pytest.mark.parametrize("how", ["flag", "command"])
def test_invlpg_drops_one_translation(target, guest, how):
    """The command takes val & ~0xFF, so also an address in the page (W-17)."""
    drop = {"flag": guest.map(30, 0, INVLPG), "command": guest.update((3, guest.va(30) + 0xF00 | Xen2003.INVLPG))}[how]
    assert target.run([*stale(guest), *stale(guest, 31), drop, guest.load(guest.va(31)), guest.load(guest.va(30))])[-2:] == [
        value(7), gone(guest)]


def test_flags_of_a_refused_update_do_nothing(target, guest):
    assert target.run([*stale(guest), guest.map(100, 0x3001, FLUSH | INVLPG), guest.load(guest.va(30))])[-1] == value(7)


def test_a_flush_asked_for_in_a_refused_batch_happens(target, guest):
    assert target.run([*stale(guest), guest.update(request(TLB_FLUSH), (0, 0)), guest.load(guest.va(30))])[-1] == gone(guest)


def test_a_frame_is_not_written_through_an_old_translation_once_it_is_a_table(target, guest):
    """Its type changes while a writable translation may be cached: flushed before the guest runs on (W-9)."""
    va, f = guest.va(30), guest.frame(30)
    assert target.run([*stale(guest), guest.store(va, 0), guest.extended(PIN_L1, f), guest.store(va, f << 12 | 3)])[-1] == fault(
        PF, PF_WRITE, va)


def test_the_same_with_update_va_mapping_only(target, guest):
    """The flush does not wait for the next mmu_update (W-8): page 31, still cached, tells."""
    f = guest.frame(30)
    assert target.run([
        guest.store(guest.va(30), 0), guest.map(30, f << 12 | 1), guest.extended(PIN_L1, f), *stale(guest, 31),
        guest.extended(UNPIN, f), guest.load(guest.va(31)), guest.map(30, f << 12 | PTE), guest.load(guest.va(31))])[-3:] == [
        value(7), value(0), gone(guest, 31)]


def test_no_flush_without_need(target, guest):
    """The typed references fell to 0, but the TLB was flushed since; or the frame takes its old type again."""
    f, va = guest.frame(30), guest.va(31)
    pin, unpin = guest.extended(PIN_L1, f), guest.extended(UNPIN, f)
    assert target.run([guest.unmap(30), *stale(guest, 31), pin, guest.load(va)])[-1] == value(7)
    assert target.run([guest.map(30, f << 12 | 1), unpin, pin, guest.load(va)])[-1] == value(7)


def test_a_plain_store_counts_as_a_change_to_writable(target, guest):
    """NORMAL on an idle frame that was a table (W-5)."""
    f = guest.frame(30)
    assert target.run([guest.map(30, f << 12 | 1), guest.extended(PIN_L1, f), *stale(guest, 31), guest.extended(UNPIN, f),
                       guest.load(guest.va(31)), guest.update((guest.va(30), 5)), guest.load(guest.va(31))])[-3:] == [
        value(7), value(0), gone(guest, 31)]


def test_a_released_frame_is_not_read_by_its_old_owner(target, guest, other):
    """Before it is handed out again the TLB is flushed (W-10)."""
    f, va = guest.frame(30), guest.va(30)
    assert target.run([*stale(guest), guest.decrease(f), guest.load(va), guest.increase(1), guest.load(va)])[2:] == [
        value(1), value(7), Outcome(1, chose=(f,)), gone(guest)]


def test_the_switch_shows_the_other_domains_memory(target, guest, other):
    va = guest.va(30)
    assert target.run([guest.store(va, 1), other.store(va, 2), guest.load(va), other.load(va)]) == [
        value(0), value(0), value(1), value(2)]


def test_rights_are_cached_too(target, guest):
    """Read-only entries count from the next walk on; a refused access walks anew and finds new rights."""
    va, f = guest.va(30), guest.frame(30)
    assert target.run([guest.store(va, 1), guest.map(30, f << 12 | 1), guest.store(va, 2), guest.extended(TLB_FLUSH),
                       guest.store(va, 3), guest.map(30, f << 12 | PTE), guest.store(va, 4), guest.load(va)])[2:] == [
        value(0), value(0), fault(PF, PF_PROT | PF_WRITE, va), value(0), value(0), value(4)]
