"""What a target's own code in the guest stands on: the model knows, so programs leave out what would take it away.

A real hypervisor is driven by code of ours that runs as the guest's kernel.  Its pages are mapped by the guest's own tables, and
a guest may unmap them, or load a base without them; then nobody is left to tell what happened.
"""
from collections.abc import Mapping
from typing import Final

from refmodel import Machine
from spec.abi import DOMID_IO, NX, RW, US, P, Xen417
from spec.kernel import DomId
from spec.vocabulary import Action, Execute, Hypercall, Outcome

EXECUTOR_WINDOW: Final = "executor-window"
CANONICAL_EDGE: Final = "canonical-edge"
DEVICE_FRAMES: Final = "device-frames"
LOST_TEARDOWN: Final = "lost-teardown"
OUTSIDE: Final = "outside-the-vocabulary"
# Differences that a target declares beforehand: what is left out of programs, and why.
DECLARED: Final[Mapping[str, str]] = {
    EXECUTOR_WINDOW: "what would unmap or overwrite the executor's own pages in the guest is not sent: nobody could tell the "
                     "outcome",
    CANONICAL_EDGE: "a word that straddles the end of the canonical addresses: QEMU's processor translates its first page first, "
                    "which may give a page fault instead of the general protection fault",
    DEVICE_FRAMES: "requests that name DOMID_IO and one of its frames, the first megabyte: who may act for DOMID_IO can write "
                   "there and name them, and the machine would not be the same after it",
    LOST_TEARDOWN: "a tree of tables in which two upper tables fail after their first slot: 4.17 loses the teardown of the lower "
                   "one, and its references with it",
    OUTSIDE: "what no rule describes, such as memory of a node: programs come to it when a list lies in a page with other "
             "contents"}
FRAME: Final = ((1 << 40) - 1) << 12
EDGE: Final = 1 << 47
RIGHTS: Final = FRAME | NX | RW | US | P


class Ground:
    """The pages [start, end) of domain 0, mapped by its base as the model's machine has it at its start."""

    def __init__(self, machine: Machine, start: int, end: int) -> None:
        self.machine = machine
        self.word: Mapping[tuple[int, int], int] = machine.concrete.maps["word"]
        self.root_slot = start >> 39 & 511
        self.root_entry = self.word[machine.base_of(0), self.root_slot] & RIGHTS
        self.entries: dict[tuple[int, int], int] = {}       # on the way to the pages, below the root
        self.frames: set[int] = set()                       # the pages themselves
        for va in range(start, end, 4096):
            table = (self.root_entry & FRAME) >> 12
            for shift in (30, 21, 12):
                at = table, va >> shift & 511
                self.entries[at] = self.word[at] & RIGHTS
                table = (self.word[at] & FRAME) >> 12
            self.frames.add(table)
        self.tables = {table for table, _ in self.entries}

    def tried(self, action: Action) -> tuple[str, Outcome | None]:
        """Why an action is left out, or "" and what the model makes of it; the caller takes the model back if need be."""
        reason, outcome, concrete = self.forbids(action), None, self.machine.concrete
        if not reason:
            mark, concrete.torn = concrete.mark(), 0
            outcome = self.machine.step(action)
            reason = LOST_TEARDOWN if concrete.torn > 1 else self.lost(mark)
        return reason, outcome

    def forbids(self, action: Action) -> str:
        """Why this action is not performed at all: an application's access needs the pages in user mode's tables, for one."""
        if isinstance(action, Hypercall):
            return DEVICE_FRAMES if self.names_devices(action) else ""
        if EDGE - 8 < action.va < EDGE and not isinstance(action, Execute):
            return CANONICAL_EDGE
        if not action.user:
            return ""
        s, d = self.machine.s, DomId(action.dom)
        return "" if s.has_user[d] and self.carries(s.user_base[d]) else EXECUTOR_WINDOW

    def names_devices(self, call: Hypercall) -> bool:
        """A list of requests for DOMID_IO, one of which names a frame of its own."""
        if call.nr not in (Xen417.MMU_UPDATE, Xen417.MMUEXT_OP) or len(call.args) < 4 or call.args[3] & 0xFFFF != DOMID_IO:
            return False
        devices = self.machine.concrete.devices
        shift = 12 if call.nr == Xen417.MMU_UPDATE else 0
        return any(word >> shift in devices for _, words in call.data for word in words)

    def carries(self, root: int) -> bool:
        """A root table leads to the pages."""
        return bool(self.word[root, self.root_slot] & RIGHTS == self.root_entry)

    def lost(self, mark: int) -> str:
        """Why what happened since the mark must be taken back: the pages are unmapped, or have other contents."""
        concrete = self.machine.concrete
        words, base = concrete.words, concrete.maps["base"]
        for changed, key, _ in concrete.log[mark:]:
            if changed is words:
                frame, slot = key
                rights = self.word[key] & RIGHTS
                if frame in self.frames or (frame in self.tables and rights != self.entries.get(key, rights)):
                    return EXECUTOR_WINDOW
                if slot == self.root_slot and frame == base[0] and not self.carries(frame):
                    return EXECUTOR_WINDOW
            elif changed is base and not self.carries(base[key]):
                return EXECUTOR_WINDOW
        return ""
