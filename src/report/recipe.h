/* Recipes of tables and figures: the files bench/tables/NAME.toml.
 *
 *   title = "..."          and other keys of the table itself
 *   [all]                  options of every run, as `taunet train` takes them
 *   [full] [quick] [smoke] options and keys of a scale; a recipe has the scales that it names
 *   [[row]] [[column]]     options and keys of a row, a column; each pair is a cell, each seed of a cell a
 * run
 *   [[claim]]              an ordering of two columns, to be judged in each row
 *   [[plot]]               a figure
 *
 * What a section may hold beside options is listed in recipe.c. All values are texts here; whoever uses one
 * says what is wrong with it through tn_recipe_fail. */
#ifndef TN_REPORT_RECIPE_H
#define TN_REPORT_RECIPE_H

#include <stdbool.h>

#include "base/text.h"
#include "taunet/options.h"

typedef enum tn_section_kind {
    TN_SECTION_TABLE,
    TN_SECTION_ALL,
    TN_SECTION_SCALE,
    TN_SECTION_ROW,
    TN_SECTION_COLUMN,
    TN_SECTION_CLAIM,
    TN_SECTION_PLOT
} tn_section_kind;

typedef struct tn_recipe_entry {
    char *key, *value;
    bool option; /* of `taunet train`; else a key of the section */
    int line;
} tn_recipe_entry;

typedef struct tn_section {
    tn_section_kind kind;
    char *heading; /* "row", "quick", ...; "" for the table itself */
    int line;
    tn_recipe_entry *entries;
    size_t count, capacity;
} tn_section;

typedef struct tn_recipe {
    char *file; /* as it is shown in messages */
    tn_section *sections;
    size_t count, capacity;
} tn_recipe;

/* Reads a recipe. Names and values of options are checked, keys only for their names. TN_ERR_USAGE with
 * file:line:column. Free with tn_recipe_free; NULL is allowed there. */
tn_status tn_recipe_open(const char *path, tn_recipe **out);
tn_status tn_recipe_parse(const char *bytes, size_t size, const char *file, tn_recipe **out);
void tn_recipe_free(tn_recipe *recipe);

/* The value of a key of a section (which may be NULL), or NULL. */
const char *tn_section_key(const tn_section *section, const char *key);

/* The first section of that kind behind `after` (NULL: the first of all); NULL when there is none. All:
 * for (s = NULL; (s = tn_recipe_next(recipe, kind, s));) */
const tn_section *tn_recipe_next(const tn_recipe *recipe, tn_section_kind kind, const tn_section *after);

/* The section [scale], or NULL. */
const tn_section *tn_recipe_scale(const tn_recipe *recipe, const char *scale);

/* TN_ERR_USAGE with file and line of the section's key (of the section when it has none such). */
tn_status tn_recipe_fail(const tn_recipe *recipe, const tn_section *section, const char *key,
                         const char *format, ...) __attribute__((format(printf, 4, 5)));

/* Walks a list of words between `separator`s, blanks around them left out: copies the next into `out`, cut to
 * `size` - 1 bytes, and moves *at behind it; false at the end. Start with *at at the list, which may be NULL.
 */
bool tn_next_word(const char **at, char separator, char *out, size_t size);

/* Whether `word` is one of the list. */
bool tn_has_word(const char *list, char separator, const char *word);

#endif
