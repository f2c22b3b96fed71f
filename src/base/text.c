#include "base/text.h"

#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "base/memory.h"

tn_status tn_string_append(tn_string *text, const char *bytes, size_t size) {
    TN_TRY(tn_grow(&text->data, &text->capacity, text->length + size + 1, 1, "text"));
    if (size) memcpy(text->data + text->length, bytes, size);
    text->length += size;
    text->data[text->length] = 0;
    return TN_OK;
}

tn_status tn_string_printf(tn_string *text, const char *format, ...) {
    va_list args;
    va_start(args, format);
    int size = vsnprintf(NULL, 0, format, args);
    va_end(args);
    TN_ASSERT(size >= 0);
    TN_TRY(tn_grow(&text->data, &text->capacity, text->length + (size_t)size + 1, 1, "text"));
    va_start(args, format);
    vsnprintf(text->data + text->length, (size_t)size + 1, format, args);
    va_end(args);
    text->length += (size_t)size;
    return TN_OK;
}

tn_status tn_string_code_point(tn_string *text, unsigned c) {
    char bytes[4];
    if (c < 0x80) {
        bytes[0] = (char)c;
        return tn_string_append(text, bytes, 1);
    }
    int tail = c < 0x800 ? 1 : c < 0x10000 ? 2 : 3;
    static const unsigned lead[] = {0, 0xC0, 0xE0, 0xF0};
    bytes[0] = (char)(lead[tail] | c >> (6 * tail));
    for (int i = 1; i <= tail; i++) bytes[i] = (char)(0x80 | (c >> (6 * (tail - i)) & 0x3F));
    return tn_string_append(text, bytes, (size_t)tail + 1);
}

tn_status tn_string_csv(tn_string *text, const char *value) {
    TN_TRY(tn_string_append(text, "\"", 1));
    for (; *value; value++) {
        if (*value == '"') TN_TRY(tn_string_append(text, "\"", 1));
        TN_TRY(tn_string_append(text, value, 1));
    }
    return tn_string_append(text, "\"", 1);
}

void tn_string_free(tn_string *text) {
    tn_free(text->data);
    *text = (tn_string){0};
}

size_t tn_utf8_length(const char *bytes, size_t size) {
    if (size == 0) return 0;
    const unsigned char *b = (const unsigned char *)bytes;
    unsigned char first = b[0], low = 0x80, high = 0xBF; /* bounds of the second byte */
    size_t length;
    if (first < 0x80) return 1;
    if (first >= 0xC2 && first <= 0xDF)
        length = 2;
    else if (first >= 0xE0 && first <= 0xEF)
        length = 3;
    else if (first >= 0xF0 && first <= 0xF4)
        length = 4;
    else
        return 0;
    if (first == 0xE0) low = 0xA0;
    if (first == 0xED) high = 0x9F;
    if (first == 0xF0) low = 0x90;
    if (first == 0xF4) high = 0x8F;
    if (length > size || b[1] < low || b[1] > high) return 0;
    for (size_t i = 2; i < length; i++)
        if ((b[i] & 0xC0) != 0x80) return 0;
    return length;
}

size_t tn_utf8_prefix(const char *bytes, size_t size) {
    size_t at = 0;
    while (at < size) {
        size_t length = tn_utf8_length(bytes + at, size - at);
        if (length == 0) break;
        at += length;
    }
    return at;
}

tn_legible tn_make_legible(const char *text) {
    tn_legible out;
    size_t size = strlen(text), at = 0;
    bool cut = size >= sizeof out.text;
    size_t room = cut ? sizeof out.text - 4 : size;
    while (at < size) {
        size_t length = tn_utf8_length(text + at, size - at), taken = length ? length : 1;
        unsigned char first = (unsigned char)text[at];
        if (at + taken > room) break;
        memcpy(out.text + at, text + at, taken);
        if (length == 0 || first < 0x20 || first == 0x7F) out.text[at] = '?';
        at += taken;
    }
    memcpy(out.text + at, cut ? "..." : "", cut ? 4 : 1);
    return out;
}

int tn_edit_distance(const char *a, const char *b) {
    enum { LIMIT = 64 };
    int previous[LIMIT], row[LIMIT], next[LIMIT];
    size_t n = strlen(a), m = strlen(b);
    if (n >= LIMIT || m >= LIMIT) return 99;
    for (size_t j = 0; j <= m; j++) previous[j] = row[j] = (int)j;
    for (size_t i = 1; i <= n; i++) {
        next[0] = (int)i;
        for (size_t j = 1; j <= m; j++) {
            int best = row[j - 1] + (a[i - 1] != b[j - 1]);
            if (row[j] + 1 < best) best = row[j] + 1;
            if (next[j - 1] + 1 < best) best = next[j - 1] + 1;
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] && previous[j - 2] + 1 < best)
                best = previous[j - 2] + 1;
            next[j] = best;
        }
        memcpy(previous, row, sizeof previous);
        memcpy(row, next, sizeof row);
    }
    return row[m];
}

int tn_is_near(const char *name, const char *candidate, int distance) {
    int longer = (int)(strlen(name) > strlen(candidate) ? strlen(name) : strlen(candidate));
    return distance <= 1 + longer / 5 && distance < longer;
}
