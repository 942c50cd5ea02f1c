/* h5.c - files of parallel HDF5: opened, given room, closed, by all ranks together. This file and the two beside it are HDF5's only callers. */
#include <errno.h>
#include <fcntl.h>
#include <semaphore.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>
#include "io/h5_inside.h"
#include "par/comms.h"

enum { LARGE_BLOCK = 1 << 20, SMALLEST_ALIGNMENT = 512, LARGEST_ALIGNMENT = 1 << 30 };

/* ---- errors ------------------------------------------------------------------------------------------------------- */
/* HDF5 forgets an error at its next call, the one that releases something included, so the reason is kept when it arises. */
static char last_reason[256];

static herr_t keep_innermost(unsigned depth, const H5E_error2_t *error, void *unused)
{
    (void)unused;
    if (depth == 0)
        snprintf(last_reason, sizeof last_reason, "%s", error->desc ? error->desc : "");
    return 0;
}

static herr_t on_error(hid_t stack, void *unused)
{
    return H5Ewalk2(stack, H5E_WALK_UPWARD, keep_innermost, unused);
}

int bw_h5_fail(int status, const char *path, const char *what, const char *object)
{
    struct statvfs room;
    char space[64] = "";
    if (status == BW_IO && statvfs(path, &room) == 0)
        snprintf(space, sizeof space, " (%.1f MiB free there)", (double)room.f_bavail * (double)room.f_frsize / 1048576);
    bw_fail(status, "%s: cannot %s %s%s: %s", path, what, object, space, last_reason[0] ? last_reason : "no reason given");
    last_reason[0] = '\0';
    bw_h5_watch_failure(true);
    return status;
}

/* One for all, where one is enough. */
static bool is_first(const bw_h5 *h5)
{
    return h5->grid->myrow == 0 && h5->grid->mycol == 0;
}

int bw_h5_agree(const bw_h5 *h5, int status)
{
    status = bw_agree_on(h5->grid->comms->grid, status);
    if (status != BW_OK)
        bw_h5_watch_failure(is_first(h5));
    return status;
}

void bw_h5_release(hid_t id)
{
    if (id >= 0)
        H5Idec_ref(id);
}

/* ---- files -------------------------------------------------------------------------------------------------------- */
/* No messages of HDF5's own, and no way from a checkpoint into other files. */
static void prepare_library(void)
{
    H5Eset_auto2(H5E_DEFAULT, on_error, NULL);
    if (H5Lis_registered(H5L_TYPE_EXTERNAL) > 0)
        H5Lunregister(H5L_TYPE_EXTERNAL);
}

/* What large datasets are aligned to: the stripe that is asked for, else the file system's block where it has large ones; 1: nothing. */
static hsize_t alignment_of(const char *folder, const bw_list *hints)
{
    struct stat about;
    const char *stripe = hints ? bw_hint_find(hints, "striping_unit") : NULL;
    long long block = stat(folder, &about) == 0 && about.st_blksize >= LARGE_BLOCK ? (long long)about.st_blksize : 1;
    if (stripe)
        block = atoll(stripe);
    return block >= SMALLEST_ALIGNMENT && block <= LARGEST_ALIGNMENT ? (hsize_t)block : 1;
}

/* Collective, for HDF5 makes a communicator of its own: only once all ranks have agreed that the file can be had. */
static int make_access(bw_h5 *h5)
{
    MPI_Info info;
    int status = bw_hints_info(h5->hints, &info);
    h5->access = H5Pcreate(H5P_FILE_ACCESS);
    bool set = status == BW_OK && h5->access >= 0 && H5Pset_fapl_mpio(h5->access, h5->grid->comms->grid, info) >= 0 &&
               H5Pset_libver_bounds(h5->access, H5F_LIBVER_V110, H5F_LIBVER_V110) >= 0 && H5Pset_coll_metadata_write(h5->access, 1) >= 0 &&
               H5Pset_all_coll_metadata_ops(h5->access, 1) >= 0 && H5Pset_alignment(h5->access, h5->alignment, h5->alignment) >= 0;
    if (info != MPI_INFO_NULL)
        MPI_Info_free(&info); /* HDF5 has its own copy */
    return set || status != BW_OK ? status : bw_h5_fail(BW_SYSTEM, h5->path, "prepare", "the access to this file");
}

static int allocate(bw_h5 **out, const bw_grid *grid, const char *path)
{
    bw_h5 *h5 = NULL;
    size_t length = strlen(path) + 1;
    BW_TRY(BW_NEW(h5, 1, "hdf5"));
    *out = h5;
    h5->grid = grid;
    h5->file = h5->access = h5->reserve = -1;
    BW_TRY(BW_NEW(h5->path, length, "hdf5"));
    memcpy(h5->path, path, length);
    return BW_OK;
}

/* HDF5 cannot close a file whose metadata find no room: it crashes, or its ranks wait for one another. So a few MiB are set aside while data
 * are written and given back before the file is closed: a disk that fills up stops the data, and never the closing. The file that holds them has a
 * name for a moment only, but a job may be killed in it. */
static int reserve_room(bw_h5 *h5)
{
    char name[4096];
    if (!is_first(h5))
        return BW_OK;
    if ((size_t)snprintf(name, sizeof name, "%s" BW_H5_ROOM, h5->path) >= sizeof name)
        return bw_fail(BW_CANTCREATE, "%s: the path is too long", h5->path);
    h5->reserve = open(name, O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (h5->reserve < 0)
        return bw_fail(bw_create_status(errno), "%s: cannot create a file there: %s", h5->path, strerror(errno));
    unlink(name);
    int error = posix_fallocate(h5->reserve, 0, BW_H5_RESERVE);
    return error == 0 ? BW_OK : bw_fail(BW_IO, "%s: not even %d MiB can be written there: %s", h5->path, BW_H5_RESERVE >> 20, strerror(error));
}

static void give_room_back(bw_h5 *h5)
{
    if (h5->reserve >= 0)
        close(h5->reserve);
    h5->reserve = -1;
}

static void deallocate(bw_h5 **h5)
{
    if (*h5) {
        give_room_back(*h5);
        bw_h5_release((*h5)->access);
        bw_free((*h5)->path);
    }
    bw_free(*h5);
    *h5 = NULL;
}

static int create_file(bw_h5 *h5)
{
    h5->writes = true;
    h5->file = H5Fcreate(h5->path, H5F_ACC_TRUNC, H5P_DEFAULT, h5->access);
    return h5->file >= 0 ? BW_OK : bw_h5_fail(BW_CANTCREATE, h5->path, "create", "this HDF5 file");
}

static int open_file(bw_h5 *h5)
{
    h5->file = H5Fopen(h5->path, H5F_ACC_RDONLY, h5->access);
    return h5->file >= 0 ? BW_OK : bw_h5_fail(BW_DATA, h5->path, "open", "as HDF5 (truncated, or not HDF5)");
}

/* Asked before HDF5 is, whose collective open may leave ranks waiting for one that cannot see the file. */
static int check_readable(bw_h5 *h5)
{
    if (access(h5->path, R_OK) != 0)
        return bw_fail(BW_NOINPUT, "%s: cannot open: %s", h5->path, strerror(errno));
    return BW_OK;
}

static int claim(const bw_h5 *h5, int64_t bytes)
{
    int descriptor = open(h5->path, O_WRONLY | O_CLOEXEC);
    if (descriptor < 0)
        return bw_fail(BW_CANTCREATE, "%s: cannot open: %s", h5->path, strerror(errno));
    int error = fallocate(descriptor, FALLOC_FL_KEEP_SIZE, 0, bytes) == 0 ? 0 : errno;
    close(descriptor);
    if (error == 0 || error == EOPNOTSUPP || error == ENOSYS)
        return BW_OK;
    return bw_fail(BW_IO, "%s: its %.1f MiB cannot be had there: %s", h5->path, (double)bytes / 1048576, strerror(error));
}

int bw_h5_claim(bw_h5 *h5, int64_t bytes)
{
    h5->claimed = is_first(h5);
    return bw_h5_agree(h5, h5->claimed ? claim(h5, bytes) : BW_OK);
}

/* All ranks lay the file out alike, so one says how. */
static int agree_on_alignment(bw_h5 *h5, const char *folder)
{
    uint64_t value = alignment_of(folder, h5->hints);
    BW_MPI(MPI_Bcast(&value, 1, MPI_UINT64_T, 0, h5->grid->comms->grid));
    h5->alignment = value;
    return BW_OK;
}

static int check_folder(bw_h5 *h5)
{
    const char *slash = strrchr(h5->path, '/');
    char folder[4096] = ".";
    if (slash)
        snprintf(folder, sizeof folder, "%.*s", slash == h5->path ? 1 : (int)(slash - h5->path), h5->path);
    BW_TRY(agree_on_alignment(h5, folder));
    if (access(folder, W_OK | X_OK) != 0)
        return bw_fail(BW_CANTCREATE, "%s: cannot create: folder %s: %s", h5->path, folder, strerror(errno));
    return reserve_room(h5);
}

/* Open MPI gives every file that is opened a named semaphore of the node, for a shared file pointer that nobody here uses. The name is that of the
 * file without its folder, and a job that was killed at the wrong moment leaves it locked: every later job would wait for it for ever. */
static void forget_semaphore(const char *path)
{
    char name[256];
    const char *slash = strrchr(path, '/');
    if ((size_t)snprintf(name, sizeof name, "/OMPIO_%s", slash ? slash + 1 : path) < sizeof name)
        sem_unlink(name);
}

static int start(bw_h5 **out, const bw_grid *grid, const char *path, const bw_list *hints, int (*check)(bw_h5 *), int (*open)(bw_h5 *))
{
    bw_h5 *h5 = NULL;
    int status;
    BW_GO(bw_agree_on(grid->comms->grid, allocate(&h5, grid, path)));
    h5->hints = hints;
    h5->alignment = 1;
    prepare_library();
    forget_semaphore(path);
    BW_GO(bw_h5_agree(h5, check(h5)));
    BW_GO(bw_h5_agree(h5, make_access(h5)));
    BW_GO(bw_h5_agree(h5, open(h5)));
done:
    if (status != BW_OK && h5) {
        bw_h5_watch_over(); /* all ranks are here, and may go on with another file */
        bw_h5_release(h5->file);
        deallocate(&h5);
    }
    *out = h5;
    return status;
}

int bw_h5_create(bw_h5 **out, const bw_grid *grid, const char *path, const bw_list *hints)
{
    return start(out, grid, path, hints, check_folder, create_file);
}

int bw_h5_open(bw_h5 **out, const bw_grid *grid, const char *path)
{
    return start(out, grid, path, NULL, check_readable, open_file);
}

int bw_h5_add_hints(bw_h5 *h5, bw_text *text)
{
    MPI_File *handle = NULL;
    MPI_Info info = MPI_INFO_NULL;
    if (H5Fget_vfd_handle(h5->file, H5P_DEFAULT, (void **)&handle) < 0 || MPI_File_get_info(*handle, &info) != MPI_SUCCESS)
        return bw_h5_agree(h5, bw_text_addf(text, "MPI does not tell them"));
    int status = bw_hints_describe(info, text);
    if (info != MPI_INFO_NULL)
        MPI_Info_free(&info);
    return bw_h5_agree(h5, status);
}

/* What was claimed and not used goes back; where that fails, it is a little room lost, and nothing else. */
static void release_claim(const bw_h5 *h5)
{
    struct stat about;
    if (h5->claimed && stat(h5->path, &about) == 0)
        (void)!truncate(h5->path, about.st_size);
}

/* What the disk did not take is mostly told here, where all can agree on it: inside HDF5 the rank that fails goes on to the next collective call, and
 * all wait for ever. Each rank asks, for each node has a cache of its own. */
static int sync_data(const bw_h5 *h5)
{
    int descriptor = open(h5->path, O_RDONLY | O_CLOEXEC);
    if (descriptor < 0)
        return bw_fail(BW_IO, "%s: cannot open what was written: %s", h5->path, strerror(errno));
    int error = fsync(descriptor) == 0 ? 0 : errno;
    close(descriptor);
    return error == 0 || error == EINVAL ? BW_OK : bw_fail(BW_IO, "%s: cannot write: %s", h5->path, strerror(error));
}

int bw_h5_close(bw_h5 **h5)
{
    if (!*h5)
        return BW_OK;
    give_room_back(*h5);
    int status = bw_h5_agree(*h5, (*h5)->writes ? sync_data(*h5) : BW_OK); /* nobody writes on before the room is there */
    bw_h5_watch_closing((*h5)->path, is_first(*h5));
    if (status == BW_OK && H5Fflush((*h5)->file, H5F_SCOPE_GLOBAL) < 0)
        status = bw_h5_fail(BW_IO, (*h5)->path, "flush", "this file");
    if (H5Fclose((*h5)->file) < 0 && status == BW_OK)
        status = bw_h5_fail(BW_IO, (*h5)->path, "close", "this file");
    status = bw_h5_agree(*h5, status);
    bw_h5_watch_over();
    release_claim(*h5);
    deallocate(h5);
    return status;
}

/* ---- questions ---------------------------------------------------------------------------------------------------- */
bool bw_h5_has(bw_h5 *h5, const char *name)
{
    char part[1024];
    size_t length = strlen(name);
    if (length >= sizeof part)
        return false;
    for (size_t i = 1; i <= length; i++) {
        if (name[i] != '/' && name[i] != '\0')
            continue;
        memcpy(part, name, i);
        part[i] = '\0';
        if (H5Lexists(h5->file, part, H5P_DEFAULT) <= 0 || H5Oexists_by_name(h5->file, part, H5P_DEFAULT) <= 0)
            return false;
    }
    return true;
}

const char *bw_h5_version(void)
{
    static char text[48];
    unsigned major = 0, minor = 0, patch = 0;
    H5get_libversion(&major, &minor, &patch);
    snprintf(text, sizeof text, "%u.%u.%u", major, minor, patch);
    return text;
}
