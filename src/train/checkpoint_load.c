#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "engine/state.h"
#include "train/checkpoint.h"

typedef struct reader {
    tn_engine *engine;
    const tn_model *model;
    const tn_safetensors *file;
    const char *path;
    float *values; /* room for the largest tensor */
} reader;

typedef struct shape_text {
    char text[96];
} shape_text;

static shape_text show_shape(int rank, const int64_t *dims) {
    shape_text s = {"["};
    for (int i = 0; i < rank && i < 6; i++) {
        size_t used = strlen(s.text);
        snprintf(s.text + used, sizeof s.text - used, "%s%lld", i ? ", " : "", (long long)dims[i]);
    }
    size_t used = strlen(s.text);
    snprintf(s.text + used, sizeof s.text - used, "%s]", rank > 6 ? ", ..." : "");
    return s;
}

/* What the file says it holds: " (written for model resnet20, variant bn)", or nothing. */
static shape_text written_for(const reader *r) {
    const char *model = tn_safetensors_metadata(r->file, "model");
    const char *variant = tn_safetensors_metadata(r->file, "variant");
    shape_text s = {""};
    if (model && variant)
        snprintf(s.text, sizeof s.text, "; the file holds %.20s, variant %.20s", model, variant);
    return s;
}

/* A ReLU maps NaN to 0: what is not finite must be found here, it might never be seen again. */
static bool all_finite(const float *values, size_t count) {
    for (size_t i = 0; i < count; i++)
        if (!isfinite(values[i])) return false;
    return true;
}

/* Copies the float tensor NAME of the given shape into `out`. */
static tn_status take(reader *r, const char *name, int rank, const int *dims, float *out) {
    const tn_safetensors_entry *t = tn_safetensors_find(r->file, name);
    if (!t)
        return tn_fail(TN_ERR_DATA, "%s: no tensor %s, which %s, variant %s, needs%s", r->path, name,
                       r->model->model_name, r->model->variant, written_for(r).text);
    int64_t wanted[4];
    bool equal = t->rank == rank;
    for (int i = 0; i < rank; i++) {
        wanted[i] = dims[i];
        equal = equal && t->dims[i] == wanted[i];
    }
    if (!equal)
        return tn_fail(TN_ERR_DATA, "%s: tensor %s has shape %s, %s, variant %s, needs %s%s", r->path, name,
                       show_shape(t->rank, t->dims).text, r->model->model_name, r->model->variant,
                       show_shape(rank, wanted).text, written_for(r).text);
    if (t->dtype != TN_DTYPE_F32)
        return tn_fail(TN_ERR_DATA, "%s: tensor %s is %s, not F32; convert the file", r->path, name,
                       tn_dtype_name(t->dtype));
    memcpy(out, t->data, t->bytes);
    if (!all_finite(out, t->bytes / sizeof *out))
        return tn_fail(TN_ERR_DATA,
                       "%s: tensor %s holds a value that is not finite; take an earlier checkpoint", r->path,
                       name);
    return TN_OK;
}

static tn_status take_parameters(reader *r, tn_tensor_kind kind, const char *prefix) {
    const tn_model *m = r->model;
    char name[TN_NAME_MAX + 32];
    for (int i = 0; i < m->param_count; i++) {
        const tn_param *p = &m->params[i];
        snprintf(name, sizeof name, "%s%s", prefix, p->name);
        TN_TRY(take(r, name, p->rank, p->dims, r->values));
        TN_TRY(tn_engine_set(r->engine, kind, i, r->values));
    }
    return TN_OK;
}

/* Aliases may be missing, but must agree where they are there. */
static tn_status check_aliases(reader *r) {
    const tn_model *m = r->model;
    for (int i = 0; i < m->alias_count; i++) {
        const tn_param *p = &m->params[m->aliases[i].param];
        if (!tn_safetensors_find(r->file, m->aliases[i].name)) continue;
        TN_TRY(take(r, m->aliases[i].name, p->rank, p->dims, r->values));
        const tn_safetensors_entry *shared = tn_safetensors_find(r->file, p->name);
        if (memcmp(r->values, shared->data, p->count * sizeof(float)))
            return tn_fail(TN_ERR_DATA,
                           "%s: tensors %s and %s share one value in this model but differ in the file",
                           r->path, m->aliases[i].name, p->name);
    }
    return TN_OK;
}

static tn_status take_norm(reader *r, const char *prefix, int index) {
    const tn_state *s = &r->model->states[index];
    char name[TN_NAME_MAX + 32];
    int64_t batches = 0;
    snprintf(name, sizeof name, "%s%s.running_mean", prefix, s->name);
    TN_TRY(take(r, name, 1, &s->count, r->values));
    snprintf(name, sizeof name, "%s%s.running_var", prefix, s->name);
    TN_TRY(take(r, name, 1, &s->count, r->values + s->count));
    snprintf(name, sizeof name, "%s.num_batches_tracked", s->name);
    const tn_safetensors_entry *t = tn_safetensors_find(r->file, name);
    if (t) {
        if (t->dtype != TN_DTYPE_I64 || t->bytes != sizeof batches)
            return tn_fail(TN_ERR_DATA, "%s: tensor %s must be one I64", r->path, name);
        memcpy(&batches, t->data, sizeof batches);
    }
    return tn_engine_set_norm(r->engine, index, r->values, r->values + s->count, batches);
}

static bool is_parameter(const tn_model *m, const char *name) {
    for (int i = 0; i < m->param_count; i++)
        if (!strcmp(name, m->params[i].name)) return true;
    return false;
}

static bool is_known(const tn_model *m, const char *name) {
    static const char *const suffixes[] = {".running_mean", ".running_var", ".num_batches_tracked"};
    if (!strncmp(name, "momentum.", 9)) return is_parameter(m, name + 9);
    if (!strncmp(name, "ema.", 4)) name += 4;
    if (is_parameter(m, name)) return true;
    for (int i = 0; i < m->alias_count; i++)
        if (!strcmp(name, m->aliases[i].name)) return true;
    for (int i = 0; i < m->state_count; i++) {
        size_t length = strlen(m->states[i].name);
        if (strncmp(name, m->states[i].name, length)) continue;
        for (int k = 0; k < 3; k++)
            if (!strcmp(name + length, suffixes[k])) return true;
    }
    return false;
}

static tn_status check_leftovers(const reader *r) {
    for (int i = 0; i < tn_safetensors_count(r->file); i++) {
        const char *name = tn_safetensors_at(r->file, i)->name;
        if (!is_known(r->model, name))
            return tn_fail(TN_ERR_DATA, "%s: tensor %.80s is not part of %s, variant %s%s", r->path, name,
                           r->model->model_name, r->model->variant, written_for(r).text);
    }
    return TN_OK;
}

/* Parameters and running statistics. */
static tn_status take_weights(reader *r, const char *prefix) {
    TN_TRY(take_parameters(r, TN_VALUES, prefix));
    for (int i = 0; i < r->model->state_count; i++) TN_TRY(take_norm(r, prefix, i));
    return TN_OK;
}

static tn_status load(reader *r, bool resume) {
    TN_TRY(take_weights(r, ""));
    TN_TRY(check_aliases(r));
    if (resume) TN_TRY(take_parameters(r, TN_MOMENTUM, "momentum."));
    if (resume && r->engine->average) {
        TN_TRY(tn_engine_use_average(r->engine, true));
        TN_TRY(take_weights(r, "ema."));
        TN_TRY(tn_engine_use_average(r->engine, false));
    }
    return check_leftovers(r);
}

tn_status tn_checkpoint_load(tn_engine *engine, const tn_safetensors *file, const char *path, bool resume) {
    reader r = {.engine = engine, .model = tn_engine_model(engine), .file = file, .path = path};
    size_t largest = 1;
    for (int i = 0; i < r.model->param_count; i++)
        if (r.model->params[i].count > largest) largest = r.model->params[i].count;
    for (int i = 0; i < r.model->state_count; i++)
        if (2 * (size_t)r.model->states[i].count > largest) largest = 2 * (size_t)r.model->states[i].count;
    TN_TRY(tn_alloc(&r.values, largest, sizeof(float), "checkpoint"));
    tn_status status = load(&r, resume);
    tn_free(r.values);
    return status;
}

/* ---- metadata ---- */

/* Reads a number of the metadata into whichever of `whole` and `real` is not NULL. */
static tn_status number(const tn_safetensors *file, const char *path, const char *key, long *whole,
                        double *real) {
    const char *text = tn_safetensors_metadata(file, key);
    if (!text)
        return tn_fail(TN_ERR_DATA, "%s: no '%s' in the metadata: not the last.safetensors of a run", path,
                       key);
    char *end;
    errno = 0;
    if (whole)
        *whole = strtol(text, &end, 10);
    else
        *real = strtod(text, &end);
    if (end == text || *end || errno || (real && !isfinite(*real)))
        return tn_fail(TN_ERR_DATA, "%s: '%s' in the metadata is not a number: %.40s", path, key, text);
    return TN_OK;
}

tn_status tn_checkpoint_position(const tn_safetensors *file, const char *path, tn_position *out) {
    struct {
        const char *key;
        long *whole;
        double *real;
    } fields[] = {{"step", &out->step, NULL},
                  {"step_loss", NULL, &out->step_loss},
                  {"step_lr", NULL, &out->step_lr},
                  {"epoch_loss_sum", NULL, &out->loss_sum},
                  {"epoch_rows", &out->rows, NULL},
                  {"epoch_top1", &out->top1, NULL},
                  {"best_top1", NULL, &out->best_top1},
                  {"best_epoch", &out->best_epoch, NULL},
                  {"train_images", &out->train_images, NULL},
                  {"log_bytes", &out->log_bytes, NULL},
                  {"metrics_bytes", &out->metrics_bytes, NULL}};
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++)
        TN_TRY(number(file, path, fields[i].key, fields[i].whole, fields[i].real));
    if (out->step < 0 || out->rows < 0 || out->log_bytes < 0 || out->metrics_bytes < 0)
        return tn_fail(TN_ERR_DATA, "%s: a negative position in the metadata", path);
    return TN_OK;
}

tn_status tn_checkpoint_options(const tn_safetensors *file, const char *path, tn_options *options,
                                tn_input_shape *input, int *classes) {
    static const char *const keys[][2] = {{"model", "model"},
                                          {"variant", "variant"},
                                          {"tau", "tau"},
                                          {"tau-sharing", "tau_sharing"},
                                          {"bn-shortcut", "bn_shortcut"},
                                          {"width", "width"},
                                          {"depth", "depth"},
                                          {"train-ends", "train_ends"},
                                          {"loss", "loss"},
                                          {"mean", "mean"},
                                          {"std", "std"},
                                          {"resize", "resize"}};
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        const char *value = tn_safetensors_metadata(file, keys[i][1]);
        if (tn_options_is_given(options, keys[i][0])) continue;
        if (!value && i < 2)
            return tn_fail(TN_ERR_DATA, "%s: the metadata does not name the %s; give --%s", path, keys[i][0],
                           keys[i][0]);
        if (!value || !*value) continue;
        if (!strcmp(keys[i][0], "resize") && !tn_dataset_is_sized(options->data)) continue;
        tn_status status = tn_options_set(options, keys[i][0], value);
        if (status != TN_OK) return tn_fail_prefix(TN_ERR_DATA, "%s: metadata", path);
    }
    const char *shape = tn_safetensors_metadata(file, "input"),
               *count = tn_safetensors_metadata(file, "classes");
    if (shape && (sscanf(shape, "%dx%dx%d", &input->channels, &input->height, &input->width) != 3 ||
                  input->channels < 1 || input->height < 1 || input->width < 1))
        return tn_fail(TN_ERR_DATA, "%s: 'input' in the metadata is not CxHxW: %.40s", path, shape);
    if (count && sscanf(count, "%d", classes) != 1)
        return tn_fail(TN_ERR_DATA, "%s: 'classes' in the metadata is not a number: %.40s", path, count);
    return TN_OK;
}
