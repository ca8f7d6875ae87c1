"""Operations for the executor as words, and its results as numbers: the encoding that executor/main.c reads and writes.

A batch is a row of operations, each some words of 8 bytes.  The first word holds the code (bits 0-7), "as an application"
(bit 8) and, for a hypercall, the number of its groups of stores (bits 16-31); the rest is the host's.
"""
import struct
from array import array
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from spec.abi import Xen417
from spec.vocabulary import (
    SEGMENT_REGISTERS,
    Action,
    Execute,
    Hypercall,
    Load,
    LoadSegment,
    Outcome,
    Return,
    Store,
    SystemCall,
    Transfer,
    code_of_64,
    code_words_64,
)

LOAD, STORE, EXECUTE, HYPERCALL, REPEAT, FILL, COPY, WAIT, TURN, TRANSFER = range(10)
LOAD_SEGMENT: Final = 10
REGISTER: Final = 16
USER: Final = 0x100
GROUPS: Final = 16

RESULT: Final = struct.Struct("<QQiII6HQQ")
RESULT_SIZE: Final = RESULT.size

ONES: Final = (1 << 64) - 1
NO_FAULT: Final = -1
NO_EXECUTOR: Final = -2                     # the user root does not lead to the executor, so no application could be entered
NO_OPERATION: Final = -3                    # not an operation: the rest of the batch is lost
LANDED: Final = -4                          # of a control transfer: the registers at the next instruction are in the result
NO_CALL: Final = 63                         # in RAX of a system call: the number of no hypercall


class Result(NamedTuple):
    """What the executor says of one operation."""
    value: int
    address: int
    vector: int
    error: int
    flags: int = 0                          # of a landing, like all that follows
    selectors: tuple[int, ...] = (0,) * 6   # CS, SS, DS, ES, FS, GS
    rip: int = 0
    rsp: int = 0


class Batch:
    """A growing row of operations; `len` is their number.  Every operation's method returns its index."""

    def __init__(self) -> None:
        self._words = array("Q")
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __bytes__(self) -> bytes:
        return self._words.tobytes()

    @property
    def words(self) -> memoryview:
        """The encoded operations."""
        return memoryview(self._words).cast("B")

    def clear(self) -> None:
        """Start anew."""
        self._words = array("Q")
        self._count = 0

    def _add(self, *words: int) -> int:
        self._words.extend(words)
        self._count += 1
        return self._count - 1

    def load(self, va: int, user: bool = False) -> int:
        """Read the word at `va`."""
        return self._add(LOAD | USER * user, va)

    def store(self, va: int, value: int, user: bool = False) -> int:
        """Write the word at `va`."""
        return self._add(STORE | USER * user, va, value)

    def execute(self, va: int, user: bool = False) -> int:
        """Call the far return at `va`."""
        return self._add(EXECUTE | USER * user, va)

    def load_segment(self, register: str, selector: int, user: bool = False) -> int:
        """Load a segment register, and then what was in it."""
        return self._add(LOAD_SEGMENT | USER * user | SEGMENT_REGISTERS[register] << REGISTER, selector)

    def hypercall(self, nr: int, args: Sequence[int] = (), data: Sequence[tuple[int, Sequence[int]]] = ()) -> int:
        """Store the words of `data`, then make hypercall `nr`."""
        self._words.extend((HYPERCALL | len(data) << GROUPS, nr, *args, *(0,) * (6 - len(args))))
        for address, words in data:
            self._words.append(address)
            self._words.append(len(words))
            self._words.extend(words)
        self._count += 1
        return self._count - 1

    def transfer(self, action: Transfer) -> int:
        """Store the words of `data` and the code, then run with the context's registers up to a landing pad."""
        at = action.at
        behind = Xen417.PADS + Xen417.PAD * (Xen417.BEHIND_USER_PAD if at.cs & 3 == 3 else Xen417.BEHIND_PAD)
        rax = Xen417.IRET if isinstance(action, Return) else NO_CALL if isinstance(action, SystemCall) else 0
        groups = (*action.data, (at.eip, code_words_64(action, behind)))
        self._words.extend((TRANSFER | len(groups) << GROUPS, at.eip, at.cs | at.ss << 16 | at.ds << 32 | at.es << 48,
                            at.fs | at.gs << 16, at.eflags, at.esp, rax, at.eip + len(code_of_64(action)) & ONES))
        for address, words in groups:
            self._words.append(address)
            self._words.append(len(words))
            self._words.extend(words)
        self._count += 1
        return self._count - 1

    def repeat(self, times: int, operations: int) -> int:
        """Do the next `operations` operations `times` times (no repeats among them); their last results stay."""
        return self._add(REPEAT, times, operations)

    def fill(self, va: int, words: int, first: int, step: int = 0) -> int:
        """Write `words` words that grow by `step`; the memory must be there."""
        return self._add(FILL, va, words, first, step)

    def copy(self, to: int, source: int, words: int) -> int:
        """Copy words upwards; both places must be there."""
        return self._add(COPY, to, source, words)

    def wait(self, port: int) -> int:
        """Sleep until the domain at the other end of an event channel takes its turn."""
        return self._add(WAIT, port)

    def turn(self, port: int) -> int:
        """Let the domain at the other end of an event channel go on, and wait until it takes its turn."""
        return self._add(TURN, port)

    def action(self, action: Action) -> int:
        """An action of a program."""
        if isinstance(action, Hypercall):
            return self.hypercall(action.nr, action.args, action.data)
        if isinstance(action, Store):
            return self.store(action.va, action.value, action.user)
        if isinstance(action, Load):
            return self.load(action.va, action.user)
        if isinstance(action, Execute):
            return self.execute(action.va, action.user)
        if isinstance(action, LoadSegment):
            return self.load_segment(action.register, action.selector, action.user)
        if isinstance(action, Transfer):
            return self.transfer(action)
        raise ValueError(f"not an action of a machine of 64 bits: {action!r}")

    def actions(self, actions: Iterable[Action]) -> None:
        """Actions in a row."""
        for each in actions:
            self.action(each)


def result(results: memoryview | bytes, index: int) -> Result:
    """One result of a batch."""
    value, address, vector, error, flags, *selectors, rip, rsp = RESULT.unpack_from(results, index * RESULT_SIZE)
    return Result(value, address, vector, error, flags, tuple(selectors), rip, rsp)


def answer(outcome: Outcome) -> bytes:
    """The result with which the executor says that an action ends so."""
    if outcome.landing:
        cs, rip, flags, rsp, *selectors = outcome.landing
        return RESULT.pack(outcome.value, outcome.address, LANDED, 0, flags, cs, *selectors, rip, rsp)
    return RESULT.pack(outcome.value & ONES, outcome.address, outcome.vector, outcome.error, *(0,) * 9)


def outcomes(actions: Sequence[Action], results: memoryview | bytes) -> list[Outcome]:
    """The outcomes of a batch of actions; `chose` is left empty."""
    found = []
    for action, row in zip(actions, RESULT.iter_unpack(results), strict=True):
        value, address, vector, error = row[:4]
        if vector >= 0:
            found.append(Outcome(0, vector, error, address))
        elif vector == LANDED:
            found.append(landed(row))
        elif isinstance(action, Hypercall):
            found.append(Outcome(value - (value >> 63 << 64)))
        else:
            found.append(Outcome(value))
    return found


def landed(row: tuple[int, ...]) -> Outcome:
    """The outcome of a control transfer, its registers in the order of `Context`."""
    value, address, _, _, flags, cs, *selectors, rip, rsp = row
    return Outcome(value, address=address, landing=(cs, rip, flags, rsp, *selectors))
