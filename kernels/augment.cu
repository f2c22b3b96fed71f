/* Batches from a data set that lives on the device as uint8: gather, crop, flip, normalise, mixup, targets.
 *
 * Image i of the batch is sample order[state->first + i]; what happens to it is drawn by cuRAND's Philox from
 * the same stream as tn_augment_draw of src/data, (seed, TN_RNG_AUGMENT, epoch, sample): the counter (block,
 * sample, epoch, purpose) is cuRAND's (offset / 4 low, high, subsequence low, high). Pixels go through the
 * same table and mixup through the same unfused multiply and add, so that the floats equal those of the host
 * loader bit for bit.
 *
 * Outputs are overwritten, nothing aliases. Rows from state->rows on become zeros. */
#include <curand_kernel.h>

#include "kernels/device.cuh"

#define RNG_AUGMENT 3 /* TN_RNG_AUGMENT of src/base/philox.h */

typedef struct placement {
    int sample, down, right, flip;
} placement;

/* Uniform in [0, n) without bias: tn_rng_below. */
__device__ __forceinline__ uint32_t below(curandStatePhilox4_32_10_t *rng, uint32_t n) {
    uint64_t product = (uint64_t)curand(rng) * n;
    if ((uint32_t)product < n) {
        const uint32_t threshold = (0u - n) % n;
        while ((uint32_t)product < threshold) product = (uint64_t)curand(rng) * n;
    }
    return (uint32_t)(product >> 32);
}

__device__ __forceinline__ int sample_at(const tn_augment_config &c, int place) {
    return c.order ? c.order[place] : place;
}

/* What happens to the image at `place` of the order. */
__device__ __forceinline__ placement draw(const tn_augment_config &c, const tn_batch_state *state,
                                          int place) {
    placement p = {sample_at(c, place), 0, 0, 0};
    if (!c.draw) return p;
    curandStatePhilox4_32_10_t rng;
    curand_init(state->seed, (unsigned long long)RNG_AUGMENT << 32 | (uint32_t)state->epoch,
                (unsigned long long)(uint32_t)p.sample << 34, &rng);
    const uint32_t places = 2 * (uint32_t)c.padding + 1;
    p.down = (int)below(&rng, places) - c.padding;
    p.right = (int)below(&rng, places) - c.padding;
    p.flip = (curand(&rng) >> 31) != 0 && c.may_flip;
    return p;
}

/* Value of the augmented image at pixel (y, x). */
__device__ __forceinline__ float pixel_of(const tn_augment_config &c, const placement &p, int y, int x,
                                          int channel) {
    const int row = y + p.down, column = (p.flip ? c.width - 1 - x : x) + p.right;
    int value = 0;
    if (row >= 0 && row < c.height && column >= 0 && column < c.width)
        value = c.pixels[(((size_t)p.sample * c.height + row) * c.width + column) * c.channels + channel];
    return c.table[channel * 256 + value];
}

/* blockIdx.y is the row of the batch; a thread makes one value. */
template <typename T>
static __global__ void __launch_bounds__(THREADS)
    augment_kernel(tn_augment_config c, const tn_batch_state *__restrict__ state, T *__restrict__ images) {
    __shared__ placement places[2];
    const int row = blockIdx.y, count = c.height * c.width * c.channels;
    const bool inside = row < state->rows, mixed = inside && c.partner;
    if (threadIdx.x == 0 && inside) places[0] = draw(c, state, state->first + row);
    if (threadIdx.x == 32 && mixed) places[1] = draw(c, state, c.partner[row]);
    __syncthreads();
    const int i = blockIdx.x * THREADS + threadIdx.x;
    if (i >= count) return;
    const int channel = i % c.channels, x = i / c.channels % c.width, y = i / c.channels / c.width;
    float value = inside ? pixel_of(c, places[0], y, x, channel) : 0.0f;
    if (mixed) {
        const float other = pixel_of(c, places[1], y, x, channel);
        value = __fadd_rn(__fmul_rn(state->own, value), __fmul_rn(1.0f - state->own, other));
    }
    images[(size_t)row * count + i] = from_float<T>(value);
}

template <typename T>
static void augment(const tn_augment_config *config, const tn_batch_state *state, void *images,
                    cudaStream_t stream) {
    const int count = config->height * config->width * config->channels;
    const dim3 grid(blocks_for((unsigned)count), (unsigned)config->rows);
    TN_LAUNCH(augment_kernel<T>, grid, THREADS, 0, stream, *config, state, static_cast<T *>(images));
}

/* cuRAND's offset counts to 2^64 numbers, which leaves 2^30 samples; a grid has at most 65535 rows. */
static bool bad_config(const tn_augment_config *c) {
    return c->rows < 0 || c->rows > 65535 || c->channels < 1 || c->channels > TN_KERNEL_CHANNELS ||
           c->height < 1 || c->width < 1 || c->padding < 0 ||
           too_large((size_t)c->height * c->width, (size_t)c->channels);
}

cudaError_t tn_launch_augment(const tn_augment_config *config, const tn_batch_state *state, tn_storage store,
                              void *images, cudaStream_t stream) {
    if (bad_config(config)) return cudaErrorInvalidValue;
    if (config->rows == 0) return cudaSuccess;
    TN_PICK1(augment, store)(config, state, images, stream);
    return cudaGetLastError();
}

/* A block for each row. */
static __global__ void __launch_bounds__(THREADS)
    targets_kernel(tn_augment_config c, float keep, float spread, const tn_batch_state *__restrict__ state,
                   float *__restrict__ targets, int *__restrict__ labels, float *__restrict__ weights) {
    const int row = blockIdx.x;
    const bool inside = row < state->rows, mixed = inside && c.partner;
    const int label = inside ? c.labels[sample_at(c, state->first + row)] : 0;
    const int second = mixed ? c.labels[sample_at(c, c.partner[row])] : label;
    const float own = mixed ? state->own : 1.0f, other = 1.0f - own;
    for (int k = threadIdx.x; k < c.classes; k += THREADS) {
        float t = 0.0f;
        if (inside && k == label) t = own;
        if (mixed && k == second) t += other;
        if (inside && c.smoothing > 0) t = __fadd_rn(__fmul_rn(keep, t), spread);
        targets[(size_t)row * c.classes + k] = t;
    }
    if (threadIdx.x) return;
    labels[row] = own < 0.5f ? second : label;
    if (weights) weights[row] = inside ? (float)(1.0 / state->rows) : 0.0f;
}

cudaError_t tn_launch_targets(const tn_augment_config *config, const tn_batch_state *state, float *targets,
                              int *labels, float *weights, cudaStream_t stream) {
    if (bad_config(config) || config->classes < 1) return cudaErrorInvalidValue;
    if (config->rows == 0) return cudaSuccess;
    TN_LAUNCH(targets_kernel, (unsigned)config->rows, THREADS, 0, stream, *config,
              (float)(1.0 - config->smoothing), (float)(config->smoothing / config->classes), state, targets,
              labels, weights);
    return cudaGetLastError();
}
