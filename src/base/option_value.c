/* Values of options by type: text to field, field to text, and what is allowed. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/memory.h"
#include "base/number.h"
#include "base/option_table.h"

#define TEXT_MAX                                                                                             \
    4096 /* bytes of a value; with all of them escaped a line of a configuration file still holds it */

static void *field(const tn_option *row, tn_options *options) {
    return (char *)options + row->offset;
}

static const void *const_field(const tn_option *row, const tn_options *options) {
    return (const char *)options + row->offset;
}

/* "--name "value": what; use RANGE" */
static tn_status refuse(const tn_option *row, const char *value, const char *what) {
    tn_string range = {0};
    tn_status status = tn_option_range(row, &range);
    if (status == TN_OK)
        status = tn_fail(TN_ERR_USAGE, "--%s \"%s\": %s%s%s", row->name, tn_make_legible(value).text, what,
                         range.length ? "; allowed: " : "", range.length ? range.data : "");
    tn_string_free(&range);
    return status;
}

static bool in_range(const tn_option *row, double value) {
    if (row->above_min ? value <= row->min : value < row->min) return false;
    return row->below_max ? value < row->max : value <= row->max;
}

/* Digits with an optional sign; saturates far outside of every range. */
static bool parse_whole(const char *text, double *out) {
    const char *digits = *text == '-' || *text == '+' ? text + 1 : text;
    size_t length = strspn(digits, "0123456789");
    if (length == 0 || digits[length] != 0) return false;
    double value = 0;
    for (size_t i = 0; i < length && value < 1e18; i++) value = value * 10 + (digits[i] - '0');
    *out = *text == '-' ? -value : value;
    return true;
}

static tn_status set_int(const tn_option *row, tn_options *options, const char *value) {
    double number;
    bool zero = row->zero && (strcmp(value, row->zero) == 0 || strcmp(value, "0") == 0);
    if (zero)
        number = 0;
    else if (!parse_whole(value, &number))
        return refuse(row, value, "not a whole number");
    if (!zero && !in_range(row, number)) return refuse(row, value, "out of range");
    *(int *)field(row, options) = (int)number;
    return TN_OK;
}

static tn_status set_seed(const tn_option *row, tn_options *options, const char *value) {
    double size;
    if (!parse_whole(value, &size)) return refuse(row, value, "not a whole number");
    uint64_t seed = 0;
    bool fits = size == 0 || *value != '-';
    for (const char *c = value; *c && fits; c++) {
        if (*c == '+' || *c == '-') continue;
        unsigned digit = (unsigned)(*c - '0');
        fits = seed <= ((uint64_t)INT64_MAX - digit) / 10;
        seed = seed * 10 + digit;
    }
    if (!fits) return refuse(row, value, "out of range");
    *(uint64_t *)field(row, options) = seed;
    return TN_OK;
}

static tn_status set_number(const tn_option *row, tn_options *options, const char *value) {
    double number;
    if (!tn_number_parse(value, &number)) return refuse(row, value, "not a number");
    if (!in_range(row, number)) return refuse(row, value, "out of range");
    *(double *)field(row, options) = number + 0.0; /* -0 becomes 0 */
    return TN_OK;
}

static tn_status set_bool(const tn_option *row, tn_options *options, const char *value) {
    bool yes = strcmp(value, "yes") == 0 || strcmp(value, "true") == 0;
    if (!yes && strcmp(value, "no") != 0 && strcmp(value, "false") != 0)
        return refuse(row, value, "neither yes nor no");
    *(bool *)field(row, options) = yes;
    return TN_OK;
}

static tn_status find_choice(const tn_option *row, const char *value, unsigned *out) {
    unsigned nearest = 0;
    int distance = 99;
    for (unsigned i = 0; row->choices[i]; i++) {
        int d = tn_edit_distance(value, row->choices[i]);
        if (d < distance) {
            distance = d;
            nearest = i;
        }
    }
    *out = nearest;
    if (distance == 0) return TN_OK;
    char what[80] = "no such choice";
    if (tn_is_near(value, row->choices[nearest], distance))
        snprintf(what, sizeof what, "no such choice (did you mean %s?)", row->choices[nearest]);
    return refuse(row, value, what);
}

static tn_status set_choice(const tn_option *row, tn_options *options, const char *value) {
    unsigned choice;
    TN_TRY(find_choice(row, value, &choice));
    *(unsigned *)field(row, options) = choice;
    return TN_OK;
}

static tn_status set_text(const tn_option *row, tn_options *options, const char *value) {
    size_t size = strlen(value), valid = tn_utf8_prefix(value, size);
    unsigned choice;
    char *copy;
    if (size > TEXT_MAX) return refuse(row, value, "longer than 4096 bytes");
    if (valid != size) return refuse(row, value, "not UTF-8, which config.toml needs; use another name");
    if (size > 0 || *row->standard) {
        if (size == 0) return refuse(row, value, "empty; leave the option out for its default");
        if (row->choices) TN_TRY(find_choice(row, value, &choice));
        if (row->check) TN_TRY(row->check(value));
    }
    TN_TRY(tn_strdup(&copy, value));
    char **text = field(row, options);
    tn_free(*text);
    *text = copy;
    return TN_OK;
}

static tn_status set_list(const tn_option *row, tn_options *options, const char *value) {
    tn_float_list list = {0};
    for (const char *at = value; *at;) {
        char item[64];
        size_t length = strcspn(at, ",");
        double number;
        if (list.count == TN_OPTION_LIST_MAX) return refuse(row, value, "more than 16 numbers");
        if (length >= sizeof item) return refuse(row, value, "not a list of numbers");
        memcpy(item, at, length);
        item[length] = 0;
        if (!tn_number_parse(item, &number))
            return refuse(row, value, "not a list of numbers such as 0.5,0.4");
        float single = (float)number;
        if (!isfinite(single) || !in_range(row, (double)single))
            return refuse(row, value, "a number is out of range");
        list.values[list.count++] = single;
        at += length;
        if (*at == ',' && *++at == 0) return refuse(row, value, "a number is missing after the last comma");
    }
    *(tn_float_list *)field(row, options) = list;
    return TN_OK;
}

static tn_status set_shape(const tn_option *row, tn_options *options, const char *value) {
    int dims[3] = {0, 0, 0};
    const char *at = value;
    bool zero = row->zero && strcmp(value, row->zero) == 0;
    for (int i = 0; i < 3 && !zero; i++) {
        size_t length = strspn(at, "0123456789");
        char end = i < 2 ? 'x' : 0;
        if (length == 0 || at[length] != end) return refuse(row, value, "not of the form CxHxW");
        double number = 0;
        for (size_t j = 0; j < length && number < 1e9; j++) number = number * 10 + (at[j] - '0');
        if (!in_range(row, number)) return refuse(row, value, "a size is out of range");
        dims[i] = (int)number;
        at += length + 1;
    }
    *(tn_input_shape *)field(row, options) = (tn_input_shape){dims[0], dims[1], dims[2]};
    return TN_OK;
}

tn_status tn_option_parse(const tn_option *row, tn_options *options, const char *value) {
    switch (row->type) {
    case TN_OPTION_INT:
        return set_int(row, options, value);
    case TN_OPTION_SEED:
        return set_seed(row, options, value);
    case TN_OPTION_NUMBER:
        return set_number(row, options, value);
    case TN_OPTION_BOOL:
        return set_bool(row, options, value);
    case TN_OPTION_CHOICE:
        return set_choice(row, options, value);
    case TN_OPTION_TEXT:
        return set_text(row, options, value);
    case TN_OPTION_LIST:
        return set_list(row, options, value);
    case TN_OPTION_SHAPE:
        return set_shape(row, options, value);
    }
    TN_ASSERT(!"a type of option");
    return TN_OK;
}

static tn_status print_list(const tn_float_list *list, tn_string *out) {
    TN_TRY(tn_string_append(out, "", 0));
    for (int i = 0; i < list->count; i++) {
        char text[TN_NUMBER_MAX];
        tn_number_print_float(list->values[i], text);
        TN_TRY(tn_string_printf(out, "%s%s", i ? "," : "", text));
    }
    return TN_OK;
}

tn_status tn_option_print(const tn_option *row, const tn_options *options, tn_string *out) {
    const void *at = const_field(row, options);
    switch (row->type) {
    case TN_OPTION_INT:
        if (row->zero && *(const int *)at == 0) return tn_string_printf(out, "%s", row->zero);
        return tn_string_printf(out, "%d", *(const int *)at);
    case TN_OPTION_SEED:
        return tn_string_printf(out, "%llu", (unsigned long long)*(const uint64_t *)at);
    case TN_OPTION_NUMBER: {
        char text[TN_NUMBER_MAX];
        tn_number_print(*(const double *)at, text);
        return tn_string_printf(out, "%s", text);
    }
    case TN_OPTION_BOOL:
        return tn_string_printf(out, "%s", *(const bool *)at ? "yes" : "no");
    case TN_OPTION_CHOICE:
        return tn_string_printf(out, "%s", row->choices[*(const unsigned *)at]);
    case TN_OPTION_TEXT:
        return tn_string_printf(out, "%s", *(char *const *)at);
    case TN_OPTION_LIST:
        return print_list(at, out);
    case TN_OPTION_SHAPE: {
        tn_input_shape s = *(const tn_input_shape *)at;
        if (row->zero && s.channels == 0) return tn_string_printf(out, "%s", row->zero);
        return tn_string_printf(out, "%dx%dx%d", s.channels, s.height, s.width);
    }
    }
    TN_ASSERT(!"a type of option");
    return TN_OK;
}

/* Bounds are short numbers, so that %.15g shows them exactly and without an exponent. */
static tn_status print_bounds(const tn_option *row, tn_string *out) {
    bool low = isfinite(row->min), high = isfinite(row->max);
    if (low && high && !row->above_min && !row->below_max)
        return tn_string_printf(out, "from %.15g to %.15g", row->min, row->max);
    if (low) TN_TRY(tn_string_printf(out, "%s %.15g", row->above_min ? "above" : "at least", row->min));
    if (high)
        TN_TRY(tn_string_printf(out, "%s%s %.15g", low ? " and " : "", row->below_max ? "below" : "at most",
                                row->max));
    return TN_OK;
}

tn_status tn_option_range(const tn_option *row, tn_string *out) {
    if (row->choices) {
        for (int i = 0; row->choices[i]; i++)
            TN_TRY(tn_string_printf(out, "%s%s", i ? ", " : "", row->choices[i]));
        return TN_OK;
    }
    switch (row->type) {
    case TN_OPTION_SEED:
        return tn_string_printf(out, "from 0 to %lld", (long long)INT64_MAX);
    case TN_OPTION_BOOL:
        return tn_string_printf(out, "yes or no");
    case TN_OPTION_TEXT:
        return TN_OK;
    default:
        break;
    }
    bool bounded = isfinite(row->min) || isfinite(row->max);
    bool each = row->type == TN_OPTION_LIST || row->type == TN_OPTION_SHAPE;
    if (row->zero) TN_TRY(tn_string_printf(out, "%s or ", row->zero));
    if (bounded && each) TN_TRY(tn_string_printf(out, "each "));
    return print_bounds(row, out);
}
