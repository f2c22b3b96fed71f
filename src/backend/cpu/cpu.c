#include "backend/cpu/cpu.h"

#include <stdio.h>
#include <string.h>

#include "backend/cpu/dnn.h"
#include "base/memory.h"
#include "base/simd.h"

static int device_count(void) {
    return 1;
}

static void cpu_close(tn_backend *backend) {
    tn_cpu *cpu = (tn_cpu *)(void *)backend;
    if (!cpu) return;
    for (int w = 0; cpu->weight_scratch && w < cpu->head.workers; w++) tn_free(cpu->weight_scratch[w]);
    tn_free(cpu->weight_scratch);
    tn_free(cpu);
}

static tn_status cpu_open(int device, int workers, tn_precision precision, tn_backend **out) {
    (void)device;
    (void)precision;
    tn_cpu *cpu;
    *out = NULL;
    TN_TRY(tn_alloc(&cpu, 1, sizeof *cpu, "backend"));
    cpu->head.ops = &tn_cpu_backend;
    cpu->head.workers = workers;
    tn_status status = tn_alloc(&cpu->weight_scratch, (size_t)workers, sizeof(float *), "backend");
    if (status != TN_OK) {
        tn_free(cpu);
        return status;
    }
    *out = &cpu->head;
    return TN_OK;
}

tn_status tn_cpu_reserve_weights(tn_cpu *cpu, size_t floats) {
    if (floats <= cpu->weight_scratch_floats) return TN_OK;
    for (int w = 0; w < cpu->head.workers; w++) {
        tn_free(cpu->weight_scratch[w]);
        cpu->weight_scratch[w] = NULL;
    }
    cpu->weight_scratch_floats = 0;
    for (int w = 0; w < cpu->head.workers; w++)
        TN_TRY(tn_alloc(&cpu->weight_scratch[w], floats, sizeof(float), "weight scratch"));
    cpu->weight_scratch_floats = floats;
    return TN_OK;
}

static tn_status cpu_alloc(tn_backend *backend, void *out, size_t bytes, const char *what) {
    (void)backend;
    return tn_alloc(out, bytes, 1, what);
}

static void cpu_release(tn_backend *backend, void *memory) {
    (void)backend;
    tn_free(memory);
}

static tn_status cpu_copy(tn_backend *backend, void *to, const void *from, size_t bytes) {
    (void)backend;
    memcpy(to, from, bytes);
    return TN_OK;
}

static void cpu_add(tn_backend *backend, float *to, const float *from, size_t count) {
    (void)backend;
    tn_cpu_add(to, from, count);
}

TN_SIMD static void sgd_loop(float *values, const float *grads, float *momentum, size_t count, float lr,
                             float mu, float decay) {
#pragma omp simd
    for (size_t i = 0; i < count; i++) {
        float v = mu * momentum[i] + grads[i] + decay * values[i];
        momentum[i] = v;
        values[i] -= lr * v;
    }
}

static tn_status cpu_clear(tn_backend *backend, void *memory, size_t bytes) {
    (void)backend;
    memset(memory, 0, bytes);
    return TN_OK;
}

static tn_status cpu_read(tn_backend *backend, const tn_model *model, int tensor, float *to,
                          const float *from, size_t count) {
    (void)backend;
    (void)model;
    (void)tensor;
    memcpy(to, from, count * sizeof(float));
    return TN_OK;
}

static tn_status cpu_check(tn_backend *backend, const float *values, size_t count, int *nonfinite) {
    (void)backend;
    if (!tn_cpu_finite(values, count)) *nonfinite = 1;
    return TN_OK;
}

static void scalar_gradients(const tn_model *m, const tn_flat *flat) {
    float *grads = flat->grads, *values = flat->values;
    memset(grads + m->weight_floats, 0, (m->trained_floats - m->weight_floats) * sizeof(float));
    for (int i = 0; i < m->node_count; i++) {
        const tn_node *node = &m->nodes[i];
        const float *sums = flat->sums + 3 * (size_t)i;
        float s = tn_node_scale(node, m, values), inside = sums[2];
        for (int t = 0; t < node->term_count; t++) {
            const tn_term *term = &node->terms[t];
            size_t at = m->params[term->param].offset;
            grads[at] += term->factor * (term->scaled ? s : 1.0f) * sums[0];
            if (term->scaled) inside += term->factor * values[at] * sums[0];
        }
        if (node->carry >= 0) grads[m->params[node->carry].offset] += sums[1];
        if (node->scale.param >= 0) grads[m->params[node->scale.param].offset] += node->scale.factor * inside;
    }
    for (int i = 0; i < m->param_count; i++)
        for (size_t j = 0; m->params[i].grad_factor != 1.0f && j < m->params[i].count; j++)
            grads[m->params[i].offset + j] *= m->params[i].grad_factor;
}

static tn_status cpu_scalar_gradients(tn_backend *backend, const tn_model *model, const tn_flat *flat,
                                      int *nonfinite) {
    (void)backend;
    scalar_gradients(model, flat);
    if (!tn_cpu_finite(flat->grads + model->weight_floats, model->trained_floats - model->weight_floats))
        *nonfinite = 1;
    return TN_OK;
}

static tn_status cpu_any(tn_backend *backend, const int *flags, int count, int *stop) {
    (void)backend;
    for (int i = 0; i < count; i++)
        if (flags[i]) *stop = 1;
    return TN_OK;
}

static tn_status cpu_sgd(tn_backend *backend, float *values, const float *grads, float *momentum,
                         size_t count, const float *lr, float mu, float decay, const int *stop) {
    (void)backend;
    if (!*stop) sgd_loop(values, grads, momentum, count, *lr, mu, decay);
    return TN_OK;
}

TN_SIMD static void average_loop(float *mean, const float *values, size_t count, float rate) {
#pragma omp simd
    for (size_t i = 0; i < count; i++) mean[i] += rate * (values[i] - mean[i]);
}

static tn_status cpu_average(tn_backend *backend, float *mean, const float *values, size_t count, float rate,
                             const int *stop) {
    (void)backend;
    if (!*stop) average_loop(mean, values, count, rate);
    return TN_OK;
}

static tn_status cpu_square_sum(tn_backend *backend, const tn_model *model, int tensor,
                                const float *const *parts, int count, float shift, size_t floats,
                                double *out) {
    (void)backend;
    (void)model;
    (void)tensor;
    *out = tn_cpu_square_sum(parts, count, shift, floats);
    return TN_OK;
}

static void cpu_describe(int device, char *text, size_t size) {
    (void)device;
    tn_dnn_describe(text, size);
}

const tn_backend_ops tn_cpu_backend = {.name = "cpu",
                                       .host_memory = true,
                                       .precisions = 1u << TN_PRECISION_FP32,
                                       .device_count = device_count,
                                       .open = cpu_open,
                                       .close = cpu_close,
                                       .thread_start = tn_dnn_thread_start,
                                       .describe = cpu_describe,
                                       .alloc = cpu_alloc,
                                       .release = cpu_release,
                                       .upload = cpu_copy,
                                       .download = cpu_copy,
                                       .clear = cpu_clear,
                                       .read = cpu_read,
                                       .check = cpu_check,
                                       .add = cpu_add,
                                       .scalar_gradients = cpu_scalar_gradients,
                                       .any = cpu_any,
                                       .sgd = cpu_sgd,
                                       .average = cpu_average,
                                       .square_sum = cpu_square_sum,
                                       .nodes = {[TN_NODE_CONV] = &tn_cpu_conv,
                                                 [TN_NODE_LINEAR] = &tn_cpu_conv,
                                                 [TN_NODE_NORM] = &tn_cpu_norm,
                                                 [TN_NODE_SUBSAMPLE] = &tn_cpu_subsample,
                                                 [TN_NODE_APPEND] = &tn_cpu_append,
                                                 [TN_NODE_MAXPOOL] = &tn_cpu_maxpool,
                                                 [TN_NODE_AVGPOOL] = &tn_cpu_avgpool,
                                                 [TN_NODE_LOSS] = &tn_cpu_loss}};
