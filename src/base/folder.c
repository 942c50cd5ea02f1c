/* An output folder: one job at a time writes to it, and nothing in it is deleted that the program did not write. */
#include "breakwater/base.h"
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <dirent.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static const char lock_name[] = ".lock";

/* ---- lock --------------------------------------------------------------------------------------------------------- */

/* What the holder wrote of itself; the file may be anybody's, so little of it is read. */
static void read_holder(const char *path, char *holder, size_t room)
{
    int descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    ssize_t got = descriptor < 0 ? 0 : read(descriptor, holder, room - 1);
    holder[got > 0 ? got : 0] = 0;
    holder[strcspn(holder, "\n")] = 0;
    if (descriptor >= 0)
        close(descriptor);
}

static int in_use(const bw_lock *lock)
{
    char holder[256];
    read_holder(lock->path.data, holder, sizeof holder);
    return bw_fail(BW_CANTCREATE, "%s: another job writes to this folder: %s; wait for its end or stop it, or name another --output",
                   lock->folder.data, *holder ? holder : "it did not say who it is");
}

static int not_opened(const bw_lock *lock, int error)
{
    struct stat info;
    if (error == EACCES && stat(lock->path.data, &info) == 0 && info.st_uid != geteuid())
        return bw_fail(BW_CANTCREATE,
                       "%s: belongs to another user (number %ld) and may not be written to; name another --output, or have the owner "
                       "delete it when no job of theirs is at work",
                       lock->path.data, (long)info.st_uid);
    return bw_fail(bw_create_status(error), "%s: cannot be opened for writing: %s; name another --output, or mend the folder", lock->path.data,
                   strerror(error));
}

/* A job that found nothing to write takes its folder away: what was opened before that and locked after it keeps nobody out. */
static bool still_there(const bw_lock *lock)
{
    struct stat mine, there;
    return fstat(lock->descriptor, &mine) == 0 && stat(lock->path.data, &there) == 0 && mine.st_ino == there.st_ino && mine.st_dev == there.st_dev;
}

/* A record lock of fcntl(2): of all kinds of lock the one that network file systems pass on between nodes. Where nobody can write nobody is kept
 * out: what is finished on a read-only file system may be looked at. again: another job took the folder away meanwhile. */
static int take(bw_lock *lock, bool *again)
{
    struct flock whole = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    lock->descriptor = open(lock->path.data, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0666);
    *again = lock->descriptor < 0 && errno == ENOENT;
    if (lock->descriptor < 0)
        return *again || errno == EROFS ? BW_OK : not_opened(lock, errno);
    if (fcntl(lock->descriptor, F_SETLK, &whole) != 0) {
        if (errno == EACCES || errno == EAGAIN) {
            lock->made = false; /* whoever made it, it is the holder's now, with the file that carries the holder's lock */
            return in_use(lock);
        }
        bw_warn("%s: this file system has no locks (%s): see to it that no second job writes to this folder", lock->folder.data, strerror(errno));
    }
    *again = !still_there(lock);
    return BW_OK;
}

static int sign(const bw_lock *lock)
{
    char node[256] = "?", since[32] = "?";
    const char *job = getenv("SLURM_JOB_ID");
    bw_text text = {0};
    time_t now = time(NULL);
    struct tm utc;
    gethostname(node, sizeof node - 1);
    if (gmtime_r(&now, &utc))
        strftime(since, sizeof since, "%Y-%m-%d %H:%M:%S UTC", &utc);
    int status = bw_text_addf(&text, "process %ld on %s%s%s, since %s\n", (long)getpid(), node, job ? ", Slurm job " : "", job ? job : "", since);
    if (status == BW_OK && (ftruncate(lock->descriptor, 0) != 0 || pwrite(lock->descriptor, text.data, text.length, 0) != (ssize_t)text.length))
        status = bw_fail(BW_IO, "%s: cannot be written: %s", lock->path.data, strerror(errno));
    if (status == BW_OK)
        (void)fsync(lock->descriptor); /* for readers on other nodes; where it fails they learn less */
    bw_text_free(&text);
    return status;
}

static void let_go(bw_lock *lock)
{
    if (lock->descriptor >= 0)
        close(lock->descriptor);
    lock->descriptor = -1;
}

static bool holds_the_lock_alone(const char *folder)
{
    bool alone = true;
    DIR *directory = opendir(folder);
    if (!directory)
        return false;
    for (struct dirent *entry; (entry = readdir(directory));)
        alone = alone && (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..") || !strcmp(entry->d_name, lock_name));
    closedir(directory);
    return alone;
}

void bw_folder_unlock(bw_lock *lock)
{
    if (lock->made && lock->descriptor >= 0 && holds_the_lock_alone(lock->folder.data)) {
        unlink(lock->path.data);
        rmdir(lock->folder.data);
    }
    let_go(lock);
    bw_text_free(&lock->path);
    bw_text_free(&lock->folder);
}

int bw_folder_lock(bw_lock *lock, const char *folder)
{
    enum { MOST_TRIES = 8 };
    bool again = true;
    int status;
    *lock = (bw_lock){.descriptor = -1, .made = !bw_file_exists(folder)};
    BW_GO(bw_path(&lock->path, folder, lock_name));
    BW_GO(bw_text_addf(&lock->folder, "%s", folder));
    for (int attempt = 0; again && attempt < MOST_TRIES; attempt++) {
        let_go(lock);
        BW_GO(bw_dir_make(folder));
        BW_GO(take(lock, &again));
    }
    if (!again) {
        BW_GO(lock->descriptor < 0 ? BW_OK : sign(lock));
        return BW_OK;
    }
    lock->made = false;
    status = bw_fail(BW_CANTCREATE, "%s: is made and removed by other jobs all the time; name another --output", folder);
done:
    bw_folder_unlock(lock);
    return status;
}

/* ---- what is in it ------------------------------------------------------------------------------------------------ */

int bw_folder_check(const char *folder, const char *const *names)
{
    bw_text path = {0};
    int status = bw_path(&path, folder, "config.yaml");
    bool known = status == BW_OK && bw_file_exists(path.data);
    for (int i = 0; status == BW_OK && !known && names[i]; i++) {
        status = bw_path(&path, folder, names[i]);
        if (status == BW_OK && bw_file_exists(path.data))
            status = bw_fail(BW_CANTCREATE,
                             "%s: was not made by this command (there is no config.yaml beside it) and is not replaced; name another "
                             "--output, or move it away",
                             path.data);
    }
    bw_text_free(&path);
    return status;
}

static int remove_one(const char *path, const struct stat *info, int kind, struct FTW *where)
{
    (void)info, (void)kind, (void)where;
    return remove(path);
}

static int remove_entries(const char *folder, const char *const *names, const char *suffix)
{
    bw_text path = {0};
    int status = BW_OK;
    for (int i = 0; status == BW_OK && names[i]; i++) {
        status = bw_path(&path, folder, names[i]);
        if (status == BW_OK)
            status = bw_text_addf(&path, "%s", suffix);
        if (status == BW_OK && nftw(path.data, remove_one, 16, FTW_DEPTH | FTW_PHYS) != 0 && errno != ENOENT)
            status = bw_fail(BW_CANTCREATE, "%s: cannot be removed: %s", path.data, strerror(errno));
    }
    bw_text_free(&path);
    return status;
}

int bw_folder_remove(const char *folder, const char *const *names)
{
    BW_TRY(remove_entries(folder, names, ""));
    return bw_folder_sweep(folder, names);
}

int bw_folder_sweep(const char *folder, const char *const *names)
{
    BW_TRY(remove_entries(folder, names, ".tmp"));
    BW_TRY(remove_entries(folder, names, ".tmp-write"));
    return remove_entries(folder, names, ".tmp-old");
}
