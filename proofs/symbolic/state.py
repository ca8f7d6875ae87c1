"""A state of which nothing is known: maps over unbounded keys that record what a run touches and stores."""
from collections.abc import Callable
from typing import Any, Final

from proofs.symbolic.terms import BoolTerm, Node, Value, active, bool_value, build, gap, int_value, node, refused, term
from spec.kernel import SCHEMA
from spec.profile import Profile

QUANTIFIED: Final = ("absent", "blank")     # the reads that ask for a whole stretch of a frame's words
Key = tuple[Value, ...]
Before = Callable[[str, Key], Value]          # map and key -> what was there before any store


def unknown(name: str, key: Key) -> Value:
    """Anything may be there."""
    return node(name, *key)


def mark(old: Value, new: Value) -> int | None:
    """The bits that are set in the old value to make the new one, if that is how it is made."""
    match new:
        case Node("|", (rest, int(bits))):
            more = mark(old, rest)
            return None if more is None else more | bits
    return 0 if new is old and isinstance(new, Node) else None


class SymbolicMap:
    """An unknown map under a chain of stores."""

    def __init__(self, state: "SymbolicState", name: str) -> None:
        self.state, self.name = state, name
        self.kinds, self.kind = SCHEMA[name]
        self.stores: list[tuple[Key, Value]] = []
        self.marks: list[int | None] = []   # of each store: the bits that it sets, if it does nothing else

    def key(self, key: Any) -> Key:
        """The expressions of a key, which the run has touched."""
        parts = tuple(map(int_value, key if type(key) is tuple else (key,)))
        if len(parts) != len(self.kinds):
            raise gap(f"{self.name}[{key}] has not {len(self.kinds)} keys")
        self.state.touched.setdefault((self.name, parts))
        return parts

    def __getitem__(self, key: Any) -> Any:
        at = self.key(key)
        z = self.state.before(self.name, at)
        for (stored, value), mark in zip(self.stores, self.marks, strict=True):
            same: Value = True
            for a, b in zip(at, stored, strict=True):
                same = build("and", same, build("==", a, b))
            same = active[-1].reduce(same) if active else same
            # the same number, but the solver sees that the other bits are as before wherever the store went
            z = build("ite", same, value, z) if mark is None else build("|", z, build("ite", same, mark, 0))
        return term(self.kind, z)

    def __setitem__(self, key: Any, value: Any) -> None:
        if not active or active[-1].pure:
            raise gap(f"a store to {self.name} outside a transition")
        at, z = self.key(key), (bool_value if self.kind == "bool" else int_value)(value)
        self.marks.append(mark(self[key].z, z))
        self.stores.append((at, z))
        self.state.wrote = True

    __contains__ = __iter__ = __len__ = __delitem__ = refused("the set of keys, not a key,")


class SymbolicState:
    """The maps of the schema, of which nothing is known but what `before` says."""

    def __init__(self, profile: Profile, before: Before = unknown) -> None:
        self.profile, self.before, self.wrote = profile, before, False
        self.touched: dict[tuple[str, Key], None] = {}    # map and key, in order of the first touch
        self.stretches: list[tuple[str, Key]] = []      # what was asked for: a quantified read, and frame, first, end
        self.maps = {name: SymbolicMap(self, name) for name in SCHEMA}
        for name, of in self.maps.items():
            setattr(self, name, of)

    def absent(self, f: Any, first: Any, end: Any) -> Any:
        """No entry of f in [first, end) is present."""
        return self.quantified("absent", f, first, end)

    def blank(self, f: Any, first: Any, end: Any) -> Any:
        """Every word of f in [first, end) is 0."""
        return self.quantified("blank", f, first, end)

    def quantified(self, name: str, *key: Any) -> Any:
        """A quantified read: an unknown of its own, whatever was stored before."""
        stretch = tuple(map(int_value, key))
        self.stretches.append((name, stretch))
        return BoolTerm(node(name, *stretch, *self.maps["word"].stores))

    @property
    def stores(self) -> dict[str, list[tuple[Key, Value]]]:
        """What was written, by map, in order."""
        return {name: m.stores for name, m in self.maps.items() if m.stores}
