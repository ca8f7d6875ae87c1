"""The rules that the tests of the proofs work on, by name."""
from spec.kernel import RULES, Rule


def named(name: str) -> Rule:
    """A transition."""
    return next(r for r in RULES.values() if r.name == name)
