#include "backend/cpu/dnn.h"

#include <omp.h>
#include <oneapi/dnnl/dnnl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include "base/memory.h"

/* MiB for generated code: of a primitive, of all matrix products. */
#define HEADROOM          16
#define HEADROOM_PRODUCTS 64

/* One engine and one stream for the process: both are immutable handles here, as the primitives run on the
 * calling thread. */
static pthread_once_t once = PTHREAD_ONCE_INIT;
static dnnl_engine_t engine;
static dnnl_stream_t stream;
static dnnl_status_t once_status;

static void open_once(void) {
    once_status = dnnl_engine_create(&engine, dnnl_cpu, 0);
    if (once_status == dnnl_success)
        once_status = dnnl_stream_create(&stream, engine, dnnl_stream_default_flags);
}

static tn_status check(dnnl_status_t status, const char *call) {
    if (status == dnnl_success) return TN_OK;
    if (status == dnnl_out_of_memory) return tn_fail(TN_ERR_MEMORY, "oneDNN: out of memory in %s", call);
    return tn_fail(TN_ERR_DEVICE, "oneDNN: %s failed (%s)", call,
                   status == dnnl_unimplemented ? "unimplemented" : "invalid arguments or runtime error");
}
#define DNN_TRY(call) TN_TRY(check((call), #call))

void tn_dnn_thread_start(void) {
    omp_set_num_threads(1);
}

void tn_dnn_describe(char *text, size_t size) {
    const dnnl_version_t *v = dnnl_version();
    dnnl_cpu_isa_t isa = dnnl_get_effective_cpu_isa();
    const char *name = isa >= dnnl_cpu_isa_avx512_core ? "AVX-512"
                       : isa >= dnnl_cpu_isa_avx2      ? "AVX2"
                       : isa >= dnnl_cpu_isa_avx       ? "AVX"
                                                       : "SSE4.1";
    snprintf(text, size, "oneDNN %d.%d.%d, %s", v->major, v->minor, v->patch, name);
}

/* ---- kernels ---- */

static void kernel_free(tn_dnn_kernel *kernel) {
    if (kernel->memories)
        for (int i = 0; i < kernel->workers * kernel->arg_count; i++)
            if (kernel->memories[i]) dnnl_memory_destroy(kernel->memories[i]);
    tn_free(kernel->memories);
    if (kernel->primitive) dnnl_primitive_destroy(kernel->primitive);
    memset(kernel, 0, sizeof *kernel);
}

/* Makes a kernel of a primitive descriptor; `descs` describe the operands in call order, the scratchpad is
 * added. */
static tn_status kernel_make(tn_dnn_kernel *kernel, const_dnnl_primitive_desc_t pd, int workers, int count,
                             const int *ids, const dnnl_memory_desc_t *const *descs) {
    const dnnl_memory_desc_t *scratch = dnnl_primitive_desc_query_md(pd, dnnl_query_scratchpad_md, 0);
    const char *name;
    DNN_TRY(dnnl_primitive_desc_query(pd, dnnl_query_impl_info_str, 0, (void *)&name));
    snprintf(kernel->implementation, sizeof kernel->implementation, "%s", name);
    dnnl_primitive_t primitive;
    DNN_TRY(dnnl_primitive_create(&primitive, pd));
    kernel->primitive = primitive;
    kernel->scratch_bytes = dnnl_memory_desc_get_size(scratch);
    kernel->workers = workers;
    TN_ASSERT(count < DNN_ARGS_MAX);
    kernel->arg_count = count + 1;
    memcpy(kernel->arg_ids, ids, (size_t)count * sizeof *ids);
    kernel->arg_ids[count] = DNNL_ARG_SCRATCHPAD;
    TN_TRY(tn_alloc(&kernel->memories, (size_t)workers * (size_t)kernel->arg_count, sizeof(void *),
                    "oneDNN memories"));
    for (int w = 0; w < workers; w++)
        for (int i = 0; i <= count; i++) {
            dnnl_memory_t memory;
            DNN_TRY(dnnl_memory_create(&memory, i < count ? descs[i] : scratch, engine, DNNL_MEMORY_NONE));
            kernel->memories[w * kernel->arg_count + i] = memory;
        }
    return TN_OK;
}

tn_status tn_dnn_run(const tn_dnn_kernel *kernel, int worker, const void *const *data) {
    dnnl_exec_arg_t args[DNN_ARGS_MAX];
    void **memories = kernel->memories + worker * kernel->arg_count;
    for (int i = 0; i < kernel->arg_count; i++) {
        DNN_TRY(dnnl_memory_set_data_handle(memories[i], (void *)(uintptr_t)data[i]));
        args[i].arg = kernel->arg_ids[i];
        args[i].memory = memories[i];
    }
    return check(dnnl_primitive_execute(kernel->primitive, stream, kernel->arg_count, args),
                 kernel->implementation);
}

/* ---- planning a convolution or inner product ---- */

/* Descriptors shared by the planning steps. */
typedef struct planner {
    const tn_dnn_shape *shape;
    int workers, spatial; /* spatial: 2 for conv, 0 for linear */
    dnnl_memory_desc_t x, weights, bias, y, scalar, plain_weights;
    dnnl_primitive_attr_t attr, plain_attr;
    dnnl_post_ops_t post_ops;
    dnnl_primitive_desc_t forward, data, gradient;
} planner;

static tn_status describe_operands(planner *p) {
    const tn_dnn_shape *s = p->shape;
    int rank = 2 + p->spatial;
    dnnl_dims_t x = {s->rows, s->in_channels, s->in_height, s->in_width};
    dnnl_dims_t w = {s->out_channels, s->in_channels, s->kernel, s->kernel};
    dnnl_dims_t y = {s->rows, s->out_channels, s->out_height, s->out_width};
    dnnl_dims_t b = {s->out_channels}, one = {1, 1, 1, 1};
    dnnl_format_tag_t activation = s->linear ? dnnl_nc : dnnl_nhwc;
    DNN_TRY(dnnl_memory_desc_init_by_tag(&p->x, rank, x, dnnl_f32, activation));
    DNN_TRY(
        dnnl_memory_desc_init_by_tag(&p->plain_weights, rank, w, dnnl_f32, s->linear ? dnnl_ab : dnnl_abcd));
    p->weights = p->plain_weights;
    if (!s->linear)
        DNN_TRY(dnnl_memory_desc_init_by_tag(&p->weights, rank, w, dnnl_f32, dnnl_format_tag_any));
    DNN_TRY(dnnl_memory_desc_init_by_tag(&p->bias, 1, b, dnnl_f32, dnnl_a));
    DNN_TRY(dnnl_memory_desc_init_by_tag(&p->y, rank, y, dnnl_f32, activation));
    return check(
        dnnl_memory_desc_init_by_tag(&p->scalar, rank, one, dnnl_f32, s->linear ? dnnl_ab : dnnl_abcd),
        "describe scalar");
}

static tn_status describe_epilogue(planner *p) {
    const tn_dnn_shape *s = p->shape;
    DNN_TRY(dnnl_primitive_attr_create(&p->plain_attr));
    DNN_TRY(dnnl_primitive_attr_set_scratchpad_mode(p->plain_attr, dnnl_scratchpad_mode_user));
    DNN_TRY(dnnl_primitive_attr_create(&p->attr));
    DNN_TRY(dnnl_primitive_attr_set_scratchpad_mode(p->attr, dnnl_scratchpad_mode_user));
    DNN_TRY(dnnl_post_ops_create(&p->post_ops));
    if (s->residual) DNN_TRY(dnnl_post_ops_append_binary(p->post_ops, dnnl_binary_add, &p->y));
    if (s->relu) DNN_TRY(dnnl_post_ops_append_eltwise(p->post_ops, 1.0f, dnnl_eltwise_relu, 0.0f, 0.0f));
    if (s->carry) DNN_TRY(dnnl_post_ops_append_binary(p->post_ops, dnnl_binary_add, &p->scalar));
    return check(dnnl_primitive_attr_set_post_ops(p->attr, p->post_ops), "set post-ops");
}

static tn_status make_descriptors(planner *p) {
    const tn_dnn_shape *s = p->shape;
    dnnl_dims_t stride = {s->stride, s->stride}, pad = {s->padding, s->padding};
    /* The far padding is what makes the output size come out, as floor division may leave some input unused.
     */
    dnnl_dim_t far_h = (dnnl_dim_t)(s->out_height - 1) * s->stride + s->kernel - s->in_height - s->padding;
    dnnl_dim_t far_w = (dnnl_dim_t)(s->out_width - 1) * s->stride + s->kernel - s->in_width - s->padding;
    dnnl_dims_t far = {far_h, far_w};
    const dnnl_memory_desc_t *bias = s->bias ? &p->bias : NULL;
    if (s->linear) {
        dnnl_inner_product_desc_t d;
        DNN_TRY(
            dnnl_inner_product_forward_desc_init(&d, dnnl_forward_training, &p->x, &p->weights, bias, &p->y));
        DNN_TRY(dnnl_primitive_desc_create(&p->forward, &d, p->attr, engine, NULL));
        if (s->need_weight_gradient) {
            DNN_TRY(dnnl_inner_product_backward_weights_desc_init(&d, &p->x, &p->weights, NULL, &p->y));
            DNN_TRY(dnnl_primitive_desc_create(&p->gradient, &d, p->plain_attr, engine, p->forward));
        }
        if (!s->need_data_gradient) return TN_OK;
        DNN_TRY(dnnl_inner_product_backward_data_desc_init(&d, &p->x, &p->weights, &p->y));
        return check(dnnl_primitive_desc_create(&p->data, &d, p->plain_attr, engine, p->forward),
                     "backward data");
    }
    dnnl_convolution_desc_t d;
    dnnl_alg_kind_t direct = dnnl_convolution_direct;
    DNN_TRY(dnnl_convolution_forward_desc_init(&d, dnnl_forward_training, direct, &p->x, &p->weights, bias,
                                               &p->y, stride, pad, far));
    DNN_TRY(dnnl_primitive_desc_create(&p->forward, &d, p->attr, engine, NULL));
    if (s->need_weight_gradient) {
        DNN_TRY(dnnl_convolution_backward_weights_desc_init(&d, direct, &p->x, &p->weights, NULL, &p->y,
                                                            stride, pad, far));
        DNN_TRY(dnnl_primitive_desc_create(&p->gradient, &d, p->plain_attr, engine, p->forward));
    }
    if (!s->need_data_gradient) return TN_OK;
    DNN_TRY(
        dnnl_convolution_backward_data_desc_init(&d, direct, &p->x, &p->weights, &p->y, stride, pad, far));
    return check(dnnl_primitive_desc_create(&p->data, &d, p->plain_attr, engine, p->forward),
                 "backward data");
}

static const dnnl_memory_desc_t *query(const_dnnl_primitive_desc_t pd, dnnl_query_t what) {
    return dnnl_primitive_desc_query_md(pd, what, 0);
}

/* None where there is nothing to reorder. */
static tn_status reorder_make(planner *p, tn_dnn_kernel *kernel, const dnnl_memory_desc_t *from,
                              const dnnl_memory_desc_t *to) {
    dnnl_primitive_desc_t pd;
    if (dnnl_memory_desc_equal(from, to)) return TN_OK;
    DNN_TRY(dnnl_reorder_primitive_desc_create(&pd, from, engine, to, engine, p->plain_attr));
    tn_status status = kernel_make(kernel, pd, p->workers, 2, (int[]){DNNL_ARG_FROM, DNNL_ARG_TO},
                                   (const dnnl_memory_desc_t *[]){from, to});
    dnnl_primitive_desc_destroy(pd);
    return status;
}

static tn_status make_forward(planner *p, tn_dnn_conv *out) {
    const tn_dnn_shape *s = p->shape;
    int ids[DNN_ARGS_MAX], n = 0, post = 0;
    const dnnl_memory_desc_t *descs[DNN_ARGS_MAX];
    const dnnl_memory_desc_t *weights = query(p->forward, dnnl_query_weights_md);
    ids[n] = DNNL_ARG_SRC, descs[n++] = &p->x;
    ids[n] = DNNL_ARG_WEIGHTS, descs[n++] = weights;
    if (s->bias) ids[n] = DNNL_ARG_BIAS, descs[n++] = &p->bias;
    ids[n] = DNNL_ARG_DST, descs[n++] = &p->y;
    if (s->residual) ids[n] = DNNL_ARG_ATTR_MULTIPLE_POST_OP(post++) | DNNL_ARG_SRC_1, descs[n++] = &p->y;
    if (s->relu) post++;
    if (s->carry) ids[n] = DNNL_ARG_ATTR_MULTIPLE_POST_OP(post++) | DNNL_ARG_SRC_1, descs[n++] = &p->scalar;
    out->forward_weight_floats = dnnl_memory_desc_get_size(weights) / sizeof(float);
    TN_TRY(kernel_make(&out->forward, p->forward, p->workers, n, ids, descs));
    return reorder_make(p, &out->pack_forward, &p->plain_weights, weights);
}

static tn_status make_backward(planner *p, tn_dnn_conv *out) {
    if (p->gradient) {
        const dnnl_memory_desc_t *grad = query(p->gradient, dnnl_query_diff_weights_md);
        out->grad_floats = dnnl_memory_desc_get_size(grad) / sizeof(float);
        TN_TRY(kernel_make(&out->backward_weights, p->gradient, p->workers, 3,
                           (int[]){DNNL_ARG_SRC, DNNL_ARG_DIFF_DST, DNNL_ARG_DIFF_WEIGHTS},
                           (const dnnl_memory_desc_t *[]){&p->x, &p->y, grad}));
        TN_TRY(reorder_make(p, &out->unpack, grad, &p->plain_weights));
    }
    if (p->data) {
        const dnnl_memory_desc_t *weights = query(p->data, dnnl_query_weights_md);
        TN_TRY(kernel_make(&out->backward_data, p->data, p->workers, 3,
                           (int[]){DNNL_ARG_DIFF_DST, DNNL_ARG_WEIGHTS, DNNL_ARG_DIFF_SRC},
                           (const dnnl_memory_desc_t *[]){&p->y, weights, &p->x}));
        if (dnnl_memory_desc_equal(weights, query(p->forward, dnnl_query_weights_md))) return TN_OK;
        out->backward_weight_floats = dnnl_memory_desc_get_size(weights) / sizeof(float);
        TN_TRY(reorder_make(p, &out->pack_backward, &p->plain_weights, weights));
    }
    return TN_OK;
}

static tn_status plan_all(planner *p, tn_dnn_conv *out) {
    TN_TRY(describe_operands(p));
    TN_TRY(describe_epilogue(p));
    tn_status status = make_descriptors(p);
    if (status != TN_OK)
        return tn_fail_prefix(status, "planning %d->%d %dx%d stride %d", p->shape->in_channels,
                              p->shape->out_channels, p->shape->kernel, p->shape->kernel, p->shape->stride);
    TN_TRY(make_forward(p, out));
    return make_backward(p, out);
}

/* oneDNN 2.6 crashes when memory for generated code runs out inside it: see that there is enough before. */
static tn_status check_headroom(int mebibytes) {
    size_t bytes = (size_t)mebibytes << 20;
    void *room = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (room == MAP_FAILED)
        return tn_fail(TN_ERR_MEMORY,
                       "out of memory: less than %d MiB left for generated code, with %.1f MiB in use",
                       mebibytes, (double)tn_memory_in_use() / 1048576.0);
    munmap(room, bytes);
    return TN_OK;
}

static size_t larger(size_t a, size_t b) {
    return a > b ? a : b;
}

/* The code of oneDNN's matrix products is generated when they first run: here, while there is room for it. */
static tn_status run_linear(const tn_dnn_shape *s, const tn_dnn_conv *c) {
    const tn_dnn_kernel *kernels[] = {&c->forward, &c->backward_data, &c->backward_weights};
    size_t scratch = 0, y = (size_t)s->rows * (size_t)s->out_channels,
           x = (size_t)s->rows * (size_t)s->in_channels * (size_t)s->in_height * (size_t)s->in_width,
           w = larger(c->forward_weight_floats, larger(c->backward_weight_floats, c->grad_floats));
    for (int i = 0; i < 3; i++) scratch = larger(scratch, kernels[i]->scratch_bytes / sizeof(float) + 1);
    float *at;
    TN_TRY(tn_alloc(&at, x + w + y + (size_t)s->out_channels + scratch, sizeof *at, "planning"));
    float *weights = at + x, *out = weights + w, *bias = out + y, *rest = bias + s->out_channels;
    const void *forward[] = {at, weights, s->bias ? bias : out, s->bias ? out : rest, rest},
               *data[] = {out, weights, at, rest}, *gradient[] = {at, out, weights, rest};
    const void *const *operands[] = {forward, data, gradient};
    tn_status status = TN_OK;
    for (int i = 0; i < 3 && status == TN_OK; i++)
        if (kernels[i]->primitive) status = tn_dnn_run(kernels[i], 0, operands[i]);
    tn_free(at);
    return status;
}

tn_status tn_dnn_conv_plan(const tn_dnn_shape *shape, int workers, tn_dnn_conv *out) {
    memset(out, 0, sizeof *out);
    TN_TRY(check_headroom(shape->linear ? HEADROOM_PRODUCTS : HEADROOM));
    pthread_once(&once, open_once);
    TN_TRY(check(once_status, "opening the CPU engine"));
    /* Implementations are chosen for the thread count seen while planning. */
    int threads = omp_get_max_threads();
    omp_set_num_threads(1);
    planner p = {.shape = shape, .workers = workers, .spatial = shape->linear ? 0 : 2};
    tn_status status = plan_all(&p, out);
    if (status == TN_OK && shape->linear) status = run_linear(shape, out);
    omp_set_num_threads(threads);
    if (p.forward) dnnl_primitive_desc_destroy(p.forward);
    if (p.data) dnnl_primitive_desc_destroy(p.data);
    if (p.gradient) dnnl_primitive_desc_destroy(p.gradient);
    if (p.post_ops) dnnl_post_ops_destroy(p.post_ops);
    if (p.attr) dnnl_primitive_attr_destroy(p.attr);
    if (p.plain_attr) dnnl_primitive_attr_destroy(p.plain_attr);
    if (status != TN_OK) tn_dnn_conv_free(out);
    return status;
}

void tn_dnn_conv_free(tn_dnn_conv *conv) {
    kernel_free(&conv->forward);
    kernel_free(&conv->backward_data);
    kernel_free(&conv->backward_weights);
    kernel_free(&conv->pack_forward);
    kernel_free(&conv->pack_backward);
    kernel_free(&conv->unpack);
}
