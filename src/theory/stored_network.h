/* A network from a checkpoint: the model that the file's metadata describes, and its weights in an engine. */
#ifndef TN_THEORY_STORED_NETWORK_H
#define TN_THEORY_STORED_NETWORK_H

#include "io/safetensors.h"
#include "taunet/engine.h"

/* Builds the model that `file` was written for. TN_ERR_DATA when the metadata does not say; `path` names the
 * file. Free with tn_model_free. */
tn_status tn_stored_model(const tn_safetensors *file, const char *path, tn_model **out);

/* Gives an engine of that model the file's weights and running statistics. TN_ERR_DATA for a tensor that is
 * missing or has another type or size. */
tn_status tn_stored_weights(const tn_safetensors *file, const char *path, tn_engine *engine);

#endif
