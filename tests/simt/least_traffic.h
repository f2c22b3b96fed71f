/* The least that a training step has to move between a device and its memory. A network is cut into its stem,
 * its blocks and what follows them; each part reads every tensor from outside once and writes every tensor
 * once that another part or backward needs. What lies inside a part and is needed by nobody else costs
 * nothing.
 *
 * Backward keeps the inputs of convolutions, linear layers and norms, one bit for each ReLU and one byte for
 * each output of a max pool; it reads dL/dy of a part and what was kept once, and writes dL/dx once. */
#ifndef TN_TESTS_LEAST_TRAFFIC_H
#define TN_TESTS_LEAST_TRAFFIC_H

#include "backend/backend.h"
#include "model/graph.h"

typedef struct least_traffic {
    /* bytes of one image: activations and their gradients, forward and backward */
    double forward_read, forward_write, backward_read, backward_write;
    /* bytes of a step, whatever the batch: weights read by forward and backward as they are multiplied;
     * gradients, weights and momentum of the update in float32, each read and written once */
    double weights, update;
} least_traffic;

/* element_bytes: bytes of a value of this tensor, called with `context`. */
least_traffic least_traffic_of(const tn_model *model, size_t (*element_bytes)(void *context, int tensor),
                               void *context, size_t weight_bytes);

#endif
