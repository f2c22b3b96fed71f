/* The experiments that train and measure through the engine: fig1 (kept cells, verdicts, divergence) and bn
 * (growth of norms, fresh, from a checkpoint, over the epochs of runs). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>

#include "base/memory.h"
#include "taunet/run.h"
#include "tests/unit/temp_folder.h"
#include "theory/laboratory_parts.h"
#include "theory/linear_algebra.h"

#define DATA "synthetic:1x8x8:4:300"

static tn_options *options_of(const temp_folder *folder, const char *name, const char *const *pairs) {
    tn_options *o;
    assert_int_equal(tn_options_create("theory", &o), TN_OK);
    assert_int_equal(tn_options_set(o, "experiment", name), TN_OK);
    assert_int_equal(tn_options_set(o, "out", folder->path), TN_OK);
    for (int i = 0; pairs[i]; i += 2)
        if (tn_options_set(o, pairs[i], pairs[i + 1]) != TN_OK) fail_msg("%s", tn_error());
    return o;
}

/* Runs and publishes an experiment; *out (when not NULL) keeps the laboratory. */
static tn_status run(const tn_experiment *experiment, const tn_options *o, const tn_theory_hooks *hooks,
                     tn_lab **out) {
    tn_lab *lab;
    assert_int_equal(tn_lab_open_folder(o), TN_OK);
    assert_int_equal(tn_lab_create(experiment, o, hooks, &lab), TN_OK);
    tn_status status = experiment->run(lab, o);
    if (status == TN_OK) status = tn_lab_publish(lab);
    if (out && status == TN_OK)
        *out = lab;
    else
        tn_lab_free(lab);
    return status;
}

static tn_verdict verdict_of(const tn_lab *lab, const char *claim) {
    tn_verdict verdict = TN_INCONCLUSIVE;
    if (tn_lab_find_verdict(lab, claim, &verdict) != 1) fail_msg("no verdict, or several, on '%s'", claim);
    return verdict;
}

/* ---- fig1 ---- */

static const char *const small[] = {"data", DATA,   "depths", "3,100",   "width", "32", "steps",
                                    "40",   "seed", "4",      "threads", "2",     NULL};
static const char *const cells[] = {
    "fig1-tau-L-1-3.csv",    "fig1-tau-L-1-100.csv",    "fig1-tau-L-0.5-3.csv",   "fig1-tau-L-0.5-100.csv",
    "fig1-tau-L-0.25-3.csv", "fig1-tau-L-0.25-100.csv", "fig1-feedforward-3.csv", "fig1-feedforward-100.csv"};
#define CELLS ((int)(sizeof cells / sizeof cells[0]))

static void assert_same_files(const temp_folder *a, const temp_folder *b) {
    static const char *const more[] = {"cells.csv", "curves.csv", "verdicts.csv", "fig1.svg", "section.html"};
    for (int i = 0; i < CELLS + 5; i++) {
        const char *name = i < CELLS ? cells[i] : more[i - CELLS];
        char *text = temp_read(temp_path_of(a, name).text, NULL);
        assert_non_null(text);
        if (!temp_holds(temp_path_of(b, name).text, text)) fail_msg("%s differs", name);
        free(text);
    }
}

static void the_scalings_behave_as_in_the_figure(void **unused) {
    (void)unused;
    temp_folder folder = temp_folder_make();
    tn_options *o = options_of(&folder, "fig1", small);
    tn_lab *lab;
    assert_int_equal(tn_options_set(o, "steps", "120"), TN_OK);
    assert_int_equal(tn_options_set(o, "data", "synthetic:1x16x16:4:300"), TN_OK);
    if (run(&tn_experiment_fig1, o, NULL, &lab) != TN_OK) fail_msg("%s", tn_error());
    assert_int_equal(verdict_of(lab, "tau = 1/sqrt(L) trains at every depth"), TN_HOLDS);
    assert_int_equal(verdict_of(lab, "tau = 1/L trains at every depth"), TN_HOLDS);
    /* The control: the same criterion, with tau too large. */
    assert_int_equal(verdict_of(lab, "1/L^0.25 training diverges"), TN_HOLDS);
    assert_int_equal(tn_lab_find_verdict(lab, NULL, NULL), 6);
    char *text = temp_read(temp_path_of(&folder, cells[5]).text, NULL);
    assert_non_null(strstr(text, "first value that is not finite in step "));
    free(text);
    /* p, L, tau, first_loss, maximum_loss, first_nonfinite_step, loss_at_end, steps */
    const tn_number_table *table = lab->tables[0].table;
    assert_int_equal(tn_number_table_rows(table), CELLS);
    for (int i = 0; i < CELLS; i++) {
        bool diverged = tn_number_table_at(table, i, 0) == 0.25 && tn_number_table_at(table, i, 1) == 100;
        assert_int_equal(!isnan(tn_number_table_at(table, i, 5)), diverged);
        assert_int_equal(isnan(tn_number_table_at(table, i, 6)), diverged);
        assert_true(tn_number_table_at(table, i, 4) >= tn_number_table_at(table, i, 3));
        if (!diverged) assert_true(tn_number_table_at(table, i, 7) == 120);
    }
    tn_lab_free(lab);
    tn_options_free(o);
    temp_folder_remove(&folder);
}

/* The paper speaks of explosion at L = 30 with tau = 1/L^0.25: what happens is said, and is no verdict. */
static void what_happens_at_30_layers_is_said(void **unused) {
    (void)unused;
    temp_folder folder = temp_folder_make();
    static const char *const pairs[] = {
        "data", "synthetic:1x8x8:4:64", "depths", "3,30", "width", "8", "steps", "4", "threads", "1", NULL};
    tn_options *o = options_of(&folder, "fig1", pairs);
    tn_lab *lab;
    bool said = false;
    if (run(&tn_experiment_fig1, o, NULL, &lab) != TN_OK) fail_msg("%s", tn_error());
    for (size_t i = 0; i < lab->remark_count; i++)
        said |= strstr(lab->remarks[i], "1/L^0.25 at L = 30") && strstr(lab->remarks[i], "largest");
    assert_true(said);
    assert_int_equal(verdict_of(lab, "1/L^0.25 training diverges"), TN_INCONCLUSIVE); /* no L >= 100 */
    tn_lab_free(lab);
    tn_options_free(o);
    temp_folder_remove(&folder);
}

/* Asks for a stop after some lines of progress. */
typedef struct stopper {
    int lines;
    volatile sig_atomic_t stop;
} stopper;

static void count_line(void *context, const char *text, bool is_result) {
    stopper *s = context;
    (void)text, (void)is_result;
    if (--s->lines == 0) s->stop = 1;
}

static void a_stopped_grid_goes_on(void **unused) {
    (void)unused;
    temp_folder straight = temp_folder_make(), stopped = temp_folder_make();
    tn_options *a = options_of(&straight, "fig1", small), *b = options_of(&stopped, "fig1", small);
    assert_int_equal(run(&tn_experiment_fig1, a, NULL, NULL), TN_OK);
    stopper s = {.lines = 3};
    tn_theory_hooks hooks = {.line = count_line, .context = &s, .stop = &s.stop};
    assert_int_equal(run(&tn_experiment_fig1, b, &hooks, NULL), TN_ERR_STOPPED);
    assert_int_equal(temp_count(&stopped), 3);
    struct stat before, after;
    assert_int_equal(stat(temp_path_of(&stopped, cells[0]).text, &before), 0);
    assert_int_equal(tn_options_set(b, "threads", "3"), TN_OK);
    assert_int_equal(run(&tn_experiment_fig1, b, NULL, NULL), TN_OK);
    assert_int_equal(stat(temp_path_of(&stopped, cells[0]).text, &after), 0);
    assert_int_equal(before.st_ino, after.st_ino); /* not computed again */
    assert_same_files(&straight, &stopped);
    tn_options_free(a);
    tn_options_free(b);
    temp_folder_remove(&straight);
    temp_folder_remove(&stopped);
}

static void overwriting_computes_again(void **unused) {
    (void)unused;
    temp_folder folder = temp_folder_make(), other = temp_folder_make();
    tn_options *a = options_of(&folder, "fig1", small), *b = options_of(&other, "fig1", small);
    assert_int_equal(run(&tn_experiment_fig1, a, NULL, NULL), TN_OK);
    assert_int_equal(run(&tn_experiment_fig1, b, NULL, NULL), TN_OK);
    temp_write(temp_path_of(&folder, cells[0]).text, "nonsense", 8);
    a->overwrite = true;
    assert_int_equal(run(&tn_experiment_fig1, a, NULL, NULL), TN_OK);
    assert_same_files(&folder, &other);
    tn_options_free(a);
    tn_options_free(b);
    temp_folder_remove(&folder);
    temp_folder_remove(&other);
}

static void cells_of_other_settings_and_damaged_cells_are_refused(void **unused) {
    (void)unused;
    temp_folder folder = temp_folder_make();
    static const char *const tiny[] = {"data",  DATA, "depths",  "2", "width", "4",
                                       "steps", "3",  "threads", "1", NULL};
    tn_options *o = options_of(&folder, "fig1", tiny);
    const char *name = "fig1-tau-L-1-2.csv";
    assert_int_equal(run(&tn_experiment_fig1, o, NULL, NULL), TN_OK);
    assert_int_equal(unlink(temp_path_of(&folder, "section.html").text), 0);
    static const char *const changes[][2] = {
        {"seed", "1"}, {"steps", "4"}, {"width", "5"}, {"data", "synthetic:1x8x8:4:301"}};
    for (int i = 0; i < 4; i++) {
        tn_options *changed = options_of(&folder, "fig1", tiny);
        assert_int_equal(tn_options_set(changed, changes[i][0], changes[i][1]), TN_OK);
        assert_int_equal(run(&tn_experiment_fig1, changed, NULL, NULL), TN_ERR_USAGE);
        assert_non_null(strstr(tn_error(), "other settings"));
        tn_options_free(changed);
    }
    size_t count = 0;
    char *text = temp_read(temp_path_of(&folder, name).text, &count);
    const char *header = strchr(text, '\n');
    assert_non_null(header);
    for (size_t cut = (size_t)(header - text) + 1; cut < count; cut += 3) {
        temp_write(temp_path_of(&folder, name).text, text, cut);
        assert_int_equal(run(&tn_experiment_fig1, o, NULL, NULL), TN_ERR_DATA);
        assert_non_null(strstr(tn_error(), name));
    }
    temp_write(temp_path_of(&folder, name).text, text, count);
    assert_int_equal(run(&tn_experiment_fig1, o, NULL, NULL), TN_OK);
    free(text);
    tn_options_free(o);
    temp_folder_remove(&folder);
}

/* ---- bn ---- */

static void norms_grow_with_batch_norm_and_not_with_tau(void **unused) {
    (void)unused;
    temp_folder folder = temp_folder_make();
    static const char *const pairs[] = {"depths", "56", "samples", "8", NULL};
    tn_options *o = options_of(&folder, "bn", pairs);
    tn_lab *lab;
    if (run(&tn_experiment_bn, o, NULL, &lab) != TN_OK) fail_msg("%s", tn_error());
    assert_int_equal(verdict_of(lab, "Claim 1: in ResNet-56, bn"), TN_HOLDS);
    assert_int_equal(verdict_of(lab, "Figure 3: in ResNet-56, bn-tau"), TN_HOLDS);
    assert_int_equal(tn_lab_find_verdict(lab, NULL, NULL), 2);
    /* depth, tau, stage, first, last, ratio, exponent, half_width */
    const tn_number_table *stages = lab->tables[1].table;
    assert_int_equal(tn_number_table_rows(stages), 6);
    for (int i = 0; i < 6; i++) {
        assert_true(tn_number_table_at(stages, i, 1) == i / 3);
        double exponent = tn_number_table_at(stages, i, 6);
        assert_true(i < 3 ? exponent > 0.8 && exponent < 1.2 : exponent < 0.5);
    }
    assert_int_equal(tn_number_table_rows(lab->tables[0].table), 54);
    tn_lab_free(lab);
    tn_options_free(o);
    temp_folder_remove(&folder);
}

static temp_path write_network(const temp_folder *folder, const char *const *pairs) {
    tn_options *o;
    temp_path path = temp_path_of(folder, "network.safetensors");
    assert_int_equal(tn_options_create("init", &o), TN_OK);
    assert_int_equal(tn_options_set(o, "out", path.text), TN_OK);
    for (int i = 0; pairs[i]; i += 2) assert_int_equal(tn_options_set(o, pairs[i], pairs[i + 1]), TN_OK);
    if (tn_run_init(o) != TN_OK) fail_msg("%s", tn_error());
    tn_options_free(o);
    return path;
}

/* A fresh network and the file it was written to have the same norms. */
static void a_checkpoint_gives_the_norms_of_its_network(void **unused) {
    (void)unused;
    temp_folder folder = temp_folder_make(), results = temp_folder_make();
    static const char *const variants[] = {"bn", "bn-tau"};
    static const char *const fresh[] = {"depths", "14", "samples", "4", "seed", "6", NULL};
    tn_options *o = options_of(&results, "bn", fresh);
    tn_lab *expected;
    assert_int_equal(run(&tn_experiment_bn, o, NULL, &expected), TN_OK);
    for (int v = 0; v < 2; v++) {
        const char *const model[] = {"model", "resnet14", "variant", variants[v], "seed", "6", NULL};
        temp_path path = write_network(&folder, model);
        const char *const pairs[] = {"checkpoint", path.text,   "samples", "4", "seed",
                                     "6",          "overwrite", "yes",     NULL};
        tn_options *stored = options_of(&results, "bn", pairs);
        tn_lab *lab;
        if (run(&tn_experiment_bn, stored, NULL, &lab) != TN_OK) fail_msg("%s", tn_error());
        assert_int_equal(tn_number_table_rows(lab->tables[0].table), 6);
        for (int row = 0; row < 6; row++)
            for (int column = 4; column < 7; column++)
                assert_true(tn_number_table_at(lab->tables[0].table, row, column) ==
                            tn_number_table_at(expected->tables[0].table, 6 * v + row, column));
        tn_lab_free(lab);
        tn_options_free(stored);
    }
    tn_lab_free(expected);
    tn_options_free(o);
    temp_folder_remove(&folder);
    temp_folder_remove(&results);
}

static void other_networks_and_files_are_refused(void **unused) {
    (void)unused;
    temp_folder folder = temp_folder_make(), results = temp_folder_make();
    static const char *const model[] = {"model", "fcresnet", "depth", "3", "width", "8", NULL};
    temp_path path = write_network(&folder, model);
    const char *const pairs[] = {"checkpoint", path.text, "samples", "4", NULL};
    tn_options *o = options_of(&results, "bn", pairs);
    assert_int_equal(run(&tn_experiment_bn, o, NULL, NULL), TN_ERR_USAGE);
    temp_write(path.text, "\x02\0\0\0\0\0\0\0{}", 10);
    assert_int_equal(run(&tn_experiment_bn, o, NULL, NULL), TN_ERR_DATA);
    assert_int_equal(unlink(path.text), 0);
    assert_int_equal(run(&tn_experiment_bn, o, NULL, NULL), TN_ERR_IO);
    tn_options_free(o);
    temp_folder_remove(&folder);
    temp_folder_remove(&results);
}

/* ---- bn over the epochs of runs ---- */

/* The folder of a run of 12 blocks in three stages whose norms are those of power laws: squared norms grow in
 * each stage as the block's number to the power exponents[epoch + 1]; a negative one stands for no number.
 * `cut` rows of the last epoch are missing. */
static temp_path write_run(const temp_folder *folder, const char *variant, const double *exponents,
                           int epochs, int cut) {
    temp_path path = temp_path_of(folder, variant);
    char file[5000], text[16000];
    assert_int_equal(mkdir(path.text, 0700), 0);
    snprintf(file, sizeof file, "%s/config.toml", path.text);
    int used = snprintf(text, sizeof text, "model = \"resnet26\"\nvariant = \"%.6s\"\n", variant);
    temp_write(file, text, (size_t)used);
    used = snprintf(text, sizeof text, "epoch,step,block,layer,output_norm,gradient_norm\n");
    for (int e = 0; e < epochs; e++)
        for (int b = 0; b < (e + 1 < epochs ? 13 : 13 - cut); b++) {
            char layer[32] = "conv1", norm[32] = "";
            if (b) snprintf(layer, sizeof layer, "layer%d.%d.bn2", (b - 1) / 4 + 1, (b - 1) % 4);
            double number = b ? (b - 1) % 4 + 1 : 1;
            if (exponents[e] >= 0) snprintf(norm, sizeof norm, "%.9g", 3 * pow(number, 0.5 * exponents[e]));
            used += snprintf(text + used, sizeof text - (size_t)used, "%d,%d,%d,%s,%s,0.5\n", e - 1, 8 * e, b,
                             layer, norm);
        }
    snprintf(file, sizeof file, "%s/probes.csv", path.text);
    temp_write(file, text, (size_t)used);
    return path;
}

static tn_status judge(const temp_folder *results, const char *first, const char *second, tn_lab **lab) {
    const char *const pairs[] = {"runs", first, "overwrite", "yes", second ? "runs" : NULL, second, NULL};
    tn_options *o = options_of(results, "bn", pairs);
    tn_status status = run(&tn_experiment_bn, o, NULL, lab);
    if (lab && status == TN_OK) (*lab)->options = NULL;
    tn_options_free(o);
    return status;
}

static void epochs_of_runs_are_judged(void **unused) {
    (void)unused;
    temp_folder folder = temp_folder_make(), results = temp_folder_make();
    temp_path bn = write_run(&folder, "bn", (const double[]){1, 1.1, 1, 0}, 4, 2);
    temp_path flat = write_run(&folder, "bn-tau", (const double[]){0.2, -1, 0.1}, 3, 0);
    tn_lab *lab;
    if (judge(&results, bn.text, flat.text, &lab) != TN_OK) fail_msg("%s", tn_error());
    /* The last epoch of the first run would be flat: it is not finished and does not count. */
    assert_int_equal(verdict_of(lab, "Claim 1: in resnet26, bn, run 1, at the start"), TN_HOLDS);
    assert_int_equal(verdict_of(lab, "Claim 1: in resnet26, bn, run 1, after epochs 1 to 2"), TN_HOLDS);
    assert_int_equal(verdict_of(lab, "Figure 3: in resnet26, bn-tau, run 2, at the start"), TN_HOLDS);
    assert_int_equal(verdict_of(lab, "Figure 3: in resnet26, bn-tau, run 2, after epoch 2"), TN_HOLDS);
    assert_int_equal(tn_lab_find_verdict(lab, NULL, NULL), 4);
    bool told = false;
    for (size_t i = 0; i < lab->remark_count; i++) told |= !!strstr(lab->remarks[i], "after epoch 1 are not");
    assert_true(told);
    const tn_number_table *blocks = lab->tables[0].table, *stages = lab->tables[1].table;
    assert_int_equal(tn_number_table_rows(blocks), 6 * 12);
    assert_int_equal(tn_number_table_rows(stages), 6 * 3);
    for (int i = 0; i < 9; i++) /* columns ratio, exponent, run, epoch */
        assert_true(fabs(tn_number_table_at(stages, i, 6) - (i / 3 == 1 ? 1.1 : 1)) < 1e-6 &&
                    fabs(tn_number_table_at(stages, i, 5) - pow(4, i / 3 == 1 ? 0.55 : 0.5)) < 1e-6 &&
                    tn_number_table_at(stages, i, 8) == 1 && tn_number_table_at(stages, i, 9) == i / 3 - 1);
    assert_true(tn_number_table_at(blocks, 71, 7) == 2 && tn_number_table_at(blocks, 71, 8) == 1);
    tn_lab_free(lab);
    temp_folder_remove(&folder);
    temp_folder_remove(&results);
}

/* The other way round: growth with tau and none without it. */
static void growth_in_the_wrong_run_is_seen(void **unused) {
    (void)unused;
    temp_folder folder = temp_folder_make(), results = temp_folder_make();
    temp_path bn = write_run(&folder, "bn", (const double[]){1, 0.2}, 2, 0);
    temp_path grows = write_run(&folder, "bn-tau", (const double[]){0.1, 1}, 2, 0);
    tn_lab *lab;
    assert_int_equal(judge(&results, bn.text, grows.text, &lab), TN_OK);
    assert_int_equal(verdict_of(lab, "run 1, at the start"), TN_HOLDS);
    assert_int_equal(verdict_of(lab, "run 1, after epoch 1"), TN_DOES_NOT_HOLD);
    assert_int_equal(verdict_of(lab, "run 2, at the start"), TN_HOLDS);
    assert_int_equal(verdict_of(lab, "run 2, after epoch 1"), TN_DOES_NOT_HOLD);
    tn_lab_free(lab);
    temp_folder_remove(&folder);
    temp_folder_remove(&results);
}

static void folders_that_no_run_left_are_refused(void **unused) {
    (void)unused;
    temp_folder folder = temp_folder_make(), results = temp_folder_make();
    temp_path path = write_run(&folder, "bn", (const double[]){1, 1}, 2, 0);
    char file[5000];
    size_t size = 0;
    snprintf(file, sizeof file, "%s/probes.csv", path.text);
    char *text = temp_read(file, &size), *at = strstr(text, "0,8,5,"); /* a block of the second epoch */
    assert_non_null(at);
    at[4] = '6';
    temp_write(file, text, size);
    assert_int_equal(judge(&results, path.text, NULL, NULL), TN_ERR_DATA);
    assert_non_null(strstr(tn_error(), "probes.csv:20"));
    at[4] = '5';
    temp_write(file, text, strcspn(text, "\n") + 1); /* nothing measured yet */
    assert_int_equal(judge(&results, path.text, NULL, NULL), TN_ERR_DATA);
    for (char *layer = strchr(text, '\n'); (layer = strstr(layer, "layer"));) memcpy(layer, "other", 5);
    temp_write(file, text, size);
    assert_int_equal(judge(&results, path.text, NULL, NULL), TN_ERR_USAGE); /* no residual blocks */
    assert_int_equal(unlink(file), 0);
    assert_int_equal(judge(&results, path.text, NULL, NULL), TN_ERR_IO);
    assert_non_null(strstr(tn_error(), "--probe norms"));
    free(text);
    temp_folder_remove(&folder);
    temp_folder_remove(&results);
}

int main(void) {
    if (tn_blas_open() != TN_OK) return 1;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_scalings_behave_as_in_the_figure),
        cmocka_unit_test(what_happens_at_30_layers_is_said),
        cmocka_unit_test(a_stopped_grid_goes_on),
        cmocka_unit_test(overwriting_computes_again),
        cmocka_unit_test(cells_of_other_settings_and_damaged_cells_are_refused),
        cmocka_unit_test(norms_grow_with_batch_norm_and_not_with_tau),
        cmocka_unit_test(a_checkpoint_gives_the_norms_of_its_network),
        cmocka_unit_test(other_networks_and_files_are_refused),
        cmocka_unit_test(epochs_of_runs_are_judged),
        cmocka_unit_test(growth_in_the_wrong_run_is_seen),
        cmocka_unit_test(folders_that_no_run_left_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
