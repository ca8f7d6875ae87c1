"""The command `xenspec table`: what the processor does in every case, held against the specification's pure functions."""
from io import StringIO
from typing import Annotated, Any

import typer
from rich.console import Console, Group, RenderableType
from rich.text import Text

from oracle import report
from oracle.files import check_writable, write_whole
from oracle.targets import HarnessError, open_processor

_WIDTH = 180                                # of a page, and where there is no terminal

table_app = typer.Typer(help="Compare the processor with the specification, case by case.", rich_markup_mode=None)


@table_app.callback()
def table() -> None:
    """Compare the processor with the specification, case by case."""


@table_app.command("descriptors")
def descriptors(
    random: Annotated[int, typer.Option(help="Also that many random single instructions.", min=0, metavar="N")] = 0,
    seed: Annotated[int, typer.Option(help="Of the random instructions.", min=0, metavar="N")] = 0,
    json_path: Annotated[str | None, typer.Option("--json", help="Write the result as JSON; '-' is standard output.",
                                                  metavar="FILE")] = None,
    html: Annotated[str | None, typer.Option(help="Write the tables as a page.", metavar="FILE")] = None,
) -> None:
    """Every descriptor in every use at every privilege: what the processor does, and whether the specification agrees."""
    from oracle.descriptor_table import compare  # (other commands do without them)
    from oracle.table_report import sample_document, sample_report, table_document, table_report
    from oracle.trials import sample
    try:
        for path in (json_path, html):
            if path not in (None, "-"):
                check_writable(path or "")
        processor = open_processor()
        whole = compare(processor)
        shown: list[RenderableType] = [table_report(whole)]
        document: dict[str, Any] = {"table": table_document(whole), "not_tried": dict(processor.not_tried)}
        differences = list(whole.differences)
        if random:
            found = sample(processor, seed, random)
            shown += ["", sample_report(found)]
            document["random"] = {"seed": seed, **sample_document(found)}
            differences += found.differences
        shown.append(Text("\n".join(f"not tried: {what} ({why})" for what, why in processor.not_tried.items()), "dim"))
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


def fail(message: str) -> None:
    """One line on standard error; could not run."""
    typer.echo(f"xenspec: {' '.join(message.split())}", err=True)
    raise typer.Exit(2)


def page(shown: RenderableType) -> str:
    """What is printed, as HTML."""
    console = Console(file=StringIO(), record=True, width=_WIDTH, highlight=False)
    console.print(shown)
    return console.export_html(inline_styles=True)
