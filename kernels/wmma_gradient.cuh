/* The weight gradient of a convolution by products of tensor-core tiles.
 *
 *   dw[co][ci][tap] = sum over pixels of dz[pixel][co] * x[pixel * stride + tap - 1][ci]
 *
 * Both tensors stand in shared memory at the positions of wmma.cuh: consecutive positions are one fragment of
 * dz, transposed, and, shifted by a tap, one of x. Positions that are no pixels have dz = 0. A block has CT x
 * CT channels and TAPS taps, all or a row of three, and goes through its share of the tiles, loading one
 * ahead; a warp has 16 x 16 of the channels, and where warps are left over they share the positions. */
#ifndef TN_KERNELS_WMMA_GRADIENT_CUH
#define TN_KERNELS_WMMA_GRADIENT_CUH

#include "kernels/wmma.cuh"

typedef struct gradient_job {
    wmma_tiles t;
    int channels, splits; /* of a block, a side; shares of the tiles */
    int buffers, x_bytes, buffer_bytes;
    int shared; /* bytes */
} gradient_job;

/* Tiles and shares for blocks of `channels` channels and `rows` tap rows (3: all): shares so that there are
 * about `blocks` blocks, a tile of x and dz of at most `tile_bytes`, where one row does not need more. False:
 * does not fit. By shape and precision alone; of conv_wmma_weights.cu. */
bool tn_wmma_plan_gradient(const tn_conv_shape *s, tn_wmma unit, int channels, int rows, int blocks,
                           int tile_bytes, gradient_job *job);

/* Floats of 16x16 gradients of a tap in shared memory, and from row to row. */
#define GRADIENT_PITCH 20
#define GRADIENT_TAP   (16 * GRADIENT_PITCH)

template <int CT> struct warps_of {
    static constexpr int PAIRS = CT / 16 * (CT / 16), COUNT = PAIRS > 8 ? PAIRS : 8, SHARES = COUNT / PAIRS;
};

/* sums[i] += gradient^T input, shifted by tap first + i, over K positions: [16 channels of the gradient][16
 * of the input]. Pointers are to the first position's pixel. */
template <typename T, int TAPS>
__device__ __forceinline__ void
multiply_gradient(typename fragments<T>::sums (&sums)[TAPS], const wmma_tiles &t, int first,
                  const typename T::element *input, const typename T::element *gradient, int pitch) {
    typename fragments<T>::a_transposed a;
    load_fragment<T>(a, gradient, pitch);
#pragma unroll
    for (int i = 0; i < TAPS; i++) {
        typename fragments<T>::b b;
        load_fragment<T>(b, input + tap_offset(t, first / 3 + i / 3, i % 3) * pitch, pitch);
        wmma::mma_sync(sums[i], a, b, sums[i]);
    }
}

/* Adds the sums of the warps that share a pair of channel groups, in their order; the last one has them. */
template <typename T, int TAPS, int SHARES>
__device__ __forceinline__ void add_shares(typename fragments<T>::sums (&sums)[TAPS], float *memory,
                                           int share) {
    for (int k = 0; k < SHARES; k++) {
        __syncthreads();
        if (share != k) continue;
#pragma unroll
        for (int i = 0; i < TAPS; i++) {
            float *at = memory + i * GRADIENT_TAP;
            typename fragments<T>::sums before;
            if (k > 0) {
                wmma::load_matrix_sync(before, at, GRADIENT_PITCH, wmma::mem_row_major);
#pragma unroll
                for (int e = 0; e < (int)before.num_elements; e++) sums[i].x[e] += before.x[e];
            }
            if (k < SHARES - 1) wmma::store_matrix_sync(at, sums[i], GRADIENT_PITCH, wmma::mem_row_major);
        }
    }
}

template <typename T, typename X, typename Y, int CT>
__device__ __forceinline__ void load_both(const gradient_job &job, int tile, const X *x, const Y *dz, int ci0,
                                          int co0, char *to) {
    typedef typename T::element E;
    const wmma_tiles &t = job.t;
    constexpr int PITCH = wmma_pitch<E>(CT);
    load_input(t, tile, x, ci0, min(CT, t.in_channels - ci0), reinterpret_cast<E *>(to), PITCH);
    load_output(t, tile, dz, co0, min(CT, t.out_channels - co0), reinterpret_cast<E *>(to + job.x_bytes),
                PITCH);
}

/* partial[split][9][out][in] of a block's channels and of taps [first, first + TAPS). */
template <typename T, typename X, typename Y, int CT, int TAPS>
__device__ __forceinline__ void gradient_tiles(const gradient_job &job, int split, int ci0, int co0,
                                               int first, const X *__restrict__ x, const Y *__restrict__ dz,
                                               float *__restrict__ partial, char *shared) {
    typedef typename T::element E;
    constexpr int PITCH = wmma_pitch<E>(CT), GROUPS = CT / 16, PAIRS = warps_of<CT>::PAIRS,
                  SHARES = warps_of<CT>::SHARES;
    const wmma_tiles &t = job.t;
    const int warp = threadIdx.x / 32, share = warp / PAIRS, pair = warp % PAIRS;
    const int ci = pair % GROUPS * 16, co = pair / GROUPS * 16;
    const bool mine = ci0 + ci < t.in_channels && co0 + co < t.out_channels;
    typename fragments<T>::sums sums[TAPS];
#pragma unroll
    for (int i = 0; i < TAPS; i++) wmma::fill_fragment(sums[i], 0.0f);

    clear_shared(shared, job.buffers * job.buffer_bytes);
    __syncthreads();
    load_both<T, X, Y, CT>(job, split, x, dz, ci0, co0, shared);
    commit_loads();
    int buffer = 0;
    for (int tile = split; tile < t.count; tile += job.splits, buffer ^= 1) {
        const char *const at = shared + buffer * job.buffer_bytes;
        if (tile + job.splits < t.count)
            load_both<T, X, Y, CT>(job, tile + job.splits, x, dz, ci0, co0,
                                   shared + (buffer ^ 1) * job.buffer_bytes);
        commit_loads();
        wait_loads<1>();
        __syncthreads();
        for (int q = share * T::K; mine && q < t.positions; q += SHARES * T::K)
            multiply_gradient<T, TAPS>(sums, t, first, reinterpret_cast<const E *>(at) + q * PITCH + ci,
                                       reinterpret_cast<const E *>(at + job.x_bytes) + q * PITCH + co, PITCH);
        __syncthreads();
    }
    if (SHARES > 1)
        add_shares<T, TAPS, SHARES>(sums, reinterpret_cast<float *>(shared) + pair * TAPS * GRADIENT_TAP,
                                    share);
    if (share != SHARES - 1 || !mine) return;
#pragma unroll
    for (int i = 0; i < TAPS; i++)
        wmma::store_matrix_sync(
            partial + ((size_t)(split * 9 + first + i) * t.out_channels + co0 + co) * t.in_channels + ci0 +
                ci,
            sums[i], (unsigned)t.in_channels, wmma::mem_row_major);
}

#endif
