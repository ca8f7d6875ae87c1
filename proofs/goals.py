"""What is to be shown of one path of a transition: the cases of each part of its duty, as goals that are made when asked for."""
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from proofs.noninterference import OTHER, Flows
from proofs.symbolic.facts import (
    COUNTS,
    INVARIANTS,
    Facts,
    Keys,
    added,
    any_key,
    any_of,
    apart,
    args_of,
    evaluate,
    first_of,
    is_domain,
    sums_at,
)
from proofs.symbolic.paths import Path
from proofs.symbolic.runs import Run, merge
from proofs.symbolic.sorts import both, either
from proofs.symbolic.state import Key, SymbolicState
from proofs.symbolic.terms import Value, active, bool_value, build
from spec.invariants import SUMS
from spec.kernel import SCHEMA, Rule

POINTWISE: Final = {r.id: r for r in INVARIANTS}
COUNTING: Final = {r.id: r for r in COUNTS}
CONTRIBUTIONS: Final = {c.__name__: c for c in SUMS}


@dataclass(frozen=True, slots=True)
class Case:
    """A goal, made when its turn comes, and what is assumed for it; `at` is the key that it is about."""
    assumed: list[Value]
    goal: Callable[[Keys], Value]
    at: Key = ()
    on_path: bool = True                    # the path's conditions are assumed, too


class Goals:
    """The goals of a profile's transitions; `facts` says what is known of the state before; the others are for `Flows`."""

    def __init__(self, facts: Facts, solver: Callable[[list[Value]], Any], is_sure: Callable[[Any], None]) -> None:
        self.facts, self.sorts, self.profile = facts, facts.sorts, facts.profile
        self.flows = Flows(facts, solver, is_sure)

    def cases(self, part: str, path: Path, args: Key) -> Iterator[Case]:
        """What part of a transition's duty is to be shown on a path, case by case."""
        if part == "kinds":
            wrong = either(self.facts.misfit(path.state.touched), *self.ill_stored(path.state), *self.beyond(path.state))
            yield Case([], lambda keys: build("not", wrong))
        elif part in POINTWISE:
            rule = POINTWISE[part]
            stored = list(dict.fromkeys(key for name, stores in path.state.stores.items() if SCHEMA[name][0] == rule.keys
                                        for key, _ in stores))
            for n, key in enumerate((any_key(rule.keys), *stored)):     # each case: the key is none of those that follow
                elsewhere = [apart(key, other) for other in stored[n:]]
                yield Case(elsewhere, partial(self.kept, rule, path, elsewhere, key), key)
        elif part in COUNTING:
            yield Case([], partial(self.counted, COUNTING[part], path), any_key(COUNTING[part].keys))
        elif part in CONTRIBUTIONS:
            kinds = SUMS[CONTRIBUTIONS[part]][1]
            key = any_key(kinds)
            elsewhere = [apart(key, slot) for slot in Keys(path.state.touched).of(kinds)]
            yield Case(elsewhere, partial(self.untouched, CONTRIBUTIONS[part], path, elsewhere, key), key)
        elif part == "FLOW-1":
            yield Case([*is_domain(OTHER), self.flows.through_no_window(path)], partial(self.flows.unnoticed, path, args[0]))
        elif part == "FLOW-2":
            for assumed, same in self.flows.by_view(path, args):
                yield Case(assumed, partial(made, same), on_path=False)
        elif part == "FLOW-3":
            yield Case(is_domain(OTHER), partial(self.flows.nothing_new, path, args[0]), any_key(("frame",)))

    def ill_stored(self, s: SymbolicState) -> Iterator[Value]:
        """The ways in which a stored value may not be of its kind."""
        for name, stores in s.stores.items():
            yield from (self.sorts.misfit(SCHEMA[name][1], value) for _, value in stores)

    def beyond(self, s: SymbolicState) -> Iterator[Value]:
        """The ways in which a word that is looked up or stored may lie beyond the end of its frame."""
        yield from (build("<=", self.profile.entries, key[1]) for name, key in s.touched if name == "word")

    def kept(self, rule: Rule, path: Path, assumed: list[Value], key: Key, keys: Keys) -> Value:
        """An invariant afterwards, at a key."""
        keys.add(rule.keys, key)
        before = self.facts.invariant(rule, key)
        after = under(path, assumed, lambda: evaluate(rule, path.state, key))
        return True if after is before else after

    def counted(self, rule: Rule, path: Path, keys: Keys) -> Value:
        """A count afterwards, at any frame or domain: the sums change by what the touched keys change."""
        slots = Keys(path.state.touched)
        to = any_of(rule.keys, keys)
        before = sums_at(rule.keys[0], to)
        after = {name: build("+", n, self.change(CONTRIBUTIONS[name], path, to, slots)) for name, n in before.items()}
        then = under(path, [], lambda: evaluate(rule, path.state, to, after))
        now = evaluate(rule, SymbolicState(self.profile), to, before)
        return True if then is now else then

    def change(self, c: Any, path: Path, to: Key, slots: Keys) -> Value:
        """By how much the sum of a contribution to a frame or a domain changes."""
        kinds = SUMS[c][1]
        keys = slots.of(kinds)
        parts: list[tuple[Value, Value, int]] = []
        for n, key in enumerate(keys):
            before = self.facts.contribution(c, to, key)
            fits = (build("not", self.sorts.misfit(kind, z)) for kind, z in zip(kinds, key, strict=True))
            after = both(*fits, contribution(c, path.state, to, key))
            if after is not before:
                parts += [(first_of(keys, n), after, 1), (first_of(keys, n), before, -1)]
        return added(parts)

    def untouched(self, c: Any, path: Path, assumed: list[Value], key: Key, keys: Keys) -> Value:
        """A contribution is what it was, at a key that the transition does not touch."""
        target, kinds = SUMS[c]
        to = any_key((target,))
        keys.add((target,), to)
        keys.add(kinds, key)
        before = self.facts.contribution(c, to, key)
        after = under(path, assumed, lambda: contribution(c, path.state, to, key))
        return True if before is after else build("==", before, after)


def made(goal: Value, keys: Keys) -> Value:
    """A goal that needs no more keys than the path touched."""
    return goal


def under(path: Path, assumed: list[Value], function: Callable[[], Value]) -> Value:
    """The value of a function of the state that a path leads to, under what the path knows and what is assumed."""
    run = Run((), path.known, pure=True)
    for z in assumed:
        run.learn(z, True)
    active.append(run)
    try:
        return function()
    finally:
        active.pop()


def contribution(c: Any, s: SymbolicState, to: Key, key: Key) -> Value:
    """What a key contributes in a state."""
    target, kinds = SUMS[c]
    return bool_value(merge(c, s, *args_of((target, *kinds), (*to, *key))))
