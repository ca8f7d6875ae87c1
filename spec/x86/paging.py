"""Address translation, step by step as the manual states it (Intel SDM vol. 3A ch. 4; AMD APM vol. 2 ch. 5).

One walk serves 32-bit, PAE and 64-bit paging: the geometry is data.  CR0.WP is always set under Xen.  The result is a
*translation*, written as an entry: frame << 12 with the combined rights in RW, US, NX, and G and D of the last entry; P set;
THROUGH_XEN is set where the way went through a slot of Xen.
"""
from typing import Final

from spec.abi import GP, NX, PF, PF_FETCH, PF_PROT, PF_RSVD, PF_USER, PF_WRITE, PSE, RW, US, A, D, G, P
from spec.kernel import DomId, FrameType, Index, Mfn, State, predicate, put
from spec.profile import Geometry, Level
from spec.tables import is_xen_slot

THROUGH_XEN: Final = 0x200                  # an AVAIL bit, in translations only


class Fault(Exception):
    """The processor refuses an access: `vector`, `error` code, and for #PF the `address` that CR2 shows."""

    def __init__(self, vector: int, error: int, address: int = 0) -> None:
        super().__init__(vector, error, address)
        self.vector, self.error, self.address = vector, error, address


# --- addresses ---------------------------------------------------------------------------------------------------------------

@predicate
def is_canonical(g: Geometry, va: int) -> bool:
    """The upper bits of a 64-bit address repeat its highest significant one."""
    if g.canonical_bits == 32:
        return va < 1 << 32
    top = va >> (g.canonical_bits - 1)
    return top == 0 or top == (1 << (65 - g.canonical_bits)) - 1


def index_at(level: Level, va: int) -> Index:
    """The entry of this level's table that translates the address."""
    return Index((va >> level.shift) & ((1 << level.bits) - 1))


def require_segment(s: State, va: int, size: int) -> None:
    """x86-32: the flat segments of a guest end below Xen; x86-64: the address is canonical."""
    end = s.profile.guest_end
    if end != 0:
        if va + size > end:
            raise Fault(GP, 0)
    elif not (is_canonical(s.profile.geometry, va) and is_canonical(s.profile.geometry, va + size - 1)):
        raise Fault(GP, 0)


# --- the walk ----------------------------------------------------------------------------------------------------------------

@predicate
def is_leaf(level: Level, number: int, e: int) -> bool:
    """The walk ends at this entry: the last level, or a large page."""
    return number == 1 or (level.large and e & PSE != 0)


@predicate
def has_reserved(level: Level, g: Geometry, e: int) -> bool:
    """A bit is set that the manual reserves at this level."""
    reserved = level.reserved_large if level.large and e & PSE != 0 else level.reserved
    return e & reserved != 0


def combine(g: Geometry, level: Level, rights: int, e: int) -> int:
    """The rights of the way so far and of one more entry: RW and US must be set everywhere, NX forbids wherever it is set."""
    if not level.rights:
        return rights
    both = rights & (e | THROUGH_XEN) & (RW | US | THROUGH_XEN)
    if g.has_nx:
        return both | ((rights | e) & NX)
    return both


@predicate
def way_through(s: State, t: FrameType, i: Index) -> int:
    """The mark of a way through a slot of Xen."""
    return THROUGH_XEN if is_xen_slot(s, t, i) else 0


@predicate
def allows(rights: int, user: bool, write: bool, fetch: bool) -> bool:
    """The manual's access rights with CR0.WP = 1: a user needs US, a store RW, a fetch no NX."""
    if user and rights & US == 0:
        return False
    if write and rights & RW == 0:
        return False
    return not (fetch and rights & NX != 0)


@predicate
def fault_code(g: Geometry, present: int, user: bool, write: bool, fetch: bool) -> int:
    """The page-fault error code; a fetch shows only where NX exists."""
    code = present
    if write:
        code = code | PF_WRITE
    if user:
        code = code | PF_USER
    if fetch and g.has_nx:
        code = code | PF_FETCH
    return code


def leaf_frame(g: Geometry, level: Level, e: int, va: int) -> Mfn:
    """The 4 KB frame that the last entry gives; a large page takes the low bits of the frame number from the address."""
    f = (e >> 12) & g.mfn_mask
    low = (1 << (level.shift - 12)) - 1
    return Mfn(((f & (g.mfn_mask ^ low)) | ((va >> 12) & low)) if low != 0 else f)


def walk(s: State, root: Mfn, va: int, user: bool, write: bool, fetch: bool) -> tuple[int, tuple[tuple[Mfn, Index], ...]]:
    """Translate `va` from a root table: the translation, and the entries used (root first).

    Raises `Fault`.  Writes nothing: accessed and dirty bits are the business of `spec.x86.tlb`.
    """
    g = s.profile.geometry
    table, rights, number = root, RW | US, len(g.levels)
    used: tuple[tuple[Mfn, Index], ...] = ()
    for level in reversed(g.levels):
        # step 1: the entry that the address selects
        i = index_at(level, va)
        e = s.word[table, i]
        used = (*used, (table, i))
        # step 2: it must be present
        if e & P == 0:
            raise Fault(PF, fault_code(g, 0, user, write, fetch), va)
        # step 3: its reserved bits must be clear
        if has_reserved(level, g, e):
            raise Fault(PF, fault_code(g, PF_PROT | PF_RSVD, user, write, fetch), va)
        # step 4: its rights restrict those of the way so far
        rights = combine(g, level, rights, e)
        rights = rights | way_through(s, s.type[table], i)
        # step 5: the last entry, or a table of the next level
        if is_leaf(level, number, e):
            f = leaf_frame(g, level, e, va)
            break
        table, number = Mfn((e >> 12) & g.mfn_mask), number - 1
    # step 6: the combined rights must allow the access
    if not allows(rights, user, write, fetch):
        raise Fault(PF, fault_code(g, PF_PROT, user, write, fetch), va)
    return (f << 12) | rights | (e & (G | D)) | P, used


@predicate
def is_supervisor(s: State, user: bool) -> bool:
    """x86-32: a guest kernel in ring 1 is a supervisor for the walk.  x86-64: it runs in ring 3 like its applications."""
    return s.profile.ring1_kernel and not user


@predicate
def root_of(s: State, d: DomId, user: bool) -> Mfn:
    """The table that CR3 holds: 4.17 has one for user mode."""
    if s.profile.user_root and user:
        return s.user_base[d]
    return s.base[d]


def mark_used(s: State, used: tuple[tuple[Mfn, Index], ...], write: bool) -> None:
    """The processor sets the accessed bit of every entry that it used and, by a store, the dirty bit of the last."""
    last = len(used) - 1
    for n, (level, (table, i)) in enumerate(zip(reversed(s.profile.geometry.levels), used, strict=False)):
        e = s.word[table, i]
        new = e | A if level.rights else e
        if n == last and write:
            new = new | D
        put(s.word, (table, i), new)
