"""Far jumps, calls and returns, step by step as the manual states them (Intel SDM vol. 2 JMP, CALL, RET; vol. 3A §5.8).

Each either raises `Fault` (and nothing has happened) or answers what the processor will have done.  `r.eip` is the address of the
next instruction, `size` the operand size in bytes (2 or 4), `table` gives descriptors by selector, `read` the word of that size
at an offset of the current stack.  Both may fault themselves: a table or a stack lies in memory.
"""
from collections.abc import Callable
from typing import Final

from spec.abi import GP, NP, SS
from spec.kernel import predicate
from spec.x86.descriptors import (
    ACCESSED,
    PRESENT,
    RPL,
    TI,
    dpl_of,
    error_code,
    gate_offset,
    gate_parameters,
    gate_selector,
    is_any_call_gate,
    is_code,
    is_conforming,
    is_free_tss,
    is_null,
    is_task_gate,
    is_wide_gate,
    with_rpl,
)
from spec.x86.paging import Fault
from spec.x86.segments import Registers, Segment, Table, check_fetch, cpl_of, keep
from spec.x86.stacks import (
    Transfer,
    Tss,
    check_room,
    check_top,
    holds,
    inner_stack,
    loaded,
    moved,
    outer_stack,
    place,
    push,
    truncated,
)

Read = Callable[[int], int]

TASK_SWITCH: Final = "task switch"
VIRTUAL_MODE: Final = "virtual-8086 mode"


class Unmodelled(Fault):
    """Every check of the manual passed, and what comes then is not specified: no table that Xen lets stand gets a guest here."""

    def __init__(self, reason: str) -> None:
        super().__init__(-1, 0)
        self.reason = reason


# --- what a far pointer names ------------------------------------------------------------------------------------------------

@predicate
def may_enter(q: int, selector: int, cpl: int) -> bool:
    """Code that can be entered without a gate: conforming and not less privileged, or exactly of this ring and meant for it."""
    if is_conforming(q):
        return dpl_of(q) <= cpl
    return selector & RPL <= cpl and dpl_of(q) == cpl


@predicate
def may_use(q: int, selector: int, cpl: int) -> bool:
    """A gate or a TSS that is open to this ring and to who asked for it."""
    return dpl_of(q) >= cpl and dpl_of(q) >= selector & RPL


def code_segment(q: int, selector: int, ring: int) -> Segment:
    """What is in CS when it runs at a ring."""
    return Segment(with_rpl(selector, ring), q | ACCESSED)


def check_present(q: int, selector: int) -> None:
    """The descriptor is present."""
    if q & PRESENT == 0:
        raise Fault(NP, error_code(selector))


def direct_target(q: int, selector: int, cpl: int) -> Segment:
    """Code that a far pointer itself names."""
    # step 1: privilege
    if not may_enter(q, selector, cpl):
        raise Fault(GP, error_code(selector))
    # step 2: presence
    check_present(q, selector)
    return code_segment(q, selector, cpl)


def check_gate(q: int, selector: int, cpl: int) -> None:
    """A gate that a far pointer names."""
    # step 1: privilege
    if not may_use(q, selector, cpl):
        raise Fault(GP, error_code(selector))
    # step 2: presence
    check_present(q, selector)


def refuse_other(table: Table, q: int, selector: int, cpl: int) -> None:
    """A far pointer that names neither code nor a call gate: a task, after all its checks, or nothing that can be entered."""
    # step 1: the type
    if not (is_task_gate(q) or is_free_tss(q)):
        raise Fault(GP, error_code(selector))
    # step 2: a TSS lies in the GDT
    if is_free_tss(q) and selector & TI != 0:
        raise Fault(GP, error_code(selector))
    # steps 3, 4: privilege and presence, of both kinds
    check_gate(q, selector, cpl)
    # step 5: what a task gate names
    if is_task_gate(q):
        check_task(table, gate_selector(q), 0)
    raise Unmodelled(TASK_SWITCH)


def check_task(table: Table, selector: int, ext: int) -> None:
    """The TSS that a task gate names."""
    # step 1: in the GDT, and within it
    if is_null(selector) or selector & TI != 0:
        raise Fault(GP, error_code(selector) | ext)
    # step 2: of a task that does not run
    q = table(selector)
    if not is_free_tss(q):
        raise Fault(GP, error_code(selector) | ext)
    # step 3: present
    if q & PRESENT == 0:
        raise Fault(NP, error_code(selector) | ext)


# --- JMP ---------------------------------------------------------------------------------------------------------------------

def far_jump(r: Registers, table: Table, selector: int, offset: int, size: int = 4) -> Registers:
    """JMP to a far pointer: never to another ring."""
    cpl = cpl_of(r)
    # step 1: no null selector
    if is_null(selector):
        raise Fault(GP, 0)
    # step 2: the descriptor decides
    q = table(selector)
    if is_code(q):
        cs, eip = direct_target(q, selector, cpl), truncated(offset, size == 4)
    elif is_any_call_gate(q):
        cs, eip = jump_gate(table, q, selector, cpl), gate_offset(q)
    else:
        refuse_other(table, q, selector, cpl)
    # step 3: the target lies within the segment
    check_fetch(cs.q, eip)
    return r._replace(cs=cs, eip=eip)


def jump_gate(table: Table, gate: int, selector: int, cpl: int) -> Segment:
    """JMP through a call gate."""
    check_gate(gate, selector, cpl)
    target = gate_selector(gate)
    # step 1: no null selector in the gate
    if is_null(target):
        raise Fault(GP, 0)
    # step 2: code of this ring, whatever the RPL in the gate
    q = table(target)
    if not (is_code(q) and may_enter(q, with_rpl(target, 0), cpl)):
        raise Fault(GP, error_code(target))
    # step 3: present
    check_present(q, target)
    return code_segment(q, target, cpl)


# --- CALL --------------------------------------------------------------------------------------------------------------------

def far_call(r: Registers, table: Table, tss: Tss, selector: int, offset: int, size: int = 4) -> Transfer:
    """CALL of a far pointer: through a gate perhaps to an inner ring."""
    cpl = cpl_of(r)
    # step 1: no null selector
    if is_null(selector):
        raise Fault(GP, 0)
    # step 2: the descriptor decides
    q = table(selector)
    if is_any_call_gate(q):
        return call_gate(r, table, tss, q, selector)
    if not is_code(q):
        refuse_other(table, q, selector, cpl)
    cs = direct_target(q, selector, cpl)
    return call_same(r, cs, truncated(offset, size == 4), size)


def call_same(r: Registers, cs: Segment, eip: int, size: int) -> Transfer:
    """The end of a call that stays in its ring."""
    # step 1: the stack has room for the return address
    check_room(r.ss, r.esp, 2, size, 0)
    # step 2: the target lies within the segment
    check_fetch(cs.q, eip)
    return push(r._replace(cs=cs, eip=eip), (r.cs.selector, r.eip), size)


def call_gate(r: Registers, table: Table, tss: Tss, gate: int, selector: int) -> Transfer:
    """CALL through a gate, which also says how wide the words on the stack are."""
    cpl = cpl_of(r)
    check_gate(gate, selector, cpl)
    target = gate_selector(gate)
    # step 1: no null selector in the gate
    if is_null(target):
        raise Fault(GP, 0)
    # step 2: code that is not less privileged
    q = table(target)
    if not is_code(q) or dpl_of(q) > cpl:
        raise Fault(GP, error_code(target))
    # step 3: present
    check_present(q, target)
    # step 4: only code that does not conform changes the ring
    if is_conforming(q) or dpl_of(q) == cpl:
        return call_same(r, code_segment(q, target, cpl), gate_offset(gate), gate_size(gate))
    return call_inner(r, table, tss, gate, code_segment(q, target, dpl_of(q)))


def gate_size(gate: int) -> int:
    """The bytes of a word that a gate pushes."""
    return 4 if is_wide_gate(gate) else 2


def call_inner(r: Registers, table: Table, tss: Tss, gate: int, cs: Segment) -> Transfer:
    """CALL through a gate to an inner ring: on its stack the old one's pointer, the parameters, and the return address."""
    size, parameters = gate_size(gate), gate_parameters(gate)
    # step 1: the stack that the TSS has for the ring
    ss, esp = inner_stack(table, tss, cs.selector & RPL, 0)
    # step 2: it has room
    below = moved(ss.q, esp, -2 * size)
    check_room(ss, esp, 2, size, error_code(ss.selector))
    bottom = moved(ss.q, below, -parameters * size)
    if not holds(ss.q, bottom, parameters, size):
        raise Fault(SS, error_code(ss.selector))
    check_room(ss, bottom, 2, size, error_code(ss.selector))
    # step 3: the target lies within the segment
    check_fetch(cs.q, gate_offset(gate))
    # step 4: so do the parameters within the old stack
    if not holds(r.ss.q, r.esp, parameters, size):
        raise Fault(SS, 0)
    inner = r._replace(cs=cs, ss=ss, eip=gate_offset(gate), esp=loaded(ss.q, r.esp, esp))
    top = push(inner, (r.ss.selector, r.esp), size)
    rest = push(inner._replace(esp=loaded(ss.q, r.esp, bottom)), (r.cs.selector, r.eip), size)
    pushed = (*top.pushed, *rest.pushed)
    return Transfer(rest.registers, pushed, size, parameters, place(r.ss.q, r.esp, 0), place(ss.q, bottom, 0))


# --- RET ---------------------------------------------------------------------------------------------------------------------

@predicate
def may_return(q: int, selector: int, cpl: int) -> bool:
    """Code to which a return may lead: not inwards, and of the ring that the selector says."""
    ring = selector & RPL
    return ring >= cpl and (dpl_of(q) <= ring if is_conforming(q) else dpl_of(q) == ring)


def return_target(table: Table, selector: int, cpl: int) -> Segment:
    """CS that a far return or an interrupt return found on the stack."""
    # step 1: no null selector
    if is_null(selector):
        raise Fault(GP, 0)
    # step 2: code, within its table, of the ring of its RPL, which is not an inner one
    q = table(selector)
    if not (is_code(q) and may_return(q, selector, cpl)):
        raise Fault(GP, error_code(selector))
    # step 3: present
    check_present(q, selector)
    return code_segment(q, selector, selector & RPL)


def returned_outwards(r: Registers, cs: Segment, ss: Segment, eip: int, esp: int) -> Registers:
    """The registers after a return to an outer ring, which keeps no data segment that it could not load itself."""
    ring = cs.selector & RPL
    return Registers(cs, ss, keep(r.ds, ring), keep(r.es, ring), keep(r.fs, ring), keep(r.gs, ring),
                     eip, loaded(ss.q, r.esp, esp), r.eflags)


def far_return(r: Registers, table: Table, read: Read, size: int = 4, release: int = 0) -> Registers:
    """RET far, which then drops `release` bytes of parameters."""
    # step 1: EIP and CS lie within the stack
    check_top(r, 0, 2, size)
    eip, selector = read(place(r.ss.q, r.esp, 0)), read(place(r.ss.q, r.esp, size)) & 0xFFFF
    # step 2: the return address is one to return to
    cs = return_target(table, selector, cpl_of(r))
    beyond = 2 * size + release
    if cs.selector & RPL == cpl_of(r):
        check_fetch(cs.q, eip)
        return r._replace(cs=cs, eip=eip, esp=moved(r.ss.q, r.esp, beyond))
    # step 3: outwards ESP and SS lie within the stack, above the parameters
    check_top(r, beyond, 2, size)
    ss = outer_stack(table, read(place(r.ss.q, r.esp, beyond + size)) & 0xFFFF, cs.selector & RPL)
    # step 4: the return address lies within the segment
    check_fetch(cs.q, eip)
    esp = read(place(r.ss.q, r.esp, beyond))
    return returned_outwards(r, cs, ss, eip, (esp + release) & 0xFFFFFFFF)
