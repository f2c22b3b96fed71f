/* Nodes without arithmetic to speak of: subsample, append, maxpool, avgpool. NHWC, one chunk at a time. */
#include <string.h>

#include "backend/cpu/cpu.h"
#include "base/memory.h"
#include "base/simd.h"

#define POOL_WINDOW_MAX 64 /* pixels: up to 8 x 8 */

typedef struct shape_plan {
    tn_plan head;
    int rows;
    tn_shape in, out;
    float term;  /* subsample: value of c */
    float carry; /* avgpool: value of d */
} shape_plan;

static size_t floats(tn_shape s) {
    return (size_t)s.channels * (size_t)s.height * (size_t)s.width;
}

static void shape_free(tn_plan *head) {
    tn_free(head);
}

static tn_status shape_plan_make(tn_backend *backend, const tn_model *model, int index, int chunk_rows,
                                 int chunks, bool training, tn_plan **out) {
    (void)backend;
    (void)chunks;
    shape_plan *plan;
    TN_TRY(tn_alloc(&plan, 1, sizeof *plan, "layer plan"));
    const tn_node *node = &model->nodes[index];
    plan->head.model = model;
    plan->head.node = node;
    plan->rows = chunk_rows;
    plan->in = model->tensors[node->input].shape;
    plan->out = model->tensors[node->output].shape;
    TN_ASSERT(node->kind != TN_NODE_MAXPOOL || node->kernel * node->kernel <= POOL_WINDOW_MAX);
    /* Sum of dz and of dy, for the scalars of subsample and avgpool. */
    if (training && (node->term_count > 0 || node->carry >= 0)) plan->head.grad_floats = 2;
    memcpy(plan->head.implementation[0], "plain", 6);
    *out = &plan->head;
    return TN_OK;
}

static tn_status shape_pack(tn_plan *head, int worker, const tn_flat *flat, int *nonfinite) {
    shape_plan *plan = (shape_plan *)(void *)head;
    const tn_node *node = head->node;
    const tn_param *params = head->model->params;
    (void)worker;
    plan->term = 0.0f;
    for (int i = 0; i < node->term_count; i++)
        plan->term += node->terms[i].factor * flat->values[params[node->terms[i].param].offset];
    plan->carry = node->carry >= 0 ? flat->values[params[node->carry].offset] : 0.0f;
    if (!tn_cpu_finite(&plan->term, 1) || !tn_cpu_finite(&plan->carry, 1)) *nonfinite = 1;
    return TN_OK;
}

static tn_status shape_collect(tn_plan *head, int worker, float *grad, const float *other,
                               const tn_flat *flat, int *nonfinite) {
    (void)worker;
    float *sums = flat->sums + 3 * (head->node - head->model->nodes);
    for (int i = 0; i < 2; i++) sums[i] = other ? grad[i] + other[i] : grad[i];
    if (!tn_cpu_finite(sums, 2)) *nonfinite = 1;
    return TN_OK;
}

/* dL/dy in one buffer, a->dz, with the parts summed. Also the node's own gradients. */
static const float *output_gradient(const shape_plan *plan, const tn_args *a) {
    size_t count = (size_t)plan->rows * floats(plan->out);
    if (a->dy_count == 1 && !plan->head.grad_floats) return a->dy[0];
    tn_cpu_sums sums = tn_cpu_activation_backward(count, a->dy[0], false, 0.0f, a->dy, a->dy_count, a->dz);
    if (plan->head.grad_floats) {
        a->grad[0] = (float)sums.dz;
        a->grad[1] = (float)sums.dy;
    }
    return a->dz;
}

/* ---- subsample: every stride-th pixel, plus c ---- */

static tn_status subsample_forward(tn_plan *head, const tn_args *a) {
    shape_plan *plan = (shape_plan *)(void *)head;
    int stride = head->node->stride, c = plan->in.channels;
    float *y = a->y;
    for (int n = 0; n < plan->rows; n++) {
        const float *image = a->x + (size_t)n * floats(plan->in);
        for (int h = 0; h < plan->out.height; h++)
            for (int w = 0; w < plan->out.width; w++, y += c) {
                const float *x =
                    image + ((size_t)h * (size_t)plan->in.width + (size_t)w) * (size_t)(stride * c);
                for (int i = 0; i < c; i++) y[i] = x[i] + plan->term;
            }
    }
    return TN_OK;
}

static tn_status subsample_backward(tn_plan *head, const tn_args *a) {
    shape_plan *plan = (shape_plan *)(void *)head;
    int stride = head->node->stride, c = plan->in.channels;
    const float *dy = output_gradient(plan, a);
    if (!a->dx) return TN_OK;
    memset(a->dx, 0, (size_t)plan->rows * floats(plan->in) * sizeof(float));
    for (int n = 0; n < plan->rows; n++) {
        float *image = a->dx + (size_t)n * floats(plan->in);
        for (int h = 0; h < plan->out.height; h++)
            for (int w = 0; w < plan->out.width; w++, dy += c)
                memcpy(image + ((size_t)h * (size_t)plan->in.width + (size_t)w) * (size_t)(stride * c), dy,
                       (size_t)c * sizeof(float));
    }
    return TN_OK;
}

/* ---- append: zeros as upper channels ---- */

static tn_status append_forward(tn_plan *head, const tn_args *a) {
    shape_plan *plan = (shape_plan *)(void *)head;
    size_t in = (size_t)plan->in.channels, out = (size_t)plan->out.channels;
    size_t pixels = (size_t)plan->rows * (size_t)plan->in.height * (size_t)plan->in.width;
    for (size_t p = 0; p < pixels; p++) {
        memcpy(a->y + p * out, a->x + p * in, in * sizeof(float));
        memset(a->y + p * out + in, 0, (out - in) * sizeof(float));
    }
    return TN_OK;
}

static tn_status append_backward(tn_plan *head, const tn_args *a) {
    shape_plan *plan = (shape_plan *)(void *)head;
    size_t in = (size_t)plan->in.channels, out = (size_t)plan->out.channels;
    size_t pixels = (size_t)plan->rows * (size_t)plan->in.height * (size_t)plan->in.width;
    const float *dy = output_gradient(plan, a);
    if (!a->dx) return TN_OK;
    for (size_t p = 0; p < pixels; p++) memcpy(a->dx + p * in, dy + p * out, in * sizeof(float));
    return TN_OK;
}

/* ---- maxpool ---- */

/* Channels that are looked at together: what is noted of them stays in the nearest cache. */
#define POOL_LANES 256

/* The value at `place` of the window takes the lead where it is larger, or not a number as in PyTorch. */
TN_SIMD static void compare_lanes(size_t n, const float *x, int place, float *best, int *winner) {
#pragma omp simd
    for (size_t i = 0; i < n; i++) {
        bool wins = x[i] > best[i] || x[i] != x[i];
        best[i] = wins ? x[i] : best[i];
        winner[i] = wins ? place : winner[i];
    }
}

TN_SIMD static void larger_lanes(size_t n, const float *x, float *best) {
#pragma omp simd
    for (size_t i = 0; i < n; i++) best[i] = x[i] > best[i] || x[i] != x[i] ? x[i] : best[i];
}

TN_SIMD static void give_lanes(size_t n, const float *dy, int place, const int *winner, float *dx) {
#pragma omp simd
    for (size_t i = 0; i < n; i++) dx[i] += winner[i] == place ? dy[i] : 0.0f;
}

/* Pixels of a window that lie in the image, as indices into it, row by row. Returns how many. */
static int window_pixels(const shape_plan *plan, int h, int w, size_t *pixels) {
    const tn_node *node = plan->head.node;
    int count = 0;
    for (int i = 0; i < node->kernel; i++)
        for (int j = 0; j < node->kernel; j++) {
            int y = h * node->stride - node->padding + i, x = w * node->stride - node->padding + j;
            if (y < 0 || x < 0 || y >= plan->in.height || x >= plan->in.width) continue;
            pixels[count++] = (size_t)y * (size_t)plan->in.width + (size_t)x;
        }
    return count;
}

static tn_status maxpool_forward(tn_plan *head, const tn_args *a) {
    shape_plan *plan = (shape_plan *)(void *)head;
    size_t c = (size_t)plan->out.channels, pixels[POOL_WINDOW_MAX];
    float *y = a->y;
    for (int n = 0; n < plan->rows; n++) {
        const float *image = a->x + (size_t)n * floats(plan->in);
        for (int h = 0; h < plan->out.height; h++)
            for (int w = 0; w < plan->out.width; w++, y += c) {
                int count = window_pixels(plan, h, w, pixels);
                memcpy(y, image + pixels[0] * c, c * sizeof *y);
                for (int k = 1; k < count; k++) larger_lanes(c, image + pixels[k] * c, y);
            }
    }
    return TN_OK;
}

/* Gives dy of one output pixel to the first largest value of its window, for up to POOL_LANES channels. */
static void maxpool_give(const float *image, float *dx, size_t channels, size_t lanes, const size_t *pixels,
                         int count, const float *dy) {
    float best[POOL_LANES];
    int winner[POOL_LANES] = {0};
    memcpy(best, image + pixels[0] * channels, lanes * sizeof *best);
    for (int k = 1; k < count; k++) compare_lanes(lanes, image + pixels[k] * channels, k, best, winner);
    for (int k = 0; k < count; k++) give_lanes(lanes, dy, k, winner, dx + pixels[k] * channels);
}

static tn_status maxpool_backward(tn_plan *head, const tn_args *a) {
    shape_plan *plan = (shape_plan *)(void *)head;
    size_t c = (size_t)plan->out.channels, pixels[POOL_WINDOW_MAX];
    const float *dy = output_gradient(plan, a);
    if (!a->dx) return TN_OK;
    memset(a->dx, 0, (size_t)plan->rows * floats(plan->in) * sizeof(float));
    for (int n = 0; n < plan->rows; n++) {
        const float *image = a->x + (size_t)n * floats(plan->in);
        float *dx = a->dx + (size_t)n * floats(plan->in);
        for (int h = 0; h < plan->out.height; h++)
            for (int w = 0; w < plan->out.width; w++, dy += c) {
                int count = window_pixels(plan, h, w, pixels);
                for (size_t i = 0; i < c; i += POOL_LANES) {
                    size_t lanes = c - i < POOL_LANES ? c - i : POOL_LANES;
                    maxpool_give(image + i, dx + i, c, lanes, pixels, count, dy + i);
                }
            }
    }
    return TN_OK;
}

/* ---- avgpool: mean over all pixels, plus d ---- */

static tn_status avgpool_forward(tn_plan *head, const tn_args *a) {
    shape_plan *plan = (shape_plan *)(void *)head;
    size_t c = (size_t)plan->in.channels, pixels = (size_t)plan->in.height * (size_t)plan->in.width;
    memset(a->y, 0, (size_t)plan->rows * c * sizeof(float));
    for (int n = 0; n < plan->rows; n++) {
        float *y = a->y + (size_t)n * c;
        for (size_t p = 0; p < pixels; p++) tn_cpu_add(y, a->x + ((size_t)n * pixels + p) * c, c);
        for (size_t i = 0; i < c; i++) y[i] = y[i] / (float)pixels + plan->carry;
    }
    if (!tn_cpu_finite(a->y, (size_t)plan->rows * c)) *a->nonfinite = 1;
    return TN_OK;
}

static tn_status avgpool_backward(tn_plan *head, const tn_args *a) {
    shape_plan *plan = (shape_plan *)(void *)head;
    size_t c = (size_t)plan->in.channels, pixels = (size_t)plan->in.height * (size_t)plan->in.width;
    const float *dy = output_gradient(plan, a);
    if (!a->dx) return TN_OK;
    for (int n = 0; n < plan->rows; n++) {
        float *first = a->dx + (size_t)n * pixels * c;
        tn_cpu_scale(first, dy + (size_t)n * c, 1.0f / (float)pixels, c);
        for (size_t p = 1; p < pixels; p++) memcpy(first + p * c, first, c * sizeof(float));
    }
    return TN_OK;
}

#define SHAPE_OPS(kind)                                                                                      \
    {                                                                                                        \
        .plan = shape_plan_make, .free = shape_free, .forward = kind##_forward, .backward = kind##_backward, \
        .pack = shape_pack, .collect = shape_collect                                                         \
    }

const tn_node_ops tn_cpu_subsample = SHAPE_OPS(subsample);
const tn_node_ops tn_cpu_append = SHAPE_OPS(append);
const tn_node_ops tn_cpu_maxpool = SHAPE_OPS(maxpool);
const tn_node_ops tn_cpu_avgpool = SHAPE_OPS(avgpool);
