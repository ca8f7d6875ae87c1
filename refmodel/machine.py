"""A machine of the model: one action after another, each with its outcome and the rule that refused it."""
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from refmodel.choices import Choices
from refmodel.guest import ModelError, fetch_byte, load, older, store, store_words
from refmodel.observation import Difference, Mirror
from refmodel.references import Error, give_up
from refmodel.state import ConcreteState, as_state
from spec.abi import NOBODY, A
from spec.kernel import CPU, DomId, Mfn, Refused, Vpn
from spec.vocabulary import (
    RETF,
    Action,
    Execute,
    Hypercall,
    Load,
    LoadSegment,
    Observation,
    Outcome,
    Setup,
    Store,
    Transfer,
)
from spec.x86.paging import Fault, require_segment, root_of, walk
from spec.x86.tlb import flush, is_live, tag_of


@dataclass(frozen=True, slots=True)
class Mark:
    """A moment of a machine's run."""
    log: int                                # of the state's undo log
    current: int | None
    released: frozenset[int]
    handed_out: frozenset[int]
    mode: bool


class Machine:
    """Common to both profiles: guest accesses, domain switches, undo.  A profile adds the hypercalls.

    `s` is the state (read-only here: transitions write it), `refusals` the conjuncts that refused during the last step,
    `choices` the looseness met.  Frames from `end` on are free at the start; if not given: those behind the setup's domains.
    """
    window: ClassVar[int] = 0                               # where the machine-to-physical words are published

    def __init__(self, setup: Setup, state: ConcreteState, end: int | None = None) -> None:
        self.setup, self.profile, self.concrete = setup, state.profile, state
        self.s = as_state(state)
        self.choices = Choices()
        self.refusals: list[str] = []
        self.domids = frozenset(d.domid for d in setup.domains)
        self.pool_start = max(d.first + d.pages + 1 for d in setup.domains)
        while self.pool_start < setup.frames and self.s.owner[Mfn(self.pool_start)] != NOBODY:
            self.pool_start += 1            # a real machine has more in use behind them
        self.current: int | None = None
        self.mode = False                   # the processor is in user mode, where that has tables of its own
        self.flush_due = False
        self.released: set[int] = set()
        self.handed_out: set[int] = set()
        self.last_mark = frozenset[int](), frozenset[int]()    # these two at the last mark: in between they only grow
        self.hint: Outcome | None = None
        self.chose: list[int] = []
        self.did: list[tuple[str, str]] = []    # commands of the last step by name, and what came of each
        self.pool_size = setup.frames - setup.xen_frames - sum(d.pages + 1 for d in setup.domains)
        self.shared = {d.domid: d.first + d.pages for d in setup.domains}   # each domain's shared_info
        self.uncounted = dict.fromkeys(self.shared, 1)                      # its frames that its reservation does not count
        self.mirror = Mirror(state, self.domids, setup.xen_frames, self.pool_start if end is None else end)

    # --- the outside ---

    def reset(self) -> None:
        """Back to the start of the machine; the cost is that of what changed."""
        self.concrete.rollback(0)
        self.current = None
        self.mode = False
        self.flush_due = False              # a hypercall that ended in a ModelError leaves it behind
        self.refusals = []
        self.released.clear()
        self.handed_out.clear()
        self.last_mark = frozenset(), frozenset()

    def mark(self) -> "Mark":
        """The present moment, to rewind to."""
        if len(self.released) != len(self.last_mark[0]) or len(self.handed_out) != len(self.last_mark[1]):
            self.last_mark = frozenset(self.released), frozenset(self.handed_out)
        return Mark(self.concrete.mark(), self.current, *self.last_mark, self.mode)

    def rewind(self, mark: "Mark") -> None:
        """Back to a moment of this run."""
        self.concrete.rollback(mark.log)
        self.current, self.flush_due, self.refusals, self.mode = mark.current, False, [], mark.mode
        if len(self.released) != len(mark.released) or len(self.handed_out) != len(mark.handed_out):
            self.released, self.handed_out = set(mark.released), set(mark.handed_out)
        self.last_mark = mark.released, mark.handed_out

    def step(self, action: Action, hint: Outcome | None = None) -> Outcome:
        """Perform one action.  `hint` is the outcome on another machine: it resolves what only that machine knows."""
        d = action.dom
        self.refusals, self.hint, self.chose, self.did = [], hint, [], []
        try:
            if d != self.current:
                self._switch(d)
            if isinstance(action, Hypercall):
                self.enter_mode(DomId(d), False)
                for va, words in action.data:
                    self.store_data(DomId(d), va, words)
                value = self.call(DomId(d), action)
                return Outcome(value, chose=tuple(self.chose)) if self.chose else Outcome(value)
            if not isinstance(action, Load | Store | Execute | LoadSegment):
                return self.transfer(action)
            self.enter_mode(DomId(d), action.user)
            if isinstance(action, LoadSegment):
                return self.load_segment(action)
            if isinstance(action, Load):
                told = hint.value if hint is not None and hint.vector < 0 else None
                value = load(self.s, self.choices, self, DomId(d), action.va, action.user, told)
                return Outcome(value if told is None or value == told else self.marked(d, action, value, told))
            if isinstance(action, Store):
                self.store_word(DomId(d), action.va, action.value, action.user)
                return Outcome()
            return self._execute(action)
        except Fault as fault:
            return Outcome(0, fault.vector, fault.error, fault.address)
        except ModelError as e:
            e.action = action
            raise

    def legal_execute(self, d: int, va: int, user: bool = False) -> bool:
        """Whatever translation the processor uses for a fetch at `va`, it faults or finds a far return."""
        try:
            require_segment(self.s, va, 1)
        except Fault:
            return True
        frames = []
        for fetch in (True, False):         # a TLB may be unified
            first = tag_of(Vpn(va >> 12), fetch)
            frames += [self.s.tlb[DomId(d), tag] >> 12 & self.profile.mfn_mask for tag in (first, older(first))
                       if is_live(self.s, DomId(d), tag) and d == self.current]
        f = self.walk(d, va, user)
        if f is not None:
            frames.append(f)
        return all(self._byte(f, va) == RETF for f in frames)

    def legal_transfer(self, action: Transfer) -> bool:
        """Whatever translations the processor uses, it executes the instruction that was stored."""
        return True

    def walk(self, d: int, va: int, user: bool = False, write: bool = False) -> int | None:
        """The frame that the present tables give, or None if they refuse."""
        if user and self.profile.user_root and not self.s.has_user[DomId(d)]:
            return None
        try:
            require_segment(self.s, va, 1)
            e, _ = walk(self.s, root_of(self.s, DomId(d), user), va, user or not self.profile.ring1_kernel, write, False)
        except Fault:
            return None
        return e >> 12 & self.profile.mfn_mask

    def base_of(self, d: int) -> int:
        """The frame of a domain's root table."""
        return self.s.base[DomId(d)]

    def published(self, va: int) -> int | None:
        """The machine-to-physical word at `va`, or None outside the window."""
        n = (va - self.window) // self.profile.word_bytes
        per_page = self.profile.entries
        if 0 <= n < -(-self.setup.frames // per_page) * per_page:
            return self.s.m2p[Mfn(n)]
        return None

    def adopt_marks(self, other: Observation) -> None:
        """Take over accessed bits that another machine set early.

        This is the one store past the transitions.  What happened was a walk (TLB-2, TLB-3), but at some earlier step, of which
        the model learns only now, when the way to the entry may be another or gone: a walk made now could not set the bit, and a
        rule that sets it in any entry would let the processor do more than it can.  No guard and no invariant asks for the bit.
        """
        for key, word in self.mirror.early_marks(other):
            self.concrete.words[key] = word

    def observe(self) -> Observation:
        """What a target in this state would show."""
        return self.mirror.observe(self.mirror.extent(self.handed_out))

    def compare(self, other: Observation, full: bool = True) -> list[Difference]:
        """What another machine shows differently; without `full`, memory only in the frames that the model changed."""
        return self.mirror.compare(other, self.mirror.extent(self.handed_out), self.choices, full)

    # --- the inside ---

    def hypercall(self, d: DomId, nr: int, args: tuple[int, ...]) -> int:
        """One hypercall by the kernel of d."""
        raise NotImplementedError

    def load_segment(self, action: LoadSegment) -> Outcome:
        """A guest loads a segment register."""
        raise NotImplementedError

    def transfer(self, action: Transfer) -> Outcome:
        """Xen lets a guest run with some registers, and it executes one instruction."""
        raise NotImplementedError

    def marked(self, d: int, action: Load, value: int, told: int) -> int:
        """What a load reads: what another machine read if that is an entry of a table which has its accessed bit earlier."""
        f = self.walk(d, action.va, action.user) if told == value | A and action.va % self.profile.word_bytes == 0 else None
        if f is None or not (self.s.type_count[Mfn(f)] and 0 < self.s.type[Mfn(f)] <= self.profile.root):
            return value
        self.choices.forgiven["accessed-early"] += 1
        return told

    def store_data(self, d: DomId, va: int, words: tuple[int, ...]) -> None:
        """The kernel stores consecutive words; if Xen has to perform one, then each by itself."""
        try:
            store_words(self.s, self.choices, d, va, words)
        except Fault:
            if self.profile.guest_end:
                raise
            for n, word in enumerate(words):
                self.store_word(d, va + self.profile.word_bytes * n, word, False)

    def store_word(self, d: DomId, va: int, value: int, user: bool) -> None:
        """A guest's store; one of the kernel's that faults may be one that Xen performs."""
        try:
            store(self.s, self.choices, d, va, value, user)
        except Fault as fault:
            if user or not self.performed(d, va, value, fault):
                raise

    def performed(self, d: DomId, va: int, value: int, fault: Fault) -> bool:
        """Xen performs a store of the kernel that faulted: not the Xen of 2003."""
        return False

    def attempt(self, step: Callable[..., Any], *args: Any) -> Any:
        """One entry of a batch: refused, it leaves no trace."""
        mark = self.concrete.mark()
        try:
            return step(*args)
        except (Refused, Error) as refusal:
            clock = self.s.clock[CPU]
            give_up(self.s, mark)
            if clock != self.s.clock[CPU] and self.choices.choose("refused-flush", 2) == 0:
                flush(self.s, DomId(self.current or 0))     # it happened on the way, and stays (W-14)
            self.note(refusal)
            raise

    def granted(self, errno: int, step: Callable[..., Any], *args: Any) -> None:
        """A step whose refusal is the hypercall's error."""
        try:
            self.attempt(step, *args)
        except Refused as refused:
            error = Error(errno, refused.rule)
            error.noted = True
            raise error from None

    def note(self, refusal: Refused | Error) -> None:
        """Remember once which conjunct refused."""
        if not isinstance(refusal, Error):
            self.refusals.append(refusal.rule)
        elif not refusal.noted:
            refusal.noted = True
            self.refusals.append(refusal.rule)

    def call(self, d: DomId, action: Hypercall) -> int:
        """A hypercall, and the way back: all flushes that it asked for or needed are as one, before the guest runs (W-17)."""
        clock = self.s.clock[CPU]
        value = self.hypercall(d, action.nr, action.args)
        if self.flush_due or self.s.clock[CPU] != clock:
            self.flush_due = False
            flush(self.s, d)
        return value

    def enter_mode(self, d: DomId, user: bool) -> None:
        """Kernel or application: on x86-32 they share their tables, and there is nothing to do."""

    def free_frames(self) -> int:
        """The size of the pool: what it was at boot, and what came and went since."""
        owner = self.s.owner
        touched = self.released | self.handed_out
        return self.pool_size + sum((owner[Mfn(f)] == NOBODY) - self.mirror.was_free(f) for f in touched)

    def next_free(self) -> Mfn:
        """The frame to hand out: the one that the other machine chose, else the lowest free one."""
        self.choices.counts["allocation"] += 1
        n = len(self.chose)
        if self.hint is not None and n < len(self.hint.chose):
            return Mfn(self.hint.chose[n])
        owner = self.s.owner
        for f in sorted(self.released):
            if owner[Mfn(f)] == NOBODY:
                return Mfn(f)
        return Mfn(next(f for f in range(self.pool_start, self.setup.frames) if owner[Mfn(f)] == NOBODY))

    def _switch(self, d: int) -> None:
        if d not in self.domids:
            raise ModelError(f"there is no domain {d}")
        self.current = d
        flush(self.s, DomId(d))             # W-18

    def _execute(self, action: Execute) -> Outcome:
        byte = fetch_byte(self.s, self.choices, self, DomId(action.dom), action.va, action.user)
        if byte != RETF:
            raise ModelError(f"domain {action.dom} would execute byte {byte:#x} at {action.va:#x}, which is no far return")
        return Outcome()

    def _byte(self, f: int, va: int) -> int:
        size = self.profile.word_bytes
        return self.concrete.row(f).get((va & 0xFFF) // size, 0) >> 8 * (va % size) & 0xFF
