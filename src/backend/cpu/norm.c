/* Batch normalisation on the CPU. Statistics are sums over one chunk, merged over chunks in their order in
 * double, so they do not depend on which worker did what.
 *
 *   forward   y = act(s * (gamma * xhat + beta) + r) = act(A x + B + r),   xhat = (x - mean) / sqrt(var +
 * eps) backward  dx = A (dz - mean(dz) - xhat mean(dz xhat)),  dgamma = s sum(dz xhat),  dbeta = s sum(dz)
 *
 * Loops run over `lanes` consecutive floats, a multiple of the channel count, with per-channel factors
 * repeated to that length: the inner loop is then long enough to vectorise for every channel count. */
#include <math.h>
#include <string.h>

#include "backend/cpu/cpu.h"
#include "base/memory.h"
#include "base/simd.h"

#define EPSILON      1e-5
#define MOMENTUM     0.1
#define LANES_WANTED 64
#define FLUSH        64 /* blocks summed in float before the sum moves to double */

typedef struct norm_plan {
    tn_plan head;
    int channels, lanes, chunk_rows;
    size_t row_floats; /* of one image */
    double *partial;   /* [chunks][2][channels] */
    double *inv_std, *mean_exact;
    float *factor, *offset, *mean; /* A, B, mean: [lanes] */
    float *mean_dz, *slope;        /* [lanes]: mean(dz), mean(dz xhat) / sqrt(var + eps) */
} norm_plan;

static void norm_free(tn_plan *head) {
    norm_plan *plan = (norm_plan *)(void *)head;
    if (!plan) return;
    tn_free(plan->partial);
    tn_free(plan->inv_std);
    tn_free(plan->mean_exact);
    tn_free(plan->factor);
    tn_free(plan->offset);
    tn_free(plan->mean);
    tn_free(plan->mean_dz);
    tn_free(plan->slope);
    tn_free(plan);
}

static tn_status allocate(norm_plan *plan, int chunks) {
    size_t c = (size_t)plan->channels, lanes = (size_t)plan->lanes;
    TN_TRY(tn_alloc(&plan->partial, (size_t)chunks * 2 * c, sizeof(double), "batch statistics"));
    TN_TRY(tn_alloc(&plan->inv_std, c, sizeof(double), "batch statistics"));
    TN_TRY(tn_alloc(&plan->mean_exact, c, sizeof(double), "batch statistics"));
    float **vectors[] = {&plan->factor, &plan->offset, &plan->mean, &plan->mean_dz, &plan->slope};
    for (int i = 0; i < 5; i++) TN_TRY(tn_alloc(vectors[i], lanes, sizeof(float), "batch statistics"));
    plan->head.bytes = ((size_t)chunks * 2 + 2) * c * sizeof(double) + 5 * lanes * sizeof(float);
    /* Two rows of float sums while a chunk is read. */
    plan->head.scratch_bytes = 2 * lanes * sizeof(float);
    return TN_OK;
}

static tn_status norm_plan_make(tn_backend *backend, const tn_model *model, int index, int chunk_rows,
                                int chunks, bool training, tn_plan **out) {
    (void)backend;
    (void)training;
    norm_plan *plan;
    TN_TRY(tn_alloc(&plan, 1, sizeof *plan, "layer plan"));
    const tn_node *node = &model->nodes[index];
    const tn_shape shape = model->tensors[node->input].shape;
    plan->head.model = model;
    plan->head.node = node;
    plan->channels = shape.channels;
    plan->lanes = shape.channels * ((LANES_WANTED + shape.channels - 1) / shape.channels);
    plan->chunk_rows = chunk_rows;
    plan->row_floats = (size_t)shape.channels * (size_t)shape.height * (size_t)shape.width;
    tn_status status = allocate(plan, chunks);
    if (status != TN_OK) {
        norm_free(&plan->head);
        return tn_fail_prefix(status, "layer %s", node->name);
    }
    memcpy(plan->head.implementation[0], "simd", 5);
    memcpy(plan->head.implementation[1], "simd", 5);
    *out = &plan->head;
    return TN_OK;
}

/* ---- forward ---- */

TN_SIMD static void add_sums(size_t blocks, size_t lanes, const float *x, float *sum, float *square) {
    for (size_t b = 0; b < blocks; b++, x += lanes) {
#pragma omp simd
        for (size_t j = 0; j < lanes; j++) {
            sum[j] += x[j];
            square[j] += x[j] * x[j];
        }
    }
}

/* Moves float sums [lanes] into double sums [channels]. */
static void flush(const norm_plan *plan, float *sums, double *out) {
    for (int j = 0; j < plan->lanes; j++) out[j % plan->channels] += (double)sums[j];
    memset(sums, 0, (size_t)plan->lanes * sizeof *sums);
}

static tn_status norm_statistics(tn_plan *head, const tn_args *a) {
    norm_plan *plan = (norm_plan *)(void *)head;
    size_t c = (size_t)plan->channels, lanes = (size_t)plan->lanes, left = (size_t)a->rows * plan->row_floats;
    double *sum = plan->partial + (size_t)a->chunk * 2 * c, *square = sum + c;
    float *sums = a->scratch, *squares = sums + lanes;
    memset(sum, 0, 2 * c * sizeof *sum);
    memset(sums, 0, 2 * lanes * sizeof *sums);
    for (const float *x = a->x; left > 0;) {
        size_t blocks = left / lanes > FLUSH ? FLUSH : left / lanes, used = blocks * lanes;
        if (blocks == 0) { /* what does not fill the lanes is still whole pixels */
            add_sums(1, left, x, sums, squares);
            used = left;
        }
        add_sums(blocks, lanes, x, sums, squares);
        flush(plan, sums, sum);
        flush(plan, squares, square);
        x += used;
        left -= used;
    }
    return TN_OK;
}

/* Sets A and B from mean and variance (as 1/sqrt(var + eps)). */
static void set_transform(norm_plan *plan, const float *values) {
    const tn_node *node = plan->head.node;
    const tn_param *params = plan->head.model->params;
    const float *gamma = values + params[node->gamma].offset, *beta = values + params[node->beta].offset;
    double s = (double)tn_node_scale(node, plan->head.model, values);
    for (int j = 0; j < plan->lanes; j++) {
        int c = j % plan->channels;
        double factor = s * (double)gamma[c] * plan->inv_std[c];
        plan->factor[j] = (float)factor;
        plan->offset[j] = (float)(s * (double)beta[c] - factor * plan->mean_exact[c]);
        plan->mean[j] = (float)plan->mean_exact[c];
    }
}

static tn_status norm_merge_statistics(tn_plan *head, int chunks, int total_rows, const tn_flat *flat,
                                       int *nonfinite) {
    norm_plan *plan = (norm_plan *)(void *)head;
    const tn_state *state = &head->model->states[head->node->state];
    size_t channels = (size_t)plan->channels;
    double n = (double)total_rows * (double)(plan->row_floats / channels);
    float *running_mean = flat->state + state->mean_offset, *running_var = flat->state + state->var_offset;
    double *variance = plan->partial; /* chunk 0's sums are read before they are overwritten */
    bool finite = true;
    for (size_t c = 0; c < channels; c++) {
        double sum = 0, square = 0;
        for (int k = 0; k < chunks; k++) {
            const double *p = plan->partial + (size_t)k * 2 * channels;
            sum += p[c];
            square += p[channels + c];
        }
        double mean = sum / n, var = square / n - mean * mean;
        if (!isfinite(mean) || !isfinite(var)) finite = false;
        variance[c] = var < 0 ? 0 : var;
        plan->mean_exact[c] = mean;
        plan->inv_std[c] = 1.0 / sqrt(variance[c] + EPSILON);
    }
    /* Running averages take the unbiased variance (models.md 1.1), and nothing that is not finite. */
    if (!finite) *nonfinite = 1;
    for (size_t c = 0; finite && c < channels; c++) {
        double unbiased = n > 1 ? variance[c] * n / (n - 1) : variance[c];
        running_mean[c] = (float)((1 - MOMENTUM) * (double)running_mean[c] + MOMENTUM * plan->mean_exact[c]);
        running_var[c] = (float)((1 - MOMENTUM) * (double)running_var[c] + MOMENTUM * unbiased);
    }
    set_transform(plan, flat->values);
    return TN_OK;
}

static tn_status norm_load_statistics(tn_plan *head, const tn_flat *flat) {
    norm_plan *plan = (norm_plan *)(void *)head;
    const tn_state *state = &head->model->states[head->node->state];
    for (int c = 0; c < plan->channels; c++) {
        plan->mean_exact[c] = (double)flat->state[state->mean_offset + (size_t)c];
        plan->inv_std[c] = 1.0 / sqrt((double)flat->state[state->var_offset + (size_t)c] + EPSILON);
    }
    set_transform(plan, flat->values);
    return TN_OK;
}

/* NaN stays NaN: the comparison is written so that only true negatives become zero. */
TN_SIMD static void apply(size_t blocks, size_t lanes, const float *x, const float *factor,
                          const float *offset, const float *r, bool relu, float *y) {
    for (size_t b = 0; b < blocks; b++, x += lanes, y += lanes) {
        if (r) {
#pragma omp simd
            for (size_t j = 0; j < lanes; j++) y[j] = x[j] * factor[j] + offset[j] + r[j];
            r += lanes;
        } else {
#pragma omp simd
            for (size_t j = 0; j < lanes; j++) y[j] = x[j] * factor[j] + offset[j];
        }
        if (!relu) continue;
#pragma omp simd
        for (size_t j = 0; j < lanes; j++) y[j] = y[j] < 0.0f ? 0.0f : y[j];
    }
}

/* All rows of the chunk: rows that are padding come out finite. */
static tn_status norm_forward(tn_plan *head, const tn_args *a) {
    norm_plan *plan = (norm_plan *)(void *)head;
    size_t lanes = (size_t)plan->lanes, total = (size_t)plan->chunk_rows * plan->row_floats;
    size_t whole = total / lanes, done = whole * lanes;
    bool relu = head->node->relu;
    apply(whole, lanes, a->x, plan->factor, plan->offset, a->r, relu, a->y);
    if (done < total)
        apply(1, total - done, a->x + done, plan->factor, plan->offset, a->r ? a->r + done : NULL, relu,
              a->y + done);
    return TN_OK;
}

/* ---- backward ---- */

TN_SIMD static void add_products(size_t blocks, size_t lanes, const float *dz, const float *x,
                                 const float *mean, float *sum, float *product) {
    for (size_t b = 0; b < blocks; b++, dz += lanes, x += lanes) {
#pragma omp simd
        for (size_t j = 0; j < lanes; j++) {
            sum[j] += dz[j];
            product[j] += dz[j] * (x[j] - mean[j]);
        }
    }
}

static tn_status norm_reduce(tn_plan *head, const tn_args *a) {
    norm_plan *plan = (norm_plan *)(void *)head;
    size_t c = (size_t)plan->channels, lanes = (size_t)plan->lanes, left = (size_t)a->rows * plan->row_floats;
    size_t total = (size_t)plan->chunk_rows * plan->row_floats;
    double *sum = plan->partial + (size_t)a->chunk * 2 * c, *product = sum + c;
    float *sums = a->scratch, *products = sums + lanes;
    memset(sum, 0, 2 * c * sizeof *sum);
    memset(sums, 0, 2 * lanes * sizeof *sums);
    const float *x = a->x, *y = a->y;
    float *dz = a->dz;
    while (left > 0) {
        size_t blocks = left / lanes > FLUSH ? FLUSH : left / lanes, used = blocks * lanes;
        if (blocks == 0) used = left;
        /* The mask is applied piece by piece, so that the sums read dz from the nearest cache. */
        if (a->dy_count > 1 || head->node->relu) {
            const float *parts[TN_PARTS_MAX];
            for (int i = 0; i < a->dy_count; i++) parts[i] = a->dy[i] + (dz - a->dz);
            if (!tn_cpu_activation_backward(used, head->node->relu ? y : x, head->node->relu, 0.0f, parts,
                                            a->dy_count, dz)
                     .finite)
                *a->nonfinite = 1;
        }
        if (blocks == 0) add_products(1, used, dz, x, plan->mean, sums, products);
        add_products(blocks, lanes, dz, x, plan->mean, sums, products);
        flush(plan, sums, sum);
        flush(plan, products, product);
        x += used;
        dz += used;
        left -= used;
        if (y) y += used;
    }
    memset(a->dz + (size_t)a->rows * plan->row_floats, 0,
           (total - (size_t)a->rows * plan->row_floats) * sizeof(float));
    return TN_OK;
}

static tn_status norm_merge_reduce(tn_plan *head, int chunks, int total_rows, const tn_flat *flat) {
    norm_plan *plan = (norm_plan *)(void *)head;
    const tn_node *node = head->node;
    const tn_param *params = head->model->params;
    size_t channels = (size_t)plan->channels;
    double n = (double)total_rows * (double)(plan->row_floats / channels);
    double s = (double)tn_node_scale(node, head->model, flat->values), scale_gradient = 0;
    float *dgamma = flat->grads + params[node->gamma].offset,
          *dbeta = flat->grads + params[node->beta].offset;
    const float *gamma = flat->values + params[node->gamma].offset,
                *beta = flat->values + params[node->beta].offset;
    for (size_t c = 0; c < channels; c++) {
        double sum = 0, product = 0;
        for (int k = 0; k < chunks; k++) {
            const double *p = plan->partial + (size_t)k * 2 * channels;
            sum += p[c];
            product += p[channels + c];
        }
        double dz_xhat = product * plan->inv_std[c];
        dgamma[c] = (float)(s * dz_xhat);
        dbeta[c] = (float)(s * sum);
        scale_gradient += (double)gamma[c] * dz_xhat + (double)beta[c] * sum;
        for (size_t j = c; j < (size_t)plan->lanes; j += channels) {
            plan->mean_dz[j] = (float)(sum / n);
            plan->slope[j] = (float)(dz_xhat / n * plan->inv_std[c]);
        }
    }
    flat->sums[3 * (node - head->model->nodes) + 2] = (float)scale_gradient;
    return TN_OK;
}

TN_SIMD static void input_gradient(size_t blocks, size_t lanes, const float *dz, const float *x,
                                   const float *factor, const float *mean, const float *mean_dz,
                                   const float *slope, float *dx) {
    for (size_t b = 0; b < blocks; b++, dz += lanes, x += lanes, dx += lanes) {
#pragma omp simd
        for (size_t j = 0; j < lanes; j++)
            dx[j] = factor[j] * (dz[j] - mean_dz[j] - (x[j] - mean[j]) * slope[j]);
    }
}

static tn_status norm_backward(tn_plan *head, const tn_args *a) {
    norm_plan *plan = (norm_plan *)(void *)head;
    size_t lanes = (size_t)plan->lanes, used = (size_t)a->rows * plan->row_floats;
    size_t total = (size_t)plan->chunk_rows * plan->row_floats, whole = used / lanes, done = whole * lanes;
    if (!a->dx) return TN_OK;
    input_gradient(whole, lanes, a->dz, a->x, plan->factor, plan->mean, plan->mean_dz, plan->slope, a->dx);
    if (done < used)
        input_gradient(1, used - done, a->dz + done, a->x + done, plan->factor, plan->mean, plan->mean_dz,
                       plan->slope, a->dx + done);
    memset(a->dx + used, 0, (total - used) * sizeof(float));
    return TN_OK;
}

static tn_status norm_pack(tn_plan *head, int worker, const tn_flat *flat, int *nonfinite) {
    norm_plan *plan = (norm_plan *)(void *)head;
    const tn_param *params = head->model->params;
    (void)worker;
    if (!tn_cpu_finite(flat->values + params[head->node->gamma].offset, (size_t)plan->channels) ||
        !tn_cpu_finite(flat->values + params[head->node->beta].offset, (size_t)plan->channels))
        *nonfinite = 1;
    return TN_OK;
}

const tn_node_ops tn_cpu_norm = {.plan = norm_plan_make,
                                 .free = norm_free,
                                 .forward = norm_forward,
                                 .backward = norm_backward,
                                 .statistics = norm_statistics,
                                 .merge_statistics = norm_merge_statistics,
                                 .reduce = norm_reduce,
                                 .merge_reduce = norm_merge_reduce,
                                 .load_statistics = norm_load_statistics,
                                 .pack = norm_pack};
