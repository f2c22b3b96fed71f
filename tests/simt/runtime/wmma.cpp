/* WMMA tiles. A lane loads and stores its own elements, and a product runs when the last lane of the warp asks for it.
 * Element e of lane l is number ((l + rotation) % 32) * elements_per_lane + e of the tile in row order. */
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
        report("MISALIGNED", site, nullptr, "%s: %s takes a tile at %p, which is not 32-byte aligned", who, call,
               memory);
    }
    unsigned step = 16u / (unsigned)tile.element, least = (unsigned)(tile.row_major ? tile.columns : tile.rows);
    if (ld % step || ld < least) {
        describe_thread(*worker, self()->linear, who, sizeof who);
        report("BAD CALL", site, nullptr, "%s: %s takes leading dimension %u: it must be a multiple of %u and at "
               "least %u", who, call, ld, step, least);
    }
}

static size_t offset_of(const simt_tile &tile, int element, unsigned ld) {
    int row = element / tile.columns, column = element % tile.columns;
    size_t index = tile.row_major ? (size_t)row * ld + (size_t)column : (size_t)column * ld + (size_t)row;
    return index * (size_t)tile.element;
}

static void count(const simt_tile &tile, const void *memory, unsigned ld, bool store) {
    if (!SIMT_INSTRUMENTED || !settings().counting || self()->lane != 0) return;
    int rows = tile.row_major ? tile.rows : tile.columns, length = tile.row_major ? tile.columns : tile.rows;
    count_tile(memory, rows, (size_t)(length * tile.element), (size_t)ld * (size_t)tile.element, store, true);
}

/* The whole tile of a fragment kind, from the registers of all lanes. */
static void gather(Rendezvous &r, bool second, int elements, int bytes, float *out) {
    int per_lane = elements / kWarp;
    for (int lane = 0; lane < kWarp; lane++) {
        const simt_product *p = reinterpret_cast<const simt_product *>(r.value[lane]);
        const void *x = second ? p->b : p->a;
        float *to = out + first_element(lane, per_lane);
        for (int e = 0; e < per_lane; e++) {
            uint32_t bits;
            if (bytes == 2) {
                bits = (uint32_t) static_cast<const uint16_t *>(x)[e] << 16;
            } else {
                /* Tensor cores read the upper 19 bits of a float. */
                memcpy(&bits, static_cast<const char *>(x) + 4 * e, 4);
                bits &= ~0x1fffu;
            }
            memcpy(to + e, &bits, 4);
        }
    }
}

void run_product(Worker &w, Rendezvous &r) {
    const simt_product *any = reinterpret_cast<const simt_product *>(r.value[__builtin_ctz(r.arrived)]);
    int m = any->m, n = any->n, k = any->k, per_lane = m * n / kWarp;
    if (r.arrived != 0xffffffffu)
        report("DIVERGENT", r.site, nullptr, "mma_sync needs all 32 lanes, only %08x came", r.arrived);
    float a[32 * 16], b[16 * 32], c[32 * 32];
    gather(r, false, m * k, any->element, a);
    gather(r, true, k * n, any->element, b);
    for (int lane = 0; lane < kWarp; lane++) {
        const simt_product *p = reinterpret_cast<const simt_product *>(r.value[lane]);
        memcpy(c + first_element(lane, per_lane), p->c, sizeof(float) * (size_t)per_lane);
    }
    for (int i = 0; i < m; i++)
        for (int l = 0; l < k; l++) {
            float v = a[i * k + l];
            for (int j = 0; j < n; j++) c[i * n + j] += v * b[l * n + j];
        }
    for (int lane = 0; lane < kWarp; lane++) {
        const simt_product *p = reinterpret_cast<const simt_product *>(r.value[lane]);
        memcpy(p->d, c + first_element(lane, per_lane), sizeof(float) * (size_t)per_lane);
    }
    count_flops(*w.launch, 2ull * (unsigned)m * (unsigned)n * (unsigned)k);
}

} // namespace simt

using namespace simt;

void simt_tile_load(void *elements, const simt_tile *tile, const void *memory, unsigned ld, const char *file, int line) {
    Site site{file, line};
    check_tile(*tile, memory, ld, "load_matrix_sync", site);
    int per_lane = tile->rows * tile->columns / kWarp, first = first_element(self()->lane, per_lane);
    for (int e = 0; e < per_lane; e++) {
        const char *from = static_cast<const char *>(memory) + offset_of(*tile, first + e, ld);
        check_load(from, (size_t)tile->element, site, nullptr);
        memcpy(static_cast<char *>(elements) + e * tile->element, from, (size_t)tile->element);
    }
    count(*tile, memory, ld, false);
}

void simt_tile_store(const void *elements, const simt_tile *tile, void *memory, unsigned ld, const char *file,
                     int line) {
    Site site{file, line};
    check_tile(*tile, memory, ld, "store_matrix_sync", site);
    int per_lane = tile->rows * tile->columns / kWarp, first = first_element(self()->lane, per_lane);
    for (int e = 0; e < per_lane; e++) {
        char *to = static_cast<char *>(memory) + offset_of(*tile, first + e, ld);
        check_store(to, (size_t)tile->element, site, nullptr);
        memcpy(to, static_cast<const char *>(elements) + e * tile->element, (size_t)tile->element);
    }
    count(*tile, memory, ld, true);
}

void simt_tile_product(const simt_product *product, const char *file, int line) {
    simt_collective(SIMT_WARP_MMA, 0xffffffffu, (uint64_t)(uintptr_t)product, file, line);
}
