/* cuBLAS: matrix products by OpenBLAS on one thread, so that they are the same at every run. Operands are
 * converted to float first: tf32 rounds them to 10 bits of mantissa, bf16 results are rounded to nearest even
 * at the end. */
#include <cblas.h>

#include <atomic>
#include <cstring>

#include "cublas_v2.h"
#include "cuda_bf16.h"
#include "launch_log.h"
#include "memory.h"
#include "stream.h"
#if SIMT_INSTRUMENTED
#include "shadow.h"
#endif

extern "C" void openblas_set_num_threads(int);

struct cublasContext {
    cudaStream_t stream;
    cublasMath_t math;
    cublasPointerMode_t pointers;
};

namespace simt {

static uint64_t misaligned;
static std::atomic<size_t> handles;

size_t live_blas_handles() {
    return handles;
}

/* Whether a call is to fail (simt_fail_call). */
static bool refused(const char *call) {
    std::lock_guard<std::mutex> guard(machine_lock);
    return api_enter(call) != cudaSuccess;
}

struct Matrix {
    const char *data;
    cudaDataType type;
    int rows, columns, ld; /* as stored */
    long long stride;      /* elements from one of a batch to the next */
    size_t element() const {
        return type == CUDA_R_16BF ? 2 : 4;
    }
    const char *at(int i) const {
        return data + (size_t)i * (size_t)stride * element();
    }
};

struct Gemm {
    bool ta, tb, tf32, bf16;
    int m, n, k, batch;
    float alpha, beta;
    const float *device_alpha, *device_beta;
    Matrix a, b, c;
};

static float to_tf32(float v) {
    uint32_t bits;
    memcpy(&bits, &v, 4);
    bits = (bits + 0x1000u) & ~0x1fffu;
    memcpy(&v, &bits, 4);
    return v;
}

static void touch(const Matrix &x, int i, bool store) {
#if SIMT_INSTRUMENTED
    for (int column = 0; column < x.columns; column++) {
        const char *p = x.at(i) + (size_t)column * (size_t)x.ld * x.element();
        size_t bytes = (size_t)x.rows * x.element();
        if (store)
            shadow_range_store(p, bytes);
        else
            shadow_range_load(p, bytes);
    }
#else
    (void)x, (void)i, (void)store;
#endif
}

/* The matrix as floats, without gaps. */
static std::vector<float> unpack(const Matrix &x, int i, bool tf32, bool bf16) {
    std::vector<float> out((size_t)x.rows * (size_t)x.columns);
    for (int column = 0; column < x.columns; column++)
        for (int row = 0; row < x.rows; row++) {
            size_t from = (size_t)column * (size_t)x.ld + (size_t)row;
            float v = x.type == CUDA_R_16BF
                          ? simt_bf16_value(reinterpret_cast<const uint16_t *>(x.at(i))[from])
                          : reinterpret_cast<const float *>(x.at(i))[from];
            if (bf16) v = simt_bf16_value(simt_bf16_bits(v));
            out[(size_t)column * (size_t)x.rows + (size_t)row] = tf32 ? to_tf32(v) : v;
        }
    return out;
}

static void pack(const Matrix &x, int i, const std::vector<float> &from) {
    char *data = const_cast<char *>(x.at(i));
    for (int column = 0; column < x.columns; column++)
        for (int row = 0; row < x.rows; row++) {
            size_t to = (size_t)column * (size_t)x.ld + (size_t)row;
            float v = from[(size_t)column * (size_t)x.rows + (size_t)row];
            if (x.type == CUDA_R_16BF)
                reinterpret_cast<uint16_t *>(data)[to] = simt_bf16_bits(v);
            else
                reinterpret_cast<float *>(data)[to] = v;
        }
}

static void perform(Gemm g) {
    if (g.device_alpha) g.alpha = *g.device_alpha;
    if (g.device_beta) g.beta = *g.device_beta;
    openblas_set_num_threads(1);
    for (int i = 0; i < g.batch; i++) {
        if (g.alpha != 0.0f && g.k > 0) {
            touch(g.a, i, false);
            touch(g.b, i, false);
        }
        if (g.beta != 0.0f) touch(g.c, i, false);
        std::vector<float> a = unpack(g.a, i, g.tf32, g.bf16), b = unpack(g.b, i, g.tf32, g.bf16), c;
        /* With beta = 0 the target is not read: it may hold anything. */
        if (g.beta != 0.0f)
            c = unpack(g.c, i, false, false);
        else
            c.assign((size_t)g.m * (size_t)g.n, 0.0f);
        cblas_sgemm(CblasColMajor, g.ta ? CblasTrans : CblasNoTrans, g.tb ? CblasTrans : CblasNoTrans, g.m,
                    g.n, g.k, g.alpha, a.data(), g.a.rows, b.data(), g.b.rows, g.beta, c.data(), g.m);
        touch(g.c, i, true);
        pack(g.c, i, c);
    }
}

/* Each operand once; with beta the target is read too. */
static void count(const Gemm &g) {
    auto bytes = [&](const Matrix &x) {
        return (uint64_t)g.batch * (uint64_t)x.rows * (uint64_t)x.columns * x.element();
    };
    uint64_t flops = 2ull * (uint64_t)g.batch * (uint64_t)g.m * (uint64_t)g.n * (uint64_t)g.k;
    bool narrow = g.bf16 || g.a.type == CUDA_R_16BF, tf32 = g.tf32 && !narrow;
    log_operation("cublas", bytes(g.a) + bytes(g.b) + (g.beta != 0.0f ? bytes(g.c) : 0), bytes(g.c),
                  narrow || tf32 ? 0 : flops, tf32 ? flops : 0, narrow ? flops : 0);
}

static bool known_type(cudaDataType t) {
    return t == CUDA_R_32F || t == CUDA_R_16BF;
}

static cublasStatus_t check(const Gemm &g, cublasComputeType_t compute) {
    if (g.m < 0 || g.n < 0 || g.k < 0 || g.batch < 0) return CUBLAS_STATUS_INVALID_VALUE;
    for (const Matrix *x : {&g.a, &g.b, &g.c})
        if (x->ld < (x->rows > 1 ? x->rows : 1)) return CUBLAS_STATUS_INVALID_VALUE;
    if (!known_type(g.a.type) || g.a.type != g.b.type || !known_type(g.c.type))
        return CUBLAS_STATUS_NOT_SUPPORTED;
    if (g.a.type == CUDA_R_32F && g.c.type != CUDA_R_32F) return CUBLAS_STATUS_NOT_SUPPORTED;
    bool narrow = g.a.type == CUDA_R_16BF;
    if (compute == CUBLAS_COMPUTE_32F || compute == CUBLAS_COMPUTE_32F_PEDANTIC) return CUBLAS_STATUS_SUCCESS;
    bool fast = compute == CUBLAS_COMPUTE_32F_FAST_TF32 || compute == CUBLAS_COMPUTE_32F_FAST_16BF;
    return fast && !narrow ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_NOT_SUPPORTED;
}

static cublasStatus_t run(cublasHandle_t h, Gemm g, const void *alpha, const void *beta,
                          cublasComputeType_t compute) {
    if (!h) return CUBLAS_STATUS_NOT_INITIALIZED;
    if (cublasStatus_t status = check(g, compute)) return status;
    if (!alpha || !beta) return CUBLAS_STATUS_INVALID_VALUE;
    if (!g.m || !g.n || !g.batch) return CUBLAS_STATUS_SUCCESS;
    g.tf32 =
        compute == CUBLAS_COMPUTE_32F_FAST_TF32 ||
        (compute == CUBLAS_COMPUTE_32F && h->math == CUBLAS_TF32_TENSOR_OP_MATH && g.a.type == CUDA_R_32F);
    g.bf16 = compute == CUBLAS_COMPUTE_32F_FAST_16BF;
    for (const Matrix *x : {&g.a, &g.b, &g.c}) {
        bool aligned = (uintptr_t)x->data % 16 == 0 && (size_t)x->ld * x->element() % 16 == 0;
        if (!aligned) __atomic_fetch_add(&misaligned, 1, __ATOMIC_RELAXED);
        if (!is_device_address(x->data))
            report("HOST POINTER", Site{}, __builtin_return_address(0),
                   "cuBLAS is given %p, which is not device memory", (const void *)x->data);
    }
    if (h->pointers == CUBLAS_POINTER_MODE_DEVICE) {
        g.device_alpha = static_cast<const float *>(alpha);
        g.device_beta = static_cast<const float *>(beta);
    } else {
        g.alpha = *static_cast<const float *>(alpha);
        g.beta = *static_cast<const float *>(beta);
    }
    std::lock_guard<std::mutex> guard(machine_lock);
    Stream *s = find_stream(h->stream);
    if (!s) return CUBLAS_STATUS_EXECUTION_FAILED;
    Op op;
    op.what = "a cuBLAS product";
    op.run = [g](Op &) {
        count(g);
        if (!settings().sample) perform(g);
        return true;
    };
    return enqueue(*s, std::move(op)) ? CUBLAS_STATUS_EXECUTION_FAILED : CUBLAS_STATUS_SUCCESS;
}

static Matrix matrix(const void *data, cudaDataType type, bool transposed, int rows, int columns, int ld,
                     long long stride) {
    return Matrix{static_cast<const char *>(data), type, transposed ? columns : rows,
                  transposed ? rows : columns,     ld,   stride};
}

} // namespace simt

using namespace simt;

uint64_t simt_blas_misaligned(void) {
    return misaligned;
}

extern "C" {

cublasStatus_t cublasCreate_v2(cublasHandle_t *handle) {
    int count = 0;
    *handle = nullptr;
    if (cudaGetDeviceCount(&count)) return CUBLAS_STATUS_NOT_INITIALIZED;
    if (refused("cublasCreate")) return CUBLAS_STATUS_EXECUTION_FAILED;
    handles++;
    *handle = new cublasContext{nullptr, CUBLAS_DEFAULT_MATH, CUBLAS_POINTER_MODE_HOST};
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasDestroy_v2(cublasHandle_t handle) {
    if (!handle) return CUBLAS_STATUS_NOT_INITIALIZED;
    delete handle;
    handles--;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasGetProperty(libraryPropertyType property, int *value) {
    *value = property == MAJOR_VERSION ? 13 : 0;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasGetVersion_v2(cublasHandle_t, int *version) {
    *version = 130000;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasSetStream_v2(cublasHandle_t handle, cudaStream_t stream) {
    if (!handle) return CUBLAS_STATUS_NOT_INITIALIZED;
    if (refused("cublasSetStream")) return CUBLAS_STATUS_EXECUTION_FAILED;
    handle->stream = stream;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasGetStream_v2(cublasHandle_t handle, cudaStream_t *stream) {
    if (!handle) return CUBLAS_STATUS_NOT_INITIALIZED;
    *stream = handle->stream;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasSetWorkspace_v2(cublasHandle_t handle, void *workspace, size_t bytes) {
    if (!handle) return CUBLAS_STATUS_NOT_INITIALIZED;
    if (refused("cublasSetWorkspace")) return CUBLAS_STATUS_EXECUTION_FAILED;
    bool bad = bytes && (!is_device_address(workspace) || (uintptr_t)workspace % 256);
    return bad ? CUBLAS_STATUS_INVALID_VALUE : CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasSetMathMode(cublasHandle_t handle, cublasMath_t mode) {
    if (!handle) return CUBLAS_STATUS_NOT_INITIALIZED;
    if (refused("cublasSetMathMode")) return CUBLAS_STATUS_EXECUTION_FAILED;
    handle->math = mode;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasGetMathMode(cublasHandle_t handle, cublasMath_t *mode) {
    if (!handle) return CUBLAS_STATUS_NOT_INITIALIZED;
    *mode = handle->math;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasSetPointerMode_v2(cublasHandle_t handle, cublasPointerMode_t mode) {
    if (!handle) return CUBLAS_STATUS_NOT_INITIALIZED;
    handle->pointers = mode;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasSetAtomicsMode(cublasHandle_t handle, cublasAtomicsMode_t) {
    return handle ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_NOT_INITIALIZED;
}

const char *cublasGetStatusName(cublasStatus_t status) {
    switch (status) {
    case CUBLAS_STATUS_SUCCESS:
        return "CUBLAS_STATUS_SUCCESS";
    case CUBLAS_STATUS_NOT_INITIALIZED:
        return "CUBLAS_STATUS_NOT_INITIALIZED";
    case CUBLAS_STATUS_INVALID_VALUE:
        return "CUBLAS_STATUS_INVALID_VALUE";
    case CUBLAS_STATUS_EXECUTION_FAILED:
        return "CUBLAS_STATUS_EXECUTION_FAILED";
    case CUBLAS_STATUS_NOT_SUPPORTED:
        return "CUBLAS_STATUS_NOT_SUPPORTED";
    default:
        return "CUBLAS_STATUS_INTERNAL_ERROR";
    }
}

const char *cublasGetStatusString(cublasStatus_t status) {
    switch (status) {
    case CUBLAS_STATUS_SUCCESS:
        return "success";
    case CUBLAS_STATUS_NOT_INITIALIZED:
        return "the library was not initialized";
    case CUBLAS_STATUS_INVALID_VALUE:
        return "an unsupported value or parameter was passed to the function";
    case CUBLAS_STATUS_EXECUTION_FAILED:
        return "the function failed to launch on the GPU";
    case CUBLAS_STATUS_NOT_SUPPORTED:
        return "the functionality requested is not supported";
    default:
        return "an internal operation failed";
    }
}

cublasStatus_t cublasGemmStridedBatchedEx(cublasHandle_t handle, cublasOperation_t transa,
                                          cublasOperation_t transb, int m, int n, int k, const void *alpha,
                                          const void *a, cudaDataType atype, int lda, long long stridea,
                                          const void *b, cudaDataType btype, int ldb, long long strideb,
                                          const void *beta, void *c, cudaDataType ctype, int ldc,
                                          long long stridec, int batch, cublasComputeType_t compute,
                                          cublasGemmAlgo_t) {
    Gemm g = {};
    g.ta = transa != CUBLAS_OP_N;
    g.tb = transb != CUBLAS_OP_N;
    g.m = m;
    g.n = n;
    g.k = k;
    g.batch = batch;
    g.a = matrix(a, atype, g.ta, m, k, lda, stridea);
    g.b = matrix(b, btype, g.tb, k, n, ldb, strideb);
    g.c = matrix(c, ctype, false, m, n, ldc, stridec);
    return run(handle, g, alpha, beta, compute);
}

cublasStatus_t cublasGemmEx(cublasHandle_t handle, cublasOperation_t transa, cublasOperation_t transb, int m,
                            int n, int k, const void *alpha, const void *a, cudaDataType atype, int lda,
                            const void *b, cudaDataType btype, int ldb, const void *beta, void *c,
                            cudaDataType ctype, int ldc, cublasComputeType_t compute, cublasGemmAlgo_t algo) {
    if (refused("cublasGemmEx")) return CUBLAS_STATUS_EXECUTION_FAILED;
    return cublasGemmStridedBatchedEx(handle, transa, transb, m, n, k, alpha, a, atype, lda, 0, b, btype, ldb,
                                      0, beta, c, ctype, ldc, 0, 1, compute, algo);
}

cublasStatus_t cublasSgemmStridedBatched(cublasHandle_t handle, cublasOperation_t transa,
                                         cublasOperation_t transb, int m, int n, int k, const float *alpha,
                                         const float *a, int lda, long long stridea, const float *b, int ldb,
                                         long long strideb, const float *beta, float *c, int ldc,
                                         long long stridec, int batch) {
    return cublasGemmStridedBatchedEx(handle, transa, transb, m, n, k, alpha, a, CUDA_R_32F, lda, stridea, b,
                                      CUDA_R_32F, ldb, strideb, beta, c, CUDA_R_32F, ldc, stridec, batch,
                                      CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT);
}

cublasStatus_t cublasSgemm_v2(cublasHandle_t handle, cublasOperation_t transa, cublasOperation_t transb,
                              int m, int n, int k, const float *alpha, const float *a, int lda,
                              const float *b, int ldb, const float *beta, float *c, int ldc) {
    return cublasSgemmStridedBatched(handle, transa, transb, m, n, k, alpha, a, lda, 0, b, ldb, 0, beta, c,
                                     ldc, 0, 1);
}

} // extern "C"
