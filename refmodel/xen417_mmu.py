"""The page-table hypercalls of Xen 4.17: mmu_update, update_va_mapping, update_va_mapping_otherdomain."""
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from struct import pack

from refmodel.guest import ModelError, demand, mark_way
from refmodel.references import Error, put_type
from refmodel.xen417_commands import CONTINUED, DONE, end_name, flush_name, operation_name, request_name
from refmodel.xen417_entries import TWritable, get_type, is_owned, is_target, replace_leaf, replace_table, with_marks
from refmodel.xen417_pointers import ADDRESSES, Pointers, addr_ok
from spec.abi import DOMID_IO, DOMID_SELF, DOMID_XEN, EFAULT, EINVAL, ENOSYS, EPERM, ESRCH, L1, L2, PSE, P, Xen417
from spec.frames import is_table, mfn_of
from spec.kernel import DomId, Index, Mfn, check
from spec.registers import set_m2p
from spec.tables import same_authority, write_data
from spec.x86.tlb import flush

X = Xen417
WORD = 0xFFFFFFFF                           # counts, owners and results are 32 bits wide
CONTINUATION = "continuation"               # of what Xen loses


class Abandoned(Exception):
    """A list of calls ends in the middle of one that was to be continued: the list cannot be told so."""

    def __init__(self, errno: int) -> None:
        super().__init__(errno)
        self.errno = errno


@dataclass(slots=True)
class Listed:
    """The call of a multicall that is being made: where its entry is, and the words of it."""
    at: int
    words: list[int]


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of requests: their size in a list, and what one is called."""
    size: int
    name: Callable[[bytes], str]


UPDATES, OPERATIONS = Kind(16, request_name), Kind(24, operation_name)


class MmuCalls(Pointers):
    """A machine with the calls that change page tables.

    Xen gives up what a request took out of an upper table, or left half validated, in a continuation of the call (X-1):
    `leftover` says that there is something; `again` that the continuation begins with the same request.
    """
    listed: Listed | None = None
    leftover = again = False

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
        return self.batch(d, ptr, UPDATES, count, pdone, partial(self.request, d, tables, owner))

    def batch(self, d: DomId, ptr: int, kind: Kind, count: int, pdone: int, perform: Callable[[bytes], None]) -> int:
        """Requests in order until one fails; how many were done is written to `pdone`, if it can be (X-7)."""
        if count & X.CONTINUED:
            raise ModelError("bit 31 of a count is Xen's own mark of a continued call")
        base = first = n = result = 0       # n requests are done, n - first since the call was last begun; `pdone` said base then
        self.leftover, self.again, self.concrete.pending = False, False, None
        try:
            while n < count:
                at = (ptr + kind.size * n) % ADDRESSES
                if self.again or self.is_interrupted():
                    self.again = False
                    self.end_leg(d, pdone, base + n - first)
                    self.call_again(d, at, count - n | X.CONTINUED, pdone)
                    base, first = self.told(d, pdone), n
                self.noted(kind, perform, self.read(d, at, kind.size))
                n += not self.again
        except Error as error:
            self.note(error)
            result = -error.errno
            self.leftover |= self.concrete.pending is not None
        self.end_leg(d, pdone, base + n - first)
        if self.leftover:
            self.call_again(d, 0, X.CONTINUED, 0, result & WORD)
        return result

    def noted(self, kind: Kind, perform: Callable[[bytes], None], request: bytes) -> None:
        """One request, and a note of what came of it."""
        end = DONE
        try:
            self.attempt(perform, request)
        except Error as error:
            end = end_name(-error.errno)
            raise
        finally:
            self.did.append((kind.name(request), end))

    # --- continuations (X-1) ---

    def is_interrupted(self) -> bool:
        """The call is left before a request: something is to be given up first, or, which only a list of calls shows, the
        hypervisor has other things to do."""
        return self.leftover or (self.listed is not None and self.choices.choose("preempted-call", 2) == 1)

    def end_leg(self, d: DomId, pdone: int, done: int) -> None:
        """Before a call ends, or is left to be continued: the flush that it owes, and the number of requests done."""
        if self.flush_due:
            self.flush_due = False
            flush(self.s, d)
        if pdone:
            self.written(d, pdone, (done & WORD).to_bytes(4, "little"))

    def told(self, d: DomId, pdone: int) -> int:
        """A continuation counts on from what it finds at `pdone`."""
        try:
            return int.from_bytes(self.read(d, pdone, 4), "little") if pdone else 0
        except Error:
            return 0

    def call_again(self, d: DomId, *args: int) -> None:
        """A call is continued with these arguments.  In a list of calls its entry gets them, and the list goes on from there; if
        they cannot be written, 4.17 loses the continuation (X-24)."""
        self.leftover, listed = False, self.listed
        if listed is None:
            return
        self.did.append((CONTINUED, DONE))
        listed.words[1:2 + len(args)] = listed.words[0], *args      # the result so far is the call's own number
        told = self.written(d, (listed.at + 8) % ADDRESSES, pack("<Q", listed.words[1]))
        if not told or not self.written(d, listed.at, pack("<8Q", *listed.words)):
            self.concrete.lost = CONTINUATION
            raise Abandoned(EFAULT if told else ENOSYS)

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
        self.did.append((flush_name(flags), DONE))
        self.drop_as_asked(d, va, flags)
        return 0

    def leaf_table(self, d: DomId, va: int) -> Mfn | None:
        """The frame that the present L2 entry for an address names, if the way to it is present and it maps no large page.

        Xen reads the L2 entry through its linear page table, so the processor walks, and marks, those above it (X-28).
        """
        if not addr_ok(va):
            return None
        mark_way(self.s, d, va, False, L2)
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
