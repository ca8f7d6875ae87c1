"""Interrupts, exceptions and IRET in long mode, step by step (Intel SDM vol. 2 INT n, IRET; vol. 3A §6.14).

A gate has 16 bytes: `gate` are the lower eight, `upper` the others.  Whatever is interrupted, the handler is 64-bit code, and
finds SS and RSP on its stack, too.
"""
from spec.abi import GP, NP
from spec.kernel import predicate
from spec.x86.descriptors import (
    INTERRUPT_GATE,
    PRESENT,
    RPL,
    TRAP_GATE,
    dpl_of,
    error_code,
    gate_offset,
    gate_selector,
    is_conforming,
    is_null,
    is_system,
)
from spec.x86.exceptions import interrupted_flags
from spec.x86.flags import ALL, NT, RF, handled, returned
from spec.x86.interrupts import IDT
from spec.x86.long_mode import (
    MASK,
    Tss64,
    check_below,
    check_popped,
    check_target,
    in_inner,
    is_64,
    is_unknown_code,
    kept_64,
    new_stack,
    on_stack,
    raised,
    return_stack_64,
    return_target_64,
    top,
)
from spec.x86.paging import Fault
from spec.x86.segments import Registers, Segment, Table, cpl_of
from spec.x86.stacks import Transfer
from spec.x86.transfers import Read, code_segment


@predicate
def ist_of(gate: int) -> int:
    """The stack that a gate names; 0: none."""
    return gate >> 32 & 7


# --- in ----------------------------------------------------------------------------------------------------------------------

def software_interrupt_64(r: Registers, table: Table, tss: Tss64, gate: int, upper: int, vector: int) -> Transfer:
    """INT n, INT3: only through a gate that is open to the ring; `r.eip` is the next instruction's."""
    return interrupt_64(r._replace(eflags=r.eflags & (ALL ^ RF)), table, tss, gate, upper, vector, True)


def exception_64(r: Registers, table: Table, tss: Tss64, gate: int, upper: int, vector: int, code: tuple[int, ...]) -> Transfer:
    """An exception; `r` is what its handler is to return to, `code` its error code or nothing (see has_error_code)."""
    resumed = r._replace(eflags=interrupted_flags(vector, r.eflags))
    return interrupt_64(resumed, table, tss, gate, upper, vector, False, code)


def interrupt_64(r: Registers, table: Table, tss: Tss64, gate: int, upper: int, vector: int, software: bool,
                 code: tuple[int, ...] = ()) -> Transfer:
    """Any way through the IDT; see spec.x86.interrupts."""
    ext, entry = 0 if software else 1, vector * 8 | IDT
    # step 1: within the IDT, and an interrupt or trap gate
    if not (is_system(gate, INTERRUPT_GATE) or is_system(gate, TRAP_GATE)) or upper >> 40 & 0x1F != 0:
        raise Fault(GP, entry | ext)
    # step 2: a program may use the gate
    if software and dpl_of(gate) < cpl_of(r):
        raise Fault(GP, entry)
    # step 3: it is present
    if gate & PRESENT == 0:
        raise Fault(NP, entry | ext)
    cs = handler_segment(table, gate_selector(gate), cpl_of(r), ext)
    # step 4: the stack: its own, or what the TSS has
    ring = cs.selector & RPL
    rsp = handler_stack(r, tss, ring, ist_of(gate), ext)
    words = (r.ss.selector, r.esp, r.eflags, r.cs.selector, r.eip, *code)
    check_below(rsp, len(words), 8, ext)
    # step 5: the handler is at a canonical address
    address = gate_offset(gate) | (upper & 0xFFFFFFFF) << 32
    check_target(cs.q, address, ext)
    pushed = tuple(((rsp - 8 * n) & MASK, word) for n, word in enumerate(words, 1))
    inside = r._replace(cs=cs, ss=in_inner(r.ss, ring, cpl_of(r)), eip=address, esp=(rsp - 8 * len(words)) & MASK,
                        eflags=handled(r.eflags, is_system(gate, INTERRUPT_GATE)))
    return Transfer(inside, pushed, 8)


def handler_segment(table: Table, selector: int, cpl: int, ext: int) -> Segment:
    """CS of a handler."""
    # step 1: no null selector
    if is_null(selector):
        raise Fault(GP, ext)
    # step 2: 64-bit code that is not less privileged
    q = table(selector)
    if not is_64(q) or is_unknown_code(q) or dpl_of(q) > cpl:
        raise Fault(GP, error_code(selector) | ext)
    # step 3: present
    if q & PRESENT == 0:
        raise Fault(NP, error_code(selector) | ext)
    return code_segment(q, selector, cpl if is_conforming(q) else dpl_of(q))


def handler_stack(r: Registers, tss: Tss64, ring: int, ist: int, ext: int) -> int:
    """RSP of a handler before anything is pushed: a multiple of 16."""
    rsp = r.esp if ring == cpl_of(r) and ist == 0 else new_stack(tss, ring, ist, ext)
    return rsp & (MASK ^ 15)


# --- IRET --------------------------------------------------------------------------------------------------------------------

def interrupt_return_64(r: Registers, table: Table, read: Read, size: int) -> Registers:
    """IRET with words of 2, 4 or 8 bytes; 64-bit mode pops SS and RSP on every return."""
    cpl = cpl_of(r)
    # step 1: there are no nested tasks
    if r.eflags & NT != 0:
        raise Fault(GP, 0)
    # step 2: RIP, CS and RFLAGS lie on the stack
    check_popped(r, 0, 3, size)
    address, selector, flags = read(top(r, 0)), read(top(r, size)) & 0xFFFF, read(top(r, 2 * size))
    # step 3: the return address is one to return to
    cs = return_target_64(table, selector, cpl)
    ring, eflags = cs.selector & RPL, returned(r.eflags, flags, cpl, size != 2)
    if ring == cpl and not is_64(r.cs.q):
        check_target(cs.q, address)
        return r._replace(cs=cs, eip=address, esp=raised(r, 3 * size), eflags=eflags)
    # step 4: RSP and SS lie on the stack
    check_popped(r, 3 * size, 2, size)
    ss = return_stack_64(table, read(top(r, 4 * size)) & 0xFFFF, cs)
    # step 5: the return address is one to go to (the manual also names this ahead of step 3, with null SSs, which depend on CS)
    check_target(cs.q, address)
    after = on_stack(r, cs, ss, read(top(r, 3 * size)))._replace(eip=address, eflags=eflags)
    return after if ring == cpl else kept_64(after, ring)
