/*
 * Receives clients inside a compute: preloaded into the postmaster, it makes accept() return the client socket that Torpor's
 * door handed over, and recv() return that client's startup message first. PostgreSQL is not modified and does not notice.
 *
 * The contract with Torpor (torpor/compute/handover.py):
 *   TORPOR_LISTENER_FD   a listening Unix socket. It takes the place of the socket on which PostgreSQL calls listen(). Its path
 *                        is outside of what the compute can see, so nobody in the compute can connect to it.
 *   TORPOR_READY_FD      one byte is written when the postmaster is ready for connections; it breaks when the postmaster dies
 *                        before. "Ready" is when PostgreSQL says so in postmaster.pid. A socket, so that the kernel tells Torpor who
 *                        wrote: the postmaster knows only the process id that it has inside of its sandbox.
 *   TORPOR_GO_FD         PostgreSQL begins when a byte arrives: Torpor puts the process into its cgroups meanwhile.
 *   TORPOR_HASTE_FD      where the volume needn't be durable yet: a page of shared memory that says so, until Torpor writes a zero to it.
 *   TORPOR_WRITES_FD     the file in which writes are counted (writes.h); where it is missing nothing is.
 *   TORPOR_UID           the user to become before anything else, where a root without user namespaces had to make the sandbox.
 *   A hand-over is one connection to the listener that carries a header, the address to show as the client's, the startup
 *   message, and two descriptors: the client's socket and the write end of a pipe, the life line. With the second magic the claims of
 *   a token follow the startup message, their length (4 bytes, host order) before them. The backend writes its
 *   process id (4 bytes, host order) to the life line and holds it until it ends.
 *
 * Concurrency: the postmaster is single-threaded; each backend inherits its own copy of the state by fork.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <grp.h>
#include <linux/capability.h>
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <unistd.h>

#define MAGIC "TORPOR1"
#define MAX_STARTUP 16384
#define MAX_FILES 4096
#define MAX_FILE_BYTES ((rlim_t)1088 << 20)

#include "signs.h"
#include "writes.h"
#include "watch.h"
#include "claims.h"

struct header {
    char magic[8];
    uint32_t address_length;
    uint32_t startup_length;
};

static int (*real_accept)(int, struct sockaddr *, socklen_t *);
static int (*real_listen)(int, int);
static ssize_t (*real_recv)(int, void *, size_t, int);
static ssize_t (*real_pwrite)(int, const void *, size_t, off_t);
static ssize_t (*real_pwritev)(int, const struct iovec *, int, off_t);
static int (*real_posix_fallocate)(int, off_t, off_t);
static int (*real_fsync)(int);
static int (*real_fdatasync)(int);
static int (*real_syncfs)(int);
static int (*real_sync_file_range)(int, off64_t, off64_t, unsigned);
static const volatile char *haste; /* a page that Torpor writes; not 0: nothing has to be durable yet */

static int inherited_fd = -1; /* the listener as inherited, until PostgreSQL calls listen() */
static int listener_fd = -1;  /* PostgreSQL's descriptor of it afterwards */
static int ready_fd = -1;     /* until the postmaster is ready, and only in the postmaster */
static int in_postmaster;     /* not in its children */

static int lifeline_fd = -1;  /* between accept() and the fork that serves the client; in the backend, for ever */
static int replay_fd = -1;    /* the socket whose first bytes are in `replay` */
static uint32_t replay_next, replay_end;
static char replay[MAX_STARTUP];

static int fd_from_environment(const char *name)
{
    const char *text = getenv(name);
    int fd = text ? atoi(text) : -1;
    unsetenv(name);
    return fd;
}

static void after_fork_in_postmaster(void)
{
    if (!in_postmaster)
        return; /* an extension forked in a backend, which keeps its life line */
    if (lifeline_fd >= 0) {
        close(lifeline_fd);
        lifeline_fd = -1;
    }
    replay_fd = -1;
}

static void after_fork_in_child(void)
{
    in_postmaster = 0;
    if (ready_fd >= 0) {
        close(ready_fd);
        ready_fd = -1;
    }
    if (listener_fd < 0)
        return; /* a fork of a backend, such as a program run by COPY: the life line is close-on-exec */
    listener_fd = -1;
    if (lifeline_fd >= 0) {
        int32_t pid = getpid();
        /* A broken life line only means that Torpor is gone: the session goes on without it. SIGPIPE is ignored by PostgreSQL. */
        if (write(lifeline_fd, &pid, sizeof pid) < 0)
            errno = 0;
    }
}

/* Irrevocable: no id and no capability of root is left, and no-new-privileges was set by whoever made the sandbox. */
static void become_user(void)
{
    const char *text = getenv("TORPOR_UID");
    struct __user_cap_header_struct version = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct none[_LINUX_CAPABILITY_U32S_3] = {{0}};
    uid_t uid;

    if (!text)
        return;
    uid = (uid_t)atol(text);
    if (uid == 0 || setgroups(0, NULL) != 0 || setresgid(uid, uid, uid) != 0 || setresuid(uid, uid, uid) != 0 ||
        syscall(SYS_capset, &version, none) != 0)
        _exit(126);
    unsetenv("TORPOR_UID");
}

/*
 * Lowered for good. PostgreSQL keeps 256 files open in each process; memory and processes are the cgroup's to count. Its own files have 1 GB
 * at most; the limit is for the one file that lies outside of the volume, the log: between two looks of Torpor it could take all the disk.
 */
static void set_limits(void)
{
    const struct rlimit no_core = {0, 0}, files = {MAX_FILES, MAX_FILES}, size = {MAX_FILE_BYTES, MAX_FILE_BYTES};
    struct rlimit now;

    setrlimit(RLIMIT_CORE, &no_core);
    if (getrlimit(RLIMIT_FSIZE, &now) == 0 && now.rlim_max > MAX_FILE_BYTES)
        setrlimit(RLIMIT_FSIZE, &size);
    if (getrlimit(RLIMIT_NOFILE, &now) == 0 && now.rlim_max > MAX_FILES)
        setrlimit(RLIMIT_NOFILE, &files);
}

static void wait_for_go(int fd)
{
    char go;
    ssize_t n;

    if (fd < 0)
        return;
    do
        n = read(fd, &go, 1);
    while (n < 0 && errno == EINTR);
    if (n != 1)
        _exit(126); /* Torpor is gone, and the process is in no tree: nobody would ever end it */
    close(fd);
}

/* Without it everything is synced. */
static void share_haste(int fd)
{
    void *page;

    if (fd < 0)
        return;
    page = mmap(NULL, 1, PROT_READ, MAP_SHARED, fd, 0);
    if (page != MAP_FAILED)
        haste = page;
    close(fd);
}

__attribute__((constructor)) static void set_up(void)
{
    become_user();
    real_accept = (int (*)(int, struct sockaddr *, socklen_t *))dlsym(RTLD_NEXT, "accept");
    real_listen = (int (*)(int, int))dlsym(RTLD_NEXT, "listen");
    real_recv = (ssize_t(*)(int, void *, size_t, int))dlsym(RTLD_NEXT, "recv");
    real_pwrite = (ssize_t(*)(int, const void *, size_t, off_t))dlsym(RTLD_NEXT, "pwrite");
    real_pwritev = (ssize_t(*)(int, const struct iovec *, int, off_t))dlsym(RTLD_NEXT, "pwritev");
    real_posix_fallocate = (int (*)(int, off_t, off_t))dlsym(RTLD_NEXT, "posix_fallocate");
    real_fsync = (int (*)(int))dlsym(RTLD_NEXT, "fsync");
    real_fdatasync = (int (*)(int))dlsym(RTLD_NEXT, "fdatasync");
    real_syncfs = (int (*)(int))dlsym(RTLD_NEXT, "syncfs");
    real_sync_file_range = (int (*)(int, off64_t, off64_t, unsigned))dlsym(RTLD_NEXT, "sync_file_range");
    share_haste(fd_from_environment("TORPOR_HASTE_FD"));
    share_counters(fd_from_environment("TORPOR_WRITES_FD"));
    inherited_fd = fd_from_environment("TORPOR_LISTENER_FD");
    ready_fd = fd_from_environment("TORPOR_READY_FD");
    in_postmaster = inherited_fd >= 0;
    if (in_postmaster)
        set_limits();
    wait_for_go(fd_from_environment("TORPOR_GO_FD"));
    unsetenv("LD_PRELOAD"); /* programs that PostgreSQL runs are none of our business */
    pthread_atfork(NULL, after_fork_in_postmaster, after_fork_in_child);
}

int listen(int fd, int backlog)
{
    struct sockaddr_un address;
    socklen_t length = sizeof address;

    if (inherited_fd >= 0 && getsockname(fd, (struct sockaddr *)&address, &length) == 0 && address.sun_family == AF_UNIX) {
        if (dup2(inherited_fd, fd) < 0)
            return -1;
        close(inherited_fd);
        inherited_fd = -1;
        listener_fd = fd;
        begin_writes();
        protect_claims();
        return 0;
    }
    return real_listen(fd, backlog);
}

static int read_fully(int fd, void *buffer, size_t length)
{
    size_t done = 0;

    while (done < length) {
        ssize_t n = real_recv(fd, (char *)buffer + done, length - done, 0);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return -1;
        done += (size_t)n;
    }
    return 0;
}

/* Read the header with its two descriptors. Returns 0, or -1 with nothing left open. */
static int read_header(int fd, struct header *header, int fds[2])
{
    union {
        char bytes[CMSG_SPACE(2 * sizeof(int))];
        struct cmsghdr align;
    } control;
    struct iovec part = {header, sizeof *header};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control.bytes, .msg_controllen = sizeof control.bytes};
    struct cmsghdr *c;
    ssize_t n;

    do
        n = recvmsg(fd, &message, MSG_CMSG_CLOEXEC | MSG_WAITALL);
    while (n < 0 && errno == EINTR);
    fds[0] = fds[1] = -1;
    for (c = n > 0 ? CMSG_FIRSTHDR(&message) : NULL; c; c = CMSG_NXTHDR(&message, c))
        if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS)
            memcpy(fds, CMSG_DATA(c), c->cmsg_len - CMSG_LEN(0) > 2 * sizeof(int) ? 2 * sizeof(int) : c->cmsg_len - CMSG_LEN(0));
    if (n == sizeof *header && fds[1] >= 0 &&
        (memcmp(header->magic, MAGIC, sizeof header->magic) == 0 || memcmp(header->magic, CLAIMS_MAGIC, sizeof header->magic) == 0) &&
        header->address_length <= sizeof(struct sockaddr_storage) && header->startup_length <= MAX_STARTUP)
        return 0;
    if (fds[0] >= 0)
        close(fds[0]);
    if (fds[1] >= 0)
        close(fds[1]);
    return -1;
}

/* Read what follows the header. Returns 0 or -1. */
static int read_rest(int fd, const struct header *header, struct sockaddr_storage *shown)
{
    claims_length = 0;
    if (read_fully(fd, shown, header->address_length) < 0 || read_fully(fd, replay, header->startup_length) < 0)
        return -1;
    if (memcmp(header->magic, MAGIC, sizeof header->magic) == 0)
        return 0;
    if (read_fully(fd, &claims_length, sizeof claims_length) < 0 || claims_length == 0 || claims_length > MAX_CLAIMS)
        return -1;
    if (read_fully(fd, claims, claims_length) < 0)
        return -1;
    claims[claims_length] = '\0';
    return 0;
}

int accept(int fd, struct sockaddr *address, socklen_t *length)
{
    struct sockaddr_storage shown;
    struct header header;
    struct timeval patience = {1, 0}; /* Torpor sends at once; a Torpor killed in between must not stop the postmaster */
    int connection, fds[2];

    if (fd != listener_fd)
        return real_accept(fd, address, length);
    connection = real_accept(fd, NULL, NULL);
    if (connection < 0)
        return connection;
    after_fork_in_postmaster(); /* in case the fork for the one before failed */
    setsockopt(connection, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    if (read_header(connection, &header, fds) < 0) {
        close(connection);
        errno = ECONNABORTED;
        return -1;
    }
    memset(&shown, 0, sizeof shown);
    if (read_rest(connection, &header, &shown) < 0) {
        close(connection);
        close(fds[0]);
        close(fds[1]);
        errno = ECONNABORTED;
        return -1;
    }
    close(connection);
    if (address && length) {
        memcpy(address, &shown, *length < header.address_length ? *length : header.address_length);
        *length = header.address_length;
    }
    lifeline_fd = fds[1];
    replay_fd = fds[0];
    replay_next = 0;
    replay_end = header.startup_length;
    return fds[0];
}

ssize_t recv(int fd, void *buffer, size_t length, int flags)
{
    if (__builtin_expect(fd == replay_fd, 0) && replay_next < replay_end) {
        size_t n = replay_end - replay_next;
        if (n > length)
            n = length;
        if (n == replay_end - replay_next && !(flags & MSG_PEEK) && begin_claims() != 0)
            return 0; /* as if the client had left */
        memcpy(buffer, replay + replay_next, n);
        if (!(flags & MSG_PEEK)) {
            replay_next += (uint32_t)n;
            if (replay_next == replay_end) {
                replay_fd = -1;
                if (memmem(replay, replay_end, POOL_MARK, sizeof POOL_MARK - 1))
                    begin_signs(fd);
            }
        }
        return (ssize_t)n;
    }
    if (__builtin_expect(fd == pooled_fd, 0)) {
        ssize_t n = real_recv(fd, buffer, length, flags);
        note_received(buffer, n);
        return n;
    }
    return real_recv(fd, buffer, length, flags);
}

/* A volume at its quota is a full disk, which PostgreSQL has an SQLSTATE and a hint for. Of quotas it knows nothing. */
static ssize_t refused(ssize_t result)
{
    if (errno == EDQUOT)
        errno = ENOSPC;
    return result;
}

ssize_t pwrite(int fd, const void *buffer, size_t length, off_t offset)
{
    ssize_t n;

    if (__builtin_expect(in_postmaster, 0))
        count_start(buffer, length);
    n = real_pwrite(fd, buffer, length, offset);
    /* The status line of postmaster.pid is its last: "ready   " once connections are accepted. */
    if (__builtin_expect(ready_fd >= 0, 0) && n == (ssize_t)length && memmem(buffer, length, "\nready ", 7)) {
        if (write(ready_fd, "R", 1) < 0)
            errno = 0;
        close(ready_fd);
        ready_fd = -1;
    }
    return n < 0 ? refused(n) : n;
}

ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t offset)
{
    ssize_t n = real_pwritev(fd, parts, count, offset);

    return n < 0 ? refused(n) : n;
}

/* Says what is wrong by what it returns, not by errno. */
int posix_fallocate(int fd, off_t offset, off_t length)
{
    int code = real_posix_fallocate(fd, offset, length);

    return code == EDQUOT ? ENOSPC : code;
}

/* Whether Torpor throws the volume away after any crash, and syncs all of it before anybody else is told of it. */
static int in_haste(void)
{
    return __builtin_expect(haste != NULL, 0) && *haste;
}

/*
 * The postmaster itself syncs nothing but its lock files, and that five times before it accepts anybody: 5 to 10 ms of every start.
 * Torpor removes them after any crash, so they need not be durable. Data is written and synced by the postmaster's children only.
 */
int fsync(int fd)
{
    return __builtin_expect(in_postmaster, 0) || in_haste() ? 0 : real_fsync(fd);
}

int fdatasync(int fd)
{
    return in_haste() ? 0 : real_fdatasync(fd);
}

int syncfs(int fd)
{
    return in_haste() ? 0 : real_syncfs(fd);
}

int sync_file_range(int fd, off64_t offset, off64_t length, unsigned flags)
{
    return in_haste() ? 0 : real_sync_file_range(fd, offset, length, flags);
}

/* The same entry points under the names that large-file builds use. */
ssize_t pwrite64(int fd, const void *buffer, size_t length, off_t offset) __attribute__((alias("pwrite")));
ssize_t pwritev64(int fd, const struct iovec *parts, int count, off_t offset) __attribute__((alias("pwritev")));
int posix_fallocate64(int fd, off_t offset, off_t length) __attribute__((alias("posix_fallocate")));
