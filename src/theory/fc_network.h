/* The fully connected ResNet of [S], section 2, in float64:
 *
 *   h_0 = ReLU(A x);  z_l = h_{l-1} + tau W_l h_{l-1}, h_l = ReLU(z_l) for l = 1..L-1;
 *   z_L = W_L h_{L-1}, h_L = ReLU(z_L);  y = B h_L.
 *
 * Without the skip ("feedforward") z_l = W_l h_{l-1} for all l. A: m x p, W_l: m x m, B: d x m, at the
 * start independent N(0, 2/m), N(0, 2/m), N(0, 2/d). n samples are rows of matrices: x is n x p, h_l n x m,
 * y n x d. Losses are sums over samples, F = sum_i F_i. */
#ifndef TN_THEORY_FC_NETWORK_H
#define TN_THEORY_FC_NETWORK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/fail.h"

typedef struct tn_fc_network {
    int inputs, width, depth, outputs; /* p, m, L >= 2, d */
    double tau;
    bool skip;
    double *a, *w, *b; /* w: L matrices; one block of memory at a */
    size_t count;      /* all numbers from a on */
} tn_fc_network;

/* Zero weights. Free with tn_fc_free. */
tn_status tn_fc_create(int inputs, int width, int depth, int outputs, tn_fc_network *out);
void tn_fc_free(tn_fc_network *net);

/* Draws A, W_1.. and B as a pure function of (seed, trial). A network of less depth has the first layers of a
 * deeper one, and the same A and B. */
void tn_fc_initialise(tn_fc_network *net, uint64_t seed, int trial);

/* W_l, l = 1..L. */
double *tn_fc_weight(const tn_fc_network *net, int layer);

/* What W_l is multiplied with in z_l. */
double tn_fc_factor(const tn_fc_network *net, int layer);

/* The states of a forward and a backward pass. */
typedef struct tn_fc_pass {
    int samples, width, depth, outputs;
    double *h;        /* h_0 .. h_L, n x m each */
    double *g;        /* g_l = dF/dz_l for l = 0..L, row i that of F_i; n x m each */
    double *y;        /* n x d */
    double *residual; /* dF_i/dy_i, n x d: what the backward pass starts from */
    double *losses;   /* F_i */
    double *scratch;  /* n x m */
} tn_fc_pass;

tn_status tn_fc_pass_create(const tn_fc_network *net, int samples, tn_fc_pass *out);
void tn_fc_pass_free(tn_fc_pass *pass);

/* h_l and g_l of all samples. */
double *tn_fc_h(const tn_fc_pass *pass, int layer);
double *tn_fc_g(const tn_fc_pass *pass, int layer);

/* Fills h and y. */
void tn_fc_forward(const tn_fc_network *net, const double *x, tn_fc_pass *pass);

/* F_i = 1/2 ||y_i - y*_i||^2; fills losses and residual, returns F. targets: n x d. */
double tn_fc_squared_loss(tn_fc_pass *pass, const double *targets);

/* F_i = softmax cross-entropy of y_i with label i; as above. */
double tn_fc_cross_entropy(tn_fc_pass *pass, const int *labels);

/* Fills g from residual; after tn_fc_forward. */
void tn_fc_backward(const tn_fc_network *net, tn_fc_pass *pass);

/* dF/dW_l (m x m), dF/dA (m x p), dF/dB (d x m); after tn_fc_backward. */
void tn_fc_weight_gradient(const tn_fc_network *net, const tn_fc_pass *pass, int layer, double *out);
void tn_fc_input_gradient(const tn_fc_network *net, const tn_fc_pass *pass, const double *x, double *out);
void tn_fc_output_gradient(const tn_fc_pass *pass, double *out);

/* ||dF_i/dW_l||_F of one sample, which is a product of two norms. */
double tn_fc_sample_gradient_norm(const tn_fc_network *net, const tn_fc_pass *pass, int layer, int sample);

/* The Gram matrix J J^T of the outputs with respect to W_first .. W_L: nd x nd, entry (i d + a, j d + b). For
 * the squared loss sum_l ||dF/dW_l||_F^2 = r^T G r with the residual r. After
 * tn_fc_forward; g and residual stay. TN_ERR_MEMORY. */
tn_status tn_fc_gram(const tn_fc_network *net, const tn_fc_pass *pass, int first, double *gram);

/* One step of gradient descent on W_1 .. W_L (A and B stay fixed); after tn_fc_backward. */
void tn_fc_descend(tn_fc_network *net, const tn_fc_pass *pass, double rate);

#endif
