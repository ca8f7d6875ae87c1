"""How Xen 1.2 lets a guest run, and enters its kernel, on the model: events, frames, the failsafe callback (W-45 to W-56)."""
from collections.abc import Callable
from contextlib import suppress

from refmodel.guest import ModelError, demand, store
from refmodel.xen2003_segments import SegmentLoads
from spec.abi import EFAULT, GP, Xen2003
from spec.bounce import (
    MASTER,
    Saved,
    comes_from_outside,
    failsafe_words,
    frame_words,
    handler_flags,
    is_event_due,
    mask_after,
    masks_events,
)
from spec.kernel import DomId, Index, Mfn, check
from spec.rings import CS, DS, ES, FS, GS, SS, enter, fetch, register, registers, reload
from spec.tables import write_data
from spec.x86.descriptors import BIG, RPL, base_of, is_null
from spec.x86.flags import ALL
from spec.x86.paging import Fault
from spec.x86.segments import Registers, Segment, check_fetch, keep, load_data, may_access
from spec.x86.stacks import outer_stack
from spec.x86.transfers import return_target

X = Xen2003
EVENTS, MASK = Index(0), Index(1)           # words of shared_info
DATA = DS, ES, FS, GS
NONE = {0: Segment(0, 0)}                   # no data segment at all


def nothing(selector: int) -> int:
    """A table without descriptors."""
    return 0


def killed(condition: object, rule: str) -> None:
    """Without this Xen cannot go on with the domain."""
    demand(condition, rule, EFAULT)


class Bounces(SegmentLoads):
    """A machine whose Xen enters its guests' kernels."""

    # --- out to the guest ---

    def way_out(self, d: DomId, saved: Saved) -> tuple[Registers, bool]:
        """The registers with which the guest runs, and whether they are others than what was to be restored; Error: killed."""
        due = self.take_events(d)
        if due:
            saved = self.bounce(d, saved, X.EVENT_CALLBACK, frame_words(saved))
        try:
            popped = dict[int, Segment]()
            for selector in (saved.ds, saved.es, saved.fs, saved.gs):
                if selector not in popped:
                    popped[selector] = self.load_in_ring_0(d, selector)
            return self.interrupt_return(d, saved, popped), due
        except Fault:
            return self.failsafe(d, saved), True

    @check("BOUNCE-3", source="xen-2003.md §7.6 (W-47, W-50)")
    def failsafe(self, d: DomId, saved: Saved) -> Registers:
        """A kernel whose registers cannot be restored is told so, with no data segments; if that fails too, it is given up."""
        entered = self.bounce(d, saved, X.FAILSAFE_CALLBACK, failsafe_words(saved))._replace(ds=0, es=0, fs=0, gs=0)
        found = None
        with suppress(Fault):
            found = self.interrupt_return(d, entered, NONE)
        killed(found is not None, "BOUNCE-3.1")     # the callback can be entered
        assert found is not None
        return found

    def interrupt_return(self, d: DomId, saved: Saved, popped: dict[int, Segment]) -> Registers:
        """IRET in ring 0; the data segments were popped before, and those stay that the new ring may have."""
        s = self.s
        if is_null(saved.cs):
            raise Fault(GP, 0)
        code = return_target(self.look_up_for(d), saved.cs, 0)
        good = (saved.ss ^ saved.cs) & RPL == 0         # one that its RPL rules out is not looked up (W-52)
        stack = outer_stack(self.look_up_for(d) if good else nothing, saved.ss, saved.cs & RPL)
        check_fetch(code.q, saved.eip)
        self.require_wide(stack)
        if code != register(s, d, CS) or stack != register(s, d, SS):
            enter(s, d, saved.cs, saved.ss)
        self.mark_loaded(d, saved.cs)
        self.mark_loaded(d, saved.ss)
        for r, selector in zip(DATA, (saved.ds, saved.es, saved.fs, saved.gs), strict=True):
            if register(s, d, r) != keep(popped[selector], saved.cs & RPL):
                reload(s, d, Index(r), selector)
        return registers(s, d, saved.eip, saved.esp, saved.eflags)

    def load_in_ring_0(self, d: DomId, selector: int) -> Segment:
        """Xen loads a guest's selector into a data segment register."""
        q = 0 if is_null(selector) else self.look_up(d, selector)
        segment = load_data(q, selector, 0)
        self.mark_loaded(d, selector)
        return segment

    def look_up(self, d: DomId, selector: int) -> int:
        """A descriptor, from a page of the LDT that is mapped if need be."""
        self.find_page(d, selector)
        fetch(self.s, d, selector)
        return self.s.fetched[d, Index(selector)]

    def look_up_for(self, d: DomId) -> Callable[[int], int]:
        """The same, as the processor's procedures want it."""
        return lambda selector: self.look_up(d, selector)

    def require_wide(self, stack: Segment) -> None:
        """Programs have no 16-bit stacks: the upper half of ESP would be what Xen had in it (W-44)."""
        if not stack.q & BIG:
            raise ModelError("a stack of 16 bits is outside the vocabulary")

    def flat(self, d: DomId) -> None:
        """The context is forgotten: for all other actions the domain has Xen's flat segments."""
        s = self.s
        if s.selector[d, Index(CS)] != X.RING1_CS or s.selector[d, Index(SS)] != X.RING1_DS:
            self.enter(d, X.RING1_CS, X.RING1_DS)
        for r in DATA:
            if s.selector[d, Index(r)] != X.RING1_DS:
                fetch(s, d, X.RING1_DS)
                reload(s, d, Index(r), X.RING1_DS)

    # --- events ---

    def take_events(self, d: DomId) -> bool:
        """Events that are due are delivered, all at once; the guest says when it wants to hear of more."""
        s, f = self.s, Mfn(self.shared[d])
        events, mask = s.word[f, EVENTS], s.word[f, MASK]
        if not is_event_due(events, mask):
            return False
        write_data(s, d, f, MASK, mask_after(events, mask))
        return True

    def mask_events(self, d: DomId) -> None:
        """No events until the guest says otherwise."""
        s, f = self.s, Mfn(self.shared[d])
        if s.word[f, MASK] & MASTER:
            write_data(s, d, f, MASK, s.word[f, MASK] & (ALL ^ MASTER))

    # --- into its kernel ---

    def trapped(self, d: DomId, saved: Saved, vector: int, *more: int) -> Registers:
        """The guest's handler of a vector is entered, which may mask events; then Xen's way out."""
        if masks_events(self.s.trap_flags[d, Index(vector)]):
            self.mask_events(d)
        return self.handled(d, saved, vector, *more)

    def handled(self, d: DomId, saved: Saved, vector: int, *more: int) -> Registers:
        """The same, whatever the handler asks for: a frame, with more words below it."""
        return self.way_out(d, self.bounce(d, saved, vector, (*frame_words(saved), *more)))[0]

    @check("BOUNCE-1", source="xen-2003.md §7.5 (W-48)")
    def bounce(self, d: DomId, saved: Saved, v: int, words: tuple[int, ...]) -> Saved:
        """Words are pushed on the stack of the guest's kernel, through its own segment and tables, and a handler comes to run."""
        s = self.s
        ss, esp = (s.kernel_ss[d], s.kernel_sp[d]) if comes_from_outside(saved.cs) else (saved.ss, saved.esp)
        stack = None
        with suppress(Fault):
            stack = self.load_in_ring_0(d, ss)
        killed(stack is not None, "BOUNCE-1.1")     # the stack is a segment that Xen can load
        assert stack is not None
        base = base_of(stack.q)
        for word in words:
            esp = (esp - 4) & ALL
            self.push(d, stack.q, base, esp, word)
        return saved._replace(cs=s.trap_cs[d, Index(v)], eip=s.trap_ip[d, Index(v)], eflags=handler_flags(saved.eflags),
                              esp=esp, ss=ss)

    @check("BOUNCE-2", source="xen-2003.md §7.5 (W-48)")
    def push(self, d: DomId, q: int, base: int, offset: int, word: int) -> None:
        """One word on a guest's stack, by Xen: as much a store as any of ring 1's."""
        killed(may_access(q, offset, 4, True), "BOUNCE-2.1")    # it lies within the segment, which may be written
        stored = False
        with suppress(Fault):
            store(self.s, self.choices, d, (base + offset) & ALL, word, False)
            stored = True
        killed(stored, "BOUNCE-2.2")                # and its page may be written


