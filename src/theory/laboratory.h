/* What the experiments share: settings, parallel jobs, tables of numbers, plots, verdicts.
 *
 * An experiment is a function that fills a laboratory. When it returns TN_OK, everything it left there is
 * printed and written to the folder of --out; on a failure nothing is. To add one: define a tn_experiment,
 * declare it below and list it in experiments.c. */
#ifndef TN_THEORY_LABORATORY_H
#define TN_THEORY_LABORATORY_H

#include <stdbool.h>
#include <stdint.h>

#include "base/statistics.h"
#include "base/text.h"
#include "plot/plot.h"
#include "taunet/theory.h"
#include "theory/number_table.h"

typedef struct tn_lab tn_lab;

typedef struct tn_experiment {
    const char *name, *summary; /* see tn_theory_entry */
    const char *about;          /* what is measured and how, for the section: sentences, plain text */
    const char *takes;          /* of the options that not all experiments have, its own: " width depths " */
    tn_status (*run)(tn_lab *lab, const tn_options *options);
} tn_experiment;

/* Theorems and lemmas of [S], "Stability and Convergence Theory for Learning ResNet". */
extern const tn_experiment tn_experiment_forward, tn_experiment_spectral, tn_experiment_backward,
    tn_experiment_smoothness, tn_experiment_lower, tn_experiment_perturbation, tn_experiment_convergence;
/* Figures 1 and 3 of [S]. */
extern const tn_experiment tn_experiment_fig1, tn_experiment_bn;
/* Theorems and lemmas of [N], "Gradient Descent Optimizes Normalization-Free ResNets". */
extern const tn_experiment tn_experiment_nf, tn_experiment_jacobian;

/* Ends with NULL; the order in which they are listed. */
extern const tn_experiment *const tn_experiments[];

/* An empty laboratory for `experiment`. `options` (of the command "theory") and `hooks` (may be NULL) must
 * outlive it. */
tn_status tn_lab_create(const tn_experiment *experiment, const tn_options *options,
                        const tn_theory_hooks *hooks, tn_lab **out);
void tn_lab_free(tn_lab *lab);

/* --out, which exists while an experiment runs. */
const char *tn_lab_folder(const tn_lab *lab);

/* A line of progress; any thread may call. */
void tn_lab_progress(tn_lab *lab, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* TN_ERR_STOPPED once a stop was asked for. */
tn_status tn_lab_check_stop(const tn_lab *lab);

/* The numbers that the user gave, or else the experiment's own. At most `room` depths, each at least `least`;
 * TN_ERR_USAGE for others. Depths come sorted and without repetition. */
tn_status tn_lab_depths(const tn_lab *lab, const int *standard, const int *quick, int least, int *depths,
                        int room, int *count); /* standard and quick end with 0 */
int tn_lab_width(const tn_lab *lab, int standard, int quick);
int tn_lab_trials(const tn_lab *lab, int standard, int quick);
int tn_lab_samples(const tn_lab *lab, int standard, int quick);
bool tn_lab_is_quick(const tn_lab *lab);
uint64_t tn_lab_seed(const tn_lab *lab);

/* Runs body(context, index, worker) for 0 .. count-1 on the threads of --threads (workers), with a BLAS of
 * one thread each, and checks for a stop before each. Bodies write to places of their own. */
tn_status tn_lab_parallel(tn_lab *lab, int count, tn_status (*body)(void *context, int index, int worker),
                          void *context);

/* A sentence for the section: settings, observations that are not verdicts. Also printed. */
tn_status tn_lab_remark(tn_lab *lab, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* A row of the verdict table: `claim` and `bound` as they stand, `measured` formatted. */
tn_status tn_lab_verdict(tn_lab *lab, tn_verdict verdict, const char *claim, const char *bound,
                         const char *measured, ...) __attribute__((format(printf, 5, 6)));

/* The verdicts so far: for tests. `claim` NULL or a part of the claim's text; returns how many have it, and
 * in *out (may be NULL) the first one's verdict. */
int tn_lab_find_verdict(const tn_lab *lab, const char *claim, tn_verdict *out);

/* A new table, written as NAME.csv; `columns` are names separated by commas. Owned by the laboratory. */
tn_status tn_lab_table(tn_lab *lab, const char *name, const char *columns, tn_number_table **out);

/* A new plot, written as NAME.svg and shown in the section with its caption. Owned by the laboratory. */
tn_status tn_lab_plot(tn_lab *lab, const char *name, const char *caption, tn_plot **out);

/* Prints the verdicts and writes all files, section.html last. */
tn_status tn_lab_publish(tn_lab *lab);

#endif
