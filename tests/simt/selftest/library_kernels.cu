/* The kernels that libraries.c launches. */
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
