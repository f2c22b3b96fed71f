/* Programs in which several nodes are one operation: residual blocks of a stage, shortcuts included. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "engine/program.h"

/* The nodes of resnet14 without norms: the stem, two blocks in each stage, of which the first of the later
 * two have a shortcut of two nodes, pool, linear layer and loss. */
enum { FIRST = 1, SECOND = 5, THIRD = 11, POOL = 17, NODES = 20, STAGES = 3 };
static const int spans[NODES] = {
    [0] = 1, [FIRST] = 4, [SECOND] = 6, [THIRD] = 6, [POOL] = 1, [POOL + 1] = 1, [POOL + 2] = 1};
static const size_t kept[NODES] = {[FIRST] = 1001, [SECOND] = 2002, [THIRD] = 303}, none[NODES];

static tn_program compile(const tn_model *model, bool training) {
    static const tn_backend_ops ops;
    static const tn_backend backend = {.ops = &ops};
    const tn_program_config config = {.backend = &backend,
                                      .rows = 4,
                                      .training = training,
                                      .spans = spans,
                                      .inner_bytes = kept,
                                      .grad_floats = none};
    tn_program program;
    assert_int_equal(tn_program_compile(model, &config, &program), TN_OK);
    return program;
}

/* Stage after stage: what one makes the next reads; backward, what flows into one is the gradient of what it
 * made, in one part, and what it kept has lived until then, or until the stage before it is through. */
static void check_stages(const tn_program *p, bool training) {
    const tn_step *steps = p->steps;
    const int last = p->step_count - 1;
    for (int i = 1, node = FIRST; i <= STAGES; node += spans[node], i++) {
        const tn_step *forward = &steps[i], *backward = &steps[last - i];
        assert_int_equal(forward->kind, TN_STEP_FORWARD);
        assert_int_equal(forward->node, node);
        assert_int_equal(forward->span, spans[node]);
        assert_int_equal(forward->x, steps[i - 1].y);
        assert_int_equal(forward->inner >= 0, training);
        if (!training) continue;
        const tn_buffer *inner = &p->buffers[forward->inner];
        assert_int_equal(inner->bytes, kept[node]);
        assert_int_equal(inner->first, i);
        /* One step longer where that is a stage's. */
        assert_int_equal(inner->last, last - i + (i > 1));
        assert_int_equal(backward->kind, TN_STEP_BACKWARD);
        assert_int_equal(backward->node, node);
        assert_int_equal(backward->span, spans[node]);
        assert_int_equal(backward->inner, forward->inner);
        assert_int_equal(backward->x, forward->x);
        assert_int_equal(backward->dy_count, 1);
        assert_int_equal(backward->dy[0], backward[-1].dx);
        assert_int_equal(p->buffers[backward->dx].bytes, p->buffers[forward->x].bytes);
    }
    /* Nothing else that is alive takes the place of what is kept. */
    for (int i = 1; training && i <= STAGES; i++)
        for (int b = 1; b < p->buffer_count; b++) {
            const tn_buffer *inner = &p->buffers[steps[i].inner], *other = &p->buffers[b];
            const bool together = inner->first <= other->last && other->first <= inner->last,
                       apart = inner->offset + inner->bytes <= other->offset ||
                               other->offset + other->bytes <= inner->offset;
            assert_true(b == steps[i].inner || !together || apart);
        }
}

static void test_stages(void **state) {
    tn_model *model;
    tn_model_config config = {.model = "resnet14"};
    (void)state;
    assert_int_equal(tn_model_build(&config, &model), TN_OK);
    assert_int_equal(model->node_count, NODES);
    assert_int_equal(model->nodes[SECOND].kind, TN_NODE_SUBSAMPLE);
    assert_int_equal(model->nodes[THIRD].kind, TN_NODE_SUBSAMPLE);
    for (int training = 0; training < 2; training++) {
        tn_program program = compile(model, training);
        assert_int_equal(program.step_count, (training ? 2 : 1) * (1 + STAGES + 2) + 1);
        check_stages(&program, training);
        tn_program_free(&program);
    }
    tn_model_free(model);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_stages)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
