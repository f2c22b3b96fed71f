/* A model computed in double precision with plain loops: what every backend is judged by.
 *
 * Written to be read beside src/model/graph.h and for nothing else; it shares no code with any backend.
 * Activations are NHWC. Test code: anything that goes wrong aborts.
 *
 * Definitions: loss = sum over rows of row_weight * row_loss, where row_loss is -sum_k target_k log
 * softmax(x)_k, or 1/2 sum_k (x_k - target_k)^2. Training uses the biased variance over all rows and pixels
 * and moves the running values by momentum 0.1 towards the mean and the unbiased variance; evaluation uses
 * the running values; eps is 1e-5. A row of weight 0 takes part in batch statistics like any other. */
#ifndef TN_TESTS_REFERENCE_H
#define TN_TESTS_REFERENCE_H

#include "model/graph.h"

/* What one node remembers from forward for backward. */
typedef struct reference_node {
    double *op;       /* conv, linear, norm: op(x) before the scale; loss: probabilities or differences */
    bool *positive;   /* conv, linear, norm: z > 0 */
    double *inverse;  /* norm: 1 / sqrt(var + eps) for each channel */
    double *centre;   /* norm: the mean that was subtracted, for each channel */
    size_t *selected; /* maxpool: index of the input value that won */
} reference_node;

typedef struct reference {
    const tn_model *model;
    int rows;
    bool training;     /* of the last forward */
    double **value;    /* [tensor]: rows x height x width x channels, as stored (carried bias included) */
    double **gradient; /* [tensor]: dL/d(stored value), after backward */
    double *row_loss;  /* [rows], not weighted */
    double *grad;      /* param_floats: dL/d(parameter) times its grad_factor, after backward */
    reference_node *nodes;
    const double *values, *targets, *row_weights; /* of the last forward; the caller's */
} reference;

/* Room for `rows` images through `model`, which must outlive it. */
reference *reference_create(const tn_model *model, int rows);
void reference_free(reference *ref);

/* Runs all rows through the model and returns the loss. values: param_floats; state: state_floats, updated
 * when training, where it may be NULL; images: rows x H x W x C; targets: rows x classes; row_weights: rows.
 * The arrays must stay as they are until backward. */
double reference_forward(reference *ref, const double *values, double *state, const double *images,
                         const double *targets, const double *row_weights, bool training);

/* Fills ref->grad and ref->gradient for the last forward, which must have been in training mode. */
void reference_backward(reference *ref);

/* Values of one image in a tensor. */
size_t reference_floats(const reference *ref, int tensor);

#endif
