/* A network as data: a flat list of nodes, a table of parameters and the shapes of its activations.
 *
 * A model holds no memory of a device and no training state; it never changes after it was built and may be
 * shared by any number of engines. Activations are NHWC in float32, convolution weights OIHW, linear weights
 * [out][in]. */
#ifndef TAUNET_MODEL_H
#define TAUNET_MODEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "taunet/status.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct tn_model tn_model;

/* What to build. Zero-initialise, then set what differs from the defaults given in brackets. */
typedef struct tn_model_config {
    const char *model;   /* "resnet20", "resnet110", ...: any depth 6n+2; "resnet18", "resnet34",
                            "resnet50", "resnet101", "resnet152"; "fcresnet", "feedforward" ["resnet20"] */
    const char *variant; /* "bn", "bn-tau", "tau", "fixup", "alpha", "skipinit", "plain" ["tau"] */
    const char *tau;     /* variants tau and bn-tau, and fcresnet: expression in L, the number of blocks; of
                            the longest stage's in resnet50, 101 and 152 ["1/sqrt(L)", there "2/sqrt(L)"; so
                            is ""] */
    int channels, height, width; /* of an input image, any size from 1x1x1 up [3, 32, 32; 3, 224, 224 for
                                    ImageNet's networks] */
    int classes;                 /* outputs of the last layer [10; 1000] */
    int base_width;              /* channels of the first stage; of the inside of its bottlenecks [16; 64] */
    bool tau_per_block;          /* variant tau: one learnable tau for each block, not one for all */
    bool no_bn_shortcut; /* BN variants: no batch norm on the subsampled shortcut (as in He et al. 2016), or
                            behind the projection */
    bool zero_init_last_gamma; /* BN variants: gamma of each block's last norm starts at 0 */
    const char *loss;          /* "cross-entropy" (softmax) or "squared", 1/2 |y - target|^2
                                  ["cross-entropy"] */
    /* Of fcresnet and feedforward alone. */
    int hidden;      /* m: width of the hidden layers [128] */
    int depth;       /* L: number of hidden layers after the first [10] */
    bool train_ends; /* the first and the last matrix, A and B, are trained too */
} tn_model_config;

/* Builds a model into *out (NULL on failure); free with tn_model_free. TN_ERR_USAGE for names, depths or
 * expressions that do not exist (a depth that is not 6n+2 is answered with the nearest that are), for options
 * the variant does not have and for sizes out of range; TN_ERR_MEMORY. resnet50 and resnet152 are ImageNet's
 * networks although 50 and 152 are 6n+2. Those take a stride of 2 in the 3x3 conv of a bottleneck ("v1.5").
 * The strings of `config` are not kept. Sources: models.md 1.1 and 1.2; "Stability and Convergence Theory for
 * Learning ResNet", section 4 and its official code; Fixup (Zhang, Dauphin, Ma 2019). fcresnet and
 * feedforward: section 2 of the first paper, models.md 2; `variant` must be "tau" there, and tau is a
 * constant. */
tn_status tn_model_build(const tn_model_config *config, tn_model **out);
void tn_model_free(tn_model *model);

/* Counts for summaries. Multiply-accumulates are those of a direct convolution, one image, forward, padding
 * counted. */
size_t tn_model_parameter_count(const tn_model *model);
double tn_model_multiply_adds(const tn_model *model);
int tn_model_classes(const tn_model *model);

/* One line of a layer table. A layer is a node with its parameters: weights, scale and scalar biases; an
 * input bias counts for the layer whose input it shifts, a shared parameter for the first layer that uses it,
 * so that the layers add up to tn_model_parameter_count. */
typedef struct tn_layer_info {
    const char *name, *kind;     /* "layer1.0.conv1", "conv"; owned by the model */
    int channels, height, width; /* of the output; of a loss 1, 1, 1 */
    size_t parameters;
    double multiply_adds;
    bool block; /* its output is that of the stem or of a residual block (of any layer in feedforward) */
} tn_layer_info;
int tn_model_layer_count(const tn_model *model);
tn_layer_info tn_model_layer(const tn_model *model, int index); /* 0 <= index < tn_model_layer_count */

#ifdef __cplusplus
}
#endif
#endif
