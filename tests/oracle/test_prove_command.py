"""`xenspec prove` from the outside: its documents, its exit status, and what it leaves of a refutation."""
import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner

from oracle.cli import app
from oracle.prove import ledger_report
from oracle.report import plain
from proofs import runner, second
from proofs.discharge import Options
from proofs.ledger import LEAVES, PROVED, REFUTED, UNKNOWN, Ledger, Row
from proofs.obligations import select
from tests.oracle import samples


def row(verdict: str, name: str = "write_entry keeps checked_entry_is_legal (SLOT-1)", **more: object) -> Row:
    """A row of the ledger."""
    return Row("xen-2003", name, ("WRITE-1", "SLOT-1"), verdict, 1, 1, 0.1, 0.1, 100, "on path 3", **more)


BROKEN = row(REFUTED, counterexample=samples.self_mapping_table().document())


@pytest.fixture
def proves(monkeypatch, tmp_path):
    """Run the command in an empty folder, with a prover that finds these rows; `asked` is how it was asked."""
    monkeypatch.chdir(tmp_path)
    asked = []

    def run(*args: str, rows: tuple[Row, ...]):
        def found(wanted, jobs, watcher, cache, options):
            asked.append((cache, options))
            return Ledger(rows, 1.0)
        monkeypatch.setattr(runner, "run", found)
        return CliRunner().invoke(app, ["prove", *args])
    run.asked = asked
    return run


@pytest.mark.parametrize(("verdicts", "status"), [((PROVED,), 0), ((PROVED, REFUTED), 1), ((UNKNOWN,), 1)])
def test_the_status_says_whether_all_is_proved(proves, verdicts, status):
    assert proves(rows=tuple(map(row, verdicts))).exit_code == status
    assert proves.asked == [(runner.CACHE, Options())]


def test_the_options_are_passed_on(proves, monkeypatch):
    monkeypatch.setattr(second, "missing", lambda name: "")
    assert proves("--no-cache", "--second", "cvc5", "--smt2", "queries", rows=(row(PROVED),)).exit_code == 0
    assert proves.asked == [(None, Options(smt2="queries", second="cvc5"))]


def test_a_solver_that_can_not_be_asked_ends_with_2(proves, monkeypatch):
    monkeypatch.setattr(second, "missing", lambda name: f"{name} is not here")
    done = proves("--second", "cvc5", rows=())
    assert (done.exit_code, proves.asked) == (2, [])
    assert "cvc5 is not here" in done.output


def test_a_counterexample_is_printed_written_and_drawn(proves):
    done = proves("--out", "found", rows=(row(PROVED), BROKEN))
    stem = Path("found/refuted-xen-2003-write-entry-keeps-checked-entry-is-legal-slot-1")
    assert "write_entry(d=dom1, g=2, i=8" in done.output
    assert f"{stem}.svg" in done.output.replace("\n", "")
    assert json.loads(stem.with_suffix(".json").read_text()) == json.loads(json.dumps(BROKEN.counterexample))
    assert ElementTree.parse(stem.with_suffix(".svg")).getroot().tag.endswith("svg")


def test_no_folder_is_made_for_nothing(proves):
    proves(rows=(row(PROVED), row(REFUTED)))
    assert not Path("xenspec-findings").exists()


def test_all_documents_at_once(proves):
    proves("--json", "l.json", "--junit", "l.xml", "--sarif", "l.sarif", rows=(row(PROVED), BROKEN, row(UNKNOWN)))
    summary = json.loads(Path("l.json").read_text())["summary"]
    assert {name: summary[name] for name in ("obligations", "proved", "refuted", "unknown", "seconds")} == {
        "obligations": 3, "proved": 1, "refuted": 1, "unknown": 1, "seconds": 1.0}
    assert len(json.loads(Path("l.sarif").read_text())["runs"][0]["results"]) == 2
    failure = ElementTree.parse("l.xml").getroot().find(".//failure")
    assert "write_entry(d=dom1, g=2, i=8" in failure.text


def test_a_document_on_standard_output_is_alone_there(proves):
    for option in ("--json", "--sarif"):
        assert json.loads(proves(option, "-", rows=(row(PROVED),)).stdout)


@pytest.mark.parametrize("args", [("--sarif", "x", "--json", "x"), ("--sarif", "/no/such/x"), ("--smt2", "/dev/null/x"),
                                  ("--out", "/dev/null/x")])
def test_what_can_not_be_written_is_known_before_the_work(proves, args):
    assert proves(*args, rows=()).exit_code == 2
    assert proves.asked == []


def test_the_report_counts_second_opinions_and_contracts_apart():
    leaf = Row(LEAVES, "a sentence (leaf f)", ("TLB-7",), PROVED, 1, 1, 0.1, 0.1, 100)
    shown = plain(ledger_report(Ledger((row(PROVED, second=second.AGREES), row(PROVED, second=second.NO_ANSWER), leaf), 1.0), {}))
    assert "second solver: 1 agrees, 1 no answer" in shown
    assert "contracts of leaf functions" in shown
    assert "TLB-7" not in shown


def test_the_contracts_of_leaves_are_proved_by_the_command(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["prove", "--only", "leaf canonical", "--json", "l.json", "--junit", "l.xml"])
    assert done.exit_code == 0, done.output
    rows = json.loads(Path("l.json").read_text())["rows"]
    assert [r["name"] for r in rows] == [o.name for o in select(None, "leaf canonical")]
    assert all(r["profile"] == LEAVES and r["detail"].startswith("by the engine") for r in rows)
    assert ElementTree.parse("l.xml").getroot()[0].get("name") == "xenspec prove leaves"
