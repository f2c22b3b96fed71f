/* The sum over chunks has the bits of a plain recursive sum, whoever finishes when, and the buffers never run
 * out. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/memory.h"
#include "base/philox.h"
#include "base/pool.h"
#include "engine/gradient_tree.h"

#define FLOATS      7
#define CHUNKS_MAX  40
#define WORKERS_MAX 6

/* ---- a backend that only adds ---- */

static tn_status plain_alloc(tn_backend *backend, void *out, size_t bytes, const char *what) {
    (void)backend;
    return tn_alloc(out, bytes, 1, what);
}

static void plain_release(tn_backend *backend, void *memory) {
    (void)backend;
    tn_free(memory);
}

static void plain_add(tn_backend *backend, float *to, const float *from, size_t count) {
    (void)backend;
    for (size_t i = 0; i < count; i++) to[i] += from[i];
}

static const tn_backend_ops operations = {.alloc = plain_alloc, .release = plain_release, .add = plain_add};
static tn_backend backend = {.ops = &operations};

static tn_gradient_tree *make_tree(int chunks, int workers) {
    tn_gradient_tree *tree;
    if (tn_gradient_tree_create(&backend, chunks, chunks, workers, FLOATS, &tree) != TN_OK)
        fail_msg("%s", tn_error());
    return tree;
}

/* ---- what is expected ---- */

/* Gradients of a chunk: of very different sizes, so that another order of summation shows in the bits. */
static void fill(int chunk, float *buffer) {
    tn_rng rng = tn_rng_open(1, TN_RNG_SYNTHETIC, (uint32_t)chunk, 0);
    for (int i = 0; i < FLOATS; i++) buffer[i] = (float)(tn_rng_normal(&rng) * exp(4 * tn_rng_normal(&rng)));
}

/* The sum over chunks [first, first + size) of those that exist; size is a power of two. */
static void recursive_sum(int first, int size, int chunks, float *out) {
    float right[FLOATS];
    if (size == 1) {
        fill(first, out);
        return;
    }
    recursive_sum(first, size / 2, chunks, out);
    if (first + size / 2 >= chunks) return;
    recursive_sum(first + size / 2, size / 2, chunks, right);
    for (int i = 0; i < FLOATS; i++) out[i] += right[i];
}

static void expected_sum(int chunks, float *out) {
    int size = 1;
    while (size < chunks) size *= 2;
    recursive_sum(0, size, chunks, out);
}

static void test_another_order_has_other_bits(void **state) {
    (void)state;
    float tree[FLOATS], forward[FLOATS] = {0}, one[FLOATS];
    expected_sum(CHUNKS_MAX, tree);
    for (int c = 0; c < CHUNKS_MAX; c++) {
        fill(c, one);
        for (int i = 0; i < FLOATS; i++) forward[i] += one[i];
    }
    assert_memory_not_equal(tree, forward, sizeof tree);
    for (int i = 0; i < FLOATS; i++)
        assert_true(fabsf(tree[i] - forward[i]) <= 1e-4f * fabsf(tree[i]) + 1e-3f);
}

/* ---- orders of events ---- */

typedef struct in_work {
    int chunk, bucket;
    float *buffer;
} in_work;

/* The buckets of a sum: their number follows from the number of chunks. */
static int buckets_of(int chunks, size_t *bounds) {
    int buckets = 1 + chunks % 3;
    for (int i = 0; i <= buckets; i++) bounds[i] = (size_t)(FLOATS * i / buckets);
    return buckets;
}

static void begin(tn_gradient_tree *tree, int chunks) {
    size_t bounds[TN_BUCKETS_MAX + 1];
    int buckets = buckets_of(chunks, bounds);
    tn_gradient_tree_begin(tree, chunks, 0, chunks, buckets, bounds);
}

/* Makes and brings one bucket of a chunk; returns whether it was the last. What was brought before, and may
 * be part of a sum by now, is not written to. */
static bool bring_bucket(tn_gradient_tree *tree, int chunks, int chunk, int bucket, float *buffer) {
    size_t bounds[TN_BUCKETS_MAX + 1];
    float values[FLOATS];
    int buckets = buckets_of(chunks, bounds);
    fill(chunk, values);
    memcpy(buffer + bounds[bucket], values + bounds[bucket],
           (bounds[bucket + 1] - bounds[bucket]) * sizeof *values);
    tn_gradient_tree_bring(tree, chunk, bucket, buffer);
    return bucket + 1 == buckets;
}

/* Brings the next bucket of the chunk at `at` of those in work. */
static void bring(tn_gradient_tree *tree, int chunks, in_work *working, int *count, int at) {
    if (bring_bucket(tree, chunks, working[at].chunk, working[at].bucket++, working[at].buffer))
        working[at] = working[--*count];
}

/* Workers take chunks in order and bring them in an order of chance. `haste` of 256 chances are for taking. A
 * tree that runs out of buffers aborts. */
static void simulate(tn_gradient_tree *tree, int chunks, int workers, uint32_t haste, tn_rng *rng) {
    in_work working[WORKERS_MAX];
    int count = 0, next = 0;
    begin(tree, chunks);
    while (next < chunks || count > 0) {
        bool take = next < chunks && count < workers && (count == 0 || tn_rng_below(rng, 256) < haste);
        if (take)
            working[count++] = (in_work){next++, 0, tn_gradient_tree_take(tree)};
        else
            bring(tree, chunks, working, &count, (int)tn_rng_below(rng, (uint32_t)count));
    }
}

static void assert_sum(tn_gradient_tree *tree, int chunks) {
    float wanted[FLOATS], sum[FLOATS];
    size_t bounds[TN_BUCKETS_MAX + 1];
    for (int i = 0; i < buckets_of(chunks, bounds); i++) assert_true(tn_gradient_tree_ready(tree, i));
    const float *other, *first = tn_gradient_tree_sum(tree, &other);
    expected_sum(chunks, wanted);
    assert_int_equal(other != NULL, chunks > 1);
    for (int i = 0; i < FLOATS; i++) sum[i] = other ? first[i] + other[i] : first[i];
    assert_memory_equal(sum, wanted, sizeof wanted);
}

static void test_same_bits_in_any_order(void **state) {
    (void)state;
    static const uint32_t hastes[] = {256, 220, 128, 30};
    tn_rng rng = tn_rng_open(2, TN_RNG_SYNTHETIC, 0, 0);
    size_t before = tn_memory_in_use();
    for (int workers = 1; workers <= WORKERS_MAX; workers++)
        for (int chunks = 1; chunks <= CHUNKS_MAX; chunks++) {
            tn_gradient_tree *tree = make_tree(chunks, workers);
            for (int trial = 0; trial < 12; trial++) {
                simulate(tree, chunks, workers, hastes[trial % 4], &rng);
                assert_sum(tree, chunks);
            }
            tn_gradient_tree_free(tree);
        }
    assert_int_equal(tn_memory_in_use(), before);
}

static void test_smaller_batches_in_between(void **state) {
    (void)state;
    tn_rng rng = tn_rng_open(3, TN_RNG_SYNTHETIC, 0, 0);
    tn_gradient_tree *tree = make_tree(CHUNKS_MAX, 3);
    for (int trial = 0; trial < 300; trial++) {
        int chunks = 1 + (int)tn_rng_below(&rng, CHUNKS_MAX);
        simulate(tree, chunks, 3, 200, &rng);
        assert_sum(tree, chunks);
    }
    tn_gradient_tree_free(tree);
}

/* ---- the bound ---- */

/* Buffers in use when the chunks of the bit set `working` are in work, those from `taken` on are not started
 * and all others are finished: one each for those in work and for every finished subtree whose sibling is
 * not. Adds up over the subtree of `size` chunks at `first`; *finished: whether all of it is. */
static int buffers_in_use(uint32_t working, int taken, int chunks, int first, int size, bool *finished) {
    if (size == 1) {
        bool works = working >> first & 1;
        *finished = first < taken && !works;
        return works;
    }
    int middle = first + size / 2;
    bool left, right;
    int used = buffers_in_use(working, taken, chunks, first, size / 2, &left);
    if (middle >= chunks) {
        *finished = left;
        return used;
    }
    used += buffers_in_use(working, taken, chunks, middle, size / 2, &right);
    *finished = left && right;
    return used + (left != right);
}

/* Over all moments that `workers` workers can bring about who take chunks in order. */
static int most_buffers(int chunks, int workers) {
    int most = 1, size = 1;
    bool finished;
    while (size < chunks) size *= 2;
    for (int taken = 1; taken <= chunks; taken++)
        for (uint32_t working = 0; working < 1u << taken; working++) {
            int count = __builtin_popcount(working);
            /* The one who took the last chunk has it still, or is free again. */
            if (count > workers || (count == workers && !(working >> (taken - 1) & 1))) continue;
            int used = buffers_in_use(working, taken, chunks, 0, size, &finished);
            /* A whole sum that is finished stays in its buffer. */
            if (used > most) most = used;
        }
    return most;
}

static void test_bound_is_enough_and_reached(void **state) {
    (void)state;
    for (int workers = 1; workers <= WORKERS_MAX; workers++)
        for (int chunks = 1; chunks <= 17; chunks++) {
            int most = most_buffers(chunks, workers), bound = tn_gradient_tree_buffers(chunks, workers);
            if (bound < most)
                fail_msg("%d chunks, %d workers: %d buffers, %d are needed", chunks, workers, bound, most);
            /* For trees that are not full it may be larger than needed. */
            bool full = (chunks & (chunks - 1)) == 0;
            if (full && bound != most)
                fail_msg("%d chunks, %d workers: %d buffers, %d would do", chunks, workers, bound, most);
            assert_true(bound <= chunks);
        }
}

static void test_bound_grows(void **state) {
    (void)state;
    for (int workers = 1; workers <= 70; workers++)
        for (int chunks = 1; chunks <= 300; chunks++) {
            int bound = tn_gradient_tree_buffers(chunks, workers);
            assert_true(bound >= 1 && bound <= chunks);
            assert_true(bound <= tn_gradient_tree_buffers(chunks + 1, workers));
            assert_true(bound <= tn_gradient_tree_buffers(chunks, workers + 1));
        }
    /* A single worker leaves one sum at each level. */
    assert_int_equal(tn_gradient_tree_buffers(1 << 10, 1), 11);
    assert_int_equal(tn_gradient_tree_buffers(1000, 300), 1000);
}

/* The worst moment for one worker after another is reached with real buffers: a tree that had one less would
 * abort. */
static void test_worst_order_of_one_worker(void **state) {
    (void)state;
    tn_gradient_tree *tree = make_tree(32, 1);
    assert_int_equal(tn_gradient_tree_bytes(tree), 6 * FLOATS * sizeof(float));
    begin(tree, 32);
    for (int chunk = 0; chunk < 32; chunk++) {
        float *buffer = tn_gradient_tree_take(tree);
        for (int bucket = 0; !bring_bucket(tree, 32, chunk, bucket, buffer);) bucket++;
        assert_true(tn_gradient_tree_ready(tree, 0) == (chunk == 31));
    }
    assert_sum(tree, 32);
    tn_gradient_tree_free(tree);
}

/* ---- threads ---- */

typedef struct shared_tree {
    tn_gradient_tree *tree;
    int chunks;
} shared_tree;

static tn_status take_and_bring(void *context, int index, int worker) {
    (void)worker;
    const shared_tree *s = context;
    float *buffer = tn_gradient_tree_take(s->tree);
    for (int bucket = 0; !bring_bucket(s->tree, s->chunks, index, bucket, buffer);) bucket++;
    return TN_OK;
}

static void test_threads(void **state) {
    (void)state;
    for (int threads = 1; threads <= 5; threads++) {
        tn_pool *pool;
        assert_int_equal(tn_pool_create(threads, NULL, &pool), TN_OK);
        tn_gradient_tree *tree = make_tree(CHUNKS_MAX, threads);
        for (int trial = 0; trial < 200; trial++) {
            int chunks = 1 + trial % CHUNKS_MAX;
            shared_tree shared = {tree, chunks};
            begin(tree, chunks);
            assert_int_equal(tn_pool_run(pool, chunks, take_and_bring, &shared), TN_OK);
            assert_sum(tree, chunks);
        }
        tn_gradient_tree_free(tree);
        tn_pool_free(pool);
    }
}

static void test_allocation_failures(void **state) {
    (void)state;
    size_t before = tn_memory_in_use();
    tn_gradient_tree *tree;
    int failures = 0;
    for (long n = 1;; n++) {
        tn_memory_fail_at(n);
        tn_status status = tn_gradient_tree_create(&backend, 16, 16, 3, FLOATS, &tree);
        tn_memory_fail_at(0);
        if (status == TN_OK) break;
        failures++;
        assert_int_equal(status, TN_ERR_MEMORY);
        assert_null(tree);
        assert_int_equal(tn_memory_in_use(), before);
    }
    assert_int_equal(failures, 5 + tn_gradient_tree_buffers(16, 3));
    tn_gradient_tree_free(tree);
    tn_gradient_tree_free(NULL);
    assert_int_equal(tn_memory_in_use(), before);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_another_order_has_other_bits),
        cmocka_unit_test(test_same_bits_in_any_order),
        cmocka_unit_test(test_smaller_batches_in_between),
        cmocka_unit_test(test_bound_is_enough_and_reached),
        cmocka_unit_test(test_bound_grows),
        cmocka_unit_test(test_worst_order_of_one_worker),
        cmocka_unit_test(test_threads),
        cmocka_unit_test(test_allocation_failures),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
