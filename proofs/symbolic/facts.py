"""What is known of the state before a transition: the invariants, at every key that it touches or that they lead to.

Invariants are pointwise, so they are instantiated at keys, and again at the keys that those instances read, until there are
no new ones: slots and domains lead to frames, frames lead nowhere.  All queries stay free of quantifiers.
"""
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from proofs.symbolic.runs import merge
from proofs.symbolic.sorts import Sorts, both, either
from proofs.symbolic.state import Key, SymbolicState
from proofs.symbolic.terms import IntTerm, Value, bool_value, build, node, term
from spec.abi import DOMID_XEN, NOBODY, P
from spec.invariants import AT_REST, SUMS
from spec.kernel import SCHEMA, Rule
from spec.profile import Profile
from spec.rules import RULES

Kinds = tuple[str, ...]
ROUNDS: Final = 9
INVARIANTS: Final = tuple(r for r in RULES.values() if r.kind == "invariant" and r.id not in AT_REST)
COUNTS: Final = tuple(r for r in RULES.values() if r.kind == "count")


class Keys:
    """Keys by their kinds, in order of the first touch."""

    def __init__(self, touched: Iterable[tuple[str, Key]] = ()) -> None:
        self.by_kinds: dict[Kinds, dict[Key, None]] = {}
        self.touch(touched)

    def add(self, kinds: Kinds, key: Key) -> None:
        """One key; the frame of a word and the domain of a register count as touched, too."""
        self.by_kinds.setdefault(kinds, {}).setdefault(key)
        if kinds in (("frame", "index"), ("dom", "reg")):
            self.add(kinds[:1], key[:1])

    def touch(self, touched: Iterable[tuple[str, Key]]) -> None:
        """Keys of maps."""
        for name, key in touched:
            self.add(SCHEMA[name][0], key)

    def of(self, kinds: Kinds) -> list[Key]:
        """All of these kinds."""
        return list(self.by_kinds.get(kinds, ()))


def args_of(kinds: Kinds, key: Key) -> list[Any]:
    """The terms of a key."""
    return [term(kind, z) for kind, z in zip(kinds, key, strict=True)]


def evaluate(rule: Rule, s: SymbolicState, key: Key, sums: dict[str, Value] | None = None) -> Value:
    """The formula of an invariant, or of a count with these sums, at a key."""
    more = [] if sums is None else [{name: IntTerm(z) for name, z in sums.items()}]
    return bool_value(merge(rule.function, s, *args_of(rule.keys, key), *more))


def sums_at(kind: str, key: Key) -> dict[str, Value]:
    """The unknown sums of contributions to a frame or a domain."""
    return {c.__name__: node(c.__name__, *key) for c, (target, _) in SUMS.items() if target == kind}


def apart(a: Key, b: Key) -> Value:
    """Two keys differ."""
    return build("not", both(*(build("==", x, y) for x, y in zip(a, b, strict=True))))


def any_key(kinds: tuple[str, ...]) -> Key:
    """A key of which nothing is known."""
    return tuple(node(f"{kind}_any_{'_'.join(kinds)}") for kind in kinds)


def any_of(kinds: tuple[str, ...], keys: Keys) -> Key:
    """A key of which nothing is known, among the keys that matter."""
    key = any_key(kinds)
    keys.add(kinds, key)
    return key


def is_domain(d: Value) -> list[Value]:
    """A domain is one of the machine's."""
    return [build("not", build("==", d, NOBODY)), build("not", build("==", d, DOMID_XEN))]


@dataclass(frozen=True, slots=True)
class Instance:
    """A pure function of the state before at one key: its formula, what it looks up, and the condition that it can't."""
    z: Value
    touched: list[tuple[str, Key]]
    misfit: Value


class Facts:
    """What the invariants say of the state before, found as it is asked for and remembered."""

    def __init__(self, profile: Profile, sorts: Sorts) -> None:
        self.profile, self.sorts = profile, sorts
        self._instances: dict[tuple[str, Key], Instance] = {}
        self._lists: dict[tuple[int, Key], int] = {}    # lists of keys by number: a shorter one (0: none) and one more
        self._totals: dict[tuple[str, Key, int], Value] = {}

    def instance(self, name: str, function: Any, kinds: Kinds, key: Key) -> Instance:
        """A pure function of the state before, at a key."""
        found = self._instances.get((name, key))
        if found is None:
            s = SymbolicState(self.profile)
            z = bool_value(merge(function, s, *args_of(kinds, key)))
            found = Instance(z, list(s.touched), self.misfit(s.touched))
            self._instances[name, key] = found
        return found

    def invariant(self, rule: Rule, key: Key) -> Value:
        """An invariant of the state before."""
        return self.instance(rule.id, rule.function, rule.keys, key).z

    def contribution(self, c: Any, to: Key, key: Key) -> Value:
        """What a key contributed to a frame or a domain, before."""
        target, kinds = SUMS[c]
        found = self.instance(c.__name__, c, (target, *kinds), (*to, *key))
        return both(build("not", found.misfit), found.z)

    def misfit(self, touched: Iterable[tuple[str, Key]]) -> Value:
        """Some part of a key is not of its kind, so nothing is known there: as a rule, surely False."""
        parts = (part for name, key in touched for part in zip(SCHEMA[name][0], key, strict=True))
        return either(*(self.sorts.misfit(kind, z) for kind, z in parts))

    def closure(self, keys: Keys, done: set[tuple[str, Key]]) -> Iterator[Value]:
        """The invariants and counts at all keys, which grow by what those lead to; but for those that are done."""
        for _ in range(ROUNDS):
            before = len(done)
            for rule in INVARIANTS:
                for key in keys.of(rule.keys):
                    if (rule.id, key) not in done:
                        done.add((rule.id, key))
                        found = self.instance(rule.id, rule.function, rule.keys, key)
                        keys.touch(found.touched)
                        yield either(found.misfit, found.z)
            if len(done) == before:
                break
        else:
            raise RecursionError("the invariants lead to ever new keys")
        for rule in COUNTS:
            for key in keys.of(rule.keys):
                if (rule.id, key) not in done:
                    done.add((rule.id, key))
                    yield evaluate(rule, SymbolicState(self.profile), key, sums_at(rule.keys[0], key))

    def positivity(self, keys: Keys) -> Iterator[Value]:
        """A sum is at least what the known keys contribute."""
        for c, (target, kinds) in SUMS.items():
            for to in keys.of((target,)):
                yield build("<=", self.total(c, to, keys.of(kinds)), node(c.__name__, *to))

    def total(self, c: Any, to: Key, keys: list[Key]) -> Value:
        """What distinct keys contributed together, before; lists that begin alike share what is made of them."""
        total: Value = 0
        so_far = 0
        for n, key in enumerate(keys):
            so_far = self._lists.setdefault((so_far, key), len(self._lists) + 1)
            at = c.__name__, to, so_far
            if at not in self._totals:
                self._totals[at] = plus(total, first_of(keys, n), self.contribution(c, to, key), 1)
            total = self._totals[at]
        return total

    def stretches(self, s: SymbolicState, keys: Keys) -> Iterator[Value]:
        """What a quantified read says of a stretch is so at every known key in it."""
        for name, (f, first, end) in s.stretches:
            for g, i in keys.of(("frame", "index")):
                inside = both(build("==", g, f), build("<=", first, i), build("not", build("<=", end, i)))
                asked = both(node(name, f, first, end), build("not", self.sorts.misfit("index", i)))
                yield either(build("not", both(asked, inside)), is_clear(name, g, i))


def is_clear(name: str, g: Value, i: Value) -> Value:
    """What a quantified read asks of each word: an absent entry has no P bit, a blank word no bit at all."""
    word = node("word", g, i)
    return build("==", build("&", word, P) if name == "absent" else word, 0)


def first_of(keys: list[Key], n: int) -> Value:
    """Key n is none of those before it."""
    return both(*(apart(keys[n], earlier) for earlier in keys[:n]))


def plus(total: Value, new: Value, counts: Value, one: int) -> Value:
    """1 (or -1) more if both conditions hold."""
    both_hold = both(new, counts)
    return total if both_hold is False else build("+", total, build("ite", both_hold, one, 0))


def added(parts: Iterable[tuple[Value, Value, int]]) -> Value:
    """The sum of 1 (or -1) for each part whose two conditions hold."""
    total: Value = 0
    for new, counts, one in parts:
        total = plus(total, new, counts, one)
    return total
