/* An append-only file of whole lines, such as log.jsonl and metrics.csv.
 *
 * Each line is written at once with a single write(2), so that a killed process leaves whole lines only;
 * after a failed write (disk full) the file is cut back to the last whole line. A resumed run cuts the file
 * to the position that its checkpoint noted and goes on from there. */
#ifndef TN_IO_LINE_LOG_H
#define TN_IO_LINE_LOG_H

#include <stdint.h>

#include "base/fail.h"

typedef struct tn_line_log tn_line_log;

/* Opens `path` for appending. keep_bytes = -1 keeps what is there, 0 empties it, and a larger value cuts it
 * to that many bytes; a missing file is created unless bytes of it are to be kept. TN_ERR_DATA when the file
 * is shorter than keep_bytes or what is kept does not end with a whole line; the file is then as it was.
 * TN_ERR_IO; TN_ERR_MEMORY. */
tn_status tn_line_log_open(const char *path, int64_t keep_bytes, tn_line_log **out);

/* Appends `line` and a newline. TN_ERR_USAGE when it holds a newline itself; TN_ERR_IO; TN_ERR_MEMORY. */
tn_status tn_line_log_append(tn_line_log *log, const char *line);

/* Length of the file in bytes: what to give to tn_line_log_open to come back here. */
int64_t tn_line_log_position(const tn_line_log *log);

/* Waits until all lines, and the file's name in its folder, are on the disk. */
tn_status tn_line_log_sync(tn_line_log *log);

/* Closes the file, without a sync, and frees the log in every case. NULL is allowed. */
tn_status tn_line_log_close(tn_line_log *log);

#endif
