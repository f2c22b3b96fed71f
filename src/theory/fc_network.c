#include "theory/fc_network.h"

#include <math.h>
#include <string.h>

#include "base/memory.h"
#include "theory/linear_algebra.h"

tn_status tn_fc_create(int inputs, int width, int depth, int outputs, tn_fc_network *out) {
    size_t m = (size_t)width, p = (size_t)inputs, d = (size_t)outputs, layers = (size_t)depth * m * m;
    TN_ASSERT(depth >= 2 && width >= 1 && inputs >= 1 && outputs >= 1);
    *out = (tn_fc_network){inputs, width, depth, outputs, 1, true, NULL, NULL, NULL, m * p + layers + d * m};
    TN_TRY(tn_alloc(&out->a, out->count, sizeof *out->a, "the weights of a network"));
    out->w = out->a + m * p;
    out->b = out->w + layers;
    return TN_OK;
}

void tn_fc_free(tn_fc_network *net) {
    tn_free(net->a);
    net->a = net->w = net->b = NULL;
}

void tn_fc_initialise(tn_fc_network *net, uint64_t seed, int trial) {
    size_t m = (size_t)net->width, p = (size_t)net->inputs, d = (size_t)net->outputs;
    tn_rng rng = tn_rng_open(seed, TN_RNG_INIT, 0, (uint32_t)trial);
    tn_fill_normal(&rng, m * p, sqrt(2.0 / net->width), net->a);
    tn_fill_normal(&rng, d * m, sqrt(2.0 / net->outputs), net->b);
    for (int l = 1; l <= net->depth; l++) {
        rng = tn_rng_open(seed, TN_RNG_INIT, (uint32_t)l, (uint32_t)trial);
        tn_fill_normal(&rng, m * m, sqrt(2.0 / net->width), tn_fc_weight(net, l));
    }
}

double *tn_fc_weight(const tn_fc_network *net, int layer) {
    return net->w + (size_t)(layer - 1) * (size_t)net->width * (size_t)net->width;
}

double tn_fc_factor(const tn_fc_network *net, int layer) {
    return net->skip && layer < net->depth ? net->tau : 1;
}

/* Whether h_{l-1} is added in layer l. */
static bool adds(const tn_fc_network *net, int layer) {
    return net->skip && layer < net->depth;
}

tn_status tn_fc_pass_create(const tn_fc_network *net, int samples, tn_fc_pass *out) {
    size_t n = (size_t)samples, layers = (size_t)net->depth + 1, each = n * (size_t)net->width;
    size_t outputs = n * (size_t)net->outputs;
    *out =
        (tn_fc_pass){.samples = samples, .width = net->width, .depth = net->depth, .outputs = net->outputs};
    TN_TRY(tn_alloc(&out->h, (2 * layers + 1) * each + 2 * outputs + n, sizeof *out->h,
                    "the states of a network"));
    out->g = out->h + layers * each;
    out->scratch = out->g + layers * each;
    out->y = out->scratch + each;
    out->residual = out->y + outputs;
    out->losses = out->residual + outputs;
    return TN_OK;
}

void tn_fc_pass_free(tn_fc_pass *pass) {
    tn_free(pass->h);
    pass->h = NULL;
}

double *tn_fc_h(const tn_fc_pass *pass, int layer) {
    return pass->h + (size_t)layer * (size_t)pass->samples * (size_t)pass->width;
}

double *tn_fc_g(const tn_fc_pass *pass, int layer) {
    return pass->g + (size_t)layer * (size_t)pass->samples * (size_t)pass->width;
}

static void rectify(double *values, size_t count) {
    for (size_t i = 0; i < count; i++) values[i] = values[i] > 0 ? values[i] : 0;
}

/* Keeps the gradient where the unit was on: h > 0 where z > 0. */
static void mask(double *gradient, const double *h, size_t count) {
    for (size_t i = 0; i < count; i++) gradient[i] = h[i] > 0 ? gradient[i] : 0;
}

void tn_fc_forward(const tn_fc_network *net, const double *x, tn_fc_pass *pass) {
    int n = pass->samples, m = net->width;
    size_t each = (size_t)n * (size_t)m;
    tn_gemm(TN_PLAIN, TN_TRANSPOSED, n, m, net->inputs, 1, x, net->a, 0, tn_fc_h(pass, 0));
    rectify(tn_fc_h(pass, 0), each);
    for (int l = 1; l <= net->depth; l++) {
        double *before = tn_fc_h(pass, l - 1), *h = tn_fc_h(pass, l);
        if (adds(net, l)) memcpy(h, before, each * sizeof *h);
        tn_gemm(TN_PLAIN, TN_TRANSPOSED, n, m, m, tn_fc_factor(net, l), before, tn_fc_weight(net, l),
                adds(net, l), h);
        rectify(h, each);
    }
    tn_gemm(TN_PLAIN, TN_TRANSPOSED, n, net->outputs, m, 1, tn_fc_h(pass, net->depth), net->b, 0, pass->y);
}

double tn_fc_squared_loss(tn_fc_pass *pass, const double *targets) {
    double sum = 0;
    size_t d = (size_t)pass->outputs;
    for (size_t i = 0; i < (size_t)pass->samples; i++) {
        double squares = 0;
        for (size_t k = i * d; k < (i + 1) * d; k++) {
            pass->residual[k] = pass->y[k] - targets[k];
            squares += pass->residual[k] * pass->residual[k];
        }
        sum += pass->losses[i] = squares / 2;
    }
    return sum;
}

double tn_fc_cross_entropy(tn_fc_pass *pass, const int *labels) {
    double sum = 0;
    size_t d = (size_t)pass->outputs;
    for (size_t i = 0; i < (size_t)pass->samples; i++) {
        const double *y = pass->y + i * d;
        double *r = pass->residual + i * d, largest = y[0], total = 0;
        for (size_t k = 1; k < d; k++) largest = fmax(largest, y[k]);
        for (size_t k = 0; k < d; k++) total += r[k] = exp(y[k] - largest);
        for (size_t k = 0; k < d; k++) r[k] /= total; /* at least 1, the share of the largest */
        sum += pass->losses[i] = log(fmax(total, 1)) + largest - y[labels[i]];
        r[labels[i]] -= 1;
    }
    return sum;
}

void tn_fc_backward(const tn_fc_network *net, tn_fc_pass *pass) {
    int n = pass->samples, m = net->width;
    size_t each = (size_t)n * (size_t)m;
    double *g = tn_fc_g(pass, net->depth);
    tn_gemm(TN_PLAIN, TN_PLAIN, n, m, net->outputs, 1, pass->residual, net->b, 0, g);
    mask(g, tn_fc_h(pass, net->depth), each);
    for (int l = net->depth; l >= 1; l--) {
        double *below = tn_fc_g(pass, l - 1);
        g = tn_fc_g(pass, l);
        if (adds(net, l)) memcpy(below, g, each * sizeof *g);
        tn_gemm(TN_PLAIN, TN_PLAIN, n, m, m, tn_fc_factor(net, l), g, tn_fc_weight(net, l), adds(net, l),
                below);
        mask(below, tn_fc_h(pass, l - 1), each);
    }
}

void tn_fc_weight_gradient(const tn_fc_network *net, const tn_fc_pass *pass, int layer, double *out) {
    tn_gemm(TN_TRANSPOSED, TN_PLAIN, net->width, net->width, pass->samples, tn_fc_factor(net, layer),
            tn_fc_g(pass, layer), tn_fc_h(pass, layer - 1), 0, out);
}

void tn_fc_input_gradient(const tn_fc_network *net, const tn_fc_pass *pass, const double *x, double *out) {
    tn_gemm(TN_TRANSPOSED, TN_PLAIN, net->width, net->inputs, pass->samples, 1, tn_fc_g(pass, 0), x, 0, out);
}

void tn_fc_output_gradient(const tn_fc_pass *pass, double *out) {
    tn_gemm(TN_TRANSPOSED, TN_PLAIN, pass->outputs, pass->width, pass->samples, 1, pass->residual,
            tn_fc_h(pass, pass->depth), 0, out);
}

double tn_fc_sample_gradient_norm(const tn_fc_network *net, const tn_fc_pass *pass, int layer, int sample) {
    size_t m = (size_t)net->width, at = (size_t)sample * m;
    return tn_fc_factor(net, layer) * tn_norm(m, tn_fc_g(pass, layer) + at) *
           tn_norm(m, tn_fc_h(pass, layer - 1) + at);
}

/* gram += factor^2 (h h^T) o (g^a g^bT) for one layer; v holds the g of all outputs, n x m each; the products
 * of both kinds go to `products`, n x n each. */
static void add_layer(const tn_fc_pass *pass, int layer, double factor, const double *v, double *products,
                      double *gram) {
    int n = pass->samples, m = pass->width, d = pass->outputs;
    const double *h = tn_fc_h(pass, layer - 1);
    size_t each = (size_t)n * (size_t)m, side = (size_t)n * (size_t)d;
    double *of_h = products, *of_g = products + (size_t)n * (size_t)n;
    tn_gemm(TN_PLAIN, TN_TRANSPOSED, n, n, m, factor * factor, h, h, 0, of_h);
    for (int a = 0; a < d; a++)
        for (int b = 0; b < d; b++) {
            tn_gemm(TN_PLAIN, TN_TRANSPOSED, n, n, m, 1, v + (size_t)a * each, v + (size_t)b * each, 0, of_g);
            for (size_t i = 0; i < (size_t)n; i++)
                for (size_t j = 0; j < (size_t)n; j++)
                    gram[(i * (size_t)d + (size_t)a) * side + j * (size_t)d + (size_t)b] +=
                        of_h[i * (size_t)n + j] * of_g[i * (size_t)n + j];
        }
}

/* One step of the backward pass for the g of all outputs at once. */
static void gram_step(const tn_fc_network *net, const tn_fc_pass *pass, int layer, double **v,
                      double **next) {
    int rows = pass->samples * pass->outputs, m = net->width;
    size_t each = (size_t)pass->samples * (size_t)m, all = each * (size_t)pass->outputs;
    if (adds(net, layer)) memcpy(*next, *v, all * sizeof **v);
    tn_gemm(TN_PLAIN, TN_PLAIN, rows, m, m, tn_fc_factor(net, layer), *v, tn_fc_weight(net, layer),
            adds(net, layer), *next);
    for (size_t a = 0; a < (size_t)pass->outputs; a++) mask(*next + a * each, tn_fc_h(pass, layer - 1), each);
    double *swap = *v;
    *v = *next;
    *next = swap;
}

tn_status tn_fc_gram(const tn_fc_network *net, const tn_fc_pass *pass, int first, double *gram) {
    size_t n = (size_t)pass->samples, m = (size_t)net->width, d = (size_t)net->outputs, each = n * m;
    double *block;
    TN_TRY(tn_alloc(&block, 2 * d * each + 2 * n * n, sizeof *block, "a Gram matrix"));
    double *v = block, *next = v + d * each, *products = next + d * each;
    memset(gram, 0, n * d * n * d * sizeof *gram);
    for (size_t a = 0; a < d; a++)
        for (size_t i = 0; i < n; i++) memcpy(v + a * each + i * m, net->b + a * m, m * sizeof *v);
    for (size_t a = 0; a < d; a++) mask(v + a * each, tn_fc_h(pass, net->depth), each);
    for (int l = net->depth; l >= first; l--) {
        add_layer(pass, l, tn_fc_factor(net, l), v, products, gram);
        if (l > first) gram_step(net, pass, l, &v, &next);
    }
    tn_free(block);
    return TN_OK;
}

void tn_fc_descend(tn_fc_network *net, const tn_fc_pass *pass, double rate) {
    for (int l = 1; l <= net->depth; l++)
        tn_gemm(TN_TRANSPOSED, TN_PLAIN, net->width, net->width, pass->samples, -rate * tn_fc_factor(net, l),
                tn_fc_g(pass, l), tn_fc_h(pass, l - 1), 1, tn_fc_weight(net, l));
}
