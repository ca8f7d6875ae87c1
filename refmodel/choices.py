"""Where the architecture leaves a choice: each is named, counted, and can be forced, so that a search can explain a machine."""
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple


class Cached(NamedTuple):
    """A translation that is likely to be cached."""
    clock: int                              # when: it ends with the next flush
    by_store: bool
    entry: int


class Choices:
    """The choice points of one run.  Option 0 is the likely one; `begin(forced)` fixes the first of them."""

    def __init__(self) -> None:
        self.forced: tuple[int, ...] = ()
        self.taken: list[tuple[str, int, int]] = []     # name, number of options, option taken
        self.counts: Counter[str] = Counter()           # how often each looseness was met
        self.forgiven: Counter[str] = Counter()         # how often a comparison forgave a difference, by name
        self.eager = False      # habit: a walk that faults has marked its way, and what a load cached may serve a store
        self.filled: dict[tuple[int, int], Cached] = {}     # habit: by domain and tag, the guest's apart from Xen's own

    def begin(self, forced: Sequence[int] = (), filled: Mapping[tuple[int, int], Cached] | None = None) -> None:
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

    def fills(self, d: int, tag: int, clock: int, write: bool, entry: int) -> None:
        """A translation was just cached."""
        self.filled[d, tag] = Cached(clock, write, entry)

    def serves(self, d: int, tag: int, clock: int, write: bool, entry: int) -> None:
        """A translation was used from the cache."""
        last = self.filled.get((d, tag))
        if last is None or last.entry != entry or last.clock != clock:
            self.filled[d, tag] = Cached(clock, write, entry)

    def drops(self, d: int, tag: int) -> None:
        """A page fault usually drops the page's translation."""
        self.filled.pop((d, tag), None)

    def likely_cached(self, d: int, tag: int, clock: int, write: bool) -> bool:
        """A processor usually uses what it cached; but to store, only what a store made it cache."""
        last = self.filled.get((d, tag))
        return last is not None and last.clock == clock and (last.by_store or not write or self.eager)

    def likely_older(self, d: int, tag: int, clock: int, frame: int) -> bool:
        """It usually uses what it used last, though another part of it found a newer translation; `frame` is the older one's."""
        last = self.filled.get((d, tag))
        return last is not None and last.clock == clock and last.entry >> 12 == frame
