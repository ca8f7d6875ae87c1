"""The ledger: one row an obligation, with its verdict and what it cost."""
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Final

PROVED: Final = "proved"
REFUTED: Final = "refuted"
UNKNOWN: Final = "unknown"
LEAVES: Final = "leaves"                    # stands for a profile: a contract of a leaf function speaks of both, or of neither


@dataclass(frozen=True, slots=True)
class Row:
    """One obligation."""
    profile: str
    name: str                               # reads as a sentence
    rules: tuple[str, ...]                  # the ids of the rules that it is about
    verdict: str
    paths: int
    queries: int
    seconds: float
    worst: float                            # seconds of the slowest query
    effort: int                             # of the hardest query, in the solver's own units: hardly differs between machines
    detail: str = ""                        # why it is not proved; of a leaf's contract also by which tools it is
    counterexample: dict[str, Any] | None = None    # as JSON, see `proofs.counterexample`
    second: str = ""                        # what another solver says
    cached: bool = False

    @classmethod
    def read(cls, document: dict[str, Any]) -> "Row":
        """A row from its JSON."""
        return cls(**{**document, "rules": tuple(document["rules"]), "cached": True})


@dataclass(frozen=True, slots=True)
class Ledger:
    """The rows of a run, in the order of the obligations."""
    rows: tuple[Row, ...]
    seconds: float

    @property
    def clean(self) -> bool:
        """Everything was proved."""
        return all(row.verdict == PROVED for row in self.rows)

    def summary(self) -> dict[str, Any]:
        """The figures of the whole."""
        return {**verdicts(self.rows), "seconds": round(self.seconds, 1)}

    def document(self) -> dict[str, Any]:
        """The ledger as JSON; but for the seconds, the effort and what was cached, it is the same whenever it is repeated."""
        return {"summary": self.summary(), "rows": [asdict(row) for row in self.rows]}


def verdicts(rows: Iterable[Row]) -> dict[str, int]:
    """How many obligations there are, and of which verdict."""
    count = Counter(row.verdict for row in rows)
    return {"obligations": count.total(), PROVED: count[PROVED], REFUTED: count[REFUTED], UNKNOWN: count[UNKNOWN]}
