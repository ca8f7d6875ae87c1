"""The form of a rule: transitions, predicates, invariants, theorems, their registry, and the tally of what was decided.

A *transition* is a guard (`require` lines) and then an effect, with no loop: a refusal leaves no trace.  A *predicate* is a pure
yes-or-no (or small) function that rules and invariants share.  An *invariant* is a pointwise predicate; its parameters' kinds say
what it ranges over.  A *theorem* follows from the invariants.  All of them run alike on ints and on symbolic terms.
"""
import hashlib
import inspect
import re
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any, Final, NewType, Protocol, TypeVar

from spec.profile import Profile

Mfn = NewType("Mfn", int)                   # machine frame number
DomId = NewType("DomId", int)
Index = NewType("Index", int)               # of a word in a frame, of an entry in a table
Vpn = NewType("Vpn", int)                   # virtual page number
Tag = NewType("Tag", int)                   # what a TLB entry is found by: 2 * vpn + (1 for a fetch)
FrameType = NewType("FrameType", int)       # a page table's type is its level

CPU: Final = 0                              # the one processor


class Refused(Exception):
    """A guard did not hold; `rule` is the conjunct's id."""

    def __init__(self, rule: str) -> None:
        super().__init__(rule)
        self.rule = rule


# --- the state: named maps, declared once ------------------------------------------------------------------------------------
# map -> (kinds of the key, kind of the value).  An absent key has the neutral value of its kind: 0, False, nobody (dom),
# all ones (pfn).  Kinds of keys are the strata by which invariants are instantiated: slots lead to frames, frames lead nowhere.
SCHEMA: Final[dict[str, tuple[tuple[str, ...], str]]] = {
    "owner":       (("frame",), "dom"),
    "type":        (("frame",), "type"),
    "type_count":  (("frame",), "count"),
    "ref_count":   (("frame",), "count"),   # typed references, plain ones, and the owner's own
    "alloc":       (("frame",), "bool"),    # the owner's own reference
    "validated":   (("frame",), "bool"),    # every entry was checked and holds its reference
    "pinned":      (("frame",), "bool"),
    "upto":        (("frame",), "index"),   # entries [0, upto) were checked and hold their references
    "linear":      (("frame",), "count"),   # > 0: linear entries to others; < 0: linear uses by others
    "opened":      (("frame",), "bool"),    # the root table was loaded as a base since it was checked: its late slot is filled
    "held":        (("frame",), "count"),   # tokens: plain references in flight
    "held_type":   (("frame",), "count"),   # tokens: typed references in flight
    "xen_held":    (("frame",), "count"),   # typed references that Xen itself keeps (shared_info,
                                            # descriptor tables)
    "stamp":       (("frame",), "count"),   # the clock when the typed references, or the owner, were lost
    "gone":        (("frame",), "count"),   # ghost: that clock plus 1, when the validated mark was lost
    "last_owner":  (("frame",), "dom"),
    "term":        (("frame",), "count"),   # how often the frame was handed out
    "lent":        (("dom", "frame"), "count"),     # the term in which a privileged domain lent the frame
    "word":        (("frame", "index"), "word"),
    "xen_word":    (("dom", "index"), "word"),  # what Xen keeps in its slots of a domain's root tables (never written)
    "m2p":         (("frame",), "pfn"),
    "privileged":  (("dom",), "bool"),
    "pages":       (("dom",), "count"),     # frames that count against the limit
    "limit":       (("dom",), "count"),
    "has_base":    (("dom",), "bool"),
    "base":        (("dom",), "frame"),     # the root table (4.17: the kernel's)
    "has_user":    (("dom",), "bool"),
    "user_base":   (("dom",), "frame"),     # 4.17: the root table of user mode
    "ldt_base":    (("dom",), "word"),
    "ldt_entries": (("dom",), "index"),
    "has_ldt":     (("dom", "page"), "bool"),  # page n of the LDT was checked, and Xen has it mapped for the processor
    "ldt":         (("dom", "page"), "frame"),
    "has_gdt":     (("dom", "page"), "bool"),  # page n of the GDT is the domain's; without page 0 it has Xen's default one
    "gdt":         (("dom", "page"), "frame"),
    "gdt_entries": (("dom",), "index"),
    "filled":      (("frame",), "index"),   # words of Xen's own descriptors that are in a GDT's first page so far
    "xen_descriptor": (("index",), "word"), # these words, by their place (never written)
    "fetched":     (("dom", "selector"), "desc"),   # what the processor read in a table when it last looked a selector up
    "selector":    (("dom", "reg"), "selector"),    # segment registers, by the manual's numbers: what was loaded,
    "segment":     (("dom", "reg"), "desc"),        # and the descriptor that the processor found; 0: unusable
    "kernel_ss":   (("dom",), "selector"),  # the stack segment for entering ring 1
    "kernel_sp":   (("dom",), "word"),
    "task_switched": (("dom",), "bool"),    # the guest's own CR0.TS
    "trap_cs":     (("dom", "vector"), "selector"),     # the guest's handler of a vector
    "trap_ip":     (("dom", "vector"), "word"),
    "trap_flags":  (("dom", "vector"), "index"),
    "fast_trap":   (("dom",), "vector"),    # the vector whose handler has a gate of its own; 0: none
    "debug":       (("dom", "reg"), "word"),        # debug registers
    "clock":       (("cpu",), "count"),     # number of whole TLB flushes
    "cr3_clock":   (("cpu",), "count"),     # number of flushes that spare global entries, whole ones included
    "tlb":         (("dom", "tag"), "word"),    # a cached translation: frame and combined rights as an entry; 0: none
    "tlb_clock":   (("dom", "tag"), "count"),
    "tlb_cr3":     (("dom", "tag"), "count"),
    "walk":        (("dom", "tag"), "word"),    # a walk on its way (also: a paging-structure cache): table and rights
    "walk_level":  (("dom", "tag"), "index"),   # the level of that table
    "walk_clock":  (("dom", "tag"), "count"),
}


class State(Protocol):
    """The maps of SCHEMA.  Outside a transition it is read-only, by construction of the proofs."""
    profile: Profile
    owner: MutableMapping[Mfn, DomId]
    type: MutableMapping[Mfn, FrameType]
    type_count: MutableMapping[Mfn, int]
    ref_count: MutableMapping[Mfn, int]
    alloc: MutableMapping[Mfn, bool]
    validated: MutableMapping[Mfn, bool]
    pinned: MutableMapping[Mfn, bool]
    upto: MutableMapping[Mfn, Index]
    linear: MutableMapping[Mfn, int]
    opened: MutableMapping[Mfn, bool]
    held: MutableMapping[Mfn, int]
    held_type: MutableMapping[Mfn, int]
    xen_held: MutableMapping[Mfn, int]
    stamp: MutableMapping[Mfn, int]
    gone: MutableMapping[Mfn, int]
    last_owner: MutableMapping[Mfn, DomId]
    term: MutableMapping[Mfn, int]
    lent: MutableMapping[tuple[DomId, Mfn], int]
    word: MutableMapping[tuple[Mfn, Index], int]
    xen_word: MutableMapping[tuple[DomId, Index], int]
    m2p: MutableMapping[Mfn, int]
    privileged: MutableMapping[DomId, bool]
    pages: MutableMapping[DomId, int]
    limit: MutableMapping[DomId, int]
    has_base: MutableMapping[DomId, bool]
    base: MutableMapping[DomId, Mfn]
    has_user: MutableMapping[DomId, bool]
    user_base: MutableMapping[DomId, Mfn]
    ldt_base: MutableMapping[DomId, int]
    ldt_entries: MutableMapping[DomId, Index]
    has_ldt: MutableMapping[tuple[DomId, Index], bool]
    ldt: MutableMapping[tuple[DomId, Index], Mfn]
    has_gdt: MutableMapping[tuple[DomId, Index], bool]
    gdt: MutableMapping[tuple[DomId, Index], Mfn]
    gdt_entries: MutableMapping[DomId, Index]
    filled: MutableMapping[Mfn, Index]
    xen_descriptor: MutableMapping[Index, int]
    fetched: MutableMapping[tuple[DomId, Index], int]
    selector: MutableMapping[tuple[DomId, Index], Index]
    segment: MutableMapping[tuple[DomId, Index], int]
    kernel_ss: MutableMapping[DomId, Index]
    kernel_sp: MutableMapping[DomId, int]
    task_switched: MutableMapping[DomId, bool]
    trap_cs: MutableMapping[tuple[DomId, Index], Index]
    trap_ip: MutableMapping[tuple[DomId, Index], int]
    trap_flags: MutableMapping[tuple[DomId, Index], Index]
    fast_trap: MutableMapping[DomId, Index]
    debug: MutableMapping[tuple[DomId, Index], int]
    clock: MutableMapping[int, int]
    cr3_clock: MutableMapping[int, int]
    tlb: MutableMapping[tuple[DomId, Tag], int]
    tlb_clock: MutableMapping[tuple[DomId, Tag], int]
    tlb_cr3: MutableMapping[tuple[DomId, Tag], int]
    walk: MutableMapping[tuple[DomId, Tag], int]
    walk_level: MutableMapping[tuple[DomId, Tag], int]
    walk_clock: MutableMapping[tuple[DomId, Tag], int]

    def absent(self, f: Mfn, first: int, end: int) -> bool:
        """No entry of f in [first, end) is present: a quantified read, for empty stretches of a page table."""

    def blank(self, f: Mfn, first: int, end: int) -> bool:
        """Every word of f in [first, end) is 0: the other quantified read, for empty stretches of a table of descriptors."""


# --- the registry ------------------------------------------------------------------------------------------------------------

@dataclass(frozen=True, slots=True)
class Conjunct:
    """One `require` line: its id and its English sentence."""
    id: str
    text: str
    line: int


@dataclass(frozen=True, slots=True)
class Rule:
    """One citable rule.  `kind`: transition, guard, invariant, count, theorem, flow (of information), or check (an order of
    checks in the model)."""
    id: str
    kind: str
    sentence: str
    source: str
    name: str
    file: str
    line: int
    fingerprint: str                        # of the rule's text: a citation shows when the rule has changed since
    conjuncts: tuple[Conjunct, ...]
    keys: tuple[str, ...] = ()
    function: Callable[..., Any] = field(compare=False, repr=False, default=print)


RULES: Final[dict[str, Rule]] = {}
HELD: Final[dict[str, int]] = {}            # conjunct -> how often it was decided true
FAILED: Final[dict[str, int]] = {}          # conjunct -> how often it was decided false
CONJUNCT_RULE: Final[dict[str, str]] = {}

_REQUIRE = re.compile(r'"([A-Z][A-Z0-9]*-\d+\.\d+)"[^#\n]*\)\s*#\s*(.+)')
F = TypeVar("F", bound=Callable[..., Any])


def require(condition: Any, rule: str) -> None:
    """Refuse, naming the conjunct, unless the condition holds."""
    if condition:
        HELD[rule] += 1
    else:
        FAILED[rule] += 1
        raise Refused(rule)


def put(to: MutableMapping[Any, Any], key: Any, value: Any) -> None:
    """Store a value, unless it is there already: what the prover takes for a plain store, without a branch."""
    if to[key] != value:
        to[key] = value


def register(id: str, kind: str, source: str, fn: Callable[..., Any], keys: tuple[str, ...] = ()) -> None:
    """Enter a rule; its sentence is the first one of its docstring, its conjuncts are its commented `require` lines."""
    lines, first = inspect.getsourcelines(fn)
    found = (( _REQUIRE.search(text), first + n) for n, text in enumerate(lines))
    conjuncts = tuple(Conjunct(m.group(1), m.group(2).strip(), line) for m, line in found if m)
    if id in RULES:
        raise ValueError(f"two rules are called {id}")
    doc = inspect.cleandoc(fn.__doc__ or "")
    if not doc:
        raise ValueError(f"{id} has no sentence")
    text = "".join(lines)
    file = inspect.getfile(fn).replace("\\", "/")
    for c in conjuncts:
        if c.id in HELD:
            raise ValueError(f"two conjuncts are called {c.id}")
        HELD[c.id] = FAILED[c.id] = 0
        CONJUNCT_RULE[c.id] = id
    RULES[id] = Rule(id, kind, doc.split("\n\n")[0].replace("\n", " "), source, fn.__name__, "/".join(file.split("/")[-3:]) if
                     "/x86/" in file else "/".join(file.split("/")[-2:]), first,
                     hashlib.sha256(text.encode()).hexdigest()[:12], conjuncts, keys, fn)


def transition(id: str, *, source: str, keys: tuple[str, ...]) -> Callable[[F], F]:
    """A step of the machine; `keys` are the kinds of its arguments after the state, the domain it acts for first: one of the
    machine's, so neither nobody nor Xen."""
    def enter(fn: F) -> F:
        register(id, "transition", source, fn, keys)
        return fn
    return enter


def guard(id: str, *, source: str) -> Callable[[F], F]:
    """Conjuncts that several transitions share."""
    def enter(fn: F) -> F:
        register(id, "guard", source, fn)
        return fn
    return enter


def check(id: str, *, source: str) -> Callable[[F], F]:
    """An order of checks of a hypercall or an access, in the model."""
    def enter(fn: F) -> F:
        register(id, "check", source, fn)
        return fn
    return enter


def predicate(fn: F) -> F:
    """A pure function of the state that the proof engine may merge into one formula."""
    fn.is_predicate = True  # type: ignore[attr-defined]
    return fn


def invariant(id: str, *, keys: tuple[str, ...], source: str) -> Callable[[F], F]:
    """A predicate that holds at every key of these kinds, after every transition."""
    def enter(fn: F) -> F:
        register(id, "invariant", source, fn, keys)
        return predicate(fn)
    return enter


def counting(id: str, *, keys: tuple[str, ...], source: str) -> Callable[[F], F]:
    """An invariant that compares a count with ghost sums: fn(s, key, n), n by the name of the contribution."""
    def enter(fn: F) -> F:
        register(id, "count", source, fn, keys)
        return fn
    return enter


def theorem(id: str, *, keys: tuple[str, ...], source: str) -> Callable[[F], F]:
    """A statement that follows from the invariants."""
    def enter(fn: F) -> F:
        register(id, "theorem", source, fn, keys)
        return predicate(fn)
    return enter


def flow(id: str, *, source: str) -> Callable[[F], F]:
    """A condition of noninterference on what one step looks up and stores."""
    def enter(fn: F) -> F:
        register(id, "flow", source, fn)
        return predicate(fn)
    return enter
