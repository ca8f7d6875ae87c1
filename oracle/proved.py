"""What is proved of each rule: the obligations about it, and which of them `xenspec prove` remembers of the rules as they are."""
import functools
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from proofs.ledger import LEAVES
from spec.invariants import AT_REST
from spec.kernel import RULES, Rule

NOT_YET: Final = "not proved yet: run `xenspec prove`"


@dataclass(frozen=True, slots=True)
class Proof:
    """An obligation, and whether it is known to be proved."""
    profile: str
    name: str
    subject: str                            # whose it is: a rule's id, "initial" or "leaf:…"
    about: tuple[str, ...]                  # the ids of rules
    proved: bool


@dataclass(frozen=True, slots=True)
class Proofs:
    """The obligations about a rule."""
    own: tuple[Proof, ...] = ()             # of the rule itself: a transition's or a theorem's
    through: tuple[Proof, ...] = ()         # of the transitions that ask it: a guard's
    kept: tuple[Proof, ...] = ()            # of the transitions that keep it, and of the initial state: an invariant's
    leaves: tuple[Proof, ...] = ()          # contracts of functions that it calls; they prove nothing of the rule itself

    @property
    def all(self) -> tuple[Proof, ...]:
        """Those that count as proofs of the rule."""
        return self.own + self.through + self.kept


def proofs_of(rule: Rule, users: Collection[str]) -> Proofs | None:
    """Of a rule, which these functions use.  None: it is not known, since the solver is not installed."""
    found = obligations(Path.cwd())
    if found is None:
        return None
    asking = {r.id for r in RULES.values() if r.kind == "transition" and r.name in users} if rule.kind == "guard" else set()
    about = [p for p in found if rule.id in p.about]
    return Proofs(tuple(p for p in about if p.subject == rule.id), tuple(p for p in found if p.subject in asking),
                  tuple(p for p in about if p.subject != rule.id and p.profile != LEAVES),
                  tuple(p for p in about if p.profile == LEAVES))


@functools.cache
def obligations(folder: Path) -> tuple[Proof, ...] | None:
    """All obligations, with what is remembered in a working folder; None without the solver."""
    try:
        from proofs import runner
        from proofs.obligations import select
    except ModuleNotFoundError as e:
        if e.name != "z3":
            raise
        return None
    wanted = select(None, "")
    known = runner.remembered(wanted, folder / runner.CACHE)
    return tuple(Proof(o.profile, o.name, o.subject, o.about, o in known) for o in wanted)


def instead(rule: Rule) -> str:
    """What stands in where a rule has no proof by its nature; empty if one is missing."""
    if rule.kind == "check":
        return ("an order of checks in the model: what it does to the state it does by transitions, which are proved; the order "
                "itself is tested, and held against other implementations")
    if rule.id in AT_REST:
        return "true between hypercall entries only, so transitions need not keep it; audits of the model's states check it"
    return ""


# --- for people, and as a document -------------------------------------------------------------------------------------------

def proof_lines(proofs: Proofs, rule: Rule) -> Iterator[str]:
    """What is proved of a rule."""
    if not proofs.all:
        yield "no obligation is about it" + (f": {instead(rule)}" if instead(rule) else "")
    else:
        yield counted(proofs.all)
        if proofs.kept:
            yield from kept_lines(proofs.kept)
        if proofs.through:
            yield f"as a part of {', '.join(names(proofs.through))}"
        yield from own_lines(proofs.own)
    if proofs.leaves:
        yield f"functions that it calls: {counted(proofs.leaves, 'contract')}"


def counted(proofs: Sequence[Proof], what: str = "obligation") -> str:
    """How many there are, and how many are proved."""
    done = sum(p.proved for p in proofs)
    state = "proved" if done == len(proofs) else f"{done:,} proved, {len(proofs) - done:,} {NOT_YET}" if done else NOT_YET
    return f"{len(proofs):,} {what}{'' if len(proofs) == 1 else 's'}: {state}"


def kept_lines(kept: Sequence[Proof]) -> Iterator[str]:
    """The transitions that keep an invariant on all profiles, and those of which that is not proved yet."""
    left = [p for p in kept if not p.proved]
    done = [name for name in names(kept) if name not in names(left)]
    if done:
        yield f"kept by {', '.join(done)}"
    if left:
        yield f"{'not yet by' if done else 'by'} {', '.join(names(left))}"


def own_lines(own: Sequence[Proof]) -> Iterator[str]:
    """The obligations of a rule, those of several profiles in one line; where some are proved, it says which are not."""
    some = any(p.proved for p in own)
    left: dict[str, list[str]] = {p.name: [] for p in own}
    for p in own:
        if some and not p.proved:
            left[p.name].append(p.profile)
    for name, profiles in left.items():
        yield name + (f" (not yet on {' and '.join(profiles)})" if profiles else "")


def names(proofs: Iterable[Proof]) -> list[str]:
    """Whose the obligations are."""
    return list(dict.fromkeys(subject_name(p.subject) for p in proofs))


def subject_name(subject: str) -> str:
    """A transition's name; the initial state is its own."""
    return RULES[subject].name if subject in RULES else "the initial state"


def proofs_document(proofs: Proofs | None, rule: Rule) -> dict[str, Any] | None:
    """As JSON; null if it is not known."""
    if proofs is None:
        return None
    return {"obligations": len(proofs.all), "proved": sum(p.proved for p in proofs.all), "own": entries(proofs.own),
            "kept_by": names(proofs.kept), "through": names(proofs.through), "leaves": entries(proofs.leaves),
            "not_proved_yet": entries(p for p in proofs.all if not p.proved), "instead": instead(rule)}


def entries(proofs: Iterable[Proof]) -> list[dict[str, Any]]:
    """Obligations as JSON."""
    return [{"profile": p.profile, "name": p.name, "proved": p.proved} for p in proofs]
