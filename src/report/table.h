/* A table with the records of its runs, and what is computed and written from them. */
#ifndef TN_REPORT_TABLE_H
#define TN_REPORT_TABLE_H

#include "base/statistics.h"
#include "report/table_plan.h"

typedef struct tn_table_result {
    tn_run_record *record;
    char *reason; /* why the run is not finished; "" for one that is */
    bool made;    /* by this process */
} tn_table_result;

typedef struct tn_table {
    const tn_table_plan *plan;
    const tn_options *options; /* of the command */
    const char *folder;
    tn_table_result *results; /* [plan->run_count] */
} tn_table;

/* A cell. Runs that diverged or are not finished have no part in the means. */
typedef struct tn_cell {
    int runs, done, diverged, missing; /* missing: neither done nor diverged */
    tn_summary last, best, best_epoch; /* of the metric: last value, least value, epochs done by then */
    double paper;                      /* NaN when there is none */
    const char *reason;                /* of the first run that is missing; "" */
} tn_cell;

tn_status tn_table_cell(const tn_table *table, tn_curve_kind metric, int row, int column, tn_cell *out);

/* A claim in one row: `higher` less `lower` in the metric's last value. A run that diverged is worse than any
 * number: a column whose runs all diverged is above one without such runs. Else only runs that were finished
 * are compared, and a difference whose 95 % interval does not exclude the opposite is inconclusive. */
typedef struct tn_judgement {
    tn_verdict verdict;
    tn_curve_kind metric;
    tn_difference difference;
    int pairs;        /* row -1: how many */
    char remark[200]; /* "", or what else is to be known */
} tn_judgement;

/* In one row, or (row -1) in all rows that the claim is about together: the mean difference between finished
 * runs of the same row and seed, which saw the same images in the same order.
 * TN_ERR_USAGE for a claim that names no column or metric, with its line in the recipe. */
tn_status tn_table_judge(const tn_table *table, const tn_section *claim, int row, tn_judgement *out);

/* Appends the command that makes a run, as one types it: "taunet train --model=... --out=FOLDER". */
tn_status tn_table_command(const tn_table *table, int run, tn_string *out);

/* Appends a value of a metric: two digits behind the point for per cent, else four significant ones. */
tn_status tn_metric_print(tn_curve_kind metric, double value, tn_string *out);

/* Appends the results as Markdown, CSV and JSON. `figures` are the names of SVG files, one a line. */
tn_status tn_table_print_markdown(const tn_table *table, const char *figures, tn_string *out);
tn_status tn_table_print_csv(const tn_table *table, tn_string *out);
tn_status tn_table_print_json(const tn_table *table, tn_string *out);

/* Draws a section [[plot]]; *out is empty when nothing of it has been run. Its file is NAME-ID.svg. */
tn_status tn_table_plot(const tn_table *table, const tn_section *plot, tn_string *name, tn_string *out);

#endif
