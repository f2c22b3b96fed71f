/* Everything taunet asks of oneDNN, behind one small interface: a port to another version touches dnn.c
 * alone.
 *
 * Written for oneDNN 2.6. Primitives are planned once and run on any worker thread; each worker has its own
 * memory objects and brings its own scratchpad. Activations are NHWC, weights of convolutions are in the
 * layout oneDNN prefers, those of linear layers are plain: its kernels for blocked weights are no faster, and
 * all that happens to the weights between two batches then is arithmetic alone. */
#ifndef TN_CPU_DNN_H
#define TN_CPU_DNN_H

#include <stdbool.h>
#include <stddef.h>

#include "base/fail.h"

#define DNN_ARGS_MAX 8

/* A planned primitive and its memory objects for every worker. */
typedef struct tn_dnn_kernel {
    void *primitive; /* dnnl_primitive_t, NULL when the kernel does not exist */
    int arg_count;
    int arg_ids[DNN_ARGS_MAX];
    void **memories; /* [workers][arg_count], dnnl_memory_t */
    size_t scratch_bytes;
    int workers;
    char implementation[48];
} tn_dnn_kernel;

/* A convolution (or, with linear set, an inner product on 1x1 images) and all that training needs of it. */
typedef struct tn_dnn_shape {
    bool linear;
    int rows, in_channels, out_channels;
    int in_height, in_width, out_height, out_width;
    int kernel, stride, padding;
    /* Epilogue of forward, applied in this order. */
    bool bias, residual, relu, carry;
    bool need_weight_gradient, need_data_gradient;
} tn_dnn_shape;

typedef struct tn_dnn_conv {
    tn_dnn_kernel
        forward; /* x, weights, bias, y, residual, carry, scratch (those that exist, in this order) */
    tn_dnn_kernel backward_data;    /* dz, weights, dx, scratch */
    tn_dnn_kernel backward_weights; /* x, dz, packed gradient, scratch */
    /* from, to. There is none where the layout is the plain one, and no pack_backward where backward_data
     * reads what forward reads. */
    tn_dnn_kernel pack_forward, pack_backward, unpack;
    /* Of the packed buffers; no backward weights where there is no pack_backward. */
    size_t forward_weight_floats, backward_weight_floats, grad_floats;
} tn_dnn_conv;

/* Plans all kernels of a shape. On failure nothing is left behind. */
tn_status tn_dnn_conv_plan(const tn_dnn_shape *shape, int workers, tn_dnn_conv *out);
void tn_dnn_conv_free(tn_dnn_conv *conv);

/* Runs a kernel with the data pointers given in the order documented above; the last is the scratchpad. */
tn_status tn_dnn_run(const tn_dnn_kernel *kernel, int worker, const void *const *data);

/* Makes oneDNN run single-threaded on the calling thread. */
void tn_dnn_thread_start(void);

/* "oneDNN 2.6.3, AVX-512" and the like. */
void tn_dnn_describe(char *text, size_t size);

#endif
