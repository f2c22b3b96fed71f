/* --probe norms: the norm of every block's output and of its gradient on one fixed batch, before the first
 * step and at the end of each epoch, as probes.csv and as histograms over the blocks in the event file.
 *
 * The batch is the first of the training data in the order of the seed, not augmented. Probes change nothing
 * in the run. probes.csv has the columns epoch (-1 before the first step), step, block (from 0, the stem),
 * layer, output_norm, gradient_norm (engine.h, tn_norms; empty where a value was not finite). */
#ifndef TN_TRAIN_PROBE_LOG_H
#define TN_TRAIN_PROBE_LOG_H

#include "train/run_folder.h"

typedef struct tn_probe_log tn_probe_log;

typedef struct tn_probe_source {
    const tn_options *options;
    const tn_dataset *dataset;
    const float *mean, *std; /* as for training */
    const tn_position *position;
    int rank, ranks; /* of processes that share batches; 0 ranks: alone */
} tn_probe_source;

/* Takes the batch and opens probes.csv in the run's folder, cut back to what belongs to the position;
 * `folder` is NULL in a process that does not write. Close with tn_probe_log_close. */
tn_status tn_probe_log_open(const tn_run_folder *folder, const tn_probe_source *source, tn_engine *engine,
                            tn_probe_log **out);

/* Measures and writes one row for each block. A value that is not finite is no failure here. */
tn_status tn_probe_log_measure(tn_probe_log *log, int epoch, long step, tn_tfevents *events);

/* Waits until all rows are on the disk; before a checkpoint. NULL is allowed. */
tn_status tn_probe_log_sync(tn_probe_log *log);

/* NULL is allowed. */
tn_status tn_probe_log_close(tn_probe_log *log);

#endif
