"""A real machine's image as a state of the model: what its frame table claims, with every reference that Xen itself holds named.

The claims are taken over as they are, right or wrong; the audit holds them against the tables.  Only two things of Xen's come
from elsewhere than the frame table: the limit and number of a domain's frames, and its bases, from Xen's records.

What the specification has no word for is left out of the state and listed: nothing disappears.  The state is one at rest, with no
translation cached; of loans it knows nothing, so a frame of another domain's in an unprivileged domain's tables is a violation.
"""
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, Literal

from refmodel.audit import Violation, audit
from refmodel.machine import Machine
from refmodel.state import ConcreteState, as_state
from refmodel.xen417 import Machine417
from refmodel.xen417_environment import start
from spec.abi import DOMID_IO, DOMID_XEN, L1, L4, NONE, NP, PAT, PCD, PWT, RW, SEG_DESC, P
from spec.kernel import CPU, DomId
from spec.profile import PROFILES, Profile
from spec.vocabulary import FrameView, Image, Setup

DOMAIN_SLOT: Final = 260                    # the one of Xen's slots that is each domain's own
CACHE: Final = PWT | PCD | PAT
MOST_DOMIDS: Final = 0x7FF0                 # from here on a domain number is no domain's

Kind = Literal["kernel root", "user root", "root of another vCPU", "shared memory of Xen's", "descriptor table",
               "registered page", "table to be let go", "unfinished table"]
REASONS: Final[dict[Kind, str]] = {
    "kernel root": "a vCPU has the table loaded as its kernel's root (the base)",
    "user root": "a vCPU has the table loaded as its applications' root (the user base)",
    "root of another vCPU": "a vCPU but the first has the table loaded; the specification has one vCPU a domain",
    "shared memory of Xen's": "Xen's own memory, which it shares with the domain (shared_info, grant table): writable for good",
    "descriptor table": "Xen has the frame mapped as a vCPU's descriptor table",
    "registered page": "the domain has named the page to Xen, which writes to it: a vcpu_info, or a page of FIFO event channels",
    "table to be let go": "a vCPU has replaced an entry that named the table, and gives up its reference in its next hypercall",
    "unfinished table": "a vCPU has checked the table in part, and goes on or back in its next hypercall: two are in flight",
}
Matter = Literal["device frame", "frame that Xen shows to domain 0", "device mapping", "mapping of Xen's shared frame",
                 "cache bits", "read-only memory of Xen's"]
MATTERS: Final[dict[Matter, str]] = {
    "device frame": "belongs to DOMID_IO: taken as Xen's",
    "frame that Xen shows to domain 0": "belongs to DOMID_XEN and may be mapped read-only: taken as Xen's, without references",
    "device mapping": "an L1 entry of domain 0 names no memory, or a device's: it holds no reference, and is left out",
    "mapping of Xen's shared frame": "a read-only L1 entry of domain 0 names a frame that Xen shows: left out",
    "cache bits": "an L1 entry of domain 0, which has rights to devices, sets PWT, PCD or PAT: the bits are left out",
    "read-only memory of Xen's": "the count of typed references to no type marks it as Xen's: taken as 0",
}


@dataclass(frozen=True, slots=True)
class XenReference:
    """References to a frame that Xen itself holds: `typed` ones, and `plain` ones that are no part of a typed one."""
    mfn: int
    kind: Kind
    typed: int
    plain: int = 0

    @property
    def why(self) -> str:
        """The reason, as a sentence."""
        return REASONS[self.kind]


@dataclass(frozen=True, slots=True)
class Unmodelled:
    """Something that the specification has no word for: a frame, or entry `index` of one, and the value that was found."""
    mfn: int
    kind: Matter
    index: int | None = None
    value: int = 0

    @property
    def why(self) -> str:
        """The reason, as a sentence."""
        return MATTERS[self.kind]


@dataclass(slots=True)
class Imported:
    """The state of an image, the references that Xen holds, and what is not in the state."""
    state: ConcreteState
    references: list[XenReference] = field(default_factory=list)
    unmodelled: list[Unmodelled] = field(default_factory=list)

    def counts(self) -> tuple[Counter[Kind], Counter[Matter]]:
        """How many references and unmodelled matters there are of each kind."""
        return Counter(r.kind for r in self.references), Counter(u.kind for u in self.unmodelled)


def imported(image: Image) -> Imported:
    """The state that an image claims."""
    profile = PROFILES[image.profile]
    state = ConcreteState(profile, image.frames)
    out = Imported(state)
    views = {v.mfn: v for v in image.table}
    for v in image.table:
        add_frame(out, v)
    add_xens(out, image, views)
    for f, words in image.words.items():
        add_words(out, image, views, f, words)
    m = state.maps
    m["clock"][CPU] = m["cr3_clock"][CPU] = 1               # 0 means: never
    m["privileged"][0] = True
    m["m2p"].update(image.m2p)
    for d in {v.owner for v in image.table if is_domain(v.owner)}:
        m["xen_word"].update({(d, profile.xen_first + n): w for n, w in enumerate(image.xen_slots)})
        m["xen_word"][d, DOMAIN_SLOT] = image.domain_slot.get(d, 0)
    for d, pages in image.pages.items():
        m["pages"][d] = pages + image.xen_pages.get(d, 0)
        m["limit"][d] = image.max_pages[d] + image.xen_pages.get(d, 0)
    for name, has, roots in (("base", "has_base", image.base), ("user_base", "has_user", image.user_base)):
        m[name].update(roots)
        m[has].update(dict.fromkeys(roots, True))
    state.seal()
    return out


def audited(claimed: Imported) -> list[Violation]:
    """What an image violates.  A vCPU that is in the midst of a hypercall has references in flight, which are named."""
    named = {r.mfn for r in claimed.references if r.kind == "unfinished table"}
    return [v for v in audit(claimed.state) if v.rule != "TOKEN-1" or v.key[0] not in named]


def imported_machine(setup: Setup, image: Image) -> Machine:
    """The model of a real machine in the state of its image; `setup` says which frames of which domains are for programs."""
    state = imported(image).state
    for d in setup.domains:
        start(as_state(state), DomId(d.domid))
    state.seal()
    state.devices = frozenset(v.mfn for v in image.table if v.owner == DOMID_IO)
    machine = Machine417(setup, state, end=max((v.mfn for v in image.table), default=0) + 1)
    machine.uncounted = {d: image.xen_pages.get(d, 0) for d in machine.uncounted}
    machine.shared = {d: image.shared_info.get(d, 0) for d in machine.shared}
    state.opaque = frozenset(image.shared_info.values())
    machine.choices.eager = True            # QEMU's processor
    machine.gate_shift, machine.marks_faults, machine.marks_segments, machine.absent_stack = 4, False, False, NP
    machine.pool_size = image.frames - len(image.table)
    return machine


# --- frames ------------------------------------------------------------------------------------------------------------------

def is_domain(owner: int) -> bool:
    """The number is that of a domain, which can run."""
    return owner < MOST_DOMIDS


def add_frame(out: Imported, v: FrameView) -> None:
    """What the frame table says of one frame."""
    m, f, p = out.state.maps, v.mfn, out.state.profile
    if not is_domain(v.owner):
        m["owner"][f] = DOMID_XEN
        if v.owner == DOMID_IO:
            out.unmodelled.append(Unmodelled(f, "device frame"))
        elif v.count:
            out.unmodelled.append(Unmodelled(f, "frame that Xen shows to domain 0"))
        return
    checked = L1 <= v.type <= p.root or SEG_DESC <= v.type <= p.last_descriptors
    typed = v.type_count
    if v.xen_heap and v.type == NONE and typed:
        out.unmodelled.append(Unmodelled(f, "read-only memory of Xen's", value=typed))
        typed = 0
    m["owner"][f], m["type"][f], m["term"][f] = v.owner, v.type, 1
    if typed:
        m["type_count"][f] = typed
    # Xen's typed reference to memory of its own is the only one that has no plain one with it
    m["ref_count"][f] = v.count + (v.xen_heap and v.type != NONE)
    if v.allocated:
        m["alloc"][f] = True
    if checked and typed:
        m["upto"][f] = v.upto if v.partial else p.entries       # also without the mark: that is then the one thing that is wrong
    if checked and v.validated:
        m["validated"][f] = True
    if v.pinned:
        m["pinned"][f] = True
    if v.linear:
        m["linear"][f] = v.linear


def add_xens(out: Imported, image: Image, views: dict[int, FrameView]) -> None:
    """The references that Xen holds: those which the specification's state has no other map for go into `xen_held`."""
    references = [XenReference(f, "kernel root", 1) for f in image.base.values()]
    references += [XenReference(f, "user root", 1) for f in image.user_base.values()]
    kept = [XenReference(f, "root of another vCPU", n) for f, n in Counter(image.other_roots).items()]
    kept += [XenReference(v.mfn, "shared memory of Xen's", 1) for v in views.values()
             if is_domain(v.owner) and v.xen_heap and v.type != NONE]
    kept += [XenReference(f, "table to be let go", n) for f, n in Counter(image.left).items() if not views[f].partial]
    kept += [XenReference(f, "registered page", n) for f, n in image.registered.items()]
    kept += [XenReference(f, "descriptor table", n) for f, n in image.descriptors.items()
             if f in views and is_domain(views[f].owner)]
    held = out.state.maps["xen_held"]
    for r in kept:
        held[r.mfn] = held[r.mfn] + r.typed
    for place, f in image.gdt.items():      # these the state has a map for
        out.state.maps["has_gdt"][place], out.state.maps["gdt"][place] = True, f
        held[f] = held[f] - 1
    unfinished = [XenReference(f, "unfinished table", 1, 1) for f in image.left if views[f].partial]
    for r in unfinished:                    # what the vCPU has in hand
        out.state.maps["held_type"][r.mfn] = out.state.maps["held"][r.mfn] = 1
    kept += unfinished
    out.references += sorted(references + kept, key=lambda r: (r.mfn, r.kind))


# --- words -------------------------------------------------------------------------------------------------------------------

def add_words(out: Imported, image: Image, views: dict[int, FrameView], f: int, words: Iterable[int]) -> None:
    """The words of a frame; of a table, those entries that the specification has words for."""
    v = views.get(f)
    put, p = out.state.maps["word"], out.state.profile
    is_root = v is not None and v.type == p.root and v.type_count > 0
    for i, w in enumerate(words):
        if w and v is not None and L1 <= v.type <= L4 and v.type_count:
            w = entry(out, image, views, v, i, w)
        if is_root and i == p.late_slot and w:
            out.state.maps["opened"][f] = True
        if w or (is_root and p.xen_first <= i <= p.xen_last):   # an empty one of Xen's slots is to be looked at, too
            put[f, i] = w


def entry(out: Imported, image: Image, views: dict[int, FrameView], table: FrameView, i: int, e: int) -> int:
    """An entry as the state has it: as it is, but for what is listed; 0 if it is left out."""
    p: Profile = out.state.profile
    f, kind = table.mfn, table.type
    if kind != L1 or not e & P or table.owner != 0:
        return e
    named = e >> 12 & p.mfn_mask
    to = views.get(named)
    if named >= image.frames or (to is not None and to.owner == DOMID_IO):
        out.unmodelled.append(Unmodelled(f, "device mapping", i, e))
        return 0
    if to is not None and to.owner == DOMID_XEN and to.count and not e & RW:
        out.unmodelled.append(Unmodelled(f, "mapping of Xen's shared frame", i, e))
        return 0
    if e & CACHE:
        out.unmodelled.append(Unmodelled(f, "cache bits", i, e))
        return e & ~CACHE
    return e
