/* The float64 networks of the theory: gradients by finite differences, Gram matrices by explicit Jacobians,
 * power iteration by LAPACK, and the definitions themselves by plain loops. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tests/support/unit_fixture.h"
#include "theory/fc_network.h"
#include "theory/layer_product.h"
#include "theory/linear_algebra.h"
#include "theory/nf_network.h"
#include "theory/separated_data.h"

enum { N = 4, P = 6, M = 9, L = 5, D = 3 };

static void assert_close(double got, double expected, double tolerance, const char *what) {
    if (!(fabs(got - expected) <= tolerance * fmax(1, fabs(expected))))
        fail_msg("%s: %.15g, expected %.15g", what, got, expected);
}

static void *numbers(size_t count) {
    double *memory = calloc(count, sizeof *memory);
    assert_non_null(memory);
    return memory;
}

/* A small network with its data. */
typedef struct fixture {
    tn_fc_network net;
    tn_fc_pass pass;
    double x[N * P], targets[N * D];
    int labels[N];
    int cross_entropy;
} fixture;

static void fixture_make(fixture *f, double tau, int skip) {
    memset(f, 0, sizeof *f);
    must(tn_fc_create(P, M, L, D, &f->net));
    f->net.tau = tau;
    f->net.skip = skip;
    tn_fc_initialise(&f->net, 3, 1);
    must(tn_separated_points(3, 1, N, P, 0.9, f->x));
    tn_random_targets(3, 1, N, D, f->targets);
    for (int i = 0; i < N; i++) f->labels[i] = i % D;
    must(tn_fc_pass_create(&f->net, N, &f->pass));
}

static void fixture_free(fixture *f) {
    tn_fc_pass_free(&f->pass);
    tn_fc_free(&f->net);
}

static double loss_of(fixture *f) {
    tn_fc_forward(&f->net, f->x, &f->pass);
    return f->cross_entropy ? tn_fc_cross_entropy(&f->pass, f->labels)
                            : tn_fc_squared_loss(&f->pass, f->targets);
}

/* dF/d(*weight) by central differences. */
static double difference(fixture *f, double *weight) {
    double kept = *weight, step = 1e-6, up, down;
    *weight = kept + step;
    up = loss_of(f);
    *weight = kept - step;
    down = loss_of(f);
    *weight = kept;
    return (up - down) / (2 * step);
}

static void check_gradients(fixture *f) {
    double *gradient = numbers(M * M);
    loss_of(f);
    tn_fc_backward(&f->net, &f->pass);
    for (int l = 1; l <= L; l++) {
        loss_of(f);
        tn_fc_weight_gradient(&f->net, &f->pass, l, gradient);
        for (int k = 0; k < M * M; k += 5)
            assert_close(gradient[k], difference(f, tn_fc_weight(&f->net, l) + k), 1e-7, "dF/dW");
    }
    loss_of(f);
    tn_fc_input_gradient(&f->net, &f->pass, f->x, gradient);
    for (int k = 0; k < M * P; k += 3) assert_close(gradient[k], difference(f, f->net.a + k), 1e-7, "dF/dA");
    loss_of(f);
    tn_fc_output_gradient(&f->pass, gradient);
    for (int k = 0; k < D * M; k += 2) assert_close(gradient[k], difference(f, f->net.b + k), 1e-7, "dF/dB");
    free(gradient);
}

static void test_gradients_agree_with_differences(void **state) {
    (void)state;
    static const double taus[] = {1, 0.4};
    for (int skip = 0; skip < 2; skip++)
        for (int t = 0; t < 2; t++)
            for (int entropy = 0; entropy < 2; entropy++) {
                fixture f;
                fixture_make(&f, taus[t], skip);
                f.cross_entropy = entropy;
                check_gradients(&f);
                fixture_free(&f);
            }
}

/* h_l by the definition, one element at a time. */
static void test_states_are_as_defined(void **state) {
    (void)state;
    fixture f;
    fixture_make(&f, 0.4, 1);
    loss_of(&f);
    for (int i = 0; i < N; i++) {
        double h[M], next[M];
        for (int r = 0; r < M; r++) {
            double z = 0;
            for (int s = 0; s < P; s++) z += f.net.a[r * P + s] * f.x[i * P + s];
            h[r] = z > 0 ? z : 0;
        }
        for (int l = 1; l <= L; l++) {
            const double *w = tn_fc_weight(&f.net, l);
            for (int r = 0; r < M; r++) {
                double z = 0;
                for (int s = 0; s < M; s++) z += w[r * M + s] * h[s];
                z = l < L ? h[r] + 0.4 * z : z;
                next[r] = z > 0 ? z : 0;
            }
            memcpy(h, next, sizeof h);
            for (int r = 0; r < M; r++) assert_close(tn_fc_h(&f.pass, l)[i * M + r], h[r], 1e-13, "h_l");
        }
        for (int k = 0; k < D; k++) {
            double y = 0;
            for (int r = 0; r < M; r++) y += f.net.b[k * M + r] * h[r];
            assert_close(f.pass.y[i * D + k], y, 1e-13, "y");
        }
    }
    fixture_free(&f);
}

/* F by the definition of both losses. */
static void test_losses_are_as_defined(void **state) {
    (void)state;
    fixture f;
    fixture_make(&f, 0.4, 1);
    double squared = 0, entropy = 0;
    tn_fc_forward(&f.net, f.x, &f.pass);
    for (int i = 0; i < N; i++) {
        double total = 0;
        for (int k = 0; k < D; k++) {
            squared += pow(f.pass.y[i * D + k] - f.targets[i * D + k], 2) / 2;
            total += exp(f.pass.y[i * D + k]);
        }
        entropy -= log(exp(f.pass.y[i * D + f.labels[i]]) / total);
    }
    assert_close(tn_fc_squared_loss(&f.pass, f.targets), squared, 1e-13, "squared loss");
    assert_close(tn_fc_cross_entropy(&f.pass, f.labels), entropy, 1e-13, "cross-entropy");
    fixture_free(&f);
}

static void test_sample_gradient_norms(void **state) {
    (void)state;
    fixture f;
    fixture_make(&f, 0.4, 1);
    loss_of(&f);
    tn_fc_backward(&f.net, &f.pass);
    /* With the residual of the other samples at zero the gradient is that of one sample. */
    double gradient[M * M], norms[L + 1];
    for (int l = 1; l <= L; l++) norms[l] = tn_fc_sample_gradient_norm(&f.net, &f.pass, l, 2);
    memset(f.pass.residual, 0, 2 * D * sizeof(double));
    memset(f.pass.residual + 3 * D, 0, D * sizeof(double));
    tn_fc_backward(&f.net, &f.pass);
    for (int l = 1; l <= L; l++) {
        tn_fc_weight_gradient(&f.net, &f.pass, l, gradient);
        assert_close(norms[l], tn_norm(M * M, gradient), 1e-12, "||dF_i/dW_l||");
    }
    fixture_free(&f);
}

/* J by one backward pass for each output of each sample. */
static void test_fc_gram_matches_explicit_jacobian(void **state) {
    (void)state;
    for (int skip = 0; skip < 2; skip++)
        for (int first = 1; first <= L; first += L - 1) {
            fixture f;
            double gram[N * D * N * D], *jacobian = numbers(N * D * L * M * M);
            fixture_make(&f, 0.4, skip);
            loss_of(&f);
            must(tn_fc_gram(&f.net, &f.pass, first, gram));
            for (int o = 0; o < N * D; o++) {
                memset(f.pass.residual, 0, N * D * sizeof(double));
                f.pass.residual[o] = 1;
                tn_fc_backward(&f.net, &f.pass);
                for (int l = first; l <= L; l++)
                    tn_fc_weight_gradient(&f.net, &f.pass, l, jacobian + (o * L + l - 1) * M * M);
            }
            for (int a = 0; a < N * D; a++)
                for (int b = 0; b < N * D; b++) {
                    double sum = 0;
                    for (int k = 0; k < L * M * M; k++)
                        sum += jacobian[a * L * M * M + k] * jacobian[b * L * M * M + k];
                    assert_close(gram[a * N * D + b], sum, 1e-11, "J J^T");
                }
            free(jacobian);
            fixture_free(&f);
        }
}

static void test_descent_follows_the_gradient(void **state) {
    (void)state;
    fixture f;
    fixture_make(&f, 0.4, 1);
    double gradient[M * M], before[M * M];
    loss_of(&f);
    tn_fc_backward(&f.net, &f.pass);
    tn_fc_weight_gradient(&f.net, &f.pass, 2, gradient);
    memcpy(before, tn_fc_weight(&f.net, 2), sizeof before);
    tn_fc_descend(&f.net, &f.pass, 0.01);
    for (int k = 0; k < M * M; k++)
        assert_close(tn_fc_weight(&f.net, 2)[k], before[k] - 0.01 * gradient[k], 1e-14, "W - eta dF/dW");
    fixture_free(&f);
}

static void test_power_iteration_agrees_with_lapack(void **state) {
    (void)state;
    fixture f;
    fixture_make(&f, 0.4, 1);
    loss_of(&f);
    tn_layer_product products[] = {
        {1, 1, 0, 0, 0}, {1, 4, 0, 0, 0}, {2, 4, 3, 0, 0}, {3, 3, 1, 0, 0}, {1, 4, 2, 0, 0}};
    must(tn_layer_product_norms(&f.net, &f.pass, products, 5, 1e-12, 2000));
    for (int i = 0; i < 5; i++) {
        double matrix[M * M], work[M * M], values[M];
        tn_layer_product *p = &products[i];
        tn_layer_product_matrix(&f.net, &f.pass, p->first, p->last, p->sample, matrix, work);
        must(tn_singular_values(M, M, matrix, values));
        assert_close(p->norm, values[0], 1e-7, "spectral norm of a product");
        double room[3 * M];
        assert_close(tn_spectral_norm(M, M, matrix, 1e-12, room), values[0], 1e-5,
                     "spectral norm of a matrix");
    }
    /* The dense product itself, for one case, by loops. */
    double matrix[M * M], work[M * M];
    tn_layer_product_matrix(&f.net, &f.pass, 3, 3, 1, matrix, work);
    for (int r = 0; r < M; r++)
        for (int s = 0; s < M; s++) {
            double on = tn_fc_h(&f.pass, 3)[M + r] > 0;
            assert_close(matrix[r * M + s], on * ((r == s) + 0.4 * tn_fc_weight(&f.net, 3)[r * M + s]), 1e-14,
                         "D(I + tau W)");
        }
    fixture_free(&f);
}

static void test_separated_points(void **state) {
    (void)state;
    double x[20 * P * 2];
    must(tn_separated_points(1, 0, 10, 2 * P, 0.25, x));
    for (int i = 0; i < 10; i++) {
        assert_close(tn_norm(2 * P, x + i * 2 * P), 1, 1e-14, "norm");
        assert_close(x[i * 2 * P + 2 * P - 1], sqrt(0.5), 1e-14, "last coordinate");
        for (int j = 0; j < i; j++) {
            double d = 0;
            for (int k = 0; k < 2 * P; k++) d += pow(x[i * 2 * P + k] - x[j * 2 * P + k], 2);
            assert_close(sqrt(d), 0.25, 1e-12, "distance");
        }
    }
    assert_close(tn_separation(10, 2 * P, x), 0.25, 1e-12, "separation");
    must(tn_separated_points(1, 0, 20, P, 1, x)); /* more than are orthogonal: still of unit norm and apart */
    assert_close(tn_norm(P, x + 19 * P), 1, 1e-14, "norm");
    assert_true(tn_separation(20, P, x) > 0.01);
}

/* Normalization-free networks
 * --------------------------------------------------------------------------------- */

typedef struct nf_fixture {
    tn_nf_network net;
    tn_nf_pass pass;
    double x[N * P];
} nf_fixture;

static void nf_make(nf_fixture *f, tn_activation activation, int scaled) {
    must(tn_nf_create(P, M, 4, activation, scaled, &f->net));
    tn_nf_initialise(&f->net, 5, 2);
    f->net.alpha[2] = -0.7; /* alpha other than 1 must matter */
    f->net.alpha[3] = 1.3;
    must(tn_separated_points(5, 2, N, P, 0.8, f->x));
    must(tn_nf_pass_create(&f->net, N, f->x, &f->pass));
    tn_nf_forward(&f->net, &f->pass);
    tn_nf_backward(&f->net, &f->pass);
}

static void nf_free(nf_fixture *f) {
    tn_nf_pass_free(&f->pass);
    tn_nf_free(&f->net);
}

static void test_nf_jacobian_agrees_with_differences(void **state) {
    (void)state;
    for (int s = 0; s < TN_ACTIVATIONS; s++)
        for (int scaled = 0; scaled < 2; scaled++) {
            nf_fixture f;
            nf_make(&f, (tn_activation)s, scaled);
            double *row = numbers(f.net.count);
            for (int i = 0; i < N; i++) {
                tn_nf_jacobian_row(&f.net, &f.pass, i, row);
                for (size_t k = 0; k < f.net.count; k += 3) {
                    double kept = f.net.w[k], step = 1e-6, up, down;
                    tn_nf_pass other;
                    must(tn_nf_pass_create(&f.net, N, f.x, &other));
                    f.net.w[k] = kept + step;
                    tn_nf_forward(&f.net, &other);
                    up = other.u[i];
                    f.net.w[k] = kept - step;
                    tn_nf_forward(&f.net, &other);
                    down = other.u[i];
                    f.net.w[k] = kept;
                    tn_nf_pass_free(&other);
                    assert_close(row[k], (up - down) / (2 * step), 1e-7, "du/dtheta");
                }
            }
            free(row);
            nf_free(&f);
        }
}

static void test_nf_grams_match_jacobians(void **state) {
    (void)state;
    for (int s = 0; s < TN_ACTIVATIONS; s++)
        for (int scaled = 0; scaled < 2; scaled++) {
            nf_fixture f;
            nf_make(&f, (tn_activation)s, scaled);
            size_t count = f.net.count, last = f.net.weights - M * M;
            double gram[N * N], part[N * N], work[N * M + 2 * N * N], *rows = numbers(N * count);
            tn_nf_gram(&f.net, &f.pass, gram, work);
            tn_nf_gram_last(&f.net, &f.pass, part, work);
            for (int i = 0; i < N; i++) tn_nf_jacobian_row(&f.net, &f.pass, i, rows + (size_t)i * count);
            for (size_t i = 0; i < N; i++)
                for (size_t j = 0; j < N; j++) {
                    assert_close(gram[i * N + j], tn_dot(count, rows + i * count, rows + j * count), 1e-12,
                                 "J J^T");
                    double of_last = tn_dot(M * M, rows + i * count + last, rows + j * count + last);
                    assert_close(part[i * N + j], of_last, 1e-12, "G^(H)");
                }
            free(rows);
            nf_free(&f);
        }
}

/* Equation (2) as it stands, by loops. */
static void test_nf_last_gram_is_equation_2(void **state) {
    (void)state;
    nf_fixture f;
    nf_make(&f, TN_SOFTPLUS, 1);
    double gram[N * N], work[N * M + N * N];
    tn_nf_gram_last(&f.net, &f.pass, gram, work);
    const double *below = f.pass.h + 2 * N * M, *w = tn_nf_weight(&f.net, 4);
    for (int i = 0; i < N; i++)
        for (int j = 0; j < N; j++) {
            double inner = 0, sum = 0;
            for (int k = 0; k < M; k++) inner += below[i * M + k] * below[j * M + k];
            for (int r = 0; r < M; r++) {
                double zi = 0, zj = 0;
                for (int k = 0; k < M; k++) {
                    zi += w[r * M + k] * below[i * M + k];
                    zj += w[r * M + k] * below[j * M + k];
                }
                sum += f.net.a[r] * f.net.a[r] / (1 + exp(-zi)) / (1 + exp(-zj));
            }
            assert_close(gram[i * N + j], 1.3 * 1.3 / (16.0 * M) * inner * sum, 1e-12, "equation (2)");
        }
    nf_free(&f);
}

static void test_nf_descent_lowers_the_loss_at_the_predicted_rate(void **state) {
    (void)state;
    nf_fixture f;
    nf_make(&f, TN_TANH, 1);
    double y[N] = {1, -1, 0.5, 0}, work[N * M], gram[N * N], products[2 * N * N], predicted = 0, before = 0,
           after = 0;
    tn_nf_gram(&f.net, &f.pass, gram, products);
    for (int i = 0; i < N; i++)
        for (int j = 0; j < N; j++)
            predicted -= (f.pass.u[i] - y[i]) * gram[i * N + j] * (f.pass.u[j] - y[j]);
    for (int i = 0; i < N; i++) before += pow(f.pass.u[i] - y[i], 2) / 2;
    double rate = 1e-6;
    tn_nf_descend(&f.net, &f.pass, y, rate, work);
    tn_nf_forward(&f.net, &f.pass);
    for (int i = 0; i < N; i++) after += pow(f.pass.u[i] - y[i], 2) / 2;
    assert_close((after - before) / rate, predicted, 1e-4, "slope of the loss along the step");
    nf_free(&f);
}

static void test_activation_constants(void **state) {
    (void)state;
    /* E[max(X,0)^2] = 1/2; the other two from a quadrature of another step and range. */
    assert_close(tn_activation_constant(TN_RELU), 2, 1e-14, "ReLU");
    assert_close(1 / tn_activation_constant(TN_TANH), 0.39429449039746, 1e-10, "tanh");
    assert_close(1 / tn_activation_constant(TN_SOFTPLUS), 0.9212459088592, 1e-10, "softplus");
}

int main(void) {
    if (tn_blas_open() != TN_OK) return 1;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gradients_agree_with_differences),
        cmocka_unit_test(test_states_are_as_defined),
        cmocka_unit_test(test_losses_are_as_defined),
        cmocka_unit_test(test_sample_gradient_norms),
        cmocka_unit_test(test_fc_gram_matches_explicit_jacobian),
        cmocka_unit_test(test_descent_follows_the_gradient),
        cmocka_unit_test(test_power_iteration_agrees_with_lapack),
        cmocka_unit_test(test_separated_points),
        cmocka_unit_test(test_nf_jacobian_agrees_with_differences),
        cmocka_unit_test(test_nf_grams_match_jacobians),
        cmocka_unit_test(test_nf_last_gram_is_equation_2),
        cmocka_unit_test(test_nf_descent_lowers_the_loss_at_the_predicted_rate),
        cmocka_unit_test(test_activation_constants),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
