"""Random single instructions for the bare machine in long mode: what its descriptor table leaves out, from a seed.

Addresses at the edges of what is canonical: of code, of stacks, of operands, of bases; stacks of the TSS and of gates; null
selectors for SS; bases of FS and GS; operands of 16, 32 and 64 bits; changes of mode; system calls; faults on the way to a
handler.
"""
import random
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

from oracle.bare64 import expected
from oracle.long_table import LONG_KINDS, LONG_SHEET, long_word
from oracle.trials import Sample, sampled
from spec.vocabulary import LONG_GDT, Loaded, LongBare, LongFinish, LongTrial, bare_gate, bare_segment

# EFLAGS; not those of the specification, which may be wrong
TF, IF, IOPL, NT, RF, VM, AC, VIF, VIP, ID = (1 << 8, 1 << 9, 3 << 12, *(1 << bit for bit in (14, 16, 17, 18, 19, 20, 21)))
_FLAGS: Final = (TF, IF, NT, RF, VM, AC, ID, VIF, VIP, 1 << 10)
_STATUS: Final = 0x8D5                      # flags that any arithmetic changes
_PRESENT, _LONG, _BIG, _GRANULAR = 1 << 47, 1 << 53, 1 << 54, 1 << 55
_ALIAS: Final = LongBare.SIZE               # addresses that differ by a multiple of it are the same
_HOLE, _END = 1 << 47, 0x1FFFF << 47        # the addresses from one to the other are not canonical
_MASK: Final = (1 << 64) - 1
_CALL_GATE: Final = 0xC
_DATA, _CODE = 0x13, 0x1B
_FIRST, _SECOND, _THIRD = LongBare.FREE, LongBare.FREE + 8, LongBare.FREE + 0x10
_GATE: Final = LongBare.FREE + 0x20         # of 16 bytes
_LOCAL: Final = 0x0C                        # a selector of the LDT
_LAST: Final = LongBare.GDT_LIMIT & ~7      # what is of 16 bytes there, has its second half beyond the table
_STRANGE: Final = (0, 0, 0, 0xFFF8, _LAST, LongBare.GDT_LIMIT + 1, LongBare.LDT_LIMIT & ~7 | 4, LongBare.LDT_LIMIT + 1 | 4,
                   LongBare.TSS, LongBare.TSS + 8, LongBare.LDT)
_INTERRUPT_GATES: Final = (0xE, 0xF)
_MSRS: Final = {0xC0000081: "star", 0xC0000082: "lstar", 0xC0000083: "cstar", 0xC0000084: "sfmask", 0xC0000100: "fs",
                0xC0000101: "gs", 0xC0000102: "kernel_gs_base"}


class LongMaker:
    """Makes trials of each family from a stream of random numbers."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)

    def ring(self) -> int:
        """A privilege level."""
        return self.rng.randrange(4)

    def likely(self) -> bool:
        """True seven times of eight."""
        return self.rng.randrange(8) > 0

    def even(self) -> bool:
        """True every other time."""
        return self.rng.randrange(2) > 0

    # --- addresses ---

    def canonical(self, low: int) -> int:
        """Any canonical address that ends in these 16 bits."""
        high = self.rng.choice((0, 0, 1, 0x7FFF, 0x10000, 0x7FFFFFFF, *(self.rng.randrange(1 << 31) for _ in range(3))))
        return high << 16 | low | self.even() * _END

    def stray(self, low: int) -> int:
        """Any address that is not canonical and ends in these 16 bits."""
        return self.rng.choice((_HOLE, _END - _ALIAS, 1 << 63, 1 << 48, self.rng.randrange(_HOLE, _END))) & ~0xFFFF | low

    def address(self, low: int) -> int:
        """Mostly a canonical one."""
        return self.canonical(low) if self.likely() else self.stray(low)

    def edge(self) -> int:
        """An address at an end of those that are canonical, or of all."""
        by = 8 * self.rng.randrange(-7, 8) if self.even() else self.rng.randrange(-48, 49)
        return self.rng.choice((_HOLE, _END, 0)) + by & _MASK

    def top(self, low: int) -> int:
        """A stack pointer: an edge, or an address that ends so, seldom with some bits more."""
        choice = self.rng.randrange(4)
        if choice == 0:
            return self.edge()
        return (self.address(low) if choice == 1 else low) + (0 if self.even() else self.rng.randrange(16))

    # --- descriptors ---

    def absent_sometimes(self, word: int) -> int:
        """Not present one time of eight."""
        return word if self.likely() else word & ~_PRESENT

    def selector(self) -> int:
        """Any selector: the trial's own, one of the LDT, a null one, one beyond a table, one of the machine's."""
        index = self.rng.choice((*(_FIRST, _SECOND, _LOCAL) * 3, _GATE, *_STRANGE, LongBare.CODE[self.ring()] & ~3,
                                 LongBare.DATA[self.ring()] & ~3, LongBare.COMPATIBLE[self.ring()] & ~3))
        return index | self.ring()

    def anything(self) -> int:
        """Any descriptor, also with a base."""
        word = long_word(self.rng.randrange(len(LONG_KINDS) + 16) % len(LONG_KINDS), self.likely(), self.ring())
        return word | self.rng.randrange(1 << 15) << 32 & 0xFF00000000 | self.rng.randrange(256) << 56 if word >> 44 & 1 else word

    def code(self, dpl: int) -> int:
        """Mostly 64-bit code, or 32-bit code, perhaps with a limit close to the landing place; seldom data with the same bits."""
        kind = self.rng.choice((*(0x19, 0x1B, 0x1D, 0x1F, 0x18) * 3, _DATA))
        word = bare_segment(kind, dpl if self.likely() else self.ring())
        mode = self.rng.randrange(8)
        if mode > 3:
            word ^= _LONG | _BIG
        elif mode == 3:
            word ^= self.rng.choice((_LONG, _BIG))
        if self.rng.randrange(4) == 0:
            limit = LongBare.LANDING + self.rng.randrange(-4, 8)
            word = word & ~(_GRANULAR | 0xF << 48 | 0xFFFF) | limit
        return self.absent_sometimes(word)

    def gate(self, target: int) -> tuple[int, int]:
        """An interrupt gate, seldom with some wrong bits."""
        kind = self.rng.choice(_INTERRUPT_GATES) if self.likely() else self.rng.randrange(32)
        return self.split(kind, target, self.ring() if self.even() else 3, self.rng.choice((0, 0, 0, self.rng.randrange(7))))

    def split(self, kind: int, target: int, dpl: int, ist: int = 0) -> tuple[int, int]:
        """A gate of 16 bytes to a landing place."""
        offset = self.address(LongBare.LANDING)
        rubbish = self.rng.randrange(1 << 32) << 32 if not self.likely() else 0
        return self.absent_sometimes(bare_gate(kind, target, offset & 0xFFFFFFFF, dpl)) | ist << 32, offset >> 32 | rubbish

    def descriptors(self) -> dict[int, int]:
        """Something in each of the trial's entries, and in the one that null selectors name."""
        found = {index: self.absent_sometimes(self.anything()) for index in (0, _FIRST, _SECOND, _LOCAL)}
        found[_LAST], _ = self.split(_CALL_GATE, LongBare.CODE[0], 3)
        return found

    # --- registers ---

    def flags(self, *among: int) -> int:
        """Some flags, any IOPL."""
        value = 2 | self.rng.randrange(4) << 12 | self.rng.randrange(1 << 12) & _STATUS
        for flag in among:
            value |= flag * self.rng.randrange(2)
        return value

    def bases(self) -> dict[str, int]:
        """Bases of FS and GS."""
        return {name: self.canonical(self.rng.randrange(1 << 16)) for name in ("fs", "gs") if self.even()}

    def stacks(self) -> dict[int, int]:
        """Pointers to the stacks of inner rings."""
        return {ring: self.top(LongBare.TSS_STACK[ring]) for ring in range(3) if self.even()}

    def ists(self) -> dict[int, int]:
        """Pointers to the stacks that gates name, but for the machine's own."""
        return {n: self.top(LongBare.IST[n - 1]) for n in range(1, 7) if self.even()}

    def in_32(self) -> bool:
        """Compatibility mode, one time of four."""
        return self.rng.randrange(4) == 0

    def operand(self, code: str, compatible: bool, wide: bool = True) -> tuple[bytes, int]:
        """An instruction with an operand size, and that size."""
        sizes = (2, 4, 4) if compatible or not wide else (2, 4, 8, 8)
        size = self.rng.choice(sizes)
        return bytes.fromhex({2: "66", 4: "", 8: "48"}[size] + code), size

    # --- families ---

    def loads(self) -> LongTrial:
        """A segment register is loaded with any selector; POP FS and GS change their bases, too."""
        compatible, cpl, selector = self.in_32(), self.ring(), self.selector() if self.likely() else self.ring()
        code = self.rng.choice(("8ed8", "8ec0", "8ee0", "8ee8", "8ed0", "8ed0", "0fa1", "0fa9"))
        trial = LongTrial(bytes.fromhex(code), cpl, compatible, registers={"rax": selector}, descriptors=self.descriptors(),
                          bases=self.bases())
        trial.memory[LongBare.STACK[cpl]] = selector
        return trial

    def accesses(self) -> LongTrial:
        """A word is read or written at an address of any kind."""
        compatible = self.rng.randrange(8) == 0
        cpl, bases = self.ring(), self.bases()
        code = self.rng.choice(("8a", "8b", "88", "89")) + self.rng.choice(("03", "4500", "0424"))
        prefix = self.rng.choice(("", "", "26", "2e", "36", "3e", "64", "65")) if not compatible else ""
        wide = "" if compatible else self.rng.choice(("", "48"))
        address = self.edge() if self.even() else self.address(LongBare.MEMORY + self.rng.randrange(0x1000))
        if compatible:
            address &= 0xFFFFFFFF
        if code[0:2] in ("88", "89") and not 0x7000 <= address % _ALIAS < 0xFFE0:
            code = "8b" + code[2:]
        offset = address - bases.get({"64": "fs", "65": "gs"}.get(prefix, ""), 0) & _MASK
        name = {"03": "rbx", "4500": "rbp", "0424": "rsp"}[code[2:]]
        null: Loaded = (self.ring(), 0)
        segments = {name: null for name in ("ds", "es") if self.even()} if not compatible else {}
        return LongTrial(bytes.fromhex(prefix + wide + code), cpl, compatible, registers={name: offset}, bases=bases,
                         segments=segments)

    def pushes(self) -> LongTrial:
        """PUSH and POP at the ends of what is canonical, or anywhere."""
        cpl = self.ring()
        code = self.rng.choice(("50", "6650", "58", "6658", "9c", "669c"))
        return LongTrial(bytes.fromhex(code), cpl, rflags=self.flags(IF, NT, AC, ID), registers={"rsp": self.top(0x8800)})

    def transfers(self) -> LongTrial:
        """A far jump or call to any selector, to any address, through a call gate or not."""
        compatible, cpl = self.in_32(), self.ring()
        code, size = self.operand(self.rng.choice(("ff2b", "ff1b")), compatible)
        descriptors = self.descriptors()
        descriptors[_FIRST] = self.code(cpl)
        selector = self.selector() if not self.likely() else _FIRST | self.ring()
        if self.even():
            target = _FIRST | self.ring() if self.likely() else self.selector()
            descriptors[_GATE], descriptors[_GATE + 8] = self.split(_CALL_GATE, target, self.rng.randrange(cpl, 4))
            selector = _GATE | self.rng.randrange(cpl + 1) if self.likely() else self.selector()
            descriptors[_FIRST] = self.code(self.rng.randrange(cpl + 1))
        offset = self.address(LongBare.LANDING) if self.even() else LongBare.LANDING
        rsp = LongBare.STACK[cpl] if compatible else self.top(LongBare.STACK[cpl])
        return LongTrial(code, cpl, compatible, registers={"rbx": LongBare.POINTER, "rsp": rsp}, descriptors=descriptors,
                         stacks=self.stacks(), memory=packed(LongBare.POINTER, (offset, selector), size))

    def handlers(self) -> LongTrial:
        """An interrupt or exception with any flags, through any gate, to any code, on any stack."""
        compatible, cpl = self.in_32(), self.ring()
        descriptors = self.descriptors()
        descriptors[_FIRST] = self.code(self.rng.randrange(cpl + 1))
        target = _FIRST | self.ring() if self.likely() else self.selector()
        code, vector = self.rng.choice(((b"\xcd\x80", 0x80), (b"\x0f\x0b", 6), (b"\xcc", 3), (b"\xcd\x08", 8)))
        rsp = LongBare.STACK[cpl] + self.rng.randrange(16) if compatible else self.top(LongBare.STACK[cpl])
        return LongTrial(code, cpl, compatible, self.flags(IF, NT, AC, ID, RF, VIF, VIP), descriptors=descriptors,
                         registers={"rsp": rsp}, gates={vector: self.gate(target)}, stacks=self.stacks(), ist=self.ists())

    def limits(self) -> LongTrial:
        """The TSS ends before a stack that a gate asks for."""
        cpl = self.ring()
        to = self.rng.randrange(cpl + 1)
        ist = self.rng.randrange(7)
        gate = bare_gate(0xE, LongBare.CODE[to], LongBare.LANDING) | ist << 32, 0
        slot = 28 + 8 * ist if ist else 4 + 8 * to
        limit = min(slot + self.rng.randrange(4, 11), LongBare.TSS_LIMIT - 1)
        code, vector = self.rng.choice(((b"\xcd\x80", 0x80), (b"\x0f\x0b", 6)))
        trial = LongTrial(code, cpl, self.in_32(), gates={vector: gate}, task_limit=limit)
        if self.rng.randrange(4) == 0:
            gate = bare_gate(_CALL_GATE, LongBare.CODE[to], LongBare.LANDING), 0
            limit = 4 + 8 * to + self.rng.randrange(4, 11)
            trial = LongTrial(b"\xff\x1b", cpl, registers={"rbx": LongBare.POINTER}, task_limit=limit,
                              descriptors={_GATE: gate[0], _GATE + 8: gate[1]}, memory=packed(LongBare.POINTER, (0, _GATE), 4))
        return trial

    def returns(self) -> LongTrial:
        """A far return, with or without parameters, or IRET: to the same ring or outwards, with any flags, to any address."""
        compatible, cpl = self.in_32(), self.ring()
        to = self.rng.randrange(cpl, 4) if self.likely() else self.ring()
        name = self.rng.choice(("cb", "ca0800", "cf", "cf"))
        code, size = self.operand(name, compatible)
        descriptors = self.descriptors()
        descriptors[_FIRST] = self.code(to)
        cs = _FIRST | to if self.likely() else self.selector()
        ss = self.rng.choice((LongBare.DATA[to], LongBare.DATA[to], _SECOND | to, to, self.selector()))
        descriptors[_SECOND] = self.absent_sometimes(bare_segment(_DATA, to))
        between = {"cb": (), "ca0800": (0xAAAA,) * (8 // size), "cf": (self.flags(*_FLAGS),)}[name]
        address = self.address(LongBare.LANDING) if self.even() else LongBare.LANDING
        rubbish = self.rng.randrange(1 << 48) << 16 if not self.likely() else 0
        frame = (address, cs | rubbish, *between, self.top(0x8800), ss | rubbish)
        rsp = LongBare.STACK[cpl] if compatible or self.likely() else self.canonical(LongBare.STACK[cpl])
        flags = self.flags(IF, AC, ID, VIF, VIP) | NT * (not self.likely())
        return LongTrial(code, cpl, compatible, flags, {"rsp": rsp}, self.kept(), descriptors, bases=self.bases(),
                         memory=packed(LongBare.STACK[cpl], frame, size))

    def kept(self) -> dict[str, Loaded]:
        """Data segments that a return outwards may have to clear; the machine's own, or null ones."""
        found: dict[str, Loaded] = {}
        for name in ("ds", "es", "fs", "gs"):
            if self.even():
                selector = self.rng.choice((LongBare.DATA, LongBare.CODE, LongBare.COMPATIBLE))[self.ring()]
                found[name] = (selector, LONG_GDT[selector & ~3]) if self.likely() else (self.ring(), 0)
        return found

    def edges(self) -> LongTrial:
        """A return whose frame lies at an end of what is canonical."""
        cpl = self.ring()
        to = self.rng.randrange(cpl, 4)
        name = self.rng.choice(("cb", "ca0800", "cf"))
        code, size = self.operand(name, False)
        between = {"cb": (), "ca0800": (0,) * (8 // size), "cf": (2,)}[name]
        frame = (LongBare.LANDING, LongBare.CODE[to], *between, LongBare.STACK[to] + 0x100, LongBare.DATA[to])
        rsp = self.rng.choice((_HOLE, 0)) - self.rng.randrange(1, 7) * size + self.rng.choice((0, 0, 1, -1)) & _MASK
        return LongTrial(code, cpl, registers={"rsp": rsp}, memory=packed(rsp, frame, size))

    def system_calls(self) -> LongTrial:
        """SYSCALL and SYSRET."""
        cpl = self.ring() if self.even() else 0
        code = self.rng.choice(("0f05", "480f07", "0f07"))
        star = self.rng.choice((0x00130008 << 32, 0x00230008 << 32, self.rng.randrange(1 << 64), (_FIRST | _FIRST << 16) << 32))
        msrs = {"star": star, "lstar": self.canonical(LongBare.LANDING), "cstar": self.canonical(LongBare.LANDING),
                "sfmask": self.rng.randrange(1 << 32) if self.even() else self.flags(*_FLAGS)}
        r11 = self.rng.randrange(1 << 64) if self.even() else self.flags(*_FLAGS)
        rcx = self.address(LongBare.LANDING)
        compatible = code[:2] != "48" and self.in_32()
        flags = self.flags(IF, NT, AC, ID, RF, VIF, VIP, 1 << 10)
        return LongTrial(bytes.fromhex(code), cpl, compatible, flags, {"rcx": rcx, "r11": r11}, self.kept(),
                         self.descriptors(), msrs=msrs, calls=self.likely())

    def registers(self) -> LongTrial:
        """Registers that hold addresses: WRMSR, WRFSBASE and the like, SWAPGS."""
        cpl = 0 if self.likely() else self.ring()
        value = self.rng.choice((self.canonical, self.stray))(self.rng.randrange(1 << 16)) if self.even() else self.edge()
        if self.even():
            number = self.rng.choice(tuple(_MSRS))
            if number == 0xC0000084 and self.even():
                value &= 0xFFFFFFFF
            return LongTrial(b"\x0f\x30", cpl, registers={"rax": value & 0xFFFFFFFF, "rdx": value >> 32, "rcx": number})
        code = self.rng.choice(("0f01f8", "f30faed0", "f3480faed0", "f30faed8", "f3480faed8", "f30faec0", "f3480faec0",
                                "f3480faec8"))
        compatible = "48" not in code and self.in_32()
        return LongTrial(bytes.fromhex(code), self.ring() if code == "0f01f8" else cpl, compatible, registers={"rax": value},
                         bases=self.bases(), msrs={"kernel_gs_base": self.canonical(0x1234)})

    def flag_instructions(self) -> LongTrial:
        """POPF, CLI, STI, PUSHF at any CPL and IOPL."""
        cpl = self.ring()
        code = self.rng.choice(("9d", "9d", "669d", "fa", "fb", "9c", "669c"))
        value = self.flags(*_FLAGS) & ~TF if self.likely() else self.rng.randrange(1 << 64) & ~TF
        return LongTrial(bytes.fromhex(code), cpl, self.in_32(), self.flags(IF, NT, AC, ID, VIF, VIP, RF, 1 << 10),
                         memory={LongBare.STACK[cpl]: value})

    def privileged(self) -> LongTrial:
        """Instructions of ring 0, at any ring where the machine survives them; ports without leave."""
        code = self.rng.choice(LONG_PRIVILEGED)
        cpl = self.rng.randrange(1, 4) if code in LONG_FATAL else self.ring()
        flags = self.flags(IF)
        if code in LONG_PORTS:
            cpl = max(cpl, 1)
            flags = flags & ~IOPL | self.rng.randrange(cpl) << 12
        return LongTrial(bytes.fromhex(code), cpl, rflags=flags, registers={"rbx": LongBare.POINTER})

    def double(self) -> LongTrial:
        """The gate of an exception's handler is itself no good."""
        cpl = self.ring()
        first, code, registers = self.rng.choice((
            (13, "8ed8", {"rax": 0xFFF8}), (11, "8ed8", {"rax": _FIRST | 3}), (6, "0f0b", {}), (0, "f7f1", {"rcx": 0}),
            (13, "8a03", {"rbx": _HOLE}), (12, "8a4500", {"rbp": _HOLE}), (12, "58", {"rsp": _HOLE})))
        whole = bare_gate(0xE, _FIRST, LongBare.LANDING)
        gate = self.rng.choice((
            (0, 0), (whole & ~_PRESENT, 0), (bare_gate(0xE, LongBare.DATA[0], LongBare.LANDING), 0),
            (bare_gate(0xE, 0, LongBare.LANDING), 0), (bare_gate(_CALL_GATE, LongBare.CODE[0], LongBare.LANDING), 0),
            (bare_gate(0xF, _SECOND, LongBare.LANDING), 0), (bare_gate(0xE, 0xFFF8, LongBare.LANDING), 0),
            (bare_gate(0xE, LongBare.COMPATIBLE[0], LongBare.LANDING), 0),
            (bare_gate(0xE, LongBare.CODE[0], LongBare.LANDING), 0x8000), (bare_gate(0xE, LongBare.CODE[0], 0), 1 << 40),
            *((bare_gate(0xE, LongBare.CODE[0], LongBare.LANDING) | 1 << 32, 0),) * 4))
        absent = bare_segment(_DATA, 3) & ~_PRESENT
        code_absent = (bare_segment(_CODE, self.rng.randrange(cpl + 1)) ^ _LONG ^ _BIG) & ~_PRESENT
        return LongTrial(bytes.fromhex(code), cpl, rflags=self.flags(IF), registers=dict(registers), gates={first: gate},
                         descriptors={_FIRST: absent, _SECOND: code_absent}, ist={1: self.top(LongBare.IST[0])})

    def tight(self) -> LongTrial:
        """A transfer of 32-bit code, or a PUSH or POP, whose stack ends close by."""
        trial = self.rng.choice((self.transfers, self.returns, self.pushes, self.pushes))()
        while len(trial.code) > 1 and trial.code[0] == 0x48:
            trial = self.rng.choice((self.transfers, self.returns))()
        trial.compatible = True
        trial.registers["rsp"] = LongBare.STACK[trial.cpl]
        limit = max(LongBare.STACK[trial.cpl] + self.rng.randrange(-24, 40), 0)
        word = bare_segment(self.rng.choice((_DATA, _DATA, _DATA | 4)), trial.cpl) & ~(_GRANULAR | 0xF << 48 | 0xFFFF) | limit
        trial.segments["ss"] = _THIRD | trial.cpl, word
        return trial

    def narrow(self) -> LongTrial:
        """A transfer from code with a stack of 16 bits, to code of 16 bits, or to one."""
        trial = self.rng.choice((self.transfers, self.handlers, self.returns))()
        if trial.compatible and self.even():
            trial.segments["ss"] = _THIRD | trial.cpl, bare_segment(_DATA, trial.cpl) & ~_BIG
            trial.registers["rsp"] = LongBare.STACK[trial.cpl] | self.rng.randrange(1 << 16) << 16
            if trial.code[-1] == 0x1B and self.even():      # its pointer wraps around
                trial.registers["rsp"] = trial.registers["rsp"] & ~0xFFFF | self.rng.randrange(0, 12, 2)
        for selector in (_FIRST, _SECOND):
            word = trial.descriptors[selector]
            if word >> 44 & 1 and not word & _LONG and self.even():
                trial.descriptors[selector] = word & ~_BIG
        return trial


def packed(address: int, words: Iterable[int], size: int) -> dict[int, int]:
    """Words of a size, as a trial's memory; only their lower parts count."""
    lead = address % 8
    data = bytes(lead) + b"".join((word & (1 << 8 * size) - 1).to_bytes(size, "little") for word in words)
    data += bytes(-len(data) % 8)
    return {(address - lead + n) % _ALIAS: int.from_bytes(data[n:n + 8], "little") for n in range(0, len(data), 8)}


LONG_FATAL: Final = ("f4", "0f22d8", "0f00d8", "0f22c0", "0f22e0",      # HLT; MOV CR0, CR3, CR4 and LTR of 0
                     "0f20c0", "0f20d8", "0f21f8")                      # what changes registers of which no trial says what is in
LONG_PORTS: Final = ("e460", "e660", "ec", "ee", "6c", "6e", "66ed", "ef")
LONG_PRIVILEGED: Final = (
    "f4", "0f06", "0f08", "0f09", "0f0113", "0f011b", "0f00d0", "0f00d8", "0f20c0", "0f22c0", "0f22d8", "0f22e0", "0f20d8",
    "0f21f8", "0f23c0", "0f013b", "0f01f0", *LONG_PORTS)


LONG_FAMILIES: Final[dict[str, Callable[[LongMaker], LongTrial]]] = {
    "segment registers": LongMaker.loads, "addresses of operands": LongMaker.accesses, "PUSH and POP": LongMaker.pushes,
    "far jumps and calls": LongMaker.transfers, "handlers": LongMaker.handlers, "ends of the TSS": LongMaker.limits,
    "returns": LongMaker.returns, "frames at the ends of the address space": LongMaker.edges,
    "code and stacks of 16 bits": LongMaker.narrow, "little room": LongMaker.tight, "system calls": LongMaker.system_calls,
    "registers for addresses": LongMaker.registers, "RFLAGS": LongMaker.flag_instructions,
    "privileged instructions": LongMaker.privileged, "faults on the way to a handler": LongMaker.double,
}


def long_trials(seed: int, count: int, family: str) -> Iterator[LongTrial]:
    """Trials of a family, those of one instruction together."""
    maker = LongMaker(seed)
    made = [LONG_FAMILIES[family](maker) for _ in range(count)]
    return iter(sorted(made, key=lambda trial: trial.code))


def long_sample(perform: Callable[[LongTrial], LongFinish], seed: int, count: int,
                expect: Callable[[LongTrial], Any] = expected) -> Sample:
    """Perform about `count` random trials, as many of each family, and hold them against the specification."""
    each = -(-count // len(LONG_FAMILIES))
    made = {family: long_trials(seed * len(LONG_FAMILIES) + number, each, family) for number, family in enumerate(LONG_FAMILIES)}
    return sampled(LONG_SHEET, perform, made, expect)
