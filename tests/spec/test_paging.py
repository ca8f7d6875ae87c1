"""The walk, against the manual (Intel SDM vol. 3A ch. 4), in its three geometries."""
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refmodel.state import ConcreteState
from spec.abi import GP, NX, PF, PF_FETCH, PF_PROT, PF_RSVD, PF_USER, PF_WRITE, PSE, RW, US, A, D, G, P
from spec.profile import PAE, X86_32, X86_64, XEN_4_17, XEN_2003, Profile
from spec.x86.paging import THROUGH_XEN, Fault, index_at, is_canonical, mark_used, require_segment, root_of, walk

PROFILES = {
    "x86-32": XEN_2003,
    "pae": replace(XEN_2003, name="pae", geometry=PAE, root=3, entries=512, word_bits=64, word_bytes=8, mfn_mask=PAE.mfn_mask,
                   xen_first=512, xen_last=511, self_slot=0),
    "x86-64": XEN_4_17,
}
FULL = P | RW | US
ROOT, DATA = 1, 9                           # the tables are frames 1, 2, ..: the root first
# An address whose index is different at each level, and in no slot of Xen's.
VA = {"x86-32": 5 << 22 | 7 << 12 | 0x123, "pae": 1 << 30 | 5 << 21 | 7 << 12 | 0x123,
      "x86-64": 2 << 39 | 3 << 30 | 5 << 21 | 7 << 12 | 0x123}


class Tables:
    """A way through the tables to frame DATA, every right granted; a test takes one away."""

    def __init__(self, profile: Profile) -> None:
        self.profile, self.geometry = profile, profile.geometry
        self.va = VA[self.geometry.name]
        self.s: Any = ConcreteState(profile, frames=64)
        n = len(self.geometry.levels)
        self.slots = [(ROOT + k, index_at(level, self.va)) for k, level in enumerate(reversed(self.geometry.levels))]
        for k, slot in enumerate(self.slots):
            bits = FULL if self.geometry.levels[n - 1 - k].rights else P
            self.s.word[slot] = (slot[0] + 1 if k < n - 1 else DATA) << 12 | bits

    def change(self, level: int, off: int = 0, on: int = 0) -> None:
        """Other bits in the entry of a level, counted from 1, the page table."""
        slot = self.slots[-level]
        self.s.word[slot] = self.s.word[slot] & ~off | on

    def walk(self, user: bool = True, write: bool = True, fetch: bool = False) -> int:
        """The translation."""
        return walk(self.s, ROOT, self.va, user, write, fetch)[0]

    def fault(self, **access: bool) -> int:
        """The error code of the page fault that an access ends in; CR2 is its address."""
        with pytest.raises(Fault) as caught:
            self.walk(**access)
        assert (caught.value.vector, caught.value.address) == (PF, self.va)
        return caught.value.error


@pytest.fixture(params=PROFILES)
def tables(request: pytest.FixtureRequest) -> Tables:
    """Tables of each geometry."""
    return Tables(PROFILES[request.param])


@pytest.fixture
def long_tables() -> Tables:
    """Tables of four levels."""
    return Tables(XEN_4_17)


def levels(*, rights: bool = True) -> Any:
    """Each geometry with each of its levels (that has rights)."""
    return pytest.mark.parametrize(("name", "level"), [
        (name, n) for name, p in PROFILES.items() for n, level in enumerate(p.geometry.levels, 1) if level.rights or not rights])


# --- step by step ------------------------------------------------------------------------------------------------------------

def test_a_walk_gives_the_frame_and_the_entries_that_it_used(tables):
    found, used = walk(tables.s, ROOT, tables.va, True, True, False)
    assert found == DATA << 12 | FULL
    assert used == tuple(tables.slots), "the root first"


@levels(rights=False)
def test_an_entry_that_is_not_present_faults_with_p_clear(name, level):
    t = Tables(PROFILES[name])
    t.change(level, off=P)
    assert t.fault(user=False, write=False) == 0
    assert t.fault(user=True, write=False) == PF_USER
    assert t.fault(user=False, write=True) == PF_WRITE
    assert t.fault(user=True, write=True) == PF_USER | PF_WRITE
    assert t.fault(user=True, write=False, fetch=True) == PF_USER | (PF_FETCH if t.geometry.has_nx else 0)


@levels()
def test_rw_clear_anywhere_refuses_stores_even_of_the_kernel(name, level):
    """CR0.WP = 1."""
    t = Tables(PROFILES[name])
    t.change(level, off=RW)
    assert t.walk(write=False) == DATA << 12 | P | US
    assert t.fault(user=True) == PF_PROT | PF_WRITE | PF_USER
    assert t.fault(user=False) == PF_PROT | PF_WRITE


@levels()
def test_us_clear_anywhere_refuses_users(name, level):
    t = Tables(PROFILES[name])
    t.change(level, off=US)
    assert t.walk(user=False) == DATA << 12 | P | RW
    assert t.fault(user=True) == PF_PROT | PF_WRITE | PF_USER
    assert t.fault(user=True, write=False) == PF_PROT | PF_USER


@levels()
def test_nx_anywhere_refuses_fetches(name, level):
    t = Tables(PROFILES[name])
    if not t.geometry.has_nx:
        assert t.walk(write=False, fetch=True) == DATA << 12 | FULL
        return
    t.change(level, on=NX)
    assert t.walk() == DATA << 12 | FULL | NX
    assert t.fault(write=False, fetch=True) == PF_PROT | PF_USER | PF_FETCH
    assert t.fault(user=False, write=False, fetch=True) == PF_PROT | PF_FETCH


def test_a_page_table_entry_comes_before_the_rights_of_the_levels_above(tables):
    """Presence is checked on the way down, rights at the end: what is not present faults with P clear."""
    tables.change(1, off=P)
    tables.change(2, off=RW | US)
    assert tables.fault() == PF_WRITE | PF_USER


# --- large pages -------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("name", "level", "size"), [("x86-32", 2, 4 << 20), ("pae", 2, 2 << 20), ("x86-64", 2, 2 << 20),
                                                     ("x86-64", 3, 1 << 30)])
def test_a_large_page_takes_the_low_bits_of_the_frame_from_the_address(name, level, size):
    t = Tables(PROFILES[name])
    base = 3 * size
    t.s.word[t.slots[-level]] = base | PSE | FULL | G | D
    found, used = walk(t.s, ROOT, t.va, True, True, False)
    assert found == (base + t.va % size) >> 12 << 12 | FULL | G | D
    assert used == tuple(t.slots[:len(t.slots) + 1 - level])


@pytest.mark.parametrize(("name", "level", "bit"), [
    ("x86-32", 2, 13), ("x86-32", 2, 21), ("pae", 2, 13), ("pae", 2, 20), ("x86-64", 2, 13), ("x86-64", 2, 20), ("x86-64", 3, 13),
    ("x86-64", 3, 29)])
def test_the_address_bits_below_a_large_page_are_reserved(name, level, bit):
    t = Tables(PROFILES[name])
    t.s.word[t.slots[-level]] = PSE | FULL
    assert t.walk() & P
    t.change(level, on=1 << bit)
    assert t.fault(write=False) == PF_PROT | PF_RSVD | PF_USER


def test_pat_of_a_large_page_is_not_reserved(tables):
    tables.s.word[tables.slots[-2]] = PSE | FULL | 1 << 12
    assert tables.walk() & P


def test_a_pse_bit_in_a_page_table_entry_is_pat(tables):
    tables.change(1, on=PSE)
    assert tables.walk() == DATA << 12 | FULL


# --- reserved bits -----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("name", "level", "bit"), [
    ("pae", 1, 52), ("pae", 1, 62), ("pae", 2, 57), ("pae", 3, 63), ("pae", 3, 62), ("pae", 3, 1), ("pae", 3, 2), ("pae", 3, 5),
    ("pae", 3, 8), ("x86-64", 4, 7)])
def test_a_reserved_bit_faults_whatever_the_access(name, level, bit):
    t = Tables(PROFILES[name])
    t.change(level, on=1 << bit)
    assert t.fault(user=False, write=False) == PF_PROT | PF_RSVD
    assert t.fault() == PF_PROT | PF_RSVD | PF_USER | PF_WRITE


@pytest.mark.parametrize(("name", "level", "bit"), [("x86-64", 1, 52), ("x86-64", 2, 62), ("x86-64", 4, 52), ("x86-64", 4, 9),
                                                    ("x86-32", 1, 9), ("x86-32", 2, 11), ("pae", 1, 11), ("pae", 3, 9)])
def test_ignored_bits_are_ignored(name, level, bit):
    t = Tables(PROFILES[name])
    t.change(level, on=1 << bit)
    assert t.walk() == DATA << 12 | FULL


def test_a_reserved_bit_of_an_absent_entry_is_none(tables):
    tables.s.word[tables.slots[-1]] = tables.profile.all_ones ^ P
    assert not tables.fault() & PF_PROT


def test_a_pae_directory_pointer_has_no_rights_to_grant_or_refuse(long_tables):
    t = Tables(PROFILES["pae"])
    assert t.s.word[t.slots[0]] & (RW | US) == 0
    assert t.walk() & FULL == FULL
    long_tables.change(4, off=RW | US)
    assert long_tables.fault(user=False) == PF_PROT | PF_WRITE


# --- addresses ---------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("va", "canonical"), [
    (0, True), (0x7FFFFFFFFFFF, True), (0x800000000000, False), (0xFFFF7FFFFFFFFFFF, False), (0xFFFF800000000000, True),
    (0xFFFFFFFFFFFFFFFF, True), (0x0001000000000000, False)])
def test_canonical_addresses_of_48_bits(va, canonical):
    assert is_canonical(X86_64, va) == canonical


def test_every_32_bit_address_is_canonical():
    assert all(is_canonical(g, va) for g in (X86_32, PAE) for va in (0, 0x80000000, 0xFFFFFFFF))
    assert not is_canonical(X86_32, 1 << 32)


@pytest.mark.parametrize(("name", "va", "size", "faults"), [
    ("x86-32", 0xFC3FFFFC, 4, False), ("x86-32", 0xFC3FFFFD, 4, True), ("x86-32", 0xFC400000, 1, True),
    ("x86-32", 0xFFFFFFFF, 4, True),
    ("x86-64", 0x7FFFFFFFFFF8, 8, False), ("x86-64", 0x7FFFFFFFFFF9, 8, True), ("x86-64", 0xFFFF800000000000, 8, False),
    ("x86-64", 0xFFFF7FFFFFFFFFFF, 1, True)])
def test_an_access_beyond_the_segment_or_not_canonical_is_a_general_protection_fault(name, va, size, faults):
    s: Any = ConcreteState(PROFILES[name], 1)
    if not faults:
        require_segment(s, va, size)
        return
    with pytest.raises(Fault) as caught:
        require_segment(s, va, size)
    assert (caught.value.vector, caught.value.error, caught.value.address) == (GP, 0, 0)


@pytest.mark.parametrize("name", PROFILES)
def test_indexes_take_an_address_apart(name):
    g = PROFILES[name].geometry
    va = VA[name]
    assert sum(index_at(level, va) << level.shift for level in g.levels) + va % 4096 == va


def test_user_mode_of_x86_64_has_a_root_of_its_own():
    for p, root in ((XEN_2003, 1), (XEN_4_17, 2)):
        s: Any = ConcreteState(p, 1)
        s.base[1], s.user_base[1] = 1, 2
        assert (root_of(s, 1, False), root_of(s, 1, True)) == (1, root)


def test_a_way_through_xens_slot_is_marked_to_its_end(long_tables):
    t = long_tables
    t.s.type[ROOT] = 4
    t.va = t.profile.xen_first << 39 | t.va & (1 << 39) - 1
    t.s.word[ROOT, t.profile.xen_first] = t.s.word[t.slots[0]]
    assert t.walk() == DATA << 12 | FULL | THROUGH_XEN
    t.s.type[ROOT] = 3
    assert t.walk() == DATA << 12 | FULL, "they are Xen's in a root table only"


def test_a_software_bit_marks_nothing(tables):
    """THROUGH_XEN is a bit that guests may set in their entries, at every level."""
    for n in range(1, len(tables.slots) + 1):
        tables.change(n, on=THROUGH_XEN)
    assert tables.walk() == DATA << 12 | FULL


# --- accessed and dirty ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("write", [False, True])
def test_a_walk_marks_accessed_everywhere_and_a_store_marks_dirty_at_the_end(tables, write):
    t = tables
    _, used = walk(t.s, ROOT, t.va, True, write, False)
    before = {slot: t.s.word[slot] for slot in used}
    mark_used(t.s, used, write)
    marks = [t.s.word[slot] ^ before[slot] for slot in used]
    assert marks[-1] == (A | D if write else A)
    assert marks[1:-1] == [A] * len(marks[1:-1])
    assert marks[0] == (A if t.geometry.levels[-1].rights else 0), "a PAE directory pointer has no accessed bit"
    log = t.s.mark()
    mark_used(t.s, used, write)
    assert t.s.mark() == log, "what is marked is not marked again"


def test_a_walk_itself_writes_nothing(tables):
    mark = tables.s.mark()
    tables.walk()
    assert tables.s.mark() == mark


def test_a_large_page_is_marked_dirty_in_its_directory_entry(tables):
    tables.s.word[tables.slots[-2]] = PSE | FULL
    _, used = walk(tables.s, ROOT, tables.va, True, True, False)
    mark_used(tables.s, used, True)
    assert tables.s.word[tables.slots[-2]] == PSE | FULL | A | D
    assert tables.s.word[tables.slots[-1]] & (A | D) == 0


# --- an oracle of its own ----------------------------------------------------------------------------------------------------
# Written from the manual's tables 4-4..4-20 as flat data, with nothing of the walk in it: for each level from the last one, the
# shift of its index, which bits are reserved, which with PSE set, and whether PSE makes a large page.

HIGH = range(52, 63)
MANUAL: Mapping[str, list[tuple[int, int, tuple[int, ...], tuple[int, ...], bool]]] = {
    "x86-32": [(12, 10, (), (), False), (22, 10, (), tuple(range(13, 22)), True)],
    "pae": [(12, 9, (*HIGH,), (), False), (21, 9, (*HIGH,), (*HIGH, *range(13, 21)), True),
            (30, 2, (1, 2, 5, 6, 7, 8, *HIGH, 63), (), False)],
    "x86-64": [(12, 9, (), (), False), (21, 9, (), tuple(range(13, 21)), True), (30, 9, (), tuple(range(13, 30)), True),
               (39, 9, (7,), (), False)],
}


def oracle(memory: Mapping[tuple[int, int], int], mode: str, va: int, user: bool, write: bool, fetch: bool) -> tuple[int, str]:
    """(error code, "fault") or (physical address of the byte, rights as text), by the manual."""
    nx = mode != "x86-32"
    code = 2 * write + 4 * user + 16 * (fetch and nx)
    frame, way = ROOT, []
    for level in range(len(MANUAL[mode]), 0, -1):
        shift, bits, reserved, reserved_large, may_be_large = MANUAL[mode][level - 1]
        e = memory.get((frame, va // 2 ** shift % 2 ** bits), 0)
        if not e % 2:
            return code, "fault"
        large = may_be_large and bool(e & 0x80)
        if any(e >> bit & 1 for bit in (reserved_large if large else reserved)):
            return code + 1 + 8, "fault"
        way.append(e | 6 if mode == "pae" and level == 3 else e)
        frame = e // 4096 % 2 ** (20 if mode == "x86-32" else 40)
        if level == 1 or large:
            size = 2 ** shift
            break
    can_write, can_user = (all(e >> bit & 1 for e in way) for bit in (1, 2))
    no_fetch = nx and any(e >> 63 for e in way)
    if (write and not can_write) or (user and not can_user) or (fetch and no_fetch):
        return code + 1, "fault"
    return frame * 4096 // size * size + va % size, f"{can_write} {can_user} {no_fetch}"


@st.composite
def memories(draw: st.DrawFn, mode: str) -> tuple[dict[tuple[int, int], int], int]:
    """Tables along one address, mostly sound, and an address."""
    g = PROFILES[mode].geometry
    va = draw(st.integers(0, 2 ** g.levels[-1].shift * 2 ** g.levels[-1].bits - 1))
    memory = {}
    interesting = [*range(10), 12, 13, 20, 21, 29, *((52, 62, 63) if g.word_bits == 64 else (31,))]
    for n, level in enumerate(reversed(g.levels)):
        e = (ROOT + n + 1) << 12 | (FULL if level.rights else P)
        for bit in draw(st.lists(st.sampled_from(interesting), max_size=2)):
            e ^= 1 << bit
        memory[ROOT + n, index_at(level, va)] = e
    return memory, va


@pytest.mark.parametrize("mode", PROFILES)
@given(data=st.data(), user=st.booleans(), write=st.booleans(), fetch=st.booleans())
def test_the_walk_is_the_manuals(mode, data, user, write, fetch):
    memory, va = data.draw(memories(mode))
    fetch = fetch and not write
    s: Any = ConcreteState(PROFILES[mode], 64)
    for key, e in memory.items():
        s.word[key] = e
    expected = oracle(memory, mode, va, user, write, fetch)
    if expected[1] == "fault":
        with pytest.raises(Fault) as caught:
            walk(s, ROOT, va, user, write, fetch)
        assert (caught.value.vector, caught.value.error, caught.value.address) == (PF, expected[0], va)
        return
    found, _ = walk(s, ROOT, va, user, write, fetch)
    address = (found >> 12 & PROFILES[mode].geometry.mfn_mask) << 12 | va & 0xFFF
    assert expected == (address, f"{bool(found & RW)} {bool(found & US)} {bool(found & NX)}")
