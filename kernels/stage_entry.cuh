/* The entry of a stage: a residual block that halves height and width and doubles the channels, as the first
 * of the stage that it leads into (stage.cuh has the layout, kernels.h says what is computed).
 *
 * x, of C / 2 channels, stands as four parities of rows and columns, each with the geometry of an output: its
 * planes are as many as those of the stream and of the branch together, whose memory they take. Parity (p, q)
 * of pixel (2h + p, 2w + q) stands at position (h, w), and a tap of the stride-2 convolution is one parity at
 * a constant distance. The even parity lies where the lower channels of the stream do: there the second
 * convolution finds its residual.
 *
 * Backward, the gradient of x is made parity by parity, rows of one and then of the other: an element meets
 * 1, 2, 2 or 4 of the 9 taps. */
#ifndef TN_KERNELS_STAGE_ENTRY_CUH
#define TN_KERNELS_STAGE_ENTRY_CUH

#include "kernels/stage.cuh"

/* Row and column of tap kh or kw: 0 in the even parity, 1 in the odd one; and how far before the output's
 * position it is, 1 or 0. */
__device__ __forceinline__ constexpr int parity_of(int tap) {
    return tap != 1;
}

__device__ __forceinline__ constexpr int before(int tap) {
    return tap == 0;
}

/* Backward data: warps share C / 32 tiles of x's channels, a warp takes every ROW_WARPS-th tile of
 * positions, at most MT of them, in both parities of columns. */
template <int C> struct entry_tiling {
    static constexpr int GROUPS = C / 32;
    static constexpr int ROW_WARPS = STAGE_WARPS / GROUPS;
    static constexpr int MT = 3;
    static constexpr int SLAB_LD = C / 2 + 8;
    static constexpr int SLAB_READ = 9 * 16 * C / 2;
    static_assert(MT * ROW_WARPS == stage_tiling<C>::TILES, "what fits a stage fits its entry");
};

/* A pixel of x, counted through the block's images. */
struct entry_pixel {
    int image, h, w;

    __device__ __forceinline__ entry_pixel(const stage_geometry &g, int pixel) {
        const int row = pixel / g.in_width;
        image = row / g.in_height;
        h = row - image * g.in_height;
        w = pixel - row * g.in_width;
    }
    __device__ __forceinline__ int position(const stage_geometry &g) const {
        return (image * (g.height + 1) + h / 2 + 1) * g.pitch + w / 2 + 1;
    }
    __device__ __forceinline__ int parity() const {
        return h % 2 * 2 + w % 2;
    }
};

/* ---- forward ---- */

/* Where 8 channels of x stand among its C / 32 planes of each parity. */
template <int C>
__device__ __forceinline__ int entry_place(const stage_geometry &g, const entry_pixel &p, int channel) {
    return place_of(g, p.position(g), 16 * (C / 32) * p.parity() + channel);
}

/* Starts to copy x. */
template <int C>
__device__ __forceinline__ void fetch_entry(const stage_geometry &g, int images, const bf16 *x, bf16 *planes,
                                            float *) {
    constexpr int PIECES = C / 2 / 8;
    for (int i = threadIdx.x; i < images * g.in_pixels() * PIECES; i += STAGE_THREADS)
        __pipeline_memcpy_async(planes + entry_place<C>(g, entry_pixel(g, i / PIECES), i % PIECES * 8),
                                x + 8 * (size_t)i, 16);
}

/* The same from float32, at once; `exact` takes the even parity, which is the residual. */
template <int C>
__device__ __forceinline__ void fetch_entry(const stage_geometry &g, int images, const float *x, bf16 *planes,
                                            float *exact) {
    constexpr int PIECES = C / 2 / 8;
    for (int i = threadIdx.x; i < images * g.in_pixels() * PIECES; i += STAGE_THREADS) {
        const entry_pixel p(g, i / PIECES);
        const int channel = i % PIECES * 8, pixel = (p.image * g.height + p.h / 2) * g.width + p.w / 2;
        float v[8];
        load8(x + 8 * (size_t)i, v);
        store8(planes + entry_place<C>(g, p, channel), v);
        if (p.parity() == 0) store8(exact + pixel * EXACT_LD(C) + channel, v);
    }
}

/* sums += the 9 taps of 16 channels of x, whose planes of the even parity begin at `planes`. */
template <int C>
__device__ __forceinline__ void multiply_entry(const stage_geometry &g, const bf16 *planes, const bf16 *slab,
                                               stage_sums (*sums)[stage_tiling<C>::NT]) {
    multiply_taps<C>(g, slab, sums, [&](int kh, int kw) {
        const int parity = 2 * parity_of(kh) + parity_of(kw);
        return planes + (parity * (C / 32) * g.positions + (1 - before(kh)) * g.pitch + 1 - before(kw)) * 16;
    });
}

/* ---- backward data ---- */

/* sums[parity of columns] += what 16 channels of dz, a plane, give to rows of x of parity `odd`; the slab's
 * taps are reversed. */
template <int C>
__device__ __forceinline__ void multiply_back(const stage_geometry &g, int odd, const bf16 *plane,
                                              const bf16 *slab, stage_sums (*sums)[entry_tiling<C>::MT]) {
    typedef entry_tiling<C> t;
    const int warp = threadIdx.x / 32, row_warp = warp % t::ROW_WARPS, n0 = warp / t::ROW_WARPS;
#pragma unroll 1
    for (int kh = 1 - odd; kh < 3; kh += 2)
#pragma unroll 1 /* the tiles of both turns at once are more registers than there are */
        for (int behind = 0; behind < 2;
             behind++) { /* tiles of dz are loaded once for all taps so far behind */
            const bf16 *from = plane + ((1 + before(kh)) * g.pitch + 1 + behind) * 16;
            stage_pixels z[t::MT];
#pragma unroll
            for (int m = 0; m < t::MT; m++) {
                const int tile = row_warp + m * t::ROW_WARPS;
                if (tile < g.tiles) nvcuda::wmma::load_matrix_sync(z[m], from + 16 * tile * 16, 16);
            }
#pragma unroll
            for (int kw = 0; kw < 3; kw++) {
                if (before(kw) != behind) continue;
                stage_weights w;
                nvcuda::wmma::load_matrix_sync(w, slab + (8 - 3 * kh - kw) * 16 * t::SLAB_LD + n0 * 16,
                                               t::SLAB_LD);
#pragma unroll
                for (int m = 0; m < t::MT; m++) {
                    if (row_warp + m * t::ROW_WARPS >= g.tiles) break;
                    stage_sums &to = sums[parity_of(kw)][m];
                    nvcuda::wmma::mma_sync(to, z[m], w, to);
                }
            }
        }
}

template <int C> __device__ __forceinline__ void clear_back(stage_sums (*sums)[entry_tiling<C>::MT]) {
#pragma unroll
    for (int k = 0; k < 2 * entry_tiling<C>::MT; k++)
        nvcuda::wmma::fill_fragment(sums[k / entry_tiling<C>::MT][k % entry_tiling<C>::MT], 0.0f);
}

/* each(at, even, pixel, place, channel, values) for every 8 channels of a pixel of x, in rows of parity
 * `odd`, that this lane takes over: `at` is that pixel, counted through the block's images; `even` says that
 * its row and column are, and pixel and place are those of the output there. */
template <int C, typename EACH>
__device__ __forceinline__ void each_back(const stage_geometry &g, int odd, const short *pixel_of,
                                          float *results, stage_sums (*sums)[entry_tiling<C>::MT],
                                          EACH each) {
    typedef entry_tiling<C> t;
    const int warp = threadIdx.x / 32, row_warp = warp % t::ROW_WARPS, row = threadIdx.x % 16,
              half = threadIdx.x % 32 / 16 * 8, channel = warp / t::ROW_WARPS * 16 + half;
#pragma unroll
    for (int m = 0; m < t::MT; m++) {
        const int tile = row_warp + m * t::ROW_WARPS;
        if (tile >= g.tiles) break;
        const int pixel = pixel_of[16 * tile + row], tall = pixel / g.width, image = tall / g.height,
                  h = 2 * (tall - image * g.height) + odd;
#pragma unroll
        for (int parity = 0; parity < 2; parity++) {
            const int w = 2 * (pixel - tall * g.width) + parity;
            nvcuda::wmma::store_matrix_sync(results, sums[parity][m], RESULT_LD, nvcuda::wmma::mem_row_major);
            __syncwarp();
            float v[8];
            load8(results + row * RESULT_LD + half, v);
            if (pixel >= 0 && h < g.in_height && w < g.in_width)
                each((image * g.in_height + h) * g.in_width + w, !odd && parity == 0, pixel,
                     place_of(g, g.pitch + 1 + 16 * tile + row, channel), channel, v);
            __syncwarp(); /* the next tile overwrites the results */
        }
    }
}

/* ---- the weight gradient ---- */

/* Starts to copy rows of parity `odd` of 16 channels of x, columns of the two parities to two planes, as
 * fetch_images does for `images` of `all` images. */
template <int C, typename S>
__device__ __forceinline__ void fetch_entry_rows(const stage_geometry &g, int images, int all, int odd,
                                                 const S *x, bf16 *planes) {
    const int rows = (g.in_height + 1 - odd) / 2, line = g.in_width * 2;
    for (int i = threadIdx.x; i < all * rows * line; i += STAGE_THREADS) {
        const int row = i / line, image = row / rows, h = row - image * rows, w = (i - row * line) / 2,
                  piece = i % 2 * 8;
        const bool there = image < images;
        bf16 *to =
            planes + place_of(g, (image * (g.height + 1) + h + 1) * g.pitch + w / 2 + 1, w % 2 * 16 + piece);
        const S *from =
            x + (there ? ((image * g.in_height + 2 * h + odd) * g.in_width + w) * (C / 2) + piece : 0);
        if constexpr (sizeof(S) == 2) {
            __pipeline_memcpy_async(to, from, 16, there ? 0 : 16);
        } else {
            float v[8] = {};
            if (there) load8(from, v);
            store8(to, v);
        }
    }
}

/* sums[0][kw] += dz^T x of row kh of taps: a plane of dz, those of x from fetch_entry_rows. */
__device__ __forceinline__ void add_entry_gradient(const stage_geometry &g, const bf16 *x, const bf16 *dz,
                                                   int kh, stage_sums (*sums)[3]) {
    x += (1 - before(kh)) * g.pitch * 16;
#pragma unroll 1
    for (int tile = threadIdx.x / 32; tile < g.tiles; tile += STAGE_WARPS) {
        stage_gradient z;
        nvcuda::wmma::load_matrix_sync(z, dz + (16 * tile + g.pitch + 1) * 16, 16);
#pragma unroll
        for (int kw = 0; kw < 3; kw++) {
            stage_weights v;
            nvcuda::wmma::load_matrix_sync(
                v, x + (parity_of(kw) * g.positions + 16 * tile + 1 - before(kw)) * 16, 16);
            nvcuda::wmma::mma_sync(sums[0][kw], z, v, sums[0][kw]);
        }
    }
}

#endif
