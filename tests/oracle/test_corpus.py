"""Programs that once showed a bug, in whichever side: the model and the emulator agree on each of them for good."""
from pathlib import Path

import pytest

from oracle.judge import judge
from oracle.program import load
from oracle.targets import open_target
from refmodel import audit, boot

CORPUS = sorted((Path(__file__).parent.parent / "corpus").glob("*.jsonl"))


@pytest.fixture(scope="module")
def emulator():
    return open_target("emulator")


def test_there_is_a_corpus():
    assert CORPUS


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.stem)
def test_both_sides_agree_on(path, emulator):
    program = load(path)
    machine = boot(program.setup)
    emulator.reset(program.setup)
    outcomes = emulator.run(program.actions)
    verdict = judge(machine, program.actions, outcomes, emulator.observe())
    assert verdict.agrees, verdict.summary
    assert audit(machine.concrete) == []
