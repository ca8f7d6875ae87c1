"""Says which condition of a plain-Python predicate decided that it is False, in the words of its text."""
import ast
import inspect
import sys
import textwrap
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any, Final

SMALL: Final = 4096                         # numbers from here on are shown in hexadecimal


def because(function: Callable[..., Any], *args: Any) -> str:
    """The condition that makes `function(*args)` False: place, text, what it is, and the values of what it looks up.

    For example `spec/invariants.py:74: s.type_count[f] > 0 is False (type_count[3] = 0)`; '' if it is True.  Of several conjuncts
    it is the first that fails, of several disjuncts the first that holds.  The function runs once more; it must be pure.
    """
    function = inspect.unwrap(function)
    value, last = run_to_the_end(function, args)
    if value or last is None:
        return ""
    body, conditions = text_of(function)
    frame, line = last
    statement = max((node for node in conditions if node.lineno <= line <= (node.end_lineno or 0)), key=lambda n: n.lineno)
    test, way = deciding(body, statement)
    part, holds = decisive(test, way, frame)
    looked_up = ", ".join(dict.fromkeys(values(part, frame)))
    inner = "" if holds or not isinstance(part, ast.Call) else called(part, frame)
    text = f"({ast.unparse(part)})" if isinstance(part, ast.BoolOp) else ast.unparse(part)
    return f"{place(function)}:{part.lineno}: {text} is {holds}" + (f" ({looked_up})" if looked_up else "") + inner


def called(call: ast.Call, frame: FrameType) -> str:
    """Why a predicate of the specification that a condition calls is False, to go on with; '' for other calls."""
    function = evaluate(call.func, frame)
    if not getattr(function, "is_predicate", False):
        return ""
    return f", since {because(function, *(evaluate(each, frame) for each in call.args))}"


def run_to_the_end(function: Callable[..., Any], args: tuple[Any, ...]) -> tuple[Any, tuple[FrameType, int] | None]:
    """What it returns, with its frame and the line that it returned from."""
    last: tuple[FrameType, int] | None = None

    def enter(frame: FrameType, event: str, arg: Any) -> Any:
        return leave if frame.f_code is function.__code__ else None

    def leave(frame: FrameType, event: str, arg: Any) -> Any:
        nonlocal last
        if event == "return":
            last = frame, frame.f_lineno
        return leave

    before = sys.gettrace()
    sys.settrace(enter)
    try:
        return function(*args), last
    finally:
        sys.settrace(before)


@cache
def text_of(function: Callable[..., Any]) -> tuple[ast.AST, tuple[ast.Return, ...]]:
    """The function as a tree with the lines of its file, and its return statements."""
    lines, first = inspect.getsourcelines(function)
    tree = ast.increment_lineno(ast.parse(textwrap.dedent("".join(lines))), first - 1)
    return tree, tuple(node for node in ast.walk(tree) if isinstance(node, ast.Return))


def deciding(body: ast.AST, statement: ast.Return) -> tuple[ast.expr, bool]:
    """What a return statement gives, and that it is False; where that is a plain False, the test that led to it, and its way."""
    if statement.value is not None and not isinstance(statement.value, ast.Constant):
        return statement.value, False
    for node in ast.walk(body):
        if isinstance(node, ast.If) and statement in node.body:
            return node.test, True
        if isinstance(node, ast.If) and statement in node.orelse:
            return node.test, False
    return statement.value or ast.Constant(None), False


def decisive(test: ast.expr, way: bool, frame: FrameType) -> tuple[ast.expr, bool]:
    """The part of a condition that alone makes it what it is, and what that part is."""
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        return decisive(test.operand, not way, frame)
    if isinstance(test, ast.BoolOp) and isinstance(test.op, ast.Or) == way:
        part = next(each for each in test.values if bool(evaluate(each, frame)) == way)
        return decisive(part, way, frame)
    if isinstance(test, ast.IfExp):
        return decisive(test.body if evaluate(test.test, frame) else test.orelse, way, frame)
    if isinstance(test, ast.Compare) and len(test.ops) > 1 and not way:
        links = zip([test.left, *test.comparators], test.ops, test.comparators, strict=False)
        pairs = (ast.copy_location(ast.Compare(a, [op], [b]), a) for a, op, b in links)
        return next(pair for pair in pairs if not evaluate(pair, frame)), way
    return test, way


def evaluate(node: ast.expr, frame: FrameType) -> Any:
    """The value of an expression where the function returned."""
    return eval(compile(ast.fix_missing_locations(ast.Expression(node)), "<condition>", "eval"), frame.f_globals, frame.f_locals)


def values(part: ast.expr, frame: FrameType) -> Iterator[str]:
    """What the condition looks up: maps of the state, ghost sums, and the function's own numbers that are no keys."""
    keys = {id(name) for node in ast.walk(part) if isinstance(node, ast.Subscript) for name in ast.walk(node)}
    found = (node for node in ast.walk(part) if isinstance(node, (ast.Subscript, ast.Name)))
    for node in sorted(found, key=lambda node: (node.lineno, node.col_offset, isinstance(node, ast.Name))):
        if isinstance(node, ast.Subscript):
            name = ast.unparse(node.value).removeprefix("s.")
            key = evaluate(node.slice, frame)
            where = ", ".join(map(shown, key)) if isinstance(key, tuple) else shown(key)
            yield f"{name}[{where}] = {shown(evaluate(node, frame))}"
        elif id(node) not in keys and isinstance(frame.f_locals.get(node.id), (int, str)):
            yield f"{node.id} = {shown(frame.f_locals[node.id])}"


def shown(value: Any) -> str:
    """A number as people write it: small ones in decimal."""
    return hex(value) if isinstance(value, int) and not isinstance(value, bool) and value >= SMALL else str(value)


def place(function: Callable[..., Any]) -> str:
    """The function's file, from its package on."""
    path = Path(inspect.getfile(function))
    top = function.__module__.split(".")[0]
    parts = path.parts
    return "/".join(parts[len(parts) - 1 - parts[::-1].index(top):]) if top in parts else path.name
