/* The theory laboratory: claims of the papers on scaled residual networks, measured.
 *
 * An experiment prints a table of verdicts (claim, bound, measured, holds or not) and writes into its folder:
 * verdicts.csv, the measured numbers as CSV, plots as SVG, and section.html, a piece of HTML that stands on
 * its own and that a report may include. A claim that a measurement does not confirm is a result, not an
 * error. */
#ifndef TAUNET_THEORY_H
#define TAUNET_THEORY_H

#include <signal.h>
#include <stddef.h>

#include "taunet/options.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct tn_theory_entry {
    const char *name;    /* what the user types: "forward" */
    const char *summary; /* one line */
} tn_theory_entry;

/* The experiments in the order in which they are listed; false when there is none at `index`. */
bool tn_theory_at(size_t index, tn_theory_entry *out);

typedef struct tn_theory_hooks {
    /* One line of output, without its newline: progress while it works (is_result false), then the table of
     * verdicts and what was written. May be NULL; progress may come from any thread, one call at a time. */
    void (*line)(void *context, const char *text, bool is_result);
    void *context;
    const volatile sig_atomic_t
        *stop; /* not NULL and nonzero: leave at the next opportunity, TN_ERR_STOPPED */
} tn_theory_hooks;

/* Runs the experiment that the options of the command "theory" name. The files appear in --out when it is
 * through, each one whole; TN_ERR_USAGE for an unknown name (with the nearest one) and for a folder that
 * already holds a result (unless --overwrite). Results depend on the options alone, not on --threads. hooks
 * may be NULL. */
tn_status tn_theory_run(const tn_options *options, const tn_theory_hooks *hooks);

#ifdef __cplusplus
}
#endif
#endif
