"""Measures the real Xen beside the model: the same hypercalls, what comparing costs, and how fast a dead machine is back.

Here the clock on the wall counts, since most of the work is another process's.
"""
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Final

from oracle.bench import ROUNDS, Mix, Row, best_rate, mix
from oracle.burst import ROUNDS as WALKS
from oracle.burst import Burst, check_answers, check_state, prepare
from oracle.generate import FOCUSES
from oracle.judge import describe, show
from oracle.live import PIECE, Player
from oracle.live_runner import RAW, LiveRunner
from oracle.runner import CampaignSpec, Report
from oracle.targets import REAL_TARGET, HarnessError, RealTarget, Target, harness_error, open_target
from refmodel import Machine
from spec.abi import DOMID_SELF, L1, PAGE_SIZE, RW, A, D, P, Xen417
from spec.vocabulary import Action, DomainSetup, Hypercall, Load, Setup, Store

X: Final = Xen417
NAME: Final = "real Xen 4.17"
BUFFER, BATCH, FLIPPED, TABLE = 2, 3, 10, 11        # pages of domain 0: requests, a batch of them, one that is remapped, a table
CHUNK: Final = 4096                         # actions that are sent at once
BURSTS: Final = 6                           # that are measured
GUIDED: Final = 2000                        # actions of a program that is measured
LIVE_BITS: Final = P | A | D


# --- what is run -------------------------------------------------------------------------------------------------------------

def mixes(setup: Setup) -> list[Mix]:
    """The hypercalls and accesses of `oracle.bench`, as 4.17 has them."""
    d = setup.domains[0]
    leaf = d.first + d.pages - 4            # the L1 table that maps the domain's memory
    pte, refuse = leaf << 12 | FLIPPED << 3, 0x1FFFFFF << 12 | LIVE_BITS
    writable, read_only = (d.first + FLIPPED << 12 | LIVE_BITS | rights for rights in (RW, 0))
    requests, batch = va(BUFFER), va(BATCH)
    prepare: list[Action] = [
        *stores(requests, pte, read_only, pte, writable, pte, refuse),
        *stores(batch, *[word for n in range(64) for word in (pte, writable if n % 2 else read_only)])]
    update_va: list[Action] = [Hypercall(0, X.UPDATE_VA_MAPPING, (va(FLIPPED), word, 0)) for word in (read_only, writable)]
    mmu: list[Action] = [Hypercall(0, X.MMU_UPDATE, (requests + at, 1, 0, DOMID_SELF)) for at in (0, 16)]
    refused: list[Action] = [Hypercall(0, X.UPDATE_VA_MAPPING, (va(FLIPPED), refuse, 0)),
                             Hypercall(0, X.MMU_UPDATE, (requests + 32, 1, 0, DOMID_SELF))]
    batched = Hypercall(0, X.MMU_UPDATE, (batch, 64, 0, DOMID_SELF))
    return [
        mix("update_va_mapping, flip", "hypercalls/s", prepare, update_va, 2000),
        mix("mmu_update of one entry, flip", "hypercalls/s", prepare, mmu, 2000),
        mix("refused", "hypercalls/s", prepare, refused, 2000),
        mix("mmu_update, batch of 64", "entries/s", prepare, [batched], 60, 64),
        mix("hypercall mix", "entries/s", prepare, [*[*update_va, *mmu, *refused] * 10, batched], 40, 60 + 64),
        mix("loads", "accesses/s", prepare, [Load(0, va(FLIPPED) + 8 * n) for n in range(100)], 80),
        mix("stores", "accesses/s", prepare, [Store(0, va(FLIPPED) + 8 * n, n) for n in range(100)], 80),
        mix("pin and unpin of a full L1", "pairs/s", [*prepare, *full_table(d)], pin_pair(), 8, repeat=20)]


def full_table(d: DomainSetup) -> list[Action]:
    """A page with 512 valid entries, no longer mapped, and the operations that pin and unpin it."""
    frame = d.first + TABLE
    return [*stores(va(TABLE), *[d.first + 4 + n % 4 << 12 | LIVE_BITS for n in range(512)]),
            Hypercall(0, X.UPDATE_VA_MAPPING, (va(TABLE), 0, X.UVMF_INVLPG)),
            *stores(va(BUFFER) + 64, X.PIN_L1 + L1 - 1, frame, 0, X.UNPIN, frame, 0)]


def pin_pair() -> list[Action]:
    """Validation and devalidation of the whole table."""
    return [Hypercall(0, X.MMUEXT_OP, (va(BUFFER) + 64 + at, 1, 0, DOMID_SELF)) for at in (0, 24)]


def stores(address: int, *words: int) -> Iterator[Action]:
    """Words that the kernel stores."""
    return (Store(0, address + 8 * n, word) for n, word in enumerate(words))


def va(page: int) -> int:
    """Where a page of domain 0 is mapped."""
    return X.BASE + page * PAGE_SIZE


# --- timing ------------------------------------------------------------------------------------------------------------------

def wall_rate(prepare: Callable[[], None], work: Callable[[], int]) -> float:
    """How much `work` gets done in a second on the wall, on the best of three attempts."""
    best = 0.0
    for _ in range(ROUNDS):
        prepare()
        start = time.perf_counter()
        done = work()
        best = max(best, done / (time.perf_counter() - start))
    return best


def seconds(work: Callable[[], None], before: Callable[[], None] = lambda: None) -> float:
    """How long `work` takes, at best."""
    def once() -> int:
        work()
        return 1
    return 1 / wall_rate(before, once)


def sent(target: RealTarget, codes: Sequence[bytes]) -> None:
    """Have the machine do what is encoded already; nobody looks at the answers."""
    for start in range(0, len(codes), CHUNK):
        target.send(codes[start:start + CHUNK])
        target.receive()


def check(what: Mix, machine: Machine, target: RealTarget, actions: Sequence[Action]) -> None:
    """Both do the same, and only what is to be refused is refused."""
    refusable = what.name in ("refused", "hypercall mix")
    for action, outcome in zip(actions, target.run(actions), strict=True):
        mine = machine.step(action)
        if outcome != mine or outcome.vector >= 0 or (isinstance(action, Hypercall) and outcome.value < 0 and not refusable):
            raise HarnessError(f"target {target.name}: {what.name}: {describe(action)} ends with {show(action, outcome)}, "
                               f"on the model with {show(action, mine)}")


# --- the rows ----------------------------------------------------------------------------------------------------------------

def run_real_bench(on_row: Callable[[Row], None]) -> list[Row]:
    """All of them, each told as it comes.  HarnessError if the real Xen can't run here."""
    target, rows = open_target(REAL_TARGET), list[Row]()
    try:
        for row in real_rows(target):
            rows.append(row)
            on_row(row)
    except Exception as e:
        raise harness_error(target.name, e) from e
    finally:
        target.close()
    return rows


def real_rows(target: Target) -> Iterator[Row]:
    """The rows of a real machine."""
    if not isinstance(target, RealTarget):
        raise HarnessError(f"target {target.name} is no real machine")
    runner = LiveRunner(CampaignSpec("xen-4.17", target.name, domains=1, length=GUIDED, seconds=1e9), target, lambda *_: None)
    yield from hypercall_rows(runner.machine, target, runner.setup)
    yield from compared_rows(runner, target)
    restore = seconds(lambda: target.reset(runner.setup))
    yield Row(f"{NAME}: restore", 1e3 * restore, "ms")
    yield Row(f"{NAME}: restore after its QEMU was killed", 1e3 * seconds(lambda: target.reset(runner.setup), target.kill), "ms")


def hypercall_rows(machine: Machine, target: RealTarget, setup: Setup) -> Iterator[Row]:
    """Each mix on the model and on the machine alone."""
    for what in mixes(setup):
        codes = [target.code(action) for action in what.timed] * what.repeat

        def prepare(what: Mix = what) -> None:
            machine.reset()
            target.reset(setup)
            check(what, machine, target, [*what.before, *what.timed[:2]])

        def modelled(what: Mix = what) -> int:
            for action in what.timed:
                machine.step(action)
            return what.count

        def alone(what: Mix = what, codes: Sequence[bytes] = codes) -> int:
            sent(target, codes)
            return what.count * what.repeat
        base = best_rate(prepare, modelled)
        yield Row(f"model, 4.17: {what.name}", base, what.unit)
        value = wall_rate(prepare, alone)
        yield Row(f"{NAME}: {what.name}", value, what.unit, value / base, f"model, 4.17: {what.name}")


def compared_rows(runner: LiveRunner, target: RealTarget) -> Iterator[Row]:
    """Bursts alone and compared, guided programs, and both as in a campaign."""
    for about in reversed(FOCUSES):
        alone, compared = burst_rates(runner, target, about)
        name = f"{NAME}: the actions of bursts about {about}"
        yield Row(name, alone, "actions/s")
        yield Row(f"{NAME}, compared: bursts about {about}", compared, "compared actions/s", compared / alone, name)
    for what, raw in (("guided programs", 0), ("programs with bursts, as in a campaign", RAW)):
        value = program_rate(runner, raw)
        yield Row(f"{NAME}, compared: {what}", value, "compared actions/s", value / alone, name)


def burst_rates(runner: LiveRunner, target: RealTarget, about: str) -> tuple[float, float]:
    """Steps a second of bursts that nobody compares, and with all that comparing takes: the machine's work, the model's, looking
    at everything.  Some bursts together."""
    generator, steps, alone, compared = runner.generator, 0, 0.0, 0.0
    for seed in range(BURSTS):
        generator.begin(random.Random(f"bench/{seed}"))
        player = Player(runner.machine, target, runner.setup)
        player.finish(*generator.more(PIECE, player.ask))
        start = time.perf_counter()
        burst = Burst(generator, target, prepare(player, generator, about))
        for _ in range(WALKS):
            answers = burst.run(RAW, generator.randbytes)
            if check_answers(player, burst, answers) or check_state(player, burst):
                raise HarnessError(f"target {target.name}: it differs in a burst: run `xenspec fuzz --target {target.name}`")
        compared += time.perf_counter() - start
        steps += len(burst.steps)
        codes = [burst.codes[t] for t in burst.steps]
        start = time.perf_counter()
        sent(target, codes)
        alone += time.perf_counter() - start
    return steps / alone, steps / compared


def program_rate(runner: LiveRunner, raw: int) -> float:
    """Compared actions a second of whole programs, their resets included."""
    runner.spec = replace(runner.spec, raw=raw)
    done = 0

    def work() -> int:
        nonlocal done
        done += 1
        report = Report(done, done + 1)
        runner.run(done, report, shrinking=False)
        if report.failures or report.findings:
            raise HarnessError("; ".join([f.what for f in report.failures] + [f.what for f in report.findings]))
        return report.actions + report.raw
    return wall_rate(lambda: None, work)
