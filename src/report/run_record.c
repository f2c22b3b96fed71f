#include "report/run_record.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/config_file.h"
#include "base/memory.h"
#include "base/number.h"
#include "io/file_io.h"

/* The field of a log line from which each curve comes; errors are 100 less the field. */
static const struct {
    tn_curve_info info;
    const char *event, *field;
    bool complement;
} curves[TN_CURVES] = {
    [TN_CURVE_VAL_ERROR] = {{"val_error", "validation error", "%", false}, "epoch", "val_top1", true},
    [TN_CURVE_TRAIN_ERROR] = {{"train_error", "training error", "%", false}, "epoch", "train_top1", true},
    [TN_CURVE_VAL_LOSS] = {{"val_loss", "validation loss", "", false}, "epoch", "val_loss", false},
    [TN_CURVE_TRAIN_LOSS] = {{"train_loss", "training loss", "", false}, "epoch", "train_loss", false},
    [TN_CURVE_TAU] = {{"tau", "tau", "", false}, "epoch", "tau", false},
    [TN_CURVE_RATE] = {{"images_per_second", "images/s", "", false}, "epoch", "images_per_second", false},
    [TN_CURVE_NORM_GROWTH] = {{"norm_growth", "growth of block norms", "", false}, "", "", false},
    [TN_CURVE_STEP_LOSS] = {{"step_loss", "loss of a batch", "", true}, "step", "loss", false},
    [TN_CURVE_STEP_LR] = {{"step_lr", "learning rate", "", true}, "step", "lr", false},
    [TN_CURVE_STEP_TAU] = {{"step_tau", "tau", "", true}, "step", "tau", false},
};

const char *tn_run_state_name(tn_run_state state) {
    static const char *const names[] = {"not run", "unfinished", "diverged", "done"};
    return names[state];
}

tn_curve_info tn_curve_describe(tn_curve_kind kind) {
    return curves[kind].info;
}

bool tn_curve_find(const char *name, tn_curve_kind *out) {
    for (int i = 0; i < TN_CURVES; i++)
        if (!strcmp(curves[i].info.name, name)) {
            *out = (tn_curve_kind)i;
            return true;
        }
    return false;
}

static tn_status add_point(tn_curve *curve, double x, double y) {
    TN_TRY(tn_grow(&curve->x, &curve->x_capacity, curve->count + 1, sizeof *curve->x, "a curve"));
    TN_TRY(tn_grow(&curve->y, &curve->y_capacity, curve->count + 1, sizeof *curve->y, "a curve"));
    curve->x[curve->count] = x;
    curve->y[curve->count++] = y;
    return TN_OK;
}

double tn_curve_last(const tn_curve *curve) {
    return curve->count ? curve->y[curve->count - 1] : NAN;
}

double tn_curve_least(const tn_curve *curve, double *x) {
    double least = NAN;
    *x = NAN;
    for (size_t i = 0; i < curve->count; i++)
        if (curve->y[i] < least || isnan(least)) {
            least = curve->y[i];
            *x = curve->x[i];
        }
    return least;
}

/* ---- the log ---- */

static double number_of(const json_t *line, const char *key) {
    const json_t *value = json_object_get(line, key);
    return json_is_number(value) ? json_number_value(value) : NAN;
}

static const char *text_of(const json_t *line, const char *key) {
    const char *text = json_string_value(json_object_get(line, key));
    return text ? text : "";
}

static tn_status read_end(tn_run_record *record, const json_t *line) {
    const char *status = text_of(line, "status");
    record->state = !strcmp(status, "done")       ? TN_RUN_DONE
                    : !strcmp(status, "diverged") ? TN_RUN_DIVERGED
                                                  : TN_RUN_UNFINISHED;
    tn_free(record->message);
    record->message = NULL;
    return tn_strdup(&record->message, text_of(line, "message"));
}

static tn_status read_points(tn_run_record *record, const json_t *line, const char *event) {
    bool step = !strcmp(event, "step");
    double x = step ? number_of(line, "step") : number_of(line, "epoch") + 1;
    double seconds = step ? 0 : number_of(line, "seconds");
    for (int i = 0; i < TN_CURVES; i++) {
        if (strcmp(curves[i].event, event) != 0) continue;
        double y = number_of(line, curves[i].field);
        /* Epochs between evaluations have no validation numbers: no points, rather than gaps. */
        if (!isfinite(x) || isnan(y)) continue;
        TN_TRY(add_point(&record->curves[i], x, curves[i].complement ? 100 - y : y));
    }
    if (isfinite(seconds)) record->seconds += seconds;
    return TN_OK;
}

static tn_status read_line(tn_run_record *record, json_t *line) {
    const char *event = text_of(line, "event");
    if (!strcmp(event, "start")) {
        if (record->start) return tn_fail(TN_ERR_DATA, "a second start in one log");
        record->start = json_incref(line);
        record->state = TN_RUN_UNFINISHED;
        return TN_OK;
    }
    if (!record->start) return tn_fail(TN_ERR_DATA, "the log does not begin with a start line");
    if (!strcmp(event, "end")) return read_end(record, line);
    if (!strcmp(event, "step") || !strcmp(event, "epoch")) return read_points(record, line, event);
    return TN_OK; /* of a later version */
}

tn_status tn_run_record_read_log(tn_run_record *record, const char *bytes, size_t count, const char *file) {
    const char *at = bytes, *end = bytes + count, *newline;
    for (int number = 1; at < end && (newline = memchr(at, '\n', (size_t)(end - at))); number++) {
        json_error_t error;
        json_t *line = json_loadb(at, (size_t)(newline - at), JSON_REJECT_DUPLICATES, &error);
        if (!line || !json_is_object(line)) {
            json_decref(line);
            return tn_fail(TN_ERR_DATA, "%s:%d: not a JSON object; is this the log of a run?",
                           tn_make_legible(file).text, number);
        }
        tn_status status = read_line(record, line);
        json_decref(line);
        if (status != TN_OK) return tn_fail_prefix(status, "%s:%d", tn_make_legible(file).text, number);
        at = newline + 1;
    }
    return TN_OK;
}

const char *tn_run_record_text(const tn_run_record *record, const char *key) {
    return text_of(record->start, key);
}

double tn_run_record_number(const tn_run_record *record, const char *key) {
    return number_of(record->start, key);
}

/* ---- probes ---- */

/* Growth of the norms in each epoch that was probed. */
static tn_status find_growth(tn_run_record *record) {
    const tn_probe_rows *probes = &record->probes;
    for (size_t i = 0, next; i < probes->count; i = next) {
        double first = NAN, largest = 0;
        for (next = i; next < probes->count && probes->rows[next].epoch == probes->rows[i].epoch; next++) {
            const tn_probe_row *row = &probes->rows[next];
            if (row->block == 1) first = row->output;
            /* A norm that is not finite makes the growth so. */
            if (row->block >= 1)
                largest = row->output > largest || isnan(row->output) ? row->output : largest;
        }
        if (largest > 0 && first > 0)
            TN_TRY(
                add_point(&record->curves[TN_CURVE_NORM_GROWTH], probes->rows[i].epoch + 1, largest / first));
    }
    return TN_OK;
}

tn_status tn_run_record_read_probes(tn_run_record *record, const char *bytes, size_t count,
                                    const char *file) {
    tn_probe_rows_free(&record->probes);
    TN_TRY(tn_probe_rows_parse(bytes, count, file, &record->probes));
    return find_growth(record);
}

/* ---- settings ---- */

static tn_status add_setting(void *context, const tn_config_entry *entry) {
    tn_settings *settings = context;
    if (entry->kind == TN_CONFIG_TABLE || entry->kind == TN_CONFIG_ELEMENT)
        return tn_fail(TN_ERR_DATA, "%s:%d: a table in the configuration of a run", entry->file, entry->line);
    TN_TRY(tn_grow(&settings->items, &settings->capacity, settings->count + 1, sizeof *settings->items,
                   "settings"));
    tn_setting *new = &settings->items[settings->count++];
    TN_TRY(tn_strdup(&new->name, entry->name));
    return tn_strdup(&new->value, entry->value);
}

tn_status tn_settings_parse(const char *text, size_t size, const char *file, tn_settings *out) {
    *out = (tn_settings){0};
    tn_status status = tn_config_parse(text, size, file, add_setting, out);
    if (status != TN_OK) tn_settings_free(out);
    return status;
}

void tn_settings_free(tn_settings *settings) {
    for (size_t i = 0; i < settings->count; i++) {
        tn_free(settings->items[i].name);
        tn_free(settings->items[i].value);
    }
    tn_free(settings->items);
    *settings = (tn_settings){0};
}

const char *tn_settings_find(const tn_settings *settings, const char *name) {
    for (size_t i = 0; i < settings->count; i++)
        if (!strcmp(settings->items[i].name, name)) return settings->items[i].value;
    return NULL;
}

/* ---- the folder ---- */

typedef tn_status (*reader)(tn_run_record *record, const char *bytes, size_t count, const char *file);

static tn_status read_settings(tn_run_record *record, const char *bytes, size_t count, const char *file) {
    return tn_settings_parse(bytes, count, file, &record->settings);
}

/* Hands the bytes of a file of the folder to `read`; a file that is not there is left out. */
static tn_status read_file(tn_run_record *record, const char *name, reader read) {
    tn_string path = {0};
    char *bytes = NULL;
    size_t size;
    bool found;
    TN_TRY(tn_string_printf(&path, "%s/%s", record->folder, name));
    tn_status status = tn_read_file(path.data, &bytes, &size, &found);
    if (status == TN_OK && found) status = read(record, bytes, size, path.data);
    tn_free(bytes);
    tn_string_free(&path);
    return status;
}

tn_status tn_run_record_open(const char *folder, tn_run_record **out) {
    tn_run_record *record;
    *out = NULL;
    TN_TRY(tn_alloc(&record, 1, sizeof *record, "the record of a run"));
    tn_status status = tn_strdup(&record->folder, folder);
    if (status == TN_OK) status = tn_strdup(&record->message, "");
    if (status == TN_OK) status = read_file(record, "log.jsonl", tn_run_record_read_log);
    if (status == TN_OK && record->start) status = read_file(record, "config.toml", read_settings);
    if (status == TN_OK && record->start) status = read_file(record, "probes.csv", tn_run_record_read_probes);
    if (status == TN_OK)
        *out = record;
    else
        tn_run_record_free(record);
    return status;
}

void tn_run_record_free(tn_run_record *record) {
    if (!record) return;
    json_decref(record->start);
    for (int i = 0; i < TN_CURVES; i++) {
        tn_free(record->curves[i].x);
        tn_free(record->curves[i].y);
    }
    tn_settings_free(&record->settings);
    tn_probe_rows_free(&record->probes);
    tn_free(record->message);
    tn_free(record->folder);
    tn_free(record);
}
