"""Discharging obligations: one task explores a rule and asks the solver about every goal of every path.

Each goal has a solver of its own, which knows the path, and the invariants at the keys that matter to this goal: so a row does
not depend on which others are proved with it.
"""
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Final

import z3

from proofs import induction, second, smtlib
from proofs.confirm import Refuter
from proofs.contract_proof import discharge_leaves
from proofs.counterexample import Counterexample
from proofs.goals import CONTRIBUTIONS, COUNTING, POINTWISE, Goals, contribution
from proofs.ledger import LEAVES, PROVED, REFUTED, UNKNOWN, Row
from proofs.obligations import NEVER, Obligation
from proofs.plain import Fidelity
from proofs.symbolic.facts import Facts, Keys, any_of, args_of, evaluate, is_domain
from proofs.symbolic.paths import Path, rebound
from proofs.symbolic.search import Search, Tally
from proofs.symbolic.sorts import Sorts, both
from proofs.symbolic.state import Key, SymbolicState
from proofs.symbolic.terms import GuardAfterEffect, SemanticGap, TooManyPaths, Value, bool_value, build, node
from proofs.witness import Witnesses
from spec.abi import DOMID_XEN, NOBODY
from spec.invariants import SUMS
from spec.kernel import RULES, SCHEMA, Rule
from spec.profile import PROFILES, Profile

LEFT_OUT: Final = "left-out"                # the files' name of the queries that kept paths out
EFFORT: Final = 1_000_000_000               # of the solver for one query, in its own units: some 10 million take a second

TRIES: Final = 3                            # queries whose counterexample is looked for, until one is confirmed


@dataclass(frozen=True, slots=True)
class Options:
    """How obligations are discharged."""
    effort: int = EFFORT
    smt2: str | None = None                 # a folder: every query is written there
    second: str | None = None               # a solver that is asked about every proof again


@dataclass(slots=True)
class Account:
    """What one obligation came to so far."""
    tally: Tally = field(default_factory=Tally)
    paths: int = 0
    verdict: str = PROVED
    detail: str = ""
    counterexample: Counterexample | None = None
    tries: int = 0                          # at a counterexample
    second: set[str] = field(default_factory=set)       # what the second solver said

    def found(self, verdict: str, detail: str, counterexample: Counterexample | None = None) -> None:
        """Something is not proved; a refutation outdoes an unknown, and one that is confirmed one that is not."""
        better = verdict == REFUTED and counterexample is not None and counterexample.confirmed and not self.is_confirmed
        if self.verdict == PROVED or (self.verdict == UNKNOWN and verdict == REFUTED) or better:
            self.verdict, self.detail, self.counterexample = verdict, detail, counterexample

    @property
    def is_confirmed(self) -> bool:
        """A run on plain numbers shows what is wrong."""
        return self.counterexample is not None and self.counterexample.confirmed

    def row(self, o: Obligation) -> Row:
        """The row of the ledger."""
        return Row(o.profile, o.name, o.about, self.verdict, self.paths, self.tally.queries, round(self.tally.seconds, 3),
                   round(self.tally.slowest, 3), self.tally.effort, self.detail,
                   self.counterexample.document() if self.counterexample else None)


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
        self.goals = Goals(self.facts, self.solver, self.seen)
        self.search = Search(self.profile, self.facts, self.sorts, Tally(), self.impossible)
        rule = RULES.get(wanted[0].subject)
        self.subject = rule.name if rule else wanted[0].subject
        self.args = tuple(node(f"{kind}{n}") for n, kind in enumerate(rule.keys)) if rule else ()
        self.given = is_domain(self.args[0]) if rule else []
        self.refuter = Refuter(self.facts, rule, self.args)
        self.sentences = {o.part: o.name for o in wanted}
        self.folder = smtlib.Folder(options.smt2, self.profile.name, self.subject) if options.smt2 else None

    def row(self, o: Obligation) -> Row:
        """The row of an obligation, with the second opinion if it was asked for."""
        account = self.accounts[o.part]
        row = account.row(o)
        asked = self.options.second and (row.verdict == PROVED or second.CONTRADICTS in account.second)
        return replace(row, second=second.opinion(account.second)) if asked else row

    def run(self, subject: str) -> None:
        """Discharge them."""
        if subject == "initial":
            self.initial()
        elif subject == "sums":
            self.sums()
        elif RULES[subject].kind == "theorem":
            self.theorem(RULES[subject])
        else:
            try:
                self.transition(RULES[subject])
            except GuardAfterEffect as effect:
                self.is_late(effect)

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
        solver = self.solver([*query.facts, build("not", query.goal)])
        text = self.text(query.part, query.where, solver)
        answer = account.tally.check(solver)
        if answer == z3.sat:
            self.refuted(account, query)
        elif answer != z3.unsat:
            account.found(UNKNOWN, f"{query.where}: no answer with an effort of {self.options.effort:,}")
        else:
            self.ask_again([account], query.where, text)

    def refuted(self, account: Account, query: Query) -> None:
        """The goal does not follow; a counterexample shows it, unless one did before."""
        if not account.is_confirmed and account.tries < TRIES:
            account.tries += 1
            path = query.path or Path(SymbolicState(self.profile))
            formulas = [*query.facts, build("not", query.goal)]
            account.found(REFUTED, query.where, self.refuter.counterexample(query.part, formulas, path, query.at))

    def text(self, part: str, where: str, solver: Any) -> str:
        """A query in SMT-LIB, if another solver or a file is to have it."""
        if not (self.options.second or self.folder):
            return ""
        sentence = self.sentences.get(part, f"{self.subject}: a way that no path goes")
        text = smtlib.script(solver, self.profile.name, sentence, where)
        if self.folder:
            self.folder.write(part, text)
        return text

    def ask_again(self, accounts: Iterable[Account], where: str, text: str) -> None:
        """The second solver's opinion of what can't be, for all that rests on it."""
        if self.options.second is None:
            return
        answer = second.ask(self.options.second, text)
        for account in accounts:
            account.second.add(answer)
            if answer == second.CONTRADICTS:
                account.found(UNKNOWN, f"{where}: {self.options.second} contradicts")

    def impossible(self, solver: Any) -> None:
        """A path was left out, because the solver says that it can't be gone: every row rests on that."""
        where = "where paths were left out"
        self.ask_again(self.accounts.values(), where, self.text(LEFT_OUT, where, solver))

    def seen(self, solver: Any) -> None:
        """A domain surely sees what is looked up, as the solver says: the second state of FLOW-2 rests on that."""
        where = "where a look-up is surely seen"
        self.ask_again([self.accounts["FLOW-2"]], where, self.text("FLOW-2", where, solver))

    def known(self, path: Path, keys: Keys, on_path: bool = True) -> list[Value]:
        """The path's conditions and what the invariants say at these keys."""
        conditions = [z if way else build("not", z) for z, way in path.conditions if on_path]
        facts = list(self.facts.closure(keys, set()))
        return [*conditions, *facts, *self.facts.positivity(keys), *self.facts.stretches(path.state, keys)]

    # --- transitions ---

    def transition(self, rule: Rule) -> None:
        """Every path of a transition, and every goal of every path."""
        args, given = self.args, self.given
        answers, runs = list[Any](), self.fidelity(rule)
        for n, path in enumerate(self.search.paths(rule.function, args_of(rule.keys, args), given, pure=False)):
            shown = runs is not None and runs.path(path, f"on path {n}")
            if path.outcome == "ok":
                answers.append(z3.sat if shown else self.can_happen(path, given))
                if answers[-1] != z3.unsat:
                    self.path(path, given, args, f"on path {n}")
        for account in self.accounts.values():
            account.paths = answers.count(z3.sat)
        if runs:
            self.ran(self.accounts["fidelity"], runs)
        if "happens" in self.accounts:
            self.happened(self.accounts["happens"], rule, answers)

    def happened(self, account: Account, rule: Rule, answers: list[Any]) -> None:
        """The transition can happen, but for those that the profile rules out."""
        account.tally = self.search.tally
        never = (self.profile.name, rule.id) in NEVER
        if z3.unknown in answers:
            account.found(UNKNOWN, f"no answer whether a path can happen, with an effort of {self.options.effort:,}")
        elif never != (z3.sat not in answers):
            account.found(REFUTED, "it can happen" if never else "no path can happen")

    def can_happen(self, path: Path, given: list[Value]) -> Any:
        """Whether the path's conditions contradict each other: the solver's answer."""
        solver = self.solver([*given, *self.known(path, Keys(path.state.touched))])
        answer = self.search.tally.check(solver)
        if answer == z3.unsat:
            self.impossible(solver)
        return answer

    def is_late(self, effect: GuardAfterEffect) -> None:
        """A guard comes after an effect, so a refusal could leave a trace."""
        where = f"a guard after an effect: {effect}"
        for part, account in self.accounts.items():
            if part == "guards" and self.search.path is not None:
                path = self.search.path
                facts = [*self.given, *self.known(path, Keys(path.state.touched))]
                self.refuted(account, Query(part, where, facts, False, path, self.args))
            else:
                account.found(UNKNOWN, where)

    # --- on plain numbers ---

    def fidelity(self, rule: Rule) -> Fidelity | None:
        """Runs a rule on plain numbers, if that is wanted."""
        account = self.accounts.get("fidelity")
        if account is None:
            return None
        return Fidelity(rule, self.given, Witnesses(self.facts, self.args, account.tally), account.found)

    def ran(self, account: Account, runs: Fidelity) -> None:
        """All paths were run."""
        account.paths = runs.ran
        account.detail = account.detail or str(runs)

    def path(self, path: Path, given: list[Value], args: Key, where: str) -> None:
        """All goals of one path."""
        touched = dict(path.state.touched)
        for part in self.accounts:
            for case in self.goals.cases(part, path, args):
                path.state.touched = dict(touched)
                keys = Keys(touched)
                goal = case.goal(keys)
                if goal is True:
                    continue
                keys.touch(path.state.touched)
                if part != "kinds":         # what the goal itself looks up is there
                    looked_up = [at for at in path.state.touched if at not in touched]
                    goal = both(build("not", self.facts.misfit(looked_up)), goal)
                facts = [*given, *case.assumed, *self.known(path, keys, case.on_path)]
                self.ask(Query(part, where, facts, goal, path, args, case.at))

    # --- theorems ---

    def theorem(self, rule: Rule) -> None:
        """A theorem on every path through it."""
        account, runs = self.accounts.get(rule.id), self.fidelity(rule)
        for n, path in enumerate(self.search.paths(rule.function, args_of(rule.keys, self.args), self.given, pure=True)):
            if path.outcome == "dead":
                continue
            if runs:
                runs.path(path, f"on path {n}")
            goal = bool_value(path.value) if path.outcome == "ok" else False
            if account and goal is not True:
                facts = [*self.given, *self.known(path, Keys(path.state.touched))]
                self.ask(Query(rule.id, f"on path {n}", facts, goal, path, self.args))
            if account:
                account.paths += 1
        if runs:
            self.ran(self.accounts["fidelity"], runs)
        if account:
            account.tally.queries += self.search.tally.queries
            account.tally.seconds += self.search.tally.seconds

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
                key = any_of(POINTWISE[part].keys, keys)
                goal = evaluate(POINTWISE[part], s, key)
            else:
                rule = COUNTING[part]
                key = any_of(rule.keys, keys)
                goal = evaluate(rule, s, key, dict.fromkeys(CONTRIBUTIONS, 0))
            domains = keys.of(("dom",))
            given = [z for (d,) in domains for z in (build("<=", 0, node("limit", d)), *is_domain(d))]
            self.ask(Query(part, "in the initial state", given, goal, Path(s), at=key))

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
                text = self.text(name, what, solver)
                if account.tally.check(solver) == z3.unsat:
                    self.ask_again([account], what, text)
                else:
                    account.found(UNKNOWN, f"{what} of the induction does not follow")


def discharge(wanted: list[Obligation], options: Options, kind: type[Task] = Task) -> list[Row]:
    """The rows of the obligations of one subject; `kind` is how a task asks."""
    if wanted[0].profile == LEAVES:
        return discharge_leaves(wanted, options.effort)
    task, subject = kind(wanted, options), wanted[0].subject
    try:
        with rebound(task.search.require):
            task.run(subject)
    except (SemanticGap, TooManyPaths, RecursionError) as why:
        for account in task.accounts.values():
            account.found(UNKNOWN, f"the engine can't follow: {why}")
    return [task.row(o) for o in wanted]
