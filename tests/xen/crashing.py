"""The real Xen as a target that dies on purpose.  Importable, so that a campaign's workers can open it."""
from collections.abc import Sequence

from emulator.xen.target import XenTarget
from emulator.xen.turns import code
from spec.abi import DOMID_SELF, PAGE_SIZE, Xen417
from spec.vocabulary import Action, Hypercall, Outcome, Setup


class Crashing(XenTarget):
    """Domain 0 unmaps the executor in its first two programs; in the second, a count of the frame table is wrong, too."""
    programs = 0

    def reset(self, setup: Setup) -> None:
        """And count the programs."""
        super().reset(setup)
        self.programs += 1

    def send(self, codes: Sequence[bytes]) -> None:
        """What was asked for, or death first."""
        if self.programs == 2:
            at = self._frames.place(self._layouts[0].first + 20) + 16
            self.machine.set_word(at, self.machine.word(at) + 1)
        super().send([code(self.suicide())] if self.programs <= 2 else codes)

    def _perform(self, actions: Sequence[Action], result: list[Outcome]) -> None:
        """It is the machine's death, whatever was asked for: no outcome of a control transfer."""
        super()._perform([self.suicide()] if actions and self.programs <= 2 else actions, result)

    def suicide(self) -> Hypercall:
        """The slot of the base through which the executor is mapped becomes empty."""
        layout = self._layouts[0]
        buffer = layout.va(2)
        return Hypercall(0, Xen417.MMU_UPDATE, (buffer, 1, 0, DOMID_SELF), ((buffer, (layout.root * PAGE_SIZE, 0)),))


def opener(_: str) -> XenTarget:
    """Whatever its name."""
    return Crashing()
