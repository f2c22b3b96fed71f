/* Sockets of the side channel: messages of one fixed size over TCP (IPv4), between processes of one build.
 *
 * Sends never wait for a receiver that does not read: a message that does not fit is dropped, unless the
 * caller allows some time for it. */
#ifndef TN_COMM_SIDE_CHANNEL_H
#define TN_COMM_SIDE_CHANNEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/fail.h"

typedef enum tn_side_kind {
    TN_SIDE_HELLO = 1, /* rank to rank 0, with the token */
    TN_SIDE_WELCOME,   /* back, with the token */
    TN_SIDE_STATE,     /* where the sender stands */
    TN_SIDE_FAREWELL,  /* the sender leaves after success */
    TN_SIDE_FAILED,    /* the sender leaves after a failure, which it tells itself */
    TN_SIDE_LOST       /* rank 0: a rank is lost; text says which */
} tn_side_kind;

typedef struct tn_side_message {
    uint32_t kind;
    int32_t rank;
    uint64_t token;
    int64_t step;
    uint64_t collectives; /* begun so far */
    double waiting;       /* seconds in the one that has not ended; -1: in none */
    char phase[32], collective[32], host[64], text[640];
} tn_side_message;

typedef struct tn_side_link {
    int fd; /* -1: closed */
    size_t received, unsent;
    unsigned char in[sizeof(tn_side_message)], out[sizeof(tn_side_message)]; /* unsent: the end of out */
} tn_side_link;

typedef enum tn_side_got { TN_SIDE_NOTHING, TN_SIDE_MESSAGE, TN_SIDE_END } tn_side_got;

/* Listens on a port that the system chooses. */
tn_status tn_side_listen(int *fd, uint16_t *port);

/* Accepts one connection, or tries to connect, within `seconds`; false when there was none. */
bool tn_side_accept(int listening, double seconds, tn_side_link *link);
bool tn_side_connect(uint32_t address, uint16_t port, double seconds, tn_side_link *link);

/* Sends a message; false when it was dropped or the other end is gone. */
bool tn_side_send(tn_side_link *link, const tn_side_message *message, double seconds);

/* Receives a message if one comes within `seconds`. */
tn_side_got tn_side_receive(tn_side_link *link, tn_side_message *message, double seconds);

void tn_side_close(tn_side_link *link);

/* IPv4 addresses of this machine, network order, 127.0.0.1 first. Returns how many, at most `most`. */
int tn_side_addresses(uint32_t *addresses, int most);

#endif
