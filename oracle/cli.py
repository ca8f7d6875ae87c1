"""The command `xenspec`: thin, each command a few lines around what does the work.

Exit status: 0 nothing found, 1 something found, 2 could not run (bad usage, bad input, a target that does not start, an output
that can't be written); then there is one line on standard error, and no half-written file.  130: interrupted.
"""
import json
import os
import random
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, Any, Final, NoReturn, TextIO

import typer
from rich.console import Console, Group, RenderableType
from rich.text import Text

from oracle import report
from oracle.campaign import CampaignError, CampaignResult, run_campaign
from oracle.cite import ID, NoSuchRule, all_citations, citation_report, cite, document, holes_report, search, search_report
from oracle.files import check_folder, check_writable, write_whole
from oracle.generate import FOCUSES
from oracle.image_audit import audit_image, image_document, image_report
from oracle.live_runner import length_for, raw_for
from oracle.mutants import mutants_command
from oracle.program import Program, dump, line_of, load
from oracle.prove import prove_command
from oracle.replay import replay, replay_on
from oracle.reproducer import write_reproducers
from oracle.runner import CampaignSpec
from oracle.schema import ProgramError, parse_json, schema
from oracle.selftest import PlantResult, run_selftest, sample
from oracle.table import table_app
from oracle.targets import REAL_TARGET, HarnessError, Target, model_of, planted_bugs
from oracle.worker import held_target
from refmodel import Machine, ModelError, StateError, audit, boot, dump_state, load_state
from spec.profile import PROFILES

DEFAULT_SECONDS: Final = 30.0
FINDINGS: Final = Path("xenspec-findings")
OK, FOUND, COULD_NOT, INTERRUPTED = 0, 1, 2, 130

app = typer.Typer(
    help="Holds implementations of Xen's paravirtual memory interface against its executable specification.",
    epilog="Exit status: 0 nothing found, 1 something found, 2 could not run, 130 interrupted.",
    add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})

Profile = Annotated[str, typer.Option(help=f"Which Xen: {', '.join(PROFILES)}.", metavar="NAME")]
TargetName = Annotated[str, typer.Option("--target", metavar="TARGET", help="What is held against the model: emulator, xen (the "
                                         "real one, from `make real-xen`), model, or 'cmd:COMMAND', any program that speaks JSON "
                                         "lines (see `xenspec schema`).")]
JsonPath = Annotated[str | None, typer.Option("--json", help="Write the result as JSON; '-' is standard output.", metavar="FILE")]
OwnTarget = Annotated[str, typer.Option("--target", metavar="TARGET", help="As for fuzz; xen, if not given, for what was made on "
                                        "the real Xen, else emulator.")]
OtherXen = Annotated[Path | None, typer.Option("--xen", metavar="ELF",
                                               help="With --target xen: another Xen 4.17 than the fetched one.")]
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
    consoles(json_path, *beside)[0].print(result, crop=False)       # a command to repeat may be longer than a line
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
    raw: Annotated[int | None, typer.Option(min=0, metavar="N", help="On a real machine: tries of a burst of actions after "
                                            "every 250 others.  [default: 16384]")] = None,
    focus: Annotated[str, typer.Option(help=f"What most of the programs are about: {', '.join(FOCUSES)}; else all alike.",
                                       metavar="WHAT")] = "",
    plant: PlantName = "",
    out: Annotated[Path, typer.Option(help="Folder for reproducers; made if something is found.", metavar="DIR")] = FINDINGS,
    xen: OtherXen = None,
    keep_image: Annotated[Path | None, typer.Option(help="Folder for the memory of a real machine that died, for `xenspec audit "
                                                    "--xen-image`.", metavar="DIR")] = None,
    json_path: JsonPath = None,
    junit: Annotated[str | None, typer.Option(help="Write the result as JUnit XML.", metavar="FILE")] = None,
) -> None:
    """Run random programs on the model and a target, and compare every outcome and the whole visible state."""
    if seconds is not None and actions is not None:
        stop("fuzz: give --seconds or --actions, not both")
    if focus and focus not in FOCUSES:
        stop(f"fuzz: unknown focus {focus!r} (known: {', '.join(FOCUSES)})")
    seed = random.SystemRandom().randrange(1 << 32) if seed is None else seed
    spec = CampaignSpec(profile=profile, target=target, seed=seed, actions=actions, workers=workers, domains=domains, pages=pages,
                        frames=frames, plant=plant, focus=focus, length=length_for(target),
                        raw=raw_for(target) if raw is None else raw, keep=str(keep_image or ""),
                        seconds=DEFAULT_SECONDS if seconds is None and actions is None else seconds)
    with troubles():
        known_profile(profile)
        use_xen(xen, target)
        writable(json_path, junit)
        check_folder(out)
        if keep_image is not None:
            check_folder(keep_image)
        result, interrupted = campaign(spec, consoles(json_path)[1])
        if junit is not None:
            write_whole(junit, report.junit(result))
        files = write_reproducers(result, out)
        finish(report.campaign_report(result, files, again(spec, xen)), report.campaign_document(result), json_path,
               not result.clean, INTERRUPTED if interrupted else OK, (junit,))


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


def use_xen(xen: Path | None, target: str) -> None:
    """Let the real machine run this Xen, here and in all processes that are started from here."""
    if xen is not None and target != REAL_TARGET:
        raise HarnessError(f"--xen {xen}: only --target {REAL_TARGET} runs a Xen that is named")
    if xen is not None:
        os.environ["XENSPEC_XEN"] = str(xen)


def again(spec: CampaignSpec, xen: Path | None = None) -> str:
    """The command that repeats a campaign."""
    extent = f"--actions {spec.actions}" if spec.actions else f"--seconds {spec.seconds:g}"
    usual = CampaignSpec()
    more = [f"--{name} {getattr(spec, name)}" for name in ("domains", "pages", "frames", "focus", "plant")
            if getattr(spec, name) != getattr(usual, name)]
    more += [f"--raw {spec.raw}"] if spec.raw != raw_for(spec.target) else []
    more += [f"--xen {xen}"] if xen is not None else []
    target = spec.target if " " not in spec.target else repr(spec.target)
    return " ".join(["xenspec fuzz --profile", spec.profile, "--target", target, extent, f"--seed {spec.seed}", *more])


# --- replay, check, audit ----------------------------------------------------------------------------------------------------

@app.command("replay")
def replay_command(
    program: Annotated[str, typer.Argument(help="A program in JSON lines ('-': standard input).", metavar="PROGRAM.jsonl")],
    target: OwnTarget = "",
    explain: Annotated[bool, typer.Option("--explain", help="Show each rule that decided, and what changed.")] = False,
    plant: PlantName = "",
    xen: OtherXen = None,
    trace: Annotated[str | None, typer.Option(metavar="FILE", help="Write what the target did, for `xenspec check`.")] = None,
    state: Annotated[str | None, typer.Option(metavar="FILE", help="Write the model's last state, for `xenspec audit`.")] = None,
    json_path: JsonPath = None,
) -> None:
    """Run one program on the model and a target, step by step."""
    with troubles():
        writable(json_path, state, trace)
        read = load(program)
        with held(target, read, xen, plant) as (subject, machine), vocabulary(program, read):
            found = replay_on(machine, subject, read)
        if trace is not None and read.outcomes is not None:
            dump(replace(read, actions=read.actions[:len(read.outcomes)]), trace)
        if state is not None:
            write_whole(state, json.dumps(dump_state(machine.concrete)) + "\n")
        finish(report.replay_report(found, explain), report.replay_document(found), json_path, not found.verdict.agrees,
               beside=(trace, state))


@contextmanager
def held(target: str, read: Program, xen: Path | None, plant: str = "") -> Iterator[tuple[Target, Machine]]:
    """The target of a program, and the model of it: without a name, the real machine for what was made on one."""
    name = target or (REAL_TARGET if read.setup.machine else CampaignSpec().target)
    use_xen(xen, name)
    with closing(held_target(name, plant)) as found:
        yield found, model_of(found, read.setup)


@app.command()
def check(
    trace: Annotated[str, typer.Argument(help="A program with outcomes, recorded anywhere ('-': standard input).",
                                         metavar="TRACE.jsonl")],
    target: Annotated[str, typer.Option("--target", metavar="TARGET", help="Where the trace begins: xen for one of the real Xen "
                                        "that does not say so; nothing is run.")] = "",
    xen: OtherXen = None,
    explain: Annotated[bool, typer.Option("--explain", help="Show each step, the rules that decided, and what changed.")] = False,
    json_path: JsonPath = None,
) -> None:
    """Say whether a recorded trace is allowed: every outcome, and the observation if it ends with one."""
    with troubles():
        writable(json_path)
        read = load(trace)
        if read.outcomes is None and read.actions:
            raise ProgramError("outcome", "missing: this is a program, not a trace (`xenspec replay` runs it)", f"{trace}:2")
        with recorded_on(target, read, xen) as machine, vocabulary(trace, read):
            found = replay(machine, read.actions, read.outcomes or [], read.observation)
        shown = report.replay_report(found, explain) if explain else report.verdict_text(found.verdict)
        finish(shown, report.replay_document(found), json_path, not found.verdict.agrees)


@contextmanager
def recorded_on(target: str, read: Program, xen: Path | None) -> Iterator[Machine]:
    """The model of the machine on which a trace begins: that of a real one is imported, so it must be there."""
    if not target and not read.setup.machine:
        yield boot(read.setup)
        return
    with held(target, read, xen) as (_, machine):
        yield machine


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
    """Measure model, target, oracle and the real Xen side by side, best of three: processor time, for the real Xen the clock."""
    from oracle.bench import Row, bench_document, bench_report, run_bench
    from oracle.bench_real import run_real_bench
    console = consoles(json_path)[1]

    def tell(row: Row) -> None:
        console.print(f"{row.name}: {row.value:,.2f} {row.unit}")
    with troubles():
        writable(json_path)
        rows, missing = run_bench(target, tell) if target != REAL_TARGET else [], ""
        try:
            rows += run_real_bench(tell)
        except HarnessError as e:
            if target == REAL_TARGET:
                raise
            missing = f"the real Xen is not measured: {e}"
        told = [bench_report(rows), Text(missing, "bold red")] if missing else [bench_report(rows)]
        finish(Group(*told), bench_document(rows, missing), json_path, found=False)


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
