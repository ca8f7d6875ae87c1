"""A symbolic stand-in: it runs the rules of `spec` on terms, without a solver, so that they stay within what terms can follow.

A rule's own function is run by *re-execution*: wherever it asks a term for its truth, it is run once for each answer.  A
transition gives all its paths; a `@predicate` called on the way is merged into one term (if-then-else), so that it costs no path.
Without a solver some paths can never happen; constants are folded, and what a path already decided is not asked twice.

What a term cannot follow is refused by a `SemanticGap`.  Nothing can catch `is` here: the project's lint does.
"""
import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache, partial, wraps
from typing import Any, Final, NoReturn, TypeVar

from spec import kernel
from spec.invariants import SUMS
from spec.kernel import SCHEMA, Refused, Rule
from spec.profile import Profile
from spec.rules import MODULES
from spec.x86.paging import Fault

LIMIT: Final = 4000                         # of paths through one function
T = TypeVar("T")


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
    args: tuple[Any, ...]                   # Values; of an unknown its name, too

    def __repr__(self) -> str:
        return f"{self.op}({', '.join(map(str, self.args))})"


Value = Node | int                          # (a bool is an int)
node: Final = lru_cache(maxsize=None, typed=True)(lambda op, *args: Node(op, args))

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
        case "==", (int(), Node()):
            return build(op, *reversed(args))
        case "==", (Node("ite", (c, a, b)), int(k)):
            return build("ite", c, build(op, a, k), build(op, b, k))
        case "==", (Node(), Node()):
            return node(op, *sorted(args, key=id))
    return node(op, *args)


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


# --- runs --------------------------------------------------------------------------------------------------------------------

class Run:
    """One run of a function: the conditions at which it branched, and the way it took at each."""

    def __init__(self, todo: tuple[bool, ...], known: dict[Node, int], pure: bool) -> None:
        self.todo, self.known, self.pure = todo, dict(known), pure
        self.taken: list[tuple[Node, bool]] = []
        self.others: list[tuple[bool, ...]] = []        # ways not taken
        self.gap: SemanticGap | None = None

    def reduce(self, z: Value) -> Value:
        """The expression under what is known."""
        if not isinstance(z, Node):
            return z
        if z in self.known:
            return self.known[z]
        return build(z.op, *map(self.reduce, z.args)) if z.op in LOGIC else z

    def learn(self, z: Value, v: bool) -> None:
        """z was decided to be v."""
        if not isinstance(z, Node):
            return
        self.known[z] = v
        match z.op, v, z.args:
            case "not", _, (a,):
                self.learn(a, not v)
            case ("and", True, (a, b)) | ("or", False, (a, b)):
                self.learn(a, v)
                self.learn(b, v)
            case "==", True, (Node() as a, int(k)):
                self.known[a] = k

    def decide(self, z: Value) -> bool:
        """The truth of z on this run."""
        z = self.reduce(z)
        if not isinstance(z, Node):
            return bool(z)
        n = len(self.taken)
        way = self.todo[n] if n < len(self.todo) else True
        if n >= len(self.todo):
            self.others.append((*(v for _, v in self.taken), False))
        self.taken.append((z, way))
        self.learn(z, way)
        return way


active: Final[list[Run]] = []               # the run in progress, under those that wait for it


def decide(z: Value) -> bool:
    """The truth of an expression on the run in progress."""
    if isinstance(z, Node) and not active:
        raise SemanticGap("the truth of a term outside a run")
    return active[-1].decide(z) if active else bool(z)


def runs(function: Callable[[], T], pure: bool) -> Iterator[tuple[Run, T]]:
    """Every run of a function, depth first, the ways where a condition holds before those where it does not."""
    known = active[-1].known if active else {}
    work: list[tuple[bool, ...]] = [()]
    for _ in range(LIMIT):
        run = Run(work.pop(), known, pure)
        active.append(run)
        try:
            result = function()
        finally:
            active.pop()
        if run.gap:
            raise run.gap                   # also if the function swallowed it
        yield run, result
        work += run.others
        if not work:
            return
    raise TooManyPaths(f"more than {LIMIT}")


def merge(function: Callable[..., Any], *args: Any) -> Any:
    """The value of a pure function as one term."""
    try:
        leaves = [(run.taken, value) for run, value in runs(lambda: function(*args), pure=True)]
    except (Refused, Fault) as e:
        raise gap(f"{function.__name__} is a predicate, and raises {e!r}") from None
    if len(leaves) == 1:
        return leaves[0][1]
    is_bool = type(leaves[0][1]) in (bool, BoolTerm)
    lift = bool_value if is_bool else int_value

    def join(leaves: list[tuple[list[tuple[Node, bool]], Any]], depth: int) -> Value:
        if len(leaves) == 1:
            return lift(leaves[0][1])
        ways = [[leaf for leaf in leaves if leaf[0][depth][1] is way] for way in (True, False)]
        return build("ite", leaves[0][0][depth][0], *(join(way, depth + 1) for way in ways))
    return term("bool" if is_bool else "int", join(leaves, 0))


# --- the state ---------------------------------------------------------------------------------------------------------------

class SymbolicMap:
    """An unknown map under a chain of stores."""

    def __init__(self, state: "SymbolicState", name: str) -> None:
        self.state, self.name = state, name
        self.kinds, self.kind = SCHEMA[name]
        self.stores: list[tuple[tuple[Value, ...], Value]] = []

    def key(self, key: Any) -> tuple[Value, ...]:
        """The expressions of a key, which the run has touched."""
        parts = tuple(map(int_value, key if type(key) is tuple else (key,)))
        if len(parts) != len(self.kinds):
            raise gap(f"{self.name}[{key}] has not {len(self.kinds)} keys")
        self.state.touched.setdefault((self.name, parts))
        return parts

    def __getitem__(self, key: Any) -> Any:
        at = self.key(key)
        z: Value = node(self.name, *at)
        for stored, value in self.stores:
            same: Value = True
            for a, b in zip(at, stored, strict=True):
                same = build("and", same, build("==", a, b))
            z = build("ite", same, value, z)
        return term(self.kind, z)

    def __setitem__(self, key: Any, value: Any) -> None:
        if not active or active[-1].pure:
            raise gap(f"a store to {self.name} outside a transition")
        self.stores.append((self.key(key), (bool_value if self.kind == "bool" else int_value)(value)))
        self.state.wrote = True

    __contains__ = __iter__ = __len__ = __delitem__ = refused("the set of keys, not a key,")


class SymbolicState:
    """The maps of the schema, of which nothing is known."""

    def __init__(self, profile: Profile) -> None:
        self.profile, self.wrote = profile, False
        self.touched: dict[tuple[str, tuple[Value, ...]], None] = {}    # map and key, in order of the first touch
        self.maps = {name: SymbolicMap(self, name) for name in SCHEMA}
        for name, of in self.maps.items():
            setattr(self, name, of)

    def absent(self, f: Any, first: Any, end: Any) -> Any:
        """No entry of f in [first, end) is present: an unknown of its own, whatever was stored before."""
        return BoolTerm(node("absent", *map(int_value, (f, first, end)), *self.maps["word"].stores))

    @property
    def stores(self) -> dict[str, list[tuple[tuple[Value, ...], Value]]]:
        """What was written, by map, in order."""
        return {name: m.stores for name, m in self.maps.items() if m.stores}


# --- paths -------------------------------------------------------------------------------------------------------------------

@dataclass(slots=True)
class Path:
    """One way through a rule: `outcome` is ok, refused (by the conjunct `rule`) or fault."""
    state: SymbolicState
    outcome: str = "ok"
    rule: str = ""
    value: Any = None                       # what the function returned, or the fault
    guards: list[str] = field(default_factory=list)     # the conjuncts that held
    conditions: list[tuple[Node, bool]] = field(default_factory=list)


@contextmanager
def rebound(path: Callable[[], Path], *more: dict[str, Any]) -> Iterator[None]:
    """While it lasts, `require` in the rules' modules is one that forks, and every predicate is merged."""
    def require(condition: Any, rule: str) -> None:
        if path().state.wrote:
            raise GuardAfterEffect(rule)
        if not decide(bool_value(condition)):
            raise Refused(rule)
        path().guards.append(rule)

    saved = []
    for names in [*map(vars, (kernel, *MODULES)), *more]:
        for name, fn in list(names.items()):
            if fn is kernel.require or getattr(fn, "is_predicate", False):
                saved.append((names, name, fn))
    original = kernel.require
    for names, name, fn in saved:
        names[name] = require if fn is original else wraps(fn)(partial(merge, fn))
    try:
        yield
    finally:
        for names, name, fn in saved:
            names[name] = fn


def explore(function: Callable[..., Any], kinds: tuple[str, ...], profile: Profile, pure: bool, sums: bool = False) -> list[Path]:
    """Every path through a function of the state and of keys of these kinds."""
    path: Path

    def once() -> Path:
        nonlocal path
        path = Path(SymbolicState(profile))
        args: list[Any] = [term(kind, node(f"{kind}{n}")) for n, kind in enumerate(kinds)]
        if sums:
            args.append({c.__name__: IntTerm(node(c.__name__, *map(int_value, args))) for c in SUMS})
        try:
            path.value = function(path.state, *args)
        except Refused as refusal:
            path.outcome, path.rule = "refused", refusal.rule
        except Fault as fault:
            path.outcome, path.value = "fault", fault
            if path.state.wrote:
                raise GuardAfterEffect(f"a fault in {function.__name__}") from None
        if pure:
            bool_value(path.value)
        return path

    out = []
    with rebound(lambda: path, function.__globals__):
        for run, done in runs(once, pure):
            done.conditions = run.taken
            out.append(done)
    return out


def paths(rule: Rule, profile: Profile) -> list[Path]:
    """Every path through a transition, an invariant, a count or a theorem."""
    if rule.kind not in ("transition", "invariant", "count", "theorem"):
        raise ValueError(f"{rule.id} is a {rule.kind}: it runs as part of other rules")
    return explore(rule.function, rule.keys, profile, rule.kind != "transition", rule.kind == "count")
