"""xenspec's own lint: what ruff and mypy cannot know about this project.

Import arrows between the packages, the subset of Python in which the rules of `spec/` are written (so that symbolic terms can
follow it), the clauses of the rules, leaks of this machine, and docstrings.  `python -m tools.lint` prints lines of the form
`file:line: code message` and ends with 0 (clean), 1 (findings) or 2 (could not check).
"""
import argparse
import ast
import io
import json
import re
import subprocess
import sys
import tokenize
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

CODES: Final = {
    "XS101": "imports {}, which is not for this file",
    "XS201": "`is` compares identities, and a term has none",
    "XS202": "{}() looks at Python's type, not at the value",
    "XS203": "a broad `except` would swallow the prover's own exceptions",
    "XS204": "`try` inside a rule",
    "XS205": "{}() cannot take a term",
    "XS206": "f-string inside a rule",
    "XS207": "loop inside a transition over something else than data of the profile",
    "XS208": "recursion below transition {}",
    "XS209": "dict, set or list inside a transition",
    "XS210": "look-up in something else than a map of the state or data of the profile",
    "XS211": "`global` or `nonlocal`",
    "XS212": "iteration over a dict or a set",
    "XS213": "{}() reaches out of the specification",
    "XS214": "floating-point arithmetic",
    "XS301": "guard after an effect: a refusal would leave a trace",
    "XS302": "the second argument of require is no literal clause id like \"FRAME-4.1\"",
    "XS303": "clause {}",
    "XS304": "the clause's id does not end the require with an English comment after it, all on one line",
    "XS305": "require in a function that is not a transition, a guard or a check: its clause is in no register",
    "XS401": "names {}",
    "XS501": "the module's docstring does not begin with one line that says what it is",
}

# --- the data of the checks --------------------------------------------------------------------------------------------------

STDLIB, THIRD_PARTY = "the standard library", "other packages"

# What each package may import: modules of the project (with what is below them), or a whole class of modules.
ARROWS: Final[Mapping[str, frozenset[str]]] = {
    "spec": frozenset({"spec", "collections.abc", "dataclasses", "enum", "typing", "functools", "math"}),
    "refmodel": frozenset({"refmodel", "spec", STDLIB, "numpy"}),
    "proofs": frozenset({"proofs", "spec", "refmodel", STDLIB, THIRD_PARTY}),
    "oracle": frozenset({"oracle", "spec", "refmodel", "proofs", STDLIB, THIRD_PARTY}),
    "emulator": frozenset({"emulator", "spec.abi", "spec.vocabulary", STDLIB, THIRD_PARTY}),
}
# What single files may import beyond that.
MORE_ARROWS: Final[Mapping[str, frozenset[str]]] = {
    "spec/kernel.py": frozenset({"hashlib", "inspect", "re", "ast", "tokenize", "io", "textwrap"}),
    "spec/rules.py": frozenset({"types"}),
    "oracle/targets.py": frozenset({"emulator"}),
}
PROJECT: Final = frozenset(ARROWS) | {"tests", "tools"}

# Modules of spec/ that terms never run through: only the arrows count there.
INFRASTRUCTURE: Final = frozenset({"spec/kernel.py", "spec/vocabulary.py", "spec/abi.py", "spec/profile.py"})
# Decorators of functions with clauses; of functions that terms run through (a theorem may catch the fault that a walk ends in).
WITH_CLAUSES: Final = frozenset({"transition", "guard", "check", "rule"})
RULE_DECORATORS: Final = WITH_CLAUSES | {"predicate", "invariant", "counting"}
BANNED_CALLS: Final = {
    **dict.fromkeys(("isinstance", "issubclass", "type"), "XS202"),
    **dict.fromkeys(("hash", "int"), "XS205"),
    **dict.fromkeys(("print", "input", "open", "eval", "exec"), "XS213"),
    "float": "XS214",
}
CLAUSE: Final = re.compile(r"[A-Z][A-Z0-9]*-\d+\.\d+")
SENTENCE: Final = re.compile(r"#(?!\s*(?:noqa|type:|pragma))[^A-Za-z]*[A-Za-z]")
LEAKS: Final = {
    "a path of the machine that it was written on": re.compile(r"(?<![\w.])/(?:work|farm)/"),
    "the host of a package registry": re.compile(
        r"deb\.debian\.org|\bpypi\.org|pythonhosted\.org|registry\.npmjs|\bcrates\.io|proxy\.golang\.org"),
}
NOT_OURS: Final = frozenset({".git", ".venv", ".hypothesis", ".mypy_cache", ".pytest_cache", ".ruff_cache", "__pycache__"})

LOOPS: Final = (ast.For, ast.AsyncFor, ast.While, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
DISPLAYS: Final = (ast.Dict, ast.Set, ast.List)


# --- files and findings ------------------------------------------------------------------------------------------------------

class CannotCheck(Exception):
    """The tree is not one that the lint understands."""


@dataclass(frozen=True, order=True)
class Finding:
    """One line that breaks one rule of the house."""

    file: str
    line: int
    code: str
    message: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.code} {self.message}"


@dataclass(frozen=True)
class Module:
    """A Python file, parsed."""

    file: str
    source: str
    tree: ast.Module

    @property
    def package(self) -> str:
        """The top-level package."""
        return self.file.partition("/")[0]

    @property
    def holds_rules(self) -> bool:
        """Written in the subset that terms can follow."""
        return self.package == "spec" and self.file not in INFRASTRUCTURE

    @property
    def holds_clauses(self) -> bool:
        """Rules have clauses, and so have the model's orders of checks."""
        return self.holds_rules or self.package == "refmodel"

    @property
    def functions(self) -> Iterator[ast.FunctionDef]:
        """All functions and methods."""
        return (node for node in ast.walk(self.tree) if isinstance(node, ast.FunctionDef))

    def finding(self, line: int, code: str, detail: str = "") -> Finding:
        """A finding in this file."""
        return Finding(self.file, line, code, CODES[code].format(detail))


def parse(root: Path, path: Path) -> Module:
    """The module in one file."""
    file = path.relative_to(root).as_posix()
    try:
        source = path.read_text(encoding="utf-8")
        return Module(file, source, ast.parse(source, file))
    except (SyntaxError, UnicodeDecodeError) as error:
        raise CannotCheck(f"{file}: {error}") from error


def modules_of(root: Path) -> list[Module]:
    """Every module of the five packages."""
    modules = [parse(root, path) for package in ARROWS for path in sorted((root / package).rglob("*.py"))]
    if not any(module.package == "spec" for module in modules):
        raise CannotCheck(f"{root}: no package spec here")
    return modules


def tracked_files(root: Path) -> Iterator[Path]:
    """The files that git tracks or would track; without git, every file but caches."""
    listing = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
                             cwd=root, capture_output=True, text=True, check=False)
    paths = (root / name for name in listing.stdout.split("\0")) if listing.returncode == 0 else root.rglob("*")
    return (path for path in paths if path.is_file() and NOT_OURS.isdisjoint(path.relative_to(root).parts))


# --- import arrows -----------------------------------------------------------------------------------------------------------

def imports(module: Module) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Line and the dotted names of each import; a `from` import has two names, and is allowed if either is."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, (alias.name,)) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            source = absolute(module.file, node)
            yield from ((node.lineno, (source, f"{source}.{alias.name}")) for alias in node.names)
        elif isinstance(node, ast.Call) and called(node) in {"import_module", "__import__"}:
            name = node.args[0].value if node.args and isinstance(node.args[0], ast.Constant) else "a computed name"
            yield node.lineno, (str(name),)


def absolute(file: str, node: ast.ImportFrom) -> str:
    """The module that a `from` import names, with leading dots resolved."""
    package = file.split("/")[:-node.level] if node.level else []
    return ".".join([*package, *([node.module] if node.module else [])])


def may_import(name: str, permits: frozenset[str]) -> bool:
    """The permits contain the module, a package above it, or its whole class."""
    top = name.partition(".")[0]
    if any(name == permit or name.startswith(permit + ".") for permit in permits) or top == "__future__":
        return True
    if top in PROJECT:
        return False
    return (STDLIB if top in sys.stdlib_module_names else THIRD_PARTY) in permits


def check_arrows(module: Module) -> Iterator[Finding]:
    """XS101: import arrows run downwards only."""
    permits = ARROWS[module.package] | MORE_ARROWS.get(module.file, frozenset())
    for line, names in imports(module):
        if not any(may_import(name, permits) for name in names):
            yield module.finding(line, "XS101", names[-1])


# --- looking at functions ----------------------------------------------------------------------------------------------------

def called(call: ast.Call) -> str:
    """The name of a called function: `f(...)` or `module.f(...)`."""
    match call.func:
        case ast.Name(id=name) | ast.Attribute(value=ast.Name(), attr=name):
            return name
    return ""


def calls(nodes: Iterable[ast.AST]) -> set[str]:
    """The names of all functions called in these nodes."""
    return {called(node) for node in nodes if isinstance(node, ast.Call)}


def decorators(function: ast.FunctionDef) -> set[str]:
    """The names of a function's decorators."""
    expressions = (node.func if isinstance(node, ast.Call) else node for node in function.decorator_list)
    return {node.id if isinstance(node, ast.Name) else node.attr
            for node in expressions if isinstance(node, ast.Name | ast.Attribute)}


def executed(node: ast.AST) -> Iterator[ast.AST]:
    """A node and all below it that runs when it runs: no annotations, no decorators."""
    yield node
    for name, value in ast.iter_fields(node):
        if name not in {"annotation", "returns", "decorator_list"}:
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    yield from executed(child)


def state_name(function: ast.FunctionDef) -> str:
    """The state is a rule's first parameter."""
    return function.args.args[0].arg if function.args.args else ""


def is_map(node: ast.expr, state: str) -> bool:
    """`s.owner`, for state `s`."""
    return isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == state


def is_of_profile(node: ast.AST, state: str) -> bool:
    """`s.profile` or something in it, which is fixed, and so bounds a loop."""
    if not isinstance(node, ast.Attribute):
        return False
    return (node.attr == "profile" and is_map(node, state)) or is_of_profile(node.value, state)


def is_bounded(loop: ast.AST, state: str) -> bool:
    """A loop over data of the profile, perhaps numbered, reversed or zipped."""
    sources = [loop] if isinstance(loop, ast.For) else getattr(loop, "generators", [])
    return bool(sources) and all(any(is_of_profile(node, state) for node in ast.walk(source.iter)) for source in sources)


def stores(nodes: Iterable[ast.AST], state: str) -> bool:
    """Some node writes a map of the state: `s.owner[f] = d`, or `put(s.owner, f, d)`."""
    return any((isinstance(node, ast.Subscript) and not isinstance(node.ctx, ast.Load) and is_map(node.value, state))
               or (isinstance(node, ast.Call) and called(node) == "put" and bool(node.args) and is_map(node.args[0], state))
               for node in nodes)


def closure(seed: Iterable[str], arrows: Mapping[str, set[str]]) -> set[str]:
    """Everything from which an arrow path leads into the seed, and the seed."""
    reached = set(seed)
    while more := {name for name, targets in arrows.items() if targets & reached} - reached:
        reached |= more
    return reached


@dataclass(frozen=True)
class Rules:
    """What the functions of all rule modules do, by name and through the functions that they call."""

    guards: set[str]                        # may refuse
    effects: set[str]                       # may write the state
    recursive: set[str]                     # call themselves, or a function that does

    @classmethod
    def of(cls, modules: Iterable[Module]) -> "Rules":
        """Read off the modules' functions."""
        functions = [function for module in modules for function in module.functions]
        arrows = {function.name: calls(executed(function)) for function in functions}
        callers = {name: closure({name}, arrows) for name in arrows}
        looping = {name for name, targets in arrows.items() if targets & callers[name]}
        return cls(guards=closure({"require"}, arrows),
                   effects=closure((f.name for f in functions if stores(executed(f), state_name(f))), arrows),
                   recursive=closure(looping, arrows))

    def is_transition(self, function: ast.FunctionDef) -> bool:
        """A transition, or a part of one: a function that can refuse or write."""
        return "transition" in decorators(function) or function.name in self.guards | self.effects


# --- the subset of the rules -------------------------------------------------------------------------------------------------

def check_subset(module: Module) -> Iterator[Finding]:
    """XS201-XS205, XS211-XS214: what no rule module may use."""
    for node in executed(module.tree):
        match node:
            case ast.Compare(ops=ops) if any(isinstance(op, ast.Is | ast.IsNot) for op in ops):
                yield module.finding(node.lineno, "XS201")
            case ast.Call() if code := BANNED_CALLS.get(called(node)):
                yield module.finding(node.lineno, code, called(node))
            case ast.ExceptHandler() if is_broad(node.type):
                yield module.finding(node.lineno, "XS203")
            case ast.Global() | ast.Nonlocal():
                yield module.finding(node.lineno, "XS211")
            case (ast.For(iter=values) | ast.comprehension(iter=values)) if is_unordered(values):
                yield module.finding(values.lineno, "XS212")
            case ast.Constant(value=float()) | ast.BinOp(op=ast.Div()) | ast.AugAssign(op=ast.Div()):
                yield module.finding(node.lineno, "XS214")


def is_broad(caught: ast.expr | None) -> bool:
    """`except:`, or one that catches Exception or BaseException, perhaps among others."""
    if isinstance(caught, ast.Tuple):
        return any(is_broad(element) for element in caught.elts)
    return caught is None or (isinstance(caught, ast.Name) and caught.id in {"Exception", "BaseException"})


def is_unordered(values: ast.expr) -> bool:
    """A dict or a set, or a view of one, as far as the text shows."""
    if isinstance(values, ast.Call):
        method = values.func.attr if isinstance(values.func, ast.Attribute) else ""
        return called(values) in {"set", "frozenset", "dict"} or method in {"keys", "values", "items"}
    return isinstance(values, ast.Dict | ast.Set | ast.SetComp | ast.DictComp)


def check_rules(module: Module, rules: Rules) -> Iterator[Finding]:
    """XS204, XS206: what no rule may use; XS207-XS210, XS301: what no transition may."""
    for function in module.functions:
        if decorators(function) & RULE_DECORATORS or rules.is_transition(function):
            yield from check_rule(module, function)
        if rules.is_transition(function):
            yield from check_transition(module, function)
            paths = Paths(state_name(function), rules)
            paths.follow(function.body)
            yield from (module.finding(line, "XS301") for line in paths.late_guards)
            if function.name in rules.recursive:
                yield module.finding(function.lineno, "XS208", function.name)


def check_rule(module: Module, function: ast.FunctionDef) -> Iterator[Finding]:
    """XS204, XS206."""
    for node in executed(function):
        if isinstance(node, ast.Try | ast.TryStar):
            yield module.finding(node.lineno, "XS204")
        elif isinstance(node, ast.JoinedStr):
            yield module.finding(node.lineno, "XS206")


def check_transition(module: Module, function: ast.FunctionDef) -> Iterator[Finding]:
    """XS207, XS209, XS210."""
    state = state_name(function)
    for node in executed(function):
        if isinstance(node, LOOPS) and not is_bounded(node, state):
            yield module.finding(node.lineno, "XS207")
        elif isinstance(node, DISPLAYS):
            yield module.finding(node.lineno, "XS209")
        elif isinstance(node, ast.Subscript) and not (is_map(node.value, state) or is_of_profile(node.value, state)):
            yield module.finding(node.lineno, "XS210")


@dataclass
class Paths:
    """The paths through one transition, followed block by block."""

    state: str
    rules: Rules
    late_guards: list[int] = field(default_factory=list)        # lines of guards met after an effect

    def follow(self, block: list[ast.stmt], written: bool = False) -> bool | None:
        """Whether the state is written at the block's end, if it was so at its start; None if no path gets to the end."""
        for statement in block:
            branches = branches_of(statement)
            written = self.step(statement, written, branches)
            if isinstance(statement, ast.Return | ast.Raise):
                return None
            ends = [self.follow(branch, written) for branch in branches]
            if ends and all(end is None for end in ends):
                return None
            written = written or any(ends)
        return written

    def step(self, statement: ast.stmt, written: bool, branches: list[list[ast.stmt]]) -> bool:
        """The same for one statement without its branches."""
        nodes = list(own_nodes(statement, branches))
        if written and calls(nodes) & self.rules.guards:
            self.late_guards.append(statement.lineno)
        return written or stores(nodes, self.state) or bool(calls(nodes) & self.rules.effects)


def branches_of(statement: ast.stmt) -> list[list[ast.stmt]]:
    """The blocks of which one runs (`try` has a finding of its own)."""
    match statement:
        case ast.For(body=body) | ast.While(body=body):
            return [body, []]
        case ast.If(body=body, orelse=orelse):
            return [body, orelse]
        case ast.Match(cases=cases):
            return [*(case.body for case in cases), []]
    return []


def own_nodes(statement: ast.stmt, branches: list[list[ast.stmt]]) -> Iterator[ast.AST]:
    """What runs in a statement before its branches do: of `if` the test, of `match` the subject."""
    parts = [child for child in ast.iter_child_nodes(statement) if isinstance(child, ast.expr)] if branches else [statement]
    return (node for part in parts for node in executed(part))


# --- clauses -----------------------------------------------------------------------------------------------------------------

def comments(source: str) -> dict[int, str]:
    """The comment of each line that has one."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {token.start[0]: token.string for token in tokens if token.type == tokenize.COMMENT}


def clause_of(call: ast.Call) -> ast.Constant | None:
    """The literal id of the clause that a `require` states."""
    match call.args:
        case [_, ast.Constant(value=str(clause)) as literal] if CLAUSE.fullmatch(clause):
            return literal
    return None


def clauses(module: Module) -> Iterator[tuple[ast.Call, bool]]:
    """Every `require` in a module, and whether it is part of a rule."""
    in_rules = {node for function in module.functions if decorators(function) & WITH_CLAUSES for node in ast.walk(function)}
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Call) and called(node) == "require":
            yield node, node in in_rules


def check_clauses(modules: Iterable[Module]) -> Iterator[Finding]:
    """XS302-XS305: every clause has an id of its own, says in English what it demands, and is part of a rule."""
    places: dict[str, str] = {}
    for module in modules:
        notes = comments(module.source)
        for call, in_rule in clauses(module):
            literal = clause_of(call)
            if literal is None:
                yield module.finding(call.lineno, "XS302")
                continue
            clause, place = str(literal.value), f"{module.file}:{call.lineno}"
            if places.setdefault(clause, place) != place:
                yield module.finding(call.lineno, "XS303", f"{clause} already stands at {places[clause]}")
            if literal.lineno != call.end_lineno or not SENTENCE.match(notes.get(literal.lineno, "")):
                yield module.finding(literal.lineno, "XS304")
            if not in_rule:
                yield module.finding(call.lineno, "XS305")


# --- leaks and docstrings ----------------------------------------------------------------------------------------------------

def check_leaks(root: Path) -> Iterator[Finding]:
    """XS401: no text file names this machine or a registry."""
    for path in tracked_files(root):
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:          # not a text
            continue
        file = path.relative_to(root).as_posix()
        for number, line in enumerate(lines, 1):
            for what, pattern in LEAKS.items():
                if pattern.search(line):
                    yield Finding(file, number, "XS401", CODES["XS401"].format(what))


def check_docstring(module: Module) -> Iterator[Finding]:
    """XS501: a module says in its first line what it is."""
    head, _, rest = (ast.get_docstring(module.tree, clean=False) or "").partition("\n")
    if not head or (rest and not rest.startswith("\n")):
        yield module.finding(1, "XS501")


# --- the command -------------------------------------------------------------------------------------------------------------

def findings_of(root: Path) -> list[Finding]:
    """Every finding in the tree, in order."""
    modules = modules_of(root)
    with_rules = [module for module in modules if module.holds_rules]
    rules = Rules.of(with_rules)
    found = [*check_leaks(root), *check_clauses(module for module in modules if module.holds_clauses)]
    everywhere: list[Callable[[Module], Iterator[Finding]]] = [check_arrows, check_docstring]
    found += [finding for check in everywhere for module in modules for finding in check(module)]
    for module in with_rules:
        found += [*check_subset(module), *check_rules(module, rules)]
    return sorted(set(found))


def main(arguments: list[str] | None = None) -> int:
    """Check a tree, print its findings, and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tools.lint", description="xenspec's own lint",
                                     epilog="codes: " + "; ".join(f"{code} {text.format('...')}" for code, text in CODES.items()))
    parser.add_argument("--root", type=Path, default=Path(), help="the checkout (default: here)")
    parser.add_argument("--json", action="store_true", help="print the findings as one JSON array")
    options = parser.parse_args(arguments)
    try:
        found = findings_of(options.root)
    except CannotCheck as error:
        print(f"lint: {error}", file=sys.stderr)
        return 2
    if options.json:
        print(json.dumps([asdict(finding) for finding in found], indent=1))
    else:
        print(*found, sep="\n", end="\n" if found else "")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
