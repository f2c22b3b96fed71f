/* Direct 3x3 convolution on tensor cores, padding 1, stride 1 or 2, NHWC, channel counts that are multiples
 * of 16; its weight gradient is in conv_wmma_weights.cu, the tiles are described in wmma.cuh.
 *
 * - forward: y = act(s * conv(x, w) + c + bias + r) + d, and the ReLU mask, in one pass
 * - backward data: the same with reversed taps and exchanged channels; dx = gate * (conv + r) and its sums,
 *   where r is another part of the gradient and gate the mask of whoever made x
 *
 * Up to 128 bytes of channels (64 in bf16), the weights of a block's output channels stay in shared memory
 * while the block goes through its tiles, loading one ahead. Above, and for images of which too few rows
 * would fit, a block computes one tile and takes input and weights in slices of 32 bytes of channels, loading
 * one slice ahead; its sums stay in registers meanwhile. Outputs are overwritten; y may be r. */
#include "kernels/wmma_end.cuh"

#define WIDE_WARPS 16 /* of a block that streams */

/* ---- kernels ---- */

template <typename T, typename X, typename Y, int NT>
static __global__ void __launch_bounds__(THREADS, 2)
    conv_resident(conv_job job, const X *__restrict__ x, const typename T::element *__restrict__ w,
                  conv_end end, Y *y) {
    TN_DYNAMIC_SHARED(char, shared);
    const conv_seen seen =
        convolve_tiles<T, X, Y, NT>(job, blockIdx.x, gridDim.x, blockIdx.y * COLUMNS, x, w, end, y, shared);
    report(end, seen, blockIdx.y * gridDim.x + blockIdx.x);
}

/* One tile (and class, blockIdx.z), slices of channels; a warp has 32 positions. Shared memory: two buffers
 * of input, two of weights, staging. */
template <typename T, typename X, typename Y>
static __global__ void __launch_bounds__(32 * WIDE_WARPS)
    conv_streamed(conv_job job, const X *__restrict__ x, const typename T::element *__restrict__ w,
                  conv_end end, Y *y) {
    typedef typename T::element E;
    constexpr int MT = 2, NT = COLUMNS / 16, PITCH = wmma_pitch<E>(COLUMNS), DEPTH = T::K;
    TN_DYNAMIC_SHARED(char, shared);
    const wmma_tiles &t = job.t;
    char *const weights_at = shared + 2 * job.x_bytes;
    const int warp = threadIdx.x / 32, tile = blockIdx.x, n0 = blockIdx.y * COLUMNS, q = warp * 16 * MT,
              slices = t.in_channels / DEPTH;
    float *const staging = reinterpret_cast<float *>(weights_at + 2 * job.w_bytes + warp * STAGING_BYTES);
    const wmma_class c = class_of(t, blockIdx.z);
    conv_seen seen = {};
    typename fragments<T>::sums sums[MT][NT];
#pragma unroll
    for (int i = 0; i < MT * NT; i++) wmma::fill_fragment(sums[i / NT][i % NT], 0.0f);

    clear_shared(shared, 2 * job.x_bytes);
    __syncthreads();
    for (int slice = -1; slice < slices; slice++) {
        const int next = slice + 1, into = next & 1;
        if (next < slices) {
            load_input(t, tile, x, next * DEPTH, DEPTH, reinterpret_cast<E *>(shared + into * job.x_bytes),
                       DEPTH);
            load_weights(w, t.in_channels, t.out_channels, next * DEPTH, DEPTH, n0, COLUMNS, c,
                         reinterpret_cast<E *>(weights_at + into * job.w_bytes), PITCH);
        }
        commit_loads();
        if (slice < 0) continue;
        wait_loads<1>();
        __syncthreads();
        if (q < t.positions)
            multiply_taps<T, MT, NT>(
                sums, t, c, reinterpret_cast<const E *>(shared + (slice & 1) * job.x_bytes) + q * DEPTH,
                DEPTH, reinterpret_cast<const E *>(weights_at + (slice & 1) * job.w_bytes), PITCH, DEPTH);
        __syncthreads();
    }
    if (q < t.positions) {
#pragma unroll
        for (int m = 0; m < MT; m++)
            finish<T, Y, NT>(t, c, tile, q + 16 * m, n0, sums[m], end, staging, seen, y);
    }
    report(end, seen, (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x);
}

/* ---- planning: by shape and precision alone ---- */

#define MAX_WIDTH     256         /* of an output row that a block can stream */
#define INPUT_BYTES   (40 * 1024) /* of a tile of input whose weights stay; less beside large weights */
#define RESIDENT_ROWS 8           /* tiles of fewer rows reread too much of their neighbours */
#define BLOCKS        528         /* wanted, at most, where blocks go through several tiles */
#define FEW_TILES     264         /* fewer are cut in two */

static int divide_up(int a, int b) {
    return (a + b - 1) / b;
}

static int round128(int bytes) {
    return (bytes + 127) / 128 * 128;
}

/* Rows of positions. */
static int grid_height(const tn_conv_shape *s) {
    return s->stride == WMMA_UP ? s->in_height : s->out_height;
}

/* The largest even share of the rows that is at most `band`. */
static int even_band(int rows, int band) {
    return divide_up(rows, divide_up(rows, band));
}

static bool plan_resident(const tn_conv_shape *s, int element, conv_job *job) {
    const int height = grid_height(s);
    if (s->in_channels * element > 128) return false;
    const int most = s->out_channels < COLUMNS ? s->out_channels : COLUMNS;
    job->depth = s->in_channels;
    job->columns = most;
    job->x_pitch = element == 2 ? wmma_pitch<bf16>(job->depth) : wmma_pitch<float>(job->depth);
    job->w_pitch = element == 2 ? wmma_pitch<bf16>(most) : wmma_pitch<float>(most);
    job->w_bytes = round128(9 * job->depth * job->w_pitch * element);
    const int fixed = job->w_bytes + THREADS / 32 * STAGING_BYTES;
    const int room =
        (WMMA_SHARED_BYTES - fixed) / 2 < INPUT_BYTES ? (WMMA_SHARED_BYTES - fixed) / 2 : INPUT_BYTES;
    int band = height, least = band < RESIDENT_ROWS ? band : RESIDENT_ROWS;
    for (;; band--) {
        if (band < least) return false;
        job->t = wmma_tiles_of(s, band, 1, 32);
        job->x_bytes = round128(job->t.pixels * job->x_pitch * element);
        if (job->x_bytes <= room) break;
    }
    band = even_band(height, band);
    if (band >= 2 * RESIDENT_ROWS && divide_up(height, band) * s->rows < FEW_TILES) band = divide_up(band, 2);
    int images = 1;
    while (band == height && images < s->rows && wmma_tiles_of(s, band, images + 1, 1).positions <= 96)
        images++;
    job->t = wmma_tiles_of(s, band, images, 32);
    job->x_bytes = round128(job->t.pixels * job->x_pitch * element);
    return job->x_bytes <= room;
}

static bool plan_streamed(const tn_conv_shape *s, int element, conv_job *job) {
    const int most = s->stride == 2 ? 16 * WIDE_WARPS : 32 * WIDE_WARPS, height = grid_height(s);
    if (wmma_tiles_of(s, 1, 1, 1).grid_width > MAX_WIDTH) return false;
    job->depth = 32 / element;
    job->columns = COLUMNS;
    job->x_pitch = job->depth;
    job->w_pitch = element == 2 ? wmma_pitch<bf16>(COLUMNS) : wmma_pitch<float>(COLUMNS);
    job->w_bytes = round128(9 * job->depth * job->w_pitch * element);
    int band = height, images = 1;
    while (band > 1 && wmma_tiles_of(s, band, 1, 32).positions > most) band--;
    band = even_band(height, band);
    while (band == height && images < s->rows && wmma_tiles_of(s, band, images + 1, 32).positions <= most)
        images++;
    job->t = wmma_tiles_of(s, band, images, 32);
    job->x_bytes = round128(job->t.pixels * 32);
    return true;
}

bool tn_wmma_plan_conv(const tn_conv_shape *s, tn_wmma unit, conv_launch *l) {
    const int element = unit == TN_WMMA_BF16 ? 2 : 4, columns = divide_up(s->out_channels, COLUMNS);
    l->resident = plan_resident(s, element, &l->job);
    if (!l->resident && !plan_streamed(s, element, &l->job)) return false;
    const conv_job *job = &l->job;
    int blocks = job->t.count;
    if (l->resident) {
        const int wanted = BLOCKS / columns > 1 ? BLOCKS / columns : 1;
        if (blocks > wanted) blocks = wanted;
        l->job.buffers = blocks < job->t.count ? 2 : 1;
        l->threads = THREADS;
    } else {
        l->job.buffers = 2;
        l->threads = job->t.positions;
    }
    l->grid = dim3((unsigned)blocks, (unsigned)columns, l->resident || s->stride != WMMA_UP ? 1 : 4);
    l->shared =
        job->buffers * job->x_bytes + (l->resident ? 1 : 2) * job->w_bytes + l->threads / 32 * STAGING_BYTES;
    return true;
}

/* ---- launchers ---- */

template <typename T, typename X, typename Y, int NT>
static cudaError_t launch_resident(const conv_launch *l, const X *x, const typename T::element *w,
                                   const conv_end &end, Y *y, cudaStream_t stream) {
    cudaError_t error = cudaFuncSetAttribute(conv_resident<T, X, Y, NT>,
                                             cudaFuncAttributeMaxDynamicSharedMemorySize, l->shared);
    if (error != cudaSuccess) return error;
    TN_LAUNCH((conv_resident<T, X, Y, NT>), l->grid, (unsigned)l->threads, (size_t)l->shared, stream, l->job,
              x, w, end, y);
    return cudaGetLastError();
}

template <typename T, typename X, typename Y>
static cudaError_t launch_streamed(const conv_launch *l, const X *x, const typename T::element *w,
                                   const conv_end &end, Y *y, cudaStream_t stream) {
    cudaError_t error =
        cudaFuncSetAttribute(conv_streamed<T, X, Y>, cudaFuncAttributeMaxDynamicSharedMemorySize, l->shared);
    if (error != cudaSuccess) return error;
    TN_LAUNCH((conv_streamed<T, X, Y>), l->grid, (unsigned)l->threads, (size_t)l->shared, stream, l->job, x,
              w, end, y);
    return cudaGetLastError();
}

template <typename T, typename X, typename Y>
static cudaError_t launch(const conv_launch *l, const void *from, const void *weights, const conv_end &end,
                          void *to, cudaStream_t stream) {
    const X *x = static_cast<const X *>(from);
    const typename T::element *w = static_cast<const typename T::element *>(weights);
    Y *y = static_cast<Y *>(to);
    if (!l->resident) return launch_streamed<T, X, Y>(l, x, w, end, y, stream);
    if (l->job.columns % 32) return launch_resident<T, X, Y, 1>(l, x, w, end, y, stream);
    return launch_resident<T, X, Y, 2>(l, x, w, end, y, stream);
}

template <typename X, typename Y>
static cudaError_t launch_bf16(const conv_launch *l, const void *x, const void *w, const conv_end &end,
                               void *y, cudaStream_t stream) {
    return launch<in_bf16, X, Y>(l, x, w, end, y, stream);
}

static cudaError_t convolve(const conv_launch *l, tn_wmma unit, tn_storage x_store, const void *x,
                            const void *w, const conv_end &end, tn_storage y_store, void *y,
                            cudaStream_t stream) {
    if (unit == TN_WMMA_BF16) return TN_PICK2(launch_bf16, x_store, y_store)(l, x, w, end, y, stream);
    if (x_store != TN_STORE_F32 || y_store != TN_STORE_F32) return cudaErrorInvalidValue;
    return launch<in_tf32, float, float>(l, x, w, end, y, stream);
}

static int block_count(const conv_launch *l) {
    return (int)(l->grid.x * l->grid.y * l->grid.z);
}

int tn_wmma3x3_takes(const tn_conv_shape *shape, tn_wmma unit) {
    conv_launch l;
    const tn_conv_shape back = reversed(shape);
    return !bad_wmma3x3(shape) && tn_wmma_plan_conv(shape, unit, &l) && tn_wmma_plan_conv(&back, unit, &l) &&
           tn_wmma3x3_weights_fit(shape, unit);
}

cudaError_t tn_launch_wmma3x3_forward(const tn_conv_shape *shape, tn_wmma unit, tn_storage x_store,
                                      const void *x, const void *w, tn_epilogue epilogue, tn_storage y_store,
                                      void *y, cudaStream_t stream) {
    conv_launch l;
    if (bad_wmma3x3(shape) || !tn_wmma_plan_conv(shape, unit, &l)) return cudaErrorInvalidValue;
    if (misaligned(x) || misaligned(y) || misaligned(w) || misaligned(epilogue.r))
        return cudaErrorMisalignedAddress;
    if (shape->rows == 0) return cudaSuccess;
    const conv_end end = {epilogue, NULL, NULL, 0};
    return convolve(&l, unit, x_store, x, w, end, y_store, y, stream);
}

int tn_wmma3x3_sum_parts(const tn_conv_shape *shape, tn_wmma unit) {
    const tn_conv_shape back = reversed(shape);
    conv_launch l;
    return tn_wmma_plan_conv(&back, unit, &l) ? block_count(&l) : 0;
}

cudaError_t tn_launch_wmma3x3_backward_data(const tn_conv_shape *shape, tn_wmma unit, tn_storage y_store,
                                            const void *dz, const void *w, tn_gate gate, tn_storage x_store,
                                            void *dx, cudaStream_t stream) {
    const tn_conv_shape back = reversed(shape);
    conv_launch l;
    if (bad_wmma3x3(shape) || !tn_wmma_plan_conv(&back, unit, &l)) return cudaErrorInvalidValue;
    if (misaligned(dz) || misaligned(dx) || misaligned(w) || misaligned(gate.r))
        return cudaErrorMisalignedAddress;
    if (shape->rows == 0) return cudaSuccess;
    return convolve(&l, unit, y_store, dz, w, end_of(gate, block_count(&l)), x_store, dx, stream);
}
