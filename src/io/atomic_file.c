#include "io/atomic_file.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/memory.h"
#include "io/file_io.h"

#define SUFFIX ".tn-tmp"

struct tn_atomic_file {
    char *path;
    const char *name;    /* last component of path */
    int folder;          /* everything happens relative to it, so that a chdir in between does no harm */
    int fd;              /* -1 once closed or failed */
    char temporary[256]; /* name of the temporary file in the folder */
};

static tn_status refuse_special(const tn_atomic_file *file) {
    struct stat info;
    if (fstatat(file->folder, file->name, &info, 0) != 0) {
        /* A dangling link is replaced like any other. */
        if (errno == ENOENT) return TN_OK;
        return tn_fail_errno("write", file->path);
    }
    if (S_ISREG(info.st_mode)) return TN_OK;
    return tn_fail(TN_ERR_IO, "cannot write %s: it is %s, not a regular file; choose another name",
                   file->path, S_ISDIR(info.st_mode) ? "a folder" : "a device or pipe");
}

static tn_status create_temporary(tn_atomic_file *file) {
    for (int n = 0; n < 10000; n++) {
        /* The start of the name is for people only; long names are cut to stay within NAME_MAX. */
        snprintf(file->temporary, sizeof file->temporary, "%.200s.%ld.%d" SUFFIX, file->name, (long)getpid(),
                 n);
        file->fd = openat(file->folder, file->temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        if (file->fd >= 0) {
            /* The lock dies with the process: this is how a sweep knows that nobody writes any more. File
             * systems without locks are no reason to fail. */
            (void)flock(file->fd, LOCK_EX | LOCK_NB);
            return TN_OK;
        }
        if (errno != EEXIST) break;
    }
    return tn_fail_errno("create a temporary file beside", file->path);
}

static void release(tn_atomic_file *file) {
    if (file->folder >= 0) close(file->folder);
    tn_free(file->path);
    tn_free(file);
}

/* Removes the temporary file; the message that is already set stays. */
static void discard(tn_atomic_file *file) {
    if (file->fd < 0) return;
    unlinkat(file->folder, file->temporary, 0);
    close(file->fd);
    file->fd = -1;
}

tn_status tn_atomic_begin(const char *path, tn_atomic_file **out) {
    *out = NULL;
    tn_atomic_file *file;
    TN_TRY(tn_alloc(&file, 1, sizeof *file, "file to write"));
    file->folder = file->fd = -1;
    tn_status status = tn_strdup(&file->path, path);
    if (status == TN_OK) status = tn_open_folder_of(file->path, &file->folder, &file->name);
    if (status == TN_OK) status = refuse_special(file);
    if (status == TN_OK) status = create_temporary(file);
    if (status != TN_OK) {
        release(file);
        return status;
    }
    *out = file;
    return TN_OK;
}

tn_status tn_atomic_write(tn_atomic_file *file, const void *bytes, size_t count) {
    if (file->fd < 0) return tn_fail(TN_ERR_IO, "cannot write %s: an earlier write failed", file->path);
    tn_status status = tn_write_all(file->fd, file->path, bytes, count);
    if (status != TN_OK) discard(file);
    return status;
}

/* Syncs, closes and renames. On failure the temporary file is gone. */
static tn_status put_in_place(tn_atomic_file *file) {
    if (file->fd < 0) return tn_fail(TN_ERR_IO, "cannot write %s: an earlier write failed", file->path);
    if (fsync(file->fd) != 0) {
        tn_status status = tn_fail_errno("sync", file->path);
        discard(file);
        return status;
    }
    /* Closed before the rename: a network file system may tell only now that data was lost. */
    tn_status status = tn_close(file->fd, file->path);
    file->fd = -1;
    if (status == TN_OK && renameat(file->folder, file->temporary, file->folder, file->name) != 0)
        status = tn_fail_errno("rename the new version to", file->path);
    if (status != TN_OK) unlinkat(file->folder, file->temporary, 0);
    return status;
}

tn_status tn_atomic_commit(tn_atomic_file *file) {
    tn_status status = put_in_place(file);
    if (status == TN_OK) {
        status = tn_sync_folder(file->folder, file->path);
        if (status != TN_OK)
            tn_fail_prefix(status, "the new version is in place but might not outlast a power cut");
    }
    release(file);
    return status;
}

void tn_atomic_abort(tn_atomic_file *file) {
    if (!file) return;
    discard(file);
    release(file);
}

tn_status tn_atomic_replace(const char *path, const void *bytes, size_t count) {
    tn_atomic_file *file;
    TN_TRY(tn_atomic_begin(path, &file));
    tn_status status = tn_atomic_write(file, bytes, count);
    if (status == TN_OK) return tn_atomic_commit(file);
    tn_atomic_abort(file);
    return status;
}

/* True for NAME.PID.N.tn-tmp. */
static bool is_temporary(const char *name) {
    size_t length = strlen(name);
    if (length <= strlen(SUFFIX) || strcmp(name + length - strlen(SUFFIX), SUFFIX) != 0) return false;
    const char *at = name + length - strlen(SUFFIX);
    for (int number = 0; number < 2; number++) {
        const char *end = at;
        while (at > name && isdigit((unsigned char)at[-1])) at--;
        if (at == end || at == name || at[-1] != '.') return false;
        at--;
    }
    return at > name;
}

/* Removes one temporary file unless a living process holds its lock. */
static tn_status sweep_one(int folder, const char *folder_path, const char *name, int *removed) {
    struct stat info;
    if (fstatat(folder, name, &info, AT_SYMLINK_NOFOLLOW) == 0 && !S_ISREG(info.st_mode)) return TN_OK;
    int fd = openat(folder, name, O_WRONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0 && errno == ENOENT) return TN_OK;
    tn_status status = TN_OK;
    bool alive = fd >= 0 && flock(fd, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK;
    if (!alive) {
        if (unlinkat(folder, name, 0) == 0)
            ++*removed;
        else if (errno != ENOENT)
            status = tn_fail_prefix(tn_fail_errno("remove the old temporary file", name), "folder %s",
                                    folder_path);
    }
    if (fd >= 0) close(fd);
    return status;
}

tn_status tn_atomic_sweep(const char *folder, int *removed) {
    DIR *entries = opendir(folder);
    if (!entries) return tn_fail_errno("open folder", folder);
    tn_status status = TN_OK;
    int count = 0;
    while (status == TN_OK) {
        errno = 0;
        struct dirent *entry = readdir(entries);
        if (!entry && errno != 0) status = tn_fail_errno("read folder", folder);
        if (!entry) break;
        if (is_temporary(entry->d_name)) status = sweep_one(dirfd(entries), folder, entry->d_name, &count);
    }
    if (closedir(entries) != 0 && status == TN_OK) status = tn_fail_errno("close folder", folder);
    if (removed) *removed += count;
    return status;
}
