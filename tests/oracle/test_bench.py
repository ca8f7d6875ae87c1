"""The benchmark measures what it says: its actions do what they are there for, and its rows name what they are held against."""
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from oracle import bench, bench_real
from oracle.cli import app
from oracle.targets import HarnessError, ModelTarget, Target, default_setup, entry_costs
from spec.vocabulary import Hypercall


def test_the_mixes_do_what_they_are_there_for() -> None:
    target = ModelTarget()
    setup = default_setup("xen-2003", target)
    for mix in bench.mixes(setup):
        target.reset(setup)
        bench.check_outcomes(mix, target, mix.before)
        found = target.run(mix.timed[:70])
        refused = [o for a, o in zip(mix.timed, found, strict=False) if isinstance(a, Hypercall) and o.value]
        assert all(o.vector < 0 for o in found)
        assert len(refused) == {"refused": 70, "hypercall mix": 22}.get(mix.name, 0)


def test_an_action_that_does_not_do_its_work_is_noticed() -> None:
    target = ModelTarget()
    setup = default_setup("xen-2003", target)
    target.reset(setup)
    refused = next(m for m in bench.mixes(setup) if m.name == "refused")
    target.run(refused.before)
    flip = bench.Mix("flip", "hypercalls/s", refused.before, refused.timed, 2)
    with pytest.raises(HarnessError, match=r"flip: .* ends with -22"):
        bench.check_outcomes(flip, target, flip.timed[:2])


def test_the_table_of_the_model_against_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "ROUNDS", 1)
    monkeypatch.setattr(bench, "PROGRAMS", 1)
    monkeypatch.setattr(bench, "BIG", (3, 1024))
    told: list[bench.Row] = []
    rows = bench.run_bench(target="model", on_row=told.append)
    assert told == rows
    names = {row.name for row in rows}
    assert len(names) == len(rows)
    assert all(row.value > 0 and (row.ratio_to in names or row.ratio is None) for row in rows)
    for row in bench.bench_document(rows)["summary"]["rows"]:
        assert set(row) == {"name", "value", "unit", "ratio", "ratio_to"}


def test_without_the_real_xen_it_says_so_loudly(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def missing(_: str) -> Target:
        raise HarnessError("QEMU is missing: `make real-xen` gets it")
    monkeypatch.setattr(bench, "run_bench", lambda *_: [bench.Row("a", 1.0, "b")])
    monkeypatch.setattr(bench_real, "open_target", missing)
    out = tmp_path / "bench.json"
    result = CliRunner().invoke(app, ["bench", "--json", str(out)])
    assert result.exit_code == 0
    assert "the real Xen is not measured: QEMU is missing" in result.output
    summary = json.loads(out.read_text())["summary"]
    assert "make real-xen" in summary["missing"]
    assert len(summary["rows"]) == 1
    assert CliRunner().invoke(app, ["bench", "--target", "xen"]).exit_code == 2


def test_ways_into_a_kernel_are_held_against_the_fastest() -> None:
    """The application's INT, and IRET, are all that a fast system call needs; through Xen there is more to do."""
    costs = entry_costs()
    assert list(costs) == ["fast system call", "system call through Xen", "bounced page fault"]
    assert [c.instructions for c in costs.values()] == [2, 1, 3]
    stubs = [c.xens for c in costs.values()]
    assert stubs[0] == 0 < 30 < stubs[1] < stubs[2]
    rows = bench.entry_rows(costs)
    assert [row.name for row in rows[:2]] == ["fast system call: guest and Xen's stubs", "fast system call: time"]
    assert {row.ratio_to for row in rows} == {"fast system call"}
    assert rows[0].ratio == rows[1].ratio == 1
