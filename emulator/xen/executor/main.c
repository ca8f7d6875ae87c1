/* The executor: a PV guest that takes batches of operations from a mailbox in its memory and leaves a result for each.
 *
 * The host writes operations into `batch` and their number into the mailbox, then a new `sequence`; the executor, which polls
 * it without ever calling Xen, works them off and answers by `done`.  In a domU it sleeps instead, and takes turns with the
 * executor of domain 0 over an event channel.  `progress` counts the operations that are complete, so
 * that a host which finds the machine dead knows which one killed it.  The encoding is described in emulator/xen/batch.py.
 */
typedef unsigned long uint64;
typedef long int64;
typedef unsigned int uint32;
typedef int int32;
typedef unsigned short uint16;

enum { SET_TRAP_TABLE = 0, STACK_SWITCH = 3, SET_CALLBACKS = 4, UPDATE_VA_MAPPING = 14, CONSOLE_IO = 18, VM_ASSIST = 21,
       SCHED_OP = 29, CALLBACK_OP = 30, EVENT_CHANNEL_OP = 32 };
enum { ENABLE = 0, WRITABLE_PAGETABLES = 2 };
enum { SCHEDOP_POLL = 3, EVTCHNOP_SEND = 4, EVENTS_PENDING = 2048 };
enum { CALLBACK_REGISTER = 0, EVENT = 0, FAILSAFE = 1, SYSCALL = 2 };
enum { FLAT_CS = 0xe033, FLAT_SS = 0xe02b, PAGE_FAULT = 14, PF_USER = 4, PF_FETCH = 16, INVLPG = 2, CR2 = 16 };

/* landing pads, 16 bytes each; what programs find: see spec/RULINGS-4.17.md, X-40 */
enum { PAD = 16, OWN_VECTORS = 32, VECTORS = 256, EVENT_PAD = 0x100, FAILSAFE_PAD, SYSCALL_PAD, BEHIND_PAD, BEHIND_USER_PAD = 0x120 };
enum { EVENTS_MASKED = 4, UPCALL_MASK = 0x100 };
#define PROGRAM_STACK 0xffffffff8000d000

/* operations */
enum { LOAD = 0, STORE = 1, EXECUTE = 2, HYPERCALL = 3, REPEAT = 4, FILL = 5, COPY = 6, WAIT = 7, TURN = 8,
       TRANSFER = 9, LOAD_SEGMENT = 10 };
enum { USER = 0x100, GROUPS_SHIFT = 16, REGISTER_SHIFT = 16 };
enum { REGISTERS = 3 };     /* kinds of accesses from here on: loads of segment registers, by the manual's numbers */
enum { NO_FAULT = -1, NO_EXECUTOR = -2, NO_OPERATION = -3, LANDED = -4 };

struct start_info {
    char magic[32];
    uint64 nr_pages, shared_info;
    uint32 flags;
    uint64 store_mfn;
    uint32 store_evtchn;
    uint64 console[2], pt_base, nr_pt_frames, mfn_list;
};

struct result {
    uint64 value, address;
    int32 vector;
    uint32 error;
    uint32 flags;                   /* of a landing, like all that follows */
    uint16 selectors[6];            /* CS, SS, DS, ES, FS, GS */
    uint64 rip, rsp;
};

struct trap {
    unsigned char vector, flags;
    uint16 cs;
    uint32 spare;
    uint64 address;
};

struct stack { uint64 ss, sp; };

#define BATCH_WORDS (1 << 18)
#define RESULTS     (1 << 15)
#define SCRATCH     (1 << 18)
#define PAGE __attribute__((aligned(4096)))

static uint64 batch[BATCH_WORDS] PAGE;
static struct result results[RESULTS] PAGE;
static uint64 scratch[SCRATCH / 8] PAGE;

static struct {
    uint64 magic, self;
    uint64 batch, batch_bytes, results, results_bytes, scratch, scratch_bytes;  /* virtual addresses */
    uint64 p2m, p2m_at, pages, table_base, table_frames, image_end, shared_page, shared_info;
    volatile uint64 sequence, operations, done, progress;
    uint64 port;        /* of a domU: the event channel to domain 0, which the host writes before the domU starts */
} mailbox PAGE;

extern char _image[], _end[], shared_page[], trap_stack_top[], as_user[], as_user_end[], pads[];
extern uint64 fault_vector, fault_error, fault_rip, landed_sp, landed_flags;
extern uint32 landed_pad;
extern uint16 landed_cs[6];
int64 hypercall(uint64 nr, const uint64 args[6]);
uint64 attempt(uint64 kind, uint64 address, uint64 value, uint64 *loaded);
uint64 attempt_user(uint64 kind, uint64 address, uint64 value, uint64 *loaded);
void transfer(const uint64 *operation);

static struct trap traps[VECTORS + 1], own_traps[OWN_VECTORS + 1];
static struct stack own_stack, program_stack = { FLAT_SS, PROGRAM_STACK };
static struct stack *stack_in_use;

static int64 call(uint64 nr, uint64 a, uint64 b, uint64 c)
{
    uint64 args[6] = { a, b, c, 0, 0, 0 };
    return hypercall(nr, args);
}

static void say(const char *text, uint64 number)
{
    char line[128], *p = line;
    while (*text)
        *p++ = *text++;
    for (int shift = 60; shift >= 0; shift -= 4)
        *p++ = "0123456789abcdef"[number >> shift & 15];
    *p++ = '\n';
    call(CONSOLE_IO, 0, p - line, (uint64)line);
}

void fatal(uint64 vector)
{
    say("xenspec executor: lost to vector ", vector);
    say("xenspec executor: at ", fault_rip);
    for (;;)
        ;
}

static volatile uint64 *const cr2 = (uint64 *)(shared_page + CR2), *const upcalls = (uint64 *)shared_page;

/* Have Xen put what interrupts user mode there. */
static void use(struct stack *stack)
{
    if (stack_in_use != stack)
        call(STACK_SWITCH, stack->ss, stack->sp, 0);
    stack_in_use = stack;
}

/* One access that may fault; 1 if it did, and then the fault is in the result. */
static uint64 access(uint64 kind, uint64 user, uint64 address, uint64 value, struct result *r)
{
    uint64 loaded = 0;
    if (user)
        use(&own_stack);
    uint64 failed = (user ? attempt_user : attempt)(kind, address, value, &loaded);
    if (!failed) {
        r->value = loaded;
        return 0;
    }
    r->vector = fault_vector;
    r->error = fault_error;
    if (fault_vector == PAGE_FAULT) {
        r->address = *cr2;
        if (kind < REGISTERS)
            r->error |= PF_USER;    /* Xen clears it for a guest's kernel */
    }
    if (user && fault_rip >= (uint64)as_user && fault_rip < (uint64)as_user_end
        && (fault_vector == PAGE_FAULT && fault_error & PF_FETCH))
        r->vector = NO_EXECUTOR;
    return 1;
}

static void fill(uint64 *to, uint64 count, uint64 first, uint64 step)
{
    for (uint64 i = 0; i < count; i++)
        to[i] = first + i * step;
}

static void copy(uint64 *to, const uint64 *from, uint64 count)
{
    for (uint64 i = 0; i < count; i++)
        to[i] = from[i];
}

/* Store groups of words: address, number, words; what comes after them. */
static const uint64 *store_groups(const uint64 *group, uint64 groups, struct result *r, uint64 *failed)
{
    *failed = 0;
    while (groups--) {
        uint64 address = group[0], count = group[1];
        for (uint64 i = 0; i < count && !*failed; i++)
            *failed = access(STORE, 0, address + 8 * i, group[2 + i], r);
        group += 2 + count;
    }
    return group;
}

static void set_callback(uint16 type, uint64 pad)
{
    struct { uint16 type, flags; uint32 spare; uint64 address; } callback = { type, 0, 0, (uint64)pads + PAD * pad };
    call(CALLBACK_OP, CALLBACK_REGISTER, (uint64)&callback, 0);
}

static void set_callbacks(void)
{
    set_callback(EVENT, EVENT_PAD);
    set_callback(FAILSAFE, FAILSAFE_PAD);
    set_callback(SYSCALL, SYSCALL_PAD);
}

/* set_segment_base may leave a program's selector in GS, which Xen would reload at some time: at a time of its own. */
static void forget_gs(void)
{
    uint32 gs;
    __asm__ volatile("mov %%gs, %0" : "=r"(gs));
    if (gs)
        __asm__ volatile("mov %0, %%gs" : : "r"(0));
}

/* What the executor cannot do without is put back after calls that may have changed it; a program's stack is its own. */
static void keep_ground(uint64 nr, const uint64 args[6])
{
    if (nr == SET_TRAP_TABLE) {
        call(SET_TRAP_TABLE, (uint64)own_traps, 0, 0);
    } else if (nr == STACK_SWITCH) {
        program_stack = (struct stack){ args[0], args[1] };
        stack_in_use = &program_stack;
    } else if (nr == SET_CALLBACKS || nr == CALLBACK_OP) {
        set_callbacks();
    }
    forget_gs();
}

static const uint64 *hypercall_operation(const uint64 *op, uint64 groups, struct result *r)
{
    uint64 failed;
    const uint64 *end = store_groups(op + 8, groups, r, &failed);
    if (!failed) {
        r->value = hypercall(op[1], op + 2);
        keep_ground(op[1], op + 2);
    }
    return end;
}

/* Run with a program's registers (words 1-6) until a landing pad; word 7 is the address behind the instruction. */
static const uint64 *transfer_operation(const uint64 *op, uint64 groups, struct result *r)
{
    uint64 failed;
    use(&program_stack);
    *upcalls = UPCALL_MASK;
    *cr2 = 0;
    const uint64 *end = store_groups(op + 8, groups, r, &failed);
    if (!failed) {
        transfer(op);
        r->value = *upcalls & 0xffff;
        r->address = landed_pad == PAGE_FAULT ? *cr2 : 0;
        r->vector = LANDED;
        r->flags = landed_flags;
        r->rip = landed_pad == BEHIND_PAD || landed_pad == BEHIND_USER_PAD ? op[7] : (uint64)pads + PAD * landed_pad;
        r->rsp = landed_sp;
        for (int n = 0; n < 6; n++)
            r->selectors[n] = landed_cs[n];
    }
    *upcalls = UPCALL_MASK;
    return end;
}

/* Sleep until the other end of an event channel calls; events are masked, so it is only seen by looking. */
static void wait(uint32 port)
{
    struct { uint32 *ports; uint32 count; uint64 timeout; } poll = { &port, 1, 0 };
    uint64 *pending = (uint64 *)(shared_page + EVENTS_PENDING);
    uint64 was;
    do {
        call(SCHED_OP, SCHEDOP_POLL, (uint64)&poll, 0);
        was = __atomic_fetch_and(&pending[port / 64], ~(1ul << port % 64), __ATOMIC_SEQ_CST);
    } while (!(was >> port % 64 & 1));
}

/* Let the other domain go on, and wait until it lets us. */
static void turn(uint32 port)
{
    call(EVENT_CHANNEL_OP, EVTCHNOP_SEND, (uint64)&port, 0);
    wait(port);
}

/* Work off one operation; the address of the next. */
static const uint64 *operate(const uint64 *op, struct result *r)
{
    uint64 code = op[0] & 0xff, user = op[0] & USER;
    *r = (struct result){ .vector = NO_FAULT };
    switch (code) {
    case LOAD:
    case EXECUTE:
        access(code, user, op[1], 0, r);
        return op + 2;
    case LOAD_SEGMENT:
        access(REGISTERS + ((uint32)op[0] >> REGISTER_SHIFT), user, op[1], 0, r);
        return op + 2;
    case STORE:
        access(code, user, op[1], op[2], r);
        return op + 3;
    case HYPERCALL:
        return hypercall_operation(op, (uint32)op[0] >> GROUPS_SHIFT, r);
    case FILL:
        fill((uint64 *)op[1], op[2], op[3], op[4]);
        return op + 5;
    case COPY:
        copy((uint64 *)op[1], (uint64 *)op[2], op[3]);
        return op + 4;
    case WAIT:
        wait(op[1]);
        return op + 2;
    case TURN:
        turn(op[1]);
        return op + 2;
    case TRANSFER:
        return transfer_operation(op, (uint32)op[0] >> GROUPS_SHIFT, r);
    }
    r->vector = NO_OPERATION;
    return op + 1;
}

/* REPEAT times operations: the next `operations` operations are done `times` times, their last results stay. */
static void work(uint64 operations)
{
    const uint64 *op = batch;
    for (uint64 n = 0; n < operations; n++) {
        if ((op[0] & 0xff) == REPEAT) {
            uint64 times = op[1], block = op[2];
            const uint64 *first = op + 3, *end = first;
            results[n] = (struct result){ .value = times, .vector = NO_FAULT };
            while (times--) {
                end = first;
                for (uint64 k = 1; k <= block; k++)
                    end = operate(end, &results[n + k]);
            }
            op = end;
            n += block;
        } else {
            op = operate(op, &results[n]);
        }
        mailbox.progress = n + 1;
    }
}

/* Touch every page once, so that accessed and dirty bits of the executor's own tables never change again. */
static void touch(char *from, char *end)
{
    for (volatile char *p = from; (char *)p < end; p += 4096)
        *p = *p;
}

static void make_traps(void)
{
    for (uint64 v = 0; v < VECTORS; v++) {
        unsigned char flags = v < OWN_VECTORS ? v >> 3 | (v & 1 ? 0 : EVENTS_MASKED) : v & 7;
        traps[v] = (struct trap){ v, flags, FLAT_CS, 0, (uint64)pads + PAD * v };
        if (v < OWN_VECTORS)
            own_traps[v] = traps[v];
    }
}

static void set_up(struct start_info *start)
{
    make_traps();
    int64 failed = call(SET_TRAP_TABLE, (uint64)traps, 0, 0);
    own_stack = (struct stack){ FLAT_SS, (uint64)trap_stack_top };
    use(&own_stack);
    set_callbacks();
    failed |= call(VM_ASSIST, ENABLE, WRITABLE_PAGETABLES, 0);      /* domain 0 always has it */
    failed |= call(UPDATE_VA_MAPPING, (uint64)shared_page, start->shared_info | 0x67, INVLPG);
    if (failed)
        say("xenspec executor: cannot set up ", failed);
    touch(_image, _end);
    touch((char *)(start->mfn_list & ~4095ul), (char *)(start->mfn_list + 8 * start->nr_pages));
    touch((char *)start, (char *)start + 1);
}

void executor(struct start_info *start)
{
    uint64 *p2m = (uint64 *)start->mfn_list;
    set_up(start);
    mailbox.batch = (uint64)batch;
    mailbox.batch_bytes = sizeof batch;
    mailbox.results = (uint64)results;
    mailbox.results_bytes = sizeof results;
    mailbox.scratch = (uint64)scratch;
    mailbox.scratch_bytes = sizeof scratch;
    mailbox.p2m = (uint64)p2m;
    mailbox.p2m_at = p2m[(uint64)p2m >> 12] << 12;      /* in one stretch: the host checks it */
    mailbox.pages = start->nr_pages;
    mailbox.table_base = start->pt_base;
    mailbox.table_frames = start->nr_pt_frames;
    mailbox.image_end = (uint64)_end;
    mailbox.shared_page = (uint64)shared_page;
    mailbox.shared_info = start->shared_info;
    mailbox.self = p2m[(uint64)&mailbox >> 12] << 12;
    mailbox.magic = 0x726f747563657865;             /* "executor" */
    say("xenspec executor: mailbox ", mailbox.self);
    for (;;) {
        uint64 sequence = mailbox.sequence;
        if (sequence != mailbox.done) {
            work(mailbox.operations);
            __asm__ volatile("" ::: "memory");
            mailbox.done = sequence;
        }
        if (mailbox.port)
            turn(mailbox.port);
        __asm__ volatile("pause");
    }
}
