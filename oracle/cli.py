"""The command `xenspec`: thin, each command a few lines around what does the work.

Exit status: 0 nothing found, 1 something found, 2 could not run (bad usage, bad input, a target that does not start, an output
that can't be written); then there is one line on standard error, and no half-written file.  130: interrupted.
"""
import json
import os
import random
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, Any, Final, NoReturn, TextIO

import typer
from rich.console import Console, RenderableType

from oracle import report
from oracle.campaign import CampaignError, CampaignResult, CampaignSpec, length_for, run_campaign
from oracle.cite import ID, NoSuchRule, all_citations, citation_report, cite, document, holes_report, search, search_report
from oracle.files import check_folder, check_writable, write_whole
from oracle.image_audit import audit_image, image_document, image_report
from oracle.judge import harness_verdict
from oracle.mutants import mutants_command
from oracle.program import Program, dump, line_of, load
from oracle.prove import prove_command
from oracle.replay import Replay, replay
from oracle.reproducer import write_reproducers
from oracle.schema import ProgramError, parse_json, schema
from oracle.selftest import PlantResult, run_selftest, sample
from oracle.table import table_app
from oracle.targets import HarnessError, planted_bugs
from oracle.worker import WorkerTarget
from refmodel import Machine, ModelError, StateError, audit, boot, dump_state, load_state
from spec.profile import PROFILES
from spec.vocabulary import Outcome

DEFAULT_SECONDS: Final = 30.0
FINDINGS: Final = Path("xenspec-findings")
OK, FOUND, COULD_NOT, INTERRUPTED = 0, 1, 2, 130

app = typer.Typer(
    help="Holds implementations of Xen's paravirtual memory interface against its executable specification.",
    epilog="Exit status: 0 nothing found, 1 something found, 2 could not run, 130 interrupted.",
    add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})

Profile = Annotated[str, typer.Option(help=f"Which Xen: {', '.join(PROFILES)}.", metavar="NAME")]
TargetName = Annotated[str, typer.Option("--target", metavar="TARGET", help="What is held against the model: emulator, model, or "
                                         "'cmd:COMMAND', any program that speaks JSON lines (see `xenspec schema`).")]
JsonPath = Annotated[str | None, typer.Option("--json", help="Write the result as JSON; '-' is standard output.", metavar="FILE")]
Seed = Annotated[int | None, typer.Option(metavar="N", min=0, help="Of the random programs; a new one each time if not given.")]
PlantName = Annotated[str, typer.Option("--plant", metavar="BUG", help="First plant this bug of the self-test in the target.")]


# --- what all commands share -------------------------------------------------------------------------------------------------

def stop(message: str) -> NoReturn:
    """One line on standard error; could not run."""
    print(f"xenspec: {' '.join(message.split())}", file=sys.stderr)
    raise typer.Exit(COULD_NOT)


@contextmanager
def troubles() -> Iterator[None]:
    """What makes a command impossible becomes one line and status 2."""
    try:
        yield
    except (ProgramError, HarnessError, CampaignError, NoSuchRule) as e:
        stop(str(e))
    except BrokenPipeError:
        raise                               # of standard output: for `main`
    except OSError as e:
        stop(f"{e.filename}: {e.strerror}" if e.filename else str(e))


@contextmanager
def vocabulary(path: str, program: Program) -> Iterator[None]:
    """ProgramError, with file and line, if the model has no answer to an action."""
    try:
        yield
    except ModelError as e:
        raise ProgramError("", f"outside the specification's vocabulary: {e}", f"{path}:{line_of(program, e.action)}") from None


def consoles(*documents: str | None) -> tuple[Console, Console]:
    """For the result and for progress; nothing but the document may be on standard output if one goes there."""
    width = None if sys.stdout.isatty() else 130
    return Console(stderr="-" in documents, width=width, highlight=False), Console(stderr=True, highlight=False)


def finish(result: RenderableType, doc: dict[str, Any], json_path: str | None, found: bool, otherwise: int = OK,
           beside: Sequence[str | None] = ()) -> NoReturn:
    """Print the verdict, write the document (`beside`: where others went), end with the status."""
    report.emit(doc, json_path)
    consoles(json_path, *beside)[0].print(result)
    raise typer.Exit(FOUND if found else otherwise)


def writable(*paths: str | None) -> None:
    """OSError before the work rather than after it; no two documents in one place."""
    given = [path for path in paths if path is not None]
    for path in given:
        if given.count(path) > 1:
            stop(f"{path}: only one document can be written there")
        if path != "-":
            check_writable(path)


# --- fuzz --------------------------------------------------------------------------------------------------------------------

@app.command()
def fuzz(
    profile: Profile = "xen-2003",
    target: TargetName = "emulator",
    seconds: Annotated[float | None, typer.Option(help="How long to run.  [default: 30]", min=0.1, metavar="N")] = None,
    actions: Annotated[int | None, typer.Option(min=1, metavar="N", help="How many actions to compare instead of running for a "
                                                "time; then the result is reproducible.")] = None,
    seed: Seed = None,
    workers: Annotated[int, typer.Option(help="Processes that run programs.", min=1, max=256, metavar="N")] = 2,
    domains: Annotated[int, typer.Option(help="Domains of the machine.", min=1, metavar="N")] = 2,
    pages: Annotated[int, typer.Option(help="Pages of each domain.", min=1, metavar="N")] = 64,
    frames: Annotated[int, typer.Option(help="Frames of the machine.", min=1, metavar="N")] = 2048,
    plant: PlantName = "",
    out: Annotated[Path, typer.Option(help="Folder for reproducers; made if something is found.", metavar="DIR")] = FINDINGS,
    json_path: JsonPath = None,
    junit: Annotated[str | None, typer.Option(help="Write the result as JUnit XML.", metavar="FILE")] = None,
) -> None:
    """Run random programs on the model and a target, and compare every outcome and the whole visible state."""
    if seconds is not None and actions is not None:
        stop("fuzz: give --seconds or --actions, not both")
    seed = random.SystemRandom().randrange(1 << 32) if seed is None else seed
    spec = CampaignSpec(profile=profile, target=target, seed=seed, actions=actions, workers=workers, domains=domains, pages=pages,
                        frames=frames, plant=plant, length=length_for(target),
                        seconds=DEFAULT_SECONDS if seconds is None and actions is None else seconds)
    with troubles():
        known_profile(profile)
        writable(json_path, junit)
        check_folder(out)
        result, interrupted = campaign(spec, consoles(json_path)[1])
        if junit is not None:
            write_whole(junit, report.junit(result))
        files = write_reproducers(result, out)
        finish(report.campaign_report(result, files, again(spec)), report.campaign_document(result), json_path, not result.clean,
               INTERRUPTED if interrupted else OK, (junit,))


def campaign(spec: CampaignSpec, console: Console) -> tuple[CampaignResult, bool]:
    """Run it with a display; who interrupts it gets what was found until then, and True."""
    with report.CampaignDisplay(console, spec) as display:
        try:
            return run_campaign(spec, display), False
        except KeyboardInterrupt:
            if display.last is None:
                raise
            console.print("interrupted: this is the result so far")
            return display.last, True


def known_profile(name: str) -> None:
    """ProgramError unless there is such a profile."""
    if name not in PROFILES:
        raise ProgramError("--profile", f"unknown profile {name!r} (known: {', '.join(PROFILES)})")


def again(spec: CampaignSpec) -> str:
    """The command that repeats a campaign."""
    extent = f"--actions {spec.actions}" if spec.actions else f"--seconds {spec.seconds:g}"
    usual = CampaignSpec()
    more = [f"--{name} {getattr(spec, name)}" for name in ("domains", "pages", "frames", "plant")
            if getattr(spec, name) != getattr(usual, name)]
    target = spec.target if " " not in spec.target else repr(spec.target)
    return " ".join(["xenspec fuzz --profile", spec.profile, "--target", target, extent, f"--seed {spec.seed}", *more])


# --- replay, check, audit ----------------------------------------------------------------------------------------------------

@app.command("replay")
def replay_command(
    program: Annotated[str, typer.Argument(help="A program in JSON lines ('-': standard input).", metavar="PROGRAM.jsonl")],
    target: TargetName = "emulator",
    explain: Annotated[bool, typer.Option("--explain", help="Show each rule that decided, and what changed.")] = False,
    plant: PlantName = "",
    trace: Annotated[str | None, typer.Option(metavar="FILE", help="Write what the target did, for `xenspec check`.")] = None,
    state: Annotated[str | None, typer.Option(metavar="FILE", help="Write the model's last state, for `xenspec audit`.")] = None,
    json_path: JsonPath = None,
) -> None:
    """Run one program on the model and a target, step by step."""
    with troubles():
        writable(json_path, state, trace)
        read = load(program)
        machine = boot(read.setup)
        with vocabulary(program, read):
            found = replay_on(target, plant, read, machine)
        if trace is not None and read.outcomes is not None:
            dump(read, trace)
        if state is not None:
            write_whole(state, json.dumps(dump_state(machine.concrete)) + "\n")
        finish(report.replay_report(found, explain), report.replay_document(found), json_path, not found.verdict.agrees,
               beside=(trace, state))


def replay_on(target: str, plant: str, read: Program, machine: Machine) -> Replay:
    """A program judged on a target; what that did is entered in `read`.  If it fails in the middle, that is the verdict.

    Unless it fails since it is asked for what no rule describes: then ModelError.
    """
    held = WorkerTarget(target, plant=plant)
    read.outcomes = read.observation = None
    try:
        if read.setup.profile not in held.profiles:
            raise HarnessError(f"target {target} does not run {read.setup.profile}")
        held.reset(read.setup)
        try:
            read.outcomes, read.observation = held.run(read.actions), held.observe()
        except HarnessError as e:
            for action in read.actions:
                machine.step(action, Outcome())
            return Replay(harness_verdict(0, str(e)), ())
        return replay(machine, read.actions, read.outcomes, read.observation)
    finally:
        held.close()


@app.command()
def check(
    trace: Annotated[str, typer.Argument(help="A program with outcomes, recorded anywhere ('-': standard input).",
                                         metavar="TRACE.jsonl")],
    explain: Annotated[bool, typer.Option("--explain", help="Show each step, the rules that decided, and what changed.")] = False,
    json_path: JsonPath = None,
) -> None:
    """Say whether a recorded trace is allowed: every outcome, and the observation if it ends with one."""
    with troubles():
        writable(json_path)
        read = load(trace)
        if read.outcomes is None and read.actions:
            raise ProgramError("outcome", "missing: this is a program, not a trace (`xenspec replay` runs it)", f"{trace}:2")
        with vocabulary(trace, read):
            found = replay(boot(read.setup), read.actions, read.outcomes or [], read.observation)
        shown = report.replay_report(found, explain) if explain else report.verdict_text(found.verdict)
        finish(shown, report.replay_document(found), json_path, not found.verdict.agrees)


@app.command("audit")
def audit_command(
    state: Annotated[Path | None, typer.Argument(help="A state of the model (`xenspec replay --state`).", metavar="STATE.json"),
                     ] = None,
    xen_image: Annotated[Path | None, typer.Option(help="Instead: the memory of a real Xen 4.17, from address 0 on.",
                                                   metavar="RAM")] = None,
    json_path: JsonPath = None,
) -> None:
    """Check every invariant at every key of a state."""
    with troubles():
        writable(json_path)
        if xen_image is not None and state is None:
            found = audit_image(xen_image)
            finish(image_report(found), image_document(found), json_path, bool(found.violations))
        if state is None or xen_image is not None:
            stop("audit: name a state, or a memory with --xen-image")
        violations = audit(read_state(state))
        finish(report.audit_report(violations), report.audit_document(violations), json_path, bool(violations))


def read_state(path: Path) -> Any:
    """The state in a file; ProgramError names file, line and field."""
    try:
        return load_state(parse_json(path.read_bytes()))
    except StateError as e:
        raise ProgramError("", str(e), f"{path}:1") from None
    except ProgramError as e:
        raise e.at(f"{path}:{e.where or 1}") from None


# --- cite --------------------------------------------------------------------------------------------------------------------

@app.command("cite")
def cite_command(
    words: Annotated[list[str] | None, typer.Argument(metavar="RULE|WORDS", help="An id, or words to look for.")] = None,
    holes: Annotated[bool, typer.Option("--holes", help="List the rules with no implementation, test or proof.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON on standard output.")] = False,
) -> None:
    """Print a rule: what it says, why, where it is implemented, tested and proved."""
    console = consoles("-" if as_json else None)[0]
    if holes == bool(words):
        stop("cite: name a rule, or words, or --holes")
    with troubles():
        if holes:
            found = [c for c in all_citations() if c.holes]
            shown, status = holes_report(found), FOUND if found else OK
        elif len(words or []) == 1 and ID.fullmatch((words or [""])[0].upper()):
            found = [cite((words or [""])[0])]
            shown, status = citation_report(found[0]), OK
        else:
            ranked = search(words or [])
            found = [cite(rule.id) for _, rule in ranked]
            shown, status = search_report(ranked), OK
    if as_json:
        report.emit({"summary": {"rules": len(found)}, "rules": [document(c) for c in found]}, "-")
    else:
        console.print(shown)
    raise typer.Exit(status)


# --- selftest, bench, schema -------------------------------------------------------------------------------------------------

@app.command()
def selftest(
    target: TargetName = "emulator",
    profile: Profile = "xen-2003",
    quick: Annotated[bool, typer.Option("--quick", help="Only a few of the bugs.")] = False,
    only: Annotated[str, typer.Option(metavar="PATTERN", help="Only the bugs whose name has this in it, or matches it.")] = "",
    seed: Annotated[int, typer.Option(help="Of the random programs.", min=0, metavar="N")] = 0,
    workers: Annotated[int, typer.Option(help="Processes that run programs.", min=1, max=256, metavar="N")] = 2,
    json_path: JsonPath = None,
) -> None:
    """Test the oracle: the clean target shows nothing, and each bug that is planted in it is found."""
    console = consoles(json_path)[1]

    def tell(name: str, found: PlantResult | None) -> None:
        console.print(report.selftest_line(name, found), highlight=False)
    with troubles():
        known_profile(profile)
        writable(json_path)
        if not sample(planted_bugs(target), quick, only):
            raise HarnessError(f"no bug{f' called {only}' if only else ''} can be planted in target {target}")
        result = run_selftest(target, profile, seed, quick=quick, only=only, workers=workers, on_progress=tell)
        finish(report.selftest_report(result), report.selftest_document(result), json_path, not result.passed)


app.command("prove")(prove_command)
app.command("mutants")(mutants_command)
app.add_typer(table_app, name="table")


@app.command()
def bench(
    target: TargetName = "emulator",
    json_path: JsonPath = None,
) -> None:
    """Measure model, target and oracle side by side: processor time, best of three."""
    from oracle.bench import bench_document, bench_report, run_bench
    console = consoles(json_path)[1]
    with troubles():
        writable(json_path)
        rows = run_bench(target, lambda row: console.print(f"{row.name}: {row.value:,.2f} {row.unit}"))
        finish(bench_report(rows), bench_document(rows), json_path, found=False)


@app.command("schema")
def schema_command() -> None:
    """Print the JSON Schema of programs, traces, and the protocol of external targets."""
    print(json.dumps(schema(), indent=2, ensure_ascii=False))


def show_version(asked: bool) -> None:
    """Print the version and end."""
    if asked:
        try:
            print(f"xenspec {version('xenspec')}")
        except PackageNotFoundError:
            print("xenspec, not installed")
        raise typer.Exit


@app.callback()
def options(
    version_: Annotated[bool, typer.Option("--version", help="Print the version.", callback=show_version, is_eager=True)] = False,
) -> None:
    """Holds implementations of Xen's paravirtual memory interface against its executable specification."""


def main() -> None:
    """The entry point of the installed command; a usage error, too, is one line."""
    sys.stdout, sys.stderr = (stream or nowhere() for stream in (sys.stdout, sys.stderr))   # None: it was closed from the start
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")    # not every terminal has a tick
    try:
        status = app(args=sys.argv[1:] or ["--help"], prog_name="xenspec", standalone_mode=False)
        sys.stdout.flush()
    except (KeyboardInterrupt, typer.Abort):
        status = INTERRUPTED
    except (SystemExit, BrokenPipeError):       # who reads standard output has enough
        status = unheard()
    except OSError as e:
        print(f"xenspec: standard output: {e.strerror}", file=sys.stderr)
        status = unheard()
    except Exception as e:
        if not hasattr(e, "format_message"):    # of the parser's errors, whose classes typer does not name
            raise
        command = getattr(getattr(e, "ctx", None), "command_path", "xenspec")
        print(f"{command}: {' '.join(e.format_message().split())} (see {command} --help)", file=sys.stderr)
        status = COULD_NOT
    sys.exit(status if isinstance(status, int) else OK)


def nowhere() -> TextIO:
    """Takes everything and keeps nothing."""
    return open(os.devnull, "w", encoding="utf-8")


def unheard() -> int:
    """Standard output can't be written: what is left in its buffer is dropped."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return COULD_NOT
