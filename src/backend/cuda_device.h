/* The inside of the CUDA backend; shared by the files cuda_*.c. */
#ifndef TN_BACKEND_CUDA_DEVICE_H
#define TN_BACKEND_CUDA_DEVICE_H

#include <cublas_v2.h>
#include <cuda_runtime_api.h>

#include "backend/cuda.h"
#include "backend/cuda_plan.h"
#include "kernels/kernels.h"

/* A piece of pinned memory through which uploads go, so that the host need not wait for them. */
typedef struct tn_cuda_slot {
    void *memory;
    cudaEvent_t copied; /* recorded behind the last copy from it */
} tn_cuda_slot;

#define TN_CUDA_SLOTS 2

/* Uploads on one stream: slots are filled one after the other, each with as many copies as have room, and the
 * host waits only for a slot that it comes back to. */
typedef struct tn_cuda_staging {
    cudaStream_t stream;
    tn_cuda_slot slots[TN_CUDA_SLOTS];
    int current;
    size_t used; /* bytes of the current slot */
} tn_cuda_staging;

/* What the host reads later: copied to pinned memory behind the work issued so far. */
typedef struct tn_cuda_fetch {
    void *memory;
    size_t bytes;
    cudaEvent_t arrived;
} tn_cuda_fetch;

typedef struct tn_cuda_graph {
    bool seen; /* its work was issued once without being recorded */
    cudaGraphExec_t exec;
} tn_cuda_graph;

/* Parts that wait for the launch that adds them, of one chunk. */
typedef struct tn_cuda_waiting {
    char *memory;
    size_t bytes, used;
    tn_merge_item items[TN_MERGE_ITEMS];
    int count, chunk;
} tn_cuda_waiting;

/* What kernels.h takes for whole models: tables in device memory. */
#define TN_CUDA_MEMORIES 12
typedef struct tn_cuda_tables {
    tn_finish finish;
    tn_update update; /* without rates: packing alone */
    const float *rates;
    void *memories[TN_CUDA_MEMORIES]; /* all that must be freed */
    int memory_count;
    size_t bytes;
} tn_cuda_tables;

typedef struct tn_cuda {
    tn_backend head;
    int device;
    tn_precision precision;
    cudaStream_t stream;
    cublasHandle_t blas;
    void *blas_workspace, *sum_workspace; /* sum_workspace ends with one double for the sum */
    size_t workspace_bytes;               /* of both */
    tn_cuda_staging stage;
    struct tn_cuda_images *images; /* cuda_images.c */
    tn_cuda_fetch fetches[TN_FETCH_SLOTS];
    tn_cuda_graph graphs[TN_RECORD_SLOTS];
    bool recording;
    size_t columns_bytes; /* im2col works in slices of rows of at most this size */
    size_t parts_bytes;   /* at most, of parts that wait; more where one layer alone has more */
    tn_cuda_arch arch;    /* what plans are made for */
    float *scalars;       /* [node_count][4], tn_update.node_scalars */
    tn_cuda_waiting waiting;
    tn_stage_products pending[TN_STAGE_PRODUCTS]; /* weight gradients whose parts wait, but are not there */
    int pending_count;
    tn_cuda_tables tables;
} tn_cuda;

static inline tn_cuda *tn_cuda_of(tn_backend *backend) {
    return (tn_cuda *)(void *)backend;
}

/* "CALL failed at FILE:LINE: text", TN_ERR_DEVICE. */
tn_status tn_cuda_fail(const char *call, const char *file, int line, cudaError_t error);
tn_status tn_cublas_fail(const char *call, const char *file, int line, cublasStatus_t status);

#define TN_CUDA(call)                                                                                        \
    do {                                                                                                     \
        cudaError_t tn_error_ = (call);                                                                      \
        if (tn_error_ != cudaSuccess) return tn_cuda_fail(#call, __FILE__, __LINE__, tn_error_);             \
    } while (0)
#define TN_CUBLAS(call)                                                                                      \
    do {                                                                                                     \
        cublasStatus_t tn_error_ = (call);                                                                   \
        if (tn_error_ != CUBLAS_STATUS_SUCCESS) return tn_cublas_fail(#call, __FILE__, __LINE__, tn_error_); \
    } while (0)

/* How a tensor's activation is stored. With bf16, the residual stream of very deep networks stays float32: at
 * tau = 1/600 over 600 blocks its rounding would be half as large as what the blocks add. Images and logits
 * are float32 always. */
tn_storage tn_cuda_store_of(tn_precision precision, const tn_model *model, int tensor);
tn_storage tn_cuda_store(const tn_cuda *cuda, const tn_model *model, int tensor);
static inline size_t tn_cuda_store_bytes(tn_storage store) {
    return store == TN_STORE_BF16 ? 2 : 4;
}
size_t tn_cuda_element_bytes(const tn_backend *backend, const tn_model *model, int tensor);

/* Zeroed device memory; *out is NULL for 0 bytes. Free with tn_cuda_release. */
tn_status tn_cuda_alloc(tn_backend *backend, void *out, size_t bytes, const char *what);
void tn_cuda_release(tn_backend *backend, void *memory);
tn_status tn_cuda_upload(tn_backend *backend, void *to, const void *from, size_t bytes);

/* A stage on `stream`; close it also after a failure. */
tn_status tn_cuda_staging_open(tn_cuda_staging *stage, cudaStream_t stream);
void tn_cuda_staging_close(tn_cuda_staging *stage);
tn_status tn_cuda_send(tn_cuda_staging *stage, void *to, const void *from, size_t bytes);

/* The scalars s, c, d of a node, or NULL where the node has none and the kernels' default holds. */
const float *tn_cuda_s(const tn_cuda *cuda, const tn_plan *plan);
const float *tn_cuda_c(const tn_cuda *cuda, const tn_plan *plan);
const float *tn_cuda_d(const tn_cuda *cuda, const tn_plan *plan);

/* The gradients that arrive at a node. */
tn_parts tn_cuda_parts(const tn_args *args);
/* Puts `count` floats of this chunk's own gradients where they belong: `made` is where the chunk wrote them,
 * which for chunk 0 is `to` itself. */
tn_status tn_cuda_accumulate(tn_cuda *cuda, const tn_args *args, float *to, const float *made, size_t count);

/* cuda_parts.c. What a layer may leave in parts in one backward, bytes and tables' rows, ... */
typedef struct tn_cuda_need {
    size_t bytes;
    int items;
} tn_cuda_need;
/* ... which planning adds up (`to` and `parts` are not looked at). */
void tn_cuda_expect_parts(tn_cuda_need *need, tn_merge_item item);
/* Room for the parts of all plans, or for as many as may wait at a time. */
tn_status tn_cuda_alloc_parts(tn_cuda *cuda, int count, tn_plan *const *plans);
void tn_cuda_free_parts(tn_cuda *cuda);
/* Before a layer's first launch: adds what waits, if there is not room for all that the layer may leave. */
tn_status tn_cuda_open_parts(tn_cuda *cuda, const tn_args *args, const tn_cuda_need *need);
/* Where a kernel that is about to be launched leaves the parts of `item`. */
void *tn_cuda_leave_parts(tn_cuda *cuda, tn_merge_item item);
tn_status tn_cuda_settle(tn_backend *backend, bool keep);
/* The sums of a node: `count` parts of each. */
tn_merge_item tn_cuda_sums_item(const tn_plan *plan, const tn_flat *flat, int count);

/* cuda_tables.c: what is done for a whole model at once. */
tn_status tn_cuda_prepare(tn_backend *backend, const tn_model *model, tn_plan *const *plans,
                          const tn_flat *flat, const tn_step_memory *memory, size_t *held_bytes);
tn_status tn_cuda_pack_all(tn_backend *backend);
tn_status tn_cuda_finish_all(tn_backend *backend);
tn_status tn_cuda_update_all(tn_backend *backend, float mu, float decay);
void tn_cuda_free_tables(tn_cuda *cuda);

/* cuda_images.c: batches made of bytes. */
tn_status tn_cuda_hold(tn_backend *backend, const uint8_t *pixels, size_t bytes, size_t *added);
tn_status tn_cuda_make_images(tn_backend *backend, const tn_batch *batch, int chunk_rows, size_t chunk_floats,
                              float *images);
void tn_cuda_free_images(tn_cuda *cuda);

/* A packed copy of a parameter [out][in][taps]; members as in tn_pack and tn_weight of kernels.h. */
typedef struct tn_pack_item {
    int layout, store;
    int out, in, taps, ld;
    int identity;
} tn_pack_item;
/* Elements of the copy. */
static inline size_t tn_pack_count(const tn_pack_item *item) {
    return (size_t)item->out * (size_t)(item->layout == TN_PACK_GEMM ? item->ld : item->in * item->taps);
}

/* What a plan packs: layouts of its weight, scaled by s, and copies of its vectors. */
#define TN_CUDA_PACKS 3
typedef struct tn_cuda_pack {
    tn_pack_item item;
    void *to;
    int param;
    bool scaled;
} tn_cuda_pack;

/* The head of all plans of this backend. */
typedef struct tn_cuda_plan {
    tn_plan head;
    tn_cuda *cuda;
    int rows; /* of a chunk */
    bool training;
    tn_storage x_store, y_store;
    tn_shape in, out;
    tn_cuda_pack packs[TN_CUDA_PACKS];
    int pack_count;
    tn_cuda_need need; /* of parts */
    tn_plan *span;     /* the stage of which the node is the last */
} tn_cuda_plan;

/* Frees what a convolution that became part of a span computes with; its plan then only packs for the span,
 * and says `implementation`. */
void tn_cuda_conv_yield(tn_plan *plan, const char *implementation);
/* Whether a convolution is the stem of kernels.h: of images. */
bool tn_cuda_conv_is_stem(const tn_model *model, const tn_node *node, const tn_conv_shape *shape);
/* Whether another convolution of this shape is a kernel of its own, else a product of cuBLAS. */
bool tn_cuda_conv_is_fused(const tn_conv_shape *shape, tn_precision precision);
/* cuda_stage.c: makes pending weight gradients. */
tn_status tn_cuda_stage_flush(tn_cuda *cuda);
/* cuda_span.c, see tn_backend_ops. */
int tn_cuda_span(const tn_backend *backend, const tn_model *model, int node, int chunk_rows);
tn_status tn_cuda_span_plan(tn_backend *backend, const tn_model *model, int node, int count, int chunks,
                            bool training, tn_plan *const *plans, tn_plan **out);
/* The same for the two kinds of spans: cuda_stage.c, cuda_head.c. */
tn_status tn_cuda_stage_plan(tn_backend *backend, const tn_model *model, int node, int count, int chunks,
                             bool training, tn_plan *const *plans, tn_plan **out);
tn_status tn_cuda_head_plan(tn_backend *backend, const tn_model *model, int node, bool training,
                            tn_plan *const *plans, tn_plan **out);

/* Fills the head of a plan of `size` bytes and allocates it on the host. */
tn_status tn_cuda_plan_make(tn_backend *backend, const tn_model *model, int node, int chunk_rows,
                            bool training, size_t size, void *out);
/* Adds a packed copy of a parameter; memory is allocated, and zero where the layout leaves gaps. */
tn_status tn_cuda_plan_pack(tn_cuda_plan *plan, tn_pack_item item, int param, bool scaled, void *memory);
static inline size_t tn_cuda_floats(tn_shape s) {
    return (size_t)s.channels * (size_t)s.height * (size_t)s.width;
}
static inline size_t tn_cuda_pixels(const tn_cuda_plan *plan, int rows) {
    return (size_t)rows * (size_t)plan->out.height * (size_t)plan->out.width;
}

extern const tn_node_ops tn_cuda_conv, tn_cuda_norm, tn_cuda_subsample, tn_cuda_append, tn_cuda_maxpool,
    tn_cuda_avgpool, tn_cuda_loss, tn_cuda_stage, tn_cuda_head, tn_cuda_spans;

#endif
