"""memory_op of Xen 4.17: what it can tell, and the exchange of extents."""
from dataclasses import dataclass
from struct import pack, unpack

from refmodel.guest import demand
from refmodel.references import Error, TWritable, reap, settle
from refmodel.xen417_entries import is_owned
from refmodel.xen417_pointers import ADDRESSES
from refmodel.xen417_reservation import RESERVATION, Reservation, ReservationCalls
from spec.abi import EACCES, EFAULT, EINVAL, ENOSYS, EPERM, ESRCH, Xen417
from spec.kernel import CPU, DomId, Index, Mfn, check
from spec.reservation import drop_alloc
from spec.tables import write_data

X = Xen417


@dataclass(slots=True)
class Exchange:
    """struct xen_memory_exchange."""
    given: Reservation
    wanted: Reservation
    done: int                               # extents given so far

    @property
    def chunk(self) -> tuple[int, int]:
        """The smallest exchange: how many extents are given for how many."""
        up, down = self.wanted.order - self.given.order, self.given.order - self.wanted.order
        return 1 << max(up, 0), 1 << max(down, 0)

    @property
    def number(self) -> int:
        """The chunk where it goes on."""
        return self.done // self.chunk[0]


class MemoryCalls(ReservationCalls):
    """A machine with memory_op."""

    @check("MEM-11", source="xen-4.17.md §10 (X-10)")
    def memory_op(self, d: DomId, cmd: int, arg: int) -> int:
        """The low six bits select the operation; the rest says where a list goes on, and is 0 for operations without one."""
        op, start = cmd & (1 << X.EXTENT_SHIFT) - 1, cmd >> X.EXTENT_SHIFT
        if op in (X.INCREASE, X.DECREASE, X.POPULATE):
            return self.adjust(d, op, start, arg)
        known = op in (X.MAXIMUM_RAM_PAGE, X.CURRENT_RESERVATION, X.MAXIMUM_RESERVATION, X.MAXIMUM_GPFN, X.EXCHANGE,
                       X.ADD_TO_PHYSMAP, X.REMOVE_FROM_PHYSMAP)
        demand(known, "MEM-11.1", ENOSYS)                           # the operation exists
        demand(start == 0, "MEM-11.2", EINVAL)                      # it starts at its start
        if op == X.MAXIMUM_RAM_PAGE:
            return self.setup.frames
        if op == X.EXCHANGE:
            return self.exchange(d, arg)
        if op in (X.ADD_TO_PHYSMAP, X.REMOVE_FROM_PHYSMAP):
            return self.physmap(d, op, arg)
        return self.statistics(d, op, arg)

    @check("MEM-12", source="xen-4.17.md §10")
    def statistics(self, d: DomId, op: int, arg: int) -> int:
        """A domain learns its own numbers, a privileged one anybody's; shared_info counts nowhere."""
        owner = self.any_domain(d, int.from_bytes(self.read(d, arg, 2), "little"), ESRCH)
        self.require_target(d, owner)
        if op == X.CURRENT_RESERVATION:
            return self.s.pages[owner] - self.uncounted[owner]
        if op == X.MAXIMUM_RESERVATION:
            return self.s.limit[owner] - self.uncounted[owner]
        highest = self.concrete.row(self.shared[owner]).get(X.MAX_PFN_OFFSET // 8, 0)
        value = max(highest, 1) - 1
        return value - ADDRESSES if value >> 63 else value

    @check("MEM-13", source="xen-4.17.md §10 add_to_physmap, remove_from_physmap")
    def physmap(self, d: DomId, op: int, arg: int) -> int:
        """Xen translates no addresses of PV domains, so there is nothing to add or remove."""
        domid, space = unpack("<H2xI", self.read(d, arg, 24 if op == X.ADD_TO_PHYSMAP else 16)[:8])
        demand(op != X.ADD_TO_PHYSMAP or space != X.FOREIGN_SPACE, "MEM-13.1", ENOSYS)  # the space is not another domain's
        self.any_domain(d, domid, ESRCH)
        demand(False, "MEM-13.2", EACCES)                           # Xen translates its addresses
        return 0

    # --- exchange ---

    def exchange(self, d: DomId, arg: int) -> int:
        """Extents are exchanged for others of the same total size, chunk by chunk; how far it came is always written back."""
        told = self.read(d, arg, 72)
        given, wanted = (Reservation(*unpack(RESERVATION, told[at:at + 32])) for at in (0, 32))
        x = Exchange(given, wanted, *unpack("<Q", told[64:]))
        result = 0
        try:
            self.require_match(d, x)
            if x.done == given.count:
                return 0
            self.exchange_chunks(d, x)
        except Error as error:
            self.note(error)
            result = -error.errno
        try:
            self.write(d, (arg + 64) % ADDRESSES, pack("<Q", x.done))
        except Error as error:
            self.note(error)
            result = -error.errno
        return result

    @check("MEM-17", source="xen-4.17.md §10 exchange")
    def require_match(self, d: DomId, x: Exchange) -> None:
        """What is given and what is wanted are of the same domain and the same size."""
        a, b = x.given, x.wanted
        demand(max(a.order, b.order) <= self.max_order(d), "MEM-17.1", EPERM)   # the extents are not too large for the caller
        demand(x.done <= a.count, "MEM-17.2", EINVAL)               # not more is done than was asked for
        demand(a.domid == b.domid, "MEM-17.3", EINVAL)              # both name one domain, in the same way
        demand(max(a.count << a.order, b.count << b.order) < ADDRESSES, "MEM-17.4", EINVAL)    # no size overflows
        demand(a.count << a.order == b.count << b.order, "MEM-17.5", EINVAL)    # the sizes are equal

    @check("MEM-18", source="xen-4.17.md §10 exchange")
    def exchange_chunks(self, d: DomId, x: Exchange) -> None:
        """The lists, then the domain; then chunk by chunk until one fails."""
        demand(x.given.listed(x.done), "MEM-18.1", EFAULT)          # what is given is listed where a guest can list it
        demand(x.wanted.listed(x.number * x.chunk[1]), "MEM-18.2", EFAULT)      # and what is wanted
        self.require_plain(x.wanted)
        owner = self.any_domain(d, x.given.domid, ESRCH)
        self.require_target(d, owner)
        x.done = x.number * x.chunk[0]
        while x.done < x.given.count:
            before = len(self.chose)
            try:
                told = self.attempt(self.exchange_chunk, d, owner, x)
            except Error:
                del self.chose[before:]
                raise
            demand(told, "MEM-18.3", EFAULT)                        # the new frames could be named and told
            x.done += x.chunk[0]

    def exchange_chunk(self, d: DomId, owner: DomId, x: Exchange) -> bool:
        """Frames that nothing but their owner holds are given back and others handed out for them: all or none."""
        given: list[Mfn] = []
        for n in range(x.done, x.done + x.chunk[0]):
            first, = unpack("<Q", self.read(d, x.given.at(n), 8))
            given += [self.steal(owner, Mfn((first + k) % ADDRESSES)) for k in range(1 << x.given.order)]
        taken = [self.hand_out(owner, x.wanted.order, x.wanted.bound, frozenset(given)) for _ in range(x.chunk[1])]
        first = x.number * x.chunk[1]
        told = [self.tell(d, owner, x.wanted, n, f) for n, f in enumerate(taken, first)]
        return all(told)

    @check("MEM-19", source="xen-4.17.md §10 exchange: steal_page")
    def steal(self, owner: DomId, f: Mfn) -> Mfn:
        """A frame can be given in exchange when nothing but its owner refers to it, and Xen does not share it."""
        s = self.s
        demand(is_owned(s, owner, f), "MEM-19.1", EINVAL)           # the frame is the domain's
        demand(s.xen_held[f] == 0, "MEM-19.2", EINVAL)              # not special
        demand(s.alloc[f] and s.ref_count[f] == 1, "MEM-19.3", EINVAL)  # nothing but its owner refers to it
        settle(s, owner, f, TWritable)
        for i, w in sorted(self.concrete.row(f).items()):
            if w:                           # what is given in exchange is erased before anybody else gets it
                write_data(s, owner, f, Index(i), 0)
        drop_alloc(s, owner, f)
        reap(s, f)
        self.released.add(f)
        self.concrete.given[f] = s.clock[CPU]
        return f

    def tell(self, d: DomId, owner: DomId, r: Reservation, n: int, f: Mfn) -> bool:
        """A frame that was handed out gets the name that the list gives, and its number replaces it there; or it stays untold."""
        try:
            gpfn, = unpack("<Q", self.read(d, r.at(n), 8))
            self.name(owner, f, gpfn, r.order)
            self.write(d, r.at(n), pack("<Q", f))
        except Error:
            return False
        return True
