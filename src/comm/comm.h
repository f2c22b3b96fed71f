/* What the processes of one run ("ranks") say to each other: collectives over a table of transports, sums in
 * the fixed order of base/sum_tree.h, agreement on failures, and a side channel that names a rank which died
 * or hangs (watchdog.h).
 *
 * Every rank calls the same collectives in the same order, all from the thread that opened the comm. `what`
 * names a collective in messages. A collective that cannot end because another rank is lost fails with
 * TN_ERR_PEER. With a single rank all of this does nothing and costs nothing. */
#ifndef TN_COMM_COMM_H
#define TN_COMM_COMM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/fail.h"

typedef struct tn_comm tn_comm;

typedef struct tn_comm_config {
    double timeout; /* seconds that a rank may keep the others waiting in a collective; 0 = no side channel */
    /* Called at most once, on a thread of the library, when a rank is lost: died, fell silent, or failed
     * after tn_comm_failed. `text` is one line, or NULL where another rank says it. It is meant to end the
     * process, as whoever launched the ranks is about to kill them; when it returns or is NULL, the next
     * collective fails with TN_ERR_PEER and the text. */
    void (*lost)(void *context, const char *text);
    void *context;
} tn_comm_config;

/* Joins the ranks that a launcher (mpirun, srun) started together with this process; without one there is a
 * single rank. TN_ERR_USAGE when there are several and this build has no transport for them. */
tn_status tn_comm_open(const tn_comm_config *config, tn_comm **out);

/* Leaves. All ranks must come here together after success, and after a failure that tn_comm_agree told them;
 * after one that is this rank's alone (`failed`) the others are told and end too. NULL is allowed. */
void tn_comm_close(tn_comm *comm, bool failed);

int tn_comm_rank(const tn_comm *comm);
int tn_comm_size(const tn_comm *comm);
int tn_comm_local_rank(const tn_comm *comm); /* among the ranks of this machine */
int tn_comm_local_size(const tn_comm *comm);
const char *tn_comm_name(const tn_comm *comm); /* of the transport: "none", "mpi"; "nccl" between devices */

/* For the side channel: where this rank stands. Cheap. `phase` is a string that stays. */
void tn_comm_phase(tn_comm *comm, long step, const char *phase);

/* Seconds that this rank has spent waiting in collectives so far, where it could do nothing else. */
double tn_comm_waited(const tn_comm *comm);

tn_status tn_comm_barrier(tn_comm *comm, const char *what);

/* Copies `bytes` bytes of rank 0 to all. */
tn_status tn_comm_broadcast(tn_comm *comm, void *data, size_t bytes, const char *what);

/* Collects `bytes` bytes of each rank, the same number, in all: [size][bytes]. `mine` may be the place inside
 * `all` where it belongs. */
tn_status tn_comm_gather(tn_comm *comm, const void *mine, size_t bytes, void *all, const char *what);

/* The same where rank i has elements first[i] up to first[i + 1] of `size` bytes: its own are at their place
 * in `all` and the others' arrive at theirs. first has as many elements as there are ranks, and one more. */
tn_status tn_comm_gather_ranges(tn_comm *comm, void *all, size_t size, const int *first, const char *what);

/* Replaces data by the sum over ranks, in all: along the tree whose leaves are the ranks. */
tn_status tn_comm_sum_floats(tn_comm *comm, float *data, size_t count, const char *what);
tn_status tn_comm_sum_doubles(tn_comm *comm, double *data, size_t count, const char *what);

/* The value of the first rank whose own is not 0, in all; 0 when there is none. */
tn_status tn_comm_any(tn_comm *comm, int mine, int *out, const char *what);

/* TN_OK when every rank comes with TN_OK. Else every rank gets the status of the first that failed; rank 0
 * gets its message, with the rank's name when not all say the same, the others an empty one, so that the
 * failure is told once. */
tn_status tn_comm_agree(tn_comm *comm, tn_status mine, const char *what);

/* TN_ERR_USAGE, naming the ranks, when `text` is not the same on all. */
tn_status tn_comm_compare(tn_comm *comm, const char *text, const char *what);

/* ---- sums of gradients ---- */

/* Adds up the parts of all ranks: floats, in the order of the tree whose leaves are dealt as tn_sum_deal
 * says. Each rank owns a slice of the result: it receives that slice of every part, adds, and sends its sum
 * to all. Several reductions may be under way; they must be started in the same order on all ranks. */
typedef struct tn_reduction tn_reduction;

/* For at most `leaves` leaves and `floats` floats. Allocates all memory and says nothing to other ranks. */
tn_status tn_reduction_create(tn_comm *comm, int leaves, size_t floats, const char *what, tn_reduction **out);
void tn_reduction_free(tn_reduction *reduction);
size_t tn_reduction_bytes(const tn_reduction *reduction);

/* Starts: `leaves` and `floats` are those of this sum, parts[i] is the part number i of tn_sum_parts for this
 * rank's leaves. `sum` receives the result and may be one of the parts; all stay in use until it is done. */
tn_status tn_reduction_start(tn_reduction *reduction, int leaves, size_t floats, const float *const *parts,
                             float *sum);

/* Moves on what can be moved without waiting. */
tn_status tn_reduction_progress(tn_reduction *reduction, bool *done);

/* Waits for the end. */
tn_status tn_reduction_finish(tn_reduction *reduction);

/* ---- sums in the memory of devices ---- */

/* Each rank has a device of its own, and what is in its memory is summed over the ranks, in place, on a
 * stream beside the one that computes. `stream` is that one (CUDA: a cudaStream_t of the calling thread's
 * current device). These calls issue work and do not wait. All ranks issue the same sums in the same order;
 * while `stream` is being captured into a graph they become part of it, on all ranks or on none. In which
 * order ranks are added follows from their number and places: the same run has the same bits again. */
typedef enum tn_device_type {
    TN_DEVICE_FLOATS,
    TN_DEVICE_DOUBLES,
    TN_DEVICE_FLAGS /* int; the largest instead of the sum */
} tn_device_type;

typedef struct tn_device_range {
    void *data;
    size_t count;
    tn_device_type type;
} tn_device_range;

/* How much of it a piece of work holds: sums issued, and times that `stream` waits for them. */
typedef struct tn_device_work {
    int sums, joins;
} tn_device_work;

/* Joins the ranks' devices, all ranks together; nothing the second time. TN_ERR_USAGE, told once, where this
 * build has no transport between devices or two ranks have the same. */
tn_status tn_comm_device_open(tn_comm *comm);

/* Starts to count what is issued: before each piece of work, also before a graph is replayed. */
void tn_comm_device_begin(tn_comm *comm);
tn_device_work tn_comm_device_work(const tn_comm *comm);

/* Issues the sums of `count` ranges as one, behind everything that `stream` was given so far. The first time
 * it may wait for the other ranks. */
tn_status tn_comm_device_sum(tn_comm *comm, void *stream, const tn_device_range *ranges, int count,
                             const char *what);

/* What `stream` is given from now on runs behind all sums issued so far. */
tn_status tn_comm_device_join(tn_comm *comm, void *stream);

/* Around the host's waiting for `work`, which was issued, or replayed from a graph: in between, this rank
 * counts as waiting in the collective `what`. After it the times that `stream` stood still are known
 * (tn_comm_waited), and a rank that was lost is TN_ERR_PEER; else `status` is returned. */
void tn_comm_device_enter(tn_comm *comm, tn_device_work work, const char *what);
tn_status tn_comm_device_leave(tn_comm *comm, tn_device_work work, tn_status status);

#endif
