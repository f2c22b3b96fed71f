#include "train/probe_log.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"

#define HEADER "epoch,step,block,layer,output_norm,gradient_norm"

struct tn_probe_log {
    tn_engine *engine;
    tn_line_log *lines;
    tn_batch batch;
    float *images, *targets;
    int *labels;
    int *layers, count; /* of the blocks */
    tn_norms *norms;
    double *values; /* [count] */
};

/* The loader's batch lasts until its next one: the log keeps a copy. */
static tn_status copy_batch(tn_probe_log *log, const tn_batch *b) {
    size_t rows = (size_t)b->rows, image = (size_t)b->channels * (size_t)b->height * (size_t)b->width;
    size_t classes = (size_t)b->classes;
    TN_TRY(tn_alloc(&log->images, rows * image, sizeof(float), "batch of the probe"));
    TN_TRY(tn_alloc(&log->targets, rows * classes, sizeof(float), "batch of the probe"));
    TN_TRY(tn_alloc(&log->labels, rows, sizeof(int), "batch of the probe"));
    memcpy(log->images, b->images, rows * image * sizeof(float));
    memcpy(log->targets, b->targets, rows * classes * sizeof(float));
    memcpy(log->labels, b->labels, rows * sizeof(int));
    log->batch = *b;
    log->batch.images = log->images;
    log->batch.targets = log->targets;
    log->batch.labels = log->labels;
    log->batch.weights = NULL;
    return TN_OK;
}

static tn_status take_batch(tn_probe_log *log, const tn_probe_source *source) {
    const tn_options *o = source->options;
    const tn_batch *batch;
    tn_loader *loader;
    tn_loader_config config = {.split = TN_SPLIT_TRAIN,
                               .batch = o->batch,
                               .seed = o->seed,
                               .shuffle = true,
                               .chunk_rows = tn_engine_chunk_rows(log->engine),
                               .rank = source->rank,
                               .ranks = source->ranks,
                               .mean = source->mean,
                               .std = source->std,
                               .threads = o->threads,
                               .skip_bad = o->on_bad_sample == TN_BAD_SAMPLE_SKIP};
    TN_TRY(tn_loader_open(source->dataset, &config, &loader));
    tn_status status = tn_loader_next(loader, &batch, NULL);
    if (status == TN_OK) status = copy_batch(log, batch);
    tn_loader_close(loader);
    return status;
}

static tn_status find_blocks(tn_probe_log *log) {
    const tn_model *model = tn_engine_model(log->engine);
    int layers = tn_model_layer_count(model);
    TN_TRY(tn_alloc(&log->layers, (size_t)layers, sizeof *log->layers, "probe"));
    for (int i = 0; i < layers; i++)
        if (tn_model_layer(model, i).block) log->layers[log->count++] = i;
    TN_TRY(tn_alloc(&log->norms, (size_t)log->count, sizeof *log->norms, "probe"));
    return tn_alloc(&log->values, (size_t)log->count, sizeof *log->values, "probe");
}

/* Bytes of the rows that belong to a position: those of earlier steps, and those of its own step when the
 * epoch that ends there is finished; else they are written again. */
static tn_status kept_bytes(const char *path, const tn_position *position, int64_t *bytes) {
    char line[256];
    *bytes = 0;
    FILE *file = position->step > 0 ? fopen(path, "r") : NULL;
    if (!file) {
        if (position->step == 0 || errno == ENOENT) return TN_OK;
        return tn_fail(TN_ERR_IO, "cannot read %s: %s", path, strerror(errno));
    }
    while (fgets(line, sizeof line, file)) {
        size_t length = strlen(line);
        int epoch;
        long step;
        bool header = *bytes == 0 && !strcmp(line, HEADER "\n");
        if (line[length - 1] != '\n' || (!header && sscanf(line, "%d,%ld,", &epoch, &step) != 2)) break;
        if (!header && (step > position->step || (step == position->step && position->rows > 0))) break;
        *bytes += (int64_t)length;
    }
    fclose(file); /* was only read */
    return TN_OK;
}

static tn_status open_log(tn_probe_log *log, const tn_run_folder *folder, const tn_probe_source *source) {
    char path[TN_RUN_PATH];
    int64_t bytes;
    TN_TRY(take_batch(log, source));
    TN_TRY(find_blocks(log));
    if (!folder) return TN_OK;
    TN_TRY(kept_bytes(tn_run_folder_file(folder, "probes.csv", path), source->position, &bytes));
    TN_TRY(tn_line_log_open(path, bytes, &log->lines));
    return bytes == 0 ? tn_line_log_append(log->lines, HEADER) : TN_OK;
}

tn_status tn_probe_log_open(const tn_run_folder *folder, const tn_probe_source *source, tn_engine *engine,
                            tn_probe_log **out) {
    tn_probe_log *log;
    *out = NULL;
    TN_TRY(tn_alloc(&log, 1, sizeof *log, "probe"));
    log->engine = engine;
    tn_status status = open_log(log, folder, source);
    if (status == TN_OK)
        *out = log;
    else
        (void)tn_probe_log_close(log); /* the first failure counts */
    return status;
}

/* Appends ",VALUE", or "," for what is not finite. */
static int print_norm(char *to, size_t size, double value) {
    return isfinite(value) ? snprintf(to, size, ",%.9g", value) : snprintf(to, size, ",");
}

static tn_status histogram(tn_probe_log *log, tn_tfevents *events, const char *tag, long step,
                           bool gradient) {
    for (int i = 0; i < log->count; i++) {
        log->values[i] = gradient ? log->norms[i].gradient : log->norms[i].output;
        if (!isfinite(log->values[i])) return TN_OK;
    }
    return log->count ? tn_tfevents_histogram(events, tag, step, log->values, (size_t)log->count, -1) : TN_OK;
}

tn_status tn_probe_log_measure(tn_probe_log *log, int epoch, long step, tn_tfevents *events) {
    const tn_model *model = tn_engine_model(log->engine);
    tn_result result;
    tn_status status =
        tn_engine_probe(log->engine, &log->batch, log->count, log->layers, &result, log->norms);
    if (status != TN_OK && status != TN_ERR_DIVERGED) return status;
    if (!log->lines) return TN_OK;
    for (int i = 0; i < log->count; i++) {
        char row[256];
        if (status == TN_ERR_DIVERGED) log->norms[i] = (tn_norms){(double)NAN, (double)NAN};
        int used = snprintf(row, sizeof row, "%d,%ld,%d,%s", epoch, step, i,
                            tn_model_layer(model, log->layers[i]).name);
        used += print_norm(row + used, sizeof row - (size_t)used, log->norms[i].output);
        print_norm(row + used, sizeof row - (size_t)used, log->norms[i].gradient);
        TN_TRY(tn_line_log_append(log->lines, row));
    }
    TN_TRY(histogram(log, events, "probe/output_norm", step, false));
    return histogram(log, events, "probe/gradient_norm", step, true);
}

tn_status tn_probe_log_sync(tn_probe_log *log) {
    return log && log->lines ? tn_line_log_sync(log->lines) : TN_OK;
}

tn_status tn_probe_log_close(tn_probe_log *log) {
    if (!log) return TN_OK;
    tn_status status = tn_line_log_close(log->lines);
    tn_free(log->images);
    tn_free(log->targets);
    tn_free(log->labels);
    tn_free(log->layers);
    tn_free(log->norms);
    tn_free(log->values);
    tn_free(log);
    return status;
}
