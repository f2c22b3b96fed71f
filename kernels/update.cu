/* The update of all parameters and everything that is computed with instead of them: packed copies of the
 * weights with s in them, scalars of nodes.
 *
 * A block takes a tile of one weight: it steps values and momentum where they are and writes the copies from
 * shared memory, so that both are read and written in whole sectors. s depends on scalars that are stepped in
 * the same launch: whoever needs one computes it from the old values, which the last block replaces when all
 * others are through. */
#include <mma.h>

#include "kernels/device.cuh"

#define TILE_FLOATS  4096
#define TILE_SIDE    16 /* of outputs and of inputs: a sector of bf16 */
#define TILE_SIDE_1  64 /* without taps */
#define AT_ONCE      4  /* elements that a thread asks memory for before it needs the first */
#define COPY_THREADS 16 /* that write successive elements */

int tn_update_tile(tn_weight *w) {
    const int side = w->taps > 1 ? TILE_SIDE : TILE_SIDE_1, most = TILE_FLOATS / w->taps;
    w->tile_in = w->in < side ? w->in : side;
    if (w->tile_in > most) w->tile_in = most;
    if (w->tile_in == 0) return 0;
    w->tile_out = w->out < side ? w->out : side;
    if (w->tile_out > most / w->tile_in) w->tile_out = most / w->tile_in;
    return 1;
}

/* ---- steps ---- */

/* w after the step; v becomes its momentum. Spelt out, so that it has the same bits everywhere. */
static __device__ __forceinline__ float stepped(const tn_update &u, float w, float g, float &v, float rate) {
    v = fmaf(u.mu, v, fmaf(u.decay, w, g));
    return fmaf(-rate, v, w);
}

/* A scalar parameter as it is behind this launch. */
static __device__ float scalar_value(const tn_update &u, bool steps, int place) {
    const float value = u.values[place];
    if (!steps || place < u.scalar_first || place >= u.scalar_end) return value;
    float v = u.momentum[place];
    return stepped(u, value, u.grads[place], v, u.rates[1]);
}

static __device__ float scale_of(const tn_update &u, bool steps, float factor, int place) {
    return factor * (place >= 0 ? scalar_value(u, steps, place) : 1.0f);
}

static __device__ void node_scalars(const tn_update &u, bool steps, int i) {
    const tn_node_terms *n = &u.nodes[i];
    const float s = scale_of(u, steps, n->scale_factor, n->scale);
    const float d = n->carry >= 0 ? scalar_value(u, steps, n->carry) : 0.0f;
    float c = 0, inside = 0;
    for (int t = 0; t < n->term_count; t++) {
        const float term = n->terms[t].factor * scalar_value(u, steps, n->terms[t].place);
        c += n->terms[t].scaled ? s * term : term;
        if (n->terms[t].scaled) inside += term;
    }
    u.node_scalars[4 * i] = s;
    u.node_scalars[4 * i + 1] = c;
    u.node_scalars[4 * i + 2] = d;
    u.node_scalars[4 * i + 3] = inside;
    raise_flag(u.node_flags + i, !is_finite(s) || !is_finite(c) || !is_finite(d));
}

/* ---- tiles ---- */

/* Part of a weight, in shared memory as [outs][pitch], a row being [ins][taps]: an odd pitch, so that columns
 * go to different banks. */
struct tile_view {
    int out, in, outs, ins, pitch;
    float *at;
};

static __device__ tile_view view_of(const tn_weight &w, const tn_tile &t, float *memory) {
    tile_view v;
    v.out = t.out;
    v.in = t.in;
    v.outs = min(w.tile_out, w.out - t.out);
    v.ins = min(w.tile_in, w.in - t.in);
    v.pitch = (v.ins * w.taps) | 1;
    v.at = memory;
    return v;
}

/* Steps the tile's values and leaves them in shared memory; true where one is not finite. */
static __device__ bool step_tile(const tn_update &u, const tn_weight &w, bool steps, const tile_view &t) {
    const int row = t.ins * w.taps, count = t.outs * row, stride = w.in * w.taps;
    const size_t first = w.first + ((size_t)t.out * w.in + t.in) * w.taps;
    float *values = u.values + first, *momentum = u.momentum + first;
    const float *grads = u.grads + first, rate = steps ? u.rates[0] : 0.0f;
    bool bad = false;
    for (int i = threadIdx.x; i < count; i += AT_ONCE * THREADS) {
        float value[AT_ONCE], grad[AT_ONCE], v[AT_ONCE];
#pragma unroll
        for (int j = 0; j < AT_ONCE; j++) {
            const int k = i + j * THREADS, at = k / row * stride + k % row;
            if (k >= count) break;
            value[j] = values[at];
            if (!steps) continue;
            grad[j] = grads[at];
            v[j] = momentum[at];
        }
#pragma unroll
        for (int j = 0; j < AT_ONCE; j++) {
            const int k = i + j * THREADS, at = k / row * stride + k % row;
            if (k >= count) break;
            if (steps) {
                value[j] = stepped(u, value[j], grad[j], v[j], rate);
                momentum[at] = v[j];
                values[at] = value[j];
            }
            bad = bad || !is_finite(value[j]);
            t.at[k / row * t.pitch + k % row] = value[j];
        }
    }
    return bad;
}

/* ---- packed copies ---- */

static __device__ __forceinline__ bool outputs_together(int layout) {
    return layout == TN_PACK_CONV_FORWARD || layout == TN_PACK_TAPS_FORWARD ||
           layout == TN_PACK_STAGE_FORWARD;
}

/* Where an element stands in a copy. */
static __device__ __forceinline__ unsigned packed_place(const tn_weight &w, const tn_pack &p, unsigned out,
                                                        unsigned in, unsigned tap) {
    const unsigned outs = w.out, ins = w.in, taps = w.taps, reversed = taps - 1 - tap;
    switch (p.layout) {
    case TN_PACK_CONV_FORWARD:
        return (in * taps + tap) * outs + out;
    case TN_PACK_CONV_BACKWARD:
        return (out * taps + reversed) * ins + in;
    case TN_PACK_TAPS_FORWARD:
        return (tap * ins + in) * outs + out;
    case TN_PACK_TAPS_BACKWARD:
        return (reversed * outs + out) * ins + in;
    case TN_PACK_STAGE_FORWARD:
        return ((in / 16 * taps + tap) * 16 + in % 16) * outs + out;
    case TN_PACK_STAGE_BACKWARD:
        return ((out / 16 * taps + reversed) * 16 + out % 16) * ins + in;
    default:
        return out * p.ld + tap * ins + in;
    }
}

/* Writes one copy of the tile; true where a value is not finite. */
static __device__ bool pack_tile(const tn_weight &w, const tn_pack &p, float s, const tile_view &t) {
    const bool together = outputs_together(p.layout),
               rounded = p.layout == TN_PACK_TAPS_FORWARD || p.layout == TN_PACK_TAPS_BACKWARD;
    const int fast = together ? t.outs : t.ins, slow = (together ? t.ins : t.outs) * w.taps;
    bool bad = false;
    for (int i = threadIdx.x / COPY_THREADS; i < slow; i += THREADS / COPY_THREADS) {
        const int tap = i % w.taps;
        for (int k = threadIdx.x % COPY_THREADS; k < fast; k += COPY_THREADS) {
            const int out = together ? k : i / w.taps, in = together ? i / w.taps : k;
            float v = s * t.at[out * t.pitch + in * w.taps + tap];
            if (w.identity && t.out + out == t.in + in) v += 1.0f;
            bad = bad || !is_finite(v);
            const unsigned at = packed_place(w, p, t.out + out, t.in + in, tap);
            if (p.store == TN_STORE_BF16)
                static_cast<bf16 *>(p.to)[at] = from_float<bf16>(v);
            else
                static_cast<float *>(p.to)[at] = rounded ? nvcuda::wmma::__float_to_tf32(v) : v;
        }
    }
    return bad;
}

/* ---- the launch ---- */

static __device__ void update_tile(const tn_update &u, bool steps, const tn_tile &tile) {
    __shared__ float memory[TILE_FLOATS + TILE_SIDE_1];
    const tn_weight w = u.weights[tile.item];
    const tile_view t = view_of(w, tile, memory);
    const float s = scale_of(u, steps, w.scale_factor, w.scale);
    bool bad = step_tile(u, w, steps && w.trained, t);
    __syncthreads();
#pragma unroll
    for (int i = 0; i < TN_PACKS; i++)
        if (i < w.pack_count) bad = pack_tile(w, w.packs[i], s, t) || bad;
    raise_flag(w.nonfinite, bad);
}

/* A block for each tile, then some for the nodes. */
static __global__ void __launch_bounds__(THREADS) update_kernel(const tn_update u) {
    const bool steps = u.rates && !*u.stop;
    if ((int)blockIdx.x < u.tile_count) {
        update_tile(u, steps, u.tiles[blockIdx.x]);
    } else {
        const int node = (blockIdx.x - u.tile_count) * THREADS + threadIdx.x;
        if (node < u.node_count) node_scalars(u, steps, node);
    }
    if (!steps || !last_to_arrive(u.arrived, gridDim.x)) return;
    for (int i = u.scalar_first + threadIdx.x; i < u.scalar_end; i += THREADS) {
        float v = u.momentum[i];
        u.values[i] = stepped(u, u.values[i], u.grads[i], v, u.rates[1]);
        u.momentum[i] = v;
    }
}

cudaError_t tn_launch_update(const tn_update *update, cudaStream_t stream) {
    const tn_update u = *update;
    if (u.tile_count < 0 || u.node_count < 0 || u.scalar_first > u.scalar_end) return cudaErrorInvalidValue;
    const unsigned blocks = (unsigned)u.tile_count + blocks_for((unsigned)u.node_count);
    if (blocks == 0) return cudaSuccess;
    TN_LAUNCH(update_kernel, blocks, THREADS, 0, stream, u);
    return cudaGetLastError();
}
