"""Turns actions into records for the loop, and the records that come back into outcomes."""
from collections.abc import Container, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from emulator import layout as at
from emulator.errors import HarnessError
from emulator.stubs import HANDLERS
from spec.abi import PAGE_SIZE, PF
from spec.vocabulary import (
    SEGMENT_REGISTERS,
    Action,
    Execute,
    Hypercall,
    Load,
    LoadSegment,
    Outcome,
    Store,
    SystemCall,
    Transfer,
    code_of,
    code_words,
)

RECORD_WORDS: Final = 8

_RING, _SERVICE, _CALL, _LOAD, _STORE, _STORE_ACROSS, _STORE_PAIR, _COPY, _EXECUTE = (HANDLERS[name] for name in (
    "ring", "service", "call", "load", "store", "store_across", "store_pair", "copy", "execute"))
_SEGMENTS: Final = {register: HANDLERS["segment_" + register] for register in SEGMENT_REGISTERS}
_TO_KERNEL: Final = (_RING, at.LOOP_KERNEL_CS, at.LOOP_KERNEL_SS, at.KERNEL_DS, 0, 0, 0, 0)
_TO_USER: Final = (_RING, at.LOOP_USER_CS, at.LOOP_USER_SS, at.USER_DS, 0, 0, 0, 0)
_FORGET_CODE: Final = (_SERVICE, at.FORGET_CODE, 0, 0, 0, 0, 0, 0)
_TRANSFER: Final = (_SERVICE, at.TRANSFER, 0, 0, 0, 0, 0, 0)
_END: Final = (_SERVICE, at.END, 0, 0, 0, 0, 0, 0)
_PLAIN: Final = (Store, Load, Execute, LoadSegment)
_ROOM: Final = 8 * RECORD_WORDS                 # an action's records at most, without data, and the end
_OTHER_WINGS: Final = frozenset({2, 6, 8, 9, 10, 11, 18, 20})      # console, network, scheduling, control, block, ... (W-21)
_PAD: Final = ((0, 0, 0), (0, 0), (0,), ())     # what is missing to three arguments
_LAST_OFFSET: Final = PAGE_SIZE - 4             # of a word that does not cross its page's end


class Program:
    """Records of some actions: `words` in memory order, the record of each action, and where the loop stands at their end."""

    def __init__(self, domid: int, user: bool) -> None:
        self.domid = domid
        self.user = user
        self.words: list[int] = []
        self.rows: list[int] = []
        self.loads: list[int] = []              # actions with an unsigned value
        self.transfers: dict[int, Transfer] = {}    # by their record

    def compile(self, actions: Sequence[Action], first: int, capacity: int, domains: Container[int]) -> int:
        """Append records of `actions` from the first on while there is room; return the first action that had none."""
        words, rows = self.words, self.rows
        limit = capacity - _ROOM
        for n in range(first, len(actions)):
            action = actions[n]
            if len(words) > limit:
                break
            if isinstance(action, Hypercall):
                if action.dom != self.domid or self.user:
                    self.enter(action.dom, False, domains)
                start = len(words)
                self.call(action)
                if len(words) > limit:          # its data do not fit any more
                    del words[start:]
                    break
            elif isinstance(action, _PLAIN):
                if action.dom != self.domid or action.user is not self.user:
                    self.enter(action.dom, action.user, domains)
                if isinstance(action, Store):
                    va = action.va
                    words += (_STORE if va & 0xFFF <= _LAST_OFFSET else _STORE_ACROSS, va, action.value, 0, 0, 0, 0, 0)
                elif isinstance(action, Load):
                    words += (_LOAD, action.va, 0, 0, 0, 0, 0, 0)
                    self.loads.append(n - first)
                elif isinstance(action, Execute):
                    words += _FORGET_CODE
                    words += (_EXECUTE, action.va, at.USER_CS if action.user else at.KERNEL_CS, 0, 0, 0, 0, 0)
                else:
                    words += self.load_segment(action)
            elif isinstance(action, Transfer):
                if action.dom != self.domid or self.user:
                    self.enter(action.dom, False, domains)
                start = len(words)
                self.transfer(action)
                if len(words) > limit:
                    del words[start:]
                    break
                self.transfers[(len(words) >> 3) - 1] = action
            else:
                raise HarnessError(f"not an action: {action!r}")
            rows.append((len(words) >> 3) - 1)
        else:
            n = len(actions)
        if n == first < len(actions):
            raise HarnessError(f"action {n} has more data than fit in the record area")
        words += _END
        return n

    def enter(self, domid: int, user: bool, domains: Container[int]) -> None:
        """Go on in another domain or another ring."""
        if domid != self.domid:
            if domid not in domains:
                raise HarnessError(f"there is no domain {domid}")
            self.words += (_SERVICE, domid, 0, 0, 0, 0, 0, 0)
            self.domid = domid
        if user is not self.user:
            self.words += _TO_USER if user else _TO_KERNEL
            self.user = user

    def call(self, action: Hypercall) -> None:
        """A hypercall, after the stores of its data; a fault of one of those is the call's outcome."""
        nr, args = action.nr, action.args
        if nr & 0xFF in _OTHER_WINGS:
            raise HarnessError(f"hypercall {nr} belongs to another wing")
        if action.data:
            self.stores(action.data)
        count = len(args)
        if count <= 3:
            self.words += (_CALL, *args, *_PAD[count], nr, 0, 0, 0)
        elif count <= 5:
            self.words += (_CALL, *args[:3], nr, *args[3:], *_PAD[count - 2], 0)
        else:
            raise HarnessError(f"a hypercall has no more than 5 arguments: {args}")

    def transfer(self, action: Transfer) -> None:
        """A control transfer, after the stores of its data and of its instruction; a fault of one of those is its outcome."""
        if isinstance(action, SystemCall):
            raise HarnessError(f"not an action of this profile: {action!r}")
        words, code = self.words, code_words(code_of(action))
        where = action.at
        if action.data:
            self.stores(action.data, 3)
        words += (_SERVICE, at.PREPARE, where.cs, where.eip, 0, 0, 0, 0)
        words += (_STORE, 0, *code, 0, 0, 0, 0, 0) if len(code) == 1 else (_STORE_PAIR, 0, *code, 0, 0, 0, 0)
        words[-1] = 4 * 2 * RECORD_WORDS        # its fault
        words += _FORGET_CODE
        words += _TRANSFER

    def load_segment(self, action: LoadSegment) -> tuple[int, ...]:
        """A load of a segment register, and the selector that it has in the loop."""
        register, user = action.register, action.user
        if register not in _SEGMENTS or action.selector >> 16:
            raise HarnessError(f"not a segment register, or no selector: {action!r}")
        own = (at.KERNEL_DS, at.USER_DS) if register != "ss" else (at.LOOP_KERNEL_SS, at.LOOP_USER_SS)
        return _SEGMENTS[register], action.selector, own[user], 0, 0, 0, 0, 0

    def stores(self, data: tuple[tuple[int, tuple[int, ...]], ...], further: int = 0) -> None:
        """Stores by the kernel, each telling how far ahead the record lies that takes its fault: `further` than the next."""
        words = self.words
        faults: list[int] = []                  # where that distance belongs
        for va, values in data:
            size = len(values)
            if va & 3 or not size or (va & 0xFFF) + 4 * size > PAGE_SIZE:
                raise HarnessError(f"data must be whole words within one page: {size} at {va:#x}")
            faults.append(len(words) + 7)
            if size == 2:
                words += (_STORE_PAIR, va, *values, 0, 0, 0, 0)
            elif size == 1:
                words += (_STORE, va, *values, 0, 0, 0, 0, 0)
            else:
                padding = -size % RECORD_WORDS
                words += (_COPY, va, size, 0, 4 * (size + padding), 0, 0, 0)
                words += values
                words += (0,) * padding
        end = len(words) + 7 + further * RECORD_WORDS
        for fault in faults:
            words[fault] = 4 * (end - fault)


class _Values(dict[int, Outcome]):
    """Outcomes by their value, made when first asked for: they are never changed, so they can be shared."""

    def __missing__(self, value: int) -> Outcome:
        if len(self) >= 4096:
            self.clear()
        outcome = self[value] = Outcome(value)
        return outcome


_values = _Values()


def outcomes(program: Program, records: NDArray[np.uint32], chose: dict[int, tuple[int, ...]],
             ended: dict[int, Outcome]) -> list[Outcome]:
    """The outcomes of a program's actions; by record: `chose`, the frames that a hypercall handed out, `ended`, transfers'."""
    ends = records if len(program.rows) == len(records) - 1 else records[program.rows]
    values: list[Any] = ends[:len(program.rows), 4].view(np.int32).tolist()
    for n in program.loads:
        values[n] &= 0xFFFFFFFF
    result = list(map(_values.__getitem__, values))
    faulted = np.flatnonzero(ends[:len(program.rows), 5])
    for n, (vector, error, address) in zip(faulted.tolist(), ends[faulted, 5:].tolist(), strict=True):
        vector &= ~at.FAULT_MARK
        result[n] = Outcome(0, vector, error, address if vector == PF else 0)
    if chose or ended:
        by_row = {row: n for n, row in enumerate(program.rows)}
        for row, frames in chose.items():
            n = by_row[row]
            result[n] = Outcome(result[n].value, chose=frames)
        for row, outcome in ended.items():
            result[by_row[row]] = outcome
    return result
