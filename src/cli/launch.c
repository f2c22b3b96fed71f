#include "cli/launch.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define ARGUMENTS_MAX 1000

int launch_is_part(void) {
    static const char *const names[] = {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMIX_RANK", "PMI_RANK"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (getenv(names[i])) return 1;
    return 0;
}

static tn_status fail(const char *what, const char *why) {
    fprintf(stderr, "taunet: --gpus: %s: %s; install openmpi-bin, or start the processes yourself\n", what,
            why);
    return TN_ERR_USAGE;
}

/* Where the variable is not set yet. */
static void suggest(const char *name, const char *value) {
    (void)setenv(name, value, 0);
}

tn_status launch_processes(int count, int argc, char **argv) {
    static char program[4096], number[16];
    static char *list[ARGUMENTS_MAX + 1] = {"mpirun", "-q",   "--oversubscribe", "--bind-to", "none", "-np",
                                            number,   program};
    const int own = 8;
    snprintf(number, sizeof number, "%d", count);
    ssize_t length = readlink("/proc/self/exe", program, sizeof program - 1);
    if (length < 0) return fail("/proc/self/exe", strerror(errno));
    program[length] = 0;
    if (own + argc - 1 > ARGUMENTS_MAX) return fail("the command line", "too many arguments");
    for (int i = 1; i < argc; i++) list[own + i - 1] = argv[i];
    /* Time to save after a signal that mpirun passes on, before it kills. */
    suggest("OMPI_MCA_odls_base_sigkill_timeout", "20");
    if (geteuid() == 0) {
        suggest("OMPI_ALLOW_RUN_AS_ROOT", "1");
        suggest("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1");
    }
    execvp(list[0], list);
    return fail("cannot start mpirun", strerror(errno));
}
