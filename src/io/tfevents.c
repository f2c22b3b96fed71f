#include "io/tfevents.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/memory.h"
#include "io/crc32c.h"
#include "io/file_io.h"
#include "io/json_text.h"

#define PREFIX      "events.out.tfevents."
#define WAITING_MAX 65536
#define BUCKETS     30

/* Wire types of protocol buffers. */
enum { VARINT = 0, FIXED64 = 1, BYTES = 2, FIXED32 = 5 };

struct tn_tfevents {
    char *path;
    int fd;
    int64_t position;
    tn_string waiting; /* whole records */
    /* Scratch for the message that is being built, from the inside out. */
    tn_string value, summary, event;
};

static tn_status put_little_endian(tn_string *text, uint64_t value, int bytes) {
    char out[8];
    for (int i = 0; i < bytes; i++) out[i] = (char)(value >> (8 * i));
    return tn_string_append(text, out, (size_t)bytes);
}

static tn_status put_varint(tn_string *text, uint64_t value) {
    char out[10];
    size_t length = 0;
    for (; value >= 0x80; value >>= 7) out[length++] = (char)(value | 0x80);
    out[length++] = (char)value;
    return tn_string_append(text, out, length);
}

static tn_status put_key(tn_string *text, int field, int wire_type) {
    return put_varint(text, (uint64_t)(field << 3 | wire_type));
}

static tn_status put_integer(tn_string *text, int field, int64_t value) {
    TN_TRY(put_key(text, field, VARINT));
    return put_varint(text, (uint64_t)value);
}

static tn_status put_raw_double(tn_string *text, double value) {
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    return put_little_endian(text, bits, 8);
}

static tn_status put_double(tn_string *text, int field, double value) {
    TN_TRY(put_key(text, field, FIXED64));
    return put_raw_double(text, value);
}

static tn_status put_float(tn_string *text, int field, float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    TN_TRY(put_key(text, field, FIXED32));
    return put_little_endian(text, bits, 4);
}

static tn_status put_bytes(tn_string *text, int field, const char *bytes, size_t count) {
    TN_TRY(put_key(text, field, BYTES));
    TN_TRY(put_varint(text, count));
    return tn_string_append(text, bytes, count);
}

/* An array of doubles without a key each ("packed"). */
static tn_status put_doubles(tn_string *text, int field, const double *values, int count) {
    TN_TRY(put_key(text, field, BYTES));
    TN_TRY(put_varint(text, 8 * (uint64_t)count));
    for (int i = 0; i < count; i++) TN_TRY(put_raw_double(text, values[i]));
    return TN_OK;
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Starts an Event in the scratch space. */
static tn_status start_event(tn_tfevents *events, int64_t step, double wall_time) {
    events->value.length = events->summary.length = events->event.length = 0;
    TN_TRY(put_double(&events->event, 1, wall_time < 0 ? now() : wall_time));
    return step == 0 ? TN_OK : put_integer(&events->event, 2, step);
}

static tn_status put_crc(tn_string *text, const void *bytes, size_t count) {
    uint32_t crc = tn_crc32c(bytes, count);
    return put_little_endian(text, (crc >> 15 | crc << 17) + 0xa282ead8u, 4);
}

static tn_status put_record(tn_string *text, const tn_string *event) {
    size_t start = text->length;
    TN_TRY(put_little_endian(text, event->length, 8));
    TN_TRY(put_crc(text, text->data + start, 8));
    TN_TRY(tn_string_append(text, event->data, event->length));
    return put_crc(text, event->data, event->length);
}

/* Adds the finished Event to the waiting records. */
static tn_status end_event(tn_tfevents *events) {
    size_t before = events->waiting.length;
    tn_status status = put_record(&events->waiting, &events->event);
    if (status != TN_OK) {
        events->waiting.length = before;
        return status;
    }
    return events->waiting.length >= WAITING_MAX ? tn_tfevents_flush(events) : TN_OK;
}

/* Adds an Event whose Summary holds the one finished Value. */
static tn_status end_value(tn_tfevents *events) {
    TN_TRY(put_bytes(&events->summary, 1, events->value.data, events->value.length));
    TN_TRY(put_bytes(&events->event, 5, events->summary.data, events->summary.length));
    return end_event(events);
}

static tn_status put_tag(tn_tfevents *events, const char *tag) {
    if (!tn_is_utf8(tag))
        return tn_fail(TN_ERR_USAGE, "%s: tag '%s' is not UTF-8", events->path, tn_make_legible(tag).text);
    return put_bytes(&events->value, 1, tag, strlen(tag));
}

tn_status tn_tfevents_session_start(tn_tfevents *events, int64_t step, double wall_time) {
    TN_TRY(start_event(events, step, wall_time));
    TN_TRY(put_integer(&events->value, 1, 1)); /* status = START */
    TN_TRY(put_bytes(&events->event, 7, events->value.data, events->value.length));
    return end_event(events);
}

tn_status tn_tfevents_scalar(tn_tfevents *events, const char *tag, int64_t step, double value,
                             double wall_time) {
    TN_TRY(start_event(events, step, wall_time));
    TN_TRY(put_tag(events, tag));
    TN_TRY(put_float(&events->value, 2, (float)value));
    return end_value(events);
}

/* The fields of a HistogramProto. */
typedef struct histogram {
    double least, greatest, sum, sum_squares;
    int buckets;
    double limits[BUCKETS], counts[BUCKETS]; /* bucket i ends at limits[i] */
} histogram;

static void fill_histogram(const double *values, size_t count, histogram *h) {
    *h = (histogram){.least = values[0], .greatest = values[0]};
    for (size_t i = 0; i < count; i++) {
        h->least = fmin(h->least, values[i]);
        h->greatest = fmax(h->greatest, values[i]);
        h->sum += values[i];
        h->sum_squares += values[i] * values[i];
    }
    h->buckets = h->least < h->greatest ? BUCKETS : 1;
    for (int i = 0; i < h->buckets; i++) {
        double part = (double)(i + 1) / h->buckets;
        h->limits[i] = i == h->buckets - 1 ? h->greatest : h->least * (1 - part) + h->greatest * part;
    }
    if (h->buckets == 1) {
        h->counts[0] = (double)count;
        return;
    }
    /* Halved where the range itself is more than a double holds. */
    double scale = isinf(h->greatest - h->least) ? 0.5 : 1.0;
    double range = h->greatest * scale - h->least * scale;
    for (size_t i = 0; i < count; i++) {
        int bucket = (int)((values[i] * scale - h->least * scale) / range * BUCKETS);
        h->counts[bucket < BUCKETS ? bucket : BUCKETS - 1]++;
    }
}

tn_status tn_tfevents_histogram(tn_tfevents *events, const char *tag, int64_t step, const double *values,
                                size_t count, double wall_time) {
    if (count == 0)
        return tn_fail(TN_ERR_USAGE, "%s: histogram '%s' has no values", events->path,
                       tn_make_legible(tag).text);
    for (size_t i = 0; i < count; i++)
        if (!isfinite(values[i]))
            return tn_fail(TN_ERR_DATA, "%s: value %zu of histogram '%s' at step %lld is not finite",
                           events->path, i, tn_make_legible(tag).text, (long long)step);
    histogram h;
    fill_histogram(values, count, &h);
    TN_TRY(start_event(events, step, wall_time));
    TN_TRY(put_tag(events, tag));
    /* The summary's scratch space serves for the histogram until the value is complete. */
    tn_string *out = &events->summary;
    TN_TRY(put_double(out, 1, h.least));
    TN_TRY(put_double(out, 2, h.greatest));
    TN_TRY(put_double(out, 3, (double)count));
    TN_TRY(put_double(out, 4, h.sum));
    TN_TRY(put_double(out, 5, h.sum_squares));
    TN_TRY(put_doubles(out, 6, h.limits, h.buckets));
    TN_TRY(put_doubles(out, 7, h.counts, h.buckets));
    TN_TRY(put_bytes(&events->value, 5, out->data, out->length));
    out->length = 0;
    return end_value(events);
}

/* The greatest SECONDS among the folder's event files, or 0. */
static tn_status latest_file(const char *folder, long long *latest) {
    *latest = 0;
    DIR *entries = opendir(folder);
    if (!entries) return tn_fail_errno("open folder", folder);
    struct dirent *entry;
    while (errno = 0, (entry = readdir(entries)) != NULL) {
        if (strncmp(entry->d_name, PREFIX, strlen(PREFIX)) != 0) continue;
        const char *digits = entry->d_name + strlen(PREFIX);
        /* Ten digits until the year 2286; anything longer is not a time. */
        if (strspn(digits, "0123456789") != 10 || digits[10] != '.') continue;
        long long seconds = strtoll(digits, NULL, 10);
        if (seconds > *latest) *latest = seconds;
    }
    tn_status status = errno != 0 ? tn_fail_errno("read folder", folder) : TN_OK;
    closedir(entries);
    return status;
}

static void host_name(char *out, size_t size) {
    if (gethostname(out, size) != 0 || out[0] == 0) snprintf(out, size, "localhost");
    out[size - 1] = 0;
    for (char *at = out; *at; at++)
        if (!isalnum((unsigned char)*at) && *at != '-' && *at != '.') *at = '_';
}

static tn_status create_file(tn_tfevents *events, const char *folder) {
    char host[65];
    host_name(host, sizeof host);
    long long latest;
    TN_TRY(latest_file(folder, &latest));
    long long seconds = (long long)time(NULL);
    if (seconds <= latest) seconds = latest + 1;
    size_t size = strlen(folder) + 160;
    TN_TRY(tn_alloc(&events->path, size, 1, "path of an event file"));
    snprintf(events->path, size, "%s/" PREFIX "%010lld.%s.%ld", folder, seconds, host, (long)getpid());
    events->fd = open(events->path, O_WRONLY | O_APPEND | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    return events->fd < 0 ? tn_fail_errno("create", events->path) : TN_OK;
}

static tn_status write_version(tn_tfevents *events) {
    TN_TRY(start_event(events, 0, -1));
    TN_TRY(put_bytes(&events->event, 3, "brain.Event:2", 13));
    TN_TRY(end_event(events));
    return tn_tfevents_flush(events);
}

tn_status tn_tfevents_open(const char *folder, tn_tfevents **out) {
    *out = NULL;
    tn_tfevents *events;
    TN_TRY(tn_alloc(&events, 1, sizeof *events, "event file"));
    events->fd = -1;
    tn_status status = create_file(events, folder);
    if (status == TN_OK) status = write_version(events);
    if (status == TN_OK) {
        *out = events;
        return TN_OK;
    }
    if (events->fd >= 0) unlink(events->path);
    events->waiting.length = 0;
    tn_tfevents_close(events);
    return status;
}

const char *tn_tfevents_path(const tn_tfevents *events) {
    return events->path;
}

tn_status tn_tfevents_flush(tn_tfevents *events) {
    if (events->waiting.length == 0) return TN_OK;
    TN_TRY(tn_append_whole(events->fd, events->path, events->waiting.data, events->waiting.length,
                           &events->position));
    events->waiting.length = 0;
    return TN_OK;
}

tn_status tn_tfevents_close(tn_tfevents *events) {
    if (!events) return TN_OK;
    tn_status status = TN_OK;
    if (events->fd >= 0) {
        status = tn_tfevents_flush(events);
        if (status == TN_OK)
            status = tn_close(events->fd, events->path);
        else
            close(events->fd);
    }
    tn_string_free(&events->waiting);
    tn_string_free(&events->value);
    tn_string_free(&events->summary);
    tn_string_free(&events->event);
    tn_free(events->path);
    tn_free(events);
    return status;
}
