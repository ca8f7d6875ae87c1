"""The TLB: a translation once cached may be used until it is flushed; and walks that are not atomic."""
import pytest

from spec.abi import PSE, RW, US, A, D, G, P, Xen2003
from spec.kernel import CPU, Refused
from spec.x86.paging import THROUGH_XEN, Fault
from spec.x86.tlb import (
    flush,
    guest_store,
    is_live,
    is_walking,
    load_cr3,
    tag_of,
    tlb_drop,
    tlb_fill,
    tlb_keep,
    walk_start,
    walk_step,
)

ME, OTHER = 1, 2
DATA, SHOWN = 0, 0x1000                     # where `data` and `shown` are mapped
KEPT_OUT = Xen2003.GUEST_END


def access(va=DATA, user=False, write=True, fetch=False):
    """The arguments of a fill."""
    return {"d": ME, "va": va, "user": user, "write": write, "fetch": fetch}


def cached(w, **more):
    """`data` is mapped at page 0 for data accesses, and was stored to."""
    tlb_fill(w.s, **access(**more))
    return {"d": ME, "tag": 0, "i": 3, "value": 9}


def walking(w):
    """A walk is in the root table."""
    walk_start(w.s, ME, DATA, False)
    return {"d": ME, "tag": 0, "va": DATA}


TRIALS = [
    (tlb_fill, lambda w: access(), {
        "TLB-1.1": lambda w, a: w.put("has_base", ME, False),
        "TLB-1.2": lambda w, a: a.update(va=KEPT_OUT),
    }),
    (walk_start, lambda w: {"d": ME, "va": DATA, "user": True}, {
        "TLB-2.1": lambda w, a: (w.put("has_base", ME, False), w.put("has_user", ME, False)),
        "TLB-2.2": lambda w, a: a.update(va=KEPT_OUT),
    }),
    (walk_step, walking, {
        "TLB-3.1": lambda w, a: w.put("walk_clock", (ME, 0), w.now - 1),
        "TLB-3.2": lambda w, a: (a.update(va=KEPT_OUT), w.put("word", (w.root, KEPT_OUT >> 22), P | US)),
        "TLB-7.1": lambda w, a: w.put("word", (w.root, 0), w.s.word[w.root, 0] ^ P),
        "TLB-7.2": lambda w, a: w.put("word", (w.root, 0), w.s.word[w.root, 0] ^ US),
    }),
    (tlb_keep, lambda w: cached(w) and {"d": ME, "tag": 0, "to": 4}, {
        "TLB-8.1": lambda w, a: a.update(to=5),
    }),
    (tlb_drop, lambda w: cached(w) and {"d": ME, "tag": 0}, {
        "TLB-4.1": lambda w, a: w.put("tlb", (ME, 0), 0),
    }),
    (guest_store, cached, {
        "STORE-1.1": lambda w, a: w.put("tlb_clock", (ME, 0), w.now - 1),
        "STORE-1.2": lambda w, a: w.put("tlb", (ME, 0), w.s.tlb[ME, 0] ^ RW),
        "STORE-1.3": lambda w, a: w.put("tlb", (ME, 0), w.s.tlb[ME, 0] ^ D),
        "STORE-1.4": lambda w, a: (cached(w, fetch=True), a.update(tag=1)),
        "STORE-1.5": lambda w, a: a.update(i=w.p.entries),
    }),
    (flush, lambda w: {"d": ME}, {}),
    (load_cr3, lambda w: {"d": ME}, {}),
]
ONLY = {"TLB-1.2": "xen-2003", "TLB-2.2": "xen-2003", "TLB-3.2": "xen-2003", "TLB-7.2": "xen-4.17"}


def test_refused_by_one_condition(refused):
    refused.refuses()
    assert refused.false_conditions() == {refused.conjunct}


def test_done_if_all_hold(done):
    done.does()


# --- filling -----------------------------------------------------------------------------------------------------------------

def test_a_fill_keeps_the_frame_and_the_combined_rights_and_marks_what_it_used(world):
    w, s = world, world.s
    for table in w.tables:
        s.word[table, 0] &= ~(A | D)
    tlb_fill(s, **access())
    assert s.tlb[ME, 0] >> 12 == w.data
    assert s.tlb[ME, 0] & (P | RW | D) == P | RW | D
    assert (s.tlb_clock[ME, 0], s.tlb_cr3[ME, 0]) == (w.now, 7)
    assert [s.word[table, 0] & (A | D) for table in w.tables] == [A | D] + [A] * (len(w.tables) - 1)
    assert not w.unsound()


def test_a_fill_for_a_read_sets_no_dirty_bit(world):
    w, s = world, world.s
    s.word[w.l1, 0] &= ~(A | D)
    tlb_fill(s, **access(write=False))
    assert s.word[w.l1, 0] & (A | D) == A
    assert s.tlb[ME, 0] & D == 0
    with pytest.raises(Refused, match=r"STORE-1\.3"):   # a store must first walk again, and mark
        guest_store(s, ME, 0, 3, 9)
    tlb_fill(s, **access())
    guest_store(s, ME, 0, 3, 9)
    assert s.word[w.data, 3] == 9


def test_a_fill_that_faults_leaves_no_trace(world):
    s = world.s
    mark = s.mark()
    with pytest.raises(Fault):
        tlb_fill(s, **access(SHOWN))
    assert s.mark() == mark


def test_fetches_have_a_tlb_of_their_own(world):
    s = world.s
    tlb_fill(s, **access(SHOWN, write=False, fetch=True))
    assert (tag_of(1, True), tag_of(1, False)) == (3, 2)
    assert is_live(s, ME, 3)
    assert not is_live(s, ME, 2)


def test_a_way_through_xens_slots_is_marked(world):
    w, s = world, world.s
    va = w.p.xen_first << w.p.geometry.levels[-1].shift
    tlb_fill(s, **access(va | (0xFFFF << 48 if va >> 47 else 0), write=False))
    (found,) = (e for e in s.tlb.values() if e)
    assert found & (THROUGH_XEN | RW) == THROUGH_XEN


# --- stale use ---------------------------------------------------------------------------------------------------------------

def test_a_translation_is_used_after_its_entry_changed_until_the_flush(world):
    w, s = world, world.s
    store = cached(w)
    s.word[w.l1, 0] = 0
    guest_store(s, **store)
    assert s.word[w.data, 3] == 9
    flush(s, ME)
    with pytest.raises(Refused, match=r"STORE-1\.1"):
        guest_store(s, **store)


def test_invlpg_drops_the_translations_of_one_page(world):
    w, s = world, world.s
    store = cached(w)
    tlb_fill(s, **access(SHOWN, write=False))
    tlb_drop(s, ME, 0)
    assert not is_live(s, ME, 0)
    assert is_live(s, ME, 2)
    with pytest.raises(Refused, match=r"STORE-1\.1"):
        guest_store(s, **store)


def test_loading_cr3_spares_global_translations_and_a_whole_flush_does_not(world):
    w, s = world, world.s
    s.word[w.l1, 0] |= G
    s.word[w.l1, 1] &= ~G
    tlb_fill(s, **access())
    tlb_fill(s, **access(SHOWN, write=False))
    load_cr3(s, ME)
    assert (is_live(s, ME, 0), is_live(s, ME, 2)) == (True, False)
    flush(s, ME)
    assert not is_live(s, ME, 0)
    assert s.clock[CPU] <= s.cr3_clock[CPU]


def test_translations_are_a_domains_own(world):
    cached(world)
    assert not is_live(world.s, OTHER, 0)


# --- walks that are not atomic -----------------------------------------------------------------------------------------------

def test_a_walk_goes_on_level_by_level(world):
    """It is in a table for as long as it likes, and sees an entry when it uses it."""
    w, s = world, world.s
    step = walking(w)
    for table in reversed(w.tables[1:]):
        assert s.walk[ME, 0] >> 12 == table
        walk_step(s, **step)
    s.word[w.l1, 0] = w.entry(w.shown, P | US)
    walk_step(s, **step)
    assert s.tlb[ME, 0] >> 12 == w.shown
    assert s.tlb[ME, 0] & RW == 0
    assert all(s.word[table, 0] & A for table in w.tables)


def test_a_step_from_what_a_cache_kept_serves_other_pages_too(world):
    """A paging-structure cache: the walk stays in the L1 table, and any page below can be filled from there."""
    w, s = world, world.s
    step = walking(w)
    for _ in w.tables[1:]:
        walk_step(s, **step)
    walk_step(s, **step | {"va": SHOWN})
    assert s.tlb[ME, 2] >> 12 == w.shown
    assert is_walking(s, ME, 0)


def test_a_walk_starts_from_the_base_as_it_is(world):
    w, s = world, world.s
    s.base[ME] = w.spare
    walk_start(s, ME, DATA, False)
    assert s.walk[ME, 0] >> 12 == w.spare
    assert s.walk_level[ME, 0] == w.p.root


def test_a_flush_ends_every_walk(world):
    w, s = world, world.s
    step = walking(w)
    flush(s, ME)
    with pytest.raises(Refused, match=r"TLB-3\.1"):
        walk_step(s, **step)


def test_a_walk_through_xens_slots_stays_marked(world):
    w, s = world, world.s
    step = walking(w)
    levels = w.p.geometry.levels
    va = w.p.xen_first << levels[-1].shift
    for _ in levels[1:]:
        walk_step(s, **step | {"va": va})
        step["tag"] = tag_of(va >> 12, False)
        assert s.walk[ME, step["tag"]] & THROUGH_XEN
    walk_step(s, **step | {"va": va})
    assert s.tlb[ME, step["tag"]] & (THROUGH_XEN | RW | P) == THROUGH_XEN | P


# --- slips -------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("start", [lambda s: walk_start(s, ME, DATA, True), lambda s: tlb_fill(s, **access(user=True))],
                         ids=["walk_start", "tlb_fill"])
def test_user_mode_has_nothing_to_walk_without_a_user_root(worlds, start):
    w = worlds("xen-4.17")
    w.s.has_user[ME] = False
    w.s.user_base[ME] = 0
    w.s.word[0, 0] = w.entry(w.root)        # whatever frame 0 holds
    w.count()
    with pytest.raises(Refused):
        start(w.s)


def test_the_processor_may_mark_xens_slots_accessed(world):
    """Xen need not have set the bit in what it keeps there."""
    w, s = world, world.s
    i = w.p.xen_first
    s.xen_word[ME, i] &= ~A
    for f in [f for f, t in s.type.items() if t == w.p.root]:
        s.word[f, i] &= ~A
    assert not w.unsound()
    va = i << w.p.geometry.levels[-1].shift
    tlb_fill(s, **access(va | (0xFFFF << 48 if va >> 47 else 0), write=False))
    assert not w.unsound()


def test_a_step_into_a_large_page_takes_the_low_bits_of_the_frame_from_the_address(world):
    """As the atomic walk does; only Xen's slots can lead to one."""
    w, s = world, world.s
    step = walking(w)
    for _ in w.tables[2:]:
        walk_step(s, **step)
    s.word[w.l2, 0] = PSE | RW | US | P
    walk_step(s, **step | {"va": SHOWN})
    assert s.tlb[ME, 2] >> 12 == 1
