/* The residual networks: what the files that build them share. resnet.c reads the configuration, then
 * resnet_params.c adds the parameters and resnet_nodes.c the nodes. */
#ifndef TN_MODEL_RESNET_H
#define TN_MODEL_RESNET_H

#include "base/fail.h"
#include "model/graph.h"

#define TN_RESNET_STAGES 4
#define TN_RESNET_CONVS  3

typedef struct tn_resnet_variant {
    const char *name;
    bool norm, fixup;
    bool tau;            /* the branch is scaled by tau */
    const char *scale;   /* learnable factor of the branch: its last name, or NULL */
    double scale_init;   /* unless it is tau */
    bool scale_by_depth; /* the factor is divided by L_all */
} tn_resnet_variant;

/* A network's plan. On images of CIFAR's kind: a 3x3 stem, three stages of basic blocks, shortcuts by
 * subsampling and appended zeros. On images of ImageNet's kind: a 7x7 stem of stride 2 and a max pool, four
 * stages, shortcuts by 1x1 projections. */
typedef struct tn_resnet_plan {
    bool imagenet;
    bool bottleneck; /* blocks of 1x1, 3x3 and 1x1 convs that widen fourfold; else of two 3x3 convs */
    int stages, blocks[TN_RESNET_STAGES];
} tn_resnet_plan;

/* Indices into the parameter and state tables. */
typedef struct tn_resnet_norm {
    int gamma, beta, state;
} tn_resnet_norm;

typedef struct tn_resnet_conv {
    char name[16];               /* "conv1" */
    int kernel, stride, in, out; /* padding keeps the size at stride 1 */
    int weight;                  /* parameter */
    int bias_before, bias_after; /* scalars: of its input, of its output; -1 where there is none */
    tn_resnet_norm norm;         /* BN variants */
} tn_resnet_conv;

typedef struct tn_resnet_block {
    int stage, index;    /* for names: stage from 1, index from 0 */
    int in, out, stride; /* channels, of the block */
    int convs;
    tn_resnet_conv conv[TN_RESNET_CONVS];
    int scale;      /* scalar parameter, -1 where there is none */
    int projection; /* weight; ImageNet networks, where the shapes of input and output differ */
    tn_resnet_norm shortcut;
} tn_resnet_block;

typedef struct tn_resnet {
    tn_model_config config; /* with defaults filled in */
    const tn_resnet_variant *variant;
    tn_resnet_plan plan;
    tn_model *model; /* model->blocks of them in: */
    tn_resnet_block *blocks;
    int stem, fc_weight, fc_bias;
    int tau, bias1, bias2; /* -1 where there is none */
    tn_resnet_norm stem_norm;
} tn_resnet;

/* "layer<stage>.<index>.<last>" */
void tn_resnet_name(char name[TN_NAME_MAX], const tn_resnet_block *block, const char *last);
/* Whether the block's input and output differ in shape. */
bool tn_resnet_changes_shape(const tn_resnet_block *block);
/* Side of the stem's window. */
int tn_resnet_stem_kernel(const tn_resnet *net);
/* Last name of a block's projection, as PyTorch's models have it; the official Fixup model has its own. */
const char *tn_resnet_projection_name(const tn_resnet *net);

/* Fills in the blocks' geometry and adds all parameters, states and aliases. */
tn_status tn_resnet_add_params(tn_resnet *net);
/* Adds all nodes. */
tn_status tn_resnet_add_nodes(tn_resnet *net);

#endif
