/* What every file of this layer needs: whole reads and writes, folders, and error lines with path and reason.
 *
 * All functions return TN_ERR_IO with one line that names the path, what the system said and, where there is
 * one, what to do about it. `path` is for messages only unless said otherwise; file descriptors stay with the
 * caller. */
#ifndef TN_IO_FILE_IO_H
#define TN_IO_FILE_IO_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/fail.h"

/* Fails with "cannot ACTION PATH: REASON", the reason taken from errno, and advice where the reason has some.
 */
tn_status tn_fail_errno(const char *action, const char *path);

/* Writes all `count` bytes at the file's position; continues after interrupted and partial writes. */
tn_status tn_write_all(int fd, const char *path, const void *bytes, size_t count);

/* Reads exactly `count` bytes; a file that ends before is an error. */
tn_status tn_read_all(int fd, const char *path, void *bytes, size_t count);

/* Reads a whole file into *bytes, which gets a NUL behind its *size bytes; free with tn_free. Where there is
 * no file and `found` is not NULL, sets *found to false and *bytes to NULL, and that is no error. */
tn_status tn_read_file(const char *path, char **bytes, size_t *size, bool *found);

/* Appends `count` bytes to the file, whose length is *position, or nothing: after a failure the file is cut
 * back to *position. The common case is a single write(2). Moves *position forward on success. */
tn_status tn_append_whole(int fd, const char *path, const void *bytes, size_t count, int64_t *position);

/* Closes fd and reports what the system says about it. */
tn_status tn_close(int fd, const char *path);

/* Opens the folder that holds `path`, for openat(2), renameat(2) and fsync(2), and points *name at the last
 * component inside `path`. A path that is empty or ends with '/' is TN_ERR_USAGE. Close *fd. */
tn_status tn_open_folder_of(const char *path, int *fd, const char **name);

/* Makes the folder and those above it that are not there. TN_ERR_IO names the one that cannot be made. */
tn_status tn_make_folders(const char *path);

/* Makes the entries of an open folder durable. */
tn_status tn_sync_folder(int fd, const char *path);

#endif
