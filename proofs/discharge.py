"""Discharging obligations: one task explores a rule and asks the solver about every goal of every path.

Each goal has a solver of its own, which knows the path, and the invariants at the keys that matter to this goal: so a row does
not depend on which others are proved with it.
"""
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import z3

from proofs import induction
from proofs.ledger import PROVED, REFUTED, UNKNOWN, Row
from proofs.obligations import NEVER, Obligation
from proofs.symbolic.facts import COUNTS, INVARIANTS, Facts, Keys, added, apart, args_of, evaluate, first_of, sums_at
from proofs.symbolic.paths import Path, rebound
from proofs.symbolic.runs import Run, merge
from proofs.symbolic.search import Search, Tally
from proofs.symbolic.sorts import Sorts, both, either
from proofs.symbolic.state import Key, SymbolicState
from proofs.symbolic.terms import GuardAfterEffect, SemanticGap, TooManyPaths, Value, active, bool_value, build, node
from spec.abi import DOMID_XEN, NOBODY
from spec.invariants import SUMS
from spec.kernel import RULES, SCHEMA, Rule
from spec.profile import PROFILES, Profile

POINTWISE: Final = {r.id: r for r in INVARIANTS}
COUNTING: Final = {r.id: r for r in COUNTS}
CONTRIBUTIONS: Final = {c.__name__: c for c in SUMS}


@dataclass(slots=True)
class Account:
    """What one obligation came to so far."""
    tally: Tally = field(default_factory=Tally)
    paths: int = 0
    verdict: str = PROVED
    detail: str = ""

    def found(self, verdict: str, detail: str) -> None:
        """Something is not proved; a refutation outdoes an unknown."""
        if self.verdict == PROVED or (self.verdict == UNKNOWN and verdict == REFUTED):
            self.verdict, self.detail = verdict, detail

    def row(self, o: Obligation) -> Row:
        """The row of the ledger."""
        return Row(o.profile, o.name, o.about, self.verdict, self.paths, self.tally.queries, round(self.tally.seconds, 3),
                   round(self.tally.slowest, 3), self.detail)


@dataclass(frozen=True, slots=True)
class Case:
    """A goal, made when its turn comes, and what is assumed for it."""
    assumed: list[Value]
    goal: Callable[[Keys], Value]


class Task:
    """The obligations of one subject."""

    def __init__(self, wanted: list[Obligation], timeout: float) -> None:
        self.profile: Profile = PROFILES[wanted[0].profile]
        self.accounts = {o.part: Account() for o in wanted}
        self.sorts, self.timeout = Sorts(self.profile), timeout
        self.facts = Facts(self.profile, self.sorts)
        self.search = Search(self.profile, self.facts, self.sorts, Tally())

    def run(self, subject: str) -> None:
        """Discharge them."""
        if subject == "initial":
            self.initial()
        elif subject == "sums":
            self.sums()
        elif RULES[subject].kind == "theorem":
            self.theorem(RULES[subject])
        else:
            self.transition(RULES[subject])

    # --- asking ---

    def solver(self, facts: list[Value]) -> Any:
        """A solver that knows these."""
        solver = z3.Solver()
        solver.set("timeout", int(self.timeout * 1000))
        solver.add(*map(self.sorts.boolean, facts))
        return solver

    def ask(self, account: Account, facts: list[Value], goal: Value, where: str) -> None:
        """The goal follows from the facts, or the account says that it doesn't."""
        if goal is True:
            return
        answer = account.tally.check(self.solver([*facts, build("not", goal)]))
        if answer == z3.sat:
            account.found(REFUTED, where)
        elif answer != z3.unsat:
            account.found(UNKNOWN, f"{where}: no answer within {self.timeout:g} s")

    def known(self, path: Path, keys: Keys) -> list[Value]:
        """The path's conditions and what the invariants say at these keys."""
        conditions = [z if way else build("not", z) for z, way in path.conditions]
        facts = list(self.facts.closure(keys, set()))
        return [*conditions, *facts, *self.facts.positivity(keys), *self.facts.absences(path.state, keys)]

    # --- transitions ---

    def transition(self, rule: Rule) -> None:
        """Every path of a transition, and every goal of every path."""
        args = tuple(node(f"{kind}{n}") for n, kind in enumerate(rule.keys))
        given = is_domain(args[0])
        happens = 0
        for n, path in enumerate(self.search.paths(rule.function, args_of(rule.keys, args), given, pure=False)):
            if path.outcome == "ok" and self.can_happen(path, given):
                happens += 1
                self.path(path, given, f"on path {n}")
        for account in self.accounts.values():
            account.paths = happens
        if "happens" in self.accounts:
            self.happened(self.accounts["happens"], rule, happens)

    def happened(self, account: Account, rule: Rule, paths: int) -> None:
        """The transition can happen, but for those that the profile rules out."""
        account.tally = self.search.tally
        never = (self.profile.name, rule.id) in NEVER
        if never != (paths == 0):
            account.found(REFUTED, "it can happen" if never else "no path can happen")

    def can_happen(self, path: Path, given: list[Value]) -> bool:
        """The path's conditions do not contradict each other."""
        facts = self.known(path, Keys(path.state.touched))
        return bool(self.search.tally.check(self.solver([*given, *facts])) != z3.unsat)

    def path(self, path: Path, given: list[Value], where: str) -> None:
        """All goals of one path."""
        touched = dict(path.state.touched)
        for part, account in self.accounts.items():
            for case in self.cases(part, path):
                path.state.touched = dict(touched)
                keys = Keys(touched)
                goal = case.goal(keys)
                if goal is True:
                    continue
                keys.touch(path.state.touched)
                if part != "kinds":         # what the goal itself looks up is there
                    looked_up = [at for at in path.state.touched if at not in touched]
                    goal = both(build("not", self.facts.misfit(looked_up)), goal)
                self.ask(account, [*given, *case.assumed, *self.known(path, keys)], goal, where)

    def cases(self, part: str, path: Path) -> Iterator["Case"]:
        """What part of a transition's duty is to be shown on a path, case by case."""
        if part == "kinds":
            wrong = either(self.facts.misfit(path.state.touched), *self.ill_stored(path.state))
            yield Case([], lambda keys: build("not", wrong))
        elif part in POINTWISE:
            rule = POINTWISE[part]
            stored = list(dict.fromkeys(key for name, stores in path.state.stores.items() if SCHEMA[name][0] == rule.keys
                                        for key, _ in stores))
            for n, key in enumerate((any_key(rule.keys), *stored)):     # each case: the key is none of those that follow
                elsewhere = [apart(key, other) for other in stored[n:]]
                yield Case(elsewhere, partial(self.kept, rule, path, elsewhere, key))
        elif part in COUNTING:
            yield Case([], partial(self.counted, COUNTING[part], path))
        elif part in CONTRIBUTIONS:
            kinds = SUMS[CONTRIBUTIONS[part]][1]
            key = any_key(kinds)
            elsewhere = [apart(key, slot) for slot in Keys(path.state.touched).of(kinds)]
            yield Case(elsewhere, partial(self.untouched, CONTRIBUTIONS[part], path, elsewhere, key))

    def ill_stored(self, s: SymbolicState) -> Iterator[Value]:
        """The ways in which a stored value may not be of its kind."""
        for name, stores in s.stores.items():
            yield from (self.sorts.misfit(SCHEMA[name][1], value) for _, value in stores)

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

    # --- theorems ---

    def theorem(self, rule: Rule) -> None:
        """A theorem on every path through it."""
        args = tuple(node(f"{kind}{n}") for n, kind in enumerate(rule.keys))
        given = is_domain(args[0])
        account = self.accounts[rule.id]
        for n, path in enumerate(self.search.paths(rule.function, args_of(rule.keys, args), given, pure=True)):
            if path.outcome == "dead":
                continue
            account.paths += 1
            goal = bool_value(path.value) if path.outcome == "ok" else False
            if goal is not True:
                self.ask(account, [*given, *self.known(path, Keys(path.state.touched))], goal, f"on path {n}")
        searched = self.search.tally
        account.tally.queries += searched.queries
        account.tally.seconds += searched.seconds

    # --- the initial state, and the sums ---

    def initial(self) -> None:
        """The state before the first transition: nothing is in use, the rest is any."""
        for part, account in self.accounts.items():
            keys, s = Keys(), SymbolicState(self.profile, self.at_first)
            account.paths = 1
            if part in CONTRIBUTIONS:
                target, kinds = SUMS[CONTRIBUTIONS[part]]
                to, key = any_of((target,), keys), any_of(kinds, keys)
                goal = build("not", contribution(CONTRIBUTIONS[part], s, to, key))
            elif part in POINTWISE:
                goal = evaluate(POINTWISE[part], s, any_of(POINTWISE[part].keys, keys))
            else:
                rule = COUNTING[part]
                goal = evaluate(rule, s, any_of(rule.keys, keys), dict.fromkeys(CONTRIBUTIONS, 0))
            domains = keys.of(("dom",))
            given = [z for (d,) in domains for z in (build("<=", 0, node("limit", d)), *is_domain(d))]
            self.ask(account, given, goal, "in the initial state")

    def at_first(self, name: str, key: Key) -> Value:
        """What a map holds before the first transition."""
        kind = SCHEMA[name][1]
        if name in ("word", "xen_word", "privileged", "limit"):
            return node(name, *key)
        if name in ("clock", "cr3_clock"):
            return 1                        # 0 means: never
        if name == "owner":                 # the lowest frames are Xen's
            return build("ite", build("<=", node("frame_xen_end"), key[0]), NOBODY, DOMID_XEN)
        return {"bool": False, "dom": NOBODY, "pfn": self.profile.all_ones}.get(kind, 0)

    def sums(self) -> None:
        """The rules of counting."""
        for name, account in self.accounts.items():
            account.paths = 1
            for solver, what in zip(induction.queries(name), ("the base", "the step"), strict=True):
                if account.tally.check(solver) != z3.unsat:
                    account.found(UNKNOWN, f"{what} of the induction does not follow")


def any_key(kinds: tuple[str, ...]) -> Key:
    """A key of which nothing is known."""
    return tuple(node(f"{kind}_any_{'_'.join(kinds)}") for kind in kinds)


def any_of(kinds: tuple[str, ...], keys: Keys) -> Key:
    """A key of which nothing is known, among the keys that matter."""
    key = any_key(kinds)
    keys.add(kinds, key)
    return key


def is_domain(d: Value) -> list[Value]:
    """The acting domain is one of the machine's."""
    return [build("not", build("==", d, NOBODY)), build("not", build("==", d, DOMID_XEN))]


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


def discharge(wanted: list[Obligation], timeout: float) -> list[Row]:
    """The rows of the obligations of one subject."""
    task, subject = Task(wanted, timeout), wanted[0].subject
    try:
        with rebound(task.search.require):
            task.run(subject)
    except GuardAfterEffect as effect:
        for part, account in task.accounts.items():
            account.found(REFUTED if part == "guards" else UNKNOWN, f"a guard after an effect: {effect}")
    except (SemanticGap, TooManyPaths, RecursionError) as why:
        for account in task.accounts.values():
            account.found(UNKNOWN, f"the engine can't follow: {why}")
    return [task.accounts[o.part].row(o) for o in wanted]
