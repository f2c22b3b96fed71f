/* The first convolution of networks for small images: 3x3, padding 1, stride 1, from 1 to 4 channels of
 * float32 images to a multiple of 8, up to 64. Products are float32 in every precision: 27 for an output of
 * three channels are done in the time in which memory moves the output, and tensor cores would want columns.
 *
 *   forward    y = act(s * conv(x, w) + c + bias + r) + d, the ReLU mask, and whether x is finite
 *   backward   dz = mask * sum of the incoming gradients, in shared memory alone, since nobody needs the
 *              gradient of an image; dw = sum of dz * x, and the sums of dz and dL/dy
 *
 * Blocks take tiles of 8 x 32 pixels. A row of a tile with its halo is one run of floats, as the image has
 * it. Forward, a thread computes 4 pixels of a row times 8 channels. Backward, a warp has 8 output channels
 * and one of the image, its lanes each 8 pixels of a row, with the 9 x 8 sums in registers; a block goes
 * through the tiles of its share, and leaves what it has summed as a part. Outputs are overwritten; nothing
 * aliases. */
#include "kernels/device.cuh"

#define TILE_HEIGHT     8
#define TILE_WIDTH      32
#define PIXELS          (TILE_HEIGHT * TILE_WIDTH)
#define FORWARD_THREADS 128
#define CHANNELS        64  /* of the output, at most */
#define GRADIENT_BLOCKS 256 /* wanted, backward */
#define GRADIENT_WIDTH  16  /* output channels of a block, backward */

/* ---- tiles ---- */

static int tiles_across(const tn_conv_shape *s) {
    return (s->out_width + TILE_WIDTH - 1) / TILE_WIDTH;
}

static int tiles_down(const tn_conv_shape *s) {
    return (s->out_height + TILE_HEIGHT - 1) / TILE_HEIGHT;
}

/* Which pixels tile number `index` has. */
struct stem_tile {
    int image, h0, w0;

    __device__ __forceinline__ stem_tile(const tn_conv_shape &s, int index) {
        const int across = (s.out_width + TILE_WIDTH - 1) / TILE_WIDTH,
                  down = (s.out_height + TILE_HEIGHT - 1) / TILE_HEIGHT;
        w0 = index % across * TILE_WIDTH;
        h0 = index / across % down * TILE_HEIGHT;
        image = index / across / down;
    }
};

/* Fills tile[TILE_HEIGHT + 2][PITCH] from the pixel above and left of the tile's first one on; zeros outside
 * the image. Returns whether all of it is finite. */
template <int C, int PITCH, int BLOCK>
__device__ __forceinline__ bool load_pixels(const tn_conv_shape &s, const stem_tile &t,
                                            const float *__restrict__ x, float *tile) {
    const int row_floats = s.in_width * C;
    const float *image = x + (size_t)t.image * s.in_height * row_floats;
    bool finite = true;
#pragma unroll 4
    for (int i = threadIdx.x; i < (TILE_HEIGHT + 2) * PITCH; i += BLOCK) {
        const int h = t.h0 - 1 + i / PITCH, at = (t.w0 - 1) * C + i % PITCH;
        float v = 0.0f;
        if (h >= 0 && h < s.in_height && at >= 0 && at < row_floats) v = image[h * row_floats + at];
        finite = finite && is_finite(v);
        tile[i] = v;
    }
    return finite;
}

/* ---- forward ---- */

/* What a thread reads of a row: 6 pixels, rounded up to vectors. Rows begin at multiples of 16 bytes. */
template <int C> struct forward_row {
    static constexpr int VECTORS = (6 * C + 3) / 4, PITCH = (TILE_WIDTH - 4) * C + 4 * VECTORS;
};

/* sums[pixel][channel] of 4 pixels whose window begins at `from`, and of 8 channels. */
template <int C>
__device__ __forceinline__ void add_windows(float (*sums)[8], const float *from, const float *w,
                                            int channels) {
    constexpr int VECTORS = forward_row<C>::VECTORS;
#pragma unroll 1
    for (int kh = 0; kh < 3; kh++) {
        float input[4 * VECTORS];
#pragma unroll
        for (int i = 0; i < VECTORS; i++) load4(from + kh * forward_row<C>::PITCH + 4 * i, input + 4 * i);
#pragma unroll
        for (int k = 0; k < 3 * C; k++) {
            const int kw = k / C, ci = k % C;
            float weights[8];
            load8(w + (ci * 9 + kh * 3 + kw) * channels, weights);
#pragma unroll
            for (int p = 0; p < 4; p++)
#pragma unroll
                for (int j = 0; j < 8; j++) sums[p][j] += input[p * C + k] * weights[j];
        }
    }
}

template <int C, typename Y>
static __global__ void __launch_bounds__(FORWARD_THREADS, 4)
    stem_forward(tn_conv_shape s, const float *__restrict__ x, const float *__restrict__ w, tn_epilogue e,
                 Y *y, int *x_nonfinite) {
    constexpr int PITCH = forward_row<C>::PITCH;
    __shared__ __align__(16) float tile[(TILE_HEIGHT + 2) * PITCH];
    __shared__ __align__(16) float weights[C * 9 * CHANNELS];
    const stem_tile t(s, blockIdx.x);
    const bool finite = load_pixels<C, PITCH, FORWARD_THREADS>(s, t, x, tile);
    raise_flag(x_nonfinite, !finite);
    for (int i = 4 * threadIdx.x; i < C * 9 * s.out_channels; i += 4 * FORWARD_THREADS)
        *reinterpret_cast<float4 *>(weights + i) = *reinterpret_cast<const float4 *>(w + i);
    __syncthreads();
    const epilogue_of<Y> epilogue(e);
    const int groups = s.out_channels / 8;
    bool bad = false;
    for (int i = threadIdx.x; i < PIXELS / 4 * groups; i += FORWARD_THREADS) {
        const int channel = i % groups * 8, quad = i / groups, row = quad / (TILE_WIDTH / 4),
                  column = quad % (TILE_WIDTH / 4) * 4, h = t.h0 + row;
        if (h >= s.out_height) break;
        float sums[4][8] = {};
        add_windows<C>(sums, tile + row * PITCH + column * C, weights + channel, s.out_channels);
#pragma unroll
        for (int p = 0; p < 4; p++) {
            const int v = t.w0 + column + p;
            if (v >= s.out_width) break;
            const size_t pixel = ((size_t)t.image * s.out_height + h) * s.out_width + v;
            bad = !epilogue.finish8(sums[p], channel, pixel * s.out_channels + channel, y) || bad;
        }
    }
    raise_flag(e.nonfinite, bad);
}

/* ---- backward ---- */

/* An odd number of floats: lanes that have different rows meet different banks. */
template <int C> struct backward_row { static constexpr int PITCH = ((TILE_WIDTH + 2) * C) | 1; };
/* The same for vectors of four. */
#define DZ_PITCH (TILE_WIDTH * GRADIENT_WIDTH + 4)

/* Fills dz[TILE_HEIGHT][DZ_PITCH] with channels [co0, co0 + GRADIENT_WIDTH) of a tile, zeros beyond the
 * image and its channels; adds what the thread has loaded to its sums of dz and of dL/dy. */
template <typename Y, int BLOCK>
__device__ __forceinline__ void load_gradient(const tn_conv_shape &s, const stem_tile &t, int co0,
                                              const tn_parts &dy, const uint32_t *mask, float *dz,
                                              float sums[2]) {
    constexpr int GROUPS = GRADIENT_WIDTH / 8;
    const unsigned count = s.rows * s.out_height * s.out_width * s.out_channels;
    for (int i = threadIdx.x; i < PIXELS * GROUPS; i += BLOCK) {
        const int channel = co0 + i % GROUPS * 8, p = i / GROUPS, h = t.h0 + p / TILE_WIDTH,
                  w = t.w0 + p % TILE_WIDTH;
        float v[8] = {};
        if (h < s.out_height && w < s.out_width && channel < s.out_channels) {
            const unsigned at =
                ((t.image * s.out_height + h) * s.out_width + w) * (unsigned)s.out_channels + channel;
            load_parts<Y>(dy, at, count, v);
            const unsigned bits = load_mask(mask, at / 8);
#pragma unroll
            for (int j = 0; j < 8; j++) {
                sums[1] += v[j];
                if (!(bits >> j & 1)) v[j] = 0.0f;
                sums[0] += v[j];
            }
        }
        store8(dz + p / TILE_WIDTH * DZ_PITCH + p % TILE_WIDTH * GRADIENT_WIDTH + i % GROUPS * 8, v);
    }
}

/* sums[tap][channel] over 8 pixels of a row: x begins with the pixel above and left of the first one. */
template <int C>
__device__ __forceinline__ void add_pixels(float (*sums)[8], const float *x, const float *dz) {
    float window[3][3];
#pragma unroll
    for (int i = 0; i < 6; i++) window[i / 2][i % 2] = x[i / 2 * backward_row<C>::PITCH + i % 2 * C];
#pragma unroll
    for (int w = 0; w < 8; w++) {
        float z[8];
        load8(dz + w * GRADIENT_WIDTH, z);
#pragma unroll
        for (int kh = 0; kh < 3; kh++) {
            window[kh][2] = x[kh * backward_row<C>::PITCH + (w + 2) * C];
#pragma unroll
            for (int kw = 0; kw < 3; kw++)
#pragma unroll
                for (int j = 0; j < 8; j++) sums[kh * 3 + kw][j] += window[kh][kw] * z[j];
            window[kh][0] = window[kh][1];
            window[kh][1] = window[kh][2];
        }
    }
}

/* Block (share, group of channels): its part of dw, parts[share][9][out][C], and of the sums,
 * totals[2][blocks]. */
template <int C, typename Y>
static __global__ void __launch_bounds__(64 * C)
    stem_backward(tn_conv_shape s, int tiles, const float *__restrict__ x, tn_parts dy,
                  const uint32_t *__restrict__ mask, float *__restrict__ parts, double *totals) {
    constexpr int BLOCK = 64 * C, PITCH = backward_row<C>::PITCH;
    __shared__ float pixels[(TILE_HEIGHT + 2) * PITCH];
    __shared__ __align__(16) float dz[TILE_HEIGHT * DZ_PITCH];
    const int lane = threadIdx.x % 32, group = threadIdx.x / 32 % 2 * 8, ci = threadIdx.x / 64;
    const int row = lane % TILE_HEIGHT, column = lane / TILE_HEIGHT * 8;
    const int co0 = blockIdx.y * GRADIENT_WIDTH;
    const bool works = co0 + group < s.out_channels; /* the same for a warp */
    /* The first tiles % shares shares take one tile more. */
    const int share = tiles / gridDim.x, more = tiles % gridDim.x, index = blockIdx.x;
    const int first = index * share + min(index, more), last = first + share + (index < more);
    float sums[9][8] = {}, both[2] = {};

    for (int tile = first; tile < last; tile++) {
        const stem_tile t(s, tile);
        __syncthreads();
        load_pixels<C, PITCH, BLOCK>(s, t, x, pixels);
        load_gradient<Y, BLOCK>(s, t, co0, dy, mask, dz, both);
        __syncthreads();
        if (works)
            add_pixels<C>(sums, pixels + row * PITCH + column * C + ci,
                          dz + row * DZ_PITCH + column * GRADIENT_WIDTH + group);
    }

    if (works) {
#pragma unroll
        for (int tap = 0; tap < 9; tap++) {
            const float sum = warp_sum8(sums[tap]);
            if (lane % 4 == 0)
                parts[(((size_t)index * 9 + tap) * s.out_channels + co0 + group + lane / 4) * C + ci] = sum;
        }
    }
    if (!totals) return;
    const double dz_total = block_sum<BLOCK / 32>((double)both[0]),
                 dy_total = block_sum<BLOCK / 32>((double)both[1]);
    if (threadIdx.x) return;
    const unsigned block = blockIdx.y * gridDim.x + blockIdx.x, blocks = gridDim.x * gridDim.y;
    totals[block] = dz_total;
    totals[blocks + block] = dy_total;
}

/* ---- host ---- */

static unsigned channel_blocks(const tn_conv_shape *s) {
    return (unsigned)(s->out_channels + GRADIENT_WIDTH - 1) / GRADIENT_WIDTH;
}

static int tile_count(const tn_conv_shape *s) {
    return s->rows * tiles_down(s) * tiles_across(s);
}

int tn_stem_parts(const tn_conv_shape *shape) {
    const int wanted = GRADIENT_BLOCKS / (int)channel_blocks(shape), tiles = tile_count(shape);
    return wanted < tiles ? wanted : tiles;
}

int tn_stem_sum_parts(const tn_conv_shape *shape) {
    return tn_stem_parts(shape) * (int)channel_blocks(shape);
}

int tn_stem_takes(const tn_conv_shape *shape) {
    return !bad_conv3x3(shape) && shape->stride == 1 && shape->in_channels <= 4 &&
           shape->out_channels % 8 == 0 && shape->out_channels <= CHANNELS;
}

/* function<C, Y> for the channels of the image. */
#define PICK_CHANNELS(function, s, Y)                                                                        \
    ((s)->in_channels == 1   ? function<1, Y>                                                                \
     : (s)->in_channels == 2 ? function<2, Y>                                                                \
     : (s)->in_channels == 3 ? function<3, Y>                                                                \
                             : function<4, Y>)

template <int C, typename Y>
static void launch_forward(const tn_conv_shape *s, const float *x, const float *w, tn_epilogue e, Y *y,
                           int *x_nonfinite, cudaStream_t stream) {
    TN_LAUNCH((stem_forward<C, Y>), (unsigned)tile_count(s), FORWARD_THREADS, 0, stream, *s, x, w, e, y,
              x_nonfinite);
}

template <typename Y>
static void forward(const tn_conv_shape *s, const float *x, const float *w, tn_epilogue e, void *y,
                    int *x_nonfinite, cudaStream_t stream) {
    PICK_CHANNELS(launch_forward, s, Y)(s, x, w, e, static_cast<Y *>(y), x_nonfinite, stream);
}

cudaError_t tn_launch_stem_forward(const tn_conv_shape *shape, const float *x, const float *w,
                                   tn_epilogue epilogue, tn_storage y_store, void *y, int *x_nonfinite,
                                   cudaStream_t stream) {
    if (!tn_stem_takes(shape)) return cudaErrorInvalidValue;
    if (misaligned(w) || misaligned(y) || misaligned(epilogue.r)) return cudaErrorMisalignedAddress;
    if (shape->rows == 0) return cudaSuccess;
    TN_PICK1(forward, y_store)(shape, x, w, epilogue, y, x_nonfinite, stream);
    return cudaGetLastError();
}

template <int C, typename Y>
static void launch_backward(const tn_conv_shape *s, const float *x, tn_parts dy, const uint32_t *mask,
                            float *parts, double *totals, cudaStream_t stream) {
    TN_LAUNCH((stem_backward<C, Y>), dim3((unsigned)tn_stem_parts(s), channel_blocks(s)), 64 * C, 0, stream,
              *s, tile_count(s), x, dy, mask, parts, totals);
}

template <typename Y>
static void backward(const tn_conv_shape *s, const float *x, tn_parts dy, const uint32_t *mask, float *parts,
                     double *totals, cudaStream_t stream) {
    PICK_CHANNELS(launch_backward, s, Y)(s, x, dy, mask, parts, totals, stream);
}

cudaError_t tn_launch_stem_backward(const tn_conv_shape *shape, const float *x, tn_storage y_store,
                                    tn_parts dy, const uint32_t *mask, float *parts, double *sums,
                                    cudaStream_t stream) {
    if (!tn_stem_takes(shape) || shape->rows < 1 || dy.count < 1 || dy.count > TN_KERNEL_PARTS)
        return cudaErrorInvalidValue;
    if (misaligned(dy)) return cudaErrorMisalignedAddress;
    TN_PICK1(backward, y_store)(shape, x, dy, mask, parts, sums, stream);
    return cudaGetLastError();
}
