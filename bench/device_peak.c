/* What a CUDA device reaches in practice: bytes per second of a copy within its memory (read and written),
 * and operations per second of cuBLAS's matrix product in each precision. One JSON object on standard output;
 * times by events, the best of several rounds.
 *
 *   device_peak [DEVICE [MIB [SIZE [ROUNDS]]]]     copies of MIB mebibytes, products of SIZE x SIZE matrices
 */
#include <cublas_v2.h>
#include <cuda_runtime_api.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define REPEATS 8 /* in a round, between its two events */

typedef struct bench {
    cudaStream_t stream;
    cudaEvent_t begin, end;
    cublasHandle_t blas;
    void *memory[3]; /* of bytes each */
    size_t bytes;
    int size, rounds;
} bench;

typedef struct product {
    const char *name;
    cudaDataType type;
    cublasComputeType_t compute;
} product;

static const product products[] = {{"fp32", CUDA_R_32F, CUBLAS_COMPUTE_32F},
                                   {"tf32", CUDA_R_32F, CUBLAS_COMPUTE_32F_FAST_TF32},
                                   {"bf16", CUDA_R_16BF, CUBLAS_COMPUTE_32F}};
#define PRODUCTS ((int)(sizeof products / sizeof *products))

static int fail(const char *call, int line, const char *text) {
    fprintf(stderr, "device_peak: %.*s failed at %s:%d: %s\n", (int)strcspn(call, "("), call, __FILE__, line,
            text);
    return 1;
}

#define TRY(call)                                                                                            \
    do {                                                                                                     \
        cudaError_t error_ = (call);                                                                         \
        if (error_ != cudaSuccess) return fail(#call, __LINE__, cudaGetErrorString(error_));                 \
    } while (0)
#define TRY_BLAS(call)                                                                                       \
    do {                                                                                                     \
        cublasStatus_t error_ = (call);                                                                      \
        if (error_ != CUBLAS_STATUS_SUCCESS) return fail(#call, __LINE__, cublasGetStatusString(error_));    \
    } while (0)

static int copy(bench *b) {
    TRY(cudaMemcpyAsync(b->memory[1], b->memory[0], b->bytes, cudaMemcpyDeviceToDevice, b->stream));
    return 0;
}

static int multiply(bench *b, const product *p) {
    const float one = 1.0f, zero = 0.0f;
    TRY_BLAS(cublasGemmEx(b->blas, CUBLAS_OP_N, CUBLAS_OP_N, b->size, b->size, b->size, &one, b->memory[0],
                          p->type, b->size, b->memory[1], p->type, b->size, &zero, b->memory[2], p->type,
                          b->size, p->compute, CUBLAS_GEMM_DEFAULT));
    return 0;
}

/* Seconds of one copy, or of one product; the first round warms up. */
static int measure(bench *b, const product *p, double *best) {
    *best = 0;
    for (int round = 0; round <= b->rounds; round++) {
        float milliseconds;
        TRY(cudaEventRecord(b->begin, b->stream));
        for (int i = 0; i < REPEATS; i++)
            if (p ? multiply(b, p) : copy(b)) return 1;
        TRY(cudaEventRecord(b->end, b->stream));
        TRY(cudaEventSynchronize(b->end));
        TRY(cudaEventElapsedTime(&milliseconds, b->begin, b->end));
        double seconds = 1e-3 * (double)milliseconds / REPEATS;
        if (round > 0 && (*best <= 0 || seconds < *best)) *best = seconds;
    }
    return 0;
}

static int prepare(bench *b, int device) {
    size_t matrix = (size_t)b->size * (size_t)b->size * sizeof(float),
           each = matrix > b->bytes ? matrix : b->bytes;
    TRY(cudaSetDevice(device));
    TRY(cudaStreamCreateWithFlags(&b->stream, cudaStreamNonBlocking));
    TRY(cudaEventCreate(&b->begin));
    TRY(cudaEventCreate(&b->end));
    TRY_BLAS(cublasCreate(&b->blas));
    TRY_BLAS(cublasSetStream(b->blas, b->stream));
    for (int i = 0; i < 3; i++) {
        TRY(cudaMalloc(&b->memory[i], each));
        /* 0x3c3c3c3c is a small number in float32 and twice one in bfloat16: no power is saved by zeros. */
        TRY(cudaMemsetAsync(b->memory[i], 0x3c, each, b->stream));
    }
    return 0;
}

static int run(bench *b, int device) {
    struct cudaDeviceProp p;
    int runtime, driver, blas;
    double n = b->size, copying, seconds[PRODUCTS];
    if (prepare(b, device)) return 1;
    TRY(cudaGetDeviceProperties(&p, device));
    TRY(cudaRuntimeGetVersion(&runtime));
    TRY(cudaDriverGetVersion(&driver));
    TRY_BLAS(cublasGetVersion(b->blas, &blas));
    if (measure(b, NULL, &copying)) return 1;
    for (int i = 0; i < PRODUCTS; i++)
        if (measure(b, &products[i], &seconds[i])) return 1;
    printf("{\"device\": \"%s\", \"compute_capability\": \"%d.%d\", \"multiprocessors\": %d, "
           "\"memory_bytes\": %zu, "
           "\"runtime\": %d, \"driver\": %d, \"cublas\": %d",
           p.name, p.major, p.minor, p.multiProcessorCount, p.totalGlobalMem, runtime, driver, blas);
    printf(", \"copy_bytes\": %zu, \"copy_bytes_per_second\": %.6g, \"matrix_size\": %d, \"matmul_flops\": {",
           b->bytes, 2.0 * (double)b->bytes / copying, b->size);
    for (int i = 0; i < PRODUCTS; i++)
        printf("%s\"%s\": %.6g", i ? ", " : "", products[i].name, 2 * n * n * n / seconds[i]);
    printf("}}\n");
    return 0;
}

static void release(bench *b) {
    for (int i = 0; i < 3; i++)
        if (b->memory[i]) (void)cudaFree(b->memory[i]);
    if (b->blas) (void)cublasDestroy(b->blas);
    if (b->begin) (void)cudaEventDestroy(b->begin);
    if (b->end) (void)cudaEventDestroy(b->end);
    if (b->stream) (void)cudaStreamDestroy(b->stream);
}

int main(int argc, char **argv) {
    static const char *const names[] = {"DEVICE", "MIB", "SIZE", "ROUNDS"};
    static const int least[] = {0, 1, 1, 1};
    int numbers[] = {0, 512, 8192, 5};
    for (int i = 1; i < argc; i++) {
        char *end;
        long value = i <= 4 ? strtol(argv[i], &end, 10) : -1;
        if (i > 4 || end == argv[i] || *end || value < least[i - 1] || value > 1 << 20) {
            fprintf(
                stderr,
                "device_peak: %s '%s': expected device_peak [DEVICE [MIB [SIZE [ROUNDS]]]], whole numbers\n",
                i <= 4 ? names[i - 1] : "too many arguments,", argv[i]);
            return 2;
        }
        numbers[i - 1] = (int)value;
    }
    bench b = {.bytes = (size_t)numbers[1] << 20, .size = numbers[2], .rounds = numbers[3]};
    int status = run(&b, numbers[0]);
    release(&b);
    if (fflush(stdout) != 0) {
        fprintf(stderr, "device_peak: standard output cannot be written\n");
        return 1;
    }
    return status;
}
