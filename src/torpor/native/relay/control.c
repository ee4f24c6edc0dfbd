/*
 * The control socket: Torpor's commands, and what it is told. A report that the socket can't take now waits in a queue, which is bounded by
 * the number of sessions. A worker without a control tells nobody anything until the next Torpor takes it over.
 */
#define _GNU_SOURCE
#include "relay.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

int control_fd = CONTROL_FD;
static int control_waits;
static struct queued_report *reports, **reports_end = &reports;

static void watch_control(void)
{
    struct epoll_event event = {.events = EPOLLIN | (control_waits ? EPOLLOUT : 0), .data.u64 = 2};

    epoll_ctl(epoll_fd, EPOLL_CTL_MOD, control_fd, &event);
}

void flush_reports(void)
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

void tell(char type, uint32_t slot, uint64_t id, const void *text, size_t length)
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

void tell_failure(uint32_t slot, uint64_t id, const char *why)
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
int obey(void)
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
void be_taken_over(void)
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
