/* One model planned on one backend for chunks of a fixed number of rows: plans, packed parameters,
 * activations and gradients. Runs segments of a program for one chunk on one worker; knows no batches,
 * optimizers or loops over chunks. What must be merged over chunks (batch-norm statistics) or summed
 * (gradients) is left to the caller between segments. */
#ifndef TN_ENGINE_EXECUTOR_H
#define TN_ENGINE_EXECUTOR_H

#include "engine/program.h"
#include "io/trace.h"

typedef struct tn_executor tn_executor;

typedef struct tn_executor_config {
    int chunk_rows, chunks, workers; /* chunks: the most that one training batch has here */
    int statistics;                  /* chunks for which norms keep statistics; as many, or more */
    bool training;                   /* plan backward too */
    bool recompute;                  /* see tn_program_config */
    bool separate_buffers;           /* for debugging: no two activations share memory */
    bool separate_layers;            /* no spans: every node is an operation of its own */
} tn_executor_config;

/* Plans everything and allocates the arenas. The model must outlive the executor. */
tn_status tn_executor_create(const tn_model *model, tn_backend *backend, const tn_executor_config *config,
                             tn_executor **out);
void tn_executor_free(tn_executor *executor);

/* What to measure while a training batch runs. The sums of a chunk go to places of its own; whoever adds them
 * up in chunk order gets the same bits for any number of workers. */
typedef struct tn_probe {
    int count;            /* of measured nodes */
    const int *place;     /* [node_count]: 0 .. count-1, or -1 where nothing is measured */
    const float *carried; /* [count]: what the stored output has too much */
    double *sums;         /* [chunks of the batch][count][2]: squares of the output, of its gradient */
} tn_probe;

/* What a chunk reads and writes outside the executor. Arrays are those of the chunk's first row. */
typedef struct tn_chunk tn_chunk;
struct tn_chunk {
    int index, rows;     /* index: among those of this process */
    int statistics;      /* where norms keep this chunk's statistics */
    int place;           /* among all chunks of the batch */
    const float *images; /* chunk_rows images in float32; rows beyond `rows` are zeros */
    const float *targets, *row_weights;
    const int *labels;
    float *row_loss;
    int *row_rank;
    float *grads; /* the segment's gradient buffer, or NULL where the backend needs none */
    const tn_flat *flat;
    const tn_probe *probe; /* or NULL */
    /* Called behind each backward step of the program, by its number there. */
    tn_status (*passed)(void *context, const tn_chunk *chunk, int step, int worker);
    void *context;
};

/* The programs: training = forward, loss, backward; evaluation = forward and loss with running statistics. */
const tn_program *tn_executor_program(const tn_executor *executor, bool training);

/* Runs one segment for one chunk. nonfinite[node] is set to 1 where a value that is not finite appeared, and
 * nonfinite[node_count] where one is in the images and tn_executor_checks_images. */
tn_status tn_executor_run(tn_executor *executor, bool training, int segment, const tn_chunk *chunk,
                          int worker, int *nonfinite, tn_trace *trace);

/* Merges what follows a segment. nonfinite[node] is set to 1 for a norm whose statistics are not finite. */
tn_status tn_executor_merge(tn_executor *executor, int segment, int chunks, int rows, const tn_flat *flat,
                            int *nonfinite);

/* Copies the logits of a chunk to the host, after the last segment of the evaluation program and before the
 * worker's next chunk: [rows][classes]. */
tn_status tn_executor_logits(const tn_executor *executor, int worker, int rows, float *logits);

/* All plans, in the order of nodes. */
tn_plan *const *tn_executor_plans(const tn_executor *executor);

tn_plan *tn_executor_plan(const tn_executor *executor, int node);

/* Whether some nodes run as one operation. */
bool tn_executor_has_spans(const tn_executor *executor);

/* Whether the layer that reads the images looks at them. */
bool tn_executor_checks_images(const tn_executor *executor);

/* Sets the bytes held for layers, workers and chunks; known once created. */
void tn_executor_memory(const tn_executor *executor, size_t bytes[TN_MEMORY_USES]);

#endif
