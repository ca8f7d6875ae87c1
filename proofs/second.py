"""A second opinion: what one solver proved is asked again of another, which reads the same question as SMT-LIB text.

That is cvc5.  Bitwuzla has no integers, and nearly every query has counts in it.  (Bit-vectors instead are exact only if as
wide as the small-model bound of the linear constraints, hundreds of bits; at 64, not exact, it is slower than cvc5 on integers.)
"""
from collections.abc import Collection
from importlib.metadata import PackageNotFoundError, version
from typing import Final

SOLVERS: Final = ("cvc5",)
EFFORT: Final = 5_000_000                   # of the solver for one query, in its own units: some 200 thousand take a second
AGREES: Final = "agrees"
NO_ANSWER: Final = "no answer"
CONTRADICTS: Final = "contradicts"
NOTHING: Final = "nothing to ask"           # every goal is true without a solver


def missing(name: str) -> str:
    """Why this solver can't be asked, in a sentence; empty if it can."""
    if name == "bitwuzla":
        return "bitwuzla has no integers, and the specification counts: ask cvc5"
    if name not in SOLVERS:
        return f"no second solver is called {name!r}; there is: {', '.join(SOLVERS)}"
    try:
        version(name)
    except PackageNotFoundError:
        return f"{name} is not installed; it comes with the extra 'proofs' (pip install 'xenspec[proofs]')"
    return ""


def identity(name: str) -> str:
    """The solver with its version and how hard it tries: answers depend on nothing else."""
    return f"{name} {version(name)} {EFFORT}"


def ask(name: str, text: str, effort: int = EFFORT) -> str:
    """What the second solver says of a query that the first found to have no model."""
    said = {"cvc5": cvc5}[name](text, effort)
    return {"unsat": AGREES, "unknown": NO_ANSWER, "sat": CONTRADICTS}[said]


def cvc5(text: str, effort: int) -> str:
    """cvc5's answer to a script: sat, unsat or unknown; RuntimeError if it can't read it."""
    from cvc5 import InputLanguage, InputParser, Solver, TermManager
    solver = Solver(TermManager())
    solver.setOption("strict-parsing", "true")
    solver.setOption("rlimit", str(effort))
    parser = InputParser(solver)
    parser.setStringInput(InputLanguage.SMT_LIB_2_6, text, "query")
    said = ""
    while not (command := parser.nextCommand()).isNull():
        said += command.invoke(solver, parser.getSymbolManager())
    return said.split()[0]                  # it adds why it does not know


def opinion(answers: Collection[str]) -> str:
    """Of a row, from the answers to all queries that it rests on."""
    return next((a for a in (CONTRADICTS, NO_ANSWER, AGREES) if a in answers), NOTHING)
