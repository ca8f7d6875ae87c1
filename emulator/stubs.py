"""The machine code of the harness: the loop that acts out records in ring 1 and ring 3, and the stubs in ring 0.

A record is eight words in the segment FS, and EBP points at the present one:

    +0  handler, an offset in the loop's code segment
    +4, +8, +12  arguments
    +16 value           (a hypercall's number on the way in)
    +20 vector | 0x100  (ESI of a hypercall on the way in)
    +24 error code      (EDI of a hypercall on the way in)
    +28 CR2             (on the way in: how far ahead the record lies that takes this one's fault)

Loop, records and stack lie in the hole behind private selectors, so whatever a program does to the guest's tables cannot lose
them.  Only the accesses under test go through the guest's flat segments.  The loop has a GDT of its own; the domain's GDT and LDT
are in force between two doorbells around a MOV to a segment register, and a fault of that comes back through the stubs.
"""
import struct
from typing import Final

from emulator import layout as at
from emulator.assembler import assemble
from spec.abi import AC, DF, GP, NP, PF, SS, TS
from spec.vocabulary import SEGMENT_REGISTERS

_NEXT = """
    83 c5 20                      | add ebp, 32
    64 ff 65 00                   | jmp fs:[ebp]
"""

# The instruction under test is between two doorbells that put the domain's tables in force and the loop's again.
_SEGMENT_LOADS = {register: f"8e {0xC0 | n << 3:02x}" for register, n in SEGMENT_REGISTERS.items()}      # from EAX


def _segment_load(register: str) -> str:
    """MOV to a segment register; an FS that was changed gives no access to the record until it is the loop's again."""
    own = "b8 =LOOP_FS | mov eax, LOOP_FS" if register == "fs" else "64 8b 45 08 | mov eax, fs:[ebp+8]"
    return f"""
segment_{register}:
    64 8b 45 04                   | mov eax, fs:[ebp+4]
    2e 0f ae 3d =GUEST_TABLES     | clflush cs:[GUEST_TABLES]
    {_SEGMENT_LOADS[register]}    | mov {register}, eax
    2e 0f ae 3d =LOOP_TABLES      | clflush cs:[LOOP_TABLES]
    {own}
    {_SEGMENT_LOADS[register]}    | mov {register}, eax
    {_NEXT}
"""


LOOP, HANDLERS = assemble(f"""
next:
    83 c5 20                      | add ebp, 32
again:
    64 ff 65 00                   | jmp fs:[ebp]
service:
    64 8b 45 04                   | mov eax, fs:[ebp+4]
    cd 83                         | int SERVICE_VECTOR
    {_NEXT}
ring:
    64 8b 4d 04                   | mov ecx, fs:[ebp+4]       CS of the other ring
    64 8b 55 08                   | mov edx, fs:[ebp+8]       SS
    64 8b 45 0c                   | mov eax, fs:[ebp+12]      DS, ES
    cd 84                         | int RING_VECTOR
    8e d8                         | mov ds, eax
    8e c0                         | mov es, eax
    {_NEXT}
call:
    64 8b 5d 04                   | mov ebx, fs:[ebp+4]
    64 8b 4d 08                   | mov ecx, fs:[ebp+8]
    64 8b 55 0c                   | mov edx, fs:[ebp+12]
    64 8b 45 10                   | mov eax, fs:[ebp+16]
    64 8b 75 14                   | mov esi, fs:[ebp+20]
    64 8b 7d 18                   | mov edi, fs:[ebp+24]
    cd 82                         | int HYPERCALL_VECTOR
    64 89 45 10                   | mov fs:[ebp+16], eax
    64 83 65 14 00                | and fs:[ebp+20], 0        no fault
    {_NEXT}
load:
    64 8b 55 04                   | mov edx, fs:[ebp+4]
    8b 02                         | mov eax, [edx]
    64 89 45 10                   | mov fs:[ebp+16], eax
    {_NEXT}
store:
    64 8b 55 04                   | mov edx, fs:[ebp+4]
    64 8b 45 08                   | mov eax, fs:[ebp+8]
    89 02                         | mov [edx], eax
    0f ae 3a                      | clflush [edx]             tells the harness which frame was written
    {_NEXT}
store_across:
    64 8b 55 04                   | mov edx, fs:[ebp+4]
    64 8b 45 08                   | mov eax, fs:[ebp+8]
    89 02                         | mov [edx], eax
    0f ae 3a                      | clflush [edx]
    0f ae 7a 03                   | clflush [edx+3]           and the other one
    {_NEXT}
store_pair:
    64 8b 55 04                   | mov edx, fs:[ebp+4]
    64 8b 45 08                   | mov eax, fs:[ebp+8]
    64 8b 4d 0c                   | mov ecx, fs:[ebp+12]
    89 02                         | mov [edx], eax
    89 4a 04                      | mov [edx+4], ecx
    0f ae 3a                      | clflush [edx]
    {_NEXT}
copy:
    64 8b 7d 04                   | mov edi, fs:[ebp+4]
    64 8b 4d 08                   | mov ecx, fs:[ebp+8]
    8d 75 20                      | lea esi, [ebp+32]         the data follow the record
    89 fa                         | mov edx, edi
    64 f3 a5                      | rep movsd es:[edi], fs:[esi]
    0f ae 3a                      | clflush [edx]
    64 03 6d 10                   | add ebp, fs:[ebp+16]
    {_NEXT}
execute:
    64 89 2d =SAVED_EBP           | mov fs:[SAVED_EBP], ebp
    64 8b 45 04                   | mov eax, fs:[ebp+4]
    64 a3 =FAR_OFFSET             | mov fs:[FAR_POINTER], eax
    64 8b 45 08                   | mov eax, fs:[ebp+8]
    64 a3 =FAR_SELECTOR           | mov fs:[FAR_POINTER+4], eax
    64 83 25 =STEPS 00            | and fs:[STEPS], 0
    83 c8 ff                      | or eax, -1                code that is no far return shall find nothing to work with
    89 c3                         | mov ebx, eax
    89 c1                         | mov ecx, eax
    89 c2                         | mov edx, eax
    89 c6                         | mov esi, eax
    89 c7                         | mov edi, eax
    68 02 03 00 00                | push 0x302                single-step from the far call on
    9d                            | popfd
    64 ff 1d =FAR_OFFSET          | call far fs:[FAR_POINTER]
returned:
    64 8b 2d =SAVED_EBP           | mov ebp, fs:[SAVED_EBP]
    {_NEXT}
{"".join(map(_segment_load, _SEGMENT_LOADS))}
""", {
    "GUEST_TABLES": at.GUEST_TABLES, "LOOP_TABLES": at.LOOP_TABLES, "LOOP_FS": at.LOOP_FS,
    "SAVED_EBP": at.SAVED_EBP, "FAR_OFFSET": at.FAR_POINTER, "FAR_SELECTOR": at.FAR_POINTER + 4, "STEPS": at.STEPS,
})

WITH_ERROR_CODE: Final = frozenset({DF, TS, NP, SS, GP, PF, AC})    # the processor pushes one; no guest gets #DF
_PLAIN_EXCEPTIONS = [v for v in range(32) if v not in (1, 14)]


def _exception(vector: int) -> str:
    push_zero = "" if vector in WITH_ERROR_CODE else "6a 00 | push 0"
    return f"exception_{vector}:\n {push_zero}\n 6a {vector:02x} | push vector\n e9 >>fault | jmp fault\n"


def _from_loop(name: str, vector: int) -> str:
    """A gate that only the loop may use: for the guest's own code it is not there."""
    return f"""
{name}:
    81 7c 24 04 =LOOP_KERNEL_CS   | cmp [esp+4], LOOP_KERNEL_CS
    74 >{name}_ok                 | je
    81 7c 24 04 =LOOP_USER_CS     | cmp [esp+4], LOOP_USER_CS
    74 >{name}_ok                 | je
    68 {struct.pack("<I", vector * 8 + 2).hex(" ")} | push error code of #GP
    6a 0d                         | push 13
    e9 >>fault                    | jmp fault
{name}_ok:
"""


# A fault takes the same way whatever ran: its four words go into the record, and the loop goes on with the next one.
# On arrival at `fault` the ring-0 stack holds vector, error code, EIP, CS, EFLAGS, ESP, SS.  SS is flat; DS is still the guest's.
RING0, STUBS = assemble(f"""
hypercall:
    2e 0f ae 3d =BELL_HYPERCALL   | clflush cs:[BELL_HYPERCALL]
    cf                            | iretd
{_from_loop("service", at.SERVICE_VECTOR)}
    2e 0f ae 3d =BELL_SERVICE     | clflush cs:[BELL_SERVICE]
    cf                            | iretd
{_from_loop("ring", at.RING_VECTOR)}
    89 4c 24 04                   | mov [esp+4], ecx          CS
    89 54 24 10                   | mov [esp+16], edx         SS
    cf                            | iretd
fault:
    f6 44 24 0c 03                | test byte [esp+12], 3     from ring 0?
    74 >panic                     | jz panic
    81 7c 24 0c =KERNEL_CS        | cmp [esp+12], KERNEL_CS
    74 >restore                   | je restore
    81 7c 24 0c =USER_CS          | cmp [esp+12], USER_CS
    75 >note                      | jne note
restore:
    36 8b 2d =SAVED_EBP           | mov ebp, ss:[SAVED_EBP]   the guest's own code may have changed it
note:
    2e 0f 01 15 =GDT_POINTER      | lgdt cs:[GDT_POINTER]     the guest's own may have been in force
    31 c0                         | xor eax, eax
    0f 00 d0                      | lldt ax
    8b 85 =RECORD_CR2             | mov eax, [ebp+28]
    01 c5                         | add ebp, eax
    58                            | pop eax
    80 cc 01                      | or ah, 1
    89 85 =RECORD_VECTOR          | mov [ebp+20], eax
    58                            | pop eax
    89 85 =RECORD_ERROR           | mov [ebp+24], eax
    0f 20 d0                      | mov eax, cr2
    89 85 =RECORD_CR2             | mov [ebp+28], eax
    c7 04 24 =NEXT                | mov [esp], NEXT
    b8 =LOOP_KERNEL_CS            | mov eax, LOOP_KERNEL_CS
    f6 44 24 04 02                | test byte [esp+4], 2      ring 3?
    74 >resume                    | jz resume
    b8 =LOOP_USER_CS              | mov eax, LOOP_USER_CS
resume:
    89 44 24 04                   | mov [esp+4], eax
    c7 44 24 08 02 02 00 00       | mov [esp+8], 0x202        EFLAGS
    c7 44 24 0c =LOOP_STACK       | mov [esp+12], LOOP_STACK
    cf                            | iretd
panic:
    2e 0f ae 3d =BELL_PANIC       | clflush cs:[BELL_PANIC]
    cf                            | iretd
exception_1:
    81 7c 24 04 =KERNEL_CS        | cmp [esp+4], KERNEL_CS
    74 >step                      | je step
    81 7c 24 04 =USER_CS          | cmp [esp+4], USER_CS
    74 >step                      | je step
    81 3c 24 =RETURNED            | cmp [esp], RETURNED
    75 >stray                     | jne stray
    81 64 24 08 ff fe ff ff       | and [esp+8], ~TF
    c7 44 24 0c =LOOP_STACK       | mov [esp+12], LOOP_STACK
    cf                            | iretd
step:
    36 ff 05 =STEPS               | inc ss:[STEPS]
    36 83 3d =STEPS 01            | cmp ss:[STEPS], 1         the first trap is that of the far call itself
    75 >stray                     | jne stray
    cf                            | iretd
exception_14:
    50                            | push eax
    0f 20 d0                      | mov eax, cr2
    2d =LDT_WINDOW                | sub eax, LDT_WINDOW
    3d =LDT_SIZE                  | cmp eax, LDT_SIZE
    58                            | pop eax
    72 >ldt                       | jb ldt
page_fault:
    6a 0e                         | push 14
    e9 >>fault                    | jmp fault
ldt:
    2e 0f ae 3d =BELL_LDT         | clflush cs:[BELL_LDT]
    36 83 3d =LDT_MAPPED 00       | cmp ss:[LDT_MAPPED], 0
    74 >page_fault                | je page_fault
    2e 0f 01 15 =GDT_POINTER      | lgdt cs:[GDT_POINTER]
    83 c4 04                      | add esp, 4                the error code
    c7 04 24 =AGAIN               | mov [esp], AGAIN
    cf                            | iretd
stray:
    6a 00                         | push 0
    6a 01                         | push 1
    e9 >>fault                    | jmp fault
{"".join(map(_exception, _PLAIN_EXCEPTIONS))}
""", {
    "BELL_HYPERCALL": at.BELL_HYPERCALL, "BELL_SERVICE": at.BELL_SERVICE, "BELL_PANIC": at.BELL_PANIC,
    "KERNEL_CS": at.KERNEL_CS, "USER_CS": at.USER_CS, "LOOP_KERNEL_CS": at.LOOP_KERNEL_CS, "LOOP_USER_CS": at.LOOP_USER_CS,
    "SAVED_EBP": at.SCRATCH_BASE + at.SAVED_EBP, "STEPS": at.SCRATCH_BASE + at.STEPS, "LOOP_STACK": at.LOOP_STACK,
    "RECORD_VECTOR": at.SCRATCH_BASE + 20, "RECORD_ERROR": at.SCRATCH_BASE + 24, "RECORD_CR2": at.SCRATCH_BASE + 28,
    "NEXT": HANDLERS["next"], "AGAIN": HANDLERS["again"], "RETURNED": HANDLERS["returned"],
    "GDT_POINTER": at.GDT_POINTER, "BELL_LDT": at.BELL_LDT, "LDT_MAPPED": at.LDT_MAPPED,
    "LDT_WINDOW": at.LDT_WINDOW, "LDT_SIZE": at.WINDOW_PAGES << 12,
})

GATES = {v: (STUBS[f"exception_{v}"], 0) for v in range(32)} | {
    at.HYPERCALL_VECTOR: (STUBS["hypercall"], 1),
    at.SERVICE_VECTOR: (STUBS["service"], 3),
    at.RING_VECTOR: (STUBS["ring"], 3),
}
"""Interrupt gates: vector -> (offset of the stub in the ring-0 page, DPL)."""
