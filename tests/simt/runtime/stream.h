/* Streams: queues of operations that are executed when somebody has to wait for them, as late as the program
 * allows or in a random interleaving, by the seed. Nothing else executes them. */
#ifndef SIMT_STREAM_H
#define SIMT_STREAM_H

#include <deque>
#include <functional>
#include <mutex>
#include <string>
#include <vector>

#include "machine.h"

namespace simt {

/* What happened before, per stream: its operations up to this number. */
typedef std::vector<uint64_t> Clock;

struct Stream;
struct Need {
    Stream *stream;
    uint64_t seq;
};
struct HostRange {
    const void *memory = nullptr;
    size_t bytes = 0;
    bool write = false;
};

struct Op {
    std::string what;
    std::function<bool(Op &)> run; /* false: cannot go on yet (another rank is missing) */
    HostRange host;
    uint64_t blocks = 1; /* serial numbers that it needs in the shadow memory */
    /* filled in by enqueue */
    std::vector<Need> needs;
    Clock clock;
    Stream *stream = nullptr;
    uint64_t seq = 0;
    uint32_t first_serial = 0;
};

/* Recorded operations with their order. */
struct Node {
    Op op;
    std::vector<int> after;
};
struct Graph {
    std::vector<Node> nodes;
};
struct Capture {
    Graph *graph;
    Stream *origin;
    bool invalid;
};

struct Stream {
    int id, device;
    bool blocking, legacy = false, destroyed = false, internal = false;
    std::deque<Op> queue;
    uint64_t enqueued = 0, completed = 0;
    Clock last; /* of the last operation enqueued */
    Capture *capture = nullptr;
    std::vector<int> tail; /* nodes that the next captured operation comes after */
};

struct Event {
    bool timing, recorded = false, destroyed = false;
    bool external = false; /* recorded by a graph */
    Need point{nullptr, 0};
    Clock clock;
    Capture *capture = nullptr;
    std::vector<int> nodes;
    double seconds = 0;
};

extern std::mutex machine_lock;

Stream *new_stream(int device, bool blocking);
Stream *find_stream(cudaStream_t handle); /* null: no such stream */
Stream *legacy_stream(int device);
const std::vector<Stream *> &all_streams();

/* Appends to the stream, or to the graph that it is captured into. */
cudaError_t enqueue(Stream &s, Op op);
/* The same for streams of the machine's own, without the rules for the legacy stream. */
uint64_t enqueue_raw(Stream &s, Op op, const std::vector<Need> &needs);
void merge(Clock &into, const Clock &from);
Clock &host_clock();
/* Executes until the stream has completed its first `seq` operations. The lock is held. */
void wait_for(Stream &s, uint64_t seq);
/* Executes some operation, if any can be; for polling. */
bool progress_once();
void wait_device(int device);
/* The clock of everything enqueued on the stream becomes known to the host. */
void join_host(const Clock &clock);
uint64_t operations_done();

/* device.cpp: entry of every API call. Not cudaSuccess: return it. */
cudaError_t api_enter(const char *call);
cudaError_t api_return(cudaError_t error);
int current_device();
cudaError_t &sticky_error(int device);
struct DeviceModel {
    const char *name;
    int major, minor, sms;
    size_t memory, shared_optin, shared_sm;
};
const DeviceModel &device_model();
int device_count();
size_t device_memory_limit();
/* graph.cpp: a call that stream capture forbids. */
cudaError_t refuse_in_capture(const char *call);
bool any_capture();

/* Streams, events and graphs that are not destroyed; handles of cuBLAS. */
size_t live_handles();
size_t live_blas_handles();

#define API_ENTER()                                                                                          \
    std::lock_guard<std::mutex> api_guard(machine_lock);                                                     \
    if (cudaError_t api_error = api_enter(__func__)) return api_return(api_error)

} // namespace simt

#endif
