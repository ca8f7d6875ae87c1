"""The commands on the real Xen: what is found there can be replayed and checked; deaths are told; what is missing is said."""
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from emulator.errors import HarnessError
from emulator.xen import fetch, version
from emulator.xen.fetch import KNOWN, Tools
from emulator.xen.machine import RealXen
from oracle.campaign import CampaignResult, run_campaign
from oracle.cli import app
from oracle.judge import Verdict
from oracle.live_runner import LENGTH
from oracle.program import Program, dump, load
from oracle.reproducer import write_reproducers
from oracle.runner import CampaignSpec
from oracle.targets import default_setup, open_target
from spec.abi import DOMID_SELF, PAGE_SIZE, Xen417
from spec.vocabulary import DomainSetup, Hypercall, Load, Setup, Store
from tests.xen.crashing import opener

ROOT = Path(__file__).parents[2]
CORPUS = Path(__file__).parent / "corpus"


def xenspec(*words: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command, in a process of its own."""
    program = "import sys; from oracle.cli import main; sys.argv[0] = 'xenspec'; main()"
    return subprocess.run([sys.executable, "-c", program, *map(str, words)], capture_output=True, text=True, timeout=300,
                          env={**os.environ, "PYTHONPATH": str(ROOT), **environment})


def refused(done: subprocess.CompletedProcess[str]) -> str:
    """The one line of a command that could not run."""
    assert done.returncode == 2, done.stdout + done.stderr
    (line,) = done.stderr.splitlines()
    return line


@pytest.fixture(scope="module")
def setup(tools: Tools) -> Setup:
    """A machine with 64 pages of domain 0 for programs."""
    target = open_target("xen")
    try:
        return default_setup("xen-4.17", target, domains=1)
    finally:
        target.close()


@pytest.fixture
def program(setup: Setup, tmp_path: Path) -> Path:
    """A program that agrees, and hands a frame out."""
    buffer = Xen417.BASE + 0x2000
    actions = [Store(0, Xen417.BASE + 0x4000, 7), Load(0, Xen417.BASE + 0x4000),
               Hypercall(0, Xen417.MEMORY_OP, (Xen417.INCREASE, buffer), ((buffer, (buffer + 32, 1, 0, DOMID_SELF, 0)),)),
               Hypercall(0, Xen417.UPDATE_VA_MAPPING, (Xen417.BASE + 0x46000, setup.domains[0].first << 12 | 0x11, 0))]
    path = tmp_path / "p.jsonl"
    dump(Program(setup, actions), path)
    return path


# --- replay and check --------------------------------------------------------------------------------------------------------

def test_a_setup_of_the_real_xen_says_so(setup: Setup, program: Path) -> None:
    assert setup.machine.startswith(f"Xen {KNOWN}.")
    assert load(program).setup == setup


def test_a_program_is_replayed_where_it_was_made_and_its_trace_is_checked(program: Path, tmp_path: Path) -> None:
    trace = tmp_path / "t.jsonl"
    done = xenspec("replay", program, "--trace", trace, "--explain")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all 4 actions are allowed" in done.stdout
    assert "POOL-3" in done.stdout
    assert load(trace).setup.machine
    assert xenspec("check", trace).returncode == 0
    lines = trace.read_text().splitlines()
    lines[2] = lines[2].replace('"value": 7', '"value": 8')
    trace.write_text("\n".join(lines))
    done = xenspec("check", trace)
    assert done.returncode == 1
    assert "at action 1" in done.stdout


def test_a_program_without_the_machines_name_is_replayed_by_the_targets(program: Path, setup: Setup, tmp_path: Path) -> None:
    read, old, trace = load(program), tmp_path / "old.jsonl", tmp_path / "t.jsonl"
    dump(replace(read, setup=replace(setup, machine="")), old)
    assert xenspec("replay", old, "--target", "xen", "--trace", trace).returncode == 0
    assert load(trace).setup == setup


@pytest.mark.parametrize(("name", "status"), [("a-pin-that-fails-midway-is-continued", 0), ("lost-teardown", 1)])
def test_kept_programs_can_be_replayed(tools: Tools, name: str, status: int) -> None:
    """One that agrees and one that does not; test_corpus plays all."""
    done = CliRunner().invoke(app, ["replay", str(CORPUS / f"{name}.jsonl"), "--target", "xen", "--json", "-"])
    assert done.exit_code == status, done.stderr
    assert json.loads(done.stdout)["summary"]["harness_failures"] == 0


def test_a_program_for_another_machine_is_refused(program: Path, setup: Setup, tmp_path: Path) -> None:
    assert "made on Xen 4.17" in refused(xenspec("replay", program, "--target", "model"))
    assert "does not run xen-4.17" in refused(xenspec("replay", program, "--target", "emulator"))
    path = tmp_path / "other.jsonl"
    dump(Program(replace(setup, machine="Xen 4.18.0"), [Load(0, Xen417.BASE)]), path)
    assert "its machine Xen 4.18.0, here Xen 4.17" in refused(xenspec("replay", path, "--target", "xen"))


# --- deaths ------------------------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def crashed(tools: Tools, tmp_path_factory: pytest.TempPathFactory) -> tuple[CampaignResult, Path]:
    """A campaign whose machine dies of the first two programs."""
    folder = tmp_path_factory.mktemp("memory")
    spec = CampaignSpec(profile="xen-4.17", target="xen", seed=3, actions=1600, length=400, domains=1, keep=str(folder / "kept"))
    return run_campaign(spec, opener=opener), folder / "kept"


def test_a_campaign_goes_on_after_a_death(crashed: tuple[CampaignResult, Path]) -> None:
    result, _ = crashed
    assert [f.index for f in result.harness_failures] == [0, 1]
    assert (result.programs, result.actions) == (4, 800)
    assert not result.divergences
    assert not result.model_findings


def test_a_death_is_told_with_the_console_and_an_audit_of_the_memory(crashed: tuple[CampaignResult, Path]) -> None:
    result, _ = crashed
    first, second = (f.what for f in result.harness_failures)
    for what in (first, second):
        assert "domain 0 crashed" in what
        assert "(XEN) Hardware Dom0 crashed" in what
    assert "audit of its memory: every invariant holds" in first
    assert "audit of its memory: 2 violations: COUNT-1 at " in second


def test_the_memory_is_kept_for_the_audit(crashed: tuple[CampaignResult, Path]) -> None:
    _, folder = crashed
    statuses = [CliRunner().invoke(app, ["audit", "--xen-image", str(folder / f"memory-3-{n}.img")]).exit_code for n in (0, 1)]
    assert statuses == [0, 1]


def test_the_program_that_was_running_is_in_the_reproducer(crashed: tuple[CampaignResult, Path], tmp_path: Path) -> None:
    result, _ = crashed
    files = write_reproducers(result, tmp_path)
    for path, _ in files.values():
        read = load(path)
        assert read.actions
        assert read.setup.machine
        assert read.note.startswith("harness: ")


def test_a_replayed_program_that_kills_the_machine_is_a_harness_failure(setup: Setup, tmp_path: Path) -> None:
    buffer, root = Xen417.BASE + 0x2000, setup.domains[0].first + setup.domains[0].pages - 1
    suicide = Hypercall(0, Xen417.MMU_UPDATE, (buffer, 1, 0, DOMID_SELF), ((buffer, (root * PAGE_SIZE, 0)),))
    path = tmp_path / "suicide.jsonl"
    dump(Program(setup, [Load(0, Xen417.BASE), suicide]), path)
    done = xenspec("replay", path)
    assert done.returncode == 1
    assert "harness at action 0" in done.stdout
    assert "Hardware Dom0 crashed" in done.stdout
    assert "every invariant holds" in done.stdout


def test_a_reproducer_in_python_runs_where_it_was_made(setup: Setup, program: Path, tmp_path: Path) -> None:
    from oracle.judge import Direction
    from oracle.reproducer import python_program
    text = python_program(load(program), Verdict(Direction.DIFFERENT, 0), CampaignSpec(profile="xen-4.17", target="xen"))
    script = tmp_path / "p.py"
    script.write_text(text)
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120, check=False,
                          env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    assert "agrees" in done.stdout


# --- which Xen ---------------------------------------------------------------------------------------------------------------

def test_another_copy_of_xen_will_do(tools: Tools, tmp_path: Path) -> None:
    copy = tmp_path / "my-xen"
    shutil.copy(tools.xen, copy)
    done = xenspec("fuzz", "--profile", "xen-4.17", "--target", "xen", "--xen", copy, "--actions", 200, "--workers", 1, "--seed",
                   1, "--domains", 1, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"--xen {copy}" in done.stdout


@pytest.mark.parametrize("words", [("fuzz", "--profile", "xen-4.17", "--target", "xen", "--seconds", "1"), ("replay", "PROGRAM"),
                                   ("check", "PROGRAM", "--target", "xen")])
def test_what_is_no_xen_is_refused(program: Path, tmp_path: Path, words: tuple[str, ...]) -> None:
    given = [program if word == "PROGRAM" else word for word in words]
    if words[0] == "check":
        program.write_text(program.read_text().splitlines()[0].replace('"actions": 4', '"actions": 0'))
    assert "none: No such file" in refused(xenspec(*given, "--xen", tmp_path / "none"))


def test_a_file_that_is_no_xen_is_told_from_one(tools: Tools, tmp_path: Path) -> None:
    no_xen = tmp_path / "no-xen"
    no_xen.write_bytes(b"\x7fELF" + bytes(60) + b"\x02\xb0\xad\x1b")
    assert "is no multiboot ELF" in str(fetch.found(Path(sys.executable)))
    assert "is no Xen" in str(fetch.found(no_xen))


def test_a_xen_that_is_named_is_for_the_real_target() -> None:
    assert "only --target xen" in refused(xenspec("fuzz", "--xen", "x", "--seconds", "1"))


def test_a_xen_of_another_version_is_refused_by_its_binary(tools: Tools, tmp_path: Path) -> None:
    other = tmp_path / "xen-4.18"
    other.write_bytes(tools.xen.read_bytes().replace(b"\x004.17.", b"\x004.18."))
    said = str(fetch.found(other))
    assert "is Xen 4.18" in said
    assert "only that of 4.17 is known here" in said


def test_a_xen_of_another_version_is_refused_by_what_it_says(xen: RealXen, monkeypatch: pytest.MonkeyPatch) -> None:
    assert version.running(xen).startswith("4.17.")
    monkeypatch.setattr(version, "KNOWN", "4.16")
    with pytest.raises(HarnessError, match=r"this is Xen 4\.17\.\d+: .* are those of 4\.16"):
        version.running(xen)


def test_the_memory_of_another_version_is_refused(xen: RealXen, tmp_path: Path) -> None:
    image = tmp_path / "ram"
    image.write_bytes(bytes(xen.ram).replace(b"Xen version 4.17.", b"Xen version 4.18."))
    done = CliRunner().invoke(app, ["audit", "--xen-image", str(image)])
    assert done.exit_code == 2
    assert "this is the memory of Xen 4.18: only that of 4.17 can be read" in done.stderr


# --- what is missing ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("words", [("fuzz", "--profile", "xen-4.17", "--target", "xen", "--seconds", "1"),
                                   ("replay", "PROGRAM"), ("replay", "PROGRAM", "--target", "xen"), ("check", "TRACE"),
                                   ("bench", "--target", "xen")])
def test_without_xen_a_command_says_how_to_get_it(tmp_path: Path, words: tuple[str, ...]) -> None:
    program, trace = tmp_path / "p.jsonl", tmp_path / "t.jsonl"
    made_there = Setup("xen-4.17", 32736, 256, (DomainSetup(0, 20480, 64),), machine="Xen 4.17.7")
    dump(Program(made_there, [Load(0, Xen417.BASE)]), program)
    dump(Program(made_there, []), trace)
    given = [{"PROGRAM": program, "TRACE": trace}.get(word, word) for word in words]
    line = refused(xenspec(*given, XENSPEC_CACHE=str(tmp_path), XENSPEC_XEN=""))
    assert line.startswith("xenspec: target xen: the real Xen cannot run: there is no ")
    assert "run `make real-xen`" in line


def test_an_image_is_audited_without_xen(xen: RealXen, tmp_path: Path) -> None:
    image = tmp_path / "ram"
    image.write_bytes(xen.ram)
    done = xenspec("audit", "--xen-image", image, XENSPEC_CACHE=str(tmp_path), XENSPEC_XEN="", PATH=str(tmp_path))
    assert done.returncode == 0, done.stderr


def test_programs_of_the_real_xen_are_longer() -> None:
    assert CampaignSpec().length < LENGTH
