/* What computes which layers on CUDA, chosen from a counted cost. Pure: no calls to the device, so a plan can
 * be made for a device that is not there.
 *
 * Model of time: a kernel takes the longer of (bytes to and from memory / bandwidth) and (operations / rate),
 * the latter stretched where its blocks do not fill the multiprocessors evenly (waves), plus a fixed time for
 * each launch. Bytes count every tensor that a kernel reads or writes once; what a kernel reads again comes
 * from the cache for nothing, and so does what one kernel leaves there for the next. Shared memory, latencies
 * and instructions other than products are left out. All of it is a prediction: no device has confirmed it.
 */
#ifndef TN_BACKEND_CUDA_PLAN_H
#define TN_BACKEND_CUDA_PLAN_H

#include "backend/backend.h"
#include "kernels/kernels.h"

typedef struct tn_cuda_arch {
    const char *name, *device;
    int multiprocessors;
    size_t shared_bytes; /* of a block, at most */
    double bytes_per_second;
    double flops[3];    /* of matrix products by cuBLAS, by tn_precision */
    double wmma_share;  /* of those that WMMA reaches */
    double float_flops; /* without tensor cores */
    double launch_seconds;
} tn_cuda_arch;

/* "sm_80", "sm_90"; NULL where the name is none of these. */
const tn_cuda_arch *tn_cuda_arch_named(const char *name);

/* One training step's work on some layers, forward and backward. */
typedef struct tn_cuda_cost {
    double bytes, flops, seconds;
    int launches;
} tn_cuda_cost;

typedef enum tn_cuda_way {
    TN_CUDA_STAGE,  /* successive residual blocks as one kernel, also from one that changes the shape on */
    TN_CUDA_BLOCK,  /* each residual block as one kernel */
    TN_CUDA_CONV,   /* each convolution as one kernel */
    TN_CUDA_CUBLAS, /* each convolution as a product of cuBLAS */
    TN_CUDA_HEAD,   /* average pool, linear layer and loss as one kernel */
    TN_CUDA_OTHER,  /* layers that are no matrix product */
    TN_CUDA_WAYS
} tn_cuda_way;

typedef struct tn_cuda_choice {
    tn_cuda_way way;
    int nodes;       /* that the row stands for */
    int first_block; /* of these, where they can be a stage, the nodes of the first residual block */
    bool possible[TN_CUDA_WAYS];
    tn_cuda_cost cost[TN_CUDA_WAYS]; /* of all these nodes, where possible */
} tn_cuda_choice;

/* The choice for the nodes from `node` on, on chunks of `rows` images. Of residual blocks that can be a stage
 * it chooses what is predicted to take least time, the first of equals; how a convolution of its own is
 * computed follows from its shape (tn_cuda_conv_is_stem, tn_cuda_conv_is_fused), and so does whether an
 * average pool begins a head. */
tn_cuda_choice tn_cuda_choose(const tn_cuda_arch *arch, tn_precision precision, const tn_model *model,
                              int node, int rows);

/* Nodes that run as one operation from `node` on: of a stage, of one block, of a head, or 1. */
int tn_cuda_choice_span(const tn_cuda_choice *choice);
/* A span from `node` on as the kernels take it; `images` is set. */
tn_stage_shape tn_cuda_stage_shape(tn_precision precision, const tn_model *model, int node, int rows,
                                   int nodes);

/* The average pool `node`, the linear layer and the loss behind it as the kernels take them. */
tn_head_shape tn_cuda_head_shape(const tn_model *model, int node, int rows);

/* The choices for a whole model as a table; TN_ERR_USAGE for an unknown architecture. */
tn_status tn_cuda_explain(const tn_model *model, tn_precision precision, const char *arch, int rows,
                          tn_string *text);

#endif
