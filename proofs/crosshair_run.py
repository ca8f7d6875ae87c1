"""Decides the contracts of `proofs.leaves` twice: by CrossHair, and by running the same contract on Z3 bit-vectors.

`python -m proofs.crosshair_run` prints one row a contract.  A contract is confirmed if either tool confirms it over all paths and
neither finds a counterexample.  CrossHair exits alike for "Confirmed" and "Not confirmed", so its output is parsed; it leaves
most contracts with `|` or odd masks open, where Z3 takes milliseconds.
"""
import argparse
import ast
import importlib.util
import inspect
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, Final, NoReturn

import z3

from proofs import leaves

CONFIRMED, REFUTED, UNKNOWN, SKIPPED = "confirmed", "refuted", "unknown", "-"
BUDGET: Final = 2.0                         # CPU seconds of CrossHair for one condition
BITS: Final = 64                            # of a parameter: its contract must keep it below 1 << 64
MAX_PATHS: Final = 5000
OK, OPEN, NO_CROSSHAIR = 0, 1, 2            # exit codes


@dataclass(frozen=True, slots=True)
class Contract:
    """One function with conditions on what goes in and what comes out."""
    name: str
    sentence: str
    pre: tuple[str, ...]
    post: tuple[str, ...]
    first: int                              # its lines in the file
    last: int
    function: Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Finding:
    """What one tool says of one contract: the verdict, and the call that breaks it or why it is open."""
    verdict: str
    note: str = ""
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Row:
    """One contract with its verdict, who decided it, and how long both took."""
    name: str
    sentence: str
    verdict: str
    by: tuple[str, ...]
    crosshair: str
    z3: str
    note: str
    seconds: float


class NoCrossHair(Exception):
    """CrossHair is not installed, or broke down."""


# --- the contracts -----------------------------------------------------------------------------------------------------------

def contracts(module: ModuleType = leaves) -> tuple[Contract, ...]:
    """The contracts of a module, in the order of its text."""
    found = [c for _, f in inspect.getmembers(module, inspect.isfunction) if f.__module__ == module.__name__
             for c in [contract(f)] if c.post]
    return tuple(sorted(found, key=lambda c: c.first))


def contract(function: Callable[..., Any]) -> Contract:
    """The contract that a function's docstring states."""
    doc = inspect.cleandoc(function.__doc__ or "")
    conditions = re.findall(r"^(pre|post): *(.+)$", doc, re.MULTILINE)
    lines, first = inspect.getsourcelines(function)
    return Contract(function.__name__, doc.split("\n\n")[0].replace("\n", " "),
                    tuple(text for kind, text in conditions if kind == "pre"),
                    tuple(text for kind, text in conditions if kind == "post"), first, first + len(lines) - 1, function)


def load(file: Path) -> ModuleType:
    """A module from a file that need not be in a package."""
    spec = importlib.util.spec_from_file_location(file.stem, file)
    if spec is None or spec.loader is None:
        raise FileNotFoundError(file)
    module = sys.modules[file.stem] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# --- CrossHair ---------------------------------------------------------------------------------------------------------------

_LINE: Final = re.compile(r"^(?P<file>.+?):(?P<line>\d+): (?P<kind>error|warning|info): (?P<text>.*)$")


def crosshair(contract: Contract, budget: float = BUDGET) -> Finding:
    """What CrossHair says of a contract, from a process of its own."""
    if importlib.util.find_spec("crosshair") is None:
        raise NoCrossHair("CrossHair is not installed: pip install 'crosshair-tool>=0.0.113,<0.1'")
    start = time.perf_counter()
    file = inspect.getfile(contract.function)
    root = Path(leaves.__file__).parents[1]
    path = os.pathsep.join(filter(None, (str(root), os.environ.get("PYTHONPATH"))))
    try:
        done = subprocess.run(
            [sys.executable, "-m", "crosshair", "check", "--report_all", "--analysis_kind=PEP316",
             f"--per_condition_timeout={budget}", f"{file}:{contract.first}"], capture_output=True, text=True, check=False,
            timeout=30 + 10 * budget * len(contract.post), cwd=root, env=os.environ | {"PYTHONPATH": path, "PYTHONHASHSEED": "0"})
    except subprocess.TimeoutExpired:
        return Finding(UNKNOWN, "CrossHair did not end", time.perf_counter() - start)
    if done.returncode not in (0, 1):
        raise NoCrossHair(f"crosshair ended with {done.returncode}: {(done.stderr or done.stdout).strip()[-2000:]}")
    verdict, note = parse(done.stdout, contract.first, contract.last, len(contract.post))
    return Finding(verdict, note, time.perf_counter() - start)


def parse(output: str, first: int, last: int, conditions: int) -> tuple[str, str]:
    """The verdict that CrossHair's lines give of the contract in lines [first, last]: each condition must be confirmed."""
    confirmed, notes = 0, []
    for line in output.splitlines():
        match = _LINE.match(line)
        if not match or not first <= int(match["line"]) <= last:
            continue
        text = match["text"].strip()
        if match["kind"] == "error":
            return REFUTED, text
        if text == "Confirmed over all paths.":
            confirmed += 1
        elif text not in notes:
            notes.append(text)
    if confirmed == conditions and not notes:
        return CONFIRMED, ""
    return UNKNOWN, "; ".join(notes) or f"{confirmed} of {conditions} conditions confirmed"


# --- Z3: ints of unbounded size, as signed bit-vectors that grow ------------------------------------------------------------

class CannotFollow(Exception):
    """The contract does something that a term cannot follow."""


class Run:
    """One run of a contract: what it decided so far, and the ways that it left."""

    def __init__(self, todo: tuple[bool, ...]) -> None:
        self.todo = todo
        self.taken: list[bool] = []
        self.others: list[tuple[bool, ...]] = []
        self.solver = z3.Solver()
        self.solver.set("timeout", 20_000)

    def decide(self, condition: Any) -> bool:
        """The truth of a condition on this run; ways that cannot happen are not taken."""
        condition = z3.simplify(condition)
        if z3.is_true(condition) or z3.is_false(condition):
            return bool(z3.is_true(condition))
        n = len(self.taken)
        if n < len(self.todo):
            way = self.todo[n]
        else:
            can, cannot = self.possible(condition), self.possible(z3.Not(condition))
            way = can
            if can and cannot:
                self.others.append((*self.taken, False))
        self.taken.append(way)
        self.solver.add(condition if way else z3.Not(condition))
        return way

    def possible(self, condition: Any) -> bool:
        """The run can go on where the condition holds."""
        answer = self.solver.check(condition)
        if answer == z3.unknown:
            raise CannotFollow(f"Z3 gives up: {self.solver.reason_unknown()}")
        return bool(answer == z3.sat)


class Term:
    """A number that only its expression tells: a signed bit-vector wide enough for every value that it can have."""
    __slots__ = ("run", "z")
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, run: Run, z: Any) -> None:
        self.run, self.z = run, z

    def widened(self, o: object, more: int = 0) -> tuple[Any, Any]:
        """Both numbers at one width, that many bits wider than the wider one."""
        if isinstance(o, Term):
            other = o.z
        elif isinstance(o, int):
            other = z3.BitVecVal(int(o), int(o).bit_length() + 1)
        else:
            raise CannotFollow(f"{o!r} is no number")
        width = max(self.z.size(), other.size()) + more
        return z3.SignExt(width - self.z.size(), self.z), z3.SignExt(width - other.size(), other)

    def shift(self, o: object) -> int:
        """A distance, which must be known."""
        if not isinstance(o, int) or o < 0:
            raise CannotFollow("a shift by a term")
        return int(o)

    def power(self, o: object) -> int:
        """k, of a known divisor 1 << k."""
        if not isinstance(o, int) or o <= 0 or o & (o - 1):
            raise CannotFollow("a division by something else than a power of two")
        return o.bit_length() - 1

    def term(self, z: Any) -> "Term":
        """A number of the same run."""
        return Term(self.run, z)

    def compare(self, o: object, relation: Callable[[Any, Any], Any]) -> bool:
        """Decide a relation."""
        return self.run.decide(relation(*self.widened(o)))

    def __add__(self, o: object) -> "Term":
        a, b = self.widened(o, 1)
        return self.term(a + b)

    def __sub__(self, o: object) -> "Term":
        a, b = self.widened(o, 1)
        return self.term(a - b)

    def __rsub__(self, o: object) -> "Term":
        a, b = self.widened(o, 1)
        return self.term(b - a)

    def __mul__(self, o: object) -> "Term":
        a, b = self.widened(o)
        a, b = self.widened(o, a.size())
        return self.term(a * b)

    def __and__(self, o: object) -> "Term":
        a, b = self.widened(o)
        return self.term(a & b)

    def __or__(self, o: object) -> "Term":
        a, b = self.widened(o)
        return self.term(a | b)

    def __xor__(self, o: object) -> "Term":
        a, b = self.widened(o)
        return self.term(a ^ b)

    def __lshift__(self, o: object) -> "Term":
        k = self.shift(o)
        return self.term(z3.SignExt(k, self.z) << k)

    def __rshift__(self, o: object) -> "Term":
        k = min(self.shift(o), self.z.size() - 1)
        return self.term(z3.Extract(self.z.size() - 1, k, self.z))

    def __floordiv__(self, o: object) -> "Term":
        return self >> self.power(o)

    def __mod__(self, o: object) -> "Term":
        k = self.power(o)
        wide = z3.SignExt(k + 1, self.z)
        return self.term(z3.ZeroExt(1, z3.Extract(k - 1, 0, wide)) if k else z3.BitVecVal(0, 1))

    def __invert__(self) -> "Term": return self.term(~self.z)
    def __neg__(self) -> "Term": return 0 - self
    def __bool__(self) -> bool: return self != 0
    def __eq__(self, o: object) -> bool: return self.compare(o, lambda a, b: a == b)
    def __ne__(self, o: object) -> bool: return not self == o
    def __lt__(self, o: object) -> bool: return self.compare(o, lambda a, b: a < b)
    def __le__(self, o: object) -> bool: return self.compare(o, lambda a, b: a <= b)
    def __gt__(self, o: object) -> bool: return self.compare(o, lambda a, b: a > b)
    def __ge__(self, o: object) -> bool: return self.compare(o, lambda a, b: a >= b)
    __radd__, __rmul__, __rand__, __ror__, __rxor__ = __add__, __mul__, __and__, __or__, __xor__

    def _refuse(self, *_: object) -> NoReturn:
        raise CannotFollow("the contract asks a term for its value")

    __index__ = __int__ = __float__ = __round__ = __iter__ = __len__ = __contains__ = __getitem__ = __str__ = __repr__ = _refuse
    __rlshift__ = __rrshift__ = __rfloordiv__ = __rmod__ = __truediv__ = __rtruediv__ = __pow__ = __rpow__ = _refuse
    __divmod__ = __rdivmod__ = __format__ = _refuse


@dataclass(frozen=True, slots=True)
class Bound:
    """A condition `0 <= a <= b < limit`: it keeps the parameters in it from 0 to below the limit (or, `included`, to it)."""
    names: frozenset[str]
    limit: CodeType
    included: bool


def bounds(contract: Contract) -> Iterator[Bound]:
    """The ranges that a contract's conditions state for its parameters, as conjuncts of their own."""
    for text in contract.pre:
        tree = ast.parse(text, mode="eval").body
        for part in tree.values if isinstance(tree, ast.BoolOp) and isinstance(tree.op, ast.And) else [tree]:
            if (isinstance(part, ast.Compare) and isinstance(part.left, ast.Constant) and part.left.value in (0, 1)
                    and all(isinstance(op, ast.Lt | ast.LtE) for op in part.ops)):
                names = frozenset(x.id for x in part.comparators[:-1] if isinstance(x, ast.Name))
                limit = compile(ast.Expression(part.comparators[-1]), contract.name, "eval")
                yield Bound(names, limit, isinstance(part.ops[-1], ast.LtE))


def decide(contract: Contract) -> Finding:
    """Run a contract on terms, on every path that can happen; a counterexample is run again on plain ints."""
    start = time.perf_counter()
    try:
        verdict, note = explore(contract)
    except CannotFollow as e:
        verdict, note = UNKNOWN, str(e)
    return Finding(verdict, note, time.perf_counter() - start)


def explore(contract: Contract) -> tuple[str, str]:
    """The verdict over all paths; no path at all is none."""
    kinds = {p.name: p.annotation for p in inspect.signature(contract.function).parameters.values()}
    limits = tuple(bounds(contract))
    free = [n for n, kind in kinds.items() if kind is not bool and not any(n in b.names for b in limits)]
    if free or not set(kinds.values()) <= {int, bool}:
        raise CannotFollow(f"no range is stated for {', '.join(free) or 'a parameter that is no int'}")
    constants: dict[str, Any] = {n: z3.Bool(n) if kind is bool else z3.BitVec(n, BITS) for n, kind in kinds.items()}
    codes = {text: compile(text, contract.name, "eval") for text in (*contract.pre, *contract.post)}
    work: list[tuple[bool, ...]] = [()]
    paths = met = 0
    while work:
        paths += 1
        if paths > MAX_PATHS:
            raise CannotFollow(f"more than {MAX_PATHS} paths")
        run = Run(work.pop())
        arguments = {n: run.decide(c) if z3.is_bool(c) else Term(run, z3.ZeroExt(1, c)) for n, c in constants.items()}
        holds = holds_of(contract, codes, limits, arguments)
        work += run.others
        met += holds is not None
        if holds is False:
            return replay(contract, codes, run, constants)
    return (CONFIRMED, "") if met else (UNKNOWN, "no argument meets the conditions")


def holds_of(contract: Contract, codes: Mapping[str, CodeType], limits: Iterable[Bound],
             arguments: Mapping[str, Any]) -> bool | None:
    """A contract holds for these arguments (terms or plain); None: it says nothing of them."""
    names = contract.function.__globals__
    if not all(eval(codes[text], names, {**arguments}) for text in contract.pre):
        return None
    for bound in limits:
        limit = eval(bound.limit, names, {**arguments})
        if isinstance(limit, Term):
            raise CannotFollow("a parameter's range ends in a term")
        if limit + bound.included > 1 << BITS:
            raise CannotFollow(f"a parameter may be beyond {BITS} bits")
    try:
        given = contract.function(**arguments)
    except CannotFollow:
        raise
    except Exception:
        return False                        # whatever a leaf raises breaks its contract
    return all(eval(codes[text], names, {**arguments, "__return__": given}) for text in contract.post)


def replay(contract: Contract, codes: Mapping[str, CodeType], run: Run, constants: Mapping[str, Any]) -> tuple[str, str]:
    """The counterexample that a run stands for, confirmed on plain ints."""
    if run.solver.check() != z3.sat:
        raise CannotFollow("Z3 finds no arguments for a path that it held possible")
    model = run.solver.model()
    plain: dict[str, Any] = {}
    for name, c in constants.items():
        value = model.eval(c, model_completion=True)
        plain[name] = z3.is_true(value) if z3.is_bool(c) else value.as_long()
    call = f"{contract.name}({', '.join(f'{n}={v}' if isinstance(v, bool) else f'{n}={v:#x}' for n, v in plain.items())})"
    if holds_of(contract, codes, (), plain) is not False:
        raise CannotFollow(f"the terms say that {call} breaks the contract, and it does not")
    return REFUTED, f"false when calling {call}"


# --- both --------------------------------------------------------------------------------------------------------------------

def judge(contract: Contract, by_crosshair: Finding) -> Row:
    """The row of one contract, given what CrossHair said of it."""
    by_z3 = decide(contract)
    tools = {"crosshair": by_crosshair, "z3": by_z3}
    verdicts = {finding.verdict for finding in tools.values()}
    verdict = REFUTED if REFUTED in verdicts else CONFIRMED if CONFIRMED in verdicts else UNKNOWN
    notes = [f"{tool}: {f.note}" for tool, f in tools.items() if f.note and (f.verdict == verdict or verdict == UNKNOWN)]
    if {CONFIRMED, REFUTED} <= verdicts:
        notes.append("the tools contradict each other")
    return Row(contract.name, contract.sentence, verdict, tuple(t for t, f in tools.items() if f.verdict == verdict),
               by_crosshair.verdict, by_z3.verdict, "; ".join(notes), round(by_crosshair.seconds + by_z3.seconds, 3))


def judge_all(which: Sequence[Contract] | None = None, budget: float = BUDGET, jobs: int = 1) -> Iterator[Row]:
    """The rows of all contracts, in the order of the text; a budget of 0 leaves CrossHair out.

    The budget is CPU time, so that the number of jobs changes no verdict.
    """
    which = contracts() if which is None else which
    with ThreadPoolExecutor(jobs) as pool:
        findings = pool.map(lambda c: crosshair(c, budget) if budget else Finding(SKIPPED), which)
        yield from map(judge, which, findings)


def summary(rows: Sequence[Row]) -> dict[str, int | float]:
    """How many there are, by verdict and by tool."""
    return {"contracts": len(rows), **{v: sum(r.verdict == v for r in rows) for v in (CONFIRMED, REFUTED, UNKNOWN)},
            "confirmed_by_crosshair": sum(r.crosshair == CONFIRMED for r in rows),
            "confirmed_by_z3": sum(r.z3 == CONFIRMED for r in rows), "seconds": round(sum(r.seconds for r in rows), 1)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a row a contract: 0 if all are confirmed, 1 if not, 2 if CrossHair is not there."""
    parser = argparse.ArgumentParser(prog="python -m proofs.crosshair_run", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="F", help="write the rows to this file")
    parser.add_argument("--only", default="", metavar="REGEX", help="contracts whose name it is found in")
    parser.add_argument("--seconds", type=float, default=BUDGET,
                        help="CrossHair's CPU time for a condition; 0 leaves it out (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=1, help="CrossHair processes at a time (default: %(default)s)")
    options = parser.parse_args(arguments)
    which = [c for c in contracts() if re.search(options.only, c.name)]
    rows: list[Row] = []
    try:
        for row in judge_all(which, options.seconds, options.jobs):
            rows.append(row)
            print(f"{row.verdict:9}  crosshair {row.crosshair:9}  z3 {row.z3:9}  {row.seconds:6.2f} s  {row.name}", flush=True)
            if row.note:
                print(f"           {row.note}")
    except NoCrossHair as e:
        print(e, file=sys.stderr)
        return NO_CROSSHAIR
    total = summary(rows)
    print(", ".join(f"{value} {name.replace('_', ' ')}" for name, value in total.items()))
    if options.json:
        options.json.write_text(json.dumps({"summary": total, "rows": [asdict(row) for row in rows]}, indent=1) + "\n")
    return OK if rows and all(row.verdict == CONFIRMED for row in rows) else OPEN


if __name__ == "__main__":
    sys.exit(main())
