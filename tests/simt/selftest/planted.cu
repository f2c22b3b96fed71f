/* One small program per class of fault. `selftest-planted NAME bad` plants the fault, `NAME good` is the same
 * without; `selftest-planted` alone lists: name, builds that catch it (plain, check or both), what the
 * machine must say. */
#include <cublas_v2.h>
#include <cuda_bf16.h>
#include <cuda_pipeline.h>
#include <mma.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "kernels/launch.h"

using namespace nvcuda;

#define OK(call)                                                                                             \
    do {                                                                                                     \
        cudaError_t error_ = (call);                                                                         \
        if (error_) {                                                                                        \
            printf("%s:%d: %s: %s\n", __FILE__, __LINE__, #call, cudaGetErrorString(error_));                \
            exit(1);                                                                                         \
        }                                                                                                    \
    } while (0)
#define EXPECT(condition)                                                                                    \
    do {                                                                                                     \
        if (!(condition)) {                                                                                  \
            printf("wrong result: %s\n", #condition);                                                        \
            exit(3);                                                                                         \
        }                                                                                                    \
    } while (0)

static float *device_floats(int n, bool clear = true) {
    float *p;
    OK(cudaMalloc(&p, n * sizeof(float)));
    if (clear) OK(cudaMemset(p, 0, n * sizeof(float)));
    return p;
}

static void finish() {
    OK(cudaGetLastError());
    OK(cudaDeviceSynchronize());
}

__global__ void reverse(float *x, bool bad) {
    __shared__ float s[64];
    s[threadIdx.x] = x[threadIdx.x];
    if (!bad) __syncthreads();
    x[threadIdx.x] = s[63 - threadIdx.x];
}
static void missing_barrier(bool bad) {
    TN_LAUNCH(reverse, 1, 64, 0, 0, device_floats(64), bad);
    finish();
}

__global__ void overwrite(float *x, bool bad) {
    __shared__ float s[64];
    s[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    float v = s[63 - threadIdx.x];
    if (!bad) __syncthreads();
    s[threadIdx.x] = v + 1.0f;
    __syncthreads();
    x[threadIdx.x] = s[threadIdx.x];
}
static void write_after_read(bool bad) {
    TN_LAUNCH(overwrite, 1, 64, 0, 0, device_floats(64), bad);
    finish();
}

__global__ void warp_exchange(float *x, bool bad) {
    __shared__ float s[32];
    s[threadIdx.x] = x[threadIdx.x];
    if (!bad) __syncwarp();
    x[threadIdx.x] = s[threadIdx.x ^ 1];
}
static void missing_syncwarp(bool bad) {
    TN_LAUNCH(warp_exchange, 1, 32, 0, 0, device_floats(32), bad);
    finish();
}

__global__ void neighbours(float *y, const float *x, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i > 0 && i < n - 1) y[i] = x[i - 1] + x[i + 1];
}
static void race_of_blocks(bool bad) {
    float *x = device_floats(256), *y = device_floats(256);
    TN_LAUNCH(neighbours, 4, 64, 0, 0, bad ? x : y, (const float *)x, 256);
    finish();
}

__global__ void add_all(float *sum, bool bad) {
    if (bad)
        *sum += 1.0f;
    else
        atomicAdd(sum, 1.0f);
}
static void missing_atomic(bool bad) {
    TN_LAUNCH(add_all, 4, 64, 0, 0, device_floats(1), bad);
    finish();
}

/* All blocks read x; the last one writes it, or any that has been told of another. */
__global__ void replace(float *x, float *y, unsigned *done, unsigned wanted) {
    __shared__ bool last;
    y[blockIdx.x] = x[0];
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) last = atomicAdd(done, 1u) == wanted;
    __syncthreads();
    if (last && threadIdx.x == 0) x[0] = 1.0f;
}
static void early_replacement(bool bad) {
    unsigned *done;
    OK(cudaMalloc(&done, sizeof *done));
    OK(cudaMemset(done, 0, sizeof *done));
    TN_LAUNCH(replace, 4, 1, 0, 0, device_floats(1), device_floats(4), done, bad ? 2u : 3u);
    finish();
}

__global__ void last_block(float *out, float *partial, unsigned *done, bool bad) {
    partial[blockIdx.x] = 1.0f;
    if (!bad) __threadfence();
    if (atomicAdd(done, 1u) == gridDim.x - 1)
        for (unsigned b = 0; b < gridDim.x; b++) *out += partial[b];
}
static void missing_fence(bool bad) {
    TN_LAUNCH(last_block, 4, 1, 0, 0, device_floats(1), device_floats(4, false), (unsigned *)device_floats(1),
              bad);
    finish();
}

__global__ void read_shifted(float *y, const float *x, int shift) {
    y[threadIdx.x] = x[(int)threadIdx.x + shift];
}
static void read_beyond(bool bad) {
    TN_LAUNCH(read_shifted, 1, 64, 0, 0, device_floats(64), (const float *)device_floats(64), bad ? 1 : 0);
    finish();
}
static void read_before(bool bad) {
    TN_LAUNCH(read_shifted, 1, 64, 0, 0, device_floats(64), (const float *)device_floats(64), bad ? -1 : 0);
    finish();
}

__global__ void write_shifted(float *y, int shift) {
    y[(int)threadIdx.x + shift] = 1.0f;
}
static void write_beyond(bool bad) {
    TN_LAUNCH(write_shifted, 1, 64, 0, 0, device_floats(64), bad ? 1 : 0);
    finish();
}
static void write_odd(bool bad) {
    TN_LAUNCH(write_shifted, 1, 50, 0, 0, device_floats(50), bad ? 1 : 0);
    finish();
}

__global__ void shared_shifted(float *y, int shift) {
    __shared__ float s[33];
    s[threadIdx.x + shift] = 1.0f;
    __syncthreads();
    y[threadIdx.x] = s[threadIdx.x + shift];
}
static void shared_beyond(bool bad) {
    TN_LAUNCH(shared_shifted, 1, 32, 0, 0, device_floats(32), bad ? 2 : 1);
    finish();
}

__global__ void dynamic_use(float *y) {
    TN_DYNAMIC_SHARED(float, s);
    s[threadIdx.x] = 1.0f;
    y[threadIdx.x] = s[threadIdx.x];
}
static void dynamic_beyond(bool bad) {
    TN_LAUNCH(dynamic_use, 1, 64, bad ? 63 * sizeof(float) : 64 * sizeof(float), 0, device_floats(64));
    finish();
}

__global__ void half_filled(float *y, int filled) {
    __shared__ float s[64];
    if ((int)threadIdx.x < filled) s[threadIdx.x] = 1.0f;
    __syncthreads();
    y[threadIdx.x] = s[threadIdx.x];
}
static void uninitialised_shared(bool bad) {
    TN_LAUNCH(half_filled, 1, 64, 0, 0, device_floats(64), bad ? 63 : 64);
    finish();
}

static void uninitialised_global(bool bad) {
    TN_LAUNCH(read_shifted, 1, 64, 0, 0, device_floats(64), (const float *)device_floats(64, !bad), 0);
    finish();
}

static void uninitialised_copy(bool bad) {
    float host[4], *x = device_floats(4, !bad);
    OK(cudaMemcpy(host, x, sizeof host, cudaMemcpyDeviceToHost));
}

__global__ void early(float *y, bool bad) {
    __shared__ __align__(16) float s[64];
    if (threadIdx.x < 16) __pipeline_memcpy_async(&s[threadIdx.x * 4], y + threadIdx.x * 4, 16);
    __pipeline_commit();
    __pipeline_wait_prior(bad ? 1 : 0);
    __syncthreads();
    y[threadIdx.x] = s[63 - threadIdx.x];
}
static void missing_wait(bool bad) {
    TN_LAUNCH(early, 1, 64, 0, 0, device_floats(64), bad);
    finish();
}

__global__ void half_barrier(float *y, bool bad) {
    if (threadIdx.x < 32 || !bad) __syncthreads();
    y[threadIdx.x] = 1.0f;
}
static void divergent_barrier(bool bad) {
    TN_LAUNCH(half_barrier, 1, 64, 0, 0, device_floats(64), bad);
    finish();
}

__global__ void two_barriers(float *y, bool bad) {
    if (bad && threadIdx.x < 32)
        __syncthreads();
    else
        __syncthreads();
    y[threadIdx.x] = 1.0f;
}
static void different_barriers(bool bad) {
    TN_LAUNCH(two_barriers, 1, 64, 0, 0, device_floats(64), bad);
    finish();
}

__global__ void half_shuffle(float *y, bool bad) {
    float v = (float)threadIdx.x;
    if (threadIdx.x < 16 || !bad) v = __shfl_xor_sync(0xffffffffu, v, 16);
    __syncthreads();
    y[threadIdx.x] = v;
}
static void divergent_shuffle(bool bad) {
    TN_LAUNCH(half_shuffle, 1, 32, 0, 0, device_floats(32), bad);
    finish();
}

__global__ void slow_write(float *y, float v, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = v;
}
__global__ void copy(float *y, const float *x, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = x[i];
}
static void missing_event(bool bad) {
    cudaStream_t a, b;
    cudaEvent_t event;
    float *x = device_floats(64), *y = device_floats(64), *host;
    OK(cudaStreamCreateWithFlags(&a, cudaStreamNonBlocking));
    OK(cudaStreamCreateWithFlags(&b, cudaStreamNonBlocking));
    OK(cudaEventCreate(&event));
    OK(cudaMallocHost(&host, 64 * sizeof(float)));
    finish();
    TN_LAUNCH(slow_write, 1, 64, 0, a, x, 7.0f, 64);
    if (!bad) OK(cudaEventRecord(event, a));
    if (!bad) OK(cudaStreamWaitEvent(b, event, 0));
    TN_LAUNCH(copy, 1, 64, 0, b, y, (const float *)x, 64);
    OK(cudaMemcpyAsync(host, y, 64 * sizeof(float), cudaMemcpyDeviceToHost, b));
    OK(cudaStreamSynchronize(b));
    float result = host[0];
    finish();
    EXPECT(result == 7.0f);
}

static void use_after_free(bool bad) {
    float *x = device_floats(64), *y = device_floats(64);
    if (bad) OK(cudaFree(x));
    TN_LAUNCH(copy, 1, 64, 0, 0, y, (const float *)x, 64);
    finish();
}

struct Boxed {
    const float *x;
};
__global__ void copy_boxed(float *y, Boxed box) {
    y[threadIdx.x] = box.x[threadIdx.x];
}
static void hidden_use_after_free(bool bad) {
    float *x = device_floats(64), *y = device_floats(64);
    if (bad) OK(cudaFree(x));
    TN_LAUNCH(copy_boxed, 1, 64, 0, 0, y, (Boxed{x}));
    finish();
}

static void double_free(bool bad) {
    float *x = device_floats(64);
    OK(cudaFree(x));
    if (bad) cudaFree(x);
}

static void host_read_before_sync(bool bad) {
    cudaStream_t s;
    float *x = device_floats(64), *host;
    OK(cudaStreamCreate(&s));
    OK(cudaMallocHost(&host, 64 * sizeof(float)));
    host[63] = 5.0f;
    TN_LAUNCH(slow_write, 1, 64, 0, s, x, 7.0f, 64);
    OK(cudaMemcpyAsync(host, x, 32 * sizeof(float), cudaMemcpyDeviceToHost, s));
    EXPECT(host[63] == 5.0f); /* a neighbour in the same page may be read */
    if (!bad) OK(cudaStreamSynchronize(s));
    EXPECT(host[0] == 7.0f);
}

static void host_write_before_sync(bool bad) {
    cudaStream_t s;
    float *x = device_floats(64), *host;
    OK(cudaStreamCreate(&s));
    OK(cudaMallocHost(&host, 64 * sizeof(float)));
    for (int i = 0; i < 64; i++) host[i] = 1.0f;
    OK(cudaMemcpyAsync(x, host, 64 * sizeof(float), cudaMemcpyHostToDevice, s));
    EXPECT(host[5] == 1.0f);
    if (!bad) OK(cudaStreamSynchronize(s));
    host[0] = 2.0f;
}

extern "C" void *simt_host_memcpy(void *, const void *, size_t); /* memcpy of C code is pointed there */
static void host_copy_before_sync(bool bad) {
    cudaStream_t s;
    float *x = device_floats(64), *host, values[8] = {};
    OK(cudaStreamCreate(&s));
    OK(cudaMallocHost(&host, 64 * sizeof(float)));
    for (int i = 0; i < 64; i++) host[i] = 1.0f;
    OK(cudaMemcpyAsync(x, host, 32 * sizeof(float), cudaMemcpyHostToDevice, s));
    simt_host_memcpy(host + 32, values, sizeof values); /* neighbours in the same page */
    if (bad) simt_host_memcpy(host + 31, values, sizeof values);
    EXPECT(host[31] == 1.0f && host[32] == 0.0f && host[39] == 0.0f && host[40] == 1.0f);
    OK(cudaStreamSynchronize(s));
}

static void host_touches_device(bool bad) {
    float *x = device_floats(64), host[64];
    finish();
    if (bad) x[3] = 1.0f;
    OK(cudaMemcpy(host, x, sizeof host, cudaMemcpyDeviceToHost));
}

static void host_pointer(bool bad) {
    static float host[64];
    TN_LAUNCH(copy, 1, 64, 0, 0, device_floats(64), (const float *)(bad ? host : device_floats(64)), 64);
    finish();
}

static void hidden_host_pointer(bool bad) {
    float *host = (float *)calloc(64, sizeof(float));
    TN_LAUNCH(copy_boxed, 1, 64, 0, 0, device_floats(64), (Boxed{bad ? host : device_floats(64)}));
    finish();
    free(host);
}

__global__ void wide_load(float4 *y, const float *x, int shift) {
    y[threadIdx.x] = *(const float4 *)(x + threadIdx.x * 4 + shift);
}
static void misaligned_vector(bool bad) {
    TN_LAUNCH(wide_load, 1, 8, 0, 0, (float4 *)device_floats(64), (const float *)device_floats(64),
              bad ? 1 : 4);
    finish();
}

__global__ void load_tile(float *y, const __nv_bfloat16 *x, int shift, int ld) {
    wmma::fragment<wmma::matrix_a, 16, 16, 16, __nv_bfloat16, wmma::row_major> a;
    wmma::load_matrix_sync(a, x + shift, ld);
    y[threadIdx.x] = (float)a.x[0];
}
static void misaligned_tile(bool bad) {
    TN_LAUNCH(load_tile, 1, 32, 0, 0, device_floats(32), (const __nv_bfloat16 *)device_floats(400),
              bad ? 8 : 16, 16);
    finish();
}
static void bad_tile_pitch(bool bad) {
    TN_LAUNCH(load_tile, 1, 32, 0, 0, device_floats(32), (const __nv_bfloat16 *)device_floats(400), 0,
              bad ? 20 : 24);
    finish();
}

/* No machine report: the library returns an error. */
static void bad_blas_ld(bool bad) {
    cublasHandle_t handle;
    float one = 1.0f, zero = 0.0f, *a = device_floats(64), *b = device_floats(64), *c = device_floats(64);
    if (cublasCreate(&handle)) exit(1);
    cublasStatus_t status =
        cublasSgemm(handle, CUBLAS_OP_N, CUBLAS_OP_T, 8, 4, 6, &one, a, bad ? 7 : 8, b, 4, &zero, c, 8);
    finish();
    if (status) {
        fprintf(stderr, "cuBLAS: %s\n", cublasGetStatusName(status));
        exit(86);
    }
}

static void blas_beyond(bool bad) {
    cublasHandle_t handle;
    float one = 1.0f, zero = 0.0f, *a = device_floats(48), *b = device_floats(24), *c = device_floats(32);
    if (cublasCreate(&handle)) exit(1);
    cublasSgemm(handle, CUBLAS_OP_N, CUBLAS_OP_N, 8, 4, 6, &one, a, bad ? 9 : 8, b, 6, &zero, c, 8);
    finish();
}

static void too_much_shared(bool bad) {
    int bytes = 60000;
    if (!bad) OK(cudaFuncSetAttribute(dynamic_use, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
    TN_LAUNCH(dynamic_use, 1, 64, bytes, 0, device_floats(64));
    cudaError_t error = cudaGetLastError();
    if (error) {
        fprintf(stderr, "launch: %s\n", cudaGetErrorName(error));
        exit(86);
    }
    finish();
}

static void unjoined_capture(bool bad) {
    cudaStream_t a, b;
    cudaEvent_t fork, join;
    cudaGraph_t graph;
    float *x = device_floats(64);
    OK(cudaStreamCreate(&a));
    OK(cudaStreamCreate(&b));
    OK(cudaEventCreate(&fork));
    OK(cudaEventCreate(&join));
    OK(cudaStreamBeginCapture(a, cudaStreamCaptureModeThreadLocal));
    OK(cudaEventRecord(fork, a));
    OK(cudaStreamWaitEvent(b, fork, 0));
    TN_LAUNCH(slow_write, 1, 64, 0, b, x, 1.0f, 64);
    OK(cudaEventRecord(join, b));
    if (!bad) OK(cudaStreamWaitEvent(a, join, 0));
    cudaError_t error = cudaStreamEndCapture(a, &graph);
    if (error) {
        fprintf(stderr, "capture: %s\n", cudaGetErrorName(error));
        exit(86);
    }
}

struct Fault {
    const char *name, *builds, *message;
    void (*run)(bool bad);
};
static const Fault faults[] = {
    {"missing_barrier", "check", "(RACE|UNINITIALISED) in kernel reverse", missing_barrier},
    {"write_after_read", "check", "RACE in kernel overwrite", write_after_read},
    {"missing_syncwarp", "check", "(RACE|UNINITIALISED) in kernel warp_exchange", missing_syncwarp},
    {"race_of_blocks", "check", "RACE in kernel neighbours", race_of_blocks},
    {"missing_atomic", "check", "RACE in kernel add_all", missing_atomic},
    {"early_replacement", "check", "RACE in kernel replace", early_replacement},
    {"missing_fence", "check", "RACE in kernel last_block", missing_fence},
    {"read_beyond", "both", "OUT OF BOUNDS in kernel read_shifted", read_beyond},
    {"read_before", "check", "OUT OF BOUNDS in kernel read_shifted", read_before},
    {"write_beyond", "both", "OUT OF BOUNDS in kernel write_shifted", write_beyond},
    {"write_odd", "both", "OUT OF BOUNDS", write_odd},
    {"shared_beyond", "check", "OUT OF BOUNDS in kernel shared_shifted", shared_beyond},
    {"dynamic_beyond", "check", "OUT OF BOUNDS in kernel dynamic_use", dynamic_beyond},
    {"uninitialised_shared", "check", "UNINITIALISED in kernel half_filled", uninitialised_shared},
    {"uninitialised_global", "check", "UNINITIALISED in kernel read_shifted", uninitialised_global},
    {"uninitialised_copy", "check", "UNINITIALISED: cudaMemcpy", uninitialised_copy},
    {"missing_wait", "check", "UNINITIALISED in kernel early", missing_wait},
    {"divergent_barrier", "both", "DIVERGENT in kernel half_barrier", divergent_barrier},
    {"different_barriers", "both", "DIVERGENT in kernel two_barriers", different_barriers},
    {"divergent_shuffle", "both", "DIVERGENT in kernel half_shuffle", divergent_shuffle},
    {"missing_event", "both", "RACE in kernel (copy|slow_write)", missing_event},
    {"use_after_free", "both", "USE AFTER FREE: kernel copy is given", use_after_free},
    {"hidden_use_after_free", "both", "USE AFTER FREE in kernel copy_boxed", hidden_use_after_free},
    {"double_free", "both", "DOUBLE FREE", double_free},
    {"host_read_before_sync", "both", "HOST ACCESS: host code reads pinned memory", host_read_before_sync},
    {"host_write_before_sync", "both", "HOST ACCESS: host code writes pinned memory", host_write_before_sync},
    {"host_copy_before_sync", "both", "HOST ACCESS: host code writes pinned memory", host_copy_before_sync},
    {"host_touches_device", "both", "HOST ACCESS: host code writes device memory", host_touches_device},
    {"host_pointer", "both", "HOST POINTER", host_pointer},
    {"hidden_host_pointer", "check", "HOST POINTER in kernel copy_boxed", hidden_host_pointer},
    {"misaligned_vector", "both", "MISALIGNED in kernel wide_load", misaligned_vector},
    {"misaligned_tile", "both", "MISALIGNED in kernel load_tile", misaligned_tile},
    {"bad_tile_pitch", "both", "BAD CALL in kernel load_tile", bad_tile_pitch},
    {"bad_blas_ld", "both", "CUBLAS_STATUS_INVALID_VALUE", bad_blas_ld},
    {"blas_beyond", "check", "OUT OF BOUNDS: a cuBLAS product", blas_beyond},
    {"too_much_shared", "both", "cudaErrorInvalidValue", too_much_shared},
    {"unjoined_capture", "both", "cudaErrorStreamCaptureUnjoined", unjoined_capture},
};

int main(int argc, char **argv) {
    for (const Fault &f : faults) {
        if (argc < 3)
            printf("%s\t%s\t%s\n", f.name, f.builds, f.message);
        else if (strcmp(argv[1], f.name) == 0) {
            f.run(strcmp(argv[2], "bad") == 0);
            return 0;
        }
    }
    return argc < 3 ? 0 : 2;
}
