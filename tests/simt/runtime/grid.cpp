/* Runs the blocks of a launch: on the calling OS thread, and in the plain build on a pool beside it. */
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <mutex>
#include <numeric>
#include <thread>

#include "machine.h"

namespace simt {

Settings *known_settings;

Settings &read_settings() {
    static Settings s = [] {
        auto number = [](const char *name, long fallback) {
            const char *text = getenv(name);
            return text && *text ? strtol(text, nullptr, 0) : fallback;
        };
        int cores = (int)std::thread::hardware_concurrency();
        Settings v;
        v.seed = (uint64_t)number("SIMT_SEED", 0);
        v.os_threads = (int)number("SIMT_THREADS", cores < 1 ? 1 : cores > 16 ? 16 : cores);
        v.stack_bytes = (size_t)number("SIMT_STACK", 128 << 10) & ~(size_t)4095;
        v.allow_exit = number("SIMT_ALLOW_EXIT", 0) != 0;
        v.counting = number("SIMT_COUNT", 0) != 0;
        v.sample = SIMT_INSTRUMENTED ? (uint64_t)number("SIMT_SAMPLE", 0) : 0;
        if (SIMT_INSTRUMENTED) v.os_threads = 1;
        return v;
    }();
    known_settings = &s;
    return s;
}

Worker &own_worker() {
    if (!worker) {
        worker = new Worker;
        worker->dynamic_capacity = 232448;
        size_t page = 4096, bytes = (worker->dynamic_capacity + page - 1) / page * page;
        char *p = static_cast<char *>(mmap(nullptr, bytes + page, PROT_READ | PROT_WRITE,
                                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
        if (p == MAP_FAILED) abort();
        mprotect(p + bytes, page, PROT_NONE);
        worker->dynamic = p;
        thread_fault_stack();
    }
    return *worker;
}

/* The order of blocks: block(i) = (first + i * stride) mod n, stride without a common factor with n. */
struct BlockOrder {
    uint64_t first, stride, n;
    BlockOrder(uint64_t number, uint64_t count) : first(0), stride(1), n(count) {
        uint64_t seed = settings().seed;
        if (seed == 0 || n == 1) return;
        if (seed == 1) {
            first = stride = n - 1;
            return;
        }
        uint64_t random = mix(seed * 31, number);
        first = random % n;
        stride = 1 + (random >> 20) % (n - 1);
        while (std::gcd(stride, n) != 1) stride++;
    }
    uint64_t at(uint64_t i) const {
        return (uint64_t)((first + (unsigned __int128)i * stride) % n);
    }
};

/* A block may only use as much dynamic shared memory as it asked for: it is put at the end before the guard
 * page. */
static void place_dynamic(Worker &w, size_t bytes, char *&base) {
    base = w.dynamic;
    size_t page = 4096, end = (w.dynamic_capacity + page - 1) / page * page;
    w.dynamic = base + end - (bytes + 127) / 128 * 128;
}

/* The n-th of `sample` blocks, spread over the grid by steps of the golden ratio so that they do not all lie
 * at one edge of their images. */
static uint64_t sampled_block(uint64_t n, uint64_t blocks) {
    return (uint64_t)((n * 0x9e3779b97f4a7c15u >> 32) * (unsigned __int128)blocks >> 32);
}

/* Runs some of the blocks, or all, for the sake of their counts; returns how many. */
static uint64_t work_sampled(const Launch &launch, uint64_t sample) {
    Worker &w = own_worker();
    char *base;
    shared_poison();
    place_dynamic(w, launch.request.shared, base);
    for (uint64_t i = 0; i < sample; i++)
        run_block(w, launch, sample == launch.blocks ? i : sampled_block(i, launch.blocks));
    w.dynamic = base;
    w.launch = nullptr;
    return sample;
}

static void work(const Launch &launch, const BlockOrder &order, std::atomic<uint64_t> &next) {
    Worker &w = own_worker();
    char *base;
    shared_poison();
    place_dynamic(w, launch.request.shared, base);
    for (uint64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < launch.blocks;)
        run_block(w, launch, order.at(i));
    w.dynamic = base;
    w.launch = nullptr;
}

/* OS threads that help with one launch at a time. */
class Pool {
  public:
    bool run(const Launch &launch, const BlockOrder &order, int helpers) {
        std::unique_lock<std::mutex> lock(mutex);
        if (busy) return false;
        while ((int)threads.size() < helpers) threads.emplace_back([this] { serve(); }).detach();
        busy = true;
        std::atomic<uint64_t> next(0);
        job_launch = &launch;
        job_order = &order;
        job_next = &next;
        openings = helpers;
        started = finished = 0;
        ready.notify_all();
        lock.unlock();
        work(launch, order, next);
        lock.lock();
        openings = 0;
        done.wait(lock, [&] { return finished == started; });
        busy = false;
        return true;
    }

  private:
    void serve() {
        std::unique_lock<std::mutex> lock(mutex);
        for (;;) {
            ready.wait(lock, [&] { return openings > 0; });
            openings--;
            started++;
            lock.unlock();
            work(*job_launch, *job_order, *job_next);
            lock.lock();
            finished++;
            done.notify_one();
        }
    }
    std::mutex mutex;
    std::condition_variable ready, done;
    std::vector<std::thread> threads;
    const Launch *job_launch = nullptr;
    const BlockOrder *job_order = nullptr;
    std::atomic<uint64_t> *job_next = nullptr;
    int openings = 0, started = 0, finished = 0;
    bool busy = false;
};

void run_grid(Launch &launch) {
    const dim3 &b = launch.request.block;
    BlockOrder order(launch.number, launch.blocks);
    int helpers = settings().os_threads - 1;
    if (uint64_t sample = std::min(settings().sample, launch.blocks)) {
        if (settings().counting && !count_again(launch)) count_launch(launch, work_sampled(launch, sample));
        return;
    }
    if (helpers > 0 && launch.blocks > 1 && launch.blocks * b.x * b.y * b.z >= 4096) {
        static Pool *pool = new Pool; /* its threads outlive everything */
        if (launch.blocks - 1 < (uint64_t)helpers) helpers = (int)launch.blocks - 1;
        if (pool->run(launch, order, helpers)) return;
    }
    std::atomic<uint64_t> next(0);
    work(launch, order, next);
    count_launch(launch, launch.blocks);
}

} // namespace simt
