"""Who can notice what: the part of the state that a domain sees, and the named channels by which a step reaches another's part.

The three rules are the unwinding conditions of noninterference, for one step at a time; `d` is the domain that it is for.  Xen
acts for the owner of a frame, also when another domain asks that may use it: so what a loan or a privilege lets that domain do
to the owner is a step for the owner, and the model's handlers show which those are.
"""
from spec.abi import NOBODY
from spec.invariants import within
from spec.kernel import SCHEMA, DomId, Mfn, State, flow, predicate
from spec.x86.paging import THROUGH_XEN

Key = tuple[int, ...]                       # of the map that is named beside it


@predicate
def sees(s: State, e: DomId, name: str, key: Key) -> bool:
    """A domain sees its own registers and translations, the words of the frames that it may use, all that is kept of these and of
    free frames, and what is everybody's."""
    of = SCHEMA[name][0][0]
    if of == "dom":
        return e == key[0]
    if of == "frame":
        f = Mfn(key[0])
        return within(s, e, f) or (name != "word" and s.owner[f] == NOBODY)
    return True


# --- channels ----------------------------------------------------------------------------------------------------------------

@predicate
def by_hand(s: State, d: DomId, name: str, key: Key) -> bool:
    """References in hand are there during an entry only (TOKEN-1), so nobody else gets to see them."""
    return name in ("held", "held_type")


@predicate
def by_clock(s: State, d: DomId, name: str, key: Key) -> bool:
    """All domains share the processor, and so its flushes."""
    return SCHEMA[name][0] == ("cpu",)


@predicate
def by_pool(s: State, d: DomId, name: str, key: Key) -> bool:
    """Which frames are free is known to all; what is in them is not."""
    return SCHEMA[name][0] == ("frame",) and s.owner[Mfn(key[0])] == NOBODY


@predicate
def by_sharing(s: State, d: DomId, name: str, key: Key) -> bool:
    """Who may use a frame sees what its owner does with it, and what others store who may use it, too."""
    if SCHEMA[name][0][0] != "frame":
        return False
    return s.owner[Mfn(key[0])] == d or (name in ("word", "opened") and within(s, d, Mfn(key[0])))


@predicate
def by_lending(s: State, d: DomId, name: str, key: Key) -> bool:
    """A privileged domain lends frames."""
    return name == "lent" and s.privileged[d]


@predicate
def by_window(s: State, way: int) -> bool:
    """A walk that went through a slot of Xen, and says so: what lies there is Xen's to answer for (W-23)."""
    return way & THROUGH_XEN != 0


# --- the conditions ----------------------------------------------------------------------------------------------------------

@flow("FLOW-1", source="SOSP'03 §1 performance and security isolation; Rushby 1992: local respect")
def step_is_unnoticed(s: State, d: DomId, e: DomId, name: str, key: Key) -> bool:
    """A step for one domain stores nothing that another, unprivileged one sees, but by hand, clock, pool, sharing or lending, or
    through Xen's window."""
    if e == d or s.privileged[e] or not sees(s, e, name, key):
        return True
    return (by_hand(s, d, name, key) or by_clock(s, d, name, key) or by_pool(s, d, name, key) or by_sharing(s, d, name, key)
            or by_lending(s, d, name, key))


@flow("FLOW-2", source="SOSP'03 §1 performance and security isolation; Rushby 1992: step consistency")
def look_up_is_seen(s: State, d: DomId, name: str, key: Key) -> bool:
    """A step for an unprivileged domain goes and stores by what that domain sees, the same in any two states that agree
    there; but through Xen's window."""
    return s.privileged[d] or sees(s, d, name, key)


@flow("FLOW-3", source="SOSP'03 §3.3.3")
def nothing_new_is_shown(s: State, after: State, d: DomId, e: DomId, f: Mfn) -> bool:
    """A step shows an unprivileged domain no frame that it did not see, but by handing out a free one, or by lending."""
    if s.privileged[e] or within(s, e, f) or not within(after, e, f):
        return True
    return s.privileged[d] or (s.owner[f] == NOBODY and after.owner[f] == e)
