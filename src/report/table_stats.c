/* What the runs of a cell say together, and what cells say of claims. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/memory.h"
#include "base/number.h"
#include "report/table.h"

typedef struct values {
    double *last, *best, *epoch; /* one block at `last` */
} values;

static void collect(const tn_table *table, tn_curve_kind metric, int first, int count, const values *v,
                    tn_cell *cell) {
    for (int i = 0; i < count; i++) {
        const tn_table_result *result = &table->results[first + i];
        tn_run_state state = result->record->state;
        const tn_curve *curve = &result->record->curves[metric];
        cell->runs++;
        cell->diverged += state == TN_RUN_DIVERGED;
        if (state == TN_RUN_DONE) {
            v->last[cell->done] = tn_curve_last(curve);
            v->best[cell->done] = tn_curve_least(curve, &v->epoch[cell->done]);
            cell->done++;
        } else if (state != TN_RUN_DIVERGED) {
            if (!cell->missing++) cell->reason = result->reason;
        }
    }
}

tn_status tn_table_cell(const tn_table *table, tn_curve_kind metric, int row, int column, tn_cell *out) {
    int count, first = tn_table_plan_cell(table->plan, row, column, &count);
    values v;
    *out = (tn_cell){.reason = ""};
    out->paper = table->plan->paper[row * table->plan->column_count + column];
    TN_TRY(tn_alloc(&v.last, 3 * (size_t)count, sizeof *v.last, "a cell"));
    v.best = v.last + count;
    v.epoch = v.best + count;
    collect(table, metric, first, count, &v, out);
    out->last = tn_summarise(v.last, out->done);
    out->best = tn_summarise(v.best, out->done);
    out->best_epoch = tn_summarise(v.epoch, out->done);
    tn_free(v.last);
    return TN_OK;
}

static tn_status find_column(const tn_table *table, const tn_section *claim, const char *key, int *column) {
    const char *name = tn_section_key(claim, key);
    if (!name) return tn_recipe_fail(table->plan->recipe, claim, NULL, "the claim has no '%s'", key);
    *column = tn_table_plan_column(table->plan, name);
    if (*column >= 0) return TN_OK;
    return tn_recipe_fail(table->plan->recipe, claim, key, "no column \"%s\"", name);
}

/* "LEAST,MOST" */
static tn_status read_bounds(const tn_table *table, const tn_section *claim, double *least, double *most) {
    const char *by = tn_section_key(claim, "by"), *at = by;
    char low[32], high[32];
    *least = 0;
    *most = INFINITY;
    if (!by) return TN_OK;
    if (tn_next_word(&at, ',', low, sizeof low) && tn_next_word(&at, ',', high, sizeof high) && !at &&
        tn_number_parse(low, least) && tn_number_parse(high, most) && *least < *most)
        return TN_OK;
    return tn_recipe_fail(table->plan->recipe, claim, "by", "\"%s\" is not LEAST,MOST", by);
}

/* The verdict that runs which diverged decide alone; false when they do not. */
static bool judge_diverged(const tn_cell *lower, const tn_cell *higher, bool bounded, tn_judgement *j) {
    if (lower->diverged + higher->diverged > 0)
        snprintf(j->remark, sizeof j->remark, "%d of %d and %d of %d runs diverged", lower->diverged,
                 lower->runs, higher->diverged, higher->runs);
    bool low = lower->diverged > 0 && lower->done == 0, high = higher->diverged > 0 && higher->done == 0;
    if (low == high) return low; /* both are lost: nothing to compare */
    if (low && higher->done > 0 && higher->diverged == 0) j->verdict = TN_DOES_NOT_HOLD;
    if (high && lower->done > 0 && lower->diverged == 0) j->verdict = bounded ? TN_DOES_NOT_HOLD : TN_HOLDS;
    return true;
}

typedef struct claim {
    const tn_section *section;
    int lower, higher; /* columns */
    double least, most;
} claim;

static void decide(const claim *c, tn_judgement *j) {
    double from = j->difference.mean - j->difference.half_width;
    double to = j->difference.mean + j->difference.half_width;
    if (from > c->least && to < c->most)
        j->verdict = TN_HOLDS;
    else if (to < c->least || from > c->most)
        j->verdict = TN_DOES_NOT_HOLD;
}

static tn_status judge_row(const tn_table *table, const claim *c, int row, tn_judgement *j) {
    tn_cell lower, higher;
    TN_TRY(tn_table_cell(table, j->metric, row, c->lower, &lower));
    TN_TRY(tn_table_cell(table, j->metric, row, c->higher, &higher));
    if (lower.missing + higher.missing > 0)
        snprintf(j->remark, sizeof j->remark, "%d of %d runs are missing", lower.missing + higher.missing,
                 lower.runs + higher.runs);
    if (lower.last.count && higher.last.count) j->difference = tn_subtract(&higher.last, &lower.last);
    if (judge_diverged(&lower, &higher, isfinite(c->most), j)) return TN_OK;
    decide(c, j);
    if (!*j->remark && isinf(j->difference.half_width) && !isnan(j->difference.mean))
        snprintf(j->remark, sizeof j->remark, "too few runs for an interval");
    return TN_OK;
}

/* Differences of the runs with the same row and seed. Returns how many; *possible counts those with an end
 * that is not finished, too. */
static int find_pairs(const tn_table *table, const claim *c, tn_curve_kind metric, double *differences,
                      int *possible) {
    const tn_table_plan *plan = table->plan;
    int pairs = 0;
    for (int i = 0; i < plan->row_count; i++) {
        if (!tn_table_plan_concerns(c->section, &plan->rows[i])) continue;
        int count, other, low = tn_table_plan_cell(plan, i, c->lower, &count);
        int high = tn_table_plan_cell(plan, i, c->higher, &other);
        for (int k = 0; k < count && k < other; k++) {
            ++*possible;
            const tn_run_record *a = table->results[low + k].record, *b = table->results[high + k].record;
            if (a->state == TN_RUN_DONE && b->state == TN_RUN_DONE)
                differences[pairs++] = tn_curve_last(&b->curves[metric]) - tn_curve_last(&a->curves[metric]);
        }
    }
    return pairs;
}

static tn_status judge_all(const tn_table *table, const claim *c, tn_judgement *j) {
    double *differences;
    int possible = 0;
    TN_TRY(tn_alloc(&differences, (size_t)table->plan->run_count, sizeof *differences, "a claim"));
    j->pairs = find_pairs(table, c, j->metric, differences, &possible);
    if (j->pairs < possible)
        snprintf(j->remark, sizeof j->remark, "%d of %d pairs diverged or are missing", possible - j->pairs,
                 possible);
    tn_summary s = tn_summarise(differences, j->pairs);
    tn_free(differences);
    if (s.count == 0) return TN_OK;
    /* Pairs that all differ by the same say nothing of the noise. */
    j->difference = (tn_difference){s.mean, s.deviation > 0 ? s.half_width : INFINITY};
    decide(c, j);
    return TN_OK;
}

tn_status tn_table_judge(const tn_table *table, const tn_section *section, int row, tn_judgement *out) {
    claim c = {.section = section};
    const char *metric = tn_section_key(section, "metric");
    *out = (tn_judgement){
        .verdict = TN_INCONCLUSIVE, .metric = table->plan->metric, .difference = {NAN, INFINITY}};
    if (metric && !tn_curve_find(metric, &out->metric))
        return tn_recipe_fail(table->plan->recipe, section, "metric", "no metric \"%s\"", metric);
    TN_TRY(find_column(table, section, "lower", &c.lower));
    TN_TRY(find_column(table, section, "higher", &c.higher));
    TN_TRY(read_bounds(table, section, &c.least, &c.most));
    return row < 0 ? judge_all(table, &c, out) : judge_row(table, &c, row, out);
}

tn_status tn_metric_print(tn_curve_kind metric, double value, tn_string *out) {
    if (isnan(value)) return tn_string_printf(out, "-");
    return tn_string_printf(out, *tn_curve_describe(metric).unit ? "%.2f" : "%.4g", value);
}
