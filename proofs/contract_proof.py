"""Decides contracts on the engine of the proofs: function and conditions run on terms, on every path that can happen.

CrossHair is asked, too, about those that it can decide.  A parameter is any number of `BITS` bits, so its contract must state a
range within.  A counterexample is run again on plain ints.
"""
from dataclasses import dataclass, field
from typing import Any, Final

import z3

from proofs.contracts import Contract, Finding, contracts
from proofs.crosshair_run import DECIDES, crosshair, is_installed
from proofs.ledger import PROVED, REFUTED, UNKNOWN, Row
from proofs.obligations import Obligation
from proofs.symbolic.facts import Facts
from proofs.symbolic.paths import rebound
from proofs.symbolic.runs import DeadPath, Taken, runs
from proofs.symbolic.search import GuidedRun, Search, Tally
from proofs.symbolic.sorts import Sorts
from proofs.symbolic.terms import IntTerm, Node, SemanticGap, TooManyPaths, build, decide, gap, int_value, node
from spec.profile import XEN_4_17

EFFORT: Final = 1_000_000_000               # of the solver for one query, in its own units
BITS: Final = XEN_4_17.word_bits            # the widest word; the profile's rules play no part


@dataclass(slots=True)
class Decided:
    """What became of a contract, and what it cost."""
    finding: Finding = field(default_factory=lambda: Finding(UNKNOWN))
    tally: Tally = field(default_factory=Tally)
    paths: int = 0                          # on which the arguments met the conditions


def decided(contract: Contract, effort: int = EFFORT) -> Decided:
    """The verdict over all paths; none at all is no proof."""
    trial = Trial(contract, effort)
    try:
        with rebound(trial.search.require, contract.function.__globals__):
            arguments = trial.counterexample()
    except (SemanticGap, TooManyPaths) as why:
        return trial.ended(UNKNOWN, f"the engine can't follow: {why}")
    if arguments is None:
        return trial.ended(PROVED) if trial.paths else trial.ended(UNKNOWN, "no argument meets the conditions")
    call = called(contract, arguments)
    if not contract.meets(arguments) or contract.keeps(arguments):
        return trial.ended(UNKNOWN, f"the terms say that {call} breaks the contract, and it does not")
    return trial.ended(REFUTED, f"false when calling {call}")


class Trial:
    """One contract on terms."""

    def __init__(self, contract: Contract, effort: int) -> None:
        self.contract, self.effort, self.paths = contract, effort, 0
        self.unknowns = {name: node(f"bool_{name}" if kind is bool else f"word_{name}")
                         for name, kind in contract.parameters.items()}
        self.sorts, self.tally = Sorts(XEN_4_17), Tally()
        self.search = Search(XEN_4_17, Facts(XEN_4_17, self.sorts), self.sorts, self.tally)

    def ended(self, verdict: str, note: str = "") -> Decided:
        """With this verdict."""
        return Decided(Finding(verdict, note), self.tally, self.paths)

    def counterexample(self) -> dict[str, Any] | None:
        """Arguments that break the contract, if there are any."""
        self.check_parameters()
        for run, kept in runs(self.once, lambda todo: GuidedRun(todo, True, self.search)):
            self.paths += kept is not None
            if kept is False:
                found = self.arguments(run.taken)
                if found is not None:
                    return found
        return None

    def check_parameters(self) -> None:
        """Each parameter is a truth value, or a number for which a range is stated."""
        kinds, ranged = self.contract.parameters, {name for bound in self.contract.bounds for name in bound.names}
        free = [name for name, kind in kinds.items() if kind is not bool and (kind is not int or name not in ranged)]
        if free:
            raise gap(f"no range is stated for {', '.join(free)}")

    def once(self) -> bool | None:
        """Whether this path keeps the contract; None: the contract says nothing of it, or it cannot happen."""
        try:
            given = {name: decide(z) if z.op.startswith("bool") else IntTerm(z) for name, z in self.unknowns.items()}
            if not self.contract.meets(given):
                return None
            self.check_ranges(given)
            return self.contract.keeps(given)
        except DeadPath:
            return None

    def check_ranges(self, given: dict[str, Any]) -> None:
        """No parameter can be wider than a term of it."""
        for bound in self.contract.bounds:
            limit = int_value(self.contract.value(bound.limit, given))
            if isinstance(limit, Node):
                raise gap("a parameter's range ends in a term")
            if limit + bound.included > 1 << BITS:
                raise gap(f"a parameter may be beyond {BITS} bits")

    def arguments(self, taken: Taken) -> dict[str, Any] | None:
        """Arguments that take this path, if there are any."""
        solver = z3.Solver()
        solver.set("rlimit", self.effort)
        solver.add(*(self.sorts.boolean(z if way else build("not", z)) for z, way in taken))
        answer = self.tally.check(solver)
        if answer == z3.unknown:
            raise gap(f"no answer with an effort of {self.effort:,}")
        return self.read(solver.model()) if answer == z3.sat else None

    def read(self, model: Any) -> dict[str, Any]:
        """The parameters' values in a model."""
        def value(z: Node, kind: type) -> Any:
            if kind is bool:
                return z3.is_true(model.eval(self.sorts.boolean(z), model_completion=True))
            return model.eval(self.sorts.word(z, BITS), model_completion=True).as_long()
        return {name: value(z, self.contract.parameters[name]) for name, z in self.unknowns.items()}


# --- rows of the ledger ------------------------------------------------------------------------------------------------------

def discharge_leaves(wanted: list[Obligation], effort: int) -> list[Row]:
    """The rows of obligations that are contracts of the leaves."""
    by_name = {c.name: c for c in contracts()}
    return [row(o, by_name[o.part], effort) for o in wanted]


def row(o: Obligation, contract: Contract, effort: int) -> Row:
    """One tool's counterexample outweighs another's proof."""
    ours = decided(contract, effort)
    findings = {"the engine": ours.finding}
    if contract.name in DECIDES and is_installed():
        findings["CrossHair"] = crosshair(contract)
    verdict, detail = judged(findings)
    tally = ours.tally
    return Row(o.profile, o.name, o.about, verdict, ours.paths, tally.queries, round(tally.seconds, 3), round(tally.slowest, 3),
               tally.effort, detail)


def judged(findings: dict[str, Finding]) -> tuple[str, str]:
    """The verdict of all tools, and whose it is."""
    by = {verdict: [tool for tool, finding in findings.items() if finding.verdict == verdict]
          for verdict in (REFUTED, PROVED, UNKNOWN)}
    verdict = next(verdict for verdict, tools in by.items() if tools)
    parts = [f"by {' and '.join(by[PROVED])}"] if verdict == PROVED else []
    parts += [f"{tool}: {findings[tool].note}" for tool in by[REFUTED] or by[UNKNOWN]]
    if by[REFUTED] and by[PROVED]:
        parts.append("the tools contradict each other")
    return verdict, "; ".join(parts)


def called(contract: Contract, arguments: dict[str, Any]) -> str:
    """A call, as it is written."""
    shown = (f"{name}={v}" if isinstance(v, bool) else f"{name}={v:#x}" for name, v in arguments.items())
    return f"{contract.name}({', '.join(shown)})"
