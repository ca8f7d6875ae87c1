"""Each invariant and count holds on the sound world, and the audit reports each of its clauses when it is broken, and where."""
import pytest

from spec.abi import DOMID_XEN, L1, NOBODY, NONE, PSE, RW, SEG_DESC, US, WRITABLE, G, P
from spec.invariants import SUMS
from spec.kernel import CPU, RULES
from spec.profile import PROFILES
from spec.x86.paging import THROUGH_XEN
from spec.x86.tlb import tlb_fill, walk_start, walk_step

ME, OTHER = 1, 2
RULES_OF_STATE = {rule.id for rule in RULES.values() if rule.kind in ("invariant", "count")}
ABOUT_CALLBACKS = {"CALL-20", "CALL-21", "DEBUG-11"}
ABOUT_RINGS = {"DESC-10", "DESC-11", "DESC-12", "GDT-10", "GDT-11", "LDT-10", "XEN-2", "XEN-3",
               "SEG-10", "SEG-11", "SEG-12", "TRAP-10", "TRAP-11", "DEBUG-10"}


def in_validation(w):
    """A table in its validation, three entries far."""
    f = w.table(L1, {0: w.entry(w.data)}, upto=3)
    w.count()
    return f


def gone(w, f, owner=ME):
    """Table f lost its references, and with them its mark, since the last flush: a walk may still be in it."""
    s = w.s
    s.validated[f], s.upto[f], s.pinned[f] = False, 0, False
    s.gone[f], s.stamp[f], s.last_owner[f] = w.now + 1, w.now, owner
    w.count()
    return f


def cached(w):
    """A cached translation of page 0, to `data`."""
    tlb_fill(w.s, ME, 0, False, True, False)
    return ME, 0


def walking(w, steps=1):
    """A walk that came to the table below the root."""
    walk_start(w.s, ME, 0, False)
    for _ in range(steps):
        walk_step(w.s, ME, 0, 0)
    return ME, 0


def put(*stores):
    """A corruption: each store is (map, frame's name, value) or (map, key, value); reported at the key of the first."""
    def corrupt(w):
        for name, key, value in stores:
            w.put(name, getattr(w, key) if isinstance(key, str) else key, value(w) if callable(value) else value)
        _, key, _ = stores[0]
        return getattr(w, key) if isinstance(key, str) else key
    return corrupt


def at(key, *stores):
    """A corruption by stores that depend on the world; reported at `key`."""
    def corrupt(w):
        k = key(w)
        for name, where, value in stores:
            where = where(w) if callable(where) else where
            w.put(name, k if where is None else where, value(w) if callable(value) else value)
        return k
    return corrupt


def xen_index(w):
    """The first of Xen's slots in the root table."""
    return w.root, w.p.xen_first


def slot(w):
    """The slot that maps `data` writable."""
    return w.l1, 0


def upper(w):
    """The slot of the L2 table that names `l1`."""
    return w.l2, 0


def left(w):
    """The slot of a table that is no longer in use, but may still be walked, that maps `data` writable."""
    return gone(w, w.table(L1, {0: w.entry(w.data)})), 0


def left_upper(w):
    """The same one level up: its entry names a table that is as much out of use."""
    below = gone(w, w.table(L1))
    return gone(w, w.table(2, {0: w.entry(below)})), 0


def named(w, key):
    """The frame that an entry names."""
    return w.s.word[key] >> 12


def spoil(key, change):
    """A corruption by code: `change(w, key)`; reported at the key."""
    def corrupt(w):
        k = key(w)
        w.count()
        assert {rule for rule, _ in w.unsound()} <= {"TOKEN-1"}, "sound before"
        change(w, k)
        return k
    return corrupt


# (rule, the clause that is broken, the corruption, the profile if only one has the clause)
BROKEN = [
    ("FRAME-1", "a descriptor table that is pinned", put(("type", "idle", SEG_DESC), ("pinned", "idle", True))),
    ("FRAME-1", "a type above all", put(("type", "idle", 8))),
    ("FRAME-1", "a level that the profile has not", put(("type", "idle", 3)), "xen-2003"),
    ("FRAME-1", "fewer than no typed references", put(("type_count", "idle", -1))),
    ("FRAME-1", "fewer than no references in hand", put(("held", "idle", -1))),
    ("FRAME-1", "fewer than no typed references in hand", put(("held_type", "idle", -1))),
    ("FRAME-1", "Xen keeps fewer than none", put(("xen_held", "idle", -1))),
    ("FRAME-1", "no table, but entries checked", put(("upto", "data", 1))),
    ("FRAME-1", "no table, but validated", put(("validated", "data", True))),
    ("FRAME-1", "no table, but pinned", put(("pinned", "data", True))),
    ("FRAME-1", "typed references to no type", put(("type_count", "idle", 1))),
    ("FRAME-1", "pinned, but not validated", put(("validated", "spare", False))),
    ("FRAME-1", "validated, but not all entries checked", put(("upto", "spare", 7))),
    ("FRAME-1", "validated, but unused", put(("type_count", "spare", 0))),
    ("FRAME-1", "more entries checked than there are", spoil(in_validation, lambda w, f: w.put("upto", f, w.p.entries + 1))),
    ("FRAME-1", "in validation, but used twice", spoil(in_validation, lambda w, f: w.put("type_count", f, 2))),
    ("FRAME-1", "in validation, but not in hand", spoil(in_validation, lambda w, f: w.put("held_type", f, 0))),

    ("FRAME-2", "a free frame has a reference", put(("ref_count", "free", 1))),
    ("FRAME-2", "a free frame refers to others", put(("upto", "free", 1))),
    ("FRAME-2", "a free frame is its owner's", put(("alloc", "free", True))),
    ("FRAME-2", "a frame of Xen's has a reference", put(("ref_count", 1, 1))),
    ("FRAME-2", "a frame in use was never handed out", put(("term", "idle", 0))),

    ("SLOT-1", "Xen's slot was changed", at(xen_index, ("word", None, 0))),
    ("SLOT-1", "Xen's slot is filled before its time", at(xen_index, ("opened", lambda w: w.root, False)), "xen-4.17"),
    ("SLOT-1", "a forbidden bit", at(slot, ("word", None, lambda w: w.entry(w.data) | PSE))),
    ("SLOT-1", "a forbidden bit in an upper entry", at(upper, ("word", None, lambda w: w.entry(w.l1) | G))),
    ("SLOT-1", "a writable self-map", at(lambda w: (w.root, 5), ("word", None, lambda w: w.entry(w.root)))),
    ("SLOT-1", "a frame of another domain", at(slot, ("owner", lambda w: w.data, OTHER))),
    ("SLOT-1", "a free frame", at(slot, ("owner", lambda w: w.data, NOBODY))),
    ("SLOT-1", "a writable mapping of what is not writable", at(slot, ("type", lambda w: w.data, NONE))),
    ("SLOT-1", "a writable mapping of what is out of use", at(slot, ("type_count", lambda w: w.data, 0))),
    ("SLOT-1", "an upper entry to a table that was not checked", at(upper, ("validated", lambda w: w.l1, False))),
    ("SLOT-1", "an upper entry to a table of another level", at(upper, ("type", lambda w: w.l1, WRITABLE))),
    ("SLOT-1", "an upper entry to a table of its own level", at(upper, ("type", lambda w: w.l1, 2))),
    ("SLOT-1", "an entry to a table of its own level, of another domain",
     at(upper, ("privileged", ME, True), ("word", None, lambda w: w.entry(w.table(2, owner=OTHER), P))), "xen-4.17"),

    ("SLOT-2", "Xen's slot was changed", spoil(lambda w: (gone(w, w.table(w.p.root)), w.p.xen_first),
                                              lambda w, k: w.put("word", k, 0))),
    ("SLOT-2", "a forbidden bit", spoil(left, lambda w, k: w.put("word", k, w.entry(w.data) | PSE))),
    ("SLOT-2", "a writable self-map", spoil(left_upper, lambda w, k: w.put("word", k, w.entry(k[0])))),
    ("SLOT-2", "a frame of another domain", spoil(left, lambda w, k: w.put("word", k, w.entry(w.theirs, P)))),
    ("SLOT-2", "a free frame, flushed since", spoil(left, lambda w, k: w.put("word", k, w.entry(w.free, P)))),
    ("SLOT-2", "a writable mapping of what is not writable", spoil(left, lambda w, k: w.put("type", named(w, k), NONE))),
    ("SLOT-2", "a writable mapping of what is idle and flushed", spoil(left, lambda w, k: w.put("word", k, w.entry(w.shown)))),
    ("SLOT-2", "a table that no walk may be in", spoil(left_upper, lambda w, k: w.put("gone", named(w, k), w.now))),
    ("SLOT-2", "a table of another level", spoil(left_upper, lambda w, k: w.put("type", named(w, k), WRITABLE))),

    ("XEN-1", "Xen's slot lets a guest write", at(lambda w: (ME, w.p.xen_first), ("xen_word", None, 1 << 12 | P | RW | US))),
    ("XEN-1", "a slot that segment limits do not keep a guest out of",
     at(lambda w: (ME, w.p.xen_first), ("xen_word", None, P | RW)), "xen-2003"),

    ("BASE-10", "another's base", put(("base", ME, lambda w: w.s.base[OTHER]))),
    ("BASE-10", "the base is no root", put(("base", ME, lambda w: w.l1))),
    ("BASE-10", "the base was not checked", at(lambda w: ME, ("validated", lambda w: w.root, False))),
    ("BASE-10", "the base lacks one of Xen's slots", at(lambda w: ME, ("opened", lambda w: w.root, False)), "xen-4.17"),
    ("BASE-10", "a user base where there is none", put(("has_user", ME, True), ("user_base", ME, lambda w: w.root)), "xen-2003"),
    ("BASE-10", "another's user base", put(("user_base", ME, lambda w: w.s.base[OTHER])), "xen-4.17"),
    ("BASE-10", "the user base is no root", put(("user_base", ME, lambda w: w.l1)), "xen-4.17"),
    ("BASE-10", "the user base was not checked", put(("user_base", ME, lambda w: w.table(w.p.root, upto=0))), "xen-4.17"),
    ("BASE-10", "Xen has a base", put(("has_base", DOMID_XEN, True), ("base", DOMID_XEN, lambda w: w.root))),

    ("POOL-10", "above the limit", put(("limit", ME, 1))),
    ("POOL-10", "less than nothing", put(("pages", ME, -1))),

    ("LEND-10", "a loan of a term to come", at(lambda w: (OTHER, w.data), ("lent", None, 2))),

    ("CLOCK-1", "a whole flush that spared global entries", put(("cr3_clock", CPU, 4))),
    ("CLOCK-1", "before the first flush", put(("clock", CPU, -1))),

    ("GONE-1", "lost in the future", put(("gone", "idle", 7))),
    ("GONE-1", "stamped in the future", put(("stamp", "idle", 6))),
    ("GONE-1", "the mark was lost, but no reference", put(("gone", "idle", 6))),

    ("TLB-10", "cached in the future", spoil(cached, lambda w, k: w.put("tlb_clock", k, 6))),
    ("TLB-10", "cached in the future of CR3", spoil(cached, lambda w, k: w.put("tlb_cr3", k, 8))),
    ("TLB-10", "writable through Xen's slots", spoil(cached, lambda w, k: w.put("tlb", k, w.s.tlb[k] | THROUGH_XEN))),
    ("TLB-10", "a frame of another domain", spoil(cached, lambda w, k: w.put("tlb", k, w.entry(w.theirs, P)))),
    ("TLB-10", "a free frame, flushed since", spoil(cached, lambda w, k: w.put("tlb", k, w.entry(w.free, P)))),
    ("TLB-10", "a writable one to what is not writable", spoil(cached, lambda w, k: w.put("tlb", k, w.entry(w.l1)))),
    ("TLB-10", "a writable one to what is idle and flushed", spoil(cached, lambda w, k: w.put("tlb", k, w.entry(w.shown)))),

    ("TLB-11", "a walk in the future", spoil(walking, lambda w, k: w.put("walk_clock", k, 6))),
    ("TLB-11", "below the last level", spoil(walking, lambda w, k: w.put("walk_level", k, 0))),
    ("TLB-11", "above the root", spoil(walking, lambda w, k: w.put("walk_level", k, w.p.root + 1))),
    ("TLB-11", "writable through Xen's slots", spoil(walking, lambda w, k: w.put("walk", k, w.s.walk[k] | THROUGH_XEN))),
    ("TLB-11", "in another's table", spoil(walking, lambda w, k: w.put("walk", k, w.entry(w.s.base[OTHER], P)))),
    ("TLB-11", "in what is no table", spoil(walking, lambda w, k: w.put("walk", k, w.entry(w.data, P)))),
    ("TLB-11", "at a higher level than the table's", spoil(walking, lambda w, k: w.put("walk_level", k, w.p.root))),
    ("TLB-11", "at a lower level, writable", spoil(lambda w: walking(w, 0), lambda w, k: w.put("walk_level", k, 1))),

    ("COUNT-1", "an entry is not counted", put(("type_count", "data", 0))),
    ("COUNT-1", "the pin is not counted", put(("pinned", "root", False))),
    ("COUNT-1", "a base is not counted", at(lambda w: w.root, ("has_base", lambda w: ME, False))),
    ("COUNT-1", "a user base is not counted", at(lambda w: w.root, ("has_user", lambda w: ME, False)), "xen-4.17"),
    ("COUNT-1", "Xen's own is not counted", put(("xen_held", "shared", 0))),
    ("COUNT-1", "one in hand is not counted", put(("held_type", "data", 1))),
    ("COUNT-2", "typed references are references", put(("type_count", "data", 7))),
    ("COUNT-2", "a read-only mapping is not counted", put(("ref_count", "shown", 1))),
    ("COUNT-2", "one in hand is not counted", put(("held", "idle", 1))),
    ("COUNT-2", "the owner's own is not counted", put(("alloc", "idle", False))),
    ("COUNT-3", "a linear entry is not counted", put(("linear", "root", 1))),
    ("COUNT-4", "a frame is not counted", put(("pages", ME, 1))),
    ("COUNT-4", "a frame of nobody's is counted", at(lambda w: OTHER, ("owner", lambda w: w.theirs, NOBODY))),
    ("TOKEN-1", "a plain reference in hand", put(("held", "idle", 1))),
    ("TOKEN-1", "a typed reference in hand", put(("held_type", "data", 1))),
]


def key_of(k):
    """A key as the audit writes it."""
    return k if isinstance(k, tuple) else (k,)


@pytest.mark.parametrize(("profile", "rule", "corrupt"), [
    pytest.param(profile, rule, corrupt, id=f"{profile}-{rule}-{clause}")
    for rule, clause, corrupt, *only in BROKEN for profile in only or PROFILES])
def test_the_audit_reports_a_broken_clause(worlds, profile, rule, corrupt):
    w = worlds(profile)
    key = key_of(corrupt(w))
    assert (rule, key) in w.unsound()


def test_every_invariant_and_count_is_broken_above():
    assert {rule for rule, *_ in BROKEN} == RULES_OF_STATE - ABOUT_RINGS - ABOUT_CALLBACKS, "see test_rings.py, test_callbacks.py"


def test_the_sound_world_is_sound(world):
    """Also with translations cached, walks on their way, tables in validation, and tables that may still be walked."""
    assert not world.unsound()
    cached(world)
    walking(world)
    left(world)
    left_upper(world)
    in_validation(world)
    assert {rule for rule, _ in world.unsound()} == {"TOKEN-1"}


@pytest.mark.parametrize("two", [True, False])
def test_linear_uses_in_both_directions_are_reported(worlds, two):
    """COUNT-3: `root` uses `spare`; if another uses `root` as well, that is a chain."""
    w = worlds("xen-4.17")
    w.put("word", (w.root, 5), w.entry(w.spare, P | US))
    if two:
        w.put("word", (w.spare, 5), w.entry(w.root, P | US))
    w.count()
    assert (("COUNT-3", (w.root,)) in w.unsound()) == two


def test_a_frame_was_handed_out_no_less_than_never(world):
    world.put("term", world.free, -1)
    assert ("FRAME-2", (world.free,)) in world.unsound()


# --- what must not be reported -----------------------------------------------------------------------------------------------

def test_what_is_unused_binds_nobody(world):
    """Translations that a flush has struck, entries that were never checked, tables that were flushed since."""
    w, s = world, world.s
    key = cached(w)
    s.tlb[key] = w.entry(w.theirs)
    s.tlb_clock[key] = w.now - 1
    s.walk[key] = w.entry(w.theirs)
    f = in_validation(w)
    s.word[f, 9] = w.entry(w.theirs)
    gone(w, w.table(L1, {0: w.entry(w.theirs)}))
    s.gone[w.next - 1] = w.now
    s.held_type[f] = 0
    w.count()
    assert not {rule for rule, _ in w.unsound()} & (RULES_OF_STATE - {"TOKEN-1"})


def test_a_freed_frame_waits_for_the_flush(world):
    """SLOT-2, TLB-10: what was mapped until a moment ago may still be reached, until the flush."""
    w, s = world, world.s
    key = cached(w)
    s.tlb[key] = w.entry(w.fresh, P)
    assert not w.unsound()
    s.last_owner[w.fresh] = OTHER
    assert ("TLB-10", key) in w.unsound()
    s.lent[ME, w.fresh] = s.term[w.fresh]
    assert not w.unsound(), "it was lent"


def test_every_contribution_is_summed_over_keys_of_the_schema(world):
    assert {target for target, _ in SUMS.values()} == {"frame", "dom"}
