"""The target that the oracle drives: the real Xen 4.17 with our executor as domain 0 and in domUs, profile xen-4.17.

A reset goes back to the snapshot that was taken when the domains' memory had been laid out.  A machine that dies of a program is
a `HarnessError` with the last lines of Xen's console, and as good as new after the next reset.
"""
from collections.abc import Sequence
from dataclasses import fields
from typing import Any, Final

import numpy as np

from emulator.errors import HarnessError
from emulator.xen.batch import answer, outcomes
from emulator.xen.domu import build
from emulator.xen.fetch import Missing, found
from emulator.xen.frames import ADDRESS, FrameTable, image, packed, root_places, vcpus
from emulator.xen.handed_out import Allocations
from emulator.xen.machine import Crashed, RealXen, end_process
from emulator.xen.rights import restrict
from emulator.xen.subject import Layout, choose, subject
from emulator.xen.turns import Died, Turns, code
from emulator.xen.version import running
from spec.abi import DOMID_IO, DOMID_XEN, L1, L4, NOBODY, PSE, Xen417
from spec.vocabulary import KILLED, Action, DomainSetup, Image, Observation, Outcome, Setup, Transfer, pack_frame

PROFILE: Final = "xen-4.17"
XENS: Final = np.uint64(pack_frame(DOMID_XEN, 0, 0, 0, False))
LOW_FRAMES: Final = 256                     # the first megabyte: Xen's or a device's
BOOTED, LAID_OUT = "booted", "laid-out"     # the snapshots
LEAST: Final = 16                           # pages, of a machine that only shows what it is
LOWEST: Final = 2                           # pages at the bottom of the address space, which programs reach
BEHIND: Final = 2                           # frames of a domain behind its memory for programs that these name, too
DEATHS: Final = ("domain 0 crashed", "a domU crashed")
HEADROOM: Final = 5                         # frames that a domU may have beyond what it has


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
        self._layouts: tuple[Layout, ...] = ()      # of domains 0, 1, …
        self._dead = False
        self.killed = False                         # Xen gave a domain up, as the outcome says
        self._sent = self._done = 0                 # actions: in the batch that was sent last; answered since the reset

    @property
    def machine(self) -> RealXen:
        """The machine, at whatever point it is."""
        if self._machine is None:
            self._machine = RealXen(self._tools)
            self._version = running(self._machine)
            self._machine.snapshot(BOOTED)
        return self._machine

    @staticmethod
    def needs(frames: int) -> tuple[int, tuple[int, ...]]:
        """The frames that are surely not for guests; the words of Xen's slots are in the image."""
        return LOW_FRAMES, ()

    # --- what it is -----------------------------------------------------------------------------------------------------------

    def setup(self, pages: int, domains: int = 1) -> Setup:
        """The machine with so many domains, each with `pages` pages for programs."""
        if [pages] * domains != [layout.pages for layout in self._layouts]:
            self._lay_out(pages, domains)
        return Setup(PROFILE, self._frames.frames, LOW_FRAMES,
                     tuple(DomainSetup(d, each.first, each.pages) for d, each in enumerate(self._layouts)),
                     machine=f"Xen {self._version}")

    def _lay_out(self, pages: int, domains: int) -> None:
        """Go back to the boot, build the domUs, lay out everybody's memory, and learn what is where."""
        machine = self.machine
        choose(machine, pages)                  # if there is no room, nothing happens
        machine.others.clear()
        if self._layouts:
            self._layouts = ()
            machine.restore(BOOTED)
        try:
            domus = [build(machine, pages + 1 + BEHIND, HEADROOM) for _ in range(1, domains)]
            guests = (machine, *domus)
            layouts = tuple(subject(guest, pages) for guest in guests)
            restrict(machine)
        except Crashed as crash:
            self.close()
            raise HarnessError(f"the machine dies while memory is laid out: {crash}") from crash
        machine.snapshot(LAID_OUT)
        self._turns, self._layouts, self._dead = Turns(machine, domus), layouts, False
        self._frames = FrameTable(machine.ram)
        self._memory = tuple(f for guest, layout in zip(guests, layouts, strict=True)
                             for f in (*range(layout.first, layout.first + pages + 1 + BEHIND), *guest.p2m[:LOWEST]))
        self._image = image(machine.ram, [*self._memory, *published(self._frames)])
        self._allocations = Allocations(self._frames, range(domains))
        self._others = Others(self._frames)
        self._bases = {d: self._base_place(d, layout) for d, layout in enumerate(layouts)}

    def _base_place(self, d: int, layout: Layout) -> tuple[int, int]:
        """The record of a domain's vCPU, and where in it its base is."""
        memory = self._frames.memory
        vcpu = vcpus(memory, d, self._frames.records()[d])[0]
        return vcpu, next(k for k in root_places(self._image, memory, vcpu) if memory.word(vcpu, k) == layout.root)

    def image(self, setup: Setup) -> Image | None:
        """The state that a reset to this setup leaves."""
        self._suit(setup)
        return self._image

    def ground(self) -> tuple[int, int]:
        """Where the executor is, in every domain."""
        return self.machine.image, self.machine.image_end

    def memory(self) -> Any:
        """All of it, as it is now."""
        return self.machine.ram

    def _suit(self, setup: Setup) -> None:
        """Be the machine of this setup, or refuse."""
        pages, domains = setup.domains[0].pages, len(setup.domains)
        fits = [(d.domid, d.pages) for d in setup.domains] == [(d, pages) for d in range(domains)]
        mine = self.setup(pages, domains) if fits else self.setup(LEAST)
        if other := unlike(setup, mine):
            raise HarnessError(f"the real Xen is what it is, and the program is for another machine: {other}")

    # --- programs -------------------------------------------------------------------------------------------------------------

    def reset(self, setup: Setup) -> None:
        """The machine as it was when its memory had just been laid out."""
        self._suit(setup)
        self.machine.restore(LAID_OUT)
        self._allocations.reset()
        self._dead = self.killed = False
        self._done = 0

    def run(self, actions: Sequence[Action]) -> list[Outcome]:
        """Run actions from the present state on, in batches; a call that may hand frames out is one of its own."""
        result: list[Outcome] = []
        first, most = 0, self._alive().most
        for n, action in enumerate(actions):
            if self._allocations.may_follow(action):
                self._perform(actions[first:n], result)
                if self.killed:
                    return result
                self._allocations.look()
                self._perform(actions[n:n + 1], result)
                result[-1].chose = self._allocations.of(action, self._base(action.dom))
                first = n + 1
            elif n - first == most:
                self._perform(actions[first:n], result)
                first = n
        self._perform(actions[first:], result)
        return result

    def _perform(self, actions: Sequence[Action], result: list[Outcome]) -> None:
        """Actions in one go, if there are any; none once a domain has been killed."""
        if not actions or self.killed:
            return
        self.send([code(action) for action in actions])
        try:
            result += outcomes(actions, self.receive())
        except HarnessError as error:
            death = error.__cause__
            if not isinstance(death, Died) or death.reason not in DEATHS or not isinstance(actions[death.at], Transfer):
                raise
            result += [*outcomes(actions[:death.at], self._turns.complete()), Outcome(KILLED)]
            self.killed = True

    def _alive(self) -> Turns:
        """The executors, if they live."""
        if not self._layouts or self._dead:
            raise HarnessError("there is no machine: reset first")
        return self._turns

    # --- bursts ---------------------------------------------------------------------------------------------------------------

    @staticmethod
    def code(action: Action) -> bytes:
        """An action as an operation of the executor's."""
        return code(action)

    @staticmethod
    def answer(action: Action, outcome: Outcome) -> bytes:
        """An outcome as a result of the executor's."""
        return answer(outcome)

    @staticmethod
    def told(actions: Sequence[Action], answers: bytes) -> list[Outcome]:
        """Results of the executor's as outcomes."""
        return outcomes(actions, answers)

    def send(self, codes: Sequence[bytes]) -> None:
        """Start a batch, and do not wait for it."""
        self._alive().send(codes)
        self._sent = len(codes)

    def receive(self) -> bytes:
        """The results of the batch."""
        try:
            answers = self._alive().receive()
        except Died as death:
            self._dead = True
            raise HarnessError(f"the machine died of action {self._done + death.at} since its reset: {death}") from death
        self._done += self._sent
        return answers

    def observe(self) -> Observation:
        """Every frame and machine-to-physical word, and the contents of what programs reach: their memory (also what of it was
        given back), all page tables of the domains, frames that were handed out."""
        assert self._layouts
        frames = self._frames
        table = frames.table()
        words = packed(table)
        words[table.owner == DOMID_IO] = XENS       # devices are taken as Xen's
        self._others.show(frames, table, words)
        tables = (table.owner < len(self._layouts)) & (table.type >= L1) & (table.type <= L4) & (table.type_count > 0)
        shown = set(np.flatnonzero(tables).tolist()) | set(self._memory) | self._allocations.ever
        rows = tuple(sorted(shown))
        return Observation(frames.frames, words.tobytes(), frames.memory.pages[list(rows)].tobytes(), frames.m2p().tobytes(),
                           {d: self._base(d) for d in self._bases}, rows)

    def _base(self, d: int) -> int:
        """The frame of a domain's base."""
        return self._frames.memory.word(*self._bases[d])

    def kill(self) -> None:
        """End QEMU, as if it had crashed."""
        self._dead = True
        end_process(self.machine.process)

    def close(self) -> None:
        """End the machine."""
        if self._machine is not None:
            self._machine.close()
            self._machine = None


def unlike(setup: Setup, mine: Setup) -> str:
    """In what a setup is not that of this machine; one without a name is of any machine that is otherwise like it."""
    names = [f.name for f in fields(Setup) if getattr(setup, f.name) != getattr(mine, f.name)]
    return ", ".join(f"its {n} {shown(getattr(setup, n))}, here {shown(getattr(mine, n))}" for n in names
                     if n != "machine" or setup.machine)


def shown(value: object) -> str:
    """A part of a setup in a message."""
    if isinstance(value, DomainSetup):
        return f"{value.domid} with {value.pages} pages from frame {value.first}"
    return " and ".join(map(shown, value)) or "none" if isinstance(value, tuple) else str(value)


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
