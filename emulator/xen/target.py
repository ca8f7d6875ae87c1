"""The target that the oracle drives: the real Xen 4.17 with our executor as domain 0, profile xen-4.17.

A reset goes back to the snapshot that was taken when domain 0's memory had been laid out.  A machine that dies of a program is a
`HarnessError` with the last lines of Xen's console, and as good as new after the next reset.
"""
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from emulator.errors import HarnessError
from emulator.xen.batch import Batch, outcomes
from emulator.xen.fetch import Missing, found
from emulator.xen.frames import ADDRESS, FrameTable, image, packed, root_places, vcpus
from emulator.xen.handed_out import Allocations
from emulator.xen.machine import Crashed, RealXen
from emulator.xen.rights import restrict
from emulator.xen.subject import Layout, choose, lay_out
from spec.abi import DOMID_IO, DOMID_XEN, L1, L4, NOBODY, PSE, Xen417
from spec.vocabulary import Action, DomainSetup, Image, Observation, Outcome, Setup, pack_frame

PROFILE: Final = "xen-4.17"
XENS: Final = np.uint64(pack_frame(DOMID_XEN, 0, 0, 0, False))
LOW_FRAMES: Final = 256                     # the first megabyte: Xen's or a device's
BOOTED, LAID_OUT = "booted", "laid-out"     # the snapshots
LOWEST: Final = 2                           # pages at the bottom of the address space, which programs reach
BEHIND: Final = 2                           # frames of domain 0 behind its memory for programs that these name, too


class XenTarget:
    """One machine, started when it is first needed."""
    name = "xen"
    profiles = (PROFILE,)

    def __init__(self) -> None:
        tools = found()
        if isinstance(tools, Missing):
            raise HarnessError(str(tools))
        self._tools = tools
        self._machine: RealXen | None = None
        self._subject: Layout | None = None
        self._dead = False

    @property
    def machine(self) -> RealXen:
        """The machine, at whatever point it is."""
        if self._machine is None:
            self._machine = RealXen(self._tools)
            self._machine.snapshot(BOOTED)
        return self._machine

    @staticmethod
    def needs(frames: int) -> tuple[int, tuple[int, ...]]:
        """The frames that are surely not for guests; the words of Xen's slots are in the image."""
        return LOW_FRAMES, ()

    # --- what it is -----------------------------------------------------------------------------------------------------------

    def setup(self, pages: int) -> Setup:
        """The machine with `pages` pages of domain 0 for programs."""
        subject = choose(self.machine, pages)
        if subject != self._subject:
            self._lay_out(subject)
        return Setup(PROFILE, self._frames.frames, LOW_FRAMES, (DomainSetup(0, subject.first, subject.pages),))

    def _lay_out(self, subject: Layout) -> None:
        machine = self.machine
        if self._subject is not None:
            machine.restore(BOOTED)
        try:
            lay_out(machine, subject)
            restrict(machine)
        except Crashed as crash:
            self._machine = None
            machine.close()
            raise HarnessError(f"the machine dies while memory is laid out: {crash}") from crash
        machine.snapshot(LAID_OUT)
        self._subject, self._dead = subject, False
        self._frames = FrameTable(machine.ram)
        self._memory = (*range(subject.first, subject.first + subject.pages + 1 + BEHIND), *machine.p2m[:LOWEST])
        self._image = image(machine.ram, [*self._memory, *published(self._frames)])
        self._allocations = Allocations(self._frames)
        self._others = Others(self._frames)
        self._vcpu = vcpus(self._frames.memory, 0, self._frames.records()[0])[0]
        self._root = next(k for k in root_places(self._image, self._frames.memory, self._vcpu)
                          if self._frames.memory.word(self._vcpu, k) == subject.root)

    def image(self, setup: Setup) -> Image | None:
        """The state that a reset to this setup leaves."""
        self._suit(setup)
        return self._image

    def ground(self) -> tuple[int, int]:
        """Where the executor is."""
        return self.machine.image, self.machine.image_end

    def _suit(self, setup: Setup) -> None:
        """Be the machine of this setup, or refuse."""
        if [d.domid for d in setup.domains] != [0] or self.setup(setup.domains[0].pages) != setup:
            raise HarnessError("the real Xen is what it is: its setup comes from `default_setup`, not from elsewhere")

    # --- programs -------------------------------------------------------------------------------------------------------------

    def reset(self, setup: Setup) -> None:
        """The machine as it was when its memory had just been laid out."""
        self._suit(setup)
        self.machine.restore(LAID_OUT)
        self._allocations.reset()
        self._dead = False

    def run(self, actions: Sequence[Action]) -> list[Outcome]:
        """Run actions from the present state on, in batches; a call that may hand frames out is one of its own."""
        if self._subject is None or self._dead:
            raise HarnessError("there is no machine: reset first")
        result: list[Outcome] = []
        first, operations = 0, self.machine.most[1]
        for n, action in enumerate(actions):
            if self._allocations.may_follow(action):
                self._perform(actions, first, n, result)
                self._allocations.look()
                self._perform(actions, n, n + 1, result)
                result[-1].chose = self._allocations.of(action)
                first = n + 1
            elif n - first == operations:
                self._perform(actions, first, n, result)
                first = n
        self._perform(actions, first, len(actions), result)
        return result

    def _perform(self, actions: Sequence[Action], first: int, end: int, result: list[Outcome]) -> None:
        """Actions [first, end) as one batch."""
        if first == end:
            return
        batch = Batch()
        part = actions[first:end]
        batch.actions(part)
        try:
            result += outcomes(part, self.machine.run(batch.words, len(batch)))
        except Crashed as crash:
            self._dead = True
            raise HarnessError(f"the machine died of action {first + crash.done}: {crash}") from crash

    def observe(self) -> Observation:
        """Every frame and machine-to-physical word, and the contents of what programs reach: their memory, all page tables of
        domain 0, frames that were handed out."""
        assert self._subject is not None
        frames = self._frames
        table = frames.table()
        words = packed(table)
        words[table.owner == DOMID_IO] = XENS       # devices are taken as Xen's
        self._others.show(frames, table, words)
        tables = (table.owner == 0) & (table.type >= L1) & (table.type <= L4) & (table.type_count > 0)
        shown = set(np.flatnonzero(tables).tolist()) | set(self._memory) | self._allocations.ever
        rows = tuple(f for f in sorted(shown) if table.owner[f] != NOBODY)
        return Observation(frames.frames, words.tobytes(), frames.memory.pages[list(rows)].tobytes(), frames.m2p().tobytes(),
                           {0: self._base()}, rows)

    def _base(self) -> int:
        return self._frames.memory.word(self._vcpu, self._root)

    def close(self) -> None:
        """End the machine."""
        if self._machine is not None:
            self._machine.close()
            self._machine = None


def published(frames: FrameTable) -> list[int]:
    """The tables through which every domain can read the machine-to-physical words."""
    level, found = [(frames.memory.word(frames.root, Xen417.M2P_SLOT) & ADDRESS) >> 12], list[int]()
    for _ in range(3):
        found += level
        level = [(e & ADDRESS) >> 12 for table in level for _, e in frames.memory.entries(table) if not e & PSE]
    return found


class Others:
    """Frames that are no domain's: what the frame table says of them is the machine's own business, but it may not change."""

    def __init__(self, frames: FrameTable) -> None:
        self._rows = frames.raw()[:, 1:3].copy()

    def show(self, frames: FrameTable, table: Any, words: Any) -> None:
        """In the words of such frames, show what is not as it was at the start."""
        rows = frames.raw()[:, 1:3]
        changed = np.flatnonzero((rows != self._rows).any(axis=1) & (table.owner >= 0x7FF0) & (table.owner != NOBODY))
        for f in changed.tolist():
            words[f] |= np.uint64((int(rows[f, 0]) & 0x3FFFFF) << 22 | 1)
