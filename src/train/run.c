/* A training run: batches to the engine, schedule, logs, evaluation and checkpoints (contracts.md, "A run's
 * folder"). */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/memory.h"
#include "base/schedule.h"
#include "model/graph.h"
#include "taunet/run.h"
#include "train/bad_samples.h"
#include "train/pipeline.h"
#include "train/probe_log.h"
#include "train/run_log.h"
#include "train/setup.h"
#include "train/team.h"

/* Steps of the process that a --profile shows: the first few are not typical. */
#define PROFILE_FIRST 3
#define PROFILE_STEPS 3
/* Steps between comparisons of the processes' weights. */
#define CHECK_STEPS 100

typedef struct run {
    tn_options *options;
    const tn_run_hooks *hooks;
    tn_comm *comm;
    bool leads;  /* rank 0, which writes and reports */
    bool ending; /* all processes have left the steps, for the same reason */
    int stop;    /* the signal that all processes stop at */
    tn_dataset *dataset;
    tn_dataset_info data;
    float mean[TN_CHANNELS_MAX], std[TN_CHANNELS_MAX];
    tn_model *model;
    tn_engine *engine;
    tn_loader *train, *val;
    tn_schedule schedule;
    tn_run_folder folder;
    tn_probe_log *probe; /* or NULL */
    tn_pipeline pipeline;
    tn_position position;
    tn_event event;
    int batches;  /* in an epoch */
    long steps;   /* in all */
    int tau;      /* parameter, or -1 */
    bool resumed; /* from a checkpoint */
    double started, epoch_started, train_seconds, epoch_comm_wait;
    long first_step, epoch_images; /* of this process; of this epoch in this process */
    long profile_first;            /* step of this process at which the timeline starts, -1 before */
    bool profiled;
} run;

static void send(run *r, tn_event_kind kind, const char *text) {
    r->event.kind = kind;
    r->event.text = text;
    if (r->leads && r->hooks && r->hooks->event) r->hooks->event(r->hooks->context, &r->event);
}

/* The signal that came to any of the processes. */
static tn_status ask_stop(void *context, int *out) {
    run *r = context;
    int mine = r->hooks && r->hooks->stop ? (int)*r->hooks->stop : 0;
    TN_TRY(tn_comm_any(r->comm, mine, &r->stop, "signals"));
    if (r->stop && r->hooks && r->hooks->stop) *r->hooks->stop = r->stop;
    *out = r->stop;
    return TN_OK;
}

/* ---- setting up ---- */

static tn_status open_dataset(run *r) {
    const tn_options *o = r->options;
    TN_TRY(tn_dataset_open_sized(o->data, o->image_size, o->resize, &r->dataset));
    r->data = tn_dataset_describe(r->dataset);
    return tn_setup_normalisation(r->options, &r->data, r->mean, r->std);
}

/* Behind the engine, which knows the chunks that batches are dealt in. */
static tn_status open_loaders(run *r) {
    const tn_options *o = r->options;
    int ranks = tn_comm_size(r->comm) > 1 ? tn_comm_size(r->comm) : 0;
    tn_loader_config train = {.split = TN_SPLIT_TRAIN,
                              .batch = o->batch,
                              .seed = o->seed,
                              .shuffle = o->shuffle,
                              .augment = o->augment == TN_AUGMENT_STANDARD,
                              .mixup = o->mixup,
                              .label_smoothing = o->label_smoothing,
                              .limit_batches = o->limit_batches,
                              .chunk_rows = tn_engine_chunk_rows(r->engine),
                              .rank = tn_comm_rank(r->comm),
                              .ranks = ranks,
                              .mean = r->mean,
                              .std = r->std,
                              .threads = tn_team_threads(r->comm, o->threads),
                              .skip_bad = o->on_bad_sample == TN_BAD_SAMPLE_SKIP};
    TN_TRY(tn_setup_loader(r->dataset, &train, r->engine, &r->train));
    tn_loader_config val = {.split = TN_SPLIT_VAL,
                            .batch = o->batch < r->data.val_count ? o->batch : r->data.val_count,
                            .limit_batches = o->limit_batches,
                            .chunk_rows = train.chunk_rows,
                            .rank = train.rank,
                            .ranks = ranks,
                            .mean = r->mean,
                            .std = r->std,
                            .threads = train.threads,
                            .skip_bad = o->on_bad_sample == TN_BAD_SAMPLE_SKIP};
    TN_TRY(tn_setup_loader(r->dataset, &val, r->engine, &r->val));
    r->batches = tn_loader_batches(r->train);
    r->steps = o->steps > 0 ? o->steps : (long)o->epochs * r->batches;
    return TN_OK;
}

static tn_status open_engine(run *r) {
    const tn_options *o = r->options;
    TN_TRY(tn_setup_check_device(o));
    tn_input_shape input = {r->data.channels, r->data.height, r->data.width};
    TN_TRY(tn_setup_model(o, input, r->data.classes, &r->model));
    tn_engine_config config = {.device = o->device,
                               .precision = o->precision,
                               .threads = tn_team_threads(r->comm, o->threads),
                               .micro_batch = o->micro_batch,
                               .max_batch = o->batch,
                               .comm = r->comm,
                               .sync_bn = o->sync_bn,
                               .training = true,
                               .recompute = o->recompute,
                               .separate_layers = o->probe[0] != '\0',
                               .average = o->ema};
    TN_TRY(tn_setup_engine(r->model, &config, &r->engine));
    r->tau = tn_engine_find_parameter(r->engine, "tau");
    tn_engine_watch(r->engine, r->tau);
    return tn_engine_initialise(r->engine, o->seed);
}

static tn_status load_weights(run *r, const char *path, bool resume) {
    tn_safetensors *file;
    TN_TRY(tn_safetensors_open(path, &file));
    tn_status status = tn_checkpoint_load(r->engine, file, path, resume);
    if (status == TN_OK && resume) status = tn_checkpoint_position(file, path, &r->position);
    tn_safetensors_close(file);
    return status;
}

/* Rank 0's part of the state: what the folder holds, or fresh weights. */
static tn_status load_state(run *r) {
    char path[TN_RUN_PATH], note[128];
    r->position = (tn_position){.best_top1 = -1, .best_epoch = -1, .train_images = r->data.train_count};
    if (r->folder.has_checkpoint) {
        TN_TRY(load_weights(r, tn_run_folder_file(&r->folder, "last.safetensors", path), true));
        if (r->position.train_images != r->data.train_count)
            return tn_fail(TN_ERR_DATA,
                           "--data %s: %d training images, but the run in %s had %ld; resume with those",
                           r->options->data, r->data.train_count, r->folder.path, r->position.train_images);
        r->resumed = true;
        snprintf(note, sizeof note, "resuming at step %ld of %ld", r->position.step, r->steps);
        send(r, TN_EVENT_NOTE, note);
    } else if (r->options->init[0]) {
        TN_TRY(load_weights(r, r->options->init, false));
    }
    return TN_OK;
}

/* Files are opened when all processes are ready. */
static tn_status open_folder(run *r) {
    if (!r->leads) return TN_OK;
    if (!r->folder.has_checkpoint) TN_TRY(tn_run_folder_clear(&r->folder));
    TN_TRY(tn_run_folder_write_config(&r->folder, r->options));
    return tn_run_folder_open_logs(&r->folder, &r->position);
}

static tn_status open_probe(run *r) {
    tn_probe_source source = {.options = r->options,
                              .dataset = r->dataset,
                              .mean = r->mean,
                              .std = r->std,
                              .position = &r->position,
                              .rank = tn_comm_rank(r->comm),
                              .ranks = tn_comm_size(r->comm) > 1 ? tn_comm_size(r->comm) : 0};
    if (!r->options->probe[0]) return TN_OK;
    return tn_probe_log_open(r->leads ? &r->folder : NULL, &source, r->engine, &r->probe);
}

static tn_status open_state(run *r) {
    TN_TRY(tn_comm_agree(r->comm, r->leads ? load_state(r) : TN_OK, "start"));
    TN_TRY(tn_comm_broadcast(r->comm, &r->position, sizeof r->position, "start"));
    TN_TRY(tn_engine_broadcast(r->engine));
    r->event = (tn_event){.steps = r->steps, .batches = r->batches, .best_top1 = r->position.best_top1};
    r->event.ranks = tn_comm_size(r->comm);
    TN_TRY(
        tn_loader_seek(r->train, (int)(r->position.step / r->batches), (int)(r->position.step % r->batches)));
    TN_TRY(tn_comm_agree(r->comm, open_folder(r), "start"));
    return tn_comm_agree(r->comm, open_probe(r), "start");
}

/* ---- log lines ---- */

static double tau_of(run *r) {
    float value;
    if (r->model->tau_constant) return r->model->tau;
    if (r->tau < 0 || tn_engine_get(r->engine, TN_VALUES, r->tau, &value) != TN_OK) return NAN;
    return (double)value;
}

static tn_status log_start(run *r) {
    const tn_options *o = r->options;
    if (!r->leads) return TN_OK;
    json_t *line = json_object();
    tn_run_log_put(line, "event", json_string("start"));
    tn_run_log_put(line, "version", json_string(tn_version()));
    tn_run_log_put(line, "model", json_string(o->model));
    tn_run_log_put(line, "variant", json_string(o->variant));
    tn_run_log_put(line, "tau_expression", json_string(o->tau));
    tn_run_log_put(line, "data", json_string(o->data));
    tn_run_log_put(line, "dataset", json_string(r->data.name));
    tn_run_log_put(line, "train_images", json_integer(r->data.train_count));
    tn_run_log_put(line, "val_images", json_integer(r->data.val_count));
    tn_run_log_put(line, "classes", json_integer(r->data.classes));
    tn_run_log_put(line, "batch", json_integer(o->batch));
    tn_run_log_put(line, "steps", json_integer(r->steps));
    tn_run_log_put(line, "steps_per_epoch", json_integer(r->batches));
    tn_run_log_put(line, "lr", tn_json_real(o->lr));
    tn_run_log_put(line, "momentum", tn_json_real(o->momentum));
    tn_run_log_put(line, "weight_decay", tn_json_real(o->weight_decay));
    tn_run_log_put(line, "scalar_lr", tn_json_real(o->scalar_lr));
    tn_run_log_put(line, "schedule", json_string(o->schedule));
    tn_run_log_put(line, "seed", json_integer((json_int_t)o->seed));
    tn_run_log_put(line, "device", json_string(tn_engine_device(r->engine)));
    tn_run_log_put(line, "threads", json_integer(tn_engine_threads(r->engine)));
    tn_run_log_put(line, "ranks", json_integer(tn_comm_size(r->comm)));
    tn_run_log_put(line, "chunk", json_integer(tn_engine_chunk_rows(r->engine)));
    tn_run_log_put(line, "layers", json_integer(tn_model_layer_count(r->model)));
    tn_run_log_put(line, "blocks", json_integer(r->model->blocks));
    tn_run_log_put(line, "parameters", json_integer((json_int_t)tn_model_parameter_count(r->model)));
    tn_run_log_put(line, "multiply_adds", tn_json_real(tn_model_multiply_adds(r->model)));
    tn_run_log_put(line, "peak_bytes", json_integer((json_int_t)tn_engine_bytes(r->engine)));
    return tn_run_folder_log(&r->folder, line);
}

static tn_status log_end(run *r, const char *status, const char *message) {
    char note[TN_BAD_SAMPLES_NOTE];
    if (!r->leads) return TN_OK;
    json_t *line = json_object();
    tn_run_log_put(line, "event", json_string("end"));
    tn_run_log_put(line, "status", json_string(status));
    tn_run_log_put(line, "step", json_integer(r->position.step));
    if (message) tn_run_log_put(line, "message", json_string(message));
    if (r->position.best_epoch >= 0) {
        tn_run_log_put(line, "best_top1", tn_json_real(r->position.best_top1));
        tn_run_log_put(line, "best_epoch", json_integer(r->position.best_epoch));
    }
    if (r->options->on_bad_sample == TN_BAD_SAMPLE_SKIP) {
        tn_bad_samples_put(line, r->train, r->val, note);
        if (note[0]) send(r, TN_EVENT_NOTE, note);
        r->event.text = NULL;
    }
    return tn_run_folder_log(&r->folder, line);
}

/* ---- checkpoints ---- */

/* With --ema: whether evaluation and saving see the averaged weights. A failure before stays what is told. */
static tn_status use_average(run *r, bool use, tn_status before) {
    if (r->options->ema == 0) return before;
    tn_status status = tn_engine_use_average(r->engine, use);
    return before == TN_OK ? status : before;
}

static tn_status save(run *r, const char *name, bool whole) {
    char path[TN_RUN_PATH];
    double start = tn_now();
    tn_checkpoint_info info = {.options = r->options,
                               .input = {r->data.channels, r->data.height, r->data.width},
                               .classes = r->data.classes,
                               .dataset = r->data.name,
                               .mean = r->mean,
                               .std = r->std};
    if (whole) TN_TRY(tn_team_check_state(r->comm, r->engine, r->position.step));
    if (!r->leads) return TN_OK;
    tn_comm_phase(r->comm, r->position.step, "a checkpoint");
    if (whole) TN_TRY(tn_probe_log_sync(r->probe));
    if (whole) TN_TRY(tn_run_folder_sync(&r->folder, &r->position));
    if (!whole) TN_TRY(use_average(r, true, TN_OK));
    tn_status status = tn_checkpoint_save(r->engine, &info, whole ? &r->position : NULL,
                                          tn_run_folder_file(&r->folder, name, path));
    TN_TRY(whole ? status : use_average(r, false, status));
    tn_engine_trace_add(r->engine, "checkpoint", start, tn_now());
    return TN_OK;
}

/* Checkpoints at the end of an epoch whose numbers are in r->event. */
static tn_status save_epoch(run *r) {
    char name[64];
    const tn_options *o = r->options;
    int epoch = r->event.epoch;
    if (r->event.evaluated && r->event.val_top1 > r->position.best_top1) {
        r->position.best_top1 = r->event.best_top1 = r->event.val_top1;
        r->position.best_epoch = epoch;
        TN_TRY(save(r, "best.safetensors", false));
    }
    bool last = r->position.step >= r->steps;
    if (o->keep > 0 && ((epoch + 1) % o->save_every == 0 || last)) {
        snprintf(name, sizeof name, "epoch-%04d.safetensors", epoch);
        TN_TRY(save(r, name, false));
        if (r->leads) TN_TRY(tn_run_folder_prune(&r->folder, o->keep));
    }
    return (epoch + 1) % o->save_every == 0 || last ? save(r, "last.safetensors", true) : TN_OK;
}

/* ---- the loop ---- */

static tn_status evaluate(run *r) {
    tn_result result;
    double start = tn_now();
    tn_stop stop = {ask_stop, r};
    tn_comm_phase(r->comm, r->position.step, "the evaluation");
    TN_TRY(use_average(r, true, TN_OK));
    tn_status status = tn_setup_evaluate(r->engine, r->val, &stop, &result, NULL);
    TN_TRY(use_average(r, false, status));
    r->event.val_loss = result.loss / result.rows;
    r->event.val_top1 = 100.0 * result.top1 / result.rows;
    r->event.val_top5 = 100.0 * result.top5 / result.rows;
    r->event.evaluated = true;
    tn_engine_trace_add(r->engine, "evaluation", start, tn_now());
    return TN_OK;
}

static void begin_epoch(run *r) {
    r->epoch_started = tn_now();
    r->train_seconds = 0;
    r->epoch_images = 0;
    r->event.data_wait = r->epoch_comm_wait = 0;
}

/* Evaluates, when it is time, and logs the epoch. */
static tn_status end_epoch(run *r) {
    tn_event *e = &r->event;
    const tn_position *p = &r->position;
    e->train_loss = p->loss_sum / (double)p->rows;
    e->train_top1 = 100.0 * (double)p->top1 / (double)p->rows;
    e->evaluated = false;
    e->comm_wait = r->epoch_comm_wait;
    if (r->probe) TN_TRY(tn_probe_log_measure(r->probe, e->epoch, p->step, r->folder.events));
    if ((e->epoch + 1) % r->options->eval_every == 0 || p->step >= r->steps) TN_TRY(evaluate(r));
    e->seconds = tn_now() - r->epoch_started;
    e->images_per_second = r->train_seconds > 0 ? (double)r->epoch_images / r->train_seconds : 0;
    return tn_run_log_epoch(&r->folder, &r->event);
}

static tn_status whole_epoch(run *r) {
    tn_position next = r->position;
    TN_TRY(end_epoch(r));
    next.loss_sum = 0;
    next.rows = next.top1 = 0;
    r->position = next;
    TN_TRY(save_epoch(r));
    send(r, TN_EVENT_EPOCH, NULL);
    begin_epoch(r);
    return TN_OK;
}

static double learning_rate(const run *r, long step) {
    const tn_options *o = r->options;
    return tn_schedule_lr(&r->schedule, o->lr, o->warmup, (int)(step / r->batches), (int)(step % r->batches),
                          r->batches, (double)r->steps / r->batches);
}

/* Issues what the device takes now: one step, and more where it need not be finished first. Between epochs,
 * and before stopping, all steps are finished. */
static tn_status issue_steps(run *r) {
    const tn_options *o = r->options;
    tn_pipeline *p = &r->pipeline;
    while (p->waiting == 0 ||
           (tn_pipeline_has_room(p) && p->issued < r->steps && p->issued % r->batches != 0 && !r->stop)) {
        tn_sgd sgd = {.lr = learning_rate(r, p->issued),
                      .momentum = o->momentum,
                      .weight_decay = o->weight_decay,
                      .scalar_lr = o->scalar_lr};
        TN_TRY(tn_pipeline_issue(p, &sgd, &r->event.data_wait));
    }
    return TN_OK;
}

static tn_status finish_step(run *r) {
    tn_event *e = &r->event;
    tn_position *p = &r->position;
    tn_finished_step step;
    double comm_wait = tn_comm_waited(r->comm);
    TN_TRY(tn_pipeline_finish(&r->pipeline, &step));
    e->epoch = (int)(p->step / r->batches);
    e->batch = (int)(p->step % r->batches) + 1;
    e->step = ++p->step;
    e->loss = p->step_loss = step.result.loss / step.result.rows;
    e->lr = p->step_lr = step.lr;
    p->loss_sum += step.result.loss;
    p->rows += step.result.rows;
    p->top1 += step.result.top1;
    r->train_seconds += step.seconds;
    r->epoch_images += step.result.rows;
    e->tau = r->model->tau_constant ? r->model->tau : r->tau < 0 ? NAN : step.result.watched;
    e->comm_wait += tn_comm_waited(r->comm) - comm_wait;
    r->epoch_comm_wait += e->comm_wait;
    e->images_per_second = step.result.rows / step.seconds;
    e->seconds_left =
        (tn_now() - r->started) / (double)(p->step - r->first_step) * (double)(r->steps - p->step);
    e->log_step = p->step % r->options->log_every == 0;
    if (e->log_step) TN_TRY(tn_run_log_step(&r->folder, &r->event));
    send(r, TN_EVENT_STEP, NULL);
    return TN_OK;
}

static tn_status train_step(run *r) {
    char message[1024];
    double comm_wait = tn_comm_waited(r->comm);
    tn_comm_phase(r->comm, r->position.step + 1, "training");
    tn_status issued = issue_steps(r), status = issued;
    snprintf(message, sizeof message, "%s", tn_error());
    r->event.comm_wait = tn_comm_waited(r->comm) - comm_wait;
    /* What cannot be issued comes behind what is on its way. */
    if (r->pipeline.waiting > 0) {
        status = finish_step(r);
        if (status == TN_OK && issued != TN_OK) status = tn_fail(issued, "%s", message);
    }
    return status == TN_ERR_DIVERGED ? tn_fail_prefix(status, "step %ld", r->position.step + 1) : status;
}

/* Called before the first step and after each: starts and ends the timeline of --profile. */
static tn_status profile(run *r) {
    const char *path = r->options->profile;
    long done = r->position.step - r->first_step, left = r->steps - r->position.step;
    if (!path[0] || r->profiled || !r->leads) return TN_OK;
    if (r->profile_first < 0) {
        if (done < PROFILE_FIRST && left > PROFILE_STEPS) return TN_OK;
        r->profile_first = done;
        return tn_engine_trace_start(r->engine);
    }
    if (done < r->profile_first + PROFILE_STEPS && left > 0) return TN_OK;
    r->profiled = true;
    TN_TRY(tn_engine_trace_write(r->engine, path));
    send(r, TN_EVENT_NOTE, "timeline written (--profile)");
    return TN_OK;
}

static tn_status stopped(run *r) {
    TN_TRY(save(r, "last.safetensors", true));
    TN_TRY(log_end(r, "stopped", NULL));
    return tn_fail(TN_ERR_STOPPED, "stopped by signal %d at step %ld; continue with --resume", r->stop,
                   r->position.step);
}

/* A run whose length is given in steps may end inside an epoch: it is saved as it stands, then evaluated. */
static tn_status partial_epoch(run *r) {
    TN_TRY(save(r, "last.safetensors", true));
    TN_TRY(end_epoch(r));
    send(r, TN_EVENT_EPOCH, NULL);
    return TN_OK;
}

/* A run that was stopped while an epoch was evaluated still has that epoch to finish. */
static tn_status pending_epoch(run *r) {
    return r->position.rows > 0 && r->position.step % r->batches == 0 ? whole_epoch(r) : TN_OK;
}

static tn_status train_steps(run *r) {
    int stop;
    begin_epoch(r);
    if (r->probe && r->position.step == 0) TN_TRY(tn_probe_log_measure(r->probe, -1, 0, r->folder.events));
    TN_TRY(pending_epoch(r));
    while (r->position.step < r->steps) {
        TN_TRY(profile(r));
        TN_TRY(train_step(r));
        TN_TRY(profile(r));
        if (r->position.step % r->batches == 0) TN_TRY(whole_epoch(r));
        if (r->position.step % CHECK_STEPS == 0)
            TN_TRY(tn_team_check_state(r->comm, r->engine, r->position.step));
        /* After the last step there is nothing left to stop but the evaluation, which looks for itself. */
        TN_TRY(ask_stop(r, &stop));
        if (stop && r->pipeline.waiting == 0 && r->position.step < r->steps)
            return tn_fail(TN_ERR_STOPPED, "stopped");
    }
    return r->position.rows > 0 ? partial_epoch(r) : TN_OK;
}

static tn_status loop(run *r) {
    r->started = tn_now();
    r->first_step = r->position.step;
    r->pipeline = (tn_pipeline){.engine = r->engine, .loader = r->train, .issued = r->position.step};
    r->profile_first = -1;
    tn_status status = train_steps(r);
    r->ending = status == TN_OK || status == TN_ERR_STOPPED || status == TN_ERR_DIVERGED;
    if (status == TN_OK) return log_end(r, "done", NULL);
    return status == TN_ERR_STOPPED ? stopped(r) : status;
}

/* The last step before a resume is that of r->event again, and told again where the event files drop it. */
static tn_status recall_step(run *r) {
    const tn_position *p = &r->position;
    r->event.step = p->step;
    r->event.epoch = (int)((p->step - 1) / r->batches);
    r->event.loss = p->step_loss;
    r->event.lr = p->step_lr;
    r->event.tau = tau_of(r);
    return p->rows > 0 && p->step % r->options->log_every == 0 ? tn_run_log_step_events(&r->folder, &r->event)
                                                               : TN_OK;
}

/* Data, model and engine; each process on its own. */
static tn_status prepare(run *r) {
    TN_TRY(tn_options_check(r->options));
    TN_TRY(tn_schedule_parse(r->options->schedule, &r->schedule));
    TN_TRY(open_dataset(r));
    TN_TRY(open_engine(r));
    TN_TRY(open_loaders(r));
    return r->leads ? tn_setup_check_output(r->options->profile) : TN_OK;
}

/* What memory is used for, and that a better device is missing. */
static tn_status say_devices(run *r) {
    char note[256];
    tn_string plan = {0};
    tn_status status = tn_string_printf(&plan, "memory: ");
    if (status == TN_OK) status = tn_setup_print_memory(r->engine, &plan);
    if (status == TN_OK) send(r, TN_EVENT_NOTE, plan.data);
    if (tn_setup_device_note(r->options, note, sizeof note)) send(r, TN_EVENT_NOTE, note);
    r->event.text = NULL;
    tn_string_free(&plan);
    return status;
}

static tn_status start(run *r, const tn_options *options) {
    tn_status status = TN_OK;
    if (!options->resume || options->overwrite || !options->out[0]) status = tn_options_check(options);
    if (status == TN_OK && r->leads) status = tn_run_folder_options(&r->folder, options, &r->options);
    TN_TRY(tn_comm_agree(r->comm, status, "options"));
    TN_TRY(tn_team_share_options(r->comm, &r->options));
    TN_TRY(tn_comm_agree(r->comm, prepare(r), "start"));
    TN_TRY(open_state(r));
    TN_TRY(r->resumed ? recall_step(r) : log_start(r));
    char text[512], processes[64];
    snprintf(text, sizeof text,
             "%s %s on %s: %zu parameters, %.1f M multiply-adds an image; %d training and %d validation "
             "images; %s, %d "
             "threads%s, chunks of %d; %.1f MiB planned",
             r->options->model, r->options->variant, r->data.name, tn_model_parameter_count(r->model),
             tn_model_multiply_adds(r->model) * 1e-6, r->data.train_count, r->data.val_count,
             tn_engine_device(r->engine), tn_engine_threads(r->engine),
             tn_team_describe(r->comm, processes, sizeof processes), tn_engine_chunk_rows(r->engine),
             (double)tn_engine_bytes(r->engine) / 1048576.0);
    send(r, TN_EVENT_START, text);
    return say_devices(r);
}

/* After a failure inside the loop: the log says how the run ended, best effort; the first failure is what
 * counts. */
static tn_status report_failure(run *r, tn_status status) {
    char message[1024];
    snprintf(message, sizeof message, "%s", tn_error());
    if (status == TN_ERR_DIVERGED && log_end(r, "diverged", message) != TN_OK)
        return tn_fail(status, "%s (and log.jsonl could not be written)", message);
    return tn_fail(status, "%s", message);
}

static tn_status train(run *r, const tn_options *options) {
    TN_TRY(start(r, options));
    tn_status status = loop(r);
    if (status != TN_OK) status = report_failure(r, status);
    /* From here on all processes are on their way out; what failed on the way, none else knows. */
    return r->ending && status != TN_ERR_PEER ? tn_comm_agree(r->comm, status, "end") : status;
}

tn_status tn_run_train(const tn_options *options, const tn_run_hooks *hooks) {
    run *r;
    TN_TRY(tn_alloc(&r, 1, sizeof *r, "run"));
    r->hooks = hooks;
    r->folder.lock = -1;
    tn_status status = tn_team_join(options, hooks, &r->comm);
    r->leads = status == TN_OK && tn_comm_rank(r->comm) == 0;
    if (status == TN_OK) status = train(r, options);
    char message[1024];
    snprintf(message, sizeof message, "%s", tn_error());
    tn_status probe = tn_probe_log_close(r->probe), closed = tn_run_folder_close(&r->folder);
    if (closed == TN_OK) closed = probe;
    if (status != TN_OK) closed = tn_fail(status, "%s", message);
    tn_loader_close(r->train);
    tn_loader_close(r->val);
    tn_engine_free(r->engine);
    tn_model_free(r->model);
    tn_dataset_close(r->dataset);
    tn_options_free(r->options);
    tn_comm_close(r->comm, closed != TN_OK);
    tn_free(r);
    return closed;
}
