/*
 * Records what a program writes to a SQLite store and its log, for tests/support/power_cut.rs to
 * rebuild the files as a power cut would have left them. Loaded with LD_PRELOAD. Nothing is really
 * flushed: what a disk holds is decided when the files are rebuilt.
 *
 * NEGSYNC_RECORD_STORE   the store's file, an absolute path without links
 * NEGSYNC_RECORD_TO      the record; appended to, so that several runs share one
 * NEGSYNC_FAIL_SYNC      "log:7" or "store:1": which flush of which file fails with EIO, counted from
 *                        1 in this process. As on Linux every descriptor that is open at that time
 *                        reports the error once; with ":once" behind it only that call does.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum kind { WRITE = 1, TRUNCATE, SYNC, FAILED_SYNC, UNLINK };
enum file { NONE, STORE, LOG, JOURNAL, FILES };

/* What stands before the bytes of a write. In tests/support/power_cut.rs: HEADER_BYTES. */
struct header {
    uint8_t kind;
    uint8_t file;
    uint16_t unused;
    uint32_t bytes;
    uint64_t offset;
};

#define DESCRIPTORS 4096
static unsigned char file_of[DESCRIPTORS];
/* How many errors of its file a descriptor has reported. */
static unsigned reported[DESCRIPTORS];
static unsigned errors[FILES];
static unsigned syncs[FILES];

static char paths[FILES][4096];
static enum file failing_file;
static unsigned failing_sync;
static int fails_once;
static int record = -1;
/* Held while a call does its work and is recorded: the record has the order of the calls. */
static pthread_mutex_t order = PTHREAD_MUTEX_INITIALIZER;

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static void fail(const char *what)
{
    fprintf(stderr, "power_cut.c: %s\n", what);
    abort();
}

__attribute__((constructor)) static void begin(void)
{
    const char *store = getenv("NEGSYNC_RECORD_STORE"), *to = getenv("NEGSYNC_RECORD_TO");
    const char *sync = getenv("NEGSYNC_FAIL_SYNC");
    if (!store || !to)
        return;
    snprintf(paths[STORE], sizeof paths[0], "%s", store);
    snprintf(paths[LOG], sizeof paths[0], "%s-wal", store);
    snprintf(paths[JOURNAL], sizeof paths[0], "%s-journal", store);
    if (sync) {
        failing_file = strncmp(sync, "log:", 4) == 0 ? LOG : STORE;
        failing_sync = (unsigned)atoi(strchr(sync, ':') + 1);
        fails_once = strstr(sync, ":once") != NULL;
    }
    record = (int)syscall(SYS_openat, AT_FDCWD, to, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (record < 0)
        fail("cannot open the record");
}

static enum file named(const char *path)
{
    for (int file = STORE; path && file < FILES; file++)
        if (paths[file][0] && strcmp(path, paths[file]) == 0)
            return file;
    return NONE;
}

static enum file opened_as(int fd)
{
    return fd >= 0 && fd < DESCRIPTORS ? file_of[fd] : NONE;
}

static void note(enum kind kind, enum file file, uint64_t offset, const void *bytes, size_t count)
{
    struct header header = {kind, file, 0, (uint32_t)count, offset};
    struct iovec parts[2] = {{&header, sizeof header}, {(void *)bytes, count}};
    size_t left = sizeof header + count;
    ssize_t written = syscall(SYS_writev, record, parts, 2);
    if (written < 0 || (size_t)written != left)
        fail("cannot write the record");
}

static int keep(int fd, const char *path, int flags)
{
    enum file file = named(path);
    if (fd < 0 || fd >= DESCRIPTORS) {
        if (fd >= DESCRIPTORS && file)
            fail("more descriptors than are kept track of");
        return fd;
    }
    pthread_mutex_lock(&order);
    file_of[fd] = file;
    reported[fd] = errors[file];
    if (file && (flags & O_TRUNC))
        note(TRUNCATE, file, 0, NULL, 0);
    pthread_mutex_unlock(&order);
    return fd;
}

#define OPEN(name, ...)                                                                            \
    mode_t mode = 0;                                                                               \
    if (flags & (O_CREAT | O_TMPFILE)) {                                                           \
        va_list rest;                                                                              \
        va_start(rest, flags);                                                                     \
        mode = va_arg(rest, mode_t);                                                               \
        va_end(rest);                                                                              \
    }                                                                                              \
    return keep(REAL(name)(__VA_ARGS__, flags, mode), path, flags)

int open(const char *path, int flags, ...)
{
    OPEN(open, path);
}

int open64(const char *path, int flags, ...)
{
    OPEN(open64, path);
}

int openat(int directory, const char *path, int flags, ...)
{
    OPEN(openat, directory, path);
}

int openat64(int directory, const char *path, int flags, ...)
{
    OPEN(openat64, directory, path);
}

int close(int fd)
{
    if (fd >= 0 && fd < DESCRIPTORS)
        file_of[fd] = NONE;
    return REAL(close)(fd);
}

static ssize_t write_at(int fd, enum file file, const void *bytes, size_t count, off_t offset)
{
    pthread_mutex_lock(&order);
    ssize_t written = syscall(SYS_pwrite64, fd, bytes, count, offset);
    if (written > 0)
        note(WRITE, file, (uint64_t)offset, bytes, (size_t)written);
    pthread_mutex_unlock(&order);
    return written;
}

ssize_t pwrite(int fd, const void *bytes, size_t count, off_t offset)
{
    enum file file = opened_as(fd);
    return file ? write_at(fd, file, bytes, count, offset) : REAL(pwrite)(fd, bytes, count, offset);
}

ssize_t pwrite64(int fd, const void *bytes, size_t count, off_t offset)
{
    return pwrite(fd, bytes, count, offset);
}

ssize_t write(int fd, const void *bytes, size_t count)
{
    if (opened_as(fd))
        fail("write() on the store: only pwrite() is recorded");
    return REAL(write)(fd, bytes, count);
}

ssize_t writev(int fd, const struct iovec *parts, int count)
{
    if (opened_as(fd))
        fail("writev() on the store: only pwrite() is recorded");
    return REAL(writev)(fd, parts, count);
}

void *mmap(void *at, size_t bytes, int protection, int flags, int fd, off_t offset)
{
    if ((protection & PROT_WRITE) && (flags & MAP_SHARED) && opened_as(fd))
        fail("mmap() for writing on the store: only pwrite() is recorded");
    return (void *)syscall(SYS_mmap, at, bytes, protection, flags, fd, offset);
}

void *mmap64(void *at, size_t bytes, int protection, int flags, int fd, off_t offset)
{
    return mmap(at, bytes, protection, flags, fd, offset);
}

int ftruncate(int fd, off_t length)
{
    enum file file = opened_as(fd);
    pthread_mutex_lock(&order);
    int done = (int)syscall(SYS_ftruncate, fd, length);
    if (done == 0 && file)
        note(TRUNCATE, file, (uint64_t)length, NULL, 0);
    pthread_mutex_unlock(&order);
    return done;
}

int ftruncate64(int fd, off_t length)
{
    return ftruncate(fd, length);
}

static int sync_file(int fd, enum file file)
{
    pthread_mutex_lock(&order);
    int is_chosen = file == failing_file && ++syncs[file] == failing_sync;
    if (is_chosen && !fails_once)
        errors[file]++;
    int is_error = is_chosen || reported[fd] != errors[file];
    reported[fd] = errors[file];
    note(is_chosen ? FAILED_SYNC : SYNC, file, 0, NULL, 0);
    pthread_mutex_unlock(&order);
    if (is_error)
        errno = EIO;
    return is_error ? -1 : 0;
}

int fsync(int fd)
{
    enum file file = opened_as(fd);
    return file ? sync_file(fd, file) : 0;
}

int fdatasync(int fd)
{
    return fsync(fd);
}

int unlink(const char *path)
{
    enum file file = named(path);
    pthread_mutex_lock(&order);
    int done = REAL(unlink)(path);
    if (done == 0 && file)
        note(UNLINK, file, 0, NULL, 0);
    pthread_mutex_unlock(&order);
    return done;
}
