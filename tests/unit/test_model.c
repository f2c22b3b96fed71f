/* The model builder: counts, names, initial values, errors, memory. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/memory.h"
#include "model/graph.h"

static tn_model *build_config(tn_model_config config) {
    tn_model *model;
    if (tn_model_build(&config, &model) != TN_OK) fail_msg("%s", tn_error());
    return model;
}

static tn_model *build(const char *name, const char *variant) {
    return build_config((tn_model_config){.model = name, .variant = variant});
}

static const tn_param *find_param(const tn_model *model, const char *name) {
    for (int p = 0; p < model->param_count; p++)
        if (strcmp(model->params[p].name, name) == 0) return &model->params[p];
    fail_msg("no parameter %s", name);
    return NULL;
}

static const tn_node *find_node(const tn_model *model, const char *name) {
    for (int n = 0; n < model->node_count; n++)
        if (strcmp(model->nodes[n].name, name) == 0) return &model->nodes[n];
    fail_msg("no node %s", name);
    return NULL;
}

/* ---- counts ---- */

/* ResNet-20: convs 432 + 6 * 2304 + (4608 + 5 * 9216) + (18432 + 5 * 36864) = 267,696, linear 650, norms
 * 2 * (16 + 6 * 16 + 6 * 32 + 6 * 64) = 1,376: 269,722 (0.27 M in He et al. 2016), and the shortcuts' own
 * norms 2 * (16 + 32) = 96. Without norms: 4 scalars a block, 9 blocks, and tau; fixup 5 a block and 2.
 * ResNet-110 (n = 18): convs 432 + 36 * 2304 + (4608 + 35 * 9216) + (18432 + 35 * 36864) = 1,719,216, linear
 * 650, norms 2 * (16 + 36 * 112) = 8,096: 1,727,962 (1.7 M). ResNet-1202: 19,421,274 (19.4 M). */
static void parameter_counts(void **state) {
    (void)state;
    static const struct {
        const char *model, *variant;
        size_t count;
    } rows[] = {
        {"resnet20", "bn", 269722 + 96},
        {"resnet20", "bn-tau", 269722 + 96},
        {"resnet20", "tau", 268346 + 36 + 1},
        {"resnet20", "fixup", 268346 + 45 + 2},
        {"resnet20", "alpha", 268346 + 45},
        {"resnet20", "skipinit", 268346 + 45},
        {"resnet20", "plain", 268346 + 36},
        {"resnet110", "bn", 1727962 + 96},
        {"resnet110", "tau", 1719866 + 4 * 54 + 1},
        {"resnet1202", "bn", 19421274 + 96},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        tn_model *model = build(rows[i].model, rows[i].variant);
        assert_int_equal(tn_model_parameter_count(model), rows[i].count);
        tn_model_free(model);
    }
    tn_model *model =
        build_config((tn_model_config){.model = "resnet20", .variant = "bn", .no_bn_shortcut = true});
    assert_int_equal(tn_model_parameter_count(model), 269722);
    tn_model_free(model);
    model = build_config((tn_model_config){.model = "resnet20", .variant = "tau", .tau_per_block = true});
    assert_int_equal(tn_model_parameter_count(model), 268346 + 45);
    tn_model_free(model);
}

/* Per block and pixel of the first stage 2 * 9 * 16 * 16; stages 2 and 3 the same with a quarter of the
 * pixels and four times the products, but half of it in a stage's first conv: 442,368 + 14,155,776 + 2 *
 * 12,976,128 + 640 for depth 20. */
static void multiply_adds(void **state) {
    (void)state;
    static const struct {
        const char *model;
        double exact, about;
    } rows[] = {{"resnet20", 40551040, 41e6},
                {"resnet56", 442368 + 42467328 + 2 * 41287680.0 + 640, 126e6},
                {"resnet110", 442368 + 84934656 + 2 * 83755008.0 + 640, 253e6},
                {"resnet1202", 442368 + 943718400 + 2 * 942538752.0 + 640, 2.83e9}};
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        tn_model *model = build(rows[i].model, "tau");
        assert_true(tn_model_multiply_adds(model) == rows[i].exact);
        assert_true(fabs(rows[i].exact / rows[i].about - 1) < 0.015);
        tn_model_free(model);
    }
}

static void layers_add_up(void **state) {
    (void)state;
    static const char *const variants[] = {"bn", "bn-tau", "tau", "fixup", "alpha", "skipinit", "plain"};
    for (size_t v = 0; v < sizeof variants / sizeof variants[0]; v++) {
        tn_model *model = build("resnet14", variants[v]);
        size_t parameters = 0;
        double products = 0;
        for (int i = 0; i < tn_model_layer_count(model); i++) {
            parameters += tn_model_layer(model, i).parameters;
            products += tn_model_layer(model, i).multiply_adds;
        }
        assert_int_equal(parameters, tn_model_parameter_count(model));
        assert_true(products == tn_model_multiply_adds(model));
        tn_model_free(model);
    }
}

static void layers_describe_the_network(void **state) {
    (void)state;
    static const struct {
        const char *name, *kind;
        int channels, size;
        size_t parameters;
    } rows[] = {
        {"conv1", "conv", 16, 32, 432},
        {"layer1.0.conv1", "conv", 16, 32, 2304 + 2}, /* bias1a, bias1b */
        {"layer1.0.conv2", "conv", 16, 32, 2304 + 3}, /* bias2a, bias2b, tau */
        {"layer2.0.subsample", "subsample", 16, 16, 0},
        {"layer2.0.append", "append", 32, 16, 0},
        {"layer2.0.conv1", "conv", 32, 16, 4608 + 2},
        {"layer2.0.conv2", "conv", 32, 16, 9216 + 2},
        {"layer3.0.subsample", "subsample", 32, 8, 0},
        {"layer3.0.append", "append", 64, 8, 0},
        {"layer3.0.conv1", "conv", 64, 8, 18432 + 2},
        {"layer3.0.conv2", "conv", 64, 8, 36864 + 2},
        {"avgpool", "avgpool", 64, 1, 0},
        {"fc", "linear", 10, 1, 650},
        {"loss", "loss", 1, 1, 0},
    };
    tn_model *model = build("resnet8", "tau");
    assert_int_equal(tn_model_layer_count(model), sizeof rows / sizeof rows[0]);
    assert_int_equal(tn_model_classes(model), 10);
    for (int i = 0; i < tn_model_layer_count(model); i++) {
        tn_layer_info layer = tn_model_layer(model, i);
        assert_string_equal(layer.name, rows[i].name);
        assert_string_equal(layer.kind, rows[i].kind);
        assert_int_equal(layer.channels, rows[i].channels);
        assert_int_equal(layer.height, rows[i].size);
        assert_int_equal(layer.width, rows[i].size);
        assert_int_equal(layer.parameters, rows[i].parameters);
    }
    tn_model_free(model);
}

/* ---- names ---- */

#define BIASES(block)     block ".bias1a", block ".bias1b", block ".bias2a", block ".bias2b"
#define CONVS(block)      block ".conv1.weight", block ".conv2.weight"
#define NORM(name)        name ".weight", name ".bias"
#define NORM_BLOCK(block) block ".conv1.weight", NORM(block ".bn1"), block ".conv2.weight", NORM(block ".bn2")
#define SCALED_BLOCKS(scale)                                                                                 \
    BIASES("layer1.0"), "layer1.0." scale, CONVS("layer1.0"), BIASES("layer2.0"), "layer2.0." scale,         \
        CONVS("layer2.0"), BIASES("layer3.0"), "layer3.0." scale, CONVS("layer3.0")
#define PLAIN_BLOCKS                                                                                         \
    BIASES("layer1.0"), CONVS("layer1.0"), BIASES("layer2.0"), CONVS("layer2.0"), BIASES("layer3.0"),        \
        CONVS("layer3.0")
#define FC "fc.weight", "fc.bias"

static void assert_names(tn_model_config config, const char *const *names) {
    config.model = "resnet8";
    tn_model *model = build_config(config);
    int count = 0;
    while (names[count]) count++;
    for (int p = 0; p < model->param_count && p < count; p++)
        assert_string_equal(model->params[p].name, names[p]);
    assert_int_equal(model->param_count, count);
    tn_model_free(model);
}

static void parameters_are_named_as_in_pytorch(void **state) {
    (void)state;
    static const char *const bn[] = {"conv1.weight",
                                     NORM("bn1"),
                                     NORM_BLOCK("layer1.0"),
                                     NORM_BLOCK("layer2.0"),
                                     NORM("layer2.0.downsample.1"),
                                     NORM_BLOCK("layer3.0"),
                                     NORM("layer3.0.downsample.1"),
                                     FC,
                                     NULL};
    static const char *const bn_plain_shortcut[] = {"conv1.weight",
                                                    NORM("bn1"),
                                                    NORM_BLOCK("layer1.0"),
                                                    NORM_BLOCK("layer2.0"),
                                                    NORM_BLOCK("layer3.0"),
                                                    FC,
                                                    NULL};
    static const char *const shared[] = {"tau", "conv1.weight", PLAIN_BLOCKS, FC, NULL};
    static const char *const per_block[] = {"conv1.weight", SCALED_BLOCKS("tau"), FC, NULL};
    static const char *const fixup[] = {"bias1", "bias2", "conv1.weight", SCALED_BLOCKS("scale"), FC, NULL};
    static const char *const alpha[] = {"conv1.weight", SCALED_BLOCKS("alpha"), FC, NULL};
    static const char *const plain[] = {"conv1.weight", PLAIN_BLOCKS, FC, NULL};
    assert_names((tn_model_config){.variant = "bn"}, bn);
    assert_names((tn_model_config){.variant = "bn-tau"}, bn);
    assert_names((tn_model_config){.variant = "bn", .no_bn_shortcut = true}, bn_plain_shortcut);
    assert_names((tn_model_config){.variant = "tau"}, shared);
    assert_names((tn_model_config){.variant = "tau", .tau_per_block = true}, per_block);
    assert_names((tn_model_config){.variant = "fixup"}, fixup);
    assert_names((tn_model_config){.variant = "alpha"}, alpha);
    assert_names((tn_model_config){.variant = "skipinit"}, alpha);
    assert_names((tn_model_config){.variant = "plain"}, plain);
}

static void states_and_aliases_are_named_as_in_pytorch(void **state) {
    (void)state;
    static const char *const states[] = {"bn1",          "layer1.0.bn1", "layer1.0.bn2",
                                         "layer2.0.bn1", "layer2.0.bn2", "layer2.0.downsample.1",
                                         "layer3.0.bn1", "layer3.0.bn2", "layer3.0.downsample.1"};
    tn_model *model = build("resnet8", "bn");
    assert_int_equal(model->state_count, 9);
    size_t offset = 0;
    for (int s = 0; s < 9; s++) {
        assert_string_equal(model->states[s].name, states[s]);
        assert_int_equal(model->states[s].mean_offset, offset);
        assert_int_equal(model->states[s].var_offset, offset + (size_t)model->states[s].count);
        offset += 2 * (size_t)model->states[s].count;
    }
    assert_int_equal(model->state_floats, offset);
    assert_int_equal(model->states[5].count, 16); /* the channels that come in, before zeros are appended */
    assert_int_equal(model->alias_count, 0);
    tn_model_free(model);

    static const char *const aliases[] = {"layer1.0.tau", "layer1.1.tau", "layer2.0.tau",
                                          "layer2.1.tau", "layer3.0.tau", "layer3.1.tau"};
    model = build("resnet14", "tau");
    assert_int_equal(model->alias_count, 6);
    for (int a = 0; a < 6; a++) {
        assert_string_equal(model->aliases[a].name, aliases[a]);
        assert_string_equal(model->params[model->aliases[a].param].name, "tau");
    }
    tn_model_free(model);
}

/* ---- the parameter table ---- */

static void weights_come_before_scalars_without_gaps(void **state) {
    (void)state;
    tn_model *model = build("resnet14", "fixup");
    size_t next[TN_GROUPS] = {0, model->weight_floats};
    for (int p = 0; p < model->param_count; p++) {
        const tn_param *param = &model->params[p];
        assert_int_equal(param->offset, next[param->group]);
        next[param->group] += param->count;
        const char *last = strrchr(param->name, '.');
        bool scalar = param->count == 1;
        assert_int_equal(param->group, scalar ? TN_GROUP_SCALARS : TN_GROUP_WEIGHTS);
        if (scalar)
            assert_true(strncmp(last ? last + 1 : param->name, "bias", 4) == 0 ||
                        strstr(param->name, "scale"));
        assert_true(param->grad_factor == 1);
    }
    assert_int_equal(next[TN_GROUP_WEIGHTS], model->weight_floats);
    assert_int_equal(next[TN_GROUP_SCALARS], model->param_floats);
    tn_model_free(model);

    model = build("resnet8", "bn");
    assert_int_equal(model->weight_floats, model->param_floats);
    tn_model_free(model);
}

static void only_the_shared_tau_averages_its_gradient(void **state) {
    (void)state;
    tn_model *model = build("resnet20", "tau");
    for (int p = 0; p < model->param_count; p++)
        assert_true(model->params[p].grad_factor == (p == 0 ? (float)(1.0 / 9) : 1));
    assert_int_equal(model->blocks, 9);
    tn_model_free(model);
    model = build_config((tn_model_config){.model = "resnet20", .tau_per_block = true});
    for (int p = 0; p < model->param_count; p++) assert_true(model->params[p].grad_factor == 1);
    tn_model_free(model);
}

static void tau_is_where_the_variant_has_it(void **state) {
    (void)state;
    tn_model *model = build("resnet20", "tau");
    assert_true(find_param(model, "tau")->init_value == 1.0 / 3);
    assert_true(model->tau == 1.0 / 3);
    tn_model_free(model);

    model = build_config(
        (tn_model_config){.model = "resnet20", .variant = "tau", .tau = "0.25", .tau_per_block = true});
    assert_true(find_param(model, "layer3.2.tau")->init_value == 0.25);
    assert_string_equal(model->params[find_node(model, "layer3.2.conv2")->scale.param].name, "layer3.2.tau");
    tn_model_free(model);

    model = build_config((tn_model_config){.model = "resnet20", .variant = "bn-tau", .tau = "2/sqrt(L)"});
    assert_true(find_node(model, "layer1.0.bn2")->scale.factor == (float)(2.0 / 3));
    assert_true(find_node(model, "layer1.0.bn2")->scale.param == -1);
    assert_true(find_node(model, "layer1.0.bn1")->scale.factor == 1);
    tn_model_free(model);

    model = build("resnet20", "alpha");
    assert_true(find_node(model, "layer2.1.conv2")->scale.factor == (float)(1.0 / 9));
    assert_true(find_param(model, "layer2.1.alpha")->init_value == 1);
    assert_true(model->tau == 1);
    tn_model_free(model);

    model = build("resnet20", "skipinit");
    assert_true(find_node(model, "layer2.1.conv2")->scale.factor == 1);
    assert_true(find_param(model, "layer2.1.alpha")->init_value == 0);
    tn_model_free(model);

    float values[2] = {0, 0.5f};
    tn_model tiny = {.params = (tn_param[]){{.offset = 1}}};
    tn_node node = tn_node_init(TN_NODE_CONV, "x", 0);
    node.scale = (tn_scale){.factor = 3, .param = 0};
    assert_true(tn_node_scale(&node, &tiny, values) == 1.5f);
    node.scale.param = -1;
    assert_true(tn_node_scale(&node, &tiny, values) == 3);
}

/* ---- initial values ---- */

/* Mean and mean square of a parameter's initial values lie within five standard errors of what they are drawn
 * from; `kurtosis` is E x^4 / (E x^2)^2. */
static void assert_moments(const tn_model *model, const float *values, const char *name, double variance,
                           double kurtosis) {
    const tn_param *param = find_param(model, name);
    double mean = 0, square = 0, n = (double)param->count;
    for (size_t i = 0; i < param->count; i++) {
        double x = (double)values[param->offset + i];
        mean += x / n;
        square += x * x / n;
    }
    if (fabs(mean) > 5 * sqrt(variance / n)) fail_msg("%s: mean %g", name, mean);
    if (fabs(square - variance) > 5 * variance * sqrt((kurtosis - 1) / n))
        fail_msg("%s: mean square %g, not %g", name, square, variance);
}

/* Drawn from U(-a, a). */
static void assert_uniform(const tn_model *model, const float *values, const char *name, double a) {
    const tn_param *param = find_param(model, name);
    assert_moments(model, values, name, a * a / 3, 1.8);
    for (size_t i = 0; i < param->count; i++) assert_true(fabs((double)values[param->offset + i]) <= a);
}

static void assert_constant(const tn_model *model, const float *values, const char *name, float value) {
    const tn_param *param = find_param(model, name);
    for (size_t i = 0; i < param->count; i++) assert_true(values[param->offset + i] == value);
}

static float *initial(const tn_model *model, uint64_t seed, float **state) {
    float *values = malloc(model->param_floats * sizeof *values);
    *state = malloc((model->state_floats + 1) * sizeof **state);
    assert_true(values && *state);
    tn_model_initialise(model, seed, values, *state);
    return values;
}

static void initial_values_without_norms(void **unused) {
    (void)unused;
    float *state;
    tn_model *model = build("resnet20", "tau");
    float *values = initial(model, 1, &state);
    assert_moments(model, values, "conv1.weight", 2 / (9.0 * 16), 3);
    assert_moments(model, values, "layer2.0.conv1.weight", 2 / (9.0 * 32), 3);
    assert_moments(model, values, "layer3.2.conv2.weight", 2 / (9.0 * 64), 3);
    assert_uniform(model, values, "fc.weight", 1 / 8.0);
    assert_uniform(model, values, "fc.bias", 1 / 8.0);
    assert_constant(model, values, "tau", (float)(1.0 / 3));
    assert_constant(model, values, "layer2.1.bias2a", 0);
    free(values);
    free(state);
    tn_model_free(model);

    model = build("resnet20", "fixup");
    values = initial(model, 2, &state);
    assert_uniform(model, values, "conv1.weight", 1 / sqrt(27));
    assert_moments(model, values, "layer2.0.conv1.weight", 2 / (9.0 * 32) / 9, 3);
    assert_constant(model, values, "layer2.0.conv2.weight", 0);
    assert_constant(model, values, "layer2.0.scale", 1);
    assert_constant(model, values, "fc.weight", 0);
    assert_constant(model, values, "fc.bias", 0);
    assert_constant(model, values, "bias1", 0);
    free(values);
    free(state);
    tn_model_free(model);
}

static void initial_values_with_norms(void **unused) {
    (void)unused;
    float *state;
    tn_model *model =
        build_config((tn_model_config){.model = "resnet8", .variant = "bn", .zero_init_last_gamma = true});
    float *values = initial(model, 3, &state);
    assert_moments(model, values, "layer3.0.conv1.weight", 2 / (9.0 * 64), 3);
    assert_constant(model, values, "bn1.weight", 1);
    assert_constant(model, values, "layer3.0.bn1.weight", 1);
    assert_constant(model, values, "layer3.0.bn2.weight", 0);
    assert_constant(model, values, "layer3.0.downsample.1.weight", 1);
    assert_constant(model, values, "layer3.0.bn2.bias", 0);
    for (int s = 0; s < model->state_count; s++)
        for (int c = 0; c < model->states[s].count; c++) {
            assert_true(state[model->states[s].mean_offset + (size_t)c] == 0);
            assert_true(state[model->states[s].var_offset + (size_t)c] == 1);
        }
    free(values);
    free(state);
    tn_model_free(model);
}

static void initial_values_depend_on_seed_and_parameter_alone(void **unused) {
    (void)unused;
    float *state;
    tn_model *model = build("resnet8", "plain");
    float *a = initial(model, 7, &state);
    free(state);
    float *b = initial(model, 7, &state);
    free(state);
    float *c = initial(model, 8, &state);
    free(state);
    size_t bytes = model->param_floats * sizeof *a;
    assert_memory_equal(a, b, bytes);
    const float *one = a + find_param(model, "layer1.0.conv1.weight")->offset;
    const float *two = a + find_param(model, "layer1.0.conv2.weight")->offset;
    int equal_seeds = 0, equal_params = 0;
    for (size_t i = 0; i < 2304; i++) {
        equal_params += one[i] == two[i];
        equal_seeds += one[i] == (c + (one - a))[i];
    }
    assert_true(equal_params < 5 && equal_seeds < 5);
    free(a);
    free(b);
    free(c);
    tn_model_free(model);
}

/* ---- other sizes ---- */

static void other_image_sizes(void **state) {
    (void)state;
    static const struct {
        int channels, height, width, second[2], third[2];
    } rows[] = {
        {1, 28, 28, {14, 14}, {7, 7}}, /* Fashion-MNIST */
        {3, 33, 31, {17, 16}, {9, 8}}, {4, 5, 64, {3, 32}, {2, 16}},
        {3, 4, 4, {2, 2}, {1, 1}},     {2, 1, 1, {1, 1}, {1, 1}},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        tn_model *model = build_config((tn_model_config){.model = "resnet14",
                                                         .channels = rows[i].channels,
                                                         .height = rows[i].height,
                                                         .width = rows[i].width,
                                                         .classes = 7,
                                                         .base_width = 5});
        const tn_node *second = find_node(model, "layer2.1.conv2"),
                      *third = find_node(model, "layer3.0.append");
        tn_shape s = model->tensors[second->output].shape, t = model->tensors[third->output].shape;
        assert_int_equal(find_param(model, "conv1.weight")->dims[1], rows[i].channels);
        assert_int_equal(find_param(model, "fc.weight")->dims[0], 7);
        assert_int_equal(find_param(model, "fc.weight")->dims[1], 20);
        assert_true(s.channels == 10 && s.height == rows[i].second[0] && s.width == rows[i].second[1]);
        assert_true(t.channels == 20 && t.height == rows[i].third[0] && t.width == rows[i].third[1]);
        tn_model_free(model);
    }
}

static void deep_networks_build(void **state) {
    (void)state;
    tn_model *model = build("resnet6002", "bn-tau");
    assert_int_equal(model->blocks, 3000);
    assert_true(model->tau == 1 / sqrt(3000));
    find_node(model, "layer3.999.bn2");
    tn_model_free(model);
}

static void defaults_are_resnet20_with_tau_on_cifar10(void **state) {
    (void)state;
    tn_model *model = build_config((tn_model_config){0});
    assert_string_equal(model->model_name, "resnet20");
    assert_string_equal(model->variant, "tau");
    tn_shape s = model->tensors[0].shape;
    assert_true(s.channels == 3 && s.height == 32 && s.width == 32 && model->classes == 10);
    tn_model_free(model);
}

/* ---- errors ---- */

static void wrong_configurations_are_refused(void **state) {
    (void)state;
    static const struct {
        tn_model_config config;
        const char *says[3]; /* all of these are in the message */
    } rows[] = {
        {{.model = "resnet21"}, {"resnet21", "resnet20", "resnet26"}},
        {{.model = "resnet19"}, {"6n+2", "resnet14", "resnet20"}},
        {{.model = "resnet2"}, {"resnet8 and resnet14"}},
        {{.model = "resnet51"}, {"resnet44", "resnet56"}},
        {{.model = "resnet600008"}, {"too deep", "resnet600002"}},
        {{.model = "resnet99999999999999999999"}, {"too deep"}},
        {{.model = "resnet"}, {"\"resnet\" is unknown", "resnet20", "resnet18, 34, 50, 101 and 152"}},
        {{.model = "resnet020"}, {"is unknown"}},
        {{.model = "resnet20x"}, {"is unknown"}},
        {{.model = "vgg16"}, {"\"vgg16\" is unknown"}},
        {{.model = ""}, {"\"\" is unknown"}},
        {{.variant = "batchnorm"}, {"\"batchnorm\"", "bn, bn-tau, tau, fixup, alpha, skipinit, plain"}},
        {{.variant = ""}, {"--variant \"\" is unknown"}},
        {{.tau = "1/"}, {"1/"}},
        {{.tau = "1e300"}, {"1e300", "L = 9"}},
        {{.variant = "fixup", .tau = "0.5"}, {"--tau \"0.5\"", "--variant fixup"}},
        {{.variant = "bn-tau", .tau_per_block = true}, {"--tau-sharing per-block", "bn-tau"}},
        {{.variant = "fixup", .no_bn_shortcut = true}, {"--bn-shortcut no", "variant fixup"}},
        {{.variant = "tau", .zero_init_last_gamma = true}, {"--zero-init-last-gamma", "variant tau"}},
        {{.channels = -1}, {"-1 x 32 x 32"}},
        {{.height = -5}, {"at least 1"}},
        {{.classes = -2}, {"-2 classes"}},
        {{.classes = 1000000}, {"1000000 classes"}},
        {{.base_width = -3}, {"base width -3"}},
        {{.base_width = 100000}, {"base width 100000"}},
        {{.height = 60000, .width = 60000}, {"60000", "too many"}},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        tn_model *model = (tn_model *)1;
        assert_int_equal(tn_model_build(&rows[i].config, &model), TN_ERR_USAGE);
        assert_null(model);
        assert_null(strchr(tn_error(), '\n'));
        for (int k = 0; k < 3 && rows[i].says[k]; k++)
            if (!strstr(tn_error(), rows[i].says[k]))
                fail_msg("'%s' is not in: %s", rows[i].says[k], tn_error());
    }
}

static void a_window_larger_than_the_image_is_refused(void **state) {
    (void)state;
    tn_model *model;
    assert_int_equal(tn_graph_create(&model, (tn_shape){3, 2, 9}, 4), TN_OK);
    tn_node pool = tn_node_init(TN_NODE_MAXPOOL, "pool", 0);
    pool.kernel = 3;
    assert_int_equal(tn_graph_add(model, pool, NULL), TN_ERR_USAGE);
    assert_non_null(strstr(tn_error(), "pool: 2 x 9 pixels"));
    tn_model_free(model);
}

static void failing_allocations_leave_nothing_behind(void **state) {
    (void)state;
    static const char *const variants[] = {"bn", "tau", "fixup"};
    for (size_t v = 0; v < sizeof variants / sizeof variants[0]; v++) {
        tn_model_config config = {.model = "resnet14", .variant = variants[v]};
        size_t before = tn_memory_in_use();
        long n = 0;
        tn_status status;
        do {
            tn_model *model;
            tn_memory_fail_at(++n);
            status = tn_model_build(&config, &model);
            assert_true(status == TN_OK ? model != NULL : status == TN_ERR_MEMORY && model == NULL);
            tn_model_free(model);
            assert_int_equal(tn_memory_in_use(), before);
        } while (status != TN_OK);
        tn_memory_fail_at(0);
        assert_true(n > 10);
    }
    tn_model_free(NULL);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(parameter_counts),
        cmocka_unit_test(multiply_adds),
        cmocka_unit_test(layers_add_up),
        cmocka_unit_test(layers_describe_the_network),
        cmocka_unit_test(parameters_are_named_as_in_pytorch),
        cmocka_unit_test(states_and_aliases_are_named_as_in_pytorch),
        cmocka_unit_test(weights_come_before_scalars_without_gaps),
        cmocka_unit_test(only_the_shared_tau_averages_its_gradient),
        cmocka_unit_test(tau_is_where_the_variant_has_it),
        cmocka_unit_test(initial_values_without_norms),
        cmocka_unit_test(initial_values_with_norms),
        cmocka_unit_test(initial_values_depend_on_seed_and_parameter_alone),
        cmocka_unit_test(other_image_sizes),
        cmocka_unit_test(deep_networks_build),
        cmocka_unit_test(defaults_are_resnet20_with_tau_on_cifar10),
        cmocka_unit_test(wrong_configurations_are_refused),
        cmocka_unit_test(a_window_larger_than_the_image_is_refused),
        cmocka_unit_test(failing_allocations_leave_nothing_behind),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
