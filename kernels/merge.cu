/* Parts of sums, added in a fixed order: what kernels leave that item a sum over their blocks, of many
 * layers in one launch. The table of what is where is an argument of the launch.
 *
 * A block has 288 successive results of one gradient: 32 pairs (out, in) times 9 taps, or 288 values. A warp
 * reads 32 successive values of a part, whole sectors, and half of the threads add the even parts, the others
 * the odd ones; through shared memory the results come into the order of the parameter. Of sums in double a
 * warp adds one. */
#include "kernels/device.cuh"

#define TAPS    9
#define RESULTS (32 * TAPS) /* of a block */
#define SHARES  2           /* of the parts */
#define WARPS   (SHARES * TAPS)

typedef struct merge_table {
    tn_merge_item items[TN_MERGE_ITEMS];
    unsigned first[TN_MERGE_ITEMS + 1]; /* block of each item */
    int count, add;
} merge_table;

static_assert(sizeof(merge_table) <= 4096, "more than a launch takes as arguments");

__device__ __forceinline__ void merge_gradient(const tn_merge_item &s, unsigned block, int add) {
    __shared__ float sums[SHARES][RESULTS];
    const unsigned lane = threadIdx.x % 32, row = threadIdx.x / 32 % TAPS, share = threadIdx.x / RESULTS;
    const bool taps = s.taps == TAPS;
    const unsigned pair = taps ? block * 32 + lane : block * RESULTS + row * 32 + lane,
                   place = taps ? lane * TAPS + row : row * 32 + lane,
                   all = (unsigned)s.groups * (unsigned)s.pairs, group = pair / (unsigned)s.pairs;
    const size_t results = (size_t)all * s.taps;
    float sum = 0;
    if (pair < all) {
        const float *from = static_cast<const float *>(s.parts) +
                            ((size_t)group * s.taps + (taps ? row : 0)) * s.pairs + pair % s.pairs;
#pragma unroll 8
        for (int part = (int)share; part < s.count; part += SHARES) sum += from[part * results];
    }
    sums[share][place] = sum;
    __syncthreads();
    const size_t at = (size_t)block * RESULTS + threadIdx.x;
    if (share || at >= results) return;
    sum = sums[0][threadIdx.x];
#pragma unroll
    for (int i = 1; i < SHARES; i++) sum += sums[i][threadIdx.x];
    s.to[at] = add ? s.to[at] + sum : sum;
}

__device__ __forceinline__ void merge_sums(const tn_merge_item &s, unsigned block, int add) {
    const int lane = threadIdx.x % 32, which = (int)(block * WARPS + threadIdx.x / 32);
    if (which >= s.groups) return;
    const double *from = static_cast<const double *>(s.parts) + (size_t)which * s.count;
    double sum = 0;
    for (int part = lane; part < s.count; part += 32) sum += from[part];
    sum = warp_sum(sum);
    float *const to = s.to + which / 2 * 3 + which % 2;
    if (lane == 0) *to = add ? *to + (float)sum : (float)sum;
}

static __global__ void __launch_bounds__(SHARES *RESULTS)
    merge_kernel(const __grid_constant__ merge_table table) {
    int i = 0;
    for (int step = 64; step > 0; step /= 2)
        if (i + step < table.count && table.first[i + step] <= blockIdx.x) i += step;
    const tn_merge_item item = table.items[i];
    const unsigned block = blockIdx.x - table.first[i];
    if (item.taps == 0)
        merge_sums(item, block, table.add);
    else
        merge_gradient(item, block, table.add);
}

static bool bad_item(const tn_merge_item &s) {
    return s.count < 1 || s.groups < 1 || (s.taps != 0 && s.taps != 1 && s.taps != TAPS) ||
           (s.taps && (s.pairs < 1 || too_large((size_t)s.groups * s.pairs, (size_t)s.taps)));
}

static unsigned blocks_of(const tn_merge_item &s) {
    if (s.taps == 0) return ((unsigned)s.groups + WARPS - 1) / WARPS;
    return ((unsigned)s.groups * (unsigned)s.pairs * (unsigned)s.taps + RESULTS - 1) / RESULTS;
}

cudaError_t tn_launch_merge(int count, const tn_merge_item *items, int add, cudaStream_t stream) {
    static_assert(TN_MERGE_ITEMS <= 128, "the search takes seven steps");
    merge_table table = {};
    if (count < 0 || count > TN_MERGE_ITEMS) return cudaErrorInvalidValue;
    if (count == 0) return cudaSuccess;
    for (int i = 0; i < count; i++) {
        if (bad_item(items[i])) return cudaErrorInvalidValue;
        table.items[i] = items[i];
        table.first[i + 1] = table.first[i] + blocks_of(items[i]);
    }
    table.count = count;
    table.add = add;
    TN_LAUNCH(merge_kernel, table.first[count], SHARES * RESULTS, 0, stream, table);
    return cudaGetLastError();
}
