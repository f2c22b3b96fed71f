#include "theory/layer_product.h"

#include <math.h>
#include <string.h>

#include "base/memory.h"
#include "theory/linear_algebra.h"

/* Vectors of all products, and room for those that a layer acts on. */
typedef struct sweep {
    const tn_fc_network *net;
    const tn_fc_pass *pass;
    tn_layer_product *products;
    int count;
    double *vectors;        /* count x m */
    double *active, *image; /* count x m */
    int *rows;              /* which products are active */
    double *norms;          /* the estimates of the iteration before */
    int *calm;              /* how often in a row the estimate hardly changed */
    bool *done;
} sweep;

static const double *state(const sweep *s, int layer, int product) {
    return tn_fc_h(s->pass, layer) + (size_t)s->products[product].sample * (size_t)s->net->width;
}

/* Zeroes the row's elements where the unit is off. */
static void mask_row(double *row, const double *h, size_t m) {
    for (size_t k = 0; k < m; k++) row[k] = h[k] > 0 ? row[k] : 0;
}

static int gather(sweep *s, int layer) {
    size_t m = (size_t)s->net->width;
    int active = 0;
    for (int i = 0; i < s->count; i++) {
        if (s->done[i] || layer < s->products[i].first || layer > s->products[i].last) continue;
        memcpy(s->active + (size_t)active * m, s->vectors + (size_t)i * m, m * sizeof(double));
        s->rows[active++] = i;
    }
    return active;
}

/* v = D (I + tau W) v for all products that the layer belongs to, or its transpose (I + tau W)^T D. */
static void apply_layer(sweep *s, int layer, bool transposed) {
    size_t m = (size_t)s->net->width;
    int active = gather(s, layer);
    if (active == 0) return;
    if (transposed)
        for (int i = 0; i < active; i++) mask_row(s->active + (size_t)i * m, state(s, layer, s->rows[i]), m);
    memcpy(s->image, s->active, (size_t)active * m * sizeof(double));
    tn_gemm(TN_PLAIN, transposed ? TN_PLAIN : TN_TRANSPOSED, active, (int)m, (int)m, s->net->tau, s->active,
            tn_fc_weight(s->net, layer), 1, s->image);
    for (int i = 0; i < active; i++) {
        double *row = s->image + (size_t)i * m;
        if (!transposed) mask_row(row, state(s, layer, s->rows[i]), m);
        memcpy(s->vectors + (size_t)s->rows[i] * m, row, m * sizeof(double));
    }
}

/* Normalises the vectors, applies the products, and notes the norms of what comes out. */
static bool iterate(sweep *s, double tolerance) {
    size_t m = (size_t)s->net->width;
    bool all_done = true;
    for (int i = 0; i < s->count; i++) {
        double *v = s->vectors + (size_t)i * m, length = tn_norm(m, v);
        if (s->done[i]) continue;
        if (!(length > 0)) { /* a product that is zero, or not finite */
            s->products[i].norm = length;
            s->done[i] = true;
        } else {
            tn_scale(m, 1 / length, v);
        }
    }
    for (int l = 1; l < s->net->depth; l++) apply_layer(s, l, false);
    for (int i = 0; i < s->count; i++) {
        if (s->done[i]) continue;
        tn_layer_product *p = &s->products[i];
        p->norm = tn_norm(m, s->vectors + (size_t)i * m);
        p->iterations++;
        s->calm[i] = fabs(p->norm - s->norms[i]) <= tolerance * p->norm ? s->calm[i] + 1 : 0;
        s->norms[i] = p->norm;
        s->done[i] = s->calm[i] >= 2;
        all_done &= s->done[i];
    }
    return all_done;
}

static void run(sweep *s, double tolerance, int limit) {
    size_t m = (size_t)s->net->width;
    for (int i = 0; i < s->count; i++) {
        tn_layer_product *p = &s->products[i];
        TN_ASSERT(p->first >= 1 && p->first <= p->last && p->last < s->net->depth);
        tn_rng rng =
            tn_rng_open((uint64_t)p->sample, TN_RNG_SYNTHETIC, (uint32_t)p->first, (uint32_t)p->last);
        tn_fill_normal(&rng, m, 1, s->vectors + (size_t)i * m);
        p->iterations = 0;
    }
    for (int i = 0; i < limit && !iterate(s, tolerance); i++)
        for (int l = s->net->depth - 1; l >= 1; l--) apply_layer(s, l, true);
}

tn_status tn_layer_product_norms(const tn_fc_network *net, const tn_fc_pass *pass, tn_layer_product *products,
                                 int count, double tolerance, int limit) {
    sweep s = {.net = net, .pass = pass, .products = products, .count = count};
    size_t n = (size_t)count, each = n * (size_t)net->width;
    TN_TRY(tn_alloc(&s.vectors, 3 * each + n, sizeof(double), "power iteration"));
    s.active = s.vectors + each;
    s.image = s.active + each;
    s.norms = s.image + each;
    tn_status status = tn_alloc(&s.rows, 2 * n, sizeof *s.rows, "power iteration");
    if (status == TN_OK) status = tn_alloc(&s.done, n, sizeof *s.done, "power iteration");
    if (status == TN_OK) {
        s.calm = s.rows + n;
        run(&s, tolerance, limit);
    }
    tn_free(s.vectors);
    tn_free(s.rows);
    tn_free(s.done);
    return status;
}

void tn_layer_product_matrix(const tn_fc_network *net, const tn_fc_pass *pass, int first, int last,
                             int sample, double *out, double *work) {
    size_t m = (size_t)net->width;
    memset(out, 0, m * m * sizeof *out);
    for (size_t i = 0; i < m; i++) out[i * m + i] = 1;
    for (int l = first; l <= last; l++) {
        const double *h = tn_fc_h(pass, l) + (size_t)sample * m;
        memcpy(work, out, m * m * sizeof *out);
        tn_gemm(TN_PLAIN, TN_PLAIN, (int)m, (int)m, (int)m, net->tau, tn_fc_weight(net, l), work, 1, out);
        for (size_t i = 0; i < m; i++)
            if (!(h[i] > 0)) memset(out + i * m, 0, m * sizeof *out);
    }
}
