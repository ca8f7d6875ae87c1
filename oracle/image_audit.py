"""Audits the memory of a real Xen: what its frame table claims, held against what its page tables say."""
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.text import Text

from oracle import report
from oracle.files import Buffer
from oracle.targets import HarnessError, read_image
from refmodel import Imported, Violation, audited, imported
from refmodel.imported import MATTERS, REASONS
from spec.abi import DOMID_IO, DOMID_XEN, TYPE_NAMES
from spec.kernel import RULES
from spec.vocabulary import FrameView, Image

OWNERS = {DOMID_XEN: "Xen", DOMID_IO: "devices"}


@dataclass(frozen=True, slots=True)
class ImageAudit:
    """An image, the state that it claims, and the rules that this state violates."""
    image: Image
    claimed: Imported
    violations: list[Violation]
    seconds: float

    def census(self) -> Counter[tuple[str, str]]:
        """How many frames in use each owner has of each type."""
        return Counter((owner_name(v.owner), type_name(v)) for v in self.image.table)


def audit_image(path: Path) -> ImageAudit:
    """Read, import and audit a RAM file.  HarnessError if it is not the memory of a Xen that we can read."""
    try:
        return audit_memory(path.read_bytes())
    except HarnessError as e:
        raise HarnessError(f"{path}: {e}") from e


def audit_memory(ram: Buffer) -> ImageAudit:
    """The same of a machine's memory."""
    start = time.perf_counter()
    image = read_image(ram)
    claimed = imported(image)
    violations = audited(claimed)
    return ImageAudit(image, claimed, violations, time.perf_counter() - start)


def owner_name(owner: int) -> str:
    """What a report calls an owner."""
    return OWNERS.get(owner, f"domain {owner}")


def kinds(v: Violation) -> tuple[str, ...]:
    """The kinds of a violation's key; of what is no rule's, none."""
    return RULES[v.rule].keys if v.rule in RULES else ()


def type_name(v: FrameView) -> str:
    """What a report calls a frame's type: that of an idle frame is nobody's business."""
    return TYPE_NAMES[v.type] if v.type_count else "idle"


# --- what is printed ---------------------------------------------------------------------------------------------------------

def image_report(found: ImageAudit) -> RenderableType:
    """What is in use, what Xen holds itself, what was left out, and which rules are violated where."""
    used, entries = len(found.image.table), sum(w & 1 for words in found.image.words.values() for w in words)
    shown: list[RenderableType] = [
        Text(f"{found.image.frames} frames, {used} in use; {len(found.image.words)} page tables with {entries} entries; "
             f"{found.seconds:.1f} s"), census_table(found)]
    references, unmodelled = found.claimed.counts()
    shown += named("references that Xen itself holds", references, REASONS)
    shown += named("not in the specification", unmodelled, MATTERS)
    if not found.violations:
        return Group(*shown, Text("nothing found: every invariant holds at every key", "bold green"))
    views = {v.mfn: v for v in found.image.table}
    table = report.plain_table("rule", "at", "frame", "what")
    for v in found.violations:
        about = summary(views.get(v.key[0])) if kinds(v)[:1] == ("frame",) else ""
        table.add_row(v.rule, ", ".join(f"{k:#x}" for k in v.key), about, escape(v.text))
    return Group(*shown, table, Text(f"{len(found.violations)} violations", "bold red"))


def census_table(found: ImageAudit) -> RenderableType:
    """Frames in use by owner and type."""
    table = report.plain_table("owner", "type", "frames")
    for (owner, kind), n in sorted(found.census().items()):
        table.add_row(owner, kind, str(n))
    return table


def named(title: str, counts: Mapping[Any, int], reasons: Mapping[Any, str]) -> list[RenderableType]:
    """A table of what was counted, with the reasons; nothing if there is nothing."""
    if not counts:
        return []
    table = report.plain_table(title, "how many", "why")
    for kind, n in sorted(counts.items()):
        table.add_row(kind, str(n), reasons[kind])
    return [table]


def summary(v: FrameView | None) -> str:
    """What the frame table says of a frame, in a few words."""
    if v is None:
        return "free"
    marks = [name for name in ("allocated", "xen_heap", "validated", "pinned", "partial") if getattr(v, name)]
    return ", ".join([f"{owner_name(v.owner)}'s", TYPE_NAMES[v.type], f"{v.type_count} typed of {v.count}", *marks]
                     + ([f"linear {v.linear}"] if v.linear else []))


# --- what is written ---------------------------------------------------------------------------------------------------------

def image_document(found: ImageAudit) -> dict[str, Any]:
    """The audit as JSON: each violation with what the frame table says of the frame, and with the entry."""
    references, unmodelled = found.claimed.counts()
    return {
        "summary": {"violations": len(found.violations), "frames": found.image.frames, "in_use": len(found.image.table),
                    "page_tables": len(found.image.words), "seconds": round(found.seconds, 2)},
        "frames": [{"owner": owner, "type": kind, "frames": n} for (owner, kind), n in sorted(found.census().items())],
        "xen_holds": [{"kind": kind, "frames": n, "why": REASONS[kind]} for kind, n in sorted(references.items())],
        "references": [{"frame": r.mfn, "kind": r.kind, "typed": r.typed, "plain": r.plain} for r in found.claimed.references],
        "not_modelled": [{"kind": kind, "count": n, "why": MATTERS[kind]} for kind, n in sorted(unmodelled.items())],
        "violations": [violation_document(v, found) for v in found.violations]}


def violation_document(v: Violation, found: ImageAudit) -> dict[str, Any]:
    """One violation."""
    out: dict[str, Any] = {"rule": v.rule, "key": list(v.key), "text": v.text}
    if kinds(v)[:1] == ("frame",):
        view = next((t for t in found.image.table if t.mfn == v.key[0]), None)
        out["frame"] = None if view is None else asdict(view)
    if kinds(v) == ("frame", "index"):
        words = found.image.words.get(v.key[0])
        out["entry"] = {"index": v.key[1], "value": 0 if words is None else words[v.key[1]]}
    return out
