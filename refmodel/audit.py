"""The invariants, run over a whole concrete state: which rule fails where."""
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import spec.rules  # noqa: F401  (enters the invariants)
from refmodel.state import ConcreteState, as_state
from spec.abi import NOBODY
from spec.frames import mfn_of
from spec.invariants import SUMS
from spec.kernel import CPU, RULES, SCHEMA, Rule


@dataclass(frozen=True, slots=True)
class Violation:
    """Rule `rule` fails at `key`."""
    rule: str
    key: tuple[int, ...]
    text: str


def audit(state: ConcreteState) -> list[Violation]:
    """Every violated range, invariant and count, with its key; empty when the state is sound and at rest."""
    keys = keys_of(state)
    out = list(ranges(state))
    s = as_state(state)
    for rule in RULES.values():
        if rule.kind == "invariant":
            out += [violation(state, rule, k) for k in sorted(keys[rule.keys]) if not rule.function(s, *k)]
    sums = contributions(state, keys)
    for rule in RULES.values():
        if rule.kind == "count":
            for k in sorted(keys[rule.keys]):
                n = {name: total[k] for name, total in sums.items()}
                if not rule.function(s, *k, n):
                    out.append(violation(state, rule, k, {name: v for name, v in n.items() if v}))
    return out


def keys_of(state: ConcreteState) -> dict[tuple[str, ...], set[tuple[int, ...]]]:
    """Every key at which anything was ever stored, by the kinds of the key."""
    out: dict[tuple[str, ...], set[tuple[int, ...]]] = {kinds: set() for kinds, _ in SCHEMA.values()}
    for name, (kinds, value) in SCHEMA.items():
        entries = state.maps[name]
        out[kinds].update(k if isinstance(k, tuple) else (k,) for k in entries)
        if value in ("frame", "dom"):
            out[(value,)].update((v,) for v in entries.values())
    out[("dom",)].discard((NOBODY,))
    for kinds in (("frame", "index"), ("dom", "reg")):
        out[kinds[:1]].update((of,) for of, _ in out[kinds])
    out[("cpu",)].add((CPU,))
    return out


def ranges(state: ConcreteState) -> Iterable[Violation]:
    """Python's ints are unbounded, a machine's words are not."""
    for name, (_, kind) in SCHEMA.items():
        ones = (1 << 64) - 1 if kind == "desc" else state.profile.all_ones
        if kind not in ("bool", "count"):
            for k, v in state.maps[name].items():
                if not 0 <= v <= ones:
                    yield Violation("RANGE-1", k if isinstance(k, tuple) else (k,), f"{name} is {v:#x}, which is no word")


def contributions(state: ConcreteState, keys: dict[tuple[str, ...], set[tuple[int, ...]]]) -> dict[str, Counter[tuple[int, ...]]]:
    """The ghost sums: for each contribution, how many keys contribute to each frame or domain."""
    s = as_state(state)
    out: dict[str, Counter[tuple[int, ...]]] = {}
    for contribution, (target, kinds) in SUMS.items():
        total: Counter[tuple[int, ...]] = Counter()
        for k in keys[kinds]:
            for to in targets(state, target, kinds, k):
                if contribution(s, to, *k):
                    total[(to,)] += 1
        out[contribution.__name__] = total
    return out


def targets(state: ConcreteState, target: str, kinds: tuple[str, ...], k: tuple[int, ...]) -> set[int]:
    """What key k, of these kinds, can contribute to at all."""
    s: Any = as_state(state)
    if target == "dom":
        return {s.owner[k[0]]}
    if kinds == ("frame", "index"):
        return {k[0], mfn_of(s, s.word[k])}
    if kinds == ("dom", "page"):
        return {s.gdt[k], s.ldt[k]}
    return {s.base[k[0]], s.user_base[k[0]]}


def violation(state: ConcreteState, rule: Rule, key: tuple[int, ...], sums: dict[str, int] | None = None) -> Violation:
    """A violated rule in the field's terms."""
    s: Any = as_state(state)
    where = ", ".join(f"{kind} {k:#x}" for kind, k in zip(rule.keys, key, strict=True))
    about = ""
    if rule.keys[0] == "frame":
        f = key[0]
        about = (f" (owner {s.owner[f]}, type {s.type[f]}, {s.type_count[f]} typed of {s.ref_count[f]} references"
                 + (f", entry {s.word[key]:#x}" if rule.keys == ("frame", "index") else "") + ")")
    counted = f"; counted {sums}" if sums is not None else ""
    return Violation(rule.id, key, f"{rule.sentence} Not at {where}{about}{counted}.")
