"""Counterexamples: a state that keeps every invariant, a step from it, and what is wrong afterwards."""
from dataclasses import asdict, dataclass
from typing import Any

from refmodel.state import Change


@dataclass(frozen=True, slots=True)
class Counterexample:
    """What refutes an obligation, in plain numbers."""
    profile: str
    rule: str                               # the id of the transition or theorem, or "initial"
    arguments: tuple[tuple[str, int], ...]  # the rule's parameters after the state, with their values
    state: dict[str, Any]                   # before the step, as `refmodel.dump_state` writes it
    changes: tuple[Change, ...]             # what the step stored, in order
    broken: str                             # the id of the invariant, count or theorem that fails; or "guards", "kinds", …
    at: tuple[int, ...]                     # the key at which it fails
    because: str                            # the condition in its text that decided
    confirmed: bool                         # a run on plain ints shows it, too
    note: str = ""                          # why it is not confirmed

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)

    @classmethod
    def read(cls, document: dict[str, Any]) -> "Counterexample":
        """From its JSON."""
        changes = tuple(Change(**{**c, "key": tuple(c["key"])}) for c in document["changes"])
        arguments = tuple((name, value) for name, value in document["arguments"])
        return cls(**{**document, "changes": changes, "arguments": arguments, "at": tuple(document["at"])})
