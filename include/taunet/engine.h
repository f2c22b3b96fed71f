/* An engine runs a model on a device: it holds the weights and turns batches into losses, gradients and
 * updates.
 *
 * A batch is cut into chunks of a fixed number of images (it depends on the model and image size alone). Each
 * chunk runs on one thread, and the gradients of chunks are summed along one fixed binary tree, so results
 * have the same bits for any number of threads. One call at a time per engine.
 *
 * Several processes, each with an engine of the same `comm`, may share the work: each gives its share of a
 * batch (data.h), at the same time, and all get the results of the whole batch. The gradients have the bits
 * of a single process; with batch norm only under sync_bn, else statistics are those of a share and running
 * statistics an average over shares. */
#ifndef TAUNET_ENGINE_H
#define TAUNET_ENGINE_H

#include "taunet/data.h"
#include "taunet/model.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct tn_engine tn_engine;

/* How a device stores activations and multiplies: float32, float32 with products of tf32, bfloat16. Weights,
 * their gradients and all sums are float32 in each. The CPU has fp32 alone. */
typedef enum tn_precision { TN_PRECISION_FP32, TN_PRECISION_TF32, TN_PRECISION_BF16 } tn_precision;

/* Zero-initialise, then set what differs from the defaults given in brackets. */
typedef struct tn_engine_config {
    const char *device;     /* "auto", "cpu", "cuda", "cuda:N" ["auto"] */
    int threads;            /* worker threads [one per processor] */
    int micro_batch;        /* images in a chunk [chosen from the model and image size] */
    int max_batch;          /* rows of the largest batch that will be given; needed */
    bool training;          /* plan backward too; without it only tn_engine_eval works */
    tn_precision precision; /* TN_ERR_USAGE where the device has it not [fp32] */
    bool recompute; /* for training: keep the outputs of blocks alone and compute what lies inside again
                       for backward; the same bits with less memory, most of all with batch norm [false] */
    double average; /* for training: keep a running average of weights and batch-norm statistics, this
                       share of it at each step, below 1 [0: none] */
    bool separate_buffers; /* for debugging: no two activations share memory [false] */
    bool separate_layers;  /* every layer is an operation of its own, none part of a stage: what
                              tn_engine_probe  needs on a device that has stages [false] */
    struct tn_comm *comm;  /* the processes that work on each batch together (src/comm/comm.h) [alone] */
    bool sync_bn;          /* batch statistics are those of the whole batch, not of each share [false] */
} tn_engine_config;

/* Plans the model and allocates all memory. The model must outlive the engine. Weights start at zero:
 * initialise or set them. Free with tn_engine_free. TN_ERR_MEMORY says what was asked for. */
tn_status tn_engine_create(const tn_model *model, const tn_engine_config *config, tn_engine **out);
void tn_engine_free(tn_engine *engine);

/* Whether the engine's device makes images of bytes (tn_batch.raw). */
bool tn_engine_takes_raw(const tn_engine *engine);

/* Copies images to the device, for batches whose raw.pixels they are; `pixels` must stay allocated as long as
 * the engine. Twice the same does nothing. TN_ERR_MEMORY where the device has not the room. */
tn_status tn_engine_hold_images(tn_engine *engine, const uint8_t *pixels, size_t bytes);

/* Fresh weights, a pure function of (model, seed); momentum zero, running statistics 0 and 1. */
tn_status tn_engine_initialise(tn_engine *engine, uint64_t seed);

/* What one batch gave. */
typedef struct tn_result {
    double loss; /* sum over rows of their losses; divide by rows for the mean */
    int rows;
    int top1, top5; /* rows whose label scored highest, among the five highest */
    double watched; /* of training: see tn_engine_watch */
} tn_result;

/* Forward and backward of one batch in training mode: computes the gradient of the mean loss and updates the
 * running statistics, not the weights. TN_ERR_DIVERGED names the layer where a value that is not finite first
 * appeared; the weights are then untouched. */
tn_status tn_engine_gradients(tn_engine *engine, const tn_batch *batch, tn_result *result);

/* SGD with momentum on the gradients of the last batch: v = momentum v + g + weight_decay w, w -= lr v;
 * scalar parameters take lr * scalar_lr (models.md 1.4). */
typedef struct tn_sgd {
    double lr, momentum, weight_decay, scalar_lr;
} tn_sgd;
tn_status tn_engine_update(tn_engine *engine, const tn_sgd *sgd);

/* Both in one: tn_engine_gradients and, unless something was not finite, tn_engine_update. A device runs it
 * without waiting for the host in between. */
tn_status tn_engine_step(tn_engine *engine, const tn_batch *batch, const tn_sgd *sgd, tn_result *result);

/* tn_engine_step in two halves, so that a device need not wait for the host between steps: `issue` hands it a
 * step, and the batch may be overwritten at once; `finish` waits for the oldest step issued and gives its
 * result. Up to tn_engine_depth steps may be on their way: 1 where `issue` does all of the work, as on the
 * CPU. A step that fails takes those behind it along: nothing of them reaches weights, momentum or averages,
 * only running statistics have seen their batches. Between issue and finish, the calls that give a result of
 * their own (tn_engine_step, gradients, update, probe, eval) are TN_ERR_USAGE, and tn_engine_get sees the
 * weights behind all steps issued. */
tn_status tn_engine_issue(tn_engine *engine, const tn_batch *batch, const tn_sgd *sgd);
tn_status tn_engine_finish(tn_engine *engine, tn_result *result);
int tn_engine_depth(const tn_engine *engine);

/* From now on tn_result.watched is the first value of this parameter behind the step; -1: none, 0. */
void tn_engine_watch(tn_engine *engine, int parameter);

/* Norms that a layer has in one batch: of its output, and of the gradient of the mean loss with respect to
 * it; Frobenius norms over all rows and values. An input bias that travels with the output (graph.h, "carry")
 * is not counted in it. */
typedef struct tn_norms {
    double output, gradient;
} tn_norms;

/* Runs a batch as tn_engine_gradients does and measures `count` layers on the way: `layers` are indices as in
 * tn_model_layer, each at most once, no loss layer. Weights, momentum and running statistics stay as they
 * are; the gradients of the last batch are replaced. The norms have the same bits for any number of threads.
 * TN_ERR_USAGE where layers run together: see tn_engine_config.separate_layers. */
tn_status tn_engine_probe(tn_engine *engine, const tn_batch *batch, int count, const int *layers,
                          tn_result *result, tn_norms *norms);

/* Forward only, with running statistics. logits: [rows][classes] or NULL. */
tn_status tn_engine_eval(tn_engine *engine, const tn_batch *batch, tn_result *result, float *logits);

/* With tn_engine_config.average: puts the averages in the place of weights and batch-norm statistics
 * (`use`), so that evaluation and all access below sees, and sets, the averages; or puts both back. Averages
 * are average = share * average + (1 - share) * weights after each step, from the weights of the first step
 * on. There is no training while they are in use: TN_ERR_USAGE. */
tn_status tn_engine_use_average(tn_engine *engine, bool use);

/* Parameters by index, in the order in which the model lists them. `kind` selects values, gradients of the
 * last batch, or momentum; data are `count` floats in the parameter's shape. */
typedef enum tn_tensor_kind { TN_VALUES, TN_GRADIENTS, TN_MOMENTUM } tn_tensor_kind;
typedef struct tn_parameter_info {
    const char *name; /* owned by the model */
    int rank, dims[4];
    size_t count;
    bool scalar_group;
} tn_parameter_info;
int tn_engine_parameter_count(const tn_engine *engine);
tn_parameter_info tn_engine_parameter(const tn_engine *engine, int index);
int tn_engine_find_parameter(const tn_engine *engine, const char *name); /* -1 when there is none */
tn_status tn_engine_get(tn_engine *engine, tn_tensor_kind kind, int parameter, float *data);
tn_status tn_engine_set(tn_engine *engine, tn_tensor_kind kind, int parameter, const float *data);

/* Batch-norm state by norm index: running mean and variance, `channels` floats each, and batches seen. */
typedef struct tn_norm_info {
    const char *name; /* prefix such as "layer1.0.bn1" */
    int channels;
} tn_norm_info;
int tn_engine_norm_count(const tn_engine *engine);
tn_norm_info tn_engine_norm(const tn_engine *engine, int index);
tn_status tn_engine_get_norm(tn_engine *engine, int index, float *mean, float *var, int64_t *batches);
tn_status tn_engine_set_norm(tn_engine *engine, int index, const float *mean, const float *var,
                             int64_t batches);

/* With several processes: gives all of them the weights, momentum and running statistics of rank 0. */
tn_status tn_engine_broadcast(tn_engine *engine);

/* A hash (XXH64) of weights, momentum and running statistics. */
tn_status tn_engine_hash(tn_engine *engine, uint64_t *out);

/* Facts for summaries: bytes held, images per chunk, threads, the device in words, and the implementations
 * that the backend chose for a layer (forward, backward data, backward weights; "" where there is none). */
size_t tn_engine_bytes(const tn_engine *engine);
/* The same by what the bytes are for. */
typedef enum tn_memory_use {
    TN_MEMORY_WEIGHTS,   /* parameters, batch-norm state, their averages */
    TN_MEMORY_OPTIMIZER, /* gradients and momentum */
    TN_MEMORY_LAYERS,    /* what layers compute with: packed weights, statistics */
    TN_MEMORY_WORKERS,   /* activations that live while one chunk is computed, and scratch, of all workers; on
                            devices also workspaces, tables and parts of gradients */
    TN_MEMORY_CHUNKS,    /* activations of the whole batch: those that batch norms make wait for each other */
    TN_MEMORY_SUMS,      /* gradients of chunks on their way to the sum */
    TN_MEMORY_BATCH,     /* images and results */
    TN_MEMORY_USES
} tn_memory_use;
size_t tn_engine_memory(const tn_engine *engine, tn_memory_use use);
/* "weights", "gradients and momentum", ... */
const char *tn_memory_use_name(tn_memory_use use);
int tn_engine_chunk_rows(const tn_engine *engine);
int tn_engine_threads(const tn_engine *engine);
const char *tn_engine_device(const tn_engine *engine);
const char *tn_engine_implementation(const tn_engine *engine, int layer, int which);
const tn_model *tn_engine_model(const tn_engine *engine);

/* Records a timeline from now on: what each worker does, and `begin`/`end` pairs added by the caller on its
 * own row; writes it as a Chrome trace. */
tn_status tn_engine_trace_start(tn_engine *engine);
void tn_engine_trace_add(tn_engine *engine, const char *name, double start_seconds, double end_seconds);
tn_status tn_engine_trace_write(tn_engine *engine, const char *path); /* and stops recording */

#ifdef __cplusplus
}
#endif
#endif
