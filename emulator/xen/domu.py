"""An unprivileged domain, built by domain 0 with domctls, in which the same executor runs and takes turns with domain 0's.

Its memory is one stretch: first the executor's image and what Xen's own builder would have put after it (the list of frames,
the start info, page tables for 8 MB from address 0), then pages for a subject.  The two executors wake each other over an event
channel, so that only one domain is ever awake: `DomU.run` lets the other one work a whole batch, and `Batch.turn` passes the turn
within a pair of batches.
"""
import struct
from pathlib import Path
from typing import Final

from emulator.errors import HarnessError
from emulator.xen.batch import Batch
from emulator.xen.machine import Crashed, Guest, RealXen
from spec.abi import PAGE_SIZE, RW, US, A, D, P, Xen417

DOMCTL, EVENT_CHANNEL_OP = 36, 32
DOMCTL_VERSION: Final = 0x15
CREATE, UNPAUSE, GET_INFO, MAX_MEM, SET_CONTEXT, MAX_VCPUS = 1, 4, 5, 11, 12, 15
ALLOC_UNBOUND, BIND_INTERDOMAIN = 6, 0

ENTRIES: Final = 512
BOOT_ORDER: Final = 11                      # 8 MB: image, list of frames, start info and tables
BOOT_PAGES: Final = 1 << BOOT_ORDER
BOOT_LEAVES: Final = BOOT_PAGES // ENTRIES
START_INFO: Final = struct.Struct("<32sQQIIQIIQQQQQQQ")
FLAT_CS, FLAT_SS = 0xE033, 0xE02B
IN_KERNEL_AND_ONLINE: Final = 1 << 2 | 1 << 5
CR0: Final = 0x80050033
UPCALL_MASK, EVENTS_PENDING = 1, 2048       # in shared_info: no event ever interrupts; a bit a port
PORT_FIELD: Final = 8 * 20                  # in the mailbox


class DomU(Guest):
    """The executor of a domU.  It is built by `build`."""

    def __init__(self, xen: RealXen, domid: int, p2m: tuple[int, ...]) -> None:
        super().__init__(xen.ram)
        self.xen, self.domid, self.p2m = xen, domid, p2m
        self.pages = len(p2m)
        self.port = self.own_port = 0       # domain 0's end of the event channel, and this domain's

    def run(self, batch: bytes | memoryview, operations: int, timeout: float | None = None) -> memoryview:
        """Post a batch and let the domU work it off; a batch with turns in it needs as many turns of domain 0."""
        self.post(batch, operations)
        self.take_turn(timeout)
        return self.results()

    def take_turn(self, timeout: float | None = None) -> None:
        """Let the domU work off what was posted."""
        mine = Batch()
        mine.turn(self.port)
        try:
            self.xen.run(mine.words, len(mine), timeout)
        except Crashed as crash:
            crash.done = self.progress
            raise
        if not self.is_done:
            raise HarnessError(f"domain {self.domid} gave its turn back before its batch was done")

    def put(self, address: int, data: bytes) -> None:
        """Write to the memory from (pseudo-physical) address on."""
        at = self.p2m[address // PAGE_SIZE] * PAGE_SIZE + address % PAGE_SIZE
        self.ram[at:at + len(data)] = data


def build(xen: RealXen, pages: int, headroom: int = 0) -> DomU:
    """Make a domU with room for a subject of `pages` pages, which may get `headroom` frames more, and start its executor."""
    order = max(0, (pages - 1).bit_length())
    domid = struct.unpack_from("<H", domctl(xen, CREATE, 0, creation()), 8)[0]
    domctl(xen, MAX_MEM, domid, struct.pack("<Q", (BOOT_PAGES + (1 << order) + headroom) * PAGE_SIZE // 1024))
    domctl(xen, MAX_VCPUS, domid, struct.pack("<I", 1))
    shared_info = struct.unpack_from("<Q", domctl(xen, GET_INFO, domid, b""), 64)[0]
    first, second = populate(xen, domid, 0, BOOT_ORDER), populate(xen, domid, BOOT_PAGES, order)
    domu = DomU(xen, domid, (*range(first, first + BOOT_PAGES), *range(second, second + (1 << order))))
    domu.own_port = event_call(xen, ALLOC_UNBOUND, struct.pack("<HHI", domid, 0, 0), 4)
    domu.port = event_call(xen, BIND_INTERDOMAIN, struct.pack("<HHII", domid, 0, domu.own_port, 0), 8)
    forget_event(xen, domu.port)
    domu.ram[shared_info * PAGE_SIZE + UPCALL_MASK] = 1
    start, entry = fill(domu, shared_info)
    domu.put(mailbox_va(xen) + PORT_FIELD, struct.pack("<Q", domu.own_port))
    begin(domu, start, entry)
    return domu


def creation() -> bytes:
    """What createdomain wants: a PV domain with one vCPU and hardly any grants."""
    return struct.pack("<I16sIIIIii5I", 0, b"xenspec's domU.", 0, 0, 1, 1023, 4, 4, 1, 0, 0, 0, 0)


def mailbox_va(xen: RealXen) -> int:
    """Where the mailbox is in every executor: the image is the same."""
    return xen.p2m.index(xen.mailbox // PAGE_SIZE) * PAGE_SIZE


# --- domain 0's calls --------------------------------------------------------------------------------------------------------

def call(xen: RealXen, what: str, nr: int, *args: int) -> int:
    """A hypercall of domain 0 that must not fail."""
    batch = Batch()
    batch.hypercall(nr, args)
    value = xen.do(batch)[0].value
    if value >> 63:
        raise HarnessError(f"domain 0 cannot build a domU: {what}: Xen says {value - (1 << 64)}")
    return value


def scratch(xen: RealXen, data: bytes, offset: int = 0) -> int:
    """Put an argument into domain 0's scratch memory; its address."""
    xen.ram[xen.scratch_at + offset:xen.scratch_at + offset + len(data)] = data
    return xen.scratch + offset


def domctl(xen: RealXen, command: int, domid: int, body: bytes) -> bytes:
    """A domctl; its structure afterwards."""
    given = struct.pack("<IIH6x", command, DOMCTL_VERSION, domid) + body.ljust(128, b"\0")
    call(xen, f"domctl {command}", DOMCTL, scratch(xen, given))
    return xen.ram[xen.scratch_at:xen.scratch_at + len(given)]


def event_call(xen: RealXen, command: int, body: bytes, where: int) -> int:
    """An event-channel operation; the port that it leaves at `where`."""
    call(xen, f"event_channel_op {command}", EVENT_CHANNEL_OP, command, scratch(xen, body))
    port: int = struct.unpack_from("<I", xen.ram, xen.scratch_at + where)[0]
    return port


def forget_event(xen: RealXen, port: int) -> None:
    """Clear the event that binding a channel raises."""
    at = xen.shared_info * PAGE_SIZE + EVENTS_PENDING + port // 64 * 8
    xen.set_word(at, xen.word(at) & ~(1 << port % 64))


def populate(xen: RealXen, domid: int, page: int, order: int) -> int:
    """Give a domain 2^order pages from a pseudo-physical page on; their first frame."""
    extents = scratch(xen, struct.pack("<Q", page), 64)
    request = scratch(xen, struct.pack("<QQIIHHI", extents, 1, order, 0, domid, 0, 0))
    if call(xen, "populate_physmap", Xen417.MEMORY_OP, Xen417.POPULATE, request) != 1:
        raise HarnessError(f"Xen has no {1 << order} frames one after another for a domU: give the machine more memory")
    return xen.word(xen.scratch_at + 64)


# --- what the domU finds -----------------------------------------------------------------------------------------------------

def fill(domu: DomU, shared_info: int) -> tuple[int, int]:
    """Write the domU's first memory: image, list of frames, start info, tables.  The address of the start info, and the entry."""
    for mfn in domu.p2m:
        domu.set_frame(mfn, bytes(PAGE_SIZE))
    entry = load_image(domu, domu.xen.tools.executor)
    p2m = domu.xen.image_end
    domu.put(p2m, struct.pack(f"<{domu.pages}Q", *domu.p2m))
    start = -(-(p2m + 8 * domu.pages) // PAGE_SIZE) * PAGE_SIZE
    base = start + PAGE_SIZE
    put_tables(domu, base // PAGE_SIZE)
    domu.put(start, START_INFO.pack(b"xen-3.0-x86_64", domu.pages, shared_info * PAGE_SIZE, 0, 0, 0, 0, 0, 0, 0,
                                    base, 3 + BOOT_LEAVES, p2m, 0, 0))
    return start, entry


def load_image(domu: DomU, image: Path) -> int:
    """Put an ELF's segments where they belong; its entry."""
    elf = image.read_bytes()
    entry, headers = struct.unpack_from("<QQ", elf, 24)
    for n in range(struct.unpack_from("<H", elf, 56)[0]):
        kind, _flags, offset, va, _pa, size = struct.unpack_from("<IIQQQQ", elf, headers + 56 * n)
        if kind == 1:
            domu.put(va, elf[offset:offset + size])
    return int(entry)


def put_tables(domu: DomU, page: int) -> None:
    """The boot tables, in pages from `page` on: L4, L3, L2, and the L1 tables of the first 8 MB."""
    own = range(page, page + 3 + BOOT_LEAVES)
    for level in range(2):
        domu.set_word(domu.p2m[page + level] * PAGE_SIZE, domu.p2m[page + level + 1] << 12 | P | RW | US | A | D)
    leaves = [domu.p2m[page + 3 + n] << 12 | P | RW | US | A | D for n in range(BOOT_LEAVES)]
    domu.put((page + 2) * PAGE_SIZE, struct.pack(f"<{BOOT_LEAVES}Q", *leaves))
    words = [domu.p2m[i] << 12 | P | US | A | D | RW * (i not in own) for i in range(BOOT_PAGES)]
    domu.put((page + 3) * PAGE_SIZE, struct.pack(f"<{BOOT_PAGES}Q", *words))


def begin(domu: DomU, start: int, entry: int) -> None:
    """Pin the tables, give the vCPU its registers, let it run until it waits for its turn, and read its mailbox."""
    xen, root = domu.xen, domu.p2m[start // PAGE_SIZE + 1]
    request = scratch(xen, struct.pack("<QQQ", Xen417.PIN_L4, root, 0))
    call(xen, "pin of the root", Xen417.MMUEXT_OP, request, 1, 0, domu.domid)
    context = scratch(xen, registers(start, entry, root), PAGE_SIZE)
    domctl(xen, SET_CONTEXT, domu.domid, struct.pack("<IIQ", 0, 0, context))
    given = struct.pack("<IIH6x", UNPAUSE, DOMCTL_VERSION, domu.domid).ljust(144, b"\0")
    batch = Batch()
    batch.hypercall(DOMCTL, (scratch(xen, given),))
    batch.wait(domu.port)
    xen.do(batch)
    domu.find(domu.p2m[mailbox_va(xen) // PAGE_SIZE] * PAGE_SIZE)
    xen.others.append(domu)


def registers(start: int, entry: int, root: int) -> bytes:
    """A vCPU's context: at the entry, in the kernel, RSI the start info, no trap table, the boot root."""
    r15_to_rcx, rdx, rsi, rdi = [0] * 12, 0, start, 0
    user = struct.pack("<15QIIQHHBBBBQQHHHHQQQQ", *r15_to_rcx, rdx, rsi, rdi, 0, 0, entry, FLAT_CS, 0, 0, 0, 0, 0, 2, 0, FLAT_SS,
                       0, 0, 0, 0, 0, 0, 0)
    fpu, traps, ldt, gdt = bytes(512), bytes(256 * 16), bytes(16), bytes(17 * 8)
    control = struct.pack("<8Q", CR0, 0, 0, root * PAGE_SIZE, 0, 0, 0, 0)
    debug, callbacks, bases = bytes(64), bytes(32), bytes(24)
    return b"".join((fpu, struct.pack("<Q", IN_KERNEL_AND_ONLINE), user, traps, ldt, gdt, struct.pack("<QQ", FLAT_SS, 0), control,
                     debug, callbacks, bases))


