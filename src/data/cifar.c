#include "data/cifar.h"

#include <limits.h>
#include <string.h>

#include "base/memory.h"
#include "data/input.h"

#define SIDE   32
#define PLANE  (SIDE * SIDE)
#define PIXELS (3 * PLANE)
#define COARSE 20

const tn_cifar_kind tn_cifar10 = {"CIFAR-10", 1, 10};
const tn_cifar_kind tn_cifar100 = {"CIFAR-100", 2, 100};

tn_status tn_cifar_count(const tn_cifar_kind *kind, const char *file, size_t size, int *records) {
    size_t record = (size_t)kind->label_bytes + PIXELS;
    size_t whole = size / record, rest = size % record;
    *records = 0;
    if (size == 0) return tn_fail(TN_ERR_DATA, "%s: 0 images: the file is empty; fetch it again", file);
    if (rest != 0)
        return tn_fail(
            TN_ERR_DATA,
            "%s: record %zu at offset %zu has %zu of %zu bytes: the file is cut short or not the binary "
            "version of %s; fetch it again",
            file, whole, whole * record, rest, record, kind->title);
    if (whole > INT_MAX)
        return tn_fail(TN_ERR_DATA, "%s: %zu images are more than can be counted", file, whole);
    *records = (int)whole;
    return TN_OK;
}

static tn_status check_label(const tn_cifar_kind *kind, const char *file, int record, size_t offset,
                             const char *what, int label, int classes) {
    if (label < classes) return TN_OK;
    return tn_fail(
        TN_ERR_DATA,
        "%s: record %d at offset %zu: %s %d is not in 0..%d: the file is damaged or not the binary version "
        "of %s; fetch it again",
        file, record, offset, what, label, classes - 1, kind->title);
}

tn_status tn_cifar_decode(const tn_cifar_kind *kind, const char *file, const uint8_t *bytes, size_t size,
                          uint8_t *pixels, int *labels) {
    int records;
    TN_TRY(tn_cifar_count(kind, file, size, &records));
    size_t record_size = (size_t)kind->label_bytes + PIXELS;
    for (int r = 0; r < records; r++) {
        size_t offset = (size_t)r * record_size;
        const uint8_t *label = bytes + offset, *planes = label + kind->label_bytes;
        if (kind->label_bytes == 2)
            TN_TRY(check_label(kind, file, r, offset, "coarse label", label[0], COARSE));
        labels[r] = label[kind->label_bytes - 1];
        TN_TRY(check_label(kind, file, r, offset, "label", labels[r], kind->classes));
        uint8_t *image = pixels + (size_t)r * PIXELS;
        for (int i = 0; i < PLANE; i++)
            for (int c = 0; c < 3; c++) image[3 * i + c] = planes[c * PLANE + i];
    }
    return TN_OK;
}

/* Reads one file behind the `done` samples that the split already has. The split was allocated from file
 * sizes, which may have changed since. */
static tn_status read_file(const tn_cifar_kind *kind, const char *path, tn_samples *samples, int done,
                           int expected) {
    uint8_t *bytes;
    size_t size;
    int records;
    TN_TRY(tn_input_read(path, &bytes, &size));
    tn_status status = tn_cifar_count(kind, path, size, &records);
    if (status == TN_OK && records != expected)
        status =
            tn_fail(TN_ERR_IO, "%s changed while it was read; wait until it is complete and try again", path);
    if (status == TN_OK)
        status = tn_cifar_decode(kind, path, bytes, size, samples->pixels + (size_t)done * PIXELS,
                                 samples->labels + done);
    tn_free(bytes);
    return status;
}

static tn_status read_split(const tn_cifar_kind *kind, const char *dir, const char *const *names, int files,
                            tn_split split, tn_dataset *dataset) {
    enum { FILES_MAX = 5 };
    char path[TN_PATH_MAX];
    int records[FILES_MAX], total = 0, done = 0;
    TN_ASSERT(files <= FILES_MAX);
    for (int f = 0; f < files; f++) {
        size_t size;
        TN_TRY(tn_input_path(path, dir, names[f]));
        TN_TRY(tn_input_size(path, &size));
        TN_TRY(tn_cifar_count(kind, path, size, &records[f]));
        if (records[f] > INT_MAX - total)
            return tn_fail(TN_ERR_DATA, "%s: more images than can be counted; use fewer files", path);
        total += records[f];
    }
    TN_TRY(tn_dataset_alloc_split(dataset, split, total, dir));
    for (int f = 0; f < files; f++) {
        TN_TRY(tn_input_path(path, dir, names[f]));
        TN_TRY(read_file(kind, path, &dataset->split[split], done, records[f]));
        done += records[f];
    }
    return TN_OK;
}

static void describe(tn_dataset_info *info, const char *name, int classes, const float mean[3],
                     const float std[3]) {
    *info = (tn_dataset_info){.name = name,
                              .channels = 3,
                              .height = SIDE,
                              .width = SIDE,
                              .classes = classes,
                              .crop_padding = 4,
                              .flip = true};
    memcpy(info->mean, mean, 3 * sizeof *mean);
    memcpy(info->std, std, 3 * sizeof *std);
}

tn_status tn_cifar10_read(const char *dir, tn_dataset *dataset) {
    static const float mean[3] = {.4914f, .4822f, .4465f}, std[3] = {.2023f, .1994f, .2010f};
    static const char *const train[] = {"data_batch_1.bin", "data_batch_2.bin", "data_batch_3.bin",
                                        "data_batch_4.bin", "data_batch_5.bin"};
    static const char *const val[] = {"test_batch.bin"};
    char path[TN_PATH_MAX];
    TN_TRY(
        tn_input_folder(dir, "data_batch_1.bin to data_batch_5.bin and test_batch.bin (datasets/README.md)"));
    int files = 1;
    for (int f = 1; f < 5; f++) {
        TN_TRY(tn_input_path(path, dir, train[f]));
        if (tn_input_exists(path)) files = 5;
    }
    describe(&dataset->info, "cifar10", tn_cifar10.classes, mean, std);
    TN_TRY(read_split(&tn_cifar10, dir, train, files, TN_SPLIT_TRAIN, dataset));
    return read_split(&tn_cifar10, dir, val, 1, TN_SPLIT_VAL, dataset);
}

tn_status tn_cifar100_read(const char *dir, tn_dataset *dataset) {
    static const float mean[3] = {.5071f, .4867f, .4408f}, std[3] = {.2675f, .2565f, .2761f};
    static const char *const train[] = {"train.bin"}, *const val[] = {"test.bin"};
    TN_TRY(tn_input_folder(dir, "train.bin and test.bin (datasets/README.md)"));
    describe(&dataset->info, "cifar100", tn_cifar100.classes, mean, std);
    TN_TRY(read_split(&tn_cifar100, dir, train, 1, TN_SPLIT_TRAIN, dataset));
    return read_split(&tn_cifar100, dir, val, 1, TN_SPLIT_VAL, dataset);
}
