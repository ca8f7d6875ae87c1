"""Descriptor tables, handlers, breakpoints and segment registers of xen-4.17 (xen-4.17.md §5 SET_LDT, §6, §7, §11)."""
import pytest

from refmodel import ModelError
from spec.abi import (
    EBUSY,
    EFAULT,
    EINVAL,
    ENODEV,
    ENOSYS,
    EPERM,
    GP,
    NMI,
    NP,
    PF,
    PF_USER,
    SEG_DESC,
    SS,
    WRITABLE,
    Xen417,
)
from spec.vocabulary import Outcome

X = Xen417
EDGE, HIGH, NOT_CANONICAL = 1 << 47, 0xFFFF880000000000, 1 << 47
CODE, DATA, ACCESSED = 0x00AF9A000000FFFF, 0x00CF92000000FFFF, 1 << 40
USER_DATA = 0x00CFF2000000FFFF              # as Xen has it in a table
RO = 0x61 | 1 << 52
FULL = 0x63 | 1 << 52


def gate(selector: int, dpl: int = 0) -> int:
    return 0x1000 | selector << 16 | 0x8C << 40 | dpl << 45


def table(xen, dom, page, descriptors):
    """A page is filled with descriptors, and mapped read-only: its frame."""
    xen.fill(dom, page, descriptors)
    f = xen.frame(dom, page)
    assert xen.uvm(dom, xen.va(page), f << 12 | RO, X.UVMF_TLB_FLUSH) == 0
    return f


def set_gdt(xen, dom, frames, entries):
    return xen.call(dom, X.SET_GDT, xen.va(2), entries, data=((xen.va(2), tuple(frames)),) if frames else ())


def set_ldt(xen, dom, base, entries):
    return xen.ext(dom, X.SET_LDT, base, entries)


# --- set_gdt -----------------------------------------------------------------------------------------------------------------

def test_a_gdt_is_taken_adjusted_and_dropped(xen):
    f = table(xen, 1, 5, {1: CODE, 2: DATA, 3: gate(0x18, 1), 4: 0x12345, 5: 1 << 47})
    assert set_gdt(xen, 1, [f], 512) == 0
    assert xen.count(f) == (SEG_DESC, 1, 2)
    assert [xen.word(f, i) for i in range(1, 6)] == [CODE | 3 << 45, USER_DATA, gate(0x1B), 0x12345, 1 << 47]
    assert set_gdt(xen, 1, [f, f, f], 1025) == 0
    assert xen.count(f) == (SEG_DESC, 3, 4)
    assert set_gdt(xen, 1, [], 0) == 0
    assert xen.count(f)[1:] == (0, 1)


def test_checks_of_set_gdt(xen):
    assert set_gdt(xen, 1, [], X.RESERVED + 1) == -EINVAL
    assert xen.refused == ["DESC-30.1"]
    assert xen.call(1, X.SET_GDT, EDGE, 1) == -EFAULT
    assert xen.call(1, X.SET_GDT, EDGE, 0) == 0             # nothing is read
    assert xen.call(1, X.SET_GDT, 0x1000, 1) == -EFAULT
    for f in (xen.frame(2, 5), xen.free, 3, 2048, (1 << 52) - 1, 1 << 60):
        assert set_gdt(xen, 1, [f], 1) == -EINVAL
        assert xen.refused == ["DESC-31.1"]
    for page in (5, -4):                                    # written by the guest, or a table
        assert set_gdt(xen, 1, [xen.frame(1, page)], 1) == -EINVAL
        assert xen.refused == ["PTE-1.1"]


def test_the_longest_gdt(xen):
    f = table(xen, 1, 5, {1: CODE})
    assert set_gdt(xen, 1, [f] * 14, X.RESERVED) == 0
    assert xen.count(f) == (SEG_DESC, 14, 15)


BAD = [gate(0xE038), gate(0xE030), gate(0xE023), gate(0x18) | 1 << 32, gate(0x18) | 0x80 << 32,
       *(1 << 47 | kind << 40 for kind in range(1, 16) if kind != 12)]


@pytest.mark.parametrize("q", BAD)
def test_bad_descriptors(xen, q):
    f = table(xen, 1, 5, {2: DATA, 7: q, 9: DATA})
    assert set_gdt(xen, 1, [f], 512) == -EINVAL
    assert xen.refused == ["PTE-7.1"]
    assert xen.count(f)[1:] == (0, 1)
    assert [xen.word(f, i) for i in (2, 7, 9)] == [USER_DATA, q, DATA]      # what was adjusted stays so
    assert xen.call(1, X.UPDATE_DESCRIPTOR, f << 12, q) == -EINVAL
    assert xen.refused == ["DESC-32.2"]


@pytest.mark.parametrize("selector", [0, 7, 0xE033, 0xDFF8, 0xDFFC, 0xE03C, 0xFFFF])
def test_gates_to_the_guests_code(xen, selector):
    f = table(xen, 1, 5, {7: gate(selector, 2)})
    assert set_gdt(xen, 1, [f], 512) == 0
    assert xen.word(f, 7) == gate(selector | 3)


def test_a_gdt_that_fails_leaves_the_old_one(xen):
    old, new = table(xen, 1, 5, {1: DATA}), table(xen, 1, 6, {1: CODE})
    assert set_gdt(xen, 1, [old], 2) == 0
    assert set_gdt(xen, 1, [new, xen.frame(2, 5)], 513) == -EINVAL
    assert xen.count(old) == (SEG_DESC, 1, 2)
    assert xen.count(new)[1:] == (0, 1)
    assert xen.word(new, 1) == CODE | 3 << 45
    assert set_gdt(xen, 1, [old], 513) == -EINVAL           # the list's second word is 0, a frame of Xen's


# --- update_descriptor -------------------------------------------------------------------------------------------------------

def test_update_descriptor(xen):
    f = table(xen, 1, 5, {})
    idle, data, tab = table(xen, 1, 6, {}), xen.frame(1, 7), xen.frame(1, -4)
    assert set_gdt(xen, 1, [f], 512) == 0
    for frame in (f, idle, data):
        assert xen.call(1, X.UPDATE_DESCRIPTOR, frame << 12 | 0xFF8, DATA) == 0
        assert xen.word(frame, 511) == USER_DATA
    assert xen.count(f) == (SEG_DESC, 1, 2)
    assert xen.count(data) == (WRITABLE, 1, 1)
    assert xen.call(1, X.UPDATE_DESCRIPTOR, f << 12 | 4, DATA) == -EINVAL
    assert xen.refused == ["DESC-32.1"]
    for other in (xen.frame(2, 5), 2048, 3, (1 << 52) - 1):
        assert xen.call(1, X.UPDATE_DESCRIPTOR, other << 12 & (1 << 64) - 1, DATA) == -EINVAL
        assert xen.refused == ["DESC-32.3"]
    assert xen.call(1, X.UPDATE_DESCRIPTOR, tab << 12, DATA) == -EINVAL
    assert xen.refused == ["PTE-1.1"]
    assert xen.call(0, X.UPDATE_DESCRIPTOR, data << 12, DATA) == -EINVAL    # not for another domain, not even by domain 0


def test_a_table_that_was_one_is_written_as_one(xen):
    f = table(xen, 1, 5, {})
    assert set_gdt(xen, 1, [f], 512) == set_gdt(xen, 1, [], 0) == 0
    assert xen.call(1, X.UPDATE_DESCRIPTOR, f << 12, DATA) == 0
    assert xen.count(f) == (SEG_DESC, 0, 1)
    assert xen.word(f, 0) == USER_DATA


def test_one_that_failed_to_become_another_table_is_one_no_more(xen):
    f = table(xen, 1, 5, {255: 1})
    assert set_gdt(xen, 1, [f], 1) == set_gdt(xen, 1, [], 0) == 0
    assert xen.ext(1, X.PIN_L1, f) == -EBUSY                # entry 255 maps a frame of Xen's
    assert xen.count(f) == (WRITABLE, 0, 1)
    assert xen.call(1, X.UPDATE_DESCRIPTOR, f << 12, DATA) == 0
    assert xen.count(f) == (WRITABLE, 0, 1)


# --- the LDT -----------------------------------------------------------------------------------------------------------------

def test_checks_of_set_ldt(xen):
    assert set_ldt(xen, 1, xen.va(5), 8193) == -EINVAL
    assert set_ldt(xen, 1, xen.va(5, 8), 1) == -EINVAL
    assert set_ldt(xen, 1, EDGE, 1) == -EINVAL
    assert set_ldt(xen, 1, EDGE + 8, 0) == 0
    assert (xen.m.s.ldt_base[1], xen.m.s.ldt_entries[1]) == (0, 0)


def loaded_ldt(xen, dom=1, entries=1024):
    """An LDT of two pages, the first of which is mapped for the processor: its frame."""
    f = table(xen, dom, 5, {1: DATA})
    assert set_ldt(xen, dom, xen.va(5), entries) == 0
    assert xen.load_segment(dom, "ds", 0xF) == Outcome()
    assert xen.count(f) == (SEG_DESC, 1, 2)
    assert xen.word(f, 1) == USER_DATA | ACCESSED
    return f


def test_a_page_of_the_ldt_is_mapped_when_it_is_needed(xen):
    loaded_ldt(xen)
    address = xen.va(6, 8)
    assert xen.load_segment(1, "es", 0x100F) == Outcome(0, PF, 0, address)  # page 6 is written by the guest
    second = table(xen, 1, 6, {1: DATA, 2: CODE})
    assert xen.load_segment(1, "es", 0x100F) == Outcome()
    assert xen.count(second) == (SEG_DESC, 1, 2)
    assert xen.load_segment(1, "es", 0x2007) == Outcome(0, GP, 0x2004)      # beyond the limit


@pytest.mark.parametrize("drop", ["set_ldt", "new_base", "put", "same", "same_base", "other"])
def test_what_drops_the_pages_of_the_ldt(xen, drop):
    f = loaded_ldt(xen)
    if drop == "set_ldt":
        assert set_ldt(xen, 1, xen.va(5), 1023) == 0
    elif drop == "same":
        assert set_ldt(xen, 1, xen.va(5), 1024) == 0
    elif drop == "put":
        assert xen.uvm(1, xen.va(5), 0) == 0
    elif drop == "other":                                   # domain 0 maps the page, and unmaps it
        assert xen.uvm_other(0, xen.va(8), f << 12 | RO, 1) == xen.uvm(0, xen.va(8), 0) == 0
    else:
        root = xen.frame(1, -1)
        if drop == "new_base":
            root = xen.new_tables(1, 9, 4, {511: xen.frame(1, -2) << 12 | 0x67})
        assert xen.ext(1, X.NEW_BASEPTR, root) == 0
    kept = drop in ("same", "same_base", "other", "put")     # a mapping that is put drops nothing
    assert xen.count(f)[1] == kept


def test_the_way_to_a_page_of_the_ldt_is_marked(xen):
    table(xen, 1, 5, {})
    root, way = xen.frame(1, -1), [(xen.frame(1, -3), 0), (xen.frame(1, -2), 510), (xen.frame(1, -1), 511)]
    assert xen.mmu(1, *((f << 12 | 8 * i, xen.word(f, i) & ~0x20) for f, i in way[:2])) == 0
    assert set_ldt(xen, 1, xen.va(5), 512) == 0
    assert xen.load_segment(1, "ds", 0xF).vector == GP      # nothing there, but the page was looked for
    assert all(xen.word(f, i) & 0x20 for f, i in way)
    assert root == way[2][0]


def test_an_ldt_at_the_edge(xen):
    assert set_ldt(xen, 1, EDGE - 4096, 1024) == 0
    assert xen.load_segment(1, "ds", 0x1007) == Outcome(0, GP, 0x1004)      # where it lies is no address
    assert xen.load_segment(1, "ds", 0xF) == Outcome(0, PF, 0, EDGE - 4096 + 8)
    assert set_ldt(xen, 1, (1 << 64) - 4096, 1024) == 0
    assert xen.load_segment(1, "ds", 0x100F) == Outcome(0, PF, 0, 8)


# --- segment registers -------------------------------------------------------------------------------------------------------

def test_loads_from_the_gdt(xen):
    f = table(xen, 1, 5, {1: DATA, 2: CODE, 3: USER_DATA & ~(1 << 47), 4: DATA & ~(1 << 41), 5: CODE & ~(1 << 41), 6: gate(0x18)})
    assert set_gdt(xen, 1, [f], 1) == 0                     # whole pages count
    for register in ("es", "ds", "fs", "gs"):
        assert [xen.load_segment(1, register, 8 * n | 3).vector for n in range(1, 8)] == [-1, -1, NP, -1, GP, GP, GP]
        assert xen.load_segment(1, register, 3) == Outcome()
    assert [xen.load_segment(1, "ss", 8 * n | 3).vector for n in range(1, 8)] == [-1, GP, SS, GP, GP, GP, GP]
    assert xen.load_segment(1, "ss", 0x8) == Outcome(0, GP, 8)
    assert xen.load_segment(1, "ss", 3) == Outcome(0, GP, 0)
    assert [xen.word(f, i) >> 40 & 1 for i in range(1, 7)] == [1, 1, 0, 1, 0, 0]


def test_xens_own_segments(xen):
    for selector in (0xE02B, 0xE028, 0xE023, 0xE033):
        assert xen.load_segment(1, "ds", selector) == Outcome()
    for selector in (0xE008, 0xE010, 0xE019, 0xE040, 0xE060, 0xF000, 0xFFF8):
        assert xen.load_segment(1, "ds", selector) == Outcome(0, GP, selector & 0xFFF8)
    assert [xen.load_segment(1, "ss", s).vector for s in (0xE02B, 0xE02A, 0xE033)] == [-1, GP, GP]


def test_an_application_loads_segments(xen):
    xen.user_root(1, (8, 9, 10, 11), {0: xen.frame(1, 7) << 12 | FULL | 4})
    loaded_ldt(xen)
    assert xen.load_segment(1, "ds", 0xF, user=True) == Outcome()
    assert xen.load_segment(1, "es", 0x100F, user=True) == Outcome(0, PF, PF_USER, xen.va(6, 8))


def test_segment_bases(xen):
    for which in (X.FS_BASE, X.GS_USER_BASE, X.GS_KERNEL_BASE):
        assert xen.call(1, X.SET_SEGMENT_BASE, which, HIGH) == 0
        assert xen.call(1, X.SET_SEGMENT_BASE, which | 1 << 32, 0) == 0
        assert xen.call(1, X.SET_SEGMENT_BASE, which, NOT_CANONICAL) == -EINVAL
        assert xen.refused == ["TRAP-33.2"]
    assert xen.call(1, X.SET_SEGMENT_BASE, 4, 0) == -EINVAL
    assert xen.refused == ["TRAP-33.1"]


def test_a_selector_for_the_applications_gs(xen):
    f = table(xen, 1, 5, {1: DATA, 2: CODE})
    assert set_ldt(xen, 1, xen.va(5), 512) == 0
    for selector in (0, 3, 0x1007, 0x7FFF, 0x17, 0xFFFF, NOT_CANONICAL | 0xC):
        assert xen.call(1, X.SET_SEGMENT_BASE, X.GS_USER_SELECTOR, selector) == 0
    assert xen.count(f) == (SEG_DESC, 1, 2)
    assert [xen.word(f, i) >> 40 & 1 for i in (1, 2)] == [1, 1]


# --- handlers, callbacks, the stack ------------------------------------------------------------------------------------------

def handler(v, address, cs=0xE033, flags=0):
    return (v | flags << 8 | cs << 16, address)


def traps(xen, dom, *entries, end=(0, 0)):
    return xen.call(dom, X.SET_TRAP_TABLE, xen.va(2), data=((xen.va(2), sum((*entries, end), ())),))


def of(xen, v):
    s = xen.m.s
    return s.trap_cs[1, v], s.trap_ip[1, v], s.trap_flags[1, v]


def test_set_trap_table(xen):
    assert traps(xen, 1, handler(0x30, 0x1000, 0x18, 7), handler(0x31, HIGH, 0), handler(3, 0x1000)) == 0
    assert (of(xen, 0x30), of(xen, 0x31)) == ((0x1B, 0x1000, 7), (3, HIGH, 0))
    assert of(xen, 3) == (X.KERNEL_CS, X.PADS + 3 * X.PAD, 0)               # the harness has its own again
    assert traps(xen, 1, handler(0x32, 1), handler(0x33, NOT_CANONICAL), handler(0x34, 1)) == -EINVAL
    assert xen.refused == ["TRAP-30.1"]
    assert [of(xen, v)[1] for v in (0x32, 0x33, 0x34)] == [1, X.PADS + 0x33 * X.PAD, X.PADS + 0x34 * X.PAD]
    last = xen.va(xen.pages, 0xFF0)                         # the list ends with the mapped memory
    assert xen.call(1, X.SET_TRAP_TABLE, last, data=((last, handler(0x35, 1)),)) == -EFAULT
    assert of(xen, 0x35)[1] == 1
    assert xen.call(1, X.SET_TRAP_TABLE, EDGE) == -EFAULT
    assert xen.call(1, X.SET_TRAP_TABLE, 0) == 0
    assert of(xen, 0x30) == (0, 0, 0)
    assert of(xen, 31)[1] == X.PADS + 31 * X.PAD


def test_calls_that_change_handlers_are_not_listed(xen):
    for call in (X.SET_TRAP_TABLE, X.STACK_SWITCH, X.SET_CALLBACKS, X.CALLBACK_OP):
        with pytest.raises(ModelError):
            xen.multicall(1, (call, 0, 0, 0))


def test_callbacks(xen):
    before = [of(xen, v) for v in (0x100, 0x101, 0x102)]
    assert xen.call(1, X.SET_CALLBACKS, 0x1000, NOT_CANONICAL, HIGH) == 0
    assert [of(xen, v) for v in (0x100, 0x101, 0x102)] == before            # the harness' own again

    def op(command, kind, address=0x1000, flags=0):
        return xen.call(1, X.CALLBACK_OP, command, xen.va(2), data=((xen.va(2), (kind | flags << 16, address)),))
    for kind in (0, 1, 2, 4, 5, 7):
        assert op(X.REGISTER, kind, flags=kind & 1) == 0
        assert op(X.REGISTER, kind, NOT_CANONICAL) == -EINVAL
        assert xen.refused == ["TRAP-31.2"]
        assert op(X.UNREGISTER, kind) == (0 if kind == 4 else -EINVAL)
        assert xen.refused == ([] if kind == 4 else ["TRAP-32.2"])
    assert of(xen, 0x105) == (X.KERNEL_CS, 0x1000, X.EVENTS_MASKED)
    assert of(xen, NMI) == (0, 0, 0)
    for kind in (3, 6, 8, 0xFFFF):
        assert op(X.REGISTER, kind) == -ENOSYS
        assert xen.refused == ["TRAP-31.3"]
        assert op(X.UNREGISTER, kind) == -ENOSYS
        assert xen.refused == ["TRAP-32.1"]
        assert op(X.REGISTER, kind, NOT_CANONICAL) == -EINVAL
    assert op(2, 0) == -ENOSYS
    assert xen.refused == ["TRAP-31.1"]
    for command in (X.REGISTER, X.UNREGISTER):
        assert xen.call(1, X.CALLBACK_OP, command, 0x1000) == -EFAULT


def test_stack_switch_and_the_fpu(xen):
    s = xen.m.s
    assert xen.call(1, X.STACK_SWITCH, 0x10018, NOT_CANONICAL) == 0
    assert (s.kernel_ss[1], s.kernel_sp[1]) == (0x1B, NOT_CANONICAL)
    for on, known in ((1, True), (1 << 32, False), (0xFFFFFFFF, True), (0, False)):
        assert xen.call(1, X.FPU_TASKSWITCH, on) == 0
        assert s.task_switched[1] == known


# --- breakpoints -------------------------------------------------------------------------------------------------------------

def get(xen, r):
    return xen.call(1, X.GET_DEBUGREG, r)


def put(xen, r, value):
    return xen.call(1, X.SET_DEBUGREG, r, value)


def test_debug_registers(xen):
    assert [get(xen, r) for r in range(8)] == [0, 0, 0, 0, 0xFFFF0FF0, 0x400, 0xFFFF0FF0, 0x400]
    for r in (8, 9, 0xFFFFFFFF):
        assert put(xen, r, 0) == get(xen, r) == -ENODEV
    assert put(xen, 0, EDGE - 1) == put(xen, 1, HIGH) == 0
    assert (get(xen, 0), get(xen, 1)) == (EDGE - 1, HIGH - (1 << 64))
    for address in (EDGE, HIGH - 1):
        assert put(xen, 2, address) == -EPERM
    for r in (4, 5, 6, 7):
        assert put(xen, r, 1 << 32) == -EINVAL
    assert put(xen, 4, 0xFFFFFFFF) == 0
    assert get(xen, 6) == 0xFFFFEFFF


def test_control_of_breakpoints(xen):
    assert put(xen, 7, 0x2000) == -EPERM
    assert xen.refused == ["TRAP-34.3"]
    for n in range(4):
        assert put(xen, 5, 0x20000 << 4 * n) == 0           # input and output, but nothing is on
        assert get(xen, 7) == 0x20000 << 4 * n | 0x400
        assert put(xen, 7, 0x20000 << 4 * n | 1) == -EPERM
        assert put(xen, 7, 0x80000 << 4 * n | 1) == 0       # of 8 bytes
        assert put(xen, 7, 0x30000 << 4 * n | 0x80) == put(xen, 7, 0x10000 << 4 * n | 0x80) == 0


# --- what a table keeps others from ------------------------------------------------------------------------------------------

def test_a_table_in_force_is_not_written(xen):
    f = loaded_ldt(xen)
    assert xen.uvm(1, xen.va(5), f << 12 | FULL, 1) < 0
    assert xen.set(1, f, 0, 0) == -EINVAL
    assert xen.ext(1, X.PIN_L1, f) == -EINVAL
    assert xen.ext(1, X.CLEAR_PAGE, f) == -EINVAL
    assert xen.store(1, xen.va(5), 1).vector == PF
