/* Files: mapped to read, written whole or not at all, hashed. */
#include "breakwater/base.h"
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

static int copy_string(char **to, const char *from)
{
    size_t bytes = strlen(from) + 1;
    BW_TRY(BW_NEW(*to, bytes, "text"));
    memcpy(*to, from, bytes);
    return BW_OK;
}

/* ---- mapped files ------------------------------------------------------------------------------------------------
 * Touching a page that its file has lost brings SIGBUS. The handler may call next to nothing: it looks into a table and writes. */
enum { MOST_NAMED = 512 }; /* mappings beyond it work, and end without a line when they break */
static struct {
    const uint8_t *volatile data;
    size_t size;
    const char *path;
} named[MOST_NAMED];

typedef struct line {
    char text[1024];
    size_t length;
} line;

static void add(line *out, const char *text)
{
    for (; *text && out->length < sizeof out->text - 1; text++)
        out->text[out->length++] = (unsigned char)*text < 0x20 || *text == 0x7f ? '?' : *text;
}

static void on_lost_page(int number, siginfo_t *info, void *context)
{
    (void)context;
    for (int i = 0; i < MOST_NAMED; i++) {
        uintptr_t at = (uintptr_t)info->si_addr, first = (uintptr_t)named[i].data;
        if (!first || at < first || at - first >= named[i].size)
            continue;
        line out = {.length = 0};
        add(&out, "breakwater: error: ");
        add(&out, named[i].path);
        add(&out, ": became shorter while it was read, or its disk failed; put the whole file back and run the same command again");
        out.text[out.length++] = '\n';
        if (write(STDERR_FILENO, out.text, out.length) < 0)
            out.length = 0; /* nobody hears it; the exit code says the rest */
        _exit(BW_IO);
    }
    signal(number, SIG_DFL); /* no file of ours: the touch is repeated and ends the process as it would have */
}

static void enter(const bw_map *map)
{
    struct sigaction action = {.sa_sigaction = on_lost_page, .sa_flags = SA_SIGINFO};
    sigemptyset(&action.sa_mask);
    sigaction(SIGBUS, &action, NULL); /* each time: MPI, started after the first mapping, may have put its own there */
    for (int i = 0; map->data && i < MOST_NAMED; i++)
        if (!named[i].data) {
            named[i].size = map->size;
            named[i].path = map->path;
            named[i].data = map->data;
            return;
        }
}

static void leave(const bw_map *map)
{
    for (int i = 0; map->data && i < MOST_NAMED; i++)
        if (named[i].data == map->data)
            named[i].data = NULL;
}

static int map_descriptor(bw_map *map, int descriptor, const char *path)
{
    struct stat info;
    if (fstat(descriptor, &info) != 0)
        return bw_fail(BW_NOINPUT, "%s: %s", path, strerror(errno));
    if (!S_ISREG(info.st_mode))
        return bw_fail(BW_NOINPUT, "%s: a %s, but a file is needed", path, S_ISDIR(info.st_mode) ? "folder" : "device or pipe");
    map->size = (size_t)info.st_size;
    if (map->size == 0)
        return BW_OK;
    void *data = mmap(NULL, map->size, PROT_READ, MAP_PRIVATE, descriptor, 0);
    if (data == MAP_FAILED)
        return bw_fail(BW_NOINPUT, "%s: cannot be mapped: %s", path, strerror(errno));
    map->data = data;
    return BW_OK;
}

int bw_map_open(bw_map *map, const char *path)
{
    *map = (bw_map){0};
    int descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a pipe without a writer would be waited for: it is refused instead */
    if (descriptor < 0)
        return bw_fail(BW_NOINPUT, "%s: %s", path, strerror(errno));
    int status = map_descriptor(map, descriptor, path);
    close(descriptor); /* the mapping holds the file */
    if (status == BW_OK)
        status = copy_string(&map->path, path);
    if (status != BW_OK)
        bw_map_close(map);
    else
        enter(map);
    return status;
}

void bw_map_close(bw_map *map)
{
    leave(map);
    if (map->data)
        munmap((void *)map->data, map->size);
    bw_free(map->path);
    *map = (bw_map){0};
}

/* Span by span, each given back when it is read: a large file is never in this process as a whole. */
static void hash_map(const bw_map *map, XXH3_state_t *state)
{
    const size_t span = 8 << 20;
    XXH3_128bits_reset(state);
    for (size_t at = 0; at < map->size; at += span) {
        size_t length = map->size - at < span ? map->size - at : span;
        XXH3_128bits_update(state, map->data + at, length);
        (void)madvise((void *)(map->data + at), length, MADV_DONTNEED);
    }
}

int bw_hash_file(bw_hash *hash, const char *path)
{
    bw_map map;
    BW_TRY(bw_map_open(&map, path));
    XXH3_state_t *state = XXH3_createState();
    int status = state ? BW_OK : bw_fail(BW_SYSTEM, "out of memory: a hash needs its state");
    if (status == BW_OK) {
        hash_map(&map, state);
        XXH128_hash_t sum = XXH3_128bits_digest(state);
        *hash = (bw_hash){sum.high64, sum.low64};
    }
    XXH3_freeState(state);
    bw_map_close(&map);
    return status;
}

/* ---- writing ------------------------------------------------------------------------------------------------------*/

static int sync_path(const char *path)
{
    struct stat info;
    int descriptor = open(path, O_RDONLY | O_CLOEXEC);
    if (descriptor < 0)
        return bw_fail(BW_IO, "%s: cannot be opened to flush it: %s", path, strerror(errno));
    bool folder = fstat(descriptor, &info) == 0 && S_ISDIR(info.st_mode);
    /* Some file systems cannot flush a folder and say EINVAL: there is nothing more to be done there. */
    bool failed = fsync(descriptor) != 0 && !(folder && (errno == EINVAL || errno == EROFS));
    int error = errno;
    close(descriptor);
    return failed ? bw_fail(BW_IO, "%s: not written to disk: %s", path, strerror(error)) : BW_OK;
}

/* Flush the folder that holds `path`, so that the new name survives a crash. */
static int sync_folder_of(const char *path)
{
    bw_text folder = {0};
    const char *slash = strrchr(path, '/');
    int status = slash ? bw_text_add(&folder, path, slash == path ? 1 : (size_t)(slash - path)) : bw_text_add(&folder, ".", 1);
    if (status == BW_OK)
        status = sync_path(folder.data);
    bw_text_free(&folder);
    return status;
}

int bw_file_publish(const char *temporary, const char *path)
{
    BW_TRY(sync_path(temporary));
    if (rename(temporary, path) != 0)
        return bw_fail(BW_CANTCREATE, "%s: cannot be renamed to %s: %s", temporary, path, strerror(errno));
    return sync_folder_of(path);
}

int bw_file_put(int descriptor, const char *path, const void *bytes, int64_t count, int64_t offset)
{
    const char *next = bytes;
    while (count > 0) {
        ssize_t written = pwrite(descriptor, next, (size_t)count, (off_t)offset);
        if (written < 0 && errno == EINTR)
            continue;
        if (written <= 0)
            return bw_fail(BW_IO, "%s: writing %lld bytes at byte %lld broke off: %s", path, (long long)count, (long long)offset,
                           written < 0 ? strerror(errno) : "nothing was taken");
        next += written;
        count -= written;
        offset += written;
    }
    return BW_OK;
}

int bw_file_finish(int descriptor, const char *path, int status)
{
    if (status == BW_OK && fsync(descriptor) != 0)
        status = bw_fail(BW_IO, "%s: not written to disk: %s", path, strerror(errno));
    if (close(descriptor) != 0 && status == BW_OK)
        status = bw_fail(BW_IO, "%s: not written to disk: %s", path, strerror(errno));
    return status;
}

/* The temporary beside the file; a leftover of a killed run is removed first, so that its mode and owner do not stay. */
static int write_temporary(const char *temporary, const char *path, const void *bytes, size_t length, unsigned mode)
{
    unlink(temporary);
    int descriptor = open(temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, (mode_t)mode);
    if (descriptor < 0)
        return bw_fail(bw_create_status(errno), "%s: cannot be created: %s", path, strerror(errno));
    return bw_file_finish(descriptor, path, bw_file_put(descriptor, path, bytes, (int64_t)length, 0));
}

int bw_file_write(const char *path, const void *bytes, size_t length, unsigned mode)
{
    struct stat info;
    if (lstat(path, &info) == 0 && !S_ISREG(info.st_mode) && !S_ISLNK(info.st_mode))
        return bw_fail(BW_CANTCREATE, "%s: is there already and is not a file", path);
    int status;
    bw_text temporary = {0};
    BW_GO(bw_text_addf(&temporary, "%s.tmp", path));
    status = write_temporary(temporary.data, path, bytes, length, mode);
    if (status == BW_OK)
        status = bw_file_publish(temporary.data, path);
    if (status != BW_OK)
        unlink(temporary.data);
done:
    bw_text_free(&temporary);
    return status;
}

static int make_one(const char *path)
{
    enum { MOST_TRIES = 8 }; /* another job may take away the folder that was in the way */
    struct stat info;
    int error = EEXIST, missing = -1;
    for (int attempt = 0; error == EEXIST && missing != 0 && attempt < MOST_TRIES; attempt++) {
        if (mkdir(path, 0777) == 0)
            return BW_OK;
        error = errno; /* a read-only or closed parent says so even where the folder is there already */
        missing = stat(path, &info);
    }
    if (missing != 0)
        return bw_fail(bw_create_status(error), "%s: folder cannot be made: %s", path, strerror(error));
    return S_ISDIR(info.st_mode) ? BW_OK : bw_fail(BW_CANTCREATE, "%s: folder cannot be made: a file of that name is there", path);
}

int bw_dir_make(const char *path)
{
    if (!*path)
        return bw_fail(BW_CANTCREATE, "a folder with an empty name cannot be made");
    int status;
    bw_text part = {0};
    for (const char *at = path; *at; at++) {
        bool border = at[0] == '/' && at > path && at[-1] != '/';
        if (border && part.length)
            BW_GO(make_one(part.data));
        BW_GO(bw_text_add(&part, at, 1));
    }
    status = make_one(part.data);
done:
    bw_text_free(&part);
    return status;
}

bool bw_file_exists(const char *path)
{
    return access(path, F_OK) == 0;
}

int bw_path(bw_text *out, const char *folder, const char *name)
{
    bw_text joined = {0}; /* `folder` may point into `out` */
    size_t length = strlen(folder);
    while (length > 1 && folder[length - 1] == '/')
        length--;
    int status = bw_text_add(&joined, folder, length);
    if (status == BW_OK && length && folder[length - 1] != '/')
        status = bw_text_add(&joined, "/", 1);
    if (status == BW_OK)
        status = bw_text_add(&joined, name, strlen(name));
    if (status != BW_OK) {
        bw_text_free(&joined);
        return status;
    }
    bw_text_free(out);
    *out = joined;
    return BW_OK;
}

/* ---- hash ---------------------------------------------------------------------------------------------------------*/

bw_hash bw_hash_bytes(const void *bytes, size_t length)
{
    XXH128_hash_t hash = XXH3_128bits(length ? bytes : "", length);
    return (bw_hash){hash.high64, hash.low64};
}

bw_hash bw_hash_join(bw_hash a, bw_hash b)
{
    bw_hash both[2] = {a, b};
    return bw_hash_bytes(both, sizeof both);
}

void bw_hash_text(bw_hash hash, char text[33])
{
    snprintf(text, 33, "%016llx%016llx", (unsigned long long)hash.high, (unsigned long long)hash.low);
}
