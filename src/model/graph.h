/* The inside of a model: nodes, tensors and parameters (architecture.md, section 2).
 *
 * Eight node kinds are enough for every network. The residual join is an epilogue of conv, linear and norm,
 * never a node of its own. With z the value before the activation, a node computes
 *
 *   conv, linear:  z = s * op(x, W) + vector bias + c + r,    y = act(z) + d
 *   norm:          z = s * BN(x) + r,                         y = act(z)
 *   subsample:     y = x[::stride, ::stride] + c
 *   append:        y = x with zero channels appended, `channels` of them in all
 *   maxpool:       y = max over windows of x
 *   avgpool:       y = mean over all pixels of x, + d
 *   loss:          softmax cross-entropy with soft targets, or 1/2 |x - target|^2; a weight per row
 *
 *   s = scale.factor * (scale.param >= 0 ? value of the scalar parameter : 1)
 *   c = sum over terms of factor * value(param) * (scaled ? s : 1)
 *   d = value(carry) or 0: the input bias of the conv that reads y, stored with y ("carried")
 *   r = tensor `residual` or 0
 *
 * A conv pads its stored input with zeros, so an input bias that is carried is added before padding, as the
 * models define it (models.md 1.1). A linear node takes all values of its input in stored order (height,
 * width, channel). A max pool pads with minus infinity. What a kind's formula does not name (scale, terms,
 * residual, act, d) it must not be given. */
#ifndef TN_ENGINE_GRAPH_H
#define TN_ENGINE_GRAPH_H

#include "taunet/model.h"

typedef enum tn_node_kind {
    TN_NODE_CONV,
    TN_NODE_LINEAR,
    TN_NODE_NORM,
    TN_NODE_SUBSAMPLE,
    TN_NODE_APPEND,
    TN_NODE_MAXPOOL,
    TN_NODE_AVGPOOL,
    TN_NODE_LOSS,
    TN_NODE_KINDS
} tn_node_kind;

typedef enum tn_loss_kind { TN_LOSS_CROSS_ENTROPY, TN_LOSS_SQUARED } tn_loss_kind;

/* Optimizer groups; flat buffers hold all weights first, then all scalars, then what is not trained: fixed
 * parameters have gradient 0 and are neither updated nor decayed. */
typedef enum tn_group { TN_GROUP_WEIGHTS, TN_GROUP_SCALARS, TN_GROUP_FIXED, TN_GROUPS } tn_group;

typedef enum tn_init_kind { TN_INIT_CONSTANT, TN_INIT_NORMAL, TN_INIT_UNIFORM } tn_init_kind;

#define TN_NAME_MAX 48

/* A parameter. Its values are floats [offset, offset + count) of the flat buffers. */
typedef struct tn_param {
    char name[TN_NAME_MAX]; /* as the PyTorch models name it */
    int rank;
    int dims[4]; /* conv [c_out][c_in][k][k], linear [out][in], vectors [n], scalars [1] */
    size_t count, offset;
    tn_group group;
    tn_init_kind init;
    double init_value; /* the constant, the standard deviation, or the half-width of U(-a, a) */
    float grad_factor; /* multiplies the gradient: 1, 1/L_all for the shared tau, or 0 for a fixed one */
} tn_param;

/* What a norm node keeps beside parameters. Both vectors are floats [offset, offset + count) of the flat
 * state buffer; num_batches_tracked is counter `index` of the norm. */
typedef struct tn_state {
    char name[TN_NAME_MAX]; /* prefix such as "layer1.0.bn1" */
    int count;              /* channels */
    size_t mean_offset, var_offset;
} tn_state;

/* An extra name under which a parameter is also written (the official no-norm model registers the shared tau
 * again in every block). */
typedef struct tn_alias {
    char name[TN_NAME_MAX];
    int param;
} tn_alias;

typedef struct tn_shape {
    int channels, height, width;
} tn_shape;

/* An activation of one image, NHWC. Tensor 0 is the input image. */
typedef struct tn_tensor {
    char name[TN_NAME_MAX]; /* of the producing node; "input" for tensor 0 */
    tn_shape shape;
    int producer; /* node, -1 for the input */
} tn_tensor;

typedef struct tn_scale {
    float factor;
    int param; /* scalar parameter or -1 */
} tn_scale;

typedef struct tn_term {
    int param; /* scalar parameter */
    float factor;
    bool scaled; /* stands inside the bracket that s multiplies */
} tn_term;

#define TN_TERMS_MAX 3

typedef struct tn_node {
    tn_node_kind kind;
    char name[TN_NAME_MAX];
    int input, output; /* tensors; output is -1 for loss */
    int residual;      /* tensor or -1 */
    bool relu;
    int kernel, stride, padding; /* conv, maxpool; subsample uses stride */
    int channels;                /* append: channels of the output */
    int weight;                  /* conv and linear: parameter */
    int bias;                    /* linear: vector parameter or -1 */
    int gamma, beta, state;      /* norm: parameters and state */
    tn_scale scale;
    tn_term terms[TN_TERMS_MAX];
    int term_count;
    int carry; /* scalar parameter or -1 */
    tn_loss_kind loss;
    bool block;        /* the output is that of the stem or of a block: what probes look at */
    size_t parameters; /* set by tn_graph_finish: trained values counted for this layer, each for one layer
                          only */
} tn_node;

struct tn_model {
    char model_name[32], variant[16];
    tn_node *nodes;
    int node_count;
    tn_tensor *tensors;
    int tensor_count;
    tn_param *params;
    int param_count;
    size_t weight_floats;  /* group boundaries of the flat buffers: weights are [0, weight_floats), */
    size_t trained_floats; /* scalars [weight_floats, trained_floats), */
    size_t param_floats;   /* fixed parameters [trained_floats, param_floats) */
    tn_state *states;
    int state_count;
    size_t state_floats;
    tn_alias *aliases;
    int alias_count;
    int classes;
    int blocks;        /* L_all, or L of the fully connected networks */
    double tau;        /* initial value of tau or the constant; 1 where there is none */
    bool tau_constant; /* there is a tau and it is not trained */
    size_t node_capacity, tensor_capacity, param_capacity, state_capacity, alias_capacity;
};

/* The builder, used by the files that define networks and by tests that make small graphs. All add functions
 * return the new index through *out (may be NULL) and grow the model. They fail with TN_ERR_MEMORY, and with
 * TN_ERR_USAGE for sizes a user can ask for (an image too small for a kernel, activations or parameters too
 * large to count); a graph that no network definition should make (wrong index, shapes that do not meet, an
 * epilogue the kind has not) aborts. After a failure the model can only be freed. Names are copied. */

/* A model with the input tensor and no nodes; free with tn_model_free. */
tn_status tn_graph_create(tn_model **out, tn_shape input, int classes);
/* Zeroed node with every index -1, scale and stride 1, ready to be filled in. */
tn_node tn_node_init(tn_node_kind kind, const char *name, int input);
/* Checks the node's shapes, makes its output tensor, appends it. *out_tensor is -1 for a loss. */
tn_status tn_graph_add(tn_model *model, tn_node node, int *out_tensor);
/* Parameter of `rank` dims; its grad_factor is 1 (of a fixed one 0) until the caller changes it. */
tn_status tn_graph_param(tn_model *model, const char *name, int rank, const int *dims, tn_group group,
                         tn_init_kind init, double init_value, int *out);
/* Running mean and variance of a norm over `channels`; assigns their place in the state buffer. */
tn_status tn_graph_state(tn_model *model, const char *name, int channels, int *out);
tn_status tn_graph_alias(tn_model *model, const char *name, int param);
/* Assigns flat offsets, in the order of the parameter table within each group, and the parameters of each
 * layer. Call once, after the last add. */
tn_status tn_graph_finish(tn_model *model);

/* Multiply-accumulates of a node for one image, forward; 0 for other kinds than conv and linear. */
double tn_node_multiply_adds(const tn_model *model, const tn_node *node);
/* "conv", "linear", "norm", ... */
const char *tn_node_kind_name(tn_node_kind kind);

/* The fully connected networks, "fcresnet" and "feedforward"; called by tn_model_build, which has filled in
 * the defaults of `config`. After a failure *out is NULL or a model that can only be freed. */
bool tn_fcresnet_is(const char *model_name);
tn_status tn_fcresnet_build(const tn_model_config *config, tn_model **out);
/* The kind of loss that a configuration names. TN_ERR_USAGE. */
tn_status tn_loss_find(const char *name, tn_loss_kind *out);

/* Fills `values` (param_floats) with initial values and `state` (state_floats) with means 0 and variances 1.
 * Pure functions of (model, seed): parameter p draws from the Philox stream (seed, TN_RNG_INIT, p); values
 * are computed in double and rounded once. */
void tn_model_initialise(const tn_model *model, uint64_t seed, float *values, float *state);

/* Whether a node is a linear layer whose residual is its own input: y = act((s W + I) x + ...). It is
 * computed with the matrix s W + I, so that the residual costs nothing forward or backward. */
bool tn_node_adds_own_input(const tn_node *node);

/* Current value of s of a conv, linear or norm node, given the flat values. */
float tn_node_scale(const tn_node *node, const tn_model *model, const float *values);

#endif
