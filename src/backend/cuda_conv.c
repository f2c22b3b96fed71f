/* Convolution and linear layers on CUDA, with the epilogue of graph.h. s is folded into the packed weights; a
 * linear layer that adds its own input computes with s W + I.
 *
 *   wmma     3x3 with padding 1 and channels in sixteens, in bf16 and tf32: tensor cores, one kernel with the
 *            whole epilogue; narrow ones make dx and dw in one launch
 *   stem     3x3 with padding 1 and stride 1 of images with few channels: one kernel with the whole epilogue;
 *            backward another one, from the incoming gradients to dw, and one that adds its parts
 *   direct   other 3x3 with padding 1 and few channels: one kernel with the whole epilogue
 *   gemm     1x1 of stride 1, and linear: cuBLAS on the activations as they are
 *   im2col   all others: columns of some rows at a time, then cuBLAS
 *
 * Matrix products multiply operands of one type (bf16 with that precision, else float32) and add in float32.
 * Row-major matrices are column-major ones transposed: what follows calls cuBLAS with that in mind. */
#include <stdio.h>
#include <string.h>

#include "backend/cuda_device.h"
#include "base/memory.h"

/* Wider layers have enough arithmetic for each value that cuBLAS pays for its columns. */
#define DIRECT_CHANNELS 64
/* Rows of columns start at multiples of 16 bytes for both types. */
#define LD_MULTIPLE 8

typedef enum method { STEM, DIRECT, WMMA, GEMM, IM2COL } method;

typedef struct conv_plan {
    tn_cuda_plan base;
    method method;
    tn_conv_shape shape;   /* a linear layer is a 1x1 convolution of one pixel */
    tn_storage gemm_store; /* what cuBLAS multiplies */
    tn_wmma unit;
    int taps, ld, slice_rows;
    bool needs_epilogue, needs_sums, trained, both; /* both gradients in one launch */
    void *forward_weights, *backward_weights;       /* the same for cuBLAS */
    float *bias;                                    /* the vector, looked at like all packed parameters */
    uint32_t *masks;                                /* [chunks][mask_words] */
    size_t mask_words;
    int weight_parts, gate_parts; /* in which the gradient comes, and the sums of a gate; 0 with cuBLAS */
    /* Places in the scratch memory, in bytes. */
    size_t columns_at, dz_at, gradient_at, made_at;
} conv_plan;

static const tn_node *node_of(const conv_plan *plan) {
    return plan->base.head.node;
}

static const tn_param *weight_of(const conv_plan *plan) {
    return &plan->base.head.model->params[node_of(plan)->weight];
}

static bool has_residual(const tn_node *node) {
    return node->residual >= 0 && !tn_node_adds_own_input(node);
}

static void release(conv_plan *plan) {
    tn_backend *backend = &plan->base.cuda->head;
    void *memories[] = {plan->forward_weights, plan->backward_weights, plan->masks, plan->bias};
    for (size_t i = 0; i < sizeof memories / sizeof *memories; i++) tn_cuda_release(backend, memories[i]);
    plan->forward_weights = plan->backward_weights = NULL;
    plan->masks = NULL;
    plan->bias = NULL;
}

static void conv_free(tn_plan *head) {
    conv_plan *plan = (conv_plan *)(void *)head;
    if (!plan) return;
    release(plan);
    tn_free(plan);
}

void tn_cuda_conv_yield(tn_plan *head, const char *implementation) {
    conv_plan *plan = (conv_plan *)(void *)head;
    release(plan);
    plan->base.pack_count = 0;
    plan->base.need = (tn_cuda_need){0};
    head->bytes = head->scratch_bytes = 0;
    for (int i = 0; i < 3; i++)
        if (head->implementation[i][0])
            snprintf(head->implementation[i], sizeof head->implementation[i], "%s", implementation);
}

/* ---- planning ---- */

static tn_conv_shape shape_of(const tn_cuda_plan *base) {
    const tn_node *node = base->head.node;
    if (node->kind == TN_NODE_LINEAR)
        return (tn_conv_shape){.rows = base->rows,
                               .in_height = 1,
                               .in_width = 1,
                               .in_channels = (int)tn_cuda_floats(base->in),
                               .out_height = 1,
                               .out_width = 1,
                               .out_channels = base->out.channels,
                               .kernel = 1,
                               .stride = 1};
    return (tn_conv_shape){.rows = base->rows,
                           .in_height = base->in.height,
                           .in_width = base->in.width,
                           .in_channels = base->in.channels,
                           .out_height = base->out.height,
                           .out_width = base->out.width,
                           .out_channels = base->out.channels,
                           .kernel = node->kernel,
                           .stride = node->stride,
                           .padding = node->padding};
}

/* Images are float32 and have no gradient. */
bool tn_cuda_conv_is_stem(const tn_model *model, const tn_node *node, const tn_conv_shape *shape) {
    return node->kind == TN_NODE_CONV && node->input == 0 && node->residual < 0 &&
           model->params[node->weight].group != TN_GROUP_FIXED && tn_stem_takes(shape);
}

static method choose_method(const tn_conv_shape *s, tn_precision precision, tn_wmma unit) {
    if (precision != TN_PRECISION_FP32 && tn_wmma3x3_takes(s, unit)) return WMMA;
    if (s->kernel == 1 && s->stride == 1 && s->padding == 0) return GEMM;
    bool tiled = s->in_channels % 8 == 0 && s->out_channels % 8 == 0;
    bool narrow = s->in_channels <= DIRECT_CHANNELS && s->out_channels <= DIRECT_CHANNELS;
    return s->kernel == 3 && s->padding == 1 && s->stride <= 2 && tiled && narrow ? DIRECT : IM2COL;
}

static tn_wmma unit_of(tn_precision precision) {
    return precision == TN_PRECISION_BF16 ? TN_WMMA_BF16 : TN_WMMA_TF32;
}

bool tn_cuda_conv_is_fused(const tn_conv_shape *shape, tn_precision precision) {
    const method chosen = choose_method(shape, precision, unit_of(precision));
    return chosen == DIRECT || chosen == WMMA;
}

static bool uses_cublas(const conv_plan *plan) {
    return plan->method == GEMM || plan->method == IM2COL;
}

static size_t reserve(size_t *scratch, size_t bytes) {
    size_t at = *scratch;
    *scratch += (bytes + 255) / 256 * 256;
    return at;
}

static size_t gemm_bytes(const conv_plan *plan) {
    return tn_cuda_store_bytes(plan->gemm_store);
}

static void plan_columns(conv_plan *plan) {
    const tn_conv_shape *s = &plan->shape;
    size_t row = (size_t)s->out_height * (size_t)s->out_width * (size_t)plan->ld * gemm_bytes(plan),
           rows = plan->base.cuda->columns_bytes / row;
    /* Kernels want slices to begin at multiples of 16 bytes. */
    size_t image = tn_cuda_floats(plan->base.in) * tn_cuda_store_bytes(plan->base.x_store), step = 1;
    while (step * image % 16) step *= 2;
    rows = rows < step ? step : rows / step * step;
    plan->slice_rows = rows < (size_t)s->rows && plan->method == IM2COL ? (int)rows : s->rows;
}

static void plan_scratch(conv_plan *plan) {
    const tn_conv_shape *s = &plan->shape;
    size_t *bytes = &plan->base.head.scratch_bytes, weights = weight_of(plan)->count,
           outputs = (size_t)s->out_channels, made = weights > outputs ? weights : outputs,
           slice = (size_t)plan->slice_rows * (size_t)s->out_height * (size_t)s->out_width,
           all = tn_cuda_pixels(&plan->base, s->rows);
    bool gemm = uses_cublas(plan), training = plan->base.training;
    if (gemm) plan->columns_at = reserve(bytes, slice * (size_t)plan->ld * gemm_bytes(plan));
    if (!training) return;
    if (gemm && plan->base.y_store != plan->gemm_store)
        plan->dz_at = reserve(bytes, all * outputs * gemm_bytes(plan));
    if (gemm) plan->gradient_at = reserve(bytes, outputs * (size_t)plan->ld * sizeof(float));
    plan->made_at = reserve(bytes, made * sizeof(float));
}

/* ---- what is left in parts ---- */

static size_t output_values(const conv_plan *plan) {
    return tn_cuda_floats(plan->base.out) * (size_t)plan->base.rows;
}

static tn_merge_item weights_item(const conv_plan *plan, const tn_flat *flat) {
    const tn_conv_shape *s = &plan->shape;
    return (tn_merge_item){.to = flat ? flat->grads + weight_of(plan)->offset : NULL,
                           .count = plan->weight_parts,
                           .groups = 1,
                           .pairs = s->out_channels * s->in_channels,
                           .taps = plan->taps};
}

static tn_merge_item sums_item(const conv_plan *plan, const tn_flat *flat) {
    return tn_cuda_sums_item(&plan->base.head, flat,
                             plan->method == STEM ? tn_stem_sum_parts(&plan->shape)
                                                  : tn_epilogue_sum_parts(output_values(plan)));
}

static void plan_parts(conv_plan *plan) {
    const tn_conv_shape *s = &plan->shape;
    tn_cuda_need *need = &plan->base.need;
    if (!plan->base.training) return;
    if (plan->method == DIRECT) plan->weight_parts = tn_conv3x3_parts(s);
    if (plan->method == STEM) plan->weight_parts = tn_stem_parts(s);
    if (plan->method == WMMA) {
        plan->weight_parts = plan->both
                                 ? tn_wmma3x3_both_parts(s)
                                 : tn_wmma3x3_parts(s, plan->unit, plan->base.x_store, plan->base.y_store);
        plan->gate_parts = plan->both ? tn_wmma3x3_both_sum_parts(s) : tn_wmma3x3_sum_parts(s, plan->unit);
        tn_cuda_expect_parts(need, tn_cuda_sums_item(&plan->base.head, NULL, plan->gate_parts));
    }
    if (plan->trained && !uses_cublas(plan)) tn_cuda_expect_parts(need, weights_item(plan, NULL));
    if (plan->needs_sums) tn_cuda_expect_parts(need, sums_item(plan, NULL));
}

static float *leave_weights(const conv_plan *plan, const tn_args *a) {
    return tn_cuda_leave_parts(plan->base.cuda, weights_item(plan, a->flat));
}

static tn_status plan_pack(conv_plan *plan, int layout, void **memory) {
    const tn_conv_shape *s = &plan->shape;
    tn_pack_item item = {.layout = layout,
                         .store = layout == TN_PACK_CONV_FORWARD || layout == TN_PACK_CONV_BACKWARD
                                      ? TN_STORE_F32
                                      : (int)plan->gemm_store,
                         .out = s->out_channels,
                         .in = s->in_channels,
                         .taps = plan->taps,
                         .ld = plan->ld,
                         .identity = tn_node_adds_own_input(node_of(plan))};
    size_t bytes = tn_pack_count(&item) * tn_cuda_store_bytes((tn_storage)item.store);
    TN_TRY(tn_cuda_alloc(&plan->base.cuda->head, memory, bytes, "packed weights"));
    plan->base.head.bytes += bytes;
    return tn_cuda_plan_pack(&plan->base, item, node_of(plan)->weight, true, *memory);
}

static tn_status plan_bias(conv_plan *plan) {
    int channels = plan->shape.out_channels;
    size_t bytes = (size_t)channels * sizeof(float);
    tn_pack_item item = {
        .layout = TN_PACK_GEMM, .store = TN_STORE_F32, .out = 1, .in = channels, .taps = 1, .ld = channels};
    TN_TRY(tn_cuda_alloc(&plan->base.cuda->head, &plan->bias, bytes, "bias"));
    plan->base.head.bytes += bytes;
    return tn_cuda_plan_pack(&plan->base, item, node_of(plan)->bias, false, plan->bias);
}

static tn_status allocate(conv_plan *plan, int chunks) {
    static const int layouts[][2] = {[STEM] = {TN_PACK_CONV_FORWARD},
                                     [DIRECT] = {TN_PACK_CONV_FORWARD, TN_PACK_CONV_BACKWARD},
                                     [WMMA] = {TN_PACK_TAPS_FORWARD, TN_PACK_TAPS_BACKWARD},
                                     [GEMM] = {TN_PACK_GEMM},
                                     [IM2COL] = {TN_PACK_GEMM}};
    bool need_dx = plan->base.training && node_of(plan)->input != 0;
    TN_TRY(plan_pack(plan, layouts[plan->method][0], &plan->forward_weights));
    if (!uses_cublas(plan) && need_dx)
        TN_TRY(plan_pack(plan, layouts[plan->method][1], &plan->backward_weights));
    if (node_of(plan)->bias >= 0) TN_TRY(plan_bias(plan));
    if (!plan->base.training || !node_of(plan)->relu) return TN_OK;
    plan->mask_words = (tn_cuda_floats(plan->base.out) * (size_t)plan->base.rows + 31) / 32;
    size_t bytes = (size_t)chunks * plan->mask_words * sizeof(uint32_t);
    plan->base.head.bytes += bytes;
    return tn_cuda_alloc(&plan->base.cuda->head, &plan->masks, bytes, "masks");
}

static tn_status conv_plan_make(tn_backend *backend, const tn_model *model, int index, int chunk_rows,
                                int chunks, bool training, tn_plan **out) {
    static const char *const names[] = {[STEM] = "stem",
                                        [DIRECT] = "direct",
                                        [WMMA] = "wmma",
                                        [GEMM] = "cublas",
                                        [IM2COL] = "im2col, cublas"};
    conv_plan *plan;
    const tn_node *node = &model->nodes[index];
    TN_TRY(tn_cuda_plan_make(backend, model, index, chunk_rows, training, sizeof *plan, &plan));
    plan->shape = shape_of(&plan->base);
    plan->unit = unit_of(plan->base.cuda->precision);
    plan->method = tn_cuda_conv_is_stem(model, node, &plan->shape)
                       ? STEM
                       : choose_method(&plan->shape, plan->base.cuda->precision, plan->unit);
    plan->base.head.checks_input = plan->method == STEM;
    plan->gemm_store = plan->base.cuda->precision == TN_PRECISION_BF16 ? TN_STORE_BF16 : TN_STORE_F32;
    plan->taps = plan->shape.kernel * plan->shape.kernel;
    plan->ld = plan->taps * plan->shape.in_channels;
    if (plan->method == IM2COL) plan->ld = (plan->ld + LD_MULTIPLE - 1) / LD_MULTIPLE * LD_MULTIPLE;
    plan->needs_epilogue =
        node->term_count > 0 || node->bias >= 0 || node->carry >= 0 || node->relu || has_residual(node);
    plan->needs_sums = node->term_count > 0 || node->carry >= 0;
    plan->trained = training && weight_of(plan)->group != TN_GROUP_FIXED;
    plan->both = plan->method == WMMA && plan->trained && node->input != 0 &&
                 tn_wmma3x3_both_takes(&plan->shape, plan->unit);
    plan_columns(plan);
    plan_scratch(plan);
    plan_parts(plan);
    tn_status status = allocate(plan, chunks);
    if (status != TN_OK) {
        conv_free(&plan->base.head);
        return tn_fail_prefix(status, "layer %s", node->name);
    }
    for (int i = 0; i < (training ? 3 : 1); i++)
        if (i != 1 || node->input != 0)
            snprintf(plan->base.head.implementation[i], sizeof plan->base.head.implementation[i], "%s%s",
                     names[plan->method], i && plan->both ? ", one launch" : "");
    *out = &plan->base.head;
    return TN_OK;
}

/* ---- matrix products ---- */

typedef struct matrix {
    const void *data;
    int ld;
    tn_storage store;
    bool transposed;
} matrix;

/* to[rows][columns] = a[rows][inner] b[inner][columns] (+ to), row-major; a transposed matrix is stored the
 * other way round. */
static tn_status multiply(tn_cuda *cuda, size_t rows, int columns, size_t inner, matrix a, matrix b, void *to,
                          int ld, tn_storage store, bool add) {
    static const cudaDataType types[] = {CUDA_R_32F, CUDA_R_16BF};
    const float one = 1.0f, beta = add ? 1.0f : 0.0f;
    cublasComputeType_t compute =
        cuda->precision == TN_PRECISION_TF32 ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F;
    TN_CUBLAS(cublasGemmEx(cuda->blas, b.transposed ? CUBLAS_OP_T : CUBLAS_OP_N,
                           a.transposed ? CUBLAS_OP_T : CUBLAS_OP_N, columns, (int)rows, (int)inner, &one,
                           b.data, types[b.store], b.ld, a.data, types[a.store], a.ld, &beta, to,
                           types[store], ld, compute, CUBLAS_GEMM_DEFAULT));
    return TN_OK;
}

/* A slice of rows on its way through im2col. */
typedef struct slice {
    conv_plan *plan;
    const tn_args *args;
    tn_conv_shape shape;
    size_t pixels, first_pixel, first_row;
} slice;

static void *offset(const void *base, size_t elements, tn_storage store) {
    return (char *)(uintptr_t)base + elements * tn_cuda_store_bytes(store);
}

static void *scratch(const slice *s, size_t at) {
    return (char *)s->args->scratch + at;
}

static bool next_slice(slice *s) {
    conv_plan *plan = s->plan;
    s->first_row += (size_t)s->shape.rows;
    int left = plan->shape.rows - (int)s->first_row;
    s->shape = plan->shape;
    s->shape.rows = left < plan->slice_rows ? left : plan->slice_rows;
    s->first_pixel = tn_cuda_pixels(&plan->base, (int)s->first_row);
    s->pixels = tn_cuda_pixels(&plan->base, s->shape.rows);
    return left > 0;
}

/* The left operand of the forward product: x itself, x converted, or its columns. */
static tn_status columns_of(const slice *s, matrix *out) {
    conv_plan *plan = s->plan;
    tn_storage store = plan->base.x_store;
    size_t image = tn_cuda_floats(plan->base.in);
    const void *x = offset(s->args->x, s->first_row * image, store);
    *out = (matrix){.data = scratch(s, plan->columns_at), .ld = plan->ld, .store = plan->gemm_store};
    if (plan->method == IM2COL)
        TN_CUDA(tn_launch_im2col(&s->shape, store, x, plan->gemm_store, scratch(s, plan->columns_at),
                                 plan->ld, plan->base.cuda->stream));
    else if (store == plan->gemm_store)
        out->data = x;
    else
        TN_CUDA(tn_launch_convert((size_t)s->shape.rows * image, store, x, plan->gemm_store,
                                  scratch(s, plan->columns_at), plan->base.cuda->stream));
    return TN_OK;
}

static matrix weights_of(const conv_plan *plan) {
    return (matrix){.data = plan->forward_weights, .ld = plan->ld, .store = plan->gemm_store};
}

/* ---- forward ---- */

static tn_status forward_gemm(conv_plan *plan, const tn_args *a) {
    int channels = plan->shape.out_channels;
    matrix w = weights_of(plan), x;
    w.transposed = true;
    for (slice s = {.plan = plan, .args = a}; next_slice(&s);) {
        TN_TRY(columns_of(&s, &x));
        void *y = offset(a->y, s.first_pixel * (size_t)channels, plan->base.y_store);
        TN_TRY(multiply(plan->base.cuda, s.pixels, channels, (size_t)plan->ld, x, w, y, channels,
                        plan->base.y_store, false));
    }
    return TN_OK;
}

static uint32_t *mask_of(const conv_plan *plan, const tn_args *a) {
    return plan->masks ? plan->masks + (size_t)a->chunk * plan->mask_words : NULL;
}

static tn_status conv_forward(tn_plan *head, const tn_args *a) {
    conv_plan *plan = (conv_plan *)(void *)head;
    const tn_node *node = head->node;
    tn_cuda *cuda = plan->base.cuda;
    tn_epilogue e = {.c = tn_cuda_c(cuda, head),
                     .d = tn_cuda_d(cuda, head),
                     .bias = plan->bias,
                     .r = has_residual(node) ? a->r : NULL,
                     .relu = node->relu,
                     .mask = mask_of(plan, a),
                     .nonfinite = a->nonfinite};
    if (plan->method == STEM) {
        TN_CUDA(tn_launch_stem_forward(&plan->shape, a->x, plan->forward_weights, e, plan->base.y_store, a->y,
                                       a->x_nonfinite, cuda->stream));
        return TN_OK;
    }
    if (plan->method == DIRECT) {
        TN_CUDA(tn_launch_conv3x3_forward(&plan->shape, plan->base.x_store, a->x, plan->forward_weights, e,
                                          plan->base.y_store, a->y, cuda->stream));
        return TN_OK;
    }
    if (plan->method == WMMA) {
        TN_CUDA(tn_launch_wmma3x3_forward(&plan->shape, plan->unit, plan->base.x_store, a->x,
                                          plan->forward_weights, e, plan->base.y_store, a->y, cuda->stream));
        return TN_OK;
    }
    TN_TRY(forward_gemm(plan, a));
    if (!plan->needs_epilogue) return TN_OK;
    TN_CUDA(tn_launch_epilogue_forward(tn_cuda_pixels(&plan->base, plan->base.rows), plan->shape.out_channels,
                                       plan->base.y_store, a->y, e, plan->base.y_store, a->y, cuda->stream));
    return TN_OK;
}

/* ---- backward ---- */

static tn_status backward_epilogue(conv_plan *plan, const tn_args *a) {
    double *sums = NULL;
    if (a->dy_count == 0 || (a->dy_count == 1 && !node_of(plan)->relu && !plan->needs_sums)) return TN_OK;
    if (plan->needs_sums) sums = tn_cuda_leave_parts(plan->base.cuda, sums_item(plan, a->flat));
    TN_CUDA(tn_launch_epilogue_backward(output_values(plan), plan->base.y_store, tn_cuda_parts(a),
                                        mask_of(plan, a), a->dz, sums, NULL, plan->base.cuda->stream));
    return TN_OK;
}

static bool conv_gates(const tn_plan *head, const tn_plan *maker) {
    const conv_plan *plan = (const conv_plan *)(const void *)head,
                    *other = (const conv_plan *)(const void *)maker;
    const bool alone = plan->forward_weights && maker->node->kind == TN_NODE_CONV && other->forward_weights;
    return alone && plan->method == WMMA;
}

/* What the node that made x wants of dx. */
static tn_gate gate_of(const conv_plan *plan, const tn_args *a) {
    const conv_plan *maker = (const conv_plan *)(const void *)a->gate;
    tn_gate gate = {0};
    if (!maker) return gate;
    gate.r = a->r;
    gate.mask = mask_of(maker, a);
    if (maker->needs_sums)
        gate.sums =
            tn_cuda_leave_parts(plan->base.cuda, tn_cuda_sums_item(a->gate, a->flat, plan->gate_parts));
    return gate;
}

static tn_status bias_gradient(conv_plan *plan, const tn_args *a) {
    const tn_node *node = node_of(plan);
    if (node->bias < 0) return TN_OK;
    float *grad = a->flat->grads + plan->base.head.model->params[node->bias].offset,
          *made = a->chunk ? (float *)a->scratch + plan->made_at / sizeof(float) : grad;
    int outputs = plan->shape.out_channels;
    TN_CUDA(tn_launch_column_sums(plan->base.rows, outputs, plan->base.y_store, a->dz, made,
                                  plan->base.cuda->stream));
    return tn_cuda_accumulate(plan->base.cuda, a, grad, made, (size_t)outputs);
}

/* dz in the type of matrix products. */
static tn_status converted_dz(conv_plan *plan, const tn_args *a, const void **dz) {
    *dz = a->dz;
    if (plan->base.y_store == plan->gemm_store) return TN_OK;
    void *to = (char *)a->scratch + plan->dz_at;
    TN_CUDA(tn_launch_convert(output_values(plan), plan->base.y_store, a->dz, plan->gemm_store, to,
                              plan->base.cuda->stream));
    *dz = to;
    return TN_OK;
}

static matrix dz_matrix(const slice *s, const void *dz) {
    int channels = s->plan->shape.out_channels;
    return (matrix){.data = offset(dz, s->first_pixel * (size_t)channels, s->plan->gemm_store),
                    .ld = channels,
                    .store = s->plan->gemm_store};
}

/* G [out][ld] over all slices, then in the order of the parameter. */
static tn_status weights_gemm(conv_plan *plan, const tn_args *a, const void *dz, float *made) {
    tn_cuda *cuda = plan->base.cuda;
    float *g = plan->taps == 1 ? made : (float *)(void *)((char *)a->scratch + plan->gradient_at);
    matrix x;
    bool add = false;
    for (slice s = {.plan = plan, .args = a}; next_slice(&s); add = true) {
        TN_TRY(columns_of(&s, &x));
        matrix z = dz_matrix(&s, dz);
        z.transposed = true;
        TN_TRY(multiply(cuda, (size_t)plan->shape.out_channels, plan->ld, s.pixels, z, x, g, plan->ld,
                        TN_STORE_F32, add));
    }
    if (plan->taps > 1)
        TN_CUDA(tn_launch_unpack_gradient(plan->shape.out_channels, plan->shape.in_channels, plan->taps,
                                          plan->ld, g, made, cuda->stream));
    return TN_OK;
}

static tn_status data_gemm(conv_plan *plan, const tn_args *a, const void *dz) {
    tn_cuda *cuda = plan->base.cuda;
    size_t image = tn_cuda_floats(plan->base.in);
    for (slice s = {.plan = plan, .args = a}; next_slice(&s);) {
        void *dx = offset(a->dx, s.first_row * image, plan->base.x_store),
             *columns = scratch(&s, plan->columns_at);
        bool direct = plan->method == GEMM;
        TN_TRY(multiply(cuda, s.pixels, plan->ld, (size_t)plan->shape.out_channels, dz_matrix(&s, dz),
                        weights_of(plan), direct ? dx : columns, plan->ld,
                        direct ? plan->base.x_store : plan->gemm_store, false));
        if (!direct)
            TN_CUDA(tn_launch_col2im(&s.shape, plan->gemm_store, columns, plan->ld, plan->base.x_store, dx,
                                     cuda->stream));
    }
    return TN_OK;
}

static tn_status backward_direct(conv_plan *plan, const tn_args *a) {
    cudaStream_t stream = plan->base.cuda->stream;
    tn_storage xs = plan->base.x_store, ys = plan->base.y_store;
    if (plan->trained)
        TN_CUDA(tn_launch_conv3x3_backward_weights(&plan->shape, xs, a->x, ys, a->dz, leave_weights(plan, a),
                                                   stream));
    if (a->dx)
        TN_CUDA(tn_launch_conv3x3_backward_data(&plan->shape, ys, a->dz, plan->backward_weights, xs, a->dx,
                                                stream));
    return TN_OK;
}

static tn_status backward_wmma(conv_plan *plan, const tn_args *a) {
    cudaStream_t stream = plan->base.cuda->stream;
    tn_storage xs = plan->base.x_store, ys = plan->base.y_store;
    const tn_gate gate = gate_of(plan, a);
    if (plan->both) {
        TN_CUDA(tn_launch_wmma3x3_backward(&plan->shape, xs, a->x, ys, a->dz, plan->backward_weights, gate,
                                           a->dx, leave_weights(plan, a), stream));
        return TN_OK;
    }
    if (plan->trained)
        TN_CUDA(tn_launch_wmma3x3_backward_weights(&plan->shape, plan->unit, xs, a->x, ys, a->dz,
                                                   leave_weights(plan, a), stream));
    if (a->dx)
        TN_CUDA(tn_launch_wmma3x3_backward_data(&plan->shape, plan->unit, ys, a->dz, plan->backward_weights,
                                                gate, xs, a->dx, stream));
    return TN_OK;
}

static tn_status backward_gemm(conv_plan *plan, const tn_args *a) {
    const tn_param *w = weight_of(plan);
    float *grad = a->flat->grads + w->offset,
          *made = a->chunk ? (float *)a->scratch + plan->made_at / sizeof(float) : grad;
    const void *dz;
    TN_TRY(converted_dz(plan, a, &dz));
    if (plan->trained) {
        TN_TRY(weights_gemm(plan, a, dz, made));
        TN_TRY(tn_cuda_accumulate(plan->base.cuda, a, grad, made, w->count));
    }
    return a->dx ? data_gemm(plan, a, dz) : TN_OK;
}

/* From the incoming gradients, the convolution's own being kept nowhere, or from that which a gate has made.
 */
static tn_status backward_stem(conv_plan *plan, const tn_args *a) {
    const bool made = a->dy_count == 0;
    const tn_parts dy = made ? (tn_parts){.part = {a->dz}, .count = 1} : tn_cuda_parts(a);
    double *sums = NULL;
    if (plan->needs_sums && !made) sums = tn_cuda_leave_parts(plan->base.cuda, sums_item(plan, a->flat));
    TN_CUDA(tn_launch_stem_backward(&plan->shape, a->x, plan->base.y_store, dy,
                                    made ? NULL : mask_of(plan, a), leave_weights(plan, a), sums,
                                    plan->base.cuda->stream));
    return TN_OK;
}

static tn_status conv_backward(tn_plan *head, const tn_args *a) {
    conv_plan *plan = (conv_plan *)(void *)head;
    TN_TRY(tn_cuda_open_parts(plan->base.cuda, a, &plan->base.need));
    if (plan->method == STEM) return backward_stem(plan, a);
    TN_TRY(backward_epilogue(plan, a));
    TN_TRY(bias_gradient(plan, a));
    if (plan->method == DIRECT) return backward_direct(plan, a);
    if (plan->method == WMMA) return backward_wmma(plan, a);
    return backward_gemm(plan, a);
}

const tn_node_ops tn_cuda_conv = {.plan = conv_plan_make,
                                  .free = conv_free,
                                  .forward = conv_forward,
                                  .backward = conv_backward,
                                  .gates = conv_gates};
