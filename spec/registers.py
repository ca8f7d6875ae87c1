"""What holds a table in use from outside the tables: pins and base registers; and the machine-to-physical words."""
from spec.abi import DOMID_XEN, NOBODY
from spec.frames import is_table, may_walk
from spec.kernel import DomId, Index, Mfn, State, predicate, require, transition
from spec.tables import not_, xen_entry


@transition("PIN-1", source="xen-2003.md §4.4 PIN; xen-4.17.md §5", keys=("dom", "frame"))
def set_pinned(s: State, d: DomId, f: Mfn) -> None:
    """A pin keeps a validated table validated, by one typed reference."""
    require(s.owner[f] == d, "PIN-1.1")             # the frame is the domain's own
    require(is_table(s, s.type[f]), "PIN-1.2")      # it is a table
    require(s.validated[f], "PIN-1.3")              # that has been checked
    require(s.held_type[f] > 0, "PIN-1.4")          # a typed reference is in hand
    require(not_(s.pinned[f]), "PIN-1.5")           # it is not pinned yet
    s.held_type[f] -= 1
    s.pinned[f] = True


@transition("PIN-2", source="xen-2003.md §4.4 UNPIN; xen-4.17.md §5", keys=("dom", "frame"))
def clear_pinned(s: State, d: DomId, f: Mfn) -> None:
    """Unpinning gives the pin's reference back."""
    require(s.owner[f] == d, "PIN-2.1")             # the frame is the domain's own
    require(s.pinned[f], "PIN-2.2")                 # it is pinned
    s.pinned[f] = False
    s.held_type[f] += 1


@predicate
def is_root(s: State, d: DomId, f: Mfn) -> bool:
    """A table that the domain's base register may hold."""
    return may_walk(s, d, f) and s.type[f] == s.profile.root and s.validated[f]


@transition("BASE-1", source="SOSP'03 §3.3.3; xen-2003.md §4.4 NEW_BASEPTR; xen-4.17.md §5", keys=("dom", "frame"))
def load_base(s: State, d: DomId, f: Mfn) -> None:
    """The base register holds a validated root table, by one typed reference; the old one's comes into hand."""
    require(may_walk(s, d, f), "BASE-1.1")           # the domain may use the frame
    require(s.type[f] == s.profile.root, "BASE-1.2")    # it is a root table
    require(s.validated[f], "BASE-1.3")             # that has been checked
    require(s.held_type[f] > 0, "BASE-1.4")         # a typed reference is in hand
    s.held_type[f] -= 1
    if s.has_base[d]:
        s.held_type[s.base[d]] += 1
    s.has_base[d] = True
    s.base[d] = f
    if s.profile.late_slot >= 0:            # Xen's last slot is filled in
        s.word[f, Index(s.profile.late_slot)] = xen_entry(s, f, Index(s.profile.late_slot))
        s.opened[f] = True


@transition("BASE-2", source="xen-4.17.md §5 NEW_USER_BASEPTR", keys=("dom", "frame"))
def load_user_base(s: State, d: DomId, f: Mfn) -> None:
    """User mode has a root table of its own (4.17), held in the same way."""
    require(s.profile.user_root, "BASE-2.1")        # the profile has one
    require(may_walk(s, d, f), "BASE-2.2")           # the domain may use the frame
    require(s.type[f] == s.profile.root, "BASE-2.3")    # it is a root table
    require(s.validated[f], "BASE-2.4")             # that has been checked
    require(s.held_type[f] > 0, "BASE-2.5")         # a typed reference is in hand
    s.held_type[f] -= 1
    if s.has_user[d]:
        s.held_type[s.user_base[d]] += 1
    s.has_user[d] = True
    s.user_base[d] = f


@transition("BASE-3", source="xen-4.17.md §5 NEW_USER_BASEPTR, mfn 0", keys=("dom",))
def clear_user_base(s: State, d: DomId) -> None:
    """The user root can be given up."""
    require(s.has_user[d], "BASE-3.1")              # there is one
    s.has_user[d] = False
    s.held_type[s.user_base[d]] += 1


@transition("M2P-1", source="xen-2003.md §4.3; xen-4.17.md §4 MACHPHYS", keys=("dom", "frame", "pfn"))
def set_m2p(s: State, d: DomId, f: Mfn, pfn: int) -> None:
    """A domain names its own frames as it likes: the machine-to-physical word carries no authority."""
    require(s.owner[f] == d, "M2P-1.1")             # the frame is the domain's own
    s.m2p[f] = pfn


@transition("LDT-1", source="xen-2003.md §4.4 SET_LDT (W-19); xen-4.17.md §5 SET_LDT", keys=("dom", "word", "index"))
def set_ldt(s: State, d: DomId, base: int, entries: Index) -> None:
    """A domain says where its local descriptor table is; nothing of it is loaded before it was checked."""
    require((d != NOBODY) & (d != DOMID_XEN), "LDT-1.1")    # it is a domain
    s.ldt_base[d] = base
    s.ldt_entries[d] = entries
