"""Contracts as PEP 316 docstrings state them: read from the functions of a module, and asked of arguments, plain or terms."""
import ast
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from types import CodeType, ModuleType
from typing import Any

from proofs import leaves
from spec.kernel import RULES


@dataclass(frozen=True, slots=True)
class Finding:
    """What one tool says of one contract: a verdict of the ledger, and the call that breaks it or why it is open."""
    verdict: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Bound:
    """A condition `0 <= a <= b < limit`: it keeps the parameters in it from 0 to below the limit (or, `included`, to it)."""
    names: frozenset[str]
    limit: CodeType
    included: bool


@dataclass(frozen=True)
class Contract:
    """One function with conditions on what goes in and what comes out."""
    name: str
    sentence: str
    pre: tuple[str, ...]
    post: tuple[str, ...]
    first: int                              # its lines in the file
    last: int
    function: Callable[..., Any]

    @property
    def parameters(self) -> dict[str, type]:
        """The type of each."""
        return {p.name: p.annotation for p in inspect.signature(self.function).parameters.values()}

    @cached_property
    def bounds(self) -> tuple[Bound, ...]:
        """The ranges that the conditions state for the parameters."""
        return tuple(bounds(self))

    def meets(self, arguments: Mapping[str, Any]) -> bool:
        """The arguments are among those of which the contract says something."""
        return all(self.value(text, arguments) for text in self.pre)

    def keeps(self, arguments: Mapping[str, Any]) -> bool:
        """What comes out is as the contract says; whatever the function raises breaks it."""
        try:
            given = self.function(**arguments)
        except Exception:
            return False
        return all(self.value(text, {**arguments, "__return__": given}) for text in self.post)

    def value(self, condition: str | CodeType, names: Mapping[str, Any]) -> Any:
        """What a condition's text comes to."""
        return eval(condition, self.function.__globals__, {**names})


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


def row_name(contract: Contract) -> str:
    """The name of its row in the ledger."""
    return f"{contract.sentence.removesuffix('.')} (leaf {contract.name})"


def rules_of(contract: Contract) -> tuple[str, ...]:
    """The ids of the rules in `spec` that call what the contract's function calls."""
    called = set(callees(contract.function))
    return tuple(r.id for r in RULES.values() if r.function.__module__.startswith("spec.") and called & set(callees(r.function)))


def callees(function: Callable[..., Any]) -> Iterator[Callable[..., Any]]:
    """The functions of `spec` that a function's text names; a function beside it that it names counts as part of it."""
    module = function.__module__
    for name in function.__code__.co_names:
        found = function.__globals__.get(name)
        if inspect.isfunction(found) and found.__module__.startswith("spec."):
            yield found
        elif inspect.isfunction(found) and found.__module__ == module:
            yield from callees(found)


def bounds(contract: Contract) -> Iterator[Bound]:
    """The conjuncts of a contract's conditions that state ranges."""
    for text in contract.pre:
        tree = ast.parse(text, mode="eval").body
        for part in tree.values if isinstance(tree, ast.BoolOp) and isinstance(tree.op, ast.And) else [tree]:
            if (isinstance(part, ast.Compare) and isinstance(part.left, ast.Constant) and part.left.value in (0, 1)
                    and all(isinstance(op, ast.Lt | ast.LtE) for op in part.ops)):
                names = frozenset(x.id for x in part.comparators[:-1] if isinstance(x, ast.Name))
                limit = compile(ast.Expression(part.comparators[-1]), contract.name, "eval")
                yield Bound(names, limit, isinstance(part.ops[-1], ast.LtE))
