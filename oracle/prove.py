"""The command `xenspec prove`: what is proved, shown as it goes, as a table, as JSON and as JUnit."""
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any, Final
from xml.etree import ElementTree

import typer
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from oracle import report
from oracle.files import write_whole
from proofs.ledger import PROVED, REFUTED, UNKNOWN, Ledger, Row, verdicts
from spec.kernel import RULES
from spec.profile import PROFILES

if TYPE_CHECKING:
    from proofs.runner import Task

COLOURS: Final = {PROVED: "green", REFUTED: "bold red", UNKNOWN: "yellow"}
WORST: Final = 5                            # slowest queries that are shown


def prove_command(
    profile: Annotated[str | None, typer.Option(metavar="NAME",
                                             help=f"Which Xen: {', '.join(PROFILES)}.  [default: both]")] = None,
    only: Annotated[str, typer.Option(help="Obligations whose name contains this, or fits it if it has * or ?.",
                                      metavar="PATTERN")] = "",
    jobs: Annotated[int, typer.Option(help="Processes.", min=1, max=256, metavar="N")] = 2,
    json_path: Annotated[str | None, typer.Option("--json", help="Write the ledger as JSON; '-' is standard output.",
                                                  metavar="FILE")] = None,
    junit: Annotated[str | None, typer.Option(help="Write the ledger as JUnit XML.", metavar="FILE")] = None,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Prove what was proved before, too.")] = False,
) -> None:
    """Prove that every transition keeps every invariant, and that the theorems follow."""
    from oracle.cli import consoles, finish, known_profile, stop, troubles, writable  # (it imports this module)
    try:
        from proofs import obligations, runner
    except ModuleNotFoundError as e:
        if e.name != "z3":
            raise
        stop("prove: the solver is not installed; it comes with the extra 'proofs' (pip install 'xenspec[proofs]')")
    with troubles():
        if profile is not None:
            known_profile(profile)
        writable(json_path, junit)
        wanted = obligations.select(profile, only)
        if not wanted:
            stop(f"prove: no obligation's name contains or fits {only!r}")
        with ProofDisplay(consoles(json_path)[1], len(wanted)) as display:
            ledger = runner.run(wanted, jobs, display, None if no_cache else runner.CACHE)
        if junit is not None:
            write_whole(junit, ledger_junit(ledger))
        finish(ledger_report(ledger), ledger.document(), json_path, not ledger.clean)


# --- live --------------------------------------------------------------------------------------------------------------------

def subject_of(task: "Task") -> str:
    """What a task is about, for people."""
    rule = RULES.get(task[0].subject)
    return f"{task[0].profile} {rule.name if rule else task[0].subject}"


class ProofDisplay(report.Display):
    """Shows what is running."""

    def __init__(self, console: Console, total: int) -> None:
        super().__init__(console, "proving", total, f"0 of {total}")
        self.total = total
        self.running: list[str] = []
        self.rows: list[Row] = []

    def begun(self, task: "Task") -> None:
        """A task is running."""
        self.running.append(subject_of(task))
        self.show(0)

    def done(self, task: "Task", rows: list[Row]) -> None:
        """A task is done."""
        self.running.remove(subject_of(task))
        self.rows += rows
        self.show(len(rows))
        if self.is_time_to_say():
            self.console.print(f"{figures(self.rows)}; running: {', '.join(self.running)}", highlight=False)

    def show(self, more: int) -> None:
        """Bring the bar up to date, which has `more` rows than before."""
        self.bar.update(self.task, advance=more, figures=f"{len(self.rows)} of {self.total}  {', '.join(self.running)}")


def figures(rows: Iterable[Row]) -> str:
    """The verdicts in one line."""
    return ", ".join(f"{n:,} {what}" for what, n in verdicts(rows).items())


# --- the verdict -------------------------------------------------------------------------------------------------------------

def ledger_report(ledger: Ledger) -> RenderableType:
    """The ledger by rule, what is not proved, and the slowest queries."""
    parts: list[RenderableType] = [rules_table(ledger.rows)]
    for row in ledger.rows:
        if row.verdict != PROVED:
            parts += ["", Text(f"{row.verdict}: {row.profile}: {row.name}: {row.detail}", COLOURS[row.verdict])]
    worst = sorted(ledger.rows, key=lambda row: -row.worst)[:WORST]
    parts += ["", *(Text(f"slow: {row.worst:.2f} s  {row.profile}: {row.name}", "dim") for row in worst)]
    cached = sum(row.cached for row in ledger.rows)
    verdict = Text("everything is proved", "bold green") if ledger.clean else Text("not everything is proved", "bold red")
    return Group(*parts, "", Text.assemble(verdict, f": {figures(ledger.rows)} in {ledger.seconds:.1f} s"
                                           + (f", {cached:,} remembered" if cached else "")))


def rules_table(rows: Iterable[Row]) -> Table:
    """A line a profile and subject: the first rule that its obligations are about."""
    table = report.plain_table("profile", "about", ">obligations", ">proved", ">paths", ">queries", ">solver s", ">worst s",
                               title="Proofs")
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        about = row.rules[0] if row.rules and " initial " not in row.name else "the initial state and sums"
        groups.setdefault((row.profile, about), []).append(row)
    for (profile, about), group in groups.items():
        n = verdicts(group)
        name = f"{about} {RULES[about].name}" if about in RULES else about
        table.add_row(profile, name, str(n["obligations"]),
                      Text(str(n[PROVED]), "green" if n[PROVED] == len(group) else "bold red"),
                      str(max(r.paths for r in group)), f"{sum(r.queries for r in group):,}",
                      f"{sum(r.seconds for r in group):.1f}", f"{max(r.worst for r in group):.2f}")
    return table


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
                ElementTree.SubElement(case, kind, type=row.verdict, message=report.printable(row.detail))
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def counts(rows: Iterable[Row]) -> dict[str, Any]:
    """JUnit's figures of a suite."""
    n = verdicts(rows)
    return {"tests": str(n["obligations"]), "failures": str(n[REFUTED]), "errors": str(n[UNKNOWN]), "skipped": "0"}
