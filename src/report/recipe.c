#include "report/recipe.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/config_file.h"
#include "base/memory.h"

/* Kinds of sections: heading, whether it may come again, whether it holds options, and its keys.
 *
 * title, about: what the table is, for people; source: where the paper's numbers come from.
 * rows, columns: what the rows and columns are ("depth"). metric: what is tabulated (table_plan.h).
 * note: what a scale changes; seeds: how many seeds a cell runs with, 0 to seeds - 1.
 * name: of a row, column, plot or figure; id: the same in names of files, made from the name unless given;
 * scales: those that have the row, column, claim or plot, all unless given; x: the row's place on a figure's
 * axis; panel: the panel of figures in which a column stands; paper: numbers to reach, one a column, '-' for
 * none.
 * lower, higher: the columns of a claim; by: "LEAST,MOST" of higher - lower; only: the rows that it is about.
 * kind, x, y, metrics, log, only: see table_plot.h. */
static const char *const table_keys[] = {"title",   "about",  "source",   "rows",
                                         "columns", "metric", "paper-is", NULL};
static const char *const scale_keys[] = {"note", "seeds", NULL};
static const char *const row_keys[] = {"name", "id", "scales", "seeds", "x", "paper", NULL};
static const char *const column_keys[] = {"name", "id", "scales", "panel", NULL};
static const char *const claim_keys[] = {"text", "lower", "higher", "metric", "by", "only", "scales", NULL};
static const char *const plot_keys[] = {"name", "id",     "kind",  "metrics", "log",
                                        "only", "scales", "epoch", NULL};
static const char *const no_keys[] = {NULL};

static const struct {
    const char *heading;
    tn_section_kind kind;
    bool repeated, options;
    const char *const *keys;
} kinds[] = {{"", TN_SECTION_TABLE, false, false, table_keys},
             {"all", TN_SECTION_ALL, false, true, no_keys},
             {"full", TN_SECTION_SCALE, false, true, scale_keys},
             {"quick", TN_SECTION_SCALE, false, true, scale_keys},
             {"smoke", TN_SECTION_SCALE, false, true, scale_keys},
             {"row", TN_SECTION_ROW, true, true, row_keys},
             {"column", TN_SECTION_COLUMN, true, true, column_keys},
             {"claim", TN_SECTION_CLAIM, true, false, claim_keys},
             {"plot", TN_SECTION_PLOT, true, false, plot_keys}};
enum { KINDS = sizeof kinds / sizeof *kinds };

typedef struct reading {
    tn_recipe *recipe;
    tn_options *scratch; /* options of train, to check names and values */
} reading;

static int kind_of(const char *heading) {
    for (int i = 0; i < KINDS; i++)
        if (!strcmp(kinds[i].heading, heading)) return i;
    return -1;
}

static tn_status add_section(tn_recipe *recipe, const char *heading, int line) {
    TN_TRY(tn_grow(&recipe->sections, &recipe->capacity, recipe->count + 1, sizeof *recipe->sections,
                   "a recipe"));
    tn_section *section = &recipe->sections[recipe->count];
    TN_TRY(tn_strdup(&section->heading, heading));
    section->kind = kinds[kind_of(heading)].kind;
    section->line = line;
    recipe->count++;
    return TN_OK;
}

static tn_status visit_heading(tn_recipe *recipe, const tn_config_entry *entry) {
    int kind = *entry->name ? kind_of(entry->name) : -1;
    if (kind < 0)
        return tn_fail(TN_ERR_USAGE,
                       "%s:%d:%d: no section '%s' in recipes; there are all, full, quick, smoke, row, "
                       "column, claim and plot",
                       entry->file, entry->line, entry->name_column, entry->name);
    if (kinds[kind].repeated != (entry->kind == TN_CONFIG_ELEMENT))
        return tn_fail(TN_ERR_USAGE, "%s:%d:%d: write %s%s%s", entry->file, entry->line, entry->name_column,
                       kinds[kind].repeated ? "[[" : "[", entry->name, kinds[kind].repeated ? "]]" : "]");
    for (size_t i = 0; !kinds[kind].repeated && i < recipe->count; i++)
        if (!strcmp(recipe->sections[i].heading, entry->name))
            return tn_fail(TN_ERR_USAGE, "%s:%d:%d: [%s] was already there in line %d", entry->file,
                           entry->line, entry->name_column, entry->name, recipe->sections[i].line);
    return add_section(recipe, entry->name, entry->line);
}

static bool is_key(const char *const *keys, const char *name) {
    for (; *keys; keys++)
        if (!strcmp(*keys, name)) return true;
    return false;
}

/* A recipe's options: those of train, but for what the table decides itself. */
static tn_status check_option(tn_options *scratch, const tn_config_entry *entry) {
    static const char *const own[] = {"out",    "resume",  "overwrite", "config",       "seed",
                                      "device", "threads", "help",      "print-config", NULL};
    if (is_key(own, entry->name))
        return tn_fail(TN_ERR_USAGE, "%s:%d:%d: '%s' is for the command to decide, not for the recipe",
                       entry->file, entry->line, entry->name_column, entry->name);
    tn_status status = tn_options_set(scratch, entry->name, entry->value);
    return status == TN_OK ? TN_OK
                           : tn_fail_prefix(status, "%s:%d:%d", entry->file, entry->line, entry->name_column);
}

static tn_status visit(void *context, const tn_config_entry *entry) {
    reading *r = context;
    if (entry->kind == TN_CONFIG_TABLE || entry->kind == TN_CONFIG_ELEMENT)
        return visit_heading(r->recipe, entry);
    tn_section *section = &r->recipe->sections[r->recipe->count - 1];
    int kind = kind_of(section->heading);
    bool key = is_key(kinds[kind].keys, entry->name);
    if (!key && !kinds[kind].options)
        return tn_fail(TN_ERR_USAGE, "%s:%d:%d: '%s' has no meaning here", entry->file, entry->line,
                       entry->name_column, entry->name);
    for (size_t i = 0; i < section->count; i++)
        if (!strcmp(section->entries[i].key, entry->name))
            return tn_fail(TN_ERR_USAGE, "%s:%d:%d: '%s' was already set in line %d; keep one of the two",
                           entry->file, entry->line, entry->name_column, entry->name,
                           section->entries[i].line);
    if (!key) TN_TRY(check_option(r->scratch, entry));
    TN_TRY(tn_grow(&section->entries, &section->capacity, section->count + 1, sizeof *section->entries,
                   "a recipe"));
    tn_recipe_entry *new = &section->entries[section->count++];
    *new = (tn_recipe_entry){.option = !key, .line = entry->line};
    TN_TRY(tn_strdup(&new->key, entry->name));
    return tn_strdup(&new->value, entry->value);
}

static tn_status read(const char *bytes, size_t size, const char *file, tn_recipe **out) {
    reading r = {0};
    *out = NULL;
    TN_TRY(tn_alloc(&r.recipe, 1, sizeof *r.recipe, "a recipe"));
    tn_status status = tn_strdup(&r.recipe->file, tn_make_legible(file).text);
    if (status == TN_OK) status = add_section(r.recipe, "", 1);
    if (status == TN_OK) status = tn_options_create("train", &r.scratch);
    if (status == TN_OK)
        status = bytes ? tn_config_parse(bytes, size, file, visit, &r) : tn_config_read(file, visit, &r);
    tn_options_free(r.scratch);
    if (status == TN_OK)
        *out = r.recipe;
    else
        tn_recipe_free(r.recipe);
    return status;
}

tn_status tn_recipe_open(const char *path, tn_recipe **out) {
    return read(NULL, 0, path, out);
}

tn_status tn_recipe_parse(const char *bytes, size_t size, const char *file, tn_recipe **out) {
    return read(bytes, size, file, out);
}

void tn_recipe_free(tn_recipe *recipe) {
    if (!recipe) return;
    for (size_t i = 0; i < recipe->count; i++) {
        tn_section *section = &recipe->sections[i];
        for (size_t j = 0; j < section->count; j++) {
            tn_free(section->entries[j].key);
            tn_free(section->entries[j].value);
        }
        tn_free(section->entries);
        tn_free(section->heading);
    }
    tn_free(recipe->sections);
    tn_free(recipe->file);
    tn_free(recipe);
}

const char *tn_section_key(const tn_section *section, const char *key) {
    for (size_t i = 0; section && i < section->count; i++)
        if (!section->entries[i].option && !strcmp(section->entries[i].key, key))
            return section->entries[i].value;
    return NULL;
}

const tn_section *tn_recipe_next(const tn_recipe *recipe, tn_section_kind kind, const tn_section *after) {
    const tn_section *end = recipe->sections + recipe->count;
    for (const tn_section *s = after ? after + 1 : recipe->sections; s < end; s++)
        if (s->kind == kind) return s;
    return NULL;
}

const tn_section *tn_recipe_scale(const tn_recipe *recipe, const char *scale) {
    for (const tn_section *s = NULL; (s = tn_recipe_next(recipe, TN_SECTION_SCALE, s));)
        if (!strcmp(s->heading, scale)) return s;
    return NULL;
}

tn_status tn_recipe_fail(const tn_recipe *recipe, const tn_section *section, const char *key,
                         const char *format, ...) {
    char what[1024];
    va_list args;
    va_start(args, format);
    vsnprintf(what, sizeof what, format, args);
    va_end(args);
    int line = section->line;
    for (size_t i = 0; key && i < section->count; i++)
        if (!strcmp(section->entries[i].key, key)) line = section->entries[i].line;
    return tn_fail(TN_ERR_USAGE, "%s:%d: %s", recipe->file, line, what);
}

bool tn_next_word(const char **at, char separator, char *out, size_t size) {
    if (!*at) return false;
    const char *first = *at + strspn(*at, " \t"), *end = first;
    while (*end && *end != separator) end++;
    *at = *end ? end + 1 : NULL;
    while (end > first && (end[-1] == ' ' || end[-1] == '\t')) end--;
    snprintf(out, size, "%.*s", (int)(end - first), first);
    return true;
}

bool tn_has_word(const char *list, char separator, const char *word) {
    char one[256];
    while (tn_next_word(&list, separator, one, sizeof one))
        if (!strcmp(one, word)) return true;
    return false;
}
