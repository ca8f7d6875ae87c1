"""Every path through a rule that can happen: a solver that knows the invariants prunes the others.

A guard is assumed, not forked on: what it refuses must have left no trace, so a guard after an effect is an error.
"""
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import z3

from proofs.symbolic.facts import Facts, Keys
from proofs.symbolic.paths import Path, follow
from proofs.symbolic.runs import DeadPath, Run, runs
from proofs.symbolic.sorts import Sorts
from proofs.symbolic.state import SymbolicState
from proofs.symbolic.terms import GuardAfterEffect, Node, SemanticGap, Value, active, bool_value
from spec.kernel import Refused
from spec.profile import Profile

BRANCH_EFFORT: Final = 100_000_000          # for one question whether a branch can happen; unknown keeps it


@dataclass(slots=True)
class Tally:
    """What the solver was asked; `effort` is the greatest that a query took, in the solver's own units."""
    queries: int = 0
    seconds: float = 0.0
    slowest: float = 0.0
    effort: int = 0

    def check(self, solver: Any) -> Any:
        """The solver's answer."""
        start, before = time.perf_counter(), effort_until_now()
        answer = solver.check()
        took = time.perf_counter() - start
        self.queries, self.seconds, self.slowest = self.queries + 1, self.seconds + took, max(self.slowest, took)
        self.effort = max(self.effort, effort_until_now() - before)
        return answer


def effort_until_now() -> int:
    """What the solver did in this process, in its own units."""
    statistics = z3.Solver().statistics()
    return int(statistics.get_key_value("rlimit count"))


class Search:
    """The search for the paths of one rule; `impossible` is told of each solver that found a branch to be so."""

    def __init__(self, profile: Profile, facts: Facts, sorts: Sorts, tally: Tally,
                 impossible: Callable[[Any], None] = lambda solver: None) -> None:
        self.profile, self.facts, self.sorts, self.tally, self.impossible = profile, facts, sorts, tally, impossible
        self.solver = z3.Solver()
        self.solver.set("rlimit", BRANCH_EFFORT)
        self.done: set[tuple[str, tuple[Value, ...]]] = set()
        self.path: Path | None = None

    def paths(self, function: Callable[..., Any], args: list[Any], given: list[Value], pure: bool) -> Iterator[Path]:
        """All of them; `given` is known of the arguments."""
        self.solver.add(*map(self.sorts.boolean, given))

        def once() -> Path:
            path = self.path = Path(SymbolicState(self.profile))
            try:
                follow(path, lambda: function(path.state, *args))
            except DeadPath:
                path.outcome = "dead"
            except GuardAfterEffect:        # whoever shows it needs to know how it came to it
                path.conditions = active[-1].taken if isinstance(active[-1], GuidedRun) else []
                raise
            return path

        for run, path in runs(once, lambda todo: GuidedRun(todo, pure, self)):
            path.conditions, self.path = run.taken, None
            path.known = run.known
            yield path

    def require(self, condition: Any, rule: str) -> None:
        """The prover's `require`: the guard holds, or the path ends."""
        path, run = self.path, active[-1] if active else None
        if path is None or not isinstance(run, GuidedRun):
            raise SemanticGap(f"{rule} outside a transition")
        z = run.reduce(bool_value(condition))
        if path.state.wrote:
            if isinstance(z, Node):
                run.take(z, False)
            raise GuardAfterEffect(rule)
        if not isinstance(z, Node) and not z:
            raise Refused(rule)
        if isinstance(z, Node):
            path.held.append((rule, len(run.taken)))
            run.hold(z)
        path.guards.append(rule)

    def possible(self, conditions: list[tuple[Node, bool]], z: Node) -> tuple[bool, bool]:
        """Whether z can be true and can be false after these conditions."""
        if self.path is not None:
            keys = Keys(self.path.state.touched)
            self.solver.add(*map(self.sorts.boolean, self.facts.closure(keys, self.done)))
        made = self.sorts.boolean(z)
        self.solver.push()
        self.solver.add(*(self._literal(c, way) for c, way in conditions))
        yes, no = self._can(made), self._can(z3.Not(made))
        self.solver.pop()
        return yes, no

    def _literal(self, z: Node, way: bool) -> Any:
        made = self.sorts.boolean(z)
        return made if way else z3.Not(made)

    def _can(self, made: Any) -> bool:
        self.solver.push()
        self.solver.add(made)
        answer = self.tally.check(self.solver)
        if answer == z3.unsat:
            self.impossible(self.solver)
        self.solver.pop()
        return bool(answer != z3.unsat)


class GuidedRun(Run):
    """A run that asks the solver before it branches."""

    def __init__(self, todo: tuple[bool, ...], pure: bool, search: Search) -> None:
        super().__init__(todo, {}, pure)
        self.search = search

    def ways(self, z: Node) -> tuple[bool, ...]:
        """The ways that can be gone."""
        waiting = active.copy()
        active.clear()                      # the invariants are found under no path's conditions
        try:
            yes, no = self.search.possible(self.taken, z)
        finally:
            active.extend(waiting)
        if not (yes or no):
            raise DeadPath
        return tuple(way for way, can in ((True, yes), (False, no)) if can)

    def hold(self, z: Node) -> None:
        """A guard holds: like a branch that only goes one way."""
        if len(self.taken) < len(self.todo):
            assert self.todo[len(self.taken)], "guards only go one way"
        self.take(z, True)
