"""Long mode: what differs in segments and far transfers (Intel SDM vol. 3A §5.2-5.8; vol. 2 JMP, CALL, RET).

The code segment says whether it is 64-bit mode (L is set) or compatibility mode, where segments work as ever.  In 64-bit mode CS,
SS, DS and ES are flat whatever they hold, FS and GS have bases of 64 bits, and all that is asked of an address is that it is
canonical.  DS, ES, FS and GS are loaded as ever.  `Registers` hold RIP, RSP and RFLAGS.
"""
from typing import Final, NamedTuple

from spec.abi import GP, SS, TS, UD
from spec.kernel import predicate
from spec.profile import X86_64
from spec.x86.descriptors import (
    BIG,
    LONG,
    RPL,
    base_of,
    dpl_of,
    error_code,
    gate_offset,
    gate_selector,
    is_call_gate,
    is_code,
    is_conforming,
    is_null,
    with_rpl,
)
from spec.x86.paging import Fault, is_canonical
from spec.x86.segments import Registers, Segment, Table, check_fetch, cpl_of, keep, load_stack
from spec.x86.stacks import Transfer, check_room, check_top, loaded, moved, outer_stack, place
from spec.x86.transfers import (
    Read,
    Unmodelled,
    check_gate,
    check_present,
    code_segment,
    direct_target,
    may_enter,
    return_target,
)

MASK: Final = (1 << 64) - 1
CALL_GATE_64: Final = "64-bit call gate"    # Xen gives every call gate of a guest privilege 0, so that nobody passes one


class Tss64(NamedTuple):
    """A 64-bit task state segment: stacks of the inner rings, and those that gates name (from number 1)."""
    selector: int
    limit: int
    rsp: tuple[int, int, int]
    ist: tuple[int, int, int, int, int, int, int]


NO_TSS: Final = Tss64(0, 0, (0, 0, 0), (0, 0, 0, 0, 0, 0, 0))


# --- modes -------------------------------------------------------------------------------------------------------------------

@predicate
def is_64(q: int) -> bool:
    """Code of 64 bits; other code runs in compatibility mode."""
    return is_code(q) and q & LONG != 0


@predicate
def is_unknown_code(q: int) -> bool:
    """L and D both set: no mode."""
    return is_code(q) and q & LONG != 0 and q & BIG != 0


def check_mode(q: int, selector: int) -> None:
    """The code is of a mode that there is."""
    if is_unknown_code(q):
        raise Fault(GP, error_code(selector))


def check_target(q: int, address: int, ext: int = 0) -> None:
    """Control can go on there: at a canonical address, or within the limit of compatibility mode's segment."""
    if not is_64(q):
        check_fetch(q, address)
    elif not is_canonical(X86_64, address):
        raise Fault(GP, ext)


@predicate
def far_address(q: int, offset: int, size: int) -> int:
    """Where a far pointer leads: JMP and CALL to compatibility mode drop the upper half."""
    return narrowed(offset, size) if is_64(q) else narrowed(offset, size) & 0xFFFFFFFF


@predicate
def narrowed(word: int, size: int) -> int:
    """A word of 2, 4 or 8 bytes."""
    return word & ((1 << 8 * size) - 1)


# --- loads and accesses ------------------------------------------------------------------------------------------------------

def load_stack_64(q: int, selector: int, cpl: int, in_64: bool) -> Segment:
    """SS takes also a null selector, in 64-bit mode of the inner rings and with their RPL."""
    if is_null(selector) and in_64 and cpl != 3 and selector & RPL == cpl:
        return Segment(selector, 0)
    return load_stack(q, selector, cpl)


def check_address(address: int, size: int, stack: bool = False) -> None:
    """An access in 64-bit mode: neither types nor limits count, and all its bytes are at canonical addresses."""
    if not (is_canonical(X86_64, address) and is_canonical(X86_64, (address + size - 1) & MASK)):
        raise Fault(SS if stack else GP, 0)


@predicate
def loaded_base(q: int) -> int:
    """The base of FS or GS after a load: of 32 bits, and 0 with a null selector (vol. 3A §3.4.4)."""
    return base_of(q)


def check_base(address: int) -> int:
    """What WRFSBASE, WRGSBASE and WRMSR store in a base."""
    if not is_canonical(X86_64, address):
        raise Fault(GP, 0)
    return address


def read_base(r: Registers, base: int) -> int:
    """RDFSBASE and RDGSBASE, in 64-bit mode only."""
    if not is_64(r.cs.q):
        raise Fault(UD, 0)
    return base


def write_base(r: Registers, address: int) -> int:
    """WRFSBASE and WRGSBASE, in 64-bit mode only; of 32 bits the operand is always canonical."""
    if not is_64(r.cs.q):
        raise Fault(UD, 0)
    return check_base(address)


def swap_gs(r: Registers, base: int, other: int) -> tuple[int, int]:
    """SWAPGS: the base of GS and the other one, for the kernel only."""
    # step 1: in 64-bit mode
    if not is_64(r.cs.q):
        raise Fault(UD, 0)
    # step 2: by ring 0
    if cpl_of(r) != 0:
        raise Fault(GP, 0)
    return other, base


# --- the stack ---------------------------------------------------------------------------------------------------------------

def top(r: Registers, by: int) -> int:
    """The stack's offset (in 64-bit mode: address) some bytes above its top."""
    return (r.esp + by) & MASK if is_64(r.cs.q) else place(r.ss.q, r.esp, by)


def raised(r: Registers, by: int) -> int:
    """RSP some bytes higher or lower."""
    return (r.esp + by) & MASK if is_64(r.cs.q) else moved(r.ss.q, r.esp, by)


def check_popped(r: Registers, above: int, words: int, size: int) -> None:
    """Some words lie on the stack, from `above` its top upwards."""
    if not is_64(r.cs.q):
        check_top(r, above, words, size)
        return
    for n in range(words):
        check_address(top(r, above + n * size), size, stack=True)


def check_pushed(r: Registers, words: int, size: int, error: int = 0) -> None:
    """Some words can be pushed."""
    if not is_64(r.cs.q):
        check_room(r.ss, r.esp, words, size, error)
        return
    check_below(r.esp, words, size, error)


def check_below(rsp: int, words: int, size: int, error: int) -> None:
    """Some words below an address are at canonical addresses."""
    for n in range(1, words + 1):
        lowest = (rsp - n * size) & MASK
        if not (is_canonical(X86_64, lowest) and is_canonical(X86_64, (lowest + size - 1) & MASK)):
            raise Fault(SS, error)


@predicate
def stack_slot(ring: int, ist: int) -> int:
    """Where RSP lies in the TSS."""
    return ring * 8 + 4 if ist == 0 else ist * 8 + 28


@predicate
def stack_in(tss: Tss64, ring: int, ist: int) -> int:
    """RSP for a handler that needs a stack."""
    for n, rsp in enumerate(tss.ist, 1):
        if ist == n:
            return rsp
    if ring == 0:
        return tss.rsp[0]
    return tss.rsp[1] if ring == 1 else tss.rsp[2]


def new_stack(tss: Tss64, ring: int, ist: int, ext: int) -> int:
    """RSP that the TSS has for a ring or a gate."""
    if stack_slot(ring, ist) + 7 > tss.limit:
        raise Fault(TS, error_code(tss.selector) | ext)
    return stack_in(tss, ring, ist)


def in_inner(ss: Segment, ring: int, cpl: int) -> Segment:
    """SS after a way in: a null one with the ring's RPL, if it is another ring."""
    return ss if ring == cpl else Segment(ring, 0)


# --- JMP and CALL ------------------------------------------------------------------------------------------------------------

def not_followed(selector: int) -> int:
    """The upper halves of descriptors, for those who do not pass call gates."""
    raise Unmodelled(CALL_GATE_64)


def far_descriptor(table: Table, selector: int) -> int:
    """What a far pointer names in long mode: code or a call gate; tasks and 16-bit gates are no more."""
    # step 1: no null selector
    if is_null(selector):
        raise Fault(GP, 0)
    # step 2: the type
    q = table(selector)
    if not (is_code(q) or is_call_gate(q)):
        raise Fault(GP, error_code(selector))
    return q


def far_target(q: int, selector: int, cpl: int) -> Segment:
    """Code that a far pointer itself names: of a mode that there is; then as ever."""
    check_mode(q, selector)
    return direct_target(q, selector, cpl)


def far_jump_64(r: Registers, table: Table, selector: int, offset: int, size: int, upper: Table = not_followed) -> Registers:
    """JMP to a far pointer, which may change the mode.

    `upper` gives the second half of a descriptor of 16 bytes by the selector of the first; ones, if the table ends before.
    """
    cpl, q = cpl_of(r), far_descriptor(table, selector)
    if is_call_gate(q):
        address, target = gate_target_64(q, upper, selector, cpl)
        # step 1: 64-bit code of this ring, whatever the RPL in the gate
        code = table(target)
        if not (is_code(code) and may_enter(code, with_rpl(target, 0), cpl)):
            raise Fault(GP, error_code(target))
        check_gated(code, target)
        cs = code_segment(code, target, cpl)
    else:
        cs = far_target(q, selector, cpl)
        address = far_address(q, offset, size)
    # step 2: the target is one to go to
    check_target(cs.q, address)
    return r._replace(cs=cs, eip=address)


def far_call_64(r: Registers, table: Table, selector: int, offset: int, size: int, upper: Table = not_followed,
                tss: Tss64 = NO_TSS) -> Transfer:
    """CALL of a far pointer, which may change the mode; the return address lies on the stack of the old one."""
    q = far_descriptor(table, selector)
    if is_call_gate(q):
        return call_gate_64(r, table, tss, q, upper, selector)
    cs = far_target(q, selector, cpl_of(r))
    # step 1: the stack has room for the return address
    check_pushed(r, 2, size)
    # step 2: the target is one to go to
    address = far_address(q, offset, size)
    check_target(cs.q, address)
    pushed = ((top(r, -size), r.cs.selector), (top(r, -2 * size), narrowed(r.eip, size)))
    return Transfer(r._replace(cs=cs, eip=address, esp=raised(r, -2 * size)), pushed, size)


# --- call gates --------------------------------------------------------------------------------------------------------------

def gate_target_64(gate: int, upper: Table, selector: int, cpl: int) -> tuple[int, int]:
    """The address and the selector in a call gate (§5.8.3.1)."""
    # step 1: open to the ring, and present
    check_gate(gate, selector, cpl)
    # step 2: within its table, and the type in its upper half is 0
    rest = upper(selector)
    if rest >> 40 & 0x1F != 0:
        raise Fault(GP, error_code(selector))
    # step 3: no null selector in it
    if is_null(gate_selector(gate)):
        raise Fault(GP, 0)
    return gate_offset(gate) | (rest & 0xFFFFFFFF) << 32, gate_selector(gate)


def check_gated(q: int, selector: int) -> None:
    """Code that a call gate names: of 64 bits, and present."""
    if not is_64(q) or is_unknown_code(q):
        raise Fault(GP, error_code(selector))
    check_present(q, selector)


def call_gate_64(r: Registers, table: Table, tss: Tss64, gate: int, upper: Table, selector: int) -> Transfer:
    """CALL through a gate, perhaps to an inner ring: words of 64 bits, and no parameters."""
    cpl = cpl_of(r)
    address, target = gate_target_64(gate, upper, selector, cpl)
    # step 1: 64-bit code that is not less privileged
    q = table(target)
    if not is_code(q) or dpl_of(q) > cpl:
        raise Fault(GP, error_code(target))
    check_gated(q, target)
    # step 2: only code that does not conform changes the ring
    ring = cpl if is_conforming(q) else dpl_of(q)
    rsp = r.esp if ring == cpl else new_stack(tss, ring, 0, 0)
    words = (r.cs.selector, r.eip) if ring == cpl else (r.ss.selector, r.esp, r.cs.selector, r.eip)
    # step 3: the stack has room, and the target is one to go to
    check_below(rsp, len(words), 8, 0)
    cs = code_segment(q, target, ring)
    check_target(cs.q, address)
    pushed = tuple(((rsp - 8 * n) & MASK, word) for n, word in enumerate(words, 1))
    inside = r._replace(cs=cs, ss=in_inner(r.ss, ring, cpl), eip=address, esp=(rsp - 8 * len(words)) & MASK)
    return Transfer(inside, pushed, 8)


# --- RET ---------------------------------------------------------------------------------------------------------------------

def return_target_64(table: Table, selector: int, cpl: int) -> Segment:
    """CS that a return found on the stack: of a mode that there is (#GP before #NP); otherwise as ever."""
    if not is_null(selector):
        check_mode(table(selector), selector)
    return return_target(table, selector, cpl)


def return_stack_64(table: Table, selector: int, cs: Segment) -> Segment:
    """SS that a return found on the stack; 64-bit code of the inner rings does without one."""
    ring = cs.selector & RPL
    if is_null(selector) and is_64(cs.q) and ring != 3 and selector & RPL == ring:
        return Segment(selector, 0)
    return outer_stack(table, selector, ring)


def on_stack(r: Registers, cs: Segment, ss: Segment, esp: int) -> Registers:
    """The registers on another stack, as wide as the new mode has it."""
    if is_64(cs.q):
        return r._replace(cs=cs, ss=ss, esp=esp)
    return r._replace(cs=cs, ss=ss, esp=loaded(ss.q, r.esp & 0xFFFFFFFF, esp & 0xFFFFFFFF))


def kept_64(r: Registers, ring: int) -> Registers:
    """After a return to an outer ring: no data segment that it could not load itself."""
    return r._replace(ds=keep(r.ds, ring), es=keep(r.es, ring), fs=keep(r.fs, ring), gs=keep(r.gs, ring))


def far_return_64(r: Registers, table: Table, read: Read, size: int, release: int = 0) -> Registers:
    """RET far with words of 2, 4 or 8 bytes, which may change the mode."""
    # step 1: RIP and CS lie on the stack
    check_popped(r, 0, 2, size)
    address, selector = read(top(r, 0)), read(top(r, size)) & 0xFFFF
    # step 2: the return address is one to return to
    cs = return_target_64(table, selector, cpl_of(r))
    beyond = 2 * size + release
    if cs.selector & RPL == cpl_of(r):
        check_target(cs.q, address)
        return r._replace(cs=cs, eip=address, esp=raised(r, beyond))
    # step 3: outwards RSP and SS lie on the stack, above the parameters
    check_popped(r, beyond, 2, size)
    ss = return_stack_64(table, read(top(r, beyond + size)) & 0xFFFF, cs)
    # step 4: the return address is one to go to
    check_target(cs.q, address)
    outside = on_stack(r, cs, ss, (read(top(r, beyond)) + release) & MASK)
    return kept_64(outside._replace(eip=address), cs.selector & RPL)
