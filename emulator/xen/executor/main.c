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

enum { SET_TRAP_TABLE = 0, STACK_SWITCH = 3, SET_CALLBACKS = 4, UPDATE_VA_MAPPING = 14, CONSOLE_IO = 18, VM_ASSIST = 21,
       SCHED_OP = 29, EVENT_CHANNEL_OP = 32 };
enum { ENABLE = 0, WRITABLE_PAGETABLES = 2 };
enum { SCHEDOP_POLL = 3, EVTCHNOP_SEND = 4, EVENTS_PENDING = 2048 };
enum { FLAT_SS = 0xe02b, PAGE_FAULT = 14, PF_USER = 4, PF_FETCH = 16, INVLPG = 2, CR2 = 16 };

/* operations */
enum { LOAD = 0, STORE = 1, EXECUTE = 2, HYPERCALL = 3, REPEAT = 4, FILL = 5, COPY = 6, WAIT = 7, TURN = 8 };
enum { USER = 0x100, GROUPS_SHIFT = 16 };
enum { NO_FAULT = -1, NO_EXECUTOR = -2, NO_OPERATION = -3 };

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
    uint32 stored, again;
};

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

extern char _image[], _end[], shared_page[], trap_stack_top[], as_user[], as_user_end[], from_user[], unexpected_event[];
extern char traps[];
extern uint64 fault_vector, fault_error, fault_rip;
int64 hypercall(uint64 nr, const uint64 args[6]);
uint64 attempt(uint64 kind, uint64 address, uint64 value, uint64 *loaded);
uint64 attempt_user(uint64 kind, uint64 address, uint64 value, uint64 *loaded);

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

static uint64 *const cr2 = (uint64 *)(shared_page + CR2);

/* One access that may fault; 1 if it did, and then the fault is in the result. */
static uint64 access(uint64 kind, uint64 user, uint64 address, uint64 value, struct result *r)
{
    uint64 loaded = 0;
    uint64 failed = (user ? attempt_user : attempt)(kind, address, value, &loaded);
    if (!failed) {
        r->value = loaded;
        return 0;
    }
    r->vector = fault_vector;
    r->error = fault_error;
    if (fault_vector == PAGE_FAULT) {
        r->address = *cr2;
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

static const uint64 *hypercall_operation(const uint64 *op, uint64 groups, struct result *r)
{
    const uint64 *group = op + 8;
    uint64 failed = 0;
    while (groups--) {
        uint64 address = group[0], count = group[1];
        for (uint64 i = 0; i < count && !failed; i++, r->stored += !failed)
            failed = access(STORE, 0, address + 8 * i, group[2 + i], r);
        group += 2 + count;
    }
    if (!failed)
        r->value = hypercall(op[1], op + 2);
    return group;
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
    r->value = r->address = r->error = r->stored = r->again = 0;
    r->vector = NO_FAULT;
    switch (code) {
    case LOAD:
    case EXECUTE:
        access(code, user, op[1], 0, r);
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
            results[n] = (struct result){ times, 0, NO_FAULT, 0, 0, 0 };
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

static void set_up(struct start_info *start)
{
    int64 failed = call(SET_TRAP_TABLE, (uint64)traps, 0, 0);
    failed |= call(STACK_SWITCH, FLAT_SS, (uint64)trap_stack_top, 0);
    failed |= call(SET_CALLBACKS, (uint64)unexpected_event, (uint64)unexpected_event, (uint64)from_user);
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
