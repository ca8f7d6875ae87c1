"""Programs of several domains on the real Xen: what domain 0 and domUs may do to one another; and their memory audited."""
import struct
from collections.abc import Callable

import pytest

from emulator.xen.frames import FrameTable, image
from oracle.ground import EXECUTOR_WINDOW, SHARED_INFO, Ground
from oracle.live import play
from oracle.targets import HarnessError, default_setup, model_of
from refmodel import audit, imported
from spec.abi import DOMID_SELF, EBUSY, EINVAL, EPERM, ESRCH, GUEST_KERNEL, L4, PAGE_SIZE, RW, Xen417
from spec.vocabulary import Action, Execute, Hypercall, Load, Setup, Store
from tests.xen.conftest import Held, played

X = Xen417
BUFFER = X.BASE + 0x2000
DOMAIN_SLOT = 260
NOBODY_HERE = 77
PAGE = 0x67 | GUEST_KERNEL


def va(page: int) -> int:
    return X.BASE + PAGE_SIZE * page


def frame(held: Held, d: int, page: int) -> int:
    return held[1].domains[d].first + page % held[1].domains[d].pages


def listed(d: int, nr: int, words: tuple[int, ...], *more: int) -> Hypercall:
    """A hypercall on a list of one request."""
    return Hypercall(d, nr, (BUFFER, 1, *more), ((BUFFER, words),))


def update(d: int, table: int, i: int, entry: int, owners: int = DOMID_SELF) -> Hypercall:
    """An mmu_update of one entry."""
    return listed(d, X.MMU_UPDATE, (table << 12 | 8 * i, entry), 0, owners)


def reservation(d: int, op: int, words: tuple[int, ...], of: int = DOMID_SELF) -> Hypercall:
    return Hypercall(d, X.MEMORY_OP, (op, BUFFER), ((BUFFER, (BUFFER + 32, len(words), 0, of, *words)),))


def outcomes(held: Held, actions: list[Action]) -> list[int]:
    """Of a program that model and machine agree on."""
    target, setup, machine = held
    verdict = play(machine, target, setup, actions)
    assert verdict.agrees, verdict.summary
    target.reset(setup)
    return [outcome.value for outcome in target.run(actions)]


def test_each_domain_is_laid_out_and_seen(two: Held) -> None:
    target, setup, machine = two
    machine.reset()
    target.reset(setup)
    assert [(d.domid, d.pages) for d in setup.domains] == [(0, 64), (1, 64)]
    seen = target.observe()
    assert seen.base == {d: frame(two, d, -1) for d in (0, 1)}
    assert machine.compare(seen) == []
    assert audit(machine.concrete) == []


def test_each_domain_has_a_slot_of_its_own(two: Held) -> None:
    target, setup, machine = two
    machine.reset()
    found = target.image(setup)
    assert found is not None
    assert len(set(found.domain_slot.values())) == 2
    for d in (0, 1):
        assert machine.concrete.maps["word"][frame(two, d, -1), DOMAIN_SLOT] == found.domain_slot[d]
    new = frame(two, 1, 20)
    assert outcomes(two, [Hypercall(1, X.UPDATE_VA_MAPPING, (va(20), new << 12 | 0x65, 2)),
                          listed(1, X.MMUEXT_OP, (X.PIN_L4, new, 0), 0, DOMID_SELF), Load(1, va(20) + 8 * DOMAIN_SLOT)])[2] == (
                              found.domain_slot[1])


def test_turns_between_actions(two: Held) -> None:
    program: list[Action] = [Store(1, va(5), 41)]
    for n in range(20):
        program += [Store(0, va(5), n), Load(n % 2, va(5)), Load(1, va(5))]
    program += [Load(1, va(4)), Execute(1, va(1) + 3), Execute(0, va(1))]
    assert outcomes(two, program)[1:7] == [0, 0, 41, 0, 41, 41]


def test_what_domain_0_may_do_to_another(two: Held) -> None:
    """Map its frames, change its tables and names on its behalf, pin its tables, give it memory."""
    theirs, both, mine = frame(two, 1, 6), 1 | 2 << 16, DOMID_SELF | 2 << 16
    leaf, data = frame(two, 1, 60), frame(two, 0, 9)
    assert outcomes(two, [
        Hypercall(0, X.UPDATE_VA_MAPPING_OTHERDOMAIN, (va(5), theirs << 12 | PAGE, 2, 1)),
        Store(0, va(5), 99), Load(1, va(6)),
        Hypercall(0, X.UPDATE_VA_MAPPING_OTHERDOMAIN, (va(5), data << 12 | PAGE, 2, NOBODY_HERE)),
        update(0, leaf, 70, theirs << 12 | PAGE, both), Load(1, va(70)),
        update(0, leaf, 71, data << 12 | PAGE, mine), Store(1, va(71), 7), Load(0, va(9)),
        listed(0, X.MMU_UPDATE, (theirs << 12 | X.MACHPHYS, 5), 0, 1),
        update(0, leaf, 20, 0, both), listed(0, X.MMUEXT_OP, (X.PIN_L1, frame(two, 1, 20), 0), 0, 1),
        Hypercall(0, X.UPDATE_VA_MAPPING, (va(7), theirs << 12 | PAGE, 2)),
    ]) == [0, 0, 99, -ESRCH, 0, 99, 0, 0, 7, 0, 0, 0, -EBUSY]
    assert outcomes(two, [reservation(0, X.INCREASE, (0,), 1), reservation(0, X.DECREASE, (frame(two, 1, 8),), 1)]) == [1, 1]


def test_what_others_may_not(two: Held) -> None:
    """The same by the domU: refused, and with the very error."""
    theirs, both, mine = frame(two, 0, 6), 0 | 1 << 16, DOMID_SELF | 1 << 16
    assert outcomes(two, [
        Hypercall(1, X.UPDATE_VA_MAPPING_OTHERDOMAIN, (va(5), theirs << 12 | PAGE, 2, 0)),
        Hypercall(1, X.UPDATE_VA_MAPPING_OTHERDOMAIN, (va(5), theirs << 12 | PAGE, 2, NOBODY_HERE)),
        Hypercall(1, X.UPDATE_VA_MAPPING, (va(5), theirs << 12 | PAGE, 2)),
        update(1, frame(two, 0, 60), 70, theirs << 12 | PAGE, both),
        update(1, frame(two, 0, 60), 70, theirs << 12 | PAGE, mine),
        update(1, frame(two, 0, 60), 70, theirs << 12 | PAGE),
        update(1, frame(two, 1, 60), 70, theirs << 12 | PAGE),
        update(1, frame(two, 1, 60), 70, theirs << 12 | PAGE, NOBODY_HERE),
        listed(1, X.MMUEXT_OP, (X.PIN_L1, theirs, 0), 0, 0), listed(1, X.MMUEXT_OP, (X.PIN_L1, theirs, 0), 0, NOBODY_HERE),
        listed(1, X.MMUEXT_OP, (X.PIN_L1, theirs, 0), 0, DOMID_SELF),
        Load(1, va(5)),
    ]) == [-EPERM, -ESRCH, -EBUSY, -EPERM, -EPERM, -EINVAL, -EBUSY, -ESRCH, -EPERM, -ESRCH, -EINVAL, 0]
    assert outcomes(two, [reservation(1, X.DECREASE, (theirs,), 0), reservation(1, X.INCREASE, (0,), 0),
                          reservation(1, X.DECREASE, (theirs,))]) == [0, 0, 0]
    assert outcomes(two, [Hypercall(1, X.MEMORY_OP, (X.CURRENT_RESERVATION, BUFFER), ((BUFFER, (d,)),))
                          for d in (0, NOBODY_HERE, 1)]) == [-EPERM, -ESRCH, two[2].concrete.maps["pages"][1] - 2]


def test_a_domu_gets_no_more_than_its_limit(two: Held) -> None:
    from emulator.xen.target import HEADROOM
    program: list[Action] = [reservation(1, X.INCREASE, (0,) * (HEADROOM + 3)), reservation(1, X.POPULATE, (5,)),
                             Hypercall(1, X.UPDATE_VA_MAPPING, (va(8), 0, 2)), reservation(1, X.DECREASE, (frame(two, 1, 8),)),
                             reservation(1, X.POPULATE, (5,)), reservation(0, X.POPULATE, (5,), 1)]
    assert outcomes(two, program) == [HEADROOM, 0, 0, 1, 1, 0]


def test_the_death_of_a_domu_is_reported_and_survived(two: Held) -> None:
    target, setup, _machine = two
    target.reset(setup)
    with pytest.raises(Exception, match=r"died of action 3 since its reset: (?s:.)*crashed"):
        target.run([Load(0, va(4)), Load(1, va(4)), Load(0, va(4)), update(1, frame(two, 1, -1), 0, 0), Load(0, va(4))])
    with pytest.raises(Exception, match="reset first"):
        target.run([Load(0, va(4))])
    assert outcomes(two, [Load(0, va(4)), Load(1, va(4))]) == [0, 0]


def test_the_ground_of_every_domain_stays(two: Held) -> None:
    """Who takes it away does not matter; an application needs it in its own domain's tables."""
    target, _, machine = two
    ground = Ground(machine, *target.ground())

    def reason(action: Action) -> str:
        machine.reset()
        return ground.tried(action)[0]
    assert reason(update(1, frame(two, 1, -1), 0, 0)) == EXECUTOR_WINDOW
    assert reason(update(0, frame(two, 1, -1), 0, 0, 1 | 2 << 16)) == EXECUTOR_WINDOW
    assert reason(Load(1, va(4), True)) == EXECUTOR_WINDOW
    for d in (0, 1):
        assert reason(Load(d, va(64))) == reason(Load(d, va(63) + 0xFFC)) == reason(Store(d, va(64) + 16, 1)) == SHARED_INFO
        assert reason(Load(d, va(63))) == reason(Load(d, va(65))) == ""
        copied = listed(d, X.MMUEXT_OP, (X.COPY_PAGE, frame(two, d, 9), machine.shared[d]), 0, DOMID_SELF)
        assert reason(copied) == SHARED_INFO


def test_programs_of_two_domains_agree(two: Held) -> None:
    for player in played(*two, [f"domains/{n}" for n in range(3)], 1000):
        assert {action.dom for action in player.actions} == {0, 1}


def test_three_domains(two: Held) -> None:
    target, before, _ = two
    setup = default_setup("xen-4.17", target, domains=3, pages=32)
    held = target, setup, model_of(target, setup)
    try:
        program: list[Action] = [Store(d, va(4), d) for d in (2, 1, 0, 2)]
        program += [Hypercall(1, X.UPDATE_VA_MAPPING_OTHERDOMAIN, (va(5), frame(held, 2, 6) << 12 | PAGE, 2, 2))]
        program += [Load(d, va(4)) for d in (0, 1, 2)]
        assert outcomes(held, program) == [0, 0, 0, 0, -EPERM, 0, 1, 2]
    finally:
        target.reset(before)


def test_another_number_of_domains_is_another_machine(two: Held) -> None:
    target, setup, _ = two
    with pytest.raises(Exception, match="for another machine"):
        target.reset(Setup(setup.profile, setup.frames, setup.xen_frames, setup.domains[1:], setup.xen_slots, setup.machine))
    target.reset(setup)


def test_a_target_without_room_says_so(two: Held) -> None:
    target, setup, _ = two
    with pytest.raises(Exception, match="give it more memory"):
        default_setup("xen-4.17", target, pages=1 << 14)
    target.reset(setup)
    assert issubclass(HarnessError, Exception)


# --- the memory of such a machine --------------------------------------------------------------------------------------------

class Ram:
    """A copy of the memory, to plant corruptions in."""

    def __init__(self, held: Held) -> None:
        target, setup, _ = held
        target.reset(setup)
        ram = target.memory()
        assert ram is not None
        self.held, self.octets = held, bytearray(ram)
        self.frames = FrameTable(self.octets)

    def word(self, at: int) -> int:
        return int(struct.unpack_from("<Q", self.octets, at)[0])

    def put(self, at: int, word: int) -> None:
        struct.pack_into("<Q", self.octets, at, word)

    def leaf(self, d: int, page: int) -> int:
        """Where the entry of a page is in the only L1 table of a domain's memory."""
        return frame(self.held, d, 60) * PAGE_SIZE + 8 * page

    def own(self, f: int, d: int) -> None:
        """Make a frame some domain's."""
        at = self.frames.place(f) + 24
        self.put(at, self.word(at) >> 32 << 32 | self.frames.records()[d])

    def violations(self) -> set[tuple[str, tuple[int, ...]]]:
        """Which rules are violated where, but for those of tables that a stale walk may be in: they say the same again."""
        return {(v.rule, v.key) for v in audit(imported(image(self.octets)).state) if v.rule != "SLOT-2"}


def test_the_memory_of_two_domains_keeps_every_rule(two: Held) -> None:
    assert Ram(two).violations() == set()


def test_every_reference_of_xens_is_named(two: Held) -> None:
    found = imported(image(Ram(two).octets))
    roots = {r.mfn for r in found.references if r.kind == "kernel root"}
    shared = {r.mfn for r in found.references if r.kind == "shared memory of Xen's"}
    assert roots == {frame(two, d, -1) for d in (0, 1)}
    assert {found.state.maps["owner"][f] for f in shared} == {0, 1}
    assert set(two[2].shared.values()) < shared
    assert len(shared) == 4                     # each domain's shared_info and grant table


Plant = Callable[[Ram], set[tuple[str, tuple[int, ...]]]]


def foreign_mapping(r: Ram) -> set[tuple[str, tuple[int, ...]]]:
    """An entry of the domU's names a frame of domain 0's, writable."""
    f = frame(r.held, 0, 9)
    r.put(r.leaf(1, 70), f << 12 | PAGE)
    return {("SLOT-1", (frame(r.held, 1, 60), 70)), ("COUNT-1", (f,))}


def other_owner(r: Ram) -> set[tuple[str, tuple[int, ...]]]:
    """A frame that the domU has mapped is domain 0's."""
    f = frame(r.held, 1, 9)
    r.own(f, 0)
    return {("SLOT-1", (frame(r.held, 1, 60), 9)), ("COUNT-4", (0,)), ("COUNT-4", (1,))}


def other_table(r: Ram) -> set[tuple[str, tuple[int, ...]]]:
    """A root table of the domU's is domain 0's: its slots are not."""
    f = frame(r.held, 1, -1)
    r.own(f, 0)
    return {("SLOT-1", (f, DOMAIN_SLOT)), ("SLOT-1", (frame(r.held, 1, 60), 63)), ("BASE-10", (1,)), ("COUNT-4", (0,)),
            ("COUNT-4", (1,))}


def foreign_count(r: Ram) -> set[tuple[str, tuple[int, ...]]]:
    """Domain 0 has a frame of the domU's mapped, and it is counted once too often."""
    f = frame(r.held, 1, 9)
    r.put(r.leaf(0, 70), f << 12 | PAGE & ~RW)
    at = r.frames.place(f) + 8
    r.put(at, r.word(at) + 2)
    return {("COUNT-2", (f,))}


def foreign_slot(r: Ram) -> set[tuple[str, tuple[int, ...]]]:
    """The root of the domU's has domain 0's own slot."""
    f = frame(r.held, 1, -1)
    r.put(f * PAGE_SIZE + 8 * DOMAIN_SLOT, r.word(frame(r.held, 0, -1) * PAGE_SIZE + 8 * DOMAIN_SLOT))
    return {("SLOT-1", (f, DOMAIN_SLOT))}


def foreign_base(r: Ram) -> set[tuple[str, tuple[int, ...]]]:
    """The type count of domain 0's root has a reference too many: as if the domU had it loaded."""
    f = frame(r.held, 0, -1)
    at = r.frames.place(f) + 16
    assert r.word(at) >> 61 == L4
    r.put(at, r.word(at) + 1)
    return {("COUNT-1", (f,)), ("COUNT-2", (f,))}


@pytest.mark.parametrize("plant", [foreign_mapping, other_owner, other_table, foreign_count, foreign_slot, foreign_base])
def test_a_corruption_across_domains_is_reported(two: Held, plant: Plant) -> None:
    ram = Ram(two)
    expected = plant(ram)
    assert ram.violations() == expected


def test_a_mapping_of_domain_0_is_no_violation(two: Held) -> None:
    """It may use what is the domU's, if the reference is counted."""
    ram = Ram(two)
    f = frame(two, 1, 9)
    ram.put(ram.leaf(0, 70), f << 12 | PAGE & ~RW)
    at = ram.frames.place(f) + 8
    ram.put(at, ram.word(at) + 1)
    assert ram.violations() == set()
