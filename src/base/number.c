#include "base/number.h"

#include <locale.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/fail.h"

static bool is_digit(char c) {
    return c >= '0' && c <= '9';
}

size_t tn_number_scan(const char *text) {
    const char *at = text;
    int digits = 0;
    for (; is_digit(*at); at++) digits++;
    if (*at == '.') at++;
    for (; is_digit(*at); at++) digits++;
    if (digits == 0) return 0;
    if (*at == 'e' || *at == 'E') {
        const char *exponent = at + 1;
        if (*exponent == '+' || *exponent == '-') exponent++;
        if (is_digit(*exponent)) {
            while (is_digit(*exponent)) exponent++;
            at = exponent;
        }
    }
    return (size_t)(at - text);
}

/* The "C" locale is built into the C library: asking for it neither allocates nor fails there. */
static locale_t plain_locale(void) {
    locale_t plain = newlocale(LC_ALL_MASK, "C", (locale_t)0);
    TN_ASSERT(plain != (locale_t)0);
    return plain;
}

double tn_number_value(const char *text) {
    locale_t plain = plain_locale();
    double value = strtod_l(text, NULL, plain);
    freelocale(plain);
    return value;
}

bool tn_number_parse(const char *text, double *out) {
    const char *digits = *text == '-' || *text == '+' ? text + 1 : text;
    size_t length = tn_number_scan(digits);
    if (length == 0 || digits[length] != 0) return false;
    double value = tn_number_value(digits);
    if (!isfinite(value)) return false;
    *out = *text == '-' ? -value : value;
    return true;
}

static void print(double value, bool is_float, char out[TN_NUMBER_MAX]) {
    int from = is_float ? 6 : 15, to = is_float ? 9 : 17;
    locale_t plain = plain_locale(), before = uselocale(plain);
    for (int digits = from; digits <= to; digits++) {
        snprintf(out, TN_NUMBER_MAX, "%.*g", digits, value);
        double back = strtod_l(out, NULL, plain);
        if (is_float ? (float)back == (float)value : back == value) break;
    }
    uselocale(before);
    freelocale(plain);
}

void tn_number_print(double value, char out[TN_NUMBER_MAX]) {
    print(value, false, out);
}

void tn_number_print_float(float value, char out[TN_NUMBER_MAX]) {
    print((double)value, true, out);
}
