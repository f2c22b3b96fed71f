#include "theory/nf_network.h"

#include <math.h>
#include <string.h>

#include "base/memory.h"
#include "theory/linear_algebra.h"

const char *tn_activation_name(tn_activation s) {
    static const char *const names[] = {"softplus", "tanh", "ReLU"};
    return names[s];
}

double tn_activation_value(tn_activation s, double z) {
    switch (s) {
    case TN_SOFTPLUS:
        return fmax(z, 0) + log1p(exp(-fabs(z)));
    case TN_TANH:
        return tanh(z);
    default:
        return z > 0 ? z : 0;
    }
}

double tn_activation_slope(tn_activation s, double z) {
    switch (s) {
    case TN_SOFTPLUS:
        return 1 / (1 + exp(-z));
    case TN_TANH:
        return 1 - tanh(z) * tanh(z);
    default:
        return z > 0 ? 1 : 0;
    }
}

/* The trapezoidal rule converges faster than any power of the step for smooth integrands that vanish at the
 * ends; for ReLU the value is exact by symmetry. */
double tn_activation_constant(tn_activation s) {
    double step = 1.0 / 64, sum = 0;
    if (s == TN_RELU) return 2;
    for (int i = -64 * 14; i <= 64 * 14; i++) {
        double value = tn_activation_value(s, i * step);
        sum += value * value * exp(-i * step * i * step / 2);
    }
    return sqrt(2 * 3.14159265358979323846) / (sum * step);
}

tn_status tn_nf_create(int inputs, int width, int depth, tn_activation activation, bool scaled,
                       tn_nf_network *out) {
    size_t m = (size_t)width;
    TN_ASSERT(depth >= 2);
    *out = (tn_nf_network){
        .inputs = inputs, .width = width, .depth = depth, .activation = activation, .scaled = scaled};
    out->c = tn_activation_constant(activation);
    out->weights = m * (size_t)inputs + (size_t)(depth - 1) * m * m;
    out->count = out->weights + m + (size_t)depth;
    TN_TRY(tn_alloc(&out->w, out->count, sizeof *out->w, "the weights of a network"));
    out->a = out->w + out->weights;
    out->alpha = out->a + m;
    return TN_OK;
}

void tn_nf_free(tn_nf_network *net) {
    tn_free(net->w);
    net->w = net->a = net->alpha = NULL;
}

void tn_nf_initialise(tn_nf_network *net, uint64_t seed, int trial) {
    size_t m = (size_t)net->width;
    tn_rng rng = tn_rng_open(seed, TN_RNG_INIT, 0, (uint32_t)trial);
    tn_fill_normal(&rng, m, 1, net->a);
    for (int h = 1; h <= net->depth; h++) {
        rng = tn_rng_open(seed, TN_RNG_INIT, (uint32_t)h, (uint32_t)trial);
        tn_fill_normal(&rng, h == 1 ? m * (size_t)net->inputs : m * m, 1, tn_nf_weight(net, h));
        net->alpha[h - 1] = 1;
    }
}

double *tn_nf_weight(const tn_nf_network *net, int layer) {
    size_t m = (size_t)net->width;
    return layer == 1 ? net->w : net->w + m * (size_t)net->inputs + (size_t)(layer - 2) * m * m;
}

/* dbeta_h/dalpha_h */
static double branch_scale(const tn_nf_network *net) {
    return 1 / ((net->scaled ? net->depth : 1) * sqrt(net->width));
}

/* What s(z^(h)) is multiplied with: beta_h, and sqrt(c / m) in the first layer. */
static double factor(const tn_nf_network *net, int layer) {
    return layer == 1 ? sqrt(net->c / net->width) : net->alpha[layer - 1] * branch_scale(net);
}

tn_status tn_nf_pass_create(const tn_nf_network *net, int samples, const double *x, tn_nf_pass *out) {
    size_t n = (size_t)samples, layers = (size_t)net->depth, each = n * (size_t)net->width;
    *out = (tn_nf_pass){.samples = samples, .width = net->width, .depth = net->depth, .x = x};
    TN_TRY(tn_alloc(&out->h, (3 * layers + 1) * each + (layers + 1) * n, sizeof(double),
                    "the states of a network"));
    out->z = out->h + layers * each;
    out->g = out->z + layers * each;
    out->q = out->g + layers * each;
    out->alpha = out->q + each;
    out->u = out->alpha + layers * n;
    return TN_OK;
}

void tn_nf_pass_free(tn_nf_pass *pass) {
    tn_free(pass->h);
    pass->h = NULL;
}

/* The block of layer h = 1..H in one of the arrays of a pass. */
static double *block(const tn_nf_pass *pass, double *array, int layer) {
    return array + (size_t)(layer - 1) * (size_t)pass->samples * (size_t)pass->width;
}

/* What W^(h) acts on, and how wide it is. */
static const double *input_of(const tn_nf_network *net, const tn_nf_pass *pass, int layer, int *columns) {
    *columns = layer == 1 ? net->inputs : net->width;
    return layer == 1 ? pass->x : block(pass, pass->h, layer - 1);
}

void tn_nf_forward(const tn_nf_network *net, tn_nf_pass *pass) {
    int n = pass->samples, m = net->width, columns;
    size_t each = (size_t)n * (size_t)m;
    for (int l = 1; l <= net->depth; l++) {
        const double *below = input_of(net, pass, l, &columns);
        double *z = block(pass, pass->z, l), *h = block(pass, pass->h, l), beta = factor(net, l);
        tn_gemm(TN_PLAIN, TN_TRANSPOSED, n, m, columns, 1, below, tn_nf_weight(net, l), 0, z);
        for (size_t k = 0; k < each; k++)
            h[k] = (l > 1 ? below[k] : 0) + beta * tn_activation_value(net->activation, z[k]);
    }
    tn_gemm(TN_PLAIN, TN_PLAIN, n, 1, m, 1, block(pass, pass->h, net->depth), net->a, 0, pass->u);
}

void tn_nf_backward(const tn_nf_network *net, tn_nf_pass *pass) {
    int n = pass->samples, m = net->width;
    size_t rows = (size_t)n, width = (size_t)m;
    for (size_t i = 0; i < rows; i++) memcpy(pass->q + i * width, net->a, width * sizeof(double));
    for (int l = net->depth; l >= 1; l--) {
        double *z = block(pass, pass->z, l), *g = block(pass, pass->g, l), beta = factor(net, l);
        for (size_t i = 0; i < rows; i++) {
            double sum = 0;
            for (size_t k = i * width; k < (i + 1) * width; k++) {
                sum += pass->q[k] * tn_activation_value(net->activation, z[k]);
                g[k] = beta * tn_activation_slope(net->activation, z[k]) * pass->q[k];
            }
            pass->alpha[(size_t)(l - 1) * rows + i] = l == 1 ? 0 : sum * branch_scale(net);
        }
        if (l > 1) tn_gemm(TN_PLAIN, TN_PLAIN, n, m, m, 1, g, tn_nf_weight(net, l), 1, pass->q);
    }
}

/* gram += (below below^T) o (g g^T) */
static void add_layer(int n, int m, int columns, const double *below, const double *g, double *gram,
                      double *work) {
    size_t count = (size_t)n * (size_t)n;
    tn_gemm(TN_PLAIN, TN_TRANSPOSED, n, n, columns, 1, below, below, 0, work);
    tn_gemm(TN_PLAIN, TN_TRANSPOSED, n, n, m, 1, g, g, 0, work + count);
    for (size_t k = 0; k < count; k++) gram[k] += work[k] * work[count + k];
}

void tn_nf_gram(const tn_nf_network *net, const tn_nf_pass *pass, double *gram, double *work) {
    int n = pass->samples, m = net->width, columns;
    const double *top = block(pass, pass->h, net->depth);
    tn_gemm(TN_PLAIN, TN_TRANSPOSED, n, n, m, 1, top, top, 0, gram);
    tn_gemm(TN_TRANSPOSED, TN_PLAIN, n, n, net->depth, 1, pass->alpha, pass->alpha, 1, gram);
    for (int l = 1; l <= net->depth; l++) {
        const double *below = input_of(net, pass, l, &columns);
        add_layer(n, m, columns, below, block(pass, pass->g, l), gram, work);
    }
}

void tn_nf_gram_last(const tn_nf_network *net, const tn_nf_pass *pass, double *gram, double *work) {
    int n = pass->samples, m = net->width, columns;
    size_t width = (size_t)m, count = (size_t)n * (size_t)n;
    const double *z = block(pass, pass->z, net->depth), *below = input_of(net, pass, net->depth, &columns);
    double *slopes = work + count, beta = factor(net, net->depth);
    for (size_t i = 0; i < (size_t)n; i++)
        for (size_t k = 0; k < width; k++)
            slopes[i * width + k] = net->a[k] * tn_activation_slope(net->activation, z[i * width + k]);
    tn_gemm(TN_PLAIN, TN_TRANSPOSED, n, n, m, beta * beta, slopes, slopes, 0, gram);
    tn_gemm(TN_PLAIN, TN_TRANSPOSED, n, n, columns, 1, below, below, 0, work);
    for (size_t k = 0; k < count; k++) gram[k] *= work[k];
}

void tn_nf_jacobian_row(const tn_nf_network *net, const tn_nf_pass *pass, int sample, double *out) {
    size_t m = (size_t)net->width, i = (size_t)sample;
    for (int l = 1; l <= net->depth; l++) {
        int columns;
        const double *below = input_of(net, pass, l, &columns) + i * (size_t)columns;
        const double *g = block(pass, pass->g, l) + i * m;
        for (size_t r = 0; r < m; r++)
            for (int s = 0; s < columns; s++) *out++ = g[r] * below[s];
    }
    memcpy(out, block(pass, pass->h, net->depth) + i * m, m * sizeof *out);
    for (int l = 0; l < net->depth; l++) out[m + (size_t)l] = pass->alpha[(size_t)(l * pass->samples) + i];
}

void tn_nf_descend(tn_nf_network *net, const tn_nf_pass *pass, const double *y, double rate, double *work) {
    int n = pass->samples, m = net->width, columns;
    size_t width = (size_t)m;
    for (int l = 1; l <= net->depth; l++) {
        const double *below = input_of(net, pass, l, &columns), *g = block(pass, pass->g, l);
        for (size_t i = 0; i < (size_t)n; i++)
            for (size_t k = i * width; k < (i + 1) * width; k++) work[k] = (pass->u[i] - y[i]) * g[k];
        tn_gemm(TN_TRANSPOSED, TN_PLAIN, m, columns, n, -rate, work, below, 1, tn_nf_weight(net, l));
    }
    for (int i = 0; i < n; i++) {
        double step = -rate * (pass->u[i] - y[i]);
        tn_axpy(width, step, block(pass, pass->h, net->depth) + (size_t)i * width, net->a);
        for (int l = 1; l < net->depth; l++) net->alpha[l] += step * pass->alpha[l * n + i];
    }
}
