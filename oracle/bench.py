"""Measures model, emulator and oracle loop side by side in one run: processor time, best of three, collector off.

Figures of one run can be compared with each other, not with those of another machine: what counts is the ratios.
"""
import gc
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from rich.console import RenderableType

from oracle.judge import describe, show
from oracle.report import plain_table
from oracle.runner import SMALL_MEMORY, WHOLE_EVERY, BootedRunner, CampaignSpec
from oracle.targets import (
    EntryCost,
    HarnessError,
    ModelTarget,
    Target,
    default_setup,
    entry_costs,
    open_target,
)
from spec.abi import PAGE_SIZE, RW, A, D, P, Xen2003
from spec.vocabulary import Action, DomainSetup, Hypercall, Load, Setup, Store

PROFILE: Final = "xen-2003"
EMULATOR: Final = "emulator"
ROUNDS: Final = 3
DOM: Final = 1                              # the domain at work: it has no privilege
BUFFER, BATCH, FLIPPED, TABLE = 2, 3, 10, 11        # its pages: requests, a batch of them, one that is remapped, a table to pin
ENTRY_BITS: Final = P | A | D
PROGRAMS: Final = 64                        # of the oracle loop, a round
SMALL: Final = (2, 1024)                    # domains, machine frames
BIG: Final = (100, 1 << 20)


@dataclass(frozen=True, slots=True)
class Row:
    """One figure, and how it relates to another one of the same run."""
    name: str
    value: float
    unit: str
    ratio: float | None = None
    ratio_to: str | None = None


@dataclass(frozen=True, slots=True)
class Mix:
    """Actions to be timed, after others that are not; `count` of what `unit` counts."""
    name: str
    unit: str
    before: list[Action]
    timed: list[Action]
    count: int
    repeat: int = 1                         # times that a fast target does it, so that there is something to measure


# --- what is run -------------------------------------------------------------------------------------------------------------

def mixes(setup: Setup) -> list[Mix]:
    """The page-table hypercalls and accesses of xen-2003, one kind at a time, then all of them."""
    d = next(d for d in setup.domains if d.domid == DOM)
    requests, batch = va(BUFFER), va(BATCH)
    pte = va(d.pages - 2) + 4 * FLIPPED     # linear address of the entry that maps the page: its table is next to last
    writable, read_only = entry(d.first + FLIPPED, RW), entry(d.first + FLIPPED, 0)
    foreign = entry(setup.domains[0].first, RW)
    prepare: list[Action] = [
        store(requests, pte, read_only, pte, writable, pte, foreign),
        store(batch, *[word for n in range(64) for word in (pte, writable if n % 2 else read_only)])]
    update_va = [Hypercall(DOM, Xen2003.UPDATE_VA_MAPPING, (va(FLIPPED) >> 12, word, 0)) for word in (read_only, writable)]
    mmu = [Hypercall(DOM, Xen2003.MMU_UPDATE, (requests + at, 1)) for at in (0, 8)]
    refused = [Hypercall(DOM, Xen2003.UPDATE_VA_MAPPING, (va(FLIPPED) >> 12, foreign, 0)),
               Hypercall(DOM, Xen2003.MMU_UPDATE, (requests + 16, 1))]
    batched = Hypercall(DOM, Xen2003.MMU_UPDATE, (batch, 64))
    everything = [*[*update_va, *mmu, *refused] * 10, batched]
    return [
        mix("update_va_mapping, flip", "hypercalls/s", prepare, update_va, 5000),
        mix("mmu_update of one entry, flip", "hypercalls/s", prepare, mmu, 5000),
        mix("refused", "hypercalls/s", prepare, refused, 5000),
        mix("mmu_update, batch of 64", "entries/s", prepare, [batched], 200, 64),
        mix("hypercall mix", "entries/s", prepare, everything, 100, 60 + 64),
        mix("loads", "accesses/s", prepare, [Load(DOM, va(FLIPPED) + 4 * n) for n in range(100)], 150),
        mix("stores", "accesses/s", prepare, [Store(DOM, va(FLIPPED) + 4 * n, n) for n in range(100)], 150),
        mix("pin and unpin of a full L1", "pairs/s", [*prepare, *full_table(d)], pin_pair(d), 12, repeat=10)]


def mix(name: str, unit: str, before: list[Action], group: Sequence[Action], times: int, per_group: int = 0,
        repeat: int = 1) -> Mix:
    """A group of actions many times over; it counts as `per_group` of its unit: one an action, but one a pair, if not said."""
    each = per_group or (1 if unit == "pairs/s" else len(group))
    return Mix(name, unit, before, [*group] * times, times * each, repeat)


def full_table(d: DomainSetup) -> list[Action]:
    """A page with 1,024 valid entries, no longer mapped, and the requests that pin and unpin it."""
    entries = [entry(d.first + 4 + n % 40, 0) for n in range(1024)]
    frame = d.first + TABLE << 12
    pin = (frame | Xen2003.EXTENDED, Xen2003.PIN_L1, frame | Xen2003.EXTENDED, Xen2003.UNPIN)
    unmap = Hypercall(DOM, Xen2003.UPDATE_VA_MAPPING, (va(TABLE) >> 12, 0, 0))
    return [store(va(TABLE), *entries), unmap, store(va(BUFFER) + 64, *pin)]


def pin_pair(d: DomainSetup) -> list[Action]:
    """Validation and devalidation of the whole table."""
    return [Hypercall(DOM, Xen2003.MMU_UPDATE, (va(BUFFER) + 64 + at, 1)) for at in (0, 8)]


def store(address: int, *words: int) -> Hypercall:
    """Words that the kernel stores; the hypercall after them does nothing."""
    return Hypercall(DOM, Xen2003.MMU_UPDATE, (address, 0), ((address, words),))


def va(page: int) -> int:
    """Where a domain's page is mapped at boot."""
    return Xen2003.BASE + page * PAGE_SIZE


def entry(mfn: int, rights: int) -> int:
    """A present entry, as at boot."""
    return mfn << 12 | ENTRY_BITS | rights


# --- timing ------------------------------------------------------------------------------------------------------------------

def best_rate(prepare: Callable[[], None], work: Callable[[], int]) -> float:
    """How much `work` gets done in a second of processor time, on the best of three attempts."""
    best = 0.0
    for _ in range(ROUNDS):
        prepare()
        gc.collect()
        gc.disable()
        try:
            start = time.process_time()
            done = work()
            best = max(best, done / (time.process_time() - start))
        finally:
            gc.enable()
    return best


def mix_rate(target: Target, setup: Setup, what: Mix, repeat: int) -> float:
    """A mix on a target.  HarnessError if actions do not do what is to be measured: a refusal costs less."""
    def prepare() -> None:
        target.reset(setup)
        check_outcomes(what, target, what.before)

    def work() -> int:
        for _ in range(repeat):
            target.run(what.timed)
        return what.count * repeat
    prepare()
    check_outcomes(what, target, what.timed[:8])
    return best_rate(prepare, work)


def check_outcomes(what: Mix, target: Target, actions: Sequence[Action]) -> None:
    """Nothing faults, and only what is to be refused is refused."""
    refusable = what.name in ("refused", "hypercall mix")
    for action, outcome in zip(actions, target.run(actions), strict=True):
        if outcome.vector >= 0 or (isinstance(action, Hypercall) and outcome.value < 0 and not refusable):
            raise HarnessError(f"target {target.name}: {what.name}: {describe(action)} ends with {show(action, outcome)}")


def loop_rate(runner: BootedRunner, programs: int = PROGRAMS) -> float:
    """Compared actions a second: generated, run on the model and the target, compared."""
    done = 0

    def work() -> int:
        nonlocal done
        actions = sum(compared(runner, index) for index in range(done, done + programs))
        done += programs
        return actions
    compared(runner, programs * ROUNDS)     # the first run of a process is slower
    return best_rate(lambda: None, work)


def compared(runner: BootedRunner, index: int) -> int:
    """The actions of one program; what `Runner.run` does when there is nothing to report."""
    actions, expected = runner.generate(index)
    outcomes, seen = runner.execute(actions)
    if outcomes == expected:
        small = (seen.extent - runner.setup.xen_frames) * PAGE_SIZE <= SMALL_MEMORY
        runner.machine.compare(seen, small or index % WHOLE_EVERY == 0)
    return len(actions)


# --- the table ---------------------------------------------------------------------------------------------------------------

def run_bench(target: str = "emulator", on_row: Callable[[Row], None] = lambda _: None) -> list[Row]:
    """All rows, each told as it comes.  HarnessError if the target can't run here."""
    model = ModelTarget()
    held = open_target(target)
    rows: list[Row] = []

    def tell(row: Row) -> None:
        rows.append(row)
        on_row(row)
    try:
        setup = default_setup(PROFILE, held)
        for what in mixes(setup):
            base = mix_rate(model, setup, what, 1)
            tell(Row(f"model: {what.name}", base, what.unit))
            value = mix_rate(held, setup, what, what.repeat)
            tell(Row(f"target {target}: {what.name}", value, what.unit, value / base, f"model: {what.name}"))
        small, big = (loop_rate(runner_of(held, *size)) for size in (SMALL, BIG))
        tell(Row("oracle loop", small, "compared actions/s"))
        names = [f"oracle loop, an action, {domains} domains, {frames:,} frames" for domains, frames in (SMALL, BIG)]
        tell(Row(names[0], 1e6 / small, "µs"))
        tell(Row(names[1], 1e6 / big, "µs", small / big, names[0]))
        if target == EMULATOR:
            for row in entry_rows(entry_costs()):
                tell(row)
    finally:
        held.close()
    return rows


def entry_rows(costs: Mapping[str, EntryCost]) -> list[Row]:
    """What each way into a guest's kernel and back costs, against the first one."""
    first, *_ = costs
    return [row for name, cost in costs.items() for row in (
        Row(f"{name}: guest and Xen's stubs", cost.instructions + cost.xens, "instructions",
            (cost.instructions + cost.xens) / (costs[first].instructions + costs[first].xens), first),
        Row(f"{name}: time", cost.seconds * 1e6, "µs", cost.seconds / costs[first].seconds, first))]


def runner_of(target: Target, domains: int, frames: int) -> BootedRunner:
    """The oracle's loop on a machine of that size, and no other."""
    spec = CampaignSpec(PROFILE, target.name, domains=domains, frames=frames, seconds=0.0, varied=False)
    return BootedRunner(spec, target, lambda *_: None)


def bench_report(rows: Sequence[Row]) -> RenderableType:
    """The rows as a table."""
    table = plain_table("what", ">value", "unit", ">ratio", "to")
    for row in rows:
        value = f"{row.value:,.{0 if row.value >= 100 else 2}f}"
        table.add_row(row.name, value, row.unit, "" if row.ratio is None else f"{row.ratio:.2f}", row.ratio_to or "")
    return table


def bench_document(rows: Sequence[Row], missing: str = "") -> dict[str, Any]:
    """The rows as JSON, and why some are missing, if any are."""
    return {"summary": {"missing": missing, "rows": [
        {"name": r.name, "value": r.value, "unit": r.unit, "ratio": r.ratio, "ratio_to": r.ratio_to} for r in rows]}}
