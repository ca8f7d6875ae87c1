"""How one process runs programs of a campaign on a real machine: made, run and compared piece by piece."""
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from oracle import coverage
from oracle.autopsy import autopsy
from oracle.burst import play_burst
from oracle.generate import Generator
from oracle.ground import Ground
from oracle.judge import Verdict
from oracle.live import PIECE, LeftOut, Player, play, play_generated
from oracle.runner import (
    GRACE,
    JUDGING,
    RUNNING,
    BootedRunner,
    CampaignSpec,
    Divergence,
    HarnessFailure,
    Report,
    Runner,
    length_of,
    program_random,
)
from oracle.targets import REAL_TARGET, HarnessError, RealTarget, Target, default_setup, model_of
from spec.vocabulary import Action, Setup

LENGTH: Final = 2000                            # actions of a program: a reset costs much
RAW: Final = 16384                              # tries of a burst after each piece


class LiveRunner(Runner):
    """On a real machine, which there is only one of; its memory says where the model starts."""
    audit_every = 20
    budget = 60

    def __init__(self, spec: CampaignSpec, target: RealTarget, tell: Callable[[int, int], None]) -> None:
        self.real = target
        self.player: Player | None = None       # of the program that is being played
        super().__init__(spec, target, tell)

    def machines(self) -> tuple[Setup, ...]:
        """The one that there is."""
        spec = self.spec
        return (default_setup(spec.profile, self.real, domains=spec.domains, pages=spec.pages, frames=spec.frames),)

    def make_generator(self, setup: Setup) -> Generator:
        """For a model that is imported; programs must leave the machine its ground."""
        machine = model_of(self.real, setup)
        return Generator(machine, Ground(machine, *self.real.ground()), self.spec.focus)

    def play(self, index: int, report: Report, shrinking: bool) -> None:
        """Run program `index`; what was compared counts, however it ends."""
        self.player, start = None, coverage.tallies()
        self.tell(index, RUNNING)
        self.generator.begin(program_random(self.spec.seed, index))
        try:
            self.player = player = Player(self.machine, self.real, self.setup, lambda: self.tell(index, JUDGING))
            play_generated(self.generator, player, length_of(self.spec, index), lambda: self.tell(index, RUNNING),
                           lambda: self.burst(player))
        finally:
            if self.player is not None:
                report.actions += len(self.player.full) - self.player.raw
                report.raw += self.player.raw
                report.kinds.update(map(type, self.player.full))
                report.looseness += self.player.looseness
            report.declared += self.generator.declared
            report.commands += self.generator.commands
        coverage.merge(report.coverage, coverage.since(start))
        if player.verdict is None:
            self.audit(index, report)
        else:
            report.divergences.append(self.found(index, player, player.verdict, shrinking))

    def burst(self, player: Player) -> None:
        """What comes after a piece."""
        if self.spec.raw:
            play_burst(player, self.generator, self.real, self.spec.raw)

    def found(self, index: int, player: Player, verdict: Verdict, shrinking: bool) -> Divergence:
        """A divergence that a player met; what does not happen again is not shrunk."""
        if not shrinking or verdict.key in self.shrunk:
            return self.divergence(index, player.actions, verdict, False)
        shown = self.shown(player, verdict)
        if shown is None:
            verdict = replace(verdict, at=verdict.at + len(player.full) - len(player.actions))
            return replace(self.divergence(index, player.full, verdict, False), repeats=False)
        return self.divergence(index, *self.located(*shown), True)

    def shown(self, player: Player, verdict: Verdict) -> tuple[Sequence[Action], Verdict] | None:
        """A program that shows what a player met: of its bursts only where they led, if that does it, or the last one whole, or
        all."""
        if not player.raw:
            return player.actions, verdict
        for actions in (player.actions, player.with_last_burst, player.full):
            with coverage.uncounted():
                short = self.again(actions[:verdict.at + 1 + len(actions) - len(player.actions)])
            if short is not None and short.key == verdict.key:
                return actions, short
        return None

    def located(self, actions: Sequence[Action], verdict: Verdict) -> tuple[Sequence[Action], Verdict]:
        """The state is compared at the end of a piece only: where it differs, up to which action is found by playing fewer."""
        least, most = max(0, verdict.at - 1) // PIECE * PIECE, verdict.at
        while verdict.differences and most - least > 1 and not self.late(GRACE):
            middle = (least + most) // 2
            with coverage.uncounted():
                found = self.again(actions[:middle])
            if found is None or found.agrees:
                least = middle
            else:
                most, verdict = middle, found
        return actions[:most] if verdict.differences else actions, verdict

    def verdict_on(self, actions: Sequence[Action]) -> Verdict:
        """Played from the machine's start; what would take away its ground is no program."""
        try:
            return play(self.machine, self.real, self.setup, actions, self.generator.ground)
        except LeftOut as e:
            raise HarnessError(f"left out: {e}") from e

    def failure(self, index: int, what: HarnessError) -> HarnessFailure:
        """With what was sent, and what the dead machine's memory says."""
        keep = Path(self.spec.keep, f"memory-{self.spec.seed}-{index}.img") if self.spec.keep else None
        actions = (*self.player.actions, *self.player.sent) if self.player is not None else ()
        return HarnessFailure(self.setup, index, str(what) + autopsy(self.real, keep), tuple(actions))


def runner_for(spec: CampaignSpec, target: Target, tell: Callable[[int, int], None]) -> Runner:
    """The runner for this kind of target."""
    return LiveRunner(spec, target, tell) if isinstance(target, RealTarget) else BootedRunner(spec, target, tell)


def length_for(target: str) -> int:
    """How long programs usually are on the target of this name."""
    return LENGTH if target == REAL_TARGET else CampaignSpec().length


def raw_for(target: str) -> int:
    """How long bursts usually are: only a real machine has any."""
    return RAW if target == REAL_TARGET else 0
