/* The normalization-free network of [N] in float64:
 *
 *   x^(1) = sqrt(c / m) s(W^(1) x);  x^(h) = x^(h-1) + beta_h s(W^(h) x^(h-1)) for h = 2..H;  u = a^T x^(H),
 *   beta_h = alpha_h / (H sqrt(m)), and alpha_h / sqrt(m) at standard initialisation;  c = 1 / E[s(X)^2],
 *   X ~ N(0, 1).
 *
 * At the start W and a are independent N(0, 1), alpha is 1; all are trained. n samples are rows: x is n x p.
 */
#ifndef TN_THEORY_NF_NETWORK_H
#define TN_THEORY_NF_NETWORK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/fail.h"

typedef enum tn_activation { TN_SOFTPLUS, TN_TANH, TN_RELU, TN_ACTIVATIONS } tn_activation;
const char *tn_activation_name(tn_activation s);
double tn_activation_value(tn_activation s, double z);
double tn_activation_slope(tn_activation s, double z);
double tn_activation_constant(tn_activation s); /* c, to about 1e-12 */

typedef struct tn_nf_network {
    int inputs, width, depth; /* p, m, H >= 2 */
    tn_activation activation;
    bool scaled; /* with the factor 1/H */
    double c;
    double *w, *a, *alpha; /* W^(1) .. W^(H), a, and alpha_1 .. alpha_H (the first unused): one block at w */
    size_t weights, count; /* numbers in W; in all */
} tn_nf_network;

/* Zero parameters. Free with tn_nf_free. */
tn_status tn_nf_create(int inputs, int width, int depth, tn_activation activation, bool scaled,
                       tn_nf_network *out);
void tn_nf_free(tn_nf_network *net);

/* A pure function of (seed, trial). */
void tn_nf_initialise(tn_nf_network *net, uint64_t seed, int trial);

/* W^(h), h = 1..H: m x p for h = 1, else m x m. */
double *tn_nf_weight(const tn_nf_network *net, int layer);

/* States of a forward and a backward pass of u itself. */
typedef struct tn_nf_pass {
    int samples, width, depth;
    const double *x;
    double *h;     /* x^(1) .. x^(H), n x m each */
    double *z;     /* W^(h) x^(h-1) for h = 1..H */
    double *g;     /* du_i/dz^(h) for h = 1..H */
    double *alpha; /* du_i/dalpha_h: H x n, the first row zero */
    double *u;     /* n */
    double *q;     /* n x m: du_i/dx^(h) on the way down */
} tn_nf_pass;

/* x (n x p) must outlive the pass. */
tn_status tn_nf_pass_create(const tn_nf_network *net, int samples, const double *x, tn_nf_pass *out);
void tn_nf_pass_free(tn_nf_pass *pass);

void tn_nf_forward(const tn_nf_network *net, tn_nf_pass *pass);  /* h, z, u */
void tn_nf_backward(const tn_nf_network *net, tn_nf_pass *pass); /* g, alpha; after the forward pass */

/* J J^T, J = du/d(W, a, alpha), n x n; after the backward pass. work: 2 n x n numbers. */
void tn_nf_gram(const tn_nf_network *net, const tn_nf_pass *pass, double *gram, double *work);

/* Equation (2): the part of W^(H) alone, from states of the forward pass. work: n x m + n x n numbers. */
void tn_nf_gram_last(const tn_nf_network *net, const tn_nf_pass *pass, double *gram, double *work);

/* du_i/d(all parameters) in the order of the block at w, by the chain rule for one sample: for checks. */
void tn_nf_jacobian_row(const tn_nf_network *net, const tn_nf_pass *pass, int sample, double *out);

/* One step of gradient descent on 1/2 ||u - y||^2; after the backward pass. work: n x m numbers. */
void tn_nf_descend(tn_nf_network *net, const tn_nf_pass *pass, const double *y, double rate, double *work);

#endif
