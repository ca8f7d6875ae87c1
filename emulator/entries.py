"""What it costs to enter a kernel: an application makes system calls and faults, and real code of its kernel answers.

Whatever a loop does besides is measured without its entry, and taken away.
"""
from typing import Final, NamedTuple

from emulator.assembler import assemble
from emulator.errors import HarnessError
from emulator.programs import DONE, Programs, Ran
from emulator.target import EmulatorTarget
from spec.abi import PAGE_SIZE, PF, Xen2003
from spec.vocabulary import Context, DomainSetup, Hypercall, Setup, code_words

COUNTED: Final = 200                        # entries that are counted instruction by instruction
TIMED: Final = 20_000                       # and that are timed
ATTEMPTS: Final = 3                         # of which the best counts
LIMIT: Final = 1_000_000                    # of instructions: no loop here needs so many

KERNEL, APPLICATION, STACK, KERNEL_STACK, HOLE, BUFFER = range(10, 16)      # pages
VECTOR, LEAVE = 0x80, 0x21                  # of the system call that is measured, and of the one that ends it
_USER: Final = 0x67                         # of an entry: an application may write
FRAMES: Final = 2048

KERNEL_CODE, LABELS = assemble(f"""
system_call:
    cf                          | iretd
page_fault:
    83 c4 08                    | add esp, 8                CR2 and the error code
    83 04 24 05                 | add dword [esp], 5        go on behind the instruction
    cf                          | iretd
leave:
    b8 {DONE:02x} 00 00 00      | mov eax, DONE
    cd 82                       | int 0x82
""")

# What an application does once a round.
ENTRIES: Final = {"nothing": "", "system call": "    cd 80 | int 0x80\n", "page fault": "    a1 =HOLE | mov eax, [HOLE]\n"}


class Cost(NamedTuple):
    """Of one entry and the way back: instructions of the guest, of Xen's stubs, and seconds.

    An instruction that faults is not counted.  What Xen does besides its stubs is Python: it takes time, and no instructions.
    """
    instructions: float
    xens: float
    seconds: float


def application(entry: str, rounds: int) -> bytes:
    """The same so many times, then the end."""
    code, _ = assemble(f"""
    be =ROUNDS                  | mov esi, ROUNDS
again:
{ENTRIES[entry]}
    4e                          | dec esi
    0f 85 >>again               | jnz again
    cd {LEAVE:02x}              | int LEAVE
""", {"ROUNDS": rounds, "HOLE": va(HOLE)})
    return code


def va(page: int) -> int:
    """Where a page of the domain is mapped."""
    return Xen2003.BASE + page * PAGE_SIZE


class Measured:
    """A machine with one guest."""

    def __init__(self) -> None:
        self.target = EmulatorTarget()
        xen_frames, slots = self.target.needs(FRAMES)
        self.domain = DomainSetup(0, xen_frames, 64)
        self.setup = Setup("xen-2003", FRAMES, xen_frames, (self.domain,), slots)

    def call(self, nr: int, *args: int, data: tuple[tuple[int, tuple[int, ...]], ...] = ()) -> Hypercall:
        """A hypercall of the guest's, after some stores."""
        return Hypercall(self.domain.domid, nr, args, data)

    def remap(self, page: int, bits: int) -> Hypercall:
        """Map a page with other rights, or none."""
        word = self.domain.first + page << 12 | bits if bits else 0
        return self.call(Xen2003.UPDATE_VA_MAPPING, va(page) >> 12, word, Xen2003.UVMF_FLUSH)

    def install(self, entry: str, rounds: int, fast: bool) -> Context:
        """Boot, with kernel and application in place; with `fast` the system call's gate leads past Xen."""
        traps = [word for vector, flags, label in ((VECTOR, 3, "system_call"), (LEAVE, 3, "leave"), (PF, 0, "page_fault"))
                 for word in (vector | flags << 8 | Xen2003.RING1_CS << 16, va(KERNEL) + LABELS[label])]
        self.target.reset(self.setup)
        outcomes = self.target.run([
            self.call(Xen2003.SET_TRAP_TABLE, va(BUFFER), data=(
                (va(KERNEL), code_words(KERNEL_CODE)), (va(APPLICATION), code_words(application(entry, rounds))),
                (va(BUFFER), (*traps, 0, 0)))),
            self.remap(APPLICATION, _USER), self.remap(STACK, _USER), self.remap(HOLE, 0),
            self.call(Xen2003.STACK_SWITCH, Xen2003.RING1_DS, va(KERNEL_STACK + 1)),
            self.call(Xen2003.SET_FAST_TRAP, VECTOR if fast else 0)])
        if any(outcome.vector >= 0 or outcome.value for outcome in outcomes):
            raise HarnessError("the guest that is to be measured could not be set up")
        return Context(Xen2003.RING3_CS, va(APPLICATION), 0x202, va(STACK + 1), *[Xen2003.RING3_DS] * 5)

    def run(self, entry: str, rounds: int, fast: bool, limit: int = 0) -> Ran:
        """One run to its end."""
        context = self.install(entry, rounds, fast)
        ran = Programs(self.target.machine).run({self.domain.domid: context}, limit=limit)
        if ran.killed or ran.limited:
            raise HarnessError("the guest that is to be measured came to no end")
        return ran

    def seconds(self, entry: str, fast: bool) -> float:
        """The best time of some runs."""
        return min(self.run(entry, TIMED, fast).seconds for _ in range(ATTEMPTS))

    def cost(self, entry: str, fast: bool = False) -> Cost:
        """Of one entry."""
        empty, counted = (self.run(what, COUNTED, fast, LIMIT) for what in ("nothing", entry))
        return Cost((counted.instructions - empty.instructions) / COUNTED, (counted.xens - empty.xens) / COUNTED,
                    (self.seconds(entry, fast) - self.seconds("nothing", fast)) / TIMED)


def entry_costs() -> dict[str, Cost]:
    """Every way into a kernel, by name, the fastest first."""
    measured = Measured()
    return {"fast system call": measured.cost("system call", fast=True),
            "system call through Xen": measured.cost("system call"),
            "bounced page fault": measured.cost("page fault")}
