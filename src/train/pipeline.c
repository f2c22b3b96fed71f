#include "train/pipeline.h"

#include "base/clock.h"
#include "base/fail.h"

bool tn_pipeline_has_room(const tn_pipeline *p) {
    int depth = tn_engine_depth(p->engine);
    return p->waiting < (depth < TN_PIPELINE_STEPS ? depth : TN_PIPELINE_STEPS);
}

tn_status tn_pipeline_issue(tn_pipeline *p, const tn_sgd *sgd, double *waited) {
    const tn_batch *batch;
    double start = tn_now(), before = *waited;
    TN_TRY(tn_loader_next(p->loader, &batch, waited));
    tn_engine_trace_add(p->engine, "data wait", start, start + *waited - before);
    TN_TRY(tn_engine_issue(p->engine, batch, sgd));
    p->steps[p->waiting].lr = sgd->lr;
    p->steps[p->waiting].start = start;
    p->waiting++;
    p->issued++;
    return TN_OK;
}

tn_status tn_pipeline_finish(tn_pipeline *p, tn_finished_step *out) {
    *out = (tn_finished_step){.lr = p->steps[0].lr, .start = p->steps[0].start};
    tn_status status = tn_engine_finish(p->engine, &out->result);
    if (out->start < p->finished) out->start = p->finished;
    p->finished = tn_now();
    out->seconds = p->finished - out->start;
    p->steps[0] = p->steps[1];
    p->waiting = status == TN_OK ? p->waiting - 1 : 0;
    if (status == TN_OK) tn_engine_trace_add(p->engine, "step", out->start, p->finished);
    return status;
}
