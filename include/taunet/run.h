/* The commands of the program as functions: a training run with its folder, evaluation, initial weights,
 * throughput and summaries. All take the options of their command (options.h) and report failures by status
 * and tn_error(). */
#ifndef TAUNET_RUN_H
#define TAUNET_RUN_H

#include <signal.h>

#include "taunet/options.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum tn_event_kind {
    TN_EVENT_START, /* everything is planned; the first step comes next */
    TN_EVENT_STEP,
    TN_EVENT_EPOCH, /* evaluated and logged */
    TN_EVENT_NOTE   /* something worth a line: resumed, a checkpoint written, a warning */
} tn_event_kind;

/* Where a training run stands. Numbers of earlier events are kept. */
typedef struct tn_event {
    tn_event_kind kind;
    const char *text;              /* START and NOTE: one line; else NULL */
    long step, steps;              /* done, in all */
    int epoch;                     /* of the last step, from 0 */
    int batch, batches;            /* done in this epoch, in an epoch */
    double loss, lr, tau;          /* of the last step; tau is NaN where there is none */
    double images_per_second;      /* of the last step (STEP) or the epoch's training (EPOCH) */
    double data_wait;              /* seconds spent waiting for data in this epoch */
    double seconds_left;           /* estimate for the rest of the run, from this process's steps */
    bool log_step;                 /* STEP: this step is logged (--log-every) */
    double train_loss, train_top1; /* EPOCH; top-1 and top-5 in per cent */
    double val_loss, val_top1, val_top5, best_top1;
    bool evaluated; /* EPOCH: the val_ numbers are of this epoch */
    double seconds; /* EPOCH: training and evaluation */
    int ranks;      /* processes of the run */
    /* Seconds spent waiting for the other processes: in the last step (STEP), in the epoch's training (EPOCH)
     */
    double comm_wait;
} tn_event;

typedef struct tn_run_hooks {
    void (*event)(void *context, const tn_event *event); /* may be NULL; called on the calling thread */
    void *context;
    /* Not NULL and nonzero: save and leave after the steps that are on their way. Where another process of
     * the run was asked to, its number is put here too. */
    volatile sig_atomic_t *stop;
    /* Another process of the run died, hangs or failed. Called at most once, on a thread of the library, and
     * meant to end this process at once: the launcher is about to. `text` is a line to show, or NULL where
     * another process shows it. When it is NULL, or returns, the run fails with TN_ERR_PEER. */
    void (*lost)(void *context, const char *text);
} tn_run_hooks;

/* Trains (contracts.md: "taunet train"), alone or as one of the processes that mpirun or srun started
 * together: each batch is then dealt to them, rank 0 alone writes the folder and reports events, and a
 * failure or end that all share leaves its message on rank 0 alone. Writes the run's folder; holds a lock on
 * it meanwhile. Returns TN_ERR_STOPPED after a stop with a checkpoint, TN_ERR_DIVERGED when a value was not
 * finite; earlier checkpoints stay. hooks may be NULL. */
tn_status tn_run_train(const tn_options *options, const tn_run_hooks *hooks);

typedef struct tn_evaluation {
    double loss, top1, top5; /* mean over all images; per cent */
    int images;
    double seconds;
    int bad_samples;       /* images left out (--on-bad-sample skip) */
    char bad_sample[1024]; /* what was wrong with the first of them */
} tn_evaluation;

/* Evaluates a checkpoint on the validation images of a data set, each image once; writes predictions when
 * asked. */
tn_status tn_run_eval(const tn_options *options, tn_evaluation *out);

/* Writes freshly initialised weights. */
tn_status tn_run_init(const tn_options *options);

typedef struct tn_bench {
    double images_per_second, minimum, maximum; /* median over timed steps */
    double gflops; /* 6 x multiply-adds of direct convolutions x images_per_second */
    double peak_gflops,
        peak_fraction;     /* fused multiply-adds of all threads, measured around the timed steps */
    size_t peak_bytes;     /* planned by the engine */
    size_t resident_bytes; /* largest resident set of the process */
    double start_seconds;  /* from the call to the end of the first step */
    int steps, batch, threads, chunk_rows;
    size_t parameters;
    char device[128];
} tn_bench;

/* Times whole training steps on a synthetic batch that stays in memory. */
tn_status tn_run_bench(const tn_options *options, tn_bench *out);

/* The summary that `taunet info` prints, as text or JSON (--json). Free with tn_options_free_text. */
tn_status tn_run_info(const tn_options *options, char **out);

#ifdef __cplusplus
}
#endif
#endif
