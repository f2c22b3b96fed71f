/* CIFAR-10 and CIFAR-100 binary files: decoding, and an error for everything that is wrong with them. */
#include "tests/unit/test_data_files.h"

#include "data/cifar.h"

#define RECORD10  3073
#define RECORD100 3074

/* Pixel values that differ between planes, rows, columns and records. */
static uint8_t pixel(int record, int plane, int y, int x) {
    return (uint8_t)(record * 7 + plane * 80 + y * 3 + x);
}

static void fill_records(uint8_t *out, int records, int label_bytes, int classes, int first) {
    for (int r = 0; r < records; r++) {
        if (label_bytes == 2) *out++ = (uint8_t)((first + r) % 20);
        *out++ = (uint8_t)((first + r) % classes);
        for (int c = 0; c < 3; c++)
            for (int y = 0; y < 32; y++)
                for (int x = 0; x < 32; x++) *out++ = pixel(first + r, c, y, x);
    }
}

static void put_cifar(const temp_folder *in, const char *name, int records, int label_bytes, int classes,
                      int first) {
    size_t size = (size_t)records * (3072 + (size_t)label_bytes);
    uint8_t *bytes = malloc(size + 1);
    assert_non_null(bytes);
    fill_records(bytes, records, label_bytes, classes, first);
    put_file(in, name, bytes, size);
    free(bytes);
}

static void put_all_cifar10(const temp_folder *in) {
    put_cifar(in, "data_batch_1.bin", 3, 1, 10, 0);
    put_cifar(in, "data_batch_2.bin", 1, 1, 10, 3);
    put_cifar(in, "data_batch_3.bin", 2, 1, 10, 4);
    put_cifar(in, "data_batch_4.bin", 1, 1, 10, 6);
    put_cifar(in, "data_batch_5.bin", 4, 1, 10, 7);
    put_cifar(in, "test_batch.bin", 2, 1, 10, 50);
}

static void decoding_turns_planes_into_channels(void **state) {
    (void)state;
    static uint8_t bytes[2 * RECORD100], pixels[2 * 3072];
    int labels[2];
    fill_records(bytes, 2, 2, 100, 41);
    assert_int_equal(tn_cifar_decode(&tn_cifar100, "x", bytes, sizeof bytes, pixels, labels), TN_OK);
    for (int r = 0; r < 2; r++) {
        assert_int_equal(labels[r], 41 + r);
        for (int y = 0; y < 32; y++)
            for (int x = 0; x < 32; x++)
                for (int c = 0; c < 3; c++)
                    assert_int_equal(pixels[((r * 32 + y) * 32 + x) * 3 + c], pixel(41 + r, c, y, x));
    }
}

static void sizes_must_be_whole_records(void **state) {
    (void)state;
    int records;
    assert_int_equal(tn_cifar_count(&tn_cifar10, "x", 10000 * RECORD10, &records), TN_OK);
    assert_int_equal(records, 10000);
    assert_int_equal(tn_cifar_count(&tn_cifar100, "x", 7 * RECORD100, &records), TN_OK);
    assert_int_equal(records, 7);
    assert_fails(tn_cifar_count(&tn_cifar10, "b.bin", 0, &records), TN_ERR_DATA, "b.bin", "0 images");
    assert_fails(tn_cifar_count(&tn_cifar10, "b.bin", 2 * RECORD10 - 1, &records), TN_ERR_DATA, "b.bin",
                 "record 1", "offset 3073", "3072 of 3073", "cut short");
    assert_fails(tn_cifar_count(&tn_cifar10, "b.bin", RECORD10 + 1, &records), TN_ERR_DATA, "record 1",
                 "1 of 3073");
    assert_fails(tn_cifar_count(&tn_cifar10, "b.bin", (size_t)RECORD10 << 31, &records), TN_ERR_DATA, "b.bin",
                 "counted");
}

static void labels_must_be_in_range(void **state) {
    (void)state;
    static uint8_t bytes[3 * RECORD100], pixels[3 * 3072];
    int labels[3];
    fill_records(bytes, 3, 1, 10, 0);
    bytes[2 * RECORD10] = 9;
    assert_int_equal(tn_cifar_decode(&tn_cifar10, "a", bytes, 3 * RECORD10, pixels, labels), TN_OK);
    bytes[2 * RECORD10] = 10;
    assert_fails(tn_cifar_decode(&tn_cifar10, "a.bin", bytes, 3 * RECORD10, pixels, labels), TN_ERR_DATA,
                 "a.bin", "record 2", "offset 6146", "label 10", "0..9");
    fill_records(bytes, 3, 2, 100, 0);
    bytes[RECORD100 + 1] = 100;
    assert_fails(tn_cifar_decode(&tn_cifar100, "a.bin", bytes, 3 * RECORD100, pixels, labels), TN_ERR_DATA,
                 "record 1", "offset 3074", "label 100", "0..99");
    bytes[RECORD100 + 1] = 99;
    bytes[RECORD100] = 20;
    assert_fails(tn_cifar_decode(&tn_cifar100, "a.bin", bytes, 3 * RECORD100, pixels, labels), TN_ERR_DATA,
                 "record 1", "coarse label 20", "0..19");
}

static void cifar10_is_read_from_its_six_files(void **state) {
    (void)state;
    temp_folder in = temp_folder_make();
    tn_dataset *dataset;
    put_all_cifar10(&in);
    assert_int_equal(open_data("cifar10", &in, &dataset), TN_OK);
    tn_dataset_info info = tn_dataset_describe(dataset);
    assert_string_equal(info.name, "cifar10");
    assert_int_equal(info.train_count, 11);
    assert_int_equal(info.val_count, 2);
    assert_int_equal(info.channels * 10000 + info.height * 100 + info.width, 33232);
    assert_int_equal(info.classes, 10);
    assert_int_equal(info.crop_padding, 4);
    assert_true(info.flip);
    assert_true(info.mean[0] == .4914f && info.mean[1] == .4822f && info.mean[2] == .4465f);
    assert_true(info.std[0] == .2023f && info.std[1] == .1994f && info.std[2] == .2010f);
    for (int r = 0; r < 11; r++) {
        assert_int_equal(dataset->split[TN_SPLIT_TRAIN].labels[r], r % 10);
        assert_int_equal(dataset->split[TN_SPLIT_TRAIN].pixels[(r * 1024 + 33) * 3 + 2], pixel(r, 2, 1, 1));
    }
    assert_int_equal(dataset->split[TN_SPLIT_VAL].pixels[3072 + 1], pixel(51, 1, 0, 0));
    tn_dataset_close(dataset);
    temp_folder_remove(&in);
}

static void cifar100_is_read_from_its_two_files(void **state) {
    (void)state;
    temp_folder in = temp_folder_make();
    tn_dataset *dataset;
    put_cifar(&in, "train.bin", 3, 2, 100, 96);
    put_cifar(&in, "test.bin", 1, 2, 100, 7);
    assert_int_equal(open_data("cifar100", &in, &dataset), TN_OK);
    tn_dataset_info info = tn_dataset_describe(dataset);
    assert_string_equal(info.name, "cifar100");
    assert_int_equal(info.train_count, 3);
    assert_int_equal(info.val_count, 1);
    assert_int_equal(info.classes, 100);
    assert_true(info.mean[0] == .5071f && info.mean[1] == .4867f && info.mean[2] == .4408f);
    assert_true(info.std[0] == .2675f && info.std[1] == .2565f && info.std[2] == .2761f);
    assert_int_equal(dataset->split[TN_SPLIT_TRAIN].labels[2], 98);
    assert_int_equal(dataset->split[TN_SPLIT_VAL].labels[0], 7);
    tn_dataset_close(dataset);
    delete_file(&in, "test.bin");
    assert_fails(open_data("cifar100", &in, &dataset), TN_ERR_IO, "test.bin");
    assert_null(dataset);
    temp_folder_remove(&in);
}

static void one_training_file_or_all_five(void **state) {
    (void)state;
    temp_folder in = temp_folder_make();
    tn_dataset *dataset;
    put_all_cifar10(&in);
    delete_file(&in, "data_batch_4.bin");
    assert_fails(open_data("cifar10", &in, &dataset), TN_ERR_IO, "data_batch_4.bin", "No such file");
    delete_file(&in, "data_batch_5.bin");
    assert_fails(open_data("cifar10", &in, &dataset), TN_ERR_IO, "data_batch_4.bin");
    delete_file(&in, "data_batch_2.bin");
    assert_fails(open_data("cifar10", &in, &dataset), TN_ERR_IO, "data_batch_2.bin");
    delete_file(&in, "data_batch_3.bin");
    assert_int_equal(open_data("cifar10", &in, &dataset), TN_OK);
    assert_int_equal(tn_dataset_describe(dataset).train_count, 3);
    tn_dataset_close(dataset);
    delete_file(&in, "data_batch_1.bin");
    assert_fails(open_data("cifar10", &in, &dataset), TN_ERR_IO, "data_batch_1.bin");
    temp_folder_remove(&in);
}

static void damaged_and_missing_files_are_named(void **state) {
    (void)state;
    temp_folder in = temp_folder_make();
    tn_dataset *dataset;
    static uint8_t bytes[2 * RECORD10];
    assert_fails(open_data("cifar10", &in, &dataset), TN_ERR_IO, in.path, "data_batch_1.bin");
    put_all_cifar10(&in);
    fill_records(bytes, 2, 1, 10, 0);
    put_file(&in, "data_batch_3.bin", bytes, sizeof bytes - 5);
    assert_fails(open_data("cifar10", &in, &dataset), TN_ERR_DATA, "data_batch_3.bin", "record 1");
    bytes[RECORD10] = 200;
    put_file(&in, "data_batch_3.bin", bytes, sizeof bytes);
    assert_fails(open_data("cifar10", &in, &dataset), TN_ERR_DATA, "data_batch_3.bin", "record 1",
                 "label 200");
    put_file(&in, "data_batch_3.bin", bytes, 0);
    assert_fails(open_data("cifar10", &in, &dataset), TN_ERR_DATA, "data_batch_3.bin", "0 images");
    put_file(&in, "data_batch_3.bin", bytes, RECORD10);
    delete_file(&in, "test_batch.bin");
    assert_fails(open_data("cifar10", &in, &dataset), TN_ERR_IO, "test_batch.bin", "No such file");
    temp_path path = temp_path_of(&in, "test_batch.bin");
    assert_int_equal(mkdir(path.text, 0700), 0);
    assert_fails(open_data("cifar10", &in, &dataset), TN_ERR_IO, "test_batch.bin", "not a regular file");
    assert_int_equal(rmdir(path.text), 0);
    assert_int_equal(mkfifo(path.text, 0600), 0);
    assert_fails(open_data("cifar10", &in, &dataset), TN_ERR_IO, "test_batch.bin", "not a regular file");
    temp_folder_remove(&in);
    assert_fails(open_data("cifar10", &in, &dataset), TN_ERR_IO, in.path, "No such file");
    assert_fails(tn_dataset_open("cifar100:/dev/null", &dataset), TN_ERR_IO, "/dev/null is not a folder");
}

static void running_out_of_memory_leaks_nothing(void **state) {
    (void)state;
    temp_folder in = temp_folder_make();
    tn_dataset *dataset = NULL;
    put_all_cifar10(&in);
    size_t before = tn_memory_in_use();
    int failures = 0;
    for (;; failures++) {
        tn_memory_fail_at(failures + 1);
        tn_status status = open_data("cifar10", &in, &dataset);
        tn_memory_fail_at(0);
        if (status == TN_OK) break;
        assert_fails(status, TN_ERR_MEMORY, "out of memory");
        assert_null(dataset);
        assert_int_equal(tn_memory_in_use(), before);
    }
    /* The data set, two arrays a split, a buffer a file. */
    assert_int_equal(failures, 1 + 4 + 6);
    tn_dataset_close(dataset);
    assert_int_equal(tn_memory_in_use(), before);
    temp_folder_remove(&in);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(decoding_turns_planes_into_channels),
        cmocka_unit_test(sizes_must_be_whole_records),
        cmocka_unit_test(labels_must_be_in_range),
        cmocka_unit_test(cifar10_is_read_from_its_six_files),
        cmocka_unit_test(cifar100_is_read_from_its_two_files),
        cmocka_unit_test(one_training_file_or_all_five),
        cmocka_unit_test(damaged_and_missing_files_are_named),
        cmocka_unit_test(running_out_of_memory_leaks_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
