"""Control transfers that the emulator's engine does otherwise than the manual: programs leave them out (FINDINGS.md)."""
from typing import Final

from refmodel import Machine
from spec.kernel import DomId, Index
from spec.rings import found, is_unmapped
from spec.vocabulary import Context, FarTransfer, Interrupt, Privileged, Return, Transfer
from spec.x86.descriptors import (
    dpl_of,
    gate_offset,
    gate_parameters,
    gate_selector,
    is_busy_tss,
    is_call_gate,
    is_code,
    is_conforming,
    limit_of,
)
from spec.x86.flags import NT
from spec.x86.stacks import holds

ONES: Final = 0xFFFFFFFF
FRAME: Final = 0x100                            # more bytes than a frame has


def is_engines(machine: Machine, action: Transfer) -> bool:
    """The engine is known to differ, or may."""
    if not machine.profile.guest_end:
        return False
    d, at = DomId(action.dom), action.at
    if isinstance(action, FarTransfer) and action.kind == "call":
        return wraps(machine, d, at) or differs(machine, d, at, action.selector, action.offset)
    if isinstance(action, Return):
        # to a null task: the engine looks at entry 0 of the GDT
        return reads_on(at) or (at.eflags & NT != 0 and is_busy_tss(found(machine.s, d, 0)))
    if isinstance(action, FarTransfer):
        return reads_on(at)
    if isinstance(action, Interrupt) and action.vector == machine.s.fast_trap[d] and overshoots(machine, d, at, action.vector):
        return True
    return isinstance(action, Interrupt | Privileged) and wraps(machine, d, at)


def wraps(machine: Machine, d: DomId, at: Context) -> bool:
    """A frame that wraps around at offset 0: the engine checks its words one by one, after it has stored those before."""
    return 0 < at.esp < FRAME or (at.cs & 3 > 1 and 0 < machine.s.kernel_sp[d] < FRAME)


def overshoots(machine: Machine, d: DomId, at: Context, vector: int) -> bool:
    """A fast trap's handler lies beyond its segment's limit, and a stack has no room: the engine checks the handler first."""
    s, v = machine.s, Index(vector)
    handler = found(s, d, s.trap_cs[d, v])
    stacks = (found(s, d, at.ss), at.esp), (found(s, d, s.kernel_ss[d]), s.kernel_sp[d])
    return s.trap_ip[d, v] > limit_of(handler) and not all(holds(q, esp - 5 * 4, 5, 4) for q, esp in stacks)


def reads_on(at: Context) -> bool:
    """A frame to be read that wraps around: the same."""
    return at.esp > ONES - 5 * 4


def differs(machine: Machine, d: DomId, at: Context, selector: int, offset: int) -> bool:
    """Of a call: to an offset beyond its target's limit the engine first pushes, and reads a gate's parameters; in ring 3, to
    conforming code of an inner ring, it pushes by that ring's rights."""
    s = machine.s
    if is_unmapped(s, d, selector):
        return True
    gate = found(s, d, selector)
    if is_call_gate(gate):
        selector, offset = gate_selector(gate), gate_offset(gate)
        if is_unmapped(s, d, selector) or (gate_parameters(gate) and at.esp > ONES - FRAME):    # parameters that wrap around
            return True
    q = found(s, d, selector)
    if not is_code(q):
        return False
    if offset > limit_of(q):
        return True
    return at.cs & 3 == 3 and is_conforming(q) and dpl_of(q) != 3
