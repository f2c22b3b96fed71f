#include "data/image_folder.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>

#include "base/memory.h"
#include "base/text.h"
#include "data/input.h"
#include "io/file_io.h"

/* Folders in folders of a class; a loop of symbolic links would go on. */
#define DEPTH_MAX 8

enum { OTHER, IMAGE, UNKNOWN_IMAGE };

static int kind_of(const char *name) {
    static const char *const known[] = {"jpg", "jpeg", "png", "ppm"};
    static const char *const unknown[] = {"bmp", "gif", "pgm", "tif", "tiff", "webp", "avif", "heic", "jp2"};
    const char *dot = strrchr(name, '.');
    for (size_t i = 0; dot && i < sizeof known / sizeof *known; i++)
        if (!strcasecmp(dot + 1, known[i])) return IMAGE;
    for (size_t i = 0; dot && i < sizeof unknown / sizeof *unknown; i++)
        if (!strcasecmp(dot + 1, unknown[i])) return UNKNOWN_IMAGE;
    return OTHER;
}

/* Whether an entry is a folder; links are followed. */
static tn_status is_folder(const char *path, unsigned char type, bool *out) {
    struct stat info;
    *out = type == DT_DIR;
    if (type == DT_DIR || type == DT_REG) return TN_OK;
    if (stat(path, &info) != 0) return tn_fail_errno("open", path);
    *out = S_ISDIR(info.st_mode);
    return TN_OK;
}

static bool is_there(const char *dir, const char *name) {
    char path[TN_PATH_MAX];
    struct stat info;
    int length = snprintf(path, sizeof path, "%s/%s", dir, name);
    return length > 0 && length < (int)sizeof path && stat(path, &info) == 0 && S_ISDIR(info.st_mode);
}

/* Calls `visit` for the entries of a folder that do not start with a dot. */
typedef tn_status (*visitor)(void *context, const char *path, const char *name, bool folder);

static tn_status visit_entries(DIR *open_dir, const char *dir, visitor visit, void *context) {
    char path[TN_PATH_MAX];
    bool folder;
    for (;;) {
        errno = 0;
        const struct dirent *entry = readdir(open_dir);
        if (!entry) return errno ? tn_fail_errno("read folder", dir) : TN_OK;
        if (entry->d_name[0] == '.') continue;
        TN_TRY(tn_input_path(path, dir, entry->d_name));
        TN_TRY(is_folder(path, entry->d_type, &folder));
        TN_TRY(visit(context, path, entry->d_name, folder));
    }
}

static tn_status visit_folder(const char *dir, visitor visit, void *context) {
    DIR *open_dir = opendir(dir);
    if (!open_dir) return tn_fail_errno("open folder", dir);
    tn_status status = visit_entries(open_dir, dir, visit, context);
    closedir(open_dir); /* only read from */
    return status;
}

/* ---- classes and files ---- */

static tn_status visit_class(void *context, const char *path, const char *name, bool folder) {
    (void)path;
    return folder ? tn_name_list_add(context, NULL, name) : TN_OK;
}

tn_status tn_image_folder_classes(const char *dir, tn_name_list *classes) {
    char path[TN_PATH_MAX];
    TN_TRY(tn_input_folder(dir, "train/ and val/, with a folder for each class"));
    const char *split = is_there(dir, "train") ? "train" : "val";
    if (!is_there(dir, split))
        return tn_fail(TN_ERR_IO, "no folder train or val in %s; put a folder for each class there", dir);
    TN_TRY(tn_input_path(path, dir, split));
    TN_TRY(visit_folder(path, visit_class, classes));
    if (classes->count == 0)
        return tn_fail(TN_ERR_DATA, "%s: no folder in it; put a folder for each class there", path);
    tn_name_list_sort(classes, 0);
    return TN_OK;
}

/* Files below one class. */
typedef struct class_walk {
    tn_name_list *files;
    char relative[TN_PATH_MAX]; /* from the split to the folder that is being read */
    int depth;
} class_walk;

static tn_status visit_file(void *context, const char *path, const char *name, bool folder) {
    class_walk *walk = context;
    if (folder) {
        size_t length = strlen(walk->relative);
        if (++walk->depth > DEPTH_MAX)
            return tn_fail(TN_ERR_DATA,
                           "%s: more than %d folders deep; is there a loop of symbolic links? remove it",
                           path, DEPTH_MAX);
        snprintf(walk->relative + length, sizeof walk->relative - length, "/%s", name);
        TN_TRY(visit_folder(path, visit_file, walk));
        walk->relative[length] = 0;
        walk->depth--;
        return TN_OK;
    }
    switch (kind_of(name)) {
    case IMAGE:
        return tn_name_list_add(walk->files, walk->relative, name);
    case UNKNOWN_IMAGE:
        return tn_fail(TN_ERR_DATA, "%s: taunet reads JPEG, PNG and PPM; convert or remove it", path);
    default:
        return TN_OK;
    }
}

static tn_status visit_val_class(void *context, const char *path, const char *name, bool folder) {
    if (!folder || tn_name_list_find(context, name) >= 0) return TN_OK;
    return tn_fail(TN_ERR_DATA, "%s: there is no such class in train; remove it, or add it there", path);
}

tn_status tn_image_folder_list(const char *dir, const char *split, const tn_name_list *classes,
                               tn_name_list *files, int **labels) {
    char split_path[TN_PATH_MAX], path[TN_PATH_MAX];
    size_t capacity = 0;
    class_walk walk = {.files = files};
    TN_TRY(tn_input_path(split_path, dir, split));
    tn_name_list known = *classes; /* looked at only */
    TN_TRY(visit_folder(split_path, visit_val_class, &known));
    for (int c = 0; c < classes->count; c++) {
        const char *name = tn_name_list_get(classes, c);
        int first = files->count;
        if (!is_there(split_path, name)) continue;
        TN_TRY(tn_input_path(path, split_path, name));
        snprintf(walk.relative, sizeof walk.relative, "%s", name);
        TN_TRY(visit_folder(path, visit_file, &walk));
        tn_name_list_sort(files, first);
        TN_TRY(tn_grow(labels, &capacity, (size_t)files->count, sizeof **labels, "labels"));
        for (int i = first; i < files->count; i++) (*labels)[i] = c;
    }
    if (files->count == 0)
        return tn_fail(TN_ERR_DATA, "%s: no .jpg, .jpeg, .png or .ppm in its classes; fetch the data again",
                       split_path);
    return TN_OK;
}

/* ---- data sets ---- */

static const char *const split_names[] = {"train", "val"}; /* by tn_split */

static tn_status set_folder(tn_image_store *store, const char *dir, const char *below) {
    char path[TN_PATH_MAX];
    TN_TRY(tn_input_path(path, dir, below));
    return tn_strdup(&store->folder, below[0] ? path : dir);
}

static void describe(tn_dataset_info *info, const char *name, int classes) {
    /* Of the training images of ImageNet, models.md 1.4. */
    *info = (tn_dataset_info){.name = name,
                              .channels = 3,
                              .classes = classes,
                              .flip = true,
                              .mean = {.485f, .456f, .406f},
                              .std = {.229f, .224f, .225f}};
}

static void set_count(tn_dataset *dataset, tn_split split, int count) {
    *(split == TN_SPLIT_TRAIN ? &dataset->info.train_count : &dataset->info.val_count) = count;
}

static tn_status read_folders(const char *dir, const tn_name_list *classes, tn_dataset *dataset) {
    describe(&dataset->info, "folder", classes->count);
    for (tn_split s = TN_SPLIT_TRAIN; s <= TN_SPLIT_VAL; s++) {
        tn_samples *samples = &dataset->split[s];
        if (!is_there(dir, split_names[s])) continue;
        TN_TRY(set_folder(&samples->store, dir, split_names[s]));
        TN_TRY(tn_image_folder_list(dir, split_names[s], classes, &samples->store.names, &samples->labels));
        set_count(dataset, s, samples->store.names.count);
    }
    return TN_OK;
}

tn_status tn_image_folder_read(const char *dir, tn_dataset *dataset) {
    tn_name_list classes = {0};
    tn_status status = tn_image_folder_classes(dir, &classes);
    if (status == TN_OK) status = read_folders(dir, &classes, dataset);
    tn_name_list_free(&classes);
    return status;
}

typedef struct shard_search {
    tn_name_list *names;
    const char *part; /* that names must have, or NULL */
} shard_search;

static tn_status visit_shard(void *context, const char *path, const char *name, bool folder) {
    shard_search *search = context;
    const char *dot = strrchr(name, '.');
    (void)path;
    if (folder || !dot || strcasecmp(dot, ".tar") != 0) return TN_OK;
    if (search->part && !strstr(name, search->part)) return TN_OK;
    return tn_name_list_add(search->names, NULL, name);
}

static tn_status find_shards(const char *dir, tn_split split, tn_image_store *store) {
    bool folders = is_there(dir, "train") || is_there(dir, "val");
    if (folders && !is_there(dir, split_names[split])) return TN_OK;
    shard_search search = {.names = &store->names, .part = folders ? NULL : split_names[split]};
    TN_TRY(set_folder(store, dir, folders ? split_names[split] : ""));
    TN_TRY(visit_folder(store->folder, visit_shard, &search));
    tn_name_list_sort(&store->names, 0);
    return TN_OK;
}

int tn_class_list_lines(const char *text, size_t size) {
    int lines = 0;
    for (size_t begin = 0; begin < size && lines <= TN_LABEL_MAX + 1; lines++) {
        const char *newline = memchr(text + begin, '\n', size - begin);
        size_t end = newline ? (size_t)(newline - text) : size;
        if (end == begin || memchr(text + begin, 0, end - begin)) return 0;
        begin = end + 1;
    }
    return lines;
}

/* Lines of DIR/classes.txt, 0 without the file. */
static tn_status count_classes(const char *dir, int *out) {
    char path[TN_PATH_MAX];
    uint8_t *text;
    size_t size;
    *out = 0;
    TN_TRY(tn_input_path(path, dir, "classes.txt"));
    if (!tn_input_exists(path)) return TN_OK;
    TN_TRY(tn_input_read(path, &text, &size));
    int lines = tn_class_list_lines((const char *)text, size);
    tn_free(text);
    if (lines < 1 || lines > TN_LABEL_MAX + 1)
        return tn_fail(TN_ERR_DATA, "%s: not a list of 1 to %d classes, a line each; correct or remove it",
                       path, TN_LABEL_MAX + 1);
    *out = lines;
    return TN_OK;
}

static int largest(const int *labels, int count) {
    int label = -1;
    for (int i = 0; i < count; i++)
        if (labels[i] > label) label = labels[i];
    return label;
}

static tn_status read_shards(const char *dir, tn_dataset *dataset) {
    int classes, count[2] = {0};
    TN_TRY(count_classes(dir, &classes));
    for (tn_split s = TN_SPLIT_TRAIN; s <= TN_SPLIT_VAL; s++) {
        tn_samples *samples = &dataset->split[s];
        TN_TRY(find_shards(dir, s, &samples->store));
        if (samples->store.names.count > 0)
            TN_TRY(tn_image_store_open_shards(&samples->store, &samples->labels, &count[s]));
        int label = largest(samples->labels, count[s]);
        if (classes == 0) classes = label + 1;
        if (label >= classes)
            return tn_fail(TN_ERR_DATA,
                           "%s: class %d in %s, but there are %d classes (those of classes.txt or of train)",
                           dir, label, split_names[s], classes);
    }
    if (count[0] + count[1] == 0)
        return tn_fail(
            TN_ERR_IO,
            "no samples in %s; put tar shards into train/ and val/ there, or call them train-*.tar "
            "and val-*.tar",
            dir);
    describe(&dataset->info, "webdataset", classes);
    for (tn_split s = TN_SPLIT_TRAIN; s <= TN_SPLIT_VAL; s++) set_count(dataset, s, count[s]);
    return TN_OK;
}

tn_status tn_webdataset_read(const char *dir, tn_dataset *dataset) {
    TN_TRY(tn_input_folder(dir, "tar shards"));
    return read_shards(dir, dataset);
}
