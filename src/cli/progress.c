#include "cli/progress.h"

#include <math.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "cli/launch.h"

#define BAR_WIDTH       24
#define REDRAW_INTERVAL 0.1

static double seconds_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

void progress_begin(progress_state *state) {
    *state = (progress_state){/* mpirun shows a terminal to its processes, but is none. */
                              .terminal = isatty(STDOUT_FILENO) && !launch_is_part()};
}

static void close_line(progress_state *state) {
    if (state->open) fputs("\r\033[K", stdout);
    state->open = 0;
}

static void format_duration(double seconds, char *text, size_t size) {
    long s = seconds < 0 || !isfinite(seconds) ? 0 : (long)(seconds + 0.5);
    if (s >= 3600)
        snprintf(text, size, "%ld:%02ld:%02ld", s / 3600, s / 60 % 60, s % 60);
    else
        snprintf(text, size, "%ld:%02ld", s / 60, s % 60);
}

static void draw(progress_state *state, const tn_event *e) {
    char bar[BAR_WIDTH + 1], left[32];
    int full = e->batches > 0 ? (int)((long)BAR_WIDTH * e->batch / e->batches) : 0;
    for (int i = 0; i < BAR_WIDTH; i++) bar[i] = i < full ? '#' : '.';
    bar[BAR_WIDTH] = 0;
    format_duration(e->seconds_left, left, sizeof left);
    printf("\r\033[Kepoch %d [%s] %d/%d  loss %.4f  %.0f img/s  left %s  wait %.1f s", e->epoch + 1, bar,
           e->batch, e->batches, e->loss, e->images_per_second, left, e->data_wait);
    state->open = 1;
    state->last_draw = seconds_now();
}

static void show_step(progress_state *state, const tn_event *e) {
    if (state->terminal) {
        if (seconds_now() - state->last_draw >= REDRAW_INTERVAL || e->batch == e->batches) draw(state, e);
        return;
    }
    if (!e->log_step) return;
    char left[32];
    format_duration(e->seconds_left, left, sizeof left);
    printf("step %ld/%ld  epoch %d  loss %.6f  lr %.4g", e->step, e->steps, e->epoch + 1, e->loss, e->lr);
    if (!isnan(e->tau)) printf("  tau %.4f", e->tau);
    printf("  %.0f img/s  left %s  wait %.2f s", e->images_per_second, left, e->data_wait);
    if (e->ranks > 1) printf("  comm %.1f ms", 1e3 * e->comm_wait);
    putchar('\n');
}

static void show_epoch(const tn_event *e) {
    printf("epoch %d  train loss %.4f top-1 %.2f %%", e->epoch + 1, e->train_loss, e->train_top1);
    if (e->evaluated)
        printf("  val loss %.4f top-1 %.2f %% top-5 %.2f %%", e->val_loss, e->val_top1, e->val_top5);
    if (e->best_top1 >= 0) printf("  best %.2f %%", e->best_top1);
    printf("  %.1f s  %.0f img/s  wait %.2f s", e->seconds, e->images_per_second, e->data_wait);
    if (e->ranks > 1) printf("  comm %.2f s", e->comm_wait);
    putchar('\n');
}

void progress_show(void *context, const tn_event *event) {
    progress_state *state = context;
    state->leads = 1;
    if (event->kind != TN_EVENT_STEP) close_line(state);
    switch (event->kind) {
    case TN_EVENT_START:
    case TN_EVENT_NOTE:
        printf("%s\n", event->text);
        break;
    case TN_EVENT_STEP:
        show_step(state, event);
        break;
    case TN_EVENT_EPOCH:
        show_epoch(event);
        break;
    }
    fflush(stdout);
}

void progress_end(progress_state *state) {
    close_line(state);
    fflush(stdout);
}
