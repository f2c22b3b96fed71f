#include "tests/support/engine_check.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <xxhash.h>

#include "tests/support/reference.h"

tn_engine *engine_make(const engine_target *target, const tn_model *model, int rows, int micro_batch,
                       const op_data *data) {
    tn_engine *engine;
    tn_engine_config config = {.device = target->device,
                               .precision = target->precision,
                               .threads = target->threads,
                               .separate_buffers = target->separate_buffers,
                               .separate_layers = target->separate_layers,
                               .recompute = target->recompute,
                               .micro_batch = micro_batch,
                               .max_batch = rows,
                               .training = true};
    if (tn_engine_create(model, &config, &engine) != TN_OK) fail_msg("%s", tn_error());
    const tn_backend_ops *ops = engine->backend->ops;
    size_t values = model->param_floats * sizeof(float), state = model->state_floats * sizeof(float);
    if (ops->upload(engine->backend, engine->flat.values, data->values, values) != TN_OK ||
        ops->upload(engine->backend, engine->flat.state, data->state, state) != TN_OK)
        fail_msg("%s", tn_error());
    return engine;
}

tn_batch engine_batch(const tn_model *model, int rows, const op_data *data) {
    tn_shape in = model->tensors[0].shape;
    return (tn_batch){.rows = rows,
                      .channels = in.channels,
                      .height = in.height,
                      .width = in.width,
                      .classes = model->classes,
                      .images = data->images,
                      .targets = data->targets,
                      .labels = data->labels,
                      .weights = data->row_weights};
}

static float *downloaded(tn_engine *engine, const float *from, size_t count) {
    float *to = calloc(count + 1, sizeof *to);
    if (engine->backend->ops->download(engine->backend, to, from, count * sizeof *to) != TN_OK)
        fail_msg("%s", tn_error());
    return to;
}

float *engine_values(tn_engine *engine) {
    return downloaded(engine, engine->flat.values, engine->model->param_floats);
}

float *engine_grads(tn_engine *engine) {
    return downloaded(engine, engine->flat.grads, engine->model->param_floats);
}

float *engine_state(tn_engine *engine) {
    return downloaded(engine, engine->flat.state, engine->model->state_floats);
}

typedef struct expected {
    reference *ref;
    double *values, *state, *images, *targets, *weights;
} expected;

static expected expect(const tn_model *model, int rows, const op_data *data) {
    tn_shape in = model->tensors[0].shape;
    size_t image = (size_t)in.channels * (size_t)in.height * (size_t)in.width, n = (size_t)rows;
    expected e = {.ref = reference_create(model, rows),
                  .values = op_widen(data->values, model->param_floats),
                  .state = op_widen(data->state, model->state_floats),
                  .images = op_widen(data->images, n * image),
                  .targets = op_widen(data->targets, n * (size_t)model->classes),
                  .weights = op_widen(data->row_weights, n)};
    reference_forward(e.ref, e.values, e.state, e.images, e.targets, e.weights, true);
    reference_backward(e.ref);
    return e;
}

static void expected_free(expected *e) {
    reference_free(e->ref);
    free(e->values);
    free(e->state);
    free(e->images);
    free(e->targets);
    free(e->weights);
}

static void check_close(const char *what, const char *name, double value, double wanted, double tolerance) {
    if (!(fabs(value - wanted) <= tolerance * (1 + fabs(wanted))))
        fail_msg("%s: %s is %.9g, the reference has %.9g", name, what, value, wanted);
}

static double whole_error(const double *wanted, const float *got, size_t count) {
    double off = 0, norm = 0;
    for (size_t i = 0; i < count; i++) {
        off += (wanted[i] - (double)got[i]) * (wanted[i] - (double)got[i]);
        norm += wanted[i] * wanted[i];
    }
    return sqrt(off / norm);
}

static void check_training(tn_engine *engine, const char *name, const expected *e, int rows,
                           const tn_batch *batch, double tolerance, double gradient_tolerance) {
    const tn_model *model = engine->model;
    tn_result result;
    if (tn_engine_gradients(engine, batch, &result) != TN_OK) fail_msg("%s: %s", name, tn_error());
    for (int i = 0; i < rows; i++)
        check_close("a row's loss", name, (double)engine->seen.row_loss[i], e->ref->row_loss[i], tolerance);
    float *grads = engine_grads(engine);
    if (!engine->backend->ops->host_memory)
        printf("checksum of %s, chunks of %d: %016llx\n", name, engine->config.micro_batch,
               (unsigned long long)XXH64(grads, model->param_floats * sizeof *grads, 0));
    for (int p = 0; p < model->param_count && !(gradient_tolerance > 0); p++) {
        double error = op_gradient_error(model, p, e->ref->grad, grads);
        if (!(error <= tolerance))
            fail_msg("%s, chunks of %d: gradient of %s is off by %.3g", name, engine->config.micro_batch,
                     model->params[p].name, error);
    }
    if (gradient_tolerance > 0) {
        double error = whole_error(e->ref->grad, grads, model->param_floats);
        if (!(error <= gradient_tolerance)) fail_msg("%s: the gradients are off by %.3g", name, error);
    }
    free(grads);
}

void engine_check_reference(const engine_target *target, const char *name, const tn_model *model, int rows,
                            int micro_batch, const op_data *data, double tolerance) {
    expected e = expect(model, rows, data);
    tn_engine *engine = engine_make(target, model, rows, micro_batch, data);
    tn_batch batch = engine_batch(model, rows, data);
    tn_result result;
    if (target->value_tolerance > 0) tolerance = target->value_tolerance;
    check_training(engine, name, &e, rows, &batch, tolerance, target->gradient_tolerance);
    float *state = engine_state(engine);
    for (size_t i = 0; i < model->state_floats; i++)
        check_close("running statistics", name, (double)state[i], e.state[i], tolerance);

    /* Evaluation sees the same running statistics in both. */
    float *logits = calloc((size_t)rows * (size_t)model->classes, sizeof *logits);
    for (size_t i = 0; i < model->state_floats; i++) e.state[i] = (double)state[i];
    reference_forward(e.ref, e.values, e.state, e.images, e.targets, e.weights, false);
    if (tn_engine_eval(engine, &batch, &result, logits) != TN_OK) fail_msg("%s: %s", name, tn_error());
    const double *wanted = e.ref->value[model->nodes[model->node_count - 1].input];
    double largest = 0;
    for (int i = 0; i < rows * model->classes; i++) largest = fmax(largest, fabs(wanted[i]));
    for (int i = 0; i < rows * model->classes; i++)
        check_close("a logit in evaluation", name, (double)logits[i], wanted[i],
                    target->value_tolerance > 0 ? tolerance * (1 + largest) : tolerance);
    free(logits);
    free(state);
    tn_engine_free(engine);
    expected_free(&e);
}

bool engine_has_norms(const tn_model *model) {
    for (int i = 0; i < model->node_count; i++)
        if (model->nodes[i].kind == TN_NODE_NORM) return true;
    return false;
}

static void print_work(const op_case *c, const tn_model *model) {
    double flops, bytes;
    op_case_work(model, c->rows, &flops, &bytes);
    printf("%-40s %8.2f MFLOP %8.3f MB forward\n", c->name, flops * 1e-6, bytes * 1e-6);
}

void engine_check_op_cases(const engine_target *target, bool large) {
    bool cpu = !strcmp(target->device, "cpu");
    for (int i = 0; i < op_case_count(); i++) {
        const op_case *c = op_case_at(i);
        if (c->large && !large) continue;
        tn_model *model = op_case_model(c);
        op_data data = op_case_data(c, model);
        /* One chunk; chunks with a short last one; a chunk for each row. */
        int sizes[] = {c->rows, 2, 1}, count = c->large || (engine_has_norms(model) && !cpu) ? 1 : 3;
        for (int k = 0; k < count; k++)
            engine_check_reference(target, c->name, model, c->rows, sizes[k], &data, c->tolerance);
        if (!cpu) print_work(c, model);
        op_data_free(&data);
        tn_model_free(model);
    }
}
