"""What is to be proved: every obligation by name, and the tasks that discharge them, a rule at a time."""
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final

from proofs import induction
from proofs.contracts import contracts, row_name, rules_of
from proofs.ledger import LEAVES
from proofs.symbolic.facts import COUNTS, INVARIANTS
from spec.invariants import SUMS
from spec.kernel import Rule
from spec.profile import PROFILES
from spec.rules import RULES

TRANSITIONS: Final = tuple(r for r in RULES.values() if r.kind == "transition")
THEOREMS: Final = tuple(r for r in RULES.values() if r.kind == "theorem")
FLOWS: Final = tuple(r for r in RULES.values() if r.kind == "flow")
# What the profile rules out: (profile, transition) -> why it never happens.
NEVER: Final = {("xen-2003", "BASE-2"): "there is no user root", ("xen-2003", "BASE-3"): "there is no user root",
                **{("xen-2003", rule): "there are no 64-bit guests" for rule in (
                    "CALL-10", "CALL-11", "CALL-12", "STACK-2", "FPU-1", "DEBUG-2")},
                ("xen-4.17", "GDT-1"): "Xen's own descriptors lie in pages of their own",
                **{("xen-4.17", rule): "segments protect nothing on x86-64" for rule in (
                    "FETCH-1", "SEG-1", "SEG-2", "SEG-3", "SEG-4", "SEG-5", "SEG-6", "SEG-7", "SEG-8", "SEG-9",
                    "TRAP-1", "TRAP-2", "DEBUG-1", "STACK-1", "FPU-2")}}
# What a theorem has nothing to say of: (profile, theorem) -> why.
SILENT: Final = {**dict.fromkeys((("xen-4.17", rule) for rule in ("RING-10", "RING-11")),
                                 "kernel and user mode both run in ring 3, on segments without base or limit"),
                 ("xen-4.17", "RING-19"): "every gate is Xen's: there is no fast trap"}
# What the initial state need not show, since the setup is trusted with it.
TRUSTED: Final = dict.fromkeys(("XEN-1", "XEN-2", "XEN-3"), "the words that Xen keeps in its slots are the setup's")
DEAREST: Final = ("TLB-1", "WRITE-1", "TLB-3", "VALID-3", "PTV-1", "ISO-1", "ISO-2", "TYPE-2", "DRAIN-1", "STORE-1", "WRITE-2")


@dataclass(frozen=True, slots=True)
class Obligation:
    """One row to be: `about` are the rules' ids; `part` says what of them is proved."""
    profile: str
    name: str
    subject: str                            # the task: a rule's id, or "initial", "sums", "leaf:…"
    part: str
    about: tuple[str, ...] = ()


def keeping(profile: str, rule: Rule) -> list[Obligation]:
    """The obligations of one transition."""
    verb = "never happens" if (profile, rule.id) in NEVER else "can happen"
    out = [Obligation(profile, f"{rule.name} {verb}", rule.id, "happens", (rule.id,)),
           Obligation(profile, f"{rule.name} leaves no trace when it is refused", rule.id, "guards", (rule.id,)),
           Obligation(profile, f"{rule.name} stores and looks up values of their kinds only", rule.id, "kinds", (rule.id,)),
           faithful(profile, rule)]
    out += [Obligation(profile, f"{rule.name} keeps {i.name} ({i.id})", rule.id, i.id, (rule.id, i.id))
            for i in INVARIANTS + COUNTS]
    out += [Obligation(profile, f"{rule.name} satisfies {f.name} ({f.id})", rule.id, f.id, (rule.id, f.id)) for f in FLOWS]
    return out + [Obligation(profile, f"{rule.name} changes {c.__name__} only where it acts", rule.id, c.__name__, (rule.id,))
                  for c in SUMS]


def faithful(profile: str, rule: Rule) -> Obligation:
    """What is proved of a rule's terms is so of its runs: each path has a witness, a whole state that keeps every invariant."""
    return Obligation(profile, f"{rule.name} runs on plain numbers as on terms, on every path", rule.id, "fidelity", (rule.id,))


def initial(profile: str) -> list[Obligation]:
    """The obligations of the state before the first transition."""
    out = [Obligation(profile, f"the initial state satisfies {i.name} ({i.id})", "initial", i.id, (i.id,))
           for i in INVARIANTS + COUNTS if i.id not in TRUSTED]
    return out + [Obligation(profile, f"the initial state has no {c.__name__}", "initial", c.__name__) for c in SUMS]


def of_leaves() -> list[Obligation]:
    """The contracts of the leaf functions."""
    return [Obligation(LEAVES, row_name(c), f"leaf:{c.name}", c.name, rules_of(c)) for c in contracts()]


def obligations(profile: str) -> list[Obligation]:
    """All of a profile, or of the leaves."""
    if profile == LEAVES:
        return of_leaves()
    out = [Obligation(profile, name, "sums", name) for name in induction.RULES] + initial(profile)
    for rule in TRANSITIONS:
        out += keeping(profile, rule)
    for t in (t for t in THEOREMS if (profile, t.id) not in SILENT):
        out += [Obligation(profile, f"{t.name} ({t.id})", t.id, t.id, (t.id,)), faithful(profile, t)]
    return out


def select(profile: str | None, pattern: str) -> list[Obligation]:
    """The obligations of a profile, or of all and of the leaves, whose name contains the pattern, or fits it with its * or ?."""
    fits = pattern if any(c in pattern for c in "*?") else f"*{pattern}*"
    return [o for name in (*PROFILES, LEAVES) if profile in (None, name) for o in obligations(name)
            if fnmatchcase(o.name, fits)]


def tasks(wanted: list[Obligation]) -> list[list[Obligation]]:
    """The obligations by subject, the dearest first."""
    out: dict[tuple[str, str], list[Obligation]] = {}
    for o in wanted:
        out.setdefault((o.profile, o.subject), []).append(o)
    cost = {id: n for n, id in enumerate(DEAREST)}
    return sorted(out.values(), key=lambda task: cost.get(task[0].subject, len(cost)))
