"""Where the architecture leaves a choice: each is named, counted, and can be forced, so that a search can explain a machine."""
from collections import Counter
from collections.abc import Sequence


class Choices:
    """The choice points of one run.  Option 0 is the likely one; `begin(forced)` fixes the first of them."""

    def __init__(self) -> None:
        self.forced: tuple[int, ...] = ()
        self.taken: list[tuple[str, int, int]] = []     # name, number of options, option taken
        self.counts: Counter[str] = Counter()           # how often each looseness was met
        self.forgiven: Counter[str] = Counter()         # how often a comparison forgave a difference, by name

    def begin(self, forced: Sequence[int] = ()) -> None:
        """Start a run in which the first choices are given."""
        self.forced = tuple(forced)
        self.taken.clear()

    def choose(self, name: str, options: int) -> int:
        """The option for this point; the caller has put the likely one first."""
        n = len(self.taken)
        option = self.forced[n] if n < len(self.forced) else 0
        if not 0 <= option < options:
            raise ValueError(f"choice {n} ({name}) has {options} options, not {option}")
        self.taken.append((name, options, option))
        self.counts[name] += 1
        return option
