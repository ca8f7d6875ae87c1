"""The page-table hypercalls of Xen 4.17: mmu_update, update_va_mapping, update_va_mapping_otherdomain."""
from collections.abc import Callable
from functools import partial

from refmodel.guest import ModelError, demand
from refmodel.references import Error, put_type
from refmodel.xen417_entries import TWritable, get_type, is_owned, is_target, replace_leaf, replace_table, with_marks
from refmodel.xen417_pointers import ADDRESSES, Pointers, addr_ok
from spec.abi import DOMID_IO, DOMID_SELF, DOMID_XEN, EFAULT, EINVAL, ENOSYS, EPERM, ESRCH, L1, PSE, P, Xen417
from spec.frames import is_table, mfn_of
from spec.kernel import DomId, Index, Mfn, check
from spec.registers import set_m2p
from spec.tables import same_authority, write_data
from spec.x86.tlb import flush

X = Xen417


class MmuCalls(Pointers):
    """A machine with the calls that change page tables.

    Xen gives up what a request took out of an upper table in a continuation of the call (X-1): `leftover` says that there is
    something, `continued` which arguments the last continuation had.
    """
    in_multicall = False
    leftover = False
    continued: tuple[int, ...] | None = None

    # --- whose frames ---

    @check("WHO-1", source="xen-4.17.md §4 foreigndom: get_pg_owner")
    def named_owner(self, d: DomId, domid: int) -> DomId:
        """A caller names itself only by DOMID_SELF; otherwise an existing domain, or the owner of devices or of Xen's frames."""
        domid &= 0xFFFF
        if domid == DOMID_SELF:
            return d
        demand(domid != d, "WHO-1.1", ESRCH)                        # the caller's own number is no answer
        demand(domid in (DOMID_IO, DOMID_XEN) or domid in self.domids, "WHO-1.2", ESRCH)    # somebody is called so
        return DomId(domid)

    @check("WHO-2", source="xen-4.17.md, access policy TARGET")
    def require_target(self, d: DomId, owner: DomId) -> None:
        """A domain acts for itself; a privileged one for any."""
        demand(is_target(self.s, d, owner), "WHO-2.1", EPERM)       # the caller itself, or the caller is privileged

    def require_named(self, d: DomId, owner: DomId) -> None:
        """The same for the frames that an mmu_update names; the owner of devices is judged by the rights to each."""
        if owner != DOMID_IO:
            self.require_target(d, owner)

    # --- mmu_update ---

    @check("MMU-11", source="xen-4.17.md §4 do_mmu_update")
    def mmu_update(self, d: DomId, ptr: int, count: int, pdone: int, foreigndom: int) -> int:
        """The list's start, then the owner of the tables, then that of the frames; entries commit one by one."""
        demand(addr_ok(ptr), "MMU-11.1", EFAULT)                    # the list starts outside Xen's slots
        holder = foreigndom >> 16 & 0xFFFF
        demand(holder == 0 or holder - 1 in self.domids, "MMU-11.2", ESRCH)     # the tables' owner exists
        tables = DomId(holder - 1) if holder else d
        owner = self.named_owner(d, foreigndom)
        return self.batch(d, ptr, 16, count, pdone, partial(self.request, d, tables, owner))

    def batch(self, d: DomId, ptr: int, size: int, count: int, pdone: int, perform: Callable[[bytes], None]) -> int:
        """Requests in order until one fails; how many were done is written to `pdone`, if it can be (X-7)."""
        if count & X.CONTINUED:
            raise ModelError("bit 31 of a count is Xen's own mark of a continued call")
        done = result = 0
        self.leftover, self.continued = False, None
        try:
            while done < count:
                if self.leftover:           # what the last request took out of an upper table is given up first
                    self.leftover, self.continued = False, (ptr + size * done, count - done | X.CONTINUED, pdone)
                request = self.read(d, (ptr + size * done) % ADDRESSES, size)
                self.attempt(perform, request)
                done += 1
        except Error as error:
            self.note(error)
            result = -error.errno
        if self.leftover and self.in_multicall and (result == 0 or self.choices.choose("continued-call", 2) == 0):
            self.continued = 0, X.CONTINUED, 0, result & 0xFFFFFFFF
        if pdone:
            self.written(d, pdone, done.to_bytes(4, "little"))
        return result

    @check("MMU-12", source="xen-4.17.md §4")
    def request(self, d: DomId, tables: DomId, owner: DomId, request: bytes) -> None:
        """The low three bits of the first word select the command; then the caller must be allowed to act for both owners."""
        ptr, val = int.from_bytes(request[:8], "little"), int.from_bytes(request[8:], "little")
        command, f = ptr & 7, Mfn(ptr >> 12)
        demand(command <= X.NO_TRANSLATE, "MMU-12.1", ENOSYS)       # the command exists
        if command == X.MACHPHYS:
            self.machphys(d, tables, owner, f, val)
            return
        self.require_named(d, owner)
        self.require_target(d, tables)
        demand(is_owned(self.s, tables, f), "MMU-12.2", EINVAL)     # the frame that holds the entry is the tables' owner's
        self.put_word(d, owner, f, Index(ptr >> 3 & 511), val, command == X.PRESERVE_AD)

    @check("MMU-13", source="xen-4.17.md §4 (c), (d)")
    def put_word(self, d: DomId, owner: DomId, f: Mfn, i: Index, val: int, preserve: bool) -> None:
        """An entry of a table in use is replaced by the table's rules; a word of another frame is stored as it is."""
        s = self.s
        t, tables = s.type[f], s.owner[f]
        if s.type_count[f] == 0 or not is_table(s, t):
            get_type(s, tables, f, TWritable)
            write_data(s, tables, f, i, val)
            put_type(s, f)
            return
        new = with_marks(s.word[f, i], val) if preserve else val
        if t == L1:
            replace_leaf(s, d, f, i, new, owner)
            return
        demand(owner == tables, "MMU-13.1", EINVAL)                 # upper entries name the tables' owner's frames only
        old = s.word[f, i]
        self.leftover = True                # a validation that fails midway is undone by a continuation, too
        replace_table(s, f, i, new)
        self.leftover = old & P != 0 and mfn_of(s, old) != f and not same_authority(s, t, old, new)
        if tables == d:                     # another domain's translations ended when it stopped running
            self.flush_due = True

    @check("MMU-14", source="xen-4.17.md §4 cmd 1")
    def machphys(self, d: DomId, tables: DomId, owner: DomId, f: Mfn, val: int) -> None:
        """Whoever may act for a frame's owner may name it."""
        demand(tables == d, "MMU-14.1", EPERM)                      # no other owner of tables is named
        self.require_named(d, owner)
        demand(is_owned(self.s, owner, f), "MMU-14.2", EINVAL)      # the frame is its owner's
        set_m2p(self.s, owner, f, val)

    # --- update_va_mapping ---

    def update_va_mapping_otherdomain(self, d: DomId, va: int, val: int, flags: int, domid: int) -> int:
        """The entry names a frame of another domain."""
        return self.update_va_mapping(d, va, val, flags, self.named_owner(d, domid))

    @check("UVM-11", source="xen-4.17.md §5.1")
    def update_va_mapping(self, d: DomId, va: int, val: int, flags: int, owner: DomId) -> int:
        """The L1 entry that maps an address is replaced; then, if it was, translations are dropped as asked."""
        s = self.s
        self.require_target(d, owner)
        table = self.leaf_table(d, va)
        demand(table is not None, "UVM-11.1", EINVAL)               # the tables lead to a table for the address
        f = Mfn(table or 0)
        demand(is_owned(s, d, f), "UVM-11.2", EINVAL)               # it is the caller's
        demand(s.type[f] == L1 and s.validated[f], "UVM-11.3", EINVAL)  # and an L1 table, not one used through a linear entry
        self.attempt(replace_leaf, s, d, f, Index(va >> 12 & 511), val, owner)
        self.drop_as_asked(d, va, flags)
        return 0

    def leaf_table(self, d: DomId, va: int) -> Mfn | None:
        """The frame that the present L2 entry for an address names, if the way to it is present and it maps no large page."""
        if not addr_ok(va):
            return None
        f = self.s.base[d]
        for level in reversed(self.profile.geometry.levels[1:]):
            e = self.s.word[f, Index(va >> level.shift & 511)]
            if e & P == 0 or e & PSE != 0:
                return None
            f = mfn_of(self.s, e)
        return f

    def drop_as_asked(self, d: DomId, va: int, flags: int) -> None:
        """Two bits say what is dropped (3: nothing), the rest where: here, everywhere, or by the vCPUs of a bitmap."""
        kind, where = flags & X.UVMF_FLUSHTYPE, flags & ~X.UVMF_FLUSHTYPE
        if kind not in (X.UVMF_TLB_FLUSH, X.UVMF_INVLPG):
            return
        if where not in (0, X.UVMF_ALL) and not self.is_wanted(d, where):
            return
        if kind == X.UVMF_TLB_FLUSH:
            flush(self.s, d)
        else:
            self.drop_page(d, va)
