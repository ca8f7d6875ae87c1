"""The moves of xen-4.17 programs about descriptors and handlers: tables built and replaced, and what is at the edge of legal."""
from collections.abc import Sequence
from typing import Final

from oracle.generate import Generator, move
from oracle.moves_417 import NAME, entry_of, extended, is_writable, odd_entry
from spec.abi import GUEST_KERNEL, SEG_DESC, P, Xen417
from spec.vocabulary import Action, Hypercall, Load, LoadSegment, Store

X: Final = Xen417
RO, FULL = GUEST_KERNEL | 0x61, GUEST_KERNEL | 0x63     # of L1 entries
PRESENT, SEGMENT = 1 << 47, 1 << 44
EDGE, HIGH = 1 << 47, 0xFFFF880000000000
ONES: Final = (1 << 64) - 1
SELECTORS: Final = (0, 3, 0x18, 0x1B, X.KERNEL_CS, X.KERNEL_CS, 0xDFFB, 0xDFFC, 0xE03C, 0xFFFF)     # that a gate may have
BAD_SELECTORS: Final = (0xE000, 0xE023, 0xE02B, 0xE030, 0xE038, 0xFFF8, 0xFFFB)
XENS: Final = (0xE008, 0xE010, 0xE018, 0xE02B, 0xE02B, 0xE023, 0xE033, 0xE038, 0xE040, 0xE050, 0xF000)
PLACES: Final = (0, 1, 2, 7, 128, 255, 256, 510, 511)
SIZES: Final = (1, 2, 255, 511, 512, 512, 512, 512)
REGISTERS: Final = ("ds", "es", "fs", "gs", "ss", "ss")
ADDRESSES: Final = (1, 0x1000, EDGE - 1, EDGE, HIGH - 1, HIGH, ONES, 0xFFFF800000000000, 0xFFFF7FFFFFFFFFFF)
ASIDE: Final = 0x0000550000000000                       # where nothing ever is, for breakpoints
PAD_LISTS: Final = 4


# --- descriptors -------------------------------------------------------------------------------------------------------------

def segment(g: Generator) -> int:
    """A present segment; base and limit mean nothing."""
    kind = g.pick((0x92, 0x93, 0xF2, 0xF3, 0xF0, 0x90, 0x9A, 0xFA, 0xFB, 0xF8, 0xFE, 0xB2, 0xD2, 0xD6, 0xF6))
    return g.pick((0xFFFF, g.bits(40))) | kind << 40 | g.pick((0xCF, 0xAF, 0x20, 0x40, 0x60, 0)) << 48


def gate(g: Generator, selector: int) -> int:
    """A present call gate to somewhere."""
    offset = g.pick((0, 0x1000, g.bits(32)))
    return offset & 0xFFFF | selector << 16 | g.pick((0x8C, 0xAC, 0xCC, 0xEC)) << 40 | offset >> 16 << 48


def good_descriptor(g: Generator) -> int:
    """A legal descriptor: a segment, a gate, one of type 0 (the second half of a gate), or one that is not present."""
    r = g.random()
    if r < 0.15:
        return g.bits(64) & ~PRESENT
    if r < 0.2:
        return segment(g) & ~PRESENT
    if r < 0.32:
        return gate(g, g.pick(SELECTORS))
    if r < 0.4:
        return g.bits(64) & ~(0x1F << 40) | PRESENT
    return segment(g)


def odd_descriptor(g: Generator) -> int:
    """A descriptor at some edge: most are illegal."""
    r = g.random()
    if r < 0.35:
        return good_descriptor(g) ^ 1 << g.below(64)
    if r < 0.5:
        return gate(g, g.pick(BAD_SELECTORS))
    if r < 0.65:
        return gate(g, g.pick(SELECTORS)) | 1 << 32 + g.below(8)
    if r < 0.85:                                # a gate or a table of some type
        return good_descriptor(g) & ~(0x1F << 40) | PRESENT | g.below(16) << 40
    return g.bits(64) | PRESENT


def any_descriptor(g: Generator) -> int:
    """Mostly a legal one."""
    return good_descriptor(g) if g.random() < 0.7 else odd_descriptor(g)


# --- pages of them -----------------------------------------------------------------------------------------------------------

def descriptor_words(g: Generator, va: int) -> tuple[tuple[int, tuple[int, ...]], ...]:
    """What to store into a page that is to become a table of descriptors."""
    return tuple((va + 8 * g.pick(PLACES), (good_descriptor(g) if g.random() < 0.93 else odd_descriptor(g),))
                 for _ in range(g.pick((0, 1, 1, 2, 3))))


def is_user(g: Generator) -> bool:
    """Now and then an application does it, if there are any."""
    return g.random() < 0.15 and g.machine.concrete.maps["has_user"][g.d.dom]


def update_with(g: Generator, va: int, entry: int, flags: int, words: tuple[tuple[int, tuple[int, ...]], ...] = ()) -> Hypercall:
    """update_va_mapping."""
    return Hypercall(g.d.dom, X.UPDATE_VA_MAPPING, (va, entry, flags), words)


def new_table(g: Generator) -> tuple[list[Action], int]:
    """A page of data is filled with descriptors and made idle: (what to do first, the frame); -1 if there is no such page."""
    d = g.d
    for _ in range(3):
        page = g.spare_page() if g.random() < 0.7 else g.hot_page()
        frame, va = d.first + page, d.home + (page << 12)
        if is_writable(g, va) and entry_of(g, va) >> 12 & (1 << 40) - 1 == frame and g.type_count[frame] == 1:
            return [update_with(g, va, frame << 12 | RO, g.pick((2, 2, 2, 0, 1)), descriptor_words(g, va))], frame
        if not g.type_count[frame] and g.owner[frame] == d.dom and page < d.tables:
            return [], frame
    return [], -1


def restore_home(g: Generator) -> Sequence[Action]:
    """A page of data is mapped at its home again."""
    d = g.d
    page = g.spare_page() if g.random() < 0.5 else g.hot_page()
    return (update_with(g, d.home + (page << 12), d.first + page << 12 | FULL, 2),)


def set_gdt(g: Generator, frames: Sequence[int], entries: int) -> Hypercall:
    """set_gdt with its list written first."""
    return g.list_call(X.SET_GDT, frames or (0,), entries)


@move(14, NAME)
def build_gdt(g: Generator) -> Sequence[Action]:
    """New pages, perhaps with old ones behind them."""
    actions, frame = new_table(g)
    if frame < 0:
        return restore_home(g)
    frames, r = [frame], g.random()
    if r < 0.35:
        more, second = new_table(g)
        if second >= 0 and second != frame:
            actions += more
            frames += g.pick(((second,), (second, second), (second, frame)))
    elif r < 0.5:
        frames += g.pick((g.pages_of("gdt")[1:], g.pages_of("gdt"), [frame], [g.odd_frame()], [g.data_frame()], [frame] * 13))
    frames = frames[:14]
    actions.append(set_gdt(g, frames, 512 * (len(frames) - 1) + g.pick(SIZES)))
    return actions


@move(8, NAME)
def change_gdt(g: Generator) -> Sequence[Action]:
    """The pages in force again: fewer, more, in another order, one twice; with another size."""
    frames, r = g.pages_of("gdt"), g.random()
    if not frames:
        return build_gdt(g)
    if r < 0.2:
        frames = frames[:1]
    elif r < 0.3:
        return (set_gdt(g, (), 0),)
    elif r < 0.5:
        frames.append(g.pick(frames))
    elif r < 0.6:
        frames.reverse()
    elif r < 0.8:
        actions, frame = new_table(g)
        if frame >= 0:
            frames.insert(g.below(len(frames) + 1), frame)
            return [*actions, set_gdt(g, frames[:14], 512 * len(frames[:14]))]
    frames = frames[:14]
    return (set_gdt(g, frames, 512 * (len(frames) - 1) + g.pick(SIZES)),)


@move(6, NAME)
def odd_gdt(g: Generator) -> Sequence[Action]:
    """A size that cannot be, a list that cannot be read, a frame that cannot be a table."""
    d, r = g.d, g.random()
    if r < 0.3:
        return (set_gdt(g, (g.data_frame(),), g.pick((7168, 7169, 8192, 0xFFFF, 0xFFFFFFFF, 1 << 32, 1 << 32 | 1, 1 << 31))),)
    if r < 0.6:
        at = g.pick((EDGE, HIGH - 8, EDGE - 4, 0x1000, 0, ONES, d.windows[-1], d.windows[0] - 8, d.windows[0] - 4))
        return (Hypercall(d.dom, X.SET_GDT, (at, g.pick((0, 1, 512, 513, 7168)))),)
    frames = [*g.pages_of("gdt")[:2], g.odd_frame() if g.random() < 0.6 else g.data_frame()]
    if g.random() < 0.3:
        frames.reverse()
    return (set_gdt(g, frames, 512 * len(frames)),)


def frame_for_descriptor(g: Generator) -> int:
    """A frame into which a descriptor may be put, or not."""
    d, r = g.d, g.random()
    if r < 0.5:
        tables = g.pages_of("gdt" if r < 0.33 else "ldt")
        if tables:
            return tables[0] if g.random() < 0.6 else g.pick(tables)
    if r < 0.7:
        return d.first + g.spare_page()
    if r < 0.85:
        return g.data_frame()
    return d.first + d.tables + g.below(d.pages - d.tables) if r < 0.92 else g.odd_frame()


@move(22, NAME)
def update_descriptor(g: Generator) -> Sequence[Action]:
    """One descriptor is replaced: in a table in force, in memory, in a page table."""
    skew = 0 if g.random() < 0.95 else g.pick((1, 2, 4, 6))
    frame = frame_for_descriptor(g) if g.random() < 0.97 else g.bits(52)
    return (Hypercall(g.d.dom, X.UPDATE_DESCRIPTOR, (frame << 12 & ONES | g.pick(PLACES) << 3 | skew, any_descriptor(g))),)


@move(5, NAME)
def write_table_in_force(g: Generator) -> Sequence[Action]:
    """A table of descriptors cannot be written by the guest: by no new mapping, request or store."""
    d = g.d
    tables = g.pages_of("gdt") + g.pages_of("ldt")
    if not tables:
        return build_gdt(g)
    frame, r = g.pick(tables), g.random()
    va = d.va_of(frame) if d.first <= frame < d.first + d.tables else d.windows[0]
    if r < 0.4:
        return (update_with(g, g.pick((va, d.windows[0])), frame << 12 | FULL, 2), Store(d.dom, va, g.bits(64)))
    if r < 0.7:
        words = frame << 12 | 8 * g.pick(PLACES) | g.pick((X.NORMAL, X.NORMAL, X.PRESERVE_AD, X.MACHPHYS)), odd_entry(g)
        return (g.list_call(X.MMU_UPDATE, words, 1, 0, 0x7FF0), Store(d.dom, va + 8 * g.pick(PLACES), g.bits(64)))
    kind = g.pick((X.PIN_L1, X.PIN_L1 + 1, X.UNPIN, X.NEW_BASEPTR, X.CLEAR_PAGE, X.COPY_PAGE))
    return (extended(g, kind, frame, g.data_frame()),)


@move(6, NAME)
def stale_descriptors(g: Generator) -> Sequence[Action]:
    """Use a page, take its mapping away without a flush, make it a table, and store through the stale translation."""
    d, page = g.d, g.spare_page()
    frame, va = d.first + page, d.home + (page << 12)
    if not is_writable(g, va) or g.type_count[frame] != 1:
        return build_gdt(g)
    at = va + 8 * g.pick(PLACES)
    gone = update_with(g, va, g.pick((0, frame << 12 | RO)), 0)
    table = set_gdt(g, (frame,), 512) if g.random() < 0.6 else set_ldt(g, va, 512)
    return (Store(d.dom, at, 0), gone, table, Store(d.dom, at, 0xFFFF), Load(d.dom, at))


# --- the LDT -----------------------------------------------------------------------------------------------------------------

def set_ldt(g: Generator, base: int, entries: int) -> Hypercall:
    """SET_LDT alone."""
    return extended(g, X.SET_LDT, base, entries)


@move(12, NAME)
def build_ldt(g: Generator) -> Sequence[Action]:
    """A page of descriptors becomes the first of the LDT, and is perhaps loaded from."""
    actions, frame = new_table(g)
    if frame < 0 or not g.d.first <= frame < g.d.first + g.d.tables:
        return (set_ldt(g, g.d.home + (g.hot_page() << 12), 512),)
    va = g.d.va_of(frame)
    if not entry_of(g, va) & P:
        actions.append(update_with(g, va, frame << 12 | RO, 2))
    actions.append(set_ldt(g, va, g.pick((1, 512, 512, 1024, 0, 8192))))
    if g.random() < 0.5:
        actions.append(LoadSegment(g.d.dom, g.pick(REGISTERS), g.pick(PLACES) << 3 | 7, is_user(g)))
    if g.random() < 0.3:
        actions.append(update_with(g, va, frame << 12 | FULL, 2))
    return actions


@move(8, NAME)
def build_long_ldt(g: Generator) -> Sequence[Action]:
    """An LDT of several pages that are mapped when something is loaded from them."""
    d = g.d
    actions, frame = new_table(g)
    more, second = new_table(g)
    if frame < 0 or second < 0:
        return build_ldt(g)
    base = d.windows[0]
    if second != frame:
        actions += more
    for n, f in enumerate((frame, second, frame)):
        actions.append(update_with(g, base + (n << 12), f << 12 | g.pick((RO, RO, RO, RO, FULL, 0)), 2))
    actions.append(set_ldt(g, base, g.pick((1024, 1536, 1537, 600))))
    for _ in range(g.pick((1, 2, 3))):
        sel = (g.pick((0, 1, 1, 1, 2, 3)) << 9 | g.pick(PLACES)) << 3 | 4 | g.pick((0, 3))
        actions.append(LoadSegment(d.dom, g.pick(REGISTERS), sel, is_user(g)))
    return actions


@move(9, NAME)
def touch_ldt(g: Generator) -> Sequence[Action]:
    """A page of the LDT is mapped once more or unmapped, the same or no LDT is set, the base is loaded: some drop its pages."""
    d, frames = g.d, g.pages_of("ldt")
    if not frames:
        return build_ldt(g)
    maps = g.machine.concrete.maps
    base, entries, frame, r = maps["ldt_base"][d.dom], maps["ldt_entries"][d.dom], g.pick(frames), g.random()
    if r < 0.35:
        window = g.pick(d.windows)
        return (update_with(g, window, frame << 12 | g.pick((RO, 1)), 2), update_with(g, window, 0, g.pick((0, 2))))
    if r < 0.6:
        va = base & ~0xFFF
        return (update_with(g, va, g.pick((0, frame << 12 | FULL, frame << 12 | RO, frame << 12 | 0x5)), 2),)
    if r < 0.7:
        return (set_ldt(g, base, g.pick((entries, entries, entries - 1 & 0x1FFF, 0))),)
    if r < 0.85:
        return (extended(g, X.NEW_BASEPTR, d.end - 1),)
    return (set_ldt(g, 0, 0),)


@move(4, NAME)
def odd_ldt(g: Generator) -> Sequence[Action]:
    """An LDT that is too long, misaligned, at Xen's, or at the edge of the canonical addresses; and a load from it."""
    base = g.pick((EDGE - 0x1000, EDGE, HIGH, HIGH - 0x1000, ONES - 0xFFF, 0x1000, 8, 0, g.d.home + 8, 0xFFFF800000000000))
    entries = g.pick((512, 513, 1024, 1024, 8192, 8193, 0, 0xFFFFFFFF, 1 << 32))
    load = LoadSegment(g.d.dom, g.pick(REGISTERS), g.pick((0, 0, 1, 2, 15)) << 12 | g.pick(PLACES) << 3 | 7)
    return (set_ldt(g, base, entries), load)


@move(4, NAME)
def put_others_ldt(g: Generator) -> Sequence[Action]:
    """Domain 0 maps another domain's table of descriptors read-only, and puts the mapping."""
    d = g.d
    o = g.pick(g.domains)
    frames = [o.first + page for page in (*o.spares, *o.hot)
              if g.type_count[o.first + page] and g.type[o.first + page] == SEG_DESC]
    if d.dom or o is d or not frames:
        return touch_ldt(g)
    window, frame = g.pick(d.windows[:4]), g.pick(frames)
    mapped = Hypercall(d.dom, X.UPDATE_VA_MAPPING_OTHERDOMAIN, (window, frame << 12 | g.pick((RO, RO, FULL)), 2, o.dom))
    return (mapped, update_with(g, window, 0, 2))


# --- segment registers -------------------------------------------------------------------------------------------------------

def selector(g: Generator) -> int:
    """A selector: of a descriptor in one of the tables, of Xen's, of none."""
    r, maps = g.random(), g.machine.concrete.maps
    if r < 0.1:
        return g.below(8) if g.random() < 0.6 else g.bits(16)
    if r < 0.2:
        return g.pick(XENS) ^ g.pick((0, 0, 1, 2, 3))
    in_ldt = r < 0.6
    entries = maps["ldt_entries" if in_ldt else "gdt_entries"][g.d.dom]
    frames = g.pages_of("ldt" if in_ldt else "gdt")
    page = g.below(max(len(frames), 1)) if g.random() < 0.8 else g.below(16)
    index = page << 9 | g.pick(PLACES) if g.random() < 0.9 else max(entries - g.pick((0, 1)), 0)
    return (index & 0x1FFF) << 3 | in_ldt << 2 | g.pick((3, 3, 3, 3, 2, 1, 0))


def there(g: Generator) -> list[int]:
    """The segments in the tables, present or not: selectors."""
    found = []
    for table, ti in (("gdt", 0), ("ldt", 4)):
        for n, frame in enumerate(g.pages_of(table)):
            found += [(n << 9 | i) << 3 | ti | 3 for i, w in g.machine.concrete.row(frame).items() if w & SEGMENT]
    return sorted(found)


@move(22, NAME)
def load_known_segment(g: Generator) -> Sequence[Action]:
    """A segment of one of the tables is loaded."""
    found = there(g)
    if not found:
        return build_ldt(g) if g.random() < 0.5 else build_gdt(g)
    sel = g.pick(found)
    if g.random() < 0.12:
        sel ^= g.pick((1, 2, 3))
    if g.random() < 0.2:
        return (Hypercall(g.d.dom, X.SET_SEGMENT_BASE, (X.GS_USER_SELECTOR, sel)),)
    return (LoadSegment(g.d.dom, g.pick(REGISTERS), sel, is_user(g)),)


@move(18, NAME)
def load_segment(g: Generator) -> Sequence[Action]:
    """Segment registers are loaded, with what the tables have, or do not; also before and after a descriptor is replaced."""
    dom, sel = g.d.dom, selector(g)
    load: Action = LoadSegment(dom, g.pick(REGISTERS), sel, is_user(g))
    if g.random() < 0.2:
        load = Hypercall(dom, X.SET_SEGMENT_BASE, (X.GS_USER_SELECTOR, sel | g.pick((0, 0, 1 << 16, 1 << 63))))
    frames = g.pages_of("ldt" if sel & 4 else "gdt")
    if g.random() < 0.8 or sel >> 12 >= len(frames):
        return (load,)
    return (load, Hypercall(dom, X.UPDATE_DESCRIPTOR, (frames[sel >> 12] << 12 | sel & 0xFF8, any_descriptor(g))), load, load)


@move(7, NAME)
def swap_gdts(g: Generator) -> Sequence[Action]:
    """Two GDTs that differ, one after the other, and a load from each: whatever the processor has cached of the first is gone."""
    d, dom = g.d, g.d.dom
    pages = [page for page in d.spares if is_writable(g, d.home + (page << 12)) and g.type_count[d.first + page] == 1]
    if len(pages) < 2:
        return change_gdt(g)
    place, actions = g.pick((1, 2, 7, 255, 256, 511)), list[Action]()
    one, two = (d.first + page for page in pages[:2])
    for frame in (one, two):
        va = d.va_of(frame)
        words = ((va + 8 * place, (good_descriptor(g) if frame == two else segment(g),)),) if g.random() < 0.8 else ()
        actions.append(update_with(g, va, frame << 12 | RO, 2, words))
    load = LoadSegment(dom, g.pick(REGISTERS), place << 3 | 3)
    actions += (set_gdt(g, (one,), 512), load)
    if g.random() < 0.5:                        # another domain's tables in between
        actions += (LoadSegment(g.pick(g.domains).dom, load.register, load.selector), load)
    return (*actions, set_gdt(g, (two,), 512), load)


@move(4, NAME)
def segment_bases(g: Generator) -> Sequence[Action]:
    """Bases on both sides of what is canonical."""
    which = g.pick((0, 1, 2, 0, 1, 2, 4, 0xFFFFFFFF, 1 << 32))
    return (Hypercall(g.d.dom, X.SET_SEGMENT_BASE, (which, g.pick((0, *ADDRESSES)))),)


# --- handlers, callbacks, stacks, breakpoints --------------------------------------------------------------------------------

@move(7, NAME)
def set_trap_table(g: Generator) -> Sequence[Action]:
    """A list of handlers, sometimes with one that cannot be, or one that ends too late; none."""
    d, words = g.d, list[int]()
    for _ in range(g.pick((0, 1, 2, 4))):
        v = g.pick((0, 2, 3, 14, 0x20, 0x30, 0x80, 0x82, 0xFF, g.below(256)))
        words += (v | g.bits(56) << 8, g.pick(ADDRESSES) if g.random() < 0.3 else X.PADS + X.PAD * g.below(PAD_LISTS * 64))
    r, end = g.random(), d.windows[0]
    if r < 0.05:
        return (Hypercall(d.dom, X.SET_TRAP_TABLE, (0,)),)
    if r < 0.15:
        return (Hypercall(d.dom, X.SET_TRAP_TABLE, (g.pick((EDGE - 8, EDGE, HIGH - 8, 0x7FFF, 8, d.windows[-1])),)),)
    if words and r < 0.3 and not entry_of(g, end) & P and is_writable(g, end - 8):
        return (Hypercall(d.dom, X.SET_TRAP_TABLE, (end - 8 * len(words),), ((end - 8 * len(words), tuple(words)),)),)
    return (g.list_call(X.SET_TRAP_TABLE, (*words, g.bits(64), 0), 0),)


@move(6, NAME)
def set_entries(g: Generator) -> Sequence[Action]:
    """The callbacks, one by one or three at once, and the FPU."""
    r, dom = g.random(), g.d.dom
    if r < 0.2:
        return (Hypercall(dom, X.SET_CALLBACKS, tuple(g.pick(ADDRESSES) for _ in range(3))),)
    if r < 0.8:
        kind = g.pick((0, 1, 2, 3, 4, 4, 5, 6, 7, 8, 0xFFFF)) | g.pick((0, 1, 2, 0xFFFF)) << 16 | g.bits(32) << 32
        command = g.pick((0, 0, 0, 1, 1, 2, 0xFFFFFFFF, 1 << 32))
        if g.random() < 0.1:
            return (Hypercall(dom, X.CALLBACK_OP, (command, g.pick((0x1000, EDGE, 0, g.d.windows[0] - 8)))),)
        at = g.buffer(2)
        return (Hypercall(dom, X.CALLBACK_OP, (command, at), ((at, (kind, g.pick(ADDRESSES))),)),)
    if r < 0.85:
        ss = g.pick((X.USER_SS, 0xE028, 0, g.bits(64)))
        return (Hypercall(dom, X.STACK_SWITCH, (ss, g.pick((X.PROGRAM_STACK, *ADDRESSES)))),)
    return (Hypercall(dom, X.FPU_TASKSWITCH, (g.pick((0, 1, 1 << 32, ONES)),)),)


@move(8, NAME)
def debug_registers(g: Generator) -> Sequence[Action]:
    """Breakpoints up to Xen's slots and beyond, control bits of every kind; what was stored is read."""
    dom, r = g.d.dom, g.pick((0, 1, 2, 3, 6, 7, 7, 7, 4, 5, 8, 0xFFFFFFFF, 1 << 32))
    value = g.pick((ASIDE + g.below(64), ASIDE + g.below(64), g.pick(ADDRESSES), g.bits(32), 0, 1 << g.below(64), 1 << 32,
                    g.bits(16) << 16 & 0xDDDD0000 | g.bits(8), g.bits(16) << 16 | g.pick((0, 0x400))))
    return (Hypercall(dom, X.SET_DEBUGREG, (r, value)), Hypercall(dom, X.GET_DEBUGREG, (g.pick((r, r, g.below(9))),)))
