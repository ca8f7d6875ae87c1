"""States as JSON documents: what is not neutral, by map and key, in order."""
from typing import Any

from refmodel.state import ConcreteState
from spec.kernel import SCHEMA
from spec.profile import PROFILES

FORMAT = 1


class StateError(ValueError):
    """A document that describes no state: `field` says where."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field


def dump_state(state: ConcreteState) -> dict[str, Any]:
    """The state as a JSON-able document; loading it again gives the same state."""
    maps: dict[str, list[list[Any]]] = {}
    for name in SCHEMA:
        m = state.maps[name]
        entries = [[*(k if isinstance(k, tuple) else (k,)), v] for k, v in sorted(m.items()) if v != m.zero]
        if entries:
            maps[name] = entries
    return {"xenspec-state": FORMAT, "profile": state.profile.name, "frames": state.frames, "maps": maps}


def load_state(document: Any) -> ConcreteState:
    """The state of a document.  Raises `StateError` naming the field."""
    if not isinstance(document, dict) or document.get("xenspec-state") != FORMAT:
        raise StateError("xenspec-state", f"is missing, or not {FORMAT}")
    profile, frames, maps = document.get("profile"), document.get("frames"), document.get("maps")
    if not isinstance(profile, str) or profile not in PROFILES:
        raise StateError("profile", f"{profile!r} is none of {', '.join(PROFILES)}")
    if not isinstance(frames, int) or not 0 < frames <= 1 << 40:
        raise StateError("frames", "is not a positive number")
    if not isinstance(maps, dict):
        raise StateError("maps", "is missing")
    state = ConcreteState(PROFILES[profile], frames)
    for name, entries in maps.items():
        load_map(state, name, entries)
    state.seal()
    return state


def load_map(state: ConcreteState, name: str, entries: Any) -> None:
    """One map of a document."""
    if name not in SCHEMA:
        raise StateError(f"maps.{name}", "is no map of a state")
    kinds, kind = SCHEMA[name]
    if not isinstance(entries, list):
        raise StateError(f"maps.{name}", "is not a list of entries")
    seen: set[tuple[int, ...]] = set()
    for n, entry in enumerate(entries):
        where = f"maps.{name}[{n}]"
        if not isinstance(entry, list) or len(entry) != len(kinds) + 1:
            raise StateError(where, f"is not a list of {len(kinds)} key part(s) and a value")
        *key, value = entry
        for k, part in zip(kinds, key, strict=True):
            if not is_number(part) or part < 0 or (k == "index" and part >= state.profile.entries):
                raise StateError(where, f"{part!r} is no {k}")
            if k == "frame" and part >= state.frames and name != "word":
                raise StateError(where, f"frame {part} is beyond the {state.frames} frames of the machine")
        if not (isinstance(value, bool) if kind == "bool" else is_number(value)):
            raise StateError(where, f"{value!r} is no {kind}")
        if tuple(key) in seen:
            raise StateError(where, "its key is there twice")
        seen.add(tuple(key))
        state.maps[name][tuple(key) if len(key) > 1 else key[0]] = value


def is_number(x: Any) -> bool:
    """An int that is no bool."""
    return isinstance(x, int) and not isinstance(x, bool)
