"""What Xen 4.17 puts on a 64-bit guest's stack when it enters the guest's kernel, and with which registers: words, no memory."""
from typing import Final, NamedTuple

from spec.abi import PF_USER, Xen417
from spec.kernel import predicate
from spec.x86.descriptors import RPL
from spec.x86.flags import AC, ALL, IF, IOPL, NT, RF, TF, VM

X = Xen417
ADDRESSES: Final = (1 << 64) - 1
IN_SYSTEM_CALL: Final = 1 << 8              # of the iret hypercall's flags: RCX and R11 stay, and SYSRET returns
MASK_SHIFT: Final = 32                      # of the word with CS: whether events were masked
XEN_END: Final = X.GUEST_HIGH_START + 64    # a stack below this, and in or above Xen's slots, is none
TELLS_CODE: Final = 0x60227D00              # bit v: an exception v comes with an error code
DIRECTION: Final = 1 << 10                   # DF
IDT_ERROR: Final = 2                        # of an error code: it names a gate of the IDT


class Saved(NamedTuple):
    """A guest's registers as Xen has them when it enters the guest's kernel."""
    rcx: int
    r11: int
    rip: int
    cs: int
    rflags: int
    rsp: int
    ss: int
    user: bool                              # it was in user mode


@predicate
def aligned_stack(rsp: int) -> int:
    """A frame ends at a multiple of 16."""
    return rsp & (ADDRESSES ^ 15)


@predicate
def is_xens_stack(rsp: int) -> bool:
    """A frame there would lie in Xen's slots."""
    return (rsp > X.WINDOW) & (rsp < XEN_END)


@predicate
def frame_flags(rflags: int, masked: bool) -> int:
    """RFLAGS as the guest's kernel sees them: IF is its own mask of events, and IOPL is none."""
    kept = rflags & (ALL ^ (IF | IOPL))
    return kept if masked else kept | IF


def frame_64(saved: Saved, masked: bool, code: tuple[int, ...]) -> tuple[int, ...]:
    """The words, with `code` an error code or nothing, in the order of the stores: downwards, but CS comes before RFLAGS."""
    cs = saved.cs if saved.user else saved.cs & (0xFFFF ^ RPL)
    words = (saved.ss, saved.rsp, cs | masked << MASK_SHIFT, frame_flags(saved.rflags, masked), saved.rip)
    return (*words, *code, saved.r11, saved.rcx)


def places(top: int, words: int) -> tuple[int, ...]:
    """Where each word of a frame goes that ends below `top`."""
    return tuple((top - 8 * n) & ADDRESSES for n in (1, 2, 4, 3, *range(5, words + 1)))


@predicate
def handler_flags_64(rflags: int) -> int:
    """RFLAGS in the guest's kernel."""
    return (rflags & (ALL ^ (AC | VM | RF | NT | TF))) | IF


@predicate
def given_flags(rflags: int) -> int:
    """RFLAGS that a guest asks for by the iret hypercall, as the processor gets them."""
    return (rflags & (ALL ^ (IOPL | VM))) | IF | 2


@predicate
def user_code(error: int, user: bool) -> int:
    """The error code of a page fault tells the guest's kernel from its applications, which the processor cannot."""
    return error & (ALL ^ PF_USER) | (PF_USER if user else 0)


@predicate
def may_int_64(flags: int, user: bool) -> bool:
    """A handler is open to INT n of the kernel (as if in ring 1), or of applications."""
    return flags & 3 >= (3 if user else 1)


@predicate
def tells_code_64(vector: int) -> bool:
    """The frame of an exception has an error code."""
    return TELLS_CODE >> vector & 1 != 0
