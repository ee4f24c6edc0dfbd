/*
 * Carries sessions whose socket can't be handed to PostgreSQL itself: a worker process outside of Torpor that terminates TLS, or pumps
 * plain bytes, between the client's socket and one end of a Unix socket pair whose other end PostgreSQL gets.
 *
 * The contract with Torpor (torpor/door/relaywire.py, torpor/door/relayworker.py). Descriptors at start:
 *   3  control: a SOCK_SEQPACKET socket. Each packet is a `command` (Torpor to worker) or a `report` (worker to Torpor).
 *   4  a listening SOCK_SEQPACKET socket on which the next Torpor takes the worker over: it becomes the control, and all sessions are told.
 *   5  counters: shared memory with one `counters` for each slot. Torpor picks the slot of a session.
 * Arguments: the user id to become (0: stay), and a word that names this build: a Torpor that takes over goes on using its own build
 * only. Certificates and keys come over the control socket only.
 *
 * It outlives Torpor: without a control it goes on with the sessions that it has, and ends with the last of them.
 *
 * Concurrency: single-threaded, one epoll. At each event of a session at most one read of 64 KiB and the writes that follow from it are
 * done, so that no session waits for another's bulk. Memory: an idle session holds no buffer, one whose reader is slow at most one read's
 * worth in each direction, and then its writer isn't read from.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

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

static const char *build = "";
static int epoll_fd, control_fd = CONTROL_FD;
static int control_waits, quitting;
static struct queued_report *reports, **reports_end = &reports;
static struct counters *counters;
static size_t slots;
static struct session *sessions, *dead;
static size_t session_count;
static struct queue lingering = {.patience_ms = LINGER_MS}, draining = {.patience_ms = DRAIN_MS};

static SSL_CTX **contexts;
static size_t context_count;
static BIO_METHOD *bio_method;

static char in[READ_BYTES], plain[PLAIN_BYTES], out[OUT_BYTES];
static size_t in_start, in_end, out_length;
static int out_overflowed;

static void pump_up(struct session *s);
static void pump_down(struct session *s);
static void settle(struct session *s);

/* -- telling Torpor ---------------------------------------------------------------------------------------------------------------- */

static void watch_control(void)
{
    struct epoll_event event = {.events = EPOLLIN | (control_waits ? EPOLLOUT : 0), .data.u64 = 2};

    epoll_ctl(epoll_fd, EPOLL_CTL_MOD, control_fd, &event);
}

static void flush_reports(void)
{
    int waits = 0;

    while (reports && control_fd >= 0) {
        struct queued_report *first = reports;
        ssize_t n = send(control_fd, first->bytes, first->length, MSG_DONTWAIT | MSG_NOSIGNAL);

        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && (errno == EAGAIN || errno == ENOBUFS)) {
            waits = 1;
            break;
        }
        reports = first->next;
        if (!reports)
            reports_end = &reports;
        free(first);
    }
    if (waits != control_waits && control_fd >= 0) {
        control_waits = waits;
        watch_control();
    }
}

static void tell(char type, uint32_t slot, uint64_t id, const void *text, size_t length)
{
    struct report header = {.type = type, .slot = slot, .id = id};
    struct queued_report *queued;

    if (control_fd < 0)
        return;
    queued = malloc(sizeof *queued + sizeof header + length);
    if (!queued)
        return;
    queued->next = NULL;
    queued->length = sizeof header + length;
    memcpy(queued->bytes, &header, sizeof header);
    if (length)
        memcpy(queued->bytes + sizeof header, text, length);
    *reports_end = queued;
    reports_end = &queued->next;
    flush_reports();
}

static void tell_failure(uint32_t slot, uint64_t id, const char *why)
{
    tell('F', slot, id, why, strlen(why));
}

static void forget_reports(void)
{
    while (reports) {
        struct queued_report *first = reports;
        reports = first->next;
        free(first);
    }
    reports_end = &reports;
    control_waits = 0;
}

/* -- sessions ---------------------------------------------------------------------------------------------------------------------- */

static int64_t now_ms(void)
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

static void enter_queue(struct session *s, struct queue *q)
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

static void end_session(struct session *s)
{
    if (s->state == DEAD)
        return;
    s->state = DEAD;
    out_length = 0;
    out_overflowed = 0;
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

static int hold(struct held *held, const char *bytes, size_t length)
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
static ssize_t give(int fd, const char *bytes, size_t length)
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

/* Send what OpenSSL wrote in this turn, behind what is held already. */
static int send_out(struct session *s)
{
    size_t length = out_length;
    ssize_t n = 0;

    out_length = 0;
    if (out_overflowed) {
        out_overflowed = 0;
        return -1;
    }
    if (!length)
        return 0;
    if (!s->down.bytes && (n = give(s->client, out, length)) < 0)
        return -1;
    return hold(&s->down, out + n, length - (size_t)n);
}

/*
 * -- OpenSSL's view of the socket: this turn's input, and room for this turn's output --------------------------------------------------
 *
 * SSL_get_error needs OpenSSL's queue of errors to be empty before the call that it judges: whoever meets an error clears it.
 */

static int bio_read(BIO *bio, char *buffer, int length)
{
    size_t left = in_end - in_start;

    BIO_clear_retry_flags(bio);
    if (!left) {
        BIO_set_retry_read(bio);
        return -1;
    }
    if ((size_t)length < left)
        left = (size_t)length;
    memcpy(buffer, in + in_start, left);
    in_start += left;
    return (int)left;
}

static int bio_write(BIO *bio, const char *buffer, int length)
{
    BIO_clear_retry_flags(bio);
    if ((size_t)length > sizeof out - out_length) {
        out_overflowed = 1; /* no honest client makes us say so much at once; the session ends */
        return length;
    }
    memcpy(out + out_length, buffer, (size_t)length);
    out_length += (size_t)length;
    return length;
}

static long bio_control(BIO *bio, int command, long number, void *pointer)
{
    (void)bio, (void)number, (void)pointer;
    return command == BIO_CTRL_FLUSH || command == BIO_CTRL_DUP;
}

static int choose_certificate(SSL *ssl, int *alert, void *unused)
{
    const char *name = SSL_get_servername(ssl, TLSEXT_NAMETYPE_host_name);
    struct session *s = SSL_get_app_data(ssl);

    (void)alert, (void)unused;
    if (!name || !*name || strlen(name) > MAX_NAME)
        return SSL_TLSEXT_ERR_NOACK;
    free(s->server_name);
    s->server_name = strdup(name);
    for (size_t i = 0; i < context_count; i++)
        if (X509_check_host(SSL_CTX_get0_certificate(contexts[i]), name, 0, 0, NULL) == 1) {
            SSL_set_SSL_CTX(ssl, contexts[i]);
            break;
        }
    return SSL_TLSEXT_ERR_OK;
}

static int choose_protocol(SSL *ssl, const unsigned char **chosen, unsigned char *length, const unsigned char *offered, unsigned int n,
                           void *unused)
{
    static const unsigned char ours[] = "\x0apostgresql";
    unsigned char *selected;

    (void)ssl, (void)unused;
    if (SSL_select_next_proto(&selected, length, ours, sizeof ours - 1, offered, n) != OPENSSL_NPN_NEGOTIATED)
        return SSL_TLSEXT_ERR_ALERT_FATAL;
    *chosen = selected;
    return SSL_TLSEXT_ERR_OK;
}

/* -- the handshake ----------------------------------------------------------------------------------------------------------------- */

/* The hash of our certificate that SCRAM-SHA-256-PLUS binds to (tls-server-end-point, RFC 5929); nothing where it isn't defined. */
static unsigned int end_point(SSL *ssl, unsigned char *hash)
{
    X509 *certificate = SSL_get_certificate(ssl);
    int digest = NID_undef;
    unsigned int length = 0;
    const EVP_MD *algorithm;

    if (!certificate || !X509_get_signature_info(certificate, &digest, NULL, NULL, NULL))
        return 0;
    algorithm = digest == NID_md5 || digest == NID_sha1 ? EVP_sha256() : EVP_get_digestbynid(digest);
    return algorithm && X509_digest(certificate, algorithm, hash, &length) ? length : 0;
}

static void tell_handshake(struct session *s)
{
    char text[64 + 64 + MAX_NAME + 256 + EVP_MAX_MD_SIZE + 8];
    const unsigned char *protocol;
    unsigned int protocol_length;
    int n;

    SSL_get0_alpn_selected(s->ssl, &protocol, &protocol_length);
    n = snprintf(text, sizeof text - EVP_MAX_MD_SIZE, "%s%c%s%c%s%c%.*s%c", SSL_get_version(s->ssl), 0, SSL_get_cipher_name(s->ssl), 0,
                 s->server_name ? s->server_name : "", 0, (int)protocol_length, protocol_length ? (const char *)protocol : "", 0);
    tell('H', s->slot, s->id, text, (size_t)n + end_point(s->ssl, (unsigned char *)text + n));
    free(s->server_name);
    s->server_name = NULL;
}

static void fail_handshake(struct session *s, const char *why)
{
    tell_failure(s->slot, s->id, why);
    if (send_out(s) < 0 || s->down.bytes) { /* OpenSSL's alert, if it fits at once */
        end_session(s);
        return;
    }
    s->state = LINGERING;
    shutdown(s->client, SHUT_WR);
    enter_queue(s, &lingering);
}

/* Go on with the handshake on this turn's input. Whether it is done. */
static int shake_hands(struct session *s)
{
    int result = SSL_do_handshake(s->ssl), why;

    if (result == 1) {
        s->state = OPEN;
        tell_handshake(s);
        return 1;
    }
    why = SSL_get_error(s->ssl, result);
    if (why == SSL_ERROR_WANT_READ) {
        if (send_out(s) < 0)
            end_session(s);
    } else {
        const char *reason = ERR_reason_error_string(ERR_peek_error());
        fail_handshake(s, reason ? reason : "the handshake failed");
    }
    ERR_clear_error();
    return 0;
}

/* -- carrying bytes ---------------------------------------------------------------------------------------------------------------- */

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

/* Decrypt this turn's input into `plain`. Its length, or -1 when the client broke the protocol. */
static ssize_t decrypt(struct session *s)
{
    size_t length = 0;

    if (!s->ssl) {
        memcpy(plain, in, in_end);
        return (ssize_t)in_end;
    }
    while (length < sizeof plain) {
        int n = SSL_read(s->ssl, plain + length, (int)(sizeof plain - length)), why;

        if (n > 0) {
            length += (size_t)n;
            if (in_start == in_end && !SSL_pending(s->ssl))
                break; /* no need to hear that there is no more */
            continue;
        }
        why = SSL_get_error(s->ssl, n);
        ERR_clear_error();
        if (why == SSL_ERROR_ZERO_RETURN)
            s->client_ended = 1;
        else if (why != SSL_ERROR_WANT_READ)
            return -1;
        break;
    }
    return (ssize_t)length;
}

/* From the client to the server: one read, and what comes of it. */
static void pump_up(struct session *s)
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
    while (done < n) {
        int written = SSL_write(s->ssl, plain + done, (int)(n - done));

        if (written <= 0) {
            ERR_clear_error();
            end_session(s);
            return;
        }
        done += written;
    }
    if (send_out(s) < 0)
        end_session(s);
}

/* The server has ended and the client has all that it said: say so, and wait a moment for the client to leave. */
static void say_goodbye(struct session *s)
{
    if (!s->told_client) {
        s->told_client = 1;
        if (s->ssl) {
            SSL_shutdown(s->ssl);
            ERR_clear_error();
            if (send_out(s) < 0) {
                end_session(s);
                return;
            }
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
static void settle(struct session *s)
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

static void on_client(struct session *s, uint32_t events)
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

static void on_server(struct session *s, uint32_t events)
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

/* -- configuration ----------------------------------------------------------------------------------------------------------------- */

static int use_certificates(SSL_CTX *context, BIO *chain)
{
    X509 *certificate = PEM_read_bio_X509_AUX(chain, NULL, NULL, NULL);
    int good = certificate && SSL_CTX_use_certificate(context, certificate) == 1;

    X509_free(certificate);
    while (good && (certificate = PEM_read_bio_X509(chain, NULL, NULL, NULL)))
        good = SSL_CTX_add0_chain_cert(context, certificate) == 1;
    if (good && ERR_GET_REASON(ERR_peek_last_error()) == PEM_R_NO_START_LINE)
        ERR_clear_error(); /* the end of the file */
    return good;
}

/* A context with a certificate and its key; NULL, and why not. */
static SSL_CTX *make_context(const char *chain, uint32_t chain_length, const char *key, uint32_t key_length, const void *tickets,
                             uint32_t tickets_length, const char **why)
{
    SSL_CTX *context = SSL_CTX_new(TLS_server_method());
    BIO *chain_bio = BIO_new_mem_buf(chain, (int)chain_length), *key_bio = BIO_new_mem_buf(key, (int)key_length);
    EVP_PKEY *private = NULL;

    *why = NULL;
    if (!context || !chain_bio || !key_bio)
        *why = "out of memory";
    else if (!use_certificates(context, chain_bio))
        *why = "there is no certificate in PEM form";
    else if (!(private = PEM_read_bio_PrivateKey(key_bio, NULL, NULL, (void *)"")))
        *why = "there is no private key in PEM form, or it has a passphrase";
    else if (SSL_CTX_use_PrivateKey(context, private) != 1 || SSL_CTX_check_private_key(context) != 1)
        *why = "the private key isn't the certificate's";
    else if (!SSL_CTX_set_min_proto_version(context, TLS1_2_VERSION) ||
             !SSL_CTX_set_cipher_list(context, "ECDHE+AESGCM:ECDHE+CHACHA20") ||
             !SSL_CTX_set_session_id_context(context, (const unsigned char *)"torpor", 6) ||
             !SSL_CTX_set_tlsext_ticket_keys(context, (void *)tickets, tickets_length))
        *why = "OpenSSL refuses its settings";
    EVP_PKEY_free(private);
    BIO_free(chain_bio);
    BIO_free(key_bio);
    ERR_clear_error();
    if (*why) {
        SSL_CTX_free(context);
        return NULL;
    }
    SSL_CTX_set_options(context, SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_COMPRESSION | SSL_OP_CIPHER_SERVER_PREFERENCE | SSL_OP_PRIORITIZE_CHACHA);
    SSL_CTX_set_mode(context, SSL_MODE_RELEASE_BUFFERS | SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
    SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_OFF); /* what is to be resumed is in the client's ticket */
    SSL_CTX_set_num_tickets(context, 1);
    SSL_CTX_set_tlsext_servername_callback(context, choose_certificate);
    SSL_CTX_set_alpn_select_cb(context, choose_protocol, NULL);
    return context;
}

/* The next length-prefixed part of the configuration; NULL when there is none. */
static const char *part(const char **at, const char *end, uint32_t *length)
{
    const char *found;

    if (end - *at < 4)
        return NULL;
    memcpy(length, *at, 4);
    found = *at + 4;
    if (*length > 1 << 24 || (size_t)(end - found) < *length)
        return NULL;
    *at = found + *length;
    return found;
}

/* The configuration: the 80 bytes from which tickets are made, then for each certificate its chain and its key, in PEM. */
static const char *configure(const char *at, size_t size)
{
    const char *end = at + size, *tickets, *chain, *key;
    uint32_t tickets_length, chain_length, key_length;
    SSL_CTX **made = NULL;
    size_t count = 0;
    const char *failure = NULL;

    tickets = part(&at, end, &tickets_length);
    if (!tickets)
        return "the configuration is cut off";
    while (!failure && (chain = part(&at, end, &chain_length)) && (key = part(&at, end, &key_length))) {
        SSL_CTX **more = realloc(made, (count + 1) * sizeof *made);
        SSL_CTX *context;

        if (!more) {
            failure = "out of memory";
            break;
        }
        made = more;
        context = make_context(chain, chain_length, key, key_length, tickets, tickets_length, &failure);
        if (context)
            made[count++] = context;
    }
    if (failure) {
        static char text[300];

        snprintf(text, sizeof text, "%zu: %s", count + 1, failure);
        while (count)
            SSL_CTX_free(made[--count]);
        free(made);
        return text;
    }
    while (context_count)
        SSL_CTX_free(contexts[--context_count]); /* sessions hold on to theirs */
    free(contexts);
    contexts = made;
    context_count = count;
    return NULL;
}

static void read_configuration(int fd)
{
    struct stat about;
    const char *failure = "the configuration can't be read";
    char *bytes = NULL;

    if (fstat(fd, &about) == 0 && about.st_size > 0 && about.st_size < 1 << 26 && (bytes = malloc((size_t)about.st_size)) &&
        pread(fd, bytes, (size_t)about.st_size, 0) == about.st_size)
        failure = configure(bytes, (size_t)about.st_size);
    close(fd);
    if (bytes) {
        OPENSSL_cleanse(bytes, (size_t)about.st_size);
        free(bytes);
    }
    tell(failure ? 'X' : 'R', 0, 0, failure ? failure : "", failure ? strlen(failure) : 0);
}

/* -- commands ---------------------------------------------------------------------------------------------------------------------- */

static const char *encrypt(struct session *s)
{
    BIO *bio;

    if (!context_count)
        return "there is no certificate";
    s->ssl = SSL_new(contexts[0]);
    bio = s->ssl ? BIO_new(bio_method) : NULL;
    if (!bio)
        return "out of memory";
    BIO_set_init(bio, 1);
    SSL_set_bio(s->ssl, bio, bio);
    SSL_set_app_data(s->ssl, s);
    SSL_set_accept_state(s->ssl);
    return NULL;
}

static void begin_session(const struct command *command, const char *prefix, int client, int server)
{
    struct session *s = calloc(1, sizeof *s);
    const char *failure = NULL;

    if (!s || command->slot >= slots || client < 0 || server < 0) {
        free(s);
        if (client >= 0)
            close(client);
        if (server >= 0)
            close(server);
        tell_failure(command->slot, command->id, "the relay is out of descriptors or memory");
        tell('E', command->slot, command->id, NULL, 0);
        return;
    }
    *s = (struct session){.client = client, .server = server, .slot = command->slot, .id = command->id, .state = OPEN, .next = sessions};
    if (sessions)
        sessions->previous = s;
    sessions = s;
    session_count++;
    if (command->prefix_length) {
        s->prefix_length = command->prefix_length;
        s->prefix = malloc(command->prefix_length);
        if (s->prefix)
            memcpy(s->prefix, prefix, command->prefix_length);
        else
            failure = "out of memory";
    }
    if (command->flags & WITH_TLS) {
        s->state = HANDSHAKE;
        if (!failure)
            failure = encrypt(s);
    }
    if (failure) {
        tell_failure(s->slot, s->id, failure);
        end_session(s);
        return;
    }
    pump_up(s);
    settle(s);
}

static void lose_control(void)
{
    epoll_ctl(epoll_fd, EPOLL_CTL_DEL, control_fd, NULL);
    close(control_fd);
    control_fd = -1;
    forget_reports();
}

/* One packet from Torpor. Whether there may be more. */
static int obey(void)
{
    union {
        char bytes[CMSG_SPACE(2 * sizeof(int))];
        struct cmsghdr align;
    } space;
    struct {
        struct command command;
        char prefix[MAX_PREFIX];
    } packet;
    struct iovec room = {&packet, sizeof packet};
    struct msghdr message = {.msg_iov = &room, .msg_iovlen = 1, .msg_control = space.bytes, .msg_controllen = sizeof space.bytes};
    int fds[2] = {-1, -1};
    ssize_t n;

    do
        n = recvmsg(control_fd, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    while (n < 0 && errno == EINTR);
    if (n < 0 && errno == EAGAIN)
        return 0;
    if (n <= 0) {
        lose_control();
        return 0;
    }
    for (struct cmsghdr *c = CMSG_FIRSTHDR(&message); c; c = CMSG_NXTHDR(&message, c))
        if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS)
            memcpy(fds, CMSG_DATA(c), c->cmsg_len - CMSG_LEN(0) > sizeof fds ? sizeof fds : c->cmsg_len - CMSG_LEN(0));
    if ((size_t)n < sizeof packet.command || (size_t)n != sizeof packet.command + packet.command.prefix_length)
        packet.command.type = 0;
    switch (packet.command.type) {
    case 'N':
        begin_session(&packet.command, packet.prefix, fds[0], fds[1]);
        return 1;
    case 'C':
        read_configuration(fds[0]);
        fds[0] = -1;
        break;
    case 'Q':
        quitting = 1;
        break;
    default:
        break;
    }
    for (int i = 0; i < 2; i++)
        if (fds[i] >= 0)
            close(fds[i]);
    return 1;
}

/* The counters go first, over a socket that is still empty. */
static int give_counters(void)
{
    union {
        char bytes[CMSG_SPACE(sizeof(int))];
        struct cmsghdr align;
    } space = {0};
    struct report header = {.type = 'M', .id = (uint64_t)getpid()};
    struct iovec parts[] = {{&header, sizeof header}, {(void *)build, strlen(build)}};
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2, .msg_control = space.bytes, .msg_controllen = sizeof space.bytes};
    struct cmsghdr *c = CMSG_FIRSTHDR(&message);
    int fd = COUNTERS_FD;

    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN(sizeof fd);
    memcpy(CMSG_DATA(c), &fd, sizeof fd);
    return sendmsg(control_fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL) < 0;
}

/* The next Torpor is here: from now on it is told, and it begins by learning what there is. */
static void be_taken_over(void)
{
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = 2};
    int fd = accept4(LISTENER_FD, NULL, NULL, SOCK_CLOEXEC);

    if (fd < 0)
        return;
    if (control_fd >= 0) {
        tell('T', 0, 0, NULL, 0);
        lose_control();
    }
    control_fd = fd;
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, control_fd, &event);
    if (give_counters()) {
        lose_control();
        return;
    }
    for (struct session *s = sessions; s; s = s->next) {
        struct sockaddr_un name;
        socklen_t length = sizeof name;

        if (s->state == OPEN && getsockname(s->server, (struct sockaddr *)&name, &length) == 0)
            tell('S', s->slot, s->id, name.sun_path, length - offsetof(struct sockaddr_un, sun_path));
        else
            tell('S', s->slot, s->id, NULL, 0);
    }
    tell('D', 0, 0, NULL, 0);
}

/* -- the process ------------------------------------------------------------------------------------------------------------------- */

#define ALLOW(name) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_##name, 0, 1), BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)

#if defined(__x86_64__)
#define ARCHITECTURE AUDIT_ARCH_X86_64
#elif defined(__aarch64__)
#define ARCHITECTURE AUDIT_ARCH_AARCH64
#endif

/* From here on it can use the descriptors that it has and is given, and memory: no files, no new sockets, no programs. */
static int confine(void)
{
#ifdef ARCHITECTURE
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, ARCHITECTURE, 1, 0),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
#ifdef SYS_epoll_wait
        ALLOW(epoll_wait),
#endif
        ALLOW(epoll_pwait), ALLOW(epoll_ctl), ALLOW(recvfrom), ALLOW(recvmsg), ALLOW(sendto), ALLOW(sendmsg), ALLOW(read), ALLOW(write), ALLOW(pread64),
        ALLOW(close), ALLOW(shutdown), ALLOW(accept4), ALLOW(getsockname), ALLOW(fstat), ALLOW(mmap), ALLOW(munmap), ALLOW(mremap),
        ALLOW(madvise), ALLOW(brk), ALLOW(futex), ALLOW(clock_gettime), ALLOW(getrandom), ALLOW(getpid), ALLOW(gettid), ALLOW(tgkill),
        ALLOW(rt_sigprocmask), ALLOW(rt_sigreturn), ALLOW(restart_syscall), ALLOW(exit), ALLOW(exit_group),
#ifdef SYS_newfstatat
        ALLOW(newfstatat), /* fstat() of newer C libraries; nothing can be opened with it */
#endif
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
    };
    struct sock_fprog program = {sizeof filter / sizeof *filter, filter};

    return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program);
#else
    return 0;
#endif
}

static int drop_privileges(uid_t uid)
{
    struct rlimit none = {0, 0};

    if (uid && (setgroups(0, NULL) || setresgid(uid, uid, uid) || setresuid(uid, uid, uid)))
        return -1;
    setrlimit(RLIMIT_CORE, &none);
    /* The memory holds private keys: nobody's debugger, no core file. */
    return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) ? -1 : 0;
}

static int set_up(uid_t uid)
{
    struct epoll_event control = {.events = EPOLLIN, .data.u64 = 2}, listener = {.events = EPOLLIN, .data.u64 = 4};
    struct stat about;

    signal(SIGPIPE, SIG_IGN);
    signal(SIGINT, SIG_IGN); /* Ctrl-C in Torpor's terminal is Torpor's to obey */
    signal(SIGHUP, SIG_IGN);
    close_range(COUNTERS_FD + 1, ~0U, 0);
    if (chdir("/") || fstat(COUNTERS_FD, &about))
        return -1;
    slots = (size_t)about.st_size / sizeof *counters;
    counters = mmap(NULL, (size_t)about.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, COUNTERS_FD, 0);
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (counters == MAP_FAILED || epoll_fd < 0 || epoll_ctl(epoll_fd, EPOLL_CTL_ADD, CONTROL_FD, &control) ||
        epoll_ctl(epoll_fd, EPOLL_CTL_ADD, LISTENER_FD, &listener))
        return -1;
    if (!OPENSSL_init_ssl(OPENSSL_INIT_LOAD_SSL_STRINGS | OPENSSL_INIT_NO_LOAD_CONFIG, NULL))
        return -1;
    bio_method = BIO_meth_new(BIO_get_new_index() | BIO_TYPE_SOURCE_SINK, "relay");
    if (!bio_method || !BIO_meth_set_read(bio_method, bio_read) || !BIO_meth_set_write(bio_method, bio_write) ||
        !BIO_meth_set_ctrl(bio_method, bio_control))
        return -1;
    return drop_privileges(uid) || confine() ? -1 : 0;
}

static int time_left_ms(void)
{
    int64_t next = INT64_MAX, left;

    if (lingering.first)
        next = lingering.first->deadline_ms;
    if (draining.first && draining.first->deadline_ms < next)
        next = draining.first->deadline_ms;
    if (next == INT64_MAX)
        return -1;
    left = next - now_ms();
    return left < 0 ? 0 : (int)left;
}

static void end_overdue(struct queue *q)
{
    int64_t now = q->first ? now_ms() : 0;

    while (q->first && q->first->deadline_ms <= now)
        end_session(q->first);
}

int main(int argc, char **argv)
{
    struct epoll_event events[EVENTS];

    if (argc > 2)
        build = argv[2];
    if (set_up(argc > 1 ? (uid_t)strtoul(argv[1], NULL, 10) : 0)) {
        fprintf(stderr, "torpor-relay: can't set up: %s\n", strerror(errno));
        return 1;
    }
    while (!(session_count == 0 && (control_fd < 0 || quitting))) {
        int n = epoll_wait(epoll_fd, events, EVENTS, time_left_ms());

        for (int i = 0; i < n; i++) {
            uint64_t what = events[i].data.u64;
            struct session *s = (struct session *)(uintptr_t)(what & ~(uint64_t)1);

            if (what == 4) {
                be_taken_over();
            } else if (what == 2) {
                if (control_fd < 0)
                    continue;
                if (events[i].events & EPOLLOUT)
                    flush_reports();
                for (int turn = 0; turn < 16 && control_fd >= 0 && obey(); turn++)
                    ;
            } else if (s->state != DEAD) {
                out_length = 0;
                if (what & 1)
                    on_server(s, events[i].events);
                else
                    on_client(s, events[i].events);
                settle(s);
            }
        }
        end_overdue(&lingering);
        end_overdue(&draining);
        while (dead) {
            struct session *s = dead;
            dead = s->next;
            free(s);
        }
    }
    return 0;
}
