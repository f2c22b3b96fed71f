/* Training steps on their way through an engine: issued and finished in order, as many at a time as it takes,
 * so that the host prepares a step while the device works on the one before. */
#ifndef TN_TRAIN_PIPELINE_H
#define TN_TRAIN_PIPELINE_H

#include "taunet/engine.h"

#define TN_PIPELINE_STEPS 2

typedef struct tn_pipeline {
    tn_engine *engine;
    tn_loader *loader;
    long issued; /* steps of the run */
    int waiting; /* issued, and not finished */
    struct {
        double lr, start;
    } steps[TN_PIPELINE_STEPS]; /* that wait, in order */
    double finished;            /* when the last one was */
} tn_pipeline;

/* A step that has been finished. */
typedef struct tn_finished_step {
    tn_result result;
    double lr;
    double start, seconds; /* since it was issued or, if that was later, the step before was finished */
} tn_finished_step;

/* Whether another step may be issued before one is finished. */
bool tn_pipeline_has_room(const tn_pipeline *pipeline);

/* Issues a step on the loader's next batch; adds the seconds spent waiting for that to *waited. */
tn_status tn_pipeline_issue(tn_pipeline *pipeline, const tn_sgd *sgd, double *waited);

/* Finishes the oldest step that waits. After a failure none waits. */
tn_status tn_pipeline_finish(tn_pipeline *pipeline, tn_finished_step *out);

#endif
