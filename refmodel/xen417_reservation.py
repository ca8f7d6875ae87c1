"""A domain's reservation on Xen 4.17: memory_op's increase, decrease and populate.

An extent is 2**order frames in a row.  These operations return how many extents were done, whatever stopped them: their checks
have error number 0.
"""
from collections.abc import Iterator
from dataclasses import dataclass
from struct import pack, unpack

from refmodel.guest import ModelError, demand
from refmodel.references import Error, reap
from refmodel.xen417_commands import DONE, MEMORY, SHORT
from refmodel.xen417_entries import is_owned
from refmodel.xen417_mmuext import MmuExtCalls
from refmodel.xen417_pointers import ADDRESSES, addr_ok
from spec.abi import DOMID_SELF, ENOMEM, NOBODY, Xen417
from spec.kernel import CPU, DomId, Index, Mfn, Refused, check
from spec.registers import set_m2p
from spec.reservation import assign, drop_alloc, scrub
from spec.x86.tlb import flush

X = Xen417
RESERVATION = "<QQIIH6x"
FLUSH = "flush"                             # of what Xen loses


@dataclass(frozen=True, slots=True)
class Reservation:
    """struct xen_memory_reservation."""
    extents: int                            # pointer to the list of frame numbers
    count: int
    order: int
    flags: int
    domid: int

    def at(self, n: int) -> int:
        """The address of the list's entry n."""
        return (self.extents + 8 * n) % ADDRESSES

    def listed(self, first: int) -> bool:
        """The list is a guest's from entry `first` on, where Xen goes on."""
        return addr_ok(self.at(first))

    @property
    def bound(self) -> int:
        """Frames are below this: the flags may limit the bits of their addresses."""
        bits = self.flags & 0xFF
        return 1 << max(bits - 12, 0) if bits else 1 << 64


class ReservationCalls(MmuExtCalls):
    """A machine whose domains change their reservations."""

    @check("WHO-3", source="xen-4.17.md, by_any_id")
    def any_domain(self, d: DomId, domid: int, errno: int) -> DomId:
        """A domain is named by its number, the caller also by DOMID_SELF."""
        demand(domid == DOMID_SELF or domid in self.domids, "WHO-3.1", errno)   # somebody is called so
        return d if domid == DOMID_SELF else DomId(domid)

    # --- increase, decrease, populate ---

    @check("MEM-14", source="xen-4.17.md §10 increase, decrease, populate_physmap")
    def adjust(self, d: DomId, op: int, start: int, arg: int) -> int:
        """Extent after extent is done until one cannot be; the result is how many are."""
        done, before = start, len(self.refusals)
        try:
            r = Reservation(*unpack(RESERVATION, self.read(d, arg, 32)))
            demand(r.count < 1 << 32 - X.EXTENT_SHIFT, "MEM-14.1", 0)   # not more extents than a continuation could name
            demand(start < r.count, "MEM-14.2", 0)                  # some are left
            owner = self.any_domain(d, r.domid, 0)
            self.require_plain(r)
            demand(r.flags == 0 or r.flags > 12, "MEM-14.5", 0)     # a limit of address bits leaves room for a frame
            self.require_target(d, owner)
            demand(r.listed(start) or (op == X.INCREASE and r.extents == 0), "MEM-14.3", 0)     # the list is a guest's
            demand(r.order <= self.max_order(d), "MEM-14.4", 0)     # the extents are not too large for the caller
            step = {X.INCREASE: self.increase, X.DECREASE: self.decrease, X.POPULATE: self.populate}[op]
            while done < r.count:
                step(d, owner, r, done)
                done += 1
        except (Error, Refused) as refusal:
            self.note(refusal)
        self.did.append((MEMORY[op], SHORT if self.refusals[before:] else DONE))
        return done

    def require_plain(self, r: Reservation) -> None:
        """Only the low flags are in this specification: they limit the bits of addresses."""
        if r.flags > 0xFF:
            raise ModelError("memory of a node, or populated on demand, is not in this specification")

    def max_order(self, d: DomId) -> int:
        """The largest extent that a caller may handle."""
        return X.MAX_ORDER_CONTROL if self.s.privileged[d] else X.MAX_ORDER_DOMU

    def increase(self, d: DomId, owner: DomId, r: Reservation, n: int) -> None:
        """An extent is handed out, and told if the caller wants to know; untold it is not counted, but stays handed out."""
        f = self.attempt(self.hand_out, owner, r.order, r.bound, frozenset())
        if r.extents:
            self.write(d, r.at(n), pack("<Q", f))

    def populate(self, d: DomId, owner: DomId, r: Reservation, n: int) -> None:
        """An extent is handed out under the names that the list gives, and its first frame replaces them there."""
        gpfn, = unpack("<Q", self.read(d, r.at(n), 8))
        f = self.attempt(self.hand_out, owner, r.order, r.bound, frozenset())
        self.name(owner, f, gpfn, r.order)
        self.write(d, r.at(n), pack("<Q", f))

    def name(self, owner: DomId, f: Mfn, gpfn: int, order: int) -> None:
        """The machine-to-physical words of an extent."""
        for k in range(1 << order):
            set_m2p(self.s, owner, Mfn(f + k), (gpfn + k) % ADDRESSES)

    @check("MEM-15", source="xen-4.17.md §10 decrease")
    def decrease(self, d: DomId, owner: DomId, r: Reservation, n: int) -> None:
        """The owner's own reference to each frame of an extent is dropped; one that is still used goes free later."""
        first, = unpack("<Q", self.read(d, r.at(n), 8))
        for k in range(1 << r.order):
            f = Mfn((first + k) % ADDRESSES)
            demand(is_owned(self.s, owner, f), "MEM-15.1", 0)       # the frame is the domain's
            if self.s.alloc[f]:
                drop_alloc(self.s, owner, f)
                reap(self.s, f)
                self.released.add(f)

    # --- handing out ---

    @check("MEM-16", source="xen-4.17.md §10: fails at max_pages")
    def hand_out(self, owner: DomId, order: int, bound: int, spared: frozenset[int]) -> Mfn:
        """An extent from the pool, within the domain's limit, and after a flush if it was released since the last one."""
        s, size = self.s, 1 << order
        if self.owes_flush(spared):
            self.concrete.lost = FLUSH
        demand(s.pages[owner] + size <= s.limit[owner], "MEM-16.1", ENOMEM)     # within the domain's limit
        first = next(self.candidates(size, bound, spared), None)
        demand(first is not None, "MEM-16.2", ENOMEM)               # the pool has such an extent
        f = Mfn(first or 0)
        fits = f & size - 1 == 0 and f + size <= min(self.setup.frames, bound) and spared.isdisjoint(range(f, f + size))
        demand(fits, "MEM-16.3", ENOMEM)                            # aligned, memory, below the bound, not given in exchange
        for k in range(f, f + size):
            if s.stamp[Mfn(k)] == s.clock[CPU]:
                flush(s, owner)
            assign(s, owner, Mfn(k))
            if self.concrete.given[k] >= 0:
                self.erase(owner, Mfn(k))
        self.handed_out.update(range(f, f + size))
        self.chose.append(f)
        return f

    def erase(self, owner: DomId, f: Mfn) -> None:
        """What was given in an exchange is erased as it is handed out, with what stale translations stored there since (X-11)."""
        self.concrete.given[f] = -1
        for i, w in sorted(self.concrete.row(f).items()):
            if w:
                scrub(self.s, owner, f, Index(i))

    def owes_flush(self, spared: frozenset[int]) -> bool:
        """A frame is free that was given in an exchange since the last flush: 4.17 forgets the one that it owes (X-27)."""
        owner, now = self.s.owner, self.s.clock[CPU]
        return any(at == now and owner[Mfn(f)] == NOBODY and f not in spared for f, at in self.concrete.given.items())

    def candidates(self, size: int, bound: int, spared: frozenset[int]) -> Iterator[int]:
        """The extent that the other machine chose, or all, lowest first; but only free ones."""
        self.choices.counts["allocation"] += 1
        n, end, start = len(self.chose), min(self.setup.frames, bound), -(-self.pool_start // size) * size
        if self.hint is not None and n < len(self.hint.chose):
            first = self.hint.chose[n]
            if all(self.is_free(f, self.setup.frames) for f in range(first, first + size)):
                yield first
            return
        for first in (*sorted({f & -size for f in self.released}), *range(start, end - size + 1, size)):
            if all(self.is_free(f, end) and f not in spared for f in range(first, first + size)):
                yield first

    def is_free(self, f: int, end: int) -> bool:
        """The frame is in the pool, below an end."""
        return self.setup.xen_frames <= f < end and self.s.owner[Mfn(f)] == NOBODY
