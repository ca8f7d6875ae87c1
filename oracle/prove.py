"""The command `xenspec prove`: what is proved, as it goes, as a table, JSON, JUnit and SARIF; and what refutes the rest."""
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final
from xml.etree import ElementTree

import typer
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from oracle import report
from oracle.counterexample import counterexample_report
from oracle.files import check_folder, write_whole
from oracle.sarif import message, sarif
from proofs.counterexample import Counterexample
from proofs.ledger import LEAVES, PROVED, REFUTED, UNKNOWN, Ledger, Row, verdicts
from spec.kernel import RULES
from spec.profile import PROFILES

if TYPE_CHECKING:
    from proofs.runner import Task

COLOURS: Final = {PROVED: "green", REFUTED: "bold red", UNKNOWN: "yellow"}
WORST: Final = 5                            # slowest queries that are shown
FINDINGS: Final = Path("xenspec-findings")
Files = dict[tuple[str, str], list[Path]]   # profile and name of a row -> what was written of its counterexample


def prove_command(
    profile: Annotated[str | None, typer.Option(metavar="NAME", help=f"Which Xen: {', '.join(PROFILES)}.  "
                                                "[default: both, and the contracts of leaf functions]")] = None,
    only: Annotated[str, typer.Option(help="Obligations whose name contains this, or fits it if it has * or ?: take_type, "
                                      "SLOT-2, '*_ref keeps*', leaf.", metavar="PATTERN")] = "",
    jobs: Annotated[int, typer.Option(help="Processes.", min=1, max=256, metavar="N")] = 2,
    second: Annotated[str | None, typer.Option(help="Ask this solver (cvc5), too, about everything that is proved.",
                                               metavar="SOLVER")] = None,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Prove what was proved before, too.")] = False,
    json_path: Annotated[str | None, typer.Option("--json", help="Write the ledger as JSON; '-' is standard output.",
                                                  metavar="FILE")] = None,
    junit: Annotated[str | None, typer.Option(help="Write the ledger as JUnit XML.", metavar="FILE")] = None,
    sarif_path: Annotated[str | None, typer.Option("--sarif", help="Write what is not proved as SARIF 2.1.0.",
                                                   metavar="FILE")] = None,
    smt2: Annotated[Path | None, typer.Option(help="Write every query as SMT-LIB 2; then nothing is remembered.",
                                              metavar="DIR")] = None,
    out: Annotated[Path, typer.Option(help="Folder for counterexamples; made if there are any.", metavar="DIR")] = FINDINGS,
) -> None:
    """Prove that every transition keeps every invariant, and that the theorems follow.

    And that the leaf functions keep their contracts.  What is proved is remembered until something that it depends on changes.
    What refutes an obligation is printed, written as JSON, and drawn as SVG.

    Exit status: 0 everything is proved, 1 not everything, 2 could not run.
    """
    from oracle.cli import consoles, finish, known_profile, stop, troubles, writable  # (it imports this module)
    try:
        from oracle import picture
        from proofs import obligations, runner
        from proofs.discharge import Options
        from proofs.second import missing
    except ModuleNotFoundError as e:
        if e.name not in ("z3", "drawsvg"):
            raise
        stop(f"prove: {e.name} is not installed; it comes with the extra 'proofs' (pip install 'xenspec[proofs]')")
    with troubles():
        if profile is not None:
            known_profile(profile)
        if second is not None and (why := missing(second)):
            stop(f"prove: {why}")
        writable(json_path, junit, sarif_path)
        for folder in filter(None, (smt2, out)):
            check_folder(folder)
        wanted = obligations.select(profile, only)
        if not wanted:
            stop(f"prove: no obligation's name contains or fits {only!r}")
        options = Options(smt2=str(smt2) if smt2 else None, second=second)
        with ProofDisplay(consoles(json_path, junit, sarif_path)[1], len(wanted)) as display:
            ledger = runner.run(wanted, jobs, display, None if no_cache else runner.CACHE, options)
        if junit is not None:
            write_whole(junit, ledger_junit(ledger))
        if sarif_path is not None:
            report.emit(sarif(ledger), sarif_path)
        files = write_counterexamples(ledger, out, picture.svg)
        finish(ledger_report(ledger, files), ledger.document(), json_path, not ledger.clean, beside=(junit, sarif_path))


def write_counterexamples(ledger: Ledger, folder: Path, svg: Callable[[Counterexample], str]) -> Files:
    """Each counterexample as JSON and as a picture.  The folder is made only if there is one.  OSError if that can't be done."""
    files: Files = {}
    for row in ledger.rows:
        if row.counterexample is None:
            continue
        folder.mkdir(parents=True, exist_ok=True)
        stem = f"refuted-{row.profile}-{re.sub('[^a-z0-9]+', '-', row.name.lower()).strip('-')}"
        document, drawing = folder / f"{stem}.json", folder / f"{stem}.svg"
        write_whole(document, json.dumps(row.counterexample, indent=2, ensure_ascii=False) + "\n")
        write_whole(drawing, svg(Counterexample.read(row.counterexample)))
        files[row.profile, row.name] = [document, drawing]
    return files


# --- live --------------------------------------------------------------------------------------------------------------------

def subject_of(task: "Task") -> str:
    """What a task is about, for people."""
    if task[0].profile == LEAVES:
        return f"leaf {task[0].part}"
    rule = RULES.get(task[0].subject)
    return f"{task[0].profile} {rule.name if rule else task[0].subject}"


class ProofDisplay(report.Running):
    """Shows what is running."""

    def __init__(self, console: Console, total: int) -> None:
        super().__init__(console, "proving", total)
        self.rows: list[Row] = []

    def begun(self, task: "Task") -> None:
        """A task is running."""
        self.start(subject_of(task))

    def done(self, task: "Task", rows: list[Row]) -> None:
        """A task is done."""
        self.rows += rows
        self.end(subject_of(task), len(rows), figures(self.rows))


def figures(rows: Iterable[Row]) -> str:
    """The verdicts in one line."""
    return ", ".join(f"{n:,} {what}" for what, n in verdicts(rows).items())


# --- the verdict -------------------------------------------------------------------------------------------------------------

def ledger_report(ledger: Ledger, files: Files) -> RenderableType:
    """The ledger by rule, what is not proved, with its counterexample, and the slowest queries."""
    parts: list[RenderableType] = [rules_table(ledger.rows)]
    for row in ledger.rows:
        if row.verdict != PROVED:
            parts += ["", *unproved_lines(row, files.get((row.profile, row.name), []))]
    worst = sorted(ledger.rows, key=lambda row: -row.worst)[:WORST]
    parts += ["", *(Text(f"slow: {row.worst:.2f} s  {row.profile}: {row.name}", "dim") for row in worst)]
    second = Counter(row.second for row in ledger.rows if row.second)
    if second:
        parts.append(Text(f"second solver: {', '.join(f'{n:,} {answer}' for answer, n in sorted(second.items()))}"))
    cached = sum(row.cached for row in ledger.rows)
    verdict = Text("everything is proved", "bold green") if ledger.clean else Text("not everything is proved", "bold red")
    return Group(*parts, "", Text.assemble(verdict, f": {figures(ledger.rows)} in {ledger.seconds:.1f} s"
                                           + (f", {cached:,} remembered" if cached else "")))


def unproved_lines(row: Row, files: Iterable[Path]) -> list[RenderableType]:
    """What is not proved, why, and where its counterexample is."""
    parts: list[RenderableType] = [Text(f"{row.verdict}: {row.profile}: {row.name}: {row.detail}", COLOURS[row.verdict])]
    if row.counterexample is not None:
        parts.append(counterexample_report(Counterexample.read(row.counterexample), row.name))
    return [*parts, *(Text(f"  {file}", "dim") for file in files)]


def rules_table(rows: Iterable[Row]) -> Table:
    """A line a profile and subject: the first rule that its obligations are about."""
    table = report.plain_table("profile", "about", ">obligations", ">proved", ">paths", ">queries", ">solver s", ">worst s",
                               title="Proofs")
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.profile, subject_of_row(row)), []).append(row)
    for (profile, about), group in groups.items():
        n = verdicts(group)
        name = f"{about} {RULES[about].name}" if about in RULES else about
        table.add_row(profile, name, str(n["obligations"]),
                      Text(str(n[PROVED]), "green" if n[PROVED] == len(group) else "bold red"),
                      str(max(r.paths for r in group)), f"{sum(r.queries for r in group):,}",
                      f"{sum(r.seconds for r in group):.1f}", f"{max(r.worst for r in group):.2f}")
    return table


def subject_of_row(row: Row) -> str:
    """The first rule that a row is about, or what it is about instead."""
    if row.profile == LEAVES:
        return "contracts of leaf functions"
    return row.rules[0] if row.rules and " initial " not in row.name else "the initial state and sums"


def ledger_junit(ledger: Ledger) -> str:
    """The ledger as JUnit XML: a test an obligation, a suite a profile."""
    root = ElementTree.Element("testsuites", counts(ledger.rows))
    for profile in dict.fromkeys(row.profile for row in ledger.rows):
        rows = [row for row in ledger.rows if row.profile == profile]
        suite = ElementTree.SubElement(root, "testsuite", {"name": f"xenspec prove {profile}"} | counts(rows))
        for row in rows:
            case = ElementTree.SubElement(suite, "testcase", classname=f"xenspec.prove.{profile}", name=row.name,
                                          time=f"{row.seconds:.3f}")
            if row.verdict != PROVED:
                kind = "failure" if row.verdict == REFUTED else "error"
                failure = ElementTree.SubElement(case, kind, type=row.verdict, message=report.printable(row.detail))
                failure.text = message(row)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def counts(rows: Iterable[Row]) -> dict[str, Any]:
    """JUnit's figures of a suite."""
    n = verdicts(rows)
    return {"tests": str(n["obligations"]), "failures": str(n[REFUTED]), "errors": str(n[UNKNOWN]), "skipped": "0"}
