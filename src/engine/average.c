/* Running averages of weights and batch-norm statistics over the steps (engine.h, tn_engine_config.average).
 */
#include "base/memory.h"
#include "engine/state.h"

/* Values that go through the host at a time. */
#define STAGED ((size_t)1 << 18)

/* Exchanges two ranges of backend memory, or copies b over a. */
static tn_status move(tn_engine *e, float *a, float *b, size_t count, bool exchange, float *staging) {
    const tn_backend_ops *ops = e->backend->ops;
    for (size_t at = 0; at < count; at += STAGED) {
        size_t bytes = (count - at < STAGED ? count - at : STAGED) * sizeof(float);
        TN_TRY(ops->download(e->backend, staging, b + at, bytes));
        if (exchange) TN_TRY(ops->download(e->backend, staging + STAGED, a + at, bytes));
        TN_TRY(ops->upload(e->backend, a + at, staging, bytes));
        if (exchange) TN_TRY(ops->upload(e->backend, b + at, staging + STAGED, bytes));
    }
    return TN_OK;
}

/* The average holds the parameters, then the statistics. */
static tn_status move_all(tn_engine *e, bool exchange) {
    const tn_model *m = e->model;
    float *staging;
    TN_TRY(tn_alloc(&staging, 2 * STAGED, sizeof *staging, "averaged weights"));
    tn_status status = move(e, e->average, e->flat.values, m->param_floats, exchange, staging);
    if (status == TN_OK)
        status = move(e, e->average + m->param_floats, e->flat.state, m->state_floats, exchange, staging);
    tn_free(staging);
    return status;
}

tn_status tn_engine_begin_average(tn_engine *e) {
    if (!e->average) return TN_OK;
    if (e->average_used)
        return tn_fail(TN_ERR_USAGE, "the averaged weights are in use: training goes on with the others");
    if (e->average_begun) return TN_OK;
    TN_TRY(move_all(e, false));
    e->average_begun = true;
    return TN_OK;
}

tn_status tn_engine_average(tn_engine *e, size_t from, size_t count) {
    const tn_model *m = e->model;
    if (!e->average || count == 0) return TN_OK;
    const float *values =
        from < m->param_floats ? e->flat.values + from : e->flat.state + (from - m->param_floats);
    return e->backend->ops->average(e->backend, e->average + from, values, count,
                                    (float)(1 - e->config.average), e->report.stop);
}

tn_status tn_engine_use_average(tn_engine *e, bool use) {
    if (!e->average)
        return tn_fail(TN_ERR_USAGE, "this engine keeps no average of its weights: it was made without one");
    if (e->average_used == use) return TN_OK;
    if (use) TN_TRY(tn_engine_begin_average(e));
    TN_TRY(move_all(e, true));
    e->average_used = use;
    e->packed = e->eval_loaded = false;
    return TN_OK;
}
