"""A counterexample for people: the step, the frames, entries and translations that matter, what changed, and what broke."""
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

from rich.console import Group, RenderableType
from rich.text import Text

from oracle import report
from proofs.counterexample import Counterexample
from refmodel.dump import load_state
from refmodel.state import Change, ConcreteState
from spec.abi import AVAIL_HIGH, DOMID_XEN, GUEST_KERNEL, L1, NOBODY, NX, PCD, PSE, PWT, RW, TYPE_NAMES, US, WRITABLE, A, D, G, P
from spec.frames import is_table, mfn_of
from spec.kernel import CPU, RULES, SCHEMA, DomId, Index
from spec.profile import PROFILES, Profile
from spec.tables import is_xen_slot
from spec.x86.paging import THROUGH_XEN
from spec.x86.tlb import is_live, is_walking

SHOWN: Final = 24                           # entries of one frame that are shown
FLAGS: Final = ((P, "P"), (RW, "RW"), (US, "US"), (PWT, "PWT"), (PCD, "PCD"), (A, "A"), (D, "D"), (PSE, "PSE"), (G, "G"))


# --- words -------------------------------------------------------------------------------------------------------------------

def domain(d: int) -> str:
    """A domain's name."""
    return {NOBODY: "nobody", DOMID_XEN: "Xen"}.get(d, f"dom{d}")


def type_name(t: int) -> str:
    """A frame type's name."""
    return "WRITABLE" if t == WRITABLE else TYPE_NAMES[t] if t < len(TYPE_NAMES) else f"type {t}"


def number(n: int) -> str:
    """Small numbers in decimal, words in hexadecimal."""
    return str(n) if abs(n) < 4096 else f"{n:#x}"


def flags(profile: Profile, e: int, level: int, avail: str = "AVAIL") -> str:
    """The bits of an entry that are set, by their manual names."""
    names = [("PAT" if bit == PSE and level == L1 else name) for bit, name in FLAGS if e & bit]
    names += [avail] if e & THROUGH_XEN else []
    names += ["AVAIL"] if e & (0xE00 ^ THROUGH_XEN) and "AVAIL" not in names else []
    if profile.word_bits == 64:
        names += ["GUEST_KERNEL"] if e & GUEST_KERNEL else []
        names += ["AVAIL_HIGH"] if e & (AVAIL_HIGH ^ GUEST_KERNEL) else []
        names += ["NX"] if e & NX else []
    return " ".join(names)


def entry(profile: Profile, e: int, level: int) -> str:
    """An entry of a table of this level."""
    if e & P == 0:
        return "empty" if e == 0 else f"not present, {e:#x}"
    return f"frame {number((e >> 12) & profile.mfn_mask)} {flags(profile, e, level)}"


def translation(profile: Profile, e: int) -> str:
    """A cached translation, or a walk on its way."""
    return f"frame {number((e >> 12) & profile.mfn_mask)} {flags(profile, e, L1, 'through-Xen')}" if e & P else "none"


def value(profile: Profile, kind: str, n: int, level: int = L1) -> str:
    """A value, or a part of a key, in the words of its kind."""
    if kind == "dom":
        return domain(n)
    if kind == "type":
        return type_name(n)
    if kind == "word":
        return entry(profile, n, level) if n & P else number(n)
    if kind == "bool":
        return "yes" if n else "no"
    return number(n)


def tag_name(tag: int) -> str:
    """What a cached translation is found by."""
    return f"page {number(tag >> 1)}{' (fetch)' if tag & 1 else ''}"


# --- the scene ---------------------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Scene:
    """A counterexample with its states before and after the step."""
    c: Counterexample

    @property
    def profile(self) -> Profile:
        """Whose rules it is about."""
        return PROFILES[self.c.profile]

    @cached_property
    def before(self) -> Any:
        """The state before the step."""
        return load_state(self.c.state)

    @cached_property
    def after(self) -> Any:
        """The state after it."""
        state: ConcreteState = load_state(self.c.state)
        for change in self.c.changes:
            state.maps[change.map][change.key if len(change.key) > 1 else change.key[0]] = change.after
        return state

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of the key at which the rule broke."""
        return kinds_of(self.c)

    def at(self, *kinds: str) -> tuple[int, ...]:
        """The key at which the rule broke, if it is of these kinds."""
        return self.c.at if self.kinds == kinds else ()

    def keys(self, name: str) -> list[Any]:
        """The keys of a map at which something is, before or after, in order."""
        return sorted(k for m in (self.before.maps[name],) for k in {**m, **self.after.maps[name]}
                      if m[k] != m.zero or self.after.maps[name][k] != m.zero)

    @cached_property
    def frames(self) -> list[int]:
        """The frames that matter, in order: those of which something is known, and those that are named."""
        found = {k[kinds.index("frame")] if len(kinds) > 1 else k for name, (kinds, _) in SCHEMA.items() if "frame" in kinds
                 for k in self.keys(name)}
        found |= {n for kind, n in self.named if kind == "frame"}
        for s in (self.before, self.after):
            found |= {mfn_of(s, s.word[f, i]) for f in list(found) for i in s.present(f) if self.is_shown(f, i)}
            found |= {mfn_of(s, e) for name in ("tlb", "walk") for e in s.maps[name].values() if e & P and not e & THROUGH_XEN}
            found |= {s.base[d] for d in s.has_base if s.has_base[d]} | {s.user_base[d] for d in s.has_user if s.has_user[d]}
        return sorted(found)

    @property
    def named(self) -> list[tuple[str, int]]:
        """The arguments of the step and the key at which the rule broke, with their kinds."""
        keys = RULES[self.c.rule].keys if self.c.rule in RULES else ()
        return [*zip(keys, (n for _, n in self.c.arguments), strict=False), *zip(self.kinds, self.c.at, strict=False)]

    @cached_property
    def domains(self) -> list[int]:
        """The domains that matter, in order."""
        found = {k[0] if len(kinds) > 1 else k for name, (kinds, _) in SCHEMA.items() if kinds[0] == "dom"
                 for k in self.keys(name)}
        return sorted(found | {n for kind, n in self.named if kind == "dom"})

    def is_shown(self, f: int, i: int) -> bool:
        """The word matters: it is an entry of a table, or the step changed it, or the rule broke there."""
        s = self.before
        if s.word[f, i] != self.after.word[f, i] or self.c.at == (f, i):
            return True
        walked = any(mfn_of(s, e) == f and e & P for e in s.walk.values())
        return bool((is_table(s, s.type[f]) or is_table(s, self.after.type[f]) or walked) and s.word[f, i] & P)

    def entries(self, f: int) -> list[int]:
        """The entries of a frame that matter, in order."""
        named = {i for g, i in [self.at("frame", "index")] if g == f} if self.at("frame", "index") else set()
        return sorted(i for i in self.before.row(f).keys() | self.after.row(f).keys() | named if self.is_shown(f, i))

    def shown_entries(self, f: int) -> list[int]:
        """The same, but not too many of a frame: rather those that the step changes, or where the rule breaks."""
        best = sorted(self.entries(f), key=lambda i: not (self.changed("word", (f, i)) or self.c.at == (f, i)))
        return sorted(best[:SHOWN])

    def changed(self, name: str, key: Any) -> bool:
        """The step changed what a map holds there."""
        return bool(self.before.maps[name][key] != self.after.maps[name][key])


# --- what is known of a frame, and of a domain -------------------------------------------------------------------------------

def frame_facts(scene: Scene, s: Any, f: int) -> dict[str, str]:
    """What is not neutral of a frame in a state, by what it is about; `scene` says what else is of interest."""
    facts = {"owner": domain(s.owner[f]), "type": type_name(s.type[f]),
             "references": f"{s.type_count[f]} typed of {s.ref_count[f]}"}
    facts |= {"alloc": "given up by its owner"} if s.owner[f] not in (NOBODY, DOMID_XEN) and not s.alloc[f] else {}
    facts |= {name: name for name in ("validated", "pinned") if s.maps[name][f]}
    facts |= {"upto": f"checked up to {s.upto[f]}"} if s.upto[f] and not s.validated[f] else {}
    facts |= {"linear": f"uses {s.linear[f]} of its level" if s.linear[f] > 0 else
              f"used by {-s.linear[f]} of its level"} if s.linear[f] else {}
    facts |= {name: f"{s.maps[name][f]} {words}" for name, words in (
        ("held", "in flight"), ("held_type", "typed in flight"), ("xen_held", "kept by Xen")) if s.maps[name][f]}
    if s.stamp[f] == s.clock[CPU]:
        facts["stamp"] = "waits for a flush"
    if s.gone[f] == s.clock[CPU] + 1 and not s.validated[f]:
        facts["gone"] = "was validated before the flush"
    if s.owner[f] == NOBODY and s.last_owner[f] != NOBODY:
        facts["last_owner"] = f"was {domain(s.last_owner[f])}'s"
    if scene.changed("m2p", f):
        facts["m2p"] = f"pfn {'none' if s.m2p[f] == s.profile.all_ones else number(s.m2p[f])}"
    if scene.changed("term", f):
        facts["term"] = f"term {s.term[f]}"
    loans = sorted(domain(d) for d, g in s.lent if g == f and s.term[f] and s.lent[d, g] == s.term[f])
    facts |= {"lent": f"lent to {', '.join(loans)}"} if loans else {}
    return facts


def domain_facts(scene: Scene, s: Any, d: int) -> dict[str, str]:
    """What is not neutral of a domain in a state, by what it is about."""
    facts = {"privileged": "privileged"} if s.privileged[d] else {}
    facts |= {"base": f"base: frame {s.base[d]}"} if s.has_base[d] else {}
    facts |= {"user_base": f"user base: frame {s.user_base[d]}"} if s.has_user[d] else {}
    if scene.changed("pages", d) or scene.at("dom") == (d,):
        facts["pages"] = f"{s.pages[d]} frames of {s.limit[d]}"
    if s.ldt_entries[d]:
        facts["ldt"] = f"LDT: {s.ldt_entries[d]} entries at {number(s.ldt_base[d])}"
    for tag in (t for e, t in scene.keys("tlb") if e == d):
        if s.tlb[d, tag] & P:
            live = "" if is_live(s, DomId(d), tag) else ", flushed"
            facts[f"tlb {tag}"] = f"TLB {tag_name(tag)}: {translation(s.profile, s.tlb[d, tag])}{live}"
    for tag in (t for e, t in scene.keys("walk") if e == d):
        if s.walk[d, tag] & P:
            live = "" if is_walking(s, DomId(d), tag) else ", flushed"
            facts[f"walk {tag}"] = (f"walk for {tag_name(tag)}: at L{s.walk_level[d, tag]} in "
                                    f"{translation(s.profile, s.walk[d, tag])}{live}")
    return facts


# --- the report --------------------------------------------------------------------------------------------------------------

def title(c: Counterexample) -> str:
    """The step and what it breaks, in one line."""
    return f"{action(c)} breaks {broken(c)}"


def action(c: Counterexample) -> str:
    """The step with its arguments in the words of their kinds."""
    rule, profile = RULES.get(c.rule), PROFILES[c.profile]
    if rule is None:
        return "the initial state"
    parts = (f"{name}={value(profile, kind, n)}" for (name, n), kind in zip(c.arguments, rule.keys, strict=False))
    return f"{rule.name}({', '.join(parts)})"


def broken(c: Counterexample) -> str:
    """The rule that fails, and where."""
    rule = RULES.get(c.broken)
    return f"{c.broken} {rule.name}" if rule else c.broken


def where(c: Counterexample) -> str:
    """The key at which it fails."""
    kinds = kinds_of(c) or ("",) * len(c.at)
    return ", ".join(f"{'' if kind == 'dom' else kind} {value(PROFILES[c.profile], kind, n)}".strip()
                     for kind, n in zip(kinds, c.at, strict=True))


def kinds_of(c: Counterexample) -> tuple[str, ...]:
    """The kinds of the key at which it fails: the rule's, or those of the map where the step stored what breaks it."""
    rule = RULES.get(c.broken)
    if rule and len(rule.keys) == len(c.at):
        return rule.keys
    return next((SCHEMA[change.map][0] for change in c.changes if change.key == c.at), ())


def counterexample_report(c: Counterexample, obligation: str = "") -> RenderableType:
    """All of it, top down: what was to be proved, the state, the step, what broke."""
    scene = Scene(c)
    parts: list[RenderableType] = [Text.assemble(("counterexample", "bold red"), f" to {obligation or broken(c)}, {c.profile}")]
    rule = RULES.get(c.rule)
    parts += [Text.assemble("  step  ", (action(c), "bold"), f"  {c.rule} {rule.sentence}" if rule else "")]
    parts += [*frames_table(scene), *entries_table(scene), *(Text(f"  {line}") for line in domain_lines(scene))]
    if c.changes:
        parts.append(Text("  what the step changed", "bold"))
        parts += [Text(f"    {line}", "yellow") for line in change_lines(scene)]
    parts += list(verdict_lines(c))
    return Group(*parts)


def frames_table(scene: Scene) -> Iterator[RenderableType]:
    """The frames that matter, before the step."""
    if not scene.frames:
        return
    table = report.plain_table(">  frame", "owner", "type", ">references", "marks")
    for f in scene.frames:
        facts = frame_facts(scene, scene.before, f)
        head = [facts.pop(name) for name in ("owner", "type", "references")]
        table.add_row(number(f), *head, ", ".join(facts.values()))
    yield table


def entries_table(scene: Scene) -> Iterator[RenderableType]:
    """The entries that matter, before the step."""
    table = report.plain_table(">  entry", "is")
    for f in scene.frames:
        shown = scene.shown_entries(f)
        for i in shown:
            table.add_row(f"{number(f)}[{i}]", entry_line(scene, scene.before, f, i))
        if more := len(scene.entries(f)) - len(shown):
            table.add_row(f"{number(f)}[…]", f"{more} more")
    if table.row_count:
        yield table


def entry_line(scene: Scene, s: Any, f: int, i: int) -> str:
    """An entry, and whether it is Xen's or was not checked."""
    t = s.type[f]
    marks = " (Xen's slot)" if is_xen_slot(s, t, Index(i)) else " (unchecked)" if is_table(s, t) and i >= s.upto[f] else ""
    return entry(scene.profile, s.word[f, i], t or L1) + marks


def domain_lines(scene: Scene) -> Iterator[str]:
    """A line for each domain of which something is known."""
    for d in scene.domains:
        facts = domain_facts(scene, scene.before, d)
        if facts:
            yield f"{domain(d)}: {'; '.join(facts.values())}"


def change_lines(scene: Scene) -> Iterator[str]:
    """The stores of the step, in order, but for those of what was there."""
    return (change_line(scene, change) for change in scene.c.changes if change.before != change.after)


def change_line(scene: Scene, change: Change) -> str:
    """A store: map[key], what was there, and what is."""
    kinds, kind = SCHEMA[change.map]
    key = ", ".join(value(scene.profile, k, n) for k, n in zip(kinds, change.key, strict=True))
    level = scene.before.type[change.key[0]] if change.map == "word" else L1
    was, now = (value(scene.profile, kind, n, level) for n in (change.before, change.after))
    return f"{change.map}[{key}]: {was} → {now}"


def verdict_lines(c: Counterexample) -> Iterable[Text]:
    """What broke, why, and whether a run on plain numbers shows it."""
    rule = RULES.get(c.broken)
    at = where(c)
    yield Text.assemble("  broken  ", (broken(c), "bold red"), f" at {at}" if at else "", f": {rule.sentence}" if rule else "")
    if c.because:
        yield Text.assemble("  because ", (c.because, "bold"))
    if c.confirmed:
        yield Text("  confirmed: a run on plain numbers breaks it, too", "green")
    else:
        yield Text(f"  NOT confirmed{f': {c.note}' if c.note else ''}", "bold magenta")
