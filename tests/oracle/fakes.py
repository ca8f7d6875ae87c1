"""Targets for tests, built on the model: each does one thing wrong.  Importable, so that a campaign's workers can open them."""
import os
import time
from collections.abc import Sequence
from dataclasses import replace

from oracle.targets import ModelTarget, Target
from spec.abi import EINVAL
from spec.vocabulary import Action, Hypercall, Load, Outcome, Store

UVM = 19
FATAL = 0x60                                    # a program with a store of a value below this kills, or hangs, these targets


class Altered(ModelTarget):
    """Reports other outcomes than the model's."""

    def run(self, actions: Sequence[Action]) -> list[Outcome]:
        """The model's outcomes, altered."""
        return [self.alter(a, o) for a, o in zip(actions, super().run(actions), strict=True)]

    def alter(self, action: Action, outcome: Outcome) -> Outcome:
        """What is reported of one action."""
        raise NotImplementedError


class Permissive(Altered):
    """Says that a refused update_va_mapping was done."""

    def alter(self, action: Action, outcome: Outcome) -> Outcome:
        """-EINVAL becomes 0."""
        refused = isinstance(action, Hypercall) and action.nr == UVM and outcome.value == -EINVAL
        return replace(outcome, value=0) if refused else outcome


class Strict(Altered):
    """Says that a load from the first word of a page is refused."""

    def alter(self, action: Action, outcome: Outcome) -> Outcome:
        """A value becomes a fault."""
        if isinstance(action, Load) and outcome.vector < 0 and action.va % 4096 == 0:
            return Outcome(0, 14, 0, action.va)
        return outcome


def is_fatal(actions: Sequence[Action]) -> bool:
    """The program has an action that these targets do not survive."""
    return any(isinstance(a, Store) and a.user for a in actions)


class Dying(ModelTarget):
    """Dies of a store by an application."""

    def run(self, actions: Sequence[Action]) -> list[Outcome]:
        """Runs or dies."""
        if is_fatal(actions):
            os.abort()
        return super().run(actions)


class Hanging(ModelTarget):
    """Hangs in a store by an application."""

    def run(self, actions: Sequence[Action]) -> list[Outcome]:
        """Runs or hangs."""
        if is_fatal(actions):
            time.sleep(60)
        return super().run(actions)


class Raising(ModelTarget):
    """Raises at a store by an application."""

    def run(self, actions: Sequence[Action]) -> list[Outcome]:
        """Runs or raises."""
        if is_fatal(actions):
            raise RuntimeError("the engine gave up")
        return super().run(actions)


class Stillborn(ModelTarget):
    """Cannot start."""

    def __init__(self) -> None:
        raise RuntimeError("no processor")


class DeadAtStart(ModelTarget):
    """Dies as it starts."""

    def __init__(self) -> None:
        os.abort()


def opener(name: str) -> Target:
    """The fake target of this name."""
    kinds = (Permissive, Strict, Dying, Hanging, Raising, Stillborn, DeadAtStart, ModelTarget)
    return {kind.__name__: kind for kind in kinds}[name]()
