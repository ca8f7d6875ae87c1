"""A machine at its start: domains with their memory, their tables and their shared_info (spec/RULINGS.md; xen-2003.md §8).

The state is built by the same transitions that a running machine makes; only constants (Xen's words, limits, the contents of
memory) are put in place directly.
"""
from refmodel.machine import Machine
from refmodel.references import TWritable, get_type
from refmodel.state import ConcreteState, as_state
from refmodel.xen417 import Machine417
from refmodel.xen417_environment import start
from refmodel.xen2003 import Machine2003
from spec.abi import DOMID_XEN, GUEST_KERNEL, L1, RW, US, A, D, P, Xen417, Xen2003
from spec.descriptors import set_gdt_entries
from spec.kernel import CPU, DomId, FrameType, Index, Mfn, State
from spec.profile import PROFILES, Profile
from spec.registers import load_base, set_m2p, set_pinned
from spec.reservation import assign, xen_keeps
from spec.rings import DS, ES, FS, GS, enter, fetch, reload, set_trap
from spec.tables import write_data
from spec.vocabulary import RETF, DomainSetup, Setup

MOST_FRAMES = 1 << 24                       # 64 GB: what a model can hold


class SetupError(ValueError):
    """A setup that describes no machine: `field` says where."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field


def boot(setup: Setup) -> Machine:
    """The machine of a setup, at its start.  Raises `SetupError`."""
    check_setup(setup)
    profile = PROFILES[setup.profile]
    state = ConcreteState(profile, setup.frames)
    s = as_state(state)
    s.clock[CPU] = s.cr3_clock[CPU] = 1     # 0 means: never
    for f in range(setup.xen_frames):
        s.owner[Mfn(f)] = DomId(DOMID_XEN)
    publish(s, setup)
    for n, word in enumerate(setup.xen_descriptors or own_descriptors(profile)):
        s.xen_descriptor[Index(2 * Xen2003.RESERVED + n)] = word
    for d in setup.domains:
        build(s, d)
        if profile.guest_end:
            start_in_ring_1(s, DomId(d.domid))
        else:
            start(s, DomId(d.domid))
    state.seal()
    return (Machine2003 if profile.guest_end else Machine417)(setup, state)


def check_setup(setup: Setup) -> None:
    """Domains lie apart, above Xen's frames and below the end, and domain 0 is there."""
    if setup.profile not in PROFILES:
        raise SetupError("profile", f"{setup.profile!r} is none of {', '.join(PROFILES)}")
    profile = PROFILES[setup.profile]
    if setup.xen_slots and len(setup.xen_slots) != profile.xen_last + 1 - profile.xen_first:
        raise SetupError("xen_slots", f"{len(setup.xen_slots)} words, not {profile.xen_last + 1 - profile.xen_first}")
    if setup.xen_descriptors and len(setup.xen_descriptors) != profile.reserved_words:
        raise SetupError("xen_descriptors", f"{len(setup.xen_descriptors)} words, not {profile.reserved_words}")
    end, seen = setup.xen_frames, set[int]()
    if not any(d.domid == 0 for d in setup.domains):
        raise SetupError("domains", "there is no domain 0")
    for n, d in sorted(enumerate(setup.domains), key=lambda each: each[1].first):
        if d.domid in seen:
            raise SetupError(f"domains[{n}].domid", f"domain {d.domid} is there twice")
        if not 0 <= d.domid < 0x7FF0:
            raise SetupError(f"domains[{n}].domid", f"{d.domid} is not a domain's number")
        if d.first < end:
            raise SetupError(f"domains[{n}].first", f"frame {d.first} is taken")
        if d.pages < table_pages(profile, d.pages) + 4:
            raise SetupError(f"domains[{n}].pages", f"{d.pages} pages do not hold a domain")
        if d.pages >= room(profile) * profile.entries:
            raise SetupError(f"domains[{n}].pages", f"{d.pages} pages are too many")
        seen.add(d.domid)
        end = d.first + d.pages + 1
    most = min(profile.mfn_mask + 1, MOST_FRAMES)
    if not end <= setup.frames <= most:
        raise SetupError("frames", f"{setup.frames} is not between {end}, where the last domain ends, and {most}")
    if published_end(setup) > setup.xen_frames:
        raise SetupError("xen_frames", f"{setup.xen_frames} frames do not hold the tables that Xen publishes")


# --- Xen's own slots ---------------------------------------------------------------------------------------------------------

def first_slot(setup: Setup) -> int:
    """The word in the first of Xen's slots, behind which the machine-to-physical words are."""
    return setup.xen_slots[0] if setup.xen_slots else (1 << 12) | P | US | A


def published_end(setup: Setup) -> int:
    """The frame after the last table of the machine-to-physical window: one L1 table or, on 4.17, several and two above them."""
    p = PROFILES[setup.profile]
    leaf = (first_slot(setup) >> 12 & p.mfn_mask) + p.root - 2
    return leaf + -(-setup.frames // p.entries**2)


def publish(s: State, setup: Setup) -> None:
    """Xen's slots of every root table, and behind the first of them the read-only machine-to-physical words."""
    p, first = s.profile, first_slot(setup)
    for d in setup.domains:
        for n, word in enumerate((first, *setup.xen_slots[1:])):
            s.xen_word[DomId(d.domid), Index(p.xen_first + n)] = word
    table = Mfn((first >> 12) & p.mfn_mask)
    for _level in range(p.root - 1, 1, -1):     # the upper tables of the window (4.17), in Xen's frames 1, 2, 3
        s.word[table, Index(0)] = (table + 1) << 12 | P | US | A
        table = Mfn(table + 1)
    pages = -(-setup.frames // p.entries)
    rights = A | P if p.guest_end else A | P | US
    for n in range(pages):
        leaf = table + n // p.entries
        if n // p.entries and n % p.entries == 0:   # 4.17, more than 2 MB of words: another L1 table
            s.word[Mfn(table - 1), Index(n // p.entries)] = leaf << 12 | P | US | A
        s.word[Mfn(leaf), Index(n % p.entries)] = leaf << 12 | rights


def own_descriptors(p: Profile) -> tuple[int, ...]:
    """The words of Xen's own descriptors in every GDT, if the setup has none."""
    places = range(Xen2003.RESERVED, Xen2003.RESERVED + p.reserved_words // 2)
    return tuple(q >> shift & 0xFFFFFFFF for q in (Xen2003.DESCRIPTORS.get(n, 0) for n in places) for shift in (0, 32))


# --- a domain ----------------------------------------------------------------------------------------------------------------

def room(p: Profile) -> int:
    """How many L1 tables fit above a domain's base: below Xen's slots, or in one L2 table."""
    return p.xen_first - (Xen2003.BASE >> 22) if p.guest_end else p.entries


def table_pages(p: Profile, pages: int) -> int:
    """How many page tables map `pages` pages and shared_info."""
    return -(-(pages + 1) // p.entries) + p.root - 1


def build(s: State, d: DomainSetup) -> None:
    """Give a domain its frames, fill its tables, and validate them by pinning and loading the root."""
    p, domid = s.profile, DomId(d.domid)
    s.privileged[domid] = d.domid == 0
    s.limit[domid] = d.pages + 1            # shared_info counts on both sides of the comparison
    for i in range(d.pages + 1):
        f = Mfn(d.first + i)
        assign(s, domid, f)
        set_m2p(s, domid, f, i)
    for n in range(p.entries):
        write_data(s, domid, Mfn(d.first + 1), Index(n), RETF * (p.all_ones // 0xFF))
    root = fill_tables(s, d)
    t = FrameType(p.root)
    get_type(s, domid, root, t)
    set_pinned(s, domid, root)
    get_type(s, domid, root, t)
    load_base(s, domid, root)
    shared = Mfn(d.first + d.pages)
    get_type(s, domid, shared, TWritable)
    xen_keeps(s, domid, shared)


def fill_tables(s: State, d: DomainSetup) -> Mfn:
    """Write the entries of the boot tables: L1 tables at the top of memory, then the upper ones, the root last."""
    p, domid = s.profile, DomId(d.domid)
    count = table_pages(p, d.pages)
    top = d.first + d.pages
    leaves = [Mfn(f) for f in range(top - count, top - p.root + 1)]
    kernel = P | A | D if p.ring1_kernel else P | A | D | US | GUEST_KERNEL
    for i in range(d.pages + 1):
        rw = 0 if top - count <= d.first + i < top else RW
        write_data(s, domid, leaves[i // p.entries], Index(i % p.entries), (d.first + i) << 12 | kernel | rw)
    base = Xen2003.BASE if p.guest_end else Xen417.BASE
    below, at = leaves, Mfn(top - p.root + 1)
    for level in p.geometry.levels[L1:]:
        first = base >> level.shift & (1 << level.bits) - 1
        for n, f in enumerate(below):
            write_data(s, domid, at, Index(first + n), f << 12 | P | RW | US | A | D)
        below, at = [at], Mfn(at + 1)
    return below[0]


def start_in_ring_1(s: State, d: DomId) -> None:
    """A kernel starts in ring 1 with Xen's default GDT, on the flat segments that Xen gives, as do its handlers (W-32, W-40)."""
    set_gdt_entries(s, d, Index(Xen2003.RESERVED_END))
    for selector in (Xen2003.RING1_CS, Xen2003.RING1_DS):
        fetch(s, d, selector)
    enter(s, d, Xen2003.RING1_CS, Xen2003.RING1_DS)
    for r in (DS, ES, FS, GS):
        reload(s, d, Index(r), Xen2003.RING1_DS)
    for v in range(Xen2003.VECTORS):
        set_trap(s, d, Index(v), Xen2003.RING1_CS, 0, 0)
