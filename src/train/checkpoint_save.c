#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/memory.h"
#include "engine/state.h"
#include "train/checkpoint.h"

/* Entries are collected in one growing list; names and data live in one block each. */
typedef struct writer {
    tn_safetensors_entry *entries;
    size_t entry_count, entry_capacity;
    char (*names)[TN_NAME_MAX + 32];
    int64_t (*dims)[4];
    float *data;
    int64_t *counters;
} writer;

static void add(writer *w, const char *name, const char *suffix, int rank, const int *dims, tn_dtype dtype,
                const void *data) {
    size_t i = w->entry_count++;
    TN_ASSERT(i < w->entry_capacity);
    snprintf(w->names[i], sizeof w->names[i], "%s%s", name, suffix);
    for (int d = 0; d < rank; d++) w->dims[i][d] = dims[d];
    w->entries[i] = (tn_safetensors_entry){
        .name = w->names[i], .dtype = dtype, .rank = rank, .dims = w->dims[i], .data = data};
}

static tn_status add_parameters(writer *w, tn_engine *e, tn_tensor_kind kind, const char *prefix,
                                float **cursor) {
    const tn_model *m = tn_engine_model(e);
    for (int i = 0; i < m->param_count; i++) {
        const tn_param *p = &m->params[i];
        TN_TRY(tn_engine_get(e, kind, i, *cursor));
        add(w, prefix, p->name, p->rank, p->dims, TN_DTYPE_F32, *cursor);
        for (int a = 0; kind == TN_VALUES && !*prefix && a < m->alias_count; a++)
            if (m->aliases[a].param == i)
                add(w, m->aliases[a].name, "", p->rank, p->dims, TN_DTYPE_F32, *cursor);
        *cursor += p->count;
    }
    return TN_OK;
}

/* Parameters and running statistics. */
static tn_status add_weights(writer *w, tn_engine *e, const char *prefix, float **cursor) {
    const tn_model *m = tn_engine_model(e);
    char name[TN_NAME_MAX + 8];
    TN_TRY(add_parameters(w, e, TN_VALUES, prefix, cursor));
    for (int i = 0; i < m->state_count; i++) {
        const tn_state *s = &m->states[i];
        float *mean = *cursor, *var = mean + s->count;
        TN_TRY(tn_engine_get_norm(e, i, mean, var, &w->counters[i]));
        snprintf(name, sizeof name, "%s%s", prefix, s->name);
        add(w, name, ".running_mean", 1, &s->count, TN_DTYPE_F32, mean);
        add(w, name, ".running_var", 1, &s->count, TN_DTYPE_F32, var);
        *cursor += 2 * s->count;
    }
    return TN_OK;
}

/* Counters come first: they are eight bytes each, and the file's data starts at a multiple of eight. */
static tn_status add_all(writer *w, tn_engine *e, bool momentum, bool average) {
    const tn_model *m = tn_engine_model(e);
    float *cursor = w->data;
    for (int i = 0; i < m->state_count; i++)
        add(w, m->states[i].name, ".num_batches_tracked", 0, NULL, TN_DTYPE_I64, &w->counters[i]);
    TN_TRY(add_weights(w, e, "", &cursor));
    if (momentum) TN_TRY(add_parameters(w, e, TN_MOMENTUM, "momentum.", &cursor));
    if (!average) return TN_OK;
    TN_TRY(tn_engine_use_average(e, true));
    tn_status status = add_weights(w, e, "ema.", &cursor);
    return status == TN_OK ? tn_engine_use_average(e, false) : status;
}

/* Values of __metadata__: texts in fixed slots. */
#define META_MAX  32
#define META_TEXT 512

typedef struct metadata {
    tn_safetensors_meta pairs[META_MAX];
    char texts[META_MAX][META_TEXT];
    int count;
} metadata;

static void meta(metadata *m, const char *key, const char *format, ...) __attribute__((format(printf, 3, 4)));
static void meta(metadata *m, const char *key, const char *format, ...) {
    TN_ASSERT(m->count < META_MAX);
    va_list args;
    va_start(args, format);
    vsnprintf(m->texts[m->count], META_TEXT, format, args);
    va_end(args);
    m->pairs[m->count] = (tn_safetensors_meta){key, m->texts[m->count]};
    m->count++;
}

static void meta_floats(metadata *m, const char *key, const float *values, int count) {
    char text[META_TEXT] = "";
    for (int i = 0; i < count; i++) {
        size_t used = strlen(text);
        snprintf(text + used, sizeof text - used, "%s%.9g", i ? "," : "", (double)values[i]);
    }
    meta(m, key, "%s", text);
}

static void describe(metadata *m, const tn_checkpoint_info *info, const tn_position *p) {
    const tn_options *o = info->options;
    meta(m, "format", "pt"); /* what PyTorch's loader looks for */
    meta(m, "taunet_version", "%s", tn_version());
    meta(m, "model", "%s", o->model);
    meta(m, "variant", "%s", o->variant);
    meta(m, "tau", "%s", o->tau);
    meta(m, "tau_sharing", "%s", o->tau_sharing == TN_TAU_PER_BLOCK ? "per-block" : "shared");
    meta(m, "bn_shortcut", "%s", o->bn_shortcut ? "yes" : "no");
    meta(m, "loss", "%s", o->loss);
    if (o->width) meta(m, "width", "%d", o->width);
    if (o->depth) meta(m, "depth", "%d", o->depth);
    if (o->train_ends) meta(m, "train_ends", "yes");
    if (o->ema > 0) meta(m, "ema", "%.17g", o->ema);
    meta(m, "input", "%dx%dx%d", info->input.channels, info->input.height, info->input.width);
    meta(m, "classes", "%d", info->classes);
    meta(m, "seed", "%" PRIu64, o->seed);
    if (info->dataset[0]) meta(m, "dataset", "%s", info->dataset);
    if (o->resize) meta(m, "resize", "%d", o->resize);
    if (info->mean) meta_floats(m, "mean", info->mean, info->input.channels);
    if (info->std) meta_floats(m, "std", info->std, info->input.channels);
    if (!p) return;
    meta(m, "step", "%ld", p->step);
    meta(m, "step_loss", "%.17g", p->step_loss);
    meta(m, "step_lr", "%.17g", p->step_lr);
    meta(m, "epoch_loss_sum", "%.17g", p->loss_sum);
    meta(m, "epoch_rows", "%ld", p->rows);
    meta(m, "epoch_top1", "%ld", p->top1);
    meta(m, "best_top1", "%.17g", p->best_top1);
    meta(m, "best_epoch", "%ld", p->best_epoch);
    meta(m, "train_images", "%ld", p->train_images);
    meta(m, "log_bytes", "%ld", p->log_bytes);
    meta(m, "metrics_bytes", "%ld", p->metrics_bytes);
}

static tn_status allocate(writer *w, const tn_model *m, bool momentum, bool average) {
    size_t params = (size_t)m->param_count, states = (size_t)m->state_count;
    size_t sets = average ? 2 : 1, copies = sets + momentum;
    w->entry_capacity = copies * params + (size_t)m->alias_count + (1 + 2 * sets) * states;
    TN_TRY(tn_alloc(&w->entries, w->entry_capacity, sizeof *w->entries, "checkpoint"));
    TN_TRY(tn_alloc(&w->names, w->entry_capacity, sizeof *w->names, "checkpoint"));
    TN_TRY(tn_alloc(&w->dims, w->entry_capacity, sizeof *w->dims, "checkpoint"));
    TN_TRY(tn_alloc(&w->counters, states, sizeof *w->counters, "checkpoint"));
    return tn_alloc(&w->data, copies * m->param_floats + sets * m->state_floats, sizeof(float), "checkpoint");
}

tn_status tn_checkpoint_save(tn_engine *engine, const tn_checkpoint_info *info, const tn_position *position,
                             const char *path) {
    writer w = {0};
    metadata *m = NULL;
    tn_status status = tn_alloc(&m, 1, sizeof *m, "checkpoint");
    bool whole = position != NULL, average = whole && info->options->ema > 0;
    if (status == TN_OK) status = allocate(&w, tn_engine_model(engine), whole, average);
    if (status == TN_OK) status = add_all(&w, engine, whole, average);
    if (status == TN_OK) {
        describe(m, info, position);
        status = tn_safetensors_write(path, w.entries, (int)w.entry_count, m->pairs, m->count);
    }
    tn_free(m);
    tn_free(w.entries);
    tn_free(w.names);
    tn_free(w.dims);
    tn_free(w.counters);
    tn_free(w.data);
    return status;
}
