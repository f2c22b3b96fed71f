/* Weight gradients of stages of 32 and 64 channels, from dz of all convs (stage_backward.cu), of up to two
 * stages in one launch.
 *
 * An image's own gradient would be more than its activations. So a block of threads has one conv, a row of
 * its taps, 16 inputs and 32 outputs (of an entry's first conv 16), and adds over a share of the images in
 * registers; what all blocks leave are parts, whose number depends on the shape alone. */
#include "kernels/stage_entry.cuh"

#define GRADIENT_BLOCKS 128 /* wanted, of a stage */

struct stage_products {
    stage_geometry g;
    const void *x; /* of the stream's storage */
    const unsigned char *inner;
    const bf16 *dz;
    float *weight_parts, *entry_parts;
    int channels, share; /* images of a part */
    int blocks;          /* of threads */
};

struct product_table {
    stage_products stages[TN_STAGE_PRODUCTS];
};

/* fetch(images, row, to) and multiply(from) for images [first, end), g.images at a time, the first one turn
 * ahead. `memory` has room for two turns, three planes each. */
template <typename FETCH, typename MULTIPLY>
__device__ __forceinline__ void each_turn(const stage_geometry &g, int first, int end, bf16 *memory,
                                          FETCH fetch, MULTIPLY multiply) {
    const int turn = 3 * 16 * g.positions;
    for (int k = -1, row = first - g.images; row < end; k++, row += g.images) {
        __pipeline_wait_prior(0);
        __syncthreads();
        const int next = row + g.images;
        if (next < end) fetch(min(g.images, end - next), next, memory + (k + 1) % 2 * turn);
        __pipeline_commit();
        if (k >= 0) multiply(memory + k % 2 * turn);
    }
}

/* One block's work: `tile` counts rows of taps, then inputs, then outputs. A turn is a plane of x, two of
 * dz. */
template <int C, typename S>
__device__ __forceinline__ void conv_gradient(const stage_products &p, int conv, int tile, int first, int end,
                                              bf16 *memory, float *to) {
    const stage_geometry &g = p.g;
    const int kh = tile % 3, in0 = tile / 3 % (C / 16) * 16, out0 = tile / 3 / (C / 16) * 32,
              plane = g.positions * 16;
    const size_t image = (size_t)g.pixels() * C, tensor = (size_t)g.rows * image;
    const bf16 *dz = p.dz + conv * tensor + out0;
    const void *x = conv ? static_cast<const void *>(p.inner + inner_at<S>(tensor, conv - 1)) : p.x;
    stage_sums sums[2][3];
#pragma unroll
    for (int k = 0; k < 6; k++) nvcuda::wmma::fill_fragment(sums[k / 3][k % 3], 0.0f);
    const auto fetch = [&](int images, int row, bf16 *there) {
        const size_t at = row * image;
        if (conv % 2) /* the second of a block reads what is inside */
            fetch_images<C, 16>(g, images, g.images, static_cast<const bf16 *>(x) + at + in0, there);
        else
            fetch_images<C, 16>(g, images, g.images, static_cast<const S *>(x) + at + in0, there);
        fetch_images<C, 32>(g, images, g.images, dz + at, there + plane);
    };
    each_turn(g, first, end, memory, fetch,
              [&](const bf16 *here) { add_gradient<1, 2>(g, here, here + plane, kh, sums); });
    merge_gradient<C, 1, 2>(sums, reinterpret_cast<float *>(memory + 6 * plane), kh, out0, in0, to);
}

/* The same for an entry's first conv. A turn is two planes of x, one of dz. */
template <int C, typename S>
__device__ __forceinline__ void entry_gradient(const stage_products &p, int tile, int first, int end,
                                               bf16 *memory, float *to) {
    const stage_geometry &g = p.g;
    const int kh = tile % 3, in0 = tile / 3 % (C / 32) * 16, out0 = tile / 3 / (C / 32) * 16,
              plane = g.positions * 16;
    const S *x = static_cast<const S *>(p.x) + in0;
    stage_sums sums[1][3];
#pragma unroll
    for (int k = 0; k < 3; k++) nvcuda::wmma::fill_fragment(sums[0][k], 0.0f);
    const auto fetch = [&](int images, int row, bf16 *there) {
        fetch_entry_rows<C>(g, images, g.images, parity_of(kh), x + (size_t)row * g.in_pixels() * (C / 2),
                            there);
        fetch_images<C, 16>(g, images, g.images, p.dz + (size_t)row * g.pixels() * C + out0,
                            there + 2 * plane);
    };
    each_turn(g, first, end, memory, fetch,
              [&](const bf16 *here) { add_entry_gradient(g, here, here + 2 * plane, kh, sums); });
    merge_gradient<C, 1, 1, C / 2>(sums, reinterpret_cast<float *>(memory + 6 * plane), kh, out0, in0, to);
}

/* Block (conv, tile, part) of a stage, convs first. */
template <int C, typename S>
__device__ __forceinline__ void stage_gradient_block(const stage_products &p, int block, bf16 *memory) {
    constexpr int TILES = 3 * (C / 16) * (C / 32);
    const int convs = 2 * p.g.blocks, conv = block % convs, tile = block / convs % TILES,
              part = block / convs / TILES, first = part * p.share, end = min(first + p.share, p.g.rows),
              entry = p.g.entry();
    clear_planes(memory, 12u * 16 * (unsigned)p.g.positions);
    if (entry && conv == 0)
        entry_gradient<C, S>(p, tile, first, end, memory, p.entry_parts + (size_t)part * 9 * C * C / 2);
    else
        conv_gradient<C, S>(p, conv, tile, first, end, memory,
                            p.weight_parts + ((size_t)part * (convs - entry) + conv - entry) * 9 * C * C);
}

template <typename S>
static __global__ void __launch_bounds__(STAGE_THREADS, 2)
    stage_weight_gradients(const __grid_constant__ product_table table) {
    TN_DYNAMIC_SHARED(bf16, memory);
    const int which = (int)blockIdx.x >= table.stages[0].blocks,
              block = (int)blockIdx.x - which * table.stages[0].blocks;
    const stage_products &p = table.stages[which];
    if (p.channels == 32)
        stage_gradient_block<32, S>(p, block, memory);
    else
        stage_gradient_block<64, S>(p, block, memory);
}

/* ---- host ---- */

/* What one conv needs for all its weights. */
static int weight_blocks(const tn_stage_shape *s) {
    return 3 * (s->channels / 16) * (s->channels / 32);
}

/* Images that a block multiplies at a time: three tiles of positions for each warp. */
static int images_at_once(const tn_stage_shape *s) {
    int images = 3 * 16 * STAGE_WARPS / ((s->height + 1) * (s->width + 1));
    return images > 1 ? images : 1;
}

static int share_of(const tn_stage_shape *s) {
    const int wanted = GRADIENT_BLOCKS / (2 * s->blocks * weight_blocks(s)), parts = wanted > 1 ? wanted : 1;
    return (s->rows + parts - 1) / parts;
}

int tn_stage_weight_parts(const tn_stage_shape *s) {
    return s->channels == 16 ? (int)stage_grid(s) : (s->rows + share_of(s) - 1) / share_of(s);
}

static stage_products products_of(const tn_stage_products *s) {
    const tn_stage_shape *shape = &s->shape;
    return {geometry_of(shape, images_at_once(shape)),
            s->x,
            static_cast<const unsigned char *>(s->inner),
            static_cast<const bf16 *>(s->dz),
            s->weight_parts,
            s->entry_parts,
            shape->channels,
            share_of(shape),
            2 * shape->blocks * weight_blocks(shape) * tn_stage_weight_parts(shape)};
}

template <typename S>
static cudaError_t launch(const product_table &table, unsigned blocks, size_t bytes, cudaStream_t stream) {
    cudaError_t error = cudaFuncSetAttribute(stage_weight_gradients<S>,
                                             cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes);
    if (error != cudaSuccess) return error;
    TN_LAUNCH(stage_weight_gradients<S>, blocks, STAGE_THREADS, bytes, stream, table);
    return cudaGetLastError();
}

cudaError_t tn_launch_stage_products(int count, const tn_stage_products *stages, cudaStream_t stream) {
    product_table table = {};
    unsigned blocks = 0;
    size_t shared = 0;
    if (count < 1 || count > TN_STAGE_PRODUCTS) return cudaErrorInvalidValue;
    for (int i = 0; i < count; i++) {
        const tn_stage_products *s = &stages[i];
        if (tn_stage_shared(&s->shape, 1) == 0 || s->shape.channels == 16 || s->shape.rows == 0 ||
            s->shape.wide != stages[0].shape.wide)
            return cudaErrorInvalidValue;
        if (misaligned(s->x) || misaligned(s->inner) || misaligned(s->dz)) return cudaErrorMisalignedAddress;
        table.stages[i] = products_of(s);
        blocks += (unsigned)table.stages[i].blocks;
        const size_t bytes = (size_t)6 * table.stages[i].g.positions * 16 * sizeof(bf16) +
                             STAGE_WARPS * RESULT_FLOATS * sizeof(float);
        if (bytes > shared) shared = bytes;
    }
    return (stages[0].shape.wide ? launch<float> : launch<bf16>)(table, blocks, shared, stream);
}
