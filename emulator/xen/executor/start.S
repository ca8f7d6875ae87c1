/* The executor's entry, its hypercalls, its recoverable accesses as kernel and as application, and its landing pads.
 *
 * All handlers and callbacks are landing pads, small pieces of code in a row at a fixed address.  An access that may fault runs
 * between `attempt` (or `attempt_user`) and `recovered`: the pad of a vector notes vector, error code and RIP, puts the stack
 * pointer back and goes on at `recovered`.  A control transfer runs between `transfer` and the first pad that it reaches, which
 * notes the registers; one that is reached in user mode notes them there and comes back by a system call.  Nothing here uses
 * memory below the stack pointer: Xen writes its frames there.
 */

#define FLAT_CS 0xe033
#define FLAT_SS 0xe02b
#define HYPERVISOR_iret 23

#define SYSCALL_PAD     0x102                       /* the pads: emulator/xen/batch.py says what each is for */
#define USER_PAD        0x120
#define BACK_PAD        0x140
#define HAS_ERROR       0x60227d00                  /* vectors with an error code: 8, 10-14, 17, 21, 29, 30 */

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

/* kinds from 3 on: MOV of a selector (in ESI) to a segment register, by the manual's numbers, and then of a flat one */
    .macro load_segment number, register, flat, where
    cmp     $3 + \number, %edi
    jne     1f
    mov     $\flat, %eax
    mov     %esi, %\register
    mov     %eax, %\register
    xor     %eax, %eax
    jmp     \where
1:
    .endm
    .macro load_segments where
    load_segment 0, es, 0, \where
    load_segment 2, ss, FLAT_SS, \where
    load_segment 3, ds, 0, \where
    load_segment 4, fs, 0, \where
    load_segment 5, gs, 0, \where
    .endm

/* uint64 attempt(kind, address, value, *loaded): 0 if it went through, 1 if it faulted */
    .globl attempt
attempt:
    begin
    cmp     $1, %edi
    jb      10f
    je      11f
    load_segments ok
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
    load_segments user_ok
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

/* void transfer(const uint64 *operation): words 1-6 are RIP; CS, SS, DS, ES; FS, GS; RFLAGS; RSP; RAX */
    .globl transfer
transfer:
    push    %rbx
    push    %rbp
    push    %r12
    push    %r13
    push    %r14
    push    %r15
    mov     %rsp, home_sp(%rip)
    movl    $1, landing(%rip)
    mov     20(%rdi), %eax
    mov     %eax, %ds
    mov     22(%rdi), %ax
    mov     %eax, %es
    mov     24(%rdi), %ax
    mov     %eax, %fs
    mov     26(%rdi), %ax
    mov     %eax, %gs
    movzwl  18(%rdi), %eax
    push    %rax                                    /* SS */
    push    40(%rdi)                                /* RSP */
    push    32(%rdi)                                /* RFLAGS */
    movzwl  16(%rdi), %eax
    push    %rax                                    /* CS */
    push    8(%rdi)                                 /* RIP */
    push    $0                                      /* flags: a full iret */
    push    $0                                      /* RCX */
    push    $0                                      /* R11 */
    push    48(%rdi)                                /* RAX */
    xor     %ebx, %ebx
    xor     %edx, %edx
    xor     %esi, %esi
    xor     %edi, %edi
    xor     %ebp, %ebp
    xor     %r8d, %r8d
    xor     %r9d, %r9d
    xor     %r10d, %r10d
    xor     %r12d, %r12d
    xor     %r13d, %r13d
    xor     %r14d, %r14d
    xor     %r15d, %r15d
    mov     $HYPERVISOR_iret, %eax
    syscall
    ud2

    .macro note_landing                             /* on a stack of our own; RCX: the pad */
    mov     %ecx, landed_pad(%rip)
    mov     %cs, landed_cs(%rip)
    mov     %ss, landed_cs + 2(%rip)
    mov     %ds, landed_cs + 4(%rip)
    mov     %es, landed_cs + 6(%rip)
    mov     %fs, landed_cs + 8(%rip)
    mov     %gs, landed_cs + 10(%rip)
    .endm

/* A pad was reached in kernel mode.  Xen's frame, if there is one: RCX, R11, [error code], RIP, CS, RFLAGS, RSP, SS. */
landed:
    mov     %rsp, frame_sp(%rip)
    lea     pad_stack(%rip), %rsp
    pushfq
    cmpl    $1, landing(%rip)
    jb      trapped
    ja      back                                    /* what was noted in user mode stays */
    mov     frame_sp(%rip), %rdx
    mov     %rdx, landed_sp(%rip)
    mov     (%rsp), %rdx
    mov     %rdx, landed_flags(%rip)
    note_landing
back:
    movq    $2, (%rsp)
    popfq
    xor     %eax, %eax
    mov     %eax, %ds
    mov     %eax, %es
    mov     %eax, %fs
    mov     %eax, %gs
    mov     %eax, landing(%rip)
    mov     home_sp(%rip), %rsp
    pop     %r15
    pop     %r14
    pop     %r13
    pop     %r12
    pop     %rbp
    pop     %rbx
    ret

/* One was reached in user mode: back to the kernel by a system call from a fixed address, with registers as they are. */
user_landed:
    mov     %rsp, landed_sp(%rip)
    lea     pad_stack(%rip), %rsp
    pushfq
    popq    landed_flags(%rip)
    note_landing
    movl    $2, landing(%rip)
    mov     landed_sp(%rip), %rsp
    jmp     pads + 16 * BACK_PAD

/* No transfer is under way: an application's system call, or a fault. */
trapped:
    movq    $2, (%rsp)
    popfq
    cmp     $SYSCALL_PAD, %ecx
    jne     faulted
    mov     recover_sp(%rip), %rsp
    mov     (%rsp), %rcx
    mov     %rax, (%rcx)
    jmp     ok
faulted:
    mov     %rcx, fault_vector(%rip)
    mov     frame_sp(%rip), %rsp
    add     $16, %rsp
    xor     %eax, %eax
    cmp     $32, %ecx
    jae     lost
    mov     $HAS_ERROR, %edx
    bt      %ecx, %edx
    jnc     1f
    pop     %rax
    mov     %eax, %eax
1:  mov     %rax, fault_error(%rip)
    mov     (%rsp), %rax
    mov     %rax, fault_rip(%rip)
    mov     $1, %eax
    cmpq    $0, recover_sp(%rip)
    jne     recovered
lost:
    mov     %rcx, %rdi
    lea     stack_top(%rip), %rsp
    call    fatal
1:  jmp     1b

    .section .text.pads, "ax"
    .globl pads
pads:
    .set    pad, 0
    .rept   USER_PAD
    .p2align 4
    mov     $pad, %ecx
    jmp     landed
    .set    pad, pad + 1
    .endr
    .rept   BACK_PAD - USER_PAD
    .p2align 4
    mov     $pad, %ecx
    jmp     user_landed
    .set    pad, pad + 1
    .endr
    .p2align 4
    syscall                                         /* BACK_PAD */
    ud2

    .data
    .p2align 3
    .globl fault_vector, fault_error, fault_rip, landed_pad, landed_sp, landed_flags, landed_cs
fault_vector: .quad 0
fault_error:  .quad 0
fault_rip:    .quad 0
recover_sp:   .quad 0
home_sp:      .quad 0
frame_sp:     .quad 0
landed_sp:    .quad 0
landed_flags: .quad 0
landed_pad:   .long 0
landing:      .long 0                               /* 0: no transfer; 1: one is under way; 2: it was noted in user mode */
landed_cs:    .skip 16                              /* CS, SS, DS, ES, FS, GS */
    .skip   16
pad_stack:    .quad 0

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
