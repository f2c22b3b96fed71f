/* What a device must be able to do: a table of typed functions for memory, for flat parameter buffers and for
 * each kind of node. A backend plans a node once for a fixed chunk of rows and then executes it on any
 * worker; it knows nothing of graphs, schedules or training.
 *
 * A chunk is a fixed number of images that goes through a node together. All activations are NHWC float32.
 * Rows of a chunk at and beyond args.rows are padding: their activations are finite, their gradients zero,
 * and they take no part in any statistic. */
#ifndef TN_BACKEND_BACKEND_H
#define TN_BACKEND_BACKEND_H

#include "base/fail.h"
#include "model/graph.h"

typedef struct tn_backend tn_backend;

/* At most this many gradients flow into one tensor. */
#define TN_PARTS_MAX 4

/* Operands of one node on one chunk. Buffers belong to the executor; unused ones are NULL. A linear layer
 * that adds its own input (tn_node_adds_own_input) has no r: it computes with s W + I, and dx includes what
 * flows through the residual. */
typedef struct tn_args {
    int worker, chunk;
    int rows;                      /* rows that count */
    const float *x, *r;            /* input, residual */
    float *y;                      /* output */
    const float *dy[TN_PARTS_MAX]; /* dL/dy is the sum of these */
    int dy_count;
    float *dz;      /* gradient before the activation: always the buffer of dy[0], which may be overwritten */
    float *dx;      /* gradient of the input; NULL when nobody needs it. Overwritten; may be dz for norm, else
                       distinct. */
    float *grad;    /* grad_floats of this node's own gradients for this chunk; overwritten */
    void *scratch;  /* tn_plan.scratch_bytes */
    int *nonfinite; /* set to 1 when a value that is not finite was seen in y */
    /* loss only */
    const float *targets, *row_weights; /* [rows][classes], [rows] */
    float *row_loss;                    /* [rows], not weighted */
    const int *labels;                  /* [rows] */
    int *row_rank;                      /* [rows]: how many classes scored higher than the label */
} tn_args;

/* A node planned on a backend: the head of each backend's own structure. */
typedef struct tn_plan {
    const tn_model *model;
    const tn_node *node;
    size_t grad_floats;         /* of args.grad */
    size_t scratch_bytes;       /* of args.scratch */
    size_t bytes;               /* memory held by the plan itself: packed weights, statistics */
    char implementation[3][48]; /* forward, backward data, backward weights; "" where there is none */
} tn_plan;

/* Flat host- or device-resident buffers of one training state. */
typedef struct tn_flat {
    float *values, *grads, *momentum; /* param_floats each */
    float *sums;  /* [node_count][3]: sum of dz, sum of dy, <G, W>; filled by collect and finish */
    float *state; /* state_floats: running means and variances */
} tn_flat;

typedef struct tn_node_ops {
    /* Plans `node` for chunks of chunk_rows images, `chunks` of them at most (norms keep statistics for
     * each). */
    tn_status (*plan)(tn_backend *backend, const tn_model *model, int node, int chunk_rows, int chunks,
                      bool training, tn_plan **out);
    void (*free)(tn_plan *plan);
    /* y from x and r. For norm: with the statistics of the last merge or load. */
    tn_status (*forward)(tn_plan *plan, const tn_args *args);
    /* dz (unless norm, whose `reduce` made it), dx and grad from x, y and dy. For loss: dx, row_loss and
     * row_rank. */
    tn_status (*backward)(tn_plan *plan, const tn_args *args);

    /* norm only: sums of one chunk of x, ... */
    tn_status (*statistics)(tn_plan *plan, const tn_args *args);
    /* ... merged in chunk order into mean and variance; updates the running ones in `flat`. Returns false in
     * *finite when one is not. `total_rows` counts the rows of all chunks. */
    tn_status (*merge_statistics)(tn_plan *plan, int chunks, int total_rows, const tn_flat *flat,
                                  bool *finite);
    /* Makes dz from dy and y, and the sums of one chunk that backward needs, ... */
    tn_status (*reduce)(tn_plan *plan, const tn_args *args);
    /* ... merged in chunk order; writes the gradients of gamma and beta to flat.grads. */
    tn_status (*merge_reduce)(tn_plan *plan, int chunks, int total_rows, const tn_flat *flat);
    /* Takes running means and variances for evaluation. */
    tn_status (*load_statistics)(tn_plan *plan, const tn_flat *flat);

    /* Packs the parameters a node computes with (scaled by s) after an update; *finite becomes false when a
     * value is not. May run on any worker. */
    tn_status (*pack)(tn_plan *plan, int worker, const tn_flat *flat, bool *finite);
    /* Unpacks a summed gradient buffer into flat.grads (as dL/d(sW)) and flat.sums. */
    tn_status (*collect)(tn_plan *plan, int worker, const float *grad, const tn_flat *flat);
    /* After every rank's contribution is in: dW = s G, and <G, W> where s is learnable. */
    tn_status (*finish)(tn_plan *plan, const tn_flat *flat, bool *finite);
} tn_node_ops;

/* Any pointer of tn_node_ops may be NULL where the kind needs no such step. */
typedef struct tn_backend_ops {
    const char *name;
    /* Number of devices that can be used now; 0 is not an error. */
    int (*device_count)(void);
    tn_status (*open)(int device, int workers, tn_backend **out);
    void (*close)(tn_backend *backend);
    /* Called by every worker thread before its first work. */
    void (*thread_start)(void);
    /* One line about the device and its libraries, into text. */
    void (*describe)(int device, char *text, size_t size);
    tn_status (*alloc)(tn_backend *backend, void *out, size_t bytes, const char *what); /* zeroed */
    void (*release)(tn_backend *backend, void *memory);
    tn_status (*upload)(tn_backend *backend, void *to, const void *from, size_t bytes);
    tn_status (*download)(tn_backend *backend, void *to, const void *from, size_t bytes);
    /* to[i] += from[i] */
    void (*add)(tn_backend *backend, float *to, const float *from, size_t count);
    /* v = momentum v + g + decay w; w -= lr v (models.md 1.4) */
    void (*sgd)(tn_backend *backend, float *values, const float *grads, float *momentum, size_t count,
                float lr, float mu, float decay);
    /* Sum over i of (parts[0][i] + parts[1][i] + ... - shift)^2, in a fixed order; count >= 1. For probes. */
    tn_status (*square_sum)(tn_backend *backend, const float *const *parts, int count, float shift,
                            size_t floats, double *out);
    const tn_node_ops *nodes[TN_NODE_KINDS];
} tn_backend_ops;

struct tn_backend {
    const tn_backend_ops *ops;
    int workers;
};

/* The registry: resolves a --device value ("auto", "cpu", "cuda", "cuda:N") to a table and a device number.
 */
tn_status tn_backend_find(const char *device, const tn_backend_ops **ops, int *number);

#endif
