"""Rings: what the processor does with a guest's segment registers, and by whose leave it enters one.

The processor reads descriptors where Xen put them (FETCH-1), and goes by what it read, which may be stale by then.  Every step is
the manual's procedure (spec.x86), executed by a guest that may hold any numbers in its other registers and find any words on its
stack.  So these come as arguments.
"""
from collections.abc import Callable

from spec.abi import PF, Xen2003
from spec.descriptors import descriptor_at, is_guest_code_selector
from spec.kernel import DomId, Index, Mfn, State, guard, predicate, require, transition
from spec.x86.descriptors import DPL_SHIFT, INTERRUPT_GATE, PRESENT, RPL, TI, TRAP_GATE
from spec.x86.interrupts import interrupt_return, software_interrupt
from spec.x86.paging import Fault
from spec.x86.segments import Registers, Segment, keep, load_data, load_stack
from spec.x86.stacks import Tss, outer_stack
from spec.x86.transfers import far_call, far_jump, far_return, return_target

ES, CS, SS, DS, FS, GS = range(6)           # the manual's numbers of the registers


# --- the tables in force -----------------------------------------------------------------------------------------------------

@predicate
def xens_descriptor(s: State, i: Index) -> int:
    """Descriptor i of Xen's default GDT: its own ones, and nothing else; of those of 4.17 nothing is said here."""
    if s.profile.guest_end == 0 or i < Xen2003.RESERVED or i >= Xen2003.RESERVED_END:
        return 0
    return s.xen_descriptor[Index(i << 1)] | s.xen_descriptor[Index(i << 1 | 1)] << 32


@predicate
def is_in_table(s: State, d: DomId, selector: int) -> bool:
    """The selector lies within the limit of its table; on x86-64 that of a GDT always includes Xen's own pages."""
    i = selector >> 3
    if selector & TI != 0:
        return i < s.ldt_entries[d]
    return s.profile.guest_end == 0 or i < s.gdt_entries[d]


@predicate
def has_page(s: State, d: DomId, selector: int) -> bool:
    """The page of the table is one of the domain's."""
    n = Index(selector >> 12)
    return s.has_ldt[d, n] if selector & TI != 0 else s.has_gdt[d, n]


@predicate
def page_with(s: State, d: DomId, selector: int) -> Mfn:
    """That page; one look-up for both tables, so that a proof has one frame to think of."""
    n = Index(selector >> 12)
    return s.ldt[d, n] if selector & TI != 0 else s.gdt[d, n]


@predicate
def is_unmapped(s: State, d: DomId, selector: int) -> bool:
    """A page of an LDT that Xen has not mapped yet: a look-up faults into Xen, which may map it."""
    return selector & TI != 0 and is_in_table(s, d, selector) and not has_page(s, d, selector)


@predicate
def in_page(s: State, d: DomId, selector: int) -> int:
    """The descriptor in the domain's own page."""
    return descriptor_at(s, page_with(s, d, selector), Index((selector >> 3 & 0x1FF) * s.profile.descriptor_words))


@predicate
def found(s: State, d: DomId, selector: int) -> int:
    """The descriptor that a selector names; 0 beyond its table's limit, or where there is no page."""
    if not is_in_table(s, d, selector):
        return 0
    if has_page(s, d, selector):
        return in_page(s, d, selector)
    return 0 if selector & TI != 0 else xens_descriptor(s, Index(selector >> 3))


def named(s: State, d: DomId, selector: int) -> int:
    """The descriptor that a selector names, for the processor."""
    if is_unmapped(s, d, selector):
        raise Fault(PF, 0)
    return found(s, d, selector)


def fetched_by(s: State, d: DomId) -> Callable[[int], int]:
    """What the processor has of the domain's tables, for its procedures: what it read there last, however long ago."""
    return lambda selector: s.fetched[d, Index(selector)]


def popping(*words: int) -> Callable[[int], int]:
    """A stack that has these words, in the order in which a procedure asks for them."""
    rest = list(words)
    return lambda offset: rest.pop(0)


# --- the registers -----------------------------------------------------------------------------------------------------------

@predicate
def is_data_register(r: int) -> bool:
    """DS, ES, FS or GS."""
    return (r != CS) & (r != SS) & (r <= GS)


@predicate
def ring_of(s: State, d: DomId) -> int:
    """The privilege at which the domain runs."""
    return s.selector[d, Index(CS)] & RPL


def register(s: State, d: DomId, r: int) -> Segment:
    """A segment register."""
    return Segment(s.selector[d, Index(r)], s.segment[d, Index(r)])


def registers(s: State, d: DomId, eip: int, esp: int, eflags: int) -> Registers:
    """The domain's segment registers, with any others."""
    return Registers(register(s, d, CS), register(s, d, SS), register(s, d, DS), register(s, d, ES), register(s, d, FS),
                     register(s, d, GS), eip, esp, eflags)


def put_register(s: State, d: DomId, r: int, new: Segment) -> None:
    """Load a segment register."""
    s.selector[d, Index(r)] = Index(new.selector)
    s.segment[d, Index(r)] = new.q


def put_code(s: State, d: DomId, new: Registers) -> None:
    """What a transfer in one ring loads."""
    put_register(s, d, CS, new.cs)


def put_stack(s: State, d: DomId, new: Registers) -> None:
    """What a transfer to an inner ring loads."""
    put_register(s, d, CS, new.cs)
    put_register(s, d, SS, new.ss)


def put_all(s: State, d: DomId, new: Registers) -> None:
    """What a return to an outer ring loads, or makes unusable."""
    put_stack(s, d, new)
    put_register(s, d, DS, new.ds)
    put_register(s, d, ES, new.es)
    put_register(s, d, FS, new.fs)
    put_register(s, d, GS, new.gs)


def tss_of(s: State, d: DomId, kernel_esp: int) -> Tss:
    """The one TSS: Xen's stack for ring 0, the domain's for ring 1."""
    return Tss(0x840, 0x67, Xen2003.XEN_DS, 0, s.kernel_ss[d], kernel_esp, 0, 0)


@guard("RING-1", source="xen-2003.md §1")
def require_segmented(s: State) -> None:
    """Segments protect Xen on x86-32 only."""
    require(s.profile.guest_end != 0, "RING-1.1")   # the profile has segments


@guard("RING-2", source="SDM 3A §5.5")
def require_running(s: State, d: DomId) -> None:
    """Who executes something has code."""
    require_segmented(s)
    require(s.segment[d, Index(CS)] != 0, "RING-2.1")   # the domain runs


@transition("FETCH-1", source="SDM vol. 3A §3.4.3, §3.5.1", keys=("dom", "selector"))
def fetch(s: State, d: DomId, selector: int) -> None:
    """The processor reads the descriptor that a selector of a guest's names."""
    require_segmented(s)
    s.fetched[d, Index(selector)] = named(s, d, selector)


def look_up(s: State, d: DomId, selector: int) -> int:
    """Read a descriptor, and say what it is."""
    fetch(s, d, selector)
    return s.fetched[d, Index(selector)]


def table_of(s: State, d: DomId) -> Callable[[int], int]:
    """The domain's tables for the processor's procedures, outside of a transition: each look-up is one that fetches."""
    return lambda selector: look_up(s, d, selector)


# --- what a guest executes ---------------------------------------------------------------------------------------------------

@transition("SEG-1", source="SDM vol. 2 MOV; vol. 3A §5.6", keys=("dom", "reg", "selector"))
def load_data_segment(s: State, d: DomId, r: Index, selector: int) -> None:
    """A guest loads a data segment register."""
    require_running(s, d)
    require(is_data_register(r), "SEG-1.1")            # one for data
    put_register(s, d, r, load_data(s.fetched[d, Index(selector)], selector, ring_of(s, d)))


@transition("SEG-2", source="SDM vol. 2 MOV; vol. 3A §5.7", keys=("dom", "selector"))
def load_stack_segment(s: State, d: DomId, selector: int) -> None:
    """A guest loads SS."""
    require_running(s, d)
    put_register(s, d, SS, load_stack(s.fetched[d, Index(selector)], selector, ring_of(s, d)))


@transition("SEG-3", source="SDM vol. 2 JMP; vol. 3A §5.8", keys=("dom", "selector", "word"))
def jump(s: State, d: DomId, selector: int, offset: int) -> None:
    """A guest jumps to a far pointer."""
    require_running(s, d)
    put_code(s, d, far_jump(registers(s, d, 0, 0, 0), fetched_by(s, d), selector, offset))


@transition("SEG-4", source="SDM vol. 2 CALL; vol. 3A §5.8", keys=("dom", "selector", "word", "word", "word"))
def call(s: State, d: DomId, selector: int, offset: int, esp: int, kernel_esp: int) -> None:
    """A guest calls a far pointer, perhaps a gate."""
    require_running(s, d)
    tss = tss_of(s, d, kernel_esp)
    put_stack(s, d, far_call(registers(s, d, 0, esp, 0), fetched_by(s, d), tss, selector, offset).registers)


@transition("SEG-5", source="SDM vol. 2 RET; vol. 3A §5.8.6", keys=("dom", "word", "word", "word", "word", "word"))
def far_ret(s: State, d: DomId, sp: int, eip: int, cs: int, esp: int, ss: int) -> None:
    """A guest returns to a far address."""
    require_running(s, d)
    put_all(s, d, far_return(registers(s, d, 0, sp, 0), fetched_by(s, d), popping(eip, cs, ss, esp)))


@transition("SEG-6", source="SDM vol. 2 IRET", keys=("dom", "word", "word", "word", "word", "word", "word"))
def iret(s: State, d: DomId, sp: int, eip: int, cs: int, eflags: int, esp: int, ss: int) -> None:
    """A guest returns from an interrupt."""
    require_running(s, d)
    new = interrupt_return(registers(s, d, 0, sp, 0), fetched_by(s, d), tss_of(s, d, 0), popping(eip, cs, eflags, ss, esp))
    put_all(s, d, new)


@predicate
def fast_gate(s: State, d: DomId) -> int:
    """The trap gate that Xen makes of a guest's fast trap."""
    v = s.fast_trap[d]
    ip = s.trap_ip[d, v]
    return (ip & 0xFFFF | s.trap_cs[d, v] << 16 | TRAP_GATE << 40 | (s.trap_flags[d, v] & 3) << 45 | PRESENT
            | (ip >> 16) << 48)


@predicate
def gate_of(s: State, d: DomId, v: Index) -> int:
    """The gate of a vector in the IDT while a domain runs: the one of its fast trap, or Xen's, which programs may use for
    breakpoints, overflows and hypercalls; that leads to wherever Xen's handler is."""
    if v != 0 and v == s.fast_trap[d]:
        return fast_gate(s, d)
    dpl = 3 if v == 3 or v == 4 else 1 if v == Xen2003.HYPERCALL_VECTOR else 0
    return Xen2003.XEN_CS << 16 | INTERRUPT_GATE << 40 | dpl << DPL_SHIFT | PRESENT


@transition("SEG-7", source="SOSP'03 §3.2.2; xen-2003.md §7.4", keys=("dom", "word", "word"))
def fast_trap(s: State, d: DomId, esp: int, kernel_esp: int) -> None:
    """An application's system call goes straight to its kernel, through a gate that Xen checked when it was asked for."""
    require_running(s, d)
    require(s.fast_trap[d] != 0, "SEG-7.1")         # there is one
    tss = tss_of(s, d, kernel_esp)
    new = software_interrupt(registers(s, d, 0, esp, 0), fetched_by(s, d), tss, fast_gate(s, d), s.fast_trap[d])
    put_stack(s, d, new.registers)


# --- what Xen does on its way back to a guest --------------------------------------------------------------------------------

@transition("SEG-8", source="xen-2003.md §7.5, §7.6", keys=("dom", "selector", "selector"))
def enter(s: State, d: DomId, cs: int, ss: int) -> None:
    """Xen lets a guest run: at its own interrupted place, or at a handler of its kernel; the processor checks both selectors."""
    require_segmented(s)
    require(cs & RPL != 0, "SEG-8.1")               # not in ring 0
    require(s.gdt_entries[d] >= Xen2003.RESERVED_END, "SEG-8.2")    # Xen's own descriptors are within the GDT's limit
    table = fetched_by(s, d)
    code, stack = return_target(table, cs, 0), outer_stack(table, ss, cs & RPL)
    put_register(s, d, CS, code)
    put_register(s, d, SS, stack)


@transition("SEG-9", source="xen-2003.md §7.6", keys=("dom", "reg", "selector"))
def reload(s: State, d: DomId, r: Index, selector: int) -> None:
    """Xen restores a data segment register in ring 0; on the way out the processor takes away what the guest may not have."""
    require_running(s, d)
    require(is_data_register(r), "SEG-9.1")            # one for data
    put_register(s, d, r, keep(load_data(s.fetched[d, Index(selector)], selector, 0), ring_of(s, d)))


# --- what a guest asks for ---------------------------------------------------------------------------------------------------

@transition("TRAP-1", source="xen-2003.md §7.1", keys=("dom", "vector", "selector", "word", "index"))
def set_trap(s: State, d: DomId, v: Index, cs: int, ip: int, flags: int) -> None:
    """A guest's handler of a vector is code of its own kernel, or the flat one that Xen gives it."""
    require_segmented(s)
    require(is_guest_code_selector(s, cs), "TRAP-1.1")  # a selector for ring 1, and none of Xen's own
    s.trap_cs[d, v] = Index(cs)
    s.trap_ip[d, v] = ip
    s.trap_flags[d, v] = Index(flags)


@predicate
def is_fast(v: Index) -> bool:
    """A vector that is neither the processor's nor Xen's."""
    return v == 0x80 or (v >= 0x20 and v <= 0x2F)


@transition("TRAP-2", source="SOSP'03 §3.2.2; xen-2003.md §7.4", keys=("dom", "vector"))
def set_fast_trap(s: State, d: DomId, v: Index) -> None:
    """One vector of a guest's, none of the processor's or Xen's, may have a gate that leads past Xen."""
    require_segmented(s)
    require((v == 0) | is_fast(v), "TRAP-2.1")      # a vector for it, or none
    require((v == 0) | (s.trap_flags[d, v] & 4 == 0), "TRAP-2.2")   # its handler need not have events masked
    s.fast_trap[d] = v


@predicate
def debug_bits(r: int, value: int) -> int:
    """What Xen stores: the reserved bits of the status and control registers as the processor wants them."""
    if r == 6:
        return (value & 0xFFFFEFFF) | 0xFFFF0FF0
    if r == 7 and value != 0:
        return (value & 0xFFFF27FF) | 0x400
    return value


@predicate
def is_guest_debug(r: int, value: int) -> bool:
    """Breakpoints below Xen; no guard on the debug registers themselves, and no condition about input and output."""
    if r <= 3:
        return value <= Xen2003.BREAKPOINT_END
    # a pair of bits is 10 where its upper bit is set and its lower one is not
    return r == 6 or (value & 0x2000 == 0 and value & 0xAAAA0000 & (value << 1 ^ 0xAAAA0000) == 0)


@transition("DEBUG-1", source="xen-2003.md §7.8", keys=("dom", "reg", "word"))
def set_debug(s: State, d: DomId, r: Index, value: int) -> None:
    """A guest's breakpoints are at its own addresses."""
    require_segmented(s)
    require((r <= 3) | (r == 6) | (r == 7), "DEBUG-1.1")    # a register that can be set
    require(is_guest_debug(r, debug_bits(r, value)), "DEBUG-1.2")   # to what is the guest's business
    s.debug[d, r] = debug_bits(r, value)


@transition("STACK-1", source="xen-2003.md §7.7 (W-59)", keys=("dom", "selector", "word"))
def switch_stack(s: State, d: DomId, ss: int, sp: int) -> None:
    """The guest kernel says which stack it is to be entered on; nobody checks the pointer."""
    require_segmented(s)
    require(ss & RPL != 0, "STACK-1.1")             # not one of ring 0
    s.kernel_ss[d] = Index(ss)
    s.kernel_sp[d] = sp


@transition("FPU-2", source="xen-2003.md §7.2 #NM (W-58)", keys=("dom", "index"))
def mark_fpu(s: State, d: DomId, on: int) -> None:
    """The guest kernel wants to know of the next use of the FPU, or has been told."""
    require_segmented(s)
    s.task_switched[d] = on != 0
