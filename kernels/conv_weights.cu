/* Weight gradient of the direct 3x3 convolution (conv_direct.cu), padding 1, stride 1 or 2, any channel
 * counts.
 *
 *   dw[co][ci][tap] = sum over pixels of dz[pixel][co] * x[pixel * stride + tap - 1][ci]
 *
 * Block (split, ci tile, co tile) sums over the pixel tiles of its split, in order, into a part of the
 * gradient, [split][9][out][in], which merge.cu adds. The number of splits depends on the shape alone. Parts
 * are overwritten; nothing aliases. */
#include "kernels/device.cuh"

#define TILE_WIDTH 8
#define SPLITS     512 /* wanted blocks */

/* Rows of a pixel tile; less for stride 2, whose input tile is four times as large. */
#define TILE_HEIGHT(stride) ((stride) == 1 ? 8 : 4)

/* Channels per side of a block's tile: a thread sums 2 x 2 channel pairs for 9 taps. */
static int channel_tile(const tn_conv_shape *s) {
    return s->in_channels <= 16 && s->out_channels <= 16 ? 16 : 32;
}

static int pixel_tiles(const tn_conv_shape *s) {
    int high = TILE_HEIGHT(s->stride);
    return s->rows * ((s->out_height + high - 1) / high) * ((s->out_width + TILE_WIDTH - 1) / TILE_WIDTH);
}

static int channel_tiles(int channels, int tile) {
    return (channels + tile - 1) / tile;
}

static int split_count(const tn_conv_shape *s) {
    int tile = channel_tile(s);
    int wanted = SPLITS / (channel_tiles(s->in_channels, tile) * channel_tiles(s->out_channels, tile));
    int tiles = pixel_tiles(s);
    if (wanted > tiles) wanted = tiles;
    return wanted > 1 ? wanted : 1;
}

static size_t weight_count(const tn_conv_shape *s) {
    return (size_t)s->out_channels * s->in_channels * 9;
}

int tn_conv3x3_parts(const tn_conv_shape *shape) {
    return split_count(shape);
}

/* Fills tile[HIGH * WIDE][CT] with channels [c0, c0 + CT) of the pixels whose first is (h0, w0); zeros
 * outside. */
template <typename T, int CT, int HIGH, int WIDE>
__device__ __forceinline__ void load_pixels(float (*tile)[CT], const T *__restrict__ image, int height,
                                            int width, int channels, int h0, int w0, int c0) {
    constexpr int BLOCK = CT / 2 * (CT / 2);
    if (channels % 4 == 0) {
        for (int i = threadIdx.x; i < HIGH * WIDE * (CT / 4); i += BLOCK) {
            int k = i % (CT / 4) * 4, p = i / (CT / 4), h = h0 + p / WIDE, w = w0 + p % WIDE;
            float v[4] = {0.0f, 0.0f, 0.0f, 0.0f};
            if (h >= 0 && h < height && w >= 0 && w < width && c0 + k < channels)
                load4(image + ((size_t)h * width + w) * channels + c0 + k, v);
            *reinterpret_cast<float4 *>(&tile[p][k]) = make_float4(v[0], v[1], v[2], v[3]);
        }
        return;
    }
    for (int i = threadIdx.x; i < HIGH * WIDE * CT; i += BLOCK) {
        int k = i % CT, p = i / CT, h = h0 + p / WIDE, w = w0 + p % WIDE;
        bool inside = h >= 0 && h < height && w >= 0 && w < width && c0 + k < channels;
        tile[p][k] = inside ? to_float(image[((size_t)h * width + w) * channels + c0 + k]) : 0.0f;
    }
}

/* One row of a tile: sums[tap][ci][co] over its pixels. x holds the three input rows. */
template <int STRIDE, int CT, int WIDE>
__device__ __forceinline__ void add_row(float (*sums)[2][2], const float (*x)[CT], const float (*dz)[CT],
                                        int ci, int co) {
#pragma unroll
    for (int w = 0; w < TILE_WIDTH; w++) {
        float2 g = *reinterpret_cast<const float2 *>(&dz[w][co]);
#pragma unroll
        for (int tap = 0; tap < 9; tap++) {
            float2 v = *reinterpret_cast<const float2 *>(&x[tap / 3 * WIDE + w * STRIDE + tap % 3][ci]);
            sums[tap][0][0] += v.x * g.x;
            sums[tap][0][1] += v.x * g.y;
            sums[tap][1][0] += v.y * g.x;
            sums[tap][1][1] += v.y * g.y;
        }
    }
}

template <typename X, typename Y, int STRIDE, int CT>
static __global__ void __launch_bounds__(CT / 2 * (CT / 2))
    partial_gradients(tn_conv_shape s, int tiles, const X *__restrict__ x, const Y *__restrict__ dz,
                      float *__restrict__ partial) {
    constexpr int TH = TILE_HEIGHT(STRIDE), IH = (TH - 1) * STRIDE + 3, IW = (TILE_WIDTH - 1) * STRIDE + 3;
    __shared__ __align__(16) float x_tile[IH * IW][CT];
    __shared__ __align__(16) float dz_tile[TH * TILE_WIDTH][CT];
    const int ci = threadIdx.x % (CT / 2) * 2, co = threadIdx.x / (CT / 2) * 2;
    const int ci0 = blockIdx.y * CT, co0 = blockIdx.z * CT;
    const int across = (s.out_width + TILE_WIDTH - 1) / TILE_WIDTH, down = (s.out_height + TH - 1) / TH;
    /* The first tiles % splits splits take one tile more. */
    const int split = blockIdx.x, share = tiles / gridDim.x, more = tiles % gridDim.x;
    const int first = split * share + min(split, more), last = first + share + (split < more);
    float sums[9][2][2] = {};

    for (int tile = first; tile < last; tile++) {
        const int w0 = tile % across * TILE_WIDTH, h0 = tile / across % down * TH;
        const size_t image = (size_t)(tile / across / down);
        __syncthreads();
        load_pixels<X, CT, IH, IW>(x_tile, x + image * s.in_height * s.in_width * s.in_channels, s.in_height,
                                   s.in_width, s.in_channels, h0 * STRIDE - 1, w0 * STRIDE - 1, ci0);
        load_pixels<Y, CT, TH, TILE_WIDTH>(dz_tile, dz + image * s.out_height * s.out_width * s.out_channels,
                                           s.out_height, s.out_width, s.out_channels, h0, w0, co0);
        __syncthreads();
#pragma unroll 1
        for (int h = 0; h < TH; h++)
            add_row<STRIDE, CT, IW>(sums, x_tile + h * STRIDE * IW, dz_tile + h * TILE_WIDTH, ci, co);
    }

    partial += (size_t)blockIdx.x * 9 * s.out_channels * s.in_channels;
#pragma unroll
    for (int k = 0; k < 36; k++) {
        const int tap = k / 4, a = k / 2 % 2, b = k % 2;
        if (co0 + co + b < s.out_channels && ci0 + ci + a < s.in_channels)
            partial[((size_t)tap * s.out_channels + co0 + co + b) * s.in_channels + ci0 + ci + a] =
                sums[tap][a][b];
    }
}

template <typename X, typename Y, int STRIDE, int CT>
static void launch_partial(const tn_conv_shape *s, const void *x, const void *dz, float *partial,
                           cudaStream_t stream) {
    dim3 grid((unsigned)split_count(s), (unsigned)channel_tiles(s->in_channels, CT),
              (unsigned)channel_tiles(s->out_channels, CT));
    TN_LAUNCH((partial_gradients<X, Y, STRIDE, CT>), grid, CT / 2 * (CT / 2), 0, stream, *s, pixel_tiles(s),
              static_cast<const X *>(x), static_cast<const Y *>(dz), partial);
}

template <typename X, typename Y>
static void backward_weights(const tn_conv_shape *s, const void *x, const void *dz, float *partial,
                             cudaStream_t stream) {
    if (channel_tile(s) == 16)
        (s->stride == 1 ? launch_partial<X, Y, 1, 16> : launch_partial<X, Y, 2, 16>)(s, x, dz, partial,
                                                                                     stream);
    else
        (s->stride == 1 ? launch_partial<X, Y, 1, 32> : launch_partial<X, Y, 2, 32>)(s, x, dz, partial,
                                                                                     stream);
}

cudaError_t tn_launch_conv3x3_backward_weights(const tn_conv_shape *shape, tn_storage x_store, const void *x,
                                               tn_storage y_store, const void *dz, float *parts,
                                               cudaStream_t stream) {
    if (bad_conv3x3(shape) || shape->rows < 1 || too_large(weight_count(shape))) return cudaErrorInvalidValue;
    if (misaligned(x) || misaligned(dz)) return cudaErrorMisalignedAddress;
    TN_PICK2(backward_weights, x_store, y_store)(shape, x, dz, parts, stream);
    return cudaGetLastError();
}
