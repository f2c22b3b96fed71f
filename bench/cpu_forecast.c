/* Forecasts the time of a training step on the CPU from a model, and compares it with the step itself.
 *
 *   cpu_forecast [--rounds N] [--threads N] [--batch N] [--cpu-time] [MODEL:VARIANT...]
 *
 * The model: a step takes, on all threads together,
 *
 *   sum over layers of 2, 4 or 6 multiply-adds / (share of its group * FMA ceiling) + parameter bytes /
 * memory bandwidth.
 *
 * Ceilings are measured in each round: fused multiply-adds in registers, and bytes of a copy larger than the
 * caches. The shares come from small networks that are measured in the same round: for each width of the
 * network, a chain of residual blocks of that width and variant alone, long minus short, so that whatever
 * else such a network has cancels. A share is that of everything a block does (convolutions, norms, join),
 * relative to the ceiling of the moment. The first convolution and the first blocks of stages count at the
 * share of the stage that they lead to; what does no
 * multiply-adds and belongs to no block is left out. Of a fully connected network the first and the last
 * layer are measured: they are what the short chain takes beside its blocks.
 *
 * --cpu-time takes processor time divided by threads in place of time: for machines that others use
 * meanwhile, which it leaves out where they take turns with this program, but not where they share its
 * caches. Waiting at barriers is left out too.
 *
 * Rounds alternate ceilings, chains and steps, so that a shared machine slows all of them. Prints for each
 * network the medians of forecast, measurement and their ratio, and exits with 1 if one is off by more than
 * 15 %. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "base/fma_peak.h"
#include "base/philox.h"
#include "base/pool.h"
#include "model/graph.h"
#include "taunet/engine.h"

#define WIDTHS_MAX    4
#define ROUNDS_MAX    64
#define NETWORKS_MAX  16
#define SHORT_CHAIN   1
#define LONG_CHAIN    4
#define PEAK_SECONDS  0.15
#define COPY_BYTES    ((size_t)128 << 20) /* for each thread, larger than the caches */
#define STEP_SECONDS  0.4                 /* of steps in a round, at least one */
#define ALLOWED_ERROR 0.15
/* Weights, gradients and momentum of the update, each read and written, and the sum over chunks. */
#define PARAMETER_BYTES (8 * sizeof(float))

typedef struct runner {
    tn_model *model;
    tn_engine *engine;
    float *images, *targets;
    int *labels;
    tn_batch batch;
} runner;

/* A width of a network: where its blocks compute, and chains of them. */
typedef struct width {
    tn_shape shape;
    runner chain[2];
    double block_flops; /* of one image, forward and backward */
} width;

typedef struct network {
    char name[64];
    runner run;
    width widths[WIDTHS_MAX];
    int width_count;
    double flops[WIDTHS_MAX]; /* of one image, by width */
    double forecast[ROUNDS_MAX], measured[ROUNDS_MAX], ratio[ROUNDS_MAX], share[WIDTHS_MAX][ROUNDS_MAX];
} network;

static int threads, batch = 128, rounds = 7;

static bool cpu_time;

static double seconds_now(void) {
    struct timespec t;
    if (!cpu_time) return tn_now();
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return ((double)t.tv_sec + 1e-9 * (double)t.tv_nsec) / threads;
}

static void need(tn_status status) {
    if (status == TN_OK) return;
    fprintf(stderr, "cpu_forecast: %s\n", tn_error());
    exit(1);
}

static void *allocate(size_t count, size_t size) {
    void *p = calloc(count ? count : 1, size);
    if (p) return p;
    fprintf(stderr, "cpu_forecast: out of memory\n");
    exit(1);
}

/* ---- networks and chains ---- */

static void start(runner *r) {
    tn_shape in = r->model->tensors[0].shape;
    size_t image = (size_t)in.channels * (size_t)in.height * (size_t)in.width, rows = (size_t)batch,
           classes = (size_t)r->model->classes;
    tn_engine_config config = {.device = "cpu", .threads = threads, .max_batch = batch, .training = true};
    need(tn_engine_create(r->model, &config, &r->engine));
    need(tn_engine_initialise(r->engine, 1));
    r->images = allocate(rows * image, sizeof(float));
    r->targets = allocate(rows * classes, sizeof(float));
    r->labels = allocate(rows, sizeof(int));
    tn_rng rng = tn_rng_open(1, TN_RNG_SYNTHETIC, 0, 0);
    for (size_t i = 0; i < rows * image; i++) r->images[i] = (float)tn_rng_normal(&rng);
    for (size_t i = 0; i < rows; i++) r->targets[i * classes] = 1.0f;
    r->batch = (tn_batch){.rows = batch,
                          .channels = in.channels,
                          .height = in.height,
                          .width = in.width,
                          .classes = r->model->classes,
                          .images = r->images,
                          .targets = r->targets,
                          .labels = r->labels};
}

/* Learning rate 0: every step does the same work. */
static double step_seconds(runner *r) {
    tn_sgd sgd = {.lr = 0, .momentum = 0.9, .weight_decay = 1e-4, .scalar_lr = 0.1};
    tn_result result;
    double best = 0, begin = tn_now();
    do {
        double before = seconds_now();
        need(tn_engine_step(r->engine, &r->batch, &sgd, &result));
        double seconds = seconds_now() - before;
        if (best <= 0 || seconds < best) best = seconds;
    } while (tn_now() - begin < STEP_SECONDS);
    return best;
}

static tn_status add_norm(tn_model *m, bool relu, int residual, int *x) {
    tn_node node = tn_node_init(TN_NODE_NORM, "norm", *x);
    int channels = m->tensors[*x].shape.channels;
    TN_TRY(tn_graph_param(m, "gamma", 1, &channels, TN_GROUP_WEIGHTS, TN_INIT_CONSTANT, 1, &node.gamma));
    TN_TRY(tn_graph_param(m, "beta", 1, &channels, TN_GROUP_WEIGHTS, TN_INIT_CONSTANT, 0, &node.beta));
    TN_TRY(tn_graph_state(m, "norm", channels, &node.state));
    node.relu = relu;
    node.residual = residual;
    return tn_graph_add(m, node, x);
}

/* A conv, or for images of one pixel a linear layer, of the width's channels; then a norm, or the epilogue
 * itself. */
static tn_status add_layer(tn_model *m, bool norm, bool linear, int in_channels, int channels, int kernel,
                           int residual, int *x) {
    tn_node node = tn_node_init(linear ? TN_NODE_LINEAR : TN_NODE_CONV, "layer", *x);
    int dims[4] = {channels, in_channels, kernel, kernel};
    double deviation = sqrt(2.0 / (in_channels * kernel * kernel));
    TN_TRY(tn_graph_param(m, "weight", linear ? 2 : 4, dims, TN_GROUP_WEIGHTS, TN_INIT_NORMAL, deviation,
                          &node.weight));
    node.kernel = kernel;
    node.padding = kernel / 2;
    if (!norm) {
        node.relu = true;
        node.residual = residual;
        node.scale.factor = residual >= 0 ? 0.5f : 1.0f;
    }
    TN_TRY(tn_graph_add(m, node, x));
    return norm ? add_norm(m, true, residual, x) : TN_OK;
}

/* A layer that is not trained, as the first and last matrix of fcresnet. */
static void freeze(tn_model *m) {
    tn_param *p = &m->params[m->param_count - 1];
    p->group = TN_GROUP_FIXED;
    p->grad_factor = 0;
}

/* A 1x1 layer that leads to the width, `blocks` residual blocks, a linear layer and the loss. Of a fully
 * connected network a block has one layer, and the first and last are the network's own. */
static tn_status make_chain(const tn_model *whole, tn_shape s, bool norm, int blocks, tn_model **out) {
    bool linear = s.height == 1;
    tn_shape image = linear ? whole->tensors[0].shape : (tn_shape){3, s.height, s.width};
    int x = 0, classes = whole->classes;
    TN_TRY(tn_graph_create(out, image, classes));
    tn_model *m = *out;
    TN_TRY(add_layer(m, norm, linear, image.channels * (linear ? image.height * image.width : 1), s.channels,
                     1, -1, &x));
    if (linear) freeze(m);
    for (int b = 0; b < blocks; b++) {
        int from = x;
        if (!linear) TN_TRY(add_layer(m, norm, false, s.channels, s.channels, 3, -1, &x));
        TN_TRY(add_layer(m, norm, linear, s.channels, s.channels, linear ? 1 : 3, from, &x));
    }
    if (!linear) TN_TRY(tn_graph_add(m, tn_node_init(TN_NODE_AVGPOOL, "pool", x), &x));
    tn_node fc = tn_node_init(TN_NODE_LINEAR, "fc", x), loss;
    TN_TRY(tn_graph_param(m, "fc", 2, (int[]){classes, s.channels}, TN_GROUP_WEIGHTS, TN_INIT_NORMAL, 0.1,
                          &fc.weight));
    if (linear) freeze(m);
    TN_TRY(tn_graph_add(m, fc, &x));
    loss = tn_node_init(TN_NODE_LOSS, "loss", x);
    TN_TRY(tn_graph_add(m, loss, NULL));
    return tn_graph_finish(m);
}

static bool same_shape(tn_shape a, tn_shape b) {
    return a.channels == b.channels && a.height == b.height && a.width == b.width;
}

/* Forward, backward data unless the input is the image, and backward weights where they are trained: two
 * operations for each multiply-add. */
static double node_flops(const tn_model *m, const tn_node *node) {
    bool ends = node->kind == TN_NODE_LINEAR && m->nodes[0].kind == TN_NODE_LINEAR &&
                (node->input == 0 || node->output == m->tensor_count - 1);
    if (ends) return 0;
    bool trained = node->weight >= 0 && m->params[node->weight].group != TN_GROUP_FIXED;
    return tn_node_multiply_adds(m, node) * (2 + (node->input > 0 ? 2 : 0) + (trained ? 2 : 0));
}

/* The widths of a network are the shapes of its blocks' outputs. */
static void find_widths(network *n) {
    const tn_model *m = n->run.model;
    int waiting = 0;
    double before = 0;
    bool norm = m->state_count > 0;
    for (int i = 0; i < m->node_count; i++) {
        const tn_node *node = &m->nodes[i];
        before += node_flops(m, node);
        if (node->output < 0 || !(node->block || (i == m->node_count - 2 && n->width_count))) continue;
        tn_shape s = m->tensors[node->output].shape;
        for (waiting = 0; waiting < n->width_count && !same_shape(n->widths[waiting].shape, s);) waiting++;
        if (!node->block) waiting = n->width_count - 1; /* the last layer */
        if (waiting == WIDTHS_MAX) need(tn_fail(TN_ERR_USAGE, "%s has too many widths", n->name));
        if (waiting == n->width_count) n->widths[n->width_count++].shape = s;
        n->flops[waiting] += before;
        before = 0;
    }
    if (!n->width_count) need(tn_fail(TN_ERR_USAGE, "%s has no blocks", n->name));
    for (int w = 0; w < n->width_count; w++) {
        width *at = &n->widths[w];
        for (int k = 0; k < 2; k++) {
            need(make_chain(m, at->shape, norm, k ? LONG_CHAIN : SHORT_CHAIN, &at->chain[k].model));
            start(&at->chain[k]);
        }
        at->block_flops =
            6 * (tn_model_multiply_adds(at->chain[1].model) - tn_model_multiply_adds(at->chain[0].model)) /
            (LONG_CHAIN - SHORT_CHAIN);
    }
}

static void open_network(network *n, const char *name) {
    char model[32], variant[16];
    if (sscanf(name, "%31[^:]:%15[^:]", model, variant) != 2)
        need(tn_fail(TN_ERR_USAGE, "%s: expected MODEL:VARIANT, such as resnet20:tau", name));
    snprintf(n->name, sizeof n->name, "%s", name);
    tn_model_config config = {.model = model, .variant = variant};
    need(tn_model_build(&config, &n->run.model));
    start(&n->run);
    find_widths(n);
}

static void close_runner(runner *r) {
    tn_engine_free(r->engine);
    tn_model_free(r->model);
    free(r->images);
    free(r->targets);
    free(r->labels);
}

/* ---- ceilings ---- */

typedef struct ceilings {
    double flops, bytes; /* a second, all threads */
    double *rate;        /* of each worker */
    char **buffer;
} ceilings;

static tn_status peak_body(void *context, int index, int worker) {
    (void)index;
    ((ceilings *)context)->rate[worker] = tn_fma_peak(PEAK_SECONDS);
    return TN_OK;
}

/* Bytes read and written. */
static tn_status copy_body(void *context, int index, int worker) {
    ceilings *c = context;
    (void)index;
    double begin = tn_now(), from = seconds_now(), bytes = 0;
    while (tn_now() - begin < PEAK_SECONDS) {
        memcpy(c->buffer[worker], c->buffer[worker] + COPY_BYTES / 2, COPY_BYTES / 2);
        bytes += (double)COPY_BYTES;
    }
    c->rate[worker] = bytes / (seconds_now() - from);
    return TN_OK;
}

static double measure_ceiling(ceilings *c, tn_pool *pool, tn_status (*body)(void *, int, int)) {
    double sum = 0;
    for (int t = 0; t < threads; t++) c->rate[t] = 0;
    need(tn_pool_run(pool, threads, body, c));
    for (int t = 0; t < threads; t++) sum += c->rate[t];
    return sum;
}

/* ---- rounds ---- */

static void run_round(network *n, int round, ceilings *c, tn_pool *pool) {
    double seconds = 0;
    c->flops = measure_ceiling(c, pool, peak_body);
    c->bytes = measure_ceiling(c, pool, copy_body);
    for (int w = 0; w < n->width_count; w++) {
        double one = step_seconds(&n->widths[w].chain[0]), four = step_seconds(&n->widths[w].chain[1]);
        double share =
            batch * n->widths[w].block_flops * (LONG_CHAIN - SHORT_CHAIN) / ((four - one) * c->flops);
        n->share[w][round] = share;
        if (n->widths[w].shape.height == 1)
            seconds += one - SHORT_CHAIN * (four - one) / (LONG_CHAIN - SHORT_CHAIN);
        seconds += batch * n->flops[w] / (share * c->flops);
    }
    seconds += PARAMETER_BYTES * (double)n->run.model->trained_floats / c->bytes;
    n->forecast[round] = seconds;
    n->measured[round] = step_seconds(&n->run);
    n->ratio[round] = seconds / n->measured[round];
}

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *values) {
    qsort(values, (size_t)rounds, sizeof *values, ascending);
    return rounds % 2 ? values[rounds / 2] : 0.5 * (values[rounds / 2 - 1] + values[rounds / 2]);
}

static bool print_network(network *n) {
    double ratio = median(n->ratio);
    printf("%-16s forecast %8.1f ms  measured %8.1f ms  forecast / measured %.3f (%.3f to %.3f)  shares",
           n->name, 1e3 * median(n->forecast), 1e3 * median(n->measured), ratio, n->ratio[0],
           n->ratio[rounds - 1]);
    for (int w = 0; w < n->width_count; w++)
        printf(" %d: %.2f", n->widths[w].shape.channels, median(n->share[w]));
    bool good = fabs(ratio - 1) <= ALLOWED_ERROR;
    printf("%s\n", good ? "" : "  OFF BY MORE THAN 15 %");
    fflush(stdout);
    return good;
}

static int whole_number(const char *text, const char *name, int most) {
    char *end;
    long value = text ? strtol(text, &end, 10) : 0;
    if (!text || *end || value < 1 || value > most)
        need(tn_fail(TN_ERR_USAGE, "%s: expected a whole number from 1 to %d", name, most));
    return (int)value;
}

static int parse(int argc, char **argv, const char **names) {
    static const char *const usual[] = {"resnet20:tau", "resnet20:bn", "resnet110:tau", "resnet110:bn",
                                        "fcresnet:tau"};
    int count = 0;
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "--rounds"))
            rounds = whole_number(argv[++i], "--rounds", ROUNDS_MAX);
        else if (!strcmp(argv[i], "--threads"))
            threads = whole_number(argv[++i], "--threads", 1024);
        else if (!strcmp(argv[i], "--batch"))
            batch = whole_number(argv[++i], "--batch", 65536);
        else if (!strcmp(argv[i], "--cpu-time"))
            cpu_time = true;
        else if (argv[i][0] != '-' && count < NETWORKS_MAX)
            names[count++] = argv[i];
        else
            need(
                tn_fail(TN_ERR_USAGE,
                        "%s: expected [--rounds N] [--threads N] [--batch N] [--cpu-time] [MODEL:VARIANT...]",
                        argv[i]));
    }
    if (count == 0)
        for (; count < (int)(sizeof usual / sizeof *usual); count++) names[count] = usual[count];
    return count;
}

int main(int argc, char **argv) {
    const char *names[NETWORKS_MAX];
    int count = parse(argc, argv, names), off = 0;
    tn_pool *pool;
    ceilings c = {0};
    for (int i = 0; i < count; i++) {
        network *n = allocate(1, sizeof *n);
        open_network(n, names[i]);
        if (!threads) threads = tn_engine_threads(n->run.engine);
        if (!c.rate) {
            c.rate = allocate((size_t)threads, sizeof *c.rate);
            c.buffer = allocate((size_t)threads, sizeof *c.buffer);
            for (int t = 0; t < threads; t++) memset(c.buffer[t] = allocate(COPY_BYTES, 1), 1, COPY_BYTES);
        }
        need(tn_pool_create(threads, NULL, &pool));
        for (int round = 0; round < rounds; round++) run_round(n, round, &c, pool);
        tn_pool_free(pool);
        if (i == 0)
            printf("FMA ceiling %.1f GFLOP/s, copies %.1f GB/s (last round), %d threads, batch %d, %d "
                   "rounds; medians\n",
                   1e-9 * c.flops, 1e-9 * c.bytes, threads, batch, rounds);
        off += !print_network(n);
        for (int w = 0; w < n->width_count; w++)
            for (int k = 0; k < 2; k++) close_runner(&n->widths[w].chain[k]);
        close_runner(&n->run);
        free(n);
    }
    for (int t = 0; t < threads; t++) free(c.buffer[t]);
    free(c.buffer);
    free(c.rate);
    if (fflush(stdout) != 0) return 1;
    return off ? 1 : 0;
}
