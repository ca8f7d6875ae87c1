"""Every planted bug shows: a short program comes out differently on the clean hypervisor and with the bug in it."""
import pytest

from emulator.audit import recount
from emulator.planted import PLANTS, planted
from oracle.cite import historic_bugs
from spec.abi import Xen2003
from spec.vocabulary import Access, Context, FarTransfer, Interrupt, Privileged
from tests.emulator.guest import LIST, PTE, SETUP, Guest, gate, request, segment, setup_of, visible

Z, G, O = (Guest(SETUP, d) for d in range(3))       # domain 0, a guest, and another  # noqa: E741
SHORT = setup_of(3, frames=700)                     # fewer than 512 frames are free
S = Guest(SHORT, 1)
A, B = 20, 21                                       # pages that become tables
F = G.frame(30)
RO, RWX = 1, 3
SLOT = 100                                          # a free slot of an L1 or an L2 table
PIN_L1, PIN_L2, UNPIN, BASE = Xen2003.PIN_L1, Xen2003.PIN_L2, Xen2003.UNPIN, Xen2003.NEW_BASEPTR
UPDATE, MAP, MEMORY, MULTI = Xen2003.MMU_UPDATE, Xen2003.UPDATE_VA_MAPPING, Xen2003.DOM_MEM_OP, Xen2003.MULTICALL


def table(guest, page, *entries):
    """Give a page the contents of a table, and map it read-only."""
    stores = tuple((guest.va(page) + 4 * slot, (word,)) for slot, word in entries)
    return guest.update((guest.l1e(page), guest.frame(page) << 12 | RO), request(Xen2003.TLB_FLUSH), before=stores)


def entry(guest, slot, word):
    return guest.update((guest.l1e(slot), word))


def l2_entry(guest, slot, word):
    return guest.update((guest.l2e(slot), word))


def stale(guest, page):
    """A page whose translation is cached though its entry is gone."""
    return guest.store(guest.va(page), 7), guest.unmap(page, 0)


def many(flags):
    """More entries than a plain loop is used for."""
    return tuple((k, G.frame(30 + k % 5) << 12 | flags) for k in range(20))


def with_ldt(guest):
    """An LDT of 8 entries; one of them can be loaded."""
    return guest.set_descriptor(guest.frame(A), 1, segment()), *guest.read_only(A), guest.set_ldt(A, 8)


CODE, STACK, KERNEL_STACK = 5, 6, 7                 # pages
CALLS = Xen2003.SET_CALLBACKS, Xen2003.RING1_CS, 0x50, Xen2003.RING1_CS, 0x60


def kernel(guest=G, **others):
    """A context in ring 1."""
    return Context(Xen2003.RING1_CS, guest.va(CODE), others.pop("eflags", 0x202), others.pop("esp", guest.va(STACK + 1)),
                   others.pop("ss", Xen2003.RING1_DS), **others)


def application(guest=G):
    """A context in ring 3."""
    return Context(Xen2003.RING3_CS, guest.va(CODE), 0x202, guest.va(STACK + 1), Xen2003.RING3_DS)


def in_kernel(instruction, data=(), **others):
    return Privileged(1, kernel(**others), instruction, data)


def with_application(guest=G):
    """Its pages."""
    return [guest.map(page, guest.frame(page) << 12 | 0x67) for page in (CODE, STACK)]


def with_stack(guest=G):
    """And a stack for the kernel."""
    return [*with_application(guest), guest.call(Xen2003.STACK_SWITCH, Xen2003.RING1_DS, guest.va(KERNEL_STACK + 1))]


def events(raised, mask, guest=G):
    """Words of shared_info."""
    return ((guest.va(guest.pages), (raised, mask)),)


FAST = [G.set_traps((0x80, 1, 0x819, 5)), G.call(Xen2003.SET_FAST_TRAP, 0x80)]
CODE_IN_LDT = [G.set_descriptor(G.frame(A), 1, segment(0x1B, pages=0xFC400)), *G.read_only(A), G.set_ldt(A, 8)]
JUMP_THERE = FarTransfer(1, kernel(), "jmp", 0xD, G.va(30))

DETECT = {
    "owner-unasked-read-only": [entry(G, SLOT, O.frame(5) << 12 | RO)],
    "owner-unasked-writable": [entry(G, SLOT, O.frame(5) << 12 | RWX)],
    "owner-unasked-l1-table": [l2_entry(G, SLOT, O.l1 << 12 | RO)],
    "owner-unasked-pin": [G.extended(PIN_L1, O.l1)],
    "owner-unasked-unpin": [G.extended(UNPIN, O.l2)],
    "owner-unasked-machphys": [G.update((O.frame(5) << 12 | Xen2003.MACHPHYS, 9))],
    "owner-unasked-base": [G.extended(BASE, O.l2)],
    "caller-judges-anothers-table": [entry(Z, SLOT, G.l1 << 12 | RO), Z.update((Z.va(SLOT) + 4 * 200, O.frame(5) << 12 | RWX))],
    "free-frames-for-domain-0": [entry(Z, SLOT, 1199 << 12 | RO)],
    "old-entry-not-put": [entry(G, 30, G.frame(31) << 12 | PTE)],
    "rw-change-not-counted": [entry(G, 30, F << 12 | RO)],
    "unpin-keeps-a-reference": [table(G, A), G.extended(PIN_L1, G.frame(A)), G.extended(UNPIN, G.frame(A))],
    "base-switch-puts-the-new-base": [table(G, B, (768, G.l1 << 12 | RWX)), G.extended(BASE, G.frame(B))],
    "base-switch-keeps-the-old-base": [G.extended(BASE, G.l2)],
    "put-on-refused-pin": [G.extended(PIN_L2, G.l2)],
    "put-on-owner-mismatch": [entry(G, SLOT, O.frame(5) << 12 | RO)],
    "refused-machphys-keeps-a-reference": [G.update((O.frame(5) << 12 | Xen2003.MACHPHYS, 9))],
    "pin-twice": [G.extended(PIN_L2, G.l2)],
    "last-put-keeps-entries": [table(G, A, (0, F << 12 | RO)), G.extended(PIN_L1, G.frame(A)), G.extended(UNPIN, G.frame(A))],
    "self-map-counted": [l2_entry(G, SLOT, G.l2 << 12 | RO)],
    "read-only-entries-not-counted": [entry(G, SLOT, F << 12 | RO)],
    "l1-validation-stops-early": [table(G, A, (1023, O.frame(5) << 12 | RWX)), G.extended(PIN_L1, G.frame(A))],
    "l2-validation-stops-early": [table(G, B, (1007, O.l1 << 12 | RO)), G.extended(PIN_L2, G.frame(B))],
    "rollback-incomplete": [table(G, B, (0, G.l1 << 12 | RO), (1, O.l1 << 12 | RO)), G.extended(PIN_L2, G.frame(B))],
    "refused-table-keeps-its-type": [table(G, A, (0, O.frame(5) << 12 | RO)), G.extended(PIN_L1, G.frame(A))],
    "flags-unchecked-in-validation": [table(G, A, (0, F << 12 | 0x101)), G.extended(PIN_L1, G.frame(A))],
    "global-at-l1": [entry(G, SLOT, F << 12 | 0x101)],
    "pat-at-l1": [entry(G, SLOT, F << 12 | 0x81)],
    "pse-in-fast-path": [l2_entry(G, 768, G.l1 << 12 | 0xE7)],
    "global-at-l2": [l2_entry(G, SLOT, G.l1 << 12 | 0x101)],
    "first-xen-slot-open": [l2_entry(G, 1008, G.l1 << 12 | RO), G.load(Xen2003.HOLE)],
    "last-xen-slots-open": [l2_entry(G, 1021, G.l1 << 12 | RO)],
    "self-map-writable": [l2_entry(G, SLOT, G.l2 << 12 | RWX), G.store((SLOT << 22) + (768 << 12), 0)],
    "self-map-turns-writable": [l2_entry(G, SLOT, G.l2 << 12 | RO), l2_entry(G, SLOT, G.l2 << 12 | RWX)],
    "self-map-judged-as-l1": [l2_entry(G, SLOT, G.l2 << 12 | RO), G.call(MAP, (SLOT << 10) + 5, F << 12 | RO, 0)],
    "no-flush-on-type-change": [*stale(G, 30), G.store(G.va(30), 0), G.extended(PIN_L1, F), G.store(G.va(30), F << 12 | RWX)],
    "flush-decided-by-new-type": [table(G, A), G.extended(PIN_L1, G.frame(A)), *stale(G, 30), G.extended(UNPIN, G.frame(A)),
                                  entry(G, A, G.frame(A) << 12 | PTE), G.load(G.va(30))],
    "stale-time-stamp": [*stale(G, 30), G.store(G.va(30), 0), G.extended(PIN_L1, F), G.store(G.va(30), 8)],
    "tlb-flush-ignored": [*stale(G, 30), G.extended(Xen2003.TLB_FLUSH), G.load(G.va(30))],
    "invlpg-ignored": [*stale(G, 30), G.update((3, G.va(30) | Xen2003.INVLPG)), G.load(G.va(30))],
    "flush-flag-ignored": [*stale(G, 30), G.unmap(31, Xen2003.UVMF_FLUSH), G.load(G.va(30))],
    "invlpg-flag-ignored": [*stale(G, 30), G.unmap(30, Xen2003.UVMF_INVLPG), G.load(G.va(30))],
    "no-flush-on-base-switch": [*stale(G, 30), G.extended(BASE, G.l2), G.load(G.va(30))],
    "no-flush-on-domain-switch": [G.store(G.va(30), 7), O.load(O.va(30))],
    "no-flush-before-reuse": [*stale(G, 30), G.decrease(F), G.increase(1), G.load(G.va(30))],
    "batch-goes-on": [G.update((0, 0), (G.l1e(30), 0))],
    "unreadable-request-invalid": [G.call(UPDATE, 0x1000, 1)],
    "missing-table-invalid": [G.call(MAP, 0, 0, 0)],
    "count-unsigned": [G.call(UPDATE, 0x1000, 0x80000000)],
    "multicall-ignores-faults": [G.call(MULTI, 0x1000, 1)],
    "unknown-memory-op-succeeds": [G.memory_op(2, size=0)],
    "command-range-unchecked": [G.extended(Xen2003.TLB_FLUSH, 1200)],
    "ldt-one-too-many": [G.update((0xC0001000 | 3, 8193 << 8 | Xen2003.SET_LDT))],
    "pointer-range-unchecked": [G.call(UPDATE, Xen2003.GUEST_END, 1)],
    "copy-ignores-read-only": [entry(G, 30, 0), G.decrease(F),
                               G.call(MEMORY, G.va(2), data=((G.va(2), (Xen2003.INCREASE, 1, G.l1e(SLOT))),))],
    "copy-runs-into-next-frame": [G.map(12, G.frame(40) << 12 | PTE, 2), G.store(G.va(12), F << 12 | RO),
                                  G.call(UPDATE, G.va(12) - 4, 1, data=((G.va(12) - 4, (G.l1e(SLOT),)),)), G.load(G.l1e(SLOT))],
    "normal-into-data": [G.update((G.va(30), 9))],
    "unchecked-for-all": [table(G, A), G.update((G.va(A) | Xen2003.UNCHECKED, 9))],
    "linear-map-open": [G.update(((Xen2003.LINEAR_SLOT << 22) + 4 * 0xC0000 + 4 * SLOT, F << 12 | RO))],
    "increase-does-not-zero": [*stale(G, 30), G.decrease(F), G.increase(1), G.map(30, F << 12 | PTE), G.load(G.va(30))],
    "increase-ignores-what-is-held": [G.increase(1)],
    "increase-ignores-the-slack": [S.unmap(30), S.decrease(S.frame(30)), S.increase(1)],
    "decrease-of-a-mapped-frame": [G.map(30, F << 12 | RO), G.decrease(F)],
    "decrease-unpins": [table(G, A), G.extended(PIN_L1, G.frame(A)), G.unmap(A), G.decrease(G.frame(A))],
    "ring-0-descriptor": [G.set_descriptor(F, 5, segment(dpl=0))],
    "call-gate-target-unchecked": [G.set_descriptor(F, 5, gate(0x809))],
    "segment-one-byte-too-long": [G.set_descriptor(F, 5, segment(base=Xen2003.GUEST_END - 0x10, low=0x10))],
    "expand-down-segment": [G.set_descriptor(F, 5, segment(0x17))],
    "system-descriptors": [G.set_descriptor(F, 5, gate(0x819, kind=0xE))],
    "last-descriptor-unseen": [G.store(G.va(A) + 0xFFC, 0x8000), *G.read_only(A), G.set_gdt(G.frame(A))],
    "gdt-first-frame-only": [G.store(G.va(B) + 4, 0x8000), *G.read_only(A, B), G.set_gdt(G.frame(A), G.frame(B))],
    "gdt-stale-type": [*G.read_only(A, B), *map(G.set_gdt, (G.frame(A), G.frame(B), G.frame(A)))],
    "gdt-of-others-frames": [*G.read_only(A), Z.set_gdt(G.frame(A))],
    "gdt-without-room": [*G.read_only(A), G.set_gdt(G.frame(A), entries=295)],
    "gdt-xens-entries-twice": [*G.read_only(A), G.set_gdt(G.frame(A), G.frame(A))],
    "gdt-untyped": [*G.read_only(A), G.set_gdt(G.frame(A)), G.map(A, G.frame(A) << 12 | RWX)],
    "gdt-old-pages-kept": [*G.read_only(A, B), G.set_gdt(G.frame(A)), G.set_gdt(G.frame(B))],
    "gdt-half-filled": [*G.read_only(A), G.set_gdt(G.frame(A))],
    "gdt-no-flush": [*G.read_only(A), G.extended(Xen2003.TLB_FLUSH), *stale(G, 30), G.set_gdt(G.frame(A)), G.load(G.va(30))],
    "xens-entry-replaced": [*G.read_only(A), G.set_gdt(G.frame(A)), G.set_descriptor(G.frame(A), 295, 0)],
    "descriptor-into-a-table": [G.set_descriptor(G.l1, 10, 0)],
    "descriptor-of-others": [Z.set_descriptor(F, 5, 0)],
    "ldt-kept-on-set-ldt": [*G.read_only(A, B), G.set_ldt(A, 8), G.set_ldt(B, 8)],
    "ldt-kept-on-base-switch": [*G.read_only(A), l2_entry(G, SLOT, G.l1 << 12 | RWX),
                                G.update(((SLOT << 22) + (A << 12) | Xen2003.EXTENDED, 8 << 8 | Xen2003.SET_LDT)),
                                table(G, B, (768, G.l1 << 12 | RWX)), G.extended(BASE, G.frame(B))],
    "ldt-kept-when-unmapped": [*G.read_only(A), G.set_ldt(A, 8), G.unmap(A)],
    "ldt-no-flush": [*G.read_only(A), G.set_ldt(A, 8), *stale(G, 30), G.set_ldt(A, 16), G.load(G.va(30))],
    "ldt-unchecked": [G.store(G.va(A) + 4, 0x8000), *G.read_only(A), G.set_ldt(A, 8)],
    "ldt-still-in-the-window": [*with_ldt(G), G.unmap(A), G.load_segment("ds", 0xD)],
    "gdt-limit": [G.set_descriptor(G.frame(A), 300, segment()), *G.read_only(A), G.set_gdt(G.frame(A), entries=300),
                  G.load_segment("ds", 300 << 3)],
    "gdt-of-the-last-domain": [*G.read_only(A), *O.read_only(B), O.set_gdt(O.frame(B)), G.set_gdt(G.frame(A)),
                               O.set_descriptor(O.frame(B), 1, segment()), O.load_segment("ds", 9)],
    "ldt-limit": [*with_ldt(G), G.set_descriptor(G.frame(A), 8, segment()), G.load_segment("ds", 8 << 3 | 4)],
    "ldt-never-mapped": [*with_ldt(G), G.unmap(A), *G.read_only(A), G.load_segment("ds", 0xD)],
    "trap-selector-unchecked": [G.set_traps((3, 0, 0x809, 5))],
    "callback-selector-of-32-bits": [G.call(Xen2003.SET_CALLBACKS, 0x10809, 0, 0x819, 0)],
    "stack-of-ring-0": [G.call(Xen2003.STACK_SWITCH, 0x10, 0)],
    "fast-hypercall": [G.call(Xen2003.SET_FAST_TRAP, 0x82)],
    "fast-trap-masks-nothing": [G.set_traps((0x80, 4, 0x819, 5)), G.call(Xen2003.SET_FAST_TRAP, 0x80)],
    "breakpoint-in-xen": [G.call(Xen2003.SET_DEBUGREG, 0, 0xFC400000)],
    "debug-registers-guarded": [G.call(Xen2003.SET_DEBUGREG, 7, 0x2000)],
    "frame-words-swapped": [in_kernel("hlt")],
    "frame-on-the-interrupted-stack": [*with_application(), Privileged(1, application(), "hlt")],
    "frame-beyond-the-limit": [G.set_descriptor(G.frame(A), 1, segment(pages=0xC0006)), *G.read_only(A), G.set_gdt(G.frame(A)),
                               in_kernel("hlt", ss=9)],
    "frame-without-the-upper-stack": [*with_stack(), Privileged(1, application(), "hlt")],
    "handler-with-tf": [in_kernel("hlt", eflags=0x302)],
    "handler-with-nt": [in_kernel("hlt", eflags=0x4202)],
    "fault-address-missing": [Access(1, kernel(ds=0x821), 0x1000)],
    "fault-address-twice": [Access(1, kernel(ds=0x821), 0x1000)],
    "unwritable-stack-not-killing": [in_kernel("hlt", esp=0x1000)],
    "error-code-always": [in_kernel("ud2")],
    "error-code-missing": [in_kernel("hlt")],
    "failsafe-words-in-wrong-order": [G.call(*CALLS), in_kernel("nop", ds=0x1235)],
    "failsafe-with-a-segment": [G.call(*CALLS), in_kernel("nop", ds=0x1235)],
    "failsafe-never": [G.call(*CALLS), in_kernel("nop", ds=0x1235)],
    "failsafe-at-the-event-callback": [G.call(*CALLS), in_kernel("nop", ds=0x1235)],
    "data-segment-not-restored": [in_kernel("nop", ds=0x821)],
    "event-mask-not-cleared": [G.call(*CALLS), in_kernel("nop", events(1, 0x80000001))],
    "delivered-events-stay-selected": [G.call(*CALLS), in_kernel("nop", events(1, 0x80000001))],
    "events-though-masked": [G.call(*CALLS), in_kernel("nop", events(1, 1))],
    "events-not-selected": [G.call(*CALLS), in_kernel("nop", events(1, 0x80000002))],
    "event-test-of-the-last-domain": [O.call(*CALLS), in_kernel("nop"),
                                      Privileged(2, kernel(O), "nop", events(1, 0x80000001, O))],
    "int-dpl-unchecked": [*with_stack(), Interrupt(1, application(), 0x30)],
    "int-not-skipped": [G.set_traps((0x30, 1, 0x819, 5)), Interrupt(1, kernel(), 0x30)],
    "int-of-an-exception": [*with_stack(), Interrupt(1, application(), 6)],
    "breakpoint-kept-from-applications": [*with_stack(), Privileged(1, application(), "int3")],
    "handler-masks-nothing": [G.set_traps((13, 4, 0x819, 5)), in_kernel("hlt", events(0, 0x80000000))],
    "ldt-fault-bounced": [*CODE_IN_LDT, G.unmap(A), *G.read_only(A), JUMP_THERE],
    "ldt-fault-by-the-guests-address": [*CODE_IN_LDT, G.unmap(A), JUMP_THERE],
    "single-step-masks-events": [G.set_traps((1, 4, 0x819, 5)), in_kernel("nop", events(0, 0x80000000), eflags=0x302)],
    "single-step-untold": [in_kernel("nop", eflags=0x302), G.call(Xen2003.GET_DEBUGREG, 6)],
    "fpu-trap-again": [G.call(Xen2003.FPU_TASKSWITCH), in_kernel("fpu"), in_kernel("fpu")],
    "fpu-trap-lost": [G.call(Xen2003.FPU_TASKSWITCH), in_kernel("fpu")],
    "privileged-instruction-skipped": [in_kernel("hlt")],
    "fast-trap-of-the-last-domain": [*FAST, Interrupt(2, kernel(O), 0x80)],
    "fast-trap-for-all": [*FAST, *with_stack(), Interrupt(1, application(), 0x80)],
    "fast-trap-masks-interrupts": [*FAST, Interrupt(1, kernel(), 0x80)],
    "kernel-stack-of-the-last-domain": [*with_stack(), *with_application(O), Privileged(2, application(O), "hlt")],
    "decrease-undone-by-an-error": [G.unmap(30), G.decrease(F, 0), G.increase(1)],
}

SETUPS = {"increase-ignores-the-slack": SHORT}


def come_out(target, setup, program):
    """All that a program leaves behind."""
    target.reset(setup)
    return target.run(program), visible(target)


@pytest.mark.parametrize("name", PLANTS)
def test_it_shows(only_target, name):
    setup, program = SETUPS.get(name, SETUP), DETECT[name]
    assert len(program) <= 8
    clean = come_out(only_target, setup, program)
    with planted(only_target, name) as plant:
        assert plant.name == name
        assert come_out(only_target, setup, program) != clean
    assert come_out(only_target, setup, program) == clean
    assert recount(only_target.hypervisor) == []


@pytest.mark.parametrize(("name", "flags"), [("flags-unchecked-in-validation", 0x101), ("read-only-entries-not-counted", RO)])
def test_it_shows_in_large_tables_too(only_target, name, flags):
    program = [table(G, A, *many(flags)), G.extended(PIN_L1, G.frame(A))]
    clean = come_out(only_target, SETUP, program)
    with planted(only_target, name):
        assert come_out(only_target, SETUP, program) != clean


def test_there_are_enough_of_every_kind():
    assert set(PLANTS) == set(DETECT)
    assert len(PLANTS) >= 26
    assert sum(bool(plant.historic) for plant in PLANTS.values()) >= 15
    assert all(plant.summary.endswith(".") for plant in PLANTS.values())


def test_the_real_bugs_that_they_are_like_can_be_cited():
    known = {bug["id"] for bug in historic_bugs()}
    assert {plant.historic for plant in PLANTS.values() if plant.historic} <= known


def test_afterwards_the_classes_are_as_they_were(only_target):
    only_target.reset(SETUP)
    def now():
        owners = {edit.owner for plant in PLANTS.values() for edit in plant.edits}
        return {owner: dict(vars(owner)) for owner in owners}
    before = now()
    for name in PLANTS:
        with planted(only_target, name):
            assert now() != before
    assert now() == before


def test_a_plant_outlives_another_setup(only_target):
    with planted(only_target, "pin-twice"):
        only_target.reset(setup_of(1, 16, 700))
        guest = Guest(setup_of(1, 16, 700), 0)
        assert only_target.run([guest.extended(PIN_L2, guest.l2)])[0].value == 0


def test_a_read_only_list_stays_as_it_was(only_target):
    """What `copy-ignores-read-only` breaks, on the clean hypervisor."""
    only_target.reset(SETUP)
    assert only_target.run([*DETECT["copy-ignores-read-only"], G.load(G.l1e(SLOT)), G.load(G.va(LIST))])[-2].value == 0
