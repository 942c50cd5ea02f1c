/* Loaded before the program (LD_PRELOAD): the disk fails on one rank, for the files of checkpoints.
 *   FAULT_FILE   whose path has this in it
 *   FAULT_RANK   this rank only
 *   FAULT_CALL   write, read or sync: what fails, with EIO
 *   FAULT_AFTER  so many of these calls work first
 * Alarms come twelve times as soon, so that a test need not wait for minutes. */
#include <dlfcn.h>
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <unistd.h>

static bool is_file(int descriptor, const char *name)
{
    char link[64], path[4096] = "";
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    return readlink(link, path, sizeof path - 1) > 0 && strstr(path, name);
}

static bool fails(int descriptor, const char *call)
{
    static int calls;
    const char *rank = getenv("OMPI_COMM_WORLD_RANK"), *file = getenv("FAULT_FILE"), *on = getenv("FAULT_RANK"), *which = getenv("FAULT_CALL"),
               *after = getenv("FAULT_AFTER");
    if (!rank || !file || !on || !which || !after || strcmp(rank, on) != 0 || strcmp(call, which) != 0 || !is_file(descriptor, file))
        return false;
    errno = EIO;
    return calls++ >= atoi(after);
}

#define FAULT(result, name, call, parameters, arguments)                                                                                             \
    result name parameters                                                                                                                           \
    {                                                                                                                                                \
        result(*real) parameters = (result(*) parameters)dlsym(RTLD_NEXT, #name);                                                                    \
        return fails(descriptor, call) ? -1 : real arguments;                                                                                        \
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

unsigned alarm(unsigned seconds)
{
    const long sooner = 12;
    struct itimerval timer = {.it_value = {seconds / sooner, seconds % sooner * 1000000 / sooner}};
    setitimer(ITIMER_REAL, &timer, NULL);
    return 0;
}
