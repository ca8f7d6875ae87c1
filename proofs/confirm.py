"""Makes the counterexample of a refuted query, and confirms it: a run of the rule on plain numbers breaks what is refuted."""
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from proofs.counterexample import Counterexample
from proofs.explain import because
from proofs.goals import CONTRIBUTIONS, COUNTING, POINTWISE
from proofs.noninterference import OTHER
from proofs.plain import Ran, run
from proofs.symbolic.facts import Facts
from proofs.symbolic.paths import Path, as_written
from proofs.symbolic.search import Tally
from proofs.symbolic.sorts import widths
from proofs.symbolic.state import Key
from proofs.symbolic.terms import Value, node
from proofs.witness import IntKey, NoWitness, Witness, Witnesses, lookups
from refmodel.audit import audit, contributions, keys_of
from refmodel.dump import dump_state
from refmodel.state import Change, ConcreteState, as_state
from spec.invariants import AT_REST, SUMS
from spec.kernel import RULES, SCHEMA, Rule


@dataclass(frozen=True, slots=True)
class Trial:
    """A state, what the rule does there, and the key that the query was about: all in plain numbers."""
    part: str
    rule: Rule | None                       # None: the state is the one before the first transition
    witness: Witness
    args: IntKey
    at: IntKey
    before: ConcreteState
    ran: Ran                                # with the state afterwards
    formulas: list[Value]                   # of the query


Broken = tuple[IntKey, str]                 # where it fails, and what decided
Confirm = Callable[[Trial], Broken | None]


# --- what a run must show ----------------------------------------------------------------------------------------------------

def invariant_fails(trial: Trial) -> Broken | None:
    """The invariant, or count, fails afterwards: where the query was about, if it does there."""
    state, rule = trial.ran.state, RULES[trial.part]
    s = as_state(state)
    failing = [v.key for v in audit(state) if v.rule == trial.part]
    if trial.part in POINTWISE and trial.at and not rule.function(s, *trial.at):
        failing.append(trial.at)
    if not failing or trial.ran.outcome != "ok":
        return None
    key = trial.at if trial.at in failing else failing[0]
    if rule.kind == "invariant":
        return key, because(rule.function, s, *key)
    sums = contributions(state, keys_of(state))
    return key, because(rule.function, s, *key, {name: total[key] for name, total in sums.items()})


def contribution_moves(trial: Trial) -> Broken | None:
    """A contribution changed at a key that the rule does not touch."""
    c = next(c for c in SUMS if c.__name__ == trial.part)
    before, after = as_state(trial.before), as_state(trial.ran.state)
    targets = [(v,) for name, of in trial.before.maps.items() if SCHEMA[name][0] == (SUMS[c][0],) for v in of]
    moved = any(c(before, *to, *trial.at) != c(after, *to, *trial.at) for to in dict.fromkeys(targets))
    return (trial.at, "") if moved and trial.ran.outcome == "ok" else None


def theorem_fails(trial: Trial) -> Broken | None:
    """The theorem is false of the state."""
    if trial.rule is None or trial.ran.outcome != "ok" or trial.ran.value is not False:
        return None
    return trial.args, because(trial.rule.function, as_state(trial.before), *trial.args)


def value_is_of_no_kind(trial: Trial) -> Broken | None:
    """A value is stored that is not of its kind, or something is stored or looked up at a key that is not of its kinds."""
    width = widths(trial.before.profile)
    fits = {kind: range(1 << bits) for kind, bits in width.items()}
    seen = Watched(trial)
    for name, key, value in seen.looked_up:
        parts = zip((*SCHEMA[name][0], SCHEMA[name][1]), (*key, value), strict=True)
        wrong = [(kind, v) for kind, v in parts if kind in fits and v not in fits[kind]]
        if name == "word" and key[1] >= trial.before.profile.entries:
            return key, f"{name}[{', '.join(map(str, key))}] is beyond the frame's end"
        if wrong:
            return key, f"{name}[{', '.join(map(str, key))}] = {value}: {wrong[0][1]} is no {wrong[0][0]}"
    return None


class Watched:
    """What a run of the rule on the same state looks up and stores: map, key and value."""

    def __init__(self, trial: Trial) -> None:
        self.looked_up: list[tuple[str, IntKey, int]] = []
        state = trial.witness.state()
        for name in SCHEMA:
            setattr(state, name, WatchedMap(state.maps[name], self.looked_up))
        if trial.rule is not None:
            run(trial.rule, state, trial.args)


class WatchedMap:
    """A map that notes each use."""

    def __init__(self, of: Any, uses: list[tuple[str, IntKey, int]]) -> None:
        self.of, self.uses = of, uses

    def note(self, key: Any) -> None:
        """A use of a key."""
        self.uses.append((self.of.name, key if isinstance(key, tuple) else (key,), int(self.of[key])))

    def __getitem__(self, key: Any) -> Any:
        self.note(key)
        return self.of[key]

    def __setitem__(self, key: Any, value: Any) -> None:
        self.of[key] = value
        self.note(key)


def refusal_leaves_a_trace(trial: Trial) -> Broken | None:
    """The run stored something, and then it is refused or faults."""
    if trial.ran.outcome not in ("refused", "fault") or not trial.ran.changes:
        return None
    return trial.args, f"{trial.ran} after a store"


def step_is_noticed(trial: Trial) -> Broken | None:
    """A store changes what another domain sees, and through no channel."""
    s, rule, other = as_state(trial.before), RULES["FLOW-1"], trial.witness.model.value(OTHER)
    for c in trial.ran.changes:
        asked = (s, trial.args[0], other, c.map, c.key)
        if c.before != c.after and trial.ran.outcome == "ok" and not rule.function(*asked):
            return c.key, because(rule.function, *asked)
    return None


def something_new_is_shown(trial: Trial) -> Broken | None:
    """The step shows another domain a frame that it did not see."""
    states, other = (as_state(trial.before), as_state(trial.ran.state)), trial.witness.model.value(OTHER)
    rule, asked = RULES["FLOW-3"], (*states, trial.args[0], other, *trial.at)
    if trial.ran.outcome != "ok" or rule.function(*asked):
        return None
    return trial.at, because(rule.function, *asked)


def secret_decides(trial: Trial) -> Broken | None:
    """In a second state, different only where the acting domain sees nothing, the rule does something else."""
    first, second, view = as_state(trial.before), trial.witness.state(), RULES["FLOW-2"].function
    assert trial.rule is not None
    model, secrets = trial.witness.model, []
    for name, key in lookups(trial.formulas, "'"):
        at = model.key(key)
        if not view(first, trial.args[0], name, at):
            second.maps[name][at if len(at) > 1 else at[0]] = model.value(node(f"{name}'", *key))
            secrets.append((name, at))
    second.seal()
    if not all(view(first, trial.args[0], *secret) == view(as_state(second), trial.args[0], *secret) for secret in secrets):
        return None                         # the domain sees which of the two it is in
    other = run(trial.rule, second, trial.args)
    if (str(other), other.changes) == (str(trial.ran), trial.ran.changes):
        return None
    shown = ", ".join(f"{name}{list(at)}" for name, at in secrets)
    return trial.args, f"{trial.ran} here, {other} with something else in {shown}, which the domain does not see"


# How the parts of a transition's duty, and theorems, are confirmed.
CONFIRM: Final[dict[str, Confirm]] = {
    **dict.fromkeys((*POINTWISE, *COUNTING), invariant_fails), **dict.fromkeys(CONTRIBUTIONS, contribution_moves),
    **{rule.id: theorem_fails for rule in RULES.values() if rule.kind == "theorem"},
    "kinds": value_is_of_no_kind, "guards": refusal_leaves_a_trace, "FLOW-1": step_is_noticed, "FLOW-2": secret_decides,
    "FLOW-3": something_new_is_shown}


# --- the counterexample ------------------------------------------------------------------------------------------------------

class Refuter:
    """Finds counterexamples to what concerns one rule, with these arguments; None: the state before the first transition."""

    def __init__(self, facts: Facts, rule: Rule | None, args: Key) -> None:
        self.facts, self.rule, self.args = facts, rule, args

    def counterexample(self, part: str, formulas: list[Value], path: Path, at: Key) -> Counterexample:
        """The smallest that was found soon: a state that satisfies the formulas; one that is not confirmed says why."""
        witnesses = Witnesses(self.facts, self.args, Tally())
        try:
            if self.rule is None:
                return self.tried(part, at, witnesses.first(formulas, path), formulas)
            first = witnesses.find(formulas, path)
            small = self.tried(part, at, witnesses.smallest(formulas, path, first), formulas)
            return small if small.confirmed else self.tried(part, at, first, formulas)
        except NoWitness as none:
            return self.made(part, (), ConcreteState(self.facts.profile, 1), (), (), "", str(none))

    def tried(self, part: str, at: Key, witness: Witness, formulas: list[Value]) -> Counterexample:
        """What a run from this state shows."""
        before, state = witness.state(), witness.state()
        args, key = witness.model.key(self.args), witness.model.key(at)
        ran = run(self.rule, state, args) if self.rule else Ran(state, "ok")
        with as_written():
            unsound = [v.rule for v in audit(before) if v.rule not in AT_REST] if self.rule else []
            trial = Trial(part, self.rule, witness, args, key, before, ran, formulas)
            broken = CONFIRM[part](trial) if part in CONFIRM else None
        note = ""
        if unsound:
            note = f"{unsound[0]} fails before the step"
        elif part not in CONFIRM:
            note = "one run does not show it"
        elif broken is None:
            note = f"the run on plain numbers ({ran}) does not break it"
        where, why = broken or (key, "")
        return self.made(part, args, before, ran.changes, where, why, note)

    def made(self, part: str, args: IntKey, before: ConcreteState, changes: tuple[Change, ...], at: IntKey, because: str,
             note: str) -> Counterexample:
        """The counterexample; without a note it is confirmed."""
        names = list(inspect.signature(self.rule.function).parameters)[1:] if self.rule else []
        arguments = tuple((name, int(value)) for name, value in zip(names, args, strict=False))
        return Counterexample(self.facts.profile.name, self.rule.id if self.rule else "initial", arguments, dump_state(before),
                              changes, part, at, because, not note, note)
