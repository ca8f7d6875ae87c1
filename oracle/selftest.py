"""Tests the oracle itself: the clean target shows no divergence, and every bug that is planted in it is found."""
import statistics
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Final

from oracle.campaign import CampaignResult, run_campaign
from oracle.generate import FOCUSES
from oracle.judge import Verdict
from oracle.runner import CampaignSpec
from oracle.targets import Plant, planted_bugs
from spec.vocabulary import Action

CLEAN_ACTIONS: Final = 20_000
BUDGET: Final = 60_000                          # actions to find a bug in
QUICK: Final = 6                                # bugs of a quick self-test, spread evenly over the list


@dataclass(frozen=True, slots=True)
class PlantResult:
    """What became of one planted bug."""
    name: str
    summary: str
    historic: str
    found: bool
    actions: int                                # run until it was found, or in vain
    seconds: float                              # the same, start of the target and shrinking included
    size: int                                   # actions of the shrunk program; 0: not found
    verdict: Verdict | None
    program: tuple[Action, ...]
    trouble: str = ""                           # the first harness failure, if that is all that was found


@dataclass(slots=True)
class SelftestResult:
    """The clean run and the planted bugs, in the order of the list."""
    clean: CampaignResult
    plants: list[PlantResult] = field(default_factory=list)

    @property
    def planted(self) -> int:
        """How many bugs were planted."""
        return len(self.plants)

    @property
    def found(self) -> int:
        """How many of them were found."""
        return sum(p.found for p in self.plants)

    @property
    def clean_divergences(self) -> int:
        """What was found in the clean target: each is a false alarm, or a bug that nobody planted."""
        return len(self.clean.divergences) + len(self.clean.harness_failures) + len(self.clean.model_findings)

    @property
    def median_size(self) -> float:
        """The median size of the shrunk programs."""
        sizes = [p.size for p in self.plants if p.found]
        return statistics.median(sizes) if sizes else 0.0

    @property
    def passed(self) -> bool:
        """The clean target is clean and every bug was found."""
        return not self.clean_divergences and self.found == self.planted


def find_plant(spec: CampaignSpec, plant: Plant, on_progress: Callable[[CampaignResult], None] | None = None) -> PlantResult:
    """Fuzz the target with one bug planted until something is found, or the budget is spent: all moves alike, then by focus."""
    actions, seconds = 0, 0.0
    for focus in ("", *FOCUSES):
        result = run_campaign(replace(spec, plant=plant.name, focus=focus, workers=1, distinct=1), on_progress)
        actions, seconds = actions + (result.found_after or result.actions), seconds + result.seconds
        if not result.clean:
            break
    first = result.divergences[0] if result.divergences else None
    trouble = result.harness_failures[0].what if result.harness_failures else ""
    return PlantResult(
        name=plant.name, summary=plant.summary, historic=plant.historic, found=first is not None,
        actions=actions, seconds=seconds, size=len(first.actions) if first else 0,
        verdict=first.verdict if first else None, program=first.actions if first else (), trouble="" if first else trouble)


def sample(plants: Sequence[Plant], quick: bool, only: str = "") -> list[Plant]:
    """All of them, those whose name has `only` in it or matches it, or a fixed few."""
    chosen = [p for p in plants if only in p.name or fnmatchcase(p.name, only)]
    if not quick or len(chosen) <= QUICK:
        return chosen
    return [chosen[i * len(chosen) // QUICK] for i in range(QUICK)]


def run_selftest(target: str = "emulator", profile: str = "xen-2003", seed: int = 0, quick: bool = False, only: str = "",
                 budget: int = BUDGET, clean_actions: int = CLEAN_ACTIONS, workers: int = 2,
                 on_progress: Callable[[str, PlantResult | None], None] | None = None) -> SelftestResult:
    """Run it; `on_progress` is told the name of each campaign that ended ("clean" or the bug's) and the bug's result."""
    spec = CampaignSpec(profile=profile, target=target, seed=seed, actions=budget)
    result = SelftestResult(run_campaign(replace(spec, actions=clean_actions, workers=workers)))
    tell = on_progress or (lambda *_: None)
    tell("clean", None)
    plants = sample(planted_bugs(target), quick, only)
    results: dict[int, PlantResult] = {}
    errors: list[BaseException] = []
    todo, lock = iter(enumerate(plants)), threading.Lock()

    def go_on(_: CampaignResult) -> None:
        """Ends a campaign when another one failed, or the user has enough."""
        if errors:
            raise errors[0]

    def work() -> None:
        """Take bugs from the list until it is empty; the work itself is in the campaign's process."""
        while not errors:
            with lock:
                place, plant = next(todo, (-1, None))
            if plant is None:
                return
            try:
                found = find_plant(spec, plant, go_on)
            except BaseException as e:
                errors.append(e)
                return
            with lock:
                if not errors:
                    results[place] = found
                    tell(plant.name, found)
    threads = [threading.Thread(target=work, daemon=True) for _ in range(max(1, workers))]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            thread.join()
    except KeyboardInterrupt as e:
        errors.insert(0, e)
        for thread in threads:
            thread.join()                   # their campaigns end at the next turn
        raise
    if errors:
        raise errors[0]
    result.plants = [results[place] for place in sorted(results)]
    return result
