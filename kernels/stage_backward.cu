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
 * the images are in shared memory, and leaves [conv][9][out][in] of its own. Wider, that would be more than
 * all activations; there dz goes to memory, for stage_weights.cu. The sums of dz and of g that biases want
 * are left in parts, too. */
#include "kernels/stage_entry.cuh"
struct stage_backward_arguments {
    const void *x; /* of the stream's storage */
    const unsigned char *inner, *masks;
    const bf16 *weights;
    void *dx;            /* of the stream's storage */
    bf16 *dz;            /* [conv][rows][pixels][C]; NULL with 16 channels */
    float *weight_parts; /* with 16 channels */
    double *sum_parts, *shortcut_parts;
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
    bool entry;
    unsigned tensor, begin; /* elements of a tensor, of it before the block's images */
    bf16 *outer, *branch, *input;
    float *exact; /* WIDE: dz of the stream, beside `outer` */
    float dy_sum, dz_sum;

    __device__ __forceinline__ backward_state(const stage_geometry &geometry, unsigned char *memory)
        : g(geometry), at(geometry, C, C == 16 ? 3 : 2, WIDE), shared(memory) {
        const int first = blockIdx.x * g.images;
        images = min(g.images, g.rows - first);
        convs = 2 * g.blocks;
        entry = C > 16 && g.entry();
        tensor = (unsigned)(g.rows * g.pixels() * C);
        begin = (unsigned)(first * g.pixels() * C);
        outer = reinterpret_cast<bf16 *>(shared);
        branch = outer + at.plane_bytes / 2;
        input = branch + at.plane_bytes / 2;
        exact = reinterpret_cast<float *>(shared + at.exact_at);
        dy_sum = dz_sum = 0;
    }
    /* The slabs of an entry's first conv are half as wide. */
    __device__ __forceinline__ void fetch_weights(const stage_backward_arguments &a, int conv, int slab,
                                                  bf16 *to) const {
        typedef stage_tiling<C> t;
        if constexpr (C > 16) {
            if (entry && conv == 0) {
                fetch_slab<C / 2>(a.weights + slab * entry_tiling<C>::SLAB_READ, to);
                return;
            }
        }
        fetch_slab<C>(a.weights + weights_before(entry, conv, C) + slab * t::SLAB_READ, to);
    }
    __device__ __forceinline__ void fetch_input(const stage_backward_arguments &a, int conv) const {
        if (conv % 2)
            fetch_images<C, C>(g, images, images, branch_of<S>(a, conv, tensor) + begin, input);
        else
            fetch_images<C, C>(g, images, images, stream_of<S>(a, conv, tensor) + begin, input);
    }
    /* Where the block's images begin in the tensor of conv `conv`, in elements. */
    __device__ __forceinline__ size_t begin_of(int conv) const {
        return (size_t)conv * tensor + begin;
    }
    __device__ __forceinline__ unsigned char *mask_of(int conv) const {
        return shared + at.masks_at + conv % 2 * at.mask_bytes;
    }
    __device__ __forceinline__ void fetch_mask(const stage_backward_arguments &a, int conv) const {
        const unsigned char *from = a.masks + begin_of(conv) / 8;
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
    __device__ __forceinline__ void write_total(int conv, double *to) const {
        if (threadIdx.x >= 2) return;
        const double *from = warp_sums(conv) + threadIdx.x * STAGE_WARPS;
        double sum = 0;
        for (int i = 0; i < STAGE_WARPS; i++) sum += from[i];
        to[(size_t)threadIdx.x * gridDim.x + blockIdx.x] = sum;
    }
};

/* dz of the last conv, from the gradients that arrive. */
template <int C, typename S>
__device__ __forceinline__ void begin_backward(backward_state<C, S> &s, const stage_backward_arguments &a,
                                               const tn_parts &dy) {
    const int last = s.convs - 1;
    for (int i = threadIdx.x; i < s.images * s.g.pixels() * (C / 8); i += STAGE_THREADS) {
        float v[8];
        load_parts<S>(dy, s.begin + 8 * i, s.tensor, v);
        s.apply_mask(a.masks[s.begin_of(last) / 8 + i], v);
        store8(s.outer + place_of(s.g, position_of(s.g, i / (C / 8)), i % (C / 8) * 8), v);
        if (s.WIDE) store8(s.exact + i / (C / 8) * EXACT_LD(C) + i % (C / 8) * 8, v);
        if (C > 16) store8(a.dz + s.begin_of(last) + 8 * i, v);
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
                            a.weight_parts + ((size_t)blockIdx.x * s.convs + conv) * 9 * C * C);
}

/* dx of an entry, from dz of its convs in `branch` and `outer`; `step` slabs have been multiplied before. The
 * weights go by twice: sums of all parities would be twice the registers. */
template <int C, typename S>
__device__ __forceinline__ void backward_entry(backward_state<C, S> &s, const stage_backward_arguments &a,
                                               bf16 *slabs, int step, float *results, const short *pixel_of) {
    typedef stage_tiling<C> t;
    stage_sums sums[2][entry_tiling<C>::MT];
    const unsigned first = blockIdx.x * s.g.images * s.g.in_pixels() * (C / 2); /* element of dx */
#pragma unroll 1
    for (int slab = 0; slab < 2 * t::SLABS; slab++, step++) {
        const int odd = slab / t::SLABS;
        __pipeline_wait_prior(0);
        __syncthreads(); /* the slab is there, and all results of the step before */
        if (slab == 0) s.write_total(0, a.sum_parts);
        if (slab + 1 < 2 * t::SLABS)
            s.fetch_weights(a, 0, (slab + 1) % t::SLABS, slabs + (step + 1) % 2 * t::SLAB);
        __pipeline_commit();
        if (slab % t::SLABS == 0) clear_back<C>(sums);
        multiply_back<C>(s.g, odd, s.branch + slab % t::SLABS * s.g.positions * 16,
                         slabs + step % 2 * t::SLAB, sums);
        if (slab % t::SLABS + 1 < t::SLABS) continue;
        each_back<C>(s.g, odd, pixel_of, results, sums,
                     [&](int at, bool even, int pixel, int place, int channel, float *v) {
                         float r[8] = {};
                         if (even && s.WIDE) load8(s.exact + pixel * EXACT_LD(C) + channel, r);
                         if (even && !s.WIDE) load8(s.outer + place, r);
#pragma unroll
                         for (int j = 0; j < 8; j++) {
                             s.dz_sum += r[j];
                             v[j] += r[j];
                         }
                         store8(static_cast<S *>(a.dx) + first + at * (C / 2) + channel, v);
                     });
    }
    s.dy_sum = s.dz_sum; /* of the shortcut: it has no ReLU */
    s.add_lanes(s.convs);
    __syncthreads();
    s.write_total(s.convs, a.shortcut_parts);
}

/* One block on a multiprocessor where shared memory has no room for two, or hardly: streams in float32. */
template <int C, typename S>
static __global__ void __launch_bounds__(STAGE_THREADS, C == 16 || sizeof(S) == 4 ? 1 : 2)
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
    s.fetch_weights(a, last, 0, slabs);
    s.fetch_mask(a, last - 1);
    clear_planes(shared, (WEIGHTS ? 3 : 2) * s.at.plane_bytes);
    find_pixels(g, s.images, pixel_of);
    __syncthreads();
    if (WEIGHTS) s.fetch_input(a, last);
    __pipeline_commit();
    begin_backward<C, S>(s, a, dy);

    const int steps = (s.convs - s.entry) * t::SLABS;
#pragma unroll 1
    for (int step = 0; step < steps; step++) {
        const int conv = last - step / t::SLABS, slab = step % t::SLABS;
        const bf16 *dz = conv % 2 ? s.outer : s.branch;
        __pipeline_wait_prior(0);
        __syncthreads(); /* what was fetched is there, and all results of the step before */
        if (slab == 0) s.write_total(conv, a.sum_parts + (size_t)2 * conv * gridDim.x);
        if constexpr (WEIGHTS) weight_gradient<C, S>(s, a, conv, dz);
        const int next = slab + 1 < t::SLABS ? conv : conv - 1;
        if (next >= 0) s.fetch_weights(a, next, (slab + 1) % t::SLABS, slabs + (step + 1) % 2 * t::SLAB);
        if (slab == 0 && conv > 1) s.fetch_mask(a, conv - 2);
        if (WEIGHTS && conv > 0) s.fetch_input(a, conv - 1);
        __pipeline_commit();
        if (slab == 0) clear_sums<C>(sums);
        multiply_slab<C>(g, dz + slab * g.positions * 16, slabs + step % 2 * t::SLAB, sums);
        if (slab + 1 < t::SLABS) continue;

        bf16 *output = conv % 2 ? s.branch : s.outer;
        const unsigned char *bits = s.mask_of(conv - 1);
        const bool joins =
            conv % 2 == 0; /* makes the gradient of the stream, of which `outer` holds a part */
        each_result<C>(g, pixel_of, results, sums, [&](int pixel, int place, int channel, float *v) {
            float *const here = s.exact + pixel * EXACT_LD(C) + channel, r[8] = {};
            if (joins && s.WIDE) load8(here, r);
            if (joins && !s.WIDE) load8(s.outer + place, r);
#pragma unroll
            for (int j = 0; j < 8; j++) v[j] += r[j];
            if (conv == 0) {
                store8(static_cast<S *>(a.dx) + s.begin + pixel * C + channel, v);
                return;
            }
            s.apply_mask(bits[(pixel * C + channel) / 8], v);
            store8(output + place, v);
            if (joins && s.WIDE) store8(here, v);
            if (C > 16) store8(a.dz + s.begin_of(conv - 1) + pixel * C + channel, v);
        });
        if (conv > 0) s.add_lanes(conv - 1);
    }
    if constexpr (C > 16)
        if (s.entry) backward_entry<C, S>(s, a, slabs, steps, results, pixel_of);
}

/* ---- host ---- */

int tn_stage_sum_parts(const tn_stage_shape *s) {
    return (int)stage_grid(s);
}

size_t tn_stage_dz_bytes(const tn_stage_shape *s) {
    return s->channels == 16 ? 0 : (size_t)4 * s->blocks * s->rows * s->height * s->width * s->channels;
}

template <int C, typename S>
static cudaError_t backward(const tn_stage_shape *s, const tn_stage_gradient &b, cudaStream_t stream) {
    const size_t bytes = tn_stage_shared(s, 1);
    stage_backward_arguments a = {b.x,
                                  static_cast<const unsigned char *>(b.inner),
                                  reinterpret_cast<const unsigned char *>(b.masks),
                                  static_cast<const bf16 *>(b.weights),
                                  b.dx,
                                  C == 16 ? NULL : static_cast<bf16 *>(b.dz),
                                  b.weight_parts,
                                  b.sum_parts,
                                  b.shortcut_parts};
    cudaError_t error =
        cudaFuncSetAttribute(stage_backward<C, S>, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes);
    if (error != cudaSuccess) return error;
    TN_LAUNCH((stage_backward<C, S>), stage_grid(s), STAGE_THREADS, bytes, stream, geometry_of(s, s->images),
              a, b.dy);
    return cudaGetLastError();
}

cudaError_t tn_launch_stage_backward(const tn_stage_shape *shape, tn_stage_gradient gradient,
                                     cudaStream_t stream) {
    if (tn_stage_shared(shape, 1) == 0 || shape->rows == 0 || gradient.dy.count < 1 ||
        gradient.dy.count > TN_KERNEL_PARTS)
        return cudaErrorInvalidValue;
    if (misaligned(gradient.x) || misaligned(gradient.inner) || misaligned(gradient.masks) ||
        misaligned(gradient.weights) || misaligned(gradient.dy) || misaligned(gradient.dx) ||
        misaligned(gradient.dz))
        return cudaErrorMisalignedAddress;
    return TN_PICK_STAGE(backward, shape)(shape, gradient, stream);
}
