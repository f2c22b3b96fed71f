/* Reading JSON (RFC 8259) whose structure is known beforehand: a cursor that goes through the text once and
 * decodes strings in place, without recursion and without memory of its own.
 *
 * Functions that return tn_status fail with TN_ERR_DATA and "WHAT is not valid JSON: byte N: PROBLEM". */
#ifndef TN_IO_JSON_SCAN_H
#define TN_IO_JSON_SCAN_H

#include <stdbool.h>
#include <stdint.h>

#include "base/fail.h"

/* Set text, at = text, end and what. The text is changed while it is read; *end must be a zero byte. */
typedef struct tn_json_scan {
    char *text, *at, *end;
    const char *what; /* names the text in messages */
} tn_json_scan;

/* The next character after spaces; 0 at the end. It stays to be read. */
char tn_json_peek(tn_json_scan *scan);

/* Reads the character `c`, spaces before it skipped. */
tn_status tn_json_expect(tn_json_scan *scan, char c);

/* Walks a list or an object:
 *     for (begin(scan, '[', ']', &more); more; next(scan, ']', &more)) read one element, or a name, ':' and a
 * value. */
tn_status tn_json_begin(tn_json_scan *scan, char open, char close, bool *more);
tn_status tn_json_next(tn_json_scan *scan, char close, bool *more);

/* Reads a string; *out is UTF-8 that ends with a zero byte and lies in the text. Zero characters are refused.
 */
tn_status tn_json_string(tn_json_scan *scan, char **out);

/* Reads a whole number >= 0. Returns NULL, or what stands there instead: "a negative number", "something
 * other than whole numbers" or "a number that is too large". */
const char *tn_json_whole(tn_json_scan *scan, int64_t *value);

/* Reads the end of the text. */
tn_status tn_json_end(tn_json_scan *scan);

#endif
