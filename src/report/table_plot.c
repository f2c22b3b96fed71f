/* Figures of a table. A section [[plot]] has
 *
 *   name, id       the figure's caption; its file is NAME-ID.svg
 *   kind           "curves": metrics over epochs or steps, a line a cell: the mean over runs with the band
 * from the least to the greatest; one panel for each metric and each panel of the columns. "rows": the last
 * value of metrics over the rows' x, a line a column with 95 % intervals, beside the paper's numbers (of the
 * table's own metric), dashed. "norms": of each block's output over that of the first block, from probes.csv,
 * a line a column; one panel for each row and word of `epoch` (first, last). metrics        of "curves" and
 * "rows": a list, the table's metric unless given log            of "curves" and "norms": "yes" for a
 * logarithmic axis of values only, scales   the rows and scales that it is about
 */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/memory.h"
#include "plot/plot.h"
#include "report/table.h"

enum { POINTS_MAX = 160, LABEL = 128, PANELS_MAX = 24 };

typedef struct figure {
    const tn_table *table;
    const tn_section *section;
    tn_plot *plot;
    int drawn; /* series */
    int panels[PANELS_MAX];
    char panel_names[PANELS_MAX][LABEL];
    int panel_count, panel_series[PANELS_MAX];
} figure;

/* One line: mean, least and greatest over runs. */
typedef struct line {
    int count;
    double *x, *y, *low, *high; /* one block at x */
} line;

static tn_status make_line(int room, line *out) {
    *out = (line){0};
    TN_TRY(tn_alloc(&out->x, 4 * (size_t)room, sizeof *out->x, "a figure"));
    out->y = out->x + room;
    out->low = out->y + room;
    out->high = out->low + room;
    return TN_OK;
}

static tn_status fail_key(const figure *f, const char *key) {
    const char *value = tn_section_key(f->section, key);
    return tn_recipe_fail(f->table->plan->recipe, f->section, key, "%s = \"%s\" is not known here", key,
                          value ? value : "");
}

/* The panel of that name; made when it is not there. `slot` counts panels. */
static tn_status find_panel(figure *f, const char *name, const char *x, const char *y, bool log, int *slot) {
    for (*slot = 0; *slot < f->panel_count; ++*slot)
        if (!strcmp(f->panel_names[*slot], name)) return TN_OK;
    if (*slot == PANELS_MAX) return tn_fail(TN_ERR_USAGE, "a figure with more than %d panels", PANELS_MAX);
    char title[LABEL + 32];
    const tn_table_plan *plan = f->table->plan;
    snprintf(title, sizeof title, "%s%s%s%s", name, plan->reduced ? " (" : "",
             plan->reduced ? plan->scale->heading : "", plan->reduced ? ")" : "");
    TN_TRY(tn_plot_panel(f->plot, title, x, y, false, log, &f->panels[*slot]));
    snprintf(f->panel_names[*slot], LABEL, "%s", name);
    f->panel_count++;
    return TN_OK;
}

static tn_status draw(figure *f, int slot, const char *label, tn_mark mark, const line *l, bool range) {
    f->drawn++;
    return tn_plot_series(f->plot, f->panels[slot], label, f->panel_series[slot]++, mark, l->count, l->x,
                          l->y, range ? l->low : NULL, range ? l->high : NULL);
}

/* ---- curves ---- */

/* The mean of a curve over the runs of a cell, point by point; runs of one cell have the same points until
 * they end. */
static tn_status average(const tn_table *table, int first, int count, tn_curve_kind kind, line *out) {
    const tn_curve *longest = &table->results[first].record->curves[kind];
    for (int i = 1; i < count; i++) {
        const tn_curve *c = &table->results[first + i].record->curves[kind];
        if (c->count > longest->count) longest = c;
    }
    TN_TRY(make_line((int)longest->count, out));
    for (size_t i = 0; i < longest->count; i++) {
        double sum = 0, low = INFINITY, high = -INFINITY;
        int runs = 0;
        for (int k = 0; k < count; k++) {
            const tn_curve *c = &table->results[first + k].record->curves[kind];
            if (i >= c->count) continue;
            sum += c->y[i];
            low = fmin(low, c->y[i]);
            high = fmax(high, c->y[i]);
            runs++;
        }
        out->x[i] = longest->x[i];
        out->y[i] = sum / runs;
        out->low[i] = low;
        out->high[i] = high;
    }
    out->count = (int)longest->count;
    out->count = tn_plot_thin(out->x, out->y, out->low, out->high, out->count, POINTS_MAX);
    return TN_OK;
}

static int columns_of_panel(const tn_table_plan *plan, const char *panel) {
    int count = 0;
    for (int i = 0; i < plan->column_count; i++) count += !strcmp(plan->columns[i].panel, panel);
    return count;
}

/* Runs that diverged stand in the legend, also where there is nothing of them to draw. */
static int note_diverged(const tn_table *table, int first, int count, char label[LABEL]) {
    int diverged = 0;
    for (int i = 0; i < count; i++) diverged += table->results[first + i].record->state == TN_RUN_DIVERGED;
    size_t used = strlen(label);
    if (diverged == count && count > 0)
        snprintf(label + used, LABEL - used, ": diverged");
    else if (diverged > 0)
        snprintf(label + used, LABEL - used, ": %d of %d diverged", diverged, count);
    return diverged;
}

static tn_status curve_of_cell(figure *f, tn_curve_kind kind, int row, int column, bool log) {
    const tn_table_plan *plan = f->table->plan;
    const tn_table_entry *r = &plan->rows[row], *c = &plan->columns[column];
    tn_curve_info info = tn_curve_describe(kind);
    char name[LABEL], label[LABEL], y[LABEL];
    int count, first = tn_table_plan_cell(plan, row, column, &count), slot;
    line l;
    snprintf(name, sizeof name, "%s%s%s", info.label, *c->panel ? ", " : "", c->panel);
    snprintf(y, sizeof y, "%s%s%s", info.label, *info.unit ? " " : "", info.unit);
    bool many = columns_of_panel(plan, c->panel) > 1;
    bool rows = plan->row_count > 1 || !many;
    const char *what = tn_section_key(plan->table, "rows");
    snprintf(label, sizeof label, "%s%s%s%s%s", rows && !isnan(r->x) && what ? what : "",
             rows && !isnan(r->x) && what ? " " : "", rows ? r->name : "", rows && many ? ", " : "",
             many ? c->name : "");
    int diverged = note_diverged(f->table, first, count, label);
    TN_TRY(average(f->table, first, count, kind, &l));
    tn_status status = TN_OK;
    if (l.count > 0 || diverged > 0) {
        status = find_panel(f, name, info.steps ? "step" : "epoch", y, log, &slot);
        if (status == TN_OK)
            status = draw(f, slot, label, l.count > 12 || l.count == 0 ? TN_MARK_LINE : TN_MARK_BOTH, &l,
                          count > 1);
    }
    tn_free(l.x);
    return status;
}

static tn_status draw_curves(figure *f, tn_curve_kind kind, bool log) {
    const tn_table_plan *plan = f->table->plan;
    for (int i = 0; i < plan->row_count; i++)
        for (int j = 0; tn_table_plan_concerns(f->section, &plan->rows[i]) && j < plan->column_count; j++)
            TN_TRY(curve_of_cell(f, kind, i, j, log));
    return TN_OK;
}

/* ---- rows ---- */

static tn_status fill_rows(figure *f, tn_curve_kind kind, int column, bool paper, line *l) {
    const tn_table_plan *plan = f->table->plan;
    for (int i = 0; i < plan->row_count; i++) {
        tn_cell cell;
        double x = plan->rows[i].x;
        TN_TRY(tn_table_cell(f->table, kind, i, column, &cell));
        if (isnan(x) || !tn_table_plan_concerns(f->section, &plan->rows[i])) continue;
        if (paper ? isnan(cell.paper) : cell.last.count == 0) continue;
        double half = isfinite(cell.last.half_width) ? cell.last.half_width : 0;
        l->x[l->count] = x;
        l->y[l->count] = paper ? cell.paper : cell.last.mean;
        l->low[l->count] = l->y[l->count] - half;
        l->high[l->count] = l->y[l->count] + half;
        l->count++;
    }
    return TN_OK;
}

static tn_status draw_column(figure *f, tn_curve_kind kind, int column, bool paper) {
    const tn_table_plan *plan = f->table->plan;
    const tn_table_entry *c = &plan->columns[column];
    const char *rows = tn_section_key(plan->table, "rows");
    tn_curve_info info = tn_curve_describe(kind);
    char name[LABEL], label[LABEL], y[LABEL];
    line l;
    snprintf(name, sizeof name, "%s%s%s", info.label, *c->panel ? ", " : "", c->panel);
    snprintf(y, sizeof y, "%s%s%s", info.label, *info.unit ? " " : "", info.unit);
    snprintf(label, sizeof label, "%s%s", paper ? "paper: " : "", c->name);
    TN_TRY(make_line(plan->row_count, &l));
    tn_status status = fill_rows(f, kind, column, paper, &l);
    int slot;
    if (status == TN_OK && l.count > 0) status = find_panel(f, name, rows ? rows : "", y, false, &slot);
    /* The paper's line has the colour of the column. */
    if (status == TN_OK && l.count > 0) {
        f->drawn += !paper;
        status =
            tn_plot_series(f->plot, f->panels[slot], label, column, paper ? TN_MARK_DASHED : TN_MARK_BOTH,
                           l.count, l.x, l.y, paper ? NULL : l.low, paper ? NULL : l.high);
    }
    tn_free(l.x);
    return status;
}

static tn_status draw_rows(figure *f, tn_curve_kind kind) {
    for (int j = 0; j < f->table->plan->column_count; j++) {
        TN_TRY(draw_column(f, kind, j, false));
        if (kind == f->table->plan->metric) TN_TRY(draw_column(f, kind, j, true));
    }
    return TN_OK;
}

/* ---- norms ---- */

/* Norms of the blocks in the first or last epoch that was probed, over that of block 1. */
static tn_status fill_norms(const tn_run_record *record, bool last, line *l) {
    int epoch = 0;
    double unit = NAN;
    TN_TRY(make_line((int)record->probes.count, l));
    if (record->probes.count) epoch = record->probes.rows[last ? record->probes.count - 1 : 0].epoch;
    for (size_t i = 0; i < record->probes.count; i++)
        if (record->probes.rows[i].epoch == epoch && record->probes.rows[i].block == 1)
            unit = record->probes.rows[i].output;
    for (size_t i = 0; i < record->probes.count && unit > 0; i++) {
        const tn_probe_row *row = &record->probes.rows[i];
        if (row->epoch != epoch || row->block < 1) continue;
        l->x[l->count] = row->block;
        l->y[l->count++] = row->output / unit;
    }
    return TN_OK;
}

/* "ResNet-110", and when if the figure shows several times. */
static void name_norms(const figure *f, int row, bool last, char name[LABEL]) {
    const char *epochs = tn_section_key(f->section, "epoch");
    bool several = epochs && strchr(epochs, ',');
    snprintf(name, LABEL, "%s%s", f->table->plan->rows[row].name,
             !several ? ""
             : last   ? ", at the end"
                      : ", before training");
}

static tn_status norms_of_row(figure *f, int row, bool last, bool log) {
    const tn_table_plan *plan = f->table->plan;
    for (int j = 0; j < plan->column_count; j++) {
        char name[LABEL];
        int count, first = tn_table_plan_cell(plan, row, j, &count), slot;
        const tn_run_record *record = count ? f->table->results[first].record : NULL;
        line l;
        if (!record || record->state == TN_RUN_ABSENT) continue;
        TN_TRY(fill_norms(record, last, &l));
        name_norms(f, row, last, name);
        tn_status status = TN_OK;
        if (l.count > 0) {
            status = find_panel(f, name, "block", "norm of the output over block 1's", log, &slot);
            if (status == TN_OK) status = draw(f, slot, plan->columns[j].name, TN_MARK_LINE, &l, false);
        }
        tn_free(l.x);
        TN_TRY(status);
    }
    return TN_OK;
}

static tn_status draw_norms(figure *f, bool log) {
    const tn_table_plan *plan = f->table->plan;
    const char *epochs = tn_section_key(f->section, "epoch");
    char word[32];
    for (const char *at = epochs ? epochs : "first"; tn_next_word(&at, ',', word, sizeof word);) {
        bool last = !strcmp(word, "last");
        if (!last && strcmp(word, "first") != 0) return fail_key(f, "epoch");
        for (int i = 0; i < plan->row_count; i++)
            if (tn_table_plan_concerns(f->section, &plan->rows[i])) TN_TRY(norms_of_row(f, i, last, log));
    }
    return TN_OK;
}

/* ---- the whole ---- */

static tn_status draw_all(figure *f) {
    const char *kind = tn_section_key(f->section, "kind"), *log = tn_section_key(f->section, "log");
    const char *metrics = tn_section_key(f->section, "metrics");
    bool logarithmic = log && !strcmp(log, "yes");
    if (log && !logarithmic && strcmp(log, "no") != 0) return fail_key(f, "log");
    if (kind && !strcmp(kind, "norms")) return draw_norms(f, logarithmic);
    bool curves = kind && !strcmp(kind, "curves");
    if (!curves && !(kind && !strcmp(kind, "rows"))) return fail_key(f, "kind");
    char name[64];
    if (!metrics) metrics = tn_curve_describe(f->table->plan->metric).name;
    for (const char *at = metrics; tn_next_word(&at, ',', name, sizeof name);) {
        tn_curve_kind metric;
        if (!tn_curve_find(name, &metric)) return fail_key(f, "metrics");
        TN_TRY(curves ? draw_curves(f, metric, logarithmic) : draw_rows(f, metric));
    }
    return TN_OK;
}

tn_status tn_table_plot(const tn_table *table, const tn_section *section, tn_string *name, tn_string *out) {
    const tn_table_plan *plan = table->plan;
    const char *id = tn_section_key(section, "id"), *caption = tn_section_key(section, "name");
    figure f = {.table = table, .section = section};
    char title[256];
    if (!id || !*id || strspn(id, "abcdefghijklmnopqrstuvwxyz0123456789-") != strlen(id))
        return tn_recipe_fail(plan->recipe, section, "id",
                              "a plot needs an id of small letters, digits and '-'");
    TN_TRY(tn_string_printf(name, "%s-%s.svg", plan->name, id));
    snprintf(title, sizeof title, "%s%s%s", caption ? caption : plan->title,
             plan->reduced ? ", reduced scale " : "", plan->reduced ? plan->scale->heading : "");
    TN_TRY(tn_plot_create(&f.plot));
    tn_status status = draw_all(&f);
    if (status == TN_OK && f.drawn > 0) status = tn_plot_print(f.plot, title, out);
    tn_plot_free(f.plot);
    return status;
}
