/* The kernels that libraries.c launches. */
#include <curand_kernel.h>

#include "kernels/launch.h"

__global__ void fill(float *y, float v, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = v;
}
extern "C" void launch_fill(float *y, float v, int n, int threads, cudaStream_t stream) {
    TN_LAUNCH(fill, (n + threads - 1) / threads, threads, 0, stream, y, v, n);
}

__global__ void strided(float *y, const float *x, int stride, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = x[i * stride];
}
extern "C" void launch_strided(float *y, const float *x, int stride, int n, cudaStream_t stream) {
    TN_LAUNCH(strided, (n + 127) / 128, 128, 0, stream, y, x, stride, n);
}

/* One warp writes a tile by rows and reads it by columns. */
__global__ void columns(float *y, int pitch) {
    TN_DYNAMIC_SHARED(float, tile);
    for (int row = 0; row < 32; row++) tile[row * pitch + threadIdx.x] = (float)row;
    __syncthreads();
    float s = 0.0f;
    for (int column = 0; column < 32; column++) s += tile[threadIdx.x * pitch + column];
    y[threadIdx.x] = s;
}
extern "C" void launch_columns(float *y, int pitch, cudaStream_t stream) {
    TN_LAUNCH(columns, 1, 32, 32 * 33 * sizeof(float), stream, y, pitch);
}

/* Words 0..n-1 of the stream that src/base/philox.h calls (seed, purpose, a, b). */
__global__ void stream_words(unsigned *y, unsigned long long seed, unsigned purpose, unsigned a, unsigned b,
                             int n) {
    curandStatePhilox4_32_10_t state;
    curand_init(seed, (unsigned long long)purpose << 32 | a, (unsigned long long)b << 34, &state);
    for (int i = 0; i < n; i++) y[i] = curand(&state);
}
extern "C" void launch_stream_words(unsigned *y, unsigned long long seed, unsigned purpose, unsigned a,
                                    unsigned b, int n) {
    TN_LAUNCH(stream_words, 1, 1, 0, 0, y, seed, purpose, a, b, n);
}
