#include "train/team.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/memory.h"
#include "base/pool.h"
#include "base/text.h"

static void on_lost(void *context, const char *text) {
    const tn_run_hooks *hooks = context;
    if (hooks && hooks->lost) hooks->lost(hooks->context, text);
}

/* All that the user asked for, orders included, as text. */
static tn_status compare_options(tn_comm *comm, const tn_options *options) {
    tn_string all = {0};
    char *text;
    TN_TRY(tn_options_print_config(options, &text));
    tn_status status = tn_string_printf(&all, "%sresume = %d\noverwrite = %d\ngpus = %d\n", text,
                                        options->resume, options->overwrite, options->gpus);
    tn_options_free_text(text);
    if (status == TN_OK) status = tn_comm_compare(comm, all.data, "an option");
    tn_string_free(&all);
    return status;
}

static tn_status check_number(tn_comm *comm, const tn_options *options) {
    tn_status status = TN_OK;
    if (options->gpus > 0 && options->gpus != tn_comm_local_size(comm))
        status = tn_fail(TN_ERR_USAGE,
                         "--gpus %d: %d processes of this run were started on this machine; leave --gpus out "
                         "under mpirun or srun",
                         options->gpus, tn_comm_local_size(comm));
    return tn_comm_agree(comm, status, "start");
}

tn_status tn_team_join(const tn_options *options, const tn_run_hooks *hooks, tn_comm **out) {
    union {
        const tn_run_hooks *hooks;
        void *context;
    } context = {hooks};
    tn_comm_config config = {.timeout = options->comm_timeout, .lost = on_lost, .context = context.context};
    TN_TRY(tn_comm_open(&config, out));
    tn_status status = compare_options(*out, options);
    if (status == TN_OK) status = check_number(*out, options);
    if (status == TN_OK) return TN_OK;
    tn_comm_close(*out, true);
    *out = NULL;
    return status;
}

static tn_status receive_options(tn_comm *comm, const char *text, size_t size, tn_options **options) {
    if (tn_comm_rank(comm) == 0) return TN_OK;
    TN_TRY(tn_options_create("train", options));
    return tn_options_load_text(*options, text, size, "options of rank 0");
}

tn_status tn_team_share_options(tn_comm *comm, tn_options **options) {
    char *printed = NULL, *text;
    uint64_t size = 0;
    if (tn_comm_size(comm) == 1) return TN_OK;
    tn_status status = *options ? tn_options_print_config(*options, &printed) : TN_OK;
    TN_TRY(tn_comm_agree(comm, status, "options"));
    if (printed) size = strlen(printed);
    status = tn_comm_broadcast(comm, &size, sizeof size, "options");
    if (status == TN_OK) status = tn_alloc(&text, size, 1, "options");
    if (status == TN_OK) {
        if (printed) memcpy(text, printed, size);
        status = tn_comm_broadcast(comm, text, size, "options");
        if (status == TN_OK) status = receive_options(comm, text, size, options);
        tn_free(text);
    }
    tn_options_free_text(printed);
    return status;
}

int tn_team_threads(const tn_comm *comm, int wanted) {
    int mine = tn_processor_count(), here = tn_comm_local_size(comm);
    if (wanted > 0 || here == 1) return wanted;
    /* Bound to some processors by the launcher. */
    if (mine < sysconf(_SC_NPROCESSORS_ONLN)) return 0;
    return mine / here > 1 ? mine / here : 1;
}

tn_status tn_team_check_state(tn_comm *comm, tn_engine *engine, long step) {
    uint64_t mine, *all;
    int size = tn_comm_size(comm), other = 0;
    if (size == 1) return TN_OK;
    TN_TRY(tn_engine_hash(engine, &mine));
    TN_TRY(tn_alloc(&all, (size_t)size, sizeof *all, "hashes"));
    tn_status status = tn_comm_gather(comm, &mine, sizeof mine, all, "hash of the weights");
    while (other < size && all[other] == all[0]) other++;
    if (status == TN_OK && other < size)
        status = tn_fail(TN_ERR_DATA,
                         "step %ld: the weights of rank %d are not those of rank 0 (XXH64 %016" PRIx64
                         ", %016" PRIx64 "): a fault of memory or processor, or builds that differ; the last "
                         "checkpoint is from before",
                         step, other, all[other], all[0]);
    tn_free(all);
    return status == TN_ERR_PEER ? status : tn_comm_agree(comm, status, "hash of the weights");
}

const char *tn_team_describe(const tn_comm *comm, char *text, size_t size) {
    text[0] = 0;
    if (tn_comm_size(comm) > 1)
        snprintf(text, size, ", %d processes (%s)", tn_comm_size(comm), tn_comm_name(comm));
    return text;
}
