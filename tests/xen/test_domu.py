"""The domU: built by domain 0, unprivileged, with a subject of its own, taking turns, and dying alone."""
from collections.abc import Iterator

import pytest

from emulator.errors import HarnessError
from emulator.xen.batch import NO_FAULT, Batch, Result
from emulator.xen.domu import DomU, build
from emulator.xen.fetch import Tools
from emulator.xen.machine import Crashed, RealXen
from emulator.xen.subject import Layout, subject
from spec.abi import DOMID_SELF, EINVAL, EPERM, ESRCH, GUEST_KERNEL, PF, PF_PROT, PF_USER, PF_WRITE, Xen417

START = "two"
PAGES = 64
PAGE = 0x67 | GUEST_KERNEL
OK = Result(0, 0, NO_FAULT, 0)


@pytest.fixture(scope="module")
def built(tools: Tools) -> Iterator[tuple[RealXen, DomU, Layout, Layout]]:
    """Domain 0 and a domU, each with a subject."""
    with RealXen(tools) as xen:
        domu = build(xen, PAGES)
        layouts = subject(xen, PAGES), subject(domu, PAGES)
        xen.snapshot(START)
        yield xen, domu, *layouts


@pytest.fixture
def two(built: tuple[RealXen, DomU, Layout, Layout]) -> tuple[RealXen, DomU, Layout, Layout]:
    """Both at the start."""
    built[0].restore(START)
    return built


def refused(error: int) -> int:
    return 2**64 - error


def map_frame(batch: Batch, scratch: int, layout: Layout, page: int, mfn: int, owner: int) -> None:
    """Ask for a frame of `owner` in place of a page of the subject."""
    entry = layout.leaves[0] << 12 | 8 * page
    batch.hypercall(Xen417.MMU_UPDATE, (scratch, 1, 0, owner), ((scratch, (entry, mfn << 12 | PAGE)),))


def test_the_domu_works_like_domain_0(two: tuple[RealXen, DomU, Layout, Layout]) -> None:
    _xen, domu, _ours, theirs = two
    b = Batch()
    b.store(theirs.va(5), 7)
    b.load(theirs.va(5))
    b.execute(theirs.va(1))
    b.store(theirs.va(PAGES - 1), 1)
    b.hypercall(Xen417.MMUEXT_OP, (domu.scratch, 1, 0, DOMID_SELF), ((domu.scratch, (Xen417.NEW_USER_BASEPTR, theirs.root)),))
    b.load(theirs.va(5), user=True)
    b.execute(theirs.va(1), user=True)
    b.load(theirs.va(PAGES) + 8)
    assert domu.do(b)[:7] == [OK, OK._replace(value=7), OK, Result(0, theirs.va(PAGES - 1), PF, PF_USER | PF_WRITE | PF_PROT), OK,
                              OK._replace(value=7), OK]


def test_what_only_domain_0_may(two: tuple[RealXen, DomU, Layout, Layout]) -> None:
    """Both ask for a frame of the other; and for a frame of a domain that is not there."""
    xen, domu, ours, theirs = two
    of_domain_0, of_the_domu = Batch(), Batch()
    for owner in (domu.domid, 77):
        map_frame(of_domain_0, xen.scratch, ours, 5, theirs.first + 6, owner)
    of_domain_0.store(ours.va(5), 99)
    for owner in (0, DOMID_SELF, 77):
        map_frame(of_the_domu, domu.scratch, theirs, 5, ours.first + 6, owner)
    of_the_domu.load(theirs.va(6))
    assert [each.value for each in xen.do(of_domain_0)] == [0, refused(ESRCH), 0]
    found = [each.value for each in domu.do(of_the_domu)]
    assert found[0] == refused(EPERM)
    assert found[2:] == [refused(ESRCH), 99]


def test_turns_within_a_pair_of_batches(two: tuple[RealXen, DomU, Layout, Layout]) -> None:
    """Each adds to a page that domain 0 has mapped, and each sees what the other wrote before."""
    xen, domu, ours, theirs = two
    b = Batch()
    map_frame(b, xen.scratch, ours, 5, theirs.first + 6, domu.domid)
    assert xen.do(b)[0].value == 0
    mine, its, rounds = Batch(), Batch(), 50
    for n in range(rounds):
        mine.store(ours.va(5), 2 * n)
        mine.turn(domu.port)
        mine.load(ours.va(5))
        its.load(theirs.va(6))
        its.store(theirs.va(6), 2 * n + 1)
        if n < rounds - 1:
            its.turn(domu.own_port)
    domu.post(its.words, len(its))
    assert [each.value for each in xen.do(mine)][2::3] == [2 * n + 1 for n in range(rounds)]
    assert domu.is_done
    size = len(domu.results()) // len(its)
    assert [int.from_bytes(domu.results()[n * size:n * size + 8], "little") for n in range(0, len(its), 3)] == [
        2 * n for n in range(rounds)]


def test_a_turn_too_many_is_noticed(two: tuple[RealXen, DomU, Layout, Layout]) -> None:
    _xen, domu, *_ = two
    b = Batch()
    b.turn(domu.own_port)
    b.load(domu.scratch)
    with pytest.raises(HarnessError, match="before its batch was done"):
        domu.run(b.words, len(b))
    domu.take_turn()
    assert domu.is_done


def test_a_domu_that_dies_and_the_machine_that_comes_back(two: tuple[RealXen, DomU, Layout, Layout]) -> None:
    xen, domu, _ours, theirs = two
    b = Batch()
    b.load(theirs.va(5))
    b.load(theirs.va(5), user=True)                      # there is no user root
    with pytest.raises(Crashed, match="a domU crashed") as caught:
        domu.do(b)
    assert caught.value.done == 1
    xen.restore(START)
    b = Batch()
    b.load(theirs.va(1))
    b.hypercall(Xen417.UPDATE_VA_MAPPING, (1 << 40, 0, 0))
    assert [each.value for each in domu.do(b)] == [int.from_bytes(b"\xcb" * 8), refused(EINVAL)]


def test_memory_that_is_not_there(tools: Tools) -> None:
    with RealXen(tools) as xen, pytest.raises(HarnessError, match="no 32768 frames"):
        build(xen, 1 << 15)
