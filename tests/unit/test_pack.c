/* The order of samples in shards, and packing folders into shards. */
#include "tests/unit/test_data_files.h"

#include <sys/time.h>

#include "data/dataset.h"
#include "data/image.h"
#include "data/order.h"
#include "tests/unit/test_image_files.h"

/* ---- order ---- */

enum { SHARDS = 13, SAMPLES = 330 };

/* order.h, read once more: one step after the other, the buffer as a list. */
static void plain_shard_order(const tn_shard *shards, int buffer, uint64_t seed, int epoch, int *order) {
    int shard_at[SHARDS], queue[SAMPLES], waiting[SAMPLES], queued = 0, in = 0, out = 0;
    tn_rng rng = tn_rng_open(seed, TN_RNG_SHUFFLE, (uint32_t)epoch, 0);
    for (int s = 0; s < SHARDS; s++) shard_at[s] = s;
    tn_shuffle(&rng, shard_at, SHARDS);
    for (int s = 0; s < SHARDS; s++) {
        int next = shard_at[s] == SHARDS - 1 ? SAMPLES : shards[shard_at[s] + 1].first;
        for (int i = shards[shard_at[s]].first; i < next; i++) queue[queued++] = i;
    }
    for (; in < buffer && in < SAMPLES; in++) waiting[in] = queue[in];
    int places = in;
    while (in < SAMPLES) {
        uint32_t drawn = tn_rng_below(&rng, (uint32_t)places);
        order[out++] = waiting[drawn];
        waiting[drawn] = queue[in++];
    }
    tn_shuffle(&rng, waiting, places);
    for (int i = 0; i < places; i++) order[out++] = waiting[i];
}

static void the_shard_order_is_a_local_permutation(void **state) {
    (void)state;
    tn_shard shards[SHARDS] = {{0}};
    int first = 0, sequence[SHARDS], order[SAMPLES], again[SAMPLES], place[SAMPLES];
    for (int s = 0; s < SHARDS; s++, first += 11 + 2 * s) shards[s].first = first;
    assert_true(first <= SAMPLES);
    for (int buffer = 1; buffer < 400; buffer += 37) {
        bool seen[SAMPLES] = {false};
        assert_int_equal(tn_shard_order(3, 2, shards, SHARDS, SAMPLES, buffer, sequence, order), TN_OK);
        assert_int_equal(tn_shard_order(3, 2, shards, SHARDS, SAMPLES, buffer, sequence, again), TN_OK);
        assert_memory_equal(order, again, sizeof order);
        plain_shard_order(shards, buffer, 3, 2, again);
        assert_memory_equal(order, again, sizeof order);
        for (int i = 0; i < SAMPLES; i++) {
            assert_true(order[i] >= 0 && order[i] < SAMPLES && !seen[order[i]]);
            seen[order[i]] = true;
        }
        /* Where each sample stands when the shards are gone through in sequence: never drawn before it came
         * in. */
        int at = 0;
        for (int s = 0; s < SHARDS; s++) {
            int shard_index = sequence[s],
                end = shard_index + 1 < SHARDS ? shards[shard_index + 1].first : SAMPLES;
            for (int i = shards[shard_index].first; i < end; i++) place[i] = at++;
        }
        assert_int_equal(at, SAMPLES);
        for (int i = 0; i < SAMPLES; i++) assert_true(place[order[i]] < i + buffer);
    }
    assert_int_equal(tn_shard_order(3, 2, shards, SHARDS, SAMPLES, 40, sequence, order), TN_OK);
    assert_int_equal(tn_shard_order(3, 3, shards, SHARDS, SAMPLES, 40, sequence, again), TN_OK);
    assert_memory_not_equal(order, again, sizeof order);
    assert_int_equal(tn_shard_order(4, 2, shards, SHARDS, SAMPLES, 40, sequence, again), TN_OK);
    assert_memory_not_equal(order, again, sizeof order);
    /* With room for all of them any sample may come first. */
    int firsts[SAMPLES] = {0}, different = 0;
    for (int e = 0; e < 200; e++) {
        assert_int_equal(tn_shard_order(1, e, shards, SHARDS, SAMPLES, SAMPLES, sequence, order), TN_OK);
        different += firsts[order[0]]++ == 0;
    }
    assert_true(different > 120);
}

/* ---- packing ---- */

static tn_pack_config pack_config(const temp_folder *from, const temp_folder *to) {
    return (tn_pack_config){
        .from = from->path, .to = to->path, .samples_per_shard = 4, .quality = 95, .threads = 2};
}

static void packed(const tn_pack_config *config, int samples, int shards, int reused) {
    tn_pack_result result;
    if (tn_dataset_pack(config, &result) != TN_OK) fail_msg("%s", tn_error());
    assert_int_equal(result.samples, samples);
    assert_int_equal(result.shards, shards);
    assert_int_equal(result.reused, reused);
}

static void check_same_bytes(const temp_folder *a, const temp_folder *b, const char *name) {
    size_t n, m;
    char *x = temp_read(temp_path_of(a, name).text, &n), *y = temp_read(temp_path_of(b, name).text, &m);
    assert_non_null(x);
    assert_non_null(y);
    assert_int_equal(n, m);
    assert_memory_equal(x, y, n);
    free(x);
    free(y);
}

/* Validation batches of the packed set are those of the folder, up to the order of samples. */
static void check_same_images(const temp_folder *folder, const temp_folder *packed_in) {
    tn_dataset *a = opened("folder", folder), *b = opened("webdataset", packed_in);
    assert_int_equal(tn_dataset_describe(a).classes, tn_dataset_describe(b).classes);
    tn_loader *x = loader_of(a, (tn_loader_config){.batch = 6}),
              *y = loader_of(b, (tn_loader_config){.batch = 6});
    const tn_batch *p, *q;
    int order[6];
    assert_int_equal(tn_loader_next(x, &p, NULL), TN_OK);
    assert_int_equal(tn_loader_next(y, &q, NULL), TN_OK);
    tn_epoch_order(0, 0, 6, order);
    for (int r = 0; r < 6; r++) {
        assert_int_equal(q->labels[r], p->labels[order[r]]);
        assert_memory_equal(q->images + r * 24 * 24 * 3, p->images + order[r] * 24 * 24 * 3,
                            24 * 24 * 3 * sizeof(float));
    }
    tn_loader_close(x);
    tn_loader_close(y);
    tn_dataset_close(a);
    tn_dataset_close(b);
}

static void packing_keeps_every_pixel(void **state) {
    (void)state;
    for (int decoded = 0; decoded < 2; decoded++) {
        temp_folder from = make_set(), to = temp_folder_make(), other = temp_folder_make();
        tn_pack_config config = pack_config(&from, &to);
        config.decoded = decoded;
        packed(&config, 8, 3, 0);
        check_same_images(&from, &to);
        assert_true(temp_holds(temp_path_of(&to, "classes.txt").text, "Zebra\nant\n"));
        /* Other threads, the same bytes. */
        config.to = other.path;
        config.threads = 1;
        packed(&config, 8, 3, 0);
        check_same_bytes(&to, &other, "train-000000.tar");
        check_same_bytes(&to, &other, "train-000001.tar");
        check_same_bytes(&to, &other, "val-000000.tar");
        check_same_bytes(&to, &other, "checksums.xxh64");
        size_t size = 0;
        char *tar = temp_read(temp_path_of(&to, "val-000000.tar").text, &size);
        static const char zeros[1024];
        assert_true(size % 512 == 0 && size > 1024);
        assert_memory_equal(tar + size - 1024, zeros, 1024);
        free(tar);
        /* What is there is kept; what is missing or was changed is made again. */
        packed(&config, 8, 3, 3);
        delete_file(&other, "train-000001.tar");
        assert_int_equal(
            utimes(temp_path_of(&other, "val-000000.tar").text, (struct timeval[2]){{5, 0}, {5, 0}}), 0);
        packed(&config, 8, 3, 1);
        check_same_bytes(&to, &other, "train-000001.tar");
        check_same_bytes(&to, &other, "checksums.xxh64");
        tn_pack_result result;
        config.samples_per_shard = 5;
        assert_fails(tn_dataset_pack(&config, &result), TN_ERR_USAGE, "pack.txt", "other options");
        temp_folder_remove(&from);
        temp_folder_remove(&to);
        temp_folder_remove(&other);
    }
}

static void packing_resizes(void **state) {
    (void)state;
    for (int decoded = 0; decoded < 2; decoded++) {
        temp_folder from = make_set(), to = temp_folder_make();
        tn_pack_config config = pack_config(&from, &to);
        config.decoded = decoded;
        config.resize = 40;
        packed(&config, 8, 3, 0);
        tn_dataset *dataset = opened("webdataset", &to);
        tn_image image = {0};
        int width[6], height[6], order[6];
        tn_epoch_order(0, 0, 6, order);
        for (int i = 0; i < 6; i++) {
            tn_encoded encoded;
            assert_int_equal(tn_image_store_load(&dataset->split[0].store, i, &encoded), TN_OK);
            if (tn_image_open(&image, encoded.bytes, encoded.size) != TN_OK) fail_msg("%s", tn_error());
            if (decoded) assert_int_equal(image.kind, TN_IMAGE_PPM);
            width[order[i]] = image.width;
            height[order[i]] = image.height;
            tn_free(encoded.owned);
        }
        tn_image_free(&image);
        assert_int_equal(width[0], 38); /* the PNG, 38x83, is not enlarged */
        assert_int_equal(height[0], 83);
        assert_int_equal(width[1], 54); /* 61x45 */
        assert_int_equal(height[1], 40);
        assert_int_equal(width[2], 53); /* 400x300 */
        assert_int_equal(height[2], 40);
        tn_dataset_close(dataset);
        temp_folder_remove(&from);
        temp_folder_remove(&to);
    }
}

static void packing_finds_bad_images(void **state) {
    (void)state;
    temp_folder from = make_set(), to = temp_folder_make();
    copy_fixture(&from, "cut.png", "train/Zebra/c.jpg");
    tn_pack_config config = pack_config(&from, &to);
    tn_pack_result result;
    assert_fails(tn_dataset_pack(&config, &result), TN_ERR_DATA, "train/Zebra/c.jpg", "PNG");
    config.skip_bad = true;
    assert_int_equal(tn_dataset_pack(&config, &result), TN_OK);
    assert_int_equal(result.samples, 7);
    assert_int_equal(result.bad_samples, 1);
    assert_non_null(strstr(result.bad_sample, "c.jpg"));
    tn_dataset *dataset = opened("webdataset", &to);
    assert_int_equal(tn_dataset_describe(dataset).train_count, 5);
    tn_dataset_close(dataset);
    config.to = "/no/such/folder";
    assert_fails(tn_dataset_pack(&config, &result), TN_ERR_IO, "/no/such/folder");
    temp_folder_remove(&from);
    temp_folder_remove(&to);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_shard_order_is_a_local_permutation),
        cmocka_unit_test(packing_keeps_every_pixel),
        cmocka_unit_test(packing_resizes),
        cmocka_unit_test(packing_finds_bad_images),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
