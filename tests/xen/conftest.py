"""The real Xen for tests: booted once a session, with a subject laid out, and put back before each test that asks for it.

Without QEMU or Xen these tests are skipped, and the summary says so loudly; with XENSPEC_NEED_XEN=1 (as in CI) they fail instead.
"""
import os
from collections.abc import Iterator

import pytest

from emulator.xen.fetch import Missing, Tools, found
from emulator.xen.machine import RealXen
from emulator.xen.subject import Layout, subject

PAGES = 600
START = "start"


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
        yield xen, layout


@pytest.fixture
def xen(booted: tuple[RealXen, Layout]) -> RealXen:
    """The machine at `START`."""
    booted[0].restore(START)
    return booted[0]


@pytest.fixture
def layout(booted: tuple[RealXen, Layout]) -> Layout:
    """The subject of that machine."""
    return booted[1]
