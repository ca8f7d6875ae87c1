"""Xen's bookkeeping, read from a RAM file alone: the frame table, page tables, machine-to-physical words and bases.

No symbols and no help from the guest.  Xen's own root table maps itself in slot 258 and all that Xen has in slots 256..271;
through it the frame table is found (xen-4.17.md §2, §3; engines.md §3).  The places of fields in Xen's own records are those of
4.17; each is checked against what must be there, and what is not recognised is an `ImageError`, not a guess.
"""
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from itertools import takewhile
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from spec.abi import DOMID_IO, DOMID_XEN, L1, L4, NOBODY, PAGE_SIZE, PSE, SEG_DESC, P, Xen417
from spec.vocabulary import FREE_FRAME, FrameView, Image

Array = npt.NDArray[Any]
WORDS: Final = PAGE_SIZE // 8                       # of a frame
ADDRESS: Final = 0x000FFFFFFFFFF000                 # of an entry: what it names
ONES: Final = (1 << 64) - 1

# --- where 4.17 keeps things: addresses and slots of roots (asm-x86/config.h; 4.14 and 4.20 agree)
M2P: Final = Xen417.WINDOW
FRAME_TABLE: Final = 0xFFFF82E000000000
DIRECT_MAP: Final = 0xFFFF830000000000              # all RAM, address by address
SELF_SLOT: Final = 258
DOMAIN_SLOT: Final = 260                            # each domain's own: descriptor tables, map cache
ROW: Final = 32                                     # bytes of a frame's row: list, count_info, type_info, owner and a union

# --- struct domain: words (of 8 bytes), and numbers of 4 bytes
VCPUS, SHARED_INFO, LISTS = 1, 2, 5                 # array of vCPUs; shared_info; heads of three lists of frames
MAX_VCPUS, TOTAL, XEN_TOTAL, LIMIT = 1, 22, 23, 25  # (numbers) vCPUs; frames, shared ones of Xen's, limit
MOST_VCPUS: Final = 8192
PORT_OPS, FIFO = 31, 32                             # of event channels: code of Xen's, and a record if they are of the FIFO kind
# --- struct vcpu: words
VCPU_INFO, OF_DOMAIN, INFO_FRAME, VCPU_FIFO = 1, 2, 70, 71
XEN_TEXT: Final = 0xFFFF82D040000000                # Xen's own image, a gigabyte
EVENT_PAGES: Final = 128                            # at most, of a domain
GDT_PAGES: Final = 14                               # that a guest can have
# --- struct vcpu: words relative to guest_table, whose own place is searched for
USER_TABLE, OLD_TABLE, OLD_HOLDER, OLD_PARTIAL, CR3 = -1, 1, 2, 3, 4


class ImageError(ValueError):
    """This memory is not that of a Xen that we can read; the text says what was not found."""


# --- memory ------------------------------------------------------------------------------------------------------------------

class Memory:
    """A machine's RAM from address 0 on, as pages of words: a view, so it shows what is there now."""

    def __init__(self, ram: Any) -> None:
        octets = np.frombuffer(ram, np.uint8)
        if not len(octets) or len(octets) % PAGE_SIZE:
            raise ImageError(f"{len(octets)} bytes are not a whole number of pages")
        self.pages: Array = octets.view("<u8").reshape(-1, WORDS)

    def word(self, frame: int, i: int) -> int:
        """One word; frames that are not in this memory hold nothing."""
        return int(self.pages[frame, i]) if 0 <= frame < len(self.pages) else 0

    def read(self, va: int) -> int:
        """The word at an address of Xen's direct map."""
        return self.word(va - DIRECT_MAP >> 12, va >> 3 & WORDS - 1)

    def walk(self, root: int, va: int) -> int | None:
        """The frame behind an address, through large pages too."""
        frame = root
        for level in (4, 3, 2, 1):
            shift = 12 + 9 * (level - 1)
            e = self.word(frame, va >> shift & WORDS - 1)
            if not e & P:
                return None
            frame = (e & ADDRESS) >> 12
            if e & PSE and level in (2, 3):
                low = (1 << shift - 12) - 1
                frame = frame & ~low | va >> 12 & low
                break
        return frame if frame < len(self.pages) else None

    def frames_of(self, root: int, va: int, count: int) -> list[int]:
        """The frames behind `count` pages of addresses; ends where nothing is mapped."""
        out: list[int] = []
        for n in range(count):
            frame = self.walk(root, va + n * PAGE_SIZE)
            if frame is None:
                break
            out.append(frame)
        return out

    def self_maps(self) -> list[int]:
        """Pages whose slot 258 maps the page itself: roots, and what once was one."""
        slot = self.pages[:, SELF_SLOT]
        named = (slot & np.uint64(ADDRESS)) >> np.uint64(12)
        return [int(f) for f in np.flatnonzero((named == np.arange(len(slot), dtype="u8")) & (slot & np.uint64(P) != 0))]

    def entries(self, table: int) -> Iterator[tuple[int, int]]:
        """The present entries of a page table, by index."""
        for i in np.flatnonzero(self.pages[table] & np.uint64(P)):
            yield int(i), int(self.pages[table, i])


# --- the frame table ---------------------------------------------------------------------------------------------------------

@dataclass(slots=True)
class Table:
    """The frame table, decoded: a column an array, a row a frame.  `count` are all references, the owner's own among them.

    A free frame is NOBODY's, one without references that Xen uses DOMID_XEN's, and one that is no RAM DOMID_IO's: these three
    have no type and no counts.
    """
    owner: Array
    type: Array
    type_count: Array
    count: Array
    allocated: Array
    xen_heap: Array
    validated: Array
    pinned: Array
    partial: Array
    linear: Array
    upto: Array

    def views(self, which: Array) -> list[FrameView]:
        """Some rows, as values."""
        columns = (getattr(self, column.name)[which].tolist() for column in fields(self))
        return [FrameView(*row) for row in zip(which.tolist(), *columns, strict=True)]


class FrameTable:
    """Where a RAM file keeps the frame table: found once, then read as often as needed.

    `frames` is the number of machine frames (max_page); `root` Xen's own root table.
    """

    def __init__(self, ram: Any) -> None:
        self.memory = Memory(ram)
        self.root, self._where = self._find()
        rows = self.memory.pages[self._where].reshape(-1, 4)
        used = np.flatnonzero((rows != np.uint64(ONES)).any(axis=1))
        self.frames = int(used[-1]) + 1         # where the table ends it is all ones
        m2p = self.memory.frames_of(self.root, M2P, -(-self.frames // WORDS))
        if len(m2p) * WORDS < self.frames:
            raise ImageError(f"the machine-to-physical words of {self.frames} frames are not all mapped")
        self._m2p = np.array(m2p, np.intp)

    def _find(self) -> tuple[int, Array]:
        """Xen's own root table, and the frames that hold the frame table; several such roots must agree."""
        memory, found = self.memory, dict[tuple[int, ...], int]()
        for root in memory.self_maps():
            where = tuple(memory.frames_of(root, FRAME_TABLE, -(-len(memory.pages) * ROW // PAGE_SIZE)))
            page, row = divmod(root, PAGE_SIZE // ROW)
            # Xen's own root is a frame in use without references: no guest's frame is, so none can forge one
            if page < len(where) and not memory.word(where[page], 4 * row + 1) and not memory.word(where[page], 4 * row + 2):
                found.setdefault(where, root)
        if len(found) != 1:
            raise ImageError(f"{len(found) or 'no'} root tables of Xen's own lead to a frame table"
                             + (": " + ", ".join(hex(r) for r in found.values()) if found else ""))
        (where, root), = found.items()
        return root, np.array(where, np.intp)

    def word(self, f: int, i: int) -> int:
        """Word i of one frame's row."""
        page, row = divmod(f, PAGE_SIZE // ROW)
        return self.memory.word(int(self._where[page]), 4 * row + i)

    def place(self, f: int) -> int:
        """The machine address of a frame's row."""
        page, row = divmod(f, PAGE_SIZE // ROW)
        return int(self._where[page]) * PAGE_SIZE + row * ROW

    def raw(self) -> Array:
        """The table as it is, four words a row: a copy."""
        rows: Array = self.memory.pages[self._where].reshape(-1, 4)[:self.frames]
        return rows

    def m2p(self) -> Array:
        """The machine-to-physical words: a copy."""
        words: Array = self.memory.pages[self._m2p].reshape(-1)[:self.frames]
        return words

    def table(self) -> Table:
        """The whole table, decoded."""
        return self.decode(self.raw())

    def decode(self, rows: Array) -> Table:
        """Rows of the table (all of them, or a choice), decoded."""
        info, kind, last = rows[:, 1], rows[:, 2], rows[:, 3]
        count = (info & np.uint64((1 << 57) - 1)).astype(np.int64)
        some = count != 0
        none = last == np.uint64(ONES)          # no RAM: nobody ever filled the row in
        some &= ~none
        owner = np.full(len(rows), DOMID_XEN, np.uint16)
        owner[info >> np.uint64(58) & np.uint64(3) == 3] = NOBODY
        owner[none] = DOMID_IO
        owner[some] = self._domids(last[some] & np.uint64(0xFFFFFFFF))
        count *= some
        kind = kind * some
        types = (kind >> np.uint64(61)).astype(np.uint8)
        type_count = (kind & np.uint64((1 << 55) - 1)).astype(np.int64)
        is_table = (types >= L1) & (types <= L4) & (type_count > 0)
        linear = (last >> np.uint64(48)).astype(np.uint16).view(np.int16) * is_table
        upto = (last >> np.uint64(32) & np.uint64(1023)).astype(np.int64) * is_table
        bit = [(kind >> np.uint64(n) & np.uint64(1)).astype(bool) for n in (58, 59, 56)]
        return Table(owner, types, type_count, count, some & (info >> np.uint64(63) != 0),
                     some & (info >> np.uint64(62) & np.uint64(1) != 0), bit[0], bit[1], bit[2], linear,
                     upto * bit[2])

    def _domids(self, records: Array) -> Array:
        """The domains whose records are in these frames: the first number of a record is the domain's."""
        out = np.full(len(records), DOMID_XEN, np.uint16)       # record 0: Xen's own
        for record in self._distinct(records):
            domid = self.memory.word(record, 0) & 0xFFFF
            if record >= len(self.memory.pages) or (domid >= 0x7FF0 and domid not in (DOMID_IO, DOMID_XEN)):
                raise ImageError(f"frame {record:#x} is no record of a domain: {domid:#x} is no domain's number")
            out[records == record] = domid
        return out

    @staticmethod
    def _distinct(records: Array) -> list[int]:
        """The distinct numbers, but for 0: a handful, in runs."""
        heads = records[np.flatnonzero(np.diff(records, prepend=np.uint64(ONES)))]
        return [int(r) for r in np.unique(heads) if r]

    def owned(self, record: int) -> Array:
        """For each frame whether it belongs to the domain with this record."""
        rows = self.raw()
        used = (rows[:, 1] & np.uint64((1 << 57) - 1) != 0) & (rows[:, 3] != np.uint64(ONES))
        mine: Array = used & (rows[:, 3] & np.uint64(0xFFFFFFFF) == np.uint64(record))
        return mine

    def records(self) -> dict[int, int]:
        """domid -> frame of its record, of the domains that own a frame."""
        rows = self.raw()
        some = (rows[:, 1] & np.uint64((1 << 57) - 1) != 0) & (rows[:, 3] != np.uint64(ONES))
        out: dict[int, int] = {}
        for record in self._distinct(rows[some, 3] & np.uint64(0xFFFFFFFF)):
            domid = self.memory.word(record, 0) & 0xFFFF
            if out.setdefault(domid, record) != record:
                raise ImageError(f"frames {out[domid]:#x} and {record:#x} are both records of domain {domid}")
        return out


def references(table: Table) -> Array:
    """All references as the specification counts them: a typed one always includes a plain one.  Only the typed reference that
    Xen keeps to memory of its own that it shares with a domain does not, and is added here."""
    count: Array = table.count + (table.xen_heap & (table.type != 0))
    return count


def packed(table: Table) -> Array:
    """The words of `spec.vocabulary.pack_frame`, a frame each; Xen's and devices' frames show their owner only."""
    owned = (table.owner < 0x7FF0).astype(np.uint64)
    typed = table.type_count.astype(np.uint64) * owned
    plain = (references(table) - table.allocated).astype(np.uint64) * owned
    kind = np.where(typed > 0, table.type, 0).astype(np.uint64)
    pinned, owner = table.pinned * owned, table.owner.astype(np.uint64)
    out: Array = typed | plain << np.uint64(22) | kind << np.uint64(44) | pinned << np.uint64(47) | owner << np.uint64(48)
    out[table.owner == NOBODY] = FREE_FRAME
    return out


# --- the whole image ---------------------------------------------------------------------------------------------------------

def image(ram: Any, also: Iterable[int] = ()) -> Image:
    """All that memory management knows of the machine in a RAM file; `also`: frames whose words are wanted, too."""
    frames = FrameTable(ram)
    memory, table = frames.memory, frames.table()
    used, m2p = table.views(np.flatnonzero(table.owner != NOBODY)), frames.m2p()
    named = np.flatnonzero(m2p != np.uint64(ONES))
    tables = {v.mfn for v in used if L1 <= v.type <= L4 and v.type_count}
    out = Image("xen-4.17", frames.frames, tuple(used),
                {f: tuple(memory.pages[f].tolist()) for f in sorted(tables.union(also))},
                dict(zip(named.tolist(), m2p[named].tolist(), strict=True)))
    records = {d: record for d, record in frames.records().items() if d < 0x7FF0}
    for d, record in records.items():
        add_domain(out, frames, table, d, record)
    records_of = {d: vcpus(memory, d, record) for d, record in records.items()}
    add_roots(out, memory, records_of)
    out.registered = Counter(f for d, record in records.items() for f in registered(memory, d, record, records_of[d]))
    add_slots(out, frames, records)
    return out


def add_domain(out: Image, frames: FrameTable, table: Table, d: int, record: int) -> None:
    """The numbers of frames that a domain's record claims, and its shared_info; checks that it is laid out like one of 4.17."""
    words = frames.memory.pages[record]
    heads = [int(w) for w in words[LISTS:LISTS + 6]]
    rows = range(FRAME_TABLE, FRAME_TABLE + ROW * frames.frames, ROW)
    shared = (int(words[SHARED_INFO]) - DIRECT_MAP) // PAGE_SIZE
    if (any(head and head not in rows for head in heads) or any(bool(heads[n]) != bool(heads[n + 1]) for n in (0, 2, 4))
            or not 0 <= shared < frames.frames or int(words[SHARED_INFO]) % PAGE_SIZE or not table.xen_heap[shared]):
        raise ImageError(f"the record of domain {d}, in frame {record:#x}, is not laid out as 4.17 does: no lists of frames, or "
                         "no shared_info, where they should be")
    numbers = words.view("<u4")
    out.pages[d], out.xen_pages[d], out.max_pages[d] = (int(numbers[n]) for n in (TOTAL, XEN_TOTAL, LIMIT))
    out.shared_info[d] = shared


# --- bases

def vcpus(memory: Memory, d: int, record: int) -> list[int]:
    """The frames of the records of a domain's vCPUs."""
    count, array = int(memory.pages[record].view("<u4")[MAX_VCPUS]), memory.word(record, VCPUS)
    if not 0 < count <= MOST_VCPUS:
        raise ImageError(f"domain {d} has {count} vCPUs")
    found = [memory.read(array + 8 * n) for n in range(count)]
    if any(v and (v < DIRECT_MAP or v % PAGE_SIZE or v - DIRECT_MAP >> 12 >= len(memory.pages)) for v in found):
        raise ImageError(f"the record of domain {d}, in frame {record:#x}, leads to no vCPUs")
    return [v - DIRECT_MAP >> 12 for v in found if v]


def add_roots(out: Image, memory: Memory, by_domain: dict[int, list[int]]) -> None:
    """The root tables that the vCPUs have loaded, from one place in all their records."""
    places = Counter(k for records in by_domain.values() for v in records for k in root_places(out, memory, v))
    holding = sum(1 for records in by_domain.values() for v in records if root_places(out, memory, v))
    fitting = [k for k, n in places.items() if n == holding]
    if len(fitting) != 1:
        raise ImageError(f"{len(fitting)} places in the records of the vCPUs could hold their root tables: {fitting}")
    place = fitting[0]
    for d, records in by_domain.items():
        for n, v in enumerate(records):
            kernel, user = memory.word(v, place), memory.word(v, place + USER_TABLE)
            if left := memory.word(v, place + OLD_TABLE):
                out.left.append((left - FRAME_TABLE) // ROW)
            if n:
                out.other_roots += tuple(f for f in (kernel, user) if f)
                continue
            out.base.update({d: kernel} if kernel else {})
            out.user_base.update({d: user} if user else {})


def root_places(out: Image, memory: Memory, v: int) -> list[int]:
    """Where a vCPU's record could hold its roots: user and kernel table, two rows of the frame table, a mark, and CR3, which is
    one of the two roots."""
    words = [int(w) for w in memory.pages[v]]
    rows = range(FRAME_TABLE, FRAME_TABLE + ROW * out.frames, ROW)
    fits = [not w or w in rows for w in words]
    return [k for k in range(1, WORDS - CR3) if 0 < words[k] < out.frames and words[k + USER_TABLE] < out.frames
            and words[k + CR3] and (words[k + CR3] & ADDRESS) >> 12 in (words[k], words[k + USER_TABLE])
            and words[k + OLD_PARTIAL] in (0, 1) and fits[k + OLD_TABLE] and fits[k + OLD_HOLDER]]


# --- pages that a domain has registered

def registered(memory: Memory, d: int, record: int, of_vcpus: Iterable[int]) -> Iterator[int]:
    """The pages that Xen writes to on a domain's behalf: a vCPU's vcpu_info, control blocks and event words of FIFO channels."""
    ops = memory.word(record, PORT_OPS)
    if ops and ops >> 30 != XEN_TEXT >> 30:
        raise ImageError(f"the record of domain {d}, in frame {record:#x}, is not laid out as 4.17 does: no code for events")
    yield from event_pages(memory, memory.word(record, FIFO), EVENT_PAGES)
    for v in of_vcpus:
        mfn, at = memory.word(v, INFO_FRAME), memory.word(v, VCPU_INFO)
        if memory.word(v, OF_DOMAIN) != DIRECT_MAP + record * PAGE_SIZE or (mfn != ONES and mfn != at - DIRECT_MAP >> 12):
            raise ImageError(f"the record of a vCPU of domain {d}, in frame {v:#x}, is not laid out as 4.17 does")
        if mfn != ONES:
            yield mfn
        yield from event_pages(memory, memory.word(v, VCPU_FIFO), 1)


def event_pages(memory: Memory, row: int, most: int) -> Iterator[int]:
    """The frames that a record of FIFO channels names, one after another."""
    pages = [memory.read(row + 8 * n) for n in range(most)] if row else []
    for page in takewhile(bool, pages):
        if page < DIRECT_MAP or page % PAGE_SIZE or page - DIRECT_MAP >> 12 >= len(memory.pages):
            raise ImageError(f"a record of event channels, at {row:#x}, names no page: {page:#x}")
        yield page - DIRECT_MAP >> 12


# --- Xen's slots

def add_slots(out: Image, frames: FrameTable, records: dict[int, int]) -> None:
    """What Xen keeps in its slots of root tables: as in its own root table, but for the slot that is each domain's own, which
    names a frame that the domain's record names; and the descriptor tables that are mapped behind that slot."""
    memory = frames.memory
    words = {i: memory.word(frames.root, i) for i in range(Xen417.XEN_FIRST, Xen417.XEN_LAST + 1)}
    words[SELF_SLOT] &= ~ADDRESS
    for d, record in records.items():
        known = frozenset(memory.pages[record].tolist())
        of_roots = {out.words[v.mfn][DOMAIN_SLOT] for v in out.table if v.owner == d and v.type == L4 and v.mfn in out.words}
        own = [e for e in of_roots if e & P and FRAME_TABLE + ROW * ((e & ADDRESS) >> 12) in known]
        if len(own) > 1:
            raise ImageError(f"the root tables of domain {d} have different slots of its own: {[hex(e) for e in sorted(own)]}")
        for e in own:
            out.domain_slot[d] = e
            out.descriptors.update(descriptors(memory, (e & ADDRESS) >> 12))
            owned = {v.mfn for v in out.table if v.owner == d and v.type == SEG_DESC}
            out.gdt.update({(d, n): f for n, f in enumerate(gdt_frames(memory, (e & ADDRESS) >> 12)) if f in owned})
    words[DOMAIN_SLOT] = out.domain_slot.get(0, 0)
    out.xen_slots = tuple(words.values())


def gdt_frames(memory: Memory, l3: int) -> list[int]:
    """The frames of vCPU 0's GDT, the first of these tables; 0 where nothing is mapped."""
    table = l3
    for _ in range(2):
        e = memory.word(table, 0)
        if not e & P:
            return []
        table = (e & ADDRESS) >> 12
    words = [memory.word(table, n) for n in range(GDT_PAGES)]
    return [(e & ADDRESS) >> 12 if e & P else 0 for e in words]


def descriptors(memory: Memory, l3: int) -> Counter[int]:
    """The frames mapped as some vCPU's descriptor tables, with how often: the first gigabyte behind a domain's own slot."""
    found: Counter[int] = Counter()
    upper = memory.word(l3, 0)
    if not upper & P:
        return found
    for _, e in memory.entries((upper & ADDRESS) >> 12):
        for _, leaf in memory.entries((e & ADDRESS) >> 12):
            found[(leaf & ADDRESS) >> 12] += 1
    return found
