/* Strings that grow, UTF-8, and text from outside made fit for a one-line message. */
#ifndef TN_BASE_TEXT_H
#define TN_BASE_TEXT_H

#include <stddef.h>

#include "base/fail.h"

/* A growing string. Zero-initialise; `data` is NULL until the first append and NUL-terminated afterwards. */
typedef struct tn_string {
    char *data;
    size_t length, capacity;
} tn_string;

/* Append `size` bytes, or a formatted string. On failure the text is unchanged. */
tn_status tn_string_append(tn_string *text, const char *bytes, size_t size);
tn_status tn_string_printf(tn_string *text, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Appends the code point (0 to 0x10FFFF, no surrogate) as UTF-8. */
tn_status tn_string_code_point(tn_string *text, unsigned code_point);

/* Appends `value` as a quoted field of a CSV file (RFC 4180). */
tn_status tn_string_csv(tn_string *text, const char *value);

/* Frees the memory and leaves an empty text. */
void tn_string_free(tn_string *text);

/* Bytes of the UTF-8 character at the start of `bytes` (`size` bytes are readable), or 0 when there is none:
 * overlong forms, surrogates, values above 0x10FFFF and cut characters are refused (Unicode 15, table 3-7).
 */
size_t tn_utf8_length(const char *bytes, size_t size);

/* Bytes at the start of `bytes` that are valid UTF-8; `size` when all are. */
size_t tn_utf8_prefix(const char *bytes, size_t size);

/* `text` made fit to be shown in a message: control characters and stray bytes become '?', what does not fit
 * is replaced by "...". */
typedef struct tn_legible {
    char text[200];
} tn_legible;
tn_legible tn_make_legible(const char *text);

/* Number of insertions, deletions, replacements and swaps of neighbours that turn `a` into `b`; at least 99
 * when one of them is longer than 63 bytes. */
int tn_edit_distance(const char *a, const char *b);

/* Whether `distance` edits are few enough to offer `candidate` in place of a mistyped `name`. */
int tn_is_near(const char *name, const char *candidate, int distance);

#endif
