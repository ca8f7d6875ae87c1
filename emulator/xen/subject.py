"""What programs work on: a stretch of a domain's memory laid out like a domain at its start (spec/RULINGS-4.17.md).

Page i of the subject is mapped at `BASE` + 4096·i, shared_info after the last, the tables lie in the last pages, and the root
is pinned and loaded.  What differs from the rulings: slot 0 of the root leads to the executor, which lives on below it, and
shared_info is a frame of Xen's heap, wherever that is.
"""
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from emulator.errors import HarnessError
from emulator.xen.batch import Batch
from emulator.xen.machine import Guest
from spec.abi import DOMID_SELF, GUEST_KERNEL, PAGE_SIZE, RW, US, A, D, P, Xen417
from spec.vocabulary import RETF

ENTRIES: Final = 512
CODE_PAGE: Final = 1                        # full of far returns
_UPPER: Final = P | RW | US | A | D
_LEAF: Final = _UPPER | GUEST_KERNEL
_L4_SLOT, _L3_SLOT = Xen417.BASE >> 39 & ENTRIES - 1, Xen417.BASE >> 30 & ENTRIES - 1


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the subject lies, in machine frames: its pages [first, first + pages), the last of which are its tables."""
    first: int
    pages: int
    shared_info: int                        # mapped after the last page
    executor: int                           # the word of slot 0 in every root that is to be loaded

    @property
    def frames(self) -> range:
        """Its machine frames."""
        return range(self.first, self.first + self.pages)

    @property
    def leaves(self) -> range:
        """The L1 tables."""
        return range(self.root - 2 - -(-(self.pages + 1) // ENTRIES), self.root - 2)

    @property
    def tables(self) -> range:
        """All tables, from the first L1 table to the root."""
        return range(self.leaves.start, self.root + 1)

    @property
    def root(self) -> int:
        """The L4 table, the last page."""
        return self.first + self.pages - 1

    def va(self, page: int) -> int:
        """Where a page is mapped."""
        return Xen417.BASE + page * PAGE_SIZE


def subject(xen: Guest, pages: int) -> Layout:
    """Build the subject in fresh memory of a domain, load its root, and say where it is."""
    layout = choose(xen, pages)
    lay_out(xen, layout)
    return layout


def choose(xen: Guest, pages: int) -> Layout:
    """Where a subject of so many pages will be; nothing happens yet."""
    layout = Layout(free_stretch(xen, pages), pages, xen.shared_info, xen.word(xen.root * PAGE_SIZE))
    if len(layout.tables) + 4 > pages or len(layout.leaves) > ENTRIES:
        raise HarnessError(f"{pages} pages hold no subject")
    return layout


def lay_out(xen: Guest, layout: Layout) -> None:
    """Fill the frames of a subject, name them, and load the root.  Nothing may map them yet."""
    for page, mfn in enumerate(layout.frames):
        xen.set_frame(mfn, bytes([RETF if page == CODE_PAGE else 0]) * PAGE_SIZE)
    for mfn, words in tables(layout).items():
        xen.set_frame(mfn, struct.pack(f"<{ENTRIES}Q", *words))
    name_pages(xen, layout)
    load(xen, layout)


def free_stretch(xen: Guest, pages: int) -> int:
    """The first of so many frames of the domain, one after another, that its boot tables do not map."""
    start = xen.mapped_end // PAGE_SIZE
    for i in range(start, xen.pages):
        if xen.p2m[i] != xen.p2m[start] + i - start:
            start = i
        if i - start + 1 == pages:
            return xen.p2m[start]
    raise HarnessError(f"domain {xen.domid} has no {pages} unmapped frames one after another: give it more memory")


def tables(layout: Layout) -> dict[int, list[int]]:
    """The words of all tables."""
    mapped = [*layout.frames, layout.shared_info]
    found = {}
    for n, leaf in enumerate(layout.leaves):
        found[leaf] = padded(mfn << 12 | (_LEAF & ~RW if mfn in layout.tables else _LEAF)
                             for mfn in mapped[n * ENTRIES:(n + 1) * ENTRIES])
    found[layout.root - 2] = padded(leaf << 12 | _UPPER for leaf in layout.leaves)
    found[layout.root - 1] = only(_L3_SLOT, layout.root - 2)
    found[layout.root] = only(_L4_SLOT, layout.root - 1)
    found[layout.root][0] = layout.executor
    return found


def padded(words: Iterable[int]) -> list[int]:
    """Words, and zeros after them to the end of a table."""
    row = list(words)
    return [*row, *[0] * (ENTRIES - len(row))]


def only(slot: int, mfn: int) -> list[int]:
    """A table with one entry."""
    return [mfn << 12 | _UPPER if n == slot else 0 for n in range(ENTRIES)]


# --- what Xen must be asked for ----------------------------------------------------------------------------------------------

def name_pages(xen: Guest, layout: Layout) -> None:
    """The machine-to-physical words: page i is i."""
    most = xen.scratch_bytes // 16
    for start in range(0, layout.pages, most):
        some = range(start, min(start + most, layout.pages))
        words = [word for i in some for word in ((layout.first + i) * PAGE_SIZE | Xen417.MACHPHYS, i)]
        struct.pack_into(f"<{len(words)}Q", xen.ram, xen.scratch_at, *words)
        call(xen, "machine-to-physical words", Xen417.MMU_UPDATE, xen.scratch, len(some), 0, DOMID_SELF)


def load(xen: Guest, layout: Layout) -> None:
    """Pin the root and make it the base."""
    for what, command in (("pin", Xen417.PIN_L4), ("load", Xen417.NEW_BASEPTR)):
        struct.pack_into("<3Q", xen.ram, xen.scratch_at, command, layout.root, 0)
        call(xen, f"{what} of the root", Xen417.MMUEXT_OP, xen.scratch, 1, 0, DOMID_SELF)


def call(xen: Guest, what: str, nr: int, *args: int) -> None:
    """A hypercall that must succeed."""
    batch = Batch()
    batch.hypercall(nr, args)
    value = xen.do(batch)[0].value
    if value:
        raise HarnessError(f"the subject's {what}: Xen says {value - (value >> 63 << 64)}")
