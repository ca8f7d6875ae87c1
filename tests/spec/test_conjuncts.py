"""Every condition of every transition and guard is seen true and false, in the tests of this folder."""
from contextlib import nullcontext

import pytest

from proofs.obligations import NEVER
from spec.kernel import CONJUNCT_RULE, FAILED, HELD, RULES, Refused
from spec.profile import PROFILES

OURS = {c for c, rule in CONJUNCT_RULE.items() if RULES[rule].kind in ("transition", "guard")}

NO_USER_ROOT = "there is no user root: BASE-2.1 refuses before"
NO_LINEAR = "there are no linear tables: ENTRY-1.8 refuses before"
NO_SEGMENTS = "there are no segments"
NO_RINGS = "RING-1.1 refuses before"
NO_PLACE = "Xen's own descriptors lie in pages of their own"
NO_64 = "there are no 64-bit guests"
OF_64 = [c for c in OURS if c.partition(".")[0] in ("CALL-10", "CALL-11", "CALL-12", "DEBUG-2")]
OF_RINGS = [c for c in OURS if c.partition("-")[0] in ("SEG", "TRAP", "STACK", "DEBUG") and c not in OF_64] + ["RING-2.1"]
OF_XENS_PLACE = [c for c in OURS if c.startswith("GDT-1.")]
# What a profile decides once and for all: conjunct -> why.
NEVER_FALSE = {
    "xen-2003": {**dict.fromkeys(("BASE-2.2", "BASE-2.3", "BASE-2.4", "BASE-2.5"), NO_USER_ROOT),
                 **dict.fromkeys(("ENTRY-1.9", "ENTRY-1.10", "ENTRY-1.11", "ENTRY-1.12"), NO_LINEAR),
                 "TLB-7.2": "the guest's kernel is a supervisor for the walk", "RING-1.1": "there are segments",
                 **dict.fromkeys(OF_64, NO_64)},
    "xen-4.17": {"BASE-2.1": "user mode has a root of its own", "ENTRY-1.8": "tables of one level may use each other",
                 **dict.fromkeys(("TLB-1.2", "TLB-2.2", "TLB-3.2", "GDT-4.2"), NO_SEGMENTS), **dict.fromkeys(OF_RINGS, NO_RINGS),
                 **dict.fromkeys((*OF_XENS_PLACE, "DESC-2.6"), NO_PLACE),
                 **dict.fromkeys(("DESC-2.5", "DESC-4.5", "DESC-5.6"), "a descriptor is one word"),
                 "FLAT-1.1": "there are 64-bit guests"},
}
NEVER_TRUE = {
    "xen-2003": {**dict.fromkeys(("BASE-2.1", "BASE-2.2", "BASE-2.3", "BASE-2.4", "BASE-2.5", "BASE-3.1"), NO_USER_ROOT),
                 **dict.fromkeys(("ENTRY-1.8", "ENTRY-1.9", "ENTRY-1.10", "ENTRY-1.11", "ENTRY-1.12"), NO_LINEAR),
                 "FLAT-1.1": NO_64, **dict.fromkeys(OF_64, NO_64)},
    "xen-4.17": {"RING-1.1": NO_SEGMENTS, **dict.fromkeys(OF_RINGS, NO_RINGS), **dict.fromkeys(OF_XENS_PLACE, NO_PLACE)},
}


@pytest.mark.parametrize("profile", PROFILES)
def test_every_condition_is_seen_both_ways(all_trials, profile):
    done, refused = ([trial for trial in trials if trial.profile.name == profile] for trials in all_trials)
    held, failed = dict(HELD), dict(FAILED)
    for trial in [*done, *refused]:
        world, args = trial.prepare()
        with pytest.raises(Refused) if trial.conjunct else nullcontext():
            trial.function(world.s, **args)
    assert {c for c in OURS if FAILED[c] == failed[c]} == set(NEVER_FALSE[profile])
    assert {c for c in OURS if HELD[c] == held[c]} == set(NEVER_TRUE[profile])


@pytest.mark.parametrize("profile", PROFILES)
def test_every_transition_is_tried(all_trials, profile):
    done = {trial.function.__name__ for trial in all_trials[0] if trial.profile.name == profile}
    transitions = {rule.name for rule in RULES.values() if rule.kind == "transition"}
    assert transitions - done == {RULES[rule].name for of, rule in NEVER if of == profile}
