"""Random single instructions for the bare machine: what the descriptor table leaves out, from a seed.

Limits of segments, EFLAGS at transfers, privileged instructions, stacks of other rings, selectors that name nothing, 16-bit
operands and segments, parameters of call gates, data segments on the way outwards, faults on the way to a handler.
"""
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from oracle.bare import expected
from oracle.bare_difference import AnyDifference, Expected
from oracle.descriptor_table import SHEET, Sheet, T, on_stack, word_of
from spec.vocabulary import BARE_GDT, Bare, Finish, Loaded, Trial, bare_gate, bare_segment, bare_system

# EFLAGS; not those of the specification, which may be wrong
TF, IF, IOPL, NT, RF, VM, AC, VIF, VIP, ID = (1 << 8, 1 << 9, 3 << 12, *(1 << bit for bit in (14, 16, 17, 18, 19, 20, 21)))
_PRESENT: Final = 1 << 47
_BIG: Final = 1 << 54
_GRANULAR: Final = 1 << 55
_ALIAS: Final = 1 << 22                     # RAM repeats: a base that is a multiple of it changes no address in it
_CALL_GATE, _CALL_GATE16 = 0xC, 4
_DATA, _CODE = 0x13, 0x1B
_FIRST, _SECOND, _THIRD = Bare.FREE, Bare.FREE + 8, Bare.FREE + 16
_OPERAND_SIZE, _ADDRESS_SIZE = 0x66, 0x67   # prefixes
_LOCAL: Final = 0x0C                        # a selector of the LDT
_STRANGE: Final = (0, 0xFFF8, Bare.GDT_LIMIT & ~7, Bare.GDT_LIMIT + 1, Bare.LDT_LIMIT & ~7 | 4, Bare.LDT_LIMIT + 1 | 4,
                   Bare.TSS, Bare.LDT)
_STATUS: Final = 0x8D5                      # flags that any arithmetic changes
_FLAGS: Final = (TF, IF, NT, RF, VM, AC, ID, VIF, VIP, 1 << 10)
_INTERRUPT_GATES: Final = (0xE, 0xF, 6, 7)


class Maker:
    """Makes trials of each family from a stream of random numbers."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)

    def ring(self) -> int:
        """A privilege level."""
        return self.rng.randrange(4)

    def kind(self) -> int:
        """S and type of a segment."""
        return self.rng.randrange(16, 32)

    def likely(self) -> bool:
        """True seven times of eight."""
        return self.rng.randrange(8) > 0

    def limit_near(self, offset: int) -> tuple[int, bool]:
        """Limit field and granularity, such that the limit lies close to an offset, or anywhere."""
        choice = self.rng.randrange(4)
        if choice == 0:
            return self.rng.choice((0, 1, 3, 0xFFFE, 0xFFFF, 0xFFFFF, self.rng.randrange(1 << 20))), bool(self.rng.randrange(2))
        if choice == 1:
            return max(offset + self.rng.randrange(-1, 2) * 0x1000, 0) >> 12 & 0xFFFFF, True
        return min(max(offset + self.rng.randrange(-5, 6), 0), 0xFFFFF), False

    def segment(self, kind: int, dpl: int, limit: tuple[int, bool] = (0xFFFFF, True), big: bool = True, base: int = 0) -> int:
        """A present segment."""
        return (bare_segment(kind, dpl) & ~(0xF << 48 | 0xFFFF | _BIG | _GRANULAR) | limit[0] & 0xFFFF | (limit[0] >> 16) << 48
                | big * _BIG | limit[1] * _GRANULAR | (base & 0xFFFFFF) << 16 | base >> 24 << 56)

    def base(self) -> int:
        """A base of a segment."""
        return self.rng.randrange(1024) * _ALIAS if self.rng.randrange(2) else 0

    def absent_sometimes(self, word: int) -> int:
        """Not present one time of eight."""
        return word if self.likely() else word & ~_PRESENT

    def selector(self) -> int:
        """Any selector: the trial's own, one of the LDT, a null one, one beyond a table, one of the machine's."""
        index = self.rng.choice((_FIRST, _FIRST, _SECOND, _LOCAL, _LOCAL, *_STRANGE,
                                 Bare.CODE[self.ring()] & ~3, Bare.DATA[self.ring()] & ~3))
        return index | self.ring()

    def descriptors(self) -> dict[int, int]:
        """Something in each of the trial's entries, and in the one that null selectors name."""
        return {index: self.absent_sometimes(self.anything()) for index in (0, _FIRST, _SECOND, _LOCAL)}

    def anything(self) -> int:
        """Mostly a segment."""
        choice = self.rng.randrange(16)
        if choice == 0:
            return word_of(self.rng.randrange(16), True, self.ring())
        if choice == 1:
            return self.task_gate()
        return self.segment(self.kind(), self.ring(), big=self.likely())

    def task_gate(self) -> int:
        """A task gate to a task, or to what is none."""
        return bare_gate(5, self.rng.choice((Bare.TASK, 0, _LOCAL, 0xFFF8, Bare.DATA[3], Bare.LDT)) | self.ring(), 0, self.ring())

    def landing(self) -> int:
        """Mostly the place itself; else the same one in another repetition of RAM."""
        return Bare.LANDING + (0 if self.likely() else self.rng.randrange(1024) * _ALIAS)

    def flags(self, *among: int) -> int:
        """Some flags, any IOPL."""
        value = 2 | self.rng.randrange(4) << 12 | self.rng.randrange(1 << 12) & _STATUS
        for flag in among:
            value |= flag * self.rng.randrange(2)
        return value

    # --- families ---

    def loads(self) -> Trial:
        """A segment register is loaded with any selector."""
        code = self.rng.choice(("8ed8", "8ec0", "8ee0", "8ee8", "8ed0"))
        return Trial(bytes.fromhex(code), self.ring(), registers={"eax": self.selector()}, descriptors=self.descriptors())

    def accesses(self) -> Trial:
        """A word is read or written at an offset close to a segment's limit."""
        name = self.rng.choice(("ds", "es", "fs", "gs", "ss"))
        cpl = self.ring() if name != "ss" else self.rng.randrange(1, 4)
        prefix = {"ds": "", "es": "26", "fs": "64", "gs": "65", "ss": "36"}[name]
        code = prefix + self.rng.choice(("8a03", "668b03", "8b03", "8803", "668903", "8903"))
        offset = self.rng.choice((0, 1, 2, 0xFFF, 0x1000, 0xFFFF, 0x10000, 0xFFFFF, 0xFFFFFFFF, self.rng.randrange(1 << 16),
                                  self.rng.randrange(1 << 32)))
        offset = max(offset - self.rng.randrange(5), 0)
        # wherever the segment begins, the word lies where neither code nor tables are
        base = 0x200000 - offset + self.rng.randrange(4) & 0xFFFFFFFF
        kind = self.kind() if name != "ss" else self.rng.choice((0x13, 0x17))
        word = self.segment(kind, cpl, self.limit_near(offset), bool(self.rng.randrange(2)), base)
        if name != "ss" and self.rng.randrange(16) == 0:
            return Trial(bytes.fromhex(code), cpl, registers={"ebx": offset}, segments={name: (self.ring(), 0)})
        return Trial(bytes.fromhex(code), cpl, registers={"ebx": offset},
                     segments={name: (_FIRST | cpl, word)}, descriptors={_FIRST: word})

    def pushes(self) -> Trial:
        """PUSH and POP at the ends of a stack segment; at CPL 1 to 3, so that a fault finds a good stack."""
        cpl = self.rng.randrange(1, 4)
        esp = self.edge_of_stack(cpl)
        ss = self.stack(cpl, esp)
        code = self.rng.choice(("50", "6650", "58", "6658"))
        return Trial(bytes.fromhex(code), cpl, registers={"esp": esp}, segments={"ss": ss}, descriptors={_FIRST: ss[1]})

    def misaligned(self) -> Trial:
        """An access, PUSH or POP, with CR0.AM set, and mostly with AC, of ring 3."""
        trial = self.rng.choice((self.accesses, self.pushes))()
        trial.alignment = True
        trial.eflags |= AC * self.likely()
        if trial.segments.keys() <= {"ds", "es", "fs", "gs"} and self.likely():
            trial.cpl = 3
        return trial

    def edge_of_stack(self, ring: int) -> int:
        """A stack pointer, seldom aligned."""
        return Bare.STACK[ring] + self.rng.choice((0, 0, 0, -1, -2, -3, -4, 2))

    def stack(self, ring: int, esp: int) -> Loaded:
        """A stack segment of a ring, whose limit may be close to a stack pointer."""
        limit = (0xFFFFF, True) if self.rng.randrange(2) else self.limit_near(esp + self.rng.randrange(-24, 25))
        kind = self.rng.choice((0x13, 0x13, 0x17))
        return _FIRST | ring, self.segment(kind, ring, limit, self.rng.randrange(4) > 0)

    def transfers(self) -> Trial:
        """A far jump or call to any selector, with any operand size, to an offset close to the limit."""
        cpl, wide = self.ring(), self.likely()
        selector = self.selector() if self.rng.randrange(2) else _FIRST | self.ring()
        descriptors = self.descriptors()
        descriptors[_FIRST] = self.code_near(cpl, Bare.LANDING)
        if self.rng.randrange(3) == 0:
            descriptors[_SECOND] = descriptors[_FIRST]
            descriptors[_FIRST] = self.call_gate(_SECOND | self.ring(), self.rng.randrange(cpl, 4))
        code = ("" if wide else "66") + self.rng.choice(("ff2b", "ff1b"))
        return Trial(bytes.fromhex(code), cpl, descriptors=descriptors, registers={"ebx": Bare.POINTER},
                     memory={**self.pointer(selector, wide), **on_stack(cpl, range(1, 40))})

    def pointer(self, selector: int, wide: bool) -> dict[int, int]:
        """A far pointer to the landing place."""
        if wide:
            return {Bare.POINTER: Bare.LANDING, Bare.POINTER + 4: selector}
        return {Bare.POINTER: Bare.LANDING | selector << 16}

    def code_near(self, dpl: int, offset: int) -> int:
        """Code in which an offset is close to the limit, or not."""
        limit = (0xFFFFF, True) if self.rng.randrange(4) else self.limit_near(offset + self.rng.randrange(8))
        kind = self.rng.choice((0x19, 0x1B, 0x1D, 0x1F, 0x18))
        return self.absent_sometimes(self.segment(kind, dpl if self.likely() else self.ring(), limit, self.likely(), self.base()))

    def call_gate(self, selector: int, dpl: int) -> int:
        """A call gate that copies parameters."""
        kind = _CALL_GATE if self.likely() else _CALL_GATE16
        target = selector if self.likely() else self.selector()
        return self.absent_sometimes(bare_gate(kind, target, self.landing(), dpl) | self.rng.choice((0, 1, 2, 5, 31)) << 32)

    def inner(self) -> Trial:
        """A call gate, an interrupt gate or an exception that leads to an inner ring, to any stack there."""
        cpl = self.rng.randrange(1, 4)
        to = self.rng.randrange(cpl)
        esp = Bare.TSS_STACK[to] + self.rng.choice((0, 0, 1, -2))
        selector, word = self.stack(to, esp - 20)
        if self.rng.randrange(4) == 0:
            selector, word = self.selector(), self.segment(self.kind(), self.ring())
        # a fault in ring 0 would need the stack that is on trial
        code = self.code_near(to, Bare.LANDING) if to else self.absent_sometimes(self.segment(_CODE, 0))
        descriptors = {**self.descriptors(), _FIRST: self.absent_sometimes(word), _SECOND: code}
        stacks = {to: (selector, esp)}
        flags = self.flags(IF, NT, AC, ID, VIF, VIP)
        entry = self.rng.choice(("call", "int", "exception"))
        if entry == "call":
            descriptors[_LOCAL] = self.call_gate(_SECOND, 3)
            return Trial(b"\xff\x1b", cpl, flags, {"ebx": Bare.POINTER}, {}, descriptors, {}, stacks,
                         {**self.pointer(_LOCAL, True), **on_stack(cpl, range(1, 40))})
        gate = self.absent_sometimes(bare_gate(self.rng.choice(_INTERRUPT_GATES), _SECOND, Bare.LANDING))
        instruction, vector = (b"\xcd\x80", 0x80) if entry == "int" else (b"\x0f\x0b", 6)
        task_limit = 0x67 if self.likely() else 8 * to + self.rng.randrange(3, 20)
        if task_limit < 9:
            task_limit = 0x67               # ring 0 handles the faults
        return Trial(instruction, cpl, flags, descriptors=descriptors, gates={vector: gate}, stacks=stacks, task_limit=task_limit)

    def handlers(self) -> Trial:
        """An interrupt or exception with any flags, through any gate, to any code."""
        cpl = self.ring()
        descriptors = self.descriptors()
        descriptors[_FIRST] = self.code_near(self.rng.randrange(cpl + 1), Bare.LANDING)
        target = _FIRST | self.ring() if self.likely() else self.selector()
        gate = self.absent_sometimes(bare_gate(self.rng.choice(_INTERRUPT_GATES), target, self.landing(), self.ring()))
        if not self.likely():
            gate, descriptors[Bare.TASK] = self.task_gate(), self.absent_sometimes(BARE_GDT[Bare.TASK])
        code, vector = self.rng.choice(((b"\xcd\x80", 0x80), (b"\x0f\x0b", 6), (b"\xcc", 3), (b"\xcd\x08", 8)))
        return Trial(code, cpl, self.flags(IF, NT, AC, ID, RF, VIF, VIP), descriptors=descriptors, gates={vector: gate})

    def returns(self) -> Trial:
        """A far return, with or without parameters, or IRET: to the same ring or outwards, with any flags."""
        cpl, wide = self.ring(), self.likely()
        to = self.rng.randrange(cpl, 4) if self.likely() else self.ring()
        code = self.rng.choice(("cb", "ca0800", "cf", "cf"))
        descriptors = self.descriptors()
        descriptors[_FIRST] = self.code_near(to, Bare.LANDING)
        selector = _FIRST | to if self.likely() else self.selector()
        esp = Bare.TSS_STACK[to] + self.rng.choice((0, 0, 1, 2))
        ss = self.rng.choice((Bare.DATA[to], Bare.DATA[to], _SECOND | to, self.selector()))
        descriptors[_SECOND] = self.absent_sometimes(self.segment(_DATA, to, big=self.likely()))
        frame = [Bare.LANDING, selector]
        if code == "cf":
            frame.append(self.flags(*_FLAGS))
        frame += [0xAAAA, 0xBBBB] * (code == "ca0800")
        if code == "ca0800" and not wide:
            frame += [0xCCCC, 0xDDDD]
        frame += [esp, ss]
        outer = {name: self.kept_segment() for name in ("ds", "es", "fs", "gs") if self.rng.randrange(2)}
        memory = on_stack(cpl, frame) if wide else on_stack(cpl, halves(frame))
        trial = Trial(bytes.fromhex(("" if wide else "66") + code), cpl, self.flags(IF, AC, ID, VIF, VIP), segments=outer,
                      descriptors=descriptors, memory=memory)
        if not self.likely():
            self.nest(trial)
        return trial

    def nest(self, trial: Trial) -> None:
        """IRET is to return to the task that the TSS names."""
        trial.eflags |= NT
        trial.link = self.rng.choice((_SECOND, _SECOND, Bare.TASK, _LOCAL, 0, 0xFFF8, Bare.DATA[3], Bare.LDT)) | self.ring()
        kind = self.rng.choice((0xB, 0xB, 3, 9, 1, 2))
        base = Bare.TASK_BASE if kind & 8 else Bare.TASK16_BASE
        trial.descriptors[_SECOND] = self.absent_sometimes(bare_system(kind, base, 0x67, self.ring()))
        if self.likely():
            trial.descriptors[0] = trial.descriptors[_SECOND]

    def kept_segment(self) -> Loaded:
        """A data segment that a return outwards may have to clear; the machine's own, or a null one."""
        if not self.likely():
            return self.rng.choice(((0, 0), (1, 0), (3, 0)))
        ring = self.ring()
        selector = self.rng.choice((Bare.DATA[ring], Bare.CODE[ring], Bare.CONFORMING))
        return selector, BARE_GDT[selector & ~3]

    def edges(self) -> Trial:
        """A return whose frame lies at the end of the stack segment."""
        cpl = self.rng.randrange(1, 4)
        to = self.rng.randrange(cpl, 4)
        esp = self.edge_of_stack(cpl)
        ss = self.stack(cpl, esp + 12)
        code = self.rng.choice(("cb", "ca0800", "cf"))
        between = {"cb": (), "ca0800": (0, 0), "cf": (2,)}[code]
        frame = (Bare.LANDING, Bare.CODE[to], *between, Bare.TSS_STACK[to], Bare.DATA[to])
        return Trial(bytes.fromhex(code), cpl, registers={"esp": esp}, segments={"ss": ss}, descriptors={_FIRST: ss[1]},
                     memory={esp + 4 * n: word for n, word in enumerate(frame)})

    def flag_instructions(self) -> Trial:
        """POPF, CLI, STI, PUSHF at any CPL and IOPL."""
        cpl = self.ring()
        code = self.rng.choice(("9d", "9d", "669d", "fa", "fb", "9c", "669c"))
        value = self.flags(*_FLAGS) if self.likely() else self.rng.randrange(1 << 32)
        return Trial(bytes.fromhex(code), cpl, self.flags(IF, NT, AC, ID, VIF, VIP, RF, 1 << 10), memory=on_stack(cpl, [value]))

    def privileged(self) -> Trial:
        """Instructions of ring 0, at any ring where the machine survives them; ports without leave."""
        code = self.rng.choice(PRIVILEGED)
        cpl = self.rng.randrange(1, 4) if code in FATAL else self.ring()
        flags = self.flags(IF)
        if code in PORTS:
            cpl = max(cpl, 1)
            flags = flags & ~IOPL | self.rng.randrange(cpl) << 12
        return Trial(bytes.fromhex(code), cpl, flags, {"ebx": Bare.POINTER, "eax": 0, "ecx": 0x10, "edx": 0})

    def double(self) -> Trial:
        """The gate of an exception's handler is itself no good."""
        cpl = self.ring()
        first, code, registers = self.rng.choice((
            (13, "8ed8", {"eax": 0xFFF8}), (11, "8ed8", {"eax": _FIRST | 3}), (6, "0f0b", {}), (0, "f7f1", {"ecx": 0}),
            (13, "fa", {}), (5, "6213", {"ebx": Bare.POINTER, "edx": 5})))
        if code == "fa" and cpl == 0:
            first, code, registers = 6, "0f0b", {}
        gate = self.rng.choice((0, bare_gate(0xE, _FIRST, Bare.LANDING) & ~_PRESENT, bare_gate(0xE, Bare.DATA[0], Bare.LANDING),
                                bare_gate(0xE, 0, Bare.LANDING), bare_gate(0xC, Bare.CODE[0], Bare.LANDING),
                                bare_gate(0xF, _SECOND, Bare.LANDING), bare_gate(0xE, 0xFFF8, Bare.LANDING)))
        absent = self.segment(_DATA, 3) & ~_PRESENT
        return Trial(bytes.fromhex(code), cpl, registers=registers, gates={first: gate},
                     descriptors={_FIRST: absent, _SECOND: self.segment(_CODE, self.rng.randrange(cpl + 1)) & ~_PRESENT})

    def fetches(self) -> Trial:
        """An instruction that lies across the limit of its own code segment."""
        cpl = self.rng.randrange(1, 4)
        code = self.rng.choice(("90", "6690", "b844332211", "0f1f00"))
        limit = (Bare.START + self.rng.randrange(-2, 12), False) if self.likely() else self.limit_near(Bare.START)
        word = self.segment(self.rng.choice((0x19, 0x1B)), cpl, limit, True, self.base())
        return Trial(bytes.fromhex(code), cpl, segments={"cs": (_FIRST | cpl, word)}, descriptors={_FIRST: word})


    def tight(self) -> Trial:
        """A transfer, mostly in the same ring, whose stack has hardly room for what it pushes; at CPL 1 to 3."""
        trial = self.rng.choice((self.transfers, self.handlers))()
        while trial.cpl == 0:
            trial = self.rng.choice((self.transfers, self.handlers))()
        limit = self.limit_near(Bare.STACK[trial.cpl] - self.rng.randrange(24))
        kind = self.rng.choice((_DATA, _DATA | 1 << 2))
        trial.segments["ss"] = _THIRD | trial.cpl, self.segment(kind, trial.cpl, limit, self.likely())
        return trial

    def narrow(self) -> Trial:
        """A transfer from code, or from a stack, of 16 bits; the upper half of ESP is then anything."""
        trial = self.rng.choice((self.transfers, self.inner, self.handlers, self.returns))()
        choice = self.rng.randrange(3)
        if choice < 2:
            trial.segments["ss"] = _THIRD | trial.cpl, self.segment(_DATA, trial.cpl, big=False)
            trial.registers["esp"] = Bare.STACK[trial.cpl] | self.rng.randrange(1 << 16) << 16
        if choice > 0:
            trial.segments["cs"] = _THIRD | trial.cpl, self.segment(_CODE, trial.cpl, big=False)
            trial.code = narrowed(trial.code)
        return trial

    def steps(self) -> Trial:
        """Any of the others' instructions with TF set."""
        trial = self.rng.choice((self.loads, self.transfers, self.returns, self.flag_instructions, self.handlers))()
        trial.eflags = trial.eflags & ~RF | TF
        return trial


def narrowed(code: bytes) -> bytes:
    """The same instruction in code of 16 bits, where the prefixes mean the opposite."""
    code = code[1:] if code[0] == _OPERAND_SIZE else bytes([_OPERAND_SIZE]) + code
    return bytes([_ADDRESS_SIZE]) + code


def halves(words: list[int]) -> list[int]:
    """Words of 16 bits, two by two."""
    padded = [word & 0xFFFF for word in words] + [0] * (len(words) % 2)
    return [low | high << 16 for low, high in zip(padded[::2], padded[1::2], strict=True)]


FATAL: Final = ("f4", "0f22d8", "0f00d8")    # HLT; MOV CR3 and LTR of 0
PORTS: Final = ("e460", "e660", "ec", "ee", "6c", "6e", "66ed", "ef")
PRIVILEGED: Final = (
    "f4", "0f06", "0f08", "0f09", "0f0113", "0f011b", "0f00d0", "0f00d8", "0f20c0", "0f22d8", "0f20d0", "0f20d8", "0f21f8",
    "0f23c0", "0f013b", "0f01f0", "0f32", "0f30", *PORTS)


FAMILIES: Final[dict[str, Callable[[Maker], Trial]]] = {
    "segment registers": Maker.loads,
    "limits of accesses": Maker.accesses, "limits of PUSH and POP": Maker.pushes, "limits of fetches": Maker.fetches,
    "alignment": Maker.misaligned,
    "far jumps and calls": Maker.transfers, "stacks of inner rings": Maker.inner, "handlers": Maker.handlers,
    "returns": Maker.returns, "frames at the stack's end": Maker.edges, "code and stacks of 16 bits": Maker.narrow,
    "little room": Maker.tight,
    "EFLAGS": Maker.flag_instructions, "privileged instructions": Maker.privileged,
    "faults on the way to a handler": Maker.double, "single steps": Maker.steps,
}


@dataclass(frozen=True, slots=True)
class Sample:
    """How random trials ended, by family; and where the specification differs."""
    ends: dict[str, Counter[str]]
    differences: list[AnyDifference]
    seconds: float

    @property
    def trials(self) -> int:
        """How many there were."""
        return sum(sum(ends.values()) for ends in self.ends.values())


def trials(seed: int, count: int, family: str) -> Iterator[Trial]:
    """Trials of a family, those of one instruction together."""
    maker = Maker(seed)
    made = [FAMILIES[family](maker) for _ in range(count)]
    return iter(sorted(made, key=lambda trial: trial.code))


def sample(perform: Callable[[Trial], Finish], seed: int, count: int, expect: Expected = expected) -> Sample:
    """Perform about `count` random trials, as many of each family, and hold them against the specification."""
    each = -(-count // len(FAMILIES))
    made = {family: trials(seed * len(FAMILIES) + number, each, family) for number, family in enumerate(FAMILIES)}
    return sampled(SHEET, perform, made, expect)


def sampled(sheet: Sheet[T], perform: Callable[[T], Any], made: Mapping[str, Iterable[T]], expect: Callable[[T], Any]) -> Sample:
    """Perform the trials of some families."""
    start = time.perf_counter()
    ends: dict[str, Counter[str]] = {}
    differences: list[AnyDifference] = []
    for family, those in made.items():
        ends[family] = Counter()
        for trial in those:
            does = perform(trial)
            ends[family][sheet.end(does, trial.cpl)] += 1
            differences += sheet.difference(f"{family}: {trial.code.hex()} at CPL {trial.cpl}", trial, expect(trial), does)
    return Sample(ends, differences, time.perf_counter() - start)
