"""A small sound world on which the rules are tried, and the form in which a test says what makes one condition false."""
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from refmodel.audit import audit, contributions, keys_of
from refmodel.boot import publish
from refmodel.state import ConcreteState, as_state
from spec import kernel
from spec.abi import DOMID_XEN, L1, NOBODY, RW, US, WRITABLE, A, D, P
from spec.kernel import CPU, Refused
from spec.profile import PROFILES, Profile
from spec.rules import MODULES
from spec.tables import xen_entry
from spec.vocabulary import DomainSetup, Setup
from spec.x86.paging import Fault

BOSS, ME, OTHER = 0, 1, 2                   # a privileged domain, and two that are not
FULL = P | RW | US | A | D
NO_ENTRIES: Mapping[int, int] = {}


class World:
    """Three domains at rest.  `me` has a chain of tables from `root` (its base, pinned) to `l1`, which maps `data` writable at
    address 0 and `shown` read-only at the next page; and frames in other states of life, by name."""

    def __init__(self, profile: Profile) -> None:
        self.p = profile
        self.s: Any = ConcreteState(profile, frames=64)
        self.next = 16
        self.now = self.s.clock[CPU] = 5
        self.s.cr3_clock[CPU] = 7
        for f in range(4):
            self.s.owner[f] = DOMID_XEN
        publish(as_state(self.s), Setup(profile.name, 64, 4, tuple(DomainSetup(d, 0, 0) for d in (ME, OTHER, BOSS))))
        self.s.privileged[BOSS] = True
        # frames of mine
        self.data = self.new(type=WRITABLE)
        self.shown = self.new(type=WRITABLE)
        self.idle = self.new()
        self.shared = self.new(type=WRITABLE, xen_held=1)
        # my tables, from the leaf up
        self.l1 = below = self.table(L1, {0: self.entry(self.data), 1: self.entry(self.shown, P | US)})
        self.tables = [below]
        for level in range(L1 + 1, profile.root + 1):
            below = self.table(level, {0: self.entry(below)})
            self.tables.append(below)
        self.l2, self.root = self.tables[1], below
        self.s.pinned[self.root] = True
        self.load(ME, self.root)
        self.spare_l1 = self.table(L1, pinned=True)
        self.spare = self.table(profile.root, pinned=True)
        # of others, and of nobody
        self.theirs = self.new(OTHER, type=WRITABLE)
        self.load(OTHER, self.table(profile.root, owner=OTHER))
        self.free = self.new(NOBODY, last_owner=OTHER, stamp=2)
        self.fresh = self.new(NOBODY, last_owner=ME, stamp=self.now)    # released since the last flush
        self.count()

    def new(self, owner: int = ME, **marks: int) -> int:
        """A frame of its own."""
        f, self.next = self.next, self.next + 1
        self.s.owner[f], self.s.term[f] = owner, 1
        if owner != NOBODY:
            self.s.alloc[f] = True
        for name, value in marks.items():
            self.put(name, f, value)
        return f

    def table(self, level: int, entries: Mapping[int, int] = NO_ENTRIES, owner: int = ME, upto: int | None = None,
              **marks: int) -> int:
        """A validated table; with `upto` only so far: in its validation, by a reference in flight."""
        entries = dict(entries)
        f = self.new(owner, type=level, **marks)
        if level == self.p.root:
            entries |= {i: xen_entry(as_state(self.s), f, i) for i in range(self.p.xen_first, self.p.xen_last + 1)}
            if self.p.late_slot >= 0:
                self.s.opened[f] = True
        for i, e in entries.items():
            self.s.word[f, i] = e
        self.s.validated[f] = upto is None
        self.s.upto[f] = self.p.entries if upto is None else upto
        if upto is not None:
            self.s.held_type[f] = 1
        return f

    def entry(self, f: int, bits: int = FULL) -> int:
        """An entry that names a frame."""
        return f << 12 | bits

    def load(self, d: int, f: int) -> None:
        """The base of a domain."""
        self.s.has_base[d], self.s.base[d] = True, f
        if self.p.user_root:
            self.s.has_user[d], self.s.user_base[d] = True, f

    def put(self, name: str, key: Any, value: Any) -> None:
        """Store one value, past all rules."""
        getattr(self.s, name)[key] = value

    def count(self) -> None:
        """Make every count what the references are, and the limits what the pages are, plus one."""
        s = self.s
        keys = keys_of(s)
        n: Any = SimpleNamespace(**contributions(s, keys))
        for (f,) in keys["frame",]:
            k = (f,)
            s.type_count[f] = n.typed_slot[k] + n.base_of[k] + n.user_base_of[k] + s.pinned[f] + s.xen_held[f] + s.held_type[f]
            s.ref_count[f] = s.type_count[f] + n.plain_slot[k] + s.held[f] + s.alloc[f]
            s.linear[f] = n.linear_from[k] - n.linear_to[k]
        for d in (BOSS, ME, OTHER):
            s.pages[d] = n.page_of[d,]
            s.limit[d] = s.pages[d] + 1

    def hold(self, f: int, held: int = 0, held_type: int = 0) -> None:
        """References in flight."""
        self.s.held[f], self.s.held_type[f] = held, held_type
        self.count()

    def unsound(self) -> set[tuple[str, tuple[int, ...]]]:
        """The rules that the world breaks, and where."""
        return {(v.rule, v.key) for v in audit(self.s)}


@pytest.fixture(params=PROFILES, ids=str)
def world(request: pytest.FixtureRequest) -> World:
    """A sound world of each profile."""
    return World(PROFILES[request.param])


@pytest.fixture
def worlds() -> Callable[[str], World]:
    """Sound worlds, by the name of the profile."""
    return lambda name: World(PROFILES[name])


# --- trials ------------------------------------------------------------------------------------------------------------------
# A test module says, for each transition, how all its conditions come true (`ready`: the arguments) and what then makes exactly
# one of them false:        TRIALS = [(take_ref, lambda w: {...}, {"REF-1.1": lambda w, a: a.update(d=OTHER), ...}), ...]
# and what only one profile has, by conjunct, by transition or by what makes ready:    ONLY = {"load_user_base": "xen-4.17", ...}

Ready = Callable[[World], dict[str, Any]]
Break = Callable[[World, dict[str, Any]], object]


@dataclass(frozen=True)
class Trial:
    """One transition on one profile, with all its conditions true, or with one made false."""
    profile: Profile
    function: Callable[..., None]
    ready: Ready
    conjunct: str = ""
    spoil: Break = lambda w, a: None

    def prepare(self) -> tuple[World, dict[str, Any]]:
        """The world and the arguments."""
        w = World(self.profile)
        args = self.ready(w)
        self.spoil(w, args)
        return w, args

    def refuses(self) -> None:
        """The false condition refuses, and nothing was stored."""
        w, args = self.prepare()
        mark = w.s.mark()
        with pytest.raises(Refused) as refusal:
            self.function(w.s, **args)
        assert refusal.value.rule == self.conjunct
        assert w.s.mark() == mark

    def false_conditions(self) -> set[str]:
        """All conditions that are false, if none of them refuses."""
        w, args = self.prepare()
        with tolerant() as false, suppress(Fault):
            self.function(w.s, **args)
        return false

    def does(self) -> World:
        """With all conditions true, it is done, and stores something."""
        w, args = self.prepare()
        mark = w.s.mark()
        self.function(w.s, **args)
        assert w.s.mark() > mark
        return w


@contextmanager
def tolerant() -> Iterator[set[str]]:
    """While it lasts, a condition that is false is noted and does not refuse."""
    false: set[str] = set()

    def note(condition: bool, rule: str) -> None:
        if not condition:
            false.add(rule)
    with pytest.MonkeyPatch.context() as patch:
        for module in MODULES:
            if getattr(module, "require", None) is kernel.require:
                patch.setattr(module, "require", note)
        yield false


def trials_of(module: ModuleType) -> tuple[list[Trial], list[Trial]]:
    """The trials of a test module: those that are done, and those that are refused."""
    only: dict[str, str] = getattr(module, "ONLY", {})
    done, refused = [], []
    for profile in PROFILES.values():
        for function, ready, breaks in getattr(module, "TRIALS", ()):
            where = only.get(ready.__name__, only.get(function.__name__, profile.name))
            if profile.name in where:
                done.append(Trial(profile, function, ready))
            refused += [Trial(profile, function, ready, conjunct, spoil) for conjunct, spoil in breaks.items()
                        if profile.name in only.get(conjunct, where)]
    return done, refused


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """The trials of the test's module."""
    done, refused = trials_of(metafunc.module)
    if "done" in metafunc.fixturenames:
        metafunc.parametrize("done", done, ids=lambda t: f"{t.profile.name}-{t.function.__name__}")
    if "refused" in metafunc.fixturenames:
        metafunc.parametrize("refused", refused, ids=lambda t: f"{t.profile.name}-{t.function.__name__}-{t.conjunct}")


@pytest.fixture
def all_trials() -> tuple[list[Trial], list[Trial]]:
    """The trials of all test modules of this folder."""
    done, refused = [], []
    for file in sorted(Path(__file__).parent.glob("test_*.py")):
        spec = spec_from_file_location(f"trials_of_{file.stem}", file)
        assert spec
        assert spec.loader
        module = module_from_spec(spec)
        spec.loader.exec_module(module)
        more = trials_of(module)
        done += more[0]
        refused += more[1]
    return done, refused
