#include "cli/launch.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define ARGUMENTS_MAX 1000

static volatile sig_atomic_t child, passed_on, got;

int launch_is_part(void) {
    static const char *const names[] = {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMIX_RANK", "PMI_RANK"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (getenv(names[i])) return 1;
    return 0;
}

static int fail(const char *what, const char *why) {
    fprintf(stderr, "taunet: --gpus: %s: %s; install openmpi-bin, or start the processes yourself\n", what,
            why);
    return 1;
}

static void pass_on(int number) {
    if (child > 0) kill((pid_t)child, got ? SIGTERM : (int)passed_on);
    got = number;
}

/* mpirun gets a process group of its own: a Ctrl-C on the terminal comes to this process alone. */
static _Noreturn void run_mpirun(char **list) {
    setpgid(0, 0);
    if (geteuid() == 0) {
        setenv("OMPI_ALLOW_RUN_AS_ROOT", "1", 0);
        setenv("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1", 0);
    }
    execvp(list[0], list);
    _exit(fail("cannot start mpirun", strerror(errno)));
}

static int wait_for(pid_t process) {
    int status;
    while (waitpid(process, &status, 0) < 0)
        if (errno != EINTR) return fail("waitpid", strerror(errno));
    int code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    /* What came here was passed on as another signal. */
    return got && code == 128 + (int)passed_on ? 128 + (int)got : code;
}

int launch_processes(int count, int signal_number, int argc, char **argv) {
    static char program[4096], number[16];
    static char *list[ARGUMENTS_MAX + 1] = {"mpirun", "-q",   "--oversubscribe", "--bind-to", "none", "-np",
                                            number,   program};
    const int own = 8, signals[] = {SIGINT, SIGTERM, SIGHUP, signal_number};
    snprintf(number, sizeof number, "%d", count);
    ssize_t length = readlink("/proc/self/exe", program, sizeof program - 1);
    if (length < 0) return fail("/proc/self/exe", strerror(errno));
    program[length] = 0;
    if (own + argc - 1 > ARGUMENTS_MAX) return fail("the command line", "too many arguments");
    for (int i = 1; i < argc; i++) list[own + i - 1] = argv[i];
    passed_on = signal_number;
    for (size_t i = 0; i < sizeof signals / sizeof *signals; i++) signal(signals[i], pass_on);
    pid_t process = fork();
    if (process < 0) return fail("fork", strerror(errno));
    if (process == 0) run_mpirun(list);
    child = process;
    if (got) kill(process, SIGTERM); /* it came in between */
    return wait_for(process);
}
