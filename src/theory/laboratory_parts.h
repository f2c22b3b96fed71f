/* What a laboratory holds: for laboratory.c, which fills it, and laboratory_files.c, which writes it out. */
#ifndef TN_THEORY_LABORATORY_PARTS_H
#define TN_THEORY_LABORATORY_PARTS_H

#include <pthread.h>

#include "base/pool.h"
#include "theory/laboratory.h"

enum { TN_LAB_NAME = 64 };

typedef struct tn_lab_claim {
    tn_verdict verdict;
    char *claim, *bound, *measured;
} tn_lab_claim;

typedef struct tn_lab_table_entry {
    char name[TN_LAB_NAME];
    tn_number_table *table;
} tn_lab_table_entry;

typedef struct tn_lab_plot_entry {
    char name[TN_LAB_NAME];
    char *caption;
    tn_plot *plot;
} tn_lab_plot_entry;

struct tn_lab {
    const tn_experiment *experiment;
    const tn_options *options;
    const tn_theory_hooks *hooks; /* may be NULL */
    tn_pool *pool;                /* made when it is needed */
    pthread_mutex_t progress;     /* held while the hook tells of progress */
    tn_lab_claim *claims;
    size_t claim_count, claim_capacity;
    tn_lab_table_entry *tables;
    size_t table_count, table_capacity;
    tn_lab_plot_entry *plots;
    size_t plot_count, plot_capacity;
    char **remarks;
    size_t remark_count, remark_capacity;
};

/* Makes the folder and refuses one that holds a result, unless it may be overwritten. */
tn_status tn_lab_open_folder(const tn_options *options);

/* Appends the section as HTML. */
tn_status tn_lab_print_section(const tn_lab *lab, tn_string *out);

#endif
