/* Replacing a file so that a crash at any point leaves the previous one whole.
 *
 * The new content goes to a temporary file in the same folder, named NAME.PID.N.tn-tmp, which is synced and
 * then renamed over the old file; the folder is synced last. Whatever fails, the temporary file is removed at
 * once, the file at the path stays as it was, and the error names the path and the reason. A process that is
 * killed leaves its temporary file behind: tn_atomic_sweep removes it.
 *
 * Only regular files are replaced: a path that leads to a folder, device, pipe or terminal is refused. A
 * symbolic link is replaced by the file, not followed. Permissions of a new file are 0666 less the process's
 * umask. */
#ifndef TN_IO_ATOMIC_FILE_H
#define TN_IO_ATOMIC_FILE_H

#include <stddef.h>

#include "base/fail.h"

typedef struct tn_atomic_file tn_atomic_file;

/* Starts a new version of the file at `path`. End it with tn_atomic_commit or tn_atomic_abort. TN_ERR_IO,
 * TN_ERR_USAGE (not the name of a file) or TN_ERR_MEMORY; *out is NULL then and nothing is left behind. */
tn_status tn_atomic_begin(const char *path, tn_atomic_file **out);

/* Adds bytes at the end. After a failure the temporary file is gone, and every later call fails in the same
 * way. */
tn_status tn_atomic_write(tn_atomic_file *file, const void *bytes, size_t count);

/* Puts the new version in place, durably, and frees the handle in every case. Should only the last step fail,
 * the sync of the folder, the error says so: the new version is then in place but might not outlast a power
 * cut. */
tn_status tn_atomic_commit(tn_atomic_file *file);

/* Gives the new version up: removes the temporary file and frees the handle. NULL is allowed. */
void tn_atomic_abort(tn_atomic_file *file);

/* Replaces the file at `path` by `count` bytes: all of the above in one. */
tn_status tn_atomic_replace(const char *path, const void *bytes, size_t count);

/* Removes temporary files that killed processes left in `folder` and adds their number to *removed when not
 * NULL. Files that a living process is writing are locked and stay. TN_ERR_IO when the folder or such a file
 * cannot be handled. */
tn_status tn_atomic_sweep(const char *folder, int *removed);

#endif
