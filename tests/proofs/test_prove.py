"""The prover: small transitions are proved for both profiles, planted bugs are refuted, and the ledger says so."""
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner

from oracle.cli import app
from oracle.prove import ledger_junit
from proofs import induction, obligations, runner
from proofs.discharge import Options, Query, Task, discharge
from proofs.ledger import PROVED, REFUTED, UNKNOWN, Ledger, Row
from proofs.obligations import Obligation, keeping, select, tasks
from proofs.symbolic.paths import paths
from proofs.symbolic.sorts import Sorts
from proofs.symbolic.terms import SemanticGap, bool_value, build, node
from spec.kernel import RULES
from spec.profile import PROFILES, XEN_4_17, XEN_2003
from tests.proofs.rules import named

ROOT = Path(__file__).parents[2]
OPTIONS = Options(effort=200_000_000)
both_profiles = pytest.mark.parametrize("profile", PROFILES)


def unproved(profile: str, name: str) -> dict[str, str]:
    """What part of a transition's duty is not proved, and with what verdict."""
    wanted = keeping(profile, named(name))
    return {o.part: row.verdict for o, row in zip(wanted, discharge(wanted, OPTIONS), strict=True) if row.verdict != PROVED}


# --- what holds --------------------------------------------------------------------------------------------------------------

@both_profiles
@pytest.mark.parametrize("name", ["take_ref", "drop_type", "begin_type", "skip_absent", "skip_blank", "load_base", "assign",
                                  "flush", "lend", "clear_user_base", "fetch", "load_stack_segment", "reload"])
def test_a_small_transition_keeps_every_invariant(profile, name):
    assert unproved(profile, name) == {}


@both_profiles
@pytest.mark.parametrize("subject", ["initial", "sums", "ISO-3"])
def test_the_rest_is_proved(profile, subject):
    for task in tasks(obligations.obligations(profile)):
        if task[0].subject == subject:
            assert {row.verdict for row in discharge(task, OPTIONS)} == {PROVED}


@pytest.mark.long
def test_everything_is_proved(tmp_path):
    ledger = runner.run(select(None, ""), 2, Silent(), tmp_path)
    assert [row.name for row in ledger.rows if row.verdict != PROVED] == []


# --- what does not -----------------------------------------------------------------------------------------------------------

@both_profiles
@pytest.mark.parametrize(("name", "old", "new", "refuted"), [
    ("take_ref", "    s.held[f] += 1\n", "", "COUNT-2"),
    ("take_ref", "s.held[f] += 1", "s.held[f] += 2", "COUNT-2"),
    ("drop_ref", "s.held[f] > 0", "s.held[f] >= 0", "FRAME-1"),
    ("drop_type", "        s.stamp[f] = s.clock[CPU]\n", "", "GONE-1"),
    ("begin_type", "may_become(s, f, t)", "True", "TLB-10"),
    ("finish", "s.upto[f] == s.profile.entries", "True", "FRAME-1"),
    ("load_base", "require(s.validated[f], ", "require(True, ", "BASE-10"),
    ("assign", "s.pages[d] < s.limit[d]", "True", "POOL-10"),
    ("assign", "    s.pages[d] += 1\n", "", "COUNT-4"),
    ("free_frame", "s.upto[f] == 0", "True", "FRAME-2"),
    ("skip_absent", "s.absent(f, s.upto[f], end)", "True", "SLOT-1"),
    ("skip_blank", "s.blank(f, s.upto[f], end)", "True", "DESC-10"),
    ("drain_absent", "first <= s.upto[f]", "True", "FRAME-1"),
    ("flush", "    s.cr3_clock[CPU] += 1\n", "", "CLOCK-1"),
    ("set_pinned", "    s.held_type[f] -= 1\n", "", "COUNT-1"),
    ("set_pinned", "s.validated[f]", "True", "FRAME-1"),
    ("take_ref", "s.owner[f] == d", "True", "FLOW-1"),
    ("set_m2p", "s.m2p[f] = pfn", "s.m2p[f] = s.m2p[pfn & 1]", "FLOW-2"),       # a leak
    ("set_m2p", "    s.m2p[f] = pfn", "    require(s.pinned[pfn & 1], 'M2P-1.1')\n    s.m2p[f] = pfn", "FLOW-2"),
    ("assign", "    s.term[f] += 1\n", "", "FLOW-3"),
])
def test_a_planted_bug_is_refuted(plant, profile, name, old, new, refuted):
    plant(name, old, new)
    assert unproved(profile, name)[refuted] == REFUTED


def test_a_guard_after_an_effect_is_refuted_and_proves_nothing_else(plant):
    plant("take_ref", "    s.held[f] += 1\n", "    s.held[f] += 1\n    require(s.held[f] > 0, 'REF-1.2')\n")
    found = unproved("xen-2003", "take_ref")
    assert found.pop("guards") == REFUTED
    assert set(found.values()) == {UNKNOWN}
    assert len(found) == len(keeping("xen-2003", named("take_ref"))) - 1


def test_a_transition_that_can_not_happen_is_vacuous(plant):
    plant("take_ref", "s.ref_count[f] > 0", "s.ref_count[f] < 0")
    assert unproved("xen-2003", "take_ref") == {"happens": REFUTED}


def test_a_value_that_is_not_of_its_kind_is_refuted(plant):
    plant("drain_entry", "s.upto[f] > 0", "s.upto[f] >= 0")
    assert unproved("xen-2003", "drain_entry")["kinds"] == REFUTED


def test_what_a_term_can_not_follow_is_unknown(plant):
    plant("take_ref", "s.held[f] += 1", "s.held[f] += int(s.held[f])")
    assert set(unproved("xen-2003", "take_ref").values()) == {UNKNOWN}


def test_no_answer_within_the_effort_is_unknown():
    rows = discharge([o for o in keeping("xen-4.17", named("drop_type")) if o.part == "SLOT-2"], Options(effort=1))
    assert [row.verdict for row in rows] == [UNKNOWN]
    assert "no answer with an effort of 1" in rows[0].detail


def test_a_wrong_rule_of_counting_does_not_follow(monkeypatch):
    name = "a ghost sum without contributions is zero"
    monkeypatch.setitem(induction.RULES, name, (induction.RULES[name][0], []))
    assert [row.verdict for row in discharge([Obligation("xen-2003", name, "sums", name)], OPTIONS)] == [UNKNOWN]


# --- expressions in the solver -----------------------------------------------------------------------------------------------

def valid(sorts: Sorts, z: object) -> bool:
    """The solver finds no values for which it is false."""
    task = Task([Obligation(XEN_2003.name, "", "sums", "")], OPTIONS)
    task.sorts = sorts
    task.ask(Query("", "", [], z))          # type: ignore[arg-type]
    return task.accounts[""].verdict == PROVED


def test_numbers_do_not_wrap():
    sorts, x, y = Sorts(XEN_2003), node("word0"), node("word1")
    ones = XEN_2003.all_ones
    assert sorts.bounds(build("+", x, 1)) == (1, ones + 1)
    assert sorts.bounds(build("-", x, y)) == (-ones, ones)
    assert valid(sorts, build("not", build("==", build("+", x, 1), 0)))
    assert valid(sorts, build("<=", build("-", x, 1), x))
    assert valid(sorts, build("==", build("-", build("+", x, y), y), x))
    assert valid(sorts, build("==", build("+", build("*", 4, build("//", x, 4)), build("%", x, 4)), x))
    assert valid(sorts, build("==", build(">>", build("<<", x, 12), 12), x))
    assert not valid(sorts, build("==", build("<<", build(">>", x, 12), 12), x))
    assert not valid(sorts, build("<=", 0, build("-", x, y)))
    assert valid(sorts, build("not", build("==", build("^", x, build("|", x, y)), ones + 1)))


def test_counts_and_words_do_not_mix():
    sorts = Sorts(XEN_4_17)
    with pytest.raises(SemanticGap):
        sorts.boolean(build("==", node("word0"), node("count0")))
    with pytest.raises(SemanticGap):
        sorts.count(build("&", node("count0"), 1))


def test_what_is_of_its_kind():
    sorts, i = Sorts(XEN_2003), node("index0")
    assert sorts.misfit("index", i) is False
    assert sorts.misfit("index", build("&", node("word0"), 1023)) is False
    assert sorts.misfit("count", build("-", node("count0"), 1)) is False
    assert str(sorts.misfit("index", build("-", i, 1))) == "not(<=(0, -(index0(), 1)))"
    assert str(sorts.misfit("index", build("+", i, 1))) == "not(<=(+(index0(), 1), 65535))"


# --- the ledger, the runner, the command -------------------------------------------------------------------------------------

class Silent:
    """Nobody watches."""

    def begun(self, task):
        """A task is running."""

    def done(self, task, rows):
        """A task is done."""


def test_names_are_unique_and_can_be_picked():
    for profile in PROFILES:
        names = [o.name for o in obligations.obligations(profile)]
        assert len(names) == len(set(names))
    assert [o.name for o in select("xen-2003", "take_ref keeps frame_")] == ["take_ref keeps frame_is_consistent (FRAME-1)"]
    assert {o.subject for o in select(None, "*_ref keeps*")} == {"REF-1", "REF-2"}
    assert select(None, "no such thing") == []


def test_every_transition_theorem_and_invariant_has_obligations():
    about = {id for o in obligations.obligations("xen-4.17") for id in o.about}
    kinds = ("transition", "theorem", "invariant", "count", "flow")
    silent = {rule for profile, rule in obligations.SILENT if profile == "xen-4.17"}
    assert about == {r.id for r in RULES.values() if r.kind in kinds} - {"TOKEN-1"} - silent


@pytest.mark.parametrize(("profile", "rule"), obligations.SILENT)
def test_a_theorem_that_says_nothing_of_a_profile_holds_of_any_state_of_it(profile, rule):
    """Without a look at the state: so it is no obligation that is left out."""
    assert RULES[rule].kind == "theorem"
    assert {bool_value(path.value) for path in paths(RULES[rule], PROFILES[profile])} == {True}


def bare(ledger: Ledger) -> list[Row]:
    """The rows without what differs from run to run."""
    return [replace(row, seconds=0, worst=0, effort=0, cached=False) for row in ledger.rows]


def test_rows_are_the_same_with_any_number_of_jobs_and_are_remembered(tmp_path):
    wanted = select(None, "*_ref *") + select("xen-4.17", "ISO-3")
    one = runner.run(wanted, 1, Silent(), tmp_path)
    two = runner.run(wanted[::-1], 2, Silent(), None)
    again = runner.run(wanted, 2, Silent(), tmp_path)
    assert one.clean
    assert bare(one) == bare(two)[::-1] == bare(again)
    assert not any(row.cached for row in one.rows + two.rows)
    assert all(row.cached for row in again.rows)
    alone = runner.run(wanted[3:4], 1, Silent(), None)
    assert bare(alone)[0].verdict == bare(one)[3].verdict


def test_only_proofs_are_remembered_and_a_broken_file_is_not_read(tmp_path):
    o = keeping("xen-2003", named("take_ref"))[0]
    row = Row(o.profile, o.name, o.about, PROVED, 1, 1, 0.1, 0.1, 100)
    cache = runner.Cache(tmp_path, "v")
    cache.put(o, replace(row, verdict=REFUTED))
    assert cache.get(o) is None
    cache.put(o, row)
    assert cache.get(o) == replace(row, cached=True)
    assert runner.Cache(tmp_path, "w").get(o) is None
    cache.file(o).write_text("{")
    assert cache.get(o) is None


def test_junit_has_a_test_an_obligation():
    rows = tuple(Row("xen-2003", name, ("REF-1",), name, 1, 1, 0.1, 0.1, 100, "why") for name in (PROVED, REFUTED, UNKNOWN))
    root = ElementTree.fromstring(ledger_junit(Ledger(rows, 1.0)).encode())
    assert root.attrib == {"tests": "3", "failures": "1", "errors": "1", "skipped": "0"}
    assert [[child.tag for child in case] for case in root[0]] == [[], ["failure"], ["error"]]


def test_the_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    junit, document = tmp_path / "j.xml", tmp_path / "l.json"
    args = ["prove", "--profile", "xen-2003", "--only", "take_ref", "--junit", str(junit), "--json", str(document)]
    done = CliRunner().invoke(app, args)
    assert done.exit_code == 0, done.output
    assert "everything is proved" in done.output
    read = json.loads(document.read_text())
    assert read["summary"].keys() == {"obligations", "proved", "refuted", "unknown", "seconds"}
    assert read["summary"]["proved"] == len(read["rows"]) == len(keeping("xen-2003", named("take_ref")))
    assert ElementTree.parse(junit).getroot().get("failures") == "0"
    assert "remembered" in CliRunner().invoke(app, args).output


@pytest.mark.parametrize("args", [["--profile", "nonsense"], ["--only", "nonsense"], ["--json", "/no/such/folder/x"]])
def test_what_can_not_run_ends_with_2(args):
    assert CliRunner().invoke(app, ["prove", *args]).exit_code == 2


def test_without_the_solver_it_says_so(tmp_path):
    (tmp_path / "z3.py").write_text("raise ModuleNotFoundError(\"No module named 'z3'\", name='z3')\n")
    code = "import sys; from oracle.cli import main; sys.argv = ['xenspec', 'prove']; main()"
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "the extra 'proofs'" in done.stderr
