"""Descriptor tables, segment registers, handlers and breakpoints on the real Xen: each command both ways, as in the model."""
from collections.abc import Callable

import pytest

from oracle.ground import BREAKPOINTS, Ground
from oracle.live import LeftOut, play
from refmodel.xen417_commands import COMMANDS, DONE, LDT_PAGE
from spec.abi import DOMID_SELF, GP, GUEST_KERNEL, NP, PF, PF_USER, SEG_DESC, SS, Xen417
from spec.vocabulary import Action, Hypercall, Load, LoadSegment, Outcome, Store, unpack_frame
from tests.xen.conftest import Held

X = Xen417
BUFFER = X.BASE + 0x2000
EDGE, HIGH = 1 << 47, 0xFFFF880000000000
DATA, CODE, ACCESSED, USER = 0x00CF92000000FFFF, 0x00AF9A000000FFFF, 1 << 40, 3 << 45
RO = GUEST_KERNEL | 0x61
ASIDE = 0x0000550000000000                  # nothing is ever there
WING = ("§6.2", "§6.3", "§6.4", "§6.5", "§7.1", "§7.3", "§7.5")


# --- actions -----------------------------------------------------------------------------------------------------------------

def va(page: int, byte: int = 0) -> int:
    return X.BASE + 4096 * page + byte


def frame(held: Held, page: int, d: int = 1) -> int:
    return held[1].domains[d].first + page % held[1].domains[d].pages


def call(nr: int, *args: int, d: int = 1) -> Hypercall:
    return Hypercall(d, nr, args)


def listed(nr: int, words: tuple[int, ...], *more: int, d: int = 1) -> Hypercall:
    """A call on a list that is written first."""
    return Hypercall(d, nr, (BUFFER, *more), ((BUFFER, words),))


def table(held: Held, page: int, words: dict[int, int], d: int = 1) -> Hypercall:
    """A page is filled with descriptors and mapped read-only."""
    data = tuple((va(page, 8 * i), (q,)) for i, q in words.items())
    return Hypercall(d, X.UPDATE_VA_MAPPING, (va(page), frame(held, page, d) << 12 | RO, 2), data)


def set_gdt(frames: tuple[int, ...], entries: int, d: int = 1) -> Hypercall:
    return listed(X.SET_GDT, frames or (0,), entries, d=d)


def set_ldt(base: int, entries: int, d: int = 1) -> Hypercall:
    return listed(X.MMUEXT_OP, (X.SET_LDT, base, entries), 1, 0, DOMID_SELF, d=d)


def callback(command: int, kind: int, address: int = 0x1000) -> Hypercall:
    return Hypercall(1, X.CALLBACK_OP, (command, BUFFER), ((BUFFER, (kind, address)),))


def load(selector: int, register: str = "ds", user: bool = False, d: int = 1) -> LoadSegment:
    return LoadSegment(d, register, selector, user)


def outcomes(held: Held, actions: list[Action]) -> list[Outcome]:
    """Of a program that model and machine agree on."""
    target, setup, machine = held
    verdict = play(machine, target, setup, actions, Ground(machine, *target.ground()))
    assert verdict.agrees, verdict.summary
    target.reset(setup)
    return target.run(actions)


def values(held: Held, actions: list[Action]) -> list[int]:
    """The same, where nothing faults."""
    found = outcomes(held, actions)
    assert all(outcome.vector < 0 for outcome in found), found
    return [outcome.value for outcome in found]


def kind(held: Held, f: int) -> tuple[int, int]:
    """Type and typed references of a frame, by the machine's own frame table."""
    words = memoryview(held[0].observe().frames).cast("B").cast("Q")
    return unpack_frame(words[f])[1:3]


# --- the calls ---------------------------------------------------------------------------------------------------------------

def gdts(held: Held) -> list[Action]:
    f, second = frame(held, 5), frame(held, 6)
    return [table(held, 5, {1: CODE, 2: DATA, 3: 0x8C0000180000 | 1 << 45}), table(held, 6, {511: 1 << 41 | 1 << 47}),
            set_gdt((f,), 512), set_gdt((f,) * 14, 7168), set_gdt((f,), 7169), set_gdt((f, second), 513),
            set_gdt((f, frame(held, 7)), 513),
            set_gdt((frame(held, 5, 0),), 1), set_gdt((1 << 60,), 1), call(X.SET_GDT, EDGE, 1), call(X.SET_GDT, EDGE, 0),
            call(X.SET_GDT, va(4096), 1), set_gdt((f,), 1 << 32)]


def test_set_gdt(two: Held) -> None:
    assert values(two, gdts(two)) == [0, 0, 0, 0, -22, -22, -22, -22, -22, -14, 0, -14, 0]
    assert kind(two, frame(two, 5)) == (0, 0)
    assert values(two, gdts(two)[:4])[-1] == 0
    assert kind(two, frame(two, 5)) == (SEG_DESC, 14)


def updates(held: Held) -> list[Action]:
    f, data, tab = frame(held, 5), frame(held, 7), frame(held, -4)
    return [table(held, 5, {}), set_gdt((f,), 1), *(call(X.UPDATE_DESCRIPTOR, at, q) for at, q in (
        (f << 12 | 0xFF8, DATA), (data << 12, CODE), (f << 12 | 4, DATA), (f << 12, 1 << 47 | 2 << 40), (tab << 12, DATA),
        (frame(held, 7, 0) << 12, DATA), (1 << 63, DATA), (f << 12, 0), (f << 12 | 8, 0x8C00E0380000),
        (f << 12 | 8, 0x8C00E0330000))),
        set_gdt((), 0), call(X.UPDATE_DESCRIPTOR, f << 12 | 16, CODE), Load(1, va(5, 16))]


def test_update_descriptor(two: Held) -> None:
    assert values(two, updates(two)) == [0, 0, 0, 0, -22, -22, -22, -22, -22, 0, -22, 0, 0, 0, CODE | USER]


def ldts(held: Held) -> list[Action]:
    pairs = ((va(5), 8193), (va(5, 8), 1), (EDGE, 1), (HIGH - 4096, 1), (EDGE, 0), (va(5), 8192))
    return [*(set_ldt(*pair) for pair in pairs), table(held, 5, {1: DATA, 2: CODE}),
            load(0xF), load(0x17, "gs"), load(0x17, "ss"), load(0x100F), load(0xFFFF), load(0x1F)]


def test_set_ldt_and_its_pages(two: Held) -> None:
    found = outcomes(two, ldts(two))
    assert [o.value for o in found[:7]] == [-22, -22, -22, -22, 0, 0, 0]
    assert found[7:] == [Outcome(), Outcome(), Outcome(0, GP, 0x14), Outcome(0, PF, 0, va(6, 8)),
                         Outcome(0, PF, 0, va(5) + 0xFFF8), Outcome(0, GP, 0x1C)]
    assert kind(two, frame(two, 5)) == (SEG_DESC, 1)


@pytest.mark.parametrize(("drop", "kept"), [("set_ldt", 0), ("same", 1), ("put", 1), ("same_base", 1), ("new_base", 0)])
def test_what_drops_pages_of_the_ldt(two: Held, drop: str, kept: int) -> None:
    root, l4 = frame(two, -1), frame(two, 8)
    with_slots = tuple((va(8, 8 * i), (w,)) for i, w in root_words(two).items())
    actions: dict[str, list[Action]] = {
        "set_ldt": [set_ldt(va(5), 511)], "same": [set_ldt(va(5), 512)], "put": [call(X.UPDATE_VA_MAPPING, va(5), 0, 2)],
        "same_base": [listed(X.MMUEXT_OP, (X.NEW_BASEPTR, root, 0), 1, 0, DOMID_SELF)],
        "new_base": [Hypercall(1, X.UPDATE_VA_MAPPING, (va(8), l4 << 12 | RO, 2), with_slots),
                     listed(X.MMUEXT_OP, (X.NEW_BASEPTR, l4, 0), 1, 0, DOMID_SELF)]}
    found = values(two, [table(two, 5, {1: DATA}), set_ldt(va(5), 512), load(0xF), *actions[drop]])
    assert found == [0] * len(found)
    assert kind(two, frame(two, 5))[1] == kept


def root_words(held: Held) -> dict[int, int]:
    """The guest's own words of the domU's root table."""
    held[2].reset()
    row = held[2].concrete.row(frame(held, -1))
    return {i: w for i, w in row.items() if w and not X.XEN_FIRST <= i <= X.XEN_LAST}


def test_an_ldt_at_the_edge_of_the_addresses(two: Held) -> None:
    found = outcomes(two, [set_ldt(EDGE - 4096, 1024), load(0x1007), load(0xF), set_ldt((1 << 64) - 4096, 1024), load(0x100F)])
    assert found[1:3] == [Outcome(0, GP, 0x1004), Outcome(0, PF, 0, EDGE - 4096 + 8)]
    assert found[4] == Outcome(0, PF, 0, 8)


def bases(_: Held) -> list[Action]:
    return [call(X.SET_SEGMENT_BASE, which, base) for which in (0, 1, 2) for base in (0, HIGH, EDGE)] + [
        call(X.SET_SEGMENT_BASE, 4, 0),
        *(call(X.SET_SEGMENT_BASE, 3, sel) for sel in (0, 3, 0xE02B, 0xE008, 0xFFFF, EDGE | 0xE02B))]


def test_segment_bases(two: Held) -> None:
    assert values(two, bases(two)) == [0, 0, -22] * 3 + [-22] + [0] * 6


def test_xen_loads_gs_for_applications(two: Held) -> None:
    marked = [table(two, 5, {1: DATA, 2: CODE, 3: DATA}), set_ldt(va(5), 1024)]
    marked += [call(X.SET_SEGMENT_BASE, 3, sel) for sel in (0xC, 0x17, 0x100F)]
    assert values(two, [*marked, *(Load(1, va(5, 8 * i)) for i in (1, 2, 3))])[-3:] == [
        DATA | USER | ACCESSED, CODE | USER | ACCESSED, DATA | USER]
    assert kind(two, frame(two, 5)) == (SEG_DESC, 1)


def handlers(held: Held) -> list[Action]:
    def entry(v: int, address: int) -> tuple[int, int]:
        return v | 3 << 8 | 0x18 << 16, address
    last = va(held[1].domains[1].pages, 0xFF0)
    return [listed(X.SET_TRAP_TABLE, (*entry(0x30, 0x1000), *entry(3, HIGH), 0, 0)), call(X.SET_TRAP_TABLE, 0),
            listed(X.SET_TRAP_TABLE, (*entry(0x30, 1), *entry(0x31, EDGE), *entry(0x32, 1), 0, 0)), call(X.SET_TRAP_TABLE, EDGE),
            call(X.SET_TRAP_TABLE, va(4096)), Store(1, va(4096), 0), call(X.SET_TRAP_TABLE, last + 0x10)]


def test_set_trap_table(two: Held) -> None:
    found = outcomes(two, handlers(two))
    assert [o.value for o in found if o.vector < 0] == [0, 0, -22, -14, -14, -14]
    assert found[5].vector == PF                # handlers are there again


def entries(_: Held) -> list[Action]:
    found: list[Action] = [callback(command, each, address) for each in (0, 1, 2, 3, 4, 5, 6, 7, 8)
                           for command in (0, 1) for address in (0x1000, EDGE)]
    return [*found, callback(2, 0), call(X.CALLBACK_OP, 0, va(4096)), call(X.CALLBACK_OP, 1, va(4096)),
            call(X.SET_CALLBACKS, 0x1000, EDGE, HIGH), call(X.SET_CALLBACKS, EDGE, EDGE, EDGE),
            call(X.STACK_SWITCH, 0xE028, va(13)), call(X.STACK_SWITCH, 0, EDGE),
            call(X.FPU_TASKSWITCH, 1), call(X.FPU_TASKSWITCH, 0)]


def test_callbacks_stack_and_fpu(two: Held) -> None:
    known, nmi, none = [0, -22, -22, -22], [0, -22, 0, 0], [-38, -22, -38, -38]
    assert values(two, entries(two)) == [*known * 3, *none, *nmi, *known, *none, *known, *none, -38, -14, -14, 0, 0, 0, 0, 0, 0]


def breakpoints(_: Held) -> list[Action]:
    pairs = ((0, EDGE - 1), (1, HIGH), (2, EDGE), (3, HIGH - 1), (4, 0xFFFFFFFF), (5, 0x20000), (6, 1 << 32), (7, 0x2000), (8, 0),
             (0, ASIDE), (7, 1), (7, 0x20001), (7, 0x200002), (7, 0x80001), (7, 0x30001), (7, 1 << 32), (0xFFFFFFFF, 0), (7, 0))
    return [action for r, value in pairs for action in (call(X.SET_DEBUGREG, r, value), call(X.GET_DEBUGREG, r))]


def test_debug_registers(two: Held) -> None:
    found = values(two, breakpoints(two))
    assert found[::2] == [0, 0, -1, -1, 0, 0, -22, -1, -19, 0, 0, -1, -1, 0, 0, -22, -19, 0]
    assert found[9::2][:2] == [0xFFFFEFFF, 0x20400]
    assert values(two, [call(X.GET_DEBUGREG, r) for r in range(9)]) == [0, 0, 0, 0, 0xFFFF0FF0, 0x400, 0xFFFF0FF0, 0x400, -19]


def test_a_breakpoint_that_might_strike_is_left_out(two: Held) -> None:
    with pytest.raises(LeftOut, match=BREAKPOINTS):
        outcomes(two, [call(X.SET_DEBUGREG, 0, va(5)), call(X.SET_DEBUGREG, 7, 1)])


PROGRAMS: list[Callable[[Held], list[Action]]] = [gdts, updates, ldts, bases, handlers, entries, breakpoints]
# the errors that each command can end with: a call without any always does what it says
ENDS = {"set_gdt": {"EINVAL", "EFAULT"}, "update_descriptor": {"EINVAL"}, LDT_PAGE: {"EINVAL"},
        "set_trap_table": {"EINVAL", "EFAULT"},
        **{f"set_segment_base {base}": {"EINVAL"} for base in ("FS", "GS_USER", "GS_KERNEL")},
        "callback_op register": {"EINVAL", "EFAULT", "ENOSYS"}, "callback_op unregister": {"EINVAL", "EFAULT", "ENOSYS"},
        "set_debugreg": {"ENODEV", "EINVAL", "EPERM"}, "get_debugreg": {"ENODEV"}, "mmuext_op SET_LDT": {"EINVAL", "EPERM"}}
NEVER_DONE = {"callback_op unassigned": "ENOSYS", "set_segment_base unassigned": "EINVAL"}


def test_every_command_is_given_both_ways(two: Held) -> None:
    """What the programs of this module, which machine and model agree on, reach."""
    machine, reached = two[2], set[tuple[str, str]]()
    foreign = Hypercall(0, X.MMUEXT_OP, (BUFFER, 1, 0, 1), ((BUFFER, (X.SET_LDT, va(5), 1)),))
    assert values(two, [foreign]) == [-1]
    for actions in ([foreign], *(program(two) for program in PROGRAMS)):
        machine.reset()
        for action in actions:
            machine.step(action)
            reached.update(machine.did)
    names = [*(name for section in WING for name in COMMANDS[section]), "set_debugreg", "get_debugreg", "mmuext_op SET_LDT"]
    ends = {name: {NEVER_DONE[name]} if name in NEVER_DONE else {DONE, *ENDS.get(name, ())} for name in names}
    assert {(name, end) for name in names for end in ends[name]} - reached == set()


# --- segment registers -------------------------------------------------------------------------------------------------------

SEGMENTS = {1: DATA, 2: CODE, 3: DATA & ~(1 << 47) | USER, 4: DATA & ~(1 << 41), 5: CODE & ~(1 << 41), 6: 0x8C0000180000}


@pytest.mark.parametrize("in_ldt", [0, 4])
def test_loads_from_a_table(two: Held, in_ldt: int) -> None:
    begin = [table(two, 5, SEGMENTS), set_ldt(va(5), 512) if in_ldt else set_gdt((frame(two, 5),), 1)]
    for register in ("es", "ds", "fs", "gs", "ss"):
        found = outcomes(two, [*begin, *(load(8 * n | in_ldt | 3, register) for n in range(1, 8)),
                               *(Load(1, va(5, 8 * i)) for i in range(1, 7))])
        good = [-1, GP, SS, GP, GP, GP, GP] if register == "ss" else [-1, -1, NP, -1, GP, GP, GP]
        assert [o.vector for o in found[2:9]] == good
        assert [o.value >> 40 & 1 for o in found[9:]] == [int(v < 0) for v in good[:6]]


def test_xens_own_segments(two: Held) -> None:
    selectors = (0, 3, 0xE02B, 0xE028, 0xE023, 0xE033, 0xE008, 0xE010, 0xE019, 0xE040, 0xE060, 0xF000, 0xFFF8)
    assert [o.vector for o in outcomes(two, [load(s) for s in selectors])] == [-1] * 6 + [GP] * 7
    assert [o.vector for o in outcomes(two, [load(s, "ss") for s in selectors])] == [GP, GP, -1] + [GP] * 10


def test_an_application_loads_from_the_ldt(two: Held) -> None:
    user_root = listed(X.MMUEXT_OP, (X.NEW_USER_BASEPTR, frame(two, -1), 0), 1, 0, DOMID_SELF)
    loads = [load(0xF, user=True), load(0x100F, "fs", user=True), load(0xF, "ss", user=True), load(0xC, "ss", user=True)]
    found = outcomes(two, [user_root, table(two, 5, {1: DATA}), set_ldt(va(5), 1024), *loads])
    assert found[3:] == [Outcome(), Outcome(0, PF, PF_USER, va(6, 8)), Outcome(), Outcome(0, GP, 0xC)]


def test_a_new_gdt_is_in_force_at_once(two: Held) -> None:
    found = outcomes(two, [table(two, 5, {1: DATA}), table(two, 6, {1: DATA & ~(1 << 47) | USER}), set_gdt((frame(two, 5),), 2),
                           load(0xB), set_gdt((frame(two, 6),), 2), load(0xB), load(0xB, d=0), set_gdt((), 0), load(0xB)])
    assert [o.vector for o in found[3:]] == [-1, -1, NP, GP, -1, GP]


def test_a_table_in_force_is_not_written(two: Held) -> None:
    f = frame(two, 5)
    found = outcomes(two, [table(two, 5, {1: DATA}), set_gdt((f,), 2), call(X.UPDATE_VA_MAPPING, va(5), f << 12 | RO | 2, 2),
                           listed(X.MMU_UPDATE, (f << 12 | 8, 0), 1, 0, DOMID_SELF), Store(1, va(5, 8), 0),
                           listed(X.MMUEXT_OP, (X.PIN_L1, f, 0), 1, 0, DOMID_SELF),
                           listed(X.MMUEXT_OP, (X.CLEAR_PAGE, f, 0), 1, 0, DOMID_SELF)])
    assert [o.vector if o.vector >= 0 else o.value for o in found[2:]] == [-16, -22, PF, -22, -22]
