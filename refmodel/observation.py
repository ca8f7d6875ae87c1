"""What can be seen of the model, as arrays, and how it compares with what was seen of another machine."""
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from refmodel.choices import Choices
from refmodel.state import ConcreteState
from spec.abi import DOMID_XEN, NOBODY, TYPE_NAMES, TYPE_NAMES_2003, A
from spec.vocabulary import FREE_FRAME, Observation, pack_frame, unpack_frame

VISIBLE = {"owner": "frame", "type": "frame", "type_count": "frame", "ref_count": "frame", "alloc": "frame", "pinned": "frame",
           "m2p": "m2p", "word": "word"}      # maps that show, by the part of an observation that they show in
MARGIN = 1024                               # frames beyond the domains that the arrays hold from the start
Words = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that the two machines show differently; `rule` is the one that says what it should be."""
    what: str
    where: str
    model: int
    target: int
    rule: str


class Mirror:
    """The model's visible state as arrays, brought up to date from the undo log.

    The first `upto` entries of the log are in the arrays.  `stretches` are the parts of it that came in between two looks: where
    each begins, and the keys in it.
    """

    def __init__(self, state: ConcreteState, domids: Iterable[int], xen_frames: int, end: int) -> None:
        self.state, self.xen_frames, self.end = state, xen_frames, end
        self.domids = sorted(domids)
        self.dtype = np.dtype("<u4" if state.profile.word_bytes == 4 else "<u8")
        self.capacity = min(state.frames, end + MARGIN)
        s = state.maps
        self.frames = np.array([self.frame_word(f) for f in range(self.capacity)], dtype="<u8")
        self.m2p = np.array([s["m2p"][f] for f in range(self.capacity)], dtype=self.dtype)
        self.words = np.zeros((self.capacity - xen_frames, state.profile.entries), dtype=self.dtype)
        for f in range(xen_frames, end):
            for i, w in state.row(f).items():
                self.words[f - xen_frames, i] = w
        self.free_at_start = self.frames == FREE_FRAME
        self.stretches: list[tuple[int, dict[str, set[Any]]]] = []
        self.upto = 0

    def frame_word(self, f: int) -> int:
        """The packed word of a frame, as it is now."""
        m = self.state.maps
        owner = m["owner"][f]
        if owner == NOBODY:
            return FREE_FRAME
        return pack_frame(owner, m["type"][f], m["type_count"][f], m["ref_count"][f] - m["alloc"][f], m["pinned"][f])

    def was_free(self, f: int) -> bool:
        """The frame was in the pool at the start."""
        return f >= self.end or bool(self.free_at_start[f])

    def grow(self, capacity: int) -> None:
        """Make room for more frames; those beyond the start are free."""
        more = capacity - self.capacity
        if more > 0:
            self.frames = np.concatenate([self.frames, np.full(more, FREE_FRAME, "<u8")])
            self.m2p = np.concatenate([self.m2p, np.full(more, self.state.profile.all_ones, self.dtype)])
            self.words = np.concatenate([self.words, np.zeros((more, self.state.profile.entries), self.dtype)])
            self.capacity = capacity

    # --- the present state ---

    def refresh(self, extent: int) -> None:
        """The arrays as the state is now, up to an extent."""
        state, at, stale = self.state, self.upto, list[dict[str, set[Any]]]()
        back = 0 if self.capacity < extent else state.low      # if there is more to show, from the start
        self.grow(extent)
        while at > back:                        # what is shown was undone
            at, keys = self.stretches.pop()
            stale.append(keys)
        new = state.changed(VISIBLE, at)
        self.stretches.append((at, new))
        self.upto = state.low = len(state.log)
        for keys in (*stale, new):
            self.show(keys)

    def changed(self) -> dict[int, int]:
        """The frames with words that were stored to, and one of these words each."""
        return {f: i for _, keys in self.stretches for f, i in keys["word"]}

    def show(self, keys: dict[str, set[Any]]) -> None:
        """Enter in the arrays what these keys have now."""
        m2p, word, low = self.state.maps["m2p"], self.state.maps["word"], self.xen_frames
        for f in keys["frame"]:
            if f < self.capacity:
                self.frames[f] = self.frame_word(f)
        for f in keys["m2p"]:
            if f < self.capacity:
                self.m2p[f] = m2p[f]
        for f, i in keys["word"]:
            if low <= f < self.capacity:
                self.words[f - low, i] = word[f, i]

    def extent(self, handed_out: Iterable[int]) -> int:
        """The end of what was ever in use."""
        return max(self.end, 1 + max(handed_out, default=0))

    def base(self) -> dict[int, int]:
        """The root table of every domain."""
        base = self.state.maps["base"]
        return {d: base[d] for d in self.domids}

    def observe(self, extent: int) -> Observation:
        """The model as a target would show itself."""
        self.refresh(extent)
        return Observation(extent, self.frames[:extent].tobytes(), self.words[:extent - self.xen_frames].tobytes(),
                           self.m2p[:extent].tobytes(), self.base())

    # --- comparison ---

    def compare(self, other: Observation, extent: int, choices: Choices, full: bool) -> list[Difference]:
        """Every difference, frames first; bits that a processor may set early are forgiven, and free frames' contents, unless the
        other machine names them among what it shows."""
        n = max(extent, other.extent)
        self.refresh(n)
        frames, m2p = self.frames[:n], self.m2p[:n]
        out = [self.frame_difference(f, int(frames[f]), int(seen)) for f, seen in
               unlike(frames, np.frombuffer(other.frames, "<u8"), FREE_FRAME)]
        ones = self.state.profile.all_ones
        out += [Difference("m2p", f"frame {f}", int(m2p[f]), int(seen), "M2P-1") for f, seen in
                unlike(m2p, np.frombuffer(other.m2p, self.dtype), ones)]
        out += self.memory_differences(other, choices, full)
        base = self.base()
        if base != other.base:
            out += [Difference("base", f"domain {d}", f, other.base.get(d, -1), "BASE-1")
                    for d, f in base.items() if other.base.get(d, -1) != f]
        return out

    def frame_difference(self, f: int, mine: int, seen: int) -> Difference:
        """Which part of a frame's word differs."""
        kinds = TYPE_NAMES_2003 if self.state.profile.guest_end else TYPE_NAMES
        names, rules = ("owner", "type", "typed references", "references", "pinned"), (
            "POOL-3", "TYPE-1", "COUNT-1", "COUNT-2", "PIN-1")
        for name, rule, a, b in zip(names, rules, unpack_frame(mine), unpack_frame(seen), strict=True):
            if a != b:
                where = f"frame {f}" + (f" ({kinds[a]} / {kinds[b]})" if name == "type" else "")
                return Difference(name, where, int(a), int(b), rule)
        return Difference("frame", f"frame {f}", mine, seen, "FRAME-1")

    def memory_differences(self, other: Observation, choices: Choices, full: bool) -> list[Difference]:
        """Words of memory that differ: all of it, or only the frames that the model changed."""
        seen = np.frombuffer(other.memory, self.dtype).reshape(-1, self.state.profile.entries)
        if other.rows is not None:
            return self.shown_differences(seen, other.rows, choices)
        low, rows = self.xen_frames, np.arange(len(seen))
        if not full:
            rows = np.array([f - low for f in self.changed() if 0 <= f - low < len(seen)], dtype=np.intp)
        elif np.array_equal(self.words[:len(seen)], seen):
            return []
        unlike_rows, columns = np.nonzero(self.words[rows] != seen[rows])
        return [d for r, i in zip(rows[unlike_rows].tolist(), columns.tolist(), strict=True)
                if (d := self.word_difference(r, i, int(seen[r, i]), choices))]

    def shown_differences(self, seen: Words, shown: tuple[int, ...], choices: Choices) -> list[Difference]:
        """Words that differ in the frames that are shown; of free ones, too, for who gets such a frame next sees what it holds.

        Of changes that the model makes in other frames, such as a domain's that another one maps, nothing can be said here: they
        are counted as forgiven, and show where they are read.
        """
        low = self.xen_frames
        unlike_rows, columns = np.nonzero(self.words[np.array(shown, dtype=np.intp) - low] != seen)
        out = [d for r, i in zip(unlike_rows.tolist(), columns.tolist(), strict=True)
               if (d := self.word_difference(shown[r] - low, i, int(seen[r, i]), choices, named=True))]
        owner, visible = self.state.maps["owner"], frozenset(shown)
        unseen = [f for f in self.changed() if f >= low and f not in visible and owner[f] not in (NOBODY, DOMID_XEN)]
        if unseen:
            choices.forgiven["not-shown"] += len(unseen)
        return out

    def early_marks(self, other: Observation) -> list[tuple[tuple[int, int], int]]:
        """Entries of tables that another machine shows with their accessed bit, which they lack here."""
        if other.rows is None:
            return []
        self.refresh(self.capacity)
        m, low, rows = self.state.maps, self.xen_frames, np.array(other.rows, dtype=np.intp)
        seen = np.frombuffer(other.memory, self.dtype).reshape(-1, self.state.profile.entries)
        mine = self.words[rows - low]
        early = np.nonzero((seen == mine | self.dtype.type(A)) & (seen != mine) & (seen != 0))
        return [((f, i), int(seen[n, i])) for n, f, i in zip(early[0].tolist(), rows[early[0]].tolist(), early[1].tolist(),
                                                             strict=True)
                if m["type_count"][f] and 0 < m["type"][f] <= self.state.profile.root]

    def word_difference(self, r: int, i: int, seen: int, choices: Choices, named: bool = False) -> Difference | None:
        """A word that differs, unless the difference is forgiven."""
        f, mine, m = r + self.xen_frames, int(self.words[r, i]), self.state.maps
        if m["owner"][f] == NOBODY and (not named or self.state.given[f] >= 0):
            return None                     # nobody can see them, nor ever will if the frame is to be erased before
        if seen == mine | A and 0 < m["type"][f] <= self.state.profile.root:
            choices.forgiven["accessed-early"] += 1
            return None
        table = m["type_count"][f] > 0 and 0 < m["type"][f] <= self.state.profile.root
        return Difference("word", f"frame {f} word {i}", mine, seen, "WRITE-1" if table else "STORE-1")


def unlike(mine: Words, seen: Words, rest: int) -> list[tuple[int, int]]:
    """Indices where two arrays differ, with the second's value; beyond its end the second reads as `rest`."""
    n = len(seen)
    out = [] if np.array_equal(mine[:n], seen) else [(int(k), int(seen[k])) for k in np.flatnonzero(mine[:n] != seen)]
    if n < len(mine):
        out += [(n + int(k), rest) for k in np.flatnonzero(mine[n:] != rest)]
    return out
