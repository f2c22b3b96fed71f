/* What a training run tells its folder about steps and epochs: lines of log.jsonl, rows of metrics.csv and
 * scalars of the event file, all from one tn_event. A process that does not write (its folder is closed) does
 * nothing here. */
#ifndef TN_TRAIN_RUN_LOG_H
#define TN_TRAIN_RUN_LOG_H

#include "taunet/run.h"
#include "train/run_folder.h"

/* Sets a key of a line; NULL for a value (out of memory) shows when the line is written. */
void tn_run_log_put(json_t *line, const char *key, json_t *value);

/* The event file's part of a step; and a step with its line of log.jsonl. */
tn_status tn_run_log_step_events(tn_run_folder *folder, const tn_event *event);
tn_status tn_run_log_step(tn_run_folder *folder, const tn_event *event);

/* An epoch; the val_ fields only where it was evaluated. */
tn_status tn_run_log_epoch(tn_run_folder *folder, const tn_event *event);

#endif
