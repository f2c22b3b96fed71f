/* Image folders for tests, made of the files of tests/oracle/images. */
#ifndef TEST_IMAGE_FILES_H
#define TEST_IMAGE_FILES_H

#include "data/input.h"
#include "tests/unit/test_data_files.h"

#define FIXTURES "tests/oracle/images/"

static inline void make_folder(const temp_folder *in, const char *name) {
    assert_int_equal(mkdir(temp_path_of(in, name).text, 0777), 0);
}

static inline void copy_fixture(const temp_folder *in, const char *fixture, const char *name) {
    char path[300];
    size_t size;
    uint8_t *bytes;
    snprintf(path, sizeof path, FIXTURES "%s", fixture);
    assert_int_equal(tn_input_read(path, &bytes, &size), TN_OK);
    put_file(in, name, bytes, size);
    tn_free(bytes);
}

/* train: Zebra (4 images in two folders), ant (2); val: Zebra (1), ant (1). */
static inline temp_folder make_set(void) {
    temp_folder in = temp_folder_make();
    static const char *const folders[] = {"train",           "val",       "train/ant", "train/Zebra",
                                          "train/Zebra/sub", "val/Zebra", "val/ant"};
    for (size_t i = 0; i < sizeof folders / sizeof *folders; i++) make_folder(&in, folders[i]);
    copy_fixture(&in, "420.jpg", "train/Zebra/b.JPEG");
    copy_fixture(&in, "rgb.png", "train/Zebra/a-png-named.jpg");
    copy_fixture(&in, "large.jpg", "train/Zebra/c.jpg");
    copy_fixture(&in, "cmyk.jpg", "train/Zebra/sub/a.jpg");
    copy_fixture(&in, "grey.png", "train/ant/\xff\xfe.png");
    copy_fixture(&in, "422.jpg", "train/ant/10.jpg");
    copy_fixture(&in, "444.jpg", "val/Zebra/x.jpg");
    copy_fixture(&in, "line.jpg", "val/ant/y.jpg");
    put_file(&in, "train/ant/readme.txt", (const uint8_t *)"x", 1);
    put_file(&in, "train/ant/.hidden.jpg", (const uint8_t *)"x", 1);
    put_file(&in, "train/list.csv", (const uint8_t *)"x", 1);
    return in;
}

static inline tn_status open_sized(const char *kind, const temp_folder *in, int size, int resize,
                                   tn_dataset **out) {
    char spec[512];
    snprintf(spec, sizeof spec, "%s:%s", kind, in->path);
    return tn_dataset_open_sized(spec, size, resize, out);
}

static inline tn_dataset *opened(const char *kind, const temp_folder *in) {
    tn_dataset *dataset;
    if (open_sized(kind, in, 24, 32, &dataset) != TN_OK) fail_msg("%s", tn_error());
    return dataset;
}

static inline tn_loader *loader_of(const tn_dataset *dataset, tn_loader_config config) {
    tn_loader *loader;
    if (tn_loader_open(dataset, &config, &loader) != TN_OK) fail_msg("%s", tn_error());
    return loader;
}

#endif
