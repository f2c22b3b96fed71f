/* What the experiments of the theory stand on: fits and intervals, LAPACK wrappers, tables, plots, verdicts
 * and the files that a laboratory leaves. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>

#include "base/statistics.h"
#include "plot/plot_axis.h"
#include "temp_folder.h"
#include "tests/support/unit_fixture.h"
#include "theory/laboratory_parts.h"
#include "theory/linear_algebra.h"
#include "theory/sweep.h"

static void assert_close(double got, double expected, double tolerance) {
    if (!(fabs(got - expected) <= tolerance * fmax(1, fabs(expected))))
        fail_msg("%.15g, expected %.15g", got, expected);
}

static void test_student_quantiles_are_those_of_tables(void **state) {
    (void)state;
    assert_close(tn_student_95(1), 12.7062, 1e-5);
    assert_close(tn_student_95(2), 4.30265, 1e-5);
    assert_close(tn_student_95(3), 3.18245, 1e-5);
    assert_close(tn_student_95(10), 2.22814, 1e-5);
    assert_close(tn_student_95(120), 1.97993, 1e-5);
    assert_true(isinf(tn_student_95(0)));
    assert_close(tn_student_cdf(0, 7), 0.5, 1e-14);
}

static void test_fit_of_exact_data_is_exact(void **state) {
    (void)state;
    double x[] = {1, 2, 5, 10}, y[4], power[4];
    for (int i = 0; i < 4; i++) {
        y[i] = 3 - 0.25 * x[i];
        power[i] = 7 * pow(x[i], -1.5);
    }
    tn_fit line = tn_fit_line(x, y, 4), curve = tn_fit_power(x, power, 4);
    assert_close(line.slope, -0.25, 1e-14);
    assert_close(line.intercept, 3, 1e-14);
    assert_close(line.half_width, 0, 1e-7);
    assert_close(line.r2, 1, 1e-14);
    assert_close(curve.slope, -1.5, 1e-13);
    assert_close(exp(curve.intercept), 7, 1e-12);
    power[2] = NAN; /* left out */
    power[3] = -1;  /* has no logarithm */
    curve = tn_fit_power(x, power, 4);
    assert_int_equal(curve.count, 2);
    assert_close(curve.slope, -1.5, 1e-13);
    assert_true(isinf(curve.half_width));
    assert_true(isnan(tn_fit_line(x, y, 1).slope));
}

/* Anscombe's first data set: slope 0.500, its standard error 0.1179, R^2 0.667. */
static void test_fit_of_noisy_data(void **state) {
    (void)state;
    double x[] = {10, 8, 13, 9, 11, 14, 6, 4, 12, 7, 5};
    double y[] = {8.04, 6.95, 7.58, 8.81, 8.33, 9.96, 7.24, 4.26, 10.84, 4.82, 5.68};
    tn_fit fit = tn_fit_line(x, y, 11);
    assert_close(fit.slope, 0.5001, 1e-4);
    assert_close(fit.half_width, 0.1179 * 2.26216, 2e-4);
    assert_close(fit.r2, 0.6665, 1e-4);
}

static void test_summary(void **state) {
    (void)state;
    double values[] = {1, NAN, 2, 3, INFINITY};
    tn_summary s = tn_summarise(values, 5);
    assert_int_equal(s.count, 3);
    assert_close(s.mean, 2, 1e-15);
    assert_close(s.deviation, 1, 1e-15);
    assert_close(s.half_width, 4.30265 / sqrt(3), 1e-5);
    assert_true(isnan(tn_summarise(values + 1, 1).mean));
}

static void test_eigenvalues_and_singular_values(void **state) {
    (void)state;
    double symmetric[] = {2, 1, 0, 1, 2, 1, 0, 1, 2}, values[3]; /* 2 + 2 cos(k pi / 4) */
    must(tn_symmetric_eigenvalues(3, symmetric, values));
    assert_close(values[0], 2 - sqrt(2), 1e-14);
    assert_close(values[1], 2, 1e-14);
    assert_close(values[2], 2 + sqrt(2), 1e-14);
    double wide[] = {3, 0, 0, 0, 0, -5}, work[8]; /* 2 x 3 */
    must(tn_singular_values(2, 3, wide, values));
    assert_close(values[0], 5, 1e-14);
    assert_close(values[1], 3, 1e-14);
    assert_close(tn_spectral_norm(2, 3, wide, 1e-13, work), 5, 1e-9);
    wide[1] = NAN;
    assert_int_equal(tn_singular_values(2, 3, wide, values), TN_ERR_DATA);
    symmetric[4] = INFINITY;
    assert_int_equal(tn_symmetric_eigenvalues(3, symmetric, values), TN_ERR_DATA);
}

static void test_products_of_matrices(void **state) {
    (void)state;
    double a[] = {1, 2, 3, 4, 5, 6}, b[] = {1, 0, 2, -1, 3, 1}, c[4] = {100, 100, 100, 100};
    tn_gemm(TN_PLAIN, TN_PLAIN, 2, 2, 3, 2, a, b, 1, c); /* 2 x 3 by 3 x 2 */
    double plain[] = {100 + 2 * 14, 100 + 2 * 1, 100 + 2 * 32, 100 + 2 * 1};
    for (int i = 0; i < 4; i++) assert_close(c[i], plain[i], 1e-15);
    tn_gemm(TN_TRANSPOSED, TN_TRANSPOSED, 2, 2, 3, 1, a, b, 0, c); /* a is 3 x 2, b is 2 x 3 */
    double transposed[] = {1 * 1 + 3 * 0 + 5 * 2, -1 + 9 + 5, 2 * 1 + 4 * 0 + 6 * 2, -2 + 12 + 6};
    for (int i = 0; i < 4; i++) assert_close(c[i], transposed[i], 1e-15);
}

static void test_normals_have_mean_0_and_the_deviation(void **state) {
    (void)state;
    static double values[40001];
    tn_rng rng = tn_rng_open(1, TN_RNG_INIT, 2, 3);
    tn_fill_normal(&rng, 40001, 3, values);
    tn_summary s = tn_summarise(values, 40001);
    assert_close(s.mean, 0, 0.06);
    assert_close(s.deviation, 3, 0.02);
    assert_true(tn_norm(40001, values) > 0 && isfinite(tn_norm(40001, values)));
    values[0] = values[1] = 1e300; /* the squares overflow, the norm does not */
    assert_close(tn_norm(2, values) / 1e300, sqrt(2), 1e-14);
}

/* Exponents are fitted in each trial, so that a common factor of a trial is no error. */
static void test_sweep_exponents(void **state) {
    (void)state;
    double x[] = {10, 100, 1000};
    tn_sweep sweep;
    must(tn_sweep_create(3, x, 2, &sweep));
    for (int t = 0; t < 2; t++)
        for (int k = 0; k < 3; k++) tn_sweep_set(&sweep, t, k, (t + 1) * pow(x[k], 0.5));
    tn_exponent e = tn_sweep_exponent(&sweep);
    assert_close(e.value, 0.5, 1e-13);
    assert_close(e.half_width, 0, 1e-12);
    assert_int_equal(tn_judge_below(e, 0.6), TN_HOLDS);
    assert_int_equal(tn_judge_below(e, 0.4), TN_DOES_NOT_HOLD);
    assert_int_equal(tn_judge_above(e, 0.4), TN_HOLDS);
    tn_sweep_set(&sweep, 1, 2, 1000);
    e = tn_sweep_exponent(&sweep);
    assert_int_equal(tn_judge_below(e, 0.6), TN_INCONCLUSIVE);
    assert_int_equal(tn_judge_below((tn_exponent){NAN, NAN}, 1), TN_INCONCLUSIVE);
    for (int k = 0; k < 3; k++) tn_sweep_set(&sweep, 0, k, exp(pow(x[k], 0.3)));
    sweep.trials = 1;
    assert_close(tn_sweep_log_exponent(&sweep).value, 0.3, 1e-12);
    tn_sweep_raise(&sweep, 0, 0, 1e9);
    tn_sweep_raise(&sweep, 0, 0, 5);
    assert_close(tn_sweep_at(&sweep, 0, 0), 1e9, 0);
    tn_sweep_lower(&sweep, 0, 0, 5);
    assert_close(tn_sweep_minimum(&sweep), 5, 0);
    tn_sweep_free(&sweep);
}

static void test_axes(void **state) {
    (void)state;
    tn_axis axis;
    char label[TN_TICK_LABEL];
    tn_axis_begin(&axis, true);
    tn_axis_include(&axis, 10);
    tn_axis_include(&axis, 1000);
    tn_axis_include(&axis, -3); /* cannot be shown */
    tn_axis_include(&axis, NAN);
    tn_axis_end(&axis, 6);
    assert_true(tn_axis_place(&axis, 10) > 0 && tn_axis_place(&axis, 1000) < 1);
    assert_close(tn_axis_place(&axis, 100), 0.5, 1e-12);
    assert_true(axis.ticks >= 3);
    tn_axis_begin(&axis, false); /* no values at all */
    tn_axis_end(&axis, 5);
    assert_true(isfinite(tn_axis_place(&axis, 0)));
    tn_axis_label(&axis, 0.25, label);
    assert_string_equal(label, "0.25");
    tn_axis_begin(&axis, true);
    tn_axis_include(&axis, 1);
    tn_axis_include(&axis, 1e200); /* ticks stay few */
    tn_axis_end(&axis, 6);
    assert_in_range(axis.ticks, 3, 8);
    tn_axis_label(&axis, 1e40, label);
    assert_string_equal(label, "1e+40");
}

static void test_table_prints_csv(void **state) {
    (void)state;
    tn_number_table *table;
    tn_string text = {0};
    must(tn_number_table_create("a,b", &table));
    must(TN_TABLE_ADD(table, 1, 0.1));
    must(TN_TABLE_ADD(table, NAN, -INFINITY));
    must(tn_number_table_print(table, &text));
    assert_string_equal(text.data, "a,b\n1,0.1\nnan,-inf\n");
    assert_int_equal(tn_number_table_rows(table), 2);
    assert_close(tn_number_table_at(table, 0, 1), 0.1, 0);
    tn_string_free(&text);
    tn_number_table_free(table);
}

static void test_plot_is_well_formed(void **state) {
    (void)state;
    tn_plot *plot;
    tn_string text = {0};
    int panel;
    double x[] = {1, 10, 100}, y[] = {1, NAN, 3}, low[] = {0.5, 1, 2}, high[] = {2, 3, 4};
    must(tn_plot_create(&plot));
    must(tn_plot_panel(plot, "a < b & \"c\"", "τ", "", true, false, &panel));
    must(tn_plot_series(plot, panel, "with a gap", 0, TN_MARK_BOTH, 3, x, y, low, high));
    must(tn_plot_series(plot, panel, "", -1, TN_MARK_DASHED, 0, NULL, NULL, NULL, NULL));
    must(tn_plot_series(plot, panel, "", -1, TN_MARK_DASHED, 3, x, y, NULL, NULL));
    must(tn_plot_print(plot, "title", &text));
    const char *stroke = strstr(text.data, "h16M"); /* two points that are alone */
    assert_non_null(stroke);
    assert_non_null(strstr(stroke, "h16\""));
    assert_non_null(strstr(text.data, "a &#60; b &#38; &#34;c&#34;"));
    assert_non_null(strstr(text.data, "&#964;")); /* tau, in ASCII */
    assert_null(strstr(text.data, "nan"));
    assert_non_null(strstr(text.data, "with a gap"));
    assert_string_equal(text.data + text.length - 7, "</svg>\n");
    for (size_t i = 0; i < text.length; i++) assert_true((unsigned char)text.data[i] < 128);
    tn_string_free(&text);
    tn_plot_free(plot);
}

/* A laboratory of its own
 * --------------------------------------------------------------------------------------- */

static tn_status no_run(tn_lab *lab, const tn_options *options) {
    (void)lab, (void)options;
    return TN_OK;
}

static const tn_experiment dummy = {"dummy", "A <dummy>", "Nothing is measured.", " ", no_run};

static void test_laboratory_writes_its_files(void **state) {
    (void)state;
    temp_folder folder = temp_folder_make();
    temp_path out = temp_path_of(&folder, "a/b");
    tn_options *options;
    tn_lab *lab;
    tn_number_table *table;
    tn_plot *plot;
    tn_verdict verdict;
    must(tn_options_create("theory", &options));
    must(tn_options_set(options, "experiment", "dummy"));
    must(tn_options_set(options, "out", out.text));
    must(tn_options_set(options, "depths", "30,3,30"));
    must(tn_lab_open_folder(options));
    must(tn_lab_create(&dummy, options, NULL, &lab));
    int depths[4], count;
    must(tn_lab_depths(lab, (int[]){5, 0}, (int[]){4, 0}, 2, depths, 4, &count));
    assert_int_equal(count, 2);
    assert_int_equal(depths[0], 3);
    assert_int_equal(tn_lab_depths(lab, (int[]){5, 0}, (int[]){4, 0}, 4, depths, 4, &count), TN_ERR_USAGE);
    assert_int_equal(tn_lab_width(lab, 128, 16), 128);
    must(tn_lab_table(lab, "numbers", "a", &table));
    must(tn_lab_plot(lab, "picture", "A caption", &plot));
    must(tn_lab_remark(lab, "a remark of %d words", 5));
    must(tn_lab_verdict(lab, TN_DOES_NOT_HOLD, "a \"claim\"", "below 1", "%.1f", 2.0));
    assert_int_equal(tn_lab_find_verdict(lab, "claim", &verdict), 1);
    assert_int_equal(verdict, TN_DOES_NOT_HOLD);
    must(tn_lab_publish(lab));
    tn_lab_free(lab);
    assert_true(temp_holds(temp_path_of(&folder, "a/b/numbers.csv").text, "a\n"));
    assert_true(temp_holds(
        temp_path_of(&folder, "a/b/verdicts.csv").text,
        "claim,bound,measured,verdict\n\"a \"\"claim\"\"\",\"below 1\",\"2.0\",\"does not hold\"\n"));
    char *section = temp_read(temp_path_of(&folder, "a/b/section.html").text, NULL);
    assert_non_null(strstr(section, "A &#60;dummy&#62;"));
    assert_non_null(strstr(section, "taunet theory dummy --depths 30,3,30 --seed 0"));
    free(section);
    /* A folder with a result is refused, unless told otherwise. */
    assert_int_equal(tn_lab_open_folder(options), TN_ERR_USAGE);
    must(tn_options_set(options, "overwrite", "yes"));
    must(tn_lab_open_folder(options));
    tn_options_free(options);
    temp_folder_remove(&folder);
}

static tn_status square(void *context, int index, int worker) {
    int *results = context;
    (void)worker;
    results[index] = index * index;
    return index == 7 ? tn_fail(TN_ERR_DATA, "seven") : TN_OK;
}

static void test_laboratory_runs_jobs_and_stops(void **state) {
    (void)state;
    volatile sig_atomic_t stop = 0;
    tn_theory_hooks hooks = {.stop = &stop};
    tn_options *options;
    tn_lab *lab;
    int results[16] = {0};
    must(tn_options_create("theory", &options));
    must(tn_options_set(options, "threads", "3"));
    must(tn_lab_create(&dummy, options, &hooks, &lab));
    must(tn_lab_parallel(lab, 7, square, results));
    assert_int_equal(results[6], 36);
    assert_int_equal(tn_lab_parallel(lab, 16, square, results), TN_ERR_DATA);
    stop = 1;
    assert_int_equal(tn_lab_parallel(lab, 7, square, results), TN_ERR_STOPPED);
    tn_lab_free(lab);
    tn_options_free(options);
}

int main(void) {
    if (tn_blas_open() != TN_OK) return 1;
    const struct CMUnitTest tests[] = {
        UNIT_TEST(test_student_quantiles_are_those_of_tables),
        UNIT_TEST(test_fit_of_exact_data_is_exact),
        UNIT_TEST(test_fit_of_noisy_data),
        UNIT_TEST(test_summary),
        UNIT_TEST(test_eigenvalues_and_singular_values),
        UNIT_TEST(test_products_of_matrices),
        UNIT_TEST(test_normals_have_mean_0_and_the_deviation),
        UNIT_TEST(test_sweep_exponents),
        UNIT_TEST(test_axes),
        UNIT_TEST(test_table_prints_csv),
        UNIT_TEST(test_plot_is_well_formed),
        UNIT_TEST(test_laboratory_writes_its_files),
        UNIT_TEST(test_laboratory_runs_jobs_and_stops),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
