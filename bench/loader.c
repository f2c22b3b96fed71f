/* Images per second of the loader: shuffled, augmented and normalised.
 *
 *   loader [SPEC [BATCH [SECONDS [THREADS [raw]]]]]      default synthetic:3x32x32:10:50000 128 2 1
 *
 * The main thread only takes batches, so the time is that of the loader. THREADS decode the images of folder
 * and webdataset. With `raw` batches are bytes for a device that makes images of them. Prints the median,
 * slowest and fastest of ten stretches, and images per second of processor time. */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "taunet/data.h"

#define STRETCHES 10

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Takes batches for at least `seconds`; returns images per second, or a negative number after a failure. */
static double stretch(tn_loader *loader, double seconds, long *total) {
    double begin = now(), taken = 0.0;
    long images = 0;
    while (taken < seconds) {
        const tn_batch *batch;
        if (tn_loader_next(loader, &batch, NULL) != TN_OK) return -1.0;
        images += batch->rows;
        taken = now() - begin;
    }
    *total += images;
    return (double)images / taken;
}

static int measure(tn_loader *loader, double seconds) {
    double rate[STRETCHES];
    long images = 0;
    if (stretch(loader, seconds / STRETCHES, &images) < 0.0) return -1; /* warm-up */
    images = 0;
    clock_t begin = clock();
    for (int i = 0; i < STRETCHES; i++) {
        rate[i] = stretch(loader, seconds / STRETCHES, &images);
        if (rate[i] < 0.0) return -1;
    }
    qsort(rate, STRETCHES, sizeof *rate, ascending);
    printf("loader: %.0f images/s augmented (median; %.0f to %.0f), %.0f per second of processor time\n",
           0.5 * (rate[STRETCHES / 2 - 1] + rate[STRETCHES / 2]), rate[0], rate[STRETCHES - 1],
           (double)images * CLOCKS_PER_SEC / (double)(clock() - begin));
    return 0;
}

int main(int argc, char **argv) {
    const char *spec = argc > 1 ? argv[1] : "synthetic:3x32x32:10:50000";
    tn_loader_config config = {
        .split = TN_SPLIT_TRAIN, .batch = argc > 2 ? atoi(argv[2]) : 128, .shuffle = true};
    config.augment = true;
    config.threads = argc > 4 ? atoi(argv[4]) : 1;
    config.raw = argc > 5;
    double seconds = argc > 3 ? atof(argv[3]) : 2.0, begin = now();
    tn_dataset *dataset;
    tn_loader *loader = NULL;
    int result = -1;
    if (tn_dataset_open(spec, &dataset) == TN_OK) {
        printf("%s: opened in %.2f s\n", spec, now() - begin);
        if (tn_loader_open(dataset, &config, &loader) == TN_OK) result = measure(loader, seconds);
        tn_loader_close(loader);
        tn_dataset_close(dataset);
    }
    if (result != 0) fprintf(stderr, "loader: %s\n", tn_error());
    return result == 0 ? 0 : 1;
}
