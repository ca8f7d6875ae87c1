"""The descriptor table and random single instructions: equal in every cell; and a wrong expectation is found."""
import json
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from oracle.bare import expected
from oracle.bare_difference import DECLARED, difference
from oracle.cli import app
from oracle.descriptor_table import COLUMNS, KINDS, compare, places
from oracle.report import plain
from oracle.table_report import sample_report, table_document, table_report
from oracle.targets import open_processor
from oracle.trials import FAMILIES, sample, trials
from spec.abi import GP, NP
from spec.vocabulary import Finish

STACKS = next(column for column in COLUMNS if column.name == "SS")
RETURNS = next(column for column in COLUMNS if column.name == "IRET, SS")


@pytest.fixture
def processor():
    return open_processor()


@pytest.fixture(scope="module")
def whole():
    return compare(open_processor().perform)


def undeclared(differences):
    return [(d.place, d.fields) for d in differences if not d.declared]


def test_every_cell_is_equal(whole):
    assert undeclared(whole.differences) == []
    assert len(whole.ends) == len(set(places())) == sum(256 * len(c.rings) * len(c.rpls) for c in COLUMNS) == 71_680


def test_the_declared_cells_are_those_of_one_rule(whole):
    assert {d.declared for d in whole.differences} == {"SS of IRET not present"}
    assert len(whole.differences) == 24
    assert all("IRET" in d.place and "not present" in d.place for d in whole.differences)


def test_the_table_is_not_trivial(whole):
    ends = {}
    for place, end in whole.ends.items():
        ends.setdefault(place.column.name, set()).add(end)
    for name, found in ends.items():
        assert any(end.startswith("#") for end in found), name
        assert any(end == "ok" or end.startswith("→") for end in found), name
    assert "task" in ends["JMP"]


def test_the_table_says_what_the_manual_says(whole):
    """A few cells that everybody knows."""
    def end(kind, dpl, column, cpl, rpl, present=True):
        return next(e for p, e in whole.ends.items() if (p.kind, p.dpl, p.column.name, p.cpl, p.rpl, p.present) == (
            KINDS.index(kind), dpl, column, cpl, rpl, present))
    assert end("writable data", 1, "DS", 1, 1) == "ok"
    assert end("writable data", 0, "DS", 1, 1) == "#GP"
    assert end("readable conforming", 0, "DS", 3, 3) == "ok"
    assert end("writable data", 1, "SS", 1, 1, present=False) == "#SS"
    assert end("code", 0, "CALL gate", 3, 3) == "→0"
    assert end("interrupt gate", 0, "IDT, INT", 1, 0) == "#GP"
    assert end("interrupt gate", 0, "IDT, #UD", 1, 0) == "→0"


@pytest.mark.parametrize(("field", "value"), [("error", 4), ("vector", NP), ("eip", 0), ("descriptors", {})])
def test_a_wrong_expectation_is_found(processor, field, value):
    """Planted where ring 1 loads a descriptor of DPL 2 into SS."""
    def planted(trial):
        says = expected(trial)
        if trial.cpl == 1 and trial.descriptors[0x68] >> 45 & 3 == 2 and says.vector == GP:
            return replace(says, **{field: value})
        return says
    found = compare(processor.perform, planted, [STACKS])
    assert len(found.differences) == 32 * 2 * 4         # kinds, present or not, RPLs
    assert all(d.fields == (field,) and not d.declared for d in found.differences)
    assert "CPL 1" in found.differences[0].place
    shown = plain(table_report(found))
    assert f"{len(found.differences)} differ" in shown
    assert field in shown


def test_an_expectation_that_is_none_is_found(processor):
    found = compare(processor.perform, lambda trial: "task switch", [STACKS])
    assert all(d.fields == ("end",) for d in found.differences)
    assert len(found.differences) == len(found.ends)


def test_a_declared_difference_hides_no_other(processor):
    """The same cells with another error code are found."""
    def planted(trial):
        says = expected(trial)
        return replace(says, error=0) if isinstance(says, Finish) and says.vector == 12 else says
    found = compare(processor.perform, planted, [RETURNS])
    assert len(undeclared(found.differences)) == len(found.differences) == 24


@pytest.mark.parametrize("seed", [0, 1])
def test_random_trials_are_equal(processor, seed):
    found = sample(processor.perform, seed, 16_000)
    assert undeclared(found.differences) == []
    assert found.trials == 16_000
    for family, ends in found.ends.items():
        assert len(ends) > 1, f"{family}: every trial ends alike"


@pytest.mark.long
def test_many_random_trials_are_equal(processor):
    found = sample(processor.perform, 4, 320_000)
    assert undeclared(found.differences) == []
    assert {d.declared for d in found.differences} <= set(DECLARED)


def test_random_trials_are_the_same_for_a_seed():
    for family in FAMILIES:
        assert list(trials(7, 20, family)) == list(trials(7, 20, family)) != list(trials(8, 20, family))


def test_no_difference_is_no_difference(processor):
    for family in FAMILIES:
        for trial in trials(3, 3, family):
            does = processor.perform(trial)
            assert difference("", trial, does, does) == []


def test_a_sample_with_a_wrong_expectation(processor):
    def planted(trial):
        says = expected(trial)
        return says if isinstance(says, str) else replace(says, eflags=says.eflags ^ 0x200)
    found = sample(processor.perform, 0, 150, planted)
    assert undeclared(found.differences)
    assert "differ" in plain(sample_report(found))


def test_the_report_and_the_document(whole):
    shown = plain(table_report(whole))
    assert "all others" in shown
    assert "the processor does what the specification says" in shown
    document = json.loads(json.dumps(table_document(whole)))
    assert document["summary"]["trials"] == 71_680
    assert (document["summary"]["differences"], document["summary"]["declared"]) == (0, 24)
    assert len(document["cells"]) == 32 * 2 * 4 * len(COLUMNS)
    assert sum(len(keys) for cell in document["cells"] for keys in cell["ends"].values()) == 71_680


def test_the_command(tmp_path):
    result = CliRunner().invoke(app, ["table", "descriptors", "--random", "160", "--json", str(tmp_path / "t.json"),
                                      "--html", str(tmp_path / "t.html")])
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "t.json").read_text())["random"]["summary"]["trials"] == 160
    assert "<html>" in (tmp_path / "t.html").read_text()
    assert "stacks of other rings" in result.output


def test_the_command_without_a_place_for_its_document(tmp_path):
    result = CliRunner().invoke(app, ["table", "descriptors", "--json", str(tmp_path / "no" / "t.json")])
    assert result.exit_code == 2
    assert "No such directory" in result.output
