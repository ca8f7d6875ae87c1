"""Segment descriptors and gates, as the processor reads them (Intel SDM vol. 3A §3.4, §3.5, §5.8.3).

A descriptor is one number of 64 bits: its second word above its first.  The fields are scattered; the names are the manual's.
"""
from typing import Final

from spec.kernel import predicate

# --- selectors
RPL: Final = 3
TI: Final = 4                               # the selector names the LDT

# --- descriptors
ACCESSED: Final = 1 << 40                   # of a segment: it was loaded
WRITABLE_DATA: Final = 1 << 41              # of a data segment: it may be written
READABLE_CODE: Final = 1 << 41              # of a code segment: it may be read
EXPAND_DOWN: Final = 1 << 42                # of a data segment: offsets above the limit are the valid ones
CONFORMING: Final = 1 << 42                 # of a code segment: it runs at the privilege of whoever jumps there
CODE: Final = 1 << 43
SEGMENT: Final = 1 << 44                    # S: code or data; clear: a gate, or a table of the processor's
DPL_SHIFT: Final = 45
PRESENT: Final = 1 << 47
LONG: Final = 1 << 53                       # L: 64-bit code
BIG: Final = 1 << 54                        # D/B
GRANULAR: Final = 1 << 55                   # the limit counts pages
TYPE_SHIFT: Final = 40

# --- types of system descriptors (S clear)
TSS_16: Final = 0x1
LDT: Final = 0x2
BUSY_TSS_16: Final = 0x3
CALL_GATE_16: Final = 0x4
TASK_GATE: Final = 0x5
INTERRUPT_GATE_16: Final = 0x6
TRAP_GATE_16: Final = 0x7
TSS: Final = 0x9
BUSY_TSS: Final = 0xB
CALL_GATE: Final = 0xC
INTERRUPT_GATE: Final = 0xE
TRAP_GATE: Final = 0xF
WIDE: Final = 8                             # of a type: the 32-bit one of two


# --- selectors ---------------------------------------------------------------------------------------------------------------

@predicate
def is_null(selector: int) -> bool:
    """The selector names no descriptor; its RPL does not matter."""
    return selector & 0xFFFC == 0


@predicate
def with_rpl(selector: int, ring: int) -> int:
    """The selector with another RPL."""
    return (selector & 0xFFFC) | ring


@predicate
def error_code(selector: int) -> int:
    """A selector as an error code shows it."""
    return selector & 0xFFFC


# --- segments ----------------------------------------------------------------------------------------------------------------

@predicate
def base_of(q: int) -> int:
    """The linear address of a segment's offset 0."""
    return (q >> 16 & 0xFFFFFF) | (q >> 32 & 0xFF000000)


@predicate
def limit_of(q: int) -> int:
    """The last valid offset of a segment that does not expand down."""
    raw = (q & 0xFFFF) | (q >> 32 & 0xF0000)
    return (raw << 12 | 0xFFF) if q & GRANULAR != 0 else raw


@predicate
def dpl_of(q: int) -> int:
    """The privilege that a descriptor asks for."""
    return q >> DPL_SHIFT & 3


@predicate
def type_of(q: int) -> int:
    """The type field."""
    return q >> TYPE_SHIFT & 0xF


@predicate
def is_code(q: int) -> bool:
    """A code segment."""
    return q & SEGMENT != 0 and q & CODE != 0


@predicate
def is_data(q: int) -> bool:
    """A data segment."""
    return q & SEGMENT != 0 and q & CODE == 0


@predicate
def is_conforming(q: int) -> bool:
    """A code segment that keeps the privilege of whoever jumps there."""
    return is_code(q) and q & CONFORMING != 0


@predicate
def is_writable(q: int) -> bool:
    """A data segment that may be written."""
    return is_data(q) and q & WRITABLE_DATA != 0


@predicate
def is_readable(q: int) -> bool:
    """A segment that may be read: every data segment, and code if it says so."""
    return is_data(q) or (is_code(q) and q & READABLE_CODE != 0)


@predicate
def is_expand_down(q: int) -> bool:
    """A data segment whose valid offsets lie above its limit."""
    return is_data(q) and q & EXPAND_DOWN != 0


@predicate
def widest(q: int) -> int:
    """The last offset that a segment can have: of a stack, and of data that expand down."""
    return 0xFFFFFFFF if q & BIG != 0 else 0xFFFF


@predicate
def lowest(q: int) -> int:
    """The first valid offset of a segment."""
    return limit_of(q) + 1 if is_expand_down(q) else 0


@predicate
def highest(q: int) -> int:
    """The last valid offset of a segment."""
    return widest(q) if is_expand_down(q) else limit_of(q)


@predicate
def in_limit(q: int, offset: int, size: int) -> bool:
    """All bytes of an access lie within the segment; no access wraps around at 4 GB."""
    return offset >= lowest(q) and offset + size - 1 <= highest(q)


# --- gates and task state segments -------------------------------------------------------------------------------------------

@predicate
def is_system(q: int, kind: int) -> bool:
    """A system descriptor of this type."""
    return q & SEGMENT == 0 and type_of(q) == kind


@predicate
def is_call_gate(q: int) -> bool:
    """A 32-bit call gate."""
    return is_system(q, CALL_GATE)


@predicate
def is_any_call_gate(q: int) -> bool:
    """A call gate of 16 or 32 bits."""
    return is_call_gate(q) or is_system(q, CALL_GATE_16)


@predicate
def is_interrupt_gate(q: int) -> bool:
    """A gate that clears IF, of 16 or 32 bits."""
    return is_system(q, INTERRUPT_GATE) or is_system(q, INTERRUPT_GATE_16)


@predicate
def is_trap_gate(q: int) -> bool:
    """A gate that leaves IF alone, of 16 or 32 bits."""
    return is_system(q, TRAP_GATE) or is_system(q, TRAP_GATE_16)


@predicate
def is_task_gate(q: int) -> bool:
    """A task gate."""
    return is_system(q, TASK_GATE)


@predicate
def is_free_tss(q: int) -> bool:
    """A task state segment of a task that does not run."""
    return is_system(q, TSS) or is_system(q, TSS_16)


@predicate
def is_busy_tss(q: int) -> bool:
    """A task state segment of a task that runs, or waits for one that does."""
    return is_system(q, BUSY_TSS) or is_system(q, BUSY_TSS_16)


@predicate
def gate_selector(q: int) -> int:
    """The selector in a gate."""
    return q >> 16 & 0xFFFF


@predicate
def is_wide_gate(q: int) -> bool:
    """Of a call, interrupt or trap gate: one of 32 bits."""
    return type_of(q) & WIDE != 0


@predicate
def gate_offset(q: int) -> int:
    """The offset in a gate; one of 16 bits has a short one."""
    low = q & 0xFFFF
    return low | (q >> 32 & 0xFFFF0000) if is_wide_gate(q) else low


@predicate
def gate_parameters(q: int) -> int:
    """How many words a call gate copies to the new stack."""
    return q >> 32 & 0x1F
