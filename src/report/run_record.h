/* What a run left in its folder, read back: log.jsonl, config.toml, probes.csv (contracts.md, "A run's
 * folder"). The log may be that of a run that is still going: an unfinished last line is left out. */
#ifndef TN_REPORT_RUN_RECORD_H
#define TN_REPORT_RUN_RECORD_H

#include <jansson.h>
#include <stdbool.h>

#include "base/text.h"
#include "io/probe_rows.h"

typedef enum tn_run_state {
    TN_RUN_ABSENT,     /* no log, or one without a start */
    TN_RUN_UNFINISHED, /* started, and no end yet, or stopped by a signal */
    TN_RUN_DIVERGED,   /* met a value that is not finite, and ended there */
    TN_RUN_DONE
} tn_run_state;

/* "done", "diverged", "unfinished", "not run" */
const char *tn_run_state_name(tn_run_state state);

/* Curves of a run. x is the number of epochs done, 0 before the first step, or of steps done. */
typedef enum tn_curve_kind {
    TN_CURVE_VAL_ERROR, /* per cent, top-1, as the next */
    TN_CURVE_TRAIN_ERROR,
    TN_CURVE_VAL_LOSS,
    TN_CURVE_TRAIN_LOSS,
    TN_CURVE_TAU,         /* at the end of epochs */
    TN_CURVE_RATE,        /* images/s of an epoch's training */
    TN_CURVE_NORM_GROWTH, /* largest norm of a residual block's output over that of the first block's */
    TN_CURVE_STEP_LOSS,   /* of the batch */
    TN_CURVE_STEP_LR,
    TN_CURVE_STEP_TAU,
    TN_CURVES
} tn_curve_kind;

typedef struct tn_curve_info {
    const char *name;  /* in recipes and files: "val_error" */
    const char *label; /* for people */
    const char *unit;  /* "%", or "" */
    bool steps;        /* x counts steps */
} tn_curve_info;

tn_curve_info tn_curve_describe(tn_curve_kind kind);

/* False when there is no such curve. */
bool tn_curve_find(const char *name, tn_curve_kind *out);

typedef struct tn_curve {
    double *x, *y; /* y is NaN where the log has null or nothing */
    size_t count, x_capacity, y_capacity;
} tn_curve;

typedef struct tn_setting {
    char *name, *value;
} tn_setting;

typedef struct tn_settings {
    tn_setting *items;
    size_t count, capacity;
} tn_settings;

typedef struct tn_run_record {
    char *folder;
    tn_run_state state;
    json_t *start; /* the log's start line, NULL when absent */
    char *message; /* of a run that diverged; "" */
    tn_curve curves[TN_CURVES];
    tn_settings settings; /* of config.toml, empty when there is none */
    tn_probe_rows probes; /* empty when there are none */
    double seconds;       /* of all finished epochs, evaluation included */
} tn_run_record;

/* Reads the folder; one without a log gives an absent run. TN_ERR_DATA with file and line for a log that is
 * not what a run writes; TN_ERR_IO. Free with tn_run_record_free; NULL is allowed there. */
tn_status tn_run_record_open(const char *folder, tn_run_record **out);
void tn_run_record_free(tn_run_record *record);

/* The parts: `count` bytes of a log, of a probes.csv. `file` names them in messages. */
tn_status tn_run_record_read_log(tn_run_record *record, const char *bytes, size_t count, const char *file);
tn_status tn_run_record_read_probes(tn_run_record *record, const char *bytes, size_t count, const char *file);

/* Settings of a configuration file, and of the text that tn_options_print_config gives. Free with
 * tn_settings_free. */
tn_status tn_settings_parse(const char *text, size_t size, const char *file, tn_settings *out);
void tn_settings_free(tn_settings *settings);
const char *tn_settings_find(const tn_settings *settings, const char *name); /* or NULL */

/* A text or number of the start line: "" or NaN when it is not there. */
const char *tn_run_record_text(const tn_run_record *record, const char *key);
double tn_run_record_number(const tn_run_record *record, const char *key);

/* Last value, and the least one with its x; NaN for a curve without points. */
double tn_curve_last(const tn_curve *curve);
double tn_curve_least(const tn_curve *curve, double *x);

#endif
