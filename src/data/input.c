#include "data/input.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/memory.h"
#include "io/file_io.h"

tn_status tn_input_folder(const char *dir, const char *purpose) {
    struct stat info;
    if (stat(dir, &info) != 0)
        return tn_fail(TN_ERR_IO, "cannot open folder %s: %s; give the folder that holds %s", dir,
                       strerror(errno), purpose);
    if (!S_ISDIR(info.st_mode))
        return tn_fail(TN_ERR_IO, "%s is not a folder; give the folder that holds %s", dir, purpose);
    return TN_OK;
}

tn_status tn_input_path(char path[TN_PATH_MAX], const char *dir, const char *name) {
    int length = snprintf(path, TN_PATH_MAX, "%s/%s", dir, name);
    if (length < 0 || length >= TN_PATH_MAX)
        return tn_fail(TN_ERR_USAGE, "the path of %s has more than %d bytes; move the data to a shorter path",
                       name, TN_PATH_MAX - 1);
    return TN_OK;
}

bool tn_input_exists(const char *path) {
    struct stat info;
    return stat(path, &info) == 0 && !S_ISDIR(info.st_mode);
}

static tn_status regular_size(const char *path, const struct stat *info, size_t *size) {
    if (!S_ISREG(info->st_mode))
        return tn_fail(TN_ERR_IO, "%s is not a regular file; give a file on disk", path);
    *size = (size_t)info->st_size;
    return TN_OK;
}

tn_status tn_input_size(const char *path, size_t *size) {
    struct stat info;
    if (stat(path, &info) != 0) return tn_fail_errno("open", path);
    return regular_size(path, &info, size);
}

static tn_status read_descriptor(int fd, const char *path, uint8_t **bytes, size_t *size) {
    struct stat before, after;
    if (fstat(fd, &before) != 0) return tn_fail_errno("read", path);
    TN_TRY(regular_size(path, &before, size));
    TN_TRY(tn_alloc(bytes, *size, 1, path));
    TN_TRY(tn_read_all(fd, path, *bytes, *size));
    if (fstat(fd, &after) != 0) return tn_fail_errno("read", path);
    if (after.st_size != before.st_size)
        return tn_fail(TN_ERR_IO, "%s changed while it was read; wait until it is complete and try again",
                       path);
    return TN_OK;
}

tn_status tn_input_read(const char *path, uint8_t **bytes, size_t *size) {
    *bytes = NULL;
    *size = 0;
    /* O_NONBLOCK: a named pipe must be refused, not waited for. */
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) return tn_fail_errno("open", path);
    tn_status status = read_descriptor(fd, path, bytes, size);
    if (status == TN_OK)
        status = tn_close(fd, path);
    else
        close(fd); /* the first failure is the one to report */
    if (status != TN_OK) {
        tn_free(*bytes);
        *bytes = NULL;
    }
    return status;
}
