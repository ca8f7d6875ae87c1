"""Page-table entries of Xen 4.17: what may be put into a table, which error says that it may not, and in which order.

The transitions of `spec` would refuse the same entries; here each refusal gets the error number of the interface.
"""
from typing import cast

from refmodel.guest import demand
from refmodel.references import Error, give_up, put_entry, settle, validate, validate_descriptors
from refmodel.state import ConcreteState
from spec.abi import DOMID_XEN, EBUSY, EINVAL, EPERM, L1, NOBODY, RW, SEG_DESC, WRITABLE, A, D, P
from spec.descriptors import legal_descriptor
from spec.frames import is_descriptors, is_table, may_use, mfn_of, take_ref, take_type
from spec.kernel import DomId, FrameType, Index, Mfn, State, check
from spec.reservation import lend
from spec.tables import is_xen_slot, legal_bits, same_authority, write_entry

TWritable, TL1, TSegments = FrameType(WRITABLE), FrameType(L1), FrameType(SEG_DESC)


def frames_of(s: State) -> int:
    """The number of machine frames: numbers from it on are no memory."""
    return cast(ConcreteState, s).frames


def is_memory(s: State, f: Mfn) -> bool:
    """A frame of memory, not a device's."""
    state = cast(ConcreteState, s)
    return f < state.frames and f not in state.devices


def is_owned(s: State, d: DomId, f: Mfn) -> bool:
    """The look-up with which Xen begins: the frame exists, is d's, and nobody is about to free it."""
    return f < frames_of(s) and s.owner[f] == d and s.ref_count[f] > 0


def is_target(s: State, d: DomId, other: DomId) -> bool:
    """The access policy TARGET: a domain acts on itself, a privileged one on any."""
    return d == other or s.privileged[d]


# --- typed references --------------------------------------------------------------------------------------------------------

@check("PTE-1", source="xen-4.17.md §3.2 _get_page_type")
def get_type(s: State, d: DomId, f: Mfn, t: FrameType) -> None:
    """Take a typed reference to d's frame: a frame in use keeps its type; the first reference to a table validates it."""
    idle = s.type_count[f] == 0
    demand(idle or s.type[f] == t, "PTE-1.1", EINVAL)               # idle, or in use as what is wanted
    if idle:
        settle(s, d, f, t)
    if idle and is_table(s, t):
        validate(s, d, f, t, get_listed)
    elif idle and is_descriptors(s, t):
        validate_descriptors(s, d, f, t, require_legal)
    else:
        take_type(s, d, f, t)


@check("PTE-7", source="xen-4.17.md §6.1 check_descriptor")
def require_legal(s: State, q: int) -> None:
    """A descriptor that a validation finds is legal."""
    demand(legal_descriptor(s, q), "PTE-7.1", EINVAL)               # absent, code or data, or a gate to the guest's own code


def get_listed(s: State, g: Mfn, e: int) -> None:
    """The reference for an entry that a validation finds: the table's owner asks for its own frames."""
    if s.type[g] == L1:
        get_leaf(s, s.owner[g], g, e, s.owner[g])
    else:
        get_table(s, g, e)


# --- L1 entries --------------------------------------------------------------------------------------------------------------

@check("PTE-2", source="xen-4.17.md §3.4 get_page_from_l1e")
def get_leaf(s: State, d: DomId, g: Mfn, e: int, owner: DomId) -> None:
    """The reference for a present L1 entry of table g, when d asks for a frame of `owner`."""
    f, holder = mfn_of(s, e), s.owner[g]
    demand(legal_bits(s, TL1, e), "PTE-2.1", EINVAL)                # no forbidden bit
    demand(f != s.profile.mfn_mask, "PTE-2.2", EINVAL)              # the frame number is not all ones
    demand(is_memory(s, f), "PTE-2.3", EPERM)                       # it is memory: nobody has rights to devices
    demand(s.owner[f] not in (NOBODY, DOMID_XEN), "PTE-2.4", EBUSY)     # of some domain
    if s.owner[f] != owner:
        demand(owner != holder, "PTE-2.5", EBUSY)                   # the table's owner asks for its own frames only
        demand(is_target(s, owner, s.owner[f]), "PTE-2.6", EBUSY)   # who is named may act on the frame's owner
    if e & RW != 0:
        demand(s.type_count[f] == 0 or s.type[f] == WRITABLE, "PTE-2.7", EBUSY)     # a frame to be written is not in other use
        get_type(s, s.owner[f], f, TWritable)
    else:
        take_ref(s, s.owner[f], f)
    if not may_use(s, holder, f):
        lend(s, d, holder, f)


@check("PTE-3", source="xen-4.17.md §4.1 mod_l1_entry")
def replace_leaf(s: State, d: DomId, g: Mfn, i: Index, new: int, owner: DomId) -> None:
    """An L1 entry is replaced: a change of harmless bits is free, else the new frame is taken before the old one is put."""
    old = s.word[g, i]
    if new & P != 0:
        demand(legal_bits(s, TL1, new), "PTE-3.1", EINVAL)          # no forbidden bit
        if same_authority(s, TL1, old, new):
            write_entry(s, s.owner[g], g, i, new)
            return
        get_leaf(s, d, g, new, owner)
    write_entry(s, s.owner[g], g, i, new)
    put_entry(s, g, TL1, old, i)


# --- upper entries -----------------------------------------------------------------------------------------------------------

@check("PTE-4", source="xen-4.17.md §3.5 get_page_from_lNe")
def get_table(s: State, g: Mfn, e: int) -> None:
    """The reference for a present entry of upper table g: to a table of the next lower level, else to one of g's own."""
    d, t, f = s.owner[g], s.type[g], mfn_of(s, e)
    demand(legal_bits(s, t, e), "PTE-4.1", EINVAL)                  # no forbidden bit
    if f == g:
        demand(e & RW == 0, "PTE-4.2", EINVAL)                      # a table may map itself, read-only
        return
    state = cast(ConcreteState, s)
    mark = state.mark()
    try:
        demand(is_owned(s, d, f), "PTE-4.3", EINVAL)                # the frame is the table's owner's
        get_type(s, d, f, FrameType(t - 1))
    except Error as error:
        if error.errno != EINVAL:
            raise
        give_up(s, mark)
        try:
            require_linear(s, g, e)
        except Error:
            raise error from None           # the first reason stands
        take_type(s, d, f, t)


@check("PTE-5", source="xen-4.17.md §3.5 linear page tables")
def require_linear(s: State, g: Mfn, e: int) -> None:
    """A table may use another of its level, read-only, unless it is used so itself, or the other uses others so."""
    f = mfn_of(s, e)
    demand(e & RW == 0, "PTE-5.1", EINVAL)                          # read-only
    demand(is_owned(s, s.owner[g], f), "PTE-5.2", EINVAL)           # both are of one domain
    demand(s.linear[g] >= 0, "PTE-5.3", EINVAL)                     # nobody of its level uses this table
    demand(s.linear[f] <= 0, "PTE-5.4", EINVAL)                     # the other uses nobody of its level
    demand(s.type[f] == s.type[g] and s.validated[f], "PTE-5.5", EINVAL)    # the other is in use at this level already


@check("PTE-6", source="xen-4.17.md §4.2 mod_l2, mod_l3, mod_l4")
def replace_table(s: State, g: Mfn, i: Index, new: int) -> None:
    """An entry of an upper table is replaced in the same way; Xen's slots of a root table cannot be."""
    t, old = s.type[g], s.word[g, i]
    demand(not is_xen_slot(s, t, i), "PTE-6.1", EINVAL)             # the slot is the guest's
    if new & P != 0:
        demand(legal_bits(s, t, new), "PTE-6.2", EINVAL)            # no forbidden bit
        if same_authority(s, t, old, new):
            write_entry(s, s.owner[g], g, i, new)
            return
        get_table(s, g, new)
    write_entry(s, s.owner[g], g, i, new)
    put_entry(s, g, t, old, i)


def with_marks(old: int, new: int) -> int:
    """PRESERVE_AD: the accessed and dirty bits that are set stay set."""
    return new | old & (A | D)
