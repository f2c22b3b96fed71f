/* Correct kernels of every kind that a training backend needs: they must pass on the machine, in both builds
 * and under every seed, with the same bits. The file is CUDA C++; nvcc compiles it too. Usage:
 * selftest-correct (seed from SIMT_SEED). Prints a hash of all results. */
#include <cuda_bf16.h>
#include <cuda_pipeline.h>
#include <curand_kernel.h>
#include <mma.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "kernels/launch.h"
#include "tests/simt/selftest/philox_reference.h"

using namespace nvcuda;

#define CHECK(condition)                                                                                     \
    do {                                                                                                     \
        if (!(condition)) {                                                                                  \
            printf("%s:%d: %s is false\n", __FILE__, __LINE__, #condition);                                  \
            exit(1);                                                                                         \
        }                                                                                                    \
    } while (0)
#define OK(call)                                                                                             \
    do {                                                                                                     \
        cudaError_t error_ = (call);                                                                         \
        if (error_) {                                                                                        \
            printf("%s:%d: %s: %s\n", __FILE__, __LINE__, #call, cudaGetErrorString(error_));                \
            exit(1);                                                                                         \
        }                                                                                                    \
    } while (0)

static uint64_t hash = 1469598103934665603u;
static void add_hash(const void *data, size_t bytes) {
    for (size_t i = 0; i < bytes; i++)
        hash = (hash ^ static_cast<const unsigned char *>(data)[i]) * 1099511628211u;
}

/* A vector on the device with a copy on the host. */
template <class T> struct Buffer {
    std::vector<T> host;
    T *device = nullptr;
    explicit Buffer(size_t n, bool upload = true) : host(n) {
        for (size_t i = 0; i < n; i++) host[i] = T((float)((i * 7919 + 13) % 97) / 97.0f - 0.4f);
        OK(cudaMalloc(&device, n * sizeof(T)));
        if (upload) OK(cudaMemcpy(device, host.data(), n * sizeof(T), cudaMemcpyHostToDevice));
    }
    ~Buffer() {
        OK(cudaFree(device));
    }
    const std::vector<T> &read() {
        OK(cudaMemcpy(host.data(), device, host.size() * sizeof(T), cudaMemcpyDeviceToHost));
        add_hash(host.data(), host.size() * sizeof(T));
        return host;
    }
};

/* 1. Elementwise, with vector loads. */
__global__ void scale4(float4 *y, const float4 *x, float a, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    float4 v = __ldg(x + i);
    y[i] = make_float4(a * v.x, a * v.y, a * v.z, a * v.w);
}

static void test_scale() {
    int n = 1000;
    Buffer<float> x(4 * n), y(4 * n, false);
    TN_LAUNCH(scale4, (n + 127) / 128, 128, 0, 0, (float4 *)y.device, (const float4 *)x.device, 3.0f, n);
    OK(cudaGetLastError());
    y.read();
    for (int i = 0; i < 4 * n; i++) CHECK(y.host[i] == 3.0f * x.host[i]);
}

/* 2. Two-stage reduction: shared memory, then the last block to finish adds the partial sums. */
__device__ unsigned blocks_done;

__global__ void sum_stage(float *out, float *partial, unsigned *done, const float *x, int n) {
    TN_DYNAMIC_SHARED(float, sums);
    __shared__ bool last;
    float s = 0.0f;
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) s += x[i];
    sums[threadIdx.x] = s;
    __syncthreads();
    for (unsigned k = blockDim.x / 2; k > 0; k /= 2) {
        if (threadIdx.x < k) sums[threadIdx.x] += sums[threadIdx.x + k];
        __syncthreads();
    }
    if (threadIdx.x == 0) {
        partial[blockIdx.x] = sums[0];
        __threadfence();
        last = atomicAdd(done, 1u) == gridDim.x - 1;
    }
    __syncthreads();
    if (last && threadIdx.x == 0) {
        float total = 0.0f;
        for (unsigned b = 0; b < gridDim.x; b++) total += partial[b];
        *out = total;
        *done = 0;
    }
}

static void test_sum() {
    int n = 10000, blocks = 7;
    Buffer<float> x(n), partial(blocks, false), out(1, false);
    unsigned *done;
    OK(cudaMalloc(&done, sizeof *done));
    OK(cudaMemset(done, 0, sizeof *done));
    for (int repeat = 0; repeat < 2; repeat++)
        TN_LAUNCH(sum_stage, blocks, 256, 256 * sizeof(float), 0, out.device, partial.device, done, x.device,
                  n);
    out.read();
    double expected = 0;
    for (float v : x.host) expected += v;
    CHECK(fabs(out.host[0] - expected) < 1e-2);
    OK(cudaFree(done));
}

/* 3. Reductions and scans by shuffles; votes; partial warps. */
__global__ void warp_sums(float *down, float *butterfly, unsigned *votes, int *scan, int *reduced) {
    int lane = threadIdx.x % 32, i = blockIdx.x * blockDim.x + threadIdx.x;
    float v = (float)(i % 37);
    for (int d = 16; d > 0; d >>= 1) v += __shfl_down_sync(0xffffffffu, v, d);
    if (lane == 0) down[i / 32] = v;
    float w = (float)(i % 37);
    for (int d = 16; d > 0; d >>= 1) w += __shfl_xor_sync(0xffffffffu, w, d);
    butterfly[i] = w;
    votes[i] = __ballot_sync(0xffffffffu, i % 3 == 0);
    int sum = lane;
    for (int d = 1; d < 32; d *= 2) {
        int other = __shfl_up_sync(0xffffffffu, sum, d);
        if (lane >= d) sum += other;
    }
    scan[i] = sum;
    reduced[i] = 0;
    if (lane < 8) reduced[i] = __reduce_add_sync(0xffu, lane) + __shfl_sync(0xffu, lane * 10, 3, 4);
    __syncwarp();
    if (lane == 0) reduced[i] += __any_sync(1u, 1) ? 100 : 0;
}

static void test_warps() {
    int blocks = 3, threads = 128, n = blocks * threads;
    Buffer<float> down(n / 32, false), butterfly(n, false);
    Buffer<unsigned> votes(n, false);
    Buffer<int> scan(n, false), reduced(n, false);
    TN_LAUNCH(warp_sums, blocks, threads, 0, 0, down.device, butterfly.device, votes.device, scan.device,
              reduced.device);
    down.read(), butterfly.read(), votes.read(), scan.read(), reduced.read();
    for (int i = 0; i < n; i++) {
        float expected = 0;
        unsigned bits = 0;
        for (int l = 0; l < 32; l++) {
            expected += (float)((i / 32 * 32 + l) % 37);
            if ((i / 32 * 32 + l) % 3 == 0) bits |= 1u << l;
        }
        int lane = i % 32;
        CHECK(butterfly.host[i] == expected && down.host[i / 32] == expected && votes.host[i] == bits);
        CHECK(scan.host[i] == lane * (lane + 1) / 2);
        CHECK(reduced.host[i] == (lane < 8 ? 28 + (lane < 4 ? 30 : 70) + (lane == 0 ? 100 : 0) : 0));
    }
}

/* 4. Transpose through shared memory. */
__global__ void transpose(float *out, const float *in, int rows, int columns) {
    __shared__ float tile[32][33];
    int x = blockIdx.x * 32 + threadIdx.x, y = blockIdx.y * 32 + threadIdx.y;
    for (int k = 0; k < 32; k += 8)
        if (x < columns && y + k < rows) tile[threadIdx.y + k][threadIdx.x] = in[(y + k) * columns + x];
    __syncthreads();
    x = blockIdx.y * 32 + threadIdx.x;
    y = blockIdx.x * 32 + threadIdx.y;
    for (int k = 0; k < 32; k += 8)
        if (x < rows && y + k < columns) out[(y + k) * rows + x] = tile[threadIdx.x][threadIdx.y + k];
}

static void test_transpose() {
    int rows = 70, columns = 45;
    Buffer<float> in(rows * columns), out(rows * columns, false);
    TN_LAUNCH(transpose, dim3(2, 3), dim3(32, 8), 0, 0, out.device, in.device, rows, columns);
    out.read();
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < columns; c++) CHECK(out.host[c * rows + r] == in.host[r * columns + c]);
}

/* 5. Stencil with halo, in asynchronously copied double buffers, bf16. */
__global__ void stencil(__nv_bfloat16 *out, const __nv_bfloat16 *in, int rows, int width) {
    __shared__ __align__(16) __nv_bfloat16 line[2][64];
    int t = threadIdx.x;
    auto fetch = [&](int row) {
        if (t < width / 8) __pipeline_memcpy_async(&line[row & 1][t * 8], in + row * width + t * 8, 16);
        __pipeline_commit();
    };
    fetch(0);
    for (int row = 0; row < rows; row++) {
        if (row + 1 < rows)
            fetch(row + 1);
        else
            __pipeline_commit();
        __pipeline_wait_prior(1);
        __syncthreads();
        const __nv_bfloat16 *l = line[row & 1];
        float left = t > 0 ? __bfloat162float(l[t - 1]) : 0.0f;
        float right = t + 1 < width ? __bfloat162float(l[t + 1]) : 0.0f;
        if (t < width)
            out[row * width + t] = __float2bfloat16(0.25f * left + 0.5f * (float)l[t] + 0.25f * right);
        __syncthreads();
    }
}

static void test_stencil() {
    int rows = 9, width = 64;
    Buffer<__nv_bfloat16> in(rows * width), out(rows * width, false);
    TN_LAUNCH(stencil, 1, 64, 0, 0, out.device, in.device, rows, width);
    out.read();
    for (int i = 0; i < rows * width; i++) {
        int t = i % width;
        float left = t > 0 ? (float)in.host[i - 1] : 0, right = t + 1 < width ? (float)in.host[i + 1] : 0;
        CHECK((float)out.host[i] ==
              (float)__nv_bfloat16(0.25f * left + 0.5f * (float)in.host[i] + 0.25f * right));
    }
}

/* 6. WMMA: C = A B, tiles from global memory, epilogue through shared memory. */
template <int M, int N, int K, class T, class E, class LB>
__global__ void wmma_gemm(float *c, const E *a, const E *b, int n, int k, float scale) {
    __shared__ __align__(32) float tile[M * N];
    wmma::fragment<wmma::matrix_a, M, N, K, T, wmma::row_major> fa;
    wmma::fragment<wmma::matrix_b, M, N, K, T, LB> fb;
    wmma::fragment<wmma::accumulator, M, N, K, float> sum;
    wmma::fill_fragment(sum, 0.0f);
    int row = blockIdx.y * M, column = blockIdx.x * N;
    constexpr bool by_row = std::is_same<LB, wmma::row_major>::value;
    for (int i = 0; i < k; i += K) {
        wmma::load_matrix_sync(fa, a + row * k + i, k);
        wmma::load_matrix_sync(fb, by_row ? b + i * n + column : b + column * k + i, by_row ? n : k);
        if constexpr (sizeof(E) == 4) {
            for (int e = 0; e < fa.num_elements; e++) fa.x[e] = wmma::__float_to_tf32(fa.x[e]);
            for (int e = 0; e < fb.num_elements; e++) fb.x[e] = wmma::__float_to_tf32(fb.x[e]);
        }
        wmma::mma_sync(sum, fa, fb, sum);
    }
    for (int e = 0; e < sum.num_elements; e++) sum.x[e] *= scale;
    wmma::store_matrix_sync(tile, sum, N, wmma::mem_row_major);
    __syncwarp();
    for (int i = threadIdx.x; i < M * N; i += 32) c[(row + i / N) * n + column + i % N] = tile[i] + 1.0f;
}

static float rounded(float v) {
    unsigned bits;
    memcpy(&bits, &v, 4);
    bits = (bits + 0x1000u) & ~0x1fffu;
    memcpy(&v, &bits, 4);
    return v;
}
static float rounded(__nv_bfloat16 v) {
    return (float)v;
}

template <int M, int N, int K, class T, class E, class LB> static void test_wmma() {
    int m = 64, n = 64, k = 48;
    Buffer<E> a(m * k), b(k * n);
    Buffer<float> c(m * n, false);
    bool by_row = std::is_same<LB, wmma::row_major>::value;
    TN_LAUNCH((wmma_gemm<M, N, K, T, E, LB>), dim3(n / N, m / M), 32, 0, 0, c.device, a.device, b.device, n,
              k, 0.5f);
    OK(cudaGetLastError());
    c.read();
    for (int i = 0; i < m; i++)
        for (int j = 0; j < n; j++) {
            double s = 0;
            for (int l = 0; l < k; l++)
                s += (double)rounded(a.host[i * k + l]) *
                     rounded(by_row ? b.host[l * n + j] : b.host[j * k + l]);
            CHECK(fabs(c.host[i * n + j] - (0.5 * s + 1.0)) < 1e-4);
        }
}

/* 7. Two streams, events, pinned memory; then the same captured as a graph with a fork and replayed. */
__global__ void add_to(float *y, const float *x, float a, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = y[i] + a * x[i];
}

struct Pair {
    cudaStream_t a, b;
    cudaEvent_t fork, join;
    float *host_in, *host_out, *x, *y, *z;
    int n;
};

/* out = (in + in) + 2 * (in + 3 * in), in two streams */
static void step(const Pair &p) {
    size_t bytes = p.n * sizeof(float);
    int grid = (p.n + 63) / 64;
    OK(cudaMemcpyAsync(p.x, p.host_in, bytes, cudaMemcpyHostToDevice, p.a));
    OK(cudaEventRecord(p.fork, p.a));
    OK(cudaStreamWaitEvent(p.b, p.fork, 0));
    OK(cudaMemcpyAsync(p.z, p.x, bytes, cudaMemcpyDeviceToDevice, p.b));
    TN_LAUNCH(add_to, grid, 64, 0, p.b, p.z, (const float *)p.x, 3.0f, p.n);
    OK(cudaEventRecord(p.join, p.b));
    OK(cudaMemcpyAsync(p.y, p.x, bytes, cudaMemcpyDeviceToDevice, p.a));
    TN_LAUNCH(add_to, grid, 64, 0, p.a, p.y, (const float *)p.x, 1.0f, p.n);
    OK(cudaStreamWaitEvent(p.a, p.join, 0));
    TN_LAUNCH(add_to, grid, 64, 0, p.a, p.y, (const float *)p.z, 2.0f, p.n);
    OK(cudaMemcpyAsync(p.host_out, p.y, bytes, cudaMemcpyDeviceToHost, p.a));
}

static void test_streams() {
    Pair p = {};
    p.n = 500;
    OK(cudaStreamCreateWithFlags(&p.a, cudaStreamNonBlocking));
    OK(cudaStreamCreateWithFlags(&p.b, cudaStreamNonBlocking));
    OK(cudaEventCreateWithFlags(&p.fork, cudaEventDisableTiming));
    OK(cudaEventCreateWithFlags(&p.join, cudaEventDisableTiming));
    OK(cudaMallocHost(&p.host_in, p.n * sizeof(float)));
    OK(cudaMallocHost(&p.host_out, p.n * sizeof(float)));
    OK(cudaMalloc(&p.x, p.n * sizeof(float)));
    OK(cudaMalloc(&p.y, p.n * sizeof(float)));
    OK(cudaMalloc(&p.z, p.n * sizeof(float)));
    cudaGraph_t graph;
    cudaGraphExec_t exec = nullptr;
    for (int round = 0; round < 4; round++) {
        for (int i = 0; i < p.n; i++) p.host_in[i] = (float)(i + round * 1000);
        if (round == 2) {
            OK(cudaStreamBeginCapture(p.a, cudaStreamCaptureModeThreadLocal));
            step(p);
            OK(cudaStreamEndCapture(p.a, &graph));
            OK(cudaGraphInstantiate(&exec, graph, 0));
            OK(cudaGraphDestroy(graph));
        }
        if (exec)
            OK(cudaGraphLaunch(exec, p.a));
        else
            step(p);
        OK(cudaStreamSynchronize(p.a));
        for (int i = 0; i < p.n; i++) CHECK(p.host_out[i] == 10.0f * p.host_in[i]);
        add_hash(p.host_out, p.n * sizeof(float));
    }
    OK(cudaGraphExecDestroy(exec));
    OK(cudaEventDestroy(p.fork));
    OK(cudaEventDestroy(p.join));
    OK(cudaFreeHost(p.host_in));
    OK(cudaFreeHost(p.host_out));
    OK(cudaFree(p.x));
    OK(cudaFree(p.y));
    OK(cudaFree(p.z));
    OK(cudaStreamDestroy(p.a));
    OK(cudaStreamDestroy(p.b));
}

/* 8. Philox: the integers of the real cuRAND header, through all ways of drawing them. */
__global__ void draw(unsigned *out, unsigned long long seed) {
    int i = threadIdx.x;
    curandStatePhilox4_32_10_t state;
    curand_init(seed, (unsigned long long)i * 1000003ull, (unsigned long long)i * 5ull, &state);
    unsigned *to = out + i * PHILOX_WORDS;
    for (int k = 0; k < 3; k++) *to++ = curand(&state);
    uint4 four = curand4(&state);
    *to++ = four.x, *to++ = four.y, *to++ = four.z, *to++ = four.w;
    for (int k = 0; k < 2; k++) *to++ = curand(&state);
    skipahead(7ull, &state);
    *to++ = curand(&state);
    *to++ = __float_as_uint(curand_uniform(&state));
}

static void test_philox() {
    Buffer<unsigned> out(32 * PHILOX_WORDS, false);
    TN_LAUNCH(draw, 1, 32, 0, 0, out.device, PHILOX_SEED);
    out.read();
    for (int i = 0; i < 32 * PHILOX_WORDS; i++) CHECK(out.host[i] == philox_reference[i]);
}

/* 9. Integer atomics, match and barriers with votes. */
__global__ void histogram(unsigned *counts, int *any, const unsigned *x, int n) {
    __shared__ unsigned local[16];
    if (threadIdx.x < 16) local[threadIdx.x] = 0;
    __syncthreads();
    int mine = 0;
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) {
        atomicAdd(&local[x[i] % 16], 1u);
        mine |= x[i] == 5;
    }
    int found = __syncthreads_or(mine), threads = __syncthreads_count(1);
    if (threadIdx.x < 16) atomicAdd(&counts[threadIdx.x], local[threadIdx.x]);
    if (threadIdx.x == 0 && found) atomicMax(any, threads);
}

static void test_histogram() {
    int n = 3000;
    Buffer<unsigned> x(n), counts(16);
    Buffer<int> any(1);
    for (int i = 0; i < n; i++) x.host[i] = (unsigned)(i * 31 % 101);
    OK(cudaMemcpy(x.device, x.host.data(), n * sizeof(unsigned), cudaMemcpyHostToDevice));
    OK(cudaMemset(counts.device, 0, 16 * sizeof(unsigned)));
    OK(cudaMemset(any.device, 0, sizeof(int)));
    TN_LAUNCH(histogram, 4, 96, 0, 0, counts.device, any.device, x.device, n);
    counts.read(), any.read();
    unsigned expected[16] = {};
    for (unsigned v : x.host) expected[v % 16]++;
    CHECK(memcmp(expected, counts.host.data(), sizeof expected) == 0 && any.host[0] == 96);
}

int main() {
    test_scale();
    test_sum();
    test_warps();
    test_transpose();
    test_stencil();
    test_wmma<16, 16, 16, __nv_bfloat16, __nv_bfloat16, wmma::row_major>();
    test_wmma<16, 16, 16, __nv_bfloat16, __nv_bfloat16, wmma::col_major>();
    test_wmma<32, 8, 16, __nv_bfloat16, __nv_bfloat16, wmma::col_major>();
    test_wmma<8, 32, 16, __nv_bfloat16, __nv_bfloat16, wmma::row_major>();
    test_wmma<16, 16, 8, wmma::precision::tf32, float, wmma::row_major>();
    test_wmma<16, 16, 8, wmma::precision::tf32, float, wmma::col_major>();
    test_streams();
    test_philox();
    test_histogram();
    OK(cudaDeviceSynchronize());
    printf("correct kernels: results %016llx\n", (unsigned long long)hash);
    return 0;
}
