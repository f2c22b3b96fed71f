#include "report/table_plan.h"

#include <ctype.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/memory.h"
#include "base/number.h"
#include "taunet/data.h"

enum { SEEDS_MAX = 1000, RUNS_MAX = 100000 };

bool tn_table_plan_has(const tn_table_plan *plan, const tn_section *section) {
    const char *scales = tn_section_key(section, "scales");
    return !scales || tn_has_word(scales, ',', plan->scale->heading);
}

bool tn_table_plan_concerns(const tn_section *section, const tn_table_entry *row) {
    const char *only = tn_section_key(section, "only");
    return !only || tn_has_word(only, ',', row->name);
}

static int find(const tn_table_entry *entries, int count, const char *name) {
    for (int i = 0; i < count; i++)
        if (!strcmp(entries[i].name, name)) return i;
    return -1;
}

int tn_table_plan_column(const tn_table_plan *plan, const char *name) {
    return find(plan->columns, plan->column_count, name);
}

int tn_table_plan_row(const tn_table_plan *plan, const char *name) {
    return find(plan->rows, plan->row_count, name);
}

int tn_table_plan_cell(const tn_table_plan *plan, int row, int column, int *count) {
    int first = 0;
    while (first < plan->run_count && (plan->runs[first].row != row || plan->runs[first].column != column))
        first++;
    *count = 0;
    while (first + *count < plan->run_count && plan->runs[first + *count].row == row &&
           plan->runs[first + *count].column == column)
        ++*count;
    return first;
}

/* ---- rows and columns ---- */

/* "ResNet-20, BN+tau" becomes "resnet-20-bn-tau". */
static void make_id(const char *name, char id[TN_TABLE_ID]) {
    size_t used = 0;
    bool gap = false;
    for (; *name && used + 2 < TN_TABLE_ID; name++) {
        unsigned char c = (unsigned char)*name;
        if (c < 128 && (isalnum(c) || c == '.')) {
            if (gap && used > 0) id[used++] = '-';
            id[used++] = (char)tolower(c);
            gap = false;
        } else {
            gap = true;
        }
    }
    id[used] = 0;
}

static tn_status set_entry(const tn_table_plan *plan, const tn_section *section, tn_table_entry *entries,
                           int count) {
    tn_table_entry *entry = &entries[count];
    const char *id = tn_section_key(section, "id"), *x = tn_section_key(section, "x");
    *entry = (tn_table_entry){.section = section, .name = tn_section_key(section, "name"), .x = NAN};
    if (!entry->name || !*entry->name) return tn_recipe_fail(plan->recipe, section, NULL, "it has no name");
    make_id(id ? id : entry->name, entry->id);
    if (!*entry->id || entry->id[0] == '.')
        return tn_recipe_fail(plan->recipe, section, id ? "id" : "name",
                              "\"%s\" makes no name for files; give it an id of letters and digits",
                              id ? id : entry->name);
    if (!tn_number_parse(x ? x : entry->name, &entry->x)) {
        entry->x = NAN;
        if (x) return tn_recipe_fail(plan->recipe, section, "x", "x = \"%s\" is not a number", x);
    }
    const char *panel = tn_section_key(section, "panel");
    entry->panel = panel ? panel : "";
    for (int i = 0; i < count; i++)
        if (!strcmp(entries[i].name, entry->name) || !strcmp(entries[i].id, entry->id))
            return tn_recipe_fail(plan->recipe, section, "name",
                                  "\"%s\" and \"%s\" are the same in names of files; give one an id",
                                  entries[i].name, entry->name);
    return TN_OK;
}

static tn_status fill_entries(const tn_table_plan *plan, tn_section_kind kind, tn_table_entry **entries,
                              int *count) {
    int room = 0;
    for (const tn_section *s = NULL; (s = tn_recipe_next(plan->recipe, kind, s));) room++;
    TN_TRY(tn_alloc(entries, (size_t)room, sizeof **entries, "a table"));
    for (const tn_section *s = NULL; (s = tn_recipe_next(plan->recipe, kind, s));) {
        if (!tn_table_plan_has(plan, s)) continue;
        TN_TRY(set_entry(plan, s, *entries, *count));
        ++*count;
    }
    if (*count > 0) return TN_OK;
    return tn_fail(TN_ERR_USAGE, "%s: no %s at scale %s", plan->recipe->file,
                   kind == TN_SECTION_ROW ? "row" : "column", plan->scale->heading);
}

static tn_status fill_paper(tn_table_plan *plan) {
    TN_TRY(tn_alloc(&plan->paper, (size_t)plan->row_count * (size_t)plan->column_count, sizeof(double),
                    "a table"));
    for (int i = 0; i < plan->row_count; i++) {
        const tn_section *row = plan->rows[i].section;
        const char *list = tn_section_key(row, "paper"), *at = list;
        for (int j = 0; j < plan->column_count; j++) {
            char word[32] = "-";
            double *number = &plan->paper[i * plan->column_count + j];
            if (list && !tn_next_word(&at, ',', word, sizeof word))
                return tn_recipe_fail(plan->recipe, row, "paper", "fewer numbers than columns");
            if (!strcmp(word, "-"))
                *number = NAN;
            else if (!tn_number_parse(word, number))
                return tn_recipe_fail(plan->recipe, row, "paper", "\"%s\" is neither a number nor '-'", word);
        }
        if (at) return tn_recipe_fail(plan->recipe, row, "paper", "more numbers than columns");
    }
    return TN_OK;
}

/* ---- runs ---- */

static tn_status set_options(tn_options *options, const tn_section *section) {
    for (size_t i = 0; section && i < section->count; i++)
        if (section->entries[i].option)
            TN_TRY(tn_options_set(options, section->entries[i].key, section->entries[i].value));
    return TN_OK;
}

/* --train-options: words NAME=VALUE, or --NAME=VALUE. */
static tn_status set_words(tn_options *options, const char *list) {
    static const char own[] = "out,resume,overwrite,seed,device,threads,config,help,print-config";
    char word[1024];
    const char *at = list;
    while (*list && tn_next_word(&at, ' ', word, sizeof word)) {
        char *name = word + (strncmp(word, "--", 2) == 0 ? 2 : 0), *equals = strchr(name, '=');
        if (!*word) continue;
        if (!equals)
            return tn_fail(TN_ERR_USAGE, "--train-options: \"%s\" is not NAME=VALUE",
                           tn_make_legible(word).text);
        *equals = 0;
        if (tn_has_word(own, ',', name))
            return tn_fail(TN_ERR_USAGE, "--train-options: %s is for the table to decide", name);
        tn_status status = tn_options_set(options, name, equals + 1);
        if (status != TN_OK) return tn_fail_prefix(status, "--train-options");
    }
    return TN_OK;
}

/* The same format, or both images of any size: folders and tar shards are two forms of one data set. */
static bool same_kind(const char *a, const char *b) {
    size_t length = strcspn(a, ":");
    if (tn_dataset_is_sized(a) && tn_dataset_is_sized(b)) return true;
    return strcspn(b, ":") == length && b[length] == ':' && !strncmp(a, b, length);
}

/* Puts the data set of --data that is of the same kind in place of the recipe's. */
static tn_status move_data(tn_options *run, const char *list) {
    char spec[4096];
    while (tn_next_word(&list, ',', spec, sizeof spec))
        if (same_kind(spec, run->data)) return tn_options_set(run, "data", spec);
    return TN_OK;
}

static tn_status make_options(const tn_table_plan *plan, const tn_options *options, tn_planned_run *run) {
    char seed[32];
    const tn_section *all = tn_recipe_next(plan->recipe, TN_SECTION_ALL, NULL);
    TN_TRY(tn_options_create("train", &run->options));
    TN_TRY(set_options(run->options, all));
    TN_TRY(set_options(run->options, plan->scale));
    TN_TRY(set_options(run->options, plan->rows[run->row].section));
    TN_TRY(set_options(run->options, plan->columns[run->column].section));
    TN_TRY(set_words(run->options, options->train_options));
    if (*options->data) TN_TRY(move_data(run->options, options->data));
    snprintf(seed, sizeof seed, "%llu", (unsigned long long)run->seed);
    return tn_options_set(run->options, "seed", seed);
}

static tn_status seeds_of(const tn_table_plan *plan, const tn_section *row, int *out) {
    const tn_section *where = tn_section_key(row, "seeds") ? row : plan->scale;
    const char *text = tn_section_key(where, "seeds");
    double value = 1;
    if (text && (!tn_number_parse(text, &value) || value != floor(value) || value < 1 || value > SEEDS_MAX))
        return tn_recipe_fail(plan->recipe, where, "seeds", "seeds = \"%s\" is not a number from 1 to %d",
                              text, SEEDS_MAX);
    *out = (int)value;
    return TN_OK;
}

static tn_status fill_runs(tn_table_plan *plan, const tn_options *options) {
    size_t capacity = 0;
    for (int i = 0; i < plan->row_count; i++) {
        int seeds = 1;
        TN_TRY(seeds_of(plan, plan->rows[i].section, &seeds));
        plan->seeds = seeds > plan->seeds ? seeds : plan->seeds;
        for (int k = 0; k < plan->column_count * seeds; k++) {
            if (plan->run_count == RUNS_MAX)
                return tn_fail(TN_ERR_USAGE, "%s: more than %d runs", plan->recipe->file, RUNS_MAX);
            TN_TRY(
                tn_grow(&plan->runs, &capacity, (size_t)plan->run_count + 1, sizeof *plan->runs, "a table"));
            tn_planned_run *run = &plan->runs[plan->run_count++];
            *run = (tn_planned_run){.row = i, .column = k / seeds, .seed = (uint64_t)(k % seeds)};
            snprintf(run->id, sizeof run->id, "%s-%s-s%d", plan->rows[i].id, plan->columns[k / seeds].id,
                     k % seeds);
            TN_TRY(make_options(plan, options, run));
        }
    }
    return TN_OK;
}

/* An option without effect is an error: each of --data must have found a run. */
static tn_status check_data(const tn_table_plan *plan, const char *list) {
    char spec[4096];
    if (!*list) return TN_OK;
    while (tn_next_word(&list, ',', spec, sizeof spec)) {
        bool used = false;
        for (int i = 0; i < plan->run_count; i++) used |= !strcmp(plan->runs[i].options->data, spec);
        if (!used)
            return tn_fail(TN_ERR_USAGE, "--data \"%s\": no run of %s uses such data; its runs have \"%s\"",
                           tn_make_legible(spec).text, plan->name, plan->runs[0].options->data);
    }
    return TN_OK;
}

/* ---- the whole ---- */

static tn_status fail_scale(const tn_recipe *recipe, const char *scale) {
    char there[64] = "";
    for (const tn_section *s = NULL; (s = tn_recipe_next(recipe, TN_SECTION_SCALE, s));) {
        size_t used = strlen(there);
        snprintf(there + used, sizeof there - used, "%s%s", used ? ", " : "", s->heading);
    }
    return tn_fail(TN_ERR_USAGE, "--scale %s: %s has no such scale; it has %s", scale, recipe->file,
                   *there ? there : "none");
}

static tn_status fill(tn_table_plan *plan, const tn_options *options) {
    const char *metric = tn_section_key(plan->table, "metric");
    plan->title = tn_section_key(plan->table, "title");
    if (!plan->title) return tn_recipe_fail(plan->recipe, plan->table, NULL, "the table has no title");
    if (metric && !tn_curve_find(metric, &plan->metric))
        return tn_recipe_fail(plan->recipe, plan->table, "metric", "no metric \"%s\"; see run_record.h",
                              metric);
    plan->reduced = strcmp(plan->scale->heading, "full") != 0;
    if (plan->reduced && !tn_section_key(plan->scale, "note"))
        return tn_recipe_fail(plan->recipe, plan->scale, NULL,
                              "a reduced scale needs a note that says what is reduced");
    TN_TRY(fill_entries(plan, TN_SECTION_ROW, &plan->rows, &plan->row_count));
    TN_TRY(fill_entries(plan, TN_SECTION_COLUMN, &plan->columns, &plan->column_count));
    TN_TRY(fill_paper(plan));
    TN_TRY(fill_runs(plan, options));
    return check_data(plan, options->data);
}

tn_status tn_table_plan_create(const tn_recipe *recipe, const char *name, const tn_options *options,
                               tn_table_plan **out) {
    tn_table_plan *plan;
    *out = NULL;
    const tn_section *scale = tn_recipe_scale(recipe, options->scale);
    if (!scale) return fail_scale(recipe, options->scale);
    TN_TRY(tn_alloc(&plan, 1, sizeof *plan, "a table"));
    plan->recipe = recipe;
    plan->name = name;
    plan->scale = scale;
    plan->table = tn_recipe_next(recipe, TN_SECTION_TABLE, NULL);
    tn_status status = fill(plan, options);
    if (status == TN_OK)
        *out = plan;
    else
        tn_table_plan_free(plan);
    return status;
}

void tn_table_plan_free(tn_table_plan *plan) {
    if (!plan) return;
    for (int i = 0; i < plan->run_count; i++) tn_options_free(plan->runs[i].options);
    tn_free(plan->runs);
    tn_free(plan->rows);
    tn_free(plan->columns);
    tn_free(plan->paper);
    tn_free(plan);
}
