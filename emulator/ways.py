"""The machine code of Xen's ways into and out of a guest that runs as itself: entries, frames, events, the failsafe callback.

The registers of the guest are saved on the ring-0 stack, always at the same place (`SAVED`); between them and the words that
the processor pushed there is room for a fault in ring 0, which thus changes nothing of them.  Which handler takes a fault, the
hypervisor says when the doorbell rings; the frame for it is stored here, by the processor, through the guest's own segments and
tables.
"""
from functools import cache
from typing import Final

from emulator import layout as at
from emulator.assembler import assemble
from emulator.stubs import WITH_ERROR_CODE

VECTORS: Final = (*range(32), at.HYPERCALL_VECTOR)
SAVED: Final = {name: at.SAVED + 4 * n for n, name in enumerate(
    ("EBX", "ECX", "EDX", "ESI", "EDI", "EBP", "EAX", "DS", "ES", "FS", "GS"))} | {
    name: at.PUSHED + 4 * n for n, name in enumerate(("VECTOR", "ERROR", "EIP", "CS", "EFLAGS", "ESP", "SS"))}


class Ways:
    """The listings; a planted bug replaces one of them."""

    def entry(self) -> str:
        """Every way in that is not a fault of Xen's own: save all registers, let the hypervisor decide, and go on as it says."""
        return """
trap:
    f6 44 24 0c 03                | test byte ptr [esp+12], 3
    0f 84 >>own_fault             | jz own_fault
    83 ec 40                      | sub esp, 64
    0f a8                         | push gs
    0f a0                         | push fs
    06                            | push es
    1e                            | push ds
    50                            | push eax
    55                            | push ebp
    57                            | push edi
    56                            | push esi
    52                            | push edx
    51                            | push ecx
    53                            | push ebx
    b8 =XEN_DS                    | mov eax, XEN_DS
    8e d8                         | mov ds, eax
    8e c0                         | mov es, eax
    81 3d =VECTOR =HYPERCALL      | cmp dword ptr ds:[VECTOR], HYPERCALL
    74 >call                      | je call
    0f 20 d0                      | mov eax, cr2
    a3 =ADDRESS                   | mov ds:[ADDRESS], eax
    0f 21 f0                      | mov eax, dr6
    a3 =DEBUG                     | mov ds:[DEBUG], eax
    83 3d =VECTOR 07              | cmp dword ptr ds:[VECTOR], 0x07
    75 >ask                       | jne ask
    0f 06                         | clts
ask:
    0f ae 3d =BELL_TRAP           | clflush ds:[BELL_TRAP]
    83 3d =WORDS 00               | cmp dword ptr ds:[WORDS], 0x00
    0f 8c >>way_out               | jl way_out
    e9 >>bounce                   | jmp bounce
call:
    a1 =EAX                       | mov eax, ds:[EAX]
    0f ae 3d =BELL_CALL           | clflush ds:[BELL_CALL]
    a3 =EAX                       | mov ds:[EAX], eax
    c7 05 =TURNED 01 00 00 00     | mov dword ptr ds:[TURNED], 1
    e9 >>enter                    | jmp enter
"""

    def own_fault(self) -> str:
        """A fault in ring 0: a page of the LDT is mapped and the instruction goes on, or what faulted says where to go on."""
        return """
own_fault:
    83 3c 24 0e                   | cmp dword ptr [esp], 0x0e
    75 >fix_up                    | jne fix_up
    50                            | push eax
    0f 20 d0                      | mov eax, cr2
    2d =LDT_WINDOW                | sub eax, LDT_WINDOW
    3d =LDT_SIZE                  | cmp eax, LDT_SIZE
    58                            | pop eax
    73 >fix_up                    | jae fix_up
    2e 0f ae 3d =BELL_LDT         | clflush cs:[BELL_LDT]
    36 83 3d =LDT_MAPPED 00       | cmp dword ptr ss:[LDT_MAPPED], 0x00
    74 >fix_up                    | je fix_up
    83 c4 08                      | add esp, 8
    cf                            | iretd
fix_up:
    81 7c 24 08 =@restore         | cmp dword ptr [esp+8], restore
    72 >in_frame                  | jb in_frame
    81 7c 24 08 =@restored        | cmp dword ptr [esp+8], restored
    0f 82 >>failsafe              | jb failsafe
in_frame:
    81 7c 24 08 =@frame           | cmp dword ptr [esp+8], frame
    72 >panic                     | jb panic
    81 7c 24 08 =@stored          | cmp dword ptr [esp+8], stored
    73 >panic                     | jae panic
killed:
    2e 0f ae 3d =BELL_KILLED      | clflush cs:[BELL_KILLED]
panic:
    2e 0f ae 3d =BELL_PANIC       | clflush cs:[BELL_PANIC]
"""

    def frame(self) -> str:
        """Store the frame of the guest's context, and let EDI's handler be the context; GS and ESI are the stack."""
        return """
frame:
    c7 05 =TURNED 01 00 00 00     | mov dword ptr ds:[TURNED], 0x01
    a1 =SS                        | mov eax, ds:[SS]
    8b 35 =ESP                    | mov esi, ds:[ESP]
    f6 05 =CS 02                  | test byte ptr ds:[CS], 2
    74 >inner                     | jz inner
    a1 =KERNEL_SS                 | mov eax, ds:[KERNEL_SS]
    8b 35 =KERNEL_ESP             | mov esi, ds:[KERNEL_ESP]
    8e e8                         | mov gs, eax
    83 ee 04                      | sub esi, 4
    8b 15 =SS                     | mov edx, ds:[SS]
    65 89 16                      | mov gs:[esi], edx
    83 ee 04                      | sub esi, 4
    8b 15 =ESP                    | mov edx, ds:[ESP]
    65 89 16                      | mov gs:[esi], edx
    eb >both                      | jmp both
inner:
    8e e8                         | mov gs, eax
both:
    83 ee 04                      | sub esi, 4
    8b 15 =EFLAGS                 | mov edx, ds:[EFLAGS]
    65 89 16                      | mov gs:[esi], edx
    83 ee 04                      | sub esi, 4
    8b 15 =CS                     | mov edx, ds:[CS]
    65 89 16                      | mov gs:[esi], edx
    83 ee 04                      | sub esi, 4
    8b 15 =EIP                    | mov edx, ds:[EIP]
    65 89 16                      | mov gs:[esi], edx
    a3 =SS                        | mov ds:[SS], eax
    89 35 =ESP                    | mov ds:[ESP], esi
    81 25 =EFLAGS ff be fc ff     | and dword ptr ds:[EFLAGS], 0xfffcbeff
    8b 17                         | mov edx, [edi]
    89 15 =CS                     | mov ds:[CS], edx
    8b 57 04                      | mov edx, [edi+4]
    89 15 =EIP                    | mov ds:[EIP], edx
    c3                            | ret
"""

    def bounce(self) -> str:
        """Store the frame of an exception."""
        return """
bounce:
    bf =HANDLER                   | mov edi, HANDLER
    e8 >>frame                    | call frame
    83 3d =WORDS 01               | cmp dword ptr ds:[WORDS], 0x01
    7c >framed                    | jl framed
    8d 76 fc                      | lea esi, [esi-4]
    8b 15 =ERROR                  | mov edx, ds:[ERROR]
    65 89 16                      | mov gs:[esi], edx
    74 >framed                    | je framed
    8d 76 fc                      | lea esi, [esi-4]
    8b 15 =ADDRESS                | mov edx, ds:[ADDRESS]
    65 89 16                      | mov gs:[esi], edx
framed:
    89 35 =ESP                    | mov ds:[ESP], esi
    e9 >>way_out                  | jmp way_out
"""

    def failsafe(self) -> str:
        """A context could not be restored: store its frame and its selectors, and enter the guest right there."""
        return """
failsafe:
    b8 =XEN_DS                    | mov eax, XEN_DS
    8e d8                         | mov ds, eax
    8e c0                         | mov es, eax
    bc =FRAME                     | mov esp, FRAME
    bf =FAILSAFE                  | mov edi, FAILSAFE
    e8 >>frame                    | call frame
    83 ee 04                      | sub esi, 4
    8b 15 =GS                     | mov edx, ds:[GS]
    65 89 16                      | mov gs:[esi], edx
    83 ee 04                      | sub esi, 4
    8b 15 =FS                     | mov edx, ds:[FS]
    65 89 16                      | mov gs:[esi], edx
    83 ee 04                      | sub esi, 4
    8b 15 =ES                     | mov edx, ds:[ES]
    65 89 16                      | mov gs:[esi], edx
    83 ee 04                      | sub esi, 4
    8b 15 =DS                     | mov edx, ds:[DS]
    65 89 16                      | mov gs:[esi], edx
    89 35 =ESP                    | mov ds:[ESP], esi
    31 c0                         | xor eax, eax
    8e e0                         | mov fs, eax
    8e e8                         | mov gs, eax
    5b                            | pop ebx
    59                            | pop ecx
    5a                            | pop edx
    5e                            | pop esi
    5f                            | pop edi
    5d                            | pop ebp
    58                            | pop eax
    bc =EIP                       | mov esp, EIP
    cf                            | iretd
stored:
"""

    def way_out(self) -> str:
        """Test events, then restore the guest's registers; a fault from `restore` to `restored` is the failsafe callback's."""
        return """
enter:
    a1 =CONTROL                   | mov eax, ds:[CONTROL]
    0f 22 c0                      | mov cr0, eax              with TS or without
way_out:
    a1 =MASK                      | mov eax, ds:[MASK]
    85 c0                         | test eax, eax
    79 >leave                     | jns leave
    23 05 =EVENTS                 | and eax, ds:[EVENTS]
    74 >leave                     | jz leave
    0d 00 00 00 80                | or eax, 0x80000000
    f7 d0                         | not eax
    21 05 =MASK                   | and ds:[MASK], eax
    bf =EVENT                     | mov edi, EVENT
    e8 >>frame                    | call frame
leave:
    bc =FRAME                     | mov esp, FRAME
    5b                            | pop ebx
    59                            | pop ecx
    5a                            | pop edx
    5e                            | pop esi
    5f                            | pop edi
    5d                            | pop ebp
    58                            | pop eax
    bc =EIP                       | mov esp, EIP
restore:
    36 8e 1d =DS                  | mov ds, ss:[DS]
    36 8e 05 =ES                  | mov es, ss:[ES]
    36 8e 25 =FS                  | mov fs, ss:[FS]
    36 8e 2d =GS                  | mov gs, ss:[GS]
    cf                            | iretd
restored:
"""

    def dpl(self, vector: int) -> int:
        """From which ring on INT n of one of Xen's gates comes to its entry."""
        return {3: 3, 4: 3, at.HYPERCALL_VECTOR: 1}.get(vector, 0)

    def entries(self) -> str:
        """What the gates lead to: vector and error code, on top of what the processor has pushed."""
        return "".join(_entry(vector) for vector in VECTORS)

    def listing(self) -> str:
        """All of it; frames are stored from `frame` to `stored`."""
        return "".join((self.entries(), self.entry(), self.own_fault(), self.frame(), self.bounce(), self.failsafe(),
                        self.way_out()))


def _entry(vector: int) -> str:
    push_zero = "" if vector in WITH_ERROR_CODE else "6a 00 | push 0"
    return f"entry_{vector}:\n {push_zero}\n 68 {vector.to_bytes(4, 'little').hex(' ')} | push vector\n e9 >>trap | jmp trap\n"


@cache
def assembled(listing: str) -> tuple[bytes, dict[str, int]]:
    """The code of a listing as it lies in Xen's page, and its labels there."""
    return assemble(listing, _CONSTANTS, at.WAYS_BASE)


_CONSTANTS: Final = {
    **SAVED, "FRAME": at.SAVED, "XEN_DS": at.XEN_DS, "HYPERCALL": at.HYPERCALL_VECTOR,
    "HANDLER": at.HANDLER, "WORDS": at.HANDLER_WORDS, "TURNED": at.TURNED, "EVENT": at.EVENT_CALLBACK,
    "FAILSAFE": at.FAILSAFE_CALLBACK, "ADDRESS": at.FAULT_ADDRESS, "DEBUG": at.DEBUG_STATUS, "CONTROL": at.CONTROL,
    "EVENTS": at.SHARED_INFO, "MASK": at.SHARED_INFO + 4, "KERNEL_ESP": at.TSS_BASE + 12, "KERNEL_SS": at.TSS_BASE + 16,
    "BELL_TRAP": at.BELL_TRAP, "BELL_CALL": at.BELL_CALL, "BELL_LDT": at.BELL_LDT, "BELL_KILLED": at.BELL_KILLED,
    "BELL_PANIC": at.BELL_PANIC, "LDT_MAPPED": at.LDT_MAPPED, "LDT_WINDOW": at.LDT_WINDOW, "LDT_SIZE": at.WINDOW_PAGES << 12,
}
