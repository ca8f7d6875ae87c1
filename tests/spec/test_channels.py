"""What a domain sees, and by which channels a step for one domain may reach what another sees."""
import pytest

from refmodel.state import ConcreteState
from spec.channels import look_up_is_seen, nothing_new_is_shown, sees, step_is_unnoticed
from spec.kernel import CPU, RULES, SCHEMA
from spec.reservation import assign

BOSS, ME, OTHER = 0, 1, 2


def after(w, change):
    """A copy of the world's state, changed."""
    s = ConcreteState(w.p, w.s.frames)
    for name, entries in w.s.maps.items():
        for key, value in entries.items():
            s.maps[name][key] = value
    change(s)
    return s


# --- the view ----------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("whose", "seen"), [
    ("data", True),                         # its own
    ("theirs", False),
    ("fresh", True),                        # it was its own until the last flush
    ("free", False),
])
def test_a_domain_sees_the_words_of_frames_that_it_may_use(world, whose, seen):
    assert sees(world.s, ME, "word", (getattr(world, whose), 0)) == seen


def test_all_see_which_frames_are_free(world):
    assert all(sees(world.s, d, "owner", (world.free,)) for d in (ME, OTHER))
    assert not sees(world.s, OTHER, "owner", (world.data,))


def test_who_was_lent_a_frame_sees_it_until_the_frame_is_handed_out_again(world):
    world.put("lent", (OTHER, world.data), world.s.term[world.data])
    assert sees(world.s, OTHER, "word", (world.data, 0))
    world.put("term", world.data, world.s.term[world.data] + 1)
    assert not sees(world.s, OTHER, "word", (world.data, 0))


def test_registers_and_translations_are_private_and_the_clock_is_everybodys(world):
    for name, (kinds, _) in SCHEMA.items():
        if kinds[0] == "dom":
            key = (ME, *(0 for _ in kinds[1:]))
            assert sees(world.s, ME, name, key)
            assert not sees(world.s, OTHER, name, key)
    assert sees(world.s, OTHER, "clock", (CPU,))


# --- FLOW-1 ------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", ["ref_count", "type", "type_count", "pinned", "upto", "m2p", "alloc", "validated", "owner"])
def test_what_is_kept_of_anothers_frame_may_not_change(world, name):
    assert not step_is_unnoticed(world.s, ME, OTHER, name, (world.theirs,))
    assert step_is_unnoticed(world.s, ME, OTHER, name, (world.data,))       # OTHER does not see it
    assert step_is_unnoticed(world.s, ME, ME, name, (world.theirs,))        # nobody else is asked about


def test_nor_what_it_holds_but_by_a_loan_of_it(world):
    key = (world.theirs, 0)
    assert not step_is_unnoticed(world.s, ME, OTHER, "word", key)
    world.put("lent", (ME, world.theirs), world.s.term[world.theirs])
    assert step_is_unnoticed(world.s, ME, OTHER, "word", key)
    assert not step_is_unnoticed(world.s, ME, OTHER, "type", (world.theirs,))


def test_the_owner_of_a_lent_frame_may_do_with_it_what_it_likes(world):
    world.put("lent", (OTHER, world.data), world.s.term[world.data])
    assert step_is_unnoticed(world.s, ME, OTHER, "type", (world.data,))
    assert step_is_unnoticed(world.s, ME, OTHER, "word", (world.data, 0))


@pytest.mark.parametrize(("name", "key", "unnoticed"), [
    ("held", lambda w: (w.theirs,), True),          # by hand
    ("held_type", lambda w: (w.theirs,), True),
    ("clock", lambda w: (CPU,), True),              # by clock
    ("owner", lambda w: (w.free,), True),           # by pool
    ("base", lambda w: (OTHER,), False),
    ("tlb", lambda w: (OTHER, 0), False),
    ("lent", lambda w: (OTHER, w.data), False),
])
def test_channels(world, name, key, unnoticed):
    assert step_is_unnoticed(world.s, ME, OTHER, name, key(world)) == unnoticed


def test_a_privileged_domain_lends(world):
    assert step_is_unnoticed(world.s, BOSS, OTHER, "lent", (OTHER, world.data))


def test_nothing_is_promised_to_a_privileged_domain(world):
    assert step_is_unnoticed(world.s, ME, BOSS, "type", (world.theirs,))


# --- FLOW-2, FLOW-3 ----------------------------------------------------------------------------------------------------------

def test_a_step_goes_by_what_its_domain_sees_unless_that_is_privileged(world):
    assert look_up_is_seen(world.s, ME, "type", (world.data,))
    assert not look_up_is_seen(world.s, ME, "type", (world.theirs,))
    assert look_up_is_seen(world.s, BOSS, "type", (world.theirs,))


def test_handing_a_frame_out_shows_it_to_its_new_owner_alone(world):
    f = world.free
    given = after(world, lambda s: assign(s, ME, f))
    assert nothing_new_is_shown(world.s, given, ME, ME, f)
    assert nothing_new_is_shown(world.s, given, ME, OTHER, f)
    stolen = after(world, lambda s: s.owner.__setitem__(world.theirs, ME))
    assert not nothing_new_is_shown(world.s, stolen, ME, ME, world.theirs)


def test_a_loan_shows_a_frame_if_a_privileged_domain_makes_it(world):
    f = world.data
    lent = after(world, lambda s: s.lent.__setitem__((OTHER, f), s.term[f]))
    assert nothing_new_is_shown(world.s, lent, BOSS, OTHER, f)
    assert not nothing_new_is_shown(world.s, lent, ME, OTHER, f)


def test_the_conditions_are_rules():
    assert [RULES[f"FLOW-{n}"].name for n in (1, 2, 3)] == ["step_is_unnoticed", "look_up_is_seen", "nothing_new_is_shown"]
