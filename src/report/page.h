/* The page of `taunet report`: what is shown, and its parts. */
#ifndef TN_REPORT_PAGE_H
#define TN_REPORT_PAGE_H

#include "report/run_record.h"

typedef struct tn_page_run {
    tn_run_record *record;
    char *path;  /* canonical */
    char *label; /* what tells it from the others: its path without what all share */
} tn_page_run;

typedef struct tn_page {
    tn_page_run *runs;
    size_t run_count, run_capacity;
    char **sections; /* HTML that `taunet theory` left */
    size_t section_count, section_capacity;
} tn_page;

/* Appends the page. */
tn_status tn_page_print(const tn_page *page, tn_string *out);

/* Appends the figures, each in a <figure>: curves of training, then norms of blocks where there are probes.
 * The series of run N stand in <g class="run-N">. */
tn_status tn_page_print_curves(const tn_page *page, tn_string *out);
tn_status tn_page_print_probes(const tn_page *page, tn_string *out);
bool tn_page_has_probes(const tn_page *page);

/* Styles of the page, and the script that shows and hides the series of runs. */
extern const char tn_page_style[], tn_page_script[];

#endif
