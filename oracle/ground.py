"""What a target's own code in the guest stands on: the model knows, so programs leave out what would take it away.

A real hypervisor is driven by code of ours that runs as the guest's kernel.  Its pages are mapped by the guest's own tables, and
a guest may unmap them, or load a base without them; then nobody is left to tell what happened.
"""
from collections.abc import Mapping
from typing import Final

from refmodel import Machine
from refmodel.guest import holder
from refmodel.references import TEARDOWN
from refmodel.xen417_bounce import LOST_FLAGS, OTHER_MODE, STALE_STACK
from refmodel.xen417_mmu import CONTINUATION
from refmodel.xen417_mmuext import CONTENTS
from refmodel.xen417_reservation import FLUSH
from refmodel.xen417_transfers import LATE_TARGET
from spec.abi import DOMID_IO, NX, RW, US, P, Xen417
from spec.frames import mfn_of
from spec.kernel import DomId, Vpn
from spec.vocabulary import KILLED, Access, Action, Execute, Hypercall, Load, LoadSegment, Outcome, Return, Transfer
from spec.x86.tlb import tag_of

EXECUTOR_WINDOW: Final = "executor-window"
CANONICAL_EDGE: Final = "canonical-edge"
DEVICE_FRAMES: Final = "device-frames"
SHARED_INFO: Final = "shared-info"
LOST_TEARDOWN: Final = "lost-teardown"
LOST_CONTINUATION: Final = "lost-continuation"
LOST_FLUSH: Final = "lost-flush"
LOST_DIRECTION: Final = "lost-direction-flag"
DOMAIN_DEATH: Final = "domain-death"
CODE_MODE: Final = "code-of-another-mode"
UNSTEADY_STACK: Final = "unsteady-stack"
# what Xen or the model loses hold of -> the declared difference
LOSSES: Final = {TEARDOWN: LOST_TEARDOWN, CONTINUATION: LOST_CONTINUATION, FLUSH: LOST_FLUSH, CONTENTS: SHARED_INFO,
                 LATE_TARGET: CANONICAL_EDGE, LOST_FLAGS: LOST_DIRECTION, STALE_STACK: UNSTEADY_STACK, OTHER_MODE: CODE_MODE}
BREAKPOINTS: Final = "breakpoints"
OUTSIDE: Final = "outside-the-vocabulary"
# Differences that a target declares beforehand: what is left out of programs, and why.
DECLARED: Final[Mapping[str, str]] = {
    EXECUTOR_WINDOW: "what would unmap or overwrite the executor's own pages in the guest is not sent: nobody could tell the "
                     "outcome",
    CANONICAL_EDGE: "a word that straddles the end of the canonical addresses: QEMU's processor translates its first page first, "
                    "which may give a page fault instead of the general protection fault; far transfers to what is not "
                    "canonical, which it notices at the target",
    DEVICE_FRAMES: "requests that name DOMID_IO and one of its frames, the first megabyte: who may act for DOMID_IO can write "
                   "there and name them, and the machine would not be the same after it",
    SHARED_INFO: "loads and copies from a domain's shared_info, where Xen writes at any time, and stores there, which would "
                 "break the turns that domains take by its event bits; loads from the executor's own pages, and copies from or "
                 "over them: the model does not know what is in them",
    LOST_TEARDOWN: "a tree of tables in which one fails after its first slot, the next above at its first, and one above that: "
                   "4.17 remembers one table to undo, and may leak another with its references (X-23)",
    LOST_CONTINUATION: "a call of a list that is continued, when its entry in the list can no longer be written: 4.17 takes the "
                       "error for the number of a hypercall, or lets go; what the call gave up stays until a later one (X-24)",
    LOST_FLUSH: "memory handed out while a frame is free that was given in an exchange since the last flush: 4.17 takes its "
                "owner away before it frees it, and then hands it out without the flush that a frame with an owner gets (X-27)",
    BREAKPOINTS: "a breakpoint that is on, but for addresses where nothing ever is: the model has none of the #DB that follow",
    LOST_DIRECTION: "system calls of user mode with flags that show it: Debian's 4.17.7 clears not DF but all flags that are not "
                    "in the address of the frame (X-46)",
    CODE_MODE: "transfers to code that is not of 64 bits: where the model knows of no guest, and QEMU's processor misses checks",
    UNSTEADY_STACK: "frames in a page for which the processor may have another translation: the domain might die, or not",
    DOMAIN_DEATH: "what kills the domain, but as the last action of some programs: a real machine is then to be restored",
    OUTSIDE: "what no rule describes, such as memory of a node: programs come to it when a list lies in a page with other "
             "contents"}
FRAME: Final = ((1 << 40) - 1) << 12
EDGE: Final = 1 << 47
EMPTY_SLOT: Final = 0xAA                        # of every root table: breakpoints in there strike nothing
RIGHTS: Final = FRAME | NX | RW | US | P


class Ground:
    """The pages [start, end) of every domain, mapped by its base as the model's machine has it at its start."""

    def __init__(self, machine: Machine, start: int, end: int) -> None:
        self.machine = machine
        self.deaths = False                                 # may a program end with the death of its domain?
        self.word: Mapping[tuple[int, int], int] = machine.concrete.maps["word"]
        self.root_slot = start >> 39 & 511
        self.root_entries: dict[int, int] = {}              # by domain
        self.entries: dict[tuple[int, int], int] = {}       # on the way to the pages, below the root
        self.frames: set[int] = set()                       # the pages themselves
        for d in machine.domids:
            self.root_entries[d] = self.word[machine.base_of(d), self.root_slot] & RIGHTS
            for va in range(start, end, 4096):
                table = (self.root_entries[d] & FRAME) >> 12
                for shift in (30, 21, 12):
                    at = table, va >> shift & 511
                    self.entries[at] = self.word[at] & RIGHTS
                    table = (self.word[at] & FRAME) >> 12
                self.frames.add(table)
        self.tables = {table for table, _ in self.entries}
        machine.concrete.opaque |= self.frames
        self.unknown = machine.concrete.opaque
        self.shared = self.unknown.intersection(machine.shared.values())    # the executor has its domain's mapped, too

    def tried(self, action: Action) -> tuple[str, Outcome | None]:
        """Why an action is left out, or "" and what the model makes of it; the caller takes the model back if need be."""
        reason, outcome, concrete = self.forbids(action), None, self.machine.concrete
        if not reason:
            mark, concrete.lost = concrete.mark(), ""
            outcome = self.machine.step(action)
            reason = (LOSSES.get(concrete.lost) or self.lost(mark, isinstance(action, Transfer)) or
                      self.reads_unknown(action, outcome))
            if not reason and outcome.value == KILLED and not self.deaths:
                reason = DOMAIN_DEATH
        return reason, outcome

    def forbids(self, action: Action) -> str:
        """Why this action is not performed at all: an application's access needs the pages in user mode's tables, for one."""
        if isinstance(action, Hypercall):
            return DEVICE_FRAMES if self.names_devices(action) else ""
        if isinstance(action, Transfer):
            return self.forbids_transfer(action)
        if not isinstance(action, Execute | LoadSegment) and EDGE - 8 < action.va < EDGE:
            return CANONICAL_EDGE
        if not action.user:
            return ""
        s, d = self.machine.s, DomId(action.dom)
        return "" if s.has_user[d] and self.carries(d, s.user_base[d]) else EXECUTOR_WINDOW

    def forbids_transfer(self, action: Transfer) -> str:
        """The same of a control transfer; without tables for user mode it ends before anything is asked of them."""
        s, d = self.machine.s, DomId(action.dom)
        if isinstance(action, Access) and EDGE - 8 < action.va < EDGE:
            return CANONICAL_EDGE
        enters = action.at.cs & 3 == 3 or isinstance(action, Return)
        return EXECUTOR_WINDOW if enters and s.has_user[d] and not self.carries(d, s.user_base[d]) else ""

    def reads_unknown(self, action: Action, outcome: Outcome) -> str:
        """Why a load that was performed is left out all the same: it went to a shared_info, or to the executor's pages."""
        if not isinstance(action, Load) or outcome.vector >= 0:
            return ""
        s, d = self.machine.s, DomId(action.dom)
        tags = {tag_of(Vpn(va >> 12), False) for va in (action.va, action.va + 7)}
        cached = [held for tag in tags if (held := holder(s, d, tag, False)) is not None]
        return SHARED_INFO if any(mfn_of(s, s.tlb[d, held]) in self.unknown for held in cached) else ""

    def names_devices(self, call: Hypercall) -> bool:
        """A list of requests for DOMID_IO, one of which names a frame of its own."""
        if call.nr not in (Xen417.MMU_UPDATE, Xen417.MMUEXT_OP) or len(call.args) < 4 or call.args[3] & 0xFFFF != DOMID_IO:
            return False
        devices = self.machine.concrete.devices
        shift = 12 if call.nr == Xen417.MMU_UPDATE else 0
        return any(word >> shift in devices for _, words in call.data for word in words)

    def carries(self, d: int, root: int) -> bool:
        """A root table leads to the pages of the domain."""
        return bool(self.word[root, self.root_slot] & RIGHTS == self.root_entries[d])

    def lost(self, mark: int, upcalls: bool) -> str:
        """Why what happened since the mark must be taken back: the pages are unmapped, or have other contents.

        With `upcalls` the executor puts the first word of shared_info right afterwards.
        """
        concrete = self.machine.concrete
        words, base, debug = concrete.words, concrete.maps["base"], concrete.maps["debug"]
        for changed, key, _ in concrete.log[mark:]:
            if changed is words:
                frame, slot = key
                if frame in self.shared and upcalls and slot == 0:
                    continue
                if frame in self.shared:
                    return SHARED_INFO
                rights = self.word[key] & RIGHTS
                if frame in self.frames or (frame in self.tables and rights != self.entries.get(key, rights)):
                    return EXECUTOR_WINDOW
                if slot == self.root_slot and any(frame == base[d] and not self.carries(d, frame) for d in self.root_entries):
                    return EXECUTOR_WINDOW
            elif changed is base and not self.carries(key, base[key]):
                return EXECUTOR_WINDOW
            elif changed is debug and self.is_on(key[0]):
                return BREAKPOINTS
        return ""

    def is_on(self, d: int) -> bool:
        """A breakpoint of the domain's is on where it might strike."""
        debug = self.machine.concrete.maps["debug"]
        return any(debug[d, 7] >> 2 * n & 3 and debug[d, n] >> 39 != EMPTY_SLOT for n in range(4))
