"""Runs tasks in processes of their own, and remembers rows by the content of what they depend on.

Each task gets a fresh process, so that a row is the same whatever runs beside it or ran before it.
"""
import hashlib
import json
import multiprocessing
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from importlib.metadata import version
from pathlib import Path
from typing import Final, Protocol

import z3

from proofs import second
from proofs.crosshair_run import is_installed
from proofs.discharge import Options, discharge
from proofs.ledger import LEAVES, PROVED, Ledger, Row
from proofs.obligations import Obligation, tasks
from spec.profile import PROFILES

ROOT: Final = Path(__file__).parent.parent
DEFAULT: Final = Options()
CACHE: Final = Path(".cache/xenspec-proofs")
ENGINE: Final = ("confirm", "discharge", "goals", "induction", "ledger", "noninterference", "obligations", "plain", "second",
                 "smtlib", "witness")
LEAF_ENGINE: Final = ("contract_proof", "contracts", "crosshair_run", "leaves", "ledger")
Task = list[Obligation]


class Watcher(Protocol):
    """Who is told how it goes."""

    def begun(self, task: Task) -> None:
        """A task is running, or is next."""

    def done(self, task: Task, rows: list[Row]) -> None:
        """A task is done."""


def fingerprint(profile: str, root: Path = ROOT, another: str | None = None) -> str:
    """Of everything that a profile's proofs depend on: the specification, the engine, the solver, and another that is asked."""
    hashed = hashlib.sha256(f"{z3.get_full_version()}\0{second.identity(another) if another else ''}\0".encode())
    if profile == LEAVES:
        hashed.update(f"\0CrossHair {version('crosshair-tool') if is_installed() else ''}\0".encode())
    engine = [root / "proofs" / f"{name}.py" for name in (LEAF_ENGINE if profile == LEAVES else ENGINE)]
    engine += [root / "refmodel" / f"{name}.py" for name in ("audit", "state")]     # witnesses are run and audited there
    for path in (*sorted((root / "spec").rglob("*.py")), *sorted((root / "proofs" / "symbolic").rglob("*.py")), *engine):
        hashed.update(f"{path.relative_to(root).as_posix()}\0".encode() + path.read_bytes() + b"\0")
    return hashed.hexdigest()


class Cache:
    """Rows that were proved, each in a file that is named by what it depends on."""

    def __init__(self, folder: Path | None, version: str) -> None:
        self.folder, self.version = folder, version

    def file(self, o: Obligation) -> Path:
        """Where the row of an obligation is."""
        name = hashlib.sha256(f"{self.version}\0{o.profile}\0{o.name}".encode()).hexdigest()
        return (self.folder or Path()) / name[:2] / f"{name}.json"

    def get(self, o: Obligation) -> Row | None:
        """The row, if it is there and whole."""
        if self.folder is None:
            return None
        try:
            return Row.read(json.loads(self.file(o).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def put(self, o: Obligation, row: Row) -> None:
        """Remember a row; only proofs are worth it, since whoever sees a refutation changes something."""
        if self.folder is None or row.verdict != PROVED:
            return
        path = self.file(o)
        path.parent.mkdir(parents=True, exist_ok=True)
        document = {name: getattr(row, name) for name in Row.__slots__}
        path.write_text(json.dumps(document), encoding="utf-8")


def caches(folder: Path | None, another: str | None = None) -> dict[str, Cache]:
    """The cache of each profile, of rows with another solver's opinion or without."""
    return {name: Cache(folder, fingerprint(name, another=another) if folder is not None else "") for name in (*PROFILES, LEAVES)}


def remembered(wanted: Iterable[Obligation], folder: Path = CACHE) -> dict[Obligation, Row]:
    """The rows of those obligations that were proved of the specification as it is."""
    store = caches(folder)
    return {o: row for o in wanted if (row := store[o.profile].get(o)) is not None}


def run(wanted: list[Obligation], jobs: int, watcher: Watcher, cache: Path | None = CACHE,
        options: Options = DEFAULT) -> Ledger:
    """The ledger of these obligations, in their order."""
    start = time.monotonic()
    store = caches(cache, options.second)
    known = () if options.smt2 else wanted  # the files have to be written
    rows = {(o.profile, o.name): row for o in known if (row := store[o.profile].get(o)) is not None}
    left = [o for o in wanted if (o.profile, o.name) not in rows]
    for task, found in results(tasks(left), jobs, watcher, options):
        for o, row in zip(task, found, strict=True):
            store[o.profile].put(o, row)
            rows[o.profile, o.name] = row
    return Ledger(tuple(rows[o.profile, o.name] for o in wanted), time.monotonic() - start)


def results(work: list[Task], jobs: int, watcher: Watcher, options: Options) -> Iterator[tuple[Task, list[Row]]]:
    """The rows of each task, as they come."""
    if not work:
        return
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([discharge.__module__])
    waiting, running = work[::-1], dict[Future[list[Row]], Task]()
    with ProcessPoolExecutor(jobs, context, max_tasks_per_child=1) as pool:
        try:
            while waiting or running:
                while waiting and len(running) < jobs:
                    task = waiting.pop()
                    running[pool.submit(discharge, task, options)] = task
                    watcher.begun(task)
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    task = running.pop(future)
                    watcher.done(task, future.result())
                    yield task, future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
