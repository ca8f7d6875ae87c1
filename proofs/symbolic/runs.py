"""Re-execution: a function runs on terms once for each way that its branches can go; a pure one is merged into one term."""
from collections.abc import Callable, Iterator
from typing import Any, Final, TypeVar

from proofs.symbolic.terms import (
    LOGIC,
    BoolTerm,
    Node,
    SemanticGap,
    TooManyPaths,
    Value,
    active,
    bool_value,
    build,
    gap,
    int_value,
    term,
)
from spec.kernel import Refused
from spec.x86.paging import Fault

LIMIT: Final = 4000                         # of paths through one function
T = TypeVar("T")
Taken = list[tuple[Node, bool]]             # the conditions at which a run branched, and its way at each


class DeadPath(BaseException):
    """The conditions of this path contradict each other."""


class Run:
    """One run of a function: the conditions at which it branched, and the way it took at each."""

    def __init__(self, todo: tuple[bool, ...], known: dict[Node, int], pure: bool) -> None:
        self.todo, self.known, self.pure = todo, dict(known), pure
        self.taken: Taken = []
        self.others: list[tuple[bool, ...]] = []        # ways not taken
        self.gap: SemanticGap | None = None

    def reduce(self, z: Value) -> Value:
        """The expression under what is known."""
        done: dict[Node, Value] = {}

        def under(z: Value) -> Value:
            if not isinstance(z, Node):
                return z
            if z in self.known:
                return self.known[z]
            if z.op not in LOGIC:
                return z
            if z not in done:
                done[z] = build(z.op, *map(under, z.args))
            return done[z]
        return under(z)

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

    def ways(self, z: Node) -> tuple[bool, ...]:
        """The ways that can be gone at a condition; here nothing is known but what was decided."""
        return True, False

    def decide(self, z: Value) -> bool:
        """The truth of z on this run."""
        z = self.reduce(z)
        if not isinstance(z, Node):
            return bool(z)
        n = len(self.taken)
        if n < len(self.todo):
            way = self.todo[n]
        else:
            way, *others = self.ways(z)
            self.others += [(*(v for _, v in self.taken), other) for other in others]
        self.take(z, way)
        return way

    def take(self, z: Node, way: bool) -> None:
        """Go on where z is `way`."""
        self.taken.append((z, way))
        self.learn(z, way)


def runs(function: Callable[[], T], begin: Callable[[tuple[bool, ...]], Run]) -> Iterator[tuple[Run, T]]:
    """Every run of a function, depth first, the ways where a condition holds before those where it does not."""
    work: list[tuple[bool, ...]] = [()]
    for _ in range(LIMIT):
        run = begin(work.pop())
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


def pure_run(todo: tuple[bool, ...]) -> Run:
    """A run of a function that may not write, under what is known by now."""
    return Run(todo, active[-1].known if active else {}, pure=True)


def merge(function: Callable[..., Any], *args: Any) -> Any:
    """The value of a pure function as one term."""
    try:
        leaves = [(run.taken, value) for run, value in runs(lambda: function(*args), pure_run)]
    except (Refused, Fault) as e:
        raise gap(f"{function.__name__} is a predicate, and raises {e!r}") from None
    if len(leaves) == 1:
        return leaves[0][1]
    is_bool = type(leaves[0][1]) in (bool, BoolTerm)
    return term("bool" if is_bool else "int", join(leaves, 0, bool_value if is_bool else int_value))


def join(leaves: list[tuple[Taken, Any]], depth: int, lift: Callable[[Any], Value]) -> Value:
    """The values at the ends of all runs as one expression of the conditions that lead there."""
    if len(leaves) == 1:
        return lift(leaves[0][1])
    ways = [[leaf for leaf in leaves if leaf[0][depth][1] is way] for way in (True, False)]
    return build("ite", leaves[0][0][depth][0], *(join(way, depth + 1, lift) for way in ways))
