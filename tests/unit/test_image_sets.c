/* Image folders and WebDatasets: what is listed and how, batches against images decoded one by one, samples
 * that are left out, and the index of a shard. */
#include "tests/unit/test_data_files.h"

#include <math.h>
#include <sys/time.h>

#include "data/image_folder.h"
#include "data/order.h"
#include "data/tar.h"
#include "data/view.h"
#include "tests/unit/test_image_files.h"

static void folders_are_listed_in_byte_order(void **state) {
    (void)state;
    temp_folder in = make_set();
    tn_dataset *dataset = opened("folder", &in);
    tn_dataset_info info = tn_dataset_describe(dataset);
    assert_string_equal(info.name, "folder");
    assert_int_equal(info.classes, 2);
    assert_int_equal(info.train_count, 6);
    assert_int_equal(info.val_count, 2);
    assert_int_equal(info.height, 24);
    assert_int_equal(info.width, 24);
    assert_true(info.mean[0] == .485f && info.std[2] == .225f);
    static const char *const names[] = {"Zebra/a-png-named.jpg", "Zebra/b.JPEG", "Zebra/c.jpg",
                                        "Zebra/sub/a.jpg",       "ant/10.jpg",   "ant/\xff\xfe.png"};
    for (int i = 0; i < 6; i++) {
        assert_string_equal(tn_name_list_get(&dataset->split[0].store.names, i), names[i]);
        assert_int_equal(dataset->split[0].labels[i], i < 4 ? 0 : 1);
    }
    tn_dataset_close(dataset);
    temp_folder_remove(&in);
}

static void what_is_wrong_with_a_folder_is_said(void **state) {
    (void)state;
    tn_dataset *dataset;
    temp_folder in = temp_folder_make();
    assert_fails(open_data("folder", &in, &dataset), TN_ERR_IO, "no folder train or val");
    make_folder(&in, "train");
    assert_fails(open_data("folder", &in, &dataset), TN_ERR_DATA, "/train: no folder in it");
    make_folder(&in, "train/a");
    assert_fails(open_data("folder", &in, &dataset), TN_ERR_DATA, "/train: no .jpg");
    copy_fixture(&in, "420.jpg", "train/a/x.jpg");
    copy_fixture(&in, "420.jpg", "train/a/x.webp");
    assert_fails(open_data("folder", &in, &dataset), TN_ERR_DATA, "train/a/x.webp", "convert");
    delete_file(&in, "train/a/x.webp");
    make_folder(&in, "val");
    make_folder(&in, "val/b");
    copy_fixture(&in, "420.jpg", "val/b/x.jpg");
    assert_fails(open_data("folder", &in, &dataset), TN_ERR_DATA, "val/b", "no such class in train");
    assert_int_equal(rename(temp_path_of(&in, "val/b").text, temp_path_of(&in, "val/a").text), 0);
    assert_int_equal(symlink("loop", temp_path_of(&in, "train/a/loop").text), 0);
    assert_fails(open_data("folder", &in, &dataset), TN_ERR_IO, "train/a/loop");
    delete_file(&in, "train/a/loop");
    assert_int_equal(symlink(".", temp_path_of(&in, "train/a/loop").text), 0);
    assert_fails(open_data("folder", &in, &dataset), TN_ERR_DATA, "loop", "folders deep");
    delete_file(&in, "train/a/loop");
    assert_int_equal(open_data("folder", &in, &dataset), TN_OK);
    assert_int_equal(tn_dataset_describe(dataset).height, 224);
    assert_int_equal(dataset->resize, 256);
    tn_dataset_close(dataset);
    assert_fails(open_sized("folder", &in, 32, 24, &dataset), TN_ERR_USAGE, "--resize 24", "32");
    assert_fails(tn_dataset_open_sized("synthetic:3x8x8:2:4", 32, 0, &dataset), TN_ERR_USAGE,
                 "--image-size 32");
    assert_fails(tn_dataset_open_sized("synthetic:3x8x8:2:4", 0, 9, &dataset), TN_ERR_USAGE, "--resize 9");
    assert_true(tn_dataset_is_sized("folder:x") && tn_dataset_is_sized("webdataset:x"));
    assert_false(tn_dataset_is_sized("synthetic:x") || tn_dataset_is_sized("folder"));
    temp_folder_remove(&in);
}

/* A row by itself: read, view, normalise. */
static void check_row(const char *path, const tn_view *wanted, const float *row) {
    static tn_image image;
    static tn_resizer resizer;
    static const double mean[3] = {.485, .456, .406}, std[3] = {.229, .224, .225};
    size_t size;
    uint8_t *bytes, *pixels;
    assert_int_equal(tn_input_read(path, &bytes, &size), TN_OK);
    assert_int_equal(tn_image_open(&image, bytes, size), TN_OK);
    tn_view view = wanted ? *wanted : tn_view_centre(image.width, image.height, 32, 24);
    if (wanted) view = tn_view_random(7, wanted->height, wanted->width, image.width, image.height, 24);
    assert_int_equal(tn_view_make(&view, wanted != NULL, &image, &resizer, &pixels), TN_OK);
    for (int y = 0; y < 24; y++)
        for (int x = 0; x < 24; x++)
            for (int c = 0; c < 3; c++) {
                int from = view.flip ? 23 - x : x;
                double value = (pixels[(y * 24 + from) * 3 + c] / 255.0 - mean[c]) / std[c];
                assert_true(fabs((double)row[(y * 24 + x) * 3 + c] - value) < 1e-5);
            }
    tn_free(bytes);
    tn_image_free(&image);
    tn_resizer_free(&resizer);
}

static void batches_hold_the_views(void **state) {
    (void)state;
    temp_folder in = make_set();
    tn_dataset *dataset = opened("folder", &in);
    for (int augment = 0; augment < 2; augment++)
        for (int threads = 1; threads < 4; threads++) {
            tn_loader *loader = loader_of(
                dataset, (tn_loader_config){
                             .batch = 4, .seed = 7, .shuffle = true, .augment = augment, .threads = threads});
            assert_int_equal(tn_loader_batches(loader), 2);
            int order[6], rows = 0;
            tn_epoch_order(7, 3, 6, order);
            assert_int_equal(tn_loader_seek(loader, 3, 0), TN_OK);
            for (int b = 0; b < 2; b++) {
                const tn_batch *batch;
                assert_int_equal(tn_loader_next(loader, &batch, NULL), TN_OK);
                assert_int_equal(batch->rows, b == 0 ? 4 : 2);
                for (int r = 0; r < batch->rows; r++, rows++) {
                    const tn_samples *samples = &dataset->split[0];
                    char path[1300];
                    snprintf(path, sizeof path, "%s/%s", samples->store.folder,
                             tn_name_list_get(&samples->store.names, order[rows]));
                    tn_view drawn = {.height = 3, .width = order[rows]}; /* epoch and sample of the draw */
                    check_row(path, augment ? &drawn : NULL, batch->images + r * 24 * 24 * 3);
                    assert_int_equal(batch->labels[r], samples->labels[order[rows]]);
                    assert_true(batch->targets[r * 2 + batch->labels[r]] == 1.f);
                }
            }
            assert_int_equal(tn_loader_bad_samples(loader), 0);
            assert_null(tn_loader_bad_sample(loader, 0));
            tn_loader_close(loader);
        }
    tn_dataset_close(dataset);
    temp_folder_remove(&in);
}

static void a_bad_image_stops_or_is_left_out(void **state) {
    (void)state;
    temp_folder in = make_set();
    copy_fixture(&in, "cut.jpg", "train/Zebra/c.jpg");
    put_file(&in, "train/ant/10.jpg", (const uint8_t *)"", 0);
    tn_dataset *dataset = opened("folder", &in);
    const tn_batch *batch;
    tn_loader *loader = loader_of(dataset, (tn_loader_config){.batch = 6, .threads = 2});
    assert_fails(tn_loader_next(loader, &batch, NULL), TN_ERR_DATA, "train/Zebra/c.jpg", "cut short");
    assert_null(batch);
    assert_fails(tn_loader_next(loader, &batch, NULL), TN_ERR_DATA, "train/Zebra/c.jpg");
    tn_loader_close(loader);
    loader = loader_of(dataset, (tn_loader_config){.batch = 6, .threads = 2, .skip_bad = true});
    for (int pass = 0; pass < 3; pass++) {
        assert_int_equal(tn_loader_next(loader, &batch, NULL), TN_OK);
        assert_int_equal(batch->rows, 4);
        static const char *const left[] = {"Zebra/a-png-named.jpg", "Zebra/b.JPEG", "Zebra/sub/a.jpg",
                                           "ant/\xff\xfe.png"};
        for (int r = 0; r < 4; r++) {
            char path[400];
            snprintf(path, sizeof path, "%s/train/%s", in.path, left[r]);
            check_row(path, NULL, batch->images + r * 24 * 24 * 3);
            assert_int_equal(batch->labels[r], r == 3);
        }
    }
    assert_int_equal(tn_loader_bad_samples(loader), 2);
    const char *first = tn_loader_bad_sample(loader, 0), *second = tn_loader_bad_sample(loader, 1);
    assert_true((strstr(first, "c.jpg") && strstr(second, "10.jpg")) ||
                (strstr(first, "10.jpg") && strstr(second, "c.jpg")));
    assert_null(tn_loader_bad_sample(loader, 2));
    tn_loader_close(loader);
    /* A batch of nothing but bad images cannot be trained on. */
    loader = loader_of(dataset, (tn_loader_config){.batch = 1, .threads = 1, .skip_bad = true});
    assert_int_equal(tn_loader_seek(loader, 0, 2), TN_OK);
    assert_fails(tn_loader_next(loader, &batch, NULL), TN_ERR_DATA, "none of the 1 images", "c.jpg");
    tn_loader_close(loader);
    tn_dataset_close(dataset);
    assert_int_equal(tn_dataset_open("synthetic:3x8x8:2:4", &dataset), TN_OK);
    assert_fails(tn_loader_open(dataset, &(tn_loader_config){.batch = 1, .skip_bad = true}, &loader),
                 TN_ERR_USAGE, "--on-bad-sample");
    tn_dataset_close(dataset);
    temp_folder_remove(&in);
}

/* Whatever the producer is at. */
static void closing_and_seeking_work_at_any_moment(void **state) {
    (void)state;
    temp_folder in = make_set();
    tn_dataset *dataset = opened("folder", &in);
    for (int i = 0; i < 60; i++) {
        const tn_batch *batch;
        tn_loader *loader = loader_of(dataset, (tn_loader_config){.batch = 5, .augment = true, .threads = 2});
        for (int k = 0; k < i % 4; k++) assert_int_equal(tn_loader_seek(loader, i, k & 1), TN_OK);
        if (i % 3 == 0) assert_int_equal(tn_loader_next(loader, &batch, NULL), TN_OK);
        if (i % 3 == 0) assert_int_equal(batch->rows, i % 4 == 2 ? 1 : 5);
        usleep((unsigned)(i % 7) * 300);
        tn_loader_close(loader);
    }
    tn_dataset_close(dataset);
    temp_folder_remove(&in);
}

/* ---- shards ---- */

typedef struct shard {
    uint8_t bytes[1 << 17];
    size_t size;
} shard;

static void add_member(shard *s, const char *name, const void *content, size_t size) {
    tn_tar_header(name, size, s->bytes + s->size);
    memcpy(s->bytes + s->size + 512, content, size);
    s->size += 512 + (size + 511) / 512 * 512;
    assert_true(s->size + 1024 < sizeof s->bytes);
}

static void add_fixture(shard *s, const char *fixture, const char *name) {
    char path[300];
    size_t size;
    uint8_t *bytes;
    snprintf(path, sizeof path, FIXTURES "%s", fixture);
    assert_int_equal(tn_input_read(path, &bytes, &size), TN_OK);
    add_member(s, name, bytes, size);
    tn_free(bytes);
}

static void put_shard(const temp_folder *in, const char *name, shard *s) {
    put_file(in, name, s->bytes, s->size + 1024);
}

static shard made;

static shard *fresh(void) {
    memset(&made, 0, sizeof made);
    return &made;
}

static void shards_hold_samples(void **state) {
    (void)state;
    temp_folder in = temp_folder_make();
    shard *s = fresh();
    add_member(s, "dir.x/one.cls", "1", 1);
    add_fixture(s, "420.jpg", "dir.x/one.jpg");
    add_member(s, "dir.x/notes", "x", 1);
    add_fixture(s, "rgb.png", "dir.x/two.PNG");
    add_member(s, "dir.x/two.json", "{}", 2);
    add_member(s, "dir.x/two.cls", " 0\n", 3);
    put_shard(&in, "a-train-1.tar", s);
    s = fresh();
    add_fixture(s, "422.jpg", "one.seg.jpg"); /* not an image of the sample: its ending is seg.jpg */
    add_fixture(s, "444.jpg", "one.jpeg");
    add_member(s, "one.cls", "2", 1);
    put_shard(&in, "a-train-0.tar", s);
    put_shard(&in, "validation.tar", s);
    tn_dataset *dataset = opened("webdataset", &in);
    tn_dataset_info info = tn_dataset_describe(dataset);
    assert_int_equal(info.train_count, 3);
    assert_int_equal(info.val_count, 1);
    assert_int_equal(info.classes, 3);
    assert_int_equal(dataset->split[0].labels[0], 2);
    assert_int_equal(dataset->split[0].labels[1], 1);
    assert_int_equal(dataset->split[0].labels[2], 0);
    tn_loader *loader = loader_of(dataset, (tn_loader_config){.batch = 3, .threads = 2});
    const tn_batch *batch;
    assert_int_equal(tn_loader_next(loader, &batch, NULL), TN_OK);
    check_row(FIXTURES "444.jpg", NULL, batch->images);
    check_row(FIXTURES "420.jpg", NULL, batch->images + 24 * 24 * 3);
    check_row(FIXTURES "rgb.png", NULL, batch->images + 2 * 24 * 24 * 3);
    tn_loader_close(loader);
    tn_dataset_close(dataset);
    /* The list of classes says how many there are. */
    put_file(&in, "classes.txt", (const uint8_t *)"a\nb\nc\nd", 7);
    dataset = opened("webdataset", &in);
    assert_int_equal(tn_dataset_describe(dataset).classes, 4);
    tn_dataset_close(dataset);
    put_file(&in, "classes.txt", (const uint8_t *)"a\nb\n", 4);
    assert_fails(open_data("webdataset", &in, &dataset), TN_ERR_DATA, "class 2 in train", "2 classes");
    put_file(&in, "classes.txt", (const uint8_t *)"a\n\nb\n", 5);
    assert_fails(open_data("webdataset", &in, &dataset), TN_ERR_DATA, "classes.txt");
    temp_folder_remove(&in);
}

static void the_index_is_kept_and_renewed(void **state) {
    (void)state;
    temp_folder in = temp_folder_make();
    make_folder(&in, "train");
    shard *s = fresh();
    add_member(s, "one.cls", "1", 1);
    add_fixture(s, "420.jpg", "one.jpg");
    put_shard(&in, "train/x.tar", s);
    tn_dataset *dataset = opened("webdataset", &in);
    assert_int_equal(tn_dataset_describe(dataset).val_count, 0);
    tn_dataset_close(dataset);
    temp_path index = temp_path_of(&in, "train/x.tar.index");
    char *text = temp_read(index.text, NULL), expected[200];
    struct stat info;
    assert_non_null(text);
    assert_int_equal(stat(temp_path_of(&in, "train/x.tar").text, &info), 0);
    snprintf(expected, sizeof expected, "taunet-index 1 %lld %lld 1 -\n1536 %zu 1\n", (long long)info.st_size,
             (long long)info.st_mtim.tv_sec * 1000000000LL + info.st_mtim.tv_nsec,
             s->size - 1536 - 512 + 512);
    char *line = strchr(text, '\n');
    assert_non_null(line);
    assert_int_equal(strncmp(text, expected, (size_t)(line - text)), 0);
    /* It is what counts as long as the shard is the same: another class in it shows. */
    text[strlen(text) - 2] = '0';
    put_file(&in, "train/x.tar.index", (const uint8_t *)text, strlen(text));
    dataset = opened("webdataset", &in);
    assert_int_equal(dataset->split[0].labels[0], 0);
    tn_dataset_close(dataset);
    /* The shard has another time: indexed again. */
    assert_int_equal(utimes(temp_path_of(&in, "train/x.tar").text, (struct timeval[2]){{5, 0}, {5, 0}}), 0);
    dataset = opened("webdataset", &in);
    assert_int_equal(dataset->split[0].labels[0], 1);
    tn_dataset_close(dataset);
    free(text);
    text = temp_read(index.text, NULL);
    assert_non_null(strstr(text, " 5000000000 1 -\n"));
    /* Damaged: said, not guessed. */
    text[strlen(text) - 2] = 'x';
    put_file(&in, "train/x.tar.index", (const uint8_t *)text, strlen(text));
    assert_fails(open_data("webdataset", &in, &dataset), TN_ERR_DATA, "x.tar.index", "line 2");
    free(text);
    temp_folder_remove(&in);
}

static void what_is_wrong_with_a_shard_is_said(void **state) {
    (void)state;
    static const struct {
        const char *name, *content, *problem;
    } cases[] = {{"a.cls", "1", "without a .jpg"},
                 {"a.jpg", "x", "without a .cls"},
                 {"a.cls", "x", "not a number"},
                 {"a.cls", "1000000", "not a number"},
                 {"a.cls", "-1", "not a number"}};
    tn_dataset *dataset;
    temp_folder in = temp_folder_make();
    assert_fails(open_data("webdataset", &in, &dataset), TN_ERR_IO, "no samples");
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        shard *s = fresh();
        add_member(s, cases[i].name, cases[i].content, strlen(cases[i].content));
        put_shard(&in, "train.tar", s);
        assert_fails(open_data("webdataset", &in, &dataset), TN_ERR_DATA, "train.tar", "sample a",
                     cases[i].problem);
    }
    shard *s = fresh();
    add_member(s, "a.cls", "1", 1);
    add_member(s, "a.jpg", "x", 1);
    add_member(s, "a.png", "x", 1);
    put_shard(&in, "train.tar", s);
    assert_fails(open_data("webdataset", &in, &dataset), TN_ERR_DATA, "two images");
    put_file(&in, "train.tar", s->bytes, 512 + 512 + 300);
    assert_fails(open_data("webdataset", &in, &dataset), TN_ERR_DATA, "train.tar", "offset 1024",
                 "cut short");
    s->bytes[3] ^= 1;
    put_shard(&in, "train.tar", s);
    assert_fails(open_data("webdataset", &in, &dataset), TN_ERR_DATA, "offset 0", "checksum");
    put_file(&in, "train.tar", s->bytes, 0);
    assert_fails(open_data("webdataset", &in, &dataset), TN_ERR_DATA, "empty");
    /* A bad image in a good shard is named by shard, place and member. */
    s = fresh();
    add_member(s, "a.cls", "1", 1);
    add_member(s, "a.jpg", "not a JPEG", 10);
    put_shard(&in, "train.tar", s);
    assert_int_equal(open_data("webdataset", &in, &dataset), TN_OK);
    tn_loader *loader = loader_of(dataset, (tn_loader_config){.batch = 1});
    const tn_batch *batch;
    assert_fails(tn_loader_next(loader, &batch, NULL), TN_ERR_DATA, "train.tar: offset 1536: a.jpg",
                 "neither JPEG");
    tn_loader_close(loader);
    tn_dataset_close(dataset);
    temp_folder_remove(&in);
}

/* Every allocation fails once: a failure is reported and nothing leaks. */
static void running_out_of_memory_leaks_nothing(void **state) {
    (void)state;
    temp_folder in = make_set(), to = temp_folder_make();
    tn_pack_config config = {
        .from = in.path, .to = to.path, .samples_per_shard = 4, .quality = 95, .threads = 1};
    tn_pack_result result;
    assert_int_equal(tn_dataset_pack(&config, &result), TN_OK);
    for (int kind = 0; kind < 2; kind++) {
        bool done = false;
        for (long n = 1; !done && n < 1000; n++) {
            tn_dataset *dataset;
            tn_loader *loader = NULL;
            const tn_batch *batch;
            tn_memory_fail_at(n);
            tn_status status = open_sized(kind ? "webdataset" : "folder", kind ? &to : &in, 24, 32, &dataset);
            tn_loader_config loader_config = {.batch = 6, .shuffle = true, .augment = true, .threads = 1};
            if (status == TN_OK) status = tn_loader_open(dataset, &loader_config, &loader);
            if (status == TN_OK) status = tn_loader_next(loader, &batch, NULL);
            done = status == TN_OK;
            if (!done) assert_int_equal(status, TN_ERR_MEMORY);
            tn_memory_fail_at(0);
            tn_loader_close(loader);
            tn_dataset_close(dataset);
            assert_int_equal(tn_memory_in_use(), 0);
        }
        assert_true(done);
    }
    temp_folder_remove(&in);
    temp_folder_remove(&to);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(folders_are_listed_in_byte_order),
        cmocka_unit_test(what_is_wrong_with_a_folder_is_said),
        cmocka_unit_test(batches_hold_the_views),
        cmocka_unit_test(a_bad_image_stops_or_is_left_out),
        cmocka_unit_test(closing_and_seeking_work_at_any_moment),
        cmocka_unit_test(shards_hold_samples),
        cmocka_unit_test(the_index_is_kept_and_renewed),
        cmocka_unit_test(what_is_wrong_with_a_shard_is_said),
        cmocka_unit_test(running_out_of_memory_leaks_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
