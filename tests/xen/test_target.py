"""The real Xen as a target: each kind of action against the model, deaths reported and survived, programs that agree."""
from dataclasses import replace

import pytest

from oracle.ground import DECLARED, EXECUTOR_WINDOW, Ground
from oracle.live import Player, play
from oracle.targets import HarnessError, RealTarget, model_of
from refmodel import audit
from spec.abi import DOMID_SELF, NOBODY, RW, WRITABLE, P, Xen417
from spec.vocabulary import Execute, Hypercall, Load, Store, unpack_frame
from tests.xen.conftest import played

X = Xen417
HOME = X.BASE
BUFFER = HOME + 0x2000


@pytest.fixture
def frame(setup):
    first = setup.domains[0].first
    return lambda page: first + page % setup.domains[0].pages


def va(page: int) -> int:
    """Where a page of the domain is mapped."""
    return HOME + 4096 * page


def listed(nr: int, words, count: int, *more: int) -> Hypercall:
    """A hypercall on a list."""
    return Hypercall(0, nr, (BUFFER, count, *more), ((BUFFER, tuple(words)),))


def extended(command: int, arg: int = 0, more: int = 0) -> Hypercall:
    """mmuext_op of one operation."""
    return listed(X.MMUEXT_OP, (command, arg, more), 1, 0, DOMID_SELF)


def test_a_setup_of_another_machine_is_refused(target, setup):
    """By the name of the machine, its size, or where its domains are."""
    moved = replace(setup.domains[0], first=20000)
    for other, said in ((replace(setup, machine="Xen 4.18.0"), "its machine Xen 4.18.0, here Xen 4.17"),
                        (replace(setup, frames=30000), "its frames 30000, here 32736"),
                        (replace(setup, domains=(moved,)), "from frame 20000, here 0 with")):
        with pytest.raises(HarnessError, match=said):
            model_of(target, other)
    target.reset(setup)


def test_it_is_a_real_target(target, setup):
    assert isinstance(target, RealTarget)
    assert setup.profile == "xen-4.17"
    assert [d.domid for d in setup.domains] == [0]


def test_the_import_is_sound_and_is_what_is_seen(target, setup, machine):
    machine.reset()
    target.reset(setup)
    assert audit(machine.concrete) == []
    assert machine.compare(target.observe()) == []


def test_another_setup_is_refused(target, setup):
    with pytest.raises(Exception, match="is what it is"):
        target.reset(replace(setup, frames=4096))


def test_memory_that_was_given_back_is_shown_with_what_it_holds(target, setup, machine, frame):
    words = (BUFFER + 64, 1, 0, DOMID_SELF, 0, 0, 0, 0, frame(6))
    program = [Store(0, va(6), 7), Hypercall(0, X.UPDATE_VA_MAPPING, (va(6), 0, X.UVMF_INVLPG)),
               Hypercall(0, X.MEMORY_OP, (X.DECREASE, BUFFER), ((BUFFER, words),))]
    assert play(machine, target, setup, program).agrees
    seen, at = target.observe(), 4096 * target.observe().rows.index(frame(6))
    assert unpack_frame(int.from_bytes(seen.frames[8 * frame(6):8 * frame(6) + 8], "little"))[0] == NOBODY
    assert bytes(seen.memory[at:at + 8]) == (7).to_bytes(8, "little")


@pytest.mark.parametrize("name", ["load", "store", "fault", "general protection", "execute", "user", "update", "batch", "refused",
                                  "multicall", "table store", "unknown"])
def test_each_kind_of_action_is_as_the_model_has_it(target, setup, machine, frame, name):
    entry = frame(12) << 12 | 0x67
    programs = {
        "load": [Load(0, va(4)), Load(0, X.WINDOW + 8 * frame(4))],
        "store": [Store(0, va(4) + 8, 0x1234567890ABCDEF), Load(0, va(4) + 8), Store(0, va(5) - 3, 7), Load(0, va(4) + 0xFFD)],
        "fault": [Load(0, va(70)), Store(0, va(70), 1), Store(0, va(63), 1), Load(0, X.WINDOW - 4096 * 2**30)],
        "general protection": [Load(0, 0x0000800000000000)],
        "execute": [Execute(0, va(1) + 5), Execute(0, va(70))],
        "user": [extended(X.NEW_USER_BASEPTR, frame(-1)), Load(0, va(4), True), Store(0, va(4), 5, True), Load(0, va(70), True),
                 Execute(0, va(1), True), Load(0, va(4))],
        "update": [Hypercall(0, X.UPDATE_VA_MAPPING, (va(70), entry, 2)), Store(0, va(70), 9), Load(0, va(12))],
        "batch": [listed(X.MMU_UPDATE, (frame(10) << 12, 5, frame(10) << 12 | 8, 6), 2, BUFFER + 0x800, DOMID_SELF),
                  Load(0, BUFFER + 0x800), Load(0, va(10))],
        "refused": [Hypercall(0, X.UPDATE_VA_MAPPING, (va(70), frame(-1) << 12 | 3, 0)), extended(X.PIN_L1, frame(12)),
                    extended(X.FLUSH_CACHE), Hypercall(0, X.UPDATE_VA_MAPPING, (va(70), 0x11, 0)),
                    Hypercall(0, X.UPDATE_VA_MAPPING, (va(70), 0x3, 0))],
        "multicall": [listed(X.MULTICALL, (X.UPDATE_VA_MAPPING, 0, va(70), entry, 0, 0, 0, 0, 63, 0, 0, 0, 0, 0, 0, 0), 2),
                      Load(0, BUFFER + 8), Load(0, BUFFER + 72)],
        "table store": [Hypercall(0, X.UPDATE_VA_MAPPING, (va(70), frame(-4) << 12 | 0x61, 2)), Store(0, va(70) + 8 * 75, entry),
                        Load(0, va(75)), Store(0, va(70) + 8 * 76, frame(-1) << 12 | 3), Store(0, va(70) + 4, 0)],
        "unknown": [Hypercall(0, 63, (1, 2))],
    }
    verdict = play(machine, target, setup, programs[name])
    assert verdict.agrees, verdict.summary


def reservation(op: int, words, count: int = 1) -> Hypercall:
    """memory_op on a list behind its reservation."""
    return Hypercall(0, X.MEMORY_OP, (op, BUFFER), ((BUFFER, (BUFFER + 32, count, 0, DOMID_SELF, *words)),))


def test_what_is_handed_out_is_told(target, setup, machine, frame):
    program = [Hypercall(0, X.UPDATE_VA_MAPPING, (va(12), 0, 2)), reservation(X.DECREASE, (frame(12),)),
               reservation(X.INCREASE, (0, 0), 2), reservation(X.POPULATE, (5,))]
    assert play(machine, target, setup, program).agrees
    target.reset(setup)
    *_, two, one = target.run(program)
    assert (two.value, len(two.chose), one.value, len(one.chose)) == (2, 2, 1, 1)
    seen = memoryview(target.observe().frames).cast("Q")
    assert all(unpack_frame(seen[f])[0] == 0 for f in (*two.chose, *one.chose))


def test_a_table_whose_own_leaf_keeps_it(target, setup, machine, frame):
    program = [Store(0, va(21), frame(20) << 12 | 0x65), Store(0, va(20), frame(21) << 12 | 0x67),
               *(Hypercall(0, X.UPDATE_VA_MAPPING, (va(page), 0, X.UVMF_INVLPG)) for page in (20, 21)),
               extended(X.PIN_L1 + 1, frame(20)), reservation(X.DECREASE, (frame(20),)), extended(X.UNPIN, frame(20))]
    assert play(machine, target, setup, program).agrees


def test_what_is_handed_out_untold_is_known_all_the_same(target, setup, machine):
    nowhere = Hypercall(0, X.MEMORY_OP, (X.INCREASE, BUFFER), ((BUFFER, (va(63), 1, 0, DOMID_SELF)),))
    target.reset(setup)
    (outcome,) = target.run([nowhere])
    assert (outcome.value, len(outcome.chose)) == (0, 1)
    assert play(machine, target, setup, [nowhere]).agrees


def test_what_an_exchange_that_fails_gives_back_is_not_handed_out(target, setup, machine, frame):
    """Its list is written beforehand, so the call alone does not say what it gives; Xen puts that at the end of its own list."""
    gone = Hypercall(0, X.UPDATE_VA_MAPPING, (va(12), 0, 2))
    words = (BUFFER + 128, 2, 0, DOMID_SELF, BUFFER + 144, 1, 1, DOMID_SELF, 0)
    write = [Store(0, BUFFER + 8 * n, w) for n, w in enumerate(words)]
    write += [Store(0, BUFFER + 128, frame(12)), Store(0, BUFFER + 136, frame(-1))]      # the second one is in use
    program = [gone, *write, Hypercall(0, X.MEMORY_OP, (X.EXCHANGE, BUFFER)), reservation(X.INCREASE, (0,))]
    assert play(machine, target, setup, program).agrees
    target.reset(setup)
    *_, exchanged, increased = target.run(program)
    assert (exchanged.chose, len(increased.chose)) == ((), 1)


def test_a_death_is_reported_and_survived(target, setup, machine, frame):
    suicide = listed(X.MMU_UPDATE, (frame(-1) << 12, 0), 1, 0, DOMID_SELF)      # the executor's slot of the root
    target.reset(setup)
    with pytest.raises(Exception, match=r"died of action 1 since its reset: (?s:.)*crashed"):
        target.run([Load(0, va(4)), suicide, Load(0, va(4))])
    with pytest.raises(Exception, match="reset first"):
        target.run([Load(0, va(4))])
    target.reset(setup)
    machine.reset()
    assert machine.compare(target.observe()) == []
    assert play(machine, target, setup, [Load(0, va(4))]).agrees


def test_the_ground_forbids_what_would_kill_the_executor(target, machine, frame):
    machine.reset()
    ground = Ground(machine, *target.ground())
    suicide = listed(X.MMU_UPDATE, (frame(-1) << 12, 0), 1, 0, DOMID_SELF)
    assert ground.tried(suicide)[0] == EXECUTOR_WINDOW
    machine.reset()
    assert ground.tried(Load(0, va(4), True))[0] == EXECUTOR_WINDOW     # there is no root table for user mode
    reason, outcome = ground.tried(Load(0, va(4)))
    assert reason == ""
    assert outcome is not None
    assert all(DECLARED.values())


def test_a_difference_is_found(target, setup, machine, frame, monkeypatch):
    monkeypatch.setattr("refmodel.xen417_entries.EBUSY", 1)
    verdict = play(machine, target, setup, [Hypercall(0, X.UPDATE_VA_MAPPING, (va(70), frame(-1) << 12 | P | RW, 0))])
    assert not verdict.agrees
    assert verdict.rule == "PTE-2.7"


def test_a_changed_word_is_found(target, setup, machine, frame):
    machine.reset()
    target.reset(setup)
    target.machine.set_word(frame(20) * 4096 + 16, 1)
    (difference,) = machine.compare(target.observe())
    assert (difference.what, difference.target) == ("word", 1)
    assert machine.concrete.maps["type"][frame(20)] == WRITABLE


def test_programs_agree(target, setup, machine):
    for player in played(target, setup, machine, [f"real/{n}" for n in range(4)], 1500):
        assert len(player.actions) == 1500


def test_a_target_that_fails_is_a_harness_error(machine, setup):
    class Broken:
        name = "broken"

        def reset(self, _):
            raise RuntimeError("no")
    with pytest.raises(HarnessError, match="broken: RuntimeError: no"):
        Player(machine, Broken(), setup)
