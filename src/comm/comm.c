#include "comm/comm.h"

#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/memory.h"
#include "comm/transport.h"

/* Seconds of waiting before the processor is left to others for good: a small all-reduce is over by then. */
#define SPIN_SECONDS    1e-3
#define NAP_NANOSECONDS 50000
#define BROADCAST_BYTES ((size_t)1 << 28) /* of one piece */

typedef struct verdict {
    int status;
    char host[64], message[448];
} verdict;

/* ---- joining and leaving ---- */

static int number(const char *name) {
    const char *text = getenv(name);
    return text ? atoi(text) : 0;
}

/* How many processes the launcher started together with this one, as far as the environment tells; each
 * launcher has its own variables. */
static int launched(void) {
    static const char *const sizes[] = {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        if (number(sizes[i]) > 0) return number(sizes[i]);
    return 1;
}

static tn_status start_watchdog(tn_comm *comm, const tn_comm_config *config) {
    tn_watchdog_config watch = {.rank = comm->rank,
                                .size = comm->size,
                                .local_rank = comm->local_rank,
                                .timeout = config->timeout,
                                .lost = config->lost,
                                .context = config->context};
    tn_watchdog_place place = {0};
    tn_watchdog *watchdog;
    tn_status status = tn_watchdog_listen(&watch, &place, &watchdog);
    status = tn_comm_agree(comm, status, "start");
    if (status == TN_OK) status = tn_comm_broadcast(comm, &place, sizeof place, "start");
    if (status == TN_OK) status = tn_comm_agree(comm, tn_watchdog_start(watchdog, &place), "start");
    if (status == TN_OK)
        comm->watchdog = watchdog;
    else
        tn_watchdog_stop(watchdog, NULL);
    return status;
}

static tn_status open_comm(tn_comm *comm, const tn_comm_config *config) {
    int expected = launched();
    TN_TRY(tn_transport_find(expected, &comm->transport));
    comm->waits = &comm->waited;
    TN_TRY(comm->transport->open(comm));
    if (comm->size != expected)
        return tn_fail(
            TN_ERR_USAGE,
            "this process is one of %d that the launcher started, but MPI joins %d; use mpirun, or srun "
            "with --mpi=pmix",
            expected, comm->size);
    return comm->size > 1 && config->timeout > 0 ? start_watchdog(comm, config) : TN_OK;
}

tn_status tn_comm_open(const tn_comm_config *config, tn_comm **out) {
    tn_comm *comm;
    *out = NULL;
    TN_TRY(tn_alloc(&comm, 1, sizeof *comm, "comm"));
    tn_status status = open_comm(comm, config);
    if (status == TN_OK)
        *out = comm;
    else
        tn_comm_close(comm, true);
    return status;
}

void tn_comm_close(tn_comm *comm, bool failed) {
    if (!comm) return;
    bool alone = failed && !comm->agreed;
    tn_watchdog_guard(comm->watchdog, NULL, NULL, NULL);
    if (comm->device) comm->device->close(comm->device_state, failed);
    if (comm->transport) comm->transport->close(comm, alone);
    tn_watchdog_stop(comm->watchdog, alone && !comm->silent ? tn_error() : NULL);
    tn_free(comm);
}

int tn_comm_rank(const tn_comm *comm) {
    return comm->rank;
}

int tn_comm_size(const tn_comm *comm) {
    return comm->size;
}

int tn_comm_local_rank(const tn_comm *comm) {
    return comm->local_rank;
}

int tn_comm_local_size(const tn_comm *comm) {
    return comm->local_size;
}

const char *tn_comm_name(const tn_comm *comm) {
    return comm->device ? comm->device->name : comm->transport->name;
}

void tn_comm_phase(tn_comm *comm, long step, const char *phase) {
    if (comm->watchdog) tn_watchdog_phase(comm->watchdog, step, phase);
}

double tn_comm_waited(const tn_comm *comm) {
    return *comm->waits;
}

/* ---- waiting ---- */

static tn_status wait_until_done(tn_comm *comm, tn_transfer **transfer, double begun) {
    struct timespec nap = {.tv_nsec = NAP_NANOSECONDS};
    for (;;) {
        TN_TRY(comm->transport->test(comm, transfer));
        if (!*transfer) return TN_OK;
        if (comm->watchdog) TN_TRY(tn_watchdog_check(comm->watchdog));
        if (tn_now() - begun < SPIN_SECONDS)
            sched_yield();
        else
            nanosleep(&nap, NULL);
    }
}

tn_status tn_comm_wait(tn_comm *comm, tn_transfer **transfer, const char *what) {
    if (!*transfer) return TN_OK;
    double begun = tn_now();
    if (comm->watchdog) tn_watchdog_enter(comm->watchdog, what, 1);
    tn_status status = wait_until_done(comm, transfer, begun);
    if (comm->watchdog) tn_watchdog_leave(comm->watchdog);
    *comm->waits += tn_now() - begun;
    if (status == TN_ERR_PEER) comm->silent = true;
    return status;
}

/* ---- collectives ---- */

tn_status tn_comm_broadcast(tn_comm *comm, void *data, size_t bytes, const char *what) {
    tn_transfer *transfer = NULL;
    for (size_t at = 0; comm->size > 1 && at < bytes; at += BROADCAST_BYTES) {
        size_t piece = bytes - at < BROADCAST_BYTES ? bytes - at : BROADCAST_BYTES;
        TN_TRY(comm->transport->broadcast(comm, (char *)data + at, piece, &transfer));
        TN_TRY(tn_comm_wait(comm, &transfer, what));
    }
    return TN_OK;
}

tn_status tn_comm_gather_ranges(tn_comm *comm, void *all, size_t size, const int *first, const char *what) {
    size_t *bytes;
    tn_transfer *transfer = NULL;
    if (comm->size == 1) return TN_OK;
    TN_TRY(tn_alloc(&bytes, (size_t)comm->size + 1, sizeof *bytes, what));
    for (int i = 0; i <= comm->size; i++) bytes[i] = (size_t)first[i] * size;
    tn_status status = comm->transport->gather(comm, all, bytes, &transfer);
    if (status == TN_OK) status = tn_comm_wait(comm, &transfer, what);
    tn_free(bytes);
    return status;
}

tn_status tn_comm_gather(tn_comm *comm, const void *mine, size_t bytes, void *all, const char *what) {
    int *first;
    char *own = (char *)all + (size_t)comm->rank * bytes;
    if (own != mine) memcpy(own, mine, bytes);
    if (comm->size == 1) return TN_OK;
    TN_TRY(tn_alloc(&first, (size_t)comm->size + 1, sizeof *first, what));
    for (int i = 0; i <= comm->size; i++) first[i] = i;
    tn_status status = tn_comm_gather_ranges(comm, all, bytes, first, what);
    tn_free(first);
    return status;
}

tn_status tn_comm_barrier(tn_comm *comm, const char *what) {
    return tn_comm_agree(comm, TN_OK, what);
}

/* ---- agreement ---- */

tn_status tn_comm_any(tn_comm *comm, int mine, int *out, const char *what) {
    int *all;
    *out = mine;
    if (comm->size == 1) return TN_OK;
    TN_TRY(tn_alloc(&all, (size_t)comm->size, sizeof *all, what));
    tn_status status = tn_comm_gather(comm, &mine, sizeof mine, all, what);
    for (int i = comm->size - 1; status == TN_OK && i >= 0; i--)
        if (all[i]) *out = all[i];
    tn_free(all);
    return status;
}

static tn_status judge(tn_comm *comm, const verdict *all) {
    int first = 0;
    bool same = true;
    while (first < comm->size && all[first].status == TN_OK) first++;
    if (first == comm->size) return TN_OK;
    comm->agreed = true;
    for (int i = 0; i < comm->size; i++)
        if (all[i].status == TN_OK || strcmp(all[i].message, all[first].message)) same = false;
    tn_status status = (tn_status)all[first].status;
    if (comm->rank != 0) return tn_fail(status, "%s", "");
    if (same) return tn_fail(status, "%s", all[first].message);
    return tn_fail(status, "rank %d (%s): %s", first, all[first].host, all[first].message);
}

tn_status tn_comm_agree(tn_comm *comm, tn_status mine, const char *what) {
    verdict *all;
    if (comm->size == 1) return mine;
    TN_TRY(tn_alloc(&all, (size_t)comm->size, sizeof *all, what));
    verdict *own = &all[comm->rank];
    own->status = (int)mine;
    gethostname(own->host, sizeof own->host - 1);
    if (mine != TN_OK) snprintf(own->message, sizeof own->message, "%s", tn_error());
    tn_status status = tn_comm_gather(comm, own, sizeof *own, all, what);
    if (status == TN_OK) status = judge(comm, all);
    tn_free(all);
    return status;
}

static tn_status compare(tn_comm *comm, char *theirs, const char *text, size_t size, const char *what) {
    memcpy(theirs, text, comm->rank == 0 ? size : 0);
    TN_TRY(tn_comm_broadcast(comm, theirs, size, what));
    tn_status status = TN_OK;
    if (strncmp(theirs, text, size)) {
        size_t at = 0, line = 0;
        for (; theirs[at] == text[at]; at++)
            if (text[at] == '\n') line = at + 1;
        status = tn_fail(TN_ERR_USAGE, "%s differs between ranks: \"%.*s\", on rank 0 \"%.*s\"", what,
                         (int)strcspn(text + line, "\n"), text + line, (int)strcspn(theirs + line, "\n"),
                         theirs + line);
    }
    return tn_comm_agree(comm, status, what);
}

tn_status tn_comm_compare(tn_comm *comm, const char *text, const char *what) {
    uint64_t size = strlen(text) + 1;
    char *theirs;
    if (comm->size == 1) return TN_OK;
    TN_TRY(tn_comm_broadcast(comm, &size, sizeof size, what));
    TN_TRY(tn_alloc(&theirs, size, 1, what));
    tn_status status = compare(comm, theirs, text, size, what);
    tn_free(theirs);
    return status;
}
