/* The inside of an engine; shared by engine.c (life and access) and batch.c (work). */
#ifndef TN_ENGINE_STATE_H
#define TN_ENGINE_STATE_H

#include "base/pool.h"
#include "engine/executor.h"
#include "engine/gradient_tree.h"
#include "taunet/engine.h"

struct tn_engine {
    const tn_model *model;
    tn_backend *backend;
    tn_pool *pool;
    tn_executor *executor;
    tn_gradient_tree *tree; /* NULL without training */
    tn_flat flat;
    int64_t *norm_batches;   /* [state_count] */
    tn_engine_config config; /* resolved: threads and micro_batch are set */
    int chunks;              /* most chunks in a batch */
    char device[128];
    size_t bytes;
    bool packed;      /* the packed parameters are those of flat.values */
    bool eval_loaded; /* norm plans hold the running statistics */
    int bad_node;     /* node whose packed parameters are not finite, or -1 */
    /* Working arrays of a batch. */
    float *row_weights, *row_loss; /* [max_batch] */
    int *row_rank;                 /* [max_batch] */
    float *staging;                /* one chunk of images, for a short last one */
    int *nonfinite;                /* [workers][node_count + 1]; the last stands for the input */
    bool *node_finite;             /* [node_count] */
    tn_trace *trace;               /* or NULL */
    const tn_probe *probe;         /* what the next training batch measures, or NULL */
};

/* Packs parameters if they changed. bad_node tells whether they are finite. */
tn_status tn_engine_pack(tn_engine *engine);

#endif
