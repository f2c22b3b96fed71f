/* Input files: whole, and with messages that name them. */
#ifndef TN_DATA_INPUT_H
#define TN_DATA_INPUT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/fail.h"

#define TN_PATH_MAX 4096

/* TN_ERR_IO unless `dir` is a folder that exists; `purpose` says what should be in it. */
tn_status tn_input_folder(const char *dir, const char *purpose);

/* Writes "dir/name" to path; TN_ERR_USAGE when that is too long. */
tn_status tn_input_path(char path[TN_PATH_MAX], const char *dir, const char *name);

/* Whether something that is not a folder has this name. */
bool tn_input_exists(const char *path);

/* Size in bytes of a regular file. */
tn_status tn_input_size(const char *path, size_t *size);

/* Reads a regular file into fresh memory; free with tn_free. */
tn_status tn_input_read(const char *path, uint8_t **bytes, size_t *size);

#endif
