/* Counts what one training step does on the device: every launch, product, copy and fill, for a network of
 * real size. Runs on the SIMT machine's instrumented build, where of each launch a few blocks stand for the
 * whole grid.
 *
 *   count_step MODEL:VARIANT:BATCH PRECISION [BLOCKS [separate]]    blocks of each launch that run [4]; 0:
 * all; a kernel for each convolution
 *
 * Prints one JSON object: the network, its work and least traffic (least_traffic.h), and the operations,
 * equal ones together, in the order in which they first came. SIMT_DEVICE says for which architecture. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/simt/counted_step.h"
#include "tests/simt/least_traffic.h"

#define BLOCKS 4

typedef struct request {
    char model[32], variant[16];
    int batch;
    tn_precision precision;
    uint64_t blocks;
    bool separate;
} request;

static void stop(const char *what) {
    fprintf(stderr, "count_step: %s\n", what);
    exit(1);
}

static request parse(int argc, char **argv) {
    static const char *const names[] = {"fp32", "tf32", "bf16"};
    static const tn_precision values[] = {TN_PRECISION_FP32, TN_PRECISION_TF32, TN_PRECISION_BF16};
    request r = {.blocks = argc > 3 ? strtoull(argv[3], NULL, 10) : BLOCKS};
    int used = -1, precision = -1;
    r.separate = argc > 4 && strcmp(argv[4], "separate") == 0;
    if (argc < 3 || argc > 4 + r.separate ||
        sscanf(argv[1], "%31[^:]:%15[^:]:%d%n", r.model, r.variant, &r.batch, &used) != 3 || argv[1][used] ||
        r.batch < 1)
        stop("usage: count_step MODEL:VARIANT:BATCH fp32|tf32|bf16 [BLOCKS [separate]]");
    for (int i = 0; i < 3; i++)
        if (strcmp(argv[2], names[i]) == 0) precision = i;
    if (precision < 0) stop("the precision is fp32, tf32 or bf16");
    r.precision = values[precision];
    return r;
}

static size_t element_bytes(void *context, int tensor) {
    const tn_engine *engine = context;
    return engine->backend->ops->element_bytes(engine->backend, engine->model, tensor);
}

static bool same(const simt_operation *a, const simt_operation *b) {
    return strcmp(a->name, b->name) == 0 && memcmp(a->grid, b->grid, sizeof a->grid) == 0 &&
           a->dynamic_shared == b->dynamic_shared &&
           a->counters.load_memory_sectors == b->counters.load_memory_sectors;
}

#define FIELD(name) printf(", \"" #name "\": %llu", (unsigned long long)c->name)

static void print_operation(const simt_operation *o, int count) {
    const simt_counters *c = &o->counters;
    printf("  {\"name\": \"%s\", \"times\": %d, \"grid\": [%llu, %llu, %llu], \"threads\": %llu, "
           "\"dynamic_shared\": %llu, \"blocks_run\": %llu",
           o->name, count, (unsigned long long)o->grid[0], (unsigned long long)o->grid[1],
           (unsigned long long)o->grid[2], (unsigned long long)o->threads,
           (unsigned long long)o->dynamic_shared, (unsigned long long)o->blocks_run);
    FIELD(blocks);
    FIELD(barriers);
    FIELD(load_requests);
    FIELD(load_bytes);
    FIELD(load_sectors);
    FIELD(load_ideal_sectors);
    FIELD(load_memory_sectors);
    FIELD(store_requests);
    FIELD(store_bytes);
    FIELD(store_sectors);
    FIELD(store_ideal_sectors);
    FIELD(store_memory_sectors);
    FIELD(shared_requests);
    FIELD(shared_wavefronts);
    FIELD(shared_ideal_wavefronts);
    FIELD(atomics);
    FIELD(fma_flops);
    FIELD(tf32_flops);
    FIELD(bf16_flops);
    printf("}");
}

static void print_operations(void) {
    size_t count = simt_operations_counted();
    bool *printed = calloc(count + 1, sizeof *printed), first = true;
    if (!printed) stop("out of memory");
    printf("\"operations\": [\n");
    for (size_t i = 0; i < count; i++) {
        if (printed[i]) continue;
        int times = 0;
        for (size_t j = i; j < count; j++)
            if (!printed[j] && same(simt_operation_at(i), simt_operation_at(j))) {
                printed[j] = true;
                times++;
            }
        if (!first) printf(",\n");
        first = false;
        print_operation(simt_operation_at(i), times);
    }
    printf("\n]");
    free(printed);
}

int main(int argc, char **argv) {
    request r = parse(argc, argv);
    tn_model *model;
    tn_engine *engine;
    tn_engine_config config = {.precision = r.precision, .max_batch = r.batch, .separate_layers = r.separate};
    counted_step(r.model, r.variant, config, r.blocks, &model, &engine);
    least_traffic least =
        least_traffic_of(model, element_bytes, engine, r.precision == TN_PRECISION_BF16 ? 2 : 4);
    printf("{\"network\": \"%s\", \"precision\": \"%s\", \"batch\": %d, \"chunk\": %d, \"parameters\": %zu, "
           "\"multiply_adds\": %.17g,\n",
           argv[1], argv[2], r.batch, engine->config.micro_batch, model->trained_floats,
           tn_model_multiply_adds(model));
    printf("\"least\": {\"forward_read\": %.17g, \"forward_write\": %.17g, \"backward_read\": %.17g, "
           "\"backward_write\": %.17g, \"weights\": %.17g, \"update\": %.17g},\n",
           least.forward_read * r.batch, least.forward_write * r.batch, least.backward_read * r.batch,
           least.backward_write * r.batch, least.weights, least.update);
    print_operations();
    printf("}\n");
    tn_engine_free(engine);
    tn_model_free(model);
    return fflush(stdout) == 0 ? 0 : 1;
}
