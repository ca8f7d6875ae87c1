"""Every rule of the specification runs on terms, under both profiles; and the engine refuses what a term cannot follow."""
from functools import cache

import pytest

from proofs.obligations import NEVER
from proofs.symbolic.paths import Path, explore, paths
from proofs.symbolic.terms import BoolTerm, GuardAfterEffect, IntTerm, SemanticGap, TooManyPaths, node
from spec import frames, kernel, rules
from spec.invariants import SUMS
from spec.kernel import CONJUNCT_RULE, FAILED, HELD, RULES, predicate, require
from spec.profile import PROFILES, XEN_2003, Profile
from spec.x86.paging import Fault

assert rules.MODULES                        # importing them entered the rules

RUN = [r for r in RULES.values() if r.kind in ("transition", "invariant", "count", "theorem")]
TRANSITIONS = [r for r in RUN if r.kind == "transition"]
both_profiles = pytest.mark.parametrize("profile", PROFILES.values(), ids=lambda p: p.name)

# What the profile decides once and for all, so that no path can be refused by it: (profile, conjunct) -> why.
NEVER_REFUSED = {
    ("xen-2003", "BASE-2.2"): "there is no user root: BASE-2.1 refuses before",
    ("xen-2003", "BASE-2.3"): "there is no user root: BASE-2.1 refuses before",
    ("xen-2003", "BASE-2.4"): "there is no user root: BASE-2.1 refuses before",
    ("xen-2003", "BASE-2.5"): "there is no user root: BASE-2.1 refuses before",
    ("xen-2003", "ENTRY-1.9"): "there are no linear tables: ENTRY-1.8 refuses before",
    ("xen-2003", "ENTRY-1.10"): "there are no linear tables: ENTRY-1.8 refuses before",
    ("xen-2003", "ENTRY-1.11"): "there are no linear tables: ENTRY-1.8 refuses before",
    ("xen-2003", "ENTRY-1.12"): "there are no linear tables: ENTRY-1.8 refuses before",
    ("xen-2003", "TLB-7.2"): "the guest's kernel is a supervisor for the walk",
    ("xen-4.17", "BASE-2.1"): "user mode has a root of its own",
    ("xen-4.17", "ENTRY-1.8"): "tables of one level may use each other",
    ("xen-4.17", "TLB-1.2"): "there are no segments",
    ("xen-4.17", "TLB-2.2"): "there are no segments",
    ("xen-4.17", "TLB-3.2"): "there are no segments",
    ("xen-4.17", "GDT-4.2"): "there are no segments",
    ("xen-4.17", "DESC-2.5"): "a descriptor is one word",
    ("xen-4.17", "DESC-4.5"): "a descriptor is one word",
    ("xen-4.17", "DESC-5.6"): "a descriptor is one word",
    ("xen-2003", "RING-1.1"): "there are segments",
    ("xen-4.17", "FLAT-1.1"): "there are none",
    **{("xen-4.17", c): "RING-1.1 refuses before" for c in (
        "RING-2.1", "SEG-1.1", "SEG-7.1", "SEG-8.1", "SEG-8.2", "SEG-9.1", "STACK-1.1", "TRAP-1.1", "TRAP-2.1", "TRAP-2.2",
        "DEBUG-1.1", "DEBUG-1.2")},
    **{("xen-2003", c): "FLAT-1.1 refuses before" for c in (
        "CALL-10.1", "CALL-10.2", "CALL-11.1", "CALL-12.1", "CALL-12.2", "DEBUG-2.1", "DEBUG-2.2", "DEBUG-2.3")},
}
BY_STATE = {("xen-2003", "BASE-3"), ("xen-4.17", "GDT-1")}     # never done because of what the invariants say
NEVER_DONE = {at: why for at, why in NEVER.items() if at not in BY_STATE}


@cache
def paths_of(id: str, profile: str) -> list[Path]:
    """The paths of a rule, found once."""
    return paths(RULES[id], PROFILES[profile])


@both_profiles
@pytest.mark.parametrize("rule", RUN, ids=lambda r: r.id)
def test_every_rule_runs_on_terms(rule, profile):
    """No gap, and on no path a guard after an effect: either would be raised."""
    found = paths_of(rule.id, profile.name)
    done = [path for path in found if path.outcome == "ok"]
    assert bool(done) != ((profile.name, rule.id) in NEVER_DONE)
    if rule.kind == "transition":
        assert all(path.value is None for path in done)
        assert not done or any(path.state.stores for path in done), "a transition that is not refused writes"
        assert not any(path.state.stores for path in found if path.outcome != "ok"), "a refusal or a fault leaves no trace"
    else:
        assert len(done) == len(found)
        assert not any(path.state.stores for path in found)


@both_profiles
def test_every_conjunct_refuses_on_some_path(profile):
    """Each can decide, but for those that the profile decides."""
    refused = {path.rule for rule in TRANSITIONS for path in paths_of(rule.id, profile.name) if path.outcome == "refused"}
    ours = {c for c, rule in CONJUNCT_RULE.items() if RULES[rule].kind in ("transition", "guard")}
    assert ours - refused == {c for name, c in NEVER_REFUSED if name == profile.name}
    held = {c for rule in TRANSITIONS for path in paths_of(rule.id, profile.name) for c in path.guards}
    by_profile = {"BASE-2.1", "ENTRY-1.8", "RING-1.1", "FLAT-1.1"}
    assert ours - held <= by_profile | {c for name, c in NEVER_REFUSED if name == profile.name}


@both_profiles
@pytest.mark.parametrize("contribution", SUMS, ids=lambda c: c.__name__)
def test_every_contribution_to_a_count_runs_on_terms(contribution, profile):
    target, kinds = SUMS[contribution]
    assert explore(contribution, (target, *kinds), profile, pure=True)


def test_the_tallies_of_decisions_and_the_rules_are_left_alone():
    before, was = (dict(HELD), dict(FAILED)), (frames.require, frames.is_table)
    paths(RULES["TYPE-1"], XEN_2003)
    assert before == (HELD, FAILED)
    assert (frames.require, frames.is_table) == was
    assert frames.require is kernel.require


# --- what a path tells -------------------------------------------------------------------------------------------------------

def test_the_paths_of_a_small_transition():
    """take_ref: refused by its first conjunct, by its second, or done."""
    by_rule = {path.rule: path for path in paths_of("REF-1", "xen-2003")}
    done = by_rule[""]
    assert set(by_rule) == {"REF-1.1", "REF-1.2", ""}
    assert by_rule["REF-1.2"].guards == ["REF-1.1"]
    assert done.guards == ["REF-1.1", "REF-1.2"]
    assert str(done.state.stores) == ("{'ref_count': [((frame1(),), +(ref_count(frame1()), 1))],"
                                      " 'held': [((frame1(),), +(held(frame1()), 1))]}")
    assert [name for name, _ in done.state.touched] == ["owner", "ref_count", "held"]
    assert str(done.conditions[0]) in ("(==(owner(frame1()), dom0()), True)", "(==(dom0(), owner(frame1())), True)")


def run(function, *kinds, profile: Profile = XEN_2003, pure: bool = False) -> list[Path]:
    """The paths of a function of this file."""
    return explore(function, kinds, profile, pure)


def test_reads_see_stores_and_equal_keys_are_a_term():
    """A read after a store at another key asks whether the keys are equal."""
    def swap(s, f, g):
        s.upto[f] = 1
        s.upto[g] = 2
        if s.upto[f] == 2 and s.upto[g] == 2:
            s.pinned[f] = True
    paths = run(swap, "frame", "frame")
    assert len(paths) == 2
    assert [path.conditions[0][0].op for path in paths] == ["==", "=="]
    assert ["pinned" in path.state.stores for path in paths] == [True, False]


def test_a_path_is_not_asked_twice():
    """What is decided stays decided: of a condition, of its parts, and of a number that is known to be a constant."""
    def twice(s, t, x):
        require((t <= 3) & (x == 5), "REF-1.1")
        assert t <= 3
        assert not t > 3
        assert x != 4
    assert [path.outcome for path in run(twice, "count", "count")] == ["ok", "refused"]


@predicate
def either(s, f):
    return 1 if s.pinned[f] or s.validated[f] else 2


def test_predicates_cost_no_path():
    """They become one term; what the path knows already is in it."""
    def rule(s, f):
        s.upto[f] = either(s, f)
        if s.pinned[f]:
            s.linear[f] = either(s, f)
    pinned, _ = run(rule, "frame")
    assert pinned.state.stores["linear"][0][1] == 1
    assert str(pinned.state.stores["upto"][0][1]) == "ite(pinned(frame0()), 1, ite(validated(frame0()), 1, 2))"


def test_too_many_paths_are_an_error():
    def wild(s, f):
        for n in range(20):
            if s.word[f, n] == n:
                s.word[f, n] = 0
    with pytest.raises(TooManyPaths):
        run(wild, "frame")


# --- bad rules ---------------------------------------------------------------------------------------------------------------

def guard_after_effect(s, d, f):
    s.held[f] += 1
    require(s.owner[f] == d, "REF-1.1")


def effect_in_a_helper(s, d, f):
    helper(s, f)
    if s.validated[f]:
        require(s.owner[f] == d, "REF-1.1")


def helper(s, f):
    if s.pinned[f]:
        s.pinned[f] = False


def fault_after_effect(s, d, f):
    s.held[f] += 1
    if s.owner[f] != d:
        raise Fault(14, 0)


@pytest.mark.parametrize("bad", [guard_after_effect, effect_in_a_helper, fault_after_effect])
def test_a_guard_after_an_effect_is_caught(bad):
    with pytest.raises(GuardAfterEffect):
        run(bad, "dom", "frame")


@predicate
def writing_predicate(s, f):
    s.held[f] += 1
    return True


@predicate
def raising_predicate(s, f):
    if s.pinned[f]:
        raise Fault(14, 0)
    return True


def calls_writing(s, d, f):
    require(writing_predicate(s, f), "REF-1.1")


def calls_raising(s, d, f):
    require(raising_predicate(s, f), "REF-1.1")


def hidden_int(s, d, f):
    table = {1: 2, 3: 4}
    if s.pinned[f]:
        s.upto[f] = table[int(s.type[f])]


def swallowed(s, d, f):
    try:
        hash(s.type[f])
    except BaseException:
        s.upto[f] = 0


@pytest.mark.parametrize("bad", [calls_writing, calls_raising, hidden_int, swallowed])
def test_other_bad_rules_are_caught(bad):
    with pytest.raises(SemanticGap):
        run(bad, "dom", "frame")


def test_an_invariant_that_writes_or_gives_no_truth_value_is_caught():
    for bad in (helper, lambda s, f: s.type[f]):
        with pytest.raises(SemanticGap):
            run(bad, "frame", pure=True)


# --- what a term cannot follow -----------------------------------------------------------------------------------------------
X, B = IntTerm(node("x")), BoolTerm(node("b"))


@pytest.mark.parametrize("step", [
    lambda s: {1: 2}[X], lambda s: {1: 2}.get(X), lambda s: X in {1, 2}, lambda s: {X: 1}, lambda s: hash(X), lambda s: hash(B),
    lambda s: int(X), lambda s: int(B), lambda s: float(X), lambda s: round(X), lambda s: [1, 2][X], lambda s: "ab"[X:],
    lambda s: list(range(X)), lambda s: list(X), lambda s: X[0], lambda s: 1 in X, lambda s: len(X), lambda s: f"{X}",
    lambda s: f"{X:#x}", lambda s: str(B), lambda s: "%d" % X, lambda s: bytes(X), lambda s: bin(X), lambda s: hex(X),  # noqa: UP031
    lambda s: 1 << X, lambda s: X << X, lambda s: X >> X, lambda s: X // X, lambda s: X / 2, lambda s: X % X, lambda s: 7 % X,
    lambda s: X ** 2, lambda s: 2 ** X, lambda s: divmod(X, 2), lambda s: ~X, lambda s: ~B, lambda s: -B,
    lambda s: B + 1, lambda s: 1 + B, lambda s: B * 2, lambda s: B < B, lambda s: B << 1, lambda s: X + B, lambda s: X & True,
    lambda s: X == B, lambda s: B == 1, lambda s: X == None, lambda s: X == "x", lambda s: B & 1,  # noqa: E711
    lambda s: isinstance(X, int), lambda s: isinstance(B, bool), lambda s: X(),
    lambda s: X in s.owner, lambda s: list(s.owner), lambda s: len(s.owner), lambda s: s.owner[X, X], lambda s: s.word[X],
    lambda s: s.owner.__delitem__(X), lambda s: s.owner[B], lambda s: s.pinned.__setitem__(X, 1),
    lambda s: s.held.__setitem__(X, B),
    lambda s: require(X, "REF-1.1"), lambda s: require(1, "REF-1.1"),
])
def test_refused_loudly(step):
    with pytest.raises(SemanticGap):
        run(step)


def test_what_a_term_can_follow():
    def fine(s, f, e, b):
        x = s.word[f, e & 1023]
        assert (x >> 12 << 12) + (x & 0xFFF) - 2 * x // 4 % 8 != -1 or True
        y = 1 if x in (1, 2) else x if b else ~1 & 3
        if not 0 <= y < 8 and (b or y):
            s.word[f, 1 + e] = y | 1 ^ y
    assert {path.outcome for path in run(fine, "frame", "word", "bool")} == {"ok"}


def test_outside_a_run_a_term_has_no_truth():
    with pytest.raises(SemanticGap):
        bool(X == 1)
