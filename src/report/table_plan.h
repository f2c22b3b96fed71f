/* A recipe at one scale: its rows, columns, cells and the runs of each cell with their options. */
#ifndef TN_REPORT_TABLE_PLAN_H
#define TN_REPORT_TABLE_PLAN_H

#include <stdint.h>

#include "report/recipe.h"
#include "report/run_record.h"

enum { TN_TABLE_ID = 64, TN_TABLE_RUN_ID = 3 * TN_TABLE_ID };

/* A row or a column. */
typedef struct tn_table_entry {
    const tn_section *section;
    const char *name;
    char id[TN_TABLE_ID]; /* letters, digits, '-', '.' */
    double x;          /* of a row, on a figure's axis: the key x, else the name; NaN when it is no number */
    const char *panel; /* of a column; "" */
} tn_table_entry;

typedef struct tn_planned_run {
    int row, column;
    uint64_t seed;
    char id[TN_TABLE_RUN_ID]; /* ROW-COLUMN-sSEED: the name of its folder */
    tn_options *options;      /* of train; what the table decides (out, device, threads) is not set */
} tn_planned_run;

typedef struct tn_table_plan {
    const tn_recipe *recipe;
    const tn_section *table, *scale; /* sections of the recipe */
    const char *name;                /* of the table: of the recipe's file, without extension */
    const char *title;
    bool reduced; /* any scale but "full" */
    tn_curve_kind metric;
    tn_table_entry *rows, *columns;
    int row_count, column_count;
    double *paper;        /* [row_count * column_count], NaN where there is none */
    tn_planned_run *runs; /* by row, column, seed */
    int run_count, seeds; /* seeds: largest number of seeds of a cell */
} tn_table_plan;

/* Expands `recipe`, which must outlive the plan, with the options of the command "table" (--scale, --data,
 * --train-options). `name` is copied nowhere: it must outlive the plan too. TN_ERR_USAGE for a recipe that
 * does not make sense, with file and line, for a scale that it does not have, and for options of the command
 * that change no run. Free with tn_table_plan_free; NULL is allowed there. */
tn_status tn_table_plan_create(const tn_recipe *recipe, const char *name, const tn_options *options,
                               tn_table_plan **out);
void tn_table_plan_free(tn_table_plan *plan);

/* The runs of a cell: first one and how many. */
int tn_table_plan_cell(const tn_table_plan *plan, int row, int column, int *count);

/* Index of the column or row of that name, -1 when there is none at this scale. */
int tn_table_plan_column(const tn_table_plan *plan, const char *name);
int tn_table_plan_row(const tn_table_plan *plan, const char *name);

/* Whether a claim or plot belongs to the plan's scale, and whether it is about a row (key `only`). */
bool tn_table_plan_has(const tn_table_plan *plan, const tn_section *section);
bool tn_table_plan_concerns(const tn_section *section, const tn_table_entry *row);

#endif
