#include "backend/cuda_plan.h"

#include <string.h>

#include "backend/cuda_device.h"

/* Bandwidth as copies reach it, cuBLAS as large products do, float32 as the data sheet has it; a launch
 * inside a graph takes a microsecond or two (an assumption). */
static const tn_cuda_arch archs[] = {
    {"sm_80", "A100 SXM 80 GB", 108, 166912, 1.75e12, {19.5e12, 125e12, 250e12}, 0.8, 19.5e12, 1.5e-6},
    {"sm_90", "H100 SXM", 132, 232448, 3.0e12, {67e12, 400e12, 798e12}, 0.6, 67e12, 1.5e-6},
};

const tn_cuda_arch *tn_cuda_arch_named(const char *name) {
    for (size_t i = 0; i < sizeof archs / sizeof *archs; i++)
        if (!strcmp(archs[i].name, name)) return &archs[i];
    return NULL;
}

/* ---- what can be a stage ---- */

/* A residual block is two 3x3 convolutions between which nothing else happens, with ReLU behind both and the
 * block's input as residual of the second; its scalars may be any. Blocks follow each other for as long as
 * each reads only the one before. The first may be an entry, whose residual is its input subsampled, with
 * zeros appended: two nodes that come before the convolutions, the first of which has stride 2. */
#define SHORTCUT_NODES 2

static bool is_plain_conv(const tn_model *m, const tn_node *node, int stride) {
    if (node->kind != TN_NODE_CONV || node->kernel != 3 || node->stride != stride || node->padding != 1)
        return false;
    return node->relu && node->bias < 0 && node->input > 0 &&
           stride * m->tensors[node->input].shape.channels == m->tensors[node->output].shape.channels &&
           m->params[node->weight].group == TN_GROUP_WEIGHTS;
}

static int readers(const tn_model *m, int tensor) {
    int count = 0;
    for (int i = 0; i < m->node_count; i++)
        count += (m->nodes[i].input == tensor) + (m->nodes[i].residual == tensor);
    return count;
}

/* Weights of successive convs must follow each other in the flat buffers. */
static bool weights_follow(const tn_model *m, const tn_node *a, const tn_node *b) {
    const tn_param *first = &m->params[a->weight];
    return m->params[b->weight].offset == first->offset + first->count;
}

/* From the first convolution on: what it reads, what the second adds. */
static bool is_branch(tn_precision precision, const tn_model *m, int node, int stride, int x, int residual) {
    const tn_node *inner = &m->nodes[node], *join = inner + 1;
    return node + 1 < m->node_count && is_plain_conv(m, inner, stride) && inner->residual < 0 &&
           inner->input == x && is_plain_conv(m, join, 1) && join->input == inner->output &&
           join->residual == residual && weights_follow(m, inner, join) && readers(m, inner->output) == 1 &&
           tn_cuda_store_of(precision, m, inner->output) == TN_STORE_BF16 &&
           tn_cuda_store_of(precision, m, x) == tn_cuda_store_of(precision, m, join->output);
}

static bool is_block(tn_precision precision, const tn_model *m, int node) {
    if (node >= m->node_count) return false;
    const int x = m->nodes[node].input;
    return is_branch(precision, m, node, 1, x, x);
}

static bool is_entry(tn_precision precision, const tn_model *m, int node) {
    const tn_node *subsample = &m->nodes[node], *append = subsample + 1;
    if (node + SHORTCUT_NODES >= m->node_count || subsample->kind != TN_NODE_SUBSAMPLE ||
        append->kind != TN_NODE_APPEND)
        return false;
    return subsample->stride == 2 && append->input == subsample->output &&
           readers(m, subsample->output) == 1 && readers(m, append->output) == 1 &&
           is_branch(precision, m, node + SHORTCUT_NODES, 2, subsample->input, append->output);
}

/* Nodes of the stage that begins at `node`; 0: none does. */
static int stage_from(tn_precision precision, const tn_model *m, int node) {
    int end = node;
    if (is_entry(precision, m, node))
        end += SHORTCUT_NODES + 2;
    else if (is_block(precision, m, node))
        end += 2;
    while (end > node && is_block(precision, m, end)) {
        const tn_node *before = &m->nodes[end - 1];
        if (before[1].input != before->output || !weights_follow(m, before, before + 1) ||
            readers(m, before->output) != 2)
            break;
        end += 2;
    }
    return end - node;
}

tn_stage_shape tn_cuda_stage_shape(tn_precision precision, const tn_model *m, int node, int rows, int nodes) {
    const bool entry = m->nodes[node].kind == TN_NODE_SUBSAMPLE;
    const int x = m->nodes[node].input;
    const tn_shape in = m->tensors[x].shape, out = m->tensors[m->nodes[node + nodes - 1].output].shape;
    tn_stage_shape s = {.rows = rows,
                        .height = out.height,
                        .width = out.width,
                        .channels = out.channels,
                        .blocks = (nodes - (entry ? SHORTCUT_NODES : 0)) / 2,
                        .wide = tn_cuda_store_of(precision, m, x) == TN_STORE_F32,
                        .in_height = entry ? in.height : 0,
                        .in_width = entry ? in.width : 0};
    s.images = tn_stage_images(&s);
    return s;
}

static bool stage_fits(const tn_cuda_arch *arch, const tn_stage_shape *s) {
    for (int backward = 0; backward < 2; backward++) {
        size_t bytes = tn_stage_shared(s, backward);
        if (bytes == 0 || bytes > arch->shared_bytes) return false;
    }
    return true;
}

/* ---- what can be a head ---- */

tn_head_shape tn_cuda_head_shape(const tn_model *m, int node, int rows) {
    const tn_shape in = m->tensors[m->nodes[node].input].shape;
    return (tn_head_shape){
        .rows = rows, .pixels = in.height * in.width, .channels = in.channels, .classes = m->classes};
}

/* Average pool, linear layer and loss, of which each alone reads the one before. */
static bool is_head(const tn_model *m, int node, int rows) {
    if (node + 2 >= m->node_count) return false;
    const tn_node *pool = &m->nodes[node], *linear = pool + 1, *loss = pool + 2;
    if (pool->kind != TN_NODE_AVGPOOL || linear->kind != TN_NODE_LINEAR || loss->kind != TN_NODE_LOSS)
        return false;
    const tn_head_shape shape = tn_cuda_head_shape(m, node, rows);
    return pool->input > 0 && linear->input == pool->output && loss->input == linear->output &&
           !linear->relu && linear->residual < 0 && linear->carry < 0 && readers(m, pool->output) == 1 &&
           readers(m, linear->output) == 1 && m->params[linear->weight].group == TN_GROUP_WEIGHTS &&
           tn_head_takes(&shape);
}

/* ---- costs ---- */

static double larger(double a, double b) {
    return a > b ? a : b;
}

static void add_kernels(const tn_cuda_arch *arch, tn_cuda_cost *cost, double bytes, double flops, double rate,
                        int launches) {
    cost->bytes += bytes;
    cost->flops += flops;
    cost->launches += launches;
    cost->seconds += larger(bytes / arch->bytes_per_second, flops / rate) + launches * arch->launch_seconds;
}

/* How much longer it takes than if all multiprocessors were busy to the end. */
static double idle_factor(const tn_cuda_arch *arch, int blocks) {
    const int rounds = (blocks + arch->multiprocessors - 1) / arch->multiprocessors;
    return (double)rounds * arch->multiprocessors / blocks;
}

/* The launch that adds the parts of gradients is one for all layers: here and below its bytes count, itself
 * it does not. Forward and backward of tn_launch_stage_*; `unit`, `stream`: bytes of an activation inside of
 * blocks and between them; `x`: of what the stage reads. The first convolution of an entry has half the
 * products. Weight gradients are a launch here, although two stages that follow each other share it. */
static tn_cuda_cost stage_cost(const tn_cuda_arch *arch, const tn_stage_shape *s) {
    tn_cuda_cost cost = {0};
    const bool entry = s->in_height > 0, inside = s->channels == 16; /* where the weight gradient is made */
    const double pixels = (double)s->rows * s->height * s->width, all = 2.0 * s->blocks,
                 convs = all - (entry ? 0.5 : 0), unit = pixels * s->channels * 2,
                 stream = s->wide ? 2 * unit : unit, masks = all * unit / 16, dz = all * unit,
                 products = 2 * pixels * 9 * s->channels * s->channels * convs,
                 weights = convs * 9 * s->channels * s->channels * 2,
                 in_pixels = (double)s->rows * s->in_height * s->in_width,
                 x = entry ? in_pixels / pixels / 2 * stream : stream,
                 kept = (s->blocks - 1) * stream + s->blocks * unit;
    /* Computed positions that are no pixels, and multiprocessors that wait for the others' last images. */
    const double wmma = arch->flops[TN_PRECISION_BF16] * arch->wmma_share,
                 waste = (s->height + 1.0) * (s->width + 1.0) / ((double)s->height * s->width),
                 rate = wmma / waste / idle_factor(arch, (s->rows + s->images - 1) / s->images);
    const double sums = (2 * all + (entry ? 2 : 0)) * tn_stage_sum_parts(s) * sizeof(double),
                 parts = tn_stage_weight_parts(s) * 2 * weights + sums;
    add_kernels(arch, &cost, x + kept + stream + masks + weights, products, rate, 1);
    if (inside) {
        add_kernels(arch, &cost, 2 * x + stream + kept + masks + weights + parts, 2 * products, rate, 1);
    } else {
        add_kernels(arch, &cost, stream + x + dz + masks + weights, products, rate, 1);
        add_kernels(arch, &cost, x + kept + dz + parts, products, wmma, 1);
    }
    add_kernels(arch, &cost, parts + 2 * weights, 0, 1, 0);
    return cost;
}

static tn_cuda_cost times(tn_cuda_cost cost, int count) {
    return (tn_cuda_cost){cost.bytes * count, cost.flops * count, cost.seconds * count,
                          cost.launches * count};
}

static tn_cuda_cost sum(tn_cuda_cost a, tn_cuda_cost b) {
    return (tn_cuda_cost){a.bytes + b.bytes, a.flops + b.flops, a.seconds + b.seconds,
                          a.launches + b.launches};
}

/* Of one node by itself: bytes of x and y, of all rows. */
typedef struct node_facts {
    const tn_node *node;
    tn_conv_shape shape;
    double x, y, mask, products;
    bool sums, wmma;
    bool made;   /* its dz comes from backward of the node that reads y */
    double gate; /* bytes that backward reads so that dx is dz of the node that made x; 0 where it is not */
} node_facts;

static tn_wmma unit_of(tn_precision precision) {
    return precision == TN_PRECISION_BF16 ? TN_WMMA_BF16 : TN_WMMA_TF32;
}

static double bytes_of(tn_precision precision, const tn_model *m, int tensor, int rows) {
    return (double)rows * (double)(tn_cuda_floats(m->tensors[tensor].shape) *
                                   tn_cuda_store_bytes(tn_cuda_store_of(precision, m, tensor)));
}

static tn_conv_shape conv_shape(const tn_model *m, const tn_node *node, int rows) {
    const tn_shape in = m->tensors[node->input].shape, out = m->tensors[node->output].shape;
    return (tn_conv_shape){rows,      in.height,    in.width,     in.channels,  out.height,
                           out.width, out.channels, node->kernel, node->stride, node->padding};
}

static bool is_wmma(tn_precision precision, const tn_model *m, const tn_node *node, int rows) {
    if (node->kind != TN_NODE_CONV || precision == TN_PRECISION_FP32) return false;
    const tn_conv_shape shape = conv_shape(m, node, rows);
    return tn_wmma3x3_takes(&shape, unit_of(precision));
}

/* Whether backward of a convolution that reads `tensor` makes the dz of the one that made it. */
static bool is_gated(tn_precision precision, const tn_model *m, int tensor, int rows) {
    const int maker = m->tensors[tensor].producer;
    if (maker < 0 || m->nodes[maker].kind != TN_NODE_CONV || readers(m, tensor) > 2) return false;
    for (int i = maker + 1; i < m->node_count; i++)
        if (m->nodes[i].input == tensor && is_wmma(precision, m, &m->nodes[i], rows)) return true;
    return false;
}

static node_facts facts_of(tn_precision precision, const tn_model *m, int index, int rows) {
    const tn_node *node = &m->nodes[index];
    const int output = node->output >= 0 ? node->output : node->input;
    tn_shape in = m->tensors[node->input].shape, out = m->tensors[output].shape;
    if (node->kind == TN_NODE_LINEAR) in = (tn_shape){(int)tn_cuda_floats(in), 1, 1};
    node_facts f = {.node = node,
                    .shape = {rows, in.height, in.width, in.channels, out.height, out.width, out.channels,
                              node->kind == TN_NODE_LINEAR ? 1 : node->kernel, node->stride, node->padding},
                    .sums = node->term_count > 0 || node->carry >= 0};
    f.x = bytes_of(precision, m, node->input, rows);
    f.y = bytes_of(precision, m, output, rows);
    f.wmma = is_wmma(precision, m, node, rows);
    f.made = is_gated(precision, m, output, rows);
    if (f.wmma && is_gated(precision, m, node->input, rows))
        f.gate =
            (readers(m, node->input) > 1 ? f.x : 0) + (m->nodes[m->tensors[node->input].producer].relu
                                                           ? (double)rows * (double)tn_cuda_floats(in) / 8
                                                           : 0);
    f.mask = node->relu ? (double)rows * (double)tn_cuda_floats(out) / 8 : 0;
    f.products = 2 * rows * tn_node_multiply_adds(m, node);
    return f;
}

/* dz from two gradients, which is what a block's output has. */
static void add_epilogue_backward(const tn_cuda_arch *arch, const node_facts *f, tn_cuda_cost *cost) {
    if (!f->made && (f->node->relu || f->sums))
        add_kernels(arch, cost, (f->node->residual >= 0 ? 3 : 2) * f->y + f->mask, 0, 1, 1);
}

/* Positions at the end of a row are no pixels. */
static double wmma_rate(const tn_cuda_arch *arch, tn_precision precision, const tn_conv_shape *s) {
    const double ends = s->stride == 1 ? 2 : 1;
    return arch->flops[precision] * arch->wmma_share * s->out_width / (s->out_width + ends) /
           idle_factor(arch, tn_wmma3x3_sum_parts(s, unit_of(precision)));
}

/* The kernels of cuda_conv.c that are no products of cuBLAS. */
static tn_cuda_cost conv_cost(const tn_cuda_arch *arch, tn_precision precision, const tn_model *m,
                              const node_facts *f) {
    tn_cuda_cost cost = {0};
    const tn_conv_shape *s = &f->shape;
    const tn_wmma unit = unit_of(precision);
    const int node = (int)(f->node - m->nodes), output = m->nodes[node].output;
    const bool both = f->wmma && f->node->input > 0 && tn_wmma3x3_both_takes(s, unit);
    const double pairs = 9.0 * s->in_channels * s->out_channels,
                 packed = pairs * (f->wmma && precision == TN_PRECISION_BF16 ? 2 : 4),
                 residual = f->node->residual >= 0 ? f->y : 0,
                 rate = f->wmma ? wmma_rate(arch, precision, s) : arch->float_flops,
                 count = !f->wmma ? tn_conv3x3_parts(s)
                         : both   ? tn_wmma3x3_both_parts(s)
                                  : tn_wmma3x3_parts(s, unit, tn_cuda_store_of(precision, m, f->node->input),
                                                     tn_cuda_store_of(precision, m, output)),
                 parts = count * pairs * sizeof(float);
    add_kernels(arch, &cost, f->x + f->y + residual + f->mask + packed, f->products, rate, 1);
    add_epilogue_backward(arch, f, &cost);
    if (both) {
        add_kernels(arch, &cost, 2 * f->x + f->y + f->gate + packed + parts, 2 * f->products, rate, 1);
    } else {
        add_kernels(arch, &cost, f->x + f->y + parts, f->products, rate, 1);
        if (f->node->input > 0)
            add_kernels(arch, &cost, f->x + f->y + f->gate + packed, f->products, rate, 1);
    }
    add_kernels(arch, &cost, parts + pairs * sizeof(float), 0, 1, 0);
    return cost;
}

/* Backward takes the gradients as they come in, and their sums along. */
static tn_cuda_cost stem_cost(const tn_cuda_arch *arch, const node_facts *f) {
    tn_cuda_cost cost = {0};
    const double parts = 4.0 * tn_stem_parts(&f->shape) * 9 * f->shape.in_channels * f->shape.out_channels +
                         16.0 * tn_stem_sum_parts(&f->shape);
    add_kernels(arch, &cost, f->x + f->y + f->mask, f->products, arch->float_flops, 1);
    add_kernels(arch, &cost, f->x + f->y + f->mask + parts, f->products, arch->float_flops, 1);
    add_kernels(arch, &cost, parts, 0, 1, 0);
    return cost;
}

static tn_cuda_cost cublas_cost(const tn_cuda_arch *arch, tn_precision precision, const node_facts *f) {
    tn_cuda_cost cost = {0};
    const tn_conv_shape *s = &f->shape;
    const bool columns = s->kernel > 1 || s->stride > 1;
    const double rate = arch->flops[precision], residual = f->node->residual >= 0 ? f->y : 0,
                 element = precision == TN_PRECISION_BF16 ? 2 : 4,
                 wide = columns ? 2 * element * s->rows * s->out_height * s->out_width * s->kernel *
                                      s->kernel * s->in_channels
                                : 0;
    add_kernels(arch, &cost, f->x + wide + f->y, f->products, rate, columns ? 2 : 1);
    if (f->node->relu || f->sums || f->node->bias >= 0 || residual > 0)
        add_kernels(arch, &cost, 2 * f->y + residual + f->mask, 0, 1, 1);
    add_epilogue_backward(arch, f, &cost);
    if (f->node->bias >= 0) add_kernels(arch, &cost, f->y, 0, 1, 1);
    add_kernels(arch, &cost, f->x + wide + f->y, f->products, rate, columns ? 3 : 1);
    if (f->node->input > 0) add_kernels(arch, &cost, f->x + wide + f->y, f->products, rate, columns ? 2 : 1);
    return cost;
}

/* Forward reads x (norms twice) and writes y; backward does the same with gradients (norms read x twice
 * more). */
static tn_cuda_cost other_cost(const tn_cuda_arch *arch, const node_facts *f) {
    tn_cuda_cost cost = {0};
    const bool norm = f->node->kind == TN_NODE_NORM;
    add_kernels(arch, &cost, (norm ? 2 : 1) * f->x + f->y + f->mask, 0, 1, norm ? 4 : 1);
    add_kernels(arch, &cost, (norm ? 3 : 1) * f->x + (norm ? 3 : 1) * f->y + f->mask, 0, 1, norm ? 4 : 1);
    return cost;
}

/* x is read and dx written; what is left for the sums over rows is small. */
static tn_cuda_cost head_cost(const tn_cuda_arch *arch, const node_facts *pool, const node_facts *linear,
                              const tn_head_shape *s) {
    tn_cuda_cost cost = {0};
    const double kept = (double)tn_head_workspace(s), weights = 4.0 * s->channels * s->classes;
    add_kernels(arch, &cost, 2 * pool->x + kept + weights, 2 * linear->products, arch->float_flops, 1);
    add_kernels(arch, &cost, kept + weights, linear->products, arch->float_flops, 1);
    return cost;
}

/* ---- choices ---- */

static tn_cuda_choice choose_alone(const tn_cuda_arch *arch, tn_precision precision, const tn_model *m,
                                   int node, int rows) {
    tn_cuda_choice c = {.way = TN_CUDA_OTHER, .nodes = 1};
    const node_facts f = facts_of(precision, m, node, rows);
    if (f.node->kind == TN_NODE_CONV || f.node->kind == TN_NODE_LINEAR) {
        const bool stem = tn_cuda_conv_is_stem(m, f.node, &f.shape);
        c.way = stem || tn_cuda_conv_is_fused(&f.shape, precision) ? TN_CUDA_CONV : TN_CUDA_CUBLAS;
        c.possible[TN_CUDA_CUBLAS] = true;
        c.cost[TN_CUDA_CUBLAS] = cublas_cost(arch, precision, &f);
        if (c.way == TN_CUDA_CONV)
            c.cost[TN_CUDA_CONV] = stem ? stem_cost(arch, &f) : conv_cost(arch, precision, m, &f);
    } else {
        c.cost[TN_CUDA_OTHER] = other_cost(arch, &f);
    }
    c.possible[c.way] = true;
    return c;
}

/* Adds what `nodes` nodes cost as operations of their own, each convolution in either way. */
static void add_apart(const tn_cuda_arch *arch, tn_precision precision, const tn_model *m, int node,
                      int nodes, int rows, tn_cuda_choice *c) {
    for (int i = node; i < node + nodes; i++) {
        const tn_cuda_choice alone = choose_alone(arch, precision, m, i, rows);
        for (int way = TN_CUDA_CONV; way <= TN_CUDA_CUBLAS; way++) {
            const int own = alone.possible[TN_CUDA_OTHER] ? TN_CUDA_OTHER : way;
            c->possible[way] = alone.possible[own] && (i == node || c->possible[way]);
            c->cost[way] = sum(c->cost[way], alone.cost[own]);
        }
    }
}

static tn_cuda_choice choose_head(const tn_cuda_arch *arch, tn_precision precision, const tn_model *m,
                                  int node, int rows) {
    tn_cuda_choice c = {.way = TN_CUDA_HEAD, .nodes = 3};
    const tn_head_shape shape = tn_cuda_head_shape(m, node, rows);
    const node_facts pool = facts_of(precision, m, node, rows),
                     linear = facts_of(precision, m, node + 1, rows);
    c.possible[TN_CUDA_HEAD] = c.possible[TN_CUDA_CUBLAS] = true;
    c.cost[TN_CUDA_HEAD] = head_cost(arch, &pool, &linear, &shape);
    for (int i = 0; i < 3; i++) {
        const tn_cuda_choice alone = choose_alone(arch, precision, m, node + i, rows);
        c.cost[TN_CUDA_CUBLAS] = sum(c.cost[TN_CUDA_CUBLAS], alone.cost[alone.way]);
    }
    return c;
}

tn_cuda_choice tn_cuda_choose(const tn_cuda_arch *arch, tn_precision precision, const tn_model *m, int node,
                              int rows) {
    if (is_head(m, node, rows)) return choose_head(arch, precision, m, node, rows);
    const int nodes = precision == TN_PRECISION_BF16 ? stage_from(precision, m, node) : 0;
    if (nodes == 0) return choose_alone(arch, precision, m, node, rows);
    const tn_stage_shape stage = tn_cuda_stage_shape(precision, m, node, rows, nodes);
    if (!stage_fits(arch, &stage)) return choose_alone(arch, precision, m, node, rows);
    tn_stage_shape first = stage, other = stage;
    first.blocks = other.blocks = 1;
    other.in_height = other.in_width = 0;
    tn_cuda_choice c = {.nodes = nodes, .first_block = nodes - 2 * (stage.blocks - 1)};
    add_apart(arch, precision, m, node, nodes, rows, &c);
    const tn_cuda_way apart = c.possible[TN_CUDA_CONV] ? TN_CUDA_CONV : TN_CUDA_CUBLAS;
    c.possible[TN_CUDA_STAGE] = c.possible[TN_CUDA_BLOCK] = true;
    c.cost[TN_CUDA_STAGE] = stage_cost(arch, &stage);
    c.cost[TN_CUDA_BLOCK] = sum(stage_cost(arch, &first), times(stage_cost(arch, &other), stage.blocks - 1));
    c.way = TN_CUDA_STAGE;
    if (c.cost[TN_CUDA_BLOCK].seconds < c.cost[c.way].seconds) c.way = TN_CUDA_BLOCK;
    if (c.cost[apart].seconds < c.cost[c.way].seconds) c.way = apart;
    return c;
}

int tn_cuda_choice_span(const tn_cuda_choice *c) {
    if (c->way == TN_CUDA_BLOCK) return c->first_block;
    return c->way == TN_CUDA_STAGE || c->way == TN_CUDA_HEAD ? c->nodes : 1;
}

/* ---- as a table ---- */

static const char *const way_names[] = {"stage", "block", "conv", "cublas", "head", "other"};

static tn_status print_choice(const tn_model *m, int node, const tn_cuda_choice *c, tn_string *text) {
    const tn_cuda_cost *cost = &c->cost[c->way];
    const char *separator = "";
    TN_TRY(tn_string_printf(text, "%6d  %-24s %-8s %9.1f %9.2f %8d %9.1f  ", c->nodes, m->nodes[node].name,
                            way_names[c->way], cost->bytes * 1e-6, cost->flops * 1e-9, cost->launches,
                            cost->seconds * 1e6));
    for (int way = 0; way < TN_CUDA_OTHER; way++) {
        if (!c->possible[way] || way == (int)c->way) continue;
        TN_TRY(tn_string_printf(text, "%s%s %.1f", separator, way_names[way], c->cost[way].seconds * 1e6));
        separator = ", ";
    }
    return tn_string_printf(text, "\n");
}

tn_status tn_cuda_explain(const tn_model *m, tn_precision precision, const char *name, int rows,
                          tn_string *text) {
    static const char *const precisions[] = {"fp32", "tf32", "bf16"};
    const tn_cuda_arch *arch = tn_cuda_arch_named(name);
    if (!arch) return tn_fail(TN_ERR_USAGE, "--plan %s: unknown architecture; use sm_80 or sm_90", name);
    tn_cuda_cost total = {0};
    TN_TRY(tn_string_printf(
        text,
        "plan           %s (%s), %s, batch %d: a prediction for one training step without the "
        "update, not measured\n"
        "assumed        %.2f TB/s, cuBLAS %.0f TFLOP/s, WMMA %.0f %% of it in bf16, float32 "
        "%.0f TFLOP/s, %.1f us a launch\n\n"
        "%6s  %-24s %-8s %9s %9s %8s %9s  %s\n",
        arch->name, arch->device, precisions[precision], rows, arch->bytes_per_second * 1e-12,
        arch->flops[precision] * 1e-12, arch->wmma_share * 100, arch->float_flops * 1e-12,
        arch->launch_seconds * 1e6, "layers", "first layer", "choice", "MB", "GFLOP", "launches", "us",
        "other choices, us"));
    for (int i = 0; i < m->node_count;) {
        const tn_cuda_choice c = tn_cuda_choose(arch, precision, m, i, rows);
        TN_TRY(print_choice(m, i, &c, text));
        total = sum(total, c.cost[c.way]);
        i += c.nodes;
    }
    const tn_cuda_cost merge = {.seconds = arch->launch_seconds, .launches = 1};
    total = sum(total, merge);
    TN_TRY(tn_string_printf(text, "%6d  %-24s %-8s %9.1f %9.2f %8d %9.1f\n", m->node_count,
                            "parts of gradients added", "", 0.0, 0.0, 1, merge.seconds * 1e6));
    return tn_string_printf(text, "%6d  %-24s %-8s %9.1f %9.2f %8d %9.1f\n", m->node_count, "all", "",
                            total.bytes * 1e-6, total.flops * 1e-9, total.launches, total.seconds * 1e6);
}
