"""Shows the descriptor table: to people as a few tables of what is allowed to whom, to programs every cell."""
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import groupby
from typing import Any, Final

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table as RichTable
from rich.text import Text

from oracle import report
from oracle.bare_difference import AnyDifference
from oracle.descriptor_table import Column, Table
from oracle.trials import Sample

_FAULT: Final = "#"
_SHOWN: Final = 20                          # differences that are printed

Trials = Mapping[tuple[int, int, int], str]     # CPL, ring that it leads to, RPL -> how it ended
AnyColumn = Column[Any]
Cells = dict[tuple[int, bool, int, str], dict[tuple[int, int, int], str]]


def cells_of(table: Table) -> Cells:
    """The ends of the trials by kind, presence, DPL and column."""
    cells: Cells = {}
    for place, end in table.ends.items():
        cells.setdefault((place.kind, place.present, place.dpl, place.column.name), {})[place.cpl, place.to, place.rpl] = end
    return cells


# --- one cell, in words ------------------------------------------------------------------------------------------------------

def is_fault(end: str) -> bool:
    """The processor refused."""
    return end.startswith(_FAULT)


def cell_text(column: AnyColumn, present: Trials, absent: Trials) -> str:
    """To whom a use is allowed, and what the others get; then what becomes of it if the descriptor is not present."""
    text = trials_text(column, present)
    instead = {key: end for key, end in absent.items() if end != present[key]}
    if instead:
        allowed = {key for key, end in present.items() if not is_fault(end)}
        kinds = "/".join(sorted(set(instead.values())))
        text += f"; absent {kinds}" if instead.keys() == allowed else f"; absent: {trials_text(column, absent)}"
    return text


def trials_text(column: AnyColumn, trials: Trials) -> str:
    """Where the trials went, the most frequent fault last."""
    faults = Counter(end for end in trials.values() if is_fault(end))
    usual = max(faults, key=lambda end: (faults[end], end), default="")
    words = []
    for end in sorted({plain_end(end) for end in trials.values()} - {usual}, key=lambda end: (is_fault(end), end)):
        where = where_text(column, {key for key, other in trials.items() if plain_end(other) == end})
        words.append(f"{'' if end == 'ok' else end + ' '}{where}".strip())
    return ", ".join([*words, usual if not words else f"else {usual}"] if usual else words)


def plain_end(end: str) -> str:
    """How a trial ended, wherever it led."""
    return "ok" if end.startswith("→") else end


def where_text(column: AnyColumn, keys: set[tuple[int, int, int]]) -> str:
    """CPLs, with the RPLs of each."""
    if len(keys) == len(column.rings) * len(column.rpls):
        return "all"
    by_rings: dict[tuple[int, int], list[int]] = {}
    for cpl, to, rpl in sorted(keys):
        by_rings.setdefault((cpl, to), []).append(rpl)
    if len(column.rpls) > 1 and all(rpls == [to] for (_, to), rpls in by_rings.items()) and len(by_rings) > 1:
        return f"{rings_text(sorted(by_rings))} with RPL = {'ring' if is_switch(column) else 'CPL'}"
    parts = []
    for rpls in sorted({tuple(found) for found in by_rings.values()}):
        rings = rings_text([ring for ring, found in sorted(by_rings.items()) if tuple(found) == rpls])
        parts.append(rings if rpls == column.rpls else f"{rings} RPL {span(rpls)}")
    return " or ".join(parts)


def is_switch(column: AnyColumn) -> bool:
    """It leads from one ring to another by itself."""
    return any(cpl != to for cpl, to in column.rings)


def rings_text(rings: Sequence[tuple[int, int]]) -> str:
    """CPLs, or pairs of rings."""
    if all(cpl == to for cpl, to in rings):
        return f"CPL {span([cpl for cpl, _ in rings])}"
    return ", ".join(f"{span([cpl for cpl, _ in pairs])}→{to}" for to, pairs in
                     ((to, list(pairs)) for to, pairs in groupby(sorted(rings, key=lambda r: (r[1], r[0])), key=lambda r: r[1])))


def span(numbers: Sequence[int]) -> str:
    """Numbers in order, as ranges."""
    if len(numbers) > 1 and list(numbers) == list(range(numbers[0], numbers[-1] + 1)):
        return f"{numbers[0]}-{numbers[-1]}"
    return ",".join(map(str, numbers))


# --- tables ------------------------------------------------------------------------------------------------------------------

def table_report(table: Table) -> RenderableType:
    """The tables, what differs, and the verdict."""
    cells = cells_of(table)
    used = {place.column for place in table.ends}
    groups: dict[str, list[AnyColumn]] = {}
    for column in table.sheet.columns:
        if column in used:
            groups.setdefault(column.group, []).append(column)
    parts: list[RenderableType] = []
    for title, columns in groups.items():
        parts += [group_table(title, columns, cells, table.sheet.kinds), legend(columns), ""]
    return Group(*parts, *differences_report(table.differences), verdict(len(table.ends), table.differences, table.seconds))


def legend(columns: Iterable[AnyColumn]) -> RenderableType:
    """What the columns are."""
    return Text("   ".join(f"{column.name}: {column.what}." for column in columns), "dim")


def group_table(title: str, columns: Sequence[AnyColumn], cells: Cells, kinds_of: Sequence[str]) -> RichTable:
    """A row for each kind and DPL, rows that say the same together."""
    rows: dict[tuple[tuple[str, ...], ...], list[int]] = {}
    for kind in range(len(kinds_of)):
        texts = tuple(tuple(cell_text(c, cells[kind, True, dpl, c.name], cells[kind, False, dpl, c.name]) for c in columns)
                      for dpl in range(4))
        rows.setdefault(texts, []).append(kind)
    shown = report.plain_table("descriptor", "DPL", *(column.name for column in columns), title=title)
    most = max(rows.values(), key=len)
    for texts, kinds in sorted(rows.items(), key=lambda row: (row[1] is most, min(row[1]))):
        name = "all others" if kinds is most else kinds_text(kinds, kinds_of)
        lines = sorted({line: [dpl for dpl in range(4) if texts[dpl] == line] for line in texts}.items(), key=lambda at: at[1])
        for number, (line, dpls) in enumerate(lines):
            shown.add_row("" if number else name, "any" if len(dpls) == 4 else span(dpls), *map(coloured, line),
                          end_section=number == len(lines) - 1)
    return shown


def kinds_text(kinds: Sequence[int], names: Sequence[str]) -> str:
    """Kinds in a row, those that are accessed or not together."""
    both = {kind for kind in kinds if kind >= 16 and kind ^ 1 in kinds}
    return ", ".join(names[kind].replace(", accessed", " (accessed)") for kind in kinds if kind not in both or not kind & 1)


def coloured(text: str) -> Text:
    """Green where something is allowed."""
    return Text(text, "dim" if is_fault(text) else "green")


def sample_report(found: Sample) -> RenderableType:
    """Random trials: how those of each family ended, what differs, and the verdict."""
    shown = report.plain_table("random trials", ">how many", "ended", title="Single instructions at random")
    for family, ends in found.ends.items():
        shown.add_row(family, f"{sum(ends.values()):,}", ", ".join(f"{end} {n:,}" for end, n in ends.most_common()))
    return Group(shown, "", *differences_report(found.differences), verdict(found.trials, found.differences, found.seconds))


def differences_report(differences: Sequence[AnyDifference]) -> list[RenderableType]:
    """The trials that differ, and what is known of them."""
    parts: list[RenderableType] = []
    found = [d for d in differences if not d.declared]
    if found:
        shown = report.plain_table("trial", "field", "the specification says", "the processor does", title="Differences")
        for d in found[:_SHOWN]:
            for field in d.fields:
                says = d.says if isinstance(d.says, str) else show(getattr(d.says, field))
                shown.add_row(escape(d.place), field, escape(says), escape(show(getattr(d.does, field, d.does.vector))))
        parts.append(shown)
        if len(found) > _SHOWN:
            parts.append(Text(f"and {len(found) - _SHOWN} more"))
    what = {d.declared: d.what for d in differences if d.declared}
    for name, n in Counter(d.declared for d in differences if d.declared).items():
        parts.append(Text(f"declared, {n} trials: {what[name]}", "yellow"))
    return parts


def show(value: Any) -> str:
    """Numbers in hexadecimal."""
    if isinstance(value, int):
        return str(value) if -10 < value < 32 else f"{value:#x}"
    if isinstance(value, dict):
        return " ".join(f"{key:#x}:{show(word)}" for key, word in value.items())
    return " ".join(map(show, value))


def verdict(trials: int, differences: Sequence[AnyDifference], seconds: float) -> Text:
    """The result in one line."""
    found = sum(not d.declared for d in differences)
    word = Text(f"{found} differ", "bold red") if found else Text("the processor does what the specification says", "bold green")
    return Text.assemble(word, f": {trials:,} trials in {seconds:.1f} s")


# --- documents ---------------------------------------------------------------------------------------------------------------

def table_document(table: Table) -> dict[str, Any]:
    """Every cell, with the CPL, ring and RPL of each trial in it; and the differences."""
    return {"summary": summary(len(table.ends), table.differences, table.seconds),
            "columns": [{"name": c.name, "what": c.what, "group": c.group} for c in table.sheet.columns],
            "cells": [{"descriptor": table.sheet.kinds[kind], "kind": kind, "present": present, "dpl": dpl, "use": name,
                       "ends": ends_of(trials)}
                      for (kind, present, dpl, name), trials in cells_of(table).items()],
            "differences": [difference_document(d) for d in table.differences]}


def sample_document(found: Sample) -> dict[str, Any]:
    """The random trials."""
    return {"summary": summary(found.trials, found.differences, found.seconds),
            "families": [{"name": family, "ends": dict(sorted(ends.items()))} for family, ends in found.ends.items()],
            "differences": [difference_document(d) for d in found.differences if not d.declared]}


def ends_of(trials: Trials) -> dict[str, list[list[int]]]:
    """How trials ended -> [CPL, ring, RPL] of each that ended so."""
    ends: dict[str, list[list[int]]] = {}
    for key, end in sorted(trials.items()):
        ends.setdefault(end, []).append(list(key))
    return ends


def summary(trials: int, differences: Sequence[AnyDifference], seconds: float) -> dict[str, Any]:
    """The figures."""
    declared = sum(bool(d.declared) for d in differences)
    return {"trials": trials, "differences": len(differences) - declared, "declared": declared, "seconds": round(seconds, 1)}


def difference_document(d: AnyDifference) -> dict[str, Any]:
    """One difference."""
    trial = {**asdict(d.trial), "code": d.trial.code.hex()}
    return {"at": d.place, "fields": list(d.fields), "declared": d.declared, "trial": trial,
            "says": d.says if isinstance(d.says, str) else asdict(d.says), "does": asdict(d.does)}


