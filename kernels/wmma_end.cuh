/* The end of a tile of a convolution: sums leave the registers through shared memory, 16 positions by 16
 * channels at a time, and a lane finishes 8 channels of one pixel. */
#ifndef TN_KERNELS_WMMA_END_CUH
#define TN_KERNELS_WMMA_END_CUH

#include "kernels/wmma.cuh"

#define STAGING_PITCH 20 /* floats from row to row of 16x16 sums in shared memory */
#define STAGING_BYTES (16 * STAGING_PITCH * (int)sizeof(float)) /* of a warp */
#define WIDE_WARPS    16                                        /* of a block, at most */

/* What follows the convolution: the epilogue of forward, or r, gate and sums of backward data. */
typedef struct conv_end {
    tn_epilogue e;
    const uint32_t *gate; /* backward data */
    double *sums;         /* [2][blocks]: after and before the gate; NULL: not wanted */
    int blocks;
} conv_end;

static inline conv_end end_of(const tn_gate &gate, int blocks) {
    conv_end end = {};
    end.e.r = gate.r;
    end.e.nonfinite = gate.nonfinite;
    end.gate = gate.mask;
    end.sums = gate.sums;
    end.blocks = blocks;
    return end;
}

/* ---- masks: each lane has 8 channels of a pixel, of every one of NT groups of 16 ---- */

/* Bits of this lane's channels from a mask, one request for all NT where the layout allows. `byte` is that of
 * the pixel's first channel; all lanes of a warp call this. */
template <int NT>
__device__ __forceinline__ void read_bits(const uint32_t *mask, size_t byte, bool inside, bool whole,
                                          int left, unsigned (&bits)[NT]) {
    const uint8_t *from = reinterpret_cast<const uint8_t *>(mask) + byte;
    const int lane = threadIdx.x % 32, half = lane % 2;
    if constexpr (NT > 1) {
        if (whole) {
            unsigned word = 0;
            if (inside && NT == 2) word = reinterpret_cast<const uint16_t *>(from)[half];
            if (inside && NT == 4) word = reinterpret_cast<const uint32_t *>(from)[half];
#pragma unroll
            for (int j = 0; j < NT; j++) {
                const unsigned theirs = __shfl_sync(0xffffffffu, word, lane / 2 * 2 + j * 2 / NT);
                bits[j] = theirs >> (j % (NT / 2) * 16 + half * 8) & 0xff;
            }
            return;
        }
    }
#pragma unroll
    for (int j = 0; j < NT; j++) bits[j] = inside && 16 * j < left ? from[2 * j + half] : 0;
}

template <int NT>
__device__ __forceinline__ void write_bits(uint32_t *mask, size_t byte, bool inside, bool whole, int left,
                                           const unsigned (&bits)[NT]) {
    uint8_t *to = reinterpret_cast<uint8_t *>(mask) + byte;
    const int half = threadIdx.x % 2;
    if constexpr (NT > 1) {
        if (whole) {
            unsigned pair[NT];
#pragma unroll
            for (int j = 0; j < NT; j++) {
                const unsigned theirs = __shfl_xor_sync(0xffffffffu, bits[j], 1);
                pair[j] = half ? theirs | bits[j] << 8 : bits[j] | theirs << 8;
            }
            if (inside && NT == 2)
                reinterpret_cast<uint16_t *>(to)[half] = (uint16_t)(half ? pair[NT / 2] : pair[0]);
            if (inside && NT == 4)
                reinterpret_cast<uint32_t *>(to)[half] =
                    half ? pair[NT / 2] | pair[NT - 1] << 16 : pair[0] | pair[NT / 4] << 16;
            return;
        }
    }
#pragma unroll
    for (int j = 0; j < NT; j++)
        if (inside && 16 * j < left) to[2 * j + half] = (uint8_t)bits[j];
}

/* ---- the end of a tile ---- */

/* What a thread has seen. */
typedef struct conv_seen {
    bool bad;
    float after, before;
} conv_seen;

/* z of 8 channels of one pixel becomes y. `at` is the first element. */
template <typename Y>
__device__ __forceinline__ unsigned finish8(float z[8], size_t at, int channel, const conv_end &end,
                                            unsigned gate, conv_seen &seen, Y *y) {
    const tn_epilogue &e = end.e;
    const float s = value_or(e.s, 1.0f), c = value_or(e.c, 0.0f), d = value_or(e.d, 0.0f);
#pragma unroll
    for (int k = 0; k < 8; k++) z[k] = s * z[k] + c + (e.bias ? e.bias[channel + k] : 0.0f);
    if (e.r) {
        float r[8];
        load8(static_cast<const Y *>(e.r) + at, r);
#pragma unroll
        for (int k = 0; k < 8; k++) z[k] += r[k];
    }
    seen.bad = seen.bad || !all_finite8(z);
    if (end.gate || end.sums) {
#pragma unroll
        for (int k = 0; k < 8; k++) {
            seen.before += z[k];
            if (!(gate >> k & 1)) z[k] = 0.0f;
            seen.after += z[k];
        }
    }
    const unsigned bits = activate8(z, e.relu != 0, d);
    store8(y + at, z);
    return bits;
}

/* Sums of 16 positions and 16 NT channels, through shared memory into y: a lane takes 8 channels of one
 * pixel. */
template <typename T, typename Y, int NT>
__device__ __forceinline__ void finish(const wmma_tiles &t, wmma_class c, int tile, int q, int channel,
                                       typename fragments<T>::sums (&sums)[NT], const conv_end &end,
                                       float *staging, conv_seen &seen, Y *y) {
    const int lane = threadIdx.x % 32, row = lane / 2, half = lane % 2;
    const int pixel = pixel_at(t, tile, q + row, c), left = t.out_channels - channel;
    const bool inside = pixel >= 0, whole = t.out_channels % (16 * NT) == 0;
    const size_t first = inside ? (size_t)pixel * t.out_channels + channel : 0;
    unsigned gate[NT], bits[NT];
    if (end.gate) {
        read_bits<NT>(end.gate, first / 8, inside, whole, left, gate);
    } else {
#pragma unroll
        for (int j = 0; j < NT; j++) gate[j] = 0xff;
    }
#pragma unroll
    for (int j = 0; j < NT; j++) {
        float z[8];
        wmma::store_matrix_sync(staging, sums[j], STAGING_PITCH, wmma::mem_row_major);
        __syncwarp();
        load8(staging + row * STAGING_PITCH + half * 8, z);
        __syncwarp();
        bits[j] = 0;
        if (inside && 16 * j < left)
            bits[j] =
                finish8<Y>(z, first + 16 * j + half * 8, channel + 16 * j + half * 8, end, gate[j], seen, y);
    }
    if (end.e.mask) write_bits<NT>(end.e.mask, first / 8, inside, whole, left, bits);
}

/* The sum over a block of up to 16 warps, in thread 0. */
__device__ __forceinline__ double wide_sum(double v) {
    __shared__ double warps[WIDE_WARPS];
    v = warp_sum(v);
    __syncthreads();
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = v;
    __syncthreads();
    if (threadIdx.x == 0)
        for (unsigned i = 1; i < blockDim.x / 32; i++) v += warps[i];
    return v;
}

/* Leaves what block `block` has seen. */
__device__ __forceinline__ void report(const conv_end &end, const conv_seen &seen, unsigned block) {
    raise_flag(end.e.nonfinite, seen.bad);
    if (!end.sums) return;
    const double after = wide_sum((double)seen.after), before = wide_sum((double)seen.before);
    if (threadIdx.x) return;
    end.sums[block] = after;
    end.sums[end.blocks + block] = before;
}

/* 16 MT positions by 16 NT channels from beginning to end. */
template <typename T, int MT, int NT, typename Y>
__device__ __forceinline__ void convolve_strip(const wmma_tiles &t, wmma_class c, int tile, int q,
                                               int channel, const typename T::element *input, int input_pitch,
                                               const typename T::element *weights, int pitch, int depth,
                                               const conv_end &end, float *staging, conv_seen &seen, Y *y) {
    typename fragments<T>::sums sums[MT][NT];
#pragma unroll
    for (int i = 0; i < MT * NT; i++) wmma::fill_fragment(sums[i / NT][i % NT], 0.0f);
    multiply_taps<T, MT, NT>(sums, t, c, input, input_pitch, weights, pitch, depth);
#pragma unroll
    for (int m = 0; m < MT; m++)
        finish<T, Y, NT>(t, c, tile, q + 16 * m, channel, sums[m], end, staging, seen, y);
}

/* ---- blocks whose weights stay ---- */

#define COLUMNS 64 /* output channels of a block, at most */

typedef struct conv_job {
    wmma_tiles t;
    int buffers, x_bytes, w_bytes; /* of input: how many; bytes of one, and of one of weights */
    int x_pitch, w_pitch;
    int depth, columns; /* channels of a slice; output channels of a block */
} conv_job;

typedef struct conv_launch {
    conv_job job;
    bool resident;
    dim3 grid;
    int threads, shared;
} conv_launch;

/* How a convolution is cut, WMMA_UP included; false: it does not fit. By shape and precision alone; of
 * conv_wmma.cu. */
bool tn_wmma_plan_conv(const tn_conv_shape *s, tn_wmma unit, conv_launch *l);

/* Tiles first, first + step, ... of output channels from n0 on, by THREADS threads. Shared memory: input
 * buffers, weights, staging. */
template <typename T, typename X, typename Y, int NT>
__device__ __forceinline__ conv_seen convolve_tiles(const conv_job &job, int first, int step, int n0,
                                                    const X *__restrict__ x,
                                                    const typename T::element *__restrict__ w,
                                                    const conv_end &end, Y *y, char *shared) {
    typedef typename T::element E;
    constexpr int MT = 2;
    const wmma_tiles &t = job.t;
    char *const weights_at = shared + job.buffers * job.x_bytes;
    const E *const weights = reinterpret_cast<const E *>(weights_at);
    float *const staging =
        reinterpret_cast<float *>(weights_at + job.w_bytes + threadIdx.x / 32 * STAGING_BYTES);
    const int rounds = job.columns / (16 * NT), strips = t.positions / (16 * MT),
              items = strips * rounds * (t.stride == WMMA_UP ? 4 : 1);
    const wmma_class all = {-1, -1};
    conv_seen seen = {};

    clear_shared(shared, job.buffers * job.x_bytes);
    load_weights(w, t.in_channels, t.out_channels, 0, job.depth, n0, job.columns, all,
                 reinterpret_cast<E *>(weights_at), job.w_pitch);
    __syncthreads();
    load_input(t, first, x, 0, job.depth, reinterpret_cast<E *>(shared), job.x_pitch);
    commit_loads();
    int buffer = 0;
    for (int tile = first; tile < t.count; tile += step, buffer ^= 1) {
        const E *const input = reinterpret_cast<const E *>(shared + buffer * job.x_bytes);
        if (tile + step < t.count)
            load_input(t, tile + step, x, 0, job.depth,
                       reinterpret_cast<E *>(shared + (buffer ^ 1) * job.x_bytes), job.x_pitch);
        commit_loads();
        wait_loads<1>();
        __syncthreads();
        for (int item = threadIdx.x / 32; item < items; item += THREADS / 32) {
            const int n = item % rounds * 16 * NT, q = item / rounds % strips * 16 * MT;
            const wmma_class c = class_of(t, 3 - item / rounds / strips); /* the one with most taps first */
            if (n0 + n < t.out_channels)
                convolve_strip<T, MT, NT>(t, c, tile, q, n0 + n, input + q * job.x_pitch, job.x_pitch,
                                          weights + n, job.w_pitch, job.depth, end, staging, seen, y);
        }
        __syncthreads();
    }
    return seen;
}

#endif
