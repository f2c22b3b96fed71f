#include "tests/support/reference.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/fail.h"

#define BN_EPS      1e-5
#define BN_MOMENTUM 0.1

static void *zeroed(size_t count, size_t size) {
    void *memory = calloc(count ? count : 1, size);
    TN_ASSERT(memory != NULL);
    return memory;
}

static size_t shape_floats(tn_shape s) {
    return (size_t)s.channels * (size_t)s.height * (size_t)s.width;
}

size_t reference_floats(const reference *ref, int tensor) {
    return shape_floats(ref->model->tensors[tensor].shape);
}

/* Position of one value in an NHWC tensor. */
static size_t at(tn_shape s, int row, int y, int x, int c) {
    return (((size_t)row * (size_t)s.height + (size_t)y) * (size_t)s.width + (size_t)x) * (size_t)s.channels +
           (size_t)c;
}

static tn_shape shape_of(const reference *ref, int tensor) {
    return ref->model->tensors[tensor].shape;
}

/* Offset of a parameter in the flat buffers. */
static size_t offset_of(const reference *ref, int param) {
    return ref->model->params[param].offset;
}

static bool inside(tn_shape s, int y, int x) {
    return y >= 0 && y < s.height && x >= 0 && x < s.width;
}

reference *reference_create(const tn_model *model, int rows) {
    reference *ref = zeroed(1, sizeof *ref);
    ref->model = model;
    ref->rows = rows;
    ref->value = zeroed((size_t)model->tensor_count, sizeof *ref->value);
    ref->gradient = zeroed((size_t)model->tensor_count, sizeof *ref->gradient);
    for (int t = 0; t < model->tensor_count; t++) {
        ref->value[t] = zeroed((size_t)rows * reference_floats(ref, t), sizeof(double));
        ref->gradient[t] = zeroed((size_t)rows * reference_floats(ref, t), sizeof(double));
    }
    ref->row_loss = zeroed((size_t)rows, sizeof(double));
    ref->grad = zeroed(model->param_floats, sizeof(double));
    ref->nodes = zeroed((size_t)model->node_count, sizeof *ref->nodes);
    for (int n = 0; n < model->node_count; n++) {
        const tn_node *node = &model->nodes[n];
        int tensor = node->output >= 0 ? node->output : node->input;
        size_t count = (size_t)rows * reference_floats(ref, tensor);
        size_t channels = (size_t)shape_of(ref, node->input).channels;
        ref->nodes[n].op = zeroed(count, sizeof(double));
        ref->nodes[n].positive = zeroed(count, sizeof(bool));
        ref->nodes[n].selected = zeroed(count, sizeof(size_t));
        ref->nodes[n].inverse = zeroed(channels, sizeof(double));
        ref->nodes[n].centre = zeroed(channels, sizeof(double));
    }
    return ref;
}

void reference_free(reference *ref) {
    if (!ref) return;
    for (int t = 0; t < ref->model->tensor_count; t++) {
        free(ref->value[t]);
        free(ref->gradient[t]);
    }
    for (int n = 0; n < ref->model->node_count; n++) {
        free(ref->nodes[n].op);
        free(ref->nodes[n].positive);
        free(ref->nodes[n].selected);
        free(ref->nodes[n].inverse);
        free(ref->nodes[n].centre);
    }
    free(ref->value);
    free(ref->gradient);
    free(ref->row_loss);
    free(ref->grad);
    free(ref->nodes);
    free(ref);
}

/* s of a node. */
static double scale_of(const reference *ref, const tn_node *node) {
    double factor = (double)node->scale.factor;
    return node->scale.param < 0 ? factor : factor * ref->values[offset_of(ref, node->scale.param)];
}

/* c of a node. */
static double term_sum(const reference *ref, const tn_node *node) {
    double sum = 0;
    for (int t = 0; t < node->term_count; t++) {
        const tn_term *term = &node->terms[t];
        double s = term->scaled ? scale_of(ref, node) : 1;
        sum += (double)term->factor * ref->values[offset_of(ref, term->param)] * s;
    }
    return sum;
}

/* d of a node. */
static double carried(const reference *ref, const tn_node *node) {
    return node->carry < 0 ? 0 : ref->values[offset_of(ref, node->carry)];
}

/* ---- conv ---- */

/* One pair of a convolution: out[out_index] takes weight[weight_index] times in[in_index]. */
typedef void conv_visit(void *context, size_t out_index, size_t weight_index, size_t in_index);

/* Calls `visit` for every product of the convolution; what falls on padding is not a product. */
static void for_each_product(const reference *ref, const tn_node *node, conv_visit *visit, void *context) {
    tn_shape in = shape_of(ref, node->input), out = shape_of(ref, node->output);
    int k = node->kernel;
    for (int row = 0; row < ref->rows; row++)
        for (int y = 0; y < out.height; y++)
            for (int x = 0; x < out.width; x++)
                for (int ky = 0; ky < k; ky++)
                    for (int kx = 0; kx < k; kx++) {
                        int iy = y * node->stride + ky - node->padding,
                            ix = x * node->stride + kx - node->padding;
                        if (!inside(in, iy, ix)) continue;
                        for (int o = 0; o < out.channels; o++)
                            for (int i = 0; i < in.channels; i++) {
                                size_t weight =
                                    (((size_t)o * (size_t)in.channels + (size_t)i) * (size_t)k + (size_t)ky) *
                                        (size_t)k +
                                    (size_t)kx;
                                visit(context, at(out, row, y, x, o), weight, at(in, row, iy, ix, i));
                            }
                    }
}

typedef struct conv_arrays {
    const double *weight, *x, *dop;
    double *op, *dweight, *dx;
} conv_arrays;

static void conv_forward_product(void *context, size_t out_index, size_t weight_index, size_t in_index) {
    conv_arrays *a = context;
    a->op[out_index] += a->weight[weight_index] * a->x[in_index];
}

static void conv_backward_product(void *context, size_t out_index, size_t weight_index, size_t in_index) {
    conv_arrays *a = context;
    a->dweight[weight_index] += a->dop[out_index] * a->x[in_index];
    a->dx[in_index] += a->dop[out_index] * a->weight[weight_index];
}

static void conv_forward(const reference *ref, const tn_node *node, const double *x, double *op) {
    conv_arrays arrays = {.weight = ref->values + offset_of(ref, node->weight), .x = x, .op = op};
    for_each_product(ref, node, conv_forward_product, &arrays);
}

static void conv_backward(const reference *ref, const tn_node *node, const double *x, const double *dop,
                          double *dx) {
    conv_arrays arrays = {.weight = ref->values + offset_of(ref, node->weight),
                          .x = x,
                          .dop = dop,
                          .dweight = ref->grad + offset_of(ref, node->weight),
                          .dx = dx};
    for_each_product(ref, node, conv_backward_product, &arrays);
}

/* ---- linear ---- */

static void linear_forward(const reference *ref, const tn_node *node, const double *x, double *op) {
    const double *weight = ref->values + offset_of(ref, node->weight);
    size_t in = reference_floats(ref, node->input), out = reference_floats(ref, node->output);
    for (size_t row = 0; row < (size_t)ref->rows; row++)
        for (size_t o = 0; o < out; o++)
            for (size_t i = 0; i < in; i++) op[row * out + o] += weight[o * in + i] * x[row * in + i];
}

static void linear_backward(const reference *ref, const tn_node *node, const double *x, const double *dop,
                            double *dx) {
    const double *weight = ref->values + offset_of(ref, node->weight);
    double *dweight = ref->grad + offset_of(ref, node->weight);
    size_t in = reference_floats(ref, node->input), out = reference_floats(ref, node->output);
    for (size_t row = 0; row < (size_t)ref->rows; row++)
        for (size_t o = 0; o < out; o++)
            for (size_t i = 0; i < in; i++) {
                dweight[o * in + i] += dop[row * out + o] * x[row * in + i];
                dx[row * in + i] += dop[row * out + o] * weight[o * in + i];
            }
}

/* ---- norm ---- */

/* Mean and variance of each channel: of the batch when training, else the running ones. */
static void norm_statistics(const reference *ref, const tn_node *node, const double *x, double *state,
                            double *mean, double *inverse) {
    const tn_state *running = &ref->model->states[node->state];
    tn_shape s = shape_of(ref, node->input);
    size_t channels = (size_t)s.channels, count = (size_t)ref->rows * shape_floats(s) / channels;
    for (size_t c = 0; c < channels; c++) {
        double var = 0;
        if (!ref->training) {
            mean[c] = state[running->mean_offset + c];
            inverse[c] = 1 / sqrt(state[running->var_offset + c] + BN_EPS);
            continue;
        }
        mean[c] = 0;
        for (size_t i = 0; i < count; i++) mean[c] += x[i * channels + c] / (double)count;
        for (size_t i = 0; i < count; i++) var += pow(x[i * channels + c] - mean[c], 2) / (double)count;
        inverse[c] = 1 / sqrt(var + BN_EPS);
        if (!state) continue;
        double unbiased = count > 1 ? var * (double)count / (double)(count - 1) : var;
        state[running->mean_offset + c] += BN_MOMENTUM * (mean[c] - state[running->mean_offset + c]);
        state[running->var_offset + c] += BN_MOMENTUM * (unbiased - state[running->var_offset + c]);
    }
}

static void norm_forward(const reference *ref, const tn_node *node, const reference_node *cache,
                         const double *x) {
    const double *gamma = ref->values + offset_of(ref, node->gamma),
                 *beta = ref->values + offset_of(ref, node->beta);
    tn_shape s = shape_of(ref, node->input);
    size_t channels = (size_t)s.channels, count = (size_t)ref->rows * shape_floats(s) / channels;
    for (size_t i = 0; i < count; i++)
        for (size_t c = 0; c < channels; c++)
            cache->op[i * channels + c] =
                gamma[c] * (x[i * channels + c] - cache->centre[c]) * cache->inverse[c] + beta[c];
}

static void norm_backward(const reference *ref, const tn_node *node, const reference_node *cache,
                          const double *x, const double *dop, double *dx) {
    const double *gamma = ref->values + offset_of(ref, node->gamma);
    double *dgamma = ref->grad + offset_of(ref, node->gamma), *dbeta = ref->grad + offset_of(ref, node->beta);
    tn_shape s = shape_of(ref, node->input);
    size_t channels = (size_t)s.channels, count = (size_t)ref->rows * shape_floats(s) / channels;
    for (size_t c = 0; c < channels; c++) {
        double sum = 0, dot = 0; /* of dop, and of dop with the normalised x */
        for (size_t i = 0; i < count; i++) {
            double normalised = (x[i * channels + c] - cache->centre[c]) * cache->inverse[c];
            sum += dop[i * channels + c];
            dot += dop[i * channels + c] * normalised;
        }
        dbeta[c] += sum;
        dgamma[c] += dot;
        for (size_t i = 0; i < count; i++) {
            double normalised = (x[i * channels + c] - cache->centre[c]) * cache->inverse[c];
            dx[i * channels + c] +=
                gamma[c] * cache->inverse[c] *
                (dop[i * channels + c] - sum / (double)count - normalised * dot / (double)count);
        }
    }
}

/* ---- epilogue of conv, linear and norm ---- */

/* Vector bias of output value i, 0 where the node has none. */
static double vector_bias(const reference *ref, const tn_node *node, size_t i) {
    if (node->bias < 0) return 0;
    return ref->values[offset_of(ref, node->bias) + i % reference_floats(ref, node->output)];
}

static void epilogue_forward(const reference *ref, const tn_node *node, const reference_node *cache) {
    double s = scale_of(ref, node), c = term_sum(ref, node), d = carried(ref, node);
    size_t count = (size_t)ref->rows * reference_floats(ref, node->output);
    for (size_t i = 0; i < count; i++) {
        double r = node->residual < 0 ? 0 : ref->value[node->residual][i];
        double z = s * cache->op[i] + vector_bias(ref, node, i) + c + r;
        cache->positive[i] = z > 0;
        /* Not fmax: a value that is no number must stay one. */
        ref->value[node->output][i] = (node->relu && z <= 0 ? 0 : z) + d;
    }
}

/* Gradients of everything in the epilogue; dop receives dL/d(op). */
static void epilogue_backward(const reference *ref, const tn_node *node, const reference_node *cache,
                              double *dop) {
    const double *dy = ref->gradient[node->output];
    double s = scale_of(ref, node), ds = 0, sum_dy = 0, sum_dz = 0;
    size_t count = (size_t)ref->rows * reference_floats(ref, node->output);
    for (size_t i = 0; i < count; i++) {
        double dz = node->relu && !cache->positive[i] ? 0 : dy[i];
        sum_dy += dy[i];
        sum_dz += dz;
        ds += dz * cache->op[i];
        dop[i] = s * dz;
        if (node->residual >= 0) ref->gradient[node->residual][i] += dz;
        if (node->bias >= 0)
            ref->grad[offset_of(ref, node->bias) + i % reference_floats(ref, node->output)] += dz;
    }
    for (int t = 0; t < node->term_count; t++) {
        const tn_term *term = &node->terms[t];
        size_t param = offset_of(ref, term->param);
        double factor = (double)term->factor;
        ref->grad[param] += factor * (term->scaled ? s : 1) * sum_dz;
        if (term->scaled) ds += factor * ref->values[param] * sum_dz;
    }
    if (node->scale.param >= 0)
        ref->grad[offset_of(ref, node->scale.param)] += (double)node->scale.factor * ds;
    if (node->carry >= 0) ref->grad[offset_of(ref, node->carry)] += sum_dy;
}

/* ---- subsample, append, pools ---- */

/* Both copy: calls for every output value that comes from an input value. Forward y = x + c, backward dx +=
 * dy. */
static void copy_values(const reference *ref, const tn_node *node, bool backward) {
    tn_shape in = shape_of(ref, node->input), out = shape_of(ref, node->output);
    double c = term_sum(ref, node);
    for (int row = 0; row < ref->rows; row++)
        for (int y = 0; y < out.height; y++)
            for (int x = 0; x < out.width; x++)
                for (int channel = 0; channel < in.channels; channel++) {
                    size_t from = at(in, row, y * node->stride, x * node->stride, channel);
                    size_t to = at(out, row, y, x, channel);
                    if (!backward) {
                        ref->value[node->output][to] = ref->value[node->input][from] + c;
                        continue;
                    }
                    double dy = ref->gradient[node->output][to];
                    ref->gradient[node->input][from] += dy;
                    for (int t = 0; t < node->term_count; t++)
                        ref->grad[offset_of(ref, node->terms[t].param)] += (double)node->terms[t].factor * dy;
                }
}

/* Index of the largest value in a window; the first in reading order where several are equal. */
static size_t window_maximum(const reference *ref, const tn_node *node, int row, int y, int x, int c) {
    tn_shape in = shape_of(ref, node->input);
    const double *value = ref->value[node->input];
    bool found = false;
    size_t best = 0;
    for (int ky = 0; ky < node->kernel; ky++)
        for (int kx = 0; kx < node->kernel; kx++) {
            int iy = y * node->stride + ky - node->padding, ix = x * node->stride + kx - node->padding;
            if (!inside(in, iy, ix)) continue;
            size_t index = at(in, row, iy, ix, c);
            if (!found || value[index] > value[best] || isnan(value[index])) best = index;
            found = true;
        }
    TN_ASSERT(found);
    return best;
}

static void maxpool_forward(const reference *ref, const tn_node *node, const reference_node *cache) {
    tn_shape out = shape_of(ref, node->output);
    for (int row = 0; row < ref->rows; row++)
        for (int y = 0; y < out.height; y++)
            for (int x = 0; x < out.width; x++)
                for (int c = 0; c < out.channels; c++) {
                    size_t best = window_maximum(ref, node, row, y, x, c);
                    cache->selected[at(out, row, y, x, c)] = best;
                    ref->value[node->output][at(out, row, y, x, c)] = ref->value[node->input][best];
                }
}

static void maxpool_backward(const reference *ref, const tn_node *node, const reference_node *cache) {
    size_t count = (size_t)ref->rows * reference_floats(ref, node->output);
    for (size_t i = 0; i < count; i++)
        ref->gradient[node->input][cache->selected[i]] += ref->gradient[node->output][i];
}

static void avgpool_forward(const reference *ref, const tn_node *node) {
    tn_shape in = shape_of(ref, node->input), out = shape_of(ref, node->output);
    for (int row = 0; row < ref->rows; row++)
        for (int c = 0; c < in.channels; c++) {
            double sum = 0;
            for (int y = 0; y < in.height; y++)
                for (int x = 0; x < in.width; x++) sum += ref->value[node->input][at(in, row, y, x, c)];
            ref->value[node->output][at(out, row, 0, 0, c)] =
                sum / (in.height * in.width) + carried(ref, node);
        }
}

static void avgpool_backward(const reference *ref, const tn_node *node) {
    tn_shape in = shape_of(ref, node->input), out = shape_of(ref, node->output);
    for (int row = 0; row < ref->rows; row++)
        for (int c = 0; c < in.channels; c++) {
            double dy = ref->gradient[node->output][at(out, row, 0, 0, c)];
            for (int y = 0; y < in.height; y++)
                for (int x = 0; x < in.width; x++)
                    ref->gradient[node->input][at(in, row, y, x, c)] += dy / (in.height * in.width);
            if (node->carry >= 0) ref->grad[offset_of(ref, node->carry)] += dy;
        }
}

/* ---- loss ---- */

/* Loss of one row; op receives dL/dx of the row for weight 1. */
static double cross_entropy_row(const double *x, const double *target, size_t classes, double *op) {
    double largest = x[0], sum = 0, mass = 0, loss = 0;
    for (size_t k = 1; k < classes; k++)
        if (x[k] > largest) largest = x[k];
    for (size_t k = 0; k < classes; k++) sum += exp(x[k] - largest);
    for (size_t k = 0; k < classes; k++) mass += target[k];
    for (size_t k = 0; k < classes; k++) {
        double log_probability = x[k] - largest - log(sum);
        loss -= target[k] * log_probability;
        op[k] = mass * exp(log_probability) - target[k];
    }
    return loss;
}

static double squared_row(const double *x, const double *target, size_t classes, double *op) {
    double loss = 0;
    for (size_t k = 0; k < classes; k++) {
        op[k] = x[k] - target[k];
        loss += 0.5 * op[k] * op[k];
    }
    return loss;
}

static double loss_forward(const reference *ref, const tn_node *node, const reference_node *cache) {
    size_t classes = (size_t)ref->model->classes;
    double sum = 0;
    for (size_t row = 0; row < (size_t)ref->rows; row++) {
        const double *x = ref->value[node->input] + row * classes, *target = ref->targets + row * classes;
        double *op = cache->op + row * classes;
        ref->row_loss[row] = node->loss == TN_LOSS_SQUARED ? squared_row(x, target, classes, op)
                                                           : cross_entropy_row(x, target, classes, op);
        sum += ref->row_weights[row] * ref->row_loss[row];
    }
    return sum;
}

static void loss_backward(const reference *ref, const tn_node *node, const reference_node *cache) {
    size_t classes = (size_t)ref->model->classes;
    for (size_t i = 0; i < (size_t)ref->rows * classes; i++)
        ref->gradient[node->input][i] += ref->row_weights[i / classes] * cache->op[i];
}

/* ---- the walk ---- */

/* conv, linear, norm: op(x), then the epilogue. */
static void forward_op(const reference *ref, const tn_node *node, const reference_node *cache,
                       double *state) {
    const double *x = ref->value[node->input];
    memset(cache->op, 0, (size_t)ref->rows * reference_floats(ref, node->output) * sizeof(double));
    if (node->kind == TN_NODE_CONV) conv_forward(ref, node, x, cache->op);
    if (node->kind == TN_NODE_LINEAR) linear_forward(ref, node, x, cache->op);
    if (node->kind == TN_NODE_NORM) {
        norm_statistics(ref, node, x, state, cache->centre, cache->inverse);
        norm_forward(ref, node, cache, x);
    }
    epilogue_forward(ref, node, cache);
}

static void backward_op(const reference *ref, const tn_node *node, const reference_node *cache) {
    const double *x = ref->value[node->input];
    double *dx = ref->gradient[node->input];
    double *dop = zeroed((size_t)ref->rows * reference_floats(ref, node->output), sizeof(double));
    epilogue_backward(ref, node, cache, dop);
    if (node->kind == TN_NODE_CONV) conv_backward(ref, node, x, dop, dx);
    if (node->kind == TN_NODE_LINEAR) linear_backward(ref, node, x, dop, dx);
    if (node->kind == TN_NODE_NORM) norm_backward(ref, node, cache, x, dop, dx);
    free(dop);
}

double reference_forward(reference *ref, const double *values, double *state, const double *images,
                         const double *targets, const double *row_weights, bool training) {
    double loss = 0;
    ref->values = values;
    ref->targets = targets;
    ref->row_weights = row_weights;
    ref->training = training;
    memcpy(ref->value[0], images, (size_t)ref->rows * reference_floats(ref, 0) * sizeof(double));
    for (int n = 0; n < ref->model->node_count; n++) {
        const tn_node *node = &ref->model->nodes[n];
        switch (node->kind) {
        case TN_NODE_CONV:
        case TN_NODE_LINEAR:
        case TN_NODE_NORM:
            forward_op(ref, node, &ref->nodes[n], state);
            break;
        case TN_NODE_SUBSAMPLE:
        case TN_NODE_APPEND: /* the appended channels are zero since reference_create */
            copy_values(ref, node, false);
            break;
        case TN_NODE_MAXPOOL:
            maxpool_forward(ref, node, &ref->nodes[n]);
            break;
        case TN_NODE_AVGPOOL:
            avgpool_forward(ref, node);
            break;
        case TN_NODE_LOSS:
            loss += loss_forward(ref, node, &ref->nodes[n]);
            break;
        case TN_NODE_KINDS:
            break;
        }
    }
    return loss;
}

static void backward_node(const reference *ref, int n) {
    const tn_node *node = &ref->model->nodes[n];
    switch (node->kind) {
    case TN_NODE_CONV:
    case TN_NODE_LINEAR:
    case TN_NODE_NORM:
        backward_op(ref, node, &ref->nodes[n]);
        break;
    case TN_NODE_SUBSAMPLE:
    case TN_NODE_APPEND:
        copy_values(ref, node, true);
        break;
    case TN_NODE_MAXPOOL:
        maxpool_backward(ref, node, &ref->nodes[n]);
        break;
    case TN_NODE_AVGPOOL:
        avgpool_backward(ref, node);
        break;
    case TN_NODE_LOSS:
        loss_backward(ref, node, &ref->nodes[n]);
        break;
    case TN_NODE_KINDS:
        break;
    }
}

void reference_backward(reference *ref) {
    const tn_model *model = ref->model;
    TN_ASSERT(ref->training && ref->values);
    memset(ref->grad, 0, model->param_floats * sizeof(double));
    for (int t = 0; t < model->tensor_count; t++)
        memset(ref->gradient[t], 0, (size_t)ref->rows * reference_floats(ref, t) * sizeof(double));
    for (int n = model->node_count - 1; n >= 0; n--) backward_node(ref, n);
    for (int p = 0; p < model->param_count; p++)
        for (size_t i = 0; i < model->params[p].count; i++)
            ref->grad[model->params[p].offset + i] *= (double)model->params[p].grad_factor;
}
