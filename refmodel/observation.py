"""What can be seen of the model, as arrays, and how it compares with what was seen of another machine."""
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from refmodel.choices import Choices
from refmodel.state import ConcreteState
from spec.abi import DOMID_XEN, NOBODY, TYPE_NAMES, A
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
    """The model's visible state: arrays of its start, and what changed since, from the undo log."""

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

    def frame_word(self, f: int) -> int:
        """The packed word of a frame, as it is now."""
        m = self.state.maps
        owner = m["owner"][f]
        if owner == NOBODY:
            return FREE_FRAME
        return pack_frame(owner, m["type"][f], m["type_count"][f], m["ref_count"][f] - m["alloc"][f], m["pinned"][f])

    def was_free(self, f: int) -> bool:
        """The frame was in the pool at the start."""
        return f >= self.end or bool(self.frames[f] == FREE_FRAME)

    def grow(self, capacity: int) -> None:
        """Make room for more frames; those beyond the start are free."""
        more = capacity - self.capacity
        if more > 0:
            self.frames = np.concatenate([self.frames, np.full(more, FREE_FRAME, "<u8")])
            self.m2p = np.concatenate([self.m2p, np.full(more, self.state.profile.all_ones, self.dtype)])
            self.words = np.concatenate([self.words, np.zeros((more, self.state.profile.entries), self.dtype)])
            self.capacity = capacity

    # --- the present state ---

    def present(self, extent: int) -> tuple[Words, Words, dict[int, dict[int, int]]]:
        """Frame words and machine-to-physical words of [0, extent), and the changed words of memory by frame."""
        self.grow(extent)
        changed = self.state.changed(VISIBLE)
        frames, m2p = self.frames[:extent].copy(), self.m2p[:extent].copy()
        for f in changed["frame"]:
            if f < extent:
                frames[f] = self.frame_word(f)
        for f in changed["m2p"]:
            m2p[f] = self.state.maps["m2p"][f]
        words: dict[int, dict[int, int]] = {}
        word = self.state.maps["word"]
        for f, i in changed["word"]:
            if f >= self.xen_frames:
                words.setdefault(f, {})[i] = word[f, i]
        return frames, m2p, words

    def extent(self, handed_out: Iterable[int]) -> int:
        """The end of what was ever in use."""
        return max(self.end, 1 + max(handed_out, default=0))

    def base(self) -> dict[int, int]:
        """The root table of every domain."""
        base = self.state.maps["base"]
        return {d: base[d] for d in self.domids}

    def observe(self, extent: int) -> Observation:
        """The model as a target would show itself."""
        frames, m2p, words = self.present(extent)
        memory = self.words[:extent - self.xen_frames].copy()
        for f, row in words.items():
            for i, w in row.items():
                memory[f - self.xen_frames, i] = w
        return Observation(extent, frames.tobytes(), memory.tobytes(), m2p.tobytes(), self.base())

    # --- comparison ---

    def compare(self, other: Observation, extent: int, choices: Choices, full: bool) -> list[Difference]:
        """Every difference, frames first; free frames' contents and bits that a processor may set early are forgiven."""
        n = max(extent, other.extent)
        frames, m2p, words = self.present(n)
        out = [self.frame_difference(f, int(frames[f]), int(seen)) for f, seen in
               unlike(frames, np.frombuffer(other.frames, "<u8"), FREE_FRAME)]
        ones = self.state.profile.all_ones
        out += [Difference("m2p", f"frame {f}", int(m2p[f]), int(seen), "M2P-1") for f, seen in
                unlike(m2p, np.frombuffer(other.m2p, self.dtype), ones)]
        out += self.memory_differences(words, other, choices, full)
        base = self.base()
        if base != other.base:
            out += [Difference("base", f"domain {d}", f, other.base.get(d, -1), "BASE-1")
                    for d, f in base.items() if other.base.get(d, -1) != f]
        return out

    def frame_difference(self, f: int, mine: int, seen: int) -> Difference:
        """Which part of a frame's word differs."""
        names, rules = ("owner", "type", "typed references", "references", "pinned"), (
            "POOL-3", "TYPE-1", "COUNT-1", "COUNT-2", "PIN-1")
        for name, rule, a, b in zip(names, rules, unpack_frame(mine), unpack_frame(seen), strict=True):
            if a != b:
                where = f"frame {f}" + (f" ({TYPE_NAMES[a]} / {TYPE_NAMES[b]})" if name == "type" else "")
                return Difference(name, where, int(a), int(b), rule)
        return Difference("frame", f"frame {f}", mine, seen, "FRAME-1")

    def memory_differences(self, words: dict[int, dict[int, int]], other: Observation, choices: Choices,
                           full: bool) -> list[Difference]:
        """Words of memory that differ: all of it, or only the frames that the model changed."""
        entries, low = self.state.profile.entries, self.xen_frames
        seen = np.frombuffer(other.memory, self.dtype).reshape(-1, entries)
        if other.rows is not None:
            return self.shown_differences(words, seen, other.rows, choices)
        rows = len(seen) if full else 0
        saved = self.put(words)
        try:
            if full:
                mine = self.words[:rows]
                bad = [] if np.array_equal(mine, seen) else [(int(r), int(i)) for r, i in np.argwhere(mine != seen)]
            else:
                changed = np.array([f - low for f in words if f - low < len(seen)], dtype=np.intp)
                unlike_rows, columns = np.nonzero(self.words[changed] != seen[changed])
                bad = [(int(changed[r]), int(i)) for r, i in zip(unlike_rows, columns, strict=True)]
            return [d for r, i in bad if (d := self.word_difference(r, i, int(seen[r, i]), choices))]
        finally:
            self.take_back(saved)

    def shown_differences(self, words: dict[int, dict[int, int]], seen: Words, shown: tuple[int, ...],
                          choices: Choices) -> list[Difference]:
        """Words that differ in the frames that are shown; a change that the model makes in any other frame cannot be checked."""
        low = self.xen_frames
        saved = self.put(words)
        try:
            unlike_rows, columns = np.nonzero(self.words[np.array(shown, dtype=np.intp) - low] != seen)
            out = [d for r, i in zip(unlike_rows.tolist(), columns.tolist(), strict=True)
                   if (d := self.word_difference(shown[r] - low, i, int(seen[r, i]), choices))]
            owner, visible = self.state.maps["owner"], frozenset(shown)
            return out + [Difference("word", f"frame {f}, which is not shown", int(self.words[f - low, i]), 0, "STORE-1")
                          for f in words if f not in visible and owner[f] not in (NOBODY, DOMID_XEN) for i in list(words[f])[:1]]
        finally:
            self.take_back(saved)

    def early_marks(self, other: Observation) -> list[tuple[tuple[int, int], int]]:
        """Entries of tables that another machine shows with their accessed bit, which they lack here."""
        if other.rows is None:
            return []
        m, seen = self.state.maps, np.frombuffer(other.memory, self.dtype).reshape(-1, self.state.profile.entries)
        out = []
        for n, f in enumerate(other.rows):
            if m["type_count"][f] and 0 < m["type"][f] <= self.state.profile.root:
                out += [((f, int(i)), int(seen[n, i])) for i in np.flatnonzero(seen[n])
                        if int(seen[n, i]) == m["word"][f, int(i)] | A != m["word"][f, int(i)]]
        return out

    def put(self, words: dict[int, dict[int, int]]) -> list[tuple[int, int, Any]]:
        """Enter changed words in the array; the answer is what was there."""
        saved: list[tuple[int, int, Any]] = []
        for f, row in words.items():
            for i, w in row.items():
                saved.append((f - self.xen_frames, i, self.words[f - self.xen_frames, i]))
                self.words[f - self.xen_frames, i] = w
        return saved

    def take_back(self, saved: list[tuple[int, int, Any]]) -> None:
        """The array as it was."""
        for r, i, w in saved:
            self.words[r, i] = w

    def word_difference(self, r: int, i: int, seen: int, choices: Choices) -> Difference | None:
        """A word that differs, unless the difference is forgiven."""
        f, mine, m = r + self.xen_frames, int(self.words[r, i]), self.state.maps
        if m["owner"][f] == NOBODY:
            return None                     # nobody can see the contents of a free frame
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
