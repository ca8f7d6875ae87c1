"""Loads, stores and executes: real rings, real page walks, real faults (RULINGS.md, what a guest access is)."""
import pytest

from emulator.errors import HarnessError
from spec.abi import GP, PF, PF_PROT, PF_USER, PF_WRITE, Xen2003
from spec.vocabulary import Hypercall
from tests.emulator.guest import PTE, fault, request, value, word_of

US = 4
KERNEL_WRITE = PF_PROT | PF_WRITE


def test_boot_contents(target, guest):
    places = guest.va(0), guest.va(1), guest.l1e(0), guest.l1e(-1), guest.l2e(768)
    assert target.run([guest.load(va) for va in places]) == [
        value(0), value(0xCBCBCBCB), value(guest.frame(0) << 12 | 0x63), value(guest.l2 << 12 | 0x61),
        value(guest.l1 << 12 | 0x67)]


def test_store_then_load(target, guest):
    assert target.run([guest.store(guest.va(5), 0xDEADBEEF), guest.load(guest.va(5))]) == [value(0), value(0xDEADBEEF)]
    assert word_of(target, guest.frame(5), 0) == 0xDEADBEEF


def test_a_table_is_mapped_read_only(target, guest):
    """CR0.WP: ring 1 is supervisor to paging, and only RW clear protects the tables."""
    assert target.run([guest.store(guest.l1e(0), 0)]) == [fault(PF, KERNEL_WRITE, guest.l1e(0))]


@pytest.mark.parametrize("va", [0, 0x1000, 0xBFFFFFFC, 0xC0041000])
def test_nothing_mapped(target, guest, va):
    assert target.run([guest.load(va), guest.store(va, 1), guest.execute(va), guest.load(va, user=True)]) == [
        fault(PF, 0, va), fault(PF, PF_WRITE, va), fault(PF, 0, va), fault(PF, PF_USER, va)]


def test_user_needs_us_in_both_entries(target, guest):
    """The L2 slot has US at boot, the L1 entries have not."""
    va = guest.va(5)
    denied = PF_PROT | PF_USER
    assert target.run([guest.load(va, user=True), guest.store(va, 1, user=True), guest.execute(guest.va(1), user=True)]) == [
        fault(PF, denied, va), fault(PF, denied | PF_WRITE, va), fault(PF, denied, guest.va(1))]
    assert target.run([
        guest.map(5, guest.frame(5) << 12 | PTE | US), guest.map(1, guest.frame(1) << 12 | PTE | US),
        guest.store(va, 7, user=True), guest.load(va, user=True), guest.execute(guest.va(1), user=True),
        guest.load(va)]) == [value(0), value(0), value(0), value(7), value(0), value(7)]
    assert target.run([guest.update((guest.l2e(768), guest.l1 << 12 | PTE)), guest.extended(Xen2003.TLB_FLUSH),
                       guest.load(va, user=True)]) == [value(0), value(0), fault(PF, denied, va)]


def test_a_store_needs_rw_in_both_entries(target, guest):
    va = guest.va(5)
    assert target.run([guest.update((guest.l2e(768), guest.l1 << 12 | 0x65), request(Xen2003.TLB_FLUSH)),
                       guest.load(va), guest.store(va, 1)]) == [value(0), value(0), fault(PF, KERNEL_WRITE, va)]


@pytest.mark.parametrize("user", [False, True])
def test_segments_end_at_the_hole(target, guest, user):
    """Offset + 3 must be below 0xFC400000; a fetch: the offset."""
    for va in (0xFC3FFFFD, 0xFC3FFFFF, 0xFC400000, 0xFF000000, 0xFFFFFFFE, 0xFFFFFFFF):
        assert target.run([guest.load(va, user), guest.store(va, 1, user)]) == [fault(GP), fault(GP)]
    assert target.run([guest.execute(0xFC400000, user)]) == [fault(GP)]
    assert target.run([guest.execute(0xFC3FFFFF, user), guest.load(0xFC3FFFFC, user)]) == [
        fault(PF, PF_USER if user else 0, 0xFC3FFFFF), fault(PF, PF_USER if user else 0, 0xFC3FFFFC)]


def test_the_machine_to_physical_window(target, guest, other):
    """Read-only, for the kernel only, present for whole pages (W-16)."""
    mine, theirs, free = (Xen2003.HOLE + 4 * f for f in (guest.frame(3), other.shared_info, 1199))
    assert target.run([guest.load(mine), guest.load(theirs), guest.load(free), guest.store(mine, 0), guest.load(mine, user=True),
                       guest.load(Xen2003.HOLE + 0x1FFC), guest.load(Xen2003.HOLE + 0x2000)]) == [
        value(3), value(64), value(0xFFFFFFFF), fault(PF, KERNEL_WRITE, mine), fault(PF, PF_PROT | PF_USER, mine),
        value(0), fault(PF, 0, Xen2003.HOLE + 0x2000)]


def test_an_access_across_pages_that_are_not_neighbours(target, guest):
    """Page 6 is remapped to frame 9: the access spans frames 5 and 9."""
    va = guest.va(6) - 2
    assert target.run([guest.map(6, guest.frame(9) << 12 | PTE, Xen2003.UVMF_INVLPG), guest.store(va, 0x44332211),
                       guest.load(va)]) == [value(0), value(0), value(0x44332211)]
    assert word_of(target, guest.frame(5), 1023) == 0x22110000
    assert word_of(target, guest.frame(9), 0) == 0x4433


def test_a_fault_in_the_second_page_writes_nothing(target, guest):
    """CR2 is the first byte of the second page, and the first page stays as it was."""
    va = guest.va(-2) - 1
    assert target.run([guest.store(va, 0xFFFFFFFF), guest.load(va - 3)]) == [fault(PF, KERNEL_WRITE, guest.va(-2)), value(0)]
    assert target.run([guest.unmap(7), guest.load(guest.va(7) - 2)]) == [value(0), fault(PF, 0, guest.va(7))]
    assert target.run([guest.load(guest.va(8) - 2)]) == [fault(PF, 0, guest.va(8) - 2)]


def test_accessed_and_dirty(target, guest):
    """A load sets A, a store also D; a cached translation sets nothing until it is flushed."""
    clear = guest.frame(5) << 12 | 3
    assert target.run([guest.map(5, clear, Xen2003.UVMF_INVLPG), guest.load(guest.va(5)), guest.load(guest.l1e(5)),
                       guest.store(guest.va(5), 1), guest.load(guest.l1e(5))]) == [
        value(0), value(0), value(clear | 0x20), value(0), value(clear | 0x60)]
    assert target.run([guest.map(5, clear), guest.store(guest.va(5), 1), guest.load(guest.l1e(5))])[-1] == value(clear)


def test_a_refused_walk_sets_no_bits(target, guest):
    """Neither in the L2 entry nor in the L1 entry; of an access across two pages, the walk of the first page has succeeded."""
    l1e, l2e = guest.frame(5) << 12 | 1, guest.l1 << 12 | 7
    assert target.run([guest.update((guest.l1e(5), l1e), (guest.l2e(100), l2e), request(Xen2003.TLB_FLUSH)),
                       guest.store(guest.va(5), 1), guest.load(guest.va(5), user=True), guest.load(100 << 22 | 900 << 12)]) == [
        value(0), fault(PF, KERNEL_WRITE, guest.va(5)), fault(PF, PF_PROT | PF_USER, guest.va(5)),
        fault(PF, 0, 100 << 22 | 900 << 12)]
    assert word_of(target, guest.l1, 5) == l1e
    assert word_of(target, guest.l2, 100) == l2e
    assert target.run([guest.map(5, l1e | 2), guest.unmap(6), guest.store(guest.va(6) - 2, 1)]) == [
        value(0), value(0), fault(PF, PF_WRITE, guest.va(6))]
    assert word_of(target, guest.l1, 5) == l1e | 2 | 0x60


def test_execute_returns_from_anywhere_in_the_page(target, guest):
    assert target.run([guest.execute(guest.va(1)), guest.execute(guest.va(1) + 0xFFF)]) == [value(0), value(0)]


def test_execute_of_something_else_is_stopped_after_one_instruction(target, guest):
    """No program should do this; if one does, the single-step trap ends it, or the instruction's own fault."""
    code = guest.va(5)
    jump_to_itself, store, halt, interrupt = 0xFEEB, 0x0000, 0xF4, 0xA0CD
    expected = {jump_to_itself: fault(1), store: fault(GP), halt: fault(GP), interrupt: fault(GP, 0xA0 * 8 + 2)}
    for word, outcome in expected.items():
        _, seen, after = target.run([guest.store(code, word), guest.execute(code), guest.load(guest.va(1))])
        assert (seen, after) == (outcome, value(0xCBCBCBCB))


@pytest.mark.parametrize("word", [
    0x84CD, 0x83CD, 0x82CD, 0x5D, 0xC9, 0x9D, 0xCF, 0xCA, 0x1F, 0x07, 0x17, 0xA10F, 0xF1, 0xCC, 0x45, 0x5C])
@pytest.mark.parametrize("user", [False, True])
def test_the_loop_survives_strange_code(target, guest, word, user):
    """Calls of the harness's own gates, pops of its registers, returns of other kinds: the next action runs as if nothing was."""
    code = guest.va(5)
    outcomes = target.run([guest.map(5, guest.frame(5) << 12 | PTE | US), guest.store(code, word), guest.execute(code, user),
                           guest.store(guest.va(6), 9), guest.load(guest.va(6)), guest.execute(guest.va(1)), guest.call(99)])
    assert outcomes[3:] == [value(0), value(9), value(0), value(-38)]


def test_code_that_was_overwritten_is_decoded_again(target, guest):
    """By a guest's store that misses the TLB, by a hypercall, and by a reset."""
    code, flush = guest.va(1), guest.extended(Xen2003.TLB_FLUSH)
    assert target.run([guest.execute(code), flush, guest.store(code, 0x0000FEEB), guest.execute(code),
                       guest.store(code, 0xCBCBCBCB), guest.execute(code)])[3:] == [fault(1), value(0), value(0)]
    target.run([guest.store(guest.va(5), 0xCB), guest.execute(guest.va(5))])
    target.reset(target.hypervisor.boot.setup)
    assert target.run([guest.execute(guest.va(5))]) == [fault(GP)]


def test_data_are_stored_before_the_call(target, guest):
    """In order, through the guest's own tables; a fault among them is the outcome, and no call is made."""
    va = guest.va(10)
    call = Hypercall(1, 99, (), ((va, (1,)), (va + 4, (2, 3)), (va + 12, tuple(range(4, 30)))))
    assert target.run([call, *(guest.load(va + 4 * k) for k in range(30))]) == [value(-38), *map(value, range(1, 30)), value(0)]
    requests = (guest.va(2), (guest.l1e(7), 0))
    refused = guest.call(Xen2003.MMU_UPDATE, guest.va(2), 1, data=(requests, (guest.l1e(0), (1,)), (va, (77,))))
    assert target.run([refused, guest.load(guest.l1e(7)), guest.load(guest.va(2)), guest.load(va)]) == [
        fault(PF, KERNEL_WRITE, guest.l1e(0)), value(guest.frame(7) << 12 | PTE), value(guest.l1e(7)), value(1)]


@pytest.mark.parametrize("size", [1, 2, 3, 8, 1024])
def test_data_that_fault(target, guest, size):
    """Whatever its size, the first store of a block faults and the loop goes on with the next action."""
    call = Hypercall(1, 99, (), ((0x5000, (1,) * size), (guest.va(5), (1,) * size)))
    assert target.run([call, guest.load(guest.va(5)), guest.call(99)]) == [fault(PF, PF_WRITE, 0x5000), value(0), value(-38)]


def test_a_program_longer_than_the_record_area(target, guest):
    """It is cut into stretches, and nobody can tell."""
    actions = [guest.store(guest.va(5), n) if n % 2 else guest.load(guest.va(5)) for n in range(40_000)]
    assert target.run(actions) == [value(0 if n % 2 else max(n - 1, 0)) for n in range(40_000)]
    page = tuple(range(1024))
    bulky = [guest.call(99, data=((guest.va(5), page), (guest.va(6), page))) for _ in range(200)]
    assert target.run([*bulky, guest.load(guest.va(6) + 4092)]) == [value(-38)] * 200 + [value(1023)]


@pytest.mark.parametrize("action", [
    Hypercall(9, 99, ()), Hypercall(1, 2, ()), Hypercall(1, 256 + 8, ()), Hypercall(1, 1, (1 << 32, 0)),
    Hypercall(1, 1, (-1, 0)), Hypercall(1, 99, (1, 2, 3, 4, 5, 6)), Hypercall(1, 99, (), ((0xC0005001, (1,)),)),
    Hypercall(1, 99, (), ((0xC0005000, ()),)), Hypercall(1, 99, (), ((0xC0005FFC, (1, 2)),)), "load"])
def test_what_it_cannot_do_it_refuses_clearly(target, guest, action):
    with pytest.raises(HarnessError):
        target.run([guest.load(0), action])
    assert target.run([guest.load(guest.va(1))]) == [value(0xCBCBCBCB)]


def test_where_there_is_no_memory_the_bus_reads_as_ones(target, guest):
    """Only a bug of the hypervisor lets a guest map a frame beyond the last; the next reset takes it back."""
    target.hypervisor.ram[(guest.l1 << 10) + 100] = 0xFFFFF003
    target.hypervisor.written.add(guest.l1)
    assert target.run([guest.load(guest.va(100)), guest.store(guest.va(100), 1)]) == [value(0xFFFFFFFF), value(0)]
    target.reset(target.hypervisor.boot.setup)
    assert target.run([guest.load(guest.va(100))]) == [fault(PF, 0, guest.va(100))]


def test_an_empty_program(target):
    assert target.run([]) == []
