#include "comm/watchdog.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/memory.h"
#include "comm/side_channel.h"

#define CONNECT_SECONDS  30.0
#define GREETING_SECONDS 2.0
#define LAST_WORDS       0.2 /* seconds allowed for a message that matters */
#define GRACE_SECONDS    2.0 /* for the side channel to say what an error elsewhere comes from */

/* How much a rank is suspected to keep the others waiting, before the collectives it has begun count. */
#define SILENT 2e15
#define BUSY   1e15

/* Another rank as this one knows it: on rank 0 one for each rank, else one for rank 0. */
typedef struct peer {
    tn_side_link link;
    tn_side_message state; /* the last that was heard */
    double heard;          /* when */
    bool gone;             /* said goodbye */
} peer;

struct tn_watchdog {
    tn_watchdog_config config;
    char host[64];
    uint64_t token;
    int listening, wake; /* wake: an eventfd that ends the thread */
    peer *peers;         /* [size] on rank 0, [1] else; a rank has no link to itself */
    int peer_count;
    struct pollfd *polls; /* [peer_count + 1] */
    pthread_t thread;
    bool running;
    double interval, beat; /* seconds between looks; between signs of life */
    /* Under the mutex. */
    pthread_mutex_t mutex;
    long step;
    const char *phase, *collective;
    uint64_t collectives, changes;
    double entered; /* when this rank began to wait in a collective; negative: it does not */
    bool lost;
    char text[640];
    /* Under their own, which is held while one of them runs. */
    pthread_mutex_t guard;
    bool (*broken)(void *context, char *text, size_t size);
    void (*abort)(void *context);
    void *context;
    double broken_since; /* negative: it is not */
};

/* ---- where this rank stands ---- */

void tn_watchdog_phase(tn_watchdog *w, long step, const char *phase) {
    pthread_mutex_lock(&w->mutex);
    w->step = step;
    w->phase = phase;
    w->changes++;
    pthread_mutex_unlock(&w->mutex);
}

void tn_watchdog_enter(tn_watchdog *w, const char *collective, int collectives) {
    pthread_mutex_lock(&w->mutex);
    w->collective = collective;
    w->collectives += (uint64_t)collectives;
    w->changes++;
    w->entered = tn_now();
    pthread_mutex_unlock(&w->mutex);
}

void tn_watchdog_leave(tn_watchdog *w) {
    pthread_mutex_lock(&w->mutex);
    w->entered = -1;
    w->changes++;
    pthread_mutex_unlock(&w->mutex);
}

tn_status tn_watchdog_check(tn_watchdog *w) {
    pthread_mutex_lock(&w->mutex);
    tn_status status = w->lost ? tn_fail(TN_ERR_PEER, "%s", w->text) : TN_OK;
    pthread_mutex_unlock(&w->mutex);
    return status;
}

static tn_side_message own_state(tn_watchdog *w, tn_side_kind kind) {
    tn_side_message m = {.kind = kind, .rank = w->config.rank, .token = w->token};
    snprintf(m.host, sizeof m.host, "%s", w->host);
    pthread_mutex_lock(&w->mutex);
    m.step = w->step;
    m.collectives = w->collectives;
    m.waiting = w->entered >= 0 ? tn_now() - w->entered : -1;
    snprintf(m.phase, sizeof m.phase, "%s", w->phase);
    snprintf(m.collective, sizeof m.collective, "%s", w->collective);
    pthread_mutex_unlock(&w->mutex);
    return m;
}

/* ---- losing a rank ---- */

/* "rank 3 (node7)", and where it stood. */
static void describe(const tn_side_message *m, char *name, size_t name_size, char *where, size_t where_size) {
    snprintf(name, name_size, "rank %d (%s)", (int)m->rank, m->host);
    if (m->waiting >= 0)
        snprintf(where, where_size, "at step %ld in %s, waiting in the collective \"%s\"", (long)m->step,
                 m->phase, m->collective);
    else if (m->collectives > 0)
        snprintf(where, where_size, "at step %ld in %s, after the collective \"%s\"", (long)m->step, m->phase,
                 m->collective);
    else
        snprintf(where, where_size, "at step %ld in %s", (long)m->step, m->phase);
}

/* One rank of each machine speaks when rank 0 cannot: the first, or the second where rank 0 was the first. */
static bool speaks_for_machine(const tn_watchdog *w) {
    bool beside_root = w->peer_count == 1 && !strcmp(w->peers[0].state.host, w->host);
    return w->config.local_rank == (beside_root ? 1 : 0);
}

/* The end of the watch: passes the word on and reports. `told`: another rank says it. Collectives fail only
 * after the report, so that the main thread does not end the process before. */
static void lose(tn_watchdog *w, const char *text, bool told) {
    tn_side_message m = own_state(w, w->config.rank == 0 ? TN_SIDE_LOST : TN_SIDE_FAILED);
    snprintf(m.text, sizeof m.text, "%s", text);
    for (int i = 0; i < w->peer_count; i++) (void)tn_side_send(&w->peers[i].link, &m, LAST_WORDS);
    if (w->config.lost) w->config.lost(w->config.context, told ? NULL : text);
    pthread_mutex_lock(&w->mutex);
    w->lost = true;
    snprintf(w->text, sizeof w->text, "%s", told ? "" : text);
    pthread_mutex_unlock(&w->mutex);
    pthread_mutex_lock(&w->guard);
    if (w->abort) w->abort(w->context);
    pthread_mutex_unlock(&w->guard);
}

static void lose_peer(tn_watchdog *w, const tn_side_message *m, const char *what) {
    char name[96], where[192], text[512];
    describe(m, name, sizeof name, where, sizeof where);
    snprintf(text, sizeof text, "%s %s %s; all ranks stop; start again with --resume", name, what, where);
    lose(w, text, w->config.rank != 0 && !speaks_for_machine(w));
}

/* ---- the watch ---- */

/* Returns whether the watch goes on. */
static bool hear(tn_watchdog *w, peer *p) {
    for (;;) {
        tn_side_message m;
        tn_side_got got = tn_side_receive(&p->link, &m, 0);
        if (got == TN_SIDE_NOTHING) return true;
        if (got == TN_SIDE_END) {
            tn_side_close(&p->link);
            if (p->gone) return true;
            lose_peer(w, &p->state, "died: its process ended");
            return false;
        }
        p->heard = tn_now();
        if (m.kind == TN_SIDE_STATE) p->state = m;
        if (m.kind == TN_SIDE_FAREWELL) p->gone = true;
        if (m.kind == TN_SIDE_FAILED || m.kind == TN_SIDE_LOST) {
            lose(w, m.text, true);
            return false;
        }
    }
}

/* The state of rank i as it is now, as far as rank 0 knows; `silent`: seconds since it was heard. */
static tn_side_message state_now(tn_watchdog *w, int i, double now, double *silent) {
    *silent = 0;
    if (i == 0) return own_state(w, TN_SIDE_STATE);
    tn_side_message m = w->peers[i].state;
    *silent = w->peers[i].gone ? 0 : now - w->peers[i].heard;
    if (m.waiting >= 0) m.waiting += *silent;
    return m;
}

/* Whom the others wait for: who is silent, else who is in no collective, else who has begun the fewest. */
static bool find_culprit(tn_watchdog *w, double now) {
    double silent, worst = -1e300, longest = 0;
    tn_side_message culprit = {.rank = -1};
    for (int i = 0; i < w->peer_count; i++) {
        tn_side_message m = state_now(w, i, now, &silent);
        if (w->peers[i].gone) continue;
        if (m.waiting > longest) longest = m.waiting;
        if (silent > longest) longest = silent;
        double score = silent > w->config.timeout / 2 ? SILENT : m.waiting < 0 ? BUSY : 0;
        score -= (double)m.collectives;
        if (score <= worst) continue;
        worst = score;
        culprit = m;
    }
    if (longest <= w->config.timeout || culprit.rank < 0) return false;
    char what[160];
    snprintf(what, sizeof what, "%s; the others waited %.0f s (--comm-timeout) for it: it stopped",
             worst > BUSY          ? "is silent"
             : culprit.waiting < 0 ? "does not come"
                                   : "is behind, or messages are lost",
             w->config.timeout);
    lose_peer(w, &culprit, what);
    return true;
}

static bool check_silence(tn_watchdog *w, double now) {
    peer *root = &w->peers[0];
    if (root->gone || now - root->heard <= w->config.timeout) return false;
    char what[160];
    snprintf(what, sizeof what, "is silent for %.0f s (--comm-timeout): it stopped", w->config.timeout);
    lose_peer(w, &root->state, what);
    return true;
}

void tn_watchdog_guard(tn_watchdog *w, bool (*broken)(void *context, char *text, size_t size),
                       void (*abort)(void *context), void *context) {
    if (!w) return;
    pthread_mutex_lock(&w->guard);
    w->broken = broken;
    w->abort = abort;
    w->context = context;
    w->broken_since = -1;
    pthread_mutex_unlock(&w->guard);
}

/* What breaks may have broken because a rank died; the side channel, which can name it, is heard first. */
static bool check_guarded(tn_watchdog *w, double now) {
    char why[256], name[96], where[192], text[640];
    pthread_mutex_lock(&w->guard);
    bool broken = w->broken && w->broken(w->context, why, sizeof why);
    pthread_mutex_unlock(&w->guard);
    if (!broken) return false;
    if (w->broken_since < 0) w->broken_since = now;
    if (now - w->broken_since < GRACE_SECONDS) return false;
    tn_side_message m = own_state(w, TN_SIDE_STATE);
    describe(&m, name, sizeof name, where, sizeof where);
    snprintf(text, sizeof text, "%s: %s %s; all ranks stop; start again with --resume", name, why, where);
    lose(w, text, false);
    return true;
}

static void wait_for_news(tn_watchdog *w) {
    w->polls[w->peer_count] = (struct pollfd){.fd = w->wake, .events = POLLIN};
    for (int i = 0; i < w->peer_count; i++)
        w->polls[i] = (struct pollfd){.fd = w->peers[i].link.fd, .events = POLLIN};
    (void)poll(w->polls, (nfds_t)w->peer_count + 1, (int)(w->interval * 1e3) + 1);
}

static void tell_state(tn_watchdog *w, double now, double *told, uint64_t *told_changes) {
    pthread_mutex_lock(&w->mutex);
    uint64_t changes = w->changes;
    pthread_mutex_unlock(&w->mutex);
    if (now - *told < (changes != *told_changes ? w->interval : w->beat)) return;
    tn_side_message m = own_state(w, TN_SIDE_STATE);
    for (int i = 0; i < w->peer_count; i++) (void)tn_side_send(&w->peers[i].link, &m, 0);
    *told = now;
    *told_changes = changes;
}

static void *watch(void *argument) {
    tn_watchdog *w = argument;
    double told = -1e9, before = tn_now();
    uint64_t told_changes = 0;
    for (;;) {
        wait_for_news(w);
        if (w->polls[w->peer_count].revents) return NULL;
        for (int i = 0; i < w->peer_count; i++)
            if (w->peers[i].link.fd >= 0 && !hear(w, &w->peers[i])) return NULL;
        /* When this process itself stood still, silence is no sign of anything. */
        double now = tn_now(), gap = now - before - w->interval;
        for (int i = 0; gap > w->beat && i < w->peer_count; i++) w->peers[i].heard += gap;
        before = now;
        tell_state(w, now, &told, &told_changes);
        if (w->config.rank == 0 ? find_culprit(w, now) : check_silence(w, now)) return NULL;
        if (check_guarded(w, now)) return NULL;
    }
}

/* ---- life ---- */

tn_status tn_watchdog_listen(const tn_watchdog_config *config, tn_watchdog_place *place, tn_watchdog **out) {
    tn_watchdog *w;
    *out = NULL;
    TN_TRY(tn_alloc(&w, 1, sizeof *w, "watchdog"));
    *out = w;
    w->config = *config;
    w->listening = w->wake = -1;
    w->phase = "start";
    w->collective = "";
    w->entered = -1;
    w->peer_count = config->rank == 0 ? config->size : 1;
    w->interval = 0.05 > 1e-3 * config->size ? 0.05 : 1e-3 * config->size;
    w->beat = config->timeout / 4 < 1 ? config->timeout / 4 : 1;
    TN_ASSERT(pthread_mutex_init(&w->mutex, NULL) == 0 && pthread_mutex_init(&w->guard, NULL) == 0);
    gethostname(w->host, sizeof w->host - 1);
    TN_TRY(tn_alloc(&w->peers, (size_t)w->peer_count, sizeof *w->peers, "watchdog"));
    TN_TRY(tn_alloc(&w->polls, (size_t)w->peer_count + 1, sizeof *w->polls, "watchdog"));
    for (int i = 0; i < w->peer_count; i++) w->peers[i].link.fd = -1;
    w->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (w->wake < 0) return tn_fail(TN_ERR_PEER, "side channel between ranks: eventfd: %s", strerror(errno));
    if (config->rank != 0) return TN_OK;
    *place = (tn_watchdog_place){0};
    snprintf(place->host, sizeof place->host, "%s", w->host);
    if (getrandom(&place->token, sizeof place->token, 0) != (ssize_t)sizeof place->token)
        return tn_fail(TN_ERR_PEER, "side channel between ranks: getrandom: %s", strerror(errno));
    place->address_count = tn_side_addresses(place->addresses, TN_WATCHDOG_ADDRESSES);
    return tn_side_listen(&w->listening, &place->port);
}

/* Takes in one connection, if it comes from a rank that is not there yet. */
static bool welcome(tn_watchdog *w, double seconds) {
    tn_side_link link;
    tn_side_message m, answer = own_state(w, TN_SIDE_WELCOME);
    if (!tn_side_accept(w->listening, seconds, &link)) return false;
    if (tn_side_receive(&link, &m, GREETING_SECONDS) == TN_SIDE_MESSAGE && m.kind == TN_SIDE_HELLO &&
        m.token == w->token && m.rank > 0 && m.rank < w->config.size && w->peers[m.rank].link.fd < 0 &&
        tn_side_send(&link, &answer, GREETING_SECONDS)) {
        w->peers[m.rank] = (peer){.link = link, .state = m, .heard = tn_now()};
        return true;
    }
    tn_side_close(&link);
    return false;
}

static tn_status gather_ranks(tn_watchdog *w) {
    double end = tn_now() + CONNECT_SECONDS;
    int present = 1;
    while (present < w->config.size && tn_now() < end) present += welcome(w, end - tn_now());
    close(w->listening);
    w->listening = -1;
    for (int i = 1; i < w->config.size; i++)
        if (w->peers[i].link.fd < 0)
            return tn_fail(
                TN_ERR_PEER,
                "rank %d did not connect to rank 0 (%s) within %.0f s; TCP between the machines must "
                "be allowed",
                i, w->host, CONNECT_SECONDS);
    return TN_OK;
}

/* Tries the addresses of rank 0 in turn; loopback only where the name of the machine is the same. */
static tn_status connect_to_root(tn_watchdog *w, const tn_watchdog_place *place) {
    double end = tn_now() + CONNECT_SECONDS;
    int first = strcmp(place->host, w->host) ? 1 : 0;
    while (tn_now() < end && place->address_count > first) {
        for (int i = first; i < place->address_count; i++) {
            tn_side_link link;
            tn_side_message hello = own_state(w, TN_SIDE_HELLO), m;
            if (!tn_side_connect(place->addresses[i], place->port, GREETING_SECONDS, &link)) continue;
            if (tn_side_send(&link, &hello, GREETING_SECONDS) &&
                tn_side_receive(&link, &m, CONNECT_SECONDS) == TN_SIDE_MESSAGE && m.kind == TN_SIDE_WELCOME &&
                m.token == w->token) {
                w->peers[0] = (peer){.link = link, .state = m, .heard = tn_now()};
                return TN_OK;
            }
            tn_side_close(&link);
        }
        struct timespec pause = {.tv_nsec = 100000000};
        nanosleep(&pause, NULL);
    }
    return tn_fail(
        TN_ERR_PEER,
        "rank %d (%s) cannot connect to rank 0 (%s) at any of its %d addresses, port %d; TCP between "
        "the machines must be allowed",
        w->config.rank, w->host, place->host, place->address_count - first, (int)place->port);
}

tn_status tn_watchdog_start(tn_watchdog *w, const tn_watchdog_place *place) {
    sigset_t all, before;
    w->token = place->token;
    TN_TRY(w->config.rank == 0 ? gather_ranks(w) : connect_to_root(w, place));
    /* Signals are the business of the program's own threads. */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int error = pthread_create(&w->thread, NULL, watch, w);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (error != 0)
        return tn_fail(TN_ERR_MEMORY, "cannot start the watchdog's thread: %s; allow more threads",
                       strerror(error));
    w->running = true;
    return TN_OK;
}

static void end_thread(tn_watchdog *w) {
    uint64_t one = 1;
    TN_ASSERT(write(w->wake, &one, sizeof one) == (ssize_t)sizeof one);
    TN_ASSERT(pthread_join(w->thread, NULL) == 0);
}

void tn_watchdog_stop(tn_watchdog *w, const char *failed) {
    if (!w) return;
    if (w->running) {
        end_thread(w);
        tn_side_message m = own_state(w, failed ? TN_SIDE_FAILED : TN_SIDE_FAREWELL);
        snprintf(m.text, sizeof m.text, "%s", failed ? failed : "");
        for (int i = 0; !w->lost && i < w->peer_count; i++)
            (void)tn_side_send(&w->peers[i].link, &m, LAST_WORDS);
    }
    for (int i = 0; w->peers && i < w->peer_count; i++) tn_side_close(&w->peers[i].link);
    if (w->listening >= 0) close(w->listening);
    if (w->wake >= 0) close(w->wake);
    pthread_mutex_destroy(&w->mutex);
    pthread_mutex_destroy(&w->guard);
    tn_free(w->peers);
    tn_free(w->polls);
    tn_free(w);
}
