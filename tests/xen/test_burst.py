"""Bursts on the real Xen: they agree, and a machine that is killed in between is back with the next reset."""
import random

import pytest

from emulator.xen.batch import RESULT_SIZE
from oracle.burst import play_burst
from oracle.generate import Generator
from oracle.ground import Ground
from oracle.live import Player, play_generated
from spec.vocabulary import Transfer


@pytest.fixture(scope="module")
def generator(target, machine):
    return Generator(machine, Ground(machine, *target.ground()))


@pytest.fixture(scope="module")
def generator_of_transfers(generator):
    return Generator(generator.machine, generator.ground, "transfers")


def test_bursts_agree(target, generator):
    for n in range(3):
        generator.begin(random.Random(f"burst/{n}"))
        player = Player(generator.machine, target, generator.setup)
        play_generated(generator, player, 500, lambda: None, lambda player=player: play_burst(player, generator, target, 5000))
        assert player.verdict is None, player.verdict.summary
        assert player.raw > 2000
        assert len(player.actions) < len(player.full) - player.raw + 200     # a burst leaves its shortest way behind


def test_bursts_of_transfers_agree(target, generator_of_transfers):
    generator, transfers = generator_of_transfers, 0
    for n in range(3):
        generator.begin(random.Random(f"burst/{n}"))
        player = Player(generator.machine, target, generator.setup)
        play_generated(generator, player, 500, lambda: None, lambda player=player: play_burst(player, generator, target, 5000))
        assert player.verdict is None, player.verdict.summary
        transfers += sum(isinstance(action, Transfer) for action in player.full)
    assert transfers > 10_000


def test_a_wrong_answer_in_the_middle_of_a_burst_is_found(target, generator, monkeypatch):
    receive = target.receive

    def wrong():
        answers = bytearray(receive())
        answers[len(answers) // RESULT_SIZE // 2 * RESULT_SIZE] ^= 1
        return bytes(answers)
    generator.begin(random.Random("burst/wrong"))
    player = Player(generator.machine, target, generator.setup)
    player.finish(*generator.more(100, player.ask))
    monkeypatch.setattr(target, "receive", wrong)
    play_burst(player, generator, target, 4000)
    assert player.verdict is not None
    assert player.verdict.action != "state: word"


def test_a_killed_machine_is_back_with_the_next_reset(target, generator):
    target.kill()
    target.reset(generator.setup)
    generator.machine.reset()
    assert generator.machine.compare(target.observe()) == []
