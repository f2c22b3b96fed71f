/* Several processes that train together, with a device each: NCCL's host side, and what becomes of a rank
 * that does not come. Each test starts this program again as the ranks of a job under mpirun, with the name
 * of a scenario; the machine answers for NCCL between them. */
#include <math.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>
#include <xxhash.h>

#include "base/clock.h"
#include "base/sum_tree.h"
#include "comm/transport.h"
#include "tests/support/engine_check.h"

#define RANKS 2
#define ROWS  8 /* of a batch, most */
#define CHUNK 4
#define STEPS 5
#define SIZE  8

static char program[4096];

static bool small(void) {
    return getenv("SIMT_SMALL") != NULL;
}

/* Faults look the same under every order of threads. */
static bool first_order(void) {
    const char *seed = getenv("SIMT_SEED");
    return !small() && (!seed || !strcmp(seed, "0"));
}

/* ---- what the ranks do ---- */

#define CHECK(condition)                                                                                     \
    do {                                                                                                     \
        if (condition) break;                                                                                \
        fprintf(stderr, "rank %d: %s does not hold in line %d: %s\n", tn_comm_rank(comm), #condition,        \
                __LINE__, tn_error());                                                                       \
        return 1;                                                                                            \
    } while (0)

static tn_model *network_of(const char *name, const char *variant) {
    tn_model *model;
    tn_model_config config = {
        .model = name, .variant = variant, .channels = 3, .height = SIZE, .width = SIZE, .classes = 7};
    return tn_model_build(&config, &model) == TN_OK ? model : NULL;
}

static tn_model *network(const char *variant) {
    return network_of("resnet8", variant);
}

typedef struct training {
    const char *variant, *device;
    const char *model; /* NULL: resnet8 */
    tn_precision precision;
    bool sync_bn;
    int micro_batch;
} training;

/* What a training leaves: the same on all ranks. */
typedef struct outcome {
    double losses[STEPS];
    float *values, *state;
} outcome;

/* The whole batch, or the share of a rank; in the third step there is nothing for rank 0, in the fourth rank
 * 1 has fewer rows. */
static tn_batch share_of(const tn_comm *comm, const tn_model *model, const op_data *data, int step) {
    static const int rows[STEPS] = {ROWS, ROWS, CHUNK - 1, ROWS - 1, ROWS};
    tn_batch batch = engine_batch(model, rows[step], data);
    int first_chunk[RANKS + 1];
    batch.weights = NULL;
    if (!comm) return batch;
    tn_sum_deal((rows[step] + CHUNK - 1) / CHUNK, RANKS, first_chunk);
    int first = first_chunk[tn_comm_rank(comm)] * CHUNK, end = first_chunk[tn_comm_rank(comm) + 1] * CHUNK;
    if (end > rows[step]) end = rows[step];
    batch.whole_rows = rows[step];
    batch.first_row = first;
    batch.rows = end - first;
    batch.images += (size_t)first * 3 * SIZE * SIZE;
    batch.targets += first * model->classes;
    batch.labels += first;
    return batch;
}

/* On all ranks of `comm`, or alone. `outcome` is freed by the caller. */
static tn_status train(tn_comm *comm, const training *t, const tn_model *model, const op_data *data,
                       outcome *out) {
    tn_engine *engine;
    tn_engine_config config = {.device = t->device,
                               .precision = t->precision,
                               .threads = 1,
                               .micro_batch = t->micro_batch,
                               .max_batch = ROWS,
                               .sync_bn = t->sync_bn,
                               .comm = comm,
                               .training = true};
    tn_sgd sgd = {.lr = 0.05, .momentum = 0.9, .weight_decay = 1e-4, .scalar_lr = 0.1};
    TN_TRY(tn_engine_create(model, &config, &engine));
    tn_status status = tn_engine_initialise(engine, 3);
    if (status == TN_OK && comm) status = tn_engine_broadcast(engine);
    for (int step = 0; status == TN_OK && step < (small() ? 2 : STEPS); step++) {
        tn_batch batch = share_of(comm, model, data, step);
        tn_result result;
        status = tn_engine_step(engine, &batch, &sgd, &result);
        if (status == TN_OK) out->losses[step] = result.loss / result.rows;
    }
    if (status == TN_OK) {
        out->values = engine_values(engine);
        out->state = engine_state(engine);
    }
    tn_engine_free(engine);
    return status;
}

static double distance(const float *a, const float *b, size_t count) {
    double off = 0, norm = 0;
    for (size_t i = 0; i < count; i++) {
        double d = (double)a[i] - (double)b[i];
        off += d * d;
        norm += (double)b[i] * (double)b[i];
    }
    return norm > 0 ? sqrt(off / norm) : off;
}

/* Trains on all ranks and compares: among ranks bit for bit; with `other`, which all ranks (`together`) or
 * each alone computes, to `tolerance`, or bit for bit where that is 0. */
static int compare(tn_comm *comm, training ours, training other, bool together, double tolerance) {
    tn_model *model = network_of(ours.model ? ours.model : "resnet8", ours.variant);
    op_data data = op_data_draw(model, ROWS, 1, false, true);
    outcome mine = {.values = NULL}, wanted = {.values = NULL};
    uint64_t hash, all[RANKS];
    CHECK(train(comm, &ours, model, &data, &mine) == TN_OK);
    hash = XXH64(mine.values, model->param_floats * sizeof(float), 0);
    hash = XXH64(mine.state, model->state_floats * sizeof(float), hash);
    CHECK(tn_comm_gather(comm, &hash, sizeof hash, all, "hash") == TN_OK && all[0] == all[1]);
    if (tn_comm_rank(comm) == 0)
        printf("checksum of %s %s, sync-bn %d, precision %d: %016llx\n", model->model_name, ours.variant,
               (int)ours.sync_bn, (int)ours.precision, (unsigned long long)hash);
    if (small()) return 0;
    CHECK(train(together ? comm : NULL, &other, model, &data, &wanted) == TN_OK);
    double values = distance(mine.values, wanted.values, model->trained_floats),
           state = distance(mine.state, wanted.state, model->state_floats);
    for (int i = 0; i < STEPS; i++)
        if (!(fabs(mine.losses[i] - wanted.losses[i]) <= tolerance * wanted.losses[i])) {
            fprintf(stderr, "%s: step %d: loss %.9g, not %.9g\n", ours.variant, i + 1, mine.losses[i],
                    wanted.losses[i]);
            return 1;
        }
    if (!(values <= tolerance && state <= tolerance)) {
        fprintf(stderr, "%s: weights are off by %g, statistics by %g\n", ours.variant, values, state);
        return 1;
    }
    free(mine.values);
    free(mine.state);
    free(wanted.values);
    free(wanted.state);
    op_data_free(&data);
    tn_model_free(model);
    return 0;
}

/* Without norms the chunks of two ranks are those of one process, and so is the order of its sum. */
static int scenario_train(tn_comm *comm) {
    training ours = {.variant = "tau", .device = "cuda"},
             alone = {.variant = "tau", .device = "cuda", .micro_batch = CHUNK};
    CHECK(compare(comm, ours, alone, false, 0) == 0);
    CHECK(!strcmp(tn_comm_name(comm), "nccl") && tn_comm_waited(comm) > 0);
    /* A bucket begins inside of a stage, whose gradients all come at once. */
    ours.precision = alone.precision = TN_PRECISION_BF16;
    CHECK(compare(comm, ours, alone, false, 0) == 0);
    if (small()) return 0;
    /* Stages and head are operations of many layers, and the gradients are cut into several pieces. */
    ours.model = alone.model = "resnet20";
    ours.precision = alone.precision = TN_PRECISION_BF16;
    CHECK(compare(comm, ours, alone, false, 0) == 0);
    ours.model = NULL;
    ours.precision = TN_PRECISION_FP32;
    training share = {.variant = "bn-tau", .device = "cpu", .micro_batch = CHUNK};
    ours = (training){.variant = "bn-tau", .device = "cuda"};
    CHECK(compare(comm, ours, share, true, 1e-4) == 0);
    return 0;
}

static int scenario_sync_bn(tn_comm *comm) {
    training ours = {.variant = "bn-tau", .device = "cuda", .sync_bn = true},
             alone = {.variant = "bn-tau", .device = "cuda"};
    return compare(comm, ours, alone, false, 1e-5);
}

/* One image of rank 1 is not finite: no rank updates, all say the same. */
static int scenario_not_finite(tn_comm *comm) {
    tn_model *model = network("tau");
    op_data data = op_data_draw(model, ROWS, 1, false, true);
    training t = {.variant = "tau", .device = "cuda"};
    outcome out = {.values = NULL};
    data.images[(size_t)(ROWS - 1) * 3 * SIZE * SIZE] = NAN;
    CHECK(train(comm, &t, model, &data, &out) == TN_ERR_DIVERGED);
    CHECK(strstr(tn_error(), "in the input images"));
    op_data_free(&data);
    tn_model_free(model);
    return 0;
}

static int scenario_one_device(tn_comm *comm) {
    tn_model *model = network("tau");
    tn_engine *engine;
    tn_engine_config config = {.device = "cuda", .max_batch = ROWS, .training = true, .comm = comm};
    CHECK(tn_engine_create(model, &config, &engine) == TN_OK);
    CHECK(tn_engine_broadcast(engine) == TN_ERR_USAGE);
    if (tn_comm_rank(comm) == 0) CHECK(strstr(tn_error(), "ranks 0 and 1 have the same device"));
    tn_engine_free(engine);
    config.device = "cuda:0";
    CHECK(tn_engine_create(model, &config, &engine) == TN_ERR_USAGE && strstr(tn_error(), "cannot share"));
    tn_model_free(model);
    return 0;
}

/* Rank 1 does `what` in the place of its third step; rank 0 waits for it on the device. */
static int lose(tn_comm *comm, int (*what)(tn_comm *comm)) {
    tn_model *model = network("tau");
    op_data data = op_data_draw(model, ROWS, 1, false, true);
    tn_engine *engine;
    tn_engine_config config = {.device = "cuda", .max_batch = ROWS, .training = true, .comm = comm};
    tn_sgd sgd = {.lr = 0.01};
    tn_result result;
    CHECK(tn_engine_create(model, &config, &engine) == TN_OK);
    CHECK(tn_engine_initialise(engine, 3) == TN_OK && tn_engine_broadcast(engine) == TN_OK);
    for (int step = 0; step < 3; step++) {
        tn_batch batch = share_of(comm, model, &data, step % 2);
        tn_comm_phase(comm, step + 1, "training");
        if (step == 2 && tn_comm_rank(comm) == 1) {
            fprintf(stderr, "happened at %.3f\n", tn_now());
            return what(comm);
        }
        tn_status status = tn_engine_step(engine, &batch, &sgd, &result);
        if (step < 2)
            CHECK(status == TN_OK);
        else
            CHECK(status == TN_ERR_PEER && strstr(tn_error(), "rank 1 ("));
    }
    fprintf(stderr, "given up at %.3f\n", tn_now());
    tn_engine_free(engine);
    tn_comm_close(comm, true);
    _exit(1);
}

static int skip_collectives(tn_comm *comm) {
    tn_status status = tn_comm_barrier(comm, "elsewhere");
    _exit(status == TN_ERR_PEER ? 1 : 0);
}

static int die(tn_comm *comm) {
    (void)comm;
    return raise(SIGKILL);
}

static int scenario_missing(tn_comm *comm) {
    return lose(comm, skip_collectives);
}

static int scenario_die(tn_comm *comm) {
    return lose(comm, die);
}

static const struct {
    const char *name;
    int (*run)(tn_comm *comm);
} scenarios[] = {{"train", scenario_train},           {"sync-bn", scenario_sync_bn},
                 {"not-finite", scenario_not_finite}, {"one-device", scenario_one_device},
                 {"missing", scenario_missing},       {"die", scenario_die}};

static void on_lost(void *context, const char *text) {
    (void)context;
    if (text) fprintf(stderr, "lost at %.3f: %s\n", tn_now(), text);
}

static int run_rank(const char *name) {
    tn_comm *comm;
    tn_comm_config config = {.timeout = strcmp(name, "missing") ? 60 : 2, .lost = on_lost};
    int code = 1;
    if (tn_comm_open(&config, &comm) != TN_OK) {
        fprintf(stderr, "%s\n", tn_error());
        return 1;
    }
    for (size_t i = 0; i < sizeof scenarios / sizeof *scenarios; i++)
        if (!strcmp(scenarios[i].name, name)) code = scenarios[i].run(comm);
    if (code) _exit(code);
    tn_comm_close(comm, false);
    return 0;
}

/* ---- the tests ---- */

static int launch(const char *scenario, int devices, char *output, size_t size) {
    const tn_transport *transport;
    const tn_device_transport *between;
    const tn_backend_ops *ops;
    int number;
    char command[8192];
    if (tn_transport_find(2, &transport) != TN_OK || tn_transport_find_device(&between) != TN_OK ||
        tn_backend_find("cuda:1", TN_PRECISION_FP32, &ops, &number) != TN_OK)
        skip();
    snprintf(
        command, sizeof command,
        "env OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 SIMT_DEVICES=%d %s timeout -k 5 300 "
        "mpirun -q --oversubscribe --bind-to none -np %d '%s' %s 2>&1",
        devices, devices == 1 ? "CUDA_VISIBLE_DEVICES=0" : "", RANKS, program, scenario);
    FILE *pipe = popen(command, "r");
    assert_non_null(pipe);
    size_t length = fread(output, 1, size - 1, pipe);
    output[length] = 0;
    int status = pclose(pipe);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static void succeed(const char *scenario, int devices) {
    char output[16384];
    int code = launch(scenario, devices, output, sizeof output);
    if (code) fail_msg("%s ended with %d:\n%s", scenario, code, output);
    fputs(output, stdout);
}

/* Rank 0 says which rank is lost, within so many seconds, and its step ends. */
static void loses(const char *scenario, double within, const char *words) {
    char output[16384];
    int code = launch(scenario, RANKS, output, sizeof output);
    const char *happened = strstr(output, "happened at "), *line = strstr(output, "lost at "),
               *over = strstr(output, "given up at ");
    if (code == 0 || !happened || !line || !over || strstr(line + 1, "lost at ") || !strstr(line, words))
        fail_msg("%s ended with %d:\n%s", scenario, code, output);
    double begun = atof(happened + strlen("happened at ")), told = atof(line + strlen("lost at "));
    if (told - begun > within) fail_msg("%s: told after %.3f s", scenario, told - begun);
}

static void test_two_devices_train_as_one(void **state) {
    (void)state;
    succeed("train", RANKS);
}

static void test_batch_norm_over_devices(void **state) {
    (void)state;
    const char *seed = getenv("SIMT_SEED");
    if (!first_order() && (small() || strcmp(seed, "1"))) skip();
    succeed("sync-bn", RANKS);
}

static void test_what_is_not_finite_stops_all(void **state) {
    (void)state;
    if (!first_order()) skip();
    succeed("not-finite", RANKS);
}

static void test_ranks_do_not_share_a_device(void **state) {
    (void)state;
    if (!first_order()) skip();
    succeed("one-device", 1);
}

static void test_a_missing_collective_is_named(void **state) {
    (void)state;
    if (!first_order()) skip();
    loses("missing", 10, "rank 1 (");
}

static void test_a_killed_rank_is_named(void **state) {
    (void)state;
    if (!first_order()) skip();
    loses("die", 2, "died");
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_two_devices_train_as_one),
        cmocka_unit_test(test_batch_norm_over_devices),
        cmocka_unit_test(test_what_is_not_finite_stops_all),
        cmocka_unit_test(test_ranks_do_not_share_a_device),
        cmocka_unit_test(test_a_missing_collective_is_named),
        cmocka_unit_test(test_a_killed_rank_is_named),
    };
    ssize_t length = readlink("/proc/self/exe", program, sizeof program - 1);
    if (length < 0) return 1;
    if (argc > 1) return run_rank(argv[1]);
    setenv("SIMT_DEVICES", "2", 1);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
