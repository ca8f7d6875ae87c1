"""The project's own lint: each check fires on a bad snippet and stays quiet on a good one, and the real tree is clean."""
import json
import subprocess
from pathlib import Path

import pytest

from tools import lint

ROOT = Path(__file__).parents[2]
HEAD = '"""A module of the trial."""\n'
GOOD_RULES = HEAD + '''
from enum import IntEnum

from spec.kernel import guard, predicate, require, transition


@predicate
def is_table(s, t):
    """Plain branches and comparisons."""
    return t in (1, 2)


@guard("REF-1", source="the paper")
def require_own(s, d, f):
    """A guard that several transitions share."""
    require(s.owner[f] == d, "REF-1.1")         # the frame is the domain's own


def count(s, f):
    """An effect that several transitions share."""
    s.ref_count[f] += 1


@transition("TYPE-1", source="the paper")
def take_type(s, d, f, t: dict[int, int]):
    """Guards, then effects; a path that has ended does not count."""
    require_own(s, d, f)
    if s.type_count[f] == 0:
        require(is_table(s, t)
                or t == 0, "TYPE-1.1")          # a frame without references may take any type
        s.type[f] = t
        return
    require(s.type[f] == t, "TYPE-1.2")         # a frame in use keeps its type
    for level in reversed(s.profile.levels):    # as often on every state
        s.word[f, s.profile.slots[level]] = 0
    count(s, f)
'''


def tree(root: Path, **files: str) -> Path:
    """A small project: `spec__rules` is the file spec/rules.py."""
    for name, text in {"spec__kernel": HEAD, **files}.items():
        path = root / (name.replace("__", "/") + ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


def codes(root: Path, **files: str) -> list[str]:
    """The codes of all findings in such a project."""
    return [finding.code for finding in lint.findings_of(tree(root, **files))]


def transition(*body: str) -> str:
    """A module with one transition."""
    return "\n".join([HEAD, '@transition("T-1")', "def t(s, d, f):", *(f"    {line}" for line in body), ""])


def test_good_rules_pass(tmp_path):
    assert codes(tmp_path, spec__rules=GOOD_RULES) == []


@pytest.mark.parametrize(("file", "line"), [
    ("spec__rules", "import random"),
    ("spec__rules", "import hashlib"),
    ("spec__rules", "from collections import OrderedDict"),
    ("spec__rules", "import numpy"),
    ("spec__rules", "from refmodel import machine"),
    ("spec__deep__rules", "from ...oracle import cli"),
    ("refmodel__machine", "import oracle.cli"),
    ("refmodel__machine", "import typer"),
    ("refmodel__machine", "from tests import conftest"),
    ("proofs__engine", "import emulator"),
    ("proofs__engine", "from oracle.cli import main"),
    ("oracle__cli", "def lazy():\n    from emulator import engine"),
    ("oracle__cli", "import tools.lint"),
    ("oracle__cli", 'import importlib\nimportlib.import_module("emulator.engine")'),
    ("emulator__engine", "import spec"),
    ("emulator__engine", "from spec import abi, kernel"),
    ("emulator__engine", "import spec.vocabulary_of_others"),
    ("emulator__engine", "from refmodel import machine"),
])
def test_arrows_against_the_plan(tmp_path, file, line):
    assert codes(tmp_path, **{file: f"{HEAD}{line}\n"}) == ["XS101"]


@pytest.mark.parametrize(("file", "line"), [
    ("spec__rules", "from __future__ import annotations"),
    ("spec__rules", "from collections.abc import Iterator"),
    ("spec__rules", "from collections import abc"),
    ("spec__deep__rules", "from ..kernel import require"),
    ("spec__kernel", "import hashlib"),
    ("refmodel__machine", "import collections, spec.kernel, numpy.typing"),
    ("proofs__engine", "import z3\nimport refmodel"),
    ("oracle__cli", "import typer\nfrom proofs import engine"),
    ("oracle__targets", "from emulator import engine"),
    ("emulator__engine", "import bochscpu\nfrom spec import abi, vocabulary\nfrom spec.abi import EPERM\nfrom . import stubs"),
])
def test_arrows_of_the_plan(tmp_path, file, line):
    assert codes(tmp_path, **{file: f"{HEAD}{line}\n"}) == []


@pytest.mark.parametrize(("code", "line"), [
    ("XS201", "x = 1 is None"),
    ("XS201", "x = 1 is not 2"),
    ("XS202", "x = isinstance(1, str)"),
    ("XS202", "x = issubclass(bool, str)"),
    ("XS202", "x = type(1)"),
    ("XS203", "try:\n    x = 1\nexcept:\n    x = 2"),
    ("XS203", "try:\n    x = 1\nexcept (KeyError, Exception):\n    x = 2"),
    ("XS205", "x = hash(1)"),
    ("XS205", "x = int(1)"),
    ("XS211", "def f():\n    global x"),
    ("XS212", "for x in {1, 2}:\n    pass"),
    ("XS212", "x = [y for y in SOME.items()]"),
    ("XS212", "x = [y for y in set((1, 2))]"),
    ("XS213", "print(1)"),
    ("XS214", "x = 0.5"),
    ("XS214", "x = float(1)"),
    ("XS214", "x = 1 / 2"),
])
def test_what_no_rule_module_may_use(tmp_path, code, line):
    assert codes(tmp_path, spec__rules=f"{HEAD}{line}\n") == [code]
    assert codes(tmp_path, spec__rules=HEAD, spec__abi=f"{HEAD}{line}\n") == []


@pytest.mark.parametrize(("code", "body"), [
    ("XS204", ("try:", "    x = f", "except KeyError:", "    x = d")),
    ("XS206", ('x = f"{f}"',)),
    ("XS207", ("for x in range(4):", "    s.word[f, x] = 0")),
    ("XS207", ("while f:", "    f -= 1")),
    ("XS207", ("x = any(y == f for y in (1, 2))",)),
    ("XS208", ("t(s, d, f - 1)",)),
    ("XS209", ("x = [f]",)),
    ("XS209", ("x = {}",)),
    ("XS207", ("for x in s.word:", "    s.word[x] = 0")),
    ("XS210", ("x = TABLE[f]",)),
    ("XS301", ("s.owner[f] = d", 'require(s.type[f] == 0, "T-1.1")   # too late')),
    ("XS301", ("if d:", "    s.owner[f] = d", 'require(s.type[f] == 0, "T-1.1")   # too late on one path')),
    ("XS301", ("match d:", "    case 1:", "        s.owner[f] = d", 'require(s.type[f] == 0, "T-1.1")   # too late there')),
    ("XS301", ("for x in s.profile.levels:", "    s.owner[f] = d", '    require(s.type[f] == 0, "T-1.1")   # too late inside')),
    ("XS301", ("s.owner[f] = d", "if d:", '    require(s.type[f] == 0, "T-1.1")   # too late inside')),
    ("XS302", ('require(s.type[f] == 0, "T-1")   # no clause of the rule',)),
    ("XS302", ("require(s.type[f] == 0, NAME)   # no literal",)),
    ("XS303", ('require(s.type[f] == 0, "T-1.1")   # once', 'require(s.owner[f] == d, "T-1.1")   # twice')),
    ("XS304", ('require(s.type[f] == 0, "T-1.1")',)),
    ("XS304", ('require(s.type[f] == 0, "T-1.1")   # noqa: E501',)),
    ("XS304", ("require(   # not beside the id", '    s.type[f] == 0, "T-1.1")')),
    ("XS304", ('require(s.type[f] == 0, "T-1.1"', "        )   # not beside the id")),
])
def test_what_no_transition_may_do(tmp_path, code, body):
    assert codes(tmp_path, spec__rules=transition(*body)) == [code]


def test_a_late_guard_in_a_helper(tmp_path):
    late = GOOD_RULES.replace("    require_own(s, d, f)\n", "    count(s, f)\n    require_own(s, d, f)\n")
    assert set(codes(tmp_path, spec__rules=late)) == {"XS301"}


def test_recursion_through_a_helper(tmp_path):
    helper = "\n\ndef again(s, f):\n    return t(s, 0, f)\n"
    assert codes(tmp_path, spec__rules=transition("again(s, f)") + helper) == ["XS208"]


def test_a_clause_has_one_place_in_rules_and_model(tmp_path):
    text = transition('require(s.type[f] == 0, "T-1.1")   # stands twice')
    assert codes(tmp_path, spec__a=text, refmodel__b=text) == ["XS303"]


def test_a_clause_is_part_of_a_rule(tmp_path):
    text = HEAD + 'def helper(s, f):\n    require(s.type[f] == 0, "T-1.1")   # in no register\n'
    assert codes(tmp_path, spec__rules=text) == ["XS305"]


def test_theorems_may_catch_faults(tmp_path):
    body = "def f(s):\n    try:\n        x = 1\n    except Fault:\n        x = 2\n    return x\n"
    assert codes(tmp_path, spec__rules=f"{HEAD}@theorem('ISO-1')\n{body}") == []
    assert codes(tmp_path, spec__rules=f"{HEAD}@invariant('INV-1')\n{body}") == ["XS204"]


def test_predicates_may_loop_but_not_format(tmp_path):
    text = HEAD + '@predicate\ndef p(s, f):\n    for i in range(4):\n        x = {}\n    return x\n'
    assert codes(tmp_path, spec__rules=text.format("i")) == []
    assert codes(tmp_path, spec__rules=text.format("f'{i}'")) == ["XS206"]


@pytest.mark.parametrize("leak", ["/" + "work/main", "see (/" + "farm/x)", "https://pypi" + ".org/simple", "deb.debian" + ".org"])
def test_leaks(tmp_path, leak):
    tree(tmp_path)
    (tmp_path / "notes.txt").write_text(f"first line\n{leak}\n", encoding="utf-8")
    (tmp_path / "picture").write_bytes(leak.encode() + b"\xff")
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / "x").write_text(leak, encoding="utf-8")
    assert [str(finding).split()[:2] for finding in lint.findings_of(tmp_path)] == [["notes.txt:2:", "XS401"]]


def test_leaks_only_in_files_that_git_would_track(tmp_path):
    tree(tmp_path)
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    (tmp_path / ".gitignore").write_text("ignored\n", encoding="utf-8")
    for name in ("ignored", "new"):
        (tmp_path / name).write_text("/" + "work/main", encoding="utf-8")
    assert [finding.file for finding in lint.findings_of(tmp_path)] == ["new"]


@pytest.mark.parametrize("text", ["", "x = 1\n", '"""Two lines\nin one sentence."""\n', '"""\nNothing on the first line."""\n'])
def test_module_docstrings(tmp_path, text):
    assert codes(tmp_path, oracle__cli=text) == ["XS501"]
    assert codes(tmp_path, oracle__cli='"""One line.\n\nAnd more."""\n') == []


def test_the_command(tmp_path, capsys):
    tree(tmp_path, spec__rules=HEAD + "x = 1 is 2\n")
    assert lint.main(["--root", str(tmp_path)]) == 1
    assert capsys.readouterr().out == "spec/rules.py:2: XS201 `is` compares identities, and a term has none\n"
    assert lint.main(["--root", str(tmp_path), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)[0]["code"] == "XS201"


def test_what_cannot_be_checked(tmp_path, capsys):
    assert lint.main(["--root", str(tmp_path)]) == 2
    tree(tmp_path, spec__rules="def\n")
    assert lint.main(["--root", str(tmp_path)]) == 2
    assert "spec/rules.py" in capsys.readouterr().err


def test_this_tree_is_clean():
    assert [str(finding) for finding in lint.findings_of(ROOT)] == []
