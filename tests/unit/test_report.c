/* Recipes, what is read of a run, and what cells and claims say of runs. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <string.h>

#include "plot/plot.h"
#include "report/table.h"
#include "tests/support/unit_fixture.h"

static void assert_close(double got, double expected, double tolerance) {
    if (!(fabs(got - expected) <= tolerance)) fail_msg("%.15g, expected %.15g", got, expected);
}

/* ---- the record of a run ---- */

static tn_run_record *read_log(const char *log) {
    tn_run_record *record;
    must(tn_run_record_open("/nowhere/at/all", &record));
    assert_int_equal(record->state, TN_RUN_ABSENT);
    must(tn_run_record_read_log(record, log, strlen(log), "log"));
    return record;
}

static void test_curves_of_a_log(void **state) {
    (void)state;
    tn_run_record *r = read_log(
        "{\"event\":\"start\",\"model\":\"m\",\"threads\":2}\n"
        "{\"event\":\"step\",\"step\":10,\"epoch\":0,\"loss\":2.5,\"lr\":0.1,\"tau\":null}\n"
        "{\"event\":\"epoch\",\"epoch\":0,\"train_loss\":2,\"train_top1\":20,\"val_top1\":null,\"seconds\":3}"
        "\n"
        "{\"event\":\"epoch\",\"epoch\":1,\"train_loss\":1,\"train_top1\":40,\"val_top1\":30,\"seconds\":4}\n"
        "{\"event\":\"epoch\",\"epoch\":2,\"train_loss\":1.5,\"train_top1\":50,\"val_top1\":25,\"seconds\":5}"
        "\n"
        "{\"event\":\"later version\"}\n"
        "{\"event\":\"end\",\"status\":\"diverged\",\"message\":\"step 3\"}\n{\"event\":\"cut");
    assert_int_equal(r->state, TN_RUN_DIVERGED);
    assert_string_equal(r->message, "step 3");
    assert_string_equal(tn_run_record_text(r, "model"), "m");
    assert_string_equal(tn_run_record_text(r, "threads"), "");
    assert_true(isnan(tn_run_record_number(r, "model")));
    assert_close(tn_run_record_number(r, "threads"), 2, 0);
    assert_close(r->seconds, 12, 0);
    const tn_curve *error = &r->curves[TN_CURVE_VAL_ERROR], *loss = &r->curves[TN_CURVE_TRAIN_LOSS];
    assert_int_equal(error->count, 2); /* one epoch was not evaluated */
    assert_close(error->x[0], 2, 0);
    assert_close(tn_curve_last(error), 75, 0);
    double epoch;
    assert_close(tn_curve_least(error, &epoch), 70, 0);
    assert_close(epoch, 2, 0);
    assert_close(tn_curve_least(loss, &epoch), 1, 0);
    assert_int_equal(r->curves[TN_CURVE_STEP_TAU].count, 0);
    assert_close(tn_curve_last(&r->curves[TN_CURVE_STEP_LOSS]), 2.5, 0);
    assert_true(isnan(tn_curve_last(&r->curves[TN_CURVE_TAU])));
    tn_run_record_free(r);
}

static void test_growth_of_norms(void **state) {
    (void)state;
    static const char probes[] = "epoch,step,block,layer,output_norm,gradient_norm\n"
                                 "-1,0,0,stem,9,1\n-1,0,1,a,2,1\n-1,0,2,b,6,1\n-1,0,3,c,5,1\n"
                                 "0,7,0,stem,90,1\n0,7,1,a,4,1\n0,7,2,b,2,1\n"
                                 "1,9,1,a,4,1\n1,9,2,b,,\n";
    tn_run_record *r = read_log("{\"event\":\"start\"}\n");
    must(tn_run_record_read_probes(r, probes, sizeof probes - 1, "probes"));
    const tn_curve *growth = &r->curves[TN_CURVE_NORM_GROWTH];
    assert_int_equal(growth->count, 2); /* in the last epoch a norm was not finite */
    assert_close(growth->x[0], 0, 0);
    assert_close(growth->y[0], 3, 1e-12);
    assert_close(growth->y[1], 1, 1e-12);
    assert_int_equal(tn_run_record_read_probes(r, "epoch\n", 6, "p"), TN_ERR_DATA);
    tn_run_record_free(r);
}

/* ---- recipes ---- */

static const char recipe_text[] =
    "title = \"t\"\nmetric = \"val_error\"\n[full]\nseeds = 3\n[quick]\nnote = \"n\"\n"
    "[[row]]\nname = \"A, 1\"\nscales = \"full\"\nmodel = \"resnet8\"\n"
    "[[row]]\nname = 20\nmodel = \"resnet20\"\npaper = \"8.5, -\"\nlr = 0.5\n"
    "[[column]]\nname = \"low\"\nvariant = \"tau\"\n"
    "[[column]]\nname = \"high\"\nvariant = \"bn\"\nlr = 0.25\n"
    "[[claim]]\nlower = \"low\"\nhigher = \"high\"\n"
    "[[claim]]\nlower = \"low\"\nhigher = \"high\"\nby = \"1, 2\"\nonly = \"20\"\n";

static tn_recipe *parse(const char *text) {
    tn_recipe *recipe;
    must(tn_recipe_parse(text, strlen(text), "r", &recipe));
    return recipe;
}

static void make_plan(const tn_recipe *recipe, const char *scale, const char *data, tn_options **options,
                      tn_table_plan **plan) {
    must(tn_options_create("table", options));
    must(tn_options_set(*options, "scale", scale));
    must(tn_options_set(*options, "data", data));
    must(tn_table_plan_create(recipe, "name", *options, plan));
}

static void test_plan_of_a_recipe(void **state) {
    (void)state;
    tn_recipe *recipe = parse(recipe_text);
    tn_options *options;
    tn_table_plan *plan;
    make_plan(recipe, "full", "", &options, &plan);
    assert_int_equal(plan->row_count, 2);
    assert_int_equal(plan->run_count, 12);
    assert_false(plan->reduced);
    assert_string_equal(plan->rows[0].id, "a-1");
    assert_true(isnan(plan->rows[0].x));
    assert_close(plan->rows[1].x, 20, 0);
    assert_true(isnan(plan->paper[0]));
    assert_close(plan->paper[2], 8.5, 0);
    assert_true(isnan(plan->paper[3]));
    assert_string_equal(plan->runs[11].id, "20-high-s2");
    assert_close(plan->runs[11].options->lr, 0.25, 0); /* the column comes after the row */
    assert_close(plan->runs[8].options->lr, 0.5, 0);
    assert_string_equal(plan->runs[8].options->variant, "tau");
    assert_int_equal(plan->runs[8].options->seed, 2);
    int count;
    assert_int_equal(tn_table_plan_cell(plan, 1, 1, &count), 9);
    assert_int_equal(count, 3);
    tn_table_plan_free(plan);
    tn_options_free(options);
    make_plan(recipe, "quick", "", &options, &plan);
    assert_int_equal(plan->run_count, 2); /* a row less, one seed */
    assert_true(plan->reduced);
    tn_table_plan_free(plan);
    tn_options_free(options);
    tn_recipe_free(recipe);
}

/* ---- cells and claims ---- */

typedef struct fixture {
    tn_recipe *recipe;
    tn_options *options;
    tn_table_plan *plan;
    tn_table table;
} fixture;

/* A table whose runs ended with these values, by row, column and seed: a negative one diverged, NaN is
 * missing. */
static void make_table(const double *values, fixture *f) {
    char log[256];
    f->recipe = parse(recipe_text);
    make_plan(f->recipe, "full", "", &f->options, &f->plan);
    f->table = (tn_table){.plan = f->plan, .options = f->options, .folder = "/nowhere"};
    must(tn_alloc(&f->table.results, 12, sizeof *f->table.results, "test"));
    for (int i = 0; i < 12; i++) {
        snprintf(
            log, sizeof log,
            "{\"event\":\"start\"}\n{\"event\":\"epoch\",\"epoch\":0,\"val_top1\":90}\n"
            "{\"event\":\"epoch\",\"epoch\":1,\"val_top1\":%.9g}\n{\"event\":\"end\",\"status\":\"%s\"}\n",
            isnan(values[i]) ? 0 : 100 - fabs(values[i]), values[i] < 0 ? "diverged" : "done");
        f->table.results[i].record = read_log(isnan(values[i]) ? "" : log);
        must(tn_strdup(&f->table.results[i].reason, isnan(values[i]) ? "gone" : ""));
    }
}

static void free_table(fixture *f) {
    for (int i = 0; i < 12; i++) {
        tn_run_record_free(f->table.results[i].record);
        tn_free(f->table.results[i].reason);
    }
    tn_free(f->table.results);
    tn_table_plan_free(f->plan);
    tn_options_free(f->options);
    tn_recipe_free(f->recipe);
}

static tn_judgement judge(const fixture *f, int claim, int row) {
    const tn_section *s = NULL;
    tn_judgement j;
    for (int i = 0; i <= claim; i++) s = tn_recipe_next(f->recipe, TN_SECTION_CLAIM, s);
    must(tn_table_judge(&f->table, s, row, &j));
    return j;
}

static void test_cells(void **state) {
    (void)state;
    fixture f;
    const double values[12] = {20, 22, 24, -1, 8, NAN, 8, 8.2, 8.4, 9.5, 9.6, 9.7};
    make_table(values, &f);
    tn_cell c;
    must(tn_table_cell(&f.table, TN_CURVE_VAL_ERROR, 0, 0, &c));
    assert_int_equal(c.done, 3);
    assert_close(c.last.mean, 22, 1e-6);
    assert_close(c.last.deviation, 2, 1e-6);
    assert_close(c.last.half_width, 4.30265 * 2 / sqrt(3), 1e-3);
    assert_close(c.best.mean, 10, 1e-6); /* of the first epoch */
    assert_close(c.best_epoch.mean, 1, 0);
    must(tn_table_cell(&f.table, TN_CURVE_VAL_ERROR, 0, 1, &c));
    assert_int_equal(c.done, 1);
    assert_int_equal(c.diverged, 1);
    assert_int_equal(c.missing, 1);
    assert_string_equal(c.reason, "gone");
    assert_close(c.last.mean, 8, 1e-6);

    /* Welch: 2.94 degrees of freedom, taken as 2. */
    tn_judgement j = judge(&f, 0, 1);
    assert_int_equal(j.verdict, TN_HOLDS);
    assert_close(j.difference.mean, 1.4, 1e-6);
    double se = sqrt(0.01 / 3 + 0.04 / 3);
    assert_close(j.difference.half_width, 4.30265 * se, 1e-5);
    assert_int_equal(judge(&f, 1, 1).verdict, TN_INCONCLUSIVE); /* 0.84 to 1.96 is not within 1 to 2 */
    j = judge(&f, 0, 0);
    assert_int_equal(j.verdict, TN_INCONCLUSIVE);
    assert_non_null(strstr(j.remark, "diverged"));
    /* Together: pairs 8 - 22 of the first row, 1.5, 1.4, 1.3 of the second. */
    j = judge(&f, 0, -1);
    assert_int_equal(j.pairs, 4);
    assert_close(j.difference.mean, (-14 + 1.5 + 1.4 + 1.3) / 4, 1e-6);
    assert_int_equal(j.verdict, TN_INCONCLUSIVE);
    j = judge(&f, 1, -1);
    assert_int_equal(j.pairs, 3);
    assert_close(j.difference.half_width, 4.30265 * 0.1 / sqrt(3), 1e-3);
    assert_int_equal(j.verdict, TN_HOLDS);
    free_table(&f);
}

static void test_claims_when_runs_diverge(void **state) {
    (void)state;
    fixture f;
    const double values[12] = {20, 22, 24, -1, -1, -1, -1, -1, -1, 9, 9, 9};
    make_table(values, &f);
    assert_int_equal(judge(&f, 0, 0).verdict, TN_HOLDS);
    assert_int_equal(judge(&f, 1, 0).verdict, TN_DOES_NOT_HOLD);
    assert_int_equal(judge(&f, 0, 1).verdict, TN_DOES_NOT_HOLD);
    assert_int_equal(judge(&f, 0, -1).verdict, TN_INCONCLUSIVE);
    free_table(&f);
    const double equal[12] = {9, 9, 9, 8, 8, 8, -1, -1, -1, -1, -1, -1};
    make_table(equal, &f);
    assert_int_equal(judge(&f, 0, 0).verdict, TN_INCONCLUSIVE); /* no noise seen is not no noise */
    assert_int_equal(judge(&f, 0, 1).verdict, TN_INCONCLUSIVE);
    free_table(&f);
    const double reversed[12] = {9, 9.1, 9.2, 6, 6.1, 6.2, NAN, NAN, NAN, -1, -1, -1};
    make_table(reversed, &f);
    assert_int_equal(judge(&f, 0, 0).verdict, TN_DOES_NOT_HOLD);
    assert_int_equal(judge(&f, 0, 1).verdict, TN_INCONCLUSIVE);
    free_table(&f);
}

static void test_results_are_quoted(void **state) {
    (void)state;
    tn_string text = {0};
    must(tn_string_csv(&text, "a \"b\", c"));
    assert_string_equal(text.data, "\"a \"\"b\"\", c\"");
    tn_string_free(&text);
}

static void test_thinning_keeps_means_and_bounds(void **state) {
    (void)state;
    double x[] = {1, 2, 3, 4, 5}, y[] = {1, 3, 5, 7, 9}, low[] = {0, -1, 4, 6, 8}, high[] = {2, 4, 9, 7, 9};
    assert_int_equal(tn_plot_thin(x, y, low, high, 5, 5), 5);
    assert_int_equal(tn_plot_thin(x, y, low, high, 5, 3), 3);
    assert_close(x[0], 1.5, 1e-12);
    assert_close(y[1], 6, 1e-12);
    assert_close(low[0], -1, 0);
    assert_close(high[1], 9, 0);
    assert_close(y[2], 9, 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        UNIT_TEST(test_curves_of_a_log),
        UNIT_TEST(test_growth_of_norms),
        UNIT_TEST(test_plan_of_a_recipe),
        UNIT_TEST(test_cells),
        UNIT_TEST(test_claims_when_runs_diverge),
        UNIT_TEST(test_results_are_quoted),
        UNIT_TEST(test_thinning_keeps_means_and_bounds),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
