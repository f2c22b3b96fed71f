/* One training step of a network, counted on the SIMT machine's instrumented build. */
#ifndef TN_TESTS_COUNTED_STEP_H
#define TN_TESTS_COUNTED_STEP_H

#include "engine/state.h"
#include "simt.h"

/* Builds the model and an engine for it (config: precision, max_batch and whatever else it has; device and
 * training are set here, buffers are separate), runs two steps on zero images and counts the second, which is
 * recorded as a graph and launched. Of each launch `blocks` blocks run, 0: all. The operations are then those
 * of simt_operation_at. The caller frees engine and model. Errors end the program. */
void counted_step(const char *model_name, const char *variant, tn_engine_config config, uint64_t blocks,
                  tn_model **model, tn_engine **engine);

#endif
