/* NCCL among threads or processes of one machine, through a file in shared memory. A collective is cut into
 * pieces; for each, every rank puts its part into its own buffer and then combines all parts in the order of
 * ranks, so results are the same at every run. A rank that has to wait for others does not block: its
 * operation is tried again. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstring>
#include <memory>

#include "cuda_bf16.h"
#include "memory.h"
#include "nccl.h"
#include "stream.h"
#if SIMT_INSTRUMENTED
#include "shadow.h"
#endif

namespace simt {

constexpr int kMaxRanks = 16;
constexpr size_t kPiece = 1 << 18;

struct Signature {
    uint64_t kind, count, type, op;
};
struct RankBoard {
    std::atomic<int> pid, device;
    std::atomic<uint64_t> published, consumed; /* pieces */
    Signature signature[2];
    char data[2][kPiece];
};
struct Board {
    std::atomic<int> joined, left, aborted;
    RankBoard rank[kMaxRanks];
};

static thread_local int group_depth;

} // namespace simt

struct ncclComm {
    simt::Board *board;
    int ranks, rank;
    uint64_t pieces; /* begun by this rank */
    std::atomic<int> error;
    bool aborted;
};

namespace simt {

enum { kAllReduce = 1, kBroadcast = 2 };

struct Collective {
    ncclComm_t comm;
    int kind, root;
    const char *send;
    char *receive;
    size_t count;
    ncclDataType_t type;
    ncclRedOp_t op;
    size_t done = 0; /* elements */
    bool published = false;
};

static size_t size_of(ncclDataType_t type) {
    switch (type) {
    case ncclInt8:
    case ncclUint8:
        return 1;
    case ncclBfloat16:
        return 2;
    case ncclInt64:
    case ncclUint64:
    case ncclFloat64:
        return 8;
    default:
        return 4;
    }
}

template <class T, class Sum> static void combine(const Collective &c, int buffer, size_t n, char *out) {
    for (size_t i = 0; i < n; i++) {
        Sum total = 0;
        for (int r = 0; r < c.comm->ranks; r++) {
            Sum v = (Sum) reinterpret_cast<const T *>(c.comm->board->rank[r].data[buffer])[i];
            if (r == 0)
                total = v;
            else if (c.op == ncclSum || c.op == ncclAvg)
                total += v;
            else if (c.op == ncclProd)
                total *= v;
            else if (c.op == ncclMax)
                total = v > total ? v : total;
            else
                total = v < total ? v : total;
        }
        if (c.op == ncclAvg) total = total / (Sum)c.comm->ranks;
        reinterpret_cast<T *>(out)[i] = (T)total;
    }
}

static void combine_any(const Collective &c, int buffer, size_t n, char *out) {
    switch (c.type) {
    case ncclInt8:
        return combine<int8_t, int>(c, buffer, n, out);
    case ncclUint8:
        return combine<uint8_t, unsigned>(c, buffer, n, out);
    case ncclInt32:
        return combine<int32_t, int32_t>(c, buffer, n, out);
    case ncclUint32:
        return combine<uint32_t, uint32_t>(c, buffer, n, out);
    case ncclInt64:
        return combine<int64_t, int64_t>(c, buffer, n, out);
    case ncclUint64:
        return combine<uint64_t, uint64_t>(c, buffer, n, out);
    case ncclFloat64:
        return combine<double, double>(c, buffer, n, out);
    case ncclBfloat16:
        return combine<__nv_bfloat16, float>(c, buffer, n, out);
    default:
        return combine<float, float>(c, buffer, n, out);
    }
}

static bool alive(const Board &board, int rank) {
    int pid = board.rank[rank].pid;
    return pid == 0 || kill(pid, 0) == 0 || errno != ESRCH;
}

static void check_signatures(const Collective &c, int buffer) {
    const Signature &mine = c.comm->board->rank[c.comm->rank].signature[buffer];
    for (int r = 0; r < c.comm->ranks; r++) {
        const Signature &other = c.comm->board->rank[r].signature[buffer];
        if (memcmp(&mine, &other, sizeof mine) != 0)
            report("RANKS DISAGREE", Site{}, nullptr,
                   "rank %d does collective %llu of %llu elements of type %llu, rank %d %llu of %llu of type "
                   "%llu",
                   c.comm->rank, (unsigned long long)mine.kind, (unsigned long long)mine.count,
                   (unsigned long long)mine.type, r, (unsigned long long)other.kind,
                   (unsigned long long)other.count, (unsigned long long)other.type);
    }
}

static bool all_have(const Collective &c, std::atomic<uint64_t> RankBoard::*what, uint64_t least) {
    for (int r = 0; r < c.comm->ranks; r++) {
        if ((c.comm->board->rank[r].*what).load() >= least) continue;
        if (!alive(*c.comm->board, r)) c.comm->error = ncclRemoteError;
        return false;
    }
    return true;
}

static void publish(Collective &c, size_t n, uint64_t piece) {
    RankBoard &mine = c.comm->board->rank[c.comm->rank];
    int buffer = (int)(piece % 2);
    mine.signature[buffer] = Signature{(uint64_t)c.kind, c.count, (uint64_t)c.type,
                                       (uint64_t)(c.kind == kBroadcast ? c.root : c.op)};
    if (c.kind == kAllReduce || c.comm->rank == c.root) {
        const char *from = c.send + c.done * size_of(c.type);
#if SIMT_INSTRUMENTED
        shadow_range_load(from, n * size_of(c.type));
#endif
        memcpy(mine.data[buffer], from, n * size_of(c.type));
    }
    mine.published = piece + 1;
    c.published = true;
}

/* One try; true when the collective is finished. */
static bool advance(Collective &c) {
    ncclComm_t comm = c.comm;
    RankBoard &mine = comm->board->rank[comm->rank];
    size_t size = size_of(c.type), per_piece = kPiece / size;
    while (c.done < c.count) {
        if (comm->aborted || comm->board->aborted) {
            if (!comm->aborted) comm->error = ncclRemoteError;
            return comm->aborted;
        }
        size_t n = c.count - c.done < per_piece ? c.count - c.done : per_piece;
        uint64_t piece = comm->pieces;
        if (!c.published) {
            if (piece > 0 && !all_have(c, &RankBoard::consumed, piece - 1)) return false;
            publish(c, n, piece);
        }
        if (!all_have(c, &RankBoard::published, piece + 1)) return false;
        check_signatures(c, (int)(piece % 2));
        char *out = c.receive + c.done * size;
#if SIMT_INSTRUMENTED
        shadow_range_store(out, n * size);
#endif
        if (c.kind == kAllReduce)
            combine_any(c, (int)(piece % 2), n, out);
        else
            memcpy(out, comm->board->rank[c.root].data[piece % 2], n * size);
        mine.consumed = piece + 1;
        comm->pieces++;
        c.published = false;
        c.done += n;
    }
    c.done = 0; /* a graph may come back to it */
    return true;
}

static ncclResult_t submit_collective(Collective c, cudaStream_t stream) {
    if (!c.comm || c.root < 0 || c.root >= c.comm->ranks) return ncclInvalidArgument;
    if (c.comm->aborted) return ncclInvalidUsage;
    if (!is_device_address(c.send) || !is_device_address(c.receive))
        report("HOST POINTER", Site{}, __builtin_return_address(0),
               "NCCL is given %p and %p: not device memory", (const void *)c.send, (void *)c.receive);
    std::lock_guard<std::mutex> guard(machine_lock);
    Stream *s = find_stream(stream);
    if (!s) return ncclInvalidArgument;
    auto state = std::make_shared<Collective>(c);
    Op op;
    op.what = c.kind == kAllReduce ? "ncclAllReduce" : "ncclBroadcast";
    op.run = [state](Op &) { return advance(*state); };
    return enqueue(*s, std::move(op)) ? ncclUnhandledCudaError : ncclSuccess;
}

static Board *open_board(const ncclUniqueId &id, char *path, size_t size) {
    unsigned long long a, b;
    memcpy(&a, id.internal, 8);
    memcpy(&b, id.internal + 8, 8);
    snprintf(path, size, "/simt-%016llx%016llx", a, b);
    int fd = shm_open(path, O_RDWR | O_CREAT, 0600);
    if (fd < 0) return nullptr;
    void *p = ftruncate(fd, sizeof(Board))
                  ? MAP_FAILED
                  : mmap(nullptr, sizeof(Board), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    return p == MAP_FAILED ? nullptr : static_cast<Board *>(p);
}

} // namespace simt

using namespace simt;

extern "C" {

ncclResult_t ncclGetVersion(int *version) {
    *version = NCCL_VERSION_CODE;
    return ncclSuccess;
}

ncclResult_t ncclGetUniqueId(ncclUniqueId *id) {
    memset(id, 0, sizeof *id);
    int fd = open("/dev/urandom", O_RDONLY);
    bool ok = fd >= 0 && read(fd, id->internal, 16) == 16;
    if (fd >= 0) close(fd);
    return ok ? ncclSuccess : ncclSystemError;
}

ncclResult_t ncclCommInitRank(ncclComm_t *out, int ranks, ncclUniqueId id, int rank) {
    *out = nullptr;
    if (ranks < 1 || ranks > kMaxRanks || rank < 0 || rank >= ranks) return ncclInvalidArgument;
    char path[64];
    Board *board = open_board(id, path, sizeof path);
    if (!board) return ncclSystemError;
    int device = -1;
    if (cudaGetDevice(&device)) return ncclUnhandledCudaError;
    for (int r = 0; r < ranks; r++)
        if (r != rank && board->rank[r].pid == getpid() && board->rank[r].device == device)
            return ncclInvalidUsage;
    board->rank[rank].device = device;
    board->rank[rank].pid = getpid();
    board->joined++;
    while (group_depth == 0 && board->joined < ranks) {
        if (board->aborted) return ncclRemoteError;
        usleep(200);
    }
    if (rank == 0 && group_depth == 0) shm_unlink(path);
    *out = new ncclComm{board, ranks, rank, 0, {ncclSuccess}, false};
    return ncclSuccess;
}

ncclResult_t ncclCommDestroy(ncclComm_t comm) {
    if (!comm) return ncclInvalidArgument;
    cudaDeviceSynchronize();
    comm->board->left++;
    return ncclSuccess; /* operations may still refer to it */
}

ncclResult_t ncclCommFinalize(ncclComm_t comm) {
    return comm ? ncclSuccess : ncclInvalidArgument;
}

ncclResult_t ncclCommAbort(ncclComm_t comm) {
    if (!comm) return ncclInvalidArgument;
    comm->aborted = true;
    comm->board->aborted = 1;
    return ncclSuccess;
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t *error) {
    if (!comm) return ncclInvalidArgument;
    for (int r = 0; r < comm->ranks && !comm->error; r++)
        if (!comm->board->left && !alive(*comm->board, r)) comm->error = ncclRemoteError;
    *error = (ncclResult_t)(int)comm->error;
    return ncclSuccess;
}

ncclResult_t ncclCommCount(ncclComm_t comm, int *count) {
    *count = comm->ranks;
    return ncclSuccess;
}

ncclResult_t ncclCommUserRank(ncclComm_t comm, int *rank) {
    *rank = comm->rank;
    return ncclSuccess;
}

/* Nothing waits for other ranks before a stream is waited for, so a group has nothing to put off. */
ncclResult_t ncclGroupStart(void) {
    group_depth++;
    return ncclSuccess;
}

ncclResult_t ncclGroupEnd(void) {
    if (group_depth == 0) return ncclInvalidUsage;
    group_depth--;
    return ncclSuccess;
}

const char *ncclGetErrorString(ncclResult_t result) {
    static const char *const texts[] = {"no error",
                                        "unhandled cuda error",
                                        "unhandled system error",
                                        "internal error",
                                        "invalid argument",
                                        "invalid usage",
                                        "remote process exited or there was a network error",
                                        "NCCL operation in progress"};
    return (unsigned)result < 8 ? texts[result] : "unknown result code";
}

const char *ncclGetLastError(ncclComm_t) {
    return "";
}

ncclResult_t ncclAllReduce(const void *send, void *receive, size_t count, ncclDataType_t type, ncclRedOp_t op,
                           ncclComm_t comm, cudaStream_t stream) {
    Collective c{comm,  kAllReduce, 0, static_cast<const char *>(send), static_cast<char *>(receive),
                 count, type,       op};
    return submit_collective(c, stream);
}

ncclResult_t ncclBroadcast(const void *send, void *receive, size_t count, ncclDataType_t type, int root,
                           ncclComm_t comm, cudaStream_t stream) {
    Collective c{comm,  kBroadcast, root,   static_cast<const char *>(send), static_cast<char *>(receive),
                 count, type,       ncclSum};
    return submit_collective(c, stream);
}

} // extern "C"
