"""Every condition of every transition and guard is seen true and false, in the tests of this folder."""
from contextlib import nullcontext

import pytest

from spec.kernel import CONJUNCT_RULE, FAILED, HELD, RULES, Refused
from spec.profile import PROFILES

OURS = {c for c, rule in CONJUNCT_RULE.items() if RULES[rule].kind in ("transition", "guard")}

NO_USER_ROOT = "there is no user root: BASE-2.1 refuses before"
NO_LINEAR = "there are no linear tables: ENTRY-1.8 refuses before"
NO_SEGMENTS = "there are no segments"
# What a profile decides once and for all: conjunct -> why.
NEVER_FALSE = {
    "xen-2003": {**dict.fromkeys(("BASE-2.2", "BASE-2.3", "BASE-2.4", "BASE-2.5"), NO_USER_ROOT),
                 **dict.fromkeys(("ENTRY-1.9", "ENTRY-1.10", "ENTRY-1.11", "ENTRY-1.12"), NO_LINEAR),
                 "TLB-7.2": "the guest's kernel is a supervisor for the walk"},
    "xen-4.17": {"BASE-2.1": "user mode has a root of its own", "ENTRY-1.8": "tables of one level may use each other",
                 **dict.fromkeys(("TLB-1.2", "TLB-2.2", "TLB-3.2"), NO_SEGMENTS)},
}
NEVER_TRUE = {
    "xen-2003": {**dict.fromkeys(("BASE-2.1", "BASE-2.2", "BASE-2.3", "BASE-2.4", "BASE-2.5", "BASE-3.1"), NO_USER_ROOT),
                 **dict.fromkeys(("ENTRY-1.8", "ENTRY-1.9", "ENTRY-1.10", "ENTRY-1.11", "ENTRY-1.12"), NO_LINEAR)},
    "xen-4.17": {},
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
    assert transitions - done == ({"load_user_base", "clear_user_base"} if profile == "xen-2003" else set())
