"""Interrupts, exceptions and the return from them, step by step as the manual states it (Intel SDM vol. 2 INT n, IRET).

The way in leads through a gate of the IDT: `gate` is the descriptor there, 0 beyond the IDT's limit.  See spec.x86.transfers for
the other arguments.  Errors on the way in say EXT unless a program asked for the interrupt with INT n, INT3 or INTO.
"""
from typing import Final

from spec.abi import GP, NP, TS
from spec.x86.descriptors import (
    PRESENT,
    RPL,
    TI,
    dpl_of,
    error_code,
    gate_offset,
    gate_selector,
    is_busy_tss,
    is_code,
    is_conforming,
    is_interrupt_gate,
    is_null,
    is_task_gate,
    is_trap_gate,
)
from spec.x86.exceptions import interrupted_flags
from spec.x86.flags import ALL, NT, RF, VM, handled, returned
from spec.x86.paging import Fault
from spec.x86.segments import Registers, Segment, Table, check_fetch, cpl_of, may_fetch
from spec.x86.stacks import (
    Transfer,
    Tss,
    check_room,
    check_top,
    inner_stack,
    loaded,
    moved,
    outer_stack,
    place,
    push,
)
from spec.x86.transfers import (
    TASK_SWITCH,
    VIRTUAL_MODE,
    Read,
    Unmodelled,
    check_task,
    code_segment,
    gate_size,
    return_target,
    returned_outwards,
)

IDT: Final = 2                                     # in an error code: the index is a vector


# --- in ----------------------------------------------------------------------------------------------------------------------

def software_interrupt(r: Registers, table: Table, tss: Tss, gate: int, vector: int) -> Transfer:
    """INT n, INT3, INTO: only through a gate that is open to the ring; `r.eip` is the next instruction's."""
    return interrupt(r._replace(eflags=r.eflags & (ALL ^ RF)), table, tss, gate, vector, True, ())


def exception(r: Registers, table: Table, tss: Tss, gate: int, vector: int, code: tuple[int, ...]) -> Transfer:
    """An exception; `r` is what its handler is to return to, `code` its error code or nothing (see has_error_code)."""
    resumed = r._replace(eflags=interrupted_flags(vector, r.eflags))
    return interrupt(resumed, table, tss, gate, vector, False, code)


def interrupt(r: Registers, table: Table, tss: Tss, gate: int, vector: int, software: bool,
              code: tuple[int, ...] = ()) -> Transfer:
    """Any way through the IDT; by itself, with `software` false, that of external interrupts, NMI and INT1."""
    ext, entry = 0 if software else 1, vector * 8 | IDT
    if r.eflags & VM != 0:
        raise Unmodelled(VIRTUAL_MODE)
    # step 1: within the IDT, and an interrupt, trap or task gate
    if not (is_interrupt_gate(gate) or is_trap_gate(gate) or is_task_gate(gate)):
        raise Fault(GP, entry | ext)
    # step 2: a program may use the gate
    if software and dpl_of(gate) < cpl_of(r):
        raise Fault(GP, entry)
    # step 3: it is present
    if gate & PRESENT == 0:
        raise Fault(NP, entry | ext)
    # step 4: a task gate
    if is_task_gate(gate):
        check_task(table, gate_selector(gate), ext)
        raise Unmodelled(TASK_SWITCH)
    return enter_handler(r, table, tss, gate, ext, code)


def enter_handler(r: Registers, table: Table, tss: Tss, gate: int, ext: int, code: tuple[int, ...]) -> Transfer:
    """Through an interrupt or trap gate."""
    cpl, target = cpl_of(r), gate_selector(gate)
    # step 1: no null selector in the gate
    if is_null(target):
        raise Fault(GP, ext)
    # step 2: code that is not less privileged
    q = table(target)
    if not is_code(q) or dpl_of(q) > cpl:
        raise Fault(GP, error_code(target) | ext)
    # step 3: present
    if q & PRESENT == 0:
        raise Fault(NP, error_code(target) | ext)
    # step 4: only code that does not conform changes the ring
    if is_conforming(q) or dpl_of(q) == cpl:
        return handle_same(r, gate, code_segment(q, target, cpl), ext, code)
    return handle_inner(r, table, tss, gate, code_segment(q, target, dpl_of(q)), ext, code)


def entered(r: Registers, gate: int, cs: Segment) -> Registers:
    """The registers as a handler finds them, but for its stack."""
    return r._replace(cs=cs, eip=gate_offset(gate), eflags=handled(r.eflags, is_interrupt_gate(gate)))


def check_handler(cs: Segment, gate: int, ext: int) -> None:
    """The handler lies within its segment."""
    if not may_fetch(cs.q, gate_offset(gate), 1):
        raise Fault(GP, ext)


def handle_same(r: Registers, gate: int, cs: Segment, ext: int, code: tuple[int, ...]) -> Transfer:
    """A handler in the same ring: on its own stack EFLAGS, CS, EIP and the error code."""
    size, words = gate_size(gate), (r.eflags, r.cs.selector, r.eip, *code)
    # step 1: the stack has room
    check_room(r.ss, r.esp, len(words), size, ext)
    # step 2: the handler lies within its segment
    check_handler(cs, gate, ext)
    return push(entered(r, gate, cs), words, size)


def handle_inner(r: Registers, table: Table, tss: Tss, gate: int, cs: Segment, ext: int, code: tuple[int, ...]) -> Transfer:
    """A handler in an inner ring: on its stack the old one's SS and ESP, EFLAGS, CS, EIP and the error code."""
    size, words = gate_size(gate), (r.ss.selector, r.esp, r.eflags, r.cs.selector, r.eip, *code)
    # step 1: the stack that the TSS has for the ring
    ss, esp = inner_stack(table, tss, cs.selector & RPL, ext)
    # step 2: it has room
    check_room(ss, esp, len(words), size, error_code(ss.selector) | ext)
    # step 3: the handler lies within its segment
    check_handler(cs, gate, ext)
    return push(entered(r, gate, cs)._replace(ss=ss, esp=loaded(ss.q, r.esp, esp)), words, size)


# --- IRET --------------------------------------------------------------------------------------------------------------------

def interrupt_return(r: Registers, table: Table, tss: Tss, read: Read, size: int = 4) -> Registers:
    """IRET: EFLAGS change by the rights of the ring that executes it, not of the one that it returns to."""
    cpl = cpl_of(r)
    if r.eflags & NT != 0:
        refuse_task_return(table, tss)
    # step 1: EIP, CS and EFLAGS lie within the stack
    check_top(r, 0, 3, size)
    eip, selector = read(place(r.ss.q, r.esp, 0)), read(place(r.ss.q, r.esp, size)) & 0xFFFF
    flags = read(place(r.ss.q, r.esp, 2 * size))
    # step 2: only ring 0 can return to virtual-8086 mode; others' VM is ignored
    if flags & VM != 0 and cpl == 0:
        raise Unmodelled(VIRTUAL_MODE)
    # step 3: the return address is one to return to
    cs = return_target(table, selector, cpl)
    eflags = returned(r.eflags, flags, cpl, size == 4)
    if cs.selector & RPL == cpl:
        check_fetch(cs.q, eip)
        return r._replace(cs=cs, eip=eip, esp=moved(r.ss.q, r.esp, 3 * size), eflags=eflags)
    # step 4: outwards ESP and SS lie within the stack
    check_top(r, 3 * size, 2, size)
    ss = outer_stack(table, read(place(r.ss.q, r.esp, 4 * size)) & 0xFFFF, cs.selector & RPL)
    # step 5: the return address lies within the segment
    check_fetch(cs.q, eip)
    return returned_outwards(r, cs, ss, eip, read(place(r.ss.q, r.esp, 3 * size)))._replace(eflags=eflags)


def refuse_task_return(table: Table, tss: Tss) -> None:
    """IRET with NT set: to the task that the TSS names, which must be one that waits."""
    # step 1: in the GDT, and within it, a TSS that is busy
    if is_null(tss.link) or tss.link & TI != 0 or not is_busy_tss(table(tss.link)):
        raise Fault(TS, error_code(tss.link))
    # step 2: present
    if table(tss.link) & PRESENT == 0:
        raise Fault(NP, error_code(tss.link))
    raise Unmodelled(TASK_SWITCH)
