"""Runs rules on the plain numbers of a witness, and compares what they do with what the prover's terms say."""
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from proofs.ledger import REFUTED, UNKNOWN
from proofs.symbolic.paths import Path, as_written
from proofs.symbolic.terms import Value, bool_value, build, int_value
from proofs.witness import IntKey, Model, NoWitness, Witnesses
from refmodel.state import Change, ConcreteState
from spec.kernel import Refused, Rule
from spec.x86.paging import Fault

WRONG: Final = "wrong"                      # the outcome of a run that ends in no way that a rule may end in


@dataclass(frozen=True, slots=True)
class Ran:
    """What a rule did: `state` is the one afterwards; `outcome` is ok, refused (by `rule`), fault or wrong."""
    state: ConcreteState
    outcome: str
    rule: str = ""
    value: Any = None                       # what it returned, or the exception

    def __str__(self) -> str:
        return {"refused": f"refused by {self.rule}", "ok": "ok"}.get(self.outcome, f"{self.outcome} {self.value!r}")

    @property
    def changes(self) -> tuple[Change, ...]:
        """What it stored, in order."""
        return changes(self.state)


def run(rule: Rule, state: ConcreteState, args: IntKey) -> Ran:
    """The rule's own function, on plain numbers."""
    with as_written():
        try:
            return Ran(state, "ok", value=rule.function(state, *args))
        except Refused as refusal:
            return Ran(state, "refused", refusal.rule)
        except Fault as fault:
            return Ran(state, "fault", value=fault)
        except Exception as e:              # whatever a rule should not do
            return Ran(state, WRONG, value=e)


def changes(state: ConcreteState) -> tuple[Change, ...]:
    """The undo log, read forwards."""
    out: list[Change] = []
    latest: dict[tuple[str, Any], Any] = {(m.name, key): m[key] for m, key, _ in state.log}
    for m, key, old in reversed(state.log):
        out.append(Change(m.name, key if isinstance(key, tuple) else (key,), int(old), int(latest[m.name, key])))
        latest[m.name, key] = old
    return tuple(out[::-1])


# --- comparing ---------------------------------------------------------------------------------------------------------------

def differences(path: Path, model: Model, ran: Ran) -> Iterator[str]:
    """In what a run differs from what the terms of a path predict."""
    if (ran.outcome, ran.rule) != (path.outcome, path.rule):
        yield f"the terms say {Ran(ran.state, path.outcome, path.rule, path.value)}, the run says {ran}"
        return
    if path.outcome == "fault":
        for name in ("vector", "error", "address"):
            yield from unequal(f"the fault's {name}", model.value(int_value(getattr(path.value, name))), getattr(ran.value, name))
    elif path.outcome == "ok" and path.value is not None:
        yield from unequal("the value", model.value(bool_value(path.value)), ran.value)
    stores = {(name, model.key(key)): model.value(value)
              for name, chain in path.state.stores.items() for key, value in chain}
    for (name, key), value in stores.items():
        yield from unequal(f"{name}{list(key)}", value, ran.state.maps[name][key if len(key) > 1 else key[0]])
    for change in ran.changes:
        if (change.map, change.key) not in stores:
            yield f"the run stored {change.map}{list(change.key)}, the terms did not"


def unequal(what: str, predicted: int, found: int) -> Iterator[str]:
    """Two values that should be the same."""
    if predicted != found:
        yield f"{what} is {predicted:#x} by the terms, {found:#x} by the run"


@dataclass(slots=True)
class Fidelity:
    """Whether a rule runs on plain numbers as on terms: each path, and each refusal, at a witness; `found` hears if not."""
    rule: Rule
    given: list[Value]
    witnesses: Witnesses
    found: Callable[[str, str], None]
    ran: int = 0                            # paths
    refused: int = 0                        # refusals
    witnessed: int = 0                      # paths and refusals with a witness
    certain: int = 0                        # conjuncts that can't fail where they are asked: the invariants imply them
    _asked: set[tuple[Value, ...]] = field(default_factory=set)

    def path(self, path: Path, where: str) -> bool:
        """One path, and the refusals on its way.  True if a witness shows that the path can be gone."""
        before = self.witnessed
        if self.agrees(path, path, where):
            self.ran += 1
        can_be_gone = self.witnessed > before
        for conjunct, n in path.held:
            end = Path(path.state, "refused", conjunct, conditions=[*path.conditions[:n], (path.conditions[n][0], False)])
            asked = tuple(conditions(end))
            if asked not in self._asked:
                self._asked.add(asked)
                if self.agrees(path, end, f"{where}, where {conjunct} fails"):
                    self.refused += 1
                else:
                    self.certain += 1
        return can_be_gone

    def agrees(self, path: Path, end: Path, where: str) -> bool:
        """A witness is found, and its run is as predicted; or something is said.  False if it is not possible."""
        facts = [*self.given, *conditions(end)]
        try:
            witness = self.witnesses.find(facts, path)
        except NoWitness as none:
            if not none.impossible:
                self.found(REFUTED if none.unfaithful else UNKNOWN, f"{where}: {none}")
            return not none.impossible
        self.witnessed += 1
        predicted = end if end.outcome == "ok" else Path(type(end.state)(end.state.profile), end.outcome, end.rule, end.value)
        ran = run(self.rule, witness.state(), witness.model.key(self.witnesses.args))
        for difference in differences(predicted, witness.model, ran):
            self.found(REFUTED, f"{where}: {difference}")
        return True

    def __str__(self) -> str:
        return f"run: {self.ran} path(s), {self.refused} refusal(s); {self.certain} conjunct(s) can't fail where they are asked"


def conditions(path: Path) -> list[Value]:
    """What a path has decided."""
    return [z if way else build("not", z) for z, way in path.conditions]
