/* Successive residual blocks without norms in one launch: forward (kernels.h says what is computed, stage.cuh
 * how images and weights lie in shared memory).
 *
 * Without norms an image needs no other, so a block of threads keeps its images from the first convolution to
 * the last: x[b] and the inner activation stand in shared memory, weights stream from the L2 cache in slabs
 * of 16 input channels, one ahead of what is multiplied, and what backward needs is written as it is made.
 * x[b + 1] takes the place of x[b]: the second convolution reads the inner activation alone, and the residual
 * at the pixel that it writes. Outputs are overwritten, nothing aliases. */
#include "kernels/stage_entry.cuh"

/* Masks of one conv, collected in shared memory, to global memory. */
__device__ __forceinline__ void write_mask(const unsigned char *from, unsigned bytes, unsigned char *to) {
    for (unsigned i = threadIdx.x; i < bytes / 8; i += STAGE_THREADS)
        reinterpret_cast<uint2 *>(to)[i] = reinterpret_cast<const uint2 *>(from)[i];
}

/* x, or x[0] as the residual wants it, too. */
template <int C>
__device__ __forceinline__ void begin_stream(const stage_geometry &g, int images, const bf16 *x, bf16 *planes,
                                             float *) {
    fetch_images<C, C>(g, images, images, x, planes);
}

template <int C>
__device__ __forceinline__ void begin_stream(const stage_geometry &g, int images, const float *x,
                                             bf16 *planes, float *exact) {
    fetch_images<C, C>(g, images, images, x, planes, exact);
}

/* The products of one slab. */
template <int C>
__device__ __forceinline__ void multiply(const stage_geometry &g, bool entry, int slab, const bf16 *input,
                                         const bf16 *weights, stage_sums (*sums)[stage_tiling<C>::NT]) {
    input += slab * g.positions * 16;
    if constexpr (C > 16)
        if (entry) return multiply_entry<C>(g, input, weights, sums);
    multiply_slab<C>(g, input, weights, sums);
}

template <int C, typename S>
static __global__ void __launch_bounds__(STAGE_THREADS, sizeof(S) == 2 ? 2 : 1)
    stage_forward(stage_geometry g, const S *__restrict__ x, const bf16 *__restrict__ weights,
                  const float *__restrict__ scalars, unsigned char *inner, unsigned char *masks, S *y,
                  int *nonfinite) {
    typedef stage_tiling<C> t;
    constexpr bool WIDE = sizeof(S) == 4;
    TN_DYNAMIC_SHARED(unsigned char, shared);
    const stage_layout at(g, C, 2, WIDE);
    bf16 *stream = reinterpret_cast<bf16 *>(shared), *branch = stream + at.plane_bytes / 2,
         *slabs = reinterpret_cast<bf16 *>(shared + at.slabs_at);
    float *exact = reinterpret_cast<float *>(shared + at.exact_at),
          *results = reinterpret_cast<float *>(shared + at.results_at) + threadIdx.x / 32 * RESULT_FLOATS;
    short *pixel_of = reinterpret_cast<short *>(shared + at.pixels_at);
    const int first = blockIdx.x * g.images, images = min(g.images, g.rows - first), convs = 2 * g.blocks;
    const size_t tensor = (size_t)g.rows * g.pixels() * C, begin = (size_t)first * g.pixels() * C;
    const unsigned mask_bytes = (unsigned)(images * g.pixels() * (C / 8));
    const bool entry = C > 16 && g.entry();
    const int first_slabs = entry ? t::SLABS / 2 : t::SLABS, steps = first_slabs + (convs - 1) * t::SLABS;
    stage_sums sums[t::MT][t::NT];

    fetch_slab<C>(weights, slabs);
    clear_planes(shared, 2 * at.plane_bytes);
    find_pixels(g, images, pixel_of);
    __syncthreads();
    if constexpr (C > 16)
        if (entry) fetch_entry<C>(g, images, x + (size_t)first * g.in_pixels() * (C / 2), stream, exact);
    if (!entry) begin_stream<C>(g, images, x + begin, stream, exact);
    __pipeline_commit();

    for (int step = 0; step < steps; step++) {
        const int later = step - first_slabs, conv = later < 0 ? 0 : 1 + later / t::SLABS,
                  slab = later < 0 ? step : later % t::SLABS;
        __pipeline_wait_prior(0);
        __syncthreads(); /* the slab is there, and all results of the step before */
        if (step + 1 < steps)
            fetch_slab<C>(weights + (size_t)(step + 1) * t::SLAB_READ, slabs + (step + 1) % 2 * t::SLAB);
        __pipeline_commit();
        if (slab == 0) {
            clear_sums<C>(sums);
            if (masks && conv > 0)
                write_mask(shared + at.masks_at + (conv - 1) % 2 * at.mask_bytes, mask_bytes,
                           masks + ((conv - 1) * tensor + begin) / 8);
        }
        multiply<C>(g, entry && conv == 0, slab, conv % 2 ? branch : stream, slabs + step % 2 * t::SLAB,
                    sums);
        if (slab + 1 < (conv == 0 ? first_slabs : t::SLABS)) continue;
        if (entry && conv == 0) __syncthreads(); /* x, which the results overwrite, has been read */

        const int node = g.first_conv() + conv;
        const bool crosses = entry && conv == 1; /* has the shortcut as its residual */
        const float c = scalars[4 * node + 1], d = scalars[4 * node + 2],
                    shortcut = crosses ? scalars[1] : 0.0f;
        unsigned char *bits = shared + at.masks_at + conv % 2 * at.mask_bytes,
                      *kept = inner ? inner + inner_at<S>(tensor, conv) : NULL;
        const bool join = conv % 2;
        S *to_stream = conv + 1 == convs ? y : reinterpret_cast<S *>(kept);
        bf16 *to_branch = reinterpret_cast<bf16 *>(kept), *output = join ? stream : branch;
        bool bad = false;
        each_result<C>(g, pixel_of, results, sums, [&](int pixel, int place, int channel, float *z) {
            float *const here = exact + pixel * EXACT_LD(C) + channel, r[8] = {};
            const bool residual = join && !(crosses && channel >= C / 2);
            const float add = residual ? c + shortcut : c;
            if (residual && WIDE) load8(here, r);
            if (residual && !WIDE) load8(stream + place, r);
#pragma unroll
            for (int j = 0; j < 8; j++) z[j] += add + r[j];
            bad = bad || !all_finite8(z);
            bits[(pixel * C + channel) / 8] = (unsigned char)activate8(z, true, d);
            store8(output + place, z);
            if (join && WIDE) store8(here, z);
            if (join && to_stream) store8(to_stream + begin + pixel * C + channel, z);
            if (!join && to_branch) store8(to_branch + begin + pixel * C + channel, z);
        });
        raise_flag(nonfinite ? nonfinite + node : NULL, bad);
    }
    __syncthreads();
    if (masks)
        write_mask(shared + at.masks_at + (convs - 1) % 2 * at.mask_bytes, mask_bytes,
                   masks + ((convs - 1) * tensor + begin) / 8);
}

/* ---- host ---- */

static bool tiles_fit(const stage_geometry &g, int channels) {
    return g.tiles <= (channels == 16   ? stage_tiling<16>::TILES
                       : channels == 32 ? stage_tiling<32>::TILES
                                        : stage_tiling<64>::TILES);
}

int tn_stage_images(const tn_stage_shape *shape) {
    tn_stage_shape s = *shape;
    for (s.images = 1; (s.rows - 1) / (s.images + 1) + 1 >= TN_STAGE_GROUPS; s.images++) {
        if (!tiles_fit(geometry_of(&s, s.images + 1), s.channels)) break;
    }
    return s.images;
}

size_t tn_stage_shared(const tn_stage_shape *shape, int backward) {
    if (bad_stage(shape)) return 0;
    const stage_geometry g = geometry_of(shape, shape->images);
    if (!tiles_fit(g, shape->channels)) return 0;
    return stage_layout(g, shape->channels, backward && shape->channels == 16 ? 3 : 2, shape->wide).bytes;
}

template <int C, typename S>
static cudaError_t forward(const tn_stage_shape *s, const void *x, const void *weights, const float *scalars,
                           void *inner, uint32_t *masks, void *y, int *nonfinite, cudaStream_t stream) {
    const size_t bytes = tn_stage_shared(s, 0);
    cudaError_t error =
        cudaFuncSetAttribute(stage_forward<C, S>, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes);
    if (error != cudaSuccess) return error;
    TN_LAUNCH((stage_forward<C, S>), stage_grid(s), STAGE_THREADS, bytes, stream, geometry_of(s, s->images),
              static_cast<const S *>(x), static_cast<const bf16 *>(weights), scalars,
              static_cast<unsigned char *>(inner), reinterpret_cast<unsigned char *>(masks),
              static_cast<S *>(y), nonfinite);
    return cudaGetLastError();
}

cudaError_t tn_launch_stage_forward(const tn_stage_shape *shape, const void *x, const void *weights,
                                    const float *scalars, void *inner, uint32_t *masks, void *y,
                                    int *nonfinite, cudaStream_t stream) {
    if (tn_stage_shared(shape, 0) == 0) return cudaErrorInvalidValue;
    if (misaligned(x) || misaligned(weights) || misaligned(inner) || misaligned(masks) || misaligned(y))
        return cudaErrorMisalignedAddress;
    if (shape->rows == 0) return cudaSuccess;
    return TN_PICK_STAGE(forward, shape)(shape, x, weights, scalars, inner, masks, y, nonfinite, stream);
}
