"""The rules by which ghost sums are computed, each proved by induction over the number of keys.

S(n) is the sum of the 0/1 contributions c(j) of the keys j < n, known only by S(0) = 0 and S(n + 1) = S(n) + c(n); S2 is the sum
of c2, the contributions afterwards.  Key spaces are finite, so numbering them loses nothing.
"""
from collections.abc import Callable
from typing import Any, Final

import z3

_I, _B = z3.IntSort(), z3.BoolSort()
_c, _c2 = z3.Function("c", _I, _B), z3.Function("c2", _I, _B)
_s, _s2 = z3.Function("S", _I, _I), z3.Function("S2", _I, _I)
_n, _k, _l, _m = z3.Ints("n k l m")


def one_if(condition: Any) -> Any:
    """1 if it holds, else 0."""
    return z3.If(condition, 1, 0)


def at_least_its_known_keys(n: Any) -> Any:
    """Positivity, as `Facts.positivity` uses it, for three keys."""
    return z3.And(_s(n) >= 0, _s(n) >= one_if(z3.And(_k < n, _c(_k))) + one_if(z3.And(_l < n, _l != _k, _c(_l)))
                  + one_if(z3.And(_m < n, _m != _k, _m != _l, _c(_m))))


def moves_by_its_touched_keys(n: Any) -> Any:
    """The change of a sum whose contributions differ at two keys at most."""
    first = one_if(z3.And(_k < n, _c2(_k))) - one_if(z3.And(_k < n, _c(_k)))
    second = one_if(z3.And(_l < n, _c2(_l))) - one_if(z3.And(_l < n, _c(_l)))
    return _s2(n) - _s(n) == first + z3.If(_l == _k, 0, second)


RULES: Final[dict[str, tuple[Callable[[Any], Any], list[Any]]]] = {
    "a ghost sum is at least what its known keys contribute": (at_least_its_known_keys, [_k >= 0, _l >= 0, _m >= 0]),
    "a ghost sum changes by what its touched keys change": (
        moves_by_its_touched_keys, [_k >= 0, _l >= 0, z3.Implies(z3.And(_n != _k, _n != _l), _c2(_n) == _c(_n))]),
    "a ghost sum without contributions is zero": (lambda n: _s(n) == 0, [z3.Not(_c(_n))])}


def queries(name: str) -> list[Any]:
    """The base and the step of a rule's induction, as solvers that must find nothing."""
    claim, given = RULES[name]
    step = [_n >= 0, claim(_n), _s(_n + 1) == _s(_n) + one_if(_c(_n)), _s2(_n + 1) == _s2(_n) + one_if(_c2(_n))]
    out = []
    for goal, facts in ((claim(z3.IntVal(0)), [_s(0) == 0, _s2(0) == 0]), (claim(_n + 1), step)):
        solver = z3.Solver()
        solver.add(*given, *facts, z3.Not(goal))
        out.append(solver)
    return out
