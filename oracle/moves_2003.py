"""The moves of xen-2003 programs: each looks at the state and gives the next few actions of the domain whose turn it is."""
from collections.abc import Sequence
from typing import Final

from oracle.generate import BUFFER_PAGES, CODE_PAGE, Generator, move
from spec.abi import L1, L2, PSE, RW, US, WRITABLE, A, D, G, P, Xen2003
from spec.vocabulary import Action, Execute, Hypercall, Load, Store

NAME: Final = "xen-2003"
MMU_UPDATE: Final = Xen2003.MMU_UPDATE
UVM: Final = Xen2003.UPDATE_VA_MAPPING
MEM_OP: Final = Xen2003.DOM_MEM_OP
MULTICALL: Final = Xen2003.MULTICALL
NORMAL, UNCHECKED, MACHPHYS, EXTENDED = Xen2003.NORMAL, Xen2003.UNCHECKED, Xen2003.MACHPHYS, Xen2003.EXTENDED
PIN_L1, PIN_L2, UNPIN, NEW_BASEPTR = Xen2003.PIN_L1, Xen2003.PIN_L2, Xen2003.UNPIN, Xen2003.NEW_BASEPTR
TLB_FLUSH, INVLPG, SET_LDT = Xen2003.TLB_FLUSH, Xen2003.INVLPG, Xen2003.SET_LDT
END: Final = Xen2003.GUEST_END
HOLE: Final = Xen2003.HOLE
LINEAR: Final = Xen2003.LINEAR_SLOT << 22       # Xen's self-map
BOOT_SLOT: Final = Xen2003.BASE >> 22           # of the L2: where a domain's memory is mapped

WRITABLE_FLAGS: Final = (0x63, 0x63, 0x3, 0x7, 0x67, 0x27, 0x43, 0x23, 0xE63, 0x1B)     # of an L1 entry that lets write
READ_FLAGS: Final = (0x61, 0x1, 0x5, 0x25, 0x21, 0x65, 0x41, 0x601)
TABLE_FLAGS: Final = (0x67, 0x7, 0x5, 0x1, 0x3, 0x27, 0x207, 0x7)                       # of an L2 entry
FLUSHES: Final = (0, 0, 0, 1, 2, 2, 3, 1)       # flags of update_va_mapping; 0 leaves stale translations
SLOTS: Final = (0, 1, 2, 767, 769, 1006, 1007)  # of the L2, where tables are linked: both ends of what is the guest's
SOFT: Final = (A, D, A | D, US, 0x8, 0x10, 0x200, 0x400, 0x800, 0xE00)     # bits that move no reference
MISSING: Final = 0


# --- what the tables say now -------------------------------------------------------------------------------------------------

def entry_of(g: Generator, va: int) -> int:
    """The L1 entry that maps an address for the domain now; MISSING without one."""
    word = g.word
    pde = word[g.base[g.d.dom], va >> 22]
    if not pde & P or pde & PSE:
        return MISSING
    return word[pde >> 12, va >> 12 & 1023]


def is_writable(g: Generator, va: int) -> bool:
    """A store there would succeed."""
    return entry_of(g, va) & 3 == 3 and g.word[g.base[g.d.dom], va >> 22] & RW != 0


def home_of(g: Generator, frame: int) -> int:
    """Where a frame of the domain's is mapped at boot; for others' frames where domain 0 looks for them: a window."""
    d = g.d
    if d.first <= frame <= d.end:
        return d.va_of(frame)
    for va in d.windows:
        if entry_of(g, va) >> 12 == frame:
            return va
    return d.windows[0]


def slot_address(g: Generator, va: int) -> int:
    """The linear address of the L1 entry that maps `va`."""
    table = g.word[g.base[g.d.dom], va >> 22] >> 12
    return home_of(g, table) + (va >> 10 & 0xFFC)


def root_address(g: Generator, slot: int) -> int:
    """The linear address of an entry of the present L2."""
    return home_of(g, g.base[g.d.dom]) + 4 * slot


def is_linked(g: Generator, slot: int) -> bool:
    """The present L2 has a table in this slot."""
    return g.word[g.base[g.d.dom], slot] & P != 0


def target_va(g: Generator) -> int:
    """A page address whose L1 entry the domain may change: a window, a page of data, or below a linked table."""
    d, r = g.d, g.random()
    if r < 0.62:
        return d.windows[int(g.random() * len(d.windows))]
    if r < 0.82:
        return d.home + (g.hot_page() << 12)
    slot = SLOTS[int(g.random() * len(SLOTS))]
    if is_linked(g, slot):
        return slot << 22 | g.pick((0, 1, 5, 1023)) << 12
    return d.windows[0]


# --- entries -----------------------------------------------------------------------------------------------------------------

def good_entry(g: Generator) -> int:
    """An L1 entry that is most likely allowed."""
    r = g.random()
    if r < 0.6:
        return g.data_frame() << 12 | WRITABLE_FLAGS[int(g.random() * 10)]
    if r < 0.85:
        d = g.d
        return d.first + int(g.random() * (d.pages + 1)) << 12 | READ_FLAGS[int(g.random() * 8)]
    return 0 if r < 0.95 else g.bits(32) & ~P


def odd_entry(g: Generator) -> int:
    """An L1 entry at some edge: it may be allowed, and mostly is not."""
    r = g.random()
    if r < 0.65:
        return (g.odd_frame() << 12 | (WRITABLE_FLAGS if g.random() < 0.6 else READ_FLAGS)[int(g.random() * 8)]) & 0xFFFFFFFF
    if r < 0.85:
        return g.data_frame() << 12 | g.pick((1, 3, 0x63)) | g.pick((PSE, G, PSE | G))
    if r < 0.95:
        return g.d.first + g.spare_page() << 12 | g.pick((1, 3, 0x63, 0x103))
    return g.bits(32)


def good_table_entry(g: Generator, root: int) -> int:
    """An L2 entry that is most likely allowed in this table: a table, a frame that can become one, the table itself, nothing."""
    r = g.random()
    if r < 0.25:
        return 0
    if r < 0.35:
        return root << 12 | g.pick((1, 5, 0x25))
    d = g.d
    for _ in range(3):
        frame = d.first + g.spare_page()
        if not g.type_count[frame] or (g.type[frame] == L1):
            return frame << 12 | TABLE_FLAGS[int(g.random() * 8)]
    return d.first + d.tables << 12 | TABLE_FLAGS[int(g.random() * 8)]


def odd_table_entry(g: Generator, root: int) -> int:
    """An L2 entry at some edge."""
    r = g.random()
    if r < 0.2:
        return root << 12 | g.pick((3, 7, 0x67, 0x83, 0x101))
    if r < 0.4:
        return g.data_frame() << 12 | g.pick(TABLE_FLAGS)
    if r < 0.6:
        return g.d.first + g.d.tables << 12 | g.pick((1, 7)) | g.pick((PSE, G))
    if r < 0.9:
        return (g.odd_frame() << 12 | g.pick(TABLE_FLAGS)) & 0xFFFFFFFF
    return g.bits(32)


# --- requests of mmu_update: (ptr, val) --------------------------------------------------------------------------------------

def normal_l1(g: Generator) -> tuple[int, int]:
    """An L1 entry in use is replaced."""
    va = target_va(g)
    return slot_address(g, va), good_entry(g)


def normal_l2(g: Generator) -> tuple[int, int]:
    """An entry of an L2 is replaced: of the present one, or of another."""
    root = g.base[g.d.dom]
    if g.random() < 0.2:
        page = g.d.first + g.spare_page()
        root = page if g.type[page] == L2 and g.type_count[page] else root
    return home_of(g, root) + 4 * SLOTS[int(g.random() * 7)], good_table_entry(g, root)


def raw_store(g: Generator) -> tuple[int, int]:
    """A plain store through mmu_update into a frame without typed references."""
    d = g.d
    for _ in range(3):
        page = g.spare_page() if g.random() < 0.7 else g.hot_page()
        if not g.type_count[d.first + page] and entry_of(g, d.home + (page << 12)) & P:
            slot = g.pick((0, 1, 5, 768, 1007, 1008, 1023))
            return d.home + (page << 12) + 4 * slot, good_entry(g) if g.random() < 0.8 else odd_entry(g)
    return normal_l1(g)


def table_frame(g: Generator) -> int:
    """A frame that is, or could be, a page table."""
    r, d = g.random(), g.d
    if r < 0.7:
        return d.first + g.spare_page()
    return d.first + d.tables + int(g.random() * (d.pages - d.tables))


def pin(g: Generator) -> tuple[int, int]:
    """A frame is pinned or unpinned, whichever its state suggests."""
    d = g.d
    for _ in range(4):
        frame = table_frame(g)
        if g.pinned[frame]:
            if g.random() < 0.5:
                return frame << 12 | EXTENDED, UNPIN
        elif not g.type_count[frame]:
            return frame << 12 | EXTENDED, PIN_L2 if g.word[frame, BOOT_SLOT] & P else PIN_L1
        elif g.type[frame] in (L1, L2):
            return frame << 12 | EXTENDED, PIN_L1 if g.type[frame] == L1 else PIN_L2
    return d.first + d.pages - 1 << 12 | EXTENDED, PIN_L2 if not g.pinned[d.end - 1] else UNPIN


def new_base(g: Generator) -> tuple[int, int]:
    """The base moves to another L2 that keeps the domain's memory mapped, or stays."""
    d = g.d
    for _ in range(4):
        frame = d.first + g.spare_page()
        if g.type[frame] == L2 and g.type_count[frame] and g.word[frame, BOOT_SLOT] & P:
            return frame << 12 | EXTENDED, NEW_BASEPTR
    return (d.end - 1) << 12 | EXTENDED, NEW_BASEPTR


def machphys(g: Generator) -> tuple[int, int]:
    """A machine-to-physical word of an own frame is set."""
    return g.d.first + g.below(g.d.pages + 1) << 12 | MACHPHYS | g.below(1024) << 2, g.bits(32)


def flush(g: Generator) -> tuple[int, int]:
    """A flush of all, or of one page."""
    if g.random() < 0.5:
        return EXTENDED, TLB_FLUSH
    return EXTENDED | g.below(4096) & ~3, target_va(g) | INVLPG


GOOD: Final = (normal_l1, normal_l1, normal_l1, normal_l1, normal_l2, raw_store, pin, new_base, machphys, flush)


def good_request(g: Generator) -> tuple[int, int]:
    """A request that most likely succeeds."""
    return GOOD[int(g.random() * 10)](g)


def odd_request(g: Generator) -> tuple[int, int]:
    """A request that most likely fails, each in its own way."""
    r = g.random()
    d = g.d
    root = g.base[d.dom]
    if r < 0.25:
        return slot_address(g, target_va(g)), odd_entry(g)
    if r < 0.37:
        return root_address(g, g.pick(SLOTS)), odd_table_entry(g, root)
    if r < 0.45:                                # Xen's slots
        return root_address(g, g.pick((1008, 1015, 1020, 1021, 1023))), g.pick((0, good_table_entry(g, root)))
    if r < 0.53:                                # a pointer to nothing, into the hole, or through the published window
        nowhere = (0, 0x400000, d.windows[1], HOLE, HOLE + 8, END - 4, END, 0xFFFFFFFC)
        linear = LINEAR | target_va(g) >> 10 & ~3   # Xen's own map of the caller's tables
        return g.pick((*nowhere, linear, linear, linear)) & ~3, good_entry(g)
    if r < 0.59:                                # a frame in use as something else
        return d.home + (g.hot_page() << 12) + 4 * g.below(1024), good_entry(g)
    if r < 0.67:
        where = g.pick((d.home, d.windows[0], slot_address(g, target_va(g)), d.home + (g.spare_page() << 12)))
        return where | UNCHECKED, good_entry(g)
    if r < 0.72:
        return (g.odd_frame() << 12 | MACHPHYS) & 0xFFFFFFFF, g.bits(32)
    frame = g.odd_frame() if r < 0.82 else table_frame(g) if r < 0.95 else d.first + g.hot_page()
    command = g.pick((PIN_L1, PIN_L2, PIN_L1, PIN_L2, UNPIN, UNPIN, NEW_BASEPTR, TLB_FLUSH, INVLPG, 2, 3, 9, 255))
    return (frame << 12 | EXTENDED) & 0xFFFFFFFF, g.bits(24) << 8 | command if g.random() < 0.1 else command


# --- update_va_mapping -------------------------------------------------------------------------------------------------------

def update(g: Generator, va: int, entry: int) -> Hypercall:
    """update_va_mapping with flags as they come."""
    return Hypercall(g.d.dom, UVM, (va >> 12, entry, FLUSHES[int(g.random() * 8)]))


def update_with(g: Generator, va: int, entry: int, flags: int) -> Hypercall:
    """update_va_mapping with these flags."""
    return Hypercall(g.d.dom, UVM, (va >> 12, entry, flags))


@move(80, NAME)
def map_something(g: Generator) -> Sequence[Action]:
    """Map a frame where that is most likely allowed."""
    return (update(g, target_va(g), good_entry(g)),)


@move(25, NAME)
def unmap(g: Generator) -> Sequence[Action]:
    """Take a mapping away, perhaps the frame's last reference."""
    return (update(g, target_va(g), g.bits(32) & ~P if g.random() < 0.1 else 0),)


@move(35, NAME)
def flip_writable(g: Generator) -> Sequence[Action]:
    """Change nothing of an entry but RW."""
    va = target_va(g)
    return (update(g, va, entry_of(g, va) ^ RW),)


@move(35, NAME)
def change_soft_bits(g: Generator) -> Sequence[Action]:
    """Change bits of an entry that move no reference, sometimes with one that is forbidden."""
    va = target_va(g)
    soft = SOFT[int(g.random() * 10)]
    return (update(g, va, entry_of(g, va) ^ (soft if g.random() < 0.85 else soft | g.pick((PSE, G, PSE | G)))),)


@move(30, NAME)
def map_odd(g: Generator) -> Sequence[Action]:
    """Map what is at the edge of what may be mapped."""
    return (update(g, target_va(g), odd_entry(g)),)


@move(12, NAME)
def update_odd_address(g: Generator) -> Sequence[Action]:
    """update_va_mapping of addresses that have no L1 entry to change: in the hole, without a table, beyond 32 bits."""
    page = g.pick((HOLE >> 12, (HOLE >> 12) - 1, END >> 12, 0xFF000, 0xFFFFF, 0x100000, 0x100000 | g.d.windows[0] >> 12,
                   0xFFFFFFFF, g.pick(SLOTS) << 10, 0, 0x100))
    return (Hypercall(g.d.dom, UVM, (page, g.pick((0, good_entry(g))), g.bits(2))),)


@move(25, NAME)
def restore_home(g: Generator) -> Sequence[Action]:
    """Map a page of the domain again as at boot, so that a program does not run dry of memory."""
    d, kinds = g.d, g.type
    for page in (g.hot_page(), g.hot_page(), g.spare_page(), *d.hot[:3]):
        va, frame = d.home + (page << 12), d.first + page
        entry = entry_of(g, va)
        if (entry >> 12 != frame or not entry & RW) and page < d.tables:
            return (update(g, va, frame << 12 | (0x63 if not g.type_count[frame] or kinds[frame] == WRITABLE else 0x61)),)
    return map_something(g)


@move(10, NAME)
def update_through_self_map(g: Generator) -> Sequence[Action]:
    """Map the L2 into itself, and change its entries as if they were L1 entries."""
    d, slot = g.d, g.pick((0, 2, 1007))
    root = g.base[d.dom]
    actions: list[Action] = []
    if g.word[root, slot] >> 12 != root:
        actions.append(g.list_call(MMU_UPDATE, (root_address(g, slot), root << 12 | g.pick((1, 5))), 1))
    target = g.pick((slot, g.pick(SLOTS), BOOT_SLOT, 1008, 1020))
    old = g.word[root, target]
    entry = old ^ g.pick(SOFT) & ~US
    if target != BOOT_SLOT:
        entry = g.pick((old ^ RW, entry, good_table_entry(g, root), odd_table_entry(g, root)))
    actions.append(update(g, slot << 22 | target << 12, entry))
    if g.random() < 0.3:
        actions.append(Load(d.dom, slot << 22 | slot << 12 | target << 2))
        actions.append(Store(d.dom, slot << 22 | slot << 12 | target << 2, good_entry(g)))
    return actions


# --- mmu_update --------------------------------------------------------------------------------------------------------------

@move(75, NAME)
def batch_good(g: Generator) -> Sequence[Action]:
    """A batch of requests that most likely all succeed."""
    r = g.random()
    if r < 0.6:
        return (g.list_call(MMU_UPDATE, good_request(g), 1),)
    if r < 0.85:
        return (g.list_call(MMU_UPDATE, (*good_request(g), *normal_l1(g)), 2),)
    return (g.list_call(MMU_UPDATE, (*normal_l1(g), *good_request(g), *normal_l1(g), *machphys(g)), 4),)


@move(25, NAME)
def batch_one_bad(g: Generator) -> Sequence[Action]:
    """A batch with a bad entry: alone, or between good ones."""
    if g.random() < 0.5:
        return (g.list_call(MMU_UPDATE, odd_request(g), 1),)
    return (g.list_call(MMU_UPDATE, (*normal_l1(g), *odd_request(g), *normal_l1(g)), 3),)


@move(30, NAME)
def change_root(g: Generator) -> Sequence[Action]:
    """Link, relink or unlink a table, and perhaps look through it at once."""
    request = normal_l2(g)
    call = g.list_call(MMU_UPDATE, request, 1)
    if g.random() < 0.5:
        return (call,)
    return (call, Load(g.d.dom, (request[0] >> 2 & 1023) << 22 | g.pick((0, 0x1000, 0x3FF000))))


@move(10, NAME)
def change_soft_bits_of_root(g: Generator) -> Sequence[Action]:
    """Change bits of an entry of the present L2 that move no reference, sometimes with one that is forbidden."""
    root = g.base[g.d.dom]
    slot = next((s for s in SLOTS if is_linked(g, s)), BOOT_SLOT)
    soft = g.pick(SOFT) & ~US if slot == BOOT_SLOT else g.pick((*SOFT, RW))
    forbidden = g.pick((PSE, G)) if g.random() < 0.3 else 0
    return (g.list_call(MMU_UPDATE, (root_address(g, slot), g.word[root, slot] ^ (soft | forbidden)), 1),)


@move(15, NAME)
def flush_all(g: Generator) -> Sequence[Action]:
    """A flush by itself."""
    return (g.list_call(MMU_UPDATE, flush(g), 1),)


@move(14, NAME)
def set_ldt(g: Generator) -> Sequence[Action]:
    """SET_LDT with bases and sizes around what is allowed."""
    r = g.random()
    if r < 0.8:
        base = g.pick(g.d.windows) if r < 0.7 else 0
        entries = g.pick((0, 1, 512, 8191, 8192, 8192)) if g.random() < 0.85 else g.pick((8193, 8194, 0xFFFFFF))
    else:
        base = g.pick((g.d.windows[0] + g.pick((4, 8, 0x800, 3)), END - 0x10000, END - 0x1000, END, HOLE, 0xFFFFF000))
        entries = g.pick((0, 1, 512, 513, 8192, 8193, 0xFFFFFF))
    return (g.list_call(MMU_UPDATE, (base & ~3 | EXTENDED, entries << 8 | SET_LDT), 1),)


@move(10, NAME)
def odd_list(g: Generator) -> Sequence[Action]:
    """A list that ends, or lies, where it cannot be read; a count that is none."""
    d, r = g.d, g.random()
    request = (*normal_l1(g), *flush(g))
    if r < 0.4:                                 # the mapped memory ends in the list
        end = d.windows[0] if not entry_of(g, d.windows[0]) & P else d.windows[-1] + 0x1000
        at = end - g.pick((4, 8, 12, 16))
        words = request[:(end - at) // 4]
        if not is_writable(g, at):
            return (Hypercall(d.dom, MMU_UPDATE, (at, 2)),)
        return (Hypercall(d.dom, MMU_UPDATE, (at, g.pick((1, 2, 3))), ((at, words),)),)
    if r < 0.7:                                 # the pointer rule
        at = g.pick((END - 8, END - 4, END, HOLE, 0xFFFFFFF8, 0xFFFFFFFF, 0, d.windows[-1] + 0x1000))
        return (Hypercall(d.dom, MMU_UPDATE, (at, g.pick((1, 2, 0)))),)
    at = g.buffer(6)
    if r < 0.9:
        return (Hypercall(d.dom, MMU_UPDATE, (at, g.pick((0, 0xFFFFFFFF, 0x80000000, 0xFFFF0000))), ((at, request),)),)
    return (Hypercall(d.dom, MMU_UPDATE, (at, 0x7FFFFFFF), ((at, (*request, EXTENDED, 255)),)),)


@move(6, NAME)
def batch_that_changes_itself(g: Generator) -> Sequence[Action]:
    """A batch whose requests rewrite a later request of it, or the mapping that it is read through."""
    d = g.d
    page = g.hot_page()
    frame, va = d.first + page, d.home + (page << 12)
    if not is_writable(g, va) or entry_of(g, va) >> 12 != frame or g.type_count[frame] != 1:
        return map_something(g)
    later = normal_l1(g)
    if g.random() < 0.5:                        # the list lies in a frame without typed references: a plain store reaches it
        words = (va + 20, later[1], va + 16, later[0], *flush(g))
        return (Hypercall(d.dom, UVM, (va >> 12, frame << 12 | 0x61, 2), ((va, words),)),
                Hypercall(d.dom, MMU_UPDATE, (va, 3)), update_with(g, va, frame << 12 | 0x63, 2))
    remap = slot_address(g, va), g.pick((d.first + d.hot[1 % len(d.hot)] << 12 | 0x61, 0, frame << 12 | 0x61))
    return (Hypercall(d.dom, MMU_UPDATE, (va, 2), ((va, (*remap, *later)),)), update_with(g, va, frame << 12 | 0x63, 3))


def request_at(g: Generator, va: int, value: int) -> Hypercall:
    """One NORMAL request by itself."""
    return g.list_call(MMU_UPDATE, (va & ~3, value), 1)


# --- the life of page tables -------------------------------------------------------------------------------------------------

def table_contents(g: Generator, page: int) -> tuple[tuple[int, tuple[int, ...]], ...]:
    """What to store into a page that is to become a table: entries of an L1, or an L2 that keeps the domain's memory mapped."""
    d, r = g.d, g.random()
    va = d.home + (page << 12)
    if r < 0.3:
        return ()
    if r < 0.65:
        slot = g.pick((0, 1, 5, 1020))
        entries = [good_entry(g) for _ in range(g.pick((1, 2, 3)))]
        if g.random() < 0.15:
            entries.append(odd_entry(g))
        return ((va + 4 * slot, tuple(entries)),)
    root, n = g.base[d.dom], (d.pages >> 10) + 1
    kept = tuple(g.word[root, BOOT_SLOT + i] for i in range(n))
    contents = [(va + 4 * BOOT_SLOT, kept)]
    if g.random() < 0.5:
        frame = d.first + page
        entry = odd_table_entry(g, frame) if g.random() < 0.2 else good_table_entry(g, frame)
        contents.append((va + 4 * g.pick((0, 1, 1007, 1008, 1023)), (entry,)))
    return tuple(contents)


@move(70, NAME)
def advance_table(g: Generator) -> Sequence[Action]:
    """Take a spare page one step further: fill it and map it read-only, pin it, link it, use it as base, free it again."""
    d, page = g.d, g.spare_page()
    frame, va = d.first + page, d.home + (page << 12)
    entry = entry_of(g, va)
    kind, uses = g.type[frame], g.type_count[frame]
    if entry >> 12 == frame and entry & RW:     # data still
        return (Hypercall(d.dom, UVM, (va >> 12, g.pick((0x61, 0x61, 0x61, 0x1, 0)) and frame << 12 | 0x61, g.pick((2, 2, 1, 0))),
                          table_contents(g, page) if is_writable(g, va) else ()),)
    if not entry & P or entry >> 12 != frame:
        return (update(g, va, frame << 12 | 0x61),)
    if not uses:
        is_root = g.word[frame, BOOT_SLOT] & P
        if g.random() < 0.15:
            return (update(g, va, frame << 12 | 0x63),)
        if not is_root and g.random() < 0.4:
            return (g.list_call(MMU_UPDATE, (root_address(g, g.pick(SLOTS)), frame << 12 | g.pick(TABLE_FLAGS)), 1),)
        return (g.list_call(MMU_UPDATE, (frame << 12 | EXTENDED, PIN_L2 if is_root else PIN_L1), 1),)
    r = g.random()
    if kind == L2 and r < 0.45 and g.word[frame, BOOT_SLOT] & P:
        return (g.list_call(MMU_UPDATE, (frame << 12 | EXTENDED, NEW_BASEPTR), 1),)
    if kind == L2 and r < 0.6:
        return (g.list_call(MMU_UPDATE, (va + 4 * g.pick(SLOTS), good_table_entry(g, frame)), 1),)
    if kind == L1 and r < 0.3:
        return (g.list_call(MMU_UPDATE, (root_address(g, g.pick(SLOTS)), frame << 12 | g.pick(TABLE_FLAGS)), 1),)
    if kind == L1 and r < 0.6:
        return (g.list_call(MMU_UPDATE, (va + 4 * g.pick((0, 1, 5, 1023)), good_entry(g)), 1),)
    if g.pinned[frame] and r < 0.8:
        return (g.list_call(MMU_UPDATE, (frame << 12 | EXTENDED, UNPIN), 1),)
    return unlink(g)


def unlink(g: Generator) -> Sequence[Action]:
    """Take a table out of the present L2."""
    for slot in SLOTS:
        if is_linked(g, slot):
            return (g.list_call(MMU_UPDATE, (root_address(g, slot), 0), 1),)
    return (g.list_call(MMU_UPDATE, new_base(g), 1),)


@move(14, NAME)
def retype_at_once(g: Generator) -> Sequence[Action]:
    """Data to table to data in few steps: a missed reference, or a forgotten flush, shows at the end."""
    d, page = g.d, g.spare_page()
    frame, va = d.first + page, d.home + (page << 12)
    if not is_writable(g, va) or entry_of(g, va) >> 12 != frame or g.type_count[frame] != 1:
        return advance_table(g)
    contents = table_contents(g, page)
    level = PIN_L2 if any(at == va + 4 * BOOT_SLOT for at, _ in contents) else PIN_L1
    wrong = g.random() < 0.15
    pinned = (frame << 12 | EXTENDED, level ^ wrong)
    actions: list[Action] = [Hypercall(d.dom, UVM, (va >> 12, frame << 12 | 0x61, g.pick((0, 2))), contents)]
    if g.random() < 0.5:
        actions.append(g.list_call(MMU_UPDATE, pinned, 1))
        actions.append(Store(d.dom, va + 4 * g.pick((0, 768)), good_entry(g)))
        actions.append(g.list_call(MMU_UPDATE, (frame << 12 | EXTENDED, UNPIN), 1))
    else:
        actions.append(g.list_call(MMU_UPDATE, (*pinned, frame << 12 | EXTENDED, UNPIN), 2))
    actions.append(update(g, va, frame << 12 | 0x63))
    return actions


# --- stale translations ------------------------------------------------------------------------------------------------------

def mapped_window(g: Generator) -> tuple[list[Action], int, int]:
    """A window where a page of data is mapped writable: (what to do first, address, frame)."""
    va = g.pick(g.d.windows)
    entry = entry_of(g, va)
    if entry & 3 == 3 and g.owner[entry >> 12] == g.d.dom:
        return [], va, entry >> 12
    frame = g.data_frame()
    return [update_with(g, va, frame << 12 | g.pick((0x63, 0x3, 0x67)), 2)], va, frame


@move(14, NAME)
def stale_store(g: Generator) -> Sequence[Action]:
    """Use a mapping, take it away or make it read-only without a flush, and use it again."""
    actions, va, frame = mapped_window(g)
    dom, r = g.d.dom, g.random()
    at = va + 4 * g.below(4)
    actions.append(Store(dom, at, g.bits(32)) if r < 0.6 else Load(dom, at))
    actions.append(update_with(g, va, g.pick((0, frame << 12 | 0x61, g.data_frame() << 12 | 0x63)), g.pick((0, 0, 0, 1, 2))))
    actions.append(Store(dom, at, g.bits(32)) if r > 0.3 else Load(dom, at))
    if g.random() < 0.5:
        actions.append(Load(dom, at))
    if g.random() < 0.3:
        actions.append(g.list_call(MMU_UPDATE, (EXTENDED, va | INVLPG) if g.random() < 0.5 else (EXTENDED, TLB_FLUSH), 1))
        actions.append(Store(dom, at, g.bits(32)))
    return actions


@move(14, NAME)
def stale_retype(g: Generator) -> Sequence[Action]:
    """Take every mapping of a frame away without a flush, let it become a table, and store through the stale translation."""
    d, page = g.d, g.spare_page()
    frame, va = d.first + page, d.home + (page << 12)
    if not is_writable(g, va) or entry_of(g, va) >> 12 != frame or g.type_count[frame] != 1:
        return advance_table(g)
    at = va + 4 * g.pick((0, 1, 5, 768))
    first = Store(d.dom, at, 0)
    gone = update_with(g, va, g.pick((0, frame << 12 | 0x61)), 0)
    last = Store(d.dom, at, g.pick((good_entry(g), d.others[0] << 12 | 0x63)))
    request = (frame << 12 | EXTENDED, PIN_L1)
    r = g.random()
    if r < 0.3:
        request = (root_address(g, g.pick(SLOTS)), frame << 12 | 0x7)
    elif r < 0.5:
        return (first, gone, g.list_call(MMU_UPDATE, (root_address(g, 1), 0), 1), update_with(g, 1 << 22, 0, 0),
                g.list_call(MMU_UPDATE, request, 1), last)
    return (first, gone, g.list_call(MMU_UPDATE, request, 1), last, Load(d.dom, at))


@move(8, NAME)
def stale_upper(g: Generator) -> Sequence[Action]:
    """Unlink a table that was walked, let its frame become data again, and use the old address."""
    d = g.d
    for slot in SLOTS:
        entry = g.word[g.base[d.dom], slot]
        frame = entry >> 12
        if not entry & P or not d.first <= frame < d.first + d.tables or g.type[frame] != L1:
            continue
        va, home = slot << 22 | g.pick((0, 1, 5)) << 12, d.va_of(frame)
        actions: list[Action] = [Load(d.dom, va), g.list_call(MMU_UPDATE, (root_address(g, slot), 0), 1), Load(d.dom, va)]
        if g.pinned[frame]:
            actions.append(g.list_call(MMU_UPDATE, (frame << 12 | EXTENDED, UNPIN), 1))
        if g.random() < 0.4:
            actions.append(g.list_call(MMU_UPDATE, (home, good_entry(g)), 1))
        else:
            actions += [update_with(g, home, frame << 12 | 0x63, 0), Store(d.dom, home, good_entry(g))]
        return [*actions, Load(d.dom, va)]
    return change_root(g)


# --- the reservation ---------------------------------------------------------------------------------------------------------

def mem_op(g: Generator, op: int, size: int, frames: Sequence[int], list_at: int = 0) -> Hypercall:
    """dom_mem_op with its structure and its list written first."""
    at = g.buffer(3 + len(frames))
    return Hypercall(g.d.dom, MEM_OP, (at,), ((at, (op, size, list_at or at + 12, *frames)),))


def missing(g: Generator) -> int:
    """How many frames the domain may still ask for."""
    return g.limit[g.d.dom] - g.pages[g.d.dom]


@move(22, NAME)
def release_and_claim(g: Generator) -> Sequence[Action]:
    """Unmap a page, give its frame back, perhaps touch it through a stale translation, and ask for frames again."""
    d, page = g.d, g.hot_page()
    frame, va = d.first + page, d.home + (page << 12)
    actions: list[Action] = []
    if g.pages[d.dom] and g.owner[frame] == d.dom and page < d.tables:
        if g.random() < 0.4:
            actions.append(Store(d.dom, va, g.bits(32)))
        actions.append(update_with(g, va, 0, g.pick((0, 0, 2))))
        actions.extend(update_with(g, w, 0, 0) for w in d.windows[:4] if entry_of(g, w) >> 12 == frame)
        actions.append(mem_op(g, 1, 1, (frame,)))
        if g.random() < 0.4:
            actions.append(Store(d.dom, va, g.bits(32)))
    if g.random() < 0.75:
        short = missing(g) + (1 if actions else 0)
        actions.append(mem_op(g, 0, g.pick((short, short, 1, 1, short + 1)), ()))
        if g.random() < 0.4:
            actions.append(Store(d.dom, va, g.bits(32)))
    return actions or (mem_op(g, 0, 0, ()),)


@move(10, NAME)
def map_new_frame(g: Generator) -> Sequence[Action]:
    """Map a frame that the machine handed out, or one that was given back."""
    if not g.chosen:
        return release_and_claim(g)
    frame, d = g.pick(g.chosen), g.d
    va = d.va_of(frame) if d.first <= frame < d.first + d.tables else g.pick(d.windows)
    return (update(g, va, frame << 12 | g.pick((0x63, 0x63, 0x61))), Load(d.dom, va + 4 * g.below(1024)))


@move(10, NAME)
def release_odd(g: Generator) -> Sequence[Action]:
    """A decrease with frames in its list that cannot be released, or a list that cannot be read."""
    d, r = g.d, g.random()
    idle: list[int] = []
    if r < 0.3 or 0.75 <= r < 0.85:
        idle = [f for f in range(d.first, d.first + d.tables) if g.ref_count[f] == 1 and g.owner[f] == d.dom][:3]
    if r < 0.6:
        frames = [*idle[:1], g.odd_frame() if g.random() < 0.7 else d.first + g.hot_page(), *idle[1:]]
        return (mem_op(g, 1, len(frames), frames),)
    if r < 0.75:
        nowhere = g.pick((d.windows[-1] + 0x1000, END - 4, END, 0xFFFFFFFC, HOLE))
        return (mem_op(g, 1, g.pick((1, 2, 0xFFFFFFFF, 0x40000000, 0)), (), nowhere),)
    if r < 0.85:                                # the mapped memory ends in the list
        end = d.windows[0]
        if idle and is_writable(g, end - 4) and not entry_of(g, end) & P:
            at = g.buffer(3)
            return (Hypercall(d.dom, MEM_OP, (at,), ((end - 4, (idle[0],)), (at, (1, 2, end - 4)))),)
    return (mem_op(g, 1, 0, ()),)


@move(9, NAME)
def claim_odd(g: Generator) -> Sequence[Action]:
    """An increase beyond the limit or the pool, with a list that cannot be written; operations that do not exist."""
    d, r = g.d, g.random()
    if r < 0.3:
        return (mem_op(g, 0, g.pick((1, 2, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, d.pages, d.pages + 1)), ()),)
    if r < 0.6:
        if not missing(g):
            return release_and_claim(g)
        nowhere = g.pick((d.windows[-1] + 0x1000, END, d.va_of(d.end - 1), 0xFFFFFFFC, d.windows[0] - 4, d.windows[0] - 2))
        return (mem_op(g, 0, missing(g), (), nowhere),)
    if r < 0.8:
        return (mem_op(g, g.pick((2, 3, 0xFFFFFFFF)), 1, ()),)
    at = g.pick((END - 12, END - 8, END, d.windows[-1] + 0x1000, 0, 0xFFFFFFF8))
    return (Hypercall(d.dom, MEM_OP, (at,)),)


@move(6, NAME)
def claim_nothing(g: Generator) -> Sequence[Action]:
    """Both operations with a size of 0, and an increase of what is missing."""
    return (mem_op(g, g.bits(1), 0, ()), mem_op(g, 0, missing(g), ()))


# --- multicall ---------------------------------------------------------------------------------------------------------------

def call_words(g: Generator) -> tuple[int, ...]:
    """One entry of a multicall list."""
    r = g.random()
    if r < 0.6:
        return (UVM, target_va(g) >> 12, good_entry(g) if r < 0.5 else odd_entry(g), g.bits(2), 0, 0, 0, 0)
    if r < 0.68:
        return (g.pick((0xCB, 21, 0xFF, 0x100 | UVM)), window_page(g), 0, 0, 0, 0, g.bits(32), 0)
    if r < 0.7:
        return g.pick(((Xen2003.SET_CALLBACKS, Xen2003.RING1_CS, g.bits(32), 0x39, g.bits(32), 0, 0, 0),
                       (Xen2003.UPDATE_DESCRIPTOR, g.data_frame() << 12 | g.below(512) << 3, 0, 0, 0, 0, 0, 0),
                       (Xen2003.SET_DEBUGREG, g.below(8), g.bits(31), 0, 0, 0, 0, 0)))
    return (MULTICALL if r < 0.75 else MMU_UPDATE, 0, 0, 0, 0, 0, 0, 0)


def window_page(g: Generator) -> int:
    """The page number of a window."""
    return g.pick(g.d.windows) >> 12


def keeps_buffers(g: Generator) -> bool:
    """The buffer pages are mapped as at boot, so a list that is written there is the list that Xen reads."""
    d = g.d
    return is_writable(g, d.home + 0x2000) and all(
        entry_of(g, d.home + (p << 12)) & ~(A | D) == d.first + p << 12 | P | RW for p in BUFFER_PAGES)


@move(26, NAME)
def multicall(g: Generator) -> Sequence[Action]:
    """A few calls in one, some with lists of their own: a nested list is never made."""
    if not keeps_buffers(g):
        return restore_buffers(g)
    d = g.d
    calls: list[int] = []
    data: list[tuple[int, tuple[int, ...]]] = []
    n = g.pick((1, 1, 2, 2, 3, 5))
    for i in range(n):
        listed: tuple[int, ...]
        words = call_words(g)
        if words[0] in (MMU_UPDATE, MULTICALL):
            at = d.home + 0x2800 + 64 * i
            listed = safe_request(g) if words[0] == MMU_UPDATE else (UVM, window_page(g), good_entry(g), 0, 0, 0, 0, 0)
            data.append((at, listed))
            words = (words[0], at, 1, 0, 0, 0, 0, 0)
        calls.extend(words)
    at = d.home + 0x3000 + 64 * g.below(32)
    return (Hypercall(d.dom, MULTICALL, (at, n), (*data, (at, tuple(calls)))),)


def safe_request(g: Generator) -> tuple[int, int]:
    """A request that does not take the list away under Xen."""
    if g.random() < 0.3:
        request = odd_request(g)
        if request[1] & 0xFF != NEW_BASEPTR:
            return request
    return GOOD[g.pick((0, 1, 5, 6, 8, 9))](g)


def restore_buffers(g: Generator) -> Sequence[Action]:
    """Map the pages that lists are written to as at boot."""
    d = g.d
    return [update_with(g, d.home + (p << 12), d.first + p << 12 | 0x63, 3) for p in BUFFER_PAGES]


@move(8, NAME)
def multicall_odd(g: Generator) -> Sequence[Action]:
    """A multicall of none, with a bad pointer, or whose list runs out of the mapped memory."""
    d, r = g.d, g.random()
    if r < 0.3:
        return (Hypercall(d.dom, MULTICALL, (g.pick((d.home, 0, END)), 0)),)
    if r < 0.6:
        unmapped = tuple(va for va in (0, d.windows[-1] + 0x1000) if not entry_of(g, va) & P)
        return (Hypercall(d.dom, MULTICALL, (g.pick((END - 4, END - 28, END, 0xFFFFFFE0, *unmapped)), g.pick((1, 2)))),)
    end = d.windows[0]                          # shared_info lies before it: nobody remaps that here
    if entry_of(g, end) & P or not is_writable(g, end - 4):
        return (update_with(g, end, 0, 2),)
    call = (UVM, d.windows[1] >> 12, good_entry(g), g.bits(2), 0, 0, 0, 0)
    words = (*call, 21, 0, 0, 0, 0, 0, 0, 0)[:g.pick((1, 5, 6, 7, 8, 13, 14, 16))]
    at = end - 4 * len(words)
    return (Hypercall(d.dom, MULTICALL, (at, g.pick((2, 3, 0xFFFFFFFF)) if len(words) == 16 else 2), ((at, words),)),)


# --- accesses ----------------------------------------------------------------------------------------------------------------

@move(70, NAME)
def touch(g: Generator) -> Sequence[Action]:
    """Load and store through mappings in use."""
    dom, va = g.d.dom, target_va(g)
    offset = g.pick((0, 4, 0xFFC, 8, 1, 0xFFB)) if g.random() < 0.9 else g.below(4096)
    r = g.random()
    if r < 0.35:
        return (Load(dom, va + offset),)
    if r < 0.65:
        return (Store(dom, va + offset, g.bits(32)), Load(dom, va + (offset & ~3)))
    return (Store(dom, va + offset, good_entry(g)),)


@move(22, NAME)
def touch_edges(g: Generator) -> Sequence[Action]:
    """Accesses at the limits: of segments, of pages, of what is mapped, in the published window, on page tables."""
    d, setup = g.d, g.setup
    last = HOLE + 4 * setup.frames
    addresses = (END - 4, END - 3, END - 1, END, 0xFFFFFFFC, 0xFFFFFFFF, 0xFF000000, HOLE - 4, HOLE - 2, HOLE,
                 HOLE + 4 * d.first + g.below(4), HOLE + 4 * d.end, last - 4, (last + 0xFFF & ~0xFFF) - 2, last + 0xFFF & ~0xFFF,
                 d.windows[0] - 2, d.windows[0] - 1, d.home - 4, d.home - 2, d.windows[-1] + 0xFFE, d.windows[1] - 1, 0,
                 d.va_of(d.first + d.tables) + 4 * g.below(1024), d.va_of(d.end - 1) + 4 * g.pick((0, 768, 1007, 1020)),
                 d.home + (g.spare_page() << 12))
    va, user = g.pick(addresses), g.random() < 0.15
    r = g.random()
    return (Load(d.dom, va, user) if r < 0.55 else Store(d.dom, va, g.bits(32), user),)


@move(24, NAME)
def touch_as_user(g: Generator) -> Sequence[Action]:
    """Applications load, store and execute where US is set, and where it is not."""
    d, r = g.d, g.random()
    va = target_va(g)
    entry = entry_of(g, va)
    actions: list[Action] = []
    if entry & P and not entry & US and r < 0.6:
        actions.append(update(g, va, entry | US))
    offset = g.pick((0, 4, 0xFFC, 0xFFE))
    actions.append(Load(d.dom, va + offset, True) if g.random() < 0.5 else Store(d.dom, va + offset, g.bits(32), True))
    if g.random() < 0.3:
        actions.append(Load(d.dom, va + offset, g.random() < 0.5))
    return actions


@move(16, NAME)
def execute(g: Generator) -> Sequence[Action]:
    """Call a far return: in the page of them, where that page is mapped too, or where there is none to fetch."""
    d, r = g.d, g.random()
    code = d.home + (CODE_PAGE << 12)
    if r < 0.35:
        va = code + g.pick((0, 0xFFF, g.below(4096)))
    elif r < 0.6:
        for window in (*d.windows, code):
            if entry_of(g, window) >> 12 == d.first + CODE_PAGE:
                break
        va = window + g.below(4096)
    elif r < 0.7:
        return (update(g, g.pick(d.windows), d.first + CODE_PAGE << 12 | g.pick((0x5, 0x25, 0x61, 0x67))),)
    else:
        va = g.pick((*d.windows, END - 1, END, 0xFFFFFFFF, HOLE - 1, 0))
    user = g.random() < 0.4
    if g.machine.legal_execute(d.dom, va, user):
        return (Execute(d.dom, va, user),)
    return (Load(d.dom, va & ~3, user),)


@move(8, NAME)
def unknown_hypercall(g: Generator) -> Sequence[Action]:
    """Numbers that are not assigned; only the low eight bits of the number count."""
    if g.random() < 0.3:
        return (Hypercall(g.d.dom, g.bits(24) << 8 | UVM, (target_va(g) >> 12, good_entry(g), g.bits(2))),)
    nr = g.pick((21, 22, 127, 128, 255, g.bits(24) << 8 | 21, 0xFFFFFFFF))
    return (Hypercall(g.d.dom, nr, (g.bits(32), g.bits(32), g.bits(32))),)


@move(3, NAME)
def odd_data(g: Generator) -> Sequence[Action]:
    """A hypercall whose arguments cannot be written: its outcome is the fault of the store."""
    d = g.d
    at = g.pick((d.windows[-1] + 0x1000, d.va_of(d.end - 1), END - 4, END, 0xFFFFFFFC, HOLE))
    good = g.buffer(2)
    return (Hypercall(d.dom, MMU_UPDATE, (good, 1), ((good, flush(g)), (at, (0,)))),)


# --- domain 0 ----------------------------------------------------------------------------------------------------------------

@move(26, NAME)
def map_others(g: Generator) -> Sequence[Action]:
    """Map another domain's page of data, or read-only its table: domain 0 may, others may not."""
    o, r = g.other(), g.random()
    if g.d.dom and r < 0.8:
        return map_something(g)
    frame = o.first + (g.pick(o.hot) if r < 0.5 else g.pick((o.tables, o.pages - 1, *o.spares[:2])))
    return (update(g, g.pick(g.d.windows[:4]), frame << 12 | (0x63 if r < 0.5 or g.random() < 0.1 else 0x61)),)


@move(22, NAME)
def edit_others_table(g: Generator) -> Sequence[Action]:
    """Change an entry of another domain's table through a read-only mapping of it: judged by what that domain may use (W-2)."""
    d, o = g.d, g.other()
    if d.dom and g.random() < 0.9:
        return batch_good(g)
    tables = (*range(o.first + o.tables, o.end), o.end - 1, *(o.first + p for p in o.spares))
    for va in d.windows[:4]:
        frame = entry_of(g, va) >> 12
        if frame in tables:
            break
    else:
        return (update_with(g, d.windows[g.below(4)], g.pick(tables) << 12 | 0x61, 2),)
    r = g.random()
    if g.type[frame] == L2:
        slot = g.pick(SLOTS)
        idle = [f for f in (d.first + p for p in d.spares) if not g.type_count[f] or g.type[f] == L1]
        mine = idle[0] if idle else d.first + d.tables
        entry = g.pick((0, o.first + g.pick(o.spares) << 12 | 7, frame << 12 | g.pick((1, 3)), mine << 12 | 7, mine << 12 | 7,
                        g.word[frame, slot] ^ RW))
    else:
        slot = o.pages + 1 + g.below(4)
        target = g.pick((o.first + g.pick(o.hot), o.first + g.pick(o.hot), d.first + g.pick(d.hot), g.odd_frame()))
        entry = g.pick((0, target << 12 | 0x63, target << 12 | 0x61)) & 0xFFFFFFFF
    return (g.list_call(MMU_UPDATE, (va + 4 * slot | (UNCHECKED if r < 0.1 else NORMAL), entry), 1),)


@move(20, NAME)
def act_on_others(g: Generator) -> Sequence[Action]:
    """Pin, unpin, use as base, or name another domain's frames; store unchecked into an idle one."""
    d, o, r = g.d, g.other(), g.random()
    if d.dom and g.random() < 0.75:
        return batch_good(g)
    spare = o.first + g.pick(o.spares)
    if r < 0.25:
        return (g.list_call(MMU_UPDATE, (spare << 12 | EXTENDED, g.pick((PIN_L1, PIN_L1, PIN_L2, UNPIN))), 1),)
    if r < 0.35:
        return (g.list_call(MMU_UPDATE, (o.end - 1 << 12 | EXTENDED, g.pick((PIN_L2, UNPIN))), 1),)
    if r < 0.45:                                # there and back: the other domain's memory is laid out alike
        return (g.list_call(MMU_UPDATE, (o.end - 1 << 12 | EXTENDED, NEW_BASEPTR), 1), Load(d.dom, d.home + 0x4000),
                g.list_call(MMU_UPDATE, (d.end - 1 << 12 | EXTENDED, NEW_BASEPTR), 1))
    if r < 0.6:
        return (g.list_call(MMU_UPDATE, (o.first + g.below(o.pages + 1) << 12 | MACHPHYS, g.bits(32)), 1),)
    if r < 0.7:
        return (update(g, g.pick(d.windows[:4]), spare << 12 | 0x61), )
    return unchecked(g)


@move(8, NAME)
def build_for_others(g: Generator) -> Sequence[Action]:
    """Domain 0 fills a frame of another domain and pins it: its entries are judged by what that domain may use (W-2)."""
    d, o = g.d, g.other()
    if d.dom or d is o:
        return batch_good(g)
    page = g.pick(o.spares)
    frame, va, there = o.first + page, g.pick(d.windows[:4]), o.home + (page << 12)
    if g.type_count[frame] and g.type[frame] != WRITABLE:
        return act_on_others(g)
    as_root = g.random() < 0.4
    whose = o if g.random() < 0.66 else d
    named = whose.first + g.pick(whose.spares if as_root else whose.hot)
    contents = ((va + 4 * g.pick((0, 5, 1007)), (named << 12 | g.pick((0x67, 0x61)),)),)
    return (Hypercall(o.dom, UVM, (there >> 12, 0, 0)), update_with(g, va, frame << 12 | 0x63, 2),
            Hypercall(d.dom, UVM, (va >> 12, g.pick((0, frame << 12 | 0x61)), 2), contents),
            g.list_call(MMU_UPDATE, (frame << 12 | EXTENDED, PIN_L2 if as_root else PIN_L1), 1),
            g.list_call(MMU_UPDATE, (frame << 12 | EXTENDED, UNPIN), 1),
            Hypercall(o.dom, UVM, (there >> 12, frame << 12 | 0x63, 2)))


@move(12, NAME)
def unchecked(g: Generator) -> Sequence[Action]:
    """UNCHECKED into a frame without typed references: only domain 0 may."""
    d = g.d
    for page in (g.spare_page(), g.spare_page(), g.hot_page()):
        if not g.type_count[d.first + page] and entry_of(g, d.home + (page << 12)) & P:
            entry = odd_entry(g) if g.random() < 0.3 else good_entry(g)
            return (g.list_call(MMU_UPDATE, (d.home + (page << 12) + 4 * g.pick((0, 1, 768, 1023)) | UNCHECKED, entry), 1),)
    return advance_table(g)
