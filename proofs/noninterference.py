"""Noninterference, a path at a time: the goals of the rules of `spec.channels`; one compares two states that look alike."""
from collections.abc import Callable, Iterator
from typing import Any, Final

import z3

from proofs.symbolic.facts import Facts, Keys, any_of, args_of
from proofs.symbolic.paths import Path
from proofs.symbolic.runs import merge
from proofs.symbolic.sorts import both, either
from proofs.symbolic.state import QUANTIFIED, Key, SymbolicState
from proofs.symbolic.terms import Node, Value, bool_value, build, node, term
from spec.channels import by_window, look_up_is_seen, nothing_new_is_shown, step_is_unnoticed
from spec.kernel import SCHEMA

OTHER: Final = node("dom_other")            # any other domain than the one that a step is for


class Flows:
    """The goals of a profile's transitions; `solver` gives a solver that knows some facts, `is_sure` is told of each whose
    contradiction means that a look-up is surely seen."""

    def __init__(self, facts: Facts, solver: Callable[[list[Value]], Any], is_sure: Callable[[Any], None]) -> None:
        self.facts, self.sorts, self.profile = facts, facts.sorts, facts.profile
        self.solver, self.is_sure = solver, is_sure

    def through_no_window(self, path: Path) -> Value:
        """No walk that the step made went through a slot of Xen."""
        s, stores = SymbolicState(self.profile), path.state.stores
        ways = [value for name in ("tlb", "walk") for _, value in stores.get(name, ())]
        return both(*(build("not", bool_value(merge(by_window, s, term("word", way)))) for way in ways))

    def unnoticed(self, path: Path, d: Value, keys: Keys) -> Value:
        """Each store is of what was there, or another domain doesn't notice it."""
        s, e = SymbolicState(self.profile), term("dom", OTHER)
        goals = []
        for name, stores in path.state.stores.items():
            for key, value in stores:
                may = merge(step_is_unnoticed, s, term("dom", d), e, name, args_of(SCHEMA[name][0], key))
                goals.append(either(build("==", value, node(name, *key)), bool_value(may)))
        keys.touch(s.touched)
        return both(*goals)

    def by_view(self, path: Path, args: Key) -> Iterator[tuple[list[Value], Value]]:
        """In another state that looks alike, every condition has the same truth as soon as those before it have, and every store
        has the same key and value: each a goal, after what is assumed for it."""
        given = [build("not", node("privileged", args[0])), self.through_no_window(path)]
        other = Other(self, args[0], self.solver([*given, *self.facts.closure(Keys(path.state.touched), set())]))
        until: list[Value] = []
        for z, way in path.conditions:
            same = build("==", z, other.of(z))
            yield [*given, *other.premises.values(), *until], same
            until.append(z if way else build("not", z))
            other.learn(until[-1])
        stores = [store for of_map in path.state.stores.values() for store in of_map]
        same = both(*(build("==", z, other.of(z)) for key, value in stores for z in (*key, value)))
        yield [*given, *other.premises.values(), *until], same

    def nothing_new(self, path: Path, d: Value, keys: Keys) -> Value:
        """A frame that a domain sees after the step was seen before it."""
        f, e = any_of(("frame",), keys), OTHER
        s = SymbolicState(self.profile)
        goal = bool_value(merge(nothing_new_is_shown, s, path.state, *(term("dom", z) for z in (d, e)), *args_of(("frame",), f)))
        keys.touch(s.touched)
        return goal


class Other:
    """Another state that looks alike to an unprivileged domain d: expressions of the one state, as they are in the other.

    A look-up is of the same value in both where d sees it.  `known` is a solver that knows the one state, and learns the
    conditions as they come: where it is sure that d sees a frame, the other state needs no look-up of its own.
    """

    def __init__(self, flows: Flows, d: Value, known: Any) -> None:
        self.flows, self.d, self.known = flows, d, known
        self.state, self.other = SymbolicState(flows.profile), SymbolicState(flows.profile, self.look_up)
        self.done: dict[Node, Value] = {}
        self.sure: dict[tuple[str, Value], bool] = {}       # by a map and a frame that was looked up: whether d surely sees it
        self.premises: dict[tuple[str, Value], Value] = {}  # where that is not sure: d sees it in both states, or in none
        self.formulas: dict[tuple[str, Value], Value] = {}

    def learn(self, condition: Value) -> None:
        """A condition that holds from now on; what was not sure may be so now."""
        self.known.add(self.flows.sorts.boolean(condition))
        self.sure = {at: sure for at, sure in self.sure.items() if sure}
        self.done.clear()

    def of(self, z: Value) -> Value:
        """The expression in the other state."""
        if not isinstance(z, Node) or not z.args:
            return z                        # a constant, or an argument of the rule
        if z not in self.done:
            args = tuple(map(self.of, z.args))
            self.done[z] = self.look_up(z.op, args) if z.op in SCHEMA or z.op in QUANTIFIED else build(z.op, *args)
        return self.done[z]

    def look_up(self, name: str, key: Key) -> Value:
        """What is there: the same in both states if d sees it, else anything."""
        return build("ite", self.seen("word" if name in QUANTIFIED else name, key), node(name, *key), node(f"{name}'", *key))

    def seen(self, name: str, key: Key) -> Value:
        """Whether d sees the map there, in the one state."""
        if SCHEMA[name][0][0] != "frame":
            return self.formula(self.state, name, key)
        at = ("word" if name == "word" else "owner", key[0])
        if at not in self.formulas:
            self.formulas[at] = self.formula(self.state, name, key)
        z = self.formulas[at]
        if at not in self.sure:
            self.sure[at] = self.follows(z)
            if not self.sure[at] and at not in self.premises:
                self.premises[at] = build("==", z, self.formula(self.other, name, key))
        return self.sure[at] or z

    def follows(self, z: Value) -> bool:
        """What is known by now entails it."""
        self.known.push()
        self.known.add(self.flows.sorts.boolean(build("not", z)))
        surely: bool = self.known.check() == z3.unsat
        if surely:
            self.flows.is_sure(self.known)
        self.known.pop()
        return surely

    def formula(self, s: SymbolicState, name: str, key: Key) -> Value:
        """Whether d sees the map there."""
        kinds = SCHEMA[name][0]
        return bool_value(merge(look_up_is_seen, s, term("dom", self.d), name, args_of(kinds, key[:len(kinds)])))
