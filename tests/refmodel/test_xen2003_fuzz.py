"""Thousands of calls and accesses at random on xen-2003, aimed by the state: no exception, no violated invariant, and every call
and command both done and refused."""
from collections import Counter
from random import Random

import pytest

from refmodel import audit
from spec.abi import EINVAL, L1, L2, LDT_DESC, PSE, RW, SEG_DESC, US, WRITABLE, A, D, G, P, Xen2003
from spec.vocabulary import Execute, Load, Store

X = Xen2003
FULL = P | RW | A | D
ALWAYS_REFUSED = {"extended 2", "memory 2", "number 99"}
NEVER_REFUSED = {"multicall", "extended 6", "extended 7"}     # but for a frame that does not exist, or a list in the window


class Fuzz:
    """One run.  Page 2 of every domain, and the tables that lead to it, are left in place: the arguments are there."""

    def __init__(self, xen, seed):
        self.xen, self.r = xen, Random(seed)
        self.results: Counter[tuple[str, bool]] = Counter()
        self.doms = sorted(xen.m.domids)
        self.dom = 0

    def pick(self, *options):
        return self.r.choice(options)

    def owned(self, dom, kind=None):
        """A frame of a domain, perhaps one in use as some type (0: idle)."""
        s = self.xen.m.s
        found = [f for f in range(16, self.xen.free + 40) if s.owner[f] == dom
                 and (kind is None or (s.type_count[f] and s.type[f] == kind) or (kind == 0 and not s.type_count[f]))]
        return self.r.choice(found) if found else self.xen.frame(dom, 5)

    def frame(self):
        """Mostly the domain's own, or some other."""
        if self.r.random() < 0.85:
            return self.owned(self.dom, self.pick(None, 0, 0, WRITABLE, WRITABLE, WRITABLE, L1, L2))
        return self.pick(self.owned(self.r.choice(self.doms)), 3, self.xen.free + 50, 5000, 0xFFFFF)

    def leaf(self):
        """An L1 entry."""
        if self.r.random() < 0.15:
            return self.r.getrandbits(32) & ~P
        return self.frame() << 12 | self.pick(P, P | RW, FULL, FULL | US) | self.pick(0, 0, 0, 0, 0, 0, PSE, G)

    def upper(self, table):
        """An L2 entry."""
        roll = self.r.random()
        if roll < 0.2:
            return self.r.getrandbits(32) & ~P
        f = table if roll < 0.3 else self.owned(self.dom, self.pick(0, L1, L1)) if roll < 0.9 else self.frame()
        return f << 12 | self.pick(P, P, FULL, FULL | US) | self.pick(0, 0, 0, 0, 0, 0, PSE)

    def mapped_at(self, f):
        """A page at which the domain has a frame mapped, or the one where it was at boot."""
        l1 = self.xen.frame(self.dom, -2)
        found = [page for page in range(40) if self.xen.word(l1, page) & P and self.xen.word(l1, page) >> 12 == f]
        return self.r.choice(found) if found else self.r.randrange(3, 32)

    def done(self, name, result):
        self.results[name, result >= 0] += 1

    # --- calls ---

    def normal(self):
        """A word of a table, of an idle frame, or of any other."""
        f = self.owned(self.dom, self.pick(L1, L1, L2, L2, 0, 0, WRITABLE))
        page, s = self.mapped_at(f), self.xen.m.s
        f = self.xen.word(self.xen.frame(self.dom, -2), page) >> 12
        i = self.pick(0, 1, 9, 100, 767, 769, 1007, 1008, 1023, self.r.randrange(40))
        if i == 2 or f == self.xen.frame(self.dom, 2):
            return
        is_upper = s.type_count[f] and s.type[f] == L2
        command = self.pick(X.NORMAL, X.NORMAL, X.NORMAL, X.UNCHECKED)
        va = self.pick(*[self.xen.va(page, 4 * i)] * 9, X.HOLE + 4 * i, 0x77001000)
        words = [(va | command, self.upper(f) if is_upper else self.leaf())] * self.pick(1, 1, 2)
        self.done(f"mmu {command}", self.xen.mmu(self.dom, *words))

    def machphys(self):
        self.done("mmu 2", self.xen.mmu(self.dom, (self.frame() << 12 & 0xFFFFFFFF | X.MACHPHYS, self.r.getrandbits(20))))

    def extended(self):
        command = self.pick(0, 0, 1, 1, 4, 4, 5, 5, 6, 7, 8, 2)
        f, value = self.frame() & 0xFFFFF, 0
        if command == X.NEW_BASEPTR:
            f = self.owned(self.dom, L2) if self.r.random() < 0.8 else f
            leads_home = self.xen.word(f, 768) & ~(A | D | US) == self.xen.frame(self.dom, -2) << 12 | P | RW
            if self.xen.m.s.owner[f] in self.doms and not leads_home:
                return
        elif command == X.SET_LDT:
            f, value = self.pick(1, X.HOLE >> 12, 0xFFFFF), self.pick(0, 1, 8192, 9000) << 8
        elif command == X.INVLPG:
            f, value = self.pick(0, 0, 5000), self.xen.va(self.r.randrange(40))
        self.done(f"extended {command}", self.xen.extended(self.dom, command, f, value))

    def uvm(self):
        va = self.pick(*[self.xen.va(self.r.randrange(3, 40))] * 9, X.HOLE, 0x77001000)
        self.done("uvm", self.xen.uvm(self.dom, va, self.leaf(), self.pick(0, 1, 2, 3)))

    def make_table(self):
        """Write a table, make its frame idle, and pin it: what moves a machine on."""
        dom, page, level = self.dom, self.r.randrange(8, 24), self.pick(L1, L2)
        f, va = self.xen.frame(dom, page), self.xen.va(page)
        self.xen.uvm(dom, va, f << 12 | FULL, X.UVMF_INVLPG)
        words = {self.r.randrange(700): self.leaf() if level == L1 else self.upper(f) for _ in range(self.pick(0, 1, 2))}
        if level == L2:
            words[768] = self.xen.frame(dom, -2) << 12 | P | RW
        for i, w in words.items():
            self.xen.store(dom, va + 4 * i, w)
        self.xen.uvm(dom, va, self.pick(0, f << 12 | P), self.pick(0, X.UVMF_INVLPG))
        self.done(f"extended {level - 1}", self.xen.extended(dom, level - 1, f))

    def descriptor(self):
        """A descriptor: absent, a segment, a gate, any; mostly legal."""
        return self.pick(0, self.r.getrandbits(47), 0x00CFB2000000C3FF, 0x00CFFA000000C3FF, 0x00CFB2000000C400,
                         0x0000EC0008190000, 0x0000EC0008090000, 0x00CF92000000FFFF, self.r.getrandbits(64))

    def page_of_descriptors(self):
        """Write some into a page, and make its frame idle: its page."""
        dom, page = self.dom, self.r.randrange(8, 24)
        f, va = self.xen.frame(dom, page), self.xen.va(page)
        if self.xen.uvm(dom, va, f << 12 | FULL, X.UVMF_INVLPG) == 0:
            self.xen.store(dom, va, 0)
            for _ in range(self.pick(0, 0, 1, 2)):
                q, i = self.descriptor(), self.pick(0, 2, 14, 512, 600, 1022)
                self.xen.store(dom, va + 4 * i, q & 0xFFFFFFFF)
                self.xen.store(dom, va + 4 * i + 4, q >> 32)
            self.xen.uvm(dom, va, f << 12 | P, self.pick(0, X.UVMF_INVLPG))
        return page

    def gdt(self):
        """A new GDT of new pages, old ones, and others."""
        s, dom = self.xen.m.s, self.dom
        old = [s.gdt[dom, n] for n in range(16) if s.has_gdt[dom, n]]
        frames = [self.xen.frame(dom, self.page_of_descriptors())] if self.r.random() < 0.6 or not old else old[:]
        frames += self.pick([], [], old[1:], old, [self.frame()], [self.xen.frame(dom, self.page_of_descriptors())] * 2)
        frames = frames[:16]
        entries = 512 * len(frames) - self.pick(0, 0, 0, 1, 216, 217)
        self.done("gdt", self.xen.call(dom, X.SET_GDT, self.xen.va(2), entries, data=((self.xen.va(2), tuple(frames)),)))

    def ldt(self):
        """An LDT at new pages; pages of it are mapped, or dropped with a mapping of theirs."""
        xen, dom, roll = self.xen, self.dom, self.r.random()
        if roll < 0.5:
            page = self.page_of_descriptors()
            self.done("extended 8", xen.extended(dom, X.SET_LDT, xen.va(page) >> 12, self.pick(0, 512, 1024, 8192) << 8))
        elif roll < 0.8:
            xen.load_segment(dom, "gs", self.pick(0, 1, 2, 15) << 12 | 5)
        else:
            window = xen.va(self.r.randrange(34, 40))
            for entry in (self.owned(dom, LDT_DESC) << 12 | P, 0):
                self.done("uvm", xen.uvm(self.pick(dom, dom, 0), window, entry, X.UVMF_INVLPG))

    def update_descriptor(self):
        q, kind = self.descriptor(), self.pick(None, 0, WRITABLE, SEG_DESC, SEG_DESC, LDT_DESC, L1)
        f = self.owned(self.dom, kind) if self.r.random() < 0.9 else self.frame()
        if f != self.xen.frame(self.dom, 2):
            address = f << 12 & 0xFFFFFFFF | self.pick(0, 8, 1024, 2048, 2056, 2360, 2368, 4088, 4)
            self.done("descriptor", self.xen.call(self.dom, X.UPDATE_DESCRIPTOR, address, q & 0xFFFFFFFF, q >> 32))

    def load_segment(self):
        index = self.pick(0, 1, 7, 256, 300, 511, 259, 260, 262, 768)
        selector = index << 3 | self.pick(0, 4) | self.pick(1, 1, 3, 2)
        out = self.xen.load_segment(self.dom, self.pick("ds", "gs", "ss"), selector, self.pick(False, True))
        self.done("load segment", -1 if out.vector >= 0 else 0)

    def handlers(self):
        xen, dom, v, cs = self.xen, self.dom, self.pick(3, 0x20, 0x80, 0x180), self.pick(0x819, 0x39, 0x809, 0x1082B, 0x5)
        flags = self.pick(0, 3, 4)
        self.done("traps", xen.call(dom, X.SET_TRAP_TABLE, xen.va(2), data=(
            (xen.va(2), (v & 0xFF | flags << 8 | (cs & 0xFFFF) << 16, 8, 0, 0)),)))
        self.done("fast trap", xen.call(dom, X.SET_FAST_TRAP, self.pick(v, v, 0)))
        self.done("callbacks", xen.call(dom, X.SET_CALLBACKS, cs, 1, self.pick(0x819, cs), 2))
        self.done("stack", xen.call(dom, X.STACK_SWITCH, self.pick(0x821, 0x820), 3))
        r = self.pick(0, 3, 4, 6, 7, 8)
        self.done("set debug", xen.call(dom, X.SET_DEBUGREG, r, self.r.getrandbits(32)))
        value = xen.call(dom, X.GET_DEBUGREG, r)
        self.done("get debug", -1 if value == -EINVAL else 0)

    def memory(self):
        op = self.pick(X.INCREASE, X.DECREASE, X.DECREASE, 2)
        page, first = self.r.randrange(5, 28), self.xen.frame(self.dom, 0)
        if op == X.DECREASE and self.r.random() < 0.7:
            self.xen.uvm(self.dom, self.xen.va(page), 0)
        frames = [first + page if self.r.random() < 0.7 else self.frame() for _ in range(self.pick(1, 1, 2))]
        if first + 2 in frames:
            return
        self.done(f"memory {op}", self.xen.resize(self.dom, op, *frames))

    def multicall(self):
        calls = [self.pick((X.UPDATE_VA_MAPPING, self.xen.va(self.r.randrange(3, 40)) >> 12, self.leaf(), 0), (99,),
                           (X.MULTICALL, 0, 5)) for _ in range(3)]
        self.done("multicall", self.xen.multicall(self.dom, *calls))
        if self.r.random() < 0.1:
            self.done("number 99", self.xen.call(self.dom, 99))

    def access(self):
        xen, user = self.xen, self.r.random() < 0.3
        va = self.pick(*[xen.va(self.r.randrange(40), 4 * self.r.randrange(1024))] * 4, xen.va(self.r.randrange(40)) - 2,
                       X.HOLE + 4 * self.r.randrange(3000), 9 << 22 | self.r.randrange(1 << 22) & ~3, X.GUEST_END)
        roll = self.r.random()
        action = Load(self.dom, va, user) if roll < 0.6 else Store(self.dom, va, self.leaf(), user)
        if roll > 0.9:
            va = self.pick(va, xen.va(1, 5))
            action = Execute(self.dom, va, user) if xen.m.legal_execute(self.dom, va, user) else action
        self.done(type(action).__name__, -1 if xen.m.step(action).vector >= 0 else 0)

    def run(self, steps):
        moves = [self.normal] * 7 + [self.uvm] * 4 + [self.extended] * 4 + [self.make_table] * 2 + [self.memory] * 2 \
            + [self.machphys, self.multicall, self.handlers] + [self.access] * 4 \
            + [self.gdt, self.ldt, self.update_descriptor, self.load_segment] * 2
        for n in range(steps):
            if self.r.random() < 0.2:
                self.dom = self.r.choice(self.doms)
            self.r.choice(moves)()
            if n % 250 == 249:
                assert audit(self.xen.m.concrete) == [], f"after {n + 1} steps"


def test_random_calls_keep_every_invariant(make_2003):
    results: Counter[tuple[str, bool]] = Counter()
    for seed in range(3):
        fuzz = Fuzz(make_2003(), seed)
        fuzz.run(2000)
        results += fuzz.results
    names = {name for name, _ in results}
    assert {name for name in names if not results[name, True]} == ALWAYS_REFUSED
    assert {name for name in names if not results[name, False]} <= NEVER_REFUSED


@pytest.mark.long
@pytest.mark.parametrize("seed", range(100, 120))
def test_many_random_calls_keep_every_invariant(make_2003, seed):
    Fuzz(make_2003(), seed).run(10000)
