#include "data/mnist.h"

#include <math.h>
#include <stdio.h>

#include "base/memory.h"
#include "data/idx.h"
#include "data/input.h"

#define CLASSES      10
#define MNIST_MEAN   .1307f
#define MNIST_STD    .3081f
#define FASHION_MEAN .2860f
#define FASHION_STD  .3530f

/* Finds DIR/STEM[-.]idxN-ubyte[.gz]. */
static tn_status find_part(const char *dir, const char *stem, int ndims, char path[TN_PATH_MAX]) {
    char name[64];
    for (int form = 0; form < 4; form++) {
        snprintf(name, sizeof name, "%s%cidx%d-ubyte%s", stem, form < 2 ? '-' : '.', ndims,
                 form % 2 ? ".gz" : "");
        TN_TRY(tn_input_path(path, dir, name));
        if (tn_input_exists(path)) return TN_OK;
    }
    return tn_fail(TN_ERR_IO,
                   "no %s-idx%d-ubyte or %s-idx%d-ubyte.gz in %s; datasets/README.md says how to get it",
                   stem, ndims, stem, ndims, dir);
}

static tn_status read_part(const char *dir, const char *stem, int ndims, char path[TN_PATH_MAX],
                           tn_idx *out) {
    uint8_t *bytes;
    size_t size;
    out->data = NULL;
    TN_TRY(find_part(dir, stem, ndims, path));
    TN_TRY(tn_input_read(path, &bytes, &size));
    tn_status status = tn_idx_parse(path, bytes, size, ndims, out);
    tn_free(bytes);
    return status;
}

/* Offsets in messages count the 8 bytes of the header. */
static tn_status take_labels(const char *path, const tn_idx *idx, tn_samples *samples) {
    TN_TRY(tn_alloc(&samples->labels, idx->size, sizeof *samples->labels, path));
    for (int i = 0; i < idx->dims[0]; i++) {
        if (idx->data[i] >= CLASSES)
            return tn_fail(TN_ERR_DATA,
                           "%s: record %d at offset %zu: label %d is not in 0..%d: the file is damaged or of "
                           "another data set",
                           path, i, (size_t)i + 8, idx->data[i], CLASSES - 1);
        samples->labels[i] = idx->data[i];
    }
    return TN_OK;
}

/* Reads one split; dims are those of its images. */
static tn_status read_split(const char *dir, const char *prefix, tn_samples *samples, int dims[3]) {
    char stem[32], image_path[TN_PATH_MAX], label_path[TN_PATH_MAX];
    tn_idx images, labels;
    snprintf(stem, sizeof stem, "%s-images", prefix);
    TN_TRY(read_part(dir, stem, 3, image_path, &images));
    samples->pixels = images.data; /* one channel: the file's layout is ours */
    for (int d = 0; d < 3; d++) dims[d] = images.dims[d];
    snprintf(stem, sizeof stem, "%s-labels", prefix);
    TN_TRY(read_part(dir, stem, 1, label_path, &labels));
    tn_status status = TN_OK;
    if (labels.dims[0] != images.dims[0])
        status = tn_fail(TN_ERR_DATA, "%s holds %d images but %s holds %d labels; fetch both again",
                         image_path, images.dims[0], label_path, labels.dims[0]);
    if (status == TN_OK) status = take_labels(label_path, &labels, samples);
    tn_free(labels.data);
    return status;
}

static double mean_pixel(const uint8_t *pixels, size_t size) {
    uint64_t sum = 0;
    for (size_t i = 0; i < size; i++) sum += pixels[i];
    return (double)sum / 255.0 / (double)size;
}

tn_status tn_mnist_read(const char *dir, tn_dataset *dataset) {
    int train[3], val[3];
    TN_TRY(tn_input_folder(dir, "train-images-idx3-ubyte.gz and the other three files (datasets/README.md)"));
    TN_TRY(read_split(dir, "train", &dataset->split[TN_SPLIT_TRAIN], train));
    TN_TRY(read_split(dir, "t10k", &dataset->split[TN_SPLIT_VAL], val));
    if (train[1] != val[1] || train[2] != val[2])
        return tn_fail(TN_ERR_DATA,
                       "%s: training images are %dx%d but test images are %dx%d; fetch both again", dir,
                       train[1], train[2], val[1], val[2]);
    double mean = mean_pixel(dataset->split[TN_SPLIT_TRAIN].pixels,
                             (size_t)train[0] * (size_t)train[1] * (size_t)train[2]);
    double to_fashion = fabs(mean - (double)FASHION_MEAN), to_mnist = fabs(mean - (double)MNIST_MEAN);
    bool fashion = to_fashion < to_mnist && to_fashion <= .02;
    dataset->info = (tn_dataset_info){.name = fashion ? "fashion-mnist" : "mnist",
                                      .channels = 1,
                                      .height = train[1],
                                      .width = train[2],
                                      .classes = CLASSES,
                                      .train_count = train[0],
                                      .val_count = val[0],
                                      .mean = {fashion ? FASHION_MEAN : MNIST_MEAN},
                                      .std = {fashion ? FASHION_STD : MNIST_STD},
                                      .crop_padding = 2,
                                      .flip = fashion};
    return TN_OK;
}
