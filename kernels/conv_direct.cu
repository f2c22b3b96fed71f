/* Direct 3x3 convolution, padding 1, stride 1 or 2, NHWC, float32 accumulation; its weight gradient is in
 * conv_weights.cu.
 *
 * - forward: y = act(s * conv(x, w) + c + bias + r) + d, and the ReLU mask, in one pass
 * - backward data: stride 1 is forward with reversed taps; stride 2 goes by parity of the pixel, since a
 *   pixel of dx meets 1, 2, 2 or 4 of the 9 taps
 *
 * Outputs are overwritten. y may be r; nothing else aliases. In the tiled kernels a block holds a slice of
 * the input's channels with its halo and the slice's weights in shared memory; a thread computes 4 pixels of
 * a row times 8 channels. Output channels (of backward data: input channels) must then be a multiple of 8,
 * for vectors and for whole bytes of the mask; other counts take a plain loop. */
#include "kernels/device.cuh"

/* ---- plain loops, any channel count ---- */

/* One thread for eight consecutive elements of y. */
template <typename X, typename Y>
static __global__ void __launch_bounds__(THREADS, 4)
    forward_plain(tn_conv_shape s, const X *__restrict__ x, const float *__restrict__ w, tn_epilogue e,
                  Y *y) {
    const unsigned count = s.rows * s.out_height * s.out_width * s.out_channels;
    const unsigned group = blockIdx.x * THREADS + threadIdx.x;
    if (group * 8 >= count) return;
    const Y *r = static_cast<const Y *>(e.r);
    float factor = value_or(e.s, 1.0f), c = value_or(e.c, 0.0f), d = value_or(e.d, 0.0f);
    unsigned bits = 0;
    bool bad = false;
    for (int j = 0; j < 8 && group * 8 + j < count; j++) {
        const int i = (int)group * 8 + j, pixel = i / s.out_channels, co = i % s.out_channels;
        const int ow = pixel % s.out_width, oh = pixel / s.out_width % s.out_height;
        const X *image =
            x + (size_t)(pixel / s.out_width / s.out_height) * s.in_height * s.in_width * s.in_channels;
        float sum = 0;
        for (int tap = 0; tap < 9; tap++) {
            int h = oh * s.stride - 1 + tap / 3, v = ow * s.stride - 1 + tap % 3;
            if (h < 0 || v < 0 || h >= s.in_height || v >= s.in_width) continue;
            const X *from = image + ((size_t)h * s.in_width + v) * s.in_channels;
            for (int ci = 0; ci < s.in_channels; ci++)
                sum += to_float(from[ci]) * w[((size_t)ci * 9 + tap) * s.out_channels + co];
        }
        float z = factor * sum + c + (e.bias ? e.bias[co] : 0.0f) + (r ? to_float(r[i]) : 0.0f);
        bad = bad || !is_finite(z);
        if (z > 0.0f) bits |= 1u << j;
        y[i] = from_float<Y>((e.relu && z < 0.0f ? 0.0f : z) + d);
    }
    raise_flag(e.nonfinite, bad);
    if (e.mask) store_mask(e.mask, group, bits);
}

/* One thread for one element of dx; any stride. */
template <typename Y, typename X>
static __global__ void __launch_bounds__(THREADS, 4)
    backward_data_plain(tn_conv_shape s, const Y *__restrict__ dz, const float *__restrict__ w, X *dx) {
    const int i = (int)(blockIdx.x * THREADS + threadIdx.x);
    if (i >= s.rows * s.in_height * s.in_width * s.in_channels) return;
    const int pixel = i / s.in_channels, ci = i % s.in_channels;
    const int v = pixel % s.in_width, h = pixel / s.in_width % s.in_height;
    const Y *image =
        dz + (size_t)(pixel / s.in_width / s.in_height) * s.out_height * s.out_width * s.out_channels;
    float sum = 0;
    for (int tap = 0; tap < 9; tap++) {
        int down = h + 1 - tap / 3, right = v + 1 - tap % 3;
        if (down < 0 || right < 0 || down % s.stride || right % s.stride) continue;
        int oh = down / s.stride, ow = right / s.stride;
        if (oh >= s.out_height || ow >= s.out_width) continue;
        const Y *from = image + ((size_t)oh * s.out_width + ow) * s.out_channels;
        for (int co = 0; co < s.out_channels; co++)
            sum += to_float(from[co]) * w[((size_t)co * 9 + 8 - tap) * s.in_channels + ci];
    }
    dx[i] = from_float<X>(sum);
}

/* ---- pieces of the tiled kernels ---- */

/* Fills tile[SLICE][PLANE], rows of PITCH floats, with channels [ci0, ci0 + SLICE) of the IH x IW pixels
 * whose first is (h0, w0); zeros outside the image and beyond its channels. */
template <typename X, int BLOCK, int SLICE, int IH, int IW, int PITCH>
__device__ __forceinline__ void load_tile(float (*tile)[IH * PITCH], const X *__restrict__ image, int height,
                                          int width, int channels, int h0, int w0, int ci0) {
    if (channels % 4 == 0) {
        constexpr int QUADS = SLICE / 4;
        for (int i = threadIdx.x; i < IH * IW * QUADS; i += BLOCK) {
            int q = i % QUADS, p = i / QUADS, h = h0 + p / IW, w = w0 + p % IW, ci = ci0 + 4 * q;
            float v[4] = {0.0f, 0.0f, 0.0f, 0.0f};
            if (h >= 0 && h < height && w >= 0 && w < width && ci < channels)
                load4(image + ((size_t)h * width + w) * channels + ci, v);
#pragma unroll
            for (int k = 0; k < 4; k++) tile[4 * q + k][p / IW * PITCH + p % IW] = v[k];
        }
        return;
    }
    for (int i = threadIdx.x; i < IH * IW * SLICE; i += BLOCK) {
        int k = i % SLICE, p = i / SLICE, h = h0 + p / IW, w = w0 + p % IW, ci = ci0 + k;
        bool inside = h >= 0 && h < height && w >= 0 && w < width && ci < channels;
        tile[k][p / IW * PITCH + p % IW] =
            inside ? to_float(image[((size_t)h * width + w) * channels + ci]) : 0.0f;
    }
}

/* 4 pixels of a row times 8 channels: sums[pixel][channel] += input[pixel] * w[channel]. */
template <int STRIDE>
__device__ __forceinline__ void add_tap(float (*sums)[8], const float *input, const float *__restrict__ w) {
    float weights[8];
    load8(w, weights);
#pragma unroll
    for (int p = 0; p < 4; p++)
#pragma unroll
        for (int k = 0; k < 8; k++) sums[p][k] += input[p * STRIDE] * weights[k];
}

/* Which pixels and channels of the output a block and its threads compute: tiles of TH x TW pixels by CT
 * channels. The channel group runs fastest over threads, so that a warp writes whole lines. */
template <int CT, int TH, int TW> struct tiling {
    static constexpr int GROUPS = CT / 8;
    static constexpr int BLOCK = TH * TW / 4 * GROUPS;
    int image, h0, w0;        /* of the tile */
    int row, column, channel; /* of the thread: first of 4 pixels, of 8 channels, within the tile */

    __device__ __forceinline__ tiling(int height, int width) {
        int across = (width + TW - 1) / TW, down = (height + TH - 1) / TH;
        w0 = (int)(blockIdx.x % across) * TW;
        h0 = (int)(blockIdx.x / across % down) * TH;
        image = (int)(blockIdx.x / across / down);
        int p = threadIdx.x / GROUPS;
        channel = threadIdx.x % GROUPS * 8;
        row = p / (TW / 4);
        column = p % (TW / 4) * 4;
    }

    static dim3 grid(int rows, int height, int width, int channels) {
        return dim3((unsigned)(((width + TW - 1) / TW) * ((height + TH - 1) / TH)) * (unsigned)rows,
                    (unsigned)((channels + CT - 1) / CT));
    }
};

/* The epilogue of a thread's 4 pixels and 8 channels, the first of which is channel co. */
template <typename Y, typename TILING>
__device__ __forceinline__ void finish_tile(const tn_conv_shape &s, const TILING &t, int co, float (*sums)[8],
                                            const tn_epilogue &e, Y *y) {
    const int oh = t.h0 + t.row;
    if (oh >= s.out_height || co >= s.out_channels) return;
    const epilogue_of<Y> epilogue(e);
    bool bad = false;
#pragma unroll
    for (int p = 0; p < 4; p++) {
        int ow = t.w0 + t.column + p;
        if (ow >= s.out_width) break;
        size_t at = (((size_t)t.image * s.out_height + oh) * s.out_width + ow) * s.out_channels + co;
        bad = !epilogue.finish8(sums[p], co, at, y) || bad;
    }
    raise_flag(e.nonfinite, bad);
}

/* ---- forward, and backward data of stride 1 ---- */

template <typename X, typename Y, int STRIDE, int CT, int TH, int TW>
static __global__ void __launch_bounds__(tiling<CT, TH, TW>::BLOCK, 4)
    forward_tiled(tn_conv_shape s, const X *__restrict__ x, const float *__restrict__ w, tn_epilogue e,
                  Y *y) {
    constexpr int BLOCK = tiling<CT, TH, TW>::BLOCK, SLICE = STRIDE == 1 ? 8 : 4;
    constexpr int IH = (TH - 1) * STRIDE + 3, IW = (TW - 1) * STRIDE + 3, PITCH = IW | 1;
    __shared__ float tile[SLICE][IH * PITCH];
    __shared__ __align__(16) float weights[SLICE * 9 * CT];
    const tiling<CT, TH, TW> t(s.out_height, s.out_width);
    const int co0 = blockIdx.y * CT;
    const X *image = x + (size_t)t.image * s.in_height * s.in_width * s.in_channels;
    float sums[4][8] = {};

    for (int ci0 = 0; ci0 < s.in_channels; ci0 += SLICE) {
        const int depth = min(SLICE, s.in_channels - ci0);
        __syncthreads();
        load_tile<X, BLOCK, SLICE, IH, IW, PITCH>(tile, image, s.in_height, s.in_width, s.in_channels,
                                                  t.h0 * STRIDE - 1, t.w0 * STRIDE - 1, ci0);
        for (int i = 4 * threadIdx.x; i < depth * 9 * CT; i += 4 * BLOCK) {
            int co = co0 + i % CT;
            float4 v = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            if (co < s.out_channels)
                v = *reinterpret_cast<const float4 *>(w + ((size_t)ci0 * 9 + i / CT) * s.out_channels + co);
            *reinterpret_cast<float4 *>(weights + i) = v;
        }
        __syncthreads();
        for (int ci = 0; ci < depth; ci++) {
#pragma unroll
            for (int kh = 0; kh < 3; kh++) {
                float input[3 * STRIDE + 3];
#pragma unroll
                for (int k = 0; k < 3 * STRIDE + 3; k++)
                    input[k] = tile[ci][(t.row * STRIDE + kh) * PITCH + t.column * STRIDE + k];
#pragma unroll
                for (int kw = 0; kw < 3; kw++)
                    add_tap<STRIDE>(sums, input + kw, weights + (ci * 9 + kh * 3 + kw) * CT + t.channel);
            }
        }
    }

    finish_tile(s, t, co0 + t.channel, sums, e, y);
}

template <typename X, typename Y, int STRIDE, int CT, int TH, int TW>
static void launch_tiled(const tn_conv_shape *s, const X *x, const float *w, tn_epilogue e, Y *y,
                         cudaStream_t stream) {
    typedef tiling<CT, TH, TW> t;
    TN_LAUNCH((forward_tiled<X, Y, STRIDE, CT, TH, TW>),
              t::grid(s->rows, s->out_height, s->out_width, s->out_channels), t::BLOCK, 0, stream, *s, x, w,
              e, y);
}

template <typename X, typename Y>
static void forward(const tn_conv_shape *s, const void *from, const float *w, tn_epilogue e, void *to,
                    cudaStream_t stream) {
    const X *x = static_cast<const X *>(from);
    Y *y = static_cast<Y *>(to);
    const unsigned count = (unsigned)out_elements(s);
    if (s->out_channels % 8)
        TN_LAUNCH((forward_plain<X, Y>), blocks_for(groups_of(count)), THREADS, 0, stream, *s, x, w, e, y);
    else if (s->stride == 1 && s->out_channels <= 16)
        launch_tiled<X, Y, 1, 16, 16, 16>(s, x, w, e, y, stream);
    else if (s->stride == 1 && s->out_channels <= 32)
        launch_tiled<X, Y, 1, 32, 8, 16>(s, x, w, e, y, stream);
    else if (s->stride == 1)
        launch_tiled<X, Y, 1, 64, 8, 8>(s, x, w, e, y, stream);
    else if (s->out_channels <= 32)
        launch_tiled<X, Y, 2, 32, 8, 16>(s, x, w, e, y, stream);
    else
        launch_tiled<X, Y, 2, 64, 8, 8>(s, x, w, e, y, stream);
}

cudaError_t tn_launch_conv3x3_forward(const tn_conv_shape *shape, tn_storage x_store, const void *x,
                                      const float *w, tn_epilogue epilogue, tn_storage y_store, void *y,
                                      cudaStream_t stream) {
    if (bad_conv3x3(shape)) return cudaErrorInvalidValue;
    if (misaligned(x) || misaligned(y) || misaligned(w) || misaligned(epilogue.r))
        return cudaErrorMisalignedAddress;
    if (shape->rows == 0) return cudaSuccess;
    TN_PICK2(forward, x_store, y_store)(shape, x, w, epilogue, y, stream);
    return cudaGetLastError();
}

/* ---- backward data of stride 2 ---- */

/* Blocks of parity (blockIdx.z / 2, blockIdx.z % 2): pixel (i, j) of a block's plane is pixel (2i + ph, 2j +
 * pw) of dx. An even row meets tap row 1 at dz row i; an odd one tap row 0 at dz row i + 1 and tap row 2 at
 * dz row i. */
template <typename Y, typename X, int CT, int TH, int TW>
static __global__ void __launch_bounds__(tiling<CT, TH, TW>::BLOCK, 4)
    backward_data_tiled(tn_conv_shape s, const Y *__restrict__ dz, const float *__restrict__ w, X *dx) {
    constexpr int BLOCK = tiling<CT, TH, TW>::BLOCK, SLICE = 8;
    constexpr int IH = TH + 1, IW = TW + 1, PITCH = IW | 1;
    __shared__ float tile[SLICE][IH * PITCH];
    __shared__ __align__(16) float weights[SLICE * 4 * CT];
    const tiling<CT, TH, TW> t((s.in_height + 1) / 2, (s.in_width + 1) / 2);
    const int ph = blockIdx.z / 2, pw = blockIdx.z % 2, across = pw + 1, taps = (ph + 1) * across;
    const int ci0 = blockIdx.y * CT;
    const Y *image = dz + (size_t)t.image * s.out_height * s.out_width * s.out_channels;
    float sums[4][8] = {};

    for (int co0 = 0; co0 < s.out_channels; co0 += SLICE) {
        const int depth = min(SLICE, s.out_channels - co0);
        __syncthreads();
        load_tile<Y, BLOCK, SLICE, IH, IW, PITCH>(tile, image, s.out_height, s.out_width, s.out_channels,
                                                  t.h0, t.w0, co0);
        for (int i = 4 * threadIdx.x; i < depth * taps * CT; i += 4 * BLOCK) {
            int ci = ci0 + i % CT, tap = i / CT % taps, co = co0 + i / CT / taps;
            int kh = ph ? 2 * (tap / across) : 1, kw = pw ? 2 * (tap % across) : 1;
            float4 v = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            if (ci < s.in_channels)
                v = *reinterpret_cast<const float4 *>(
                    w + ((size_t)co * 9 + 8 - (kh * 3 + kw)) * s.in_channels + ci);
            *reinterpret_cast<float4 *>(weights + i) = v;
        }
        __syncthreads();
        for (int co = 0; co < depth; co++)
            for (int a = 0; a <= ph; a++) {
                float input[5];
#pragma unroll
                for (int k = 0; k < 5; k++) input[k] = tile[co][(t.row + ph - a) * PITCH + t.column + k];
                const float *row = weights + ((co * (ph + 1) + a) * across) * CT + t.channel;
                add_tap<1>(sums, pw ? input + 1 : input, row);
                if (pw) add_tap<1>(sums, input, row + CT);
            }
    }

    const int h = 2 * (t.h0 + t.row) + ph, ci = ci0 + t.channel;
    if (h >= s.in_height || ci >= s.in_channels) return;
#pragma unroll
    for (int p = 0; p < 4; p++) {
        int v = 2 * (t.w0 + t.column + p) + pw;
        if (v < s.in_width)
            store8(dx + (((size_t)t.image * s.in_height + h) * s.in_width + v) * s.in_channels + ci, sums[p]);
    }
}

template <typename Y, typename X, int CT, int TH, int TW>
static void launch_data(const tn_conv_shape *s, const Y *dz, const float *w, X *dx, cudaStream_t stream) {
    typedef tiling<CT, TH, TW> t;
    dim3 grid = t::grid(s->rows, (s->in_height + 1) / 2, (s->in_width + 1) / 2, s->in_channels);
    grid.z = 4;
    TN_LAUNCH((backward_data_tiled<Y, X, CT, TH, TW>), grid, t::BLOCK, 0, stream, *s, dz, w, dx);
}

template <typename Y, typename X>
static void backward_data(const tn_conv_shape *s, const void *from, const float *w, void *to,
                          cudaStream_t stream) {
    const Y *dz = static_cast<const Y *>(from);
    X *dx = static_cast<X *>(to);
    if (s->in_channels % 8) {
        TN_LAUNCH((backward_data_plain<Y, X>), blocks_for((unsigned)in_elements(s)), THREADS, 0, stream, *s,
                  dz, w, dx);
    } else if (s->stride == 1) {
        tn_conv_shape back = *s;
        back.in_channels = s->out_channels;
        back.out_channels = s->in_channels;
        forward<Y, X>(&back, from, w, tn_epilogue(), to, stream);
    } else if (s->in_channels <= 16) {
        launch_data<Y, X, 16, 16, 16>(s, dz, w, dx, stream);
    } else if (s->in_channels <= 32) {
        launch_data<Y, X, 32, 8, 16>(s, dz, w, dx, stream);
    } else {
        launch_data<Y, X, 64, 8, 8>(s, dz, w, dx, stream);
    }
}

cudaError_t tn_launch_conv3x3_backward_data(const tn_conv_shape *shape, tn_storage y_store, const void *dz,
                                            const float *w, tn_storage x_store, void *dx,
                                            cudaStream_t stream) {
    if (bad_conv3x3(shape)) return cudaErrorInvalidValue;
    if (misaligned(dz) || misaligned(dx) || misaligned(w)) return cudaErrorMisalignedAddress;
    if (shape->rows == 0) return cudaSuccess;
    TN_PICK2(backward_data, y_store, x_store)(shape, dz, w, dx, stream);
    return cudaGetLastError();
}
