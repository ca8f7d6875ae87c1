"""What a guest of Xen 1.2 executes where Xen lets it run, on the model: one instruction, by the manual (W-43 to W-60)."""
from collections.abc import Callable
from typing import Final

from refmodel.guest import ModelError, load, older, store, translate
from refmodel.references import Error
from refmodel.xen2003_bounce import Bounces
from spec.abi import BP, BR, DB, DE, GP, NM, OF, PF, UD, Xen2003
from spec.bounce import INT_BYTES, SINGLE_STEP, Saved, is_refused_int, may_int, tells_code
from spec.kernel import DomId, Index, Vpn
from spec.rings import (
    call,
    far_ret,
    fast_gate,
    fast_trap,
    fetch,
    found,
    iret,
    is_unmapped,
    jump,
    mark_fpu,
    registers,
    set_debug,
    tss_of,
)
from spec.vocabulary import (
    KILLED,
    Access,
    FarTransfer,
    Interrupt,
    Outcome,
    Privileged,
    Return,
    Transfer,
    code_of,
    code_words,
)
from spec.x86 import flags
from spec.x86.descriptors import BIG, RPL, base_of, is_null
from spec.x86.exceptions import interrupted_flags
from spec.x86.interrupts import interrupt_return, software_interrupt
from spec.x86.paging import Fault
from spec.x86.segments import Registers, check_access, check_alignment, check_fetch, cpl_of
from spec.x86.stacks import Transfer as Pushes
from spec.x86.stacks import check_room, check_top, moved, place, push
from spec.x86.tlb import is_live, tag_of
from spec.x86.transfers import Unmodelled, far_call, far_jump, far_return

X = Xen2003
HYPERCALL: Final = 0x82
PLAIN_FLAGS: Final = 2 | flags.IF           # of a context: always so
FREE_FLAGS: Final = flags.STATUS | flags.NT | flags.RF | flags.AC   # and what may be either way (W-44)
GATE: Final = 2                             # of an error code: a gate of the IDT
OVERFLOW: Final = 1 << 11                   # OF of EFLAGS
PUSHED: Final = 0xFCFFFF                    # of EFLAGS: what PUSHF shows
SOFTWARE: Final = frozenset({BP, OF})       # vectors whose gates in Xen's IDT are open to guests
KEPT_FOR_RING_0: Final = frozenset({
    "hlt", "cli", "sti", "in_al", "out_al", "clts", "lgdt", "lidt", "lldt", "ltr", "lmsw", "mov_from_cr0", "mov_to_cr0",
    "mov_to_cr3", "mov_to_cr4", "mov_from_dr7", "mov_to_dr7", "invlpg", "wbinvd", "rdmsr", "wrmsr"})


class Again(Exception):
    """Xen has mapped a page of the LDT: the instruction starts again."""


class Trapped(Exception):
    """The instruction is done, and what comes next is a handler: `registers` are those behind it."""

    def __init__(self, vector: int, after: Registers) -> None:
        super().__init__(vector)
        self.vector, self.after = vector, after


def saved_of(r: Registers) -> Saved:
    """What Xen saves of a guest's registers."""
    return Saved(r.cs.selector, r.eip, r.eflags, r.esp, r.ss.selector, r.ds.selector, r.es.selector, r.fs.selector, r.gs.selector)


class Transfers(Bounces):
    """A machine whose guests run with registers of their own."""

    def transfer(self, action: Transfer) -> Outcome:
        """Xen lets the guest run with a context, and it executes one instruction; what comes of it is where it goes on."""
        d, at = DomId(action.dom), action.at
        if at.cs & RPL == 0 or at.eflags & (flags.ALL ^ FREE_FLAGS) != PLAIN_FLAGS:
            raise ModelError(f"Xen never saved CS {at.cs:#x} with EFLAGS {at.eflags:#x} of a guest's")
        code = code_of(action)
        for va, words in action.data:
            self.store_data(d, va, words)
        self.store_data(d, self.code_address(d, at.cs, at.eip, code), code_words(code))
        try:
            r, elsewhere = self.way_out(d, Saved(at.cs, at.eip, at.eflags, at.esp, at.ss, at.ds, at.es, at.fs, at.gs))
            if not elsewhere:
                r = self.run(d, action, code, r)
            return Outcome(0, landing=tuple(saved_of(r)))
        except Error as error:
            self.note(error)
            return Outcome(KILLED)
        finally:
            self.flat(d)

    def code_address(self, d: DomId, cs: int, eip: int, code: bytes) -> int:
        """Where the kernel stores the instruction: as whole words in one page (W-43)."""
        at = (base_of(0 if is_null(cs) else found(self.s, d, cs)) + eip) & flags.ALL
        if at & 3 or (at & 0xFFF) + (len(code) + 3 & ~3) > 4096:
            raise ModelError(f"an instruction at {at:#x} is not in whole words of one page")
        return at

    def legal_transfer(self, action: Transfer) -> bool:
        """The instruction's page has one translation, cached or not."""
        d, s = DomId(action.dom), self.s
        va = self.code_address(d, action.at.cs, action.at.eip, code_of(action))
        frames = {self.walk(d, va, False, True)}
        for fetches in (True, False):
            first = tag_of(Vpn(va >> 12), fetches)
            frames.update(s.tlb[d, tag] >> 12 & self.profile.mfn_mask for tag in (first, older(first))
                          if is_live(s, d, tag) and d == self.current)
        return len(frames) == 1 and None not in frames

    # --- what comes of an instruction ---

    def run(self, d: DomId, action: Transfer, code: bytes, r: Registers) -> Registers:
        """One instruction of the guest, and Xen if it traps."""
        while True:
            try:
                after, steps = self.execute(d, action, code, r)
                break
            except Again:
                continue
            except Unmodelled as unmodelled:
                raise ModelError(f"a {unmodelled.reason} is outside the vocabulary") from None
            except Trapped as trap:
                return self.trapped(d, saved_of(trap.after), trap.vector)
            except Fault as fault:
                return self.fault(d, r, fault)
        if steps and r.eflags & flags.TF:
            set_debug(self.s, d, Index(6), SINGLE_STEP)
            return self.handled(d, saved_of(after), DB)
        return after

    def fault(self, d: DomId, r: Registers, fault: Fault) -> Registers:
        """Xen has a fault of the guest's: its kernel is to handle it, or it is an INT n that Xen performs (W-55, W-56)."""
        vector, error = fault.vector, fault.error
        saved = saved_of(r._replace(eflags=interrupted_flags(vector, r.eflags)))
        if is_refused_int(vector, error):
            v = error >> 3
            if may_int(self.s.trap_flags[d, Index(v)], cpl_of(r)):
                return self.trapped(d, saved._replace(eip=(saved.eip + INT_BYTES) & flags.ALL), v)
        more = (error, fault.address) if vector == PF else (error,) if tells_code(vector) else ()
        return self.trapped(d, saved, vector, *more)

    # --- memory, by the ring that runs ---

    def read(self, d: DomId, r: Registers, address: int) -> int:
        """A load of the program at a linear address; the limit was checked."""
        check_alignment(cpl_of(r), r.eflags, address, 4)
        return load(self.s, self.choices, self, d, address, cpl_of(r) == 3)

    def write(self, d: DomId, r: Registers, address: int, value: int) -> None:
        """A store of the program."""
        check_alignment(cpl_of(r), r.eflags, address, 4)
        store(self.s, self.choices, d, address, value, cpl_of(r) == 3)

    def stack_of(self, d: DomId, r: Registers, top: int, asked: list[int]) -> Callable[[int], int]:
        """The stack as the processor's procedures read it, but its top words at once, from the highest down (W-53).

        What the procedures ask for is noted.
        """
        found: dict[int, int] = {}

        def word_at(offset: int) -> int:
            if not found:
                for n in reversed(range(top)):
                    place_of = place(r.ss.q, r.esp, 4 * n)
                    found[place_of] = self.read(d, r, (base_of(r.ss.q) + place_of) & flags.ALL)
            if offset not in found:
                found[offset] = self.read(d, r, (base_of(r.ss.q) + offset) & flags.ALL)
            asked.append(found[offset])
            return found[offset]
        return word_at

    def table(self, d: DomId) -> Callable[[int], int]:
        """The tables as a guest's instruction looks descriptors up."""
        def look_up(selector: int) -> int:
            if is_unmapped(self.s, d, selector):
                self.find_page(d, selector)
                raise Again
            fetch(self.s, d, selector)
            return self.s.fetched[d, Index(selector)]
        return look_up

    def table_of_iret(self, d: DomId) -> Callable[[int], int]:
        """The same for IRET: CS, then SS; an SS that its RPL alone rules out is not looked up (W-52)."""
        look_up, ring = self.table(d), list[int]()

        def found_by(selector: int) -> int:
            ring.append(selector & RPL)
            return look_up(selector) if ring[0] == ring[-1] else 0
        return found_by

    def perform(self, d: DomId, r: Registers, pushes: Pushes) -> None:
        """The stores of a transfer, in order: on an inner stack they are a supervisor's (W-53)."""
        new, size = pushes.registers, pushes.size
        inner = cpl_of(new) != cpl_of(r)
        base = base_of(new.ss.q)

        def put(offset: int, word: int) -> None:
            address = (base + offset) & flags.ALL
            if inner:
                store(self.s, self.choices, d, address, word, False)
            else:
                self.write(d, r, address, word)
        before = 2 if pushes.copied else 0
        for offset, word in pushes.pushed[:before]:
            put(offset, word)
        for n in reversed(range(pushes.copied)):
            word = self.read(d, r, (base_of(r.ss.q) + place(r.ss.q, pushes.source, n * size)) & flags.ALL)
            put(place(new.ss.q, pushes.target, n * size), word)
        for offset, word in pushes.pushed[before:]:
            put(offset, word)

    # --- the instruction ---

    def execute(self, d: DomId, action: Transfer, code: bytes, r: Registers) -> tuple[Registers, bool]:
        """The registers behind it, and whether it can be stepped; Fault, Trapped or Again if it does not come so far."""
        self.fetch_code(d, code, r)
        after = r._replace(eip=(r.eip + len(code)) & flags.ALL, eflags=r.eflags & (flags.ALL ^ flags.RF))
        match action:
            case FarTransfer(kind="jmp"):
                return self.jump(d, after, action.selector, action.offset), True
            case FarTransfer(kind="call"):
                return self.far_call(d, after, action.selector, action.offset), True
            case FarTransfer():
                return self.far_return(d, after), True
            case Interrupt():
                return self.interrupt(d, after, action.vector), False
            case Return():
                return self.iret(d, after), True
            case Access():
                check_access(r.ds.q, action.va, 4, action.write)
                address = (base_of(r.ds.q) + action.va) & flags.ALL
                if action.write:
                    self.write(d, r, address, 0)
                else:
                    check_alignment(cpl_of(r), r.eflags, address, 4)
                    load(self.s, self.choices, self, d, address, cpl_of(r) == 3, 0)
                return after, True
            case Privileged():
                return self.privileged(d, r, after, action.instruction), True
        raise ModelError("there is no SYSCALL in 32-bit code")

    def fetch_code(self, d: DomId, code: bytes, r: Registers) -> None:
        """The processor fetches the instruction, which must be the one that was stored."""
        if not r.cs.q & BIG:
            raise ModelError("16-bit code is outside the vocabulary")
        check_fetch(r.cs.q, r.eip, len(code))
        va = (base_of(r.cs.q) + r.eip) & flags.ALL
        e = translate(self.s, self.choices, d, va, cpl_of(r) == 3, False, True)
        f = e >> 12 & self.profile.mfn_mask
        row = self.concrete.row(f)
        there = b"".join(row.get((va & 0xFFF) // 4 + n, 0).to_bytes(4, "little") for n in range(-(-len(code) // 4)))
        if there[:len(code)] != code:
            raise ModelError(f"domain {d} would execute at {va:#x} what is not the instruction")

    def landed(self, d: DomId, new: Registers, outer: bool = True) -> Registers:
        """After a transition of the processor's: the segment registers of the state, and marks on what was loaded."""
        self.mark_loaded(d, new.cs.selector)
        if outer:
            self.require_wide(new.ss)
            self.mark_loaded(d, new.ss.selector)
        return registers(self.s, d, new.eip, new.esp, new.eflags)

    def jump(self, d: DomId, r: Registers, selector: int, offset: int) -> Registers:
        """JMP."""
        new = far_jump(r, self.table(d), selector, offset)
        jump(self.s, d, selector, offset)
        return self.landed(d, new, False)

    def far_call(self, d: DomId, r: Registers, selector: int, offset: int) -> Registers:
        """CALL."""
        esp1 = self.s.kernel_sp[d]
        pushes = far_call(r, self.table(d), tss_of(self.s, d, esp1), selector, offset)
        self.require_wide(pushes.registers.ss)
        self.perform(d, r, pushes)
        call(self.s, d, selector, offset, r.esp, esp1)
        return self.landed(d, pushes.registers, cpl_of(pushes.registers) != cpl_of(r))

    def far_return(self, d: DomId, r: Registers) -> Registers:
        """RET."""
        words: list[int] = []
        new = far_return(r, self.table(d), self.stack_of(d, r, 2, words))
        eip, cs, ss, esp = (*words, 0, 0)[:4]
        far_ret(self.s, d, r.esp, eip, cs & 0xFFFF, esp, ss & 0xFFFF)
        return self.landed(d, new, cpl_of(new) != cpl_of(r))

    def iret(self, d: DomId, r: Registers) -> Registers:
        """IRET."""
        words: list[int] = []
        tss = tss_of(self.s, d, self.s.kernel_sp[d])
        new = interrupt_return(r, self.table_of_iret(d), tss, self.stack_of(d, r, 3, words))
        eip, cs, eflags, ss, esp = (*words, 0, 0)[:5]
        iret(self.s, d, r.esp, eip, cs & 0xFFFF, eflags, esp, ss & 0xFFFF)
        return self.landed(d, new, cpl_of(new) != cpl_of(r))

    def interrupt(self, d: DomId, r: Registers, vector: int) -> Registers:
        """INT n: past Xen through the fast trap's gate, or into Xen."""
        if vector in SOFTWARE:
            raise Trapped(vector, r)
        if vector == HYPERCALL and cpl_of(r) == 1:
            raise ModelError("INT 0x82 in ring 1 is a hypercall")
        if not vector or vector != self.s.fast_trap[d]:
            raise Fault(GP, vector << 3 | GATE)
        esp1 = self.s.kernel_sp[d]
        pushes = software_interrupt(r, self.table(d), tss_of(self.s, d, esp1), fast_gate(self.s, d), vector)
        self.require_wide(pushes.registers.ss)
        self.perform(d, r, pushes)
        fast_trap(self.s, d, r.esp, esp1)
        return self.landed(d, pushes.registers, cpl_of(pushes.registers) != cpl_of(r))

    def privileged(self, d: DomId, r: Registers, after: Registers, name: str) -> Registers:
        """An instruction that the processor keeps for inner rings, or that traps (W-60)."""
        if name in KEPT_FOR_RING_0:
            raise Fault(GP, 0)
        if name == "ud2":
            raise Fault(UD, 0)
        if name == "divide":
            raise Fault(DE, 0)
        if name == "int3":
            raise Trapped(BP, after)
        if name == "into" and r.eflags & OVERFLOW:
            raise Trapped(OF, after)
        if name == "fpu" and self.s.task_switched[d]:
            mark_fpu(self.s, d, 0)
            raise Fault(NM, 0)
        if name == "bound":
            self.bound(d, r)
        if name == "pushf":
            return self.pushf(d, after)
        return self.popf(d, r, after) if name == "popf" else after

    def bound(self, d: DomId, r: Registers) -> None:
        """BOUND of 0 by the two words at SS:ESP."""
        bounds = []
        for offset in (r.esp, (r.esp + 4) & flags.ALL):
            check_access(r.ss.q, offset, 4, False, stack=True)
            word = self.read(d, r, (base_of(r.ss.q) + offset) & flags.ALL)
            bounds.append(word - (word >> 31 << 32))
        if not bounds[0] <= 0 <= bounds[1]:
            raise Fault(BR, 0)

    def pushf(self, d: DomId, after: Registers) -> Registers:
        """PUSHF."""
        check_room(after.ss, after.esp, 1, 4, 0)
        pushes = push(after, (after.eflags & PUSHED,), 4)
        self.perform(d, after, pushes)
        return pushes.registers

    def popf(self, d: DomId, r: Registers, after: Registers) -> Registers:
        """POPF."""
        check_top(r, 0, 1, 4)
        word = self.read(d, r, (base_of(r.ss.q) + place(r.ss.q, r.esp, 0)) & flags.ALL)
        return after._replace(esp=moved(r.ss.q, r.esp, 4), eflags=flags.popped(r.eflags, word, cpl_of(r), True))

