"""The two profiles, and the geometries of x86 paging, as data."""
from dataclasses import dataclass
from typing import Final

from spec.abi import AVAIL, AVAIL_HIGH, LDT_DESC, NX, PCD, PSE, PWT, SEG_DESC, US, A, D, G, Xen417, Xen2003


@dataclass(frozen=True, slots=True)
class Level:
    """One level of a walk: where its index lies in the address, and what its entries can say."""
    shift: int                              # of the index in the address
    bits: int                               # of the index
    large: bool                             # PSE set: the entry maps a large page
    rights: bool                            # has RW, US and A (a PAE directory-pointer entry has not)
    reserved: int                           # bits that must be 0 in a present entry
    reserved_large: int = 0                 # the same when it maps a large page


@dataclass(frozen=True, slots=True)
class Geometry:
    """A paging mode.  levels[0] is the last level (the page table), levels[-1] the root."""
    name: str
    levels: tuple[Level, ...]
    word_bits: int
    mfn_mask: int                           # of the frame number, after >> 12
    has_nx: bool
    canonical_bits: int                     # significant bits of an address (32: all of a 32-bit one)


_HIGH = 0x7FF << 52                         # ignored by the processor in 64-bit mode
X86_32: Final = Geometry("x86-32", (Level(12, 10, False, True, 0), Level(22, 10, True, True, 0, 0x3FE000)),
                         32, 0xFFFFF, False, 32)
PAE: Final = Geometry("pae", (Level(12, 9, False, True, _HIGH), Level(21, 9, True, True, _HIGH, _HIGH | 0x1FE000),
                              Level(30, 2, False, False, NX | _HIGH | 0x1E6)), 64, (1 << 40) - 1, True, 32)
X86_64: Final = Geometry("x86-64", (Level(12, 9, False, True, 0), Level(21, 9, True, True, 0, 0x1FE000),
                                    Level(30, 9, True, True, 0, 0x3FFFE000), Level(39, 9, False, True, PSE)),
                         64, (1 << 40) - 1, True, 48)


@dataclass(frozen=True, slots=True)
class Profile:
    """What differs between the Xen of the paper and Xen 4.17; a rule reads it in one place."""
    name: str
    geometry: Geometry
    root: int                               # number of levels, and the type of a root table
    entries: int                            # words of a table, and of a frame
    word_bits: int
    word_bytes: int
    mfn_mask: int
    forbidden_l1: int                       # bits that a present entry must not have
    forbidden_upper: int
    authority_l1: int                       # bits whose change moves a reference; a change of others is free
    authority_upper: int
    xen_first: int                          # Xen's slots in a root table
    xen_last: int
    self_slot: int                          # the one of them that maps the table itself
    late_slot: int                          # the one that is empty until the table is first loaded as a base; -1: none
    last_descriptors: int                   # types from SEG_DESC up to this one are tables of segment descriptors
    descriptor_words: int                   # that a descriptor takes
    reserved_words: int                     # of Xen's own descriptors, in the first page of a GDT
    gdt_pages: int                          # pages of a GDT that are a guest's
    guest_end: int                          # guest segments end here; 0: there are none
    ring1_kernel: bool                      # the guest kernel is a supervisor for the walk
    linear_tables: bool                     # a table may use another of its level, not only itself
    user_root: bool                         # user mode has a root table of its own
    adjusts: bool                           # Xen sets bits of the entries that it stores for a guest
    forgets_freed: bool                     # a freed frame loses its machine-to-physical word

    @property
    def all_ones(self) -> int:
        """A word that means "no frame number"."""
        return (1 << self.word_bits) - 1


XEN_2003: Final = Profile(
    "xen-2003", X86_32, root=2, entries=1024, word_bits=32, word_bytes=4, mfn_mask=0xFFFFF,
    forbidden_l1=PSE | G, forbidden_upper=PSE | G, authority_l1=0xFFFFF003, authority_upper=0xFFFFF001,
    xen_first=Xen2003.XEN_SLOT, xen_last=1023, self_slot=Xen2003.LINEAR_SLOT, late_slot=-1, last_descriptors=LDT_DESC,
    descriptor_words=2,
    reserved_words=80, gdt_pages=16, guest_end=Xen2003.GUEST_END,
    ring1_kernel=True, linear_tables=False, user_root=False, adjusts=False, forgets_freed=False)

_SOFT = NX | AVAIL_HIGH | AVAIL | G | D | A | US        # 4.17: the whitelist of the fast path
XEN_4_17: Final = Profile(
    "xen-4.17", X86_64, root=4, entries=512, word_bits=64, word_bytes=8, mfn_mask=(1 << 40) - 1,
    forbidden_l1=PSE | PWT | PCD, forbidden_upper=PSE | G | PWT | PCD,
    authority_l1=((1 << 64) - 1) ^ _SOFT, authority_upper=((1 << 64) - 1) ^ _SOFT,
    xen_first=Xen417.XEN_FIRST, xen_last=Xen417.XEN_LAST, self_slot=258, late_slot=Xen417.M2P_SLOT, last_descriptors=SEG_DESC,
    descriptor_words=1, reserved_words=0, gdt_pages=14, guest_end=0,
    ring1_kernel=False, linear_tables=True, user_root=True, adjusts=True, forgets_freed=True)

PROFILES: Final = {p.name: p for p in (XEN_2003, XEN_4_17)}
