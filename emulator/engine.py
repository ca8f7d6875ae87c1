"""The processor: a narrow interface over the Bochs CPU, all that the package knows of it (engines.md §1).

RAM is one private mapping that guest and Python share.  The engine allows one session a process, so there is one `Engine`,
and the machine that last called `attach` is the one it runs.
"""
import atexit
import ctypes
import mmap
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from emulator.errors import HarnessError
from emulator.wheel import load_bochs
from spec.abi import PAGE_SIZE

bochscpu: Final = load_bochs()

Doorbell = Callable[[Any, int, int, int], None]
Step = Callable[..., None]

_CR0: Final = 0x80010031                        # PG, WP, NE, ET, PE
_CR4: Final = 0x10                              # PSE
_EFLAGS: Final = 0x202
_NOWHERE: Final = 0xFFFFFFF0
_MAP_NORESERVE: Final = 0x4000                   # Linux; older Pythons do not name it


class Segment(NamedTuple):
    """A segment register: its selector and the descriptor that it was loaded from."""
    selector: int
    descriptor: int


class Engine:
    """One x86-32 processor and its RAM."""

    def __init__(self) -> None:
        self.library = _usable_library()
        self.session: Any = bochscpu.Session()
        self.session.missing_page_handler = self._missing_page
        self.cpu: Any = self.session.cpu
        self.ram: memoryview = memoryview(b"")
        self.user: object = None                # whose machine is attached
        self.frames = 0
        self._open_bus = mmap.mmap(-1, PAGE_SIZE)
        self._absent: set[int] = set()          # physical pages without RAM that the processor asked for
        self._code_lines: Any = None            # for each frame, which of its lines hold decoded code
        self._failure: BaseException | None = None
        self.broken = False                     # the last run failed: where the processor stands is unknown
        self._hook: Any = bochscpu.Hook()
        self._watch: Any = bochscpu.Hook()      # the same, and every step
        atexit.register(self._close)

    def attach(self, user: object, frames: int) -> memoryview:
        """Give `user` the processor with that many frames of RAM, all zero."""
        self.forget_absent()
        for page in range(frames, self.frames):
            bochscpu.memory.page_remove(page * PAGE_SIZE)
        memory = mmap.mmap(-1, frames * PAGE_SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE)
        address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        for pa in range(0, frames * PAGE_SIZE, PAGE_SIZE):
            bochscpu.memory.page_insert(pa, address + pa)
        self.ram, self.frames, self.user = memoryview(memory), frames, user
        self.library._Z12flushICachesv()
        table = ctypes.c_uint64.in_dll(self.library, "pageWriteStampTable")
        lines = ctypes.c_uint64.from_address(ctypes.addressof(table) + 8).value
        self._code_lines = memoryview((ctypes.c_uint32 * frames).from_address(lines)).cast("B").cast("I")
        return self.ram

    def start(self, cr3: int, eip: int, esp: int, gdt: tuple[int, int], idt: tuple[int, int],
              segments: dict[str, Segment], eflags: int = _EFLAGS, registers: Mapping[str, int] = {}, cr0: int = 0,
              bases: Mapping[str, int] = {}) -> None:
        """Put the processor at the beginning of a program, with nothing cached.

        `registers` may name any register, also of control; `cr0`: further bits of CR0; `bases`: of segments, if of 64 bits.
        """
        state: Any = bochscpu.State()
        state.cr0, state.cr3, state.cr4 = _CR0 | cr0, cr3, _CR4
        state.rip, state.rsp, state.rflags = eip, esp, eflags
        for name, value in registers.items():
            setattr(state, name, value)
        state.gdtr, state.idtr = table(*gdt), table(*idt)
        for name, segment in segments.items():
            setattr(state, name, segment_register(segment, bases.get(name)))
        state.xcr0 = 1
        state.mxcsr, state.mxcsr_mask, state.fpcw, state.fptw = 0x1F80, 0xFFFF, 0x37F, 0xFFFF
        state.dr6, state.dr7 = 0xFFFF0FF0, 0x400
        self.cpu.state = state
        self.broken = False

    def run(self, watched: bool = False) -> None:
        """Let the processor go on until the doorbell, or one of `on_steps` if it is watched, calls `stop`."""
        self.session.run([self._watch if watched else self._hook])
        if self._failure is not None:
            failure, self._failure = self._failure, None
            self.broken = True
            if isinstance(failure, HarnessError) or not isinstance(failure, Exception):
                raise failure
            raise HarnessError(f"the hypervisor failed: {failure!r}") from failure

    def look(self) -> Any:
        """All registers as they are; `loaded` reads the segment registers among them."""
        return self.cpu.state

    def stop(self) -> None:
        """End the present `run` after the instruction that rang."""
        self.session.stop()

    def on_doorbell(self, doorbell: Doorbell) -> None:
        """Call `doorbell(_, _, linear, physical)` for every CLFLUSH executed; it must not raise, but call `fail`."""
        self._hook.clflush = self._watch.clflush = doorbell

    def on_steps(self, far_branch: Step, executed: Step, accessed: Step) -> None:
        """What to call while it is watched: after a far branch, an instruction and a memory access; nothing may raise."""
        self._watch.far_branch, self._watch.after_execution, self._watch.lin_access = far_branch, executed, accessed

    def lose_its_way(self) -> None:
        """Have the next `run` begin with a protection fault: no segment reaches so far, so that no page is looked for."""
        self.cpu.rip = _NOWHERE

    def put_back(self, state: Any) -> None:
        """Make all registers what `look` once gave; what is cached stays so, unless CS differs from what it is now."""
        self.cpu.set_state_no_flush(state)

    def fail(self, failure: BaseException) -> None:
        """End the present `run` with an exception: none may cross the engine."""
        self._failure = failure
        self.stop()

    def load_cr3(self, cr3: int) -> None:
        """Load the root table, which flushes the TLB."""
        self.cpu.cr3 = cr3
        self.library._ZN8BX_CPU_C9TLB_flushEv()

    def load_tables(self, gdt: tuple[int, int], ldt: Segment) -> None:
        """Load GDTR (base, limit) and LDTR."""
        self.cpu.gdtr = table(*gdt)
        self.cpu.ldtr = segment_register(ldt)

    def invlpg(self, address: int) -> None:
        """Drop the translation of one page."""
        self.library._ZN8BX_CPU_C10TLB_invlpgEm(address)

    def forget_code(self, frame: int) -> None:
        """Drop what was decoded from a frame; Python's writes, and stores that miss the TLB, go unnoticed otherwise."""
        lines = self._code_lines[frame] if frame < self.frames else 0
        if lines:
            self.library._Z9handleSMCmj(frame * PAGE_SIZE, lines)
            self._code_lines[frame] = 0

    def forget_absent(self) -> None:
        """Take away the pages that stood in for missing RAM."""
        for gpa in self._absent:
            bochscpu.memory.page_remove(gpa)
        self._absent.clear()

    def _close(self) -> None:
        """Let go of Python before the interpreter ends: the engine crashes otherwise."""
        self.session.missing_page_handler = abs         # it takes no None, but any builtin outlives the engine
        self._hook = self._watch = self.cpu = self.session = None

    def _missing_page(self, gpa: int) -> None:
        """Where there is no RAM the bus reads as ones."""
        self._open_bus[:] = b"\xff" * PAGE_SIZE
        page = gpa & ~(PAGE_SIZE - 1)
        bochscpu.memory.page_insert(page, ctypes.addressof(ctypes.c_char.from_buffer(self._open_bus)))
        self._absent.add(page)


_engine: Engine | None = None


def engine() -> Engine:
    """The processor of this process."""
    global _engine
    if _engine is None:
        _engine = Engine()
    return _engine


def table(base: int, limit: int) -> Any:
    """GDTR or IDTR."""
    table: Any = bochscpu.GlobalSegment()
    table.base, table.limit = base, limit
    return table


def segment_register(segment: Segment, base: int | None = None) -> Any:
    """A segment register; `base`: of one of 64 bits."""
    descriptor = segment.descriptor
    limit = descriptor & 0xFFFF | descriptor >> 32 & 0xF0000
    register: Any = bochscpu.Segment()
    register.present = bool(descriptor >> 47 & 1)
    register.selector = segment.selector
    register.base = descriptor >> 16 & 0xFFFFFF | descriptor >> 56 << 24 if base is None else base
    register.limit = limit << 12 | 0xFFF if descriptor >> 55 & 1 else limit
    register.attr = descriptor >> 40 & 0xF0FF
    return register


def loaded(register: Any) -> Segment:
    """What a segment register holds; descriptor 0 if it is unusable."""
    if not register.present:
        return Segment(register.selector, 0)
    attributes = register.attr
    limit = register.limit >> 12 if attributes >> 15 & 1 else register.limit
    base = register.base & 0xFFFFFFFF
    return Segment(register.selector, limit & 0xFFFF | (base & 0xFFFFFF) << 16 | attributes << 40 | (limit & 0xF0000) << 32
                   | base >> 24 << 56)


def _usable_library() -> Any:
    """The engine's library, repaired: IN and OUT crash unless one static of it counts as initialised (engines.md §1)."""
    library: Any = ctypes.CDLL(bochscpu._bochscpu.__file__)
    start = ctypes.cast(library._ZN8BX_CPU_C8allow_ioEP15bxInstruction_ctj, ctypes.c_void_p).value
    if start is None:
        raise HarnessError("the engine's library is not the one this package knows")
    code = ctypes.string_at(start, 64)
    load = code.index(b"\x0f\xb6\x05")                                  # movzx eax, byte [guard]; test al, al
    guard = start + load + 7 + int.from_bytes(code[load + 3:load + 7], "little", signed=True)
    if code[load + 7:load + 9] != b"\x84\xc0":
        raise HarnessError("the engine's library is not the one this package knows")
    ctypes.memset(guard, 1, 1)
    for name, *arguments in (("_Z9handleSMCmj", ctypes.c_uint64, ctypes.c_uint32), ("_Z12flushICachesv",),
                             ("_ZN8BX_CPU_C10TLB_invlpgEm", ctypes.c_uint64), ("_ZN8BX_CPU_C9TLB_flushEv",)):
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, None
    return library
