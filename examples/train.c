/* Trains a small tau-ResNet through the public headers alone: train [DATA], DATA as for `taunet train
 * --data`. */
#include <stdio.h>

#include "taunet/engine.h"

#define TRY(call)                                                                                            \
    do {                                                                                                     \
        tn_status status_ = (call);                                                                          \
        if (status_ != TN_OK) return status_;                                                                \
    } while (0)

typedef struct session {
    tn_dataset *data;
    tn_loader *train, *val;
    tn_model *model;
    tn_engine *engine;
} session;

/* One pass over a loader, training when `sgd` is given. */
static tn_status run_epoch(tn_engine *engine, tn_loader *loader, int epoch, const tn_sgd *sgd) {
    double loss = 0;
    int rows = 0, hits = 0;
    TRY(tn_loader_seek(loader, epoch, 0));
    for (int i = 0; i < tn_loader_batches(loader); i++) {
        const tn_batch *batch;
        tn_result result;
        TRY(tn_loader_next(loader, &batch, NULL));
        TRY(sgd ? tn_engine_gradients(engine, batch, &result) : tn_engine_eval(engine, batch, &result, NULL));
        if (sgd) TRY(tn_engine_update(engine, sgd));
        loss += result.loss;
        rows += result.rows;
        hits += result.top1;
    }
    printf("%s loss %.4f, top-1 %.2f %%\n", sgd ? "train" : "val", loss / rows, 100.0 * hits / rows);
    return TN_OK;
}

static tn_status run(session *s, const char *spec) {
    TRY(tn_dataset_open(spec, &s->data));
    tn_dataset_info info = tn_dataset_describe(s->data);
    tn_loader_config train = {.split = TN_SPLIT_TRAIN, .batch = 50, .shuffle = true, .augment = true};
    tn_loader_config val = {.split = TN_SPLIT_VAL, .batch = 50};
    TRY(tn_loader_open(s->data, &train, &s->train));
    TRY(tn_loader_open(s->data, &val, &s->val));
    tn_model_config network = {.model = "resnet8", .classes = info.classes};
    network.channels = info.channels, network.height = info.height, network.width = info.width;
    TRY(tn_model_build(&network, &s->model));
    TRY(tn_engine_create(s->model, &(tn_engine_config){.max_batch = 50, .training = true}, &s->engine));
    TRY(tn_engine_initialise(s->engine, 0));
    tn_sgd sgd = {.lr = 0.02, .momentum = 0.9, .weight_decay = 1e-4, .scalar_lr = 0.1};
    for (int epoch = 0; epoch < 8; epoch++) {
        TRY(run_epoch(s->engine, s->train, epoch, &sgd));
        TRY(run_epoch(s->engine, s->val, 0, NULL));
    }
    return TN_OK;
}

int main(int argc, char **argv) {
    session s = {NULL, NULL, NULL, NULL, NULL};
    tn_status status = run(&s, argc > 1 ? argv[1] : "synthetic:3x16x16:4:500");
    if (status != TN_OK) fprintf(stderr, "train: %s\n", tn_error());
    tn_engine_free(s.engine);
    tn_model_free(s.model);
    tn_loader_close(s.train);
    tn_loader_close(s.val);
    tn_dataset_close(s.data);
    return status != TN_OK;
}
