"""Page tables: legal entries, validation and draining, and writes to entries."""
import pytest

from spec.abi import L1, NONE, PCD, PSE, RW, SEG_DESC, US, WRITABLE, A, D, G, P
from spec.kernel import Refused
from spec.profile import PROFILES
from spec.tables import (
    adjusted,
    begin_type,
    drain_absent,
    drain_entry,
    finish,
    same_authority,
    skip_absent,
    validate_entry,
    write_data,
    write_entry,
    xen_entry,
)

BOSS, ME, OTHER = 0, 1, 2


def in_validation(w, level=L1, upto=0, entries=None):
    """A table in its validation, whose next entry is a writable mapping of `data`, and the reference for it in hand."""
    f = w.table(level, {upto: w.entry(w.data)} if entries is None else entries, upto=upto)
    w.hold(w.data, held_type=1)
    return {"d": ME, "f": f}


def draining(w, upto=1):
    """A table without references, the last of whose checked entries is a writable mapping of `data`."""
    f = w.table(L1, {upto - 1: w.entry(w.data)}, upto=upto)
    w.hold(f)
    return {"d": ME, "f": f}


def new_l1_entry(w, bits=P | RW | US):
    """`data` is about to be mapped once more; a reference of the kind that the entry needs is in hand."""
    w.hold(w.data, held=int(not bits & RW), held_type=int(bool(bits & RW)))
    return {"d": ME, "g": w.l1, "i": 5, "new": w.entry(w.data, bits)}


def new_upper_entry(w):
    """A spare L1 table is about to be hung into the L2 table."""
    w.hold(w.spare_l1, held_type=1)
    return {"d": ME, "g": w.l2, "i": 5, "new": w.entry(w.spare_l1)}


def new_linear_entry(w):
    """A root table is about to use another one as a table."""
    w.hold(w.spare, held_type=1)
    return {"d": ME, "g": w.root, "i": 5, "new": w.entry(w.spare, P | US)}


def self_map(w, old_bits=P | US, new_bits=P | US | A):
    """A root table maps itself, and other bits of that entry are about to change."""
    w.put("word", (w.root, 5), w.entry(w.root, old_bits))
    return {"d": ME, "g": w.root, "i": 5, "new": w.entry(w.root, new_bits)}


TRIALS = [
    (begin_type, lambda w: {"d": ME, "f": w.idle, "t": L1}, {
        "VALID-1.1": lambda w, a: a.update(t=WRITABLE),
        "VALID-1.2": lambda w, a: a.update(d=OTHER),
        "VALID-1.3": lambda w, a: w.put("ref_count", w.idle, 0),
        "VALID-1.4": lambda w, a: w.put("type_count", w.idle, 1),
        "VALID-1.5": lambda w, a: w.put("stamp", w.idle, w.now),
    }),
    (begin_type, lambda w: {"d": ME, "f": w.idle, "t": w.p.root}, {
        "VALID-1.1": lambda w, a: a.update(t=NONE),
        "VALID-1.4": lambda w, a: w.put("upto", w.idle, 1),
    }),
    (validate_entry, in_validation, {
        "VALID-2.1": lambda w, a: a.update(d=OTHER),
        "VALID-2.2": lambda w, a: w.put("type_count", a["f"], 0),
        "VALID-2.3": lambda w, a: (w.put("type", a["f"], NONE), w.put("word", (a["f"], 0), 0)),
        "VALID-3.1": lambda w, a: w.put("upto", a["f"], w.p.entries),
        "ENTRY-1.1": lambda w, a: w.put("word", (a["f"], 0), w.entry(w.data, P | RW | PSE)),
        "ENTRY-1.3": lambda w, a: w.put("owner", w.data, OTHER),
        "ENTRY-1.5": lambda w, a: w.hold(w.data),
    }),
    (validate_entry, lambda w: in_validation(w, w.p.root, w.p.xen_first), {}),     # Xen's slot: nothing is asked of the guest
    (validate_entry, lambda w: in_validation(w, entries={}), {}),                  # an entry that is not present
    (skip_absent, lambda w: in_validation(w, entries={5: w.entry(w.data)}) | {"end": 5}, {
        "VALID-2.1": lambda w, a: a.update(d=OTHER),
        "VALID-2.2": lambda w, a: w.put("type_count", a["f"], 0),
        "VALID-2.3": lambda w, a: w.put("type", a["f"], WRITABLE),
        "VALID-4.1": lambda w, a: w.put("upto", a["f"], 6),
        "VALID-4.4": lambda w, a: a.update(end=6),
    }),
    (skip_absent, lambda w: in_validation(w, entries={}) | {"end": w.p.entries}, {
        "VALID-4.2": lambda w, a: a.update(end=w.p.entries + 1),
        "VALID-4.3": lambda w, a: w.put("type", a["f"], w.p.root),
    }),
    (finish, lambda w: in_validation(w, upto=w.p.entries), {
        "VALID-5.1": lambda w, a: a.update(d=OTHER),
        "VALID-5.2": lambda w, a: w.put("type_count", a["f"], 0),
        "VALID-5.3": lambda w, a: w.put("upto", a["f"], w.p.entries - 1),
    }),
    (drain_entry, draining, {
        "DRAIN-1.1": lambda w, a: a.update(d=OTHER),
        "DRAIN-1.2": lambda w, a: w.put("type_count", a["f"], 1),
        "DRAIN-1.3": lambda w, a: w.put("upto", a["f"], 0),
        "DRAIN-1.4": lambda w, a: w.put("type", a["f"], SEG_DESC),
    }),
    (drain_absent, lambda w: draining(w) | {"first": 1}, {
        "DRAIN-2.1": lambda w, a: a.update(d=OTHER),
        "DRAIN-2.2": lambda w, a: w.put("type_count", a["f"], 1),
        "DRAIN-2.3": lambda w, a: a.update(first=2),
        "DRAIN-2.4": lambda w, a: a.update(first=0),
        "DRAIN-2.5": lambda w, a: w.put("type", a["f"], SEG_DESC),
    }),
    (write_entry, new_l1_entry, {
        "WRITE-1.1": lambda w, a: a.update(d=OTHER),
        "WRITE-1.2": lambda w, a: (w.put("type", w.l1, NONE), a.update(new=0)),
        "WRITE-1.3": lambda w, a: w.put("validated", w.l1, False),
        "WRITE-1.4": lambda w, a: a.update(i=w.p.entries),
        "WRITE-1.5": lambda w, a: a.update(g=w.root, i=w.p.xen_first, new=0),
        "ENTRY-1.1": lambda w, a: a.update(new=a["new"] | PSE),
        "ENTRY-1.3": lambda w, a: w.put("owner", w.data, OTHER),
        "ENTRY-1.5": lambda w, a: w.hold(w.data),
        "ENTRY-1.6": lambda w, a: w.put("type", w.data, NONE),
    }),
    (write_entry, lambda w: new_l1_entry(w, P | US), {
        "ENTRY-1.1": lambda w, a: a.update(new=a["new"] | PSE),
        "ENTRY-1.3": lambda w, a: w.put("owner", w.data, OTHER),
        "ENTRY-1.4": lambda w, a: w.hold(w.data),
    }),
    (write_entry, new_upper_entry, {
        "ENTRY-1.1": lambda w, a: a.update(new=a["new"] | PSE),
        "ENTRY-1.2": lambda w, a: a.update(new=w.entry(w.l2, P | RW)),
        "ENTRY-1.3": lambda w, a: w.put("owner", w.spare_l1, OTHER),
        "ENTRY-1.5": lambda w, a: w.hold(w.spare_l1),
        "ENTRY-1.7": lambda w, a: w.put("validated", w.spare_l1, False),
        "ENTRY-1.13": lambda w, a: w.put("type", w.spare_l1, WRITABLE),
    }),
    (write_entry, new_linear_entry, {
        "ENTRY-1.8": lambda w, a: None,
        "ENTRY-1.9": lambda w, a: a.update(new=a["new"] | RW),
        "ENTRY-1.10": lambda w, a: (w.put("owner", w.root, BOSS), a.update(d=BOSS)),       # who may use every domain's frames
        "ENTRY-1.11": lambda w, a: w.put("linear", w.root, -1),
        "ENTRY-1.12": lambda w, a: w.put("linear", w.spare, 1),
    }),
    (write_entry, lambda w: {"d": ME, "g": w.l2, "i": 0, "new": w.s.word[w.l2, 0] ^ A}, {          # the fast path
        "WRITE-1.1": lambda w, a: a.update(d=OTHER),
        "WRITE-1.6": lambda w, a: a.update(new=a["new"] | G),
    }),
    (write_entry, self_map, {
        "WRITE-1.7": lambda w, a: a.update(self_map(w, P | RW, P | RW | A)),       # from a state that no rule leads to
    }),
    (write_data, lambda w: {"d": ME, "f": w.data, "i": 3, "value": 9}, {
        "WRITE-2.1": lambda w, a: a.update(d=OTHER),
        "WRITE-2.2": lambda w, a: a.update(f=w.l1),
        "WRITE-2.4": lambda w, a: a.update(i=w.p.entries),
    }),
    (write_data, lambda w: {"d": ME, "f": w.idle, "i": 3, "value": 9}, {
        "WRITE-2.3": lambda w, a: w.put("stamp", w.idle, w.now),
    }),
]
ONLY = {"new_linear_entry": "xen-4.17", "ENTRY-1.8": "xen-2003"}


def test_refused_by_one_condition(refused):
    refused.refuses()
    assert refused.false_conditions() == {refused.conjunct}


def test_done_if_all_hold(done):
    done.does()


# --- validation --------------------------------------------------------------------------------------------------------------

def test_a_validation_takes_each_reference_over_and_ends_with_a_checked_table(world):
    w, s = world, world.s
    f = w.new()
    w.put("word", (f, 0), w.entry(w.data))
    w.put("word", (f, 7), w.entry(w.l1, P | US))
    w.hold(w.data, held_type=1)
    w.hold(w.l1, held=1)
    begin_type(s, ME, f, L1)
    validate_entry(s, ME, f)
    assert (s.upto[f], s.held_type[w.data]) == (1, 0)
    skip_absent(s, ME, f, 7)
    validate_entry(s, ME, f)
    assert (s.upto[f], s.held[w.l1]) == (8, 0)
    skip_absent(s, ME, f, w.p.entries)
    finish(s, ME, f)
    assert w.unsound() == {("TOKEN-1", (f,))}, "only the reference that opened the validation is still in hand"


def test_xen_fills_its_own_slots(world):
    w, s = world, world.s
    i = w.p.xen_last
    args = in_validation(w, w.p.root, i, entries={i: w.entry(w.theirs)})
    s.word[args["f"], i] = w.entry(w.theirs)
    validate_entry(s, **args)
    assert s.word[args["f"], i] == s.xen_word[ME, i]
    assert xen_entry(s, args["f"], w.p.self_slot) >> 12 == args["f"], "one of them maps the table itself"


def test_one_of_xens_slots_stays_empty_until_the_table_is_a_base(worlds):
    w = worlds("xen-4.17")
    s, i = w.s, w.p.late_slot
    args = in_validation(w, w.p.root, i, entries={i: w.entry(w.theirs)})
    s.word[args["f"], i], s.opened[args["f"]] = w.entry(w.theirs), True
    validate_entry(s, **args)
    assert (s.word[args["f"], i], s.opened[args["f"]]) == (0, False)


def test_draining_brings_the_reference_back_into_hand(world):
    w, s = world, world.s
    args = draining(w)
    drain_entry(s, **args)
    assert (s.upto[args["f"]], s.held_type[w.data]) == (0, 1)
    assert w.unsound() == {("TOKEN-1", (w.data,))}


def test_xens_slots_hold_no_reference_to_drain(world):
    w, s = world, world.s
    f = w.table(w.p.root, upto=w.p.xen_first + 1)
    w.hold(f)
    drain_entry(s, ME, f)
    assert s.upto[f] == w.p.xen_first
    assert not w.unsound()


# --- writing -----------------------------------------------------------------------------------------------------------------

def test_a_new_entry_takes_over_and_the_old_one_gives_back(world):
    w, s = world, world.s
    args = new_l1_entry(w) | {"i": 1}       # where `shown` was mapped
    write_entry(s, **args)
    assert s.word[w.l1, 1] == adjusted(s, L1, args["new"])
    assert (s.held_type[w.data], s.held[w.shown]) == (0, 1)
    assert w.unsound() == {("TOKEN-1", (w.shown,))}


@pytest.mark.parametrize("profile", ["xen-4.17"])
def test_linear_entries_count_on_both_sides(worlds, profile):
    w = worlds(profile)
    s = w.s
    args = new_linear_entry(w)
    write_entry(s, **args)
    assert (s.linear[w.root], s.linear[w.spare]) == (1, -1)
    assert not w.unsound()
    write_entry(s, **args | {"new": 0})
    assert (s.linear[w.root], s.linear[w.spare], s.held_type[w.spare]) == (0, 0, 1)


@pytest.mark.parametrize(("bit", "profiles"), [
    (A, PROFILES), (D, PROFILES), (US, PROFILES), (G, PROFILES), (0x200, PROFILES), (PCD, {"xen-2003"}), (1 << 63, {"xen-4.17"}),
    (RW, ()), (P, ()), (1 << 12, ())])
def test_bits_that_move_no_reference_take_the_fast_path(world, bit, profiles):
    w = world
    if bit <= w.p.all_ones:
        old = w.entry(w.data, P)
        assert same_authority(w.s, L1, old, old ^ bit) == (w.p.name in profiles)


def test_in_2003_an_upper_entry_changes_its_rw_bit_for_free(world):
    old = world.entry(world.l1)
    assert same_authority(world.s, 2, old, old ^ RW) == (world.p.name == "xen-2003")


def test_a_self_map_never_becomes_writable(world):
    """W-3: neither by the fast path nor anew."""
    args = self_map(world, new_bits=P | RW | US)
    with pytest.raises(Refused, match="WRITE-1.7" if world.p.name == "xen-2003" else "ENTRY-1.2"):
        write_entry(world.s, **args)


def test_an_entry_of_another_domains_table_is_judged_by_what_that_domain_may_use(world):
    """W-2: the privileged domain, acting for the table's owner, cannot map a frame that the owner may not use."""
    w = world
    w.hold(w.theirs, held_type=1)
    with pytest.raises(Refused, match=r"ENTRY-1\.3"):
        write_entry(w.s, ME, w.l1, 5, w.entry(w.theirs))


def test_an_idle_frame_that_xen_stores_to_becomes_writable(world):
    write_data(world.s, ME, world.idle, 3, 9)
    assert (world.s.type[world.idle], world.s.word[world.idle, 3]) == (WRITABLE, 9)
    assert not world.unsound()


def test_a_loan_is_no_table(world):
    """A table's entries are judged by what its owner may use: who walks another's table reads what only the other may (ISO-1)."""
    w = world
    args = new_upper_entry(w)
    w.put("owner", w.spare_l1, OTHER)
    w.put("lent", (ME, w.spare_l1), w.s.term[w.spare_l1])
    with pytest.raises(Refused):
        write_entry(w.s, **args)
