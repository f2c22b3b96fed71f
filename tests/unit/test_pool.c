/* The worker pool: every index once, order of hand-out, failures, and one worker at a time under one number.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#include "base/memory.h"
#include "base/pool.h"

#define COUNT   1000
#define THREADS 5

static tn_pool *make_pool(int threads) {
    tn_pool *pool;
    if (tn_pool_create(threads, NULL, &pool) != TN_OK) fail_msg("%s", tn_error());
    assert_int_equal(tn_pool_threads(pool), threads);
    return pool;
}

static void pause_briefly(void) {
    struct timespec t = {.tv_nsec = 2000000};
    nanosleep(&t, NULL);
}

/* ---- loops ---- */

typedef struct loop {
    int threads;
    atomic_int runs[COUNT];
    atomic_int begun;
    atomic_int inside[THREADS]; /* bodies that run under a worker's number */
    atomic_bool shared;         /* two at a time, or under a number that there is not */
    atomic_bool unordered;      /* an index began though a smaller one was not handed out */
} loop;

static tn_status count_run(void *context, int index, int worker) {
    loop *l = context;
    if (worker < 0 || worker >= THREADS || worker >= l->threads) {
        atomic_store(&l->shared, true);
        return TN_OK;
    }
    if (atomic_fetch_add(&l->inside[worker], 1) != 0) atomic_store(&l->shared, true);
    /* Index i is handed out after all smaller ones: of those at most threads - 1 have not begun yet. */
    if (index > atomic_fetch_add(&l->begun, 1) + l->threads - 1) atomic_store(&l->unordered, true);
    atomic_fetch_add(&l->runs[index], 1);
    atomic_fetch_sub(&l->inside[worker], 1);
    return TN_OK;
}

static void test_every_index_once(void **state) {
    (void)state;
    for (int threads = 1; threads <= THREADS; threads++) {
        tn_pool *pool = make_pool(threads);
        static const int counts[] = {0, 1, 2, THREADS, COUNT, 3, COUNT};
        for (size_t c = 0; c < sizeof counts / sizeof *counts; c++) {
            loop *l = calloc(1, sizeof *l);
            l->threads = threads;
            assert_int_equal(tn_pool_run(pool, counts[c], count_run, l), TN_OK);
            for (int i = 0; i < COUNT; i++) assert_int_equal(atomic_load(&l->runs[i]), i < counts[c] ? 1 : 0);
            assert_false(atomic_load(&l->shared));
            assert_false(atomic_load(&l->unordered));
            free(l);
        }
        tn_pool_free(pool);
    }
}

static void test_many_short_loops(void **state) {
    (void)state;
    tn_pool *pool = make_pool(3);
    loop *l = calloc(1, sizeof *l);
    l->threads = COUNT; /* the order is not what is looked at */
    for (int i = 0; i < 3000; i++) assert_int_equal(tn_pool_run(pool, 1 + i % 7, count_run, l), TN_OK);
    int total = 0;
    for (int i = 0; i < 7; i++) total += atomic_load(&l->runs[i]);
    assert_int_equal(total, atomic_load(&l->begun));
    assert_int_equal(atomic_load(&l->runs[0]), 3000);
    assert_int_equal(atomic_load(&l->runs[7]), 0);
    free(l);
    tn_pool_free(pool);
}

#define SHORT 3000000

/* Iterations that are so short that the workers fight for the next index. */
static tn_status only_count(void *context, int index, int worker) {
    (void)worker;
    atomic_fetch_add_explicit(&((atomic_uchar *)context)[index], 1, memory_order_relaxed);
    return TN_OK;
}

static void test_short_iterations(void **state) {
    (void)state;
    static atomic_uchar runs[SHORT];
    tn_pool *pool = make_pool(4);
    for (int round = 1; round <= 5; round++) {
        assert_int_equal(tn_pool_run(pool, SHORT, only_count, runs), TN_OK);
        int wrong = 0;
        for (int i = 0; i < SHORT; i++)
            wrong += atomic_load_explicit(&runs[i], memory_order_relaxed) != round;
        assert_int_equal(wrong, 0);
    }
    tn_pool_free(pool);
}

/* With as many slow iterations as threads, all run at once. */
static tn_status meet(void *context, int index, int worker) {
    atomic_int *present = context;
    (void)index, (void)worker;
    atomic_fetch_add(present, 1);
    for (int i = 0; i < 2000 && atomic_load(present) < 4; i++) pause_briefly();
    return atomic_load(present) < 4 ? tn_fail(TN_ERR_DEVICE, "waited alone") : TN_OK;
}

static void test_iterations_run_together(void **state) {
    (void)state;
    atomic_int present = 0;
    tn_pool *pool = make_pool(4);
    assert_int_equal(tn_pool_run(pool, 4, meet, &present), TN_OK);
    tn_pool_free(pool);
}

/* ---- failures ---- */

/* Two indices that fail one after the other, both begun before the first does; -1 for none. */
typedef struct failing {
    int early, late;
    bool slow; /* the others take their time */
    atomic_int runs;
    atomic_bool late_begun, early_failed;
} failing;

static tn_status fail_at(void *context, int index, int worker) {
    failing *f = context;
    (void)worker;
    atomic_fetch_add(&f->runs, 1);
    if (index == f->early) {
        for (int i = 0; i < 500 && f->late >= 0 && !atomic_load(&f->late_begun); i++) pause_briefly();
        tn_status status = tn_fail(TN_ERR_DEVICE, "index %d failed early", index);
        atomic_store(&f->early_failed, true);
        return status;
    }
    if (index == f->late) {
        atomic_store(&f->late_begun, true);
        for (int i = 0; i < 500 && !atomic_load(&f->early_failed); i++) pause_briefly();
        for (int i = 0; i < 5; i++) pause_briefly();
        return tn_fail(TN_ERR_DATA, "index %d failed late", index);
    }
    if (f->slow) pause_briefly();
    return TN_OK;
}

static void test_failure_is_carried_over(void **state) {
    (void)state;
    for (int threads = 1; threads <= THREADS; threads++) {
        tn_pool *pool = make_pool(threads);
        failing f = {.early = 7, .late = -1};
        tn_fail(TN_ERR_IO, "an old message");
        assert_int_equal(tn_pool_run(pool, 20, fail_at, &f), TN_ERR_DEVICE);
        assert_string_equal(tn_error(), "index 7 failed early");
        /* The pool is as good as before. */
        f = (failing){.early = -1, .late = -1};
        assert_int_equal(tn_pool_run(pool, 20, fail_at, &f), TN_OK);
        assert_int_equal(atomic_load(&f.runs), 20);
        tn_pool_free(pool);
    }
}

static void test_smallest_index_is_reported(void **state) {
    (void)state;
    tn_pool *pool = make_pool(3);
    for (int trial = 0; trial < 10; trial++) {
        failing first = {.early = 4, .late = 5}, last = {.early = 5, .late = 4};
        assert_int_equal(tn_pool_run(pool, 20, fail_at, &first), TN_ERR_DEVICE);
        assert_string_equal(tn_error(), "index 4 failed early");
        assert_int_equal(tn_pool_run(pool, 20, fail_at, &last), TN_ERR_DATA);
        assert_string_equal(tn_error(), "index 4 failed late");
        assert_true(atomic_load(&first.late_begun) && atomic_load(&last.early_failed));
    }
    tn_pool_free(pool);
}

static void test_nothing_starts_after_a_failure(void **state) {
    (void)state;
    for (int threads = 1; threads <= THREADS; threads++) {
        tn_pool *pool = make_pool(threads);
        failing f = {.early = 3, .late = -1, .slow = true};
        assert_int_equal(tn_pool_run(pool, 1000000, fail_at, &f), TN_ERR_DEVICE);
        assert_string_equal(tn_error(), "index 3 failed early");
        assert_in_range(atomic_load(&f.runs), 4, 1000);
        tn_pool_free(pool);
    }
}

/* ---- beside a loop ---- */

typedef struct beside {
    tn_pool *pool;
    atomic_int runs, calls; /* of bodies, of the aside */
    double pause;           /* what the aside asks for */
    bool wake, fails;
} beside;

static tn_status slow_body(void *context, int index, int worker) {
    beside *b = context;
    (void)index;
    (void)worker;
    pause_briefly();
    if (b->wake) tn_pool_wake(b->pool);
    atomic_fetch_add(&b->runs, 1);
    return TN_OK;
}

static tn_status count_call(void *context, double *pause) {
    beside *b = context;
    assert_true(*pause < 0);
    *pause = b->pause;
    if (atomic_fetch_add(&b->calls, 1) == 2 && b->fails) return tn_fail(TN_ERR_PEER, "the aside failed");
    return TN_OK;
}

/* It is called once where nothing else is asked for, after waking, and when its pause is over. */
static void test_beside_a_loop(void **state) {
    (void)state;
    for (int threads = 1; threads <= 3; threads++) {
        tn_pool *pool = make_pool(threads);
        for (int kind = 0; kind < 3; kind++) {
            beside b = {.pool = pool, .pause = kind == 2 ? 1e-4 : -1, .wake = kind == 1};
            assert_int_equal(tn_pool_run_beside(pool, 20, slow_body, count_call, &b), TN_OK);
            assert_int_equal(atomic_load(&b.runs), 20);
            if (kind == 0) assert_int_equal(atomic_load(&b.calls), 1);
            if (kind > 0) assert_in_range(atomic_load(&b.calls), 3, 2000);
        }
        beside b = {.pool = pool, .pause = 1e-4, .fails = true};
        assert_int_equal(tn_pool_run_beside(pool, 1000000, slow_body, count_call, &b), TN_ERR_PEER);
        assert_string_equal(tn_error(), "the aside failed");
        assert_int_equal(atomic_load(&b.calls), 3);
        assert_in_range(atomic_load(&b.runs), 0, 1000);
        tn_pool_free(pool);
    }
}

/* ---- life ---- */

static atomic_int starts;

static void note_start(void) {
    atomic_fetch_add(&starts, 1);
}

static void test_threads_start_once(void **state) {
    (void)state;
    tn_pool *pool;
    loop *l = calloc(1, sizeof *l);
    l->threads = 3;
    atomic_store(&starts, 0);
    assert_int_equal(tn_pool_create(3, note_start, &pool), TN_OK);
    for (int i = 0; i < 10; i++) assert_int_equal(tn_pool_run(pool, 5, count_run, l), TN_OK);
    tn_pool_free(pool);
    assert_int_equal(atomic_load(&starts), 3);
    free(l);
}

static void test_memory(void **state) {
    (void)state;
    size_t before = tn_memory_in_use();
    tn_pool *pool;
    for (long n = 1;; n++) {
        tn_memory_fail_at(n);
        tn_status status = tn_pool_create(3, NULL, &pool);
        tn_memory_fail_at(0);
        if (status == TN_OK) break;
        assert_int_equal(status, TN_ERR_MEMORY);
        assert_null(pool);
        assert_int_equal(tn_memory_in_use(), before);
    }
    tn_pool_free(pool);
    tn_pool_free(NULL);
    assert_int_equal(tn_memory_in_use(), before);
}

static void test_processors(void **state) {
    (void)state;
    assert_true(tn_processor_count() >= 1);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_index_once),
        cmocka_unit_test(test_many_short_loops),
        cmocka_unit_test(test_short_iterations),
        cmocka_unit_test(test_iterations_run_together),
        cmocka_unit_test(test_failure_is_carried_over),
        cmocka_unit_test(test_smallest_index_is_reported),
        cmocka_unit_test(test_nothing_starts_after_a_failure),
        cmocka_unit_test(test_beside_a_loop),
        cmocka_unit_test(test_threads_start_once),
        cmocka_unit_test(test_memory),
        cmocka_unit_test(test_processors),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
