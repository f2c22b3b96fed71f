/* Small instances of the experiments: the verdicts that must come out, the controls that must come out the
 * other way, and results that hang on the seed alone. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "temp_folder.h"
#include "tests/support/unit_fixture.h"
#include "theory/laboratory_parts.h"
#include "theory/linear_algebra.h"

/* A laboratory in which the quick form of an experiment has run. */
typedef struct result {
    tn_options *options;
    tn_lab *lab;
} result;

static result run(const tn_experiment *experiment, const char *threads) {
    result r;
    must(tn_options_create("theory", &r.options));
    must(tn_options_set(r.options, "quick", "yes"));
    must(tn_options_set(r.options, "threads", threads));
    must(tn_lab_create(experiment, r.options, NULL, &r.lab));
    must(experiment->run(r.lab, r.options));
    return r;
}

static void end(result *r) {
    tn_lab_free(r->lab);
    tn_options_free(r->options);
}

/* The first claim with this text has one of the two verdicts. */
static void expect_either(const result *r, const char *claim, tn_verdict one, tn_verdict other) {
    tn_verdict verdict = TN_INCONCLUSIVE;
    if (tn_lab_find_verdict(r->lab, claim, &verdict) == 0) fail_msg("no claim '%s'", claim);
    if (verdict != one && verdict != other) fail_msg("'%s': %s", claim, tn_verdict_name(verdict));
}

static void expect(const result *r, const char *claim, tn_verdict verdict) {
    expect_either(r, claim, verdict, verdict);
}

/* The number behind `before` in what the first claim with this text measured. */
static double measured(const result *r, const char *claim, const char *before) {
    for (size_t i = 0; i < r->lab->claim_count; i++) {
        const char *at = r->lab->claims[i].measured;
        if (!strstr(r->lab->claims[i].claim, claim)) continue;
        if (!(at = strstr(at, before))) fail_msg("'%s' measures no '%s'", claim, before);
        return strtod(at + strlen(before), NULL);
    }
    fail_msg("no claim '%s'", claim);
    return 0;
}

/* Few trials leave wide intervals: bounded quantities may be inconclusive here, but not refuted. */
static void test_forward(void **state) {
    (void)state;
    result r = run(&tn_experiment_forward, "2");
    expect_either(&r, "Thm 2, τ = 1/√L", TN_HOLDS, TN_INCONCLUSIVE);
    expect_either(&r, "Thm 2, τ = 0.5/√L", TN_HOLDS, TN_INCONCLUSIVE);
    expect_either(&r, "Thm 2, τ = 0.25/√L", TN_HOLDS, TN_INCONCLUSIVE);
    /* The slopes themselves, which the intervals belong to. */
    assert_true(measured(&r, "Thm 2, τ = 1/√L", "largest ") < 0.05);
    assert_true(measured(&r, "Thm 2, τ = 0.5/√L", "largest ") < 0.05);
    assert_true(measured(&r, "Thm 2, τ = 0.25/√L", "largest ") < 0.05);
    assert_true(measured(&r, "Control, τ = 1", "") > 1);
    expect(&r, "excess c over 1 shrinks", TN_HOLDS);
    expect(&r, "Thm 4, τ = L^-0.25", TN_HOLDS);
    expect(&r, "Control, τ = 1", TN_HOLDS);
    end(&r);
}

static void test_spectral(void **state) {
    (void)state;
    result r = run(&tn_experiment_spectral, "2");
    expect_either(&r, "Thm 1, κ = 1", TN_HOLDS, TN_INCONCLUSIVE);
    expect_either(&r, "Thm 1, κ = 0.5", TN_HOLDS, TN_INCONCLUSIVE);
    expect(&r, "Thm 1, κ = 0.25", TN_HOLDS);
    assert_true(measured(&r, "Thm 1, κ = 1", "") < 0.05);
    assert_true(measured(&r, "Thm 1, κ = 0.5", "") < 0.05);
    assert_true(measured(&r, "Thm 1, κ = 0.25", "") < 0.05);
    assert_true(measured(&r, "Control, τ = 1", "") > 1);
    expect(&r, "excess c shrinks", TN_HOLDS);
    expect(&r, "Control, τ = 1", TN_HOLDS);
    end(&r);
}

static void test_backward(void **state) {
    (void)state;
    result r = run(&tn_experiment_backward, "2");
    expect_either(&r, "Thm 3, κ = 0.25, at initialisation", TN_HOLDS, TN_INCONCLUSIVE);
    expect(&r, "Control, τ = 1", TN_HOLDS);
    end(&r);
}

static void test_smoothness(void **state) {
    (void)state;
    result r = run(&tn_experiment_smoothness, "2");
    expect_either(&r, "Thm 6/8, κ = 0.25", TN_HOLDS, TN_INCONCLUSIVE);
    expect(&r, "Control, τ = 1", TN_HOLDS);
    end(&r);
}

static void test_perturbation(void **state) {
    (void)state;
    result r = run(&tn_experiment_perturbation, "2");
    expect_either(&r, "κ = 0.25: the states of layers l < L move", TN_HOLDS, TN_INCONCLUSIVE);
    expect(&r, "Control, τ = 1", TN_HOLDS);
    end(&r);
}

static void test_lower(void **state) {
    (void)state;
    result r = run(&tn_experiment_lower, "2");
    assert_int_equal(tn_lab_find_verdict(r.lab, NULL, NULL), 4);
    expect_either(&r, "Lemma 6", TN_HOLDS, TN_INCONCLUSIVE);
    expect(&r, "Control, without skips", TN_HOLDS);
    end(&r);
}

static void test_convergence(void **state) {
    (void)state;
    result r = run(&tn_experiment_convergence, "2");
    expect_either(&r, "Thm 5, τ = 1/√L: gradient descent", TN_HOLDS, TN_INCONCLUSIVE);
    expect(&r, "Control, η = 10", TN_HOLDS);
    end(&r);
}

static void test_nf(void **state) {
    (void)state;
    result r = run(&tn_experiment_nf, "2");
    expect(&r, "Thm 1, tanh", TN_HOLDS);
    expect(&r, "Thm 1, softplus", TN_HOLDS);
    expect(&r, "Control, tanh, η = 10", TN_HOLDS);
    expect(&r, "Control, softplus, η = 10", TN_HOLDS);
    expect(&r, "Control, ReLU, η = 10", TN_HOLDS);
    end(&r);
}

static void test_jacobian(void **state) {
    (void)state;
    result r = run(&tn_experiment_jacobian, "2");
    expect(&r, "ReLU, standard initialisation: λ_max(JJᵀ) = Ω(H)", TN_HOLDS);
    expect(&r, "ReLU, standard initialisation: the condition number grows", TN_HOLDS);
    /* The same with the factor 1/H comes out the other way. */
    expect_either(&r, "ReLU, with 1/H", TN_HOLDS, TN_INCONCLUSIVE);
    expect(&r, "tanh, with 1/H", TN_HOLDS);
    assert_true(measured(&r, "ReLU, with 1/H", "λ_max ") < 0.5);
    assert_true(measured(&r, "ReLU, standard initialisation: λ_max", "") > 5);
    end(&r);
}

/* One run through the public entrance; the bytes of its files depend on the seed, not on the threads. */
static void run_into(const char *out, const char *seed, const char *threads) {
    tn_options *options;
    must(tn_options_create("theory", &options));
    const char *const settings[][2] = {
        {"experiment", "spectral"}, {"out", out},    {"seed", seed}, {"threads", threads},
        {"depths", "6,12"},         {"width", "16"}, {"trials", "4"}};
    for (size_t i = 0; i < sizeof settings / sizeof *settings; i++)
        must(tn_options_set(options, settings[i][0], settings[i][1]));
    must(tn_theory_run(options, NULL));
    tn_options_free(options);
}

static void test_results_depend_on_the_seed_alone(void **state) {
    (void)state;
    static const char *const files[] = {"spectral.csv", "verdicts.csv", "spectral.svg", "section.html"};
    temp_folder folder = temp_folder_make();
    temp_path paths[3] = {temp_path_of(&folder, "a"), temp_path_of(&folder, "b"), temp_path_of(&folder, "c")};
    run_into(paths[0].text, "1", "1");
    run_into(paths[1].text, "1", "3");
    run_into(paths[2].text, "2", "1");
    for (int i = 0; i < 4; i++) {
        char *texts[3];
        for (int k = 0; k < 3; k++) {
            char path[2048];
            snprintf(path, sizeof path, "%s/%s", paths[k].text, files[i]);
            texts[k] = temp_read(path, NULL);
            assert_non_null(texts[k]);
        }
        assert_string_equal(texts[0], texts[1]);
        assert_string_not_equal(texts[0], texts[2]);
        for (int k = 0; k < 3; k++) free(texts[k]);
    }
    temp_folder_remove(&folder);
}

static void test_names_are_unique_and_unknown_ones_refused(void **state) {
    (void)state;
    tn_theory_entry one, other;
    size_t count = 0;
    for (size_t i = 0; tn_theory_at(i, &one); i++, count++)
        for (size_t j = 0; j < i; j++) {
            assert_true(tn_theory_at(j, &other));
            assert_string_not_equal(one.name, other.name);
        }
    assert_true(count >= 9);
    tn_options *options;
    must(tn_options_create("theory", &options));
    must(tn_options_set(options, "out", "/nonexistent/folder"));
    assert_int_equal(tn_theory_run(options, NULL), TN_ERR_USAGE);
    must(tn_options_set(options, "experiment", "spectrel"));
    assert_int_equal(tn_theory_run(options, NULL), TN_ERR_USAGE);
    assert_non_null(strstr(tn_error(), "did you mean 'spectral'"));
    tn_options_free(options);
}

int main(void) {
    if (tn_blas_open() != TN_OK) return 1;
    const struct CMUnitTest tests[] = {
        UNIT_TEST(test_forward),
        UNIT_TEST(test_spectral),
        UNIT_TEST(test_backward),
        UNIT_TEST(test_smoothness),
        UNIT_TEST(test_perturbation),
        UNIT_TEST(test_lower),
        UNIT_TEST(test_convergence),
        UNIT_TEST(test_nf),
        UNIT_TEST(test_jacobian),
        UNIT_TEST(test_results_depend_on_the_seed_alone),
        UNIT_TEST(test_names_are_unique_and_unknown_ones_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
