"""Control transfers of guests of Xen 1.2 on the model: each frame to the word (spec/RULINGS.md W-43 to W-60)."""
import random

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
        words = {2 * n + half: q >> 32 * half & ONES for n, q in enumerate(descriptors.values(), 1) for half in (0, 1)}
        xen.fill(dom, page, words)
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

    def software(self, at: Context, vector: int, events: tuple[int, int] | None = None) -> Outcome:
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


@pytest.mark.parametrize("changes", [{"cs": 0x818}, {"eflags": 0x200}, {"eflags": 2}, {"eflags": IF | 0x3000},
                                     {"eflags": IF | 1 << 17}, {"eip": 0xC0008001}, {"eip": 0xC0008FFC}])
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


def test_xen_pops_in_ring_0(kernel: Kernel) -> None:
    """Even Xen's own data segment passes the pop; the IRET takes it away."""
    at = kernel.at(1, ds=X.XEN_DS)
    assert goes_on(kernel.do(at, "nop"), at, 1, ds=0)


# --- W-46: events ------------------------------------------------------------------------------------------------------------

ON = 1 << 31


@pytest.mark.parametrize(("events", "mask"), [(0, ON), (1, 1), (2, ON | 1), (0, 0)])
def test_no_event_is_due(kernel: Kernel, events: int, mask: int) -> None:
    at = kernel.at(1)
    assert kernel.software(at, 3, (events, mask)).landing[1] == HANDLER + 3
    assert kernel.mask() == mask


def test_an_event_comes_first(kernel: Kernel, xen2: Lab2003) -> None:
    at = kernel.at(3, IF | NT | RF | TF)
    out = kernel.software(at, 3, (5, ON | 6))
    esp = kernel.stack - 20
    assert out.landing == (X.RING1_CS, HANDLER + 0x200, IF, esp, FLAT_1, FLAT_3, FLAT_3, FLAT_3, FLAT_3)
    assert kernel.pushed(esp, 5) == [at.eip, at.cs, at.eflags, at.esp, at.ss]
    assert kernel.mask() == 2                   # what was delivered is masked, and so is all
    assert xen2.word(xen2.shared(1), 0) == 5    # the guest acknowledges


def test_an_event_comes_on_top_of_an_exception(kernel: Kernel, xen2: Lab2003) -> None:
    """The exception's frame is what makes the event due: its error code and CR2 are the words of shared_info."""
    shared = xen2.va(xen2.pages)
    at = kernel.at(1, esp=shared + 20, ds=0)
    out = kernel.access(at, 0)                  # #GP: error code 0 is word 1, the mask
    assert out.landing[1] == HANDLER + GP
    assert xen2.uvm(1, xen2.va(STACK), 0, 2) == 0
    at = kernel.at(1, esp=shared + 20)
    assert kernel.access(at, 0xC0FF0001).landing[1] == HANDLER + PF     # CR2 0xC0FF0001 is word 0, the code 0 word 1
    kernel.handlers((PF, 4, HANDLER + PF))
    at = kernel.at(1, esp=shared + 64)
    out = kernel.step(Access(1, at, 0xC0FF0001, False, ((shared, (1, ON | 1)),)))
    assert out.landing[1] == HANDLER + 0x200    # before it, and once: nothing was executed
    assert out.landing[3] == shared + 64 - 12
    assert kernel.mask() == 0


def test_an_exception_and_then_an_event(kernel: Kernel, xen2: Lab2003) -> None:
    """EFLAGS of the frame, with bit 1, is the mask; nobody can set its bit 31, so the handler's own mask is what counts."""
    at = kernel.at(3)
    out = kernel.software(at, 3, (1, ON))
    assert out.landing[1] == HANDLER + 3
    assert kernel.mask() == ON
    kernel.handlers((3, 4, HANDLER + 3))
    assert kernel.software(at, 3, (1, ON)).landing[1] == HANDLER + 3
    assert kernel.mask() == 0


# --- W-47, W-50: failsafe ----------------------------------------------------------------------------------------------------

def failsafe(kernel: Kernel, out: Outcome, at: Context, esp: int = 0) -> None:
    """The failsafe callback runs, without data segments, and finds the context on its stack."""
    outer = at.cs & 2
    frame = [at.ds, at.es, at.fs, at.gs, at.eip, at.cs, at.eflags, *((at.esp, at.ss) if outer else ())]
    esp = (kernel.stack if outer else at.esp) - 4 * len(frame)
    assert out.landing == (X.RING1_CS, HANDLER + 0x201, at.eflags & 0xFFFCBEFF, esp, FLAT_1 if outer else at.ss, 0, 0, 0, 0)
    assert kernel.pushed(esp, len(frame)) == frame


@pytest.mark.parametrize("ring", [1, 3])
@pytest.mark.parametrize("changes", [{"ds": 0x33}, {"es": 0x809}, {"fs": 0x811}, {"gs": 0x1001}, {"ds": 5}, {"es": 0x842}])
def test_data_segments_that_are_no_longer_good(kernel: Kernel, ring: int, changes: dict[str, int]) -> None:
    at = kernel.at(ring, **changes)
    failsafe(kernel, kernel.do(at, "nop"), at)


@pytest.mark.parametrize("changes", [{"cs": 0x33}, {"cs": X.RING3_DS}, {"cs": 0x81B}, {"ss": 0}, {"ss": FLAT_1}, {"ss": 0x831}])
def test_code_and_stacks_that_are_no_longer_good(kernel: Kernel, changes: dict[str, int]) -> None:
    at = kernel.at(3, **changes)
    failsafe(kernel, kernel.do(at, "nop"), at)


def test_an_offset_that_is_no_longer_good(kernel: Kernel, xen2: Lab2003) -> None:
    sel = kernel.gdt(code=segment(0x1A, 3, 0, 0xBFFFF))
    at = kernel.at(3, cs=sel["code"] | 3)
    failsafe(kernel, kernel.do(at, "nop"), at)
    assert xen2.word(xen2.frame(1, TABLE), 3) >> 8 & 1 == 0         # not loaded, not marked


def test_what_was_popped_before_is_marked(kernel: Kernel, xen2: Lab2003) -> None:
    sel = kernel.gdt(one=segment(0x12, 3), two=segment(0x12, 3))
    at = kernel.at(3, ds=sel["one"] | 3, es=0x33, fs=sel["two"] | 3)
    failsafe(kernel, kernel.do(at, "nop"), at)
    assert [xen2.word(xen2.frame(1, TABLE), n) >> 8 & 1 for n in (3, 5)] == [1, 0]


def test_an_event_callback_and_then_failsafe(kernel: Kernel) -> None:
    """The event's frame stays, and the failsafe callback has one of the event callback."""
    at = kernel.at(3, ds=0x33)
    out = kernel.software(at, 3, (1, ON | 1))
    esp = kernel.stack - 20 - 28
    assert out.landing == (X.RING1_CS, HANDLER + 0x201, IF, esp, FLAT_1, 0, 0, 0, 0)
    assert kernel.pushed(esp, 12) == [0x33, FLAT_3, FLAT_3, FLAT_3, HANDLER + 0x200, X.RING1_CS, IF,
                                      at.eip, at.cs, at.eflags, at.esp, at.ss]


def test_callbacks_that_were_never_set(xen2: Lab2003) -> None:
    at = Context(X.RING1_CS, xen2.va(CODE), IF, xen2.va(STACK, 0x800), FLAT_1)
    data = (xen2.va(xen2.pages), (1, ON | 1)),
    assert xen2.m.step(Privileged(1, at, "nop", data)) == Outcome(KILLED)
    assert xen2.refused[-1] == "BOUNCE-3.1"
    esp = at.esp - 12 - 28
    assert [xen2.load(1, esp + 4 * n).value for n in range(10)] == [0, 0, 0, 0, 0, 0, IF, at.eip, at.cs, IF]


# --- W-48, W-49: frames, and the end of a domain -----------------------------------------------------------------------------

def test_the_kernel_is_entered_on_its_stack_from_outside_only(kernel: Kernel) -> None:
    for ring in (1, 3):
        at = kernel.at(ring, ds=0, gs=FLAT_1 if ring == 1 else FLAT_3)
        kernel.trapped(kernel.do(at, "hlt"), at, GP, 0)


def test_ring_2_is_outside(kernel: Kernel) -> None:
    sel = kernel.gdt(code=segment(0x1A, 2), stack=segment(0x12, 2))
    at = kernel.at(3, cs=sel["code"] | 2, ss=sel["stack"] | 2, ds=0, es=0, fs=0, gs=0)
    kernel.trapped(kernel.do(at, "hlt"), at, GP, 0)


@pytest.mark.parametrize(("ss", "why"), [(0x811, "BOUNCE-1.1"), (0x823, "BOUNCE-1.1"), (0x39, "BOUNCE-1.1"), (3, "BOUNCE-2.1"),
                                         (X.RING1_CS, "BOUNCE-2.1"), (FLAT_3, "BOUNCE-3.1")])
def test_stacks_for_the_kernel_that_are_none(kernel: Kernel, xen2: Lab2003, ss: int, why: str) -> None:
    """One that cannot be loaded as data, or not be written; or one that IRET refuses: the failsafe callback finds it, too."""
    assert xen2.call(1, X.STACK_SWITCH, ss, kernel.stack) == 0
    assert kernel.do(kernel.at(3), "hlt") == Outcome(KILLED)
    assert xen2.refused[-1] == why


@pytest.mark.parametrize("flags", [0, 0x61])
def test_a_frame_that_cannot_be_stored_is_the_end(kernel: Kernel, xen2: Lab2003, flags: int) -> None:
    """What was stored before stays: SS and ESP at the start of a page, the rest in a bad one."""
    assert xen2.call(1, X.STACK_SWITCH, FLAT_1, xen2.va(STACK, 8)) == 0
    assert xen2.uvm(1, xen2.va(STACK - 1), xen2.frame(1, STACK - 1) << 12 | flags if flags else 0, 2) == 0
    at = kernel.at(3)
    assert kernel.do(at, "hlt") == Outcome(KILLED)
    assert xen2.refused[-1] == "BOUNCE-2.2"
    assert kernel.pushed(xen2.va(STACK), 2) == [at.esp, at.ss]
    assert xen2.load(1, xen2.va(0)).vector < 0      # for the program it goes on


def test_a_frame_ends_at_the_limit(kernel: Kernel, xen2: Lab2003) -> None:
    sel = kernel.gdt(small=segment(0x12, 1, xen2.va(STACK), 0x7FF, 4))
    assert xen2.call(1, X.STACK_SWITCH, sel["small"] | 1, 0x800) == 0
    assert kernel.do(kernel.at(3), "hlt").landing[3:5] == (0x800 - 24, sel["small"] | 1)
    for esp in (0x804, 0x801, 20):
        assert xen2.call(1, X.STACK_SWITCH, sel["small"] | 1, esp) == 0
        assert kernel.do(kernel.at(3), "hlt") == Outcome(KILLED)


def test_a_frame_may_be_misaligned_and_lie_in_two_pages(kernel: Kernel, xen2: Lab2003) -> None:
    assert xen2.call(1, X.STACK_SWITCH, FLAT_1, xen2.va(STACK, 10)) == 0
    at = kernel.at(3, ds=0)
    assert kernel.do(at, "hlt").landing[3] == xen2.va(STACK, 10) - 24
    assert kernel.pushed(xen2.va(STACK, 10) - 24, 6) == [0, at.eip, at.cs, at.eflags | RF, at.esp, at.ss]


def test_xens_stores_are_a_supervisors(kernel: Kernel, xen2: Lab2003) -> None:
    l1 = xen2.frame(1, -2)
    assert xen2.uvm(1, xen2.va(STACK), xen2.frame(1, STACK) << 12 | 3, 2) == 0
    assert kernel.do(kernel.at(3), "hlt").landing
    assert xen2.word(l1, STACK) & (A | D) == A | D


# --- W-51 to W-53: the instruction -------------------------------------------------------------------------------------------

def test_fetches(kernel: Kernel, xen2: Lab2003) -> None:
    """The code is for its ring's eyes, and within its segment as a whole."""
    at = kernel.at(3, eip=xen2.va(STACK))
    kernel.trapped(kernel.do(at, "nop"), at, PF, 5, at.eip)
    sel = kernel.gdt(code=segment(0x1A, 3, xen2.va(0), CODE << 12 | 0x11, 4))
    at = kernel.at(3, cs=sel["code"] | 3, eip=CODE << 12 | 0x10)
    assert goes_on(kernel.do(at, "rdtsc"), at, 2)
    kernel.trapped(kernel.do(at, "lgdt"), at, GP, 0)


def test_an_ldt_is_mapped_as_it_is_used(kernel: Kernel, xen2: Lab2003) -> None:
    sel = kernel.ldt(code=segment(0x1A, 3), stack=segment(0x12, 3), data=segment(0x12, 3))
    assert xen2.extended(1, X.NEW_BASEPTR, xen2.frame(1, -1)) == 0
    at = kernel.at(3, cs=sel["code"] | 3, ss=sel["stack"] | 3, ds=sel["data"] | 3, es=0, fs=0, gs=0)
    assert goes_on(kernel.do(at, "nop"), at, 1)
    assert xen2.extended(1, X.SET_LDT, xen2.va(SECOND) >> 12, 1024 << 8) == 0
    assert xen2.uvm(1, xen2.va(SECOND + 1), 0, 2) == 0
    at = kernel.at(3)
    kernel.trapped(kernel.jmp(at, 513 << 3 | 7, 0), at, PF, 0, 0xFC610000 + (513 << 3))     # a page that cannot be mapped
    at = kernel.at(3, ds=513 << 3 | 7)
    failsafe(kernel, kernel.do(at, "nop"), at)


def test_a_stack_that_its_rpl_rules_out_is_not_looked_up(kernel: Kernel, xen2: Lab2003) -> None:
    """So no page of the LDT is mapped for it (W-52), as for a CS; and it is #GP, whatever the page is."""
    kernel.ldt(stack=segment(0x12, 3))
    assert xen2.extended(1, X.SET_LDT, xen2.va(SECOND - 1) >> 12, 1024 << 8) == 0      # the second page now: not mapped yet
    mapped: dict[tuple[int, int], bool] = xen2.m.concrete.maps["has_ldt"]
    stack = 513 << 3 | 4
    at = kernel.at(3, ss=stack | 1)
    failsafe(kernel, kernel.do(at, "nop"), at)
    at = kernel.at(1)
    kernel.trapped(kernel.iret(at, TARGET, X.RING3_CS, IF, 0, stack | 1), at, GP, stack)
    assert not mapped[1, 1]
    kernel.trapped(kernel.ret(kernel.at(3), TARGET, stack | 1, 0, 0), kernel.at(3), GP, stack)
    assert mapped[1, 1]
    at = kernel.at(3, ss=stack | 3)
    assert goes_on(kernel.do(at, "nop"), at, 1)


def test_far_jumps_and_calls_in_a_ring(kernel: Kernel, xen2: Lab2003) -> None:
    sel = kernel.gdt(code=segment(0x1A, 3), conforming=segment(0x1E, 1), absent=segment(0x1A, 3) & ~(1 << 47),
                     short=segment(0x1A, 3, 0, 0xFF, 4))
    at = kernel.at(3)
    assert goes_on(kernel.jmp(at, sel["code"], TARGET), at, 0, cs=sel["code"] | 3, eip=TARGET)
    assert goes_on(kernel.call(at, sel["conforming"] | 1, TARGET), at, 0, cs=sel["conforming"] | 3, eip=TARGET, esp=at.esp - 8)
    assert kernel.pushed(at.esp - 8, 2) == [at.eip + 7, at.cs]
    kernel.trapped(kernel.jmp(at, sel["absent"] | 3, TARGET), at, NP, sel["absent"])
    kernel.trapped(kernel.jmp(at, sel["short"] | 3, 0x100), at, GP, 0)
    kernel.trapped(kernel.jmp(at, X.RING1_CS, TARGET), at, GP, 0x818)
    kernel.trapped(kernel.jmp(at, X.XEN_CS, TARGET), at, GP, 0x808)
    kernel.trapped(kernel.jmp(at, 0x840, TARGET), at, GP, 0x840)            # Xen's TSS
    kernel.trapped(kernel.jmp(at, 3, TARGET), at, GP, 0)


def test_a_call_gate_leads_to_the_kernel(kernel: Kernel) -> None:
    sel = kernel.gdt(code=segment(0x1A, 1), gate=gate(3, 9, TARGET, 2), kernels=gate(1, 9, TARGET), outer=segment(0x1A, 2),
                     to2=gate(3, 4 << 3 | 1, TARGET))
    at = kernel.at(3)
    out = kernel.call(at, sel["gate"] | 3, 0, (11, 22, 33))
    esp = kernel.stack - 24
    assert goes_on(out, at, 0, cs=sel["code"] | 1, eip=TARGET, esp=esp, ss=FLAT_1)      # data segments stay
    assert kernel.pushed(esp, 6) == [at.eip + 7, at.cs, 11, 22, at.esp, at.ss]
    kernel.trapped(kernel.call(at, sel["kernels"]), at, GP, sel["kernels"])
    kernel.trapped(kernel.jmp(at, sel["gate"], 0), at, GP, sel["code"])
    kernel.trapped(kernel.call(at, sel["to2"]), at, TS, 0)                  # the TSS has no stack for ring 2


def test_a_gates_stores_are_a_supervisors_and_stay(kernel: Kernel, xen2: Lab2003) -> None:
    sel = kernel.gdt(code=segment(0x1A, 1), gate=gate(3, 9, TARGET))
    assert xen2.call(1, X.STACK_SWITCH, FLAT_1, xen2.va(STACK, 8)) == 0
    assert xen2.uvm(1, xen2.va(STACK - 1), 0, 2) == 0
    at = kernel.at(3)
    assert kernel.call(at, sel["gate"] | 3) == Outcome(KILLED)              # the page fault's frame has no place either
    assert kernel.pushed(xen2.va(STACK), 2) == [at.esp, at.ss]
    assert xen2.word(xen2.frame(1, TABLE), 3) >> 8 & 1 == 0


def test_returns(kernel: Kernel) -> None:
    at = kernel.at(1, ds=FLAT_3)
    out = kernel.ret(at, TARGET, X.RING3_CS, 0xC000B000, FLAT_3)
    assert goes_on(out, at, 0, cs=X.RING3_CS, eip=TARGET, esp=0xC000B000, ss=FLAT_3, es=0, fs=0, gs=0)
    out = kernel.iret(at, TARGET, X.RING1_CS, NT | RF | AC | 0x3CD7)
    assert goes_on(out, at, 0, eip=TARGET, esp=at.esp + 12, eflags=NT | RF | AC | 0xED7)
    at = kernel.at(3)
    kernel.trapped(kernel.ret(at, TARGET, X.RING1_CS, 0, 0), at, GP, 0x818)     # not inwards
    kernel.trapped(kernel.iret(at, TARGET, X.XEN_CS, IF, 0, 0), at, GP, 0x808)
    at = kernel.at(1)
    kernel.trapped(kernel.iret(at, TARGET, X.RING3_CS, IF, 0, FLAT_1), at, GP, FLAT_1 & ~3)
    at = kernel.at(1, IF | NT)
    kernel.trapped(kernel.iret(at, TARGET, X.RING1_CS, IF), at, TS, 0)


def test_the_stack_is_read_from_its_highest_word_down(kernel: Kernel, xen2: Lab2003) -> None:
    at = kernel.at(3, esp=xen2.va(TABLE + 1) - 4)          # pages of the kernel's
    kernel.trapped(kernel.iret(at), at, PF, 5, at.esp + 8)
    kernel.trapped(kernel.ret(at), at, PF, 5, at.esp + 4)


def test_misaligned_accesses_of_ring_3(kernel: Kernel, xen2: Lab2003) -> None:
    at = kernel.at(3, IF | AC)
    kernel.trapped(kernel.access(at, xen2.va(USER_STACK, 2)), at, 17, 0)
    assert goes_on(kernel.access(at, xen2.va(USER_STACK, 4)), at, 5)
    at = kernel.at(3, IF | AC, esp=kernel.esp + 2)
    kernel.trapped(kernel.do(at, "pushf"), at, 17, 0)
    at = kernel.at(1, IF | AC)
    assert goes_on(kernel.access(at, xen2.va(USER_STACK, 2)), at, 5)


def test_accesses_through_ds(kernel: Kernel, xen2: Lab2003) -> None:
    at = kernel.at(3)
    kernel.trapped(kernel.access(at, xen2.va(STACK)), at, PF, 5, xen2.va(STACK))
    kernel.trapped(kernel.access(at, xen2.va(USER_STACK, 0xFFE), True), at, PF, 7, xen2.va(USER_STACK + 1))
    kernel.trapped(kernel.access(at, X.GUEST_END - 3), at, GP, 0)
    kernel.trapped(kernel.access(at, X.HOLE), at, PF, 5, X.HOLE)
    at = kernel.at(1)
    assert goes_on(kernel.access(at, X.HOLE), at, 5)                        # the published window
    kernel.trapped(kernel.access(at, X.HOLE, True), at, PF, 3, X.HOLE)
    at = kernel.at(1, ds=0)
    kernel.trapped(kernel.access(at, xen2.va(0)), at, GP, 0)


# --- W-55: INT n -------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("vector", [0, 1, 2, 7, 8, 13, 14, 18, 0x20, 0x80, 0x82, 0xFF])
def test_int_goes_to_handlers_that_are_open_to_it(kernel: Kernel, vector: int) -> None:
    at = kernel.at(3)
    kernel.trapped(kernel.software(at, vector), at, GP, 8 * vector + 2)
    kernel.handlers((vector, 3, HANDLER + vector))
    kernel.trapped(kernel.software(at, vector), at, vector, eip=at.eip + 2)


def test_int_3_and_4_are_open_to_all(kernel: Kernel) -> None:
    for vector, action in ((3, "int3"), (4, "into")):
        at = kernel.at(3, IF | OF)
        kernel.trapped(kernel.software(at, vector), at, vector, rf=0, eip=at.eip + 2)
        kernel.trapped(kernel.do(at, action), at, vector, rf=0, eip=at.eip + 1)


def test_a_fast_trap_leads_past_xen(kernel: Kernel, xen2: Lab2003) -> None:
    kernel.handlers((0x80, 3, TARGET))
    assert xen2.call(1, X.SET_FAST_TRAP, 0x80) == 0
    at = kernel.at(3, IF | TF | NT | RF)
    esp = kernel.stack - 20
    out = kernel.software(at, 0x80)
    assert out.landing == (X.RING1_CS, TARGET, IF, esp, FLAT_1, FLAT_3, FLAT_3, FLAT_3, FLAT_3)
    assert kernel.pushed(esp, 5) == [at.eip + 2, at.cs, IF | TF | NT, at.esp, at.ss]
    at = kernel.at(1)
    assert goes_on(kernel.software(at, 0x80), at, 0, eip=TARGET, esp=at.esp - 12)
    kernel.handlers((0x80, 1, TARGET))
    at = kernel.at(3)
    kernel.trapped(kernel.software(at, 0x80), at, GP, 0x402)


def test_a_fast_trap_to_nowhere_faults_when_it_is_used(kernel: Kernel, xen2: Lab2003) -> None:
    kernel.handlers((0x80, 3, TARGET), cs=0x39)
    assert xen2.call(1, X.SET_FAST_TRAP, 0x80) == 0
    at = kernel.at(3)
    kernel.trapped(kernel.software(at, 0x80), at, GP, 0x38)


def test_a_hypercall_is_none_of_this(kernel: Kernel) -> None:
    with pytest.raises(ModelError):
        kernel.software(kernel.at(1), 0x82)


# --- W-56 to W-60: exceptions ------------------------------------------------------------------------------------------------

RING_0 = ("hlt", "cli", "sti", "in_al", "out_al", "clts", "lgdt", "lidt", "lldt", "ltr", "lmsw", "mov_from_cr0", "mov_to_cr0",
          "mov_to_cr3", "mov_to_cr4", "mov_from_dr7", "mov_to_dr7", "invlpg", "wbinvd", "rdmsr", "wrmsr")


@pytest.mark.parametrize("name", RING_0)
@pytest.mark.parametrize("ring", [1, 3])
def test_what_ring_0_keeps_for_itself(kernel: Kernel, name: str, ring: int) -> None:
    at = kernel.at(ring)
    kernel.trapped(kernel.do(at, name), at, GP, 0)


@pytest.mark.parametrize(("name", "vector"), [("ud2", UD), ("divide", DE)])
def test_exceptions_without_an_error_code(kernel: Kernel, name: str, vector: int) -> None:
    at = kernel.at(3, IF | AC)
    kernel.trapped(kernel.do(at, name), at, vector)


@pytest.mark.parametrize(("first", "second", "within"), [(0, 0, True), (1, 5, False), (ONES, ONES, False), (1 << 31, 5, True)])
def test_bounds(kernel: Kernel, first: int, second: int, within: bool) -> None:
    at = kernel.at(3)
    out = kernel.do(at, "bound", first, second)
    if within:
        assert goes_on(out, at, 3)
    else:
        kernel.trapped(out, at, 5)
    at = kernel.at(3, esp=X.GUEST_END)
    kernel.trapped(kernel.step(Privileged(1, at, "bound")), at, SS, 0)


def test_flags_that_anybody_may_change(kernel: Kernel) -> None:
    at = kernel.at(3, IF | RF)
    assert goes_on(kernel.do(at, "popf", ONES), at, 1, esp=at.esp + 4, eflags=0x244FD7)
    at = kernel.at(3, IF | RF | AC)
    assert goes_on(kernel.do(at, "pushf"), at, 1, esp=at.esp - 4)
    assert kernel.pushed(at.esp - 4, 1) == [IF | AC]


def test_nothing_happens(kernel: Kernel) -> None:
    at = kernel.at(3, IF | RF)
    for name in ("nop", "rdtsc", "into", "fpu"):
        assert goes_on(kernel.do(at, name), at, len(PRIVILEGED[name]))


def test_the_fpu_traps_once(kernel: Kernel, xen2: Lab2003) -> None:
    assert xen2.call(1, X.FPU_TASKSWITCH) == 0
    at = kernel.at(3)
    kernel.trapped(kernel.do(at, "fpu"), at, NM)
    assert goes_on(kernel.do(at, "fpu"), at, 2)


def test_a_single_step(kernel: Kernel, xen2: Lab2003) -> None:
    """It traps behind the instruction; one that traps itself is not stepped."""
    kernel.handlers((DB, 4, HANDLER + DB))
    at = kernel.at(3, IF | TF)
    kernel.trapped(kernel.software(at, 3, (0, ON)), at, 3, rf=0, eip=at.eip + 2)
    assert xen2.call(1, X.GET_DEBUGREG, 6) == 0
    kernel.trapped(kernel.do(at, "nop"), at, DB, rf=0, eip=at.eip + 1)
    assert xen2.call(1, X.GET_DEBUGREG, 6) & ONES == 0xFFFF4FF0
    assert kernel.mask() == ON                  # flags bit 2 means nothing there
    assert kernel.software(at, DB).landing[1] == HANDLER + GP       # INT 1 is not open to it; where it is, the flag counts
    kernel.handlers((DB, 7, HANDLER + DB))
    kernel.trapped(kernel.software(at, DB, (0, ON)), at, DB, eip=at.eip + 2)
    assert kernel.mask() == 0
    out = kernel.jmp(at, X.RING3_CS, TARGET)
    kernel.trapped(out, at, DB, rf=0, eip=TARGET)
    at = kernel.at(3, esp=kernel.esp)
    assert goes_on(kernel.do(at, "popf", IF | TF), at, 1, esp=at.esp + 4, eflags=IF | TF)


def test_events_are_masked_if_the_handler_asks(kernel: Kernel) -> None:
    kernel.handlers((GP, 4, HANDLER + GP))
    at = kernel.at(3)
    out = kernel.step(Privileged(1, at, "hlt", ((kernel.xen.va(kernel.xen.pages), (0, ON | 7)),)))
    kernel.trapped(out, at, GP, 0)
    assert kernel.mask() == 7


def test_handlers_that_are_no_code(kernel: Kernel) -> None:
    """The frame is there, the IRET fails, and the failsafe callback has a second one, of the handler, on the same stack."""
    kernel.handlers((GP, 0, TARGET), cs=0x39)
    at = kernel.at(3)
    out = kernel.do(at, "hlt")
    esp = kernel.stack - 24 - 28
    assert out.landing == (X.RING1_CS, HANDLER + 0x201, IF, esp, FLAT_1, 0, 0, 0, 0)
    assert kernel.pushed(esp, 13) == [FLAT_3, FLAT_3, FLAT_3, FLAT_3, TARGET, 0x39, IF, 0, at.eip, at.cs, at.eflags | RF, at.esp,
                                      at.ss]


def test_instructions_of_sixteen_bits_are_none_of_this(kernel: Kernel) -> None:
    sel = kernel.gdt(code=segment(0x1A, 1, bits=8), stack=segment(0x12, 1, bits=8))
    for changes in ({"cs": sel["code"] | 1}, {"ss": sel["stack"] | 1}):
        with pytest.raises(ModelError):
            kernel.do(kernel.at(1, **changes), "nop")


def test_code_of_an_action() -> None:
    at = Context(X.RING1_CS, 0, IF, 0, FLAT_1)
    assert code_words(code_of(FarTransfer(0, at, "call", 0x1234, 0x89ABCDEF))) == (0xABCDEF9A, 0x90123489)


# --- whatever happens --------------------------------------------------------------------------------------------------------

SETUP = Setup("xen-2003", 2048, 16, (DomainSetup(0, 16, 64), DomainSetup(1, 81, 64)))


@pytest.mark.parametrize("seed", range(6))
def test_no_guest_lands_in_ring_0_or_within_xen(seed: int) -> None:
    """Whatever it has in its tables, its registers, and on its stacks; and the invariants hold after every transfer."""
    g, landed = Generator(boot(SETUP)), 0
    g.begin(random.Random(seed))
    while landed < 50:
        _, outcomes = g.more(15)
        for outcome in outcomes:
            if outcome.landing:
                landed += 1
                cs, eip, eflags = outcome.landing[:3]
                assert 1 <= cs & 3 <= 3
                assert cs >> 3 not in (257, 258)
                assert eip < X.GUEST_END
                assert eflags & (IF | 0x23000) == IF
                assert outcome.landing[4] & 3 == cs & 3
        assert audit(g.machine.concrete) == []
