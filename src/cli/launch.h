/* --gpus N: the program starts itself N times under mpirun. */
#ifndef TN_CLI_LAUNCH_H
#define TN_CLI_LAUNCH_H

/* Whether a launcher has started this process as part of a job already. */
int launch_is_part(void);

/* Runs mpirun with `count` processes of the same command line, argv, to its end; returns the exit status for
 * this program. `signal_number` (SIGUSR1 or SIGUSR2, which mpirun passes on) asks the processes to save and
 * leave: INT, TERM, HUP and itself, when they come here, are passed on as that. A second one ends mpirun. */
int launch_processes(int count, int signal_number, int argc, char **argv);

#endif
