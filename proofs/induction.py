"""The rules by which ghost sums are computed, each proved by induction over the number of keys.

S(n) is the sum of the 0/1 contributions c(j) of those keys j < n that were not taken out, known only by S(0) = 0 and by its
step; S2 is the same of c2, the contributions afterwards.  Key spaces are finite, so numbering them loses nothing.

What was taken out is any set X of keys.  So the rules chain: taking out known keys one after the other, each into the set of
those before it, gives for any number of them S = (what distinct known keys contribute) + (a sum without them).  The rest is not
negative, which is `Facts.positivity`; and if contributions change at none but these keys, both rests are equal, and S2 - S is
what the known keys change, which is `Goals.change`.
"""
from collections.abc import Callable
from typing import Any, Final

import z3

_I, _B = z3.IntSort(), z3.BoolSort()
_c, _c2, _out = (z3.Function(name, _I, _B) for name in ("c", "c2", "out"))
_s, _s2, _rest = (z3.Function(name, _I, _I) for name in ("S", "S2", "rest"))
_n, _k = z3.Ints("n k")


def one_if(condition: Any) -> Any:
    """1 if it holds, else 0."""
    return z3.If(condition, 1, 0)


# sum -> what key j adds to it; `rest` is S with key k taken out, too
ADDS: Final[dict[Any, Callable[[Any], Any]]] = {
    _s: lambda j: z3.And(z3.Not(_out(j)), _c(j)), _s2: lambda j: z3.And(z3.Not(_out(j)), _c2(j)),
    _rest: lambda j: z3.And(z3.Not(_out(j)), j != _k, _c(j))}
# rule -> its claim for the first n keys, and what is given of key n
RULES: Final[dict[str, tuple[Callable[[Any], Any], list[Any]]]] = {
    "a ghost sum is what a known key contributes and the sum of the others": (
        lambda n: _s(n) == _rest(n) + one_if(z3.And(_k < n, ADDS[_s](_k))), [_k >= 0]),
    "a ghost sum is not negative": (lambda n: _s(n) >= 0, []),
    "ghost sums are equal where no contribution changes": (
        lambda n: _s(n) == _s2(n), [z3.Implies(z3.Not(_out(_n)), _c(_n) == _c2(_n))]),
    "a ghost sum without contributions is zero": (lambda n: _s(n) == 0, [z3.Not(_c(_n))])}


def queries(name: str) -> list[Any]:
    """The base and the step of a rule's induction, as solvers that must find nothing."""
    claim, given = RULES[name]
    base = [total(0) == 0 for total in ADDS]
    step = [_n >= 0, claim(_n), *(total(_n + 1) == total(_n) + one_if(adds(_n)) for total, adds in ADDS.items())]
    out = []
    for goal, facts in ((claim(z3.IntVal(0)), base), (claim(_n + 1), step)):
        solver = z3.Solver()
        solver.add(*given, *facts, z3.Not(goal))
        out.append(solver)
    return out
