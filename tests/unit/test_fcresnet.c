/* The fully connected networks: tables, errors, the definition in double precision, gradients, the engine. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/memory.h"
#include "engine/state.h"
#include "tests/support/op_cases.h"
#include "tests/support/reference.h"

#define ROWS   5
#define HIDDEN 16
#define PIXELS 20
#define CLASS  3

static tn_model_config config_of(const char *name, int depth, bool squared, bool train_ends) {
    return (tn_model_config){.model = name,
                             .channels = 1,
                             .height = 5,
                             .width = 4,
                             .classes = CLASS,
                             .hidden = HIDDEN,
                             .depth = depth,
                             .loss = squared ? "squared" : "cross-entropy",
                             .train_ends = train_ends};
}

static tn_model *build(tn_model_config config) {
    tn_model *model;
    if (tn_model_build(&config, &model) != TN_OK) fail_msg("%s", tn_error());
    return model;
}

/* ---- tables ---- */

static void parameters_have_names_shapes_and_groups(void **unused) {
    (void)unused;
    for (int trained = 0; trained < 2; trained++) {
        tn_model *model = build(config_of("fcresnet", 4, false, trained));
        static const char *const names[] = {"A.weight",   "W.0.weight", "W.1.weight",
                                            "W.2.weight", "W.3.weight", "B.weight"};
        assert_int_equal(model->param_count, 6);
        for (int p = 0; p < 6; p++) {
            const tn_param *param = &model->params[p];
            bool end = p == 0 || p == 5;
            assert_string_equal(param->name, names[p]);
            assert_int_equal(param->rank, 2);
            assert_int_equal(param->dims[0], p == 5 ? CLASS : HIDDEN);
            assert_int_equal(param->dims[1], p == 0 ? PIXELS : HIDDEN);
            assert_int_equal(param->group, end && !trained ? TN_GROUP_FIXED : TN_GROUP_WEIGHTS);
            assert_int_equal(param->init, TN_INIT_NORMAL);
            assert_true(fabs(param->init_value - sqrt(2.0 / (p == 5 ? CLASS : HIDDEN))) < 1e-15);
        }
        size_t inner = 4 * HIDDEN * HIDDEN, ends = HIDDEN * PIXELS + HIDDEN * CLASS;
        assert_int_equal(model->weight_floats, inner + (trained ? ends : 0));
        assert_int_equal(model->trained_floats, model->weight_floats);
        assert_int_equal(model->param_floats, inner + ends);
        assert_true(tn_model_multiply_adds(model) == (double)(inner + ends));
        assert_int_equal(model->blocks, 4);
        assert_true(fabs(model->tau - 0.5) < 1e-15 && model->tau_constant);
        assert_int_equal(tn_model_layer_count(model), 7);
        for (int i = 0; i < 7; i++) assert_int_equal(tn_model_layer(model, i).block, i < 5);
        tn_model_free(model);
    }
}

static void defaults(void **unused) {
    (void)unused;
    tn_model *model = build((tn_model_config){.model = "feedforward"});
    assert_int_equal(model->param_count, 12); /* depth 10 */
    assert_int_equal(model->params[1].count, 128 * 128);
    assert_false(model->tau_constant);
    tn_model_free(model);
}

static void wrong_options(void **unused) {
    (void)unused;
    static const struct {
        tn_model_config config;
        const char *message;
    } rows[] = {
        {{.model = "fcresnet", .variant = "bn"}, "--variant"},
        {{.model = "feedforward", .tau = "0.5"}, "feedforward has no tau"},
        {{.model = "fcresnet", .tau = "1/"}, "--tau"},
        {{.model = "fcresnet", .tau_per_block = true}, "--tau-sharing"},
        {{.model = "fcresnet", .zero_init_last_gamma = true}, "--zero-init-last-gamma"},
        {{.model = "fcresnet", .hidden = -1}, "--width"},
        {{.model = "fcresnet", .hidden = 65537}, "--width"},
        {{.model = "fcresnet", .depth = 20001}, "--depth"},
        {{.model = "fcresnet", .classes = 65537}, "classes"},
        {{.model = "fcresnet", .loss = "hinge"}, "--loss"},
        {{.model = "resnet8", .loss = "hinge"}, "--loss"},
        {{.model = "resnet8", .hidden = 128}, "--width"},
        {{.model = "resnet8", .depth = 8}, "--depth"},
        {{.model = "resnet8", .train_ends = true}, "--train-ends"},
        {{.model = "fcresnets"}, "fcresnet and feedforward"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        tn_model *model;
        assert_int_equal(tn_model_build(&rows[i].config, &model), TN_ERR_USAGE);
        assert_null(model);
        if (!strstr(tn_error(), rows[i].message)) fail_msg("'%s' lacks '%s'", tn_error(), rows[i].message);
    }
}

static void failing_allocations_leave_nothing(void **unused) {
    (void)unused;
    size_t before = tn_memory_in_use();
    tn_model_config config = config_of("fcresnet", 40, false, false);
    for (long n = 1;; n++) {
        tn_model *model;
        tn_memory_fail_at(n);
        tn_status status = tn_model_build(&config, &model);
        tn_memory_fail_at(0);
        if (status == TN_OK) {
            tn_model_free(model);
            break;
        }
        assert_int_equal(status, TN_ERR_MEMORY);
        assert_int_equal(tn_memory_in_use(), before);
    }
    assert_int_equal(tn_memory_in_use(), before);
}

/* ---- the definition ---- */

/* Data of a network in double precision, and its loss as the paper writes it. */
typedef struct textbook {
    tn_model *model;
    bool residual, squared;
    int depth;
    op_data data;
    double *values, *images, *targets, *weights;
} textbook;

static textbook textbook_make(const char *name, int depth, bool squared, bool train_ends) {
    textbook t = {.model = build(config_of(name, depth, squared, train_ends)),
                  .residual = !strcmp(name, "fcresnet"),
                  .squared = squared,
                  .depth = depth};
    t.data = op_data_draw(t.model, ROWS, 9, true, false);
    t.values = op_widen(t.data.values, t.model->param_floats);
    t.images = op_widen(t.data.images, ROWS * PIXELS);
    t.targets = op_widen(t.data.targets, ROWS * CLASS);
    t.weights = op_widen(t.data.row_weights, ROWS);
    return t;
}

static void textbook_free(textbook *t) {
    op_data_free(&t->data);
    tn_model_free(t->model);
    free(t->values);
    free(t->images);
    free(t->targets);
    free(t->weights);
}

static double product(const double *w, int columns, int row, const double *x) {
    double sum = 0;
    for (int j = 0; j < columns; j++) sum += w[row * columns + j] * x[j];
    return sum;
}

static void logits_of(const textbook *t, const double *image, double *y) {
    double h[HIDDEN], next[HIDDEN];
    const tn_param *params = t->model->params;
    for (int i = 0; i < HIDDEN; i++) h[i] = fmax(product(t->values + params[0].offset, PIXELS, i, image), 0);
    for (int l = 1; l <= t->depth; l++) {
        const double *w = t->values + params[l].offset;
        bool skip = t->residual && l < t->depth;
        for (int i = 0; i < HIDDEN; i++)
            next[i] = fmax(skip ? h[i] + (double)(float)t->model->tau * product(w, HIDDEN, i, h)
                                : product(w, HIDDEN, i, h),
                           0);
        memcpy(h, next, sizeof h);
    }
    for (int k = 0; k < CLASS; k++) y[k] = product(t->values + params[t->depth + 1].offset, HIDDEN, k, h);
}

static double loss_of(const textbook *t) {
    double loss = 0;
    for (int row = 0; row < ROWS; row++) {
        double y[CLASS], sum = 0, part = 0;
        logits_of(t, t->images + row * PIXELS, y);
        for (int k = 0; k < CLASS; k++) sum += exp(y[k]);
        for (int k = 0; k < CLASS; k++) {
            double target = t->targets[row * CLASS + k];
            part += t->squared ? 0.5 * (y[k] - target) * (y[k] - target) : -target * (y[k] - log(sum));
        }
        loss += t->weights[row] * part;
    }
    return loss;
}

/* Central differences of the definition itself against the reference's gradient. */
static void check_gradients(textbook *t, const reference *ref) {
    int compared = 0, skipped = 0;
    for (int p = 0; p < t->model->param_count; p++) {
        const tn_param *param = &t->model->params[p];
        for (size_t i = 0; i < param->count; i += 7) {
            size_t at = param->offset + i;
            double value = t->values[at], difference[2];
            for (int k = 0; k < 2; k++) {
                double step = k ? 5e-6 : 1e-5;
                t->values[at] = value + step;
                double above = loss_of(t);
                t->values[at] = value - step;
                difference[k] = (above - loss_of(t)) / (2 * step);
            }
            t->values[at] = value;
            compared++;
            if (param->group == TN_GROUP_FIXED) {
                assert_true(ref->grad[at] == 0);
                continue;
            }
            double scale = fmax(fabs(difference[1]), 1e-2);
            if (fabs(difference[0] - difference[1]) > 1e-7 * scale)
                skipped++; /* a ReLU switches within the step */
            else if (fabs(difference[1] - ref->grad[at]) > 1e-6 * scale)
                fail_msg("%s[%zu]: gradient %.12g, difference %.12g", param->name, i, ref->grad[at],
                         difference[1]);
        }
    }
    assert_true(skipped * 10 < compared);
}

static void networks_equal_their_definition(void **unused) {
    (void)unused;
    for (int i = 0; i < 8; i++) {
        textbook t = textbook_make(i & 1 ? "feedforward" : "fcresnet", 4, i & 2, i & 4);
        reference *ref = reference_create(t.model, ROWS);
        double loss = reference_forward(ref, t.values, NULL, t.images, t.targets, t.weights, true);
        double expected = loss_of(&t);
        if (fabs(loss - expected) > 1e-12 * (1 + fabs(expected)))
            fail_msg("net %d: loss %.15g, not %.15g", i, loss, expected);
        reference_backward(ref);
        check_gradients(&t, ref);
        reference_free(ref);
        textbook_free(&t);
    }
}

/* ---- the engine ---- */

static tn_engine *engine_of(const textbook *t, int chunk, int threads) {
    tn_engine *engine;
    tn_engine_config config = {
        .device = "cpu", .threads = threads, .micro_batch = chunk, .max_batch = ROWS, .training = true};
    if (tn_engine_create(t->model, &config, &engine) != TN_OK) fail_msg("%s", tn_error());
    for (int p = 0; p < t->model->param_count; p++)
        assert_int_equal(tn_engine_set(engine, TN_VALUES, p, t->data.values + t->model->params[p].offset),
                         TN_OK);
    return engine;
}

static tn_batch batch_of(const textbook *t) {
    return (tn_batch){.rows = ROWS,
                      .channels = 1,
                      .height = 5,
                      .width = 4,
                      .classes = CLASS,
                      .images = t->data.images,
                      .targets = t->data.targets,
                      .labels = t->data.labels,
                      .weights = t->data.row_weights};
}

static void the_engine_agrees_with_the_reference(void **unused) {
    (void)unused;
    for (int i = 0; i < 24; i++) {
        textbook t = textbook_make(i & 1 ? "feedforward" : "fcresnet", 6, i & 2, i & 4);
        static const int chunks[] = {ROWS, 2, 1};
        tn_engine *engine = engine_of(&t, chunks[i / 8], 2);
        reference *ref = reference_create(t.model, ROWS);
        reference_forward(ref, t.values, NULL, t.images, t.targets, t.weights, true);
        reference_backward(ref);
        tn_batch batch = batch_of(&t);
        tn_result result;
        if (tn_engine_gradients(engine, &batch, &result) != TN_OK) fail_msg("%s", tn_error());
        for (int p = 0; p < t.model->param_count; p++) {
            double error = op_gradient_error(t.model, p, ref->grad, engine->flat.grads);
            if (!(error <= 1e-5)) fail_msg("net %d: %s is off by %g", i, t.model->params[p].name, error);
        }
        for (int row = 0; row < ROWS; row++)
            assert_true(fabs((double)engine->seen.row_loss[row] - ref->row_loss[row]) <=
                        1e-5 * (1 + fabs(ref->row_loss[row])));
        reference_free(ref);
        tn_engine_free(engine);
        textbook_free(&t);
    }
}

static void steps(tn_engine *engine, const textbook *t) {
    tn_batch batch = batch_of(t);
    tn_sgd sgd = {.lr = 0.05, .momentum = 0.9, .weight_decay = 0.1, .scalar_lr = 0.1};
    tn_result result;
    for (int i = 0; i < 3; i++) {
        if (tn_engine_gradients(engine, &batch, &result) != TN_OK) fail_msg("%s", tn_error());
        if (tn_engine_update(engine, &sgd) != TN_OK) fail_msg("%s", tn_error());
    }
}

static void fixed_ends_keep_their_bits(void **unused) {
    (void)unused;
    for (int trained = 0; trained < 2; trained++) {
        textbook t = textbook_make("fcresnet", 3, false, trained);
        tn_engine *engine = engine_of(&t, 2, 2);
        steps(engine, &t);
        for (int p = 0; p < t.model->param_count; p++) {
            const tn_param *param = &t.model->params[p];
            bool same = !memcmp(engine->flat.values + param->offset, t.data.values + param->offset,
                                param->count * sizeof(float));
            bool end = p == 0 || p == t.model->param_count - 1;
            assert_int_equal(same, end && !trained);
            for (size_t i = 0; same && i < param->count; i++) {
                assert_true(engine->flat.grads[param->offset + i] == 0);
                assert_true(engine->flat.momentum[param->offset + i] == 0);
            }
        }
        tn_engine_free(engine);
        textbook_free(&t);
    }
}

static void any_number_of_threads_gives_the_same_bits(void **unused) {
    (void)unused;
    textbook t = textbook_make("fcresnet", 20, false, false);
    tn_engine *one = engine_of(&t, 1, 1);
    steps(one, &t);
    for (int threads = 2; threads <= 4; threads++) {
        tn_engine *many = engine_of(&t, 1, threads);
        steps(many, &t);
        assert_memory_equal(one->flat.values, many->flat.values, t.model->param_floats * sizeof(float));
        tn_engine_free(many);
    }
    tn_engine_free(one);
    textbook_free(&t);
}

/* ... and where there is little to compute for each weight. */
static void chunks_are_large_without_convolutions(void **unused) {
    (void)unused;
    static const struct {
        tn_model_config config;
        int rows;
    } cases[] = {{{.model = "fcresnet", .channels = 1, .height = 28, .width = 28}, 128},
                 {{.model = "fcresnet", .channels = 3, .height = 32, .width = 32}, 32},
                 {{.model = "resnet8", .channels = 1, .height = 8, .width = 8}, 32},
                 {{.model = "resnet20"}, 8},
                 {{.model = "resnet18", .height = 64, .width = 64}, 32},
                 {{.model = "resnet18"}, 4}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        tn_model *model = build(cases[i].config);
        tn_engine_config config = {.threads = 1, .max_batch = 4};
        tn_engine *engine;
        assert_int_equal(tn_engine_create(model, &config, &engine), TN_OK);
        assert_int_equal(tn_engine_chunk_rows(engine), cases[i].rows);
        tn_engine_free(engine);
        tn_model_free(model);
    }
}

/* The layer in which a value stops being finite is named, also where only a fixed matrix is at fault. */
static void bad_values_are_found(void **unused) {
    (void)unused;
    textbook t = textbook_make("fcresnet", 3, false, false);
    tn_engine *engine = engine_of(&t, 2, 2);
    tn_batch batch = batch_of(&t);
    tn_result result;
    for (int p = 0; p < t.model->param_count; p++) {
        const tn_param *param = &t.model->params[p];
        float *bad = malloc(param->count * sizeof *bad), saved;
        assert_non_null(bad);
        memcpy(bad, t.data.values + param->offset, param->count * sizeof *bad);
        saved = bad[param->count / 2];
        bad[param->count / 2] = NAN;
        assert_int_equal(tn_engine_set(engine, TN_VALUES, p, bad), TN_OK);
        assert_int_equal(tn_engine_gradients(engine, &batch, &result), TN_ERR_DIVERGED);
        char layer[32];
        snprintf(layer, sizeof layer, "layer %.*s", (int)(strlen(param->name) - strlen(".weight")),
                 param->name);
        if (!strstr(tn_error(), layer)) fail_msg("'%s' does not name %s", tn_error(), layer);
        bad[param->count / 2] = saved;
        if (p == 0)
            for (size_t i = 0; i < param->count; i++) bad[i] = 3e38f; /* overflows in A x */
        assert_int_equal(tn_engine_set(engine, TN_VALUES, p, bad), TN_OK);
        if (p == 0) {
            assert_int_equal(tn_engine_gradients(engine, &batch, &result), TN_ERR_DIVERGED);
            if (!strstr(tn_error(), "layer A")) fail_msg("'%s' does not name A", tn_error());
            assert_int_equal(tn_engine_set(engine, TN_VALUES, p, t.data.values + param->offset), TN_OK);
        }
        free(bad);
    }
    assert_int_equal(tn_engine_gradients(engine, &batch, &result), TN_OK);
    tn_engine_free(engine);
    textbook_free(&t);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(parameters_have_names_shapes_and_groups),
        cmocka_unit_test(defaults),
        cmocka_unit_test(wrong_options),
        cmocka_unit_test(failing_allocations_leave_nothing),
        cmocka_unit_test(networks_equal_their_definition),
        cmocka_unit_test(the_engine_agrees_with_the_reference),
        cmocka_unit_test(fixed_ends_keep_their_bits),
        cmocka_unit_test(any_number_of_threads_gives_the_same_bits),
        cmocka_unit_test(chunks_are_large_without_convolutions),
        cmocka_unit_test(bad_values_are_found),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
