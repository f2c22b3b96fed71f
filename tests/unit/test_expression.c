/* The tau expressions: values, precedence, and where errors point. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "base/expression.h"

static void expect(const char *text, double L, double value) {
    double out = -1;
    if (tn_expression_evaluate(text, L, &out) != TN_OK) fail_msg("%s: %s", text, tn_error());
    if (fabs(out - value) > 1e-15 * fabs(value))
        fail_msg("%s at L = %g: %.17g, not %.17g", text, L, out, value);
}

static void expect_error(const char *text, double L, const char *message) {
    double out = 7;
    assert_int_equal(tn_expression_evaluate(text, L, &out), TN_ERR_USAGE);
    assert_string_equal(tn_error(), message);
    assert_true(out == 7);
}

static void values_of_the_papers(void **state) {
    (void)state;
    expect("1/sqrt(L)", 9, 1.0 / 3);
    expect("2/sqrt(L)", 16, 0.5);
    expect("1/L", 54, 1.0 / 54);
    expect("L^-0.25", 16, 0.5);
    expect("0.136", 600, 0.136);
    expect(" 1 / sqrt ( L )\t", 4, 0.5);
}

static void precedence_and_associativity(void **state) {
    (void)state;
    expect("1+2*3", 1, 7);
    expect("(1+2)*3", 1, 9);
    expect("10-4-3", 1, 3);
    expect("64/4/2", 1, 8);
    expect("2^3^2", 1, 512);
    expect("(2^3)^2", 1, 64);
    expect("20-2^2", 1, 16);
    expect("20+-2^2", 1, 16); /* -(2^2) */
    expect("2*-3+7", 1, 1);
    expect("4^-L", 1, 0.25);
    expect("- -3", 1, 3);
    expect("+5", 1, 5);
    expect("2^-1^2", 1, 0.5); /* 2^(-(1^2)) */
}

static void numbers(void **state) {
    (void)state;
    expect(".5", 1, 0.5);
    expect("5.", 1, 5);
    expect("1e-4", 1, 1e-4);
    expect("2.5E+2", 1, 250);
    expect("0", 1, 0);
    double out;
    assert_int_equal(tn_expression_evaluate("-0", 1, &out), TN_OK);
    assert_false(signbit(out));
}

static void errors_point_at_the_column(void **state) {
    (void)state;
#define HINT "; use numbers, L, + - * / ^, sqrt() and parentheses"
    expect_error("1/sqr(L)", 9, "--tau \"1/sqr(L)\": unknown name 'sqr' at column 3" HINT);
    expect_error("", 9, "--tau \"\": a value is missing at column 1" HINT);
    expect_error("2 +", 9, "--tau \"2 +\": a value is missing at column 4" HINT);
    expect_error("2)", 9, "--tau \"2)\": unexpected ')' at column 2" HINT);
    expect_error("2 L", 9, "--tau \"2 L\": unexpected 'L' at column 3" HINT);
    expect_error("2*\xE2\x88\x9AL", 9,
                 "--tau \"2*\xE2\x88\x9AL\": unexpected '\xE2\x88\x9A' at column 3" HINT);
    expect_error("1\n2", 9, "--tau \"1?2\": unexpected byte 0x0A at column 2" HINT);
    expect_error("1\xFF", 9, "--tau \"1?\": unexpected byte 0xFF at column 2" HINT);
    expect_error("0x10", 9, "--tau \"0x10\": unexpected 'x' at column 2" HINT);
    expect_error("inf", 9, "--tau \"inf\": unknown name 'inf' at column 1" HINT);
    expect_error("l", 9, "--tau \"l\": unknown name 'l' at column 1" HINT);
    expect_error("2*(1+L", 9, "--tau \"2*(1+L\": '(' is never closed at column 3; close it with ')'");
    expect_error("sqrt L", 9, "--tau \"sqrt L\": 'sqrt' needs parentheses at column 1; write sqrt(L)");
}

static void results_are_finite_and_not_negative(void **state) {
    (void)state;
#define FINITE "; give an expression that is finite there"
    expect_error("1/(L-9)", 9, "--tau \"1/(L-9)\": division by zero for L = 9 at column 2" FINITE);
    expect_error("1/(1/(L-9))", 9, "--tau \"1/(1/(L-9))\": division by zero for L = 9 at column 5" FINITE);
    expect_error("sqrt(1-L)", 9, "--tau \"sqrt(1-L)\": not a finite number for L = 9 at column 1" FINITE);
    expect_error("1e999", 9, "--tau \"1e999\": not a finite number for L = 9 at column 1" FINITE);
    expect_error("9^9^9", 9, "--tau \"9^9^9\": not a finite number for L = 9 at column 2" FINITE);
    expect_error("1/1e308/1e-308*0^-1", 9,
                 "--tau \"1/1e308/1e-308*0^-1\": not a finite number for L = 9 at column 17" FINITE);
    expect_error("1-L", 9, "--tau \"1-L\": is -8 for L = 9; tau must be at least 0");
}

static void check_looks_at_the_grammar_alone(void **state) {
    (void)state;
    assert_int_equal(tn_expression_check("1/(L-1)"), TN_OK);
    assert_int_equal(tn_expression_check("1/(1-L)^0.5"), TN_OK);
    assert_int_equal(tn_expression_check("1/(L-1"), TN_ERR_USAGE);
    assert_int_equal(tn_expression_check("L L"), TN_ERR_USAGE);
}

static void depth_is_bounded(void **state) {
    (void)state;
    char text[100000];
    static const char *const pieces[] = {"(", "-", "sqrt(", "2^", "1-("};
    for (size_t i = 0; i < sizeof pieces / sizeof *pieces; i++) {
        size_t length = strlen(pieces[i]), used = 0;
        while (used + length < sizeof text) {
            memcpy(text + used, pieces[i], length);
            used += length;
        }
        text[used] = 0;
        assert_int_equal(tn_expression_check(text), TN_ERR_USAGE);
        assert_non_null(strstr(tn_error(), "nested deeper than 64 levels"));
    }
    /* 63 parentheses are fine, and so is any length without nesting. */
    memset(text, '(', 63);
    text[63] = 'L';
    memset(text + 64, ')', 63);
    text[127] = 0;
    expect(text, 5, 5);
    for (size_t i = 0; i < 9999; i++) memcpy(text + 2 * i, "1+", 2);
    memcpy(text + 2 * 9999, "1", 2);
    expect(text, 5, 10000);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(values_of_the_papers),
        cmocka_unit_test(precedence_and_associativity),
        cmocka_unit_test(numbers),
        cmocka_unit_test(errors_point_at_the_column),
        cmocka_unit_test(results_are_finite_and_not_negative),
        cmocka_unit_test(check_looks_at_the_grammar_alone),
        cmocka_unit_test(depth_is_bounded),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
