/* `taunet eval` and `taunet init`. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/memory.h"
#include "io/atomic_file.h"
#include "taunet/run.h"
#include "train/checkpoint.h"
#include "train/setup.h"

typedef struct evaluation {
    tn_options *options;
    tn_safetensors *file;
    tn_dataset *dataset;
    tn_dataset_info data;
    tn_loader *loader;
    tn_model *model;
    tn_engine *engine;
    float *predictions;
    float mean[TN_CHANNELS_MAX], std[TN_CHANNELS_MAX];
} evaluation;

/* NumPy's format, version 1.0: magic, header length, a Python dict padded to 64 bytes, row-major float32. */
static tn_status write_npy(const char *path, const float *data, int rows, int columns) {
    char header[128];
    memset(header, ' ', sizeof header);
    memcpy(header, "\x93NUMPY\x01\x00\x76\x00", 10);
    int used = snprintf(header + 10, sizeof header - 10,
                        "{'descr': '<f4', 'fortran_order': False, 'shape': (%d, %d), }", rows, columns);
    header[10 + used] = ' ';
    header[sizeof header - 1] = '\n';
    tn_atomic_file *file;
    TN_TRY(tn_atomic_begin(path, &file));
    tn_status status = tn_atomic_write(file, header, sizeof header);
    if (status == TN_OK) status = tn_atomic_write(file, data, (size_t)rows * (size_t)columns * sizeof *data);
    if (status == TN_OK) return tn_atomic_commit(file);
    tn_atomic_abort(file);
    return status;
}

static tn_status open_loader(evaluation *v) {
    const tn_options *o = v->options;
    TN_TRY(tn_setup_normalisation(o, &v->data, v->mean, v->std));
    tn_loader_config config = {.split = TN_SPLIT_VAL,
                               .batch = o->batch < v->data.val_count ? o->batch : v->data.val_count,
                               .mean = v->mean,
                               .std = v->std,
                               .threads = o->threads,
                               .skip_bad = o->on_bad_sample == TN_BAD_SAMPLE_SKIP};
    return tn_setup_loader(v->dataset, &config, v->engine, &v->loader);
}

/* Takes what was not given from the checkpoint and opens the data set; without a size of its own, at the size
 * that the model was trained on. */
static tn_status open_data(evaluation *v, const char *path, tn_input_shape *input, int *classes) {
    const tn_options *o = v->options;
    int image_size = o->image_size;
    TN_TRY(tn_checkpoint_options(v->file, path, v->options, input, classes));
    if (!image_size && tn_dataset_is_sized(o->data) && input->height == input->width)
        image_size = input->height;
    TN_TRY(tn_dataset_open_sized(o->data, image_size, o->resize, &v->dataset));
    v->data = tn_dataset_describe(v->dataset);
    if (!input->channels) *input = (tn_input_shape){v->data.channels, v->data.height, v->data.width};
    if (!*classes) *classes = v->data.classes;
    if (input->channels == v->data.channels && input->height == v->data.height &&
        input->width == v->data.width && *classes == v->data.classes)
        return TN_OK;
    return tn_fail(TN_ERR_DATA, "%s was trained on %dx%dx%d images of %d classes, %s has %dx%dx%d and %d",
                   path, input->channels, input->height, input->width, *classes, o->data, v->data.channels,
                   v->data.height, v->data.width, v->data.classes);
}

static tn_status open_model(evaluation *v, const char *path) {
    const tn_options *o = v->options;
    tn_input_shape input = {0};
    int classes = 0;
    bool all_given = tn_options_is_given(o, "model") && tn_options_is_given(o, "variant");
    TN_TRY(open_data(v, path, &input, &classes));
    TN_TRY(tn_setup_check_device(o));
    tn_status status = tn_setup_model(o, input, classes, &v->model);
    if (status != TN_OK) return all_given ? status : tn_fail_prefix(TN_ERR_DATA, "%s: metadata", path);
    tn_engine_config config = {.device = o->device,
                               .precision = o->precision,
                               .threads = o->threads,
                               .micro_batch = o->micro_batch,
                               .max_batch = o->batch};
    TN_TRY(tn_setup_engine(v->model, &config, &v->engine));
    return tn_checkpoint_load(v->engine, v->file, path, false);
}

static tn_status evaluate(evaluation *v, tn_evaluation *out) {
    const tn_options *o = v->options;
    TN_TRY(tn_options_check(o));
    TN_TRY(tn_safetensors_open(o->checkpoint, &v->file));
    TN_TRY(open_model(v, o->checkpoint));
    TN_TRY(open_loader(v));
    TN_TRY(tn_setup_check_output(o->predictions));
    if (o->predictions[0])
        TN_TRY(tn_alloc(&v->predictions, (size_t)v->data.val_count * (size_t)v->data.classes, sizeof(float),
                        "predictions"));
    tn_result result;
    double start = tn_now();
    TN_TRY(tn_setup_evaluate(v->engine, v->loader, NULL, &result, v->predictions));
    if (!isfinite(result.loss))
        return tn_fail(TN_ERR_DIVERGED,
                       "%s: the loss on %s is not finite: the weights are, or lead to, no numbers",
                       o->checkpoint, o->data);
    *out = (tn_evaluation){.loss = result.loss / result.rows,
                           .top1 = 100.0 * result.top1 / result.rows,
                           .top5 = 100.0 * result.top5 / result.rows,
                           .images = result.rows,
                           .seconds = tn_now() - start,
                           .bad_samples = tn_loader_bad_samples(v->loader)};
    if (out->bad_samples)
        snprintf(out->bad_sample, sizeof out->bad_sample, "%s", tn_loader_bad_sample(v->loader, 0));
    return v->predictions ? write_npy(o->predictions, v->predictions, result.rows, v->data.classes) : TN_OK;
}

/* A private copy: the checkpoint fills in what was not given. */
static tn_status copy_options(const tn_options *options, tn_options **out) {
    char *text;
    TN_TRY(tn_options_create("eval", out));
    TN_TRY(tn_options_print_config(options, &text));
    tn_status status = tn_options_load_text(*out, text, strlen(text), "options");
    tn_options_free_text(text);
    if (status == TN_OK) memcpy((*out)->given, options->given, sizeof options->given);
    return status;
}

tn_status tn_run_eval(const tn_options *options, tn_evaluation *out) {
    evaluation v = {0};
    tn_status status = copy_options(options, &v.options);
    if (status == TN_OK) status = evaluate(&v, out);
    tn_loader_close(v.loader);
    tn_engine_free(v.engine);
    tn_model_free(v.model);
    tn_dataset_close(v.dataset);
    tn_safetensors_close(v.file);
    tn_options_free(v.options);
    tn_free(v.predictions);
    return status;
}

tn_status tn_run_init(const tn_options *options) {
    tn_model *model = NULL;
    tn_engine *engine = NULL;
    TN_TRY(tn_options_check(options));
    tn_status status = tn_setup_model(options, options->input, options->classes, &model);
    tn_engine_config config = {.device = "cpu", .threads = 1, .max_batch = 1};
    if (status == TN_OK) status = tn_engine_create(model, &config, &engine);
    if (status == TN_OK) status = tn_engine_initialise(engine, options->seed);
    if (status == TN_OK) {
        tn_checkpoint_info info = {.options = options,
                                   .input = tn_setup_input(model),
                                   .classes = tn_model_classes(model),
                                   .dataset = ""};
        status = tn_checkpoint_save(engine, &info, NULL, options->out);
    }
    tn_engine_free(engine);
    tn_model_free(model);
    return status;
}
