/* Host code in C11 on the machine: errors and modes of the runtime, captures, cuBLAS against loops, NCCL
 * among threads and processes, and the counters. Must pass in both builds under every seed. */
#include <cublas_v2.h>
#include <cuda_runtime_api.h>
#include <math.h>
#include <nccl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/philox.h"
#include "simt.h"

#define CHECK(condition)                                                                                     \
    do {                                                                                                     \
        if (!(condition)) {                                                                                  \
            printf("%s:%d: %s is false\n", __FILE__, __LINE__, #condition);                                  \
            exit(1);                                                                                         \
        }                                                                                                    \
    } while (0)

/* launchers in library_kernels.cu */
void launch_fill(float *y, float v, int n, int threads, cudaStream_t stream);
void launch_strided(float *y, const float *x, int stride, int n, cudaStream_t stream);
void launch_columns(float *y, int pitch, cudaStream_t stream);
void launch_shared_reads(float *y, const float *x, const float *common, int blocks, cudaStream_t stream);
void launch_paired_reads(float *y, const float *x, int blocks, cudaStream_t stream);
void launch_tile_product(float *y, const void *x, int pitch, cudaStream_t stream);
void launch_stream_words(unsigned *y, unsigned long long seed, unsigned purpose, unsigned a, unsigned b,
                         int n);

static void test_modes(void) {
    int count = -1;
    simt_set_device("none", 1);
    CHECK(cudaGetDeviceCount(&count) == cudaErrorNoDevice && count == 0);
    simt_set_device("driver", 1);
    CHECK(cudaGetDeviceCount(&count) == cudaErrorInsufficientDriver);
    CHECK(strcmp(cudaGetErrorString(cudaErrorInsufficientDriver),
                 "CUDA driver version is insufficient for CUDA runtime version") == 0);
    void *p;
    CHECK(cudaMalloc(&p, 16) == cudaErrorInsufficientDriver);
    simt_set_device("sm_80", 2);
    cudaGetLastError();
    struct cudaDeviceProp prop;
    CHECK(cudaGetDeviceCount(&count) == cudaSuccess && count == 2);
    CHECK(cudaGetDeviceProperties(&prop, 1) == cudaSuccess && prop.major == 8 &&
          prop.sharedMemPerBlockOptin == 166912);
    CHECK(cudaSetDevice(2) == cudaErrorInvalidDevice && cudaGetLastError() == cudaErrorInvalidDevice);
    simt_set_device("sm_90", 4);
    CHECK(cudaGetDeviceProperties(&prop, 0) == cudaSuccess && prop.major == 9 &&
          prop.sharedMemPerBlockOptin == 232448);
}

static void test_errors(void) {
    float *x, host[4] = {0};
    CHECK(cudaMalloc((void **)&x, sizeof host) == cudaSuccess);
    launch_fill(x, 1.0f, 4, 1025, NULL);
    CHECK(cudaPeekAtLastError() == cudaErrorInvalidConfiguration);
    CHECK(cudaGetLastError() == cudaErrorInvalidConfiguration && cudaGetLastError() == cudaSuccess);
    CHECK(cudaMemcpy(x, host, sizeof host + 1, cudaMemcpyHostToDevice) == cudaErrorInvalidValue);
    CHECK(cudaMemcpy(host, host, sizeof host, cudaMemcpyHostToDevice) == cudaErrorInvalidValue);
    CHECK(cudaFree(host) == cudaErrorInvalidValue);
    simt_set_memory(1 << 20);
    void *big;
    CHECK(cudaMalloc(&big, 2 << 20) == cudaErrorMemoryAllocation && big == NULL);
    simt_set_memory(0);
    simt_fail_call("cudaMemset", 2, cudaErrorUnknown);
    CHECK(cudaMemset(x, 0, 4) == cudaSuccess && cudaMemset(x, 0, 4) == cudaErrorUnknown);
    CHECK(cudaMemset(x, 0, 16) == cudaSuccess);
    cudaGetLastError();
    CHECK(cudaMemcpy(host, x, sizeof host, cudaMemcpyDeviceToHost) == cudaSuccess && host[3] == 0.0f);
    CHECK(cudaFree(x) == cudaSuccess);
}

static void test_capture_rules(void) {
    cudaStream_t s;
    cudaGraph_t graph;
    float *x;
    CHECK(cudaMalloc((void **)&x, 256) == cudaSuccess);
    CHECK(cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking) == cudaSuccess);
    CHECK(cudaStreamBeginCapture(s, cudaStreamCaptureModeThreadLocal) == cudaSuccess);
    launch_fill(x, 1.0f, 64, 64, s);
    CHECK(cudaStreamSynchronize(s) == cudaErrorStreamCaptureUnsupported);
    CHECK(cudaStreamEndCapture(s, &graph) == cudaErrorStreamCaptureInvalidated && graph == NULL);
    CHECK(cudaStreamBeginCapture(s, cudaStreamCaptureModeThreadLocal) == cudaSuccess);
    launch_fill(x, 1.0f, 64, 64, s);
    void *p;
    CHECK(cudaMalloc(&p, 4) == cudaErrorStreamCaptureUnsupported);
    CHECK(cudaStreamEndCapture(s, &graph) == cudaErrorStreamCaptureInvalidated);
    cudaGetLastError();
    CHECK(cudaStreamDestroy(s) == cudaSuccess);
    CHECK(cudaStreamSynchronize(s) == cudaErrorInvalidResourceHandle);
    cudaGetLastError();
    CHECK(cudaFree(x) == cudaSuccess);
}

static void test_poll(void) {
    cudaEvent_t a, b;
    float *x, ms = -1.0f;
    CHECK(cudaMalloc((void **)&x, 256) == cudaSuccess);
    CHECK(cudaEventCreate(&a) == cudaSuccess && cudaEventCreate(&b) == cudaSuccess);
    CHECK(cudaEventRecord(a, NULL) == cudaSuccess);
    for (int i = 0; i < 5; i++) launch_fill(x, 1.0f, 64, 64, NULL);
    CHECK(cudaEventRecord(b, NULL) == cudaSuccess);
    CHECK(cudaEventQuery(b) == cudaErrorNotReady);
    while (cudaEventQuery(b) == cudaErrorNotReady) {
    }
    CHECK(cudaEventElapsedTime(&ms, a, b) == cudaSuccess && ms >= 0.0f);
    CHECK(cudaGetLastError() == cudaSuccess);
    CHECK(cudaFree(x) == cudaSuccess);
}

static float value(int i) {
    return (float)((i * 37 + 11) % 64 - 32) / 16.0f;
}

/* C (column-major, ldc 9) = 2 op(A) op(B) + 3 C against loops, for all transpositions; small integers are
 * exact. */
static void test_blas(void) {
    cublasHandle_t h;
    float *a, *b, *c, host[400], result[400], alpha = 2.0f, beta = 3.0f;
    CHECK(cublasCreate(&h) == CUBLAS_STATUS_SUCCESS);
    CHECK(cudaMalloc((void **)&a, sizeof host) == cudaSuccess &&
          cudaMalloc((void **)&b, sizeof host) == cudaSuccess);
    CHECK(cudaMalloc((void **)&c, sizeof host) == cudaSuccess);
    for (int i = 0; i < 400; i++) host[i] = value(i);
    for (int t = 0; t < 4; t++) {
        int ta = t & 1, tb = t >> 1, m = 7, n = 5, k = 6, ld = 9;
        CHECK(cudaMemcpy(a, host, sizeof host, cudaMemcpyHostToDevice) == cudaSuccess);
        CHECK(cudaMemcpy(b, host, sizeof host, cudaMemcpyHostToDevice) == cudaSuccess);
        CHECK(cudaMemcpy(c, host, sizeof host, cudaMemcpyHostToDevice) == cudaSuccess);
        CHECK(cublasSgemmStridedBatched(h, ta ? CUBLAS_OP_T : CUBLAS_OP_N, tb ? CUBLAS_OP_T : CUBLAS_OP_N, m,
                                        n, k, &alpha, a, ld, 64, b, ld, 70, &beta, c, ld, 80,
                                        3) == CUBLAS_STATUS_SUCCESS);
        alpha = 2.0f; /* by value at the call */
        CHECK(cudaMemcpy(result, c, sizeof host, cudaMemcpyDeviceToHost) == cudaSuccess);
        for (int batch = 0; batch < 3; batch++)
            for (int j = 0; j < n; j++)
                for (int i = 0; i < m; i++) {
                    float s = 0.0f;
                    for (int l = 0; l < k; l++)
                        s += host[64 * batch + (ta ? i * ld + l : l * ld + i)] *
                             host[70 * batch + (tb ? l * ld + j : j * ld + l)];
                    CHECK(result[80 * batch + j * ld + i] == 2.0f * s + 3.0f * host[80 * batch + j * ld + i]);
                }
        CHECK(result[7] == host[7]); /* the gap between columns */
    }
    CHECK(cublasSgemm(h, CUBLAS_OP_N, CUBLAS_OP_N, 7, 5, 6, &alpha, a, 6, b, 6, &beta, c, 7) ==
          CUBLAS_STATUS_INVALID_VALUE);
    uint64_t before = simt_blas_misaligned();
    CHECK(cublasSgemm(h, CUBLAS_OP_N, CUBLAS_OP_N, 4, 4, 4, &alpha, a + 1, 4, b, 4, &beta, c, 4) == 0);
    CHECK(simt_blas_misaligned() == before + 1);
    CHECK(cublasDestroy(h) == CUBLAS_STATUS_SUCCESS);
    CHECK(cudaFree(a) == cudaSuccess && cudaFree(b) == cudaSuccess && cudaFree(c) == cudaSuccess);
}

static unsigned short bf16(float v) {
    unsigned bits;
    memcpy(&bits, &v, 4);
    return (unsigned short)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

static void test_blas_precisions(void) {
    cublasHandle_t h;
    unsigned short narrow[2] = {bf16(1.0f), bf16(1.00390625f)}, *a;
    float one = 1.0f, zero = 0.0f, wide[2] = {1.0f, 1.0009765625f + 0.0001f}, *b, *c, result = 0.0f;
    CHECK(cublasCreate(&h) == CUBLAS_STATUS_SUCCESS);
    CHECK(cudaMalloc((void **)&a, 16) == cudaSuccess && cudaMalloc((void **)&b, 16) == cudaSuccess);
    CHECK(cudaMalloc((void **)&c, 16) == cudaSuccess);
    CHECK(cudaMemcpy(a, narrow, sizeof narrow, cudaMemcpyHostToDevice) == cudaSuccess);
    CHECK(cudaMemcpy(b, wide, sizeof wide, cudaMemcpyHostToDevice) == cudaSuccess);
    CHECK(cublasGemmEx(h, CUBLAS_OP_N, CUBLAS_OP_N, 1, 1, 2, &one, a, CUDA_R_16BF, 1, a, CUDA_R_16BF, 2,
                       &zero, c, CUDA_R_32F, 1, CUBLAS_COMPUTE_32F,
                       CUBLAS_GEMM_DEFAULT) == CUBLAS_STATUS_SUCCESS);
    CHECK(cudaMemcpy(&result, c, 4, cudaMemcpyDeviceToHost) == cudaSuccess);
    float second = narrow[1] == 0x3f80 ? 1.0f : 1.0078125f; /* a tie goes to even */
    CHECK(result == 1.0f + second * second);
    CHECK(cublasGemmEx(h, CUBLAS_OP_N, CUBLAS_OP_N, 1, 1, 2, &one, b, CUDA_R_32F, 1, b, CUDA_R_32F, 2, &zero,
                       c, CUDA_R_32F, 1, CUBLAS_COMPUTE_32F_FAST_TF32,
                       CUBLAS_GEMM_DEFAULT) == CUBLAS_STATUS_SUCCESS);
    CHECK(cudaMemcpy(&result, c, 4, cudaMemcpyDeviceToHost) == cudaSuccess);
    CHECK(fabsf(result - (1.0f + 1.0009765625f * 1.0009765625f)) < 1e-6f);
    CHECK(cublasGemmEx(h, CUBLAS_OP_N, CUBLAS_OP_N, 1, 1, 2, &one, b, CUDA_R_32F, 1, a, CUDA_R_16BF, 2, &zero,
                       c, CUDA_R_32F, 1, CUBLAS_COMPUTE_32F,
                       CUBLAS_GEMM_DEFAULT) == CUBLAS_STATUS_NOT_SUPPORTED);
    CHECK(cublasDestroy(h) == CUBLAS_STATUS_SUCCESS);
    CHECK(cudaFree(a) == cudaSuccess && cudaFree(b) == cudaSuccess && cudaFree(c) == cudaSuccess);
}

struct rank {
    int rank, ranks, device;
    ncclUniqueId id;
};

/* n is more than one piece. */
static void *all_reduce(void *user) {
    struct rank *r = user;
    int n = 100000;
    ncclComm_t comm;
    cudaStream_t s;
    float *x, *host = malloc(sizeof *host * (size_t)n);
    CHECK(cudaSetDevice(r->device) == cudaSuccess);
    CHECK(ncclCommInitRank(&comm, r->ranks, r->id, r->rank) == ncclSuccess);
    CHECK(cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking) == cudaSuccess);
    CHECK(cudaMalloc((void **)&x, sizeof *x * (size_t)n) == cudaSuccess);
    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < n; i++) host[i] = (float)(r->rank + 1) * (float)(i % 100 + round);
        CHECK(cudaMemcpyAsync(x, host, sizeof *x * (size_t)n, cudaMemcpyHostToDevice, s) == cudaSuccess);
        CHECK(ncclGroupStart() == ncclSuccess);
        CHECK(ncclAllReduce(x, x, (size_t)n / 2, ncclFloat, ncclSum, comm, s) == ncclSuccess);
        CHECK(ncclAllReduce(x + n / 2, x + n / 2, (size_t)n / 2, ncclFloat, ncclSum, comm, s) == ncclSuccess);
        CHECK(ncclGroupEnd() == ncclSuccess);
        CHECK(ncclBroadcast(x, x, 10, ncclFloat, r->ranks - 1, comm, s) == ncclSuccess);
        CHECK(cudaMemcpyAsync(host, x, sizeof *x * (size_t)n, cudaMemcpyDeviceToHost, s) == cudaSuccess);
        CHECK(cudaStreamSynchronize(s) == cudaSuccess);
        int sum = r->ranks * (r->ranks + 1) / 2;
        for (int i = 0; i < n; i++) CHECK(host[i] == (float)sum * (float)(i % 100 + round));
    }
    ncclResult_t error;
    CHECK(ncclCommGetAsyncError(comm, &error) == ncclSuccess && error == ncclSuccess);
    CHECK(ncclCommDestroy(comm) == ncclSuccess);
    CHECK(cudaFree(x) == cudaSuccess);
    free(host);
    return NULL;
}

static void test_ranks_as_threads(void) {
    enum { RANKS = 3 };
    pthread_t threads[RANKS];
    struct rank ranks[RANKS];
    ncclUniqueId id;
    CHECK(ncclGetUniqueId(&id) == ncclSuccess);
    for (int r = 0; r < RANKS; r++) {
        ranks[r] = (struct rank){r, RANKS, r, id};
        CHECK(pthread_create(&threads[r], NULL, all_reduce, &ranks[r]) == 0);
    }
    for (int r = 0; r < RANKS; r++) pthread_join(threads[r], NULL);
}

static void test_ranks_as_processes(void) {
    struct rank r = {0, 2, 0, {{0}}};
    CHECK(ncclGetUniqueId(&r.id) == ncclSuccess);
    for (r.rank = 0; r.rank < 2; r.rank++)
        if (fork() == 0) {
            all_reduce(&r);
            exit(0);
        }
    for (int i = 0; i < 2; i++) {
        int status = -1;
        wait(&status);
        CHECK(status == 0);
    }
}

/* A rank dies: the other one learns it and can abort. */
static void test_lost_rank(void) {
    ncclUniqueId id;
    ncclComm_t comm;
    CHECK(ncclGetUniqueId(&id) == ncclSuccess);
    pid_t child = fork();
    if (child == 0) {
        if (ncclCommInitRank(&comm, 2, id, 1) == ncclSuccess) _exit(0);
        _exit(1);
    }
    CHECK(ncclCommInitRank(&comm, 2, id, 0) == ncclSuccess);
    int status = -1;
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    ncclResult_t error = ncclSuccess;
    CHECK(ncclCommGetAsyncError(comm, &error) == ncclSuccess && error == ncclRemoteError);
    float *x;
    CHECK(cudaMalloc((void **)&x, 4) == cudaSuccess && cudaMemset(x, 0, 4) == cudaSuccess);
    CHECK(ncclAllReduce(x, x, 1, ncclFloat, ncclSum, comm, NULL) == ncclSuccess);
    CHECK(cudaStreamQuery(NULL) == cudaErrorNotReady);
    CHECK(cudaStreamQuery(NULL) == cudaErrorNotReady);
    CHECK(ncclCommAbort(comm) == ncclSuccess);
    CHECK(cudaDeviceSynchronize() == cudaSuccess);
    CHECK(cudaFree(x) == cudaSuccess);
}

static void test_counters(void) {
    simt_counters c;
    float *x, *y;
    if (!simt_is_instrumented()) return;
    CHECK(cudaMalloc((void **)&x, 4096 * 4) == cudaSuccess &&
          cudaMalloc((void **)&y, 4096 * 4) == cudaSuccess);
    CHECK(cudaMemset(x, 0, 4096 * 4) == cudaSuccess);
    simt_count(1);
    launch_strided(y, x, 1, 256, NULL);
    CHECK(cudaDeviceSynchronize() == cudaSuccess);
    CHECK(simt_counters_get("strided", &c) && c.load_requests == 8 && c.load_bytes == 1024 &&
          c.load_sectors == 32);
    CHECK(c.load_ideal_sectors == 32 && c.store_sectors == 32 && c.launches == 1 && c.threads == 256);
    simt_counters_reset();
    launch_strided(y, x, 8, 256, NULL);
    CHECK(cudaDeviceSynchronize() == cudaSuccess);
    CHECK(simt_counters_get("strided", &c) && c.load_sectors == 256 && c.load_ideal_sectors == 32);
    launch_columns(y, 32, NULL);
    CHECK(cudaDeviceSynchronize() == cudaSuccess);
    CHECK(simt_counters_get("columns", &c) && c.barriers == 1);
    /* 32 row-wise stores without conflicts, 32 column-wise loads in 32 passes each */
    CHECK(c.shared_requests == 64 && c.shared_wavefronts == 32 + 32 * 32 && c.shared_ideal_wavefronts == 64);
    simt_counters_reset();
    launch_columns(y, 33, NULL);
    CHECK(cudaDeviceSynchronize() == cudaSuccess);
    CHECK(simt_counters_get("columns", &c) && c.shared_wavefronts == 64);
    simt_count(0);
    CHECK(cudaFree(x) == cudaSuccess && cudaFree(y) == cudaSuccess);
}

/* Sectors that come from memory: what all blocks read counts once, what a block wrote itself not at all. */
static void test_memory_sectors(void) {
    enum { BLOCKS = 24 };
    simt_counters c;
    float *x, *y, *common;
    if (!simt_is_instrumented()) return;
    CHECK(cudaMalloc((void **)&x, BLOCKS * 512) == cudaSuccess &&
          cudaMalloc((void **)&y, BLOCKS * 512) == cudaSuccess &&
          cudaMalloc((void **)&common, 512) == cudaSuccess);
    CHECK(cudaMemset(x, 0, BLOCKS * 512) == cudaSuccess && cudaMemset(common, 0, 512) == cudaSuccess);
    CHECK(cudaDeviceSynchronize() == cudaSuccess);
    simt_count(1);
    /* All blocks; then four of them for all. The sums are the same. */
    for (uint64_t sample = 0; sample <= 4; sample += 4) {
        simt_sample(sample);
        simt_counters_reset();
        simt_expect_flops(1234);
        launch_shared_reads(y, x, common, BLOCKS, NULL);
        CHECK(cudaDeviceSynchronize() == cudaSuccess);
        CHECK(simt_counters_get("shared_reads", &c) && c.launches == 1 && c.blocks == BLOCKS);
        CHECK(c.load_bytes == BLOCKS * 4 * 512 && c.load_sectors == BLOCKS * 64 && c.barriers == BLOCKS * 2);
        CHECK(c.store_bytes == BLOCKS * 2 * 512 && c.store_sectors == BLOCKS * 32);
        CHECK(c.load_memory_sectors == 16 + BLOCKS * 16 && c.store_memory_sectors == BLOCKS * 16);
        CHECK(c.fma_flops == 1234 && c.tf32_flops == 0 && c.bf16_flops == 0);
        const simt_operation *o = simt_operation_at(0);
        CHECK(simt_operations_counted() == 1 && o && strcmp(o->name, "shared_reads") == 0);
        CHECK(o->grid[0] == BLOCKS && o->threads == 128 && o->blocks_run == (sample ? 4 : BLOCKS));
        launch_shared_reads(y, x, common, 1, NULL);
        CHECK(cudaDeviceSynchronize() == cudaSuccess && simt_operations_counted() == 2);
        CHECK(simt_operation_at(1)->counters.fma_flops == 0 && simt_operation_at(2) == NULL);
    }
    /* Blocks of a sample may not meet where all of them would: no more than the allocation comes from memory.
     */
    float *half;
    CHECK(cudaMalloc((void **)&half, BLOCKS / 2 * 512) == cudaSuccess);
    simt_counters_reset();
    launch_paired_reads(y, half, BLOCKS, NULL);
    CHECK(cudaDeviceSynchronize() == cudaSuccess && simt_counters_get("paired_reads", &c));
    CHECK(c.load_sectors == BLOCKS * 16 && c.load_memory_sectors == BLOCKS / 2 * 16);
    CHECK(cudaFree(half) == cudaSuccess);
    simt_sample(0);
    simt_count(0);
    CHECK(cudaFree(x) == cudaSuccess && cudaFree(y) == cudaSuccess && cudaFree(common) == cudaSuccess);
}

/* Asynchronous copies and WMMA tiles. Rows that lie 32 bytes apart meet in the banks by twos (8 rows of 16
 * bytes over 128 bytes), rows 48 bytes apart do not. Results: 4 rows of 32 bytes, 64 or 96 bytes apart. */
static void test_tile_counters(void) {
    simt_counters c;
    float *y;
    void *x;
    if (!simt_is_instrumented()) return;
    CHECK(cudaMalloc(&x, 512) == cudaSuccess && cudaMalloc((void **)&y, 128) == cudaSuccess);
    CHECK(cudaMemset(x, 0, 512) == cudaSuccess && cudaDeviceSynchronize() == cudaSuccess);
    simt_count(1);
    for (int wide = 0; wide < 2; wide++) {
        simt_counters_reset();
        launch_tile_product(y, x, wide ? 24 : 16, NULL);
        CHECK(cudaDeviceSynchronize() == cudaSuccess && simt_counters_get("tile_product", &c));
        CHECK(c.load_requests == 1 && c.load_bytes == 512 && c.load_sectors == 16 &&
              c.load_ideal_sectors == 16);
        CHECK(c.store_sectors == 4 && c.bf16_flops == 2 * 16 * 16 * 16 && c.tf32_flops == 0);
        /* The copy: 4 passes, by quarter warps of 4 rows, whose fourth meets the first if they are 48 bytes
         * apart. Two operands: 4 each. The result: 8. Reading it back: 1, but 2 if the second row is 96 bytes
         * from the first. */
        CHECK(c.shared_requests == 5 && c.shared_ideal_wavefronts == 4 + 2 * 4 + 8 + 1);
        CHECK(c.shared_wavefronts == (wide ? 8 + 2 * 4 + 8 + 2 : 4 + 2 * 8 + 16 + 1));
    }
    simt_count(0);
    CHECK(cudaFree(x) == cudaSuccess && cudaFree(y) == cudaSuccess);
}

/* Products, copies and fills stand among the operations. */
static void test_counted_libraries(void) {
    cublasHandle_t blas;
    float *x, one = 1.0f, zero = 0.0f, host[64];
    CHECK(cudaMalloc((void **)&x, 4096) == cudaSuccess && cublasCreate(&blas) == CUBLAS_STATUS_SUCCESS);
    simt_counters_reset();
    simt_count(1);
    CHECK(cudaMemset(x, 0, 4096) == cudaSuccess);
    CHECK(cublasSgemm(blas, CUBLAS_OP_N, CUBLAS_OP_N, 4, 8, 16, &one, x, 4, x + 64, 16, &zero, x + 256, 4) ==
          CUBLAS_STATUS_SUCCESS);
    CHECK(cudaMemcpy(host, x, 256, cudaMemcpyDeviceToHost) == cudaSuccess);
    simt_count(0);
    CHECK(simt_operations_counted() == 3);
    const simt_operation *fill = simt_operation_at(0), *product = simt_operation_at(1),
                         *copy = simt_operation_at(2);
    CHECK(strcmp(fill->name, "fill") == 0 && fill->counters.store_bytes == 4096);
    CHECK(strcmp(product->name, "cublas") == 0 && product->counters.fma_flops == 2 * 4 * 8 * 16);
    CHECK(product->counters.load_bytes == 4 * (4 * 16 + 16 * 8) && product->counters.store_bytes == 128);
    CHECK(strcmp(copy->name, "copy to host") == 0 && copy->counters.load_bytes == 256);
    CHECK(cublasDestroy(blas) == CUBLAS_STATUS_SUCCESS && cudaFree(x) == cudaSuccess);
}

/* The host's generator and the device's draw the same words. */
static void test_philox(void) {
    unsigned *x, words[22];
    CHECK(cudaMalloc((void **)&x, sizeof words) == cudaSuccess);
    launch_stream_words(x, 0xfedcba9876543210u, TN_RNG_AUGMENT, 17, 49999, 22);
    CHECK(cudaMemcpy(words, x, sizeof words, cudaMemcpyDeviceToHost) == cudaSuccess);
    tn_rng rng = tn_rng_open(0xfedcba9876543210u, TN_RNG_AUGMENT, 17, 49999);
    for (int i = 0; i < 22; i++) CHECK(words[i] == tn_rng_bits(&rng));
    CHECK(cudaFree(x) == cudaSuccess);
}

int main(void) {
    test_modes();
    test_errors();
    test_capture_rules();
    test_poll();
    test_philox();
    test_blas();
    test_blas_precisions();
    test_counters();
    test_memory_sectors();
    test_tile_counters();
    test_counted_libraries();
    test_ranks_as_processes();
    test_lost_rank();
    test_ranks_as_threads();
    printf("libraries: passed\n");
    return 0;
}
