"""How tests speak to a machine: guests that make actions, and a look at what can be seen."""
from collections.abc import Iterable

from emulator.target import EmulatorTarget
from spec.abi import PAGE_SIZE, Xen2003
from spec.vocabulary import DomainSetup, Execute, Hypercall, Load, LoadSegment, Observation, Outcome, Setup, Store, unpack_frame

BUFFER = 2                                      # the page in which a guest writes its requests
LIST = 3                                        # the page for lists within requests
PTE = 0x63                                      # present, writable, accessed, dirty: as at boot


def setup_of(domains: int, pages: int = 64, frames: int = 1200) -> Setup:
    """Domains 0.. next to each other, the rest free."""
    xen_frames, xen_slots = EmulatorTarget.needs(frames)
    return Setup("xen-2003", frames, xen_frames,
                 tuple(DomainSetup(d, xen_frames + d * (pages + 1), pages) for d in range(domains)), xen_slots)


SETUP = setup_of(3)                             # the machine of most tests


class Guest:
    """The kernel of one domain: where its memory is at boot, and the actions it makes."""

    def __init__(self, setup: Setup, domid: int) -> None:
        self.domid = domid
        self.setup = next(d for d in setup.domains if d.domid == domid)
        self.pages = self.setup.pages

    # --- places at boot ---

    def index(self, page: int) -> int:
        """Negative pages count from the end, as in a list; those beyond the last are free places of the L1 table."""
        return page if page >= 0 else page + self.pages

    def frame(self, page: int) -> int:
        """The frame of a page."""
        return self.setup.first + self.index(page)

    def va(self, page: int) -> int:
        """Where a page is mapped."""
        return Xen2003.BASE + PAGE_SIZE * self.index(page)

    @property
    def l1(self) -> int:
        """The frame of the only L1 table."""
        return self.frame(-2)

    @property
    def l2(self) -> int:
        """The frame of the L2 table."""
        return self.frame(-1)

    @property
    def shared_info(self) -> int:
        """The frame of shared_info."""
        return self.setup.first + self.pages

    def l1e(self, page: int) -> int:
        """Linear address of the L1 entry that maps a page."""
        return self.va(-2) + 4 * self.index(page)

    def l2e(self, slot: int) -> int:
        """Linear address of an L2 entry."""
        return self.va(-1) + 4 * slot

    # --- actions ---

    def load(self, va: int, user: bool = False) -> Load:
        return Load(self.domid, va, user)

    def store(self, va: int, value: int, user: bool = False) -> Store:
        return Store(self.domid, va, value, user)

    def execute(self, va: int, user: bool = False) -> Execute:
        return Execute(self.domid, va, user)

    def load_segment(self, register: str, selector: int, user: bool = False) -> LoadSegment:
        return LoadSegment(self.domid, register, selector, user)

    def call(self, nr: int, *args: int, data: tuple[tuple[int, tuple[int, ...]], ...] = ()) -> Hypercall:
        return Hypercall(self.domid, nr, args, data)

    def update(self, *requests: tuple[int, int], before: tuple[tuple[int, tuple[int, ...]], ...] = ()) -> Hypercall:
        """mmu_update with these requests, after some other stores."""
        words = tuple(word for request in requests for word in request)
        return self.call(Xen2003.MMU_UPDATE, self.va(BUFFER), len(requests), data=(*before, (self.va(BUFFER), words)))

    def extended(self, command: int, frame: int = 0, operand: int = 0) -> Hypercall:
        return self.update(request(command, frame, operand))

    def map(self, page: int, entry: int, flags: int = 0) -> Hypercall:
        """update_va_mapping of a page of the boot mapping (or of the rest of its L1 table)."""
        return self.call(Xen2003.UPDATE_VA_MAPPING, (Xen2003.BASE >> 12) + page, entry, flags)

    def unmap(self, page: int, flags: int = Xen2003.UVMF_FLUSH) -> Hypercall:
        return self.map(page, 0, flags)

    def memory_op(self, op: int, frames: Iterable[int] = (), size: int | None = None) -> Hypercall:
        """dom_mem_op with a list of frames (or room for them)."""
        words = tuple(frames)
        data = ((self.va(LIST), words),) if words else ()
        argument = (op, len(words) if size is None else size, self.va(LIST))
        return self.call(Xen2003.DOM_MEM_OP, self.va(BUFFER), data=(*data, (self.va(BUFFER), argument)))

    def increase(self, size: int) -> Hypercall:
        return self.memory_op(Xen2003.INCREASE, size=size)

    def decrease(self, *frames: int) -> Hypercall:
        return self.memory_op(Xen2003.DECREASE, frames)

    def read_only(self, *pages: int) -> list[Hypercall]:
        """Map pages read-only, so that they can become tables."""
        return [self.map(page, self.frame(page) << 12 | 1) for page in pages]

    def set_gdt(self, *frames: int, entries: int = 0) -> Hypercall:
        """A GDT in these frames, of as many entries as fit."""
        data = ((self.va(LIST), frames),) if frames else ()
        return self.call(Xen2003.SET_GDT, self.va(LIST), entries or 512 * len(frames), data=data)

    def set_descriptor(self, frame: int, place: int, descriptor: int) -> Hypercall:
        """update_descriptor."""
        return self.call(Xen2003.UPDATE_DESCRIPTOR, frame << 12 | place << 3, descriptor & 0xFFFFFFFF, descriptor >> 32)

    def set_ldt(self, page: int, entries: int) -> Hypercall:
        """An LDT from a page on."""
        return self.update((self.va(page) | Xen2003.EXTENDED, entries << 8 | Xen2003.SET_LDT))

    def set_traps(self, *handlers: tuple[int, int, int, int], end: tuple[int, ...] = (0, 0)) -> Hypercall:
        """set_trap_table: (vector, flags, CS, EIP) each."""
        words = tuple(w for vector, flags, cs, ip in handlers for w in (vector | flags << 8 | cs << 16, ip)) + end
        return self.call(Xen2003.SET_TRAP_TABLE, self.va(LIST), data=((self.va(LIST), words),))

    def multicall(self, *calls: tuple[int, ...]) -> Hypercall:
        words = tuple(word for call in calls for word in (*call, *(0,) * (8 - len(call))))
        data = ((self.va(LIST), words),) if words else ()
        return self.call(Xen2003.MULTICALL, self.va(LIST), len(calls), data=data)


def request(command: int, frame: int = 0, operand: int = 0) -> tuple[int, int]:
    """An extended command as a request of mmu_update."""
    return frame << 12 | Xen2003.EXTENDED, operand << 8 | command


def segment(kind: int = 0x13, dpl: int = 1, base: int = 0, pages: int = 1, low: int = 0xFFF) -> int:
    """A present segment of so many pages; `kind` is S and the type, `low` the last offset in its last page (0xFFF: G is set)."""
    limit, unit = (pages - 1, 1) if low == 0xFFF else ((pages - 1) << 12 | low, 0)
    return (limit & 0xFFFF | (base & 0xFFFFFF) << 16 | kind << 40 | dpl << 45 | 1 << 47 | limit >> 16 << 48 | unit << 55 | 1 << 54
            | base >> 24 << 56)


def gate(selector: int, kind: int = 0xC, dpl: int = 1, offset: int = 0xC0001000, parameters: int = 0) -> int:
    """A present gate."""
    return offset & 0xFFFF | selector << 16 | parameters << 32 | kind << 40 | dpl << 45 | 1 << 47 | offset >> 16 << 48


# --- looking at the machine ---------------------------------------------------------------------------------------------------

def fault(vector: int, error: int = 0, address: int = 0) -> Outcome:
    return Outcome(0, vector, error, address)


def value(number: int = 0) -> Outcome:
    return Outcome(number)


def frame_words(seen: Observation) -> list[int]:
    return memoryview(seen.frames).cast("B").cast("Q").tolist()


def frame_of(target: EmulatorTarget, frame: int) -> tuple[int, int, int, int, bool]:
    """(owner, type, typed references, references, pinned)."""
    return unpack_frame(frame_words(target.observe())[frame])


def word_of(target: EmulatorTarget, frame: int, index: int) -> int:
    """A word of memory."""
    memory = memoryview(target.observe().memory).cast("B").cast("I")
    first = target.hypervisor.boot.setup.xen_frames
    word: int = memory[(frame - first) * 1024 + index]
    return word


def visible(target: EmulatorTarget) -> tuple[int, bytes, bytes, bytes, dict[int, int]]:
    """Everything that an observation shows."""
    seen = target.observe()
    return seen.extent, bytes(seen.frames), bytes(seen.memory), bytes(seen.m2p), seen.base
