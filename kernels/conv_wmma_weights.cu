/* Weight gradient of the 3x3 convolution on tensor cores (conv_wmma.cu): padding 1, stride 1 or 2, channel
 * counts that are multiples of 16.
 *
 *   dw[co][ci][tap] = sum over pixels of dz[pixel][co] * x[pixel * stride + tap - 1][ci]
 *
 * Both tensors stand in shared memory at the positions of wmma.cuh: sixteen consecutive positions are one
 * fragment of dz, transposed, and, shifted by a tap, one of x. Positions that are no pixels have dz = 0. A
 * block has CT x CT channels and goes through its share of the tiles, loading one ahead; a warp has 16 x 16
 * of them with all nine taps, and where warps are left over they share the positions. Partial gradients, one
 * for each share of tiles, [share][9][out][in], are added in a fixed order. The number of shares depends on
 * shape and precision alone. dw is overwritten; nothing aliases. */
#include "kernels/wmma.cuh"

#define BLOCKS     128         /* wanted */
#define TILE_BYTES (64 * 1024) /* of x and dz together, where one row does not need more */
#define MOST_BYTES (79 * 1024)

typedef struct gradient_job {
    wmma_tiles t;
    int channels, splits; /* of a block, a side; shares of the tiles */
    int buffers, x_bytes, buffer_bytes;
} gradient_job;

template <int CT> struct warps_of {
    static constexpr int PAIRS = CT / 16 * (CT / 16), COUNT = PAIRS > 8 ? PAIRS : 8, SHARES = COUNT / PAIRS;
};

template <typename T, typename X, typename Y>
__device__ __forceinline__ void load_both(const gradient_job &job, int tile, const X *x, const Y *dz, int ci0,
                                          int co0, char *to) {
    typedef typename T::element E;
    const wmma_tiles &t = job.t;
    const int pitch = wmma_pitch<E>(job.channels);
    load_input(t, tile, x, ci0, min(job.channels, t.in_channels - ci0), reinterpret_cast<E *>(to), pitch);
    load_output(t, tile, dz, co0, min(job.channels, t.out_channels - co0),
                reinterpret_cast<E *>(to + job.x_bytes), pitch);
}

template <typename T, typename X, typename Y, int CT>
static __global__ void __launch_bounds__(32 * warps_of<CT>::COUNT)
    partial_gradients(gradient_job job, const X *__restrict__ x, const Y *__restrict__ dz,
                      float *__restrict__ partial) {
    typedef typename T::element E;
    constexpr int PITCH = wmma_pitch<E>(CT), GROUPS = CT / 16, PAIRS = warps_of<CT>::PAIRS,
                  SHARES = warps_of<CT>::SHARES;
    TN_DYNAMIC_SHARED(char, shared);
    const wmma_tiles &t = job.t;
    const int warp = threadIdx.x / 32, share = warp / PAIRS, pair = warp % PAIRS;
    const int ci0 = blockIdx.y * CT, co0 = blockIdx.z * CT, ci = pair % GROUPS * 16, co = pair / GROUPS * 16;
    const bool mine = ci0 + ci < t.in_channels && co0 + co < t.out_channels;
    typename fragments<T>::sums sums[9];
#pragma unroll
    for (int tap = 0; tap < 9; tap++) wmma::fill_fragment(sums[tap], 0.0f);

    clear_shared(shared, job.buffers * job.buffer_bytes);
    __syncthreads();
    load_both<T>(job, blockIdx.x, x, dz, ci0, co0, shared);
    commit_loads();
    int buffer = 0;
    for (int tile = blockIdx.x; tile < t.count; tile += job.splits, buffer ^= 1) {
        const char *const at = shared + buffer * job.buffer_bytes;
        if (tile + job.splits < t.count)
            load_both<T>(job, tile + job.splits, x, dz, ci0, co0, shared + (buffer ^ 1) * job.buffer_bytes);
        commit_loads();
        wait_loads<1>();
        __syncthreads();
        for (int q = share * T::K; mine && q < t.positions; q += SHARES * T::K)
            multiply_gradient<T>(sums, t, reinterpret_cast<const E *>(at) + q * PITCH + ci, PITCH,
                                 reinterpret_cast<const E *>(at + job.x_bytes) + q * PITCH + co, PITCH);
        __syncthreads();
    }
    if (SHARES > 1)
        add_shares<T, SHARES>(sums, reinterpret_cast<float *>(shared) + pair * SHARED_GRADIENT, share);
    if (share != SHARES - 1 || !mine) return;
#pragma unroll
    for (int tap = 0; tap < 9; tap++)
        wmma::store_matrix_sync(
            partial + ((size_t)(blockIdx.x * 9 + tap) * t.out_channels + co0 + co) * t.in_channels + ci0 + ci,
            sums[tap], (unsigned)t.in_channels, wmma::mem_row_major);
}

/* ---- planning: by shape and precision alone ---- */

static int divide_up(int a, int b) {
    return (a + b - 1) / b;
}

static void measure(gradient_job *job, const tn_conv_shape *s, int element, int band, int images) {
    const int pitch = element == 2 ? wmma_pitch<bf16>(job->channels) : wmma_pitch<float>(job->channels);
    job->t = wmma_tiles_of(s, band, images, 16);
    job->x_bytes = (job->t.pixels * pitch * element + 127) / 128 * 128;
    job->buffer_bytes = job->x_bytes + (job->t.positions * pitch * element + 127) / 128 * 128;
}

static bool plan(const tn_conv_shape *s, tn_wmma unit, gradient_job *job) {
    const int element = unit == TN_WMMA_BF16 ? 2 : 4,
              most = s->in_channels > s->out_channels ? s->in_channels : s->out_channels;
    const bool wide = divide_up(s->in_channels, 64) * divide_up(s->out_channels, 64) >= 16;
    job->channels = most <= 16 ? 16 : wide ? 64 : 32;
    const int blocks = divide_up(s->in_channels, job->channels) * divide_up(s->out_channels, job->channels),
              wanted = BLOCKS / blocks > 1 ? BLOCKS / blocks : 1;
    int band = s->out_height, images = 1;
    for (measure(job, s, element, band, 1); band > 1 && job->buffer_bytes > TILE_BYTES; band--)
        measure(job, s, element, band - 1, 1);
    if (job->buffer_bytes > MOST_BYTES) return false;
    band = divide_up(s->out_height, divide_up(s->out_height, band));
    while (band >= 8 && divide_up(s->out_height, band) * s->rows < wanted) band = divide_up(band, 2);
    while (band == s->out_height && divide_up(s->rows, images + 1) >= wanted &&
           wmma_tiles_of(s, band, images + 1, 16).positions <= 128)
        images++;
    measure(job, s, element, band, images);
    job->splits = wanted < job->t.count ? wanted : job->t.count;
    job->buffers = job->splits < job->t.count ? 2 : 1;
    return true;
}

/* ---- launchers ---- */

template <typename T, typename X, typename Y, int CT>
static cudaError_t start(const gradient_job *job, const void *x, const void *dz, float *partial,
                         cudaStream_t stream) {
    const int merged =
                  warps_of<CT>::SHARES > 1 ? warps_of<CT>::PAIRS * SHARED_GRADIENT * (int)sizeof(float) : 0,
              tiles = job->buffers * job->buffer_bytes, bytes = tiles > merged ? tiles : merged;
    cudaError_t error = cudaFuncSetAttribute(partial_gradients<T, X, Y, CT>,
                                             cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    if (error != cudaSuccess) return error;
    const dim3 grid((unsigned)job->splits, (unsigned)divide_up(job->t.in_channels, CT),
                    (unsigned)divide_up(job->t.out_channels, CT));
    TN_LAUNCH((partial_gradients<T, X, Y, CT>), grid, 32 * warps_of<CT>::COUNT, (size_t)bytes, stream, *job,
              static_cast<const X *>(x), static_cast<const Y *>(dz), partial);
    return cudaGetLastError();
}

template <typename T, typename X, typename Y>
static cudaError_t launch(const gradient_job *job, const void *x, const void *dz, float *partial,
                          cudaStream_t stream) {
    if (job->channels == 16) return start<T, X, Y, 16>(job, x, dz, partial, stream);
    if (job->channels == 32) return start<T, X, Y, 32>(job, x, dz, partial, stream);
    return start<T, X, Y, 64>(job, x, dz, partial, stream);
}

template <typename X, typename Y>
static cudaError_t launch_bf16(const gradient_job *job, const void *x, const void *dz, float *partial,
                               cudaStream_t stream) {
    return launch<in_bf16, X, Y>(job, x, dz, partial, stream);
}

int tn_wmma3x3_weights_fit(const tn_conv_shape *shape, tn_wmma unit) {
    gradient_job job;
    return plan(shape, unit, &job);
}

size_t tn_wmma3x3_workspace(const tn_conv_shape *shape, tn_wmma unit) {
    gradient_job job;
    if (!plan(shape, unit, &job)) return 0;
    return (size_t)job.splits * 9 * shape->out_channels * shape->in_channels * sizeof(float);
}

cudaError_t tn_launch_wmma3x3_backward_weights(const tn_conv_shape *shape, tn_wmma unit, tn_storage x_store,
                                               const void *x, tn_storage y_store, const void *dz,
                                               void *workspace, float *dw, cudaStream_t stream) {
    const size_t pairs = (size_t)shape->out_channels * shape->in_channels;
    gradient_job job;
    if (bad_wmma3x3(shape) || shape->rows < 1 || too_large(pairs, 9) || !plan(shape, unit, &job))
        return cudaErrorInvalidValue;
    if (unit == TN_WMMA_TF32 && (x_store != TN_STORE_F32 || y_store != TN_STORE_F32))
        return cudaErrorInvalidValue;
    if (misaligned(x) || misaligned(dz) || reinterpret_cast<uintptr_t>(workspace) % 32)
        return cudaErrorMisalignedAddress;
    float *partial = static_cast<float *>(workspace);
    cudaError_t error = unit == TN_WMMA_TF32
                            ? launch<in_tf32, float, float>(&job, x, dz, partial, stream)
                            : TN_PICK2(launch_bf16, x_store, y_store)(&job, x, dz, partial, stream);
    if (error != cudaSuccess) return error;
    tn_add_splits((unsigned)pairs, job.splits, partial, dw, stream);
    return cudaGetLastError();
}
