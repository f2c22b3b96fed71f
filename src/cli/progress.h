/* What a training run shows: one line that is redrawn on a terminal, plain lines elsewhere. */
#ifndef CLI_PROGRESS_H
#define CLI_PROGRESS_H

#include "taunet/run.h"

typedef struct progress_state {
    int terminal;     /* standard output is one */
    int open;         /* a redrawn line is on the screen */
    int leads;        /* events come here: not so in processes that leave them to another */
    double last_draw; /* seconds */
} progress_state;

void progress_begin(progress_state *state);

/* The event function of tn_run_hooks; context is a progress_state. */
void progress_show(void *context, const tn_event *event);

/* Leaves the cursor on a fresh line. */
void progress_end(progress_state *state);

#endif
