#include "report/child.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "io/file_io.h"

extern char **environ;

static int set_up(posix_spawn_file_actions_t *actions, posix_spawnattr_t *attributes, const char *output) {
    sigset_t none;
    sigemptyset(&none);
    int error = posix_spawn_file_actions_addopen(actions, 0, "/dev/null", O_RDONLY, 0);
    if (!error)
        error = posix_spawn_file_actions_addopen(actions, 1, output, O_WRONLY | O_CREAT | O_TRUNC | O_APPEND,
                                                 0666);
    if (!error) error = posix_spawn_file_actions_adddup2(actions, 1, 2);
    if (!error) error = posix_spawnattr_setpgroup(attributes, 0);
    if (!error) error = posix_spawnattr_setsigmask(attributes, &none);
    if (!error) error = posix_spawnattr_setflags(attributes, POSIX_SPAWN_SETPGROUP | POSIX_SPAWN_SETSIGMASK);
    return error;
}

tn_status tn_child_start(char *const argv[], const char *output, pid_t *out) {
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attributes;
    int error = posix_spawn_file_actions_init(&actions);
    if (error) return tn_fail(TN_ERR_MEMORY, "cannot start %s: %s", argv[0], strerror(error));
    error = posix_spawnattr_init(&attributes);
    if (!error) {
        error = set_up(&actions, &attributes, output);
        if (!error) error = posix_spawn(out, argv[0], &actions, &attributes, argv, environ);
        posix_spawnattr_destroy(&attributes);
    }
    posix_spawn_file_actions_destroy(&actions);
    if (!error) return TN_OK;
    return tn_fail(TN_ERR_IO, "cannot start %s (output to %s): %s", argv[0], output, strerror(error));
}

bool tn_child_ended(pid_t pid, int *code) {
    int status;
    pid_t ended = waitpid(pid, &status, WNOHANG);
    if (ended == 0 || (ended < 0 && errno == EINTR)) return false;
    *code = ended < 0 ? 1 : WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    return true;
}

void tn_child_interrupt(pid_t pid) {
    kill(pid, SIGINT); /* one that has just ended needs none */
}

tn_status tn_child_last_error(const char *output, tn_string *out) {
    static const char mark[] = "taunet: ";
    char line[4096], last[4096] = "";
    FILE *file = fopen(output, "re");
    if (!file) return errno == ENOENT ? tn_string_append(out, "", 0) : tn_fail_errno("read", output);
    while (fgets(line, sizeof line, file))
        if (!strncmp(line, mark, sizeof mark - 1)) strcpy(last, line + sizeof mark - 1);
    fclose(file); /* was only read */
    last[strcspn(last, "\n")] = 0;
    return tn_string_append(out, last, strlen(last));
}
