#include "theory/probed_run.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/text.h"
#include "taunet/options.h"

enum { PATH_ROOM = 4400 };

static tn_status read_network(const char *folder, tn_probed_run *out) {
    char path[PATH_ROOM];
    tn_options *o;
    snprintf(path, sizeof path, "%s/config.toml", folder);
    TN_TRY(tn_options_create("train", &o));
    tn_status status = tn_options_load(o, path);
    /* What a run wrote is not the user's usage. */
    if (status == TN_ERR_USAGE) status = tn_fail_prefix(TN_ERR_DATA, "--runs");
    snprintf(out->model, sizeof out->model, "%s", o->model);
    snprintf(out->variant, sizeof out->variant, "%s", o->variant);
    tn_options_free(o);
    return status;
}

/* Every epoch lists the blocks of the first, in order; a last one that is not finished is left out. */
static tn_status find_epochs(const char *path, tn_probed_run *out) {
    const tn_probe_row *rows = out->rows.rows;
    int count = (int)out->rows.count;
    while (out->blocks < count && rows[out->blocks].epoch == rows[0].epoch) out->blocks++;
    for (int i = 0; i < count; i++) {
        const tn_probe_row *first = &rows[i % out->blocks], *begin = &rows[i - i % out->blocks];
        bool later = i < out->blocks || begin->epoch > rows[i - i % out->blocks - 1].epoch;
        if (rows[i].block != i % out->blocks || rows[i].epoch != begin->epoch || !later ||
            strcmp(rows[i].layer, first->layer) != 0)
            return tn_fail(TN_ERR_DATA, "%s:%d: not the blocks of the epochs before, in their order",
                           tn_make_legible(path).text, i + 2);
    }
    out->epochs = out->blocks ? count / out->blocks : 0;
    return TN_OK;
}

tn_status tn_probed_run_read(const char *folder, tn_probed_run *out) {
    char path[PATH_ROOM];
    *out = (tn_probed_run){0};
    if (snprintf(path, sizeof path, "%s/probes.csv", folder) >= PATH_ROOM)
        return tn_fail(TN_ERR_USAGE, "--runs: the path of a folder is too long");
    if (access(path, F_OK) != 0)
        return tn_fail(TN_ERR_IO, "--runs %s: there is no probes.csv; name a run that had --probe norms",
                       tn_make_legible(folder).text);
    TN_TRY(read_network(folder, out));
    TN_TRY(tn_probe_rows_read(path, &out->rows));
    tn_status status = find_epochs(path, out);
    if (status != TN_OK) tn_probed_run_free(out);
    return status;
}

void tn_probed_run_free(tn_probed_run *run) {
    tn_probe_rows_free(&run->rows);
}
