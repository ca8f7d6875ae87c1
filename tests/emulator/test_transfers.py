"""Control transfers: one instruction of a guest in its own context, where it leads, and the frames stored (W-43 to W-60)."""
import pytest

from emulator.audit import recount
from emulator.errors import HarnessError
from spec.abi import GP, NM, PF, PF_WRITE, SS, UD, Xen2003
from spec.vocabulary import (
    KILLED,
    PRIVILEGED,
    Access,
    Context,
    FarTransfer,
    Interrupt,
    Outcome,
    Privileged,
    Return,
    SystemCall,
)
from tests.emulator.guest import PTE, SETUP, Guest, fault, frame_of, gate, segment, value, visible, word_of

G = Guest(SETUP, 1)
O = Guest(SETUP, 2)  # noqa: E741
CODE, STACK, KERNEL_STACK, TARGET, TABLE, LOCAL = 5, 6, 7, 8, 20, 21      # pages
R1CS, R1DS, R3CS, R3DS = Xen2003.RING1_CS, Xen2003.RING1_DS, Xen2003.RING3_CS, Xen2003.RING3_DS
TF, NT, RF, AC = 1 << 8, 1 << 14, 1 << 16, 1 << 18
FLAGS, USER = 0x202, 0x67
TOP = G.va(STACK + 1)
MASTER = 1 << 31
LDT_WINDOW = 0xFC610000


def kernel(**others):
    return Context(**{"cs": R1CS, "eip": G.va(CODE), "eflags": FLAGS, "esp": TOP, "ss": R1DS, "ds": R1DS} | others)


def application(**others):
    return kernel(**{"cs": R3CS, "ss": R3DS, "ds": R3DS} | others)


def handler(vector):
    """Where the handler of a vector is."""
    return G.va(TARGET) + 16 * vector


def set_handlers(*vectors, flags=0):
    return G.set_traps(*((v, flags, R1CS, handler(v)) for v in vectors))


def events(raised, mask):
    return ((G.va(G.pages), (raised, mask)),)


@pytest.fixture
def machine(target):
    """Handlers for exceptions and some others, pages and a stack for applications, callbacks."""
    ready = target.run([set_handlers(1, 3, 4, 6, 7, GP, PF, SS), set_handlers(0x21, 0x80, flags=3), set_handlers(0x22, flags=1),
                        *(G.map(page, G.frame(page) << 12 | USER) for page in (CODE, STACK)),
                        G.call(Xen2003.STACK_SWITCH, R1DS, G.va(KERNEL_STACK + 1)),
                        G.call(Xen2003.SET_CALLBACKS, R1CS, handler(0x100), R1CS, handler(0x101))])
    assert [o.value for o in ready] == [0] * len(ready)
    return target


def lands(machine, action):
    """The outcome's registers, by name."""
    outcome, = machine.run([action])
    assert outcome == Outcome(landing=outcome.landing)
    return Context(*outcome.landing)


def stack(machine, landing, count, page=None):
    """The words at the top of the stack of a landing."""
    page = (landing.esp - G.va(0)) // 4096 if page is None else page
    return tuple(word_of(machine, G.frame(page), landing.esp % 4096 // 4 + n) for n in range(count))


# --- no frame ----------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("instruction", ["nop", "rdtsc", "into", "fpu"])
def test_an_instruction_that_does_nothing(machine, instruction):
    seen = lands(machine, Privileged(1, kernel(es=R3DS, fs=0, gs=R1DS), instruction))
    assert seen == kernel(es=R3DS, gs=R1DS, eip=G.va(CODE) + len(PRIVILEGED[instruction]))


def test_push_and_pop_of_flags(machine):
    seen = lands(machine, Privileged(1, kernel(eflags=0xAD7), "pushf"))
    assert (seen.esp, stack(machine, seen, 1)) == (TOP - 4, (0xAD7,))
    seen = lands(machine, Privileged(1, kernel(esp=TOP - 4), "popf", data=((TOP - 4, (0x3AD7,)),)))
    assert (seen.eflags, seen.esp) == (0xAD7, TOP)                      # IOPL stays 0


def test_memory_through_ds(machine):
    assert lands(machine, Access(1, kernel(), G.va(9), data=((G.va(9), (5,)),))).eip == G.va(CODE) + 5
    assert word_of(machine, G.frame(9), 0) == 5
    lands(machine, Access(1, kernel(), G.va(9), write=True))
    assert word_of(machine, G.frame(9), 0) == 0


def test_far_transfers(machine):
    assert lands(machine, FarTransfer(1, kernel(), "jmp", R1CS, G.va(9))) == kernel(eip=G.va(9))
    seen = lands(machine, FarTransfer(1, kernel(), "call", R1CS, G.va(9)))
    assert seen == kernel(eip=G.va(9), esp=TOP - 8)
    assert stack(machine, seen, 2) == (G.va(CODE) + 7, R1CS)
    seen = lands(machine, FarTransfer(1, kernel(esp=TOP - 16), "ret", data=((TOP - 16, (G.va(9), R3CS, 0x1000, R3DS)),)))
    assert seen == application(eip=G.va(9), esp=0x1000, ds=0)           # a segment of ring 1 is not for ring 3
    seen = lands(machine, Return(1, kernel(esp=TOP - 12), data=((TOP - 12, (G.va(9), R1CS, 0x246)),)))
    assert seen == kernel(eip=G.va(9), eflags=0x246)


def test_the_landing_is_not_fetched(machine):
    """Neither a fault nor an accessed bit comes of it."""
    assert lands(machine, FarTransfer(1, kernel(), "jmp", R1CS, 0x1000)).eip == 0x1000
    entry = G.frame(9) << 12 | 3
    machine.run([G.map(9, entry, Xen2003.UVMF_FLUSH)])
    assert lands(machine, FarTransfer(1, kernel(), "jmp", R1CS, G.va(9))).eip == G.va(9)
    assert lands(machine, Return(1, kernel(esp=TOP - 12), data=((TOP - 12, (G.va(9), R1CS, 0x246)),))).eip == G.va(9)
    assert word_of(machine, G.l1, 9) == entry


def test_a_store_before_it_may_fault(machine):
    machine.run([G.unmap(9)])
    kept = word_of(machine, G.frame(CODE), 0)
    assert machine.run([Privileged(1, kernel(), "hlt", data=((G.va(9), (1,)),))]) == [fault(PF, PF_WRITE, G.va(9))]
    assert word_of(machine, G.frame(CODE), 0) == kept == 0
    assert machine.run([Privileged(1, kernel(eip=G.va(9)), "hlt", data=((G.va(10), (1,)),))]) == [fault(PF, PF_WRITE, G.va(9))]
    assert word_of(machine, G.frame(10), 0) == 1
    assert machine.run([FarTransfer(1, kernel(eip=G.va(9)), "jmp", R1CS, 0)]) == [fault(PF, PF_WRITE, G.va(9))]


# --- frames ------------------------------------------------------------------------------------------------------------------

KEPT_FOR_XEN = ["hlt", "cli", "sti", "in_al", "out_al", "clts", "lgdt", "lidt", "lldt", "ltr", "lmsw", "invlpg", "wbinvd",
                "rdmsr", "wrmsr", "mov_from_cr0", "mov_to_cr0", "mov_to_cr3", "mov_to_cr4", "mov_from_dr7", "mov_to_dr7"]


@pytest.mark.parametrize("instruction", KEPT_FOR_XEN)
def test_what_is_kept_for_xen_goes_to_the_kernel(machine, instruction):
    seen = lands(machine, Privileged(1, kernel(es=R3DS, eflags=FLAGS | NT | 1), instruction))
    assert seen == kernel(es=R3DS, eip=handler(GP), esp=TOP - 16, eflags=FLAGS | 1)
    assert stack(machine, seen, 4) == (0, G.va(CODE), R1CS, FLAGS | NT | 1 | RF)
    seen = lands(machine, Privileged(1, application(), instruction))
    assert seen == kernel(eip=handler(GP), esp=G.va(KERNEL_STACK + 1) - 24, ds=R3DS)
    assert stack(machine, seen, 6) == (0, G.va(CODE), R3CS, FLAGS | RF, TOP, R3DS)


def test_a_page_fault_comes_with_its_address(machine):
    seen = lands(machine, Access(1, application(), 0x1234, write=True))
    assert stack(machine, seen, 7) == (0x1234, 6, G.va(CODE), R3CS, FLAGS | RF, TOP, R3DS)
    assert seen.eip == handler(PF)
    seen = lands(machine, Access(1, kernel(), G.va(-1), write=True))    # a page table
    assert stack(machine, seen, 5) == (G.va(-1), 3, G.va(CODE), R1CS, FLAGS | RF)
    seen = lands(machine, Access(1, kernel(), Xen2003.GUEST_END))
    assert (seen.eip, stack(machine, seen, 2)) == (handler(GP), (0, G.va(CODE)))


def test_a_fetch_may_fault(machine):
    machine.run([G.map(CODE, G.frame(CODE) << 12 | PTE)])               # for the kernel alone
    seen = lands(machine, Privileged(1, application(), "nop"))
    assert stack(machine, seen, 3) == (G.va(CODE), 5, G.va(CODE))


@pytest.mark.parametrize(("instruction", "vector", "skipped", "flags"),
                         [("ud2", UD, 0, RF), ("int3", 3, 1, 0), ("into", 4, 1, 0x800), ("divide", 0, 0, RF)])
def test_exceptions_without_an_error_code(machine, instruction, vector, skipped, flags):
    eflags = FLAGS | flags & ~RF
    seen = lands(machine, Privileged(1, kernel(eflags=eflags), instruction))
    assert seen == kernel(eip=handler(vector) if vector else 0, esp=TOP - 12, eflags=eflags)
    assert stack(machine, seen, 3) == (G.va(CODE) + skipped, R1CS, FLAGS | flags)


def test_int_n(machine):
    seen = lands(machine, Interrupt(1, application(), 0x21))
    assert (seen.eip, stack(machine, seen, 3)) == (handler(0x21), (G.va(CODE) + 2, R3CS, FLAGS | RF))
    for action in Interrupt(1, application(), 0x22), Interrupt(1, application(), 0x82):     # DPL 1
        seen = lands(machine, action)
        assert (seen.eip, stack(machine, seen, 2)) == (handler(GP), (8 * action.vector + 2, G.va(CODE)))
    seen = lands(machine, Interrupt(1, kernel(), 0x22))
    assert (seen.eip, stack(machine, seen, 3)) == (handler(0x22), (G.va(CODE) + 2, R1CS, FLAGS | RF))
    seen = lands(machine, Interrupt(1, application(), 3))
    assert (seen.eip, stack(machine, seen, 3)) == (handler(3), (G.va(CODE) + 2, R3CS, FLAGS))


def test_the_fast_trap_is_the_processors(machine):
    machine.run([G.call(Xen2003.SET_FAST_TRAP, 0x80)])
    seen = lands(machine, Interrupt(1, application(eflags=FLAGS | TF), 0x80))
    assert seen == kernel(eip=handler(0x80), esp=G.va(KERNEL_STACK + 1) - 20, ds=R3DS)
    assert stack(machine, seen, 5) == (G.va(CODE) + 2, R3CS, FLAGS | TF, TOP, R3DS)


def test_a_single_step(machine):
    seen = lands(machine, Privileged(1, kernel(eflags=FLAGS | TF), "nop"))
    assert seen == kernel(eip=handler(1), esp=TOP - 12)
    assert stack(machine, seen, 3) == (G.va(CODE) + 1, R1CS, FLAGS | TF)
    assert machine.run([G.call(Xen2003.GET_DEBUGREG, 6)]) == [value(0xFFFF4FF0 - (1 << 32))]
    assert lands(machine, Privileged(1, kernel(), "nop")).eip == G.va(CODE) + 1     # nothing is left over
    popf = Privileged(1, kernel(esp=TOP - 4), "popf", data=((TOP - 4, (FLAGS | TF,)),))
    assert lands(machine, popf).eflags == FLAGS | TF
    assert lands(machine, Privileged(1, kernel(), "nop")).eip == G.va(CODE) + 1


def test_floating_point(machine):
    machine.run([G.call(Xen2003.FPU_TASKSWITCH)])
    assert lands(machine, Privileged(1, kernel(), "nop")).eip == G.va(CODE) + 1
    assert lands(machine, Privileged(1, kernel(), "fpu")).eip == handler(NM)
    assert lands(machine, Privileged(1, kernel(), "fpu")).eip == G.va(CODE) + 2


def test_alignment(machine):
    machine.run([G.map(9, G.frame(9) << 12 | USER), set_handlers(17)])
    seen = lands(machine, Access(1, application(eflags=FLAGS | AC), G.va(9) + 1))
    assert (seen.eip, stack(machine, seen, 1)) == (handler(17), (0,))
    assert lands(machine, Access(1, kernel(eflags=FLAGS | AC), G.va(9) + 1)).eip == G.va(CODE) + 5


# --- stacks ------------------------------------------------------------------------------------------------------------------

def test_a_domain_without_a_stack_is_killed(machine):
    machine.run([G.map(9, G.frame(9) << 12 | 1)])
    for esp in 0x1000, 0, G.va(10), Xen2003.GUEST_END + 4:
        assert machine.run([Privileged(1, kernel(esp=esp), "hlt")]) == [Outcome(KILLED)]
    machine.run([G.call(Xen2003.STACK_SWITCH, R3DS, TOP - 64), set_handlers(GP, flags=4)])
    stored = Privileged(1, application(), "hlt", data=events(0, MASTER | 1))
    assert machine.run([stored]) == [Outcome(KILLED)]                   # the frame is stored, but SS of ring 3 is not for ring 1
    assert [word_of(machine, G.frame(STACK), 1008 - n) for n in (1, 2, 3)] == [R3DS, TOP, FLAGS | RF]
    assert word_of(machine, G.shared_info, 1) == 1
    assert machine.run([G.load(G.va(9))]) == [value(0)]                 # the loop goes on


def test_words_before_the_edge_stay(machine):
    machine.run([G.map(9, 0)])
    assert machine.run([Privileged(1, kernel(esp=G.va(10) + 8), "hlt")]) == [Outcome(KILLED)]
    assert [word_of(machine, G.frame(10), n) for n in range(3)] == [R1CS, FLAGS | RF, 0]


def test_frame_stores_are_the_processors(machine):
    """They set accessed and dirty bits, and may use a cached translation."""
    bare = G.frame(STACK) << 12 | 7
    machine.run([G.map(STACK, bare, Xen2003.UVMF_FLUSH)])
    lands(machine, Privileged(1, kernel(), "hlt"))
    assert word_of(machine, G.l1, STACK) == bare | 0x60
    machine.run([G.map(STACK, 0)])                                      # no flush
    lands(machine, Privileged(1, kernel(), "hlt"))


# --- the way out -------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("register", ["ds", "es", "fs", "gs"])
def test_a_segment_that_cannot_be_restored(machine, register):
    selectors = {"ds": R1DS, "es": R3DS, "fs": 0, "gs": R3DS} | {register: 0x1235}
    seen = lands(machine, Privileged(1, application(**selectors), "nop"))
    assert seen == kernel(eip=handler(0x101), esp=G.va(KERNEL_STACK + 1) - 36, ds=0)
    assert stack(machine, seen, 9) == (*selectors.values(), G.va(CODE), R3CS, FLAGS, TOP, R3DS)


def test_a_context_that_cannot_be_entered(machine):
    for context in kernel(cs=0x1235), application(ss=R1DS):
        seen = lands(machine, Privileged(1, context, "nop"))
        assert (seen.cs, seen.eip, seen.ds) == (R1CS, handler(0x101), 0)
    assert machine.run([Privileged(1, kernel(ss=R3DS), "nop")]) == [Outcome(KILLED)]    # nor with this stack


def test_events(machine):
    seen = lands(machine, Privileged(1, application(), "nop", data=events(0b110, MASTER | 0b1011)))
    assert seen == kernel(eip=handler(0x100), esp=G.va(KERNEL_STACK + 1) - 20, ds=R3DS)
    assert stack(machine, seen, 5) == (G.va(CODE), R3CS, FLAGS, TOP, R3DS)
    assert [word_of(machine, G.shared_info, n) for n in range(2)] == [0b110, 0b1001]
    for raised, mask in (0b110, 0b1001), (0b110, MASTER | 1), (0, MASTER):
        assert lands(machine, Privileged(1, kernel(), "nop", data=events(raised, mask))).eip == G.va(CODE) + 1
        assert word_of(machine, G.shared_info, 1) == mask


def test_an_event_on_top_of_an_exception(machine):
    """The instruction that raises it is the guest's own store; a handler that masks events hears of none."""
    shared = G.va(G.pages)
    pushes = FarTransfer(1, kernel(esp=shared + 8), "call", R1CS, G.va(9), data=events(0, 0))
    assert lands(machine, pushes).eip == G.va(9)                        # a far call has no exit of Xen's
    assert [word_of(machine, G.shared_info, n) for n in range(2)] == [G.va(CODE) + 7, R1CS]
    into_it = Privileged(1, kernel(esp=shared + 16), "ud2", data=events(0, 0))
    seen = lands(machine, into_it)                                      # its frame: events 0, mask EIP, which has bit 31
    assert (seen.eip, word_of(machine, G.shared_info, 1)) == (handler(UD), G.va(CODE))
    raised = Privileged(1, kernel(esp=shared + 12), "ud2", data=events(0, 0))
    seen = lands(machine, raised)                                       # events EIP, mask CS: no bit 31
    assert seen.eip == handler(UD)


def test_the_failsafe_callback_after_an_event(machine):
    """The event's frame is there already; its callback is the context that cannot be entered."""
    machine.run([G.call(Xen2003.SET_CALLBACKS, 9, 0x77, R1CS, handler(0x101))])
    seen = lands(machine, Privileged(1, application(), "nop", data=events(1, MASTER | 1)))
    assert seen == kernel(eip=handler(0x101), esp=G.va(KERNEL_STACK + 1) - 20 - 28, ds=0)
    assert stack(machine, seen, 12) == (R3DS, 0, 0, 0, 0x77, 9, FLAGS, G.va(CODE), R3CS, FLAGS, TOP, R3DS)


def test_callbacks_that_were_never_set(target):
    assert target.run([Privileged(1, kernel(ds=0x1235), "nop")]) == [Outcome(KILLED)]
    assert target.run([Privileged(1, kernel(), "nop", data=events(1, MASTER | 1))]) == [Outcome(KILLED)]
    assert word_of(target, G.shared_info, 1) == 0


# --- tables of the guest's own -----------------------------------------------------------------------------------------------

def with_tables(machine):
    """GDT: code, a gate to it; LDT: code and data.  None is accessed yet."""
    code, data = segment(0x1A, pages=0xFC400), segment(0x12, pages=0xFC400)
    ready = machine.run([G.set_descriptor(G.frame(TABLE), 1, code),
                         G.set_descriptor(G.frame(TABLE), 2, gate(9, dpl=3, offset=G.va(9))),
                         G.set_descriptor(G.frame(LOCAL), 1, code), G.set_descriptor(G.frame(LOCAL), 2, data),
                         *G.read_only(TABLE, LOCAL), G.set_gdt(G.frame(TABLE)), G.set_ldt(LOCAL, 8)])
    assert not any(o.value for o in ready)


def accessed(machine, page, n):
    return bool(word_of(machine, G.frame(page), 2 * n + 1) & 0x100)


def test_a_call_gate(machine):
    with_tables(machine)
    seen = lands(machine, FarTransfer(1, application(), "call", 0x13, 0))
    assert seen == kernel(cs=9, eip=G.va(9), esp=G.va(KERNEL_STACK + 1) - 16, ds=R3DS)
    assert stack(machine, seen, 4) == (G.va(CODE) + 7, R3CS, TOP, R3DS)
    assert accessed(machine, TABLE, 1)


def test_a_missing_page_of_the_ldt_is_mapped(machine):
    """In the guest's instruction, and in Xen's pops and IRET; the guest never knows."""
    with_tables(machine)
    for context, action in ((kernel(), FarTransfer(1, kernel(), "jmp", 0xD, G.va(9))),
                            (kernel(cs=0xD), Privileged(1, kernel(cs=0xD), "nop")),
                            (kernel(es=0x15), Privileged(1, kernel(es=0x15), "nop")),
                            (kernel(ss=0x15), Privileged(1, kernel(ss=0x15), "nop"))):
        machine.run([G.unmap(LOCAL), *G.read_only(LOCAL)])
        assert frame_of(machine, G.frame(LOCAL))[2] == 0
        seen = lands(machine, action)
        eip = G.va(CODE) + 1 if isinstance(action, Privileged) else G.va(9)
        assert (seen.eip, seen.es, seen.ss) == (eip, context.es, context.ss)
        assert frame_of(machine, G.frame(LOCAL))[2] == 1
    assert accessed(machine, LOCAL, 1)
    assert accessed(machine, LOCAL, 2)
    assert recount(machine.hypervisor) == []


def test_a_page_of_the_ldt_that_cannot_be_mapped(machine):
    with_tables(machine)
    machine.run([G.unmap(LOCAL)])
    seen = lands(machine, FarTransfer(1, kernel(), "jmp", 0xD, G.va(9)))
    assert (seen.eip, stack(machine, seen, 3)) == (handler(PF), (LDT_WINDOW + 8, 0, G.va(CODE)))
    assert lands(machine, Privileged(1, kernel(es=0x15), "nop")).eip == handler(0x101)
    assert machine.run([Privileged(1, kernel(ss=0x15), "nop")]) == [Outcome(KILLED)]


def test_code_with_a_limit(machine):
    """Code that was decoded under one limit is not executed under a smaller one."""
    with_tables(machine)
    small = segment(0x1B, pages=G.va(CODE) >> 12)                       # ends right before the page
    machine.run([G.set_descriptor(G.frame(TABLE), 3, small)])
    assert lands(machine, Privileged(1, kernel(), "nop")).eip == G.va(CODE) + 1
    seen = lands(machine, Privileged(1, kernel(cs=0x19), "nop"))        # Xen's IRET finds EIP beyond it
    assert seen.eip == handler(0x101)


def test_another_domain_has_its_own(machine):
    machine.run([G.call(Xen2003.SET_FAST_TRAP, 0x80)])
    lands(machine, Interrupt(1, kernel(), 0x80))
    seen = lands(machine, Interrupt(2, kernel(), 0x80))                 # its handler of 13 was never set
    assert (seen.eip, word_of(machine, O.frame(STACK), 1020)) == (0, 8 * 0x80 + 2)


# --- the harness -------------------------------------------------------------------------------------------------------------

def test_what_is_cached_stays(machine):
    machine.run([G.store(G.va(9), 7), G.map(9, 0)])
    lands(machine, Privileged(1, kernel(), "hlt"))
    assert machine.run([G.load(G.va(9))]) == [value(7)]


def test_a_reset_undoes_all(machine):
    machine.reset(SETUP)
    before = visible(machine)
    machine.run([Privileged(1, kernel(), "hlt", data=events(1, 0)), Interrupt(2, kernel(), 0x21),
                 Access(1, kernel(), G.va(9), write=True)])
    assert visible(machine) != before
    machine.reset(SETUP)
    assert visible(machine) == before


def test_many_in_one_program(machine):
    program = [Privileged(1 + n % 2, kernel(), "nop", data=((G.va(10), tuple(range(40))),)) for n in range(3000)]
    assert {o.landing[1] for o in machine.run(program)} == {G.va(CODE) + 1}


def test_what_is_no_action_here(machine):
    with pytest.raises(HarnessError):
        machine.run([SystemCall(1, kernel())])
