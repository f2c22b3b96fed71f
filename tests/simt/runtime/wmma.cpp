/* WMMA tiles. A lane loads and stores its own elements, and a product runs when the last lane of the warp
 * asks for it. Element e of lane l is number ((l + rotation) % 32) * elements_per_lane + e of the tile in row
 * order. */
#include <cstring>

#include "machine.h"
#include "mma.h"
#include "mma_run.h"

namespace simt {

static int first_element(int lane, int per_lane) {
    return (int)((unsigned)lane + (unsigned)(settings().seed % 32) * 5u) % kWarp * per_lane;
}

static void check_tile(const simt_tile &tile, const void *memory, unsigned ld, const char *call, Site site) {
    char who[96];
    if ((uintptr_t)memory % 32) {
        describe_thread(*worker, self()->linear, who, sizeof who);
        report("MISALIGNED", site, nullptr, "%s: %s takes a tile at %p, which is not 32-byte aligned", who,
               call, memory);
    }
    unsigned step = tile.element == 2 ? 8 : 4, least = (unsigned)(tile.row_major ? tile.columns : tile.rows);
    if ((ld & (step - 1)) || ld < least) {
        describe_thread(*worker, self()->linear, who, sizeof who);
        report("BAD CALL", site, nullptr,
               "%s: %s takes leading dimension %u: it must be a multiple of %u and at "
               "least %u",
               who, call, ld, step, least);
    }
}

static size_t offset_of(const simt_tile &tile, int element, unsigned ld) {
    int shift = __builtin_ctz((unsigned)tile.columns); /* extents are powers of two */
    int row = element >> shift, column = element & (tile.columns - 1);
    size_t index = tile.row_major ? (size_t)row * ld + (size_t)column : (size_t)column * ld + (size_t)row;
    return index * (size_t)tile.element;
}

static void count(const simt_tile &tile, const void *memory, unsigned ld, bool store) {
    if (!SIMT_INSTRUMENTED || !settings().counting || self()->lane != 0) return;
    int rows = tile.row_major ? tile.rows : tile.columns, length = tile.row_major ? tile.columns : tile.rows;
    count_tile(memory, rows, (size_t)(length * tile.element), (size_t)ld * (size_t)tile.element, store);
}

/* The whole tile of a fragment kind, from the registers of all lanes. Tensor cores read the upper 19 bits of
 * a float. */
template <int elements, int bytes> static void gather(const Rendezvous &r, bool second, float *out) {
    constexpr int per_lane = elements / kWarp;
    for (int lane = 0; lane < kWarp; lane++) {
        const simt_product *p = reinterpret_cast<const simt_product *>(r.value[lane]);
        const char *x = static_cast<const char *>(second ? p->b : p->a);
        float *to = out + first_element(lane, per_lane);
        uint16_t narrow[per_lane];
        uint32_t wide[per_lane];
        memcpy(bytes == 2 ? (void *)narrow : wide, x, (size_t)(per_lane * bytes));
        for (int e = 0; e < per_lane; e++)
            wide[e] = bytes == 2 ? (uint32_t)narrow[e] << 16 : wide[e] & ~0x1fffu;
        memcpy(to, wide, sizeof wide);
    }
}

template <int m, int n, int k, int bytes> static void product(const Rendezvous &r) {
    constexpr int per_lane = m * n / kWarp;
    typedef float Eight __attribute__((vector_size(32)));
    alignas(32) float a[m * k], b[k * n], c[m * n];
    gather<m * k, bytes>(r, false, a);
    gather<k * n, bytes>(r, true, b);
    for (int lane = 0; lane < kWarp; lane++) {
        const simt_product *p = reinterpret_cast<const simt_product *>(r.value[lane]);
        memcpy(c + first_element(lane, per_lane), p->c, sizeof(float) * per_lane);
    }
    /* Some rows at a time stay in registers. */
    constexpr int wide = n / 8, rows = 8 / wide;
    for (int i = 0; i < m; i += rows) {
        Eight row[8], *at = reinterpret_cast<Eight *>(c + i * n);
#pragma GCC unroll 8
        for (int j = 0; j < 8; j++) row[j] = at[j];
        for (int l = 0; l < k; l++) {
            const Eight *line = reinterpret_cast<const Eight *>(b + l * n);
#pragma GCC unroll 8
            for (int j = 0; j < 8; j++) row[j] += a[(i + j / wide) * k + l] * line[j % wide];
        }
#pragma GCC unroll 8
        for (int j = 0; j < 8; j++) at[j] = row[j];
    }
    for (int lane = 0; lane < kWarp; lane++) {
        const simt_product *p = reinterpret_cast<const simt_product *>(r.value[lane]);
        memcpy(p->d, c + first_element(lane, per_lane), sizeof(float) * per_lane);
    }
}

void run_product(Worker &, Rendezvous &r) {
    const simt_product *any = reinterpret_cast<const simt_product *>(r.value[__builtin_ctz(r.arrived)]);
    if (r.arrived != 0xffffffffu)
        report("DIVERGENT", r.site, nullptr, "mma_sync needs all 32 lanes, only %08x came", r.arrived);
    if (any->element == 4)
        product<16, 16, 8, 4>(r);
    else if (any->m == 16)
        product<16, 16, 16, 2>(r);
    else if (any->m == 8)
        product<8, 32, 16, 2>(r);
    else
        product<32, 8, 16, 2>(r);
    count_flops(any->element == 2, 2ull * (unsigned)any->m * (unsigned)any->n * (unsigned)any->k);
}

/* Elements that lie side by side in memory are moved together. */
static int run_length(const simt_tile &tile, int per_lane) {
    if (!tile.row_major) return 1;
    return per_lane < tile.columns ? per_lane : tile.columns;
}

} // namespace simt

using namespace simt;

void simt_tile_load(void *elements, const simt_tile *tile, const void *memory, unsigned ld, const char *file,
                    int line) {
    Site site{file, line};
    check_tile(*tile, memory, ld, "load_matrix_sync", site);
    int per_lane = tile->rows * tile->columns / kWarp, first = first_element(self()->lane, per_lane);
    int run = run_length(*tile, per_lane);
    size_t bytes = (size_t)(run * tile->element);
    for (int e = 0; e < per_lane; e += run) {
        const char *from = static_cast<const char *>(memory) + offset_of(*tile, first + e, ld);
        check_load(from, bytes, site, nullptr);
        memcpy(static_cast<char *>(elements) + e * tile->element, from, bytes);
    }
    count(*tile, memory, ld, false);
}

void simt_tile_store(const void *elements, const simt_tile *tile, void *memory, unsigned ld, const char *file,
                     int line) {
    Site site{file, line};
    check_tile(*tile, memory, ld, "store_matrix_sync", site);
    int per_lane = tile->rows * tile->columns / kWarp, first = first_element(self()->lane, per_lane);
    int run = run_length(*tile, per_lane);
    size_t bytes = (size_t)(run * tile->element);
    for (int e = 0; e < per_lane; e += run) {
        char *to = static_cast<char *>(memory) + offset_of(*tile, first + e, ld);
        check_store(to, bytes, site, nullptr);
        memcpy(to, static_cast<const char *>(elements) + e * tile->element, bytes);
    }
    count(*tile, memory, ld, true);
}

void simt_tile_product(const simt_product *product, const char *file, int line) {
    simt_collective(SIMT_WARP_MMA, 0xffffffffu, (uint64_t)(uintptr_t)product, file, line);
}
