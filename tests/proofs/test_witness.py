"""Witnesses and counterexamples: whole states in plain numbers, which the rules' own functions are run on."""
from dataclasses import replace

import pytest

from proofs import witness
from proofs.confirm import CONFIRM
from proofs.counterexample import Counterexample
from proofs.discharge import Options, Task, discharge
from proofs.ledger import PROVED, REFUTED, UNKNOWN, Row
from proofs.obligations import Obligation, faithful, initial, keeping
from proofs.plain import conditions, differences, run
from proofs.symbolic.facts import args_of
from proofs.symbolic.paths import Path, rebound
from proofs.symbolic.sorts import Sorts
from proofs.symbolic.state import SymbolicState
from proofs.symbolic.terms import IntTerm, build, node, operation
from proofs.witness import NoWitness, Witness, Witnesses
from refmodel.audit import Violation, audit
from refmodel.dump import load_state
from refmodel.state import as_state
from spec.abi import NOBODY
from spec.kernel import RULES, Rule
from spec.profile import PROFILES
from tests.proofs.rules import named

OPTIONS = Options(effort=200_000_000)
both_profiles = pytest.mark.parametrize("profile", PROFILES)


def witnesses_of(profile: str, name: str) -> list[tuple[Path, Witness, Rule]]:
    """Every path of a transition, with a witness."""
    rule = named(name)
    task = Task([faithful(profile, rule)], OPTIONS)
    search = Witnesses(task.facts, task.args, task.search.tally)
    with rebound(task.search.require):
        paths = list(task.search.paths(rule.function, args_of(rule.keys, task.args), task.given, pure=False))
        return [(path, search.find([*task.given, *conditions(path)], path), rule) for path in paths]


def rows(profile: str, rule: Rule, *parts: str) -> dict[str, Row]:
    """What comes of some parts of a transition's duty, or of all."""
    wanted = [o for o in keeping(profile, rule) if not parts or o.part in parts]
    return {o.part: row for o, row in zip(wanted, discharge(wanted, OPTIONS), strict=True)}


# --- witnesses ---------------------------------------------------------------------------------------------------------------

@both_profiles
@pytest.mark.parametrize("name", ["drop_type", "skip_absent", "skip_blank", "load_base", "validate_entry", "guest_store"])
def test_a_witness_is_a_whole_sound_state_that_goes_the_path(profile, name):
    for path, found, rule in witnesses_of(profile, name):
        assert {v.rule for v in audit(found.state())} <= {"TOKEN-1"}
        ran = run(rule, found.state(), found.model.key(tuple(node(f"{kind}{n}") for n, kind in enumerate(rule.keys))))
        assert list(differences(path, found.model, ran)) == []


def test_a_root_table_in_use_holds_xens_entries_in_every_slot_of_xens():
    (_, found, _), *_ = witnesses_of("xen-2003", "load_base")
    s = found.state()
    root = next(f for f, t in s.type.items() if t == 2 and s.validated[f])
    assert [i for i in range(1024) if (root, i) in s.word] == list(range(s.profile.xen_first, 1024))


def test_a_stretch_that_is_not_absent_has_a_present_entry():
    task = Task([faithful("xen-2003", named("skip_absent"))], OPTIONS)
    path = Path(SymbolicState(task.profile))
    asked = node("absent", node("frame1"), 5, 9)
    path.state.stretches.append(("absent", asked.args))
    found = Witnesses(task.facts, task.args, task.search.tally).find([*task.given, build("not", asked)], path)
    f = found.model.value(node("frame1"))
    assert [i for i in found.state().present(f) if 5 <= i < 9]


def test_what_no_state_satisfies_has_no_witness():
    task = Task([faithful("xen-2003", named("take_ref"))], OPTIONS)
    f = node("frame1")
    free_but_kept = [build("==", node("owner", f), NOBODY), node("alloc", f)]
    with pytest.raises(NoWitness) as none:
        Witnesses(task.facts, task.args, task.search.tally).find([*task.given, *free_but_kept], Path(SymbolicState(task.profile)))
    assert none.value.impossible


# --- runs on plain numbers ---------------------------------------------------------------------------------------------------

@both_profiles
@pytest.mark.parametrize("name", ["take_type", "drain_entry", "walk_step", "clear_user_base"])
def test_a_transition_runs_on_plain_numbers_as_on_terms(profile, name):
    row = rows(profile, named(name), "fidelity")["fidelity"]
    assert row.verdict == PROVED, row.detail
    assert "refusal(s)" in row.detail


def test_a_refusal_that_the_invariants_rule_out_is_counted():
    detail = rows("xen-2003", named("assign"), "fidelity")["fidelity"].detail
    assert detail == "run: 1 path(s), 3 refusal(s); 1 conjunct(s) can't fail where they are asked"


def test_a_term_that_does_not_subtract_as_python_does_is_found(monkeypatch):
    monkeypatch.setattr(IntTerm, "__sub__", operation("+"))
    row = rows("xen-2003", named("drop_ref"), "fidelity")["fidelity"]
    assert row.verdict == REFUTED
    assert "by the terms" in row.detail
    assert "by the run" in row.detail


def test_an_invariant_that_holds_only_as_a_term_is_found(monkeypatch):
    monkeypatch.setattr(witness, "audit", lambda state: [Violation("CLOCK-1", (0,), "")])
    row = rows("xen-2003", named("take_ref"), "fidelity")["fidelity"]
    assert row.verdict == REFUTED
    assert "CLOCK-1 holds by the terms, and not by the run" in row.detail


def test_a_shift_that_the_solver_does_otherwise_is_found(monkeypatch):
    right = Sorts._word
    monkeypatch.setattr(Sorts, "_word", lambda self, z: right(self, z) + (0x1000 if z.op == "<<" else 0))
    row = rows("xen-2003", named("walk_start"), "fidelity")["fidelity"]
    assert row.verdict == REFUTED
    assert "by the terms" in row.detail
    assert "by the run" in row.detail


def test_a_function_that_does_something_else_when_it_is_proved_is_found(monkeypatch):
    rule = named("take_ref")

    def two_faced(s, d, f):
        rule.function(s, d, f)
        if type(s) is not SymbolicState:
            s.m2p[f] = 5
    monkeypatch.setitem(RULES, rule.id, replace(rule, function=two_faced))
    row = rows("xen-2003", RULES[rule.id], "fidelity")["fidelity"]
    assert row.verdict == REFUTED
    assert "the run stored m2p[" in row.detail


# --- counterexamples ---------------------------------------------------------------------------------------------------------

@pytest.fixture
def refuted(plant):
    """The counterexample to a part of the duty of a transition whose text is changed."""
    def counterexample(profile: str, name: str, old: str, new: str, part: str) -> Counterexample:
        rule = plant(name, old, new)
        row = rows(profile, rule, part)[part]
        assert row.verdict == REFUTED
        assert row.counterexample is not None
        return Counterexample.read(row.counterexample)
    return counterexample


@both_profiles
@pytest.mark.parametrize(("name", "old", "new", "part"), [
    ("take_ref", "s.held[f] += 1", "s.held[f] += 2", "COUNT-2"),
    ("drop_type", "        s.stamp[f] = s.clock[CPU]\n", "", "TLB-10"),
    ("assign", "s.pages[d] < s.limit[d]", "True", "POOL-10"),
    ("free_frame", "s.upto[f] == 0", "True", "FRAME-2"),
    ("skip_absent", "s.absent(f, s.upto[f], end)", "True", "SLOT-1"),
    ("skip_absent", "s.absent(f, s.upto[f], end)", "True", "typed_slot"),
    ("skip_blank", "s.blank(f, s.upto[f], end)", "True", "DESC-10"),
    ("drain_entry", "s.upto[f] > 0", "s.upto[f] >= 0", "kinds"),
    ("flush", "    s.cr3_clock[CPU] += 1\n", "", "CLOCK-1"),
])
def test_a_planted_bug_has_a_confirmed_counterexample(refuted, profile, name, old, new, part):
    found = refuted(profile, name, old, new, part)
    assert found.confirmed, found.note
    assert (found.rule, found.broken) == (named(name).id, part)
    state = load_state(found.state)
    assert {v.rule for v in audit(state)} <= {"TOKEN-1"}
    for change in found.changes:
        state.maps[change.map][change.key if len(change.key) > 1 else change.key[0]] = change.after
    if part in RULES:
        assert part in {v.rule for v in audit(state)}
        if RULES[part].kind == "invariant":     # the audit may see it elsewhere only: at the other word of a descriptor
            assert not RULES[part].function(as_state(state), *found.at)
        else:
            assert (part, found.at) in {(v.rule, v.key) for v in audit(state)}


def test_a_counterexample_is_small_and_says_what_decided(refuted):
    found = refuted("xen-4.17", "take_ref", "s.held[f] += 1", "s.held[f] += 2", "COUNT-2")
    f = dict(found.arguments)["f"]
    assert found.at == (f,)
    assert f < 16
    assert sum(map(len, found.state["maps"].values())) <= 12
    assert [(c.map, c.after - c.before) for c in found.changes] == [("ref_count", 1), ("held", 2)]
    assert "s.ref_count[f] ==" in found.because


def test_a_guard_after_an_effect_is_shown_by_a_refusal_that_leaves_a_trace(refuted):
    found = refuted("xen-2003", "take_ref", "    s.held[f] += 1\n",
                    "    s.held[f] += 1\n    require(s.held[f] > 5, 'REF-1.2')\n", "guards")
    assert found.confirmed
    assert found.changes
    assert "refused by REF-1.2" in found.because


def test_a_guard_after_an_effect_that_can_not_fail_is_refuted_and_not_confirmed(refuted):
    found = refuted("xen-2003", "take_ref", "    s.held[f] += 1\n",
                    "    s.held[f] += 1\n    require(s.held[f] > 0, 'REF-1.2')\n", "guards")
    assert not found.confirmed
    assert found.note


def test_a_wrong_theorem_is_false_of_a_sound_state(monkeypatch):
    rule = RULES["ISO-3"]

    def wrong(s, d, tag):
        return s.tlb[d, tag] & 1 == 0
    monkeypatch.setitem(RULES, "ISO-3", replace(rule, function=wrong))
    row, = discharge([Obligation("xen-2003", "wrong", "ISO-3", "ISO-3")], OPTIONS)
    found = Counterexample.read(row.counterexample)
    assert row.verdict == REFUTED
    assert found.confirmed
    assert not found.changes


def test_a_wrong_initial_state_has_a_confirmed_counterexample(monkeypatch):
    right = Task.at_first
    monkeypatch.setattr(Task, "at_first", lambda self, name, key: 3 if name == "upto" else right(self, name, key))
    row, = discharge([o for o in initial("xen-2003") if o.part == "FRAME-1"], OPTIONS)
    found = Counterexample.read(row.counterexample)
    assert (found.rule, found.broken, found.confirmed) == ("initial", "FRAME-1", True)


def test_what_is_not_confirmed_stays_refuted_and_says_why(refuted, monkeypatch):
    monkeypatch.setitem(CONFIRM, "COUNT-2", lambda trial: None)
    found = refuted("xen-2003", "take_ref", "s.held[f] += 1", "s.held[f] += 2", "COUNT-2")
    assert not found.confirmed
    assert "does not break it" in found.note


def test_a_counterexample_is_read_as_it_was_written(refuted):
    found = refuted("xen-2003", "take_ref", "s.held[f] += 1", "s.held[f] += 2", "COUNT-2")
    assert Counterexample.read(found.document()) == found


def test_whether_a_path_can_happen_is_unknown_without_an_answer(monkeypatch):
    o = next(o for o in keeping("xen-2003", named("take_ref")) if o.part == "happens")
    row, = discharge([o], Options(effort=1))
    assert row.verdict == UNKNOWN
