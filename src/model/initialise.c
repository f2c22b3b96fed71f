/* Initial values of parameters and running statistics. */
#include "base/philox.h"
#include "model/graph.h"

static double draw(const tn_param *param, tn_rng *rng) {
    switch (param->init) {
    case TN_INIT_NORMAL:
        return param->init_value * tn_rng_normal(rng);
    case TN_INIT_UNIFORM:
        return param->init_value * (2 * tn_rng_uniform(rng) - 1);
    case TN_INIT_CONSTANT:
        break;
    }
    return param->init_value;
}

void tn_model_initialise(const tn_model *model, uint64_t seed, float *values, float *state) {
    for (int p = 0; p < model->param_count; p++) {
        const tn_param *param = &model->params[p];
        tn_rng rng = tn_rng_open(seed, TN_RNG_INIT, (uint32_t)p, 0);
        for (size_t i = 0; i < param->count; i++) values[param->offset + i] = (float)draw(param, &rng);
    }
    for (int s = 0; s < model->state_count; s++) {
        const tn_state *running = &model->states[s];
        for (int c = 0; c < running->count; c++) {
            state[running->mean_offset + (size_t)c] = 0;
            state[running->var_offset + (size_t)c] = 1;
        }
    }
}
