"""Draws a counterexample as SVG: the page-table graph before the step, what changed, and where the rule broke.

Frames are boxes in columns, the root tables left and the data right; what domains hold (bases, TLB entries, walks) is the first
column.  Every arrow starts at a line of text in a box, so it needs no label; it runs between the columns, and above the boxes
where it passes a column.
"""
import textwrap
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import drawsvg

from oracle.counterexample import (
    Scene,
    broken,
    domain,
    domain_facts,
    entry_line,
    frame_facts,
    number,
    title,
    where,
)
from proofs.counterexample import Counterexample
from spec.abi import P
from spec.frames import is_table, mfn_of
from spec.kernel import CPU, RULES
from spec.x86.paging import THROUGH_XEN

FONT, SIZE, LETTER, LINE = "DejaVu Sans Mono, Menlo, Consolas, monospace", 12, 7.3, 17     # pixels
PAD, GAP, GUTTER, MARGIN, HEAD, LANE = 8, 22, 90, 24, 26, 8
WIDEST: Final = 46                          # letters in a line of a box
INK, SOFT, CHANGED, BROKEN, PAPER = "#222222", "#777777", "#b35900", "#c00000", "#ffffff"
FILLS: Final = {"domain": "#eef3fb", "table": "#f4f4f4", "data": "#eef8ee"}


@dataclass(slots=True)
class Line:
    """One line of a box; `to` are the frames that it leads to, before and after the step."""
    text: str
    changed: bool = False
    broken: bool = False
    to: tuple[int | None, int | None] = (None, None)
    head: bool = False


@dataclass(slots=True)
class Box:
    """A frame or a domain, with its place once it has one."""
    name: str
    fill: str
    lines: list[Line]
    frame: int | None = None
    broken: bool = False
    x: float = 0
    y: float = 0
    column: int = 0
    right: float = 0                        # the end of its column
    width: float = field(init=False)
    height: float = field(init=False)

    def __post_init__(self) -> None:
        self.width = 2 * PAD + LETTER * max(len(line.text) for line in self.lines)
        self.height = PAD + LINE * len(self.lines)


@dataclass(frozen=True, slots=True)
class Arrow:
    """From a line of a box to a frame's box."""
    source: Box
    line: int
    target: Box
    changed: bool
    gone: bool


# --- what is in the boxes ----------------------------------------------------------------------------------------------------

def both_states(before: dict[str, str], after: dict[str, str]) -> Iterator[tuple[str, Line]]:
    """A line for each fact; what the step changed shows both, or that there was none."""
    for name in dict.fromkeys([*before, *after]):
        was, now = before.get(name), after.get(name)
        if was == now:
            yield name, Line(was or "")
        elif was is None or now is None:
            yield name, Line(f"now: {now}" if was is None else f"no longer: {was}", changed=True)
        else:
            yield name, Line(f"{was} ⇒ {now}", changed=True)


def frame_box(scene: Scene, f: int) -> Box:
    """A frame with its facts and its entries."""
    facts = dict(both_states(frame_facts(scene, scene.before, f), frame_facts(scene, scene.after, f)))
    owner = facts.pop("owner")
    head = Line(f"frame {number(f)}, {owner.text}", changed=owner.changed, head=True)
    t = max(scene.before.type[f], scene.after.type[f])
    shown = scene.shown_entries(f)
    lines = [*wrapped([head, *facts.values()]), *(entry_row(scene, f, i) for i in shown)]
    if more := len(scene.entries(f)) - len(shown):
        lines.append(Line(f"… and {more} more entries"))
    return Box(f"frame {f}", "table" if is_table(scene.before, t) else "data", lines, f, scene.at("frame") == (f,))


def entry_row(scene: Scene, f: int, i: int) -> Line:
    """An entry: its index, where it leads, and its rights."""
    before, after = scene.before, scene.after
    was, now = entry_line(scene, before, f, i), entry_line(scene, after, f, i)
    changed = scene.changed("word", (f, i))
    here = scene.at("frame", "index") == (f, i)
    is_or_was = is_table(before, before.type[f]) or is_table(after, after.type[f])
    to = tuple(target(s, s.word[f, i]) if is_or_was else None for s in (before, after))
    return Line(f"[{i}] {was} ⇒ {now}" if changed else f"[{i}] {was}", changed, here, (to[0], to[1]))


def target(s: Any, e: int) -> int | None:
    """The frame to which a present entry or a translation leads."""
    return mfn_of(s, e) if e & P and not e & THROUGH_XEN else None


def domain_box(scene: Scene, d: int) -> Box | None:
    """What a domain holds, if it is anything."""
    facts = both_states(domain_facts(scene, scene.before, d), domain_facts(scene, scene.after, d))
    lines = [Line(domain(d), head=True)]
    for name, line in facts:
        line.to = (leads(scene.before, name, d), leads(scene.after, name, d))
        kind, _, tag = name.partition(" ")
        line.broken = bool(tag) and scene.at("dom", "tag") == (d, int(tag)) and kind == (
            "walk" if scene.c.broken == "TLB-11" else "tlb")
        lines += wrapped([line])
    here = scene.at("dom") == (d,)
    return Box(domain(d), "domain", lines, broken=here) if len(lines) > 1 or here else None


def leads(s: Any, name: str, d: int) -> int | None:
    """The frame to which what a domain holds leads."""
    kind, _, tag = name.partition(" ")
    if tag:
        return target(s, s.maps[kind][d, int(tag)])
    has, of = {"base": (s.has_base, s.base), "user_base": (s.has_user, s.user_base)}.get(kind, ({}, {}))
    return of[d] if has and has[d] else None


def processor_box(scene: Scene) -> Box | None:
    """The clocks of flushes, if they matter."""
    names = ("clock", "cr3_clock")
    if not (scene.at("cpu") or any(scene.changed(name, CPU) for name in names) or scene.keys("tlb") or scene.keys("walk")):
        return None
    words = {"clock": "whole flushes", "cr3_clock": "flushes but for global entries"}
    states = ({name: f"{words[name]}: {s.maps[name][CPU]}" for name in names} for s in (scene.before, scene.after))
    lines = [line for _, line in both_states(*states)]
    return Box("processor", "domain", [Line("processor", head=True), *lines], broken=bool(scene.at("cpu")))


def wrapped(lines: list[Line]) -> list[Line]:
    """The lines, none too long; an arrow starts at the first part."""
    out = []
    for line in lines:
        first, *rest = textwrap.wrap(line.text, WIDEST, subsequent_indent="  ") or [""]
        out.append(Line(first, line.changed, line.broken, line.to, line.head))
        out += [Line(part, line.changed, line.broken) for part in rest]
    return out


# --- where the boxes are -----------------------------------------------------------------------------------------------------

def columns(scene: Scene) -> list[list[Box]]:
    """The boxes from left to right: what domains hold, tables from the root down, data."""
    held = [box for d in scene.domains if (box := domain_box(scene, d))]
    processor = processor_box(scene)
    out: list[list[Box]] = [[*held, *([processor] if processor else [])], *([] for _ in range(scene.profile.root + 1))]
    for f in scene.frames:
        t = max((s.type[f] for s in (scene.before, scene.after) if is_table(s, s.type[f])), default=0)
        out[1 + scene.profile.root - t].append(frame_box(scene, f))
    return [column for column in out if column]


def place(boxes: list[list[Box]], top: float) -> tuple[float, float]:
    """Give every box its place; the width and the height of all."""
    x: float = MARGIN
    bottom = top
    for n, column in enumerate(boxes):
        y, right = top, x + max(box.width for box in column)
        for box in column:
            box.x, box.y, box.column, box.right = x, y, n, right
            y += box.height + GAP
        x = right + GUTTER
        bottom = max(bottom, y)
    return x, bottom                        # on the right, too, arrows turn back


def arrows(boxes: list[list[Box]]) -> Iterator[Arrow]:
    """Where the lines lead: before the step, and where that differs, after it."""
    flat = [box for column in boxes for box in column]
    frames = {box.frame: box for box in flat if box.frame is not None}
    for box in flat:
        for n, line in enumerate(box.lines):
            was, now = line.to
            if was in frames:
                yield Arrow(box, n, frames[was], changed=False, gone=was != now)
            if now in frames and now != was:
                yield Arrow(box, n, frames[now], changed=True, gone=False)


def passes(arrow: Arrow) -> bool:
    """It leads neither to its own column nor to the next."""
    return arrow.target.column - arrow.source.column not in (0, 1)


# --- drawing -----------------------------------------------------------------------------------------------------------------

def svg(c: Counterexample) -> str:
    """The picture, as an SVG document; the same for the same counterexample."""
    scene = Scene(c)
    boxes = columns(scene)
    place(boxes, 0)                         # now it is known which arrows pass a column
    lanes = [arrow for arrow in arrows(boxes) if passes(arrow)]
    width, bottom = place(boxes, MARGIN + 2 * HEAD + LANE * len(lanes))
    heading = title(c)
    letters = max(60, int((width - 2 * MARGIN) / LETTER))
    under = [line for part in caption(scene) for line in textwrap.wrap(part, letters)]
    width = max(width, 2 * MARGIN + LETTER * max(len(heading) * 1.2, *map(len, under)))
    height = bottom + LINE * len(under) + MARGIN
    drawing = drawsvg.Drawing(*rounded(width, height), font_family=FONT, role="img", aria_labelledby="title desc")
    drawing.append(drawsvg.Title(heading, id="title"))
    drawing.append(Description(" ".join(caption(scene)), id="desc"))
    drawing.append(drawsvg.Rectangle(0, 0, "100%", "100%", fill=PAPER))
    text(drawing, heading, MARGIN, MARGIN + SIZE, INK, size=SIZE * 1.2, bold=True)
    text(drawing, f"{c.profile}; before the step, with what it changed", MARGIN, MARGIN + SIZE + LINE + 4, SOFT)
    marks = {colour: marker(colour) for colour in (SOFT, CHANGED)}
    for box in (box for column in boxes for box in column):
        draw_box(drawing, box)
    landed: Counter[str] = Counter()
    for arrow in arrows(boxes):
        draw_arrow(drawing, arrow, landed[arrow.target.name], MARGIN + 2 * HEAD - LANE, lanes, marks)
        landed[arrow.target.name] += 1
    for n, line in enumerate(under):
        text(drawing, line, MARGIN, bottom + LINE * n + SIZE, INK)
    return str(drawing.as_svg()) + "\n"


class Description(drawsvg.Title):   # type: ignore[misc]
    """The element by which a picture is described to who can't see it."""
    TAG_NAME = "desc"


def caption(scene: Scene) -> list[str]:
    """What is seen, in sentences."""
    c = scene.c
    rule, at = RULES.get(c.broken), where(c)
    out = ["Each box is a frame, tables left of what they map.",
           "An arrow starts at the entry, base or cached translation that leads there; a dashed one is gone after the step.",
           f"Orange: what the step {c.rule} changes (was ⇒ is). Red: where the rule breaks.",
           f"Broken: {broken(c)}{f' at {at}' if at else ''}{f': {rule.sentence}' if rule else '.'}"]
    out += [f"Because: {c.because}."] if c.because else []
    return [*out, "Confirmed by a run on plain numbers." if c.confirmed else f"Not confirmed{f': {c.note}' if c.note else ''}."]


def text(drawing: Any, words: str, x: float, y: float, colour: str, size: float = SIZE, bold: bool = False) -> None:
    """One line of text."""
    drawing.append(drawsvg.Text(words, size, *rounded(x, y), fill=colour, font_weight="bold" if bold else "normal"))


def marker(colour: str) -> Any:
    """The head of an arrow."""
    head = drawsvg.Marker(-9, -4, 1, 4, scale=1, orient="auto", markerUnits="userSpaceOnUse")
    head.append(drawsvg.Lines(-9, -4, -9, 4, 0, 0, fill=colour, close=True))
    return head


def draw_box(drawing: Any, box: Box) -> None:
    """A box with its lines."""
    edge, thick = (BROKEN, 3) if box.broken else (CHANGED, 1.5) if any(line.changed for line in box.lines) else (SOFT, 1)
    drawing.append(drawsvg.Rectangle(*rounded(box.x, box.y, box.width, box.height), rx=4, fill=FILLS[box.fill], stroke=edge,
                                     stroke_width=thick))
    for n, line in enumerate(box.lines):
        top = box.y + PAD / 2 + LINE * n
        if line.broken:
            drawing.append(drawsvg.Rectangle(*rounded(box.x + 3, top, box.width - 6, LINE), fill="none", stroke=BROKEN,
                                             stroke_width=2))
        text(drawing, line.text, box.x + PAD, top + SIZE, CHANGED if line.changed else INK, bold=line.head)


def draw_arrow(drawing: Any, arrow: Arrow, nth: int, above: float, lanes: list[Arrow], marks: dict[str, Any]) -> None:
    """An arrow, the nth to its target: to the next column a curve, to its own one a turn back, to any other a lane above all."""
    colour = CHANGED if arrow.changed or arrow.gone else SOFT
    path = drawsvg.Path(fill="none", stroke=colour, stroke_width=1.8 if arrow.changed else 1.2, marker_end=marks[colour],
                        **({"stroke_dasharray": "5 4"} if arrow.gone else {}))
    a, b = arrow.source, arrow.target
    y, to_y = a.y + PAD / 2 + LINE * (arrow.line + 0.5), b.y + min(10 + 6 * nth, b.height - 4)
    path.M(*rounded(a.x + a.width, y)).H(*rounded(a.right))
    if passes(arrow):
        n = lanes.index(arrow)
        aside, lane = LANE + 5 * n % (GUTTER - 30), above + LANE * n
        path.H(*rounded(a.right + aside)).V(*rounded(lane)).H(*rounded(max(4, b.x - GUTTER / 3 - aside / 2)))
        path.V(*rounded(to_y)).H(*rounded(b.x))
    elif a.column == b.column:
        bend = a.right + GUTTER * 0.6 + 4 * nth
        path.C(*rounded(bend, y, bend, to_y, a.right, to_y)).H(*rounded(b.x + b.width))
    else:
        path.C(*rounded(a.right + GUTTER / 2, y, b.x - GUTTER / 2, to_y, b.x, to_y))
    drawing.append(path)


def rounded(*numbers: float) -> tuple[float, ...]:
    """Coordinates as they are written, to a tenth of a pixel."""
    return tuple(round(n, 1) for n in numbers)
