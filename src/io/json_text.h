/* Writing JSON as text. */
#ifndef TN_IO_JSON_TEXT_H
#define TN_IO_JSON_TEXT_H

#include <stdbool.h>

#include "base/text.h"

/* Appends `value` as a JSON string with its quotes (RFC 8259). Bytes that are not UTF-8 become U+FFFD. On
 * failure (TN_ERR_MEMORY) the text is unchanged. */
tn_status tn_json_quote(tn_string *text, const char *value);

/* Whether all of `text` is UTF-8, as JSON and protocol buffers want it. */
bool tn_is_utf8(const char *text);

#endif
