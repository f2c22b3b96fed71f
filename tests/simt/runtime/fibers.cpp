/* A block's threads as fibers. A fiber runs one thread after the other while none of them has to wait, so a
 * kernel without barriers never switches; a thread that waits keeps its fiber until it goes on. */
#include <sys/mman.h>

#include <cstdlib>
#include <cstring>

#include "machine.h"

/* void simt_jump(void **save, void *to): leaves the running context in *save and goes to `to`. What functions
 * must preserve lies on the stacks; the modes of floating point are everywhere the same and stay as they are.
 */
asm(R"(
    .text
    .type simt_jump, @function
simt_jump:
    push %rbp
    push %rbx
    push %r12
    push %r13
    push %r14
    push %r15
    mov %rsp, (%rdi)
    mov %rsi, %rsp
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbx
    pop %rbp
    pop %rdx
    jmp *%rdx
    .size simt_jump, . - simt_jump
)");
extern "C" void simt_jump(void **save, void *to);

__thread simt_lane *simt_self;
__thread simt_place simt_here = {uint3{0, 0, 0}, dim3(1, 1, 1), dim3(1, 1, 1)};

namespace simt {

__thread Worker *worker;

bool Site::operator==(const Site &o) const {
    return line == o.line && (file == o.file || (file && o.file && strcmp(file, o.file) == 0));
}

uint64_t mix(uint64_t a, uint64_t b) {
    uint64_t x = a * 0x9E3779B97F4A7C15u + b + 0x632BE59BD9B4E019u;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    return x ^ (x >> 31);
}

static int coprime(uint64_t random, int n) {
    for (int stride = 1 + (int)(random % (uint64_t)n);; stride++) {
        int a = stride, b = n;
        while (b) {
            int r = a % b;
            a = b;
            b = r;
        }
        if (a == 1) return stride % n;
    }
}

void Order::reset(uint64_t key, uint64_t seed, int n, bool grouped_allowed) {
    count = left = n;
    grouped = false;
    if (seed <= 1 || n == 1) {
        at = seed == 1 ? n - 1 : 0;
        stride = seed == 1 ? n - 1 : 1;
        return;
    }
    uint64_t random = mix(seed, key);
    grouped = grouped_allowed && (random & 3);
    if (!grouped) {
        at = (int)((random >> 8) % (uint64_t)n);
        stride = coprime(random >> 32, n);
        return;
    }
    warps = (n + kWarp - 1) / kWarp;
    warp = (int)((random >> 8) % (uint64_t)warps);
    warp_stride = coprime(random >> 24, warps);
    lane_at = (int)(random >> 48) & 31;
    lane_stride = random & 4 ? 31 : (int)((random >> 54) | 1) & 31;
    lanes_left = kWarp;
}

int Order::next() {
    while (left > 0) {
        int result;
        if (!grouped) {
            result = at;
            at += stride;
            if (at >= count) at -= count;
        } else {
            if (lanes_left-- == 0) {
                lanes_left = kWarp - 1;
                warp = (warp + warp_stride) % warps;
            }
            result = warp * kWarp + lane_at;
            lane_at = (lane_at + lane_stride) & 31;
            if (result >= count) continue;
        }
        left--;
        return result;
    }
    return -1;
}

[[noreturn]] static void fiber_main();

size_t stack_span = 1;

static char *reserve_stacks() {
    size_t span = 4096;
    while (span < 2 * settings().stack_bytes) span *= 2;
    stack_span = span;
    char *p = static_cast<char *>(mmap(nullptr, (kMaxThreads + 1) * stack_span, PROT_NONE,
                                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    if (p == MAP_FAILED) abort();
    return p + (stack_span - (uintptr_t)p % stack_span) % stack_span;
}

/* No more of them than a block has threads. */
static Fiber *new_fiber(Worker &w) {
    if (!w.stacks) w.stacks = reserve_stacks();
    size_t page = 4096, size = stack_span - page;
    int number = w.stacks_used++;
    char *base = w.stacks + (size_t)number * stack_span + page;
    if (number >= kMaxThreads || mprotect(base, size, PROT_READ | PROT_WRITE)) abort();
    /* Stacks begin at different places in their pages, and in different ones, or all of them would share a
     * few cache sets. */
    size_t pages = (size - settings().stack_bytes) / page + 1;
    size_t shift = (size_t)number % pages * page + (size_t)(number * 5 % 64) * 64;
    if (shift > size - settings().stack_bytes) shift %= page;
    Fiber *fiber = new Fiber{nullptr, base, size};
    /* Six registers, where it begins, and where it would return to. */
    void **top = reinterpret_cast<void **>(base + size - shift) - 8;
    top[6] = reinterpret_cast<void *>(fiber_main);
    fiber->context = top;
    return fiber;
}

static void become(Worker &w, int thread) {
    Lane &lane = w.lanes[thread];
    w.state[thread] = kRunning;
    simt_self = &lane;
}

static int pick(Worker &w) {
    if (w.fifo_count) {
        int thread = w.fifo[w.fifo_head];
        w.fifo_head = (w.fifo_head + 1) % kMaxThreads;
        w.fifo_count--;
        return thread;
    }
    int thread;
    while ((thread = w.order.next()) >= 0)
        if (w.state[thread] == kUnstarted || w.state[thread] == kReady) return thread;
    return -1;
}

static const char *waiting_text(State state) {
    return state == kAtBarrier ? "waits at" : state == kAtWarp ? "waits in" : "is at";
}

[[noreturn]] static void deadlock(Worker &w) {
    int first = -1, other = -1;
    for (int t = 0; t < w.threads; t++) {
        if (w.state[t] != kAtBarrier && w.state[t] != kAtWarp) continue;
        if (first < 0)
            first = t;
        else if (other < 0 && (w.state[t] != w.state[first] || !(w.lanes[t].site == w.lanes[first].site)))
            other = t;
    }
    Lane &a = w.lanes[first];
    char one[96], two[96];
    describe_thread(w, first, one, sizeof one);
    if (other < 0)
        report("DEADLOCK", a.site, nullptr, "%s waits in %s for threads that never come", one, a.call);
    Lane &b = w.lanes[other];
    describe_thread(w, other, two, sizeof two);
    report("DIVERGENT", a.site, nullptr, "%s waits at %s, but %s %s %s at %s:%d", one, a.call, two,
           waiting_text(w.state[other]), b.call, b.site.file, b.site.line);
}

/* Parks the running thread and goes on with another one; returns when it was chosen again. */
void park(Worker &w, Lane &me, const char *call, Site site) {
    me.call = call;
    me.site = site;
    int next = pick(w);
    if (next < 0) deadlock(w);
    if (next != me.linear) {
        Fiber *to;
        if (w.state[next] == kUnstarted) {
            if (w.idle.empty()) w.idle.push_back(new_fiber(w));
            to = w.idle.back();
            w.idle.pop_back();
            w.start = next;
        } else {
            to = w.lanes[next].fiber;
        }
        Fiber *mine = w.current;
        me.fiber = mine;
        w.current = to;
        if (w.state[next] != kUnstarted) become(w, next);
        simt_jump(&mine->context, to->context);
    }
    become(w, me.linear);
}

void wake(Worker &w, int thread) {
    w.state[thread] = kWoken;
    w.fifo[(w.fifo_head + w.fifo_count++) % kMaxThreads] = thread;
}

static void begin_thread(Worker &w, int thread) {
    Lane &lane = w.lanes[thread];
    lane.thread_idx = w.index_of[thread];
    lane.fenced = false;
    lane.copy_batch = 0;
    become(w, thread);
}

static void end_thread(Worker &w) {
    Lane &me = *self();
    if (!me.copies.empty()) finish_copies(me);
    w.state[me.linear] = kExited;
    w.exited++;
    if (w.at_barrier && !settings().allow_exit) {
        char gone[96], waiting[96];
        describe_thread(w, me.linear, gone, sizeof gone);
        describe_thread(w, w.barrier_first, waiting, sizeof waiting);
        report("DIVERGENT", w.barrier_site, nullptr, "%s waits at %s, but %s has left the kernel", waiting,
               w.barrier_call, gone);
    }
    Warp &warp = w.warps[me.warp];
    warp.live &= ~(1u << me.lane);
    if (warp.head != warp.tail) warp_exit(w, me);
}

static void fiber_main() {
    for (;;) {
        Worker &w = *worker;
        int thread = w.start;
        while (thread >= 0 && w.state[thread] == kUnstarted) {
            begin_thread(w, thread);
            w.launch->request.invoke(w.launch->request.arguments.get());
            end_thread(w);
            thread = pick(w);
        }
        if (thread < 0 && w.exited < w.threads) deadlock(w);
        Fiber *mine = w.current;
        w.idle.push_back(mine);
        if (thread < 0) {
            w.current = nullptr;
            simt_jump(&mine->context, w.main);
        } else {
            w.current = w.lanes[thread].fiber;
            become(w, thread);
            simt_jump(&mine->context, w.current->context);
        }
    }
}

static void shape_threads(Worker &w, const dim3 &shape) {
    if (w.index_shape.x == shape.x && w.index_shape.y == shape.y && w.index_shape.z == shape.z) return;
    w.index_shape = shape;
    int t = 0;
    for (unsigned z = 0; z < shape.z; z++)
        for (unsigned y = 0; y < shape.y; y++)
            for (unsigned x = 0; x < shape.x; x++, t++) {
                w.index_of[t] = uint3{x, y, z};
                w.lanes[t].linear = t;
                w.lanes[t].warp = t / kWarp;
                w.lanes[t].lane = t % kWarp;
            }
}

static void new_order(Worker &w) {
    w.order.reset(mix(w.launch->number, w.block_linear * 4099 + w.epoch), settings().seed, w.threads, true);
}

void run_block(Worker &w, const Launch &launch, uint64_t block) {
    const LaunchRequest &r = launch.request;
    w.launch = &launch;
    w.block_linear = block;
    w.serial = launch.first_block + (uint32_t)block;
    w.threads = (int)(r.block.x * r.block.y * r.block.z);
    w.exited = w.at_barrier = 0;
    w.epoch = 0;
    w.fifo_count = 0;
    w.barrier_value[0] = w.barrier_value[1] = 0;
    shape_threads(w, r.block);
    simt_here.block_idx = uint3{(unsigned)(block % r.grid.x), (unsigned)(block / r.grid.x % r.grid.y),
                                (unsigned)(block / r.grid.x / r.grid.y)};
    simt_here.block_dim = r.block;
    simt_here.grid_dim = r.grid;
    memset(w.state, kUnstarted, (size_t)w.threads);
    for (int i = 0; i * kWarp < w.threads; i++)
        warp_reset(w, i, w.threads - i * kWarp < kWarp ? w.threads - i * kWarp : kWarp);
    if (r.shared) memset(w.dynamic, settings().sample ? 0 : 0xff, r.shared);
    new_order(w);
    if (w.idle.empty()) w.idle.push_back(new_fiber(w));
    w.start = w.order.next();
    w.current = w.idle.back();
    w.idle.pop_back();
    simt_jump(&w.main, w.current->context);
    simt_self = nullptr;
    count_block();
}

static int barrier_result(Worker &w, int kind, int phase) {
    int value = w.barrier_value[phase];
    if (kind == SIMT_BARRIER_AND) return value == w.threads - w.exited;
    return kind == SIMT_BARRIER_OR ? value != 0 : value;
}

} // namespace simt

using namespace simt;

void *simt_dynamic_shared() {
    return worker->dynamic;
}

int simt_barrier(int kind, int predicate, const char *file, int line) {
    static const char *const names[] = {"__syncthreads", "__syncthreads_count", "__syncthreads_and",
                                        "__syncthreads_or"};
    Worker &w = *worker;
    Lane &me = *self();
    Site site{file, line};
    if (w.at_barrier == 0) {
        w.barrier_site = site;
        w.barrier_call = names[kind];
        w.barrier_first = me.linear;
        w.barrier_kind = kind;
    } else if (kind != w.barrier_kind || !(w.barrier_site == site)) {
        char one[96], two[96];
        describe_thread(w, w.barrier_first, one, sizeof one);
        describe_thread(w, me.linear, two, sizeof two);
        report("DIVERGENT", w.barrier_site, nullptr, "%s waits at %s, but %s waits at %s at %s:%d", one,
               w.barrier_call, two, names[kind], file, line);
    }
    if (w.exited && !settings().allow_exit) {
        char one[96], two[96];
        int gone = 0;
        while (w.state[gone] != kExited) gone++;
        describe_thread(w, me.linear, one, sizeof one);
        describe_thread(w, gone, two, sizeof two);
        report("DIVERGENT", site, nullptr, "%s waits at %s, but %s has left the kernel", one, names[kind],
               two);
    }
    int phase = (int)(w.epoch & 1);
    w.barrier_value[phase] += predicate != 0;
    w.state[me.linear] = kAtBarrier;
    if (++w.at_barrier == w.threads - w.exited) {
        count_barrier();
        w.at_barrier = 0;
        w.epoch++;
        w.barrier_value[phase ^ 1] = 0;
        if (!w.exited)
            memset(w.state, kReady, (size_t)w.threads);
        else
            for (int t = 0; t < w.threads; t++)
                if (w.state[t] == kAtBarrier) w.state[t] = kReady;
        new_order(w);
    }
    park(w, me, names[kind], site);
    return barrier_result(w, kind, phase);
}

void simt_fence() {
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    if (simt_self) check_fence();
}

long long clock64() {
    static long long ticks;
    return __atomic_add_fetch(&ticks, 1, __ATOMIC_RELAXED);
}

void simt_device_assert(const char *text, const char *file, int line) {
    char who[96];
    describe_thread(*worker, self()->linear, who, sizeof who);
    report("ASSERT", Site{file, line}, nullptr, "%s: %s", who, text);
}
