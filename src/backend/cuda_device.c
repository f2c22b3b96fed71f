#include "backend/cuda_device.h"

#include <curand.h>
#include <nvtx3/nvToolsExt.h>
#include <stdio.h>
#include <string.h>

#include "base/memory.h"

#define SLOT_BYTES    ((size_t)4 << 20)
#define ALIGNMENT     16            /* of copies in a slot */
#define FETCH_MORE    ((size_t)256) /* pinned memory behind the first piece of a fetch */
#define COLUMNS_BYTES ((size_t)64 << 20)
#define PARTS_BYTES   ((size_t)256 << 20)
/* See facts.md, Numerics. */
#define BLOCKS_OF_A_SHORT_STREAM 100

/* ---- errors ---- */

tn_status tn_cuda_fail(const char *call, const char *file, int line, cudaError_t error) {
    (void)cudaGetLastError();
    return tn_fail(TN_ERR_DEVICE, "%.*s failed at %s:%d: %s (%s)", (int)strcspn(call, "("), call, file, line,
                   cudaGetErrorString(error), cudaGetErrorName(error));
}

tn_status tn_cublas_fail(const char *call, const char *file, int line, cublasStatus_t status) {
    return tn_fail(TN_ERR_DEVICE, "%.*s failed at %s:%d: %s", (int)strcspn(call, "("), call, file, line,
                   cublasGetStatusString(status));
}

/* ---- devices ---- */

/* No driver, no device and a driver that cannot start all mean that there is none. */
static int device_count(void) {
    int count = 0;
    if (cudaGetDeviceCount(&count) == cudaSuccess) return count;
    (void)cudaGetLastError();
    return 0;
}

static const char *absence(void) {
    int count = 0;
    cudaError_t error = cudaGetDeviceCount(&count);
    (void)cudaGetLastError();
    if (error == cudaErrorInsufficientDriver)
        return "no usable NVIDIA driver on this machine (CUDA driver version is insufficient)";
    if (error != cudaSuccess && error != cudaErrorNoDevice)
        return "the NVIDIA driver does not start on this machine (see nvidia-smi)";
    return "no CUDA device on this machine";
}

static void describe(int device, char *text, size_t size) {
    struct cudaDeviceProp p;
    int runtime = 0, driver = 0, blas[2] = {0}, rand[2] = {0};
    if (cudaGetDeviceProperties(&p, device) != cudaSuccess ||
        cudaRuntimeGetVersion(&runtime) != cudaSuccess || cudaDriverGetVersion(&driver) != cudaSuccess ||
        cublasGetProperty(MAJOR_VERSION, &blas[0]) != CUBLAS_STATUS_SUCCESS ||
        cublasGetProperty(MINOR_VERSION, &blas[1]) != CUBLAS_STATUS_SUCCESS ||
        curandGetProperty(MAJOR_VERSION, &rand[0]) != CURAND_STATUS_SUCCESS ||
        curandGetProperty(MINOR_VERSION, &rand[1]) != CURAND_STATUS_SUCCESS) {
        (void)cudaGetLastError();
        snprintf(text, size, "device %d", device);
        return;
    }
    snprintf(text, size, "%d: %s, %.1f GiB, sm_%d%d, CUDA %d.%d, driver %d.%d, cuBLAS %d.%d, cuRAND %d.%d",
             device, p.name, (double)p.totalGlobalMem / (1 << 30), p.major, p.minor, runtime / 1000,
             runtime % 1000 / 10, driver / 1000, driver % 1000 / 10, blas[0], blas[1], rand[0], rand[1]);
}

static void forget(tn_cuda_graph *graph) {
    if (graph->exec && cudaGraphExecDestroy(graph->exec) != cudaSuccess) (void)cudaGetLastError();
    *graph = (tn_cuda_graph){0};
}

static void cuda_close(tn_backend *backend) {
    tn_cuda *cuda = tn_cuda_of(backend);
    if (!cuda) return;
    if (cuda->stream) (void)cudaStreamSynchronize(cuda->stream);
    tn_cuda_free_tables(cuda);
    tn_cuda_free_images(cuda);
    for (int i = 0; i < TN_RECORD_SLOTS; i++) forget(&cuda->graphs[i]);
    for (int i = 0; i < TN_FETCH_SLOTS; i++) {
        if (cuda->fetches[i].arrived) (void)cudaEventDestroy(cuda->fetches[i].arrived);
        if (cuda->fetches[i].memory) (void)cudaFreeHost(cuda->fetches[i].memory);
    }
    tn_cuda_staging_close(&cuda->stage);
    if (cuda->blas) (void)cublasDestroy(cuda->blas);
    tn_cuda_release(backend, cuda->blas_workspace);
    tn_cuda_release(backend, cuda->sum_workspace);
    if (cuda->stream) (void)cudaStreamDestroy(cuda->stream);
    tn_free(cuda);
}

/* Fixed workspaces: recorded graphs keep using them. Sizes as cuBLAS's documentation recommends. */
static tn_status give_workspaces(tn_cuda *cuda) {
    int major = 0;
    TN_CUDA(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, cuda->device));
    size_t bytes = (size_t)(major >= 9 ? 32 : 4) << 20;
    TN_TRY(tn_cuda_alloc(&cuda->head, &cuda->blas_workspace, bytes, "workspace of cuBLAS"));
    TN_CUBLAS(cublasSetWorkspace(cuda->blas, cuda->blas_workspace, bytes));
    const size_t sum_bytes = TN_SUM_WORKSPACE + sizeof(double);
    TN_TRY(tn_cuda_alloc(&cuda->head, &cuda->sum_workspace, sum_bytes, "workspace"));
    cuda->workspace_bytes = bytes + sum_bytes;
    return TN_OK;
}

/* Rates are those of the nearest known device. */
static tn_status find_arch(tn_cuda *cuda) {
    int major = 0, shared = 0;
    TN_CUDA(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, cuda->device));
    TN_CUDA(cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, cuda->device));
    cuda->arch = *tn_cuda_arch_named(major >= 9 ? "sm_90" : "sm_80");
    cuda->arch.shared_bytes = (size_t)shared;
    TN_CUDA(
        cudaDeviceGetAttribute(&cuda->arch.multiprocessors, cudaDevAttrMultiProcessorCount, cuda->device));
    return TN_OK;
}

static tn_status start(tn_cuda *cuda) {
    TN_CUDA(cudaSetDevice(cuda->device));
    TN_CUDA(cudaStreamCreateWithFlags(&cuda->stream, cudaStreamNonBlocking));
    TN_CUBLAS(cublasCreate(&cuda->blas));
    TN_CUBLAS(cublasSetStream(cuda->blas, cuda->stream));
    TN_TRY(give_workspaces(cuda));
    TN_TRY(find_arch(cuda));
    TN_CUBLAS(cublasSetMathMode(cuda->blas, cuda->precision == TN_PRECISION_TF32 ? CUBLAS_TF32_TENSOR_OP_MATH
                                                                                 : CUBLAS_DEFAULT_MATH));
    for (int i = 0; i < TN_FETCH_SLOTS; i++)
        TN_CUDA(cudaEventCreateWithFlags(&cuda->fetches[i].arrived, cudaEventDisableTiming));
    return tn_cuda_staging_open(&cuda->stage, cuda->stream);
}

static tn_status cuda_open(int device, int workers, tn_precision precision, tn_backend **out) {
    tn_cuda *cuda;
    *out = NULL;
    TN_TRY(tn_alloc(&cuda, 1, sizeof *cuda, "backend"));
    cuda->head.ops = &tn_cuda_backend;
    cuda->head.workers = workers;
    cuda->device = device;
    cuda->precision = precision;
    cuda->columns_bytes = COLUMNS_BYTES;
    cuda->parts_bytes = PARTS_BYTES;
    tn_status status = start(cuda);
    if (status != TN_OK) {
        cuda_close(&cuda->head);
        return status;
    }
    *out = &cuda->head;
    return TN_OK;
}

/* ---- memory ---- */

/* Launches go to streams of the thread's current device: made so wherever work on an engine begins. */
static tn_status enter(tn_cuda *cuda) {
    TN_CUDA(cudaSetDevice(cuda->device));
    return TN_OK;
}

tn_status tn_cuda_alloc(tn_backend *backend, void *out, size_t bytes, const char *what) {
    tn_cuda *cuda = tn_cuda_of(backend);
    void **memory = out;
    *memory = NULL;
    if (bytes == 0) return TN_OK;
    TN_TRY(enter(cuda));
    cudaError_t error = cudaMalloc(memory, bytes);
    if (error == cudaErrorMemoryAllocation) {
        size_t available = 0, total = 0;
        (void)cudaGetLastError();
        TN_CUDA(cudaMemGetInfo(&available, &total));
        return tn_fail(
            TN_ERR_MEMORY,
            "device memory: %.1f MiB asked for (%s), %.1f of %.1f MiB free; try a smaller --batch or "
            "--micro-batch",
            (double)bytes / (1 << 20), what, (double)available / (1 << 20), (double)total / (1 << 20));
    }
    if (error != cudaSuccess) return tn_cuda_fail("cudaMalloc", __FILE__, __LINE__, error);
    error = cudaMemsetAsync(*memory, 0, bytes, cuda->stream);
    if (error == cudaSuccess) return TN_OK;
    tn_cuda_release(backend, *memory);
    *memory = NULL;
    return tn_cuda_fail("cudaMemsetAsync", __FILE__, __LINE__, error);
}

void tn_cuda_release(tn_backend *backend, void *memory) {
    (void)backend;
    /* What can go wrong here is that something went wrong before, which its own call says. */
    if (memory && cudaFree(memory) != cudaSuccess) (void)cudaGetLastError();
}

tn_status tn_cuda_staging_open(tn_cuda_staging *stage, cudaStream_t stream) {
    *stage = (tn_cuda_staging){.stream = stream};
    for (int i = 0; i < TN_CUDA_SLOTS; i++) {
        TN_CUDA(cudaMallocHost(&stage->slots[i].memory, SLOT_BYTES));
        TN_CUDA(cudaEventCreateWithFlags(&stage->slots[i].copied, cudaEventDisableTiming));
    }
    return TN_OK;
}

void tn_cuda_staging_close(tn_cuda_staging *stage) {
    for (int i = 0; i < TN_CUDA_SLOTS; i++) {
        if (stage->slots[i].copied) (void)cudaEventDestroy(stage->slots[i].copied);
        if (stage->slots[i].memory) (void)cudaFreeHost(stage->slots[i].memory);
    }
    (void)cudaGetLastError(); /* of what cannot be freed; it would be taken for that of a launch */
}

/* Behind a copy from or to a slot: whoever comes back to the slot waits for it. */
static tn_status slot_used(const tn_cuda_staging *stage, const tn_cuda_slot *slot) {
    cudaError_t error = cudaEventRecord(slot->copied, stage->stream);
    if (error == cudaSuccess) return TN_OK;
    (void)cudaStreamSynchronize(stage->stream);
    return tn_cuda_fail("cudaEventRecord", __FILE__, __LINE__, error);
}

static tn_status next_slot(tn_cuda_staging *stage) {
    stage->current = (stage->current + 1) % TN_CUDA_SLOTS;
    stage->used = 0;
    TN_CUDA(cudaEventSynchronize(stage->slots[stage->current].copied));
    return TN_OK;
}

tn_status tn_cuda_send(tn_cuda_staging *stage, void *to, const void *from, size_t bytes) {
    for (size_t done = 0; done < bytes;) {
        if (stage->used == SLOT_BYTES) TN_TRY(next_slot(stage));
        tn_cuda_slot *slot = &stage->slots[stage->current];
        size_t room = SLOT_BYTES - stage->used, piece = bytes - done < room ? bytes - done : room;
        char *place = (char *)slot->memory + stage->used;
        memcpy(place, (const char *)from + done, piece);
        stage->used += (piece + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
        TN_CUDA(cudaMemcpyAsync((char *)to + done, place, piece, cudaMemcpyHostToDevice, stage->stream));
        TN_TRY(slot_used(stage, slot));
        done += piece;
    }
    return TN_OK;
}

tn_status tn_cuda_upload(tn_backend *backend, void *to, const void *from, size_t bytes) {
    tn_cuda *cuda = tn_cuda_of(backend);
    TN_TRY(enter(cuda));
    return tn_cuda_send(&cuda->stage, to, from, bytes);
}

static tn_status download(tn_backend *backend, void *to, const void *from, size_t bytes) {
    tn_cuda *cuda = tn_cuda_of(backend);
    const tn_cuda_slot *slot = &cuda->stage.slots[0];
    TN_TRY(enter(cuda));
    for (size_t done = 0; done < bytes;) {
        size_t piece = bytes - done < SLOT_BYTES ? bytes - done : SLOT_BYTES;
        TN_CUDA(cudaMemcpyAsync(slot->memory, (const char *)from + done, piece, cudaMemcpyDeviceToHost,
                                cuda->stream));
        TN_TRY(slot_used(&cuda->stage, slot));
        TN_CUDA(cudaEventSynchronize(slot->copied));
        memcpy((char *)to + done, slot->memory, piece);
        done += piece;
    }
    return TN_OK;
}

static tn_status fetch(tn_backend *backend, int slot, size_t at, const void *from, size_t bytes) {
    tn_cuda *cuda = tn_cuda_of(backend);
    tn_cuda_fetch *f = &cuda->fetches[slot];
    TN_TRY(enter(cuda));
    if (f->bytes < at + bytes) {
        void *memory;
        TN_ASSERT(at == 0); /* the first piece is the largest: nothing is under way yet */
        TN_CUDA(cudaMallocHost(&memory, bytes + FETCH_MORE));
        if (f->memory && cudaFreeHost(f->memory) != cudaSuccess) (void)cudaGetLastError();
        *f = (tn_cuda_fetch){memory, bytes + FETCH_MORE, f->arrived};
    }
    TN_CUDA(cudaMemcpyAsync((char *)f->memory + at, from, bytes, cudaMemcpyDeviceToHost, cuda->stream));
    TN_CUDA(cudaEventRecord(f->arrived, cuda->stream));
    return TN_OK;
}

static tn_status fetched(tn_backend *backend, int slot, const void **memory) {
    tn_cuda *cuda = tn_cuda_of(backend);
    TN_TRY(enter(cuda));
    TN_CUDA(cudaEventSynchronize(cuda->fetches[slot].arrived));
    *memory = cuda->fetches[slot].memory;
    return TN_OK;
}

static tn_status clear(tn_backend *backend, void *memory, size_t bytes) {
    if (bytes > 0) TN_CUDA(cudaMemsetAsync(memory, 0, bytes, tn_cuda_of(backend)->stream));
    return TN_OK;
}

static tn_status read_activation(tn_backend *backend, const tn_model *model, int tensor, float *to,
                                 const float *from, size_t count) {
    tn_cuda *cuda = tn_cuda_of(backend);
    tn_storage store = tn_cuda_store(cuda, model, tensor);
    void *floats;
    if (store == TN_STORE_F32) return download(backend, to, from, count * sizeof(float));
    TN_TRY(tn_cuda_alloc(backend, &floats, count * sizeof(float), "converted activation"));
    cudaError_t error = tn_launch_convert(count, store, from, TN_STORE_F32, floats, cuda->stream);
    tn_status status = error == cudaSuccess ? download(backend, to, floats, count * sizeof(float))
                                            : tn_cuda_fail("tn_launch_convert", __FILE__, __LINE__, error);
    tn_cuda_release(backend, floats);
    return status;
}

/* ---- storage ---- */

static bool in_stream(const tn_model *model, int tensor) {
    for (int i = 0; i < model->node_count; i++)
        if (model->nodes[i].residual == tensor) return true;
    int producer = model->tensors[tensor].producer;
    return producer >= 0 &&
           (model->nodes[producer].residual >= 0 || model->nodes[producer].kind == TN_NODE_SUBSAMPLE ||
            model->nodes[producer].kind == TN_NODE_APPEND);
}

static bool read_by_loss(const tn_model *model, int tensor) {
    for (int i = 0; i < model->node_count; i++)
        if (model->nodes[i].kind == TN_NODE_LOSS && model->nodes[i].input == tensor) return true;
    return false;
}

tn_storage tn_cuda_store_of(tn_precision precision, const tn_model *model, int tensor) {
    if (precision != TN_PRECISION_BF16 || tensor <= 0 || read_by_loss(model, tensor)) return TN_STORE_F32;
    bool deep =
        model->blocks > BLOCKS_OF_A_SHORT_STREAM || (model->blocks > 1 && model->tau <= 1.0 / model->blocks);
    return deep && in_stream(model, tensor) ? TN_STORE_F32 : TN_STORE_BF16;
}

tn_storage tn_cuda_store(const tn_cuda *cuda, const tn_model *model, int tensor) {
    return tn_cuda_store_of(cuda->precision, model, tensor);
}

size_t tn_cuda_element_bytes(const tn_backend *backend, const tn_model *model, int tensor) {
    return tn_cuda_store_bytes(tn_cuda_store((const tn_cuda *)(const void *)backend, model, tensor));
}

/* ---- flat buffers and sums ---- */

static tn_status check(tn_backend *backend, const float *values, size_t count, int *nonfinite) {
    TN_CUDA(tn_launch_check(count, values, nonfinite, tn_cuda_of(backend)->stream));
    return TN_OK;
}

static tn_status average(tn_backend *backend, float *mean, const float *values, size_t count, float rate,
                         const int *stop) {
    TN_CUDA(tn_launch_average(count, mean, values, rate, stop, tn_cuda_of(backend)->stream));
    return TN_OK;
}

static tn_status scale(tn_backend *backend, float *values, size_t count, float factor) {
    TN_CUDA(tn_launch_scale(count, values, factor, tn_cuda_of(backend)->stream));
    return TN_OK;
}

/* sum of (x + shift)^2 of a tensor of which `x` is the storage; x may be `work`. */
static tn_status shifted_sum(tn_cuda *cuda, tn_storage store, const void *x, float shift, size_t count,
                             float *work, double *sum) {
    float *c = work + count;
    TN_TRY(tn_cuda_upload(&cuda->head, c, &shift, sizeof shift));
    TN_CUDA(tn_launch_epilogue_forward(count, 1, store, x, (tn_epilogue){.c = c}, TN_STORE_F32, work,
                                       cuda->stream));
    TN_CUDA(tn_launch_square_sum(count, TN_STORE_F32, work, cuda->sum_workspace, sum, NULL, cuda->stream));
    return TN_OK;
}

/* `work` is room for the added parts, and for the shifted values behind it. */
static tn_status square_sum_in(tn_cuda *cuda, tn_storage store, tn_parts parts, float shift, size_t count,
                               char *work, double *out) {
    double *sum = (double *)(void *)((char *)cuda->sum_workspace + TN_SUM_WORKSPACE);
    const void *x = parts.part[0];
    if (parts.count > 1) {
        TN_CUDA(tn_launch_epilogue_backward(count, store, parts, NULL, work, NULL, NULL, cuda->stream));
        x = work;
    }
    TN_TRY(shifted_sum(cuda, store, x, -shift, count,
                       (float *)(void *)(work + (count * sizeof(float) + 15) / 16 * 16), sum));
    return download(&cuda->head, out, sum, sizeof *out);
}

static tn_status square_sum(tn_backend *backend, const tn_model *model, int tensor, const float *const *parts,
                            int count, float shift, size_t floats, double *out) {
    tn_cuda *cuda = tn_cuda_of(backend);
    tn_parts list = {.count = count};
    for (int i = 0; i < count; i++) list.part[i] = parts[i];
    void *work;
    TN_TRY(tn_cuda_alloc(backend, &work, (2 * floats + 8) * sizeof(float), "probe"));
    tn_status status =
        square_sum_in(cuda, tn_cuda_store(cuda, model, tensor), list, shift, floats, work, out);
    tn_cuda_release(backend, work);
    return status;
}

/* ---- recording ---- */

static tn_status record(tn_backend *backend, int slot, bool fresh, bool *replay) {
    tn_cuda *cuda = tn_cuda_of(backend);
    tn_cuda_graph *graph = &cuda->graphs[slot];
    if (fresh) forget(graph);
    *replay = graph->exec != NULL;
    if (graph->exec || !graph->seen) {
        /* The first time the libraries may still have to load and to allocate, which a recording forbids. */
        graph->seen = true;
        return TN_OK;
    }
    TN_CUDA(cudaStreamBeginCapture(cuda->stream, cudaStreamCaptureModeThreadLocal));
    cuda->recording = true;
    return TN_OK;
}

/* Not complete: what was recorded is thrown away, and the error that came between is the one to report. */
static tn_status end_recording(tn_cuda *cuda, tn_cuda_graph *graph, bool complete) {
    cudaGraph_t recorded = NULL;
    cuda->recording = false;
    cudaError_t error = cudaStreamEndCapture(cuda->stream, &recorded);
    if (error != cudaSuccess && complete)
        return tn_cuda_fail("cudaStreamEndCapture", __FILE__, __LINE__, error);
    if (complete) error = cudaGraphInstantiate(&graph->exec, recorded, 0);
    if ((recorded && cudaGraphDestroy(recorded) != cudaSuccess) || error != cudaSuccess)
        (void)cudaGetLastError();
    if (complete && error != cudaSuccess)
        return tn_cuda_fail("cudaGraphInstantiate", __FILE__, __LINE__, error);
    return TN_OK;
}

static tn_status submit(tn_backend *backend, int slot, bool complete) {
    tn_cuda *cuda = tn_cuda_of(backend);
    tn_cuda_graph *graph = &cuda->graphs[slot];
    if (cuda->recording) TN_TRY(end_recording(cuda, graph, complete));
    if (complete && graph->exec) TN_CUDA(cudaGraphLaunch(graph->exec, cuda->stream));
    return TN_OK;
}

static tn_status stream_of(tn_backend *backend, void **out) {
    *out = tn_cuda_of(backend)->stream;
    return enter(tn_cuda_of(backend));
}

static void range_begin(const char *phase, const char *layer) {
    char name[TN_NAME_MAX + 32];
    snprintf(name, sizeof name, "%s %s", phase, layer);
    nvtxRangePushA(name);
}

static void range_end(void) {
    nvtxRangePop();
}

const tn_backend_ops tn_cuda_backend = {.name = "cuda",
                                        .workers_max = 1,
                                        .precisions = 1u << TN_PRECISION_FP32 | 1u << TN_PRECISION_TF32 |
                                                      1u << TN_PRECISION_BF16,
                                        .device_count = device_count,
                                        .absence = absence,
                                        .open = cuda_open,
                                        .close = cuda_close,
                                        .describe = describe,
                                        .alloc = tn_cuda_alloc,
                                        .release = tn_cuda_release,
                                        .upload = tn_cuda_upload,
                                        .download = download,
                                        .clear = clear,
                                        .read = read_activation,
                                        .check = check,
                                        .average = average,
                                        .square_sum = square_sum,
                                        .prepare = tn_cuda_prepare,
                                        .pack_all = tn_cuda_pack_all,
                                        .settle = tn_cuda_settle,
                                        .finish_all = tn_cuda_finish_all,
                                        .update_all = tn_cuda_update_all,
                                        .span = tn_cuda_span,
                                        .span_plan = tn_cuda_span_plan,
                                        .spans = &tn_cuda_spans,
                                        .explain = tn_cuda_explain,
                                        .element_bytes = tn_cuda_element_bytes,
                                        .hold = tn_cuda_hold,
                                        .make_images = tn_cuda_make_images,
                                        .fetch = fetch,
                                        .fetched = fetched,
                                        .record = record,
                                        .submit = submit,
                                        .stream = stream_of,
                                        .scale = scale,
                                        .range_begin = range_begin,
                                        .range_end = range_end,
                                        .nodes = {[TN_NODE_CONV] = &tn_cuda_conv,
                                                  [TN_NODE_LINEAR] = &tn_cuda_conv,
                                                  [TN_NODE_NORM] = &tn_cuda_norm,
                                                  [TN_NODE_SUBSAMPLE] = &tn_cuda_subsample,
                                                  [TN_NODE_APPEND] = &tn_cuda_append,
                                                  [TN_NODE_MAXPOOL] = &tn_cuda_maxpool,
                                                  [TN_NODE_AVGPOOL] = &tn_cuda_avgpool,
                                                  [TN_NODE_LOSS] = &tn_cuda_loss}};
