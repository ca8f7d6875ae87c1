"""The moves of xen-4.17 programs: four levels, requests by machine address, a root table for user mode, foreign domains."""
from collections.abc import Sequence
from typing import Final

from oracle.generate import BUFFER_PAGES, CODE_PAGE, Generator, move
from spec.abi import (
    AVAIL,
    DOMID_IO,
    DOMID_SELF,
    DOMID_XEN,
    GUEST_KERNEL,
    L1,
    L4,
    NOBODY,
    NX,
    PAT,
    PCD,
    PSE,
    PWT,
    RW,
    US,
    WRITABLE,
    A,
    D,
    G,
    P,
    Xen417,
)
from spec.vocabulary import Action, Execute, Hypercall, Load, Store

NAME: Final = "xen-4.17"
X: Final = Xen417
NORMAL, MACHPHYS, PRESERVE_AD, NO_TRANSLATE = X.NORMAL, X.MACHPHYS, X.PRESERVE_AD, X.NO_TRANSLATE
PAGE: Final = 12
FRAME: Final = ((1 << 40) - 1) << PAGE
ONES: Final = (1 << 64) - 1

WRITABLE_FLAGS: Final = (0x67, 0x63, 0x3, 0x7, 0x27, GUEST_KERNEL | 0x67, NX | 0x63, 0x107, 0xE67, AVAIL | 0x3)
READ_FLAGS: Final = (0x65, 0x61, 0x1, 0x5, 0x25, GUEST_KERNEL | 0x65, NX | 0x1, 0x105)
TABLE_FLAGS: Final = (0x67, 0x7, 0x3, 0x27, 0x67, 0x5, 0x7 | AVAIL, 0x7)
FORBIDDEN: Final = (PSE, PWT, PCD, PWT | PCD, PAT | G)
SOFT: Final = (A, D, A | D, US, G, NX, GUEST_KERNEL, 0x200, 0x400, AVAIL)
FLUSHES: Final = (0, 0, 0, 1, 2, 5, 6, 2)
SLOTS: Final = (0, 1, 2, 255, 272, 509, 510, 511)       # of upper tables: both sides of Xen's, and the ends
HOME_SLOT: Final = {4: 511, 3: 510, 2: 0}               # the way to a domain's memory at boot, by level
NOWHERE: Final = (0x0000800000000000, 0xFFFF7FFFFFFFFFFF & ~7, 0x00007FFFFFFFFFF8, 0xFFFF880000000000, 0x1000, 0, ONES - 7)
IN_XEN: Final = (0xFFFF800000000000, 0xFFFF820000000000, 0xFFFF87FFFFFFFFF8)


# --- what the tables say now -------------------------------------------------------------------------------------------------

def slot_of(g: Generator, va: int) -> tuple[int, int]:
    """The L1 table and the slot that map an address for the kernel now; table 0 if there is none."""
    word, table = g.word, g.base[g.d.dom]
    for shift in (39, 30, 21):
        e = word[table, va >> shift & 511]
        if not e & P or e & PSE:
            return 0, 0
        table = (e & FRAME) >> PAGE
    return table, va >> PAGE & 511


def entry_of(g: Generator, va: int) -> int:
    """The L1 entry that maps an address now; 0 without one."""
    table, slot = slot_of(g, va)
    return g.word[table, slot] if table else 0


def frame_of(entry: int) -> int:
    """The frame that an entry names."""
    return (entry & FRAME) >> PAGE


def is_writable(g: Generator, va: int) -> bool:
    """A store there would most likely succeed."""
    return entry_of(g, va) & 3 == 3


def is_own(g: Generator, frame: int) -> bool:
    """A frame among the domain's first ones."""
    return g.d.first <= frame < g.d.end


def target_va(g: Generator) -> int:
    """A page address whose L1 entry the domain may change."""
    d, r = g.d, g.random()
    if r < 0.65:
        return d.windows[int(g.random() * len(d.windows))]
    if r < 0.85:
        return d.home + (g.hot_page() << PAGE)
    return d.home + (g.pick((1, 2, 511)) << 21) + (g.pick((0, 1, 5, 511)) << PAGE)


def mapped_va(g: Generator) -> int:
    """The same, under a table that is there."""
    va = target_va(g)
    return va if slot_of(g, va)[0] else g.d.windows[0]


# --- entries -----------------------------------------------------------------------------------------------------------------

def good_entry(g: Generator) -> int:
    """An L1 entry that is most likely allowed."""
    r = g.random()
    if r < 0.6:
        return g.data_frame() << PAGE | WRITABLE_FLAGS[int(g.random() * 10)]
    if r < 0.85:
        return g.d.first + int(g.random() * (g.d.pages + 1)) << PAGE | READ_FLAGS[int(g.random() * 8)]
    return 0 if r < 0.95 else g.bits(40) & ~P


def odd_entry(g: Generator) -> int:
    """An L1 entry at some edge."""
    r = g.random()
    if r < 0.6:
        return g.odd_frame() << PAGE | g.pick(WRITABLE_FLAGS if g.random() < 0.6 else READ_FLAGS)
    if r < 0.85:
        return g.data_frame() << PAGE | g.pick((1, 3, 0x63)) | g.pick(FORBIDDEN)
    if r < 0.95:
        return g.d.first + g.spare_page() << PAGE | g.pick((1, 3, 0x63))
    return g.bits(64) & ~NX


def lower_table(g: Generator, level: int) -> int:
    """A frame that is a table of the level below, or can become one."""
    d = g.d
    for _ in range(4):
        frame = d.first + g.spare_page()
        if not g.type_count[frame] or g.type[frame] == level - 1:
            return frame
    return d.end - 1 - (5 - level)              # the boot tables: the last L1, the L2, the L3


def good_table_entry(g: Generator, table: int, level: int) -> int:
    """An upper entry that is most likely allowed: a table of the level below, the table itself, nothing."""
    r = g.random()
    if r < 0.25:
        return 0
    if r < 0.35:
        return table << PAGE | g.pick((1, 5, 0x25))
    return lower_table(g, level) << PAGE | TABLE_FLAGS[int(g.random() * 8)]


def odd_table_entry(g: Generator, table: int, level: int) -> int:
    """An upper entry at some edge: forbidden bits, frames of another level, linear ones."""
    r, d = g.random(), g.d
    if r < 0.15:
        return table << PAGE | g.pick((3, 7, 0x67))
    if r < 0.4:                                 # a linear entry: another table of the same level
        for page in d.spares:
            if g.type[d.first + page] == level and g.type_count[d.first + page] and d.first + page != table:
                return d.first + page << PAGE | g.pick((1, 5, 1, 5, 7))
        return d.end - 1 - (4 - level) << PAGE | g.pick((1, 5, 7))
    if r < 0.55:
        return lower_table(g, level) << PAGE | 7 | g.pick((*FORBIDDEN, G))
    if r < 0.75:
        return g.data_frame() << PAGE | 7
    if r < 0.92:
        return g.odd_frame() << PAGE | g.pick(TABLE_FLAGS)
    return g.bits(64)


# --- requests of mmu_update: (ptr, val) --------------------------------------------------------------------------------------

def at(table: int, slot: int, command: int = NORMAL) -> int:
    """The machine address of an entry, with a command."""
    return table << PAGE | slot << 3 | command


def command(g: Generator) -> int:
    """One of the commands that replace an entry."""
    return (NORMAL, NORMAL, NORMAL, PRESERVE_AD, NO_TRANSLATE)[int(g.random() * 5)]


def normal_l1(g: Generator) -> tuple[int, int]:
    """An L1 entry in use is replaced."""
    table, slot = slot_of(g, mapped_va(g))
    return at(table, slot, command(g)), good_entry(g)


def upper_table(g: Generator) -> tuple[int, int]:
    """An upper table in use, and its level."""
    d = g.d
    if g.random() < 0.5:
        for _ in range(4):
            frame = d.first + g.spare_page()
            if g.type_count[frame] and L1 < g.type[frame] <= L4:
                return frame, g.type[frame]
    level = g.pick((2, 2, 3, 4))
    return d.end - 1 - (4 - level), level


def normal_upper(g: Generator) -> tuple[int, int]:
    """An entry of an upper table is replaced, but not the one on the way to the domain's own memory."""
    table, level = upper_table(g)
    slot = g.pick(SLOTS)
    if slot == HOME_SLOT[level]:
        slot = 3
    return at(table, slot, command(g)), good_table_entry(g, table, level)


def raw_store(g: Generator) -> tuple[int, int]:
    """A plain store into a frame of data, or into one without typed references."""
    return at(g.d.first + (g.spare_page() if g.random() < 0.6 else g.hot_page()), g.pick((0, 1, 5, 255, 256, 511))), good_entry(g)


def machphys(g: Generator) -> tuple[int, int]:
    """A machine-to-physical word of an own frame is set."""
    return at(g.d.first + g.below(g.d.pages + 1), g.below(512), MACHPHYS), g.bits(64)


GOOD: Final = (normal_l1, normal_l1, normal_l1, normal_l1, normal_upper, normal_upper, raw_store, machphys)


def good_request(g: Generator) -> tuple[int, int]:
    """A request that most likely succeeds."""
    return GOOD[int(g.random() * 8)](g)


def odd_request(g: Generator) -> tuple[int, int]:
    """A request that most likely fails."""
    r = g.random()
    table, level = upper_table(g)
    if r < 0.3:
        l1, slot = slot_of(g, mapped_va(g))
        return at(l1, slot, command(g)), odd_entry(g)
    if r < 0.55:
        slot = g.pick(SLOTS)
        return at(table, slot if slot != HOME_SLOT[level] else 3, command(g)), odd_table_entry(g, table, level)
    if r < 0.65:                                # Xen's slots
        return at(g.base[g.d.dom], g.pick((256, 258, 260, 271))), g.pick((0, good_table_entry(g, table, 4)))
    if r < 0.75:
        return at(g.odd_frame(), g.below(512), g.pick((NORMAL, PRESERVE_AD, MACHPHYS, MACHPHYS))), good_entry(g)
    if r < 0.85:
        return at(g.d.first + g.hot_page(), g.below(512), g.pick((4, 5, 6, 7))), good_entry(g)
    return g.bits(52) & ~7, g.bits(64)


def mmu_update(g: Generator, words: Sequence[int], domain: int = DOMID_SELF) -> Hypercall:
    """mmu_update of these requests; sometimes with a place for the number done."""
    done = (0, 0, 0, g.d.home + (BUFFER_PAGES[0] << PAGE) + 0xF00)[int(g.random() * 4)]
    return g.list_call(X.MMU_UPDATE, words, len(words) // 2, done, domain)


@move(90, NAME)
def batch_good(g: Generator) -> Sequence[Action]:
    """A batch of requests that most likely all succeed."""
    r = g.random()
    if r < 0.6:
        return (mmu_update(g, good_request(g)),)
    if r < 0.85:
        return (mmu_update(g, (*good_request(g), *normal_l1(g))),)
    return (mmu_update(g, (*normal_l1(g), *good_request(g), *normal_l1(g), *machphys(g))),)


@move(30, NAME)
def batch_one_bad(g: Generator) -> Sequence[Action]:
    """A batch with a bad entry: alone, or between good ones."""
    if g.random() < 0.5:
        return (mmu_update(g, odd_request(g)),)
    return (mmu_update(g, (*normal_l1(g), *odd_request(g), *normal_l1(g))),)


@move(12, NAME)
def odd_list(g: Generator) -> Sequence[Action]:
    """Lists, counts, places for the number done, and domains that are none."""
    d, r = g.d, g.random()
    request = normal_l1(g)
    if r < 0.35:                                # the mapped memory ends in the list
        end = d.windows[0]
        if not entry_of(g, end) & P and is_writable(g, end - 8):
            n = g.pick((1, 2, 3))
            words = (*request, *request)[:n]
            return (Hypercall(d.dom, X.MMU_UPDATE, (end - 8 * n, 2, 0, DOMID_SELF), ((end - 8 * n, words),)),)
        return (Hypercall(d.dom, X.UPDATE_VA_MAPPING, (end, 0, 2)),)
    if r < 0.6:
        return (Hypercall(d.dom, X.MMU_UPDATE, (g.pick((*NOWHERE, *IN_XEN)), g.pick((0, 1, 2)), 0, DOMID_SELF)),)
    if r < 0.8:
        return (g.list_call(X.MMU_UPDATE, request, 1, g.pick((*NOWHERE, *IN_XEN, d.va_of(d.end - 1))), DOMID_SELF),)
    return (g.list_call(X.MMU_UPDATE, request, 1, 0, g.pick((d.dom, DOMID_IO, DOMID_XEN, NOBODY, 77, DOMID_SELF | 78 << 16,
                                                             DOMID_SELF | d.dom + 1 << 16))),)


# --- update_va_mapping -------------------------------------------------------------------------------------------------------

def update(g: Generator, va: int, entry: int) -> Hypercall:
    """update_va_mapping with flags as they come."""
    return Hypercall(g.d.dom, X.UPDATE_VA_MAPPING, (va, entry, FLUSHES[int(g.random() * 8)]))


def update_with(g: Generator, va: int, entry: int, flags: int) -> Hypercall:
    """update_va_mapping with these flags."""
    return Hypercall(g.d.dom, X.UPDATE_VA_MAPPING, (va, entry, flags))


@move(80, NAME)
def map_something(g: Generator) -> Sequence[Action]:
    """Map a frame where that is most likely allowed."""
    return (update(g, mapped_va(g), good_entry(g)),)


@move(50, NAME)
def change_an_entry(g: Generator) -> Sequence[Action]:
    """Take a mapping away, or change RW or other bits of it."""
    va = mapped_va(g)
    entry, r = entry_of(g, va), g.random()
    if r < 0.3:
        return (update(g, va, 0),)
    if r < 0.6:
        return (update(g, va, entry ^ RW),)
    return (update(g, va, entry ^ (g.pick(SOFT) if r < 0.92 else g.pick(FORBIDDEN))),)


@move(30, NAME)
def map_odd(g: Generator) -> Sequence[Action]:
    """Map what is at the edge of what may be mapped."""
    return (update(g, mapped_va(g), odd_entry(g)),)


@move(12, NAME)
def update_odd_address(g: Generator) -> Sequence[Action]:
    """update_va_mapping of addresses without an L1 table, of Xen's, and with flush flags that are pointers."""
    d, r = g.d, g.random()
    if r < 0.7:
        va = g.pick((*NOWHERE, *IN_XEN, d.home + (3 << 21), d.home + (1 << 30)))
        return (Hypercall(d.dom, X.UPDATE_VA_MAPPING, (va, g.pick((0, good_entry(g))), g.bits(2))),)
    flags = g.pick((1, 2, 3)) | g.pick((4, d.home + 0x2000, d.home + 0x2008, 0x1000, IN_XEN[0]))
    return (Hypercall(d.dom, X.UPDATE_VA_MAPPING, (mapped_va(g), good_entry(g), flags)),)


@move(25, NAME)
def restore_home(g: Generator) -> Sequence[Action]:
    """Map a page of the domain again as at boot."""
    d = g.d
    for page in (g.hot_page(), g.hot_page(), g.spare_page(), *d.hot[:3]):
        va, frame = d.home + (page << PAGE), d.first + page
        entry = entry_of(g, va)
        if (frame_of(entry) != frame or not entry & RW) and page < d.tables:
            free = not g.type_count[frame] or g.type[frame] == WRITABLE
            return (update(g, va, frame << PAGE | (0x67 if free else 0x65)),)
    return map_something(g)


# --- mmuext_op and the life of page tables -----------------------------------------------------------------------------------

def extended(g: Generator, command: int, arg1: int = 0, arg2: int = 0, domain: int = DOMID_SELF) -> Hypercall:
    """mmuext_op of one operation."""
    return g.list_call(X.MMUEXT_OP, (command, arg1, arg2), 1, 0, domain)


def contents_for(g: Generator, page: int, level: int) -> tuple[tuple[int, tuple[int, ...]], ...]:
    """What to store into a page that is to become a table of this level."""
    d, va = g.d, g.d.home + (page << PAGE)
    if level == L1:
        entries = [good_entry(g) for _ in range(g.pick((1, 2, 3)))]
        if g.random() < 0.15:
            entries.append(odd_entry(g))
        return ((va + 8 * g.pick((0, 1, 5, 508)), tuple(entries)),)
    contents = []
    if level == L4 or g.random() < 0.4:         # the way to the domain's memory goes on
        slot = HOME_SLOT[level]
        contents.append((va + 8 * slot, (g.word[d.end - 1 - (4 - level), slot],)))
    if not contents or g.random() < 0.5:
        frame = d.first + page
        entry = odd_table_entry(g, frame, level) if g.random() < 0.2 else good_table_entry(g, frame, level)
        contents.append((va + 8 * g.pick((2, 255, 272, 509)), (entry,)))
    return tuple(contents)


def level_of(g: Generator, frame: int) -> int:
    """The level that a frame's contents suit."""
    word, end = g.word, g.d.end
    for level in (4, 3, 2):
        if word[frame, HOME_SLOT[level]] & FRAME == end - 1 - (5 - level) << PAGE:
            return level
    return L1


@move(75, NAME)
def advance_table(g: Generator) -> Sequence[Action]:
    """Take a spare page one step further: fill it and map it read-only, pin it, link it, use it as a base, free it again."""
    d, page = g.d, g.spare_page()
    frame, va = d.first + page, d.home + (page << PAGE)
    entry = entry_of(g, va)
    kind, uses = g.type[frame], g.type_count[frame]
    if frame_of(entry) == frame and entry & RW:
        level = g.pick((1, 1, 2, 3, 4, 4))
        data = contents_for(g, page, level) if is_writable(g, va) else ()
        less = g.pick((frame << PAGE | 0x65, frame << PAGE | 0x65, 0))
        return (Hypercall(d.dom, X.UPDATE_VA_MAPPING, (va, less, g.pick((2, 2, 1, 0))), data),)
    if not uses:
        level = level_of(g, frame)
        if g.random() < 0.15:
            return (update(g, va, frame << PAGE | 0x67),)
        if level < L4 and g.random() < 0.4:
            upper = d.end - 1 - (4 - level - 1)
            slot = g.pick((1, 2, 511) if level == L1 else (0, 1, 255, 272, 509))
            return (mmu_update(g, (at(upper, slot), frame << PAGE | g.pick(TABLE_FLAGS))),)
        return (extended(g, X.PIN_L1 + level - 1, frame),)
    r = g.random()
    if kind == L4 and r < 0.45 and g.word[frame, HOME_SLOT[4]] & P:
        return (extended(g, X.NEW_BASEPTR if r < 0.3 else X.NEW_USER_BASEPTR, frame),)
    if kind == L1 and r < 0.4:
        return (mmu_update(g, (at(frame, g.pick((0, 1, 5, 511)), command(g)), good_entry(g))),)
    if L1 < kind <= L4 and r < 0.6:
        return (mmu_update(g, (at(frame, g.pick((0, 1, 2, 255, 272, 509)), command(g)), good_table_entry(g, frame, kind))),)
    if g.pinned[frame] and r < 0.85:
        return (extended(g, X.UNPIN, frame),)
    if L1 <= kind < L4 and r < 0.7:
        return (mmu_update(g, (at(d.end - 1 - (3 - kind), g.pick((1, 2, 509) if kind != L4 else (0,))), frame << PAGE | 7)),)
    return unlink(g)


def unlink(g: Generator) -> Sequence[Action]:
    """Take a table out of a boot table, or go back to the boot base."""
    d = g.d
    for level in (2, 3, 4):
        table = d.end - 1 - (4 - level)
        for slot in SLOTS:
            if slot != HOME_SLOT[level] and g.word[table, slot] & P and not 256 <= slot < 272:
                return (mmu_update(g, (at(table, slot), 0)),)
    return (extended(g, X.NEW_BASEPTR, d.end - 1),)


@move(60, NAME)
def pin_and_load(g: Generator) -> Sequence[Action]:
    """Pin, unpin, and load bases, as the state of the frames suggests."""
    d, r = g.d, g.random()
    for _ in range(4):
        frame = d.first + g.spare_page()
        kind, uses = g.type[frame], g.type_count[frame]
        if g.pinned[frame] and r < 0.5:
            return (extended(g, X.UNPIN, frame),)
        if uses and kind == L4 and r < 0.7 and g.word[frame, HOME_SLOT[4]] & P:
            return (extended(g, g.pick((X.NEW_BASEPTR, X.NEW_USER_BASEPTR)), frame),)
        if uses and L1 <= kind <= L4 and not g.pinned[frame]:
            return (extended(g, X.PIN_L1 + kind - 1, frame),)
        if not uses:
            return (extended(g, X.PIN_L1 + level_of(g, frame) - 1, frame),)
    return (extended(g, g.pick((X.NEW_BASEPTR, X.NEW_USER_BASEPTR, X.NEW_USER_BASEPTR)), d.end - 1),)


@move(30, NAME)
def flush(g: Generator) -> Sequence[Action]:
    """Flushes of every kind."""
    d, r = g.d, g.random()
    mask = d.home + (BUFFER_PAGES[0] << PAGE) if r < 0.8 else g.pick((*NOWHERE, *IN_XEN))
    kind = g.pick((X.TLB_FLUSH_LOCAL, X.INVLPG_LOCAL, X.TLB_FLUSH_MULTI, X.INVLPG_MULTI, X.TLB_FLUSH_ALL, X.INVLPG_ALL))
    return (extended(g, kind, target_va(g) if g.random() < 0.8 else g.pick((*NOWHERE, *IN_XEN)), mask),)


@move(25, NAME)
def copy_and_clear(g: Generator) -> Sequence[Action]:
    """CLEAR_PAGE and COPY_PAGE of frames of data, and of others."""
    d = g.d
    to = g.data_frame() if g.random() < 0.7 else g.pick((g.odd_frame(), d.first + g.spare_page()))
    if g.random() < 0.4:
        return (extended(g, X.CLEAR_PAGE, to),)
    source = d.first + g.any_page() if g.random() < 0.85 else g.odd_frame()
    return (extended(g, X.COPY_PAGE, to, source),)


@move(12, NAME)
def set_ldt(g: Generator) -> Sequence[Action]:
    """SET_LDT with bases and sizes around what is allowed."""
    base = g.pick((g.d.windows[0], 0, g.d.home, g.d.home + 8, 0x1000, 0xFFFF800000000000, 0x00007FFFFFFFF000, 0x0000800000000000))
    return (extended(g, X.SET_LDT, base, g.pick((0, 1, 512, 8191, 8192, 8193, ONES))),)


@move(25, NAME)
def extended_odd(g: Generator) -> Sequence[Action]:
    """Operations that most likely fail: frames at some edge, wrong levels, commands that do not exist, or are not for a guest."""
    d, r = g.d, g.random()
    frame = g.odd_frame() if r < 0.5 else d.first + g.any_page()
    kind = g.pick((0, 1, 2, 3, 0, 1, 2, 3, X.UNPIN, X.NEW_BASEPTR, X.NEW_USER_BASEPTR, X.CLEAR_PAGE, X.FLUSH_CACHE,
                   X.FLUSH_CACHE_GLOBAL, X.MARK_SUPER, X.UNMARK_SUPER, 14, 21, 255))
    if kind == X.NEW_BASEPTR and frame != d.end - 1 and g.type[frame] == L4 and not g.word[frame, HOME_SLOT[4]] & P:
        frame = d.end - 1                       # a base without the domain's memory ends all
    if r < 0.85:
        return (extended(g, kind, frame, frame),)
    if r < 0.93:
        good = (X.TLB_FLUSH_LOCAL, 0, 0)
        return (g.list_call(X.MMUEXT_OP, (*good, kind, frame, frame, *good), 3, 0, DOMID_SELF),)
    if r < 0.97:
        return (Hypercall(d.dom, X.MMUEXT_OP, (g.pick((*NOWHERE, *IN_XEN)), g.pick((0, 1)), 0, DOMID_SELF)),)
    return (extended(g, kind, frame, frame, g.pick((d.dom, DOMID_IO, DOMID_XEN, NOBODY, 77))),)


@move(8, NAME)
def unset_user_base(g: Generator) -> Sequence[Action]:
    """User mode's root table is given up, or set again."""
    return (extended(g, X.NEW_USER_BASEPTR, g.pick((0, g.d.end - 1))),)


# --- stale translations ------------------------------------------------------------------------------------------------------

@move(22, NAME)
def stale_store(g: Generator) -> Sequence[Action]:
    """Use a mapping, take it away or make it read-only without a flush, and use it again."""
    d, va, frame = g.d, g.pick(g.d.windows), g.data_frame()
    entry, r = entry_of(g, va), g.random()
    actions: list[Action] = []
    if entry & 3 == 3 and is_own(g, frame_of(entry)):
        frame = frame_of(entry)
    else:
        actions.append(update_with(g, va, frame << PAGE | g.pick((0x67, 0x7, GUEST_KERNEL | 7)), 2))
    actions.append(Store(d.dom, va, g.bits(32)) if r < 0.6 else Load(d.dom, va))
    actions.append(update_with(g, va, g.pick((0, frame << PAGE | 0x65, g.data_frame() << PAGE | 0x67)), g.pick((0, 0, 0, 1, 2))))
    actions.append(Store(d.dom, va, g.bits(32)) if r > 0.3 else Load(d.dom, va))
    if g.random() < 0.3:
        actions.append(extended(g, g.pick((X.TLB_FLUSH_LOCAL, X.INVLPG_LOCAL)), va))
        actions.append(Store(d.dom, va, g.bits(32)))
    return actions


@move(14, NAME)
def stale_retype(g: Generator) -> Sequence[Action]:
    """Take every mapping of a frame away without a flush, let it become a table, and store through the stale translation."""
    d, page = g.d, g.spare_page()
    frame, va = d.first + page, d.home + (page << PAGE)
    if not is_writable(g, va) or frame_of(entry_of(g, va)) != frame or g.type_count[frame] != 1:
        return advance_table(g)
    where = va + 8 * g.pick((0, 1, 5))
    return (Store(d.dom, where, 0), update_with(g, va, g.pick((0, frame << PAGE | 0x65)), 0),
            extended(g, X.PIN_L1, frame) if g.random() < 0.6 else mmu_update(g, (at(d.end - 3, 2), frame << PAGE | 7)),
            Store(d.dom, where, good_entry(g)), Load(d.dom, where))


# --- the reservation ---------------------------------------------------------------------------------------------------------

def reservation(start: int, count: int, order: int = 0, domain: int = DOMID_SELF) -> tuple[int, ...]:
    """struct xen_memory_reservation."""
    return start, count, order, domain


def memory_op(g: Generator, op: int, frames: Sequence[int], count: int, order: int = 0, domain: int = DOMID_SELF,
              list_at: int = 0) -> Hypercall:
    """memory_op on a reservation, with its list written after it."""
    where = g.buffer(4 + len(frames))
    words = (*reservation(list_at or where + 32, count, order, domain), *frames)
    return Hypercall(g.d.dom, X.MEMORY_OP, (op, where), ((where, words),))


@move(30, NAME)
def release_and_claim(g: Generator) -> Sequence[Action]:
    """Give frames back, mapped or not, and ask for others."""
    d, r = g.d, g.random()
    actions: list[Action] = []
    if r < 0.7:
        page = g.hot_page()
        frame, va = d.first + page, d.home + (page << PAGE)
        if page < d.tables and g.owner[frame] == d.dom:
            if g.random() < 0.7:
                actions.append(update_with(g, va, 0, g.pick((0, 2))))
            actions.append(memory_op(g, X.DECREASE, (frame,), 1))
            if g.random() < 0.3:
                actions.append(Store(d.dom, va, g.bits(32)))
    if r > 0.2 or not actions:
        if g.random() < 0.5:
            actions.append(memory_op(g, X.INCREASE, (), 1))
        else:
            actions.append(memory_op(g, X.POPULATE, (g.below(d.pages), g.below(1024)), g.pick((1, 1, 2))))
    return actions


@move(10, NAME)
def map_new_frame(g: Generator) -> Sequence[Action]:
    """Map a frame that the machine handed out, or one that was given back."""
    if not g.chosen:
        return release_and_claim(g)
    frame, d = g.pick(g.chosen), g.d
    va = d.va_of(frame) if d.first <= frame < d.first + d.tables else g.pick(d.windows)
    return (update(g, va, frame << PAGE | g.pick((0x67, 0x67, 0x65))), Load(d.dom, va + 8 * g.below(512)))


@move(16, NAME)
def exchange(g: Generator) -> Sequence[Action]:
    """Exchange frames for others: unmapped ones can be, mapped ones cannot."""
    d, page = g.d, g.hot_page()
    frame, va = d.first + page, d.home + (page << PAGE)
    where = g.buffer(12)
    r = g.random()
    odd_sizes = ((1, 2, 0, 0), (2, 1, 0, 0), (1, 1, 1, 0), (1, 1, 19, 19), (0, 0, 0, 0))
    n_in, n_out, o_in, o_out = (1, 1, 0, 0) if r < 0.8 else g.pick(odd_sizes)
    domain = DOMID_SELF if r < 0.9 else g.pick((d.dom, 77, g.pick(g.domains).dom))
    words = (*reservation(where + 72, n_in, o_in, domain),
             *reservation(where + 80, n_out, o_out, DOMID_SELF if r < 0.95 else d.dom),
             0 if g.random() < 0.9 else g.pick((1, 2)), frame if g.random() < 0.8 else g.odd_frame(), page)
    call = Hypercall(d.dom, X.MEMORY_OP, (X.EXCHANGE, where), ((where, words),))
    if g.random() < 0.8 and page < d.tables and g.owner[frame] == d.dom:
        return (update_with(g, va, 0, 2), call)
    return (call,)


@move(16, NAME)
def memory_odd(g: Generator) -> Sequence[Action]:
    """Reservations that cannot be: bad lists, domains, orders, operations; and what can only be asked."""
    d, r = g.d, g.random()
    frame = g.odd_frame() if g.random() < 0.6 else d.first + g.hot_page()
    if r < 0.3:
        return (memory_op(g, X.DECREASE, (frame, d.first + g.hot_page()), g.pick((1, 2))),)
    if r < 0.45:
        return (memory_op(g, g.pick((X.INCREASE, X.DECREASE, X.POPULATE)), (frame,), 1, g.pick((0, 1, 9, 10, 18, 19, 40)),
                          g.pick((DOMID_SELF, d.dom, 77, DOMID_XEN, g.pick(g.domains).dom))),)
    if r < 0.6:
        return (memory_op(g, g.pick((X.INCREASE, X.DECREASE, X.POPULATE)), (), 1, list_at=g.pick((*NOWHERE, *IN_XEN))),)
    if r < 0.75:
        where = g.buffer(1)
        op = g.pick((X.CURRENT_RESERVATION, X.MAXIMUM_RESERVATION, X.MAXIMUM_GPFN, X.MAXIMUM_RAM_PAGE))
        domain = g.pick((DOMID_SELF, DOMID_SELF, d.dom, 77, g.pick(g.domains).dom))
        return (Hypercall(d.dom, X.MEMORY_OP, (op, where), ((where, (domain,)),)),)
    op = g.pick((X.INCREASE, X.EXCHANGE, X.CURRENT_RESERVATION, X.REMOVE_FROM_PHYSMAP, X.ADD_TO_PHYSMAP, 63, X.POPULATE))
    return (Hypercall(d.dom, X.MEMORY_OP, (op, g.pick((*NOWHERE, *IN_XEN)))),)


@move(12, NAME)
def memory_corners(g: Generator) -> Sequence[Action]:
    """Operations that go on where they never began, limits on address bits, sizes that overflow, lists in Xen's slots."""
    d, r = g.d, g.random()
    op = g.pick((X.INCREASE, X.DECREASE, X.POPULATE))
    where = g.buffer(12)
    if r < 0.25:                                # the number of the first extent, above the operation
        more = g.pick((1, 2, 3)) << 6
        words = (*reservation(where + 32, g.pick((0, 1, 2, 1 << 58)), 0), d.first + g.hot_page(), d.first + g.hot_page())
        op = g.pick((op, op, X.CURRENT_RESERVATION, X.EXCHANGE))
        return (Hypercall(d.dom, X.MEMORY_OP, (op | more, where), ((where, words),)),)
    if r < 0.5:                                 # mem_flags: bits of an address
        bits = g.pick((1, 12, 13, 19, 31, 32, 40))
        words = (where + 32, 1, g.pick((0, 0, 1, 4)) | bits << 32, DOMID_SELF, g.below(d.pages))
        return (*release(g), Hypercall(d.dom, X.MEMORY_OP, (g.pick((X.INCREASE, X.POPULATE)), where), ((where, words),)))
    if r < 0.6:
        words = (g.pick((d.dom, DOMID_SELF, 77)) | g.pick((0, 4)) << 32, 0, 0)
        return (Hypercall(d.dom, X.MEMORY_OP, (g.pick((X.ADD_TO_PHYSMAP, X.REMOVE_FROM_PHYSMAP)), where), ((where, words),)),)
    size = 1 << 63 if r < 0.7 else 1
    given, wanted = (g.pick((where + 72, where + 72, IN_XEN[0])) for _ in range(2))
    if r > 0.85:
        wanted = g.pick((d.va_of(d.end - 1), 0x1000))
    page = g.hot_page()
    words = (*reservation(given, size, 1 if r < 0.7 else 0), *reservation(wanted, size, 1 if r < 0.7 else 0), 0, d.first + page)
    return (update_with(g, d.home + (page << PAGE), 0, 2), Hypercall(d.dom, X.MEMORY_OP, (X.EXCHANGE, where), ((where, words),)))


def release(g: Generator) -> Sequence[Action]:
    """A frame is unmapped and given back."""
    d, page = g.d, g.hot_page()
    if page >= d.tables or g.owner[d.first + page] != d.dom:
        return ()
    return (update_with(g, d.home + (page << PAGE), 0, 2), memory_op(g, X.DECREASE, (d.first + page,), 1))


# --- multicall ---------------------------------------------------------------------------------------------------------------

def keeps_buffers(g: Generator) -> bool:
    """The buffer pages are mapped as at boot, so a list that is written there is the list that Xen reads."""
    d = g.d
    homes = ((d.home + (p << PAGE), d.first + p) for p in BUFFER_PAGES)
    return all(is_writable(g, va) and frame_of(entry_of(g, va)) == frame for va, frame in homes)


def listed_call(g: Generator, where: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """A call of a list that has a list of its own, at `where`: the entry's words, and the list's."""
    d, r = g.d, g.random()
    if r < 0.45:
        requests: tuple[int, ...] = (odd_request if r < 0.1 else good_request)(g)
        if r > 0.3:
            requests = (*requests, *normal_upper(g), *normal_l1(g))
        done = where + 0x3E0 if r < 0.2 else 0
        return (X.MMU_UPDATE, 0, where, len(requests) // 2, done, DOMID_SELF, 0, 0), requests
    if r < 0.55:
        return (X.UPDATE_VA_MAPPING_OTHERDOMAIN, 0, mapped_va(g), good_entry(g), g.bits(2), DOMID_SELF, 0, 0), ()
    if r < 0.65:
        frame = d.first + g.hot_page()
        return (X.MEMORY_OP, 0, X.DECREASE, where, 0, 0, 0, 0), (*reservation(where + 32, 1, 0), frame)
    if r < 0.7:
        op = g.pick((X.CURRENT_RESERVATION, X.MAXIMUM_RESERVATION, X.MAXIMUM_GPFN))
        return (X.MEMORY_OP, 0, op, where, 0, 0, 0, 0), (DOMID_SELF,)
    frame = d.first + g.spare_page() if r < 0.95 else g.odd_frame()
    level = g.type[frame] if L1 <= g.type[frame] <= L4 and g.type_count[frame] else level_of(g, frame)
    command = X.UNPIN if g.pinned[frame] and g.random() < 0.7 else X.PIN_L1 + level - 1
    return (X.MMUEXT_OP, 0, where, 1, 0, DOMID_SELF, 0, 0), (command, frame, 0)


@move(26, NAME)
def multicall(g: Generator) -> Sequence[Action]:
    """A few calls in one, some with lists of their own."""
    d = g.d
    if not keeps_buffers(g):
        return [update_with(g, d.home + (p << PAGE), d.first + p << PAGE | 0x67, 2) for p in BUFFER_PAGES]
    calls: list[int] = []
    data: list[tuple[int, tuple[int, ...]]] = []
    n = g.pick((1, 1, 2, 2, 3, 5))
    for i in range(n):
        r = g.random()
        call: tuple[int, ...]
        if r < 0.6:
            call = (X.UPDATE_VA_MAPPING, 0, mapped_va(g), good_entry(g) if r < 0.5 else odd_entry(g), g.bits(2), 0, 0, 0)
        elif r < 0.7:
            call = (g.pick((63, 64, 255, ONES)), 0, mapped_va(g), 0, 0, 0, 0, 0)
        elif r < 0.75:
            call = (X.MULTICALL, 0, d.home, 1, 0, 0, 0, 0)
        else:
            where = d.home + 0x2800 + 64 * i
            call, words = listed_call(g, where)
            if words:
                data.append((where, words))
        calls.extend(call)
    where = d.home + 0x3000 + 64 * g.below(32)
    return (Hypercall(d.dom, X.MULTICALL, (where, n), (*data, (where, tuple(calls)))),)


@move(6, NAME)
def multicall_odd(g: Generator) -> Sequence[Action]:
    """A multicall of none, or of a list that cannot be read."""
    return (Hypercall(g.d.dom, X.MULTICALL, (g.pick((*NOWHERE[:3], *IN_XEN[1:])), g.pick((0, 1, 2)))),)


@move(8, NAME)
def unknown_hypercall(g: Generator) -> Sequence[Action]:
    """Numbers that are not assigned."""
    return (Hypercall(g.d.dom, g.pick((63, 64, 255, 0x100 | X.UPDATE_VA_MAPPING, ONES)), (g.bits(64), g.bits(64))),)


# --- accesses ----------------------------------------------------------------------------------------------------------------

@move(70, NAME)
def touch(g: Generator) -> Sequence[Action]:
    """Load and store through mappings in use."""
    dom, va, r = g.d.dom, target_va(g), g.random()
    offset = g.pick((0, 8, 0xFF8, 16, 1, 0xFFA))
    if r < 0.4:
        return (Load(dom, va + offset),)
    return (Store(dom, va + offset, g.bits(64) if r < 0.7 else good_entry(g)), Load(dom, va + (offset & ~7)))


@move(16, NAME)
def touch_edges(g: Generator) -> Sequence[Action]:
    """Accesses at the limits: of what is canonical, of pages, of what is mapped, in the published window, on page tables."""
    d = g.d
    window = 0xFFFF800000000000
    va = g.pick((*NOWHERE, 0x00007FFFFFFFFFFC, window, window + 8 * d.first, d.windows[0] - 4, d.home - 4,
                 d.va_of(d.first + d.tables) + 8 * g.below(512), d.va_of(d.end - 1) + 8 * g.pick((0, 255, 511))))
    return (Load(d.dom, va) if g.random() < 0.6 else Store(d.dom, va, g.bits(64)),)


@move(26, NAME)
def touch_as_user(g: Generator) -> Sequence[Action]:
    """Applications load and store, through a root table of their own if there is one."""
    d = g.d
    if not g.machine.s.has_user[d.dom]:  # type: ignore[index]
        return (extended(g, X.NEW_USER_BASEPTR, d.end - 1),)
    va = target_va(g) + g.pick((0, 8, 0xFF8, 0xFFC))
    return (Load(d.dom, va, True) if g.random() < 0.5 else Store(d.dom, va, g.bits(64), True),)


@move(16, NAME)
def execute(g: Generator) -> Sequence[Action]:
    """Call a far return: in the page of them, where that page is mapped too, without NX or with it."""
    d, r = g.d, g.random()
    if r < 0.3:
        flags = g.pick((0x65, 0x5, NX | 0x65, 0x67))
        return (update(g, g.pick(d.windows), d.first + CODE_PAGE << PAGE | flags),)
    closed = [va for va in d.windows if entry_of(g, va) & (NX | P) == NX | P]
    va = d.home + (CODE_PAGE << PAGE) + g.below(4096) if r < 0.6 else g.pick(closed or (*d.windows, *NOWHERE))
    user = g.random() < 0.3 and bool(g.machine.s.has_user[d.dom])  # type: ignore[index]
    if g.machine.legal_execute(d.dom, va, user):
        return (Execute(d.dom, va, user),)
    return (Load(d.dom, va & ~7),)


@move(3, NAME)
def odd_data(g: Generator) -> Sequence[Action]:
    """A hypercall whose arguments cannot be written."""
    d = g.d
    nowhere = g.pick((d.va_of(d.end - 1), 0x1000, d.home + (3 << 21)))
    return (Hypercall(d.dom, X.MMU_UPDATE, (d.home, 0, 0, DOMID_SELF), ((nowhere, (0,)),)),)


# --- foreign domains ---------------------------------------------------------------------------------------------------------

def usually_privileged(g: Generator) -> bool:
    """Domain 0 acts on others all the time, others try it now and then."""
    return g.d.dom == 0 or g.random() < 0.1


@move(26, NAME)
def map_foreign(g: Generator) -> Sequence[Action]:
    """Map another domain's frames, named by its number, with mmu_update or update_va_mapping_otherdomain."""
    o, r = g.other(), g.random()
    if not usually_privileged(g):
        return map_something(g)
    frame = o.first + (g.pick(o.hot) if r < 0.7 else g.pick((o.tables, o.pages - 1, *o.spares[:2])))
    entry = frame << PAGE | (0x67 if r < 0.5 or g.random() < 0.1 else 0x65)
    va = g.pick(g.d.windows[:4])
    domain = o.dom if o is not g.d else DOMID_SELF
    if g.random() < 0.7:
        return (Hypercall(g.d.dom, X.UPDATE_VA_MAPPING_OTHERDOMAIN, (va, entry, FLUSHES[int(g.random() * 8)], domain)),)
    table, slot = slot_of(g, va)
    return (mmu_update(g, (at(table, slot), entry), domain),)


@move(30, NAME)
def edit_foreign(g: Generator) -> Sequence[Action]:
    """Change another domain's tables, and words of its frames, on its behalf."""
    d, o = g.d, g.other()
    if not usually_privileged(g) or o is d:
        return batch_good(g)
    r = g.random()
    both = o.dom | o.dom + 1 << 16
    if r < 0.35:
        target = o.first + g.pick(o.hot) if g.random() < 0.7 else d.first + g.pick(d.hot)
        return (mmu_update(g, (at(o.first + o.tables, o.pages + 1 + g.below(4)), target << PAGE | g.pick((0x67, 0x65))),
                           both if g.random() < 0.7 else DOMID_SELF | o.dom + 1 << 16),)
    if r < 0.5:
        return (mmu_update(g, (at(o.end - 3, g.pick((1, 2))), g.pick((0, o.first + g.pick(o.spares) << PAGE | 7))),
                           both if g.random() < 0.7 else DOMID_SELF | o.dom + 1 << 16),)
    if r < 0.65:
        return (mmu_update(g, (at(o.first + g.below(o.pages), 0, MACHPHYS), g.bits(64)), o.dom if g.random() < 0.8 else both),)
    if r < 0.8:
        return (mmu_update(g, (at(o.first + g.pick(o.hot), g.below(512)), g.bits(64)), both),)
    kind = g.pick((X.PIN_L1, X.PIN_L1, X.UNPIN, X.PIN_L4, X.CLEAR_PAGE, X.NEW_BASEPTR, X.TLB_FLUSH_ALL))
    frame = o.end - 1 if kind in (X.PIN_L4, X.NEW_BASEPTR) else o.first + g.pick(o.spares)
    return (extended(g, kind, frame, 0, o.dom),)


@move(6, NAME)
def other_domain_odd(g: Generator) -> Sequence[Action]:
    """update_va_mapping_otherdomain with domains that are none, and reservations of others."""
    d, r = g.d, g.random()
    if r < 0.5:
        domain = g.pick((d.dom, DOMID_SELF, DOMID_IO, DOMID_XEN, 77, NOBODY, g.other().dom))
        return (Hypercall(d.dom, X.UPDATE_VA_MAPPING_OTHERDOMAIN, (g.pick(d.windows), odd_entry(g), 2, domain)),)
    o = g.other()
    return (memory_op(g, g.pick((X.DECREASE, X.INCREASE, X.POPULATE)), (o.first + g.pick(o.hot),), 1, domain=o.dom),)


@move(34, NAME)
def linear_chain(g: Generator) -> Sequence[Action]:
    """Tables of one level use each other: a table that is used so may not use others, nor one that uses others be used."""
    d = g.d
    tables = [f for f in (*(d.first + p for p in d.spares), d.end - 1, d.end - 2, d.end - 3)
              if L1 < g.type[f] <= L4 and g.type_count[f]]
    by_level = [[f for f in tables if g.type[f] == level] for level in (4, 3, 2)]
    same = next((fs for fs in by_level if len(fs) > 1), [])
    if len(same) < 2:
        return advance_table(g)
    table, to, users = g.pick(same), g.pick(same), [f for f in same if g.linear[f] > 0]
    if users and g.random() < 0.6:
        to = g.pick(users)
        table = g.pick([f for f in same if f != to])
    return (mmu_update(g, (at(table, g.pick((3, 4, 255, 509))), to << PAGE | g.pick((1, 5, 5, 7)))),)


@move(10, NAME)
def soft_bits_of_upper(g: Generator) -> Sequence[Action]:
    """Change bits of an upper entry that move no reference, RW among those that do."""
    table, level = upper_table(g)
    slot = HOME_SLOT[level]
    old = g.word[table, slot]
    if not old & P:
        return batch_good(g)
    return (mmu_update(g, (at(table, slot, command(g)), old ^ g.pick((A, D, 0x200, GUEST_KERNEL, AVAIL, A | D))),),)
