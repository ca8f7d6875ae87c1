"""Noninterference of whole actions, on random programs of three domains: the proofs speak of single transitions, for the domain
that a handler names; here the domain is the one that really acts."""
import random

import pytest

from oracle.generate import Generator
from oracle.targets import default_setup, open_target
from refmodel import boot
from spec.channels import sees, step_is_unnoticed
from spec.frames import may_use
from spec.kernel import SCHEMA
from spec.profile import PROFILES

BOSS, ME, OTHER = 0, 1, 2


@pytest.fixture(params=PROFILES)
def machine(request):
    """Domain 0 is privileged, 1 and 2 are not."""
    return boot(default_setup(request.param, open_target("model"), domains=3))


def noticed(s, d, name, key):
    """What an action of domain d changes is noticed by OTHER, and not because that lent d the frame."""
    if step_is_unnoticed(s, d, OTHER, name, key):
        return False
    return not (SCHEMA[name][0][0] == "frame" and may_use(s, d, key[0]))


def changes(machine, programs, dom):
    """What each action of a domain in some programs changes, as map and key; the machine is in the state before the action."""
    generator = Generator(machine)
    for seed in range(programs):
        actions, _ = generator.program(random.Random(seed), 25)     # made beforehand, and run again an action at a time
        machine.reset()
        for action in actions:
            if action.dom == dom:
                yield from changes_of(machine, action)
            machine.step(action)


def changes_of(machine, action):
    """What one action changes."""
    mark = machine.concrete.mark()
    machine.step(action)
    stored = machine.concrete.before(mark)
    new = {(name, k): machine.concrete.maps[name][k] for name, k in stored}
    machine.concrete.rollback(mark)
    for (name, k), old in stored.items():
        if new[name, k] != old:
            yield name, k if isinstance(k, tuple) else (k,)


def test_what_a_domain_does_another_does_not_notice(machine):
    looked_at = 0
    for name, key in changes(machine, 40, ME):
        assert not noticed(machine.s, ME, name, key), (name, key)
        looked_at += 1
    assert looked_at > 500


def test_a_notice_would_be_noticed(machine):
    """The test above can fail: what OTHER itself does it notices."""
    assert sum(noticed(machine.s, ME, name, key) for name, key in changes(machine, 10, OTHER)) > 20


def test_what_a_domain_does_not_see_changes_nothing_of_what_it_does(machine):
    """Programs of one domain come out the same whatever is in the other's memory."""
    generator, secret = Generator(machine), random.Random(2003)
    generator.domains = generator.domains[ME:OTHER]         # only ME acts
    theirs = next(d for d in machine.setup.domains if d.domid == OTHER)
    hidden = [f for f in range(theirs.first, theirs.first + theirs.pages) if not sees(machine.s, ME, "word", (f, 0))]
    data = [f for f in hidden if not machine.s.type[f] or machine.s.type[f] == 7]
    assert len(data) > 20
    for seed in range(40):
        actions, plain = generator.program(random.Random(seed), 25)
        machine.reset()
        for f in data:
            for i in range(machine.profile.entries):
                machine.concrete.maps["word"][f, i] = secret.getrandbits(machine.profile.word_bits)
        assert [machine.step(action) for action in actions] == plain, seed
