/* Claim 1 and Figure 3 of [S]: with batch normalisation the norm of a block's output grows like the square
 * root of the block's number, and with tau = 1/sqrt(L) in front of the branch it hardly grows.
 *
 * Here the norms are measured, or taken from runs; norm_growth.c judges them. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/memory.h"
#include "base/philox.h"
#include "theory/laboratory.h"
#include "theory/norm_growth.h"
#include "theory/probed_run.h"
#include "theory/stored_network.h"

enum { DEPTHS_MAX = 8, CLASSES = 10 };

typedef struct study {
    tn_lab *lab;
    const tn_options *options;
    tn_dataset *dataset;  /* or NULL: noise */
    tn_safetensors *file; /* or NULL: fresh networks */
    tn_norm_study norms;
    size_t capacity; /* of norms.series */
    int trials;
} study;

/* ---- a batch ---- */

typedef struct images {
    float *pixels, *targets;
    tn_loader *loader;
    tn_batch batch;
} images;

static tn_status noise(const study *s, tn_input_shape input, int classes, int rows, uint64_t seed,
                       images *out) {
    size_t image = (size_t)input.channels * (size_t)input.height * (size_t)input.width;
    (void)s;
    TN_TRY(tn_alloc(&out->pixels, (size_t)rows * image, sizeof(float), "a batch"));
    TN_TRY(tn_alloc(&out->targets, (size_t)rows * (size_t)classes, sizeof(float), "a batch"));
    for (int i = 0; i < rows; i++) {
        tn_rng rng = tn_rng_open(seed, TN_RNG_SYNTHETIC, (uint32_t)i, 0);
        for (size_t j = 0; j < image; j++) out->pixels[(size_t)i * image + j] = (float)tn_rng_normal(&rng);
        out->targets[i * classes + (int)tn_rng_below(&rng, (uint32_t)classes)] = 1;
    }
    out->batch = (tn_batch){.rows = rows,
                            .channels = input.channels,
                            .height = input.height,
                            .width = input.width,
                            .classes = classes,
                            .images = out->pixels,
                            .targets = out->targets};
    return TN_OK;
}

/* The first batch of the training images in the order of the seed. */
static tn_status real_images(const study *s, int rows, uint64_t seed, images *out) {
    const tn_batch *batch;
    int count = tn_dataset_describe(s->dataset).train_count;
    tn_loader_config config = {
        .split = TN_SPLIT_TRAIN, .batch = rows < count ? rows : count, .seed = seed, .shuffle = true};
    TN_TRY(tn_loader_open(s->dataset, &config, &out->loader));
    TN_TRY(tn_loader_next(out->loader, &batch, NULL));
    out->batch = *batch;
    return TN_OK;
}

static void images_free(images *i) {
    tn_loader_close(i->loader);
    tn_free(i->pixels);
    tn_free(i->targets);
}

/* ---- one network ---- */

static tn_status add_series(study *s, tn_norm_series **out) {
    tn_norm_study *norms = &s->norms;
    TN_TRY(tn_grow(&norms->series, &s->capacity, (size_t)norms->count + 1, sizeof *norms->series, "series"));
    *out = &norms->series[norms->count++];
    **out = (tn_norm_series){.epoch = -1, .finite = true};
    return TN_OK;
}

/* The stage of a block by its name, "layer2.17.bn2"; 0 for others (the stem). */
static int stage_of(const char *layer) {
    int stage;
    return sscanf(layer, "layer%d.", &stage) == 1 && stage >= 1 && stage <= TN_STAGES_MAX ? stage : 0;
}

/* Lists the blocks in `layers` and notes where stages begin. */
static tn_status find_blocks(const tn_model *model, tn_norm_series *out, int *layers) {
    int stage = 0;
    out->blocks = out->stages = 0;
    for (int i = 0; i < tn_model_layer_count(model); i++) {
        tn_layer_info layer = tn_model_layer(model, i);
        if (!layer.block || !stage_of(layer.name)) continue;
        if (stage_of(layer.name) != stage) {
            stage = stage_of(layer.name);
            out->first[out->stages++] = out->blocks;
        }
        layers[out->blocks++] = i;
    }
    out->first[out->stages] = out->blocks;
    if (out->blocks) return TN_OK;
    return tn_fail(TN_ERR_USAGE, "bn measures residual blocks of convolutional networks; %s has none",
                   out->model);
}

static tn_status measure(study *s, const tn_model *model, int rows, uint64_t seed, const int *layers,
                         tn_norm_series *out) {
    tn_engine *engine;
    tn_norms *norms = NULL;
    tn_result result;
    images batch = {0};
    tn_engine_config config = {.threads = s->options->threads, .max_batch = rows, .training = true};
    tn_layer_info last = tn_model_layer(model, tn_model_layer_count(model) - 2);
    tn_input_shape input = {3, 32, 32};
    if (s->file)
        sscanf(tn_safetensors_metadata(s->file, "input"), "%dx%dx%d", &input.channels, &input.height,
               &input.width);
    TN_TRY(tn_engine_create(model, &config, &engine));
    tn_status status = s->file ? tn_stored_weights(s->file, s->options->checkpoint, engine)
                               : tn_engine_initialise(engine, seed);
    if (status == TN_OK)
        status = s->dataset ? real_images(s, rows, seed, &batch)
                            : noise(s, input, last.channels, rows, seed, &batch);
    if (status == TN_OK) status = tn_alloc(&norms, (size_t)out->blocks, sizeof *norms, "norms");
    if (status == TN_OK) status = tn_engine_probe(engine, &batch.batch, out->blocks, layers, &result, norms);
    for (int i = 0; status == TN_OK && i < out->blocks; i++) {
        out->output[i] += norms[i].output / s->trials;
        out->gradient[i] += norms[i].gradient / s->trials;
    }
    tn_free(norms);
    images_free(&batch);
    tn_engine_free(engine);
    return status;
}

static tn_status measure_trials(study *s, const tn_model *model, int rows, tn_norm_series *out) {
    int *layers;
    TN_TRY(tn_alloc(&layers, (size_t)tn_model_layer_count(model), sizeof *layers, "blocks"));
    tn_status status = find_blocks(model, out, layers);
    if (status == TN_OK) status = tn_alloc(&out->output, (size_t)out->blocks, sizeof(double), "norms");
    if (status == TN_OK) status = tn_alloc(&out->gradient, (size_t)out->blocks, sizeof(double), "norms");
    for (int t = 0; t < s->trials && status == TN_OK; t++) {
        status = tn_lab_check_stop(s->lab);
        if (status == TN_OK) status = measure(s, model, rows, tn_lab_seed(s->lab) + (uint64_t)t, layers, out);
    }
    tn_free(layers);
    if (status == TN_OK)
        tn_lab_progress(s->lab, "%s: %d blocks, last relative to first %.3g", out->name, out->blocks,
                        out->output[out->blocks - 1] / out->output[0]);
    return status;
}

static tn_status fresh_network(study *s, int depth, const char *variant) {
    tn_dataset_info data = {.channels = 3, .height = 32, .width = 32, .classes = CLASSES};
    tn_norm_series *out;
    tn_model *model;
    TN_TRY(add_series(s, &out));
    /* Activations of all blocks are kept for backward: about 0.1 GiB an image at depth 1202. */
    int rows = tn_lab_samples(s->lab, depth > 300 ? 16 : 64, 16);
    if (s->dataset) data = tn_dataset_describe(s->dataset);
    out->depth = depth;
    snprintf(out->model, sizeof out->model, "resnet%d", depth);
    snprintf(out->variant, sizeof out->variant, "%s", variant);
    snprintf(out->name, sizeof out->name, "ResNet-%d, %s", depth, variant);
    tn_model_config config = {.model = out->model,
                              .variant = variant,
                              .channels = data.channels,
                              .height = data.height,
                              .width = data.width,
                              .classes = data.classes};
    TN_TRY(tn_model_build(&config, &model));
    tn_status status = measure_trials(s, model, rows, out);
    tn_model_free(model);
    return status;
}

static tn_status stored_network(study *s) {
    tn_norm_series *out;
    tn_model *model;
    TN_TRY(add_series(s, &out));
    TN_TRY(tn_stored_model(s->file, s->options->checkpoint, &model));
    snprintf(out->model, sizeof out->model, "%s", tn_safetensors_metadata(s->file, "model"));
    snprintf(out->variant, sizeof out->variant, "%s", tn_safetensors_metadata(s->file, "variant"));
    snprintf(out->name, sizeof out->name, "%.16s, %.8s, from the checkpoint",
             tn_safetensors_metadata(s->file, "model"), tn_safetensors_metadata(s->file, "variant"));
    s->trials = 1;
    tn_status status = measure_trials(s, model, tn_lab_samples(s->lab, 32, 16), out);
    tn_model_free(model);
    return status;
}

/* ---- runs ---- */

static tn_status add_epoch(study *s, const tn_probed_run *run, int epoch) {
    const tn_probe_row *rows = run->rows.rows + (size_t)epoch * (size_t)run->blocks;
    tn_norm_series *out;
    int stage = 0;
    TN_TRY(add_series(s, &out));
    out->run = s->norms.runs;
    out->epoch = rows[0].epoch;
    memcpy(out->model, run->model, sizeof out->model);
    memcpy(out->variant, run->variant, sizeof out->variant);
    sscanf(run->model, "resnet%d", &out->depth);
    snprintf(out->name, sizeof out->name, "%s, %s, run %d", run->model, run->variant, s->norms.runs);
    TN_TRY(tn_alloc(&out->output, (size_t)run->blocks, sizeof(double), "norms"));
    TN_TRY(tn_alloc(&out->gradient, (size_t)run->blocks, sizeof(double), "norms"));
    for (int i = 0; i < run->blocks; i++) {
        int own = stage_of(rows[i].layer);
        if (!own) continue;
        if (own != stage) {
            if (own < stage || out->stages == TN_STAGES_MAX)
                return tn_fail(TN_ERR_DATA, "--runs: the stages of %s are not in order", out->name);
            out->first[out->stages++] = out->blocks;
            stage = own;
        }
        out->finite &= isfinite(rows[i].output);
        out->gradient[out->blocks] = rows[i].gradient;
        out->output[out->blocks++] = rows[i].output;
    }
    out->first[out->stages] = out->blocks;
    if (out->blocks) return TN_OK;
    return tn_fail(TN_ERR_USAGE, "bn measures residual blocks of convolutional networks; %s has none",
                   out->name);
}

static tn_status read_run(study *s, const char *folder) {
    tn_probed_run run;
    s->norms.runs++;
    tn_status status = tn_probed_run_read(folder, &run);
    for (int e = 0; status == TN_OK && e < run.epochs; e++) status = add_epoch(s, &run, e);
    if (status == TN_OK && run.epochs == 0)
        status = tn_fail(TN_ERR_DATA, "--runs %s: probes.csv has no whole epoch yet",
                         tn_make_legible(folder).text);
    if (status == TN_OK)
        status = tn_lab_remark(s->lab, "Run %d: %s, %s, %d measurements, in %s.", s->norms.runs, run.model,
                               run.variant, run.epochs, tn_make_legible(folder).text);
    tn_probed_run_free(&run);
    return status;
}

/* The folders of --runs stand one a line. */
static tn_status read_runs(study *s) {
    char *folders, *rest, *folder;
    TN_TRY(tn_strdup(&folders, s->options->runs));
    tn_status status = TN_OK;
    for (folder = strtok_r(folders, "\n", &rest); folder && status == TN_OK;
         folder = strtok_r(NULL, "\n", &rest))
        status = read_run(s, folder);
    tn_free(folders);
    return status;
}

/* ---- the experiment ---- */

static tn_status fresh_networks(study *s) {
    static const int standard[] = {110, 1202, 0}, quick[] = {20, 56, 0};
    int depths[DEPTHS_MAX], count;
    TN_TRY(tn_lab_depths(s->lab, standard, quick, 8, depths, DEPTHS_MAX, &count));
    for (int i = 0; i < count; i++) {
        TN_TRY(fresh_network(s, depths[i], "bn"));
        TN_TRY(fresh_network(s, depths[i], "bn-tau"));
    }
    return TN_OK;
}

/* Of runs everything is known already. */
static tn_status from_runs(study *s) {
    static const char *const others[] = {"depths", "trials", "samples", "data", "checkpoint", "quick"};
    for (size_t i = 0; i < sizeof others / sizeof *others; i++)
        if (tn_options_is_given(s->options, others[i]))
            return tn_fail(TN_ERR_USAGE, "--runs and --%s exclude each other; give one of them", others[i]);
    TN_TRY(read_runs(s));
    TN_TRY(tn_lab_remark(s->lab, "Norms over the batch that --probe norms measures, in training mode."));
    return tn_norm_report(s->lab, &s->norms);
}

static tn_status work(study *s) {
    const tn_options *o = s->options;
    if (*o->runs) return from_runs(s);
    s->trials = tn_lab_trials(s->lab, 1, 1);
    if (*o->data) TN_TRY(tn_dataset_open(o->data, &s->dataset));
    if (*o->checkpoint) TN_TRY(tn_safetensors_open(o->checkpoint, &s->file));
    TN_TRY(s->file ? stored_network(s) : fresh_networks(s));
    TN_TRY(tn_lab_remark(s->lab,
                         "Norms over one batch of %s, in training mode, mean over %d initialisations.",
                         *o->data ? tn_make_legible(o->data).text : "normally distributed noise", s->trials));
    return tn_norm_report(s->lab, &s->norms);
}

static tn_status run(tn_lab *lab, const tn_options *options) {
    study *s;
    TN_TRY(tn_alloc(&s, 1, sizeof *s, "the study"));
    s->lab = lab;
    s->options = options;
    tn_status status = work(s);
    for (int i = 0; i < s->norms.count; i++) {
        tn_free(s->norms.series[i].output);
        tn_free(s->norms.series[i].gradient);
    }
    tn_free(s->norms.series);
    tn_safetensors_close(s->file);
    tn_dataset_close(s->dataset);
    tn_free(s);
    return status;
}

const tn_experiment tn_experiment_bn = {
    .name = "bn",
    .summary = "Norms of block outputs with batch normalisation, with and without tau (Claim 1, Figure 3)",
    .about =
        "The norm of the output of every residual block of CIFAR ResNets with batch normalisation, over one "
        "batch and relative to the first block, without tau and with tau = 1/sqrt(L). A stage change with "
        "its "
        "own batch norm on the shortcut sets the norm back, so growth is judged within each of the three "
        "stages. With --checkpoint one trained network is measured instead of fresh ones, with --runs the "
        "epochs of training runs.",
    .takes = " depths trials samples data checkpoint runs ",
    .run = run};
