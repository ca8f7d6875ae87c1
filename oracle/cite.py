"""Finds a rule by its id or by words, and says where it is stated, used, tested and proved; a rule without these is a hole."""
import ast
import difflib
import functools
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Final

from rich.console import Group, RenderableType
from rich.text import Text

import refmodel
import spec.rules
from oracle.coverage import Unreached, unreached_list
from oracle.proved import Proofs, instead, proof_lines, proofs_document, proofs_of
from oracle.report import plain_table
from spec.kernel import RULES, Conjunct, Rule

ID: Final = re.compile(r"[A-Z][A-Z0-9]*-\d+(\.\d+)?")
_CITED: Final = re.compile(r"(?<![\w-])[A-Z][A-Z0-9]*-\d+(?:\.\d+)?(?![\w-]|\.\d)")
ROOT: Final = Path(refmodel.__file__).parent.parent
MODULES: Final = len(spec.rules.MODULES)        # of the specification; importing them has entered their rules
# What needs no user: a theorem and a condition of flow are there to be true, and the audit runs every invariant and count.
NO_SOLVER: Final = "not known: the solver is not installed (pip install 'xenspec[proofs]')"
RUN_BY_AUDIT: Final = frozenset({"invariant", "count"})


class NoSuchRule(LookupError):
    """No rule has this id, or says this; one line."""


@dataclass(frozen=True, slots=True)
class Place:
    """A line of the source tree."""
    file: str
    line: int
    inside: str = ""                        # the function

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" + (f" ({self.inside})" if self.inside else "")


@dataclass(frozen=True, slots=True)
class Citation:
    """A rule with all that is known of it.  `None` for tests: there is no source tree here; for proofs: there is no solver."""
    rule: Rule
    conjunct: Conjunct | None               # if it was asked for by id
    users: tuple[Place, ...]                # what performs it: hypercall handlers, other rules
    history: tuple[str, ...]                # bugs of the real Xen that broke it
    tests: tuple[Place, ...] | None
    proofs: Proofs | None
    unreached: tuple[Unreached, ...] = ()   # ways that no program decides its conjuncts, with reasons

    @property
    def holes(self) -> list[str]:
        """Which of implementation, test and proof there is none of."""
        used = self.users or self.rule.kind in RUN_BY_AUDIT | {"theorem", "flow"}
        unproved = self.proofs is not None and not self.proofs.all
        return [name for name, missing in (("implementation", not used), ("test", self.tests == ()), ("proof", unproved))
                if missing]

    @property
    def is_excused(self) -> bool:
        """It has no proof by its nature."""
        return "proof" in self.holes and bool(instead(self.rule))


# --- finding -----------------------------------------------------------------------------------------------------------------

def cite(id: str) -> Citation:
    """The rule of this id, or whose conjunct has it.  NoSuchRule names the closest ones."""
    id = id.upper()
    rule = RULES.get(id) or next((r for r in RULES.values() if any(c.id == id for c in r.conjuncts)), None)
    if rule is None:
        known = [*RULES, *(c.id for r in RULES.values() for c in r.conjuncts)]
        close = difflib.get_close_matches(id, known, n=4, cutoff=0.6)
        raise NoSuchRule(f"there is no rule {id}" + (f"; close to it: {', '.join(close)}" if close else ""))
    return citation(rule, next((c for c in rule.conjuncts if c.id == id), None))


def citation(rule: Rule, conjunct: Conjunct | None = None) -> Citation:
    """All that is known of a rule."""
    ids = {rule.id, *(c.id for c in rule.conjuncts)}
    history = tuple(f"{bug['id']} ({bug['date']}): {bug['what']}" for bug in historic_bugs() if ids & {*bug["rules"]})
    unreached = tuple(u for u in unreached_list() if u.conjunct in ({conjunct.id} if conjunct else ids))
    users = tuple(users_of(rule))
    proofs = proofs_of(rule, {place.inside for place in users})
    return Citation(rule, conjunct, users, history, _mentions("tests", ids), proofs, unreached)


@functools.cache
def historic_bugs() -> list[dict[str, Any]]:
    """The bugs of `spec/historic.json`, each with the rules that it broke."""
    bugs: list[dict[str, Any]] = json.loads(resources.files("spec").joinpath("historic.json").read_text(encoding="utf-8"))
    return bugs


def search(words: Sequence[str]) -> list[tuple[int, Rule]]:
    """The rules that the words fit, with a score, the best first.  NoSuchRule if there is none."""
    wanted = [word.lower() for text in words for word in text.split()]
    scored = [(sum(_score(rule, word) for word in wanted), rule) for rule in RULES.values()]
    found = sorted((each for each in scored if each[0]), key=lambda each: -each[0])
    if not found:
        raise NoSuchRule(f"no rule says anything of {' '.join(wanted)}")
    return found


def _score(rule: Rule, word: str) -> int:
    """How much a rule is about a word."""
    conjuncts = " ".join(c.text for c in rule.conjuncts)
    fields = ((8, f"{rule.id} {rule.name}"), (4, rule.sentence), (2, conjuncts), (1, rule.source))
    return sum(weight for weight, text in fields if word in text.lower())


def all_citations() -> list[Citation]:
    """Every rule, in the order in which they were entered."""
    return [citation(rule) for rule in RULES.values()]


# --- where it is used --------------------------------------------------------------------------------------------------------

def users_of(rule: Rule) -> Iterator[Place]:
    """The functions of the specification and of the model that perform a rule or ask it; a check of the model is its own."""
    if rule.kind == "check":
        yield Place(rule.file, rule.line, rule.name)
    for place in _uses().get(rule.name, ()):
        if place.inside != rule.name:
            yield place


@functools.cache
def _uses() -> dict[str, list[Place]]:
    """Name of a rule's function -> where the sources of `spec` and `refmodel` use it."""
    names = {rule.name for rule in RULES.values()}
    found: dict[str, list[Place]] = {}
    for package in ("spec", "refmodel"):
        for path in sorted((ROOT / package).rglob("*.py")):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
                for node in ast.walk(function):
                    if not isinstance(node, ast.Name | ast.Attribute):
                        continue
                    name = node.id if isinstance(node, ast.Name) else node.attr
                    if name in names:
                        places = found.setdefault(name, [])
                        if not any(p.inside == function.name for p in places):
                            places.append(Place(path.relative_to(ROOT).as_posix(), node.lineno, function.name))
    return found


def _mentions(folder: str, ids: set[str]) -> tuple[Place, ...] | None:
    """Where the files of a folder name one of the ids."""
    index = _index(folder)
    if index is None:
        return None
    return tuple(sorted({place for id in ids for place in index.get(id, ())}, key=lambda p: (p.file, p.line)))


@functools.cache
def _index(folder: str) -> dict[str, list[Place]] | None:
    """Id of a rule or conjunct -> where the files of a folder name it."""
    if not (ROOT / folder).is_dir():
        return None
    found: dict[str, list[Place]] = {}
    for path in sorted((ROOT / folder).rglob("*.py")):
        if path.parent == ROOT / "tests" / "lint":      # there, ids are samples
            continue
        for n, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            for id in _CITED.findall(line):
                found.setdefault(id, []).append(Place(path.relative_to(ROOT).as_posix(), n))
    return found


# --- for people --------------------------------------------------------------------------------------------------------------

def citation_report(c: Citation) -> RenderableType:
    """A rule on one screen."""
    rule = c.rule
    text = Text.assemble((rule.id, "bold"), f"  {rule.kind}  {rule.name}\n\n  {rule.sentence}\n\n")
    for each in rule.conjuncts:
        text.append(f"  {each.id:10} {each.text}  ({rule.file}:{each.line})\n", "reverse" if each == c.conjunct else "")
    facts = [("source", rule.source), ("stated", f"{rule.file}:{rule.line}"), ("fingerprint", rule.fingerprint),
             ("keys", ", ".join(rule.keys)), ("used by", listed(c.users, "nothing")),
             ("tested", listed(c.tests, "nowhere by its id")),
             ("proved", NO_SOLVER if c.proofs is None else "\n".join(proof_lines(c.proofs, rule))),
             ("broken by", "\n".join(c.history)), ("unreached", "\n".join(excuses(c.unreached)))]
    table = plain_table("", "")
    table.show_header = False
    for name, value in facts:
        if value:
            table.add_row(f"  {name}", value)
    return Group(text, table)


def excuses(unreached: Sequence[Unreached]) -> list[str]:
    """What no program decides, as the list of `oracle/unreached.json` has it: one line for each reason."""
    found: dict[tuple[str, str], list[Unreached]] = {}
    for u in unreached:
        found.setdefault((u.way, u.reason), []).append(u)
    lines = []
    for (way, reason), them in found.items():
        conjuncts, profiles = sorted({u.conjunct for u in them}), sorted({u.profile for u in them})
        lines.append(f"{', '.join(conjuncts)} never {way} by programs on {' and '.join(profiles)}: {reason}")
    return lines


def listed(places: Sequence[Place] | None, none: str) -> str:
    """Places one below the other."""
    if places is None:
        return "not known: there is no source tree here"
    return "\n".join(map(str, places)) or none


def search_report(ranked: Sequence[tuple[int, Rule]], most: int = 12) -> RenderableType:
    """The rules that words fit, the best first."""
    table = plain_table("rule", "kind", "sentence")
    for _, rule in ranked[:most]:
        table.add_row(rule.id, rule.kind, rule.sentence)
    more = f"and {len(ranked) - most} more" if len(ranked) > most else ""
    return Group(table, Text(more, "dim")) if more else table


def holes_report(holes: Sequence[Citation]) -> RenderableType:
    """The rules that lack something, then those that have no proof by their nature, together; and how many lack what."""
    table = plain_table("rule", "kind", "has no", "sentence")
    excused: dict[str, list[str]] = {}
    for c in holes:
        if c.is_excused:
            excused.setdefault(instead(c.rule), []).append(c.rule.id)
        rest = [hole for hole in c.holes if not (hole == "proof" and c.is_excused)]
        if rest:
            table.add_row(c.rule.id, c.rule.kind, ", ".join(rest), c.rule.sentence)
    parts: list[RenderableType] = [table] if table.row_count else []
    for why, ids in excused.items():
        parts.append(Text.assemble(("no proof of ", "bold"), f"{', '.join(ids)}\n  {why}\n"))
    counts = [f"{kind} {sum(kind in c.holes for c in holes)}" for kind in ("implementation", "test", "proof")]
    by_nature = f" ({n} by their nature)" if (n := sum(map(len, excused.values()))) else ""
    return Group(*parts, Text(f"rules: {len(RULES)}; holes: {', '.join(counts)}{by_nature}"))


# --- as a document -----------------------------------------------------------------------------------------------------------

def document(c: Citation) -> dict[str, Any]:
    """A citation as JSON."""
    rule = c.rule
    return {
        "id": rule.id, "kind": rule.kind, "sentence": rule.sentence, "source": rule.source, "name": rule.name, "file": rule.file,
        "line": rule.line, "fingerprint": rule.fingerprint, "keys": list(rule.keys),
        "conjuncts": [{"id": each.id, "text": each.text, "line": each.line} for each in rule.conjuncts],
        "asked": c.conjunct.id if c.conjunct else rule.id, "users": _texts(c.users), "tests": _texts(c.tests),
        "proofs": proofs_document(c.proofs, rule), "history": list(c.history), "holes": c.holes,
        "unreached": [{"profile": u.profile, "conjunct": u.conjunct, "way": u.way, "reason": u.reason} for u in c.unreached]}


def _texts(places: Sequence[Place] | None) -> list[str] | None:
    return None if places is None else [str(place) for place in places]
