"""The command `xenspec mutants`: bugs planted in the specification, each of which the proofs must refute, or it is explained."""
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from oracle import report
from oracle.files import check_folder, write_whole
from proofs.counterexample import Counterexample
from proofs.idle import EXPLAINED
from proofs.ledger import REFUTED, UNKNOWN
from proofs.mutants import IDLE, MutantRow, run
from proofs.planted import Plant, all_plants

COLOURS: Final = {REFUTED: "green", UNKNOWN: "bold red", IDLE: "yellow"}


def mutants_command(
    only: Annotated[str, typer.Option(metavar="PATTERN", help="Only the bugs whose name has this in it, or matches it.")] = "",
    jobs: Annotated[int, typer.Option(help="Processes.", min=1, max=256, metavar="N")] = 2,
    sample: Annotated[int | None, typer.Option(help="Only so many of them, a fixed choice spread evenly.", min=1,
                                               metavar="N")] = None,
    json_path: Annotated[str | None, typer.Option("--json", help="Write the result as JSON; '-' is standard output.",
                                                  metavar="FILE")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the counterexamples, as SVG and JSON; made if there is one.",
                                             metavar="DIR")] = None,
) -> None:
    """Plant bugs in the specification, and see that the proofs refute each one."""
    from oracle.cli import consoles, finish, stop, troubles, writable  # (it imports this module)
    if find_spec("z3") is None:
        stop("mutants: the solver is not installed; it comes with the extra 'proofs' (pip install 'xenspec[proofs]')")
    with troubles():
        writable(json_path)
        if out is not None:
            check_folder(out)
        plants = chosen(all_plants(), only, sample)
        if not plants:
            stop(f"mutants: no planted bug's name contains or fits {only!r}")
        start = time.monotonic()
        with MutantDisplay(consoles(json_path)[1], len(plants)) as display:
            rows = run(plants, jobs, display)
        files = write_counterexamples(rows, out) if out is not None else []
        seconds = time.monotonic() - start
        finish(mutants_report(rows, files, seconds), mutants_document(rows, seconds), json_path, any(map(is_found, rows)))


def chosen(plants: Sequence[Plant], only: str, sample: int | None) -> list[Plant]:
    """Those whose name has `only` in it or matches it; of these a fixed choice, if there are more than `sample`."""
    fit = [plant for plant in plants if only in plant.name or fnmatchcase(plant.name, only)]
    if sample is None or sample >= len(fit):
        return fit
    return [fit[n * len(fit) // sample] for n in range(sample)]


# --- live --------------------------------------------------------------------------------------------------------------------

class MutantDisplay(report.Running):
    """Shows what is running."""

    def __init__(self, console: Console, total: int) -> None:
        super().__init__(console, "refuting", total)
        self.rows: list[MutantRow] = []

    def begun(self, plant: Plant) -> None:
        """A planted specification is being proved."""
        self.start(plant.name)

    def done(self, row: MutantRow) -> None:
        """This came of it."""
        self.rows.append(row)
        self.end(row.name, 1, figures(self.rows))


# --- the verdict -------------------------------------------------------------------------------------------------------------

def explanation(row: MutantRow) -> str:
    """Why no obligation needs the bug to be absent, if that is known."""
    return EXPLAINED.get(row.name, "")


def is_found(row: MutantRow) -> bool:
    """All is not as it should be: refuted and confirmed and not said to be idle, or idle and explained."""
    if row.verdict == REFUTED:
        return not row.confirmed or explanation(row) != ""
    return row.verdict != IDLE or explanation(row) == ""


def summary(rows: Iterable[MutantRow]) -> dict[str, int]:
    """How many there are of what."""
    rows = list(rows)
    count = Counter(row.verdict for row in rows)
    return {"planted": len(rows), REFUTED: count[REFUTED], "confirmed": sum(row.confirmed for row in rows), IDLE: count[IDLE],
            "explained": sum(row.verdict == IDLE and explanation(row) != "" for row in rows), UNKNOWN: count[UNKNOWN]}


def figures(rows: Iterable[MutantRow]) -> str:
    """The verdicts in one line."""
    return ", ".join(f"{n:,} {what}" for what, n in summary(rows).items())


def mutants_report(rows: Sequence[MutantRow], files: Sequence[Path], seconds: float) -> RenderableType:
    """A row for each planted bug, what is not as it should be, and the verdict."""
    parts: list[RenderableType] = [mutants_table(rows)]
    parts += [Text(f"{row.name}: {trouble(row)}", "bold red") for row in rows if is_found(row)]
    parts += [Text(f"{len(files)} files in {files[0].parent}", "dim")] if files else []
    verdict = Text("something is not refuted as it should be", "bold red") if any(map(is_found, rows)) else \
        Text("every planted bug is refuted or explained", "bold green")
    return Group(*parts, "", Text.assemble(verdict, f": {figures(rows)} in {seconds:.1f} s"))


def mutants_table(rows: Iterable[MutantRow]) -> Table:
    """A line a planted bug."""
    table = report.plain_table("planted bug", "verdict", "profile", "breaks, or why nothing does", ">seconds",
                               title="Planted bugs")
    for row in rows:
        verdict = "confirmed" if row.confirmed else row.verdict
        said = explanation(row) if row.verdict == IDLE else f"{row.obligation} {row.detail}".strip()
        table.add_row(row.name, Text(verdict, COLOURS[row.verdict]), row.profile, said, f"{row.seconds:.1f}")
    return table


def trouble(row: MutantRow) -> str:
    """Why a row is found."""
    if row.verdict == IDLE:
        return f"nothing breaks, and nobody says why ({row.summary})"
    if row.verdict == UNKNOWN:
        return f"undecided: {row.obligation} {row.detail}".rstrip()
    if explanation(row):
        return f"is said to be idle, and breaks {row.obligation}"
    note = row.counterexample["note"] if row.counterexample else "there is none"
    return f"breaks {row.obligation}, and the counterexample is not confirmed: {note}"


def mutants_document(rows: Sequence[MutantRow], seconds: float) -> dict[str, Any]:
    """The result as JSON; but for the seconds, it is the same whenever it is repeated."""
    return {"summary": {**summary(rows), "seconds": round(seconds, 1)},
            "rows": [{"name": row.name, "summary": row.summary, "verdict": row.verdict, "profile": row.profile,
                      "obligation": row.obligation, "detail": row.detail, "confirmed": row.confirmed,
                      "explained": explanation(row), "counterexample": row.counterexample,
                      "seconds": row.seconds} for row in rows]}


def write_counterexamples(rows: Iterable[MutantRow], folder: Path) -> list[Path]:
    """Each counterexample as a picture and as JSON; the files."""
    from oracle.picture import svg  # (what it draws with comes with the extra 'proofs')
    files = []
    for row in rows:
        if row.counterexample is not None:
            folder.mkdir(parents=True, exist_ok=True)
            picture, document = folder / f"{row.name}.svg", folder / f"{row.name}.json"
            write_whole(picture, svg(Counterexample.read(row.counterexample)))
            report.emit(row.counterexample, str(document))
            files += [picture, document]
    return files
