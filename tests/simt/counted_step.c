#include "tests/simt/counted_step.h"

#include <stdio.h>
#include <stdlib.h>

static void need(tn_status status) {
    if (status == TN_OK) return;
    fprintf(stderr, "counted_step: %s\n", tn_error());
    exit(1);
}

/* Two steps, of which the second, recorded as a graph and launched, is counted; the weights are those of a
 * fresh network, images are zero. */
static void run_steps(const tn_model *model, tn_engine *engine, int rows, uint64_t blocks) {
    tn_shape in = model->tensors[0].shape;
    size_t image = (size_t)in.channels * (size_t)in.height * (size_t)in.width;
    float *images = calloc((size_t)rows * image, sizeof *images),
          *targets = calloc((size_t)rows * (size_t)model->classes, sizeof *targets);
    int *labels = calloc((size_t)rows, sizeof *labels);
    if (!images || !targets || !labels) abort();
    for (int i = 0; i < rows; i++) targets[(size_t)i * (size_t)model->classes] = 1.0f;
    tn_batch batch = {.rows = rows,
                      .channels = in.channels,
                      .height = in.height,
                      .width = in.width,
                      .classes = model->classes,
                      .images = images,
                      .targets = targets,
                      .labels = labels};
    tn_sgd sgd = {.lr = 0.01, .momentum = 0.9, .weight_decay = 1e-4, .scalar_lr = 0.1};
    tn_result result;
    need(tn_engine_step(engine, &batch, &sgd, &result));
    simt_sample(blocks);
    simt_counters_reset();
    simt_count(1);
    need(tn_engine_step(engine, &batch, &sgd, &result));
    simt_count(0);
    free(images);
    free(targets);
    free(labels);
}

void counted_step(const char *model_name, const char *variant, tn_engine_config config, uint64_t blocks,
                  tn_model **model, tn_engine **engine) {
    tn_model_config model_config = {.model = model_name, .variant = variant};
    simt_sample(blocks > 0);
    need(tn_model_build(&model_config, model));
    config.device = "cuda";
    config.training = true;
    config.separate_buffers = true; /* the machine knows a tensor by its allocation */
    need(tn_engine_create(*model, &config, engine));
    need(tn_engine_initialise(*engine, 1));
    run_steps(*model, *engine, config.max_batch, blocks);
}
