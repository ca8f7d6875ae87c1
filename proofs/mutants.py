"""Proves planted specifications: each bug must be refuted by some obligation, or is reported as idle.

A planted specification is proved in a process of its own, rule by rule, until one obligation is not proved: first the rules that
the plant names, then, where asked for, all others.
"""
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from proofs.planted import Plant, write_planted
from spec.profile import PROFILES

ROOT: Final = Path(__file__).parent.parent
PATIENCE: Final = 600.0                     # seconds for one plant and profile
REFUTED, UNKNOWN, IDLE = "refuted", "unknown", "idle"


@dataclass(frozen=True, slots=True)
class MutantRow:
    """What came of one plant: the obligation that it breaks, or none of those that were tried."""
    name: str
    summary: str
    verdict: str
    profile: str = ""
    obligation: str = ""
    detail: str = ""


def prove_until_broken(profile: str, first: tuple[str, ...], everything: bool, effort: int) -> dict[str, str] | None:
    """Run in the planted process: the first obligation that is not proved, a refuted one if its rule has one."""
    from proofs.discharge import Options, discharge
    from proofs.obligations import obligations, tasks
    from spec.kernel import RULES
    work = tasks(obligations(profile))
    names = [RULES[t[0].subject].name if t[0].subject in RULES else t[0].subject for t in work]
    order = sorted(range(len(work)), key=lambda n: names[n] not in first)
    doubt = None
    for n in order:
        if names[n] in first or everything:
            for row in discharge(work[n], Options(effort)):
                if row.verdict == REFUTED:
                    return {"verdict": REFUTED, "obligation": row.name, "detail": row.detail}
                if row.verdict == UNKNOWN and doubt is None:
                    doubt = {"verdict": UNKNOWN, "obligation": row.name, "detail": row.detail}
    return doubt


CHILD: Final = """import json, sys
sys.path[:0] = sys.argv[1:3]
import spec
assert spec.__file__.startswith(sys.argv[1]), spec.__file__
from proofs.mutants import prove_until_broken
print(json.dumps(prove_until_broken(*json.loads(sys.argv[3]))))
"""


def try_plant(plant: Plant, everything: bool = False, effort: int = 200_000_000) -> MutantRow:
    """Prove a specification with this bug in it, for each profile until one breaks."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        write_planted(plant, folder)
        doubt = None
        for profile in PROFILES:
            asked = json.dumps([profile, plant.first, everything, effort])
            done = subprocess.run([sys.executable, "-c", CHILD, str(folder), str(ROOT), asked], capture_output=True, text=True,
                                  timeout=PATIENCE, cwd=folder, check=False)
            if done.returncode:
                lines = done.stderr.strip().splitlines()
                doubt = MutantRow(plant.name, plant.summary, UNKNOWN, profile, detail=lines[-1] if lines else "no message")
                continue
            found = json.loads(done.stdout)
            if found is not None and found["verdict"] == REFUTED:
                return MutantRow(plant.name, plant.summary, REFUTED, profile, found["obligation"], found["detail"])
            if found is not None:
                doubt = MutantRow(plant.name, plant.summary, UNKNOWN, profile, found["obligation"], found["detail"])
        return doubt or MutantRow(plant.name, plant.summary, IDLE)


def run(plants: Iterable[Plant], jobs: int, tell: Callable[[MutantRow], None], everything: bool = False) -> list[MutantRow]:
    """The rows of these plants, in their order; `tell` hears of each as it is done."""
    def one(plant: Plant) -> MutantRow:
        row = try_plant(plant, everything)
        tell(row)
        return row
    with ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(one, plants))
