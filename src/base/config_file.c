#include "base/config_file.h"

#include <errno.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "base/memory.h"

typedef struct parser {
    const char *file;
    const char *start, *at, *end; /* the current line, without its line end */
    int line;
    tn_string value;
} parser;

static int column(const parser *p, const char *where) {
    int characters = 1;
    for (const char *c = p->start; c < where; c++) characters += ((unsigned char)*c & 0xC0) != 0x80;
    return characters;
}

__attribute__((format(printf, 3, 4))) static tn_status fail_at(const parser *p, const char *where,
                                                               const char *format, ...) {
    char what[256];
    va_list args;
    va_start(args, format);
    vsnprintf(what, sizeof what, format, args);
    va_end(args);
    return tn_fail(TN_ERR_USAGE, "%s:%d:%d: %s", p->file, p->line, column(p, where), what);
}

static void skip_blanks(parser *p) {
    while (p->at < p->end && (*p->at == ' ' || *p->at == '\t')) p->at++;
}

static bool at_end(const parser *p) {
    return p->at == p->end || *p->at == '#';
}

static bool is_digit(char c) {
    return c >= '0' && c <= '9';
}

static bool is_name_byte(char c) {
    return is_digit(c) || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '-' || c == '_';
}

/* After this, every byte of the line belongs to a printable character or is a tab. */
static tn_status check_characters(const parser *p) {
    size_t size = (size_t)(p->end - p->start), valid = tn_utf8_prefix(p->start, size);
    for (const char *c = p->start; c < p->start + valid; c++) {
        unsigned char byte = (unsigned char)*c;
        if ((byte < 0x20 && byte != '\t') || byte == 0x7F)
            return fail_at(p, c, "control character 0x%02X; only text is allowed here", (unsigned)byte);
    }
    if (valid == size) return TN_OK;
    return fail_at(p, p->start + valid, "byte 0x%02X is not UTF-8; save the file as UTF-8",
                   (unsigned)(unsigned char)p->start[valid]);
}

static tn_status parse_name(parser *p, char name[TN_CONFIG_NAME_MAX]) {
    const char *first = p->at;
    if (*first == '"' || *first == '\'') return fail_at(p, first, "write the name without quotes");
    while (p->at < p->end && is_name_byte(*p->at)) p->at++;
    size_t length = (size_t)(p->at - first);
    if (length == 0) return fail_at(p, first, "expected the name of an option");
    if (length >= TN_CONFIG_NAME_MAX) return fail_at(p, first, "the name is too long to be an option's");
    for (size_t i = 0; i < length; i++) name[i] = first[i] == '_' ? '-' : first[i];
    name[length] = 0;
    skip_blanks(p);
    if (p->at == p->end || *p->at != '=') return fail_at(p, p->at, "expected '=' after '%s'", name);
    p->at++;
    skip_blanks(p);
    return TN_OK;
}

/* [name] or [[name]]; p->at stands at the first bracket. */
static tn_status parse_table(parser *p, char name[TN_CONFIG_NAME_MAX], tn_config_kind *kind) {
    const char *open = p->at;
    size_t brackets = p->end - open >= 2 && open[1] == '[' ? 2 : 1;
    p->at += brackets;
    const char *first = p->at;
    while (p->at < p->end && is_name_byte(*p->at)) p->at++;
    size_t length = (size_t)(p->at - first);
    if (length == 0 || length >= TN_CONFIG_NAME_MAX || (size_t)(p->end - p->at) < brackets ||
        memcmp(p->at, "]]", brackets) != 0)
        return fail_at(p, open, "not the name of a table; write [name] or [[name]]");
    p->at += brackets;
    memcpy(name, first, length);
    name[length] = 0;
    *kind = brackets == 2 ? TN_CONFIG_ELEMENT : TN_CONFIG_TABLE;
    return TN_OK;
}

static int hex_digit(char c) {
    if (is_digit(c)) return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return -1;
}

/* p->at stands behind the backslash. */
static tn_status parse_escape(parser *p) {
    const char *backslash = p->at - 1;
    char c = p->at < p->end ? *p->at++ : 0;
    if (c == '"' || c == '\\') return tn_string_append(&p->value, &c, 1);
    if (c == 'n') return tn_string_append(&p->value, "\n", 1);
    if (c == 't') return tn_string_append(&p->value, "\t", 1);
    if (c != 'u') return fail_at(p, backslash, "unknown escape; use \\\" \\\\ \\n \\t or \\uXXXX, or '...'");
    unsigned code = 0;
    for (int i = 0; i < 4; i++, p->at++) {
        int digit = p->at < p->end ? hex_digit(*p->at) : -1;
        if (digit < 0) return fail_at(p, backslash, "\\u needs four hexadecimal digits");
        code = code * 16 + (unsigned)digit;
    }
    if (code == 0) return fail_at(p, backslash, "a NUL character is not allowed in text");
    if (code >= 0xD800 && code <= 0xDFFF)
        return fail_at(p, backslash, "\\u%04X is half a surrogate pair, not a character", code);
    return tn_string_code_point(&p->value, code);
}

static tn_status parse_string(parser *p) {
    const char *open = p->at++;
    char quote = *open;
    if (p->end - open >= 3 && open[1] == quote && open[2] == quote)
        return fail_at(p, open, "text over several lines is not supported");
    for (;;) {
        const char *run = p->at;
        while (p->at < p->end && *p->at != quote && !(quote == '"' && *p->at == '\\')) p->at++;
        TN_TRY(tn_string_append(&p->value, run, (size_t)(p->at - run)));
        if (p->at == p->end) return fail_at(p, open, "the closing %c is missing", quote);
        if (*p->at++ == quote) return TN_OK;
        TN_TRY(parse_escape(p));
    }
}

/* Skips digits that may be grouped by single underscores; false when there is none or one stands at an edge.
 */
static bool skip_digits(const char **at, const char *end) {
    const char *c = *at;
    if (c == end || !is_digit(*c)) return false;
    while (c < end && (is_digit(*c) || (*c == '_' && c + 1 < end && is_digit(c[1])))) c++;
    *at = c;
    return true;
}

/* TOML's decimal integers and floats. */
static bool is_number(const char *at, const char *end) {
    if (at < end && (*at == '+' || *at == '-')) at++;
    const char *first = at;
    if (!skip_digits(&at, end) || (*first == '0' && at - first > 1)) return false;
    if (at < end && *at == '.') {
        at++;
        if (!skip_digits(&at, end)) return false;
    }
    if (at < end && (*at == 'e' || *at == 'E')) {
        at++;
        if (at < end && (*at == '+' || *at == '-')) at++;
        if (!skip_digits(&at, end)) return false;
    }
    return at == end;
}

static tn_status parse_bare(parser *p, tn_config_kind *kind) {
    const char *first = p->at;
    while (!at_end(p) && *p->at != ' ' && *p->at != '\t') p->at++;
    size_t length = (size_t)(p->at - first);
    if (*first == '[' || *first == '{')
        return fail_at(p, first, "arrays and tables are not supported; write a list as \"1,2,3\"");
    if ((length == 4 && memcmp(first, "true", 4) == 0) || (length == 5 && memcmp(first, "false", 5) == 0)) {
        *kind = TN_CONFIG_BOOL;
        return tn_string_append(&p->value, first, length);
    }
    *kind = TN_CONFIG_NUMBER;
    bool numeric = is_digit(*first) || *first == '+' || *first == '-' || *first == '.';
    if (!is_number(first, p->at)) {
        char word[64];
        snprintf(word, sizeof word, "%.*s", length > 63 ? 63 : (int)length, first);
        return fail_at(p, first,
                       numeric ? "'%s' is not a number; write it as 128, 0.5 or 1e-4, or quote text"
                               : "text needs quotes: write \"%s\"",
                       tn_make_legible(word).text);
    }
    for (const char *c = first; c < p->at; c++)
        if (*c != '_') TN_TRY(tn_string_append(&p->value, c, 1));
    return TN_OK;
}

static tn_status parse_value(parser *p, tn_config_entry *entry, char name[TN_CONFIG_NAME_MAX]) {
    TN_TRY(parse_name(p, name));
    entry->value_column = column(p, p->at);
    if (at_end(p)) return fail_at(p, p->at, "the value of '%s' is missing", name);
    if (*p->at == '"' || *p->at == '\'') return parse_string(p);
    return parse_bare(p, &entry->kind);
}

static tn_status parse_line(parser *p, tn_config_visit visit, void *context) {
    TN_TRY(check_characters(p));
    p->at = p->start;
    skip_blanks(p);
    if (at_end(p)) return TN_OK;
    char name[TN_CONFIG_NAME_MAX];
    tn_config_entry entry = {.file = p->file, .name = name, .kind = TN_CONFIG_STRING, .line = p->line};
    entry.name_column = entry.value_column = column(p, p->at);
    bool table = *p->at == '[';
    p->value.length = 0;
    TN_TRY(tn_string_append(&p->value, "", 0));
    TN_TRY(table ? parse_table(p, name, &entry.kind) : parse_value(p, &entry, name));
    skip_blanks(p);
    if (!at_end(p))
        return fail_at(p, p->at, "unexpected text after %s'%s'", table ? "table " : "the value of ", name);
    entry.value = p->value.data;
    return visit(context, &entry);
}

static tn_status parse_lines(parser *p, const char *bytes, size_t size, tn_config_visit visit,
                             void *context) {
    const char *at = bytes, *end = bytes + size;
    if (size >= 3 && memcmp(at, "\xEF\xBB\xBF", 3) == 0) at += 3; /* byte order mark */
    while (at < end) {
        const char *newline = memchr(at, '\n', (size_t)(end - at));
        const char *next = newline ? newline + 1 : end;
        p->start = at;
        p->end = newline ? newline : end;
        p->line++;
        if (p->end - p->start > TN_CONFIG_LINE_MAX)
            return tn_fail(TN_ERR_USAGE, "%s:%d: a line longer than %d bytes; is this a configuration file?",
                           p->file, p->line, TN_CONFIG_LINE_MAX);
        if (newline && p->end > p->start && p->end[-1] == '\r') p->end--;
        TN_TRY(parse_line(p, visit, context));
        at = next;
    }
    return TN_OK;
}

tn_status tn_config_parse(const char *bytes, size_t size, const char *file, tn_config_visit visit,
                          void *context) {
    tn_legible shown = tn_make_legible(file);
    parser p = {.file = shown.text};
    if (size > TN_CONFIG_BYTES_MAX)
        return tn_fail(TN_ERR_USAGE, "%s: larger than %d bytes; is this a configuration file?", p.file,
                       TN_CONFIG_BYTES_MAX);
    tn_status status = parse_lines(&p, bytes, size, visit, context);
    tn_string_free(&p.value);
    return status;
}

tn_status tn_config_read(const char *path, tn_config_visit visit, void *context) {
    FILE *file = fopen(path, "rbe");
    if (!file)
        return tn_fail(TN_ERR_IO, "%s: cannot open the configuration file: %s; check --config",
                       tn_make_legible(path).text, strerror(errno));
    char *bytes = NULL;
    size_t size = 0;
    /* One byte more than is allowed, so that the parser sees that it is too much. */
    tn_status status = tn_alloc(&bytes, TN_CONFIG_BYTES_MAX + 1, 1, "configuration file");
    if (status == TN_OK) {
        size = fread(bytes, 1, TN_CONFIG_BYTES_MAX + 1, file);
        if (ferror(file))
            status = tn_fail(TN_ERR_IO, "%s: cannot read the configuration file: %s",
                             tn_make_legible(path).text, strerror(errno));
    }
    fclose(file); /* nothing was written */
    if (status == TN_OK) status = tn_config_parse(bytes, size, path, visit, context);
    tn_free(bytes);
    return status;
}

tn_status tn_config_quote(tn_string *out, const char *value) {
    TN_TRY(tn_string_append(out, "\"", 1));
    for (const char *c = value; *c; c++) {
        unsigned char byte = (unsigned char)*c;
        if (byte == '"' || byte == '\\')
            TN_TRY(tn_string_printf(out, "\\%c", byte));
        else if (byte == '\n' || byte == '\t')
            TN_TRY(tn_string_append(out, byte == '\n' ? "\\n" : "\\t", 2));
        else if (byte < 0x20 || byte == 0x7F)
            TN_TRY(tn_string_printf(out, "\\u%04X", (unsigned)byte));
        else
            TN_TRY(tn_string_append(out, c, 1));
    }
    return tn_string_append(out, "\"", 1);
}
