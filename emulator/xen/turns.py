"""Runs actions of several domains in their order and in one go: a batch for each domain, among which domain 0's passes the turn.

An action comes as the bytes of its operation, with the number of its domain in the upper 16 bits of the first word, which the
executor does not look at.
"""
from collections.abc import Sequence
from itertools import groupby
from typing import Final

from emulator.errors import HarnessError
from emulator.xen.batch import RESULT_SIZE, Batch
from emulator.xen.domu import DomU
from emulator.xen.machine import Crashed, Guest, RealXen
from spec.vocabulary import Action

DOMAIN: Final = slice(6, 8)                         # of the bytes


class Died(Exception):
    """The machine died of the action with this number, of those that were sent."""

    def __init__(self, at: int, crash: Crashed) -> None:
        super().__init__(str(crash))
        self.at, self.reason = at, crash.reason


def code(action: Action) -> bytes:
    """An action as its operation."""
    batch = Batch()
    batch.action(action)
    plain = bytes(batch)
    return plain[:6] + action.dom.to_bytes(2, "little") + plain[8:]


def turn(port: int) -> bytes:
    """The operation that passes the turn."""
    batch = Batch()
    batch.turn(port)
    return bytes(batch)


class Turns:
    """The executors of domain 0 and of domUs, as one."""

    def __init__(self, machine: RealXen, domus: Sequence[DomU]) -> None:
        self._machine, self._domus = machine, {u.domid.to_bytes(2, "little"): u for u in domus}
        self._to = {key: turn(u.port) for key, u in self._domus.items()}
        self._back = {key: turn(u.own_port) for key, u in self._domus.items()}
        self._places: list[tuple[Guest, range]] = []        # of the actions that were sent: stretches of somebody's results

    @property
    def most(self) -> int:
        """The most actions of one go: a turn may come with each."""
        return self._machine.most[1] // 2

    def send(self, codes: Sequence[bytes]) -> None:
        """Start actions; `receive` comes next."""
        mine, batches = list[bytes](), {key: list[bytes]() for key in self._domus}
        self._places = []
        for key, row in groupby(codes, lambda each: each[DOMAIN]):
            batch, guest = batches.get(key, mine), self._domus.get(key, self._machine)
            if guest is not self._machine:
                if batch:
                    batch.append(self._back[key])           # to domain 0, until the turn of this row comes
                mine.append(self._to[key])
            first = len(batch)
            batch += row
            self._places.append((guest, range(first, len(batch))))
        for key, batch in batches.items():
            if batch:
                self._domus[key].post(b"".join(batch), len(batch))
        self._machine.send(b"".join(mine), len(mine))

    def receive(self) -> bytes:
        """The results of the actions.  Raises `Died`."""
        try:
            self._machine.receive()
        except Crashed as crash:
            raise Died(self._done(), crash) from crash
        for guest, _ in self._places:
            if not guest.is_done:
                raise HarnessError(f"domain {guest.domid} gave its turn back before its batch was done")
        return b"".join([guest.results()[row.start * RESULT_SIZE:row.stop * RESULT_SIZE] for guest, row in self._places])

    def complete(self) -> bytes:
        """The results of the actions that are complete: of a machine that died all that it will ever give."""
        out = list[bytes]()
        for guest, row in self._places:
            here = min(max(guest.progress - row.start, 0), len(row))
            out.append(bytes(guest.results()[row.start * RESULT_SIZE:(row.start + here) * RESULT_SIZE]))
            if here < len(row):
                break
        return b"".join(out)

    def _done(self) -> int:
        """How many actions are complete."""
        done = 0
        for guest, row in self._places:
            here = min(max(guest.progress - row.start, 0), len(row))
            done += here
            if here < len(row):
                break
        return done
