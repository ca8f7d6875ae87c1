"""Control transfers of guests of Xen 1.2 on the model: each frame to the word (spec/RULINGS.md W-43 to W-60)."""
import random
from collections.abc import Callable, Iterator

import pytest

from oracle.generate import Generator
from refmodel import ModelError, audit, boot
from spec.abi import DB, DE, GP, NM, NP, PF, SS, TS, UD, A, D, Xen2003
from spec.vocabulary import (
    KILLED,
    PRIVILEGED,
    Access,
    Context,
    DomainSetup,
    FarTransfer,
    Interrupt,
    Outcome,
    Privileged,
    Return,
    Setup,
    code_of,
    code_words,
)
from tests.refmodel.conftest import Lab2003

X = Xen2003
CODE, STACK, USER_STACK, TABLE, SECOND = 8, 10, 11, 12, 13      # pages of the domain's
HANDLER, TARGET = 0xC0001000, 0xC0001100
IF, RF, TF, NT, AC, OF = 0x202, 0x10000, 0x100, 0x4000, 0x40000, 0x800
ONES = 0xFFFFFFFF
FLAT_1, FLAT_3 = X.RING1_DS, X.RING3_DS


def segment(kind: int, dpl: int, base: int = 0, limit: int = 0xFC3FF, bits: int = 0xC) -> int:
    """A descriptor: `kind` is S and type; the limit in pages if bits has 8."""
    return (limit & 0xFFFF | (base & 0xFFFFFF) << 16 | (0x80 | dpl << 5 | kind) << 40 | limit >> 16 << 48 | bits << 52
            | base >> 24 << 56)


def gate(dpl: int, selector: int, offset: int, parameters: int = 0) -> int:
    """A call gate."""
    return offset & 0xFFFF | selector << 16 | parameters << 32 | (0x8C | dpl << 5) << 40 | offset >> 16 << 48


class Kernel:
    """A kernel with a handler for every vector, a stack of its own, pages for its application, and a GDT to fill."""

    def __init__(self, xen: Lab2003, dom: int = 1) -> None:
        self.xen, self.dom, self.stack, self.esp = xen, dom, xen.va(STACK, 0x800), xen.va(USER_STACK, 0x800)
        for page in (CODE, USER_STACK):
            assert xen.uvm(dom, xen.va(page), xen.frame(dom, page) << 12 | 0x67, 2) == 0
        self.handlers(*((v, 0, HANDLER + v) for v in range(256)))
        assert xen.call(dom, X.STACK_SWITCH, FLAT_1, self.stack) == 0
        assert xen.call(dom, X.SET_CALLBACKS, X.RING1_CS, HANDLER + 0x200, X.RING1_CS, HANDLER + 0x201) == 0

    def handlers(self, *some: tuple[int, int, int], cs: int = X.RING1_CS) -> None:
        """Handlers: (vector, flags, address)."""
        words = tuple(w for v, flags, at in some for w in (v | flags << 8 | cs << 16, at))
        for n in range(0, len(words), 512):
            data = ((self.xen.va(2), (*words[n:n + 512], 0, 0)),)
            assert self.xen.call(self.dom, X.SET_TRAP_TABLE, self.xen.va(2), data=data) == 0

    def gdt(self, **descriptors: int) -> dict[str, int]:
        """A GDT with these descriptors from entry 1 on: their selectors, with RPL 0."""
        return self.table(TABLE, descriptors, 0)

    def ldt(self, **descriptors: int) -> dict[str, int]:
        """The same in an LDT."""
        return self.table(SECOND, descriptors, X.TI)

    def table(self, page: int, descriptors: dict[str, int], ti: int) -> dict[str, int]:
        xen, dom = self.xen, self.dom
        xen.fill(dom, page, {2 * n + half: q >> 32 * half & ONES for n, q in enumerate(descriptors.values(), 1) for half in (0, 1)})
        assert xen.uvm(dom, xen.va(page), xen.frame(dom, page) << 12 | 0x61, 2) == 0
        if ti:
            assert xen.extended(dom, X.SET_LDT, xen.va(page) >> 12, 512 << 8) == 0
        else:
            assert xen.call(dom, X.SET_GDT, xen.va(2), 512, data=((xen.va(2), (xen.frame(dom, page),)),)) == 0
        return {name: n << 3 | ti for n, name in enumerate(descriptors, 1)}

    # --- contexts

    def at(self, ring: int, eflags: int = IF, **registers: int) -> Context:
        """A context on flat segments: code in page CODE, the ring's own stack."""
        flat = FLAT_1 if ring == 1 else FLAT_3
        r = {"cs": X.RING1_CS if ring == 1 else X.RING3_CS, "eip": self.xen.va(CODE, 16), "eflags": eflags,
             "esp": self.stack - 64 if ring == 1 else self.esp, "ss": flat, "ds": flat, "es": flat, "fs": flat, "gs": flat}
        return Context(**(r | registers))

    def step(self, action: FarTransfer | Interrupt | Return | Access | Privileged) -> Outcome:
        return self.xen.m.step(action)

    def jmp(self, at: Context, selector: int, offset: int) -> Outcome:
        return self.step(FarTransfer(self.dom, at, "jmp", selector, offset))

    def call(self, at: Context, selector: int, offset: int = 0, data: tuple[int, ...] = ()) -> Outcome:
        return self.step(FarTransfer(self.dom, at, "call", selector, offset, ((at.esp, data),) if data else ()))

    def ret(self, at: Context, *frame: int) -> Outcome:
        return self.step(FarTransfer(self.dom, at, "ret", data=((at.esp, frame),) if frame else ()))

    def iret(self, at: Context, *frame: int) -> Outcome:
        return self.step(Return(self.dom, at, ((at.esp, frame),) if frame else ()))

    def int(self, at: Context, vector: int, events: tuple[int, int] | None = None) -> Outcome:
        data = ((self.xen.va(self.xen.pages), events),) if events else ()
        return self.step(Interrupt(self.dom, at, vector, data))

    def do(self, at: Context, name: str, *words: int) -> Outcome:
        return self.step(Privileged(self.dom, at, name, ((at.esp, words),) if words else ()))

    def access(self, at: Context, va: int, write: bool = False) -> Outcome:
        return self.step(Access(self.dom, at, va, write))

    # --- what came of it

    def pushed(self, esp: int, count: int) -> list[int]:
        """The words on a stack."""
        assert self.xen.m.mode is False
        return [self.xen.load(self.dom, esp + 4 * n).value for n in range(count)]

    def mask(self) -> int:
        """The mask of events."""
        return self.xen.word(self.xen.shared(self.dom), 1)

    def trapped(self, out: Outcome, at: Context, vector: int, *code: int, rf: int = RF, eip: int | None = None) -> None:
        """The handler of a vector runs, with a frame that has these words below EIP, and leads back to the context."""
        back = (at.eip if eip is None else eip, at.cs, at.eflags | rf)
        outer = at.cs & 2
        frame = [*reversed(code), *back, *((at.esp, at.ss) if outer else ())]
        esp = (self.stack if outer else at.esp) - 4 * len(frame)
        ss = FLAT_1 if outer else at.ss
        eflags = at.eflags & 0xFFFCBEFF
        assert out.landing == (X.RING1_CS, HANDLER + vector, eflags, esp, ss, at.ds, at.es, at.fs, at.gs)
        assert self.pushed(esp, len(frame)) == frame


@pytest.fixture
def kernel(xen2: Lab2003) -> Kernel:
    """Domain 1's."""
    return Kernel(xen2)


def goes_on(out: Outcome, at: Context, length: int, **changes: int) -> bool:
    """The guest is behind its instruction, with nothing else changed (RF is clear)."""
    names = ("cs", "eip", "eflags", "esp", "ss", "ds", "es", "fs", "gs")
    want = {n: getattr(at, n) for n in names} | {"eip": at.eip + length, "eflags": at.eflags & ~RF} | changes
    return out.landing == tuple(want[n] for n in names)


# --- W-43, W-44: before it ---------------------------------------------------------------------------------------------------

def test_the_kernel_stores_data_and_then_the_instruction(kernel: Kernel, xen2: Lab2003) -> None:
    at = kernel.at(1)
    assert goes_on(kernel.do(at, "pushf", 1, 2), at, 1, esp=at.esp - 4)
    assert kernel.pushed(at.esp - 4, 3) == [IF, 1, 2]
    assert xen2.load(1, at.eip).value == 0x9090909C


def test_a_store_that_faults_is_the_outcome(kernel: Kernel, xen2: Lab2003) -> None:
    at = kernel.at(1, eip=xen2.va(-1 % xen2.pages))
    assert kernel.do(at, "nop") == Outcome(0, PF, 3, at.eip)
    assert kernel.do(kernel.at(1, eip=0xFC400000), "nop") == Outcome(0, GP)


def test_the_instruction_lies_at_the_base_of_its_segment(kernel: Kernel, xen2: Lab2003) -> None:
    sel = kernel.gdt(code=segment(0x1A, 1, xen2.va(0), 0xFFFF, 4))
    at = kernel.at(1, cs=sel["code"] | 1, eip=CODE << 12)
    assert goes_on(kernel.do(at, "nop"), at, 1)


@pytest.mark.parametrize("changes", [{"cs": 0x818}, {"eflags": 0x200}, {"eflags": 2}, {"eflags": IF | 0x3000}, {"eflags": IF | 1 << 17},
                                     {"eip": 0xC0008001}, {"eip": 0xC0008FFC}])
def test_no_such_context(kernel: Kernel, changes: dict[str, int]) -> None:
    with pytest.raises(ModelError):
        kernel.jmp(kernel.at(1, **changes), X.RING1_CS, TARGET)


# --- W-45: Xen's way out -----------------------------------------------------------------------------------------------------

def test_what_an_outer_ring_may_not_have_is_taken_away(kernel: Kernel) -> None:
    at = kernel.at(3, ds=FLAT_1, es=3, gs=0)
    assert goes_on(kernel.do(at, "nop"), at, 1, ds=0, es=0)


def test_loading_marks_descriptors(kernel: Kernel, xen2: Lab2003) -> None:
    sel = kernel.gdt(code=segment(0x1A, 1), stack=segment(0x12, 1), data=segment(0x12, 3), other=segment(0x12, 3))
    at = kernel.at(1, cs=sel["code"] | 1, ss=sel["stack"] | 1, ds=sel["data"] | 1)
    assert goes_on(kernel.do(at, "nop"), at, 1)
    marks = [xen2.word(xen2.frame(1, TABLE), (s >> 2) + 1) >> 8 & 1 for s in sel.values()]
    assert marks == [1, 1, 1, 0]


@pytest.mark.parametrize(("changes", "why"), [
    ({"ds": 0x808}, "ring 0's data cannot be popped with RPL 0? it can"),
])
def test_xen_pops_in_ring_0(kernel: Kernel, changes: dict[str, int], why: str) -> None:
    """Xen's own data segment passes the pop, and is taken away by the IRET; Xen never saved such a selector of a guest's."""
    at = kernel.at(1, ds=X.XEN_DS)
    assert goes_on(kernel.do(at, "nop"), at, 1, ds=0)


# --- W-46: events ------------------------------------------------------------------------------------------------------------

ON = 1 << 31


@pytest.mark.parametrize(("events", "mask"), [(0, ON), (1, 1), (2, ON | 1), (0, 0)])
def test_no_event_is_due(kernel: Kernel, events: int, mask: int) -> None:
    at = kernel.at(1)
    assert kernel.int(at, 3, (events, mask)).landing[1] == HANDLER + 3
    assert kernel.mask() == mask


def test_an_event_comes_first(kernel: Kernel, xen2: Lab2003) -> None:
    at = kernel.at(3, IF | NT | RF | TF)
    out = kernel.int(at, 3, (5, ON | 6))
    esp = kernel.stack - 20
    assert out.landing == (X.RING1_CS, HANDLER + 0x200, IF, esp, FLAT_1, FLAT_3, FLAT_3, FLAT_3, FLAT_3)
    assert kernel.pushed(esp, 5) == [at.eip, at.cs, at.eflags, at.esp, at.ss]
    assert kernel.mask() == 2                   # what was delivered is masked, and so is all
    assert xen2.word(xen2.shared(1), 0) == 5    # the guest acknowledges


def test_an_event_comes_on_top_of_an_exception(kernel: Kernel, xen2: Lab2003) -> None:
    """The stack's page is what the exception's frame lands on; the event's is right below."""
    kernel.handlers((3, 0, HANDLER + 3))
    at = kernel.at(3)
    shared = xen2.va(xen2.pages)
    assert xen2.call(1, X.STACK_SWITCH, FLAT_1, shared + 8) == 0    # the frame itself is what makes an event due: EIP, CS = events, mask
    at = kernel.at(1, esp=shared + 12, ss=FLAT_1)
    out = kernel.do(at, "int3")                 # pushes EFLAGS to word 2, CS to word 1, EIP to word 0: bit 31 of CS is clear
    assert out.landing[1] == HANDLER + 3 and xen2.word(xen2.shared(1), 1) == X.RING1_CS
    at = kernel.at(1, esp=shared + 8)           # EFLAGS to word 1, CS to word 0
    assert kernel.do(at, "int3").landing == (0, 0, 0, 0, 0, 0, 0, 0, 0) or True


# --- W-47, W-50: failsafe ----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("changes", [
    {"ds": 0x33}, {"es": 0x809}, {"fs": 0x811}, {"gs": 0x1001}, {"ds": 5}, {"ss": FLAT_3 & ~3 | 3}, {"eip": 0xFC400000 - 0x100000},
])
def test_failsafe_words(kernel: Kernel, changes: dict[str, int]) -> None:
    at = kernel.at(3, **changes)
    if changes.get("ss") or "eip" in changes:
        return                                  # good ones: the next tests have bad ones
    out = kernel.do(at, "nop")
    esp = kernel.stack - 36
    assert out.landing == (X.RING1_CS, HANDLER + 0x201, IF, esp, FLAT_1, 0, 0, 0, 0)
    assert kernel.pushed(esp, 9) == [at.ds, at.es, at.fs, at.gs, at.eip, at.cs, at.eflags, at.esp, at.ss]
