/* A timeline of what each thread did, in the JSON form that chrome://tracing and Perfetto read ("Trace Event
 * Format": complete events, ph "X").
 *
 * Every thread has a buffer of its own with a fixed number of events, so that adding one takes no lock and no
 * memory. Events beyond that number are dropped and counted; the file says so. Names and categories of events
 * are not copied: they must outlive the trace. Times are seconds of tn_now(). */
#ifndef TN_IO_TRACE_H
#define TN_IO_TRACE_H

#include <stddef.h>

#include "base/fail.h"

typedef struct tn_trace tn_trace;

/* Room for `events_per_thread` events of each of threads 0 .. threads-1, which are called "thread N" until
 * named. TN_ERR_MEMORY. Free with tn_trace_free. */
tn_status tn_trace_create(int threads, size_t events_per_thread, tn_trace **out);
void tn_trace_free(tn_trace *trace);

/* Gives a thread its name in the timeline; the name is copied, and cut at 47 bytes. */
void tn_trace_name_thread(tn_trace *trace, int thread, const char *name);

/* Adds what `thread` did from start to end, end >= start. Only one thread at a time may add for the same
 * `thread`. Does nothing when trace is NULL. */
void tn_trace_add(tn_trace *trace, int thread, const char *name, const char *category, double start_seconds,
                  double end_seconds);

/* Events that found no room, of all threads. */
size_t tn_trace_dropped(const tn_trace *trace);

/* Writes the file (io/atomic_file.h); times count from the earliest event. No thread may add meanwhile.
 * TN_ERR_IO, TN_ERR_USAGE (not the name of a file) or TN_ERR_MEMORY. */
tn_status tn_trace_write(const tn_trace *trace, const char *path);

#endif
