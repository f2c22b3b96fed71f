#include "theory/stored_network.h"

#include <stdio.h>
#include <string.h>

#include "base/memory.h"

static const char *text_of(const tn_safetensors *file, const char *key, const char *standard) {
    const char *value = tn_safetensors_metadata(file, key);
    return value ? value : standard;
}

static bool is(const tn_safetensors *file, const char *key, const char *value) {
    return !strcmp(text_of(file, key, ""), value);
}

/* A whole number of the metadata; 0 where there is none. */
static int number_of(const tn_safetensors *file, const char *key) {
    int value = 0;
    return sscanf(text_of(file, key, ""), "%d", &value) == 1 ? value : 0;
}

tn_status tn_stored_model(const tn_safetensors *file, const char *path, tn_model **out) {
    tn_model_config config = {.model = tn_safetensors_metadata(file, "model"),
                              .variant = tn_safetensors_metadata(file, "variant"),
                              .tau = text_of(file, "tau", ""),
                              .tau_per_block = is(file, "tau_sharing", "per-block"),
                              .no_bn_shortcut = is(file, "bn_shortcut", "no"),
                              .loss = text_of(file, "loss", "cross-entropy"),
                              .hidden = number_of(file, "width"),
                              .depth = number_of(file, "depth"),
                              .train_ends = is(file, "train_ends", "yes"),
                              .classes = number_of(file, "classes")};
    *out = NULL;
    if (!config.model || !config.variant || config.classes < 1 ||
        sscanf(text_of(file, "input", ""), "%dx%dx%d", &config.channels, &config.height, &config.width) != 3)
        return tn_fail(TN_ERR_DATA, "--checkpoint %s: the metadata does not say which network it is", path);
    tn_status status = tn_model_build(&config, out);
    return status == TN_ERR_USAGE ? tn_fail_prefix(TN_ERR_DATA, "--checkpoint %s: metadata", path) : status;
}

/* Copies tensor PREFIX LAST, which must hold `count` float32 values. */
static tn_status take(const tn_safetensors *file, const char *path, const char *prefix, const char *last,
                      size_t count, float *to) {
    char name[128];
    snprintf(name, sizeof name, "%s%s", prefix, last);
    const tn_safetensors_entry *entry = tn_safetensors_find(file, name);
    if (!entry || entry->dtype != TN_DTYPE_F32 || entry->bytes != count * sizeof *to)
        return tn_fail(TN_ERR_DATA, "--checkpoint %s: tensor %s is %s", path, name,
                       entry ? "of another type or size" : "missing");
    memcpy(to, entry->data, entry->bytes);
    return TN_OK;
}

static tn_status take_all(const tn_safetensors *file, const char *path, tn_engine *engine, float *room) {
    for (int p = 0; p < tn_engine_parameter_count(engine); p++) {
        tn_parameter_info info = tn_engine_parameter(engine, p);
        TN_TRY(take(file, path, info.name, "", info.count, room));
        TN_TRY(tn_engine_set(engine, TN_VALUES, p, room));
    }
    for (int i = 0; i < tn_engine_norm_count(engine); i++) {
        tn_norm_info info = tn_engine_norm(engine, i);
        size_t channels = (size_t)info.channels;
        TN_TRY(take(file, path, info.name, ".running_mean", channels, room));
        TN_TRY(take(file, path, info.name, ".running_var", channels, room + channels));
        TN_TRY(tn_engine_set_norm(engine, i, room, room + channels, 1));
    }
    return TN_OK;
}

tn_status tn_stored_weights(const tn_safetensors *file, const char *path, tn_engine *engine) {
    size_t largest = 1;
    float *room;
    for (int p = 0; p < tn_engine_parameter_count(engine); p++)
        if (tn_engine_parameter(engine, p).count > largest) largest = tn_engine_parameter(engine, p).count;
    for (int i = 0; i < tn_engine_norm_count(engine); i++)
        if (2 * (size_t)tn_engine_norm(engine, i).channels > largest)
            largest = 2 * (size_t)tn_engine_norm(engine, i).channels;
    TN_TRY(tn_alloc(&room, largest, sizeof *room, "checkpoint"));
    tn_status status = take_all(file, path, engine, room);
    tn_free(room);
    return status;
}
