"""mmu_update: each kind of request, what it refuses, and what stays (xen-2003.md §4, RULINGS.md W-1..W-22)."""
import pytest

from emulator.audit import recount
from spec.abi import DOMID_XEN, EFAULT, EINVAL, L1, L2, NONE, PF, PF_PROT, PF_WRITE, WRITABLE, Xen2003
from tests.emulator.guest import BUFFER, PTE, fault, frame_of, request, value, word_of

BAD = value(-EINVAL)
NEW_L1, NEW_L2, DATA, FREE_SLOT = 20, 21, 30, 100       # pages; an unused slot of the L1 table and of the L2 table
PIN_L1, PIN_L2, UNPIN, NEW_BASEPTR = Xen2003.PIN_L1, Xen2003.PIN_L2, Xen2003.UNPIN, Xen2003.NEW_BASEPTR


@pytest.fixture(autouse=True)
def counts_add_up(target):
    yield
    assert recount(target.hypervisor) == []


def ready(guest, page, *entries):
    """Fill a page with entries (slot, word), then map it read-only: it may become a table."""
    stores = tuple((guest.va(page) + 4 * slot, (word,)) for slot, word in entries)
    return guest.update((guest.l1e(page), guest.frame(page) << 12 | 1), request(Xen2003.TLB_FLUSH), before=stores)


def done(target, *actions):
    """Run actions which must all succeed."""
    assert target.run(actions) == [value(0)] * len(actions)


# --- the batch ---

def test_nothing_to_do(target, guest):
    """`count` is signed, and no request is read if it is not positive (W-20)."""
    call = Xen2003.MMU_UPDATE
    assert target.run([guest.call(call, 0x1000, count) for count in (0, 0x80000000, 0xFFFFFFFF)]) == [value(0)] * 3


def test_requests_before_a_bad_one_stay(target, guest):
    entry = guest.frame(DATA) << 12
    assert target.run([guest.update((guest.l1e(100), entry | 1), (guest.l1e(101), entry | 0x101), (guest.l1e(102), entry | 1)),
                       guest.load(guest.l1e(100)), guest.load(guest.l1e(101)), guest.load(guest.l1e(102))]) == [
        BAD, value(entry | 1), value(0), value(0)]


def test_a_batch_that_cannot_be_read_further(target, guest):
    """The second request lies beyond the mapping."""
    last = guest.va(65) - 8                     # the end of shared_info
    entry = guest.frame(DATA) << 12 | 1
    assert target.run([guest.call(Xen2003.MMU_UPDATE, last, 2, data=((last, (guest.l1e(100), entry)),)),
                       guest.load(guest.l1e(100))]) == [value(-EFAULT), value(entry)]


@pytest.mark.parametrize("ptr", [0, 0xFC3FFFF9, 0xFC400000, 0xFF000000, 0xFFFFFFFC])
def test_requests_out_of_reach(target, guest, ptr):
    assert target.run([guest.call(Xen2003.MMU_UPDATE, ptr, 1)]) == [value(-EFAULT)]


def test_requests_may_be_read_from_the_machine_to_physical_window(target, guest):
    """It is readable for Xen's copies: ptr 0xFFFFFFFF is an extended command out of range (W-15)."""
    assert target.run([guest.call(Xen2003.MMU_UPDATE, Xen2003.HOLE, 1)]) == [BAD]


@pytest.mark.parametrize("offset", [1, 3, 4, 7])
def test_a_request_across_two_pages(target, guest, offset):
    """Unaligned, in pages whose frames are no neighbours."""
    va = guest.va(11) - offset
    words = b"".join(w.to_bytes(4, "little") for w in (guest.l1e(100), guest.frame(DATA) << 12 | 1))
    stores = [guest.store(va, int.from_bytes(words[:4], "little")), guest.store(va + 4, int.from_bytes(words[4:], "little"))]
    done(target, guest.map(11, guest.frame(40) << 12 | PTE, Xen2003.UVMF_INVLPG), *stores, guest.call(Xen2003.MMU_UPDATE, va, 1))
    assert word_of(target, guest.l1, 100) == guest.frame(DATA) << 12 | 1


def test_a_batch_that_rewrites_its_own_requests(target, guest):
    """Each request is read when its turn comes: the first maps the request page elsewhere."""
    moved = guest.va(BUFFER)
    one = (guest.l1e(BUFFER), guest.frame(DATA) << 12 | PTE)
    done(target, guest.store(guest.va(DATA) + 8, guest.l1e(100)), guest.store(guest.va(DATA) + 12, guest.frame(DATA) << 12 | 1),
         guest.call(Xen2003.MMU_UPDATE, moved, 2, data=((moved, (*one, guest.l1e(101), 0x105)),)))
    assert word_of(target, guest.l1, 100) == guest.frame(DATA) << 12 | 1


# --- NORMAL on an L1 table ---

def test_an_l1_entry_takes_and_gives_references(target, guest):
    f = guest.frame(DATA)
    done(target, guest.update((guest.l1e(100), f << 12 | 1)))
    assert frame_of(target, f) == (1, WRITABLE, 1, 2, False)
    done(target, guest.update((guest.l1e(100), f << 12 | 3)))
    assert frame_of(target, f) == (1, WRITABLE, 2, 2, False)
    done(target, guest.update((guest.l1e(DATA), 0), (guest.l1e(100), f << 12 | 1)))
    assert frame_of(target, f) == (1, NONE, 0, 1, False)
    done(target, guest.update((guest.l1e(100), f << 12)))
    assert frame_of(target, f) == (1, NONE, 0, 0, False)


@pytest.mark.parametrize("flags", [0x101, 0x81, 0x181, 0x103])
def test_global_and_pat_are_refused(target, guest, flags):
    assert target.run([guest.update((guest.l1e(100), guest.frame(DATA) << 12 | flags))]) == [BAD]


def test_entries_that_are_not_present_are_not_looked_at(target, guest):
    done(target, guest.update((guest.l1e(100), 0xFFFFFFFE)))
    assert word_of(target, guest.l1, 100) == 0xFFFFFFFE


def test_other_bits_are_free(target, guest):
    entry = guest.frame(DATA) << 12 | 0xE7F
    done(target, guest.update((guest.l1e(100), entry)), guest.update((guest.l1e(100), entry & ~0xE7C)))
    assert frame_of(target, guest.frame(DATA)) == (1, WRITABLE, 2, 2, False)


def test_frames_that_may_not_be_mapped(target, guest, other):
    """Another's, Xen's, a free one, one beyond the end; a page table only read-only."""
    frames = (other.frame(5), 3, 1199, 1200, 0xFFFFF)
    assert target.run([guest.update((guest.l1e(100), f << 12 | rw)) for f in frames for rw in (1, 3)]) == [BAD] * 10
    assert target.run([guest.update((guest.l1e(100), f << 12 | rw)) for f in (guest.l1, guest.l2) for rw in (3, 1)]) == [
        BAD, value(0), BAD, value(0)]
    assert frame_of(target, 3) == (DOMID_XEN, NONE, 0, 0, False)
    assert frame_of(target, other.frame(5)) == (2, WRITABLE, 1, 1, False)


def test_domain_0_may_map_what_a_domain_owns(target, dom0, guest):
    """But neither Xen's frames nor free ones (W-1)."""
    assert target.run([dom0.update((dom0.l1e(100), f << 12 | 3)) for f in (guest.frame(5), 3, 1199)]) == [value(0), BAD, BAD]
    assert frame_of(target, guest.frame(5)) == (1, WRITABLE, 2, 2, False)
    assert target.run([dom0.store(dom0.va(100), 42), guest.load(guest.va(5))]) == [value(0), value(42)]


# --- NORMAL on an L2 table ---

def test_an_l2_entry_validates_its_l1_table(target, guest):
    f, data = guest.frame(NEW_L1), guest.frame(DATA)
    done(target, ready(guest, NEW_L1, (5, data << 12 | 3)), guest.update((guest.l2e(FREE_SLOT), f << 12 | 3)))
    assert frame_of(target, f) == (1, L1, 1, 2, False)
    assert frame_of(target, data) == (1, WRITABLE, 2, 2, False)
    va = FREE_SLOT << 22 | 5 << 12
    assert target.run([guest.store(va, 8), guest.load(guest.va(DATA)),
                       guest.update((guest.l2e(FREE_SLOT), 0), request(Xen2003.TLB_FLUSH)), guest.load(va)]) == [
        value(0), value(8), value(0), fault(PF, 0, va)]
    assert frame_of(target, f) == (1, NONE, 0, 1, False)
    assert frame_of(target, data) == (1, WRITABLE, 1, 1, False)


def test_an_l2_entry_needs_a_table(target, guest, other):
    """A frame mapped writable, the L2 table of another tree, another's table, large pages, global pages: refused."""
    refused = (guest.frame(DATA) << 12 | 1, other.l1 << 12 | 1, other.l2 << 12 | 1, guest.l1 << 12 | 0x81, guest.l1 << 12 | 0x101,
               3 << 12 | 1, 1199 << 12 | 1, 0xFFFFF001)
    assert target.run([guest.update((guest.l2e(FREE_SLOT), entry)) for entry in refused]) == [BAD] * len(refused)


@pytest.mark.parametrize("slot", [1008, 1009, 1020, 1023])
def test_xen_keeps_its_slots(target, guest, slot):
    """Even against being cleared."""
    assert target.run([guest.update((guest.l2e(slot), entry)) for entry in (0, guest.l1 << 12 | 1)]) == [BAD, BAD]
    done(target, guest.update((guest.l2e(1007), guest.l1 << 12 | 1)))


def test_rw_of_an_l2_entry_is_free(target, guest):
    done(target, guest.update((guest.l2e(768), guest.l1 << 12 | 1)), guest.update((guest.l2e(768), guest.l1 << 12 | 3)))
    assert frame_of(target, guest.l1) == (1, L1, 1, 2, False)
    assert target.run([guest.update((guest.l2e(768), guest.l1 << 12 | 0x83))]) == [BAD]


def test_a_self_map_takes_no_reference_and_is_never_writable(target, guest):
    """Neither made writable, nor turned writable later (W-3)."""
    slot, self_map, counts = guest.l2e(FREE_SLOT), guest.l2 << 12 | 1, (1, L2, 2, 3, True)
    assert target.run([guest.update((slot, self_map | 2)), guest.update((slot, self_map)), guest.update((slot, self_map | 2)),
                       guest.update((slot, self_map | 0x80))]) == [BAD, value(0), BAD, BAD]
    assert frame_of(target, guest.l2) == counts
    linear = FREE_SLOT << 22
    assert target.run([guest.load(linear + 4 * 0xC0005), guest.store(linear + 4 * 0xC0005, 0)]) == [
        value(guest.frame(5) << 12 | PTE), fault(PF, PF_PROT | PF_WRITE, linear + 4 * 0xC0005)]
    done(target, guest.update((linear + 4 * 0xC0005, 0)), guest.update((guest.l2e(FREE_SLOT), guest.l1 << 12 | 1)))
    assert frame_of(target, guest.l2) == counts
    assert frame_of(target, guest.l1) == (1, L1, 2, 3, False)


def test_a_refused_table_leaves_no_trace(target, guest, other):
    """The last entry of the second table is bad: nothing of either stays, whatever had been taken before (W-14)."""
    good, bad = 20, 22
    done(target, ready(guest, good, *((k, guest.frame(30 + k) << 12 | 1 + 2 * (k % 2)) for k in range(30))),
         ready(guest, bad, *((k, guest.frame(30 + k) << 12 | 3) for k in range(16)), (1023, other.frame(3) << 12 | 1)),
         ready(guest, NEW_L2, (0, guest.frame(good) << 12 | 1), (1, guest.l1 << 12 | 1), (2, guest.frame(bad) << 12 | 1)))
    before = target.hypervisor.npg.copy()
    assert target.run([
        guest.extended(PIN_L2, guest.frame(NEW_L2)), guest.extended(NEW_BASEPTR, guest.frame(NEW_L2)),
        guest.extended(PIN_L1, guest.frame(bad)), guest.update((guest.l2e(FREE_SLOT), guest.frame(bad) << 12 | 1))]) == [BAD] * 4
    assert (target.hypervisor.npg == before).all()
    assert word_of(target, guest.frame(NEW_L2), 1020) == 0


# --- NORMAL elsewhere ---

def test_a_frame_without_typed_references_is_written_as_it_is(target, guest):
    """Also if it was a table before; one in use for data is refused (W-5)."""
    done(target, ready(guest, DATA), guest.extended(PIN_L1, guest.frame(DATA)), guest.extended(UNPIN, guest.frame(DATA)),
         guest.update((guest.va(DATA) + 8, 0xFFFFFFFF)))
    assert target.run([guest.load(guest.va(DATA) + 8), guest.update((guest.va(5), 1))]) == [value(0xFFFFFFFF), BAD]


@pytest.mark.parametrize("ptr", [0, 0xBFFFFFFC, 0xC0041000, Xen2003.HOLE, 0xFC400000, 0xFF000000 + 4 * 0xC0005, 0xFFFFFFFC])
def test_places_that_cannot_be_written(target, guest, ptr):
    """Nothing mapped there, or in Xen's hole (W-7), even where Xen's own linear map shows the guest's tables."""
    assert target.run([guest.update((ptr, 0))]) == [BAD]
    assert target.run([guest.update((ptr | Xen2003.UNCHECKED, 0))]) == [BAD]


def test_entries_of_anothers_table_are_judged_for_its_owner(target, dom0, guest, other):
    """Domain 0 edits the tables of domain 1: these may map what domain 1 may map, no more (W-2)."""
    done(target, dom0.update((dom0.l1e(100), guest.l1 << 12 | 1)), dom0.update((dom0.l1e(101), guest.l2 << 12 | 1)))
    l1e, l2e = dom0.va(100) + 4 * 200, dom0.va(101) + 4 * FREE_SLOT
    assert target.run([dom0.update((l1e, guest.frame(5) << 12 | 3)), dom0.update((l1e, dom0.frame(5) << 12 | 1)),
                       dom0.update((l1e, other.frame(5) << 12 | 1)), dom0.update((l2e, guest.l1 << 12 | 1)),
                       dom0.update((l2e, other.l1 << 12 | 1))]) == [value(0), BAD, BAD, value(0), BAD]


# --- UNCHECKED ---

def test_unchecked_is_for_domain_0_and_idle_frames(target, dom0, guest):
    """What a domain builder needs (W-6)."""
    done(target, ready(dom0, DATA), ready(guest, DATA),
         dom0.update((dom0.va(DATA) + 4 | Xen2003.UNCHECKED, 0xFFFFFFFF)))
    assert word_of(target, dom0.frame(DATA), 1) == 0xFFFFFFFF
    assert target.run([dom0.update((dom0.va(5) | Xen2003.UNCHECKED, 1)), dom0.update((dom0.l1e(100) | Xen2003.UNCHECKED, 1)),
                       guest.update((guest.va(DATA) | Xen2003.UNCHECKED, 1))]) == [BAD] * 3


# --- MACHPHYS ---

def test_machphys(target, dom0, guest, other):
    def machphys(by, f, word):
        return by.update((f << 12 | Xen2003.MACHPHYS, word))
    mine, free = guest.frame(5), 1199
    assert target.run([machphys(guest, mine, 77), guest.load(Xen2003.HOLE + 4 * mine), machphys(guest, other.frame(5), 1),
                       machphys(guest, free, 1), machphys(guest, 3, 1), machphys(guest, 1200, 1), machphys(guest, 0xFFFFF, 1),
                       machphys(dom0, mine, 78), machphys(dom0, free, 1), guest.load(Xen2003.HOLE + 4 * mine)]) == [
        value(0), value(77), BAD, BAD, BAD, BAD, BAD, value(0), BAD, value(78)]


# --- extended commands ---

def test_pin_and_unpin(target, guest):
    f = guest.frame(NEW_L1)
    done(target, ready(guest, NEW_L1), guest.extended(PIN_L1, f))
    assert frame_of(target, f) == (1, L1, 1, 2, True)
    assert target.run([guest.extended(command, f) for command in (PIN_L1, PIN_L2, UNPIN, UNPIN)]) == [BAD, BAD, value(0), BAD]
    assert frame_of(target, f) == (1, NONE, 0, 1, False)


@pytest.mark.parametrize("count", [1, 5, 12, 13, 40, 1024])
def test_pin_takes_what_the_table_maps(target, guest, count):
    """Few entries or many: the counts are the same (`counts_add_up`)."""
    f = guest.frame(NEW_L1)
    entries = ((1023 - k, guest.frame(30 + k % 6) << 12 | (3 if k % 3 else 1)) for k in range(count))
    done(target, guest.unmap(31), guest.unmap(32), ready(guest, NEW_L1, *entries), guest.extended(PIN_L1, f))
    assert recount(target.hypervisor) == []
    done(target, guest.extended(UNPIN, f))


@pytest.mark.parametrize("count", [1, 40])
@pytest.mark.parametrize("entry", ["foreign", "free", "xen", "beyond", "global", "pat", "table", "itself"])
def test_tables_that_are_refused(target, guest, other, count, entry):
    f = guest.frame(NEW_L1)
    bad = {"foreign": other.frame(5) << 12 | 1, "free": 1199 << 12 | 1, "xen": 0x1001, "beyond": 1200 << 12 | 1,
           "global": guest.frame(30) << 12 | 0x101, "pat": guest.frame(30) << 12 | 0x81, "table": guest.l1 << 12 | 3,
           "itself": f << 12 | 3}[entry]
    done(target, ready(guest, NEW_L1, *((k, guest.frame(30) << 12 | 3) for k in range(count)), (1023, bad)))
    before = target.hypervisor.npg.copy()
    assert target.run([guest.extended(PIN_L1, f)]) == [BAD]
    assert (target.hypervisor.npg == before).all()


def test_commands_that_do_not_exist(target, guest):
    commands = (Xen2003.PIN_L3, Xen2003.PIN_L4, 9, 255)
    assert target.run([guest.extended(command, guest.frame(5)) for command in commands]) == [BAD] * 4


@pytest.mark.parametrize("command", [PIN_L1, PIN_L2, UNPIN, NEW_BASEPTR, Xen2003.TLB_FLUSH, Xen2003.INVLPG])
def test_commands_need_a_frame_in_range(target, guest, command):
    """Even those that do not use it (W-17)."""
    assert target.run([guest.extended(command, 1200), guest.extended(command, 0xFFFFF)]) == [BAD, BAD]


def test_pins_of_frames_of_others(target, dom0, guest):
    f = guest.frame(NEW_L1)
    done(target, ready(guest, NEW_L1), dom0.extended(PIN_L1, f))
    assert target.run([guest.extended(PIN_L1, dom0.l1), guest.extended(UNPIN, dom0.l2), dom0.extended(PIN_L1, 1199),
                       dom0.extended(PIN_L1, 3), guest.extended(UNPIN, f)]) == [BAD, BAD, BAD, BAD, value(0)]


def test_new_baseptr(target, guest):
    """The new root is validated and gets Xen's slots; the old one is given back."""
    f = guest.frame(NEW_L2)
    done(target, ready(guest, NEW_L2, (768, guest.l1 << 12 | 0x67), (5, f << 12 | 1)), guest.extended(NEW_BASEPTR, f))
    assert target.observe().base == {0: target.observe().base[0], 1: f, 2: target.observe().base[2]}
    assert frame_of(target, f) == (1, L2, 1, 2, False)
    assert frame_of(target, guest.l2) == (1, L2, 1, 2, True)
    assert frame_of(target, guest.l1) == (1, L1, 2, 3, False)
    assert word_of(target, f, 1020) == f << 12 | 0x63
    done(target, guest.extended(NEW_BASEPTR, f))
    assert frame_of(target, f) == (1, L2, 1, 2, False)
    done(target, guest.extended(UNPIN, guest.l2))
    assert frame_of(target, guest.l2) == (1, NONE, 0, 1, False)


def test_a_base_must_be_an_l2_table(target, dom0, guest, other):
    bases = (guest.l1, guest.frame(5), other.l2, 1199, 3)
    assert target.run([guest.extended(NEW_BASEPTR, f) for f in bases]) == [BAD] * 5
    done(target, dom0.extended(NEW_BASEPTR, guest.l2))
    assert target.observe().base[0] == guest.l2
    assert frame_of(target, dom0.l2)[:4] == (0, L2, 1, 2)
    assert target.run([dom0.load(dom0.va(1))]) == [value(0xCBCBCBCB)]


def test_set_ldt(target, guest):
    """Checks in order, then the pair is kept (W-19)."""
    def ldt(base, entries):
        return guest.update((base | Xen2003.EXTENDED, entries << 8 | Xen2003.SET_LDT))
    end = 0xFC400000
    assert target.run([ldt(0xC0001000, 8192), ldt(end - 0x10000, 8192), ldt(end, 0), ldt(0xC0001004, 1), ldt(0xC0001000, 8193),
                       ldt(end - 0xF000, 8192), ldt(0xFFFFF000, 1), ldt(0xFFFFF000, 0)]) == [value(0)] * 3 + [BAD] * 5
    kernel = target.hypervisor.descriptors.kernels[1]
    assert (kernel.ldt_base, kernel.ldt_entries) == (end, 0)
