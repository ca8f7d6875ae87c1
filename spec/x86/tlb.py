"""The TLB: a translation once cached may be used until it is flushed; and walks that are not atomic.

First-time readers can skip this: without stale translations an access is `paging.walk` and nothing else.
A walk on its way (`walk`, `walk_level`) stands also for a paging-structure cache.  Both live until the clock moves.
"""
from spec.abi import RW, US, A, D, G, P
from spec.frames import mfn_of
from spec.kernel import CPU, DomId, Index, State, Tag, Vpn, guard, predicate, require, transition
from spec.x86.paging import combine, index_at, is_leaf, leaf_frame, mark_used, root_of, walk, way_through


@predicate
def tag_of(v: Vpn, fetch: bool) -> Tag:
    """Fetches have a TLB of their own."""
    return Tag(2 * v + 1 if fetch else 2 * v)


@predicate
def is_live(s: State, d: DomId, tag: Tag) -> bool:
    """A translation is cached, and no flush has struck it: one that spares global entries strikes only the others."""
    e = s.tlb[d, tag]
    return (e & P != 0 and s.tlb_clock[d, tag] == s.clock[CPU]
            and (e & G != 0 or s.tlb_cr3[d, tag] == s.cr3_clock[CPU]))


@predicate
def is_walking(s: State, d: DomId, tag: Tag) -> bool:
    """A walk is on its way, or its last step is cached, and no flush has struck it."""
    return s.walk[d, tag] & P != 0 and s.walk_clock[d, tag] == s.clock[CPU]


@predicate
def has_root(s: State, d: DomId, user: bool) -> bool:
    """There is a table for CR3: 4.17 has one for user mode, if the domain gave one."""
    if s.profile.user_root and user:
        return s.has_user[d]
    return s.has_base[d]


@predicate
def in_segment(s: State, va: int) -> bool:
    """Segment limits keep the guest of x86-32 out of Xen's slots, but for the published window."""
    return s.profile.guest_end == 0 or va < s.profile.guest_end


# --- filling -----------------------------------------------------------------------------------------------------------------

@transition("TLB-1", source="SDM 3A §4.10.2, §4.8", keys=("dom", "vaddr", "bool", "bool", "bool"))
def tlb_fill(s: State, d: DomId, va: int, user: bool, write: bool, fetch: bool) -> None:
    """The processor may walk for any page at any time, marks the entries that it used, and may keep the result."""
    require(has_root(s, d, user), "TLB-1.1")        # the domain has tables to walk
    require(in_segment(s, va), "TLB-1.2")           # the address is one that a guest can form
    # the guest kernel of x86-64 is a user for the walk
    found, used = walk(s, root_of(s, d, user), va, user or not s.profile.ring1_kernel, write, fetch)
    mark_used(s, used, write)
    tag = tag_of(Vpn(va >> 12), fetch)
    s.tlb[d, tag] = found | D if write else found
    s.tlb_clock[d, tag] = s.clock[CPU]
    s.tlb_cr3[d, tag] = s.cr3_clock[CPU]


@transition("TLB-2", source="SDM 3A §4.10.3", keys=("dom", "vaddr", "bool"))
def walk_start(s: State, d: DomId, va: int, user: bool) -> None:
    """A walk need not be atomic: it starts at the base and goes on at any time, or is forgotten."""
    require(has_root(s, d, user), "TLB-2.1")        # the domain has tables to walk
    require(in_segment(s, va), "TLB-2.2")           # the address is one that a guest can form
    tag = tag_of(Vpn(va >> 12), False)
    s.walk[d, tag] = (root_of(s, d, user) << 12) | RW | US | P
    s.walk_level[d, tag] = Index(s.profile.root)
    s.walk_clock[d, tag] = s.clock[CPU]


@transition("TLB-3", source="SDM 3A §4.10.3", keys=("dom", "tag", "vaddr"))
def walk_step(s: State, d: DomId, tag: Tag, va: int) -> None:
    """One level more, from the table where the walk is or a cache kept it, for any address: more than a processor can do."""
    require(is_walking(s, d, tag), "TLB-3.1")       # there is a walk
    require(in_segment(s, va), "TLB-3.2")           # the address is one that a guest can form
    number = s.walk_level[d, tag]
    for n in range(s.profile.root):
        if number == n + 1:
            step(s, d, tag, va, n + 1)


@guard("TLB-7", source="SDM 3A §4.10.3")
def step(s: State, d: DomId, tag: Tag, va: int, number: int) -> None:
    """A step uses a present entry, at the guest's privilege, and leads to a translation or one level down."""
    level, way = s.profile.geometry.levels[number - 1], s.walk[d, tag]
    table, i = mfn_of(s, way), index_at(level, va)
    e = s.word[table, i]
    require(e & P != 0, "TLB-7.1")                  # the entry is present
    rights = combine(s.profile.geometry, level, way, e)
    require((rights & US != 0) | s.profile.ring1_kernel, "TLB-7.2")     # and may be used at the guest's privilege
    rights = rights | way_through(s, s.type[table], i)
    s.word[table, i] = e | A
    to = tag_of(Vpn(va >> 12), False)
    if is_leaf(level, number, e):
        s.tlb[d, to] = (leaf_frame(s.profile.geometry, level, e, va) << 12) | rights | (e & (G | D)) | P
        s.tlb_clock[d, to] = s.clock[CPU]
        s.tlb_cr3[d, to] = s.cr3_clock[CPU]
    else:
        s.walk[d, to] = (mfn_of(s, e) << 12) | rights | P
        s.walk_level[d, to] = Index(number - 1)
        s.walk_clock[d, to] = s.clock[CPU]


@transition("TLB-8", source="SDM 3A §4.10.2.3, §4.10.4.2", keys=("dom", "tag", "tag"))
def tlb_keep(s: State, d: DomId, tag: Tag, to: Tag) -> None:
    """A processor may have a translation in several places, and so still use it after it has found a newer one for the page."""
    require((tag ^ to) & 1 == 0, "TLB-8.1")         # it is kept for the same use, data or fetches
    s.tlb[d, to] = s.tlb[d, tag]
    s.tlb_clock[d, to] = s.tlb_clock[d, tag]
    s.tlb_cr3[d, to] = s.tlb_cr3[d, tag]


# --- forgetting --------------------------------------------------------------------------------------------------------------

@transition("TLB-4", source="SDM 3A §4.10.4.1 INVLPG", keys=("dom", "tag"))
def tlb_drop(s: State, d: DomId, tag: Tag) -> None:
    """INVLPG drops the translations of one page, global or not; the processor may also forget one at any time."""
    require(s.tlb[d, tag] & P != 0, "TLB-4.1")      # there is one
    s.tlb[d, tag] = 0


@transition("TLB-5", source="SDM 3A §4.10.4.1; xen-2003.md §3.2; xen-4.17.md §3.2", keys=("dom",))
def flush(s: State, d: DomId) -> None:
    """A whole flush drops every translation and every cached upper entry."""
    s.clock[CPU] += 1
    s.cr3_clock[CPU] += 1


@transition("TLB-6", source="SDM 3A §4.10.4.1 MOV to CR3", keys=("dom",))
def load_cr3(s: State, d: DomId) -> None:
    """Loading CR3 drops all but the global translations."""
    s.cr3_clock[CPU] += 1


# --- using -------------------------------------------------------------------------------------------------------------------

@transition("STORE-1", source="SDM 3A §4.10.2.3; xen-4.17.md §2", keys=("dom", "tag", "index", "word"))
def guest_store(s: State, d: DomId, tag: Tag, i: Index, value: int) -> None:
    """The guest stores through a translation that the processor holds, stale or not."""
    e = s.tlb[d, tag]
    require(is_live(s, d, tag), "STORE-1.1")        # the translation may still be used
    require(e & RW != 0, "STORE-1.2")               # it lets the page be written
    require(e & D != 0, "STORE-1.3")                # and the page table says so (the dirty bit was set)
    require(tag & 1 == 0, "STORE-1.4")              # it is one for data
    require(i < s.profile.entries, "STORE-1.5")     # the word is in the page
    s.word[mfn_of(s, e), i] = value
