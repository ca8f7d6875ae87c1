"""The machine of Xen 4.17: each hypercall in the ABI's order of checks (xen-4.17.md §4, §5, §10, §11; spec/RULINGS-4.17.md)."""
from struct import pack, unpack
from typing import ClassVar

from refmodel.guest import ModelError, demand
from refmodel.references import Error
from refmodel.xen417_commands import COUNTED, call_name, end_name
from refmodel.xen417_mmu import WORD, Abandoned, Listed
from refmodel.xen417_pointers import ADDRESSES, addr_ok
from refmodel.xen417_transfers import TransferCalls
from spec.abi import EFAULT, EINVAL, ENOSYS, Xen417
from spec.kernel import DomId, check
from spec.vocabulary import Hypercall
from spec.x86.tlb import load_cr3

X = Xen417
OTHER_HALF = frozenset({X.SET_TRAP_TABLE, X.SET_GDT, X.STACK_SWITCH, X.SET_CALLBACKS, X.FPU_TASKSWITCH, X.SET_DEBUGREG,
                        X.GET_DEBUGREG, X.UPDATE_DESCRIPTOR, X.SET_SEGMENT_BASE, X.CALLBACK_OP})


class Machine417(TransferCalls):
    """The Xen that people run, with 64-bit PV guests."""
    other_wings: ClassVar[frozenset[int]] = X.OTHER_CALLS

    # --- modes: the guest's kernel and its applications run in ring 3, on tables of their own ---

    def enter_mode(self, d: DomId, user: bool) -> None:
        """A change of mode loads CR3."""
        if user and not self.s.has_user[d]:
            raise ModelError(f"domain {d} has no root table for user mode")
        if user != self.mode:
            self.mode = user
            load_cr3(self.s, d)

    # --- hypercalls ---

    def hypercall(self, d: DomId, nr: int, args: tuple[int, ...]) -> int:
        """One hypercall: its result, or the number of its error."""
        a, b, c, e, _, _ = (*args, 0, 0, 0, 0, 0, 0)[:6]
        try:
            result = self.made(d, nr, (a, b, c, e))
        except Error as error:
            self.note(error)
            result = -error.errno
        name = call_name(nr, a)
        if name not in COUNTED:
            self.did.append((name, end_name(result)))
        return result

    @check("CALL-2", source="xen-4.17.md §1")
    def made(self, d: DomId, nr: int, args: tuple[int, int, int, int]) -> int:
        """RAX selects the call; a number that is not assigned gives -ENOSYS."""
        a, b, c, e = args
        if nr == X.MMU_UPDATE:
            return self.mmu_update(d, a, b & WORD, c, e & WORD)
        if nr == X.UPDATE_VA_MAPPING:
            return self.update_va_mapping(d, a, b, c, d)
        if nr == X.UPDATE_VA_MAPPING_OTHERDOMAIN:
            return self.update_va_mapping_otherdomain(d, a, b, c, e)
        if nr == X.MMUEXT_OP:
            return self.mmuext_op(d, a, b & WORD, c, e & WORD)
        if nr == X.MEMORY_OP:
            return self.memory_op(d, a, b)
        if nr in OTHER_HALF:
            return self.made_other(d, nr, args)
        if nr in self.other_wings:
            raise ModelError(f"hypercall {nr} belongs to a wing that is not built yet")
        demand(nr == X.MULTICALL, "CALL-2.1", ENOSYS)               # the number is assigned
        return self.multicall(d, a, b & WORD)

    def made_other(self, d: DomId, nr: int, args: tuple[int, int, int, int]) -> int:
        """The calls about descriptors, handlers and the guest's registers."""
        a, b, c, _ = args
        if nr == X.SET_TRAP_TABLE:
            return self.set_trap_table(d, a)
        if nr == X.SET_GDT:
            return self.set_gdt(d, a, b & WORD)
        if nr == X.STACK_SWITCH:
            return self.stack_switch(d, a, b)
        if nr == X.SET_CALLBACKS:
            return self.set_callbacks(d, a, b, c)
        if nr == X.FPU_TASKSWITCH:
            return self.fpu_taskswitch(d, a)
        if nr == X.SET_DEBUGREG:
            return self.set_debugreg(d, a & WORD, b)
        if nr == X.GET_DEBUGREG:
            return self.get_debugreg(d, a & WORD)
        if nr == X.UPDATE_DESCRIPTOR:
            return self.update_descriptor(d, a, b)
        if nr == X.SET_SEGMENT_BASE:
            return self.set_segment_base(d, a & WORD, b)
        return self.callback_op(d, a & WORD, b)

    @check("MULTI-2", source="xen-4.17.md §11 multicall")
    def multicall(self, d: DomId, calls: int, count: int) -> int:
        """A list of calls is made in order, and the result of each is written into the list; lists are not nested."""
        demand(self.listed is None, "MULTI-2.1", EINVAL)            # the call is not in a list itself
        demand(addr_ok(calls), "MULTI-2.2", EFAULT)                 # the list starts outside Xen's slots
        try:
            for n in range(count):
                at = (calls + 64 * n) % ADDRESSES
                self.listed = Listed(at, list(unpack("<8Q", self.read(d, at, 64))))
                op, _, *args = self.listed.words
                result = self.hypercall(d, op, tuple(args))
                self.write(d, (at + 8) % ADDRESSES, pack("<q", result))
        except Abandoned as abandoned:
            return -abandoned.errno
        finally:
            self.listed = None
        return 0

    def call(self, d: DomId, action: Hypercall) -> int:
        """4.17 flushes where the need arises, not on the way back to the guest."""
        return self.hypercall(d, action.nr, action.args)
