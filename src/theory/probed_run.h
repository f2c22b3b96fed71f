/* What a training run with --probe norms measured: the norms of its blocks, epoch by epoch. */
#ifndef TN_THEORY_PROBED_RUN_H
#define TN_THEORY_PROBED_RUN_H

#include "io/probe_rows.h"

typedef struct tn_probed_run {
    char model[32], variant[16];
    tn_probe_rows rows;
    int blocks; /* rows of an epoch, the stem's included */
    int epochs; /* that were measured as a whole: epoch e has the rows from e * blocks */
} tn_probed_run;

/* Reads config.toml and probes.csv of a run's folder, also of a run that is still going. TN_ERR_IO for files
 * that are missing, TN_ERR_DATA for such that no run writes. */
tn_status tn_probed_run_read(const char *folder, tn_probed_run *out);
void tn_probed_run_free(tn_probed_run *run);

#endif
