"""Every path through a rule, found without a solver: it shows that the rule stays within what terms can follow.

A transition gives all its paths; a `@predicate` called on the way is merged into one term (if-then-else), so that it costs no
path.  Some paths can never happen; constants are folded, and what a path already decided is not asked twice.
"""
import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial, wraps
from typing import Any, Final

from proofs.symbolic.runs import Run, Taken, merge, pure_run, runs
from proofs.symbolic.state import SymbolicState
from proofs.symbolic.terms import GuardAfterEffect, IntTerm, Node, bool_value, decide, int_value, node, term
from spec import kernel
from spec.invariants import SUMS
from spec.kernel import Refused, Rule
from spec.profile import Profile
from spec.rules import MODULES
from spec.x86.paging import Fault

Bound = list[tuple[dict[str, Any], str, Any]]   # a module's names, a name, and what is written there
_rebound: Final[list[Bound]] = []           # what is replaced now


@dataclass(slots=True)
class Path:
    """One way through a rule: `outcome` is ok, refused (by the conjunct `rule`), fault, or dead (it can't happen after all)."""
    state: SymbolicState
    outcome: str = "ok"
    rule: str = ""
    value: Any = None                       # what the function returned, or the fault
    guards: list[str] = field(default_factory=list)     # the conjuncts that held
    held: list[tuple[str, int]] = field(default_factory=list)   # those that were decided, each with its place in `conditions`
    conditions: Taken = field(default_factory=list)
    known: dict[Node, int] = field(default_factory=dict)    # what follows from them at once


@contextmanager
def rebound(require: Callable[[Any, str], None], *more: dict[str, Any]) -> Iterator[None]:
    """While it lasts, the rules' modules have this `require`, every predicate in them is merged, and `put` doesn't look first."""
    def replacement(fn: Any) -> Any:
        if fn is original_require:
            return require
        return operator.setitem if fn is original_put else wraps(fn)(partial(merge, fn))

    original_require, original_put = kernel.require, kernel.put
    saved: Bound = []
    for names in [*map(vars, (kernel, *MODULES)), *more]:
        for name, fn in list(names.items()):
            if fn is original_require or fn is original_put or getattr(fn, "is_predicate", False):
                saved.append((names, name, fn))
    for names, name, fn in saved:
        names[name] = replacement(fn)
    _rebound.append(saved)
    try:
        yield
    finally:
        _rebound.pop()
        for names, name, fn in saved:
            names[name] = fn


@contextmanager
def as_written() -> Iterator[None]:
    """While it lasts, the rules' modules are as they were written again: for runs on plain numbers amid a proof."""
    replaced = [(names, name, names[name], fn) for saved in _rebound for names, name, fn in saved]
    for names, name, _, fn in replaced:
        names[name] = fn
    try:
        yield
    finally:
        for names, name, replacement, _ in replaced:
            names[name] = replacement


def follow(path: Path, function: Callable[[], Any]) -> None:
    """Run a rule to its end, whatever that is."""
    try:
        path.value = function()
    except Refused as refusal:
        path.outcome, path.rule = "refused", refusal.rule
    except Fault as fault:
        path.outcome, path.value = "fault", fault
        if path.state.wrote:
            raise GuardAfterEffect(f"a fault after {path.guards}") from None


def explore(function: Callable[..., Any], kinds: tuple[str, ...], profile: Profile, pure: bool, sums: bool = False) -> list[Path]:
    """Every path through a function of the state and of keys of these kinds."""
    path: Path

    def require(condition: Any, rule: str) -> None:
        if path.state.wrote:
            raise GuardAfterEffect(rule)
        if not decide(bool_value(condition)):
            raise Refused(rule)
        path.guards.append(rule)

    def once() -> Path:
        nonlocal path
        path = Path(SymbolicState(profile))
        args: list[Any] = [term(kind, node(f"{kind}{n}")) for n, kind in enumerate(kinds)]
        if sums:
            args.append({c.__name__: IntTerm(node(c.__name__, *map(int_value, args))) for c in SUMS})
        follow(path, lambda: function(path.state, *args))
        if pure:
            bool_value(path.value)
        return path

    def begin(todo: tuple[bool, ...]) -> Run:
        return pure_run(todo) if pure else Run(todo, {}, pure=False)

    out = []
    with rebound(require, function.__globals__):
        for run, done in runs(once, begin):
            done.conditions = run.taken
            out.append(done)
    return out


def paths(rule: Rule, profile: Profile) -> list[Path]:
    """Every path through a transition, an invariant, a count or a theorem."""
    if rule.kind not in ("transition", "invariant", "count", "theorem"):
        raise ValueError(f"{rule.id} is a {rule.kind}: it runs as part of other rules")
    return explore(rule.function, rule.keys, profile, rule.kind != "transition", rule.kind == "count")
