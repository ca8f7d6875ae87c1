"""Small machines of both profiles, with the calls that a guest's kernel makes; every one is audited when its test ends."""
from collections.abc import Callable, Iterator
from struct import unpack
from typing import Any

import pytest

from refmodel import Machine, audit, boot
from spec.abi import DOMID_SELF, US, A, D, P, Xen417, Xen2003
from spec.vocabulary import DomainSetup, Execute, Hypercall, Load, LoadSegment, Outcome, Setup, Store

XEN_FRAMES, PAGES, FRAMES = 16, 32, 2048
Pairs = tuple[tuple[int, ...], ...]


class Lab:
    """A machine and its domains; page `k` of a domain is its frame `first + k`, mapped at `va(k)`.  Arguments go to page 2."""
    base: int
    tables: int                             # how many pages of a domain are tables
    size: int                               # of a word, in bytes
    profile: str

    def __init__(self, domains: int = 3, pages: int = PAGES, frames: int = FRAMES) -> None:
        self.pages = pages
        self.m: Machine = boot(Setup(self.profile, frames, XEN_FRAMES, tuple(
            DomainSetup(d, XEN_FRAMES + d * (pages + 1), pages) for d in range(domains))))

    # --- places ---

    def frame(self, dom: int, page: int) -> int:
        """A page's frame; page numbers below 0 count from the end, so -1 is the root table."""
        return XEN_FRAMES + dom * (self.pages + 1) + (page if page >= 0 else self.pages + page)

    def shared(self, dom: int) -> int:
        """The frame of shared_info."""
        return XEN_FRAMES + dom * (self.pages + 1) + self.pages

    def va(self, page: int, byte: int = 0) -> int:
        """Where a page is mapped at boot."""
        return self.base + 4096 * page + byte

    @property
    def free(self) -> int:
        """The lowest frame of no domain."""
        return self.m.pool_start

    @property
    def refused(self) -> list[str]:
        """What refused in the last step."""
        return self.m.refusals

    def count(self, f: int) -> tuple[int, int, int]:
        """Type, typed references, and other references than the owner's own."""
        s: Any = self.m.s
        return s.type[f], s.type_count[f], s.ref_count[f] - s.alloc[f]

    def word(self, f: int, i: int) -> int:
        """A word of a frame."""
        s: Any = self.m.s
        return int(s.word[f, i])

    # --- actions ---

    def call(self, dom: int, nr: int, *args: int, data: Pairs = ()) -> int:
        """A hypercall's result."""
        out = self.m.step(Hypercall(dom, nr, args, tuple((at, words) for at, words in data)))  # type: ignore[misc]
        assert out.vector < 0, out
        return out.value

    def load(self, dom: int, va: int, user: bool = False) -> Outcome:
        return self.m.step(Load(dom, va, user))

    def store(self, dom: int, va: int, value: int, user: bool = False) -> Outcome:
        return self.m.step(Store(dom, va, value, user))

    def execute(self, dom: int, va: int, user: bool = False) -> Outcome:
        return self.m.step(Execute(dom, va, user))

    def load_segment(self, dom: int, register: str, selector: int, user: bool = False) -> Outcome:
        return self.m.step(LoadSegment(dom, register, selector, user))

    def fill(self, dom: int, page: int, words: dict[int, int]) -> None:
        """The guest writes a page of its own."""
        for i, w in words.items():
            assert self.store(dom, self.va(page, self.size * i), w).vector < 0

    def trace(self) -> list[Any]:
        """All that is known of the machine, for `nothing changed`: hits of the TLB and the clock aside."""
        kept = {k: m for k, m in self.m.concrete.maps.items() if k not in ("clock", "cr3_clock") and not k.startswith("tlb")}
        return [(k, {key: v for key, v in m.items() if v != m.zero}) for k, m in kept.items()]


class Lab2003(Lab):
    """Xen 1.2."""
    profile, base, tables, size = "xen-2003", Xen2003.BASE, 2, 4

    def mmu(self, dom: int, *requests: tuple[int, int], count: int | None = None) -> int:
        """mmu_update of these (ptr, val) pairs."""
        words = tuple(w for pair in requests for w in pair)
        n = len(requests) if count is None else count
        return self.call(dom, Xen2003.MMU_UPDATE, self.va(2), n, data=((self.va(2), words),) if words else ())

    def extended(self, dom: int, command: int, f: int = 0, value: int = 0) -> int:
        """One extended command on a frame, or with a value above its number."""
        return self.mmu(dom, (f << 12 | Xen2003.EXTENDED, command | value))

    def uvm(self, dom: int, va: int, val: int, flags: int = 0) -> int:
        """update_va_mapping."""
        return self.call(dom, Xen2003.UPDATE_VA_MAPPING, va >> 12, val, flags)

    def resize(self, dom: int, op: int, *frames: int, size: int | None = None, pages: int | None = None) -> int:
        """dom_mem_op with a list of frames."""
        at = self.va(2, 64) if pages is None else pages
        head = (op, len(frames) if size is None else size, at)
        return self.call(dom, Xen2003.DOM_MEM_OP, self.va(2), data=((self.va(2), head), (self.va(2, 64), frames or (0,))))

    def multicall(self, dom: int, *calls: tuple[int, ...]) -> int:
        """multicall of (op, arg, ...) entries."""
        words = tuple(w for call in calls for w in (*call, 0, 0, 0, 0, 0, 0, 0, 0)[:8])
        return self.call(dom, Xen2003.MULTICALL, self.va(2), len(calls), data=((self.va(2), words),) if words else ())


class Lab417(Lab):
    """Xen 4.17."""
    profile, base, tables, size = "xen-4.17", Xen417.BASE, 4, 8

    def mmu(self, dom: int, *requests: tuple[int, int], foreign: int = DOMID_SELF, pdone: int = 0,
            count: int | None = None) -> int:
        """mmu_update of these (ptr, val) pairs."""
        words = tuple(w for pair in requests for w in pair)
        n = len(requests) if count is None else count
        return self.call(dom, Xen417.MMU_UPDATE, self.va(2), n, pdone, foreign, data=((self.va(2), words),) if words else ())

    def set(self, dom: int, f: int, i: int, val: int, command: int = 0, foreign: int = DOMID_SELF) -> int:
        """mmu_update of one word of a frame."""
        return self.mmu(dom, (f << 12 | i << 3 | command, val), foreign=foreign)

    def uvm(self, dom: int, va: int, val: int, flags: int = 0) -> int:
        """update_va_mapping."""
        return self.call(dom, Xen417.UPDATE_VA_MAPPING, va, val, flags)

    def uvm_other(self, dom: int, va: int, val: int, domid: int, flags: int = 0) -> int:
        """update_va_mapping_otherdomain."""
        return self.call(dom, Xen417.UPDATE_VA_MAPPING_OTHERDOMAIN, va, val, flags, domid)

    def ext(self, dom: int, command: int, first: int = 0, second: int = 0, foreign: int = DOMID_SELF) -> int:
        """One operation of mmuext_op."""
        return self.exts(dom, (command, first, second), foreign=foreign)

    def exts(self, dom: int, *ops: tuple[int, int, int], foreign: int = DOMID_SELF, pdone: int = 0) -> int:
        """mmuext_op of these (command, first, second) operations."""
        words = tuple(w for op in ops for w in op)
        return self.call(dom, Xen417.MMUEXT_OP, self.va(2), len(ops), pdone, foreign, data=((self.va(2), words),))

    def reserve(self, dom: int, op: int, *listed: int, count: int | None = None, order: int = 0, flags: int = 0,
                domid: int = DOMID_SELF, at: int | None = None, start: int = 0) -> int:
        """increase, decrease or populate with a list at byte 1024 of page 2."""
        where = self.va(2, 1024) if at is None else at
        n = len(listed) if count is None else count
        return self.call(dom, Xen417.MEMORY_OP, op | start << 6, self.va(2), data=(
            (self.va(2), (where, n, order | flags << 32, domid)), (self.va(2, 1024), listed or (0,))))

    def listed(self, dom: int, n: int) -> int:
        """Entry n of that list."""
        return self.load(dom, self.va(2, 1024 + 8 * n)).value

    def exchange(self, dom: int, given: tuple[int, ...], wanted: tuple[int, ...], *, orders: tuple[int, int] = (0, 0),
                 counts: tuple[int, int] | None = None, domids: tuple[int, int] = (DOMID_SELF, DOMID_SELF), done: int = 0,
                 lists: tuple[int, int] | None = None, flags: int = 0) -> int:
        """exchange: lists at bytes 1024 and 2048 of page 2; `nr_exchanged` is the word at byte 64."""
        a, b = lists if lists is not None else (self.va(2, 1024), self.va(2, 2048))
        n, m = counts if counts is not None else (len(given), len(wanted))
        return self.call(dom, Xen417.MEMORY_OP, Xen417.EXCHANGE, self.va(2), data=(
            (self.va(2), (a, n, orders[0], domids[0], b, m, orders[1] | flags << 32, domids[1], done)),
            (self.va(2, 1024), given), (self.va(2, 2048), wanted)))

    def multicall(self, dom: int, *calls: tuple[int, ...]) -> int:
        """multicall of (op, arg, ...) entries, at page 3; its results are at bytes 8, 72, ..."""
        words = tuple(w for op, *args in calls for w in (op, 0xDEAD, *args, 0, 0, 0, 0, 0, 0)[:8])
        return self.call(dom, Xen417.MULTICALL, self.va(3), len(calls), data=((self.va(3), words),) if words else ())

    def result(self, dom: int, n: int) -> int:
        """What the multicall wrote for call n."""
        return int(unpack("<q", self.load(dom, self.va(3, 64 * n + 8)).value.to_bytes(8, "little"))[0])

    def new_tables(self, dom: int, page: int, level: int, entries: dict[int, int]) -> int:
        """Write a table into a page, unmap the page, and pin it: its frame."""
        self.fill(dom, page, entries)
        assert self.uvm(dom, self.va(page), 0) == 0
        f = self.frame(dom, page)
        assert self.ext(dom, level - 1, f) == 0, self.refused
        return f

    def user_root(self, dom: int, pages: tuple[int, int, int, int], entries: dict[int, int], slot: int = 0) -> int:
        """Tables of four levels in four pages for user mode, with these L1 entries; the L4 slot is given.  Installs them."""
        l1, l2, l3, l4 = (self.frame(dom, page) for page in pages)
        full = P | 2 | US | A | D
        tables = (entries, {0: l1 << 12 | full}, {0: l2 << 12 | full}, {slot: l3 << 12 | full})
        for page, words in zip(pages, tables, strict=True):
            self.fill(dom, page, words)
            assert self.uvm(dom, self.va(page), 0) == 0
        assert self.ext(dom, Xen417.NEW_USER_BASEPTR, l4) == 0, self.refused
        return l4


def audited(kind: Callable[..., Lab]) -> Iterator[Callable[..., Any]]:
    labs: list[Lab] = []

    def make(**sizes: int) -> Lab:
        labs.append(kind(**sizes))
        return labs[-1]

    yield make
    for lab in labs:
        assert audit(lab.m.concrete) == []


@pytest.fixture
def make_2003() -> Iterator[Callable[..., Lab2003]]:
    yield from audited(Lab2003)


@pytest.fixture
def make_417() -> Iterator[Callable[..., Lab417]]:
    yield from audited(Lab417)


@pytest.fixture
def xen2(make_2003: Callable[..., Lab2003]) -> Lab2003:
    """Xen 1.2 with three domains."""
    return make_2003()


@pytest.fixture
def xen(make_417: Callable[..., Lab417]) -> Lab417:
    """Xen 4.17 with three domains."""
    return make_417()
