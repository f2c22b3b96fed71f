#include "io/line_log.h"

#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/memory.h"
#include "base/text.h"
#include "io/file_io.h"

struct tn_line_log {
    char *path;
    int fd;
    int folder; /* the new file's folder until its entry is synced; -1 otherwise */
    int64_t position;
    tn_string line;
};

/* Checks that byte `position` starts a line. */
static tn_status check_line_end(const tn_line_log *log, int64_t position) {
    char last;
    if (position == 0) return TN_OK;
    if (lseek(log->fd, position - 1, SEEK_SET) < 0) return tn_fail_errno("seek in", log->path);
    TN_TRY(tn_read_all(log->fd, log->path, &last, 1));
    if (last == '\n') return TN_OK;
    return tn_fail(TN_ERR_DATA,
                   "%s: no line ends at byte %lld: the file was changed or its last line is cut short",
                   log->path, (long long)position);
}

static tn_status cut(tn_line_log *log, int64_t keep_bytes) {
    struct stat info;
    if (fstat(log->fd, &info) != 0) return tn_fail_errno("look at", log->path);
    if (!S_ISREG(info.st_mode))
        return tn_fail(TN_ERR_IO, "%s is not a regular file; choose another name", log->path);
    log->position = keep_bytes >= 0 ? keep_bytes : info.st_size;
    if (info.st_size < log->position)
        return tn_fail(TN_ERR_DATA,
                       "%s has %lld bytes, but %lld were noted when the run was saved: lines are missing",
                       log->path, (long long)info.st_size, (long long)log->position);
    TN_TRY(check_line_end(log, log->position));
    if (info.st_size > log->position && ftruncate(log->fd, log->position) != 0)
        return tn_fail_errno("cut", log->path);
    return TN_OK;
}

static tn_status open_file(tn_line_log *log, const char *path, int64_t keep_bytes) {
    TN_TRY(tn_strdup(&log->path, path));
    const char *name;
    TN_TRY(tn_open_folder_of(log->path, &log->folder, &name));
    int create = keep_bytes > 0 ? 0 : O_CREAT;
    log->fd = openat(log->folder, name, O_RDWR | O_APPEND | O_CLOEXEC | O_NONBLOCK | create, 0666);
    if (log->fd < 0) return tn_fail_errno("open", log->path);
    return cut(log, keep_bytes);
}

tn_status tn_line_log_open(const char *path, int64_t keep_bytes, tn_line_log **out) {
    *out = NULL;
    tn_line_log *log;
    TN_TRY(tn_alloc(&log, 1, sizeof *log, "log"));
    log->fd = log->folder = -1;
    tn_status status = open_file(log, path, keep_bytes);
    if (status == TN_OK)
        *out = log;
    else
        tn_line_log_close(log);
    return status;
}

tn_status tn_line_log_append(tn_line_log *log, const char *line) {
    if (strchr(line, '\n')) return tn_fail(TN_ERR_USAGE, "%s: a line to append holds a newline", log->path);
    log->line.length = 0;
    TN_TRY(tn_string_append(&log->line, line, strlen(line)));
    TN_TRY(tn_string_append(&log->line, "\n", 1));
    return tn_append_whole(log->fd, log->path, log->line.data, log->line.length, &log->position);
}

int64_t tn_line_log_position(const tn_line_log *log) {
    return log->position;
}

tn_status tn_line_log_sync(tn_line_log *log) {
    if (fsync(log->fd) != 0) return tn_fail_errno("sync", log->path);
    if (log->folder < 0) return TN_OK;
    TN_TRY(tn_sync_folder(log->folder, log->path));
    close(log->folder);
    log->folder = -1;
    return TN_OK;
}

tn_status tn_line_log_close(tn_line_log *log) {
    if (!log) return TN_OK;
    tn_status status = log->fd >= 0 ? tn_close(log->fd, log->path) : TN_OK;
    if (log->folder >= 0) close(log->folder);
    tn_string_free(&log->line);
    tn_free(log->path);
    tn_free(log);
    return status;
}
