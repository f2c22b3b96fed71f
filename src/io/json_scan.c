#include "io/json_scan.h"

#include <ctype.h>
#include <string.h>

#include "base/text.h"

static tn_status bad(const tn_json_scan *scan, const char *problem) {
    return tn_fail(TN_ERR_DATA, "%s is not valid JSON: byte %lld: %s", scan->what,
                   (long long)(scan->at - scan->text), problem);
}

char tn_json_peek(tn_json_scan *scan) {
    while (*scan->at == ' ' || *scan->at == '\t' || *scan->at == '\n' || *scan->at == '\r') scan->at++;
    return *scan->at;
}

tn_status tn_json_expect(tn_json_scan *scan, char c) {
    char problem[] = "expected 'x'";
    problem[sizeof problem - 3] = c;
    if (tn_json_peek(scan) != c) return bad(scan, problem);
    scan->at++;
    return TN_OK;
}

tn_status tn_json_begin(tn_json_scan *scan, char open, char close, bool *more) {
    TN_TRY(tn_json_expect(scan, open));
    *more = tn_json_peek(scan) != close;
    if (!*more) scan->at++;
    return TN_OK;
}

tn_status tn_json_next(tn_json_scan *scan, char close, bool *more) {
    *more = tn_json_peek(scan) == ',';
    if (!*more && *scan->at != close)
        return bad(scan, close == ']' ? "expected ',' or ']'" : "expected ',' or '}'");
    scan->at++;
    return TN_OK;
}

/* The four digits of \uXXXX at scan->at, or -1. */
static int32_t hex4(tn_json_scan *scan) {
    int32_t value = 0;
    for (int i = 0; i < 4; i++, scan->at++) {
        unsigned char c = (unsigned char)*scan->at;
        if (!isxdigit(c)) return -1;
        value = value * 16 + (isdigit(c) ? c - '0' : (c | 0x20) - 'a' + 10);
    }
    return value;
}

/* Writes a code point as UTF-8 and returns what follows it. */
static char *put_utf8(char *to, int32_t code) {
    if (code < 0x80) {
        *to++ = (char)code;
        return to;
    }
    static const int32_t lead[] = {0, 0xC0, 0xE0, 0xF0};
    int more = code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;
    *to++ = (char)(lead[more] | code >> (6 * more));
    while (more-- > 0) *to++ = (char)(0x80 | (code >> (6 * more) & 0x3F));
    return to;
}

/* Decodes \uXXXX, or two of them that form a surrogate pair; scan->at is behind the 'u'. */
static tn_status unicode_escape(tn_json_scan *scan, char **to) {
    int32_t code = hex4(scan);
    if (code < 0) return bad(scan, "\\u needs four hexadecimal digits");
    if (code == 0) return bad(scan, "a string holds a zero character");
    if (code >= 0xD800 && code < 0xE000) {
        bool pair = code < 0xDC00 && scan->at[0] == '\\' && scan->at[1] == 'u';
        if (pair) scan->at += 2;
        int32_t low = pair ? hex4(scan) : -1;
        if (low < 0xDC00 || low >= 0xE000) return bad(scan, "half of a surrogate pair");
        code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
    }
    *to = put_utf8(*to, code);
    return TN_OK;
}

/* Decodes what follows a backslash. */
static tn_status escape(tn_json_scan *scan, char **to) {
    static const char letters[] = "\"\\/bfnrt", values[] = "\"\\/\b\f\n\r\t";
    if (*scan->at == 'u') {
        scan->at++;
        return unicode_escape(scan, to);
    }
    const char *found = *scan->at ? strchr(letters, *scan->at) : NULL;
    if (!found) return bad(scan, "unknown escape in a string");
    *(*to)++ = values[found - letters];
    scan->at++;
    return TN_OK;
}

tn_status tn_json_string(tn_json_scan *scan, char **out) {
    TN_TRY(tn_json_expect(scan, '"'));
    /* What is written never overtakes what is read: no escape is shorter than its character. */
    char *to = *out = scan->at;
    while (*scan->at != '"') {
        if (*scan->at == '\\') {
            scan->at++;
            TN_TRY(escape(scan, &to));
            continue;
        }
        if (scan->at == scan->end) return bad(scan, "a string does not end");
        if ((unsigned char)*scan->at < 0x20) return bad(scan, "a control character in a string");
        size_t length = tn_utf8_length(scan->at, (size_t)(scan->end - scan->at));
        if (length == 0) return bad(scan, "not UTF-8");
        while (length-- > 0) *to++ = *scan->at++;
    }
    *to = 0;
    scan->at++;
    return TN_OK;
}

const char *tn_json_whole(tn_json_scan *scan, int64_t *value) {
    char first = tn_json_peek(scan);
    if (first == '-') return "a negative number";
    if (!isdigit((unsigned char)first)) return "something other than whole numbers";
    *value = 0;
    /* After a leading zero a digit is left, which is then not the ',' or end that JSON wants there. */
    do {
        int digit = *scan->at++ - '0';
        if (*value > (INT64_MAX - digit) / 10) return "a number that is too large";
        *value = *value * 10 + digit;
    } while (first != '0' && isdigit((unsigned char)*scan->at));
    if (*scan->at == '.' || *scan->at == 'e' || *scan->at == 'E') return "something other than whole numbers";
    return NULL;
}

tn_status tn_json_end(tn_json_scan *scan) {
    tn_json_peek(scan);
    return scan->at == scan->end ? TN_OK : bad(scan, "something follows the end");
}
