#include "io/trace.h"

#include <math.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/memory.h"
#include "io/atomic_file.h"
#include "io/json_text.h"

typedef struct trace_event {
    const char *name, *category;
    double start, end;
} trace_event;

/* One thread's events, on cache lines of their own. */
typedef struct trace_lane {
    _Alignas(64) char name[48]; /* empty until named */
    trace_event *events;
    size_t count, dropped;
} trace_lane;

struct tn_trace {
    int threads;
    size_t capacity; /* of each lane */
    trace_lane *lanes;
};

/* Text on its way to the file. */
typedef struct sink {
    tn_atomic_file *file;
    tn_string text;
} sink;

tn_status tn_trace_create(int threads, size_t events_per_thread, tn_trace **out) {
    *out = NULL;
    tn_trace *trace;
    TN_TRY(tn_alloc(&trace, 1, sizeof *trace, "trace"));
    tn_status status = tn_alloc(&trace->lanes, (size_t)threads, sizeof *trace->lanes, "trace");
    trace->capacity = events_per_thread;
    for (; trace->threads < threads && status == TN_OK; trace->threads++)
        status = tn_alloc(&trace->lanes[trace->threads].events, events_per_thread, sizeof(trace_event),
                          "trace events");
    if (status != TN_OK) {
        tn_trace_free(trace);
        return status;
    }
    *out = trace;
    return TN_OK;
}

void tn_trace_free(tn_trace *trace) {
    if (!trace) return;
    for (int i = 0; i < trace->threads; i++) tn_free(trace->lanes[i].events);
    tn_free(trace->lanes);
    tn_free(trace);
}

void tn_trace_name_thread(tn_trace *trace, int thread, const char *name) {
    if (!trace) return;
    TN_ASSERT(thread >= 0 && thread < trace->threads);
    snprintf(trace->lanes[thread].name, sizeof trace->lanes[thread].name, "%s", name);
}

void tn_trace_add(tn_trace *trace, int thread, const char *name, const char *category, double start_seconds,
                  double end_seconds) {
    if (!trace) return;
    TN_ASSERT(thread >= 0 && thread < trace->threads && end_seconds >= start_seconds);
    trace_lane *lane = &trace->lanes[thread];
    if (lane->count == trace->capacity)
        lane->dropped++;
    else
        lane->events[lane->count++] = (trace_event){name, category, start_seconds, end_seconds};
}

size_t tn_trace_dropped(const tn_trace *trace) {
    size_t dropped = 0;
    for (int i = 0; i < trace->threads; i++) dropped += trace->lanes[i].dropped;
    return dropped;
}

static double earliest(const tn_trace *trace) {
    double earliest = 0;
    int found = 0;
    for (int i = 0; i < trace->threads; i++)
        for (size_t e = 0; e < trace->lanes[i].count; e++)
            if (!found++ || trace->lanes[i].events[e].start < earliest)
                earliest = trace->lanes[i].events[e].start;
    return earliest;
}

static tn_status flush(sink *out) {
    TN_TRY(tn_atomic_write(out->file, out->text.data, out->text.length));
    out->text.length = 0;
    return TN_OK;
}

/* Microseconds with three decimals, whatever decimal point the program's locale has. */
static tn_status put_time(tn_string *text, const char *key, long long nanoseconds) {
    return tn_string_printf(text, ",\"%s\":%lld.%03lld", key, nanoseconds / 1000, nanoseconds % 1000);
}

static tn_status put_event(tn_string *text, const trace_event *event, int thread, double origin) {
    TN_TRY(
        tn_string_printf(text, ",\n{\"ph\":\"X\",\"pid\":%ld,\"tid\":%d,\"name\":", (long)getpid(), thread));
    TN_TRY(tn_json_quote(text, event->name));
    TN_TRY(tn_string_printf(text, ",\"cat\":"));
    TN_TRY(tn_json_quote(text, event->category));
    /* Both ends are rounded alike, so that neighbours still touch and nested events stay nested. */
    long long start = llround((event->start - origin) * 1e9), end = llround((event->end - origin) * 1e9);
    TN_TRY(put_time(text, "ts", start));
    TN_TRY(put_time(text, "dur", end - start));
    return tn_string_append(text, "}", 1);
}

static tn_status put_thread_name(tn_string *text, const char *name, int thread) {
    TN_TRY(tn_string_printf(
        text, "%s\n{\"ph\":\"M\",\"pid\":%ld,\"tid\":%d,\"name\":\"thread_name\",\"args\":{\"name\":",
        thread > 0 ? "," : "", (long)getpid(), thread));
    if (*name)
        TN_TRY(tn_json_quote(text, name));
    else
        TN_TRY(tn_string_printf(text, "\"thread %d\"", thread));
    return tn_string_append(text, "}}", 2);
}

static tn_status put_all(const tn_trace *trace, sink *out) {
    double origin = earliest(trace);
    TN_TRY(tn_string_printf(&out->text,
                            "{\"displayTimeUnit\":\"ms\",\"otherData\":{\"program\":\"taunet %s\","
                            "\"dropped_events\":\"%zu\"},\n\"traceEvents\":[",
                            tn_version(), tn_trace_dropped(trace)));
    for (int i = 0; i < trace->threads; i++) TN_TRY(put_thread_name(&out->text, trace->lanes[i].name, i));
    for (int i = 0; i < trace->threads; i++)
        for (size_t e = 0; e < trace->lanes[i].count; e++) {
            TN_TRY(put_event(&out->text, &trace->lanes[i].events[e], i, origin));
            if (out->text.length >= 65536) TN_TRY(flush(out));
        }
    TN_TRY(tn_string_printf(&out->text, "\n]}\n"));
    return flush(out);
}

tn_status tn_trace_write(const tn_trace *trace, const char *path) {
    sink out = {0};
    TN_TRY(tn_atomic_begin(path, &out.file));
    tn_status status = put_all(trace, &out);
    tn_string_free(&out.text);
    if (status == TN_OK) return tn_atomic_commit(out.file);
    tn_atomic_abort(out.file);
    return status;
}
