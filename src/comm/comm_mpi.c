/* Ranks joined by MPI: its non-blocking collectives, in bytes. Built only where MPI is installed. */
#include <limits.h>
#include <mpi.h>

#include "base/memory.h"
#include "comm/transport.h"

typedef struct mpi_state {
    MPI_Comm world;
    bool initialised; /* by us: ours to finalise */
    bool lane;
} mpi_state;

struct tn_transfer {
    MPI_Request request;
    int *counts; /* MPI reads them until the operation ends */
};

static tn_status fail(int code, const char *call) {
    char text[MPI_MAX_ERROR_STRING] = "";
    int length;
    MPI_Error_string(code, text, &length);
    return tn_fail(TN_ERR_PEER, "%s: %s", call, text);
}

#define TRY_MPI(call)                                                                                        \
    do {                                                                                                     \
        int try_code = (call);                                                                               \
        if (try_code != MPI_SUCCESS) return fail(try_code, #call);                                           \
    } while (0)

static tn_status mpi_open(tn_comm *comm) {
    mpi_state *state;
    int started, level, error = MPI_SUCCESS;
    MPI_Comm local;
    TN_TRY(tn_alloc(&state, 1, sizeof *state, "MPI"));
    state->world = MPI_COMM_NULL;
    comm->state = state;
    TRY_MPI(MPI_Initialized(&started));
    if (!started) error = MPI_Init_thread(NULL, NULL, MPI_THREAD_FUNNELED, &level);
    if (error != MPI_SUCCESS) return tn_fail(TN_ERR_PEER, "MPI_Init_thread failed (%d)", error);
    state->initialised = !started;
    TRY_MPI(MPI_Comm_dup(MPI_COMM_WORLD, &state->world));
    TRY_MPI(MPI_Comm_set_errhandler(state->world, MPI_ERRORS_RETURN));
    TRY_MPI(MPI_Comm_rank(state->world, &comm->rank));
    TRY_MPI(MPI_Comm_size(state->world, &comm->size));
    TRY_MPI(MPI_Comm_split_type(state->world, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &local));
    TRY_MPI(MPI_Comm_rank(local, &comm->local_rank));
    TRY_MPI(MPI_Comm_size(local, &comm->local_size));
    TRY_MPI(MPI_Comm_free(&local));
    return TN_OK;
}

static tn_status mpi_split(tn_comm *comm, tn_comm *lane) {
    mpi_state *state = comm->state, *copy;
    TN_TRY(tn_alloc(&copy, 1, sizeof *copy, "MPI"));
    *lane = *comm;
    lane->state = copy;
    copy->lane = true;
    TRY_MPI(MPI_Comm_dup(state->world, &copy->world));
    return TN_OK;
}

/* After a failure the other ranks may not come: nothing that waits for them is called. The process ends
 * without MPI_Finalize, at which mpirun ends the others. Lanes are left to MPI_Finalize. */
static void mpi_close(tn_comm *comm, bool failed) {
    mpi_state *state = comm->state;
    if (!state) return;
    if (!failed && !state->lane && state->world != MPI_COMM_NULL) MPI_Comm_free(&state->world);
    if (!failed && state->initialised) MPI_Finalize();
    tn_free(state);
}

static void free_transfer(tn_transfer **transfer) {
    tn_free((*transfer)->counts);
    tn_free(*transfer);
    *transfer = NULL;
}

/* An empty transfer with room for `counts` numbers. */
static tn_status new_transfer(size_t counts, tn_transfer **out) {
    TN_TRY(tn_alloc(out, 1, sizeof **out, "message"));
    tn_status status = tn_alloc(&(*out)->counts, counts, sizeof(int), "message");
    if (status != TN_OK) free_transfer(out);
    return status;
}

static tn_status begun(int code, const char *call, tn_transfer **transfer) {
    if (code == MPI_SUCCESS) return TN_OK;
    free_transfer(transfer);
    return fail(code, call);
}

static tn_status check_size(size_t bytes) {
    if (bytes <= INT_MAX) return TN_OK;
    return tn_fail(TN_ERR_USAGE, "%zu bytes in one MPI message, more than the %d that it can count", bytes,
                   INT_MAX);
}

static tn_status mpi_broadcast(tn_comm *comm, void *data, size_t bytes, tn_transfer **out) {
    mpi_state *state = comm->state;
    TN_TRY(check_size(bytes));
    TN_TRY(new_transfer(0, out));
    return begun(MPI_Ibcast(data, (int)bytes, MPI_BYTE, 0, state->world, &(*out)->request), "MPI_Ibcast",
                 out);
}

static tn_status mpi_gather(tn_comm *comm, void *all, const size_t *first, tn_transfer **out) {
    mpi_state *state = comm->state;
    int size = comm->size;
    TN_TRY(check_size(first[size]));
    TN_TRY(new_transfer(2 * (size_t)size, out));
    int *counts = (*out)->counts, *places = counts + size;
    for (int i = 0; i < size; i++) {
        counts[i] = (int)(first[i + 1] - first[i]);
        places[i] = (int)first[i];
    }
    return begun(MPI_Iallgatherv(MPI_IN_PLACE, 0, MPI_DATATYPE_NULL, all, counts, places, MPI_BYTE,
                                 state->world, &(*out)->request),
                 "MPI_Iallgatherv", out);
}

static tn_status mpi_exchange(tn_comm *comm, const void *from, const size_t *first, void *into,
                              const size_t *places, tn_transfer **out) {
    mpi_state *state = comm->state;
    int size = comm->size;
    size_t own = first[comm->rank + 1] - first[comm->rank], most = first[size];
    for (int i = 0; i < size; i++)
        if (places[i] != SIZE_MAX && places[i] + own > most) most = places[i] + own;
    TN_TRY(check_size(most));
    TN_TRY(new_transfer(4 * (size_t)size, out));
    int *sends = (*out)->counts, *send_places = sends + size, *receives = sends + 2 * size,
        *receive_places = sends + 3 * size;
    for (int i = 0; i < size; i++) {
        sends[i] = from ? (int)(first[i + 1] - first[i]) : 0;
        send_places[i] = (int)first[i];
        receives[i] = places[i] != SIZE_MAX ? (int)own : 0;
        receive_places[i] = places[i] != SIZE_MAX ? (int)places[i] : 0;
    }
    /* Who sends nothing gives a buffer all the same, but not that of the receives: equal buffers would mean
     * "in place" to Open MPI. */
    return begun(MPI_Ialltoallv(from ? from : sends, sends, send_places, MPI_BYTE, into, receives,
                                receive_places, MPI_BYTE, state->world, &(*out)->request),
                 "MPI_Ialltoallv", out);
}

static tn_status mpi_test(tn_comm *comm, tn_transfer **transfer) {
    int done;
    (void)comm;
    TRY_MPI(MPI_Test(&(*transfer)->request, &done, MPI_STATUS_IGNORE));
    if (done) free_transfer(transfer);
    return TN_OK;
}

const tn_transport tn_transport_mpi = {.name = "mpi",
                                       .open = mpi_open,
                                       .close = mpi_close,
                                       .split = mpi_split,
                                       .broadcast = mpi_broadcast,
                                       .gather = mpi_gather,
                                       .exchange = mpi_exchange,
                                       .test = mpi_test};
