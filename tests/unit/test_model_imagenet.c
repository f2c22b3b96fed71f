/* ImageNet's networks as the builder makes them: counts, names, shapes, scales and initial values. That they
 * compute what they should is the business of test_cpu_engine, test_oracle and test_torchvision. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "model/graph.h"

static const char *const variants[] = {"bn", "bn-tau", "tau", "fixup", "alpha", "skipinit", "plain"};

static tn_model *build_config(tn_model_config config) {
    tn_model *model;
    if (tn_model_build(&config, &model) != TN_OK) fail_msg("%s", tn_error());
    return model;
}

static tn_model *build(const char *name, const char *variant) {
    return build_config((tn_model_config){.model = name, .variant = variant});
}

static const tn_param *param_of(const tn_model *model, const char *name) {
    for (int p = 0; p < model->param_count; p++)
        if (strcmp(model->params[p].name, name) == 0) return &model->params[p];
    return NULL;
}

static const tn_param *find_param(const tn_model *model, const char *name) {
    const tn_param *param = param_of(model, name);
    if (!param) fail_msg("no parameter %s", name);
    return param;
}

static const tn_node *find_node(const tn_model *model, const char *name) {
    for (int n = 0; n < model->node_count; n++)
        if (strcmp(model->nodes[n].name, name) == 0) return &model->nodes[n];
    fail_msg("no node %s", name);
    return NULL;
}

static void assert_dims(const tn_model *model, const char *name, int out, int in, int kernel) {
    const int *dims = find_param(model, name)->dims;
    assert_int_equal(dims[0], out);
    assert_int_equal(dims[1], in);
    assert_int_equal(dims[2], kernel);
    assert_int_equal(dims[3], kernel);
}

static void assert_shape(const tn_model *model, const char *node, int channels, int height, int width) {
    tn_shape s = model->tensors[find_node(model, node)->output].shape;
    if (s.channels != channels || s.height != height || s.width != width)
        fail_msg("%s: %dx%dx%d", node, s.channels, s.height, s.width);
}

/* Parameters as published for torchvision's models; multiply-adds of those for 224 x 224. Without norms the
 * vectors of the norms go and six scalars a bottleneck (four a basic block), and tau, come. */
static void counts(void **state) {
    (void)state;
    static const struct {
        const char *model;
        size_t parameters;
        double giga; /* multiply-adds */
        int blocks, norms, norm_channels;
        double tau;
    } rows[] = {
        {"resnet18", 11689512, 1.814, 8, 20, 4800, 0.35355339059327},
        {"resnet34", 21797672, 3.664, 16, 36, 8512, 0.25},
        {"resnet50", 25557032, 4.089, 16, 53, 26560, 0.81649658092773},
        {"resnet101", 44549160, 7.801, 33, 104, 52672, 0.41702882811415},
        {"resnet152", 60192808, 11.514, 50, 155, 75712, 0.33333333333333},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        bool bottleneck = i >= 2;
        size_t scalars = (size_t)rows[i].blocks * (bottleneck ? 6 : 4);
        tn_model *bn = build(rows[i].model, "bn"), *tau = build(rows[i].model, "tau"),
                 *fixup = build(rows[i].model, "fixup");
        assert_int_equal(tn_model_parameter_count(bn), rows[i].parameters);
        assert_int_equal(bn->state_count, rows[i].norms);
        assert_int_equal(bn->state_floats, 2 * rows[i].norm_channels);
        assert_true(fabs(tn_model_multiply_adds(bn) / 1e9 - rows[i].giga) < 0.001);
        assert_int_equal(tau->blocks, rows[i].blocks);
        size_t free_of_norms = rows[i].parameters - 2 * (size_t)rows[i].norm_channels + scalars;
        assert_int_equal(tn_model_parameter_count(tau), free_of_norms + 1);
        assert_int_equal(tn_model_parameter_count(fixup), free_of_norms + (size_t)rows[i].blocks + 2);
        assert_int_equal(tau->alias_count, rows[i].blocks);
        assert_true(fabs(tau->tau - rows[i].tau) < 1e-12);
        assert_true(fabs((double)find_param(tau, "tau")->grad_factor * rows[i].blocks - 1) < 1e-6);
        tn_model_free(bn);
        tn_model_free(tau);
        tn_model_free(fixup);
    }
}

static void shapes(void **state) {
    (void)state;
    tn_model *model = build("resnet50", "tau");
    assert_int_equal(tn_model_classes(model), 1000);
    assert_shape(model, "conv1", 64, 112, 112);
    assert_shape(model, "maxpool", 64, 56, 56);
    assert_shape(model, "layer1.2.conv3", 256, 56, 56);
    assert_shape(model, "layer2.0.conv1", 128, 56, 56); /* the stride is in the 3x3 conv */
    assert_shape(model, "layer2.0.conv2", 128, 28, 28);
    assert_shape(model, "layer4.2.conv3", 2048, 7, 7);
    assert_dims(model, "conv1.weight", 64, 3, 7);
    assert_dims(model, "layer1.0.downsample.0.weight", 256, 64, 1);
    assert_dims(model, "layer3.0.conv1.weight", 256, 512, 1);
    assert_dims(model, "layer3.0.conv2.weight", 256, 256, 3);
    assert_dims(model, "layer3.0.conv3.weight", 1024, 256, 1);
    assert_null(param_of(model, "layer3.1.downsample.0.weight"));
    tn_model_free(model);
    model = build_config((tn_model_config){.model = "resnet18", .height = 33, .width = 47, .channels = 1});
    assert_shape(model, "conv1", 64, 17, 24);
    assert_shape(model, "maxpool", 64, 9, 12);
    assert_shape(model, "layer2.0.conv1", 128, 5, 6);
    assert_shape(model, "layer2.0.downsample.0", 128, 5, 6);
    assert_shape(model, "layer4.1.conv2", 512, 2, 2);
    assert_dims(model, "layer4.0.conv1.weight", 512, 256, 3);
    assert_null(param_of(model, "layer1.0.downsample.0.weight")); /* the shapes agree there */
    tn_model_free(model);
}

/* All sizes from 32 on, and less, with every variant: the shortcut and the branch meet. */
static void any_image_size(void **state) {
    (void)state;
    static const int sizes[][2] = {{32, 32}, {33, 32}, {37, 61}, {64, 32}, {97, 224}, {225, 223}, {7, 1}};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++)
        for (int v = 0; v < 7; v++) {
            tn_model_config config = {.model = v % 2 ? "resnet18" : "resnet50",
                                      .variant = variants[v],
                                      .height = sizes[i][0],
                                      .width = sizes[i][1]};
            tn_model_free(build_config(config));
        }
}

static void names(void **state) {
    (void)state;
    static const char *const bottleneck[] = {
        "layer2.0.bias1a", "layer2.0.bias1b",           "layer2.0.bias2a",
        "layer2.0.bias2b", "layer2.0.bias3a",           "layer2.0.bias3b",
        "layer2.0.scale",  "layer2.0.conv3.weight",     "bias1",
        "bias2",           "layer2.0.downsample.weight"};
    tn_model *model = build("resnet50", "fixup");
    for (size_t i = 0; i < sizeof bottleneck / sizeof bottleneck[0]; i++) find_param(model, bottleneck[i]);
    assert_null(param_of(model, "layer2.0.downsample.0.weight"));
    assert_null(param_of(model, "layer2.0.bn1.weight"));
    tn_model_free(model);
    model = build("resnet34", "skipinit");
    find_param(model, "layer3.5.alpha");
    find_param(model, "layer3.5.bias2b");
    assert_null(param_of(model, "layer3.5.bias3a"));
    tn_model_free(model);
    model = build_config((tn_model_config){.model = "resnet50", .variant = "bn", .no_bn_shortcut = true});
    find_param(model, "layer2.0.downsample.0.weight");
    assert_null(param_of(model, "layer2.0.downsample.1.weight"));
    assert_int_equal(model->state_count, 53 - 4);
    tn_model_free(model);
    model = build_config((tn_model_config){.model = "resnet50", .tau_per_block = true});
    find_param(model, "layer4.2.tau");
    assert_null(param_of(model, "tau"));
    tn_model_free(model);
}

static void scales(void **state) {
    (void)state;
    tn_model *model = build("resnet101", "bn-tau");
    assert_true(find_node(model, "layer1.0.bn3")->scale.factor == (float)(2 / sqrt(23)));
    assert_true(find_node(model, "layer1.0.bn2")->scale.factor == 1);
    assert_true(find_node(model, "layer1.0.downsample.1")->scale.factor == 1);
    assert_true(find_node(model, "layer1.0.bn3")->scale.param == -1);
    tn_model_free(model);
    model = build_config((tn_model_config){.model = "resnet50", .tau = "1/L"});
    assert_true(find_param(model, "tau")->init_value == 1.0 / 6);
    tn_model_free(model);
    model = build_config((tn_model_config){.model = "resnet34", .tau = "1/L"});
    assert_true(find_param(model, "tau")->init_value == 1.0 / 16);
    tn_model_free(model);
    model = build("resnet152", "alpha");
    assert_true(find_node(model, "layer3.7.conv3")->scale.factor == (float)(1.0 / 50));
    tn_model_free(model);
}

/* Every parameter is counted for one layer, and an input bias for the layer that reads it, through the pool
 * too. */
static void layers_add_up(void **state) {
    (void)state;
    for (int v = 0; v < 7; v++) {
        tn_model *model = build(v % 2 ? "resnet50" : "resnet18", variants[v]);
        size_t sum = 0;
        for (int i = 0; i < tn_model_layer_count(model); i++) sum += tn_model_layer(model, i).parameters;
        assert_int_equal(sum, tn_model_parameter_count(model));
        tn_model_free(model);
    }
    tn_model *model = build("resnet18", "tau");
    assert_int_equal(find_node(model, "conv1")->parameters, 64 * 3 * 49);
    assert_int_equal(find_node(model, "layer1.0.conv1")->parameters, 64 * 64 * 9 + 2);
    tn_model_free(model);
}

static double deviation(const tn_model *model, const float *values, const char *name) {
    const tn_param *param = find_param(model, name);
    double sum = 0;
    for (size_t i = 0; i < param->count; i++) sum += pow((double)values[param->offset + i], 2);
    return sqrt(sum / (double)param->count);
}

static float *initial(const tn_model *model, float **state) {
    float *values = malloc(model->param_floats * sizeof *values);
    *state = malloc((model->state_floats + 1) * sizeof **state);
    tn_model_initialise(model, 11, values, *state);
    return values;
}

static void assert_near(double value, double wanted) {
    if (!(fabs(value / wanted - 1) < 0.03)) fail_msg("%g, not %g", value, wanted);
}

static void initial_values(void **unused) {
    (void)unused;
    float *state;
    tn_model *model = build("resnet50", "tau");
    float *values = initial(model, &state);
    assert_near(deviation(model, values, "conv1.weight"), sqrt(2.0 / (49 * 64)));
    assert_near(deviation(model, values, "layer2.0.downsample.0.weight"), sqrt(2.0 / 512));
    assert_near(deviation(model, values, "layer2.0.conv2.weight"), sqrt(2.0 / (9 * 128)));
    assert_near(deviation(model, values, "layer2.0.conv3.weight"), sqrt(2.0 / 512));
    free(values);
    free(state);
    tn_model_free(model);

    model = build("resnet50", "fixup");
    values = initial(model, &state);
    double quarter = pow(16, -0.25);
    assert_near(deviation(model, values, "conv1.weight"), 1 / sqrt(3 * 49 * 3));
    assert_near(deviation(model, values, "layer2.1.conv1.weight"), quarter * sqrt(2.0 / 128));
    assert_near(deviation(model, values, "layer2.1.conv2.weight"), quarter * sqrt(2.0 / (9 * 128)));
    assert_true(deviation(model, values, "layer2.1.conv3.weight") == 0);
    assert_true(deviation(model, values, "fc.weight") == 0);
    assert_near(deviation(model, values, "layer2.0.downsample.weight"), sqrt(2.0 / 512));
    free(values);
    free(state);
    tn_model_free(model);

    model = build("resnet34", "fixup");
    values = initial(model, &state);
    assert_near(deviation(model, values, "layer2.1.conv1.weight"), 0.25 * sqrt(2.0 / (9 * 128)));
    assert_true(deviation(model, values, "layer2.1.conv2.weight") == 0);
    free(values);
    free(state);
    tn_model_free(model);

    model =
        build_config((tn_model_config){.model = "resnet50", .variant = "bn", .zero_init_last_gamma = true});
    values = initial(model, &state);
    assert_true(deviation(model, values, "layer2.1.bn3.weight") == 0);
    assert_true(deviation(model, values, "layer2.1.bn2.weight") == 1);
    assert_true(deviation(model, values, "layer2.0.downsample.1.weight") == 1);
    free(values);
    free(state);
    tn_model_free(model);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(counts),         cmocka_unit_test(shapes), cmocka_unit_test(any_image_size),
        cmocka_unit_test(names),          cmocka_unit_test(scales), cmocka_unit_test(layers_add_up),
        cmocka_unit_test(initial_values),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
