"""The moves of xen-4.17 programs about control transfers: contexts of both modes, one instruction, frames on odd stacks."""
from collections.abc import Sequence
from typing import Final

from oracle.generate import Generator, move
from oracle.moves_417 import IN_XEN, NAME, NOWHERE, ONES, entry_of, extended, is_writable, mapped_va, update_with
from spec.abi import NX, P, Xen417
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
    SystemCall,
)

X: Final = Xen417
KERNEL, USER = X.KERNEL_CS & ~3, X.KERNEL_CS
IF, NT, AC, ID, DF = 1 << 9, 1 << 14, 1 << 18, 1 << 21, 1 << 10
STATUS: Final = 0x8D5                           # CF PF AF ZF SF OF
IN_SYSTEM_CALL: Final = 0x100
CODE_SELECTORS: Final = (0, 3, 8, 0xE008, 0xE010, 0xE018, 0xE02B, 0xE038, 0xE040, 0xE034, 4, 7, 0x1B, 0xFFFF)
STACK_SELECTORS: Final = (0, 3, 8, 0xE008, 0xE010, 0xE018, 0xE023, 0xE033, 0xE038, 4, 0xE028)
INSTRUCTIONS: Final = tuple(PRIVILEGED)
OFTEN: Final = ("clts", "fpu", "pushf", "popf", "ud2", "int3", "cli", "nop", "mov_to_cr0")
NEAR_EDGE: Final = (0x18, 0x28, 0x38, 0x40, 0x48, 0x10, 8, 0)


# --- contexts ----------------------------------------------------------------------------------------------------------------

def page(g: Generator) -> int:
    """A page of data, most likely one that can be written."""
    va = 0
    for _ in range(4):
        va = g.d.home + (g.hot_page() << 12)
        if is_writable(g, va):
            return va
    return va


def code_page(g: Generator) -> int:
    """A page for the code: one that can be written and fetched."""
    for _ in range(4):
        va = page(g)
        if is_writable(g, va) and not entry_of(g, va) & NX:
            break
    return va


def flags(g: Generator) -> int:
    """RFLAGS of a context."""
    r = g.random()
    if r < 0.45:
        return IF | 2
    chosen = 2 | IF * (g.random() < 0.6) | g.bits(12) & STATUS
    for flag in (NT, AC, ID, DF):
        chosen |= flag * (g.random() < 0.25)
    return chosen


def stack(g: Generator) -> int:
    """RSP: in a page of data; now and then near its edges, not aligned, or where no stack can be."""
    r = g.random()
    if r < 0.72:
        return page(g) + 0x100 + (g.below(0x1E0) << 3)
    if r < 0.82:
        return page(g) + g.below(0x1000)
    if r < 0.94:
        return page(g) + g.pick(NEAR_EDGE)
    return g.pick((*NOWHERE, *IN_XEN, mapped_va(g) + 0x800, g.d.home + (g.d.tables << 12) + 0x800, X.GUEST_HIGH_START + 64))


def context(g: Generator, rsp: int | None = None, odd: bool = True) -> Context:
    """The kernel's registers or an application's."""
    user = bool(g.machine.concrete.maps["has_user"][g.d.dom]) and g.random() < 0.45
    cs, ss, r = USER if user else KERNEL, X.USER_SS, g.random()
    if odd and r < 0.03:
        cs = g.pick(CODE_SELECTORS)
    elif odd and r < 0.06:
        ss = g.pick(STACK_SELECTORS)
    elif r < 0.12 and not user:
        cs |= g.below(3)
    data = [g.pick((0, X.USER_SS)) for _ in range(4)] if g.random() < 0.1 else [0] * 4
    return Context(cs, code_page(g) + (g.below(0xF0) << 4), flags(g), stack(g) if rsp is None else rsp, ss, *data)


def pending(g: Generator) -> Data:
    """Often nothing; else an event becomes pending before the guest runs."""
    d = g.d
    va = d.home + (d.pages << 12)
    shared = g.machine.shared[d.dom]
    if g.random() < 0.8 or entry_of(g, va) >> 12 & (1 << 40) - 1 != shared or not is_writable(g, va):
        return ()
    return ((va, (X.UPCALL_PENDING | X.UPCALL_MASK,)),)


def pad(g: Generator, user: bool) -> int:
    """A place where a transfer may lead; rarely one that is none."""
    r = g.random()
    if r < 0.94:
        return X.PADS + X.PAD * ((X.BEHIND_USER_PAD if user else X.FREE_PAD) + 1 + g.below(26))
    return g.pick((mapped_va(g), g.d.windows[0], NOWHERE[0], 1 << 50, ONES & ~0xFFF, 0x900000000))


def is_user(at: Context) -> bool:
    """The context is an application's."""
    return at.cs & 3 == 3


# --- the moves ---------------------------------------------------------------------------------------------------------------

@move(10, NAME)
def user_root(g: Generator) -> Sequence[Action]:
    """A root for user mode, or none: mostly the kernel's own."""
    return (extended(g, X.NEW_USER_BASEPTR, g.d.end - 1 if g.random() < 0.93 else 0),)


@move(45, NAME)
def interrupt(g: Generator) -> Sequence[Action]:
    """INT of a vector."""
    vector = g.pick((3, 4, 0x80, 13, 14, 1, 2, 8)) if g.random() < 0.25 else g.below(128)
    return (Interrupt(g.d.dom, context(g), vector, pending(g)),)


@move(45, NAME)
def access(g: Generator) -> Sequence[Action]:
    """A load or a store: where nothing is, where it may not be, or where it may."""
    r = g.random()
    if r < 0.35:
        va = g.pick((*g.d.windows, 0x900000000, 1 << 40, ONES - 0xFFF, X.WINDOW, X.WINDOW + 8 * g.d.first, NOWHERE[0]))
    elif r < 0.6:
        va = g.d.home + (g.d.tables + g.below(g.d.pages - g.d.tables) << 12) + (g.below(512) << 3)
    else:
        va = mapped_va(g) + (g.below(512) << 3)
    return (Access(g.d.dom, context(g), va + (g.random() < 0.1) * g.below(8) & ONES, g.random() < 0.5, pending(g)),)


@move(45, NAME)
def privileged(g: Generator) -> Sequence[Action]:
    """An instruction that Xen performs, or that traps."""
    name, data = g.pick(OFTEN if g.random() < 0.5 else INSTRUCTIONS), pending(g)
    if name == "popf":
        rsp = page(g) + 0x100 + (g.below(0x1E0) << 3)
        return (Privileged(g.d.dom, context(g, rsp), name, (*data, (rsp, (flags(g) | g.bits(22) & 0x203200,)))),)
    return (Privileged(g.d.dom, context(g), name, data),)


@move(25, NAME)
def system_call(g: Generator) -> Sequence[Action]:
    """SYSCALL."""
    return (SystemCall(g.d.dom, context(g), pending(g)),)


@move(45, NAME)
def far_transfer(g: Generator) -> Sequence[Action]:
    """A far jump, call or return."""
    kind, rsp = g.pick(("jmp", "call", "ret")), page(g) + 0x100 + (g.below(0x1C0) << 3)
    at = context(g, rsp)
    selector = g.pick((KERNEL, USER, USER, KERNEL | 1)) if g.random() < 0.6 else code_selector(g)
    if kind != "ret":
        return (FarTransfer(g.d.dom, at, kind, selector, pad(g, is_user(at)), pending(g)),)
    words = (pad(g, is_user(at)), selector, *((rsp + 64, X.USER_SS) if g.random() < 0.3 else ()))
    return (FarTransfer(g.d.dom, at, "ret", data=(*pending(g), (rsp, words))),)


def code_selector(g: Generator) -> int:
    """A selector of some code: Xen's, or one of the domain's tables."""
    maps, d = g.machine.concrete.maps, g.d.dom
    for _ in range(6):
        n = g.below(16)
        for table, limit, ti in (("gdt", 512 * 14, 0), ("ldt", maps["ldt_entries"][d], 4)):
            if maps["has_" + table][d, n]:
                row = g.machine.concrete.row(maps[table][d, n])
                codes = sorted(i for i, q in row.items() if q >> 43 & 3 == 3 and n << 9 | i < limit)
                if codes:
                    return (n << 9 | g.pick(codes)) << 3 | ti | g.pick((0, 1, 3, 3))
    return g.pick(CODE_SELECTORS)


@move(45, NAME)
def iret(g: Generator) -> Sequence[Action]:
    """The iret hypercall: to the kernel or to user mode, fully or as from a system call."""
    d, rsp = g.d, page(g) + 8 * g.below(0x1F0)
    user = bool(g.machine.concrete.maps["has_user"][d.dom]) and g.random() < 0.5
    cs, ss = (USER if user else KERNEL), X.USER_SS
    if g.random() < 0.06:
        cs = g.pick(CODE_SELECTORS)
    elif g.random() < 0.06:
        ss = g.pick(STACK_SELECTORS)
    words = (g.bits(64), g.bits(64), g.bits(64), g.pick((0, IN_SYSTEM_CALL, IN_SYSTEM_CALL, g.bits(64))), pad(g, user),
             cs | g.pick((0, 0, 0, 1 << 16, 1 << 32)), flags(g) | g.pick((0, 0, 0x3000, 1 << 17)), stack(g), ss)
    at = context(g, rsp, odd=False)
    at = Context(KERNEL, at.eip, at.eflags, at.esp, at.ss, at.ds, at.es, at.fs, at.gs)
    if rsp & 0xFFF <= 0x1000 - 72:
        return (Return(d.dom, at, (*pending(g), (rsp, words))),)
    split = 0x1000 - (rsp & 0xFFF) >> 3
    return (Return(d.dom, at, (*pending(g), (rsp, words[:split]), (rsp + 8 * split & ONES, words[split:]))),)


@move(14, NAME)
def switch_stack(g: Generator) -> Sequence[Action]:
    """The kernel's stack, for what comes from user mode."""
    rsp = stack(g) if g.random() < 0.15 else page(g) + 0x100 + g.below(0xF00)
    return (Hypercall(g.d.dom, X.STACK_SWITCH, (g.pick((X.USER_SS, 0, X.USER_SS & ~3)), rsp)),)


@move(10, NAME)
def task_switch(g: Generator) -> Sequence[Action]:
    """The FPU is somebody else's."""
    return (Hypercall(g.d.dom, X.FPU_TASKSWITCH, (g.pick((1, 1, 1, 0)),)), Privileged(g.d.dom, context(g), "fpu"))


@move(14, NAME)
def handlers(g: Generator) -> Sequence[Action]:
    """Handlers of some vectors, which are then called."""
    d, words, vectors = g.d, list[int](), [g.below(256) for _ in range(g.pick((1, 2, 3)))]
    for v in vectors:
        words += [v | g.below(8) << 8 | g.pick((USER, KERNEL, 0, 8)) << 16, X.PADS + X.PAD * (X.FREE_PAD + g.below(28))]
    at = g.buffer(len(words) + 2)
    call = Hypercall(d.dom, X.SET_TRAP_TABLE, (at,), ((at, (*words, 0, 0)),))
    return (call, *(Interrupt(d.dom, context(g), n, pending(g)) for v in vectors for n in (v, v >> 1) if n < 128))


@move(8, NAME)
def cut_stack(g: Generator) -> Sequence[Action]:
    """A page of stacks becomes read-only, absent or another, at once or without a flush; then it is used."""
    va, entry = page(g), 0
    entry = g.pick((0, entry_of(g, va) & ~2, entry_of(g, va) & ~2, g.data_frame() << 12 | 0x67))
    at = context(g, va + 0x400)
    if not entry_of(g, va) & P:
        return (Interrupt(g.d.dom, at, 3),)
    used: Action = Interrupt(g.d.dom, at, 3) if g.random() < 0.5 else Privileged(g.d.dom, at, "pushf")
    return (update_with(g, va, entry, g.pick((0, 2, 2))), used)
