#include "io/json_text.h"

#include <string.h>

/* Appends one character that needs an escape; `length` is 0 for a malformed one. */
static tn_status append_escaped(tn_string *text, char c, size_t length) {
    if (length == 0) return tn_string_append(text, "\\ufffd", 6);
    if (c == '"' || c == '\\') {
        char pair[2] = {'\\', c};
        return tn_string_append(text, pair, 2);
    }
    return tn_string_printf(text, "\\u%04x", (unsigned)c);
}

static tn_status append_quoted(tn_string *text, const char *value) {
    size_t size = strlen(value), at = 0;
    TN_TRY(tn_string_append(text, "\"", 1));
    while (at < size) {
        /* As much as can stand as it is, then one character that cannot. */
        size_t plain = at, length = 1;
        while (plain < size) {
            unsigned char c = (unsigned char)value[plain];
            length = tn_utf8_length(value + plain, size - plain);
            if (length == 0 || c < 0x20 || c == '"' || c == '\\') break;
            plain += length;
        }
        TN_TRY(tn_string_append(text, value + at, plain - at));
        if (plain < size) {
            TN_TRY(append_escaped(text, value[plain], length));
            plain++;
        }
        at = plain;
    }
    return tn_string_append(text, "\"", 1);
}

bool tn_is_utf8(const char *text) {
    size_t size = strlen(text);
    return tn_utf8_prefix(text, size) == size;
}

tn_status tn_json_quote(tn_string *text, const char *value) {
    size_t before = text->length;
    tn_status status = append_quoted(text, value);
    if (status == TN_OK) return TN_OK;
    text->length = before;
    if (text->data) text->data[before] = 0;
    return status;
}
