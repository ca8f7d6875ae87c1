"""Which rules and guard conjuncts were decided true, which false, which never.

The kernel tallies every decision of `require` for the whole process.  A `Coverage` is what a stretch of work added to these
tallies; stretches merge by addition, so the workers of a campaign can be summed in any order.
"""
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from typing import Final

from refmodel.xen417_commands import COMMANDS
from spec.kernel import CONJUNCT_RULE, FAILED, HELD, RULES, Rule

Coverage = dict[str, tuple[int, int]]           # conjunct -> (decided true, decided false); absent: neither
Tallies = tuple[dict[str, int], dict[str, int]]

TRUE: Final = "true"
FALSE: Final = "false"
CHECKS: Final = {"xen-2003": "refmodel/xen2003", "xen-4.17": "refmodel/xen417"}     # where a profile's own checks are


def tallies() -> Tallies:
    """A copy of the kernel's tallies as they stand."""
    return dict(HELD), dict(FAILED)


def since(start: Tallies) -> Coverage:
    """What was decided since `start` was taken."""
    held, failed = start
    found: Coverage = {}
    for conjunct, n in HELD.items():
        true, false = n - held.get(conjunct, 0), FAILED[conjunct] - failed.get(conjunct, 0)
        if true or false:
            found[conjunct] = (true, false)
    return found


@contextmanager
def uncounted() -> Iterator[None]:
    """Work whose decisions do not count: the judge's and the shrinker's repetitions."""
    held, failed = tallies()
    try:
        yield
    finally:
        HELD.update(held)
        FAILED.update(failed)


def merge(into: Coverage, more: Mapping[str, tuple[int, int]]) -> None:
    """Add `more` to `into`."""
    for conjunct, (true, false) in more.items():
        t, f = into.get(conjunct, (0, 0))
        into[conjunct] = (t + true, f + false)


# --- tables ------------------------------------------------------------------------------------------------------------------

@dataclass(frozen=True, slots=True)
class RuleRow:
    """One rule: how many of its conjuncts were decided both ways, and which were not."""
    rule: str
    kind: str
    sentence: str
    decided: int                                # decisions of all its conjuncts
    conjuncts: int
    both: int
    never_true: tuple[str, ...]
    never_false: tuple[str, ...]


def concerns(rule: Rule, profile: str) -> bool:
    """The rule is no check of the other profile's hypercalls.  No profile: every rule is meant."""
    return not any(rule.file.startswith(where) for other, where in CHECKS.items() if profile and other != profile)


def rule_rows(coverage: Mapping[str, tuple[int, int]], profile: str = "") -> list[RuleRow]:
    """A row for each rule of the profile that has conjuncts, in the order in which the rules were entered."""
    rows = []
    for rule in RULES.values():
        if not rule.conjuncts or not concerns(rule, profile):
            continue
        counts = {c.id: coverage.get(c.id, (0, 0)) for c in rule.conjuncts}
        rows.append(RuleRow(
            rule=rule.id, kind=rule.kind, sentence=rule.sentence, decided=sum(t + f for t, f in counts.values()),
            conjuncts=len(counts), both=sum(t > 0 and f > 0 for t, f in counts.values()),
            never_true=tuple(c for c, (t, _) in counts.items() if not t),
            never_false=tuple(c for c, (_, f) in counts.items() if not f)))
    return rows


@dataclass(frozen=True, slots=True)
class Share:
    """How much of the guards was reached."""
    rules: int
    rules_decided: int
    conjuncts: int
    both: int


def share(coverage: Mapping[str, tuple[int, int]], profile: str = "") -> Share:
    """The figures for one line of a report."""
    rows = rule_rows(coverage, profile)
    return Share(rules=len(rows), rules_decided=sum(r.decided > 0 for r in rows),
                 conjuncts=sum(r.conjuncts for r in rows), both=sum(r.both for r in rows))


def command_rows(commands: Mapping[tuple[str, str], int], profile: str) -> dict[str, dict[str, dict[str, int]]]:
    """How often each command of an interface was given and what came of it: section of the facts -> command -> end -> times."""
    return {section: {name: {end: n for (given, end), n in sorted(commands.items()) if given == name} for name in names}
            for section, names in COMMANDS.items()} if profile == "xen-4.17" else {}


def never_given(commands: Mapping[tuple[str, str], int]) -> list[str]:
    """The commands of Xen 4.17 that no program gave."""
    given = {name for name, _ in commands}
    return [name for names in COMMANDS.values() for name in names if name not in given]


# --- what programs cannot reach ----------------------------------------------------------------------------------------------

@dataclass(frozen=True, slots=True)
class Unreached:
    """A conjunct that no program decides one way; only a test that calls the transition itself does."""
    profile: str
    conjunct: str
    way: str                                    # TRUE or FALSE
    reason: str


def unreached_list() -> list[Unreached]:
    """The reasoned list `oracle/unreached.json`, in which conjuncts with the same reason stand together."""
    groups = json.loads(files("oracle").joinpath("unreached.json").read_text(encoding="utf-8"))
    return [Unreached(profile, conjunct, way, group["reason"]) for group in groups
            for profile in group["profiles"] for conjunct in group["conjuncts"] for way in group["ways"]]


def holes(coverage: Mapping[str, tuple[int, int]], profile: str) -> list[tuple[str, str]]:
    """Conjuncts that were not decided one way although the list does not excuse it: (conjunct, way)."""
    excused = {(u.conjunct, u.way) for u in unreached_list() if u.profile == profile}
    found = []
    for conjunct, rule in CONJUNCT_RULE.items():
        if not concerns(RULES[rule], profile):
            continue
        for way, n in zip((TRUE, FALSE), coverage.get(conjunct, (0, 0)), strict=True):
            if not n and (conjunct, way) not in excused:
                found.append((conjunct, way))
    return found


def stale_excuses(coverage: Mapping[str, tuple[int, int]], profile: str) -> list[Unreached]:
    """Entries of the list that are no longer true: the conjunct is gone, or a program did decide it that way."""
    return [u for u in unreached_list() if u.profile == profile and
            (u.conjunct not in CONJUNCT_RULE or coverage.get(u.conjunct, (0, 0))[u.way == FALSE])]
