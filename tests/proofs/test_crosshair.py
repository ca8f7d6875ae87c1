"""Contracts of the leaf functions: both tools confirm what holds, and each contract can fail."""
import importlib.util
import inspect
import json
import operator
from pathlib import Path
from random import Random

import pytest
import z3
from hypothesis import given
from hypothesis import strategies as st

from proofs import crosshair_run, leaves
from proofs.crosshair_run import CONFIRMED, REFUTED, UNKNOWN, CannotFollow, Run, Term, contracts, decide, parse

ALL = contracts()
BY_NAME = {c.name: c for c in ALL}

# What CrossHair decides within a second or two; the rest has `|`, or `&` with masks other than 2^k - 1.
DECIDED_BY_CROSSHAIR = (
    "entry_names_the_frame_it_was_made_of",
    "entry_names_a_frame_that_a_word_can_hold",
    "upper_tables_are_the_tables_above_l1",
    "xen_slots_cover_exactly_the_hole_of_2003",
    "xen_slots_cover_exactly_the_hole_of_4_17",
    "xen_slots_are_of_a_root_table",
    "stretch_clear_of_xen_has_no_slot_of_xen",
    "stretch_not_clear_of_xen_has_a_slot_of_xen",
    "index_lies_in_the_table",
    "canonical_address_is_a_sign_extension",
    "canonical_address_of_32_bits_is_any",
    "segment_of_2003_ends_below_xen",
    "segment_of_4_17_does_not_cross_the_middle",
    "kernel_is_a_supervisor_in_ring_1_only",
    "entry_without_rights_restricts_nothing",
    "fault_code_tells_the_access",
    "small_page_is_the_entrys_frame",
    "tag_tells_page_and_kind",
    "tags_of_different_pages_differ",
)

needs_crosshair = pytest.mark.skipif(
    importlib.util.find_spec("crosshair") is None,
    reason="NOT CHECKED BY CROSSHAIR: pip install 'crosshair-tool>=0.0.113,<0.1' (or '.[proofs]')")


# --- what holds --------------------------------------------------------------------------------------------------------------

def test_every_contract_has_a_sentence_and_a_range_for_each_number():
    assert len(ALL) >= 50
    for c in ALL:
        assert c.sentence.endswith("."), c.name
        assert len(c.sentence) > 30, c.name
        assert "pre:" not in c.sentence, c.name
    assert [c.first for c in ALL] == sorted(c.first for c in ALL)
    without = {n for n, f in inspect.getmembers(leaves, inspect.isfunction) if f.__module__ == leaves.__name__} - set(BY_NAME)
    assert without == {"profile", "state", "at", "level_of", "passes_segment"}      # helpers


@pytest.mark.parametrize("name", BY_NAME)
def test_z3_confirms_every_contract(name):
    finding = decide(BY_NAME[name])
    assert (finding.verdict, finding.note) == (CONFIRMED, "")


@pytest.mark.parametrize("name", BY_NAME)
def test_contracts_hold_on_random_numbers(name):
    """No tool in between: a term that misled Z3 would show here."""
    random, checked = Random(name), BY_NAME[name]
    codes = {text: compile(text, name, "eval") for text in (*checked.pre, *checked.post)}
    kinds = {p.name: p.annotation for p in inspect.signature(checked.function).parameters.values()}
    for _ in range(400):
        arguments: dict[str, int] = {}
        for parameter, kind in kinds.items():
            fresh = random.getrandbits(random.choice((2, 3, 10, 20, 32, 48, 64)))
            near = random.choice([*arguments.values(), fresh]) ^ (1 << random.randrange(64))
            arguments[parameter] = bool(fresh & 1) if kind is bool else random.choice((fresh, fresh, near))
        assert crosshair_run.holds_of(checked, codes, (), arguments) is not False, arguments


@needs_crosshair
@pytest.mark.parametrize("name", DECIDED_BY_CROSSHAIR)
def test_crosshair_confirms_what_it_can_decide(name):
    finding = crosshair_run.crosshair(BY_NAME[name], budget=10)
    assert (finding.verdict, finding.note) == (CONFIRMED, "")


@needs_crosshair
@pytest.mark.long
def test_crosshair_finds_no_counterexample_anywhere():
    rows = list(crosshair_run.judge_all(budget=5))
    assert [row.name for row in rows] == list(BY_NAME)
    assert {row.verdict for row in rows} == {CONFIRMED}
    assert {row.z3 for row in rows} == {CONFIRMED}
    assert {row.crosshair for row in rows} == {CONFIRMED, UNKNOWN}
    assert {row.name for row in rows if row.crosshair == CONFIRMED} >= set(DECIDED_BY_CROSSHAIR)


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
        "def xen_entry(s, g, i): return (g << 12) | s.xen_word[i] if i == s.profile.self_slot + 1 else s.xen_word[i]",
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
}
FOUND_BY_CROSSHAIR = (      # what it can confirm it can also refute, in a second or so
    "a frame number begins one bit too low", "a frame number includes the high flags", "L1 counts as an upper table",
    "Xen's first slot is one too high", "every table has Xen's slots", "a stretch may end with Xen's first slot",
    "an index has one bit too many", "an address is canonical from bit 48 on", "a segment is one byte too long",
    "only the first byte's address need be canonical", "users are supervisors", "a fetch always shows", "a tag is the page")


def planted(folder: Path, bug: str) -> dict[str, crosshair_run.Contract]:
    """The contracts over leaves of which one is wrong."""
    file = folder / f"planted_{sum(map(ord, bug))}.py"
    text = Path(leaves.__file__).read_text(encoding="utf-8")
    file.write_text(f"{text}\n\n{PLANTED[bug][0]}\n", encoding="utf-8")
    return {c.name: c for c in contracts(crosshair_run.load(file))}


def test_a_bug_is_planted_for_every_contract():
    assert {name for _, *names in PLANTED.values() for name in names} == set(BY_NAME)


@pytest.mark.parametrize("bug", PLANTED)
def test_z3_refutes_every_planted_bug(bug, tmp_path):
    wrong = planted(tmp_path, bug)
    for name in PLANTED[bug][1:]:
        finding = decide(wrong[name])           # and has run the counterexample on ints
        assert finding.verdict == REFUTED, (name, finding)
        assert finding.note.startswith(f"false when calling {name}("), finding


@needs_crosshair
@pytest.mark.parametrize("bug", FOUND_BY_CROSSHAIR)
def test_crosshair_refutes_planted_bugs(bug, tmp_path):
    name = PLANTED[bug][1]
    finding = crosshair_run.crosshair(planted(tmp_path, bug)[name], budget=10)
    assert finding.verdict == REFUTED, finding
    assert name in finding.note


# --- CrossHair's output ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("output", "verdict"), [
    ("f.py:12: info: Confirmed over all paths.\nf.py:13: info: Confirmed over all paths.\n", CONFIRMED),
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
    assert parse(output, first=10, last=20, conditions=2)[0] == verdict


# --- terms are ints ----------------------------------------------------------------------------------------------------------

BINARY = ("add", "sub", "mul", "and_", "or_", "xor", "eq", "ne", "lt", "le", "gt", "ge")
NUMBERS = st.one_of(st.integers(-9, 9), st.integers(-1 << 70, 1 << 70), st.sampled_from([1 << 63, -1 << 63, (1 << 64) - 1]))


def plain(x):
    """The value of a term of constants."""
    return z3.simplify(x.z).as_signed_long() if isinstance(x, Term) else x


def constant(n: int) -> Term:
    """A term that is a number."""
    return Term(Run(()), z3.BitVecVal(n, n.bit_length() + 1))


@given(NUMBERS, NUMBERS, st.sampled_from(BINARY))
def test_terms_calculate_like_ints(a, b, name):
    op = getattr(operator, name)
    assert plain(op(constant(a), constant(b))) == plain(op(constant(a), b)) == plain(op(a, constant(b))) == op(a, b)


@given(NUMBERS, st.integers(0, 70))
def test_terms_shift_and_divide_like_ints(a, k):
    assert plain(constant(a) << k) == a << k
    assert plain(constant(a) >> k) == a >> k
    assert plain(constant(a) // (1 << k)) == a // (1 << k)
    assert plain(constant(a) % (1 << k)) == a % (1 << k)
    assert (plain(~constant(a)), plain(-constant(a)), bool(constant(a))) == (~a, -a, bool(a))


@pytest.mark.parametrize("step", [
    lambda x: 1 << x, lambda x: x << x, lambda x: x % 3, lambda x: x // 0, lambda x: 7 % x, int, str, hash, list, range,
    lambda x: [1, 2][x], lambda x: x + "1", lambda x: f"{x}", divmod, lambda x: x ** 2, lambda x: x / 2])
def test_terms_refuse_what_they_cannot_follow(step):
    with pytest.raises((CannotFollow, TypeError)):
        step(constant(3))


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
    (raises, REFUTED, "raises(x=0xc0ffee)"), (asks, UNKNOWN, "asks a term for its value")])
def test_what_is_no_proof(function, verdict, note):
    finding = decide(crosshair_run.contract(function))
    assert finding.verdict == verdict
    assert note in finding.note


# --- the command -------------------------------------------------------------------------------------------------------------

def test_the_command_writes_its_rows(tmp_path, capsys):
    file = tmp_path / "rows.json"
    assert crosshair_run.main(["--seconds", "0", "--only", "tag", "--json", str(file)]) == 0
    document = json.loads(file.read_text())
    assert document["summary"].pop("seconds") >= 0
    assert document["summary"] == {
        "contracts": 2, "confirmed": 2, "refuted": 0, "unknown": 0, "confirmed_by_crosshair": 0, "confirmed_by_z3": 2}
    assert [row["name"] for row in document["rows"]] == ["tag_tells_page_and_kind", "tags_of_different_pages_differ"]
    assert document["rows"][0]["by"] == ["z3"]
    assert document["rows"][0]["sentence"] == "A tag gives back the page and whether it is for fetches."
    assert "tag_tells_page_and_kind" in capsys.readouterr().out


@needs_crosshair
def test_both_tools_in_the_order_of_the_text_however_many_run_at_a_time(tmp_path):
    file = tmp_path / "rows.json"
    assert crosshair_run.main(["--only", "canonical|tag", "--jobs", "3", "--json", str(file)]) == 0
    rows = json.loads(file.read_text())["rows"]
    assert [row["name"] for row in rows] == [name for name in BY_NAME if "canonical" in name or "tag" in name]
    assert [row["by"] for row in rows] == [["crosshair", "z3"]] * 4


@needs_crosshair
def test_a_crosshair_that_breaks_down_is_no_verdict(tmp_path):
    lost = planted(tmp_path, "a tag is the page")["tag_tells_page_and_kind"]
    for file in tmp_path.glob("planted_*.py"):
        file.unlink()
    with pytest.raises(crosshair_run.NoCrossHair, match="ended with 2"):
        crosshair_run.crosshair(lost)


def test_a_counterexample_outweighs_a_confirmation():
    """Also where the tools contradict each other, which is then said."""
    broken = crosshair_run.Finding(REFUTED, "false when calling f(v=1)", 1.0)
    row = crosshair_run.judge(BY_NAME["tag_tells_page_and_kind"], broken)
    assert (row.verdict, row.by, row.z3) == (REFUTED, ("crosshair",), CONFIRMED)
    assert row.note == "crosshair: false when calling f(v=1); the tools contradict each other"
    row = crosshair_run.judge(crosshair_run.contract(unbounded), crosshair_run.Finding(UNKNOWN, "Not confirmed."))
    assert (row.verdict, row.note) == (UNKNOWN, "crosshair: Not confirmed.; z3: no range is stated for x")


def test_the_command_fails_when_a_contract_is_open_or_none_is_meant(monkeypatch):
    assert crosshair_run.main(["--seconds", "0", "--only", "no such contract"]) == 1
    monkeypatch.setattr(crosshair_run, "contracts", lambda: (crosshair_run.contract(unbounded),))
    assert crosshair_run.main(["--seconds", "0"]) == 1
    monkeypatch.setattr(crosshair_run, "contracts", lambda: (crosshair_run.contract(raises),))
    assert crosshair_run.main(["--seconds", "0"]) == 1


def test_the_command_says_when_crosshair_is_missing(monkeypatch, capsys):
    monkeypatch.setattr(crosshair_run.importlib.util, "find_spec", lambda name: None)
    assert crosshair_run.main(["--only", "tag"]) == 2
    assert "pip install 'crosshair-tool" in capsys.readouterr().err
