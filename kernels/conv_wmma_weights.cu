/* Weight gradient of the 3x3 convolution on tensor cores (conv_wmma.cu): padding 1, stride 1 or 2, channel
 * counts that are multiples of 16; wmma_gradient.cuh has how.
 *
 * Parts of the gradient, one for each share of the tiles, [share][9][out][in], are added by merge.cu. The
 * number of shares depends on shape and precision alone. Parts are overwritten; nothing aliases. */
#include "kernels/wmma_gradient.cuh"

#define BLOCKS     128         /* wanted */
#define TILE_BYTES (64 * 1024) /* of x and dz together */
#define MOST_BYTES (79 * 1024) /* where one row needs more than is wanted */

/* Blocks of a multiprocessor that registers must leave room for: loads that convert need more of them. */
template <typename T, typename X, int CT> constexpr int blocks_wanted() {
    return sizeof(X) == sizeof(typename T::element) ? 16 / warps_of<CT>::COUNT : 1;
}

template <typename T, typename X, typename Y, int CT>
static __global__ void __launch_bounds__(32 * warps_of<CT>::COUNT, blocks_wanted<T, X, CT>())
    partial_gradients(gradient_job job, const X *__restrict__ x, const Y *__restrict__ dz,
                      float *__restrict__ partial) {
    TN_DYNAMIC_SHARED(char, shared);
    gradient_tiles<T, X, Y, CT, 9>(job, blockIdx.x, blockIdx.y * CT, blockIdx.z * CT, 0, x, dz, partial,
                                   shared);
}

/* ---- planning ---- */

static int divide_up(int a, int b) {
    return (a + b - 1) / b;
}

static void measure(gradient_job *job, const tn_conv_shape *s, int element, int band, int images) {
    const int pitch = element == 2 ? wmma_pitch<bf16>(job->channels) : wmma_pitch<float>(job->channels);
    job->t = wmma_tiles_of(s, band, images, 16);
    job->x_bytes = (job->t.pixels * pitch * element + 127) / 128 * 128;
    job->buffer_bytes = job->x_bytes + (job->t.positions * pitch * element + 127) / 128 * 128;
}

bool tn_wmma_plan_gradient(const tn_conv_shape *s, tn_wmma unit, int channels, int rows, int blocks,
                           int tile_bytes, gradient_job *job) {
    const int element = unit == TN_WMMA_BF16 ? 2 : 4;
    const int columns =
                  divide_up(s->in_channels, channels) * divide_up(s->out_channels, channels) * (3 / rows),
              wanted = blocks / columns > 1 ? blocks / columns : 1, pairs = channels / 16 * (channels / 16);
    job->channels = channels;
    int band = s->out_height, images = 1;
    for (measure(job, s, element, band, 1); band > 1 && job->buffer_bytes > tile_bytes; band--)
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
    const int merged = pairs > 8 ? 0 : pairs * rows * 3 * GRADIENT_TAP * (int)sizeof(float);
    job->shared = job->buffers * job->buffer_bytes;
    if (job->shared < merged) job->shared = merged;
    return true;
}

/* `converts`: a tensor is not stored as it is multiplied; the widest blocks have no registers left for that.
 */
static bool plan(const tn_conv_shape *s, tn_wmma unit, bool converts, gradient_job *job) {
    const int most = s->in_channels > s->out_channels ? s->in_channels : s->out_channels;
    const bool wide = !converts && divide_up(s->in_channels, 64) * divide_up(s->out_channels, 64) >= 16;
    return tn_wmma_plan_gradient(s, unit, most <= 16 ? 16 : wide ? 64 : 32, 3, BLOCKS, TILE_BYTES, job);
}

/* ---- launchers ---- */

template <typename T, typename X, typename Y, int CT>
static cudaError_t start(const gradient_job *job, const void *x, const void *dz, float *partial,
                         cudaStream_t stream) {
    cudaError_t error = cudaFuncSetAttribute(partial_gradients<T, X, Y, CT>,
                                             cudaFuncAttributeMaxDynamicSharedMemorySize, job->shared);
    if (error != cudaSuccess) return error;
    const dim3 grid((unsigned)job->splits, (unsigned)divide_up(job->t.in_channels, CT),
                    (unsigned)divide_up(job->t.out_channels, CT));
    TN_LAUNCH((partial_gradients<T, X, Y, CT>), grid, 32 * warps_of<CT>::COUNT, (size_t)job->shared, stream,
              *job, static_cast<const X *>(x), static_cast<const Y *>(dz), partial);
    return cudaGetLastError();
}

template <typename T, typename X, typename Y>
static cudaError_t launch(const gradient_job *job, const void *x, const void *dz, float *partial,
                          cudaStream_t stream) {
    if (job->channels == 16) return start<T, X, Y, 16>(job, x, dz, partial, stream);
    if (job->channels == 32) return start<T, X, Y, 32>(job, x, dz, partial, stream);
    if constexpr (sizeof(X) == sizeof(typename T::element) && sizeof(Y) == sizeof(typename T::element))
        return start<T, X, Y, 64>(job, x, dz, partial, stream);
    else
        return cudaErrorInvalidValue;
}

template <typename X, typename Y>
static cudaError_t launch_bf16(const gradient_job *job, const void *x, const void *dz, float *partial,
                               cudaStream_t stream) {
    return launch<in_bf16, X, Y>(job, x, dz, partial, stream);
}

int tn_wmma3x3_weights_fit(const tn_conv_shape *shape, tn_wmma unit) {
    gradient_job job;
    return plan(shape, unit, false, &job) && plan(shape, unit, true, &job);
}

static bool converts(tn_wmma unit, tn_storage x_store, tn_storage y_store) {
    return unit == TN_WMMA_BF16 && (x_store == TN_STORE_F32 || y_store == TN_STORE_F32);
}

int tn_wmma3x3_parts(const tn_conv_shape *shape, tn_wmma unit, tn_storage x_store, tn_storage y_store) {
    gradient_job job;
    return plan(shape, unit, converts(unit, x_store, y_store), &job) ? job.splits : 0;
}

cudaError_t tn_launch_wmma3x3_backward_weights(const tn_conv_shape *shape, tn_wmma unit, tn_storage x_store,
                                               const void *x, tn_storage y_store, const void *dz,
                                               float *parts, cudaStream_t stream) {
    gradient_job job;
    if (bad_wmma3x3(shape) || shape->rows < 1 ||
        too_large((size_t)shape->out_channels * shape->in_channels, 9) ||
        !plan(shape, unit, converts(unit, x_store, y_store), &job))
        return cudaErrorInvalidValue;
    if (unit == TN_WMMA_TF32 && (x_store != TN_STORE_F32 || y_store != TN_STORE_F32))
        return cudaErrorInvalidValue;
    if (misaligned(x) || misaligned(dz) || reinterpret_cast<uintptr_t>(parts) % 32)
        return cudaErrorMisalignedAddress;
    if (unit == TN_WMMA_TF32) return launch<in_tf32, float, float>(&job, x, dz, parts, stream);
    return TN_PICK2(launch_bf16, x_store, y_store)(&job, x, dz, parts, stream);
}
