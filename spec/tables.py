"""Page tables: which entries are legal, how a table is validated and drained, and how one entry is replaced."""
from spec.abi import GUEST_KERNEL, L1, NOBODY, RW, US, WRITABLE, A, G, P
from spec.frames import LINEAR, NOTHING, PLAIN, is_checked, is_idle, is_table, may_become, may_name, mfn_of, refers_by
from spec.kernel import DomId, FrameType, Index, Mfn, State, guard, predicate, require, transition

# --- entries -----------------------------------------------------------------------------------------------------------------

@predicate
def is_xen_slot(s: State, t: FrameType, i: Index) -> bool:
    """Xen's own slots of a root table."""
    return t == s.profile.root and s.profile.xen_first <= i <= s.profile.xen_last


@predicate
def is_clear_of_xen(s: State, t: FrameType, first: Index, end: Index) -> bool:
    """No slot in [first, end) is Xen's."""
    return t != s.profile.root or end <= s.profile.xen_first or first > s.profile.xen_last


@predicate
def whose(s: State, g: Mfn) -> DomId:
    """The domain whose frame g is or, of a free frame, was."""
    return s.owner[g] if s.owner[g] != NOBODY else s.last_owner[g]


def xen_entry(s: State, g: Mfn, i: Index) -> int:
    """What Xen keeps in slot i of root table g: the same in a domain's tables, but for the slot that maps the table itself."""
    word = s.xen_word[whose(s, g), i]
    if i == s.profile.self_slot:
        return (g << 12) | word
    return word


@predicate
def is_xens(s: State, g: Mfn, i: Index) -> bool:
    """Slot i of root table g holds what Xen keeps there, but for the accessed bit, which the processor may set; its late slot
    is empty until the table was a base (X-20)."""
    if i == s.profile.late_slot and not s.opened[g]:
        return s.word[g, i] == 0
    return s.word[g, i] | A == xen_entry(s, g, i) | A


@predicate
def legal_bits(s: State, t: FrameType, e: int) -> bool:
    """A present entry sets none of the bits that Xen forbids at its level."""
    if t == L1:
        return e & s.profile.forbidden_l1 == 0
    return e & s.profile.forbidden_upper == 0


@predicate
def adjusted(s: State, t: FrameType, e: int) -> int:
    """What Xen stores for a present entry: its guests' kernels run in ring 3, and only their applications' pages are global."""
    if not s.profile.adjusts or e & P == 0:
        return e
    if t == s.profile.root:
        return e | US | A
    if t != L1:
        return e | US
    if e & US == 0:
        return e | US | GUEST_KERNEL
    if e & GUEST_KERNEL == 0:
        return e | G
    return e


@predicate
def same_authority(s: State, t: FrameType, old: int, new: int) -> bool:
    """Both entries are present and differ only in bits that move no reference: the fast path."""
    if old & P == 0:
        return False
    if t == L1:
        return (old ^ new) & s.profile.authority_l1 == 0
    return (old ^ new) & s.profile.authority_upper == 0


@predicate
def is_writable_self_map(s: State, g: Mfn, t: FrameType, e: int) -> bool:
    """An upper entry that would let a table's own words be written."""
    return t != L1 and e & P != 0 and e & RW != 0 and mfn_of(s, e) == g


@guard("ENTRY-1", source="xen-2003.md §3.3, §4.2; xen-4.17.md §3.3-3.5")
def require_entry(s: State, g: Mfn, t: FrameType, e: int, need: int) -> None:
    """An entry put into a table is legal, names a frame that the table's owner may use, and finds its reference in hand."""
    require((e & P == 0) | legal_bits(s, t, e), "ENTRY-1.1")    # no forbidden bit
    if need == NOTHING:
        require(not_(is_writable_self_map(s, g, t, e)), "ENTRY-1.2")    # a table may map itself, read-only (W-3)
        return
    f = mfn_of(s, e)
    require(may_name(s, s.owner[g], t, f), "ENTRY-1.3")     # the owner of the table may use the frame (W-2)
    if need == PLAIN:
        require(s.held[f] > 0, "ENTRY-1.4")             # a plain reference to it is in hand
        return
    require(s.held_type[f] > 0, "ENTRY-1.5")            # a typed reference to it is in hand
    if t == L1:
        require(s.type[f] == WRITABLE, "ENTRY-1.6")     # a writable mapping is to a writable frame
        return
    require(s.validated[f], "ENTRY-1.7")                # a lower table has been checked
    if need == LINEAR:
        require(s.profile.linear_tables, "ENTRY-1.8")   # tables of one level may use each other (4.17)
        require(e & RW == 0, "ENTRY-1.9")               # read-only
        require(s.owner[f] == s.owner[g], "ENTRY-1.10")     # within one domain
        require(s.linear[g] >= 0, "ENTRY-1.11")         # from a table that is not used so itself
        require(s.linear[f] <= 0, "ENTRY-1.12")         # to one that does not use others so
    else:
        require(s.type[f] == t - 1, "ENTRY-1.13")       # it is a table of the next lower level


def token_to_slot(s: State, g: Mfn, e: int, need: int) -> None:
    """The slot takes over the reference in hand."""
    f = mfn_of(s, e)
    if need == PLAIN:
        s.held[f] -= 1
    elif need != NOTHING:
        if need == LINEAR:
            s.linear[g] += 1
            s.linear[f] -= 1
        s.held_type[f] -= 1


def slot_to_token(s: State, g: Mfn, e: int, need: int) -> None:
    """The slot's reference comes into hand."""
    f = mfn_of(s, e)
    if need == PLAIN:
        s.held[f] += 1
    elif need != NOTHING:
        if need == LINEAR:
            s.linear[g] -= 1
            s.linear[f] += 1
        s.held_type[f] += 1


# --- validation --------------------------------------------------------------------------------------------------------------

@transition("VALID-1", source="SOSP'03 §3.3.3; xen-2003.md §3.2 inc_page_refcnt; xen-4.17.md §3.2", keys=("dom", "frame", "type"))
def begin_type(s: State, d: DomId, f: Mfn, t: FrameType) -> None:
    """An idle frame begins to be a table, of pages or of segments: its first typed reference opens the validation."""
    require(is_checked(s, t), "VALID-1.1")          # the type is one that is validated
    require(s.owner[f] == d, "VALID-1.2")           # the frame is the domain's own
    require(s.ref_count[f] > 0, "VALID-1.3")        # and nobody is about to free it
    require(is_idle(s, f), "VALID-1.4")             # it serves no other purpose
    require(may_become(s, f, t), "VALID-1.5")       # no translation outlasts the change
    s.type[f] = t
    s.filled[f] = Index(0)
    s.type_count[f] += 1
    s.ref_count[f] += 1
    s.held_type[f] += 1


@guard("VALID-2", source="xen-2003.md §3.3; xen-4.17.md §3.5")
def require_validating(s: State, d: DomId, f: Mfn) -> None:
    """A step of a validation is taken on a table of the domain's that is being validated."""
    require(s.owner[f] == d, "VALID-2.1")           # the frame is the domain's own
    require(s.type_count[f] > 0, "VALID-2.2")       # it has the reference that opened the validation
    require(is_table(s, s.type[f]), "VALID-2.3")    # as a table


@transition("VALID-3", source="xen-2003.md §3.3; xen-4.17.md §3.5 promotion scan", keys=("dom", "frame"))
def validate_entry(s: State, d: DomId, f: Mfn) -> None:
    """The next entry of a table in validation is checked and takes over the reference that it needs; Xen fills its own slots."""
    require_validating(s, d, f)
    i, t = s.upto[f], s.type[f]
    require(i < s.profile.entries, "VALID-3.1")     # there is a next entry
    if is_xen_slot(s, t, i):
        if i == s.profile.late_slot:
            s.word[f, i] = 0
            s.opened[f] = False
        else:
            s.word[f, i] = xen_entry(s, f, i)
    else:
        e = s.word[f, i]
        need = refers_by(s, f, t, e)
        require_entry(s, f, t, e, need)
        token_to_slot(s, f, e, need)
        if s.profile.adjusts:
            s.word[f, i] = adjusted(s, t, e)        # judged as the guest wrote it, and then adjusted
    s.upto[f] = Index(i + 1)


@transition("VALID-4", source="xen-2003.md §3.3: not-present entries are ignored", keys=("dom", "frame", "index"))
def skip_absent(s: State, d: DomId, f: Mfn, end: Index) -> None:
    """A stretch of entries that are not present needs no check."""
    require_validating(s, d, f)
    require(s.upto[f] <= end, "VALID-4.1")          # the stretch begins at the next entry
    require(end <= s.profile.entries, "VALID-4.2")  # and ends in the table
    require(is_clear_of_xen(s, s.type[f], s.upto[f], end), "VALID-4.3")     # clear of Xen's slots
    require(s.absent(f, s.upto[f], end), "VALID-4.4")       # none of them is present
    s.upto[f] = end


@transition("VALID-5", source="xen-2003.md §3.3; xen-4.17.md §3.2", keys=("dom", "frame"))
def finish(s: State, d: DomId, f: Mfn) -> None:
    """A table is validated once every entry was checked."""
    require(s.owner[f] == d, "VALID-5.1")           # the frame is the domain's own
    require(s.type_count[f] > 0, "VALID-5.2")       # it has the reference that opened the validation
    require(s.upto[f] == s.profile.entries, "VALID-5.3")    # no entry is left
    s.validated[f] = True


@transition("DRAIN-1", source="xen-2003.md §3.3 devalidation; xen-4.17.md §3.2", keys=("dom", "frame"))
def drain_entry(s: State, d: DomId, f: Mfn) -> None:
    """A page table without references gives back the reference of its last checked entry."""
    require(s.owner[f] == d, "DRAIN-1.1")           # the frame is the domain's own
    require(s.type_count[f] == 0, "DRAIN-1.2")      # nobody uses it as a table
    require(s.upto[f] > 0, "DRAIN-1.3")             # an entry is left
    require(is_table(s, s.type[f]), "DRAIN-1.4")    # it was a page table
    i, t = Index(s.upto[f] - 1), s.type[f]
    if not is_xen_slot(s, t, i):
        e = s.word[f, i]
        slot_to_token(s, f, e, refers_by(s, f, t, e))
    s.upto[f] = i


@transition("DRAIN-2", source="xen-2003.md §3.3 devalidation", keys=("dom", "frame", "index"))
def drain_absent(s: State, d: DomId, f: Mfn, first: Index) -> None:
    """A stretch of entries that are not present holds no reference to give back."""
    require(s.owner[f] == d, "DRAIN-2.1")           # the frame is the domain's own
    require(s.type_count[f] == 0, "DRAIN-2.2")      # nobody uses it as a table
    require(first <= s.upto[f], "DRAIN-2.3")        # the stretch ends at the last checked entry
    require(s.absent(f, first, s.upto[f]), "DRAIN-2.4")     # none of them is present
    require(is_table(s, s.type[f]), "DRAIN-2.5")    # it was a page table
    s.upto[f] = first


# --- writing -----------------------------------------------------------------------------------------------------------------

@transition("WRITE-1", source="SOSP'03 §3.3.3; xen-2003.md §4.2; xen-4.17.md §4.1-4.2", keys=("dom", "frame", "index", "word"))
def write_entry(s: State, d: DomId, g: Mfn, i: Index, new: int) -> None:
    """An entry of a validated table is replaced: the new one takes its reference over before the old one's comes into hand."""
    t = s.type[g]
    require(s.owner[g] == d, "WRITE-1.1")           # the table is the domain's own
    require(is_table(s, t), "WRITE-1.2")            # it is a table
    require(s.validated[g], "WRITE-1.3")            # in use and checked
    require(i < s.profile.entries, "WRITE-1.4")     # the entry is in the table
    require(not_(is_xen_slot(s, t, i)), "WRITE-1.5")    # and not Xen's
    old = s.word[g, i]
    if same_authority(s, t, old, new):
        require(legal_bits(s, t, new), "WRITE-1.6")     # no forbidden bit
        require(not_(is_writable_self_map(s, g, t, new)), "WRITE-1.7")  # a self-map stays read-only (W-3)
        s.word[g, i] = adjusted(s, t, new)
    else:
        need = refers_by(s, g, t, new)
        require_entry(s, g, t, new, need)
        token_to_slot(s, g, new, need)
        slot_to_token(s, g, old, refers_by(s, g, t, old))
        s.word[g, i] = adjusted(s, t, new)


@predicate
def not_(x: bool) -> bool:
    """Negation, also of a term."""
    return not x


@transition("WRITE-2", source="xen-2003.md §4.2 (W-5, W-6); xen-4.17.md §4, §5 CLEAR_PAGE",
            keys=("dom", "frame", "index", "word"))
def write_data(s: State, d: DomId, f: Mfn, i: Index, value: int) -> None:
    """Xen stores a word for a domain only into a frame that is writable, or idle and so about to be."""
    require(s.owner[f] == d, "WRITE-2.1")           # the frame is the domain's own
    require((s.type[f] == WRITABLE) | is_idle(s, f), "WRITE-2.2")   # it serves no purpose that a store could break
    require(may_become(s, f, FrameType(WRITABLE)), "WRITE-2.3")     # nor does a translation remember one
    require(i < s.profile.entries, "WRITE-2.4")     # the word is in the frame
    s.type[f] = FrameType(WRITABLE)
    s.word[f, i] = value
