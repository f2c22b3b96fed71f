/* What a device must be able to do: a table of typed functions for memory, for flat parameter buffers and for
 * each kind of node. A backend plans a node once for a fixed chunk of rows and then executes it on any
 * worker; it knows nothing of graphs, schedules or training.
 *
 * A chunk is a fixed number of images that goes through a node together. Activations are NHWC, on the CPU in
 * float32; another backend may store them otherwise behind the same pointers (tn_backend_ops.element_bytes).
 * Rows of a chunk at and beyond args.rows are padding: their activations are finite, their gradients zero,
 * and they take no part in any statistic.
 *
 * All pointers but those said to be of the host are memory of the backend. A backend may be asynchronous: its
 * calls then only issue work, in order, and `download` waits for it. */
#ifndef TN_BACKEND_BACKEND_H
#define TN_BACKEND_BACKEND_H

#include "base/fail.h"
#include "base/text.h"
#include "model/graph.h"
#include "taunet/engine.h"

typedef struct tn_backend tn_backend;

/* At most this many gradients flow into one tensor. */
#define TN_PARTS_MAX 4

/* Operands of one node on one chunk. Buffers belong to the executor; unused ones are NULL. A linear layer
 * that adds its own input (tn_node_adds_own_input) has no r: it computes with s W + I, and dx includes what
 * flows through the residual. */
typedef struct tn_args {
    int worker, chunk;
    int rows;                      /* rows that count */
    const float *x, *r;            /* input, residual; r in backward: see gate */
    float *y;                      /* output */
    float *inner;                  /* of a span: tn_plan.inner_bytes; NULL where nothing is to be kept */
    const float *dy[TN_PARTS_MAX]; /* dL/dy is the sum of these */
    int dy_count;
    float *dz; /* gradient before the activation: always the buffer of dy[0], which may be overwritten. It
                  is there already where dy_count is 0: the step before has made it (gate). */
    const struct tn_plan *gate; /* backward: the node that made x, when dx is to become its dz at once: its
                                   mask times the sum of dx and r (r NULL: dx alone), with its sums; or
                                   NULL */
    float *dx;      /* gradient of the input; NULL when nobody needs it. Overwritten; may be dz for norm, else
                       distinct. */
    float *grad;    /* grad_floats of this node's own gradients for this chunk; overwritten */
    void *scratch;  /* tn_plan.scratch_bytes */
    int *nonfinite; /* set to 1 when a value that is not finite was seen in y */
    int *x_nonfinite;           /* the same for x: set by forward of plans that say checks_input */
    const struct tn_flat *flat; /* norm and loss excepted: see tn_plan.grad_floats */
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
    size_t grad_floats;         /* of args.grad. A backend that runs chunks one after the other may keep this
                                   0, and write to (chunk 0) or add to args.flat->grads and sums itself. */
    size_t scratch_bytes;       /* of args.scratch */
    size_t inner_bytes;         /* of a span: what forward keeps of its inside for backward, in args.inner */
    size_t bytes;               /* memory held by the plan itself: packed weights, statistics */
    bool checks_input;          /* forward looks at x, see tn_args.x_nonfinite */
    char implementation[3][48]; /* forward, backward data, backward weights; "" where there is none */
} tn_plan;

/* What a step reads and leaves beside the flat buffers, in backend memory. */
typedef struct tn_step_memory {
    int *gradient_flags, *parameter_flags; /* [node_count + 1]: of nodes, and of scalars' gradients */
    const int *flags;                      /* [flag_count]: all there are */
    int flag_count;
    int *stop;
    const float *rates; /* [TN_GROUP_FIXED]: learning rates of the optimizer groups */
} tn_step_memory;

/* Flat host- or device-resident buffers of one training state. */
typedef struct tn_flat {
    float *values, *grads, *momentum; /* param_floats each */
    float *sums;                      /* [node_count][3]: sum of dz, sum of dy, <G, W>; filled by collect */
    float *state;                     /* state_floats: running means and variances */
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
    /* Whether backward can make the dz of `maker`, the node that made the input (args.gate); asked when all
     * nodes and spans are planned. NULL: no. */
    bool (*gates)(const tn_plan *plan, const tn_plan *maker);

    /* norm only: sums of one chunk of x, ... */
    tn_status (*statistics)(tn_plan *plan, const tn_args *args);
    /* ... merged in chunk order into mean and variance; updates the running ones in `flat`. Sets *nonfinite
     * when one is not finite. `total_rows` counts the rows of all chunks. */
    tn_status (*merge_statistics)(tn_plan *plan, int chunks, int total_rows, const tn_flat *flat,
                                  int *nonfinite);
    /* Makes dz from dy and y, and the sums of one chunk that backward needs, ... */
    tn_status (*reduce)(tn_plan *plan, const tn_args *args);
    /* ... merged in chunk order; writes the gradients of gamma and beta to flat.grads. */
    tn_status (*merge_reduce)(tn_plan *plan, int chunks, int total_rows, const tn_flat *flat);
    /* The sums of chunks that `statistics` and `reduce` leave, [chunks][*doubles], for processes that
     * exchange them before a merge. */
    double *(*sums)(tn_plan *plan, size_t *doubles);
    /* Takes running means and variances for evaluation. */
    tn_status (*load_statistics)(tn_plan *plan, const tn_flat *flat);

    /* Packs the parameters a node computes with (scaled by s) after an update; *nonfinite is set when a value
     * is not finite. May run on any worker. */
    tn_status (*pack)(tn_plan *plan, int worker, const tn_flat *flat, int *nonfinite);
    /* Takes the gradient of the whole batch into flat.grads (dW = s G) and flat.sums (<G, W> where s is
     * learnable). It is grad + other, or grad alone where other is NULL; grad may be overwritten. Sets
     * *nonfinite when a value is not finite. */
    tn_status (*collect)(tn_plan *plan, int worker, float *grad, const float *other, const tn_flat *flat,
                         int *nonfinite);
} tn_node_ops;

/* Any pointer of tn_node_ops may be NULL where the kind needs no such step. */
typedef struct tn_backend_ops {
    const char *name;
    bool host_memory;    /* the backend's memory is the host's: nothing needs uploads or downloads */
    int workers_max;     /* 0: any number */
    unsigned precisions; /* a bit for each tn_precision it has */
    /* Number of devices that can be used now; 0 is not an error. */
    int (*device_count)(void);
    /* Why there is none; for devices that may be missing. */
    const char *(*absence)(void);
    tn_status (*open)(int device, int workers, tn_precision precision, tn_backend **out);
    void (*close)(tn_backend *backend);
    /* Called by every worker thread before its first work. */
    void (*thread_start)(void);
    /* One line about the device and its libraries, into text. */
    void (*describe)(int device, char *text, size_t size);
    tn_status (*alloc)(tn_backend *backend, void *out, size_t bytes, const char *what); /* zeroed */
    void (*release)(tn_backend *backend, void *memory);
    /* From the host: `from` may be reused at once. To the host: waits for all work issued before. */
    tn_status (*upload)(tn_backend *backend, void *to, const void *from, size_t bytes);
    tn_status (*download)(tn_backend *backend, void *to, const void *from, size_t bytes);
    /* Zeroes memory. */
    tn_status (*clear)(tn_backend *backend, void *memory, size_t bytes);
    /* `count` values of an activation as floats of the host. */
    tn_status (*read)(tn_backend *backend, const tn_model *model, int tensor, float *to, const float *from,
                      size_t count);
    /* Sets *nonfinite when one of the floats is not finite. */
    tn_status (*check)(tn_backend *backend, const float *values, size_t count, int *nonfinite);
    /* to[i] += from[i] */
    void (*add)(tn_backend *backend, float *to, const float *from, size_t count);
    /* mean[i] += rate (values[i] - mean[i]); nothing where *stop is set. */
    tn_status (*average)(tn_backend *backend, float *mean, const float *values, size_t count, float rate,
                         const int *stop);
    /* Sum over i of (parts[0][i] + parts[1][i] + ... - shift)^2 of gradients or outputs of `tensor`, in a
     * fixed order, to the host; count >= 1. For probes. */
    tn_status (*square_sum)(tn_backend *backend, const tn_model *model, int tensor, const float *const *parts,
                            int count, float shift, size_t floats, double *out);

    /* What follows is for backends with the host's memory; asynchronous ones have finish_all and update_all
     * in its place. */

    /* Gradients of scalar parameters from the sums of nodes, in node order (architecture.md 3.3):
     *   terms  dparam += factor * (scaled ? s : 1) * sum dz,     carry  dparam += sum dy,
     *   scale  dparam += factor * (<G, W> + sum over scaled terms of value * sum dz);
     * sets *nonfinite when one is not. */
    tn_status (*scalar_gradients)(tn_backend *backend, const tn_model *model, const tn_flat *flat,
                                  int *nonfinite);
    /* Sets *stop when one of the flags is set. */
    tn_status (*any)(tn_backend *backend, const int *flags, int count, int *stop);
    /* v = momentum v + g + decay w; w -= *lr v (models.md 1.4); nothing where *stop is set. */
    tn_status (*sgd)(tn_backend *backend, float *values, const float *grads, float *momentum, size_t count,
                     const float *lr, float mu, float decay, const int *stop);

    /* What follows is for asynchronous backends; NULL elsewhere. */

    /* Takes the plans of all nodes of the model, in their order, and what the calls below read and set.
     * *held_bytes: what the backend itself holds of its memory then, beside plans and what `alloc` gave. */
    tn_status (*prepare)(tn_backend *backend, const tn_model *model, tn_plan *const *plans,
                         const tn_flat *flat, const tn_step_memory *memory, size_t *held_bytes);
    /* What pack of nodes does, for all nodes. */
    tn_status (*pack_all)(tn_backend *backend);
    /* What collect of nodes has to do, for all nodes, then scalar_gradients, then `any` of all flags. */
    tn_status (*finish_all)(tn_backend *backend);
    /* sgd of both groups, then pack_all. */
    tn_status (*update_all)(tn_backend *backend, float mu, float decay);
    /* Nodes may leave their gradients and sums in parts: brings all those of the steps issued so far to
     * flat.grads and flat.sums. keep = false forgets them, as those of a step that failed. NULL: nodes leave
     * nothing. */
    tn_status (*settle)(tn_backend *backend, bool keep);
    /* How many nodes from `node` on this backend computes as one operation, a span, on chunks of chunk_rows
     * images; 1: the node alone. NULL: always. Of a span only the last output is read by nodes outside, and
     * only the first node's input, which its other nodes may read too, comes from there. */
    int (*span)(const tn_backend *backend, const tn_model *model, int node, int chunk_rows);
    /* Plans a span from the plans of all nodes, of which its own nodes' are from then on only looked at. Its
     * head names the first node. */
    tn_status (*span_plan)(tn_backend *backend, const tn_model *model, int node, int count, int chunks,
                           bool training, tn_plan *const *plans, tn_plan **out);
    /* free, forward and backward of spans: args.x is that of the first node, y and dy those of the last,
     * nonfinite the flag of the first, with those of the others behind it; dx is the gradient of x through
     * all nodes that read it. dz is NULL. After backward x, inner and what stands in the scratch memory stay
     * while the next step runs, if that is a span's backward of the same worker: it may take over work. A
     * span that ends with a loss has the logits as y, no inner and no dy: its backward does all, forward
     * alone is for evaluation. */
    const tn_node_ops *spans;
    /* What would compute which layers in a training step on a device that need not be there, named as its
     * backend names it, with predicted costs, as text; NULL where there is nothing to choose. TN_ERR_USAGE.
     */
    tn_status (*explain)(const tn_model *model, tn_precision precision, const char *device, int rows,
                         tn_string *text);
    /* Bytes of one value of a tensor's activation; NULL: those of a float. */
    size_t (*element_bytes)(const tn_backend *backend, const tn_model *model, int tensor);
    /* Copies images to the device, for batches whose raw.pixels they are (data.h); *added is how many bytes,
     * 0 when they are there. */
    tn_status (*hold)(tn_backend *backend, const uint8_t *pixels, size_t bytes, size_t *added);
    /* Makes the images of a batch that has bytes: chunk_rows of each chunk, zeros behind the last row; chunks
     * are chunk_floats apart. The batch's memory may be used again at once. */
    tn_status (*make_images)(tn_backend *backend, const tn_batch *batch, int chunk_rows, size_t chunk_floats,
                             float *images);
    /* Copies memory to the host, to `at` in slot's memory, behind the work issued so far and without waiting;
     * what is fetched to 0 comes first, is the largest, and takes the slot from its last use. */
    tn_status (*fetch)(tn_backend *backend, int slot, size_t at, const void *from, size_t bytes);
    /* Waits for what was fetched; *memory stays until the slot is used again. */
    tn_status (*fetched)(tn_backend *backend, int slot, const void **memory);
    /* Work issued between record and submit is remembered in `slot` the second time that it comes by, and
     * from then on replayed: *replay says that there is nothing to issue. `fresh` forgets the slot first. */
    tn_status (*record)(tn_backend *backend, int slot, bool fresh, bool *replay);
    tn_status (*submit)(tn_backend *backend, int slot,
                        bool complete); /* not complete: an error came between */
    /* The stream to which work is issued, for sums over processes (comm.h), whose device becomes that of the
     * calling thread. */
    tn_status (*stream)(tn_backend *backend, void **out);
    /* values[i] *= factor */
    tn_status (*scale)(tn_backend *backend, float *values, size_t count, float factor);
    /* A named range in the device's profiler: a phase of a step, or the work of a layer in it. */
    void (*range_begin)(const char *phase, const char *layer);
    void (*range_end)(void);

    const tn_node_ops *nodes[TN_NODE_KINDS];
} tn_backend_ops;

struct tn_backend {
    const tn_backend_ops *ops;
    int workers;
};

#define TN_RECORD_SLOTS 4
#define TN_FETCH_SLOTS  2

/* The backends that this build has, in the order in which "auto" tries them; NULL behind the last. */
const tn_backend_ops *tn_backend_at(int index);

/* The registry: resolves a --device value ("auto", "cpu", "cuda", "cuda:N") to a table and a device number.
 * TN_ERR_DEVICE where there is none, TN_ERR_USAGE where it has not the precision. */
tn_status tn_backend_find(const char *device, tn_precision precision, const tn_backend_ops **ops,
                          int *number);

#endif
