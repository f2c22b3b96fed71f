/* Counts of the instrumented build: how warps use memory. The lanes of a warp that execute the same
 * instruction for the n-th time between two barriers form one request. One launch runs at a time, on one
 * thread. */
#include <algorithm>
#include <cstring>
#include <string>
#include <unordered_map>

#include "launch_log.h"
#include "machine.h"
#if SIMT_INSTRUMENTED
#include "memory.h"
#include "shadow.h"

namespace simt {

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

/* A sector of device memory that the launch has touched: by which block last, and whether by others too. */
struct Sector {
    uint64_t block;
    bool several;
};
static std::unordered_map<uintptr_t, Sector> loaded, stored;
static simt_counters now; /* of the blocks of this launch that have run */

static void touch_sector(uintptr_t sector, bool store) {
    uint64_t block = worker->block_linear;
    if (!store) {
        auto own = stored.find(sector);
        if (own != stored.end() && own->second.block == block) return; /* comes back from a cache */
    }
    auto [at, fresh] = (store ? stored : loaded).try_emplace(sector, Sector{block, false});
    if (!fresh && at->second.block != block) at->second = Sector{block, true};
}

/* 32-byte sectors that a request touches, and the fewest that could hold as many distinct bytes. */
static void count_sectors(std::vector<uintptr_t> &starts, size_t bytes, bool store) {
    uint64_t *sectors = store ? &now.store_sectors : &now.load_sectors;
    std::sort(starts.begin(), starts.end());
    starts.erase(std::unique(starts.begin(), starts.end()), starts.end());
    *(store ? &now.store_ideal_sectors : &now.load_ideal_sectors) += (starts.size() * bytes + 31) / 32;
    uintptr_t last = 0;
    for (uintptr_t start : starts)
        for (uintptr_t s = start / 32; s <= (start + bytes - 1) / 32; s++)
            if (s != last) {
                ++*sectors;
                touch_sector(s, store);
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
static void count_shared(const Request &r, size_t bytes) {
    int group = bytes <= 4 ? 32 : bytes == 8 ? 16 : 8;
    now.shared_requests++;
    for (int first = 0; first < kWarp; first += group) {
        std::vector<uintptr_t> words;
        for (int lane = first; lane < first + group; lane++)
            if (r.lanes >> lane & 1)
                for (uintptr_t b = r.address[lane] / 4; b <= (r.address[lane] + bytes - 1) / 4; b++)
                    words.push_back(b);
        if (words.empty()) continue;
        now.shared_wavefronts += passes(words);
        now.shared_ideal_wavefronts++;
    }
}

static void count_global(const Request &r, size_t bytes, bool store) {
    std::vector<uintptr_t> starts;
    for (int lane = 0; lane < kWarp; lane++)
        if (r.lanes >> lane & 1) starts.push_back(r.address[lane]);
    (store ? now.store_requests : now.load_requests)++;
    (store ? now.store_bytes : now.load_bytes) += starts.size() * bytes;
    count_sectors(starts, bytes, store);
}

static void flush() {
    if (open_requests.empty()) return;
    for (auto &[key, i] : open_requests)
        for (const Request &r : i.requests) {
            if (i.kind == Access::Atomic)
                now.atomics += (uint64_t)__builtin_popcount(r.lanes);
            else if (i.shared)
                count_shared(r, i.bytes);
            else
                count_global(r, i.bytes, i.kind == Access::Store);
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

/* cp.async is one instruction at each place in the source. */
void count_copy(const void *dst, size_t written, const void *src, size_t read, Site site) {
    if (!settings().counting) return;
    uintptr_t place = (uintptr_t)site.file * 8192 + (uintptr_t)site.line * 2;
    if (read)
        count_access(*worker, *self(), reinterpret_cast<void *>(place), (uintptr_t)src, read, Access::Load,
                     false);
    count_access(*worker, *self(), reinterpret_cast<void *>(place + 1), (uintptr_t)dst, written,
                 Access::Store, true);
}

/* A WMMA tile in shared memory. Operands as ldmatrix moves them: 8 rows of 16 bytes a pass. Results as half
 * warps store them: 4 rows of 32 bytes a pass. */
void count_tile(const void *memory, int rows, size_t row_bytes, size_t pitch, bool store) {
    uintptr_t base = (uintptr_t)memory;
    if (is_device_address(memory)) {
        std::vector<uintptr_t> starts;
        for (int row = 0; row < rows; row++)
            for (size_t b = 0; b < row_bytes; b += 16) starts.push_back(base + (size_t)row * pitch + b);
        (store ? now.store_requests : now.load_requests)++;
        (store ? now.store_bytes : now.load_bytes) += (uint64_t)rows * row_bytes;
        count_sectors(starts, 16, store);
        return;
    }
    now.shared_requests++;
    const int group = store ? 4 : 8, piece = store ? 32 : 16;
    for (int first = 0; first < rows; first += group)
        for (size_t b = 0; b < row_bytes; b += (size_t)piece) {
            std::vector<uintptr_t> words;
            for (int row = first; row < std::min(first + group, rows); row++)
                for (int word = 0; word < piece / 4; word++)
                    words.push_back((base + (size_t)row * pitch + b) / 4 + (size_t)word);
            now.shared_wavefronts += passes(words);
            now.shared_ideal_wavefronts++;
        }
}

void count_barrier() {
    if (!settings().counting) return;
    now.barriers++;
    flush();
}

void count_block() {
    if (settings().counting) flush();
}

void count_flops(bool narrow, uint64_t flops) {
    if (settings().counting) (narrow ? now.bf16_flops : now.tf32_flops) += flops;
}

/* What two of the blocks that ran have both touched is taken to be common to all: it comes from the cache but
 * once. What one alone has touched, each block of the grid has of its own, as far as the allocation goes. */
static uint64_t memory_sectors(const std::unordered_map<uintptr_t, Sector> &sectors, double factor) {
    struct Share {
        uint64_t common = 0, own = 0;
    };
    std::unordered_map<const Allocation *, Share> shares;
    for (const auto &[number, sector] : sectors) {
        Share &share = shares[allocation_at(number * 32)];
        (sector.several ? share.common : share.own)++;
    }
    uint64_t all = 0;
    for (const auto &[allocation, share] : shares) {
        uint64_t estimate = share.common + (uint64_t)((double)share.own * factor + 0.5);
        all += allocation ? std::min<uint64_t>(estimate, (allocation->size + 31) / 32) : estimate;
    }
    return all;
}

/* In samples, where values mean nothing: a launch like another one but for where its tensors lie counts the
 * same. */
struct Known {
    uint64_t blocks_run;
    simt_counters counters;
};
static std::unordered_map<std::string, Known> known;

/* The launch as bytes; in its arguments, each pointer into device memory is replaced by which one it is and
 * how it is aligned. */
static std::string key_of(const Launch &launch) {
    const LaunchRequest &r = launch.request;
    std::vector<uint64_t> words(r.arguments_size / 8), pointers;
    memcpy(words.data(), r.arguments.get(), words.size() * 8);
    for (uint64_t &word : words) {
        if (!is_device_address(reinterpret_cast<void *>(word))) continue;
        size_t which = (size_t)(std::find(pointers.begin(), pointers.end(), word) - pointers.begin());
        if (which == pointers.size()) pointers.push_back(word);
        word = (uint64_t)1 << 63 | which << 8 | word % 256;
    }
    for (uint64_t more : {(uint64_t)(uintptr_t)r.function, (uint64_t)r.grid.x, (uint64_t)r.grid.y,
                          (uint64_t)r.grid.z, (uint64_t)r.block.x, (uint64_t)r.block.y, (uint64_t)r.block.z,
                          (uint64_t)r.shared, r.fma_flops, settings().sample})
        words.push_back(more);
    return std::string(reinterpret_cast<const char *>(words.data()), words.size() * 8);
}

bool count_again(const Launch &launch) {
    auto found = known.find(key_of(launch));
    if (found == known.end()) return false;
    log_launch(launch, found->second.blocks_run, found->second.counters);
    return true;
}

void count_launch(const Launch &launch, uint64_t blocks_run) {
    if (!settings().counting) return;
    const dim3 &b = launch.request.block;
    double factor = (double)launch.blocks / (double)blocks_run;
    now.load_memory_sectors = memory_sectors(loaded, factor);
    now.store_memory_sectors = memory_sectors(stored, factor);
    for (uint64_t *count :
         {&now.barriers, &now.load_requests, &now.load_bytes, &now.load_sectors, &now.load_ideal_sectors,
          &now.store_requests, &now.store_bytes, &now.store_sectors, &now.store_ideal_sectors,
          &now.shared_requests, &now.shared_wavefronts, &now.shared_ideal_wavefronts, &now.atomics,
          &now.bf16_flops, &now.tf32_flops})
        *count = (uint64_t)((double)*count * factor + 0.5);
    now.launches = 1;
    now.blocks = launch.blocks;
    now.threads = launch.blocks * b.x * b.y * b.z;
    now.fma_flops = launch.request.fma_flops;
    log_launch(launch, blocks_run, now);
    if (settings().sample) known[key_of(launch)] = Known{blocks_run, now};
    now = simt_counters{};
    loaded.clear();
    stored.clear();
}

} // namespace simt

#endif
