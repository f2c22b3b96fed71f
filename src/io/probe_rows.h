/* probes.csv, which a run with --probe norms leaves in its folder, read back. Columns: epoch (-1 before the
 * first step), step, block (from 0, the stem), layer, output_norm, gradient_norm; a norm is empty where it
 * was not finite. A last line that is not finished, of a run that is still going, is left out. */
#ifndef TN_IO_PROBE_ROWS_H
#define TN_IO_PROBE_ROWS_H

#include <stddef.h>

#include "base/fail.h"

#define TN_PROBE_LAYER_MAX 64 /* bytes of a layer's name, with the NUL */

/* One line; norms are NaN where they were not finite. */
typedef struct tn_probe_row {
    int epoch, block;
    double output, gradient;
    char layer[TN_PROBE_LAYER_MAX];
} tn_probe_row;

typedef struct tn_probe_rows {
    tn_probe_row *rows; /* in the order of the file */
    size_t count, capacity;
} tn_probe_rows;

/* Reads `size` bytes; `file` names them in messages. TN_ERR_DATA with file and line for other text. */
tn_status tn_probe_rows_parse(const char *bytes, size_t size, const char *file, tn_probe_rows *out);
/* The same for a file. TN_ERR_IO when it cannot be read. */
tn_status tn_probe_rows_read(const char *path, tn_probe_rows *out);
/* Whatever the reading gave. */
void tn_probe_rows_free(tn_probe_rows *rows);

#endif
