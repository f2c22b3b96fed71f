/* Tables, figures and pages from training runs.
 *
 * A table is a recipe (bench/tables/NAME.toml) that lists training runs as options of `taunet train`. Its
 * runs are child processes of the program, each in a folder of its own, OUT/runs/ID; a run that diverges is a
 * result, one that cannot start (no such data, no such model) is left out with its reason. From what is there
 * OUT/NAME.md, NAME.csv, NAME.json and an SVG a figure are written: mean, standard deviation, 95 % confidence
 * interval (Student's t), last and best epoch, beside the paper's numbers. */
#ifndef TAUNET_REPORT_H
#define TAUNET_REPORT_H

#include <signal.h>

#include "taunet/options.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct tn_report_hooks {
    /* One line of output, without its newline: progress (is_result false), or the result. May be NULL. */
    void (*line)(void *context, const char *text, bool is_result);
    void *context;
    /* not NULL and nonzero: ask the runs to save and stop, then TN_ERR_STOPPED */
    const volatile sig_atomic_t *stop;
} tn_report_hooks;

/* Does what the options of the command "table" say: runs what is not finished yet, or with --list and
 * --collect only looks; "list" in place of a name lists the recipes. `program` is the path of the program
 * taunet, which the runs are made with; recipes are looked for in bench/tables, beside the program's folder
 * in
 * ../bench/tables, and in ../share/taunet/tables.
 *
 * Runs that are finished are kept, others are continued: the same command goes on with what was stopped. As a
 * task of a Slurm job array, as many as the array's size share the runs. TN_ERR_USAGE for a wrong recipe or a
 * folder whose runs are those of another; TN_ERR_DATA when a run failed on the way, or none could start: the
 * results of the others are written then, too; TN_ERR_STOPPED; TN_ERR_IO. hooks may be NULL. */
tn_status tn_table_run(const tn_options *options, const char *program, const tn_report_hooks *hooks);

/* Writes one HTML page, with everything inside, on the runs in the folders that the options of the command
 * "report" name. TN_ERR_USAGE when there are no runs in one of them. hooks may be NULL. */
tn_status tn_report_run(const tn_options *options, const tn_report_hooks *hooks);

#ifdef __cplusplus
}
#endif
#endif
