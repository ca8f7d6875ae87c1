"""Where the architecture leaves a choice: each is named, counted, and can be forced, so that a search can explain a machine."""
from collections import Counter
from collections.abc import Mapping, Sequence


class Choices:
    """The choice points of one run.  Option 0 is the likely one; `begin(forced)` fixes the first of them."""

    def __init__(self) -> None:
        self.forced: tuple[int, ...] = ()
        self.taken: list[tuple[str, int, int]] = []     # name, number of options, option taken
        self.counts: Counter[str] = Counter()           # how often each looseness was met
        self.forgiven: Counter[str] = Counter()         # how often a comparison forgave a difference, by name
        self.eager = False      # habit: a walk that faults has marked its way, and what a load cached may serve a store
        self.filled: dict[tuple[int, int], bool] = {}   # habit: translations likely to be cached still -> filled by a store

    def begin(self, forced: Sequence[int] = (), filled: Mapping[tuple[int, int], bool] | None = None) -> None:
        """Start a run in which the first choices are given; one that goes on from `filled` in the middle of another."""
        self.forced = tuple(forced)
        self.taken.clear()
        self.filled = dict(filled or {})

    def choose(self, name: str, options: int) -> int:
        """The option for this point; the caller has put the likely one first."""
        n = len(self.taken)
        option = self.forced[n] if n < len(self.forced) else 0
        if not 0 <= option < options:
            raise ValueError(f"choice {n} ({name}) has {options} options, not {option}")
        self.taken.append((name, options, option))
        self.counts[name] += 1
        return option

    # --- habits: no rule depends on them; they only put the likely option first, and so spare a search

    def fills(self, d: int, tag: int, write: bool) -> None:
        """A translation was just cached."""
        self.filled[d, tag] = write

    def drops(self, d: int, tag: int) -> None:
        """A page fault usually drops the page's translation."""
        self.filled.pop((d, tag), None)

    def likely_cached(self, d: int, tag: int, write: bool) -> bool:
        """A processor usually uses what it cached; but to store, only what a store made it cache."""
        by_store = self.filled.get((d, tag))
        return by_store is not None and (by_store or not write or self.eager)
