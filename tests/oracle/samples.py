"""Counterexamples to look at, built from small states by running a rule of the specification without its guards."""
from dataclasses import replace

import spec.rules  # noqa: F401
from proofs.counterexample import Counterexample
from proofs.explain import because
from refmodel.dump import dump_state
from refmodel.state import Change, ConcreteState
from spec.abi import L1, L2, NX, RW, US, WRITABLE, A, P
from spec.kernel import RULES
from spec.profile import XEN_4_17, XEN_2003

USED = P | US | A


def stepped(profile, maps, rule, arguments, stores, broken, at):
    """The counterexample of a step that stores this, from a state with these maps."""
    s = ConcreteState(profile, 64)
    for name, values in maps.items():
        for key, value in values.items():
            s.maps[name][key] = value
    before = dump_state(s)
    changes = []
    for name, key, value in stores:
        changes.append(Change(name, key if isinstance(key, tuple) else (key,), s.maps[name][key], value))
        s.maps[name][key] = value
    return Counterexample(profile.name, rule, arguments, before, tuple(changes), broken, at,
                          because(RULES[broken].function, s, *at), confirmed=True)


def self_mapping_table():
    """2003: an L1 becomes writable through itself, while the guest's TLB remembers a page."""
    maps = {
        "owner": {1: 1, 2: 1, 3: 1, 4: 2}, "type": {1: L2, 2: L1, 3: WRITABLE, 4: WRITABLE},
        "type_count": {1: 2, 2: 1, 3: 1, 4: 1}, "ref_count": {1: 3, 2: 3, 3: 2, 4: 2}, "alloc": dict.fromkeys((1, 2, 3, 4), True),
        "validated": {1: True, 2: True}, "upto": {1: 1024, 2: 1024}, "pinned": {1: True}, "held_type": {4: 1},
        "term": dict.fromkeys((1, 2, 3, 4), 1),
        "word": {(1, 5): 2 << 12 | USED | RW, (2, 7): 3 << 12 | USED | RW, (2, 8): 2 << 12 | USED},
        "has_base": {1: True}, "base": {1: 1}, "pages": {1: 3, 2: 1}, "limit": {1: 8, 2: 8},
        "clock": {0: 3}, "cr3_clock": {0: 4}, "tlb": {(1, 14): 3 << 12 | USED | RW}, "tlb_clock": {(1, 14): 3},
        "tlb_cr3": {(1, 14): 4}, "walk": {(1, 16): 2 << 12 | P | RW | US}, "walk_level": {(1, 16): 1}, "walk_clock": {(1, 16): 3}}
    return stepped(XEN_2003, maps, "WRITE-1", (("d", 1), ("g", 2), ("i", 8), ("new", 4 << 12 | USED | RW)),
                   [("held_type", 4, 0), ("held", 2, 1), ("word", (2, 8), 4 << 12 | USED | RW)], "SLOT-1", (2, 8))


def linear_chain():
    """4.17: two L4 tables of one domain use each other; the count of linear uses goes wrong."""
    maps = {
        "owner": {8: 1, 9: 1, 10: 1, 11: 1, 12: 1}, "type": {8: 4, 9: 4, 10: 3, 11: 2, 12: 1},
        "type_count": {8: 2, 9: 1, 10: 1, 11: 1, 12: 1}, "ref_count": {8: 3, 9: 2, 10: 2, 11: 2, 12: 2},
        "alloc": dict.fromkeys(range(8, 13), True), "validated": dict.fromkeys(range(8, 13), True),
        "upto": dict.fromkeys(range(8, 13), 512), "linear": {8: 1, 9: -1},
        "word": {(8, 0): 10 << 12 | USED | RW, (8, 300): 9 << 12 | USED | NX, (10, 1): 11 << 12 | USED | RW,
                 (11, 2): 12 << 12 | USED | RW, (12, 3): 40 << 12 | USED},
        "has_base": {1: True}, "base": {1: 8}, "has_user": {1: True}, "user_base": {1: 8}, "privileged": {1: True},
        "clock": {0: 1}, "cr3_clock": {0: 1}, "xen_held": {9: 1}}
    c = stepped(XEN_4_17, maps, "PIN-2", (("d", 1), ("f", 9)), [("held_type", 9, 1), ("upto", 9, 513)], "FRAME-1", (9,))
    return replace(c, confirmed=False, note="the rule was not run")


ALL = (self_mapping_table, linear_chain)
