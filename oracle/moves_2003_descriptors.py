"""The moves of xen-2003 programs about descriptors and traps: tables built and replaced, entries at the edge of what is legal."""
from collections.abc import Sequence
from typing import Final

from oracle.generate import Generator, move
from oracle.moves_2003 import NAME, entry_of, is_writable, odd_entry, request_at, restore_home, update_with
from spec.abi import LDT_DESC, SEG_DESC, P, Xen2003
from spec.vocabulary import Action, Hypercall, Load, LoadSegment, Store

X = Xen2003
END: Final = X.GUEST_END
RO, FULL = 0x61, 0x63                           # of L1 entries
PRESENT: Final = 1 << 47
CODE_1: Final = X.RING1_CS                      # selectors of code that a guest may name
SELECTORS: Final = (CODE_1, CODE_1, CODE_1, 0x39, 0x1, 0x7F9, 0x941, 0x5, 0xD, 0xFFF9)
BAD_SELECTORS: Final = (0, 0x818, 0x808, 0x809, 0x811, 0x821, 0x829, 0x82B, 0x939, 0x38, 0x3A, 0x3B, 0x4, 0x6, 0x7)
PLACES: Final = (0, 1, 2, 7, 128, 255, 296, 510, 511)
EDGES: Final = (256, 257, 259, 262, 264, 295, 255, 296)
SIZES: Final = (296, 297, 511, 512, 512, 512, 512)
FAST: Final = (0x20, 0x21, 0x2F, 0x80, 0x80, 0)


# --- descriptors -------------------------------------------------------------------------------------------------------------

def segment(g: Generator, base: int, limit: int) -> int:
    """A present segment of some ring but 0, with a limit in bytes or, where that is too long, in pages."""
    pages = limit > 0xFFFFF
    raw = limit >> 12 if pages else limit
    kind = g.pick((0xB2, 0xB3, 0xB0, 0xBA, 0xBB, 0xF2, 0xFA, 0xFE, 0xD2, 0xDA, 0xBE))
    return (raw & 0xFFFF | (base & 0xFFFFFF) << 16 | kind << 40 | raw >> 16 << 48 | pages << 55 | g.pick((1, 1, 0)) << 54
            | base >> 24 << 56)


def gate(g: Generator, selector: int) -> int:
    """A present call gate to somewhere."""
    offset = g.pick((0, g.d.home + 0x1000, g.bits(32)))
    return offset & 0xFFFF | selector << 16 | g.pick((0, 0, 1, 31)) << 32 | g.pick((0xAC, 0xCC, 0xEC)) << 40 | offset >> 16 << 48


def good_descriptor(g: Generator) -> int:
    """A legal descriptor: a segment below Xen, up to its very end; a gate; or one that is not present."""
    r = g.random()
    if r < 0.2:
        return g.bits(64) & ~PRESENT
    if r < 0.35:
        return gate(g, g.pick(SELECTORS))
    base = g.pick((0, 0, g.d.home, g.bits(24), END - 0x1000))
    most = END - 1 - base
    return segment(g, base, g.pick((most, most, 0xFFFF, 0xFFF)) if most >= 0xFFFF else g.pick((most, 0)))


def odd_descriptor(g: Generator) -> int:
    """A descriptor at some edge: most are illegal."""
    r = g.random()
    if r < 0.35:
        return good_descriptor(g) ^ 1 << g.below(64)
    if r < 0.45:
        return gate(g, g.pick(BAD_SELECTORS))
    if r < 0.55:
        return gate(g, g.pick(SELECTORS)) | 1 << g.pick((37, 38, 39))
    if r < 0.7:                                 # a gate or a table of some type
        return good_descriptor(g) & ~(0x1F << 40) | PRESENT | 1 << 45 | g.below(16) << 40
    if r < 0.8:                                 # an end just beyond, or beyond 4 GB
        return segment(g, g.pick((0, 0x1000)), END - 1) if g.random() < 0.5 else segment(g, END - g.pick((0, 1, 0x1000)), 0x1000)
    if r < 0.9:                                 # ring 0, or expanding down
        q = segment(g, 0, 0xFFFF)
        return q & ~(3 << 45) if g.random() < 0.5 else q & ~(0xF << 40) | g.pick((4, 5, 6, 7)) << 40
    return g.bits(64) | PRESENT


def any_descriptor(g: Generator) -> int:
    """Mostly a legal one."""
    return good_descriptor(g) if g.random() < 0.7 else odd_descriptor(g)


# --- pages of them -----------------------------------------------------------------------------------------------------------

def descriptor_words(g: Generator, va: int) -> tuple[tuple[int, tuple[int, ...]], ...]:
    """What to store into a page that is to become a table of descriptors."""
    out = []
    for _ in range(g.pick((0, 1, 1, 2, 3))):
        place = g.pick(PLACES) if g.random() < 0.9 else g.pick(EDGES)
        q = good_descriptor(g) if g.random() < 0.93 else odd_descriptor(g)
        out.append((va + 8 * place, (q & 0xFFFFFFFF, q >> 32)))
    return tuple(out)


def new_table(g: Generator) -> tuple[list[Action], int]:
    """A page of data is filled with descriptors and made idle: (what to do first, the frame); -1 if there is no such page."""
    d = g.d
    for _ in range(3):
        page = g.spare_page() if g.random() < 0.7 else g.hot_page()
        frame, va = d.first + page, d.home + (page << 12)
        if is_writable(g, va) and entry_of(g, va) >> 12 == frame and g.type_count[frame] == 1:
            words = descriptor_words(g, va)
            return [Hypercall(d.dom, X.UPDATE_VA_MAPPING, (va >> 12, frame << 12 | RO, g.pick((2, 2, 2, 0, 1))), words)], frame
        if not g.type_count[frame] and g.owner[frame] == d.dom and page < d.tables:
            return [], frame
    return [], -1


def set_gdt(g: Generator, frames: Sequence[int], entries: int) -> Hypercall:
    """set_gdt with its list written first."""
    return g.list_call(X.SET_GDT, [f & 0xFFFFFFFF for f in frames], entries)


@move(14, NAME)
def build_gdt(g: Generator) -> Sequence[Action]:
    """A new first page, perhaps with old or new pages behind it."""
    actions, frame = new_table(g)
    if frame < 0:
        return restore_home(g)
    frames = [frame]
    r = g.random()
    if r < 0.35:
        more, second = new_table(g)
        if second >= 0 and second != frame:
            actions += more
            frames += g.pick(((second,), (second, second), (second, frame)))
    elif r < 0.5:
        frames += g.pick((g.pages_of("gdt")[1:], g.pages_of("gdt"), [frame], [g.odd_frame()], [g.data_frame()]))
    frames = frames[:16]
    actions.append(set_gdt(g, frames, 512 * (len(frames) - 1) + g.pick(SIZES)))
    if g.random() < 0.3:
        actions.append(Load(g.d.dom, g.d.va_of(frame) + 8 * g.pick((0, 257, 259, 295))))
    return actions


@move(8, NAME)
def change_gdt(g: Generator) -> Sequence[Action]:
    """The pages in force again: fewer, more, in another order, one twice; with another size."""
    frames = g.pages_of("gdt")
    if not frames:
        return build_gdt(g)
    r = g.random()
    if r < 0.3:
        frames = frames[:1]
    elif r < 0.5:
        frames.append(g.pick(frames))
    elif r < 0.6:
        frames.reverse()
    elif r < 0.8:
        actions, frame = new_table(g)
        if frame >= 0:
            place = g.below(len(frames) + 1) if g.random() < 0.3 else len(frames)
            frames.insert(place, frame)
            return [*actions, set_gdt(g, frames[:16], 512 * len(frames[:16]))]
    frames = frames[:16]
    return (set_gdt(g, frames, 512 * (len(frames) - 1) + g.pick(SIZES)),)


@move(7, NAME)
def odd_gdt(g: Generator) -> Sequence[Action]:
    """A size that cannot be, a list that cannot be read, a frame that cannot be a table."""
    d, r = g.d, g.random()
    if r < 0.35:
        return (set_gdt(g, (g.data_frame(),), g.pick((0, 1, 255, 295, 8193, 0xFFFF, 0xFFFFFFFF, 0x80000000))),)
    if r < 0.55:
        at = g.pick((END - 4, END, X.HOLE, 0xFFFFFFFC, 0, d.windows[-1] + 0x1000, d.windows[0] - 4, d.windows[0] - 2))
        return (Hypercall(d.dom, X.SET_GDT, (at, g.pick((296, 512, 513, 8192)))),)
    frames = [*g.pages_of("gdt")[:2], g.odd_frame() if g.random() < 0.6 else g.data_frame()]
    if g.random() < 0.3:
        frames.reverse()
    return (set_gdt(g, frames, 512 * len(frames)),)


def frame_for_descriptor(g: Generator) -> int:
    """A frame into which a descriptor may be put, or not."""
    d, r = g.d, g.random()
    if r < 0.5:
        tables = (g.pages_of("gdt") if r < 0.33 else g.pages_of("ldt"))
        if tables:
            return tables[0] if g.random() < 0.6 else g.pick(tables)
    if r < 0.7:
        return d.first + g.spare_page()
    if r < 0.85:
        return g.data_frame()
    return d.first + d.tables + g.below(d.pages - d.tables + 1) if r < 0.92 else g.odd_frame()


def update_words(g: Generator) -> tuple[int, int, int]:
    """The arguments of update_descriptor."""
    place = g.pick(PLACES) if g.random() < 0.75 else g.pick(EDGES)
    q = any_descriptor(g)
    skew = 0 if g.random() < 0.95 else g.pick((1, 2, 4, 6))
    return (frame_for_descriptor(g) << 12 | place << 3 | skew) & 0xFFFFFFFF, q & 0xFFFFFFFF, q >> 32


@move(26, NAME)
def update_descriptor(g: Generator) -> Sequence[Action]:
    """One descriptor is replaced: in a table in force, in memory, in a page table, where Xen's own are."""
    return (Hypercall(g.d.dom, X.UPDATE_DESCRIPTOR, update_words(g)),)


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
        return (update_with(g, g.pick((va, d.windows[0])), frame << 12 | FULL, 2), Store(d.dom, va, g.bits(32)))
    if r < 0.7:
        return (request_at(g, va + 4 * g.below(1024), odd_entry(g)), Store(d.dom, va + 8 * g.pick(PLACES), g.bits(32)))
    return (g.list_call(X.MMU_UPDATE, (frame << 12 | X.EXTENDED, g.pick((X.PIN_L1, X.PIN_L2, X.UNPIN, X.NEW_BASEPTR))), 1),)


@move(6, NAME)
def stale_descriptors(g: Generator) -> Sequence[Action]:
    """Use a page, take its mapping away without a flush, make it a table, and store through the stale translation."""
    d, page = g.d, g.spare_page()
    frame, va = d.first + page, d.home + (page << 12)
    if not is_writable(g, va) or entry_of(g, va) >> 12 != frame or g.type_count[frame] != 1:
        return build_gdt(g)
    at = va + 8 * g.pick((0, 1, 257, 259))
    gone = update_with(g, va, g.pick((0, frame << 12 | RO)), 0)
    request = (va | X.EXTENDED, 512 << 8 | X.SET_LDT)
    table = set_gdt(g, (frame,), 512) if g.random() < 0.6 else g.list_call(X.MMU_UPDATE, request, 1)
    return (Store(d.dom, at, 0), gone, table, Store(d.dom, at, 0xFFFF), Load(d.dom, at))


# --- the LDT -----------------------------------------------------------------------------------------------------------------

def set_ldt(g: Generator, base: int, entries: int) -> Hypercall:
    """SET_LDT alone."""
    return g.list_call(X.MMU_UPDATE, (base & ~3 | X.EXTENDED, entries << 8 | X.SET_LDT), 1)


@move(12, NAME)
def build_ldt(g: Generator) -> Sequence[Action]:
    """A page of descriptors becomes the first of the LDT."""
    actions, frame = new_table(g)
    if frame < 0 or not g.d.first <= frame < g.d.first + g.d.tables:
        return (set_ldt(g, g.d.home + (g.hot_page() << 12), 512),)
    va = g.d.va_of(frame)
    if not entry_of(g, va) & P:
        actions.append(update_with(g, va, frame << 12 | RO, 2))
    actions.append(set_ldt(g, va, g.pick((1, 512, 512, 1024, 0, 8192))))
    if g.random() < 0.3:
        actions.append(update_with(g, va, frame << 12 | FULL, 2))
    return actions


@move(8, NAME)
def build_long_ldt(g: Generator) -> Sequence[Action]:
    """An LDT of several pages, of which all but the first are mapped when something is loaded from them."""
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
        sel = (g.pick((0, 1, 1, 1, 2, 3)) << 9 | g.pick(PLACES)) << 3 | X.TI | g.pick((1, 3))
        actions.append(LoadSegment(d.dom, g.pick(("ds", "ss", "gs")), sel, g.random() < 0.4))
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
        return (g.list_call(X.MMU_UPDATE, (d.end - 1 << 12 | X.EXTENDED, X.NEW_BASEPTR), 1),)
    return (set_ldt(g, 0, 0),)


@move(4, NAME)
def put_others_ldt(g: Generator) -> Sequence[Action]:
    """Domain 0 maps another domain's table of descriptors read-only, and puts the mapping."""
    d = g.d
    o = g.pick(g.domains)
    maps = g.machine.concrete.maps
    frames = [o.first + page for page in (*o.spares, *o.hot)
              if g.type_count[o.first + page] and g.type[o.first + page] in (SEG_DESC, LDT_DESC)]
    if d.dom or o is d or not frames:
        return touch_ldt(g)
    window, frame = g.pick(d.windows[:4]), g.pick(frames)
    first = maps["ldt"][o.dom, 0] if maps["has_ldt"][o.dom, 0] else frame
    return (update_with(g, window, g.pick((frame, first)) << 12 | g.pick((RO, RO, FULL)), 2), update_with(g, window, 0, 2))


# --- segment registers -------------------------------------------------------------------------------------------------------

def selector(g: Generator) -> int:
    """A selector: of a descriptor in one of the tables, of Xen's, of none."""
    r, maps = g.random(), g.machine.concrete.maps
    if r < 0.1:
        return g.below(8) if g.random() < 0.6 else g.bits(16)
    if r < 0.25:
        xens = (X.XEN_CS, X.XEN_DS, X.RING1_CS, X.RING1_DS, X.RING1_DS, X.RING3_CS, X.RING3_DS, 0x840, 0x848)
        return g.pick(xens) ^ g.pick((0, 0, 0, 1, 2, 3))
    in_ldt = r < 0.62
    entries = maps["ldt_entries" if in_ldt else "gdt_entries"][g.d.dom]
    frames = g.pages_of("ldt" if in_ldt else "gdt")
    page = g.below(max(len(frames), 1)) if g.random() < 0.8 else g.below(16)
    index = page << 9 | g.pick(PLACES) if g.random() < 0.9 else max(entries - g.pick((0, 1)), 0)
    return (index & 0x1FFF) << 3 | in_ldt << 2 | g.pick((1, 1, 1, 3, 3, 2, 0))


def there(g: Generator) -> list[tuple[int, int]]:
    """The segments in the tables, present or not: (selector for ring 0, ring of the segment)."""
    found = []
    for table, ti in (("gdt", 0), ("ldt", X.TI)):
        for n, frame in enumerate(g.pages_of(table)):
            words = g.machine.concrete.row(frame)
            found += [((n << 9 | i >> 1) << 3 | ti, w >> 13 & 3) for i, w in words.items() if i & 1 and w & 0x1000]
    return sorted(found)


@move(22, NAME)
def load_known_segment(g: Generator) -> Sequence[Action]:
    """A segment of one of the tables is loaded in the ring that it is for, or in another."""
    found = there(g)
    if not found:
        return build_ldt(g) if g.random() < 0.5 else build_gdt(g)
    sel, ring = g.pick(found)
    if not 512 <= sel >> 2 < 592 and g.random() < 0.85:
        sel |= ring
    user = ring > 1 if g.random() < 0.85 else g.random() < 0.5
    return (LoadSegment(g.d.dom, g.pick(("ds", "es", "fs", "gs", "ss", "ss")), sel, user),)


@move(18, NAME)
def load_segment(g: Generator) -> Sequence[Action]:
    """Segment registers are loaded, with what the tables have, or do not; also before and after a descriptor is replaced."""
    dom, sel = g.d.dom, selector(g)
    load = LoadSegment(dom, g.pick(("ds", "es", "fs", "gs", "ss", "ss")), sel, g.random() < 0.35)
    if g.random() < 0.8:
        return (load,)
    frames = g.pages_of("ldt" if sel & 4 else "gdt")
    if sel >> 12 >= len(frames):
        return (load,)
    q = any_descriptor(g)
    args = frames[sel >> 12] << 12 | sel & 0xFF8, q & 0xFFFFFFFF, q >> 32
    return (load, Hypercall(dom, X.UPDATE_DESCRIPTOR, args), load, load)


@move(7, NAME)
def swap_gdts(g: Generator) -> Sequence[Action]:
    """Two GDTs that differ, one after the other, and a load from each: whatever the processor has cached of the first is gone."""
    d, dom = g.d, g.d.dom
    pages = [page for page in d.spares if is_writable(g, d.home + (page << 12))
             and entry_of(g, d.home + (page << 12)) >> 12 == d.first + page and g.type_count[d.first + page] == 1]
    if len(pages) < 2:
        return change_gdt(g)
    place, actions = g.pick((1, 2, 7, 255, 296, 511)), list[Action]()
    one, two = (d.first + page for page in pages[:2])
    for frame in (one, two):
        va, q = d.va_of(frame), good_descriptor(g) if frame == two else segment(g, 0, 0xFFFFF)
        words = ((va + 8 * place, (q & 0xFFFFFFFF, q >> 32)),) if frame == one or g.random() < 0.6 else ()
        actions.append(Hypercall(dom, X.UPDATE_VA_MAPPING, (va >> 12, frame << 12 | RO, 2), words))
    load = LoadSegment(dom, g.pick(("ds", "gs", "ss")), place << 3 | g.pick((1, 1, 3)), g.random() < 0.2)
    actions += (set_gdt(g, (one,), 512), load)
    if g.random() < 0.5:                        # another domain's tables in between
        actions += (LoadSegment(g.pick(g.domains).dom, load.register, load.selector, load.user), load)
    return (*actions, set_gdt(g, (two,), 512), load)


# --- handlers, stacks, breakpoints -------------------------------------------------------------------------------------------

@move(7, NAME)
def set_trap_table(g: Generator) -> Sequence[Action]:
    """A list of handlers: good selectors, and sometimes one that is not, or a list that ends too late."""
    d, words = g.d, list[int]()
    for _ in range(g.pick((0, 1, 2, 4))):
        v = g.pick((*FAST, 3, 14, 255, g.below(256)))
        cs = g.pick(SELECTORS) if g.random() < 0.85 else g.pick(BAD_SELECTORS)
        words += (v | g.pick((0, 1, 3, 4, 7, 0xFB)) << 8 | cs << 16, g.pick((1, d.home, 0xFFFFFFFF)))
    if g.random() < 0.1:
        at = g.pick((END - 4, END - 8, END, X.HOLE, 0, d.windows[-1] + 0x1000))
        return (Hypercall(d.dom, X.SET_TRAP_TABLE, (at,)),)
    end = d.windows[0]
    if words and g.random() < 0.15 and not entry_of(g, end) & P and is_writable(g, end - 4):
        return (Hypercall(d.dom, X.SET_TRAP_TABLE, (end - 4 * len(words),), ((end - 4 * len(words), tuple(words)),)),)
    return (g.list_call(X.SET_TRAP_TABLE, (*words, g.bits(32), 0), 0),)


@move(5, NAME)
def set_fast_trap(g: Generator) -> Sequence[Action]:
    """A vector that may be fast, or may not; its handler is then replaced, too."""
    v = g.pick(FAST) if g.random() < 0.7 else g.pick((1, 0x1F, 0x30, 0x7F, 0x81, 0x82, 0x180, 0xFFFFFFFF))
    call = Hypercall(g.d.dom, X.SET_FAST_TRAP, (v,))
    if g.random() < 0.5:
        return (call,)
    handler = (v & 0xFF | g.pick((0, 3, 4)) << 8 | g.pick(SELECTORS) << 16, g.d.home, 0, 0)
    return (g.list_call(X.SET_TRAP_TABLE, handler, 0), call)


@move(5, NAME)
def set_entries(g: Generator) -> Sequence[Action]:
    """The callbacks, the kernel's stack, and the call that says nothing."""
    r, dom = g.random(), g.d.dom
    if r < 0.5:
        first, second = (g.pick(SELECTORS) if g.random() < 0.8 else g.pick(BAD_SELECTORS) for _ in range(2))
        high = g.pick((0, 0, 0x10000, 0xFFFF0000))
        return (Hypercall(dom, X.SET_CALLBACKS, (first | high, g.bits(32), second | high, g.bits(32))),)
    if r < 0.9:
        ss = g.pick((X.RING1_DS, X.RING1_DS, 0x39, 0x23, 0, 0x820, 0x10820, 0x3A))
        return (Hypercall(dom, X.STACK_SWITCH, (ss, g.bits(32))),)
    return (Hypercall(dom, X.FPU_TASKSWITCH, ()),)


@move(8, NAME)
def debug_registers(g: Generator) -> Sequence[Action]:
    """Breakpoints up to Xen and beyond, control bits of every kind; what was stored is read."""
    dom, r = g.d.dom, g.pick((0, 1, 2, 3, 6, 7, 7, 7, 4, 5, 8, 0xFFFFFFFF))
    value = g.pick((g.bits(32), g.bits(31), X.BREAKPOINT_END, X.BREAKPOINT_END + 1, 0, g.bits(16) << 16 & 0xDDDD0000,
                    1 << g.below(32)))
    return (Hypercall(dom, X.SET_DEBUGREG, (r, value)), Hypercall(dom, X.GET_DEBUGREG, (g.pick((r, r, g.below(9))),)))
