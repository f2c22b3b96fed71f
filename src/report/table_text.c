/* A table as Markdown and as CSV. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "report/table.h"

/* Text in a cell of a Markdown table. */
static tn_status put_text(tn_string *out, const char *text) {
    for (; *text; text++) {
        if (*text == '|') TN_TRY(tn_string_append(out, "\\", 1));
        TN_TRY(tn_string_append(out, *text == '\n' ? " " : text, 1));
    }
    return TN_OK;
}

static const char *key_or(const tn_section *section, const char *key, const char *otherwise) {
    const char *value = tn_section_key(section, key);
    return value ? value : otherwise;
}

/* "8.39 +- 0.12" */
static tn_status put_mean(tn_curve_kind metric, const tn_summary *s, tn_string *out) {
    TN_TRY(tn_metric_print(metric, s->count ? s->mean : NAN, out));
    if (s->count < 2) return TN_OK;
    TN_TRY(tn_string_printf(out, " ± "));
    return tn_metric_print(metric, s->deviation, out);
}

static tn_status put_interval(tn_curve_kind metric, double mean, double half_width, tn_string *out) {
    if (isnan(mean) || !isfinite(half_width)) return tn_string_printf(out, "-");
    TN_TRY(tn_metric_print(metric, mean - half_width, out));
    TN_TRY(tn_string_printf(out, " to "));
    return tn_metric_print(metric, mean + half_width, out);
}

static tn_status put_difference(tn_curve_kind metric, double difference, tn_string *out) {
    if (difference > 0) TN_TRY(tn_string_printf(out, "+"));
    return tn_metric_print(metric, difference, out);
}

static tn_status put_cell(const tn_table *table, int row, int column, tn_string *out) {
    const tn_table_plan *plan = table->plan;
    tn_cell c;
    TN_TRY(tn_table_cell(table, plan->metric, row, column, &c));
    TN_TRY(tn_string_printf(out, "| "));
    TN_TRY(put_text(out, plan->rows[row].name));
    TN_TRY(tn_string_printf(out, " | "));
    TN_TRY(put_text(out, plan->columns[column].name));
    TN_TRY(tn_string_printf(out, " | %d of %d | %d | ", c.done, c.runs, c.diverged));
    TN_TRY(put_mean(plan->metric, &c.last, out));
    TN_TRY(tn_string_printf(out, " | "));
    TN_TRY(put_interval(plan->metric, c.last.mean, c.last.half_width, out));
    TN_TRY(tn_string_printf(out, " | "));
    bool has_best = plan->metric != TN_CURVE_NORM_GROWTH; /* no growth is better than another */
    if (has_best) TN_TRY(put_mean(plan->metric, &c.best, out));
    if (has_best && c.best_epoch.count) TN_TRY(tn_string_printf(out, " (%.3g)", c.best_epoch.mean));
    TN_TRY(tn_string_printf(out, " | "));
    TN_TRY(tn_metric_print(plan->metric, c.paper, out));
    TN_TRY(tn_string_printf(out, " | "));
    TN_TRY(put_difference(plan->metric, c.last.mean - c.paper, out));
    return tn_string_printf(out, " |\n");
}

static tn_status put_cells(const tn_table *table, tn_string *out) {
    const tn_table_plan *plan = table->plan;
    tn_curve_info metric = tn_curve_describe(plan->metric);
    TN_TRY(
        tn_string_printf(out,
                         "| %s | %s | finished | diverged | %s%s%s, last epoch | 95 %% interval | best "
                         "(after epochs) | paper | last - paper |\n|---|---|---|---|---|---|---|---|---|\n",
                         key_or(plan->table, "rows", "row"), key_or(plan->table, "columns", "column"),
                         metric.label, *metric.unit ? " " : "", metric.unit));
    for (int i = 0; i < plan->row_count; i++)
        for (int j = 0; j < plan->column_count; j++) TN_TRY(put_cell(table, i, j, out));
    if (plan->seeds == 1)
        TN_TRY(tn_string_printf(out,
                                "\nOne run each (seed 0), so nothing is known of the noise between seeds."));
    else
        TN_TRY(tn_string_printf(out,
                                "\nMean ± sample standard deviation over the finished runs (seeds 0 to %d); "
                                "intervals are Student's t over runs.",
                                plan->seeds - 1));
    const char *source = tn_section_key(plan->table, "source"), *is = tn_section_key(plan->table, "paper-is");
    if (source) TN_TRY(tn_string_printf(out, " Paper: %s%s%s.", source, is ? ", " : "", is ? is : ""));
    return tn_string_printf(out, "\n");
}

static tn_status put_judgement(const tn_table *table, const tn_section *claim, int row, tn_string *out) {
    tn_judgement j;
    TN_TRY(tn_table_judge(table, claim, row, &j));
    if (row < 0 && j.pairs < 2) return TN_OK;
    TN_TRY(tn_string_printf(out, "| "));
    TN_TRY(put_text(out, key_or(claim, "text", "")));
    TN_TRY(tn_string_printf(out, " | "));
    TN_TRY(put_text(out, row < 0 ? "all" : table->plan->rows[row].name));
    TN_TRY(tn_string_printf(out, " | %s%s%s: ", tn_curve_describe(j.metric).label,
                            *tn_curve_describe(j.metric).unit ? " " : "", tn_curve_describe(j.metric).unit));
    TN_TRY(put_text(out, key_or(claim, "higher", "")));
    TN_TRY(tn_string_printf(out, " less "));
    TN_TRY(put_text(out, key_or(claim, "lower", "")));
    if (row < 0) TN_TRY(tn_string_printf(out, ", %d pairs", j.pairs));
    TN_TRY(tn_string_printf(out, " | "));
    TN_TRY(put_difference(j.metric, j.difference.mean, out));
    TN_TRY(tn_string_printf(out, " | "));
    TN_TRY(put_interval(j.metric, j.difference.mean, j.difference.half_width, out));
    TN_TRY(tn_string_printf(out, " | %s%s", tn_verdict_name(j.verdict), *j.remark ? "; " : ""));
    TN_TRY(put_text(out, j.remark));
    return tn_string_printf(out, " |\n");
}

static tn_status put_claims(const tn_table *table, tn_string *out) {
    const tn_table_plan *plan = table->plan;
    bool any = false;
    for (const tn_section *s = NULL; (s = tn_recipe_next(plan->recipe, TN_SECTION_CLAIM, s));) {
        if (!tn_table_plan_has(plan, s)) continue;
        for (int i = -1; i < plan->row_count; i++) {
            if (i >= 0 && !tn_table_plan_concerns(s, &plan->rows[i])) continue;
            if (!any)
                TN_TRY(tn_string_printf(out,
                                        "\n| claim | %s | compared | difference | 95 %% interval "
                                        "| here |\n|---|---|---|---|---|---|\n",
                                        key_or(plan->table, "rows", "row")));
            any = true;
            TN_TRY(put_judgement(table, s, i, out));
        }
    }
    if (!any) return TN_OK;
    return tn_string_printf(
        out, "\nIntervals of differences are Welch's; for all rows together, Student's t "
             "over pairs of the same row and seed. \"inconclusive\" means that the noise between "
             "seeds allows both answers.\n");
}

/* What made the numbers: program, device and data of the first run that started. */
static tn_status put_origin(const tn_table *table, tn_string *out) {
    const tn_table_plan *plan = table->plan;
    for (int i = 0; i < plan->run_count; i++) {
        const tn_run_record *r = table->results[i].record;
        if (!r->start) continue;
        TN_TRY(tn_string_printf(out, "\ntaunet %s; %s, threads: %.0f; ", tn_run_record_text(r, "version"),
                                tn_run_record_text(r, "device"), tn_run_record_number(r, "threads")));
        return tn_string_printf(out, "%s, %.0f training and %.0f validation images (the first run's).\n",
                                tn_run_record_text(r, "dataset"), tn_run_record_number(r, "train_images"),
                                tn_run_record_number(r, "val_images"));
    }
    return tn_string_printf(out, "\nNothing of this has been run.\n");
}

static tn_status put_head(const tn_table *table, tn_string *out) {
    const tn_table_plan *plan = table->plan;
    const char *about = tn_section_key(plan->table, "about"), *note = tn_section_key(plan->scale, "note");
    TN_TRY(tn_string_printf(out, "# %s%s\n\n", plan->title, plan->reduced ? " (reduced)" : ""));
    if (plan->reduced)
        TN_TRY(tn_string_printf(out, "**Reduced scale `%s`, not the paper's recipe:** %s\n\n",
                                plan->scale->heading, note));
    else if (note)
        TN_TRY(tn_string_printf(out, "%s\n\n", note));
    if (about) TN_TRY(tn_string_printf(out, "%s\n\n", about));
    const tn_options *o = table->options;
    TN_TRY(tn_string_printf(out, "    taunet table %s --scale %s", plan->name, plan->scale->heading));
    if (*o->data) TN_TRY(tn_string_printf(out, " --data %s", o->data));
    if (*o->train_options) TN_TRY(tn_string_printf(out, " --train-options \"%s\"", o->train_options));
    TN_TRY(tn_string_printf(out, " --out DIR\n"));
    return put_origin(table, out);
}

static tn_status put_missing(const tn_table *table, tn_string *out) {
    const tn_table_plan *plan = table->plan;
    bool any = false;
    for (int i = 0; i < plan->row_count; i++)
        for (int j = 0; j < plan->column_count; j++) {
            tn_cell c;
            TN_TRY(tn_table_cell(table, plan->metric, i, j, &c));
            if (c.missing == 0) continue;
            TN_TRY(tn_string_printf(out, "%s- %s, %s: %d of %d runs: %s\n", any ? "" : "\nNot finished:\n\n",
                                    plan->rows[i].name, plan->columns[j].name, c.missing, c.runs, c.reason));
            any = true;
        }
    for (int i = 0; i < plan->run_count; i++)
        if (table->results[i].record->state == TN_RUN_DIVERGED)
            TN_TRY(tn_string_printf(out, "\n%s diverged: %s\n", plan->runs[i].id,
                                    table->results[i].record->message));
    return TN_OK;
}

static tn_status put_commands(const tn_table *table, tn_string *out) {
    const tn_table_plan *plan = table->plan;
    TN_TRY(tn_string_printf(out, "\n<details><summary>Commands of the first seed</summary>\n\n"));
    for (int i = 0; i < plan->run_count; i++) {
        if (plan->runs[i].seed != 0) continue;
        TN_TRY(tn_string_printf(out, "    "));
        TN_TRY(tn_table_command(table, i, out));
        TN_TRY(tn_string_printf(out, "\n"));
    }
    return tn_string_printf(out, "\n</details>\n");
}

tn_status tn_table_print_markdown(const tn_table *table, const char *figures, tn_string *out) {
    char figure[256];
    TN_TRY(put_head(table, out));
    TN_TRY(tn_string_printf(out, "\n"));
    TN_TRY(put_cells(table, out));
    TN_TRY(put_claims(table, out));
    TN_TRY(put_missing(table, out));
    for (const char *at = *figures ? figures : NULL; tn_next_word(&at, '\n', figure, sizeof figure);)
        if (*figure) TN_TRY(tn_string_printf(out, "\n![%s](%s)\n", figure, figure));
    return put_commands(table, out);
}

/* ---- CSV ---- */

static tn_status put_number(tn_string *out, double value) {
    return isfinite(value) ? tn_string_printf(out, ",%.9g", value) : tn_string_printf(out, ",");
}

static tn_status put_summary(tn_string *out, const tn_summary *s) {
    TN_TRY(put_number(out, s->mean));
    TN_TRY(put_number(out, s->count > 1 ? s->deviation : NAN));
    TN_TRY(put_number(out, s->mean - s->half_width));
    return put_number(out, s->mean + s->half_width);
}

tn_status tn_table_print_csv(const tn_table *table, tn_string *out) {
    const tn_table_plan *plan = table->plan;
    TN_TRY(tn_string_printf(out,
                            "table,scale,row,column,metric,runs,finished,diverged,missing,last_mean,last_sd,"
                            "last_low95,last_high95,best_mean,best_sd,best_low95,best_high95,best_epoch,"
                            "paper,last_less_paper,reason\n"));
    for (int i = 0; i < plan->row_count; i++)
        for (int j = 0; j < plan->column_count; j++) {
            tn_cell c;
            TN_TRY(tn_table_cell(table, plan->metric, i, j, &c));
            TN_TRY(tn_string_printf(out, "%s,%s,", plan->name, plan->scale->heading));
            TN_TRY(tn_string_csv(out, plan->rows[i].name));
            TN_TRY(tn_string_printf(out, ","));
            TN_TRY(tn_string_csv(out, plan->columns[j].name));
            TN_TRY(tn_string_printf(out, ",%s,%d,%d,%d,%d", tn_curve_describe(plan->metric).name, c.runs,
                                    c.done, c.diverged, c.missing));
            TN_TRY(put_summary(out, &c.last));
            TN_TRY(put_summary(out, &c.best));
            TN_TRY(put_number(out, c.best_epoch.mean));
            TN_TRY(put_number(out, c.paper));
            TN_TRY(put_number(out, c.last.mean - c.paper));
            TN_TRY(tn_string_printf(out, ","));
            TN_TRY(tn_string_csv(out, c.reason));
            TN_TRY(tn_string_printf(out, "\n"));
        }
    return TN_OK;
}
