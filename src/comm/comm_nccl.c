/* Sums between GPUs by NCCL: one communicator and one stream for all of them, so that their order is the one
 * in which they were issued. Built only where NCCL and MPI are there. */
#include <cuda_runtime_api.h>
#include <nccl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "base/memory.h"
#include "comm/transport.h"

/* When the computing stream came to a join, and when it went on. */
typedef struct mark {
    cudaEvent_t reached, passed;
} mark;

typedef struct nccl_state {
    ncclComm_t comm;
    atomic_bool aborted;
    cudaStream_t stream;
    cudaEvent_t ready, done; /* what is to be summed is there; it is summed */
    mark *marks;
    size_t mark_count, mark_capacity;
} nccl_state;

static tn_status cuda_failed(const char *call, cudaError_t error) {
    (void)cudaGetLastError();
    return tn_fail(TN_ERR_DEVICE, "%.*s failed: %s (%s)", (int)strcspn(call, "("), call,
                   cudaGetErrorString(error), cudaGetErrorName(error));
}

static tn_status nccl_failed(const char *call, ncclResult_t result, ncclComm_t comm) {
    const char *detail = ncclGetLastError(comm);
    bool more = detail && detail[0];
    return tn_fail(TN_ERR_DEVICE, "%.*s failed: %s%s%.*s; NCCL_DEBUG=INFO tells more",
                   (int)strcspn(call, "("), call, ncclGetErrorString(result), more ? ": " : "",
                   more ? (int)strcspn(detail, "\n") : 0, more ? detail : "");
}

#define TRY_CUDA(call)                                                                                       \
    do {                                                                                                     \
        cudaError_t try_error = (call);                                                                      \
        if (try_error != cudaSuccess) return cuda_failed(#call, try_error);                                  \
    } while (0)
#define TRY_NCCL(comm, call)                                                                                 \
    do {                                                                                                     \
        ncclResult_t try_result = (call);                                                                    \
        if (try_result != ncclSuccess) return nccl_failed(#call, try_result, comm);                          \
    } while (0)

static tn_status nccl_place(char place[TN_DEVICE_PLACE_BYTES]) {
    int device;
    TRY_CUDA(cudaGetDevice(&device));
    TRY_CUDA(cudaDeviceGetPCIBusId(place, TN_DEVICE_PLACE_BYTES, device));
    return TN_OK;
}

static tn_status nccl_make_id(unsigned char id[TN_DEVICE_ID_BYTES]) {
    ncclUniqueId unique;
    _Static_assert(sizeof unique == TN_DEVICE_ID_BYTES, "NCCL's id has another size");
    TRY_NCCL(NULL, ncclGetUniqueId(&unique));
    memcpy(id, &unique, sizeof unique);
    return TN_OK;
}

static void nccl_close(void *context, bool failed) {
    nccl_state *s = context;
    if (!s) return;
    /* What cannot be undone in order was told before, or the process is about to end. */
    if (s->comm && !s->aborted) (void)(failed ? ncclCommAbort(s->comm) : ncclCommDestroy(s->comm));
    for (size_t i = 0; i < s->mark_count; i++) {
        if (s->marks[i].reached) (void)cudaEventDestroy(s->marks[i].reached);
        if (s->marks[i].passed) (void)cudaEventDestroy(s->marks[i].passed);
    }
    if (s->ready) (void)cudaEventDestroy(s->ready);
    if (s->done) (void)cudaEventDestroy(s->done);
    if (s->stream) (void)cudaStreamDestroy(s->stream);
    (void)cudaGetLastError();
    tn_free(s->marks);
    tn_free(s);
}

static tn_status start(nccl_state *s, const unsigned char *id, int rank, int ranks) {
    ncclUniqueId unique;
    int least, greatest;
    memcpy(&unique, id, sizeof unique);
    TRY_CUDA(cudaEventCreateWithFlags(&s->ready, cudaEventDisableTiming));
    TRY_CUDA(cudaEventCreateWithFlags(&s->done, cudaEventDisableTiming));
    /* Ahead of the computation, which has more work than it needs to fill the device. */
    TRY_CUDA(cudaDeviceGetStreamPriorityRange(&least, &greatest));
    TRY_CUDA(cudaStreamCreateWithPriority(&s->stream, cudaStreamNonBlocking, greatest));
    TRY_NCCL(NULL, ncclCommInitRank(&s->comm, ranks, unique, rank));
    return TN_OK;
}

static tn_status nccl_open(const unsigned char id[TN_DEVICE_ID_BYTES], int rank, int ranks, void **state) {
    nccl_state *s;
    TN_TRY(tn_alloc(&s, 1, sizeof *s, "NCCL"));
    tn_status status = start(s, id, rank, ranks);
    if (status == TN_OK)
        *state = s;
    else
        nccl_close(s, true);
    return status;
}

/* ---- sums ---- */

static ncclResult_t issue(nccl_state *s, const tn_device_range *r) {
    static const ncclDataType_t types[] = {ncclFloat32, ncclFloat64, ncclInt32};
    ncclRedOp_t op = r->type == TN_DEVICE_FLAGS ? ncclMax : ncclSum;
    return ncclAllReduce(r->data, r->data, r->count, types[r->type], op, s->comm, s->stream);
}

static tn_status nccl_sum(void *context, void *stream, const tn_device_range *ranges, int count) {
    nccl_state *s = context;
    ncclResult_t result = ncclSuccess;
    if (s->aborted) return tn_fail(TN_ERR_PEER, "NCCL was given up as a rank is lost");
    TRY_CUDA(cudaEventRecord(s->ready, stream));
    TRY_CUDA(cudaStreamWaitEvent(s->stream, s->ready, 0));
    TRY_NCCL(s->comm, ncclGroupStart());
    for (int i = 0; result == ncclSuccess && i < count; i++)
        if (ranges[i].count > 0) result = issue(s, &ranges[i]);
    ncclResult_t ended = ncclGroupEnd();
    TRY_NCCL(s->comm, result);
    TRY_NCCL(s->comm, ended);
    return TN_OK;
}

static tn_status make_mark(nccl_state *s, int number) {
    if ((size_t)number < s->mark_count) return TN_OK;
    TN_TRY(tn_grow(&s->marks, &s->mark_capacity, (size_t)number + 1, sizeof *s->marks, "NCCL"));
    mark *m = &s->marks[s->mark_count++];
    *m = (mark){0};
    TRY_CUDA(cudaEventCreate(&m->reached));
    TRY_CUDA(cudaEventCreate(&m->passed));
    return TN_OK;
}

/* A time that is taken again whenever the graph, if there is one, is replayed. */
static tn_status take_time(cudaEvent_t event, cudaStream_t stream) {
    enum cudaStreamCaptureStatus status;
    TRY_CUDA(cudaStreamIsCapturing(stream, &status));
    TRY_CUDA(cudaEventRecordWithFlags(event, stream,
                                      status == cudaStreamCaptureStatusActive ? cudaEventRecordExternal : 0));
    return TN_OK;
}

static tn_status nccl_join(void *context, void *stream, int number) {
    nccl_state *s = context;
    TN_TRY(make_mark(s, number));
    TRY_CUDA(cudaEventRecord(s->done, s->stream));
    TN_TRY(take_time(s->marks[number].reached, stream));
    TRY_CUDA(cudaStreamWaitEvent(stream, s->done, 0));
    return take_time(s->marks[number].passed, stream);
}

static double nccl_waited(void *context, int joins) {
    const nccl_state *s = context;
    double seconds = 0;
    for (int i = 0; i < joins && (size_t)i < s->mark_count; i++) {
        float ms = 0;
        if (cudaEventElapsedTime(&ms, s->marks[i].reached, s->marks[i].passed) == cudaSuccess)
            seconds += 1e-3 * (double)ms;
        else
            (void)cudaGetLastError();
    }
    return seconds;
}

/* ---- for the watchdog ---- */

static bool nccl_broken(void *context, char *text, size_t size) {
    nccl_state *s = context;
    ncclResult_t error = ncclSuccess, asked = ncclCommGetAsyncError(s->comm, &error);
    if (asked != ncclSuccess) error = asked;
    if (error == ncclSuccess || error == ncclInProgress) return false;
    snprintf(text, size, "NCCL: %s", ncclGetErrorString(error));
    return true;
}

static void nccl_abort(void *context) {
    nccl_state *s = context;
    if (atomic_exchange(&s->aborted, true)) return;
    (void)ncclCommAbort(s->comm);
}

const tn_device_transport tn_transport_nccl = {.name = "nccl",
                                               .place = nccl_place,
                                               .make_id = nccl_make_id,
                                               .open = nccl_open,
                                               .close = nccl_close,
                                               .sum = nccl_sum,
                                               .join = nccl_join,
                                               .waited = nccl_waited,
                                               .broken = nccl_broken,
                                               .abort = nccl_abort};
