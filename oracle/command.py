"""A target that is any command: JSON lines on its standard input and output.

The command (`--target cmd:COMMAND`) reads one request a line on its standard input and answers each with one line on its standard
output; its standard error is for people, and quoted when it fails.  `program.schema.json` has the forms (`request`, `reply`).

    {"do": "hello", "xenspec": 1}                        {"name": "mine", "profiles": ["xen-2003"]}
    {"do": "needs", "frames": 2048}                      {"xen_frames": 16, "xen_slots": []}
    {"do": "reset", "profile": …, "setup": …}            {}                                   the machine at boot
    {"do": "run", "actions": […]}                        {"outcomes": […]}                    one an action, in order
    {"do": "observe"}                                    {"observation": {…}}
    {"do": "close"}                                      {}                                   then it ends

It may answer `{"error": "why"}` to anything.  That, its death, silence (20 s), and what is no answer are failures of the harness,
never divergences; after one it is started anew.  `tests/oracle/example_target.py` is a small one to copy from.
"""
import contextlib
import json
import os
import selectors
import shlex
import signal
import subprocess
import time
from collections.abc import Sequence
from typing import Any, Final

from oracle.encoding import Reader, action_to_json, setup_to_json
from oracle.schema import ProgramError, parse_json, short, validate
from oracle.targets import PATIENCE, HarnessError
from spec.vocabulary import Action, Observation, Outcome, Setup

LONGEST_REPLY: Final = 256 << 20            # bytes


class CommandTarget:
    """A command that speaks JSON lines on its standard input and output."""

    def __init__(self, command: str, patience: float = PATIENCE) -> None:
        try:
            self.words = shlex.split(command)
        except ValueError as e:
            raise HarnessError(f"cmd:{command}: {e}") from None
        if not self.words:
            raise HarnessError("cmd: names no command")
        self.patience = patience
        self.child: _Child | None = None
        self.setup: Setup | None = None
        hello = self._ask({"do": "hello", "xenspec": 1}, "reply_hello")
        self.name: str = hello["name"]
        self.profiles: tuple[str, ...] = tuple(hello["profiles"])

    def needs(self, frames: int) -> tuple[int, tuple[int, ...]]:
        """As the command says."""
        reply = self._ask({"do": "needs", "frames": frames}, "reply_needs")
        slots = [int(w, 16) if isinstance(w, str) else int(w) for w in (reply["xen_frames"], *reply["xen_slots"])]
        return slots[0], tuple(slots[1:])

    def reset(self, setup: Setup) -> None:
        """Boot the command's machine."""
        self._ask({"do": "reset", "profile": setup.profile, "setup": setup_to_json(setup)}, "reply_reset")
        self.setup, self.reader = setup, Reader(setup)

    def run(self, actions: Sequence[Action]) -> list[Outcome]:
        """The whole program in one request."""
        reader = self._reader()
        reply = self._ask({"do": "run", "actions": [action_to_json(a) for a in actions]})
        outcomes = reply.get("outcomes")
        if not isinstance(outcomes, list) or len(outcomes) != len(actions):
            raise self._nonsense("run", f"outcomes: wanted an array of {len(actions)}, one an action")
        found = []
        for n, outcome in enumerate(outcomes):
            try:
                found.append(reader.outcome(outcome))
            except ProgramError as e:
                raise self._nonsense("run", str(e.under(f"outcomes[{n}]"))) from None
        return found

    def observe(self) -> Observation:
        """The state that the command shows."""
        reader = self._reader()
        reply = self._ask({"do": "observe"})
        try:
            return reader.observation(reply.get("observation"))
        except ProgramError as e:
            raise self._nonsense("observe", str(e.under("observation"))) from None

    def close(self) -> None:
        """Ask the command to end; after a moment, end it."""
        if self.child is not None:
            with contextlib.suppress(HarnessError):
                self.child.exchange(b'{"do": "close"}\n', 2.0)
            self._drop()

    def _reader(self) -> Reader:
        if self.setup is None:
            raise HarnessError("run or observe before the first reset")
        return self.reader

    def _ask(self, request: dict[str, Any], part: str = "") -> dict[str, Any]:
        """The answer to a request: an object that is no `error`, and fits the schema's `part` if one is given."""
        if self.child is None:
            self.child = _Child(self.words)
        try:
            line = self.child.exchange(json.dumps(request).encode() + b"\n", self.patience)
        except HarnessError:
            self._drop()
            raise
        try:
            reply = parse_json(line)
            if not isinstance(reply, dict):
                raise ProgramError("", f"{short(reply)} is not an object")
            if "error" in reply:
                raise HarnessError(f"{self.words[0]} can't {request['do']}: {reply['error']}")
            if part:
                validate(part, reply)
        except ProgramError as e:
            raise self._nonsense(str(request["do"]), str(e.at("")), line) from None
        return reply

    def _nonsense(self, request: str, what: str, line: bytes = b"") -> HarnessError:
        """The command does not speak the protocol: from here on nothing that it says can be trusted."""
        said = f" (it said {line[:60].decode(errors='replace')!r})" if line else ""
        heard = self.child.last_words() if self.child is not None else ""
        self._drop()
        return HarnessError(f"{self.words[0]} answered '{request}' with nonsense: {what}{said}{heard}")

    def _drop(self) -> None:
        """End the command; the next request starts it anew."""
        if self.child is not None:
            self.child.end()
        self.child = self.setup = None


class _Child:
    """A running command: lines in, lines out, and the end of its standard error."""

    def __init__(self, words: list[str]) -> None:
        self.name = words[0]
        try:
            self.process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                            start_new_session=True)
        except OSError as e:
            raise HarnessError(f"{self.name} does not start: {e.strerror or e}") from None
        pipes = (self.process.stdin, self.process.stdout, self.process.stderr)
        self.stdin, self.stdout, self.stderr = (pipe.fileno() for pipe in pipes if pipe is not None)
        self.received, self.complaints = bytearray(), bytearray()
        self.selector = selectors.DefaultSelector()
        for pipe in (self.stdin, self.stdout, self.stderr):
            os.set_blocking(pipe, False)
        for pipe in (self.stdout, self.stderr):
            self.selector.register(pipe, selectors.EVENT_READ)

    def exchange(self, request: bytes, patience: float) -> bytes:
        """Send a line and wait for one; reading goes on while writing, so that neither side blocks the other."""
        if self.received:
            raise HarnessError(f"{self.name} said more than it was asked: {bytes(self.received[:60])!r}{self.last_words()}")
        deadline = time.monotonic() + patience
        pending = memoryview(request)
        self.selector.register(self.stdin, selectors.EVENT_WRITE)
        while pending or (end := self.received.find(b"\n")) < 0:
            ready = {key.fd for key, _ in self.selector.select(max(0.0, deadline - time.monotonic()))}
            if not ready and time.monotonic() >= deadline:
                raise HarnessError(f"{self.name} hung: no answer in {patience:g} s{self.last_words()}")
            if self.stderr in ready:
                self._listen()
            if self.stdout in ready:
                self._receive()
            if self.stdin in ready:
                pending = self._send(pending)
        line = bytes(self.received[:end])
        del self.received[:end + 1]
        return line

    def _send(self, pending: memoryview) -> memoryview:
        try:
            pending = pending[os.write(self.stdin, pending[:65536]):]
        except BrokenPipeError:
            raise self._death() from None
        if not pending:
            self.selector.unregister(self.stdin)
        return pending

    def _receive(self) -> None:
        chunk = os.read(self.stdout, 1 << 20)
        self.received += chunk
        if not chunk:
            raise self._death()
        if len(self.received) > LONGEST_REPLY:
            raise HarnessError(f"{self.name} talks without end: {bytes(self.received[:60])!r}…")

    def _listen(self) -> None:
        chunk = os.read(self.stderr, 65536)
        self.complaints = (self.complaints + chunk)[-4096:]
        if not chunk:
            self.selector.unregister(self.stderr)

    def _death(self) -> HarnessError:
        """What is known of its end; it may have closed its output without ending."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(1.0)
        return HarnessError(f"{self.name} {ending(self.process.poll())}{self.last_words()}")

    def last_words(self) -> str:
        """The last lines of its standard error, as the end of a message."""
        with contextlib.suppress(OSError):
            self.complaints += os.read(self.stderr, 65536)
        return quoted(self.complaints.decode(errors="replace"))

    def end(self) -> None:
        """Kill it with all that it started."""
        self.selector.close()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()


def ending(status: int | None) -> str:
    """How a process ended, in words."""
    if status is None:
        return "closed its output"
    return f"died of {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"


def quoted(text: str) -> str:
    """The last lines of a log, as the end of a one-line message."""
    lines = [line.strip() for line in text.splitlines() if line.strip()][-3:]
    return f"; its last words: {' | '.join(lines)}" if lines else ""
