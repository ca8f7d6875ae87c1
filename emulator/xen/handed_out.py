"""Which frames Xen handed out in a memory_op, in order: they are the last of its own list of the domain's frames.

An allocation's outcome is the machine's choice, so whoever compares has to know it.  What Xen writes into the guest's list is not
enough: if that fails, the frames are handed out all the same.
"""
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, Final

from emulator.xen.frames import FRAME_TABLE, LISTS, ROW, FrameTable
from spec.abi import Xen417
from spec.vocabulary import Action, Hypercall

X: Final = Xen417
ALLOCATE: Final = frozenset({X.INCREASE, X.POPULATE, X.EXCHANGE})
OPERATION: Final = (1 << X.EXTENT_SHIFT) - 1
KEPT: Final = 24                            # last frames of the list that are remembered: more than a call takes from its end
MOST: Final = 1 << 12                       # frames that one call hands out
ORDER, WANTED = 2, 4                        # words of a reservation: its order, and where the second one of an exchange begins
MOST_ORDER: Final = 20
NO_FRAME: Final = 0xFFFFFFFF


class Allocations:
    """The frames that a machine handed out to its domains since its reset."""

    def __init__(self, frames: FrameTable, domids: Iterable[int]) -> None:
        records = frames.records()
        self._frames, self._records = frames, [records[d] for d in domids]
        self.ever: set[int] = set()
        self._last: list[set[int]] = []
        self._owned: list[Any] = []

    def reset(self) -> None:
        """Nothing was handed out."""
        self.ever.clear()

    @staticmethod
    def may_follow(action: Action) -> bool:
        """This action may hand frames out."""
        return (isinstance(action, Hypercall) and action.nr == X.MEMORY_OP and len(action.args) > 0
                and action.args[0] & OPERATION in ALLOCATE)

    def look(self) -> None:
        """Remember the domains' frames before a call, and which ones end the lists."""
        self._last = [set(islice(self._backwards(record), KEPT)) for record in self._records]
        self._owned = [self._frames.owned(record) for record in self._records]

    def of(self, action: Action, root: int) -> tuple[int, ...]:
        """The first frame of each extent that the call handed out; `root` is the caller's base."""
        assert isinstance(action, Hypercall)
        new = next((new for n in range(len(self._records)) if (new := self._new(n))), [])   # for one domain a call
        self.ever.update(new)
        return tuple(new[::1 << self._order(action, root)] if new else ())

    def _order(self, action: Hypercall, root: int) -> int:
        """The order of the extents that the caller wants: Xen read it, so it is there."""
        at = action.args[1] + 8 * (ORDER + (WANTED if action.args[0] & OPERATION == X.EXCHANGE else 0))
        memory, octets = self._frames.memory, bytearray()
        for va in (at & ~7, (at & ~7) + 8):         # a word may lie anywhere
            frame = memory.walk(root, va)
            octets += (memory.word(frame, va >> 3 & 511) if frame is not None else 0).to_bytes(8, "little")
        return min(octets[at & 7], MOST_ORDER)

    def _new(self, n: int) -> list[int]:
        """The frames at the end of list n that were not the domain's before the call."""
        new = []
        for f in islice(self._backwards(self._records[n]), MOST):
            if f in self._last[n]:
                break
            if not self._owned[n][f]:       # an exchange that fails puts what was given at the end of the list
                new.append(f)
        return new[::-1]

    def _backwards(self, record: int) -> Iterator[int]:
        """The frames of the domain with this record, the last one first."""
        word = self._frames.word
        at = self._frames.memory.word(record, LISTS + 1)
        f = (at - FRAME_TABLE) // ROW if at else NO_FRAME
        while f != NO_FRAME:
            yield f
            f = word(f, 0) >> 32
