/* Bandwidth of the sum of gradients between processes, as training does it (comm.h, tn_reduction):
 *
 *     mpirun -np N build/bench/scaling/allreduce
 *
 * For each size the median of some repetitions. "bus" is what each process sends and receives in an ideal
 * all-reduce, 2 (N - 1) / N of the bytes, over the time; it can be compared across N. */
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/memory.h"
#include "base/sum_tree.h"
#include "comm/comm.h"

#define REPETITIONS 15

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static tn_status measure(tn_comm *comm, size_t floats, float *data, double *median) {
    int size = tn_comm_size(comm);
    const float *parts[TN_SUM_PARTS_MAX] = {data};
    double seconds[REPETITIONS];
    tn_reduction *reduction;
    TN_TRY(tn_reduction_create(comm, size, floats, "all-reduce", &reduction));
    tn_status status = TN_OK;
    for (int i = -2; status == TN_OK && i < REPETITIONS; i++) {
        status = tn_comm_barrier(comm, "barrier");
        double start = tn_now();
        if (status == TN_OK) status = tn_reduction_start(reduction, size, floats, parts, data);
        if (status == TN_OK) status = tn_reduction_finish(reduction);
        if (i >= 0) seconds[i] = tn_now() - start;
    }
    tn_reduction_free(reduction);
    qsort(seconds, REPETITIONS, sizeof *seconds, by_value);
    *median = seconds[REPETITIONS / 2];
    return status;
}

static tn_status run(tn_comm *comm) {
    const size_t most = (size_t)1 << 25;
    int size = tn_comm_size(comm);
    float *data;
    TN_TRY(tn_alloc(&data, most, sizeof *data, "data"));
    if (tn_comm_rank(comm) == 0) printf("%d processes\n%12s %12s %12s\n", size, "bytes", "ms", "bus GB/s");
    tn_status status = TN_OK;
    for (size_t floats = 256; status == TN_OK && floats <= most; floats *= 8) {
        double median, bytes = (double)floats * sizeof(float);
        status = measure(comm, floats, data, &median);
        if (status == TN_OK && tn_comm_rank(comm) == 0)
            printf("%12.0f %12.3f %12.2f\n", bytes, 1e3 * median,
                   2 * (size - 1) * bytes / size / median * 1e-9);
    }
    tn_free(data);
    return status;
}

/* What a rank's death looks like is not measured here. */
static void on_lost(void *context, const char *text) {
    (void)context;
    if (text) fprintf(stderr, "allreduce: %s\n", text);
    _exit(1);
}

int main(void) {
    tn_comm *comm;
    tn_comm_config config = {.timeout = 60, .lost = on_lost};
    tn_status status = tn_comm_open(&config, &comm);
    if (status == TN_OK) status = run(comm);
    if (status != TN_OK) fprintf(stderr, "allreduce: %s\n", tn_error());
    tn_comm_close(comm, status != TN_OK);
    return status != TN_OK;
}
