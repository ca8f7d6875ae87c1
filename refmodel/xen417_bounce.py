"""How Xen 4.17 lets a guest run, and enters its kernel, on the model: events, iret, frames (xen-4.17.md §7; X-41 to X-47)."""
from collections.abc import Callable
from dataclasses import dataclass

from refmodel.guest import ModelError, older, translate
from refmodel.xen417_environment import pad
from refmodel.xen417_segments import SegmentLoads
from spec.abi import GP, PF, SS, Xen417
from spec.bounce64 import (
    ADDRESSES,
    DIRECTION,
    IDT_ERROR,
    IN_SYSTEM_CALL,
    Saved,
    aligned_stack,
    frame_64,
    given_flags,
    handler_flags_64,
    is_xens_stack,
    may_int_64,
    places,
    tells_code_64,
    user_code,
)
from spec.callbacks import is_canonical_64
from spec.kernel import DomId, Index, Mfn, Vpn
from spec.x86.descriptors import RPL, is_code
from spec.x86.flags import AC, ALL, ID, IF, NT, RF, STATUS, TF, VM
from spec.x86.long_interrupts import interrupt_return_64
from spec.x86.long_mode import is_64, is_unknown_code
from spec.x86.paging import Fault, require_segment
from spec.x86.segments import Registers, Segment
from spec.x86.system_calls import CODE_64
from spec.x86.tlb import guest_store, is_live, tag_of

X = Xen417
FREE_FLAGS = STATUS & (ALL ^ TF) | NT | AC | ID        # what contexts may set besides IF
NO_SEGMENT = Segment(0, 0)
XEN_CS = Segment(0xE008, CODE_64)
# what a machine may do otherwise: see `oracle.ground`
LOST_FLAGS, STALE_STACK, OTHER_MODE = "lost flags", "stale stack", "other mode"


class Killed(Exception):
    """Xen gives the domain up."""


@dataclass(slots=True)
class Guest:
    """The registers of the guest that runs; `quick`: Xen lets it go by SYSRET."""
    rip: int
    cs: int
    rflags: int
    rsp: int
    ss: int
    data: tuple[int, int, int, int]
    user: bool = False
    rcx: int = 0
    r11: int = 0
    quick: bool = False
    cr2: int = 0


class Bounces(SegmentLoads):
    """A machine whose Xen enters its guests' kernels.

    Habits of the processor are how it tells the gate of an INT n in an error code (`gate_shift`), that it sets RF in what it
    pushes for a fault, that it marks the segments that a transfer loads, and what an IRET to an absent stack gives.
    """
    gate_shift = 3
    marks_faults = True
    marks_segments = True
    absent_stack = SS

    # --- events: what Xen and the guest tell each other in shared_info ---

    def upcalls(self, d: DomId) -> int:
        """Whether an event is pending, and whether events are masked."""
        return self.s.word[Mfn(self.shared[d]), Index(0)] & 0xFFFF

    def set_upcalls(self, d: DomId, value: int) -> None:
        """Xen and the harness write there past the guest's tables: no rule is asked."""
        self.concrete.maps["word"][self.shared[d], 0] = value

    def mask(self, d: DomId, masked: bool) -> None:
        """Mask events, or let them come."""
        self.set_upcalls(d, self.upcalls(d) & 0xFF | X.UPCALL_MASK * masked)

    # --- Xen's way out ---

    def resume(self, d: DomId, g: Guest, words: tuple[int, ...]) -> None:
        """The iret hypercall, by what it finds on the stack."""
        _rax, r11, rcx, flags, rip, cs, rflags, rsp, ss = words
        check_flags(rflags)
        if cs & RPL == RPL:
            if not self.s.has_user[d]:
                raise Killed
            g.user = True
            self.enter_mode(d, True)
        g.rip, g.cs, g.rflags, g.rsp, g.ss = rip, (cs | RPL) & 0xFFFF, given_flags(rflags), rsp, (ss | RPL) & 0xFFFF
        if flags & IN_SYSTEM_CALL == 0:
            g.r11, g.rcx, g.quick = r11, rcx, False
        self.mask(d, rflags & IF == 0)
        self.way_out(d, g)

    def way_out(self, d: DomId, g: Guest) -> None:
        """Events are delivered as long as there are any, and then the guest runs, if the processor lets it."""
        while self.upcalls(d) & 0xFF and self.upcalls(d) & X.UPCALL_MASK == 0:
            self.bounce(d, g, self.s.trap_ip[d, Index(X.VECTORS + X.EVENT)], True)
        if g.quick:
            g.rcx, g.r11 = g.rip, g.rflags
            if is_canonical_64(g.rip):
                g.cs, g.ss = X.KERNEL_CS, X.USER_SS
                g.rflags &= ALL ^ (RF | VM)
                return
        words = (g.rip, g.cs, g.rflags, g.rsp, g.ss)
        inside = Registers(XEN_CS, *(NO_SEGMENT,) * 5, 0, 0, 2)
        try:
            out = interrupt_return_64(inside, self.table(d, True), lambda at: words[at >> 3], 8)
        except Fault as fault:
            if fault.vector == GP and fault.error == 0 and is_canonical_64(g.rip) and not X.PADS <= g.rip < pad(X.BACK_PAD):
                raise ModelError("Xen looks at the instruction to which it cannot return") from None
            self.exception(d, g, Fault(self.absent_stack, fault.error) if fault.vector == SS else fault)
            return
        if not is_64(out.cs.q):
            raise ModelError("the guest would go on in compatibility mode")
        self.mark_used(d, g.cs, g.ss)

    def table(self, d: DomId, inside: bool = False) -> Callable[[int], int]:
        """The descriptors in force; a page of the LDT that is missing while Xen returns is outside the vocabulary."""
        def look_up(selector: int) -> int:
            if not self.has_page(d, selector):
                if inside:
                    raise ModelError("a page of the LDT is missing while Xen returns")
                self.require_page(d, selector, 0)
            q = self.found(d, selector)
            if is_code(q) and (is_unknown_code(q) or not is_64(q)):
                self.concrete.lost = OTHER_MODE
            return q
        return look_up

    def mark_used(self, d: DomId, *selectors: int) -> None:
        """The descriptors of segments that a transfer has loaded are marked."""
        for selector in selectors if self.marks_segments else ():
            self.mark_loaded(d, selector)

    # --- Xen's way in: frames ---

    def bounce(self, d: DomId, g: Guest, handler: int, masks: bool, code: int | None = None) -> None:
        """A frame on the kernel's stack, and the registers at the handler."""
        s, masked = self.s, self.upcalls(d) & X.UPCALL_MASK != 0
        top = aligned_stack(s.kernel_sp[d] if g.user else g.rsp)
        saved = Saved(g.rcx, g.r11, g.rip, g.cs, g.rflags, g.rsp, g.ss, g.user)
        self.enter_mode(d, False)
        if is_xens_stack(top):
            raise Killed
        words = frame_64(saved, masked, () if code is None else (code,))
        ends = {(top - 8) & ADDRESSES, (top - 8 * len(words)) & ADDRESSES}
        if not all(self.is_sure(d, Vpn(page)) for page in {va >> 12 for va in ends}):
            self.concrete.lost = STALE_STACK
        for at, word in zip(places(top, len(words)), words, strict=True):
            self.store_frame_word(d, at, word)
        if masks:
            self.mask(d, True)
        if handler == 0:
            raise Killed
        g.rip, g.cs, g.rflags, g.ss = handler, X.KERNEL_CS, handler_flags_64(g.rflags), X.USER_SS
        g.rsp = (top - 8 * len(words)) & ADDRESSES
        g.user, g.quick = False, True

    def store_frame_word(self, d: DomId, va: int, word: int) -> None:
        """A store of Xen's own: what it cannot store kills the domain."""
        try:
            require_segment(self.s, va, 8)
            translate(self.s, self.choices, d, va, False, True, False, own=True)
        except Fault:
            raise Killed from None
        guest_store(self.s, d, tag_of(Vpn(va >> 12), False), Index((va & 0xFFF) >> 3), word)

    def handle(self, d: DomId, g: Guest, vector: int, code: int | None = None) -> None:
        """The guest's handler of a vector is entered."""
        v = Index(vector)
        self.bounce(d, g, self.s.trap_ip[d, v], self.s.trap_flags[d, v] & X.EVENTS_MASKED != 0, code)
        self.way_out(d, g)

    def exception(self, d: DomId, g: Guest, fault: Fault) -> None:
        """What the processor tells Xen, Xen tells the guest's kernel, but for INT n."""
        vector, code = fault.vector, fault.error
        if self.marks_faults:
            g.rflags |= RF
        if vector == GP and code & 7 == IDT_ERROR and self.soft_interrupt(d, g, code >> 3):
            return
        if vector == PF:
            g.cr2, code = fault.address, user_code(code, g.user)
        self.handle(d, g, vector, code if tells_code_64(vector) else None)

    def soft_interrupt(self, d: DomId, g: Guest, vector: int) -> bool:
        """INT n through a gate that is closed to the guest is performed by Xen, if the guest's handler is open to it."""
        if vector >= X.VECTORS:
            raise ModelError(f"Xen looks for a handler of vector {vector}")
        if not may_int_64(self.s.trap_flags[d, Index(vector)], g.user):
            return False
        g.rip = (g.rip + 2) & ADDRESSES
        self.handle(d, g, vector)
        return True

    def system_call(self, d: DomId, g: Guest) -> None:
        """SYSCALL in user mode enters the kernel by its callback, with DF clear."""
        v = Index(X.VECTORS + X.SYSCALL)
        if not self.s.trap_ip[d, v]:
            raise ModelError("there is no callback for system calls")
        g.rip = (g.rip + 2) & ADDRESSES
        g.rcx, g.r11, g.cs, g.ss = g.rip, g.rflags, X.KERNEL_CS, X.USER_SS
        self.bounce(d, g, self.s.trap_ip[d, v], self.s.trap_flags[d, v] & 1 != 0)
        if g.rflags & g.rsp & ALL | IF | 2 != g.rflags & (ALL ^ DIRECTION):
            self.concrete.lost = LOST_FLAGS
        g.rflags &= ALL ^ DIRECTION
        self.way_out(d, g)

    # --- which page it is ---

    def require_steady(self, d: DomId, va: int, user: bool) -> None:
        """A page that one mode writes and another reads or fetches must be the same for all of them, or absent."""
        if not self.is_steady(d, va, user):
            raise ModelError("a page that the processor may take for another")

    def is_steady(self, d: DomId, va: int, user: bool) -> bool:
        """Whatever translation the processor uses for a page, it finds the same frame, or none."""
        frames = {self.walk(d, va, False), self.walk(d, va, True) if user else None, None} | self.cached(d, Vpn(va >> 12))
        return len(frames) <= 2

    def is_sure(self, d: DomId, page: Vpn) -> bool:
        """A store of Xen's goes to the same frame, or fails, whatever translation the processor uses."""
        cached = self.cached(d, page)
        return not cached or cached == {self.walk(d, page << 12, False, True)}

    def cached(self, d: DomId, page: Vpn) -> set[int | None]:
        """The frames that cached translations of a page name."""
        tags = [tag for fetch in (True, False) for tag in (tag_of(page, fetch), older(tag_of(page, fetch)))]
        return {self.s.tlb[d, tag] >> 12 & self.profile.mfn_mask for tag in tags if is_live(self.s, d, tag)}


def check_flags(rflags: int) -> None:
    """Flags with which a guest can be let run."""
    if rflags & (ALL ^ (FREE_FLAGS | IF)) != 2 or rflags > ALL:
        raise ModelError(f"flags {rflags:#x}")
