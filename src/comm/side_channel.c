#include "comm/side_channel.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"

static tn_status fail(const char *call) {
    return tn_fail(TN_ERR_PEER, "side channel between ranks: %s: %s; ranks must be able to connect by TCP",
                   call, strerror(errno));
}

static void open_link(tn_side_link *link, int fd) {
    int yes = 1;
    *link = (tn_side_link){.fd = fd};
    /* Best effort: without it messages are merely late. */
    (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
}

static int new_socket(void) {
    return socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
}

tn_status tn_side_listen(int *fd, uint16_t *port) {
    struct sockaddr_in name = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_ANY)};
    socklen_t size = sizeof name;
    *fd = new_socket();
    if (*fd < 0) return fail("socket");
    if (bind(*fd, (struct sockaddr *)&name, sizeof name) != 0) return fail("bind");
    if (listen(*fd, 1024) != 0) return fail("listen");
    if (getsockname(*fd, (struct sockaddr *)&name, &size) != 0) return fail("getsockname");
    *port = ntohs(name.sin_port);
    return TN_OK;
}

/* Waits for `events`; false after `seconds`. */
static bool ready(int fd, short events, double seconds) {
    struct pollfd one = {.fd = fd, .events = events};
    double end = tn_now() + seconds;
    for (;;) {
        double left = end - tn_now();
        int found = poll(&one, 1, left > 0 ? (int)(left * 1e3) + 1 : 0);
        if (found > 0) return true;
        if (found == 0 || errno != EINTR || left <= 0) return false;
    }
}

bool tn_side_accept(int listening, double seconds, tn_side_link *link) {
    if (!ready(listening, POLLIN, seconds)) return false;
    int fd = accept4(listening, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd < 0) return false;
    open_link(link, fd);
    return true;
}

bool tn_side_connect(uint32_t address, uint16_t port, double seconds, tn_side_link *link) {
    struct sockaddr_in name = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = address};
    int error = 0, fd = new_socket();
    socklen_t size = sizeof error;
    if (fd < 0) return false;
    if (connect(fd, (struct sockaddr *)&name, sizeof name) != 0 && errno != EINPROGRESS) error = errno;
    if (error == 0 && (!ready(fd, POLLOUT, seconds) ||
                       getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size) != 0 || error != 0))
        error = 1;
    if (error == 0)
        open_link(link, fd);
    else
        close(fd);
    return error == 0;
}

/* Sends what is left of an earlier message. */
static bool flush(tn_side_link *link, double end) {
    while (link->unsent > 0) {
        ssize_t sent =
            send(link->fd, link->out + sizeof link->out - link->unsent, link->unsent, MSG_NOSIGNAL);
        if (sent >= 0) {
            link->unsent -= (size_t)sent;
        } else if (errno != EINTR) {
            double left = end - tn_now();
            if ((errno != EAGAIN && errno != EWOULDBLOCK) || left <= 0 || !ready(link->fd, POLLOUT, left))
                return false;
        }
    }
    return true;
}

bool tn_side_send(tn_side_link *link, const tn_side_message *message, double seconds) {
    double end = tn_now() + seconds;
    if (link->fd < 0 || !flush(link, end)) return false;
    memcpy(link->out, message, sizeof link->out);
    link->unsent = sizeof link->out;
    return flush(link, end);
}

tn_side_got tn_side_receive(tn_side_link *link, tn_side_message *message, double seconds) {
    double end = tn_now() + seconds;
    while (link->fd >= 0 && link->received < sizeof link->in) {
        ssize_t got = recv(link->fd, link->in + link->received, sizeof link->in - link->received, 0);
        if (got > 0) {
            link->received += (size_t)got;
        } else if (got == 0) {
            return TN_SIDE_END;
        } else if (errno != EINTR) {
            double left = end - tn_now();
            if (errno != EAGAIN && errno != EWOULDBLOCK) return TN_SIDE_END;
            if (left <= 0 || !ready(link->fd, POLLIN, left)) return TN_SIDE_NOTHING;
        }
    }
    if (link->fd < 0) return TN_SIDE_NOTHING;
    memcpy(message, link->in, sizeof *message);
    message->phase[sizeof message->phase - 1] = message->collective[sizeof message->collective - 1] = 0;
    message->host[sizeof message->host - 1] = message->text[sizeof message->text - 1] = 0;
    link->received = 0;
    return TN_SIDE_MESSAGE;
}

void tn_side_close(tn_side_link *link) {
    if (link->fd >= 0) close(link->fd); /* nothing that was written through it is lost by that */
    link->fd = -1;
}

int tn_side_addresses(uint32_t *addresses, int most) {
    struct ifaddrs *list;
    int count = 0;
    addresses[count++] = htonl(INADDR_LOOPBACK);
    if (getifaddrs(&list) != 0) return count;
    for (struct ifaddrs *one = list; one && count < most; one = one->ifa_next) {
        if (!one->ifa_addr || one->ifa_addr->sa_family != AF_INET || !(one->ifa_flags & IFF_UP) ||
            (one->ifa_flags & IFF_LOOPBACK))
            continue;
        addresses[count++] = ((const struct sockaddr_in *)(const void *)one->ifa_addr)->sin_addr.s_addr;
    }
    freeifaddrs(list);
    return count;
}
