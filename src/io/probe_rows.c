#include "io/probe_rows.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/memory.h"
#include "base/number.h"
#include "base/text.h"
#include "io/file_io.h"

enum { COLUMNS = 6 };

/* Splits a line at its commas into exactly COLUMNS fields. */
static bool split(char *line, char *fields[COLUMNS]) {
    fields[0] = line;
    for (int i = 1; i < COLUMNS; i++) {
        char *comma = strchr(fields[i - 1], ',');
        if (!comma) return false;
        *comma = 0;
        fields[i] = comma + 1;
    }
    return !strchr(fields[COLUMNS - 1], ',');
}

static bool whole(const char *text, int *out) {
    double value;
    if (!tn_number_parse(text, &value) || value != floor(value) || fabs(value) > 1e9) return false;
    *out = (int)value;
    return true;
}

static bool norm(const char *text, double *out) {
    *out = NAN;
    return !*text || (tn_number_parse(text, out) && *out >= 0);
}

static bool parse_row(char *line, tn_probe_row *row) {
    char *fields[COLUMNS];
    if (!split(line, fields)) return false;
    int used = snprintf(row->layer, sizeof row->layer, "%s", fields[3]);
    return whole(fields[0], &row->epoch) && whole(fields[2], &row->block) && norm(fields[4], &row->output) &&
           norm(fields[5], &row->gradient) && used < (int)sizeof row->layer;
}

static tn_status parse(const char *bytes, size_t size, const char *file, tn_probe_rows *out) {
    const char *at = bytes, *end = bytes + size, *newline;
    for (int number = 1; at < end && (newline = memchr(at, '\n', (size_t)(end - at))); number++) {
        char line[256];
        size_t length = (size_t)(newline - at);
        tn_probe_row row;
        bool good = length < sizeof line;
        if (good) {
            memcpy(line, at, length);
            line[length] = 0;
            good = number == 1 ? !strncmp(line, "epoch,step,block,", 17) : parse_row(line, &row);
        }
        if (!good)
            return tn_fail(TN_ERR_DATA, "%s:%d: not a line of probes.csv; was the file changed?",
                           tn_make_legible(file).text, number);
        at = newline + 1;
        if (number == 1) continue;
        TN_TRY(tn_grow(&out->rows, &out->capacity, out->count + 1, sizeof *out->rows, "probes"));
        out->rows[out->count++] = row;
    }
    return TN_OK;
}

tn_status tn_probe_rows_parse(const char *bytes, size_t size, const char *file, tn_probe_rows *out) {
    *out = (tn_probe_rows){0};
    tn_status status = parse(bytes, size, file, out);
    if (status != TN_OK) tn_probe_rows_free(out);
    return status;
}

tn_status tn_probe_rows_read(const char *path, tn_probe_rows *out) {
    char *bytes;
    size_t size;
    *out = (tn_probe_rows){0};
    TN_TRY(tn_read_file(path, &bytes, &size, NULL));
    tn_status status = tn_probe_rows_parse(bytes, size, path, out);
    tn_free(bytes);
    return status;
}

void tn_probe_rows_free(tn_probe_rows *rows) {
    tn_free(rows->rows);
    *rows = (tn_probe_rows){0};
}
