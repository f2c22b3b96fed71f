#include "base/pool.h"

#include <limits.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <time.h>

#include "base/memory.h"

struct tn_pool {
    pthread_mutex_t mutex;
    pthread_cond_t work, done;
    pthread_t *threads;
    int thread_count, started;
    void (*on_start)(void);
    /* The current loop; guarded by mutex except for the counter. */
    unsigned long generation;
    int busy; /* workers that have not finished the current loop */
    int stopping;
    int count;
    tn_pool_body body;
    void *context;
    bool woken; /* the aside is to be called */
    atomic_int next;
    /* The failure with the smallest index. */
    int failed_index;
    tn_status failed_status;
    char failed_message[1024];
};

typedef struct start_argument {
    tn_pool *pool;
    int worker;
} start_argument;

static void note_failure(tn_pool *pool, int index, tn_status status) {
    atomic_store(&pool->next, INT_MAX / 2);
    pthread_mutex_lock(&pool->mutex);
    if (index < pool->failed_index) {
        pool->failed_index = index;
        pool->failed_status = status;
        snprintf(pool->failed_message, sizeof pool->failed_message, "%s", tn_error());
    }
    pthread_mutex_unlock(&pool->mutex);
}

static void run_loop(tn_pool *pool, int worker) {
    for (;;) {
        int index = atomic_fetch_add(&pool->next, 1);
        if (index >= pool->count) return;
        tn_status status = pool->body(pool->context, index, worker);
        if (status != TN_OK) note_failure(pool, index, status);
    }
}

static void *worker_main(void *argument) {
    start_argument start = *(start_argument *)argument;
    tn_free(argument);
    tn_pool *pool = start.pool;
    if (pool->on_start) pool->on_start();
    unsigned long seen = 0;
    pthread_mutex_lock(&pool->mutex);
    for (;;) {
        while (pool->generation == seen && !pool->stopping) pthread_cond_wait(&pool->work, &pool->mutex);
        if (pool->stopping) break;
        seen = pool->generation;
        pthread_mutex_unlock(&pool->mutex);
        run_loop(pool, start.worker);
        pthread_mutex_lock(&pool->mutex);
        if (--pool->busy == 0) pthread_cond_signal(&pool->done);
    }
    pthread_mutex_unlock(&pool->mutex);
    return NULL;
}

static tn_status start_worker(tn_pool *pool, int worker) {
    start_argument *start;
    TN_TRY(tn_alloc(&start, 1, sizeof *start, "thread"));
    start->pool = pool;
    start->worker = worker;
    int error = pthread_create(&pool->threads[worker], NULL, worker_main, start);
    if (error) {
        tn_free(start);
        return tn_fail(TN_ERR_MEMORY, "cannot start worker thread %d (error %d); use fewer --threads", worker,
                       error);
    }
    pool->started++;
    return TN_OK;
}

tn_status tn_pool_create(int threads, void (*on_start)(void), tn_pool **out) {
    *out = NULL;
    tn_pool *pool;
    TN_TRY(tn_alloc(&pool, 1, sizeof *pool, "worker pool"));
    pthread_mutex_init(&pool->mutex, NULL);
    pthread_cond_init(&pool->work, NULL);
    pthread_cond_init(&pool->done, NULL);
    pool->thread_count = threads;
    if (threads == 0 && on_start) on_start();
    pool->on_start = on_start;
    tn_status status = tn_alloc(&pool->threads, (size_t)threads, sizeof *pool->threads, "worker pool");
    for (int i = 0; status == TN_OK && i < threads; i++) status = start_worker(pool, i);
    if (status != TN_OK) {
        tn_pool_free(pool);
        return status;
    }
    *out = pool;
    return TN_OK;
}

void tn_pool_free(tn_pool *pool) {
    if (!pool) return;
    pthread_mutex_lock(&pool->mutex);
    pool->stopping = 1;
    pthread_cond_broadcast(&pool->work);
    pthread_mutex_unlock(&pool->mutex);
    for (int i = 0; i < pool->started; i++) pthread_join(pool->threads[i], NULL);
    pthread_mutex_destroy(&pool->mutex);
    pthread_cond_destroy(&pool->work);
    pthread_cond_destroy(&pool->done);
    tn_free(pool->threads);
    tn_free(pool);
}

int tn_pool_threads(const tn_pool *pool) {
    return pool->thread_count;
}

/* Under the mutex: until the loop is done, woken, or for `pause` seconds. */
static void wait_a_while(tn_pool *pool, double pause) {
    if (pause < 0) {
        pthread_cond_wait(&pool->done, &pool->mutex);
        return;
    }
    struct timespec end;
    clock_gettime(CLOCK_REALTIME, &end);
    long nanoseconds = end.tv_nsec + (long)(pause * 1e9);
    end.tv_sec += nanoseconds / 1000000000;
    end.tv_nsec = nanoseconds % 1000000000;
    pthread_cond_timedwait(&pool->done, &pool->mutex, &end);
}

/* Under the mutex, which is free while the aside runs. */
static void wait_beside(tn_pool *pool, tn_pool_aside aside) {
    double pause = 0;
    while (pool->busy > 0) {
        if (pause != 0 && !pool->woken) wait_a_while(pool, pause);
        if (pool->busy == 0) return;
        if (pause < 0 && !pool->woken) continue;
        pool->woken = false;
        pause = -1;
        pthread_mutex_unlock(&pool->mutex);
        tn_status status = aside(pool->context, &pause);
        if (status != TN_OK) {
            note_failure(pool, -1, status);
            pause = -1;
            aside = NULL;
        }
        pthread_mutex_lock(&pool->mutex);
        while (!aside && pool->busy > 0) pthread_cond_wait(&pool->done, &pool->mutex);
    }
}

void tn_pool_wake(tn_pool *pool) {
    pthread_mutex_lock(&pool->mutex);
    pool->woken = true;
    pthread_cond_signal(&pool->done);
    pthread_mutex_unlock(&pool->mutex);
}

tn_status tn_pool_run(tn_pool *pool, int count, tn_pool_body body, void *context) {
    return tn_pool_run_beside(pool, count, body, NULL, context);
}

tn_status tn_pool_run_beside(tn_pool *pool, int count, tn_pool_body body, tn_pool_aside aside,
                             void *context) {
    if (count <= 0) return TN_OK;
    for (int i = 0; pool->thread_count == 0 && i < count; i++) TN_TRY(body(context, i, 0));
    if (pool->thread_count == 0) return TN_OK;
    pthread_mutex_lock(&pool->mutex);
    pool->count = count;
    pool->body = body;
    pool->context = context;
    pool->failed_index = INT_MAX;
    pool->failed_status = TN_OK;
    atomic_store(&pool->next, 0);
    pool->busy = pool->thread_count;
    pool->generation++;
    pool->woken = false;
    pthread_cond_broadcast(&pool->work);
    if (aside) wait_beside(pool, aside);
    while (pool->busy > 0) pthread_cond_wait(&pool->done, &pool->mutex);
    tn_status status = pool->failed_status;
    pthread_mutex_unlock(&pool->mutex);
    if (status != TN_OK) return tn_fail(status, "%s", pool->failed_message);
    return TN_OK;
}

int tn_processor_count(void) {
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) != 0) return 1;
    int count = CPU_COUNT(&set);
    return count > 0 ? count : 1;
}
