"""What people read of a counterexample: the step, the state and the rule in the field's terms, and what broke."""
from dataclasses import replace

import pytest
from rich.console import Console

from oracle.counterexample import Scene, action, counterexample_report, entry
from proofs.counterexample import Counterexample
from spec.abi import GUEST_KERNEL, L1, L2, NX, PSE, RW, G, P
from spec.profile import XEN_4_17, XEN_2003
from tests.oracle import samples


def shown(c):
    """The report as plain lines."""
    console = Console(width=240, record=True, force_terminal=False, file=open("/dev/null", "w", encoding="utf-8"))  # noqa: SIM115
    console.print(counterexample_report(c, "what was to be proved"))
    return [line.strip() for line in console.export_text().splitlines()]


def test_the_action_is_in_words():
    assert action(samples.self_mapping_table()) == "write_entry(d=dom1, g=2, i=8, new=frame 4 P RW US A)"


def test_the_state_before_the_step_without_what_is_neutral():
    lines = shown(samples.self_mapping_table())
    assert lines[0] == "counterexample to what was to be proved, xen-2003"
    assert "1  dom1   L2        2 typed of 3  validated, pinned" in lines
    assert "2[8]  frame 2 P US A" in lines
    assert "dom1: base: frame 1; TLB page 7: frame 3 P RW US A; walk for page 8: at L1 in frame 2 P RW US" in lines


def test_what_changed_and_what_broke():
    lines = shown(samples.self_mapping_table())
    assert "word[2, 8]: frame 2 P US A → frame 4 P RW US A" in lines
    assert "held_type[4]: 1 → 0" in lines
    assert any(line.startswith("broken  SLOT-1 checked_entry_is_legal at frame 2, index 8: A checked entry") for line in lines)
    assert any(line.startswith("because spec/invariants.py:") and "may_name" in line for line in lines)
    assert lines[-1] == "confirmed: a run on plain numbers breaks it, too"


def test_what_is_not_confirmed_says_why():
    assert shown(samples.linear_chain())[-1] == "NOT confirmed: the rule was not run"


@pytest.mark.parametrize(("profile", "level", "e", "words"), [
    (XEN_2003, L1, 0, "empty"),
    (XEN_2003, L1, 0x5000, "not present, 0x5000"),
    (XEN_2003, L1, 5 << 12 | PSE | G | P, "frame 5 P PAT G"),
    (XEN_2003, L2, 5 << 12 | PSE | P, "frame 5 P PSE"),
    (XEN_4_17, L2, 5 << 12 | NX | 0xE00 | GUEST_KERNEL | RW | P, "frame 5 P RW AVAIL GUEST_KERNEL NX"),
])
def test_entries_name_their_bits(profile, level, e, words):
    assert entry(profile, e, level) == words


def test_an_initial_state_has_no_step():
    c = replace(samples.self_mapping_table(), rule="initial", arguments=(), changes=())
    assert "step  the initial state" in shown(c)
    assert not any("what the step changed" in line for line in shown(c))


def test_of_many_entries_those_stay_that_matter():
    c = samples.self_mapping_table()
    words = [[2, i, 3 << 12 | P] for i in range(100, 200)]
    words += c.state["maps"]["word"]
    crowded = replace(c, state={**c.state, "maps": {**c.state["maps"], "word": words}})
    scene = Scene(crowded)
    assert len(scene.entries(2)) == 102
    assert 8 in scene.shown_entries(2)
    assert "2[…]  78 more" in shown(crowded)


def test_the_document_is_read_back():
    c = samples.self_mapping_table()
    assert Counterexample.read(c.document()) == c


def test_where_a_rule_without_keys_breaks_is_said_by_what_was_stored_there():
    c = replace(samples.self_mapping_table(), broken="FLOW-1", at=(4,))
    assert any("broken  FLOW-1 step_is_unnoticed at frame 4: " in line for line in shown(c))
