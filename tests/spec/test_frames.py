"""Frames: how references are taken and dropped."""

from spec.abi import DOMID_XEN, L1, NOBODY, WRITABLE
from spec.frames import drop_ref, drop_type, may_use, refers_by, take_ref, take_type
from spec.kernel import CPU

BOSS, ME, OTHER = 0, 1, 2

TRIALS = [
    (take_ref, lambda w: {"d": ME, "f": w.data}, {
        "REF-1.1": lambda w, a: a.update(d=OTHER),
        "REF-1.2": lambda w, a: w.put("ref_count", w.data, 0),
    }),
    (drop_ref, lambda w: w.hold(w.shown, held=1) or {"d": ME, "f": w.shown}, {
        "REF-2.1": lambda w, a: a.update(d=OTHER),
        "REF-2.2": lambda w, a: w.hold(w.shown),
    }),
    (take_type, lambda w: {"d": ME, "f": w.idle, "t": WRITABLE}, {
        "TYPE-1.1": lambda w, a: a.update(d=OTHER),
        "TYPE-1.2": lambda w, a: w.put("ref_count", w.idle, 0),
        "TYPE-1.3": lambda w, a: a.update(t=L1),
        "TYPE-1.4": lambda w, a: w.put("upto", w.idle, 3),
        "TYPE-1.5": lambda w, a: w.put("stamp", w.idle, w.now),
    }),
    (take_type, lambda w: {"d": ME, "f": w.spare_l1, "t": L1}, {
        "TYPE-1.1": lambda w, a: a.update(d=OTHER),
        "TYPE-1.2": lambda w, a: w.put("ref_count", w.spare_l1, 0),
        "TYPE-1.6": lambda w, a: a.update(t=WRITABLE),
        "TYPE-1.7": lambda w, a: w.put("validated", w.spare_l1, False),
    }),
    (drop_type, lambda w: w.hold(w.shown, held_type=1) or {"d": ME, "f": w.shown}, {
        "TYPE-2.1": lambda w, a: a.update(d=OTHER),
        "TYPE-2.2": lambda w, a: w.hold(w.shown),
    }),
]


def test_refused_by_one_condition(refused):
    refused.refuses()
    assert refused.false_conditions() == {refused.conjunct}


def test_done_if_all_hold(done):
    done.does()


def test_a_plain_reference_comes_into_hand_and_goes_again(world):
    s, f = world.s, world.shown
    before = s.ref_count[f]
    take_ref(s, ME, f)
    assert (s.ref_count[f], s.held[f], s.type_count[f]) == (before + 1, 1, 0)
    drop_ref(s, ME, f)
    assert (s.ref_count[f], s.held[f]) == (before, 0)


def test_a_typed_reference_includes_a_plain_one(world):
    s, f = world.s, world.idle
    take_type(s, ME, f, WRITABLE)
    assert (s.type[f], s.type_count[f], s.ref_count[f], s.held_type[f]) == (WRITABLE, 1, 2, 1)
    drop_type(s, ME, f)
    assert (s.type[f], s.type_count[f], s.ref_count[f], s.held_type[f]) == (WRITABLE, 0, 1, 0)
    assert s.stamp[f] == world.now, "the frame keeps its type until the next flush"


def test_a_table_that_loses_its_last_reference_is_no_longer_checked(world):
    s = world.s
    f = world.table(L1)
    world.hold(f, held_type=2)
    drop_type(s, ME, f)
    assert s.validated[f], "another typed reference is left"
    assert s.stamp[f] == 0
    drop_type(s, ME, f)
    assert (s.validated[f], s.stamp[f], s.gone[f]) == (False, world.now, world.now + 1)
    assert s.upto[f] == world.p.entries, "it still has to give back what its entries hold"


def test_a_frame_that_never_was_a_checked_table_leaves_no_ghost(world):
    world.hold(world.shown, held_type=1)
    drop_type(world.s, ME, world.shown)
    assert world.s.gone[world.shown] == 0


def test_who_may_use_a_frame(world):
    s = world.s
    assert may_use(s, ME, world.data)
    assert not may_use(s, OTHER, world.data)
    assert may_use(s, BOSS, world.data)
    assert not may_use(s, BOSS, world.free), "nobody's (W-1)"
    assert not may_use(s, BOSS, 1), "Xen's (W-1)"
    s.lent[OTHER, world.data] = s.term[world.data]
    assert may_use(s, OTHER, world.data)
    s.term[world.data] += 1
    assert not may_use(s, OTHER, world.data), "it was handed out anew since it was lent"


def test_how_an_entry_refers(world):
    nothing, plain, typed, linear = range(4)
    s, w = world.s, world
    assert refers_by(s, w.l1, L1, w.entry(w.data) & ~1) == nothing
    assert refers_by(s, w.l1, L1, w.entry(w.data)) == typed
    assert refers_by(s, w.l1, L1, w.entry(w.data, 1)) == plain
    assert refers_by(s, w.l1, L1, w.entry(w.l1, 1)) == plain, "an L1 entry that shows its own table is an ordinary mapping"
    assert refers_by(s, w.root, w.p.root, w.entry(w.root)) == nothing, "a self-map"
    assert refers_by(s, w.root, w.p.root, w.entry(w.spare)) == linear
    assert refers_by(s, w.l2, 2, w.entry(w.l1)) == typed


def test_a_flush_ends_the_wait_of_a_frame(world):
    world.s.stamp[world.idle] = world.now
    world.s.clock[CPU] += 1
    take_type(world.s, ME, world.idle, WRITABLE)


def test_nobody_is_no_domain_that_could_use_free_frames(world):
    """Else the invariants say nothing where a domain is nobody: the proof of POOL-3 fails there."""
    assert not may_use(world.s, NOBODY, world.free)
    assert not may_use(world.s, DOMID_XEN, 1)
