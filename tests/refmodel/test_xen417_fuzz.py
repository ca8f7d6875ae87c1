"""Thousands of calls and accesses at random on xen-4.17, aimed by the state: no exception, no violated invariant, and every call
and command both done and refused."""
from collections import Counter
from random import Random

import pytest

from refmodel import ModelError, audit
from spec.abi import (
    DOMID_IO,
    DOMID_SELF,
    DOMID_XEN,
    GUEST_KERNEL,
    NX,
    PCD,
    PSE,
    RW,
    US,
    A,
    D,
    G,
    P,
    Xen417,
)
from spec.vocabulary import Execute, Load, Store

X = Xen417
FULL = P | RW | US | A | D
ROOT_SLOT = 511                             # of a root table: leads to the memory that is mapped at boot
NOWHERE = 254 << 39                         # an address that no table ever maps
ALWAYS_REFUSED = {"ext 12", "ext 18", "ext 19", "ext 20", "ext 14", "mmu 5", "memory 7", "memory 15", "memory 8", "number 63"}
NEVER_REFUSED = {"ext 6", "ext 10", "memory 2"}     # but for another domain


class Fuzz:
    """One run.  Page 2 of every domain, and the tables that lead to it, are left in place: the arguments are there."""

    def __init__(self, xen, seed):
        self.xen, self.r = xen, Random(seed)
        self.results: Counter[tuple[str, bool]] = Counter()
        self.doms = sorted(xen.m.domids)
        self.dom = 0

    # --- what to aim at ---

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
        roll = self.r.random()
        if roll < 0.85:
            return self.owned(self.dom, self.pick(None, 0, 0, 7, 7, 7, 1, 2, 3, 4))
        return self.pick(self.owned(self.r.choice(self.doms)), 3, self.xen.free + 50, 5000, (1 << 40) - 1)

    def leaf(self):
        """An L1 entry."""
        if self.r.random() < 0.15:
            return self.r.getrandbits(64) & ~P
        odd = self.pick(0, 0, 0, 0, 0, 0, 0, PCD, PSE, G, NX)
        return self.frame() << 12 | self.pick(P, P | RW, P | RW | US, FULL, FULL | GUEST_KERNEL, P | US | GUEST_KERNEL) | odd

    def upper(self, level, table):
        """An entry for a table of a level."""
        roll = self.r.random()
        if roll < 0.2:
            return self.r.getrandbits(64) & ~P
        if roll < 0.25:
            f = table
        else:
            f = self.owned(self.dom, self.pick(0, level - 1, level - 1, level)) if roll < 0.9 else self.frame()
        return f << 12 | self.pick(P, FULL, FULL, P | US | NX) | self.pick(0, 0, 0, 0, 0, 0, PSE)

    def slot(self, dom, f):
        """A word of a frame that does not lead to page 2."""
        s, kept = self.xen.m.s, self.kept(dom)
        i = self.pick(0, 1, 5, 9, 255, 256, 258, 271, 272, 510, 511, self.r.randrange(40))
        return i if (f, i) not in kept and not (s.type[f] == 4 and i == ROOT_SLOT and s.type_count[f]) else 9

    def kept(self, dom):
        """The words that lead to page 2."""
        l1, l2, l3, l4 = (self.xen.frame(dom, k) for k in (-4, -3, -2, -1))
        return {(l1, 2), (l2, 0), (l3, 510), (l4, ROOT_SLOT)}

    def foreign(self):
        """Whose frames, when no table is named."""
        return self.pick(*[DOMID_SELF] * 12, *self.doms, DOMID_IO, DOMID_XEN, 99)

    def done(self, name, result):
        self.results[name, result >= 0] += 1

    # --- calls ---

    def mmu(self):
        dom, s = self.dom, self.xen.m.s
        tables = self.r.choice(self.doms) if self.r.random() < 0.1 else dom
        f = self.owned(tables, self.pick(1, 1, 1, 2, 3, 4, 7, 0)) if self.r.random() < 0.95 else self.frame()
        command = self.pick(0, 0, 0, 0, 2, 3, 1, 5)
        if command == X.MACHPHYS:
            i, val = 0, self.r.getrandbits(20)
        else:
            i = self.slot(tables, f)
            level = s.type[f] if s.type_count[f] else self.pick(1, 2, 3, 4)
            val = self.upper(level, f) if level in (2, 3, 4) else self.leaf()
        if s.owner[f] == dom and f == self.xen.frame(dom, 2):
            return
        if f in (s.base[d] for d in self.doms) and i == ROOT_SLOT:
            return
        foreign = self.foreign()
        holder = 0 if tables == dom else (tables + 1) << 16
        if holder and foreign not in (DOMID_SELF, dom) and self.r.random() < 0.7:
            foreign = tables
        n = self.pick(1, 1, 2)
        word = (f << 12 | i << 3 | command, val)
        result = self.xen.mmu(dom, *[word] * n, foreign=holder | foreign, pdone=self.pick(0, self.xen.va(2, 2048), NOWHERE))
        self.done(f"mmu {command}", result)

    def uvm(self):
        page = self.r.randrange(3, 40)
        flags = self.pick(0, 1, 2, 5, 6, 3, self.xen.va(2) | 1, NOWHERE | 1)
        va = self.pick(*[self.xen.va(page)] * 8, X.WINDOW, 0x1000, 9 << 39 | 9 << 30)
        if self.r.random() < 0.8:
            self.done("uvm", self.xen.uvm(self.dom, va, self.leaf(), flags))
        else:
            self.done("uvm_other", self.xen.uvm_other(self.dom, va, self.leaf(), self.foreign(), flags))

    def make_table(self):
        """Write a table, unmap it, and pin it or link it: what moves a machine on."""
        dom, page, level = self.dom, self.r.randrange(8, 24), self.pick(1, 1, 2, 3, 4)
        f, va = self.xen.frame(dom, page), self.xen.va(page)
        self.xen.uvm(dom, va, f << 12 | FULL, 1)
        words = {self.r.randrange(250): self.leaf() if level == 1 else self.upper(level, f) for _ in range(self.pick(0, 1, 2))}
        if level == 4:
            words[ROOT_SLOT] = self.xen.word(self.xen.m.s.base[dom], ROOT_SLOT)
        for i, w in words.items():
            self.xen.store(dom, va + 8 * i, w)
        self.xen.uvm(dom, va, 0, self.pick(0, 1))
        self.done(f"ext {level - 1}", self.xen.ext(dom, level - 1, f))

    def ext(self):
        command = self.pick(0, 1, 2, 3, 4, 4, 4, 5, 5, 6, 7, 8, 9, 10, 11, 12, 13, 15, 15, 16, 17, 17, 18, 19, 20, 14)
        first, second = self.frame(), self.owned(self.dom)
        if command == X.NEW_BASEPTR:
            first = self.owned(self.dom, 4) if self.r.random() < 0.8 else first
            if self.xen.word(first, ROOT_SLOT) & ~(A | D) != self.xen.frame(self.dom, -2) << 12 | P | RW | US \
                    and self.xen.m.s.owner[first] == self.dom:
                return
        elif command == X.NEW_USER_BASEPTR:
            first = self.pick(0, self.owned(self.dom, 4), self.owned(self.dom, 4), first)
        elif command in (7, 8, 9, 11):
            first, second = self.xen.va(self.r.randrange(40)), self.pick(self.xen.va(2), self.xen.va(2), 0)
        elif command == X.SET_LDT:
            first, second = self.pick(0x1000, 0x1008, X.WINDOW), self.pick(0, 1, 8192, 9000)
        elif command in (X.CLEAR_PAGE, X.COPY_PAGE) and self.r.random() < 0.5:
            first = self.owned(self.dom, 7)
        self.done(f"ext {command}", self.xen.ext(self.dom, command, first, second, foreign=self.foreign()))

    def memory(self):
        op = self.pick(0, 0, 1, 1, 6, 6, 11, 11, 2, 3, 4, 14, 7, 15, 8)
        domid = self.pick(*[DOMID_SELF] * 6, *self.doms, 99)
        if op in (0, 1, 6):
            frames = [self.spare() if op == 1 else self.r.randrange(99) for _ in range(self.pick(1, 1, 2))]
            order = self.pick(0, 0, 0, 1, 20)
            result = self.xen.reserve(self.dom, op, *frames, domid=domid, order=order, flags=self.pick(0, 0, 0, 20, 5),
                                      at=self.pick(None, None, None, None, 0, NOWHERE))
            self.done(f"memory {op}", -1 if result < len(frames) else result)
        elif op == X.EXCHANGE:
            given = self.spare()
            wrong = self.pick({}, {}, {}, {}, {"orders": (0, 1)}, {"done": 1}, {"lists": (NOWHERE, NOWHERE)},
                              {"domids": (domid, domid)})
            self.done("memory 11", self.xen.exchange(self.dom, (given,), (self.r.randrange(99),), **wrong))
        else:
            data = ((self.xen.va(2), (domid, 0, 0)),)
            self.done(f"memory {op}", self.xen.call(self.dom, X.MEMORY_OP, op, self.xen.va(2), data=data))

    def spare(self):
        """A frame to give away: mostly one that is not in use, never one that holds the arguments or the first tables."""
        f = self.owned(self.dom, self.pick(0, 0, 0, None))
        first = self.xen.frame(self.dom, 0)
        return f if f - first not in (2, *range(28, 32)) else self.xen.frame(self.dom, 5)

    def multicall(self):
        page = self.xen.va(self.r.randrange(3, 40))
        calls = [self.pick((X.UPDATE_VA_MAPPING, page, self.leaf(), 0), (63,), (X.MULTICALL, 0, 0),
                           (X.MEMORY_OP, X.MAXIMUM_RAM_PAGE, 0)) for _ in range(3)]
        words = tuple(w for op, *args in calls for w in (op, 0, *args, 0, 0, 0, 0, 0, 0)[:8])
        at = self.xen.va(2, 1024)
        where = self.pick(at, at, at, NOWHERE, X.WINDOW)
        self.done("multicall", self.xen.call(self.dom, X.MULTICALL, where, 3, data=((at, words),)))

    def access(self):
        xen, user = self.xen, self.r.random() < 0.3 and bool(self.xen.m.s.has_user[self.dom])
        va = self.pick(*[xen.va(self.r.randrange(40), 8 * self.r.randrange(512))] * 4, xen.va(self.r.randrange(40)) - 4,
                       X.WINDOW + 8 * self.r.randrange(3000), 9 << 39 | 9 << 30 | self.r.randrange(1 << 30) & ~7,
                       self.r.randrange(256) << 12, 1 << 47)
        roll = self.r.random()
        action = Load(self.dom, va, user) if roll < 0.6 else Store(self.dom, va, self.leaf(), user)
        if roll > 0.9:
            va = self.pick(va, xen.va(1, 5))
            action = Execute(self.dom, va, user) if xen.m.legal_execute(self.dom, va, user) else action
        try:
            out = xen.m.step(action)
        except ModelError:                  # a load of Xen's own memory
            assert isinstance(action, Load)
            return
        self.done(type(action).__name__, -1 if out.vector >= 0 else 0)

    def run(self, steps):
        moves = [self.mmu] * 6 + [self.uvm] * 4 + [self.ext] * 5 + [self.make_table] * 2 + [self.memory] * 3 + [self.multicall] \
            + [self.access] * 4
        for n in range(steps):
            if self.r.random() < 0.2:
                self.dom = self.r.choice(self.doms)
            self.r.choice(moves)()
            if n % 250 == 249:
                assert audit(self.xen.m.concrete) == [], f"after {n + 1} steps"


def test_random_calls_keep_every_invariant(make_417):
    results: Counter[tuple[str, bool]] = Counter()
    for seed in range(3):
        fuzz = Fuzz(make_417(), seed)
        fuzz.run(2000)
        fuzz.done("number 63", fuzz.xen.call(1, 63))
        results += fuzz.results
    names = {name for name, _ in results}
    assert {name for name in names if not results[name, True]} == ALWAYS_REFUSED
    assert {name for name in names if not results[name, False]} <= NEVER_REFUSED


@pytest.mark.long
@pytest.mark.parametrize("seed", range(100, 120))
def test_many_random_calls_keep_every_invariant(make_417, seed):
    Fuzz(make_417(), seed).run(10000)
