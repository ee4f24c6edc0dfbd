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
#include "relay.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

const char *build = "";
int epoll_fd, quitting;
struct counters *counters;
size_t slots;

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
    if (prepare_tls())
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
