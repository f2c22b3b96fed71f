#include "io/file_io.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/memory.h"

static const char *advice(int error) {
    switch (error) {
    case ENOSPC:
    case EDQUOT:
        return "; free some space on that disk";
    case EFBIG:
        return "; the limit on file sizes (ulimit -f) is too low";
    case EACCES:
    case EPERM:
    case EROFS:
        return "; choose a place that you may read and write";
    case ENOENT:
    case ENOTDIR:
        return "; check the path";
    default:
        return "";
    }
}

tn_status tn_fail_errno(const char *action, const char *path) {
    int error = errno;
    return tn_fail(TN_ERR_IO, "cannot %s %s: %s%s", action, path, strerror(error), advice(error));
}

tn_status tn_write_all(int fd, const char *path, const void *bytes, size_t count) {
    const char *at = bytes;
    while (count > 0) {
        ssize_t done = write(fd, at, count);
        if (done < 0 && errno == EINTR) continue;
        if (done < 0) return tn_fail_errno("write", path);
        at += done;
        count -= (size_t)done;
    }
    return TN_OK;
}

tn_status tn_read_all(int fd, const char *path, void *bytes, size_t count) {
    char *at = bytes;
    size_t left = count;
    while (left > 0) {
        ssize_t done = read(fd, at, left);
        if (done < 0 && errno == EINTR) continue;
        if (done < 0) return tn_fail_errno("read", path);
        if (done == 0)
            return tn_fail(TN_ERR_IO, "cannot read %s: it ends %zu bytes early; is it still being written?",
                           path, left);
        at += done;
        left -= (size_t)done;
    }
    return TN_OK;
}

tn_status tn_read_file(const char *path, char **bytes, size_t *size, bool *found) {
    struct stat info;
    *bytes = NULL;
    *size = 0;
    if (found) *found = true;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 && found && (errno == ENOENT || errno == ENOTDIR)) {
        *found = false;
        return TN_OK;
    }
    if (fd < 0) return tn_fail_errno("open", path);
    tn_status status = fstat(fd, &info) == 0 ? TN_OK : tn_fail_errno("look at", path);
    if (status == TN_OK) status = tn_alloc(bytes, (size_t)info.st_size + 1, 1, "a file");
    if (status == TN_OK) status = tn_read_all(fd, path, *bytes, (size_t)info.st_size);
    close(fd); /* was only read */
    if (status == TN_OK) {
        *size = (size_t)info.st_size;
        return TN_OK;
    }
    tn_free(*bytes);
    *bytes = NULL;
    return status;
}

tn_status tn_append_whole(int fd, const char *path, const void *bytes, size_t count, int64_t *position) {
    tn_status status = tn_write_all(fd, path, bytes, count);
    if (status == TN_OK) {
        *position += (int64_t)count;
        return TN_OK;
    }
    if (ftruncate(fd, *position) != 0)
        return tn_fail_prefix(status, "%s holds part of a record after byte %lld", path,
                              (long long)*position);
    return status;
}

tn_status tn_close(int fd, const char *path) {
    /* Linux frees the descriptor even when close fails, so it is never tried again. */
    if (close(fd) != 0 && errno != EINTR) return tn_fail_errno("close", path);
    return TN_OK;
}

tn_status tn_open_folder_of(const char *path, int *fd, const char **name) {
    const char *slash = strrchr(path, '/');
    *name = slash ? slash + 1 : path;
    *fd = -1;
    if (**name == 0) return tn_fail(TN_ERR_USAGE, "'%s' is not the name of a file; give a file name", path);
    char *folder;
    TN_TRY(tn_strdup(&folder, slash ? path : "."));
    if (slash) folder[slash == path ? 1 : slash - path] = 0;
    *fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    tn_status status = *fd < 0 ? tn_fail_errno("open folder", folder) : TN_OK;
    tn_free(folder);
    return status;
}

tn_status tn_sync_folder(int fd, const char *path) {
    /* EINVAL: this file system has nothing to sync for folders. */
    if (fsync(fd) != 0 && errno != EINVAL) return tn_fail_errno("sync the folder of", path);
    return TN_OK;
}

tn_status tn_make_folders(const char *path) {
    char part[4096];
    if (strlen(path) >= sizeof part) return tn_fail(TN_ERR_USAGE, "the name of a folder is too long");
    for (size_t i = 1; path[0] && path[i - 1]; i++) {
        if (path[i] != '/' && path[i] != 0) continue;
        memcpy(part, path, i);
        part[i] = 0;
        if (mkdir(part, 0777) != 0 && errno != EEXIST) return tn_fail_errno("make the folder", part);
    }
    return TN_OK;
}
