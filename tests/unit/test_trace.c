/* Timelines: what the file says, as JSON, and what happens when buffers are full. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <jansson.h>
#include <pthread.h>

#include "base/memory.h"
#include "io/json_text.h"
#include "io/trace.h"
#include "temp_folder.h"
#include "tests/support/unit_fixture.h"

static temp_folder folder;
static temp_path path;

static int setup(void **state) {
    folder = temp_folder_make();
    path = temp_path_of(&folder, "trace.json");
    return unit_setup(state);
}

static int teardown(void **state) {
    temp_folder_remove(&folder);
    return unit_teardown(state);
}

static tn_trace *create(int threads, size_t events) {
    tn_trace *trace;
    assert_int_equal(tn_trace_create(threads, events, &trace), TN_OK);
    return trace;
}

/* Writes the trace and reads it back; json_decref the result. */
static json_t *written(const tn_trace *trace) {
    if (tn_trace_write(trace, path.text) != TN_OK) fail_msg("%s", tn_error());
    json_error_t error;
    json_t *root = json_load_file(path.text, JSON_REJECT_DUPLICATES, &error);
    if (!root) fail_msg("line %d: %s", error.line, error.text);
    return root;
}

static const char *text_of(const json_t *object, const char *key) {
    const char *text = json_string_value(json_object_get(object, key));
    return text ? text : "(missing)";
}

static void assert_number(const json_t *object, const char *key, double expected) {
    const json_t *value = json_object_get(object, key);
    assert_true(json_is_number(value));
    if (json_number_value(value) != expected) fail_msg("%s is %.9g", key, json_number_value(value));
}

static void writes_events_and_thread_names(void **state) {
    (void)state;
    tn_trace *trace = create(2, 8);
    tn_trace_name_thread(trace, 1, "worker 0");
    tn_trace_add(trace, 0, "conv1", "forward", 100.0, 100.001);
    tn_trace_add(trace, 0, "layer1.0.conv1", "backward", 100.001, 100.001000005);
    tn_trace_add(trace, 1, "wait", "data", 99.9999995, 100.25);
    json_t *root = written(trace);
    assert_string_equal(text_of(json_object_get(root, "otherData"), "dropped_events"), "0");
    const json_t *events = json_object_get(root, "traceEvents");
    assert_int_equal(json_array_size(events), 5);
    static const char *const threads[] = {"thread 0", "worker 0"};
    for (size_t i = 0; i < 2; i++) {
        const json_t *event = json_array_get(events, i);
        assert_string_equal(text_of(event, "ph"), "M");
        assert_string_equal(text_of(event, "name"), "thread_name");
        assert_number(event, "tid", (double)i);
        assert_string_equal(text_of(json_object_get(event, "args"), "name"), threads[i]);
    }
    static const struct {
        const char *name, *category;
        double thread, start, duration;
    } expected[] = {{"conv1", "forward", 0, 0.5, 1000},
                    {"layer1.0.conv1", "backward", 0, 1000.5, 0.005},
                    {"wait", "data", 1, 0, 250000.5}};
    for (size_t i = 0; i < 3; i++) {
        const json_t *event = json_array_get(events, 2 + i);
        assert_string_equal(text_of(event, "ph"), "X");
        assert_string_equal(text_of(event, "name"), expected[i].name);
        assert_string_equal(text_of(event, "cat"), expected[i].category);
        assert_number(event, "pid", (double)getpid());
        assert_number(event, "tid", expected[i].thread);
        assert_number(event, "ts", expected[i].start);
        assert_number(event, "dur", expected[i].duration);
    }
    json_decref(root);
    tn_trace_free(trace);
}

static void full_buffers_drop_and_say_so(void **state) {
    (void)state;
    tn_trace *trace = create(3, 2);
    for (int i = 0; i < 5; i++) tn_trace_add(trace, 0, "a", "c", i, i + 1);
    for (int i = 0; i < 2; i++) tn_trace_add(trace, 1, "b", "c", i, i + 1);
    for (int i = 0; i < 3; i++) tn_trace_add(trace, 2, "d", "c", i, i + 1);
    assert_int_equal(tn_trace_dropped(trace), 4);
    json_t *root = written(trace);
    assert_string_equal(text_of(json_object_get(root, "otherData"), "dropped_events"), "4");
    assert_int_equal(json_array_size(json_object_get(root, "traceEvents")), 3 + 6);
    json_decref(root);
    tn_trace_free(trace);
}

static void empty_traces_and_no_trace(void **state) {
    (void)state;
    tn_trace *trace = create(1, 0);
    tn_trace_add(trace, 0, "a", "c", 1, 2);
    assert_int_equal(tn_trace_dropped(trace), 1);
    json_t *root = written(trace);
    assert_int_equal(json_array_size(json_object_get(root, "traceEvents")), 1);
    json_decref(root);
    tn_trace_free(trace);
    trace = create(0, 5);
    root = written(trace);
    assert_int_equal(json_array_size(json_object_get(root, "traceEvents")), 0);
    json_decref(root);
    tn_trace_free(trace);
    tn_trace_add(NULL, 7, "a", "c", 1, 2);
    tn_trace_name_thread(NULL, 7, "a");
    tn_trace_free(NULL);
}

static void escapes_names(void **state) {
    (void)state;
    static const char name[] = "a\"b\\c\n\x01\x1f\x7f/\xc3\xa9\xf0\x9f\x98\x80";
    tn_trace *trace = create(1, 4);
    tn_trace_name_thread(trace, 0, name);
    tn_trace_add(trace, 0, name, name, 0, 1);
    tn_trace_add(trace, 0, "x\xff\xc3y\xed\xa0\x80", "\xe2\x82", 0, 1);
    json_t *root = written(trace);
    const json_t *events = json_object_get(root, "traceEvents");
    assert_string_equal(text_of(json_object_get(json_array_get(events, 0), "args"), "name"), name);
    assert_string_equal(text_of(json_array_get(events, 1), "name"), name);
    assert_string_equal(text_of(json_array_get(events, 1), "cat"), name);
#define BAD "\xef\xbf\xbd" /* U+FFFD */
    assert_string_equal(text_of(json_array_get(events, 2), "name"), "x" BAD BAD "y" BAD BAD BAD);
    assert_string_equal(text_of(json_array_get(events, 2), "cat"), BAD BAD);
    json_decref(root);
    tn_trace_free(trace);
}

/* More than fits into one write. */
static void writes_large_traces(void **state) {
    (void)state;
    tn_trace *trace = create(1, 5000);
    for (int i = 0; i < 5000; i++)
        tn_trace_add(trace, 0, "event", "category", 1e6 + i * 1e-3, 1e6 + i * 1e-3 + 5e-4);
    json_t *root = written(trace);
    const json_t *events = json_object_get(root, "traceEvents");
    assert_int_equal(json_array_size(events), 5001);
    for (size_t i = 1; i <= 5000; i++) {
        const json_t *event = json_array_get(events, i);
        double start = json_number_value(json_object_get(event, "ts"));
        if (start < 1000.0 * (double)(i - 1) - 0.01 || start > 1000.0 * (double)(i - 1) + 0.01)
            fail_msg("event %zu starts at %.3f", i, start);
    }
    json_decref(root);
    tn_trace_free(trace);
}

typedef struct adder {
    tn_trace *trace;
    int thread;
} adder;

static void *add_many(void *argument) {
    adder *a = argument;
    for (int i = 0; i < 20000; i++) tn_trace_add(a->trace, a->thread, "event", "c", i, i + a->thread);
    return NULL;
}

static void threads_do_not_disturb_each_other(void **state) {
    (void)state;
    enum { THREADS = 4 };
    tn_trace *trace = create(THREADS, 15000);
    pthread_t threads[THREADS];
    adder adders[THREADS];
    for (int i = 0; i < THREADS; i++) {
        adders[i] = (adder){trace, i};
        assert_int_equal(pthread_create(&threads[i], NULL, add_many, &adders[i]), 0);
    }
    for (int i = 0; i < THREADS; i++) pthread_join(threads[i], NULL);
    assert_int_equal(tn_trace_dropped(trace), THREADS * 5000);
    json_t *root = written(trace);
    const json_t *events = json_object_get(root, "traceEvents");
    assert_int_equal(json_array_size(events), THREADS + THREADS * 15000);
    for (size_t i = 0; i < THREADS * 15000; i++) {
        const json_t *event = json_array_get(events, THREADS + i);
        assert_number(event, "tid", (double)(i / 15000));
        assert_number(event, "dur", 1e6 * (double)(i / 15000));
    }
    json_decref(root);
    tn_trace_free(trace);
}

static void failed_writes_leave_the_previous_file(void **state) {
    (void)state;
    tn_trace *trace = create(1, 5000);
    for (int i = 0; i < 5000; i++) tn_trace_add(trace, 0, "event", "c", i, i + 1);
    temp_write(path.text, "old", 3);
    static const long limits[] = {1000, 200000};
    for (int i = 0; i < 2; i++) {
        temp_limit_files(limits[i]);
        tn_status status = tn_trace_write(trace, path.text);
        temp_limit_files(-1);
        assert_int_equal(status, TN_ERR_IO);
        assert_error(path.text, strerror(EFBIG));
        assert_true(temp_holds(path.text, "old"));
        assert_int_equal(temp_count(&folder), 1);
    }
    assert_int_equal(tn_trace_write(trace, temp_path_of(&folder, "trace.json/t").text), TN_ERR_IO);
    assert_error("trace.json", strerror(ENOTDIR));
    tn_trace_free(trace);
}

static void survives_failing_allocations(void **state) {
    (void)state;
    int failures = 0;
    for (;; failures++) {
        tn_memory_fail_at(failures + 1);
        tn_trace *trace = NULL;
        tn_status status = tn_trace_create(3, 100, &trace);
        for (int i = 0; i < 10 && status == TN_OK; i++)
            tn_trace_add(trace, 2, "\"event\"", "\n\xff", i, i + 1);
        if (status == TN_OK) status = tn_trace_write(trace, path.text);
        tn_memory_fail_at(0);
        tn_trace_free(trace);
        assert_int_equal(tn_memory_in_use(), *unit_memory_before());
        if (status == TN_OK) break;
        assert_int_equal(status, TN_ERR_MEMORY);
        assert_int_equal(temp_count(&folder), 0);
    }
    assert_true(failures >= 9);
}

static void quoting_fails_whole(void **state) {
    (void)state;
    char value[300];
    memset(value, '\n', sizeof value);
    value[sizeof value - 1] = 0;
    for (int n = 1;; n++) {
        tn_string text = {0};
        assert_int_equal(tn_string_append(&text, "before", 6), TN_OK);
        tn_memory_fail_at(n);
        tn_status status = tn_json_quote(&text, value);
        tn_memory_fail_at(0);
        if (status != TN_OK) {
            assert_int_equal(status, TN_ERR_MEMORY);
            assert_string_equal(text.data, "before");
            assert_int_equal(text.length, 6);
        }
        tn_string_free(&text);
        if (status == TN_OK) {
            assert_true(n > 2);
            break;
        }
    }
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(writes_events_and_thread_names),
        TEST(full_buffers_drop_and_say_so),
        TEST(empty_traces_and_no_trace),
        TEST(escapes_names),
        TEST(writes_large_traces),
        TEST(threads_do_not_disturb_each_other),
        TEST(failed_writes_leave_the_previous_file),
        TEST(survives_failing_allocations),
        TEST(quoting_fails_whole),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
