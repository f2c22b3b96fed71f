/* Running what a table lacks: child processes, several at a time. */
#ifndef TN_REPORT_TABLE_RUNS_H
#define TN_REPORT_TABLE_RUNS_H

#include "report/table.h"
#include "taunet/report.h"

/* Reads what is there of run `index` into table->results (which may hold an earlier reading). TN_ERR_USAGE
 * when its folder holds a run with other options. */
tn_status tn_table_read_run(tn_table *table, int index);

/* Makes the runs that are neither done nor diverged and that are this process's share, --jobs at a time, and
 * reads them. TN_ERR_STOPPED when asked to stop, after the children have. A run that fails is no failure
 * here: its result says why. */
tn_status tn_table_make_runs(tn_table *table, const char *program, const tn_report_hooks *hooks);

/* Passes a formatted line to the hook. */
void tn_report_say(const tn_report_hooks *hooks, bool is_result, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

#endif
