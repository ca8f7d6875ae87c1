"""The real Xen for tests: booted once a session, with a subject laid out, and put back before each test that asks for it.

Without QEMU or Xen these tests are skipped, and the summary says so loudly; with XENSPEC_NEED_XEN=1 (as in CI) they fail instead.
"""
import contextlib
import os
import random
from collections.abc import Iterable, Iterator

import pytest
from qemu.qmp import QMPError

from emulator.xen.fetch import Missing, Tools, found
from emulator.xen.machine import RealXen
from emulator.xen.subject import Layout, subject
from emulator.xen.target import XenTarget
from oracle.generate import Generator
from oracle.ground import Ground
from oracle.live import Player, play_generated
from oracle.targets import default_setup, model_of
from refmodel import Machine
from spec.vocabulary import Setup

PAGES = 600
START = "start"
Held = tuple[XenTarget, Setup, Machine]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Without the tools, what needs them is skipped as one, for one reason."""
    needy = [item for item in items if "tools" in getattr(item, "fixturenames", ())]
    if needy and not os.environ.get("XENSPEC_NEED_XEN") and isinstance(there := found(), Missing):
        for item in needy:
            item.add_marker(pytest.mark.skip(reason=f"NOT TESTED AGAINST THE REAL XEN: {there}"))


@pytest.fixture(scope="session")
def tools() -> Tools:
    """QEMU, Xen and the executor."""
    there = found()
    if isinstance(there, Missing):
        pytest.fail(f"NOT TESTED AGAINST THE REAL XEN: {there}", pytrace=False)
    return there


@pytest.fixture(scope="session")
def booted(tools: Tools) -> Iterator[tuple[RealXen, Layout]]:
    """One machine for all tests, with the snapshot `START`."""
    with RealXen(tools) as xen:
        layout = subject(xen, PAGES)
        xen.snapshot(START)
        told(xen, "stop")
        yield xen, layout


@pytest.fixture
def xen(booted: tuple[RealXen, Layout]) -> Iterator[RealXen]:
    """The machine at `START`."""
    with started(booted[0]) as machine:
        yield machine


@contextlib.contextmanager
def started(machine: RealXen) -> Iterator[RealXen]:
    """The machine at `START`, running; then it stands still, or its executor, which never sleeps, would take a core from all."""
    told(machine, "cont")
    machine.restore(START)
    yield machine
    told(machine, "stop")


def told(machine: RealXen, command: str) -> None:
    """Give a command to the machine's monitor, if it lives."""
    with contextlib.suppress(QMPError, EOFError, OSError):
        machine.monitor.execute(command)


@pytest.fixture
def layout(booted: tuple[RealXen, Layout]) -> Layout:
    """The subject of that machine."""
    return booted[1]


# --- the same as a target ----------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def target(tools: Tools) -> Iterator[XenTarget]:
    """A machine for the tests of a module."""
    held = XenTarget()
    yield held
    held.close()


@pytest.fixture(scope="module")
def setup(target: XenTarget) -> Setup:
    """It with domain 0 alone,"""
    return default_setup("xen-4.17", target, domains=1)


@pytest.fixture(scope="module")
def machine(target: XenTarget, setup: Setup) -> Machine:
    """and the model of that."""
    return model_of(target, setup)


@pytest.fixture(scope="module")
def two(tools: Tools) -> Iterator[Held]:
    """Domain 0 and a domU, and the model of them."""
    target = XenTarget()
    setup = default_setup("xen-4.17", target, domains=2)
    yield target, setup, model_of(target, setup)
    target.close()


def played(target: XenTarget, setup: Setup, machine: Machine, names: Iterable[str], length: int) -> Iterator[Player]:
    """Generated programs, each with random numbers of its name, that must agree: the players after them."""
    generator = Generator(machine, Ground(machine, *target.ground()))
    for name in names:
        generator.begin(random.Random(name))
        player = Player(machine, target, setup)
        play_generated(generator, player, length, lambda: None)
        assert player.verdict is None, player.verdict.summary
        yield player
