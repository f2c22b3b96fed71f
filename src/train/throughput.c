/* `taunet bench` and `taunet info`. */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "backend/backend.h"
#include "base/clock.h"
#include "base/fma_peak.h"
#include "base/memory.h"
#include "base/philox.h"
#include "base/pool.h"
#include "base/text.h"
#include "taunet/run.h"
#include "train/setup.h"

/* Every step: forward, backward with respect to data and weights, two operations for each multiply-add. */
#define OPERATIONS_PER_MULTIPLY_ADD 6.0
#define PEAK_SECONDS                0.3

/* ---- bench ---- */

typedef struct synthetic {
    float *images, *targets;
    int *labels;
    tn_batch batch;
} synthetic;

static tn_status make_batch(synthetic *s, tn_input_shape input, int classes, int rows) {
    size_t image = (size_t)input.channels * (size_t)input.height * (size_t)input.width;
    TN_TRY(tn_alloc(&s->images, (size_t)rows * image, sizeof(float), "synthetic batch"));
    TN_TRY(tn_alloc(&s->targets, (size_t)rows * (size_t)classes, sizeof(float), "synthetic batch"));
    TN_TRY(tn_alloc(&s->labels, (size_t)rows, sizeof(int), "synthetic batch"));
    for (int i = 0; i < rows; i++) {
        tn_rng rng = tn_rng_open(0, TN_RNG_SYNTHETIC, (uint32_t)i, 0);
        for (size_t j = 0; j < image; j++) s->images[(size_t)i * image + j] = (float)tn_rng_normal(&rng);
        s->labels[i] = (int)tn_rng_below(&rng, (uint32_t)classes);
        s->targets[(size_t)i * (size_t)classes + (size_t)s->labels[i]] = 1.0f;
    }
    s->batch = (tn_batch){.rows = rows,
                          .channels = input.channels,
                          .height = input.height,
                          .width = input.width,
                          .classes = classes,
                          .images = s->images,
                          .targets = s->targets,
                          .labels = s->labels};
    return TN_OK;
}

static tn_status peak_body(void *context, int index, int worker) {
    double *rates = context;
    (void)index;
    rates[worker] = tn_fma_peak(PEAK_SECONDS);
    return TN_OK;
}

/* Operations per second of all threads together, each on its own. */
static tn_status measure_peak(int threads, double *out) {
    tn_pool *pool;
    double *rates;
    *out = 0;
    TN_TRY(tn_alloc(&rates, (size_t)threads, sizeof *rates, "peak"));
    tn_status status = tn_pool_create(threads, NULL, &pool);
    if (status == TN_OK) status = tn_pool_run(pool, threads, peak_body, rates);
    for (int i = 0; i < threads; i++) *out += rates[i];
    tn_pool_free(pool);
    tn_free(rates);
    return status;
}

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static tn_status time_steps(tn_engine *engine, const synthetic *s, const tn_options *o, double start,
                            double *rates, tn_bench *out) {
    /* A rate of zero keeps the weights where they are: every step does the same work, for any number of
     * steps. */
    tn_sgd sgd = {.lr = 0.0, .momentum = 0.9, .weight_decay = 1e-4, .scalar_lr = 0.1};
    tn_result result;
    for (int i = -o->warmup_steps - 1; i < o->steps; i++) {
        double begin = tn_now();
        TN_TRY(tn_engine_step(engine, &s->batch, &sgd, &result));
        double end = tn_now();
        if (i == -o->warmup_steps - 1) out->start_seconds = end - start;
        if (i >= 0) rates[i] = s->batch.rows / (end - begin);
    }
    return TN_OK;
}

static tn_status bench(const tn_options *o, tn_model *model, tn_engine **engine, synthetic *s, double **rates,
                       double start, tn_bench *out) {
    double before, after;
    tn_engine_config config = {.device = o->device,
                               .precision = o->precision,
                               .threads = o->threads,
                               .micro_batch = o->micro_batch,
                               .max_batch = o->batch,
                               .training = true,
                               .recompute = o->recompute};
    TN_TRY(tn_setup_engine(model, &config, engine));
    TN_TRY(tn_engine_initialise(*engine, 0));
    TN_TRY(make_batch(s, tn_setup_input(model), tn_model_classes(model), o->batch));
    TN_TRY(tn_alloc(rates, (size_t)o->steps, sizeof **rates, "timings"));
    out->threads = tn_engine_threads(*engine);
    double pause = tn_now();
    TN_TRY(measure_peak(out->threads, &before));
    TN_TRY(time_steps(*engine, s, o, start + (tn_now() - pause), *rates, out));
    TN_TRY(measure_peak(out->threads, &after));
    qsort(*rates, (size_t)o->steps, sizeof **rates, ascending);
    int half = o->steps / 2;
    out->images_per_second = o->steps % 2 ? (*rates)[half] : 0.5 * ((*rates)[half - 1] + (*rates)[half]);
    out->minimum = (*rates)[0];
    out->maximum = (*rates)[o->steps - 1];
    out->gflops = OPERATIONS_PER_MULTIPLY_ADD * tn_model_multiply_adds(model) * out->images_per_second * 1e-9;
    out->peak_gflops = 1e-9 * (before > after ? before : after);
    out->peak_fraction = out->gflops / out->peak_gflops;
    out->peak_bytes = tn_engine_bytes(*engine);
    out->steps = o->steps;
    out->batch = o->batch;
    out->chunk_rows = tn_engine_chunk_rows(*engine);
    out->parameters = tn_model_parameter_count(model);
    snprintf(out->device, sizeof out->device, "%s", tn_engine_device(*engine));
    struct rusage usage;
    if (getrusage(RUSAGE_SELF, &usage) == 0) out->resident_bytes = (size_t)usage.ru_maxrss * 1024;
    return TN_OK;
}

tn_status tn_run_bench(const tn_options *options, tn_bench *out) {
    tn_model *model = NULL;
    tn_engine *engine = NULL;
    synthetic s = {0};
    double *rates = NULL, start = tn_now();
    *out = (tn_bench){0};
    TN_TRY(tn_options_check(options));
    TN_TRY(tn_setup_check_device(options));
    tn_status status = tn_setup_model(options, options->input, options->classes, &model);
    if (status == TN_OK) status = bench(options, model, &engine, &s, &rates, start, out);
    tn_free(rates);
    tn_free(s.images);
    tn_free(s.targets);
    tn_free(s.labels);
    tn_engine_free(engine);
    tn_model_free(model);
    return status;
}

/* ---- info ---- */

/* Layers that differ only in position are listed once, with how often they occur. */
static bool same_layer(tn_layer_info a, tn_layer_info b, const tn_engine *e, int i, int j) {
    return !strcmp(a.kind, b.kind) && a.channels == b.channels && a.height == b.height &&
           a.width == b.width && a.parameters == b.parameters && a.multiply_adds == b.multiply_adds &&
           !strcmp(tn_engine_implementation(e, i, 0), tn_engine_implementation(e, j, 0)) &&
           !strcmp(tn_engine_implementation(e, i, 1), tn_engine_implementation(e, j, 1));
}

static tn_status print_layers(const tn_engine *e, const tn_model *m, tn_string *text) {
    int count = tn_model_layer_count(m);
    TN_TRY(tn_string_printf(text, "\n%5s  %-24s %-10s %-12s %11s %13s  %s\n", "times", "first layer", "kind",
                            "output", "parameters", "multiply-adds",
                            "implementations (forward, data, weights)"));
    for (int i = 0; i < count; i++) {
        tn_layer_info layer = tn_model_layer(m, i);
        int times = 0, first = 1;
        for (int j = 0; j < count; j++) {
            if (!same_layer(layer, tn_model_layer(m, j), e, i, j)) continue;
            if (j < i) first = 0;
            times++;
        }
        if (!first) continue;
        char shape[32];
        snprintf(shape, sizeof shape, "%dx%dx%d", layer.channels, layer.height, layer.width);
        TN_TRY(tn_string_printf(text, "%5d  %-24s %-10s %-12s %11zu %13.0f  ", times, layer.name, layer.kind,
                                shape, layer.parameters, layer.multiply_adds));
        for (int k = 0; k < 3; k++) {
            const char *name = tn_engine_implementation(e, i, k);
            if (k == 0 || name[0] || tn_engine_implementation(e, i, 2)[0])
                TN_TRY(tn_string_printf(text, "%s%s", k ? ", " : "", name[0] ? name : "-"));
        }
        TN_TRY(tn_string_printf(text, "\n"));
    }
    return TN_OK;
}

static tn_status print_devices(tn_string *text) {
    const tn_backend_ops *ops;
    bool cuda = false;
    for (int i = 0; (ops = tn_backend_at(i)); i++) {
        int count = ops->device_count();
        cuda = cuda || !strcmp(ops->name, "cuda");
        if (count == 0)
            TN_TRY(tn_string_printf(text, "device         no %s: %s\n", ops->name, ops->absence()));
        for (int d = 0; d < count; d++) {
            char line[256];
            ops->describe(d, line, sizeof line);
            TN_TRY(tn_string_printf(text, "device         %s %s\n", ops->name, line));
        }
    }
    if (!cuda) TN_TRY(tn_string_printf(text, "device         no cuda: this build has no CUDA backend\n"));
    return tn_string_printf(text, "libraries      OpenBLAS, zlib, jansson, xxhash\n");
}

static tn_status print_text(const tn_options *o, const tn_engine *e, const tn_model *m, tn_string *text) {
    TN_TRY(tn_string_printf(text, "taunet %s\n", tn_version()));
    TN_TRY(print_devices(text));
    TN_TRY(tn_string_printf(text, "auto           %s, %d threads of %d processors\n", tn_engine_device(e),
                            tn_engine_threads(e), tn_processor_count()));
    TN_TRY(tn_string_printf(text, "model          %s, variant %s, %s%s\n", o->model, o->variant,
                            o->tau[0] ? "tau = " : "tau as the variant has it", o->tau));
    tn_input_shape in = tn_setup_input(m);
    TN_TRY(tn_string_printf(text, "input          %dx%dx%d, %d classes\n", in.channels, in.height, in.width,
                            tn_model_classes(m)));
    TN_TRY(tn_string_printf(text, "parameters     %zu\nmultiply-adds  %.0f an image, forward (%.1f M)\n",
                            tn_model_parameter_count(m), tn_model_multiply_adds(m),
                            tn_model_multiply_adds(m) * 1e-6));
    TN_TRY(tn_string_printf(
        text, "planned peak   %zu bytes (%.1f MiB) for training at batch %d, chunks of %d\n",
        tn_engine_bytes(e), (double)tn_engine_bytes(e) / 1048576.0, o->batch, tn_engine_chunk_rows(e)));
    TN_TRY(tn_string_printf(text, "memory         "));
    TN_TRY(tn_setup_print_memory(e, text));
    TN_TRY(tn_string_printf(text, "\n"));
    return print_layers(e, m, text);
}

static tn_status print_json(const tn_options *o, const tn_engine *e, const tn_model *m, tn_string *text) {
    json_t *root = json_pack(
        "{s:s,s:s,s:i,s:s,s:s,s:I,s:f,s:I,s:i,s:i}", "version", tn_version(), "device", tn_engine_device(e),
        "threads", tn_engine_threads(e), "model", o->model, "variant", o->variant, "parameters",
        (json_int_t)tn_model_parameter_count(m), "multiply_adds", tn_model_multiply_adds(m), "peak_bytes",
        (json_int_t)tn_engine_bytes(e), "chunk", tn_engine_chunk_rows(e), "layers", tn_model_layer_count(m));
    char *dump = root ? json_dumps(root, JSON_INDENT(2)) : NULL;
    json_decref(root);
    if (!dump) return tn_fail(TN_ERR_MEMORY, "info: out of memory");
    tn_status status = tn_string_printf(text, "%s\n", dump);
    free(dump);
    return status;
}

/* Options that would do nothing. */
static tn_status check_info(const tn_options *o) {
    static const char *const others[] = {"json", "threads", "recompute"};
    if (!o->plan[0] && tn_options_is_given(o, "precision"))
        return tn_fail(TN_ERR_USAGE,
                       "--precision: info needs it for --plan alone; give that too, or leave it out");
    for (size_t i = 0; o->plan[0] && i < sizeof others / sizeof *others; i++)
        if (tn_options_is_given(o, others[i]))
            return tn_fail(TN_ERR_USAGE, "--%s does nothing with --plan; leave it out", others[i]);
    return TN_OK;
}

static tn_status print_plan(const tn_options *o, const tn_model *m, tn_string *text) {
    const tn_backend_ops *ops;
    int rows = o->micro_batch ? o->micro_batch : o->batch;
    TN_TRY(tn_string_printf(text, "taunet %s\nmodel          %s, variant %s\n", tn_version(), o->model,
                            o->variant));
    for (int i = 0; (ops = tn_backend_at(i)); i++)
        if (ops->explain) return ops->explain(m, o->precision, o->plan, rows, text);
    return tn_fail(TN_ERR_USAGE,
                   "--plan %s: this build of taunet has no CUDA backend; build it with a CUDA toolkit",
                   o->plan);
}

static tn_status print_info(const tn_options *o, const tn_model *m, tn_string *text) {
    tn_engine *engine = NULL;
    tn_engine_config config = {.threads = o->threads,
                               .micro_batch = o->micro_batch,
                               .max_batch = o->batch,
                               .training = true,
                               .recompute = o->recompute};
    tn_status status = tn_engine_create(m, &config, &engine);
    if (status == TN_OK) status = (o->json ? print_json : print_text)(o, engine, m, text);
    tn_engine_free(engine);
    return status;
}

tn_status tn_run_info(const tn_options *options, char **out) {
    tn_model *model = NULL;
    tn_string text = {0};
    *out = NULL;
    TN_TRY(tn_options_check(options));
    TN_TRY(check_info(options));
    tn_status status = tn_setup_model(options, options->input, options->classes, &model);
    if (status == TN_OK) status = (options->plan[0] ? print_plan : print_info)(options, model, &text);
    tn_model_free(model);
    if (status == TN_OK) status = tn_strdup(out, text.data);
    tn_string_free(&text);
    return status;
}
