#include "launch_log.h"

#include <cxxabi.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <string>

namespace simt {

static std::map<std::string, simt_counters> kernels; /* by name as launched */
struct Record {
    std::string name;
    simt_operation operation;
};
static std::deque<Record> records;

static void add(simt_counters &to, const simt_counters &from) {
    static_assert(sizeof from % sizeof(uint64_t) == 0, "counters are numbers of one kind");
    uint64_t *into = reinterpret_cast<uint64_t *>(&to);
    const uint64_t *more = reinterpret_cast<const uint64_t *>(&from);
    for (size_t i = 0; i < sizeof from / sizeof *into; i++) into[i] += more[i];
}

std::string readable_name(const void *function) {
    const char *symbol = function_name(function);
    if (!symbol) return "?";
    char *text = abi::__cxa_demangle(symbol, nullptr, nullptr, nullptr);
    std::string name = text ? text : symbol;
    free(text);
    if (name.compare(0, 5, "void ") == 0) name.erase(0, 5);
    name.erase(std::min(name.find('('), name.size()));
    for (size_t at; (at = name.find("__nv_bfloat16")) != std::string::npos;) name.replace(at, 13, "bf16");
    return name;
}

static void append(std::string name, const simt_operation &operation) {
    records.push_back(Record{std::move(name), operation});
    records.back().operation.name = records.back().name.c_str();
}

void log_launch(const Launch &launch, uint64_t blocks_run, const simt_counters &counters) {
    const LaunchRequest &r = launch.request;
    add(kernels[r.kernel], counters);
    simt_operation o = {};
    o.grid[0] = r.grid.x, o.grid[1] = r.grid.y, o.grid[2] = r.grid.z;
    o.threads = r.block.x * r.block.y * r.block.z;
    o.dynamic_shared = r.shared;
    o.blocks_run = blocks_run;
    o.counters = counters;
    append(readable_name(r.function), o);
}

void log_operation(const char *what, uint64_t load_bytes, uint64_t store_bytes, uint64_t fma_flops,
                   uint64_t tf32_flops, uint64_t bf16_flops) {
    if (!settings().counting) return;
    simt_operation o = {};
    simt_counters &c = o.counters;
    c.launches = 1;
    c.load_bytes = load_bytes;
    c.store_bytes = store_bytes;
    c.load_sectors = c.load_ideal_sectors = c.load_memory_sectors = (load_bytes + 31) / 32;
    c.store_sectors = c.store_ideal_sectors = c.store_memory_sectors = (store_bytes + 31) / 32;
    c.fma_flops = fma_flops;
    c.tf32_flops = tf32_flops;
    c.bf16_flops = bf16_flops;
    append(what, o);
}

} // namespace simt

using namespace simt;

extern "C" {

void simt_count(int on) {
    settings().counting = on != 0;
}

void simt_sample(uint64_t blocks) {
    settings().sample = SIMT_INSTRUMENTED ? blocks : 0;
}

void simt_counters_reset(void) {
    kernels.clear();
    records.clear();
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

size_t simt_operations_counted(void) {
    return records.size();
}

const simt_operation *simt_operation_at(size_t index) {
    return index < records.size() ? &records[index].operation : nullptr;
}

void simt_counters_print(void) {
    for (auto &[name, c] : kernels) {
        auto ratio = [](uint64_t a, uint64_t b) { return b ? (double)a / (double)b : 0.0; };
        auto number = [](uint64_t n) { return (unsigned long long)n; };
        fprintf(stderr,
                "simt: count %s: launches %llu blocks %llu barriers/block %.1f | loads %llu B, %llu sectors, "
                "%.2f of ideal, %llu of memory | stores %llu B, %llu sectors, %.2f of ideal | shared %llu "
                "requests, %.2f passes of ideal | atomics %llu | wmma %llu bf16, %llu tf32 flop\n",
                name.c_str(), number(c.launches), number(c.blocks), ratio(c.barriers, c.blocks),
                number(c.load_bytes), number(c.load_sectors), ratio(c.load_sectors, c.load_ideal_sectors),
                number(c.load_memory_sectors), number(c.store_bytes), number(c.store_sectors),
                ratio(c.store_sectors, c.store_ideal_sectors), number(c.shared_requests),
                ratio(c.shared_wavefronts, c.shared_ideal_wavefronts), number(c.atomics),
                number(c.bf16_flops), number(c.tf32_flops));
    }
}

} // extern "C"
