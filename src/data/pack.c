/* Folder to shards: what goes into which shard is a function of the listing alone, so that shards can be made
 * in parallel and a packing that was interrupted goes on with those that are missing. */
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <xxhash.h>

#include "base/memory.h"
#include "base/pool.h"
#include "data/image_folder.h"
#include "data/input.h"
#include "data/order.h"
#include "data/pack_shard.h"
#include "io/atomic_file.h"
#include "io/file_io.h"

static const char *const split_names[] = {"train", "val"}; /* by tn_split */

/* One split: its files and their order in the shards. */
typedef struct split_plan {
    tn_image_store store; /* of files */
    int *labels, *order;
    int shards;
} split_plan;

typedef struct packing {
    const tn_pack_config *config;
    tn_name_list classes;
    split_plan splits[2];
    tn_packer *packers; /* of each thread */
    uint64_t *hashes;   /* of each shard, train's first */
    int shards, done;
    pthread_mutex_t mutex; /* guards done, result and the callback */
    tn_pack_result *result;
} packing;

static tn_status plan_split(packing *p, tn_split split) {
    const tn_pack_config *config = p->config;
    split_plan *plan = &p->splits[split];
    char path[TN_PATH_MAX];
    struct stat info;
    TN_TRY(tn_input_path(path, config->from, split_names[split]));
    if (stat(path, &info) != 0) return TN_OK; /* a folder may have one split only */
    TN_TRY(tn_strdup(&plan->store.folder, path));
    TN_TRY(tn_image_folder_list(config->from, split_names[split], &p->classes, &plan->store.names,
                                &plan->labels));
    int count = plan->store.names.count;
    if (count > 99999999) return tn_fail(TN_ERR_USAGE, "%s: %d images are too many to number", path, count);
    TN_TRY(tn_alloc(&plan->order, (size_t)count, sizeof *plan->order, "order of samples"));
    tn_epoch_order(0, 0, count, plan->order);
    plan->shards = (count - 1) / config->samples_per_shard + 1;
    return TN_OK;
}

/* ---- files beside the shards ---- */

static tn_status write_file(const packing *p, const char *name, const tn_string *text) {
    char path[TN_PATH_MAX];
    tn_atomic_file *file;
    TN_TRY(tn_input_path(path, p->config->to, name));
    TN_TRY(tn_atomic_begin(path, &file));
    tn_status status = tn_atomic_write(file, text->data, text->length);
    if (status == TN_OK) return tn_atomic_commit(file);
    tn_atomic_abort(file);
    return status;
}

/* Everything that decides what is in the shards. */
static tn_status describe(const packing *p, tn_string *text) {
    const tn_pack_config *c = p->config;
    TN_TRY(tn_string_printf(text, "taunet-pack 1\nsamples-per-shard %d\nresize %d\ndecoded %s\nquality %d\n",
                            c->samples_per_shard, c->resize, c->decoded ? "yes" : "no",
                            c->decoded || c->resize == 0 ? 0 : c->quality));
    for (int s = 0; s < 2; s++) {
        const tn_name_list *names = &p->splits[s].store.names;
        TN_TRY(tn_string_printf(text, "%s %d %016llx\n", split_names[s], names->count,
                                (unsigned long long)(names->used ? XXH64(names->text, names->used, 0) : 0)));
    }
    return TN_OK;
}

/* Writes pack.txt, or finds that the folder's is of the same packing. */
static tn_status claim_folder(const packing *p, const tn_string *text) {
    char path[TN_PATH_MAX];
    uint8_t *found;
    size_t size;
    TN_TRY(tn_input_path(path, p->config->to, "pack.txt"));
    if (!tn_input_exists(path)) return write_file(p, "pack.txt", text);
    TN_TRY(tn_input_read(path, &found, &size));
    bool same = size == text->length && memcmp(found, text->data, size) == 0;
    tn_free(found);
    if (same) return TN_OK;
    return tn_fail(
        TN_ERR_USAGE,
        "%s: shards of other images, or made with other options, are in this folder; use another one, or "
        "remove them",
        path);
}

static tn_status write_classes(const packing *p) {
    tn_string text = {0};
    tn_status status = TN_OK;
    for (int c = 0; c < p->classes.count && status == TN_OK; c++) {
        const char *name = tn_name_list_get(&p->classes, c);
        status = strchr(name, '\n')
                     ? tn_fail(TN_ERR_DATA, "class %s: a newline in its name; rename the folder",
                               tn_make_legible(name).text)
                     : tn_string_printf(&text, "%s\n", name);
    }
    if (status == TN_OK) status = write_file(p, "classes.txt", &text);
    tn_string_free(&text);
    return status;
}

/* Which split, and which of its shards, is shard `index` of all. */
static tn_split locate(const packing *p, int index, int *number) {
    bool val = index >= p->splits[TN_SPLIT_TRAIN].shards;
    *number = val ? index - p->splits[TN_SPLIT_TRAIN].shards : index;
    return val ? TN_SPLIT_VAL : TN_SPLIT_TRAIN;
}

static void shard_name(const packing *p, int index, char name[32]) {
    int number;
    tn_split split = locate(p, index, &number);
    snprintf(name, 32, "%s-%06d.tar", split_names[split], number);
}

/* In the form that `xxhsum -c` reads. */
static tn_status write_checksums(const packing *p) {
    tn_string text = {0};
    tn_status status = TN_OK;
    for (int i = 0; i < p->shards && status == TN_OK; i++) {
        char name[32];
        shard_name(p, i, name);
        status = tn_string_printf(&text, "%016llx  %s\n", (unsigned long long)p->hashes[i], name);
    }
    if (status == TN_OK) status = write_file(p, "checksums.xxh64", &text);
    tn_string_free(&text);
    return status;
}

/* ---- shards ---- */

/* Whether a shard is there already, with an index that has its hash. */
static tn_status find_shard(const char *path, bool *found, tn_shard_index *index) {
    struct stat info;
    *found = false;
    if (stat(path, &info) != 0) return TN_OK;
    TN_TRY(tn_shard_index_load(index, path, (uint64_t)info.st_size, tn_shard_mtime(&info), found));
    *found = *found && index->has_hash;
    return TN_OK;
}

static void note_shard(packing *p, int samples, bool reused, const tn_pack_losses *losses) {
    pthread_mutex_lock(&p->mutex);
    tn_pack_result *result = p->result;
    if (result->bad_samples == 0 && losses->count > 0)
        snprintf(result->bad_sample, sizeof result->bad_sample, "%s", losses->message);
    result->bad_samples += losses->count;
    result->samples += samples;
    result->shards++;
    result->reused += reused;
    if (p->config->progress) p->config->progress(p->config->context, result->shards, p->shards);
    pthread_mutex_unlock(&p->mutex);
}

static tn_status make_shard(void *context, int index, int worker) {
    packing *p = context;
    const tn_pack_config *config = p->config;
    char name[32], path[TN_PATH_MAX];
    int number;
    const split_plan *plan = &p->splits[locate(p, index, &number)];
    int first = number * config->samples_per_shard, left = plan->store.names.count - first;
    int count = left < config->samples_per_shard ? left : config->samples_per_shard;
    tn_pack_losses losses = {.count = 0};
    tn_shard_index found_index = {0};
    bool found;
    shard_name(p, index, name);
    TN_TRY(tn_input_path(path, config->to, name));
    tn_status status = find_shard(path, &found, &found_index);
    p->hashes[index] = found_index.hash;
    int samples = found_index.count;
    tn_shard_index_free(&found_index);
    if (status == TN_OK && !found) {
        status = tn_pack_shard(&p->packers[worker], config, &plan->store, plan->labels, plan->order + first,
                               count, path, &losses, &p->hashes[index]);
        samples = count - losses.count;
    }
    if (status == TN_OK) note_shard(p, samples, found, &losses);
    return status;
}

static tn_status run(packing *p) {
    tn_pool *pool;
    int threads = p->config->threads > 0 ? p->config->threads : tn_processor_count();
    TN_TRY(tn_alloc(&p->packers, (size_t)threads, sizeof *p->packers, "packers"));
    TN_TRY(tn_alloc(&p->hashes, (size_t)p->shards, sizeof *p->hashes, "checksums"));
    TN_TRY(tn_pool_create(threads, NULL, &pool));
    tn_status status = tn_pool_run(pool, p->shards, make_shard, p);
    tn_pool_free(pool);
    for (int i = 0; i < threads; i++) tn_packer_free(&p->packers[i]);
    return status == TN_OK ? write_checksums(p) : status;
}

static tn_status pack(packing *p) {
    tn_string text = {0};
    TN_TRY(tn_image_folder_classes(p->config->from, &p->classes));
    for (tn_split s = TN_SPLIT_TRAIN; s <= TN_SPLIT_VAL; s++) TN_TRY(plan_split(p, s));
    p->shards = p->splits[TN_SPLIT_TRAIN].shards + p->splits[TN_SPLIT_VAL].shards;
    TN_TRY(tn_atomic_sweep(p->config->to, NULL));
    tn_status status = describe(p, &text);
    if (status == TN_OK) status = claim_folder(p, &text);
    tn_string_free(&text);
    TN_TRY(status);
    TN_TRY(write_classes(p));
    return run(p);
}

static tn_status check_config(const tn_pack_config *c) {
    if (c->samples_per_shard < 1 || c->samples_per_shard > 1000000)
        return tn_fail(TN_ERR_USAGE, "%d samples in a shard: must be from 1 to 1000000",
                       c->samples_per_shard);
    if (c->resize < 0 || c->resize > TN_SIDE_MAX)
        return tn_fail(TN_ERR_USAGE, "resize %d: must be from 1 to %d, or 0 for none", c->resize,
                       TN_SIDE_MAX);
    if (c->quality < 1 || c->quality > 100)
        return tn_fail(TN_ERR_USAGE, "quality %d: must be from 1 to 100", c->quality);
    return tn_input_folder(c->to, "the shards; make it first");
}

tn_status tn_dataset_pack(const tn_pack_config *config, tn_pack_result *result) {
    packing p = {.config = config, .result = result};
    *result = (tn_pack_result){0};
    TN_TRY(check_config(config));
    TN_ASSERT(pthread_mutex_init(&p.mutex, NULL) == 0);
    tn_status status = pack(&p);
    pthread_mutex_destroy(&p.mutex);
    for (int s = 0; s < 2; s++) {
        tn_image_store_free(&p.splits[s].store);
        tn_free(p.splits[s].labels);
        tn_free(p.splits[s].order);
    }
    tn_name_list_free(&p.classes);
    tn_free(p.packers);
    tn_free(p.hashes);
    return status;
}
