"""`xenspec mutants`: what is as it should be, what is reported, and what is written."""
import json
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from oracle import mutants
from oracle.cli import app
from oracle.mutants import chosen, is_found, mutants_document, summary, write_counterexamples
from proofs.idle import EXPLAINED
from proofs.ledger import REFUTED, UNKNOWN
from proofs.mutants import IDLE, MutantRow
from proofs.planted import all_plants
from tests.oracle import samples

NAMES = [plant.name for plant in all_plants()]
GOOD = MutantRow("pin-keeps-the-token", "", REFUTED, "xen-2003", "an obligation", confirmed=True,
                 counterexample=samples.self_mapping_table().document())
EXCUSED = MutantRow(next(iter(EXPLAINED)), "", IDLE)
BAD = {
    "not confirmed": replace(GOOD, confirmed=False),
    "without a counterexample": replace(GOOD, confirmed=False, counterexample=None),
    "undecided": MutantRow("pin-keeps-the-token", "", UNKNOWN),
    "idle for no known reason": MutantRow("pin-keeps-the-token", "", IDLE),
    "said to be idle": replace(GOOD, name=EXCUSED.name)}


def test_a_confirmed_refutation_and_an_explained_idle_bug_are_as_they_should_be():
    assert not is_found(GOOD)
    assert not is_found(EXCUSED)


@pytest.mark.parametrize("row", BAD.values(), ids=BAD)
def test_all_else_is_found(row):
    assert is_found(row)
    assert mutants.trouble(row)


def test_the_summary_counts_each_verdict():
    assert summary([GOOD, EXCUSED, *BAD.values()]) == {
        "planted": 7, "refuted": 4, "confirmed": 2, "idle": 2, "explained": 1, "unknown": 1}


def test_a_sample_is_fixed_and_spread_over_the_list():
    some = chosen(all_plants(), "", 10)
    assert len(some) == 10
    assert some == chosen(all_plants(), "", 10)
    assert NAMES.index(some[-1].name) > len(NAMES) * 0.8
    assert chosen(all_plants(), "", 10_000) == list(all_plants())


def test_bugs_are_chosen_by_a_part_of_their_name_or_a_pattern():
    assert {plant.name for plant in chosen(all_plants(), "drop-PIN-1.", None)} == {f"drop-PIN-1.{n}" for n in range(1, 6)}
    assert [plant.name for plant in chosen(all_plants(), "pin-keeps*", None)] == ["pin-keeps-the-token"]


def test_only_planted_bugs_are_explained():
    assert set(EXPLAINED) <= set(NAMES)


def test_the_document_holds_the_figures_and_the_rows_in_order():
    document = mutants_document([GOOD, EXCUSED], 1.25)
    assert document["summary"] == {
        "planted": 2, "refuted": 1, "confirmed": 1, "idle": 1, "explained": 1, "unknown": 0, "seconds": 1.2}
    assert [row["name"] for row in document["rows"]] == [GOOD.name, EXCUSED.name]
    assert document["rows"][1]["explained"] == EXPLAINED[EXCUSED.name]


def test_counterexamples_are_written_as_pictures_and_json(tmp_path):
    files = write_counterexamples([GOOD, EXCUSED], tmp_path / "made")
    assert [file.name for file in files] == ["pin-keeps-the-token.svg", "pin-keeps-the-token.json"]
    assert files[0].read_text(encoding="utf-8").startswith("<?xml")
    assert json.loads(files[1].read_text(encoding="utf-8")) == json.loads(json.dumps(GOOD.counterexample))


def test_no_folder_is_made_for_nothing(tmp_path):
    assert write_counterexamples([EXCUSED], tmp_path / "made") == []
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(("rows", "status"), [([GOOD, EXCUSED], 0), ([GOOD, BAD["not confirmed"]], 1)])
def test_the_command_ends_with_what_was_found(rows, status, monkeypatch, tmp_path):
    monkeypatch.setattr(mutants, "run", lambda plants, jobs, watcher: rows)
    done = CliRunner().invoke(app, ["mutants", "--json", str(tmp_path / "m.json"), "--out", str(tmp_path / "out")])
    assert done.exit_code == status
    assert "2 planted" in done.output
    assert json.loads((tmp_path / "m.json").read_text(encoding="utf-8"))["summary"]["planted"] == 2
    assert (tmp_path / "out" / "pin-keeps-the-token.svg").exists()


def test_no_such_bug_is_a_usage_error():
    assert CliRunner().invoke(app, ["mutants", "--only", "no such bug"]).exit_code == 2
