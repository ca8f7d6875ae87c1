"""Contracts of the spec's leaf functions: what each gives for every argument, as PEP 316 docstrings that CrossHair checks.

A contract calls the spec's own functions on plain ints and states what must come out; nothing of the spec is written here again.
The first paragraph of its docstring is the property in English.  `proofs.contract_proof` decides them all on terms, and CrossHair
(`proofs.crosshair_run`) those that it can.
"""
# ruff: noqa: F401 (conditions in docstrings use the names)
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, Final

from spec.abi import (
    GUEST_KERNEL,
    L1,
    NOBODY,
    NONE,
    NX,
    PAGE_SIZE,
    PF_FETCH,
    PF_PROT,
    PF_RSVD,
    PF_USER,
    PF_WRITE,
    PSE,
    RW,
    US,
    A,
    D,
    G,
    P,
    Xen417,
    Xen2003,
)
from spec.descriptors import adjusted_descriptor, legal_descriptor
from spec.frames import LINEAR, NOTHING, PLAIN, TYPED, is_table, is_upper, mfn_of, refers_by
from spec.kernel import FrameType, Index, Mfn, State, Vpn
from spec.profile import PAE, X86_32, X86_64, XEN_4_17, XEN_2003, Geometry, Level, Profile
from spec.tables import (
    adjusted,
    is_clear_of_xen,
    is_writable_self_map,
    is_xen_slot,
    legal_bits,
    same_authority,
    xen_entry,
)
from spec.vocabulary import FREE_FRAME, pack_frame, unpack_frame
from spec.x86.descriptors import (
    ACCESSED,
    PRESENT,
    RPL,
    SEGMENT,
    base_of,
    dpl_of,
    gate_selector,
    highest,
    in_limit,
    is_call_gate,
    is_conforming,
    type_of,
)
from spec.x86.paging import (
    THROUGH_XEN,
    Fault,
    allows,
    combine,
    fault_code,
    has_reserved,
    index_at,
    is_canonical,
    is_leaf,
    is_supervisor,
    leaf_frame,
    mark_used,
    require_segment,
)
from spec.x86.segments import kept
from spec.x86.stacks import holds, moved, place
from spec.x86.tlb import in_segment, tag_of

WORD: Final = 1 << 64                       # words, addresses and entries are below; a smaller word is among them
FRAMES: Final = 1 << 20                     # frame numbers that fit an entry of every geometry
RIGHTS: Final = RW | US | NX
ADDED: Final = US | A | G | GUEST_KERNEL   # what Xen may add to an entry
LEVELS: Final[tuple[tuple[Geometry, Level, int], ...]] = tuple(
    (g, level, n + 1) for g in (X86_32, PAE, X86_64) for n, level in enumerate(g.levels))


# --- what a leaf reads -------------------------------------------------------------------------------------------------------

class Everywhere(dict[Any, Any]):
    """A map with the same value at every key."""

    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value

    def __getitem__(self, key: Any) -> Any:
        return self.value


def profile(new: bool) -> Profile:
    """One of the two profiles."""
    return XEN_4_17 if new else XEN_2003


def state(new: bool, **maps: Mapping[Any, Any]) -> Any:
    """A state with a profile, and only the maps that the leaf reads."""
    return SimpleNamespace(profile=profile(new), **maps)


def at(step: int) -> tuple[Geometry, Level, int]:
    """A level of one of the geometries, and its number (1 is the last of a walk); compared, since a term cannot index."""
    for n, found in enumerate(LEVELS):
        if n == step:
            return found
    raise IndexError(step)


def level_of(new: bool, t: int) -> Level:
    """The level of a profile's walk at which a table of type t is used."""
    for n, level in enumerate(profile(new).geometry.levels):
        if n + 1 == t:
            return level
    raise IndexError(t)


# --- the word of a frame -----------------------------------------------------------------------------------------------------

def frame_word_gives_back_what_was_packed(owner: int, kind: int, typed: int, refs: int, pinned: bool) -> int:
    """A frame in use reads back exactly as it was packed.

    pre: 0 <= owner < 0x10000 and 0 <= kind < 8 and 1 <= typed < 0x400000 and 0 <= refs < 0x400000
    post: unpack_frame(__return__) == (owner, kind, typed, refs, pinned)
    post: 0 <= __return__ < WORD
    """
    return pack_frame(owner, kind, typed, refs, pinned)


def frame_word_hides_the_type_of_an_idle_frame(owner: int, kind: int, refs: int, pinned: bool) -> int:
    """Without typed references the type reads as none, and all else as it was packed.

    pre: 0 <= owner < 0x10000 and 0 <= kind < 8 and 0 <= refs < 0x400000
    post: unpack_frame(__return__) == (owner, NONE, 0, refs, pinned)
    """
    return pack_frame(owner, kind, 0, refs, pinned)


def frame_word_is_packed_again_from_its_parts(word: int) -> int:
    """A word that shows a type only with typed references is the packing of what it reads as.

    pre: 0 <= word < WORD
    pre: word & 0x3FFFFF != 0 or word & (7 << 44) == 0
    post: __return__ == word
    """
    owner, kind, typed, refs, pinned = unpack_frame(word)
    return pack_frame(owner, kind, typed, refs, pinned)


def frame_word_of_a_domain_is_not_that_of_a_free_frame(owner: int, kind: int, typed: int, refs: int, pinned: bool) -> int:
    """No frame that somebody owns reads as a free one.

    pre: 0 <= owner < 0x10000 and owner != NOBODY
    pre: 0 <= kind < 8 and 0 <= typed < 0x400000 and 0 <= refs < 0x400000
    post: __return__ != FREE_FRAME
    """
    return pack_frame(owner, kind, typed, refs, pinned)


# --- entries -----------------------------------------------------------------------------------------------------------------

def entry_names_the_frame_it_was_made_of(new: bool, f: int, flags: int) -> int:
    """An entry names the frame that was put into it, whatever its flags.

    pre: 0 <= f < FRAMES and 0 <= flags < PAGE_SIZE
    post: __return__ == f
    """
    return mfn_of(state(new), (f << 12) + flags)


def entry_names_a_frame_that_a_word_can_hold(new: bool, e: int) -> int:
    """No entry, however wrong, names a frame beyond the profile's largest, and its high flags are no part of the name.

    pre: 0 <= e < WORD
    post: 0 <= __return__ <= profile(new).mfn_mask
    post: __return__ == mfn_of(state(new), e & (WORD // 2 - 1))
    """
    return mfn_of(state(new), e)


def upper_tables_are_the_tables_above_l1(new: bool, t: int) -> bool:
    """A type is a table's from L1 to the root, and an upper table's if the next lower type is a table's too.

    pre: 0 <= t < 8
    post: __return__ == (is_table(state(new), t) and is_table(state(new), t - 1))
    post: not __return__ or t <= len(profile(new).geometry.levels)
    """
    return is_upper(state(new), FrameType(t))


def absent_entry_refers_to_nothing(new: bool, g: int, t: int, u: int, e: int) -> int:
    """An entry that is not present holds no reference, and a present one of an L1 table always holds one.

    pre: 0 <= e < WORD and 0 <= g < FRAMES and 1 <= t <= profile(new).root and 0 <= u < 8
    post: e & P != 0 or __return__ == NOTHING
    post: e & P == 0 or t != L1 or __return__ in (PLAIN, TYPED)
    """
    return refers_by(state(new, type=Everywhere(u)), Mfn(g), FrameType(t), e)


def writable_mapping_holds_a_typed_reference(new: bool, g: int, u: int, e: int) -> int:
    """An L1 entry holds a typed reference exactly if it is present and writable.

    pre: 0 <= e < WORD and 0 <= g < FRAMES and 0 <= u < 8
    post: (__return__ == TYPED) == (e & (P | RW) == P | RW)
    """
    return refers_by(state(new, type=Everywhere(u)), Mfn(g), FrameType(L1), e)


def linear_reference_is_to_another_table_of_the_level(new: bool, g: int, t: int, u: int, e: int) -> int:
    """A reference is linear exactly if a present upper entry names another table of its own level.

    pre: 0 <= e < WORD and 0 <= g < FRAMES and 1 <= t <= profile(new).root and 0 <= u < 8
    post: (__return__ == LINEAR) == (e & P != 0 and t != L1 and u == t and mfn_of(state(new), e) != g)
    """
    return refers_by(state(new, type=Everywhere(u)), Mfn(g), FrameType(t), e)


def writable_self_map_holds_no_reference(new: bool, g: int, t: int, u: int, e: int) -> int:
    """Only an entry that holds no reference can map its own table writably, which is why it is refused by a rule of its own.

    pre: 0 <= e < WORD and 0 <= g < FRAMES and 1 <= t <= profile(new).root and 0 <= u < 8
    pre: is_writable_self_map(state(new), g, t, e)
    post: __return__ == NOTHING
    post: e & RW != 0 and t != L1
    """
    return refers_by(state(new, type=Everywhere(u)), Mfn(g), FrameType(t), e)


def legal_entry_has_no_reserved_bit(new: bool, t: int, e: int) -> bool:
    """What Xen calls legal the processor accepts, at every level: no reserved bit is set.

    pre: 1 <= t <= profile(new).root and 0 <= e <= profile(new).all_ones
    pre: legal_bits(state(new), t, e)
    post: not __return__
    """
    return has_reserved(level_of(new, t), profile(new).geometry, e)


def legal_upper_entry_is_no_large_page(new: bool, t: int, e: int) -> bool:
    """The walk goes on below a legal entry of an upper table: it never maps a large page.

    pre: 1 <= t <= profile(new).root and 0 <= e < WORD
    pre: legal_bits(state(new), t, e)
    post: __return__ == (t == L1)
    """
    return is_leaf(level_of(new, t), t, e)


def legality_is_not_a_matter_of_frame_or_rights(new: bool, t: int, e: int, other: int) -> bool:
    """Whether an entry is legal depends neither on its frame nor on P, RW, US, A and D.

    pre: 1 <= t <= profile(new).root and 0 <= e < WORD and 0 <= other < FRAMES
    post: __return__ == legal_bits(state(new), t, e ^ (other << 12))
    post: __return__ == legal_bits(state(new), t, e ^ (P | RW | US | A | D))
    """
    return legal_bits(state(new), FrameType(t), e)


def adjusting_clears_nothing(new: bool, t: int, e: int) -> int:
    """Xen adds to the entry that a guest gave, at most US, A, G and its mark of a kernel's page, and takes nothing away.

    pre: 1 <= t <= profile(new).root and 0 <= e < WORD
    post: __return__ & e == e
    post: (__return__ ^ e) | ADDED == ADDED
    """
    return adjusted(state(new), FrameType(t), e)


def adjusting_twice_is_adjusting_once(new: bool, t: int, e: int) -> int:
    """An entry that Xen stored is stored again as it is.

    pre: 1 <= t <= profile(new).root and 0 <= e < WORD
    post: adjusted(state(new), t, __return__) == __return__
    """
    return adjusted(state(new), FrameType(t), e)


def adjusting_keeps_frame_and_authority(new: bool, t: int, e: int) -> int:
    """The adjusted entry names the same frame, holds the same authority and is as legal.

    pre: 1 <= t <= profile(new).root and 0 <= e < WORD and e & P != 0
    post: mfn_of(state(new), __return__) == mfn_of(state(new), e)
    post: same_authority(state(new), t, e, __return__)
    post: legal_bits(state(new), t, __return__) == legal_bits(state(new), t, e)
    """
    return adjusted(state(new), FrameType(t), e)


def adjusting_opens_pages_to_ring_3(t: int, e: int) -> int:
    """What 4.17 stores for a present entry can be used in ring 3, where its guests' kernels run.

    pre: 1 <= t <= 4 and 0 <= e < WORD and e & P != 0
    post: __return__ & US != 0
    """
    return adjusted(state(True), FrameType(t), e)


def fast_path_moves_no_reference(new: bool, g: int, t: int, u: int, old: int, to: int) -> bool:
    """Entries of the same authority refer alike and to the same frame, so that the fast path need not count.

    pre: 0 <= old <= profile(new).all_ones and 0 <= to <= profile(new).all_ones
    pre: 0 <= g < FRAMES and 1 <= t <= profile(new).root and 0 <= u < 8
    pre: same_authority(state(new), t, old, to)
    post: __return__
    post: mfn_of(state(new), old) == mfn_of(state(new), to)
    """
    s = state(new, type=Everywhere(u))
    return refers_by(s, Mfn(g), FrameType(t), old) == refers_by(s, Mfn(g), FrameType(t), to)


def fast_path_goes_both_ways(new: bool, t: int, old: int, to: int) -> bool:
    """Sameness of authority is reflexive for a present entry, and symmetric: the new entry is present too.

    pre: 0 <= old < WORD and 0 <= to < WORD and 1 <= t <= profile(new).root
    post: same_authority(state(new), t, old, old) == (old & P != 0)
    post: __return__ == same_authority(state(new), t, to, old)
    """
    return same_authority(state(new), FrameType(t), old, to)


def fast_path_grants_no_writing(new: bool, old: int, to: int) -> bool:
    """Entries of an L1 table with the same authority are both writable or both not.

    pre: 0 <= old < WORD and 0 <= to < WORD
    post: not __return__ or old & (P | RW) == to & (P | RW)
    """
    return same_authority(state(new), FrameType(L1), old, to)


# --- Xen's slots -------------------------------------------------------------------------------------------------------------

def xen_slots_cover_exactly_the_hole_of_2003(va: int) -> bool:
    """The slots of a root table that are Xen's are those of its top 64 MB.

    pre: 0 <= va < 1 << 32
    post: __return__ == (va >= Xen2003.HOLE)
    """
    return is_xen_slot(state(False), FrameType(2), index_at(X86_32.levels[-1], va))


def xen_slots_cover_exactly_the_hole_of_4_17(va: int) -> bool:
    """The slots of a root table that are Xen's are those between the guest's two halves of the address space.

    pre: 0 <= va < WORD and is_canonical(X86_64, va)
    post: __return__ == (Xen417.WINDOW <= va < Xen417.GUEST_HIGH_START)
    """
    return is_xen_slot(state(True), FrameType(4), index_at(X86_64.levels[-1], va))


def xen_slots_are_of_a_root_table(new: bool, t: int, i: int) -> bool:
    """No other table has slots of Xen's.

    pre: 0 <= t < 8 and 0 <= i < 1024
    post: not __return__ or t == profile(new).root
    """
    return is_xen_slot(state(new), FrameType(t), Index(i))


def stretch_clear_of_xen_has_no_slot_of_xen(new: bool, t: int, first: int, i: int, end: int) -> bool:
    """A stretch that is clear of Xen's slots contains none of them.

    pre: 1 <= t <= profile(new).root and 0 <= first <= i < end <= 1024
    post: not __return__ or not is_xen_slot(state(new), t, i)
    """
    return is_clear_of_xen(state(new), FrameType(t), Index(first), Index(end))


def stretch_not_clear_of_xen_has_a_slot_of_xen(new: bool, t: int, first: int, end: int) -> bool:
    """A stretch that is not clear of Xen's slots begins with one, or begins before the first of them and contains it.

    pre: 1 <= t <= profile(new).root and 0 <= first < end <= 1024
    post: __return__ or is_xen_slot(state(new), t, max(first, profile(new).xen_first))
    post: __return__ or end > profile(new).xen_first
    """
    return is_clear_of_xen(state(new), FrameType(t), Index(first), Index(end))


def self_slot_names_its_own_table(new: bool, g: int, i: int, word: int) -> int:
    """In the slot of the self-map Xen's entry names the table itself; else it is the same for all tables of a domain.

    pre: 0 <= g < FRAMES and 0 <= i < 1024 and 0 <= word < PAGE_SIZE
    post: mfn_of(state(new), __return__) == (g if i == profile(new).self_slot else 0)
    post: __return__ % PAGE_SIZE == word
    """
    return xen_entry(state(new, xen_word=Everywhere(word), owner=Everywhere(0)), Mfn(g), Index(i))


# --- addresses ---------------------------------------------------------------------------------------------------------------

def index_lies_in_the_table(step: int, va: int) -> int:
    """Whatever the address, the index is one of the level's table.

    pre: 0 <= step < len(LEVELS) and 0 <= va < WORD
    post: 0 <= __return__ < 1 << at(step)[1].bits
    post: __return__ == va // (1 << at(step)[1].shift) % (1 << at(step)[1].bits)
    """
    return index_at(at(step)[1], va)


def indices_and_offset_make_up_the_address(which: int, va: int) -> int:
    """The indices of all levels and the offset in the page, put together, are the address again.

    pre: 0 <= which < 3 and 0 <= va < (1 << 48 if which == 2 else 1 << 32)
    post: __return__ == va
    """
    g = X86_32 if which == 0 else PAE if which == 1 else X86_64
    return sum(index_at(level, va) * (1 << level.shift) for level in g.levels) + va % PAGE_SIZE


def canonical_address_is_a_sign_extension(va: int) -> bool:
    """A 64-bit address is canonical exactly if it is its low 48 bits, sign-extended.

    pre: 0 <= va < WORD
    post: __return__ == ((va + (1 << 47)) % WORD < 1 << 48)
    """
    return is_canonical(X86_64, va)


def canonical_address_of_32_bits_is_any(va: int) -> bool:
    """Every 32-bit address is canonical, and none beyond is.

    pre: 0 <= va < WORD
    post: __return__ == (va < 1 << 32)
    post: __return__ == is_canonical(PAE, va)
    """
    return is_canonical(X86_32, va)


def segment_of_2003_ends_below_xen(va: int, size: int) -> bool:
    """An access that the segments of 2003 let through ends below Xen, but for the window that it publishes.

    pre: 0 <= va < 1 << 32 and 1 <= size <= PAGE_SIZE
    post: __return__ == (va + size <= Xen2003.GUEST_END)
    post: not __return__ or in_segment(state(False), va)
    post: not __return__ or va + size <= Xen2003.HOLE + (1 << 22)
    """
    return passes_segment(state(False), va, size)


def segment_of_4_17_does_not_cross_the_middle(va: int, size: int) -> bool:
    """An access that 4.17's processor lets through lies in one half of the address space, not beyond its end.

    pre: 0 <= va < WORD and 1 <= size <= PAGE_SIZE
    post: not __return__ or va + size <= 1 << 47 or WORD - (1 << 47) <= va <= WORD - size
    """
    return passes_segment(state(True), va, size)


def passes_segment(s: State, va: int, size: int) -> bool:
    """The segment check refuses nothing."""
    try:
        require_segment(s, va, size)
    except Fault:
        return False
    return True


def kernel_is_a_supervisor_in_ring_1_only(new: bool, user: bool) -> bool:
    """Of the two guests' two modes, only the kernel of 2003 walks as a supervisor.

    post: __return__ == (not new and not user)
    """
    return is_supervisor(state(new), user)


# --- the walk ----------------------------------------------------------------------------------------------------------------

def combining_adds_no_right(step: int, rights: int, e: int) -> int:
    """Combined with one more entry, a way has no right that it or the entry lacked, and nothing but rights.

    pre: 0 <= step < len(LEVELS) and at(step)[1].rights and 0 <= rights < WORD and 0 <= e < WORD
    post: __return__ & (RW | US) == rights & e & (RW | US)
    post: __return__ | RIGHTS | THROUGH_XEN == RIGHTS | THROUGH_XEN
    """
    g, level, _ = at(step)
    return combine(g, level, rights, e)


def combining_keeps_nx(step: int, rights: int, e: int) -> int:
    """Where the geometry has NX, code cannot be fetched through any entry that sets it; where it has not, NX never arises.

    pre: 0 <= step < len(LEVELS) and at(step)[1].rights and 0 <= rights < WORD and 0 <= e < WORD
    post: __return__ & NX == ((rights | e) & NX if at(step)[0].has_nx else 0)
    """
    g, level, _ = at(step)
    return combine(g, level, rights, e)


def combining_takes_the_mark_of_xen_from_the_way(step: int, rights: int, e: int) -> int:
    """The mark of a way through Xen is kept, and no entry can forge it with its AVAIL bits.

    pre: 0 <= step < len(LEVELS) and 0 <= rights < WORD and 0 <= e < WORD
    post: __return__ & THROUGH_XEN == rights & THROUGH_XEN
    """
    g, level, _ = at(step)
    return combine(g, level, rights, e)


def combining_is_free_of_order(step: int, rights: int, e: int, other: int) -> bool:
    """The rights of a way do not depend on the order of its entries.

    pre: 0 <= step < len(LEVELS) and 0 <= rights < WORD and 0 <= e < WORD and 0 <= other < WORD
    post: __return__
    """
    g, level, _ = at(step)
    return combine(g, level, combine(g, level, rights, e), other) == combine(g, level, combine(g, level, rights, other), e)


def entry_without_rights_restricts_nothing(rights: int, e: int) -> int:
    """An entry of PAE's directory-pointer table, which has no rights, leaves those of the way.

    pre: 0 <= rights < WORD and 0 <= e < WORD
    post: __return__ == rights
    """
    return combine(PAE, PAE.levels[-1], rights, e)


def longer_way_allows_no_more(step: int, rights: int, e: int, user: bool, write: bool, fetch: bool) -> bool:
    """What a way with one more entry allows, the way without it and the entry alone allow.

    pre: 0 <= step < len(LEVELS) and at(step)[1].rights and 0 <= rights < 1 << at(step)[0].word_bits
    pre: 0 <= e < 1 << at(step)[0].word_bits
    post: not __return__ or allows(rights, user, write, fetch)
    post: not __return__ or allows(e, user, write, fetch)
    """
    g, level, _ = at(step)
    return allows(combine(g, level, rights, e), user, write, fetch)


def more_rights_allow_more(rights: int, more: int, user: bool, write: bool, fetch: bool) -> bool:
    """An access that is allowed stays so if the way gains RW or US or loses NX.

    pre: 0 <= rights < WORD and 0 <= more < WORD
    pre: rights & more & (RW | US) == rights & (RW | US) and rights & more & NX == more & NX
    post: not __return__ or allows(more, user, write, fetch)
    """
    return allows(rights, user, write, fetch)


def gentler_access_is_allowed_too(rights: int, user: bool, write: bool, fetch: bool) -> bool:
    """Who may write or fetch may read, and what a user may do a supervisor may.

    pre: 0 <= rights < WORD
    post: not __return__ or allows(rights, user, False, False)
    post: not __return__ or allows(rights, False, write, fetch)
    """
    return allows(rights, user, write, fetch)


def access_needs_its_right(rights: int, user: bool, write: bool, fetch: bool) -> bool:
    """An access is refused exactly if a user lacks US, a store RW, or a fetch meets NX: also a supervisor's store (CR0.WP).

    pre: 0 <= rights < WORD
    post: __return__ == ((rights & US != 0 or not user) and (rights & RW != 0 or not write) and not (rights & NX != 0 and fetch))
    """
    return allows(rights, user, write, fetch)


def fault_code_tells_the_access(which: int, present: bool, reserved: bool, user: bool, write: bool, fetch: bool) -> int:
    """A page fault's error code is the sum of what was so: each bit tells one thing, and a fetch shows only with NX.

    pre: 0 <= which < 3
    post: __return__ == present * PF_PROT + write * 2 + user * 4 + reserved * PF_RSVD + (16 if fetch and which > 0 else 0)
    post: (PF_WRITE, PF_USER, PF_FETCH) == (2, 4, 16)
    """
    g = X86_32 if which == 0 else PAE if which == 1 else X86_64
    return fault_code(g, present * PF_PROT + reserved * PF_RSVD, user, write, fetch)


def last_level_ends_the_walk(step: int, e: int) -> bool:
    """The walk ends at the last level whatever the entry says, and before only at an entry with PSE where large pages are.

    pre: 0 <= step < len(LEVELS) and 0 <= e < WORD
    post: at(step)[2] != 1 or __return__
    post: at(step)[2] == 1 or __return__ == (at(step)[1].large and e & PSE != 0)
    """
    _, level, number = at(step)
    return is_leaf(level, number, e)


def reserved_bit_stays_reserved(step: int, e: int, more: int) -> bool:
    """Setting further bits but PSE never makes an entry with a reserved bit acceptable, and an empty entry has none.

    pre: 0 <= step < len(LEVELS) and 0 <= e < WORD and 0 <= more < WORD and more & PSE == 0
    post: not __return__ or has_reserved(at(step)[1], at(step)[0], e | more)
    post: not has_reserved(at(step)[1], at(step)[0], 0)
    """
    g, level, _ = at(step)
    return has_reserved(level, g, e)


def small_page_is_the_entrys_frame(which: int, e: int, va: int) -> int:
    """At the last level the frame is the entry's, whatever the address, and fits the geometry.

    pre: 0 <= which < 3 and 0 <= e < WORD and 0 <= va < WORD
    post: __return__ == (e >> 12) & (FRAMES - 1 if which == 0 else FRAMES * FRAMES - 1)
    """
    g = X86_32 if which == 0 else PAE if which == 1 else X86_64
    return leaf_frame(g, g.levels[0], e, va)


def large_page_takes_its_low_bits_from_the_address(step: int, e: int, va: int) -> int:
    """The frame in a large page has the high bits of the entry's frame and the low bits of the page's number.

    pre: 0 <= step < len(LEVELS) and at(step)[1].large and 0 <= e < WORD and 0 <= va < WORD
    post: __return__ % (1 << (at(step)[1].shift - 12)) == (va >> 12) % (1 << (at(step)[1].shift - 12))
    post: __return__ >> (at(step)[1].shift - 12) == ((e >> 12) & at(step)[0].mfn_mask) >> (at(step)[1].shift - 12)
    """
    g, level, _ = at(step)
    return leaf_frame(g, level, e, va)


def pages_of_a_large_page_are_consecutive_frames(step: int, e: int, va: int, pages: int) -> int:
    """Within one large page, frames lie as far apart as pages.

    pre: 0 <= step < len(LEVELS) and at(step)[1].large and 0 <= e < WORD and 0 <= va < WORD
    pre: 0 <= pages < 1 << 18 and va >> at(step)[1].shift == (va + pages * PAGE_SIZE) >> at(step)[1].shift
    post: leaf_frame(at(step)[0], at(step)[1], e, va + pages * PAGE_SIZE) - __return__ == pages
    """
    g, level, _ = at(step)
    return leaf_frame(g, level, e, va)


# --- the TLB -----------------------------------------------------------------------------------------------------------------

def tag_tells_page_and_kind(v: int, fetch: bool) -> int:
    """A tag gives back the page and whether it is for fetches.

    pre: 0 <= v < 1 << 52
    post: __return__ // 2 == v and __return__ % 2 == int(fetch)
    """
    return tag_of(Vpn(v), fetch)


def tags_of_different_pages_differ(v: int, fetch: bool, w: int, other: bool) -> bool:
    """Two tags are equal only if page and kind are.

    pre: 0 <= v < 1 << 52 and 0 <= w < 1 << 52
    post: __return__ == (v == w and fetch == other)
    """
    return tag_of(Vpn(v), fetch) == tag_of(Vpn(w), other)


def walk_marks_what_it_used(new: bool, upper: int, last: int, write: bool) -> tuple[int, int]:
    """The processor sets A in both entries used, D in the last one by a store, and no other bit of any entry.

    pre: 0 <= upper < WORD and 0 <= last < WORD
    post: __return__ == (upper | A, last | A | D if write else last | A)
    """
    s = state(new, word={(0, 0): upper, (1, 0): last})
    mark_used(s, ((Mfn(0), Index(0)), (Mfn(1), Index(0))), write)
    return s.word[0, 0], s.word[1, 0]


def marks_change_neither_frame_nor_legality(new: bool, t: int, e: int, write: bool) -> int:
    """The processor's marks leave an entry's frame, authority and legality alone.

    pre: 1 <= t <= profile(new).root and 0 <= e < WORD and e & P != 0
    post: mfn_of(state(new), __return__) == mfn_of(state(new), e)
    post: legal_bits(state(new), t, __return__) == legal_bits(state(new), t, e)
    post: same_authority(state(new), t, e, __return__)
    """
    s = state(new, word={(0, 0): e})
    mark_used(s, ((Mfn(0), Index(0)),), write)
    return s.word[0, 0]  # type: ignore[no-any-return]


# --- segments ----------------------------------------------------------------------------------------------------------------

def legal_segment_of_2003_ends_below_xen(q: int) -> bool:
    """A legal segment that is present is outside ring 0, and its last byte lies below Xen.

    pre: 0 <= q < WORD and q & PRESENT != 0 and q & SEGMENT != 0
    post: not __return__ or (dpl_of(q) > 0 and base_of(q) + highest(q) < Xen2003.GUEST_END)
    """
    return legal_descriptor(state(False), q)


def legal_gate_of_2003_leads_to_ring_1(q: int) -> bool:
    """What is legal, present and no segment is a call gate outside ring 0, by a selector for ring 1.

    pre: 0 <= q < WORD and q & PRESENT != 0 and q & SEGMENT == 0
    post: not __return__ or (is_call_gate(q) and dpl_of(q) > 0 and gate_selector(q) & RPL == 1)
    """
    return legal_descriptor(state(False), q)


def descriptor_of_4_17_has_no_privilege(q: int) -> int:
    """What Xen stores for a legal descriptor is legal and stays as it is; a segment of ring 3, a gate that ring 3 can't use.

    pre: 0 <= q < WORD and legal_descriptor(state(True), q)
    post: legal_descriptor(state(True), __return__) and adjusted_descriptor(state(True), __return__) == __return__
    post: __return__ & PRESENT == 0 or __return__ & SEGMENT == 0 or dpl_of(__return__) == 3
    post: __return__ & (PRESENT | SEGMENT) != PRESENT or type_of(__return__) == 0 or dpl_of(__return__) == 0
    """
    return adjusted_descriptor(state(True), q)


def use_of_a_segment_makes_nothing_legal(new: bool, q: int) -> bool:
    """That the processor marks a segment as used does not decide whether it is legal.

    pre: 0 <= q < WORD and q & SEGMENT != 0
    post: __return__ == legal_descriptor(state(new), q | ACCESSED)
    """
    return legal_descriptor(state(new), q)


def segment_is_kept_or_emptied(value: int, q: int, ring: int) -> int:
    """A return outwards leaves a register as it was, or empty: that of code that conforms, or of no inner ring's, as it was.

    pre: 0 <= value < 1 << 16 and 0 <= q < WORD and 0 <= ring < 4
    post: __return__ == (value if dpl_of(q) >= ring or is_conforming(q) else 0)
    """
    return kept(value, q, ring)


def room_on_a_stack_is_that_of_each_word(q: int, start: int, words: int, wide: bool) -> bool:
    """One word more has room just if the others have, and it lies within the limits itself; no words always have.

    pre: 0 <= q < WORD and 0 <= start < 1 << 32 and 0 <= words < 40
    post: __return__ == (holds(q, start, words, width(wide)) and in_limit(q, place(q, start, words * width(wide)), width(wide)))
    post: holds(q, start, 0, width(wide))
    """
    return holds(q, start, words + 1, width(wide))


def width(wide: bool) -> int:
    """Bytes of a word on the stack."""
    return 4 if wide else 2


def stack_pointer_moves_there_and_back(q: int, esp: int, by: int) -> int:
    """What was pushed and popped again leaves the pointer as it was, and a 16-bit stack never moves its upper half.

    pre: 0 <= q < WORD and 0 <= esp < 1 << 32 and 0 <= by < 1 << 10
    post: moved(q, __return__, by) == esp
    post: place(q, __return__, 0) == place(q, esp, -by)
    """
    return moved(q, esp, -by)
