"""Which frames Xen handed out in a memory_op, in order: they are the last of its own list of the domain's frames.

An allocation's outcome is the machine's choice, so whoever compares has to know it.  What Xen writes into the guest's list is not
enough: if that fails, the frames are handed out all the same.
"""
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Final

from emulator.xen.frames import FRAME_TABLE, LISTS, ROW, FrameTable
from spec.abi import Xen417
from spec.vocabulary import Action, Hypercall

X: Final = Xen417
ALLOCATE: Final = frozenset({X.INCREASE, X.POPULATE, X.EXCHANGE})
OPERATION: Final = (1 << X.EXTENT_SHIFT) - 1
KEPT: Final = 24                            # last frames of the list that are remembered: more than a call takes from its end
MOST: Final = 1 << 12                       # frames that one call hands out
ORDER, WANTED = 2, 4                        # words of a reservation: its order, and where the second one of an exchange begins
NO_FRAME: Final = 0xFFFFFFFF


class Allocations:
    """The frames that a machine handed out to its domains since its reset."""

    def __init__(self, frames: FrameTable, domids: Iterable[int]) -> None:
        records = frames.records()
        self._frames, self._records = frames, [records[d] for d in domids]
        self.ever: set[int] = set()
        self._last: list[set[int]] = []

    def reset(self) -> None:
        """Nothing was handed out."""
        self.ever.clear()

    @staticmethod
    def may_follow(action: Action) -> bool:
        """This action may hand frames out."""
        return (isinstance(action, Hypercall) and action.nr == X.MEMORY_OP and len(action.args) > 0
                and action.args[0] & OPERATION in ALLOCATE)

    def look(self) -> None:
        """Remember the ends of the lists before a call."""
        self._last = [set(islice(self._backwards(record), KEPT)) for record in self._records]

    def of(self, action: Action) -> tuple[int, ...]:
        """The first frame of each extent that the call handed out."""
        assert isinstance(action, Hypercall)
        words, order = told(action)
        given = set(words) if action.args[0] & OPERATION == X.EXCHANGE else set()
        new = next((new for n in range(len(self._records)) if (new := self._new(n, given))), [])    # for one domain a call
        self.ever.update(new)
        return tuple(new[::1 << order])

    def _new(self, n: int, given: set[int]) -> list[int]:
        """The frames at the end of list n that were not there before the call."""
        new = []
        for f in islice(self._backwards(self._records[n]), MOST):
            if f in self._last[n]:
                break
            if f not in given:              # an exchange that fails puts what was given at the end of the list
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


def told(action: Hypercall) -> tuple[tuple[int, ...], int]:
    """The words that the caller wrote from the reservation on, and the order of the extents that it wants."""
    for address, words in action.data:
        at = action.args[1] - address
        if 0 <= at < 8 * len(words) and not at & 7:
            rest = words[at >> 3:]
            place = ORDER + (WANTED if action.args[0] & OPERATION == X.EXCHANGE else 0)
            return rest, min(rest[place] & 0xFF if len(rest) > place else 0, 20)
    return (), 0
