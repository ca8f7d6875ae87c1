"""The numbers of both interfaces: hypercalls, commands, errors, layouts.  No logic.

Everybody may import this module; with `spec.vocabulary` it is all that the emulator takes from the specification.
Source: xen-2003.md §0-4, §11; xen-4.17.md §1-5, §10.
"""
from typing import Final

# --- errors (Linux numbers; a hypercall returns the negative)
EPERM: Final = 1
ESRCH: Final = 3
ENOMEM: Final = 12
EACCES: Final = 13
EFAULT: Final = 14
EBUSY: Final = 16
ENODEV: Final = 19
EINVAL: Final = 22
ENOSYS: Final = 38
EOPNOTSUPP: Final = 95

# --- processor exceptions
DE: Final = 0                           # #DE: divide error
DB: Final = 1                           # #DB: debug
NMI: Final = 2
BP: Final = 3                           # #BP: INT3
OF: Final = 4                           # #OF: INTO
BR: Final = 5                           # #BR: BOUND
UD: Final = 6                           # #UD: undefined instruction
NM: Final = 7                           # #NM: no coprocessor
DF: Final = 8                           # #DF: double fault
TS: Final = 10                          # #TS: invalid TSS
NP: Final = 11                          # #NP: segment not present
SS: Final = 12                          # #SS: stack
GP: Final = 13                          # #GP
MF: Final = 16                          # #MF: coprocessor
AC: Final = 17                          # #AC: alignment
MC: Final = 18                          # #MC: machine check
XM: Final = 19                          # #XM: SIMD
PF: Final = 14                          # #PF
PF_PROT: Final = 1                      # page-fault error code: the entry was present
PF_WRITE: Final = 2
PF_USER: Final = 4
PF_RSVD: Final = 8
PF_FETCH: Final = 16

# --- bits of a page-table entry, by their manual names
P: Final = 0x001
RW: Final = 0x002
US: Final = 0x004
PWT: Final = 0x008
PCD: Final = 0x010
A: Final = 0x020
D: Final = 0x040
PSE: Final = 0x080                      # in an upper entry a large page; in an L1 entry PAT
PAT: Final = 0x080
G: Final = 0x100
AVAIL: Final = 0xE00
AVAIL_HIGH: Final = 0x7FF << 52
GUEST_KERNEL: Final = 1 << 52           # 4.17: an L1 entry of the guest's kernel
NX: Final = 1 << 63

# --- frame types, as both frame tables number them (SEG_DESC is gdt in 2003, where 6 is ldt)
NONE: Final = 0
L1: Final = 1
L2: Final = 2
L3: Final = 3
L4: Final = 4
SEG_DESC: Final = 5
LDT_DESC: Final = 6                     # 2003 only
SHARED: Final = 6
WRITABLE: Final = 7
TYPE_NAMES: Final = ("none", "L1", "L2", "L3", "L4", "seg_desc", "shared", "writable")
TYPE_NAMES_2003: Final = ("none", "L1", "L2", "L3", "L4", "gdt", "ldt", "writable")

# --- domain numbers with a meaning (the 4.17 ones; 2003 only needs the two owners that are no domain)
DOMID_SELF: Final = 0x7FF0
DOMID_IO: Final = 0x7FF1
DOMID_XEN: Final = 0x7FF2               # owner of Xen's own frames
NOBODY: Final = 0x7FF4                  # DOMID_INVALID: owner of a free frame

PAGE_SIZE: Final = 4096
LDT_PAGES: Final = 16


class Xen2003:
    """The interface of Xen 1.2, the release that follows the paper."""
    HOLE: Final = 0xFC000000            # Xen's 64 MB begin here: L2 slots 1008..1023
    GUEST_END: Final = 0xFC400000       # guest segments and guest pointers end here: the M2P window below is readable
    XEN_SLOT: Final = 1008
    LINEAR_SLOT: Final = 1020           # Xen's self-map of an L2: the frame itself, supervisor, writable (0x63)
    BASE: Final = 0xC0000000            # where a domain's memory is mapped at boot
    SET_TRAP_TABLE: Final = 0
    MMU_UPDATE: Final = 1
    SET_GDT: Final = 3
    STACK_SWITCH: Final = 4
    SET_CALLBACKS: Final = 5
    FPU_TASKSWITCH: Final = 7
    SET_DEBUGREG: Final = 12
    GET_DEBUGREG: Final = 13
    UPDATE_DESCRIPTOR: Final = 14
    SET_FAST_TRAP: Final = 15
    DOM_MEM_OP: Final = 16
    MULTICALL: Final = 17
    UPDATE_VA_MAPPING: Final = 19
    LAST_HYPERCALL: Final = 20          # numbers above are not assigned: -ENOSYS
    # mmu_update: low two bits of ptr
    NORMAL: Final = 0
    UNCHECKED: Final = 1
    MACHPHYS: Final = 2
    EXTENDED: Final = 3
    # extended commands: low eight bits of val
    PIN_L1: Final = 0
    PIN_L2: Final = 1
    PIN_L3: Final = 2
    PIN_L4: Final = 3
    UNPIN: Final = 4
    NEW_BASEPTR: Final = 5
    TLB_FLUSH: Final = 6
    INVLPG: Final = 7
    SET_LDT: Final = 8
    # update_va_mapping flags
    UVMF_FLUSH: Final = 1
    UVMF_INVLPG: Final = 2
    # dom_mem_op
    INCREASE: Final = 0
    DECREASE: Final = 1
    SLACK: Final = 512                  # frames that an increase must leave in the pool
    MAX_LDT: Final = 8192
    XEN_CS: Final = 0x0808
    XEN_DS: Final = 0x0810
    RING1_CS: Final = 0x0819            # Xen's flat segments for guests: 259..262
    RING1_DS: Final = 0x0821
    RING3_CS: Final = 0x082B
    RING3_DS: Final = 0x0833
    TI: Final = 4                       # of a selector: it is of the LDT
    RESERVED: Final = 256               # Xen's own entries of a GDT: 256..295
    RESERVED_END: Final = 296
    MAX_GDT: Final = 8192               # entries
    DESCRIPTORS: Final = {              # what Xen keeps there, if a setup says nothing else; the others are 0
        257: 0x00CF9B000000FFFF, 258: 0x00CF93000000FFFF,       # ring 0: all of the address space
        259: 0x00CFBB000000C3FF, 260: 0x00CFB3000000C3FF,       # ring 1 and ring 3: up to GUEST_END
        261: 0x00CFFB000000C3FF, 262: 0x00CFF3000000C3FF,
        264: 0xFC008B4019000067, 265: 0xFC0082610000FFFF}       # the TSS, busy; the LDT, at its longest
    EVENTS_MASKED: Final = 4            # flag of a handler: entering it masks events
    VECTORS: Final = 256
    HYPERCALL_VECTOR: Final = 0x82      # INT n of a hypercall
    EVENT_CALLBACK: Final = 256         # the two callbacks are kept behind the handlers of the vectors
    FAILSAFE_CALLBACK: Final = 257
    BREAKPOINT_END: Final = 0xFC3FFFFC  # the last address of a breakpoint


class Xen417:
    """The interface of Xen 4.17 for 64-bit PV guests."""
    SET_TRAP_TABLE: Final = 0
    MMU_UPDATE: Final = 1
    SET_GDT: Final = 2
    STACK_SWITCH: Final = 3
    SET_CALLBACKS: Final = 4
    FPU_TASKSWITCH: Final = 5
    SET_DEBUGREG: Final = 8
    GET_DEBUGREG: Final = 9
    UPDATE_DESCRIPTOR: Final = 10
    MEMORY_OP: Final = 12
    MULTICALL: Final = 13
    UPDATE_VA_MAPPING: Final = 14
    UPDATE_VA_MAPPING_OTHERDOMAIN: Final = 22
    SET_SEGMENT_BASE: Final = 25
    MMUEXT_OP: Final = 26
    CALLBACK_OP: Final = 30
    NR_HYPERCALLS: Final = 64
    OTHER_CALLS: Final = frozenset({6, 7, *range(15, 22), 23, 24, 27, 28, 29, *range(31, 38), *range(39, 43), *range(48, 56)})
    XEN_FIRST: Final = 256              # Xen's L4 slots
    XEN_LAST: Final = 271
    M2P_SLOT: Final = 256               # read-only machine-to-physical table
    WINDOW: Final = 0xFFFF800000000000  # where it begins
    GUEST_LOW_END: Final = 1 << 47      # a guest pointer is below this,
    GUEST_HIGH_START: Final = 0xFFFF880000000000    # or at least this
    BASE: Final = 0xFFFFFFFF80000000    # where a domain's memory is mapped at boot
    # mmu_update: low three bits of ptr
    NORMAL: Final = 0
    MACHPHYS: Final = 1
    PRESERVE_AD: Final = 2
    NO_TRANSLATE: Final = 3
    CONTINUED: Final = 1 << 31          # of a count: Xen's own mark of a call that it takes up again
    # mmuext_op
    PIN_L1: Final = 0
    PIN_L4: Final = 3
    UNPIN: Final = 4
    NEW_BASEPTR: Final = 5
    TLB_FLUSH_LOCAL: Final = 6
    INVLPG_LOCAL: Final = 7
    TLB_FLUSH_MULTI: Final = 8
    INVLPG_MULTI: Final = 9
    TLB_FLUSH_ALL: Final = 10
    INVLPG_ALL: Final = 11
    FLUSH_CACHE: Final = 12
    SET_LDT: Final = 13
    UNASSIGNED: Final = 14              # no operation has this number
    NEW_USER_BASEPTR: Final = 15
    CLEAR_PAGE: Final = 16
    COPY_PAGE: Final = 17
    FLUSH_CACHE_GLOBAL: Final = 18
    MARK_SUPER: Final = 19
    UNMARK_SUPER: Final = 20
    # update_va_mapping flags
    UVMF_TLB_FLUSH: Final = 1
    UVMF_INVLPG: Final = 2
    UVMF_FLUSHTYPE: Final = 3
    UVMF_ALL: Final = 4
    # memory_op
    INCREASE: Final = 0
    DECREASE: Final = 1
    MAXIMUM_RAM_PAGE: Final = 2
    CURRENT_RESERVATION: Final = 3
    MAXIMUM_RESERVATION: Final = 4
    POPULATE: Final = 6
    ADD_TO_PHYSMAP: Final = 7
    EXCHANGE: Final = 11
    MAXIMUM_GPFN: Final = 14
    REMOVE_FROM_PHYSMAP: Final = 15
    EXTENT_SHIFT: Final = 6             # of the first extent in memory_op's command
    FOREIGN_SPACE: Final = 4            # of add_to_physmap: XENMAPSPACE_gmfn_foreign
    MAX_PFN_OFFSET: Final = 3088        # of arch.max_pfn in shared_info
    MAX_ORDER_DOMU: Final = 9
    MAX_ORDER_CONTROL: Final = 18
    MAX_LDT: Final = 8192
    RESERVED: Final = 7168              # Xen's own pages of a GDT begin here
    KERNEL_CS: Final = 0xE033
    USER_SS: Final = 0xE02B             # the flat segments of guests
    IRET: Final = 23
    # landing pads of the harness in every domain (rulings, X-40), PAD bytes each; below EVENT_PAD the handlers of the vectors
    PADS: Final = 0x101000
    PAD: Final = 16
    OWN_VECTORS: Final = 32             # whose handlers are the harness'
    EVENT_PAD: Final = 0x100
    FAILSAFE_PAD: Final = 0x101
    SYSCALL_PAD: Final = 0x102
    BEHIND_PAD: Final = 0x103           # behind an instruction, in kernel mode
    FREE_PAD: Final = 0x104
    BEHIND_USER_PAD: Final = 0x120      # and in user mode, whose pads lie from here on
    BACK_PAD: Final = 0x140             # the system call by which user mode ends
    PROGRAM_STACK: Final = 0xFFFFFFFF8000D000   # the kernel's stack, at the start
    UPCALL_PENDING: Final = 0x001       # in word 0 of shared_info
    UPCALL_MASK: Final = 0x100
    DESCRIPTORS: Final = {              # of what Xen keeps there, by selector without RPL: what a guest can load
        0xE020: 0x00CFFB000000FFFF,     # code of 32 bits,
        0xE028: 0x00CFF3000000FFFF,     # data,
        0xE030: 0x00AFFB000000FFFF}     # code of 64 bits
    # set_trap_table, callback_op
    VECTORS: Final = 256
    EVENTS_MASKED: Final = 4            # flag of a handler: entering it masks events
    REGISTER: Final = 0                 # callback_op
    UNREGISTER: Final = 1
    EVENT: Final = 0                    # types of callbacks: kept as handlers, behind those of the vectors
    FAILSAFE: Final = 1
    SYSCALL: Final = 2
    CALLBACK_NMI: Final = 4             # the handler of vector 2
    SYSENTER: Final = 5
    SYSCALL32: Final = 7
    # set_segment_base
    FS_BASE: Final = 0
    GS_USER_BASE: Final = 1
    GS_KERNEL_BASE: Final = 2
    GS_USER_SELECTOR: Final = 3
