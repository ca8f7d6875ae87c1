"""Expressions as a solver holds them: counts are mathematical integers, everything else bit-vectors just as wide as needed.

Python's ints do not wrap, so neither does a term: from the widths of the schema's kinds each expression gets bounds, and its
bit-vector holds all values between them, signed if one is negative.  (Vectors that grow with each operation, without bounds,
are wider; words of the profile's width owe a proof for each `+` that they do not wrap.)  What is left to prove is that a value
or a key that goes into a map is of its kind; see `misfit`.
"""
import re
from typing import Any, Final

import z3

from proofs.symbolic.state import QUANTIFIED
from proofs.symbolic.terms import Node, Value, build, gap
from spec.invariants import SUMS
from spec.kernel import SCHEMA
from spec.profile import Profile

Bounds = tuple[int, int]
NAME: Final = re.compile(r"[a-z]+")
CONTRIBUTIONS: Final = {c.__name__: target for c, (target, _) in SUMS.items()}


def map_of(op: str) -> str:
    """The map that an unknown is looked up in; that of another state has a mark at its name."""
    return op.rstrip("'")


def widths(profile: Profile) -> dict[str, int]:
    """Bits of each kind of key and value that is a word."""
    frame, word = profile.mfn_mask.bit_length(), profile.word_bits
    return {"frame": frame, "word": word, "vaddr": word, "pfn": word, "tag": word - 11, "dom": 16, "type": 8, "index": 16,
            "cpu": 4, "desc": 64, "page": 8, "reg": 4, "selector": 16, "vector": 16}


class Sorts:
    """The expressions of one profile, in the solver's terms."""

    def __init__(self, profile: Profile) -> None:
        self.widths = widths(profile)
        self._bounds: dict[Node, Bounds] = {}
        self._sorts: dict[Node, str] = {}
        self._made: dict[Node, Any] = {}        # booleans and words
        self._counts: dict[Node, Any] = {}
        self._functions: dict[str, Any] = {}

    # --- kinds ---

    def kind(self, z: Node) -> str:
        """The kind of an unknown's value; empty for an operation."""
        if map_of(z.op) in SCHEMA:
            return SCHEMA[map_of(z.op)][1]
        if z.op in CONTRIBUTIONS:
            return "count"
        if map_of(z.op) in QUANTIFIED:
            return "bool"
        name = NAME.match(z.op)
        kind = name.group() if name else ""
        return kind if kind in self.widths or kind in ("bool", "count") else ""

    def sort(self, z: Value) -> str:
        """bool, count or word; a number that is no unknown's is any: empty."""
        if not isinstance(z, Node):
            return "bool" if isinstance(z, bool) else ""
        if z not in self._sorts:
            self._sorts[z] = self._sort(z)
        return self._sorts[z]

    def _sort(self, z: Node) -> str:
        if z.op in ("not", "and", "or", "==", "<="):
            return "bool"
        kind = self.kind(z)
        if kind:
            return kind if kind in ("bool", "count") else "word"
        parts = {self.sort(a) for a in (z.args[1:] if z.op == "ite" else z.args)} - {""}
        if len(parts) > 1:
            raise gap(f"{z.op} of a count and a word")
        return parts.pop() if parts else ""

    # --- bounds ---

    def bounds(self, z: Value) -> Bounds:
        """The least and the greatest value that a word can have."""
        if not isinstance(z, Node):
            return int(z), int(z)
        if z not in self._bounds:
            self._bounds[z] = self._bound(z)
        return self._bounds[z]

    def _bound(self, z: Node) -> Bounds:
        kind = self.kind(z)
        if kind:
            return 0, (1 << self.widths[kind]) - 1
        if z.op == "ite":
            (a, b), (c, d) = map(self.bounds, z.args[1:])
            return min(a, c), max(b, d)
        (a, b), (c, d) = map(self.bounds, z.args)
        match z.op:
            case "+":
                return a + c, b + d
            case "-":
                return a - d, b - c
            case "*":
                ends = (a * c, a * d, b * c, b * d)
                return min(ends), max(ends)
            case "<<":
                return a << c, b << c
            case ">>":
                return a >> c, b >> c
        if z.op == "&" and max(a, c) >= 0:      # one is not negative: the result is none either, nor greater than that one
            return 0, min(high for low, high in ((a, b), (c, d)) if low >= 0)
        if (a < 0 or c < 0) and z.op in ("&", "|", "^"):
            n = max(x.bit_length() if x >= 0 else (x + 1).bit_length() for x in (a, b, c, d))
            return -(1 << n), (1 << n) - 1
        if a < 0 or c < 0:
            raise gap(f"{z.op} of what may be negative")
        match z.op:
            case "|" | "^":
                return 0, (1 << max(b.bit_length(), d.bit_length())) - 1
            case "//":
                return a // d, b // c
            case "%":
                return 0, d - 1
        raise gap(f"{z.op} of words")

    def misfit(self, kind: str, z: Value) -> Value:
        """False if a value is surely of this kind; else the condition that it is not."""
        if kind in ("bool", "count"):
            return False
        (low, high), most = self.bounds(z), (1 << self.widths[kind]) - 1
        below = build("not", build("<=", 0, z)) if low < 0 else False
        above = build("not", build("<=", z, most)) if high > most else False
        return build("or", below, above)

    # --- making ---

    def boolean(self, z: Value) -> Any:
        """The solver's formula."""
        if not isinstance(z, Node):
            return z3.BoolVal(bool(z))
        if z not in self._made:
            self._made[z] = self._boolean(z)
        return self._made[z]

    def _boolean(self, z: Node) -> Any:
        match z.op:
            case "not":
                return z3.Not(self.boolean(z.args[0]))
            case "and":
                return z3.And(*map(self.boolean, z.args))
            case "or":
                return z3.Or(*map(self.boolean, z.args))
            case "ite":
                return z3.If(*map(self.boolean, z.args))
            case "==" | "<=":
                return self._compare(z.op, *z.args)
        return self._unknown(z)

    def _compare(self, op: str, a: Value, b: Value) -> Any:
        sorts = {self.sort(a), self.sort(b)} - {""}
        if sorts == {"bool"}:
            return self.boolean(a) == self.boolean(b)
        if sorts == {"count"}:
            x, y = self.count(a), self.count(b)
            return x == y if op == "==" else x <= y
        if sorts not in ({"word"}, set()):
            raise gap(f"{op} of a {' and a '.join(sorted(sorts))}")
        (low, high), (least, most) = self.bounds(a), self.bounds(b)
        if high < least or (low > most and op == "<="):
            return z3.BoolVal(op == "<=" and high < least)
        if op == "==" and low > most:
            return z3.BoolVal(False)
        signed = min(low, least) < 0
        n = max(self._bits((min(low, least), max(high, most))), 1)
        x, y = self.word(a, n), self.word(b, n)
        if op == "==":
            return x == y
        return x <= y if signed else z3.ULE(x, y)

    def count(self, z: Value) -> Any:
        """The solver's integer."""
        if not isinstance(z, Node):
            return z3.IntVal(int(z))
        if z not in self._counts:
            self._counts[z] = self._count(z)
        return self._counts[z]

    def _count(self, z: Node) -> Any:
        match z.op:
            case "ite":
                return z3.If(self.boolean(z.args[0]), self.count(z.args[1]), self.count(z.args[2]))
            case "+":
                return self.count(z.args[0]) + self.count(z.args[1])
            case "-":
                return self.count(z.args[0]) - self.count(z.args[1])
        if self.kind(z) != "count":
            raise gap(f"{z.op} of counts")
        return self._unknown(z)

    @staticmethod
    def _bits(bounds: Bounds) -> int:
        low, high = bounds
        return max(high.bit_length() + 1, (low + 1).bit_length() + 1) if low < 0 else max(high.bit_length(), 1)

    def word(self, z: Value, n: int) -> Any:
        """The solver's bit-vector, of n bits; it holds the value if n bits can."""
        if not isinstance(z, Node):
            return z3.BitVecVal(int(z), n)
        if z not in self._made:
            self._made[z] = self._word(z)
        made = self._made[z]
        m = made.size()
        if m > n:
            return z3.Extract(n - 1, 0, made)
        if m < n:
            return (z3.SignExt if self.bounds(z)[0] < 0 else z3.ZeroExt)(n - m, made)
        return made

    def whole(self, z: Value) -> Any:
        """The solver's bit-vector, just as wide as the value needs."""
        return self.word(z, self._bits(self.bounds(z)))

    def _word(self, z: Node) -> Any:
        if self.kind(z):
            return self._unknown(z)
        n = self._bits(self.bounds(z))
        if z.op == "ite":
            return z3.If(self.boolean(z.args[0]), self.word(z.args[1], n), self.word(z.args[2], n))
        a, b = z.args
        match z.op:
            case "<<":
                return self.word(a, n) << b
            case ">>":
                m = max(n + int(b), self._bits(self.bounds(a)))
                return z3.Extract(n + int(b) - 1, int(b), self.word(a, m))
            case "//" | "%":
                if isinstance(b, Node) or b & (b - 1):
                    raise gap(f"{z.op} by no power of two")
                return self.word(build(">>", a, b.bit_length() - 1) if z.op == "//" else build("&", a, b - 1), n)
        x, y = self.word(a, n), self.word(b, n)
        match z.op:
            case "+":
                return x + y
            case "-":
                return x - y
            case "*":
                return x * y
            case "&":
                return x & y
            case "|":
                return x | y
        return x ^ y

    def _unknown(self, z: Node) -> Any:
        """An unknown: a constant, or an uninterpreted function of its keys."""
        kinds = self._key_kinds(z)
        if z.op not in self._functions:
            domain = [z3.BitVecSort(self.widths[k]) for k in kinds]
            self._functions[z.op] = z3.Function(z.op, *domain, self._range(self.kind(z)))
        return self._functions[z.op](*(self.word(a, self.widths[k]) for a, k in zip(z.args, kinds, strict=True)))

    def _key_kinds(self, z: Node) -> tuple[str, ...]:
        if map_of(z.op) in SCHEMA:
            return SCHEMA[map_of(z.op)][0]
        if z.op in CONTRIBUTIONS:
            return (CONTRIBUTIONS[z.op],)
        if map_of(z.op) in QUANTIFIED and len(z.args) > 3:
            raise gap("a question for a stretch of words after a store")
        return ("frame", "index", "index") if map_of(z.op) in QUANTIFIED else ()

    def _range(self, kind: str) -> Any:
        if kind == "bool":
            return z3.BoolSort()
        return z3.IntSort() if kind == "count" else z3.BitVecSort(self.widths[kind])


def both(*parts: Value) -> Value:
    """All of them hold."""
    all_hold: Value = True
    for part in parts:
        all_hold = build("and", all_hold, part)
    return all_hold


def either(*parts: Value) -> Value:
    """One of them holds."""
    one_holds: Value = False
    for part in parts:
        one_holds = build("or", one_holds, part)
    return one_holds
