"""Model against emulator: found by Hypothesis, and in a campaign with a fixed seed."""
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oracle.campaign import run_campaign
from oracle.generate import Generator
from oracle.judge import judge
from oracle.program import Program, dump
from oracle.runner import CampaignSpec
from oracle.targets import Target, default_setup
from oracle.worker import WorkerTarget
from refmodel import boot


@pytest.fixture(scope="module")
def emulator() -> Iterator[Target]:
    """The emulator in a process of its own, so that its death is a failed test and no more."""
    target = WorkerTarget("emulator")
    yield target
    target.close()


@given(rng=st.randoms(use_true_random=False), length=st.integers(1, 30))
@settings(max_examples=60)
def test_no_program_tells_them_apart(emulator: Target, rng: random.Random, length: int) -> None:
    setup = default_setup("xen-2003", emulator)
    machine = boot(setup)
    actions, _ = Generator(machine).program(rng, length)
    emulator.reset(setup)
    outcomes = emulator.run(actions)
    verdict = judge(machine, actions, outcomes, emulator.observe())
    assert verdict.agrees, verdict.summary


def test_a_campaign_finds_nothing(tmp_path: Path) -> None:
    found = run_campaign(CampaignSpec(seed=2003, actions=20_000, workers=2))
    for d in found.divergences:
        dump(Program(d.setup, list(d.actions), note=d.verdict.summary), tmp_path / f"{d.index}.jsonl")
    assert [d.verdict.summary for d in found.divergences] == []
    assert found.harness_failures == []
    assert found.model_findings == []
    assert found.actions == 20_000
