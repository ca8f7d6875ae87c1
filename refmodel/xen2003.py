"""The hypercalls of Xen 1.2 on the model: each in the ABI's order of checks (xen-2003.md §2.1, §4, §11; spec/RULINGS.md).

Those about descriptors and traps are in modules of their own.
"""
from typing import ClassVar

from refmodel.guest import ModelError, demand
from refmodel.references import Error, actor, drop_ldt, get_type, put_type, reap, replace_entry
from refmodel.xen2003_transfers import Transfers
from spec.abi import EFAULT, EINVAL, ENOMEM, ENOSYS, L2, P, Xen2003
from spec.frames import is_table, may_use, mfn_of
from spec.kernel import CPU, DomId, FrameType, Index, Mfn, Refused, Vpn, check
from spec.registers import clear_pinned, load_base, set_m2p, set_pinned
from spec.reservation import assign, drop_alloc, scrub
from spec.x86.tlb import flush, tag_of, tlb_drop

X = Xen2003
TL2 = FrameType(L2)


class Machine2003(Transfers):
    """The paper's Xen."""
    COMMANDS: ClassVar[tuple[int, ...]] = (X.PIN_L1, X.PIN_L2, X.UNPIN, X.NEW_BASEPTR, X.TLB_FLUSH, X.INVLPG)

    @check("CALL-1", source="xen-2003.md §2 (W-21)")
    def hypercall(self, d: DomId, nr: int, args: tuple[int, ...]) -> int:
        """The low eight bits of EAX select the call; a number that is not assigned gives -ENOSYS."""
        a, b, c, e = (*args, 0, 0, 0, 0)[:4]
        nr &= 0xFF
        try:
            demand(nr <= X.LAST_HYPERCALL, "CALL-1.1", ENOSYS)      # the number is assigned
            if nr == X.MMU_UPDATE:
                return self.mmu_update(d, a, b)
            if nr == X.UPDATE_VA_MAPPING:
                return self.update_va_mapping(d, a, b, c)
            if nr == X.DOM_MEM_OP:
                return self.dom_mem_op(d, a)
            if nr == X.MULTICALL:
                return self.multicall(d, a, b)
            return self.other_call(d, nr, (a, b, c, e))
        except Error as error:
            self.note(error)
            return -error.errno

    def other_call(self, d: DomId, nr: int, args: tuple[int, int, int, int]) -> int:
        """The hypercalls about descriptors and traps."""
        a, b, c, e = args
        if nr == X.SET_GDT:
            return self.set_gdt(d, a, b)
        if nr == X.UPDATE_DESCRIPTOR:
            return self.update_descriptor(d, a, b, c)
        if nr == X.SET_TRAP_TABLE:
            return self.set_trap_table(d, a)
        if nr == X.SET_FAST_TRAP:
            return self.set_fast_trap(d, a)
        if nr == X.SET_CALLBACKS:
            return self.set_callbacks(d, a, b, c, e)
        if nr == X.STACK_SWITCH:
            return self.stack_switch(d, a, b)
        if nr == X.SET_DEBUGREG:
            return self.set_debugreg(d, a, b)
        if nr == X.GET_DEBUGREG:
            return self.get_debugreg(d, a)
        if nr == X.FPU_TASKSWITCH:
            return self.fpu_taskswitch(d)
        raise ModelError(f"hypercall {nr} belongs to a wing that is not built yet")

    # --- mmu_update ---

    @check("MMU-1", source="xen-2003.md §4.1, 1.2 (W-14, W-20)")
    def mmu_update(self, d: DomId, ptr: int, count: int) -> int:
        """A batch commits entry by entry: the first that fails (unreadable: -EFAULT, else -EINVAL) stops it."""
        if count >= 1 << 31:
            return 0                        # a negative count
        try:
            for at in range(ptr, ptr + 8 * count, 8):
                self.attempt(self.request, d, at)
        except Refused:
            return -EINVAL
        return 0

    def request(self, d: DomId, at: int) -> None:
        """One entry: the low two bits of its first word select the command."""
        ptr, val = self.copy_in(d, at, 2)
        command = ptr & 3
        if command == X.NORMAL:
            self.normal(d, ptr, val)
        elif command == X.EXTENDED:
            self.extended(d, ptr & ~3, val)
        elif command == X.MACHPHYS:
            self.machphys(d, ptr >> 12, val)
        else:
            self.unchecked(d, ptr & ~3, val)

    @check("MMU-2", source="xen-2003.md §4.2 (W-7)")
    def entry_at(self, d: DomId, va: int) -> tuple[Mfn, Index]:
        """The word that a linear address names, in a frame that the caller may use."""
        demand(va < X.HOLE, "MMU-2.1", EINVAL)                      # the address is the guest's
        f = self.linear(d, va)
        demand(f is not None, "MMU-2.2", EINVAL)                    # its page is mapped
        mfn = Mfn(f or 0)
        demand(may_use(self.s, d, mfn), "MMU-2.3", EINVAL)          # to a frame that the caller may use
        return mfn, Index((va & 0xFFF) >> 2)

    @check("MMU-3", source="xen-2003.md §4.2 (W-5)")
    def normal(self, d: DomId, va: int, val: int) -> None:
        """An entry of a table in use is replaced by the table's rules; a word of an idle frame is just stored."""
        s = self.s
        f, i = self.entry_at(d, va)
        if s.type_count[f] == 0:
            self.store_idle(f, i, val)
            return
        demand(is_table(s, s.type[f]), "MMU-3.1", EINVAL)           # a frame in use is a page table
        replace_entry(s, f, i, val)

    @check("MMU-4", source="xen-2003.md §4.4 UNCHECKED (W-6)")
    def unchecked(self, d: DomId, va: int, val: int) -> None:
        """Domain 0 may store into any idle frame that it has mapped, as a builder of domains must."""
        demand(self.s.privileged[d], "MMU-4.1", EINVAL)             # the caller is privileged
        f, i = self.entry_at(d, va)
        demand(self.s.type_count[f] == 0, "MMU-4.2", EINVAL)        # the frame is idle
        self.store_idle(f, i, val)

    @check("MMU-5", source="xen-2003.md §4.3")
    def machphys(self, d: DomId, pfn: int, val: int) -> None:
        """Whoever may use a frame may name it."""
        demand(pfn < self.setup.frames, "MMU-5.1", EINVAL)          # the frame exists
        f = Mfn(pfn)
        demand(may_use(self.s, d, f), "MMU-5.2", EINVAL)            # the caller may use it
        set_m2p(self.s, self.s.owner[f], f, val)

    @check("MMU-6", source="xen-2003.md §4.4 (W-17)")
    def extended(self, d: DomId, ptr: int, val: int) -> None:
        """Extended commands name a frame by its machine address."""
        command, f = val & 0xFF, Mfn(ptr >> 12)
        if command == X.SET_LDT:
            self.set_ldt(d, ptr, val >> 8)
            return
        demand(f < self.setup.frames, "MMU-6.1", EINVAL)            # the frame exists
        demand(command in self.COMMANDS, "MMU-6.2", EINVAL)         # the command does
        if command <= X.PIN_L2:
            self.pin(d, f, FrameType(command + 1))
        elif command == X.UNPIN:
            self.unpin(d, f)
        elif command == X.NEW_BASEPTR:
            self.new_baseptr(d, f)
        elif command == X.TLB_FLUSH:
            self.flush_due = True
        else:
            self.invlpg(d, val & ~0xFF)

    @check("MMU-7", source="xen-2003.md §4.4 PIN_L1, PIN_L2")
    def pin(self, d: DomId, f: Mfn, t: FrameType) -> None:
        """A pin keeps a table validated without a use; it validates it first."""
        demand(not self.s.pinned[f], "MMU-7.1", EINVAL)             # it is not pinned yet
        owner = actor(self.s, d, f)
        get_type(self.s, owner, f, t)
        set_pinned(self.s, owner, f)

    @check("MMU-8", source="xen-2003.md §4.4 UNPIN")
    def unpin(self, d: DomId, f: Mfn) -> None:
        """Unpinning drops the pin's reference, and the table with its last one."""
        demand(may_use(self.s, d, f), "MMU-8.1", EINVAL)            # the caller may use the frame
        clear_pinned(self.s, self.s.owner[f], f)
        put_type(self.s, f)

    def new_baseptr(self, d: DomId, f: Mfn) -> None:
        """The new base is taken before the old one is dropped; the TLB is flushed at the end of the batch."""
        s = self.s
        get_type(s, actor(s, d, f), f, TL2)
        old = s.base[d]
        load_base(s, d, f)
        put_type(s, old)
        drop_ldt(s, d)
        self.flush_due = True

    def invlpg(self, d: DomId, va: int) -> None:
        """Drop the translations of one page, for data and for fetches."""
        for fetch in (False, True):
            tag = tag_of(Vpn(va >> 12), fetch)
            if self.s.tlb[d, tag] & P != 0:
                tlb_drop(self.s, d, tag)

    # --- update_va_mapping ---

    @check("UVM-1", source="xen-2003.md §4.5 (W-4, W-8)")
    def update_va_mapping(self, d: DomId, vpn: int, val: int, flags: int) -> int:
        """The entry that maps a page is replaced; then, if it was, the page or the whole TLB is flushed as asked."""
        s = self.s
        demand(vpn < X.HOLE >> 12, "UVM-1.1", EINVAL)               # the page is the guest's
        pde = s.word[s.base[d], Index(vpn >> 10)]
        demand(pde & P != 0, "UVM-1.2", EFAULT)                     # a table maps it
        try:
            self.attempt(replace_entry, s, mfn_of(s, pde), Index(vpn & 1023), val)
        except Refused:
            return -EINVAL
        if flags & X.UVMF_INVLPG:
            self.invlpg(d, vpn << 12)
        if flags & X.UVMF_FLUSH:
            self.flush_due = True
        return 0

    # --- dom_mem_op ---

    @check("MEM-1", source="xen-2003.md §11")
    def dom_mem_op(self, d: DomId, ptr: int) -> int:
        """A domain changes its reservation: it asks for frames, or gives some back."""
        op, size, pages = self.copy_in(d, ptr, 3)
        demand(op in (X.INCREASE, X.DECREASE), "MEM-1.1", ENOSYS)   # the operation exists
        if op == X.INCREASE:
            return self.increase(d, size, pages)
        return self.decrease(d, size, pages)

    @check("MEM-2", source="xen-2003.md §11 op 0 (W-13)")
    def increase(self, d: DomId, size: int, pages: int) -> int:
        """Zeroed frames are handed out, up to the domain's limit, while the pool keeps a slack; their numbers go to a list."""
        s = self.s
        demand(s.pages[d] + size <= s.limit[d], "MEM-2.1", ENOMEM)  # within the domain's limit
        demand(self.free_frames() >= size + X.SLACK, "MEM-2.2", ENOMEM)     # and the pool keeps its slack
        for n in range(size):
            try:
                f = self.attempt(self.hand_out, d)
            except Refused:
                return -EINVAL              # only if another machine's choice was not allowed
            try:
                self.attempt(self.copy_out, d, pages + 4 * n, f)
            except Error:
                self.refusals.pop()         # a list that cannot be written is not told
        return size

    def hand_out(self, d: DomId) -> Mfn:
        """One frame from the pool, flushed and zeroed."""
        s = self.s
        f = self.next_free()
        self.chose.append(f)
        if s.stamp[f] == s.clock[CPU]:
            flush(s, d)
        assign(s, d, f)
        self.handed_out.add(f)
        for i, w in sorted(self.concrete.row(f).items()):
            if w:
                scrub(s, d, f, Index(i))
        return f

    def decrease(self, d: DomId, size: int, pages: int) -> int:
        """Frames are given back one by one; the first that cannot be stops it, and those before it stay released."""
        try:
            for n in range(size):
                self.attempt(self.give_back, d, pages + 4 * n)
        except Refused:
            return -EINVAL
        return size

    @check("MEM-3", source="xen-2003.md §11 op 1 (W-12)")
    def give_back(self, d: DomId, at: int) -> None:
        """A frame can be given back by its owner when nothing else refers to it."""
        s = self.s
        f = Mfn(self.copy_in(d, at, 1)[0])
        demand(f < self.setup.frames, "MEM-3.1", EINVAL)            # the frame exists
        demand(s.owner[f] == d, "MEM-3.2", EINVAL)                  # it is the caller's own, whoever the caller is
        demand(s.type_count[f] == 0, "MEM-3.3", EINVAL)             # it serves no purpose
        demand(s.ref_count[f] == 1, "MEM-3.4", EINVAL)              # and nothing but its owner refers to it
        drop_alloc(s, d, f)
        reap(s, f)
        self.released.add(f)

    # --- multicall ---

    @check("MULTI-1", source="xen-2003.md §2.1 (W-11)")
    def multicall(self, d: DomId, calls: int, count: int) -> int:
        """A list of calls is made in order; their results are dropped, a nested list is skipped."""
        for at in range(calls, calls + 32 * count, 32):
            op, *args = self.copy_in(d, at, 6)
            if op & 0xFF != X.MULTICALL:
                self.hypercall(d, op, tuple(args))
        return 0
