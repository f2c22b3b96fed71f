/* Launchers of all CUDA kernels, callable from C.
 *
 * - Pointers: device memory unless a comment says host. Activations and their gradients are aligned to 16
 *   bytes, and so are workspaces and the packed weights of conv_direct.cu; what kernels read as vectors is
 *   refused with cudaErrorMisalignedAddress. Everything else is aligned to its own element.
 *
 * - Activations: NHWC, [rows][height][width][channels], stored as the tn_storage given beside the pointer,
 *   always computed with in float32. Where a call has two storages, x is what the node reads and y what it
 *   writes: a residual r has the storage of y, dy and dz that of y, dx that of x.
 *
 * - Sizes: a tensor (or matrix of columns) has fewer than 2^31 elements.
 *
 * - Parameters: float32 in the flat buffers, conv weights OIHW, linear weights [out][in].
 *
 * - Scalars: read through pointers, so that a captured graph follows their changes. s, c and d are those of
 *   src/model/graph.h; NULL means 1 for s, 0 for the others, and no term for bias and r.
 *
 * - Outputs: overwritten, none is added to, except flags and what a comment says.
 *
 * - Masks: one bit per element of y in flat order: element i is bit i % 32 of word i / 32, set where z > 0.
 *   (elements + 31) / 32 words; bits beyond the last element are not defined. NULL: no ReLU in backward,
 *   nothing to be remembered in forward.
 *
 * - Flags: `int *nonfinite` may be NULL; 1 is stored where a value that is not finite was seen, nothing
 *   otherwise. ReLU and max pool keep NaN.
 *
 * - Aliasing: none unless a comment allows it.
 *
 * - Determinism: results are bitwise the same for the same arguments on every device: sums are split by shape
 *   alone and merged in a fixed order; there are no float atomics.
 *
 * - Workspaces: scratch memory; nothing in them lives longer than the call.
 *
 * - Errors: what cudaGetLastError says after the launches, or cudaErrorInvalidValue for sizes that the kernel
 *   does not take. Calls with nothing to do launch nothing. */
#ifndef TN_KERNELS_KERNELS_H
#define TN_KERNELS_KERNELS_H

#include <cuda_runtime_api.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum tn_storage { TN_STORE_F32, TN_STORE_BF16, TN_STORES } tn_storage;

/* At most this many gradients flow into one tensor (TN_PARTS_MAX of backend.h). */
#define TN_KERNEL_PARTS 4

/* Workspace of every call that makes whole-tensor sums. */
#define TN_SUM_WORKSPACE 8192

/* The gradients whose sum is dL/dy. */
typedef struct tn_parts {
    const void *part[TN_KERNEL_PARTS];
    int count;
} tn_parts;

/* What follows an operator: z = s * op + c + bias[channel] + r, y = act(z) + d. */
typedef struct tn_epilogue {
    const float *s, *c, *bias, *d;
    const void *r;
    int relu;
    uint32_t *mask;
    int *nonfinite; /* of z */
} tn_epilogue;

typedef struct tn_conv_shape {
    int rows;
    int in_height, in_width, in_channels;
    int out_height, out_width, out_channels;
    int kernel, stride, padding;
} tn_conv_shape;

/* ---- merge.cu ---- */

/* A result that a kernel left in parts, one for each share of its work; their number depends on the shape
 * alone.
 *
 *   taps 1 or 9   gradients of weights: parts is float [count][groups][taps][pairs], pairs being [out][in];
 *                 to[groups][pairs][taps] is their sum
 *   taps 0        sums of nodes: parts is double [groups][count]; the sum of row i goes to to[3 * (i / 2) + i
 *                 % 2], as sums [node][3] have the sum of dz first and that of dL/dy second */
typedef struct tn_merge_item {
    const void *parts;
    float *to;
    int count, groups, pairs, taps;
} tn_merge_item;
#define TN_MERGE_ITEMS 112 /* of a launch, at most */
/* Adds the parts of each, in a fixed order; with `add`, to what is there. The table is host memory, free
 * again at once. */
cudaError_t tn_launch_merge(int count, const tn_merge_item *items, int add, cudaStream_t stream);

/* ---- conv_direct.cu: 3x3, stride 1 or 2, padding 1, any number of channels ---- */

/* y = epilogue(conv(x, w)). w is packed as TN_PACK_CONV_FORWARD, usually with s in it (then epilogue.s is
 * NULL). r may be y. Multiples of 8 output channels run tiled, others in a plain loop. */
cudaError_t tn_launch_conv3x3_forward(const tn_conv_shape *shape, tn_storage x_store, const void *x,
                                      const float *w, tn_epilogue epilogue, tn_storage y_store, void *y,
                                      cudaStream_t stream);
/* dx from dz; w is packed as TN_PACK_CONV_BACKWARD. */
cudaError_t tn_launch_conv3x3_backward_data(const tn_conv_shape *shape, tn_storage y_store, const void *dz,
                                            const float *w, tn_storage x_store, void *dx,
                                            cudaStream_t stream);
/* dw from x and dz, in parts [tn_conv3x3_parts][9][out][in]. */
cudaError_t tn_launch_conv3x3_backward_weights(const tn_conv_shape *shape, tn_storage x_store, const void *x,
                                               tn_storage y_store, const void *dz, float *parts,
                                               cudaStream_t stream);
int tn_conv3x3_parts(const tn_conv_shape *shape);

/* ---- stem.cu: 3x3, stride 1, padding 1, 1 to 4 channels of float32 images, to a multiple of 8 up to 64 ----
 */

/* 1 where the kernels take this shape. */
int tn_stem_takes(const tn_conv_shape *shape);
/* y = epilogue(conv(x, w)). w is packed as TN_PACK_CONV_FORWARD. The flag x_nonfinite looks at x. */
cudaError_t tn_launch_stem_forward(const tn_conv_shape *shape, const float *x, const float *w,
                                   tn_epilogue epilogue, tn_storage y_store, void *y, int *x_nonfinite,
                                   cudaStream_t stream);
/* Of dz = mask * sum of the incoming gradients, which is kept nowhere: dw in parts
 * [tn_stem_parts][9][out][in], and the sums of dz and of dL/dy (before the mask) in parts, sums
 * [2][tn_stem_sum_parts], or NULL. */
cudaError_t tn_launch_stem_backward(const tn_conv_shape *shape, const float *x, tn_storage y_store,
                                    tn_parts dy, const uint32_t *mask, float *parts, double *sums,
                                    cudaStream_t stream);
int tn_stem_parts(const tn_conv_shape *shape);
int tn_stem_sum_parts(const tn_conv_shape *shape);

/* ---- conv_wmma.cu: 3x3 on tensor cores, stride 1 or 2, padding 1, channels multiples of 16 ---- */

/* What products are made of: bf16, or float32 rounded to tf32 (then all storages are float32). Sums are
 * float32. */
typedef enum tn_wmma { TN_WMMA_BF16, TN_WMMA_TF32 } tn_wmma;

/* 1 where the kernels take this shape, in all directions. */
int tn_wmma3x3_takes(const tn_conv_shape *shape, tn_wmma unit);
/* y = epilogue(conv(x, w)). w is packed as TN_PACK_TAPS_FORWARD. r may be y. */
cudaError_t tn_launch_wmma3x3_forward(const tn_conv_shape *shape, tn_wmma unit, tn_storage x_store,
                                      const void *x, const void *w, tn_epilogue epilogue, tn_storage y_store,
                                      void *y, cudaStream_t stream);
/* What may follow backward data, so that dx is already the dz of whoever made x: dx = mask * (conv + r), with
 * the sum of dx and the same before the mask in parts, `sums` [2][...]. All members may be NULL; r has the
 * storage of dx and may be dx; the flag looks at conv + r. */
typedef struct tn_gate {
    const void *r;
    const uint32_t *mask;
    double *sums;
    int *nonfinite;
} tn_gate;
/* dx from dz; w is packed as TN_PACK_TAPS_BACKWARD. gate.sums is [2][tn_wmma3x3_sum_parts]. */
cudaError_t tn_launch_wmma3x3_backward_data(const tn_conv_shape *shape, tn_wmma unit, tn_storage y_store,
                                            const void *dz, const void *w, tn_gate gate, tn_storage x_store,
                                            void *dx, cudaStream_t stream);
int tn_wmma3x3_sum_parts(const tn_conv_shape *shape, tn_wmma unit);
/* dw from x and dz, in parts [tn_wmma3x3_parts][9][out][in], aligned to 32 bytes. */
cudaError_t tn_launch_wmma3x3_backward_weights(const tn_conv_shape *shape, tn_wmma unit, tn_storage x_store,
                                               const void *x, tn_storage y_store, const void *dz,
                                               float *parts, cudaStream_t stream);
int tn_wmma3x3_parts(const tn_conv_shape *shape, tn_wmma unit, tn_storage x_store, tn_storage y_store);

/* ---- conv_wmma_both.cu: bf16, at most 64 output channels ---- */

int tn_wmma3x3_both_takes(const tn_conv_shape *shape, tn_wmma unit);
/* dx and dw as the two calls above make them, in one launch over dz; dx has the storage of x. parts is
 * [tn_wmma3x3_both_parts][9][out][in], aligned to 32 bytes, gate.sums [2][tn_wmma3x3_both_sum_parts]. */
cudaError_t tn_launch_wmma3x3_backward(const tn_conv_shape *shape, tn_storage x_store, const void *x,
                                       tn_storage y_store, const void *dz, const void *w, tn_gate gate,
                                       void *dx, float *parts, cudaStream_t stream);
int tn_wmma3x3_both_parts(const tn_conv_shape *shape);
int tn_wmma3x3_both_sum_parts(const tn_conv_shape *shape);

/* ---- stage.cu, stage_backward.cu: successive blocks without norms, whole, in bf16 ---- */

/* `blocks` residual blocks on images of height x width x channels; conv 2b and 2b + 1 are those of block b,
 * x[0] = x, s folded into the weights, c and d the scalars of the conv:
 *
 *   a = ReLU(conv(x[b]) + c) + d,   x[b + 1] = ReLU(conv(a) + c + x[b]) + d,   y = x[blocks]
 *
 * With in_height > 0 the first block is an entry: it takes x of in_height x in_width x channels / 2, its
 * first conv has stride 2, and the residual of its second is every second pixel of x plus the c of the
 * shortcut, with zeros appended as the upper half of the channels.
 *
 * channels are 16, 32 or 64 (of an entry not 16), height * width * channels a multiple of 64. A block of
 * threads keeps `images` images in shared memory and goes through all residual blocks with them: no
 * activation is read twice forward.
 *
 * Arrays by node hold an entry's shortcut, subsample and append, before the convs. */
typedef struct tn_stage_shape {
    int rows, height, width, channels;
    int blocks;
    int images;
    int wide; /* x, outputs of blocks and their gradients are float32; 0: bf16, as what is inside always */
    int in_height, in_width; /* of an entry's x, height = (in_height + 1) / 2; 0: no entry */
} tn_stage_shape;
/* How many images a block of threads takes: more than one only where the others still occupy
 * `TN_STAGE_GROUPS` blocks. Of the shape only `images` is not read. */
#define TN_STAGE_GROUPS 128
int tn_stage_images(const tn_stage_shape *shape);
/* Shared memory of a block of threads, forward or backward; 0 for shapes that the kernels do not take. */
size_t tn_stage_shared(const tn_stage_shape *shape, int backward);
/* weights: [2 * blocks] convs, each TN_PACK_STAGE_FORWARD; scalars: [nodes][4], of which the second is c and
 * the third d (tn_update.node_scalars). inner: [2 * blocks - 1][rows][height][width][channels], outputs of
 * all convs but the last, bf16 and the stream's storage in turn; masks: [2 * blocks] masks of a tensor,
 * rows * height * width * channels / 8 bytes apart; both NULL outside training. nonfinite: [nodes] flags, of
 * which those of convs are set, or NULL. */
cudaError_t tn_launch_stage_forward(const tn_stage_shape *shape, const void *x, const void *weights,
                                    const float *scalars, void *inner, uint32_t *masks, void *y,
                                    int *nonfinite, cudaStream_t stream);
typedef struct tn_stage_gradient {
    const void *x, *inner;
    const uint32_t *masks;
    const void *weights; /* [2 * blocks] convs, each TN_PACK_STAGE_BACKWARD */
    tn_parts dy;
    void *dx;
    /* bf16, tn_stage_dz_bytes: dz of all convs, for tn_launch_stage_products; not with 16 channels. */
    void *dz;
    /* With 16 channels: weight gradients, as tn_stage_products has them. */
    float *weight_parts;
    /* [convs][2][tn_stage_sum_parts]: sums of dz and of dL/dy; of an entry's subsample apart from the convs.
     */
    double *sum_parts, *shortcut_parts;
} tn_stage_gradient;
/* All that backward of these blocks makes but the weight gradients of more than 16 channels. */
cudaError_t tn_launch_stage_backward(const tn_stage_shape *shape, tn_stage_gradient gradient,
                                     cudaStream_t stream);
size_t tn_stage_dz_bytes(const tn_stage_shape *shape);
int tn_stage_sum_parts(const tn_stage_shape *shape);

/* ---- stage_weights.cu ---- */

#define TN_STAGE_PRODUCTS 2
/* Weight gradients of a stage of more than 16 channels, in parts (tn_launch_merge):
 * [tn_stage_weight_parts][convs][9][out][in], of an entry's first conv apart from the others. */
typedef struct tn_stage_products {
    tn_stage_shape shape;
    const void *x, *inner, *dz; /* as of tn_stage_gradient */
    float *weight_parts, *entry_parts;
} tn_stage_products;
/* Those of `count` stages, all with streams of one storage. The table is host memory, free again at once. */
cudaError_t tn_launch_stage_products(int count, const tn_stage_products *stages, cudaStream_t stream);
int tn_stage_weight_parts(const tn_stage_shape *shape);

/* ---- im2col.cu: any kernel, stride and padding; the GEMM is the caller's ---- */

/* columns[pixel][ld]: output pixel (n, oh, ow) gets x at (oh * stride - padding + kh, ow * stride - padding +
 * kw), 0 outside, in the order (kh, kw, channel); zeros from kernel * kernel * in_channels to ld. */
cudaError_t tn_launch_im2col(const tn_conv_shape *shape, tn_storage x_store, const void *x,
                             tn_storage columns_store, void *columns, int ld, cudaStream_t stream);
/* dx[n, h, w, channel] = sum of all columns made from it: the transpose of im2col. */
cudaError_t tn_launch_col2im(const tn_conv_shape *shape, tn_storage columns_store, const void *columns,
                             int ld, tn_storage x_store, void *dx, cudaStream_t stream);

/* ---- epilogue.cu ---- */

/* y = epilogue(x) on [pixels][channels]. y may be x (same storage) or r. */
cudaError_t tn_launch_epilogue_forward(size_t pixels, int channels, tn_storage x_store, const void *x,
                                       tn_epilogue epilogue, tn_storage y_store, void *y,
                                       cudaStream_t stream);
/* dz = mask * sum of parts over `count` elements, with the sums of dz and of dL/dy (before the mask) in
 * parts, sums [2][tn_epilogue_sum_parts], or NULL. dz may be one of the parts. The flag looks at dL/dy. */
cudaError_t tn_launch_epilogue_backward(size_t count, tn_storage store, tn_parts dy, const uint32_t *mask,
                                        void *dz, double *sums, int *nonfinite, cudaStream_t stream);
int tn_epilogue_sum_parts(size_t count);
/* sums[channel] = sum over rows of x[rows][channels]: gradient of a vector bias. */
cudaError_t tn_launch_column_sums(int rows, int channels, tn_storage store, const void *x, float *sums,
                                  cudaStream_t stream);

/* ---- norm.cu: x is [pixels][channels] ---- */

/* Scratch of tn_launch_norm_statistics and tn_launch_norm_reduce. */
size_t tn_norm_workspace(size_t pixels, int channels);
/* moments[channel] = sum of x, moments[channels + channel] = sum of x^2, both double and to be added over
 * ranks. */
cudaError_t tn_launch_norm_statistics(size_t pixels, int channels, tn_storage store, const void *x,
                                      void *workspace, double *moments, cudaStream_t stream);
/* What a norm computes with, each [channels]: y = act((x - mean) * factor + shift + r). */
typedef struct tn_norm_vectors {
    float *mean, *inv_std, *factor, *shift;
} tn_norm_vectors;
/* Moments over `count` pixels -> vectors, with factor = s gamma / sqrt(var + 1e-5), shift = s beta and the
 * biased variance; moves the running mean and (unbiased) variance by 0.1. A channel with moments that are not
 * finite sets the flag and leaves its running values alone. */
cudaError_t tn_launch_norm_finish(double count, int channels, const double *moments, const float *gamma,
                                  const float *beta, const float *s, float *running_mean, float *running_var,
                                  tn_norm_vectors vectors, int *nonfinite, cudaStream_t stream);
/* The vectors for evaluation, from running mean and variance. */
cudaError_t tn_launch_norm_load(int channels, const float *gamma, const float *beta, const float *s,
                                const float *running_mean, const float *running_var, tn_norm_vectors vectors,
                                cudaStream_t stream);
/* y from x; of the epilogue only r, relu, mask and nonfinite are used. y may be x (same storage) or r. */
cudaError_t tn_launch_norm_apply(size_t pixels, int channels, tn_storage x_store, const void *x,
                                 tn_norm_vectors vectors, tn_epilogue epilogue, tn_storage y_store, void *y,
                                 cudaStream_t stream);
/* dz = mask * sum of parts; moments[channel] = sum of dz, moments[channels + channel] = sum of dz (x - mean),
 * both double and to be added over ranks. dz may be one of the parts. The flag looks at dL/dy. */
cudaError_t tn_launch_norm_reduce(size_t pixels, int channels, tn_storage x_store, const void *x,
                                  const float *mean, tn_storage y_store, tn_parts dy, const uint32_t *mask,
                                  void *dz, void *workspace, double *moments, int *nonfinite,
                                  cudaStream_t stream);
/* From the moments of reduce over `count` pixels: dgamma, dbeta, *ds = dL/ds (NULL where s is not trained),
 * and slopes[channel] = mean of dz, slopes[channels + channel] = mean of dz xhat / sqrt(var + eps). */
cudaError_t tn_launch_norm_gradients(double count, int channels, const double *moments, const float *inv_std,
                                     const float *gamma, const float *beta, const float *s, float *dgamma,
                                     float *dbeta, float *ds, float *slopes, cudaStream_t stream);
/* dx = factor * (dz - slopes[c] - (x - mean) * slopes[channels + c]). dx may be dz or x (same storage). */
cudaError_t tn_launch_norm_backward(size_t pixels, int channels, tn_storage x_store, const void *x,
                                    tn_norm_vectors vectors, const float *slopes, tn_storage y_store,
                                    const void *dz, void *dx, cudaStream_t stream);

/* ---- pool.cu ---- */

/* in_channels = out_channels; padding is minus infinity and less than kernel, kernel at most 15; output sizes
 * are (in + 2 padding - kernel) / stride + 1, rounded down. winner, one byte per element of y, is the
 * window's position kh * kernel + kw of its first largest value (the last NaN, if any); NULL outside
 * training. */
cudaError_t tn_launch_maxpool_forward(const tn_conv_shape *shape, tn_storage store, const void *x, void *y,
                                      uint8_t *winner, cudaStream_t stream);
cudaError_t tn_launch_maxpool_backward(const tn_conv_shape *shape, tn_storage store, const void *dy,
                                       const uint8_t *winner, void *dx, cudaStream_t stream);
/* y[rows][channels] = mean of x[rows][pixels][channels] over pixels, + d. The flag looks at y. */
cudaError_t tn_launch_avgpool_forward(int rows, int pixels, int channels, tn_storage x_store, const void *x,
                                      const float *d, tn_storage y_store, void *y, int *nonfinite,
                                      cudaStream_t stream);
cudaError_t tn_launch_avgpool_backward(int rows, int pixels, int channels, tn_storage y_store, const void *dy,
                                       tn_storage x_store, void *dx, cudaStream_t stream);

/* ---- shortcut.cu ---- */

/* y[n, h, w, k] = x[n, h * stride, w * stride, k] + c for k < in_channels, 0 for the rest: subsample, append,
 * or both at once. Of the shape kernel and padding are not used. */
cudaError_t tn_launch_shortcut_forward(const tn_conv_shape *shape, tn_storage x_store, const void *x,
                                       const float *c, tn_storage y_store, void *y, cudaStream_t stream);
/* dx = dy where x was read, 0 elsewhere; sums is NULL or [2][tn_shortcut_sum_parts]: that of dx, in parts,
 * twice, as c follows no ReLU. */
cudaError_t tn_launch_shortcut_backward(const tn_conv_shape *shape, tn_storage y_store, const void *dy,
                                        tn_storage x_store, void *dx, double *sums, cudaStream_t stream);
int tn_shortcut_sum_parts(const tn_conv_shape *shape);

/* ---- loss.cu ---- */

typedef enum tn_kernel_loss { TN_KERNEL_CROSS_ENTROPY, TN_KERNEL_SQUARED } tn_kernel_loss;
/* For each row: loss[row] (not weighted): -sum target log softmax(x), or 1/2 |x - target|^2; rank[row] = how
 * many classes score higher than labels[row], ties going to the smaller index, `classes` where the label's
 * score is not finite; dx = weights[row] * dloss/dx, exactly 0 where the weight is 0 whatever x is. x, dx
 * [rows][classes] of `store`, targets float. labels and rank, or dx and weights, may be NULL together. dx may
 * be x. A row of weight 0 does not set the flag. */
cudaError_t tn_launch_loss(tn_kernel_loss kind, int rows, int classes, tn_storage store, const void *x,
                           const float *targets, const float *weights, const int *labels, float *loss,
                           int *rank, void *dx, int *nonfinite, cudaStream_t stream);

/* ---- head.cu: average pool, linear layer and loss, of few channels and classes ---- */

typedef struct tn_head_shape {
    int rows, pixels, channels, classes;
} tn_head_shape;
/* 1 where the kernels take this shape: channels in eights, up to 512, up to 256 classes, their product up to
 * 16384. */
int tn_head_takes(const tn_head_shape *shape);
/* pooled = mean of x[rows][pixels][channels] over pixels + d, logits = weights pooled + c + bias, of which
 * row_loss and row_rank are made as tn_launch_loss makes them. */
typedef struct tn_head {
    tn_kernel_loss kind;
    const float *weights; /* [classes][channels], aligned to 16 bytes, usually with s in it */
    const float *bias;    /* [classes], or NULL */
    const float *c, *d;
    const float *targets, *row_weights; /* as in tn_launch_loss */
    const int *labels;
    float *logits; /* [rows][classes] */
    float *row_loss;
    int *row_rank;
    int *nonfinite; /* three flags: they look at pooled, at the logits, and at losses; or NULL */
} tn_head;
/* With dx, which has the storage of x, dx = row_weights * dloss/dx too, and what tn_launch_head_gradients
 * needs is left in the workspace of tn_head_workspace bytes. dx and workspace are NULL outside training. */
cudaError_t tn_launch_head(const tn_head_shape *shape, const tn_head *head, tn_storage x_store, const void *x,
                           void *dx, void *workspace, cudaStream_t stream);
typedef struct tn_head_gradient {
    float *weights;          /* [classes][channels], without s */
    float *bias;             /* [classes], or NULL */
    float *pool_sums, *sums; /* two each: twice the sum of the gradient of pooled, and of the logits */
    int add;                 /* all are added to */
} tn_head_gradient;
cudaError_t tn_launch_head_gradients(const tn_head_shape *shape, void *workspace, tn_head_gradient gradient,
                                     cudaStream_t stream);
size_t tn_head_workspace(const tn_head_shape *shape);

/* ---- optimizer.cu ---- */

/* to[i] += from[i] on `count` floats: gradients of chunks. Both may be aligned to 4 bytes only. */
cudaError_t tn_launch_add(size_t count, float *to, const float *from, cudaStream_t stream);
/* mean[i] += rate (values[i] - mean[i]); nothing where *stop is not 0. */
cudaError_t tn_launch_average(size_t count, float *mean, const float *values, float rate, const int *stop,
                              cudaStream_t stream);
/* values[i] *= factor on `count` floats. */
cudaError_t tn_launch_scale(size_t count, float *values, float factor, cudaStream_t stream);

/* Many tensors in one launch: the work is cut into pieces of at most TN_PIECE elements, each of one tensor,
 * in a table that the host makes once. */
#define TN_PIECE 4096
typedef struct tn_piece {
    int item;
    size_t first; /* element of the item, a multiple of TN_PIECE */
} tn_piece;
/* One weight tensor on its way from G = dL/d(sW) to dW. */
typedef struct tn_weight_gradient {
    float *grad;        /* G, becomes s G */
    const float *value; /* W */
    size_t count;
    const float *s;          /* NULL: 1 */
    float *dot;              /* <G, W>; NULL: not wanted */
    int *nonfinite;          /* looks at s G and the dot */
    int first_piece, pieces; /* where the item's pieces stand in the table, in order */
} tn_weight_gradient;
/* What one node gives to the gradient of one scalar parameter, from sums[node][3] = sum of dz, sum of dy,
 * <G, W>. */
typedef enum tn_share_kind {
    TN_SHARE_TERM,  /* factor * (scaled ? s : 1) * sums[0] */
    TN_SHARE_CARRY, /* sums[1] */
    TN_SHARE_SCALE  /* factor * (sums[2] + node_scalars[node][3] * sums[0]) */
} tn_share_kind;
typedef struct tn_share {
    int kind, node, scaled;
    float factor;
} tn_share;
/* grads[place] = grad_factor * sum of shares [first, first + count). */
typedef struct tn_scalar {
    int place, first, count;
    float grad_factor;
} tn_scalar;
/* A scalar with more shares than this is wide: a block adds them, else a thread. */
#define TN_SHARES_NARROW 32
/* What finishes the gradients of a step; tables are in device memory. */
typedef struct tn_finish {
    const tn_weight_gradient *weights;
    const tn_piece *pieces; /* cut the gradients [0, count) of all weights, in order */
    const tn_scalar *scalars;
    const tn_share *shares;
    int weight_count, piece_count;
    int wide_count, scalar_count; /* the wide ones come first */
    const float *node_scalars;    /* of tn_update */
    const float *sums;            /* [node][3]; the dots are among them */
    float *grads;
    int *nonfinite; /* looks at the gradients of scalars */
    const int *flags;
    int flag_count;
    int *stop;         /* set where one of flags[flag_count] is, those that are set here included */
    double *partial;   /* scratch, [piece_count] */
    unsigned *arrived; /* [weight_count + 1] zeros, and so again behind the launch */
} tn_finish;
/* grad = s G in place and the dots, then the gradients of scalars from sums, then *stop: one launch. */
cudaError_t tn_launch_finish(const tn_finish *finish, cudaStream_t stream);

/* ---- update.cu ---- */

#define TN_KERNEL_TERMS 3
/* The scalars of one node; places are floats in `values`, -1 where there is none. */
typedef struct tn_node_terms {
    float scale_factor;
    int scale, carry;
    int term_count;
    struct {
        int place;
        float factor;
        int scaled;
    } terms[TN_KERNEL_TERMS];
} tn_node_terms;
/* Packed weights, from OIHW floats times s (plus the identity). */
typedef enum tn_pack_layout {
    TN_PACK_CONV_FORWARD,  /* float [in][taps][out] */
    TN_PACK_CONV_BACKWARD, /* float [out][taps reversed][in] */
    TN_PACK_GEMM,          /* `store` [out][ld], a row being [taps][in]: im2col's order; up to ld nothing is
                              written */
    TN_PACK_TAPS_FORWARD,  /* `store` [taps][in][out], floats rounded to tf32 */
    TN_PACK_TAPS_BACKWARD, /* `store` [taps reversed][out][in], floats rounded to tf32 */
    TN_PACK_STAGE_FORWARD, /* bf16 [in / 16][taps][16 in][out] */
    TN_PACK_STAGE_BACKWARD /* bf16 [out / 16][taps reversed][16 out][in] */
} tn_pack_layout;
typedef struct tn_pack {
    int layout; /* tn_pack_layout */
    int store;  /* tn_storage of GEMM and TAPS; bf16 of STAGE, else float32 */
    int ld;
    void *to;
} tn_pack;
#define TN_PACKS 2
/* One tensor of parameters, floats `first` on of `values`, [out][in][taps], and its packed copies. */
typedef struct tn_weight {
    size_t first;
    int out, in, taps;
    int tile_out, tile_in; /* of tn_update_tile */
    int trained;           /* 0: packed, but never updated */
    int identity;          /* linear [n][n] that adds its own input: copies are s W + I */
    float scale_factor;    /* s of the copies, as in tn_node_terms */
    int scale;
    int pack_count;
    tn_pack packs[TN_PACKS];
    int *nonfinite; /* looks at the parameter and its copies */
} tn_weight;
/* What one block takes of a weight: outputs [out, out + tile_out) and inputs [in, in + tile_in), where there
 * are so many. */
typedef struct tn_tile {
    int item, out, in;
} tn_tile;
/* Sets tile_out and tile_in from the other sizes; 0 where there are more taps than a tile holds. */
int tn_update_tile(tn_weight *weight);
/* An update of all parameters; tables are in device memory. */
typedef struct tn_update {
    const tn_weight *weights;
    const tn_tile *tiles;       /* cut all weights */
    const tn_node_terms *nodes; /* [node_count] */
    int tile_count, node_count;
    float *values;
    const float *grads;
    float *momentum;
    int scalar_first, scalar_end; /* the trained scalars in `values` */
    float *node_scalars;          /* [node_count][4] */
    int *node_flags;              /* [node_count]: look at s, c and d */
    const float *rates;           /* learning rates of weights and of scalars; NULL: nothing is updated */
    float mu, decay;
    const int *stop;   /* nothing is updated where it is not 0 */
    unsigned *arrived; /* one, 0, and so again behind the launch */
} tn_update;
/* v = mu v + g + decay w, w -= rate v for all trained weights and scalars; then, with the values that are so
 * reached, packed copies, and node_scalars[node] = s, c, d, and the sum of factor * value over scaled terms:
 * one launch. */
cudaError_t tn_launch_update(const tn_update *update, cudaStream_t stream);

/* ---- augment.cu: data sets that live on the device ---- */

#define TN_KERNEL_CHANNELS 16
/* What changes with every batch, in device memory. */
typedef struct tn_batch_state {
    uint64_t seed;
    int epoch;
    int first; /* of the batch's samples in `order` */
    int rows;  /* that count; the others become zeros */
    float own; /* mixup: lambda; 1 without */
} tn_batch_state;
typedef struct tn_augment_config {
    int rows;                    /* of the batch, padding included */
    int channels, height, width; /* channels at most TN_KERNEL_CHANNELS */
    int padding;
    int draw, may_flip; /* draw = 0: no crop, no flip */
    int classes;
    double smoothing;      /* of labels */
    const float *table;    /* [channels][256] */
    const uint8_t *pixels; /* [samples][height][width][channels] */
    const int *labels;     /* [samples] */
    const int *order;      /* [samples] of the epoch; NULL: as they are */
    const int *partner;    /* [rows] of mixup: where in `order` the other image is; NULL: none */
} tn_augment_config;
/* images[rows][height][width][channels] = what tn_batcher_make of src/data makes, bit for bit in float32,
 * with the draws of tn_augment_draw taken on the device. config is host memory, its pointers and state are
 * device memory. */
cudaError_t tn_launch_augment(const tn_augment_config *config, const tn_batch_state *state, tn_storage store,
                              void *images, cudaStream_t stream);
/* targets[rows][classes], labels[rows] and weights[rows] (1 / state->rows, 0 for padding, whose label is 0)
 * of the same batch; weights may be NULL. */
cudaError_t tn_launch_targets(const tn_augment_config *config, const tn_batch_state *state, float *targets,
                              int *labels, float *weights, cudaStream_t stream);

/* ---- image.cu: images of any size on their way into a batch ---- */

/* One image of a view: places in `bytes` (plans aligned to 4) and in `middle`. A plan is that of
 * tn_resize_plan of src/data/resize.h: int [outputs][2 + taps], of each output the first input, the number of
 * inputs and their weights in units of 2^-22. */
typedef struct tn_view_image {
    size_t rows, columns; /* plans of the view's rows, made of rows, and of its columns, made of pixels */
    size_t pixels;        /* [height][width][3] */
    size_t middle;        /* [height][3 * the view's width], scratch */
    int height, width;    /* of the source */
    int row_taps, column_taps;
    int flip;
} tn_view_image;
/* views[count][height][width][3] = the images resized and, with flip, mirrored: bit for bit what tn_view_make
 * of src/data makes. `highest` is the largest height of a source. count at most 65535. */
cudaError_t tn_launch_views(int count, const tn_view_image *images, int highest, int height, int width,
                            const uint8_t *bytes, uint8_t *middle, uint8_t *views, cudaStream_t stream);

/* ---- convert.cu ---- */

/* to = from, rounded to nearest even where it becomes bf16. */
cudaError_t tn_launch_convert(size_t count, tn_storage from_store, const void *from, tn_storage to_store,
                              void *to, cudaStream_t stream);

/* dw[out][in][taps] = g[out][ld] in the order of TN_PACK_GEMM, both float. */
cudaError_t tn_launch_unpack_gradient(int out, int in, int taps, int ld, const float *g, float *dw,
                                      cudaStream_t stream);
/* Only the flag, which looks at `count` floats. */
cudaError_t tn_launch_check(size_t count, const float *x, int *nonfinite, cudaStream_t stream);
/* *sum = sum of squares; workspace TN_SUM_WORKSPACE bytes. The flag looks at the elements. */
cudaError_t tn_launch_square_sum(size_t count, tn_storage store, const void *x, void *workspace, double *sum,
                                 int *nonfinite, cudaStream_t stream);

#ifdef __cplusplus
}
#endif

#endif
