"""A machine of the model: one action after another, each with its outcome and the rule that refused it."""
from collections.abc import Callable
from typing import Any, ClassVar

from refmodel.choices import Choices
from refmodel.guest import ModelError, fetch_byte, load, store, store_words
from refmodel.observation import Difference, Mirror
from refmodel.references import Error
from refmodel.state import ConcreteState, as_state
from spec.abi import NOBODY
from spec.kernel import CPU, DomId, Mfn, Refused, Vpn
from spec.vocabulary import RETF, Action, Execute, Hypercall, Load, Observation, Outcome, Setup, Store
from spec.x86.paging import Fault, require_segment, root_of, walk
from spec.x86.tlb import flush, is_live, tag_of


class Machine:
    """Common to both profiles: guest accesses, domain switches, undo.  A profile adds the hypercalls.

    `s` is the state (read-only here: transitions write it), `refusals` the conjuncts that refused during the last step,
    `choices` the looseness met.
    """
    window: ClassVar[int] = 0                               # where the machine-to-physical words are published

    def __init__(self, setup: Setup, state: ConcreteState) -> None:
        self.setup, self.profile, self.concrete = setup, state.profile, state
        self.s = as_state(state)
        self.choices = Choices()
        self.refusals: list[str] = []
        self.domids = frozenset(d.domid for d in setup.domains)
        self.pool_start = max(d.first + d.pages + 1 for d in setup.domains)
        self.current: int | None = None
        self.flush_due = False
        self.released: set[int] = set()
        self.handed_out: set[int] = set()
        self.hint: Outcome | None = None
        self.chose: list[int] = []
        self.pool_size = setup.frames - setup.xen_frames - sum(d.pages + 1 for d in setup.domains)
        self.mirror = Mirror(state, self.domids, setup.xen_frames, self.pool_start)

    # --- the outside ---

    def reset(self) -> None:
        """Back to the start of the machine; the cost is that of what changed."""
        self.concrete.rollback(0)
        self.current = None
        self.flush_due = False              # a hypercall that ended in a ModelError leaves it behind
        self.refusals = []
        self.released.clear()
        self.handed_out.clear()

    def step(self, action: Action, hint: Outcome | None = None) -> Outcome:
        """Perform one action.  `hint` is the outcome on another machine: it resolves what only that machine knows."""
        d = action.dom
        self.refusals, self.hint, self.chose = [], hint, []
        try:
            if d != self.current:
                self._switch(d)
            if isinstance(action, Hypercall):
                self.enter_mode(DomId(d), False)
                for va, words in action.data:
                    store_words(self.s, self.choices, DomId(d), va, words)
                value = self.call(DomId(d), action)
                return Outcome(value, chose=tuple(self.chose)) if self.chose else Outcome(value)
            self.enter_mode(DomId(d), action.user)
            if isinstance(action, Load):
                return Outcome(load(self.s, self.choices, self, DomId(d), action.va, action.user,
                                    hint.value if hint is not None and hint.vector < 0 else None))
            if isinstance(action, Store):
                store(self.s, self.choices, DomId(d), action.va, action.value, action.user)
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
        tag = tag_of(Vpn(va >> 12), True)
        if is_live(self.s, DomId(d), tag) and d == self.current:
            frames.append(self.s.tlb[DomId(d), tag] >> 12 & self.profile.mfn_mask)
        f = self.walk(d, va, user)
        if f is not None:
            frames.append(f)
        return all(self._byte(f, va) == RETF for f in frames)

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

    def attempt(self, step: Callable[..., Any], *args: Any) -> Any:
        """One entry of a batch: refused, it leaves no trace."""
        mark = self.concrete.mark()
        try:
            return step(*args)
        except (Refused, Error) as refusal:
            clock = self.s.clock[CPU]
            self.concrete.rollback(mark)
            if clock != self.s.clock[CPU] and self.choices.choose("refused-flush", 2) == 0:
                flush(self.s, DomId(self.current or 0))     # it happened on the way, and stays (W-14)
            self.note(refusal)
            raise

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
