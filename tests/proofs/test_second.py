"""A second opinion: every query as SMT-LIB text, which another solver decides the same way."""
import inspect
import re
from dataclasses import replace

import pytest
import z3
from typer.testing import CliRunner

from oracle.cli import app
from proofs import obligations, runner, second, smtlib
from proofs.discharge import Options, discharge
from proofs.ledger import PROVED, REFUTED, UNKNOWN, Row
from proofs.obligations import keeping, tasks
from proofs.symbolic.search import Tally
from spec.kernel import RULES
from spec.profile import PROFILES
from tests.proofs.rules import named

both_profiles = pytest.mark.parametrize("profile", PROFILES)


def rows_of(profile: str, subject: str, options: Options, *parts: str) -> dict[str, Row]:
    """The rows of a subject by their parts, or of some of them."""
    wanted = [o for o in obligations.obligations(profile) if o.subject == subject and (not parts or o.part in parts)]
    return {o.part: row for o, row in zip(wanted, discharge(wanted, options), strict=True)}


def texts(folder) -> dict[str, str]:
    """What was written, by name."""
    return {path.relative_to(folder).as_posix(): path.read_text() for path in sorted(folder.rglob("*.smt2"))}


# --- text --------------------------------------------------------------------------------------------------------------------

def test_equal_queries_have_equal_texts_however_they_were_made():
    x, y, f = z3.BitVec("x", 8), z3.BitVec("y", 8), z3.Function("f", z3.BitVecSort(8), z3.IntSort())
    written = []
    for sides in ((x, y), (y, x)):
        solver = z3.Solver()
        solver.add(z3.Not(sides[0] == sides[1]), f(x) + 1 <= f(y), z3.ULE(x + y, 5))
        written.append(smtlib.script(solver, "about"))
        _ = [x * n for n in range(100)]     # z3 numbers what is made from here on otherwise
    assert written[0] == written[1]
    assert written[0].splitlines() == [
        "; about", "; expected: unsat", "(set-logic QF_UFBVLIA)",
        "(declare-fun f ((_ BitVec 8)) Int)", "(declare-fun x () (_ BitVec 8))", "(declare-fun y () (_ BitVec 8))",
        "(assert", "(let ((?x0 (= x y)))", "(let ((?x1 (not ?x0)))", "?x1)))",
        "(assert", "(let ((?x2 (f x)))", "(let ((?x3 (+ ?x2 1)))", "(let ((?x4 (f y)))", "(let ((?x5 (<= ?x3 ?x4)))", "?x5)))))",
        "(assert", "(let ((?x6 (bvadd x y)))", "(let ((?x7 (bvule ?x6 (_ bv5 8))))", "?x7)))",
        "(check-sat)"]


def test_different_queries_have_different_texts():
    x, y = z3.Ints("x y")
    assert len({smtlib.script(solver) for goal in (x <= y, y <= x, x - y == 0, y - x == 0)
                for solver in [z3.Solver()] if solver.add(goal) is None}) == 4


def test_names_that_the_standard_does_not_know_are_quoted():
    solver = z3.Solver()
    solver.add(z3.Int("x'") < z3.Int("x"), z3.Int("x'") > z3.Int("x"))
    assert second.ask("cvc5", smtlib.script(solver)) == second.AGREES


@pytest.mark.parametrize(("goal", "logic"), [
    (z3.Bool("b"), "QF_UF"), (z3.BitVec("x", 8) == 1, "QF_UFBV"), (z3.Int("n") == 1, "QF_UFLIA")])
def test_the_logic_is_no_greater_than_needed(goal, logic):
    solver = z3.Solver()
    solver.add(goal)
    assert f"(set-logic {logic})\n" in smtlib.script(solver)


def test_every_obligation_has_a_file_name_of_its_own():
    for profile in PROFILES:
        for task in tasks(obligations.obligations(profile)):
            names = [smtlib.file_name(o.part) for o in task]
            assert len(set(names)) == len(names)
            assert all(re.fullmatch(r"[\w.-]+", name) for name in names)


# --- files -------------------------------------------------------------------------------------------------------------------

@both_profiles
def test_the_files_of_proved_obligations_are_decided_by_the_other_solver(tmp_path, profile):
    rows_of(profile, "REF-1", Options(smt2=str(tmp_path)))
    written = texts(tmp_path)
    assert f"{profile}/take_ref/COUNT-2.0.smt2" in written
    assert {second.ask("cvc5", text) for text in written.values()} == {second.AGREES}


def test_a_file_says_what_it_is(tmp_path):
    rows_of("xen-2003", "REF-1", Options(smt2=str(tmp_path)))
    assert texts(tmp_path)["xen-2003/take_ref/COUNT-2.0.smt2"].startswith(
        "; xen-2003\n; take_ref keeps references_are_counted (COUNT-2)\n; on path 0\n; expected: unsat\n(set-logic QF_UFBVLIA)\n")


def test_the_files_are_the_same_whatever_else_is_proved(tmp_path):
    rows_of("xen-2003", "TYPE-1", Options(smt2=str(tmp_path / "one")), "FRAME-1")
    rows_of("xen-2003", "TYPE-1", Options(smt2=str(tmp_path / "all")))
    one, every = texts(tmp_path / "one"), texts(tmp_path / "all")
    assert one == {name: every[name] for name in one}
    assert len(one) >= 2


def test_the_rules_of_counting_are_written_too(tmp_path):
    rows = rows_of("xen-2003", "sums", Options(smt2=str(tmp_path), second="cvc5"))
    assert {row.second for row in rows.values()} == {second.AGREES}
    assert len(texts(tmp_path)) == 2 * len(rows)


def test_the_file_of_a_refuted_obligation_has_a_model(tmp_path, monkeypatch):
    rule = named("take_ref")
    text = inspect.getsource(rule.function)
    scope: dict[str, object] = {}
    exec(text[text.index("\ndef ") + 1:].replace("s.held[f] += 1", "s.held[f] += 2"), rule.function.__globals__, scope)
    monkeypatch.setitem(RULES, rule.id, replace(rule, function=scope["take_ref"]))
    row = rows_of("xen-2003", rule.id, Options(smt2=str(tmp_path), second="cvc5"), "COUNT-2")["COUNT-2"]
    assert (row.verdict, row.second) == (REFUTED, "")
    assert second.ask("cvc5", texts(tmp_path)["xen-2003/take_ref/COUNT-2.0.smt2"]) == second.CONTRADICTS


# --- opinions ----------------------------------------------------------------------------------------------------------------

@both_profiles
def test_the_second_solver_agrees_with_every_proof_that_needed_one(profile):
    rows = rows_of(profile, "REF-1", Options(second="cvc5"))
    assert {row.verdict for row in rows.values()} == {PROVED}
    assert {row.second for row in rows.values()} == {second.AGREES, second.NOTHING}
    assert rows["COUNT-2"].second == second.AGREES
    assert rows["guards"].second == second.NOTHING
    assert {row.second for row in rows_of(profile, "REF-1", Options()).values()} == {""}


def test_a_theorem_of_which_every_branch_is_decided_rests_on_what_was_left_out(tmp_path):
    row = rows_of("xen-2003", "ISO-3", Options(smt2=str(tmp_path), second="cvc5"))["ISO-3"]
    assert row.second == second.AGREES
    assert any("/left-out." in name for name in texts(tmp_path))


def test_a_solver_that_lies_is_contradicted(monkeypatch):
    monkeypatch.setattr(z3.Solver, "check", lambda self, *more: z3.unsat)
    rule = named("take_ref")
    monkeypatch.setitem(RULES, rule.id, replace(rule, function=forgetful))
    monkeypatch.setattr("proofs.discharge.Task.can_happen", lambda self, path, given: True)
    row = rows_of("xen-2003", rule.id, Options(second="cvc5"), "COUNT-2")["COUNT-2"]
    assert (row.verdict, row.second, row.detail) == (UNKNOWN, second.CONTRADICTS, "on path 0: cvc5 contradicts")


def forgetful(s, d, f):
    """A take_ref that counts one reference and holds none."""
    s.ref_count[f] += 1


def test_a_branch_that_was_left_out_wrongly_shakes_every_row(monkeypatch):
    monkeypatch.setattr(Tally, "check", lambda self, solver: z3.unsat)
    rows = rows_of("xen-2003", "ISO-3", Options(second="cvc5"))
    assert {(row.verdict, row.second) for row in rows.values()} == {(UNKNOWN, second.CONTRADICTS)}


def test_too_little_effort_gives_no_answer(tmp_path):
    rows_of("xen-4.17", "TYPE-1", Options(smt2=str(tmp_path)), "COUNT-1")
    assert {second.ask("cvc5", text, effort=10) for text in texts(tmp_path).values()} == {second.NO_ANSWER}


@pytest.mark.parametrize(("answers", "opinion"), [
    ([], second.NOTHING), ([second.AGREES], second.AGREES), ([second.AGREES, second.NO_ANSWER], second.NO_ANSWER),
    ([second.AGREES, second.NO_ANSWER, second.CONTRADICTS], second.CONTRADICTS)])
def test_the_opinion_of_a_row_is_the_worst_of_its_queries(answers, opinion):
    assert second.opinion(answers) == opinion


# --- asking for it -----------------------------------------------------------------------------------------------------------

def test_what_can_not_be_asked_is_said_in_a_line(monkeypatch):
    assert second.missing("cvc5") == ""
    assert "no integers" in second.missing("bitwuzla")
    assert "nonsense" in second.missing("nonsense")
    monkeypatch.setattr(second, "SOLVERS", ("cvc5", "no-such-solver"))
    assert "not installed" in second.missing("no-such-solver")


@pytest.mark.parametrize("name", ["nonsense", "bitwuzla"])
def test_the_command_ends_with_2_without_the_solver(name):
    done = CliRunner().invoke(app, ["prove", "--only", "take_ref", "--second", name])
    assert done.exit_code == 2
    assert second.missing(name) in done.output.replace("\n", " ")


class Silent:
    """Nobody watches."""

    def begun(self, task):
        """A task is running."""

    def done(self, task, rows):
        """A task is done."""


def test_a_row_without_a_second_opinion_is_not_remembered_as_one_with_it(tmp_path):
    wanted = [o for o in keeping("xen-2003", named("take_ref")) if o.part == "COUNT-2"]
    asked = Options(second="cvc5")
    plain, opined, again = (runner.run(wanted, 1, Silent(), tmp_path, options).rows[0] for options in (Options(), asked, asked))
    assert (plain.cached, plain.second) == (False, "")
    assert (opined.cached, opined.second) == (False, second.AGREES)
    assert (again.cached, again.second) == (True, second.AGREES)


def test_files_are_written_of_what_is_remembered(tmp_path):
    wanted = [o for o in keeping("xen-2003", named("take_ref")) if o.part == "COUNT-2"]
    runner.run(wanted, 1, Silent(), tmp_path / "cache")
    runner.run(wanted, 1, Silent(), tmp_path / "cache", Options(smt2=str(tmp_path / "smt2")))
    assert list(texts(tmp_path / "smt2")) == ["xen-2003/take_ref/COUNT-2.0.smt2"]
