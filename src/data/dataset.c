#include "data/dataset.h"

#include <string.h>
#include <unistd.h>

#include "base/memory.h"
#include "base/text.h"
#include "data/cifar.h"
#include "data/image_folder.h"
#include "data/mnist.h"
#include "data/synthetic.h"
#include "data/view.h"

/* What may stand before the colon of a specification. */
static const struct reader {
    const char *name;
    tn_status (*read)(const char *where, tn_dataset *dataset);
    bool stored; /* images of any size, decoded for each epoch */
} readers[] = {{"cifar10", tn_cifar10_read, false},      {"cifar100", tn_cifar100_read, false},
               {"mnist", tn_mnist_read, false},          {"folder", tn_image_folder_read, true},
               {"webdataset", tn_webdataset_read, true}, {"synthetic", tn_synthetic_make, false}};

size_t tn_dataset_image_size(const tn_dataset_info *info) {
    return (size_t)info->channels * (size_t)info->height * (size_t)info->width;
}

tn_status tn_dataset_alloc_split(tn_dataset *dataset, tn_split split, int count, const char *source) {
    tn_samples *samples = &dataset->split[split];
    double bytes = (double)count * (double)tn_dataset_image_size(&dataset->info);
    double machine = (double)sysconf(_SC_PHYS_PAGES) * (double)sysconf(_SC_PAGESIZE);
    if (bytes > machine)
        return tn_fail(
            TN_ERR_MEMORY,
            "%s: out of memory: %d images of %dx%dx%d need %.1f GiB, the machine has %.1f GiB; use fewer or "
            "smaller images",
            source, count, dataset->info.channels, dataset->info.height, dataset->info.width, bytes / 0x1p30,
            machine / 0x1p30);
    TN_TRY(tn_alloc(&samples->pixels, (size_t)count, tn_dataset_image_size(&dataset->info), source));
    TN_TRY(tn_alloc(&samples->labels, (size_t)count, sizeof *samples->labels, source));
    *(split == TN_SPLIT_TRAIN ? &dataset->info.train_count : &dataset->info.val_count) = count;
    return TN_OK;
}

/* Sets the sizes of views, which images that are decoded when a set is opened do not have. */
static tn_status set_sizes(const struct reader *reader, int image_size, int resize, tn_dataset *dataset) {
    if (!reader->stored) {
        if (image_size == 0 && resize == 0) return TN_OK;
        return tn_fail(TN_ERR_USAGE,
                       "--%s %d has no effect on %s, whose images have their own size; leave it out",
                       image_size ? "image-size" : "resize", image_size ? image_size : resize, reader->name);
    }
    if (image_size == 0) image_size = 224;
    dataset->resize = resize ? resize : tn_view_default_resize(image_size);
    if (image_size < 1 || image_size > TN_SIDE_MAX || dataset->resize > TN_SIDE_MAX)
        return tn_fail(TN_ERR_USAGE, "--image-size %d, --resize %d: must be from 1 to %d", image_size,
                       dataset->resize, TN_SIDE_MAX);
    if (dataset->resize < image_size)
        return tn_fail(TN_ERR_USAGE,
                       "--resize %d is smaller than the crop of --image-size %d; use at least that",
                       dataset->resize, image_size);
    dataset->info.height = dataset->info.width = image_size;
    return TN_OK;
}

static const struct reader *find_reader(const char *spec) {
    size_t length = strcspn(spec, ":");
    for (size_t i = 0; spec[length] && i < sizeof readers / sizeof *readers; i++)
        if (strlen(readers[i].name) == length && strncmp(readers[i].name, spec, length) == 0)
            return &readers[i];
    return NULL;
}

bool tn_dataset_is_sized(const char *spec) {
    const struct reader *reader = find_reader(spec);
    return reader && reader->stored;
}

tn_status tn_dataset_open_sized(const char *spec, int image_size, int resize, tn_dataset **out) {
    *out = NULL;
    const struct reader *reader = find_reader(spec);
    const char *place = spec + strcspn(spec, ":");
    if (!reader || place[1] == 0)
        return tn_fail(TN_ERR_USAGE,
                       "'%s' is not a data set; use cifar10:DIR, cifar100:DIR, mnist:DIR, folder:DIR, "
                       "webdataset:DIR or synthetic:CxHxW:CLASSES:COUNT",
                       tn_make_legible(spec).text);
    tn_dataset *dataset;
    TN_TRY(tn_alloc(&dataset, 1, sizeof *dataset, "data set"));
    tn_status status = reader->read(place + 1, dataset);
    if (status == TN_OK) status = set_sizes(reader, image_size, resize, dataset);
    if (status != TN_OK) {
        tn_dataset_close(dataset);
        return status;
    }
    *out = dataset;
    return TN_OK;
}

tn_status tn_dataset_open(const char *spec, tn_dataset **out) {
    return tn_dataset_open_sized(spec, 0, 0, out);
}

void tn_dataset_close(tn_dataset *dataset) {
    if (!dataset) return;
    for (int s = 0; s < 2; s++) {
        tn_free(dataset->split[s].pixels);
        tn_free(dataset->split[s].labels);
        tn_image_store_free(&dataset->split[s].store);
    }
    tn_free(dataset);
}

tn_dataset_info tn_dataset_describe(const tn_dataset *dataset) {
    return dataset->info;
}

const uint8_t *tn_dataset_pixels(const tn_dataset *dataset, tn_split split, size_t *bytes) {
    int count = split == TN_SPLIT_TRAIN ? dataset->info.train_count : dataset->info.val_count;
    *bytes = (size_t)count * tn_dataset_image_size(&dataset->info);
    return dataset->split[split].pixels;
}
