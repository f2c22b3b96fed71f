/* The double-precision reference: known values, the definition of the networks, and its gradients against
 * central differences. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/memory.h"
#include "tests/support/op_cases.h"
#include "tests/support/reference.h"

#define ok(call) assert_int_equal(call, TN_OK)

/* Equal up to rounding in double precision. */
static void assert_near(double value, double expected) {
    if (!(fabs(value - expected) <= 1e-13 * (1 + fabs(expected))))
        fail_msg("%.17g, not %.17g", value, expected);
}

/* ---- known values ---- */

/* The image itself is what the loss reads. */
static tn_model *loss_alone(int classes, tn_loss_kind kind) {
    tn_model *model;
    ok(tn_graph_create(&model, (tn_shape){classes, 1, 1}, classes));
    tn_node loss = tn_node_init(TN_NODE_LOSS, "loss", 0);
    loss.loss = kind;
    ok(tn_graph_add(model, loss, NULL));
    ok(tn_graph_finish(model));
    return model;
}

static void losses_have_known_values(void **state) {
    (void)state;
    const double logits[6] = {0, log(2), log(5), 3, 3, 3}, targets[6] = {0.25, 0.5, 0.25, 0, 0, 1};
    const double weights[2] = {2, 0.5};
    tn_model *model = loss_alone(3, TN_LOSS_CROSS_ENTROPY);
    reference *ref = reference_create(model, 2);
    double loss = reference_forward(ref, NULL, NULL, logits, targets, weights, true);
    /* Probabilities 1/8, 2/8, 5/8 and three times 1/3. */
    double first = 0.25 * log(8) + 0.5 * log(4) + 0.25 * log(8.0 / 5);
    assert_near(ref->row_loss[0], first);
    assert_near(ref->row_loss[1], log(3));
    assert_near(loss, 2 * first + 0.5 * log(3));
    reference_free(ref);
    tn_model_free(model);

    model = loss_alone(3, TN_LOSS_SQUARED);
    ref = reference_create(model, 1);
    loss =
        reference_forward(ref, NULL, NULL, (double[]){1, 2, 3}, (double[]){0, 4, 3.5}, (double[]){3}, true);
    assert_near(loss, 3 * 0.5 * (1 + 4 + 0.25));
    reference_free(ref);
    tn_model_free(model);
}

static void a_conv_has_known_values(void **state) {
    (void)state;
    tn_model *model;
    int weight, tau, inside, outside, carry, y;
    ok(tn_graph_create(&model, (tn_shape){1, 2, 3}, 4));
    ok(tn_graph_param(model, "w", 4, (int[]){1, 1, 3, 3}, TN_GROUP_WEIGHTS, TN_INIT_CONSTANT, 0, &weight));
    ok(tn_graph_param(model, "tau", 1, (int[]){1}, TN_GROUP_SCALARS, TN_INIT_CONSTANT, 0, &tau));
    ok(tn_graph_param(model, "in", 1, (int[]){1}, TN_GROUP_SCALARS, TN_INIT_CONSTANT, 0, &inside));
    ok(tn_graph_param(model, "out", 1, (int[]){1}, TN_GROUP_SCALARS, TN_INIT_CONSTANT, 0, &outside));
    ok(tn_graph_param(model, "carry", 1, (int[]){1}, TN_GROUP_SCALARS, TN_INIT_CONSTANT, 0, &carry));
    tn_node node = tn_node_init(TN_NODE_CONV, "conv", 0);
    node.weight = weight;
    node.kernel = 3;
    node.padding = 1;
    node.scale = (tn_scale){.factor = 0.5f, .param = tau};
    node.terms[node.term_count++] = (tn_term){.param = inside, .factor = 1, .scaled = true};
    node.terms[node.term_count++] = (tn_term){.param = outside, .factor = -1, .scaled = false};
    node.residual = 0;
    node.relu = true;
    node.carry = carry;
    ok(tn_graph_add(model, node, &y));
    ok(tn_graph_finish(model));

    const double image[6] = {1, 2, 3, 4, 5, 6};
    /* Weight 1 in the middle, 10 to its right, 100 below; s = 0.5 * 4 = 2. */
    const double values[13] = {0, 0, 0, 0, 1, 10, 0, 100, 0, 4, 7, 500, 0.125};
    reference *ref = reference_create(model, 1);
    reference_forward(ref, values, NULL, image, NULL, NULL, true);
    const double op[6] = {1 + 20 + 400, 2 + 30 + 500, 3 + 0 + 600, 4 + 50, 5 + 60, 6};
    for (int i = 0; i < 6; i++) {
        double z = 2 * (op[i] + 7) - 500 + image[i];
        assert_near(ref->value[y][i], (z > 0 ? z : 0) + 0.125);
    }
    reference_free(ref);
    tn_model_free(model);
}

static void a_norm_has_known_statistics(void **unused) {
    (void)unused;
    tn_model *model;
    int gamma, beta, running, y;
    ok(tn_graph_create(&model, (tn_shape){1, 1, 2}, 4));
    ok(tn_graph_param(model, "g", 1, (int[]){1}, TN_GROUP_WEIGHTS, TN_INIT_CONSTANT, 1, &gamma));
    ok(tn_graph_param(model, "b", 1, (int[]){1}, TN_GROUP_WEIGHTS, TN_INIT_CONSTANT, 0, &beta));
    ok(tn_graph_state(model, "bn", 1, &running));
    tn_node node = tn_node_init(TN_NODE_NORM, "bn", 0);
    node.gamma = gamma;
    node.beta = beta;
    node.state = running;
    ok(tn_graph_add(model, node, &y));
    ok(tn_graph_finish(model));

    /* Mean 4, biased variance 5, unbiased 20/3. */
    const double images[4] = {1, 3, 5, 7}, values[2] = {2, 0.5};
    double state[2] = {10, 4};
    reference *ref = reference_create(model, 2);
    reference_forward(ref, values, state, images, NULL, NULL, true);
    for (int i = 0; i < 4; i++) assert_near(ref->value[y][i], 2 * (images[i] - 4) / sqrt(5 + 1e-5) + 0.5);
    assert_near(state[0], 0.9 * 10 + 0.1 * 4);
    assert_near(state[1], 0.9 * 4 + 0.1 * 20 / 3);

    reference_forward(ref, values, state, images, NULL, NULL, false);
    for (int i = 0; i < 4; i++)
        assert_near(ref->value[y][i], 2 * (images[i] - state[0]) / sqrt(state[1] + 1e-5) + 0.5);
    assert_near(state[0], 9.4); /* evaluation changes nothing */
    reference_free(ref);
    tn_model_free(model);
}

/* 3 x 3 pixels, 2 channels: channel 0 counts 1..9, channel 1 is -10 times that. */
static void pools_and_linear_have_known_values(void **unused) {
    (void)unused;
    tn_model *model;
    int weight, bias, carry, maximum, mean, y;
    ok(tn_graph_create(&model, (tn_shape){2, 3, 3}, 4));
    ok(tn_graph_param(model, "w", 2, (int[]){1, 8}, TN_GROUP_WEIGHTS, TN_INIT_CONSTANT, 0, &weight));
    ok(tn_graph_param(model, "b", 1, (int[]){1}, TN_GROUP_WEIGHTS, TN_INIT_CONSTANT, 0, &bias));
    ok(tn_graph_param(model, "carry", 1, (int[]){1}, TN_GROUP_SCALARS, TN_INIT_CONSTANT, 0, &carry));
    tn_node node = tn_node_init(TN_NODE_MAXPOOL, "maxpool", 0);
    node.kernel = 3;
    node.stride = 2;
    node.padding = 1;
    ok(tn_graph_add(model, node, &maximum));
    node = tn_node_init(TN_NODE_AVGPOOL, "avgpool", 0);
    node.carry = carry;
    ok(tn_graph_add(model, node, &mean));
    node = tn_node_init(TN_NODE_LINEAR, "linear", maximum);
    node.weight = weight;
    node.bias = bias;
    ok(tn_graph_add(model, node, &y));
    ok(tn_graph_finish(model));

    double image[18], values[10] = {1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 0.5, 0.25};
    for (int i = 0; i < 9; i++) {
        image[2 * i] = i + 1;
        image[2 * i + 1] = -10 * (i + 1);
    }
    reference *ref = reference_create(model, 1);
    reference_forward(ref, values, NULL, image, NULL, NULL, true);
    const double expected[8] = {5, -10, 6, -20, 8, -40, 9, -50}; /* height, width, channel */
    double sum = 0.5;
    for (int i = 0; i < 8; i++) {
        assert_near(ref->value[maximum][i], expected[i]);
        sum += values[i] * expected[i];
    }
    assert_near(ref->value[mean][0], 5 + 0.25);
    assert_near(ref->value[mean][1], -50 + 0.25);
    assert_near(ref->value[y][0], sum);
    reference_free(ref);
    tn_model_free(model);
}

static void a_nan_survives_relu(void **unused) {
    (void)unused;
    const op_case *self = op_case_at(1);
    tn_model *model = op_case_model(self);
    op_data data = op_case_data(self, model);
    double *values = op_widen(data.values, model->param_floats);
    double *images = op_widen(data.images, (size_t)self->rows * 7 * 6);
    double *targets = op_widen(data.targets, (size_t)self->rows * 5), weights[2] = {1, 1};
    reference *ref = reference_create(model, self->rows);
    assert_string_equal(self->name, "conv3x3 image 1 channel relu");
    assert_true(isfinite(reference_forward(ref, values, NULL, images, targets, weights, true)));
    images[0] = (double)NAN;
    assert_true(isnan(reference_forward(ref, values, NULL, images, targets, weights, true)));
    reference_free(ref);
    free(values);
    free(images);
    free(targets);
    op_data_free(&data);
    tn_model_free(model);
}

/* ---- gradients against central differences ---- */

/* Parameters beyond this many values are sampled; fewer where every load is checked and slow. */
#ifdef __SANITIZE_ADDRESS__
#define SAMPLED 5
#else
#define SAMPLED 40
#endif
#define STEP    1e-5
#define ALLOWED 1e-6

typedef struct check {
    const char *name;
    reference *ref;
    double *values, *images, *targets, *row_weights;
    double loss;
    int compared, skipped;
} check;

static double loss_now(check *c) {
    return reference_forward(c->ref, c->values, NULL, c->images, c->targets, c->row_weights, true);
}

/* Central difference over two steps of `step` at *value. */
static double difference(check *c, double *value, double step) {
    double before = *value;
    *value = before + step;
    double above = loss_now(c);
    *value = before - step;
    double below = loss_now(c);
    *value = before;
    return (above - below) / (2 * step);
}

/* Compares the gradient of *value with differences over two step sizes. Where these two do not agree, a ReLU
 * or a maximum switches within the step and there is no derivative to compare with. `size` is what the error
 * is relative to when the gradient is smaller. */
static void compare(check *c, const char *what, size_t index, double *value, double factor, double analytic,
                    double size) {
    double wide = factor * difference(c, value, STEP), narrow = factor * difference(c, value, STEP / 2);
    double numeric = (4 * narrow - wide) / 3;
    double scale = fmax(fmax(fabs(numeric), fabs(analytic)), size);
    c->compared++;
    if (fabs(wide - narrow) > 0.3 * ALLOWED * scale) {
        c->skipped++;
        return;
    }
    if (fabs(numeric - analytic) <= ALLOWED * scale) return;
    fail_msg("%s: %s[%zu]: gradient %.12g, difference %.12g", c->name, what, index, analytic, numeric);
}

static double largest(const double *values, size_t count) {
    double result = 0;
    for (size_t i = 0; i < count; i++) result = fmax(result, fabs(values[i]));
    return result;
}

/* Checks up to SAMPLED of the `count` values, spread evenly. */
static void compare_all(check *c, const char *what, double *values, const double *analytic, size_t count,
                        double factor) {
    size_t picks = count < SAMPLED ? count : SAMPLED;
    double size = 1e-2 * largest(analytic, count) + 1e-3 * factor * fabs(c->loss);
    for (size_t i = 0; i < picks; i++) {
        size_t index = (2 * i + 1) * count / (2 * picks);
        compare(c, what, index, &values[index], factor, analytic[index], size);
    }
}

/* Checks gradients of all parameters and of the image; adds to the totals. */
static void check_model(const char *name, const tn_model *model, const op_data *data, int rows, int *compared,
                        int *skipped) {
    check c = {.name = name, .ref = reference_create(model, rows)};
    size_t pixels = (size_t)rows * reference_floats(c.ref, 0);
    c.values = op_widen(data->values, model->param_floats);
    c.images = op_widen(data->images, pixels);
    c.targets = op_widen(data->targets, (size_t)rows * (size_t)model->classes);
    c.row_weights = op_widen(data->row_weights, (size_t)rows);
    c.loss = loss_now(&c);
    reference_backward(c.ref);
    double *grad = malloc((model->param_floats + 1) * sizeof *grad),
           *dimages = malloc(pixels * sizeof *dimages);
    assert_true(grad && dimages);
    memcpy(grad, c.ref->grad, model->param_floats * sizeof *grad);
    memcpy(dimages, c.ref->gradient[0], pixels * sizeof *dimages);
    for (int p = 0; p < model->param_count; p++) {
        const tn_param *param = &model->params[p];
        compare_all(&c, param->name, c.values + param->offset, grad + param->offset, param->count,
                    (double)param->grad_factor);
    }
    compare_all(&c, "image", c.images, dimages, pixels, 1);
    *compared += c.compared;
    *skipped += c.skipped;
    reference_free(c.ref);
    free(c.values);
    free(c.images);
    free(c.targets);
    free(c.row_weights);
    free(grad);
    free(dimages);
}

/* A few coordinates may sit at a kink, no more. */
static void assert_few_skipped(int compared, int skipped) {
    print_message("%d gradients compared, %d skipped\n", compared, skipped);
    assert_true(compared > 0 && skipped * 50 <= compared);
}

static void gradients_of_all_op_cases(void **state) {
    (void)state;
    int compared = 0, skipped = 0;
    for (int i = 0; i < op_case_count(); i++) {
        if (op_case_at(i)->large) continue; /* finite differences would take days */
        const op_case *self = op_case_at(i);
        tn_model *model = op_case_model(self);
        op_data data = op_case_data(self, model);
        int compared_here = 0, skipped_here = 0;
        check_model(self->name, model, &data, self->rows, &compared_here, &skipped_here);
        if (skipped_here * 5 > compared_here)
            fail_msg("%s: %d of %d skipped", self->name, skipped_here, compared_here);
        compared += compared_here;
        skipped += skipped_here;
        op_data_free(&data);
        tn_model_free(model);
    }
    assert_few_skipped(compared, skipped);
}

static const tn_model_config nets[] = {
    {.variant = "bn", .height = 8, .width = 6},
    {.variant = "bn", .height = 7, .width = 5, .no_bn_shortcut = true},
    {.variant = "bn-tau", .height = 7, .width = 8},
    {.variant = "bn-tau", .height = 6, .width = 6, .zero_init_last_gamma = true, .tau = "0.3"},
    {.variant = "tau", .height = 8, .width = 8},
    {.variant = "tau", .height = 7, .width = 5, .tau_per_block = true, .tau = "2/sqrt(L)"},
    {.variant = "tau", .height = 9, .width = 6, .channels = 1, .classes = 3},
    {.variant = "fixup", .height = 7, .width = 6},
    {.variant = "alpha", .height = 6, .width = 7},
    {.variant = "skipinit", .height = 6, .width = 5},
    {.variant = "plain", .height = 5, .width = 6},
};
#define NETS ((int)(sizeof nets / sizeof nets[0]))
#define ROWS 3

static tn_model *build_net(int index) {
    tn_model_config config = nets[index];
    config.model = "resnet8";
    config.base_width = 3;
    if (config.classes == 0) config.classes = 4;
    tn_model *model;
    if (tn_model_build(&config, &model) != TN_OK) fail_msg("%s", tn_error());
    return model;
}

static void gradients_of_all_variants(void **state) {
    (void)state;
    int compared = 0, skipped = 0;
    for (int i = 0; i < NETS; i++) {
        tn_model *model = build_net(i);
        op_data data = op_data_draw(model, ROWS, 77 + (uint64_t)i, i % 2, false);
        check_model(nets[i].variant, model, &data, ROWS, &compared, &skipped);
        op_data_free(&data);
        tn_model_free(model);
    }
    assert_few_skipped(compared, skipped);
}

/* ---- the networks as they are defined, without anything carried or folded ---- */

/* Activations of all rows, NHWC. */
typedef struct volume {
    int channels, height, width;
    double *v;
} volume;

typedef struct textbook {
    const tn_model *model;
    const double *values;
} textbook;

static volume volume_make(int channels, int height, int width) {
    volume a = {channels, height, width, calloc((size_t)(ROWS * channels * height * width), sizeof(double))};
    assert_non_null(a.v);
    return a;
}

static int size_of(volume a) {
    return ROWS * a.channels * a.height * a.width;
}

static double *cell(volume a, int row, int y, int x, int c) {
    return &a.v[((row * a.height + y) * a.width + x) * a.channels + c];
}

/* Values of a parameter or NULL. */
static const double *find(const textbook *net, const char *prefix, const char *last) {
    char name[128];
    snprintf(name, sizeof name, "%s%s", prefix, last);
    for (int p = 0; p < net->model->param_count; p++)
        if (strcmp(net->model->params[p].name, name) == 0) return net->values + net->model->params[p].offset;
    return NULL;
}

static double scalar(const textbook *net, const char *prefix, const char *last) {
    const double *value = find(net, prefix, last);
    if (!value) fail_msg("no parameter %s%s", prefix, last);
    return *value;
}

/* In place: a = factor * a + b. */
static void affine(volume a, double factor, double b) {
    for (int i = 0; i < size_of(a); i++) a.v[i] = factor * a.v[i] + b;
}

static void rectify(volume a) {
    for (int i = 0; i < size_of(a); i++) a.v[i] = fmax(a.v[i], 0);
}

static volume conv3x3(const textbook *net, volume a, const char *prefix, const char *last, int stride,
                      int channels) {
    const double *w = find(net, prefix, last);
    volume out = volume_make(channels, (a.height - 1) / stride + 1, (a.width - 1) / stride + 1);
    assert_non_null(w);
    for (int row = 0; row < ROWS; row++)
        for (int y = 0; y < out.height; y++)
            for (int x = 0; x < out.width; x++)
                for (int o = 0; o < channels; o++)
                    for (int i = 0; i < a.channels * 9; i++) {
                        int iy = y * stride + i % 9 / 3 - 1, ix = x * stride + i % 3 - 1;
                        if (iy < 0 || iy >= a.height || ix < 0 || ix >= a.width) continue;
                        *cell(out, row, y, x, o) += w[o * a.channels * 9 + i] * *cell(a, row, iy, ix, i / 9);
                    }
    return out;
}

/* In place. */
static void batch_norm(const textbook *net, volume a, const char *prefix, const char *last) {
    char name[64];
    snprintf(name, sizeof name, "%s%s", prefix, last);
    const double *gamma = find(net, name, ".weight"), *beta = find(net, name, ".bias");
    int count = size_of(a) / a.channels;
    assert_true(gamma && beta);
    for (int c = 0; c < a.channels; c++) {
        double sum = 0, squares = 0;
        for (int i = c; i < size_of(a); i += a.channels) sum += a.v[i];
        for (int i = c; i < size_of(a); i += a.channels) squares += pow(a.v[i] - sum / count, 2);
        for (int i = c; i < size_of(a); i += a.channels)
            a.v[i] = gamma[c] * (a.v[i] - sum / count) / sqrt(squares / count + 1e-5) + beta[c];
    }
}

static volume copy(volume a) {
    volume b = volume_make(a.channels, a.height, a.width);
    memcpy(b.v, a.v, (size_t)size_of(a) * sizeof(double));
    return b;
}

static volume every_second(volume a) {
    volume b = volume_make(a.channels, (a.height + 1) / 2, (a.width + 1) / 2);
    for (int row = 0; row < ROWS; row++)
        for (int y = 0; y < b.height; y++)
            for (int x = 0; x < b.width; x++)
                for (int c = 0; c < b.channels; c++) *cell(b, row, y, x, c) = *cell(a, row, 2 * y, 2 * x, c);
    return b;
}

static volume with_zeros(volume a, int channels) {
    volume b = volume_make(channels, a.height, a.width);
    for (int i = 0; i < size_of(a); i++) b.v[i / a.channels * channels + i % a.channels] = a.v[i];
    return b;
}

static volume free_branch(const textbook *net, volume x, const char *p, int stride, int channels) {
    const char *variant = net->model->variant;
    volume biased = copy(x);
    affine(biased, 1, scalar(net, p, "bias1a"));
    volume inner = conv3x3(net, biased, p, "conv1.weight", stride, channels);
    affine(inner, 1, scalar(net, p, "bias1b"));
    rectify(inner);
    affine(inner, 1, scalar(net, p, "bias2a"));
    volume z = conv3x3(net, inner, p, "conv2.weight", 1, channels);
    double b2b = scalar(net, p, "bias2b");
    if (strcmp(variant, "fixup") == 0) {
        affine(z, scalar(net, p, "scale"), b2b);
    } else {
        double s = 1;
        if (strcmp(variant, "tau") == 0)
            s = find(net, "", "tau") ? scalar(net, "", "tau") : scalar(net, p, "tau");
        if (strcmp(variant, "alpha") == 0) s = scalar(net, p, "alpha") / 3;
        if (strcmp(variant, "skipinit") == 0) s = scalar(net, p, "alpha");
        affine(z, s, s * b2b);
    }
    free(biased.v);
    free(inner.v);
    return z;
}

static volume norm_branch(const textbook *net, volume x, const char *p, int stride, int channels) {
    volume inner = conv3x3(net, x, p, "conv1.weight", stride, channels);
    batch_norm(net, inner, p, "bn1");
    rectify(inner);
    volume z = conv3x3(net, inner, p, "conv2.weight", 1, channels);
    batch_norm(net, z, p, "bn2");
    if (strcmp(net->model->variant, "bn-tau") == 0) affine(z, net->model->tau, 0);
    free(inner.v);
    return z;
}

static bool has_norm(const textbook *net) {
    return strncmp(net->model->variant, "bn", 2) == 0;
}

/* ReLU(shortcut + branch); frees x. */
static volume block_output(const textbook *net, volume x, int stage, int stride, int channels) {
    char p[32];
    snprintf(p, sizeof p, "layer%d.0.", stage);
    volume z =
        has_norm(net) ? norm_branch(net, x, p, stride, channels) : free_branch(net, x, p, stride, channels);
    if (stride == 2) {
        if (strcmp(net->model->variant, "fixup") == 0) affine(x, 1, scalar(net, p, "bias1a"));
        volume second = every_second(x);
        if (find(net, p, "downsample.1.weight")) batch_norm(net, second, p, "downsample.1");
        free(x.v);
        x = with_zeros(second, channels);
        free(second.v);
    }
    for (int i = 0; i < size_of(z); i++) z.v[i] += x.v[i];
    rectify(z);
    free(x.v);
    return z;
}

/* Writes rows x classes logits. */
static void textbook_logits(const textbook *net, const double *images, double *logits) {
    tn_shape s = net->model->tensors[0].shape;
    int base = net->model->params[0].rank == 4 ? net->model->params[0].dims[0] : 3,
        classes = net->model->classes;
    volume image = volume_make(s.channels, s.height, s.width);
    memcpy(image.v, images, (size_t)size_of(image) * sizeof(double));
    volume x = conv3x3(net, image, "", "conv1.weight", 1, base);
    free(image.v);
    if (has_norm(net)) batch_norm(net, x, "", "bn1");
    if (find(net, "", "bias1")) affine(x, 1, scalar(net, "", "bias1"));
    rectify(x);
    for (int stage = 1; stage <= 3; stage++)
        x = block_output(net, x, stage, stage == 1 ? 1 : 2, base << (stage - 1));
    const double *w = find(net, "", "fc.weight"), *b = find(net, "", "fc.bias");
    double shift = find(net, "", "bias2") ? scalar(net, "", "bias2") : 0;
    for (int row = 0; row < ROWS; row++)
        for (int k = 0; k < classes; k++) {
            logits[row * classes + k] = b[k];
            for (int c = 0; c < x.channels; c++) {
                double mean = 0;
                for (int i = 0; i < x.height * x.width; i++)
                    mean += x.v[(row * x.height * x.width + i) * x.channels + c] / (x.height * x.width);
                logits[row * classes + k] += w[k * x.channels + c] * (mean + shift);
            }
        }
    free(x.v);
}

static void networks_equal_their_definition(void **state) {
    (void)state;
    for (int i = 0; i < NETS; i++) {
        tn_model *model = build_net(i);
        op_data data = op_data_draw(model, ROWS, 770 + (uint64_t)i, false, false);
        tn_shape s = model->tensors[0].shape;
        double *values = op_widen(data.values, model->param_floats);
        double *images = op_widen(data.images, (size_t)(ROWS * s.channels * s.height * s.width));
        double *targets = op_widen(data.targets, (size_t)(ROWS * model->classes));
        double *weights = op_widen(data.row_weights, ROWS), expected[ROWS * 4];
        textbook net = {.model = model, .values = values};
        textbook_logits(&net, images, expected);
        reference *ref = reference_create(model, ROWS);
        reference_forward(ref, values, NULL, images, targets, weights, true);
        const double *logits = ref->value[model->tensor_count - 1];
        for (int k = 0; k < ROWS * model->classes; k++)
            if (fabs(logits[k] - expected[k]) > 1e-6 * (1 + fabs(expected[k])))
                fail_msg("net %d (%s): logit %d is %.12g, not %.12g", i, model->variant, k, logits[k],
                         expected[k]);
        reference_free(ref);
        free(values);
        free(images);
        free(targets);
        free(weights);
        op_data_free(&data);
        tn_model_free(model);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(losses_have_known_values),    cmocka_unit_test(a_conv_has_known_values),
        cmocka_unit_test(a_norm_has_known_statistics), cmocka_unit_test(pools_and_linear_have_known_values),
        cmocka_unit_test(a_nan_survives_relu),         cmocka_unit_test(networks_equal_their_definition),
        cmocka_unit_test(gradients_of_all_op_cases),   cmocka_unit_test(gradients_of_all_variants),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
