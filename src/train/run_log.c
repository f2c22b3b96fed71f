#include "train/run_log.h"

#include <math.h>
#include <stdio.h>

void tn_run_log_put(json_t *line, const char *key, json_t *value) {
    /* A failure surfaces as a line that cannot be written. */
    if (value) json_object_set_new(line, key, value);
}

tn_status tn_run_log_step_events(tn_run_folder *folder, const tn_event *e) {
    if (!folder->log) return TN_OK;
    TN_TRY(tn_tfevents_scalar(folder->events, "step/loss", e->step, e->loss, -1));
    TN_TRY(tn_tfevents_scalar(folder->events, "step/lr", e->step, e->lr, -1));
    if (!isnan(e->tau)) TN_TRY(tn_tfevents_scalar(folder->events, "step/tau", e->step, e->tau, -1));
    return TN_OK;
}

tn_status tn_run_log_step(tn_run_folder *folder, const tn_event *e) {
    if (!folder->log) return TN_OK;
    json_t *line = json_object();
    tn_run_log_put(line, "event", json_string("step"));
    tn_run_log_put(line, "step", json_integer(e->step));
    tn_run_log_put(line, "epoch", json_integer(e->epoch));
    tn_run_log_put(line, "loss", tn_json_real(e->loss));
    tn_run_log_put(line, "lr", tn_json_real(e->lr));
    tn_run_log_put(line, "tau", tn_json_real(e->tau));
    tn_run_log_put(line, "images_per_second", tn_json_real(e->images_per_second));
    if (e->ranks > 1) tn_run_log_put(line, "comm_wait", tn_json_real(e->comm_wait));
    TN_TRY(tn_run_folder_log(folder, line));
    return tn_run_log_step_events(folder, e);
}

tn_status tn_run_log_epoch(tn_run_folder *folder, const tn_event *e) {
    const struct {
        const char *key;
        double value;
        bool always;
    } fields[] = {{"train_loss", e->train_loss, true},
                  {"train_top1", e->train_top1, true},
                  {"val_loss", e->val_loss, false},
                  {"val_top1", e->val_top1, false},
                  {"val_top5", e->val_top5, false},
                  {"lr", e->lr, true},
                  {"tau", e->tau, true},
                  {"seconds", e->seconds, true},
                  {"images_per_second", e->images_per_second, true},
                  {"data_wait", e->data_wait, true}};
    char row[512], tag[64];
    if (!folder->log) return TN_OK;
    int used = snprintf(row, sizeof row, "%d", e->epoch);
    json_t *line = json_object();
    tn_run_log_put(line, "event", json_string("epoch"));
    tn_run_log_put(line, "epoch", json_integer(e->epoch));
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) {
        double value = fields[i].always || e->evaluated ? fields[i].value : NAN;
        tn_run_log_put(line, fields[i].key, tn_json_real(value));
        used += isnan(value) ? snprintf(row + used, sizeof row - (size_t)used, ",")
                             : snprintf(row + used, sizeof row - (size_t)used, ",%.9g", value);
        snprintf(tag, sizeof tag, "epoch/%s", fields[i].key);
        if (!isnan(value)) TN_TRY(tn_tfevents_scalar(folder->events, tag, e->step, value, -1));
    }
    if (e->ranks > 1) tn_run_log_put(line, "comm_wait", tn_json_real(e->comm_wait));
    TN_TRY(tn_run_folder_log(folder, line));
    TN_TRY(tn_tfevents_flush(folder->events));
    return tn_line_log_append(folder->metrics, row);
}
