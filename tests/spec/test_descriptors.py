"""Descriptor tables: legality, the check of a table, its replacement, and the pages of GDT and LDT."""
import pytest

from spec.abi import SEG_DESC, Xen2003
from spec.descriptors import (
    adjusted_descriptor,
    fill_reserved,
    forget_descriptors,
    install_gdt,
    legal_descriptor,
    map_ldt,
    mark_accessed,
    remove_gdt,
    set_gdt_entries,
    skip_blank,
    unmap_ldt,
    validate_descriptor,
    write_descriptor,
)
from spec.x86.descriptors import ACCESSED, BIG, DPL_SHIFT, EXPAND_DOWN, GRANULAR, PRESENT, SEGMENT, WRITABLE_DATA, dpl_of

ME, OTHER = 1, 2
FLAT = Xen2003.DESCRIPTORS[260]             # ring 1, data, up to GUEST_END
RING_0 = Xen2003.DESCRIPTORS[258]
MINE = FLAT | ACCESSED                      # what a checked table of these tests holds at its beginning
ILLEGAL = {"xen-2003": RING_0, "xen-4.17": PRESENT | 9 << 40 | 3 << DPL_SHIFT}


def segment(base, limit, dpl=1, more=WRITABLE_DATA):
    """A present segment, its limit in bytes or, from 1 MB on, in pages."""
    grain = GRANULAR if limit >= 1 << 20 else 0
    raw = limit >> 12 if grain else limit
    return (PRESENT | SEGMENT | BIG | grain | more | dpl << DPL_SHIFT | raw & 0xFFFF | (raw >> 16) << 48
            | (base & 0xFFFFFF) << 16 | (base >> 24) << 56)


def gate(selector, dpl=1, kind=0xC, unused=0):
    """A present gate."""
    return PRESENT | kind << 40 | dpl << DPL_SHIFT | selector << 16 | unused << 37


LEGAL = {                                   # of 2003
    "nothing": (0, True), "absent, whatever it is": (RING_0 & ~PRESENT, True),
    "flat of ring 1": (FLAT, True), "flat of ring 3": (Xen2003.DESCRIPTORS[262], True),
    "data of ring 0": (RING_0, False), "code of ring 0": (Xen2003.DESCRIPTORS[257], False),
    "up to Xen": (segment(0xFC3FF000, 0xFFF), True), "one byte into Xen": (segment(0xFC3FF001, 0xFFF), False),
    "in Xen": (segment(0xFC400000, 0), False), "around 4 GB": (segment(0x1000, 0xFFFFFFFF), False),
    "expanding down": (segment(0, 0xFFF, more=WRITABLE_DATA | EXPAND_DOWN), False),
    "a gate to the guest's code": (gate(0x9), True), "a gate to its LDT": (gate(0x809 | 4), True),
    "a gate to Xen's flat code": (gate(Xen2003.RING1_CS), True), "a gate to Xen's code": (gate(Xen2003.XEN_CS | 1), False),
    "a gate to Xen's data for ring 1": (gate(Xen2003.RING1_DS), False), "a gate with RPL 0": (gate(0x8), False),
    "a gate with RPL 3": (gate(0xB), False), "a gate of ring 0": (gate(0x9, dpl=0), False),
    "a gate with reserved bits": (gate(0x9, unused=1), False), "a 16-bit gate": (gate(0x9, kind=4), False),
    "a task gate": (gate(0x9, kind=5), False), "an interrupt gate": (gate(0x9, kind=0xE), False),
    "a TSS": (gate(0, kind=9), False), "an LDT": (gate(0, kind=2), False)}


def put(w, f, i, q):
    """Store a descriptor past all rules, at the index of its first word."""
    if w.p.descriptor_words == 1:
        w.put("word", (f, i), q)
    else:
        w.put("word", (f, i), q & 0xFFFFFFFF)
        w.put("word", (f, i + 1), q >> 32)


def descriptors(w, kind=SEG_DESC, upto=None, filled=0, held_type=1):
    """A table of descriptors: in its validation, checked so far; or checked, its references in hand."""
    f = w.new(type=kind, upto=w.p.entries if upto is None else upto, validated=upto is None)
    put(w, f, 0, adjusted_descriptor(w.s, MINE))
    for k in range(filled):
        w.put("word", (f, Xen2003.RESERVED * 2 + k), w.s.xen_descriptor[Xen2003.RESERVED * 2 + k])
    w.put("filled", f, filled)
    w.hold(f, held_type=held_type)
    return f


def checked_but_one(w):
    """A table in its validation, the first descriptor checked, the next that is there at word 6."""
    f = descriptors(w, upto=w.p.descriptor_words)
    put(w, f, 6, ILLEGAL[w.p.name])
    return f


def idle(w):
    """A table of descriptors that lost its last reference."""
    f = descriptors(w, held_type=0)
    w.put("validated", f, False)
    return {"d": ME, "f": f}


def installed(w):
    """The domain has a page of a GDT; its index is that of the argument."""
    f = descriptors(w, filled=w.p.reserved_words)
    install_gdt(w.s, ME, 0, f)
    return {"d": ME, "n": 0}


def mapped(w):
    """The domain has a page of an LDT."""
    map_ldt(w.s, ME, 0, descriptors(w, w.p.last_descriptors))
    return {"d": ME, "n": 0}


def first_page(w):
    return {"d": ME, "n": 0, "f": descriptors(w, filled=w.p.reserved_words)}


def later_page(w):
    return {"d": ME, "n": 1, "f": descriptors(w)}


def taken(w, a, name):
    w.put(f"has_{name}", (ME, a["n"]), True)


TRIALS = [
    (validate_descriptor, lambda w: {"d": ME, "f": descriptors(w, upto=0)}, {
        "DESC-1.1": lambda w, a: a.update(d=OTHER),
        "DESC-1.2": lambda w, a: w.put("type_count", a["f"], 0),
        "DESC-1.3": lambda w, a: w.put("type", a["f"], 1),
        "DESC-1.4": lambda w, a: w.put("upto", a["f"], w.p.entries),
        "DESC-1.5": lambda w, a: put(w, a["f"], 0, ILLEGAL[w.p.name]),
    }),
    (write_descriptor, lambda w: {"d": ME, "f": descriptors(w), "i": 2, "q": FLAT}, {
        "DESC-2.1": lambda w, a: a.update(d=OTHER),
        "DESC-2.2": lambda w, a: w.put("type", a["f"], 1),
        "DESC-2.3": lambda w, a: w.put("validated", a["f"], False),
        "DESC-2.4": lambda w, a: a.update(i=w.p.entries),
        "DESC-2.5": lambda w, a: a.update(i=3),
        "DESC-2.6": lambda w, a: a.update(f=descriptors(w, filled=80), i=2 * Xen2003.RESERVED),
        "DESC-2.7": lambda w, a: a.update(q=ILLEGAL[w.p.name]),
    }),
    (forget_descriptors, idle, {
        "DESC-3.1": lambda w, a: a.update(d=OTHER),
        "DESC-3.2": lambda w, a: w.put("type_count", a["f"], 1),
        "DESC-3.3": lambda w, a: w.put("type", a["f"], 1),
    }),
    (mark_accessed, lambda w: {"d": ME, "f": descriptors(w), "i": 0}, {
        "DESC-4.1": lambda w, a: a.update(d=OTHER),
        "DESC-4.2": lambda w, a: w.put("type", a["f"], 1),
        "DESC-4.3": lambda w, a: w.put("validated", a["f"], False),
        "DESC-4.4": lambda w, a: (put(w, a["f"], w.p.entries, FLAT), a.update(i=w.p.entries)),
        "DESC-4.5": lambda w, a: a.update(i=1),
        "DESC-4.6": lambda w, a: put(w, a["f"], 0, FLAT & ~PRESENT),
        "DESC-4.7": lambda w, a: put(w, a["f"], 0, gate(0x9)),
    }),
    (skip_blank, lambda w: {"d": ME, "f": checked_but_one(w), "end": 6}, {
        "DESC-5.1": lambda w, a: a.update(d=OTHER),
        "DESC-5.2": lambda w, a: w.put("type_count", a["f"], 0),
        "DESC-5.3": lambda w, a: w.put("type", a["f"], 1),
        "DESC-5.4": lambda w, a: a.update(end=0),
        "DESC-5.6": lambda w, a: a.update(end=5),
        "DESC-5.7": lambda w, a: a.update(end=6 + w.p.descriptor_words),
    }),
    (skip_blank, lambda w: {"d": ME, "f": descriptors(w, upto=w.p.descriptor_words), "end": w.p.entries}, {
        "DESC-5.5": lambda w, a: a.update(end=w.p.entries + w.p.descriptor_words),
        "DESC-5.7": lambda w, a: w.put("word", (a["f"], w.p.entries - 1), 1 << 31),
    }),
    (fill_reserved, lambda w: {"d": ME, "f": descriptors(w, filled=2)}, {
        "GDT-1.1": lambda w, a: a.update(d=OTHER),
        "GDT-1.2": lambda w, a: w.put("type", a["f"], 6),
        "GDT-1.3": lambda w, a: w.put("validated", a["f"], False),
        "GDT-1.4": lambda w, a: w.put("type_count", a["f"], 2),
        "GDT-1.5": lambda w, a: w.put("held_type", a["f"], 0),
        "GDT-1.6": lambda w, a: w.put("filled", a["f"], 80),
    }),
    (install_gdt, first_page, {
        "GDT-2.1": lambda w, a: a.update(d=OTHER),
        "GDT-2.2": lambda w, a: w.put("type", a["f"], 1),
        "GDT-2.3": lambda w, a: w.put("validated", a["f"], False),
        "GDT-2.4": lambda w, a: w.put("held_type", a["f"], 0),
        "GDT-2.6": lambda w, a: taken(w, a, "gdt"),
        "GDT-2.7": lambda w, a: w.put("filled", a["f"], w.p.reserved_words - 2 if w.p.reserved_words else 2),
    }),
    (install_gdt, later_page, {
        "GDT-2.5": lambda w, a: a.update(n=w.p.gdt_pages),
        "GDT-2.7": lambda w, a: w.put("filled", a["f"], 80),
    }),
    (remove_gdt, installed, {"GDT-3.1": lambda w, a: a.update(n=1)}),
    (set_gdt_entries, lambda w: {"d": ME, "entries": Xen2003.RESERVED_END}, {
        "GDT-4.1": lambda w, a: a.update(entries=Xen2003.MAX_GDT + 1),
        "GDT-4.2": lambda w, a: a.update(entries=Xen2003.RESERVED_END - 1),
    }),
    (map_ldt, lambda w: {"d": ME, "n": 0, "f": descriptors(w, w.p.last_descriptors)}, {
        "LDT-2.1": lambda w, a: a.update(d=OTHER),
        "LDT-2.2": lambda w, a: w.put("type", a["f"], 1),
        "LDT-2.3": lambda w, a: w.put("validated", a["f"], False),
        "LDT-2.4": lambda w, a: w.put("held_type", a["f"], 0),
        "LDT-2.5": lambda w, a: a.update(n=16),
        "LDT-2.6": lambda w, a: taken(w, a, "ldt"),
    }),
    (unmap_ldt, mapped, {"LDT-3.1": lambda w, a: a.update(n=1)}),
]
ONLY = {"fill_reserved": "xen-2003", "GDT-4.2": "xen-2003", "DESC-2.5": "xen-2003", "DESC-2.6": "xen-2003",
        "DESC-4.5": "xen-2003", "DESC-5.6": "xen-2003"}


def broken(w):
    """The rules that the world breaks."""
    return {rule for rule, _ in w.unsound()}


def test_all_conditions_true_and_it_is_done(done):
    assert broken(done.does()) <= {"TOKEN-1"}, "but for what is in flight"


def test_one_condition_false_and_it_is_refused(refused):
    refused.refuses()


@pytest.mark.parametrize("what", LEGAL)
def test_what_a_guest_of_2003_may_have(worlds, what):
    q, legal = LEGAL[what]
    assert bool(legal_descriptor(worlds("xen-2003").s, q)) == legal


@pytest.mark.parametrize(("q", "stored"), [(0, 0), (FLAT, FLAT | 3 << DPL_SHIFT), (RING_0, RING_0 | 3 << DPL_SHIFT),
                                           (RING_0 & ~PRESENT, RING_0 & ~PRESENT), (gate(0x9), gate(0xB, dpl=0))])
def test_what_417_stores(worlds, q, stored):
    s = worlds("xen-4.17").s
    assert legal_descriptor(s, q)
    assert adjusted_descriptor(s, q) == stored
    assert legal_descriptor(s, stored)
    assert adjusted_descriptor(s, stored) == stored


def test_a_page_of_2003_with_xens_entries_is_a_gdts_first_and_no_other(worlds):
    w = worlds("xen-2003")
    f = descriptors(w, filled=80, held_type=2)
    install_gdt(w.s, ME, 0, f)
    assert broken(w) <= {"TOKEN-1"}
    taken(w, {"n": 3}, "gdt")
    w.put("gdt", (ME, 3), f)
    assert ("GDT-10", (ME, 3)) in w.unsound()


def test_what_xen_filled_in_is_not_looked_at_as_the_guests(worlds):
    w = worlds("xen-2003")
    f = descriptors(w, filled=80)
    assert broken(w) <= {"TOKEN-1"}
    put(w, f, 2 * 300, RING_0)
    assert broken(w) - {"TOKEN-1"} == {"DESC-10"}
    assert dpl_of(RING_0) == 0
