/* The list of experiments, and how one is run. */
#include <stdio.h>
#include <string.h>

#include "theory/laboratory_parts.h"

const tn_experiment *const tn_experiments[] = {
    &tn_experiment_forward,     &tn_experiment_spectral, &tn_experiment_backward,
    &tn_experiment_smoothness,  &tn_experiment_lower,    &tn_experiment_perturbation,
    &tn_experiment_convergence, &tn_experiment_fig1,     &tn_experiment_bn,
    &tn_experiment_nf,          &tn_experiment_jacobian, NULL,
};

bool tn_theory_at(size_t index, tn_theory_entry *out) {
    for (size_t i = 0; tn_experiments[i]; i++) {
        if (i != index) continue;
        *out = (tn_theory_entry){tn_experiments[i]->name, tn_experiments[i]->summary};
        return true;
    }
    return false;
}

static tn_status find(const char *name, const tn_experiment **out) {
    const char *nearest = "";
    int distance = 99;
    for (size_t i = 0; (*out = tn_experiments[i]); i++) {
        int d = tn_edit_distance(name, (*out)->name);
        if (d == 0) return TN_OK;
        if (d < distance) {
            distance = d;
            nearest = (*out)->name;
        }
    }
    if (tn_is_near(name, nearest, distance))
        return tn_fail(TN_ERR_USAGE, "unknown experiment '%s'; did you mean '%s'?",
                       tn_make_legible(name).text, nearest);
    return tn_fail(TN_ERR_USAGE, "unknown experiment '%s'; 'taunet theory list' lists them",
                   tn_make_legible(name).text);
}

/* An option that an experiment has no use for is no option of it. */
static tn_status check_options(const tn_experiment *experiment, const tn_options *options) {
    static const char *const some[] = {"width", "depths", "trials",     "samples",
                                       "data",  "steps",  "checkpoint", "runs"};
    for (size_t i = 0; i < sizeof some / sizeof *some; i++) {
        char wanted[32];
        snprintf(wanted, sizeof wanted, " %s ", some[i]);
        if (tn_options_is_given(options, some[i]) && !strstr(experiment->takes, wanted))
            return tn_fail(TN_ERR_USAGE, "--%s has no effect on the experiment %s; leave it out", some[i],
                           experiment->name);
    }
    return TN_OK;
}

tn_status tn_theory_run(const tn_options *options, const tn_theory_hooks *hooks) {
    const tn_experiment *experiment;
    tn_lab *lab;
    if (!*options->experiment)
        return tn_fail(TN_ERR_USAGE,
                       "theory needs the name of an experiment; 'taunet theory list' lists them");
    TN_TRY(find(options->experiment, &experiment));
    TN_TRY(tn_options_check(options));
    TN_TRY(check_options(experiment, options));
    TN_TRY(tn_lab_open_folder(options));
    TN_TRY(tn_lab_create(experiment, options, hooks, &lab));
    tn_status status = experiment->run(lab, options);
    if (status == TN_OK) status = tn_lab_check_stop(lab);
    if (status == TN_OK) status = tn_lab_publish(lab);
    tn_lab_free(lab);
    return status;
}
