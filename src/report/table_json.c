/* A table as JSON: what the Markdown says, and each run. */
#include <math.h>
#include <stdlib.h>

#include "report/table.h"

/* Failures of memory surface once, when the text is made: jansson's setters refuse NULL. */
static void put(json_t *object, const char *key, json_t *value) {
    if (value) json_object_set_new(object, key, value);
}

static json_t *real(double value) {
    return isfinite(value) ? json_real(value) : json_null();
}

static json_t *text(const char *value) {
    return json_string(value ? value : "");
}

static json_t *summary(const tn_summary *s) {
    json_t *object = json_object();
    put(object, "runs", json_integer(s->count));
    put(object, "mean", real(s->mean));
    put(object, "sd", real(s->count > 1 ? s->deviation : NAN));
    put(object, "low95", real(s->mean - s->half_width));
    put(object, "high95", real(s->mean + s->half_width));
    return object;
}

static tn_status put_run(const tn_table *table, int index, json_t *runs) {
    const tn_planned_run *run = &table->plan->runs[index];
    const tn_run_record *record = table->results[index].record;
    const tn_curve *curve = &record->curves[table->plan->metric];
    tn_string command = {0};
    double best_epoch, best = tn_curve_least(curve, &best_epoch);
    TN_TRY(tn_table_command(table, index, &command));
    json_t *object = json_object();
    put(object, "id", text(run->id));
    put(object, "row", text(table->plan->rows[run->row].name));
    put(object, "column", text(table->plan->columns[run->column].name));
    put(object, "seed", json_integer((json_int_t)run->seed));
    put(object, "state", text(tn_run_state_name(record->state)));
    put(object, "reason", text(*record->message ? record->message : table->results[index].reason));
    put(object, "epochs", json_integer((json_int_t)record->curves[TN_CURVE_TRAIN_LOSS].count));
    put(object, "last", real(tn_curve_last(curve)));
    put(object, "best", real(best));
    put(object, "best_epoch", real(best_epoch));
    put(object, "seconds", real(record->seconds));
    put(object, "parameters", real(tn_run_record_number(record, "parameters")));
    put(object, "device", text(tn_run_record_text(record, "device")));
    put(object, "version", text(tn_run_record_text(record, "version")));
    put(object, "command", text(command.data));
    tn_string_free(&command);
    if (json_array_append_new(runs, object) == 0) return TN_OK;
    return tn_fail(TN_ERR_MEMORY, "out of memory for the results");
}

static tn_status put_cell(const tn_table *table, int row, int column, json_t *cells) {
    tn_cell c;
    TN_TRY(tn_table_cell(table, table->plan->metric, row, column, &c));
    json_t *object = json_object();
    put(object, "row", text(table->plan->rows[row].name));
    put(object, "column", text(table->plan->columns[column].name));
    put(object, "runs", json_integer(c.runs));
    put(object, "finished", json_integer(c.done));
    put(object, "diverged", json_integer(c.diverged));
    put(object, "missing", json_integer(c.missing));
    put(object, "reason", text(c.reason));
    put(object, "last", summary(&c.last));
    put(object, "best", summary(&c.best));
    put(object, "best_epoch", real(c.best_epoch.mean));
    put(object, "paper", real(c.paper));
    put(object, "last_less_paper", real(c.last.mean - c.paper));
    put(object, "best_less_paper", real(c.best.mean - c.paper));
    if (json_array_append_new(cells, object) == 0) return TN_OK;
    return tn_fail(TN_ERR_MEMORY, "out of memory for the results");
}

static tn_status put_claim(const tn_table *table, const tn_section *claim, int row, json_t *claims) {
    tn_judgement j;
    TN_TRY(tn_table_judge(table, claim, row, &j));
    if (row < 0 && j.pairs < 2) return TN_OK;
    json_t *object = json_object();
    put(object, "text", text(tn_section_key(claim, "text")));
    put(object, "row", row < 0 ? json_null() : text(table->plan->rows[row].name));
    if (row < 0) put(object, "pairs", json_integer(j.pairs));
    put(object, "metric", text(tn_curve_describe(j.metric).name));
    put(object, "lower", text(tn_section_key(claim, "lower")));
    put(object, "higher", text(tn_section_key(claim, "higher")));
    put(object, "difference", real(j.difference.mean));
    put(object, "half_width95", real(j.difference.half_width));
    put(object, "verdict", text(tn_verdict_name(j.verdict)));
    put(object, "remark", text(j.remark));
    if (json_array_append_new(claims, object) == 0) return TN_OK;
    return tn_fail(TN_ERR_MEMORY, "out of memory for the results");
}

static tn_status put_all(const tn_table *table, json_t *cells, json_t *claims, json_t *runs) {
    const tn_table_plan *plan = table->plan;
    for (int i = 0; i < plan->row_count; i++)
        for (int j = 0; j < plan->column_count; j++) TN_TRY(put_cell(table, i, j, cells));
    for (const tn_section *s = NULL; (s = tn_recipe_next(plan->recipe, TN_SECTION_CLAIM, s));)
        for (int i = -1; tn_table_plan_has(plan, s) && i < plan->row_count; i++)
            if (i < 0 || tn_table_plan_concerns(s, &plan->rows[i])) TN_TRY(put_claim(table, s, i, claims));
    for (int i = 0; i < plan->run_count; i++) TN_TRY(put_run(table, i, runs));
    return TN_OK;
}

tn_status tn_table_print_json(const tn_table *table, tn_string *out) {
    const tn_table_plan *plan = table->plan;
    json_t *root = json_object(), *cells = json_array(), *claims = json_array(), *runs = json_array();
    put(root, "table", text(plan->name));
    put(root, "title", text(plan->title));
    put(root, "scale", text(plan->scale->heading));
    put(root, "reduced", json_boolean(plan->reduced));
    put(root, "note", text(tn_section_key(plan->scale, "note")));
    put(root, "version", text(tn_version()));
    put(root, "metric", text(tn_curve_describe(plan->metric).name));
    put(root, "unit", text(tn_curve_describe(plan->metric).unit));
    put(root, "intervals",
        text("95 %, Student's t over finished runs; differences of claims: Welch; of all rows (row null): "
             "Student's t over pairs of row and seed"));
    tn_status status = put_all(table, cells, claims, runs);
    put(root, "cells", cells);
    put(root, "claims", claims);
    put(root, "runs", runs);
    char *dump = status == TN_OK ? json_dumps(root, JSON_INDENT(1) | JSON_REAL_PRECISION(9)) : NULL;
    if (status == TN_OK && !dump) status = tn_fail(TN_ERR_MEMORY, "out of memory for the results");
    if (status == TN_OK) status = tn_string_printf(out, "%s\n", dump);
    free(dump);
    json_decref(root);
    return status;
}
