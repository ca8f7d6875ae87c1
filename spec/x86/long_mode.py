"""Long mode: what differs in segments and far transfers (Intel SDM vol. 3A §5.2-5.8; vol. 2 JMP, CALL, RET).

The code segment says whether it is 64-bit mode (L is set) or compatibility mode, where segments work as ever.  In 64-bit mode CS,
SS, DS and ES are flat whatever they hold, FS and GS have bases of 64 bits, and all that is asked of an address is that it is
canonical.  DS, ES, FS and GS are loaded as ever.  `Registers` hold RIP, RSP and RFLAGS.
"""
from typing import Final

from spec.abi import GP, SS
from spec.kernel import predicate
from spec.profile import X86_64
from spec.x86.descriptors import BIG, LONG, RPL, error_code, is_call_gate, is_code, is_null
from spec.x86.paging import Fault, is_canonical
from spec.x86.segments import Registers, Segment, Table, check_fetch, cpl_of, keep, load_stack
from spec.x86.stacks import Transfer, check_room, check_top, moved, outer_stack, place
from spec.x86.transfers import Read, Unmodelled, check_gate, direct_target, return_target

MASK: Final = (1 << 64) - 1
CALL_GATE_64: Final = "64-bit call gate"    # Xen gives every call gate of a guest privilege 0, so that nobody passes one


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


def check_base(address: int) -> int:
    """What WRFSBASE, WRGSBASE and WRMSR store in a base."""
    if not is_canonical(X86_64, address):
        raise Fault(GP, 0)
    return address


def swap_gs(r: Registers, base: int, other: int) -> tuple[int, int]:
    """SWAPGS: the base of GS and the other one, for the kernel only."""
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
    for n in range(words):
        lowest = top(r, -(n + 1) * size)
        if not (is_canonical(X86_64, lowest) and is_canonical(X86_64, (lowest + size - 1) & MASK)):
            raise Fault(SS, error)


# --- JMP and CALL ------------------------------------------------------------------------------------------------------------

def far_target(table: Table, selector: int, cpl: int) -> Segment:
    """What a far pointer names in long mode: code; tasks and 16-bit gates are no more."""
    # step 1: no null selector
    if is_null(selector):
        raise Fault(GP, 0)
    # step 2: the type
    q = table(selector)
    if is_call_gate(q):
        check_gate(q, selector, cpl)
        raise Unmodelled(CALL_GATE_64)
    if not is_code(q):
        raise Fault(GP, error_code(selector))
    # step 3: a mode that there is; then as ever
    check_mode(q, selector)
    return direct_target(q, selector, cpl)


def far_jump_64(r: Registers, table: Table, selector: int, offset: int, size: int) -> Registers:
    """JMP to a far pointer, which may change the mode."""
    cs = far_target(table, selector, cpl_of(r))
    address = narrowed(offset, size)
    check_target(cs.q, address)
    return r._replace(cs=cs, eip=address)


def far_call_64(r: Registers, table: Table, selector: int, offset: int, size: int) -> Transfer:
    """CALL of a far pointer, which may change the mode; the return address lies on the stack of the old one."""
    cs = far_target(table, selector, cpl_of(r))
    # step 1: the stack has room for the return address
    check_pushed(r, 2, size)
    # step 2: the target is one to go to
    address = narrowed(offset, size)
    check_target(cs.q, address)
    pushed = ((top(r, -size), r.cs.selector), (top(r, -2 * size), narrowed(r.eip, size)))
    return Transfer(r._replace(cs=cs, eip=address, esp=raised(r, -2 * size)), pushed, size)


# --- RET ---------------------------------------------------------------------------------------------------------------------

def return_target_64(table: Table, selector: int, cpl: int) -> Segment:
    """CS that a return found on the stack."""
    cs = return_target(table, selector, cpl)
    check_mode(cs.q, selector)
    return cs


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
    return r._replace(cs=cs, ss=ss, esp=esp & (0xFFFFFFFF if ss.q & BIG != 0 else 0xFFFF))


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
