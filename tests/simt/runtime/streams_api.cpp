/* Streams, events, graphs and launches of the runtime interface. */
#include <time.h>

#include <algorithm>
#include <map>

#include "memory.h"
#include "stream.h"

namespace simt {

struct GraphExec {
    Graph graph;
    std::vector<Stream *> lanes; /* a stream of the machine per chain of nodes */
    std::vector<int> lane_of;    /* of each node */
};

static std::vector<Event *> events;
static std::vector<Capture *> captures; /* those that have not ended */
static std::vector<Graph *> graphs;
static std::vector<GraphExec *> execs;
static std::map<const void *, int> dynamic_limit;
static uint64_t launches;

static double now() {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

bool any_capture() {
    return !captures.empty();
}

cudaError_t refuse_in_capture(const char *) {
    for (Capture *c : captures) c->invalid = true;
    return cudaErrorStreamCaptureUnsupported;
}

static Event *find_event(cudaEvent_t handle) {
    for (Event *e : events)
        if (e == reinterpret_cast<Event *>(handle)) return e->destroyed ? nullptr : e;
    return nullptr;
}

template <class T> static bool known(const std::vector<T *> &list, const void *handle) {
    return std::find(list.begin(), list.end(), handle) != list.end();
}

size_t live_handles() {
    std::lock_guard<std::mutex> guard(machine_lock);
    size_t live = graphs.size() + execs.size();
    for (const Event *e : events) live += !e->destroyed;
    for (const Stream *s : all_streams()) live += !s->destroyed && !s->internal && !s->legacy;
    return live;
}

/* Kernel launches */

static cudaError_t launch_error(const LaunchRequest &r) {
    uint64_t threads = (uint64_t)r.block.x * r.block.y * r.block.z;
    if (!threads || threads > 1024 || r.block.x > 1024 || r.block.y > 1024 || r.block.z > 64)
        return cudaErrorInvalidConfiguration;
    if (!r.grid.x || !r.grid.y || !r.grid.z || r.grid.x > 2147483647u || r.grid.y > 65535 || r.grid.z > 65535)
        return cudaErrorInvalidConfiguration;
    auto found = dynamic_limit.find(r.function);
    size_t fixed = static_shared_of(r.function);
    size_t limit =
        found == dynamic_limit.end() ? 49152 - std::min<size_t>(fixed, 49152) : (size_t)found->second;
    if (r.shared > limit || r.shared + fixed > device_model().shared_optin) return cudaErrorInvalidValue;
    return cudaSuccess;
}

static void check_pointers(const LaunchRequest &r) {
    for (size_t i = 0; i < r.pointers.size(); i++) {
        const void *p = r.pointers[i];
        if (!p || is_pinned(p, 1)) continue;
        const Allocation *a = allocation_at((uintptr_t)p);
        char where[256];
        describe_address((uintptr_t)p, where, sizeof where);
        if (a && a->freed)
            report("USE AFTER FREE", Site{r.file, r.line}, nullptr, "kernel %s is given %s", r.kernel, where);
        if (!is_device_address(p))
            report("HOST POINTER", Site{r.file, r.line}, nullptr,
                   "pointer argument %zu of kernel %s is %s, which is not device memory", i + 1, r.kernel,
                   where);
    }
}

static uint64_t expected_flops;

void submit(LaunchRequest &&request, cudaStream_t handle) {
    std::lock_guard<std::mutex> guard(machine_lock);
    if (cudaError_t error = api_enter("launch")) {
        api_return(error);
        return;
    }
    Stream *s = find_stream(handle);
    bool here = s && s->device == current_device();
    cudaError_t error = here ? launch_error(request) : cudaErrorInvalidResourceHandle;
    if (error) {
        api_return(error);
        return;
    }
    request.fma_flops = expected_flops;
    expected_flops = 0;
    Op op;
    op.what = request.kernel;
    op.blocks = (uint64_t)request.grid.x * request.grid.y * request.grid.z;
    op.run = [r = std::move(request)](Op &self) {
        check_pointers(r);
        Launch launch{r, ++launches, self.first_serial, self.blocks};
        run_grid(launch);
        return true;
    };
    api_return(enqueue(*s, std::move(op)));
}

/* Graphs */

static void assign_lanes(GraphExec &exec, int device) {
    std::vector<int> last; /* node at the end of each lane */
    for (size_t i = 0; i < exec.graph.nodes.size(); i++) {
        int lane = -1;
        for (int before : exec.graph.nodes[i].after) {
            int candidate = exec.lane_of[(size_t)before];
            if (last[(size_t)candidate] == before) lane = candidate;
        }
        if (lane < 0) {
            lane = (int)last.size();
            last.push_back(0);
            exec.lanes.push_back(new_stream(device, false));
            exec.lanes.back()->internal = true;
        }
        last[(size_t)lane] = (int)i;
        exec.lane_of.push_back(lane);
    }
}

static Op marker(const char *what) {
    Op op;
    op.what = what;
    op.run = [](Op &) { return true; };
    return op;
}

/* Puts the nodes onto the lanes, between two markers on the stream that the graph is launched on. */
static cudaError_t launch_graph(GraphExec &exec, Stream &s) {
    if (cudaError_t error = enqueue(s, marker("the start of a graph"))) return error;
    uint64_t fork = s.enqueued;
    Clock forked = s.last;
    std::vector<uint64_t> seq(exec.graph.nodes.size());
    for (size_t i = 0; i < exec.graph.nodes.size(); i++) {
        const Node &node = exec.graph.nodes[i];
        Stream &lane = *exec.lanes[(size_t)exec.lane_of[i]];
        Op op = node.op;
        op.clock = forked;
        std::vector<Need> needs = {Need{&s, fork}};
        for (int before : node.after) {
            Stream &other = *exec.lanes[(size_t)exec.lane_of[(size_t)before]];
            needs.push_back(Need{&other, seq[(size_t)before]});
            if (&other == &lane) continue;
            for (const Op &queued : other.queue)
                if (queued.seq == seq[(size_t)before]) merge(op.clock, queued.clock);
        }
        seq[i] = enqueue_raw(lane, std::move(op), needs);
    }
    Op join = marker("the end of a graph");
    std::vector<Need> needs;
    for (Stream *lane : exec.lanes) {
        needs.push_back(Need{lane, lane->enqueued});
        merge(join.clock, lane->last);
    }
    enqueue_raw(s, std::move(join), needs);
    return cudaSuccess;
}

/* Have all streams that took part come back to the origin? */
static bool joined(const Capture &c) {
    const std::vector<Node> &nodes = c.graph->nodes;
    std::vector<char> reached(nodes.size());
    for (int i : c.origin->tail) reached[(size_t)i] = 1;
    for (size_t i = nodes.size(); i-- > 0;)
        if (reached[i])
            for (int before : nodes[i].after) reached[(size_t)before] = 1;
    return std::find(reached.begin(), reached.end(), 0) == reached.end();
}

static void end_capture(Capture *c) {
    for (Stream *s : all_streams())
        if (s->capture == c) {
            s->capture = nullptr;
            s->tail.clear();
        }
    for (Event *e : events)
        if (e->capture == c) {
            e->capture = nullptr;
            e->nodes.clear();
        }
    captures.erase(std::find(captures.begin(), captures.end(), c));
}

static cudaError_t create_stream(cudaStream_t *out, unsigned flags) {
    if (flags > cudaStreamNonBlocking) return cudaErrorInvalidValue;
    *out = reinterpret_cast<cudaStream_t>(new_stream(current_device(), flags != cudaStreamNonBlocking));
    return cudaSuccess;
}

static cudaError_t create_event(cudaEvent_t *out, unsigned flags) {
    Event *e = new Event;
    e->timing = !(flags & cudaEventDisableTiming);
    events.push_back(e);
    *out = reinterpret_cast<cudaEvent_t>(e);
    return cudaSuccess;
}

} // namespace simt

using namespace simt;

extern "C" {

cudaError_t cudaStreamCreate(cudaStream_t *out) {
    API_ENTER();
    return api_return(create_stream(out, 0));
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *out, unsigned int flags) {
    API_ENTER();
    return api_return(create_stream(out, flags));
}

cudaError_t cudaStreamCreateWithPriority(cudaStream_t *out, unsigned int flags, int) {
    API_ENTER();
    return api_return(create_stream(out, flags));
}

cudaError_t cudaStreamDestroy(cudaStream_t handle) {
    API_ENTER();
    Stream *s = find_stream(handle);
    if (!s || s->legacy) return api_return(cudaErrorInvalidResourceHandle);
    s->destroyed = true;
    return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t handle) {
    API_ENTER();
    Stream *s = find_stream(handle);
    if (!s) return api_return(cudaErrorInvalidResourceHandle);
    if (s->capture || (s->legacy && any_capture())) return api_return(refuse_in_capture(__func__));
    Clock clock = s->last;
    wait_for(*s, s->enqueued);
    join_host(clock);
    return api_return(sticky_error(s->device));
}

cudaError_t cudaStreamQuery(cudaStream_t handle) {
    API_ENTER();
    Stream *s = find_stream(handle);
    if (!s) return api_return(cudaErrorInvalidResourceHandle);
    if (s->capture) return api_return(refuse_in_capture(__func__));
    if (s->completed < s->enqueued) {
        progress_once();
        if (s->completed < s->enqueued) return cudaErrorNotReady;
    }
    join_host(s->last);
    return api_return(sticky_error(s->device));
}

cudaError_t cudaDeviceSynchronize(void) {
    API_ENTER();
    if (any_capture()) return api_return(refuse_in_capture(__func__));
    wait_device(current_device());
    check_red_zones();
    return api_return(sticky_error(current_device()));
}

cudaError_t cudaDeviceReset(void) {
    API_ENTER();
    wait_device(current_device());
    check_red_zones();
    return cudaSuccess;
}

cudaError_t cudaLaunchHostFunc(cudaStream_t handle, cudaHostFn_t fn, void *user) {
    API_ENTER();
    Stream *s = find_stream(handle);
    if (!s) return api_return(cudaErrorInvalidResourceHandle);
    Op op;
    op.what = __func__;
    op.run = [=](Op &) {
        fn(user);
        return true;
    };
    return api_return(enqueue(*s, std::move(op)));
}

cudaError_t cudaEventCreate(cudaEvent_t *out) {
    API_ENTER();
    return api_return(create_event(out, 0));
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *out, unsigned int flags) {
    API_ENTER();
    return api_return(create_event(out, flags));
}

cudaError_t cudaEventDestroy(cudaEvent_t handle) {
    API_ENTER();
    Event *e = find_event(handle);
    if (!e) return api_return(cudaErrorInvalidResourceHandle);
    e->destroyed = true;
    return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t handle, cudaStream_t stream) {
    API_ENTER();
    Event *e = find_event(handle);
    Stream *s = find_stream(stream);
    if (!e || !s) return api_return(cudaErrorInvalidResourceHandle);
    e->recorded = true;
    if (s->capture) {
        if (s->capture->invalid) return api_return(cudaErrorStreamCaptureInvalidated);
        e->capture = s->capture;
        e->nodes = s->tail;
        return cudaSuccess;
    }
    Op op;
    op.what = __func__;
    op.run = [e](Op &) {
        e->seconds = now();
        return true;
    };
    if (cudaError_t error = enqueue(*s, std::move(op))) return api_return(error);
    e->external = false;
    e->capture = nullptr;
    e->nodes.clear();
    e->point = Need{s, s->enqueued};
    e->clock = s->last;
    return cudaSuccess;
}

/* External: a node of the graph that takes the time whenever the graph runs. Here for cudaEventElapsedTime
 * alone. */
cudaError_t cudaEventRecordWithFlags(cudaEvent_t handle, cudaStream_t stream, unsigned int flags) {
    if (flags == cudaEventRecordDefault) return cudaEventRecord(handle, stream);
    API_ENTER();
    Event *e = find_event(handle);
    Stream *s = find_stream(stream);
    if (!e || !s) return api_return(cudaErrorInvalidResourceHandle);
    if (flags != cudaEventRecordExternal || !s->capture) return api_return(cudaErrorInvalidValue);
    e->recorded = e->external = true;
    e->seconds = 0;
    Op op;
    op.what = __func__;
    op.run = [e](Op &) {
        e->seconds = now();
        return true;
    };
    return api_return(enqueue(*s, std::move(op)));
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t handle, unsigned int) {
    API_ENTER();
    Event *e = find_event(handle);
    Stream *s = find_stream(stream);
    if (!e || !s) return api_return(cudaErrorInvalidResourceHandle);
    if (e->capture) {
        /* The stream becomes part of the capture. */
        if (s->capture && s->capture != e->capture) return api_return(cudaErrorStreamCaptureMerge);
        if (s->legacy) return api_return(cudaErrorStreamCaptureImplicit);
        s->capture = e->capture;
        for (int node : e->nodes)
            if (std::find(s->tail.begin(), s->tail.end(), node) == s->tail.end()) s->tail.push_back(node);
        return cudaSuccess;
    }
    if (s->capture) {
        s->capture->invalid = true;
        return api_return(cudaErrorStreamCaptureIsolation);
    }
    if (!e->recorded || !e->point.stream) return cudaSuccess;
    Op op = marker(__func__);
    op.clock = e->clock;
    std::vector<Need> needs = {e->point};
    if (s->blocking && !s->legacy) {
        Stream *legacy = legacy_stream(s->device);
        needs.push_back(Need{legacy, legacy->enqueued});
        merge(op.clock, legacy->last);
    }
    enqueue_raw(*s, std::move(op), needs);
    return cudaSuccess;
}

cudaError_t cudaEventSynchronize(cudaEvent_t handle) {
    API_ENTER();
    Event *e = find_event(handle);
    if (!e) return api_return(cudaErrorInvalidResourceHandle);
    if (e->capture) return api_return(cudaErrorCapturedEvent);
    if (!e->point.stream) return cudaSuccess;
    wait_for(*e->point.stream, e->point.seq);
    join_host(e->clock);
    return api_return(sticky_error(e->point.stream->device));
}

cudaError_t cudaEventQuery(cudaEvent_t handle) {
    API_ENTER();
    Event *e = find_event(handle);
    if (!e) return api_return(cudaErrorInvalidResourceHandle);
    if (e->capture) return api_return(cudaErrorCapturedEvent);
    if (!e->point.stream) return cudaSuccess;
    if (e->point.stream->completed < e->point.seq) {
        progress_once();
        if (e->point.stream->completed < e->point.seq) return cudaErrorNotReady;
    }
    join_host(e->clock);
    return cudaSuccess;
}

cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t start, cudaEvent_t end) {
    API_ENTER();
    Event *a = find_event(start), *b = find_event(end);
    if (!a || !b || !a->timing || !b->timing || a->external != b->external)
        return api_return(cudaErrorInvalidResourceHandle);
    if (a->external) {
        if (a->seconds <= 0 || b->seconds < a->seconds) return cudaErrorNotReady;
        *milliseconds = (float)((b->seconds - a->seconds) * 1e3);
        return cudaSuccess;
    }
    if (!a->point.stream || !b->point.stream) return api_return(cudaErrorInvalidResourceHandle);
    if (a->point.stream->completed < a->point.seq || b->point.stream->completed < b->point.seq)
        return cudaErrorNotReady;
    *milliseconds = (float)((b->seconds - a->seconds) * 1e3);
    return cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t handle, cudaStreamCaptureMode) {
    API_ENTER();
    Stream *s = find_stream(handle);
    if (!s) return api_return(cudaErrorInvalidResourceHandle);
    if (s->legacy) return api_return(cudaErrorStreamCaptureUnsupported);
    if (s->capture) return api_return(refuse_in_capture(__func__));
    s->capture = new Capture{new Graph, s, false};
    s->tail.clear();
    captures.push_back(s->capture);
    return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t handle, cudaGraph_t *out) {
    std::lock_guard<std::mutex> guard(machine_lock);
    cudaError_t failed = api_enter(__func__); /* ends the capture all the same */
    *out = nullptr;
    Stream *s = find_stream(handle);
    if (!s) return api_return(cudaErrorInvalidResourceHandle);
    if (!s->capture) return api_return(failed ? failed : cudaErrorInvalidValue);
    Capture *c = s->capture;
    if (c->origin != s) return api_return(cudaErrorStreamCaptureUnmatched);
    cudaError_t error = failed        ? failed
                        : c->invalid  ? cudaErrorStreamCaptureInvalidated
                        : !joined(*c) ? cudaErrorStreamCaptureUnjoined
                                      : cudaSuccess;
    end_capture(c);
    if (!error) {
        graphs.push_back(c->graph);
        *out = reinterpret_cast<cudaGraph_t>(c->graph);
    } else {
        delete c->graph;
    }
    delete c;
    return api_return(error);
}

cudaError_t cudaStreamIsCapturing(cudaStream_t handle, cudaStreamCaptureStatus *status) {
    API_ENTER();
    Stream *s = find_stream(handle);
    if (!s) return api_return(cudaErrorInvalidResourceHandle);
    *status = !s->capture           ? cudaStreamCaptureStatusNone
              : s->capture->invalid ? cudaStreamCaptureStatusInvalidated
                                    : cudaStreamCaptureStatusActive;
    return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t *out, cudaGraph_t handle, unsigned long long) {
    API_ENTER();
    if (!known(graphs, handle)) return api_return(cudaErrorInvalidValue);
    GraphExec *exec = new GraphExec;
    exec->graph = *reinterpret_cast<Graph *>(handle);
    assign_lanes(*exec, current_device());
    execs.push_back(exec);
    *out = reinterpret_cast<cudaGraphExec_t>(exec);
    return cudaSuccess;
}

cudaError_t cudaGraphUpload(cudaGraphExec_t exec, cudaStream_t) {
    API_ENTER();
    return api_return(known(execs, exec) ? cudaSuccess : cudaErrorInvalidValue);
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t handle, cudaStream_t stream) {
    API_ENTER();
    Stream *s = find_stream(stream);
    if (!s || !known(execs, handle)) return api_return(cudaErrorInvalidResourceHandle);
    if (s->capture) return api_return(refuse_in_capture(__func__));
    return api_return(launch_graph(*reinterpret_cast<GraphExec *>(handle), *s));
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t handle) {
    API_ENTER();
    auto found = std::find(execs.begin(), execs.end(), reinterpret_cast<GraphExec *>(handle));
    if (found == execs.end()) return api_return(cudaErrorInvalidValue);
    delete *found; /* its lanes stay: work may be under way */
    execs.erase(found);
    return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t handle) {
    API_ENTER();
    auto found = std::find(graphs.begin(), graphs.end(), reinterpret_cast<Graph *>(handle));
    if (found == graphs.end()) return api_return(cudaErrorInvalidValue);
    delete *found;
    graphs.erase(found);
    return cudaSuccess;
}

cudaError_t cudaGraphGetNodes(cudaGraph_t handle, void *, size_t *count) {
    API_ENTER();
    if (!known(graphs, handle)) return api_return(cudaErrorInvalidValue);
    *count = reinterpret_cast<Graph *>(handle)->nodes.size();
    return cudaSuccess;
}

cudaError_t cudaFuncSetAttribute(const void *function, cudaFuncAttribute attribute, int value) {
    API_ENTER();
    if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
    if (value < 0 || (size_t)value + static_shared_of(function) > device_model().shared_optin)
        return api_return(cudaErrorInvalidValue);
    dynamic_limit[function] = value;
    return cudaSuccess;
}

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes *out, const void *function) {
    API_ENTER();
    const DeviceModel &m = device_model();
    *out = cudaFuncAttributes{};
    out->sharedSizeBytes = static_shared_of(function);
    out->maxThreadsPerBlock = 1024;
    out->numRegs = 32; /* not known here */
    out->ptxVersion = out->binaryVersion = m.major * 10 + m.minor;
    out->maxDynamicSharedSizeBytes = dynamic_limit.count(function) ? dynamic_limit[function] : 49152;
    return cudaSuccess;
}

/* By threads and shared memory alone: registers are not known here. */
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, const void *function, int threads,
                                                          size_t dynamic_shared) {
    API_ENTER();
    if (threads < 1 || threads > 1024) return api_return(cudaErrorInvalidValue);
    const DeviceModel &m = device_model();
    int warps = (threads + 31) / 32, by_threads = (m.minor == 6 ? 48 : 64) / warps;
    size_t shared = static_shared_of(function) + dynamic_shared + 1024;
    int by_shared = (int)(m.shared_sm / shared), most = m.minor == 6 ? 16 : 32;
    *blocks = shared - 1024 > m.shared_optin ? 0 : std::min(std::min(by_threads, by_shared), most);
    return cudaSuccess;
}

} // extern "C"

void simt_expect_flops(uint64_t fma) {
    simt::expected_flops = fma;
}
