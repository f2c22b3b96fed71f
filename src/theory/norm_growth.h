/* Growth of the norms of block outputs within the stages of a network: tables, plots and the verdicts of
 * Claim 1 and Figure 3 of [S].
 *
 * Norms are Frobenius norms over a batch, relative to the first block's, in training mode (batch statistics).
 * A stage change sets the norm back, so growth is judged within stages. */
#ifndef TN_THEORY_NORM_GROWTH_H
#define TN_THEORY_NORM_GROWTH_H

#include "theory/laboratory.h"

enum { TN_STAGES_MAX = 4 };

/* Norms of one network, mean over trials; or of one in one epoch of a run. */
typedef struct tn_norm_series {
    char model[32], variant[16], name[64];
    int depth;                    /* 6n+2, 0 from a checkpoint */
    int run, epoch;               /* number of the run from 1, 0 without; -1 before the first step */
    bool finite;                  /* all norms are */
    int blocks, stages;           /* without the stem */
    int first[TN_STAGES_MAX + 1]; /* first block of each stage; [stages] = blocks */
    double *output, *gradient;    /* [blocks] */
} tn_norm_series;

typedef struct tn_norm_study {
    tn_norm_series
        *series;     /* fresh networks: without tau, then with it; epochs of a run: one after the other */
    int count, runs; /* runs: 0 for fresh or stored networks */
} tn_norm_study;

/* Fills the laboratory: blocks.csv, stages.csv, bn.svg, verdicts. */
tn_status tn_norm_report(tn_lab *lab, const tn_norm_study *study);

#endif
