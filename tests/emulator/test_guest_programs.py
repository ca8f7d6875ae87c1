"""Whole guests: an application in ring 3 and a kernel in ring 1, as machine code in guest memory, with Xen's stubs below."""
import pytest

from emulator.assembler import assemble
from emulator.errors import HarnessError
from emulator.programs import DONE, Programs
from spec.abi import PF, Xen2003
from spec.vocabulary import Context, code_words
from tests.emulator.guest import LIST, SETUP, Guest, word_of

KERNEL, APPLICATION, STACK, KERNEL_STACK, DATA, HOLE = range(40, 46)      # pages
FAST, SLOW, YIELD, END = 0x80, 0x21, 0x22, 0x23         # system calls
USER = 0x67                                             # of a page-table entry
G = Guest(SETUP, 1)
MAP = Xen2003.UPDATE_VA_MAPPING
WORDS = {name: 4 * n for n, name in enumerate(("FAST_CALLS", "SLOW_CALLS", "FAULTS", "ROUNDS", "ENTRY", "ERROR", "ADDRESS",
                                               "RESULT", "EVENTS"))}

KERNEL_CODE, LABELS = assemble("""
fast:
    ff 05 =FAST_CALLS   | inc dword [FAST_CALLS]
    b8 99 00 00 00      | mov eax, 0x99
    cf                  | iretd
slow:
    ff 05 =SLOW_CALLS   | inc dword [SLOW_CALLS]
    cf                  | iretd
page_fault:
    60                  | pusha
    ff 05 =FAULTS       | inc dword [FAULTS]
    8b 5c 24 20         | mov ebx, [esp+32]         CR2
    89 1d =ADDRESS      | mov [ADDRESS], ebx
    8b 44 24 24         | mov eax, [esp+36]         error code
    a3 =ERROR           | mov [ERROR], eax
    c1 eb 0c            | shr ebx, 12
    8b 0d =ENTRY        | mov ecx, [ENTRY]
    ba 02 00 00 00      | mov edx, 2                INVLPG
    b8 13 00 00 00      | mov eax, 19               update_va_mapping
    cd 82               | int 0x82
    a3 =RESULT          | mov [RESULT], eax
    61                  | popa
    83 c4 08            | add esp, 8
    cf                  | iretd
yield:
    60                  | pusha
    b8 08 00 00 00      | mov eax, 8                sched_op
    31 db               | xor ebx, ebx              yield
    cd 82               | int 0x82
    61                  | popa
    cf                  | iretd
end:
    b8 ff 00 00 00      | mov eax, 255
    cd 82               | int 0x82
event:
    ff 05 =EVENTS       | inc dword [EVENTS]
    cf                  | iretd
""", {name: G.va(DATA) + offset for name, offset in WORDS.items()})

ROUND = """
    ff 05 =ROUNDS       | inc dword [ROUNDS]
"""
CALLS = {FAST: "    cd 80 | int FAST\n", SLOW: "    cd 21 | int SLOW\n", YIELD: "    cd 22 | int YIELD\n"}
TOUCH = """
    c7 05 =HOLE 2a 00 00 00     | mov dword [HOLE], 42
"""


def application(body, rounds):
    """So many times the same, with something in the registers that nobody may change; then the end."""
    code, _ = assemble(f"""
    be =COUNT           | mov esi, COUNT
    bf 78 56 34 12      | mov edi, 0x12345678
    bd =HOLE            | mov ebp, HOLE
again:
{body}
{ROUND}
    4e                  | dec esi
    0f 85 >>again       | jnz again
    cd 23               | int END
""", {"COUNT": rounds, "ROUNDS": G.va(DATA) + WORDS["ROUNDS"], "HOLE": G.va(HOLE)})
    return code


def install(target, guest, code, fast=0):
    """Put kernel and application in place; the outcomes must all be good."""
    handlers = ((FAST, 3, "fast"), (SLOW, 3, "slow"), (YIELD, 3, "yield"), (END, 3, "end"), (PF, 0, "page_fault"))
    kernel = guest.va(KERNEL)
    actions = [guest.call(200, data=((kernel, code_words(KERNEL_CODE)), (guest.va(APPLICATION), code_words(code)),
                                     (guest.va(DATA) + WORDS["ENTRY"], (guest.frame(HOLE) << 12 | USER,)))),
               *(guest.map(page, guest.frame(page) << 12 | USER) for page in (APPLICATION, STACK, DATA)),
               guest.unmap(HOLE),
               guest.set_traps(*((v, flags, Xen2003.RING1_CS, kernel + LABELS[label]) for v, flags, label in handlers)),
               guest.call(Xen2003.STACK_SWITCH, Xen2003.RING1_DS, guest.va(KERNEL_STACK + 1)),
               guest.call(Xen2003.SET_CALLBACKS, Xen2003.RING1_CS, kernel + LABELS["event"], Xen2003.RING1_CS, kernel),
               guest.call(Xen2003.SET_FAST_TRAP, fast)]
    assert [o.value for o in target.run(actions)[1:]] == [0] * (len(actions) - 1)
    data = [Xen2003.RING3_DS] * 4
    return Context(Xen2003.RING3_CS, guest.va(APPLICATION), 0x202, guest.va(STACK + 1), Xen2003.RING3_DS, *data)


def data(target, guest):
    return {name: word_of(target, guest.frame(DATA), offset // 4) for name, offset in WORDS.items()}


@pytest.fixture
def programs(target):
    return Programs(target.machine)


def test_a_fast_system_call_never_enters_xen(target, guest, programs):
    context = install(target, guest, application(CALLS[FAST], 10), fast=FAST)
    ran = programs.run({1: context}, limit=10000)
    assert (ran.calls, ran.traps, ran.killed, ran.limited) == (1, 1, False, False)      # those of the end
    assert data(target, guest)["FAST_CALLS"] == data(target, guest)["ROUNDS"] == 10
    assert ran.instructions == 3 + 10 * 7 + 2       # int, 3 of the handler, inc, dec, jnz; in the end the int itself faults
    general = ran.registers[1].general
    assert general[6] == DONE
    assert general[3:6] == (0, 0x12345678, guest.va(HOLE))


def test_a_system_call_through_xen_runs_its_code_too(target, guest, programs):
    context = install(target, guest, application(CALLS[SLOW], 10))
    slow = programs.run({1: context}, limit=10000)
    assert (slow.calls, slow.traps) == (1, 11)
    assert data(target, guest)["SLOW_CALLS"] == 10
    target.reset(SETUP)
    context = install(target, guest, application(CALLS[FAST], 10))      # the same vector without its gate
    through_xen = programs.run({1: context}, limit=10000)
    target.reset(SETUP)
    context = install(target, guest, application(CALLS[FAST], 10), fast=FAST)
    fast = programs.run({1: context}, limit=10000)
    assert through_xen.instructions == fast.instructions - 10           # an INT that faults is not completed
    assert through_xen.xens - fast.xens > 10 * 40


def test_a_page_fault_is_mended_by_the_kernel(target, guest, programs):
    context = install(target, guest, application(TOUCH, 3), fast=FAST)
    ran = programs.run({1: context}, limit=10000)
    seen = data(target, guest)
    assert (seen["FAULTS"], seen["ROUNDS"], seen["RESULT"]) == (1, 3, 0)
    assert (seen["ADDRESS"], seen["ERROR"]) == (guest.va(HOLE), 6)      # not present, a write, by ring 3
    assert word_of(target, guest.frame(HOLE), 0) == 42
    assert (ran.calls, ran.traps) == (2, 2)                             # update_va_mapping, the end


def test_everything_and_another_domain_in_between(target, guest, other, programs):
    """A fast system call, a page fault, a system call through Xen, and the other domain's turn; registers and state are kept."""
    body = CALLS[FAST] + TOUCH + CALLS[SLOW] + CALLS[YIELD]
    contexts = {1: install(target, guest, application(body, 5), fast=FAST),
                2: install(target, other, application(CALLS[SLOW] + CALLS[YIELD], 100), fast=SLOW)}
    target.run([guest.load(guest.va(1)), guest.store(guest.va(20), 7)])
    ran = programs.run(contexts, limit=100000)
    assert (ran.last, ran.killed, ran.limited) == (1, False, False)
    mine, others = data(target, guest), data(target, other)
    assert (mine["FAST_CALLS"], mine["SLOW_CALLS"], mine["FAULTS"], mine["ROUNDS"]) == (5, 5, 1, 5)
    assert (others["FAST_CALLS"], others["SLOW_CALLS"], others["ROUNDS"]) == (0, 5, 4)
    assert ran.registers[1].general[3:6] == (0, 0x12345678, guest.va(HOLE))
    assert ran.registers[2].general[3:6] == (96, 0x12345678, guest.va(HOLE))
    # the loop goes on as if nothing had been
    after = target.run([guest.load(guest.va(20)), other.load(other.va(20)), guest.store(guest.va(21), 1)])
    assert [o.value for o in after] == [7, 0, 0]


def test_preempted_guests_keep_their_registers(target, guest, other, programs):
    contexts = {1: install(target, guest, application(CALLS[FAST] + TOUCH, 50), fast=FAST),
                2: install(target, other, application(CALLS[SLOW], 1000))}
    ran = programs.run(contexts, limit=100000, quantum=37)
    assert (ran.last, ran.limited, ran.killed) == (1, False, False)
    assert data(target, guest)["ROUNDS"] == 50
    assert 20 < data(target, other)["ROUNDS"] < 1000
    again = programs.run({2: ran.registers[2]}, limit=100000)           # it goes on where it was
    assert (again.last, again.limited) == (2, False)
    assert data(target, other)["ROUNDS"] == data(target, other)["SLOW_CALLS"] == 1000


def test_an_event_interrupts_the_application(target, guest, programs):
    context = install(target, guest, application(CALLS[SLOW], 3), fast=FAST)
    target.run([guest.call(200, data=((guest.va(guest.pages), (1, 0x80000001)),))])
    programs.run({1: context}, limit=1000)
    assert data(target, guest)["EVENTS"] == 1
    assert word_of(target, guest.shared_info, 1) == 0


def test_a_run_without_counting_does_the_same(target, guest, programs):
    context = install(target, guest, application(CALLS[FAST] + CALLS[SLOW] + TOUCH, 1000), fast=FAST)
    ran = programs.run({1: context})
    assert (ran.instructions, ran.xens, ran.calls, ran.traps) == (0, 0, 2, 1002)
    assert data(target, guest)["ROUNDS"] == 1000
    assert ran.seconds > 0


def test_the_limit(target, guest, programs):
    context = install(target, guest, application(CALLS[FAST], 1 << 20), fast=FAST)
    ran = programs.run({1: context}, limit=500)
    assert (ran.instructions, ran.limited) == (500, True)
    with pytest.raises(HarnessError):
        programs.run({1: context}, quantum=5)
    with pytest.raises(HarnessError):
        programs.run({}, limit=5)


def test_a_guest_without_a_stack_is_killed(target, guest, programs):
    context = install(target, guest, application(CALLS[SLOW], 1))
    target.run([guest.unmap(KERNEL_STACK)])
    ran = programs.run({1: context}, limit=1000)
    assert ran.killed
    assert target.run([guest.load(guest.va(LIST))])[0].vector < 0


def test_a_reset_undoes_what_guests_wrote(target, guest, programs):
    before = bytes(target.observe().memory)
    context = install(target, guest, application(CALLS[FAST] + TOUCH, 3), fast=FAST)
    programs.run({1: context}, limit=1000)
    target.reset(SETUP)
    assert bytes(target.observe().memory) == before
