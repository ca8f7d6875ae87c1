"""Taking and giving back references: the loops and the recursion around the transitions of `spec`.

Nothing here decides; a transition refuses, and whoever began the entry rolls the state back.  A privileged domain acts for the
owner of the frame that it uses.
"""
from collections.abc import Callable
from typing import cast

from refmodel.state import ConcreteState
from spec.abi import GUEST_KERNEL, L1, LDT_PAGES, NOBODY, RW, SEG_DESC, US, WRITABLE, A, G, P
from spec.descriptors import (
    adjusted_descriptor,
    first_word,
    forget_descriptors,
    legal_descriptor,
    skip_blank,
    unmap_ldt,
    validate_descriptor,
)
from spec.frames import drop_ref, drop_type, is_descriptors, is_idle, may_use, mfn_of, take_ref, take_type
from spec.kernel import CPU, DomId, FrameType, Index, Mfn, Refused, State
from spec.reservation import free_frame
from spec.tables import (
    begin_type,
    drain_absent,
    drain_entry,
    finish,
    is_writable_self_map,
    legal_bits,
    same_authority,
    skip_absent,
    validate_entry,
    write_data,
    write_entry,
)
from spec.x86.descriptors import PRESENT
from spec.x86.tlb import flush

TWritable = FrameType(WRITABLE)
TEARDOWN = "teardown"                       # of what Xen loses
ADJUSTED = A | US | G | GUEST_KERNEL        # what Xen sets in entries that it stores for a guest


class Error(Exception):
    """A check of an interface failed: the error number and the conjunct."""

    def __init__(self, errno: int, rule: str) -> None:
        super().__init__(errno, rule)
        self.errno, self.rule = errno, rule
        self.noted = False                  # already among the refusals of the step


def actor(s: State, d: DomId, f: Mfn) -> DomId:
    """For whom Xen acts on frame f when d asks: its owner if d may use it, else d itself (and is refused)."""
    return s.owner[f] if may_use(s, d, f) else d


def settle(s: State, d: DomId, f: Mfn, t: FrameType) -> None:
    """Flush the TLB if the frame could not change its type without."""
    if s.type[f] != t and s.stamp[f] == s.clock[CPU]:
        flush(s, d)


# --- typed references --------------------------------------------------------------------------------------------------------

def get_type(s: State, d: DomId, f: Mfn, t: FrameType) -> None:
    """Take a typed reference to d's frame; the first one to a table validates it."""
    if s.type_count[f] == 0 and s.owner[f] == d:
        settle(s, d, f, t)
        if is_descriptors(s, t):
            validate_descriptors(s, d, f, t)
            return
        if t != WRITABLE:
            validate(s, d, f, t, get_entry)
            return
    take_type(s, d, f, t)


def validate(s: State, d: DomId, f: Mfn, t: FrameType, get: Callable[[State, Mfn, int], None]) -> None:
    """Check every entry of an idle frame that becomes a table, from slot 0 upwards; `get` takes the reference for one."""
    begin_type(s, d, f, t)
    for first, end in stretches(s, f, t):
        if first == end:
            try:
                get(s, f, s.word[f, first])
                validate_entry(s, d, f)
            except (Error, Refused):
                leave_pending(cast(ConcreteState, s), f, t, first)
                raise
        elif first < end:
            skip_absent(s, d, f, end)
        else:
            validate_entry(s, d, f)         # a slot of Xen's
    finish(s, d, f)


def validate_descriptors(s: State, d: DomId, f: Mfn, t: FrameType, judge: Callable[[State, int], None] | None = None) -> None:
    """Check every descriptor of an idle frame that becomes a table of them; `judge` has the error for a bad one."""
    begin_type(s, d, f, t)
    row = cast(ConcreteState, s).row(f)
    for i in sorted({first_word(s, Index(i)) for i, word in row.items() if word}):
        if s.upto[f] < i:
            skip_blank(s, d, f, i)
        if judge is not None:
            judge(s, row[i])
        validate_descriptor(s, d, f)
    if s.upto[f] < s.profile.entries:
        skip_blank(s, d, f, Index(s.profile.entries))
    finish(s, d, f)


def leave_pending(s: ConcreteState, f: Mfn, t: FrameType, i: Index) -> None:
    """4.17 undoes an upper table that fails after its first slot only later, and remembers one such table: the table above it
    takes over one that its own failing entry names, and loses any other, references and all."""
    if t == L1:
        return
    if s.pending is not None and s.pending != s.words[f, i] >> 12 & s.profile.mfn_mask:
        s.lost = TEARDOWN                   # at its first slot only if the validation was interrupted
    if i > 0:
        s.pending = f


def stretches(s: State, f: Mfn, t: FrameType) -> list[tuple[Index, Index]]:
    """How a validation goes through a table: (i, i) is a present entry, (i, i - 1) Xen's slot, (first, end) an absent stretch."""
    p = s.profile
    xen = range(p.xen_first, p.xen_last + 1) if t == p.root else range(0)
    stops = sorted({*cast(ConcreteState, s).present(f), *xen})
    out: list[tuple[int, int]] = []
    at = 0
    for i in stops:
        if i > at:
            out.append((at, i))
        out.append((i, i - 1) if i in xen else (i, i))
        at = i + 1
    if at < p.entries:
        out.append((at, p.entries))
    return cast(list[tuple[Index, Index]], out)


def put_type(s: State, f: Mfn) -> None:
    """Give a typed reference back; a table that loses its last one gives back all that it refers to."""
    d = s.owner[f]
    drop_type(s, d, f)
    if s.type_count[f] == 0 and s.upto[f] > 0:
        drain(s, d, f)
    reap(s, f)


def drain(s: State, d: DomId, f: Mfn) -> None:
    """Empty a table from its last checked entry downwards; one of descriptors is empty at once."""
    if is_descriptors(s, s.type[f]):
        forget_descriptors(s, d, f)
        return
    for i in reversed(cast(ConcreteState, s).present(f)):
        if i >= s.upto[f]:
            continue                        # never checked
        drain_absent(s, d, f, Index(i + 1))
        before = s.type[f]
        e = s.word[f, Index(i)]
        drain_entry(s, d, f)
        put_entry(s, f, before, e, Index(i))
    if s.upto[f] > 0:                       # else the last entry led back to the table, and it is free already
        drain_absent(s, d, f, Index(0))


def reap(s: State, f: Mfn) -> None:
    """A frame that its owner gave up goes back to the pool with its last reference."""
    if s.ref_count[f] == 0 and s.upto[f] == 0 and s.owner[f] != NOBODY:
        free_frame(s, s.owner[f], f)


def has_ldt(s: State, d: DomId) -> bool:
    """A page of the LDT is mapped."""
    return s.ldt_entries[d] > 0 and any(s.has_ldt[d, Index(n)] for n in range(LDT_PAGES))


def drop_ldt(s: State, d: DomId) -> None:
    """Unmap every page of the LDT, and flush, so that none of it is used any more (W-35)."""
    if not has_ldt(s, d):
        return
    for n in map(Index, range(LDT_PAGES)):
        if s.has_ldt[d, n]:
            unmap_ldt(s, d, n)
            put_type(s, s.ldt[d, n])
    flush(s, d)


def is_adjusted(old: int, e: int) -> bool:
    """Entry e is what Xen makes of the present entry `old` when it checks it."""
    return old & P != 0 and (old ^ e) & ~ADJUSTED == 0


def is_adjusted_descriptor(s: State, old: int, q: int) -> bool:
    """The same of descriptors."""
    return old & PRESENT != 0 and legal_descriptor(s, old) and adjusted_descriptor(s, old) == q


def give_up(s: State, mark: int) -> None:
    """Back to a mark; but in 4.17 entries and descriptors that a failed validation had adjusted stay as it adjusted them, and an
    idle table of descriptors that was to become another is none any more (X-2)."""
    state = cast(ConcreteState, s)
    changed: dict[tuple[Mfn, Index], int] = {}
    retyped: dict[Mfn, bool] = {}
    if s.profile.adjusts:
        changed = {key: s.word[key] for m, key, _ in state.log[mark:] if m is state.words}
        retyped = {f: s.type[f] != SEG_DESC for m, f, _ in state.log[mark:] if m is state.maps["type"]}
    state.rollback(mark)
    for (f, i), e in changed.items():
        old = s.word[f, i]
        if old != e and (is_adjusted(old, e) or is_adjusted_descriptor(s, old, e)) and is_idle(s, f):
            put_word(s, f, i, e)
    for f, elsewhere in retyped.items():
        if elsewhere and s.type[f] == SEG_DESC and is_idle(s, f):
            put_word(s, f, Index(0), s.word[f, Index(0)])


def put_word(s: State, f: Mfn, i: Index, word: int) -> None:
    """Store a word in an idle frame, which is then data."""
    d = s.owner[f]
    settle(s, d, f, TWritable)
    write_data(s, d, f, i, word)


# --- entries -----------------------------------------------------------------------------------------------------------------

def get_entry(s: State, g: Mfn, e: int) -> None:
    """Take the reference that entry e of table g will hold."""
    t = s.type[g]
    if e & P == 0 or not legal_bits(s, t, e):
        return                              # nothing to hold, or refused by the write
    f = mfn_of(s, e)
    if t != L1 and f == g:
        return
    d = actor(s, s.owner[g], f)
    if t != L1:
        get_type(s, d, f, FrameType(t - 1))
    elif e & RW != 0:
        get_type(s, d, f, TWritable)
    else:
        take_ref(s, d, f)


def put_entry(s: State, g: Mfn, t: FrameType, e: int, i: Index) -> None:
    """Give back the reference that entry e of table g, of type t, held in slot i."""
    p = s.profile
    if e & P == 0 or (t == p.root and p.xen_first <= i <= p.xen_last):
        return
    f = mfn_of(s, e)
    if t == L1 and e & RW == 0:
        if p.guest_end and s.type[f] == p.last_descriptors and s.type_count[f] > 0:
            drop_ldt(s, s.owner[f])         # 4.17 keeps it
        drop_ref(s, s.owner[f], f)
        reap(s, f)
    elif t == L1 or f != g:
        put_type(s, f)


def replace_entry(s: State, g: Mfn, i: Index, new: int) -> None:
    """Replace an entry of a table in use: the new reference is taken before the old one is dropped."""
    t, old = s.type[g], s.word[g, i]
    if same_authority(s, t, old, new):
        write_entry(s, s.owner[g], g, i, new)
        return
    if not is_writable_self_map(s, g, t, new) and not (t == s.profile.root and s.profile.xen_first <= i <= s.profile.xen_last):
        get_entry(s, g, new)
    write_entry(s, s.owner[g], g, i, new)
    put_entry(s, g, t, old, i)
