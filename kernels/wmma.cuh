/* Convolutions as products of tensor-core tiles: fragments, tiles of pixels in shared memory, weights in
 * shared memory, and the loads that fill both.
 *
 * A tile of pixels is flattened: output pixel (h, w) of a tile has position q = h * pitch + w, where pitch is
 * wider than the row, and input pixel (h + kh, w + kw) stands at q + tap_offset(kh, kw). Sixteen consecutive
 * positions therefore read, for each tap, sixteen pixels of constant stride, whatever the width. Positions
 * beyond the end of a row compute something that nobody stores.
 *
 *   stride 1   one plane of rows of width + 2 pixels, halo included
 *   stride 2   four planes, by parity of input row and column, of rows of out_width + 1 pixels
 *   WMMA_UP    backward data of stride 2: one plane of rows of in_width + 1 pixels; a position stands for an
 *              input pixel, and the four output pixels that it makes are computed one parity after the other
 *
 * A tile is a band of rows of one image, or several whole images, between which stride 1 shares the row of
 * zeros.
 *
 * Banks: WMMA wants tiles at multiples of 32 bytes. Pixels and rows of weights are therefore an odd number of
 * 32 bytes long: of 8 rows, which an ldmatrix moves as 16 bytes each, two meet in a bank, the fewest possible
 * under that alignment. */
#ifndef TN_KERNELS_WMMA_CUH
#define TN_KERNELS_WMMA_CUH

#include <cuda_pipeline.h>
#include <mma.h>

#include "kernels/device.cuh"

namespace wmma = nvcuda::wmma;

/* ---- operands ---- */

/* What is multiplied: elements as they stand in shared memory, and the depth of a fragment. */
struct in_bf16 {
    typedef bf16 element;
    typedef bf16 precision;
    static constexpr int K = 16;
};

struct in_tf32 {
    typedef float element;
    typedef wmma::precision::tf32 precision;
    static constexpr int K = 8;
};

template <typename T> struct fragments {
    typedef wmma::fragment<wmma::matrix_a, 16, 16, T::K, typename T::precision, wmma::row_major> a;
    typedef wmma::fragment<wmma::matrix_a, 16, 16, T::K, typename T::precision, wmma::col_major> a_transposed;
    typedef wmma::fragment<wmma::matrix_b, 16, 16, T::K, typename T::precision, wmma::row_major> b;
    typedef wmma::fragment<wmma::accumulator, 16, 16, T::K, float> sums;
};

__device__ __forceinline__ float rounded(in_tf32, float v) {
    return wmma::__float_to_tf32(v);
}

__device__ __forceinline__ bf16 rounded(in_bf16, bf16 v) {
    return v;
}

/* A fragment from shared memory, in the precision of the product. */
template <typename T, typename F>
__device__ __forceinline__ void load_fragment(F &fragment, const typename T::element *from, int pitch) {
    wmma::load_matrix_sync(fragment, from, (unsigned)pitch);
#pragma unroll
    for (int i = 0; i < (int)fragment.num_elements; i++) fragment.x[i] = rounded(T(), fragment.x[i]);
}

/* Elements from one pixel, or row of weights, to the next: an odd number of 32 bytes. */
template <typename E> __host__ __device__ constexpr int wmma_pitch(int elements) {
    return ((elements * (int)sizeof(E) + 31) / 32 | 1) * (32 / (int)sizeof(E));
}

/* Elements of 16 bytes. */
template <typename E> __host__ __device__ constexpr int elements16() {
    return 16 / (int)sizeof(E);
}

/* ---- tiles of pixels ---- */

/* A stride: two rows and columns of output for each of the input; backward data of stride 2. */
#define WMMA_UP 0

typedef struct wmma_tiles {
    int rows, in_height, in_width, in_channels, out_height, out_width, out_channels, stride;
    int grid_height, grid_width; /* of positions that count: the output, or with WMMA_UP the input */
    int pitch;                   /* positions of a row */
    int band;                    /* rows of a tile, of each of its images */
    int images;                  /* of a tile; 1 where bands are less than whole images */
    int bands;                   /* of an image */
    int count;                   /* of tiles */
    int period;                  /* rows of a plane from one image of the tile to the next */
    int lines;                   /* rows of a plane */
    int plane;                   /* pixels of a plane; stride 2 has four */
    int positions;               /* that are computed, in whole fragments */
    int pixels;                  /* of shared memory: planes, and what computed positions read beyond them */
} wmma_tiles;

/* Tiles of `band` rows, or of `images` whole images, with positions a multiple of `multiple`. */
static inline wmma_tiles wmma_tiles_of(const tn_conv_shape *s, int band, int images, int multiple) {
    const bool one = s->stride == 1, up = s->stride == WMMA_UP;
    wmma_tiles t = {};
    t.rows = s->rows;
    t.in_height = s->in_height;
    t.in_width = s->in_width;
    t.in_channels = s->in_channels;
    t.out_height = s->out_height;
    t.out_width = s->out_width;
    t.out_channels = s->out_channels;
    t.stride = s->stride;
    t.grid_height = up ? s->in_height : s->out_height;
    t.grid_width = up ? s->in_width : s->out_width;
    t.pitch = t.grid_width + (one ? 2 : 1);
    t.band = band;
    t.images = images;
    t.bands = (t.grid_height + band - 1) / band;
    t.count = t.bands * ((s->rows + images - 1) / images);
    t.period = band + (one && images == 1 ? 2 : 1);
    t.lines = images * t.period + (one && images > 1 ? 1 : 0);
    const int last = ((images - 1) * t.period + band - 1) * t.pitch + t.grid_width;
    t.positions = (last + multiple - 1) / multiple * multiple;
    const int reach = t.positions + (one ? 2 * t.pitch + 2 : t.pitch + 1);
    t.plane = t.lines * t.pitch > reach ? t.lines * t.pitch : reach;
    t.pixels = s->stride == 2 ? 4 * t.plane : t.plane;
    return t;
}

/* Pixels from position q to what tap (kh, kw) reads. */
__device__ __forceinline__ int tap_offset(const wmma_tiles &t, int kh, int kw) {
    if (t.stride == 1) return kh * t.pitch + kw;
    const int offset = (kh >> 1) * t.pitch + (kw >> 1);
    return t.stride == 2 ? offset + ((kh & 1) * 2 + (kw & 1)) * t.plane : offset;
}

/* With WMMA_UP, the outputs that one input pixel makes, by parity of row and column: (0, 0) meets the middle
 * tap, those of odd rows taps 0 and 2. Other strides have one class, which meets all taps. */
typedef struct wmma_class {
    int row, column; /* -1: all taps */
} wmma_class;

__device__ __forceinline__ wmma_class class_of(const wmma_tiles &t, int number) {
    wmma_class c = {-1, -1};
    if (t.stride == WMMA_UP) {
        c.row = number >> 1;
        c.column = number & 1;
    }
    return c;
}

__device__ __forceinline__ bool meets(wmma_class c, int kh, int kw) {
    return (kh & 1) != c.row && (kw & 1) != c.column;
}

/* The first image and row of a tile. */
__device__ __forceinline__ int first_image(const wmma_tiles &t, int tile) {
    return tile / t.bands * t.images;
}

__device__ __forceinline__ int first_row(const wmma_tiles &t, int tile) {
    return tile % t.bands * t.band;
}

/* Index of the output pixel of position q of a tile, in the whole tensor; -1: there is none. */
__device__ __forceinline__ int pixel_at(const wmma_tiles &t, int tile, int q, wmma_class c) {
    const int line = q / t.pitch, image = line / t.period, row = line - image * t.period,
              n = first_image(t, tile) + image;
    int w = q - line * t.pitch, h = first_row(t, tile) + row;
    bool inside = w < t.grid_width && row < t.band && h < t.grid_height && image < t.images && n < t.rows;
    if (t.stride == WMMA_UP) {
        h = 2 * h + c.row;
        w = 2 * w + c.column;
        inside = inside && h < t.out_height && w < t.out_width;
    }
    return inside ? (n * t.out_height + h) * t.out_width + w : -1;
}

/* ---- loads; each thread's own are complete after wait_loads, all threads' after a barrier ---- */

/* 16 bytes of shared memory, from as many elements of x, or zeros. */
template <typename E>
__device__ __forceinline__ void copy16(E *to, const E *from, const E *somewhere, bool inside) {
    __pipeline_memcpy_async(to, inside ? from : somewhere, 16, inside ? 0 : 16);
}

__device__ __forceinline__ void copy16(bf16 *to, const float *from, const float *, bool inside) {
    float v[8] = {};
    if (inside) load8(from, v);
    store8(to, v);
}

__device__ __forceinline__ void commit_loads() {
    __pipeline_commit();
}

/* Waits for all but the last `newer` commits. */
template <int newer> __device__ __forceinline__ void wait_loads() {
    __pipeline_wait_prior(newer);
}

/* Zeroes `bytes` (a multiple of 16) of shared memory. */
__device__ __forceinline__ void clear_shared(void *memory, int bytes) {
    for (int i = (int)threadIdx.x * 16; i < bytes; i += (int)blockDim.x * 16)
        *reinterpret_cast<uint4 *>(static_cast<char *>(memory) + i) = make_uint4(0, 0, 0, 0);
}

/* Channels [c0, c0 + channels) of a tile's input pixels and halo; a warp takes whole lines. What is outside
 * the images becomes zero. What no line covers is left alone: the buffer must have been cleared. */
template <typename E, typename X>
__device__ __forceinline__ void load_input(const wmma_tiles &t, int tile, const X *__restrict__ x, int c0,
                                           int channels, E *to, int pixel_pitch) {
    constexpr int G = elements16<E>();
    const int groups = channels / G, lane = threadIdx.x % 32;
    const bool two = t.stride == 2;
    const int border = t.stride == WMMA_UP ? 0 : 1, cycle = two ? 2 * t.band + 1 : t.period,
              lines = two ? t.images * cycle : t.lines,
              columns = two ? 2 * t.grid_width + 1 : t.in_width + 1 + border;
    for (int line = threadIdx.x / 32; line < lines; line += blockDim.x / 32) {
        const int image = line / cycle, k = line - image * cycle, n = first_image(t, tile) + image;
        const int h = first_row(t, tile) * (two ? 2 : 1) - border + k;
        const bool row = image < t.images && n < t.rows && h >= 0 && h < t.in_height;
        const X *from = x + (row ? (size_t)(n * t.in_height + h) * t.in_width * t.in_channels + c0 : 0);
        E *at =
            to + (two ? (k & 1) * 2 * t.plane + (image * t.period + (k >> 1)) * t.pitch : line * t.pitch) *
                     pixel_pitch;
        for (int i = lane; i < columns * groups; i += 32) {
            const int column = i / groups, c = (i - column * groups) * G, w = column - border;
            const int pixel = two ? (column & 1) * t.plane + (column >> 1) : column;
            copy16(at + pixel * pixel_pitch + c, from + (w * t.in_channels + c), x,
                   row && w >= 0 && w < t.in_width);
        }
    }
}

/* Channels [c0, c0 + channels) of a tile's output pixels at their positions, zeros where there is none. */
template <typename E, typename Y>
__device__ __forceinline__ void load_output(const wmma_tiles &t, int tile, const Y *__restrict__ y, int c0,
                                            int channels, E *to, int pixel_pitch) {
    constexpr int G = elements16<E>();
    const int groups = channels / G, lane = threadIdx.x % 32, lines = (t.images - 1) * t.period + t.band;
    for (int line = threadIdx.x / 32; line < lines; line += blockDim.x / 32) {
        const int image = line / t.period, k = line - image * t.period, n = first_image(t, tile) + image,
                  h = first_row(t, tile) + k;
        const bool row = k < t.band && n < t.rows && h < t.out_height;
        const Y *from = y + (row ? (size_t)(n * t.out_height + h) * t.out_width * t.out_channels + c0 : 0);
        E *at = to + line * t.pitch * pixel_pitch;
        for (int i = lane; i < t.out_width * groups; i += 32) {
            const int w = i / groups, c = (i - w * groups) * G;
            copy16(at + w * pixel_pitch + c, from + (w * t.out_channels + c), y, row);
        }
    }
}

/* to[tap][depth][columns] = rows [k0, k0 + depth) and columns [n0, n0 + columns) of w[tap][inner][outer],
 * zeros beyond `outer`, for the taps that a class meets. */
template <typename E>
__device__ __forceinline__ void load_weights(const E *__restrict__ w, int inner, int outer, int k0, int depth,
                                             int n0, int columns, wmma_class c, E *to, int pitch) {
    constexpr int G = elements16<E>();
    const int groups = columns / G;
    for (int i = threadIdx.x; i < 9 * depth * groups; i += blockDim.x) {
        const int row = i / groups, n = (i - row * groups) * G, tap = row / depth, k = row - tap * depth;
        if (meets(c, tap / 3, tap % 3))
            copy16(to + row * pitch + n, w + ((tap * inner + k0 + k) * outer + n0 + n), w, n0 + n < outer);
    }
}

/* ---- products ---- */

/* sums[m][n] += the convolution at positions [q, q + 16 MT) over `depth` channels and the taps that a class
 * meets: `tile` is position q's pixel, `weights` the first of 16 NT columns of [tap][depth][..]. */
template <typename T, int MT, int NT>
__device__ __forceinline__ void multiply_taps(typename fragments<T>::sums (&sums)[MT][NT],
                                              const wmma_tiles &t, wmma_class c,
                                              const typename T::element *tile, int pixel_pitch,
                                              const typename T::element *weights, int pitch, int depth) {
    for (int k = 0; k < depth; k += T::K)
#pragma unroll 1 /* all nine taps at once would not fit into registers */
        for (int kh = 0; kh < 3; kh++)
#pragma unroll
            for (int kw = 0; kw < 3; kw++) {
                if (!meets(c, kh, kw)) continue;
                const typename T::element *from = tile + tap_offset(t, kh, kw) * pixel_pitch + k;
                typename fragments<T>::b b[NT];
#pragma unroll
                for (int j = 0; j < NT; j++)
                    wmma::load_matrix_sync(b[j], weights + ((kh * 3 + kw) * depth + k) * pitch + 16 * j,
                                           (unsigned)pitch);
#pragma unroll
                for (int m = 0; m < MT; m++) {
                    typename fragments<T>::a a;
                    load_fragment<T>(a, from + 16 * m * pixel_pitch, pixel_pitch);
#pragma unroll
                    for (int j = 0; j < NT; j++) wmma::mma_sync(sums[m][j], a, b[j], sums[m][j]);
                }
            }
}

/* ---- host ---- */

/* Shared memory of a block, at most: what sm_80 has, less a little. */
#define WMMA_SHARED_BYTES (160 * 1024)

/* What these kernels do not take. */
static inline bool bad_wmma3x3(const tn_conv_shape *s) {
    return bad_conv3x3(s) || s->in_channels % 16 != 0 || s->out_channels % 16 != 0;
}

/* Backward data as a forward convolution. */
static inline tn_conv_shape reversed(const tn_conv_shape *s) {
    tn_conv_shape back = *s;
    back.in_height = s->out_height;
    back.in_width = s->out_width;
    back.in_channels = s->out_channels;
    back.out_height = s->in_height;
    back.out_width = s->in_width;
    back.out_channels = s->in_channels;
    back.stride = s->stride == 2 ? WMMA_UP : 1;
    return back;
}

/* Whether the weight gradient takes a shape that is not bad; of conv_wmma_weights.cu. */
int tn_wmma3x3_weights_fit(const tn_conv_shape *shape, tn_wmma unit);

#endif
