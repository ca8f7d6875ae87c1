"""Frames: who may use one, what type it has, and how references to it are taken and dropped.

A reference in flight between two transitions is a token: `held[f]` plain ones, `held_type[f]` typed ones (a typed reference
always includes a plain one).  A handler may do anything that the transitions let it do; at its end no token is left.
"""
from spec.abi import DOMID_XEN, L1, L2, NOBODY, RW, SEG_DESC, WRITABLE, P
from spec.kernel import CPU, DomId, FrameType, Mfn, State, predicate, require, transition

# --- vocabulary --------------------------------------------------------------------------------------------------------------

def mfn_of(s: State, e: int) -> Mfn:
    """The frame that an entry names."""
    return Mfn((e >> 12) & s.profile.mfn_mask)


@predicate
def is_table(s: State, t: FrameType) -> bool:
    """Types whose contents the processor walks, and so must be checked before use."""
    return L1 <= t <= s.profile.root


@predicate
def is_descriptors(s: State, t: FrameType) -> bool:
    """Types whose contents the processor loads segments from."""
    return SEG_DESC <= t <= s.profile.last_descriptors


@predicate
def is_checked(s: State, t: FrameType) -> bool:
    """Types whose contents are checked before use."""
    return is_table(s, t) or is_descriptors(s, t)


@predicate
def is_upper(s: State, t: FrameType) -> bool:
    """Tables whose entries name tables."""
    return L2 <= t <= s.profile.root


@predicate
def may_walk(s: State, d: DomId, f: Mfn) -> bool:
    """A domain's walks may go through its own tables, a privileged one's through any domain's; through no loan."""
    o = s.owner[f]
    if o == NOBODY or o == DOMID_XEN:
        return False
    return o == d or s.privileged[d]


@predicate
def may_use(s: State, d: DomId, f: Mfn) -> bool:
    """A domain may use its own frames, and those lent to it; a privileged one any frame that some domain owns (W-1)."""
    o = s.owner[f]
    if o == NOBODY or o == DOMID_XEN:
        return False
    return o == d or s.privileged[d] or s.lent[d, f] == s.term[f]


@predicate
def may_name(s: State, d: DomId, t: FrameType, f: Mfn) -> bool:
    """An entry of a table of type t may name the frame, if d owns the table: loans are for mappings only."""
    return may_use(s, d, f) if t == L1 else may_walk(s, d, f)


@predicate
def may_become(s: State, f: Mfn, t: FrameType) -> bool:
    """No translation may outlast a change of type: the TLB was flushed since the frame's typed references were lost (W-9)."""
    return s.type[f] == t or s.stamp[f] != s.clock[CPU]


@predicate
def is_idle(s: State, f: Mfn) -> bool:
    """No typed reference, and no entry left that still holds one."""
    return s.type_count[f] == 0 and s.upto[f] == 0


# --- what an entry refers by -------------------------------------------------------------------------------------------------
NOTHING, PLAIN, TYPED, LINEAR = 0, 1, 2, 3


@predicate
def refers_by(s: State, g: Mfn, t: FrameType, e: int) -> int:
    """How entry e of table g, of type t, refers: by nothing, a plain reference, a typed one, or a typed one of t's own level."""
    if e & P == 0:
        return NOTHING
    if t == L1:
        return PLAIN if e & RW == 0 else TYPED
    f = mfn_of(s, e)
    if f == g:
        return NOTHING                      # a self-map holds no reference
    return LINEAR if s.type[f] == t else TYPED


# --- tokens ------------------------------------------------------------------------------------------------------------------

@transition("REF-1", source="xen-2003.md §3.2 get_page; xen-4.17.md §3.1", keys=("dom", "frame"))
def take_ref(s: State, d: DomId, f: Mfn) -> None:
    """A plain reference can be taken to any frame in use by its owner, whatever its type."""
    require(s.owner[f] == d, "REF-1.1")             # the frame is the domain's own
    require(s.ref_count[f] > 0, "REF-1.2")          # and nobody is about to free it
    s.ref_count[f] += 1
    s.held[f] += 1


@transition("REF-2", source="xen-2003.md §3.2 put_page; xen-4.17.md §3.1", keys=("dom", "frame"))
def drop_ref(s: State, d: DomId, f: Mfn) -> None:
    """A plain reference is given back by whoever holds it."""
    require(s.owner[f] == d, "REF-2.1")             # the frame is the domain's own
    require(s.held[f] > 0, "REF-2.2")               # and a reference is in hand
    s.held[f] -= 1
    s.ref_count[f] -= 1


@transition("TYPE-1", source="SOSP'03 §3.3.3; xen-2003.md §3.1-3.2; xen-4.17.md §3.2", keys=("dom", "frame", "type"))
def take_type(s: State, d: DomId, f: Mfn, t: FrameType) -> None:
    """A frame serves one purpose at a time: while a typed reference is held, only that type can be taken."""
    require(s.owner[f] == d, "TYPE-1.1")            # the frame is the domain's own
    require(s.ref_count[f] > 0, "TYPE-1.2")         # and nobody is about to free it
    if s.type_count[f] == 0:
        require(t == WRITABLE, "TYPE-1.3")          # an idle frame becomes writable at once; a table begins with its validation
        require(s.upto[f] == 0, "TYPE-1.4")         # it gave back all that it referred to as a table
        require(may_become(s, f, t), "TYPE-1.5")    # no translation outlasts the change
        s.type[f] = t
    else:
        require(s.type[f] == t, "TYPE-1.6")         # it already serves this purpose
        require((t == WRITABLE) | s.validated[f], "TYPE-1.7")   # and its contents have been checked
    s.type_count[f] += 1
    s.ref_count[f] += 1
    s.held_type[f] += 1


@transition("TYPE-2", source="xen-2003.md §3.2, §3.4; xen-4.17.md §3.2 _put_page_type", keys=("dom", "frame"))
def drop_type(s: State, d: DomId, f: Mfn) -> None:
    """When the last typed reference goes, a table is no longer checked, and the moment is stamped for the TLB."""
    require(s.owner[f] == d, "TYPE-2.1")            # the frame is the domain's own
    require(s.held_type[f] > 0, "TYPE-2.2")         # and a typed reference is in hand
    s.held_type[f] -= 1
    s.type_count[f] -= 1
    s.ref_count[f] -= 1
    if s.type_count[f] == 0:
        s.gone[f] = s.clock[CPU] + 1 if s.validated[f] else s.gone[f]
        s.validated[f] = False
        s.stamp[f] = s.clock[CPU]
