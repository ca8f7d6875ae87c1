"""Witnesses: from a solver's model to a whole concrete state in which every invariant holds, at every key.

A query knows the invariants only where it looks.  So a state is decoded from the model with no other references than the known
ones (the ghost sums are *closed*), filled up with what Xen keeps in its own slots, and audited as a whole; where an invariant
fails after all, its instance there joins the query, which is solved again.
"""
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Final

import z3

from proofs.symbolic.facts import COUNTS, INVARIANTS, Facts, Keys, is_clear
from proofs.symbolic.paths import Path, as_written
from proofs.symbolic.search import Tally
from proofs.symbolic.sorts import both, either
from proofs.symbolic.state import QUANTIFIED, Key
from proofs.symbolic.terms import Node, Value, build, node
from refmodel.audit import audit
from refmodel.state import ConcreteState, as_state
from spec.abi import DOMID_XEN, NOBODY
from spec.invariants import AT_REST, SUMS, linear_from, linear_to, walkable
from spec.kernel import RULES, SCHEMA, FrameType, Index, Mfn
from spec.profile import Profile
from spec.tables import is_xen_slot, xen_entry

EFFORT: Final = 300_000_000                 # of the solver, for one state
WISH_EFFORT: Final = 5_000_000              # for one wish
WISHES: Final = 60                          # questions about wishes, for one state
ROUNDS: Final = 8                           # of adding what the audit found
IntKey = tuple[int, ...]
Lookup = tuple[str, Key]


class NoWitness(Exception):
    """No state was found; `impossible` if there surely is none; `unfaithful` if terms and plain numbers disagree about it."""

    def __init__(self, why: str, impossible: bool = False, unfaithful: bool = False) -> None:
        super().__init__(why)
        self.impossible, self.unfaithful = impossible, unfaithful


@dataclass(slots=True)
class Model:
    """What the solver found: the value of every expression."""
    sorts: Any
    model: Any
    _values: dict[Value, int] = field(default_factory=dict)

    def value(self, z: Value) -> int:
        """The value of an expression, as a plain number (or bool)."""
        if not isinstance(z, Node):
            return z
        if z not in self._values:
            self._values[z] = self._value(z)
        return self._values[z]

    def _value(self, z: Node) -> int:
        sort = self.sorts.sort(z)
        if sort == "bool":
            return bool(z3.is_true(self.model.eval(self.sorts.boolean(z), model_completion=True)))
        if sort == "count":
            return int(self.model.eval(self.sorts.count(z), model_completion=True).as_long())
        found = self.model.eval(self.sorts.whole(z), model_completion=True)
        return int(found.as_signed_long() if self.sorts.bounds(z)[0] < 0 else found.as_long())

    def key(self, key: Key) -> IntKey:
        """The values of a key."""
        return tuple(map(self.value, key))


@dataclass(slots=True)
class Witness:
    """A model, and the state that it stands for."""
    profile: Profile
    model: Model
    values: dict[tuple[str, IntKey], int]

    def state(self) -> ConcreteState:
        """The state, afresh."""
        frames = [v for (name, key), value in self.values.items()
                  for kind, v in zip((*SCHEMA[name][0], SCHEMA[name][1]), (*key, value), strict=True) if kind == "frame"]
        state = ConcreteState(self.profile, max(frames, default=0) + 1)
        for (name, key), value in self.values.items():
            state.maps[name][key if len(key) > 1 else key[0]] = value
        state.seal()
        return state


def lookups(formulas: Iterable[Value], mark: str = "") -> Iterator[Lookup]:
    """What the formulas look up in the state before, and the stretches that they ask for; with the mark of another state
    (see `proofs.noninterference`) in that one."""
    seen: set[Value] = set()
    todo = list(formulas)[::-1]
    while todo:
        z = todo.pop()
        if isinstance(z, Node) and z not in seen:
            seen.add(z)
            name = z.op.removesuffix(mark)
            if name + mark == z.op and (name in SCHEMA or (name in QUANTIFIED and not mark)):
                yield name, z.args
            todo += z.args[::-1]


@dataclass(frozen=True, slots=True)
class Try:
    """How a state is looked for: a tame one has no unknown owners, but with `others` one more domain; a filled one has `fillers`;
    `settled` needs no instances."""
    formulas: list[Value]
    tame: bool = False
    others: bool = False
    filled: bool = False
    settled: frozenset[tuple[str, Key]] = frozenset()


class Witnesses:
    """The search for witnesses of what concerns one rule, with these arguments."""

    def __init__(self, facts: Facts, args: Key, tally: Tally) -> None:
        self.facts, self.sorts, self.profile, self.args, self.tally = facts, facts.sorts, facts.profile, args, tally

    def find(self, formulas: list[Value], path: Path) -> Witness:
        """A state that satisfies the formulas and all invariants; or `NoWitness`."""
        hopeful = Try([*formulas, *hopes(path, self.args)], tame=True, settled=settled(path))
        tame, untamed = Try(formulas, tame=True), Try(formulas)
        filled = [tame, replace(tame, filled=True)] if fillers(formulas, path) else [tame]
        others = [replace(attempt, others=True) for attempt in filled]
        for attempt in (hopeful, *filled, *others, untamed, replace(untamed, filled=True)):
            try:
                return self.refined(attempt, path)
            except NoWitness as none:
                last = none
            if last.unfaithful or (attempt is filled[-1] and last.impossible and not self.possible(formulas, path)):
                raise last
        raise NoWitness(str(last))

    def possible(self, formulas: list[Value], path: Path) -> bool:
        """Whether there may be a state that has other references, too."""
        keys, stretches = keys_of(formulas, path)
        known, others = Keys(), fillers(formulas, path)
        known.by_kinds = {kinds: dict(of) for kinds, of in keys.by_kinds.items()}
        keys.touch(("word", key) for _, _, key in others)
        facts = [*self.facts.closure(keys, set()), *self.facts.positivity(keys), *exact(stretches, keys)]
        facts += [either(build("==", node(c.__name__, *to), self.facts.total(c, to, known.of(SUMS[c][1]))),
                         self.facts.contribution(c, to, key)) for c, to, key in others]
        return bool(self.tally.check(self.solver([*formulas, *facts], EFFORT)) != z3.unsat)

    def first(self, formulas: list[Value], path: Path) -> Witness:
        """Of a state before the first transition: the formulas say all that is known of it."""
        model = self.solve(formulas)
        return Witness(self.profile, model, self.decode(model, formulas, path))

    def refined(self, attempt: "Try", path: Path) -> Witness:
        """A state whose references are the known ones."""
        keys, stretches = keys_of(attempt.formulas, path)
        if attempt.tame:
            keys.add(("dom",), self.args[:1])
        if attempt.others:
            keys.add(("dom",), (node("dom_spare"),))
        if attempt.filled:
            keys.touch(("word", key) for _, _, key in fillers(attempt.formulas, path))
        for _ in range(ROUNDS):
            done = set(attempt.settled)
            known = [*attempt.formulas, *self.facts.closure(keys, done), *self.closed(keys), *exact(stretches, keys)]
            known += known_owners(keys) if attempt.tame else []
            model = self.solve(known)
            witness = Witness(self.profile, model, self.decode(model, known, path))
            missing = self.missing(witness, known, stretches)
            if not missing:
                return witness
            for at in missing:
                if at in done and at not in attempt.settled:
                    raise NoWitness(f"{at[0]} holds by the terms, and not by the run", unfaithful=True)
            for rule, key in missing:
                keys.add(RULES[rule].keys if rule in RULES else ("frame", "index"), key)
        raise NoWitness(f"after {ROUNDS} rounds, {missing[0][0]} still fails in the state")

    def closed(self, keys: Keys) -> Iterator[Value]:
        """There are no other references than those of the known keys."""
        for c, (target, kinds) in SUMS.items():
            for to in keys.of((target,)):
                yield build("==", node(c.__name__, *to), self.facts.total(c, to, keys.of(kinds)))

    def solver(self, formulas: list[Value], effort: int) -> Any:
        """A solver that knows these."""
        solver = z3.Solver()
        solver.set("rlimit", effort)
        solver.add(*map(self.sorts.boolean, formulas))
        return solver

    def solve(self, formulas: list[Value]) -> Model:
        """A model of the formulas; or `NoWitness`."""
        solver = self.solver(formulas, EFFORT)
        answer = self.tally.check(solver)
        if answer == z3.sat:
            return Model(self.sorts, solver.model())
        raise NoWitness("no state without other references was found", impossible=answer == z3.unsat)

    # --- decoding ---

    def decode(self, model: Model, formulas: list[Value], path: Path) -> dict[tuple[str, IntKey], int]:
        """What is looked up, and what Xen keeps in the slots of the root tables that are in use."""
        values = {}
        asked: list[tuple[str, Key, Value]] = [(name, key, node(name, *key)) for name, key in lookups(formulas) if name in SCHEMA]
        asked += [(name, key, path.state.before(name, key)) for name, key in path.state.touched]
        for name, key, z in asked:
            at = model.key(key)
            if self.fits(SCHEMA[name][0], at):
                values[name, at] = model.value(z)
        with as_written():
            return values | self.xen_slots(Witness(self.profile, model, values).state())

    def fits(self, kinds: tuple[str, ...], key: IntKey) -> bool:
        """Each part is of its kind; beyond the end of a table nothing is."""
        ends = {kind: 1 << width for kind, width in self.sorts.widths.items()}
        if kinds[0] == "frame":
            ends["index"] = self.profile.entries
        return all(0 <= k < ends[kind] for kind, k in zip(kinds, key, strict=True))

    def xen_slots(self, state: ConcreteState) -> dict[tuple[str, IntKey], int]:
        """The words of Xen's slots that nobody looked at."""
        s, root = as_state(state), FrameType(self.profile.root)
        slots = [i for i in map(Index, range(self.profile.entries)) if is_xen_slot(s, root, i)]
        tables = [Mfn(f) for f, t in state.maps["type"].items() if t == root]
        return {("word", (f, i)): xen_entry(s, f, i) for f in tables for i in slots
                if (f, i) not in s.word and (i < s.upto[f] or walkable(s, f)) and (i != self.profile.late_slot or s.opened[f])}

    # --- what the query did not know ---

    def missing(self, witness: Witness, known: list[Value], stretches: list[Lookup]) -> list[tuple[str, Key]]:
        """The rules that fail in the state, at keys as expressions; and what is there in an absent or blank stretch."""
        state, value = witness.state(), witness.model.value
        names = self.names(witness, known)
        with as_written():
            out = [(v.rule, tuple(names.get((kind, k), k) for kind, k in zip(RULES[v.rule].keys, v.key, strict=True)))
                   for v in audit(state) if v.rule not in AT_REST]
        for name, (f, first, end) in stretches:
            if value(node(name, f, first, end)):
                there = state.present(value(f)) if name == "absent" else [i for i, w in state.row(value(f)).items() if w]
                out += [("present", (f, i)) for i in there if value(first) <= i < value(end)]
        return out

    def names(self, witness: Witness, known: list[Value]) -> dict[tuple[str, int], Value]:
        """The expression that first came to each value of a kind."""
        out: dict[tuple[str, int], Value] = {}
        for name, key in lookups(known):
            if name in SCHEMA:
                kinds, kind = SCHEMA[name]
                for k, z in zip((*kinds, kind), (*key, node(name, *key)), strict=True):
                    if k in ("frame", "dom", "index", "tag", "page", "reg", "selector", "vector"):
                        out.setdefault((k, witness.model.value(z)), z)
        return out

    # --- wishes ---

    def smallest(self, formulas: list[Value], path: Path, first: Witness) -> Witness:
        """A state with little in it, if the solver finds one soon; else the first one."""
        for tame in (True, False):
            try:
                return self.refined(Try([*formulas, *self.granted(formulas, path, tame)], tame), path)
            except NoWitness:
                continue
        return first

    def granted(self, formulas: list[Value], path: Path, tame: bool) -> list[Value]:
        """Wishes that come true together: each in turn that the last model grants already, or the solver soon."""
        keys, stretches = keys_of(formulas, path)
        keys.add(("dom",), self.args[:1])
        known = [*formulas, *self.facts.closure(keys, set()), *self.closed(keys), *exact(stretches, keys)]
        known += known_owners(keys) if tame else []
        solver, kept, tries = self.solver(known, WISH_EFFORT), list[Value](), 0
        if self.tally.check(solver) != z3.sat:
            return []
        model, todo = Model(self.sorts, solver.model()), wishes(known, path)[::-1]
        while todo and tries < WISHES:
            wished = todo.pop()
            group = [z for z in wished if not model.value(z)]
            solver.add(*(self.sorts.boolean(z) for z in wished if model.value(z)))
            kept += [z for z in wished if model.value(z)]
            if not group:
                continue
            solver.push()
            solver.add(*map(self.sorts.boolean, group))
            tries += 1
            if self.tally.check(solver) == z3.sat:
                model = Model(self.sorts, solver.model())
                todo.append(group)          # now granted
            elif len(group) > 1:
                half = len(group) // 2
                todo += [group[half:], group[:half]]
            solver.pop()
        return kept


def keys_of(formulas: list[Value], path: Path) -> tuple[Keys, list[Lookup]]:
    """The keys of all maps that matter, and the stretches that are asked for."""
    found = list(dict.fromkeys(lookups(formulas)))
    keys = Keys(path.state.touched)
    keys.touch(at for at in found if at[0] in SCHEMA)
    stretches = list(dict.fromkeys([*path.state.stretches, *(at for at in found if at[0] in QUANTIFIED)]))
    keys.touch(("word", (f, node(f"index_present{n}"))) for n, (_, (f, _, _)) in enumerate(stretches))
    return keys, stretches


def fillers(formulas: list[Value], path: Path) -> list[tuple[Any, Key, Key]]:
    """Slots of which nothing is known, which count for a table's linear uses: those alone no token explains."""
    asked = set(lookups(formulas))
    tables = [key for name, key in path.state.touched if name == "linear" and (name, key) in asked]
    return [(c, to, (node(f"frame_{c.__name__}{n}"), node(f"index_{c.__name__}{n}")))
            for n, to in enumerate(tables) for c in (linear_from, linear_to)]


def settled(path: Path) -> frozenset[tuple[str, Key]]:
    """What the hopes make needless: what holds of the acting domain holds of the owners."""
    owners = [(node("owner", *key[:1]),) for name, key in path.state.touched if SCHEMA[name][0][0] == "frame"]
    return frozenset((rule.id, owner) for rule in (*INVARIANTS, *COUNTS) if rule.keys == ("dom",) for owner in owners)


def exact(stretches: list[Lookup], keys: Keys) -> Iterator[Value]:
    """A stretch is absent (or blank) just if no word of it is present (or not 0): no known one, and there is one if it is not."""
    for n, (name, (f, first, end)) in enumerate(stretches):
        asked = node(name, f, first, end)
        for g, i in keys.of(("frame", "index")):
            there = both(build("==", g, f), inside(i, first, end), build("not", is_clear(name, g, i)))
            yield build("not", both(asked, there))
        k = node(f"index_present{n}")
        yield either(asked, both(inside(k, first, end), build("not", is_clear(name, f, k))))


def known_owners(keys: Keys) -> list[Value]:
    """Every frame is one of the known domains', or nobody's, or Xen's."""
    domains = [d for (d,) in keys.of(("dom",))]
    return [either(*(build("==", node("owner", f), d) for d in (*domains, NOBODY, DOMID_XEN))) for (f,) in keys.of(("frame",))]


def inside(i: Value, first: Value, end: Value) -> Value:
    """The index is in [first, end)."""
    return both(build("<=", first, i), build("not", build("<=", end, i)))


def hopes(path: Path, args: Key) -> list[Value]:
    """What makes a state easy to find: the first domain acts, owns all frames, and the tables are the frames 1, 2, and so on."""
    frames = dict.fromkeys(key[:1] for name, key in path.state.touched if SCHEMA[name][0][0] == "frame")
    tables = dict.fromkeys(key[0] for name, key in path.state.touched if name == "word")
    return [build("==", args[0], 1), *(build("==", node("owner", f), 1) for (f,) in frames),
            *(build("==", f, n) for n, f in enumerate(tables, 1))]


def wishes(known: list[Value], path: Path) -> list[list[Value]]:
    """What makes a state small, the most telling first: groups that are granted whole, or in parts."""
    asked = list(dict.fromkeys(at for at in [*lookups(known), *path.state.touched] if at[0] in SCHEMA))
    of: dict[str, list[Value]] = {}
    for name, key in asked:
        for kind, z in zip((*SCHEMA[name][0], SCHEMA[name][1]), (*key, node(name, *key)), strict=True):
            if isinstance(z, Node) and z not in of.setdefault(kind, []):
                of[kind].append(z)

    def each(kind: str, wish: Callable[[Value], Value]) -> list[Value]:
        return [wish(z) for z in of.get(kind, [])]

    def at_most(n: int) -> Callable[[Value], Value]:
        return lambda z: both(build("<=", 0, z), build("<=", z, n))

    def is_zero(z: Value) -> Value:
        return build("==", z, 0)

    empty = [is_zero(node(name, *key)) for name, key in asked if name in ("tlb", "walk")]
    free = [build("==", node(name, *key), NOBODY) for name, key in asked if name in ("owner", "last_owner")]
    return [empty, each("bool", lambda z: build("not", z)), free, each("type", is_zero), each("count", at_most(3)),
            each("frame", at_most(15)), each("dom", at_most(7)), each("dom", known_domain), each("count", is_zero),
            each("word", is_zero), each("frame", at_most(7)), each("index", at_most(3)), each("word", at_most(0xFFFF)),
            each("frame", is_zero)]


def known_domain(d: Value) -> Value:
    """One of the first few, or none of a machine's."""
    return either(build("<=", d, 7), build("==", d, NOBODY), build("==", d, DOMID_XEN))
