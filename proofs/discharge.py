"""Discharging obligations: one task explores a rule and asks the solver about every goal of every path.

Each goal has a solver of its own, which knows the path, and the invariants at the keys that matter to this goal: so a row does
not depend on which others are proved with it.
"""
from dataclasses import dataclass, field
from typing import Any, Final

import z3

from proofs import induction
from proofs.goals import CONTRIBUTIONS, COUNTING, POINTWISE, Goals, any_of, contribution
from proofs.ledger import PROVED, REFUTED, UNKNOWN, Row
from proofs.obligations import NEVER, Obligation
from proofs.symbolic.facts import Facts, Keys, args_of, evaluate
from proofs.symbolic.paths import Path, rebound
from proofs.symbolic.search import Search, Tally
from proofs.symbolic.sorts import Sorts, both
from proofs.symbolic.state import Key, SymbolicState
from proofs.symbolic.terms import GuardAfterEffect, SemanticGap, TooManyPaths, Value, bool_value, build, node
from spec.abi import DOMID_XEN, NOBODY
from spec.invariants import SUMS
from spec.kernel import RULES, SCHEMA, Rule
from spec.profile import PROFILES, Profile

EFFORT: Final = 1_000_000_000               # of the solver for one query, in its own units: some 10 million take a second


@dataclass(frozen=True, slots=True)
class Options:
    """How obligations are discharged."""
    effort: int = EFFORT


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
                   round(self.tally.slowest, 3), self.tally.effort, self.detail)


@dataclass(frozen=True, slots=True)
class Query:
    """A question: do the facts entail the goal?  `args` are the rule's arguments, `at` is the key that the goal is about."""
    part: str
    where: str
    facts: list[Value]
    goal: Value
    path: Path | None = None
    args: Key = ()
    at: Key = ()


class Task:
    """The obligations of one subject."""

    def __init__(self, wanted: list[Obligation], options: Options) -> None:
        self.profile: Profile = PROFILES[wanted[0].profile]
        self.accounts = {o.part: Account() for o in wanted}
        self.sorts, self.options = Sorts(self.profile), options
        self.facts = Facts(self.profile, self.sorts)
        self.goals = Goals(self.facts)
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
        solver.set("rlimit", self.options.effort)
        solver.add(*map(self.sorts.boolean, facts))
        return solver

    def ask(self, query: Query) -> None:
        """The goal follows from the facts, or the account says that it doesn't."""
        if query.goal is True:
            return
        account = self.accounts[query.part]
        answer = account.tally.check(self.solver([*query.facts, build("not", query.goal)]))
        if answer == z3.sat:
            account.found(REFUTED, query.where)
        elif answer != z3.unsat:
            account.found(UNKNOWN, f"{query.where}: no answer with an effort of {self.options.effort:,}")

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
                self.path(path, given, args, f"on path {n}")
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

    def path(self, path: Path, given: list[Value], args: Key, where: str) -> None:
        """All goals of one path."""
        touched = dict(path.state.touched)
        for part in self.accounts:
            for case in self.goals.cases(part, path):
                path.state.touched = dict(touched)
                keys = Keys(touched)
                goal = case.goal(keys)
                if goal is True:
                    continue
                keys.touch(path.state.touched)
                if part != "kinds":         # what the goal itself looks up is there
                    looked_up = [at for at in path.state.touched if at not in touched]
                    goal = both(build("not", self.facts.misfit(looked_up)), goal)
                facts = [*given, *case.assumed, *self.known(path, keys)]
                self.ask(Query(part, where, facts, goal, path, args, case.at))

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
                facts = [*given, *self.known(path, Keys(path.state.touched))]
                self.ask(Query(rule.id, f"on path {n}", facts, goal, path, args))
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
            self.ask(Query(part, "in the initial state", given, goal))

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


def is_domain(d: Value) -> list[Value]:
    """The acting domain is one of the machine's."""
    return [build("not", build("==", d, NOBODY)), build("not", build("==", d, DOMID_XEN))]


def discharge(wanted: list[Obligation], options: Options) -> list[Row]:
    """The rows of the obligations of one subject."""
    task, subject = Task(wanted, options), wanted[0].subject
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
