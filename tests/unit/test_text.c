/* Growing strings, UTF-8, numbers as text, near names. */
#include <float.h>
#include <locale.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/memory.h"
#include "base/number.h"
#include "base/philox.h"
#include "base/text.h"

static void strings_grow(void **state) {
    (void)state;
    tn_string s = {0};
    for (int i = 0; i < 1000; i++) assert_int_equal(tn_string_printf(&s, "%d,", i % 10), TN_OK);
    assert_int_equal(s.length, 2000);
    assert_int_equal(strlen(s.data), 2000);
    assert_memory_equal(s.data + 1996, "8,9,", 5);
    tn_memory_fail_at(1);
    char big[5000] = {0};
    assert_int_equal(tn_string_append(&s, big, sizeof big), TN_ERR_MEMORY);
    tn_memory_fail_at(0);
    assert_int_equal(s.length, 2000);
    tn_string_free(&s);
    assert_null(s.data);
}

/* All of Unicode is written as UTF-8 that reads as one character; the known edges are refused. */
static void utf8(void **state) {
    (void)state;
    for (unsigned c = 1; c <= 0x10FFFF; c++) {
        if (c >= 0xD800 && c < 0xE000) c = 0xE000; /* surrogates */
        tn_string s = {0};
        assert_int_equal(tn_string_code_point(&s, c), TN_OK);
        assert_int_equal(s.length, c < 0x80 ? 1 : c < 0x800 ? 2 : c < 0x10000 ? 3 : 4);
        assert_int_equal(tn_utf8_length(s.data, s.length), s.length);
        assert_int_equal(tn_utf8_length(s.data, s.length - 1), 0); /* cut short */
        tn_string_free(&s);
        if (c > 0x3000) c += 96;
    }
    static const char *const bad[] = {"\x80",
                                      "\xBF",
                                      "\xC0\x80",
                                      "\xC1\xBF",
                                      "\xE0\x9F\xBF",
                                      "\xED\xA0\x80",
                                      "\xF0\x8F\xBF\xBF",
                                      "\xF4\x90\x80\x80",
                                      "\xF5\x80\x80",
                                      "\xFF",
                                      "\xC3(",
                                      "\xE2\x82(",
                                      "\xF0\x9F\x98("};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_int_equal(tn_utf8_length(bad[i], strlen(bad[i])), 0);
    assert_int_equal(tn_utf8_prefix("a\xC3\xA9\xFFz", 5), 3);
    assert_int_equal(tn_utf8_prefix("a\xC3\xA9", 3), 3);
}

static void messages_stay_one_line(void **state) {
    (void)state;
    assert_string_equal(tn_make_legible("a\nb\tc\x7F\xFF\xC3\xA9").text, "a?b?c??\xC3\xA9");
    char text[1000];
    memset(text, 'x', sizeof text);
    text[sizeof text - 1] = 0;
    tn_legible cut = tn_make_legible(text);
    assert_int_equal(strlen(cut.text), sizeof cut.text - 1);
    assert_string_equal(cut.text + strlen(cut.text) - 4, "x...");
    for (size_t n = 180; n < 220; n++) { /* never cuts a character in two */
        size_t used = n % 2;
        for (; used + 2 <= n; used += 2) memcpy(text + used, "\xC3\xA9", 2);
        text[used] = 0;
        cut = tn_make_legible(text);
        assert_int_equal(tn_utf8_prefix(cut.text, strlen(cut.text)), strlen(cut.text));
        assert_int_equal(strstr(cut.text, "...") != NULL, n >= sizeof cut.text);
    }
}

static void edit_distances(void **state) {
    (void)state;
    assert_int_equal(tn_edit_distance("batch", "batch"), 0);
    assert_int_equal(tn_edit_distance("bacth", "batch"), 1); /* a swap */
    assert_int_equal(tn_edit_distance("bach", "batch"), 1);
    assert_int_equal(tn_edit_distance("baatch", "batch"), 1);
    assert_int_equal(tn_edit_distance("botch", "batch"), 1);
    assert_int_equal(tn_edit_distance("", "batch"), 5);
    assert_int_equal(tn_edit_distance("kitten", "sitting"), 3);
    char text[100];
    memset(text, 'x', sizeof text - 1);
    text[99] = 0;
    assert_int_equal(tn_edit_distance(text, "batch"), 99);
    assert_true(tn_is_near("bacth", "batch", 1));
    assert_false(tn_is_near("x", "lr", 2));
    assert_false(tn_is_near("foo", "batch", 5));
}

static void expect_number(const char *text, double value) {
    double out = 0;
    if (!tn_number_parse(text, &out)) fail_msg("%s is a number", text);
    assert_true(out == value);
}

static void numbers_parse(void **state) {
    (void)state;
    expect_number("0", 0);
    expect_number("-1.5e3", -1500);
    expect_number("+.5", 0.5);
    expect_number("1e-400", 0);
    expect_number("4.9406564584124654e-324", 4.9406564584124654e-324);
    static const char *const bad[] = {"",    "-",   ".",  "1e", "1e+", "--1",   "0x1",
                                      "inf", "nan", "1 ", " 1", "1,5", "1e400", "1_0"};
    double out;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        if (tn_number_parse(bad[i], &out)) fail_msg("'%s' is no number", bad[i]);
}

static void numbers_read_back(void **state) {
    (void)state;
    char text[TN_NUMBER_MAX];
    static const struct {
        double value;
        const char *text;
    } cases[] = {{0.1, "0.1"},    {1e-4, "0.0001"}, {100, "100"},
                 {1e-5, "1e-05"}, {-2.5, "-2.5"},   {1.0 / 3, "0.3333333333333333"},
                 {1e22, "1e+22"}, {0, "0"},         {0.1 + 0.2, "0.30000000000000004"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        tn_number_print(cases[i].value, text);
        assert_string_equal(text, cases[i].text);
    }
    tn_number_print_float(0.4914f, text);
    assert_string_equal(text, "0.4914");
    tn_rng rng = tn_rng_open(1, TN_RNG_SYNTHETIC, 0, 0);
    for (int i = 0; i < 20000; i++) {
        uint64_t bits = (uint64_t)tn_rng_bits(&rng) << 32 | tn_rng_bits(&rng);
        double value, back;
        memcpy(&value, &bits, sizeof value);
        if (!isfinite(value)) continue;
        tn_number_print(value, text);
        assert_true(tn_number_parse(text, &back) && back == value);
        float single;
        memcpy(&single, &bits, sizeof single);
        if (!isfinite(single)) continue;
        tn_number_print_float(single, text);
        assert_true(tn_number_parse(text, &back) && (float)back == single);
    }
}

/* A program around the library may have set a locale with decimal commas. Where none is installed, the test
 * says so. */
static void numbers_ignore_the_locale(void **state) {
    (void)state;
    static const char *const names[] = {"de_DE.UTF-8", "de_DE.utf8", "fr_FR.UTF-8",
                                        "fr_FR.utf8",  "de_DE",      "fr_FR"};
    const char *found = NULL;
    for (size_t i = 0; i < sizeof names / sizeof *names && !found; i++) found = setlocale(LC_ALL, names[i]);
    if (!found) {
        print_message("no locale with decimal commas is installed\n");
        skip();
    }
    char text[TN_NUMBER_MAX];
    double value = 0;
    bool parsed = tn_number_parse("0.5", &value);
    tn_number_print(1.25, text);
    setlocale(LC_ALL, "C");
    assert_true(parsed && value == 0.5);
    assert_string_equal(text, "1.25");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(strings_grow),
        cmocka_unit_test(utf8),
        cmocka_unit_test(edit_distances),
        cmocka_unit_test(messages_stay_one_line),
        cmocka_unit_test(numbers_parse),
        cmocka_unit_test(numbers_read_back),
        cmocka_unit_test(numbers_ignore_the_locale),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
