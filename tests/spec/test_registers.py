"""What holds tables in use from outside the tables: pins and bases; and the words that carry no authority."""
import pytest

from spec.abi import DOMID_XEN, NOBODY, NONE
from spec.kernel import Refused
from spec.registers import clear_pinned, clear_user_base, is_root, load_base, load_user_base, set_ldt, set_m2p, set_pinned

BOSS, ME, OTHER = 0, 1, 2


def unpinned(w):
    """A checked root table that only a reference in hand keeps."""
    w.put("pinned", w.spare, False)
    return other_root(w)


def other_root(w):
    """A checked root table that is no base yet, with a reference in hand."""
    w.hold(w.spare, held_type=1)
    return {"d": ME, "f": w.spare}


TRIALS = [
    (set_pinned, unpinned, {
        "PIN-1.1": lambda w, a: a.update(d=OTHER),
        "PIN-1.2": lambda w, a: w.put("type", w.spare, NONE),
        "PIN-1.3": lambda w, a: w.put("validated", w.spare, False),
        "PIN-1.4": lambda w, a: w.hold(w.spare),
        "PIN-1.5": lambda w, a: w.put("pinned", w.spare, True),
    }),
    (clear_pinned, lambda w: {"d": ME, "f": w.spare}, {
        "PIN-2.1": lambda w, a: a.update(d=OTHER),
        "PIN-2.2": lambda w, a: w.put("pinned", w.spare, False),
    }),
    (load_base, other_root, {
        "BASE-1.1": lambda w, a: a.update(d=OTHER),
        "BASE-1.2": lambda w, a: (w.hold(w.l1, held_type=1), a.update(f=w.l1)),
        "BASE-1.3": lambda w, a: w.put("validated", w.spare, False),
        "BASE-1.4": lambda w, a: w.hold(w.spare),
    }),
    (load_user_base, other_root, {
        "BASE-2.1": lambda w, a: None,
        "BASE-2.2": lambda w, a: a.update(d=OTHER),
        "BASE-2.3": lambda w, a: (w.hold(w.l1, held_type=1), a.update(f=w.l1)),
        "BASE-2.4": lambda w, a: w.put("validated", w.spare, False),
        "BASE-2.5": lambda w, a: w.hold(w.spare),
    }),
    (clear_user_base, lambda w: {"d": ME}, {
        "BASE-3.1": lambda w, a: w.put("has_user", ME, False),
    }),
    (set_m2p, lambda w: {"d": ME, "f": w.data, "pfn": 77}, {
        "M2P-1.1": lambda w, a: a.update(d=OTHER),
    }),
    (set_ldt, lambda w: {"d": ME, "base": 0x1000, "entries": 3}, {
        "LDT-1.1": lambda w, a: a.update(d=NOBODY),
    }),
    (set_ldt, lambda w: {"d": BOSS, "base": 0, "entries": 0}, {
        "LDT-1.1": lambda w, a: a.update(d=DOMID_XEN),
    }),
]
ONLY = {"load_user_base": "xen-4.17", "clear_user_base": "xen-4.17", "BASE-2.1": "xen-2003",
        "BASE-3.1": "xen-2003 xen-4.17"}


def test_refused_by_one_condition(refused):
    refused.refuses()
    assert refused.false_conditions() == {refused.conjunct}


def test_done_if_all_hold(done):
    done.does()


def test_a_pin_takes_the_reference_in_hand_and_gives_it_back(world):
    w, s = world, world.s
    unpinned(w)
    count = s.type_count[w.spare]
    set_pinned(s, ME, w.spare)
    assert (s.pinned[w.spare], s.held_type[w.spare], s.type_count[w.spare]) == (True, 0, count)
    assert not w.unsound()
    clear_pinned(s, ME, w.spare)
    assert (s.pinned[w.spare], s.held_type[w.spare], s.type_count[w.spare]) == (False, 1, count)


def test_a_new_base_takes_its_reference_and_the_old_one_comes_into_hand(world):
    w, s = world, world.s
    other_root(w)
    load_base(s, ME, w.spare)
    assert (s.base[ME], s.held_type[w.spare], s.held_type[w.root]) == (w.spare, 0, 1)
    assert w.unsound() == {("TOKEN-1", (w.root,))}


def test_the_last_of_xens_slots_is_filled_when_a_table_becomes_a_base(worlds):
    w = worlds("xen-4.17")
    s, at = w.s, (w.spare, w.p.late_slot)
    other_root(w)
    s.word[at], s.opened[w.spare] = 0, False
    assert w.unsound() == {("TOKEN-1", (w.spare,))}
    load_base(s, ME, w.spare)
    assert (s.word[at], s.opened[w.spare]) == (s.xen_word[ME, w.p.late_slot], True)


def test_the_first_base_brings_nothing_back(world):
    w, s = world, world.s
    s.has_base[ME] = False
    other_root(w)
    load_base(s, ME, w.spare)
    assert s.held_type[w.root] == 0
    assert not w.unsound()


def test_user_mode_has_a_base_of_its_own_on_4_17(world):
    w, s = world, world.s
    if not w.p.user_root:
        assert not s.has_user[ME]
        return
    other_root(w)
    load_user_base(s, ME, w.spare)
    assert (s.user_base[ME], s.base[ME], s.held_type[w.root]) == (w.spare, w.root, 1)
    clear_user_base(s, ME)
    assert (s.has_user[ME], s.held_type[w.spare]) == (False, 1)
    assert w.unsound() == {("TOKEN-1", (w.root,)), ("TOKEN-1", (w.spare,))}
    w.hold(w.spare, held_type=1)
    load_user_base(s, ME, w.spare)
    assert s.held_type[w.spare] == 0, "no old one comes into hand"


def test_what_a_base_register_may_hold(world):
    w = world
    assert is_root(w.s, ME, w.root)
    assert is_root(w.s, BOSS, w.root)
    assert not is_root(w.s, OTHER, w.root)
    assert not is_root(w.s, ME, w.l1)


def test_a_machine_to_physical_word_is_the_owners_to_choose(world):
    set_m2p(world.s, ME, world.data, 0)
    assert world.s.m2p[world.data] == 0
    assert world.s.m2p[world.free] == world.p.all_ones, "never set"


def test_an_ldt_is_noted(world):
    set_ldt(world.s, ME, 0x5000, 16)
    assert (world.s.ldt_base[ME], world.s.ldt_entries[ME]) == (0x5000, 16)


def test_a_loan_is_no_base(world):
    """A table's entries are judged by what its owner may use: who walks another's table reads what only the other may (ISO-1)."""
    w, s = world, world.s
    f = s.base[OTHER]
    w.hold(f, held_type=1)
    s.lent[ME, f] = s.term[f]
    with pytest.raises(Refused):
        load_base(s, ME, f)
