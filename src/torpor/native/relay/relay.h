/*
 * What the parts of the relay worker share. main.c tells what it is.
 */
#ifndef TORPOR_RELAY_H
#define TORPOR_RELAY_H

#include <openssl/ssl.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define READ_BYTES 65536
#define PLAIN_BYTES (READ_BYTES + 32768) /* one read, and what OpenSSL may still hold of a record that wasn't whole */
#define OUT_BYTES (READ_BYTES * 2)       /* one read from the server, encrypted; a handshake's flight */
#define MAX_HELD_BYTES (OUT_BYTES + 65536)
#define MAX_PREFIX 64
#define MAX_NAME 255
#define EVENTS 64
#define LINGER_MS 500    /* closing a socket with unread bytes resets it, and the client may not have read the end yet */
#define LINGER_BYTES 65536
#define DRAIN_MS 60000   /* for a client to read what a server that has ended left for it */

enum { CONTROL_FD = 3, LISTENER_FD = 4, COUNTERS_FD = 5 };
enum { WITH_TLS = 1 }; /* flags of a command */

struct command {
    char type; /* N: new session (two descriptors: the client, our end of the pair), C: configuration (one: a file), Q: quit */
    uint8_t flags;
    uint16_t prefix_length; /* bytes of the client that were read already; they follow */
    uint32_t slot;
    uint64_t id;
};

struct report {
    char type; /* H: handshake done, F: failed, E: ended, R: ready, X: bad configuration; at a take-over M: the counters, our pid and build,
                  S: a session, D: that was all, and to the last one T: taken over */
    char padding[3];
    uint32_t slot;
    uint64_t id;
};

struct counters {
    _Atomic uint64_t taken;     /* bytes of the client, counted before they are written to the server… */
    _Atomic uint64_t delivered; /* …and after: the difference is in our hands */
    _Atomic uint64_t sent;      /* bytes of the server */
    uint64_t unused;
};

struct held {
    char *bytes;
    size_t start, end;
};

enum state { HANDSHAKE, OPEN, LINGERING, DEAD };

struct session {
    struct session *next, *previous;             /* of all, or of the dead */
    struct session *later, *earlier;             /* in a queue of deadlines */
    struct queue *queue;
    int64_t deadline_ms;
    SSL *ssl; /* NULL: plain */
    int client, server;
    uint32_t client_events, server_events; /* what epoll watches now; 0: not in it at all */
    enum state state;
    uint8_t client_ended, server_ended, told_server, told_client;
    uint32_t slot;
    uint64_t id;
    size_t lingered;
    struct held up, down; /* what the server, and what the client, couldn't take yet */
    char *prefix;
    uint16_t prefix_length;
    char *server_name;
};

struct queue {
    struct session *first, *last;
    int64_t patience_ms;
};

struct queued_report {
    struct queued_report *next;
    size_t length;
    char bytes[];
};

/* main.c */
extern const char *build;
extern int epoll_fd, quitting;
extern struct counters *counters;
extern size_t slots;

/* session.c: sessions, and the bytes that they carry */
extern struct session *sessions, *dead;
extern size_t session_count;
extern struct queue lingering, draining;
extern char in[READ_BYTES], plain[PLAIN_BYTES]; /* of this turn: as read from the client; in the clear */
extern size_t in_start, in_end;

int64_t now_ms(void);
void end_session(struct session *s);
void enter_queue(struct session *s, struct queue *q);
void end_overdue(struct queue *q);
int hold(struct held *held, const char *bytes, size_t length);
ssize_t give(int fd, const char *bytes, size_t length);
void pump_up(struct session *s);
void settle(struct session *s);
void on_client(struct session *s, uint32_t events);
void on_server(struct session *s, uint32_t events);

/* tls.c: what OpenSSL does */
int prepare_tls(void);
const char *configure(const char *at, size_t size);
const char *encrypt(struct session *s);
int shake_hands(struct session *s);
ssize_t decrypt(struct session *s);
int write_encrypted(struct session *s, const char *bytes, size_t length);
int say_tls_goodbye(struct session *s);
int send_out(struct session *s);
void forget_out(void);

/* control.c: what Torpor says and is told */
extern int control_fd;

void tell(char type, uint32_t slot, uint64_t id, const void *text, size_t length);
void tell_failure(uint32_t slot, uint64_t id, const char *why);
void flush_reports(void);
int obey(void);
void be_taken_over(void);

#endif
