/*
 * Sessions: their life, and the bytes that they carry from one socket to the other. Each function that handles an event ends with a session that
 * either waits in epoll for what can happen next (`settle`), or is dead.
 */
#define _GNU_SOURCE
#include "relay.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

struct session *sessions, *dead;
size_t session_count;
struct queue lingering = {.patience_ms = LINGER_MS}, draining = {.patience_ms = DRAIN_MS};
char in[READ_BYTES], plain[PLAIN_BYTES];
size_t in_start, in_end;

int64_t now_ms(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static void leave_queue(struct session *s)
{
    struct queue *q = s->queue;

    if (!q)
        return;
    *(s->earlier ? &s->earlier->later : &q->first) = s->later;
    *(s->later ? &s->later->earlier : &q->last) = s->earlier;
    s->queue = NULL;
    s->later = s->earlier = NULL;
}

void enter_queue(struct session *s, struct queue *q)
{
    if (s->queue == q)
        return;
    leave_queue(s);
    s->queue = q;
    s->deadline_ms = now_ms() + q->patience_ms;
    s->earlier = q->last;
    *(q->last ? &q->last->later : &q->first) = s;
    q->last = s;
}

/* Each of the two sockets of a session has the session's address in epoll; the lowest bit tells the server's. */
static void watch(struct session *s, int fd, uint32_t *current, uint32_t wanted, int is_server)
{
    struct epoll_event event = {.events = wanted, .data.u64 = (uint64_t)(uintptr_t)s | (uint64_t)is_server};

    if (*current == wanted)
        return;
    /* Without anything to wait for a socket leaves epoll: a hang-up is reported even to who didn't ask, again and again. */
    epoll_ctl(epoll_fd, !*current ? EPOLL_CTL_ADD : wanted ? EPOLL_CTL_MOD : EPOLL_CTL_DEL, fd, &event);
    *current = wanted;
}

void end_session(struct session *s)
{
    if (s->state == DEAD)
        return;
    s->state = DEAD;
    forget_out();
    leave_queue(s);
    *(s->previous ? &s->previous->next : &sessions) = s->next;
    if (s->next)
        s->next->previous = s->previous;
    session_count--;
    /* Closing isn't enough: epoll watches as long as anybody holds the socket, and Torpor may not have closed its own descriptor yet. */
    watch(s, s->client, &s->client_events, 0, 0);
    watch(s, s->server, &s->server_events, 0, 1);
    close(s->client);
    close(s->server);
    if (s->ssl)
        SSL_free(s->ssl);
    free(s->up.bytes);
    free(s->down.bytes);
    free(s->prefix);
    free(s->server_name);
    tell('E', s->slot, s->id, NULL, 0);
    s->next = dead; /* events of this turn may still point to it */
    dead = s;
}

int hold(struct held *held, const char *bytes, size_t length)
{
    size_t kept = held->end - held->start;
    char *more;

    if (!length)
        return 0;
    if (kept + length > MAX_HELD_BYTES || !(more = malloc(kept + length)))
        return -1;
    if (kept)
        memcpy(more, held->bytes + held->start, kept);
    memcpy(more + kept, bytes, length);
    free(held->bytes);
    *held = (struct held){more, 0, kept + length};
    return 0;
}

/* How much of `bytes` the socket took; -1 when it is broken. */
ssize_t give(int fd, const char *bytes, size_t length)
{
    ssize_t n;

    do
        n = send(fd, bytes, length, MSG_DONTWAIT | MSG_NOSIGNAL);
    while (n < 0 && errno == EINTR);
    return n < 0 && errno == EAGAIN ? 0 : n;
}

/* Give what is held; 0 when nothing is left, 1 when something is, -1 when the socket is broken. */
static int give_held(int fd, struct held *held, _Atomic uint64_t *count)
{
    ssize_t n;

    if (!held->bytes)
        return 0;
    n = give(fd, held->bytes + held->start, held->end - held->start);
    if (n < 0)
        return -1;
    held->start += (size_t)n;
    if (count)
        atomic_fetch_add_explicit(count, (uint64_t)n, memory_order_release);
    if (held->start < held->end)
        return 1;
    free(held->bytes);
    *held = (struct held){0};
    return 0;
}

/* Read from the client into `in`. 1: there is something, 0: not now, -1: the session has ended. Notes the end of the stream. */
static int read_client(struct session *s)
{
    ssize_t n;

    in_start = in_end = 0;
    if (s->prefix) {
        memcpy(in, s->prefix, s->prefix_length);
        in_end = s->prefix_length;
        free(s->prefix);
        s->prefix = NULL;
        return 1;
    }
    do
        n = recv(s->client, in, sizeof in, MSG_DONTWAIT);
    while (n < 0 && errno == EINTR);
    if (n < 0 && errno == EAGAIN)
        return 0;
    if (n < 0) {
        if (s->state == HANDSHAKE)
            tell_failure(s->slot, s->id, "the client reset the connection");
        end_session(s);
        return -1;
    }
    if (n == 0)
        s->client_ended = 1;
    in_end = (size_t)n;
    return 1;
}

/* From the client to the server: one read, and what comes of it. */
void pump_up(struct session *s)
{
    ssize_t length, n;

    if (s->up.bytes || s->client_ended || read_client(s) <= 0)
        return;
    if (s->state == HANDSHAKE) {
        if (s->client_ended) {
            tell_failure(s->slot, s->id, "the client left in the middle of the handshake");
            end_session(s);
            return;
        }
        if (!shake_hands(s))
            return;
    }
    length = decrypt(s);
    if (length < 0) {
        send_out(s); /* the alert */
        end_session(s);
        return;
    }
    if (length && !s->server_ended) {
        struct counters *c = &counters[s->slot];

        atomic_fetch_add_explicit(&c->taken, (uint64_t)length, memory_order_seq_cst);
        n = give(s->server, plain, (size_t)length);
        if (n < 0) {
            n = length; /* the server reads no more, but may still have something to say */
            s->client_ended = s->told_server = 1;
        }
        atomic_fetch_add_explicit(&c->delivered, (uint64_t)n, memory_order_release);
        if (hold(&s->up, plain + n, (size_t)(length - n)) < 0) {
            end_session(s);
            return;
        }
    }
    if (send_out(s) < 0) /* what the protocol itself had to answer */
        end_session(s);
}

/* From the server to the client: one read, and what comes of it. */
static void pump_down(struct session *s)
{
    ssize_t n, done = 0;

    if (s->down.bytes || s->server_ended)
        return;
    do
        n = recv(s->server, plain, READ_BYTES, MSG_DONTWAIT);
    while (n < 0 && errno == EINTR);
    if (n < 0 && errno == EAGAIN)
        return;
    if (n <= 0) {
        s->server_ended = 1;
        return;
    }
    atomic_fetch_add_explicit(&counters[s->slot].sent, (uint64_t)n, memory_order_release);
    if (!s->ssl) {
        done = give(s->client, plain, (size_t)n);
        if (done < 0 || hold(&s->down, plain + done, (size_t)(n - done)) < 0)
            end_session(s);
        return;
    }
    if (write_encrypted(s, plain, (size_t)n) < 0) {
        end_session(s);
        return;
    }
    if (send_out(s) < 0)
        end_session(s);
}

/* The server has ended and the client has all that it said: say so, and wait a moment for the client to leave. */
static void say_goodbye(struct session *s)
{
    if (!s->told_client) {
        s->told_client = 1;
        if (s->ssl && say_tls_goodbye(s) < 0) {
            end_session(s);
            return;
        }
    }
    if (s->down.bytes)
        return;
    shutdown(s->client, SHUT_WR);
    s->state = LINGERING;
    enter_queue(s, &lingering);
}

static void linger(struct session *s)
{
    ssize_t n = recv(s->client, in, sizeof in, MSG_DONTWAIT);

    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (n <= 0 || (s->lingered += (size_t)n) > LINGER_BYTES)
        end_session(s);
}

/* After any event: pass ends on, and wait for what can happen next. */
void settle(struct session *s)
{
    if (s->state == OPEN) {
        if (s->client_ended && !s->up.bytes && !s->told_server) {
            s->told_server = 1;
            shutdown(s->server, SHUT_WR);
        }
        if (s->server_ended) {
            free(s->up.bytes);
            s->up = (struct held){0};
            say_goodbye(s);
            if (s->state == OPEN)
                enter_queue(s, &draining);
        }
    }
    switch (s->state) {
    case HANDSHAKE: /* until it is done, the other end of the pair only tells when the door has given up */
        watch(s, s->client, &s->client_events, EPOLLIN | (s->down.bytes ? EPOLLOUT : 0), 0);
        watch(s, s->server, &s->server_events, EPOLLRDHUP, 1);
        break;
    case OPEN:
        watch(s, s->client, &s->client_events,
              (s->up.bytes || s->client_ended || s->server_ended ? 0 : EPOLLIN) | (s->down.bytes ? EPOLLOUT : 0), 0);
        watch(s, s->server, &s->server_events, (s->down.bytes || s->server_ended ? 0 : EPOLLIN) | (s->up.bytes ? EPOLLOUT : 0), 1);
        break;
    case LINGERING:
        watch(s, s->client, &s->client_events, EPOLLIN, 0);
        watch(s, s->server, &s->server_events, 0, 1);
        break;
    case DEAD:
        break;
    }
}

void on_client(struct session *s, uint32_t events)
{
    if (s->state == LINGERING) {
        linger(s);
        return;
    }
    if (s->down.bytes && events & (EPOLLOUT | EPOLLERR | EPOLLHUP)) {
        if (give_held(s->client, &s->down, NULL) < 0) {
            end_session(s);
            return;
        }
        if (!s->down.bytes && s->state == OPEN)
            pump_down(s);
    }
    if (s->state != DEAD && events & (EPOLLIN | EPOLLERR | EPOLLHUP))
        pump_up(s);
}

void on_server(struct session *s, uint32_t events)
{
    if (s->state == HANDSHAKE) {
        if (events & (EPOLLRDHUP | EPOLLERR | EPOLLHUP))
            end_session(s);
        return;
    }
    if (s->up.bytes && events & (EPOLLOUT | EPOLLERR | EPOLLHUP)) {
        if (give_held(s->server, &s->up, &counters[s->slot].delivered) < 0) {
            free(s->up.bytes);
            s->up = (struct held){0};
            s->client_ended = s->told_server = 1;
        }
    }
    if (s->state == OPEN && events & (EPOLLIN | EPOLLERR | EPOLLHUP))
        pump_down(s);
}

void end_overdue(struct queue *q)
{
    int64_t now = q->first ? now_ms() : 0;

    while (q->first && q->first->deadline_ms <= now)
        end_session(q->first);
}
