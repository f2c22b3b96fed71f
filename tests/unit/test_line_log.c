/* Append-only logs: whole lines only, cut back for a resumed run. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "base/memory.h"
#include "io/line_log.h"
#include "temp_folder.h"
#include "tests/support/unit_fixture.h"

/* These take the place of the C library's functions in this program, to count calls and to fail when wanted.
 */
static int fsync_calls, fsync_fails_at, ftruncate_fails, close_fails, write_calls;

int fsync(int fd) {
    if (++fsync_calls == fsync_fails_at) {
        errno = EIO;
        return -1;
    }
    return (int)syscall(SYS_fsync, fd);
}

int ftruncate(int fd, off_t length) {
    if (ftruncate_fails) {
        errno = EIO;
        return -1;
    }
    return (int)syscall(SYS_ftruncate, fd, length);
}

int close(int fd) {
    int result = (int)syscall(SYS_close, fd);
    if (!close_fails) return result;
    close_fails = 0;
    errno = ENOSPC;
    return -1;
}

ssize_t write(int fd, const void *bytes, size_t count) {
    write_calls++;
    return syscall(SYS_write, fd, bytes, count);
}

static temp_folder folder;
static temp_path path;

static int setup(void **state) {
    fsync_calls = fsync_fails_at = ftruncate_fails = close_fails = 0;
    folder = temp_folder_make();
    path = temp_path_of(&folder, "log.jsonl");
    return unit_setup(state);
}

static int teardown(void **state) {
    temp_folder_remove(&folder);
    return unit_teardown(state);
}

static tn_line_log *open_log(int64_t keep_bytes) {
    tn_line_log *log;
    if (tn_line_log_open(path.text, keep_bytes, &log) != TN_OK) fail_msg("%s", tn_error());
    return log;
}

/* The file cannot be opened so, the reason is given, and its content stays. */
static void refuse_open(int64_t keep_bytes, tn_status expected, const char *reason) {
    tn_line_log *log;
    char *before = temp_read(path.text, NULL);
    assert_int_equal(tn_line_log_open(path.text, keep_bytes, &log), expected);
    assert_null(log);
    assert_error(path.text, reason);
    char *after = temp_read(path.text, NULL);
    if (before && after) assert_string_equal(before, after);
    assert_true((before == NULL) == (after == NULL));
    free(before);
    free(after);
}

static void appends_lines(void **state) {
    (void)state;
    tn_line_log *log = open_log(-1);
    assert_int_equal(tn_line_log_position(log), 0);
    assert_int_equal(tn_line_log_append(log, "{\"event\":\"start\"}"), TN_OK);
    assert_int_equal(tn_line_log_position(log), 18);
    assert_true(temp_holds(path.text, "{\"event\":\"start\"}\n"));
    assert_int_equal(tn_line_log_append(log, ""), TN_OK);
    assert_int_equal(tn_line_log_append(log, "end"), TN_OK);
    assert_int_equal(tn_line_log_position(log), 23);
    assert_int_equal(tn_line_log_close(log), TN_OK);
    assert_true(temp_holds(path.text, "{\"event\":\"start\"}\n\nend\n"));
    assert_int_equal(tn_line_log_close(NULL), TN_OK);
}

static void a_line_is_one_write(void **state) {
    (void)state;
    tn_line_log *log = open_log(-1);
    char line[20001];
    memset(line, 'x', 20000);
    line[20000] = 0;
    write_calls = 0;
    for (int i = 1; i <= 3; i++) {
        assert_int_equal(tn_line_log_append(log, line), TN_OK);
        assert_int_equal(write_calls, i);
    }
    assert_int_equal(tn_line_log_close(log), TN_OK);
}

static void goes_on_where_it_was(void **state) {
    (void)state;
    temp_write(path.text, "one\ntwo\nthree\n", 14);
    tn_line_log *log = open_log(-1);
    assert_int_equal(tn_line_log_position(log), 14);
    assert_int_equal(tn_line_log_append(log, "four"), TN_OK);
    assert_int_equal(tn_line_log_close(log), TN_OK);
    assert_true(temp_holds(path.text, "one\ntwo\nthree\nfour\n"));
}

static void cuts_back_for_a_resumed_run(void **state) {
    (void)state;
    /* The last line is half written: it goes with the rest. */
    temp_write(path.text, "one\ntwo\nthree\nfo", 16);
    tn_line_log *log = open_log(8);
    assert_int_equal(tn_line_log_position(log), 8);
    assert_true(temp_holds(path.text, "one\ntwo\n"));
    assert_int_equal(tn_line_log_append(log, "3"), TN_OK);
    assert_int_equal(tn_line_log_close(log), TN_OK);
    assert_true(temp_holds(path.text, "one\ntwo\n3\n"));
    assert_int_equal(tn_line_log_close(open_log(10)), TN_OK);
    assert_true(temp_holds(path.text, "one\ntwo\n3\n"));
    assert_int_equal(tn_line_log_close(open_log(0)), TN_OK);
    assert_true(temp_holds(path.text, ""));
}

static void refuses_a_shorter_file(void **state) {
    (void)state;
    temp_write(path.text, "one\n", 4);
    refuse_open(5, TN_ERR_DATA, "has 4 bytes, but 5 were noted");
    assert_int_equal(unlink(path.text), 0);
    refuse_open(4, TN_ERR_IO, strerror(ENOENT));
}

static void refuses_half_a_line(void **state) {
    (void)state;
    temp_write(path.text, "one\ntwo", 7);
    refuse_open(7, TN_ERR_DATA, "no line ends at byte 7");
    refuse_open(2, TN_ERR_DATA, "no line ends at byte 2");
    refuse_open(-1, TN_ERR_DATA, "no line ends at byte 7");
}

static void refuses_what_is_not_a_file(void **state) {
    (void)state;
    assert_int_equal(mkdir(path.text, 0777), 0);
    tn_line_log *log;
    assert_int_equal(tn_line_log_open(path.text, -1, &log), TN_ERR_IO);
    assert_error(path.text, strerror(EISDIR));
    assert_int_equal(rmdir(path.text), 0);
    assert_int_equal(mkfifo(path.text, 0666), 0);
    assert_int_equal(tn_line_log_open(path.text, -1, &log), TN_ERR_IO);
    assert_error(path.text, "not a regular file");
    assert_int_equal(unlink(path.text), 0);
    assert_int_equal(tn_line_log_open(temp_path_of(&folder, "missing/log").text, -1, &log), TN_ERR_IO);
    assert_error("missing", strerror(ENOENT));
    temp_write(path.text, "", 0);
    assert_int_equal(tn_line_log_open(temp_path_of(&folder, "log.jsonl/log").text, -1, &log), TN_ERR_IO);
    assert_error("log.jsonl", strerror(ENOTDIR));
    assert_int_equal(tn_line_log_open("", -1, &log), TN_ERR_USAGE);
}

static void refuses_a_newline_in_a_line(void **state) {
    (void)state;
    tn_line_log *log = open_log(-1);
    assert_int_equal(tn_line_log_append(log, "a\nb"), TN_ERR_USAGE);
    assert_error(path.text, "newline");
    assert_int_equal(tn_line_log_close(log), TN_OK);
    assert_true(temp_holds(path.text, ""));
}

static void failed_write_leaves_whole_lines(void **state) {
    (void)state;
    tn_line_log *log = open_log(-1);
    assert_int_equal(tn_line_log_append(log, "first"), TN_OK);
    /* Room for six more bytes: the line is written in part and taken back. */
    temp_limit_files(12);
    tn_status status = tn_line_log_append(log, "second line");
    temp_limit_files(-1);
    assert_int_equal(status, TN_ERR_IO);
    assert_error(path.text, strerror(EFBIG));
    assert_int_equal(tn_line_log_position(log), 6);
    assert_true(temp_holds(path.text, "first\n"));
    assert_int_equal(tn_line_log_append(log, "second"), TN_OK);
    assert_int_equal(tn_line_log_close(log), TN_OK);
    assert_true(temp_holds(path.text, "first\nsecond\n"));
}

static void says_when_half_a_line_stays(void **state) {
    (void)state;
    tn_line_log *log = open_log(-1);
    assert_int_equal(tn_line_log_append(log, "first"), TN_OK);
    temp_limit_files(12);
    ftruncate_fails = 1;
    tn_status status = tn_line_log_append(log, "second line");
    temp_limit_files(-1);
    assert_int_equal(status, TN_ERR_IO);
    assert_error("holds part of a record after byte 6", strerror(EFBIG));
    assert_int_equal(tn_line_log_close(log), TN_OK);
    refuse_open(3, TN_ERR_DATA, "no line ends");
    refuse_open(6, TN_ERR_IO, "cannot cut");
}

static void sync_waits_for_file_and_folder(void **state) {
    (void)state;
    tn_line_log *log = open_log(-1);
    assert_int_equal(tn_line_log_append(log, "line"), TN_OK);
    fsync_fails_at = fsync_calls + 1;
    assert_int_equal(tn_line_log_sync(log), TN_ERR_IO);
    assert_error("sync", path.text);
    fsync_fails_at = fsync_calls + 2;
    assert_int_equal(tn_line_log_sync(log), TN_ERR_IO);
    assert_error("sync the folder of", path.text);
    fsync_fails_at = 0;
    int before = fsync_calls;
    assert_int_equal(tn_line_log_sync(log), TN_OK);
    assert_int_equal(fsync_calls, before + 2);
    assert_int_equal(tn_line_log_sync(log), TN_OK);
    assert_int_equal(fsync_calls, before + 3); /* the folder once is enough */
    assert_int_equal(tn_line_log_close(log), TN_OK);
}

static void close_reports_lost_data(void **state) {
    (void)state;
    tn_line_log *log = open_log(-1);
    close_fails = 1;
    assert_int_equal(tn_line_log_close(log), TN_ERR_IO);
    assert_error("close", path.text);
    assert_error(strerror(ENOSPC), "free some space");
}

static void killed_process_leaves_whole_lines(void **state) {
    (void)state;
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        tn_line_log *log;
        if (tn_line_log_open(path.text, -1, &log) != TN_OK) _exit(1);
        for (;;)
            if (tn_line_log_append(log, "0123456789012345678") != TN_OK) _exit(1);
    }
    assert_true(temp_wait_for_bytes(&folder, 2000));
    assert_int_equal(kill(child, SIGKILL), 0);
    int how;
    assert_int_equal(waitpid(child, &how, 0), child);
    assert_true(WIFSIGNALED(how));
    struct stat info;
    assert_int_equal(stat(path.text, &info), 0);
    assert_true(info.st_size > 0);
    assert_int_equal(info.st_size % 20, 0);
}

static void survives_failing_allocations(void **state) {
    (void)state;
    int failures = 0;
    for (;; failures++) {
        tn_memory_fail_at(failures + 1);
        tn_line_log *log = NULL;
        tn_status status = tn_line_log_open(path.text, -1, &log);
        if (status == TN_OK) status = tn_line_log_append(log, "line");
        tn_memory_fail_at(0);
        assert_int_equal(tn_line_log_close(log), TN_OK);
        assert_int_equal(tn_memory_in_use(), *unit_memory_before());
        if (status == TN_OK) break;
        assert_int_equal(status, TN_ERR_MEMORY);
    }
    assert_true(failures >= 3);
    assert_true(temp_holds(path.text, "line\n"));
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(appends_lines),
        TEST(a_line_is_one_write),
        TEST(goes_on_where_it_was),
        TEST(cuts_back_for_a_resumed_run),
        TEST(refuses_a_shorter_file),
        TEST(refuses_half_a_line),
        TEST(refuses_what_is_not_a_file),
        TEST(refuses_a_newline_in_a_line),
        TEST(failed_write_leaves_whole_lines),
        TEST(says_when_half_a_line_stays),
        TEST(sync_waits_for_file_and_folder),
        TEST(close_reports_lost_data),
        TEST(killed_process_leaves_whole_lines),
        TEST(survives_failing_allocations),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
