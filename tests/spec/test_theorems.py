"""The theorems hold on the sound world for every page that is mapped, and each fails if what it promises is broken."""
import pytest

from spec.abi import L1, PSE, RW, US, WRITABLE, G, P
from spec.kernel import RULES
from spec.theorems import (
    every_entry_walked_was_checked,
    every_root_has_xens_slots,
    every_walk_ends_in_a_fault_or_an_own_frame,
    every_writable_walk_ends_in_a_writable_own_frame,
    no_stale_translation_writes_a_table,
)
from spec.x86.tlb import tlb_fill

BOSS, ME, OTHER = 0, 1, 2
DATA, SHOWN, NOWHERE = 0, 0x1000, 0x5000


def xen_va(w):
    """An address in the first of Xen's slots."""
    va = w.p.xen_first << w.p.geometry.levels[-1].shift
    return va | (0xFFFF << 48 if va >> 47 else 0)


def reads(w, va=DATA, d=ME):
    return all(every_walk_ends_in_a_fault_or_an_own_frame(w.s, d, va, user, fetch) for user in (0, 1) for fetch in (0, 1))


def writes(w, va=DATA, d=ME):
    return all(every_writable_walk_ends_in_a_writable_own_frame(w.s, d, va, user) for user in (False, True))


def stale(w, d=ME):
    return no_stale_translation_writes_a_table(w.s, d, 0)


def checked(w, va=DATA, d=ME):
    return all(every_entry_walked_was_checked(w.s, d, va, user) for user in (False, True))


def xens(w, va=DATA, d=ME):
    return all(every_root_has_xens_slots(w.s, d, user, i) for user in (False, True) for i in range(w.p.entries))


THEOREMS = {"ISO-1": reads, "ISO-2": writes, "ISO-3": stale, "PTV-1": checked, "PTV-2": xens}

# (theorem, what is broken, the corruption)
BROKEN = [
    ("ISO-1", "a frame of another is mapped", lambda w: w.put("word", (w.l1, 0), w.entry(w.theirs))),
    ("ISO-1", "a free frame is mapped", lambda w: w.put("word", (w.l1, 0), w.entry(w.free, P | US))),
    ("ISO-1", "a frame of Xen's is mapped", lambda w: w.put("word", (w.l1, 0), w.entry(1, P | US))),
    ("ISO-2", "a frame of another is mapped", lambda w: w.put("word", (w.l1, 0), w.entry(w.theirs))),
    ("ISO-2", "a page table is mapped", lambda w: w.put("word", (w.l1, 0), w.entry(w.l1))),
    ("ISO-2", "a writable frame that is out of use is mapped", lambda w: w.put("word", (w.l1, 0), w.entry(w.shown))),
    ("ISO-3", "the frame has become a table", lambda w: w.put("type", w.data, L1)),
    ("ISO-3", "the frame has gone to another", lambda w: w.put("owner", w.data, OTHER)),
    ("PTV-1", "a table was not checked", lambda w: w.put("validated", w.l1, False)),
    ("PTV-1", "the entry lies beyond what was checked", lambda w: w.put("upto", w.root, 0)),
    ("PTV-1", "a forbidden bit in an L1 entry", lambda w: w.put("word", (w.l1, 0), w.entry(w.data) | PSE)),
    ("PTV-1", "a forbidden bit in an upper entry", lambda w: w.put("word", (w.l2, 0), w.entry(w.l1) | G)),
    ("PTV-2", "one of Xen's slots is empty", lambda w: w.put("word", (w.root, w.p.xen_first), 0)),
    ("PTV-2", "one of Xen's slots is the guest's", lambda w: w.put("word", (w.root, w.p.xen_last), w.entry(w.spare_l1))),
]


@pytest.fixture
def cached(world):
    """The world, where a store to `data` was translated and kept."""
    tlb_fill(world.s, ME, DATA, False, True, False)
    return world


@pytest.mark.parametrize("theorem", THEOREMS)
def test_a_theorem_holds(cached, theorem):
    assert not cached.unsound()
    if theorem == "ISO-3":
        assert stale(cached)
    else:
        assert all(THEOREMS[theorem](cached, va) for va in (DATA, SHOWN, NOWHERE, xen_va(cached)))


@pytest.mark.parametrize(("theorem", "corrupt"), [
    pytest.param(rule, corrupt, id=f"{rule}-{what}") for rule, what, corrupt in BROKEN])
def test_a_theorem_fails(cached, theorem, corrupt):
    corrupt(cached)
    assert not THEOREMS[theorem](cached)
    cached.s.privileged[ME] = True
    assert THEOREMS[theorem](cached) == (theorem != "PTV-2"), "of other domains a privileged one is promised nothing"


def test_iso_2_is_about_xens_slots_too(world):
    """A writable way through Xen's slots, open to guests, would be no frame of the domain's."""
    w, s = world, world.s
    va = xen_va(w)
    table = w.root
    for level in reversed(w.p.geometry.levels):
        i = va >> level.shift & (1 << level.bits) - 1
        s.word[table, i] |= RW | US
        table = s.word[table, i] >> 12
    assert reads(w, va)
    assert not writes(w, va)


def test_lent_frames_are_no_leak(world):
    w = world
    w.put("word", (w.l1, 0), w.entry(w.theirs))
    w.put("lent", (ME, w.theirs), w.s.term[w.theirs])
    assert reads(w)
    assert not writes(w), "it is not in use as writable memory"
    w.put("type", w.theirs, WRITABLE)
    w.put("type_count", w.theirs, 1)
    assert writes(w)


def test_a_frame_on_its_way_back_may_still_be_written(cached):
    """ISO-3: nobody's frame is no table and no other domain's."""
    cached.put("owner", cached.data, cached.s.owner[cached.free])
    assert stale(cached)


def test_every_theorem_is_broken_above():
    theorems = {rule.id for rule in RULES.values() if rule.kind == "theorem" and not rule.id.startswith("RING-")}
    assert {rule for rule, *_ in BROKEN} == theorems == set(THEOREMS), "for those about rings see test_rings.py"
