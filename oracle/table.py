"""The command `xenspec table`: what the processor does in every case, held against the specification's pure functions."""
from collections.abc import Callable
from enum import StrEnum
from io import StringIO
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from rich.console import Console, Group, RenderableType
from rich.text import Text

from oracle import report
from oracle.files import check_writable, write_whole
from oracle.targets import BareProcessor, HarnessError, open_long_processor, open_processor

if TYPE_CHECKING:
    from collections.abc import Mapping

    from oracle.descriptor_table import Table
    from oracle.trials import Sample
    Results = tuple[Table, Sample | None, Mapping[str, str]]

_WIDTH = 180                                # of a page, and where there is no terminal
STEP = 512                                  # instructions between two looks at the clock
T = TypeVar("T")
R = TypeVar("R")


class Mode(StrEnum):
    """What the processor's code is of."""
    PROTECTED = "32"
    LONG = "64"


table_app = typer.Typer(help="Compare the processor with the specification, case by case.", rich_markup_mode=None)


@table_app.callback()
def table() -> None:
    """Compare the processor with the specification, case by case."""


@table_app.command("descriptors")
def descriptors(
    mode: Annotated[Mode, typer.Option(help="Code of 32 bits, or long mode: 64-bit code and compatibility mode.")] =
        Mode.PROTECTED,
    random: Annotated[int, typer.Option(help="Also that many random single instructions.", min=0, metavar="N")] = 0,
    seed: Annotated[int, typer.Option(help="Of the random instructions.", min=0, metavar="N")] = 0,
    json_path: Annotated[str | None, typer.Option("--json", help="Write the result as JSON; '-' is standard output.",
                                                  metavar="FILE")] = None,
    html: Annotated[str | None, typer.Option(help="Write the tables as a page.", metavar="FILE")] = None,
) -> None:
    """Every descriptor in every use at every privilege: what the processor does, and whether the specification agrees."""
    from oracle.table_report import sample_document, sample_report, table_document, table_report  # (others do without them)
    progress = Console(stderr=True, highlight=False)
    try:
        for path in (json_path, html):
            if path not in (None, "-"):
                check_writable(path or "")
        whole, found, not_tried = results(progress, mode, seed, random)
        shown: list[RenderableType] = [table_report(whole)]
        document: dict[str, Any] = {"mode": int(mode), "table": table_document(whole), "not_tried": dict(not_tried)}
        differences = list(whole.differences)
        if found is not None:
            shown += ["", sample_report(found)]
            document["random"] = {"seed": seed, **sample_document(found)}
            differences += found.differences
        shown.append(Text("\n".join(f"not tried: {what} ({why})" for what, why in not_tried.items()), "dim"))
        report.emit(document, json_path)
        if html is not None:
            write_whole(html, page(Group(*shown)))
    except HarnessError as e:
        fail(str(e))
    except BrokenPipeError:
        raise
    except OSError as e:
        fail(f"{e.filename}: {e.strerror}" if e.filename else str(e))
    console = Console(stderr=json_path == "-" or html == "-", highlight=False)
    if not console.is_terminal:
        console = Console(stderr=console.stderr, width=_WIDTH, highlight=False)
    console.print(*shown, sep="\n")
    raise typer.Exit(any(not d.declared for d in differences))


class Watched(report.Display):
    """Shows how many instructions a processor has performed."""

    def __init__(self, console: Console, total: int) -> None:
        super().__init__(console, "instructions", total, f"0 of {total:,}")
        self.total, self.done = total, 0

    def counting(self, perform: Callable[[T], R]) -> Callable[[T], R]:
        """The same, counted."""
        def performed(trial: T) -> R:
            self.done += 1
            if self.done % STEP == 0:
                self.show()
            return perform(trial)
        return performed

    def show(self) -> None:
        """How many so far."""
        figures = f"{self.done:,} of {self.total:,}"
        if self.live is not None:
            self.bar.update(self.task, completed=self.done, figures=figures)
        elif self.is_time_to_say():
            self.console.print(figures, highlight=False)


def results(console: Console, mode: Mode, seed: int, random: int) -> "Results":
    """The whole table and a sample of random instructions."""
    from oracle.descriptor_table import compare, places
    from oracle.long_table import long_compare, long_places
    from oracle.long_trials import long_sample
    from oracle.trials import sample
    long = mode is Mode.LONG
    processor: BareProcessor[Any, Any] = open_long_processor() if long else open_processor()
    with Watched(console, sum(1 for _ in (long_places if long else places)()) + random) as watched:
        perform = watched.counting(processor.perform)
        whole = (long_compare if long else compare)(perform)
        return whole, (long_sample if long else sample)(perform, seed, random) if random else None, processor.not_tried


def fail(message: str) -> None:
    """One line on standard error; could not run."""
    typer.echo(f"xenspec: {' '.join(message.split())}", err=True)
    raise typer.Exit(2)


def page(shown: RenderableType) -> str:
    """What is printed, as HTML."""
    console = Console(file=StringIO(), record=True, width=_WIDTH, highlight=False)
    console.print(shown)
    return console.export_html(inline_styles=True)
