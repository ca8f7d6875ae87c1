"""Programs as JSON lines: what guests do on which machine and, in a trace, what came of it.

The first line is a header, `{"xenspec": 1, "profile": …, "setup": {…}}`; then comes one action a line, in a trace each with its
`outcome`; the last line may be an `observation`.  `program.schema.json` is the norm (`xenspec schema` prints it).
"""
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from oracle.encoding import Reader, action_to_json, observation_to_json, outcome_to_json, setup_from_json, setup_to_json
from oracle.files import write_whole
from oracle.schema import Explained, ProgramError, parse_json, validate
from spec.vocabulary import Action, Observation, Outcome, Setup

FORMAT: Final = 1                           # the version of this format


@dataclass(slots=True)
class Program:
    """What is done, in order, on a machine that starts as `setup` says.

    A recorded trace also has the outcome of every action, and possibly what was observed at the end.
    """
    setup: Setup
    actions: list[Action]
    outcomes: list[Outcome] | None = None
    observation: Observation | None = None
    note: str = ""                          # for people
    lines: list[int] = field(default_factory=list, compare=False)   # of the file it was read from, one an action


def load(path: str | Path) -> Program:
    """The program in a file ('-': standard input).  ProgramError names file, line and field."""
    name = "<stdin>" if str(path) == "-" else str(path)
    try:
        raw = sys.stdin.buffer.read() if str(path) == "-" else Path(path).read_bytes()
        return loads(raw.decode("utf-8"), name)
    except OSError as e:
        raise ProgramError("", e.strerror or str(e), name) from None
    except UnicodeDecodeError as e:
        line = raw.count(b"\n", 0, e.start) + 1
        raise ProgramError("", "not UTF-8 text", f"{name}:{line}") from None


def loads(text: str, name: str = "<program>") -> Program:
    """The program that `text` says; `name` stands for the file in a ProgramError."""
    loader = _Loader()
    lines = text.removesuffix("\n").split("\n")
    try:
        for line in lines:
            loader.line(line)
        return loader.end()
    except ProgramError as e:
        raise e.at(f"{name}:{max(loader.read, 1)}") from None


class _Loader:
    """Takes the lines of a file, one by one."""

    def __init__(self) -> None:
        self.program: Program | None = None
        self.outcomes: list[Outcome] = []
        self.read = 0                       # lines

    def line(self, text: str) -> None:
        """The next line; an empty one says nothing."""
        self.read += 1
        if text.strip():
            self._document(parse_json(text))

    def _document(self, doc: Any) -> None:
        if self.program is None:
            self._header(doc)
        elif self.program.observation is not None:
            raise ProgramError("observation", "must be in the last line, and another follows")
        elif isinstance(doc, dict) and "observation" in doc:
            self._observation(self.program, doc)
        else:
            self._action(self.program, doc)

    def _header(self, doc: Any) -> None:
        if not isinstance(doc, dict) or "xenspec" not in doc:
            raise ProgramError("xenspec", 'missing: the first line must be a header {"xenspec": 1, "profile": …, "setup": {…}}')
        validate("header", doc)
        self.program = Program(setup_from_json(doc["profile"], doc["setup"]), [], note=doc.get("note", ""))
        self.reader = Reader(self.program.setup)
        self.promised = doc.get("actions")

    def _action(self, program: Program, doc: Any) -> None:
        program.actions.append(self.reader.action(doc))
        program.lines.append(self.read)
        if "outcome" in doc:
            try:
                self.outcomes.append(self.reader.outcome(doc["outcome"]))
            except ProgramError as e:
                raise e.under("outcome") from None
            if len(self.outcomes) != len(program.actions):
                raise ProgramError("outcome", "only some actions have one: the action before has none")
        elif self.outcomes:
            raise ProgramError("outcome", "missing: the action before has one")

    def _observation(self, program: Program, doc: dict[str, Any]) -> None:
        with Explained("last", doc):
            if len(doc) != 1:
                raise ProgramError("observation", "stands alone")
        try:
            program.observation = self.reader.observation(doc["observation"])
        except ProgramError as e:
            raise e.under("observation") from None

    def end(self) -> Program:
        """The whole program."""
        if self.program is None:
            raise ProgramError("xenspec", "missing: the file is empty")
        found = len(self.program.actions)
        if self.promised not in (None, found):
            raise ProgramError("actions", f"truncated? The header promises {self.promised}, but there are {found}")
        self.program.outcomes = self.outcomes or None
        return self.program


def line_of(program: Program, action: Action | None) -> int:
    """The line that this very action was read from; the header's if it is not known."""
    return next((line for line, each in zip(program.lines, program.actions, strict=False) if each is action), 1)


def dump(program: Program, path: str | Path) -> None:
    """Write the program to a file, whole or not at all.  OSError if that can't be done."""
    write_whole(path, dumps(program))


def dumps(program: Program) -> str:
    """The program as JSON lines.  `loads(dumps(p))` is p."""
    return "".join(json.dumps(doc, ensure_ascii=False) + "\n" for doc in _documents(program))


def _documents(program: Program) -> Iterator[dict[str, Any]]:
    """One a line."""
    setup, note = program.setup, {"note": program.note} if program.note else {}
    yield {"xenspec": FORMAT, "profile": setup.profile, "setup": setup_to_json(setup), "actions": len(program.actions)} | note
    for n, action in enumerate(program.actions):
        outcome = {} if program.outcomes is None else {"outcome": outcome_to_json(program.outcomes[n])}
        yield action_to_json(action) | outcome
    if program.observation is not None:
        yield {"observation": observation_to_json(program.observation, setup)}
