/* The loader: order, augmentation, mixup and smoothing as pure functions, seeks, errors and shutdown. */
#include "tests/unit/test_data_files.h"

#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <math.h>
#include <pthread.h>
#include <signal.h>

#include "base/clock.h"
#include "base/philox.h"
#include "data/augment.h"
#include "data/dataset.h"

#define COUNT    103
#define HEIGHT   6
#define WIDTH    5
#define CHANNELS 2
#define CLASSES  7
#define IMAGE    (HEIGHT * WIDTH * CHANNELS)

static const float mean[CHANNELS] = {.25f, .5f}, deviation[CHANNELS] = {.3f, .4f};

/* Stands in front of the library's: thread creation fails while this is set. */
static bool refuse_threads;

int pthread_create(pthread_t *restrict thread, const pthread_attr_t *restrict attributes,
                   void *(*body)(void *), void *restrict argument) {
    int (*next)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);
    void *symbol = dlsym(RTLD_NEXT, "pthread_create");
    memcpy(&next, &symbol, sizeof next);
    return refuse_threads ? EAGAIN : next(thread, attributes, body, argument);
}

static uint8_t pixel(int sample, int i) {
    return (uint8_t)(i == 0 ? sample : sample * 31 + i * 7);
}

static int label_of(int sample) {
    return sample * 3 % CLASSES;
}

/* Training samples are numbered by their first pixel; validation is the same with one image less. */
static tn_dataset *make_dataset(void) {
    tn_dataset *dataset;
    assert_int_equal(tn_alloc(&dataset, 1, sizeof *dataset, "test"), TN_OK);
    dataset->info = (tn_dataset_info){.name = "made-up",
                                      .channels = CHANNELS,
                                      .height = HEIGHT,
                                      .width = WIDTH,
                                      .classes = CLASSES,
                                      .crop_padding = 2,
                                      .flip = true,
                                      .mean = {mean[0], mean[1]},
                                      .std = {deviation[0], deviation[1]}};
    for (tn_split s = TN_SPLIT_TRAIN; s <= TN_SPLIT_VAL; s++) {
        int count = s == TN_SPLIT_TRAIN ? COUNT : COUNT - 1;
        assert_int_equal(tn_dataset_alloc_split(dataset, s, count, "test"), TN_OK);
        for (int n = 0; n < count; n++) {
            dataset->split[s].labels[n] = label_of(n);
            for (int i = 0; i < IMAGE; i++) dataset->split[s].pixels[n * IMAGE + i] = pixel(n, i);
        }
    }
    return dataset;
}

static float normalised(int value, int channel) {
    return (float)((value / 255.0 - (double)mean[channel]) / (double)deviation[channel]);
}

/* Sample number behind a row that was not augmented. */
static int number_of(const tn_batch *batch, int row) {
    float value = batch->images[(size_t)row * IMAGE];
    return (int)lround(((double)value * (double)deviation[0] + (double)mean[0]) * 255.0);
}

static tn_loader *open_loader(const tn_dataset *dataset, tn_loader_config config) {
    tn_loader *loader;
    tn_status status = tn_loader_open(dataset, &config, &loader);
    if (status != TN_OK) print_error("%s\n", tn_error());
    assert_int_equal(status, TN_OK);
    return loader;
}

static const tn_batch *next(tn_loader *loader) {
    const tn_batch *batch;
    assert_int_equal(tn_loader_next(loader, &batch, NULL), TN_OK);
    return batch;
}

static void without_options_the_files_order_repeats(void **state) {
    (void)state;
    tn_dataset *dataset = make_dataset();
    tn_loader *loader = open_loader(dataset, (tn_loader_config){.split = TN_SPLIT_VAL, .batch = 10});
    assert_int_equal(tn_loader_batches(loader), 11);
    for (int b = 0; b < 33; b++) {
        const tn_batch *batch = next(loader);
        assert_int_equal(batch->rows, b % 11 == 10 ? 2 : 10);
        assert_int_equal(batch->channels, CHANNELS);
        assert_int_equal(batch->height, HEIGHT);
        assert_int_equal(batch->width, WIDTH);
        assert_int_equal(batch->classes, CLASSES);
        for (int r = 0; r < batch->rows; r++) {
            int sample = b % 11 * 10 + r;
            assert_int_equal(batch->labels[r], label_of(sample));
            for (int c = 0; c < CLASSES; c++)
                assert_true(batch->targets[r * CLASSES + c] == (c == label_of(sample) ? 1.f : 0.f));
            for (int i = 0; i < IMAGE; i++)
                assert_true(batch->images[r * IMAGE + i] == normalised(pixel(sample, i), i % CHANNELS));
        }
    }
    tn_loader_close(loader);
    tn_dataset_close(dataset);
}

/* Fisher and Yates on the documented stream. */
static void plain_order(uint64_t seed, int epoch, int order[COUNT]) {
    tn_rng rng = tn_rng_open(seed, TN_RNG_SHUFFLE, (uint32_t)epoch, 0);
    for (int i = 0; i < COUNT; i++) order[i] = i;
    for (int i = COUNT - 1; i > 0; i--) {
        int j = (int)tn_rng_below(&rng, (uint32_t)i + 1), kept = order[i];
        order[i] = order[j];
        order[j] = kept;
    }
}

static void every_epoch_is_its_own_permutation(void **state) {
    (void)state;
    tn_dataset *dataset = make_dataset();
    int orders[6][COUNT];
    for (int seed = 0; seed < 2; seed++) {
        tn_loader *loader = open_loader(
            dataset, (tn_loader_config){.batch = 25, .seed = (uint64_t)seed << 40, .shuffle = true});
        for (int epoch = 0; epoch < 3; epoch++) {
            bool seen[COUNT] = {false};
            int *order = orders[3 * seed + epoch], wanted[COUNT], done = 0;
            while (done < COUNT) {
                const tn_batch *batch = next(loader);
                for (int r = 0; r < batch->rows; r++) {
                    order[done] = number_of(batch, r);
                    assert_int_equal(batch->labels[r], label_of(order[done]));
                    assert_false(seen[order[done]]);
                    seen[order[done++]] = true;
                }
            }
            assert_int_equal(done, COUNT);
            plain_order((uint64_t)seed << 40, epoch, wanted);
            assert_memory_equal(order, wanted, sizeof wanted);
        }
        tn_loader_close(loader);
    }
    for (int a = 0; a < 6; a++)
        for (int b = 0; b < a; b++) assert_memory_not_equal(orders[a], orders[b], sizeof orders[a]);
    tn_dataset_close(dataset);
}

/* Value of an augmented pixel, computed from the image's definition. */
static float augmented(int sample, tn_augmentation how, int y, int x, int c) {
    int from_y = y + how.dy - 2, from_x = (how.flip ? WIDTH - 1 - x : x) + how.dx - 2;
    bool inside = from_y >= 0 && from_y < HEIGHT && from_x >= 0 && from_x < WIDTH;
    return normalised(inside ? pixel(sample, (from_y * WIDTH + from_x) * CHANNELS + c) : 0, c);
}

static void augmented_pixels_equal_a_plain_computation(void **state) {
    (void)state;
    tn_dataset *dataset = make_dataset();
    for (int flip = 0; flip < 2; flip++) {
        dataset->info.flip = flip;
        tn_loader *loader = open_loader(
            dataset, (tn_loader_config){.batch = 20, .seed = 9, .shuffle = true, .augment = true});
        for (int epoch = 0; epoch < 2; epoch++) {
            int order[COUNT], done = 0;
            plain_order(9, epoch, order);
            while (done < COUNT) {
                const tn_batch *batch = next(loader);
                for (int r = 0; r < batch->rows; r++, done++) {
                    tn_augmentation how = tn_augment_draw(9, epoch, order[done], 2, flip);
                    for (int i = 0; i < IMAGE; i++) {
                        int pixel_index = i / CHANNELS;
                        assert_true(batch->images[r * IMAGE + i] ==
                                    augmented(order[done], how, pixel_index / WIDTH, pixel_index % WIDTH,
                                              i % CHANNELS));
                    }
                }
            }
        }
        tn_loader_close(loader);
    }
    tn_dataset_close(dataset);
}

static void mean_and_std_can_be_replaced(void **state) {
    (void)state;
    tn_dataset *dataset = make_dataset();
    float zero[CHANNELS] = {0.f, 0.f}, step[CHANNELS] = {1.f / 255.f, 2.f / 255.f};
    tn_loader *loader = open_loader(dataset, (tn_loader_config){.batch = 1, .mean = zero, .std = step});
    zero[0] = step[0] = 100.f; /* they were copied */
    const tn_batch *batch = next(loader);
    for (int i = 0; i < IMAGE; i++) {
        double wanted = pixel(0, i) / (i % 2 ? 2.0 : 1.0);
        assert_true(fabs((double)batch->images[i] - wanted) < 1e-4);
    }
    tn_loader_close(loader);
    tn_dataset_close(dataset);
}

typedef struct saved_batch {
    int rows, labels[16];
    float images[16 * IMAGE], targets[16 * CLASSES];
} saved_batch;

static void save(const tn_batch *batch, saved_batch *to) {
    memset(to, 0, sizeof *to);
    to->rows = batch->rows;
    memcpy(to->labels, batch->labels, (size_t)batch->rows * sizeof *batch->labels);
    memcpy(to->images, batch->images, (size_t)batch->rows * IMAGE * sizeof *batch->images);
    memcpy(to->targets, batch->targets, (size_t)batch->rows * CLASSES * sizeof *batch->targets);
}

static const tn_loader_config everything = {
    .batch = 16, .seed = 77, .shuffle = true, .augment = true, .mixup = 0.7, .label_smoothing = 0.1};

static void seeking_equals_reading(void **state) {
    (void)state;
    enum { EPOCHS = 3, BATCHES = 7 };
    static saved_batch read[EPOCHS * BATCHES], sought;
    tn_dataset *dataset = make_dataset();
    tn_loader *loader = open_loader(dataset, everything);
    assert_int_equal(tn_loader_batches(loader), BATCHES);
    for (int b = 0; b < EPOCHS * BATCHES; b++) save(next(loader), &read[b]);
    tn_loader_close(loader);
    loader = open_loader(dataset, everything);
    tn_rng rng = tn_rng_open(1, TN_RNG_INIT, 0, 0);
    for (int trial = 0; trial < 300; trial++) {
        int at = (int)tn_rng_below(&rng, EPOCHS * BATCHES), run = (int)tn_rng_below(&rng, 6);
        assert_int_equal(tn_loader_seek(loader, at / BATCHES, at % BATCHES), TN_OK);
        for (; run > 0 && at < EPOCHS * BATCHES; run--, at++) {
            save(next(loader), &sought);
            assert_memory_equal(&sought, &read[at], sizeof sought);
        }
    }
    tn_loader_close(loader);
    tn_dataset_close(dataset);
}

static void samples_do_not_depend_on_the_batch_size(void **state) {
    (void)state;
    enum { EPOCHS = 2, SIZES = 4 };
    static float images[SIZES][EPOCHS * COUNT * IMAGE];
    const int batch_sizes[SIZES] = {1, 7, 16, COUNT};
    tn_dataset *dataset = make_dataset();
    for (int s = 0; s < SIZES; s++) {
        tn_loader_config config = everything;
        config.mixup = 0.0; /* mixes rows of a batch */
        config.batch = batch_sizes[s];
        tn_loader *loader = open_loader(dataset, config);
        for (size_t done = 0; done < EPOCHS * COUNT;) {
            const tn_batch *batch = next(loader);
            memcpy(images[s] + done * IMAGE, batch->images,
                   (size_t)batch->rows * IMAGE * sizeof *batch->images);
            done += (size_t)batch->rows;
        }
        tn_loader_close(loader);
        assert_memory_equal(images[s], images[0], sizeof images[0]);
    }
    tn_dataset_close(dataset);
}

/* One mixed batch against the unmixed one of the same position. */
static float check_mixed(const tn_batch *mixed, const tn_batch *plain, const tn_loader_config *config,
                         int epoch, int number) {
    tn_rng rng = tn_rng_open(config->seed, TN_RNG_MIXUP, (uint32_t)epoch, (uint32_t)number);
    float own = (float)tn_rng_beta(&rng, config->mixup), other = 1.f - own;
    int rows = plain->rows, partner[16];
    assert_int_equal(mixed->rows, rows);
    for (int i = 0; i < rows; i++) partner[i] = i;
    for (int i = rows - 1; i > 0; i--) {
        int j = (int)tn_rng_below(&rng, (uint32_t)i + 1), kept = partner[i];
        partner[i] = partner[j];
        partner[j] = kept;
    }
    for (int r = 0; r < rows; r++) {
        const float *x = plain->images + r * IMAGE, *y = plain->images + partner[r] * IMAGE;
        for (int i = 0; i < IMAGE; i++) {
            float a = own * x[i], b = other * y[i];
            assert_true(mixed->images[r * IMAGE + i] == a + b);
        }
        int mine = plain->labels[r], theirs = plain->labels[partner[r]];
        assert_int_equal(mixed->labels[r], own >= .5f ? mine : theirs);
        double sum = 0.0;
        for (int c = 0; c < CLASSES; c++) {
            double clean = (c == mine ? (double)own : 0.0) + (c == theirs ? (double)other : 0.0);
            double wanted = (1.0 - config->label_smoothing) * clean + config->label_smoothing / CLASSES;
            assert_true(fabs((double)mixed->targets[r * CLASSES + c] - wanted) < 1e-6);
            sum += (double)mixed->targets[r * CLASSES + c];
        }
        assert_true(fabs(sum - 1.0) < 1e-6);
    }
    return own;
}

static void mixup_mixes_images_targets_and_labels(void **state) {
    (void)state;
    tn_dataset *dataset = make_dataset();
    tn_loader_config with = everything, without = everything;
    without.mixup = 0.0;
    for (int smoothed = 0; smoothed < 2; smoothed++) {
        with.label_smoothing = smoothed ? 0.1 : 0.0;
        tn_loader *mixing = open_loader(dataset, with), *plain = open_loader(dataset, without);
        int heavy = 0, light = 0;
        for (int b = 0; b < 21; b++) {
            float own = check_mixed(next(mixing), next(plain), &with, b / 7, b % 7);
            *(own >= .5f ? &heavy : &light) += 1;
        }
        assert_true(heavy > 0 && light > 0);
        tn_loader_close(mixing);
        tn_loader_close(plain);
    }
    tn_dataset_close(dataset);
}

static void label_smoothing_spreads_its_share(void **state) {
    (void)state;
    tn_dataset *dataset = make_dataset();
    tn_loader *loader = open_loader(dataset, (tn_loader_config){.batch = 10, .label_smoothing = 0.14});
    const tn_batch *batch = next(loader);
    for (int r = 0; r < batch->rows; r++)
        for (int c = 0; c < CLASSES; c++) {
            double wanted = c == label_of(r) ? 0.88 : 0.02; /* 1 - .14 + .14 / 7 and .14 / 7 */
            assert_true(fabs((double)batch->targets[r * CLASSES + c] - wanted) < 1e-6);
        }
    assert_int_equal(batch->labels[3], label_of(3));
    tn_loader_close(loader);
    tn_dataset_close(dataset);
}

static void shares_are_the_batch(void **state) {
    (void)state;
    tn_dataset *dataset = make_dataset();
    for (int ranks = 1; ranks <= 5; ranks++) {
        tn_loader *whole = open_loader(dataset, everything), *shares[5];
        tn_loader_config config = everything;
        config.chunk_rows = 3, config.ranks = ranks;
        for (config.rank = 0; config.rank < ranks; config.rank++)
            shares[config.rank] = open_loader(dataset, config);
        for (int n = 0; n < 2 * tn_loader_batches(whole); n++) {
            const tn_batch *all = next(whole), *b;
            int at = 0;
            for (int r = 0; r < ranks; r++, at += b->rows) {
                size_t rows = (size_t)(b = next(shares[r]))->rows;
                assert_true(b->whole_rows == all->rows && b->first_row == at && (at % 3 == 0 || rows == 0));
                assert_memory_equal(b->images, all->images + at * IMAGE, rows * IMAGE * sizeof(float));
                assert_memory_equal(b->targets, all->targets + at * CLASSES, rows * CLASSES * sizeof(float));
                assert_memory_equal(b->labels, all->labels + at, rows * sizeof(int));
            }
            assert_int_equal(at, all->rows);
        }
        for (int r = 0; r < ranks; r++) tn_loader_close(shares[r]);
        tn_loader_close(whole);
    }
    tn_dataset_close(dataset);
}

static void limit_batches_shortens_the_epoch(void **state) {
    (void)state;
    tn_dataset *dataset = make_dataset();
    tn_loader_config config = {.batch = 10, .shuffle = true, .limit_batches = 3};
    int order[COUNT];
    tn_loader *loader = open_loader(dataset, config);
    assert_int_equal(tn_loader_batches(loader), 3);
    for (int b = 0; b < 9; b++) {
        const tn_batch *batch = next(loader);
        plain_order(0, b / 3, order);
        for (int r = 0; r < 10; r++) assert_int_equal(number_of(batch, r), order[b % 3 * 10 + r]);
    }
    assert_fails(tn_loader_seek(loader, 0, 3), TN_ERR_USAGE, "batch 3", "0..2");
    tn_loader_close(loader);
    config.limit_batches = 12;
    loader = open_loader(dataset, config);
    assert_int_equal(tn_loader_batches(loader), 11);
    tn_loader_close(loader);
    loader = open_loader(dataset, (tn_loader_config){.split = TN_SPLIT_VAL, .batch = 51});
    assert_int_equal(tn_loader_batches(loader), 2); /* 102 images: no partial batch */
    tn_loader_close(loader);
    tn_dataset_close(dataset);
}

static void refuse(const tn_dataset *dataset, tn_loader_config config, const char *a, const char *b) {
    size_t before = tn_memory_in_use();
    tn_loader *loader;
    assert_fails(tn_loader_open(dataset, &config, &loader), TN_ERR_USAGE, a, b);
    assert_null(loader);
    assert_int_equal(tn_memory_in_use(), before);
}

static void wrong_configurations_are_refused(void **state) {
    (void)state;
    tn_dataset *dataset = make_dataset();
    float nan_values[2] = {0.f, NAN}, zero[2] = {1.f, 0.f}, negative[2] = {-1.f, 1.f},
          infinite[2] = {1.f, INFINITY};
    refuse(dataset, (tn_loader_config){.batch = COUNT + 1}, "batch 104 is larger than", "103 images");
    refuse(dataset, (tn_loader_config){.split = TN_SPLIT_VAL, .batch = COUNT}, "validation split of made-up",
           "use at most 102");
    refuse(dataset, (tn_loader_config){.batch = 0}, "batch 0", "at least 1");
    refuse(dataset, (tn_loader_config){.batch = -3}, "batch -3", "at least 1");
    refuse(dataset, (tn_loader_config){.batch = 1, .limit_batches = -1}, "limit-batches -1", "at least 1");
    refuse(dataset, (tn_loader_config){.batch = 1, .mixup = -0.5}, "mixup -0.5", "positive");
    refuse(dataset, (tn_loader_config){.batch = 1, .mixup = (double)NAN}, "mixup", "positive");
    refuse(dataset, (tn_loader_config){.batch = 1, .mixup = (double)INFINITY}, "mixup inf", "positive");
    refuse(dataset, (tn_loader_config){.batch = 1, .label_smoothing = 1.0}, "label-smoothing 1", "below 1");
    refuse(dataset, (tn_loader_config){.batch = 1, .label_smoothing = -0.1}, "label-smoothing -0.1",
           "below 1");
    refuse(dataset, (tn_loader_config){.batch = 1, .label_smoothing = (double)NAN}, "label-smoothing",
           "below 1");
    refuse(dataset, (tn_loader_config){.batch = 1, .mean = nan_values}, "mean nan of channel 1", "finite");
    refuse(dataset, (tn_loader_config){.batch = 1, .std = zero}, "std 0 of channel 1", "positive");
    refuse(dataset, (tn_loader_config){.batch = 1, .std = negative}, "std -1 of channel 0", "positive");
    refuse(dataset, (tn_loader_config){.batch = 1, .std = infinite}, "std inf of channel 1", "positive");
    dataset->info.val_count = 0;
    refuse(dataset, (tn_loader_config){.split = TN_SPLIT_VAL, .batch = 1}, "0 images", "validation split");
    tn_dataset_close(dataset);
}

static void a_seek_that_fails_changes_nothing(void **state) {
    (void)state;
    tn_dataset *dataset = make_dataset();
    tn_loader *loader = open_loader(dataset, (tn_loader_config){.batch = 10});
    next(loader);
    assert_fails(tn_loader_seek(loader, -1, 0), TN_ERR_USAGE, "epoch -1");
    assert_fails(tn_loader_seek(loader, 0, -1), TN_ERR_USAGE, "batch -1");
    assert_fails(tn_loader_seek(loader, 0, 11), TN_ERR_USAGE, "batch 11", "0..10");
    assert_int_equal(number_of(next(loader), 0), 10);
    tn_loader_close(loader);
    tn_dataset_close(dataset);
}

static void the_producers_failure_reaches_the_consumer(void **state) {
    (void)state;
    tn_dataset *dataset = make_dataset();
    tn_loader *loader = open_loader(dataset, (tn_loader_config){.batch = 50});
    assert_int_equal(tn_loader_seek(loader, INT_MAX, 1), TN_OK);
    assert_int_equal(number_of(next(loader), 0), 50);
    assert_int_equal(next(loader)->rows, 3);
    for (int again = 0; again < 2; again++) {
        tn_batch stale;
        const tn_batch *batch = &stale;
        assert_fails(tn_loader_next(loader, &batch, NULL), TN_ERR_USAGE, "epoch 2147483647");
        assert_null(batch);
    }
    assert_int_equal(tn_loader_seek(loader, 0, 1), TN_OK);
    assert_int_equal(number_of(next(loader), 0), 50);
    tn_loader_close(loader);
    tn_dataset_close(dataset);
}

static void closing_works_at_any_moment(void **state) {
    (void)state;
    tn_dataset *dataset = make_dataset();
    size_t before = tn_memory_in_use();
    for (int trial = 0; trial < 200; trial++) {
        tn_loader *loader = open_loader(dataset, everything);
        if (trial % 4 == 1) usleep((useconds_t)(trial * 20));
        if (trial % 4 == 2) next(loader);
        if (trial % 4 == 3) tn_loader_seek(loader, trial, 2);
        tn_loader_close(loader);
        assert_int_equal(tn_memory_in_use(), before);
    }
    tn_loader *full = open_loader(dataset, everything);
    usleep(50000); /* by now the producer waits for room */
    tn_loader_close(full);
    tn_loader_close(NULL);
    tn_dataset_close(dataset);
}

static void loaders_share_a_data_set(void **state) {
    (void)state;
    static saved_batch one, other;
    tn_dataset *dataset = make_dataset();
    tn_loader *a = open_loader(dataset, everything), *b = open_loader(dataset, everything);
    for (int i = 0; i < 50; i++) {
        save(next(a), &one);
        save(next(b), &other);
        assert_memory_equal(&one, &other, sizeof one);
    }
    tn_loader_close(a);
    tn_loader_close(b);
    tn_dataset_close(dataset);
}

static void only_real_waits_are_counted(void **state) {
    (void)state;
    tn_dataset *dataset = make_dataset();
    tn_loader *loader = open_loader(dataset, everything);
    bool ready = false;
    double waited = 0.25;
    for (int trial = 0; trial < 300 && (trial < 110 || !ready); trial++) {
        const tn_batch *batch;
        double before = waited, begin;
        if (trial >= 100) usleep(5000);
        begin = tn_now();
        assert_int_equal(tn_loader_next(loader, &batch, &waited), TN_OK);
        assert_true(waited - before <= tn_now() - begin);
        assert_true(waited >= before);
        ready = waited == before;
    }
    assert_true(ready);
    tn_loader_close(loader);
    tn_dataset_close(dataset);
}

static volatile sig_atomic_t interrupted;

static void interrupt(int number) {
    (void)number;
    interrupted = 1;
}

static void the_thread_takes_no_signals(void **state) {
    (void)state;
    tn_dataset *dataset = make_dataset();
    tn_loader *loader = open_loader(dataset, everything);
    sigset_t one, pending, before;
    sigemptyset(&one);
    sigaddset(&one, SIGUSR1);
    signal(SIGUSR1, interrupt);
    pthread_sigmask(SIG_BLOCK, &one, &before);
    assert_int_equal(sigismember(&before, SIGUSR1), 0); /* opening left the caller's mask alone */
    kill(getpid(), SIGUSR1);
    usleep(20000);
    assert_int_equal(sigpending(&pending), 0);
    assert_int_equal(sigismember(&pending, SIGUSR1), 1);
    assert_int_equal(interrupted, 0);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    assert_int_equal(interrupted, 1);
    signal(SIGUSR1, SIG_DFL);
    tn_loader_close(loader);
    tn_dataset_close(dataset);
}

static void a_thread_that_cannot_start_is_reported(void **state) {
    (void)state;
    tn_dataset *dataset = make_dataset();
    size_t before = tn_memory_in_use();
    tn_loader *loader;
    refuse_threads = true;
    tn_status status = tn_loader_open(dataset, &everything, &loader);
    refuse_threads = false;
    assert_fails(status, TN_ERR_MEMORY, "cannot start the loader's thread");
    assert_null(loader);
    assert_int_equal(tn_memory_in_use(), before);
    tn_dataset_close(dataset);
}

static void running_out_of_memory_leaks_nothing(void **state) {
    (void)state;
    tn_dataset *dataset = make_dataset();
    tn_loader *loader = NULL;
    size_t before = tn_memory_in_use();
    int failures = 0;
    for (;; failures++) {
        tn_memory_fail_at(failures + 1);
        tn_status status = tn_loader_open(dataset, &everything, &loader);
        tn_memory_fail_at(0);
        if (status == TN_OK) break;
        assert_fails(status, TN_ERR_MEMORY, "out of memory");
        assert_null(loader);
        assert_int_equal(tn_memory_in_use(), before);
    }
    /* The loader; order; unmixed images, partners, places, samples, labels; three arrays a slot. */
    assert_int_equal(failures, 1 + 1 + 5 + 4 * 3);
    tn_loader_close(loader);
    assert_int_equal(tn_memory_in_use(), before);
    tn_dataset_close(dataset);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(without_options_the_files_order_repeats),
        cmocka_unit_test(every_epoch_is_its_own_permutation),
        cmocka_unit_test(augmented_pixels_equal_a_plain_computation),
        cmocka_unit_test(mean_and_std_can_be_replaced),
        cmocka_unit_test(seeking_equals_reading),
        cmocka_unit_test(samples_do_not_depend_on_the_batch_size),
        cmocka_unit_test(mixup_mixes_images_targets_and_labels),
        cmocka_unit_test(label_smoothing_spreads_its_share),
        cmocka_unit_test(shares_are_the_batch),
        cmocka_unit_test(limit_batches_shortens_the_epoch),
        cmocka_unit_test(wrong_configurations_are_refused),
        cmocka_unit_test(a_seek_that_fails_changes_nothing),
        cmocka_unit_test(the_producers_failure_reaches_the_consumer),
        cmocka_unit_test(closing_works_at_any_moment),
        cmocka_unit_test(loaders_share_a_data_set),
        cmocka_unit_test(only_real_waits_are_counted),
        cmocka_unit_test(the_thread_takes_no_signals),
        cmocka_unit_test(a_thread_that_cannot_start_is_reported),
        cmocka_unit_test(running_out_of_memory_leaks_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
