"""Why a predicate is False: the one condition that decided, where it is and what it saw."""
import inspect
import sys

from proofs.explain import because
from refmodel.state import ConcreteState
from spec.abi import L1, L2, RW, WRITABLE, P
from spec.channels import nothing_new_is_shown, step_is_unnoticed
from spec.invariants import (
    base_is_a_checked_root,
    checked_entry_is_legal,
    clock_runs_forward,
    frame_is_consistent,
    linear_uses_exclude_each_other,
    reservation_is_within_its_limit,
    typed_references_are_counted,
    within,
)
from spec.profile import XEN_4_17, XEN_2003

SUMS = dict.fromkeys(("typed_slot", "base_of", "user_base_of", "gdt_of", "ldt_of", "linear_from", "linear_to"), 0)


def state(profile=XEN_2003, **maps):
    """A state with these values, and nothing else."""
    s = ConcreteState(profile, 64)
    for name, values in maps.items():
        s.maps[name].update(values)
    return s


def line_of(function, text):
    """The line of the file in which this text of the function is."""
    lines, first = inspect.getsourcelines(function)
    return first + next(n for n, line in enumerate(lines) if text in line)


def test_of_a_conjunction_the_first_conjunct_that_fails():
    s = state(type={3: L1}, validated={3: True}, upto={3: 1024})
    line = line_of(frame_is_consistent, "s.upto[f] == s.profile.entries and")
    assert because(frame_is_consistent, s, 3) == f"spec/invariants.py:{line}: s.type_count[f] > 0 is False (type_count[3] = 0)"


def test_of_an_if_that_returns_false_the_first_disjunct_that_holds():
    s = state(held={3: -1})
    assert because(frame_is_consistent, s, 3).endswith(": s.held[f] < 0 is True (held[3] = -1)")


def test_a_chain_names_the_link_that_fails():
    s = state(clock={0: 2}, cr3_clock={0: 1})
    assert because(clock_runs_forward, s, 0).endswith(": s.clock[c] <= s.cr3_clock[c] is False (clock[0] = 2, cr3_clock[0] = 1)")
    s = state(pages={1: -1})
    assert because(reservation_is_within_its_limit, s, 1).endswith(": 0 <= s.pages[d] is False (pages[1] = -1)")


def test_a_negation_is_looked_through():
    s = state(has_base={1: True}, base={1: 5}, owner={5: 1}, type={5: L1})
    assert because(base_is_a_checked_root, s, 1).endswith(": s.type[f] == s.profile.root is False (type[5] = 1)")


def test_counts_show_their_sums():
    s = state(type_count={3: 2}, pinned={3: True})
    found = because(typed_references_are_counted, s, 3, SUMS)
    assert " == n['typed_slot'] + " in found
    assert found.endswith("(type_count[3] = 2, n[typed_slot] = 0, n[base_of] = 0, "
                          "n[user_base_of] = 0, n[gdt_of] = 0, n[ldt_of] = 0, "
                          "pinned[3] = True, xen_held[3] = 0, held_type[3] = 0)")


def test_a_disjunction_that_fails_is_shown_whole():
    found = because(linear_uses_exclude_each_other, state(XEN_4_17), 3, SUMS | {"linear_from": 1, "linear_to": 1})
    assert "(n['linear_from'] == 0 or n['linear_to'] == 0) is False" in found


def test_the_values_of_local_names_are_shown_and_words_in_hexadecimal():
    s = state(type={3: L1, 4: L2}, upto={3: 1}, word={(3, 0): 4 << 12 | RW | P}, owner={3: 1, 4: 1})
    found = because(checked_entry_is_legal, s, 3, 0)
    assert found.endswith(": (e & RW == 0 or (s.type[f] == WRITABLE and s.type_count[f] > 0)) is False "
                          "(e = 0x4003, type[4] = 2, type_count[4] = 0)")


def test_what_holds_has_no_reason():
    assert because(frame_is_consistent, state(type={3: WRITABLE}), 3) == ""


def test_a_reason_is_found_again_and_tracing_is_as_before():
    before = sys.gettrace()
    s = state(term={3: 1})
    assert because(within, s, 1, 3) == because(within, s, 1, 3) != ""
    assert sys.gettrace() is before


def test_a_predicate_that_fails_is_gone_into():
    s = state(type={3: L1}, upto={3: 1}, word={(3, 0): 4 << 12 | P}, owner={3: 1, 4: 2}, term={4: 1})
    first, second, third = because(checked_entry_is_legal, s, 3, 0).split(", since ")
    assert ": may_name(s, s.owner[g], t, f) is False " in first
    assert second.startswith("spec/frames.py:")
    assert ": may_use(s, d, f) is False " in second
    assert ": (o == d or s.privileged[d] or s.lent[d, f] == s.term[f]) is False " in third


def test_two_states_are_told_apart_and_words_are_shown():
    before, after = state(term={3: 1}), state(owner={3: 2}, term={3: 1})
    assert because(nothing_new_is_shown, before, after, 1, 2, 3) == ""
    before = state(owner={3: 1}, term={3: 1})
    assert because(nothing_new_is_shown, before, after, 1, 2, 3).endswith(
        "is False (privileged[1] = False, owner[3] = 1, after.owner[3] = 2, e = 2)")
    assert "name = pages" in because(step_is_unnoticed, state(), 1, 2, "pages", (2,))
