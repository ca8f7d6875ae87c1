"""Stores to L1 tables that a guest's kernel maps read-only: Xen performs them instead, checked like any other update."""
from refmodel.guest import demand
from refmodel.references import Error, put_entry
from refmodel.xen417_commands import DONE, TABLE_STORE
from refmodel.xen417_entries import TL1, get_leaf, is_owned
from refmodel.xen417_mmu import MmuCalls
from spec.abi import EINVAL, L1, PF, PF_PROT, PF_WRITE, PSE, RW, P
from spec.frames import mfn_of
from spec.kernel import DomId, Index, Mfn, Refused, check
from spec.tables import same_authority, write_entry
from spec.x86.paging import Fault


class StoreCalls(MmuCalls):
    """A machine that performs such stores."""

    def performed(self, d: DomId, va: int, value: int, fault: Fault) -> bool:
        """A store of the kernel that faulted is performed after all, if it is one to a table and may be."""
        if fault.vector != PF or fault.error & (PF_PROT | PF_WRITE) != PF_PROT | PF_WRITE:
            return False
        try:
            self.attempt(self.store_entry, d, va, value)
        except (Error, Refused):
            return False
        self.did.append((TABLE_STORE, DONE))
        return True

    @check("PTWR-1", source="xen-4.17.md §5.2 ptwr_emulated_update")
    def store_entry(self, d: DomId, va: int, value: int) -> None:
        """The store is a whole entry of an own L1 table in use, through a read-only mapping; the old frame is put last."""
        s, i = self.s, Index((va & 0xFFF) >> 3)
        demand(va & 7 == 0, "PTWR-1.1", EINVAL)                     # aligned, and so within a page
        e = self.leaf_of(d, va)
        demand(e & (P | RW) == P, "PTWR-1.2", EINVAL)               # the mapping is read-only
        f = mfn_of(s, e)
        demand(is_owned(s, d, f), "PTWR-1.3", EINVAL)               # of a frame of the domain's own
        demand(s.type[f] == L1 and s.validated[f], "PTWR-1.4", EINVAL)  # which is an L1 table in use
        old = s.word[f, i]
        mark = self.concrete.mark()
        if value & P != 0:
            get_leaf(s, d, f, value, d)
        if same_authority(s, TL1, old, value):
            self.concrete.rollback(mark)    # the reference taken and the one put are the same
            write_entry(s, d, f, i, value)
            return
        write_entry(s, d, f, i, value)
        put_entry(s, f, TL1, old, i)

    def leaf_of(self, d: DomId, va: int) -> int:
        """The L1 entry that maps an address in the kernel's tables; 0 if there is none."""
        e = self.s.base[d] << 12
        for level in reversed(self.profile.geometry.levels):
            e = self.s.word[Mfn(e >> 12 & self.profile.mfn_mask), Index(va >> level.shift & 511)]
            if e & P == 0 or (e & PSE != 0 and level is not self.profile.geometry.levels[0]):
                return 0
        return e
