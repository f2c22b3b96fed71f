#include "data/dataset.h"

#include <string.h>
#include <unistd.h>

#include "base/memory.h"
#include "base/text.h"
#include "data/cifar.h"
#include "data/mnist.h"
#include "data/synthetic.h"

/* What may stand before the colon of a specification. */
static const struct reader {
    const char *name;
    tn_status (*read)(const char *where, tn_dataset *dataset);
} readers[] = {{"cifar10", tn_cifar10_read},
               {"cifar100", tn_cifar100_read},
               {"mnist", tn_mnist_read},
               {"synthetic", tn_synthetic_make}};

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

tn_status tn_dataset_open(const char *spec, tn_dataset **out) {
    *out = NULL;
    const char *colon = strchr(spec, ':');
    const struct reader *reader = NULL;
    for (size_t i = 0; i < sizeof readers / sizeof *readers; i++)
        if (strlen(readers[i].name) == (size_t)(colon ? colon - spec : 0) &&
            strncmp(readers[i].name, spec, strlen(readers[i].name)) == 0)
            reader = &readers[i];
    if (!reader || colon[1] == 0)
        return tn_fail(TN_ERR_USAGE,
                       "'%s' is not a data set; use cifar10:DIR, cifar100:DIR, mnist:DIR or "
                       "synthetic:CxHxW:CLASSES:COUNT",
                       tn_make_legible(spec).text);
    tn_dataset *dataset;
    TN_TRY(tn_alloc(&dataset, 1, sizeof *dataset, "data set"));
    tn_status status = reader->read(colon + 1, dataset);
    if (status != TN_OK) {
        tn_dataset_close(dataset);
        return status;
    }
    *out = dataset;
    return TN_OK;
}

void tn_dataset_close(tn_dataset *dataset) {
    if (!dataset) return;
    for (int s = 0; s < 2; s++) {
        tn_free(dataset->split[s].pixels);
        tn_free(dataset->split[s].labels);
    }
    tn_free(dataset);
}

tn_dataset_info tn_dataset_describe(const tn_dataset *dataset) {
    return dataset->info;
}
