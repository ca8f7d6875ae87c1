"""Concrete states: dicts with one undo log; an absent key has the neutral value of its kind."""
from dataclasses import dataclass
from typing import Any, Final, cast

from spec.abi import NOBODY, P
from spec.kernel import SCHEMA, State
from spec.profile import Profile

_store: Final = dict.__setitem__


@dataclass(frozen=True, slots=True)
class Change:
    """An entry of one of a state's maps, before and after."""
    map: str
    key: tuple[int, ...]
    before: int
    after: int

    def __str__(self) -> str:
        where = ", ".join(f"{kind} {k:#x}" for kind, k in zip(SCHEMA[self.map][0], self.key, strict=True))
        return f"{self.map}[{where}] {self.before:#x} → {self.after:#x}"


class UndoMap(dict[Any, Any]):
    """A dict that logs what it overwrites."""
    __slots__ = ("name", "note", "zero")

    def __init__(self, name: str, zero: Any, log: list[tuple["UndoMap", Any, Any]]) -> None:
        super().__init__()
        self.name, self.zero = name, zero
        self.note = log.append              # bound once: a store is the commonest thing that the model does

    def __missing__(self, key: Any) -> Any:
        return self.zero

    def __setitem__(self, key: Any, value: Any) -> None:
        self.note((self, key, self[key]))
        _store(self, key, value)


class WordMap(UndoMap):
    """The words of all frames; `rows[f]` are the words of one frame that were ever set."""
    __slots__ = ("rows",)

    def __init__(self, name: str, log: list[tuple[UndoMap, Any, Any]]) -> None:
        super().__init__(name, 0, log)
        self.rows: dict[int, dict[int, int]] = {}

    def __setitem__(self, key: tuple[int, int], value: int) -> None:
        self.note((self, key, self[key]))
        _store(self, key, value)
        f, i = key
        row = self.rows.get(f)
        if row is None:
            self.rows[f] = {i: value}
        else:
            row[i] = value


class ConcreteState:
    """The maps of the schema as attributes, read-only outside transitions; `frames` is the number of machine frames."""

    def __init__(self, profile: Profile, frames: int) -> None:
        self.profile, self.frames = profile, frames
        self.devices: frozenset[int] = frozenset()      # frames below `frames` that are no memory of Xen's or a domain's
        self.opaque: frozenset[int] = frozenset()       # frames whose words are not known: somebody else writes them at any time
        self.pending: int | None = None                 # the table of the last failed validation that Xen undoes only later
        self.lost = ""                                  # what Xen, or the model, loses hold of, since somebody set it to ""
        self.log: list[tuple[UndoMap, Any, Any]] = []
        self.given = UndoMap("given", -1, self.log)     # free frames that were given in exchange -> the clock then
        self.low = 0                                    # the length to which the log went back since somebody set it
        neutral = {"bool": False, "dom": NOBODY, "pfn": profile.all_ones}
        self.words = WordMap("word", self.log)
        self.maps: dict[str, UndoMap] = {}
        for name, (_, kind) in SCHEMA.items():
            self.maps[name] = self.words if name == "word" else UndoMap(name, neutral.get(kind, 0), self.log)
            setattr(self, name, self.maps[name])

    def row(self, f: int) -> dict[int, int]:
        """The words of a frame that were ever set, by index."""
        return self.words.rows.get(f, {})

    def absent(self, f: int, first: int, end: int) -> bool:
        """No entry of f in [first, end) is present."""
        row = self.row(f)
        if end - first < len(row):
            return not any(row.get(i, 0) & P for i in range(first, end))
        return not any(w & P and first <= i < end for i, w in row.items())

    def blank(self, f: int, first: int, end: int) -> bool:
        """Every word of f in [first, end) is 0."""
        row = self.row(f)
        if end - first < len(row):
            return not any(row.get(i, 0) for i in range(first, end))
        return not any(w and first <= i < end for i, w in row.items())

    def present(self, f: int) -> list[int]:
        """The indices of f's present entries, ascending."""
        return sorted(i for i, w in self.row(f).items() if w & P)

    # --- undo ---

    def mark(self) -> int:
        """A point to roll back to."""
        return len(self.log)

    def rollback(self, mark: int) -> None:
        """Undo every store since the mark."""
        words = self.words
        for m, key, old in reversed(self.log[mark:]):
            _store(m, key, old)
            if m is words:
                words.rows[key[0]][key[1]] = old
        del self.log[mark:]
        self.low = min(self.low, mark)

    def changed(self, groups: dict[str, str], since: int = 0) -> dict[str, set[Any]]:
        """The keys stored to since a mark, by the group that each named map is in."""
        out: dict[str, set[Any]] = {group: set() for group in groups.values()}
        note = {name: out[group].add for name, group in groups.items()}.get
        for m, key, _ in self.log[since:] if since else self.log:
            add = note(m.name)
            if add:
                add(key)
        return out

    def before(self, mark: int) -> dict[tuple[str, Any], Any]:
        """What the specification's maps held at the mark where something was stored since; the model's notes are not of them."""
        old: dict[tuple[str, Any], Any] = {}
        for m, key, value in self.log[mark:]:
            if m.name in SCHEMA:
                old.setdefault((m.name, key), value)
        return old

    def seal(self) -> None:
        """Make the present state the one that `rollback(0)` returns to."""
        self.log.clear()
        self.low = 0


def as_state(s: ConcreteState) -> State:
    """The same state as the rules see it."""
    return cast(State, s)

