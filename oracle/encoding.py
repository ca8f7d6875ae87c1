"""The JSON forms of setups, actions, outcomes and observations: a quick, strict decoder, and its inverse.

The schema is the norm, but ten times as slow as this decoder, which refuses all that the schema refuses (a test holds the two
together) and what no schema can say: what does not fit the profile's words, or the machine.  When it refuses, the schema is
asked first what is wrong.
"""
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any, Final

from oracle.schema import Explained, ProgramError, short
from refmodel.boot import SetupError
from refmodel.boot import check_setup as bootable
from spec.abi import PAGE_SIZE
from spec.profile import PROFILES, Profile
from spec.vocabulary import (
    FREE_FRAME,
    PRIVILEGED,
    SEGMENT_REGISTERS,
    Access,
    Action,
    Context,
    Data,
    DomainSetup,
    Execute,
    FarTransfer,
    Hypercall,
    Interrupt,
    Load,
    LoadSegment,
    Observation,
    Outcome,
    Privileged,
    Return,
    Setup,
    Store,
    SystemCall,
    Transfer,
    pack_frame,
    unpack_frame,
)

MAX_ARGS: Final = {"xen-2003": 5, "xen-4.17": 6}        # registers that carry arguments
CONTEXT: Final = ("cs", "eip", "eflags", "esp", "ss", "ds", "es", "fs", "gs")
SELECTORS: Final = frozenset(CONTEXT) - {"eip", "eflags", "esp"}
NEEDED: Final = 5                                       # of the context; the others are 0 if nothing is said


# --- reading: the leaves -----------------------------------------------------------------------------------------------------

_HEX = re.compile("0x[0-9A-Fa-f]{1,16}")
_LONGEST: Final = (1 << 64) - 1
_FRAME_LIMITS: Final = (0xFFFF, 7, 0x3FFFFF, 0x3FFFFF)


def _integer(x: Any, field: str, limit: int = _LONGEST, least: int = 0) -> int:
    """An integer in [least, limit]."""
    if type(x) is float and x.is_integer():     # JSON Schema: 1.0 is an integer
        x = int(x)
    if type(x) is not int:
        raise ProgramError(field, f"{short(x)} is not a number")
    if not least <= x <= limit:
        raise ProgramError(field, f"{_read(x)} is out of range ({_read(least)} to {_read(limit)})")
    return x


def _number(x: Any, field: str, limit: int = _LONGEST, least: int = 0) -> int:
    """An integer, or a string of hexadecimal digits, in [least, limit]."""
    if type(x) is str and _HEX.fullmatch(x):
        x = int(x, 16)
    return _integer(x, field, limit, least)


def _read(n: int) -> str:
    """A number in a message: small ones as they are, words in hexadecimal."""
    return str(n) if abs(n) < 0x10000 else f"{n:#x}"


def _boolean(x: Any, field: str) -> bool:
    if type(x) is not bool:
        raise ProgramError(field, f"{short(x)} is not a boolean")
    return x


def _text(x: Any, field: str) -> str:
    if type(x) is not str:
        raise ProgramError(field, f"{short(x)} is not a string")
    return x


def _list(x: Any, field: str) -> list[Any]:
    if type(x) is not list:
        raise ProgramError(field, f"{short(x)} is not an array")
    return x


def _only(doc: Any, *known: str) -> None:
    """A JSON object without other fields than these."""
    if type(doc) is not dict:
        raise ProgramError("", f"{short(doc)} is not an object")
    for key in doc:
        if key not in known:
            raise ProgramError(key, f"unknown field (known: {', '.join(known)})")


# --- reading: the machine ----------------------------------------------------------------------------------------------------

def setup_from_json(profile: str, doc: Any) -> Setup:
    """A machine, as a header says it; ProgramError if there can be none like it."""
    if profile not in PROFILES:
        raise ProgramError("profile", f"unknown profile {short(profile)} (known: {', '.join(PROFILES)})")
    try:
        with Explained("setup", doc):
            _only(doc, "frames", "xen_frames", "xen_slots", "xen_descriptors", "domains", "machine")
            domains = tuple([_domain(d, f"domains[{n}]") for n, d in enumerate(_list(doc["domains"], "domains"))])
            slots, descriptors = _words_of(doc, "xen_slots"), _words_of(doc, "xen_descriptors")
            setup = Setup(profile, _number(doc["frames"], "frames"), _number(doc["xen_frames"], "xen_frames"), domains, slots,
                          _text(doc.get("machine", ""), "machine"), descriptors)
            check_setup(setup)
    except ProgramError as e:
        raise e.under("setup") from None
    return setup


def _words_of(doc: Any, field: str) -> tuple[int, ...]:
    """Words of Xen's, if the setup says any."""
    return tuple([_number(w, f"{field}[{n}]") for n, w in enumerate(_list(doc.get(field, []), field))])


def _domain(doc: Any, field: str) -> DomainSetup:
    _only(doc, "domid", "first", "pages")
    return DomainSetup(_integer(doc["domid"], f"{field}.domid"), _number(doc["first"], f"{field}.first"),
                       _number(doc["pages"], f"{field}.pages"))


def check_setup(setup: Setup) -> None:
    """ProgramError unless there can be such a machine."""
    p = PROFILES[setup.profile]
    for field, words in (("xen_slots", setup.xen_slots), ("xen_descriptors", setup.xen_descriptors)):
        for n, word in enumerate(words):
            _integer(word, f"{field}[{n}]", p.all_ones)
    try:
        bootable(setup)
    except SetupError as e:
        raise ProgramError(e.field, str(e).removeprefix(f"{e.field}: ")) from None


# --- reading: actions, outcomes, observations --------------------------------------------------------------------------------

class Reader:
    """Decodes what is said of one machine.  ProgramError names the field."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.profile = p = PROFILES[setup.profile]
        self.domains = {d.domid for d in setup.domains}
        self.ones, self.word = p.all_ones, p.word_bytes
        self.actions: dict[str, Callable[[dict[str, Any]], Action]] = {
            "hypercall": self._hypercall, "load": self._load, "store": self._store, "execute": self._execute,
            "load_segment": self._load_segment, "far_transfer": self._far_transfer, "interrupt": self._interrupt,
            "return": self._return, "access": self._access, "privileged": self._privileged, "system_call": self._system_call}

    def action(self, doc: Any) -> Action:
        """One action; an `outcome` beside it is left to the caller."""
        if not isinstance(doc, dict) or "do" not in doc:
            raise ProgramError("do", "missing" if isinstance(doc, dict) else f"missing: {short(doc)} is not an object")
        kind = doc["do"]
        if not isinstance(kind, str) or kind not in self.actions:
            raise ProgramError("do", f"unknown action {short(kind)} (known: {', '.join(self.actions)})")
        with Explained(kind, doc):
            return self.actions[kind](doc)

    def _dom(self, doc: dict[str, Any]) -> int:
        dom = _integer(doc["dom"], "dom")
        if dom not in self.domains:
            raise ProgramError("dom", f"there is no domain {dom} (the setup has {', '.join(map(str, sorted(self.domains)))})")
        return dom

    def _va(self, doc: dict[str, Any]) -> int:
        return _number(doc["va"], "va", self.ones)

    def _hypercall(self, doc: dict[str, Any]) -> Hypercall:
        _only(doc, "dom", "do", "nr", "args", "data", "outcome")
        args = tuple([_number(a, f"args[{n}]", self.ones) for n, a in enumerate(_list(doc.get("args", []), "args"))])
        most = MAX_ARGS[self.profile.name]
        if len(args) > most:
            raise ProgramError("args", f"{len(args)} of them, but {self.profile.name} passes at most {most}")
        return Hypercall(self._dom(doc), _number(doc["nr"], "nr", self.ones), args, self._stores(doc))

    def _stores(self, doc: dict[str, Any]) -> Data:
        """What the kernel stores first."""
        return tuple([self._data(pair, f"data[{n}]") for n, pair in enumerate(_list(doc.get("data", []), "data"))])

    def _data(self, pair: Any, field: str) -> tuple[int, tuple[int, ...]]:
        """The words that one element of `data` stores, and where."""
        va, words = _list(pair, field)
        address = _number(va, f"{field}[0]", self.ones)
        if address % self.word:
            raise ProgramError(f"{field}[0]", f"{address:#x} is not aligned to a word of {self.word} bytes")
        count = len(_list(words, f"{field}[1]"))
        if not count:
            raise ProgramError(f"{field}[1]", "has no word")
        if address % PAGE_SIZE + count * self.word > PAGE_SIZE:
            raise ProgramError(f"{field}[1]", f"{count} words from {address:#x} cross the end of a page")
        return address, tuple([_number(w, f"{field}[1][{i}]", self.ones) for i, w in enumerate(words)])

    def _load(self, doc: dict[str, Any]) -> Load:
        _only(doc, "dom", "do", "va", "user", "outcome")
        return Load(self._dom(doc), self._va(doc), _boolean(doc.get("user", False), "user"))

    def _store(self, doc: dict[str, Any]) -> Store:
        _only(doc, "dom", "do", "va", "value", "user", "outcome")
        value = _number(doc["value"], "value", self.ones)
        return Store(self._dom(doc), self._va(doc), value, _boolean(doc.get("user", False), "user"))

    def _execute(self, doc: dict[str, Any]) -> Execute:
        _only(doc, "dom", "do", "va", "user", "outcome")
        return Execute(self._dom(doc), self._va(doc), _boolean(doc.get("user", False), "user"))

    def _load_segment(self, doc: dict[str, Any]) -> LoadSegment:
        _only(doc, "dom", "do", "register", "selector", "user", "outcome")
        register = _text(doc["register"], "register")
        if register not in SEGMENT_REGISTERS:
            raise ProgramError("register", f"{short(register)} is none of {', '.join(SEGMENT_REGISTERS)}")
        return LoadSegment(self._dom(doc), register, _number(doc["selector"], "selector", 0xFFFF),
                           _boolean(doc.get("user", False), "user"))

    def _context(self, doc: dict[str, Any]) -> Context:
        """The registers with which a guest runs."""
        at = doc["at"]
        try:
            _only(at, *CONTEXT)
        except ProgramError as e:
            raise e.under("at") from None
        return Context(*(_number(at[name] if n < NEEDED else at.get(name, 0), f"at.{name}",
                                 0xFFFF if name in SELECTORS else self.ones) for n, name in enumerate(CONTEXT)))

    def _far_transfer(self, doc: dict[str, Any]) -> FarTransfer:
        _only(doc, "dom", "do", "at", "kind", "selector", "offset", "data", "outcome")
        kind = _text(doc["kind"], "kind")
        if kind not in ("jmp", "call", "ret"):
            raise ProgramError("kind", f"{short(kind)} is none of jmp, call, ret")
        return FarTransfer(self._dom(doc), self._context(doc), kind, _number(doc.get("selector", 0), "selector", 0xFFFF),
                           _number(doc.get("offset", 0), "offset", self.ones), self._stores(doc))

    def _interrupt(self, doc: dict[str, Any]) -> Interrupt:
        _only(doc, "dom", "do", "at", "vector", "data", "outcome")
        return Interrupt(self._dom(doc), self._context(doc), _integer(doc["vector"], "vector", 255), self._stores(doc))

    def _return(self, doc: dict[str, Any]) -> Return:
        _only(doc, "dom", "do", "at", "data", "outcome")
        return Return(self._dom(doc), self._context(doc), self._stores(doc))

    def _access(self, doc: dict[str, Any]) -> Access:
        _only(doc, "dom", "do", "at", "va", "write", "data", "outcome")
        return Access(self._dom(doc), self._context(doc), self._va(doc), _boolean(doc.get("write", False), "write"),
                      self._stores(doc))

    def _privileged(self, doc: dict[str, Any]) -> Privileged:
        _only(doc, "dom", "do", "at", "instruction", "data", "outcome")
        name = _text(doc["instruction"], "instruction")
        if name not in PRIVILEGED:
            raise ProgramError("instruction", f"{short(name)} is none of {', '.join(PRIVILEGED)}")
        return Privileged(self._dom(doc), self._context(doc), name, self._stores(doc))

    def _system_call(self, doc: dict[str, Any]) -> SystemCall:
        _only(doc, "dom", "do", "at", "data", "outcome")
        if self.profile.guest_end:
            raise ProgramError("do", f"{self.profile.name} has no SYSCALL")
        return SystemCall(self._dom(doc), self._context(doc), self._stores(doc))

    def outcome(self, doc: Any) -> Outcome:
        """How an action ended."""
        with Explained("outcome", doc):
            _only(doc, "value", "fault", "chose", "landing", "address")
            if ("value" in doc) == ("fault" in doc):
                raise ProgramError("", "must be either a value or a fault")
            frames = _list(doc.get("chose", []), "chose")
            chose = tuple([_number(f, f"chose[{n}]", self.setup.frames - 1) for n, f in enumerate(frames)])
            if "fault" in doc:
                return self._fault(doc["fault"], chose)
            value = _number(doc["value"], "value", self.ones, least=-(self.ones >> 1) - 1)
            address = _number(doc.get("address", 0), "address", self.ones)
            return Outcome(value, address=address, chose=chose, landing=self._landing(doc))

    def _landing(self, doc: Any) -> tuple[int, ...]:
        """The registers where a guest goes on, all or none."""
        found = tuple([_number(n, f"landing[{i}]", self.ones) for i, n in enumerate(_list(doc.get("landing", []), "landing"))])
        if found and len(found) != len(CONTEXT):
            raise ProgramError("landing", f"has {len(found)} registers, not {len(CONTEXT)}")
        return found

    def _fault(self, doc: Any, chose: tuple[int, ...]) -> Outcome:
        _only(doc, "vector", "error", "address")
        return Outcome(0, _integer(doc["vector"], "fault.vector", 255), _number(doc.get("error", 0), "fault.error", 0xFFFFFFFF),
                       _number(doc.get("address", 0), "fault.address", self.ones), chose)

    def observation(self, doc: Any) -> Observation:
        """The visible state of the machine."""
        with Explained("observation", doc):
            _only(doc, "extent", "frames", "m2p", "memory", "base", "rows")
            extent = _number(doc["extent"], "extent", self.setup.frames, least=self.setup.xen_frames)
            frames = [_frame(frame, f"frames[{n}]") for n, frame in enumerate(_list(doc["frames"], "frames"))]
            m2p = [self.ones if w is None else _number(w, f"m2p[{n}]", self.ones) for n, w in enumerate(_list(doc["m2p"], "m2p"))]
            for field, found in (("frames", frames), ("m2p", m2p)):
                if len(found) != extent:
                    raise ProgramError(field, f"has {len(found)} elements, but the extent is {extent}")
            rows = self._rows(doc["rows"], extent) if "rows" in doc else None
            memory = self._memory(doc["memory"], extent, range(self.setup.xen_frames, extent) if rows is None else rows)
            return Observation(extent, _pack(frames, 8), memory, _pack(m2p, self.word), self._base(doc["base"]), rows)

    def _rows(self, doc: Any, extent: int) -> tuple[int, ...]:
        """The frames whose contents are shown, ascending."""
        rows = tuple([_number(f, f"rows[{n}]", extent - 1) for n, f in enumerate(_list(doc, "rows"))])
        if any(a >= b for a, b in pairwise(rows)):
            raise ProgramError("rows", "must be ascending")
        return rows

    def _memory(self, runs: Any, extent: int, shown: Sequence[int]) -> bytes:
        """The contents of the frames that are shown, in their order."""
        places = {f: row for row, f in enumerate(shown)}
        memory = bytearray(len(shown) * PAGE_SIZE)
        for n, run in enumerate(_list(runs, "memory")):
            field = f"memory[{n}]"
            mfn, index, words, *more = _list(run, field)
            [times] = more or [1]
            values = [_number(w, f"{field}[2][{i}]", self.ones) for i, w in enumerate(_list(words, f"{field}[2]"))]
            start = _integer(index, f"{field}[1]", self.profile.entries - 1)
            count = len(values) * _integer(times, f"{field}[3]", self.profile.entries, least=1)
            if not 0 < count <= self.profile.entries - start:
                raise ProgramError(field, f"{count} words from index {start} are no part of a frame")
            f = _number(mfn, f"{field}[0]", extent - 1, least=min(shown, default=0))
            if f not in places:
                raise ProgramError(f"{field}[0]", f"frame {f} is not among the rows")
            at = places[f] * PAGE_SIZE + start * self.word
            memory[at:at + count * self.word] = _pack(values, self.word) * times
        return bytes(memory)

    def _base(self, doc: Any) -> dict[int, int]:
        """Root tables by domain."""
        known = {str(d): d for d in self.domains}
        _only(doc, *known)
        return {known[d]: _number(mfn, f"base.{d}", self.setup.frames - 1) for d, mfn in doc.items()}


def _frame(doc: Any, field: str) -> int:
    """The packed word of one frame."""
    if doc is None:
        return FREE_FRAME
    *numbers, pinned = _list(doc, field)
    limits = zip(numbers, _FRAME_LIMITS, strict=True)
    owner, kind, typed, refs = (_integer(x, f"{field}[{i}]", most) for i, (x, most) in enumerate(limits))
    return pack_frame(owner, kind, typed, refs, _boolean(pinned, f"{field}[4]"))


def _pack(words: list[int], width: int) -> bytes:
    """Words of `width` bytes, little-endian."""
    return b"".join([w.to_bytes(width, "little") for w in words])


# --- writing -----------------------------------------------------------------------------------------------------------------

def _word(n: int) -> int | str:
    """As people read it: small numbers as they are, words in hexadecimal."""
    return n if n < 1024 else hex(n)


def setup_to_json(setup: Setup) -> dict[str, Any]:
    """The `setup` of a header."""
    domains = [{"domid": d.domid, "first": d.first, "pages": d.pages} for d in setup.domains]
    xens = {field: [hex(w) for w in words] for field, words in (
        ("xen_slots", setup.xen_slots), ("xen_descriptors", setup.xen_descriptors)) if words}
    machine = {"machine": setup.machine} if setup.machine else {}
    return {"frames": setup.frames, "xen_frames": setup.xen_frames, "domains": domains} | xens | machine


KINDS: Final[dict[type[Action], str]] = {
    Hypercall: "hypercall", Load: "load", Store: "store", Execute: "execute", LoadSegment: "load_segment",
    FarTransfer: "far_transfer", Interrupt: "interrupt", Return: "return", Access: "access", Privileged: "privileged",
    SystemCall: "system_call"}


def action_to_json(action: Action) -> dict[str, Any]:
    """One action, as a line has it."""
    doc: dict[str, Any] = {"dom": action.dom, "do": KINDS[type(action)]}
    if isinstance(action, Hypercall):
        return doc | {"nr": action.nr, "args": [_word(a) for a in action.args]} | _data_to_json(action.data)
    if isinstance(action, Load | Store | Execute | LoadSegment):
        if isinstance(action, LoadSegment):
            doc |= {"register": action.register, "selector": hex(action.selector)}
        else:
            doc["va"] = hex(action.va)
        if isinstance(action, Store):
            doc["value"] = _word(action.value)
        return doc | ({"user": True} if action.user else {})
    return doc | transfer_to_json(action) | _data_to_json(action.data)


def transfer_to_json(action: Transfer) -> dict[str, Any]:
    """What is particular to a control transfer."""
    values = ((name, getattr(action.at, name)) for name in CONTEXT)
    doc: dict[str, Any] = {"at": {name: hex(value) for n, (name, value) in enumerate(values) if value or n < NEEDED}}
    match action:
        case FarTransfer(kind="ret", selector=0, offset=0):
            doc["kind"] = "ret"
        case FarTransfer():
            doc |= {"kind": action.kind, "selector": hex(action.selector), "offset": hex(action.offset)}
        case Interrupt():
            doc["vector"] = action.vector
        case Access():
            doc |= {"va": hex(action.va)} | ({"write": True} if action.write else {})
        case Privileged():
            doc["instruction"] = action.instruction
    return doc


def _data_to_json(data: Data) -> dict[str, Any]:
    """What the kernel stores first."""
    return {"data": [[hex(va), [_word(w) for w in words]] for va, words in data]} if data else {}


def outcome_to_json(outcome: Outcome) -> dict[str, Any]:
    """One outcome, as a trace has it."""
    doc: dict[str, Any] = {"value": _word(outcome.value)}
    if outcome.vector >= 0:
        doc = {"fault": {"vector": outcome.vector, "error": outcome.error, "address": hex(outcome.address)}}
    elif outcome.address:
        doc["address"] = hex(outcome.address)
    if outcome.landing:
        doc["landing"] = [hex(n) for n in outcome.landing]
    return doc | ({"chose": list(outcome.chose)} if outcome.chose else {})


def observation_to_json(seen: Observation, setup: Setup) -> dict[str, Any]:
    """What was seen, as the last line of a trace has it."""
    p = PROFILES[setup.profile]
    frames = memoryview(seen.frames).cast("B")[:seen.extent * 8].cast("Q")
    m2p = _words(seen.m2p, p)[:seen.extent]
    memory = _words(seen.memory, p)
    shown = range(setup.xen_frames, seen.extent) if seen.rows is None else seen.rows
    used = [(n, row * p.entries) for row, n in enumerate(shown) if frames[n] != FREE_FRAME]
    return {
        "extent": seen.extent,
        "frames": [None if w == FREE_FRAME else list(unpack_frame(w)) for w in frames],
        "m2p": [None if w == p.all_ones else w for w in m2p],
        "memory": [[n, *run] for n, start in used for run in _runs(memory[start:start + p.entries])],
        **({} if seen.rows is None else {"rows": list(seen.rows)}),
        "base": {str(d): mfn for d, mfn in sorted(seen.base.items())}}


def _words(buffer: bytes | memoryview, p: Profile) -> "memoryview[int]":
    """The same memory as words of the profile."""
    octets = memoryview(buffer).cast("B")
    return octets.cast("I") if p.word_bytes == 4 else octets.cast("Q")


def _runs(words: "memoryview[int]") -> Iterator[list[Any]]:
    """The words of one frame that are not 0: where a run begins, the words, and (a frame full of one word) how many times."""
    if len(set(words)) == 1:
        if words[0]:
            yield [0, [_word(words[0])], len(words)]
        return
    run: list[int | str] = []
    for i, word in enumerate([*words, 0]):
        if word:
            run.append(_word(word))
        elif run:
            yield [i - len(run), run]
            run = []
