/* A model compiled into a straight list of steps over planned buffers, for one chunk.
 *
 * The list is cut into segments. Within a segment a chunk needs nothing from other chunks; between segments
 * the statistics of one norm node are merged over all chunks. Without batch normalisation a whole training
 * step is a single segment.
 *
 * Every buffer has a lifetime in steps. Buffers that live within one segment are placed in an arena that each
 * worker owns, those that cross a boundary in an arena that each chunk owns; buffers that are never alive
 * together share memory. Outputs of norm nodes without a residual are not kept for backward but computed
 * again from their input; with `recompute`, nothing but the outputs of blocks is kept, and the inside of a
 * block is computed again from them when backward comes to it. */
#ifndef TN_ENGINE_PROGRAM_H
#define TN_ENGINE_PROGRAM_H

#include "backend/backend.h"

typedef enum tn_step_kind {
    TN_STEP_FORWARD,
    TN_STEP_STATISTICS,
    TN_STEP_REDUCE,
    TN_STEP_BACKWARD
} tn_step_kind;

/* Operands are buffers, -1 where there is none. Buffer 0 is the chunk's input images. */
typedef struct tn_step {
    tn_step_kind kind;
    int node;
    int span; /* successive nodes from `node` on that the step computes as one: a span, or 1 */
    int x, r, y, dz, dx;
    int inner; /* of a span: what it keeps of its inside for backward; -1 in evaluation */
    int dy[TN_PARTS_MAX], dy_count;
    int gate;  /* node whose dz dx becomes at once, with r as the other part of dL/dx; -1: dx and r stay parts
                */
    bool made; /* dz is there, in the first of dy, where the step before could gate */
    size_t grad_offset; /* of the node's gradients in the segment's gradient buffer */
} tn_step;

typedef struct tn_buffer {
    int tensor;      /* whose activation it is, or the gradient of it */
    size_t bytes;    /* of a whole chunk */
    int first, last; /* steps */
    bool per_chunk;
    size_t offset; /* bytes, in its arena */
} tn_buffer;

typedef enum tn_merge { TN_MERGE_NONE, TN_MERGE_STATISTICS, TN_MERGE_REDUCE } tn_merge;

typedef struct tn_segment {
    int first, count; /* steps */
    tn_merge merge;   /* what follows the segment, for node merge_node */
    int merge_node;
    size_t grad_floats; /* gradients that each chunk makes in this segment */
} tn_segment;

typedef struct tn_program {
    tn_step *steps;
    int step_count;
    tn_segment *segments;
    int segment_count;
    tn_buffer *buffers;
    int buffer_count;
    size_t worker_bytes, chunk_bytes; /* sizes of the two arenas */
    int output;                       /* buffer with the logits; alive to the end of the last segment */
    size_t step_capacity, segment_capacity, buffer_capacity;
} tn_program;

typedef struct tn_program_config {
    const tn_backend *backend;
    int rows;                  /* of a chunk */
    bool training;             /* forward, loss and backward; else forward and loss with running statistics */
    bool recompute;            /* TN_ERR_USAGE where it would change nothing */
    const int *spans;          /* [node_count]: how many nodes from each on are one operation; NULL: 1 */
    const size_t *inner_bytes; /* [node_count]: what the span that begins there keeps of its inside */
    const bool *gates;         /* [node_count]: whether backward of a node can make the dz of the node that
                                  made its input (tn_node_ops.gates); NULL: no */
    const size_t *grad_floats; /* [node_count]: how many gradients each node makes */
} tn_program_config;

/* Compiles `model`. Free with tn_program_free. */
tn_status tn_program_compile(const tn_model *model, const tn_program_config *config, tn_program *out);
void tn_program_free(tn_program *program);

#endif
