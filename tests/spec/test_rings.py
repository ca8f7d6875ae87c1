"""Rings: what a guest loads, jumps to, calls and returns to, and what Xen restores for it."""
import random

import pytest

from proofs.obligations import SILENT
from spec.abi import GP, LDT_DESC, NP, PF, RW, SEG_DESC, US, P, Xen2003
from spec.kernel import RULES
from spec.rings import (
    CS,
    DS,
    SS,
    call,
    enter,
    far_ret,
    fast_trap,
    fetch,
    found,
    iret,
    is_guest_debug,
    jump,
    load_data_segment,
    load_stack_segment,
    mark_fpu,
    reload,
    set_debug,
    set_fast_trap,
    set_trap,
    switch_stack,
    table_of,
)
from spec.theorems import (
    every_access_through_a_segment_ends_below_xen,
    every_descriptor_in_force_is_legal_or_xens,
    every_gate_that_a_guest_can_use_leads_to_a_guest,
    every_handler_is_a_guests,
    every_segment_that_a_guest_can_load_is_its_own,
    every_trap_gets_to_xen,
    no_guest_runs_in_ring_0,
    no_translation_writes_a_descriptor,
    what_a_checked_table_offers_is_a_guests,
    xens_descriptors_are_always_in_force,
)
from spec.x86.descriptors import (
    ACCESSED,
    BIG,
    CODE,
    DPL_SHIFT,
    EXPAND_DOWN,
    GRANULAR,
    PRESENT,
    SEGMENT,
    WRITABLE_DATA,
    highest,
    limit_of,
    lowest,
    widest,
)
from spec.x86.paging import Fault
from spec.x86.stacks import holds

ME = 1
XEN = Xen2003.DESCRIPTORS
GATE = 0x8                                  # a call gate of ring 3 to the guest's kernel, in the GDT of these tests
DATA_3, CODE_0 = Xen2003.RING3_DS, Xen2003.XEN_CS
ESP = 0x1000


def fetched(w, selector, q):
    """The processor read a descriptor, by a selector with any RPL."""
    for rpl in range(4):
        w.put("fetched", (ME, selector & ~3 | rpl), q)


def running(w, ring=1):
    """The domain runs in a ring, on the flat segments, with Xen's default table."""
    w.put("gdt_entries", ME, Xen2003.RESERVED_END)
    for i, q in XEN.items():
        w.put("xen_descriptor", 2 * i, q & 0xFFFFFFFF)
        w.put("xen_descriptor", 2 * i + 1, q >> 32)
        fetched(w, 8 * i, q)
    cs, ss = (Xen2003.RING1_CS, Xen2003.RING1_DS) if ring == 1 else (Xen2003.RING3_CS, Xen2003.RING3_DS)
    for r, selector in ((CS, cs), (SS, ss)):
        w.put("selector", (ME, r), selector)
        w.put("segment", (ME, r), XEN[selector >> 3])
    w.put("kernel_ss", ME, Xen2003.RING1_DS)
    return {"d": ME}


def with_gate(w):
    """An application runs, and there is a gate to its kernel in the first page of the GDT."""
    args, f = running(w, 3), w.new(type=SEG_DESC, upto=w.p.entries, validated=True, filled=80)
    q = PRESENT | 0xC << 40 | 3 << DPL_SHIFT | Xen2003.RING1_CS << 16
    w.put("word", (f, 2), q & 0xFFFFFFFF)
    w.put("word", (f, 3), q >> 32)
    for k in range(512, 592):
        w.put("word", (f, k), w.s.xen_descriptor[k])
    w.put("xen_held", f, 0)
    w.hold(f, held_type=1)
    w.put("has_gdt", (ME, 0), True)
    w.put("gdt", (ME, 0), f)
    w.put("held_type", f, 0)
    fetched(w, GATE, q)
    return args | {"selector": GATE, "offset": 0, "esp": ESP, "kernel_esp": ESP}


def trapping(w):
    """An application's system call has a gate of its own."""
    args = running(w, 3)
    w.put("trap_cs", (ME, 0x80), Xen2003.RING1_CS)
    w.put("trap_flags", (ME, 0x80), 3)
    w.put("fast_trap", ME, 0x80)
    return args | {"esp": ESP, "kernel_esp": ESP}


def stopped(w, a):
    w.put("segment", (ME, CS), 0)


def unsegmented(w, a):
    """The other profile has no segments."""


def outwards(w):
    return running(w) | {"sp": ESP, "eip": 0, "cs": Xen2003.RING3_CS, "esp": ESP, "ss": Xen2003.RING3_DS}


RUNNING = {"RING-1.1": unsegmented, "RING-2.1": stopped}
TRIALS = [
    (fetch, lambda w: running(w) | {"selector": 296 << 3}, {"RING-1.1": unsegmented}),
    (fetch, lambda w: running(w) | {"selector": Xen2003.RING1_CS}, {"RING-1.1": unsegmented}),
    (load_data_segment, lambda w: running(w) | {"r": DS, "selector": DATA_3},
     RUNNING | {"SEG-1.1": lambda w, a: a.update(r=CS)}),
    (load_data_segment, lambda w: running(w) | {"r": DS, "selector": DATA_3}, {"SEG-1.1": lambda w, a: a.update(r=6)}),
    (load_stack_segment, lambda w: running(w) | {"selector": Xen2003.RING1_DS}, RUNNING),
    (jump, lambda w: running(w) | {"selector": Xen2003.RING1_CS, "offset": 0}, RUNNING),
    (call, with_gate, RUNNING),
    (far_ret, outwards, RUNNING),
    (iret, lambda w: outwards(w) | {"eflags": 0x3202}, RUNNING),
    (fast_trap, trapping, RUNNING | {"SEG-7.1": lambda w, a: w.put("fast_trap", ME, 0)}),
    (enter, lambda w: running(w) | {"cs": Xen2003.RING1_CS, "ss": Xen2003.RING1_DS}, {
        "RING-1.1": unsegmented,
        "SEG-8.1": lambda w, a: a.update(cs=CODE_0),
        "SEG-8.2": lambda w, a: w.put("gdt_entries", ME, 295)}),
    (reload, lambda w: running(w) | {"r": DS, "selector": DATA_3}, RUNNING | {"SEG-9.1": lambda w, a: a.update(r=SS)}),
    (set_trap, lambda w: running(w) | {"v": 3, "cs": Xen2003.RING1_CS, "ip": 0x1000, "flags": 3}, {
        "RING-1.1": unsegmented, "TRAP-1.1": lambda w, a: a.update(cs=CODE_0 | 1)}),
    (set_fast_trap, lambda w: running(w) | {"v": 0x80}, {
        "RING-1.1": unsegmented,
        "TRAP-2.1": lambda w, a: a.update(v=14),
        "TRAP-2.2": lambda w, a: w.put("trap_flags", (ME, 0x80), 4)}),
    (switch_stack, lambda w: running(w) | {"ss": Xen2003.RING1_DS, "sp": ESP}, {
        "RING-1.1": unsegmented, "STACK-1.1": lambda w, a: a.update(ss=Xen2003.XEN_DS)}),
    (mark_fpu, lambda w: running(w) | {"on": 8}, {"RING-1.1": unsegmented}),
    (set_debug, lambda w: running(w) | {"r": 0, "value": 0x1000}, {
        "RING-1.1": unsegmented,
        "DEBUG-1.1": lambda w, a: a.update(r=4),
        "DEBUG-1.2": lambda w, a: a.update(value=0xFC400000)}),
]
ONLY = {rule[0].__name__: "xen-2003" for rule in TRIALS} | {"RING-1.1": "xen-4.17"}


def test_all_conditions_true_and_it_is_done(done):
    assert {rule for rule, _ in done.does().unsound()} <= {"COUNT-1", "COUNT-2"}, "the world has no model of these references"


def test_one_condition_false_and_it_is_refused(refused):
    refused.refuses()


@pytest.fixture
def w(worlds):
    return worlds("xen-2003")


def test_a_call_through_a_gate_leads_to_the_kernel_on_its_stack(w):
    call(w.s, **with_gate(w))
    assert [w.s.selector[ME, r] for r in (CS, SS)] == [Xen2003.RING1_CS, Xen2003.RING1_DS]


def test_a_fast_trap_leads_to_the_kernel_on_its_stack(w):
    fast_trap(w.s, **trapping(w))
    assert [w.s.selector[ME, r] for r in (CS, SS)] == [Xen2003.RING1_CS, Xen2003.RING1_DS]


def test_a_return_outwards_keeps_no_segment_of_the_kernels(w):
    args = outwards(w)
    w.put("selector", (ME, DS), Xen2003.RING1_DS)
    w.put("segment", (ME, DS), XEN[260])
    far_ret(w.s, **args)
    assert [w.s.selector[ME, r] for r in (CS, SS, DS)] == [Xen2003.RING3_CS, Xen2003.RING3_DS, 0]
    assert w.s.segment[ME, DS] == 0


def test_restoring_takes_away_what_the_ring_may_not_have(w):
    args = running(w, 3) | {"r": DS}
    reload(w.s, **args, selector=Xen2003.RING1_DS)
    assert w.s.segment[ME, DS] == 0
    reload(w.s, **args, selector=Xen2003.RING3_DS)
    assert w.s.segment[ME, DS] == XEN[262] | ACCESSED


@pytest.mark.parametrize(("step", "more", "vector"), [
    (jump, {"selector": CODE_0, "offset": 0}, GP), (jump, {"selector": CODE_0 | 1, "offset": 0}, GP),
    (jump, {"selector": 264 << 3, "offset": 0}, GP), (jump, {"selector": 0, "offset": 0}, GP),
    (jump, {"selector": 296 << 3, "offset": 0}, GP), (jump, {"selector": 0xC, "offset": 0}, GP),
    (load_data_segment, {"r": DS, "selector": Xen2003.XEN_DS}, GP), (load_stack_segment, {"selector": Xen2003.RING3_DS}, GP)])
def test_xens_own_and_what_is_not_there_fault(w, step, more, vector):
    args, mark = running(w) | more, w.s.mark()
    with pytest.raises(Fault) as fault:
        step(w.s, **args)
    assert (fault.value.vector, w.s.mark()) == (vector, mark)


def test_an_ldts_page_faults_until_it_is_mapped(w):
    args = running(w) | {"r": DS, "selector": 0xD}
    w.put("ldt_entries", ME, 2)
    with pytest.raises(Fault) as fault:
        fetch(w.s, ME, 0xD)
    assert fault.value.vector == PF
    w.put("has_ldt", (ME, 0), True)
    f = w.new()
    w.put("ldt", (ME, 0), f)
    w.put("word", (f, 3), (XEN[260] & ~PRESENT) >> 32)
    fetch(w.s, ME, 0xD)
    with pytest.raises(Fault) as fault:
        load_data_segment(w.s, **args)
    assert fault.value.vector == NP
    assert found(w.s, ME, 0xD) == table_of(w.s, ME)(0xD) == XEN[260] & ~PRESENT & ~0xFFFFFFFF
    assert found(w.s, ME, 0x15) == 0, "beyond the limit"


@pytest.mark.parametrize(("r", "value", "good"), [
    (0, 0xFC3FFFFC, True), (3, 0xFC400000, False), (6, 0xFFFFFFFF, True), (7, 0, True), (7, 0x2000, False),
    (7, 0x00010000, True), (7, 0x00020000, False), (7, 0x00030000, True), (7, 0xFFFF0000, True), (7, 0xB0000000, False)])
def test_breakpoints_are_the_guests_own(r, value, good):
    assert bool(is_guest_debug(r, value)) == good


def test_the_room_on_a_stack_is_that_of_each_word():
    random.seed(5)
    for _ in range(20000):
        raw = random.choice([0, 1, 3, 60, 0xFFFE, 0xFFFF, 0x10000, 0x10001, 0x10003, 0xFFFFF, random.getrandbits(20)])
        q = PRESENT | SEGMENT | WRITABLE_DATA | raw & 0xFFFF | (raw >> 16) << 48
        q |= random.choice([0, BIG]) | random.choice([0, GRANULAR]) | random.choice([0, EXPAND_DOWN])
        start = random.choice([0, limit_of(q), widest(q) + 1]) + random.randint(-130, 130)
        words, size = random.randint(0, 31), random.choice([2, 4])
        places = [(start + n * size) & widest(q) for n in range(words)]
        each = all(lowest(q) <= at and at + size - 1 <= highest(q) for at in places)
        assert bool(holds(q, start, words, size)) == each, (hex(q), start, words, size)


# --- invariants and theorems -------------------------------------------------------------------------------------------------

def registered(w, r, q, selector=None):
    """Something else is in a segment register."""
    w.put("segment", (ME, r), q)
    if selector is not None:
        w.put("selector", (ME, r), selector)


def in_ldt(w, q, n=1):
    """Descriptor n of an LDT that is in force, past all checks."""
    f = w.new(type=LDT_DESC, upto=1024, validated=True, xen_held=1)
    w.put("word", (f, 2 * n), q & 0xFFFFFFFF)
    w.put("word", (f, 2 * n + 1), q >> 32)
    w.put("ldt_entries", ME, 16)
    w.put("has_ldt", (ME, 0), True)
    w.put("ldt", (ME, 0), f)
    return f


def translated(w):
    """A page of the LDT is cached as writable."""
    w.put("tlb", (ME, 0), in_ldt(w, 0) << 12 | P | RW | US)
    w.put("tlb_clock", (ME, 0), w.now)
    w.put("tlb_cr3", (ME, 0), 7)


def xens_changed(w):
    """A GDT in force has another descriptor where Xen's code is."""
    args = with_gate(w)
    w.put("word", (w.s.gdt[args["d"], 0], 2 * 257), 0)


def half_filled(w):
    """Xen filled in half a descriptor."""
    f = in_ldt(w, 0)
    w.put("type_count", f, 1)
    w.put("filled", f, 1)


HUGE = PRESENT | SEGMENT | WRITABLE_DATA | BIG | GRANULAR | 1 << DPL_SHIFT | 0xFFFF | 0xF << 48
RINGS = (1, 2, 3)
THEOREMS = {
    "RING-10": lambda s: no_guest_runs_in_ring_0(s, ME),
    "RING-11": lambda s: all(every_access_through_a_segment_ends_below_xen(s, ME, r, at, 4, write, False)
                             for r in range(6) for at in (0, 0xFC3FFFFC, 0xFC3FFFFD, 0xFFFFFF00) for write in (False, True)),
    "RING-12": lambda s: all(every_descriptor_in_force_is_legal_or_xens(s, ME, sel) for sel in SELECTORS),
    "RING-13": lambda s: all(every_segment_that_a_guest_can_load_is_its_own(s, ME, sel, r) for sel in SELECTORS for r in RINGS),
    "RING-14": lambda s: all(every_gate_that_a_guest_can_use_leads_to_a_guest(s, ME, sel, r) for sel in SELECTORS for r in RINGS),
    "RING-15": lambda s: all(every_handler_is_a_guests(s, ME, 3, r) for r in RINGS),
    "RING-16": lambda s: all(xens_descriptors_are_always_in_force(s, ME, i) for i in range(250, 300)),
    "RING-17": lambda s: no_translation_writes_a_descriptor(s, ME, 0, ME, 0),
    "RING-18": lambda s: all(what_a_checked_table_offers_is_a_guests(s, f, i, r)
                             for f in range(16, 48) for i in range(4) for r in RINGS)}
THEOREMS["RING-19"] = lambda s: all(every_trap_gets_to_xen(s, ME, v, ESP, code) for v in range(256) for code in (False, True))
SELECTORS = [*range(8, 32), *range(0x800, 0x940)]
BROKEN = [
    ("RING-10", "ring 0", lambda w: registered(w, CS, XEN[257], CODE_0)),
    ("RING-10", "a stack of another ring", lambda w: registered(w, SS, XEN[262])),
    ("RING-11", "data that reach Xen", lambda w: registered(w, DS, HUGE)),
    ("RING-11", "data that expand down", lambda w: registered(w, DS, XEN[260] & ~(15 << 48) & ~0xFFFF | EXPAND_DOWN)),
    ("RING-12", "data that reach Xen", lambda w: in_ldt(w, HUGE)),
    ("RING-13", "data that reach Xen", lambda w: in_ldt(w, HUGE)),
    ("RING-13", "conforming code of ring 0", lambda w: in_ldt(w, XEN[257] | EXPAND_DOWN)),
    ("RING-14", "a gate to Xen's code", lambda w: in_ldt(w, PRESENT | 0xC << 40 | 3 << DPL_SHIFT | (CODE_0 | 1) << 16)),
    ("RING-14", "a task gate", lambda w: in_ldt(w, PRESENT | 5 << 40 | 3 << DPL_SHIFT)),
    ("RING-15", "a handler of Xen's", lambda w: w.put("trap_cs", (ME, 3), CODE_0)),
    ("RING-16", "Xen's code is replaced", xens_changed),
    ("RING-16", "Xen's code is beyond the limit", lambda w: w.put("gdt_entries", ME, 257)),
    ("RING-17", "a page of the LDT is writable", translated),
    ("RING-19", "a page fault as a fast trap", lambda w: w.put("fast_trap", ME, 14)),
    ("RING-19", "a fast trap to Xen's code", lambda w: (w.put("fast_trap", ME, 0x80), w.put("trap_cs", (ME, 0x80), CODE_0))),
    ("RING-19", "Xen's code is replaced", xens_changed),
    ("RING-19", "no stack for Xen", lambda w: w.put("xen_descriptor", 517, 0)),
    ("RING-18", "ring 0", lambda w: in_ldt(w, XEN[258])),
    ("RING-18", "a task gate", lambda w: in_ldt(w, PRESENT | 5 << 40 | 3 << DPL_SHIFT)),
    ("XEN-2", "a table of the guest's in a slot of Xen's", lambda w: w.put("xen_word", (ME, 1008), w.data << 12 | P)),
    ("XEN-3", "Xen's code conforms", lambda w: w.put("xen_descriptor", 515, XEN[257] >> 32 | EXPAND_DOWN >> 32)),
    ("XEN-3", "the guest's flat segment is of ring 0", lambda w: w.put("xen_descriptor", 519, XEN[257] >> 32)),
    ("SEG-10", "data that reach Xen", lambda w: registered(w, DS, HUGE)),
    ("SEG-11", "ring 0", lambda w: registered(w, CS, XEN[259], 0x818)),
    ("SEG-11", "code of another ring", lambda w: registered(w, CS, XEN[261])),
    ("SEG-11", "code as a stack", lambda w: registered(w, SS, XEN[259])),
    ("SEG-12", "data that reach Xen", lambda w: fetched(w, 0x14, HUGE)),
    ("SEG-12", "Xen's code in the place of the guest's", lambda w: fetched(w, Xen2003.RING1_CS, XEN[257])),
    ("GDT-11", "Xen's descriptors are beyond the limit", lambda w: w.put("gdt_entries", ME, 257)),
    ("LDT-10", "another's table", lambda w: w.put("owner", in_ldt(w, 0), 2)),
    ("LDT-10", "a table that was not checked", lambda w: w.put("validated", in_ldt(w, 0), False)),
    ("GDT-10", "a page that is not there", lambda w: w.put("has_gdt", (ME, 3), True)),
    ("TRAP-10", "a handler of Xen's", lambda w: w.put("trap_cs", (ME, 3), CODE_0 | 1)),
    ("TRAP-11", "a page fault as a fast trap", lambda w: w.put("fast_trap", ME, 14)),
    ("DEBUG-10", "a breakpoint in Xen", lambda w: w.put("debug", (ME, 0), 0xFC400000)),
    ("DESC-10", "ring 0", lambda w: in_ldt(w, XEN[258])),
    ("DESC-11", "Xen's code is replaced", xens_changed),
    ("DESC-12", "half a descriptor", half_filled)]
INVARIANTS = {"XEN-2", "XEN-3", "DESC-10", "DESC-11", "DESC-12", "GDT-10", "GDT-11", "LDT-10", "SEG-10", "SEG-11", "SEG-12",
              "TRAP-10", "TRAP-11", "DEBUG-10"}


def page_64(w, q, page=0, kind="gdt"):
    """Descriptor 2 of a page of a 64-bit guest's GDT or LDT, past all checks."""
    f = w.new(type=SEG_DESC, upto=w.p.entries, validated=True, xen_held=1)
    w.put("word", (f, 2), q)
    w.put("ldt_entries", ME, 8)
    w.put(f"has_{kind}", (ME, page), True)
    w.put(kind, (ME, page), f)


FLAT_64 = 0x00AFFB000000FFFF
SELECTORS_64 = (*range(0x10, 0x18), *range(0xE010, 0xE018))
THEOREMS_64 = {
    "RING-12": lambda s: all(every_descriptor_in_force_is_legal_or_xens(s, ME, sel) for sel in SELECTORS_64),
    "RING-13": lambda s: all(every_segment_that_a_guest_can_load_is_its_own(s, ME, sel, 3) for sel in SELECTORS_64),
    "RING-14": lambda s: all(every_gate_that_a_guest_can_use_leads_to_a_guest(s, ME, sel, 3) for sel in SELECTORS_64),
    "RING-15": lambda s: every_handler_is_a_guests(s, ME, 3, 3),
    "RING-16": lambda s: all(xens_descriptors_are_always_in_force(s, ME, i) for i in (7167, 7168, 8191, 8192))}
BROKEN_64 = [
    ("RING-12", lambda w: page_64(w, FLAT_64 & ~(3 << DPL_SHIFT))),
    ("RING-12", lambda w: page_64(w, FLAT_64, page=14)),
    ("RING-13", lambda w: page_64(w, FLAT_64 & ~(3 << DPL_SHIFT) | EXPAND_DOWN, kind="ldt")),      # conforming code of ring 0
    ("RING-14", lambda w: page_64(w, PRESENT | 0xC << 40 | 3 << DPL_SHIFT | 8 << 16)),
    ("RING-15", lambda w: w.put("trap_cs", (ME, 3), 0xE030)),
    ("RING-16", lambda w: page_64(w, 0, page=14)), ("RING-16", lambda w: page_64(w, 0, page=15))]


@pytest.mark.parametrize(("theorem", "corrupt"), BROKEN_64)
def test_what_breaks_a_theorem_on_x86_64(worlds, theorem, corrupt):
    w = worlds("xen-4.17")
    page_64(w, FLAT_64)
    page_64(w, PRESENT | 0xC << 40 | 0xB << 16, kind="ldt")       # a gate that nobody can use
    assert THEOREMS_64[theorem](w.s)
    corrupt(w)
    assert not THEOREMS_64[theorem](w.s)


def test_a_theorem_says_nothing_of_a_profile_just_where_that_is_declared(worlds):
    theorems = {rule.id for rule in RULES.values() if rule.id.startswith("RING-") and rule.kind == "theorem"}
    assert theorems - set(THEOREMS_64) - {"RING-17", "RING-18"} == {rule for profile, rule in SILENT if profile == "xen-4.17"}


@pytest.mark.parametrize("theorem", THEOREMS)
def test_a_theorem_holds(w, theorem):
    with_gate(w)
    in_ldt(w, XEN[260])
    assert THEOREMS[theorem](w.s)


@pytest.mark.parametrize(("rule", "corrupt"), [
    pytest.param(rule, corrupt, id=f"{rule}-{what}") for rule, what, corrupt in BROKEN])
def test_what_breaks_a_theorem_or_an_invariant(w, rule, corrupt):
    running(w)
    corrupt(w)
    if rule in THEOREMS:
        assert not THEOREMS[rule](w.s)
    else:
        assert rule in {broken for broken, _ in w.unsound()}


def test_every_theorem_and_invariant_about_rings_is_broken_above():
    theorems = {rule.id for rule in RULES.values() if rule.kind == "theorem" and rule.id.startswith("RING-")}
    assert set(THEOREMS) == theorems
    assert {rule for rule, *_ in BROKEN} == theorems | INVARIANTS


def test_the_descriptors_that_xen_gives_are_what_they_are_for():
    assert [XEN[n] & CODE != 0 for n in (259, 260, 261, 262)] == [True, False, True, False]
