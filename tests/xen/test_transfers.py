"""Control transfers on the real Xen: each kind from kernel and user mode, each frame to the word, against the model."""
import pytest

from oracle.ground import DOMAIN_DEATH, LOST_DIRECTION, Ground
from oracle.live import Player, play
from spec.abi import DOMID_SELF, Xen417
from spec.vocabulary import (
    KILLED,
    PRIVILEGED,
    Access,
    Context,
    FarTransfer,
    Hypercall,
    Interrupt,
    Privileged,
    Return,
    SystemCall,
)
from tests.xen.conftest import played

X = Xen417
HOME, BUFFER = X.BASE, X.BASE + 0x2000
KERNEL, USER = X.KERNEL_CS & ~3, X.KERNEL_CS
CODE, STACK = HOME + 0xE100, HOME + 0xF808
BOTH = pytest.mark.parametrize("cs", [KERNEL, USER], ids=["kernel", "user"])


def context(cs: int, flags: int = 0x202, rsp: int = STACK, ss: int = X.USER_SS) -> Context:
    """Registers with code in one page and a stack in another."""
    return Context(cs, CODE, flags, rsp, ss)


def pad(n: int) -> int:
    """The address of a landing pad."""
    return X.PADS + X.PAD * n


@pytest.fixture
def user_root(setup):
    """The kernel's root serves user mode, too."""
    root = setup.domains[0].first + setup.domains[0].pages - 1
    return Hypercall(0, X.MMUEXT_OP, (BUFFER, 1, 0, DOMID_SELF), ((BUFFER, (X.NEW_USER_BASEPTR, root, 0)),))


@pytest.fixture
def agree(target, setup, machine, user_root):
    """Both sides do the same with each action by itself, and with what is left in memory."""
    def run(*actions) -> None:
        for action in actions:
            verdict = play(machine, target, setup, [user_root, action])
            assert verdict.agrees, verdict.summary
    return run


@pytest.fixture
def event(setup):
    """The store that makes an event pending."""
    return ((HOME + 4096 * setup.domains[0].pages, (X.UPCALL_PENDING | X.UPCALL_MASK,)),)


@BOTH
def test_interrupts(agree, target, setup, machine, user_root, cs):
    agree(*(Interrupt(0, context(cs), n) for n in (0, 1, 2, 3, 4, 13, 14, 16, 17, 0x20, 0x21, 0x22, 0x23, 0x7F, 0x80)))
    every = [user_root, *(Interrupt(0, context(cs, rsp=HOME + 0xA000 + 128 * n), n) for n in range(128))]
    verdict = play(machine, target, setup, every)
    assert verdict.agrees, verdict.summary


@BOTH
def test_accesses(agree, setup, cs):
    tables = HOME + 4096 * (setup.domains[0].pages - 1)
    agree(*(Access(0, context(cs), va, write) for va in (HOME + 0x5000, HOME + 0x5001, 0x900000000, tables, 1 << 50)
            for write in (False, True)))


@BOTH
def test_privileged_instructions(agree, cs):
    agree(*(Privileged(0, context(cs), name) for name in PRIVILEGED))


@BOTH
def test_system_calls(agree, cs):
    agree(SystemCall(0, context(cs)), SystemCall(0, context(cs, 2)))


@BOTH
def test_far_transfers(agree, cs):
    to = pad(0x125 if cs == USER else 0x105)
    for selector in (0, 3, 8, 0xE008, 0xE010, 0xE018, 0xE02B, 0xE030, USER, 0xE038, 4, 0xE034):
        agree(FarTransfer(0, context(cs), "jmp", selector, to), FarTransfer(0, context(cs), "call", selector, to),
              FarTransfer(0, context(cs), "ret", data=((STACK, (to, selector)),)))


@pytest.mark.parametrize("flags", [0, 0x100])
@pytest.mark.parametrize("rflags", [2, 0x202, 0xED7, 0x4202])
def test_returns(agree, event, flags, rflags):
    for cs, to in ((KERNEL, pad(0x106)), (USER, pad(0x126)), (KERNEL, 1 << 50), (USER, 1 << 50), (8, pad(0x106))):
        words = (1, 2, 3, flags, to, cs, rflags, HOME + 0xC7F1, X.USER_SS)
        agree(Return(0, context(KERNEL, 2), ((STACK, words),)), Return(0, context(KERNEL, 2), (*event, (STACK, words))))


@BOTH
def test_events(agree, event, cs):
    agree(*(Interrupt(0, context(cs, flags), 3, event) for flags in (2, 0x202)))


@BOTH
def test_flags(agree, cs):
    for flags in (2, 0x4202, 0x40202, 0x200202, 0x602, 0xED7):
        agree(*(Privileged(0, context(cs, flags), name) for name in ("nop", "clts", "ud2", "pushf", "int3")))


@BOTH
def test_stacks_that_are_not_aligned(agree, cs):
    agree(*(Interrupt(0, context(cs, rsp=STACK + n), 3) for n in range(16)))


@BOTH
def test_segments_to_which_xen_cannot_return(agree, cs):
    agree(*(Interrupt(0, context(cs, ss=ss), 3) for ss in (8, 0xE008, 0xE018, 0xE023, 0xE033, 0xE028, 4)),
          *(Interrupt(0, context(sel | cs & 3), 3) for sel in (8, 0xE008, 0xE018, 0xE028, 0xE038, 4)))


def test_a_frame_that_cannot_be_stored_is_the_end(target, setup, machine, user_root):
    """Of the domain, and of the program; what was stored before can still be seen."""
    table = HOME + 4096 * (setup.domains[0].pages - 1)
    for rsp in (0x900000000, table + 0x800, X.WINDOW + 0x10000):
        action = Interrupt(0, context(KERNEL, rsp=rsp), 3)
        machine.reset()
        machine.choices.begin()
        player = Player(machine, target, setup)
        actions = [user_root, action, action]
        player.finish(actions[:2], [machine.step(each) for each in actions[:2]])
        assert player.verdict is None
        assert player.over
        assert player.earlier[-1].value == KILLED
        ground = Ground(machine, *target.ground())
        assert ground.tried(action)[0] == DOMAIN_DEATH


def test_a_system_call_of_user_mode_may_keep_the_direction_flag(target, setup, machine, user_root):
    """Debian's Xen 4.17.7 loses what it wants to clear: the flags are anded with the address of the frame (X-46)."""
    call = SystemCall(0, context(USER, 0xED7))
    machine.reset()
    machine.step(user_root)
    assert Ground(machine, *target.ground()).tried(call)[0] == LOST_DIRECTION
    verdict = play(machine, target, setup, [user_root, call])
    assert not verdict.agrees
    assert verdict.target.landing[2] == (0xED7 & verdict.target.landing[3]) | 0x202
    assert verdict.model.landing[2] == 0xAD7


def test_programs_agree(target, setup, machine):
    for player in played(target, setup, machine, ["transfers 1", "transfers 2"], 1000):
        assert len(player.actions) <= 1000
