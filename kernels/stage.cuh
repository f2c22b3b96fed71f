/* What the kernels of stages share (stage.cu, stage_backward.cu): images in shared memory, a 3x3 convolution
 * of them on tensor cores, its weight gradient.
 *
 * Images lie in planes of 16 channels, bf16 [C / 16][positions][16], so that a pixel of a plane is 32 bytes,
 * which is what WMMA wants tiles to be aligned to. Pixel (h, w) of image i stands at position (i * (H + 1) +
 * h + 1) * P + w + 1 with P = W + 1: one column of zeros serves as the right edge of a row and the left edge
 * of the next, one row of zeros as the lower edge of an image and the upper edge of the next. A tap is then a
 * constant distance between positions, and 16 successive positions are one tile of a matrix product, for any
 * width. Tiles begin at the first pixel, position P + 1; positions that are no pixels are computed and thrown
 * away (1 of 33, 17 or 9). Pixels of 32 bytes put the rows of a tile two deep on the banks: a two-way
 * conflict.
 *
 * Weights come in slabs of 16 input channels, [9][16][C] (TN_PACK_STAGE_FORWARD, TN_PACK_STAGE_BACKWARD),
 * which stand in shared memory with 8 unused values behind each row: no conflicts.
 *
 * S is the storage of the stream: of x, the blocks' outputs and their gradients. Products take it rounded to
 * bf16; where it is float32, residuals are added in float32, from pixels of C + 4 floats. */
#ifndef TN_KERNELS_STAGE_CUH
#define TN_KERNELS_STAGE_CUH

#include <cuda_pipeline.h>
#include <mma.h>

#include "kernels/device.cuh"

#define STAGE_WARPS        8
#define STAGE_THREADS      (32 * STAGE_WARPS)
#define RESULT_LD          20 /* of a tile of results on its way out: no conflicts */
#define RESULT_FLOATS      (16 * RESULT_LD)
#define EXACT_LD(channels) ((channels) + 4) /* of a stream's pixels in float32: no conflicts */

typedef nvcuda::wmma::fragment<nvcuda::wmma::accumulator, 16, 16, 16, float> stage_sums;
typedef nvcuda::wmma::fragment<nvcuda::wmma::matrix_a, 16, 16, 16, bf16, nvcuda::wmma::row_major>
    stage_pixels;
typedef nvcuda::wmma::fragment<nvcuda::wmma::matrix_b, 16, 16, 16, bf16, nvcuda::wmma::row_major>
    stage_weights;
typedef nvcuda::wmma::fragment<nvcuda::wmma::matrix_a, 16, 16, 16, bf16, nvcuda::wmma::col_major>
    stage_gradient;

struct stage_geometry {
    int rows, height, width, images; /* images: of a block */
    int pitch, tiles, positions;     /* P, tiles of 16 positions, positions of a plane */
    int blocks;                      /* residual blocks */
    int in_height, in_width;         /* of an entry's x; 0: no entry */

    __host__ __device__ int pixels() const {
        return height * width;
    }
    __host__ __device__ int entry() const {
        return in_height > 0;
    }
    __host__ __device__ int in_pixels() const {
        return in_height * in_width;
    }
    /* Of the nodes, the first that is a conv. */
    __host__ __device__ int first_conv() const {
        return 2 * entry();
    }
};

static inline stage_geometry geometry_of(const tn_stage_shape *s, int images) {
    stage_geometry g = {s->rows, s->height, s->width,  images,       s->width + 1,
                        0,       0,         s->blocks, s->in_height, s->in_width};
    const int span = (images * (s->height + 1) - 2) * g.pitch + s->width; /* first pixel to last */
    g.tiles = (span + 15) / 16;
    g.positions = 16 * g.tiles + 2 * g.pitch + 2;
    g.positions += (1 - g.positions) & 3; /* planes 32 bytes apart modulo 128 */
    return g;
}

/* How the 8 warps of a block share tiles of a convolution: a warp takes NT tiles of channels and every
 * ROW_WARPS-th tile of positions, at most MT of them. */
template <int C> struct stage_tiling {
    static constexpr int SLABS = C / 16;
    static constexpr int NT = C == 16 ? 1 : 2;
    static constexpr int GROUPS = C / 16 / NT;
    static constexpr int ROW_WARPS = STAGE_WARPS / GROUPS;
    static constexpr int MT = C == 16 ? 9 : 3;
    static constexpr int TILES = MT * ROW_WARPS; /* at most */
    static constexpr int SLAB_LD = C + 8;
    static constexpr int SLAB = 9 * 16 * SLAB_LD; /* elements in shared memory */
    static constexpr int SLAB_READ = 9 * 16 * C;  /* in global memory */
};

/* Shared memory of a block, in bytes from its beginning. */
struct stage_layout {
    unsigned plane_bytes, exact_at, slabs_at, results_at, sums_at, masks_at, mask_bytes, pixels_at, bytes;

    __host__ __device__ stage_layout(const stage_geometry &g, int channels, int tensors, bool exact) {
        plane_bytes = (unsigned)(g.positions * channels * 2);
        exact_at = (unsigned)tensors * plane_bytes;
        slabs_at = exact_at;
        if (exact) slabs_at += (unsigned)(g.images * g.pixels() * EXACT_LD(channels) * 4 + 31) / 32 * 32;
        results_at = slabs_at + 2u * 9 * 16 * (unsigned)(channels + 8) * 2;
        sums_at = results_at + STAGE_WARPS * RESULT_FLOATS * 4;
        masks_at = sums_at + 2 * STAGE_WARPS * 2 * 8;
        mask_bytes = (unsigned)(g.images * g.pixels() * channels / 8);
        pixels_at = masks_at + 2 * mask_bytes;
        bytes = pixels_at + (unsigned)g.tiles * 16 * 2;
    }
};

/* ---- images ---- */

__device__ __forceinline__ void clear_planes(void *memory, unsigned bytes) {
    uint4 *to = static_cast<uint4 *>(memory);
    for (unsigned i = threadIdx.x; i < bytes / 16; i += STAGE_THREADS) to[i] = make_uint4(0, 0, 0, 0);
}

__device__ __forceinline__ int position_of(const stage_geometry &g, int pixel) {
    const int row = pixel / g.width, image = row / g.height;
    return (row + image + 1) * g.pitch + pixel - row * g.width + 1;
}

/* Where 8 channels of a position stand. */
__device__ __forceinline__ int place_of(const stage_geometry &g, int position, int channel) {
    return (channel / 16 * g.positions + position) * 16 + channel % 16;
}

/* pixel_of[16 * tiles]: the pixel of each computed position, counted through the block's images, or -1. */
__device__ __forceinline__ void find_pixels(const stage_geometry &g, int images, short *pixel_of) {
    for (int i = threadIdx.x; i < 16 * g.tiles; i += STAGE_THREADS) {
        const int position = g.pitch + 1 + i, tall = position / g.pitch, w = position % g.pitch - 1,
                  image = tall / (g.height + 1), h = tall % (g.height + 1) - 1;
        const bool inside = w >= 0 && h >= 0 && image < images;
        pixel_of[i] = (short)(inside ? (image * g.height + h) * g.width + w : -1);
    }
}

/* Starts to copy TAKEN of C channels of `images` images, between whose pixels the zeros already stand, and to
 * fill those behind them, up to `all`, with zeros. */
template <int C, int TAKEN>
__device__ __forceinline__ void fetch_images(const stage_geometry &g, int images, int all, const bf16 *from,
                                             bf16 *planes) {
    constexpr int PIECES = TAKEN / 8;
    for (int i = threadIdx.x; i < all * g.pixels() * PIECES; i += STAGE_THREADS) {
        const int pixel = i / PIECES;
        const bool there = pixel < images * g.pixels();
        __pipeline_memcpy_async(planes + place_of(g, position_of(g, pixel), i % PIECES * 8),
                                from + (there ? pixel * C + i % PIECES * 8 : 0), 16, there ? 0 : 16);
    }
}

/* The same from float32, at once; `exact` (or NULL) takes all channels of the images as they are. */
template <int C, int TAKEN>
__device__ __forceinline__ void fetch_images(const stage_geometry &g, int images, int all, const float *from,
                                             bf16 *planes, float *exact = NULL) {
    constexpr int PIECES = TAKEN / 8;
    for (int i = threadIdx.x; i < all * g.pixels() * PIECES; i += STAGE_THREADS) {
        const int pixel = i / PIECES, channel = i % PIECES * 8;
        float v[8] = {};
        if (pixel < images * g.pixels()) load8(from + pixel * C + channel, v);
        store8(planes + place_of(g, position_of(g, pixel), channel), v);
        if (exact) store8(exact + pixel * EXACT_LD(C) + channel, v);
    }
}

/* Weights of the convs before conv `conv`, of all of a stage's where that is their number. */
__host__ __device__ __forceinline__ size_t weights_before(int entry, int conv, int channels) {
    const int whole = 9 * channels * channels;
    return (size_t)conv * whole - (entry && conv > 0 ? whole / 2 : 0);
}

/* Bytes before the output of conv `conv` among those that are kept: bf16 and S in turn. */
template <typename S> __device__ __forceinline__ size_t inner_at(size_t tensor, int conv) {
    return tensor * (conv / 2 * (sizeof(bf16) + sizeof(S)) + conv % 2 * sizeof(bf16));
}

template <int C> __device__ __forceinline__ void fetch_slab(const bf16 *from, bf16 *slab) {
    for (int i = threadIdx.x; i < stage_tiling<C>::SLAB_READ / 8; i += STAGE_THREADS)
        __pipeline_memcpy_async(slab + i / (C / 8) * stage_tiling<C>::SLAB_LD + i % (C / 8) * 8, from + 8 * i,
                                16);
}

/* ---- the convolution ---- */

/* sums += the 9 taps of 16 channels, of which tap (kh, kw) of the first tile stands at `at(kh, kw)`. */
template <int C, typename AT>
__device__ __forceinline__ void multiply_taps(const stage_geometry &g, const bf16 *slab,
                                              stage_sums (*sums)[stage_tiling<C>::NT], AT at) {
    typedef stage_tiling<C> t;
    const int warp = threadIdx.x / 32, row_warp = warp % t::ROW_WARPS, n0 = warp / t::ROW_WARPS * t::NT;
#pragma unroll 1
    for (int kh = 0; kh < 3; kh++)
#pragma unroll
        for (int kw = 0; kw < 3; kw++) {
            const bf16 *tap = at(kh, kw);
            stage_weights w[t::NT];
#pragma unroll
            for (int n = 0; n < t::NT; n++)
                nvcuda::wmma::load_matrix_sync(w[n], slab + (kh * 3 + kw) * 16 * t::SLAB_LD + (n0 + n) * 16,
                                               t::SLAB_LD);
#pragma unroll
            for (int m = 0; m < t::MT; m++) {
                const int tile = row_warp + m * t::ROW_WARPS;
                if (tile >= g.tiles) break;
                stage_pixels x;
                nvcuda::wmma::load_matrix_sync(x, tap + 16 * tile * 16, 16);
#pragma unroll
                for (int n = 0; n < t::NT; n++) nvcuda::wmma::mma_sync(sums[m][n], x, w[n], sums[m][n]);
            }
        }
}

/* The same with a stride of 1, from one plane. */
template <int C>
__device__ __forceinline__ void multiply_slab(const stage_geometry &g, const bf16 *plane, const bf16 *slab,
                                              stage_sums (*sums)[stage_tiling<C>::NT]) {
    multiply_taps<C>(g, slab, sums, [&](int kh, int kw) { return plane + (kh * g.pitch + kw) * 16; });
}

template <int C> __device__ __forceinline__ void clear_sums(stage_sums (*sums)[stage_tiling<C>::NT]) {
#pragma unroll
    for (int m = 0; m < stage_tiling<C>::MT; m++)
#pragma unroll
        for (int n = 0; n < stage_tiling<C>::NT; n++) nvcuda::wmma::fill_fragment(sums[m][n], 0.0f);
}

/* each(pixel, place, channel, values) for every 8 channels that this lane takes over; `results` is the
 * warp's. */
template <int C, typename EACH>
__device__ __forceinline__ void each_result(const stage_geometry &g, const short *pixel_of, float *results,
                                            stage_sums (*sums)[stage_tiling<C>::NT], EACH each) {
    typedef stage_tiling<C> t;
    const int warp = threadIdx.x / 32, row_warp = warp % t::ROW_WARPS, n0 = warp / t::ROW_WARPS * t::NT,
              row = threadIdx.x % 16, half = threadIdx.x % 32 / 16 * 8;
#pragma unroll
    for (int m = 0; m < t::MT; m++) {
        const int tile = row_warp + m * t::ROW_WARPS;
        if (tile >= g.tiles) break;
        const int pixel = pixel_of[16 * tile + row];
#pragma unroll
        for (int n = 0; n < t::NT; n++) {
            nvcuda::wmma::store_matrix_sync(results, sums[m][n], RESULT_LD, nvcuda::wmma::mem_row_major);
            __syncwarp();
            float v[8];
            load8(results + row * RESULT_LD + half, v);
            const int channel = (n0 + n) * 16 + half;
            if (pixel >= 0) each(pixel, place_of(g, g.pitch + 1 + 16 * tile + row, channel), channel, v);
            __syncwarp(); /* the next tile overwrites the results */
        }
    }
}

/* ---- the weight gradient ---- */

/* sums[n][tap] += dz^T x of ROWS rows of taps from row kh on, N planes of dz and one of x, over the warp's
 * share of the positions: every 8th tile. */
template <int ROWS, int N>
__device__ __forceinline__ void add_gradient(const stage_geometry &g, const bf16 *x, const bf16 *dz, int kh,
                                             stage_sums (*sums)[3 * ROWS]) {
    x += kh * g.pitch * 16;
#pragma unroll 1
    for (int tile = threadIdx.x / 32; tile < g.tiles; tile += STAGE_WARPS) {
        stage_gradient z[N];
#pragma unroll
        for (int n = 0; n < N; n++)
            nvcuda::wmma::load_matrix_sync(z[n], dz + (n * g.positions + 16 * tile + g.pitch + 1) * 16, 16);
#pragma unroll
        for (int tap = 0; tap < 3 * ROWS; tap++) {
            stage_weights v;
            nvcuda::wmma::load_matrix_sync(v, x + (16 * tile + tap / 3 * g.pitch + tap % 3) * 16, 16);
#pragma unroll
            for (int n = 0; n < N; n++) nvcuda::wmma::mma_sync(sums[n][tap], z[n], v, sums[n][tap]);
        }
    }
}

/* to[9][C out][IN in], rows of taps from kh on, outputs from `out0`, 16 inputs from `in0`, = the sums of all
 * warps in order. Ends with a barrier: what the sums were made of may be overwritten. */
template <int C, int ROWS, int N, int IN = C>
__device__ __forceinline__ void merge_gradient(stage_sums (*sums)[3 * ROWS], float *results, int kh, int out0,
                                               int in0, float *to) {
    const int out = threadIdx.x / 16, in = threadIdx.x % 16;
#pragma unroll
    for (int k = 0; k < 3 * ROWS * N; k++) {
        const int tap = k / N, n = k % N;
        nvcuda::wmma::store_matrix_sync(results + threadIdx.x / 32 * RESULT_FLOATS, sums[n][tap], RESULT_LD,
                                        nvcuda::wmma::mem_row_major);
        __syncthreads();
        float sum = 0;
#pragma unroll
        for (int warp = 0; warp < STAGE_WARPS; warp++)
            sum += results[warp * RESULT_FLOATS + out * RESULT_LD + in];
        to[((3 * kh + tap) * C + out0 + 16 * n + out) * IN + in0 + in] = sum;
        __syncthreads();
    }
}

/* ---- host ---- */

/* function<channels, storage of the stream> */
#define TN_PICK_STAGE(function, s)                                                                           \
    ((s)->wide ? ((s)->channels == 16   ? function<16, float>                                                \
                  : (s)->channels == 32 ? function<32, float>                                                \
                                        : function<64, float>)                                               \
               : ((s)->channels == 16   ? function<16, bf16>                                                 \
                  : (s)->channels == 32 ? function<32, bf16>                                                 \
                                        : function<64, bf16>))

static inline bool bad_entry(const tn_stage_shape *s) {
    if (s->in_height == 0 && s->in_width == 0) return false;
    return s->in_height < 1 || s->in_width < 1 || s->channels == 16 || s->height != (s->in_height + 1) / 2 ||
           s->width != (s->in_width + 1) / 2 ||
           too_large((size_t)s->rows * s->in_height * s->in_width, (size_t)s->channels / 2);
}

static inline bool bad_stage(const tn_stage_shape *s) {
    return s->rows < 0 || s->height < 1 || s->width < 1 || s->blocks < 1 || s->images < 1 ||
           (s->channels != 16 && s->channels != 32 && s->channels != 64) ||
           s->height * s->width * s->channels % 64 || (s->wide != 0 && s->wide != 1) || bad_entry(s) ||
           too_large((size_t)s->rows * s->height * s->width, (size_t)s->channels);
}

static inline unsigned stage_grid(const tn_stage_shape *s) {
    return (unsigned)((s->rows + s->images - 1) / s->images);
}

#endif
