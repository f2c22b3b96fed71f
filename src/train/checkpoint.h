/* Weights and training state as safetensors files (contracts.md, "Files").
 *
 * Parameters carry the names of the PyTorch models, shared ones also under their aliases; batch norms add
 * running_mean, running_var and num_batches_tracked; a resumable file adds momentum.NAME, with --ema the
 * averages of parameters and statistics as ema.NAME, and the position in __metadata__. */
#ifndef TN_TRAIN_CHECKPOINT_H
#define TN_TRAIN_CHECKPOINT_H

#include "base/text.h"
#include "io/safetensors.h"
#include "taunet/engine.h"
#include "taunet/options.h"

/* Position of a run, and what an epoch has summed up so far. */
typedef struct tn_position {
    long step;                     /* steps done */
    double step_loss, step_lr;     /* of the last of them */
    double loss_sum;               /* of the current epoch: sum over images, */
    long rows, top1;               /* images and hits; 0 rows when the last epoch is finished and logged */
    double best_top1;              /* per cent, -1 before the first evaluation */
    long best_epoch;               /* -1 before */
    long train_images;             /* in the data set: another number means other epochs */
    long log_bytes, metrics_bytes; /* lengths of log.jsonl and metrics.csv that belong to this state */
} tn_position;

/* What the file says about the model, so that `taunet eval` can rebuild it. */
typedef struct tn_checkpoint_info {
    const tn_options *options; /* model, variant, tau, ... and seed */
    tn_input_shape input;
    int classes;
    const char *dataset;     /* name, "" for none */
    const float *mean, *std; /* [input.channels] or NULL */
} tn_checkpoint_info;

/* Writes parameters and state; with `position` also momentum, averages (options->ema) and position. Replaces
 * the file as a whole or not at all. */
tn_status tn_checkpoint_save(tn_engine *engine, const tn_checkpoint_info *info, const tn_position *position,
                             const char *path);

/* Takes parameters and state (and momentum and averages, when `resume`) from an open file. Every tensor must
 * be there with the shape the model needs and finite values, and none may be left over; the message says
 * which tensor differs and how. `path` names the file. */
tn_status tn_checkpoint_load(tn_engine *engine, const tn_safetensors *file, const char *path, bool resume);

/* Reads the position. TN_ERR_DATA when the file has none: it was not written by a run. */
tn_status tn_checkpoint_position(const tn_safetensors *file, const char *path, tn_position *out);

/* Fills the model options that were not given from the file's metadata, and input, classes and normalisation
 * (mean and std of `options`, unless given). TN_ERR_DATA when the metadata is missing and the options do not
 * say what it would. */
tn_status tn_checkpoint_options(const tn_safetensors *file, const char *path, tn_options *options,
                                tn_input_shape *input, int *classes);

#endif
