/* Loaded before the program (LD_PRELOAD): the disk fails on one rank, for the files of checkpoints.
 *   FAULT_FILE   whose path has this in it
 *   FAULT_RANK   this rank only
 *   FAULT_CALL   write, read or sync: what fails, with EIO; unlink: before which the rank is killed
 *   FAULT_AFTER  so many of these calls work first
 * Alarms come twelve times as soon, so that a test need not wait for minutes. */
#include <dlfcn.h>
#include <errno.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <unistd.h>

static const char *path_of(int descriptor)
{
    static _Thread_local char path[4096];
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, path, sizeof path - 1);
    path[length > 0 ? length : 0] = '\0';
    return path;
}

static bool fails(const char *path, const char *call)
{
    static int calls;
    const char *rank = getenv("OMPI_COMM_WORLD_RANK"), *file = getenv("FAULT_FILE"), *on = getenv("FAULT_RANK"), *which = getenv("FAULT_CALL"),
               *after = getenv("FAULT_AFTER");
    if (!rank || !file || !on || !which || !after || strcmp(rank, on) != 0 || strcmp(call, which) != 0 || !strstr(path, file))
        return false;
    errno = EIO;
    return calls++ >= atoi(after);
}

#define FAULT(result, name, call, parameters, arguments)                                                                                             \
    result name parameters                                                                                                                           \
    {                                                                                                                                                \
        result(*real) parameters = (result(*) parameters)dlsym(RTLD_NEXT, #name);                                                                    \
        return fails(path_of(descriptor), call) ? -1 : real arguments;                                                                               \
    }

FAULT(ssize_t, write, "write", (int descriptor, const void *bytes, size_t count), (descriptor, bytes, count))
FAULT(ssize_t, writev, "write", (int descriptor, const struct iovec *parts, int count), (descriptor, parts, count))
FAULT(ssize_t, pwrite, "write", (int descriptor, const void *bytes, size_t count, off_t at), (descriptor, bytes, count, at))
FAULT(ssize_t, pwrite64, "write", (int descriptor, const void *bytes, size_t count, off_t at), (descriptor, bytes, count, at))
FAULT(ssize_t, pwritev, "write", (int descriptor, const struct iovec *parts, int count, off_t at), (descriptor, parts, count, at))
FAULT(ssize_t, pwritev64, "write", (int descriptor, const struct iovec *parts, int count, off_t at), (descriptor, parts, count, at))
FAULT(ssize_t, read, "read", (int descriptor, void *bytes, size_t count), (descriptor, bytes, count))
FAULT(ssize_t, readv, "read", (int descriptor, const struct iovec *parts, int count), (descriptor, parts, count))
FAULT(ssize_t, pread, "read", (int descriptor, void *bytes, size_t count, off_t at), (descriptor, bytes, count, at))
FAULT(ssize_t, pread64, "read", (int descriptor, void *bytes, size_t count, off_t at), (descriptor, bytes, count, at))
FAULT(ssize_t, preadv, "read", (int descriptor, const struct iovec *parts, int count, off_t at), (descriptor, parts, count, at))
FAULT(ssize_t, preadv64, "read", (int descriptor, const struct iovec *parts, int count, off_t at), (descriptor, parts, count, at))
FAULT(int, fsync, "sync", (int descriptor), (descriptor))

int unlink(const char *path)
{
    int (*real)(const char *) = (int (*)(const char *))dlsym(RTLD_NEXT, "unlink");
    if (fails(path, "unlink"))
        kill(getpid(), SIGKILL);
    return real(path);
}

unsigned alarm(unsigned seconds)
{
    const long sooner = 12;
    struct itimerval timer = {.it_value = {seconds / sooner, seconds % sooner * 1000000 / sooner}};
    setitimer(ITIMER_REAL, &timer, NULL);
    return 0;
}
