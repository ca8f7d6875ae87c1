"""Control transfers of 64-bit guests on the model alone: frames to the word, Xen's way in and out, and the end of a domain."""
import pytest

from spec.abi import DOMID_SELF, Xen417
from spec.bounce64 import Saved, frame_64, frame_flags, handler_flags_64, places
from spec.vocabulary import KILLED, Access, Context, Interrupt, Privileged, Return, SystemCall

X = Xen417
KERNEL, USER = X.KERNEL_CS & ~3, X.KERNEL_CS


def test_a_frame():
    """In the order of the stores: SS, RSP, CS with the mask, RFLAGS, RIP, the error code, R11, RCX."""
    saved = Saved(1, 2, 3, 0xE033, 0x46, 5, 0xE02B, False)
    assert frame_64(saved, True, (7,)) == (0xE02B, 5, 0xE030 | 1 << 32, 0x46, 3, 7, 2, 1)
    assert frame_64(saved._replace(user=True), False, ()) == (0xE02B, 5, 0xE033, 0x246, 3, 2, 1)
    assert places(0x1000, 7) == (0xFF8, 0xFF0, 0xFE0, 0xFE8, 0xFD8, 0xFD0, 0xFC8)
    assert frame_flags(0x3202, True) == 2
    assert handler_flags_64(0x74302) == 0x202


@pytest.fixture
def at(xen):
    """A context of domain 1, and where its frames begin."""
    def make(cs: int = KERNEL, flags: int = 0x202) -> Context:
        return Context(cs, xen.va(5), flags, xen.va(6, 0x80C), X.USER_SS)
    return make


def frame(xen, outcome, words: int) -> tuple[int, ...]:
    """What lies on the kernel's stack after a landing."""
    rsp = outcome.landing[3]
    page = (rsp - xen.base) >> 12
    return tuple(xen.word(xen.frame(1, page), (rsp & 0xFFF) // 8 + n) for n in range(words))


def test_int_of_the_kernel_goes_by_dpl(xen, at):
    done = xen.m.step(Interrupt(1, at(), 0x21))
    assert done.landing[:2] == (X.KERNEL_CS, X.PADS + 16 * 0x21)
    assert frame(xen, done, 7) == (0, 0, xen.va(5, 2), KERNEL, 0x10202, xen.va(6, 0x80C), X.USER_SS)
    refused = xen.m.step(Interrupt(1, at(), 0x20))
    assert refused.landing[1] == X.PADS + 16 * 13
    assert frame(xen, refused, 4) == (0, 0, 0x20 << 3 | 2, xen.va(5))


def test_a_page_fault_tells_the_kernel_from_applications(xen, at):
    done = xen.m.step(Access(1, at(), 0x900000000))
    assert (done.address, done.value, done.landing[1]) == (0x900000000, X.UPCALL_MASK, X.PADS + 16 * 14)
    assert frame(xen, done, 3) == (0, 0, 0)
    xen.call(1, X.MMUEXT_OP, xen.va(2), 1, 0, DOMID_SELF, data=((xen.va(2), (X.NEW_USER_BASEPTR, xen.frame(1, -1), 0)),))
    done = xen.m.step(Access(1, at(USER), 0x900000000))
    assert frame(xen, done, 3) == (0, 0, 4)
    assert done.landing[3] == X.PROGRAM_STACK - 64


def test_an_event_comes_first_and_masks_events(xen, at):
    event = ((xen.va(xen.pages), (X.UPCALL_MASK | X.UPCALL_PENDING,)),)
    done = xen.m.step(Interrupt(1, at(), 3, event))
    assert (done.landing[1], done.value) == (X.PADS + 16 * X.EVENT_PAD, 0x101)
    assert xen.m.step(Interrupt(1, at(flags=2), 3, event)).landing[1] == X.PADS + 16 * 3


def test_iret_as_from_a_system_call_loses_rcx_and_r11(xen, at):
    words = (1, 2, 3, 0x100, X.PADS + 16 * 0x106, KERNEL, 0x206, xen.va(7), X.USER_SS)
    context = at()
    done = xen.m.step(Return(1, Context(KERNEL, context.eip, 0x202, xen.va(6, 0x800), X.USER_SS), ((xen.va(6, 0x800), words),)))
    assert done.landing[:5] == (X.KERNEL_CS, X.PADS + 16 * 0x106, 0x206, xen.va(7), X.USER_SS)


def test_privileged_instructions(xen, at):
    for name, behind in (("clts", 2), ("wbinvd", 2), ("nop", 1)):
        assert xen.m.step(Privileged(1, at(), name)).landing[1] == xen.va(5, behind)
    for name in ("hlt", "cli", "sti", "in_al", "lgdt", "wrmsr", "mov_to_cr0"):
        assert xen.m.step(Privileged(1, at(), name)).landing[1] == X.PADS + 16 * 13


def test_no_stack_no_domain(xen, at):
    context = at()
    for rsp in (0x900000000, X.WINDOW + 64, X.GUEST_HIGH_START + 32):
        done = xen.m.step(Interrupt(1, Context(KERNEL, context.eip, 2, rsp, X.USER_SS), 3))
        assert (done.value, done.landing) == (KILLED, ())
    assert xen.m.step(Interrupt(1, Context(USER, context.eip, 2, 0, X.USER_SS), 3)).value == KILLED    # no root for user mode
    assert xen.m.step(SystemCall(1, context)).landing[1] == xen.va(5, 2)
