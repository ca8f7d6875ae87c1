"""Pointers that a guest of Xen 4.17 hands over: how Xen reads arguments and writes results through them.

Xen goes through the tables that are loaded, like the guest's kernel itself: by walks that set accessed and dirty bits, or by
cached translations.
"""
from typing import ClassVar

from refmodel.guest import demand, older, read_word, translate
from refmodel.machine import Machine
from refmodel.references import Error
from spec.abi import EFAULT, P, Xen417
from spec.kernel import DomId, Index, Mfn, Vpn, check
from spec.x86.paging import Fault, require_segment
from spec.x86.tlb import guest_store, tag_of, tlb_drop

X = Xen417
ADDRESSES = 1 << 64


def addr_ok(va: int) -> bool:
    """A guest pointer lies on either side of Xen's slots, and of what is not canonical below them."""
    return va < X.GUEST_LOW_END or va >= X.GUEST_HIGH_START


class Pointers(Machine):
    """A machine that reads and writes through guest pointers."""
    window: ClassVar[int] = X.WINDOW

    @check("COPY-11", source="xen-4.17.md, pointer rule")
    def read(self, d: DomId, va: int, size: int) -> bytes:
        """An argument starts at a guest's address, and every page of it is mapped; only its start is held against Xen's slots."""
        demand(addr_ok(va), "COPY-11.1", EFAULT)                    # it starts outside Xen's slots
        try:
            words = self._words(d, va, size)
        except Fault:
            words = []
        demand(words, "COPY-11.2", EFAULT)                          # every page of it is mapped
        return b"".join(word.to_bytes(8, "little") for word in words)[va & 7:][:size]

    @check("COPY-12", source="xen-4.17.md, pointer rule")
    def write(self, d: DomId, va: int, data: bytes) -> None:
        """A result starts at a guest's address, and every page of it is mapped and writable, or nothing is written (X-7)."""
        demand(addr_ok(va), "COPY-12.1", EFAULT)                    # it starts outside Xen's slots
        covering = self._covering(va, len(data))
        try:
            frames = [self._translate(d, at, True) >> 12 & self.profile.mfn_mask for at in covering]
        except Fault:
            frames = []
        demand(frames, "COPY-12.2", EFAULT)                         # every page of it is mapped and writable
        rest, shift = int.from_bytes(data, "little") << 8 * (va & 7), 8 * (va & 7)
        mask = ((1 << 8 * len(data)) - 1) << shift
        for f, at in zip(frames, covering, strict=True):
            i = Index((at & 0xFFF) >> 3)
            value = self.s.word[Mfn(f), i] & ~mask | rest & mask
            guest_store(self.s, d, tag_of(Vpn(at >> 12), False), i, value & ADDRESSES - 1)
            rest, mask = rest >> 64, mask >> 64

    def _covering(self, va: int, size: int) -> list[int]:
        """The aligned words that hold [va, va + size)."""
        return [at % ADDRESSES for at in range(va & ~7, va + size, 8)]

    def _words(self, d: DomId, va: int, size: int) -> list[int]:
        """Those words; one translation serves a page."""
        out, e = list[int](), 0
        for at in self._covering(va, size):
            if not out or at & 0xFFF == 0:
                e = self._translate(d, at, False)
            out.append(read_word(self.s, self, e, at))
        return out

    def _translate(self, d: DomId, va: int, write: bool) -> int:
        require_segment(self.s, va, 8)
        return translate(self.s, self.choices, d, va, False, write, False, own=True)

    def is_wanted(self, d: DomId, mask: int) -> bool:
        """A set of vCPUs is a bitmap in the guest's memory; a domain has only its vCPU 0 (X-3)."""
        return self.read(d, mask, 8)[0] & 1 == 1

    def drop_page(self, d: DomId, va: int) -> None:
        """INVLPG: the translations of one page are dropped, for data and for fetches; Xen's addresses are ignored."""
        if not addr_ok(va):
            return
        for fetch in (False, True):
            tag = tag_of(Vpn(va >> 12), fetch)
            for each in (tag, older(tag)):
                if self.s.tlb[d, each] & P != 0:
                    tlb_drop(self.s, d, each)

    def written(self, d: DomId, va: int, data: bytes) -> bool:
        """Write a result that nobody waits for."""
        try:
            self.write(d, va, data)
        except Error:
            return False
        return True
