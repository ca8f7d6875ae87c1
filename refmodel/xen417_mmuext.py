"""mmuext_op of Xen 4.17: pins, base tables, flushes, the LDT, and pages that Xen clears and copies."""
from functools import partial
from struct import unpack

from refmodel.guest import demand
from refmodel.references import Error, drop_ldt, put_type
from refmodel.xen417_entries import TWritable, get_type, is_owned
from refmodel.xen417_mmu import OPERATIONS
from refmodel.xen417_pointers import addr_ok
from refmodel.xen417_stores import StoreCalls
from spec.abi import EACCES, EFAULT, EINVAL, ENOSYS, EOPNOTSUPP, EPERM, L1, WRITABLE, Xen417
from spec.kernel import DomId, FrameType, Index, Mfn, check
from spec.registers import clear_pinned, clear_user_base, load_base, load_user_base, set_ldt, set_pinned
from spec.tables import write_data
from spec.x86.tlb import flush

X = Xen417
FLUSHES = (X.TLB_FLUSH_LOCAL, X.TLB_FLUSH_MULTI, X.TLB_FLUSH_ALL)
CONTENTS = "contents"                       # of what the model loses
SOME_VCPUS = (X.TLB_FLUSH_MULTI, X.INVLPG_MULTI)


class MmuExtCalls(StoreCalls):
    """A machine with mmuext_op."""

    @check("EXT-1", source="xen-4.17.md §5 do_mmuext_op")
    def mmuext_op(self, d: DomId, ops: int, count: int, pdone: int, foreigndom: int) -> int:
        """The list's start, then the owner of the frames; operations commit one by one."""
        demand(addr_ok(ops), "EXT-1.1", EFAULT)                     # the list starts outside Xen's slots
        owner = self.named_owner(d, foreigndom)
        self.require_target(d, owner)
        return self.batch(d, ops, OPERATIONS, count, pdone, partial(self.operation, d, owner))

    @check("EXT-2", source="xen-4.17.md §5")
    def operation(self, d: DomId, owner: DomId, op: bytes) -> None:
        """One operation; those on the caller's own machine cannot be done for another domain."""
        command, first, second = unpack("<I4xQQ", op)
        demand(command not in (X.MARK_SUPER, X.UNMARK_SUPER), "EXT-2.1", EOPNOTSUPP)    # there are no superpages
        demand(command <= X.FLUSH_CACHE_GLOBAL and command != X.UNASSIGNED, "EXT-2.2", ENOSYS)  # the command exists
        if command <= X.PIN_L4:
            self.pin(owner, Mfn(first), FrameType(command + 1))
        elif command == X.UNPIN:
            self.unpin(owner, Mfn(first))
        elif command == X.CLEAR_PAGE:
            self.clear_page(owner, Mfn(first))
        elif command == X.COPY_PAGE:
            self.copy_page(owner, Mfn(first), Mfn(second))
        else:
            demand(owner == d, "EXT-2.3", EPERM)                    # no other domain is named
            demand(command != X.FLUSH_CACHE, "EXT-2.4", EACCES)     # the caller has rights to a device, as nobody has
            demand(command != X.FLUSH_CACHE_GLOBAL, "EXT-2.5", EINVAL)  # the same
            self.own_operation(d, command, first, second)

    def own_operation(self, d: DomId, command: int, first: int, second: int) -> None:
        """An operation on the caller's own base tables, translations, or LDT."""
        if command == X.NEW_BASEPTR:
            self.new_base(d, Mfn(first))
        elif command == X.NEW_USER_BASEPTR:
            self.new_user_base(d, Mfn(first))
        elif command == X.SET_LDT:
            self.set_ldt(d, first, second & 0xFFFFFFFF)
        else:
            self.drop(d, command, first, second)

    # --- pins and bases ---

    @check("EXT-3", source="xen-4.17.md §5 PIN_L1..L4")
    def pin(self, owner: DomId, f: Mfn, t: FrameType) -> None:
        """A pin validates a table, and then keeps it validated without a use."""
        self.get_page_and_type(owner, f, t)
        self.leftover = self.s.pinned[f] and t != L1                # what was taken is given back in a continuation
        demand(not self.s.pinned[f], "EXT-3.1", EINVAL)             # it is not pinned yet
        set_pinned(self.s, owner, f)

    @check("EXT-4", source="xen-4.17.md §5 PIN, NEW_BASEPTR: get_page_and_type")
    def get_page_and_type(self, owner: DomId, f: Mfn, t: FrameType) -> None:
        """A table is looked up as its owner's, then taken as what it shall be."""
        demand(is_owned(self.s, owner, f), "EXT-4.1", EINVAL)       # the frame is its owner's
        get_type(self.s, owner, f, t)

    @check("EXT-5", source="xen-4.17.md §5 UNPIN")
    def unpin(self, owner: DomId, f: Mfn) -> None:
        """Unpinning drops the pin's reference, and the table with its last one."""
        demand(is_owned(self.s, owner, f), "EXT-5.1", EINVAL)       # the frame is its owner's
        demand(self.s.pinned[f], "EXT-5.2", EINVAL)                 # it is pinned
        clear_pinned(self.s, owner, f)
        self.leftover = self.let_go(f)

    def let_go(self, f: Mfn) -> bool:
        """A root or a pinned table is dropped; to empty an upper one takes time, and may be left to a continuation, which only a
        list of calls shows."""
        put_type(self.s, f)
        upper = self.s.type_count[f] == 0 and L1 < self.s.type[f] <= self.profile.root
        return upper and self.listed is not None and self.choices.choose("preempted-call", 2) == 1

    def new_base(self, d: DomId, f: Mfn) -> None:
        """The kernel's new root is taken before the old one is dropped; Xen loads CR3 so that no translation survives."""
        s = self.s
        old = s.base[d]
        if f != old:
            self.get_page_and_type(d, f, FrameType(s.profile.root))
            drop_ldt(s, d)
            load_base(s, d, f)
        flush(s, d)
        self.again = f != old and self.let_go(old)

    def new_user_base(self, d: DomId, f: Mfn) -> None:
        """User mode gets another root, or none; it takes effect when user mode is entered next."""
        s = self.s
        old = s.user_base[d] if s.has_user[d] else Mfn(0)
        if f == old:
            return
        if f == 0:
            clear_user_base(s, d)
        else:
            self.get_page_and_type(d, f, FrameType(s.profile.root))
            load_user_base(s, d, f)
        self.leftover = old != 0 and self.let_go(old)

    # --- translations, and the LDT ---

    @check("EXT-6", source="xen-4.17.md §5 TLB_FLUSH, INVLPG")
    def drop(self, d: DomId, command: int, va: int, mask: int) -> None:
        """Translations are dropped here, on the vCPUs of a bitmap, or everywhere; an address that is no guest's is ignored."""
        if command in SOME_VCPUS:
            try:
                here = self.is_wanted(d, mask)
                readable = True
            except Error:
                here = readable = False
            demand(readable, "EXT-6.1", EINVAL)                     # the bitmap can be read
            if not here:
                return
        if command in FLUSHES:
            flush(self.s, d)
        else:
            self.drop_page(d, va)

    @check("EXT-7", source="xen-4.17.md §5 SET_LDT")
    def set_ldt(self, d: DomId, base: int, entries: int) -> None:
        """A local descriptor table has at most 8192 entries and, unless it is empty, is page-aligned at a guest's address."""
        demand(entries <= X.MAX_LDT, "EXT-7.1", EINVAL)             # not too long
        demand(entries == 0 or base & 0xFFF == 0, "EXT-7.2", EINVAL)    # page-aligned
        demand(entries == 0 or addr_ok(base), "EXT-7.3", EINVAL)    # outside Xen's slots
        base = base if entries else 0
        if (base, entries) != (self.s.ldt_base[d], self.s.ldt_entries[d]):
            drop_ldt(self.s, d)
            set_ldt(self.s, d, base, Index(entries))

    # --- pages ---

    @check("EXT-8", source="xen-4.17.md §5 CLEAR_PAGE, COPY_PAGE")
    def take_writable(self, owner: DomId, f: Mfn) -> None:
        """Xen writes a page for a guest only as a writable frame of its owner's."""
        demand(is_owned(self.s, owner, f), "EXT-8.1", EINVAL)       # the frame is its owner's
        demand(self.s.type_count[f] == 0 or self.s.type[f] == WRITABLE, "EXT-8.2", EINVAL)  # it is in no other use
        get_type(self.s, owner, f, TWritable)
        if f in self.concrete.opaque:
            self.concrete.lost = CONTENTS

    def clear_page(self, owner: DomId, f: Mfn) -> None:
        """A page is filled with zeros."""
        self.take_writable(owner, f)
        for i, w in sorted(self.concrete.row(f).items()):
            if w:
                write_data(self.s, owner, f, Index(i), 0)
        put_type(self.s, f)

    @check("EXT-9", source="xen-4.17.md §5 COPY_PAGE")
    def copy_page(self, owner: DomId, to: Mfn, source: Mfn) -> None:
        """A page is copied into another; what is copied may be in any use."""
        demand(is_owned(self.s, owner, source), "EXT-9.1", EINVAL)     # the source is its owner's
        self.take_writable(owner, to)
        if source in self.concrete.opaque:
            self.concrete.lost = CONTENTS
        old, new = self.concrete.row(to), self.concrete.row(source)
        for i in sorted({*old, *new}):
            if old.get(i, 0) != new.get(i, 0):
                write_data(self.s, owner, to, Index(i), new.get(i, 0))
        put_type(self.s, to)
