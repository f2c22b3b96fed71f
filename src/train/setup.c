#include "train/setup.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "backend/backend.h"
#include "data/raw_image.h"
#include "io/atomic_file.h"
#include "model/graph.h"

/* That a loader holds: one in use, three ready. */
#define LOADER_BATCHES 4

tn_status tn_setup_model(const tn_options *options, tn_input_shape input, int classes, tn_model **out) {
    tn_model_config config = {.model = options->model,
                              .variant = options->variant,
                              .tau = options->tau,
                              .channels = input.channels,
                              .height = input.height,
                              .width = input.width,
                              .classes = classes,
                              .tau_per_block = options->tau_sharing == TN_TAU_PER_BLOCK,
                              .no_bn_shortcut = !options->bn_shortcut,
                              .zero_init_last_gamma = options->zero_init_last_gamma,
                              .loss = options->loss,
                              .hidden = options->width,
                              .depth = options->depth,
                              .train_ends = options->train_ends};
    return tn_model_build(&config, out);
}

tn_input_shape tn_setup_input(const tn_model *model) {
    tn_shape s = model->tensors[0].shape;
    return (tn_input_shape){s.channels, s.height, s.width};
}

/* `bytes` for batches of `batch` images; `remedy` is what helps beside a smaller batch. */
static tn_status check_memory(double bytes, int batch, const char *remedy) {
    double machine = (double)sysconf(_SC_PHYS_PAGES) * (double)sysconf(_SC_PAGESIZE);
    if (bytes <= machine) return TN_OK;
    return tn_fail(
        TN_ERR_MEMORY,
        "out of memory: %.1f GiB planned for batches of %d, the machine has %.1f GiB; use a smaller "
        "--batch%s",
        bytes / 0x1p30, batch, machine / 0x1p30, remedy);
}

/* Whether batches are bytes. */
static tn_status choose_raw(const tn_dataset *dataset, tn_split split, tn_engine *engine, bool *raw) {
    size_t bytes;
    const uint8_t *pixels = tn_dataset_pixels(dataset, split, &bytes);
    *raw = tn_engine_takes_raw(engine);
    if (!*raw || !pixels) return TN_OK;
    tn_status status = tn_engine_hold_images(engine, pixels, bytes);
    if (status != TN_ERR_MEMORY) return status;
    *raw = false;
    return TN_OK;
}

/* Bytes that a loader has for one image. */
static double image_bytes(const tn_dataset *dataset, const tn_loader_config *config) {
    tn_dataset_info info = tn_dataset_describe(dataset);
    size_t all;
    if (!config->raw) return (double)info.channels * info.height * info.width * sizeof(float);
    if (tn_dataset_pixels(dataset, config->split, &all)) return 0;
    return (double)tn_raw_image_bytes(info.height, info.width);
}

tn_status tn_setup_loader(const tn_dataset *dataset, const tn_loader_config *config, tn_engine *engine,
                          tn_loader **out) {
    tn_loader_config c = *config;
    *out = NULL;
    TN_TRY(choose_raw(dataset, c.split, engine, &c.raw));
    tn_dataset_info info = tn_dataset_describe(dataset);
    int count = c.split == TN_SPLIT_TRAIN ? info.train_count : info.val_count;
    double row = image_bytes(dataset, &c) + (info.classes + 1) * (double)sizeof(float);
    double rows = c.batch < count ? c.batch : count;
    if (c.ranks > 1) rows /= c.ranks;
    TN_TRY(check_memory(LOADER_BATCHES * rows * row, c.batch, ""));
    return tn_loader_open(dataset, &c, out);
}

tn_status tn_setup_engine(const tn_model *model, const tn_engine_config *config, tn_engine **out) {
    TN_TRY(tn_engine_create(model, config, out));
    tn_status status = check_memory((double)tn_engine_bytes(*out), config->max_batch,
                                    config->training && !config->recompute
                                        ? " or --model, fewer --threads, or --recompute yes"
                                        : " or --model, or fewer --threads");
    if (status == TN_OK) return TN_OK;
    tn_engine_free(*out);
    *out = NULL;
    return status;
}

tn_status tn_setup_print_memory(const tn_engine *engine, tn_string *out) {
    const char *separator = "";
    for (int use = 0; use < TN_MEMORY_USES; use++) {
        size_t bytes = tn_engine_memory(engine, (tn_memory_use)use);
        if (bytes == 0) continue;
        TN_TRY(tn_string_printf(out, "%s%s %.1f", separator, tn_memory_use_name((tn_memory_use)use),
                                (double)bytes / 0x1p20));
        separator = ", ";
    }
    return tn_string_printf(out, " MiB");
}

tn_status tn_setup_check_output(const char *path) {
    tn_atomic_file *file;
    if (path[0]) {
        TN_TRY(tn_atomic_begin(path, &file));
        tn_atomic_abort(file);
    }
    return TN_OK;
}

bool tn_setup_device_note(const tn_options *options, char *note, size_t size) {
    const tn_backend_ops *first = tn_backend_at(0);
    if (strcmp(options->device, "auto") || first->device_count() > 0) return false;
    snprintf(note, size, "--device auto: %s; training on the CPU", first->absence());
    return true;
}

tn_status tn_setup_check_device(const tn_options *options) {
    const tn_backend_ops *ops;
    int number;
    return tn_backend_find(options->device, options->precision, &ops, &number);
}

static tn_status choose(const char *name, const tn_float_list *list, const float *standard, int channels,
                        float *out) {
    if (list->count > 1 && list->count != channels)
        return tn_fail(TN_ERR_USAGE,
                       "--%s has %d numbers, the images have %d channels; give one a channel or one for all",
                       name, list->count, channels);
    for (int c = 0; c < channels; c++)
        out[c] = list->count == 0 ? standard[c] : list->values[list->count == 1 ? 0 : c];
    return TN_OK;
}

tn_status tn_setup_normalisation(const tn_options *options, const tn_dataset_info *info, float *mean,
                                 float *std) {
    TN_TRY(choose("mean", &options->mean, info->mean, info->channels, mean));
    return choose("std", &options->std, info->std, info->channels, std);
}

tn_status tn_setup_evaluate(tn_engine *engine, tn_loader *loader, const tn_stop *stop, tn_result *result,
                            float *predictions) {
    *result = (tn_result){0};
    TN_TRY(tn_loader_seek(loader, 0, 0));
    int batches = tn_loader_batches(loader);
    for (int i = 0; i < batches; i++) {
        const tn_batch *batch;
        tn_result part;
        int signal = 0;
        if (stop) TN_TRY(stop->signal(stop->context, &signal));
        if (signal) return tn_fail(TN_ERR_STOPPED, "stopped during evaluation");
        TN_TRY(tn_loader_next(loader, &batch, NULL));
        TN_TRY(tn_engine_eval(engine, batch, &part, predictions));
        if (predictions) predictions += (size_t)batch->rows * (size_t)batch->classes;
        result->loss += part.loss;
        result->rows += part.rows;
        result->top1 += part.top1;
        result->top5 += part.top5;
    }
    return TN_OK;
}
