"""What a guest of Xen 4.17 executes where Xen lets it run, on the model: one instruction, and where the guest lands (X-41)."""
from dataclasses import replace

from refmodel.guest import ModelError, load, older, read_word, store, translate
from refmodel.references import Error
from refmodel.xen417_bounce import NO_SEGMENT, STALE_STACK, Bounces, Guest, Killed, check_flags
from refmodel.xen417_environment import pad
from spec.abi import BP, DE, GP, NM, OF, PF, UD, Xen417
from spec.bounce64 import ADDRESSES, IDT_ERROR
from spec.callbacks import is_canonical_64, set_debug_64, switch_task
from spec.kernel import DomId, Index, Mfn, Vpn
from spec.vocabulary import (
    KILLED,
    Access,
    Context,
    FarTransfer,
    Interrupt,
    Outcome,
    Privileged,
    Return,
    SystemCall,
    Transfer,
    code_of_64,
    code_words_64,
)
from spec.x86.descriptors import RPL
from spec.x86.flags import AC, ALL, RF, VM, popped
from spec.x86.long_mode import far_call_64, far_jump_64, far_return_64, is_64
from spec.x86.paging import Fault, require_segment
from spec.x86.segments import Registers, Segment
from spec.x86.tlb import is_live, tag_of

X = Xen417
SYSTEM_CALL_VECTOR = 0x80                   # has a gate of its own, open to all
OWN_GATES = {3: BP, 4: OF}
LATE_TARGET = "late target"                 # what a machine may do otherwise: see `oracle.ground`

# What Xen makes of instructions: for the kernel; for applications those of EVERYBODY only, any other is a general protection.
EMULATED = frozenset({"clts", "mov_from_cr0", "mov_to_cr4", "mov_from_dr7", "mov_to_dr7", "wbinvd", "rdmsr"})
EVERYBODY = frozenset({"rdtsc", "nop"})
FAULTS = {"ud2": UD, "into": UD, "bound": UD, "divide": DE}
SINGLE_BYTE_BREAK = "int3"


class TransferCalls(Bounces):
    """A machine whose guests run."""

    def transfer(self, action: Transfer) -> Outcome:
        """One action: stores, Xen's way out, one instruction, and what comes of it."""
        d, at = DomId(action.dom), action.at
        check_context(at)
        self.set_upcalls(d, X.UPCALL_MASK)
        try:
            self.enter_mode(d, False)
            user = at.cs & RPL == RPL
            for page in {va >> 12 for va in (at.eip, at.esp, at.esp + 71 & ADDRESSES, *(va for va, _ in action.data))}:
                self.require_steady(d, page << 12, user)
            for va, words in (*action.data, (at.eip, code_words_64(action, behind(at)))):
                self.store_data(d, va, words)
            if self.s.word[Mfn(self.shared[d]), Index(0)] & ~X.UPCALL_PENDING != X.UPCALL_MASK:
                raise ModelError("events that are not masked before the guest runs")
            return self.landed(d, action)
        except Killed:
            self.enter_mode(d, False)
            return Outcome(KILLED)
        finally:
            self.set_upcalls(d, X.UPCALL_MASK)

    def landed(self, d: DomId, action: Transfer) -> Outcome:
        """The registers where the guest goes on; a landing in user mode comes back by a system call, with a frame of its own."""
        at = action.at
        g = Guest(at.eip, 0, 2, 0, 0, (at.ds, at.es, at.fs, at.gs))
        self.resume(d, g, (0, 0, 0, 0, at.eip, at.cs, at.eflags, at.esp, at.ss))
        if g.rip == at.eip:
            self.execute(d, g, action)
        check_landing(g, at.eip + len(code_of_64(action)))
        landing = (g.cs, g.rip, g.rflags, g.rsp, g.ss, *g.data)
        cr2 = g.cr2 if g.rip == pad(PF) else 0
        if g.user:
            g.rip = pad(X.BACK_PAD)
            self.system_call(d, g)
        else:
            self.enter_mode(d, False)
        return Outcome(self.upcalls(d), address=cr2, landing=landing)

    # --- the instruction ---

    def execute(self, d: DomId, g: Guest, action: Transfer) -> None:
        """It is fetched, and does what it does, or faults."""
        words = code_words_64(action, behind(action.at))
        try:
            self.fetch(d, g, words)
            after = replace(g, rip=g.rip + len(code_of_64(action)))
            if self.perform(d, g, after, action):
                return
            if not isinstance(action, Return | SystemCall):
                self.fetch(d, g, words)     # it may have overwritten the jump behind it
        except Fault as fault:
            self.exception(d, g, fault)
            return
        for name in Guest.__slots__:
            setattr(g, name, getattr(after, name))

    def fetch(self, d: DomId, g: Guest, words: tuple[int, ...]) -> None:
        """What is fetched must be the instruction, whatever translation the processor uses, and lie in one page."""
        if (g.rip & 0xFFF) + 8 * len(words) > 0x1000:
            raise ModelError("an instruction that crosses a page")
        require_segment(self.s, g.rip, 8)
        e = translate(self.s, self.choices, d, g.rip, g.user, False, True)
        frames = [e]
        for fetch in (True, False):
            first = tag_of(Vpn(g.rip >> 12), fetch)
            frames += [self.s.tlb[d, tag] for tag in (first, older(first)) if is_live(self.s, d, tag)]
        for entry in frames:
            for n, word in enumerate(words):
                if read_word(self.s, self, entry, g.rip + 8 * n, 0) != word:
                    raise ModelError("what is fetched is not the instruction")

    def perform(self, d: DomId, g: Guest, after: Guest, action: Transfer) -> bool:
        """Perform it: `after` are the registers behind it.  True if the guest has already landed elsewhere."""
        if isinstance(action, Interrupt):
            self.interrupt(d, g, after, action.vector)
            return True
        if isinstance(action, Privileged):
            return self.privileged(d, g, after, action.instruction)
        if isinstance(action, Return | SystemCall):
            return self.call_xen(d, g, after, isinstance(action, Return))
        if isinstance(action, Access):
            self.access(d, g, action)
        else:
            self.far(d, g, after, action)
        return False

    def access(self, d: DomId, g: Guest, action: Access) -> None:
        """A load, or a store of 0."""
        if g.rflags & AC and action.va & 7:
            raise ModelError("an access that is not aligned, with alignment checked")
        if not action.write:
            load(self.s, self.choices, self, d, action.va, g.user, 0)
        else:
            self.store_word(d, action.va, 0, g.user)

    def interrupt(self, d: DomId, g: Guest, after: Guest, vector: int) -> None:
        """INT n: three gates are open, all others are not."""
        if vector in OWN_GATES or (vector == SYSTEM_CALL_VECTOR and self.s.trap_ip[d, Index(vector)]):
            g.rip = after.rip
            self.handle(d, g, vector)
            return
        self.exception(d, g, Fault(GP, vector << self.gate_shift | IDT_ERROR))

    def privileged(self, d: DomId, g: Guest, after: Guest, name: str) -> bool:
        """An instruction that Xen may perform; True if it traps."""
        if name in FAULTS:
            raise Fault(FAULTS[name], 0)
        if name == SINGLE_BYTE_BREAK:
            g.rip = after.rip
            self.handle(d, g, BP)
            return True
        if name == "fpu":
            if self.s.task_switched[d]:
                self.note_fpu(d)
                raise Fault(NM, 0)
        elif name == "pushf":
            self.push(d, g, after, g.rflags & (ALL ^ (RF | VM)))
        elif name == "popf":
            after.rflags = popped(g.rflags, self.pop(d, g), 3, True)
            after.rsp = (g.rsp + 8) & ADDRESSES
            check_flags(after.rflags)
        elif name not in EVERYBODY and (g.user or name not in EMULATED):
            raise Fault(GP, 0)
        elif name == "clts":
            switch_task(self.s, d, 0)
        elif name == "mov_to_dr7":
            set_debug_64(self.s, d, Index(7), 0)
        return False

    def note_fpu(self, d: DomId) -> None:
        """The guest is told of its use of the FPU once."""
        switch_task(self.s, d, 0)

    def push(self, d: DomId, g: Guest, after: Guest, word: int) -> None:
        """A word goes on the guest's stack."""
        after.rsp = (g.rsp - 8) & ADDRESSES
        self.check_stack(d, g, after.rsp, True)
        self.store_word(d, after.rsp, word, g.user)

    def pop(self, d: DomId, g: Guest) -> int:
        """The word on the guest's stack."""
        self.check_stack(d, g, g.rsp)
        return load(self.s, self.choices, self, d, g.rsp, g.user)

    def check_stack(self, d: DomId, g: Guest, at: int, stores: bool = False) -> None:
        """Words on a stack lie at canonical addresses, or the fault is another; they are aligned if that is checked."""
        if stores and not self.is_sure(d, Vpn(at >> 12)):
            self.concrete.lost = STALE_STACK
        if not is_canonical_64(at) or not is_canonical_64(at + 7 & ADDRESSES):
            raise ModelError("a stack at an address that is not canonical")
        if g.rflags & AC and at & 7:
            raise ModelError("a stack that is not aligned, with alignment checked")

    def far(self, d: DomId, g: Guest, after: Guest, action: FarTransfer) -> None:
        """A far jump or call by the pointer behind the code, or a far return: 64-bit words."""
        look_up = self.table(d)
        r = Registers(Segment(g.cs, look_up(g.cs)), Segment(g.ss, look_up(g.ss)), *(NO_SEGMENT,) * 4, after.rip, g.rsp, g.rflags)
        if action.kind == "ret":
            offset = self.may_be_late(self.pop(d, g))
            new = far_return_64(r, look_up, lambda at: self.pop(d, replace(g, rsp=at)), 8)
        else:
            offset, selector = self.pointer(d, g, action)
            if action.kind == "jmp":
                new = far_jump_64(r, look_up, selector, offset, 8)
            else:
                if g.rsp & 0xFFF < 16:
                    raise ModelError("a return address over two pages")
                called = far_call_64(r, look_up, selector, offset, 8)
                new = called.registers
                for at, word in called.pushed:
                    self.check_stack(d, g, at, True)
                    store(self.s, self.choices, d, at, word, g.user)
        if not is_64(new.cs.q):
            raise ModelError("the guest would go on in compatibility mode")
        self.mark_used(d, new.cs.selector)
        after.rip, after.cs, after.rsp = offset, new.cs.selector, new.esp

    def pointer(self, d: DomId, g: Guest, action: FarTransfer) -> tuple[int, int]:
        """Offset and selector, which lie behind the code."""
        at = g.rip + 8 * (len(code_words_64(action, 0)) - 2)
        offset, selector = (load(self.s, self.choices, self, d, at + n, g.user) for n in (0, 8))
        return self.may_be_late(offset), selector & 0xFFFF

    def may_be_late(self, offset: int) -> int:
        """A target that is not canonical may be noticed when the transfer is done."""
        if not is_canonical_64(offset):
            self.concrete.lost = LATE_TARGET
        return offset

    # --- SYSCALL ---

    def call_xen(self, d: DomId, g: Guest, after: Guest, returns: bool) -> bool:
        """From the kernel a hypercall: iret, or one that does not exist; from user mode the kernel is called."""
        if g.user:
            self.system_call(d, g)
            return True
        after.rcx, after.r11, after.quick = after.rip, after.rflags, True
        after.cs, after.ss = X.KERNEL_CS, X.USER_SS
        if returns:
            try:
                words = self.read(d, g.rsp, 72)
            except Error:
                raise Killed from None
            row = tuple(int.from_bytes(words[n:n + 8], "little") for n in range(0, 72, 8))
            self.resume(d, after, row)
        else:
            self.way_out(d, after)
        return False


def check_context(at: Context) -> None:
    """Contexts that no rule describes are outside the vocabulary."""
    if at.eip & 7 or any(selector not in (0, X.USER_SS) for selector in (at.ds, at.es, at.fs, at.gs)):
        raise ModelError("a context with code that is not aligned, or with other data segments than Xen's flat one")


def behind(at: Context) -> int:
    """The pad to which the code jumps behind the instruction."""
    return pad(X.BEHIND_USER_PAD if at.cs & RPL == RPL else X.BEHIND_PAD)


def check_landing(g: Guest, next_instruction: int) -> None:
    """The guest goes on behind the instruction, or at a pad of its mode."""
    n, rest = divmod(g.rip - X.PADS, X.PAD)
    pads = range(X.BEHIND_USER_PAD + 1, X.BACK_PAD) if g.user else range(X.BEHIND_USER_PAD)
    if g.rip != next_instruction and (rest or n not in pads or n == X.BEHIND_PAD):
        raise ModelError(f"the guest goes on at {g.rip:#x}")
