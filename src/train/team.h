/* The processes of one training run. Rank 0 leads: it alone reads and writes the run's folder; what it knows
 * from there the others are told. */
#ifndef TN_TRAIN_TEAM_H
#define TN_TRAIN_TEAM_H

#include "comm/comm.h"
#include "taunet/run.h"
#include "train/checkpoint.h"

/* Joins the processes that were started together. TN_ERR_USAGE when their options differ, or when --gpus says
 * another number than were started. Close with tn_comm_close. */
tn_status tn_team_join(const tn_options *options, const tn_run_hooks *hooks, tn_comm **out);

/* Gives all processes the resolved options of rank 0; the others have NULL before. */
tn_status tn_team_share_options(tn_comm *comm, tn_options **options);

/* Worker threads for --threads N, or 0: then the processors of this machine are shared by its processes,
 * unless the launcher has dealt them already. */
int tn_team_threads(const tn_comm *comm, int wanted);

/* TN_ERR_DATA, naming a process, when not all have the same weights, momentum and statistics bit for bit. */
tn_status tn_team_check_state(tn_comm *comm, tn_engine *engine, long step);

/* The names of the processes' number for messages: "2 processes", "" when there is one. */
const char *tn_team_describe(const tn_comm *comm, char *text, size_t size);

#endif
