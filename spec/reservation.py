"""A domain's reservation of memory: frames are handed out, given back, lent, and kept by Xen."""
from spec.abi import DOMID_XEN, NOBODY, NONE, WRITABLE
from spec.frames import is_idle
from spec.kernel import CPU, DomId, FrameType, Index, Mfn, State, require, transition
from spec.tables import not_


@transition("POOL-1", source="xen-4.17.md §10 decrease; xen-2003.md §11", keys=("dom", "frame"))
def drop_alloc(s: State, d: DomId, f: Mfn) -> None:
    """The owner gives its own reference up; the frame stays its until the last other reference goes."""
    require(s.owner[f] == d, "POOL-1.1")            # the frame is the domain's own
    require(s.alloc[f], "POOL-1.2")                 # and its reference was not given up before
    s.alloc[f] = False
    s.ref_count[f] -= 1


@transition("POOL-2", source="xen-4.17.md §3; xen-2003.md §11", keys=("dom", "frame"))
def free_frame(s: State, d: DomId, f: Mfn) -> None:
    """A frame goes back to the pool only when nothing refers to it and it refers to nothing."""
    require(s.owner[f] == d, "POOL-2.1")            # the frame is the domain's own
    require(s.ref_count[f] == 0, "POOL-2.2")        # nothing refers to it
    require(s.upto[f] == 0, "POOL-2.3")             # it refers to nothing
    s.owner[f] = DomId(NOBODY)
    s.last_owner[f] = d
    s.stamp[f] = s.clock[CPU]
    s.pages[d] -= 1
    if s.profile.forgets_freed:
        s.m2p[f] = s.profile.all_ones


@transition("POOL-3", source="xen-2003.md §11 increase (W-10, W-13); xen-4.17.md §10", keys=("dom", "frame"))
def assign(s: State, d: DomId, f: Mfn) -> None:
    """A free frame is handed out, within the domain's limit, and only after a flush since it was released."""
    require(s.owner[f] == NOBODY, "POOL-3.1")       # the frame is free
    require((d != NOBODY) & (d != DOMID_XEN), "POOL-3.2")   # it goes to a domain
    require(s.pages[d] < s.limit[d], "POOL-3.3")    # that is below its limit
    require(s.stamp[f] != s.clock[CPU], "POOL-3.4")     # no translation remembers its last owner
    s.owner[f] = d
    s.type[f] = FrameType(NONE)
    s.gone[f] = 0
    s.term[f] += 1
    s.alloc[f] = True
    s.ref_count[f] += 1
    s.pages[d] += 1


@transition("POOL-4", source="xen-2003.md §11: zeroed frames", keys=("dom", "frame", "index"))
def scrub(s: State, d: DomId, f: Mfn, i: Index) -> None:
    """What a frame held before it was handed out is erased before its new owner can see it."""
    require(s.owner[f] == d, "POOL-4.1")            # the frame is the domain's own
    require(is_idle(s, f), "POOL-4.2")              # it serves no purpose yet
    require(s.type[f] == NONE, "POOL-4.3")          # and has not since it was handed out
    require(i < s.profile.entries, "POOL-4.4")      # the word is in the frame
    s.word[f, i] = 0


@transition("POOL-5", source="xen-2003.md §3.1 SHARE_PFN_WITH_DOMAIN", keys=("dom", "frame"))
def xen_keeps(s: State, d: DomId, f: Mfn) -> None:
    """Xen keeps a typed reference for good to a frame that it shares with a domain, so the domain can map but not retype it."""
    require(s.owner[f] == d, "POOL-5.1")            # the frame is the domain's own
    require(s.type[f] == WRITABLE, "POOL-5.2")      # it is writable
    require(s.held_type[f] > 0, "POOL-5.3")         # a typed reference is in hand
    s.held_type[f] -= 1
    s.xen_held[f] += 1


@transition("LEND-1", source="xen-4.17.md §3.4, §4 (foreigndom)", keys=("dom", "dom", "frame"))
def lend(s: State, d: DomId, to: DomId, f: Mfn) -> None:
    """A privileged domain may let another use a frame, for as long as the frame has its present owner."""
    require(s.privileged[d], "LEND-1.1")            # only a privileged domain lends
    require(not_((s.owner[f] == NOBODY) | (s.owner[f] == DOMID_XEN)), "LEND-1.2")   # a frame that some domain owns
    s.lent[to, f] = s.term[f]
