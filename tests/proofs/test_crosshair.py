"""Contracts of the leaf functions: the engine proves all, CrossHair what it can decide, and each contract can fail."""
import importlib.util
import inspect
import sys
from pathlib import Path
from random import Random

import pytest
import z3
from hypothesis import given
from hypothesis import strategies as st

from proofs import contract_proof, leaves
from proofs.contract_proof import decided, judged
from proofs.contracts import Contract, Finding, contract, contracts, row_name
from proofs.crosshair_run import DECIDES, crosshair, is_installed, parse
from proofs.discharge import Options, discharge
from proofs.ledger import LEAVES, PROVED, REFUTED, UNKNOWN
from proofs.obligations import obligations, select
from proofs.symbolic.sorts import Sorts
from proofs.symbolic.terms import build, node
from spec.kernel import RULES
from spec.profile import XEN_4_17

ALL = contracts()
BY_NAME = {c.name: c for c in ALL}
needs_crosshair = pytest.mark.skipif(
    not is_installed(), reason="NOT CHECKED BY CROSSHAIR: pip install 'crosshair-tool>=0.0.113,<0.1' (or '.[proofs]')")


# --- what holds --------------------------------------------------------------------------------------------------------------

def test_every_contract_has_a_sentence_and_a_range_for_each_number():
    assert len(ALL) >= 50
    for c in ALL:
        assert c.sentence.endswith("."), c.name
        assert len(c.sentence) > 30, c.name
        assert "pre:" not in c.sentence, c.name
    assert [c.first for c in ALL] == sorted(c.first for c in ALL)
    without = {n for n, f in inspect.getmembers(leaves, inspect.isfunction) if f.__module__ == leaves.__name__} - set(BY_NAME)
    assert without == {"profile", "state", "at", "level_of", "passes_segment", "width"}      # helpers


@pytest.mark.parametrize("name", BY_NAME)
def test_the_engine_proves_every_contract(name):
    assert decided(BY_NAME[name]).finding == Finding(PROVED)


@pytest.mark.parametrize("name", BY_NAME)
def test_contracts_hold_on_random_numbers(name):
    """No tool in between: a term that misled the solver would show here."""
    random, checked = Random(name), BY_NAME[name]
    for _ in range(400):
        arguments: dict[str, int] = {}
        for parameter, kind in checked.parameters.items():
            fresh = random.getrandbits(random.choice((2, 3, 10, 20, 32, 48, 64)))
            near = random.choice([*arguments.values(), fresh]) ^ (1 << random.randrange(64))
            arguments[parameter] = bool(fresh & 1) if kind is bool else random.choice((fresh, fresh, near))
        assert not checked.meets(arguments) or checked.keeps(arguments), arguments


def test_the_contracts_that_crosshair_decides_are_contracts():
    assert set(BY_NAME) > DECIDES


@needs_crosshair
@pytest.mark.parametrize("name", sorted(DECIDES))
def test_crosshair_confirms_what_it_can_decide(name):
    assert crosshair(BY_NAME[name]) == Finding(PROVED)


@needs_crosshair
@pytest.mark.long
def test_crosshair_finds_no_counterexample_to_the_others_either():
    found = {c.name: crosshair(c, budget=5).verdict for c in ALL if c.name not in DECIDES}
    assert set(found.values()) <= {PROVED, UNKNOWN}


# --- it can fail -------------------------------------------------------------------------------------------------------------
# A wrong leaf, as text that is put after the module's own, and the contracts that must notice.

PLANTED = {
    "typed references get one bit too few": (
        "def unpack_frame(w): return w >> 48, w >> 44 & 7, w & 0x1FFFFF, w >> 22 & 0x3FFFFF, bool(w >> 47 & 1)",
        "frame_word_gives_back_what_was_packed", "frame_word_is_packed_again_from_its_parts"),
    "the type of an idle frame shows": (
        "def pack_frame(o, k, t, r, p): return t | r << 22 | k << 44 | p << 47 | o << 48",
        "frame_word_hides_the_type_of_an_idle_frame"),
    "the owner loses its highest bits": (
        "def pack_frame(o, k, t, r, p): return t | r << 22 | k << 44 | p << 47 | (o & 0x3FFF) << 48\nFREE_FRAME = 0x3FF4 << 48",
        "frame_word_of_a_domain_is_not_that_of_a_free_frame"),
    "a frame number begins one bit too low": (
        "def mfn_of(s, e): return (e >> 11) & s.profile.mfn_mask",
        "entry_names_the_frame_it_was_made_of"),
    "a frame number includes the high flags": (
        "def mfn_of(s, e): return e >> 12",
        "entry_names_a_frame_that_a_word_can_hold"),
    "L1 counts as an upper table": (
        "def is_upper(s, t): return L1 <= t <= s.profile.root",
        "upper_tables_are_the_tables_above_l1"),
    "an absent entry holds a reference": (
        "def refers_by(s, g, t, e): return PLAIN if e & RW == 0 else TYPED",
        "absent_entry_refers_to_nothing", "writable_mapping_holds_a_typed_reference",
        "linear_reference_is_to_another_table_of_the_level", "writable_self_map_holds_no_reference"),
    "no bit is illegal": (
        "def legal_bits(s, t, e): return True",
        "legal_entry_has_no_reserved_bit", "legal_upper_entry_is_no_large_page"),
    "the frame's lowest bit is illegal": (
        "def legal_bits(s, t, e): return e & (s.profile.forbidden_l1 | 0x1000) == 0",
        "legality_is_not_a_matter_of_frame_or_rights"),
    "adjusting flips US": (
        "def adjusted(s, t, e): return e ^ US",
        "adjusting_clears_nothing", "adjusting_twice_is_adjusting_once", "adjusting_opens_pages_to_ring_3"),
    "adjusting grants RW": (
        "def adjusted(s, t, e): return e | RW | US",
        "adjusting_clears_nothing", "adjusting_keeps_frame_and_authority"),
    "the fast path ignores the frame's lowest bit": (
        "def same_authority(s, t, old, new): return old & P != 0 and (old ^ new) & (s.profile.authority_l1 & ~0x1000) == 0",
        "fast_path_moves_no_reference"),
    "the fast path ignores P and RW": (
        "def same_authority(s, t, old, new): return old & P != 0 and (old ^ new) & ~(P | RW | US | A | D) == 0",
        "fast_path_goes_both_ways", "fast_path_grants_no_writing"),
    "Xen's first slot is one too high": (
        "def is_xen_slot(s, t, i): return t == s.profile.root and s.profile.xen_first < i <= s.profile.xen_last",
        "xen_slots_cover_exactly_the_hole_of_2003", "xen_slots_cover_exactly_the_hole_of_4_17",
        "stretch_not_clear_of_xen_has_a_slot_of_xen"),
    "every table has Xen's slots": (
        "def is_xen_slot(s, t, i): return s.profile.xen_first <= i <= s.profile.xen_last",
        "xen_slots_are_of_a_root_table"),
    "a stretch may end with Xen's first slot": (
        "def is_clear_of_xen(s, t, i, end): p = s.profile; return t != p.root or end <= p.xen_first + 1 or i > p.xen_last",
        "stretch_clear_of_xen_has_no_slot_of_xen"),
    "the self-map is in the next slot": (
        "def xen_entry(s, g, i): return (g << 12) | s.xen_word[0, i] if i == s.profile.self_slot + 1 else s.xen_word[0, i]",
        "self_slot_names_its_own_table"),
    "an index has one bit too many": (
        "def index_at(level, va): return (va >> level.shift) & ((2 << level.bits) - 1)",
        "index_lies_in_the_table", "indices_and_offset_make_up_the_address"),
    "an address is canonical from bit 48 on": (
        "def is_canonical(g, va): top = va >> g.canonical_bits; return top == 0 or top == (1 << (64 - g.canonical_bits)) - 1",
        "canonical_address_is_a_sign_extension", "canonical_address_of_32_bits_is_any"),
    "only the first byte's address need be canonical": (
        "def require_segment(s, va, size):\n    if not is_canonical(s.profile.geometry, va): raise Fault(13, 0)",
        "segment_of_4_17_does_not_cross_the_middle"),
    "a segment is one byte too long": (
        "def require_segment(s, va, size):\n    if va + size > s.profile.guest_end + 1: raise Fault(13, 0)",
        "segment_of_2003_ends_below_xen"),
    "users are supervisors": (
        "def is_supervisor(s, user): return s.profile.ring1_kernel",
        "kernel_is_a_supervisor_in_ring_1_only"),
    "rights are united": (
        "def combine(g, level, rights, e): return (rights | e) & (RW | US | NX | THROUGH_XEN)",
        "combining_adds_no_right", "combining_keeps_nx", "combining_takes_the_mark_of_xen_from_the_way",
        "entry_without_rights_restricts_nothing", "longer_way_allows_no_more"),
    "only the last entry counts": (
        "def combine(g, level, rights, e): return e & (RW | US | NX) | rights & THROUGH_XEN",
        "combining_is_free_of_order", "combining_adds_no_right"),
    "RW forbids": (
        "def allows(rights, user, write, fetch): return not (write and rights & RW != 0 or user and rights & US == 0)",
        "more_rights_allow_more", "access_needs_its_right"),
    "a store needs no US": (
        "def allows(rights, user, write, fetch): return not (user and not write and rights & US == 0)",
        "gentler_access_is_allowed_too", "access_needs_its_right"),
    "a fetch always shows": (
        "def fault_code(g, present, user, write, fetch): return present | write << 1 | user << 2 | fetch << 4",
        "fault_code_tells_the_access"),
    "a large page ends the walk at any level": (
        "def is_leaf(level, number, e): return number == 1 or e & PSE != 0",
        "last_level_ends_the_walk"),
    "a reserved bit is one only alone": (
        "def has_reserved(level, g, e): return e == level.reserved",
        "reserved_bit_stays_reserved"),
    "a large page's frame is the entry's": (
        "def leaf_frame(g, level, e, va): return (e >> 12) & g.mfn_mask",
        "large_page_takes_its_low_bits_from_the_address", "pages_of_a_large_page_are_consecutive_frames"),
    "a small page takes a bit from the address": (
        "def leaf_frame(g, level, e, va): return (e >> 12) & g.mfn_mask ^ (va >> 12 & 1)",
        "small_page_is_the_entrys_frame"),
    "a tag is the page": (
        "def tag_of(v, fetch): return 2 * v",
        "tag_tells_page_and_kind", "tags_of_different_pages_differ"),
    "D is set by every access": (
        "def mark_used(s, used, write):\n    for key in used: s.word[key] = s.word[key] | A | D",
        "walk_marks_what_it_used"),
    "marks set a frame's bit": (
        "def mark_used(s, used, write):\n    for key in used: s.word[key] = s.word[key] | A << 7",
        "marks_change_neither_frame_nor_legality", "walk_marks_what_it_used"),
    "a segment may expand down": (
        "def legal_descriptor(s, q): return q & PRESENT == 0 or (dpl_of(q) > 0 and base_of(q) < s.profile.guest_end)",
        "legal_segment_of_2003_ends_below_xen", "legal_gate_of_2003_leads_to_ring_1"),
    "only what was used is legal": (
        "def legal_descriptor(s, q): return q & ACCESSED == 0",
        "use_of_a_segment_makes_nothing_legal"),
    "a segment's privilege stays": (
        "def adjusted_descriptor(s, q): return q",
        "descriptor_of_4_17_has_no_privilege"),
    "code that conforms is not kept": (
        "def kept(value, q, cpl): return 0 if dpl_of(q) < cpl else value",
        "segment_is_kept_or_emptied"),
    "only the first word needs room": (
        "def holds(q, start, words, size): return in_limit(q, place(q, start, 0), size)",
        "room_on_a_stack_is_that_of_each_word"),
    "a 16-bit stack moves all of the pointer": (
        "def moved(q, esp, by): return place(q, esp, by)",
        "stack_pointer_moves_there_and_back"),
}
FOUND_BY_CROSSHAIR = (      # what it can confirm it can also refute, in a second or so
    "a frame number begins one bit too low", "a frame number includes the high flags", "L1 counts as an upper table",
    "Xen's first slot is one too high", "every table has Xen's slots", "a stretch may end with Xen's first slot",
    "an index has one bit too many", "an address is canonical from bit 48 on", "a segment is one byte too long",
    "only the first byte's address need be canonical", "users are supervisors", "a fetch always shows", "a tag is the page")


def planted(folder: Path, bug: str) -> dict[str, Contract]:
    """The contracts over leaves of which one is wrong."""
    file = folder / f"planted_{sum(map(ord, bug))}.py"
    text = Path(leaves.__file__).read_text(encoding="utf-8")
    file.write_text(f"{text}\n\n{PLANTED[bug][0]}\n", encoding="utf-8")
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = sys.modules[file.stem] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return {c.name: c for c in contracts(module)}


def test_a_bug_is_planted_for_every_contract():
    assert {name for _, *names in PLANTED.values() for name in names} == set(BY_NAME)


@pytest.mark.parametrize("bug", PLANTED)
def test_the_engine_refutes_every_planted_bug(bug, tmp_path):
    wrong = planted(tmp_path, bug)
    for name in PLANTED[bug][1:]:
        finding = decided(wrong[name]).finding      # and has run the counterexample on ints
        assert finding.verdict == REFUTED, (name, finding)
        assert finding.note.startswith(f"false when calling {name}("), finding


@needs_crosshair
@pytest.mark.parametrize("bug", FOUND_BY_CROSSHAIR)
def test_crosshair_refutes_planted_bugs(bug, tmp_path):
    name = PLANTED[bug][1]
    finding = crosshair(planted(tmp_path, bug)[name])
    assert finding.verdict == REFUTED, finding
    assert name in finding.note


# --- CrossHair's output ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("output", "verdict"), [
    ("f.py:12: info: Confirmed over all paths.\nf.py:13: info: Confirmed over all paths.\n", PROVED),
    ("f.py:12: info: Confirmed over all paths.\nf.py:13: info: Not confirmed.\n", UNKNOWN),
    ("f.py:12: info: Confirmed over all paths.\n", UNKNOWN),                        # of two conditions
    ("f.py:12: info: Confirmed over all paths.\nf.py:99: info: Confirmed over all paths.\n", UNKNOWN),      # another's
    ("f.py:12: info: Not confirmed.\nf.py:13: error: false when calling f(x = 1)\n", REFUTED),
    ("f.py:13: error: IndexError:  when calling f(x = 1)\n", REFUTED),
    ("f.py:12: info: Unable to meet precondition.\n", UNKNOWN),
    ("f.py:12: info: Confirmed over all paths.\nf.py:13: info: Confirmed over all paths.\nf.py:13: warning: odd\n", UNKNOWN),
    ("", UNKNOWN),
    ("no line of that form\n", UNKNOWN),
])
def test_what_crosshair_prints(output, verdict):
    assert parse(output, first=10, last=20, conditions=2).verdict == verdict


# --- terms are ints ----------------------------------------------------------------------------------------------------------

X, Y = node("word_x"), node("word_y")
WORDS = st.one_of(st.integers(0, (1 << 64) - 1), st.integers(0, 9), st.sampled_from([1 << 63, (1 << 63) - 1, (1 << 64) - 1]))
MASKS = st.one_of(st.integers(-1 << 70, -1), st.integers(0, 1 << 70))


def value(z, x: int, y: int) -> int:
    """The value of an expression, as the solver calculates it for these words."""
    sorts = Sorts(XEN_4_17)
    made = z3.substitute(sorts.word(z, 200), (sorts.word(X, 64), z3.BitVecVal(x, 64)), (sorts.word(Y, 64), z3.BitVecVal(y, 64)))
    low, high = sorts.bounds(z)
    result = z3.simplify(made).as_signed_long()
    assert low <= result <= high
    return result


@given(WORDS, WORDS)
def test_terms_calculate_like_ints(x, y):
    both = {op: value(build(op, X, Y), x, y) for op in "+-*&|^"}
    assert both == {"+": x + y, "-": x - y, "*": x * y, "&": x & y, "|": x | y, "^": x ^ y}


@given(WORDS, MASKS, st.integers(0, 70))
def test_terms_mask_shift_and_divide_like_ints(x, mask, k):
    assert value(build("&", X, mask), x, 0) == x & mask
    assert value(build("<<", X, k), x, 0) == x << k
    assert value(build(">>", X, k), x, 0) == x >> k
    assert value(build("//", X, 1 << k), x, 0) == x // (1 << k)
    assert value(build("%", X, 1 << k), x, 0) == x % (1 << k)


# --- what is no proof --------------------------------------------------------------------------------------------------------

def vacuous(x: int) -> int:
    """Nothing meets the condition.

    pre: 0 <= x < 8 and x > 9
    post: False
    """
    return x


def unbounded(x: int) -> int:
    """No range is stated.

    pre: x >= 0
    post: __return__ == x
    """
    return x


def too_wide(x: int) -> int:
    """The range ends beyond the term.

    pre: 0 <= x <= 1 << 64
    post: __return__ < 1 << 64
    """
    return x


def raises(x: int) -> int:
    """One argument raises.

    pre: 0 <= x < 1 << 64
    post: True
    """
    if x == 0xC0FFEE:
        raise KeyError(x)
    return x


def asks(x: int) -> int:
    """A term has no value.

    pre: 0 <= x < 8
    post: True
    """
    return (1, 2, 3, 4, 5, 6, 7, 8)[x]


@pytest.mark.parametrize(("function", "verdict", "note"), [
    (vacuous, UNKNOWN, "no argument meets"), (unbounded, UNKNOWN, "no range is stated for x"),
    (too_wide, UNKNOWN, "beyond 64 bits"),
    (raises, REFUTED, "raises(x=0xc0ffee)"), (asks, UNKNOWN, "the engine can't follow")])
def test_what_is_no_proof(function, verdict, note):
    finding = decided(contract(function)).finding
    assert finding.verdict == verdict
    assert note in finding.note


def test_no_answer_within_the_effort_is_no_proof(tmp_path):
    wrong = planted(tmp_path, "a reserved bit is one only alone")["reserved_bit_stays_reserved"]
    finding = decided(wrong, effort=1).finding
    assert (finding.verdict, "no answer with an effort of 1" in finding.note) == (UNKNOWN, True)


@needs_crosshair
def test_a_crosshair_that_breaks_down_is_no_verdict(tmp_path):
    lost = planted(tmp_path, "a tag is the page")["tag_tells_page_and_kind"]
    for file in tmp_path.glob("planted_*.py"):
        file.unlink()
    finding = crosshair(lost)
    assert finding.verdict == UNKNOWN
    assert finding.note.startswith("it ended with 2: ")


# --- the ledger --------------------------------------------------------------------------------------------------------------

def test_every_contract_is_an_obligation_that_can_be_picked():
    all_of_them = obligations(LEAVES)
    assert [o.part for o in all_of_them] == list(BY_NAME)
    assert [o.name for o in all_of_them] == [row_name(c) for c in ALL]
    assert select(None, "(leaf ") == all_of_them
    assert select("xen-2003", "(leaf ") == []       # they are of no profile
    assert [o.part for o in select(None, "leaf tag_tells")] == ["tag_tells_page_and_kind"]


def test_a_contract_is_about_the_rules_that_call_its_function():
    about = {o.part: set(o.about) for o in obligations(LEAVES)}
    assert {"VALID-3", "WRITE-1"} == about["adjusting_clears_nothing"]
    assert "TLB-7" in about["combining_keeps_nx"]
    assert about["canonical_address_of_32_bits_is_any"] == set()     # functions that are no rules call it
    assert {RULES[id].kind for ids in about.values() for id in ids} <= {"transition", "guard", "invariant", "theorem", "count"}


def test_a_row_says_which_tools_proved_it(monkeypatch):
    rows = discharge(select(None, "leaf adjusting_twice"), Options())
    assert [(row.verdict, row.detail, row.paths) for row in rows] == [(PROVED, "by the engine", 2)]
    assert rows[0].queries > 0
    monkeypatch.setattr(contract_proof, "is_installed", lambda: True)
    monkeypatch.setattr(contract_proof, "crosshair", lambda c: Finding(PROVED))
    assert discharge(select(None, "leaf tag_tells"), Options())[0].detail == "by the engine and CrossHair"
    monkeypatch.setattr(contract_proof, "is_installed", lambda: False)
    assert discharge(select(None, "leaf tag_tells"), Options())[0].detail == "by the engine"


@pytest.mark.parametrize(("engine", "other", "expected"), [
    (Finding(PROVED), Finding(PROVED), (PROVED, "by the engine and CrossHair")),
    (Finding(PROVED), Finding(UNKNOWN, "Not confirmed."), (PROVED, "by the engine; CrossHair: Not confirmed.")),
    (Finding(UNKNOWN, "too wide"), Finding(PROVED), (PROVED, "by CrossHair; the engine: too wide")),
    (Finding(UNKNOWN, "too wide"), Finding(UNKNOWN, "Not confirmed."),
     (UNKNOWN, "the engine: too wide; CrossHair: Not confirmed.")),
    (Finding(REFUTED, "f(1)"), Finding(UNKNOWN, "Not confirmed."), (REFUTED, "the engine: f(1)")),
    (Finding(PROVED), Finding(REFUTED, "f(1)"), (REFUTED, "CrossHair: f(1); the tools contradict each other"))])
def test_a_counterexample_outweighs_a_proof(engine, other, expected):
    assert judged({"the engine": engine, "CrossHair": other}) == expected
