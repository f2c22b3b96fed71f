/* Claim 1 and Figure 3 of [S]: with batch normalisation the norm of a block's output grows like the square
 * root of the block's number, and with tau = 1/sqrt(L) in front of the branch it hardly grows.
 *
 * Norms are Frobenius norms over a batch, relative to the first block's, in training mode (batch statistics).
 * A stage change sets the norm back, so growth is judged within stages. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/memory.h"
#include "base/philox.h"
#include "base/statistics.h"
#include "theory/laboratory.h"
#include "theory/stored_network.h"

enum { DEPTHS_MAX = 8, SERIES_MAX = 2 * DEPTHS_MAX, STAGES_MAX = 4, CLASSES = 10 };

/* Norms of one network, mean over trials. */
typedef struct series {
    char model[32], variant[16], name[64];
    int depth;                 /* 6n+2, 0 from a checkpoint */
    int blocks, stages;        /* without the stem */
    int first[STAGES_MAX + 1]; /* first block of each stage; [stages] = blocks */
    double *output, *gradient; /* [blocks] */
} series;

typedef struct study {
    tn_lab *lab;
    const tn_options *options;
    tn_dataset *dataset;  /* or NULL: noise */
    tn_safetensors *file; /* or NULL: fresh networks */
    series all[SERIES_MAX];
    int count, trials;
} study;

/* What the official code shows at initialisation, ResNet-110: first and last block of each stage relative to
 * the first of all. */
static const double official[2][6] = {{1, 3.63, 0.59, 2.56, 0.42, 1.79}, {1, 1.26, 0.59, 0.79, 0.42, 0.56}};

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

/* The stage of a block by its name, "layer2.17.bn2"; 0 for others (the stem). */
static int stage_of(const char *layer) {
    int stage;
    return sscanf(layer, "layer%d.", &stage) == 1 && stage >= 1 && stage <= STAGES_MAX ? stage : 0;
}

/* Lists the blocks in `layers` and notes where stages begin. */
static tn_status find_blocks(const tn_model *model, series *out, int *layers) {
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
                         series *out) {
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

static tn_status measure_trials(study *s, const tn_model *model, int rows, series *out) {
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
    series *out = &s->all[s->count++];
    tn_model *model;
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
    series *out = &s->all[s->count++];
    tn_model *model;
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

/* ---- numbers ---- */

/* Exponent of the squared norm in the block's number within a stage, without the first quarter of the blocks,
 * where the stage's input still counts. NaN for fewer than four blocks. */
static tn_fit growth(const series *s, int stage) {
    int from = s->first[stage], to = s->first[stage + 1], skip = (to - from) / 4;
    double x[2000], y[2000];
    int count = 0;
    for (int i = from + skip; i < to && count < 2000; i++, count++) {
        x[count] = i - from + 1;
        y[count] = s->output[i] * s->output[i];
    }
    if (to - from < 4) count = 0;
    return tn_fit_power(x, y, count);
}

static double ratio(const series *s, int stage) {
    return s->output[s->first[stage + 1] - 1] / s->output[s->first[stage]];
}

static tn_status fill_tables(const study *s) {
    tn_number_table *blocks, *stages;
    TN_TRY(
        tn_lab_table(s->lab, "blocks", "depth,tau,stage,block,output_norm,relative,gradient_norm", &blocks));
    TN_TRY(tn_lab_table(s->lab, "stages", "depth,tau,stage,first,last,ratio,exponent,half_width", &stages));
    for (int i = 0; i < s->count; i++) {
        const series *v = &s->all[i];
        double tau = strcmp(v->variant, "bn") ? 1 : 0, one = v->output[0];
        for (int stage = 0; stage < v->stages; stage++) {
            tn_fit fit = growth(v, stage);
            int from = v->first[stage], to = v->first[stage + 1];
            TN_TRY(TN_TABLE_ADD(stages, v->depth, tau, stage + 1, v->output[from] / one,
                                v->output[to - 1] / one, ratio(v, stage), fit.slope, fit.half_width));
            for (int b = from; b < to; b++)
                TN_TRY(TN_TABLE_ADD(blocks, v->depth, tau, stage + 1, b + 1, v->output[b], v->output[b] / one,
                                    v->gradient[b]));
        }
    }
    return TN_OK;
}

static tn_status draw_series(tn_plot *plot, int panel, const series *v, int colour) {
    double *x;
    TN_TRY(tn_alloc(&x, 2 * (size_t)v->blocks, sizeof *x, "a plot"));
    for (int b = 0; b < v->blocks; b++) {
        x[b] = b + 1;
        x[v->blocks + b] = v->output[b] / v->output[0];
    }
    tn_status status = tn_plot_series(plot, panel, v->variant, colour, TN_MARK_LINE, v->blocks, x,
                                      x + v->blocks, NULL, NULL);
    tn_free(x);
    return status;
}

static tn_status draw(const study *s) {
    tn_plot *plot;
    int panel = 0;
    TN_TRY(tn_lab_plot(s->lab, "bn", "Norm of each block's output relative to the first block's.", &plot));
    for (int i = 0; i < s->count; i++) {
        const series *v = &s->all[i];
        bool second = i > 0 && !strcmp(v->model, s->all[i - 1].model);
        if (!second)
            TN_TRY(tn_plot_panel(plot, v->model, "block", "norm / norm of block 1", false, false, &panel));
        TN_TRY(draw_series(plot, panel, v, second));
    }
    return TN_OK;
}

/* "1 -> 3.63, 0.59 -> 2.56, ..." */
static tn_status describe(const series *v, tn_string *out) {
    for (int stage = 0; stage < v->stages; stage++)
        TN_TRY(tn_string_printf(out, "%s%.2f -> %.2f", stage ? ", " : "",
                                v->output[v->first[stage]] / v->output[0],
                                v->output[v->first[stage + 1] - 1] / v->output[0]));
    return TN_OK;
}

static tn_status judge_growth(const study *s, const series *v) {
    double low = INFINITY, high = -INFINITY;
    char claim[160];
    tn_string text = {0};
    for (int stage = 0; stage < v->stages; stage++) {
        double slope = growth(v, stage).slope;
        /* These leave out NaN: stages of fewer than four blocks. */
        low = fmin(low, slope);
        high = fmax(high, slope);
    }
    snprintf(claim, sizeof claim, "Claim 1: in %s the squared norm grows in proportion to the block's number",
             v->name);
    tn_status status = describe(v, &text);
    if (status == TN_OK)
        status = tn_lab_verdict(s->lab,
                                isinf(low)                  ? TN_INCONCLUSIVE
                                : low >= 0.8 && high <= 1.2 ? TN_HOLDS
                                                            : TN_DOES_NOT_HOLD,
                                claim, "exponent from 0.8 to 1.2 within every stage, first quarter left out",
                                "exponents %.3f to %.3f; norm in each stage, relative to block 1: %s", low,
                                high, text.data);
    tn_string_free(&text);
    return status;
}

static tn_status judge_flatness(const study *s, const series *v, const series *bn) {
    double worst = 0, least = INFINITY;
    char claim[160];
    tn_string text = {0};
    for (int stage = 0; stage < v->stages; stage++) {
        worst = fmax(worst, ratio(v, stage));
        least = fmin(least, ratio(bn, stage));
    }
    snprintf(claim, sizeof claim, "Figure 3: in %s the norm hardly grows, other than without tau", v->name);
    tn_status status = describe(v, &text);
    if (status == TN_OK)
        status = tn_lab_verdict(
            s->lab, worst <= 1.5 && least > worst ? TN_HOLDS : TN_DOES_NOT_HOLD, claim,
            "growth within a stage by at most 1.5, and less than without tau in any stage",
            "at most %.3f (without tau at least %.3f); relative to block 1: %s", worst, least, text.data);
    tn_string_free(&text);
    return status;
}

static tn_status compare_official(const study *s, const series *v) {
    const double *expected = official[strcmp(v->variant, "bn") != 0];
    double worst = 0;
    char claim[160], bound[160];
    tn_string text = {0};
    for (int stage = 0; stage < 3; stage++) {
        int ends[] = {v->first[stage], v->first[stage + 1] - 1};
        for (int i = 0; i < 2; i++)
            worst = fmax(worst, fabs(v->output[ends[i]] / v->output[0] / expected[2 * stage + i] - 1));
    }
    snprintf(claim, sizeof claim, "%s at initialisation has the norms of the official code", v->name);
    snprintf(bound, sizeof bound, "within 10 %% of %g -> %.2f, %.2f -> %.2f, %.2f -> %.2f", expected[0],
             expected[1], expected[2], expected[3], expected[4], expected[5]);
    tn_status status = describe(v, &text);
    if (status == TN_OK)
        status = tn_lab_verdict(s->lab, worst <= 0.1 ? TN_HOLDS : TN_DOES_NOT_HOLD, claim, bound,
                                "%s: at most %.1f %% off", text.data, 100 * worst);
    tn_string_free(&text);
    return status;
}

static tn_status report(const study *s) {
    TN_TRY(fill_tables(s));
    TN_TRY(draw(s));
    for (int i = 0; i < s->count; i++) {
        const series *v = &s->all[i];
        if (strcmp(v->variant, "bn-tau") != 0)
            TN_TRY(judge_growth(s, v));
        else if (i > 0)
            TN_TRY(judge_flatness(s, v, &s->all[i - 1]));
        else /* from a checkpoint: nothing to compare it with */
            TN_TRY(tn_lab_remark(s->lab, "%s: growth within the stages by at most %.3f.", v->name,
                                 fmax(ratio(v, 0), ratio(v, v->stages - 1))));
        if (v->depth == 110) TN_TRY(compare_official(s, v));
    }
    return TN_OK;
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

static tn_status work(study *s) {
    const tn_options *o = s->options;
    s->trials = tn_lab_trials(s->lab, 1, 1);
    if (*o->data) TN_TRY(tn_dataset_open(o->data, &s->dataset));
    if (*o->checkpoint) TN_TRY(tn_safetensors_open(o->checkpoint, &s->file));
    TN_TRY(s->file ? stored_network(s) : fresh_networks(s));
    TN_TRY(tn_lab_remark(s->lab,
                         "Norms over one batch of %s, in training mode, mean over %d initialisations.",
                         *o->data ? tn_make_legible(o->data).text : "normally distributed noise", s->trials));
    return report(s);
}

static tn_status run(tn_lab *lab, const tn_options *options) {
    study *s;
    TN_TRY(tn_alloc(&s, 1, sizeof *s, "the study"));
    s->lab = lab;
    s->options = options;
    tn_status status = work(s);
    for (int i = 0; i < s->count; i++) {
        tn_free(s->all[i].output);
        tn_free(s->all[i].gradient);
    }
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
        "stages. With --checkpoint one trained network is measured instead of fresh ones.",
    .run = run};
