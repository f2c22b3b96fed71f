/* The folder of a training run: config.toml, log.jsonl, metrics.csv, tfevents and checkpoints (contracts.md).
 */
#ifndef TN_TRAIN_RUN_FOLDER_H
#define TN_TRAIN_RUN_FOLDER_H

#include <jansson.h>

#include "io/line_log.h"
#include "io/tfevents.h"
#include "train/checkpoint.h"

typedef struct tn_run_folder {
    char path[4096];
    int lock; /* descriptor of the folder, locked; -1 when closed */
    size_t
        made; /* length of the first part of path that had to be made, 0 when none or once there is a run */
    tn_line_log *log, *metrics;
    tn_tfevents *events;
    bool has_run, has_checkpoint; /* holds a run to continue: config.toml, and last.safetensors */
} tn_run_folder;

/* Opens (and makes, with its parents) the folder and locks it against a second process. Refuses a folder that
 * holds another run unless `resume` or `overwrite`. Temporary files of killed processes are removed. Close
 * with tn_run_folder_close in every case: folders that were made for a run that did not start are removed
 * there. */
tn_status tn_run_folder_open(tn_run_folder *folder, const char *path, bool resume, bool overwrite);

/* Removes the files of the run that the folder holds; others stay. The checkpoint goes first: whatever is
 * left by a process that is killed meanwhile is a run to start anew. */
tn_status tn_run_folder_clear(const tn_run_folder *folder);

/* Opens the logs, cut back to the given lengths, and a new event file. When resuming it begins with a session
 * start, at which TensorBoard drops what earlier files say about that step and later ones. Inside an epoch
 * that is the last step itself, as an earlier end of the run may have told of an unfinished epoch there: its
 * values must be told again. */
tn_status tn_run_folder_open_logs(tn_run_folder *folder, const tn_position *position);

/* Closes everything; the first failure is returned. */
tn_status tn_run_folder_close(tn_run_folder *folder);

/* The path of a file of the folder, in `out` of at least 4400 bytes. */
#define TN_RUN_PATH 4400
const char *tn_run_folder_file(const tn_run_folder *folder, const char *name, char *out);

tn_status tn_run_folder_write_config(tn_run_folder *folder, const tn_options *options);

/* Appends one JSON object to log.jsonl. Takes the reference, which may be NULL (out of memory). */
tn_status tn_run_folder_log(tn_run_folder *folder, json_t *line);

/* Writes out the event file, waits until both logs are on the disk and notes their lengths. */
tn_status tn_run_folder_sync(tn_run_folder *folder, tn_position *position);

/* Removes all but the `keep` newest epoch-NNNN.safetensors. */
tn_status tn_run_folder_prune(const tn_run_folder *folder, int keep);

/* JSON number, or null for values that JSON cannot hold. */
json_t *tn_json_real(double value);

/* Opens the folder of `given` and resolves the options of the run: those given, or with --resume those of the
 * folder. *out belongs to the caller, also after a failure. */
tn_status tn_run_folder_options(tn_run_folder *folder, const tn_options *given, tn_options **out);

#endif
