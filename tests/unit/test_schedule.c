/* Learning-rate schedules, with numbers worked out by hand. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "base/schedule.h"

static tn_schedule parse(const char *text) {
    tn_schedule schedule;
    if (tn_schedule_parse(text, &schedule) != TN_OK) fail_msg("%s", tn_error());
    return schedule;
}

/* lr at (epoch, step) of 10 steps an epoch, 4 epochs, base 0.8 */
static double at(const char *text, double warmup, int epoch, int step) {
    tn_schedule schedule = parse(text);
    return tn_schedule_lr(&schedule, 0.8, warmup, epoch, step, 10, 4);
}

static void near(double value, double expected) {
    if (fabs(value - expected) > 1e-12) fail_msg("%.17g, not %.17g", value, expected);
}

static void constant(void **state) {
    (void)state;
    near(at("constant", 0, 0, 0), 0.8);
    near(at("constant", 0, 3, 9), 0.8);
}

static void steps_fall_at_milestones(void **state) {
    (void)state;
    const char *text = "step:1,3:0.1";
    near(at(text, 0, 0, 9), 0.8);
    near(at(text, 0, 1, 0), 0.08);
    near(at(text, 0, 2, 9), 0.08);
    near(at(text, 0, 3, 0), 0.008);
    /* Half an epoch of 10 steps is step 5. */
    near(at("step:1.5:0.5", 0, 1, 4), 0.8);
    near(at("step:1.5:0.5", 0, 1, 5), 0.4);
}

static void recipe_of_the_paper(void **state) {
    (void)state;
    tn_schedule s = parse("step:100,150:0.1");
    near(tn_schedule_lr(&s, 0.1, 0, 99, 390, 391, 200), 0.1);
    near(tn_schedule_lr(&s, 0.1, 0, 100, 0, 391, 200), 0.01);
    near(tn_schedule_lr(&s, 0.1, 0, 149, 390, 391, 200), 0.01);
    near(tn_schedule_lr(&s, 0.1, 0, 150, 0, 391, 200), 0.001);
    near(tn_schedule_lr(&s, 0.1, 0, 199, 390, 391, 200), 0.001);
}

static void cosine_reaches_zero_at_the_end(void **state) {
    (void)state;
    near(at("cosine", 0, 0, 0), 0.8);
    near(at("cosine", 0, 1, 0), 0.8 * (1 + M_SQRT1_2) / 2);
    near(at("cosine", 0, 2, 0), 0.4);
    near(at("cosine", 0, 3, 0), 0.8 * (1 - M_SQRT1_2) / 2);
    near(at("cosine", 0, 4, 0), 0);
    near(at("cosine", 0, 9, 0), 0);
    for (int t = 1; t < 40; t++)
        assert_true(at("cosine", 0, t / 10, t % 10) < at("cosine", 0, (t - 1) / 10, (t - 1) % 10));
    /* A run of 25 steps of 10 an epoch is 2.5 epochs. */
    tn_schedule s = parse("cosine");
    assert_true(tn_schedule_lr(&s, 0.8, 0, 2, 4, 10, 2.5) > 0);
    near(tn_schedule_lr(&s, 0.8, 0, 2, 5, 10, 2.5), 0);
}

static void warm_up_rises_per_step(void **state) {
    (void)state;
    near(at("constant", 0.4, 0, 0), 0.2); /* 4 steps */
    near(at("constant", 0.4, 0, 1), 0.4);
    near(at("constant", 0.4, 0, 2), 0.6);
    near(at("constant", 0.4, 0, 3), 0.8);
    near(at("constant", 0.4, 0, 4), 0.8);
    near(at("constant", 2, 1, 0), 0.8 * 11 / 20);
    /* Cosine starts after it: 40 steps, 20 of warm-up, half-way through the rest at step 30. */
    near(at("cosine", 2, 1, 9), 0.8);
    near(at("cosine", 2, 2, 0), 0.8);
    near(at("cosine", 2, 3, 0), 0.4);
    near(at("step:1:0.1", 2, 1, 0), 0.08 * 11 / 20);
}

static void bad_schedules(void **state) {
    (void)state;
    static const char *const bad[][2] = {
        {"", "no such schedule"},
        {"cosin", "no such schedule"},
        {"cosine ", "no such schedule"},
        {"step", "no such schedule"},
        {"step:", "a milestone is not a number"},
        {"step:1", "the factor is missing"},
        {"step:1,", "a milestone is not a number"},
        {"step:1,:0.1", "a milestone is not a number"},
        {"step:1 ,2:0.1", "a milestone is not a number"},
        {"step:-1:0.1", "a milestone is not a number"},
        {"step:0:0.1", "a milestone is not above 0"},
        {"step:2,2:0.1", "the milestones do not rise"},
        {"step:1e999:0.1", "a milestone is too large"},
        {"step:1,2:", "the factor is not a number"},
        {"step:1,2:x", "the factor is not a number"},
        {"step:1,2:0", "the factor is not above 0"},
        {"step:1,2:-1", "the factor is not above 0"},
        {"step:1,2:nan", "the factor is not a number"},
        {"step:1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31,32,33:0.1",
         "more than 32 milestones"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        tn_schedule schedule;
        assert_int_equal(tn_schedule_parse(bad[i][0], &schedule), TN_ERR_USAGE);
        if (!strstr(tn_error(), bad[i][1])) fail_msg("%s: %s", bad[i][0], tn_error());
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(constant),
        cmocka_unit_test(steps_fall_at_milestones),
        cmocka_unit_test(recipe_of_the_paper),
        cmocka_unit_test(cosine_reaches_zero_at_the_end),
        cmocka_unit_test(warm_up_rises_per_step),
        cmocka_unit_test(bad_schedules),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
