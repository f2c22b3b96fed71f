/* Replacing files: the previous version survives every failure and every crash. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "base/memory.h"
#include "io/atomic_file.h"
#include "temp_folder.h"
#include "tests/support/unit_fixture.h"

/* These take the place of the C library's functions in this program, to fail when a test wants it. */
static int fsync_countdown, fsync_errno, close_fails, unlink_fails;

int fsync(int fd) {
    if (fsync_countdown > 0 && --fsync_countdown == 0) {
        errno = fsync_errno;
        return -1;
    }
    return (int)syscall(SYS_fsync, fd);
}

int close(int fd) {
    int result = (int)syscall(SYS_close, fd);
    if (!close_fails) return result;
    close_fails = 0;
    errno = EIO;
    return -1;
}

int unlinkat(int folder_fd, const char *name, int flags) {
    if (!unlink_fails) return (int)syscall(SYS_unlinkat, folder_fd, name, flags);
    errno = EROFS;
    return -1;
}

static temp_folder folder;
static temp_path path;

static int setup(void **state) {
    folder = temp_folder_make();
    path = temp_path_of(&folder, "file.txt");
    temp_write(path.text, "old", 3);
    return unit_setup(state);
}

static int teardown(void **state) {
    temp_folder_remove(&folder);
    return unit_teardown(state);
}

/* Nothing but the previous version is there. */
static void assert_untouched(void) {
    assert_true(temp_holds(path.text, "old"));
    assert_int_equal(temp_count(&folder), 1);
}

static tn_status replace(const char *target, const char *text) {
    tn_atomic_file *file;
    TN_TRY(tn_atomic_begin(target, &file));
    tn_status status = tn_atomic_write(file, text, strlen(text) / 2);
    if (status == TN_OK)
        status = tn_atomic_write(file, text + strlen(text) / 2, strlen(text) - strlen(text) / 2);
    if (status == TN_OK) return tn_atomic_commit(file);
    tn_atomic_abort(file);
    return status;
}

static void replaces_and_creates(void **state) {
    (void)state;
    assert_int_equal(replace(path.text, "new version"), TN_OK);
    assert_true(temp_holds(path.text, "new version"));
    assert_int_equal(replace(temp_path_of(&folder, "other").text, ""), TN_OK);
    assert_true(temp_holds(temp_path_of(&folder, "other").text, ""));
    assert_int_equal(temp_count(&folder), 2);
}

static void previous_is_there_until_commit(void **state) {
    (void)state;
    tn_atomic_file *file;
    assert_int_equal(tn_atomic_begin(path.text, &file), TN_OK);
    assert_int_equal(tn_atomic_write(file, "new", 3), TN_OK);
    assert_true(temp_holds(path.text, "old"));
    assert_int_equal(temp_count(&folder), 2);
    tn_atomic_abort(file);
    assert_untouched();
    tn_atomic_abort(NULL);
}

static void failed_write_leaves_previous(void **state) {
    (void)state;
    tn_atomic_file *file;
    char block[4096] = {0};
    assert_int_equal(tn_atomic_begin(path.text, &file), TN_OK);
    temp_limit_files(5000);
    assert_int_equal(tn_atomic_write(file, block, sizeof block), TN_OK);
    tn_status status = tn_atomic_write(file, block, sizeof block);
    temp_limit_files(-1);
    assert_int_equal(status, TN_ERR_IO);
    assert_error(path.text, strerror(EFBIG));
    assert_untouched();
    assert_int_equal(tn_atomic_write(file, block, 1), TN_ERR_IO);
    assert_error(path.text, "earlier write");
    assert_int_equal(tn_atomic_commit(file), TN_ERR_IO);
    assert_untouched();
}

static void failed_sync_leaves_previous(void **state) {
    (void)state;
    fsync_countdown = 1;
    fsync_errno = ENOSPC;
    assert_int_equal(replace(path.text, "new"), TN_ERR_IO);
    assert_error(path.text, strerror(ENOSPC));
    assert_error("sync", "free some space");
    assert_untouched();
}

static void failed_close_leaves_previous(void **state) {
    (void)state;
    tn_atomic_file *file;
    assert_int_equal(tn_atomic_begin(path.text, &file), TN_OK);
    assert_int_equal(tn_atomic_write(file, "new", 3), TN_OK);
    close_fails = 1;
    assert_int_equal(tn_atomic_commit(file), TN_ERR_IO);
    assert_error("close", path.text);
    assert_untouched();
}

static void failed_rename_leaves_no_temporary(void **state) {
    (void)state;
    tn_atomic_file *file;
    temp_path target = temp_path_of(&folder, "target");
    assert_int_equal(tn_atomic_begin(target.text, &file), TN_OK);
    assert_int_equal(tn_atomic_write(file, "new", 3), TN_OK);
    assert_int_equal(mkdir(target.text, 0777), 0);
    assert_int_equal(tn_atomic_commit(file), TN_ERR_IO);
    assert_error("rename", target.text);
    assert_int_equal(rmdir(target.text), 0);
    assert_untouched();
}

static void failed_folder_sync_says_that_new_is_in_place(void **state) {
    (void)state;
    fsync_countdown = 2;
    fsync_errno = EIO;
    assert_int_equal(replace(path.text, "new"), TN_ERR_IO);
    assert_error(path.text, "in place");
    assert_true(temp_holds(path.text, "new"));
    assert_int_equal(temp_count(&folder), 1);
    fsync_countdown = 2;
    fsync_errno = EINVAL; /* a file system that syncs no folders */
    assert_int_equal(replace(path.text, "newer"), TN_OK);
    assert_true(temp_holds(path.text, "newer"));
}

static void refuses_what_is_not_a_file(void **state) {
    (void)state;
    tn_atomic_file *file;
    assert_int_equal(tn_atomic_begin(folder.path, &file), TN_ERR_IO);
    assert_null(file);
    assert_error(folder.path, "a folder");
    temp_path pipe = temp_path_of(&folder, "pipe");
    assert_int_equal(mkfifo(pipe.text, 0666), 0);
    assert_int_equal(tn_atomic_begin(pipe.text, &file), TN_ERR_IO);
    assert_error(pipe.text, "device or pipe");
    assert_int_equal(unlink(pipe.text), 0);
    assert_int_equal(tn_atomic_begin("", &file), TN_ERR_USAGE);
    assert_int_equal(tn_atomic_begin(temp_path_of(&folder, "x/").text, &file), TN_ERR_USAGE);
    assert_error("x/", "not the name of a file");
    assert_untouched();
}

static void names_folders_that_cannot_be_used(void **state) {
    (void)state;
    tn_atomic_file *file;
    assert_int_equal(tn_atomic_begin(temp_path_of(&folder, "missing/file").text, &file), TN_ERR_IO);
    assert_error("missing", strerror(ENOENT));
    assert_int_equal(tn_atomic_begin(temp_path_of(&folder, "file.txt/file").text, &file), TN_ERR_IO);
    assert_error("file.txt", strerror(ENOTDIR));
    char name[300];
    memset(name, 'n', sizeof name);
    name[sizeof name - 1] = 0;
    assert_int_equal(tn_atomic_begin(temp_path_of(&folder, name).text, &file), TN_ERR_IO);
    assert_error(name, strerror(ENAMETOOLONG));
    assert_int_equal(tn_atomic_begin("/proc/file", &file), TN_ERR_IO);
    assert_error("/proc/file", "cannot");
    assert_untouched();
}

static void works_with_relative_paths_and_chdir(void **state) {
    (void)state;
    char before[4096];
    assert_non_null(getcwd(before, sizeof before));
    assert_int_equal(chdir(folder.path), 0);
    tn_atomic_file *file;
    assert_int_equal(tn_atomic_begin("file.txt", &file), TN_OK);
    assert_int_equal(chdir(before), 0);
    assert_int_equal(tn_atomic_write(file, "new", 3), TN_OK);
    assert_int_equal(tn_atomic_commit(file), TN_OK);
    assert_true(temp_holds(path.text, "new"));
    assert_int_equal(temp_count(&folder), 1);
}

static void replaces_a_link_and_not_its_target(void **state) {
    (void)state;
    temp_path link = temp_path_of(&folder, "link");
    assert_int_equal(symlink("file.txt", link.text), 0);
    assert_int_equal(replace(link.text, "new"), TN_OK);
    assert_true(temp_holds(link.text, "new"));
    assert_true(temp_holds(path.text, "old"));
}

static void takes_the_longest_name_and_honours_umask(void **state) {
    (void)state;
    char name[256];
    memset(name, 'n', 255);
    name[255] = 0;
    temp_path target = temp_path_of(&folder, name);
    mode_t before = umask(027);
    assert_int_equal(replace(target.text, "new"), TN_OK);
    umask(before);
    struct stat info;
    assert_int_equal(stat(target.text, &info), 0);
    assert_int_equal(info.st_mode & 0777, 0640);
}

static void two_versions_at_once_do_not_meet(void **state) {
    (void)state;
    tn_atomic_file *a, *b;
    assert_int_equal(tn_atomic_begin(path.text, &a), TN_OK);
    assert_int_equal(tn_atomic_begin(path.text, &b), TN_OK);
    assert_int_equal(tn_atomic_write(a, "aaaa", 4), TN_OK);
    assert_int_equal(tn_atomic_write(b, "b", 1), TN_OK);
    assert_int_equal(tn_atomic_commit(a), TN_OK);
    assert_true(temp_holds(path.text, "aaaa"));
    assert_int_equal(tn_atomic_commit(b), TN_OK);
    assert_true(temp_holds(path.text, "b"));
    assert_int_equal(temp_count(&folder), 1);
}

static void survives_failing_allocations(void **state) {
    (void)state;
    int failures = 0;
    for (;; failures++) {
        tn_memory_fail_at(failures + 1);
        tn_status status = replace(path.text, "new");
        tn_memory_fail_at(0);
        assert_int_equal(tn_memory_in_use(), *unit_memory_before());
        if (status == TN_OK) break;
        assert_int_equal(status, TN_ERR_MEMORY);
        assert_untouched();
    }
    assert_true(failures >= 3);
}

/* A child that replaces the file over and over with 64 KiB of one letter, until it is killed. */
static void child_replaces_forever(void) {
    static char text[65537];
    for (int i = 0;; i++) {
        memset(text, 'a' + i % 26, 65536);
        if (replace(path.text, text) != TN_OK) _exit(1);
    }
}

static void killed_anywhere_leaves_a_whole_file(void **state) {
    (void)state;
    for (int round = 0; round < 25; round++) {
        pid_t child = fork();
        assert_true(child >= 0);
        if (child == 0) child_replaces_forever();
        usleep((useconds_t)(1000 + 1379 * round % 7000));
        assert_int_equal(kill(child, SIGKILL), 0);
        int how;
        assert_int_equal(waitpid(child, &how, 0), child);
        assert_true(WIFSIGNALED(how));
        size_t count = 0;
        char *bytes = temp_read(path.text, &count);
        assert_non_null(bytes);
        if (count != 3) {
            assert_int_equal(count, 65536);
            for (size_t i = 1; i < count; i++)
                if (bytes[i] != bytes[0]) fail_msg("byte %zu is of another version", i);
        }
        free(bytes);
    }
    assert_int_equal(tn_atomic_sweep(folder.path, NULL), TN_OK);
    assert_int_equal(temp_count(&folder), 1);
}

static void sweep_removes_what_a_killed_process_left(void **state) {
    (void)state;
    char name[256];
    memset(name, 'n', 255);
    name[255] = 0;
    temp_path longest = temp_path_of(&folder, name);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        tn_atomic_file *file;
        if (tn_atomic_begin(path.text, &file) != TN_OK || tn_atomic_write(file, "ne", 2) != TN_OK) _exit(1);
        if (tn_atomic_begin(longest.text, &file) != TN_OK) _exit(1);
        raise(SIGKILL);
    }
    int how;
    assert_int_equal(waitpid(child, &how, 0), child);
    assert_true(WIFSIGNALED(how));
    assert_int_equal(temp_count(&folder), 3);
    assert_true(temp_holds(path.text, "old"));
    int removed = 10;
    assert_int_equal(tn_atomic_sweep(folder.path, &removed), TN_OK);
    assert_int_equal(removed, 12);
    assert_untouched();
}

static void sweep_spares_living_and_foreign_files(void **state) {
    (void)state;
    tn_atomic_file *file;
    assert_int_equal(tn_atomic_begin(path.text, &file), TN_OK);
    static const char *const foreign[] = {"a.tn-tmp",    ".tn-tmp",       "a.1.tn-tmp",  "a.1.x.tn-tmp",
                                          ".1.2.tn-tmp", "a.1.2.tn-tmp.", "a.1.2tn-tmp", "1.2.tn-tmp",
                                          "a..2.tn-tmp", "ab1.2.tn-tmp",  "a.1x2.tn-tmp"};
    int names = (int)(sizeof foreign / sizeof *foreign);
    for (int i = 0; i < names; i++) temp_write(temp_path_of(&folder, foreign[i]).text, "x", 1);
    assert_int_equal(mkdir(temp_path_of(&folder, "b.1.2.tn-tmp").text, 0777), 0);
    int removed = 0;
    assert_int_equal(tn_atomic_sweep(folder.path, &removed), TN_OK);
    assert_int_equal(removed, 0);
    assert_int_equal(temp_count(&folder), names + 3);
    temp_write(temp_path_of(&folder, "a.1.2.tn-tmp").text, "x", 1);
    assert_int_equal(tn_atomic_sweep(folder.path, &removed), TN_OK);
    assert_int_equal(removed, 1);
    assert_int_equal(tn_atomic_commit(file), TN_OK);
}

static void sweep_says_what_cannot_be_removed(void **state) {
    (void)state;
    temp_write(temp_path_of(&folder, "a.1.2.tn-tmp").text, "x", 1);
    int removed = 0;
    unlink_fails = 1;
    tn_status status = tn_atomic_sweep(folder.path, &removed);
    unlink_fails = 0;
    assert_int_equal(status, TN_ERR_IO);
    assert_error("a.1.2.tn-tmp", folder.path);
    assert_error(strerror(EROFS), "choose a place");
    assert_int_equal(removed, 0);
}

static void sweep_names_a_missing_folder(void **state) {
    (void)state;
    temp_path missing = temp_path_of(&folder, "missing");
    assert_int_equal(tn_atomic_sweep(missing.text, NULL), TN_ERR_IO);
    assert_error(missing.text, strerror(ENOENT));
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(replaces_and_creates),
        TEST(previous_is_there_until_commit),
        TEST(failed_write_leaves_previous),
        TEST(failed_sync_leaves_previous),
        TEST(failed_close_leaves_previous),
        TEST(failed_rename_leaves_no_temporary),
        TEST(failed_folder_sync_says_that_new_is_in_place),
        TEST(refuses_what_is_not_a_file),
        TEST(names_folders_that_cannot_be_used),
        TEST(works_with_relative_paths_and_chdir),
        TEST(replaces_a_link_and_not_its_target),
        TEST(takes_the_longest_name_and_honours_umask),
        TEST(two_versions_at_once_do_not_meet),
        TEST(survives_failing_allocations),
        TEST(killed_anywhere_leaves_a_whole_file),
        TEST(sweep_removes_what_a_killed_process_left),
        TEST(sweep_spares_living_and_foreign_files),
        TEST(sweep_says_what_cannot_be_removed),
        TEST(sweep_names_a_missing_folder),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
