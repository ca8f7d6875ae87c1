"""The self-test: the clean target is clean, planted bugs are found and shrink to a few actions."""
from dataclasses import dataclass

import pytest

from oracle.campaign import CampaignResult
from oracle.runner import CampaignSpec
from oracle.selftest import QUICK, PlantResult, SelftestResult, run_selftest, sample
from oracle.targets import planted_bugs


@dataclass(frozen=True)
class Named:
    """A planted bug of which only the name matters."""
    name: str
    summary: str = ""
    historic: str = ""


def found(name: str, size: int) -> PlantResult:
    return PlantResult(name, "", "", size > 0, 100, 1.0, size, None, ())


def test_the_figures() -> None:
    result = SelftestResult(CampaignResult(CampaignSpec()), [found("a", 2), found("b", 7), found("c", 3), found("d", 0)])
    assert (result.planted, result.found, result.clean_divergences, result.median_size) == (4, 3, 0, 3)
    assert not result.passed
    assert SelftestResult(result.clean, result.plants[:3]).passed


def test_the_quick_sample_is_fixed_and_spread() -> None:
    plants = [Named(f"bug-{i:02}") for i in range(24)]
    assert [p.name for p in sample(plants, quick=True)] == [f"bug-{4 * i:02}" for i in range(QUICK)]
    assert sample(plants, quick=False) == plants
    assert [p.name for p in sample(plants, quick=False, only="-1")] == [f"bug-{i}" for i in range(10, 20)]
    assert [p.name for p in sample(plants, quick=False, only="bug-?4")] == ["bug-04", "bug-14"]


def test_a_target_without_planted_bugs_is_only_held_clean() -> None:
    result = run_selftest(target="model", clean_actions=1000, workers=1)
    assert (result.planted, result.clean_divergences, result.passed) == (0, 0, True)


def test_quick() -> None:
    told = list[str]()
    result = run_selftest(quick=True, clean_actions=5000, on_progress=lambda name, _: told.append(name))
    assert result.clean_divergences == 0
    assert [p.name for p in result.plants if not p.found] == []
    assert result.planted == QUICK
    assert told[0] == "clean"
    assert len(told) == 1 + QUICK
    assert result.median_size <= 6


@pytest.mark.long
def test_every_planted_bug_is_found() -> None:
    result = run_selftest()
    assert result.clean_divergences == 0
    assert [p.name for p in result.plants if not p.found] == []
    assert result.planted == len(planted_bugs("emulator")) >= 20
    assert result.median_size <= 6
    assert max(p.actions for p in result.plants) <= 20_000
