"""Descriptor tables, handlers, stacks and breakpoints of xen-2003 (xen-2003.md §5-7; RULINGS.md W-24 to W-40)."""
import pytest

from refmodel import ModelError, boot
from refmodel.boot import SetupError
from spec.abi import EFAULT, EINVAL, EPERM, L1, LDT_DESC, RW, SEG_DESC, WRITABLE, A, D, P, Xen2003
from spec.kernel import Index
from spec.rings import CS, DS, ES, FS, GS, SS
from spec.vocabulary import DomainSetup, Hypercall, Setup
from spec.x86.descriptors import ACCESSED, PRESENT, base_of

X = Xen2003
FULL = P | RW | A | D
OWN_INDEX = 7                                                       # where the tests put a descriptor
RING_1_DATA, RING_1_CODE = 0x00C0B20000000FFF, 0x00C0BA0000000FFF   # 16 MB from address 0
GATE = 0x0000EC0008190000                                           # a call gate of DPL 3 to the flat kernel code
XENS = tuple(w for n in range(256, 296) for w in (X.DESCRIPTORS.get(n, 0) & 0xFFFFFFFF, X.DESCRIPTORS.get(n, 0) >> 32))


def segment(base, limit):
    """Data of ring 1 of so many bytes and one."""
    return limit & 0xFFFF | (base & 0xFFFFFF) << 16 | 0xB2 << 40 | (limit >> 16) << 48 | 1 << 54 | (base >> 24) << 56


LEGAL = {
    "not present": 0x00CF1A000000FFFF,
    "not present system": 0x0000090000000067,
    "data of ring 1": RING_1_DATA, "code of ring 1": RING_1_CODE,
    "data of ring 2": RING_1_DATA + (1 << 45), "conforming code of ring 3": RING_1_CODE | 3 << 45 | 1 << 42,
    "up to Xen by pages": 0x00CFB2000000C3FF, "up to Xen by bytes": segment(0xFC3FFF00, 0xFF),
    "gate": GATE, "gate to the guest's code": 0x0000EC0000390000, "gate to the LDT": 0x0000EC0008050000,
}
ILLEGAL = {
    "ring 0": RING_1_DATA - (1 << 45), "ring 0 code": 0x00CF9A000000FFFF,
    "one page too long": 0x00CFB2000000C400, "all memory": 0x00CFB2000000FFFF, "based in the hole": segment(X.GUEST_END, 0),
    "one byte too long": segment(0xFC3FFF00, 0x100), "wraps": segment(0xFFFFF000, 0x1000),
    "expands down": RING_1_DATA | 1 << 42,
    "TSS": 0x0000A90000000067, "LDT": 0x0000A20000000067, "task gate": 0x0000A50008190000,
    "16-bit gate": 0x0000A40008190000, "interrupt gate": 0x0000AE0008190000, "trap gate": 0x0000AF0008190000,
    "gate to ring 0": 0x0000EC0000380000, "gate to Xen's code": 0x0000EC0008090000, "gate to ring 3": 0x0000EC00082B0000,
    "gate to the flat data": 0x0000EC0008210000, "gate with odd bits": GATE | 1 << 37, "gate of ring 0": 0x00008C0008190000,
}


def end(q):
    """The last address of a segment, as the manual has it."""
    base = (q >> 16 & 0xFFFFFF) | (q >> 32 & 0xFF000000)
    raw = (q & 0xFFFF) | (q >> 32 & 0xF0000)
    return base + ((raw << 12 | 0xFFF) if q >> 55 & 1 else raw)


def test_the_samples_are_what_their_names_say():
    assert end(LEGAL["up to Xen by pages"]) == end(LEGAL["up to Xen by bytes"]) == X.GUEST_END - 1
    assert end(ILLEGAL["one byte too long"]) == X.GUEST_END
    assert end(ILLEGAL["wraps"]) == 1 << 32


def table(xen2, dom, page, descriptors, mapped=P):
    """Write descriptors into a page, make it idle, and map it read-only, or not at all: its frame."""
    f = xen2.frame(dom, page)
    assert xen2.uvm(dom, xen2.va(page), f << 12 | FULL, X.UVMF_INVLPG) == 0
    for i, q in descriptors.items():
        xen2.fill(dom, page, {2 * i: q & 0xFFFFFFFF, 2 * i + 1: q >> 32})
    assert xen2.uvm(dom, xen2.va(page), f << 12 | mapped if mapped else 0, X.UVMF_INVLPG) == 0
    return f


def set_gdt(xen2, dom, *frames, entries=None):
    entries = 512 * len(frames) if entries is None else entries
    return xen2.call(dom, X.SET_GDT, xen2.va(2), entries, data=((xen2.va(2), frames),) if frames else ())


def update(xen2, dom, f, i, q):
    return xen2.call(dom, X.UPDATE_DESCRIPTOR, f << 12 | i << 3, q & 0xFFFFFFFF, q >> 32)


def descriptor(xen2, f, i):
    return xen2.word(f, 2 * i) | xen2.word(f, 2 * i + 1) << 32


def trace(xen2):
    """All that is known of the machine but for the arguments of domain 1."""
    arguments = xen2.frame(1, 2)
    return [(k, {key: v for key, v in m.items() if k != "word" or key[0] != arguments}) for k, m in xen2.trace()]


def xens_part(xen2, f):
    return tuple(xen2.word(f, i) for i in range(512, 592))


def gdt(xen2, dom):
    s = xen2.m.s
    return [s.gdt[dom, n] for n in range(16) if s.has_gdt[dom, n]]


def ldt(xen2, dom):
    s = xen2.m.s
    return {n: s.ldt[dom, n] for n in range(16) if s.has_ldt[dom, n]}


def set_ldt(xen2, dom, page, entries):
    return xen2.mmu(dom, (xen2.va(page) | X.EXTENDED, entries << 8 | X.SET_LDT))


# --- the start ---------------------------------------------------------------------------------------------------------------

def test_a_domain_starts_in_ring_1_on_xens_table(xen2):
    s = xen2.m.s
    assert s.gdt_entries[1] == 296
    assert gdt(xen2, 1) == []
    assert [s.selector[1, r] for r in (ES, CS, SS, DS, FS, GS)] == [0x821, 0x819, 0x821, 0x821, 0x821, 0x821]
    assert s.segment[1, CS] == X.DESCRIPTORS[259]
    assert s.segment[1, SS] == s.segment[1, GS] == X.DESCRIPTORS[260]
    assert (s.trap_cs[1, 0], s.trap_cs[1, 255], s.trap_ip[1, 14]) == (0x819, 0x819, 0)


def test_a_setup_may_have_descriptors_of_its_own():
    domains = (DomainSetup(0, 16, 32),)
    own = (*XENS[:78], 0x77, 0x88)
    m = boot(Setup("xen-2003", 64, 16, domains, xen_descriptors=own))
    assert m.s.xen_descriptor[Index(590)] == 0x77
    for profile, words in (("xen-2003", (0,) * 79), ("xen-4.17", XENS)):
        with pytest.raises(SetupError, match="xen_descriptors"):
            boot(Setup(profile, 64, 16, domains, xen_descriptors=words))


# --- set_gdt -----------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("entries", [296, 511, 512])
def test_set_gdt(xen2, entries):
    f = table(xen2, 1, 5, {OWN_INDEX: RING_1_CODE, 511: GATE})
    assert set_gdt(xen2, 1, f, entries=entries) == 0
    assert xen2.count(f) == (SEG_DESC, 1, 2)
    assert gdt(xen2, 1) == [f]
    assert xen2.m.s.gdt_entries[1] == entries
    assert xens_part(xen2, f) == XENS
    assert descriptor(xen2, f, OWN_INDEX) == RING_1_CODE


def test_set_gdt_flushes(xen2):
    f = table(xen2, 1, 5, {})
    assert set_gdt(xen2, 1, f) == 0
    before = xen2.m.s.clock[0]
    assert set_gdt(xen2, 1, f, entries=300) == 0
    assert xen2.m.s.clock[0] == before + 1


def test_a_guest_sees_xens_entries_and_cannot_write_them(xen2):
    f = table(xen2, 1, 5, {})
    assert set_gdt(xen2, 1, f) == 0
    assert xen2.load(1, xen2.va(5, 8 * 259)).value == XENS[6]
    assert xen2.store(1, xen2.va(5), 0).error == 3
    assert xen2.uvm(1, xen2.va(5), f << 12 | FULL) == -EINVAL


@pytest.mark.parametrize(("entries", "rule"), [(0, 1), (295, 1), (8193, 2), (0xFFFFFFFF, 2)])
def test_set_gdt_looks_at_the_size_first(xen2, entries, rule):
    assert xen2.call(1, X.SET_GDT, 0x1000, entries) == -EINVAL
    assert xen2.refused == [f"DESC-20.{rule}"]


def test_set_gdt_reads_the_whole_list_before_it_looks(xen2):
    end = xen2.va(33)                                               # shared_info is the last mapped page
    assert xen2.call(1, X.SET_GDT, end - 4, 513, data=((end - 4, (0xFFFFF,)),)) == -EFAULT
    assert xen2.call(1, X.SET_GDT, end - 4, 512, data=((end - 4, (0xFFFFF,)),)) == -EINVAL
    assert xen2.call(1, X.SET_GDT, X.GUEST_END - 4, 513) == -EFAULT


@pytest.mark.parametrize(("frame", "rule"), [
    (lambda x: 2048, "DESC-21.1"), (lambda x: 0xFFFFFFFF, "DESC-21.1"), (lambda x: 3, "DESC-21.2"),
    (lambda x: x.frame(2, 5), "DESC-21.2"), (lambda x: x.free, "DESC-21.2"), (lambda x: x.frame(1, 6), "TYPE-1.6"),
    (lambda x: x.frame(1, -1), "TYPE-1.6"), (lambda x: x.shared(1), "TYPE-1.6")])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_every_frame_of_the_list_is_the_callers_and_idle(xen2, place, frame, rule):
    good = [table(xen2, 1, page, {}) for page in (10, 11)]
    before = trace(xen2)
    assert set_gdt(xen2, 1, *good[:place], frame(xen2), *good[place:]) == -EINVAL
    assert xen2.refused == [rule]
    assert trace(xen2) == before


def test_domain_0_has_no_exception(xen2):
    f = table(xen2, 1, 5, {})
    assert set_gdt(xen2, 0, f) == -EINVAL
    assert xen2.refused == ["DESC-21.2"]


@pytest.mark.parametrize("q", LEGAL.values(), ids=LEGAL)
def test_legal_descriptors(xen2, q):
    assert set_gdt(xen2, 1, table(xen2, 1, 5, {}), table(xen2, 1, 6, {511: q})) == 0
    assert update(xen2, 1, xen2.frame(1, 6), 0, q) == 0
    assert descriptor(xen2, xen2.frame(1, 6), 0) == q


@pytest.mark.parametrize("q", ILLEGAL.values(), ids=ILLEGAL)
def test_illegal_descriptors(xen2, q):
    first, second = table(xen2, 1, 5, {}), table(xen2, 1, 6, {511: q})
    before = trace(xen2)
    assert set_gdt(xen2, 1, first, second) == -EINVAL               # W-25
    assert xen2.refused == ["DESC-1.5"]
    assert set_gdt(xen2, 1, second) == -EINVAL
    assert update(xen2, 1, first, 0, q) == -EINVAL
    assert xen2.refused == ["DESC-22.3"]
    assert trace(xen2) == before


def test_reserved_entries_are_checked_before_they_are_filled(xen2):
    assert set_gdt(xen2, 1, table(xen2, 1, 5, {256: ILLEGAL["ring 0"]})) == -EINVAL
    assert set_gdt(xen2, 1, table(xen2, 1, 5, {256: RING_1_DATA})) == 0
    assert descriptor(xen2, xen2.frame(1, 5), 256) == 0


def test_the_new_gdt_replaces_the_old(xen2):
    a, b, c = (table(xen2, 1, page, {}) for page in (5, 6, 7))
    assert set_gdt(xen2, 1, a, b, c, b) == 0
    assert [xen2.count(f)[:2] for f in (a, b, c)] == [(SEG_DESC, 1), (SEG_DESC, 2), (SEG_DESC, 1)]
    assert xens_part(xen2, b) == (0,) * 80
    assert set_gdt(xen2, 1, a, c) == 0                              # a keeps Xen's entries all the time
    assert gdt(xen2, 1) == [a, c]
    assert xen2.count(b) == (SEG_DESC, 0, 1)
    assert xen2.uvm(1, xen2.va(6), b << 12 | FULL) == 0
    assert xen2.uvm(1, xen2.va(7), c << 12 | FULL) == -EINVAL


@pytest.mark.parametrize("frames", [(6, 6), (6, 7, 6), (5, 6, 5), (7,), (7, 5), (6, 5)])
def test_xens_entries_are_in_the_first_page_and_no_other(xen2, frames):
    """W-27; page 5 is the first and page 7 the second of the GDT in force, page 6 is idle."""
    f = {page: table(xen2, 1, page, {}) for page in (5, 6, 7)}
    assert set_gdt(xen2, 1, f[5], f[7]) == 0
    before = trace(xen2)
    assert set_gdt(xen2, 1, *(f[page] for page in frames)) == -EINVAL
    assert xen2.refused[0] in ("GDT-1.4", "GDT-2.7")
    assert trace(xen2) == before


def test_a_former_first_page_has_xens_entries_as_words(xen2):
    """W-29."""
    a, b = table(xen2, 1, 5, {}), table(xen2, 1, 6, {})
    assert set_gdt(xen2, 1, a) == set_gdt(xen2, 1, b) == 0
    assert xens_part(xen2, a) == XENS
    assert set_gdt(xen2, 1, a) == -EINVAL
    assert xen2.refused == ["DESC-1.5"]
    for i in (257, 258, 264, 265):
        assert update(xen2, 1, a, i, 0) == 0
    assert set_gdt(xen2, 1, a) == 0


def test_a_gdt_in_use_cannot_be_given_back(xen2):
    f = table(xen2, 1, 5, {}, mapped=0)
    assert set_gdt(xen2, 1, f) == 0
    assert xen2.resize(1, X.DECREASE, f) == -EINVAL
    assert xen2.refused == ["MEM-3.3"]
    assert set_gdt(xen2, 1, table(xen2, 1, 6, {})) == 0
    assert xen2.resize(1, X.DECREASE, f) == 1


def test_a_stale_translation_is_flushed_before_the_page_is_a_table(xen2):
    f = xen2.frame(1, 5)
    assert xen2.store(1, xen2.va(5), 0).vector < 0
    assert xen2.uvm(1, xen2.va(5), f << 12 | P) == 0                # no flush
    assert set_gdt(xen2, 1, f) == 0
    assert xen2.store(1, xen2.va(5), 0xFFFF).error == 3


# --- update_descriptor -------------------------------------------------------------------------------------------------------

def test_update_descriptor_checks_in_order(xen2):
    mine, others, bad = xen2.frame(1, 5), xen2.frame(2, 5), ILLEGAL["ring 0"]
    for address, q, rule in [(4096 << 12 | 4, bad, 1), (4096 << 12, bad, 2), (others << 12, bad, 3), (others << 12, 0, 4),
                             (xen2.frame(1, -1) << 12, 0, 5), (3 << 12, 0, 4), (xen2.free << 12, 0, 4)]:
        assert xen2.call(1, X.UPDATE_DESCRIPTOR, address, q & 0xFFFFFFFF, q >> 32) == -EINVAL
        assert xen2.refused == [f"DESC-22.{rule}"]
    assert xen2.call(0, X.UPDATE_DESCRIPTOR, mine << 12, 0, 0) == -EINVAL       # domain 0 has no exception
    assert xen2.refused == ["DESC-22.4"]


@pytest.mark.parametrize("i", [256, 275, 295])
def test_xens_entries_stay(xen2, i):
    first, second = table(xen2, 1, 5, {}), table(xen2, 1, 6, {})
    assert set_gdt(xen2, 1, first, second) == 0
    assert update(xen2, 1, first, i, RING_1_DATA) == -EINVAL
    assert xen2.refused == ["DESC-2.6"]
    assert xens_part(xen2, first) == XENS
    assert update(xen2, 1, second, i, RING_1_DATA) == 0
    assert update(xen2, 1, first, 255, RING_1_DATA) == update(xen2, 1, first, 296, RING_1_DATA) == 0


def test_update_descriptor_of_memory(xen2):
    """Of a writable page, of an idle one, of one that was a table; each is then what a store makes it."""
    f = xen2.frame(1, 5)
    assert update(xen2, 1, f, 3, GATE) == 0
    assert xen2.count(f) == (WRITABLE, 1, 1)
    assert xen2.uvm(1, xen2.va(5), f << 12 | P, X.UVMF_INVLPG) == 0
    assert update(xen2, 1, f, 4, RING_1_CODE) == 0
    assert (descriptor(xen2, f, 3), descriptor(xen2, f, 4)) == (GATE, RING_1_CODE)
    assert xen2.count(f)[1] == 0
    assert update(xen2, 1, xen2.shared(1), 511, GATE) == 0
    assert xen2.extended(1, X.PIN_L1, table(xen2, 1, 6, {})) == 0
    assert update(xen2, 1, xen2.frame(1, 6), 0, 0) == -EINVAL
    assert xen2.count(xen2.frame(1, 6))[0] == L1
    assert xen2.extended(1, X.UNPIN, xen2.frame(1, 6)) == 0
    assert update(xen2, 1, xen2.frame(1, 6), 0, 0) == 0             # what the frame last was does not matter


# --- the LDT -----------------------------------------------------------------------------------------------------------------

def test_set_ldt_maps_its_first_page(xen2):
    f, g = table(xen2, 1, 5, {OWN_INDEX: RING_1_DATA}), table(xen2, 1, 6, {})
    assert set_ldt(xen2, 1, 5, 1024) == 0
    assert ldt(xen2, 1) == {0: f}
    assert xen2.count(f) == (LDT_DESC, 1, 2)
    assert xen2.count(g)[1] == 0                                    # the next one is mapped when it is needed
    assert xen2.m.map_ldt_page(1, Index(1))
    assert ldt(xen2, 1) == {0: f, 1: g}
    assert update(xen2, 1, f, 256, GATE) == 0                       # an LDT has no entries of Xen's
    assert xen2.uvm(1, xen2.va(5), f << 12 | FULL) == -EINVAL
    assert set_gdt(xen2, 1, f) == -EINVAL
    assert xen2.refused == ["TYPE-1.6"]


@pytest.mark.parametrize("page", ["writable", "absent", "illegal", "foreign", "table", "gdt", "window"])
def test_what_cannot_be_mapped_is_not(xen2, page):
    f = table(xen2, 1, 5, {511: ILLEGAL["ring 0"]} if page == "illegal" else {}, mapped=0 if page == "absent" else P)
    at = xen2.va(5)
    if page == "writable":
        assert xen2.uvm(1, xen2.va(5), f << 12 | FULL) == 0
    elif page == "gdt":
        assert set_gdt(xen2, 1, f) == 0
    elif page in ("table", "window"):
        at = xen2.va(31) if page == "table" else X.HOLE
    dom = 0 if page == "foreign" else 1
    if dom == 0:
        assert xen2.uvm(0, xen2.va(5), f << 12 | P, X.UVMF_INVLPG) == 0
    before = xen2.count(f)
    assert xen2.mmu(dom, (at | X.EXTENDED, 512 << 8 | X.SET_LDT)) == 0
    assert xen2.refused == []
    assert ldt(xen2, dom) == {}
    assert xen2.count(f) == before
    assert xen2.m.s.ldt_entries[dom] == 512


def test_pages_beyond_the_ldt_are_not_mapped(xen2):
    table(xen2, 1, 5, {})
    table(xen2, 1, 6, {})
    assert set_ldt(xen2, 1, 5, 512) == 0
    assert not xen2.m.map_ldt_page(1, Index(0))                     # nor one twice
    assert outcome(xen2.load_segment(1, "ds", 512 << 3 | 5)) == (13, 512 << 3 | 4, 0)
    assert list(ldt(xen2, 1)) == [0]
    assert set_ldt(xen2, 1, 5, 513) == 0
    assert outcome(xen2.load_segment(1, "ds", 512 << 3 | 5)) == (13, 512 << 3 | 4, 0)
    assert list(ldt(xen2, 1)) == [0, 1]                             # there is nothing in it, but it is looked at


@pytest.mark.parametrize("page", [5, 6])
def test_the_same_ldt_stays(xen2, page):
    table(xen2, 1, 5, {})
    assert set_ldt(xen2, 1, 5, 512) == 0
    before = xen2.m.s.clock[0]
    assert set_ldt(xen2, 1, page, 512) == 0
    assert (xen2.m.s.clock[0] != before) is (page == 6)
    assert (len(ldt(xen2, 1)) == 1) is (page == 5)


def test_no_ldt_drops_all_pages(xen2):
    frames = [table(xen2, 1, page, {}) for page in (5, 6)]
    assert set_ldt(xen2, 1, 5, 1024) == 0
    xen2.m.map_ldt_page(1, Index(1))
    before = xen2.m.s.clock[0]
    assert xen2.mmu(1, (X.EXTENDED, X.SET_LDT)) == 0
    assert ldt(xen2, 1) == {}
    assert [xen2.count(f) for f in frames] == [(LDT_DESC, 0, 1)] * 2
    assert xen2.m.s.clock[0] > before
    assert xen2.uvm(1, xen2.va(5), frames[0] << 12 | FULL) == 0


def test_a_new_base_drops_the_ldt_and_maps_its_first_page_again(xen2):
    frames = [table(xen2, 1, page, {}) for page in (5, 6)]
    assert set_ldt(xen2, 1, 5, 1024) == 0
    xen2.m.map_ldt_page(1, Index(1))
    assert xen2.extended(1, X.NEW_BASEPTR, xen2.frame(1, -1)) == 0
    assert ldt(xen2, 1) == {0: frames[0]}


@pytest.mark.parametrize("caller", [0, 1])
def test_putting_a_read_only_mapping_drops_the_owners_ldt(xen2, caller):
    frames = [table(xen2, 1, page, {}) for page in (5, 6)]
    assert set_ldt(xen2, 1, 5, 1024) == 0
    xen2.m.map_ldt_page(1, Index(1))
    assert xen2.uvm(caller, xen2.va(20), frames[1] << 12 | P, X.UVMF_INVLPG) == 0
    assert len(ldt(xen2, 1)) == 2
    assert xen2.uvm(caller, xen2.va(20), 0) == 0
    assert ldt(xen2, 1) == ({0: frames[0]} if caller else {})       # only the caller's own is due again (W-35)


def test_a_page_that_goes_away_is_not_mapped_again(xen2):
    f = table(xen2, 1, 5, {})
    assert set_ldt(xen2, 1, 5, 512) == 0
    assert xen2.uvm(1, xen2.va(5), 0) == 0
    assert ldt(xen2, 1) == {}
    assert xen2.count(f) == (LDT_DESC, 0, 0)
    assert xen2.uvm(1, xen2.va(5), f << 12 | P) == 0                # nothing is due any more
    assert ldt(xen2, 1) == {}


def test_a_refused_request_drops_nothing(xen2):
    f = table(xen2, 1, 5, {})
    assert set_ldt(xen2, 1, 5, 512) == 0
    before = trace(xen2)
    assert xen2.uvm(1, xen2.va(5), 3 << 12 | P) == -EINVAL
    assert xen2.mmu(1, (xen2.va(6, 4) | X.EXTENDED, 5 << 8 | X.SET_LDT)) == -EINVAL
    assert ldt(xen2, 1) == {0: f}
    assert trace(xen2) == before


def test_what_is_due_waits_for_the_end_of_a_multicall(xen2):
    """W-36: the mapping that Xen would check the LDT's page through is replaced before it looks."""
    f = table(xen2, 1, 5, {})
    request = (xen2.va(5) | X.EXTENDED, 512 << 8 | X.SET_LDT)
    calls = (X.MMU_UPDATE, xen2.va(2, 1024), 1, 0, 0, 0, 0, 0,
             X.UPDATE_VA_MAPPING, xen2.va(5) >> 12, f << 12 | FULL, 0, 0, 0, 0, 0)
    xen2.call(1, X.MULTICALL, xen2.va(2), 2, data=((xen2.va(2), calls), (xen2.va(2, 1024), request)))
    assert ldt(xen2, 1) == {}
    assert xen2.count(f) == (WRITABLE, 1, 1)


def test_ldt_pages_are_dropped_with_the_tables_that_map_them(xen2):
    """An L1 table that maps an LDT page read-only goes away as a whole."""
    f = table(xen2, 1, 5, {})
    leaf = xen2.frame(1, 7)
    xen2.fill(1, 7, {9: f << 12 | P})
    assert xen2.uvm(1, xen2.va(7), leaf << 12 | P, X.UVMF_INVLPG) == 0
    assert xen2.extended(1, X.PIN_L1, leaf) == 0
    assert set_ldt(xen2, 1, 5, 512) == 0
    assert xen2.extended(1, X.UNPIN, leaf) == 0
    assert ldt(xen2, 1) == {0: f}                                   # dropped, and mapped again


def test_the_ldt_of_a_page_of_its_own_walk(xen2):
    """SET_LDT of domain 2 takes no page of domain 1's, and each has its own."""
    a, b = table(xen2, 1, 5, {}), table(xen2, 2, 5, {})
    assert set_ldt(xen2, 1, 5, 512) == set_ldt(xen2, 2, 5, 512) == 0
    assert (ldt(xen2, 1), ldt(xen2, 2)) == ({0: a}, {0: b})


# --- segment registers -------------------------------------------------------------------------------------------------------

def outcome(out):
    return out.vector, out.error, out.address


RING_3_DATA = RING_1_DATA | 3 << 45
LOADABLE = {1: RING_1_DATA, 2: RING_3_DATA, 3: RING_1_DATA & ~PRESENT, 4: RING_1_CODE, 5: RING_1_CODE & ~(1 << 41), 6: GATE,
            7: RING_1_DATA & ~(1 << 41), 8: RING_1_CODE | 1 << 42, 9: RING_3_DATA & ~PRESENT}


@pytest.mark.parametrize(("register", "index", "rpl", "user", "fault"), [
    ("ds", 1, 1, False, None), ("gs", 1, 0, False, None), ("es", 1, 3, False, 13), ("fs", 1, 1, True, 13),
    ("ds", 2, 3, True, None), ("ds", 2, 3, False, None), ("ds", 3, 1, False, 11), ("ds", 4, 1, False, None),
    ("ds", 5, 1, False, 13), ("ds", 6, 1, False, 13), ("ds", 7, 1, False, None), ("ds", 8, 3, True, None),
    ("ss", 1, 1, False, None), ("ss", 1, 0, False, 13), ("ss", 1, 1, True, 13), ("ss", 2, 3, True, None),
    ("ss", 3, 1, False, 12), ("ss", 9, 3, True, 12), ("ss", 7, 1, False, 13), ("ss", 4, 1, False, 13), ("ds", 0, 3, False, None),
    ("ss", 0, 3, True, 13), ("ds", 100, 1, False, 13), ("ds", 512, 1, False, 13)])
@pytest.mark.parametrize("ldt_too", [False, True])
def test_loads(xen2, ldt_too, register, index, rpl, user, fault):
    f = table(xen2, 1, 5, LOADABLE)
    if ldt_too:
        assert set_ldt(xen2, 1, 5, 512) == 0
        if index == 0:                      # no null selector in an LDT
            fault = 13
    else:
        assert set_gdt(xen2, 1, f) == 0
    selector = index << 3 | rpl | (X.TI if ldt_too else 0)
    before = descriptor(xen2, f, index & 511)
    out = xen2.load_segment(1, register, selector, user)
    assert outcome(out) == ((-1, 0, 0) if fault is None else (fault, selector & 0xFFFC, 0))
    mark = ACCESSED if fault is None and index else 0
    assert descriptor(xen2, f, index & 511) == before | mark        # W-42
    s = xen2.m.s
    assert [s.selector[1, r] for r in (ES, CS, SS, DS, FS, GS)] == [0x821, 0x819, 0x821, 0x821, 0x821, 0x821]


@pytest.mark.parametrize(("selector", "user", "good"), [
    (0x821, False, True), (0x821, True, False), (0x833, False, True), (0x833, True, True), (0x819, False, True),
    (0x809, False, False), (0x811, False, False), (0x841, False, False), (0x39, False, False), (0x941, False, False),
    (3, True, True)])
def test_loads_from_xens_table(xen2, selector, user, good):
    assert (xen2.load_segment(1, "ds", selector, user).vector < 0) is good


def test_pages_of_the_ldt_are_mapped_by_loads(xen2):
    """W-41."""
    first, second = table(xen2, 1, 5, {511: RING_1_DATA}), table(xen2, 1, 6, {0: RING_1_DATA})
    assert set_ldt(xen2, 1, 5, 1536) == 0
    assert ldt(xen2, 1) == {0: first}
    assert xen2.load_segment(1, "ds", 511 << 3 | 5).vector < 0
    assert ldt(xen2, 1) == {0: first}
    assert xen2.load_segment(1, "ds", 512 << 3 | 5).vector < 0
    assert ldt(xen2, 1) == {0: first, 1: second}
    window = base_of(X.DESCRIPTORS[265])
    for user in (False, True):              # page 7 is writable
        assert outcome(xen2.load_segment(1, "ss", 1025 << 3 | 5, user)) == (14, 0, window + 1025 * 8)
    assert outcome(xen2.load_segment(1, "ss", 1536 << 3 | 5)) == (13, 1536 << 3 | 4, 0)
    assert xen2.refused == []


def test_a_segment_that_the_guest_replaces_is_checked_again(xen2):
    f = table(xen2, 1, 5, {1: RING_1_DATA})
    assert set_gdt(xen2, 1, f) == 0
    assert xen2.load_segment(1, "ds", 9).vector < 0
    assert update(xen2, 1, f, 1, 0) == 0
    assert xen2.load_segment(1, "ds", 9).vector == 13
    assert update(xen2, 1, f, 1, RING_1_DATA) == 0
    assert xen2.load_segment(1, "ds", 9).vector < 0
    assert descriptor(xen2, f, 1) == RING_1_DATA | ACCESSED


# --- handlers ----------------------------------------------------------------------------------------------------------------

def trap(vector, cs, address, flags=0):
    return (vector | flags << 8 | cs << 16, address)


def set_traps(xen2, dom, *traps):
    words = tuple(w for t in traps for w in t)
    return xen2.call(dom, X.SET_TRAP_TABLE, xen2.va(2), data=((xen2.va(2), (*words, 0, 0)),))


def handlers(xen2, dom, *vectors):
    s = xen2.m.s
    return [(s.trap_cs[dom, v], s.trap_ip[dom, v], s.trap_flags[dom, v]) for v in vectors]


def test_set_trap_table(xen2):
    assert set_traps(xen2, 1, trap(3, 0x819, 0x1000, 3), trap(255, 0x1D, 0xFFFFFFFF, 0xFF), trap(0, 0x9, 1)) == 0
    assert handlers(xen2, 1, 3, 255, 0, 4) == [(0x819, 0x1000, 3), (0x1D, 0xFFFFFFFF, 0xFF), (9, 1, 0), (0x819, 0, 0)]


def test_set_trap_table_ends_at_no_address(xen2):
    assert set_traps(xen2, 1, trap(3, 0x819, 0x1000), trap(4, 0, 0), trap(5, 0, 1)) == 0


@pytest.mark.parametrize("cs", [0, 0x818, 0x808, 0x809, 0x811, 0x821, 0x829, 0x831, 0x939, 0x81A, 0x82B, 0x3B, 0x3A, 0x38, 0x3F])
def test_bad_selectors_of_code(xen2, cs):
    assert set_traps(xen2, 1, trap(3, 0x39, 5), trap(4, cs, 5), trap(6, 0x39, 5)) == -EPERM
    assert xen2.refused == ["TRAP-1.1"]
    assert handlers(xen2, 1, 3, 4, 6) == [(0x39, 5, 0), (0x819, 0, 0), (0x819, 0, 0)]
    assert xen2.call(1, X.SET_CALLBACKS, 0x39, 1, cs, 2) == -EPERM
    assert xen2.call(1, X.SET_CALLBACKS, cs, 1, 0x39, 2) == -EPERM
    assert handlers(xen2, 1, X.EVENT_CALLBACK, X.FAILSAFE_CALLBACK) == [(0, 0, 0), (0, 0, 0)]


@pytest.mark.parametrize("cs", [0x819, 0x1, 0x39, 0x7F9, 0x941, 0xFFF9, 0x5, 0x80D, 0xFFFD])
def test_good_selectors_of_code(xen2, cs):
    assert set_traps(xen2, 1, trap(4, cs, 5)) == 0
    assert xen2.call(1, X.SET_CALLBACKS, cs | 0xABCD0000, 1, cs, 2) == 0
    assert handlers(xen2, 1, X.EVENT_CALLBACK, X.FAILSAFE_CALLBACK) == [(cs, 1, 0), (cs, 2, 0)]


def test_only_sixteen_bits_of_a_selector_count(xen2):
    """W-31: 0x10809 is Xen's code, 0x10819 the flat one."""
    assert xen2.call(1, X.SET_CALLBACKS, 0x10809, 1, 0x819, 2) == -EPERM
    assert xen2.call(1, X.SET_CALLBACKS, 0x10819, 1, 0x819, 2) == 0
    assert xen2.call(1, X.STACK_SWITCH, 0x10820, 0) == -EPERM
    assert xen2.call(1, X.STACK_SWITCH, 0x10821, 0) == 0
    assert xen2.m.s.kernel_ss[1] == 0x821


def test_a_trap_table_that_cannot_be_read(xen2):
    end = xen2.va(33)
    assert xen2.call(1, X.SET_TRAP_TABLE, end - 8, data=((end - 8, trap(3, 0x819, 7)),)) == -EFAULT
    assert handlers(xen2, 1, 3) == [(0x819, 7, 0)]                  # what came before stays
    assert xen2.call(1, X.SET_TRAP_TABLE, X.GUEST_END - 4) == -EFAULT
    assert xen2.refused == ["COPY-1.1"]


@pytest.mark.parametrize("v", [0x20, 0x2F, 0x80])
def test_fast_traps(xen2, v):
    assert xen2.call(1, X.SET_FAST_TRAP, v) == 0
    assert xen2.m.s.fast_trap[1] == v
    assert xen2.call(1, X.SET_FAST_TRAP, 0) == 0
    assert xen2.m.s.fast_trap[1] == 0


@pytest.mark.parametrize("v", [1, 0x1F, 0x30, 0x7F, 0x81, 0x82, 0x180, 0xFFFFFFFF])
def test_other_vectors_are_never_fast(xen2, v):
    assert xen2.call(1, X.SET_FAST_TRAP, 0x80) == 0
    assert xen2.call(1, X.SET_FAST_TRAP, v) == -1
    assert xen2.refused == ["TRAP-2.1"]
    assert xen2.m.s.fast_trap[1] == 0x80


def test_a_handler_that_masks_events_is_not_fast(xen2):
    assert set_traps(xen2, 1, trap(0x80, 0x819, 7, 4 | 3), trap(0x20, 0x819, 7, 3)) == 0
    assert xen2.call(1, X.SET_FAST_TRAP, 0x80) == -1
    assert xen2.refused == ["TRAP-2.2"]
    assert xen2.call(1, X.SET_FAST_TRAP, 0x20) == 0
    assert set_traps(xen2, 1, trap(0x21, 0x819, 7, 4), trap(0x20, 0x39, 8, 3)) == 0
    assert xen2.m.s.fast_trap[1] == 0x20
    assert set_traps(xen2, 1, trap(0x20, 0x39, 8, 4)) == 0          # W-33
    assert xen2.m.s.fast_trap[1] == 0


@pytest.mark.parametrize(("ss", "result"), [(0, -EPERM), (0x820, -EPERM), (0x821, 0), (1, 0), (2, 0), (0x23, 0), (0x809, 0)])
def test_stack_switch(xen2, ss, result):
    assert xen2.call(1, X.STACK_SWITCH, ss, 0xFFFFFFFF) == result
    assert xen2.m.s.kernel_ss[1] == (0 if result else ss)


def test_fpu_taskswitch(xen2):
    assert xen2.call(1, X.FPU_TASKSWITCH) == 0
    assert xen2.m.s.task_switched[1]        # and nothing else: see test_xen2003_transfers


# --- debug registers ---------------------------------------------------------------------------------------------------------

def signed(value):
    return value - (value >> 31 << 32)


@pytest.mark.parametrize(("r", "value", "stored"), [
    (0, 0xFC3FFFFC, 0xFC3FFFFC), (3, 5, 5), (6, 0, 0xFFFF0FF0), (6, 0xFFFFFFFF, 0xFFFFEFFF), (7, 0, 0), (7, 1, 0x401),
    (7, 0xD800, 0x400), (7, 0xDDDD0755, 0xDDDD0755), (7, 0x55550000, 0x55550400), (7, 0xFFFF0000, 0xFFFF0400)])
def test_debug_registers(xen2, r, value, stored):
    assert xen2.call(1, X.SET_DEBUGREG, r, value) == 0
    assert xen2.call(1, X.GET_DEBUGREG, r) == signed(stored)
    assert xen2.call(2, X.GET_DEBUGREG, r) == 0


@pytest.mark.parametrize(("r", "value", "error"), [
    (0, 0xFC3FFFFD, EPERM), (1, 0xFC400000, EPERM), (2, 0xFFFFFFFF, EPERM), (7, 0x2000, EPERM), (7, 0x20000, EPERM),
    (7, 0x80000000, EPERM), (7, 0x55650000, EPERM), (7, 0xBFFF0000, EPERM), (4, 0, EINVAL), (5, 0, EINVAL), (8, 0, EINVAL),
    (0xFFFFFFFF, 0xFFFFFFFF, EINVAL)])
def test_what_debug_registers_refuse(xen2, r, value, error):
    assert xen2.call(1, X.SET_DEBUGREG, r, value) == -error
    assert xen2.refused == ["TRAP-20.1" if error == EINVAL else "DEBUG-1.2"]


def test_debug_registers_that_are_read(xen2):
    assert [xen2.call(1, X.GET_DEBUGREG, r) for r in (0, 3, 4, 5, 6, 7)] == [0] * 6
    assert xen2.call(1, X.GET_DEBUGREG, 8) == -EINVAL


# --- in a multicall ----------------------------------------------------------------------------------------------------------

def test_calls_with_all_arguments_in_a_multicall(xen2):
    f = table(xen2, 1, 5, {})
    assert xen2.multicall(1, (X.SET_CALLBACKS, 0x39, 1, 0x819, 2), (X.SET_DEBUGREG, 1, 77),
                          (X.SET_GDT, xen2.va(2, 4096 - 4), 8193), (X.UPDATE_DESCRIPTOR, f << 12, 0, 0),
                          (X.STACK_SWITCH, 0x821, 0)) == 0
    assert handlers(xen2, 1, X.EVENT_CALLBACK, X.FAILSAFE_CALLBACK) == [(0x39, 1, 0), (0x819, 2, 0)]
    assert xen2.call(1, X.GET_DEBUGREG, 1) == 77


def test_reset_and_rewind_forget_what_is_due(xen2):
    """A program that leaves the vocabulary after SET_LDT, in one multicall, takes nothing along."""
    table(xen2, 1, 5, {})
    mark = xen2.m.mark()
    calls = (X.MMU_UPDATE, xen2.va(2, 1024), 1, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0)
    data = ((xen2.va(2), calls), (xen2.va(2, 1024), (xen2.va(5) | X.EXTENDED, 512 << 8 | X.SET_LDT)))
    for back in (lambda: xen2.m.rewind(mark), xen2.m.reset):
        with pytest.raises(ModelError, match="not built yet"):
            xen2.m.step(Hypercall(1, X.MULTICALL, (xen2.va(2), 2), data))
        back()
        assert xen2.m.ldt_due is False
