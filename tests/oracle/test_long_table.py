"""The descriptor table and random single instructions in long mode: equal in every cell; and a wrong expectation is found."""
import json
from collections import Counter
from dataclasses import replace
from itertools import islice

import pytest
from typer.testing import CliRunner

from oracle.bare64 import expected
from oracle.cli import app
from oracle.long_difference import LONG_DECLARED, long_difference
from oracle.long_table import LONG_COLUMNS, LONG_KINDS, LONG_SHEET, long_compare, long_places
from oracle.long_trials import LONG_FAMILIES, long_sample, long_trials, packed
from oracle.report import plain
from oracle.table_report import sample_report, table_document, table_report
from oracle.targets import open_long_processor
from spec.abi import GP, NP
from spec.vocabulary import LongBare, LongTrial

PLACES = 199_680
LATTICE = 37                                # every so many places are tried by default
RINGS = range(4)
HOLE = 1 << 47


@pytest.fixture
def processor():
    return open_long_processor()


@pytest.fixture(scope="module")
def sampled():
    return long_compare(open_long_processor().perform, chosen=islice(long_places(), None, None, LATTICE))


def undeclared(differences):
    return [(d.place, d.fields) for d in differences if not d.declared]


def column(name):
    return next(column for column in LONG_COLUMNS if column.name == name)


def test_cells_are_equal(sampled):
    assert undeclared(sampled.differences) == []
    assert len(sampled.ends) == -(-PLACES // LATTICE)


@pytest.mark.long
def test_every_cell_is_equal(processor):
    whole = long_compare(processor.perform)
    assert undeclared(whole.differences) == []
    assert len(whole.ends) == len(set(long_places())) == PLACES
    assert Counter(d.declared for d in whole.differences) == {"SS of IRET not present": 104, "narrow IRET in 64-bit mode": 112}
    ends = {}
    for place, end in whole.ends.items():
        ends.setdefault(place.column.name, set()).add(end)
    for name, found in ends.items():
        assert any(end.startswith("#") for end in found), name
        assert any(end == "ok" or end.startswith("→") for end in found), name


def test_the_table_says_what_the_manual_says(processor):
    """A few cells that everybody knows."""
    def end(kind, dpl, name, cpl, rpl, to=None, present=True):
        there = LONG_KINDS.index(kind), dpl, cpl, cpl if to is None else to, rpl, present
        place = next(p for p in long_places([column(name)]) if (p.kind, p.dpl, p.cpl, p.to, p.rpl, p.present) == there)
        return LONG_SHEET.end(processor.perform(LONG_SHEET.trial(place)), cpl)
    assert end("64-bit code", 0, "CALL gate", 3, 0) == "→0"
    assert end("32-bit code", 0, "CALL gate", 3, 0) == "#GP"
    assert end("64- and 32-bit code", 3, "JMP", 3, 3) == "#GP"
    assert end("TSS", 0, "JMP", 0, 0) == "#GP"
    assert end("call gate", 3, "CALL", 3, 3) == "→0"
    assert end("interrupt gate", 0, "IDT, INT", 3, 0) == "#GP"
    assert end("interrupt gate", 0, "IDT, #UD", 3, 0) == "→0"
    assert end("writable data", 3, "IRETQ, SS", 0, 3, to=3) == "→3"
    assert end("writable data", 1, "DS", 1, 1, present=False) == "#NP"


@pytest.mark.parametrize("code", ["48cf", "48cb"])
def test_null_stacks_of_returns(processor, code):
    """Each ring to itself and outwards, to each mode, with each null selector: only 64-bit code of rings 0-2 goes on with one."""
    ends = Counter()
    for cpl in RINGS:
        for to in range(cpl, 4):
            for target in (LongBare.CODE, LongBare.COMPATIBLE):
                for null in RINGS:
                    frame = (LongBare.LANDING, target[to], *(2,) * (code == "48cf"), 0x9000, null)
                    trial = LongTrial(bytes.fromhex(code), cpl, memory=packed(LongBare.STACK[cpl], frame, 8))
                    says, does = expected(trial), processor.perform(trial)
                    found = long_difference("", trial, says, does)
                    assert [d.fields for d in found if d.declared != "RPL of a null SS"] == []
                    ends["differs" if found else "ok" if says.vector < 0 else says.vector] += 1
    same = 0 if code == "48cf" else 8 * 4           # RET to the same ring does not look for a stack
    assert ends["ok"] == 6 + (same - 3 if same else 0)
    assert ends["differs"] == 18 - (9 if same else 0)


@pytest.mark.parametrize("compatible", [False, True])
def test_null_stacks_of_loads(processor, compatible):
    ends = set()
    for cpl in RINGS:
        for null in RINGS:
            trial = LongTrial(bytes.fromhex("8ed0"), cpl, compatible, registers={"rax": null})
            assert expected(trial) == processor.perform(trial)
            if expected(trial).vector < 0:
                ends.add((cpl, null))
    assert ends == (set() if compatible else {(0, 0), (1, 1), (2, 2)})


@pytest.mark.parametrize(("field", "value"), [("error", 4), ("vector", NP), ("rip", 0), ("descriptors", {})])
def test_a_wrong_expectation_is_found(processor, field, value):
    """Planted where ring 1 loads a descriptor of DPL 2 into SS."""
    def planted(trial):
        says = expected(trial)
        if trial.cpl == 1 and trial.descriptors[LongBare.FREE] >> 45 & 3 == 2 and says.vector == GP:
            return replace(says, **{field: value})
        return says
    found = long_compare(processor.perform, planted, long_places([column("SS")]))
    assert len(found.differences) == len(LONG_KINDS) * 2 * 4        # present or not, RPLs
    assert all(d.fields == (field,) and not d.declared for d in found.differences)
    shown = plain(table_report(found))
    assert f"{len(found.differences)} differ" in shown
    assert field in shown


@pytest.mark.parametrize("seed", [0, 1])
def test_random_trials_are_equal(processor, seed):
    found = long_sample(processor.perform, seed, 4_500)
    assert undeclared(found.differences) == []
    assert found.trials == 4_500
    for family, ends in found.ends.items():
        assert len(ends) > 1, f"{family}: every trial ends alike"


@pytest.mark.long
def test_many_random_trials_are_equal(processor):
    found = long_sample(processor.perform, 4, 300_000)
    assert undeclared(found.differences) == []
    assert {d.declared for d in found.differences} == set(LONG_DECLARED), "a difference that never shows is none"


def test_random_trials_are_the_same_for_a_seed():
    for family in LONG_FAMILIES:
        assert list(long_trials(7, 20, family)) == list(long_trials(7, 20, family)) != list(long_trials(8, 20, family))


@pytest.mark.parametrize("family", LONG_FAMILIES)
def test_a_declared_difference_hides_no_other(processor, family):
    """Whatever a trial does, other flags than it has are a difference."""
    for trial in long_trials(3, 30, family):
        does = processor.perform(trial)
        assert long_difference("", trial, does, does) == []
        found = long_difference("", trial, replace(does, rflags=does.rflags ^ 0x80000000), does)
        assert [d.fields for d in found] == [("rflags",)]
        assert undeclared(found) != []


def test_a_sample_with_a_wrong_expectation(processor):
    found = long_sample(processor.perform, 0, 150, lambda trial: replace(expected(trial), rflags=1))
    assert undeclared(found.differences)
    assert "differ" in plain(sample_report(found))


def test_the_report_and_the_document(sampled, processor):
    shown = plain(table_report(long_compare(processor.perform, chosen=long_places([column("JMP 64"), column("DS")]))))
    assert "64-bit code" in shown
    assert "the processor does what the specification says" in shown
    document = json.loads(json.dumps(table_document(sampled)))
    assert document["summary"]["trials"] == len(sampled.ends)
    assert sum(len(keys) for cell in document["cells"] for keys in cell["ends"].values()) == len(sampled.ends)


def test_words_of_a_frame():
    assert packed(0x8000, (1, 2, 3), 4) == {0x8000: 1 | 2 << 32, 0x8008: 3}
    assert packed(0x8002, (0xFFFF_FFFF, 2), 2) == {0x8000: 0xFFFF << 16 | 2 << 32}
    assert packed(-8, (1, 2), 8) == {0xFFF8: 1, 0: 2}


@pytest.mark.long
def test_the_command(tmp_path):
    result = CliRunner().invoke(app, ["table", "descriptors", "--mode", "64", "--random", "150",
                                      "--json", str(tmp_path / "t.json"), "--html", str(tmp_path / "t.html")])
    assert result.exit_code == 0, result.output
    document = json.loads((tmp_path / "t.json").read_text())
    assert document["mode"] == 64
    assert (document["table"]["summary"]["trials"], document["random"]["summary"]["trials"]) == (PLACES, 150)
    assert "<html>" in (tmp_path / "t.html").read_text()
    assert "stacks of returns" in result.output


def test_the_command_knows_two_modes():
    result = CliRunner().invoke(app, ["table", "descriptors", "--mode", "16"])
    assert result.exit_code == 2
    assert "64" in CliRunner().invoke(app, ["table", "descriptors", "--help"]).output
