/*
 * Copies a directory tree which a tenant may be writing to: a program of its own, which torpor/storage/copying.py starts.
 *
 * The tree is hostile: nothing in it is followed. Every directory is entered and every file opened relative to its parent's descriptor
 * and never through a link, so whatever is swapped while it is copied, no byte from outside of the tree gets into the copy. A file is
 * copied up to the length that it had when it was opened, holes stay holes, and only files, directories, links (as what they say) and
 * hard links are copied. Where the file system has reflinks, a file is copied at one instant.
 *
 * Arguments: the process that starts it, the source, the target (which may be there, empty), the user id that gets it, "live" where files
 * may vanish meanwhile or "still" where that is an error, and rules: "-path" is left out, "=path" is a directory that is copied empty, and
 * "~prefix" leaves out every name that begins like that. On an error it says its number and where it was.
 *
 * Concurrency: some threads take directories from one list; a directory is copied by one of them. It ends when whoever started it does.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <unistd.h>

#define THREADS 2
#define DEEPEST 40 /* directories in each other; PostgreSQL's own are five at most */
#define SMALL_BYTES 16384 /* without reflinks, such a file is read until it is twice the same */
#define PIECE_BYTES ((size_t)8 << 20)
#define OPEN_DIRECTORY (O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC)
#define OPEN_FILE (O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC)
#define MAKE_FILE (O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC)

struct directory { /* one that is still to be copied */
    struct directory *next;
    int depth;
    char path[]; /* below the roots; "" are the roots themselves */
};

struct link {
    struct link *next;
    dev_t device;
    ino_t inode;
    char path[]; /* of its first copy */
};

static int source_root, target_root;
static long give_to = -1; /* the user who gets the copy; -1: who we are */
static int is_live;
static char **rules;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static struct directory *waiting; /* `lock` guards these */
static int working;

static pthread_mutex_t links_lock = PTHREAD_MUTEX_INITIALIZER;
static struct link *links;

static _Noreturn void fail(const char *where)
{
    fprintf(stderr, "%d %s\n", errno ? errno : EIO, where);
    _exit(1);
}

static int no_reflink(int code)
{
    return code == EOPNOTSUPP || code == EXDEV || code == EINVAL || code == ENOTTY || code == ENOSYS;
}

/* Whether a rule of that kind says so of a path, or of a name. */
static int is_ruled(char kind, const char *text)
{
    for (char **rule = rules; *rule; rule++)
        if (**rule == kind && (kind == '~' ? !strncmp(text, *rule + 1, strlen(*rule + 1)) : !strcmp(text, *rule + 1)))
            return 1;
    return 0;
}

static void put_off(const char *path, int depth)
{
    struct directory *directory = malloc(sizeof *directory + strlen(path) + 1);
    if (!directory)
        fail(path);
    directory->depth = depth;
    strcpy(directory->path, path);
    pthread_mutex_lock(&lock);
    directory->next = waiting;
    waiting = directory;
    pthread_cond_signal(&changed);
    pthread_mutex_unlock(&lock);
}

/* The next directory; NULL when all is copied. */
static struct directory *take(void)
{
    pthread_mutex_lock(&lock);
    while (!waiting && working)
        pthread_cond_wait(&changed, &lock);
    struct directory *directory = waiting;
    if (directory) {
        waiting = directory->next;
        working++;
    } else {
        pthread_cond_broadcast(&changed);
    }
    pthread_mutex_unlock(&lock);
    return directory;
}

static void finished(struct directory *directory)
{
    free(directory);
    pthread_mutex_lock(&lock);
    if (!--working)
        pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&lock);
}

/* Open a directory by its path below a root, following no link on the way. -1 with errno. */
static int open_below(int root, const char *path)
{
    int here = openat(root, ".", OPEN_DIRECTORY);
    while (here >= 0 && *path) {
        char name[NAME_MAX + 1];
        size_t length = strcspn(path, "/");
        if (length > NAME_MAX) {
            close(here);
            errno = ENAMETOOLONG;
            return -1;
        }
        memcpy(name, path, length);
        name[length] = 0;
        int next = openat(here, name, OPEN_DIRECTORY), code = errno;
        close(here);
        errno = code;
        here = next;
        path += length + (path[length] == '/');
    }
    return here;
}

static void own(int fd, const struct stat *about, mode_t has, const char *path)
{
    if (give_to >= 0 && fchown(fd, give_to, give_to) < 0)
        fail(path);
    if ((about->st_mode & 0777) != has && fchmod(fd, about->st_mode & 0777) < 0)
        fail(path);
}

/* -1 with errno; whoever cut the file off meanwhile gets a shorter copy. */
static int copy_range(int source, int target, off_t at, off_t end)
{
    static __thread char *piece;
    while (at < end) {
        size_t wanted = (size_t)(end - at) < PIECE_BYTES ? (size_t)(end - at) : PIECE_BYTES;
        off_t from = at, to = at;
        ssize_t copied = copy_file_range(source, &from, target, &to, wanted, 0);
        if (copied < 0 && no_reflink(errno)) {
            if (!piece && !(piece = malloc(PIECE_BYTES)))
                return -1;
            copied = pread(source, piece, wanted, at);
            if (copied > 0)
                copied = pwrite(target, piece, copied, at);
        }
        if (copied < 0)
            return -1;
        if (!copied)
            break;
        at += copied;
    }
    return 0;
}

static int copy_small(int source, int target, size_t size)
{
    char now[SMALL_BYTES], before[SMALL_BYTES];
    ssize_t length = pread(source, now, size, 0), earlier;
    do {
        if (length < 0)
            return -1;
        memcpy(before, now, earlier = length);
        length = pread(source, now, size, 0);
    } while (length != earlier || memcmp(now, before, length));
    for (ssize_t done = 0; done < length;) {
        ssize_t written = write(target, now + done, length - done);
        if (written < 0)
            return -1;
        done += written;
    }
    return 0;
}

static int copy_bytes(int source, int target, off_t size)
{
    if (!size || !ioctl(target, FICLONE, source))
        return 0;
    if (!no_reflink(errno))
        return -1;
    if (size <= SMALL_BYTES)
        return copy_small(source, target, size);
    for (off_t at = 0; at < size;) {
        off_t data = lseek(source, at, SEEK_DATA), hole = data < 0 ? -1 : lseek(source, data, SEEK_HOLE);
        if (hole < 0) {
            if (errno != ENXIO) /* else only a hole is left */
                return -1;
            break;
        }
        if (hole > size)
            hole = size;
        if (data < hole && copy_range(source, target, data, hole) < 0)
            return -1;
        at = hole;
    }
    return ftruncate(target, size);
}

/* Make the copy of one file, or link it to the first copy of one that has several names. -1 with errno when it is a link now. */
static int make_copy(const struct stat *about, int target, const char *name, const char *path)
{
    if (about->st_nlink == 1)
        return openat(target, name, MAKE_FILE, 0600);
    int copy = -1;
    pthread_mutex_lock(&links_lock);
    struct link *link = links;
    while (link && (link->inode != about->st_ino || link->device != about->st_dev))
        link = link->next;
    if (link) {
        if (linkat(target_root, link->path, target, name, 0) < 0)
            fail(path);
        errno = 0;
    } else if ((copy = openat(target, name, MAKE_FILE, 0600)) >= 0) {
        if (!(link = malloc(sizeof *link + strlen(path) + 1)))
            fail(path);
        link->device = about->st_dev;
        link->inode = about->st_ino;
        strcpy(link->path, path);
        link->next = links;
        links = link;
    }
    pthread_mutex_unlock(&links_lock);
    return copy;
}

/* -1 with errno of the source's. */
static int copy_file(int source, int target, const char *name, const char *path)
{
    int fd = openat(source, name, OPEN_FILE);
    if (fd < 0)
        return errno == ENXIO ? 0 : -1; /* a socket by now */
    struct stat about;
    if (fstat(fd, &about) < 0)
        fail(path);
    if (S_ISREG(about.st_mode)) {
        int copy = make_copy(&about, target, name, path);
        if (copy >= 0) {
            if (copy_bytes(fd, copy, about.st_size) < 0)
                fail(path);
            own(copy, &about, 0600, path);
            close(copy);
        } else if (errno) {
            fail(path);
        }
    }
    close(fd);
    return 0;
}

static int copy_link(int source, int target, const char *name, const char *path)
{
    char text[PATH_MAX + 1];
    ssize_t length = readlinkat(source, name, text, PATH_MAX);
    if (length < 0)
        return errno == EINVAL ? 0 : -1; /* no link any more */
    text[length] = 0;
    if (symlinkat(text, target, name) < 0 || (give_to >= 0 && fchownat(target, name, give_to, give_to, AT_SYMLINK_NOFOLLOW) < 0))
        fail(path);
    return 0;
}

/* One that is there stays: the pool may have made it in its own way. */
static int make_directory(int parent, const char *name, const char *path)
{
    if (mkdirat(parent, name, 0700) < 0 && errno != EEXIST)
        fail(path);
    int made = openat(parent, name, OPEN_DIRECTORY);
    if (made < 0)
        fail(path);
    return made;
}

/* -1 with errno of the source's. */
static int copy_directory(int source, int target, const char *name, const char *path, int depth)
{
    int inner = openat(source, name, OPEN_DIRECTORY);
    if (inner < 0)
        return -1;
    struct stat about;
    if (fstat(inner, &about) < 0)
        fail(path);
    int made = make_directory(target, name, path);
    own(made, &about, 0700, path);
    if (!is_ruled('=', path))
        put_off(path, depth);
    close(made);
    close(inner);
    return 0;
}

static int copy_entry(int source, int target, const struct dirent *entry, const char *path, int depth)
{
    unsigned char type = entry->d_type;
    if (type == DT_UNKNOWN) {
        struct stat about;
        if (fstatat(source, entry->d_name, &about, AT_SYMLINK_NOFOLLOW) < 0)
            return -1;
        type = IFTODT(about.st_mode);
    }
    switch (type) {
    case DT_DIR:
        return copy_directory(source, target, entry->d_name, path, depth);
    case DT_LNK:
        return copy_link(source, target, entry->d_name, path);
    case DT_REG:
        return copy_file(source, target, entry->d_name, path);
    default:
        return 0;
    }
}

static void copy_entries(const struct directory *directory)
{
    if (directory->depth > DEEPEST) {
        errno = ENAMETOOLONG;
        fail(directory->path);
    }
    int source = open_below(source_root, directory->path);
    if (source < 0) {
        if (errno == ENOENT && is_live && directory->depth)
            return;
        fail(directory->path);
    }
    int target = open_below(target_root, directory->path);
    DIR *list = fdopendir(source);
    if (target < 0 || !list)
        fail(directory->path);
    char path[(DEEPEST + 2) * (NAME_MAX + 1)];
    size_t length = strlen(directory->path);
    memcpy(path, directory->path, length);
    if (length)
        path[length++] = '/';
    struct dirent *entry;
    while (errno = 0, (entry = readdir(list))) {
        if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, ".."))
            continue;
        strcpy(path + length, entry->d_name);
        if (is_ruled('-', path) || is_ruled('~', entry->d_name))
            continue;
        if (copy_entry(source, target, entry, path, directory->depth + 1) < 0 && !(errno == ENOENT && is_live))
            fail(path);
    }
    if (errno)
        fail(directory->path);
    closedir(list);
    close(target);
}

static void *work(void *unused)
{
    (void)unused;
    for (struct directory *directory; (directory = take());) {
        copy_entries(directory);
        finished(directory);
    }
    return NULL;
}

int main(int count, char **arguments)
{
    if (count < 6)
        return 2;
    if (prctl(PR_SET_PDEATHSIG, SIGKILL) < 0 || getppid() != atol(arguments[1])) /* who started us may have ended already */
        return 2;
    const char *from = arguments[2], *to = arguments[3];
    long uid = atol(arguments[4]);
    if (uid != (long)geteuid())
        give_to = uid;
    is_live = !strcmp(arguments[5], "live");
    rules = arguments + 6;
    umask(077);
    struct stat about;
    if ((source_root = open(from, OPEN_DIRECTORY)) < 0 || fstat(source_root, &about) < 0)
        fail(from);
    target_root = make_directory(AT_FDCWD, to, to);
    own(target_root, &about, 0700, to);
    put_off("", 0);
    pthread_t threads[THREADS - 1];
    int started = 0;
    while (started < THREADS - 1 && !pthread_create(&threads[started], NULL, work, NULL))
        started++;
    work(NULL);
    while (started)
        pthread_join(threads[--started], NULL);
    return 0;
}
