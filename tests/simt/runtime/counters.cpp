/* Counts of the instrumented build: how warps use memory. The lanes of a warp that execute the same
 * instruction for the n-th time between two barriers form one request. */
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <map>
#include <string>
#include <unordered_map>

#include "machine.h"
#if SIMT_INSTRUMENTED
#include "memory.h"
#include "shadow.h"
#endif

namespace simt {

static std::map<std::string, simt_counters> kernels;

#if SIMT_INSTRUMENTED

struct Request {
    unsigned lanes = 0;
    uintptr_t address[kWarp];
};
/* All requests of one instruction and warp since the last barrier. */
struct Instruction {
    size_t bytes;
    Access kind;
    bool shared;
    int seen[kWarp] = {};
    std::vector<Request> requests;
};

static std::unordered_map<uint64_t, Instruction> open_requests;

static simt_counters &counters(const Worker &w) {
    return kernels[w.launch->request.kernel];
}

/* 32-byte sectors that a request touches, and the fewest that could hold as many distinct bytes. */
static void count_sectors(std::vector<uintptr_t> &starts, size_t bytes, uint64_t *sectors, uint64_t *ideal) {
    std::sort(starts.begin(), starts.end());
    starts.erase(std::unique(starts.begin(), starts.end()), starts.end());
    *ideal += (starts.size() * bytes + 31) / 32;
    uintptr_t last = 0;
    for (uintptr_t start : starts)
        for (uintptr_t s = start / 32; s <= (start + bytes - 1) / 32; s++)
            if (s != last) {
                ++*sectors;
                last = s;
            }
}

/* Passes over the 32 banks: a word is served to everybody at once, two words of a bank one after the other.
 */
static unsigned passes(std::vector<uintptr_t> &words) {
    std::sort(words.begin(), words.end());
    words.erase(std::unique(words.begin(), words.end()), words.end());
    unsigned count[32] = {}, most = 0;
    for (uintptr_t word : words) most = std::max(most, ++count[word % 32]);
    return most;
}

/* 8-byte accesses are served by half warps, 16-byte ones by quarter warps. */
static void count_shared(simt_counters &c, const Request &r, size_t bytes) {
    int group = bytes <= 4 ? 32 : bytes == 8 ? 16 : 8;
    c.shared_requests++;
    for (int first = 0; first < kWarp; first += group) {
        std::vector<uintptr_t> words;
        for (int lane = first; lane < first + group; lane++)
            if (r.lanes >> lane & 1)
                for (uintptr_t b = r.address[lane] / 4; b <= (r.address[lane] + bytes - 1) / 4; b++)
                    words.push_back(b);
        if (words.empty()) continue;
        c.shared_wavefronts += passes(words);
        c.shared_ideal_wavefronts++;
    }
}

static void count_global(simt_counters &c, const Request &r, size_t bytes, bool store) {
    std::vector<uintptr_t> starts;
    for (int lane = 0; lane < kWarp; lane++)
        if (r.lanes >> lane & 1) starts.push_back(r.address[lane]);
    (store ? c.store_requests : c.load_requests)++;
    (store ? c.store_bytes : c.load_bytes) += starts.size() * bytes;
    count_sectors(starts, bytes, store ? &c.store_sectors : &c.load_sectors,
                  store ? &c.store_ideal_sectors : &c.load_ideal_sectors);
}

static void flush(Worker &w) {
    if (open_requests.empty()) return;
    simt_counters &c = counters(w);
    for (auto &[key, i] : open_requests)
        for (const Request &r : i.requests) {
            if (i.kind == Access::Atomic)
                c.atomics += (uint64_t)__builtin_popcount(r.lanes);
            else if (i.shared)
                count_shared(c, r, i.bytes);
            else
                count_global(c, r, i.bytes, i.kind == Access::Store);
        }
    open_requests.clear();
}

void count_access(Worker &w, Lane &me, const void *pc, uintptr_t address, size_t bytes, Access kind,
                  bool shared) {
    (void)w;
    if (!pc) return; /* tiles are counted as a whole, by count_tile */
    Instruction &i = open_requests[(uint64_t)(uintptr_t)pc * kMaxWarps + (uint64_t)me.warp];
    i.bytes = bytes;
    i.kind = kind;
    i.shared = shared;
    size_t n = (size_t)i.seen[me.lane]++;
    if (i.requests.size() <= n) i.requests.resize(n + 1);
    i.requests[n].lanes |= 1u << me.lane;
    i.requests[n].address[me.lane] = address;
}

/* A WMMA tile, as ldmatrix would move it: 8 rows of 16 bytes at a time. */
void count_tile(const void *memory, int rows, size_t row_bytes, size_t pitch, bool store, bool) {
    Worker &w = *worker;
    simt_counters &c = counters(w);
    uintptr_t base = (uintptr_t)memory;
    if (is_device_address(memory)) {
        std::vector<uintptr_t> starts;
        for (int row = 0; row < rows; row++)
            for (size_t b = 0; b < row_bytes; b += 16) starts.push_back(base + (size_t)row * pitch + b);
        (store ? c.store_requests : c.load_requests)++;
        (store ? c.store_bytes : c.load_bytes) += (uint64_t)rows * row_bytes;
        count_sectors(starts, 16, store ? &c.store_sectors : &c.load_sectors,
                      store ? &c.store_ideal_sectors : &c.load_ideal_sectors);
        return;
    }
    c.shared_requests++;
    for (int first = 0; first < rows; first += 8)
        for (size_t b = 0; b < row_bytes; b += 16) {
            std::vector<uintptr_t> words;
            for (int row = first; row < std::min(first + 8, rows); row++)
                for (int word = 0; word < 4; word++)
                    words.push_back((base + (size_t)row * pitch + b) / 4 + (size_t)word);
            c.shared_wavefronts += passes(words);
            c.shared_ideal_wavefronts++;
        }
}

void count_barrier(Worker &w) {
    if (!settings().counting) return;
    counters(w).barriers++;
    flush(w);
}

void count_block(Worker &w) {
    if (settings().counting) flush(w);
}

void count_launch(const Launch &launch) {
    if (!settings().counting) return;
    simt_counters &c = kernels[launch.request.kernel];
    const dim3 &b = launch.request.block;
    c.launches++;
    c.blocks += launch.blocks;
    c.threads += launch.blocks * b.x * b.y * b.z;
}

void count_flops(const Launch &launch, uint64_t flops) {
    if (settings().counting) kernels[launch.request.kernel].wmma_flops += flops;
}

#endif

} // namespace simt

using namespace simt;

extern "C" {

void simt_count(int on) {
    settings().counting = on != 0;
}

void simt_counters_reset(void) {
    kernels.clear();
}

int simt_counters_get(const char *kernel, simt_counters *out) {
    size_t length = strlen(kernel);
    for (auto &[name, c] : kernels) {
        const char *text = name.c_str() + (name[0] == '(');
        if (strncmp(text, kernel, length) == 0) {
            *out = c;
            return 1;
        }
    }
    return 0;
}

void simt_counters_print(void) {
    for (auto &[name, c] : kernels) {
        auto ratio = [](uint64_t a, uint64_t b) { return b ? (double)a / (double)b : 0.0; };
        fprintf(stderr,
                "simt: count %s: launches %llu blocks %llu barriers/block %.1f | loads %llu B, %llu sectors, "
                "%.2f of "
                "ideal | stores %llu B, %llu sectors, %.2f of ideal | shared %llu requests, %.2f passes of "
                "ideal | "
                "atomics %llu | wmma %llu flop\n",
                name.c_str(), (unsigned long long)c.launches, (unsigned long long)c.blocks,
                ratio(c.barriers, c.blocks), (unsigned long long)c.load_bytes,
                (unsigned long long)c.load_sectors, ratio(c.load_sectors, c.load_ideal_sectors),
                (unsigned long long)c.store_bytes, (unsigned long long)c.store_sectors,
                ratio(c.store_sectors, c.store_ideal_sectors), (unsigned long long)c.shared_requests,
                ratio(c.shared_wavefronts, c.shared_ideal_wavefronts), (unsigned long long)c.atomics,
                (unsigned long long)c.wmma_flops);
    }
}

} // extern "C"
