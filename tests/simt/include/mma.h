/* WMMA for bf16 (m16n16k16, m8n32k16, m32n8k16) and tf32 (m16n16k8), float accumulators. Fragment sizes are
 * those of the real header; which lane holds which element depends on the seed, since CUDA does not say. */
#ifndef SIMT_MMA_H
#define SIMT_MMA_H

#include "cuda_bf16.h"
#include "cuda_runtime.h"

/* One tile access or product, seen by the machine. Rows and columns are those of the tile, not of memory. */
struct simt_tile {
    int rows, columns; /* of the tile */
    int element;       /* bytes: 2 = bf16, 4 = float */
    int row_major;     /* in memory */
};
void simt_tile_load(void *elements, const simt_tile *tile, const void *memory, unsigned ld, const char *file,
                    int line);
void simt_tile_store(const void *elements, const simt_tile *tile, void *memory, unsigned ld, const char *file,
                     int line);
struct simt_product {
    int m, n, k;
    int element; /* of a and b: 2 = bf16, 4 = tf32 held in float */
    const void *a, *b;
    const float *c;
    float *d;
};
void simt_tile_product(const simt_product *product, const char *file, int line);

namespace nvcuda {
namespace wmma {

struct row_major;
struct col_major;
struct matrix_a;
struct matrix_b;
struct accumulator;
namespace precision {
struct tf32;
}
enum layout_t { mem_row_major, mem_col_major };

namespace simt_detail {
template <class Use, int m, int n, int k> struct Extent;
template <int m, int n, int k> struct Extent<matrix_a, m, n, k> {
    static constexpr int rows = m, columns = k;
};
template <int m, int n, int k> struct Extent<matrix_b, m, n, k> {
    static constexpr int rows = k, columns = n;
};
template <int m, int n, int k> struct Extent<accumulator, m, n, k> {
    static constexpr int rows = m, columns = n;
};
template <class T> struct Storage { typedef T type; };
template <> struct Storage<precision::tf32> { typedef float type; };
template <class T, int m, int n, int k> constexpr bool known_shape() {
    if (std::is_same_v<T, precision::tf32>) return m == 16 && n == 16 && k == 8;
    bool k16 = k == 16 && ((m == 16 && n == 16) || (m == 8 && n == 32) || (m == 32 && n == 8));
    if (std::is_same_v<T, float>) return k16 || (m == 16 && n == 16 && k == 8);
    return std::is_same_v<T, __nv_bfloat16> && k16;
}
} // namespace simt_detail

template <class Use, int m, int n, int k, class T, class Layout = void> class fragment {
    static_assert(simt_detail::known_shape<T, m, n, k>(), "no such WMMA shape for this type");

  public:
    typedef T element_type;
    typedef typename simt_detail::Storage<T>::type storage_element_type;
    static constexpr int rows = simt_detail::Extent<Use, m, n, k>::rows;
    static constexpr int columns = simt_detail::Extent<Use, m, n, k>::columns;
    enum { num_elements = rows * columns / 32, num_storage_elements = num_elements };
    storage_element_type x[num_storage_elements];
};

static inline float __float_to_tf32(float v) {
    return __uint_as_float((__float_as_uint(v) + 0x1000u) & ~0x1fffu);
}

template <class Use, int m, int n, int k, class T, class Layout, class V>
void fill_fragment(fragment<Use, m, n, k, T, Layout> &f, const V &value) {
    for (auto &e : f.x) e = value;
}

/* const volatile void * would be the real parameter's element type; only matching types are accepted here. */
template <class Use, int m, int n, int k, class T, class Layout>
void load_matrix_sync(fragment<Use, m, n, k, T, Layout> &f,
                      const typename simt_detail::Storage<T>::type *memory, unsigned ld, SIMT_SITE) {
    typedef fragment<Use, m, n, k, T, Layout> F;
    simt_tile tile = {F::rows, F::columns, (int)sizeof f.x[0], std::is_same_v<Layout, row_major>};
    simt_tile_load(f.x, &tile, memory, ld, SIMT_PLACE);
}
template <int m, int n, int k>
void load_matrix_sync(fragment<accumulator, m, n, k, float> &f, const float *memory, unsigned ld,
                      layout_t layout, SIMT_SITE) {
    simt_tile tile = {m, n, 4, layout == mem_row_major};
    simt_tile_load(f.x, &tile, memory, ld, SIMT_PLACE);
}
template <int m, int n, int k>
void store_matrix_sync(float *memory, const fragment<accumulator, m, n, k, float> &f, unsigned ld,
                       layout_t layout, SIMT_SITE) {
    simt_tile tile = {m, n, 4, layout == mem_row_major};
    simt_tile_store(f.x, &tile, memory, ld, SIMT_PLACE);
}
template <int m, int n, int k, class T, class LA, class LB>
void mma_sync(fragment<accumulator, m, n, k, float> &d, const fragment<matrix_a, m, n, k, T, LA> &a,
              const fragment<matrix_b, m, n, k, T, LB> &b, const fragment<accumulator, m, n, k, float> &c,
              SIMT_SITE) {
    simt_product product = {m, n, k, (int)sizeof a.x[0], a.x, b.x, c.x, d.x};
    simt_tile_product(&product, SIMT_PLACE);
}

} // namespace wmma
} // namespace nvcuda

#endif
