"""Queries as SMT-LIB 2, the text that every solver reads: each stands by itself, and is the same whatever else is asked.

The counts are mathematical integers, linear and never converted; words are bit-vectors; both are values of uninterpreted
functions.  The logics' names follow from what a text uses, QF_UFBVLIA at the most.
"""
import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

HEADER: Final = "(set-info :status unknown)\n"          # z3's own ends with it
LET: Final = re.compile(r" *\(let \(\((\S+) (.*)\)\)")  # z3 names parts of assertions, a line each, parts of parts first
TOKEN: Final = re.compile(r"\(_ [^()]*\)|[()]|[^\s()]+")
PRIMED: Final = re.compile(r"\w+'")                     # the standard wants such names quoted
NOT_IN_A_NAME: Final = re.compile(r"[^A-Za-z0-9_.-]+")


def script(solver: Any, *comments: str) -> str:
    """What a z3 solver is asked, after comments of a line each; `unsat` is the answer that proves."""
    _, found, body = solver.to_smt2().partition(HEADER)
    assert found, "z3 writes another header"
    body = PRIMED.sub(r"|\g<0>|", body)
    start = body.index("(assert")
    lines = [*(f"; {comment}" for comment in (*comments, "expected: unsat")), f"(set-logic {logic(body)})"]
    return "\n".join([*lines, *sorted(body[:start].splitlines()), *Canonical().lines(body[start:]), ""])


def logic(body: str) -> str:
    """The logic of a text."""
    words, counts = "(_ BitVec " in body, re.search(r"\bInt\b", body)
    return "QF_UF" + ("BV" if words else "") + ("LIA" if counts else "")


class Canonical:
    """z3's text without its accidents: what is bound to which name, and the order of the sides of an equation.

    Each application is known by its digest, so equal ones are one, whatever z3 called them and wherever it wrote them out.
    """

    def __init__(self) -> None:
        self.parts: dict[str, list[str]] = {}           # digest -> the operator, and the operands: digests, or themselves
        self.local: dict[str, str] = {}                 # z3's name -> what it stands for
        self.names: dict[str, str] = {}                 # digest -> our name

    def lines(self, body: str) -> Iterator[str]:
        """The lines of the assertions, and what follows."""
        lets = 0
        for line in body.splitlines():
            let = LET.fullmatch(line)
            if let:
                lets += 1
                if let[1] not in self.local:
                    self.local[let[1]] = self.read(let[2])
            elif line in ("(assert", "(check-sat)"):
                lets = 0
                yield line
            else:
                yield from self.written(self.read(line[:-1 - lets]))

    def read(self, text: str) -> str:
        """What a text stands for."""
        stack: list[list[str]] = [[]]
        for token in TOKEN.findall(text):
            if token == "(":
                stack.append([])
            elif token == ")":
                part = stack.pop()
                stack[-1].append(self.part(*part))
            else:
                stack[-1].append(self.local.get(token, token))
        ((whole,),) = stack
        return whole

    def part(self, operator: str, *operands: str) -> str:
        """The digest of an application."""
        part = [operator, *(sorted(operands) if operator == "=" else operands)]
        digest = "@" + hashlib.sha256(" ".join(part).encode()).hexdigest()
        self.parts.setdefault(digest, part)
        return digest

    def written(self, whole: str) -> Iterator[str]:
        """An assertion: each application on a line, after those in it."""
        waiting, done = [whole], dict[str, None]()
        while waiting:
            inner = [z for z in self.parts.get(waiting[-1], ()) if z in self.parts and z not in done]
            if inner:
                waiting += inner[::-1]
                continue
            z = waiting.pop()
            if z in self.parts and z not in done:
                done[z] = None
                yield f"(let (({self.name(z)} ({' '.join(map(self.name, self.parts[z]))})))"
        yield self.name(whole) + ")" * (len(done) + 1)

    def name(self, z: str) -> str:
        """What it is called: an application has a number, in order of the first appearance."""
        return self.names.setdefault(z, f"?x{len(self.names)}") if z in self.parts else z


class Folder:
    """Where the queries of one subject go: <profile>/<subject>/<part>.<number>.smt2, numbered from 0 in each part."""

    def __init__(self, root: str, profile: str, subject: str) -> None:
        self.path = Path(root, profile, file_name(subject))
        self.numbers: dict[str, int] = {}

    def write(self, part: str, text: str) -> None:
        """The next query of a part; OSError if it can't be written."""
        name = file_name(part)
        number = self.numbers[name] = self.numbers.get(name, -1) + 1
        self.path.mkdir(parents=True, exist_ok=True)
        (self.path / f"{name}.{number}.smt2").write_text(text, encoding="utf-8")


def file_name(name: str) -> str:
    """A name without what file names should not have."""
    return NOT_IN_A_NAME.sub("-", name)
