"""Descriptor tables: which descriptors a guest may have, and how Xen checks, installs and replaces the tables that hold them.

A table of descriptors is a frame of a type of its own, checked when the type is taken, so no page of it is ever writable for a
guest.  In 2003 the first page of a GDT also holds Xen's own descriptors, in a stretch that Xen fills.
"""
from spec.abi import LDT_PAGES, SEG_DESC, Xen417, Xen2003
from spec.frames import is_descriptors
from spec.kernel import DomId, Index, Mfn, State, predicate, put, require, transition
from spec.tables import not_
from spec.x86.descriptors import (
    ACCESSED,
    DPL_SHIFT,
    PRESENT,
    RPL,
    SEGMENT,
    TI,
    base_of,
    dpl_of,
    gate_selector,
    is_call_gate,
    is_conforming,
    is_expand_down,
    limit_of,
    type_of,
)

# --- legality ----------------------------------------------------------------------------------------------------------------

@predicate
def is_guest_selector(s: State, sel: int) -> bool:
    """A selector for ring 1 that names none of Xen's own descriptors (2003: VALID_SEL)."""
    i = sel >> 3
    return sel & RPL == 1 and (sel & TI != 0 or i < Xen2003.RESERVED or i >= Xen2003.RESERVED_END)


@predicate
def is_guest_code_selector(s: State, sel: int) -> bool:
    """The flat code segment that Xen gives, or one of the guest's own (2003: VALID_CODESEL)."""
    return sel == Xen2003.RING1_CS or is_guest_selector(s, sel)


@predicate
def is_given(i: int) -> bool:
    """One of the flat segments that Xen gives to guests."""
    return i >= Xen2003.RING1_CS >> 3 and i <= Xen2003.RING3_DS >> 3


@predicate
def is_closed(sel: int, q: int) -> bool:
    """By its selector one that Xen keeps to itself, and of ring 0: no guest can use it."""
    i = sel >> 3
    if sel & TI != 0 or i < Xen2003.RESERVED or i >= Xen2003.RESERVED_END or is_given(i):
        return False
    return dpl_of(q) == 0 and not is_conforming(q)


@predicate
def legal_descriptor(s: State, q: int) -> bool:
    """A descriptor by which no guest gains privilege or reach: absent, or a segment outside ring 0 that ends below Xen, or a call
    gate into the guest's own kernel."""
    if q & PRESENT == 0:
        return True
    if s.profile.guest_end == 0:
        return legal_64(q)
    if dpl_of(q) == 0:
        return False
    if q & SEGMENT == 0:
        return is_call_gate(q) and is_guest_code_selector(s, gate_selector(q)) and q >> 37 & 7 == 0
    # that a segment expands down the releases did not look at (W-24)
    return not is_expand_down(q) and base_of(q) + limit_of(q) < s.profile.guest_end


@predicate
def legal_64(q: int) -> bool:
    """4.17, 64-bit: base and limit mean nothing; of system descriptors only type 0 and call gates, which never work as such."""
    if q & SEGMENT != 0:
        return True
    if type_of(q) == 0:
        return True
    sel = gate_selector(q)
    mine = sel >> 3 < Xen417.RESERVED or sel == Xen417.KERNEL_CS or sel & TI != 0
    return is_call_gate(q) and mine and q >> 32 & 0xFF == 0


@predicate
def adjusted_descriptor(s: State, q: int) -> int:
    """What Xen stores for a legal descriptor: 4.17 takes all privilege from segments, and the use from call gates."""
    if q & PRESENT == 0 or s.profile.guest_end != 0:
        return q
    if q & SEGMENT != 0:
        return q | 3 << DPL_SHIFT
    if type_of(q) == 0:
        return q
    return (q | (3 << 16)) & ((1 << 64) - 1 ^ 3 << DPL_SHIFT)


@predicate
def is_safe(s: State, q: int) -> bool:
    """A descriptor as it stands in a checked table."""
    return legal_descriptor(s, q) and adjusted_descriptor(s, q) == q


@predicate
def first_word(s: State, i: Index) -> Index:
    """Where the descriptor begins that word i is part of."""
    return i if s.profile.descriptor_words == 1 else Index(i & -2)


@predicate
def descriptor_at(s: State, f: Mfn, i: Index) -> int:
    """The descriptor that word i is part of."""
    if s.profile.descriptor_words == 1:
        return s.word[f, i]
    return s.word[f, first_word(s, i)] | s.word[f, Index(i | 1)] << 32


# --- Xen's own ---------------------------------------------------------------------------------------------------------------

@predicate
def first_reserved(s: State) -> int:
    """Where Xen's own descriptors begin in the first page of a GDT."""
    return Xen2003.RESERVED * s.profile.descriptor_words


@predicate
def is_xens_place(s: State, f: Mfn, i: Index) -> bool:
    """Xen has filled word i of the frame with one of its own descriptors'."""
    start = first_reserved(s)
    return start <= i and i < start + s.filled[f]


@predicate
def is_xens_word(s: State, i: Index, word: int) -> bool:
    """The word is what Xen keeps there, but for the accessed bit, which the processor may set."""
    mine = s.xen_descriptor[i]
    accessed = ACCESSED >> 32 if i & 1 == 1 else 0
    return word | accessed == mine | accessed


# --- checking ----------------------------------------------------------------------------------------------------------------

@transition("DESC-1", source="xen-2003.md §5, §5.1, §6.2; xen-4.17.md §6.1", keys=("dom", "frame"))
def validate_descriptor(s: State, d: DomId, f: Mfn) -> None:
    """The next descriptor of a table in validation is checked."""
    require(s.owner[f] == d, "DESC-1.1")            # the frame is the domain's own
    require(s.type_count[f] > 0, "DESC-1.2")        # it has the reference that opened the validation
    require(is_descriptors(s, s.type[f]), "DESC-1.3")   # as a table of descriptors
    i = s.upto[f]
    require(i < s.profile.entries, "DESC-1.4")      # there is a next one
    q = descriptor_at(s, f, i)
    require(legal_descriptor(s, q), "DESC-1.5")     # it is legal
    if s.profile.adjusts:
        put(s.word, (f, i), adjusted_descriptor(s, q))
    s.upto[f] = Index(i + s.profile.descriptor_words)


@transition("DESC-2", source="xen-2003.md §5.2; xen-4.17.md §6.3", keys=("dom", "frame", "index", "desc"))
def write_descriptor(s: State, d: DomId, f: Mfn, i: Index, q: int) -> None:
    """A descriptor in a checked table is replaced by another legal one, but for Xen's own."""
    require(s.owner[f] == d, "DESC-2.1")            # the frame is the domain's own
    require(is_descriptors(s, s.type[f]), "DESC-2.2")   # it is a table of descriptors
    require(s.validated[f], "DESC-2.3")             # in use and checked
    require(i < s.profile.entries, "DESC-2.4")      # the descriptor is in the table
    require(first_word(s, i) == i, "DESC-2.5")      # as a whole
    require(not_(is_xens_place(s, f, i)), "DESC-2.6")   # and not Xen's
    require(legal_descriptor(s, q), "DESC-2.7")     # the new one is legal
    new = adjusted_descriptor(s, q)
    if s.profile.descriptor_words == 1:
        s.word[f, i] = new
    else:
        s.word[f, i] = new & 0xFFFFFFFF
        s.word[f, Index(i | 1)] = new >> 32


@transition("DESC-3", source="xen-2003.md §5.1, §6.3", keys=("dom", "frame"))
def forget_descriptors(s: State, d: DomId, f: Mfn) -> None:
    """A table of descriptors that nobody uses refers to nothing."""
    require(s.owner[f] == d, "DESC-3.1")            # the frame is the domain's own
    require(s.type_count[f] == 0, "DESC-3.2")       # nobody uses it
    require(is_descriptors(s, s.type[f]), "DESC-3.3")   # it was a table of descriptors
    s.upto[f] = Index(0)


@transition("DESC-4", source="SDM 3A §3.4.5.1", keys=("dom", "frame", "index"))
def mark_accessed(s: State, d: DomId, f: Mfn, i: Index) -> None:
    """The processor marks a segment in a table when it loads it."""
    require(s.owner[f] == d, "DESC-4.1")            # the frame is the domain's own
    require(is_descriptors(s, s.type[f]), "DESC-4.2")   # it is a table of descriptors
    require(s.validated[f], "DESC-4.3")             # in use and checked
    require(i < s.profile.entries, "DESC-4.4")      # the descriptor is in the table
    require(first_word(s, i) == i, "DESC-4.5")      # as a whole
    q = descriptor_at(s, f, i)
    require(q & PRESENT != 0, "DESC-4.6")           # it is there
    require(q & SEGMENT != 0, "DESC-4.7")           # and a segment
    if s.profile.descriptor_words == 1:
        s.word[f, i] = q | ACCESSED
    else:
        s.word[f, Index(i | 1)] = (q | ACCESSED) >> 32


@transition("DESC-5", source="xen-2003.md §5; xen-4.17.md §6.1: absent ones are legal", keys=("dom", "frame", "index"))
def skip_blank(s: State, d: DomId, f: Mfn, end: Index) -> None:
    """A stretch of descriptors that are 0 needs no check."""
    require(s.owner[f] == d, "DESC-5.1")            # the frame is the domain's own
    require(s.type_count[f] > 0, "DESC-5.2")        # it has the reference that opened the validation
    require(is_descriptors(s, s.type[f]), "DESC-5.3")   # as a table of descriptors
    require(s.upto[f] <= end, "DESC-5.4")           # the stretch begins at the next descriptor
    require(end <= s.profile.entries, "DESC-5.5")   # ends in the table
    require(first_word(s, end) == end, "DESC-5.6")  # between two descriptors
    require(s.blank(f, s.upto[f], end), "DESC-5.7")     # and all of it is 0
    s.upto[f] = end


# --- the GDT -----------------------------------------------------------------------------------------------------------------

@transition("GDT-1", source="xen-2003.md §5.1 (W-26)", keys=("dom", "frame"))
def fill_reserved(s: State, d: DomId, f: Mfn) -> None:
    """Xen puts the next of its own descriptors into a table that is to be the first page of a GDT, and serves nothing else."""
    require(s.owner[f] == d, "GDT-1.1")             # the frame is the domain's own
    require(s.type[f] == SEG_DESC, "GDT-1.2")       # it is a table of descriptors for a GDT
    require(s.validated[f], "GDT-1.3")              # that has been checked
    require(s.type_count[f] == 1, "GDT-1.4")        # its only use
    require(s.held_type[f] == 1, "GDT-1.5")         # is the one in hand
    k = s.filled[f]
    require(k < s.profile.reserved_words, "GDT-1.6")    # one is missing
    i = Index(first_reserved(s) + k)
    s.word[f, i] = s.xen_descriptor[i]
    s.word[f, Index(i | 1)] = s.xen_descriptor[Index(i | 1)]
    s.filled[f] = Index(k + 2)


@predicate
def is_filled_for(s: State, n: Index, f: Mfn) -> bool:
    """Xen's own descriptors are in the first page of a GDT, whole, and in no other (W-27)."""
    return s.filled[f] == (s.profile.reserved_words if n == 0 else 0)


@transition("GDT-2", source="xen-2003.md §5.1 (W-25, W-27); xen-4.17.md §6.2", keys=("dom", "page", "frame"))
def install_gdt(s: State, d: DomId, n: Index, f: Mfn) -> None:
    """Page n of the GDT is a checked table, held by one typed reference."""
    require(s.owner[f] == d, "GDT-2.1")             # the frame is the domain's own
    require(s.type[f] == SEG_DESC, "GDT-2.2")       # it is a table of descriptors for a GDT
    require(s.validated[f], "GDT-2.3")              # that has been checked
    require(s.held_type[f] > 0, "GDT-2.4")          # a typed reference is in hand
    require(n < s.profile.gdt_pages, "GDT-2.5")     # a GDT has such a page
    require(not_(s.has_gdt[d, n]), "GDT-2.6")       # the place is free
    require(is_filled_for(s, n, f), "GDT-2.7")      # Xen's own descriptors are where they belong
    s.held_type[f] -= 1
    s.has_gdt[d, n] = True
    s.gdt[d, n] = f


@transition("GDT-3", source="xen-2003.md §5.1; xen-4.17.md §6.2", keys=("dom", "page"))
def remove_gdt(s: State, d: DomId, n: Index) -> None:
    """A page of the GDT is given up, and its reference comes into hand."""
    require(s.has_gdt[d, n], "GDT-3.1")             # there is one
    s.has_gdt[d, n] = False
    s.held_type[s.gdt[d, n]] += 1


@transition("GDT-4", source="xen-2003.md §5.1; xen-4.17.md §6.2", keys=("dom", "index"))
def set_gdt_entries(s: State, d: DomId, entries: Index) -> None:
    """The processor's limit of the GDT is a number of descriptors for which there is room."""
    require(entries <= Xen2003.MAX_GDT, "GDT-4.1")  # no more than 8,192
    require((entries >= Xen2003.RESERVED_END) | (s.profile.guest_end == 0), "GDT-4.2")  # with Xen's own among them
    s.gdt_entries[d] = entries


# --- the LDT -----------------------------------------------------------------------------------------------------------------

@transition("LDT-2", source="xen-2003.md §6.2; xen-4.17.md §6.4", keys=("dom", "page", "frame"))
def map_ldt(s: State, d: DomId, n: Index, f: Mfn) -> None:
    """Page n of the LDT is mapped for the processor when it is first needed: a checked table, held by one typed reference."""
    require(s.owner[f] == d, "LDT-2.1")             # the frame is the domain's own
    require(s.type[f] == s.profile.last_descriptors, "LDT-2.2")     # it is a table of descriptors for an LDT
    require(s.validated[f], "LDT-2.3")              # that has been checked
    require(s.held_type[f] > 0, "LDT-2.4")          # a typed reference is in hand
    require(n < LDT_PAGES, "LDT-2.5")               # an LDT has such a page
    require(not_(s.has_ldt[d, n]), "LDT-2.6")       # the place is free
    s.held_type[f] -= 1
    s.has_ldt[d, n] = True
    s.ldt[d, n] = f


@transition("LDT-3", source="xen-2003.md §6.3; xen-4.17.md §6.4", keys=("dom", "page"))
def unmap_ldt(s: State, d: DomId, n: Index) -> None:
    """A page of the LDT is given up, and its reference comes into hand."""
    require(s.has_ldt[d, n], "LDT-3.1")             # there is one
    s.has_ldt[d, n] = False
    s.held_type[s.ldt[d, n]] += 1
