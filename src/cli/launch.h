/* --gpus N: the program starts itself N times under mpirun. */
#ifndef TN_CLI_LAUNCH_H
#define TN_CLI_LAUNCH_H

#include "taunet/status.h"

/* Whether a launcher has started this process as part of a job already. */
int launch_is_part(void);

/* Replaces this process by mpirun with `count` processes of the same command line, argv. Returns only when
 * that fails, after it said why on stderr. */
tn_status launch_processes(int count, int argc, char **argv);

#endif
