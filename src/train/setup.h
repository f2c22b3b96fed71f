/* From options to the things they name; shared by all commands that run a model. */
#ifndef TN_TRAIN_SETUP_H
#define TN_TRAIN_SETUP_H

#include "base/fail.h"
#include "base/text.h"
#include "taunet/data.h"
#include "taunet/engine.h"
#include "taunet/options.h"

/* Model for images of the given shape; zeros stand for the model's own. Free with tn_model_free. */
tn_status tn_setup_model(const tn_options *options, tn_input_shape input, int classes, tn_model **out);
/* The shape of the images that a model takes. */
tn_input_shape tn_setup_input(const tn_model *model);

/* tn_loader_open and tn_engine_create for work that starts at once: TN_ERR_MEMORY also for more than the
 * machine's memory, where the allocation succeeds and the process would be killed later. Where the engine's
 * device makes images of bytes, the loader gives it bytes; images in memory go to the device once, or, if it
 * has not the room for them, batch by batch as floats. */
tn_status tn_setup_loader(const tn_dataset *dataset, const tn_loader_config *config, tn_engine *engine,
                          tn_loader **out);
tn_status tn_setup_engine(const tn_model *model, const tn_engine_config *config, tn_engine **out);

/* "weights 97.3, gradients and momentum 194.6, ... MiB": what the engine holds. */
tn_status tn_setup_print_memory(const tn_engine *engine, tn_string *out);

/* Fails now if a file at `path` could not be written later, after the work. "" is no file. */
tn_status tn_setup_check_output(const char *path);

/* One line, where "auto" takes the CPU although this build could use a device that is not there. False:
 * nothing to say. */
bool tn_setup_device_note(const tn_options *options, char *note, size_t size);

/* Fails now if the device is not there or has not the precision. */
tn_status tn_setup_check_device(const tn_options *options);

/* Mean and standard deviation per channel: the options' where given (one number stands for all channels),
 * else the data set's. mean and std are [info->channels]. */
tn_status tn_setup_normalisation(const tn_options *options, const tn_dataset_info *info, float *mean,
                                 float *std);

/* Evaluates the model on every validation image once. predictions: [val_count][classes] or NULL. `stop` may
 * be NULL; it is asked before each batch for a signal to stop at, and ends the work early: TN_ERR_STOPPED.
 * Sums of losses and counts go to *result. */
typedef struct tn_stop {
    tn_status (*signal)(void *context, int *out);
    void *context;
} tn_stop;
tn_status tn_setup_evaluate(tn_engine *engine, tn_loader *loader, const tn_stop *stop, tn_result *result,
                            float *predictions);

#endif
