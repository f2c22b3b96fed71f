/* The kernels that libraries.c launches. */
#include <cuda_bf16.h>
#include <cuda_pipeline.h>
#include <curand_kernel.h>
#include <mma.h>

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

/* Every block reads the same 128 floats, twice, and 128 of its own, writes 128 and reads them again. */
__global__ void shared_reads(float *y, const float *x, const float *common) {
    int t = threadIdx.x, i = blockIdx.x * 128 + t;
    float a = common[t];
    __syncthreads();
    y[i] = x[i] + a + common[t];
    __syncthreads();
    y[i] *= 2.0f;
}
extern "C" void launch_shared_reads(float *y, const float *x, const float *common, int blocks,
                                    cudaStream_t stream) {
    TN_LAUNCH(shared_reads, blocks, 128, 0, stream, y, x, common);
}

/* Two blocks read the same floats. */
__global__ void paired_reads(float *y, const float *x) {
    y[blockIdx.x * 128 + threadIdx.x] = x[blockIdx.x / 2 * 128 + threadIdx.x];
}
extern "C" void launch_paired_reads(float *y, const float *x, int blocks, cudaStream_t stream) {
    TN_LAUNCH(paired_reads, blocks, 128, 0, stream, y, x);
}

/* One warp: 32 asynchronous copies of 16 bytes, into rows of `pitch` values of which a WMMA tile is made, one
 * product, and the result by way of shared memory. */
__global__ void tile_product(float *y, const __nv_bfloat16 *x, int pitch) {
    namespace wmma = nvcuda::wmma;
    TN_DYNAMIC_SHARED(__nv_bfloat16, tile);
    float *out = reinterpret_cast<float *>(tile + 16 * 64);
    int t = threadIdx.x;
    __pipeline_memcpy_async(tile + t / 2 * pitch + t % 2 * 8, x + t * 8, 16);
    __pipeline_commit();
    __pipeline_wait_prior(0);
    __syncthreads();
    wmma::fragment<wmma::matrix_a, 16, 16, 16, __nv_bfloat16, wmma::row_major> a;
    wmma::fragment<wmma::matrix_b, 16, 16, 16, __nv_bfloat16, wmma::row_major> b;
    wmma::fragment<wmma::accumulator, 16, 16, 16, float> sum;
    wmma::fill_fragment(sum, 0.0f);
    wmma::load_matrix_sync(a, tile, pitch);
    wmma::load_matrix_sync(b, tile, pitch);
    wmma::mma_sync(sum, a, b, sum);
    wmma::store_matrix_sync(out, sum, pitch, wmma::mem_row_major);
    __syncthreads();
    y[t] = out[t / 16 * pitch + t % 16];
}
extern "C" void launch_tile_product(float *y, const void *x, int pitch, cudaStream_t stream) {
    TN_LAUNCH(tile_product, 1, 32, 16 * 64 * 6, stream, y, static_cast<const __nv_bfloat16 *>(x), pitch);
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
