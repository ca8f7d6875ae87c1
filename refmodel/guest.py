"""A guest's accesses to memory, and Xen's own through a guest's pointers.

An access goes through a cached translation or through a walk; where both are possible and differ, there is a choice.
"""
from typing import Any, Protocol

from refmodel.choices import Choices
from refmodel.references import Error
from spec.abi import DOMID_XEN, L1, PF, PF_PROT, PSE, US, A, D, P
from spec.frames import mfn_of
from spec.kernel import CPU, FAILED, HELD, DomId, Index, Mfn, State, Tag, Vpn
from spec.vocabulary import Action
from spec.x86.paging import Fault, allows, fault_code, index_at, require_segment, root_of, walk
from spec.x86.tlb import guest_store, has_root, is_live, tag_of, tlb_fill, tlb_keep, walk_start, walk_step

OLDER, SPARE = 1 << 56, 1 << 57             # of tags: where the processor may have translations besides
OWN = 1 << 58                               # of habits: those of Xen's own accesses


class ModelError(Exception):
    """The program is outside the vocabulary: it asks for what no rule describes.  `action` is the one that does."""
    action: Action | None = None


def demand(condition: Any, rule: str, errno: int) -> None:
    """One check of an interface: its error number is the hypercall's result."""
    if condition:
        HELD[rule] += 1
    else:
        FAILED[rule] += 1
        raise Error(errno, rule)


class Window(Protocol):
    """What Xen publishes: the machine-to-physical words, at virtual addresses of Xen's."""

    def published(self, va: int) -> int | None:
        """The word at `va`, or None where Xen publishes nothing."""


# --- translation -------------------------------------------------------------------------------------------------------------

def translate(s: State, choices: Choices, d: DomId, va: int, user: bool, write: bool, fetch: bool, own: bool = False) -> int:
    """The translation that the processor uses for `va`, in Xen's `own` access or the guest's; raises `Fault`.  Fills the TLB."""
    tag = tag_of(Vpn(va >> 12), fetch)
    by = tag ^ OWN if own else tag
    if s.tlb[d, older(tag)] and (e := _older(s, choices, d, tag, by, user, write, fetch)):
        choices.serves(d, by, s.clock[CPU], write, e)
        return e
    held = holder(s, d, tag, write)
    try:
        if held is not None:
            e = _from_cache(s, choices, d, held, held ^ by ^ tag, va, user, write, fetch)
            if e:
                choices.serves(d, by, s.clock[CPU], write, e)
                if held != tag and not choices.eager:
                    _fill_apart(s, d, va, user, fetch, e)
                return e
        tlb_fill(s, d, va, user, write, fetch)
    except Fault as fault:
        choices.drops(d, by)
        if choices.eager and fault.vector == PF:
            mark_way(s, d, va, user)
        raise
    choices.fills(d, by, s.clock[CPU], write, s.tlb[d, tag])
    return s.tlb[d, tag]


def holder(s: State, d: DomId, tag: Tag, write: bool) -> Tag | None:
    """Which cached translation may serve an access: its own, or, as TLBs may be unified, one that fetches or other loads made."""
    if s.tlb[d, tag] and is_live(s, d, tag):
        return tag
    other = Tag(tag ^ 1)
    if not write and s.tlb[d, other] and is_live(s, d, other):
        return other
    return None


def _fill_apart(s: State, d: DomId, va: int, user: bool, fetch: bool, e: int) -> None:
    """Loads and fetches may have TLBs of their own: this one, too, has walked then, if it found the same and marked nothing."""
    try:
        found, used = walk(s, root_of(s, d, user), va, user or not s.profile.ring1_kernel, False, fetch)
    except Fault:
        return
    if (found ^ e) & ~D == 0 and _is_marked(s, used, False):
        tlb_fill(s, d, va, user, False, fetch)


def older(tag: Tag) -> Tag:
    """Where a translation is kept that a newer one of the page has replaced: QEMU's guests and hypervisors, for one, have TLBs of
    their own."""
    return Tag(tag ^ OLDER)


def _older(s: State, choices: Choices, d: DomId, tag: Tag, by: int, user: bool, write: bool, fetch: bool) -> int:
    """An older translation than the last one, if the processor has one, uses it, and it serves; else 0."""
    other = older(tag)
    e = s.tlb[d, other]
    if not is_live(s, d, other) or (e ^ s.tlb[d, tag]) & ~D == 0 or (write and e & D == 0):
        return 0
    if not allows(e, user or not s.profile.ring1_kernel, write, fetch):
        return 0
    if (choices.choose("older-translation", 2) == 0) != choices.likely_older(d, by, s.clock[CPU], e >> 12):
        return 0
    if is_live(s, d, tag):                  # they change places
        tlb_keep(s, d, tag, Tag(tag ^ SPARE))
        tlb_keep(s, d, other, tag)
        tlb_keep(s, d, Tag(tag ^ SPARE), other)
    else:
        tlb_keep(s, d, other, tag)
    return e


def mark_way(s: State, d: DomId, va: int, user: bool, last: int = L1) -> None:
    """The processor walks towards an address, marking what it uses, and stops before a level."""
    if not has_root(s, d, user):
        return
    walk_start(s, d, va, user)
    for level in range(s.profile.root, last, -1):
        e = s.word[mfn_of(s, s.walk[d, tag_of(Vpn(va >> 12), False)]), index_at(s.profile.geometry.levels[level - 1], va)]
        if e & P == 0 or e & PSE != 0 or e & US == 0:
            return
        walk_step(s, d, tag_of(Vpn(va >> 12), False), va)


def _from_cache(s: State, choices: Choices, d: DomId, tag: Tag, by: int, va: int, user: bool, write: bool, fetch: bool) -> int:
    """What a cached translation gives: itself, a fault by its own rights, or 0: the processor walks."""
    cached = s.tlb[d, tag]
    user_walk = user or not s.profile.ring1_kernel
    permits = allows(cached, user_walk, write, fetch)
    usable = permits and (not write or cached & D != 0)     # to set the dirty bit the processor walks
    try:
        found, used = walk(s, root_of(s, d, user), va, user_walk, write, fetch)
        absent = False
    except Fault as fault:
        found, used, absent = 0, (), fault.error & PF_PROT == 0
    if usable:
        if found and (found ^ cached) & ~D == 0 and _is_marked(s, used, write):
            return cached                   # both ways are the same
        likely = choices.likely_cached(d, by, s.clock[CPU], write)
        if (choices.choose("stale-translation", 2) == 0) == likely:
            return cached
    elif not permits and (found or absent) and choices.choose("stale-fault", 2) == 1:
        raise Fault(PF, fault_code(s.profile.geometry, PF_PROT, user_walk, write, fetch), va)
    if found and (found ^ cached) & ~D and not s.profile.ring1_kernel:
        tlb_keep(s, d, tag, older(tag))
    return 0


def _is_marked(s: State, used: tuple[tuple[Mfn, Index], ...], write: bool) -> bool:
    """A walk would set no accessed or dirty bit."""
    for level, (table, i) in zip(reversed(s.profile.geometry.levels), used, strict=False):
        if level.rights and s.word[table, i] & A == 0:
            return False
    return not write or s.word[used[-1]] & D != 0


# --- words and bytes ---------------------------------------------------------------------------------------------------------

def read_word(s: State, window: Window, e: int, va: int, hint: int | None = None) -> int:
    """The aligned word at `va` through translation e."""
    f = mfn_of(s, e)
    if s.owner[f] != DOMID_XEN:
        return s.word[f, Index((va & 0xFFF) // s.profile.word_bytes)]
    value = window.published(va)
    if value is not None:
        return value
    if hint is None:
        raise ModelError(f"the contents of Xen's own memory at {va:#x} are the machine's business")
    return hint


def load(s: State, choices: Choices, window: Window, d: DomId, va: int, user: bool, hint: int | None = None) -> int:
    """A guest's load of one word; raises `Fault`."""
    size = s.profile.word_bytes
    require_segment(s, va, size)
    shift = va % size
    first = translate(s, choices, d, va, user, False, False)
    if shift == 0:
        return read_word(s, window, first, va, hint)
    last = va + size - 1
    second = translate(s, choices, d, last - last % size, user, False, False) if last >> 12 != va >> 12 else first
    low = read_word(s, window, first, va - shift, hint)
    high = read_word(s, window, second, last - last % size, hint)
    return (low | high << s.profile.word_bits) >> 8 * shift & s.profile.all_ones


def store(s: State, choices: Choices, d: DomId, va: int, value: int, user: bool) -> None:
    """A guest's store of one word; raises `Fault`, and then nothing is stored."""
    size = s.profile.word_bytes
    require_segment(s, va, size)
    shift = va % size
    first = translate(s, choices, d, va, user, True, False)
    if shift == 0:
        guest_store(s, d, tag_of(Vpn(va >> 12), False), Index((va & 0xFFF) // size), value)
        return
    last = va + size - 1
    second = translate(s, choices, d, last - last % size, user, True, False) if last >> 12 != va >> 12 else first
    _merge(s, d, first, va - shift, value << 8 * shift & s.profile.all_ones, s.profile.all_ones << 8 * shift & s.profile.all_ones)
    _merge(s, d, second, last - last % size, value >> s.profile.word_bits - 8 * shift, (1 << 8 * shift) - 1)


def store_words(s: State, choices: Choices, d: DomId, va: int, words: tuple[int, ...]) -> None:
    """A kernel's stores of consecutive aligned words that lie in one page: one translation serves them all."""
    size = s.profile.word_bytes
    require_segment(s, va, size * len(words))
    translate(s, choices, d, va, False, True, False)
    tag = tag_of(Vpn(va >> 12), False)
    for i, value in enumerate(words, (va & 0xFFF) // size):
        guest_store(s, d, tag, Index(i), value)


def _merge(s: State, d: DomId, e: int, va: int, value: int, mask: int) -> None:
    i = Index((va & 0xFFF) // s.profile.word_bytes)
    guest_store(s, d, tag_of(Vpn(va >> 12), False), i, s.word[mfn_of(s, e), i] & ~mask | value)


def fetch_byte(s: State, choices: Choices, window: Window, d: DomId, va: int, user: bool) -> int:
    """The byte that the processor fetches at `va`; raises `Fault`."""
    require_segment(s, va, 1)
    e = translate(s, choices, d, va, user, False, True)
    size = s.profile.word_bytes
    return read_word(s, window, e, va - va % size) >> 8 * (va % size) & 0xFF
