#include "train/bad_samples.h"

#include <stdio.h>
#include <string.h>

#include "base/text.h"

void tn_bad_samples_put(json_t *line, tn_loader *train, tn_loader *val, char note[TN_BAD_SAMPLES_NOTE]) {
    tn_loader *loaders[] = {train, val};
    int count = tn_loader_bad_samples(train) + tn_loader_bad_samples(val);
    json_t *list = json_array();
    const char *message, *first = NULL;
    for (int i = 0; i < 2; i++)
        for (int k = 0; (message = tn_loader_bad_sample(loaders[i], k)); k++) {
            if (!first) first = message;
            /* What cannot be added surfaces as a line that cannot be written. */
            json_array_append_new(list,
                                  json_stringn_nocheck(message, tn_utf8_prefix(message, strlen(message))));
        }
    json_object_set_new(line, "bad_samples", json_integer(count));
    json_object_set_new(line, "bad_sample_messages", list);
    note[0] = 0;
    if (first)
        snprintf(note, TN_BAD_SAMPLES_NOTE, "%d images left out (log.jsonl names them), the first: %s", count,
                 first);
}
