/* The executor's entry, its hypercalls, its recoverable accesses as kernel and as application, and its trap handlers.
 *
 * An access that may fault runs between `attempt` (or `attempt_user`) and `recovered`: a trap handler notes vector, error code
 * and RIP, puts the stack pointer back and goes on at `recovered`.  Nothing here uses memory below the stack pointer: Xen writes
 * its exception frames there.
 */

#define FLAT_CS 0xe033
#define FLAT_SS 0xe02b
#define HYPERVISOR_iret 23

#define NOTE(type, desc) .pushsection .note.Xen, "a", @note; .p2align 2;                \
    .long 2f - 1f, 4f - 3f, type; 1: .asciz "Xen"; 2: .p2align 2; 3: desc; 4: .p2align 2; .popsection

NOTE(1,  .quad _entry)                              /* ENTRY */
NOTE(3,  .quad 0)                                   /* VIRT_BASE */
NOTE(5,  .asciz "xen-3.0")                          /* XEN_VERSION */
NOTE(6,  .asciz "xenspec")                          /* GUEST_OS */
NOTE(8,  .asciz "generic")                          /* LOADER */
NOTE(9,  .asciz "yes")                              /* PAE_MODE */
NOTE(10, .asciz "!writable_page_tables|pae_pgdir_above_4gb")    /* FEATURES */

    .section .text.head, "ax"
    .globl _entry
_entry:                                             /* RSI: the start info, as Xen passes it */
    lea     stack_top(%rip), %rsp
    mov     %rsi, %rdi
    xor     %ebp, %ebp
    call    executor
1:  jmp     1b

    .text
/* int64 hypercall(nr, const uint64 args[6]) */
    .globl hypercall
hypercall:
    push    %rbx
    mov     %rdi, %rax
    mov     %rsi, %rbx
    mov     0(%rbx), %rdi
    mov     8(%rbx), %rsi
    mov     16(%rbx), %rdx
    mov     24(%rbx), %r10
    mov     32(%rbx), %r8
    mov     40(%rbx), %r9
    syscall
    pop     %rbx
    ret

    .macro begin                                    /* kept by a call; then where to go on after a fault */
    push    %rbx
    push    %rbp
    push    %r12
    push    %r13
    push    %r14
    push    %r15
    push    %rcx                                    /* where the word that is loaded goes */
    mov     %rsp, recover_sp(%rip)
    .endm

/* uint64 attempt(kind, address, value, *loaded): 0 if it went through, 1 if it faulted */
    .globl attempt
attempt:
    begin
    cmp     $1, %edi
    jb      10f
    je      11f
    sub     $8, %rsp                                /* kind 2: what a far call pushes (two words of 4 bytes), then the jump */
    movl    $ok, (%rsp)
    movl    $FLAT_CS, 4(%rsp)
    jmp     *%rsi
10: mov     (%rsi), %rax                            /* kind 0: load */
    mov     %rax, (%rcx)
    jmp     ok
11: mov     %rdx, (%rsi)                            /* kind 1: store */
ok: xor     %eax, %eax
recovered:
    mov     recover_sp(%rip), %rsp
    movq    $0, recover_sp(%rip)
    pop     %rcx
    pop     %r15
    pop     %r14
    pop     %r13
    pop     %r12
    pop     %rbp
    pop     %rbx
    ret

/* The same as an application: by the hypercall iret to user mode, and back by a system call or a fault. */
    .globl attempt_user
attempt_user:
    begin
    lea     user_stack_top(%rip), %rax
    push    $FLAT_SS
    push    %rax
    push    $2                                      /* RFLAGS: events stay masked */
    push    $FLAT_CS                                /* RPL 3: to user mode */
    lea     as_user(%rip), %rax
    push    %rax
    push    $0                                      /* flags: a full iret */
    push    $0                                      /* RCX */
    push    $0                                      /* R11 */
    push    $0                                      /* RAX */
    mov     $HYPERVISOR_iret, %eax
    syscall
    ud2

    .globl as_user, as_user_end
as_user:
    cmp     $1, %edi
    jb      10f
    je      11f
    sub     $8, %rsp
    movl    $user_ok, (%rsp)
    movl    $FLAT_CS, 4(%rsp)
    jmp     *%rsi
10: mov     (%rsi), %rax
    jmp     user_ok
11: mov     %rdx, (%rsi)
user_ok:
    syscall                                         /* RAX: the word that was loaded */
as_user_end:
    ud2

    .globl from_user
from_user:                                          /* the system call of an application; on the trap stack */
    mov     recover_sp(%rip), %rsp
    mov     (%rsp), %rcx
    mov     %rax, (%rcx)
    jmp     ok

    .globl unexpected_event
unexpected_event:                                   /* events are masked, and no segment register is ever reloaded */
    mov     $-1, %rdi
    call    fatal
1:  jmp     1b

/* Trap handlers.  Xen's frame: RCX, R11, [error code], RIP, CS, RFLAGS, RSP, SS. */
    .macro handler vector, has_error
trap_\vector:
    pop     %rcx
    pop     %r11
    .if \has_error == 0
    push    $0
    .endif
    mov     $\vector, %ecx
    jmp     trapped
    .endm
    .irp vector,0,1,2,3,4,5,6,7,9,15,16,18,19,20
    handler \vector 0
    .endr
    .irp vector,8,10,11,12,13,14,17,21
    handler \vector 1
    .endr

trapped:
    mov     %rcx, fault_vector(%rip)
    mov     (%rsp), %eax
    mov     %rax, fault_error(%rip)
    mov     8(%rsp), %rax
    mov     %rax, fault_rip(%rip)
    mov     $1, %eax
    cmpq    $0, recover_sp(%rip)
    jne     recovered
    mov     %rcx, %rdi
    call    fatal
1:  jmp     1b

    .data
    .p2align 3
    .globl traps, fault_vector, fault_error, fault_rip
traps:                                              /* vector, DPL and "mask events", CS, address */
    .irp vector,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21
    .byte   \vector, 4
    .short  FLAT_CS
    .long   0
    .quad   trap_\vector
    .endr
    .quad   0, 0
fault_vector: .quad 0
fault_error:  .quad 0
fault_rip:    .quad 0
recover_sp:   .quad 0

    .bss
    .p2align 12
    .skip   16384
stack_top:
    .skip   4096
    .globl trap_stack_top
trap_stack_top:                                     /* where Xen puts frames that interrupt user mode */
    .skip   4096
user_stack_top:
    .globl shared_page
shared_page:                                        /* shared_info is mapped here */
    .skip   4096
