"""What Xen 1.2 reads and writes through a guest's present tables, and its stores into idle frames (xen-2003.md §1, §4.2)."""
from typing import ClassVar

from refmodel.guest import ModelError, demand
from refmodel.machine import Machine
from refmodel.references import settle
from spec.abi import EFAULT, RW, WRITABLE, P, Xen2003
from spec.kernel import DomId, FrameType, Index, Mfn, check
from spec.tables import write_data

X = Xen2003
WORD = 0xFFFFFFFF


class Pointers(Machine):
    """A machine whose hypercalls take arguments from memory."""
    window: ClassVar[int] = X.HOLE

    @check("COPY-1", source="xen-2003.md §1 user-copy window (W-15)")
    def copy_in(self, d: DomId, va: int, words: int) -> list[int]:
        """Xen reads a guest's argument through the present tables, as a supervisor, below the end of the guest's segments."""
        demand(va + 4 * words <= X.GUEST_END, "COPY-1.1", EFAULT)   # the argument ends where guest segments end
        if va & 3 == 0 and (va & 0xFFF) + 4 * words <= 4096:
            f = self.linear(d, va)
            demand(f is not None, "COPY-1.2", EFAULT)               # its page is mapped
            return self._words(f, va, words) if f is not None else []
        data = bytes(self._byte_at(d, at) for at in range(va, va + 4 * words))
        return [int.from_bytes(data[n:n + 4], "little") for n in range(0, 4 * words, 4)]

    def _byte_at(self, d: DomId, va: int) -> int:
        return self.copy_in(d, va & ~3, 1)[0] >> 8 * (va & 3) & 0xFF

    def _words(self, f: Mfn, va: int, words: int) -> list[int]:
        i = (va & 0xFFF) >> 2
        if f >= self.setup.xen_frames:
            word = self.s.word
            return [word[f, Index(n)] for n in range(i, i + words)]
        found = [self.published(va + 4 * n) for n in range(words)]
        if None in found:
            raise ModelError(f"an argument at {va:#x} lies in Xen's own memory")
        return [w for w in found if w is not None]

    def linear(self, d: DomId, va: int, write: bool = False) -> Mfn | None:
        """The frame at a linear address for a supervisor, or None."""
        s = self.s
        pde = s.word[s.base[d], Index(va >> 22)]
        if pde & P == 0:
            return None
        pte = s.word[Mfn(pde >> 12), Index(va >> 12 & 1023)]
        if pte & P == 0 or (write and pde & pte & RW == 0):
            return None
        return Mfn(pte >> 12)

    @check("COPY-2", source="xen-2003.md §1 user-copy window (W-15)")
    def copy_out(self, d: DomId, va: int, value: int) -> None:
        """Xen writes a result through the present tables; a read-only page refuses it even to Xen (CR0.WP)."""
        demand(va + 4 <= X.GUEST_END, "COPY-2.1", EFAULT)           # the result ends where guest segments end
        for n in (range(1) if va & 3 == 0 else range(4)):
            f = self.linear(d, va + n, write=True)
            demand(f is not None, "COPY-2.2", EFAULT)               # its page is mapped and writable
            if f is not None:
                self._put(f, va + n, value if va & 3 == 0 else value >> 8 * n & 0xFF, WORD if va & 3 == 0 else 0xFF)

    def _put(self, f: Mfn, va: int, value: int, mask: int) -> None:
        i, shift = Index((va & 0xFFF) >> 2), 8 * (va & 3)
        old = self.s.word[f, i]
        write_data(self.s, self.s.owner[f], f, i, old & ~(mask << shift) | value << shift)

    def store_idle(self, f: Mfn, i: Index, val: int) -> None:
        """A word of an idle frame, which is about to be writable."""
        d = self.s.owner[f]
        settle(self.s, d, f, FrameType(WRITABLE))
        write_data(self.s, d, f, i, val)
