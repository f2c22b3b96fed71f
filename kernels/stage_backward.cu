/* Successive residual blocks without norms: backward (kernels.h says what is computed, stage.cuh how images
 * and weights lie in shared memory).
 *
 * With g = dL/d(output of a conv), dz = mask * g, conv after conv from the last to the first:
 *
 *   g of conv j - 1 = data gradient of dz of conv j, plus dz of conv j + 1 where j is the first conv of a
 * block: its output is also the residual of conv j + 1
 *
 * so one loop over convs serves: dz of odd convs stands in `outer`, of even ones in `branch`, each made from
 * the other, and the residual is at the pixel that is written. What conv j reads was the output of conv j -
 * 1, or x.
 *
 * Weight gradients. With 16 channels they are small against an image: each block of threads multiplies while
 * the images are in shared memory, and writes [conv][9][out][in] of its own. Wider, that would be more than
 * all activations; there dz goes to memory, and a second kernel gives each block one conv and a share of the
 * images, over which it adds in registers. Either way the parts, whose number depends on the shape alone, are
 * added by merge.cu, and so are those of the sums of dz and of g that biases want. */
#include "kernels/stage.cuh"

#define GRADIENT_BLOCKS 128 /* wanted, of the second kernel */

struct stage_backward_arguments {
    const void *x; /* of the stream's storage */
    const unsigned char *inner, *masks;
    const bf16 *weights;
    void *dx;       /* of the stream's storage */
    bf16 *dz;       /* [conv][rows][pixels][C]; NULL with 16 channels */
    float *parts;   /* [block of threads][conv][9][C][C]; NULL with more */
    double *totals; /* [conv][2][blocks of threads] */
};

/* What conv `conv` reads: the first of a block the stream, the second what is inside. */
template <typename S>
__device__ __forceinline__ const S *stream_of(const stage_backward_arguments &a, int conv, size_t tensor) {
    return static_cast<const S *>(conv ? static_cast<const void *>(a.inner + inner_at<S>(tensor, conv - 1))
                                       : a.x);
}

template <typename S>
__device__ __forceinline__ const bf16 *branch_of(const stage_backward_arguments &a, int conv, size_t tensor) {
    return reinterpret_cast<const bf16 *>(a.inner + inner_at<S>(tensor, conv - 1));
}

/* What the loop over convs carries. */
template <int C, typename S> struct backward_state {
    static constexpr bool WIDE = sizeof(S) == 4;
    stage_geometry g;
    stage_layout at;
    unsigned char *shared;
    int images, convs;
    size_t tensor, begin; /* elements of a tensor, of it before the block's images */
    bf16 *outer, *branch, *input;
    float *exact; /* WIDE: dz of the stream, beside `outer` */
    float dy_sum, dz_sum;

    __device__ __forceinline__ backward_state(const stage_geometry &geometry, unsigned char *memory)
        : g(geometry), at(geometry, C, C == 16 ? 3 : 2, WIDE), shared(memory) {
        const int first = blockIdx.x * g.images;
        images = min(g.images, g.rows - first);
        convs = 2 * g.blocks;
        tensor = (size_t)g.rows * g.pixels() * C;
        begin = (size_t)first * g.pixels() * C;
        outer = reinterpret_cast<bf16 *>(shared);
        branch = outer + at.plane_bytes / 2;
        input = branch + at.plane_bytes / 2;
        exact = reinterpret_cast<float *>(shared + at.exact_at);
        dy_sum = dz_sum = 0;
    }
    __device__ __forceinline__ void fetch_input(const stage_backward_arguments &a, int conv) const {
        if (conv % 2)
            fetch_images<C, C>(g, images, images, branch_of<S>(a, conv, tensor) + begin, input);
        else
            fetch_images<C, C>(g, images, images, stream_of<S>(a, conv, tensor) + begin, input);
    }
    __device__ __forceinline__ unsigned char *mask_of(int conv) const {
        return shared + at.masks_at + conv % 2 * at.mask_bytes;
    }
    __device__ __forceinline__ void fetch_mask(const stage_backward_arguments &a, int conv) const {
        const unsigned char *from = a.masks + (conv * tensor + begin) / 8;
        for (int i = threadIdx.x; i < images * g.pixels() * (C / 8) / 8; i += STAGE_THREADS)
            __pipeline_memcpy_async(mask_of(conv) + 8 * i, from + 8 * i, 8);
    }
    /* g of 8 channels becomes dz. */
    __device__ __forceinline__ void apply_mask(unsigned bits, float v[8]) {
#pragma unroll
        for (int j = 0; j < 8; j++) {
            dy_sum += v[j];
            if (!(bits >> j & 1)) v[j] = 0.0f;
            dz_sum += v[j];
        }
    }
    /* The sums of conv `conv`: of warps at once, of the block behind the next barrier. */
    __device__ __forceinline__ double *warp_sums(int conv) const {
        return reinterpret_cast<double *>(shared + at.sums_at) + conv % 2 * 2 * STAGE_WARPS;
    }
    __device__ __forceinline__ void add_lanes(int conv) {
        const double dz = warp_sum((double)dz_sum), dy = warp_sum((double)dy_sum);
        if (threadIdx.x % 32 == 0) {
            warp_sums(conv)[threadIdx.x / 32] = dz;
            warp_sums(conv)[STAGE_WARPS + threadIdx.x / 32] = dy;
        }
        dy_sum = dz_sum = 0;
    }
    __device__ __forceinline__ void write_total(int conv, double *totals) const {
        if (threadIdx.x >= 2) return;
        const double *from = warp_sums(conv) + threadIdx.x * STAGE_WARPS;
        double sum = 0;
        for (int i = 0; i < STAGE_WARPS; i++) sum += from[i];
        totals[(size_t)(2 * conv + threadIdx.x) * gridDim.x + blockIdx.x] = sum;
    }
};

/* dz of the last conv, from the gradients that arrive. */
template <int C, typename S>
__device__ __forceinline__ void begin_backward(backward_state<C, S> &s, const stage_backward_arguments &a,
                                               const tn_parts &dy) {
    const int last = s.convs - 1;
    for (int i = threadIdx.x; i < s.images * s.g.pixels() * (C / 8); i += STAGE_THREADS) {
        float v[8];
        load_parts<S>(dy, (unsigned)s.begin + 8 * i, (unsigned)s.tensor, v);
        s.apply_mask(a.masks[(last * s.tensor + s.begin) / 8 + i], v);
        store8(s.outer + place_of(s.g, position_of(s.g, i / (C / 8)), i % (C / 8) * 8), v);
        if (s.WIDE) store8(s.exact + i / (C / 8) * EXACT_LD(C) + i % (C / 8) * 8, v);
        if (a.dz) store8(a.dz + last * s.tensor + s.begin + 8 * i, v);
    }
    s.add_lanes(last);
}

/* The gradient of conv `conv`'s weights, made from `input` and `dz`; over all of `results`. */
template <int C, typename S>
__device__ __forceinline__ void weight_gradient(const backward_state<C, S> &s,
                                                const stage_backward_arguments &a, int conv, const bf16 *dz) {
    stage_sums sums[1][9];
    float *results = reinterpret_cast<float *>(s.shared + s.at.results_at);
#pragma unroll
    for (int tap = 0; tap < 9; tap++) nvcuda::wmma::fill_fragment(sums[0][tap], 0.0f);
    add_gradient<3, 1>(s.g, s.input, dz, 0, sums);
    merge_gradient<C, 3, 1>(sums, results, 0, 0, 0,
                            a.parts + ((size_t)blockIdx.x * s.convs + conv) * 9 * C * C);
}

template <int C, typename S>
static __global__ void __launch_bounds__(STAGE_THREADS, 1)
    stage_backward(stage_geometry g, stage_backward_arguments a, tn_parts dy) {
    typedef stage_tiling<C> t;
    constexpr bool WEIGHTS = C == 16;
    TN_DYNAMIC_SHARED(unsigned char, shared);
    backward_state<C, S> s(g, shared);
    bf16 *slabs = reinterpret_cast<bf16 *>(shared + s.at.slabs_at);
    float *results = reinterpret_cast<float *>(shared + s.at.results_at) + threadIdx.x / 32 * RESULT_FLOATS;
    short *pixel_of = reinterpret_cast<short *>(shared + s.at.pixels_at);
    stage_sums sums[t::MT][t::NT];

    const int last = s.convs - 1;
    fetch_slab<C>(a.weights + (size_t)last * t::SLABS * t::SLAB_READ, slabs);
    s.fetch_mask(a, last - 1);
    clear_planes(shared, (WEIGHTS ? 3 : 2) * s.at.plane_bytes);
    find_pixels(g, s.images, pixel_of);
    __syncthreads();
    if (WEIGHTS) s.fetch_input(a, last);
    __pipeline_commit();
    begin_backward<C, S>(s, a, dy);

    for (int step = 0; step < s.convs * t::SLABS; step++) {
        const int conv = last - step / t::SLABS, slab = step % t::SLABS;
        const bf16 *dz = conv % 2 ? s.outer : s.branch;
        __pipeline_wait_prior(0);
        __syncthreads(); /* what was fetched is there, and all results of the step before */
        if (slab == 0) s.write_total(conv, a.totals);
        if constexpr (WEIGHTS) weight_gradient<C, S>(s, a, conv, dz);
        const int next = (slab + 1 < t::SLABS ? conv : conv - 1) * t::SLABS + (slab + 1) % t::SLABS;
        if (next >= 0)
            fetch_slab<C>(a.weights + (size_t)next * t::SLAB_READ, slabs + (step + 1) % 2 * t::SLAB);
        if (slab == 0 && conv > 1) s.fetch_mask(a, conv - 2);
        if (WEIGHTS && conv > 0) s.fetch_input(a, conv - 1);
        __pipeline_commit();
        if (slab == 0) clear_sums<C>(sums);
        multiply_slab<C>(g, dz + slab * g.positions * 16, slabs + step % 2 * t::SLAB, sums);
        if (slab + 1 < t::SLABS) continue;

        bf16 *output = conv % 2 ? s.branch : s.outer;
        const unsigned char *bits = s.mask_of(conv - 1);
        bf16 *to = conv > 0 && a.dz ? a.dz + (conv - 1) * s.tensor : NULL;
        S *dx = static_cast<S *>(a.dx);
        const bool joins =
            conv % 2 == 0; /* makes the gradient of the stream, of which `outer` holds a part */
        each_result<C>(g, pixel_of, results, sums, [&](int pixel, int place, int channel, float *v) {
            float *const here = s.exact + pixel * EXACT_LD(C) + channel, r[8] = {};
            if (joins && s.WIDE) load8(here, r);
            if (joins && !s.WIDE) load8(s.outer + place, r);
#pragma unroll
            for (int j = 0; j < 8; j++) v[j] += r[j];
            if (conv == 0) {
                store8(dx + s.begin + pixel * C + channel, v);
                return;
            }
            s.apply_mask(bits[(pixel * C + channel) / 8], v);
            store8(output + place, v);
            if (joins && s.WIDE) store8(here, v);
            if (to) store8(to + s.begin + pixel * C + channel, v);
        });
        if (conv > 0) s.add_lanes(conv - 1);
    }
}

/* ---- weight gradients of 32 and 64 channels ---- */

/* Block (conv, tile, part): row tile % 3 of taps, 16 inputs, 32 outputs, images [part * share, (part + 1) *
 * share), g.images at a time, into parts[part][conv][9][C][C]. */
template <int C, typename S>
static __global__ void __launch_bounds__(STAGE_THREADS, 2)
    stage_weight_gradient(stage_geometry g, int share, stage_backward_arguments a,
                          float *__restrict__ parts) {
    TN_DYNAMIC_SHARED(unsigned char, shared);
    const int conv = blockIdx.x, kh = blockIdx.y % 3, in0 = blockIdx.y / 3 % (C / 16) * 16,
              out0 = blockIdx.y / 3 / (C / 16) * 32, first = blockIdx.z * share,
              end = min(first + share, g.rows), plane = g.positions * 16;
    const size_t image = (size_t)g.pixels() * C, tensor = (size_t)g.rows * image;
    bf16 *memory = reinterpret_cast<bf16 *>(shared); /* [2][x, two of dz] */
    float *results = reinterpret_cast<float *>(memory + 6 * plane);
    const bf16 *dz = a.dz + conv * tensor + out0;
    stage_sums sums[2][3];
#pragma unroll
    for (int k = 0; k < 6; k++) nvcuda::wmma::fill_fragment(sums[k / 3][k % 3], 0.0f);

    clear_planes(shared, 12u * (unsigned)plane);
    for (int k = -1, row = first - g.images; row < end; k++, row += g.images) { /* fetches one turn ahead */
        __pipeline_wait_prior(0);
        __syncthreads();
        const int next = row + g.images;
        if (next < end) {
            bf16 *to = memory + (k + 1) % 2 * 3 * plane;
            const int images = min(g.images, end - next);
            const size_t at = next * image;
            if (conv % 2)
                fetch_images<C, 16>(g, images, g.images, branch_of<S>(a, conv, tensor) + at + in0, to);
            else
                fetch_images<C, 16>(g, images, g.images, stream_of<S>(a, conv, tensor) + at + in0, to);
            fetch_images<C, 32>(g, images, g.images, dz + at, to + plane);
        }
        __pipeline_commit();
        if (k < 0) continue;
        const bf16 *here = memory + k % 2 * 3 * plane;
        add_gradient<1, 2>(g, here, here + plane, kh, sums);
    }
    merge_gradient<C, 1, 2>(sums, results, kh, out0, in0,
                            parts + ((size_t)blockIdx.z * gridDim.x + conv) * 9 * C * C);
}

/* ---- host ---- */

/* What one conv needs for all its weights. */
static int weight_blocks(const tn_stage_shape *s) {
    return 3 * (s->channels / 16) * (s->channels / 32);
}

/* Images that a block of the second kernel multiplies at a time: three tiles of positions for each warp. */
static int images_at_once(const tn_stage_shape *s) {
    int images = 3 * 16 * STAGE_WARPS / ((s->height + 1) * (s->width + 1));
    return images > 1 ? images : 1;
}

/* Images of a part of the second kernel. */
static int share_of(const tn_stage_shape *s) {
    const int wanted = GRADIENT_BLOCKS / (2 * s->blocks * weight_blocks(s)), parts = wanted > 1 ? wanted : 1;
    return (s->rows + parts - 1) / parts;
}

/* For dz. */
size_t tn_stage_workspace(const tn_stage_shape *s) {
    return s->channels == 16 ? 0 : (size_t)4 * s->blocks * s->rows * s->height * s->width * s->channels;
}

int tn_stage_weight_parts(const tn_stage_shape *s) {
    return s->channels == 16 ? (int)stage_grid(s) : (s->rows + share_of(s) - 1) / share_of(s);
}

int tn_stage_sum_parts(const tn_stage_shape *s) {
    return (int)stage_grid(s);
}

template <int C, typename S>
static cudaError_t multiply_gradients(const tn_stage_shape *s, const stage_backward_arguments &a,
                                      float *parts, cudaStream_t stream) {
    const stage_geometry g = geometry_of(s, images_at_once(s));
    const size_t bytes =
        (size_t)6 * g.positions * 16 * sizeof(bf16) + STAGE_WARPS * RESULT_FLOATS * sizeof(float);
    const dim3 grid(2u * (unsigned)s->blocks, (unsigned)weight_blocks(s), (unsigned)tn_stage_weight_parts(s));
    cudaError_t error = cudaFuncSetAttribute(stage_weight_gradient<C, S>,
                                             cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes);
    if (error != cudaSuccess) return error;
    TN_LAUNCH((stage_weight_gradient<C, S>), grid, STAGE_THREADS, bytes, stream, g, share_of(s), a, parts);
    return cudaGetLastError();
}

template <int C, typename S>
static cudaError_t backward(const tn_stage_shape *s, const tn_stage_gradient &b, unsigned char *workspace,
                            cudaStream_t stream) {
    const size_t bytes = tn_stage_shared(s, 1);
    stage_backward_arguments a = {b.x,
                                  static_cast<const unsigned char *>(b.inner),
                                  reinterpret_cast<const unsigned char *>(b.masks),
                                  static_cast<const bf16 *>(b.weights),
                                  b.dx,
                                  C == 16 ? NULL : reinterpret_cast<bf16 *>(workspace),
                                  C == 16 ? b.weight_parts : NULL,
                                  b.sum_parts};
    cudaError_t error =
        cudaFuncSetAttribute(stage_backward<C, S>, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes);
    if (error != cudaSuccess) return error;
    TN_LAUNCH((stage_backward<C, S>), stage_grid(s), STAGE_THREADS, bytes, stream, geometry_of(s, s->images),
              a, b.dy);
    if constexpr (C != 16)
        return multiply_gradients<C, S>(s, a, b.weight_parts, stream);
    else
        return cudaGetLastError();
}

cudaError_t tn_launch_stage_backward(const tn_stage_shape *shape, tn_stage_gradient gradient, void *workspace,
                                     cudaStream_t stream) {
    if (tn_stage_shared(shape, 1) == 0 || shape->rows == 0 || gradient.dy.count < 1 ||
        gradient.dy.count > TN_KERNEL_PARTS)
        return cudaErrorInvalidValue;
    if (misaligned(gradient.x) || misaligned(gradient.inner) || misaligned(gradient.masks) ||
        misaligned(gradient.weights) || misaligned(gradient.dy) || misaligned(gradient.dx) ||
        misaligned(workspace))
        return cudaErrorMisalignedAddress;
    unsigned char *memory = static_cast<unsigned char *>(workspace);
    return TN_PICK_STAGE(backward, shape)(shape, gradient, memory, stream);
}
