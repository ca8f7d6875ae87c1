"""Moments of a machine's run near a base: told apart by all that its future depends on, and gone back to at once.

The base is a moment right after a whole flush, so what the processor may have cached there is nothing.  Clocks only grow, but the
rules only ask whether something happened since the last flush: two moments that are alike but for their clocks have the same
future, and are the same moment.
"""
from dataclasses import dataclass
from typing import Any, Final

from refmodel.machine import Machine, Mark
from refmodel.state import UndoMap
from spec.kernel import CPU
from spec.x86.tlb import is_live, is_walking

# Maps with clocks in them, or that count only while a clock stands.
TIMED: Final = frozenset({"clock", "cr3_clock", "stamp", "gone", "tlb", "tlb_clock", "tlb_cr3",
                          "walk", "walk_level", "walk_clock"})


@dataclass(frozen=True, slots=True)
class Moment:
    """What differs from the base: the keys that were stored to, with their values, and the processor's mode."""
    changes: tuple[tuple[UndoMap, Any, Any], ...]
    current: int | None
    mode: bool


def is_flushed(machine: Machine) -> bool:
    """Nothing happened since the last whole flush that a later step could ask for: the present moment can be a base."""
    maps = machine.concrete.maps
    now = maps["clock"][CPU]
    return all(now > max(maps[name].values(), default=0) for name in ("stamp", "tlb_clock", "walk_clock")) and \
        max(maps["gone"].values(), default=0) <= now


def moment(machine: Machine, base: Mark) -> tuple[object, Moment]:
    """The present moment, and what it is known by: equal for moments with the same future."""
    s, before = machine.s, dict[tuple[str, Any], tuple[UndoMap, Any]]()
    for m, key, old in machine.concrete.log[base.log:]:
        if (m.name, key) not in before:
            before[m.name, key] = m, old
    known: list[object] = [("current", machine.current), ("mode", machine.mode)]
    changes = []
    now = s.clock[CPU]
    for (name, key), (m, old) in before.items():
        value = m[key]
        if value != old:
            changes.append((m, key, value))
            if name not in TIMED:
                known.append((name, key, value))
            elif (name == "stamp" and value == now) or (name == "gone" and value == now + 1):
                known.append((name, key))
        if name == "tlb_clock" and is_live(s, *key):
            known.append((name, key, s.tlb[key]))
        if name == "walk_clock" and is_walking(s, *key):
            known.append((name, key, s.walk[key], s.walk_level[key]))
    return frozenset(known), Moment(tuple(changes), machine.current, machine.mode)


def go_to(machine: Machine, base: Mark, to: Moment) -> None:
    """The machine as it was at a moment near the base."""
    machine.rewind(base)
    for m, key, value in to.changes:
        m[key] = value
    machine.current, machine.mode = to.current, to.mode
