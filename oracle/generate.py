"""Generates programs: random, but led by the model's state to the edge between valid and invalid.

A program is made of *moves*: small functions, chosen by weight, that look at the state which the model has reached and give the
next few actions.  Uniformly random actions test little; moves keep a domain alive, work on a few frames and addresses so that
actions meet, succeed more often than not, and then miss by one bit, one count, one slot or one byte.
"""
import random
from bisect import bisect
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Final, TypeVar

from oracle.engine_2003 import is_engines
from oracle.ground import OUTSIDE, Ground
from refmodel import Machine, ModelError
from spec.abi import PAGE_SIZE, WRITABLE, Xen417, Xen2003
from spec.profile import PROFILES
from spec.vocabulary import KILLED, Action, DomainSetup, Hypercall, Outcome, Setup, Transfer

T = TypeVar("T")
CODE_PAGE: Final = 1                            # full of far returns at boot
BUFFER_PAGES: Final = (2, 3)                    # hypercall arguments are written here; moves leave their mappings alone
SWITCH: Final = 0.05                            # how often another domain takes over
WANDER: Final = 0.06                            # how often a page outside the working set is taken


@dataclass(frozen=True, slots=True)
class Domain:
    """A domain as the generator sees it: where its memory is at boot, and which of its pages a program works on."""
    dom: int
    first: int                                  # frames [first, end) are its pages, end is its shared_info
    end: int
    pages: int
    home: int                                   # page i is at home + 4096 i
    tables: int                                 # its page tables are its last pages, from this one on
    spares: tuple[int, ...]                     # pages that become page tables
    hot: tuple[int, ...]                        # pages of data that are mapped here and there
    windows: tuple[int, ...]                    # page addresses where nothing is mapped at boot, under the boot tables
    others: tuple[int, ...]                     # frames of other domains: data, tables, shared_info
    odd: tuple[int, ...]                        # frames at some edge: tables, shared, foreign, free, Xen's, none at all

    def va_of(self, frame: int) -> int:
        """The address at which one of its frames is mapped at boot."""
        return self.home + (frame - self.first << 12)


def tables_of(setup: Setup, pages: int) -> int:
    """How many page tables a domain has at boot."""
    profile = PROFILES[setup.profile]
    lowest = -(-(pages + 1) // profile.entries)
    return lowest + 1 if profile.root == 2 else lowest + -(-lowest // profile.entries) + 2


def describe_domain(setup: Setup, d: DomainSetup) -> Domain:
    """The parts that a domain's pages and addresses play in programs."""
    profile = PROFILES[setup.profile]
    tables, home = d.pages - tables_of(setup, d.pages), Xen2003.BASE if profile.root == 2 else Xen417.BASE
    data = [p for p in range(tables) if p not in (CODE_PAGE, *BUFFER_PAGES)]
    entries = profile.entries
    others = tuple(o.first + page for o in setup.domains if o is not d
                   for page in (0, min(12, o.pages - 1), o.pages - 2, o.pages - 1, o.pages))
    free = max(o.first + o.pages + 1 for o in setup.domains)
    odd = (*range(d.first + tables, d.first + d.pages + 1), d.first + d.pages - 1, d.first + d.pages - 1, *others, *others,
           free, min(free + 1, setup.frames - 1), setup.frames - 1, setup.frames, setup.frames + 1, 0, setup.xen_frames - 1,
           profile.mfn_mask)
    last = (d.pages + 1) // entries * entries + entries - 1         # the last slot of the last L1 table of boot
    windows = [d.pages + 1 + i for i in range(7) if d.pages + 1 + i < last] + [last]
    return Domain(d.domid, d.first, d.first + d.pages, d.pages, home, tables, tuple(data[1:7]) or (0,), tuple(data[7:17]) or (0,),
                  tuple(home + (w << 12) for w in windows), others or (free,), odd)


def with_shared(d: Domain, machine: Machine) -> Domain:
    """With the frames of shared_info, which a real machine has elsewhere."""
    return replace(d, odd=(*d.odd, *(f for f in sorted(machine.shared.values()) if f not in d.odd)))


# --- moves -------------------------------------------------------------------------------------------------------------------

FOCUSES: Final = ("memory", "descriptors", "transfers")
FOCUS: Final = 8                                # how many times likelier the moves are that a campaign is about
Move = Callable[["Generator"], Sequence[Action]]
MOVES: Final[dict[str, list[tuple[float, Move]]]] = {name: [] for name in PROFILES}


def move(weight: float, profile: str) -> Callable[[Move], Move]:
    """Enter a move of a profile's programs."""
    def enter(fn: Move) -> Move:
        MOVES[profile].append((weight, fn))
        return fn
    return enter


def about(fn: Move) -> str:
    """What a move is about: each module of them is about one thing."""
    last = fn.__module__.rpartition("_")[2]
    return last if last in FOCUSES else "memory"


Ask = Callable[[Sequence[Action], Action], Outcome]     # an action, after others since the last piece


def hands_out(action: Action) -> bool:
    """The outcome may be frames that the machine chooses."""
    return isinstance(action, Hypercall) and action.nr == Xen417.MEMORY_OP and len(action.args) > 0 and (
        action.args[0] & (1 << Xen417.EXTENT_SHIFT) - 1 in (Xen417.INCREASE, Xen417.POPULATE, Xen417.EXCHANGE))


class Generator:
    """Makes programs for one machine, and drives the machine along; mostly of moves about `focus`, if that is given."""

    def __init__(self, machine: Machine, ground: Ground | None = None, focus: str = "") -> None:
        from oracle import (  # noqa: F401  (they enter their moves, for which they need this module)
            moves_417,
            moves_417_descriptors,
            moves_417_transfers,
            moves_2003,
            moves_2003_descriptors,
            moves_2003_transfers,
        )
        self.machine, self.ground, self.focus = machine, ground, focus
        self.setup: Final = machine.setup
        self.profile: Final = PROFILES[self.setup.profile]
        self.word: Final[Mapping[tuple[int, int], int]] = machine.concrete.maps["word"]
        maps: Mapping[str, Mapping[int, int]] = machine.concrete.maps   # by plain numbers
        self.type, self.type_count, self.ref_count = maps["type"], maps["type_count"], maps["ref_count"]
        self.owner, self.pinned, self.base = maps["owner"], maps["pinned"], maps["base"]
        self.pages, self.limit, self.linear = maps["pages"], maps["limit"], maps["linear"]
        self.domains: Final = tuple(with_shared(describe_domain(self.setup, d), machine) for d in self.setup.domains)
        weighted = MOVES[self.setup.profile]
        self.moves: Final = tuple(fn for _, fn in weighted)
        self.cumulative: Final = list(accumulate(weight * (FOCUS if about(fn) == focus else 1) for weight, fn in weighted))
        self.total: Final = self.cumulative[-1]
        self.use(random.Random(0))

    def use(self, rng: random.Random) -> None:
        """Take random numbers from here, and forget the last program."""
        self.random = rng.random
        self.bits = rng.getrandbits
        self.randbytes = rng.randbytes
        self.d = self.domains[-1]
        self.chosen: list[int] = []             # frames that the machine handed out
        self.declared: Counter[str] = Counter()     # actions that were left out, by the declared difference
        self.commands: Counter[tuple[str, str]] = Counter()     # commands given, by name and by what came of them

    def program(self, rng: random.Random, length: int) -> tuple[list[Action], list[Outcome]]:
        """A program of `length` actions from boot, and what the model makes of it; the machine is left after its end."""
        self.begin(rng)
        return self.more(length)

    def begin(self, rng: random.Random) -> None:
        """Start a program, from boot."""
        self.machine.reset()
        self.machine.choices.begin()
        self.use(rng)
        self.d = self.pick(self.domains)

    def more(self, length: int, ask: Ask | None = None) -> tuple[list[Action], list[Outcome]]:
        """The next `length` actions; `ask` is for the outcomes of those that hand frames out."""
        ground, actions, outcomes = self.ground, list[Action](), list[Outcome]()
        while len(actions) < length:
            for action in self.next_move():
                outcome = self.within(action) if ground is None else self.kept(ground, action, actions, ask)
                if outcome is None:
                    continue
                actions.append(action)
                outcomes.append(outcome)
                self.commands.update(self.machine.did)
                if outcome.chose:
                    self.chosen.extend(outcome.chose)
                if outcome.value == KILLED and ground is not None:
                    return actions, outcomes        # on a real machine that is the end
                if len(actions) == length:
                    break
        return actions, outcomes

    def given(self, wanted: Iterable[Action]) -> tuple[list[Action], list[Outcome]]:
        """Actions from elsewhere, less those that are left out, and what the model makes of them; none hands anything out."""
        actions, outcomes = list[Action](), list[Outcome]()
        for action in wanted:
            outcome = self.machine.step(action) if self.ground is None else self.kept(self.ground, action, actions, None)
            if outcome is not None:
                actions.append(action)
                outcomes.append(outcome)
        return actions, outcomes

    def keeps(self, actions: Iterable[Action]) -> bool:
        """A program from boot has no control transfer that would have been left out."""
        self.machine.reset()
        self.machine.choices.begin()
        return all(self.within(action) is not None for action in actions)

    def within(self, action: Action) -> Outcome | None:
        """Perform an action, but no control transfer that leads out of the vocabulary, or that the engine does otherwise."""
        if not isinstance(action, Transfer):
            return self.machine.step(action)
        mark = self.machine.mark()
        try:
            if self.machine.legal_transfer(action) and not is_engines(self.machine, action):
                return self.machine.step(action)
            return None
        except ModelError:
            self.machine.rewind(mark)
            return None

    def kept(self, ground: Ground, action: Action, before: Sequence[Action], ask: Ask | None) -> Outcome | None:
        """Perform an action, unless it is one that is left out of programs for this target."""
        machine, mark = self.machine, self.machine.mark()
        try:
            reason, outcome = ground.tried(action)
        except ModelError:
            reason, outcome = OUTSIDE, None
        if not reason and not hands_out(action):
            return outcome
        machine.rewind(mark)
        if not reason and ask is not None:
            return machine.step(action, ask(before, action))
        self.declared[reason] += 1
        return None

    def next_move(self) -> Sequence[Action]:
        """The actions of one move, by the domain whose turn it is."""
        r = self.random
        if r() < SWITCH:
            self.d = self.domains[int(r() * len(self.domains))]
        return self.moves[bisect(self.cumulative, r() * self.total)](self)

    # --- choosing

    def pick(self, options: Sequence[T]) -> T:
        """One of them."""
        return options[int(self.random() * len(options))]

    def below(self, n: int) -> int:
        """A number in [0, n)."""
        return int(self.random() * n)

    def any_page(self) -> int:
        """Any page but the buffers."""
        page = int(self.random() * self.d.pages)
        return page if page not in BUFFER_PAGES else 0

    def hot_page(self) -> int:
        """A page of data: of the working set, or now and then any."""
        if self.random() < WANDER:
            return self.any_page()
        hot = self.d.hot
        return hot[int(self.random() * len(hot))]

    def spare_page(self) -> int:
        """A page that may be, or become, a page table."""
        if self.random() < WANDER:
            return self.any_page()
        spares = self.d.spares
        return spares[int(self.random() * len(spares))]

    def odd_frame(self) -> int:
        """A frame number at some edge."""
        if self.chosen and self.random() < 0.1:
            return self.pick(self.chosen)
        odd = self.d.odd
        return odd[int(self.random() * len(odd))]

    def data_frame(self) -> int:
        """A frame of the domain's that can most likely be written."""
        frame = self.d.first + self.hot_page()
        if self.type_count[frame] and self.type[frame] != WRITABLE:
            return self.d.first + self.d.hot[0]
        return frame

    def other(self) -> Domain:
        """Another domain, or the only one."""
        o = self.pick(self.domains)
        return o if o is not self.d else self.domains[self.domains.index(o) - 1]

    def pages_of(self, table: str) -> list[int]:
        """The frames of the GDT or the LDT that are mapped for the processor."""
        maps: Mapping[str, Mapping[tuple[int, int], int]] = self.machine.concrete.maps
        has, frames, dom = maps["has_" + table], maps[table], self.d.dom
        return [frames[dom, n] for n in range(16) if has[dom, n]]

    def buffer(self, words: int) -> int:
        """An address with room for a list: inside a buffer page, sometimes up to its very end."""
        size, r = self.profile.word_bytes, self.random()
        page = self.d.home + (BUFFER_PAGES[r < 0.3] << 12)
        if r > 0.93:
            return page + PAGE_SIZE - size * words
        return page + int(self.random() * 24) * 64

    def list_call(self, nr: int, words: Sequence[int], count: int, *more: int) -> Hypercall:
        """A hypercall on a list that the kernel writes first."""
        at = self.buffer(len(words))
        return Hypercall(self.d.dom, nr, (at, count, *more), ((at, tuple(words)),))
