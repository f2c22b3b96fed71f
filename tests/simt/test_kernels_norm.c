/* Batch normalisation against plain double loops: one training step of a norm node, and evaluation. */
#include <math.h>
#include <stdio.h>

#include "tests/simt/kernel_check.h"

#define F TN_STORE_F32
#define B TN_STORE_BF16

typedef struct norm_case {
    size_t pixels;
    int channels;
    tn_storage x_store, y_store;
    bool s, r, relu;
    int parts;
    double offset; /* of x: a large mean */
} norm_case;

typedef struct norm_data {
    const norm_case *t;
    size_t count, channels;
    tensor x, r, gamma, beta, s, running_mean, running_var;
    double *mean, *var, *inv_std;
    double scale;
    tn_norm_vectors vectors;
    int *flag;
} norm_data;

static norm_data make(const norm_case *t) {
    norm_data d = {.t = t, .count = t->pixels * (size_t)t->channels, .channels = (size_t)t->channels};
    double *values = host_doubles(d.count);
    for (size_t i = 0; i < d.count; i++)
        values[i] = t->offset + draw_real(1, (uint32_t)i) * (1 + (double)(i % d.channels % 5));
    d.x = tensor_of(values, d.count, t->x_store);
    d.r = tensor_random(d.count, t->y_store, 2);
    d.gamma = tensor_random(d.channels, F, 3);
    d.beta = tensor_random(d.channels, F, 4);
    d.s = tensor_random(1, F, 5);
    d.running_mean = tensor_random(d.channels, F, 6);
    for (size_t c = 0; c < d.channels; c++) values[c] = 0.5 + (double)c / (double)d.channels;
    d.running_var = tensor_of(values, d.channels, F);
    d.scale = t->s ? d.s.host[0] : 1;
    d.mean = host_doubles(d.channels);
    d.var = host_doubles(d.channels);
    d.inv_std = host_doubles(d.channels);
    for (size_t i = 0; i < d.count; i++) d.mean[i % d.channels] += d.x.host[i] / (double)t->pixels;
    for (size_t i = 0; i < d.count; i++)
        d.var[i % d.channels] += pow(d.x.host[i] - d.mean[i % d.channels], 2) / (double)t->pixels;
    for (size_t c = 0; c < d.channels; c++) d.inv_std[c] = 1 / sqrt(d.var[c] + 1e-5);
    d.vectors = (tn_norm_vectors){device_raw(d.channels * 4), device_raw(d.channels * 4),
                                  device_raw(d.channels * 4), device_raw(d.channels * 4)};
    d.flag = device_zeros(sizeof(int));
    return d;
}

/* z of element i with a mean and an inverse deviation. */
static double z_of(const norm_data *d, size_t i, const double *mean, const double *inv_std) {
    size_t c = i % d->channels;
    double xhat = (d->x.host[i] - mean[c]) * inv_std[c];
    return d->scale * (d->gamma.host[c] * xhat + d->beta.host[c]) + (d->t->r ? d->r.host[i] : 0);
}

static void check_apply(const norm_data *d, const double *mean, const double *inv_std, uint32_t *mask) {
    const norm_case *t = d->t;
    tensor y = tensor_empty(d->count, t->y_store);
    double *z = host_doubles(d->count), *wanted = host_doubles(d->count);
    for (size_t i = 0; i < d->count; i++) {
        z[i] = z_of(d, i, mean, inv_std);
        wanted[i] = t->relu && z[i] < 0 ? 0 : z[i];
    }
    tn_epilogue e = {
        .r = t->r ? d->r.device : NULL, .relu = t->relu, .mask = t->relu ? mask : NULL, .nonfinite = d->flag};
    OK(tn_launch_norm_apply(t->pixels, t->channels, t->x_store, d->x.device, d->vectors, e, t->y_store,
                            y.device, 0));
    check_tensor("y", &y, wanted);
    if (t->relu) check_mask("mask", mask, z, d->count);
    check_flag("apply", d->flag, 0);
}

static void check_training(norm_data *d) {
    const norm_case *t = d->t;
    double n = (double)t->pixels, *mean = host_doubles(d->channels), *var = host_doubles(d->channels);
    double *moments = device_raw(2 * d->channels * sizeof *moments);
    OK(tn_launch_norm_statistics(t->pixels, t->channels, t->x_store, d->x.device,
                                 device_raw(tn_norm_workspace(t->pixels, t->channels)), moments, 0));
    OK(tn_launch_norm_finish(n, t->channels, moments, floats(d->gamma), floats(d->beta),
                             t->s ? floats(d->s) : NULL, floats(d->running_mean), floats(d->running_var),
                             d->vectors, d->flag, 0));
    for (size_t c = 0; c < d->channels; c++) {
        mean[c] = 0.9 * d->running_mean.host[c] + 0.1 * d->mean[c];
        var[c] = 0.9 * d->running_var.host[c] + 0.1 * (n > 1 ? d->var[c] * n / (n - 1) : d->var[c]);
    }
    check_tensor("running mean", &d->running_mean, mean);
    check_tensor("running var", &d->running_var, var);
    check_flag("finish", d->flag, 0);
}

/* Backward with the mask that forward made; the reference takes the same bits. */
static void check_backward(const norm_data *d, const uint32_t *mask) {
    const norm_case *t = d->t;
    size_t channels = d->channels;
    double n = (double)t->pixels, ds = 0, *dz = host_doubles(d->count), *dx = host_doubles(d->count);
    double *sum = host_doubles(channels), *product = host_doubles(channels);
    const uint8_t *bits = t->relu ? host_copy(mask, (d->count + 7) / 8) : NULL;
    tn_parts dy = {.count = t->parts};
    for (int k = 0; k < t->parts; k++) {
        tensor part = tensor_random(d->count, t->y_store, (uint32_t)(20 + k));
        dy.part[k] = part.device;
        for (size_t i = 0; i < d->count; i++) dz[i] += part.host[i];
    }
    for (size_t i = 0; i < d->count; i++) {
        size_t c = i % channels;
        if (bits && !(bits[i / 8] >> (i % 8) & 1)) dz[i] = 0;
        sum[c] += dz[i];
        product[c] += dz[i] * (d->x.host[i] - d->mean[c]) * d->inv_std[c];
    }
    for (size_t i = 0; i < d->count; i++) {
        size_t c = i % channels;
        double xhat = (d->x.host[i] - d->mean[c]) * d->inv_std[c];
        dx[i] = d->scale * d->gamma.host[c] * d->inv_std[c] * (dz[i] - sum[c] / n - xhat * product[c] / n);
    }
    for (size_t c = 0; c < channels; c++) {
        ds += d->gamma.host[c] * product[c] + d->beta.host[c] * sum[c];
        sum[c] *= d->scale;
        product[c] *= d->scale;
    }
    tensor got_dz = {.count = d->count, .store = t->y_store, .device = (void *)(uintptr_t)dy.part[0]};
    tensor dgamma = tensor_empty(channels, F), dbeta = tensor_empty(channels, F), scale = tensor_empty(1, F);
    tensor got = tensor_empty(d->count, t->x_store);
    double *moments = device_raw(2 * channels * sizeof *moments);
    float *slopes = device_raw(2 * channels * sizeof *slopes);
    OK(tn_launch_norm_reduce(t->pixels, t->channels, t->x_store, d->x.device, d->vectors.mean, t->y_store, dy,
                             t->relu ? mask : NULL, got_dz.device,
                             device_raw(tn_norm_workspace(t->pixels, t->channels)), moments, d->flag, 0));
    check_tensor("dz", &got_dz, dz);
    OK(tn_launch_norm_gradients(n, t->channels, moments, d->vectors.inv_std, floats(d->gamma),
                                floats(d->beta), t->s ? floats(d->s) : NULL, floats(dgamma), floats(dbeta),
                                floats(scale), slopes, 0));
    check_tensor("dbeta", &dbeta, sum);
    check_tensor("dgamma", &dgamma, product);
    check_tensor("ds", &scale, &ds);
    OK(tn_launch_norm_backward(t->pixels, t->channels, t->x_store, d->x.device, d->vectors, slopes,
                               t->y_store, got_dz.device, got.device, 0));
    tensor_read(&got); /* from dz as it was stored */
    check_values("dx", got.host, dx, d->count, t->x_store == B || t->y_store == B ? 2e-2 : 1e-4);
    check_flag("reduce", d->flag, 0);
}

static void run_case(void *argument) {
    const norm_case *t = argument;
    norm_data d = make(t);
    uint32_t *mask = device_raw(mask_bytes(d.count));
    double *inv_std = host_doubles(d.channels);
    for (size_t c = 0; c < d.channels; c++) inv_std[c] = 1 / sqrt(d.running_var.host[c] + 1e-5);
    OK(tn_launch_norm_load(t->channels, floats(d.gamma), floats(d.beta), t->s ? floats(d.s) : NULL,
                           floats(d.running_mean), floats(d.running_var), d.vectors, 0));
    check_apply(&d, d.running_mean.host, inv_std, mask);
    check_training(&d);
    check_apply(&d, d.mean, d.inv_std, mask);
    check_backward(&d, mask);
}

static void test_norm(void **unused) {
    static const norm_case cases[] = {
        {1100, 16, F, F, .s = true, .r = true, .relu = true, .parts = 2},
        {600, 64, B, B, .relu = true, .parts = 1},
        {513, 32, B, F, .s = true, .r = true, .relu = true, .parts = 4},
        {40, 33, F, B, .relu = true, .parts = 3},
        {77, 3, F, F, .s = true, .parts = 1},
        {2000, 10, F, F, .relu = true, .parts = 1, .offset = 1000},
        {1, 5, F, F, .parts = 1},
    };
    (void)unused;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        norm_case t = cases[i];
        char name[32];
        snprintf(name, sizeof name, "norm %zu", i);
        check_case(name, run_case, &t);
    }
}

static void run_nonfinite(void *argument) {
    norm_case t = {.pixels = 20, .channels = 4, .x_store = F, .y_store = F, .parts = 1};
    double moments[8] = {1, NAN, 3, 4, 1, 1, INFINITY, 1}, before[4] = {1, 2, 3, 4};
    norm_data d = make(&t);
    tensor mean = tensor_of(before, 4, F), var = tensor_of(before, 4, F);
    (void)argument;
    OK(tn_launch_norm_finish(20, 4, device_copy(moments, sizeof moments), floats(d.gamma), floats(d.beta),
                             NULL, floats(mean), floats(var), d.vectors, d.flag, 0));
    check_flag("finish", d.flag, 1);
    tensor_read(&mean);
    tensor_read(&var);
    assert_true(mean.host[1] == 2 && mean.host[2] == 3 && var.host[1] == 2 && var.host[2] == 3);
    assert_true(mean.host[0] != 1 && var.host[3] != 4);
}

static void test_nonfinite(void **unused) {
    (void)unused;
    check_case("moments that are not finite", run_nonfinite, NULL);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_norm), cmocka_unit_test(test_nonfinite)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
