/* Collectives, sums and the watchdog between real processes: each test starts this program again as the ranks
 * of a job under mpirun, with the name of a scenario. Where this build has no MPI those tests are skipped. */
#include <math.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/clock.h"
#include "base/philox.h"
#include "base/sum_tree.h"
#include "comm/comm.h"
#include "comm/transport.h"
#include "taunet/engine.h"
#include "train/team.h"

#define FLOATS 53 /* not a multiple of any number of ranks here */
#define LEAVES 40

static char program[4096];

/* ---- what the ranks do ---- */

#define CHECK(condition)                                                                                     \
    do {                                                                                                     \
        if (condition) break;                                                                                \
        fprintf(stderr, "rank %d: %s does not hold in line %d: %s\n", tn_comm_rank(comm), #condition,        \
                __LINE__, tn_error());                                                                       \
        return 1;                                                                                            \
    } while (0)

/* Numbers of very different sizes, so that another order of additions has other bits. */
static float leaf_value(int leaf, int i) {
    tn_rng rng = tn_rng_open(7, TN_RNG_INIT, (uint32_t)leaf, (uint32_t)i);
    return (float)(tn_rng_normal(&rng) * exp(8.0 * tn_rng_uniform(&rng)));
}

/* The definition: leaves first .. end of a tree whose halves are cut at powers of two. */
static float tree_value(int first, int end, int i) {
    int half = 1;
    if (end - first == 1) return leaf_value(first, i);
    while (half * 2 < end - first) half *= 2;
    float left = tree_value(first, first + half, i), right = tree_value(first + half, end, i);
    return left + right;
}

/* The sum over the part's leaves. */
static void fill_part(tn_sum_part part, int leaves, float *out) {
    int first = part.position << part.level, end = (part.position + 1) << part.level;
    for (int i = 0; i < FLOATS; i++) out[i] = tree_value(first, end < leaves ? end : leaves, i);
}

static int fill_own(tn_comm *comm, int leaves, float values[TN_SUM_PARTS_MAX][FLOATS]) {
    int first[16];
    tn_sum_part parts[TN_SUM_PARTS_MAX];
    tn_sum_deal(leaves, tn_comm_size(comm), first);
    int rank = tn_comm_rank(comm),
        count = tn_sum_parts(first[rank], first[rank + 1] - first[rank], leaves, parts);
    for (int i = 0; i < count; i++) fill_part(parts[i], leaves, values[i]);
    return count;
}

static int same_bits(const float *sum, int leaves, int floats) {
    for (int i = 0; i < floats; i++) {
        float expected = tree_value(0, leaves, i);
        if (memcmp(&expected, &sum[i], sizeof expected)) return 0;
    }
    return 1;
}

/* Two reductions under way at once, moved on in an order that differs between ranks. */
static int scenario_reductions(tn_comm *comm) {
    static float first[TN_SUM_PARTS_MAX][FLOATS], second[TN_SUM_PARTS_MAX][FLOATS], sum[FLOATS];
    tn_reduction *one, *two;
    bool one_done = false, two_done = false;
    CHECK(tn_reduction_create(comm, LEAVES, FLOATS, "first", &one) == TN_OK);
    CHECK(tn_reduction_create(comm, LEAVES, FLOATS, "second", &two) == TN_OK);
    for (int leaves = 1; leaves <= LEAVES; leaves++) {
        const float *first_parts[TN_SUM_PARTS_MAX], *second_parts[TN_SUM_PARTS_MAX];
        int other = LEAVES + 1 - leaves;
        for (int i = 0; i < TN_SUM_PARTS_MAX; i++) {
            first_parts[i] = first[i];
            second_parts[i] = second[i];
        }
        fill_own(comm, leaves, first);
        fill_own(comm, other, second);
        CHECK(tn_reduction_start(one, leaves, FLOATS, first_parts, sum) == TN_OK);
        CHECK(tn_reduction_start(two, other, FLOATS - 3, second_parts, second[0]) == TN_OK);
        one_done = two_done = tn_comm_rank(comm) % 2 == 1;
        while (!one_done || !two_done) {
            CHECK(tn_reduction_progress(two, &two_done) == TN_OK);
            CHECK(tn_reduction_progress(one, &one_done) == TN_OK);
        }
        CHECK(tn_reduction_finish(one) == TN_OK && tn_reduction_finish(two) == TN_OK);
        CHECK(same_bits(sum, leaves, FLOATS));
        CHECK(same_bits(second[0], other, FLOATS - 3));
    }
    tn_reduction_free(one);
    tn_reduction_free(two);
    return 0;
}

/* Messages that are too large to be sent at once, and ranks that have no part of the sum. */
static int scenario_large(tn_comm *comm) {
    enum { MANY = 200000 };
    tn_reduction *reduction;
    float *part = calloc(MANY, sizeof *part);
    const float *parts[TN_SUM_PARTS_MAX] = {part};
    CHECK(tn_reduction_create(comm, 2, MANY, "large", &reduction) == TN_OK);
    for (int leaves = 1; leaves <= 2; leaves++) {
        int first[16], rank = tn_comm_rank(comm);
        tn_sum_deal(leaves, tn_comm_size(comm), first);
        for (int i = 0; i < MANY; i++) part[i] = (float)(first[rank] + 1) * (float)i;
        CHECK(tn_reduction_start(reduction, leaves, MANY, parts, part) == TN_OK);
        CHECK(tn_reduction_finish(reduction) == TN_OK);
        for (int i = 0; i < MANY; i++) CHECK(part[i] == (leaves == 1 ? 1.0f : 3.0f) * (float)i);
    }
    tn_reduction_free(reduction);
    free(part);
    return 0;
}

static int scenario_sums(tn_comm *comm) {
    int size = tn_comm_size(comm), rank = tn_comm_rank(comm);
    float floats[FLOATS];
    double doubles[3];
    for (int i = 0; i < FLOATS; i++) floats[i] = leaf_value(rank, i);
    for (int i = 0; i < 3; i++) doubles[i] = 1e-3 * rank + i;
    CHECK(tn_comm_sum_floats(comm, floats, FLOATS, "floats") == TN_OK);
    CHECK(tn_comm_sum_doubles(comm, doubles, 3, "doubles") == TN_OK);
    CHECK(tn_comm_sum_doubles(comm, doubles, 0, "nothing") == TN_OK);
    CHECK(same_bits(floats, size, FLOATS));
    for (int i = 0; i < 3; i++) CHECK(fabs(doubles[i] - (i * size + 1e-3 * size * (size - 1) / 2)) < 1e-12);
    return 0;
}

static int scenario_collectives(tn_comm *comm) {
    int size = tn_comm_size(comm), rank = tn_comm_rank(comm), all[16], first[17], ranges[200];
    char text[64];
    snprintf(text, sizeof text, "text of rank %d", rank);
    CHECK(tn_comm_broadcast(comm, text, sizeof text, "broadcast") == TN_OK &&
          !strcmp(text, "text of rank 0"));
    int mine = 100 + rank;
    CHECK(tn_comm_gather(comm, &mine, sizeof mine, all, "gather") == TN_OK);
    for (int i = 0; i < size; i++) CHECK(all[i] == 100 + i);
    for (int i = 0; i <= size; i++) first[i] = i * i; /* rank 0 has one element, rank 1 three, ... */
    for (int i = first[rank]; i < first[rank + 1]; i++) ranges[i] = 1000 * rank + i;
    CHECK(tn_comm_gather_ranges(comm, ranges, sizeof *ranges, first, "ranges") == TN_OK);
    for (int i = 0; i < size; i++)
        for (int j = first[i]; j < first[i + 1]; j++) CHECK(ranges[j] == 1000 * i + j);
    CHECK(tn_comm_barrier(comm, "barrier") == TN_OK);
    CHECK(tn_comm_local_size(comm) == size && tn_comm_local_rank(comm) == rank);
    /* More than one piece of a broadcast would take too much memory here; a long one must do. */
    size_t bytes = 3000001;
    char *data = malloc(bytes);
    memset(data, rank == 0 ? 'x' : 'y', bytes);
    CHECK(tn_comm_broadcast(comm, data, bytes, "long") == TN_OK && data[0] == 'x' && data[bytes - 1] == 'x');
    free(data);
    return 0;
}

static int scenario_agreement(tn_comm *comm) {
    int rank = tn_comm_rank(comm), last = tn_comm_size(comm) - 1;
    CHECK(tn_comm_agree(comm, TN_OK, "all well") == TN_OK);
    CHECK(tn_comm_compare(comm, "seed = 1\nlr = 2\n", "options") == TN_OK);
    tn_status own = rank == last ? tn_fail(TN_ERR_IO, "the file is not there") : TN_OK;
    CHECK(tn_comm_agree(comm, own, "one fails") == TN_ERR_IO);
    if (rank == 0) CHECK(strstr(tn_error(), "rank ") && strstr(tn_error(), ": the file is not there"));
    if (rank > 0) CHECK(tn_error()[0] == 0);
    CHECK(tn_comm_agree(comm, tn_fail(TN_ERR_USAGE, "no such option"), "all fail alike") == TN_ERR_USAGE);
    if (rank == 0) CHECK(!strcmp(tn_error(), "no such option"));
    CHECK(tn_comm_compare(comm, rank == last ? "seed = 1\nlr = 3\n" : "seed = 1\nlr = 2\n", "options") ==
          TN_ERR_USAGE);
    if (rank == 0) CHECK(strstr(tn_error(), "\"lr = 3\", on rank 0 \"lr = 2\""));
    CHECK(tn_comm_compare(comm, rank == last ? "a" : "a longer text", "options") == TN_ERR_USAGE);
    return 0;
}

/* One bit of one weight of one rank is another than elsewhere. */
static int scenario_divergence(tn_comm *comm) {
    tn_model *model;
    tn_engine *engine;
    tn_model_config shape = {
        .model = "resnet8", .variant = "bn", .channels = 3, .height = 8, .width = 8, .classes = 4};
    tn_engine_config config = {
        .device = "cpu", .threads = 1, .micro_batch = 4, .max_batch = 8, .training = true, .comm = comm};
    CHECK(tn_model_build(&shape, &model) == TN_OK);
    CHECK(tn_engine_create(model, &config, &engine) == TN_OK);
    CHECK(tn_engine_initialise(engine, (uint64_t)tn_comm_rank(comm)) == TN_OK);
    CHECK(tn_engine_broadcast(engine) == TN_OK);
    CHECK(tn_team_check_state(comm, engine, 1) == TN_OK);
    for (tn_tensor_kind kind = TN_VALUES; kind <= TN_MOMENTUM; kind += TN_MOMENTUM - TN_VALUES) {
        float *values = malloc(tn_engine_parameter(engine, 0).count * sizeof *values);
        uint32_t bits;
        CHECK(tn_engine_get(engine, kind, 0, values) == TN_OK);
        memcpy(&bits, &values[5], sizeof bits);
        bits ^= tn_comm_rank(comm) == 1;
        memcpy(&values[5], &bits, sizeof bits);
        CHECK(tn_engine_set(engine, kind, 0, values) == TN_OK);
        CHECK(tn_team_check_state(comm, engine, 17) == TN_ERR_DATA);
        if (tn_comm_rank(comm) == 0)
            CHECK(strstr(tn_error(), "step 17: the weights of rank 1 are not those"));
        CHECK(tn_engine_broadcast(engine) == TN_OK);
        CHECK(tn_team_check_state(comm, engine, 18) == TN_OK);
        free(values);
    }
    tn_engine_free(engine);
    tn_model_free(model);
    return 0;
}

/* Works step by step until something happens to `victim` at step 3. */
static int work(tn_comm *comm, int victim, int (*what)(tn_comm *)) {
    for (long step = 1; step < 1000; step++) {
        double one = 1;
        tn_comm_phase(comm, step, "the forward pass");
        usleep(100000);
        if (step == 3 && tn_comm_rank(comm) == victim) {
            int code = what(comm);
            if (code) return code;
        }
        if (tn_comm_sum_doubles(comm, &one, 1, "gradients") != TN_OK) {
            fprintf(stderr, "collective failed: %s\n", tn_error());
            return 1;
        }
    }
    return 0;
}

/* The time of what happens is told, to be compared with that of its report. */
static void stamp(const char *what) {
    fprintf(stderr, "%s at %.3f\n", what, tn_now());
}

static int die(tn_comm *comm) {
    (void)comm;
    stamp("killed");
    return raise(SIGKILL);
}

static int stand_still(tn_comm *comm) {
    (void)comm;
    stamp("killed");
    return raise(SIGSTOP);
}

static int dawdle(tn_comm *comm) {
    stamp("killed");
    tn_comm_phase(comm, 3, "a long sleep");
    sleep(60);
    return 0;
}

static int give_up(tn_comm *comm) {
    stamp("killed");
    tn_fail(TN_ERR_DATA, "record 7 is damaged");
    fprintf(stderr, "told: %s\n", tn_error());
    tn_comm_close(comm, true);
    _exit(1);
}

static int last(tn_comm *comm) {
    return tn_comm_size(comm) - 1;
}

static int scenario_die(tn_comm *comm) {
    return work(comm, last(comm), die);
}
static int scenario_root_dies(tn_comm *comm) {
    return work(comm, 0, die);
}
static int scenario_stop(tn_comm *comm) {
    return work(comm, last(comm), stand_still);
}
static int scenario_root_stops(tn_comm *comm) {
    return work(comm, 0, stand_still);
}
static int scenario_dawdle(tn_comm *comm) {
    return work(comm, last(comm), dawdle);
}
static int scenario_root_dawdles(tn_comm *comm) {
    return work(comm, 0, dawdle);
}
static int scenario_give_up(tn_comm *comm) {
    return work(comm, last(comm), give_up);
}

/* A short time-out passes while all are well and nobody waits. */
static int scenario_patience(tn_comm *comm) {
    for (int i = 0; i < 2; i++) {
        usleep(1500000);
        CHECK(tn_comm_barrier(comm, "barrier") == TN_OK);
    }
    return 0;
}

static const struct {
    const char *name;
    int (*run)(tn_comm *comm);
} scenarios[] = {{"reductions", scenario_reductions},
                 {"sums", scenario_sums},
                 {"large", scenario_large},
                 {"collectives", scenario_collectives},
                 {"agreement", scenario_agreement},
                 {"divergence", scenario_divergence},
                 {"die", scenario_die},
                 {"root-dies", scenario_root_dies},
                 {"stop", scenario_stop},
                 {"root-stops", scenario_root_stops},
                 {"dawdle", scenario_dawdle},
                 {"root-dawdles", scenario_root_dawdles},
                 {"give-up", scenario_give_up},
                 {"patience", scenario_patience}};

static void on_lost(void *context, const char *text) {
    (void)context;
    if (text) fprintf(stderr, "lost at %.3f: %s\n", tn_now(), text);
    _exit(1);
}

static int run_rank(const char *name) {
    tn_comm *comm;
    tn_comm_config config = {.timeout = 1, .lost = on_lost};
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

/* Runs a scenario with so many ranks (what MPI itself leaks is not looked for); the output goes to `output`.
 * Returns mpirun's exit status. */
static int launch(int ranks, const char *scenario, char *output, size_t size) {
    const tn_transport *transport;
    char command[8192];
    if (tn_transport_find(2, &transport) != TN_OK) skip();
    snprintf(command, sizeof command,
             "env ASAN_OPTIONS=detect_leaks=0 OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 "
             "timeout -k 5 60 "
             "mpirun -q --oversubscribe --bind-to none -np %d '%s' %s 2>&1",
             ranks, program, scenario);
    FILE *pipe = popen(command, "r");
    assert_non_null(pipe);
    size_t length = fread(output, 1, size - 1, pipe);
    output[length] = 0;
    int status = pclose(pipe);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static void succeed(int ranks, const char *scenario) {
    char output[16384];
    int code = launch(ranks, scenario, output, sizeof output);
    if (code) fail_msg("%s with %d ranks ended with %d:\n%s", scenario, ranks, code, output);
}

/* The job ends with a failure and one line, `within` seconds after what happened, that holds all the words.
 */
static void loses(int ranks, const char *scenario, double within, const char *const *words) {
    char output[16384];
    double happened, told;
    int code = launch(ranks, scenario, output, sizeof output);
    const char *first = strstr(output, "killed at "), *line = strstr(output, "lost at ");
    if (code == 0 || !first || !line || strstr(line + 1, "lost at ") || strstr(output, "collective failed"))
        fail_msg("%s with %d ranks ended with %d:\n%s", scenario, ranks, code, output);
    happened = atof(first + strlen("killed at "));
    told = atof(line + strlen("lost at "));
    if (told - happened > within) fail_msg("%s: told after %.3f s", scenario, told - happened);
    for (; *words; words++)
        if (!strstr(line, *words)) fail_msg("%s: \"%s\" is missing in: %s", scenario, *words, line);
}

static void test_collectives(void **state) {
    (void)state;
    succeed(4, "collectives");
}

static void test_sums(void **state) {
    (void)state;
    succeed(3, "sums");
}

static void test_reductions_have_the_bits_of_one_process(void **state) {
    (void)state;
    for (int ranks = 2; ranks <= 4; ranks++) succeed(ranks, "reductions");
    succeed(4, "large");
}

static void test_agreement(void **state) {
    (void)state;
    succeed(3, "agreement");
}

static void test_a_planted_divergence_is_found(void **state) {
    (void)state;
    succeed(3, "divergence");
}

static void test_a_killed_rank_is_named_at_once(void **state) {
    (void)state;
    loses(3, "die", 0.5,
          (const char *const[]){"rank 2 (", "died", "step 3 in the forward pass", "gradients", NULL});
    loses(2, "root-dies", 0.5, (const char *const[]){"rank 0 (", "died", "step 3 in", NULL});
}

static void test_a_stopped_rank_is_named(void **state) {
    (void)state;
    loses(3, "stop", 3, (const char *const[]){"rank 2 (", "silent", "step 3 in the forward pass", NULL});
    loses(2, "root-stops", 3,
          (const char *const[]){"rank 0 (", "silent", "step 3 in the forward pass", NULL});
}

static void test_a_rank_that_keeps_others_waiting_is_named(void **state) {
    (void)state;
    loses(3, "dawdle", 3, (const char *const[]){"rank 2 (", "does not come", "step 3 in a long sleep", NULL});
    loses(2, "root-dawdles", 3,
          (const char *const[]){"rank 0 (", "does not come", "step 3 in a long sleep", NULL});
}

static void test_a_failure_is_told_once(void **state) {
    (void)state;
    char output[16384];
    int code = launch(3, "give-up", output, sizeof output);
    const char *told = strstr(output, "told: record 7 is damaged");
    if (code == 0 || !told || strstr(output, "lost at") || strstr(output, "collective failed"))
        fail_msg("ended with %d:\n%s", code, output);
}

static void test_patience(void **state) {
    (void)state;
    succeed(2, "patience");
}

/* ---- a single process ---- */

static void test_alone(void **state) {
    (void)state;
    tn_comm *comm;
    tn_comm_config config = {.timeout = 2};
    assert_int_equal(tn_comm_open(&config, &comm), TN_OK);
    assert_int_equal(tn_comm_size(comm), 1);
    assert_string_equal(tn_comm_name(comm), "none");
    assert_int_equal(scenario_reductions(comm), 0);
    assert_int_equal(scenario_sums(comm), 0);
    assert_int_equal(scenario_collectives(comm), 0);
    tn_comm_phase(comm, 1, "alone");
    tn_fail(TN_ERR_IO, "kept");
    assert_int_equal(tn_comm_agree(comm, TN_ERR_IO, "one"), TN_ERR_IO);
    assert_string_equal(tn_error(), "kept");
    assert_true(tn_comm_waited(comm) == 0);
    tn_comm_close(comm, false);
    tn_comm_close(NULL, true);
}

static void test_one_of_many_without_transport(void **state) {
    (void)state;
    tn_comm *comm;
    tn_comm_config config = {.timeout = 2};
    setenv("OMPI_COMM_WORLD_SIZE", "1", 1);
    setenv("SLURM_STEP_NUM_TASKS", "4", 1); /* that of the job step in which mpirun runs */
    assert_int_equal(tn_comm_open(&config, &comm), TN_OK);
    tn_comm_close(comm, false);
    unsetenv("OMPI_COMM_WORLD_SIZE");
    unsetenv("SLURM_STEP_NUM_TASKS");
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_alone),
        cmocka_unit_test(test_one_of_many_without_transport),
        cmocka_unit_test(test_collectives),
        cmocka_unit_test(test_sums),
        cmocka_unit_test(test_reductions_have_the_bits_of_one_process),
        cmocka_unit_test(test_agreement),
        cmocka_unit_test(test_a_planted_divergence_is_found),
        cmocka_unit_test(test_a_killed_rank_is_named_at_once),
        cmocka_unit_test(test_a_stopped_rank_is_named),
        cmocka_unit_test(test_a_rank_that_keeps_others_waiting_is_named),
        cmocka_unit_test(test_a_failure_is_told_once),
        cmocka_unit_test(test_patience),
    };
    if (argc > 1) return run_rank(argv[1]);
    ssize_t length = readlink("/proc/self/exe", program, sizeof program - 1);
    if (length < 0) return 1;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
