"""What people and machines are told of a campaign: documents, JUnit, tables, and reproducers that run."""
import json
import subprocess
import sys
from collections import Counter
from io import StringIO
from pathlib import Path
from xml.etree import ElementTree

import pytest
from rich.console import Console, RenderableType

from oracle import report
from oracle.campaign import CampaignResult
from oracle.judge import Direction, Verdict
from oracle.program import load
from oracle.replay import replay
from oracle.reproducer import python_action, write_reproducers
from oracle.runner import CampaignSpec, Divergence, HarnessFailure, ModelFinding
from oracle.targets import ModelTarget, default_setup
from refmodel import Violation, boot
from spec.kernel import RULES
from spec.vocabulary import Action, Execute, Hypercall, Load, Outcome, Store

ROOT = Path(report.__file__).parent.parent
SETUP = default_setup("xen-2003", ModelTarget(), pages=16, frames=256)
RULE = next(r for r in RULES.values() if len(r.conjuncts) > 1)
ACTIONS: tuple[Action, ...] = (
    Store(0, 0xC0000000, 7), Hypercall(1, 19, (0xC0005, 0x12063, 0), ((0xC0002000, (1, 0x80000000)),)), Load(1, 0xC0005000, True))
VERDICT = Verdict(Direction.TOO_PERMISSIVE, 1, RULE.conjuncts[1].id, "hypercall 19", "the model gives -22, the target 0",
                  Outcome(-22), Outcome(0))


def result(**more: object) -> CampaignResult:
    """A campaign that found one divergence, unless `more` says otherwise."""
    spec = CampaignSpec(seed=5, actions=300, target="model")
    found = CampaignResult(spec, SETUP, 2, 300, [Divergence(SETUP, 1, 150, ACTIONS, VERDICT, 40)], 1,
                           looseness=Counter({"stale": 3, "accessed": 1}), coverage={RULE.conjuncts[0].id: (3, 0)}, seconds=1.5,
                           kinds=Counter({Load: 100, Hypercall: 200}))
    for name, value in more.items():
        setattr(found, name, value)
    return found


CLEAN = {"divergences": [], "divergent_programs": 0}


def shown(what: RenderableType) -> str:
    """As it is printed where there is no terminal."""
    out = StringIO()
    Console(file=out, width=130).print(what)
    return out.getvalue()


def test_a_campaign_tells_of_its_own_profile_only() -> None:
    rules = {row["rule"] for row in report.campaign_document(result())["coverage"]}
    assert "MMU-2" in rules
    assert "MMU-11" not in rules            # a check of 4.17's hypercalls


# --- documents ---------------------------------------------------------------------------------------------------------------

def test_the_summary_has_what_scripts_rely_on() -> None:
    doc = json.loads(json.dumps(report.campaign_document(result())))
    assert doc["summary"] == {"programs": 2, "actions": 300, "raw": 0, "divergences": 1, "harness_failures": 0,
                              "model_findings": 0, "looseness": {"accessed": 1, "stale": 3},
                              "kinds": {"hypercall": 200, "load": 100}, "declared": {}, "seconds": 1.5, "seed": 5}
    assert doc["divergences"][0]["verdict"]["sentence"] == RULE.conjuncts[1].text
    assert doc["divergences"][0]["verdict"]["model"] == {"value": -22}


def test_the_document_depends_on_the_work_and_not_on_who_did_it() -> None:
    one = report.campaign_document(result(spec=CampaignSpec(seed=5, actions=300, workers=1)))
    two = report.campaign_document(result(spec=CampaignSpec(seed=5, actions=300, workers=2), seconds=9.0))
    one["summary"]["seconds"] = two["summary"]["seconds"] = 0
    assert one == two


def test_an_unwritable_document_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="missing"):
        report.emit({}, str(tmp_path / "missing" / "r.json"))


# --- JUnit -------------------------------------------------------------------------------------------------------------------

def test_junit_of_a_clean_campaign_is_one_test() -> None:
    suite = ElementTree.fromstring(report.junit(result(**CLEAN)))[0]
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("1", "0", "0")
    assert len(suite.findall("testcase")) == 1


def test_junit_tells_failures_from_errors() -> None:
    text = report.junit(result(harness_failures=[HarnessFailure(SETUP, 0, "died of \x1b[31msignal 6 <&>", ACTIONS)],
                               model_findings=[ModelFinding(0, RULE.id, "not at frame 3")]))
    suite = ElementTree.fromstring(text)[0]
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("3", "2", "1")
    assert [p.get("type") for p in suite.iter("failure")] == ["too permissive", "model in doubt"]
    error = suite.find(".//error")
    assert error is not None
    assert "signal 6 <&>" in error.get("message", "")


# --- tables ------------------------------------------------------------------------------------------------------------------

def test_the_verdict_names_rule_program_and_how_to_repeat_it() -> None:
    text = shown(report.campaign_report(result(), {1: [Path("d.jsonl"), Path("d.py")]}, "xenspec fuzz --seed 5"))
    for part in (RULE.conjuncts[1].id, RULE.conjuncts[1].text, "too permissive", "shrunk from 150 actions to 3", "d.jsonl d.py",
                 "stale 3", "1 divergences", "something was found", "again: xenspec fuzz --seed 5"):
        assert part in text
    assert "nothing found" in shown(report.campaign_report(result(**CLEAN), {}, ""))


def test_square_brackets_are_printed_as_they_are() -> None:
    assert "[/bold] [red]" in shown(report.audit_report([Violation(RULE.id, (3,), "x [/bold] [red]")]))
    assert "[/bold]" in shown(report.campaign_report(result(harness_failures=[HarnessFailure(SETUP, 1, "[/bold]", ())]), {}, ""))


def test_an_audit_lists_its_violations() -> None:
    violations = [Violation(RULE.id, (3,), "not at frame 0x3")]
    assert report.audit_document(violations) == {
        "summary": {"violations": 1}, "violations": [{"rule": RULE.id, "key": [3], "text": "not at frame 0x3"}]}
    assert "every invariant holds" in shown(report.audit_report([]))


def test_without_a_terminal_progress_is_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    out, now = StringIO(), [100.0]
    monkeypatch.setattr(report.time, "monotonic", lambda: now[0])
    with report.CampaignDisplay(Console(file=out, width=130), CampaignSpec(seconds=60.0)) as display:
        for _ in range(100):
            now[0] += 0.25
            display(result(seconds=now[0] - 100))
    assert len(out.getvalue().splitlines()) == 2
    assert "300 actions" in out.getvalue()


def test_on_a_terminal_progress_is_live() -> None:
    out = StringIO()
    with report.CampaignDisplay(Console(file=out, width=130, force_terminal=True), CampaignSpec(actions=600)) as display:
        display(result())
        display.live.refresh()      # type: ignore[union-attr]
    assert "2 programs, 300 actions" in out.getvalue()


# --- replay ------------------------------------------------------------------------------------------------------------------

def test_a_replay_shows_outcomes_rules_and_changes() -> None:
    actions = [Store(1, 0xC0000000, 7), Hypercall(1, 19, (0xC0005, 0x10063, 0))]
    found = replay(boot(SETUP), actions, [Outcome(), Outcome()])
    assert found.verdict.direction is Direction.TOO_PERMISSIVE
    text = shown(report.replay_report(found, explain=True))
    assert "refused by" in text
    assert "word[frame" in text
    assert "0x0 → 0x7" in text
    assert "→" not in shown(report.replay_report(found, explain=False))
    doc = json.loads(json.dumps(report.replay_document(found)))
    assert doc["summary"]["divergences"] == 1
    assert doc["steps"][1]["refused"] == [found.verdict.rule]


# --- reproducers -------------------------------------------------------------------------------------------------------------

def test_reproducers_are_a_program_and_a_script_that_runs(tmp_path: Path) -> None:
    files = write_reproducers(result(), tmp_path / "found")
    assert [p.name for p in files[1]] == ["divergence-5-1.jsonl", "divergence-5-1.py"]
    program = load(files[1][0])
    assert (program.setup, tuple(program.actions)) == (SETUP, ACTIONS)
    assert "seed 5, program 1" in program.note
    command, where = [sys.executable, str(files[1][1])], {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=where, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr        # the target of this campaign is the model, which agrees with itself
    assert done.stdout.splitlines()[-1].startswith("agrees")


def test_reproducers_of_the_same_find_are_the_same(tmp_path: Path) -> None:
    texts = [[p.read_bytes() for p in write_reproducers(result(seconds=float(n)), tmp_path / str(n))[1]] for n in range(2)]
    assert texts[0] == texts[1]


def test_nothing_found_leaves_nothing(tmp_path: Path) -> None:
    assert write_reproducers(result(**CLEAN), tmp_path / "found") == {}
    assert not (tmp_path / "found").exists()


def test_a_summary_can_not_break_the_script(tmp_path: Path) -> None:
    nasty = Verdict(Direction.HARNESS, 0, summary='"""\nimport os # \\N{x} {setup}')
    path = write_reproducers(result(divergences=[Divergence(SETUP, 1, 3, ACTIONS, nasty, 0)]), tmp_path)[1][1]
    compile(path.read_text(), str(path), "exec")


@pytest.mark.parametrize("action", [*ACTIONS, Execute(0, 0, True), Hypercall(0, 1, ())])
def test_an_action_as_python_is_that_action(action: Action) -> None:
    assert eval(python_action(action)) == action
