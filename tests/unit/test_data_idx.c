/* IDX files, plain and gzip, and the four of MNIST and Fashion-MNIST. */
#include "tests/unit/test_data_files.h"

#include "data/dataset.h"
#include "data/idx.h"

/* An IDX file in memory. */
typedef struct image_file {
    uint8_t bytes[4096];
    size_t size;
} image_file;

static image_file make_images(uint32_t count, uint32_t height, uint32_t width) {
    image_file made;
    uint32_t dims[3] = {count, height, width};
    size_t header = idx_header(made.bytes, 3, dims), size = (size_t)count * height * width;
    for (size_t i = 0; i < size; i++) made.bytes[header + i] = (uint8_t)(i * 37 + 11);
    made.size = header + size;
    return made;
}

static image_file make_labels(uint32_t count) {
    image_file made;
    size_t header = idx_header(made.bytes, 1, &count);
    for (size_t i = 0; i < count; i++) made.bytes[header + i] = (uint8_t)(i % 10);
    made.size = header + count;
    return made;
}

static tn_status parse(const image_file *file, int ndims) {
    tn_idx idx;
    tn_status status = tn_idx_parse("f-ubyte", file->bytes, file->size, ndims, &idx);
    if (status != TN_OK) assert_null(idx.data);
    tn_free(idx.data);
    return status;
}

static image_file packed(const image_file *file) {
    image_file made;
    uint8_t *bytes = gzip(file->bytes, file->size, &made.size);
    assert_true(made.size <= sizeof made.bytes);
    memcpy(made.bytes, bytes, made.size);
    free(bytes);
    return made;
}

static void plain_and_gzip_give_the_same_array(void **state) {
    (void)state;
    image_file plain = make_images(5, 4, 3), zipped = packed(&plain);
    tn_idx a, b;
    assert_int_equal(tn_idx_parse("a", plain.bytes, plain.size, 3, &a), TN_OK);
    assert_int_equal(tn_idx_parse("b", zipped.bytes, zipped.size, 3, &b), TN_OK);
    assert_int_equal(a.size, 60);
    assert_int_equal(b.size, 60);
    assert_int_equal(a.dims[0] * 100 + a.dims[1] * 10 + a.dims[2], 543);
    assert_memory_equal(a.dims, b.dims, sizeof a.dims);
    assert_memory_equal(a.data, plain.bytes + 16, 60);
    assert_memory_equal(b.data, plain.bytes + 16, 60);
    tn_free(a.data);
    tn_free(b.data);
}

static void wrong_beginnings_are_refused(void **state) {
    (void)state;
    image_file file = make_images(2, 2, 2);
    for (size_t size = 0; size < 16; size++) {
        image_file cut = file;
        cut.size = size;
        assert_fails(parse(&cut, 3), TN_ERR_DATA, "f-ubyte", "ends early");
    }
    for (int b = 0; b < 4; b++) {
        image_file bad = file;
        bad.bytes[b] ^= 1;
        assert_fails(parse(&bad, 3), TN_ERR_DATA, "f-ubyte", "instead of 00 00 08 03");
    }
    assert_fails(parse(&file, 1), TN_ERR_DATA, "00 00 08 03 instead of 00 00 08 01");
}

static void wrong_dimensions_are_refused(void **state) {
    (void)state;
    image_file file = make_images(2, 2, 2);
    uint32_t none[3] = {0, 2, 2}, flat[3] = {2, 0, 2}, wide[3] = {2, 2, 4097}, many[3] = {0x80000000u, 1, 1};
    uint32_t huge[3] = {0x7fffffffu, 4096, 4096}, wrapping[3] = {0x40000000u, 4096, 4096};
    idx_header(file.bytes, 3, none);
    assert_fails(parse(&file, 3), TN_ERR_DATA, "f-ubyte", "0 samples");
    idx_header(file.bytes, 3, flat);
    assert_fails(parse(&file, 3), TN_ERR_DATA, "dimension 1 at offset 8 is 0");
    idx_header(file.bytes, 3, wide);
    assert_fails(parse(&file, 3), TN_ERR_DATA, "dimension 2 at offset 12 is 4097");
    idx_header(file.bytes, 3, many);
    assert_fails(parse(&file, 3), TN_ERR_DATA, "dimension 0 at offset 4 is 2147483648");
    idx_header(file.bytes, 3, huge);
    assert_fails(parse(&file, 3), TN_ERR_DATA, "8 bytes follow the header");
    idx_header(file.bytes, 3, wrapping); /* 2^54 bytes: 0 in 32 bits */
    assert_fails(parse(&file, 3), TN_ERR_DATA, "18014398509481984");
    image_file zipped = packed(&file);
    assert_fails(parse(&zipped, 3), TN_ERR_DATA, "cannot hold the 18014398509481984");
}

static void wrong_lengths_are_refused(void **state) {
    (void)state;
    image_file file = make_images(3, 2, 2), longer = file, shorter = file;
    longer.bytes[longer.size++] = 0;
    shorter.size--;
    assert_fails(parse(&longer, 3), TN_ERR_DATA, "13 bytes follow the header, which announces 12");
    assert_fails(parse(&shorter, 3), TN_ERR_DATA, "11 bytes follow the header, which announces 12");
    image_file zipped_longer = packed(&longer), zipped_shorter = packed(&shorter);
    assert_fails(parse(&zipped_longer, 3), TN_ERR_DATA, "more data than its header says");
    assert_fails(parse(&zipped_shorter, 3), TN_ERR_DATA, "ends early");
}

static void damaged_gzip_is_refused(void **state) {
    (void)state;
    image_file file = make_images(20, 8, 8), zipped = packed(&file), bad;
    for (size_t size = 2; size < zipped.size; size++) {
        bad = zipped;
        bad.size = size;
        assert_fails(parse(&bad, 3), TN_ERR_DATA, "f-ubyte", "gzip data ends early");
    }
    bad = zipped;
    bad.bytes[bad.size++] = 'x';
    assert_fails(parse(&bad, 3), TN_ERR_DATA, "1 bytes follow the data");
    bad = zipped;
    bad.bytes[bad.size - 8] ^= 1; /* the CRC */
    assert_fails(parse(&bad, 3), TN_ERR_DATA, "damaged", "incorrect data check");
    bad = zipped;
    bad.bytes[bad.size - 1] ^= 1; /* the length */
    assert_fails(parse(&bad, 3), TN_ERR_DATA, "damaged", "incorrect length check");
    bad = zipped;
    bad.bytes[2] = 9; /* not deflate */
    assert_fails(parse(&bad, 3), TN_ERR_DATA, "damaged", "unknown compression method");
    bad = zipped;
    bad.bytes[10] |= 6; /* a block of a kind that does not exist */
    assert_fails(parse(&bad, 3), TN_ERR_DATA, "damaged", "invalid block type");
}

static const char *const parts[4] = {"train-images-idx3-ubyte", "train-labels-idx1-ubyte",
                                     "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"};

static void put_image_file(const temp_folder *in, const char *name, image_file file) {
    put_file(in, name, file.bytes, file.size);
}

static void put_mnist(const temp_folder *in) {
    put_image_file(in, parts[0], make_images(6, 5, 4));
    put_image_file(in, parts[1], make_labels(6));
    put_image_file(in, parts[2], make_images(3, 5, 4));
    put_image_file(in, parts[3], make_labels(3));
}

static void all_names_of_the_files_are_found(void **state) {
    (void)state;
    temp_folder in = temp_folder_make();
    tn_dataset *dataset;
    image_file images = make_images(6, 5, 4), labels = make_labels(6), zipped = packed(&labels);
    put_image_file(&in, "train-images-idx3-ubyte", images);
    put_image_file(&in, "train-labels-idx1-ubyte.gz", zipped);
    put_image_file(&in, "t10k-images.idx3-ubyte", make_images(3, 5, 4));
    put_image_file(&in, "t10k-labels.idx1-ubyte.gz", make_labels(3)); /* its content says that it is plain */
    assert_int_equal(open_data("mnist", &in, &dataset), TN_OK);
    tn_dataset_info info = tn_dataset_describe(dataset);
    assert_int_equal(info.train_count, 6);
    assert_int_equal(info.val_count, 3);
    assert_int_equal(info.channels * 100 + info.height * 10 + info.width, 154);
    assert_int_equal(info.classes, 10);
    assert_memory_equal(dataset->split[TN_SPLIT_TRAIN].pixels, images.bytes + 16, 120);
    for (int i = 0; i < 6; i++) assert_int_equal(dataset->split[TN_SPLIT_TRAIN].labels[i], i);
    tn_dataset_close(dataset);
    temp_folder_remove(&in);
}

/* Opens a set whose training pixels have this mean. */
static tn_dataset_info describe_mean(double mean) {
    temp_folder in = temp_folder_make();
    tn_dataset *dataset;
    image_file images = make_images(10, 15, 17);
    size_t pixels = images.size - 16, sum = (size_t)(mean * 255.0 * (double)pixels);
    memset(images.bytes + 16, (int)(sum / pixels), pixels);
    for (size_t i = 0; i < sum % pixels; i++) images.bytes[16 + i]++;
    put_mnist(&in);
    put_image_file(&in, parts[0], images);
    put_image_file(&in, parts[1], make_labels(10));
    put_image_file(&in, parts[2], make_images(2, 15, 17));
    put_image_file(&in, parts[3], make_labels(2));
    assert_int_equal(open_data("mnist", &in, &dataset), TN_OK);
    tn_dataset_info info = tn_dataset_describe(dataset);
    tn_dataset_close(dataset);
    temp_folder_remove(&in);
    return info;
}

static void the_mean_tells_fashion_mnist_from_mnist(void **state) {
    (void)state;
    const struct {
        double mean;
        bool fashion;
    } cases[] = {{.1307, false}, {.2860, true},  {.2670, true}, {.3050, true},
                 {.2640, false}, {.3080, false}, {.19, false}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        tn_dataset_info info = describe_mean(cases[i].mean);
        assert_string_equal(info.name, cases[i].fashion ? "fashion-mnist" : "mnist");
        assert_int_equal(info.flip, cases[i].fashion);
        assert_int_equal(info.crop_padding, 2);
        assert_true(info.mean[0] == (cases[i].fashion ? .2860f : .1307f));
        assert_true(info.std[0] == (cases[i].fashion ? .3530f : .3081f));
    }
}

static void missing_files_are_named(void **state) {
    (void)state;
    temp_folder in = temp_folder_make();
    tn_dataset *dataset;
    for (int p = 0; p < 4; p++) {
        put_mnist(&in);
        delete_file(&in, parts[p]);
        assert_fails(open_data("mnist", &in, &dataset), TN_ERR_IO, parts[p], in.path, "datasets/README.md");
        assert_null(dataset);
    }
    put_mnist(&in);
    delete_file(&in, parts[3]);
    assert_int_equal(mkfifo(temp_path_of(&in, parts[3]).text, 0600), 0);
    alarm(60); /* a reader that waits for the pipe is ended */
    assert_fails(open_data("mnist", &in, &dataset), TN_ERR_IO, parts[3], "not a regular file");
    alarm(0);
    temp_folder_remove(&in);
    assert_fails(open_data("mnist", &in, &dataset), TN_ERR_IO, in.path, "No such file");
}

static void files_that_do_not_fit_together_are_refused(void **state) {
    (void)state;
    temp_folder in = temp_folder_make();
    tn_dataset *dataset;
    put_mnist(&in);
    put_image_file(&in, parts[3], make_labels(4));
    assert_fails(open_data("mnist", &in, &dataset), TN_ERR_DATA, parts[2], "3 images", parts[3], "4 labels");
    put_mnist(&in);
    put_image_file(&in, parts[2], make_images(3, 4, 5));
    assert_fails(open_data("mnist", &in, &dataset), TN_ERR_DATA, in.path, "5x4", "4x5");
    put_mnist(&in);
    image_file labels = make_labels(6);
    labels.bytes[8 + 4] = 10;
    put_image_file(&in, parts[1], labels);
    assert_fails(open_data("mnist", &in, &dataset), TN_ERR_DATA, parts[1], "record 4 at offset 12",
                 "label 10", "0..9");
    put_image_file(&in, parts[1], make_images(6, 1, 1));
    assert_fails(open_data("mnist", &in, &dataset), TN_ERR_DATA, parts[1], "instead of 00 00 08 01");
    put_mnist(&in);
    put_file(&in, parts[0], (const uint8_t *)"", 0);
    assert_fails(open_data("mnist", &in, &dataset), TN_ERR_DATA, parts[0], "ends early, at byte 0");
    temp_folder_remove(&in);
}

static void running_out_of_memory_leaks_nothing(void **state) {
    (void)state;
    temp_folder in = temp_folder_make();
    tn_dataset *dataset = NULL;
    image_file images = make_images(6, 5, 4);
    put_mnist(&in);
    delete_file(&in, parts[0]);
    put_gzip(&in, "train-images-idx3-ubyte.gz", images.bytes, images.size);
    size_t before = tn_memory_in_use();
    int failures = 0;
    for (;; failures++) {
        tn_memory_fail_at(failures + 1);
        tn_status status = open_data("mnist", &in, &dataset);
        tn_memory_fail_at(0);
        if (status == TN_OK) break;
        assert_fails(status, TN_ERR_MEMORY, "out of memory");
        assert_null(dataset);
        assert_int_equal(tn_memory_in_use(), before);
    }
    /* The data set; file and content of four files; two arrays of labels. */
    assert_int_equal(failures, 1 + 8 + 2);
    tn_dataset_close(dataset);
    assert_int_equal(tn_memory_in_use(), before);
    temp_folder_remove(&in);
}

/* The real set, where it lies beside the repository. */
static void mnist_itself(void **state) {
    (void)state;
    tn_dataset *dataset;
    if (access("../shared/data/mnist/train-images-idx3-ubyte.gz", R_OK) != 0) skip();
    assert_int_equal(tn_dataset_open("mnist:../shared/data/mnist", &dataset), TN_OK);
    tn_dataset_info info = tn_dataset_describe(dataset);
    assert_string_equal(info.name, "mnist");
    assert_int_equal(info.train_count, 60000);
    assert_int_equal(info.val_count, 10000);
    assert_int_equal(info.height * 100 + info.width, 2828);
    const int first[5] = {5, 0, 4, 1, 9}; /* as everywhere where the set is shown */
    for (int i = 0; i < 5; i++) assert_int_equal(dataset->split[TN_SPLIT_TRAIN].labels[i], first[i]);
    tn_dataset_close(dataset);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(plain_and_gzip_give_the_same_array),
        cmocka_unit_test(wrong_beginnings_are_refused),
        cmocka_unit_test(wrong_dimensions_are_refused),
        cmocka_unit_test(wrong_lengths_are_refused),
        cmocka_unit_test(damaged_gzip_is_refused),
        cmocka_unit_test(all_names_of_the_files_are_found),
        cmocka_unit_test(the_mean_tells_fashion_mnist_from_mnist),
        cmocka_unit_test(missing_files_are_named),
        cmocka_unit_test(files_that_do_not_fit_together_are_refused),
        cmocka_unit_test(running_out_of_memory_leaks_nothing),
        cmocka_unit_test(mnist_itself),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
