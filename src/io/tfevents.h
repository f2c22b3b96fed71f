/* Event files for TensorBoard: scalars and histograms over steps.
 *
 * A record is u64 length | u32 masked CRC-32C of the length | data | u32 masked CRC-32C of the data,
 * little-endian, the data an Event message in protocol buffer encoding (tensorflow/core/util/event.proto and
 * framework/summary.proto). One writer per folder at a time. A resumed run opens a new file and starts it
 * with tn_tfevents_session_start, at which TensorBoard drops what earlier files say about that step and later
 * ones.
 *
 * Records are gathered in memory and written as whole records at tn_tfevents_flush, at tn_tfevents_close and
 * whenever 64 KiB are waiting. Every call that writes may fail with TN_ERR_IO; the file then ends with a
 * whole record and the records stay in memory for the next try. Wall times are seconds since 1970; a negative
 * one means now. */
#ifndef TN_IO_TFEVENTS_H
#define TN_IO_TFEVENTS_H

#include <stddef.h>
#include <stdint.h>

#include "base/fail.h"

typedef struct tn_tfevents tn_tfevents;

/* Creates events.out.tfevents.SECONDS.HOST.PID in `folder`, which must exist, and writes the version record.
 * SECONDS is the time, or one more than the latest such file's if that is not in the past: TensorBoard reads
 * files in the order of their names. TN_ERR_IO, TN_ERR_MEMORY. */
tn_status tn_tfevents_open(const char *folder, tn_tfevents **out);

/* The file's path; belongs to the writer. */
const char *tn_tfevents_path(const tn_tfevents *events);

/* Says that a run starts (again) at `step`. */
tn_status tn_tfevents_session_start(tn_tfevents *events, int64_t step, double wall_time);

/* Adds one value of the curve `tag`, stored as float32. TN_ERR_USAGE when the tag is not UTF-8. */
tn_status tn_tfevents_scalar(tn_tfevents *events, const char *tag, int64_t step, double value,
                             double wall_time);

/* Adds a histogram of values[count], count >= 1, in 30 buckets of equal width between the least and the
 * greatest (one bucket when they are equal). TN_ERR_USAGE for no values, TN_ERR_DATA for values that are not
 * finite. */
tn_status tn_tfevents_histogram(tn_tfevents *events, const char *tag, int64_t step, const double *values,
                                size_t count, double wall_time);

/* Writes what waits in memory to the file (without a sync to the disk). */
tn_status tn_tfevents_flush(tn_tfevents *events);

/* Flushes, closes and frees in every case. NULL is allowed. */
tn_status tn_tfevents_close(tn_tfevents *events);

#endif
