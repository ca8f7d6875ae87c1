"""Segments, transfers, interrupts and system calls in long mode (Intel SDM vol. 2 JMP .. RET, INT n, IRET, SYSCALL)."""
from typing import Any

import pytest

from spec.abi import GP, NP, SS, TS, UD
from spec.x86.descriptors import ACCESSED, BIG, CALL_GATE, GRANULAR, INTERRUPT_GATE, LONG, PRESENT, TRAP_GATE, TSS
from spec.x86.flags import AC, ID, IF, IOPL, NT, RF, TF, VIF, VIP, VM
from spec.x86.long_interrupts import Tss64, interrupt_64, interrupt_return_64
from spec.x86.long_mode import (
    CALL_GATE_64,
    check_address,
    check_base,
    far_call_64,
    far_jump_64,
    far_return_64,
    is_64,
    is_unknown_code,
    load_stack_64,
    loaded_base,
    read_base,
    swap_gs,
    write_base,
)
from spec.x86.segments import Registers, Segment, cpl_of
from spec.x86.stacks import Transfer
from spec.x86.system_calls import (
    CSTAR,
    FS_BASE,
    GS_BASE,
    KERNEL_GS_BASE,
    LSTAR,
    SFMASK,
    STAR,
    Msrs,
    system_call,
    system_return,
    write_msr,
)
from spec.x86.transfers import Unmodelled
from tests.spec.x86.processor import (
    CODE,
    CONFORMING,
    DATA,
    DATA_RO,
    EVERY_TYPE,
    NEW,
    NEXT,
    OTHER,
    TOP,
    Processor,
    absent,
    code,
    data,
    faults,
    gate,
    of_type,
    put,
    segment,
)

HOLE = 1 << 47                              # the first address that is not canonical
LAST = HOLE - 1
HIGH = 0xFFFF800000000000                   # the first one that is again
TARGET = 0x5678
RINGS = range(4)
RSP = 0x7FFF_0000_8000


def code_64(dpl: int, kind: int = CODE) -> int:
    """Code of 64 bits."""
    return segment(kind, dpl, marks=PRESENT | GRANULAR | LONG)


class LongProcessor(Processor):
    """64-bit code at code(n), code of compatibility mode at wide(n)."""

    def __init__(self, cpl: int = 3, compatible: bool = False) -> None:
        super().__init__(cpl)
        for n in RINGS:
            self.entries[code(n) & ~3], self.entries[wide(n) & ~3] = code_64(n), segment(CODE, n)
        running = wide(cpl) if compatible else code(cpl)
        self.set(cs=Segment(running, self.loaded(running)), esp=TOP if compatible else RSP, eip=0x7FFF_1234_5678)
        self.long_tss = Tss64(0x48, 0x67, (0xFFFF8300_00001000, 0x2008, 0x3000), (*(0x10000 * n for n in range(1, 8)),))

    def frame(self, *words: int, size: int = 8, at: int = 0) -> None:
        """Words on the stack, the top one first."""
        for n, word in enumerate(words):
            self.stack[self.registers.esp + at + n * size] = word


def wide(ring: int) -> int:
    """The selector of compatibility mode's code of a ring."""
    return 0xA0 + 8 * ring | ring


def jump(p: LongProcessor, selector: int, offset: int = TARGET, size: int = 8) -> Registers:
    """JMP; the registers after it."""
    return far_jump_64(p.registers, p.table, selector, offset, size)


def call(p: LongProcessor, selector: int, offset: int = TARGET, size: int = 8) -> Transfer:
    """CALL; what it leaves."""
    return far_call_64(p.registers, p.table, selector, offset, size)


def ret(p: LongProcessor, size: int = 8, release: int = 0) -> Registers:
    """RET; the registers after it."""
    return far_return_64(p.registers, p.table, p.read, size, release)


def iret(p: LongProcessor, size: int = 8) -> Registers:
    """IRET; the registers after it."""
    return interrupt_return_64(p.registers, p.table, p.read, size)


def enter(p: LongProcessor, q: int, upper: int = 0, software: bool = False, errors: tuple[int, ...] = ()) -> Transfer:
    """Interrupt 0x21; what it leaves."""
    return interrupt_64(p.registers, p.table, p.long_tss, q, upper, 0x21, software, errors)


def ready(cpl: int = 3, *spoils: Any, compatible: bool = False) -> LongProcessor:
    """A processor with some changes."""
    p = LongProcessor(cpl, compatible)
    for spoil in spoils:
        spoil(p)
    return p


# --- segments and addresses --------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("kind", EVERY_TYPE)
def test_only_code_has_a_mode(kind):
    q = of_type(kind) & ~BIG | LONG
    assert is_64(q) == is_unknown_code(q | BIG) == (kind & 0x18 == 0x18)
    assert not is_64(q & ~LONG)
    assert not is_unknown_code(q)


@pytest.mark.parametrize("cpl", RINGS)
@pytest.mark.parametrize("rpl", RINGS)
@pytest.mark.parametrize("in_64", [False, True])
def test_64_bit_code_of_inner_rings_does_without_a_stack_segment(cpl, rpl, in_64):
    if in_64 and cpl == rpl != 3:
        assert load_stack_64(0, rpl, cpl, in_64) == Segment(rpl, 0)
    else:
        with faults(GP, 0):
            load_stack_64(0, rpl, cpl, in_64)
    assert load_stack_64(segment(DATA, cpl), NEW | cpl, cpl, in_64).selector == NEW | cpl
    with faults(GP, NEW):
        load_stack_64(0, NEW | cpl, cpl, in_64)


@pytest.mark.parametrize(("address", "size", "canonical"), [
    (0, 8, True), (LAST - 7, 8, True), (LAST - 6, 8, False), (HOLE, 1, False), (HIGH - 1, 1, False), (HIGH - 1, 2, False),
    (HIGH, 8, True), ((1 << 64) - 8, 8, True), ((1 << 64) - 1, 2, True)])
def test_addresses(address, size, canonical):
    for stack in (False, True):
        if canonical:
            check_address(address, size, stack)
        else:
            with faults(SS if stack else GP, 0):
                check_address(address, size, stack)


def test_bases():
    assert check_base(HIGH) == HIGH
    with faults(GP, 0):
        check_base(HOLE)
    assert swap_gs(ready(0).registers, 1, 2) == (2, 1)
    for cpl in (1, 2, 3):
        with faults(GP, 0):
            swap_gs(ready(cpl).registers, 1, 2)


# --- far transfers -----------------------------------------------------------------------------------------------------------

def test_a_jump_changes_the_mode_with_the_code():
    p = ready(3)
    there = jump(p, wide(3))
    assert there == p.registers._replace(cs=Segment(wide(3), segment(CODE, 3) | ACCESSED), eip=TARGET)
    p.registers = there
    assert jump(p, code(3), size=4).cs == Segment(code(3), code_64(3) | ACCESSED)
    for size in (2, 4):
        assert jump(p, code(3), 1 << 8 * size | TARGET, size).eip == TARGET


@pytest.mark.parametrize(("size", "eip"), [(2, 0x5678), (4, 0x12345678), (8, 0x7FFF_1234_5678)])
def test_a_call_pushes_words_of_its_size(size, eip):
    after = call(ready(3), wide(3), size=size)
    assert after.pushed == ((RSP - size, code(3)), (RSP - 2 * size, eip))
    assert (after.registers.esp, after.registers.cs.selector, after.size) == (RSP - 2 * size, wide(3), size)


def test_a_call_from_compatibility_mode_uses_its_stack():
    p = ready(3, compatible=True)
    p.set(ss=Segment(data(3), segment(DATA, 3, 0xFFFF, marks=PRESENT)), esp=4, eip=NEXT)
    after = call(p, code(3), size=4)
    assert (after.pushed, after.registers.esp) == (((0, wide(3)), (0xFFFC, NEXT)), 0xFFFC)
    p.set(ss=Segment(data(3), segment(DATA, 3, 0xFFF, marks=PRESENT)))
    with faults(SS, 0):
        call(p, code(3), size=4)


@pytest.mark.parametrize("go", [jump, call])
@pytest.mark.parametrize("kind", EVERY_TYPE)
def test_what_a_far_pointer_can_name(go, kind):
    """Code of the same ring, conforming code, and a call gate that guests never have."""
    p = ready(0, put(NEW, of_type(kind, 0)))
    if kind & 0x18 == 0x18:
        go(p, NEW)
    elif kind == CALL_GATE:
        with pytest.raises(Unmodelled, check=lambda e: e.reason == CALL_GATE_64):
            go(p, NEW)
    else:
        with faults(GP, NEW):
            go(p, NEW)


@pytest.mark.parametrize("go", [jump, call])
@pytest.mark.parametrize(("selector", "q", "offset", "vector", "error"), [
    (3, 0, TARGET, GP, 0),                                                          # null
    (NEW, 0, TARGET, GP, NEW),                                                      # beyond the table
    (NEW, code_64(3) | BIG, TARGET, GP, NEW),                                       # no mode
    (NEW, code_64(2), TARGET, GP, NEW),                                             # another ring
    (NEW, code_64(3) & ~PRESENT, TARGET, NP, NEW),                                  # not present
    (NEW, (code_64(3) | BIG) & ~PRESENT, TARGET, GP, NEW),
    (NEW, code_64(3), HOLE, GP, 0),                                                 # no address
    (NEW, segment(CODE, 3, TARGET - 1, marks=PRESENT), TARGET, GP, 0),
    (NEW, gate(CALL_GATE, code(3), TARGET, 0), TARGET, GP, NEW),                    # as Xen leaves gates
    (NEW, gate(CALL_GATE, code(3), TARGET, marks=0), TARGET, NP, NEW),
    (NEW, gate(TSS, 0, 0), TARGET, GP, NEW),
])
def test_refusals_of_far_transfers(go, selector, q, offset, vector, error):
    with faults(vector, error):
        go(ready(3, put(NEW, q)), selector, offset)


@pytest.mark.parametrize("go", [lambda p: jump(p, NEW, HOLE | TARGET), lambda p: call(p, NEW, HOLE | TARGET).registers])
def test_a_jump_to_compatibility_mode_drops_the_upper_half(go):
    assert go(ready(3, put(NEW, segment(CODE, 3)))).eip == TARGET


def test_64_bit_code_has_no_limit():
    assert jump(ready(3, put(NEW, segment(CODE, 3, 0, marks=PRESENT | LONG))), NEW | 3, HIGH).eip == HIGH


# --- call gates --------------------------------------------------------------------------------------------------------------

GATED = 0x7FFF                              # of the target's address
BEYOND = (1 << 64) - 1


def gated(cpl, target, upper=GATED, dpl=3, **spoils):
    """A processor with a call gate at NEW; and how to jump and to call through it."""
    p = ready(cpl, put(NEW, gate(CALL_GATE, target, TARGET, dpl)))
    p.set(**spoils)
    return (p, lambda: far_jump_64(p.registers, p.table, NEW, 0, 8, lambda selector: upper),
            lambda: far_call_64(p.registers, p.table, NEW, 0, 8, lambda selector: upper, p.long_tss))


def test_a_call_gate_to_an_inner_ring_switches_stacks():
    p, _, through = gated(3, code(1))
    t = through()
    assert t.registers == p.registers._replace(cs=Segment(code(1), p.loaded(code(1))), ss=Segment(1, 0), eip=GATED << 32 | TARGET,
                                               esp=0x2008 - 32)
    assert t.pushed == ((0x2000, data(3)), (0x1FF8, RSP), (0x1FF0, code(3)), (0x1FE8, p.registers.eip))


@pytest.mark.parametrize("dpl", [2, 0])
def test_a_call_gate_in_the_ring(dpl):
    """Code of the ring itself, and conforming code: the stack stays."""
    p, leap, through = gated(2, NEW + 8)
    p.entries[NEW + 8] = code_64(dpl, CODE if dpl == 2 else CONFORMING)
    after = leap()
    assert (after.cs.selector, after.eip, after.esp, after.ss) == (NEW + 8 | 2, GATED << 32 | TARGET, RSP, p.registers.ss)
    t = through()
    assert t.registers == after._replace(esp=RSP - 16)
    assert t.pushed == ((RSP - 8, code(2)), (RSP - 16, p.registers.eip))


@pytest.mark.parametrize(("target", "upper", "vector", "error"), [
    (code(3), BEYOND, GP, NEW),                                                     # its second half lies beyond the table
    (code(3), 1 << 40, GP, NEW),                                                    # or has a type
    (code(3), 1 << 44, GP, NEW),
    (3, 0, GP, 0),                                                                  # null
    (data(3), 0, GP, data(3) & ~3),                                                 # no code
    (wide(3), 0, GP, wide(3) & ~3),                                                 # no 64-bit code
    (code(3), 0x8000, GP, 0),                                                       # no address
    (OTHER, 0, GP, OTHER),                                                          # no mode
    (OTHER + 8, 0, NP, OTHER + 8),                                                  # not present
])
def test_refusals_of_call_gates(target, upper, vector, error):
    p, leap, through = gated(3, target, upper)
    p.entries[OTHER] = (code_64(3) | BIG) & ~PRESENT
    p.entries[OTHER + 8] = code_64(3) & ~PRESENT
    for go in (leap, through):
        with faults(vector, error):
            go()


def test_a_jump_through_a_call_gate_stays_in_its_ring():
    for cpl, dpl in ((3, 0), (1, 2)):
        with faults(GP, code(dpl) & ~3):
            gated(cpl, code(dpl))[1]()
    with faults(GP, code(3) & ~3):
        gated(2, code(3))[2]()


def test_stacks_of_call_gates():
    p, _, through = gated(3, code(0))
    for limit in (10, 0):
        p.long_tss = p.long_tss._replace(limit=limit)
        with faults(TS, 0x48):
            through()
    p.long_tss = p.long_tss._replace(limit=11)
    through()
    for rsp in (HIGH + 31, HIGH + 7, HOLE + 3, HOLE + 8):
        p.long_tss = p.long_tss._replace(rsp=(rsp, 0, 0))
        with faults(SS, 0):
            through()
    for rsp in (HIGH + 32, HOLE, 0):
        p.long_tss = p.long_tss._replace(rsp=(rsp, 0, 0))
        assert through().registers.esp == (rsp - 32) % (1 << 64)


def test_call_gates_can_be_left_out():
    with pytest.raises(Unmodelled, check=lambda e: e.reason == CALL_GATE_64):
        jump(ready(3, put(NEW, gate(CALL_GATE, code(3), TARGET, 3))), NEW)


def test_a_call_needs_canonical_addresses_for_the_return_address():
    p = ready(3)
    p.set(esp=HIGH + 16)
    call(p, code(3))
    for rsp in (HIGH + 15, HIGH + 7, HOLE + 3):
        p.set(esp=rsp)
        with faults(SS, 0):
            call(p, code(3))
    p.set(esp=8)                                # the highest addresses are canonical, too
    assert [address for address, _ in call(p, code(3)).pushed] == [0, (1 << 64) - 8]


def test_returns():
    p = ready(3)
    p.frame(TARGET, wide(3))
    assert ret(p, release=16) == p.registers._replace(cs=Segment(wide(3), p.loaded(wide(3))), eip=TARGET, esp=RSP + 32)
    p = ready(0)
    p.set(ds=Segment(data(0), p.loaded(data(0))))
    p.frame(TARGET, code(3))
    p.frame(HIGH, data(3), at=16 + 24)
    after = ret(p, release=24)
    assert (cpl_of(after), after.esp, after.ss.selector, after.ds) == (3, HIGH + 24, data(3), Segment(0, 0))


@pytest.mark.parametrize(("go", "words"), [(ret, (TARGET, NEW | 3, RSP, data(3))), (iret, (TARGET, NEW | 3, 2, RSP, data(3)))])
@pytest.mark.parametrize(("q", "vector", "error"), [
    (0, GP, NEW), (code_64(2), GP, NEW), (code_64(3) | BIG, GP, NEW), (code_64(3) & ~PRESENT, NP, NEW),
    (segment(CODE, 3, TARGET - 1, marks=PRESENT), GP, 0)])
@pytest.mark.parametrize("cpl", [0, 3])
def test_refusals_of_returns(go, words, q, vector, error, cpl):
    p = ready(cpl, put(NEW, q))
    p.frame(*words)
    with faults(vector, error):
        go(p)


@pytest.mark.parametrize(("go", "between"), [(ret, ()), (iret, (2,))])
@pytest.mark.parametrize(("cs", "ss", "fine"), [
    (code(0), 0, True), (code(0), 1, False), (code(1), NEW | 1, False), (code(1), 1, True), (code(1), 2, False),
    (code(3), 3, False), (wide(1), 1, False)])
def test_to_which_code_a_return_may_lead_without_a_stack_segment(go, between, cs, ss, fine):
    p = ready(0)
    p.frame(TARGET, cs, *between, RSP, ss)
    if go is ret and cs & 3 == 0:               # it pops none
        assert go(p).ss == p.registers.ss
    elif fine:
        assert go(p).ss == Segment(ss, 0)
    else:
        with faults(GP, ss & ~3):
            go(p)


@pytest.mark.parametrize("words", [0, 1, 2, 3, 4, 5])
def test_returns_read_only_at_canonical_addresses(words):
    p = ready(0)
    p.set(esp=HOLE - 8 * words)
    p.frame(TARGET, code(3) if words > 2 else 0, 2, RSP, data(3))
    if words < 5:
        with faults(SS, 0):
            iret(p)
    else:
        iret(p)
    p.frame(TARGET, code(3) if words > 1 else 0, RSP, data(3))
    if words < 4:
        with faults(SS, 0):
            ret(p)
    else:
        ret(p)
    if words > 1:
        p.frame(TARGET, code(0))
        ret(p)


def test_returns_from_compatibility_mode_read_within_their_stack():
    p = ready(3, compatible=True)
    p.set(ss=Segment(data(3), segment(DATA, 3, TOP + 6, marks=PRESENT | BIG)))
    p.frame(TARGET, wide(3), 2, size=4)
    for go in (ret, iret):
        with faults(SS, 0):
            go(p, 4)
    for limit, go in ((TOP + 7, ret), (TOP + 11, iret)):
        p.set(ss=Segment(data(3), segment(DATA, 3, limit, marks=PRESENT | BIG)))
        assert go(p, 4).eip == TARGET
        p.entries[wide(3) & ~3] = segment(CODE, 3, TARGET - 1, marks=PRESENT)
        with faults(GP, 0):
            go(p, 4)
        p.entries[wide(3) & ~3] = segment(CODE, 3)


def test_an_interrupt_return_outwards_nulls_the_data_segments_of_inner_rings():
    for cpl in (1, 3):
        p = ready(cpl)
        p.set(ds=Segment(2, 0), es=Segment(data(1), p.loaded(data(1))))
        p.frame(TARGET, code(3), 2, RSP, data(3))
        after = iret(p)
        assert (after.ds, after.es) == ((p.registers.ds, p.registers.es) if cpl == 3 else (Segment(0, 0), Segment(0, 0)))


@pytest.mark.parametrize("size", [2, 4, 8])
def test_short_flags_leave_the_upper_half(size):
    p = ready(3)
    p.set(eflags=AC | 2)
    p.frame(TARGET, code(3), 2, RSP & 0xFFFF, data(3), size=size)
    assert iret(p, size).eflags == (AC | 2 if size == 2 else 2)


# --- IRET --------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("size", [2, 4, 8])
def test_64_bit_mode_pops_the_stack_on_every_return(size):
    p = ready(3)
    p.frame(TARGET, code(3), 0xDD7, 0x9000, data(3), size=size)
    after = iret(p, size)
    assert after == p.registers._replace(eip=TARGET, esp=0x9000, eflags=0xFD7)


def test_compatibility_mode_pops_it_only_outwards():
    p = ready(3, compatible=True)
    p.frame(TARGET, wide(3), 2, size=4)
    assert iret(p, 4).esp == TOP + 12
    p = ready(1, compatible=True)
    p.frame(TARGET, wide(3), 2, 0x9000, data(3), size=4)
    assert (iret(p, 4).esp, cpl_of(iret(p, 4))) == (0x9000, 3)


def test_compatibility_mode_has_short_stack_pointers():
    p = ready(3, put(NEW, segment(DATA, 3, marks=PRESENT)))
    p.frame(TARGET, wide(3), 2, 0x1_2345_9000, data(3))
    assert iret(p).esp == 0x23459000
    p.frame(TARGET, wide(3), 2, 0x1_2345_9000, NEW | 3)
    assert iret(p).esp == 0x9000


@pytest.mark.parametrize("flags", [NT, NT | IF])
def test_there_are_no_nested_tasks(flags):
    p = ready(3)
    p.set(eflags=flags)
    with faults(GP, 0):
        iret(p)


def test_vm_is_ignored_even_in_ring_0():
    p = ready(0)
    p.frame(TARGET, code(0), VM | IOPL | IF | 2, RSP, 0)
    assert iret(p).eflags == IOPL | IF | 2


@pytest.mark.parametrize(("ss", "q", "vector", "error"), [
    (NEW | 3, 0, GP, NEW), (NEW | 2, segment(DATA, 3), GP, NEW), (NEW | 3, segment(DATA, 2), GP, NEW),
    (NEW | 3, segment(DATA_RO, 3), GP, NEW), (NEW | 3, segment(DATA, 3) & ~PRESENT, SS, NEW), (3, 0, GP, 0)])
@pytest.mark.parametrize("cpl", [0, 3])
def test_the_stack_of_a_return(cpl, ss, q, vector, error):
    p = ready(cpl, put(NEW, q))
    p.frame(TARGET, code(3), 2, RSP, ss)
    with faults(vector, error):
        iret(p)


def test_no_return_to_an_address_that_is_not_canonical():
    p = ready(3)
    p.frame(HOLE, code(3), 2, RSP, data(3))
    for go in (ret, iret):
        with faults(GP, 0):
            go(p)


# --- interrupts --------------------------------------------------------------------------------------------------------------

UPPER = 0xFFFF8300
ADDRESS = UPPER << 32 | TARGET


@pytest.mark.parametrize("errors", [(), (7,)])
@pytest.mark.parametrize(("cpl", "ring", "ist", "rsp"), [
    (3, 0, 0, 0xFFFF8300_00001000), (3, 1, 0, 0x2000), (3, 2, 0, 0x3000), (3, 3, 0, RSP), (0, 0, 0, RSP), (0, 0, 1, 0x10000),
    (3, 0, 7, 0x70000)])
def test_the_frame_of_a_handler(errors, cpl, ring, ist, rsp):
    """Always with SS and RSP, on a stack of a multiple of 16; in an inner ring without a stack segment."""
    p = ready(cpl)
    p.set(esp=RSP + 7, eflags=0x202 | TF | NT | RF)
    for kind, flags in ((INTERRUPT_GATE, 2), (TRAP_GATE, 0x202)):
        after = enter(p, gate(kind, code(ring), TARGET) | ist << 32, UPPER, errors=errors)
        words = (data(cpl), RSP + 7, 0x202 | TF | NT | RF, code(cpl), p.registers.eip, *errors)
        assert after.pushed == tuple((rsp - 8 * n, word) for n, word in enumerate(words, 1))
        assert (after.size, after.copied) == (8, 0)
        assert after.registers == p.registers._replace(
            cs=Segment(code(ring), p.loaded(code(ring))), ss=p.registers.ss if ring == cpl else Segment(ring, 0), eip=ADDRESS,
            esp=rsp - 8 * len(words), eflags=flags)


@pytest.mark.parametrize("kind", EVERY_TYPE)
def test_which_descriptors_an_idt_can_hold(kind):
    p = ready(0, put(OTHER, gate(TSS, 0, 0)))
    q = of_type(kind)
    if kind in (INTERRUPT_GATE, TRAP_GATE):
        enter(p, q)
        with faults(GP, 0x21 * 8 + 3):
            enter(p, q, 1 << 40)
    else:
        for software in (False, True):
            with faults(GP, 0x21 * 8 + (2 if software else 3)):
                enter(p, q, software=software)


@pytest.mark.parametrize("cpl", RINGS)
@pytest.mark.parametrize("dpl", RINGS)
def test_only_programs_are_asked_for_the_privilege_of_a_gate(cpl, dpl):
    p, q = ready(cpl), gate(INTERRUPT_GATE, code(0), TARGET, dpl)
    enter(p, q)
    if cpl <= dpl:
        enter(p, q, software=True)
    else:
        with faults(GP, 0x21 * 8 + 2):
            enter(p, q, software=True)


def spoiled_tss(**changes: Any) -> Any:
    """Another TSS."""
    return lambda p: setattr(p, "long_tss", p.long_tss._replace(**changes))


TO_0 = gate(TRAP_GATE, code(0), TARGET)
@pytest.mark.parametrize("software", [False, True])
@pytest.mark.parametrize(("q", "upper", "spoil", "vector", "error"), [
    (0, 0, None, GP, 0x21 * 8 + 2),
    (TO_0 & ~PRESENT, 0, None, NP, 0x21 * 8 + 2),
    (gate(TRAP_GATE, 3, TARGET), 0, None, GP, 0),
    (gate(TRAP_GATE, NEW, TARGET), 0, None, GP, NEW),
    (gate(TRAP_GATE, NEW, TARGET), 0, put(NEW, segment(CODE, 0)), GP, NEW),                 # not 64-bit
    (gate(TRAP_GATE, NEW, TARGET), 0, put(NEW, code_64(0) | BIG), GP, NEW),
    (gate(TRAP_GATE, NEW, TARGET), 0, put(NEW, segment(DATA, 0)), GP, NEW),
    (TO_0, 0, absent(code(0)), NP, code(0)),
    (TO_0, 0, spoiled_tss(limit=10), TS, 0x48),
    (TO_0 | 2 << 32, 0, spoiled_tss(limit=50), TS, 0x48),
    (TO_0, 0, spoiled_tss(rsp=(HIGH + 39, 0, 0)), SS, 0),
    (TO_0, HOLE >> 32, None, GP, 0),
])
def test_refusals_of_interrupts(software, q, upper, spoil, vector, error):
    with faults(vector, error if software else error | 1):
        enter(ready(3, *([spoil] if spoil else [])), q, upper, software)


def test_the_last_room_of_a_tss_and_of_a_stack():
    enter(ready(3, spoiled_tss(limit=11)), TO_0)
    enter(ready(3, spoiled_tss(limit=27)), gate(TRAP_GATE, code(2), TARGET))
    with faults(TS, 0x49):
        enter(ready(3, spoiled_tss(limit=26)), gate(TRAP_GATE, code(2), TARGET))
    enter(ready(3, spoiled_tss(limit=51)), TO_0 | 2 << 32)
    enter(ready(3, spoiled_tss(rsp=(HIGH + 48, 0, 0))), TO_0, errors=(7,))


def test_a_handler_of_conforming_code_stays_in_the_ring():
    after = enter(ready(3, put(NEW, code_64(1, CONFORMING))), gate(TRAP_GATE, NEW, TARGET)).registers
    assert (after.cs.selector, after.ss.selector) == (NEW | 3, data(3))
    with faults(GP, NEW | 1):
        enter(ready(1, put(NEW, code_64(2))), gate(TRAP_GATE, NEW, TARGET))


# --- SYSCALL and SYSRET ------------------------------------------------------------------------------------------------------

MSRS = Msrs(star=0xE023_E00B << 32, lstar=HIGH + 1, cstar=HIGH + 2, mask=IF | TF, enabled=True, from_32=False)
FLAT = segment(CODE, 0, marks=PRESENT | GRANULAR) | ACCESSED


def test_a_system_call_is_in_ring_0_with_flat_segments_and_nothing_else_changed():
    p = ready(3)
    p.set(eflags=0x202 | RF)
    after = system_call(p.registers, MSRS)
    assert after == (p.registers._replace(cs=Segment(0xE008, FLAT | LONG), ss=Segment(0xE010, segment(DATA, 0) | ACCESSED),
                                          eip=HIGH + 1, eflags=2), 0x7FFF_1234_5678, 0x202)


def test_a_system_call_leaves_the_flag_that_is_always_set():
    assert system_call(ready(3).registers, MSRS._replace(mask=0xFFFFFFFF)).registers.eflags == 2


@pytest.mark.parametrize("register", [LSTAR, CSTAR, FS_BASE, GS_BASE, KERNEL_GS_BASE])
def test_registers_for_addresses(register):
    for address in (0, LAST, HIGH):
        assert write_msr(0, register, address) == address
    for address in (HOLE, HIGH - 1):
        with faults(GP, 0):
            write_msr(0, register, address)
    with faults(GP, 0):
        write_msr(1, register, 0)


def test_other_registers_of_system_calls():
    assert write_msr(0, STAR, HOLE) == HOLE
    assert write_msr(0, SFMASK, 0xFFFFFFFF) == 0xFFFFFFFF
    with faults(GP, 0):
        write_msr(0, SFMASK, 1 << 32)


def test_bases_of_compatibility_mode():
    p = ready(0, compatible=True).registers
    for go in (lambda: swap_gs(p, 1, 2), lambda: read_base(p, 1), lambda: write_base(p, 1)):
        with faults(UD, 0):
            go()
    p = ready(3).registers
    assert (read_base(p, HIGH), write_base(p, LAST)) == (HIGH, LAST)
    with faults(GP, 0):
        write_base(p, HOLE)
    assert (loaded_base(0), loaded_base(0x78 << 56 | 0x123456 << 16)) == (0, 0x78123456)


def test_a_system_call_from_compatibility_mode():
    p = ready(3, compatible=True)
    with faults(UD, 0):
        system_call(p.registers, MSRS)
    assert system_call(p.registers, MSRS._replace(from_32=True)).registers.eip == HIGH + 2


def test_system_calls_can_be_off():
    for go in (lambda: system_call(ready(3).registers, MSRS._replace(enabled=False)),
               lambda: system_return(ready(0).registers, MSRS._replace(enabled=False), 0, 0, True),
               lambda: system_return(ready(0, compatible=True).registers, MSRS, 0, 0, True)):
        with faults(UD, 0):
            go()


def test_a_system_return_is_to_ring_3():
    p = ready(0)
    flags = (1 << 32) - 1
    after = system_return(p.registers, MSRS, LAST, flags, True)
    assert (after.cs, after.ss) == (Segment(0xE033, FLAT | LONG | 3 << 45), Segment(0xE02B, segment(DATA, 3) | ACCESSED))
    assert (after.eip, after.eflags) == (LAST, 0xFD7 | IOPL | NT | AC | VIF | VIP | ID)
    after = system_return(p.registers, MSRS, 0x1_2345_6789, 0, False)
    assert (after.cs, after.eip, after.eflags) == (Segment(0xE023, FLAT | BIG | 3 << 45), 0x23456789, 2)


def test_refusals_of_system_returns():
    for cpl in (1, 2, 3):
        with faults(GP, 0):
            system_return(ready(cpl).registers, MSRS, 0, 0, True)
    with faults(GP, 0):
        system_return(ready(0).registers, MSRS, HOLE, 0, True)
    assert system_return(ready(0).registers, MSRS, HOLE, 0, False).eip == 0
