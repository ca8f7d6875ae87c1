"""One machine for all tests of the emulator, reset before each: the engine allows one processor a process."""
import pytest

from emulator.target import EmulatorTarget
from tests.emulator.guest import SETUP, Guest


@pytest.fixture(scope="session")
def only_target():
    return EmulatorTarget()


@pytest.fixture
def target(only_target):
    only_target.reset(SETUP)
    return only_target


@pytest.fixture
def dom0():
    return Guest(SETUP, 0)


@pytest.fixture
def guest():
    return Guest(SETUP, 1)


@pytest.fixture
def other():
    return Guest(SETUP, 2)
