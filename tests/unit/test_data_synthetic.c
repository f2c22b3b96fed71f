/* Specifications of data sets, and the synthetic one. */
#include "tests/unit/test_data_files.h"

#include "data/dataset.h"

static tn_dataset *open_spec(const char *spec) {
    tn_dataset *dataset;
    assert_int_equal(tn_dataset_open(spec, &dataset), TN_OK);
    return dataset;
}

static void other_specifications_are_refused(void **state) {
    (void)state;
    const char *const unknown[] = {
        "", ":", "cifar", "cifar10", "cifar10:", "cifar1:x", "cifar1000:x", "mnist", "MNIST:x"};
    for (size_t i = 0; i < sizeof unknown / sizeof *unknown; i++) {
        tn_dataset *dataset;
        assert_fails(tn_dataset_open(unknown[i], &dataset), TN_ERR_USAGE, unknown[i], "cifar10:DIR",
                     "mnist:DIR");
        assert_null(dataset);
    }
    const char *const wrong[] = {"3x32x32:10:0",
                                 "3x32x32:0:5",
                                 "0x32x32:10:5",
                                 "3x0x32:10:5",
                                 "3x32x0:10:5",
                                 "17x32x32:10:5",
                                 "3x4097x32:1:5",
                                 "3x32x4097:1:5",
                                 "3x32x32:10",
                                 "3x32x32:10:",
                                 "3x32x32:10:5x",
                                 "3x32x32:10:5:",
                                 "3x32x32:10:-5",
                                 "3x32x32:10:+5",
                                 " 3x32x32:10:5",
                                 "3x32x32: 10:5",
                                 "3x32:10:5",
                                 "3,32,32:10:5",
                                 "x32x32:10:5",
                                 "3x32x32:100001:5",
                                 "3x32x32:10:1e3",
                                 "1x1x1:1:2147483648",
                                 "1x1x1:1:99999999999999999999999999"};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        char spec[100];
        tn_dataset *dataset;
        snprintf(spec, sizeof spec, "synthetic:%s", wrong[i]);
        assert_fails(tn_dataset_open(spec, &dataset), TN_ERR_USAGE, spec, "CxHxW:CLASSES:COUNT");
        assert_null(dataset);
    }
}

static void messages_stay_on_one_line(void **state) {
    (void)state;
    tn_dataset *dataset;
    assert_fails(tn_dataset_open("no\nsuch:set", &dataset), TN_ERR_USAGE, "is not a data set");
    assert_fails(tn_dataset_open("synthetic:\n", &dataset), TN_ERR_USAGE, "CxHxW");
}

static void more_than_the_machine_holds_is_refused(void **state) {
    (void)state;
    tn_dataset *dataset;
    size_t before = tn_memory_in_use();
    assert_fails(tn_dataset_open("synthetic:16x4096x4096:10:2147483647", &dataset), TN_ERR_MEMORY,
                 "out of memory", "536870911.8 GiB");
    assert_int_equal(tn_memory_in_use(), before);
}

static void the_description_follows_the_specification(void **state) {
    (void)state;
    tn_dataset *dataset = open_spec("synthetic:5x17x24:7:13");
    tn_dataset_info info = tn_dataset_describe(dataset);
    assert_string_equal(info.name, "synthetic");
    assert_int_equal(info.channels, 5);
    assert_int_equal(info.height, 17);
    assert_int_equal(info.width, 24);
    assert_int_equal(info.classes, 7);
    assert_int_equal(info.train_count, 13);
    assert_int_equal(info.val_count, 13);
    assert_int_equal(info.crop_padding, 2);
    assert_true(info.flip);
    for (int c = 0; c < 5; c++) assert_true(info.mean[c] == .5f && info.std[c] == .25f);
    for (int i = 0; i < 13; i++) {
        assert_int_equal(dataset->split[TN_SPLIT_TRAIN].labels[i], i % 7);
        assert_int_equal(dataset->split[TN_SPLIT_VAL].labels[i], i % 7);
    }
    tn_dataset_close(dataset);
    tn_dataset_close(NULL);
    dataset = open_spec("synthetic:3x32x32:10:1");
    assert_int_equal(tn_dataset_describe(dataset).crop_padding, 4); /* as CIFAR */
    tn_dataset_close(dataset);
    dataset = open_spec("synthetic:16x1x1:1:1");
    assert_int_equal(tn_dataset_describe(dataset).crop_padding, 0);
    tn_dataset_close(dataset);
}

static void an_image_depends_on_its_number_alone(void **state) {
    (void)state;
    tn_dataset *few = open_spec("synthetic:16x9x6:4:5"), *many = open_spec("synthetic:16x9x6:4:50");
    size_t size = tn_dataset_image_size(&few->info);
    for (int s = 0; s < 2; s++) assert_memory_equal(few->split[s].pixels, many->split[s].pixels, 5 * size);
    assert_memory_not_equal(few->split[0].pixels, few->split[1].pixels, size);
    assert_memory_not_equal(few->split[0].pixels, few->split[0].pixels + 4 * size, size); /* same class */
    tn_dataset_close(few);
    tn_dataset_close(many);
}

/* The nearest class mean of the training images finds the class of nearly all validation images. */
static void classes_can_be_told_apart(void **state) {
    (void)state;
    enum { CLASSES = 10, COUNT = 200, SIZE = 3 * 8 * 8 };
    tn_dataset *dataset = open_spec("synthetic:3x8x8:10:200");
    static double mean[CLASSES][SIZE];
    int right = 0;
    for (int i = 0; i < COUNT; i++)
        for (int p = 0; p < SIZE; p++) mean[i % CLASSES][p] += dataset->split[0].pixels[i * SIZE + p] / 20.0;
    for (int i = 0; i < COUNT; i++) {
        double best = 1e30;
        int found = -1;
        for (int c = 0; c < CLASSES; c++) {
            double distance = 0.0;
            for (int p = 0; p < SIZE; p++) {
                double d = dataset->split[1].pixels[i * SIZE + p] - mean[c][p];
                distance += d * d;
            }
            if (distance < best) found = c;
            if (distance < best) best = distance;
        }
        if (found == i % CLASSES) right++;
    }
    assert_in_range(right, 190, COUNT);
    tn_dataset_close(dataset);
}

static void running_out_of_memory_leaks_nothing(void **state) {
    (void)state;
    tn_dataset *dataset = NULL;
    size_t before = tn_memory_in_use();
    int failures = 0;
    for (;; failures++) {
        tn_memory_fail_at(failures + 1);
        tn_status status = tn_dataset_open("synthetic:1x4x4:2:10", &dataset);
        tn_memory_fail_at(0);
        if (status == TN_OK) break;
        assert_fails(status, TN_ERR_MEMORY, "out of memory");
        assert_null(dataset);
        assert_int_equal(tn_memory_in_use(), before);
    }
    assert_int_equal(failures, 5);
    tn_dataset_close(dataset);
    assert_int_equal(tn_memory_in_use(), before);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(other_specifications_are_refused),
        cmocka_unit_test(messages_stay_on_one_line),
        cmocka_unit_test(more_than_the_machine_holds_is_refused),
        cmocka_unit_test(the_description_follows_the_specification),
        cmocka_unit_test(an_image_depends_on_its_number_alone),
        cmocka_unit_test(classes_can_be_told_apart),
        cmocka_unit_test(running_out_of_memory_leaks_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
