"""The moves of xen-2003 programs about control transfers: a stage of segments and gates, and what a guest does on it."""
from collections.abc import Sequence
from typing import Final, NamedTuple

from oracle.generate import Generator, move
from oracle.moves_2003 import NAME, entry_of, is_writable, update_with
from oracle.moves_2003_descriptors import FULL, RO, set_gdt, set_ldt
from spec.abi import US, P, Xen2003
from spec.vocabulary import (
    PRIVILEGED,
    Access,
    Action,
    Context,
    Data,
    FarTransfer,
    Hypercall,
    Interrupt,
    Privileged,
    Return,
)
from spec.x86.descriptors import base_of, limit_of
from spec.x86.flags import TF

X = Xen2003
ONES: Final = 0xFFFFFFFF
END: Final = X.GUEST_END
MASTER: Final = 1 << 31                         # of the mask of events: they may be delivered at all
USER: Final = 0x67                              # of an L1 entry: for applications too
FIRST: Final = 8                                # place of the stage's first descriptor
FLAGS: Final = (0, 0, 0, 0x100, 0x4000, 0x10000, 0x40000, 0x8D5, 0x14155, 0x54DD5)
NAMES: Final = tuple(PRIVILEGED)
VECTORS: Final = (0, 1, 2, 3, 3, 4, 4, 5, 6, 7, 8, 10, 11, 12, 13, 13, 14, 14, 14, 15, 17, 18, 0x20, 0x2F, 0x80, 0x82, 0xFF)
FAST: Final = (0x80, 0x80, 0x20, 0x2F)


def descriptor(kind: int, dpl: int, base: int = 0, raw: int = 0xFC3FF, bits: int = 0xC) -> int:
    """A present segment: S and type, granularity and size in `bits`."""
    return (raw & 0xFFFF | (base & 0xFFFFFF) << 16 | (0x80 | dpl << 5 | kind) << 40 | raw >> 16 << 48 | bits << 52
            | base >> 24 << 56)


def call_gate(ring: int, selector: int, offset: int, parameters: int = 0) -> int:
    """A call gate."""
    return offset & 0xFFFF | selector << 16 | parameters << 32 | (0x8C | ring << 5) << 40 | offset >> 16 << 48


def stage(g: Generator) -> list[int]:
    """Descriptors of every kind that is legal, from place FIRST on: the order matters to the gates among them."""
    home, ti = g.d.home, g.pick((0, 0, X.TI))
    absent = 1 << 47
    low = home + 0x7000
    code = [descriptor(0x1A | accessed, dpl) for dpl, accessed in ((1, 0), (2, 1), (3, 0))]             # 8, 9, 10
    data = [descriptor(0x12 | accessed, dpl) for dpl, accessed in ((1, 0), (2, 0), (3, 1))]             # 11, 12, 13
    conforming = [descriptor(0x1E, dpl) for dpl in (1, 2, 3)]                                           # 14, 15, 16
    based = [descriptor(kind, dpl, home, 0xFFFF, 4) for kind, dpl in ((0x1A, 1), (0x1A, 3), (0x12, 1), (0x12, 3))]  # 17..20
    odd = [descriptor(0x10, 1), descriptor(0x12, 1, bits=8), descriptor(0x12, 3, low, 0x7FF, 4),
           descriptor(0x12, 1, low, 0x7FF, 4),
           descriptor(0x18, 1), descriptor(0x1A, 3) & ~absent, descriptor(0x12, 1) & ~absent, descriptor(0x12, 3) & ~absent,
           descriptor(0x1A, 1) & ~absent, descriptor(0x1A, 1, bits=8), descriptor(0x1A, 1, home, 0x8003, 4)]    # 21..31
    to = [FIRST << 3 | 1 | ti, FIRST << 3 | 1 | ti, X.RING1_CS, (FIRST + 1) << 3 | 1 | ti, (FIRST + 6) << 3 | 1 | ti,
          (FIRST + 9) << 3 | 1 | ti, (FIRST + 20) << 3 | 1 | ti, (FIRST + 3) << 3 | 1 | ti, (FIRST + 2) << 3 | 1 | ti,
          (FIRST + 23) << 3 | 1 | ti, 0x7F9]
    gates = [call_gate(g.pick((3, 3, 3, 2, 1)), selector, g.pick((home + 0x1000, home + 0x1000, 0x1000, 0, 0x8003, 0x8004, END)),
                  g.pick((0, 0, 1, 2, 3, 31))) for selector in to]
    gates[1] &= ~absent if g.random() < 0.5 else -1
    return [*code, *data, *conforming, *based, *odd, *gates]


# --- what there is now -------------------------------------------------------------------------------------------------------

class Known(NamedTuple):
    """Selectors (with RPL 0) and descriptors of what a program can name."""
    code: list[tuple[int, int]]
    data: list[tuple[int, int]]
    gates: list[tuple[int, int]]


XENS: Final = tuple((sel & ~3, X.DESCRIPTORS[sel >> 3]) for sel in (X.RING1_CS, X.RING3_CS, X.RING1_DS, X.RING3_DS))


def tables(g: Generator) -> list[tuple[int, int]]:
    """The pages of both tables, of the LDT also those that Xen has yet to map: (first selector, frame)."""
    maps, dom = g.machine.concrete.maps, g.d.dom
    out = [(n << 12, frame) for n, frame in enumerate(g.pages_of("gdt"))]
    base, entries = maps["ldt_base"][dom], maps["ldt_entries"][dom]
    for n in range(min(entries + 511 >> 9, 3)):
        entry = entry_of(g, base + (n << 12))
        if entry & P:
            out.append((n << 12 | X.TI, entry >> 12))
    return out


def known(g: Generator) -> Known:
    """What the tables have, and the segments that Xen gives."""
    out = Known(list(XENS[:2]), list(XENS[2:]), [])
    for first, frame in tables(g):
        row = g.machine.concrete.row(frame)
        for i, high in row.items():
            if i & 1 and high & 0x8000 and (first or not 512 <= i < 592):
                q, sel = row.get(i - 1, 0) | high << 32, first | i >> 1 << 3
                (out.gates if not high & 0x1000 else out.code if high & 0x800 else out.data).append((sel, q))
    for each in out:
        each.sort()
    return out


def dpl(q: int) -> int:
    """Of a descriptor."""
    return q >> 45 & 3


def choose(g: Generator, among: Sequence[tuple[int, int]], ring: int, wide: bool = True) -> tuple[int, int]:
    """A selector for a ring and its descriptor: mostly one that is good there."""
    good = [(sel, q) for sel, q in among if (dpl(q) == ring or q >> 40 & 0x1C == 0x1C) and (not wide or q >> 54 & 1)]
    sel, q = g.pick(good) if good and g.random() < 0.93 else g.pick(among)
    r = g.random()
    if r < 0.03:
        return g.pick((0, 3, 0x39, 0xFFFF, 0xFFFC, 0x1005, 0x808, 0x840, 0x848, 0x830)) & ~3 | ring, 0
    return sel | (ring if r < 0.97 else g.below(3) + 1), q


def pages(g: Generator) -> tuple[list[int], list[int]]:
    """Pages of data that can be written now: by the kernel, and those among them by applications."""
    d = g.d
    kernels = [va for page in d.hot if is_writable(g, va := d.home + (page << 12))]
    return kernels, [va for va in kernels if entry_of(g, va) & US and g.word[g.base[d.dom], va >> 22] & US]


# --- contexts ----------------------------------------------------------------------------------------------------------------

class Scene(NamedTuple):
    """A context, and where its stack is."""
    at: Context
    ring: int
    stack: int                                  # linear address of its top
    known: Known
    data: Data


def place_on_stack(g: Generator, q: int, ring: int) -> tuple[int, int]:
    """ESP, and its linear address: in the middle of a page, at its edges, misaligned, at the segment's limit, nowhere."""
    kernels, users = pages(g)
    among = users if ring == 3 and users and g.random() < 0.92 else kernels
    base, r = base_of(q), g.random()
    if not among or r < 0.02:
        at = g.pick((0, END - 4, END, X.HOLE + 8, ONES - 31, g.d.windows[0] + 8)) & ONES
    elif r < 0.72:
        at = g.pick(among) + 0x800 + 4 * g.below(64)
    elif r < 0.88:
        at = g.pick(among) + g.pick((0, 4, 8, 12, 16, 20, 24, 28, 36))
    elif r < 0.93:
        at = g.pick(among) + g.pick((0xFFC, 0xFF8, 0xFF4, 0xFF0, 0xFEC, 0xFE8))
    elif r < 0.97:
        at = g.pick(among) + 0x800 + g.below(64)
    else:
        at = base + limit_of(q) + g.pick((1, 1, 5, 9, -3, -7, -11, 2))
    return (at - base) & ONES, at & ONES


def data_register(g: Generator, k: Known, ring: int) -> int:
    """A selector for DS, ES, FS or GS."""
    r = g.random()
    if r < 0.5:
        return X.RING3_DS if ring == 3 else X.RING1_DS
    if r < 0.7:
        return g.below(4)
    return choose(g, k.data if r < 0.95 else k.code, ring, False)[0]


def event_words(g: Generator) -> Data:
    """Events and their mask: mostly one that lets nothing through, or nothing at all."""
    if g.random() < 0.85:
        return ()
    bit = 1 << g.below(8)
    mask = g.pick((0, bit, MASTER, MASTER | bit, MASTER | bit, ONES))
    return shared_words(g, g.pick((0, bit, bit, bit | 1, MASTER, ONES)), mask)


def shared_words(g: Generator, events: int, mask: int) -> Data:
    """Events and their mask, if the kernel can store them."""
    at = g.d.home + (g.d.pages << 12)
    return ((at, (events, mask)),) if entry_of(g, at) & 3 == 3 else ()


def scene(g: Generator, size: int, ring: int = 0) -> Scene | None:
    """A context in which an instruction of some bytes can be put at CS:EIP; None if there is no page for it."""
    k = known(g)
    ring = ring or g.pick((1, 1, 1, 3, 3, 3, 3, 2))
    kernels, users = pages(g)
    among = users if ring == 3 and users and g.random() < 0.95 else kernels
    cs, code = choose(g, k.code, ring)
    ss, stack = choose(g, k.data, ring)
    esp, top = place_on_stack(g, stack, ring)
    if not among:
        return None
    at = g.pick(among) + 0x400 + 4 * g.below(128)
    if code and g.random() < 0.04:              # at the segment's very end
        edge = base_of(code) + limit_of(code) + 1 - size & ~3
        at = edge if is_writable(g, edge) else at
    eflags = 0x202 | g.pick(FLAGS) if g.random() < 0.4 else 0x202
    ds, es, fs, gs = (data_register(g, k, ring) for _ in range(4)) if g.random() < 0.4 else (
        (X.RING3_DS,) * 4 if ring == 3 else (X.RING1_DS,) * 4)
    return Scene(Context(cs, (at - base_of(code)) & ONES, eflags, esp, ss, ds, es, fs, gs), cs & 3, top, k, event_words(g))


def stored(g: Generator, at: int, words: Sequence[int]) -> Data:
    """Words for a stack, as far as they can be stored there: whole words, each page apart."""
    out: list[tuple[int, tuple[int, ...]]] = []
    if at & 3:                                  # the words around, shifted
        wide, shift = 0, 8 * (at & 3)
        for n, word in enumerate(words):
            wide |= word << 32 * n
        wide <<= shift
        words = [wide >> 32 * n & ONES for n in range(len(words) + 1)]
        at &= ~3
    for n, word in enumerate(words):
        va = (at + 4 * n) & ONES
        if not is_writable(g, va):
            continue
        if out and va & 0xFFF and out[-1][0] + 4 * len(out[-1][1]) == va:
            out[-1] = out[-1][0], (*out[-1][1], word)
        else:
            out.append((va, (word,)))
    return tuple(out)


def target(g: Generator, k: Known, ring: int) -> tuple[int, int]:
    """Code and an offset in it, mostly within its limit."""
    sel, q = choose(g, k.code, ring, g.random() < 0.9)
    if g.random() < 0.9:
        return sel, (g.d.home + 0x1000 - base_of(q)) & ONES if base_of(q) <= g.d.home else 0
    return sel, g.pick((limit_of(q), limit_of(q) + 1, 0, ONES)) & ONES


def frame(g: Generator, s: Scene, with_flags: bool) -> list[int]:
    """What RET or IRET finds on its stack: a return to the same ring, outwards, or inwards."""
    r = g.random()
    ring = s.ring if r < 0.45 else 3 if r < 0.9 else g.pick((0, 1, 2))
    cs, eip = target(g, s.known, ring)
    ss, q = choose(g, s.known.data, cs & 3)
    esp, _ = place_on_stack(g, q or XENS[2][1], ring)
    words = [eip, cs | g.pick((0, 0, 0, 0xABCD0000))]
    if with_flags:
        words.append(g.pick((0x202, 2, 0x202 | g.pick(FLAGS), g.bits(22), g.bits(32))))
    return [*words, esp, ss | g.pick((0, 0, 0, 0x12340000))]


# --- setting up --------------------------------------------------------------------------------------------------------------

@move(14, NAME)
def set_stage(g: Generator) -> Sequence[Action]:
    """The stage becomes the GDT or the LDT, perhaps both; pages of data are opened to applications."""
    d = g.d
    actions: list[Action] = []
    free = [page for page in d.spares if g.type_count[d.first + page] == 1 and is_writable(g, d.home + (page << 12))
            and entry_of(g, d.home + (page << 12)) >> 12 == d.first + page]
    words = [w for q in stage(g) for w in (q & ONES, q >> 32)]
    for table, page in zip(g.pick((("gdt", "ldt"), ("gdt",), ("gdt",), ("ldt",), ("ldt",))), free, strict=False):
        va, frame_ = d.home + (page << 12), d.first + page
        data = ((va + 8 * FIRST, tuple(words)),)
        actions.append(Hypercall(d.dom, X.UPDATE_VA_MAPPING, (va >> 12, frame_ << 12 | RO, 2), data))
        if table == "gdt":
            actions.append(set_gdt(g, (frame_,), 512))
        else:                                   # or its second page, which is mapped only when it is used
            actions.append(set_ldt(g, va, 512) if g.random() < 0.6 else set_ldt(g, va - 0x1000, 1024))
    return [*actions, *open_pages(g)]


@move(6, NAME)
def open_pages(g: Generator) -> Sequence[Action]:
    """Pages of data are mapped anew: for applications too, for the kernel only, read-only, or not at all."""
    d, out = g.d, list[Action]()
    for _ in range(g.pick((1, 2, 3, 4))):
        page = g.pick(d.hot)
        kind = g.pick((USER, USER, USER, USER, FULL, FULL, 0x25, RO, 0))
        out.append(update_with(g, d.home + (page << 12), (d.first + page << 12 | kind) if kind else 0, g.pick((2, 2, 2, 1, 0))))
    return out


def kernel_stack(g: Generator, k: Known, wide: bool = True) -> Action:
    """A stack for entering the kernel."""
    ss, q = choose(g, k.data, 1, wide)
    esp, _ = place_on_stack(g, q, 1)
    return Hypercall(g.d.dom, X.STACK_SWITCH, (ss if ss & 3 else X.RING1_DS, esp))


def callbacks(g: Generator, k: Known) -> Action:
    """Callbacks for events and for what cannot be restored."""
    (event, eip), (failsafe, fip) = target(g, k, 1), target(g, k, 1)
    return Hypercall(g.d.dom, X.SET_CALLBACKS, (event & ~3 | 1, eip, failsafe & ~3 | 1, fip))


def prepared(g: Generator, k: Known, action: Action) -> list[Action]:
    """First what most transfers need: a stage, a stack for the kernel, callbacks; now and then it is left out."""
    maps, dom, out = g.machine.concrete.maps, g.d.dom, list[Action]()
    if g.random() < 0.12:
        return [action]
    if not k.gates:
        out += set_stage(g)
    if not is_writable(g, maps["kernel_sp"][dom] - 8 & ONES) or g.random() < 0.04:
        out.append(kernel_stack(g, k))
    if not maps["trap_cs"][dom, X.FAILSAFE_CALLBACK] or g.random() < 0.03:
        out.append(callbacks(g, k))
    return [*out, action]


@move(16, NAME)
def set_handlers(g: Generator) -> Sequence[Action]:
    """Handlers of vectors that transfers end in, callbacks, the kernel's stack."""
    k, words = known(g), list[int]()
    for _ in range(g.pick((1, 3, 5))):
        cs, eip = target(g, k, 1)
        cs = cs & ~3 | 1
        flags = g.pick((0, 1, 2, 3, 3, 4, 7))
        words += (g.pick(VECTORS) | flags << 8 | (cs if g.random() < 0.8 else X.RING1_CS) << 16, eip or 1)
    out: list[Action] = [g.list_call(X.SET_TRAP_TABLE, (*words, 0, 0), 0)]
    r = g.random()
    if r < 0.4:
        out.append(callbacks(g, k))
    if r < 0.7:
        out.append(kernel_stack(g, k, g.random() < 0.95))
    return out


# --- transfers ---------------------------------------------------------------------------------------------------------------

@move(70, NAME)
def far_pointer(g: Generator) -> Sequence[Action]:
    """A far jump or call: to code of this ring, through a gate, to what can be neither."""
    s = scene(g, 7)
    if s is None:
        return open_pages(g)
    sel, offset = target(g, s.known, s.ring)
    if s.known.gates and g.random() < 0.55:
        sel = g.pick(s.known.gates)[0] | (s.ring if g.random() < 0.9 else g.below(4))
    elif g.random() < 0.06:
        sel = g.pick((0, 1, 3, X.XEN_CS, X.XEN_DS | 1, 0x840, 0x848, 0xFFFF, 0x39, choose(g, s.known.data, s.ring)[0]))
    data = (*s.data, *(stored(g, s.stack, [g.bits(32) for _ in range(4)]) if g.random() < 0.3 else ()))
    return prepared(g, s.known, FarTransfer(g.d.dom, s.at, g.pick(("jmp", "call", "call")), sel, offset, data))


@move(70, NAME)
def return_far(g: Generator) -> Sequence[Action]:
    """RET or IRET, on a stack with a frame."""
    s = scene(g, 1)
    if s is None:
        return open_pages(g)
    iret = g.random() < 0.6
    data = (*s.data, *(stored(g, s.stack, frame(g, s, iret)) if g.random() < 0.95 else ()))
    return prepared(g, s.known, Return(g.d.dom, s.at, data) if iret else FarTransfer(g.d.dom, s.at, "ret", 0, 0, data))


@move(55, NAME)
def interrupt(g: Generator) -> Sequence[Action]:
    """INT of a vector: that of the fast trap, of an exception, of a handler with or without leave."""
    s = scene(g, 2)
    if s is None:
        return open_pages(g)
    fast = g.machine.concrete.maps["fast_trap"][g.d.dom]
    v = fast if fast and g.random() < 0.4 else g.pick(VECTORS) if g.random() < 0.8 else g.below(256)
    before: list[Action] = []
    if g.random() < 0.15:
        v = g.pick(FAST)
        cs, eip = target(g, s.known, 1)
        handler = (v | g.pick((3, 3, 1, 0)) << 8 | (cs & ~3 | 1) << 16, eip or 1, 0, 0)
        before = [g.list_call(X.SET_TRAP_TABLE, handler, 0), Hypercall(g.d.dom, X.SET_FAST_TRAP, (v,))]
    return [*before, *prepared(g, s.known, Interrupt(g.d.dom, s.at, v, s.data))]


@move(32, NAME)
def access(g: Generator) -> Sequence[Action]:
    """A load or store through DS: at a page of every kind, at the end of a segment, through no segment."""
    s = scene(g, 5)
    if s is None:
        return open_pages(g)
    d = g.d
    va = g.pick((d.home + (g.hot_page() << 12) + g.pick((0, 0x7FE, 0xFFC, 0xFFD, 0xFFF)), d.windows[0] + 8, d.windows[0] - 2, 0,
                 X.HOLE + 8, END - 4, END - 3, ONES, d.home + (d.tables << 12), 0x7FC, 0x7FD, 0xFFFD))
    return prepared(g, s.known, Access(d.dom, s.at, va, g.random() < 0.5, s.data))


@move(52, NAME)
def privileged(g: Generator) -> Sequence[Action]:
    """An instruction that traps, in some ring."""
    name = g.pick(NAMES) if g.random() < 0.5 else g.pick(("pushf", "popf", "popf", "int3", "into", "bound", "fpu", "nop", "nop"))
    s = scene(g, len(PRIVILEGED[name]))
    if s is None:
        return open_pages(g)
    before: list[Action] = []
    if name == "fpu" and g.random() < 0.5:
        before = [Hypercall(g.d.dom, X.FPU_TASKSWITCH, ())]
    data = s.data
    if name == "bound":
        data += stored(g, s.stack, (g.pick((0, 0, ONES, 1, 1 << 31)), g.pick((0, 0, 1, ONES, 1 << 31))))
    elif name == "popf":
        data += stored(g, s.stack, (g.pick((g.bits(32), 0, 0x202 | g.pick(FLAGS))),))
    at = s.at
    if name == "into" and g.random() < 0.6:
        at.eflags |= 0x800
    action = Privileged(g.d.dom, at, name, data)
    after: list[Action] = [action] if name == "fpu" and g.random() < 0.6 else []
    if at.eflags & TF and g.random() < 0.4:     # what a single step has left there
        after.append(Hypercall(g.d.dom, X.GET_DEBUGREG, (6,)))
    return [*before, *prepared(g, s.known, action), *after]


@move(6, NAME)
def single_step(g: Generator) -> Sequence[Action]:
    """A step into a handler that masks events for every other vector, while none is pending."""
    s = scene(g, 1)
    if s is None:
        return open_pages(g)
    cs, eip = target(g, s.known, 1)
    s.at.eflags |= TF
    handler = (1 | X.EVENTS_MASKED << 8 | (cs & ~3 | 1) << 16, eip or 1, 0, 0)
    step = Privileged(g.d.dom, s.at, "nop", shared_words(g, 0, MASTER | 1 << g.below(8)))
    return [g.list_call(X.SET_TRAP_TABLE, handler, 0), *prepared(g, s.known, step)]
