/* TensorBoard event files: checksums, and records read back byte by byte. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <math.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>

#include "base/memory.h"
#include "io/crc32c.h"
#include "io/tfevents.h"
#include "temp_folder.h"
#include "tests/support/unit_fixture.h"

/* Takes the place of the C library's function in this program, to fail when a test wants it. */
static int close_fails;

int close(int fd) {
    int result = (int)syscall(SYS_close, fd);
    if (!close_fails) return result;
    close_fails = 0;
    errno = EIO;
    return -1;
}

static temp_folder folder;

static int setup(void **state) {
    folder = temp_folder_make();
    return unit_setup(state);
}

static int teardown(void **state) {
    temp_folder_remove(&folder);
    return unit_teardown(state);
}

/* A decoder of its own: bit by bit for checksums, byte by byte for messages. */

typedef struct bytes {
    const unsigned char *at, *end;
} bytes;

static uint32_t slow_crc32c(const unsigned char *at, size_t count) {
    uint32_t crc = ~0u;
    for (size_t i = 0; i < count; i++)
        for (int bit = 0; bit < 8; bit++) {
            uint32_t low = (crc ^ (uint32_t)(at[i] >> bit)) & 1;
            crc = crc >> 1 ^ (low ? 0x82f63b78u : 0);
        }
    return ~crc;
}

static uint64_t take(bytes *from, int count) {
    uint64_t value = 0;
    assert_true(from->end - from->at >= count);
    for (int i = 0; i < count; i++) value += (uint64_t)*from->at++ << (8 * i);
    return value;
}

static double take_double(bytes *from) {
    uint64_t bits = take(from, 8);
    double value;
    memcpy(&value, &bits, 8);
    return value;
}

static uint64_t take_varint(bytes *from) {
    uint64_t value = 0;
    for (int shift = 0;; shift += 7) {
        assert_true(shift < 70);
        uint64_t byte = take(from, 1);
        value |= (byte & 127) << shift;
        if (byte < 128) return value;
    }
}

static bytes take_part(bytes *from, uint64_t count) {
    assert_true((uint64_t)(from->end - from->at) >= count);
    bytes part = {from->at, from->at + count};
    from->at += count;
    return part;
}

static void check_masked(uint64_t masked, const unsigned char *at, size_t count) {
    uint32_t rotated = (uint32_t)masked - 0xa282ead8u;
    assert_int_equal((rotated >> 17 | rotated << 15), slow_crc32c(at, count));
}

/* The payload of the next record, its checksums verified. */
static bytes take_record(bytes *from) {
    const unsigned char *start = from->at;
    uint64_t length = take(from, 8);
    check_masked(take(from, 4), start, 8);
    bytes payload = take_part(from, length);
    check_masked(take(from, 4), payload.at, length);
    return payload;
}

/* The key of the next field is this field's with this wire type. */
static void want_key(bytes *from, int field, int wire_type) {
    assert_int_equal(take_varint(from), (uint64_t)(field * 8 + wire_type));
}

static bytes want_bytes(bytes *from, int field) {
    want_key(from, field, 2);
    return take_part(from, take_varint(from));
}

static void want_text(bytes *from, int field, const char *text) {
    bytes part = want_bytes(from, field);
    assert_int_equal(part.end - part.at, strlen(text));
    assert_memory_equal(part.at, text, strlen(text));
}

static void want_double(bytes *from, int field, double expected) {
    want_key(from, field, 1);
    double value = take_double(from);
    if (value != expected && !(fabs(value - expected) <= 1e-12 * fabs(expected)))
        fail_msg("field %d is %.17g", field, value);
}

static void want_end(const bytes *from) {
    assert_ptr_equal(from->at, from->end);
}

/* The next record's event, after its wall time and step; wall < 0: about now. */
static bytes want_event(bytes *from, double wall, int64_t step) {
    bytes event = take_record(from);
    want_key(&event, 1, 1);
    double time_written = take_double(&event);
    if (wall >= 0)
        assert_true(time_written == wall);
    else
        assert_true(fabs(time_written - (double)time(NULL)) < 60);
    if (step != 0) {
        want_key(&event, 2, 0);
        assert_int_equal((int64_t)take_varint(&event), step);
    }
    return event;
}

/* The event's only part is a summary with one value, and this is its tag. Returns the rest of the value. */
static bytes want_value(bytes *event, const char *tag) {
    bytes summary = want_bytes(event, 5);
    want_end(event);
    bytes value = want_bytes(&summary, 1);
    want_end(&summary);
    want_text(&value, 1, tag);
    return value;
}

static void want_scalar(bytes *from, double wall, const char *tag, int64_t step, float expected) {
    bytes event = want_event(from, wall, step);
    bytes value = want_value(&event, tag);
    want_key(&value, 2, 5);
    uint32_t bits = (uint32_t)take(&value, 4);
    float scalar;
    memcpy(&scalar, &bits, 4);
    want_end(&value);
    if (isnan(expected))
        assert_true(isnan(scalar));
    else
        assert_true(scalar == expected);
}

static void want_version(bytes *from) {
    bytes event = want_event(from, -1, 0);
    want_text(&event, 3, "brain.Event:2");
    want_end(&event);
}

/* The whole file; free(3) the result. */
static unsigned char *load(const char *path, bytes *out) {
    size_t count = 0;
    unsigned char *all = (unsigned char *)temp_read(path, &count);
    assert_non_null(all);
    *out = (bytes){all, all + count};
    return all;
}

static tn_tfevents *open_events(temp_path *path) {
    tn_tfevents *events;
    if (tn_tfevents_open(folder.path, &events) != TN_OK) fail_msg("%s", tn_error());
    snprintf(path->text, sizeof path->text, "%s", tn_tfevents_path(events));
    return events;
}

/* Checksums */

static void crc32c_has_the_published_values(void **state) {
    (void)state;
    unsigned char data[32] = {0};
    assert_int_equal(tn_crc32c("123456789", 9), 0xe3069283u);
    assert_int_equal(tn_crc32c("", 0), 0);
    /* RFC 3720, B.4 */
    assert_int_equal(tn_crc32c(data, 32), 0x8a9136aau);
    memset(data, 0xff, 32);
    assert_int_equal(tn_crc32c(data, 32), 0x62a8ab43u);
    for (int i = 0; i < 32; i++) data[i] = (unsigned char)i;
    assert_int_equal(tn_crc32c(data, 32), 0x46dd794eu);
    for (int i = 0; i < 32; i++) data[i] = (unsigned char)(31 - i);
    assert_int_equal(tn_crc32c(data, 32), 0x113fdb5cu);
    static const unsigned char read10[48] = {
        0x01, 0xc0, [16] = 0x14, [22] = 0x04, [27] = 0x14, [31] = 0x18, 0x28, [40] = 0x02};
    assert_int_equal(tn_crc32c(read10, 48), 0xd9963a56u);
}

static void crc32c_agrees_with_the_definition(void **state) {
    (void)state;
    unsigned char data[300];
    for (size_t i = 0; i < sizeof data; i++) data[i] = (unsigned char)(i * i + 7 * i);
    for (size_t count = 0; count <= sizeof data; count++)
        assert_int_equal(tn_crc32c(data, count), slow_crc32c(data, count));
}

/* Records */

static void writes_version_scalars_and_session(void **state) {
    (void)state;
    temp_path path;
    tn_tfevents *events = open_events(&path);
    assert_int_equal(tn_tfevents_session_start(events, 300, 1000.25), TN_OK);
    assert_int_equal(tn_tfevents_scalar(events, "train/loss", 1, 2.5, 1700000000.125), TN_OK);
    assert_int_equal(tn_tfevents_scalar(events, "\xcf\x84", 1LL << 40, -0.1, -1), TN_OK);
    assert_int_equal(tn_tfevents_scalar(events, "", 0, NAN, 0), TN_OK);
    assert_int_equal(tn_tfevents_scalar(events, "negative", -1, INFINITY, 1), TN_OK);
    assert_int_equal(tn_tfevents_close(events), TN_OK);
    bytes file;
    unsigned char *all = load(path.text, &file);
    want_version(&file);
    bytes event = want_event(&file, 1000.25, 300);
    bytes session = want_bytes(&event, 7);
    want_end(&event);
    want_key(&session, 1, 0);
    assert_int_equal(take_varint(&session), 1);
    want_end(&session);
    want_scalar(&file, 1700000000.125, "train/loss", 1, 2.5f);
    want_scalar(&file, -1, "\xcf\x84", 1LL << 40, -0.1f);
    want_scalar(&file, 0, "", 0, NAN);
    want_scalar(&file, 1, "negative", -1, INFINITY);
    want_end(&file);
    free(all);
    assert_int_equal(tn_tfevents_close(NULL), TN_OK);
}

/* Reads the next record as a histogram; returns the number of buckets. */
static int want_histogram(bytes *file, const char *tag, const double numbers[5], double *limits,
                          double *counts) {
    bytes event = want_event(file, 5, 2);
    bytes value = want_value(&event, tag);
    bytes histogram = want_bytes(&value, 5);
    want_end(&value);
    for (int i = 0; i < 5; i++) want_double(&histogram, i + 1, numbers[i]);
    bytes packed = want_bytes(&histogram, 6);
    int buckets = (int)((packed.end - packed.at) / 8);
    assert_true(buckets <= 64);
    for (int i = 0; i < buckets; i++) limits[i] = take_double(&packed);
    want_end(&packed);
    packed = want_bytes(&histogram, 7);
    for (int i = 0; i < buckets; i++) counts[i] = take_double(&packed);
    want_end(&packed);
    want_end(&histogram);
    return buckets;
}

static void writes_histograms(void **state) {
    (void)state;
    temp_path path;
    tn_tfevents *events = open_events(&path);
    double values[61], one[] = {3, 3, 3, 3}, far[] = {-1.7e308, 1.7e308, 0}, tiny[] = {0, 4.9e-324};
    for (int i = 0; i <= 60; i++) values[(i * 7) % 61] = i - 20.0;
    assert_int_equal(tn_tfevents_histogram(events, "range", 2, values, 61, 5), TN_OK);
    assert_int_equal(tn_tfevents_histogram(events, "equal", 2, one, 4, 5), TN_OK);
    assert_int_equal(tn_tfevents_histogram(events, "far", 2, far, 3, 5), TN_OK);
    assert_int_equal(tn_tfevents_histogram(events, "tiny", 2, tiny, 2, 5), TN_OK);
    assert_int_equal(tn_tfevents_close(events), TN_OK);

    bytes file;
    unsigned char *all = load(path.text, &file);
    double limits[64], counts[64];
    want_version(&file);
    /* -20 .. 40 in steps of 1: sum 610, squares 2870 + 22140 */
    int buckets = want_histogram(&file, "range", (double[]){-20, 40, 61, 610, 25010}, limits, counts);
    assert_int_equal(buckets, 30);
    for (int i = 0; i < 30; i++) {
        assert_true(fabs(limits[i] - (-18.0 + 2 * i)) < 1e-9);
        assert_true(counts[i] == (i == 29 ? 3 : 2)); /* the last bucket holds its limit too */
    }
    assert_true(limits[29] == 40);
    assert_int_equal(want_histogram(&file, "equal", (double[]){3, 3, 4, 12, 36}, limits, counts), 1);
    assert_true(limits[0] == 3 && counts[0] == 4);
    buckets = want_histogram(&file, "far", (double[]){-1.7e308, 1.7e308, 3, 0, INFINITY}, limits, counts);
    assert_int_equal(buckets, 30);
    for (int i = 1; i < 30; i++) assert_true(limits[i] > limits[i - 1] && isfinite(limits[i]));
    assert_true(counts[0] == 1 && counts[15] == 1 && counts[29] == 1);
    assert_int_equal(want_histogram(&file, "tiny", (double[]){0, 4.9e-324, 2, 4.9e-324, 0}, limits, counts),
                     30);
    assert_true(counts[0] == 1 && counts[29] == 1);
    want_end(&file);
    free(all);
}

static void refuses_what_cannot_be_shown(void **state) {
    (void)state;
    temp_path path;
    tn_tfevents *events = open_events(&path);
    double values[] = {1, INFINITY};
    assert_int_equal(tn_tfevents_scalar(events, "\xff", 1, 1, 1), TN_ERR_USAGE);
    assert_error(path.text, "not UTF-8");
    assert_int_equal(tn_tfevents_histogram(events, "h", 1, values, 0, 1), TN_ERR_USAGE);
    assert_error(path.text, "'h' has no values");
    assert_int_equal(tn_tfevents_histogram(events, "h", 7, values, 2, 1), TN_ERR_DATA);
    assert_error(path.text, "value 1 of histogram 'h' at step 7 is not finite");
    assert_int_equal(tn_tfevents_scalar(events, "good", 1, 1, 1), TN_OK);
    assert_int_equal(tn_tfevents_close(events), TN_OK);
    bytes file;
    unsigned char *all = load(path.text, &file);
    want_version(&file);
    want_scalar(&file, 1, "good", 1, 1);
    want_end(&file);
    free(all);
}

static void flush_puts_records_into_the_file(void **state) {
    (void)state;
    temp_path path;
    tn_tfevents *events = open_events(&path);
    bytes file;
    unsigned char *all = load(path.text, &file);
    want_version(&file);
    want_end(&file);
    free(all);
    assert_int_equal(tn_tfevents_scalar(events, "a", 1, 1, 1), TN_OK);
    assert_int_equal(tn_tfevents_flush(events), TN_OK);
    assert_int_equal(tn_tfevents_flush(events), TN_OK);
    all = load(path.text, &file);
    want_version(&file);
    want_scalar(&file, 1, "a", 1, 1);
    want_end(&file);
    free(all);
    /* Without a flush, whole records reach the file every 64 KiB or so. */
    for (int i = 0; i < 3000; i++) assert_int_equal(tn_tfevents_scalar(events, "a", i, i, 1), TN_OK);
    all = load(path.text, &file);
    assert_true(file.end - file.at > 65536);
    while (file.at < file.end) take_record(&file);
    free(all);
    assert_int_equal(tn_tfevents_close(events), TN_OK);
    all = load(path.text, &file);
    want_version(&file);
    want_scalar(&file, 1, "a", 1, 1);
    for (int i = 0; i < 3000; i++) want_scalar(&file, 1, "a", i, (float)i);
    want_end(&file);
    free(all);
}

/* Files */

static void names_files_in_the_order_of_their_making(void **state) {
    (void)state;
    temp_path paths[4];
    char host[65] = "";
    gethostname(host, sizeof host - 1);
    for (int i = 0; i < 3; i++) assert_int_equal(tn_tfevents_close(open_events(&paths[i])), TN_OK);
    /* A file from a clock that runs ahead, and names that are not of that form. */
    temp_write(temp_path_of(&folder, "events.out.tfevents.4000000000.host.1").text, "", 0);
    temp_write(temp_path_of(&folder, "events.out.tfevents.99999999999.host.1").text, "", 0);
    temp_write(temp_path_of(&folder, "events.out.tfevents.999999999x.host.1").text, "", 0);
    temp_write(temp_path_of(&folder, "events.out.tfevents.").text, "", 0);
    assert_int_equal(tn_tfevents_close(open_events(&paths[3])), TN_OK);
    for (int i = 0; i < 4; i++) {
        const char *name = strrchr(paths[i].text, '/') + 1;
        long long seconds;
        int used = 0;
        assert_int_equal(sscanf(name, "events.out.tfevents.%10lld.%n", &seconds, &used), 1);
        if (i < 3)
            assert_true(seconds - (long long)time(NULL) < 10 && (long long)time(NULL) - seconds < 60);
        else
            assert_int_equal(seconds, 4000000001);
        if (i > 0) assert_true(strcmp(paths[i - 1].text, paths[i].text) < 0);
        char rest[200];
        snprintf(rest, sizeof rest, "%s.%ld", host, (long)getpid());
        assert_string_equal(name + used, rest);
    }
}

static void names_folders_that_cannot_be_used(void **state) {
    (void)state;
    tn_tfevents *events;
    temp_path missing = temp_path_of(&folder, "missing"), plain = temp_path_of(&folder, "plain");
    assert_int_equal(tn_tfevents_open(missing.text, &events), TN_ERR_IO);
    assert_null(events);
    assert_error(missing.text, strerror(ENOENT));
    temp_write(plain.text, "", 0);
    assert_int_equal(tn_tfevents_open(plain.text, &events), TN_ERR_IO);
    assert_error(plain.text, strerror(ENOTDIR));
    assert_int_equal(tn_tfevents_open("/proc/self/fd", &events), TN_ERR_IO);
    assert_error("cannot create /proc/self/fd/events.out.tfevents.", "");
}

static void failed_write_leaves_whole_records(void **state) {
    (void)state;
    temp_path path;
    tn_tfevents *events = open_events(&path);
    struct stat info;
    assert_int_equal(stat(path.text, &info), 0);
    assert_int_equal(tn_tfevents_scalar(events, "a", 1, 1, 1), TN_OK);
    temp_limit_files((long)info.st_size + 5);
    tn_status first = tn_tfevents_flush(events), second = tn_tfevents_flush(events);
    temp_limit_files(-1);
    assert_int_equal(first, TN_ERR_IO);
    assert_int_equal(second, TN_ERR_IO);
    assert_error(path.text, strerror(EFBIG));
    struct stat after;
    assert_int_equal(stat(path.text, &after), 0);
    assert_int_equal(after.st_size, info.st_size);
    /* Nothing is lost once there is room again. */
    assert_int_equal(tn_tfevents_close(events), TN_OK);
    bytes file;
    unsigned char *all = load(path.text, &file);
    want_version(&file);
    want_scalar(&file, 1, "a", 1, 1);
    want_end(&file);
    free(all);
}

static void failures_at_open_and_close(void **state) {
    (void)state;
    tn_tfevents *events;
    temp_limit_files(10);
    tn_status status = tn_tfevents_open(folder.path, &events);
    temp_limit_files(-1);
    assert_int_equal(status, TN_ERR_IO);
    assert_null(events);
    assert_error(folder.path, strerror(EFBIG));
    assert_int_equal(temp_count(&folder), 0);
    temp_path path;
    events = open_events(&path);
    assert_int_equal(tn_tfevents_scalar(events, "a", 1, 1, 1), TN_OK);
    temp_limit_files(10);
    status = tn_tfevents_close(events);
    temp_limit_files(-1);
    assert_int_equal(status, TN_ERR_IO);
    assert_error(path.text, strerror(EFBIG));
    events = open_events(&path);
    close_fails = 1;
    assert_int_equal(tn_tfevents_close(events), TN_ERR_IO);
    assert_error("close", path.text);
}

static void survives_failing_allocations(void **state) {
    (void)state;
    double values[100];
    for (int i = 0; i < 100; i++) values[i] = i;
    int failures = 0;
    for (;; failures++) {
        tn_memory_fail_at(failures + 1);
        tn_tfevents *events = NULL;
        tn_status status = tn_tfevents_open(folder.path, &events), written = status;
        if (status == TN_OK) status = tn_tfevents_histogram(events, "h", 1, values, 100, 1);
        if (status == TN_OK) status = tn_tfevents_session_start(events, 2, 1);
        tn_memory_fail_at(0);
        if (written == TN_OK) {
            /* Whatever failed left whole records. */
            temp_path path;
            snprintf(path.text, sizeof path.text, "%s", tn_tfevents_path(events));
            assert_int_equal(tn_tfevents_close(events), TN_OK);
            bytes file;
            unsigned char *all = load(path.text, &file);
            want_version(&file);
            while (file.at < file.end) take_record(&file);
            free(all);
            assert_int_equal(unlink(path.text), 0);
        }
        assert_int_equal(temp_count(&folder), 0);
        assert_int_equal(tn_memory_in_use(), *unit_memory_before());
        if (status == TN_OK) break;
        assert_int_equal(status, TN_ERR_MEMORY);
    }
    assert_true(failures >= 8);
}

static void killed_process_leaves_whole_records(void **state) {
    (void)state;
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        tn_tfevents *events;
        if (tn_tfevents_open(folder.path, &events) != TN_OK) _exit(1);
        for (int i = 0;; i++)
            if (tn_tfevents_scalar(events, "a", i, i, 1) != TN_OK || tn_tfevents_flush(events) != TN_OK)
                _exit(1);
    }
    assert_true(temp_wait_for_bytes(&folder, 2000));
    assert_int_equal(kill(child, SIGKILL), 0);
    int how;
    assert_int_equal(waitpid(child, &how, 0), child);
    assert_true(WIFSIGNALED(how));
    DIR *entries = opendir(folder.path);
    struct dirent *entry;
    while ((entry = readdir(entries)) != NULL) {
        if (entry->d_name[0] == '.') continue;
        bytes file;
        unsigned char *all = load(temp_path_of(&folder, entry->d_name).text, &file);
        while (file.at < file.end) take_record(&file);
        free(all);
    }
    closedir(entries);
}

/* The reader in Python, which later tests rely on, sees the same. */
static void python_reader_agrees(void **state) {
    (void)state;
    const char *reader = "tests/e2e/tfevents_reader.py";
    if (access(reader, R_OK) != 0 || access("/usr/bin/python3", X_OK) != 0) skip();
    temp_path path;
    double values[] = {1, 2, 4};
    tn_tfevents *events = open_events(&path);
    assert_int_equal(tn_tfevents_session_start(events, 300, 2), TN_OK);
    assert_int_equal(tn_tfevents_scalar(events, "train/loss", 301, 0.25, 3), TN_OK);
    assert_int_equal(tn_tfevents_histogram(events, "norms", 302, values, 3, 4), TN_OK);
    assert_int_equal(tn_tfevents_close(events), TN_OK);
    char command[2200];
    snprintf(command, sizeof command, "/usr/bin/python3 %s %s 2>&1", reader, path.text);
    FILE *pipe = popen(command, "r");
    assert_non_null(pipe);
    static const char *const expected[] = {
        "\"file_version\": \"brain.Event:2\", \"step\": 0}",
        "{\"wall_time\": 2.0, \"step\": 300, \"session\": 1}",
        "{\"wall_time\": 3.0, \"step\": 301, \"scalars\": {\"train/loss\": 0.25}, \"histograms\": {}}",
        "\"histograms\": {\"norms\": {\"min\": 1.0, \"max\": 4.0, \"num\": 3.0, \"sum\": 7.0, "
        "\"sum_squares\": 21.0, "};
    char line[4096];
    for (int i = 0; i < 4; i++) {
        assert_non_null(fgets(line, sizeof line, pipe));
        if (!strstr(line, expected[i])) fail_msg("line %d: %s", i + 1, line);
    }
    assert_null(fgets(line, sizeof line, pipe));
    assert_int_equal(pclose(pipe), 0);
    /* It refuses a file with a flipped bit. */
    size_t count = 0;
    char *all = temp_read(path.text, &count);
    all[count - 30] ^= 1;
    temp_write(path.text, all, count);
    free(all);
    pipe = popen(command, "r");
    assert_non_null(pipe);
    while (fgets(line, sizeof line, pipe)) continue;
    assert_non_null(strstr(line, "checksum of the record's data is wrong"));
    assert_int_not_equal(pclose(pipe), 0);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(crc32c_has_the_published_values),
        TEST(crc32c_agrees_with_the_definition),
        TEST(writes_version_scalars_and_session),
        TEST(writes_histograms),
        TEST(refuses_what_cannot_be_shown),
        TEST(flush_puts_records_into_the_file),
        TEST(names_files_in_the_order_of_their_making),
        TEST(names_folders_that_cannot_be_used),
        TEST(failed_write_leaves_whole_records),
        TEST(failures_at_open_and_close),
        TEST(survives_failing_allocations),
        TEST(killed_process_leaves_whole_records),
        TEST(python_reader_agrees),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
