"""The machine at boot, as RULINGS.md lays it out: the words of frames, the contents of pages, the machine-to-physical array."""
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from emulator import layout
from emulator.errors import HarnessError
from spec import abi
from spec.abi import PAGE_SIZE, RW, US, A, D, P, Xen2003
from spec.vocabulary import FREE_FRAME, RETF, DomainSetup, Setup, pack_frame

NOT_MAPPED: Final = 0xFFFFFFFF                  # machine-to-physical word of a frame that belongs to no domain
_RETF_PAGE: Final = 1


@dataclass(frozen=True, slots=True)
class Boot:
    """The boot state of one setup; nobody writes it."""
    setup: Setup
    words: NDArray[np.uint64]                   # a frame's word each
    m2p: NDArray[np.uint32]
    m2p_word: int                               # where that array lies in RAM
    xen_descriptors: tuple[int, ...]            # the words that Xen keeps at its entries of every GDT
    pages: dict[int, bytes]                     # contents of frames that are not zero
    base: dict[int, int]
    limit: dict[int, int]                       # frames that a domain may have
    extent: int                                 # frames from here on are free
    free_ranges: tuple[tuple[int, int], ...]


def boot(setup: Setup) -> Boot:
    """The boot state of a setup."""
    check(setup)
    words = np.full(setup.frames, FREE_FRAME, np.uint64)
    words[:setup.xen_frames] = pack_frame(abi.DOMID_XEN, abi.NONE, 0, 0, False)
    m2p = np.full(setup.frames, NOT_MAPPED, np.uint32)
    pages: dict[int, bytes] = {}
    free: list[tuple[int, int]] = []
    end = setup.xen_frames
    for domain in sorted(setup.domains, key=lambda d: d.first):
        free.append((end, domain.first))
        end = domain.first + domain.pages + 1
        words[domain.first:end] = domain_words(domain)
        m2p[domain.first:end] = np.arange(domain.pages + 1)
        pages |= domain_pages(domain, setup.xen_slots)
    free.append((end, setup.frames))
    return Boot(setup, words, m2p, layout.M2P_FRAME * PAGE_SIZE // 4, layout.xen_descriptors(), pages,
                base={d.domid: root(d) for d in setup.domains}, limit={d.domid: d.pages for d in setup.domains},
                extent=end, free_ranges=tuple((start, stop) for start, stop in free if start < stop))


def check(setup: Setup) -> None:
    """Refuse a setup that this machine cannot be."""
    def require(condition: bool, what: str) -> None:
        if not condition:
            raise HarnessError(f"not a machine: {what}")
    require(setup.profile == "xen-2003", f"profile {setup.profile}")
    require(setup.frames <= layout.MAX_FRAMES, f"setup.frames: {setup.frames} are too many, {layout.MAX_FRAMES} can be had")
    least = layout.xen_frames(setup.frames)
    require(least <= setup.xen_frames <= setup.frames, f"setup.xen_frames: {setup.xen_frames}, but this hypervisor takes {least}")
    require(setup.xen_slots == layout.xen_slots(), "setup.xen_slots: they are not this hypervisor's")
    require(setup.xen_descriptors in ((), layout.xen_descriptors()), "setup.xen_descriptors: they are not this hypervisor's")
    require(0 < len(setup.domains) == len({d.domid for d in setup.domains}), "no domain, or one twice")
    end = setup.xen_frames
    for domain in sorted(setup.domains, key=lambda d: d.first):
        require(0 <= domain.domid < abi.DOMID_SELF, f"domain number {domain.domid}")
        require(domain.first >= end, f"domain {domain.domid} overlaps")
        require(domain.pages > _RETF_PAGE + l1_tables(domain) + 1, f"domain {domain.domid} is too small")
        require(domain.pages < (Xen2003.HOLE - Xen2003.BASE) // PAGE_SIZE, f"domain {domain.domid} is too large")
        end = domain.first + domain.pages + 1
    require(end <= setup.frames, "a domain lies beyond the last frame")


def l1_tables(domain: DomainSetup) -> int:
    """L1 tables that map the domain's pages and its shared_info."""
    return (domain.pages + 1 + 1023) // 1024


def root(domain: DomainSetup) -> int:
    """The L2 table, the domain's very last page."""
    return domain.first + domain.pages - 1


def domain_words(domain: DomainSetup) -> NDArray[np.uint64]:
    """The words of the domain's frames, shared_info last."""
    d, n = domain.domid, l1_tables(domain)
    words = np.full(domain.pages + 1, pack_frame(d, abi.WRITABLE, 1, 1, False), np.uint64)
    words[-2 - n:-2] = pack_frame(d, abi.L1, 1, 2, False)
    words[-2] = pack_frame(d, abi.L2, 2, 3, True)
    words[-1] = pack_frame(d, abi.WRITABLE, 2, 2, False)
    return words


def domain_pages(domain: DomainSetup, xen_slots: tuple[int, ...]) -> dict[int, bytes]:
    """The contents of the domain's pages that are not zero: the far returns and the tables."""
    n, l2 = l1_tables(domain), root(domain)
    l1 = l2 - n
    entries = np.zeros(n * 1024, np.uint32)
    entries[:domain.pages + 1] = np.arange(domain.first, domain.first + domain.pages + 1) << 12 | (P | RW | A | D)
    entries[domain.pages - 1 - n:domain.pages] &= ~np.uint32(RW)
    directory = np.zeros(1024, np.uint32)
    directory[Xen2003.BASE >> 22:(Xen2003.BASE >> 22) + n] = np.arange(l1, l2) << 12 | (P | RW | US | A | D)
    directory[Xen2003.XEN_SLOT:] = xen_slots
    directory[Xen2003.LINEAR_SLOT] |= l2 << 12
    pages = {domain.first + _RETF_PAGE: bytes([RETF]) * PAGE_SIZE, l2: directory.tobytes()}
    for k in range(n):
        pages[l1 + k] = entries[k * 1024:(k + 1) * 1024].tobytes()
    return pages
