"""memory_op of xen-4.17: reservations and exchange (xen-4.17.md §10)."""
import pytest

from spec.abi import (
    DOMID_SELF,
    EACCES,
    EFAULT,
    EINVAL,
    ENOMEM,
    ENOSYS,
    EPERM,
    ESRCH,
    GUEST_KERNEL,
    NOBODY,
    US,
    WRITABLE,
    A,
    D,
    P,
    Xen417,
)
from spec.vocabulary import Hypercall, Outcome

X = Xen417
KERNEL = P | US | A | D | GUEST_KERNEL


def give(xen, dom, *pages):
    """Unmap pages and give their frames back."""
    for page in pages:
        assert xen.uvm(dom, xen.va(page), 0) == 0
    assert xen.reserve(dom, X.DECREASE, *(xen.frame(dom, page) for page in pages)) == len(pages)


# --- operations --------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("op", [8, 29, 33, 63])
def test_unknown_operations(xen, op):
    assert xen.call(1, X.MEMORY_OP, op, 0) == -ENOSYS
    assert xen.refused == ["MEM-11.1"]


@pytest.mark.parametrize("op", [2, 3, 4, 7, 11, 14, 15])
def test_operations_without_a_list_start_at_their_start(xen, op):
    assert xen.call(1, X.MEMORY_OP, op | 1 << 6, 0) == -EINVAL
    assert xen.refused == ["MEM-11.2"]


def test_maximum_ram_page(xen):
    assert xen.call(1, X.MEMORY_OP, X.MAXIMUM_RAM_PAGE, 0) == 2048


@pytest.mark.parametrize("op", [X.CURRENT_RESERVATION, X.MAXIMUM_RESERVATION, X.MAXIMUM_GPFN])
def test_numbers_of_a_domain(xen, op):
    assert xen.call(1, X.MEMORY_OP, op, 0x1000) == -EFAULT
    for domid, expected in ((77, -ESRCH), (2, -EPERM), (1, None), (DOMID_SELF, None)):
        result = xen.call(1, X.MEMORY_OP, op, xen.va(2), data=((xen.va(2), (domid,)),))
        assert result == ({X.MAXIMUM_GPFN: 0}.get(op, xen.pages) if expected is None else expected)
    assert xen.call(0, X.MEMORY_OP, op, xen.va(2), data=((xen.va(2), (2,)),)) >= 0


def test_maximum_gpfn_is_what_the_domain_says(xen):
    xen.store(1, xen.va(xen.pages, X.MAX_PFN_OFFSET), 100)
    for value, expected in ((100, 99), (1, 0), (0, 0), ((1 << 64) - 1, -2)):
        xen.store(1, xen.va(xen.pages, X.MAX_PFN_OFFSET), value)
        assert xen.call(1, X.MEMORY_OP, X.MAXIMUM_GPFN, xen.va(2), data=((xen.va(2), (DOMID_SELF,)),)) == expected


@pytest.mark.parametrize("op", [X.ADD_TO_PHYSMAP, X.REMOVE_FROM_PHYSMAP])
def test_pv_domains_have_no_physmap(xen, op):
    def ask(domid, space=0):
        return xen.call(1, X.MEMORY_OP, op, xen.va(2), data=((xen.va(2), (domid | space << 32, 0, 0)),))
    assert xen.call(1, X.MEMORY_OP, op, 0x1000) == -EFAULT
    assert ask(77, 4) == (-ENOSYS if op == X.ADD_TO_PHYSMAP else -ESRCH)
    assert ask(77) == -ESRCH
    assert ask(2) == ask(DOMID_SELF) == -EACCES


# --- what stops increase, decrease, populate: never an error number ----------------------------------------------------------

OPS = pytest.mark.parametrize("op", [X.INCREASE, X.DECREASE, X.POPULATE])


@OPS
def test_nothing_is_done(xen, op):
    give(xen, 1, 5, 6)
    free = [xen.frame(1, 5)]
    cases = [({"count": 1 << 26}, "MEM-14.1"), ({"count": 0}, "MEM-14.2"), ({"domid": 77}, "WHO-3.1"),
             ({"flags": 12}, "MEM-14.5"), ({"domid": 2}, "WHO-2.1"), ({"at": X.WINDOW}, "MEM-14.3"), ({"order": 10}, "MEM-14.4")]
    for wrong, rule in cases:
        assert xen.reserve(1, op, *free, **wrong) == 0
        assert xen.refused == [rule]
    assert xen.call(1, X.MEMORY_OP, op, 0x1000) == 0
    assert xen.refused == ["COPY-11.2"]
    assert xen.call(1, X.MEMORY_OP, op | 5 << 6, 0x1000) == 5       # the start is returned


@OPS
def test_start_beyond_the_end(xen, op):
    assert xen.reserve(1, op, 0, 0, start=2) == 2
    assert xen.refused == ["MEM-14.2"]


def test_list_is_checked_where_it_goes_on(xen):
    """The last address below Xen's slots is fine, the list's entry 1 is not (XSA-212)."""
    at = X.GUEST_LOW_END - 8
    assert xen.reserve(1, X.DECREASE, 0, 0, at=at, start=1) == 1
    assert xen.refused == ["MEM-14.3"]
    assert xen.reserve(1, X.DECREASE, 0, 0, at=at) == 0
    assert xen.refused == ["COPY-11.2"]


def test_larger_extents_for_the_privileged(xen):
    assert xen.reserve(0, X.INCREASE, count=1, order=18) == 0
    assert xen.refused == ["MEM-16.1"]
    assert xen.reserve(0, X.INCREASE, count=1, order=19) == 0
    assert xen.refused == ["MEM-14.4"]


# --- decrease ----------------------------------------------------------------------------------------------------------------

def test_decrease_frees_what_nothing_else_refers_to(xen):
    give(xen, 1, 5)
    f = xen.frame(1, 5)
    assert xen.m.s.owner[f] == NOBODY
    assert xen.m.s.pages[1] == xen.pages
    assert xen.m.s.m2p[f] == (1 << 64) - 1
    assert xen.uvm(1, xen.va(5), f << 12 | KERNEL) < 0


def test_decrease_of_a_mapped_frame_frees_it_with_its_last_mapping(xen):
    f = xen.frame(1, 5)
    assert xen.reserve(1, X.DECREASE, f, f) == 2                    # the second time there is nothing to drop
    assert xen.m.s.owner[f] == 1
    assert not xen.m.s.alloc[f]
    assert xen.count(f) == (WRITABLE, 1, 1)
    assert xen.store(1, xen.va(5), 1).vector < 0
    assert xen.uvm(1, xen.va(5), 0) == 0
    assert xen.m.s.owner[f] == NOBODY


def test_decrease_of_a_table_in_use(xen):
    l1 = xen.new_tables(1, 5, 1, {0: xen.frame(1, 6) << 12 | P})
    assert xen.reserve(1, X.DECREASE, l1, xen.frame(1, 6)) == 2
    assert xen.uvm(1, xen.va(6), 0) == 0
    assert xen.m.s.owner[xen.frame(1, 6)] == 1                      # the table maps it
    assert xen.ext(1, X.UNPIN, l1) == 0
    assert xen.m.s.owner[l1] == xen.m.s.owner[xen.frame(1, 6)] == NOBODY


def test_decrease_stops_at_what_is_not_the_domains(xen):
    f = xen.frame(1, 5)
    for bad in (xen.frame(2, 5), 3, xen.free, 1 << 60):
        assert xen.reserve(1, X.DECREASE, f, bad, f) == 1
        assert xen.refused == ["MEM-15.1"]


def test_decrease_of_shared_info_keeps_it(xen):
    assert xen.reserve(1, X.DECREASE, xen.shared(1)) == 1
    assert xen.uvm(1, xen.va(xen.pages), 0) == 0
    assert xen.m.s.owner[xen.shared(1)] == 1


def test_decrease_by_extents(xen):
    for page in range(8):
        assert xen.uvm(1, xen.va(8 + page), 0) == 0
    assert xen.reserve(1, X.DECREASE, xen.frame(1, 8), xen.frame(1, 12), order=2) == 2
    assert all(xen.m.s.owner[xen.frame(1, 8 + page)] == NOBODY for page in range(8))
    assert xen.reserve(1, X.DECREASE, xen.frame(1, 6), order=2) == 0        # 6 and 7, and then a free one
    assert not xen.m.s.alloc[xen.frame(1, 7)]


def test_privileged_domain_decreases_anothers(xen):
    assert xen.reserve(0, X.DECREASE, xen.frame(2, 5), domid=2) == 1
    assert xen.reserve(0, X.DECREASE, xen.frame(2, 6)) == 0


# --- increase, populate ------------------------------------------------------------------------------------------------------

def test_increase_within_the_limit(xen):
    assert xen.reserve(1, X.INCREASE, 0) == 0
    assert xen.refused == ["MEM-16.1"]
    give(xen, 1, 5, 6)
    assert xen.reserve(1, X.INCREASE, 0, 0, 0) == 2
    new = [xen.listed(1, n) for n in (0, 1)]
    assert all(xen.m.s.owner[f] == 1 for f in new)
    assert all(xen.count(f) == (0, 0, 0) for f in new)
    assert xen.uvm(1, xen.va(5), new[0] << 12 | KERNEL | 2) == 0


def test_increase_untold(xen):
    give(xen, 1, 5)
    assert xen.reserve(1, X.INCREASE, count=1, at=0) == 1
    assert xen.m.s.pages[1] == xen.pages + 1


def test_increase_that_cannot_be_told_is_not_counted_but_stays(xen):
    give(xen, 1, 5)
    assert xen.reserve(1, X.INCREASE, count=1, at=0x1000) == 0
    assert xen.refused == ["COPY-12.2"]
    assert xen.m.s.pages[1] == xen.pages + 1


def test_increase_tells_what_the_other_machine_chose(xen):
    give(xen, 1, 5)
    words = (xen.va(2, 1024), 1, 0, DOMID_SELF)
    action = Hypercall(1, X.MEMORY_OP, (X.INCREASE, xen.va(2)), ((xen.va(2), words),))
    assert xen.m.step(action, Outcome(1, chose=(1999,))).chose == (1999,)
    assert xen.listed(1, 0) == 1999


@pytest.mark.parametrize("choice", [3, 20, 4096])
def test_choice_that_is_not_free_is_refused(xen, choice):
    give(xen, 1, 5)
    action = Hypercall(1, X.MEMORY_OP, (X.INCREASE, xen.va(2)), ((xen.va(2), (0, 1, 0, DOMID_SELF)),))
    assert xen.m.step(action, Outcome(1, chose=(choice,))).value == 0


def test_extents_are_aligned_rows(xen):
    for page in range(8):
        assert xen.uvm(1, xen.va(8 + page), 0) == 0
    assert xen.reserve(1, X.DECREASE, *(xen.frame(1, 8 + page) for page in range(8))) == 8
    assert xen.reserve(1, X.INCREASE, 0, 0, order=2) == 2
    for n in (0, 1):
        f = xen.listed(1, n)
        assert f % 4 == 0
        assert all(xen.m.s.owner[f + k] == 1 for k in range(4))
    assert xen.reserve(1, X.INCREASE, 0, order=2) == 0


def test_limit_of_address_bits(xen):
    give(xen, 1, 5)
    assert xen.reserve(1, X.INCREASE, 0, flags=16) == 0
    assert xen.refused == ["MEM-16.2"]
    assert xen.reserve(1, X.INCREASE, 0, flags=20) == 1


def test_released_frame_comes_back_after_a_flush_as_it_was(xen):
    xen.store(1, xen.va(5), 4711)
    give(xen, 1, 5)
    before = xen.m.s.clock[0]
    assert xen.reserve(1, X.INCREASE, 0) == 1
    assert xen.m.s.clock[0] > before
    f = xen.listed(1, 0)
    assert f == xen.frame(1, 5)
    assert xen.word(f, 0) == 4711


def test_populate_names_the_frames(xen):
    give(xen, 1, 5, 6, 7)
    assert xen.reserve(1, X.POPULATE, 100, 200) == 2
    assert [xen.m.s.m2p[xen.listed(1, n)] for n in (0, 1)] == [100, 200]
    assert xen.reserve(1, X.POPULATE, count=1, at=0x1000) == 0
    assert xen.refused == ["COPY-11.2"]
    assert xen.reserve(1, X.POPULATE, count=1, at=0) == 0           # populate has a list
    assert xen.m.s.pages[1] == xen.pages


def test_populate_by_extents(xen):
    for page in range(4):
        assert xen.uvm(1, xen.va(8 + page), 0) == 0
    assert xen.reserve(1, X.DECREASE, *(xen.frame(1, 8 + page) for page in range(4))) == 4
    assert xen.reserve(1, X.POPULATE, 100, order=1) == 1
    f = xen.listed(1, 0)
    assert (xen.m.s.m2p[f], xen.m.s.m2p[f + 1]) == (100, 101)


def test_populate_stays_although_it_cannot_be_told(xen):
    """The list is in a page that can be read, not written."""
    give(xen, 1, 5)
    assert xen.uvm(1, xen.va(6), xen.frame(1, 6) << 12 | KERNEL, 2) == 0
    assert xen.reserve(1, X.POPULATE, count=1, at=xen.va(6)) == 0
    assert xen.refused == ["COPY-12.2"]
    assert xen.m.s.pages[1] == xen.pages + 1


def test_privileged_domain_populates_another(xen):
    give(xen, 2, 5)
    assert xen.reserve(0, X.POPULATE, 100, domid=2) == 1
    assert xen.m.s.owner[xen.listed(0, 0)] == 2


def test_empty_pool(make_417):
    xen = make_417(domains=2, frames=16 + 2 * 33)
    give(xen, 1, 5)
    assert xen.reserve(1, X.INCREASE, 0, 0) == 1
    assert xen.refused == ["MEM-16.1"]
    give(xen, 0, 5)
    assert xen.reserve(0, X.INCREASE, 0, order=1) == 0


# --- exchange ----------------------------------------------------------------------------------------------------------------

def unmap(xen, *pages):
    for page in pages:
        assert xen.uvm(1, xen.va(page), 0) == 0
    return tuple(xen.frame(1, page) for page in pages)


def test_exchange(xen):
    given = unmap(xen, 5, 6)
    assert xen.exchange(1, given, (100, 200)) == 0
    assert xen.load(1, xen.va(2, 64)).value == 2                    # nr_exchanged
    new = [xen.load(1, xen.va(2, 2048 + 8 * n)).value for n in (0, 1)]
    assert new[0] not in given
    assert new[1] != given[1]
    assert [(xen.m.s.owner[f], xen.m.s.m2p[f]) for f in new] == [(1, 100), (1, 200)]
    assert xen.m.s.owner[given[1]] == NOBODY
    assert xen.m.s.m2p[given[1]] == (1 << 64) - 1


def test_exchange_of_many_for_one_and_back(xen):
    given = unmap(xen, *range(8, 16))
    assert xen.exchange(1, given, (100, 200), orders=(0, 2)) == 0
    rows = tuple(xen.load(1, xen.va(2, 2048 + 8 * n)).value for n in (0, 1))
    assert all(f % 4 == 0 and xen.m.s.owner[f + 3] == 1 for f in rows)
    assert xen.m.s.m2p[rows[0] + 3] == 103
    assert xen.exchange(1, rows, tuple(range(50, 58)), orders=(2, 0)) == 0
    assert {xen.m.s.m2p[xen.load(1, xen.va(2, 2048 + 8 * n)).value] for n in range(8)} == set(range(50, 58))


@pytest.mark.parametrize(("wrong", "errno", "rule"), [
    ({"orders": (10, 0), "done": 9}, EPERM, "MEM-17.1"),
    ({"orders": (0, 10), "done": 9}, EPERM, "MEM-17.1"),
    ({"done": 3, "domids": (1, 2)}, EINVAL, "MEM-17.2"),
    ({"domids": (1, DOMID_SELF)}, EINVAL, "MEM-17.3"),
    ({"counts": (1 << 63, 1 << 62), "orders": (1, 2)}, EINVAL, "MEM-17.4"),
    ({"counts": (2, 1)}, EINVAL, "MEM-17.5"),
    ({"lists": (X.WINDOW, X.WINDOW)}, EFAULT, "MEM-18.1"),
    ({"lists": (0x1000, X.WINDOW), "domids": (77, 77)}, EFAULT, "MEM-18.2"),
    ({"domids": (77, 77)}, ESRCH, "WHO-3.1"),
    ({"domids": (2, 2)}, EPERM, "WHO-2.1"),
])
def test_exchange_checks_in_order(xen, wrong, errno, rule):
    given = unmap(xen, 5, 6)
    assert xen.exchange(1, given, (100, 200), **wrong) == -errno
    assert xen.refused == [rule]
    assert xen.load(1, xen.va(2, 64)).value == wrong.get("done", 0)
    assert all(xen.m.s.owner[f] == 1 for f in given)


def test_exchange_that_is_done_already(xen):
    assert xen.exchange(1, (1, 2), (100, 200), done=2, lists=(X.WINDOW, X.WINDOW), domids=(77, 77)) == 0


def test_exchange_goes_on_where_it_stopped(xen):
    given = unmap(xen, 5, 6)
    assert xen.exchange(1, (0, given[1]), (100, 200), done=1) == 0
    assert xen.m.s.owner[given[0]] == 1
    assert xen.m.s.owner[given[1]] == NOBODY


@pytest.mark.parametrize(("bad", "errno", "rule"), [
    (lambda xen: xen.frame(2, 5), EINVAL, "MEM-19.1"),
    (lambda xen: 1 << 60, EINVAL, "MEM-19.1"),
    (lambda xen: xen.free + 9, EINVAL, "MEM-19.1"),
    (lambda xen: xen.frame(1, 5), EINVAL, "MEM-19.1"),              # a second time
    (lambda xen: xen.shared(1), EINVAL, "MEM-19.2"),
    (lambda xen: xen.frame(1, 7), EINVAL, "MEM-19.3"),              # mapped
])
def test_exchange_gives_only_what_nothing_refers_to(xen, bad, errno, rule):
    """The first extent was exchanged; the second is refused."""
    f, = unmap(xen, 5)
    assert xen.exchange(1, (f, bad(xen)), (100, 200)) == -errno
    assert xen.refused == [rule]
    assert xen.load(1, xen.va(2, 64)).value == 1
    assert xen.m.s.owner[f] == NOBODY
    assert xen.m.s.pages[1] == xen.pages + 1


def test_exchange_of_what_was_given_up(xen):
    assert xen.reserve(1, X.DECREASE, xen.frame(1, 5)) == 1
    assert xen.exchange(1, (xen.frame(1, 5),), (100,)) == -EINVAL
    assert xen.refused == ["MEM-19.3"]


def test_refused_chunk_gives_everything_back(xen):
    given = unmap(xen, 5, 6)
    assert xen.exchange(1, (*given, xen.frame(1, 7), xen.frame(1, 8)), (100,), orders=(0, 2)) == -EINVAL
    assert all(xen.m.s.owner[f] == 1 and xen.m.s.alloc[f] for f in given)
    assert xen.load(1, xen.va(2, 64)).value == 0


def test_unreadable_lists(xen):
    given = unmap(xen, 5)
    assert xen.exchange(1, given, (100,), lists=(0x1000, xen.va(2, 2048))) == -EFAULT
    assert xen.m.s.owner[given[0]] == 1
    assert xen.exchange(1, given, (100,), lists=(xen.va(2, 1024), 0x1000)) == -EFAULT
    assert xen.refused == ["MEM-18.3"]
    assert xen.m.s.owner[given[0]] == NOBODY                        # the exchange was made, and is not counted
    assert xen.load(1, xen.va(2, 64)).value == 0
    assert xen.call(1, X.MEMORY_OP, X.EXCHANGE, 0x1000) == -EFAULT


def test_how_far_it_came_cannot_be_told(xen):
    given = unmap(xen, 5)
    words = (xen.va(2, 1024), 1, 0, DOMID_SELF, xen.va(2, 2048), 1, 0, DOMID_SELF, 0)
    data = ((xen.va(6), words), (xen.va(2, 1024), given))
    assert xen.call(1, X.MEMORY_OP, 63, 0, data=data) == -ENOSYS    # only to write the arguments
    assert xen.uvm(1, xen.va(6), xen.frame(1, 6) << 12 | KERNEL, 2) == 0
    assert xen.call(1, X.MEMORY_OP, X.EXCHANGE, xen.va(6)) == -EFAULT
    assert xen.refused == ["COPY-12.2"]
    assert xen.m.s.owner[given[0]] == NOBODY


def test_no_frames_to_exchange_for(make_417):
    xen = make_417(domains=2, frames=16 + 2 * 33)
    given = unmap(xen, 5)
    assert xen.exchange(1, given, (100,)) == -ENOMEM
    assert xen.refused == ["MEM-16.2"]
    assert xen.m.s.owner[given[0]] == 1
    assert xen.m.s.alloc[given[0]]


def test_what_is_given_is_not_what_is_got(xen):
    given = unmap(xen, 5)
    words = (xen.va(2, 1024), 1, 0, DOMID_SELF, xen.va(2, 2048), 1, 0, DOMID_SELF, 0)
    action = Hypercall(1, X.MEMORY_OP, (X.EXCHANGE, xen.va(2)), ((xen.va(2), words), (xen.va(2, 1024), given)))
    out = xen.m.step(action, Outcome(0, chose=given))
    assert out.value == -ENOMEM
    assert out.chose == ()
    assert xen.refused == ["MEM-16.3"]


def test_privileged_domain_exchanges_for_another(xen):
    assert xen.uvm(2, xen.va(5), 0) == 0
    assert xen.exchange(0, (xen.frame(2, 5),), (100,), domids=(2, 2)) == 0
    assert xen.m.s.owner[xen.load(0, xen.va(2, 2048)).value] == 2
