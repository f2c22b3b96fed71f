/* One trial of an experiment on the network of fc_network.h: weights, data and perturbations of the weights.
 */
#ifndef TN_THEORY_FC_TRIAL_H
#define TN_THEORY_FC_TRIAL_H

#include "theory/fc_network.h"

typedef struct tn_fc_trial {
    tn_fc_network net;   /* of the greatest depth; tn_fc_at_depth gives the others */
    tn_fc_network other; /* the same shape, for perturbations; no memory unless asked for */
    double *x, *targets; /* separated points and random targets */
    int samples;
} tn_fc_trial;

/* Draws everything as a pure function of (seed, trial). Close in every case. */
tn_status tn_fc_trial_open(uint64_t seed, int trial, int inputs, int width, int depth, int outputs,
                           int samples, double delta, bool with_other, tn_fc_trial *out);
void tn_fc_trial_close(tn_fc_trial *trial);

/* The first `depth` layers of a network, with its A and B: a view that must not be freed. */
tn_fc_network tn_fc_at_depth(const tn_fc_network *net, int depth, double tau);

typedef enum tn_direction {
    TN_RANDOM,   /* independent normal elements */
    TN_ASCENT,   /* along dF/dW_l */
    TN_DESCENT,  /* against it */
    TN_COHERENT, /* u u^T, u along h_{l-1} of the first sample: all layers push it the same way */
    TN_DIRECTIONS
} tn_direction;
const char *tn_direction_name(tn_direction direction);

/* Fills the W_l of `out` (of the network's shape) with matrices of spectral norm `inner` for l < L and `last`
 * for l = L, zero where there is no direction. ASCENT and DESCENT need a backward pass. TN_ERR_MEMORY. */
tn_status tn_fc_perturbation(const tn_fc_network *net, const tn_fc_pass *pass, tn_direction direction,
                             double inner, double last, uint64_t seed, int trial, tn_fc_network *out);

/* W_l += factor W'_l for all l. */
void tn_fc_add(tn_fc_network *net, double factor, const tn_fc_network *change);

/* <dF/dW, W'> summed over the layers; after a backward pass. TN_ERR_MEMORY. */
tn_status tn_fc_slope(const tn_fc_network *net, const tn_fc_pass *pass, const tn_fc_network *change,
                      double *out);

#endif
