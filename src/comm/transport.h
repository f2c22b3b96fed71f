/* How bytes travel between ranks: one table per transport. Operations start here and end in `test`; the
 * waiting, with an eye on lost ranks, is done once for all in comm.c. */
#ifndef TN_COMM_TRANSPORT_H
#define TN_COMM_TRANSPORT_H

#include "comm/comm.h"
#include "comm/watchdog.h"

/* An operation under way; NULL when there is none or it is done. Only the transport knows what is in it. */
typedef struct tn_transfer tn_transfer;

typedef struct tn_transport {
    const char *name;
    /* Sets rank, size, local_rank, local_size and state. On failure close is called too. */
    tn_status (*open)(tn_comm *comm);
    void (*close)(tn_comm *comm, bool failed);
    /* Makes `lane` a copy of comm on which operations may be under way independently of comm's. All ranks
     * together; it lasts as long as comm, and takes `close`. */
    tn_status (*split)(tn_comm *comm, tn_comm *lane);
    /* `bytes` bytes of rank 0 to all. */
    tn_status (*broadcast)(tn_comm *comm, void *data, size_t bytes, tn_transfer **out);
    /* Rank i's bytes, from all + first[i] to all + first[i + 1], to all. */
    tn_status (*gather)(tn_comm *comm, void *all, const size_t *first, tn_transfer **out);
    /* To each rank i the bytes of `from` between first[i] and first[i + 1], unless `from` is NULL; from each
     * rank i that sends, to into + places[i], what this rank is sent. places[i] is SIZE_MAX for others. */
    tn_status (*exchange)(tn_comm *comm, const void *from, const size_t *first, void *into,
                          const size_t *places, tn_transfer **out);
    /* Frees the transfer and sets it to NULL once it is done. */
    tn_status (*test)(tn_comm *comm, tn_transfer **transfer);
} tn_transport;

/* How sums travel between the devices of ranks (comm.h); `state` is the transport's. */
#define TN_DEVICE_ID_BYTES    128
#define TN_DEVICE_PLACE_BYTES 32

typedef struct tn_device_transport {
    const char *name;
    /* Names the calling thread's device within its machine. */
    tn_status (*place)(char place[TN_DEVICE_PLACE_BYTES]);
    /* On rank 0: makes what all ranks need to find each other. */
    tn_status (*make_id)(unsigned char id[TN_DEVICE_ID_BYTES]);
    /* Waits for all ranks. */
    tn_status (*open)(const unsigned char id[TN_DEVICE_ID_BYTES], int rank, int ranks, void **state);
    /* With `failed`, or after an abort, nothing waits for other ranks. */
    void (*close)(void *state, bool failed);
    tn_status (*sum)(void *state, void *stream, const tn_device_range *ranges, int count);
    /* `number`: how many joins the work had before. */
    tn_status (*join)(void *state, void *stream, int number);
    /* Seconds that the streams of the last work stood still in its first `joins` joins. */
    double (*waited)(void *state, int joins);
    /* For the watchdog's thread. Whether something went wrong outside of any call; gives up all sums. */
    bool (*broken)(void *state, char *text, size_t size);
    void (*abort)(void *state);
} tn_device_transport;

struct tn_comm {
    const tn_transport *transport;
    const tn_device_transport *device; /* NULL until devices are joined */
    void *device_state;
    tn_device_work device_work; /* being counted */
    int rank, size, local_rank, local_size;
    void *state;           /* the transport's */
    tn_watchdog *watchdog; /* NULL with a single rank */
    bool agreed;           /* all ranks know of a failure and leave together */
    bool silent;           /* a rank is lost, and that is told */
    double waited, *waits; /* waits: where waiting is counted, comm's own or that of what it was split from */
};

/* The registry: the transport for a process that was started as one of `ranks`. TN_ERR_USAGE when this build
 * has none. */
tn_status tn_transport_find(int ranks, const tn_transport **out);

extern const tn_transport tn_transport_none, tn_transport_mpi;

/* The transport between devices. TN_ERR_USAGE when this build has none. */
tn_status tn_transport_find_device(const tn_device_transport **out);

extern const tn_device_transport tn_transport_nccl;

/* Waits until a transfer is done or a rank is lost. */
tn_status tn_comm_wait(tn_comm *comm, tn_transfer **transfer, const char *what);

#endif
