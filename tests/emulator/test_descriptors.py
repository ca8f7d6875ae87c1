"""Descriptor tables, handlers, stack and debug registers: the hypercalls about them, and what the processor sees of it."""
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emulator import descriptors as ds
from emulator import layout
from emulator.audit import recount
from emulator.errors import HarnessError
from emulator.machine import DESCRIPTORS
from spec.abi import (
    EFAULT,
    EINVAL,
    EPERM,
    GP,
    LDT_DESC,
    NONE,
    NP,
    PAGE_SIZE,
    PF,
    PF_PROT,
    PF_WRITE,
    SEG_DESC,
    SS,
    WRITABLE,
    Xen2003,
)
from spec.vocabulary import SEGMENT_REGISTERS
from tests.emulator.guest import LIST, PTE, SETUP, fault, frame_of, gate, request, segment, value, word_of
from tests.emulator.test_parts import bare_hypervisor

OK, BAD, FORBIDDEN, UNREADABLE = value(0), value(-EINVAL), value(-EPERM), value(-EFAULT)
END = Xen2003.GUEST_END
A, B, C = 20, 21, 22                            # pages that become tables
XENS = layout.xen_descriptors()


def words(target, frame, start, count):
    return tuple(word_of(target, frame, start + n) for n in range(count))


def ram(target, frame, offset, count):
    """Words of one of Xen's own frames."""
    start = frame * 1024 + offset // 4
    return target.hypervisor.ram[start:start + count].tolist()


def window(target):
    """The frames behind the window on the current domain's GDT and LDT."""
    entries = ram(target, layout.HARNESS_L1_FRAME, 4 * layout.WINDOW_ENTRY, 32)
    assert all(e & 0xFFF == 0x63 for e in entries if e)
    return [e >> 12 for e in entries[:16]], [e >> 12 for e in entries[16:]]


def gate_of(target, vector):
    low, high = ram(target, layout.IDT_FRAME, layout.GUEST_IDT_OFFSET + 8 * vector, 2)
    return high << 32 | low


# --- legal descriptors -------------------------------------------------------------------------------------------------------

LEGAL = [
    0, segment(dpl=0) & ~(1 << 47), segment(), segment(0x1B, 3), segment(0x1F, 2), segment(pages=0xFC400),
    segment(dpl=3, base=END - 0x1000),
    segment(base=END - 0x10, low=0xF), segment(0x1A, base=0x12345678, low=5), gate(0x819), gate(0x11), gate(0x7F9), gate(0x941),
    gate(0x80D), gate(0xFFFD, dpl=3), gate(0x819, parameters=31), gate(0x819, dpl=2)]
ILLEGAL = [
    segment(dpl=0), segment(0x1B, 0), segment(0x17), segment(0x15, 3), segment(pages=0xFC401), segment(base=END - 0xFFF),
    segment(base=END - 0x10, low=0x10), segment(base=0xFFFFFFF0, low=0x1F), segment(pages=1 << 20), segment(base=END),
    gate(0x819, dpl=0), gate(0x809), gate(0x811), gate(0x821), gate(0x939), gate(0x801), gate(0x82B), gate(0x12), gate(0),
    gate(0x18),
    gate(0x819, parameters=32), gate(0x819, parameters=0x80), gate(0x819, kind=4), gate(0x819, kind=5), gate(0x819, kind=0xE),
    gate(0x819, kind=0xF), gate(0x819, kind=9), gate(0x819, kind=2), gate(0x819, kind=0)]


@pytest.mark.parametrize("descriptor", LEGAL, ids=hex)
def test_legal(target, guest, descriptor):
    assert target.run([guest.set_descriptor(guest.frame(5), 511, descriptor), guest.load(guest.va(5) + 0xFFC)]) == [
        OK, value(descriptor >> 32)]
    assert words(target, guest.frame(5), 1022, 2) == (descriptor & 0xFFFFFFFF, descriptor >> 32)


@pytest.mark.parametrize("descriptor", ILLEGAL, ids=hex)
def test_illegal(target, guest, descriptor):
    """One by one, and as any of a table's."""
    assert target.run([guest.set_descriptor(guest.frame(5), 3, descriptor)]) == [BAD]
    for place in (0, 255, 256, 511):
        store = guest.call(99, data=((guest.va(A) + 8 * place, (descriptor & 0xFFFFFFFF, descriptor >> 32)),))
        target.reset(SETUP)
        assert target.run([store, *guest.read_only(A), guest.set_gdt(guest.frame(A))])[-1] == BAD
        assert frame_of(target, guest.frame(A)) == (1, NONE, 0, 1, False)


EDGES = (0, 1, 0x7FFF, 0x8000, 0xFFFF, 0x819, 0x809, 0x11, 0x12, 0xFC3FFFFF, 0xFC400000, 0xFFFFFFFF)


@given(st.integers(0, 1 << 32), st.sampled_from([1, 7, 100, 512]))
def test_bulk_check_does_what_the_single_one_does(seed, size):
    r = random.Random(seed)
    hypervisor = bare_hypervisor()
    legal = hypervisor.descriptors.legal

    def draw():
        pages = 1 + r.getrandbits(r.randrange(21)) % (1 << 20)
        q = r.choice((*LEGAL, *ILLEGAL, r.getrandbits(64) | 1 << 47, gate(r.choice(EDGES) & 0xFFFF, r.randrange(16)),
                      segment(r.choice(range(16, 32)), r.randrange(4), r.choice(EDGES), pages)))
        return q ^ (1 << r.randrange(64) if r.random() < .3 else 0)
    frame = 300
    drawn = [q for q in (draw() for _ in range(size)) if legal(q & 0xFFFFFFFF, q >> 32) or r.random() < .5 / size]
    for place, q in zip(r.sample(range(512), len(drawn)), drawn, strict=True):
        hypervisor.ram[frame * 1024 + 2 * place], hypervisor.ram[frame * 1024 + 2 * place + 1] = q & 0xFFFFFFFF, q >> 32
    expected = all(legal(q & 0xFFFFFFFF, q >> 32) for q in drawn)
    for few in (0, 512):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ds, "FEW", few)
            assert hypervisor.descriptors.all_legal(frame) is expected


# --- the GDT -----------------------------------------------------------------------------------------------------------------

def test_xens_own_descriptors_are_where_they_say(target):
    """Those of TSS and LDT too; the loop's lie beyond a guest's default table."""
    def base(q):
        return q >> 16 & 0xFFFFFF | q >> 56 << 24
    assert base(DESCRIPTORS[layout.TSS_SELECTOR]) == layout.TSS_BASE
    assert base(DESCRIPTORS[layout.LDT_SELECTOR]) == layout.LDT_WINDOW
    assert tuple(ram(target, layout.GDT_FRAME, 8 * 256, 80)) == XENS
    assert ram(target, layout.GDT_FRAME, 0, 512) == [0] * 512
    assert min(n for n in DESCRIPTORS if DESCRIPTORS[n] >> 45 & 3 and n not in range(0x818, 0x838, 8)) >= 8 * Xen2003.RESERVED_END


def test_set_gdt(target, guest):
    frames = [guest.frame(page) for page in (A, B, C)]
    store = guest.store(guest.va(A) + 4, 0x1234)        # an absent descriptor
    assert target.run([store, *guest.read_only(A, B, C), guest.set_gdt(*frames, entries=1025)])[-1] == OK
    assert [frame_of(target, f) for f in frames] == [(1, SEG_DESC, 1, 2, False)] * 3
    assert words(target, frames[0], 512, 80) == XENS
    assert words(target, frames[0], 0, 2) == (0, 0x1234)
    assert words(target, frames[1], 0, 1024) == (0,) * 1024
    assert window(target)[0] == frames + [0] * 13
    kernel = target.hypervisor.descriptors.kernels[1]
    assert (kernel.gdt, kernel.gdt_entries) == (tuple(frames), 1025)
    assert target.run([guest.map(B, frames[1] << 12 | PTE), guest.store(guest.va(B), 0)]) == [
        BAD, fault(PF, PF_PROT | PF_WRITE, guest.va(B))]
    assert target.run([guest.extended(Xen2003.PIN_L1, frames[1]), guest.update((guest.va(B), 0))]) == [BAD, BAD]
    assert recount(target.hypervisor) == []


def test_set_gdt_in_order(target, guest, dom0, other):
    frame = guest.frame(A)
    calls = [guest.call(Xen2003.SET_GDT, *args) for args in (
        (0x1000, 295), (0x1000, 8193), (0x1000, 0x80000200), (0x1000, 296), (END - 4, 513))]
    refused = (1200, 0xFFFFFFFF, 3, other.frame(5), guest.frame(5), guest.l1, guest.shared_info)
    program = [*guest.read_only(A), *calls, *map(guest.set_gdt, refused), dom0.set_gdt(frame), guest.set_gdt(frame, entries=296)]
    assert target.run(program)[1:] == [BAD] * 3 + [UNREADABLE] * 2 + [BAD] * 8 + [OK]


def test_a_refused_gdt_leaves_the_old_one(target, guest):
    frames = [guest.frame(page) for page in (A, B)]
    target.run([*guest.read_only(A, B), guest.set_gdt(frames[0])])
    before = words(target, frames[0], 0, 1024)
    assert target.run([guest.set_gdt(frames[1], guest.frame(5))]) == [BAD]
    assert window(target)[0][0] == frames[0]
    assert frame_of(target, frames[1]) == (1, NONE, 0, 1, False)
    assert words(target, frames[0], 0, 1024) == before


def test_where_xens_entries_may_be(target, guest):
    """W-27, W-29."""
    a, b, c = (guest.frame(page) for page in (A, B, C))
    program = [*guest.read_only(A, B, C), guest.set_gdt(a, a), guest.set_gdt(a, b, b), guest.set_gdt(b, a), guest.set_gdt(b),
               guest.set_gdt(c, a), guest.set_gdt(a, c, b), guest.set_gdt(a), guest.set_gdt(b), guest.set_gdt(a)]
    assert target.run(program)[3:] == [BAD, OK, BAD, BAD, BAD, OK, OK, OK, BAD]
    assert [frame_of(target, f)[:4] for f in (a, b, c)] == [(1, NONE, 0, 1), (1, SEG_DESC, 1, 2), (1, NONE, 0, 1)]
    assert words(target, a, 512, 80) == XENS
    clear = [guest.set_descriptor(a, place, 0) for place in range(256, 296)]
    assert target.run([*clear, guest.set_gdt(a)]) == [OK] * 41


def test_a_frame_may_be_several_later_pages(target, guest):
    a, b = guest.frame(A), guest.frame(B)
    assert target.run([*guest.read_only(A, B), guest.set_gdt(a, b, b, b)])[-1] == OK
    assert frame_of(target, b) == (1, SEG_DESC, 3, 4, False)
    assert target.run([guest.set_gdt(a)]) == [OK]
    assert frame_of(target, b) == (1, NONE, 0, 1, False)
    assert recount(target.hypervisor) == []


def test_a_full_gdt(target, guest):
    pages = range(A, A + 16)
    frames = [guest.frame(page) for page in pages]
    assert target.run([*guest.read_only(*pages), guest.set_gdt(*frames)])[-1] == OK
    assert window(target)[0] == frames


def test_the_processor_sees_the_current_domains_tables(target, guest, other):
    target.run([*guest.read_only(A, B), guest.set_gdt(guest.frame(A)), guest.set_ldt(B, 5),
                guest.call(Xen2003.STACK_SWITCH, 0x10821, 77),
                guest.set_traps((0x80, 3, 0x819, 0xC0001234)), guest.call(Xen2003.SET_FAST_TRAP, 0x80)])

    def seen():
        gdt, ldt = window(target)
        return gdt[0], ldt[0], ram(target, layout.IDT_FRAME, layout.TSS_OFFSET + 12, 2), gate_of(target, 0x80)
    mine = seen()
    assert mine == (guest.frame(A), guest.frame(B), [77, 0x821], gate(0x819, 0xF, 3, 0xC0001234))
    target.run([other.load(0)])
    assert seen() == (0, 0, [0, 0x821], 0)
    target.run([guest.load(0)])
    assert seen() == mine
    target.reset(SETUP)
    assert seen() == (0, 0, [0, 0x821], 0)


# --- one descriptor ----------------------------------------------------------------------------------------------------------

def test_update_descriptor(target, guest, dom0, other):
    """What the frame is in use as decides (W-30)."""
    a, b = guest.frame(A), guest.frame(B)
    good = segment()
    program = [
        *guest.read_only(A, B), guest.set_gdt(a, b),
        guest.set_descriptor(a, 255, good), guest.set_descriptor(a, 256, 0), guest.set_descriptor(a, 295, 0),
        guest.set_descriptor(a, 296, good), guest.set_descriptor(b, 256, good), guest.set_descriptor(b, 5, segment(dpl=0)),
        guest.set_descriptor(guest.l1, 5, 0), guest.set_descriptor(guest.l2, 5, 0),
        guest.set_descriptor(guest.shared_info, 5, good),
        guest.set_descriptor(other.frame(5), 5, 0), dom0.set_descriptor(a, 5, 0), guest.set_descriptor(1200, 5, 0),
        guest.set_descriptor(3, 5, 0), guest.call(Xen2003.UPDATE_DESCRIPTOR, (a << 12) + 4, 0, 0)]
    assert target.run(program)[3:] == [OK, BAD, BAD, OK, OK, BAD, BAD, BAD, OK] + [BAD] * 5
    assert words(target, a, 510, 2) == (good & 0xFFFFFFFF, good >> 32)
    assert words(target, a, 512, 80) == XENS
    assert words(target, b, 512, 2) == (good & 0xFFFFFFFF, good >> 32)


def test_a_descriptor_in_an_idle_frame_is_a_plain_store(target, guest):
    """It turns writable for the flush rule (W-5, W-9)."""
    stale = [guest.store(guest.va(30), 7), guest.unmap(30, 0)]
    target.run([*guest.read_only(A), guest.extended(Xen2003.PIN_L1, guest.frame(A)), *stale,
                guest.extended(Xen2003.UNPIN, guest.frame(A)), guest.set_descriptor(guest.frame(A), 5, segment())])
    assert target.run([guest.load(guest.va(30))]) == [fault(PF, 0, guest.va(30))]


# --- the LDT -----------------------------------------------------------------------------------------------------------------

def ldt_frame(target, page=0):
    return window(target)[1][page]


def test_the_first_page_is_mapped_at_once(target, guest):
    assert target.run([*guest.read_only(A), guest.set_ldt(A, 1)])[-1] == OK
    assert frame_of(target, guest.frame(A)) == (1, LDT_DESC, 1, 2, False)
    assert ldt_frame(target) == guest.frame(A)
    f = guest.frame(A)
    assert target.run([guest.map(A, f << 12 | PTE), guest.set_descriptor(f, 300, segment()),
                       guest.set_descriptor(f, 256, segment(dpl=0)), guest.set_gdt(f)]) == [BAD, OK, BAD, BAD]
    assert recount(target.hypervisor) == []


@pytest.mark.parametrize("page", ["writable", "illegal", "absent", "empty", "another's"])
def test_a_page_that_cannot_be_mapped(target, guest, dom0, other, page):
    """Nothing happens (W-36)."""
    before = {"writable": [], "illegal": [guest.store(guest.va(A) + 4, 0x8000), *guest.read_only(A)], "absent": [guest.unmap(A)],
              "empty": guest.read_only(A), "another's": [dom0.map(A, guest.frame(A) << 12 | 1)]}[page]
    caller = dom0 if page == "another's" else guest
    assert target.run([*before, caller.set_ldt(A, 0 if page == "empty" else 8)])[-1] == OK
    assert ldt_frame(target) == 0
    assert recount(target.hypervisor) == []


def test_what_drops_the_ldt(target, guest, dom0):
    a, b = guest.frame(A), guest.frame(B)
    target.run([*guest.read_only(A, B), guest.set_ldt(A, 8)])
    assert target.run([guest.set_ldt(A, 8)]) == [OK]                       # the same pair: nothing
    assert ldt_frame(target) == a
    target.run([guest.set_ldt(B, 8)])
    assert (ldt_frame(target), frame_of(target, a)) == (b, (1, NONE, 0, 1, False))
    target.run([guest.unmap(B)])
    assert (ldt_frame(target), frame_of(target, b)) == (0, (1, NONE, 0, 0, False))
    target.run([guest.map(B, b << 12 | 1)])
    assert ldt_frame(target) == 0                                           # it is not due any more
    target.run([guest.set_ldt(B, 9), guest.map(70, b << 12 | 1), guest.unmap(70)])
    assert ldt_frame(target) == b                                           # dropped and mapped again
    target.run([dom0.map(70, b << 12 | 1), dom0.unmap(70), guest.load(0)])
    assert ldt_frame(target) == 0                                           # by another domain: not due
    target.run([guest.extended(Xen2003.NEW_BASEPTR, guest.l2)])
    assert ldt_frame(target) == 0                                           # nothing was mapped, so nothing is due
    target.run([guest.set_ldt(B, 8), guest.extended(Xen2003.NEW_BASEPTR, guest.l2)])
    assert ldt_frame(target) == b
    target.run([guest.set_ldt(B, 0)])
    assert (ldt_frame(target), target.hypervisor.descriptors.ldt_pages) == (0, 0)
    assert recount(target.hypervisor) == []


@pytest.mark.parametrize("entries", [3, 30])
def test_a_table_that_is_given_up_drops_it_too(target, guest, entries):
    """Entry by entry, and in bulk."""
    stores = tuple((guest.va(C) + 4 * n, (guest.frame(A) << 12 | 1,)) for n in range(entries))
    read_only = guest.update((guest.l1e(C), guest.frame(C) << 12 | 1), request(Xen2003.TLB_FLUSH), before=stores)
    target.run([*guest.read_only(A), read_only,
                guest.extended(Xen2003.PIN_L1, guest.frame(C)), guest.set_ldt(A, 8), guest.unmap(A)])
    assert frame_of(target, guest.frame(A)) == (1, NONE, 0, entries, False)
    target.run([guest.map(A, guest.frame(A) << 12 | 1), guest.set_ldt(A, 9)])
    assert frame_of(target, guest.frame(A)) == (1, LDT_DESC, 1, entries + 2, False)
    target.run([guest.multicall((Xen2003.MMU_UPDATE, guest.va(2), 1)), guest.unmap(A), guest.map(A, guest.frame(A) << 12 | 1),
                guest.set_ldt(A, 10)])
    assert ldt_frame(target) == guest.frame(A)
    target.run([guest.extended(Xen2003.UNPIN, guest.frame(C))])
    assert frame_of(target, guest.frame(A)) == (1, LDT_DESC, 1, 2, False)   # dropped, and mapped again
    assert recount(target.hypervisor) == []


def test_due_at_the_end_of_the_whole_hypercall(target, guest):
    """The page that SET_LDT wants comes into being later in the batch."""
    target.run([guest.update((guest.va(A) | Xen2003.EXTENDED, 8 << 8 | Xen2003.SET_LDT),
                             (guest.l1e(A), guest.frame(A) << 12 | 1))])
    assert ldt_frame(target) == guest.frame(A)


# --- loads of segment registers (W-41, W-42) ----------------------------------------------------------------------------------

DATA = 0x11                                     # a selector of entry 2
ACCESSED = 1 << 40
REGISTERS = pytest.mark.parametrize("register", SEGMENT_REGISTERS)
USER = pytest.mark.parametrize("user", [False, True], ids=["ring 1", "ring 3"])


def refused(selector, vector=GP):
    return fault(vector, selector & ~3)


@REGISTERS
@USER
def test_the_default_table(target, guest, register, user):
    """Xen's segments for guests can be loaded; what is Xen's own, or the loop's, cannot."""
    good, other = (0x833, 0x821) if user else (0x821, 0x833)
    hidden = (0x808, 0x809, 0x810, 0x811, 0x840, 0x848, 0x8, 0x801, 0xFFFF, 4,
              layout.LOOP_FS, layout.LOOP_KERNEL_SS, layout.LOOP_USER_SS)
    program = [guest.load_segment(register, selector, user) for selector in (good, *hidden)]
    assert target.run([*program, guest.load(guest.va(1)), guest.load(guest.va(1), True)]) == [
        OK, *map(refused, hidden), value(0xCBCBCBCB), fault(PF, 5, guest.va(1))]
    null = refused(0) if register == "ss" else OK
    assert target.run([guest.load_segment(register, 3, user)]) == [null]
    assert target.run([guest.load_segment(register, other, user)]) == [refused(other) if user or register == "ss" else OK]


@REGISTERS
def test_a_guests_own_gdt(target, guest, register):
    """It is the processor that looks up and that sets the accessed bit."""
    a = guest.frame(A)
    data = segment(0x12)
    setup = [guest.set_descriptor(a, 2, data), guest.set_descriptor(a, 3, data & ~(1 << 47)), guest.set_descriptor(a, 511, data),
             *guest.read_only(A), guest.set_gdt(a, entries=511)]
    target.run(setup)
    assert target.run([guest.load_segment(register, selector) for selector in (DATA, 0x19, 511 << 3 | 1)]) == [
        OK, refused(0x18, SS if register == "ss" else NP), refused(511 << 3)]
    accessed = data | ACCESSED
    assert words(target, a, 4, 2) == (accessed & 0xFFFFFFFF, accessed >> 32)
    assert target.run([guest.load_segment(register, DATA, True), guest.load(guest.va(A) + 20)]) == [
        refused(DATA), value(accessed >> 32)]
    target.reset(SETUP)
    assert target.run([guest.load(guest.va(A) + 20), guest.load_segment(register, DATA)]) == [OK, refused(DATA)]


def test_each_domain_has_its_own(target, guest, other):
    for g in (guest, other):
        target.run([*g.read_only(A), g.set_gdt(g.frame(A))])
    target.run([guest.set_descriptor(guest.frame(A), 2, segment())])
    loads = [g.load_segment("es", DATA) for g in (guest, other, guest)]
    assert target.run(loads) == [OK, refused(DATA), OK]


@USER
def test_pages_of_the_ldt_are_mapped_when_they_are_needed(target, guest, user):
    selector = 515 << 3 | (7 if user else 5)
    b = guest.frame(B)
    target.run([guest.set_descriptor(b, 3, segment(dpl=3)), *guest.read_only(A, B), guest.set_ldt(A, 516)])
    assert (ldt_frame(target, 0), ldt_frame(target, 1)) == (guest.frame(A), 0)
    loads = [guest.load_segment(register, selector, user) for register in ("ds", "fs", "gs")]
    assert target.run(loads) == [OK] * 3
    assert (ldt_frame(target, 1), frame_of(target, b)) == (b, (1, LDT_DESC, 1, 2, False))
    assert target.run([guest.load_segment("ds", 516 << 3 | 7, user)]) == [refused(516 << 3 | 4)]
    missing = fault(PF, 0, layout.LDT_WINDOW + 515 * 8)
    assert target.run([guest.unmap(B), *loads]) == [OK] + [missing] * 3
    assert target.run([guest.map(B, b << 12 | PTE), loads[0]]) == [OK, missing]        # in use as data
    assert target.run([*guest.read_only(B), loads[0], guest.set_ldt(A, 0), loads[0]]) == [OK, OK, OK, refused(selector)]
    assert recount(target.hypervisor) == []


def test_loads_that_are_no_loads(target, guest):
    for register, selector in (("cs", 0x819), ("ds", 0x10821)):
        with pytest.raises(HarnessError, match="segment register"):
            target.run([guest.load_segment(register, selector)])


# --- handlers, callbacks, stack ----------------------------------------------------------------------------------------------

def test_set_trap_table(target, guest):
    assert target.run([guest.set_traps((0, 0, 0x819, 1), (255, 7, 0x15, 0xFFFFFFFF)),
                       guest.set_traps((3, 0, 0x819, 5), (4, 0, 0x809, 5)),
                       guest.set_traps((4, 0, 0x809, 0)), guest.set_traps((5, 0, 0x81A, 1)), guest.set_traps((6, 0, 0, 1)),
                       guest.call(Xen2003.SET_TRAP_TABLE, 0x1000), guest.call(Xen2003.SET_TRAP_TABLE, END)]) == [
        OK, FORBIDDEN, OK, FORBIDDEN, FORBIDDEN, UNREADABLE, UNREADABLE]
    assert target.hypervisor.descriptors.kernels[1].handlers == {0: (0x819, 1, 0), 255: (0x15, 0xFFFFFFFF, 7), 3: (0x819, 5, 0)}


def test_a_trap_table_that_ends_where_memory_does(target, guest):
    last = guest.va(-1) + PAGE_SIZE                     # shared_info, and nothing behind it
    data = ((last + 0xFF8, (0x08190007, 9)),)
    assert target.run([guest.call(Xen2003.SET_TRAP_TABLE, last + 0xFF8, data=data)]) == [UNREADABLE]
    assert target.hypervisor.descriptors.kernels[1].handlers == {7: (0x819, 9, 0)}


@pytest.mark.parametrize(("vector", "good"), [
    (0x80, True), (0x20, True), (0x2F, True), (0x1F, False), (0x30, False), (0x82, False), (0x81, False), (3, False),
    (0x180, False), (0xFFFFFFFF, False), (0, True)])
def test_set_fast_trap(target, guest, vector, good):
    xens = gate_of(target, 0x82)
    assert target.run([guest.call(Xen2003.SET_FAST_TRAP, vector)]) == [OK if good else value(-1)]
    assert gate_of(target, 0x82) == xens
    if good and vector:
        assert gate_of(target, vector) == gate(0x819, 0xF, 0, 0)


def test_the_gate_is_the_handlers(target, guest):
    """One at a time; it follows its handler, and goes when that wants events masked (W-33)."""
    fast = guest.call(Xen2003.SET_FAST_TRAP, 0x21)
    assert target.run([guest.set_traps((0x20, 3, 0x819, 0x11112222), (0x21, 5, 0x819, 7)), fast,
                       guest.call(Xen2003.SET_FAST_TRAP, 0x20)]) == [OK, value(-1), OK]
    assert gate_of(target, 0x20) == gate(0x819, 0xF, 3, 0x11112222)
    target.run([guest.set_traps((0x20, 1, 0xD, 0x33)), guest.set_traps((0x21, 0, 0x819, 7))])
    assert gate_of(target, 0x20) == gate(0xD, 0xF, 1, 0x33)
    assert target.run([fast]) == [OK]
    assert (gate_of(target, 0x20), gate_of(target, 0x21)) == (0, gate(0x819, 0xF, 0, 7))
    target.run([guest.set_traps((0x21, 4, 0x819, 7))])
    assert gate_of(target, 0x21) == 0
    assert target.hypervisor.descriptors.kernels[1].fast_trap == 0


def test_set_callbacks(target, guest):
    def callbacks(*args):
        return guest.call(Xen2003.SET_CALLBACKS, *args)
    assert target.run([callbacks(0x10819, 1, 0x1D, 2), callbacks(0x809, 1, 0x819, 2), callbacks(0x819, 1, 0x10809, 2),
                       callbacks(0x819, 1, 0x82B, 2)]) == [OK] + [FORBIDDEN] * 3
    kernel = target.hypervisor.descriptors.kernels[1]
    assert (kernel.event, kernel.failsafe) == ((0x819, 1, 0), (0x1D, 2, 0))
    target.run([guest.multicall((Xen2003.SET_CALLBACKS, 0x819, 3, 0x819, 4))])
    assert (kernel.event, kernel.failsafe) == ((0x819, 3, 0), (0x819, 4, 0))


def test_stack_switch(target, guest):
    def stack(ss, esp):
        return guest.call(Xen2003.STACK_SWITCH, ss, esp)
    assert target.run([stack(0x821, 5), stack(0x810, 6), stack(0x10000, 6), stack(3, 0xFFFFFFFF)]) == [
        OK, FORBIDDEN, FORBIDDEN, OK]
    assert target.hypervisor.descriptors.kernels[1].stack == (3, 0xFFFFFFFF)


def test_fpu_taskswitch(target, guest):
    assert target.run([guest.call(Xen2003.FPU_TASKSWITCH)]) == [OK]
    assert target.hypervisor.descriptors.kernels[1].wants_fpu_trap


# --- debug registers ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("register", "number", "outcome", "kept"), [
    (0, 0xFC3FFFFC, OK, 0xFC3FFFFC), (3, 0xFC3FFFFD, FORBIDDEN, 0), (4, 0, BAD, 0), (5, 0, BAD, 0), (8, 0, BAD, -EINVAL),
    (0xFFFFFFFF, 0, BAD, -EINVAL), (6, 0, OK, 0xFFFF0FF0), (6, 0xFFFFFFFF, OK, 0xFFFFEFFF), (7, 0, OK, 0), (7, 1, OK, 0x401),
    (7, 0xD800, OK, 0x400), (7, 0x2000, FORBIDDEN, 0), (7, 0x20000, FORBIDDEN, 0), (7, 0x80000000, FORBIDDEN, 0),
    (7, 0xF7F7FFFF & ~0x2000, OK, 0xF7F707FF), (7, 0xFFFFD7FF, OK, 0xFFFF07FF)])
def test_debug_registers(target, guest, other, register, number, outcome, kept):
    kept -= kept >> 31 << 32 if kept > 0 else 0         # a result is signed
    assert target.run([guest.call(Xen2003.SET_DEBUGREG, register, number), guest.call(Xen2003.GET_DEBUGREG, register)]) == [
        outcome, value(kept)]
    assert target.run([other.call(Xen2003.GET_DEBUGREG, register)]) == [value(-EINVAL if register > 7 else 0)]


# --- lists of calls ----------------------------------------------------------------------------------------------------------

def test_multicall(target, guest):
    a = guest.frame(A)
    assert target.run([*guest.read_only(A), guest.multicall(
        (Xen2003.SET_GDT, guest.va(LIST) + 0x800, 296), (Xen2003.UPDATE_DESCRIPTOR, a << 12, 0x1111, 0),
        (Xen2003.SET_DEBUGREG, 1, 5), (Xen2003.STACK_SWITCH, 0x821, 8)),
        guest.call(Xen2003.GET_DEBUGREG, 1)])[1:] == [OK, value(5)]
    target.run([guest.store(guest.va(LIST) + 0x800, a), guest.multicall((Xen2003.SET_GDT, guest.va(LIST) + 0x800, 296))])
    assert frame_of(target, a) == (1, SEG_DESC, 1, 2, False)
    assert words(target, a, 0, 2) == (0x1111, 0)
    assert recount(target.hypervisor) == []


def test_tables_of_a_frame_that_was_data(target, guest):
    """A descriptor table in use is no data, and idle again it may be."""
    a = guest.frame(A)
    target.run([*guest.read_only(A), guest.set_gdt(a)])
    assert target.run([guest.decrease(a), guest.set_ldt(A, 8)]) == [BAD, OK]
    assert ldt_frame(target) == 0
    target.run([*guest.read_only(B), guest.set_gdt(guest.frame(B)), guest.map(A, a << 12 | PTE)])
    assert frame_of(target, a) == (1, WRITABLE, 1, 1, False)
