"""Expressions over unknowns, and the terms that carry them through the rules of `spec`: Python's operators build expressions.

What a term cannot follow is refused by a `SemanticGap`.  Nothing can catch `is` here: the project's lint does.  Numbers are
Python's, unbounded; how a solver holds them is the business of `proofs.symbolic.sorts`.
"""
import itertools
import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, NoReturn, Protocol

# These are no `Exception`s, lest a broad `except` in a rule swallows one.

class SemanticGap(BaseException):
    """The code did something that a term cannot follow faithfully."""


class GuardAfterEffect(BaseException):
    """The code refused, or could have, after it had written: a refusal would leave a trace."""


class TooManyPaths(BaseException):
    """The code branches more often than anyone would want to prove."""


# --- values ------------------------------------------------------------------------------------------------------------------

@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """An expression over unknowns.  Equal ones are the same object."""
    op: str
    args: tuple[Any, ...]                   # Values
    serial: int                             # in the order of their making

    def __repr__(self) -> str:
        return f"{self.op}({', '.join(map(str, self.args))})"


Value = Node | int                          # (a bool is an int)
_serial: Final = itertools.count()
node: Final = lru_cache(maxsize=None, typed=True)(lambda op, *args: Node(op, args, next(_serial)))

FOLD: Final[dict[str, Callable[..., int]]] = {
    "+": operator.add, "-": operator.sub, "*": operator.mul, "&": operator.and_, "|": operator.or_, "^": operator.xor,
    "<<": operator.lshift, ">>": operator.rshift, "//": operator.floordiv, "%": operator.mod,
    "==": operator.eq, "<=": operator.le, "not": operator.not_,
    "and": lambda a, b: a and b, "or": lambda a, b: a or b, "ite": lambda c, a, b: a if c else b}
LOGIC: Final = frozenset(("not", "and", "or", "ite", "==", "<="))


def build(op: str, *args: Value) -> Value:
    """The expression, with its constants folded."""
    if not any(isinstance(a, Node) for a in args):
        return FOLD[op](*args)
    match op, args:
        case "not", (Node("not", (inner,)),):
            return inner                    # type: ignore[no-any-return]
        case "ite", (bool(c), a, b):
            return a if c else b
        case "ite", (c, a, b) if a is b:
            return a
        case "ite", (c, True, False):
            return c
        case "ite", (c, False, True):
            return build("not", c)
        case ("and" | "or"), (a, b) if a is b:
            return a
        case ("and" | "or"), ((bool(k), a) | (a, bool(k))):
            return a if k == (op == "and") else k
        case ("==" | "<="), (a, b) if a is b:
            return True
        case "|", ((a, int(k)) | (int(k), a)) if k == 0:
            return a
        case ("&" | "|"), (Node(same, (a, int(j))), int(k)) if same == op:
            return build(op, a, FOLD[op](j, k))
        case "&", (Node("|", (a, int(j))), int(k)) if j & k == 0:
            return build(op, a, k)
        case "|", (Node("&", (a, int(j))), int(k)) if j | k == -1:
            return build(op, a, k)
        case "==", (int(), Node()):
            return build(op, *reversed(args))
        case "==", (Node("ite", (c, a, b)), int(k)):
            return build("ite", c, build(op, a, k), build(op, b, k))
        case "==", (Node() as a, Node() as b) if a.serial > b.serial:
            return node(op, b, a)
    return node(op, *args)


class Deciding(Protocol):
    """A run of a function on terms, which says which way a term's truth sends it."""
    gap: SemanticGap | None
    pure: bool
    known: dict[Node, int]

    def reduce(self, z: Value) -> Value:
        """The expression under what is known."""

    def decide(self, z: Value) -> bool:
        """The truth of an expression on this run."""


active: Final[list[Deciding]] = []          # the run in progress, under those that wait for it


def decide(z: Value) -> bool:
    """The truth of an expression on the run in progress."""
    if isinstance(z, Node) and not active:
        raise SemanticGap("the truth of a term outside a run")
    return active[-1].decide(z) if active else bool(z)


# --- terms -------------------------------------------------------------------------------------------------------------------

class Term:
    """A value that only its expression tells."""
    __slots__ = ("z",)
    __class__ = property(lambda self: refused("isinstance")(self) if active else type(self))   # outside a run, tools may ask

    def __init__(self, z: Value) -> None:
        self.z = z

    def __repr__(self) -> str:
        return str(self.z)


def gap(why: str) -> SemanticGap:
    """The refusal of a step that terms cannot follow; remembered, so that nobody can swallow it."""
    refusal = SemanticGap(why)
    for run in active:
        run.gap = run.gap or refusal
    return refusal


def refused(name: str) -> Any:
    """A method that is refused: it asks a term for the value that it does not have."""
    def method(self: Any, *_: Any) -> NoReturn:
        raise gap(f"{name} of a term")
    return method


NO_TERM: Final = ("__hash__", "__index__", "__int__", "__float__", "__round__", "__iter__", "__len__", "__contains__",
                  "__getitem__", "__str__", "__format__", "__bytes__", "__invert__", "__call__", "__divmod__", "__truediv__",
                  "__pow__", "__rpow__", "__rlshift__", "__rrshift__", "__rfloordiv__", "__rmod__", "__rtruediv__")


def bool_value(x: Any) -> Value:
    """The expression of a truth value."""
    if type(x) is BoolTerm:
        return x.z
    if type(x) is bool:
        return x
    raise gap(f"{x!r} is no truth value")


def int_value(x: Any) -> Value:
    """The expression of a number; IntEnum constants are numbers."""
    if type(x) is IntTerm:
        return x.z
    if type(x) is not BoolTerm and isinstance(x, int) and not isinstance(x, bool):
        return int(x)
    raise gap(f"{x!r} is no number")


class BoolTerm(Term):
    """A truth value."""

    def __bool__(self) -> bool: return decide(self.z)
    def __eq__(self, o: object) -> Any: return BoolTerm(build("==", self.z, bool_value(o)))
    def __ne__(self, o: object) -> Any: return BoolTerm(build("not", build("==", self.z, bool_value(o))))
    def __and__(self, o: object) -> Any: return BoolTerm(build("and", self.z, bool_value(o)))
    def __or__(self, o: object) -> Any: return BoolTerm(build("or", self.z, bool_value(o)))
    __rand__, __ror__ = __and__, __or__
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __xor__ = __rxor__ = __lt__ = __le__ = __gt__ = __ge__ = \
        __lshift__ = __rshift__ = __floordiv__ = __mod__ = __neg__ = refused("arithmetic")


class IntTerm(Term):
    """A number, unbounded like Python's."""

    def __bool__(self) -> bool: return not decide(build("==", self.z, 0))
    def __eq__(self, o: object) -> Any: return BoolTerm(build("==", self.z, int_value(o)))
    def __ne__(self, o: object) -> Any: return BoolTerm(build("not", build("==", self.z, int_value(o))))
    def __le__(self, o: object) -> Any: return BoolTerm(build("<=", self.z, int_value(o)))
    def __ge__(self, o: object) -> Any: return BoolTerm(build("<=", int_value(o), self.z))
    def __lt__(self, o: object) -> Any: return BoolTerm(build("not", build("<=", int_value(o), self.z)))
    def __gt__(self, o: object) -> Any: return BoolTerm(build("not", build("<=", self.z, int_value(o))))
    def __neg__(self) -> Any: return IntTerm(build("-", 0, self.z))


def operation(op: str, swapped: bool = False, constant: bool = False) -> Callable[[IntTerm, object], IntTerm]:
    """An operator on numbers; some only take a constant on the right."""
    def method(self: IntTerm, o: object) -> IntTerm:
        b = int_value(o)
        if constant and isinstance(b, Node):
            raise gap(f"{op} by a term")
        return IntTerm(build(op, b, self.z) if swapped else build(op, self.z, b))
    return method


for _op, _name in {"+": "add", "-": "sub", "*": "mul", "&": "and", "|": "or", "^": "xor"}.items():
    setattr(IntTerm, f"__{_name}__", operation(_op))
    setattr(IntTerm, f"__r{_name}__", operation(_op, swapped=True))
for _op, _name in {"<<": "lshift", ">>": "rshift", "//": "floordiv", "%": "mod"}.items():
    setattr(IntTerm, f"__{_name}__", operation(_op, constant=True))
for _name in NO_TERM:
    for _kind in (BoolTerm, IntTerm):
        setattr(_kind, _name, refused(_name))


def term(kind: str, z: Value) -> Any:
    """A term of a kind of the schema."""
    return BoolTerm(z) if kind == "bool" else IntTerm(z)
