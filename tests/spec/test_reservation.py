"""Reservation: frames are handed out, given back, erased, kept and lent."""
from spec.abi import DOMID_XEN, L1, NOBODY, NONE, WRITABLE
from spec.frames import may_use
from spec.kernel import CPU
from spec.reservation import assign, drop_alloc, free_frame, lend, scrub, xen_keeps

BOSS, ME, OTHER = 0, 1, 2


def unused(w):
    """A frame that its owner gave up, and that nothing refers to."""
    f = w.new(alloc=False)
    w.count()
    return {"d": ME, "f": f}


TRIALS = [
    (drop_alloc, lambda w: {"d": ME, "f": w.idle}, {
        "POOL-1.1": lambda w, a: a.update(d=OTHER),
        "POOL-1.2": lambda w, a: w.put("alloc", w.idle, False),
    }),
    (free_frame, unused, {
        "POOL-2.1": lambda w, a: a.update(d=OTHER),
        "POOL-2.2": lambda w, a: w.put("ref_count", a["f"], 1),
        "POOL-2.3": lambda w, a: w.put("upto", a["f"], 1),
    }),
    (assign, lambda w: {"d": ME, "f": w.free}, {
        "POOL-3.1": lambda w, a: w.put("owner", w.free, OTHER),
        "POOL-3.2": lambda w, a: (a.update(d=DOMID_XEN), w.put("limit", DOMID_XEN, 1)),
        "POOL-3.3": lambda w, a: w.put("limit", ME, w.s.pages[ME]),
        "POOL-3.4": lambda w, a: a.update(f=w.fresh),
    }),
    (assign, lambda w: {"d": OTHER, "f": w.free}, {
        "POOL-3.2": lambda w, a: (a.update(d=NOBODY), w.put("limit", NOBODY, 1)),
    }),
    (scrub, lambda w: {"d": ME, "f": w.idle, "i": 0}, {
        "POOL-4.1": lambda w, a: a.update(d=OTHER),
        "POOL-4.2": lambda w, a: w.put("type_count", w.idle, 1),
        "POOL-4.3": lambda w, a: w.put("type", w.idle, WRITABLE),
        "POOL-4.4": lambda w, a: a.update(i=w.p.entries),
    }),
    (xen_keeps, lambda w: w.hold(w.data, held_type=1) or {"d": ME, "f": w.data}, {
        "POOL-5.1": lambda w, a: a.update(d=OTHER),
        "POOL-5.2": lambda w, a: w.put("type", w.data, L1),
        "POOL-5.3": lambda w, a: w.hold(w.data),
    }),
    (lend, lambda w: {"d": BOSS, "to": ME, "f": w.theirs}, {
        "LEND-1.1": lambda w, a: a.update(d=OTHER),
        "LEND-1.2": lambda w, a: a.update(f=w.free),
    }),
    (lend, lambda w: {"d": BOSS, "to": ME, "f": w.theirs}, {
        "LEND-1.2": lambda w, a: a.update(f=1),         # Xen's
    }),
]


def test_refused_by_one_condition(refused):
    refused.refuses()
    assert refused.false_conditions() == {refused.conjunct}


def test_done_if_all_hold(done):
    done.does()


def test_a_frame_goes_back_and_comes_to_another_after_a_flush(world):
    w, s = world, world.s
    s.word[w.idle, 3] = 9
    pages = s.pages[ME], s.pages[OTHER]
    drop_alloc(s, ME, w.idle)
    assert s.owner[w.idle] == ME, "it stays its own until nothing refers to it"
    free_frame(s, ME, w.idle)
    assert (s.owner[w.idle], s.last_owner[w.idle], s.stamp[w.idle]) == (NOBODY, ME, w.now)
    assert not w.unsound()
    s.clock[CPU] += 1
    assign(s, OTHER, w.idle)
    assert (s.owner[w.idle], s.type[w.idle], s.ref_count[w.idle], s.term[w.idle]) == (OTHER, NONE, 1, 2)
    assert (s.pages[ME], s.pages[OTHER]) == (pages[0] - 1, pages[1] + 1)
    scrub(s, OTHER, w.idle, 3)
    assert s.word[w.idle, 3] == 0


def test_what_xen_keeps_is_still_counted(world):
    w, s = world, world.s
    w.hold(w.data, held_type=1)
    count = s.type_count[w.data]
    xen_keeps(s, ME, w.data)
    assert (s.type_count[w.data], s.held_type[w.data], s.xen_held[w.data]) == (count, 0, 1)
    assert not w.unsound()


def test_what_was_lent_is_lent_until_the_frame_changes_hands(world):
    w, s = world, world.s
    lend(s, BOSS, ME, w.theirs)
    assert may_use(s, ME, w.theirs)
    assert not may_use(s, ME, w.shown + 1000)
    s.term[w.theirs] += 1
    assert not may_use(s, ME, w.theirs)
