"""The command: what it prints, the documents it writes, its exit status, and one line for whatever can't be."""
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from oracle import cli
from oracle.program import Program, dump, dumps, load
from oracle.schema import schema
from oracle.targets import ModelTarget, default_setup
from spec.kernel import RULES
from spec.vocabulary import Hypercall, Load, Outcome, Store

HERE = Path(__file__).parent
SETUP = default_setup("xen-2003", ModelTarget(), pages=16, frames=256)
COMMANDS = ("fuzz", "replay", "check", "audit", "cite", "prove", "selftest", "bench", "schema")


@dataclass(frozen=True)
class Done:
    """What a command left behind."""
    status: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """Standard output, which must be JSON and nothing else."""
        return json.loads(self.out)


class Command:
    """Runs the command as its entry point does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
        self.monkeypatch, self.capfd = monkeypatch, capfd

    def __call__(self, *args: object) -> Done:
        self.monkeypatch.setattr(sys, "argv", ["xenspec", *map(str, args)])
        self.capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = self.capfd.readouterr()
        assert "Traceback" not in err
        return Done(int(ended.value.code or 0), out, err)


@pytest.fixture
def xenspec(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Command:
    """The command, in an empty folder."""
    monkeypatch.setenv("PYTHONPATH", str(HERE.parent.parent))
    monkeypatch.chdir(tmp_path)
    return Command(monkeypatch, capfd)


def example(how: str) -> str:
    """The example target, broken in some way."""
    return "cmd:" + shlex.join([sys.executable, str(HERE / "example_target.py"), how])


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """A program that the model refuses in part."""
    path = tmp_path / "p.jsonl"
    dump(Program(SETUP, [Store(1, 0xC0000000, 7), Hypercall(1, 19, (0xC0005, 0x10063, 0)), Load(1, 0xC0000000)]), path)
    return path


# --- usage -------------------------------------------------------------------------------------------------------------------

def test_help_names_all_commands(xenspec: Command) -> None:
    for done in (xenspec("--help"), xenspec()):
        assert done.status == 0
        assert all(command in done.out for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(xenspec: Command, command: str) -> None:
    done = xenspec(command, "--help")
    assert done.status == 0
    assert done.out.startswith(f"Usage: xenspec {command}")


def test_version(xenspec: Command) -> None:
    assert xenspec("--version").out.startswith("xenspec")


def test_the_schema_is_printed(xenspec: Command) -> None:
    assert xenspec("schema").document == schema()


@pytest.mark.parametrize(("args", "said"), [
    ("smash", "No such command"),
    ("fuzz --smash", "No such option"),
    ("fuzz --seed x", "--seed"),
    ("fuzz --seed -1", "--seed"),
    ("fuzz --workers 0", "--workers"),
    ("fuzz --seconds 1 --actions 1", "not both"),
    ("fuzz --focus none --actions 1", "unknown focus 'none' (known: memory, descriptors, transfers)"),
    ("fuzz --profile xen-9 --actions 1", "unknown profile 'xen-9'"),
    ("fuzz --target bochs --actions 1", "unknown target"),
    ("fuzz --target model --actions 1 --frames 100", "frames"),
    ("fuzz --target model --actions 1 --pages 2", "pages"),
    ("fuzz --target cmd:/no/such/thing --actions 1", "does not start"),
    ("fuzz --target model --plant none --actions 1", "knows no planted bug"),
    ("fuzz --target model --actions 1 --json missing/r.json", "missing"),
    ("fuzz --target model --actions 1 --junit .", "Is a directory"),
    ("replay", "Missing argument"),
    ("replay none.jsonl", "none.jsonl: No such file"),
    ("check none.jsonl", "none.jsonl: No such file"),
    ("check .", "Is a directory"),
    ("audit none.json", "none.json: No such file"),
    ("cite", "name a rule"),
    ("cite XYZ-77", "there is no rule XYZ-77"),
    ("cite xyzzy", "no rule says anything"),
    ("selftest --target model", "no bug can be planted"),
    ("selftest --target emulator --only xyzzy", "no bug called xyzzy can be planted"),
    ("bench --target bochs", "unknown target"),
    ("bench --json missing/r.json", "missing"),
    ("bench --json /proc/r.json", "/proc/r.json: "),
    ("fuzz --json - --junit -", "only one document"),
    ("fuzz --json r --junit r", "r: only one document"),
    ("fuzz --out /proc/none", "/proc/none: "),
    ("fuzz --out /dev/null", "/dev/null: Not a directory"),
    ("fuzz --target model --domains 99999999 --actions 1", "domains: 99999999 do not fit in 2048 frames"),
    ("fuzz --profile xen-4.17 --actions 1", "xenspec: target emulator does not run xen-4.17 (it runs xen-2003)"),
])
def test_what_can_not_be_is_one_line_and_status_2(xenspec: Command, args: str, said: str, tmp_path: Path) -> None:
    done = xenspec(*args.split())
    assert done.status == 2
    assert said in done.err
    assert len(done.err.splitlines()) == 1
    assert done.out == ""
    assert list(tmp_path.iterdir()) == []


# --- bad input ---------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("old", "new", "where"), [
    ('"0xc0000000"}', '"0xc00', "p.jsonl:4: not JSON, or truncated"),
    ('"load"', '"smash"', "p.jsonl:4: do: unknown action"),
    ('"dom": 1, "do": "load"', '"dom": 7, "do": "load"', "p.jsonl:4: dom: there is no domain 7"),
    ('"0x10063"', '"0x100000063"', "p.jsonl:3: args[1]: 0x100000063 is out of range"),
    ('"value": 7', '"value": 7, "vaule": 7', "p.jsonl:2: vaule: unknown field"),
    ('"actions": 3', '"actions": 4', "p.jsonl:4: actions: truncated?"),
    ('"frames": 256', '"frames": 20', "p.jsonl:1: setup.frames: "),
    ('"xen_frames": 16', '"xen_frames": 1', "p.jsonl:1: setup.xen_frames: 1 frames do not hold the tables"),
])
@pytest.mark.parametrize("command", ["replay", "check"])
def test_a_bad_program_is_named_with_line_and_field(xenspec: Command, program: Path, command: str, old: str, new: str,
                                                    where: str) -> None:
    text = program.read_text()
    assert old in text
    program.write_text(text.replace(old, new))
    done = xenspec(command, program.name, *(["--target", "model"] if command == "replay" else []), "--json", "r.json")
    assert done.status == 2
    assert done.err.startswith(f"xenspec: {where}")
    assert len(done.err.splitlines()) == 1
    assert not Path("r.json").exists()


@pytest.mark.parametrize("command", ["check", "replay --target model"])
def test_a_program_beyond_the_vocabulary(xenspec: Command, program: Path, command: str) -> None:
    dump(Program(SETUP, [Load(0, 0xC0000000), Hypercall(1, 2, ())], [Outcome(0), Outcome(0)]), program)
    program.write_text(program.read_text().replace("\n", "\n\n"))
    done = xenspec(*command.split(), program.name)
    assert done.status == 2
    assert done.err.startswith("xenspec: p.jsonl:5: outside the specification's vocabulary")
    assert len(done.err.splitlines()) == 1


def test_a_program_is_no_trace(xenspec: Command, program: Path) -> None:
    done = xenspec("check", program)
    assert (done.status, len(done.err.splitlines())) == (2, 1)
    assert "this is a program, not a trace" in done.err


@pytest.mark.parametrize(("text", "said"), [
    ("{", "s.json:1: not JSON"),
    ("{}", "s.json:1: xenspec-state"),
    ('{"xenspec-state": 1, "profile": ["xen-2003"]}', "s.json:1: profile: "),
    ('{"xenspec-state": 1, "profile": "xen-2003", "frames": 9, "maps": {"ownre": []}}', "s.json:1: maps.ownre: "),
    ('{"xenspec-state": 1, "profile": "xen-2003", "frames": 9, "maps": {"owner": [[3, 1], [3, 2]]}}',
     "s.json:1: maps.owner[1]: its key is there twice"),
])
def test_a_bad_state_is_named_with_its_field(xenspec: Command, text: str, said: str) -> None:
    Path("s.json").write_text(text)
    done = xenspec("audit", "s.json")
    assert done.status == 2
    assert said in done.err


# --- where output goes -------------------------------------------------------------------------------------------------------

def test_any_document_can_be_on_standard_output_and_nothing_else_is(xenspec: Command, program: Path) -> None:
    done = xenspec("fuzz", "--target", "model", "--actions", 150, "--junit", "-")
    assert done.out.startswith("<?xml")
    assert done.out.endswith("</testsuites>\n")
    assert "nothing found" in done.err
    assert json.loads(xenspec("replay", program, "--target", "model", "--state", "-").out)["xenspec-state"] == 1
    trace = xenspec("replay", program, "--target", "model", "--trace", "-").out
    assert all(json.loads(line) for line in trace.splitlines())
    assert not Path("-").exists()


@pytest.mark.parametrize(("redirected", "said"), [
    ("> /dev/full", "xenspec: standard output: No space left on device\n"), ("| sleep 0", ""), (">&-", "")])
@pytest.mark.parametrize("command", ["schema", "cite frame", "cite frame --json"])
def test_an_output_that_can_not_be_written(command: str, redirected: str, said: str) -> None:
    run = f"{sys.executable} -c 'import sys, time; from oracle.cli import main; time.sleep(0.3); main()'"
    done = subprocess.run(["bash", "-c", f"{run} {command} {redirected}; exit ${{PIPESTATUS[0]}}"], cwd=HERE.parent.parent,
                          stderr=subprocess.PIPE, text=True, timeout=60)
    assert done.stderr == said
    assert done.returncode == (0 if redirected == ">&-" else 2)     # who closes it does not want it


@pytest.mark.parametrize("command", ["fuzz --seconds 60", "selftest"])
@pytest.mark.parametrize("after", [0.2, 3])
def test_ctrl_c_ends_it_at_once_and_says_little(command: str, after: float, tmp_path: Path) -> None:
    program = ("import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "      # it may be ignored around here
               "print(flush=True); from oracle.cli import main; main()")
    run = [sys.executable, "-c", program, *command.split()]
    child = subprocess.Popen(run, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(HERE.parent.parent)}, stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE, text=True, start_new_session=True)
    assert child.stdout is not None
    child.stdout.readline()
    time.sleep(2 + after)
    os.killpg(child.pid, signal.SIGINT)
    _, err = child.communicate(timeout=10)
    assert child.returncode == 130
    assert "Traceback" not in err


# --- fuzz --------------------------------------------------------------------------------------------------------------------

def test_a_clean_target(xenspec: Command, tmp_path: Path) -> None:
    done = xenspec("fuzz", "--target", "model", "--actions", 600, "--seed", 1, "--json", "r.json", "--junit", "r.xml")
    assert done.status == 0, done.out
    assert "nothing found" in done.out
    assert "--seed 1" in done.out
    summary = json.loads(Path("r.json").read_text())["summary"]
    assert (summary["actions"], summary["divergences"], summary["harness_failures"], summary["seed"]) == (600, 0, 0, 1)
    assert {p.name for p in tmp_path.iterdir()} == {"r.json", "r.xml"}


def test_a_number_of_actions_gives_the_same_bytes_with_any_number_of_workers(xenspec: Command) -> None:
    texts = []
    for workers in (1, 2):
        done = xenspec("fuzz", "--target", example("permits"), "--actions", 5000, "--seed", 4, "--workers", workers,
                       "--json", "-", "--out", f"o{workers}", "--junit", f"{workers}.xml")
        assert done.status == 1
        document = done.document
        document["summary"]["seconds"] = 0
        found = {p.name: p.read_bytes() for p in Path(f"o{workers}").iterdir()}
        texts.append((json.dumps(document), found, Path(f"{workers}.xml").read_bytes()))
    assert texts[0] == texts[1]


def test_a_bug_is_found_and_its_reproducers_show_it(xenspec: Command) -> None:
    done = xenspec("fuzz", "--target", example("permits"), "--actions", 300, "--seed", 4, "--workers", 1, "--json", "r.json")
    assert done.status == 1
    assert "too permissive" in done.out
    first = json.loads(Path("r.json").read_text())["divergences"][0]
    stem = f"xenspec-findings/divergence-4-{first['program']}"
    assert len(load(f"{stem}.jsonl").actions) == len(first["actions"])
    shown = subprocess.run([sys.executable, f"{stem}.py"], capture_output=True, text=True, timeout=60)
    assert (shown.returncode, shown.stderr) == (1, "")
    assert "too permissive" in shown.stdout
    again = xenspec("replay", f"{stem}.jsonl", "--target", example("permits"), "--explain")
    assert again.status == 1
    assert first["verdict"]["rule"] in again.out
    assert xenspec("replay", f"{stem}.jsonl", "--target", "model").status == 0


def test_a_bug_planted_in_the_emulator_is_found_and_replayed(xenspec: Command) -> None:
    bug = ("--plant", "self-map-writable")
    done = xenspec("fuzz", "--actions", 4500, "--seed", 0, "--json", "-", *bug)
    assert done.status == 1
    first = next(d for d in done.document["divergences"] if d["verdict"]["direction"] == "too permissive")
    program = f"xenspec-findings/divergence-0-{first['program']}.jsonl"
    assert xenspec("replay", program, *bug).status == 1
    assert xenspec("replay", program).status == 0


def test_a_selftest_counts_what_it_planted_and_found(xenspec: Command) -> None:
    done = xenspec("selftest", "--only", "self-map-writable", "--json", "-")
    summary = done.document["summary"]
    assert (summary["planted"], summary["found"]) == (1, 1)
    assert done.status == (1 if summary["clean_divergences"] else 0)
    assert done.document["plants"][0]["verdict"]["rule"]


def test_a_target_that_dies_is_a_harness_failure(xenspec: Command) -> None:
    done = xenspec("fuzz", "--target", example("dies"), "--actions", 300, "--seed", 4, "--workers", 1, "--json", "-")
    assert done.status == 1
    summary = done.document["summary"]
    assert (summary["divergences"], summary["harness_failures"]) == (0, 2)
    assert "died of SIGABRT" in done.document["harness_failures"][0]["what"]


# --- replay, check, audit ----------------------------------------------------------------------------------------------------

def test_a_replay_agrees_and_its_trace_and_state_pass(xenspec: Command, program: Path) -> None:
    done = xenspec("replay", program, "--target", "model", "--explain", "--trace", "t.jsonl", "--state", "s.json",
                   "--json", "r.json")
    assert done.status == 0, done.out
    assert "refused by" in done.out
    assert json.loads(Path("r.json").read_text())["summary"] == {"divergences": 0, "harness_failures": 0, "actions": 3}
    checked = xenspec("check", "t.jsonl", "--json", "-")
    assert checked.status == 0
    assert checked.document["verdict"]["direction"] == "agrees"
    audited = xenspec("audit", "s.json", "--json", "-")
    assert audited.status == 0
    assert audited.document == {"summary": {"violations": 0}, "violations": []}


def test_a_trace_that_is_not_allowed(xenspec: Command, program: Path) -> None:
    read = load(program)
    read.outcomes = [Outcome(), Outcome(0), Outcome(7)]
    program.write_text(dumps(read))
    done = xenspec("check", program)
    assert done.status == 1
    assert "too permissive at action 1" in done.out


def test_a_trace_whose_state_is_not_allowed(xenspec: Command, program: Path) -> None:
    xenspec("replay", program, "--target", "model", "--trace", "t.jsonl")
    text = Path("t.jsonl").read_text()
    assert "0, [7]]" in text
    Path("t.jsonl").write_text(text.replace("0, [7]]", "0, [8]]"))
    done = xenspec("check", "t.jsonl")
    assert done.status == 1
    assert "different" in done.out


def test_an_unsound_state(xenspec: Command, program: Path) -> None:
    xenspec("replay", program, "--target", "model", "--state", "s.json")
    state = json.loads(Path("s.json").read_text())
    state["maps"]["type_count"][0][-1] += 1
    Path("s.json").write_text(json.dumps(state))
    done = xenspec("audit", "s.json", "--json", "-")
    assert done.status == 1
    assert done.document["summary"]["violations"] == len(done.document["violations"]) > 0


def test_a_target_that_dies_in_a_replay(xenspec: Command, program: Path) -> None:
    done = xenspec("replay", program, "--target", example("dies"), "--trace", "t.jsonl")
    assert done.status == 1
    assert "harness" in done.out
    assert not Path("t.jsonl").exists()


def test_a_target_that_can_not_be_the_machine(xenspec: Command, program: Path) -> None:
    program.write_text(program.read_text().replace('"xen-2003"', '"xen-4.17"'))
    done = xenspec("replay", program, "--target", example(""))
    assert (done.status, len(done.err.splitlines())) == (2, 1)


# --- cite --------------------------------------------------------------------------------------------------------------------

def test_a_rule_is_printed(xenspec: Command) -> None:
    rule = next(r for r in RULES.values() if r.conjuncts)
    done = xenspec("cite", rule.conjuncts[0].id.lower())
    assert done.status == 0
    for part in (rule.id, rule.conjuncts[0].text, rule.fingerprint, rule.file):
        assert part in done.out
    assert xenspec("cite", rule.id, "--json").document["rules"][0]["sentence"] == rule.sentence


def test_words_find_rules(xenspec: Command) -> None:
    assert "PIN" in xenspec("cite", "pin").out.upper()
    assert xenspec("cite", "frame", "owner", "--json").document["summary"]["rules"] > 3


def test_holes_are_something_found(xenspec: Command) -> None:
    done = xenspec("cite", "--holes", "--json")
    assert done.status == (1 if done.document["rules"] else 0)
    assert all(rule["holes"] for rule in done.document["rules"])
