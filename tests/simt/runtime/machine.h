/* Inside the SIMT machine: threads, warps, blocks, and the workers that run them. */
#ifndef SIMT_MACHINE_H
#define SIMT_MACHINE_H

#include <cstddef>
#include <cstdint>
#include <vector>

#include "cuda_runtime.h"
#include "simt.h"

#ifndef SIMT_INSTRUMENTED
#define SIMT_INSTRUMENTED 0
#endif

namespace simt {

constexpr int kWarp = 32, kMaxThreads = 1024, kMaxWarps = kMaxThreads / kWarp;
constexpr int kRendezvous = 8; /* collectives that a lane may be ahead of the slowest one of its warp */

/* A place in the source, as __builtin_FILE() and __builtin_LINE() give it. */
struct Site {
    const char *file = nullptr;
    int line = 0;
    bool operator==(const Site &o) const;
};

struct Fiber {
    void *context; /* its stack pointer while it does not run */
    char *stack;   /* lowest usable byte */
    size_t size;
};

/* One collective operation of some lanes of a warp. */
struct Rendezvous {
    unsigned mask, arrived, left, waiting;
    int kind;
    bool done;
    Site site;
    uint64_t value[kWarp], result;
};

struct AsyncCopy {
    void *dst;
    const void *src;
    unsigned size, zfill, batch;
    Site site;
};

enum State : uint8_t { kUnstarted, kRunning, kAtBarrier, kAtWarp, kReady, kWoken, kExited };

/* One thread of the block that a worker runs. */
struct Lane : simt_lane {
    int linear, warp, lane;
    Fiber *fiber; /* where it is parked */
    Site site;    /* what it waits for */
    const char *call;
    Rendezvous *meeting;
    int wait_lane; /* a lane of the warp, or -1: all of them */
    int copy_batch;
    bool fenced;
    std::vector<AsyncCopy> copies;
};

struct Warp {
    Rendezvous ring[kRendezvous];
    unsigned head, tail, live, blocked; /* blocked: lanes that wait for room in the ring */
    unsigned sync_epoch;                /* full __syncwarp()s, for the race check */
};

/* One kernel launch, as the workers see it. */
struct Launch {
    LaunchRequest request;
    uint64_t number;      /* of the launch; part of the seed of all orders */
    uint32_t first_block; /* serial number of its first block, for the shadow memory */
    uint64_t blocks;
};

/* A reproducible order of n things, without a table. */
class Order {
  public:
    /* grouped: keeps warps together and orders warps, then lanes. */
    void reset(uint64_t key, uint64_t seed, int n, bool grouped_allowed);
    int next(); /* -1 at the end */

  private:
    int count, left, at, stride;
    bool grouped;
    int warps, warp, warp_stride, lane_at, lane_stride, lanes_left;
};

/* What one OS thread needs to run blocks. */
struct Worker {
    Lane lanes[kMaxThreads];
    State state[kMaxThreads];
    Warp warps[kMaxWarps];
    uint3 index_of[kMaxThreads];
    dim3 index_shape{0, 0, 0};
    int threads = 0, exited = 0, at_barrier = 0, start = 0;
    uint32_t epoch = 0;  /* barriers passed by this block */
    uint32_t serial = 0; /* of this block, over all launches */
    uint64_t block_linear = 0;
    Site barrier_site;
    const char *barrier_call = nullptr;
    int barrier_first = 0, barrier_value[2] = {0, 0}, barrier_kind = 0;
    Order order;
    int fifo[kMaxThreads], fifo_head = 0, fifo_count = 0;
    const Launch *launch = nullptr;
    Fiber *current = nullptr;
    std::vector<Fiber *> idle;
    char *stacks = nullptr; /* place for those of kMaxThreads fibers */
    int stacks_used = 0;
    void *main = nullptr;    /* the context that run_block was called in */
    char *dynamic = nullptr; /* dynamic shared memory, with a guard page behind it */
    size_t dynamic_capacity = 0;
};
extern __thread Worker *worker;

/* Settings, read from the environment at the first use. */
struct Settings {
    uint64_t seed;
    int os_threads;
    size_t stack_bytes;
    bool allow_exit; /* threads may leave while others wait at a barrier */
    bool counting;
    uint64_t sample; /* blocks of a launch that run, 0: all; with them nothing but bounds is checked */
};
extern Settings *known_settings;
Settings &read_settings();
inline Settings &settings() {
    return known_settings ? *known_settings : read_settings();
}

uint64_t mix(uint64_t a, uint64_t b);
inline Lane *self() {
    return static_cast<Lane *>(simt_self);
}

/* fibers.cpp */
extern size_t stack_span; /* stacks lie at multiples of it, a power of two */
void run_block(Worker &w, const Launch &launch, uint64_t block);
void park(Worker &w, Lane &me, const char *call, Site site);
void wake(Worker &w, int thread);
/* grid.cpp */
void run_grid(Launch &launch);
Worker &own_worker();
/* warp.cpp */
void warp_reset(Worker &w, int warp, int lanes);
void warp_exit(Worker &w, Lane &me);
/* pipeline.cpp */
void finish_copies(Lane &me);
/* symbols.cpp: static shared memory, found through the symbol table */
struct SharedSymbol {
    const char *name;
    size_t offset, size;
    bool guard; /* the compiler's, not shared memory */
};
void shared_symbols_load();
const SharedSymbol *shared_symbol_at(size_t offset);
char *shared_base(size_t *size); /* of the calling OS thread */
void shared_poison();
size_t static_shared_of(const void *function);
const char *function_name(const void *function); /* as mangled; null: not of this program */

/* report.cpp */
/* Prints one line about a fault and ends the process with SIMT_FAULT_EXIT. `pc`: return address into the
 * faulty code, or null when `site` is known. */
[[noreturn]] void report(const char *what, Site site, const void *pc, const char *format, ...)
    __attribute__((format(printf, 4, 5)));
void describe_address(uintptr_t address, char *text, size_t size);
/* "thread (1,0,0) of block (0,0,0)" of a linear index in the launch that w runs. */
void describe_thread(const Worker &w, int linear, char *text, size_t size);
void install_fault_handler();
void thread_fault_stack();

/* Memory accesses that the machine makes for a thread: checked in the instrumented build. */
#if SIMT_INSTRUMENTED
void check_load(const void *address, size_t bytes, Site site, const void *pc);
void check_store(const void *address, size_t bytes, Site site, const void *pc);
void check_atomic(const void *address, size_t bytes, const void *pc);
void check_fence();
void check_forget(const void *address, size_t bytes); /* contents become undefined */
void count_tile(const void *memory, int rows, size_t row_bytes, size_t pitch, bool store);
/* Counters (counters.cpp): at a barrier, at the end of a block, at the end of a launch of which so many
 * blocks have run, at a WMMA product, at a cp.async. */
void count_barrier();
void count_block();
void count_launch(const Launch &launch, uint64_t blocks_run);
bool count_again(const Launch &launch); /* one that has been counted: done */
void count_flops(bool narrow, uint64_t flops);
void count_copy(const void *dst, size_t written, const void *src, size_t read, Site site);
#else
inline void check_load(const void *, size_t, Site, const void *) {}
inline void check_store(const void *, size_t, Site, const void *) {}
inline void check_atomic(const void *, size_t, const void *) {}
inline void check_fence() {}
inline void check_forget(const void *, size_t) {}
inline void count_tile(const void *, int, size_t, size_t, bool) {}
inline void count_barrier() {}
inline void count_block() {}
inline void count_launch(const Launch &, uint64_t) {}
inline bool count_again(const Launch &) {
    return false;
}
inline void count_flops(bool, uint64_t) {}
inline void count_copy(const void *, size_t, const void *, size_t, Site) {}
#endif

} // namespace simt

#endif
