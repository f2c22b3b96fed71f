/* Engines on any device against the float64 reference. Test code: what goes wrong fails the running cmocka
 * test. */
#ifndef TN_TESTS_ENGINE_CHECK_H
#define TN_TESTS_ENGINE_CHECK_H

#include "engine/state.h"
#include "tests/support/op_cases.h"

typedef struct engine_target {
    const char *device;
    tn_precision precision;
    int threads;
    bool separate_buffers, separate_layers, recompute;
    /* For less than float32: how far losses, statistics and logits may be off, relative to 1 + |value|, and
     * all gradients together, relative to their norm (gradients of scalars are small differences of large
     * numbers). 0: the case's own tolerance, for each parameter by itself. */
    double value_tolerance, gradient_tolerance;
} engine_target;

/* An engine for training batches of `rows` in chunks of `micro_batch` (0: its own choice), with the
 * parameters and state of `data`. */
tn_engine *engine_make(const engine_target *target, const tn_model *model, int rows, int micro_batch,
                       const op_data *data);
/* A view of `data`. */
tn_batch engine_batch(const tn_model *model, int rows, const op_data *data);

/* Copies of what an engine holds, of the host; free with free(). */
float *engine_values(tn_engine *engine);
float *engine_grads(tn_engine *engine);
float *engine_state(tn_engine *engine);

/* One training batch and one evaluation against the reference: losses of rows, gradients (op_gradient_error),
 * running statistics, logits. */
void engine_check_reference(const engine_target *target, const char *name, const tn_model *model, int rows,
                            int micro_batch, const op_data *data, double tolerance);
/* engine_check_reference of all op cases (large ones too, if `large`), in one chunk and in chunks of 2 and 1
 * (large ones, and batch norm on other devices than the CPU, in one chunk). On other devices, prints a
 * checksum of the gradients of each case, and its work. */
void engine_check_op_cases(const engine_target *target, bool large);

bool engine_has_norms(const tn_model *model);

#endif
