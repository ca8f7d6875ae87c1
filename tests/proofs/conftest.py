"""Planting a bug in a transition, in memory."""
import inspect
from collections.abc import Callable
from dataclasses import replace

import pytest

from spec.kernel import Rule
from spec.rules import RULES
from tests.proofs.rules import named


@pytest.fixture
def plant(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str, str], Rule]:
    """`plant(name, old, new)` changes the text of a transition, and gives the rule that stands in the register for the test."""
    def change(name: str, old: str, new: str) -> Rule:
        rule = named(name)
        text = inspect.getsource(rule.function)
        assert text.count(old) == 1
        scope: dict[str, object] = {}
        code = text[text.index("\ndef ") + 1:].replace(old, new)
        exec(compile(code, f"<planted {name}>", "exec"), rule.function.__globals__, scope)
        changed = replace(rule, function=scope[name])
        monkeypatch.setitem(RULES, rule.id, changed)
        return changed
    return change
