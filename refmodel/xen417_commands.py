"""The commands of Xen 4.17 to its guests by name, in the order of the facts, and what came of those that were given.

Coverage is measured by this list: a campaign counts every command that programs gave, and a test fails while one is never given.
"""
from typing import Final

from spec import abi
from spec.abi import Xen417

X = Xen417
WORD: Final = 0xFFFFFFFF                        # numbers of operations are 32 bits wide
REQUESTS: Final = {X.NORMAL: "mmu_update NORMAL", X.MACHPHYS: "mmu_update MACHPHYS", X.PRESERVE_AD: "mmu_update PRESERVE_AD",
                   X.NO_TRANSLATE: "mmu_update NO_TRANSLATE"}
OPERATIONS: Final = {number: f"mmuext_op {name}" for name, number in (
    ("PIN_L1", X.PIN_L1), ("PIN_L2", X.PIN_L1 + 1), ("PIN_L3", X.PIN_L1 + 2), ("PIN_L4", X.PIN_L4), ("UNPIN", X.UNPIN),
    ("NEW_BASEPTR", X.NEW_BASEPTR), ("TLB_FLUSH_LOCAL", X.TLB_FLUSH_LOCAL), ("INVLPG_LOCAL", X.INVLPG_LOCAL),
    ("TLB_FLUSH_MULTI", X.TLB_FLUSH_MULTI), ("INVLPG_MULTI", X.INVLPG_MULTI), ("TLB_FLUSH_ALL", X.TLB_FLUSH_ALL),
    ("INVLPG_ALL", X.INVLPG_ALL), ("FLUSH_CACHE", X.FLUSH_CACHE), ("SET_LDT", X.SET_LDT),
    ("NEW_USER_BASEPTR", X.NEW_USER_BASEPTR), ("CLEAR_PAGE", X.CLEAR_PAGE), ("COPY_PAGE", X.COPY_PAGE),
    ("FLUSH_CACHE_GLOBAL", X.FLUSH_CACHE_GLOBAL), ("MARK_SUPER", X.MARK_SUPER), ("UNMARK_SUPER", X.UNMARK_SUPER))}
FLUSHED: Final = {kind | where: f"{what} {place}" for kind, what in ((X.UVMF_TLB_FLUSH, "TLB_FLUSH"), (X.UVMF_INVLPG, "INVLPG"))
                  for where, place in ((0, "LOCAL"), (X.UVMF_ALL, "ALL"))}
MEMORY: Final = {X.INCREASE: "memory_op increase", X.DECREASE: "memory_op decrease",
                 X.MAXIMUM_RAM_PAGE: "memory_op maximum_ram_page", X.CURRENT_RESERVATION: "memory_op current_reservation",
                 X.MAXIMUM_RESERVATION: "memory_op maximum_reservation",
                 X.POPULATE: "memory_op populate_physmap", X.ADD_TO_PHYSMAP: "memory_op add_to_physmap",
                 X.EXCHANGE: "memory_op exchange", X.MAXIMUM_GPFN: "memory_op maximum_gpfn",
                 X.REMOVE_FROM_PHYSMAP: "memory_op remove_from_physmap"}
UNASSIGNED: Final = "unassigned"                # of a call, or of a call's commands
BITMAP: Final = "by a bitmap"
CONTINUED: Final = "multicall of a call that is continued"
TABLE_STORE: Final = "store to a table"         # performed by Xen, §5.2
LDT_PAGE: Final = "page of the LDT"             # that Xen maps when it is needed, or not, §6.4
BASES: Final = {X.FS_BASE: "set_segment_base FS", X.GS_USER_BASE: "set_segment_base GS_USER",
                X.GS_KERNEL_BASE: "set_segment_base GS_KERNEL", X.GS_USER_SELECTOR: "set_segment_base GS_USER_SEL"}
CALLBACKS: Final = {X.REGISTER: "callback_op register", X.UNREGISTER: "callback_op unregister"}
_ADDRESSES: Final = ("update_va_mapping", "update_va_mapping_otherdomain")
_KINDS: Final = ("no flush", *FLUSHED.values(), f"TLB_FLUSH {BITMAP}", f"INVLPG {BITMAP}")
# Section of the facts -> the commands that it states.
COMMANDS: Final[dict[str, tuple[str, ...]]] = {
    "§1": (UNASSIGNED,),
    "§4": ("mmu_update", *REQUESTS.values(), f"mmu_update {UNASSIGNED}"),
    "§5": ("mmuext_op", *OPERATIONS.values(), f"mmuext_op {UNASSIGNED}"),
    "§5.1": (*_ADDRESSES, *(f"update_va_mapping {kind}" for kind in _KINDS)),
    "§5.2": (TABLE_STORE,),
    "§6.2": ("set_gdt",),
    "§6.3": ("update_descriptor",),
    "§6.4": (LDT_PAGE,),
    "§6.5": (*BASES.values(), f"set_segment_base {UNASSIGNED}"),
    "§7.1": ("set_trap_table",),
    "§7.3": ("fpu_taskswitch",),
    "§7.5": ("set_callbacks", *CALLBACKS.values(), f"callback_op {UNASSIGNED}", "stack_switch"),
    "§10": (*MEMORY.values(), f"memory_op {UNASSIGNED}"),
    "§11": ("multicall", CONTINUED, "set_debugreg", "get_debugreg")}
CALLS: Final = {X.SET_TRAP_TABLE: "set_trap_table", X.SET_GDT: "set_gdt", X.STACK_SWITCH: "stack_switch",
                X.SET_CALLBACKS: "set_callbacks", X.FPU_TASKSWITCH: "fpu_taskswitch", X.SET_DEBUGREG: "set_debugreg",
                X.GET_DEBUGREG: "get_debugreg", X.UPDATE_DESCRIPTOR: "update_descriptor",
                X.MMU_UPDATE: "mmu_update", X.MMUEXT_OP: "mmuext_op", X.UPDATE_VA_MAPPING: _ADDRESSES[0],
                X.UPDATE_VA_MAPPING_OTHERDOMAIN: _ADDRESSES[1], X.MULTICALL: "multicall"}
COUNTED: Final = frozenset((MEMORY[X.INCREASE], MEMORY[X.DECREASE], MEMORY[X.POPULATE]))    # noted where they are done
DONE: Final = "done"                            # what came of one: this, the name of an error,
SHORT: Final = "fewer"                          # or that fewer extents were done than asked for
ERRORS: Final = {getattr(abi, name): name for name in (
    "EPERM", "ESRCH", "ENOMEM", "EACCES", "EFAULT", "EBUSY", "ENODEV", "EINVAL", "ENOSYS", "EOPNOTSUPP")}


def call_name(nr: int, first: int) -> str:
    """The name of a hypercall; some are called by their operation."""
    if nr == X.SET_SEGMENT_BASE:
        return BASES.get(first & WORD, f"set_segment_base {UNASSIGNED}")
    if nr == X.CALLBACK_OP:
        return CALLBACKS.get(first & WORD, f"callback_op {UNASSIGNED}")
    if nr == X.MEMORY_OP:
        return MEMORY.get(first & (1 << X.EXTENT_SHIFT) - 1, f"memory_op {UNASSIGNED}")
    return CALLS.get(nr, UNASSIGNED)


def flush_name(flags: int) -> str:
    """The name of an update_va_mapping by what it flushes."""
    kind = flags & X.UVMF_FLUSHTYPE
    if kind not in (X.UVMF_TLB_FLUSH, X.UVMF_INVLPG):
        return "update_va_mapping no flush"
    bitmap = f"{'TLB_FLUSH' if kind == X.UVMF_TLB_FLUSH else 'INVLPG'} {BITMAP}"
    return f"update_va_mapping {FLUSHED.get(flags, bitmap)}"


def request_name(request: bytes) -> str:
    """The name of a request of mmu_update."""
    return REQUESTS.get(request[0] & 7, f"mmu_update {UNASSIGNED}")


def operation_name(operation: bytes) -> str:
    """The name of an operation of mmuext_op."""
    return OPERATIONS.get(int.from_bytes(operation[:4], "little"), f"mmuext_op {UNASSIGNED}")


def end_name(result: int) -> str:
    """What came of a call or a command, by its result."""
    return ERRORS.get(-result, DONE)
