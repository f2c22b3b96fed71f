/* The inside of an engine; shared by engine.c (life and access), batch.c (batches in, results out, chunks),
 * step.c (training), gradient_sums.c (gradients of chunks), ranks.c (several processes), average.c and
 * probe.c. */
#ifndef TN_ENGINE_STATE_H
#define TN_ENGINE_STATE_H

#include "base/pool.h"
#include "comm/comm.h"
#include "engine/executor.h"
#include "engine/gradient_tree.h"
#include "taunet/engine.h"

/* What a batch reads. On a backend with host memory, images, targets and labels are those of the batch. */
typedef struct tn_inputs {
    float *images; /* [chunks][chunk_floats], micro_batch images each; with host memory: a short last chunk */
    size_t chunk_floats;
    float *targets;     /* [chunks * micro_batch][classes] */
    float *row_weights; /* [chunks * micro_batch], 0 for padding */
    int *labels;        /* [chunks * micro_batch] */
    float *rates;       /* [TN_GROUP_FIXED]: learning rates of the optimizer groups */
} tn_inputs;

/* Where values that are not finite are noted: in outputs (and, behind those of the nodes, in the images), in
 * batch statistics, in gradients (and scalar gradients), in parameters. */
typedef enum tn_flag_kind {
    TN_FLAG_OUTPUT,
    TN_FLAG_STATISTICS,
    TN_FLAG_GRADIENT,
    TN_FLAG_PARAMETER,
    TN_FLAG_KINDS
} tn_flag_kind;

/* What a batch leaves behind for the host: one piece of backend memory. */
typedef struct tn_report {
    float *row_loss; /* [chunks * micro_batch] */
    int *row_rank;   /* [chunks * micro_batch] */
    int *flags;      /* [TN_FLAG_KINDS][workers][node_count + 1] */
    int *stop;       /* one: an update must not happen */
} tn_report;

/* What distinguishes steps that a backend records; in the order of its slots. */
typedef struct tn_recording {
    int rows, chunks;
    bool raw, labels, update;
    float momentum, decay;
    tn_device_work work; /* that it holds */
} tn_recording;

/* Result of one row of a batch. */
typedef struct tn_row {
    float loss;
    int rank; /* -1 where there are no labels */
} tn_row;

/* How the gradients that a segment makes in its buffers are cut: bucket i, bounds[i] up to bounds[i + 1], is
 * complete behind step last_step[i] of the program. */
typedef struct tn_buckets {
    int count;
    int last_step[TN_BUCKETS_MAX];
    size_t bounds[TN_BUCKETS_MAX + 1];
} tn_buckets;

/* The gradients of one segment on their way. */
typedef struct tn_gradient_lane {
    tn_gradient_tree *tree;
    tn_reduction *reductions[TN_BUCKETS_MAX]; /* with other processes */
    int segment;                              /* whose gradients they are; -1: none are under way */
    int started;                              /* buckets whose sum over the processes has begun */
} tn_gradient_lane;

#define TN_LANES 2

/* A step on its way. */
typedef struct tn_flight {
    tn_batch batch; /* its counts, and whether there are labels: the arrays are the caller's again */
    bool update;
    int slot;            /* of the report that is fetched */
    tn_device_work work; /* of the processes' devices together */
} tn_flight;

/* Weights whose gradients, floats first .. first + count of the flat buffer, are summed together over the
 * processes' devices: they are there behind step last_step of the training program. */
typedef struct tn_device_bucket {
    int last_step;
    size_t first, count;
} tn_device_bucket;

/* Which chunks of a batch are this process's. */
typedef struct tn_batch_share {
    int first, count; /* chunks */
    int chunks, rows; /* of the whole batch */
} tn_batch_share;

struct tn_engine {
    const tn_model *model;
    tn_backend *backend;
    tn_pool *pool;
    tn_executor *executor;
    float *average; /* [param_floats + state_floats], or NULL: see average.c */
    bool average_begun, average_used;
    tn_buckets *buckets; /* [segments of the training program]; NULL without training */
    tn_gradient_lane lanes[TN_LANES];
    int lane_count, next_lane;        /* no lane where the backend sums gradients itself */
    tn_device_bucket *device_buckets; /* device_sums.c; NULL without other processes' devices */
    int device_bucket_count, next_bucket;
    bool connected; /* to the other processes */
    void *stream;   /* of the backend, once the processes' devices are joined */
    tn_flat flat;
    int64_t *norm_batches;        /* [state_count] */
    tn_engine_config config;      /* resolved: threads and micro_batch are set */
    int chunks;                   /* most chunks of a batch in this process */
    int whole_chunks;             /* most chunks of a batch */
    int ranks;                    /* processes that share a batch; 0 when this one works alone */
    int *first_chunk, *first_row; /* [ranks + 1]: of the batch at hand */
    tn_row *rows;                 /* [whole_chunks * micro_batch] */
    char device[128];
    size_t memory[TN_MEMORY_USES]; /* bytes */
    bool packed;                   /* the packed parameters are those of flat.values */
    bool eval_loaded;              /* norm plans hold the running statistics */
    int bad_node;                  /* node whose packed parameters are not finite, or -1 */
    tn_inputs inputs;
    tn_report report, seen; /* in backend memory, and as the host sees it: the same with host memory */
    size_t report_bytes;
    float *row_weights; /* [chunks * micro_batch], of the host */
    tn_recording recordings[TN_RECORD_SLOTS];
    int recording_count;               /* ever made; the oldest is forgotten first */
    tn_flight flights[TN_FETCH_SLOTS]; /* in the order of their steps */
    int flight_count, next_fetch;
    int watched;           /* parameter, or -1 */
    tn_trace *trace;       /* or NULL */
    const tn_probe *probe; /* what the next training batch measures, or NULL */
};

/* A batch on its way through the engine. */
typedef struct tn_batch_run {
    tn_engine *engine;
    const tn_batch *batch;
    bool training;
    int segment;
    tn_batch_share share;
    tn_gradient_lane *lane; /* of this segment's gradients, or NULL */
    float *logits;          /* of the host, or NULL */
} tn_batch_run;

tn_batch_share tn_engine_share(const tn_engine *engine, const tn_batch *batch);

/* ranks.c. Without other processes these do nothing (or, gather_rows, what there is to do alone). */
tn_status tn_ranks_check_share(const tn_engine *engine, const tn_batch *batch);
tn_status tn_ranks_gather_sums(const tn_batch_run *run, int node);
tn_status tn_ranks_sum_norms(tn_engine *engine, const tn_batch *batch);
tn_status tn_ranks_share_flags(tn_engine *engine);
tn_status tn_ranks_gather_rows(tn_engine *engine, const tn_batch *batch, const tn_row **out);
tn_status tn_ranks_gather_probe(tn_engine *engine, double *sums, size_t doubles);

/* gradient_sums.c: lanes for an engine that trains. */
tn_status tn_sums_create(tn_engine *engine);
void tn_sums_free(tn_engine *engine);
/* Before and after the chunks of a segment; beside them, where there are other processes, tn_sums_aside with
 * the tn_batch_run as its context. */
tn_status tn_sums_begin(tn_batch_run *run);
tn_status tn_sums_aside(void *context, double *pause);
tn_status tn_sums_end(tn_batch_run *run);
/* A chunk has passed a step of backward. */
void tn_sums_bring(const tn_batch_run *run, const tn_chunk *chunk, int step, int worker);
/* Behind the last segment: waits for what is under way, and all gradients are in the flat buffers. */
tn_status tn_sums_finish(tn_engine *engine);

/* device_sums.c, for backends with memory of their own: without other processes these do nothing. */
tn_status tn_device_sums_create(tn_engine *engine);
/* Joins the processes' devices, all processes together; nothing the second time. */
tn_status tn_device_sums_connect(tn_engine *engine);
/* Before the chunks of a batch. */
tn_status tn_device_sums_begin(const tn_batch_run *run);
/* The last chunk, or a process that has none, has passed a step: what is complete is summed from now on. */
tn_status tn_device_sums_passed(const tn_batch_run *run, int step);
/* Behind the last segment: the rest, and what the computation goes on with waits for all. */
tn_status tn_device_sums_finish(const tn_batch_run *run);
/* Batch norm over all processes: sums the moments of a norm before its merge, and has one process bring the
 * gradients that all have behind it. */
tn_status tn_device_sums_moments(const tn_batch_run *run, int node);
tn_status tn_device_sums_keep_one(const tn_batch_run *run, const tn_segment *segment);

/* Packs parameters if they changed, and sets bad_node. */
tn_status tn_engine_pack(tn_engine *engine);
/* Issues the packing alone. */
tn_status tn_engine_issue_pack(tn_engine *engine);

/* Averages start from the weights of the first step; nothing without averages. */
tn_status tn_engine_begin_average(tn_engine *engine);
/* Takes `count` values of parameters and statistics, counted through both, into their average. */
tn_status tn_engine_average(tn_engine *engine, size_t from, size_t count);

/* Checks a batch and brings it to the backend. */
tn_status tn_engine_begin(tn_engine *engine, const tn_batch *batch);
/* Runs chunk `index` through a segment; a tn_pool_body of a tn_batch_run. */
tn_status tn_engine_run_chunk(void *context, int index, int worker);
/* Brings the report to the host and adds up the results of the batch. */
tn_status tn_engine_read_report(tn_engine *engine);
/* The same in two halves, for asynchronous backends; with it comes the watched value. */
tn_status tn_engine_fetch_report(tn_engine *engine, int slot);
tn_status tn_engine_take_report(tn_engine *engine, int slot, double *watched);
/* TN_ERR_USAGE while steps are on their way. */
tn_status tn_engine_check_idle(const tn_engine *engine);
tn_status tn_engine_add_results(tn_engine *engine, const tn_batch *batch, tn_result *result);

/* Flags of one kind and worker, in backend memory; whether one of a node is set, as the host saw it last. */
int *tn_engine_flags(const tn_engine *engine, tn_flag_kind kind, int worker);
bool tn_engine_flagged(const tn_engine *engine, tn_flag_kind kind, int node);
/* The failure that names the layer of bad_node. */
tn_status tn_engine_fail_weights(const tn_engine *engine);

/* What a backend that prepares itself is given. */
tn_step_memory tn_engine_step_memory(const tn_engine *engine);

const tn_node_ops *tn_engine_node_ops(const tn_engine *engine, int node);
void tn_engine_trace_work(tn_engine *engine, int worker, const char *name, const char *category,
                          double start);

#endif
