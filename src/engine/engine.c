#include <stdio.h>
#include <string.h>

#include "base/memory.h"
#include "engine/state.h"

/* A chunk's largest activation should stay in a core's second-level cache. */
#define CHUNK_BYTES (512 * 1024)
#define CHUNK_MAX   32
/* Each chunk writes a gradient as large as the model, which is then added to others: multiply-adds for each
 * weight that make this cheap. Linear layers alone have one an image, and take larger chunks. */
#define CHUNK_WORK       500
#define CHUNK_MAX_LINEAR 128
/* Events per worker in a timeline: some steps of a network of a hundred layers. */
#define TRACE_EVENTS 200000

static int default_chunk_rows(const tn_model *model) {
    size_t largest = 1;
    int most = CHUNK_MAX_LINEAR;
    for (int i = 0; i < model->node_count; i++)
        if (model->nodes[i].kind != TN_NODE_LINEAR && model->nodes[i].kind != TN_NODE_LOSS) most = CHUNK_MAX;
    for (int i = 0; i < model->tensor_count; i++) {
        tn_shape s = model->tensors[i].shape;
        size_t bytes = (size_t)s.channels * (size_t)s.height * (size_t)s.width * sizeof(float);
        if (bytes > largest) largest = bytes;
    }
    double work = tn_model_multiply_adds(model) / (double)tn_model_parameter_count(model);
    int rows = 1;
    while (rows < most && (size_t)rows * 2 * largest <= CHUNK_BYTES) rows *= 2;
    while (rows < CHUNK_MAX && rows * work < CHUNK_WORK) rows *= 2;
    return rows;
}

static tn_status allocate(tn_engine *e, tn_memory_use use, void *out, size_t count, size_t size,
                          const char *what) {
    TN_TRY(e->backend->ops->alloc(e->backend, out, count * size, what));
    e->memory[use] += count * size;
    return TN_OK;
}

static size_t padded_rows(const tn_engine *e) {
    return (size_t)e->chunks * (size_t)e->config.micro_batch;
}

static tn_status allocate_flat(tn_engine *e) {
    const tn_model *m = e->model;
    TN_TRY(allocate(e, TN_MEMORY_WEIGHTS, &e->flat.values, m->param_floats, sizeof(float), "weights"));
    TN_TRY(
        allocate(e, TN_MEMORY_WEIGHTS, &e->flat.state, m->state_floats, sizeof(float), "batch-norm state"));
    TN_TRY(allocate(e, TN_MEMORY_OPTIMIZER, &e->flat.sums, 3 * (size_t)m->node_count, sizeof(float),
                    "scalar gradients"));
    TN_TRY(tn_alloc(&e->norm_batches, (size_t)m->state_count, sizeof *e->norm_batches, "batch-norm state"));
    if (!e->config.training) return TN_OK;
    TN_TRY(allocate(e, TN_MEMORY_OPTIMIZER, &e->flat.grads, m->param_floats, sizeof(float), "gradients"));
    if (e->config.average > 0)
        TN_TRY(allocate(e, TN_MEMORY_WEIGHTS, &e->average, m->param_floats + m->state_floats, sizeof(float),
                        "averaged weights"));
    return allocate(e, TN_MEMORY_OPTIMIZER, &e->flat.momentum, m->param_floats, sizeof(float), "momentum");
}

static tn_status allocate_inputs(tn_engine *e) {
    const tn_shape in = e->model->tensors[0].shape;
    size_t image = (size_t)in.channels * (size_t)in.height * (size_t)in.width, rows = padded_rows(e);
    bool host = e->backend->ops->host_memory;
    TN_TRY(tn_alloc(&e->row_weights, rows, sizeof(float), "batch"));
    TN_TRY(allocate(e, TN_MEMORY_BATCH, &e->inputs.rates, TN_GROUP_FIXED, sizeof(float), "learning rates"));
    e->inputs.chunk_floats = ((size_t)e->config.micro_batch * image + 15) / 16 * 16; /* 64 bytes */
    TN_TRY(allocate(e, TN_MEMORY_BATCH, &e->inputs.images,
                    (host ? 1 : (size_t)e->chunks) * e->inputs.chunk_floats, sizeof(float),
                    "images of a batch"));
    e->inputs.row_weights = e->row_weights;
    if (host) return TN_OK;
    TN_TRY(allocate(e, TN_MEMORY_BATCH, &e->inputs.targets, rows * (size_t)e->model->classes, sizeof(float),
                    "batch"));
    TN_TRY(allocate(e, TN_MEMORY_BATCH, &e->inputs.row_weights, rows, sizeof(float), "batch"));
    return allocate(e, TN_MEMORY_BATCH, &e->inputs.labels, rows, sizeof(int), "batch");
}

static size_t flag_count(const tn_engine *e) {
    return TN_FLAG_KINDS * (size_t)e->config.threads * (size_t)(e->model->node_count + 1);
}

static tn_report report_at(const tn_engine *e, void *memory) {
    tn_report r = {.row_loss = memory};
    r.row_rank = (int *)(void *)(r.row_loss + padded_rows(e));
    r.flags = r.row_rank + padded_rows(e);
    r.stop = r.flags + flag_count(e);
    return r;
}

static tn_status allocate_report(tn_engine *e) {
    void *memory, *seen;
    e->report_bytes = (2 * padded_rows(e) + flag_count(e) + 1) * sizeof(int);
    TN_TRY(allocate(e, TN_MEMORY_BATCH, &memory, e->report_bytes, 1, "results of a batch"));
    e->report = e->seen = report_at(e, memory);
    if (e->backend->ops->host_memory) return TN_OK;
    e->seen.row_loss = NULL;
    TN_TRY(tn_alloc(&seen, e->report_bytes, 1, "results of a batch"));
    e->seen = report_at(e, seen);
    return TN_OK;
}

/* Each process of a machine takes a device of its own; where the launcher shows each a single one, that. */
static tn_status deal_devices(const tn_engine_config *c, const tn_backend_ops *ops, int *number) {
    int count = ops->device_count(), here = tn_comm_local_size(c->comm);
    bool numbered = c->device && strchr(c->device, ':');
    if (numbered && here > 1)
        return tn_fail(
            TN_ERR_USAGE,
            "--device %s: %d processes of this machine cannot share a device; use --device %s, and "
            "each takes its own",
            c->device, here, ops->name);
    if (!numbered && count > 1) *number = tn_comm_local_rank(c->comm);
    if (*number < count) return TN_OK;
    return tn_fail(
        TN_ERR_USAGE,
        "%d processes were started on a machine with %d devices; start one for each device, or use "
        "--device cpu",
        here, count);
}

static tn_status open_device(tn_engine *e) {
    tn_engine_config *c = &e->config;
    const tn_backend_ops *ops;
    int number;
    TN_TRY(tn_backend_find(c->device ? c->device : "auto", c->precision, &ops, &number));
    if (c->comm && tn_comm_size(c->comm) > 1 && !ops->host_memory) TN_TRY(deal_devices(c, ops, &number));
    if (c->threads < 1) c->threads = tn_processor_count();
    if (ops->workers_max && c->threads > ops->workers_max) c->threads = ops->workers_max;
    TN_TRY(ops->open(number, c->threads, c->precision, &e->backend));
    char text[96];
    ops->describe(number, text, sizeof text);
    snprintf(e->device, sizeof e->device, "%s (%s)", ops->name, text);
    /* Where no work is done on the host, the calling thread hands it out. */
    return tn_pool_create(ops->host_memory ? c->threads : 0, ops->thread_start, &e->pool);
}

/* A chunk should fit into a core's cache; a device wants all the rows it can get, which is its process's
 * share. */
static void choose_chunks(tn_engine *e) {
    tn_engine_config *c = &e->config;
    int ranks = c->comm ? tn_comm_size(c->comm) : 1;
    if (c->micro_batch < 1)
        c->micro_batch =
            e->backend->ops->host_memory ? default_chunk_rows(e->model) : (c->max_batch + ranks - 1) / ranks;
    e->whole_chunks = e->chunks = (c->max_batch + c->micro_batch - 1) / c->micro_batch;
}

/* Other processes, and what this one needs for them. */
static tn_status join(tn_engine *e) {
    tn_engine_config *c = &e->config;
    size_t rows = (size_t)e->whole_chunks * (size_t)c->micro_batch;
    TN_TRY(tn_alloc(&e->rows, rows, sizeof *e->rows, "results of a batch"));
    if (!c->comm || tn_comm_size(c->comm) == 1) {
        c->sync_bn = false;
        return TN_OK;
    }
    e->ranks = tn_comm_size(c->comm);
    e->chunks = (e->whole_chunks + e->ranks - 1) / e->ranks;
    TN_TRY(tn_alloc(&e->first_chunk, (size_t)e->ranks + 1, sizeof(int), "ranks"));
    return tn_alloc(&e->first_row, (size_t)e->ranks + 1, sizeof(int), "ranks");
}

tn_step_memory tn_engine_step_memory(const tn_engine *e) {
    return (tn_step_memory){.gradient_flags = tn_engine_flags(e, TN_FLAG_GRADIENT, 0),
                            .parameter_flags = tn_engine_flags(e, TN_FLAG_PARAMETER, 0),
                            .flags = e->report.flags,
                            .flag_count = (int)flag_count(e),
                            .stop = e->report.stop,
                            .rates = e->inputs.rates};
}

static tn_status prepare(tn_engine *e) {
    const tn_backend_ops *ops = e->backend->ops;
    const tn_step_memory memory = tn_engine_step_memory(e);
    size_t held_bytes = 0;
    if (ops->prepare)
        TN_TRY(ops->prepare(e->backend, e->model, tn_executor_plans(e->executor), &e->flat, &memory,
                            &held_bytes));
    e->memory[TN_MEMORY_WORKERS] += held_bytes;
    return TN_OK;
}

static tn_status create(tn_engine *e) {
    tn_engine_config *c = &e->config;
    if (c->max_batch < 1)
        return tn_fail(TN_ERR_USAGE, "an engine needs max_batch >= 1, not %d", c->max_batch);
    TN_TRY(open_device(e));
    if (c->average < 0 || c->average >= 1 || (c->average > 0 && !c->training))
        return tn_fail(TN_ERR_USAGE,
                       "an average of weights with a share of %g: it must be from 0 to below 1, for training",
                       c->average);
    choose_chunks(e);
    TN_TRY(join(e));
    bool exchanged = c->sync_bn && e->backend->ops->host_memory; /* devices add up sums, chunks keep theirs */
    tn_executor_config executor = {.chunk_rows = c->micro_batch,
                                   .chunks = e->chunks,
                                   .statistics = exchanged ? e->whole_chunks : e->chunks,
                                   .workers = c->threads,
                                   .training = c->training,
                                   .recompute = c->recompute,
                                   .separate_buffers = c->separate_buffers,
                                   .separate_layers = c->separate_layers};
    TN_TRY(tn_executor_create(e->model, e->backend, &executor, &e->executor));
    tn_executor_memory(e->executor, e->memory);
    TN_TRY(allocate_flat(e));
    TN_TRY(allocate_inputs(e));
    TN_TRY(allocate_report(e));
    if (c->training) TN_TRY(tn_sums_create(e));
    if (c->training) TN_TRY(tn_device_sums_create(e));
    return prepare(e);
}

tn_status tn_engine_create(const tn_model *model, const tn_engine_config *config, tn_engine **out) {
    tn_engine *e;
    *out = NULL;
    TN_TRY(tn_alloc(&e, 1, sizeof *e, "engine"));
    e->model = model;
    e->config = *config;
    e->bad_node = e->watched = -1;
    tn_status status = create(e);
    e->config.device = NULL; /* not ours to keep */
    if (status != TN_OK) {
        tn_engine_free(e);
        return status;
    }
    *out = e;
    return TN_OK;
}

void tn_engine_free(tn_engine *e) {
    if (!e) return;
    tn_pool_free(e->pool);
    tn_sums_free(e);
    tn_free(e->device_buckets);
    tn_executor_free(e->executor);
    if (e->backend) {
        bool host = e->backend->ops->host_memory;
        void *memories[] = {e->flat.values,    e->flat.grads,      e->flat.momentum,
                            e->flat.sums,      e->flat.state,      e->average,
                            e->inputs.rates,   e->inputs.images,   e->inputs.labels,
                            e->inputs.targets, e->report.row_loss, host ? NULL : e->inputs.row_weights};
        for (size_t i = 0; i < sizeof memories / sizeof *memories; i++)
            if (memories[i]) e->backend->ops->release(e->backend, memories[i]);
        if (!host) tn_free(e->seen.row_loss);
        e->backend->ops->close(e->backend);
    }
    tn_free(e->norm_batches);
    tn_free(e->row_weights);
    tn_free(e->first_chunk);
    tn_free(e->first_row);
    tn_free(e->rows);
    tn_trace_free(e->trace);
    tn_free(e);
}

tn_status tn_engine_initialise(tn_engine *e, uint64_t seed) {
    const tn_model *m = e->model;
    const tn_backend_ops *ops = e->backend->ops;
    float *host;
    TN_TRY(tn_alloc(&host, m->param_floats + m->state_floats, sizeof(float), "initial weights"));
    tn_model_initialise(m, seed, host, host + m->param_floats);
    tn_status status = ops->upload(e->backend, e->flat.values, host, m->param_floats * sizeof(float));
    if (status == TN_OK)
        status =
            ops->upload(e->backend, e->flat.state, host + m->param_floats, m->state_floats * sizeof(float));
    memset(host, 0, m->param_floats * sizeof(float));
    if (status == TN_OK && e->flat.momentum)
        status = ops->upload(e->backend, e->flat.momentum, host, m->param_floats * sizeof(float));
    memset(e->norm_batches, 0, (size_t)m->state_count * sizeof *e->norm_batches);
    e->packed = e->eval_loaded = e->average_begun = e->average_used = false;
    tn_free(host);
    return status;
}

bool tn_engine_takes_raw(const tn_engine *e) {
    return e->backend->ops->make_images != NULL;
}

tn_status tn_engine_hold_images(tn_engine *e, const uint8_t *pixels, size_t bytes) {
    size_t added;
    if (!tn_engine_takes_raw(e))
        return tn_fail(TN_ERR_USAGE, "images for a device that does not make batches of them");
    TN_TRY(e->backend->ops->hold(e->backend, pixels, bytes, &added));
    e->memory[TN_MEMORY_BATCH] += added;
    return TN_OK;
}

/* ---- access ---- */

int tn_engine_parameter_count(const tn_engine *e) {
    return e->model->param_count;
}

tn_parameter_info tn_engine_parameter(const tn_engine *e, int index) {
    const tn_param *p = &e->model->params[index];
    tn_parameter_info info = {
        .name = p->name, .rank = p->rank, .count = p->count, .scalar_group = p->group == TN_GROUP_SCALARS};
    memcpy(info.dims, p->dims, sizeof info.dims);
    return info;
}

int tn_engine_find_parameter(const tn_engine *e, const char *name) {
    for (int i = 0; i < e->model->param_count; i++)
        if (!strcmp(e->model->params[i].name, name)) return i;
    return -1;
}

static float *flat_of(const tn_engine *e, tn_tensor_kind kind, int parameter) {
    float *base = kind == TN_VALUES      ? e->flat.values
                  : kind == TN_GRADIENTS ? e->flat.grads
                                         : e->flat.momentum;
    return base ? base + e->model->params[parameter].offset : NULL;
}

tn_status tn_engine_get(tn_engine *e, tn_tensor_kind kind, int parameter, float *data) {
    const float *from = flat_of(e, kind, parameter);
    if (!from) return tn_fail(TN_ERR_USAGE, "this engine was not made for training: it has no gradients");
    return e->backend->ops->download(e->backend, data, from,
                                     e->model->params[parameter].count * sizeof(float));
}

tn_status tn_engine_set(tn_engine *e, tn_tensor_kind kind, int parameter, const float *data) {
    float *to = flat_of(e, kind, parameter);
    if (!to) return tn_fail(TN_ERR_USAGE, "this engine was not made for training: it has no gradients");
    e->packed = e->eval_loaded = false;
    return e->backend->ops->upload(e->backend, to, data, e->model->params[parameter].count * sizeof(float));
}

void tn_engine_watch(tn_engine *e, int parameter) {
    e->watched = parameter;
}

int tn_engine_norm_count(const tn_engine *e) {
    return e->model->state_count;
}

tn_norm_info tn_engine_norm(const tn_engine *e, int index) {
    return (tn_norm_info){.name = e->model->states[index].name, .channels = e->model->states[index].count};
}

tn_status tn_engine_get_norm(tn_engine *e, int index, float *mean, float *var, int64_t *batches) {
    const tn_state *s = &e->model->states[index];
    size_t bytes = (size_t)s->count * sizeof(float);
    TN_TRY(e->backend->ops->download(e->backend, mean, e->flat.state + s->mean_offset, bytes));
    TN_TRY(e->backend->ops->download(e->backend, var, e->flat.state + s->var_offset, bytes));
    *batches = e->norm_batches[index];
    return TN_OK;
}

tn_status tn_engine_set_norm(tn_engine *e, int index, const float *mean, const float *var, int64_t batches) {
    const tn_state *s = &e->model->states[index];
    size_t bytes = (size_t)s->count * sizeof(float);
    TN_TRY(e->backend->ops->upload(e->backend, e->flat.state + s->mean_offset, mean, bytes));
    TN_TRY(e->backend->ops->upload(e->backend, e->flat.state + s->var_offset, var, bytes));
    e->norm_batches[index] = batches;
    e->eval_loaded = false;
    return TN_OK;
}

size_t tn_engine_bytes(const tn_engine *e) {
    size_t sum = 0;
    for (int use = 0; use < TN_MEMORY_USES; use++) sum += e->memory[use];
    return sum;
}

size_t tn_engine_memory(const tn_engine *e, tn_memory_use use) {
    return e->memory[use];
}

const char *tn_memory_use_name(tn_memory_use use) {
    static const char *const names[TN_MEMORY_USES] = {
        [TN_MEMORY_WEIGHTS] = "weights",
        [TN_MEMORY_OPTIMIZER] = "gradients and momentum",
        [TN_MEMORY_LAYERS] = "packed weights",
        [TN_MEMORY_WORKERS] = "activations of workers",
        [TN_MEMORY_CHUNKS] = "of the whole batch",
        [TN_MEMORY_SUMS] = "gradient sums",
        [TN_MEMORY_BATCH] = "batch",
    };
    TN_ASSERT(use >= 0 && use < TN_MEMORY_USES);
    return names[use];
}

int tn_engine_chunk_rows(const tn_engine *e) {
    return e->config.micro_batch;
}

int tn_engine_threads(const tn_engine *e) {
    return e->config.threads;
}

const char *tn_engine_device(const tn_engine *e) {
    return e->device;
}

const char *tn_engine_implementation(const tn_engine *e, int layer, int which) {
    return tn_executor_plan(e->executor, layer)->implementation[which];
}

const tn_model *tn_engine_model(const tn_engine *e) {
    return e->model;
}

/* ---- timeline ---- */

tn_status tn_engine_trace_start(tn_engine *e) {
    tn_trace_free(e->trace);
    e->trace = NULL;
    TN_TRY(tn_trace_create(e->config.threads + 1, TRACE_EVENTS, &e->trace));
    for (int i = 0; i < e->config.threads; i++) {
        char name[32];
        snprintf(name, sizeof name, "worker %d", i);
        tn_trace_name_thread(e->trace, i, name);
    }
    tn_trace_name_thread(e->trace, e->config.threads, "trainer");
    return TN_OK;
}

void tn_engine_trace_add(tn_engine *e, const char *name, double start_seconds, double end_seconds) {
    if (e->trace) tn_trace_add(e->trace, e->config.threads, name, "trainer", start_seconds, end_seconds);
}

tn_status tn_engine_trace_write(tn_engine *e, const char *path) {
    if (!e->trace) return tn_fail(TN_ERR_USAGE, "no timeline is being recorded");
    tn_status status = tn_trace_write(e->trace, path);
    tn_trace_free(e->trace);
    e->trace = NULL;
    return status;
}
