#include "stream.h"

#include <unistd.h>

#include <algorithm>

#include "memory.h"
#if SIMT_INSTRUMENTED
#include "shadow.h"
#endif

namespace simt {

std::mutex machine_lock;
static std::vector<Stream *> streams;
static std::vector<Stream *> legacy;
static uint64_t done_count, choices;

Clock &host_clock() {
    static Clock clock; /* one for all host threads: how they order each other is not seen */
    return clock;
}

void merge(Clock &into, const Clock &from) {
    if (into.size() < from.size()) into.resize(from.size());
    for (size_t i = 0; i < from.size(); i++) into[i] = std::max(into[i], from[i]);
}

void join_host(const Clock &clock) {
    merge(host_clock(), clock);
}

Stream *new_stream(int device, bool blocking) {
    Stream *s = new Stream;
    s->id = (int)streams.size();
    s->device = device;
    s->blocking = blocking;
    streams.push_back(s);
    return s;
}

Stream *legacy_stream(int device) {
    if ((int)legacy.size() <= device) legacy.resize((size_t)device + 1);
    if (!legacy[(size_t)device]) {
        legacy[(size_t)device] = new_stream(device, true);
        legacy[(size_t)device]->legacy = true;
    }
    return legacy[(size_t)device];
}

const std::vector<Stream *> &all_streams() {
    return streams;
}

Stream *find_stream(cudaStream_t handle) {
    if (!handle || handle == cudaStreamLegacy) return legacy_stream(current_device());
    for (Stream *s : streams)
        if (s == reinterpret_cast<Stream *>(handle)) return s->destroyed || s->internal ? nullptr : s;
    return nullptr;
}

uint64_t enqueue_raw(Stream &s, Op op, const std::vector<Need> &needs) {
    op.needs = needs;
    op.stream = &s;
    op.seq = ++s.enqueued;
    merge(op.clock, host_clock());
    merge(op.clock, s.last);
    if ((int)op.clock.size() <= s.id) op.clock.resize((size_t)s.id + 1);
    op.clock[(size_t)s.id] = op.seq;
    s.last = op.clock;
    if (op.host.memory) pending_begin(op.host.memory, op.host.bytes, op.host.write);
    s.queue.push_back(std::move(op));
    return s.enqueued;
}

static void order_after(Op &op, std::vector<Need> &needs, Stream &other) {
    if (other.enqueued == 0) return;
    needs.push_back(Need{&other, other.enqueued});
    merge(op.clock, other.last);
}

cudaError_t enqueue(Stream &s, Op op) {
    if (s.capture) {
        if (s.capture->invalid) return cudaErrorStreamCaptureInvalidated;
        s.capture->graph->nodes.push_back(Node{std::move(op), s.tail});
        s.tail = {(int)s.capture->graph->nodes.size() - 1};
        return cudaSuccess;
    }
    std::vector<Need> needs;
    if (s.legacy) {
        /* The legacy stream waits for all blocking streams, and they for it. */
        for (Stream *other : streams)
            if (other != &s && other->device == s.device && other->blocking && !other->internal) {
                if (other->capture) return refuse_in_capture("the legacy stream");
                order_after(op, needs, *other);
            }
    } else if (s.blocking) {
        order_after(op, needs, *legacy_stream(s.device));
    }
    enqueue_raw(s, std::move(op), needs);
    return cudaSuccess;
}

static bool runnable(const Stream &s) {
    if (s.queue.empty()) return false;
    for (const Need &n : s.queue.front().needs)
        if (n.stream->completed < n.seq) return false;
    return true;
}

/* The stream whose first operation has to run so that `s` can get on; null if that is held up elsewhere. */
static Stream *needed_by(Stream &s, int depth) {
    if (s.queue.empty() || depth > 1000) return nullptr;
    for (const Need &n : s.queue.front().needs)
        if (n.stream->completed < n.seq) return needed_by(*n.stream, depth + 1);
    return &s;
}

/* Executes the first operation of the stream; false when it cannot go on yet. */
static bool execute(Stream &s) {
    Op op = std::move(s.queue.front());
    if (op.host.memory) pending_end(op.host.memory, op.host.bytes, op.host.write);
    /* Later operations may wait to use the same memory. */
    pending_allow(op.host.memory, op.host.bytes, true);
    device_open();
#if SIMT_INSTRUMENTED
    shadow_begin_op(op);
#endif
    bool done = op.run(op);
#if SIMT_INSTRUMENTED
    shadow_end_op();
#endif
    device_close();
    pending_allow(op.host.memory, op.host.bytes, false);
    if (!done) {
        if (op.host.memory) pending_begin(op.host.memory, op.host.bytes, op.host.write);
        s.queue.front() = std::move(op);
        return false;
    }
    s.queue.pop_front();
    s.completed++;
    done_count++;
    return true;
}

static bool execute_random() {
    std::vector<Stream *> able;
    for (Stream *s : streams)
        if (runnable(*s)) able.push_back(s);
    while (!able.empty()) {
        size_t i = mix(settings().seed, ++choices) % able.size();
        if (execute(*able[i])) return true;
        able.erase(able.begin() + (long)i);
    }
    return false;
}

bool progress_once() {
    return execute_random();
}

void wait_for(Stream &s, uint64_t seq) {
    bool eager = settings().seed % 2 == 1;
    if (s.completed >= seq) return;
    device_open();
    while (s.completed < seq) {
        Stream *next = eager ? nullptr : needed_by(s, 0);
        if (next && execute(*next)) continue;
        if (execute_random()) continue;
        /* Everything waits for another rank: let its host thread get on. */
        device_close();
        machine_lock.unlock();
        usleep(50);
        machine_lock.lock();
        device_open();
    }
    device_close();
}

void wait_device(int device) {
    /* Operations may be added to other streams meanwhile by other host threads: those are not waited for. */
    std::vector<Need> targets;
    Clock clock;
    for (Stream *s : streams)
        if (s->device == device && !s->capture) {
            targets.push_back(Need{s, s->enqueued});
            merge(clock, s->last);
        }
    if (targets.size() > 1 && settings().seed > 1)
        std::rotate(targets.begin(),
                    targets.begin() + (long)(mix(settings().seed, ++choices) % targets.size()),
                    targets.end());
    device_open();
    for (const Need &t : targets) wait_for(*t.stream, t.seq);
    device_close();
    join_host(clock);
}

uint64_t operations_done() {
    return done_count;
}

} // namespace simt

uint64_t simt_operations(void) {
    return simt::operations_done();
}
