#include "base/expression.h"

#include <math.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "base/number.h"
#include "base/text.h"

#define DEPTH_MAX 64
#define HINT      "use numbers, L, + - * / ^, sqrt() and parentheses"

typedef struct parser {
    const char *text, *at;
    double L;
    bool check_only; /* values are made up: ignore what they do */
    int depth;
} parser;

static tn_status parse_sum(parser *p, double *out);

/* `where` is a position in p->text. Everything before the first error is ASCII, so columns are bytes. */
__attribute__((format(printf, 4, 5))) static tn_status fail_at(const parser *p, const char *where,
                                                               const char *hint, const char *format, ...) {
    char what[160];
    va_list args;
    va_start(args, format);
    vsnprintf(what, sizeof what, format, args);
    va_end(args);
    return tn_fail(TN_ERR_USAGE, "--tau \"%s\": %s at column %d; %s", tn_make_legible(p->text).text, what,
                   (int)(where - p->text) + 1, hint);
}

static char peek(parser *p) {
    while (*p->at == ' ' || *p->at == '\t') p->at++;
    return *p->at;
}

static bool is_letter(char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_';
}

static tn_status unexpected(parser *p, const char *wanted) {
    const char *where = p->at;
    if (*where == 0) return fail_at(p, where, HINT, "%s is missing", wanted);
    size_t length = tn_utf8_length(where, strlen(where));
    if (length == 0 || (unsigned char)*where < 0x20 || *where == 0x7F)
        return fail_at(p, where, HINT, "unexpected byte 0x%02X", (unsigned)(unsigned char)*where);
    return fail_at(p, where, HINT, "unexpected '%.*s'", (int)length, where);
}

/* Each step must stay finite: an infinity or NaN could vanish again, as in 1/(1/0). */
static tn_status finish(const parser *p, const char *where, double value, double *out) {
    *out = value;
    if (p->check_only || isfinite(value)) return TN_OK;
    return fail_at(p, where, "give an expression that is finite there", "not a finite number for L = %g",
                   p->L);
}

static tn_status parse_parentheses(parser *p, double *out) {
    const char *open = p->at++;
    TN_TRY(parse_sum(p, out));
    if (peek(p) == 0) return fail_at(p, open, "close it with ')'", "'(' is never closed");
    if (*p->at != ')') return unexpected(p, "')'");
    p->at++;
    return TN_OK;
}

static tn_status parse_name(parser *p, double *out) {
    const char *name = p->at;
    size_t length = 0;
    while (is_letter(name[length]) || (name[length] >= '0' && name[length] <= '9')) length++;
    p->at += length;
    if (length == 1 && *name == 'L') {
        *out = p->L;
        return TN_OK;
    }
    if (length != 4 || memcmp(name, "sqrt", 4) != 0)
        return fail_at(p, name, HINT, "unknown name '%.*s'", length > 32 ? 32 : (int)length, name);
    if (peek(p) != '(') return fail_at(p, name, "write sqrt(L)", "'sqrt' needs parentheses");
    double inner;
    TN_TRY(parse_parentheses(p, &inner));
    return finish(p, name, sqrt(inner), out);
}

static tn_status parse_atom(parser *p, double *out) {
    char c = peek(p);
    if (c == '(') return parse_parentheses(p, out);
    if (is_letter(c)) return parse_name(p, out);
    const char *where = p->at;
    size_t length = tn_number_scan(where);
    if (length == 0) return unexpected(p, "a value");
    p->at += length;
    return finish(p, where, tn_number_value(where), out);
}

/* Every recursion passes through here, so this is where its depth is bounded. */
static tn_status parse_signed(parser *p, double *out) {
    char c = peek(p);
    if (++p->depth > DEPTH_MAX)
        return fail_at(p, p->at, "simplify the expression", "nested deeper than %d levels", DEPTH_MAX);
    if (c == '-' || c == '+') {
        p->at++;
        TN_TRY(parse_signed(p, out));
        if (c == '-') *out = -*out;
    } else {
        TN_TRY(parse_atom(p, out));
        if (peek(p) == '^') {
            const char *where = p->at++;
            double exponent;
            TN_TRY(parse_signed(p, &exponent));
            TN_TRY(finish(p, where, pow(*out, exponent), out));
        }
    }
    p->depth--;
    return TN_OK;
}

static tn_status parse_product(parser *p, double *out) {
    TN_TRY(parse_signed(p, out));
    for (char c = peek(p); c == '*' || c == '/'; c = peek(p)) {
        const char *where = p->at++;
        double right;
        TN_TRY(parse_signed(p, &right));
        if (c == '/' && right == 0 && !p->check_only)
            return fail_at(p, where, "give an expression that is finite there", "division by zero for L = %g",
                           p->L);
        TN_TRY(finish(p, where, c == '*' ? *out * right : *out / right, out));
    }
    return TN_OK;
}

static tn_status parse_sum(parser *p, double *out) {
    TN_TRY(parse_product(p, out));
    for (char c = peek(p); c == '+' || c == '-'; c = peek(p)) {
        const char *where = p->at++;
        double right;
        TN_TRY(parse_product(p, &right));
        TN_TRY(finish(p, where, c == '+' ? *out + right : *out - right, out));
    }
    return TN_OK;
}

static tn_status parse_all(parser *p, double *out) {
    TN_TRY(parse_sum(p, out));
    return peek(p) == 0 ? TN_OK : unexpected(p, "the end");
}

tn_status tn_expression_evaluate(const char *text, double L, double *out) {
    parser p = {.text = text, .at = text, .L = L};
    double value;
    TN_TRY(parse_all(&p, &value));
    if (value < 0)
        return tn_fail(TN_ERR_USAGE, "--tau \"%s\": is %g for L = %g; tau must be at least 0",
                       tn_make_legible(text).text, value, L);
    *out = value + 0.0; /* -0 becomes 0 */
    return TN_OK;
}

tn_status tn_expression_check(const char *text) {
    parser p = {.text = text, .at = text, .L = 1, .check_only = true};
    double value;
    return parse_all(&p, &value);
}
