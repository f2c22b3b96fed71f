/* Spectral norms of products of layers, D_b (I + tau W_b) ... D_a (I + tau W_a), by power iteration (Theorem
 * 1 of [S]). D_l is diagonal, 1 where unit l of a sample is on and 0 elsewhere. */
#ifndef TN_THEORY_LAYER_PRODUCT_H
#define TN_THEORY_LAYER_PRODUCT_H

#include "theory/fc_network.h"

typedef struct tn_layer_product {
    int first, last; /* a <= b, from 1 to L-1 */
    int sample;      /* whose D */
    double norm;     /* the result */
    int iterations;
} tn_layer_product;

/* Fills in the norms of `count` products of a network with skip, all in the same sweeps over the layers. Each
 * stops when its estimate (from below) changes by less than `tolerance` (relative) twice in a row, or after
 * `limit` iterations. `pass` holds the states of a forward pass. TN_ERR_MEMORY. */
tn_status tn_layer_product_norms(const tn_fc_network *net, const tn_fc_pass *pass, tn_layer_product *products,
                                 int count, double tolerance, int limit);

/* The product itself, m x m, for checks on small networks. `work` holds m x m numbers. */
void tn_layer_product_matrix(const tn_fc_network *net, const tn_fc_pass *pass, int first, int last,
                             int sample, double *out, double *work);

#endif
