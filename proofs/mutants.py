"""Proves planted specifications: each bug must be refuted by some obligation, or is idle.

A planted specification is proved in a process of its own, rule by rule, until one obligation is refuted by a counterexample that
a run on plain ints confirms: first the rules that the plant names, then all others that it may concern.
"""
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Protocol

from proofs.ledger import REFUTED, UNKNOWN, Row
from proofs.planted import Plant, write_planted
from spec.profile import PROFILES

ROOT: Final = Path(__file__).parent.parent
PATIENCE: Final = 900.0                     # seconds for one plant
EFFORT: Final = 200_000_000                 # of the solver for one query; see `discharge.EFFORT`
IDLE: Final = "idle"
FIDELITY: Final = "fidelity"                # the part that is about the engine: no bug of the specification breaks it


@dataclass(frozen=True, slots=True)
class MutantRow:
    """What came of one plant: the obligation that it breaks, or none of those that were tried."""
    name: str
    summary: str
    verdict: str
    profile: str = ""
    obligation: str = ""
    detail: str = ""
    confirmed: bool = False                 # a run on plain ints shows the counterexample, too
    counterexample: dict[str, Any] | None = None    # as JSON, see `proofs.counterexample`
    seconds: float = 0.0


class Watcher(Protocol):
    """Who is told how it goes."""

    def begun(self, plant: Plant) -> None:
        """A planted specification is being proved."""

    def done(self, row: MutantRow) -> None:
        """This came of it."""


# --- in the planted process --------------------------------------------------------------------------------------------------

def prove_until_broken(first: tuple[str, ...], everything: bool, effort: int) -> dict[str, Any] | None:
    """The first refutation that is confirmed; else the first one, or the first doubt; None if all is proved."""
    best: Row | None = None
    for row in rows_until_broken(first, everything, effort):
        if best is None or (best.verdict == UNKNOWN and row.verdict == REFUTED) or is_confirmed(row):
            best = row
        if is_confirmed(row):
            break
    if best is None:
        return None
    return {"verdict": best.verdict, "profile": best.profile, "obligation": best.name, "detail": best.detail,
            "confirmed": is_confirmed(best), "counterexample": best.counterexample}


def is_confirmed(row: Row) -> bool:
    """A run on plain ints shows the counterexample, too."""
    return row.verdict == REFUTED and row.counterexample is not None and bool(row.counterexample["confirmed"])


def rows_until_broken(first: tuple[str, ...], everything: bool, effort: int) -> Iterable[Row]:
    """What is not proved, of the rules that come first in both profiles, then, if none of that is refuted, of all others."""
    from proofs.discharge import Options, Query, Task, discharge
    from proofs.obligations import obligations, tasks
    from spec.kernel import RULES
    flows = [rule.id for rule in RULES.values() if rule.kind == "flow"]

    class Broken(Exception):
        """Enough is known."""

    class Hasty(Task):
        """Stops at the first confirmed counterexample."""

        def ask(self, query: Query) -> None:
            super().ask(query)
            if is_confirmed(row := self.row(parts[query.part])):
                raise Broken(row)

    wanted = [o for profile in PROFILES for o in obligations(profile) if o.part != FIDELITY]
    groups = ([o for o in wanted if o.profile == profile and (o.part in flows) == last]
              for last in (False, True) for profile in PROFILES)
    work = [task for group in groups for task in tasks(group)[::-1]]    # the dearest last, as are the flows
    is_first = {n: task[0].subject in RULES and RULES[task[0].subject].name in first for n, task in enumerate(work)}
    refuted = False
    for n in sorted(is_first, key=lambda n: not is_first[n]):
        if is_first[n] or (everything and not refuted):
            parts = {o.part: o for o in work[n]}
            try:
                rows = discharge(work[n], Options(effort), Hasty)
            except Broken as broken:
                rows = [broken.args[0]]
            yield from (row for row in rows if row.verdict in (REFUTED, UNKNOWN))
            refuted = refuted or any(row.verdict == REFUTED for row in rows)


CHILD: Final = """import json, sys
sys.path[:0] = sys.argv[1:3]
import spec
assert spec.__file__.startswith(sys.argv[1]), spec.__file__
from proofs.mutants import prove_until_broken
print(json.dumps(prove_until_broken(*json.loads(sys.argv[3]))))
"""


# --- around it ---------------------------------------------------------------------------------------------------------------

def try_plant(plant: Plant, effort: int = EFFORT) -> MutantRow:
    """Prove a specification with this bug in it until something breaks.

    A dropped conjunct concerns only the transitions that ask it; any other bug concerns every obligation.
    """
    start = time.monotonic()
    asked = json.dumps([plant.first, not plant.drops, effort])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        write_planted(plant, folder)
        try:
            done = subprocess.run([sys.executable, "-c", CHILD, str(folder), str(ROOT), asked], capture_output=True, text=True,
                                  timeout=PATIENCE, cwd=folder, check=False)
        except subprocess.TimeoutExpired:
            return MutantRow(plant.name, plant.summary, UNKNOWN, detail=f"no answer in {PATIENCE:.0f} s", seconds=PATIENCE)
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        row = MutantRow(plant.name, plant.summary, UNKNOWN, detail=lines[-1] if lines else "no message")
    else:
        found = json.loads(done.stdout)
        row = MutantRow(plant.name, plant.summary, **found) if found else MutantRow(plant.name, plant.summary, IDLE)
    return replace(row, seconds=round(time.monotonic() - start, 3))


def run(plants: Iterable[Plant], jobs: int, watcher: Watcher) -> list[MutantRow]:
    """The rows of these plants, in their order."""
    def one(plant: Plant) -> MutantRow:
        watcher.begun(plant)
        row = try_plant(plant)
        watcher.done(row)
        return row
    with ThreadPoolExecutor(jobs) as pool:
        try:
            return list(pool.map(one, plants))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
