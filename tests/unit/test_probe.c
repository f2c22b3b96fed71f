/* Norms of activations and gradients inside a batch: against the reference, for any threads, without traces.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/memory.h"
#include "tests/support/engine_check.h"
#include "tests/support/reference.h"

#define ROWS   7
#define LAYERS 64

static const tn_model_config nets[] = {
    {.model = "resnet8", .variant = "bn", .height = 8, .width = 6, .classes = 4, .base_width = 8},
    {.model = "resnet8", .variant = "bn-tau", .height = 7, .width = 5, .classes = 4, .base_width = 8},
    {.model = "resnet14", .variant = "tau", .height = 8, .width = 6, .classes = 4, .base_width = 8},
    {.model = "resnet8", .variant = "fixup", .height = 7, .width = 6, .classes = 4, .base_width = 8},
    {.model = "fcresnet", .height = 5, .width = 4, .hidden = 16, .depth = 6, .classes = 4},
    {.model = "feedforward",
     .height = 5,
     .width = 4,
     .hidden = 16,
     .depth = 4,
     .classes = 4,
     .train_ends = true},
};
#define NETS ((int)(sizeof nets / sizeof nets[0]))

static tn_model *build(int net) {
    tn_model *model;
    if (tn_model_build(&nets[net], &model) != TN_OK) fail_msg("%s", tn_error());
    return model;
}

static tn_engine *engine_of(const tn_model *model, int chunk, int threads, const op_data *data) {
    engine_target target = {.device = "cpu", .threads = threads};
    return engine_make(&target, model, ROWS, chunk, data);
}

/* All layers but the loss, the last one first. */
static int all_layers(const tn_model *model, int *layers) {
    int count = 0;
    for (int i = tn_model_layer_count(model) - 2; i >= 0; i--) layers[count++] = i;
    assert_true(count <= LAYERS);
    return count;
}

static double norm_of(const double *values, size_t count, double shift) {
    double sum = 0;
    for (size_t i = 0; i < count; i++) sum += (values[i] - shift) * (values[i] - shift);
    return sqrt(sum);
}

static void compare(const tn_model *model, const op_data *data, int chunk) {
    int layers[LAYERS], count = all_layers(model, layers);
    tn_norms norms[LAYERS];
    tn_shape in = model->tensors[0].shape;
    reference *ref = reference_create(model, ROWS);
    double *values = op_widen(data->values, model->param_floats),
           *state = op_widen(data->state, model->state_floats);
    double *images = op_widen(data->images, (size_t)(ROWS * in.channels * in.height * in.width));
    double *targets = op_widen(data->targets, (size_t)(ROWS * model->classes));
    double *weights = op_widen(data->row_weights, ROWS);
    reference_forward(ref, values, state, images, targets, weights, true);
    reference_backward(ref);

    tn_engine *engine = engine_of(model, chunk, 2, data);
    tn_batch batch = engine_batch(model, ROWS, data);
    tn_result result;
    if (tn_engine_probe(engine, &batch, count, layers, &result, norms) != TN_OK) fail_msg("%s", tn_error());
    assert_int_equal(result.rows, ROWS);
    for (int i = 0; i < count; i++) {
        const tn_node *node = &model->nodes[layers[i]];
        size_t floats = ROWS * reference_floats(ref, node->output);
        double carried = node->carry >= 0 ? values[model->params[node->carry].offset] : 0;
        double output = norm_of(ref->value[node->output], floats, carried);
        double gradient = norm_of(ref->gradient[node->output], floats, 0);
        if (!(fabs(norms[i].output - output) <= 1e-4 * output))
            fail_msg("%s %s: output %g, not %g", model->variant, node->name, norms[i].output, output);
        if (!(fabs(norms[i].gradient - gradient) <= 1e-3 * gradient))
            fail_msg("%s %s: gradient %g, not %g", model->variant, node->name, norms[i].gradient, gradient);
    }
    tn_engine_free(engine);
    reference_free(ref);
    free(values);
    free(state);
    free(images);
    free(targets);
    free(weights);
}

static void norms_equal_the_reference(void **unused) {
    (void)unused;
    for (int net = 0; net < NETS; net++) {
        tn_model *model = build(net);
        op_data data = op_data_draw(model, ROWS, 40 + (uint64_t)net, true, false);
        static const int chunks[] = {ROWS, 3, 1};
        for (int i = 0; i < 3; i++) compare(model, &data, chunks[i]);
        op_data_free(&data);
        tn_model_free(model);
    }
}

static void any_number_of_threads_gives_the_same_bits(void **unused) {
    (void)unused;
    for (int net = 0; net < NETS; net++) {
        tn_model *model = build(net);
        op_data data = op_data_draw(model, ROWS, 60, true, false);
        int layers[LAYERS], count = all_layers(model, layers);
        tn_batch batch = engine_batch(model, ROWS, &data);
        tn_norms first[LAYERS], norms[LAYERS];
        for (int threads = 1; threads <= 4; threads++) {
            tn_engine *engine = engine_of(model, 2, threads, &data);
            tn_result result;
            assert_int_equal(tn_engine_probe(engine, &batch, count, layers, &result, norms), TN_OK);
            if (threads == 1) memcpy(first, norms, sizeof norms);
            assert_memory_equal(first, norms, (size_t)count * sizeof *norms);
            tn_engine_free(engine);
        }
        op_data_free(&data);
        tn_model_free(model);
    }
}

/* Steps with and without a probe in between end with the same bits, running statistics and counters included.
 */
static void probes_leave_no_trace(void **unused) {
    (void)unused;
    for (int net = 0; net < NETS; net++) {
        tn_model *model = build(net);
        op_data data = op_data_draw(model, ROWS, 70, false, true);
        int layers[LAYERS], count = all_layers(model, layers);
        tn_batch batch = engine_batch(model, ROWS, &data);
        tn_sgd sgd = {.lr = 0.01, .momentum = 0.9, .weight_decay = 1e-4, .scalar_lr = 0.1};
        tn_engine *engines[2];
        for (int probed = 0; probed < 2; probed++) {
            tn_engine *engine = engines[probed] = engine_of(model, 2, 2, &data);
            tn_norms norms[LAYERS];
            tn_result result;
            for (int step = 0; step < 3; step++) {
                if (probed)
                    assert_int_equal(tn_engine_probe(engine, &batch, count, layers, &result, norms), TN_OK);
                assert_int_equal(tn_engine_gradients(engine, &batch, &result), TN_OK);
                assert_int_equal(tn_engine_update(engine, &sgd), TN_OK);
                if (probed)
                    assert_int_equal(tn_engine_probe(engine, &batch, count, layers, &result, norms), TN_OK);
            }
        }
        assert_memory_equal(engines[0]->flat.values, engines[1]->flat.values,
                            model->param_floats * sizeof(float));
        assert_memory_equal(engines[0]->flat.momentum, engines[1]->flat.momentum,
                            model->param_floats * sizeof(float));
        assert_memory_equal(engines[0]->flat.state, engines[1]->flat.state,
                            model->state_floats * sizeof(float));
        for (int i = 0; i < model->state_count; i++)
            assert_int_equal(engines[0]->norm_batches[i], engines[1]->norm_batches[i]);
        for (int i = 0; i < 2; i++) tn_engine_free(engines[i]);
        op_data_free(&data);
        tn_model_free(model);
    }
}

static void wrong_layers_are_refused(void **unused) {
    (void)unused;
    tn_model *model = build(2);
    op_data data = op_data_draw(model, ROWS, 1, false, true);
    tn_engine *engine = engine_of(model, 2, 1, &data);
    tn_batch batch = engine_batch(model, ROWS, &data);
    int last = tn_model_layer_count(model) - 1;
    const int wrong[][2] = {{0, -1}, {0, last}, {0, last + 1}, {1, 1}};
    tn_result result;
    tn_norms norms[2];
    for (int i = 0; i < 4; i++)
        assert_int_equal(tn_engine_probe(engine, &batch, 2, wrong[i], &result, norms), TN_ERR_USAGE);
    assert_int_equal(tn_engine_probe(engine, &batch, 0, NULL, &result, NULL), TN_OK);
    tn_engine_free(engine);
    op_data_free(&data);
    tn_model_free(model);
}

static void failures_leave_nothing_behind(void **unused) {
    (void)unused;
    tn_model *model = build(0);
    op_data data = op_data_draw(model, ROWS, 1, false, true);
    tn_engine *engine = engine_of(model, 2, 1, &data);
    tn_batch batch = engine_batch(model, ROWS, &data);
    int layer = 1;
    tn_result result;
    tn_norms norms;
    assert_int_equal(tn_engine_probe(engine, &batch, 1, &layer, &result, &norms), TN_OK);
    size_t before = tn_memory_in_use();
    for (long n = 1;; n++) {
        tn_memory_fail_at(n);
        tn_status status = tn_engine_probe(engine, &batch, 1, &layer, &result, &norms);
        tn_memory_fail_at(0);
        assert_int_equal(tn_memory_in_use(), before);
        if (status == TN_OK) break;
        assert_int_equal(status, TN_ERR_MEMORY);
    }
    data.images[3] = NAN;
    assert_int_equal(tn_engine_probe(engine, &batch, 1, &layer, &result, &norms), TN_ERR_DIVERGED);
    assert_null(engine->probe);
    assert_memory_equal(engine->flat.state, data.state, model->state_floats * sizeof(float));
    tn_engine_free(engine);
    op_data_free(&data);
    tn_model_free(model);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(norms_equal_the_reference),
        cmocka_unit_test(any_number_of_threads_gives_the_same_bits),
        cmocka_unit_test(probes_leave_no_trace),
        cmocka_unit_test(wrong_layers_are_refused),
        cmocka_unit_test(failures_leave_nothing_behind),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
