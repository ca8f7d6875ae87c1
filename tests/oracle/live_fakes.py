"""Stand-ins for a real machine, built on the model: one that is right, and some that are wrong inside bursts only."""
import pickle
from collections.abc import Sequence
from dataclasses import replace

from oracle import coverage
from oracle.targets import HarnessError, ModelTarget, Target
from spec.abi import EINVAL, Xen417
from spec.kernel import Index, Mfn
from spec.vocabulary import Action, DomainSetup, Hypercall, Outcome, Setup, SystemCall

WIDTH = 192                                     # bytes of an answer


class LiveModel(ModelTarget):
    """The model, that says it is a real machine."""
    name = "stand-in"
    profiles = ("xen-4.17",)
    in_burst = False

    def setup(self, pages: int, domains: int = 1) -> Setup:
        """A machine of that size."""
        return Setup("xen-4.17", 2048, 16, tuple(DomainSetup(d, 16 + d * (pages + 1), pages) for d in range(domains)))

    def image(self, setup: Setup) -> None:
        """It is booted like any model."""

    def ground(self) -> tuple[int, int]:
        """It needs none."""
        return 0, 0

    def kill(self) -> None:
        """It has no process."""

    def memory(self) -> None:
        """It has none."""

    def reset(self, setup: Setup) -> None:
        """Like a machine that is none of the model's, it decides no rules."""
        with coverage.uncounted():
            super().reset(setup)

    def run(self, actions: Sequence[Action]) -> list[Outcome]:
        """Nor here."""
        with coverage.uncounted():
            return super().run(actions)

    def code(self, action: Action) -> bytes:
        """Any bytes will do."""
        return pickle.dumps(action)

    def answer(self, action: Action, outcome: Outcome) -> bytes:
        """So here, if they are of one length."""
        return repr((outcome.value, outcome.vector, outcome.error, outcome.address, (), outcome.landing)).encode().ljust(WIDTH)

    def told(self, actions: Sequence[Action], answers: bytes) -> list[Outcome]:
        """The other way round."""
        fields = (eval(answers[at:at + WIDTH]) for at in range(0, len(answers), WIDTH))
        return [Outcome(*each) for each in fields]

    def send(self, codes: Sequence[bytes]) -> None:
        """Done when it is asked for."""
        self.sent = [pickle.loads(code) for code in codes]

    def receive(self) -> bytes:
        """Step by step: the model itself, not what a burst thinks of it."""
        self.in_burst = True
        outcomes = self.run(self.sent)
        self.in_burst = False
        return b"".join(map(self.answer, self.sent, outcomes))


class WrongOnce(LiveModel):
    """In the bursts of a program, the third update_va_mapping that is refused is reported as done."""

    def reset(self, setup: Setup) -> None:
        """And count anew."""
        super().reset(setup)
        self.refused = 0

    def run(self, actions: Sequence[Action]) -> list[Outcome]:
        """As said."""
        return [self.alter(a, o) for a, o in zip(actions, super().run(actions), strict=True)]

    def alter(self, action: Action, outcome: Outcome) -> Outcome:
        """What is reported of one action."""
        refused = self.in_burst and isinstance(action, Hypercall) and action.nr == Xen417.UPDATE_VA_MAPPING and outcome.value < 0
        self.refused += refused
        return replace(outcome, value=0) if refused and self.refused == 3 else outcome


class AlwaysWrong(LiveModel):
    """Every update_va_mapping that is refused with -EINVAL is reported as done."""

    def run(self, actions: Sequence[Action]) -> list[Outcome]:
        """As said."""
        return [replace(o, value=0) if o.value == -EINVAL and isinstance(a, Hypercall) and a.nr == Xen417.UPDATE_VA_MAPPING else o
                for a, o in zip(actions, super().run(actions), strict=True)]


class LandsElsewhere(LiveModel):
    """In bursts, a system call finds its frame a word lower than it is."""

    def run(self, actions: Sequence[Action]) -> list[Outcome]:
        """As said."""
        return [replace(o, landing=(*o.landing[:3], o.landing[3] - 8, *o.landing[4:]))
                if self.in_burst and isinstance(a, SystemCall) and o.landing else o
                for a, o in zip(actions, super().run(actions), strict=True)]


class Corrupts(LiveModel):
    """A burst changes a word of memory that nobody stored to."""

    def receive(self) -> bytes:
        """Wrong in its state only."""
        answers = super().receive()
        assert self.machine is not None
        self.machine.s.word[Mfn(self.machine.setup.domains[0].first), Index(500)] += 1
        return answers


class DiesInABurst(LiveModel):
    """Dies in its second burst."""

    def reset(self, setup: Setup) -> None:
        """And count anew."""
        super().reset(setup)
        self.received = 0

    def receive(self) -> bytes:
        """Or not."""
        self.received += 1
        if self.received == 6:
            raise HarnessError("the machine died")
        return super().receive()


def opener(name: str) -> Target:
    """The stand-in of this name."""
    kinds = (LiveModel, WrongOnce, AlwaysWrong, LandsElsewhere, Corrupts, DiesInABurst)
    return {kind.__name__: kind for kind in kinds}[name]()
