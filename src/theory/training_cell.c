#include "theory/training_cell.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/memory.h"
#include "io/atomic_file.h"
#include "taunet/engine.h"

enum { PATH_ROOM = 4400, LINE_ROOM = 512 };

void tn_cell_free(tn_cell *cell) {
    tn_free(cell->losses);
    *cell = (tn_cell){0};
}

/* ---- training ---- */

typedef struct training {
    tn_model *model;
    tn_engine *engine;
    tn_loader *loader;
} training;

static tn_status open_training(const tn_cell_plan *p, training *t) {
    tn_dataset_info data = tn_dataset_describe(p->dataset);
    tn_model_config model = {.model = p->model,
                             .tau = p->tau,
                             .channels = data.channels,
                             .height = data.height,
                             .width = data.width,
                             .classes = data.classes,
                             .hidden = p->width,
                             .depth = p->depth};
    TN_TRY(tn_model_build(&model, &t->model));
    tn_engine_config engine = {.threads = p->threads, .max_batch = p->batch, .training = true};
    TN_TRY(tn_engine_create(t->model, &engine, &t->engine));
    TN_TRY(tn_engine_initialise(t->engine, p->seed));
    tn_loader_config loader = {.split = TN_SPLIT_TRAIN, .batch = p->batch, .seed = p->seed, .shuffle = true};
    return tn_loader_open(p->dataset, &loader, &t->loader);
}

static tn_status train_steps(const tn_lab *lab, const tn_cell_plan *p, const training *t, tn_cell *cell) {
    tn_sgd sgd = {.lr = p->lr};
    for (int step = 0; step < p->steps; step++) {
        const tn_batch *batch;
        tn_result result;
        TN_TRY(tn_lab_check_stop(lab));
        TN_TRY(tn_loader_next(t->loader, &batch, NULL));
        tn_status status = tn_engine_gradients(t->engine, batch, &result);
        if (status == TN_OK) {
            cell->losses[step] = result.loss / result.rows;
            cell->finished = step + 1;
            status = tn_engine_update(t->engine, &sgd);
        }
        if (status == TN_ERR_DIVERGED) {
            cell->nonfinite = step + 1;
            snprintf(cell->message, sizeof cell->message, "%s", tn_error());
            return TN_OK;
        }
        TN_TRY(status);
    }
    return TN_OK;
}

tn_status tn_cell_train(tn_lab *lab, const tn_cell_plan *plan, tn_cell *out) {
    training t = {0};
    *out = (tn_cell){0};
    tn_status status = tn_alloc(&out->losses, (size_t)plan->steps, sizeof(double), "losses");
    if (status == TN_OK) status = open_training(plan, &t);
    if (status == TN_OK) status = train_steps(lab, plan, &t, out);
    tn_loader_close(t.loader);
    tn_engine_free(t.engine);
    tn_model_free(t.model);
    if (status != TN_OK) tn_cell_free(out);
    return status;
}

/* ---- files ----
 *
 *   # SETTINGS
 *   step,loss
 *   1,2.5
 *   ...
 *   # end N, first value that is not finite in step M: MESSAGE */

static tn_status path_of(const tn_lab *lab, const tn_cell_plan *plan, char *out) {
    int size = snprintf(out, PATH_ROOM, "%s/%s.csv", tn_lab_folder(lab), plan->name);
    return size < PATH_ROOM ? TN_OK : tn_fail(TN_ERR_USAGE, "--out: the name of the folder is too long");
}

/* Everything that the losses depend on, in one line. */
static tn_status settings_of(const tn_cell_plan *p, char *out) {
    int size = snprintf(
        out, LINE_ROOM, "# %s L=%d m=%d tau=%s data=%s batch=%d steps=%d lr=%.9g seed=%llu version=%s",
        p->model, p->depth, p->width, *p->tau ? p->tau : "none", tn_make_legible(p->data_spec).text, p->batch,
        p->steps, p->lr, (unsigned long long)p->seed, tn_version());
    TN_ASSERT(size < LINE_ROOM);
    return TN_OK;
}

static tn_status print_cell(const tn_cell_plan *plan, const tn_cell *cell, tn_string *out) {
    char settings[LINE_ROOM];
    TN_TRY(settings_of(plan, settings));
    TN_TRY(tn_string_printf(out, "%s\nstep,loss\n", settings));
    for (int i = 0; i < cell->finished; i++)
        TN_TRY(tn_string_printf(out, "%d,%.17g\n", i + 1, cell->losses[i]));
    if (!cell->nonfinite) return tn_string_printf(out, "# end %d\n", cell->finished);
    return tn_string_printf(out, "# end %d, first value that is not finite in step %d: %s\n", cell->finished,
                            cell->nonfinite, cell->message);
}

tn_status tn_cell_save(const tn_lab *lab, const tn_cell_plan *plan, const tn_cell *cell) {
    char path[PATH_ROOM];
    tn_string text = {0};
    tn_atomic_file *file;
    TN_TRY(path_of(lab, plan, path));
    tn_status status = print_cell(plan, cell, &text);
    if (status == TN_OK) status = tn_atomic_begin(path, &file);
    if (status == TN_OK) {
        status = tn_atomic_write(file, text.data, text.length);
        if (status == TN_OK)
            status = tn_atomic_commit(file);
        else
            tn_atomic_abort(file);
    }
    tn_string_free(&text);
    return status;
}

/* The last line. */
static bool read_end(const char *line, tn_cell *cell) {
    int finished, used = 0;
    if (sscanf(line, "# end %d%n", &finished, &used) != 1 || finished != cell->finished) return false;
    line += used;
    if (!strcmp(line, "\n")) return true;
    if (sscanf(line, ", first value that is not finite in step %d: %n", &cell->nonfinite, &used) != 1)
        return false;
    snprintf(cell->message, sizeof cell->message, "%.*s", (int)strcspn(line + used, "\n"), line + used);
    return cell->nonfinite == finished || cell->nonfinite == finished + 1;
}

static tn_status read_cell(FILE *file, const char *path, const tn_cell_plan *plan, tn_cell *cell) {
    char line[LINE_ROOM], settings[LINE_ROOM];
    TN_TRY(settings_of(plan, settings));
    if (!fgets(line, sizeof line, file)) line[0] = 0;
    line[strcspn(line, "\n")] = 0;
    if (strcmp(line, settings) != 0)
        return tn_fail(TN_ERR_USAGE, "%s was made with other settings; give another --out, or --overwrite",
                       path);
    if (!fgets(line, sizeof line, file) || strcmp(line, "step,loss\n") != 0) line[0] = 0;
    while (line[0] && fgets(line, sizeof line, file)) {
        int step;
        char *end;
        if (line[0] == '#') {
            if (read_end(line, cell) && (cell->nonfinite || cell->finished == plan->steps)) return TN_OK;
            break;
        }
        step = (int)strtol(line, &end, 10);
        if (*end != ',' || step != cell->finished + 1 || step > plan->steps) break;
        cell->losses[cell->finished++] = strtod(end + 1, &end);
        if (*end != '\n') break;
    }
    return tn_fail(TN_ERR_DATA, "%s is damaged: remove it and run again", path);
}

tn_status tn_cell_load(const tn_lab *lab, const tn_cell_plan *plan, tn_cell *out, bool *found) {
    char path[PATH_ROOM];
    *found = false;
    *out = (tn_cell){0};
    TN_TRY(path_of(lab, plan, path));
    FILE *file = fopen(path, "r");
    if (!file && errno == ENOENT) return TN_OK;
    if (!file) return tn_fail(TN_ERR_IO, "cannot read %s: %s", path, strerror(errno));
    tn_status status = tn_alloc(&out->losses, (size_t)plan->steps, sizeof(double), "losses");
    if (status == TN_OK) status = read_cell(file, path, plan, out);
    fclose(file); /* was only read */
    *found = status == TN_OK;
    if (status != TN_OK) tn_cell_free(out);
    return status;
}

tn_status tn_cell_remove(const tn_lab *lab, const tn_cell_plan *plan) {
    char path[PATH_ROOM];
    TN_TRY(path_of(lab, plan, path));
    if (unlink(path) == 0 || errno == ENOENT) return TN_OK;
    return tn_fail(TN_ERR_IO, "cannot remove %s: %s", path, strerror(errno));
}
